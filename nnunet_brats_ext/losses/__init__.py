"""The losses of the papers: (logits, target) -> scalar, in fp32 or wider, finite where a region is empty.

Networks with other outputs have losses of their own: `LabelDiceLoss` for `CascadedUNet`, `MultiTaskCrossEntropy` for
`OMNet`, `reconstruction_loss` and `kl_divergence` for a `VAEBranch`. The losses of every module here are found.
"""

from importlib import import_module
from pkgutil import iter_modules

from torch import nn

from nnunet_brats_ext.losses.vae import kl_divergence, reconstruction_loss

_MODULES = [import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__)]
LOSSES = {
    one.__name__: one
    for module in _MODULES
    for one in vars(module).values()
    if isinstance(one, type) and issubclass(one, nn.Module) and one.__module__ == module.__name__
}
globals().update(LOSSES)
__all__ = [*sorted(LOSSES), "kl_divergence", "reconstruction_loss"]
