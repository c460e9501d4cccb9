"""How nnU-Net v1 and MONAI cut volumes, for models imported from them."""

from collections.abc import Sequence

import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from torch import Tensor

from nnunet_brats_ext.inference.symmetries import logits_of, probabilities_of
from nnunet_brats_ext.inference.tilings import Predict, Tiling, Volume, window

V1_STEP = 0.5  # of the patch
MONAI_OVERLAP = 0.6  # of windows, in Swin UNETR's test; an image of BraTS fits one window of the bundle


class GaussianProbabilities(Tiling):
    """nnU-Net v1's windows (https://doi.org/10.1038/s41592-020-01008-z): a Gaussian mean of probabilities in fp32.

    Version 2 averages logits. A network of slices takes them one by one.
    """

    def __call__(self, predict: Predict, volume: Volume) -> Tensor:
        exclusive = volume.outputs > len(volume.regions)
        if len(volume.patch_size) == 2:
            slices = [_mean(predict, one, volume.patch_size, exclusive) for one in volume.data.unbind(1)]
            return torch.stack(slices, dim=1)
        return _mean(predict, volume.data, volume.patch_size, exclusive)


def _mean(predict: Predict, data: Tensor, patch_size: Sequence[int], exclusive: bool) -> Tensor:
    """The logits of the mean probability over windows of (c, *s) data, on the CPU."""
    padded, inside = pad_nd_image(data, patch_size, "constant", {"value": 0}, True, None)
    size = tuple(padded.shape[1:])
    weights = compute_gaussian(tuple(patch_size), sigma_scale=1 / 8, dtype=torch.float32, device=torch.device("cpu"))
    total: Tensor | None = None
    covered = torch.zeros(size)
    for start in torch.cartesian_prod(
        *(torch.tensor(steps) for steps in compute_steps_for_sliding_window(size, tuple(patch_size), V1_STEP))
    ).reshape(-1, len(size)):
        place = start.tolist()
        probabilities = probabilities_of(predict(padded[window(place, patch_size)][None]), exclusive)[0].cpu()
        if total is None:
            total = torch.zeros((len(probabilities), *size))
        total[window(place, patch_size)] += probabilities * weights
        covered[window(place, patch_size, leading=0)] += weights
    assert total is not None
    inside = (slice(None), *inside[1:])
    return logits_of((total / covered)[inside], exclusive)


class MonaiWindows(Tiling):
    """MONAI's windows (https://docs.monai.io/en/stable/inferers.html) over whole images, which it does not crop.

    The volume goes back to its place in the image, whose background is zero. Where nnU-Net has resampled it, windows
    are over the volume alone.
    """

    def __call__(self, predict: Predict, volume: Volume) -> Tensor:
        from nnunet_brats_ext.architectures.monai_networks import require_monai

        require_monai()
        from monai.inferers.utils import sliding_window_inference

        image, place = _in_image(volume)
        logits = sliding_window_inference(image[None], volume.patch_size, 1, predict, overlap=MONAI_OVERLAP)
        return logits[0][place].float().cpu()


def _in_image(volume: Volume) -> tuple[Tensor, tuple[slice, ...]]:
    """The image that a volume was cropped from, and the index of the volume in it."""
    properties, size = volume.properties, tuple(volume.data.shape[1:])
    whole, box = properties.get("shape_before_cropping"), properties.get("bbox_used_for_cropping")
    if whole is None or box is None or tuple(properties["shape_after_cropping_and_before_resampling"]) != size:
        return volume.data, (slice(None),)
    image = volume.data.new_zeros((len(volume.data), *whole))
    place = (slice(None), *(slice(*ends) for ends in box))
    image[place] = volume.data
    return image, place


GAUSSIAN = GaussianProbabilities()
MONAI = MonaiWindows()
