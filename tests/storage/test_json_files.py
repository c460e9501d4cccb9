"""JSON and text files: errors name the file, and a file is written whole or not at all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_brats_ext.storage import output
from nnunet_brats_ext.storage.csv_files import to_csv
from nnunet_brats_ext.storage.errors import UserError, raise_problems, refuse, shorten
from nnunet_brats_ext.storage.json_files import JsonEntry, read_json, write_json
from nnunet_brats_ext.storage.output import write_text, write_texts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.json is not JSON: Expecting value"),
        (b'{"a": ', "a.json is not JSON"),
        ("{}".encode("utf-16"), "a.json is not JSON: 'utf-8' codec"),
        (b"[" * 100_000, "a.json is not JSON"),
        (b"[]", "a.json should hold an object, not list"),
        (b"null", "a.json should hold an object, not NoneType"),
    ],
)
def test_a_file_that_is_not_json_is_named_with_the_reason(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_json(tmp_path / "a.json")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(UserError, match=r"a.json does not exist"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_json(tmp_path)


def test_the_kind_of_the_outermost_value_is_asked_for(tmp_path):
    for content in ([1], {"a": Path("b")}, "text"):
        write_json(tmp_path / "a.json", content)
        assert read_json(tmp_path / "a.json", object) == json.loads(json.dumps(content, default=str))
    write_json(tmp_path / "a.json", {})
    with pytest.raises(UserError, match="should hold a list, not dict"):
        read_json(tmp_path / "a.json", list)


def test_a_text_file_replaces_the_old_one_as_a_whole(tmp_path):
    for text in ("old", "néw"):
        write_text(tmp_path / "deep" / "a.json", text)
    contents = [(path.name, path.read_text(encoding="utf-8")) for path in (tmp_path / "deep").iterdir()]
    assert contents == [("a.json", "néw")]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_text(tmp_path / "a.json", "old")

    def fill_the_disk(path, *_, **__):
        with open(path, "w") as file:  # noqa: PTH123  not the one that is replaced
            file.write("ne")
        raise OSError(28, "No space left on device")

    message = r"a.json could not be written: No space left on device \(.* GB free in .*\); make room or choose another"
    with monkeypatch.context() as full, pytest.raises(UserError, match=message):
        full.setattr(output.Path, "open", fill_the_disk)
        write_text(tmp_path / "a.json", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "old")]


def test_processes_that_write_one_file_at_once_do_not_disturb_each_other(tmp_path):
    command = (
        "import sys; from pathlib import Path; from nnunet_brats_ext.storage.json_files import write_json\n"
        "for _ in range(300): write_json(Path(sys.argv[1]), list(range(2000)))"
    )
    runs = [subprocess.Popen([sys.executable, "-c", command, str(tmp_path / "a.json")]) for _ in range(2)]
    while any(run.poll() is None for run in runs):
        if (tmp_path / "a.json").exists():
            assert read_json(tmp_path / "a.json", list) == list(range(2000)), "whole at any time"
    assert [run.wait() for run in runs] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_problems_are_listed_one_per_line_and_none_is_no_error():
    refuse([], "score")
    with pytest.raises(UserError, match=r"^cannot score; nothing was written:\n  a\n  b$"):
        refuse(["a", "b"], "score")
    with pytest.raises(UserError, match=r"^2 cases failed:\n  a$"):
        raise_problems("2 cases failed", ["a"])


def test_long_lists_of_names_are_shortened():
    assert shorten(["a", "b"]) == "a, b"
    assert shorten([str(number) for number in range(12)], 3) == "0, 1, 2 and 9 more"


def test_files_that_belong_together_are_written_all_or_none(tmp_path):
    files = {tmp_path / "a.json": "a", tmp_path / "deep" / "b.csv": "b"}
    write_texts(files)
    assert {path: path.read_text() for path in files} == files
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder is a folder, where a file of this name is to be written"):
        write_texts({tmp_path / "a.json": "new", tmp_path / "folder": "b"})
    assert (tmp_path / "a.json").read_text() == "a"
    assert not list(tmp_path.rglob(".*"))


def test_a_table_is_text_with_empty_cells_for_none():
    assert to_csv([["case", "dice"], ["a, b", None], ["c", 0.5]]) == 'case,dice\n"a, b",\nc,0.5\n'


def test_a_value_is_read_with_its_file_and_keys(tmp_path):
    write_json(tmp_path / "a.json", {"cases": {"x": {"dice": 0.5, "name": "n"}}, "list": [1, {"b": None}]})
    entry = JsonEntry.read(tmp_path / "a.json")
    case = dict(entry["cases"].items())["x"]
    assert (case["dice"].number(0, 1), case["name"].text()) == (0.5, "n")
    assert [one.value for one in entry["list"].list()] == [1, {"b": None}]
    assert entry.get("missing", 5).number() == 5


WRONG = [
    (lambda entry: entry["gone"], r"a.json lacks 'gone'"),
    (lambda entry: entry["cases"]["x"]["dice"]["deep"], r'a.json: cases\["x"\]\["dice"\] is 2; expected an object'),
    (lambda entry: entry["cases"]["x"]["dice"].number(0, 1), r'\["dice"\] is 2; expected a number from 0 to 1'),
    (lambda entry: entry["cases"]["x"]["dice"].number(3), r'\["dice"\] is 2; expected a number from 3 on'),
    (lambda entry: entry["cases"]["x"]["flag"].number(), r'\["flag"\] is true; expected a number'),
    (lambda entry: entry["cases"]["x"]["nan"].number(), r'\["nan"\] is NaN; expected a number'),
    (lambda entry: entry["cases"].list(), r"a.json: cases is \{.*; expected a list"),
    (lambda entry: entry["cases"]["x"]["dice"].items(), "is 2; expected an object"),
    (lambda entry: entry["cases"]["x"]["dice"].text(), "is 2; expected a text"),
]


@pytest.mark.parametrize(("read", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_value_is_quoted_with_its_file_and_keys(tmp_path, read, message):
    write_json(tmp_path / "a.json", {"cases": {"x": {"dice": 2, "flag": True, "nan": float("nan")}}})
    with pytest.raises(UserError, match=message):
        read(JsonEntry.read(tmp_path / "a.json"))
