"""Graphs of recipes: which jobs there are, what each waits for, and what their commands say."""

from collections import Counter
from pathlib import Path

import pytest
from workflow_runs import graph_of, kinds

from nnunet_brats_ext.cli.parser import parse
from nnunet_brats_ext.cli.verbs import find_verb
from nnunet_brats_ext.papers import stages_of
from nnunet_brats_ext.workflow.recipe import find_recipe, load_recipe, published_recipes
from nnunet_brats_ext.workflow.recipe_parts import base_data


@pytest.mark.parametrize("recipe", published_recipes())
@pytest.mark.parametrize("smoke", [False, True])
def test_a_job_comes_after_all_that_it_waits_for(recipe, smoke):
    jobs = graph_of(recipe, smoke=smoke, source=None if smoke else Path("/release"))
    names = list(jobs)
    for i, name in enumerate(names):
        assert set(jobs[name].after) <= set(names[:i]), name
    written = Counter(job.result for job in jobs.values() if job.kind in ("train", "predict", "ensemble"))
    assert max(written.values()) == 1


@pytest.mark.parametrize(
    ("recipe", "only"), [*((name, ()) for name in published_recipes()), ("hashemi2021", ["binary"])]
)
def test_every_job_is_a_command_line_that_can_be_read(recipe, only):
    for job in graph_of(recipe, only=only).values():
        program, name, *words = job.command
        if program == "nnunet_brats":
            parse(find_verb(name).load_options(), name, "", words)


@pytest.mark.parametrize("name", published_recipes())
def test_every_fold_of_every_model_that_is_scored_is_trained_once(name):
    recipe, jobs = load_recipe(find_recipe(name)), graph_of(name)
    trained = {one for one in jobs if one.startswith("train/")}
    scored = [model for prediction in recipe.evaluated for model in recipe.models_of(prediction)]

    def of(models) -> set[str]:
        folds = {one.name: one.folds or range(base_data(recipe, one).folds) for one in models}
        return {f"train/{model}/fold_{fold}" for model, numbers in folds.items() for fold in numbers}

    assert trained >= of(scored)
    asked_for = {one for name in (*recipe.evaluated, *recipe.submissions) for one in needed(recipe, name)}
    assert trained == of(model for model in recipe.models.values() if model.name in asked_for)


def needed(recipe, name):
    """A prediction and all that it is made of; other models of a recipe are for `--only`."""
    taught = recipe.data[recipe.models[name].data].distill if name in recipe.models else None
    sources = (*recipe.sources_of(name), *([taught] if taught else []))
    return {name, *(one for source in sources for one in needed(recipe, source))}


def test_models_that_share_data_share_their_preprocessing():
    assert kinds(graph_of("lyu2020"))["preprocess"] == 1
    assert [name for name in graph_of("lachinov2019") if name.startswith("preprocess")] == [
        "preprocess/brats/nnUNetPlans/3d_fullres",
        "preprocess/brats/BraTSPlans/lachinov_brain",
        "preprocess/distilled/nnUNetPlans/3d_fullres",
    ]
    assert kinds(graph_of("compare"))["convert"] == 2  # z-scores and percentiles


def test_a_second_stage_waits_for_every_fold_of_the_first_and_for_its_maps():
    jobs = graph_of("lyu2020", folds=(0,))
    stage1 = {f"train/stage1/fold_{fold}" for fold in range(5)}
    assert stage1 | {"maps/stage2"} <= set(jobs["train/stage2/fold_0"].after)
    assert not [name for name in jobs if name.startswith("train/stage2/") and name != "train/stage2/fold_0"]
    for name in ("stage1", "stage2"):  # a ranking wants both on the same cases
        job = jobs[f"predict/cv/{name}"]
        assert job.after[:2] == (f"train/{name}/fold_0", f"choose/{name}")
        assert "--cross-validation" in job.command
        assert "-f 0 -device" in " ".join(job.command)
        assert "--partial" in jobs[f"evaluate/{name}"].command


def test_two_second_stages_of_one_first_have_maps_and_folders_of_their_own():
    jobs = graph_of("lyu2020", only=("ensemble_21", "single_190"))
    single, multiple = jobs["maps/stage2_single"], jobs["maps/stage2"]
    assert single.result != multiple.result
    assert "-chk checkpoint_epoch_190.pth --next-stages lyu_stage2_single " in " ".join(single.command)
    assert "checkpoint_epoch_294.pth --next-stages lyu_stage2 " in " ".join(multiple.command)
    trainings = [jobs[f"train/{name}/fold_0"] for name in ("stage2", "stage2_single")]
    assert "maps/stage2" in trainings[0].after and "maps/stage2_single" in trainings[1].after
    assert len({one.result for one in trainings}) == 2
    assert stages_of("lyu_stage1") == {"next_stage": ["lyu_stage2", "lyu_stage2_single"]}


def test_predictions_of_one_model_share_its_training_and_say_what_differs():
    jobs = graph_of("lyu2020", only=("multiple_190", "ensemble_21"))
    assert {name.split("/")[1] for name in jobs if name.startswith("train/")} == {"stage1", "stage2"}
    one, many = (" ".join(jobs[f"predict/cv/{name}"].command) for name in ("stage2_on_190", "stage2_21"))
    assert "-chk chosen:1 -prev_tr BraTSVAETrainer " in one
    assert "-prev_chk checkpoint_epoch_190.pth --combine vote" in one, "combined as the model's own prediction"
    assert "-chk chosen:7 -prev_tr " in many and "-prev_chk chosen:3 --combine vote" in many
    alone = graph_of("lyu2020", only=("model_190",))
    assert not [name for name in alone if name.startswith("choose/")], "nothing here is chosen"
    assert "restore/final" not in jobs and "restore/final" in graph_of("lyu2020", only=("final",))


def test_only_what_is_asked_for_is_trained():
    jobs = graph_of("lyu2020", only=("model_254",))
    assert {name.split("/")[1] for name in jobs if name.startswith("train/")} == {"stage1"}
    assert [name for name in jobs if name.startswith("evaluate/")] == ["evaluate/model_254"]
    with pytest.raises(ValueError, match=r"--only model254: the recipe predicts .*did you mean 'model_254'"):
        graph_of("lyu2020", only=("model254",))
    with pytest.raises(ValueError, match="--only stage1_each: stage1_each is scored model by model"):
        graph_of("lyu2020", only=("stage1_each",))


def test_each_checkpoint_on_each_source_is_scored_alone_and_beside_the_report():
    jobs = graph_of("lyu2020", only=("final", "stage2_each"))
    members = [name for name in jobs if name.startswith("predict/cv/stage2_each.")]
    assert len(members) == 27
    assert jobs["evaluate/stage2_each"].after == (*members, "convert/brats")
    for name in ("rank/all", "report/all"):
        assert "stage2_each" not in " ".join(jobs.get(name, jobs["report/all"]).command).split("--spreads")[0]
    report = " ".join(jobs["report/all"].command)
    assert "--spreads stage2_each=results/stage2_each.json --paper lyu2020 " in report
    one = " ".join(jobs["predict/cv/stage2_each.254.best"].command)
    assert "-chk checkpoint_best.pth " in one and "-prev_chk checkpoint_epoch_254.pth " in one
    smoke = graph_of("lyu2020", only=("final", "stage1_each"), smoke=True)
    found = [" ".join(job.command) for name, job in smoke.items() if name.startswith("predict/cv/stage1_each.")]
    assert ["epoch_1.pth" in one for one in found] == [True, False]


def test_one_prediction_per_region_is_a_row_of_its_own():
    jobs = graph_of("hashemi2021")
    members = [f"predict/cv/{name}_2c" for name in ("whole_tumor", "tumor_core", "enhancing_tumor")]
    row = jobs["evaluate/binary_2c"]
    assert row.after == (*members, "convert/brats")
    folders = [str(jobs[name].result) for name in members]
    start = row.command.index(folders[0])
    assert list(row.command[start : start + 3]) == folders and "--one-per-region" in row.command
    assert "--one-per-region" not in jobs["evaluate/nested_2c"].command
    for name in ("rank/all", "report/all"):
        assert str(row.result) in jobs[name].command
    report = jobs["report/all"].command
    drawn = [word for word in report if word.endswith("=predictions/cv/nested_2c") or word.startswith("binary")]
    assert drawn == ["binary_2c", "binary", "nested_2c=predictions/cv/nested_2c"], "nothing to draw of a row"
    only = graph_of("hashemi2021", only=("binary",))
    assert {name.split("/")[1] for name in only if name.startswith("train/")} == {
        "whole_tumor", "tumor_core", "enhancing_tumor",
    }  # fmt: skip
    assert "evaluate/binary_2c" not in graph_of("hashemi2021", only=("nested",))


@pytest.mark.parametrize(("smoke", "fold"), [(False, 5), (True, 2), (False, -1)])
def test_a_fold_that_is_not_there_is_refused(smoke, fold):
    with pytest.raises(ValueError, match=f"--folds {fold}: .* has the folds 0 to {1 if smoke else 4}"):
        graph_of("lyu2020", folds=(0, fold), smoke=smoke)


@pytest.mark.parametrize("recipe", ["today", "isensee2020"])
def test_tuning_on_one_fold_is_refused_before_anything_is_trained(recipe):
    with pytest.raises(ValueError, match=r"final is tuned .* only fold 1; give two or more to --folds, or .*--only"):
        graph_of(recipe, folds=(1,))
    assert "tune/final" in graph_of(recipe, folds=(0, 1))
    assert graph_of(recipe, only=["three" if recipe == "isensee2020" else "together"], folds=(1,))


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
        text.replace("maps: [165,", "maps: [100, 165,").replace("{best: 1}\n    combine", "[best, 9]\n    combine")
    )
    jobs = graph_of(mine)
    epochs = jobs["train/stage1/fold_0"].environment["nnUNet_brats_snapshots"]
    assert epochs == "100", "beside those that its trainer keeps"
    assert jobs["train/stage2/fold_0"].environment == {"nnUNet_brats_snapshots": "9"}


def test_ties_are_settled_as_the_recipe_says(tmp_path):
    mine = tmp_path / "mine.yaml"
    text = (
        find_recipe("lyu2020").read_text().replace("combine: vote\n    gpus", "combine: vote\n    ties: text\n    gpus")
    )
    mine.write_text(text.replace("100], combine: vote}", "100], combine: probabilities}"))
    jobs = graph_of(mine)
    for name in ("predict/stage2", "predict/cv/stage2", "predict/cv/stage2_on_190", "choose/stage2"):
        assert "--combine vote --ties text" in " ".join(jobs[name].command)
    assert "--ties" not in " ".join(jobs["predict/cv/stage1_9"].command)


def test_a_filtered_model_waits_for_the_one_that_judges_the_cases():
    jobs = graph_of("henry2020")
    assert "filter/a_unet" in jobs["train/a_filtered/fold_0"].after
    assert {f"train/a_unet/fold_{fold}" for fold in range(5)} <= set(jobs["filter/a_unet"].after)
    assert kinds(jobs)["preprocess"] == 2


def test_a_pool_waits_for_its_candidates_which_are_not_predicted_beside_it():
    jobs = graph_of("henry2020")
    trainings = {f"train/{model}/fold_{fold}" for model in ("a_unet", "a_cbam", "a_filtered") for fold in range(5)}
    of_test = {name for name in jobs if name.startswith("predict/") and not name.startswith("predict/cv/")}
    assert of_test == {"predict/a", "predict/b"}
    for name, where in (("predict/a", "-i"), ("predict/cv/a", "--cross-validation")):
        job, words = jobs[name], " ".join(jobs[name].command)
        assert trainings | {"choose/a"} <= set(job.after)
        assert words.startswith("nnunet_brats predict ") and "--models" in words
        assert "-f 0 1 2 3 4 " in words
        assert "--best 2 --by dice --preset brats2020 " in words
        chosen = " ".join(jobs["choose/a"].command)
        assert chosen.replace("choose", "predict").split(" --best")[0].split("-d ")[1] in words, "the same candidates"
        assert "BraTSDeepSupervisionCBAMTrainer:henry BraTSDeepSupervisionTrainer:henry_filtered" in words
        assert where in job.command
    assert (jobs["predict/a"].needs.gpus, jobs["predict/cv/a"].needs.gpus) == (1, 1)
    assert {f"evaluate/{name}" for name in ("a_unet", "a_cbam", "a_filtered", "a", "merged")} <= set(jobs)
    assert set(jobs["ensemble/test/merged"].after) == {"predict/a", "predict/b"}
    assert "-f 0 " in " ".join(graph_of("henry2020", folds=(0,))["predict/a"].command)


def test_checkpoints_are_chosen_once_the_folds_are_trained_and_before_they_predict(monkeypatch):
    jobs = graph_of("lyu2020")
    assert set(jobs["choose/stage1"].after) == {*(f"train/stage1/fold_{fold}" for fold in range(5)), "convert/brats"}
    assert {"choose/stage1", "train/stage2/fold_4"} <= set(jobs["choose/stage2"].after)
    for name in ("choose/stage2", "predict/stage2", "predict/cv/stage2"):
        assert {"choose/stage1", "choose/stage2"} - {name} <= set(jobs[name].after)
        assert "-prev_chk chosen" in " ".join(jobs[name].command)
    assert "-chk chosen:1 " in " ".join(jobs["predict/cv/stage1"].command)
    assert jobs["choose/stage1"].needs.gpus == 1
    zhou = graph_of("zhou2020")
    assert "-chk checkpoint_epoch_500.pth " in " ".join(zhou["choose/cga_10"].command)
    assert zhou["train/cga_10/fold_9"].environment == {"nnUNet_brats_snapshots": "500 600 700 800 900"}
    monkeypatch.setenv("nnUNet_brats_snapshots", "50 900")  # a job's environment takes the place of the user's
    kept = graph_of("zhou2020")["train/cga_10/fold_9"].environment["nnUNet_brats_snapshots"]
    assert kept == "50 500 600 700 800 900"
    smoke = " ".join(graph_of("zhou2020", smoke=True)["choose/cga_10"].command)
    assert "-chk checkpoint_epoch_1.pth checkpoint_epoch_2.pth checkpoint_final.pth --best 1 " in smoke


def test_predictions_take_so_many_of_one_choice():
    for only in ((), ("final",), ("ensemble_15", "ensemble_27")):  # whatever is asked for, the choice is the same
        jobs = graph_of("lyu2020", only=only)
        for stage in ("stage1", "stage2"):
            assert "--best 9 --by dice " in " ".join(jobs[f"choose/{stage}"].command)
        assert "-prev_chk chosen:1 " in " ".join(jobs["choose/stage2"].command), "judged as stage 2 itself predicts"
    jobs = graph_of("lyu2020")
    assert "--best 1 " in " ".join(jobs["choose/stage2_single"].command)
    expected = dict(stage1=1, stage1_9=9, stage2_15=5, stage2_27=9, stage2_single=1)
    for name, number in expected.items():
        job = jobs[f"predict/cv/{name}"]
        assert dict(options_of(job.command))["-chk"] == (f"chosen:{number}",)
        assert f"choose/{name.split('_')[0] if name != 'stage2_single' else name}" in job.after
    smoke = graph_of("lyu2020", smoke=True)
    for name, number in expected.items():  # two epochs: the best two of them, where more are asked for
        words = dict(options_of(smoke[f"predict/cv/{name}"].command))["-chk"]
        assert words == (f"chosen:{min(number, 2)}",)
    assert "--best 2 " in " ".join(smoke["choose/stage1"].command)


def test_data_sets_of_one_recipe_keep_patients_in_their_folds():
    jobs = graph_of("henry2020")
    command = jobs["convert/minmax"].command
    assert command[command.index("--same-patients-as") + 1] == "137"
    assert "percentile-minmax" in command
    assert "convert/zscore" in jobs["convert/minmax"].after


def test_scores_wait_for_the_label_maps_that_they_are_measured_by():
    jobs = graph_of("zhou2020", only=("final",))
    assert "convert/brats" not in jobs, "nothing is trained on it"
    assert {"convert/ten"} < set(jobs["evaluate/final"].after)
    assert "raw/Dataset138_BraTS2020_ten/labelsTs" in jobs["evaluate/final"].command
    both = graph_of("zhou2020", only=("omnet", "final"))
    assert "convert/brats" in both["evaluate/final"].after
    assert "raw/Dataset137_BraTS2020/labelsTs" in both["evaluate/final"].command


def test_a_student_learns_from_further_folders_where_they_are_given():
    alone = graph_of("lachinov2019")
    assert "--foreign" not in alone["distill/distilled"].command
    assert "convert/earlier" not in alone and "convert/labelled" not in alone
    also = {name: Path(f"/{name}") for name in ("earlier", "labelled", "evaluated")}
    jobs = graph_of("lachinov2019", also=also)
    command = " ".join(jobs["distill/distilled"].command)
    assert "--pseudo predictions/test/teachers raw/Dataset137_BraTS2020/imagesTs" in command
    assert "--pseudo predictions/test-earlier/teachers raw/Dataset139_BraTS2020_earlier/imagesTs" in command
    assert command.endswith("--foreign 140 --exclude /evaluated")
    assert jobs["convert/labelled"].command[:3] == ("nnunet_brats", "convert", "/labelled")
    predicted = jobs["predict/test-earlier/no_new_net"]
    assert {"convert/earlier", "train/no_new_net/fold_0"} <= set(predicted.after)
    assert predicted.command[3] == "raw/Dataset139_BraTS2020_earlier/imagesTs"
    assert graph_of("lachinov2019", also=also, unlabelled=False)["distill/distilled"].command.count("--pseudo") == 1
    assert [alone[name].command for name in alone if name.startswith("train/")] == [
        jobs[name].command for name in jobs if name.startswith("train/")
    ], "the same data sets have the same numbers"


def test_a_student_is_trained_on_all_data_and_once_more_without_what_scores_it():
    jobs = graph_of("lachinov2019")
    students = {name for name in jobs if name.startswith("train/student")}
    assert students == {"train/student/fold_0", "train/student_all/fold_all"}
    assert "--partial" in jobs["evaluate/student"].command, "cases that are for validation alone are predicted"
    assert "predict/cv/student_all" not in jobs and "train/student_all/fold_all" in jobs["predict/student_all"].after
    with pytest.raises(ValueError, match="--only final: all cases train, so none is left to score"):
        graph_of("lachinov2019", only=("final",))


def test_a_student_needs_unlabelled_cases():
    with pytest.raises(ValueError, match="the source has no cases without label, which 'distilled' is to learn from"):
        graph_of("lachinov2019", unlabelled=False)
    assert "train/no_new_net/fold_0" in graph_of("lachinov2019", only=("teachers",), unlabelled=False)


def test_without_unlabelled_cases_nothing_is_predicted_but_the_folds():
    jobs = graph_of("baseline", unlabelled=False)
    assert all(name.startswith("predict/cv/") for name, job in jobs.items() if job.kind == "predict")
    assert "restore" not in kinds(jobs)
    assert "report/all" in jobs


def test_the_batch_of_each_configuration_is_fitted_to_its_own_number_of_gpus():
    plans = graph_of("compare", gpu_memory_gb=24)["configure/brats"].command
    assert plans[plans.index("--gpus") + 1 :] == ("lyu_stage1=4,lyu_stage2=4,lyu_stage2_single=4",), (
        "the others train on one"
    )
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
    assert "--save_probabilities" not in lyu["predict/cv/stage2"].command
    for name in ("predict/tumor_core", "predict/cv/tumor_core"):
        assert "--save_probabilities" in hashemi[name].command


@pytest.mark.parametrize("recipe", published_recipes())
def test_the_cross_validation_of_a_model_is_its_prediction_with_the_folds_of_the_cases(recipe):
    """Tiling, symmetries, checkpoints, votes: word for word those of the test cases."""
    jobs = graph_of(recipe)
    pairs = [(name, f"predict/cv/{name.split('/')[1]}") for name in jobs if name.count("/") == 1 and "predict" in name]
    assert pairs
    for name, cv in pairs:
        if cv in jobs:
            places = {"-o", "-i", "-f"}
            test, own = (dict(options_of(jobs[one].command)) for one in (name, cv))
            assert own.pop("--cross-validation") == ()
            assert own.keys() == test.keys()
            assert {option for option in own if own[option] != test[option]} <= places


def options_of(command):
    """-o -> its words, and so on."""
    marks = [i for i, word in enumerate(command) if word.startswith("-")]
    for i, end in zip(marks, [*marks[1:], len(command)], strict=True):
        yield command[i], command[i + 1 : end]


def test_our_plans_in_folders_of_others_are_not_overwritten():
    assert "--overwrite" in graph_of("lyu2020")["configure/brats"].command
    elsewhere = graph_of("lyu2020", preprocessed=Path("/data/nnUNet_preprocessed"))
    assert "--overwrite" not in elsewhere["configure/brats"].command
