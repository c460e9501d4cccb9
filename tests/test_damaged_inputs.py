"""Every kind of damage over every command that reads such a file: it is named, and nothing is written.

A new command is covered by listing it in `spoiling.COMMANDS` and here, for each kind of file, with those that read it
or with those that do not.
"""

import json
import os
import re
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
from spoiling import (
    CASE,
    COMMANDS,
    DAMAGE,
    HELD_OUT,
    MODEL,
    OTHER_GRIDS,
    PREPROCESSED,
    RAW,
    RELEASE,
    almost_whole,
    copy_of,
    cut,
    empty,
    flip_a_byte,
    restore,
    run,
    text,
    verb_of,
)

from nnunet_brats_ext.cli.verbs import GROUPS
from nnunet_brats_ext.storage.errors import Notice, UserError
from nnunet_brats_ext.storage.options import check, converted, element_type, shown_name, spec_of

EDITS = int(os.environ.get("NNUNET_BRATS_TEST_EDITS", "12"))  # of each JSON file; hundreds for a long run
VERBS = {verb.name: verb for verbs in GROUPS.values() for verb in verbs if not verb.hidden}

IMAGES = {  # command -> a file that it reads
    "convert": f"{RELEASE}_t1ce.nii.gz",
    "distill": f"images/{CASE}_0001.nii.gz",
    "predict": f"images/{CASE}_0001.nii.gz",
    "predict (vote, rules)": f"images/{CASE}_0001.nii.gz",
    "choose": f"{RAW}/imagesTr/{HELD_OUT}_0001.nii.gz",
    "attention": f"images/{CASE}_0001.nii.gz",
    "postprocess (images)": f"images/{CASE}_0001.nii.gz",
    "uncertainty": f"images/{CASE}_0001.nii.gz",
    "report": f"images/{CASE}_0003.nii.gz",
}
LABEL_MAPS = {
    "convert": f"{RELEASE}_seg.nii.gz",
    "restore": f"A/{CASE}.nii.gz",
    "distill": f"A/{CASE}.nii.gz",
    "choose": f"{RAW}/labelsTr/{HELD_OUT}.nii.gz",
    "attention": f"references/{CASE}.nii.gz",
    "ensemble": f"A/{CASE}.nii.gz",
    "ensemble (majority)": f"B/{CASE}.nii.gz",
    "ensemble (staple)": f"B/{CASE}.nii.gz",
    "ensemble (two-pass)": f"B/{CASE}.nii.gz",
    "postprocess": f"A/{CASE}.nii.gz",
    "postprocess (probabilities)": f"A/{CASE}.nii.gz",
    "postprocess (images)": f"A/{CASE}.nii.gz",
    "relabel": f"A/{CASE}.nii.gz",
    "uncertainty": f"B/{CASE}.nii.gz",
    "evaluate": f"references/{CASE}.nii.gz",
    "rank": f"B/{CASE}.nii.gz",
    "tune": f"A/{CASE}.nii.gz",
    "report": f"B/{CASE}.nii.gz",
}
PROBABILITIES = {
    "distill": f"A/{CASE}.npz",
    "ensemble": f"B/{CASE}.npz",
    "ensemble (majority)": f"B/{CASE}.npz",
    "postprocess (probabilities)": f"A/{CASE}.npz",
    "uncertainty": f"B/{CASE}.npz",
}
CHECKPOINTS = {
    "predict": f"{MODEL}/fold_0/checkpoint_final.pth",
    "predict (vote, rules)": f"{MODEL}/fold_1/checkpoint_final.pth",
    "choose": f"{MODEL}/fold_0/checkpoint_final.pth",
    "attention": f"{MODEL}/fold_0/checkpoint_final.pth",
    "bundle": f"{MODEL}/fold_0/checkpoint_final.pth",
    "segment": "system/" + MODEL.replace("nnUNet_results", "models") + "/fold_0/checkpoint_final.safetensors",
    "export": f"{MODEL}/fold_0/checkpoint_final.pth",
}
JSON = {  # a command and a JSON file that it reads
    ("restore", f"{RAW}/manifest.json"),
    ("restore (by its dataset.json)", "A/dataset.json"),
    ("distill", f"{RAW}/manifest.json"),
    ("distill", f"{RAW}/dataset.json"),
    ("distill", f"{PREPROCESSED}/splits_final.json"),
    ("distill", "A/dataset.json"),
    ("filter-cases", f"{PREPROCESSED}/splits_final.json"),
    ("filter-cases", f"{PREPROCESSED}/SmallPlans.json"),
    ("plan", f"{PREPROCESSED}/SmallPlans.json"),
    ("plan", f"{PREPROCESSED}/dataset_fingerprint.json"),
    ("predict", f"{MODEL}/plans.json"),
    ("predict", f"{MODEL}/dataset.json"),
    ("predict (vote, rules)", "rules.json"),
    ("choose", f"{PREPROCESSED}/splits_final.json"),
    ("attention", f"{MODEL}/plans.json"),
    ("attention", f"{MODEL}/dataset.json"),
    ("ensemble", "A/dataset.json"),
    ("ensemble (majority)", "A/dataset.json"),
    ("postprocess", "rules.json"),
    ("postprocess (probabilities)", "A/dataset.json"),
    ("uncertainty", "B/dataset.json"),
    ("rank (results)", "one.json"),
    ("tune", "splits.json"),
    ("report", "two.json"),
    ("report", "maps/uncertainty.json"),
    ("report", f"{MODEL}/plans.json"),
    ("report", f"{MODEL}/dataset.json"),
    ("status", "run/graph.json"),
    ("bundle", f"{MODEL}/plans.json"),
    ("bundle", f"{MODEL}/dataset.json"),
    ("inspect", "system/bundle.json"),
    ("container", "system/bundle.json"),
    ("segment", "system/bundle.json"),
    ("export", f"{MODEL}/plans.json"),
    ("export", f"{MODEL}/dataset.json"),
}
# `import` reads files of other systems: tests/weights damages them.
READ_NOTHING = "run status doctor papers presets phantom demo check layout prepare inspect container import"
READ_NONE = {  # kind of file -> verbs that read none of it; to `check` and `segment` damaged images are findings
    "image": f"restore filter-cases plan ensemble evaluate rank tune bundle segment relabel export {READ_NOTHING}",
    "label map": f"filter-cases plan predict bundle segment export {READ_NOTHING}",
    "probabilities": "convert restore filter-cases plan predict choose attention evaluate rank tune report bundle "
    f"segment relabel export {READ_NOTHING}",
    "checkpoint": "convert restore distill filter-cases plan ensemble postprocess uncertainty evaluate rank tune "
    f"report relabel {READ_NOTHING}",
    "JSON": "convert evaluate run doctor papers presets phantom demo check layout prepare relabel import",
}
READ = {
    "image": IMAGES,
    "label map": LABEL_MAPS,
    "probabilities": PROBABILITIES,
    "checkpoint": CHECKPOINTS,
    "JSON": [command for command, _ in JSON],
}


@pytest.mark.parametrize("kind", READ)
def test_every_verb_is_listed_for_every_kind_of_file(kind):
    reading, others = {verb_of(command) for command in READ[kind]}, set(READ_NONE[kind].split())
    assert reading | others == set(VERBS)
    assert not reading & others
    assert set(READ[kind]) <= set(COMMANDS)


def files_of(root: Path) -> dict[str, tuple[int, int]]:
    stats = {path.relative_to(root): path.stat() for path in root.rglob("*") if not path.is_dir()}
    return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


@pytest.fixture
def refused(everything, capsys):
    """Run a command that has to be refused; its message, once it has written nothing."""

    def refuse(command: str) -> str:
        before = files_of(everything)
        assert run(command) == 1
        assert files_of(everything) == before, "nothing is written, and nothing is left of the try"
        return capsys.readouterr().err

    return refuse


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "demo"])
def test_what_is_whole_is_taken(command, everything):
    assert run(command) == 0


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize(("command", "file"), [*IMAGES.items(), *LABEL_MAPS.items()])
def test_a_damaged_image_or_label_map_is_named(command, file, damage, everything, refused):
    damage(place := everything / file)
    assert place.name in refused(command)


COMPARED = [  # with other files of the case; a folder of label maps alone is on the grid that it says
    (command, file)
    for table in (IMAGES, LABEL_MAPS)
    for command, file in table.items()
    if command not in ("postprocess", "postprocess (probabilities)", "relabel")
]
# These turn files into one orientation, so that a flipped one is the same.
TURNED = ("report", "convert", "restore", "predict", "predict (vote, rules)", "evaluate", "rank", "choose")


@pytest.mark.parametrize("spoil", OTHER_GRIDS, ids=lambda spoil: spoil.__name__)
@pytest.mark.parametrize(("command", "file"), COMPARED)
def test_a_file_on_another_grid_is_named(command, file, spoil, everything, refused):
    if command in TURNED and spoil is OTHER_GRIDS[-1]:
        return
    spoil(everything / file)
    said = refused(command)
    assert any(case in said for case in (CASE, HELD_OUT, "BraTS20_Training_001"))
    assert any(
        word in said
        for word in (
            "differ",
            "size",
            "spacing",
            "direction",
            "grid",
            "shape",
            "lies up to",
            "voxels, T1",
            "its content",
        )
    )


def as_logits(file: Path) -> None:
    change_npz(file, lambda p: p * 20 - 10)


def as_nan(file: Path) -> None:
    change_npz(file, lambda p: np.full_like(p, np.nan))


def as_complex(file: Path) -> None:
    change_npz(file, lambda p: p.astype(complex))


def of_another_shape(file: Path) -> None:
    change_npz(file, lambda p: p[:, 1:])


def under_another_name(file: Path) -> None:
    np.savez(file, softmax=np.load(file)["probabilities"])


def change_npz(file: Path, change) -> None:
    np.savez_compressed(file, probabilities=change(np.load(file)["probabilities"].astype(np.float32)))


@pytest.mark.parametrize(
    "damage",
    [cut, almost_whole, empty, text, flip_a_byte, as_logits, as_nan, as_complex, of_another_shape, under_another_name],
)
@pytest.mark.parametrize("command", PROBABILITIES)
def test_what_are_no_probabilities_is_named(command, damage, everything, refused):
    file = everything / PROBABILITIES[command]
    damage(file)
    assert file.name in refused(command)


@pytest.mark.parametrize("command", PROBABILITIES)
def test_a_case_without_its_probabilities_is_named(command, everything, refused):
    (everything / PROBABILITIES[command]).unlink()
    assert CASE in refused(command)


@pytest.mark.parametrize("command", ["ensemble (majority)", "uncertainty"])
def test_a_member_without_any_probabilities_is_noticed(command, everything):
    for file in (everything / "B").glob("*.npz"):
        file.unlink()
    with pytest.warns(Notice, match="^B has no probabilities, .*: label maps are"):
        assert run(command) == 0


@pytest.mark.parametrize("damage", [cut, empty, text, flip_a_byte])
@pytest.mark.parametrize("command", CHECKPOINTS)
def test_a_damaged_checkpoint_is_named(command, damage, everything, refused):
    file = everything / CHECKPOINTS[command]
    damage(file)
    said = refused(command)
    assert f"{file.parent.name}/{file.name}" in said
    assert len(said) < 1500


# ---- edited JSON ----------------------------------------------------------------------------------------------------

NO_JSON = {
    "no JSON": b"{",
    "binary": bytes(range(256)),
    "deep": b"[" * 100_000,
    "a number": b"5",
}


@pytest.mark.parametrize("content", NO_JSON)
@pytest.mark.parametrize(("command", "file"), sorted(JSON))
def test_a_file_that_is_no_json_object_is_named(command, file, content, everything, refused):
    (everything / file).write_bytes(NO_JSON[content])
    assert Path(file).name in refused(command)


OTHER_VALUES = (None, [], {}, "x", -1, 1e9, float("nan"), True, [[]], {"x": {}})


def edits(content, depth: int = 4) -> Iterator[object]:
    """The content with one of its entries removed, and with one of another kind; of lists the first entry alone."""
    if depth == 0:
        return
    keys = list(content) if isinstance(content, dict) else [0] if isinstance(content, list) and content else []
    for key in keys:
        without = content.copy()
        del without[key]
        yield without
        for value in OTHER_VALUES:
            if type(value) is type(content[key]):
                continue
            other = content.copy()
            other[key] = value
            yield other
        for inner in edits(content[key], depth - 1):
            other = content.copy()
            other[key] = inner
            yield other


def some_edits(content, most: int) -> list[object]:
    every = list(edits(content))
    return every[:: max(1, len(every) // most)]


@pytest.mark.parametrize(("command", "file"), sorted(JSON))
def test_an_edited_json_file_is_no_traceback(command, file, everything, capsys):
    """A key less, or a value of another kind: the command is refused with the file, or does not read that key."""
    content = json.loads((everything / file).read_text())
    slow = verb_of(command) in (
        "predict",
        "choose",
        "attention",
        "report",
        "distill",
        "segment",
        "container",
        "bundle",
        "export",
    )
    for other in some_edits(content, EDITS // 6 if slow else EDITS):
        (everything / file).write_text(json.dumps(other))
        if run(command) == 1:
            said = capsys.readouterr().err
            assert Path(file).name in said or Path(file).parent.name in said, said
        restore(everything, copy_of(everything))


# ---- options --------------------------------------------------------------------------------------------------------

NUMBERS = [
    pytest.param(verb, field, kind, id=f"{verb} {field.name}")
    for verb, options in ((name, verb.load_options()) for name, verb in VERBS.items())
    for field in fields(options)
    for kind in [element_type(get_type_hints(options)[field.name])[0]]
    if kind in (int, float)
]


@pytest.mark.parametrize(("verb", "field", "kind"), NUMBERS)
def test_every_number_has_limits_and_is_quoted_out_of_them(verb, field, kind):
    spec = spec_of(field)
    if field.name != "seed":
        assert spec.at_least is not None or spec.above is not None, "a number without a lower limit"
    wrong = [float("nan"), float("inf"), -float("inf")] if kind is float else [2.5]
    wrong += [] if spec.at_least is None else [kind(spec.at_least) - 1]
    wrong += [] if spec.above is None else [kind(spec.above)]
    wrong += [] if spec.at_most is None else [kind(spec.at_most) + 1]
    for value in wrong:
        with pytest.raises(UserError, match=f"^{re.escape(shown_name(field))} {re.escape(str(value))}: expected"):
            check(field, converted(field, value, kind), kind)


# ---- outputs --------------------------------------------------------------------------------------------------------

WRITING = [command for command in COMMANDS if "out" in COMMANDS[command].replace("-o out/", "-o out").split()[1:]]
WRITING += [command for command in COMMANDS if " out/out." in COMMANDS[command]]


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow beyond 100 bytes: the system refuses it, as a full disk does, to Python and to ITK alike."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("command", sorted(set(WRITING)))
def test_on_a_full_disk_the_file_is_named_and_nothing_is_left(command, everything, capsys):
    before = files_of(everything)
    with full_disk():
        status = run(command)
    said = capsys.readouterr().err
    assert status == 1, said
    assert "out" in said, said
    left = [name for name in files_of(everything) if name not in before]
    assert not [name for name in left if name.startswith(".")], "no hidden folder stays"
    assert not [name for name in left if not name.endswith((".json", ".lock"))], left


@pytest.mark.parametrize("command", sorted(set(WRITING)))
def test_a_file_in_the_place_of_the_output_folder_is_named(command, everything, capsys):
    (everything / "out").write_text("mine")
    before = files_of(everything)
    assert run(command) == 1
    said = capsys.readouterr().err
    assert "out" in said
    assert "Errno" not in said
    assert files_of(everything) == before
