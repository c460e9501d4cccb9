"""The two terms of a variational auto-encoder: Kingma & Welling 2014, https://arxiv.org/abs/1312.6114."""

import torch
from torch import Tensor
from torch.nn import functional


def reconstruction_loss(reconstruction: Tensor, image: Tensor) -> Tensor:
    """Mean squared error over everything, in fp32; Lyu & Shu print a sum, which would drown the Dice."""
    with torch.autocast(image.device.type, enabled=False):
        return functional.mse_loss(reconstruction.float(), image.float())


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Divergence from the unit Gaussian, without its factor 1/2 and averaged over batch and latent dimensions."""
    return (mean**2 + log_variance.exp() - log_variance - 1).mean()
