"""The networks of the papers as torch modules: `DilatedUNet(input_channels=4, num_classes=3)`.

All are `SegmentationNetwork`, whose docstring states their common arguments and shapes; those of every module here are
found. The parts of which they are made, and the training-only `VAEBranch`, are in the modules.
"""

from importlib import import_module
from inspect import getattr_static
from pkgutil import walk_packages

from torch import nn

from nnunet_brats_ext.architectures.blocks import SegmentationNetwork


def _find_networks() -> dict[str, type[nn.Module]]:
    modules = [import_module(found.name) for found in walk_packages(__path__, f"{__name__}.")]
    classes = [one for module in modules for one in vars(module).values() if isinstance(one, type)]
    networks = [one for one in classes if issubclass(one, SegmentationNetwork) and _is_whole(one)]
    return {one.__name__: one for one in sorted(networks, key=lambda one: one.__name__)}


def _is_whole(network: type[nn.Module]) -> bool:
    """Whether it is a network, and no base of several that leaves methods to them."""
    members = (getattr_static(network, name) for name in dir(network))
    return network is not SegmentationNetwork and not any(getattr(m, "__isabstractmethod__", False) for m in members)


NETWORKS = _find_networks()
globals().update(NETWORKS)
__all__ = list(NETWORKS)
