"""Maps of what a network computes inside, stitched over windows as nnU-Net stitches logits, on the images' grid."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from torch import Tensor, nn

from nnunet_brats_ext.brats import BACKGROUND
from nnunet_brats_ext.inference.choices import NONE, SLIDING, find_tiling
from nnunet_brats_ext.inference.logits import in_file_axes, resample
from nnunet_brats_ext.inference.predictor import BraTSPredictor
from nnunet_brats_ext.storage.datasets import DatasetDescription


@dataclass(frozen=True)
class ShownCase:
    """A case to show maps of.

    image: of the sequence to draw. reference: label map to outline. properties: nnU-Net's.
    """

    name: str
    sequence: str
    image: Path
    reference: Path | None
    properties: dict[str, Any]


@dataclass(frozen=True)
class ShownCheckpoint:
    """One checkpoint of one fold. name: what its files begin with. label: what is written beside its pictures."""

    name: str
    label: str


class MapNetwork(nn.Module):
    """A network that gives maps of another in place of its logits: (b, c, *s) -> (b, num_maps, *s), by its weights.

    A subclass sets `num_maps` and overrides `forward`; the network's logits come first.
    """

    num_maps: int

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        return self.network.load_state_dict(state_dict, *args, **kwargs)


class AttentionMaps(NamedTuple):
    """How to show where one kind of network looks; a paper names its own in `paper.py`.

    applies: whether a network is of that kind. wrap: makes it give its maps. show: writes files and pictures of a case.
    tiling: how cases are cut; `paper` is as the trainer predicts them.
    """

    applies: Callable[[nn.Module], bool]
    wrap: Callable[[Any], MapNetwork]
    show: Callable[..., None]
    tiling: str = SLIDING


class MapPredictor(BraTSPredictor):
    """A predictor that stitches the maps of a `MapNetwork`; `predict_each` then gives the maps of each checkpoint.

    Nothing is averaged over mirror images: the maps of a mirrored image are not those of the image.
    """

    def __init__(self, device: torch.device, tiling: str = SLIDING):
        super().__init__(tiling, NONE, device=device)

    def show_maps(self, wrap: Callable[[Any], MapNetwork]) -> None:
        """Predict maps of the loaded network from now on; not compiled, which would leave out the hooks of maps."""
        self.network = wrap(self.bare_network)

    @torch.inference_mode()
    def predict_sliding_window_return_logits(self, input_image: Tensor) -> Tensor:
        """The maps (num_maps, *s), from nnU-Net's windows under nnU-Net's weights.

        Summed in single precision: half, as nnU-Net has it, keeps the sign of logits at the rims of windows, where
        weights are tiny, but not the value of a map.
        """
        if find_tiling(self.tiling) is not None:
            return super().predict_sliding_window_return_logits(input_image)
        self.network = self.network.to(self.device).eval()
        data, unpadded = pad_nd_image(input_image, self.patch_size, "constant", {"value": 0}, True, None)
        weight = compute_gaussian(self.patch_size, dtype=torch.float32, device=torch.device("cpu"))
        maps = torch.zeros(self.network.num_maps, *data.shape[1:])
        weights = torch.zeros(data.shape[1:])
        with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
            for window in self._internal_get_sliding_window_slicers(data.shape[1:]):
                maps[window] += self._predict_windows(data[window][None])[0].float().cpu() * weight
                weights[window[1:]] += weight
        inside = (slice(None), *unpadded[1:])
        return maps.div_(weights)[inside]

    @property
    def regions(self) -> dict[str, tuple[int, ...]]:
        """The labels of each region, or each label, that the model predicts."""
        head = DatasetDescription(self.dataset_json).head(self.label_manager.num_segmentation_heads)
        return {name: labels for name, labels in zip(head.names, head.channels, strict=True) if labels != (BACKGROUND,)}

    def to_image_space(self, maps: Tensor, properties: dict[str, Any]) -> np.ndarray:
        """Undo nnU-Net's preprocessing: (n, *s) -> (n, z, y, x) on the grid of the image files, 0 where it cropped."""
        resampled = resample(maps.float().cpu().numpy(), properties, self.description)
        whole = np.zeros((len(maps), *properties["shape_before_cropping"]), np.float32)
        box = (slice(None), *(slice(*side) for side in properties["bbox_used_for_cropping"]))
        whole[box] = resampled
        whole = whole.transpose(0, *(axis + 1 for axis in self.plans_manager.transpose_backward))
        return in_file_axes(whole, properties)

    def segment(self, logits: np.ndarray) -> np.ndarray:
        """The label map of logits (num_classes, z, y, x), as nnU-Net paints it."""
        return np.asarray(self.label_manager.convert_logits_to_segmentation(logits)).astype(np.uint8)
