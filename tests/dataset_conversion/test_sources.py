"""Several folders as one data set: common labels, the same images once, folds that part no patient."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from data_commands import convert, manifest_of, printed_by_convert, restore
from release_folders import as_image, label_values, sequence_values, write, write_case

from nnunet_brats_ext.brats import SEQUENCES, remap
from nnunet_brats_ext.dataset_conversion.layouts import LABEL, LAYOUTS
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import read_image, read_label_map

OLD, NEW, POST = LAYOUTS["BraTS2021"], LAYOUTS["BraTS2023-GLI"], LAYOUTS["BraTS2024-GLI"]


@pytest.fixture(autouse=True)
def raw(tmp_path, monkeypatch):
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))


def write_release(root: Path, layout, numbers) -> Path:
    for number in numbers:
        write_case(root, layout, layout.case_name(number))
    return root


def write_as(root: Path, layout, numbers, images_of, again: bool = False) -> Path:
    """Cases of one release with the images of another's; again: compressed anew, as another type of number."""
    for number in numbers:
        case = layout.case_name(number)
        for sequence in SEQUENCES:
            path = root / layout.path(case, sequence)
            image = as_image(sequence_values(images_of.case_name(number), sequence))
            write(image, path)
            if again:
                loaded = nibabel.load(path)
                nibabel.save(nibabel.Nifti1Image(np.asarray(loaded.dataobj, np.float32), loaded.affine), path)
        write(as_image(label_values(layout)), root / layout.path(case, LABEL))
    return root


def test_glioma_before_and_after_treatment_become_one_data_set(tmp_path):
    before = write_release(tmp_path / "before", NEW, (1, 2, 3))
    after = write_release(tmp_path / "after", POST, (4, 5))
    dataset = convert([before, after], 1, folds=2)
    description = json.loads((dataset / "dataset.json").read_text())
    assert list(description["labels"]) == ["background", "WT", "TC", "ET", "RC"]
    manifest = manifest_of(dataset)
    assert [source["release"] for source in manifest["sources"]] == [NEW.name, POST.name]
    assert [about["source"] for about in manifest["cases"].values()] == [0, 0, 0, 1, 1]
    for layout, case in ((NEW, NEW.case_name(1)), (POST, POST.case_name(4))):
        labels, _ = read_label_map(dataset / "labelsTr" / f"{case}.nii.gz")
        np.testing.assert_array_equal(labels, remap(label_values(layout), layout.numbering.released))
    for path in restore(dataset / "labelsTr", tmp_path / "out", dataset_id=1):
        layout = POST if "-1" in path.name[-11:] else NEW
        np.testing.assert_array_equal(read_image(path).array, label_values(layout))
    shown = printed_by_convert([before, after], 1, folds=2)
    assert "nothing to do" in shown and f"({before})" in shown and f"({after})" in shown


@pytest.mark.parametrize("again", [False, True])
def test_the_same_images_under_two_names_are_kept_once(tmp_path, again):
    old = write_release(tmp_path / "old", OLD, (1, 2, 3))
    new = write_as(tmp_path / "new", NEW, (2, 3), images_of=OLD, again=again)
    write_release(new, NEW, (7,))
    dataset = convert([old, new], 1, folds=2)
    manifest = manifest_of(dataset)
    assert manifest["same_images"] == {NEW.case_name(n): OLD.case_name(n) for n in (2, 3)}
    assert sorted(manifest["cases"]) == [NEW.case_name(7), *(OLD.case_name(n) for n in (1, 2, 3))]
    kept = manifest["cases"][OLD.case_name(2)]
    assert kept["remarks"] == [f"the same images in new, as {NEW.case_name(2)}, which is left out"]
    assert {kept["patient"], *kept["known_as"]} == {OLD.case_name(2), NEW.patient_of(NEW.case_name(2))}
    assert "same images, kept once" in printed_by_convert([old, new], 1, folds=2)


def test_of_two_cases_with_the_same_images_the_labelled_one_is_kept(tmp_path):
    old = write_release(tmp_path / "old", OLD, (1, 2))
    (old / OLD.path(OLD.case_name(2), LABEL)).unlink()
    new = write_as(tmp_path / "new", NEW, (2,), images_of=OLD)
    dataset = convert([old, new], 1, folds=2)
    assert sorted(path.name for path in (dataset / "labelsTr").iterdir()) == [
        f"{NEW.case_name(2)}.nii.gz", f"{OLD.case_name(1)}.nii.gz"
    ]  # fmt: skip


def test_labels_of_the_same_images_that_differ_are_remarked(tmp_path):
    old = write_release(tmp_path / "old", OLD, (1, 2))
    new = write_as(tmp_path / "new", NEW, (2,), images_of=OLD)
    label = label_values(NEW)
    label[0, 0, 0] = 3
    write(as_image(label), new / NEW.path(NEW.case_name(2), LABEL))
    remarks = manifest_of(convert([old, new], 1, folds=2))["cases"][OLD.case_name(2)]["remarks"]
    assert remarks[1] == f"its label differs from that in new, as {NEW.case_name(2)}"


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ("BraTS2024-PED", "BraTS2024-GLI", r"GLI \(1 NCR.*RC.*\) and BraTS2024-PED \(1 ET.*CC\) have no common labels"),
        ("EGD", "BraTS2021", r"EGD \(1 WT; regions WT\) and .* no common labels"),
        ("BraTS2012", "BraTS2021", "no common labels"),
    ],
)
def test_sources_without_common_labels_are_refused(tmp_path, one, other, message):
    sources = [write_release(tmp_path / name, LAYOUTS[name], (1, 2)) for name in (one, other)]
    with pytest.raises(UserError, match=message):
        convert(sources, 1)
    assert not list((tmp_path / "raw").iterdir())


def test_two_own_folders_with_the_same_names_need_names_of_their_own(tmp_path):
    sources = []
    for name in ("a", "b"):
        sources.append(tmp_path / name)
        for number in (1, 2):
            for sequence in SEQUENCES:
                array = sequence_values(f"{name} {number}", sequence)
                write(as_image(array), tmp_path / name / f"case{number}/{sequence}.nii.gz")
            write(as_image(label_values(OLD)), tmp_path / name / f"case{number}/seg.nii.gz")
    with pytest.raises(UserError, match=r"case1 is a case of .*a and of .*b, with other images.*layout.toml"):
        convert(sources, 1)
    files = "".join(f'{role} = "{{patient}}/{{sequence}}"\n' for role in ("T1ce", "T1", "FLAIR", "T2", "label"))
    (tmp_path / "b/layout.toml").write_text(f'name = "B"\nlike = "folders"\ncase = "B_{{patient}}"\n[files]\n{files}')
    dataset = convert(sources, 1, folds=2)
    assert sorted(manifest_of(dataset)["cases"]) == ["B_case1", "B_case2", "case1", "case2"]


@pytest.mark.parametrize("again", [False, True])
def test_the_same_patients_are_followed_by_their_images_as_well(tmp_path, again):
    old = convert(write_release(tmp_path / "old", OLD, range(1, 9)), 1, folds=4)
    new = convert(write_as(tmp_path / "new", NEW, range(1, 9), OLD, again), 2, same_patients_as=1)
    fold_of = {}
    for dataset, layout in ((old, OLD), (new, NEW)):
        splits = json.loads((dataset / "splits_final.json").read_text())
        fold_of[layout.name] = {
            number: fold
            for fold, split in enumerate(splits)
            for number in range(1, 9)
            if layout.case_name(number) in split["val"]
        }
    assert fold_of[OLD.name] == fold_of[NEW.name]
