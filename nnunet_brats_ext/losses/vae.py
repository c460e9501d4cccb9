"""The two terms of a variational auto-encoder: Kingma & Welling 2014, https://arxiv.org/abs/1312.6114."""

import torch
from torch import Tensor
from torch.nn import functional

from nnunet_brats_ext.losses.precision import wide


def reconstruction_loss(reconstruction: Tensor, image: Tensor) -> Tensor:
    """Mean squared error of two images of one shape -> scalar, fp32 or wider.

    Lyu & Shu 2020 print a sum, which would make the Dice negligible.
    """
    with torch.autocast(image.device.type, enabled=False):
        return functional.mse_loss(wide(reconstruction), wide(image))


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Divergence of N(mean, exp(log_variance)) from N(0, 1), both (b, latent) -> scalar, fp32 or wider.

    Averaged over batch and latent dimensions, without the factor 1/2, as Lyu & Shu 2020 have it.
    """
    with torch.autocast(mean.device.type, enabled=False):
        mean, log_variance = wide(mean), wide(log_variance)
        return (mean**2 + log_variance.exp() - log_variance - 1).mean()
