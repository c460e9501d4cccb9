"""The metric core against its definitions, and its reductions against the libraries that challenges took them from."""

import numpy as np
import pytest
from label_maps import make_pair
from scipy.ndimage import binary_dilation, binary_erosion, distance_transform_edt, generate_binary_structure

from nnunet_brats_ext.brats import LABEL_SCHEMES, to_regions
from nnunet_brats_ext.evaluation.distances import Surfaces
from nnunet_brats_ext.evaluation.lesions import dilate_mask, find_components
from nnunet_brats_ext.evaluation.metrics import border_dice, directed_hd95, pooled_hd95, surfel_dice, surfel_hd95
from nnunet_brats_ext.evaluation.surfaces import (
    neighbour_codes,
    surfel_areas_mm2,
    surfel_surface,
    voxel_surface,
)

SPACINGS = [(1.0, 1.0, 1.0), (3.0, 1.0, 1.0), (0.5, 2.0, 0.75)]


def regions() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    maps = [to_regions(labels, LABEL_SCHEMES["glioma_2023"].regions) for labels in make_pair("glioma_2023")]
    return {name: (maps[0][name], maps[1][name]) for name in maps[0]}


def random_masks(seed: int, density: float) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.random((17, 24, 21)) < density, generator.random((17, 24, 21)) < density / 2


@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("density", [0.4, 0.02, 0.002])
def test_distances_are_those_of_a_distance_transform(spacing_mm, density):
    reference, prediction = random_masks(0, density)
    borders = [mask & ~binary_erosion(mask) for mask in (reference, prediction)]
    distances = Surfaces(voxel_surface(reference), voxel_surface(prediction), spacing_mm).whole
    for found, here, there in (
        (distances.from_reference, *borders),
        (distances.from_prediction, *borders[::-1]),
    ):
        np.testing.assert_array_equal(found, distance_transform_edt(~there, sampling=spacing_mm)[here])


def test_distances_to_an_empty_mask_are_infinite_and_an_empty_mask_has_none():
    mask = np.zeros((4, 5, 6), bool)
    mask[1, 2, 3] = True
    for kind, points in ((voxel_surface, 1), (surfel_surface, 8)):
        distances = Surfaces(kind(mask), kind(np.zeros_like(mask)), (1, 1, 1)).whole
        assert distances.from_reference.tolist() == [np.inf] * points
        assert distances.from_prediction.size == 0


@pytest.mark.parametrize("density", [0.9, 0.3])
def test_the_border_is_what_erosion_takes_also_at_the_wall(density):
    mask, _ = random_masks(1, density)
    for one in (mask, np.ones((1, 3, 3), bool)):
        border = voxel_surface(one).parts
        np.testing.assert_array_equal(border[3:-3, 3:-3, 3:-3], one & ~binary_erosion(one))


def test_neighbour_codes_hold_one_bit_per_voxel_around_a_corner():
    mask = np.zeros((4, 4, 4), bool)
    mask[2, 1, 2] = True
    codes = neighbour_codes(mask)
    assert codes.shape == (4, 4, 4)
    # The corner before the voxel sees it at (1, 1, 1), bit 7; the corner behind it at (0, 0, 0), bit 0.
    assert (codes[1, 0, 1], codes[2, 1, 2]) == (1 << 7, 1)
    assert sorted(codes[codes > 0].tolist()) == [1 << bit for bit in range(8)]


def test_areas_of_the_surface_elements():
    unit, stretched = surfel_areas_mm2((1, 1, 1)), surfel_areas_mm2((2, 3, 5))
    # A plane across z (corners (0, *, *) filled) is as large as a voxel's face across z.
    assert (unit[0b00001111], stretched[0b00001111]) == pytest.approx((1, 3 * 5))
    assert (unit[0b00110011], stretched[0b00110011]) == pytest.approx((1, 2 * 5))
    # One corner is cut off through the middles of three edges: a triangle of sides sqrt(1/2), area sqrt(3) / 8;
    # at 2 x 3 x 5 mm half the cross product of (1, 1.5, 0) and (1, 0, 2.5): (3.75, 2.5, 1.5) / 2.
    assert unit[1] == pytest.approx(np.sqrt(3) / 8)
    assert stretched[1] == pytest.approx(np.sqrt(3.75**2 + 2.5**2 + 1.5**2) / 2)
    # Inside out is the same surface; nothing and all have none.
    np.testing.assert_allclose(stretched, stretched[::-1])
    assert unit[0] == unit[255] == 0
    assert (unit[1:255] > 0).all()


def test_a_box_has_the_surface_of_a_box_but_for_its_rounded_edges():
    mask = np.ones((20, 30, 40), bool)
    distances = Surfaces(surfel_surface(mask), surfel_surface(mask), (1, 1, 1)).whole
    faces = 2 * (19 * 29 + 29 * 39 + 19 * 39)  # corners inside a face see a plane
    edges = 4 * (19 + 29 + 39) * np.sqrt(2) / 2  # along an edge a 45 degree cut
    corners = 8 * np.sqrt(3) / 8
    assert distances.reference_areas is not None
    assert distances.reference_areas.sum() == pytest.approx(faces + edges + corners)


# HD95 and surface Dice at 1 mm, measured with MedPy 0.5.2, MONAI 1.6.1 (float32) and surface-distance 0.1.
LIBRARIES = {
    (1.0, 1.0, 1.0): {
        "WT": (2.23606797749979, (2.2360680, 0.6675000), (2.23606797749979, 0.7712875016825735)),
        "TC": (2.449489742783178, (3.0, 0.6952909), (15.427248620541512, 0.788175102900674)),
        "ET": (2.23606797749979, (2.5063281, 0.8123012), (3.0, 0.8594018938531726)),
    },
    (2.5, 0.8, 1.1): {
        "WT": (3.165438358268883, (3.3150821, 0.5050000), (3.165438358268883, 0.6609713529081461)),
        "TC": (3.625380640808013, (5.5004749, 0.4681441), (19.870078006892676, 0.6409973959894034)),
        "ET": (3.3000000000000003, (5.0, 0.6362672), (5.462600113499065, 0.7286508009666239)),
    },
}


@pytest.mark.parametrize("spacing_mm", LIBRARIES)
def test_reductions_equal_medpy_monai_and_surface_distance(spacing_mm):
    for region, masks in regions().items():
        medpy, monai, deepmind = LIBRARIES[spacing_mm][region]
        voxels, surfels = (Surfaces(*map(kind, masks), spacing_mm).whole for kind in (voxel_surface, surfel_surface))
        assert pooled_hd95(voxels) == medpy  # bit for bit
        assert (directed_hd95(voxels), border_dice(voxels, 1.0)) == pytest.approx(monai, abs=5e-6)
        assert (surfel_hd95(surfels), surfel_dice(surfels, 1.0)) == pytest.approx(deepmind, abs=1e-6)


@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_pooled_hd95_equals_an_installed_medpy(spacing_mm):
    medpy = pytest.importorskip("medpy.metric.binary")
    for reference, prediction in [*regions().values(), random_masks(2, 0.01)]:
        expected = medpy.hd95(prediction, reference, spacing_mm)
        assert pooled_hd95(Surfaces(voxel_surface(reference), voxel_surface(prediction), spacing_mm).whole) == expected


@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_surfel_metrics_equal_an_installed_surface_distance(spacing_mm):
    deepmind = pytest.importorskip("surface_distance")
    for reference, prediction in [*regions().values(), random_masks(2, 0.01)]:
        theirs = deepmind.compute_surface_distances(reference, prediction, spacing_mm)
        ours = Surfaces(surfel_surface(reference), surfel_surface(prediction), spacing_mm).whole
        assert surfel_hd95(ours) == pytest.approx(deepmind.compute_robust_hausdorff(theirs, 95), abs=1e-6)
        for tolerance_mm in (0.5, 1.0, 2.0):
            expected = deepmind.compute_surface_dice_at_tolerance(theirs, tolerance_mm)
            assert surfel_dice(ours, tolerance_mm) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("iterations", [1, 3, 5])
def test_packed_dilation_is_dilation_by_faces_and_edges(iterations):
    mask, _ = random_masks(3, 0.003)
    mask[0, 0, 0] = mask[-1, -1, -1] = True
    expected = binary_dilation(mask, generate_binary_structure(3, 2), iterations=iterations)
    np.testing.assert_array_equal(dilate_mask(mask, iterations), expected)


def test_components_touch_in_faces_edges_and_corners():
    mask = np.zeros((9, 9, 9), bool)
    mask[1, 1, 1] = mask[2, 2, 2] = mask[3, 3, 2] = mask[4, 3, 2] = True
    mask[4, 3, 4] = True  # one voxel between
    numbers = find_components(mask)
    assert numbers.max() == 2
    assert numbers[1, 1, 1] == numbers[4, 3, 2] != numbers[4, 3, 4]
