"""Mixed precision in bfloat16 on CPUs, where the environment asks for it: `nnUNet_brats_precision=bf16`."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.training.environment import PRECISION, requested_bf16
from nnunet_brats_ext.training.seams import PlainTrainer


def computes_bf16() -> bool:
    """Whether this processor computes in bfloat16, rather than that torch emulates it."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class CPUPrecision(PlainTrainer):
    """Mixin: trains in bfloat16 on a CPU that computes it, for trial runs; weights, outputs and losses stay in fp32.

    nnU-Net trains in mixed precision on CUDA alone, and leaves CPUs without autocast; so ours holds around its steps.
    """

    def set_hyperparameters(self) -> None:
        super().set_hyperparameters()
        if requested_bf16():
            if self.device.type != "cpu" or not computes_bf16():
                raise UserError(f"{PRECISION}=bf16: this {self.device.type} does not compute in bfloat16; unset it")
            self.print_to_log_file(f"WARNING: networks compute in bfloat16 because of {PRECISION}=bf16")

    def initialize(self) -> None:
        super().initialize()
        if requested_bf16():
            self.network.register_forward_hook(in_fp32)
            for module in self.network.modules():
                if isinstance(module, nn.Conv3d) and module.kernel_size[0] > 1:
                    module.register_forward_pre_hook(refuse_two_slices)

    def autocast(self) -> AbstractContextManager:
        return torch.autocast("cpu", torch.bfloat16) if requested_bf16() else nullcontext()

    def train_step(self, batch: dict) -> dict:
        with self.autocast():
            return super().train_step(batch)

    def validation_step(self, batch: dict) -> dict:
        with self.autocast():
            return super().validation_step(batch)


def refuse_two_slices(convolution: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """A forward pre-hook: an error where gradients would be wrong.

    torch 2.14 with oneDNN leaves a part of the gradient of the weights unset, so that it is whatever lies in memory.
    """
    if convolution.training and inputs[0].shape[-3] == 2:
        raise UserError(
            f"{PRECISION}=bf16: this network has volumes of 2 slices, {tuple(inputs[0].shape[-3:])}, whose gradients "
            "torch computes wrongly in bfloat16 on a CPU; unset it"
        )


def in_fp32(network: nn.Module, inputs: Any, output: Any) -> Any:
    """A forward hook that gives the loss what it computes in."""
    return tree_map_only(Tensor, Tensor.float, output)
