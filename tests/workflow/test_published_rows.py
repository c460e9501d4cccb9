"""The rows of the papers' tables: each has a prediction of the paper's recipe beside it, or a reason why not."""

import re
from pathlib import Path

import pytest

from nnunet_brats_ext import papers
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.workflow.recipe import load_recipe

DOCS = Path(__file__).parents[2] / "docs" / "recipes"
TEXTS = Path(__file__).parents[3] / "shared" / "papers"


def text_of(key):
    """The text of a paper; the newer ones have none there."""
    return next(iter(TEXTS.glob(f"{key[:-4]}_*.txt")), None)


WITH_ROWS = [key for key, paper in papers.find_papers(external="").items() if paper.results]
ELSEWHERE = {("lachinov2019", "Table 3")}  # is not in the text that we have
ROWS = [
    (key, row)
    for key in WITH_ROWS
    for row in papers.find_paper(key).results
    if (text_of(key) or not TEXTS.is_dir()) and (key, row.table) not in ELSEWHERE
]


@pytest.mark.parametrize("key", WITH_ROWS)
def test_every_row_is_scored_by_the_recipe_or_says_why_not(key):
    paper = papers.find_paper(key)
    recipe = load_recipe(paper.recipe)
    assert recipe.published == paper
    card = " ".join((DOCS / f"{key}.md").read_text().split())
    for row in paper.results:
        assert bool(row.prediction) != bool(row.absent), row
        assert not row.prediction or row.prediction in recipe.evaluated, row
        assert not row.absent or row.absent in card, row
        many = row.prediction in recipe.predictions and recipe.predictions[row.prediction].each
        assert many == (row.over == "models"), row
        if row.trainer and row.prediction:
            assert row.trainer in {model.trainer for model in recipe.models_of(row.prediction)}, row
    named = [(row.table, row.system, row.data) for row in paper.results]
    assert len(set(named)) == len(named)


@pytest.mark.parametrize(("key", "row"), ROWS, ids=lambda value: getattr(value, "system", value))
def test_its_values_stand_in_the_paper(key, row):
    assert row.columns
    values = [value for one in (row.scores, row.deviations, row.medians) for value in _values(one)]
    values += [end for pair in _values(row.ranges) for end in pair]
    if not (text := text_of(key)):
        pytest.skip("needs the text of the paper")
    printed = {float(number) for number in re.findall(r"\d+(?:\.\d+)?", text.read_text())}
    assert all({value, round(100 * value, 2)} & printed for value in values), values


def _values(scores):
    return [value for metrics in scores.values() for value in metrics.values()]


@pytest.mark.parametrize("key", WITH_ROWS)
def test_a_dry_run_lists_exactly_them(key, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    words = ["--scale", "smoke", "-device", "cpu", "-o", str(tmp_path / "run"), "--dry-run"]
    assert main(["run", key, *words]) == 0
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    rows = [[row.table, row.system, row.data, row.prediction or row.absent] for row in papers.find_paper(key).results]
    start = lines.index(rows[0])
    assert [line for line in lines[start:] if len(line) == 4] == rows


def test_a_dry_run_lists_them_and_says_which_are_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    words = ["--scale", "smoke", "-device", "cpu", "-o", str(tmp_path / "run"), "--dry-run"]
    assert main(["run", "henry2020", *words, "--only", "merged", "a_unet"]) == 0
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    for row in papers.find_paper("henry2020").results:
        left_out = "" if row.prediction in ("merged", "a_unet") else " (not scored in this run)"
        assert lines.count([row.table, row.system, row.data, row.prediction + left_out]) == 1
    assert main(["run", "henry2020", *words, "--only", "merge"]) == 1
    assert "--only merge: the recipe predicts" in capsys.readouterr().err
