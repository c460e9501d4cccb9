"""Recipes: what is wrong with one, what graph it makes, and what becomes of runs that fail, change or are killed."""

import contextlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

pytest.importorskip("snakemake", reason="Snakemake 9 needs Python 3.11")

import torch
from rich.console import Console

from nnunet_brats_ext.cli import main
from nnunet_brats_ext.inference.predictor import FROM_TRAINER, SLIDING
from nnunet_brats_ext.inference.symmetries import MODES
from nnunet_brats_ext.inference.tilings import TILINGS
from nnunet_brats_ext.planning.plan import trainers_here
from nnunet_brats_ext.workflow import run as run_module
from nnunet_brats_ext.workflow.graph import build_graph
from nnunet_brats_ext.workflow.job import environment_of, gpus_for, perform
from nnunet_brats_ext.workflow.jobs import Job, Setting
from nnunet_brats_ext.workflow.recipe import RECIPES, find_recipe, load_recipe, published_recipes
from nnunet_brats_ext.workflow.resources import Needs
from nnunet_brats_ext.workflow.resume import NOTE, commands_left
from nnunet_brats_ext.workflow.run import Options, engine_options, follow, local_gpus, release_stale_lock, snakemake
from nnunet_brats_ext.workflow.state import Run, only_one, open_run, signature, states_of
from nnunet_brats_ext.workflow.status import advise
from nnunet_brats_ext.workflow.training_jobs import snapshots_of

PAPERS = ["hashemi2021", "henry2020", "lachinov2019", "lyu2020", "zhou2020"]
SMALL = """title: small
models:
  one: {trainer: BraTSBaselineTrainer, configuration: 3d_fullres, plans: nnUNetPlans}
submission: one
"""


def graph_of(recipe: str | Path, **setting) -> dict[str, Job]:
    given = dict(
        folder=Path("/w"), raw=Path("/w/raw"), preprocessed=Path("/w/pre"), results=Path("/w/res"),
        dataset_id=137, release="BraTS2020", unlabelled=True, source=Path("/release"), gpus=8, cpus=64,
    )  # fmt: skip
    return build_graph(load_recipe(find_recipe(str(recipe))), Setting(**given | setting))


def kinds(jobs: dict[str, Job]) -> Counter:
    return Counter(job.kind for job in jobs.values())


# ---- recipes -------------------------------------------------------------------------------------------------------


def test_the_schema_knows_what_predict_knows():
    model = json.loads((RECIPES.parent / "recipe.schema.json").read_text())["properties"]["models"]
    keys = model["additionalProperties"]["properties"]
    assert set(keys["tta"]["enum"]) == {FROM_TRAINER, *MODES}
    assert set(keys["tiling"]["enum"]) == {FROM_TRAINER, SLIDING, *TILINGS}


def test_every_paper_has_a_recipe():
    assert set(published_recipes()) == {*PAPERS, "baseline", "compare"}


@pytest.mark.parametrize(
    ("change", "line", "words"),
    [
        (("trainer:", "trainr:"), 3, "unknown key 'trainr'; did you mean 'trainer'?"),
        (("submission: one", "submission: ones"), 4, "'ones' is none of one; did you mean 'one'?"),
        (("submission: one", "submission: one\ngpu_memory_gb: many"), 5, "'many' is not of type 'number'"),
        (("submission: one\n", "submission: one\ntitle: again\n"), 5, "'title' is given twice, in line 1 already"),
        (("plans: nnUNetPlans", "folds: [0, 5]"), 3, "fold 5 of 5: they count from 0"),
        (("  one:", "  1st:"), 3, "name '1st'"),
        (("submission: one\n", ""), 1, "give `models` and `submission`"),
        (
            ("3d_fullres, plans: nnUNetPlans", "henry_b, gpus: 4"), 3,
            "a batch of henry_b has 3 samples, too few for 4 GPUs",
        ),
        (
            ("3d_fullres, plans: nnUNetPlans}", "henry_b, gpus: 3}\n  two: {trainer: T, configuration: henry_b}"), 4,
            "`gpus` 1 of two is not that of one, 3; henry_b is fitted to one number of them",
        ),
        (
            ("submission: one", "ensembles:\n  a: {of: [one, b], method: mean}\n  b: {of: [a, one], method: mean}\n"
             "submission: a"),
            5, "'a' would be made of itself",
        ),
        (
            ("submission: one", "ensembles:\n  a: {of: [one, twin], method: mean}\nsubmission: a"), 5,
            "'twin' is none of one, a",
        ),
        (
            ("plans: nnUNetPlans}", "combine: vote}\n  two: {trainer: T, configuration: 2d}\nensembles:\n"
             "  a: {of: [one, two], method: mean}"),
            6, "one has no probabilities to average",
        ),
        (("submission: one", "postprocessing:\n  p: {of: one}\nsubmission: p"), 5, "needs one of `rules`"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_recipe_is_said_with_its_line(tmp_path, change, line, words):
    file = tmp_path / "mine.yaml"
    file.write_text(SMALL.replace(*change))
    with pytest.raises(ValueError, match=r"mine\.yaml") as error:
        load_recipe(file)
    assert f"{file}:{line}: " in str(error.value)
    assert words in str(error.value)


POOL = """title: pool
data: {brats: {}, minmax: {normalise: percentile-minmax}}
models:
  one: {trainer: T, configuration: henry}
  two: {trainer: T, configuration: henry_b}
  three: {trainer: U, configuration: henry}
ensembles:
  pool:
    method: mean
    of: [one, two, three]
    best: 2
submission: pool
"""


@pytest.mark.parametrize(
    ("change", "line", "words"),
    [
        (("method: mean", "method: majority"), 11, "`best` is of method mean, not of majority"),
        (("best: 2", "best: 3"), 11, "the best 3 of 3 members are all of them"),
        (("best: 2", "best: 0"), 11, "0 is less than the minimum of 1"),
        (("best: 2", "best: 2\n    weights: [1, 1, 1]"), 12, "`weights` does not go with `best`"),
        (("best: 2", "best: 2\n    space: labels"), 12, "`space` does not go with `best`"),
        (("y_b}", "y_b, data: minmax}"), 10, "`data` minmax of two is not that of one, brats; `best` compares"),
        (("y_b}", "y_b, tta: none}"), 10, "`tta` none of two is not that of one, None"),
        (("y_b}", "y_b, folds: [0]}"), 10, "`folds` (0,) of two is not that of one, None"),
        (("y_b}", "y_b, checkpoints: [best]}"), 10, "two has a previous stage or checkpoints of its own"),
        (("b}", "b, combine: vote}"), 10, "two has no probabilities to average"),
        (
            ("three]\n    best: 2", "both]\n    best: 2\n  both: {method: mean, of: [one, two]}"), 10,
            "both is no model; `best` chooses among those",
        ),
    ],
)  # fmt: skip
def test_a_pool_chooses_among_models_that_are_alike(tmp_path, change, line, words):
    file = tmp_path / "mine.yaml"
    file.write_text(POOL)
    assert load_recipe(file).ensembles["pool"].best == 2
    file.write_text(POOL.replace(*change))
    with pytest.raises(ValueError, match=r"mine\.yaml") as error:
        load_recipe(file)
    assert f"{file}:{line}: " in str(error.value)
    assert words in str(error.value)


FOUR = """title: four
data: {brats: {}}
models:
  one: {trainer: BraTSVAETrainer, configuration: lyu_stage1}
  two: {trainer: BraTSDeepSupervisionTrainer, configuration: henry}
  three: {trainer: BraTS2DTrainer, configuration: hashemi_2d}
  four: {trainer: BraTSAttentionVAETrainer, configuration: lyu_stage2, previous_stage: one}
ensembles:
  vote: {method: majority, of: [one, two]}
  e: {method: mean, of: [one, two]}
postprocessing:
  p: {of: one, rules: [lyu2020]}
evaluation: {preset: brats2023}
submission: e
"""
E = "e: {method: mean, of: [one, two]}"
P = "p: {of: one, rules: [lyu2020]}"


@pytest.mark.parametrize(
    ("change", "line", "words"),
    [
        (
            ("Supervision", "SupervisionB"), None, "",
        ),
        (
            ("BraTSDeepSupervisionTrainer, configuration: henry", "BraTSVAETrainer, configuration: lyu_stage1"), 5,
            "two and one would both be trained in BraTSVAETrainer__BraTSPlans__lyu_stage1 of brats; give one of them "
            "another configuration, other plans or other data",
        ),
        (("henry}", "hnry}"), 5, "'hnry' is no configuration of BraTSPlans, which has lyu_stage1, "),
        (("henry}", "henry_filtered}"), 5, "'henry_filtered' is no configuration of BraTSPlans"),
        (("henry}", "henry_filtered, filtered: one}"), 5, "'henry_filtered' is no configuration of BraTSPlans"),
        (("henry}", "lyu_stage1_filtered, filtered: one}"), None, ""),
        (("henry}", "mine, plans: Mine}"), None, ""),
        (("henry}", "henry, epochs: 9, checkpoints: [final, 10]}"), 5, "epoch 10 is beyond the `epochs` of two, 9"),
        (("lyu_stage1}", "lyu_stage1, epochs: 9}"), None, ""),
        (
            ("lyu_stage1}", "lyu_stage1, epochs: 9}\n  five: {trainer: BraTSAttentionVAETrainer, configuration: "
             "henry_b, previous_stage: one, maps: [3, 10]}"),
            5, "epoch 10 is beyond the `epochs` of one, 9",
        ),
        (("henry}", "henry, folds: [0, 2]}"), 9, "two has folds 0, 2 of 5, one all 5; an ensemble wants the same"),
        (("henry}", "henry, folds: [4, 3, 2, 1, 0]}"), None, ""),
        ((E, "e: {method: mean, of: [one, vote]}"), 10, "vote has no probabilities to average"),
        ((E, "e: {method: nested, of: [one, two, p]}"), 10, "p has no probabilities to average"),
        ((E, "e: {method: majority, of: [one, two, p], weights: [1, 1, 2]}"), None, ""),
        ((E, "e: {method: two-pass, of: [one, two], weights: [1, 1]}"), 10, "method two-pass takes no `weights`"),
        ((E, "e: {method: majority, of: [one, two], space: labels}"), 10, "method majority takes no `space`"),
        ((E, "e: {method: two-pass, of: [one, two, three]}"), 10, "two-pass takes 2 members, not 3"),
        ((E, "e: {method: nested, of: [one, two]}"), 10, "nested takes 3 members, not 2"),
        ((P, "p: {of: one, rules: [lyu2021]}"), 12, "no rules called 'lyu2021'"),
        ((P, "p: {of: one, rule: [small-et]}"), 12, "rule small-et lacks a threshold"),
        (
            (P, "p: {of: vote, rule: ['unlikely-components:ET=0.6']}"), 12,
            "the rules need probabilities, and vote has only label maps",
        ),
        (("brats2023", "brats2022"), 13, "no preset 'brats2022'; there are brats2017"),
        (("brats2023", "brats2023, cohort: goat"), 13, "brats2023 has no cohort 'goat'"),
    ],
)  # fmt: skip
def test_what_a_job_would_refuse_is_refused_in_the_recipe(tmp_path, change, line, words):
    file = tmp_path / "mine.yaml"
    assert change[0] in FOUR
    file.write_text(FOUR.replace(*change))
    if line is None:
        load_recipe(file)
        return
    with pytest.raises(ValueError, match=r"mine\.yaml") as error:
        load_recipe(file)
    assert f"{file}:{line}: {words}" in str(error.value)


def test_what_is_scored_together_has_the_same_folds(tmp_path):
    file = tmp_path / "mine.yaml"
    two = "}\n  two: {trainer: T, configuration: henry, folds: [1]}\n"
    file.write_text(SMALL.replace("}\n", two))
    with pytest.raises(ValueError, match=r"two has folds 1 of 5, one all 5; a ranking wants the same") as error:
        load_recipe(file)
    assert f"{file}:1: " in str(error.value)
    file.write_text(SMALL.replace("}\n", two) + "evaluation: {of: [two]}\n")
    assert load_recipe(file).evaluated == ("two",)


def test_the_example_of_the_guide_is_a_recipe(tmp_path):
    guide = Path(__file__).parents[1] / "docs" / "cluster.md"
    (tmp_path / "mine.yaml").write_text(guide.read_text().split("```yaml\n")[1].split("```")[0])
    assert "train/plain/fold_0" in graph_of(tmp_path / "mine.yaml")


def test_a_file_of_rules_is_meant_from_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text(FOUR.replace("lyu2020", "mine.json"))
    (tmp_path / "mine.json").write_text('{"rules": [{"rule": "small-et", "min_voxels": 7}]}')
    command = graph_of(tmp_path / "mine.yaml")["postprocess/cv/p"].command
    assert command[command.index("--rules") + 1] == str(tmp_path / "mine.json"), "jobs run in the folder of the run"


def test_recipes_that_are_included_do_not_get_into_each_others_way(tmp_path):
    for folder, gpus in (("x", 1), ("y", 2)):
        (tmp_path / folder).mkdir()
        words = SMALL.replace("3d_fullres, plans: nnUNetPlans", f"lyu_stage1, gpus: {gpus}")
        (tmp_path / folder / "own.yaml").write_text(words)
        (tmp_path / folder / f"{folder}.yaml").write_text(words)
    both = tmp_path / "both.yaml"
    for included, words in (
        ("x/own.yaml, y/own.yaml", "y/own.yaml is called 'own' like x/own.yaml, and so would be what they predict"),
        ("x/x.yaml, y/y.yaml", "y.one and x.one would both be trained in BraTSBaselineTrainer__BraTSPlans__lyu_stage1"),
        ("x/x.yaml, y/y.yaml", "`gpus` 2 of y.one is not that of x.one, 1"),
        ("lyu2020, lyu2020", "lyu2020 is called 'lyu2020' like lyu2020"),
        ("baseline]\nevaluation: {preset: brats2022}\n#", "no preset 'brats2022'"),
    ):
        both.write_text(f"title: both\ninclude: [{included}]\n")
        with pytest.raises(ValueError, match=r"both\.yaml:\d: ") as error:
            load_recipe(both)
        assert words in str(error.value)


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(SMALL.replace("trainer:", "trainr:") + "evaluatoin: {}\n")
    with pytest.raises(ValueError, match=r"trainr(?s:.*)evaluatoin"):
        load_recipe(file)


def test_a_recipe_can_be_copied_edited_and_named_by_its_path(tmp_path, capsys):
    mine = tmp_path / "mine.yaml"
    assert main(["run", "lyu2020", "--copy", str(mine)]) == 0
    mine.write_text(mine.read_text().replace("    combine: vote\n", "    combine: vote\n    epochs: 7\n"))
    assert graph_of(mine)["train/stage2/fold_0"].environment == {"nnUNet_brats_epochs": "7"}
    assert main(["run", "lyu2020", "--copy", str(mine)]) == 1
    assert "exists already" in capsys.readouterr().err


def test_an_unknown_recipe_is_answered_with_the_known_ones(capsys):
    assert main(["run", "lyu2021", "somewhere"]) == 1
    assert "there are baseline, compare, hashemi2021" in capsys.readouterr().err


# ---- graphs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", published_recipes())
@pytest.mark.parametrize("smoke", [False, True])
def test_a_job_comes_after_all_that_it_waits_for(recipe, smoke):
    jobs = graph_of(recipe, smoke=smoke, source=None if smoke else Path("/release"))
    names = list(jobs)
    for i, name in enumerate(names):
        assert set(jobs[name].after) <= set(names[:i]), name
    written = Counter(job.result for job in jobs.values() if job.kind in ("train", "collect", "predict", "ensemble"))
    assert max(written.values()) == 1


@pytest.mark.parametrize(
    ("recipe", "trainings"),
    [("baseline", 10), ("lyu2020", 10), ("henry2020", 20), ("lachinov2019", 20), ("zhou2020", 20), ("hashemi2021", 20)],
)
def test_every_fold_of_every_model_is_trained_once(recipe, trainings):
    assert kinds(graph_of(recipe))["train"] == trainings


def test_models_that_share_data_share_their_preprocessing():
    assert kinds(graph_of("lyu2020"))["preprocess"] == 1
    assert [name for name in graph_of("lachinov2019") if name.startswith("preprocess")] == [
        "preprocess/brats/nnUNetPlans/3d_fullres",
        "preprocess/brats/BraTSPlans/lachinov_brain",
        "preprocess/distilled/nnUNetPlans/3d_fullres",
    ]
    compared = kinds(graph_of("compare"))
    assert (compared["convert"], compared["train"]) == (2, 75)  # z-scores, percentiles; not the 3C of hashemi2021


def test_a_second_stage_waits_for_every_fold_of_the_first_and_for_its_maps():
    jobs = graph_of("lyu2020", folds=(0,))
    stage1 = {f"train/stage1/fold_{fold}" for fold in range(5)}
    assert stage1 | {"maps/stage1"} <= set(jobs["train/stage2/fold_0"].after)
    assert not [name for name in jobs if name.startswith("train/stage2") and name != "train/stage2/fold_0"]
    for name in ("stage1", "stage2"):  # a ranking wants both on the same cases
        assert jobs[f"collect/{name}"].after == (f"train/{name}/fold_0",)
        assert "--partial" in jobs[f"evaluate/{name}"].command


@pytest.mark.parametrize(("smoke", "fold"), [(False, 5), (True, 2), (False, -1)])
def test_a_fold_that_is_not_there_is_refused(smoke, fold):
    with pytest.raises(ValueError, match=f"--folds {fold}: .* has the folds 0 to {1 if smoke else 4}"):
        graph_of("lyu2020", folds=(0, fold), smoke=smoke)


def test_preprocessings_of_one_folder_wait_for_each_other():
    for recipe in published_recipes():
        last: dict[Path, str] = {}
        for name, job in graph_of(recipe).items():
            if job.kind == "preprocess":
                assert job.result not in last or last[job.result] in job.after
                last[job.result] = name


def test_a_training_keeps_the_snapshots_that_are_asked_for(tmp_path):
    mine = tmp_path / "mine.yaml"
    text = find_recipe("lyu2020").read_text()
    assert graph_of("lyu2020")["train/stage1/fold_0"].environment == {}, "its trainer keeps them anyway"
    mine.write_text(
        text.replace("maps: [165,", "maps: [100, 165,").replace("vote\n", "vote\n    checkpoints: [best, 9]\n")
    )
    jobs = graph_of(mine)
    epochs = jobs["train/stage1/fold_0"].environment["nnUNet_brats_snapshots"]
    assert epochs == "100 165 184 190 205 244 254 261 271 289 294"
    assert jobs["train/stage2/fold_0"].environment == {"nnUNet_brats_snapshots": "9 57 66 67 69 77 100 115"}


def test_snapshots_of_trainers_are_those_of_their_classes():
    import nnunet_brats_ext.trainers as package

    for path in Path(package.__file__).parent.glob("[!_]*.py"):
        module = importlib.import_module(f"{package.__name__}.{path.stem}")
        for name, one in vars(module).items():
            if isinstance(one, type) and name in trainers_here():
                assert snapshots_of(name) == one.snapshot_epochs, name


def test_the_cores_of_a_job_are_shared_out_among_its_gpus(tmp_path):
    local, cluster = (graph_of("lyu2020", gpus=4, cpus=cpus)["train/stage1/fold_0"] for cpus in (3, 64))
    assert (local.needs.cpus, cluster.needs.cpus) == (12, 32)
    for one, workers, cores in ((local, "2", "3"), (cluster, "7", "8")):
        environment = environment_of(Run(tmp_path, {}, {}), one)
        assert (environment["nnUNet_n_proc_DA"], environment["nnUNet_def_n_proc"]) == (workers, cores)


def test_a_filtered_model_waits_for_the_one_that_judges_the_cases():
    jobs = graph_of("henry2020")
    assert "filter/a_unet" in jobs["train/a_filtered/fold_0"].after
    assert {f"train/a_unet/fold_{fold}" for fold in range(5)} <= set(jobs["filter/a_unet"].after)
    assert kinds(jobs)["preprocess"] == 2


def test_a_pool_waits_for_its_candidates_which_are_not_predicted_beside_it():
    jobs = graph_of("henry2020")
    trainings = {f"train/{model}/fold_{fold}" for model in ("a_unet", "a_cbam", "a_filtered") for fold in range(5)}
    assert {name for name in jobs if name.startswith("predict/")} == {"predict/a", "predict/b"}
    for name, where in (("predict/a", "-i"), ("ensemble/cv/a", "--cross-validation")):
        job, words = jobs[name], " ".join(jobs[name].command)
        assert trainings <= set(job.after)
        assert words.startswith("nnunet_brats pool ")
        assert "--best 2 -f 0 1 2 3 4 " in words
        assert "BraTSDeepSupervisionCBAMTrainer:henry BraTSDeepSupervisionTrainer:henry_filtered" in words
        assert where in job.command
    assert (jobs["predict/a"].needs.gpus, jobs["ensemble/cv/a"].needs.gpus) == (1, 0)
    assert {f"evaluate/{name}" for name in ("a_unet", "a_cbam", "a_filtered", "a", "merged")} <= set(jobs)
    assert "--npz" in jobs["train/a_cbam/fold_0"].command, "the cross-validation averages probabilities"
    assert set(jobs["ensemble/test/merged"].after) == {"predict/a", "predict/b"}
    assert "-f 0 " in " ".join(graph_of("henry2020", folds=(0,))["predict/a"].command)


def test_data_sets_of_one_recipe_keep_patients_in_their_folds():
    jobs = graph_of("henry2020")
    command = jobs["convert/minmax"].command
    assert command[command.index("--same-patients-as") + 1] == "137"
    assert "percentile-minmax" in command
    assert "convert/zscore" in jobs["convert/minmax"].after


def test_a_student_needs_unlabelled_cases():
    with pytest.raises(ValueError, match="the source has no cases without label, which 'distilled' is to learn from"):
        graph_of("lachinov2019", unlabelled=False)


def test_without_unlabelled_cases_nothing_is_predicted_but_the_folds():
    jobs = graph_of("baseline", unlabelled=False)
    assert not {"predict", "restore"} & set(kinds(jobs))
    assert "report/all" in jobs


def test_the_batch_of_each_configuration_is_fitted_to_its_own_number_of_gpus():
    plans = graph_of("compare", gpu_memory_gb=24)["configure/brats"].command
    assert plans[plans.index("--gpus") + 1 :] == ("lyu_stage1=4,lyu_stage2=4",), "the others train on one"
    assert "--gpus" not in graph_of("compare", gpu_memory_gb=24, gpus=1)["configure/brats"].command
    assert "--gpus" not in graph_of("compare")["configure/brats"].command, "without a budget all is as published"


def test_a_training_gets_no_more_gpus_than_there_are():
    assert "-num_gpus" in graph_of("lyu2020", gpus=8)["train/stage1/fold_0"].command
    assert graph_of("lyu2020", gpus=8)["train/stage1/fold_0"].needs.gpus == 4
    alone = graph_of("lyu2020", gpus=1)["train/stage1/fold_0"]
    assert "-num_gpus" not in alone.command
    assert alone.needs.gpus == 1
    assert graph_of("lyu2020", device="cpu")["train/stage1/fold_0"].needs.gpus == 0


def test_probabilities_are_kept_only_where_something_averages_them():
    lyu, hashemi = graph_of("lyu2020"), graph_of("hashemi2021")
    assert "--npz" not in lyu["train/stage2/fold_0"].command
    assert "--npz" in hashemi["train/tumor_core/fold_0"].command
    assert "--save_probabilities" in hashemi["predict/tumor_core"].command


@pytest.mark.parametrize("recipe", published_recipes())
def test_a_dry_run_shows_every_command_and_writes_nothing(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", recipe, "--scale", "smoke", "--dry-run", "-device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "nnUNetv2_plan_and_preprocess -d 137" in said
    assert "nothing was started" in said
    assert not list(tmp_path.iterdir())


def test_snakemake_finds_nothing_in_the_workflow_but_what_it_does_otherwise(tmp_path):
    run = Run(tmp_path, graph_of("lyu2020", folder=tmp_path), {}, (), {})
    run.write()
    said = subprocess.run([*snakemake(tmp_path), "--lint"], capture_output=True, text=True).stderr
    findings = [line.strip() for line in said.splitlines() if line.strip().startswith("*")]
    ours = {
        "* Specify a conda environment or container for each rule.:",  # the one that Snakemake runs in
        "* No log directive defined:",  # jobs write their logs themselves, and keep those of all attempts
    }
    assert set(findings) <= ours, said


# ---- what is there already -----------------------------------------------------------------------------------------


@pytest.fixture
def training(tmp_path) -> Job:
    plans = {"configurations": {"base": {"spacing": [1, 1, 1]}, "small": {"inherits_from": "base", "batch_size": 2}}}
    (tmp_path / "BraTSPlans.json").write_text(json.dumps(plans))
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": ["a"], "val": ["b"]}]))
    facts = {"plans": str(tmp_path / "BraTSPlans.json"), "configuration": "small", "fold": 0}
    return Job("train/m/fold_0", ("nnUNetv2_train",), tmp_path / "m" / "fold_0", (), Needs(1, 1, 1), {}, facts)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_a_training_is_begun_continued_validated_or_left_alone(training):
    assert commands_left(training) == [["nnUNetv2_train"]]
    touch(training.result, "checkpoint_best.pth")
    assert commands_left(training) == [["nnUNetv2_train", "--c"]]
    touch(training.result, "checkpoint_latest.pth")
    assert commands_left(training) == [["nnUNetv2_train", "--c"]]
    touch(training.result, "checkpoint_final.pth")
    assert commands_left(training) == [["nnUNetv2_train", "--val"]]
    touch(training.result, "validation/summary.json")
    assert commands_left(training) == []


def test_a_finished_fold_gets_the_probabilities_that_something_averages(training):
    touch(training.result, "checkpoint_final.pth", "validation/summary.json", "validation/b.nii.gz")
    assert commands_left(training) == []
    averaged = replace(training, command=("nnUNetv2_train", "--npz"))
    assert commands_left(averaged) == [["nnUNetv2_train", "--npz", "--val"]]
    touch(training.result, "validation/b.npz")
    assert commands_left(averaged) == []


def test_other_snapshots_leave_a_finished_fold_alone(training):
    commands_left(training)
    touch(training.result, "checkpoint_final.pth", "validation/summary.json")
    assert commands_left(replace(training, environment={"nnUNet_brats_snapshots": "1 2"})) == []
    assert commands_left(replace(training, environment={"nnUNet_brats_epochs": "2"})) == [["nnUNetv2_train"]]


def test_a_fold_that_somebody_trained_by_hand_is_taken_as_it_is(training):
    touch(training.result, "checkpoint_final.pth", "validation/summary.json")
    assert commands_left(training) == []
    assert (training.result / NOTE).is_file()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [("BraTSPlans.json", '"batch_size": 2', '"batch_size": 4'), ("splits_final.json", '"a"', '"c"')],
)
def test_a_fold_of_other_settings_is_put_aside_and_trained_anew(training, tmp_path, file, old, new):
    commands_left(training)
    touch(training.result, "checkpoint_final.pth", "validation/summary.json")
    (tmp_path / file).write_text((tmp_path / file).read_text().replace(old, new))
    assert commands_left(training) == [["nnUNetv2_train"]]
    (aside,) = training.result.parent.glob("earlier_fold_0_*")
    assert (aside / "checkpoint_final.pth").is_file()


def test_plans_that_are_there_are_kept_until_the_data_set_changes(tmp_path):
    plans, dataset = tmp_path / "nnUNetPlans.json", tmp_path / "dataset.json"
    planning = Job("plan/a/nnUNetPlans", ("plan",), plans, (), Needs(1, 1, 1), facts={"dataset": str(dataset)})
    dataset.touch()
    assert commands_left(planning) == [["plan"]]
    plans.touch()
    assert commands_left(planning) == []
    os.utime(dataset, (time.time() + 10,) * 2)
    assert commands_left(planning) == [["plan"]]


def test_our_plans_in_folders_of_others_are_not_overwritten():
    assert "--overwrite" in graph_of("lyu2020")["configure/brats"].command
    elsewhere = graph_of("lyu2020", preprocessed=Path("/data/nnUNet_preprocessed"))
    assert "--overwrite" not in elsewhere["configure/brats"].command


def test_plans_that_change_elsewhere_leave_a_finished_fold_alone(training, tmp_path):
    commands_left(training)
    touch(training.result, "checkpoint_final.pth", "validation/summary.json")
    plans = json.loads((tmp_path / "BraTSPlans.json").read_text())
    plans["configurations"]["other"] = {"inherits_from": "base"}
    (tmp_path / "BraTSPlans.json").write_text(json.dumps(plans))
    assert commands_left(training) == []


def test_two_cannot_work_in_one_place_and_the_dead_hold_nothing(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from nnunet_brats_ext.workflow.state import only_one\n"
        f"with only_one(Path({str(tmp_path / 'lock')!r}), 'it is used'): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RuntimeError, match=f"it is used by process {holder.pid} on .*; wait until it ends"):  # noqa: SIM117
        with only_one(tmp_path / "lock", "it is used", patience_s=0.2):
            pass
    holder.kill()
    holder.wait()
    with only_one(tmp_path / "lock", "it is used") as locked:
        assert locked


def test_a_second_run_in_a_folder_is_told_of_the_first(tmp_path, capsys):
    with only_one(tmp_path / ".lock", "it is used"):
        assert main(["run", "baseline", "--scale", "smoke", "-device", "cpu", "-o", str(tmp_path)]) == 1
    assert f"{tmp_path} is in use by process {os.getpid()} on " in capsys.readouterr().err
    assert not (tmp_path / "graph.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["baseline"], "name the folder of the release"),
        (["baseline", "/nowhere"], "/nowhere is not a folder"),
        (["baseline", "--scale", "smoke"], "this machine has no GPU"),
        (["MINE", "--scale", "smoke", "-device", "cpu"], "this version has no trainer BraTSWishfulTrainer"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    mine = tmp_path / "mine.yaml"
    mine.write_text(SMALL.replace("BraTSBaselineTrainer", "BraTSWishfulTrainer"))
    assert main(["run", *(str(mine) if word == "MINE" else word for word in words)]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [mine]


def test_jobs_at_one_time_get_gpus_of_their_own(tmp_path):
    run = Run(tmp_path, {}, {}, (f"test-{os.getpid()}-0", f"test-{os.getpid()}-1"), {})
    needing = Job("train/m/fold_0", ("nnUNetv2_train",), tmp_path, (), Needs(1, 1, 1, gpus=1))
    with gpus_for(run, needing) as first, gpus_for(run, needing) as second:
        assert sorted([first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]]) == list(run.devices)
    with gpus_for(Run(tmp_path, {}, {}, (), {}), needing) as under_a_scheduler:
        assert under_a_scheduler == {}


def test_a_job_that_waits_for_gpus_keeps_none_from_others(tmp_path, monkeypatch):
    run = Run(tmp_path, {}, {}, (f"test-{os.getpid()}-0", f"test-{os.getpid()}-1"), {})
    one, both = (Job("train/m/fold_0", ("nnUNetv2_train",), tmp_path, (), Needs(1, 1, 1, gpus=n)) for n in (1, 2))
    waits = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        with gpus_for(run, one):  # another job, which would wait as well if the one that is free were held
            held.close()

    with contextlib.ExitStack() as held:
        held.enter_context(gpus_for(run, one))
        monkeypatch.setattr(time, "sleep", wait)
        with gpus_for(run, both) as given:
            assert given["CUDA_VISIBLE_DEVICES"] == ",".join(run.devices)
    assert len(waits) == 1


def test_gpus_are_those_that_the_environment_leaves(monkeypatch):
    for visible, expected in (
        ("", []),
        ("-1", []),
        ("0,2", ["0", "2"]),
        ("1,-1,2", ["1"]),
        ("GPU-a, GPU-b", ["GPU-a", "GPU-b"]),
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert local_gpus() == expected


# ---- the engine, on jobs that take no time -------------------------------------------------------------------------


def job(name: str, code: str, folder: Path, *after: str) -> Job:
    result = folder / "made" / name.replace("/", "_")
    words = ("python", "-c", f"from pathlib import Path; out = Path({str(result)!r}); {code}")
    return Job(name, words, result, after, Needs(1, 0.1, 0.1))


WRITE = "out.parent.mkdir(exist_ok=True); out.write_text('x')"


def small_run(folder: Path, second: str = WRITE) -> Run:
    jobs = [
        job("convert/a", WRITE, folder),
        job("tune/b", second, folder, "convert/a"),
        job("evaluate/c", WRITE, folder, "tune/b"),
        job("evaluate/d", WRITE, folder, "convert/a"),
    ]
    run = Run(folder, {one.name: one for one in jobs}, {}, (), {})
    run.write()
    return run


def start(run: Run) -> int:
    return follow(run, [*snakemake(run.folder), *engine_options(run, Options("small"))], Console(quiet=True))


def test_a_failure_stops_only_what_depends_on_it_and_says_what_to_do(tmp_path, capsys):
    run = small_run(tmp_path, "raise SystemExit('CUDA out of memory')")
    assert start(run) != 0
    states = {name: state for name, (state, _) in states_of(run).items()}
    assert states == {"convert/a": "done", "tune/b": "failed", "evaluate/c": "waiting", "evaluate/d": "done"}
    assert main(["status", str(tmp_path)]) == 1
    said = capsys.readouterr().out.replace("\n", " ")
    assert "2 done, 1 failed, 1 waiting" in said
    assert "lower --gpu-memory-gb" in said
    assert str(run.log("tune/b")) in said


def test_a_log_keeps_every_attempt(tmp_path):
    run = small_run(tmp_path, "raise SystemExit('no luck')")
    start(run)
    start(run)
    assert run.log("tune/b").read_text().count("failed with code 1") == 2


def test_a_changed_setting_runs_again_only_what_depends_on_it(tmp_path):
    run = small_run(tmp_path)
    assert start(run) == 0
    before = {name: run.done_file(name).stat().st_mtime_ns for name in run.jobs}
    assert start(run) == 0
    assert {name: run.done_file(name).stat().st_mtime_ns for name in run.jobs} == before
    run = small_run(tmp_path, WRITE.replace("'x'", "'y'"))
    assert start(run) == 0
    again = {name for name in run.jobs if run.done_file(name).stat().st_mtime_ns != before[name]}
    assert again == {"tune/b", "evaluate/c"}


def test_other_cores_and_gpus_are_no_change_but_another_place_is():
    one = Job("train/m/fold_0", ("t", "-np", "2", "-num_gpus", "4", "-npfp", "3", "x"), Path("/a"), (), Needs(1, 1, 1))
    assert signature(one) == signature(replace(one, command=("t", "-np", "8", "x")))
    assert signature(one) != signature(replace(one, command=("t", "-np", "8", "y")))
    assert signature(one) != signature(replace(one, result=Path("/b")))


def test_a_prediction_goes_on_with_other_cores_but_not_with_other_settings(tmp_path):
    made = tmp_path / "made"
    code = f"from pathlib import Path; out = Path({str(made)!r}); out.mkdir(exist_ok=True); (out / 'new').touch()"
    words = ("python", "-c", code)
    for more, expected in (
        (("-np", "2"), {"new"}), (("-np", "4"), {"old", "new"}), (("-np", "4", "--tta", "none"), {"new"})
    ):  # fmt: skip
        predicting = Job("predict/m", (*words, *more), made, (), Needs(1, 0.1, 0.1))
        run = Run(tmp_path, {predicting.name: predicting}, {}, (), {})
        run.done_file(predicting.name).parent.mkdir(parents=True, exist_ok=True)
        assert perform(run, predicting) == 0
        assert {path.name for path in made.iterdir()} == expected
        (made / "old").touch()


def test_what_was_done_otherwise_is_not_done(tmp_path):
    assert start(small_run(tmp_path)) == 0
    changed = small_run(tmp_path, WRITE.replace("'x'", "'y'"))
    states = {name: state for name, (state, _) in states_of(changed).items()}
    assert states == {"convert/a": "done", "tune/b": "waiting", "evaluate/c": "waiting", "evaluate/d": "done"}


def test_the_recipe_in_the_folder_of_a_run_runs_there(tmp_path, monkeypatch):
    mine = tmp_path / "recipe.yaml"
    mine.write_text(SMALL)
    monkeypatch.setattr(run_module, "follow", lambda *_: 0)
    monkeypatch.setattr(run_module, "tell_end", lambda *_: 0)
    assert main(["run", str(mine), "--scale", "smoke", "-device", "cpu", "-o", str(tmp_path)]) == 0
    assert mine.read_text() == SMALL


def test_a_job_whose_result_is_missing_has_failed(tmp_path):
    run = small_run(tmp_path, "pass")
    assert start(run) != 0
    assert "is not there" in run.log("tune/b").read_text()


def test_ending_a_run_ends_its_jobs(tmp_path):
    run = small_run(tmp_path, "import time; time.sleep(300)")
    code = "import test_workflow as this; this.start(this.open_run(this.Path.cwd()))"
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    process = psutil.Popen([sys.executable, "-c", code], cwd=tmp_path, env=here)
    for _ in range(600):
        if states_of(run)["tune/b"][0] == "running":
            break
        time.sleep(0.1)
    family = process.children(recursive=True)
    process.terminate()
    _, alive = psutil.wait_procs([process, *family], timeout=60)
    assert not alive
    assert states_of(run)["tune/b"][0] == "failed"


def test_the_lock_of_a_killed_snakemake_does_not_hinder_the_next(tmp_path):
    run = small_run(tmp_path)
    (tmp_path / ".snakemake" / "locks").mkdir(parents=True)
    (tmp_path / ".snakemake" / "locks" / "0.output.lock").write_text("jobs/convert/a.done\n")
    assert start(run) != 0
    with pytest.raises(RuntimeError, match="--unlock"):
        release_stale_lock(tmp_path, locked=False)
    release_stale_lock(tmp_path, locked=True)
    assert start(run) == 0


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("RuntimeError: Some background worker is 6 feet under", "too little main memory"),
        ("OSError: [Errno 28] No space left on device", "make room"),
        ("slurmstepd: error: *** STEP 3.0 CANCELLED AT 2026-01-01 DUE TO TIME LIMIT ***", "from its last checkpoint"),
        ("anything else", "mend what the log says"),
    ],
)
def test_a_log_is_answered_with_advice(tmp_path, said, advice):
    (tmp_path / "log").write_text(f"...\n{said}\n")
    assert advice in advise(tmp_path / "log")


# ---- whole recipes, on phantoms ------------------------------------------------------------------------------------


def smoke(recipe: str, folder: Path, *options: str) -> list[str]:
    words = ["run", recipe, "--scale", "smoke", "-device", "cpu", "-o", str(folder), *options]
    return [str(Path(sys.executable).with_name("nnunet_brats")), *words]


def run_smoke(recipe: str, folder: Path, *options: str) -> None:
    done = subprocess.run(smoke(recipe, folder, *options), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def kill_when(command: list[str], folder: Path, there) -> None:
    """Start a run, and once `there` holds, end it and every process below it without a word, as a power cut would."""
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(3000):
        if there() or process.poll() is not None:
            break
        time.sleep(0.1)
    assert process.poll() is None, "the run ended before it was killed"
    family = [process, *process.children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=10)


def files(folder: Path, pattern: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob(pattern))}


@pytest.fixture(scope="module")
def lyu(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("workflow") / "lyu"
    run_smoke("lyu2020", folder)
    return folder


@pytest.mark.end_to_end
def test_lyu2020_runs_from_phantoms_to_report_and_submission(lyu):
    assert {state for state, _ in states_of(open_run(lyu)).values()} == {"done"}
    assert len(list((lyu / "submission").glob("*.nii.gz"))) == 2
    results = json.loads((lyu / "results" / "final.json").read_text())
    assert set(results["summary"]) == {"WT", "TC", "ET"}
    assert len(results["cases"]) == 4
    assert (lyu / "report.html").stat().st_size > 10_000
    assert main(["status", str(lyu)]) == 0


@pytest.mark.end_to_end
def test_a_run_killed_in_training_and_in_prediction_ends_with_the_same_result(lyu):
    (model,) = lyu.glob("nnUNet_results/*/BraTSAttentionVAETrainer__*")
    fold, predictions = model / "fold_1", lyu / "predictions" / "test" / "stage2"
    results = ("submission/*.nii.gz", "predictions/cv/stage2/*.nii.gz")
    expected = [files(lyu, pattern) for pattern in results]
    weights = torch.load(fold / "checkpoint_final.pth", map_location="cpu", weights_only=False)["network_weights"]
    finished = model / "fold_0" / "checkpoint_final.pth"
    untouched = finished.stat().st_mtime_ns

    shutil.rmtree(fold)
    (lyu / "jobs" / "train" / "stage2" / "fold_1.done").unlink()
    command = smoke("lyu2020", lyu)
    kill_when(command, lyu, lambda: list(fold.glob("checkpoint_best.pth")))
    assert not (fold / "checkpoint_final.pth").exists()
    assert (fold / "checkpoint_epoch_1.pth").exists(), "going on from the checkpoint would never make this snapshot"
    begun = (predictions / "predict.json").stat().st_mtime_ns
    kill_when(command, lyu, lambda: newer(predictions, begun) and list(predictions.glob("members/*/*.nii.gz")))
    run_smoke("lyu2020", lyu)

    assert "--c" in (lyu / "logs" / "train" / "stage2" / "fold_1.log").read_text().split()
    assert "are there already" in (lyu / "logs" / "predict" / "stage2.log").read_text()
    resumed = torch.load(fold / "checkpoint_final.pth", map_location="cpu", weights_only=False)["network_weights"]
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    assert [files(lyu, pattern) for pattern in results] == expected
    assert finished.stat().st_mtime_ns == untouched


def newer(folder: Path, than_ns: int) -> bool:
    with contextlib.suppress(FileNotFoundError):  # the job takes the old folder away in between
        return (folder / "predict.json").stat().st_mtime_ns > than_ns
    return False


@pytest.mark.end_to_end
def test_hashemi2021_runs_on_one_fold_of_its_models(tmp_path):
    run_smoke("hashemi2021", tmp_path / "run", "--folds", "0")
    results = json.loads((tmp_path / "run" / "results" / "nested.json").read_text())
    assert len(results["cases"]) == 2
    assert len(list((tmp_path / "run" / "submission").glob("*.nii.gz"))) == 2


@pytest.mark.end_to_end
@pytest.mark.skipif(
    not (shutil.which("slurmctld") and shutil.which("munged") and hasattr(os, "geteuid") and os.geteuid() == 0)
    or Path("/etc/slurm/slurm.conf").exists(),
    reason="needs root, Debian's slurm-wlm and munge, and no other Slurm: see tests/slurm/one_node.sh",
)
def test_slurm_runs_hashemi2021_though_a_job_is_cancelled(tmp_path):
    here, folder = Path(__file__).parent / "slurm", tmp_path / "run"
    slurm = Path("/tmp", f"nnunet_brats_slurm_{os.getpid()}")  # munge's user has to get at it; pytest's are closed
    subprocess.run([here / "one_node.sh", "start", slurm], check=True)
    try:
        options = ("--folds", "0", "--executor", "slurm", "--profile", str(here / "profile"))
        process = subprocess.Popen(smoke("hashemi2021", folder, *options), stdout=subprocess.PIPE, text=True)
        cancelled = False
        while process.poll() is None:
            if not cancelled and list(folder.glob("nnUNet_results/*/BraTS2DTrainer__*/fold_0/checkpoint_best.pth")):
                listed = subprocess.run(["squeue", "-h", "-o", "%i %k"], capture_output=True, text=True).stdout
                number = next(line.split()[0] for line in listed.splitlines() if "three_class_fold_0" in line)
                subprocess.run(["scancel", number], check=True)
                cancelled = True
            time.sleep(0.5)
        assert cancelled
        assert process.returncode == 0, process.stdout.read() if process.stdout else ""
        log = (folder / "logs" / "train" / "three_class" / "fold_0.log").read_text()
        assert {"--c", "--val"} & set(log.split()), "a second attempt begins where the first was cancelled"
        assert len(list((folder / "submission").glob("*.nii.gz"))) == 2
    finally:
        subprocess.run([here / "one_node.sh", "stop", slurm], check=False)
        shutil.rmtree(slurm, ignore_errors=True)
