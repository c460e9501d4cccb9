"""The pages are true: the README's table, every command line in them, links, and the site."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from page_blocks import write_files

from nnunet_brats_ext.cli.parser import build_parser
from nnunet_brats_ext.cli.setup import readme_table
from nnunet_brats_ext.cli.verbs import GROUPS, find_verb

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARKS = re.compile(r"<!-- trainers: .*? -->\n(.*?)<!-- end of trainers -->", re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """Every `nnunet_brats VERB ...` in the bash blocks of a page, as words; what the page assigns is filled in."""
    found = []
    text = page.read_text()
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for name, value in re.findall(r'^(\w+)="?(.*?)"?$', text, re.MULTILINE):
            block = re.sub(rf"\$({name}\b|{{{name}}})", value, block)
        lines = block.replace("\\\n", " ").splitlines()
        for line in lines:
            for part in re.split(r"(?:;|&&|\bdo\b|\bdone\b)", line):
                words = shlex.split(part, comments=True)
                while words and "=" in words[0] and not words[0].startswith("-"):
                    words = words[1:]  # variables in front of a command
                if words[:1] == ["nnunet_brats"] and len(words) > 1:
                    found.append(words[1:])
    return found


COMMANDS = [(page, words) for page in PAGES for words in commands(page)]


def test_the_readmes_table_is_that_of_the_papers():
    (table,) = MARKS.findall((ROOT / "README.md").read_text())
    assert table.strip() == readme_table(), "stale: paste the output of `nnunet_brats papers --markdown` into README.md"


def test_the_readmes_list_of_commands_has_every_verb():
    table = (ROOT / "README.md").read_text().split("## All commands")[1].split("\n\n")[2]
    named = set(re.findall(r"`([a-z-]+)", table))
    assert {verb.name for verbs in GROUPS.values() for verb in verbs if not verb.hidden} <= named


@pytest.fixture
def own_papers(tmp_path, monkeypatch) -> None:
    """The papers that docs/extending.md writes, which commands name."""
    write_files("extending.md", tmp_path)
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "my_trainers"))


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=lambda value: value.stem if isinstance(value, Path) else None)
def test_every_command_in_the_pages_can_be_parsed(page, words, own_papers):
    verb = find_verb(words[0])
    assert verb and not verb.hidden, f"{page.name}: there is no verb {words[0]!r}"
    parser = build_parser(verb.load_options(), verb.name, verb.help)
    parser.exit_on_error = False
    numbers = [re.sub(r"^\$\{?\w+\}?$", "0", word) for word in words[1:]]  # a loop's $fold is a number
    try:
        parser.parse_args(numbers)
    except SystemExit:
        pytest.fail(f"{page.name}: nnunet_brats {shlex.join(words)}")


def test_links_between_files_lead_somewhere():
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert not broken


def test_the_site_builds_without_a_broken_link(tmp_path):
    pytest.importorskip("mkdocs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "site" / "api" / "evaluation" / "index.html").read_text()
    assert "evaluate_case" in reference
