"""The variational auto-encoder branch that regularises an encoder: Myronenko 2018, https://arxiv.org/abs/1810.11654."""

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Literal

import torch
from dynamic_network_architectures.building_blocks.helper import maybe_convert_scalar_to_list
from torch import Tensor, nn

from nnunet_brats_ext.architectures.blocks import ConvOp, PreActivationBlock, ProjectAndUpsample, Strides
from nnunet_brats_ext.architectures.group_norm import GroupNorm
from nnunet_brats_ext.storage.errors import UserError


class VAEBranch(nn.Module):
    """Training-only branch that reconstructs the image: Lyu & Shu 2020, https://arxiv.org/abs/2011.02881, figure 1.

    Deepest features (b, features[-1], *e) -> reconstruction (b, output_channels, *patch), mean and log-variance
    (b, latent). It has no skips. Its fully connected layers fix e, so it works for the training patch alone.

    endpoint_size: e; an axis is halved once more where it is even.
    strides, features_per_stage: of the encoder; the branch goes back through them.
    bottleneck: channels in front of the fully connected layers. align_corners: of all its upsamplings.
    gradient: "full" draws mean + sigma * noise with the gradient. "none" detaches the draw, as the authors' release
    does: the reconstruction trains the branch alone, and only the KL term reaches the encoder.
    """

    def __init__(
        self,
        output_channels: int,
        endpoint_size: Sequence[int],
        conv_op: ConvOp = nn.Conv3d,
        strides: Strides = (1, 2, 2, 2),
        features_per_stage: Sequence[int] = (32, 64, 128, 256),
        latent: int = 128,
        bottleneck: int = 16,
        align_corners: bool = True,
        gradient: Literal["full", "none"] = "full",
    ):
        super().__init__()
        if gradient not in ("full", "none"):
            raise UserError(f"gradient is {gradient!r}: choose 'full' or 'none'")
        self.gradient = gradient
        steps = [maybe_convert_scalar_to_list(conv_op, stride) for stride in strides][1:]
        features = list(features_per_stage)
        halving = [2 if size % 2 == 0 else 1 for size in endpoint_size]
        small = [size // step for size, step in zip(endpoint_size, halving, strict=True)]

        self.squeeze = nn.Sequential(
            GroupNorm(8, features[-1]),
            nn.ReLU(inplace=True),
            conv_op(features[-1], bottleneck, 3, stride=halving, padding=1),
            nn.Flatten(),
        )
        self.distribution = nn.Linear(bottleneck * prod(small), 2 * latent)
        width = features[-1] // 2
        self.expand = nn.Sequential(nn.Linear(latent, width * prod(small)), nn.ReLU(inplace=True))
        self.shape = (width, *small)
        upsample = partial(ProjectAndUpsample, conv_op, align_corners=align_corners)
        decoder: list[nn.Module] = [upsample(width, features[-1], halving)]
        for wide, narrow, stride in zip(features[:0:-1], features[-2::-1], steps[::-1], strict=True):
            decoder.append(upsample(wide, narrow, stride))
            decoder.append(PreActivationBlock(conv_op, narrow))
        self.decoder = nn.Sequential(*decoder, conv_op(features[0], output_channels, 1))

    def forward(self, endpoint: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parameters = self.distribution(self.squeeze(endpoint))
        wide = torch.promote_types(parameters.dtype, torch.float32)  # half precision is too coarse here
        mean, log_variance = parameters.to(wide).chunk(2, dim=1)
        log_variance = log_variance.clamp(-10, 10)
        latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        if self.gradient == "none":
            latent = latent.detach()
        volume = self.expand(latent).unflatten(1, self.shape)
        return self.decoder(volume), mean, log_variance
