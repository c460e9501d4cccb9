"""Networks of MONAI (https://monai.io) under the arguments of nnU-Net's plans. MONAI is an extra: `monai`.

Functions, not classes: they are MONAI's own networks, with its names of weights. Plans name them, and the package
imports without MONAI.
"""

from inspect import signature
from typing import Any

from torch import nn

from nnunet_brats_ext.storage.errors import UserError


def require_monai() -> Any:
    """MONAI's package; a UserError says how to install it."""
    try:
        import monai
    except ImportError as error:
        raise UserError("MONAI is not installed: pip install 'nnunet-brats-ext[monai]'") from error
    return monai


def seg_res_net(
    input_channels: int, num_classes: int, strides: Any = (), deep_supervision: bool = False, **options: Any
) -> nn.Module:
    """SegResNet of Myronenko 2018 (https://arxiv.org/abs/1810.11654) as MONAI has it: (b, c, *s) -> (b, k, *s).

    strides: of the plans, which say what sizes must be multiples of. deep_supervision: it has none.
    """
    require_monai()
    from monai.networks.nets.segresnet import SegResNet

    return SegResNet(in_channels=input_channels, out_channels=num_classes, **options)


def swin_unetr(
    input_channels: int, num_classes: int, strides: Any = (), deep_supervision: bool = False, **options: Any
) -> nn.Module:
    """Swin UNETR of Hatamizadeh et al. 2022 (https://arxiv.org/abs/2201.01266): (b, c, z, y, x) -> (b, k, z, y, x).

    strides: of the plans, which say what sizes must be multiples of: 32. deep_supervision: it has none.
    """
    require_monai()
    from monai.networks.nets.swin_unetr import SwinUNETR

    if "img_size" in signature(SwinUNETR).parameters:  # before MONAI 1.5, which did not use it either
        options["img_size"] = 64
    return SwinUNETR(in_channels=input_channels, out_channels=num_classes, **options)
