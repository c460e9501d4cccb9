"""The second stage of a cascade: it names what the first has not predicted, and trains on what it has."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from tiny_trainers import CPU, make_tiny

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.trainers import BraTSAttentionVAETrainer
from nnunet_brats_ext.training.cascade import MAPS, note_of_makers


def cascade(world) -> dict:
    """Plans with a second configuration that refines the first, on the same preprocessed data."""
    plans = world.plans
    plans["configurations"]["first"] = {"inherits_from": "3d_fullres", "next_stage": "second"}
    plans["configurations"]["second"] = {"inherits_from": "3d_fullres", "previous_stage": "first"}
    return plans | {"continue_training": False}


def test_a_second_stage_names_the_cases_that_the_first_has_not_segmented_and_what_to_run(world):
    second = BraTSAttentionVAETrainer(cascade(world), "second", 0, world.dataset_json, CPU)
    second.dataset_class = infer_dataset_class(second.preprocessed_dataset_folder)
    folder = Path(second.folder_with_segs_from_previous_stage)
    assert str(folder).endswith("BraTSVAETrainer__nnUNetPlans__first/predicted_next_stage/second")
    with pytest.raises(UserError, match="6 cases have no segmentation") as caught:
        second.get_tr_and_val_datasets()
    commands = str(caught.value).splitlines()[1:]
    assert commands[0].strip() == f"nnUNetv2_train {world.dataset} first 0 -tr BraTSVAETrainer -p nnUNetPlans"
    assert len(commands) == 5


def test_a_second_stage_trains_on_the_images_and_the_labels_of_the_first(world, monkeypatch):
    make_tiny(BraTSAttentionVAETrainer, monkeypatch)
    second = BraTSAttentionVAETrainer(cascade(world), "second", 0, world.dataset_json, CPU)
    second.dataset_class = dataset_class = infer_dataset_class(second.preprocessed_dataset_folder)
    folder = Path(second.folder_with_segs_from_previous_stage)
    folder.mkdir(parents=True, exist_ok=True)
    data = dataset_class(second.preprocessed_dataset_folder)
    for case in data.identifiers:
        _, segmentation, _, _ = data.load_case(case)
        dataset_class.save_seg(np.clip(segmentation[0], 0, None).astype(np.uint8), str(folder / case))
    second.initialize()
    loader, _ = second.get_dataloaders()
    batch = next(loader)
    maps = batch["data"][:, 4:]
    assert set(maps.unique().tolist()) <= {0, 1}
    whole_tumour = batch["target"][:, 0].float()
    assert torch.equal(maps.sum(1), whole_tumour), "ED, NCR and ET of the first stage make its whole tumour"
    second.network.train()
    assert np.isfinite(second.train_step(batch)["loss"])


def test_training_on_other_maps_says_so_and_keeps_what_was_trained_on_those_before(world, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))

    def start(epoch: int = 0) -> Path:
        second = BraTSAttentionVAETrainer(cascade(world), "second", 0, world.dataset_json, CPU)
        second.current_epoch = epoch
        second.keep_training_on_other_maps()
        return Path(second.log_file)

    log = start()
    fold = log.parent
    assert "Maps of the previous stage, one per case: " in log.read_text()
    (fold / "checkpoint_final.pth").write_text("single")
    start()
    assert (fold / "checkpoint_final.pth").is_file(), "the same maps: as nnU-Net, a training anew takes the place"
    maps = fold.parents[1] / "BraTSVAETrainer__nnUNetPlans__first" / "predicted_next_stage" / "second.maps"
    for name in ("checkpoint_epoch_1", "checkpoint_epoch_2"):
        (maps / name).mkdir(parents=True)
    start(epoch=3)
    assert (fold / "checkpoint_final.pth").is_file(), "a training that goes on"
    log = start()
    assert f"one of 2 maps in {maps}: checkpoint_epoch_1, checkpoint_epoch_2" in log.read_text()
    (aside,) = fold.parent.glob("earlier_fold_0_*")
    assert (aside / "checkpoint_final.pth").read_text() == "single"
    assert not list(fold.glob("*.pth"))
    assert f"is kept in {aside}" in log.read_text()

    def made(digest: str) -> None:
        for name in ("checkpoint_epoch_1", "checkpoint_epoch_2"):
            note_of_makers(maps / name).write_text(json.dumps({f"fold_0/{name}.pth": digest}))

    (fold / MAPS).write_text(json.dumps(["checkpoint_epoch_1", "checkpoint_epoch_2"]))  # as earlier versions noted
    (fold / "checkpoint_final.pth").write_text("several")
    made("one")
    start(epoch=3)
    start()
    start(epoch=3)
    assert (fold / "checkpoint_final.pth").read_text() == "several", "nothing says that the maps are others"
    assert json.loads((fold / MAPS).read_text())["checkpoint_epoch_1"], "noted where the training went on"
    made("other")
    with pytest.raises(UserError, match=r"on other maps: .* checkpoint_epoch_1, checkpoint_epoch_2 .* without --c"):
        start(epoch=3)
    assert (fold / "checkpoint_final.pth").read_text() == "several"
    (aside / "checkpoint_final.pth").unlink()
    aside.rename(aside.with_name("before"))  # two within a second would have one name
    log = start()
    (aside,) = fold.parent.glob("earlier_fold_0_*")
    assert (aside / "checkpoint_final.pth").read_text() == "several"
    assert f"is kept in {aside}" in log.read_text()
    start(epoch=3)


@pytest.mark.parametrize("content", ["null", '"x"', "3", '{"a": []}', '{"a": null}'])
def test_a_damaged_note_of_maps_is_named(content, world, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    second = BraTSAttentionVAETrainer(cascade(world), "second", 0, world.dataset_json, CPU)
    Path(second.output_folder, MAPS).write_text(content)
    with pytest.raises(UserError, match=f"{MAPS} is damaged: .* delete it"):
        second.keep_training_on_other_maps()
