"""The command `run`: what it refuses before it writes anything, and what it keeps in its folder."""

import json
import os
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from release_folders import write_case
from workflow_runs import SMALL, graph_of

from nnunet_brats_ext.cli import main
from nnunet_brats_ext.dataset_conversion import convert
from nnunet_brats_ext.dataset_conversion.layouts import LABEL, LAYOUTS
from nnunet_brats_ext.dataset_conversion.scan import SourceCase
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.nnunet import FOLDERS, find_splits
from nnunet_brats_ext.workflow import run as run_module
from nnunet_brats_ext.workflow.ownership import only_one
from nnunet_brats_ext.workflow.recipe import find_recipe, load_recipe
from nnunet_brats_ext.workflow.run import RunOptions, plan_run

SMOKE = ["--scale", "smoke", "-device", "cpu"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["baseline"], "name the folder of the release"),
        (["baseline", "/nowhere"], "/nowhere does not exist"),
        (["baseline", "--scale", "smoke"], "this machine has no GPU"),
        (["mine.yaml", *SMOKE], "no trainer 'BraTSBaselineTrainr'; did you mean 'BraTSBaselineTrainer'?"),
        (["baseline", *SMOKE, "-o", "mine.yaml"], "mine.yaml is a file; choose a folder"),
        (["baseline", *SMOKE, "--profile", "nowhere"], "--profile nowhere is no folder"),
        (["baseline", *SMOKE, "--jobs", "0"], "--jobs 0: expected at least 1"),
        (["baseline", *SMOKE, "--gpus", "-1"], "--gpus -1: expected at least 1"),
        (["baseline", *SMOKE, "--gpu-memory-gb", "nan"], "--gpu-memory-gb nan: expected more than 0"),
        (["baseline", *SMOKE, "--gpu-memory-gb", "0"], "--gpu-memory-gb 0.0: expected more than 0"),
        (["baseline", *SMOKE, "--folds", "-1"], "--folds -1: expected at least 0"),
        (["baseline", *SMOKE, "--folds", "2"], "--folds 2: plain has the folds 0 to 1 here"),
        (["baseline", *SMOKE, "-d", "1000"], "-d 1000: expected at least 1 and at most 999"),
        (["henry2020", *SMOKE, "-d", "999"], "-d 1000: data set IDs lie between 1 and 999"),
        (["baseline", *SMOKE, "--also", "earlier=."], "--also earlier=.: expected NAME=FOLDER, each name once; this"),
        (["lachinov2019", *SMOKE, "--also", "earlier2=."], "earlier, labelled, evaluated; did you mean 'earlier'?"),
        (["lachinov2019", *SMOKE, "--also", "earlier=."], "has no .nii.gz, .nii or .mha file at all"),
        (["lachinov2019", *SMOKE, "--also", "earlier=nowhere"], "--also earlier=nowhere: nowhere is no folder"),
        (["baseline", "--copy", "mine.yaml"], "--copy mine.yaml exists already"),
        (["baseline", "--copy", "mine.txt"], "--copy mine.txt: a recipe's file ends in .yaml"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    mine = tmp_path / "mine.yaml"
    mine.write_text(SMALL.replace("BraTSBaselineTrainer", "BraTSBaselineTrainr"))
    assert main(["run", *words]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [mine]


@pytest.mark.parametrize("words", [["--jobs", "two"], ["--folds", "zero"], ["--scale", "tiny"], ["-device", "tpu"]])
def test_words_for_numbers_and_unknown_choices_are_refused_with_their_option(capsys, words):
    with pytest.raises(SystemExit):
        main(["run", "baseline", *words])
    assert words[0] in capsys.readouterr().err


def test_a_second_run_in_a_folder_is_refused_with_the_name_of_the_first(tmp_path, capsys):
    with only_one(tmp_path / ".lock", "it is used"):
        assert main(["run", "baseline", *SMOKE, "-o", str(tmp_path)]) == 1
    assert f"{tmp_path} is in use by process {os.getpid()} on " in capsys.readouterr().err
    assert not (tmp_path / "graph.json").exists()


def test_the_recipe_in_the_folder_of_a_run_runs_there(tmp_path, monkeypatch):
    mine = tmp_path / "recipe.yaml"
    mine.write_text(SMALL)
    monkeypatch.setattr(run_module, "follow", lambda *_: True)
    assert main(["run", str(mine), *SMOKE, "-o", str(tmp_path)]) == 130
    assert mine.read_text() == SMALL


def test_a_recipe_can_be_copied_edited_and_named_by_its_path(tmp_path, capsys):
    mine = tmp_path / "mine.yaml"
    assert main(["run", "lyu2020", "--copy", str(mine)]) == 0
    mine.write_text(mine.read_text().replace("    combine: vote\n", "    combine: vote\n    epochs: 250\n"))
    assert graph_of(mine)["train/stage2/fold_0"].environment == {"nnUNet_brats_epochs": "250"}


def test_what_lies_in_the_folder_of_a_run_is_named_from_there(tmp_path, monkeypatch):
    """So that the folder can move; what lies elsewhere keeps its place."""
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "elsewhere"))
    _, run = plan_run(RunOptions("lyu2020", folder=tmp_path / "run", scale="smoke", device="cpu"))
    words = [
        word for job in run.jobs.values() for word in (*job.command, str(job.result), *map(str, job.facts.values()))
    ]
    assert not [word for word in words if str(tmp_path) in word]
    assert set(run.environment) == set(run.environment.values()), "a trial run keeps to itself"
    monkeypatch.setattr(
        run_module, "scan", lambda root: SimpleNamespace(root=root, layout=LAYOUTS["BraTS2020"], cases=CASES)
    )
    _, run = plan_run(RunOptions("lyu2020", tmp_path / "release", folder=tmp_path / "run", device="cpu"))
    assert run.environment["nnUNet_raw"] == str(tmp_path / "elsewhere")
    assert run.environment["nnUNet_results"] == "nnUNet_results"
    assert str(tmp_path / "release") in run.jobs["convert/brats"].command
    assert run.jobs["convert/brats"].result.is_relative_to(tmp_path / "elsewhere")
    assert not Path(run.jobs["report/all"].result).is_absolute()


@pytest.mark.parametrize(("patients", "folds"), [(2, 2), (4, 4), (7, 5)])
def test_the_folds_of_a_run_are_those_that_its_conversion_makes(patients, folds, tmp_path, monkeypatch):
    for name in FOLDERS:
        monkeypatch.setenv(name, str(tmp_path / name))
    layout = LAYOUTS["BraTS2020"]
    for number in range(1, patients + 1):
        write_case(tmp_path / "source", layout, layout.case_name(number))
    options = RunOptions("baseline", tmp_path / "source", folder=tmp_path / "run", device="cpu", only=("both",))

    def planned_folds() -> int:
        return len({job.facts["fold"] for job in plan_run(options)[1].jobs.values() if job.kind == "train"})

    assert planned_folds() == folds
    dataset = convert(tmp_path / "source", 137, processes=1).folder
    assert planned_folds() == len(find_splits(dataset.name)[1]) == folds
    splits = tmp_path / "nnUNet_preprocessed" / dataset.name / "splits_final.json"
    splits.write_text(json.dumps(json.loads(splits.read_text())[:1]))
    assert planned_folds() == 1, "nnU-Net trains the folds that it finds there"


@pytest.mark.parametrize(
    ("release", "scored"),
    [
        ("BraTS2012", "brats2012 gli"),
        ("BraTS2015", "brats2015 gli"),
        ("BraTS2023-GLI", "brats2020 gli"),
        ("BraTS2024-PED", "brats2024 ped"),
        ("MU-Glioma-Post", "brats2020 gli"),
    ],
)
def test_labels_that_the_recipes_preset_does_not_know_are_scored_as_their_challenge_did(release, scored, recwarn):
    recipe = run_module.scored_as(load_recipe(find_recipe("baseline")), LAYOUTS[release].scheme_name, release)
    assert f"{recipe.preset} {recipe.cohort}" == scored
    noticed = [str(one.message) for one in recwarn]
    assert noticed == [f"the labels of {release} are scored by {scored}, not by brats2020 gli as the recipe says"] * (
        scored != "brats2020 gli"
    )


def test_rows_per_region_are_left_out_where_the_source_is_scored_by_other_regions(recwarn):
    recipe = load_recipe(find_recipe("hashemi2021"))
    scored = run_module.scored_as(recipe, LAYOUTS["BraTS2012"].scheme_name, "BraTS2012")
    assert scored.evaluated == ("three_class", "nested_2c", "nested")
    said = [str(one.message) for one in recwarn]
    assert (
        "binary_2c, binary: left out, as they are of WT, TC, ET, one prediction each, and brats2012 scores WT, TC"
        in said
    )
    for source in ("BraTS2015", "BraTS2020"):
        assert "binary" in run_module.scored_as(recipe, LAYOUTS[source].scheme_name, source).evaluated
    alone = run_module.restricted(recipe, ["binary"])
    with pytest.raises(UserError, match=r"binary: left out, .* and brats2012 scores WT, TC; nothing else is scored"):
        run_module.scored_as(alone, LAYOUTS["BraTS2012"].scheme_name, "BraTS2012")


def test_who_learns_from_what_is_submitted_is_named_until_that_is_kept_out(tmp_path):
    def said(*also: str) -> str:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            plan_run(RunOptions("lachinov2019", folder=tmp_path / "run", scale="smoke", device="cpu", also=also))
        return " ".join(str(one.message) for one in found)

    write_case(tmp_path / "other", LAYOUTS["BraTS2018"], LAYOUTS["BraTS2018"].case_name(1), training=False)
    assert "student_all learns from the cases without label that it is submitted for" in said()
    assert "--also evaluated=FOLDER keeps them out" in said(f"earlier={tmp_path / 'other'}")
    assert said(f"evaluated={tmp_path / 'other'}") == (
        "the recipe can use further folders: --also earlier=FOLDER --also labelled=FOLDER"
    )


PARTS = {"LABELLED": "Training", "UNLABELLED": "Validation"}


@pytest.fixture
def release(tmp_path) -> Path:
    """BraTS 2019: two cases with labels, two without."""
    layout = LAYOUTS["BraTS2019"]
    for number in range(4):
        place = tmp_path / "source" / f"MICCAI_BraTS_2019_Data_{PARTS['LABELLED' if number < 2 else 'UNLABELLED']}"
        write_case(place, layout, layout.case_name(number + 1), training=number < 2)
    return tmp_path / "source"


@pytest.mark.parametrize(
    ("also", "words"),
    [
        ("evaluated=UNLABELLED", "no case to distill is left: 2 excluded by name (--also evaluated=UNLABELLED); leave"),
        ("evaluated=FLAT", "no case to distill is left: 2 excluded by name (--also evaluated=FLAT); leave it out"),
        ("evaluated=SOURCE earlier=EARLIER", "no case with manual labels is left: 2 excluded by name (--also"),
        ("evaluated=UNLABELLED earlier=EARLIER", ""),
        ("evaluated=UNLABELLED labelled=EARLIEST", ""),
        ("evaluated=EARLIER", ""),
        ("earlier=LABELLED", "--also earlier=LABELLED: no case without label, which 'distilled' is to learn from"),
        ("labelled=UNLABELLED", "--also labelled=UNLABELLED: no case with a label, which 'distilled' is to learn"),
        ("labelled=RESECTED", "--also labelled=RESECTED: its labels, 1 NCR, 2 ED, 3 ET, 4 RC, cannot join those of"),
    ],
)
def test_a_student_with_nothing_to_learn_is_refused_before_its_teachers_are_trained(release, tmp_path, also, words):
    places = {name: release / f"MICCAI_BraTS_2019_Data_{part}" for name, part in PARTS.items()} | {"SOURCE": release}
    for name, layout, labelled in (
        ("EARLIER", LAYOUTS["BraTS2018"], False),
        ("RESECTED", LAYOUTS["BraTS2024-GLI"], True),
        ("EARLIEST", LAYOUTS["BraTS2015"], True),
    ):
        places[name] = tmp_path / name
        write_case(places[name], layout, layout.case_name(9), training=labelled)
    (flat := places.setdefault("FLAT", tmp_path / "flat")).mkdir()
    for path in places["UNLABELLED"].rglob("*_t1.nii.gz"):
        (flat / f"{path.parent.name}.nii.gz").touch()
    assert len(list(flat.iterdir())) == 2

    def plan(*only: str) -> None:
        given = tuple(f"{name}={places[place]}" for name, place in (option.split("=") for option in also.split()))
        plan_run(RunOptions("lachinov2019", release, folder=tmp_path / "run", device="cpu", also=given, only=only))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan("teachers")
        if not words:
            plan()
            return
        with pytest.raises(UserError) as error:
            plan()
    said = str(error.value)
    for name, place in places.items():
        said = re.sub(f"={re.escape(str(place))}(?=[:) ])", f"={name}", said)
    assert words in said


def test_a_run_on_one_patient_is_refused(tmp_path):
    layout = LAYOUTS["BraTS2020"]
    write_case(tmp_path / "source", layout, layout.case_name(1))
    with pytest.raises(UserError, match="the source has 1 patient with labels; a cross-validation needs two"):
        plan_run(RunOptions("baseline", tmp_path / "source", folder=tmp_path / "run", device="cpu"))


CASES = [SourceCase(f"case{i}", LAYOUTS["BraTS2020"], files={LABEL: Path()}, patient=f"patient{i}") for i in range(5)]


def test_on_windows_a_run_is_refused_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_module.sys, "platform", "win32")
    monkeypatch.chdir(tmp_path)
    assert main(["run", "baseline", *SMOKE]) == 1
    assert "recipes need Linux or macOS" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
