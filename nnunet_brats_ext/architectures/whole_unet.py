"""nnU-Net's plain U-Net, with all of its weights taken over by `-pretrained_weights`."""

from typing import Any

from dynamic_network_architectures.architectures.unet import PlainConvUNet


class WholeUNet(PlainConvUNet):
    """`PlainConvUNet` (https://doi.org/10.1038/s41592-020-01008-z) with a second name for its segmentation layers.

    `-pretrained_weights` leaves out weights called `seg_layers`, so that training would begin with an output at random.
    These are the same weights as `heads`, which it takes. The arguments are those of `PlainConvUNet`.
    """

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self.heads = self.decoder.seg_layers  # after the decoder, so that they are loaded last
