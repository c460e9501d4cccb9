"""Which channels speak for the tumour, by cross-task guided attention: figure 6 of https://arxiv.org/abs/1906.01796."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from nnunet_brats_ext.architectures.omnet.heads import CrossTaskGuidedAttention, channel_importance
from nnunet_brats_ext.architectures.omnet.networks import OMNet
from nnunet_brats_ext.architectures.omnet.tasks import CLASSES
from nnunet_brats_ext.evaluation.pictures import HeadImage, RegionLabels, read_upright, upright
from nnunet_brats_ext.inference.choices import FROM_TRAINER
from nnunet_brats_ext.inference.heat_maps import Panel, check_slices, choose_slices, draw_panels
from nnunet_brats_ext.inference.inner_maps import AttentionMaps, MapNetwork, MapPredictor, ShownCase, ShownCheckpoint
from nnunet_brats_ext.storage.csv_files import to_csv
from nnunet_brats_ext.storage.images import read_grid, write_label_map
from nnunet_brats_ext.storage.json_files import to_json
from nnunet_brats_ext.storage.output import write_texts

MODULES = ("tumour", "core")  # CGA-tumor and CGA-core: what guides each is the probability of that region
WEIGHTS = ("m_t", "m_n")  # of the channels for the region, and for all the rest
SHOWN = 5  # channels with the largest and the smallest weight
BAR_COLOURS = ("tomato", "steelblue")

Weights = dict[str, np.ndarray]  # name of WEIGHTS -> (channels,), summing to 1


class ChannelMaps(MapNetwork):
    """The scores of a guided OM-Net; behind them, per module, the probability that guides it; then the shared features.

    (b, c, *s) -> (b, scores + modules + channels, *s). `parts` are these three numbers.
    """

    network: OMNet

    def __init__(self, network: OMNet):
        super().__init__(network)
        network.gives_scores = True  # fused when those of all tiles are together, as in prediction
        guided = [head for head in network.heads if isinstance(head, CrossTaskGuidedAttention)]
        self.modules_shown = MODULES[: len(guided)]
        self.parts = [sum(CLASSES[: network.tasks]), len(guided), network.backbone.output_channels]
        self.num_maps = sum(self.parts)
        self.guides: list[Tensor] = []  # of the latest forward
        for head in guided:
            head.register_forward_hook(self._keep)

    def forward(self, x: Tensor) -> Tensor:
        self.guides.clear()
        scores = self.network(x)
        return torch.cat([scores, *self.guides, self.features.float()], dim=1)

    def _keep(self, head: CrossTaskGuidedAttention, inputs: tuple[Tensor, Tensor], output: Any) -> None:
        self.features, previous = inputs
        self.guides.append(head.probabilities(previous)[:, :1])


def has_guidance(network: torch.nn.Module) -> bool:
    return isinstance(network, OMNet) and network.guided


def weigh_channels(features: Tensor, guide: Tensor) -> Weights:
    """The weights of the channels of features (c, *s) >= 0 under a probability (*s), as the network computes them."""
    both = channel_importance(features[None], torch.stack([guide, 1 - guide])[None])[0]
    return dict(zip(WEIGHTS, both.detach().numpy(), strict=True))


def show_channels(
    case: ShownCase,
    checkpoints: Iterable[tuple[ShownCheckpoint, Tensor]],
    predictor: MapPredictor,
    out: Path,
    slices: Sequence[int],
) -> None:
    """Write, for every checkpoint, CHECKPOINT_channels.json, .csv and .png (bars), and a picture per slice and module.

    Maps are joined from the paper's tiles.

    The weights are those of the whole case and, as in the paper's figure, those of each slice that is drawn.
    """
    head = HeadImage.read(case.name, case.image)
    check_slices(head, slices)  # before any work
    geometry = read_grid(case.image)
    modules = predictor.network.modules_shown
    for checkpoint, maps in checkpoints:
        titled = replace(head, name=f"{case.name}, {checkpoint.label}")
        scores, guides, features = maps.float().split(predictor.network.parts)
        logits = predictor.network.network.fuse(scores[None])[0]
        weights = {
            module: {"case": weigh_channels(features, guide)} for module, guide in zip(modules, guides, strict=True)
        }
        segmentation = predictor.segment(predictor.to_image_space(logits, case.properties))
        file = out / f"{checkpoint.name}_segmentation.nii.gz"
        write_label_map(file, segmentation, geometry)
        labels, _ = read_upright(case.reference or file)
        indices = choose_slices(head, slices, [labels])
        # (slices, maps, rows, columns), with one volume in image space at a time
        sliced = np.stack(
            [
                upright(predictor.to_image_space(one[None], case.properties)[0], geometry)[indices]
                for one in (*guides, *features)
            ],
            axis=1,
        )
        for index, planes in zip(indices, sliced, strict=True):
            likely, responses = np.split(planes, [len(modules)])
            for module, guide in zip(modules, likely, strict=True):
                chosen = weigh_channels(torch.from_numpy(responses), torch.from_numpy(guide))
                weights[module][f"slice {index + 1}"] = chosen
                figure = draw_channels(
                    titled, index, responses, guide, labels[index], chosen, module, predictor.regions
                )
                figure.savefig(out / f"{checkpoint.name}_slice_{index + 1:03d}_{module}.png")
        write_weights(out / f"{checkpoint.name}_channels", weights)
        draw_weights(weights, titled.name).savefig(out / f"{checkpoint.name}_channels.png")


def draw_channels(
    head: HeadImage,
    index: int,
    features: np.ndarray,
    guide: np.ndarray,
    labels: np.ndarray,
    weights: Weights,
    module: str,
    regions: RegionLabels,
) -> Figure:
    """Figure 6: the image, what guides the module, and the features of the channels that weigh most and least.

    features (channels, rows, columns), guide and labels (rows, columns) of an upright slice.
    """
    rows = [
        [Panel(labels=head.crop(labels)), Panel(f"probability of {module}", head.crop(guide), scale=Normalize(0, 1))]
    ]
    names = [""]
    for name, values in weights.items():
        order = np.argsort(-values, kind="stable")
        for kind, channels in (("largest", order[:SHOWN]), ("smallest", order[::-1][:SHOWN])):
            names.append(f"{kind} ${name}$")
            rows.append([_feature_panel(head.crop(features[c]), f"channel {c}: {values[c]:.3f}") for c in channels])
    return draw_panels(head, index, names, rows, regions, "; features, each from 0 (blue) to its maximum (red)")


def draw_weights(weights: Mapping[str, Mapping[str, Weights]], title: str) -> Figure:
    """The weights of the whole case as bars, a row per module; channels in the order of their weight for the region."""
    figure = Figure(figsize=(9, 2.6 * len(weights) + 0.4), dpi=130, layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=10)
    for axis, (module, parts) in zip(figure.subplots(len(weights), squeeze=False)[:, 0], weights.items(), strict=True):
        of_case = parts["case"]
        order = np.argsort(-of_case[WEIGHTS[0]], kind="stable")
        for offset, (name, colour) in zip((-0.2, 0.2), zip(WEIGHTS, BAR_COLOURS, strict=True), strict=True):
            axis.bar(np.arange(len(order)) + offset, of_case[name][order], 0.4, color=colour, label=f"${name}$")
        axis.set_xticks(range(len(order)), order, fontsize=7)
        axis.set_ylabel(f"weight, {module}", fontsize=9)
        axis.tick_params(axis="y", labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.01)
        axis.axhline(1 / len(order), color="grey", linewidth=0.8, linestyle=":", label="all alike")
        axis.legend(fontsize=8, frameon=False, loc="upper right")
    axis.set_xlabel("channel", fontsize=9)
    return figure


def write_weights(stem: Path, weights: Mapping[str, Mapping[str, Weights]]) -> None:
    """STEM.json, {module: {"case" or "slice N": {weight: [by channel]}}}, and the same in rows as STEM.csv."""
    listed = {
        module: {part: {name: values.tolist() for name, values in of_part.items()} for part, of_part in parts.items()}
        for module, parts in weights.items()
    }
    rows = [
        (module, part, channel, *row)
        for module, parts in weights.items()
        for part, of_part in parts.items()
        for channel, row in enumerate(zip(*(of_part[name].tolist() for name in WEIGHTS), strict=True))
    ]
    table = to_csv([("module", "part", "channel", *WEIGHTS), *rows])
    write_texts({Path(f"{stem}.json"): to_json(listed), Path(f"{stem}.csv"): table})


def _feature_panel(features: np.ndarray, title: str) -> Panel:
    return Panel(title, features, scale=Normalize(0, max(float(features.max()), 1e-6)))


ATTENTION = AttentionMaps(has_guidance, ChannelMaps, show_channels, FROM_TRAINER)
