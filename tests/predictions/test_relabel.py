"""`relabel`: numberings into each other and back, on arrays of labels and on folders of files."""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_brats_ext.brats import LABEL_SCHEMES
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.predictions.relabel import numbers_between, relabel
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import read_grid, read_label_map


@pytest.mark.parametrize("name", LABEL_SCHEMES)
def test_to_the_numbering_as_trained_and_back_is_the_same(name):
    there, back = numbers_between(name, "trained"), numbers_between("trained", name)
    assert {value: back[label] for value, label in there.items()} == {value: value for value in there}
    assert there == dict(LABEL_SCHEMES[name].released)


@pytest.mark.parametrize(("one", "other"), itertools.permutations(LABEL_SCHEMES, 2))
def test_between_releases_a_label_keeps_its_name(one, other):
    old, new = LABEL_SCHEMES[one], LABEL_SCHEMES[other]
    for value, changed in numbers_between(one, other).items():
        assert value == changed == 0 or old.names[old.released[value]] == new.names[new.released[changed]]


def test_et_of_2017_is_3_in_2023_and_a_cavity_is_no_cyst():
    assert numbers_between("glioma_2017", "glioma_2023") == {0: 0, 1: 1, 2: 2, 4: 3}
    assert 4 not in numbers_between("resected_2024", "paediatric_2024")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, None), "say --from and --to, or --map"),
        (("trained", None), "say --from and --to"),
        (("trained", "glioma_2017", ("4=3",)), "say --from and --to, or --map"),
        (("trained", "trained"), "choose two different numberings"),
        ((None, None, ("4:3",)), "--map 4:3: expected OLD=NEW"),
        ((None, None, ("4=300",)), "whole numbers from 0 to 255"),
    ],
)
def test_what_cannot_be_is_quoted(given, message):
    with pytest.raises(UserError, match=message):
        numbers_between(*given)


@pytest.fixture
def folder(tmp_path):
    """Two label maps of 2017 on a grid of their own, one stored as 64-bit integers."""
    (tmp_path / "old").mkdir()
    for name, kind in (("a", np.uint8), ("b_seg", np.int64)):
        image = sitk.GetImageFromArray(np.array([0, 1, 2, 4, 4, 0], kind).reshape(1, 2, 3))
        image.SetOrigin((1.0, -239.0, 5.0))
        sitk.WriteImage(image, str(tmp_path / "old" / f"{name}.nii.gz"))
    return tmp_path


def test_the_command_rewrites_a_folder_and_keeps_headers(folder, capsys):
    command = ["relabel", "-i", str(folder / "old"), "-o", str(folder / "new"), "-np", "1"]
    assert main([*command, "--from", "glioma_2017", "--to", "trained"]) == 0
    assert "1 is now 2, 2 is now 1, 4 is now 3" in capsys.readouterr().out
    assert sorted(path.name for path in (folder / "new").iterdir()) == ["a.nii.gz", "b.nii.gz"]
    labels, grid = read_label_map(folder / "new" / "b.nii.gz")
    assert labels.ravel().tolist() == [0, 2, 1, 3, 3, 0]
    assert grid == read_grid(folder / "old" / "a.nii.gz")
    assert main([*command, "--from", "glioma_2017", "--to", "trained"]) == 1
    assert "--overwrite" in capsys.readouterr().err


def test_single_values_change_and_others_stay(folder):
    relabel(folder / "old", folder / "new", map=["4=3"], processes=1)
    assert read_label_map(folder / "new" / "a.nii.gz")[0].ravel().tolist() == [0, 1, 2, 3, 3, 0]


def test_a_value_that_the_numbering_lacks_is_named_and_nothing_written(folder):
    with pytest.raises(UserError, match=r"a.nii.gz: labels \[4.0\] are not among(.|\n)*--from says"):
        relabel(folder / "old", folder / "new", source="glioma_2023", target="trained", processes=1)
    assert not (folder / "new").exists()
