"""argparse from option dataclasses: every kind of field, and help that says what the field says."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from nnunet_brats_ext.cli.parser import build_parser, parse
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.options import Options, argument, option


@dataclass(frozen=True)
class Everything(Options):
    """One field of every kind."""

    source: Path = argument("where from", metavar="SOURCE")
    number: int = option("-n", "--number", help="how many", at_least=1)
    out: Path = option("-o", help="where to", aliases=("--output", "--out"))
    share: float = option(help="in %", default=0.5)
    zero: int = option(help="a seed", default=0)
    more: tuple[Path, ...] = option("-m", help="paths", default=())
    size: tuple[int, int, int] | None = option(help="voxels", default=None, metavar=("X", "Y", "Z"))
    pairs: tuple[tuple[Path, Path], ...] = option("--pair", help="two folders", default=(), repeat=True)
    lists: tuple[str, ...] = option("--list", help="names", default=(), repeat=True)
    way: Literal["hard", "soft"] = option(help="how", default="hard")
    model: str | None = option(help="which", default=None, choices=lambda: ["a", "b"])
    fast: bool = option("--fast-mode", help="quick", default=False)
    mirror: bool = option("--no-mirror", help="do not mirror", default=True)
    best: str | None = option(help="the best", default=None, const="dice")
    old_name: str | None = option(help="renamed", default=None, aliases=("--older_name",))


def read(*words: str) -> Everything:
    return parse(Everything, "nnunet_brats test", "What it does.", ["in", "-n", "2", "-o", "out", *words])


def test_every_kind_of_field_is_read():
    plain = read()
    assert (plain.source, plain.number, plain.out) == (Path("in"), 2, Path("out"))
    assert (plain.share, plain.more, plain.size, plain.pairs, plain.fast, plain.mirror) == (
        0.5,
        (),
        None,
        (),
        False,
        True,
    )
    full = read(
        *("--share", "0.25", "-m", "a", "b", "--size", "1", "2", "3", "--pair", "a", "b", "--pair", "c", "d"),
        *("--list", "x", "--list", "y", "--way", "soft", "--model", "b", "--fast-mode", "--no-mirror", "--best"),
        *("--older_name", "o"),
    )
    assert (full.share, full.more, full.size) == (0.25, (Path("a"), Path("b")), (1, 2, 3))
    assert full.pairs == ((Path("a"), Path("b")), (Path("c"), Path("d")))
    assert (full.lists, full.way, full.model) == (("x", "y"), "soft", "b")
    assert (full.fast, full.mirror, full.best, full.old_name) == (True, False, "dice", "o")
    assert read("--best", "hd95").best == "hd95"


def test_old_spellings_count_and_are_not_shown():
    for flag in ("-o", "--output", "--out"):
        assert parse(Everything, "p", "", ["in", "-n", "2", flag, "there"]).out == Path("there")
    assert "--output" not in build_parser(Everything, "p", "").format_help()


@dataclass(frozen=True)
class OneAndMany(Options):
    one: Path = argument("what", metavar="ONE")
    out: Path = option("-o", help="where to")
    many: tuple[Path, ...] = argument("to what", (), metavar="MANY")
    fast: bool = option("--fast", help="quick", default=False)


@pytest.mark.parametrize(
    "words", ["a b c -o out --fast", "-o out --fast a b c", "a -o out b --fast c", "a -o out --fast b c"]
)
def test_options_may_stand_anywhere_between_the_arguments(words):
    read = parse(OneAndMany, "nnunet_brats test", "", words.split())
    assert (read.one, read.many, read.out, read.fast) == (Path("a"), (Path("b"), Path("c")), Path("out"), True)
    assert parse(OneAndMany, "p", "", ["a", "-o", "out"]).many == ()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-n", "2", "-o", "out"], "required: SOURCE"),
        (["in", "-o", "out"], "required: -n"),
        (["in", "-n", "2"], "required: -o"),
        (["in", "-n", "two", "-o", "out"], "-n.*: invalid int value: 'two'"),
        (["in", "-n", "2", "-o", "out", "--way", "lazy"], "--way: invalid choice: 'lazy'"),
        (["in", "-n", "2", "-o", "out", "--size", "1", "2"], "--size: expected 3 arguments"),
        (["in", "-n", "2", "-o", "out", "--colour", "red"], "unrecognized arguments: --colour red"),
        (["in", "-n", "2", "-o", "out", "--sahre", "0.5"], "unrecognized.*; --sahre: did you mean '--share'\\?\n"),
        (["in", "-n", "2", "-o", "out", "--fsat-mode=1"], "unrecognized.*; --fsat-mode: did you mean '--fast-mode'\\?"),
        (["in", "-n", "2", "-o", "out", "--oldername", "x"], "unrecognized arguments: --oldername x"),
        (["in", "-n", "2", "-o", "out", "-share", "0.5"], "unrecognized.*; -share: did you mean '--share'\\?"),
        (["in", "--nubmer", "2", "-o", "out"], "required: -n.*; --nubmer: did you mean '--number'\\?"),
    ],
)
def test_what_cannot_be_read_ends_with_usage_and_the_option(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(Everything, "nnunet_brats test", "", words)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "older_name" not in error, "old spellings are not suggested"
    assert error.startswith("usage: nnunet_brats test")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(error)


def test_what_is_out_of_range_is_refused_as_from_python():
    with pytest.raises(UserError, match=r"^-n 0: expected at least 1$"):
        parse(Everything, "p", "", ["in", "-n", "0", "-o", "out"])


def test_help_tells_defaults_where_they_say_something():
    text = " ".join(build_parser(Everything, "p", "What it does.").format_help().split())
    assert "What it does." in text
    assert "in % (default: 0.5)" in text
    assert "a seed (default: 0)" in text
    assert "how (default: hard)" in text
    for words in ("quick (default", "which (default", "paths (default"):
        assert words not in text
    assert "--size X Y Z" in text and "{hard,soft}" in text and "{a,b}" in text and "--share X" in text
