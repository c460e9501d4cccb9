"""What the plans of a configuration say about its network."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pydoc import locate
from typing import Any

from dynamic_network_architectures.building_blocks.helper import convert_dim_to_conv_op
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class PlannedNetwork:
    """Patch, strides and widths of a planned network, under the names of dynamic-network-architectures.

    patch_size: in voxels, per axis. strides, kernel_sizes: per stage and axis. features_per_stage: channels.
    n_conv_per_stage: of a network with plain stages, else None. n_blocks_per_stage: of one with residual stages.
    arguments: all of this, bias, normalisation and nonlinearity as keyword arguments of the class that the plans name,
    so that `PlainConvUNet(**planned.arguments | changes)` is the planned network with changes.
    """

    patch_size: Sizes
    conv_op: type[nn.Module]
    strides: tuple[Sizes, ...]
    features_per_stage: Sizes = ()
    kernel_sizes: tuple[Sizes, ...] = ()
    n_conv_per_stage: Sizes | None = None
    n_blocks_per_stage: Sizes | None = None
    n_conv_per_stage_decoder: Sizes = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, configuration: ConfigurationManager) -> "PlannedNetwork":
        """The network of a configuration; what the plans do not name is empty or None."""
        arguments = dict(configuration.network_arch_init_kwargs)
        for name in configuration.network_arch_init_kwargs_req_import:
            if isinstance(arguments.get(name), str):
                arguments[name] = locate(arguments[name])
        return cls(
            patch_size=tuple(configuration.patch_size),
            conv_op=convert_dim_to_conv_op(len(configuration.patch_size)),
            strides=_per_axis(arguments["strides"]),
            features_per_stage=tuple(arguments.get("features_per_stage", ())),
            kernel_sizes=_per_axis(arguments.get("kernel_sizes", ())),
            n_conv_per_stage=_counts(arguments.get("n_conv_per_stage")),
            n_blocks_per_stage=_counts(arguments.get("n_blocks_per_stage")),
            n_conv_per_stage_decoder=tuple(arguments.get("n_conv_per_stage_decoder", ())),
            arguments=arguments,
        )

    @property
    def n_stages(self) -> int:
        return len(self.strides)


def _per_axis(stages: Any) -> tuple[Sizes, ...]:
    return tuple(tuple(stage) for stage in stages)


def _counts(stages: Any) -> Sizes | None:
    return None if stages is None else tuple(stages)
