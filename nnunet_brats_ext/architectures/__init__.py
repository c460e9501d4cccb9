"""The networks of the papers as torch modules: `DilatedUNet(input_channels=4, num_classes=3)`.

All are `SegmentationNetwork`, whose docstring states their common arguments and shapes. The parts of which they are
made, and the training-only `VAEBranch`, are in the modules.
"""

from nnunet_brats_ext.architectures.cascaded_unet import CascadedUNet
from nnunet_brats_ext.architectures.dilated_unet import DilatedUNet
from nnunet_brats_ext.architectures.no_new_unet import NoNewUNet
from nnunet_brats_ext.architectures.omnet.networks import ModelCascade, OMNet
from nnunet_brats_ext.architectures.plain_unet_2d import BinaryUNet2D, PlainUNet2D
from nnunet_brats_ext.architectures.post_activation_residual_unet import PostActivationResidualUNet
from nnunet_brats_ext.architectures.residual_unet import AttentionGatedResidualUNet, PreActivationResidualUNet

__all__ = [
    "AttentionGatedResidualUNet",
    "BinaryUNet2D",
    "CascadedUNet",
    "DilatedUNet",
    "ModelCascade",
    "NoNewUNet",
    "OMNet",
    "PlainUNet2D",
    "PostActivationResidualUNet",
    "PreActivationResidualUNet",
]
