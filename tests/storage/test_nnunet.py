"""nnU-Net's folders and names, as nnU-Net itself reads them."""

import json

import pytest
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.nnunet import (
    FOLDERS,
    check_id_is_free,
    dataset_id,
    dataset_name,
    find_dataset,
    find_splits,
    model_name,
    names_of_model,
    nnunet_folder,
    read_splits,
    require_folder,
    train_command,
    trained_folds,
)


@pytest.mark.parametrize("variable", FOLDERS)
def test_a_folder_that_is_not_set_is_named_with_the_line_to_type(tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, str(tmp_path))
    assert nnunet_folder(variable) == require_folder(variable) == tmp_path
    for value in (None, ""):
        monkeypatch.setenv(variable, value) if value is not None else monkeypatch.delenv(variable)
        assert nnunet_folder(variable) is None
        with pytest.raises(
            UserError, match=f"{variable} is not set: `export {variable}=/folder`, where .*, or give -o"
        ):
            require_folder(variable, ", or give -o")


def test_data_set_names_are_those_that_nnunet_reads():
    assert dataset_name(7, "BraTS2020") == "Dataset007_BraTS2020"
    assert dataset_id("Dataset007_BraTS2020") == 7
    for number in (0, 1000, -1):
        with pytest.raises(UserError, match=f"-d {number}: data set IDs lie between 1 and 999"):
            dataset_name(number, "x")
    for name in ("a b", "", "a/b", "ä"):
        with pytest.raises(UserError, match=f"data set name '{name}': letters, digits, - and _ only"):
            dataset_name(1, name)


def test_a_data_set_is_found_by_id_or_name_and_nothing_else(tmp_path):
    (tmp_path / "Dataset137_A").mkdir()
    (tmp_path / "Dataset138_B.zip").touch()
    for asked in (137, "137", "Dataset137_A"):
        assert find_dataset(asked, tmp_path) == tmp_path / "Dataset137_A"
    for asked in (138, "Dataset137_B"):
        with pytest.raises(UserError, match=rf"no data set {asked} in .*; there are Dataset137_A; `nnunet_brats conv"):
            find_dataset(asked, tmp_path)
    with pytest.raises(UserError, match=r"no data set 1 in .*nowhere; there are none; `nnunet_brats convert` makes"):
        find_dataset(1, tmp_path / "nowhere")
    (tmp_path / "Dataset137_C").mkdir()
    with pytest.raises(UserError, match=r"2 data sets with ID 137 in .*\n  .*Dataset137_A\n  .*Dataset137_C"):
        find_dataset(137, tmp_path)


def test_a_data_set_that_is_in_another_folder_of_nnunet_is_named_with_it(tmp_path, monkeypatch):
    for name in FOLDERS:
        monkeypatch.setenv(name, str(tmp_path / name))
        (tmp_path / name).mkdir()
    place = tmp_path / "nnUNet_preprocessed"
    looked_at = ".*".join([str(place), str(tmp_path / "nnUNet_raw"), str(tmp_path / "nnUNet_results")])
    with pytest.raises(UserError, match=f"no data set 137 in {looked_at}; there are none"):
        find_dataset(137, place)
    (tmp_path / "nnUNet_raw" / "Dataset137_A").mkdir()
    for asked in (137, "Dataset137_A"):
        with pytest.raises(
            UserError, match=f"{tmp_path}/nnUNet_raw/Dataset137_A is there, but not in {place}; plan it"
        ):
            find_dataset(asked, place, "plan it")
    with pytest.raises(UserError, match=r"no data set 138 in .*; there are Dataset137_A"):
        find_dataset(138, place)


@pytest.mark.parametrize("variable", FOLDERS)
def test_an_id_that_nnunet_would_find_under_another_name_is_not_free(tmp_path, monkeypatch, variable):
    for name in FOLDERS:
        monkeypatch.setenv(name, str(tmp_path / name))
        (tmp_path / name).mkdir()
    (tmp_path / variable / "Dataset137_Other").mkdir()
    assert find_candidate_datasets(137) == ["Dataset137_Other"], "nnU-Net finds it there"
    check_id_is_free(137, "Dataset137_Other", tmp_path)
    with pytest.raises(UserError, match=r"ID 137 belongs to .*Dataset137_Other already; take another with -d"):
        check_id_is_free(137, "Dataset137_Mine", tmp_path)


def test_folds_are_read_where_nnunet_reads_them_first(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    (tmp_path / "Dataset1_A").mkdir()
    beside = tmp_path / "raw"
    beside.mkdir()
    assert find_splits("Dataset1_A", beside) is None
    for place, case in ((beside, "b"), (tmp_path / "Dataset1_A", "a")):
        splits = [{"train": [case], "val": []}]
        (place / "splits_final.json").write_text(json.dumps(splits))
        assert find_splits("Dataset1_A", beside) == (place / "splits_final.json", splits)


@pytest.mark.parametrize(
    "content", [[{"train": ["a"]}], [["a"]], [{"train": "ab", "val": []}], [{"train": [1], "val": []}]]
)
def test_folds_of_another_form_are_named(tmp_path, content):
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps([{"train": [], "val": []}, *content]))
    with pytest.raises(UserError, match=r'splits_final.json, fold 1: expected {"train": \[...\], "val": \[...\]}'):
        read_splits(path)


def test_the_name_of_a_model_is_made_and_taken_apart(tmp_path):
    name = model_name("BraTSVAETrainer", "BraTSPlans", "3d_fullres_vae")
    assert name == "BraTSVAETrainer__BraTSPlans__3d_fullres_vae"
    assert names_of_model(tmp_path / name) == ("BraTSVAETrainer", "BraTSPlans", "3d_fullres_vae")
    with pytest.raises(UserError, match=r"mine is not named TRAINER__PLANS__CONFIGURATION"):
        names_of_model(tmp_path / "mine")


def test_trained_folds_are_those_with_the_checkpoint(tmp_path):
    for fold, name in (("0", "checkpoint_final.pth"), ("2", "checkpoint_best.pth"), ("10", "checkpoint_final.pth"),
                       ("all", "checkpoint_final.pth")):  # fmt: skip
        (tmp_path / f"fold_{fold}").mkdir()
        (tmp_path / f"fold_{fold}" / name).touch()
    assert trained_folds(tmp_path) == (0, 10)
    assert trained_folds(tmp_path, "checkpoint_best.pth") == (2,)
    assert trained_folds(tmp_path / "nowhere") == ()


def test_the_command_that_trains_is_a_line_to_type():
    line = train_command(137, "3d_fullres", 0, "T", "P", ["--npz"])
    assert line == "nnUNetv2_train 137 3d_fullres 0 -tr T -p P --npz"
