"""Lyu & Shu's whole recipe on tiny volumes: snapshots of stage 1, expanded data, stage 2, prediction by all routes."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import run_training
from tiny_trainers import make_tiny

from nnunet_brats_ext import trainers
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.inference import BraTSPredictor
from nnunet_brats_ext.inference.chosen import digest_of
from nnunet_brats_ext.training.cascade import MAPS
from nnunet_brats_ext.training.environment import EPOCHS, ITERATIONS, SNAPSHOTS

pytestmark = pytest.mark.end_to_end
CPU = torch.device("cpu")
STAGE_1 = ("-d", "901", "-tr", "BraTSVAETrainer", "-c", "lyu_stage1", "-p", "BraTSPlans", "-device", "cpu")
STAGE_2 = ("-d", "901", "-tr", "BraTSAttentionVAETrainer", "-c", "lyu_stage2", "-p", "BraTSPlans", "-device", "cpu")
FOR_STAGE_2 = ("--for-next-stage", "--next-stages", "lyu_stage2")
SNAPSHOT_NAMES = ("checkpoint_epoch_1.pth", "checkpoint_epoch_2.pth")


def train(trainer: str, configuration: str, fold: int) -> None:
    """What `nnUNetv2_train 901 CONFIGURATION FOLD -tr TRAINER -p BraTSPlans -device cpu` calls."""
    run_training("901", configuration, fold, trainer, "BraTSPlans", device=CPU)


@pytest.fixture(scope="module")
def recipe(world_on_disk, tmp_path_factory):
    """Both stages trained, stage 2 in one fold on two out-of-fold maps per case; and the folder of everything."""
    folder = tmp_path_factory.mktemp("recipe")
    shutil.copytree(world_on_disk.root / "nnUNet_raw", folder / "nnUNet_raw")
    shutil.copytree(world_on_disk.root / "nnUNet_preprocessed", folder / "nnUNet_preprocessed")
    (folder / "nnUNet_results").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for trainer in (trainers.BraTSVAETrainer, trainers.BraTSAttentionVAETrainer):
            make_tiny(trainer, patch)
        for name, value in world_on_disk.settings.items():
            patch.setenv(name, str(folder / name) if (folder / name).is_dir() else value)
        preprocessed = folder / "nnUNet_preprocessed" / world_on_disk.dataset
        cases = sorted(path.name.split(".")[0] for path in (preprocessed / "gt_segmentations").iterdir())
        splits = [{"train": cases[1::2], "val": cases[::2]}, {"train": cases[::2], "val": cases[1::2]}]
        (preprocessed / "splits_final.json").write_text(json.dumps(splits))
        assert main(["plan", "901"]) == 0
        plans = json.loads((preprocessed / "BraTSPlans.json").read_text())
        for name in ("lyu_stage1", "lyu_stage2"):
            plans["configurations"][name]["batch_size"] = 1
            plans["configurations"][name]["patch_size"] = [32, 32, 32]
        (preprocessed / "BraTSPlans.json").write_text(json.dumps(plans))
        patch.setenv(EPOCHS, "2")
        patch.setenv(ITERATIONS, "1")
        patch.setenv(SNAPSHOTS, "1 2")
        for fold in (0, 1):
            train("BraTSVAETrainer", "lyu_stage1", fold)
        assert main(["predict", *FOR_STAGE_2, *STAGE_1, "-chk", *SNAPSHOT_NAMES, "-np", "0"]) == 0
        patch.delenv(ITERATIONS)
        train("BraTSAttentionVAETrainer", "lyu_stage2", 0)
        yield folder


def model(recipe: Path, trainer: str, configuration: str) -> Path:
    return recipe / "nnUNet_results" / "Dataset901_World" / f"{trainer}__BraTSPlans__{configuration}"


def stage_1(recipe: Path) -> Path:
    return model(recipe, "BraTSVAETrainer", "lyu_stage1")


def stage_2(recipe: Path) -> Path:
    return model(recipe, "BraTSAttentionVAETrainer", "lyu_stage2")


def images(recipe: Path) -> Path:
    return recipe / "nnUNet_raw" / "Dataset901_World" / "imagesTs"


def labels(folder: Path) -> dict[str, np.ndarray]:
    files = sorted(folder.glob("*.nii.gz"))
    assert len(files) == 2, f"{folder} should hold the two unlabelled cases"
    return {file.name: sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in files}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_snapshots_are_lean_and_predict(recipe):
    for fold in (0, 1):
        for name in SNAPSHOT_NAMES:
            snapshot = torch.load(stage_1(recipe) / f"fold_{fold}" / name, weights_only=False)
            assert "optimizer_state" not in snapshot
            predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
            predictor.initialize_from_trained_model_folder(str(stage_1(recipe)), (fold,), name)
            assert snapshot["network_weights"].keys() == predictor.network.state_dict().keys(), "no branch of training"


def test_every_case_has_one_map_per_snapshot_made_by_the_fold_that_did_not_train_on_it(recipe):
    maps = stage_1(recipe) / "predicted_next_stage" / "lyu_stage2.maps"
    folders = sorted(maps.glob("[!.]*"))
    assert [path.name for path in folders] == ["checkpoint_epoch_1", "checkpoint_epoch_2"]
    for folder in folders:
        assert len(list(folder.glob("[!.]*.b2nd"))) == 6
    # The map of checkpoint_final is what nnU-Net's own validation has left; after two epochs it is that of epoch 2.
    own = stage_1(recipe) / "predicted_next_stage" / "lyu_stage2"
    import blosc2

    for file in sorted(own.glob("*.b2nd")):
        ours = blosc2.open(str(maps / "checkpoint_epoch_2" / file.name))[:]
        assert np.array_equal(ours, blosc2.open(str(file))[:])


def test_stage_2_trains_on_every_map_with_the_schedule_for_several(recipe):
    log = next((stage_2(recipe) / "fold_0").glob("training_log*.txt")).read_text()
    assert "2 epochs of 6 iterations: 6 draws from 3 training cases" in log
    checkpoint = torch.load(stage_2(recipe) / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert not [name for name in checkpoint["network_weights"] if "branch" in name or "vae" in name]
    assert checkpoint["optimizer_state"]["param_groups"][0]["initial_lr"] == 5e-5


def test_one_command_gives_what_nnunets_two_commands_give(recipe, tmp_path):
    """nnUNetv2_predict of stage 1, then of stage 2 with -prev_stage_predictions, by the calls behind them.

    In the memory format that we predict in, on which the last bits of a logit depend.
    """
    for stage, folds, out in ((stage_1(recipe), (0, 1), "one"), (stage_2(recipe), (0,), "two")):
        predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(stage), folds)
        predictor.network.to(memory_format=torch.channels_last_3d)
        previous = str(tmp_path / "one") if out == "two" else None
        (tmp_path / out).mkdir()
        predictor.predict_from_files_sequential(
            str(images(recipe)), str(tmp_path / out), save_probabilities=True, folder_with_segs_from_prev_stage=previous
        )
    ours = tmp_path / "ours"
    command = ["predict", "-i", str(images(recipe)), "-o", str(ours), *STAGE_2, "--tiling", "sliding"]
    assert main([*command, "--save_probabilities", "--keep-members", "-np", "0"]) == 0
    assert same(labels(ours), labels(tmp_path / "two"))
    assert same(labels(ours / "previous_stage" / "lyu_stage1"), labels(tmp_path / "one"))
    for file in ours.glob("*.npz"):
        assert np.array_equal(np.load(file)["probabilities"], np.load(tmp_path / "two" / file.name)["probabilities"])
    separate = tmp_path / "separate processes"
    command[command.index(str(ours))] = str(separate)
    assert main([*command, "-np", "1"]) == 0
    assert same(labels(ours), labels(separate))
    assert not (separate / "previous_stage").exists()


def test_several_sources_and_checkpoints_vote_and_an_interrupted_run_goes_on(recipe, tmp_path, monkeypatch, capsys):
    """Four sources of stage 1, and two members of stage 2 on each: twelve passes for each of two cases."""
    out = tmp_path / "voted"
    command = ["predict", "-i", str(images(recipe)), "-o", str(out), *STAGE_2, "-np", "0", "--combine", "vote"]
    command += ["-chk", *SNAPSHOT_NAMES, "-prev_chk", *SNAPSHOT_NAMES, "-prev_f", "0", "1", "--keep-members"]
    command += ["--rules", "lyu2020"]
    predict, passes = BraTSPredictor.predict_average, []

    def stop_in_the_second_case(*arguments):
        if len(passes) == 15:
            raise KeyboardInterrupt
        passes.append(arguments)
        return predict(*arguments)

    monkeypatch.setattr(BraTSPredictor, "predict_average", stop_in_the_second_case)
    assert main(command) == 130
    assert not list(out.glob("*.nii.gz")), "the rules come after all cases"
    kept = {path: path.stat().st_mtime_ns for path in (out / "before_rules").glob("*.nii.gz")}
    assert len(kept) == 1
    passes.clear()
    assert main(command) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items()), "finished cases were predicted again"
    assert len(passes) == 12
    members = sorted((out / "members").iterdir())
    assert len(members) == 8  # (2 folds x 2 snapshots) of stage 1 x 2 snapshots of stage 2
    assert len(labels(out)) == 2
    assert main(["ensemble", "-i", *map(str, members), "-o", str(tmp_path / "by hand"), "--method", "majority"]) == 0
    assert same(labels(out / "before_rules"), labels(tmp_path / "by hand"))

    done = {path: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
    shutil.rmtree(out / "members")
    assert main(command) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in done.items()), "nothing is left to do"
    assert len(passes) == 12

    assert main([*command, "--combine", "logits"]) == 1
    assert "other settings (combine)" in capsys.readouterr().err
    assert len(labels(out)) == 2


@pytest.mark.parametrize(("combine", "ties"), [("vote", "text"), ("vote", "release"), ("probabilities", "release")])
def test_a_cascade_in_one_command_is_each_member_predicted_alone_and_combined(combine, ties, recipe, tmp_path):
    """Bit for bit: the members' own files, predicted one command each, through `ensemble`."""
    members = []
    source = tmp_path / "source"
    one = ["predict", "-i", str(images(recipe)), "-np", "0"]
    for fold in ("0", "1"):
        assert main([*one, *STAGE_1, "-f", fold, "-o", str(source / fold)]) == 0
        for number, name in enumerate(SNAPSHOT_NAMES):
            members.append(tmp_path / f"{fold} {number}")
            words = [*one, *STAGE_2, "-chk", name, "-prev_stage_predictions", str(source / fold)]
            assert main([*words, "-o", str(members[-1]), "--save_probabilities"]) == 0
    method = {"vote": "majority", "probabilities": "mean"}[combine]
    by_hand = tmp_path / "by hand"
    rule = ["--ties", ties] if combine == "vote" else []
    assert main(["ensemble", "-i", *map(str, members), "-o", str(by_hand), "--method", method, *rule]) == 0
    words = [*one, *STAGE_2, "-o", str(tmp_path / "out"), "--combine", combine, *rule]
    if combine == "vote":
        words += ["-chk", *SNAPSHOT_NAMES, "-prev_f", "0", "1"]
    else:  # whose folds and checkpoints are averaged before they are combined with other sources
        mean_of = [str(source / fold) for fold in ("0", "1")]
        words += ["-chk", SNAPSHOT_NAMES[0], "-prev_stage_predictions", *mean_of, "--save_probabilities"]
        members = [tmp_path / f"{fold} 0" for fold in ("0", "1")]
        shutil.rmtree(by_hand)
        ensemble = ["ensemble", "-i", *map(str, members), "-o", str(by_hand), "--method", method]
        assert main([*ensemble, "--save_probabilities"]) == 0
    assert main(words) == 0
    assert same(labels(tmp_path / "out"), labels(by_hand))
    for file in by_hand.glob("*.npz"):
        found = np.load(tmp_path / "out" / file.name)["probabilities"]
        # torch's sigmoid rounds the values at the ends of an array's blocks differently.
        np.testing.assert_allclose(found, np.load(file)["probabilities"], rtol=0, atol=3e-8)


def test_the_window_on_the_tumour_and_a_whole_pass_are_modes_of_the_same_command(recipe, tmp_path):
    for tiling, trainer in (("paper", STAGE_2), ("brain", STAGE_1), ("overlap", STAGE_1)):
        command = ["predict", "-i", str(images(recipe)), "-o", str(tmp_path / tiling), *trainer, "-np", "0"]
        assert main([*command, "--tiling", tiling, "--tta", "inplane-mirror", "--combine", "probabilities"]) == 0
        assert len(labels(tmp_path / tiling)) == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (("-f", "4"), "fold_4"),
        (("-chk", "checkpoint_epoch_9.pth", "-f", "0"), "holds checkpoint_best.pth, checkpoint_epoch_1.pth"),
        (("-tr", "BraTSNoTrainer"), "no trainer 'BraTSNoTrainer'"),
        (("-prev_stage_predictions", "nowhere"), "nowhere lacks the previous stage's label maps"),
        (("--patch-size", "32", "32", "30"), "30 is no multiple of the strides"),
    ],
)
def test_what_cannot_be_predicted_is_said_in_a_sentence(changes, sentence, recipe, tmp_path, capsys):
    command = ["predict", "-i", str(images(recipe)), "-o", str(tmp_path / "out"), *STAGE_2, "-np", "0", *changes]
    assert main(command) == 1
    assert sentence in capsys.readouterr().err


def test_maps_out_of_fold_need_all_folds_and_no_other_maps_beside_them(recipe, capsys):
    assert main(["predict", "--for-next-stage", *STAGE_1, "-f", "0", "-np", "0"]) == 1
    assert "need all 2 folds" in capsys.readouterr().err
    assert main(["predict", "--for-next-stage", *STAGE_1, "-np", "0"]) == 1
    assert "already holds checkpoint_epoch_1, checkpoint_epoch_2" in capsys.readouterr().err
    assert main(["predict", "--for-next-stage", *STAGE_2, "-np", "0"]) == 1
    assert "no first stage" in capsys.readouterr().err
    assert main(["predict", *FOR_STAGE_2, "lyu_stage1", *STAGE_1, "-np", "0"]) == 1
    assert "--next-stages lyu_stage1: in " in capsys.readouterr().err


def test_stage_2_notes_which_checkpoints_have_made_its_maps(recipe):
    noted = json.loads((stage_2(recipe) / "fold_0" / MAPS).read_text())
    assert noted == {
        Path(name).stem: {f"fold_{fold}/{name}": digest_of(stage_1(recipe) / f"fold_{fold}" / name) for fold in (0, 1)}
        for name in SNAPSHOT_NAMES
    }
    assert len({digest for files in noted.values() for digest in files.values()}) == 4


def test_maps_of_a_stage_that_was_trained_anew_are_made_anew(recipe, capsys):
    command = ["predict", *FOR_STAGE_2, *STAGE_1, "-chk", *SNAPSHOT_NAMES, "-np", "0"]
    maps = stage_1(recipe) / "predicted_next_stage" / "lyu_stage2.maps"
    before = {path: path.stat().st_mtime_ns for path in maps.glob("*/*.b2nd")}
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in maps.glob("*/*.b2nd")} == before
    assert not maps.with_name("lyu_stage2_single.maps").exists(), "another second stage, which was not asked for"
    os.utime(stage_1(recipe) / "fold_1" / SNAPSHOT_NAMES[0])
    capsys.readouterr()
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "3 maps are not of the present fold_1__checkpoint_epoch_1, or were predicted otherwise" in said
    again = {path for path, time in before.items() if path.stat().st_mtime_ns != time}
    preprocessed = recipe / "nnUNet_preprocessed" / "Dataset901_World"
    cases = json.loads((preprocessed / "splits_final.json").read_text())[1]["val"]
    assert again == {maps / "checkpoint_epoch_1" / f"{case}.b2nd" for case in cases}
    assert main(command) == 0
    assert "predicted anew" not in capsys.readouterr().out
    for words, number in ((["--disable_tta"], 12), (["--disable_tta"], 0), ([], 12)):
        before = {path: path.stat().st_mtime_ns for path in before}
        assert main([*command, *words]) == 0
        assert sum(path.stat().st_mtime_ns != time for path, time in before.items()) == number
