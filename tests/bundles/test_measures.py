"""Diameters and changes over time: properties, and figures worked out by hand."""

import numpy as np
import pytest

from nnunet_brats_ext.bundles.measures import change_rows, changes, in_order, measure
from nnunet_brats_ext.bundles.time_limits import TimeLimit, choose_level
from nnunet_brats_ext.evaluation.diameters import axial_diameters


def ellipsoid(radii, shape=(20, 80, 80)):
    centre = [n // 2 for n in shape]
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    return sum(((axis - c) / r) ** 2 for axis, c, r in zip(axes, centre, radii, strict=True)) <= 1


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 0.5, 3.0)])
def test_the_diameters_of_an_ellipsoid_are_those_of_its_middle_slice(spacing):
    found = axial_diameters(ellipsoid((8, 15, 30)), spacing)
    assert found.longest_mm == pytest.approx(60 * spacing[0], abs=1.5 * spacing[0])
    assert found.perpendicular_mm == pytest.approx(30 * spacing[1], abs=1.5 * spacing[1])
    assert found.product_mm2 == pytest.approx(found.longest_mm * found.perpendicular_mm)
    assert found.slice_number == 10


def test_the_perpendicular_runs_within_the_lesion():
    """Across the diagonal of a bar, which is 10 x 4: at most about its width, not the extent of its corners."""
    mask = np.zeros((1, 20, 20), bool)
    mask[0, 8:12, 5:15] = True
    found = axial_diameters(mask, (1.0, 1.0, 1.0))
    assert found.longest_mm == pytest.approx(np.hypot(10, 3))
    assert found.perpendicular_mm == pytest.approx(4 * np.hypot(10, 3) / 10)


def test_diameters_are_of_one_connected_part_and_turn_with_it():
    mask = ellipsoid((5, 6, 12))
    far = mask.copy()
    far[10, 2, 2] = True
    assert axial_diameters(far, (1, 1, 1)) == axial_diameters(mask, (1, 1, 1))
    turned = axial_diameters(np.rot90(mask, axes=(1, 2)), (1, 1, 1))
    assert turned[:3] == pytest.approx(axial_diameters(mask, (1, 1, 1))[:3])
    assert axial_diameters(np.zeros((3, 4, 5), bool), (1, 1, 1)) == (0, 0, 0, None)


def test_volumes_are_of_labels_and_regions():
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[0, 0, :3] = 1, 2, 3
    found = measure(labels, (1.0, 2.0, 5.0), {1: "ED", 2: "NCR", 3: "ET"}, {"WT": (1, 2, 3), "ET": (3,)})
    assert {(one.name, one.kind): round(one.ml, 6) for one in found} == {
        ("ED", "label"): 0.01, ("NCR", "label"): 0.01, ("WT", "region"): 0.03, ("ET", "region"): 0.01,
    }  # fmt: skip


def case(patient, session, ml):
    return {
        "patient": patient, "session": session, "case": f"{patient}_{session}",
        "measures": [{"name": "ET", "kind": "region", "ml": ml}, {"name": "ED", "kind": "label", "ml": 1.0}],
    }  # fmt: skip


def test_changes_are_since_the_first_session_and_since_the_smallest_volume_before():
    cases = [case("a", "week10", 6.0), case("a", "week2", 2.0), case("a", "week1", 4.0), case("b", "week1", 1.0)]
    found = changes(cases)
    assert [(one.session, one.since_baseline, one.since_nadir) for one in found] == [
        ("week1", 0.0, 0.0),
        ("week2", -50.0, -50.0),
        ("week10", 50.0, 200.0),
    ]
    header, *rows = change_rows(found)
    assert len(rows) == 3 and all(len(row) == len(header) for row in rows)
    gone = changes([case("a", "1", 0.0), case("a", "2", 3.0)])
    assert gone[1].since_baseline is None and gone[1].ml - gone[1].nadir_ml == 3.0


def test_sessions_follow_their_numbers_and_dates():
    assert in_order(["week10", "week2", "week1"]) == ["week1", "week2", "week10"]
    assert in_order(["2024-03-01", "2023-12-24", "2024-01-15"]) == ["2023-12-24", "2024-01-15", "2024-03-01"]


def test_the_largest_system_that_all_patients_have_time_for_is_chosen():
    assert choose_level([30.0, 20.0, 10.0], 60.0, 2) == 0
    assert choose_level([30.0, 20.0, 10.0], 59.0, 2) == 1
    assert choose_level([30.0, 20.0, 10.0], 1.0, 2) == 2


def test_the_first_patient_shows_how_fast_the_machine_is():
    now = [0.0]
    limit = TimeLimit(["full", "half", "least"], [8, 4, 1], 100.0, lambda: now[0])
    assert limit.next_level(2, has_label_map=False) == 2
    limit.measure(2, seconds=12.0, of_networks=2.0)
    now[0] = 12.0
    assert limit.next_level(2, has_label_map=False) == 0, "1.2 x (10 + 16) s for each of two"
    now[0] = 60.0
    assert limit.next_level(1, has_label_map=True) == 0
    now[0] = 75.0
    assert limit.next_level(1, has_label_map=True) == 1
    now[0] = 95.0
    assert limit.next_level(1, has_label_map=True) is None
