"""Folds: each patient is in one of them, grades are spread over them, and other data sets can follow them."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from data_commands import convert
from release_folders import write_case

from nnunet_brats_ext.dataset_conversion import distill, restore
from nnunet_brats_ext.dataset_conversion.layouts import LAYOUTS
from nnunet_brats_ext.dataset_conversion.splits import assign_folds, draw_patients, group_patients, make_splits
from nnunet_brats_ext.storage.errors import UserError

MAPPING = "Grade,BraTS_2018_subject_ID,BraTS_2019_subject_ID,BraTS_2020_subject_ID\n"


@pytest.fixture
def nnunet(tmp_path, monkeypatch):
    for name in ("raw", "preprocessed"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path


def splits_of(dataset):
    return json.loads((dataset / "splits_final.json").read_text())


def test_cases_that_share_a_name_through_others_are_one_patient():
    # a-b share x, b-c share y, so a, b and c are one; d is alone.
    patients = group_patients({"a": ["x"], "b": ["y", "x"], "c": ["z", "y"], "d": ["w"]})
    assert patients == {"a": "x", "b": "x", "c": "x", "d": "w"}


@pytest.mark.parametrize("folds", [2, 5, 7])
def test_folds_partition_the_cases_and_never_part_a_patient(folds):
    patients = {f"case{number}": f"patient{number % 23}" for number in range(100)}
    strata = {case: "HGG" if int(case[4:]) % 23 < 17 else "LGG" for case in patients}
    splits = make_splits(patients, assign_folds(patients, strata, folds), folds)
    validated = [case for split in splits for case in split["val"]]
    assert sorted(validated) == sorted(patients)
    for split in splits:
        assert sorted(split["train"] + split["val"]) == sorted(patients)
        assert not {patients[case] for case in split["train"]} & {patients[case] for case in split["val"]}
        assert split["val"]


def test_grades_are_spread_as_evenly_as_the_release_allows():
    # BraTS 2020: 293 HGG and 76 LGG of one case each, so five folds hold 58 or 59, and 15 or 16.
    grades = {f"case{number:03d}": "HGG" if number < 293 else "LGG" for number in range(369)}
    fold_of = assign_folds({case: case for case in grades}, grades, 5)
    counts = Counter((fold_of[case], grade) for case, grade in grades.items())
    assert sorted(counts[fold, "HGG"] for fold in range(5)) == [58, 58, 59, 59, 59]
    assert sorted(counts[fold, "LGG"] for fold in range(5)) == [15, 15, 15, 15, 16]
    assert max(Counter(fold_of.values()).values()) - min(Counter(fold_of.values()).values()) <= 1


def test_folds_depend_on_the_seed_and_on_nothing_else():
    patients = {f"case{number}": f"case{number}" for number in range(40)}
    strata = dict.fromkeys(patients, "")
    first = assign_folds(patients, strata, 5, seed=1)
    assert assign_folds(dict(reversed(patients.items())), strata, 5, seed=1) == first
    assert assign_folds(patients, strata, 5, seed=2) != first


def test_time_points_of_a_patient_stay_in_one_fold_where_nnunet_reads_it(nnunet):
    release = LAYOUTS["BraTS2024-GLI"]
    for number in range(1, 7):
        for session in (0, 1):
            write_case(nnunet / "source", release, release.case_name(number, session))
    dataset = convert(nnunet / "source", 137)
    splits = json.loads((nnunet / "preprocessed" / dataset.name / "splits_final.json").read_text())
    assert splits == splits_of(dataset) and len(splits) == 5
    for split in splits:
        assert not {case[:-4] for case in split["train"]} & {case[:-4] for case in split["val"]}


def test_fewer_patients_than_folds_give_fewer_folds_and_one_gives_none(nnunet):
    release = LAYOUTS["BraTS2023-GLI"]
    for number in (1, 2):
        for session in (0, 1):
            write_case(nnunet / "two", release, release.case_name(number, session))
    assert len(splits_of(convert(nnunet / "two", 137))) == 2
    for session in (0, 1):
        write_case(nnunet / "one", release, release.case_name(1, session))
    assert not (convert(nnunet / "one", 138) / "splits_final.json").exists()


def test_unlabelled_cases_are_in_no_fold(nnunet):
    release = LAYOUTS["BraTS2020"]
    for number in (1, 2, 3):
        write_case(nnunet / "source", release, release.case_name(number))
    write_case(nnunet / "source", release, "BraTS20_Validation_001", training=False)
    splits = splits_of(convert(nnunet / "source", 137))
    assert {case for split in splits for case in (*split["train"], *split["val"])} == {
        release.case_name(number) for number in (1, 2, 3)
    }


def test_the_same_patients_are_in_the_same_folds_of_two_releases(nnunet):
    # Patient n is TCIA01_n in 2018 and case 20 - n in 2020, whose name mapping knows it; 2020 has two patients more.
    old, new = LAYOUTS["BraTS2018"], LAYOUTS["BraTS2020"]
    rows = []
    for number in range(1, 9):
        write_case(nnunet / "2018", old, old.case_name(number), grade="HGG" if number % 2 else "LGG")
        write_case(nnunet / "2020", new, new.case_name(20 - number))
        rows.append(f"HGG,{old.case_name(number)},NA,{new.case_name(20 - number)}\n")
    for number in (40, 41):
        write_case(nnunet / "2020", new, new.case_name(number))
    (nnunet / "2020" / "name_mapping.csv").write_text(MAPPING + "".join(rows))
    first = splits_of(convert(nnunet / "2018", 137, folds=4))
    second = splits_of(convert(nnunet / "2020", 138, same_patients_as=137))
    assert len(first) == len(second) == 4
    for number in range(1, 9):
        (fold,) = [fold for fold, split in enumerate(first) if old.case_name(number) in split["val"]]
        assert new.case_name(20 - number) in second[fold]["val"]
    assert sorted(case for split in second for case in split["val"])[-2:] == [new.case_name(40), new.case_name(41)]


def test_new_folds_of_the_data_set_that_is_followed_are_noticed(nnunet):
    release = LAYOUTS["BraTS2020"]
    for number in range(1, 5):
        write_case(nnunet / "source", release, release.case_name(number))
    first = convert(nnunet / "source", 137, folds=2)
    options = dict(dataset_id=138, name="Follower", same_patients_as=137)
    before = splits_of(convert(nnunet / "source", **options))
    convert(nnunet / "source", **options)  # nothing to do
    place = nnunet / "preprocessed" / first.name / "splits_final.json"
    turned = [{"train": [*split["train"][1:], split["val"][0]], "val": [split["train"][0], *split["val"][1:]]}
              for split in before]  # fmt: skip
    place.write_text(json.dumps(turned))
    with pytest.raises(ValueError, match="--overwrite replaces it"):
        convert(nnunet / "source", **options)
    after = splits_of(convert(nnunet / "source", **options, overwrite=True))
    assert [sorted(split["val"]) for split in after] == [sorted(split["val"]) for split in turned]


def test_folds_that_part_a_patient_cannot_be_followed(nnunet):
    # Two cases of 2018 that only the name mapping of 2020 knows to be one patient.
    old, new = LAYOUTS["BraTS2018"], LAYOUTS["BraTS2020"]
    for number in (1, 2):
        write_case(nnunet / "2018", old, old.case_name(number))
    for number in (1, 2, 3):
        write_case(nnunet / "2020", new, new.case_name(number))
    (nnunet / "mapping.csv").write_text(
        MAPPING + "".join(f"HGG,{old.case_name(number)},BraTS19_X_1_1,{new.case_name(number)}\n" for number in (1, 2))
    )
    convert(nnunet / "2018", 137)
    options = dict(dataset_id=138, same_patients_as=137, name_mapping=nnunet / "mapping.csv")
    with pytest.raises(ValueError, match="Dataset137_BraTS2018 has 1 patients in several folds"):
        convert(nnunet / "2020", **options)
    with pytest.raises(ValueError, match="no data set 5"):
        convert(nnunet / "2020", 138, same_patients_as=5)


def test_folds_that_are_there_are_kept_unless_overwritten(nnunet):
    release = LAYOUTS["BraTS2020"]
    for number in (1, 2, 3):
        write_case(nnunet / "source", release, release.case_name(number))
    place = nnunet / "preprocessed" / "Dataset137_BraTS2020" / "splits_final.json"
    place.parent.mkdir()
    place.write_text("[]")
    dataset = convert(nnunet / "source", 137)
    assert json.loads(place.read_text()) == []
    convert(nnunet / "source", 137, overwrite=True)
    assert json.loads(place.read_text()) == splits_of(dataset)


def test_folds_that_are_there_are_not_written_again(nnunet):
    release = LAYOUTS["BraTS2020"]
    for number in (1, 2):
        write_case(nnunet / "source", release, release.case_name(number))
    dataset = convert(nnunet / "source", 137)
    before = (nnunet / "preprocessed" / dataset.name / "splits_final.json").stat()
    convert(nnunet / "source", 137)
    after = (nnunet / "preprocessed" / dataset.name / "splits_final.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize(("cases", "number"), [(369, 37), (285, 25), (335, 26), (10, 1), (7, 6)])
def test_a_test_set_has_its_number_of_cases_and_each_stratum_its_share(cases, number):
    strata = {f"case{i:03d}": ("HGG", "LGG")[i % 5 == 0] for i in range(cases)}
    drawn = draw_patients({case: case for case in strata}, strata, number)
    assert len(drawn) == number
    for name, size in Counter(strata.values()).items():
        assert abs(sum(strata[case] == name for case in drawn) - size * number / cases) < 1
    assert drawn != draw_patients({case: case for case in strata}, strata, number, seed=1) or number == 1


def test_a_test_set_parts_no_patient():
    patients = {f"case{i}": f"patient{i % 20}" for i in range(60)}
    drawn = draw_patients(patients, dict.fromkeys(patients, ""), 12)
    assert len(drawn) == 4


def write_release(folder, number, release):
    """As many cases, of which each third has a larger tumour."""
    for i in range(1, number + 1):
        labels = np.zeros((10, 9, 8), np.uint8)
        labels[2 : 3 + i % 3, 2:6, 2:6] = 1
        write_case(folder, release, release.case_name(i), labels=labels, grade="LGG" if i % 4 == 0 else "HGG")


def test_held_out_cases_lie_in_imagests_with_their_labels_and_in_no_fold(nnunet, capsys):
    release = LAYOUTS["BraTS2018"]
    write_release(nnunet / "source", 12, release)
    write_case(nnunet / "source", release, release.case_name(20), training=False)
    dataset = convert(nnunet / "source", 137, hold_out=0.25, validation=2)
    cases = json.loads((dataset / "manifest.json").read_text())["cases"]
    held_out = {case for case, about in cases.items() if about.get("held_out")}
    assert len(held_out) == 3
    names = {place: {path.name[:-7].removesuffix("_0000") for path in (dataset / place).glob("*.nii.gz")
                     if not path.name.endswith(("_0001.nii.gz", "_0002.nii.gz", "_0003.nii.gz"))}
             for place in ("imagesTr", "labelsTr", "imagesTs", "labelsTs")}  # fmt: skip
    assert names["labelsTs"] == held_out
    assert names["imagesTs"] == {*held_out, release.case_name(20)}
    assert names["imagesTr"] == names["labelsTr"] == set(cases) - names["imagesTs"]
    (split,) = splits_of(dataset)
    assert len(split["val"]) == 2
    assert sorted(split["train"] + split["val"]) == sorted(names["labelsTr"])
    assert json.loads((dataset / "dataset.json").read_text())["numTraining"] == 9
    before = (dataset / "manifest.json").stat().st_mtime_ns
    assert convert(nnunet / "source", 137, hold_out=0.25, validation=2).name == dataset.name
    assert (dataset / "manifest.json").stat().st_mtime_ns == before, "the same again does nothing"

    follower = convert(nnunet / "source", 138, name="Follower", same_patients_as=137)
    again = json.loads((follower / "manifest.json").read_text())["cases"]
    assert {case for case, about in again.items() if about.get("held_out")} == held_out
    assert splits_of(follower) == [split]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(hold_out=4), "leave none of 4 labelled cases"),
        (dict(hold_out=2, validation=0.5), "leave none of 4 labelled cases"),
        (dict(hold_out=0.1), "--hold-out 0.1: of 4 labelled cases that is none; ask for a number"),
    ],
)
def test_a_test_set_that_cannot_be_is_refused(options, sentence, nnunet):
    write_release(nnunet / "source", 4, LAYOUTS["BraTS2020"])
    with pytest.raises(UserError, match=sentence):
        convert(nnunet / "source", 137, **options)
    assert not any((nnunet / "raw").iterdir())


def test_held_out_cases_are_neither_distilled_nor_submitted(nnunet, tmp_path):
    release = LAYOUTS["BraTS2020"]
    write_release(nnunet / "source", 6, release)
    write_case(nnunet / "source", release, unlabelled := "BraTS20_Validation_001", training=False)
    dataset = convert(nnunet / "source", 137, hold_out=2)
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    for path in (dataset / "imagesTs").glob("*_0000.nii.gz"):
        shutil.copy(next((dataset / "labelsTs").iterdir()), predictions / path.name.replace("_0000", ""))
    for name in ("dataset.json",):
        shutil.copy(dataset / name, predictions)
    (predictions / "plans.json").write_text('{"image_reader_writer": "SimpleITKIO"}')
    done = distill(950, 137, pseudo=[(predictions, dataset / "imagesTs")], processes=1, near_duplicates="off")
    kinds = Counter(case["kind"] for case in done.manifest["cases"].values())
    assert kinds == {"manual": 4, "pseudo": 1}
    assert {one["reason"] for one in done.manifest["dropped"]} == {"excluded by name"}
    restored = restore(predictions, tmp_path / "submission", processes=1)
    assert [case.case for case in restored.cases] == [unlabelled]


@pytest.mark.parametrize("seed", [12345, *range(20)])
def test_a_draw_of_at_least_one_case_is_never_empty(seed):
    patients = {f"P{number}_{session}": f"P{number}" for number in range(4) for session in range(3)}
    strata = dict.fromkeys(patients, "")
    assert len(draw_patients(patients, strata, 1, seed)) == 1
    assert draw_patients(patients, strata, 0, seed) == draw_patients({}, {}, 1, seed) == set()
