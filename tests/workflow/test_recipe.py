"""Recipes: what is wrong with one is said before anything runs, with its file and its line."""

import re
from pathlib import Path

import pytest
from workflow_runs import SMALL, graph_of

from nnunet_brats_ext import papers
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.dataset_conversion.conversion import NORMALISATIONS
from nnunet_brats_ext.evaluation.presets import find_preset
from nnunet_brats_ext.inference.options import COMBINATIONS
from nnunet_brats_ext.predictions.ensemble import METHODS, SPACES
from nnunet_brats_ext.workflow.recipe import COMPARE, TODAY, load_recipe, published_recipes
from nnunet_brats_ext.workflow.recipe_parts import DEFAULT_FOLDS, Choice
from nnunet_brats_ext.workflow.recipe_text import HERE


def test_every_paper_has_a_recipe():
    assert all(paper.recipe for paper in papers.find_papers(external="").values())
    assert set(published_recipes()) == {*papers.find_papers(), COMPARE.stem, TODAY.stem}


def test_neither_the_schema_nor_the_comparison_lists_names():
    """Papers, trainers, configurations, methods, tilings and symmetries have their homes elsewhere."""
    names = {*papers.find_papers(), *papers.trainers(), *papers.configurations(), *papers.published_rules()}
    names |= {*papers.tilings(), *papers.symmetries(), *METHODS}
    names |= {*COMBINATIONS, *SPACES, *NORMALISATIONS}
    comparison = "\n".join(line for line in COMPARE.read_text().splitlines() if not line.startswith("#"))
    for text in ((HERE / "recipe.schema.json").read_text(), comparison):
        assert not names & {word.strip('"') for word in re.findall(r'"[\w-]+"', text)}
    assert not names & set(re.findall(r"[\w-]+", comparison))


def test_the_comparison_takes_every_recipe_in_the_same_folds():
    compared = load_recipe(COMPARE)
    expected = []
    for name, path in published_recipes().items():
        if path not in (COMPARE, TODAY):
            recipe = load_recipe(path)
            expected += [f"{name}.{one}" for one in ([recipe.compared] if recipe.compared else recipe.submissions)]
    assert list(compared.evaluated) == expected == list(compared.submissions)
    data = [compared.data[model.data] for one in expected for model in compared.models_of(one)]
    assert {(one.folds, one.hold_out, one.validation) for one in data} == {(DEFAULT_FOLDS, 0, 0)}
    assert not any(model.on_all for one in expected for model in compared.models_of(one))


def test_todays_systems_are_averaged_and_tuned_by_lesion_wise_ranking():
    recipe = load_recipe(TODAY)
    members = recipe.ensembles["together"].of
    by = {papers.trainers()[recipe.models[name].trainer].paper for name in members}
    assert by == {"isensee2020", "luu2021", "roy2023", "baseline"}
    assert {recipe.predictions[name].choice for name in members} == {Choice(1, of=(700, 800, 900, "best", "final"))}
    assert find_preset(recipe.preset, recipe.cohort).lesions
    regions = [step.split(":")[1].split("=")[0] for step in recipe.postprocessing["final"].tune["grid"]]
    assert sorted(regions) == ["ET", "TC", "WT"]
    assert recipe.submissions == ("final",)


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
            (
                "3d_fullres, plans: nnUNetPlans}",
                "henry_b, gpus: 3}\n  two: {trainer: BraTSVAETrainer, configuration: henry_b}",
            ), 4,
            "`gpus` 1 of two is not that of one, 3; henry_b is fitted to one number of them",
        ),
        (
            ("submission: one", "ensembles:\n  a: {of: [one, b], method: mean}\n  b: {of: [a, one], method: mean}\n"
             "submission: a"),
            5, "'a' would be made of itself",
        ),
        (
            ("submission: one", "ensembles:\n  a: {of: [one, three], method: mean}\nsubmission: a"), 5,
            "'three' is none of one, a",
        ),
        (
            ("plans: nnUNetPlans}", "combine: vote}\n  two: {trainer: BraTSVAETrainer, configuration: 2d}\nensembles:\n"
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
  one: {trainer: BraTSVAETrainer, configuration: henry}
  two: {trainer: BraTSVAETrainer, configuration: henry_b}
  three: {trainer: BraTSBaselineTrainer, configuration: henry}
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
        (("best: 2", "by: ET"), 11, "`by` is what `best` is chosen by"),
        (("best: 2", "best: 2\n    by: NCR"), 12, "--by NCR: no objective 'NCR'"),
        (("best: 2", "best: 0"), 11, "0 is less than the minimum of 1"),
        (("best: 2", "best: 2\n    weights: [1, 1, 1]"), 12, "`weights` does not go with `best`"),
        (("best: 2", "best: 2\n    space: labels"), 12, "`space` does not go with `best`"),
        (("y_b}", "y_b, data: minmax}"), 10, "`data` minmax of two is not that of one, brats; `best` compares"),
        (("y_b}", "y_b, tta: none}"), 10, "`tta` none of two is not that of one, None"),
        (("y_b}", "y_b, folds: [0]}"), 10, "`folds` (0,) of two is not that of one, None"),
        (("y_b}", "y_b, checkpoints: [best]}"), 10, "two has a previous stage or checkpoints of its own"),
        (
            ("submission", "predictions:\n  few: {of: two, checkpoints: {best: 1}}\nsubmission"), 10,
            "few takes checkpoints of two that are chosen among these alone, and a fold keeps one choice",
        ),
        (("b}", "b, combine: vote}"), 10, "two has no probabilities to average"),
        (
            ("three]\n    best: 2", "both]\n    best: 2\n  both: {method: mean, of: [one, two]}"), 10,
            "both is no model; `best` chooses among those",
        ),
    ],
)  # fmt: skip
def test_the_models_of_a_pool_differ_only_in_what_they_have_learnt(tmp_path, change, line, words):
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
        (("henry}", "hnry}"), 5, "'hnry' is no configuration of BraTSPlans, which has "),
        (("henry}", "henry_filtered}"), 5, "'henry_filtered' is no configuration of BraTSPlans"),
        (("henry}", "henry_filtered, filtered: one}"), 5, "'henry_filtered' is no configuration of BraTSPlans"),
        (("henry}", "lyu_stage1_filtered, filtered: one}"), None, ""),
        (("henry}", "mine, plans: Mine}"), None, ""),
        (("henry}", "henry, checkpoints: {best: 2, of: [final, 10], by: ranking}}"), None, ""),
        (("henry}", "henry, checkpoints: {best: 3, of: [final, 10]}}"), 5, "the best 3 of 2 checkpoints, final, 10;"),
        (("lyu_stage1}", "lyu_stage1, checkpoints: {best: 12}}"), None, ""),
        (
            ("lyu_stage1}", "lyu_stage1, epochs: 190, checkpoints: {best: 6}}"), 4,
            "the best 6 of 5 checkpoints, 165, 184, 190, best, final; name more in `of`",
        ),
        (("henry}", "henry, checkpoints: {best: 1, by: NCR}}"), 5, "--by NCR: no objective 'NCR'; there are ranking"),
        (("henry}", "henry, epochs: 9, checkpoints: {best: 1, of: [10]}}"), 5, "epoch 10 is beyond the `epochs` of"),
        (("henry}", "henry, epochs: 9, checkpoints: [final, 10]}"), 5, "epoch 10 is beyond the `epochs` of two, 9"),
        (("lyu_stage1}", "lyu_stage1, epochs: 9}"), None, ""),
        (
            ("lyu_stage1}", "lyu_stage1, epochs: 9}\n  five: {trainer: BraTSAttentionVAETrainer, configuration: "
             "henry_b, previous_stage: one, maps: [3, 10]}"),
            5, "epoch 10 is beyond the `epochs` of one, 9",
        ),
        (("henry}", "henry, folds: [0, 2]}"), 9, "two has folds 0, 2 of 5, one all 5; an ensemble needs the same"),
        (("henry}", "henry, folds: [4, 3, 2, 1, 0]}"), None, ""),
        (("brats: {}", "brats: {hold_out: 0.1, validation: 0.1}"), None, ""),
        (("brats: {}", "brats: {hold_out: 0}"), 2, "data.brats.hold_out: 0 is less than or equal to the minimum of 0"),
        (("henry}", "henry, folds: all}"), 5, "all cases train, so none is left to score; let its"),
        (("henry}", "henry, folds: all, checkpoints: {best: 1}}"), 5, "all cases train, so none is left to choose"),
        (("henry}", "henry, folds: [all]}"), 5, "models.two.folds: ['all'] is not valid"),
        ((E, "e: {method: mean, of: [one, vote]}"), 10, "vote has no probabilities to average"),
        ((E, "e: {method: nested, of: [one, two, p]}"), 10, "p has no probabilities to average"),
        ((E, "e: {method: majority, of: [one, two, p], weights: [1, 1, 2]}"), None, ""),
        ((E, "e: {method: two-pass, of: [one, two], weights: [1, 1]}"), 10, "method two-pass takes no `weights`"),
        ((E, "e: {method: majority, of: [one, two], space: labels}"), 10, "method majority takes no `space`"),
        ((E, "e: {method: mean, of: [one, two], ties: text}"), 10, "method mean takes no `ties`"),
        ((E, "e: {method: majority, of: [one, two], ties: text}"), None, ""),
        (("brats2023}", "brats2023, one_per_region: {r: [one, two, three]}}"), None, ""),
        (("brats2023}", "brats2023, one_per_region: {r: [one, two]}}"), 13, "2 predictions; brats2023 scores WT, TC,"),
        (("brats2023}", "brats2023, one_per_region: {r: [one, two, tree]}}"), 13, "'tree' is none of one, two, three,"),
        (("brats2023}", "brats2023, one_per_region: {e: [one, two, three]}}"), 13, "'e' is the name of a prediction"),
        (("henry}", "henry, combine: vote, ties: paper}"), 5, "'paper' is none of text, release"),
        (("henry}", "henry, ties: text}"), 5, "`ties` are those of a vote; add `combine: vote`, or leave it out"),
        ((E, "e: {method: two-pass, of: [one, two, three]}"), 10, "two-pass takes 2 members, not 3"),
        ((E, "e: {method: nested, of: [one, two]}"), 10, "nested takes 3 members, not 2"),
        ((P, "p: {of: one, rules: [lyu2021]}"), 12, "no rules called 'lyu2021'"),
        ((P, "p: {of: one, rule: [small-et]}"), 12, "rule 1, small-et: lacks a threshold"),
        (
            (P, "p: {of: vote, rule: ['unlikely-components:ET=0.6']}"), 12,
            "the rules need probabilities, and vote has only label maps",
        ),
        (("brats2023", "brats2022"), 13, "no preset 'brats2022'; there are brats2012"),
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


STUDENT = """title: a student
data:
  brats: {}
  more: {source: more}
  distilled: {distill: one, unlabelled: [brats, more], foreign: [more], exclude: [evaluated]}
models:
  one: {trainer: BraTSBaselineTrainer, configuration: 3d_fullres, plans: nnUNetPlans}
  two: {trainer: BraTSBaselineTrainer, configuration: 3d_fullres, plans: nnUNetPlans, data: distilled}
submission: two
"""


@pytest.mark.parametrize(
    ("change", "line", "words"),
    [
        (("foreign: [more]", "foreign: [more2]"), 5, "'more2' is none of brats, more; did you mean 'more'?"),
        (("unlabelled: [brats, more]", "unlabelled: [distilled]"), 5, "'distilled' is none of brats, more"),
        (("brats: {}", "brats: {foreign: [more]}"), 3, "data.brats: 'distill' is a dependency of 'foreign'"),
        (("brats: {}", "brats: {source: mine}"), 3, "the first data set is that of the source"),
        (("[evaluated]", "['e v']"), 5, "name 'e v': a letter, then letters"),
    ],
)
def test_a_student_names_data_sets_and_folders_that_there_are(tmp_path, change, line, words):
    file = tmp_path / "mine.yaml"
    file.write_text(STUDENT)
    assert load_recipe(file).further_folders == ("more", "evaluated")
    assert change[0] in STUDENT
    file.write_text(STUDENT.replace(*change))
    with pytest.raises(ValueError, match=r"mine\.yaml") as error:
        load_recipe(file)
    assert f"{file}:{line}: " in str(error.value)
    assert words in str(error.value)


TWO_WAYS = """title: two ways
models:
  one: {trainer: BraTSVAETrainer, configuration: lyu_stage1, checkpoints: {best: 2}}
  two: {trainer: BraTSAttentionVAETrainer, configuration: lyu_stage2, previous_stage: early, tta: none, epochs: 100}
predictions:
  early: {of: one, checkpoints: [190]}
  late: {of: two, checkpoints: [57], folds: [0, 1, 2, 3, 4]}
  all: {of: one, checkpoints: [165, final], each: true}
submission: late
"""
LATE = "late: {of: two, checkpoints: [57], folds: [0, 1, 2, 3, 4]}"


@pytest.mark.parametrize(
    ("change", "line", "words"),
    [
        (("of: one, checkpoints: [190]", "of: onne, checkpoints: [190]"), 6, "'onne' is none of one, two; did you"),
        (("  early:", "  two:"), 6, "'two' is the name of two predictions"),
        (("[57]", "[157]"), 7, "epoch 157 is beyond the `epochs` of two, 100"),
        (("folds: [0,", "folds: [7,"), 7, "fold 7 of two, which has 0, 1, 2, 3, 4"),
        ((LATE, "late: {of: two, previous_stage: two}"), 7, "prediction of two; the previous stage of two is one"),
        ((LATE, "late: {of: one, previous_stage: one}"), 7, "one is a prediction of one; one has no previous stage"),
        ((LATE, "late: {of: two, tta: miror}"), 7, "'miror' is none of paper"),
        ((LATE, "late: {of: one, checkpoints: {best: 3}}"), None, ""),
        (
            (LATE, "late: {of: one, checkpoints: {best: 3, by: ET}}"), 7,
            "`by` ET of late is not that of one, dice: a fold of one keeps one choice; say the same",
        ),
        (
            (LATE, "late: {of: one, checkpoints: {best: 1, of: [165, final]}}"), 7,
            "`of` 165, final of late is not that of one, every checkpoint",
        ),
        ((LATE, "late: {of: one, tta: none}"), None, ""),
        (("previous_stage: early", "previous_stage: all"), 4, "'all' is none of one, two, early, late"),
        (("submission: late", "submission: all"), 9, "'all' is none of one, two, early, late"),
        (("[165, final], each", "{best: 1}, each"), 8, "`each` needs checkpoints by name"),
        (("checkpoints: [165, final], each", "each"), 8, "predictions.all: 'checkpoints' is a dependency of 'each'"),
        (("two, checkpoints", "two, trainer: X, checkpoints"), 7, "unknown key 'trainer'"),
    ],
)  # fmt: skip
def test_a_prediction_is_a_trained_model_and_how_it_predicts(tmp_path, change, line, words):
    file = tmp_path / "mine.yaml"
    file.write_text(TWO_WAYS)
    recipe = load_recipe(file)
    assert recipe.predictions["late"].tta == "none", "what it does not say is as the model's own"
    assert recipe.refined_by(recipe.predictions["late"]).name == "early"
    assert change[0] in TWO_WAYS
    file.write_text(TWO_WAYS.replace(*change))
    if line is None:
        load_recipe(file)
        return
    with pytest.raises(ValueError, match=r"mine\.yaml") as error:
        load_recipe(file)
    assert f"{file}:{line}: " in str(error.value)
    assert words in str(error.value)


def test_all_cases_train_and_those_that_are_held_out_are_scored(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("data: {brats: {hold_out: 25}}\n" + SMALL.replace("nnUNetPlans}", "nnUNetPlans, folds: all}"))
    jobs = graph_of(file, unlabelled=False)
    assert [name for name in jobs if name.startswith("train")] == ["train/one/fold_all"]
    assert " all " in " ".join(jobs["train/one/fold_all"].command)
    assert "--hold-out 25" in " ".join(jobs["convert/brats"].command)
    assert "predict/one" in jobs and not [name for name in jobs if name.startswith("predict/cv")]
    words = " ".join(jobs["evaluate/one"].command)
    assert "/labelsTs predictions/test/one " in words and "--partial" in words
    assert "imagesTs --predictions one=predictions/test/one" in " ".join(jobs["report/all"].command)
    assert graph_of(file, smoke=True)["convert/brats"].command[-2:] == ("--hold-out", "1")


def test_a_single_fold_is_trained_where_its_validation_cases_are_a_share(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("data: {brats: {validation: 0.1}, minmax: {validation: 0.1}}\n" + SMALL)
    jobs = graph_of(file)
    assert [name for name in jobs if name.startswith("train")] == ["train/one/fold_0"]
    assert "--validation 0.1" in " ".join(jobs["convert/brats"].command)
    assert "--folds" not in jobs["convert/brats"].command
    assert "evaluate/one" in jobs and "predict/cv/one" in jobs


def test_what_is_scored_together_has_the_same_folds(tmp_path):
    file = tmp_path / "mine.yaml"
    two = "}\n  two: {trainer: BraTSVAETrainer, configuration: henry, folds: [1]}\n"
    file.write_text(SMALL.replace("}\n", two))
    with pytest.raises(ValueError, match=r"two has folds 1 of 5, one all 5; a ranking needs the same") as error:
        load_recipe(file)
    assert f"{file}:1: " in str(error.value)
    file.write_text(SMALL.replace("}\n", two) + "evaluation: {of: [two]}\n")
    assert load_recipe(file).evaluated == ("two",)


def test_the_example_of_the_guide_is_a_recipe(tmp_path):
    guide = Path(__file__).parents[2] / "docs" / "cluster.md"
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


def test_an_unknown_recipe_is_answered_with_the_known_ones(capsys):
    assert main(["run", "lyu2021", "somewhere"]) == 1
    said = capsys.readouterr().err
    assert f"there are {', '.join(published_recipes())}" in said
    assert "did you mean 'lyu2020'?" in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (bytes(range(256)), "is no text in UTF-8"),
        (b"\x89PNG\r\n" + b"\x00" * 10, "is no text in UTF-8"),
        (b"title: [", "is no YAML"),
        (b"title: 2020-13-99", "is no YAML"),
        (b"a: 1\n---\nb: 2", "is no YAML"),
        (b"just words", "should hold keys and values"),
        (b"", "should hold keys and values"),
        (b"[" * 3000 + b"]" * 3000, "is nested too deeply"),
        (b"title: x\nmodels: &m\n  a: *m\n", "a value that holds itself"),
        (b"title: " + b"x" * 1_000_001, "far more than a recipe"),
        (b"1: x", ":1: 1 is no name"),
        (b"title: x\nyes: y", ":2: yes is no name"),
        (b"? [a]\n: x", "is no YAML"),
        (b"a: &a [x, x, x, x, x, x, x, x]\n" + b"".join(
            b"%c: &%c [%s]\n" % (letter, letter, b", ".join([b"*%c" % (letter - 1)] * 8)) for letter in b"bcdefgh"
        ), "too many for a recipe"),
        (SMALL.encode() + b"gpu_memory_gb: .nan\n", ":5: gpu_memory_gb: nan is no number"),
        (SMALL.encode() + b"gpu_memory_gb: .inf\n", ":5: gpu_memory_gb: inf is no number"),
        (b"title: x\ninclude: some\n", ":2: include: 'some' is neither a list of recipes nor the word all"),
    ],
)  # fmt: skip
def test_what_is_no_recipe_at_all_is_refused_with_its_name(tmp_path, capsys, text, words):
    file = tmp_path / "mine.yaml"
    file.write_bytes(text)
    assert main(["run", str(file), "somewhere"]) == 1
    said = capsys.readouterr().err
    assert str(file) in said
    assert words in said


@pytest.mark.parametrize(
    ("change", "line", "words"),
    [
        (("BraTSBaselineTrainer", "BraTSBaselineTrainr"), 3, "'BraTSBaselineTrainr'; did you mean 'BraTSBaselin"),
        (("BraTSBaselineTrainer", "nnUNetTrainr"), 3, "no trainer 'nnUNetTrainr'; did you mean 'nnUNetTrainer'?"),
        (("BraTSBaselineTrainer", "nnUNetTrainer"), None, ""),
        (("plans: nnUNetPlans", "tiling: slidin"), 3, "'slidin' is none of paper, sliding"),
        (("plans: nnUNetPlans", "tta: miror"), 3, "; did you mean 'mirror'?"),
        (("plans: nnUNetPlans", "combine: votes"), 3, "'votes' is none of logits, probabilities, vote"),
        (("title:", "data: {brats: {normalise: minmax}}\ntitle:"), 1, "'minmax' is none of percentile-minmax"),
        (
            ("submission: one", "ensembles:\n  e: {method: mean, of: [one, one2], space: label}\nsubmission: one"), 5,
            "'label' is none of regions, labels",
        ),
        (
            ("submission: one", "ensembles:\n  e: {method: means, of: [one, one2]}\nsubmission: one"), 5,
            "'means' is none of mean, majority",
        ),
    ],
)  # fmt: skip
def test_names_that_stand_for_nothing_are_found_with_the_nearest_that_does(tmp_path, change, line, words):
    file = tmp_path / "mine.yaml"
    file.write_text(SMALL.replace(*change))
    if line is None:
        load_recipe(file)
        return
    with pytest.raises(ValueError, match=r"mine\.yaml") as error:
        load_recipe(file)
    assert f"{file}:{line}: " in str(error.value)
    assert words in str(error.value)
