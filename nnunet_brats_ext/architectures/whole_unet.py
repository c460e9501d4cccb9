"""nnU-Net's plain U-Net, with all of its weights taken over by `-pretrained_weights`."""

from typing import Any

from dynamic_network_architectures.architectures.unet import PlainConvUNet


class WholeUNet(PlainConvUNet):
    """`PlainConvUNet` of Isensee et al. 2021 (https://doi.org/10.1038/s41592-020-01008-z), under a second name for heads.

    `-pretrained_weights` leaves out weights called `seg_layers`, so that training would begin with an output at random.
    These are the same weights as `heads`, which it takes. The arguments are those of `PlainConvUNet`.
    """

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self.heads = self.decoder.seg_layers  # after the decoder, so that they are loaded last
