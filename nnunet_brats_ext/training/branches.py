"""Branches that a network has only while it trains, and the terms they add to the loss."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dynamic_network_architectures.building_blocks.helper import convert_dim_to_conv_op
from torch import Tensor, nn

from nnunet_brats_ext.architectures.vae import VAEBranch
from nnunet_brats_ext.losses.vae import kl_divergence, reconstruction_loss


class TrainingOutput(NamedTuple):
    logits: Tensor | list[Tensor]
    auxiliary_losses: dict[str, Tensor]  # weighted scalars


class NetworkWithBranch(nn.Module):
    """A network that encodes and decodes, with a branch on its features that only training needs.

    Train mode: (b, c, *s) -> TrainingOutput; eval mode: the network's logits. Its state dict is the network's own, so
    that checkpoints load where the branch is never built: in `nnUNetPredictor`, or as pretrained weights.
    The branch takes the network's input and the list of features and returns its losses by name.
    """

    def __init__(self, network: nn.Module, branch: nn.Module):
        super().__init__()
        self.network, self.branch = network, branch

    def forward(self, x: Tensor) -> TrainingOutput | Tensor:
        if not self.training:
            return self.network(x)
        features = self.network.encode(x)
        return TrainingOutput(self.network.decode(features), self.branch(x, features))

    def state_dict(self, *args, **kwargs):
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, *args, **kwargs):
        return self.network.load_state_dict(*args, **kwargs)


class VAERegularisation(nn.Module):
    """Weighted reconstruction and divergence of a `VAEBranch`, as Myronenko 2018 (https://arxiv.org/abs/1810.11654).

    It reconstructs the first `image_channels` of the input, not the labels of a previous stage behind them.
    summed: both terms as Lyu & Shu 2020 print them, sums where their release has means (see `losses.vae`).
    """

    def __init__(
        self,
        vae: VAEBranch,
        image_channels: int,
        reconstruction_weight: float = 0.1,
        kl_weight: float = 0.1,
        summed: bool = False,
    ):
        super().__init__()
        self.summed = summed
        self.vae, self.image_channels = vae, image_channels
        self.reconstruction_weight, self.kl_weight = reconstruction_weight, kl_weight

    def forward(self, x: Tensor, features: list[Tensor]) -> dict[str, Tensor]:
        reconstruction, mean, log_variance = self.vae(features[-1])
        error = reconstruction_loss(reconstruction, x[:, : self.image_channels], self.summed)
        divergence = kl_divergence(mean, log_variance, x[0, 0].numel() if self.summed else None)
        return {"reconstruction": self.reconstruction_weight * error, "kl": self.kl_weight * divergence}


def vae_regularisation(
    network: Any, image_channels: int, patch_size: Sequence[int], summed: bool = False, **options: Any
) -> VAERegularisation:
    """The VAE branch for a network that has `strides`, `features_per_stage` and `endpoint_size`, and for a patch size.

    summed: as `VAERegularisation` has it. options: of `VAEBranch`.
    """
    vae = VAEBranch(
        image_channels,
        network.endpoint_size(patch_size),
        strides=network.strides,
        features_per_stage=network.features_per_stage,
        conv_op=convert_dim_to_conv_op(len(patch_size)),
        **options,
    )
    return VAERegularisation(vae, image_channels, summed=summed)


class LossWithAuxiliaries(nn.Module):
    """A loss on logits, plus the auxiliary losses of a TrainingOutput; `latest` keeps their values for the log."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.loss = loss
        self.latest: dict[str, Tensor] = {}

    def forward(self, output: TrainingOutput | Tensor, target: Tensor) -> Tensor:
        if not isinstance(output, TrainingOutput):
            return self.loss(output, target)
        self.latest = {name: value.detach() for name, value in output.auxiliary_losses.items()}
        return self.loss(output.logits, target) + sum(output.auxiliary_losses.values())
