"""The coefficients of attention gates as maps: Oktay et al. 2018 (https://arxiv.org/abs/1804.03999), Lyu & Shu 2020."""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from nnunet_brats_ext.architectures.residual_unet import AttentionGate, AttentionGatedResidualUNet
from nnunet_brats_ext.evaluation.pictures import HeadImage
from nnunet_brats_ext.inference.choices import FROM_TRAINER
from nnunet_brats_ext.inference.heat_maps import Row, check_slices, draw_rows
from nnunet_brats_ext.inference.inner_maps import AttentionMaps, MapNetwork, MapPredictor, ShownCase, ShownCheckpoint
from nnunet_brats_ext.storage.images import read_grid, write_image, write_label_map


class GateMaps(MapNetwork):
    """The logits of a gated network, and behind them the coefficients of its gates from the finest to the deepest.

    (b, c, *s) -> (b, num_classes + gates, *s). Coefficients lie in (0, 1) and are brought to full size by the linear
    interpolation that brings them to the size of their skip connection.
    """

    network: AttentionGatedResidualUNet

    def __init__(self, network: AttentionGatedResidualUNet):
        super().__init__(network)
        self.num_classes = network.head.out_channels
        self.num_maps = self.num_classes + len(network.gates)
        self.coefficients: list[Tensor] = []  # of the latest forward, from the deepest gate to the finest
        for gate in network.gates:
            gate.register_forward_hook(self._keep)

    @property
    def titles(self) -> list[str]:
        """What to call the gates: by the size, as a share of the image's, of the skip connection that each guards."""
        cumulated = accumulate(self.network.strides[:-1], lambda a, b: tuple(m * n for m, n in zip(a, b, strict=True)))
        return [
            f"gate {level}, " + ("full size" if max(stride) == 1 else "1/" + "×".join(map(str, dict.fromkeys(stride))))
            for level, stride in enumerate(cumulated)
        ]

    def forward(self, x: Tensor) -> Tensor:
        self.coefficients.clear()
        logits = self.network(x)
        gates = [
            interpolate(coefficients.float(), size=x.shape[2:], mode=gate.mode, align_corners=False)
            for gate, coefficients in zip(self.network.gates, self.coefficients, strict=True)
        ]
        return torch.cat([logits.float(), *reversed(gates)], dim=1)

    def _keep(self, gate: AttentionGate, inputs: tuple[Tensor, Tensor], output: Any) -> None:
        self.coefficients.append(gate.coefficients(*inputs))


def has_gates(network: nn.Module) -> bool:
    return isinstance(network, AttentionGatedResidualUNet)


def show_gates(
    case: ShownCase,
    checkpoints: Iterable[tuple[ShownCheckpoint, Tensor]],
    predictor: MapPredictor,
    out: Path,
    slices: Sequence[int],
) -> None:
    """Write CHECKPOINT_segmentation.nii.gz and CHECKPOINT_gateN.nii.gz (float32) of each, and a picture per slice.

    checkpoints: each with its maps on the preprocessed grid.
    """
    head = HeadImage.read(case.name, case.image)
    check_slices(head, slices)  # before any work
    view: GateMaps = predictor.network
    geometry = read_grid(case.image)
    rows = []
    for checkpoint, maps in checkpoints:
        arrays = predictor.to_image_space(maps, case.properties)
        segmentation = out / f"{checkpoint.name}_segmentation.nii.gz"
        write_label_map(segmentation, predictor.segment(arrays[: view.num_classes]), geometry)
        files = []
        for level, gate in enumerate(arrays[view.num_classes :]):
            files.append(out / f"{checkpoint.name}_gate{level}.nii.gz")
            write_image(files[-1], gate.clip(0, 1), geometry)  # a weighted mean may exceed 1 by rounding
        rows.append(Row(checkpoint.label, case.reference or segmentation, files))
    outlined = "reference" if case.reference else "prediction"
    draw_rows(head, rows, [f"{case.sequence}, {outlined}", *view.titles], predictor.regions, out, slices)


ATTENTION = AttentionMaps(has_gates, GateMaps, show_gates, FROM_TRAINER)
