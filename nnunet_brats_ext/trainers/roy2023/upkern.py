"""UpKern: a network with large kernels from one with small kernels. Roy et al. 2023, https://arxiv.org/abs/2303.09975."""

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

from nnunet_brats_ext.architectures.blocks import INTERPOLATION
from nnunet_brats_ext.training.initial_weights import StartsFromAnother


class UpKern(StartsFromAnother):
    """Mixin: kernel 5, from the weights of the same network with kernel 3."""

    network_options = dict(kernel_size=5)

    def adapt_weights(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        own = self.bare_network.state_dict()
        return {name: upsample_kernel(value, own[name]) if name in own else value for name, value in weights.items()}


def upsample_kernel(weight: Tensor, larger: Tensor) -> Tensor:
    """The weight of a convolution, its kernel interpolated linearly to the size of another's; others stay as they are.

    (o, i, *k) and (o, i, *n) -> (o, i, *n).
    """
    size = larger.shape[2:]
    if weight.shape[2:] == size:
        return weight
    return functional.interpolate(weight, tuple(size), mode=INTERPOLATION[len(size)], align_corners=False)
