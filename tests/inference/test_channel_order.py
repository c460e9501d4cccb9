"""Channels that were mixed up: noticed by their contrasts, without false alarms."""

import itertools
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from spoiling import CASE, run

from nnunet_brats_ext.brats import SEQUENCES
from nnunet_brats_ext.inference.channel_order import likely_order, ranges_of_training
from nnunet_brats_ext.storage.errors import Notice
from nnunet_brats_ext.storage.images import read_image

REAL = Path(__file__).parents[3] / "shared" / "real_patients"
ORDERS = list(itertools.permutations(range(4)))[1:]


def patients(folder: Path, ending: str) -> list[list[np.ndarray]]:
    cases = sorted({path.name.rsplit("_", 1)[0] for path in folder.rglob(f"*_t1ce{ending}")})
    found = [[next(folder.rglob(f"{case}_{name.lower()}{ending}")) for name in SEQUENCES] for case in cases]
    return [[read_image(file).array for file in files] for files in found]


def noticed(images: list[np.ndarray]) -> list[bool]:
    return [likely_order([images[i] for i in order], SEQUENCES) != list(SEQUENCES) for order in ORDERS]


def check_patients(found: list[list[np.ndarray]]) -> None:
    assert found
    for images in found:
        assert likely_order(images, SEQUENCES) == list(SEQUENCES), "a false alarm"
        scaled = [image * factor for image, factor in zip(images, (0.3, 2.0, 5.0, 1.1), strict=True)]
        assert likely_order(scaled, SEQUENCES) == list(SEQUENCES), "a scanner's scale changes nothing"
        assert sum(noticed(images)) >= len(ORDERS) - 1, "all orders, but that the two T1 may look alike"


def test_phantoms_in_another_order_are_noticed_and_in_theirs_not(world):
    check_patients(patients(world.root / "release", ".nii.gz"))


@pytest.mark.skipif(not REAL.is_dir(), reason="real patients are not there")
def test_real_patients_in_another_order_are_noticed_and_in_theirs_not():
    check_patients(patients(REAL, ".nii.gz"))


def test_what_has_no_contrast_of_a_brain_is_left_alone():
    random = np.random.default_rng(0)
    noise = [random.random((20, 20, 20)) for _ in SEQUENCES]  # no background: not a brain without skull
    assert likely_order(noise, SEQUENCES) == list(SEQUENCES)
    assert likely_order([np.ones((20, 20, 20))] * 4, SEQUENCES) == list(SEQUENCES)
    assert likely_order([np.zeros((20, 20, 20))] * 4, SEQUENCES) == list(SEQUENCES)


def test_channels_of_other_names_are_compared_with_the_range_of_the_training_data():
    plans = {
        "foreground_intensity_properties_per_channel": {
            "0": {"percentile_00_5": -100, "percentile_99_5": 300},
            "1": {"percentile_00_5": 1000, "percentile_99_5": 2000},
        }
    }
    names, ranges = ["CT", "PET"], ranges_of_training(plans, 2)
    ct, pet = np.full((20, 20, 20), 50.0), np.full((20, 20, 20), 1500.0)
    ct[0], pet[0] = 51, 1501
    assert likely_order([ct, pet], names, ranges) == names
    assert likely_order([pet, ct], names, ranges) == names[::-1]
    assert likely_order([pet, ct], names, ranges_of_training({}, 2)) == names
    assert likely_order([pet * 9, ct * 9], names, ranges) == names, "other scanners are no other order"


def test_predict_warns_and_predicts(everything):
    one, two = (everything / f"images/{CASE}_{channel:04d}.nii.gz" for channel in (2, 3))
    shutil.move(one, aside := everything / "aside")
    shutil.move(two, one)
    shutil.move(aside, two)
    with pytest.warns(Notice, match=rf"order T1, T1ce, T2, FLAIR; .* 1 of 2 cases .*{CASE} \(T1, T1ce, FLAIR, T2\)"):
        assert run("predict") == 0


def test_predict_does_not_warn_of_images_as_they_were_in_training(everything):
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        assert run("predict") == 0
