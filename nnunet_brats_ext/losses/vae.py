"""The two terms of a variational auto-encoder: Kingma & Welling 2014, https://arxiv.org/abs/1312.6114."""

import torch
from torch import Tensor
from torch.nn import functional

from nnunet_brats_ext.losses.precision import wide


def reconstruction_loss(reconstruction: Tensor, image: Tensor, summed: bool = False) -> Tensor:
    """Mean squared error of two images (b, c, *s) -> scalar, fp32 or wider.

    summed: the sum over channels and voxels, averaged over the batch alone: equation 6 of Lyu & Shu 2020,
    https://arxiv.org/abs/2011.02881, as it is printed. At the size of their patch it is millions of times the Dice.
    """
    with torch.autocast(image.device.type, enabled=False):
        loss = functional.mse_loss(wide(reconstruction), wide(image))
        return loss * image[0].numel() if summed else loss


def kl_divergence(mean: Tensor, log_variance: Tensor, voxels: int | None = None) -> Tensor:
    """Divergence of N(mean, exp(log_variance)) from N(0, 1), both (b, latent) -> scalar, fp32 or wider.

    Averaged over batch and latent dimensions, without the factor 1/2, as the release of Lyu & Shu 2020 has it.
    voxels: of an image; the sum over latent dimensions is then divided by them, as equation 7 of the paper says.
    """
    with torch.autocast(mean.device.type, enabled=False):
        mean, log_variance = wide(mean), wide(log_variance)
        loss = (mean**2 + log_variance.exp() - log_variance - 1).mean()
        return loss if voxels is None else loss * mean.shape[1] / voxels
