"""A bundle that is not what it says ends in one sentence, and nothing of it is executed or written elsewhere."""

import io
import json
import os
import pickle
import stat
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from nnunet_brats_ext.bundles.archive import check_plans, inspect_bundle, open_bundle, write_bundle
from nnunet_brats_ext.bundles.contents import BundledModel, BundledSystem, NetworkPrediction, Networks
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.storage.errors import UserError

PLACE = "models/Dataset001_X/BraTSVAETrainer__nnUNetPlans__3d_fullres"
WEIGHTS = f"{PLACE}/fold_0/checkpoint_final.safetensors"
ABOUT = {
    "title": "A system", "sequences": ["T1"], "normalised_beforehand": False, "scheme": "glioma_2023",
    "labels": {"1": "ED", "2": "NCR", "3": "ET"}, "regions": {"WT": [1, 2, 3]}, "data": [], "scores": {},
    "licence": "none", "citations": [], "versions": {}, "note": "For research.",
}  # fmt: skip
PLANS = {"configurations": {"3d_fullres": {"patch_size": [8, 8, 8]}}}


def small_system(folds: tuple[int, ...] = (0,)) -> BundledSystem:
    weights = tuple((fold, "checkpoint_final.safetensors") for fold in folds)
    model = BundledModel(
        PLACE, "BraTSVAETrainer", "nnUNetPlans", "3d_fullres", weights,
        ("nnunet-brats-ext", "0.1.0"), 10,
    )  # fmt: skip
    networks = Networks("one", weights)
    return BundledSystem({"one": model}, {"one": NetworkPrediction((networks,), (None,), {})}, "one", ABOUT)


@pytest.fixture
def bundle(tmp_path) -> Path:
    """A bundle of few bytes, whose weights are none."""
    content = tmp_path / "content"
    for name, text in {
        "README.md": "# A system",
        f"{PLACE}/plans.json": json.dumps(PLANS),
        f"{PLACE}/dataset.json": "{}",
        WEIGHTS: "x" * 1000,
    }.items():
        (content / name).parent.mkdir(parents=True, exist_ok=True)
        (content / name).write_text(text)
    out = tmp_path / "system.zip"
    write_bundle(out, content, small_system())
    return out


class Runs:
    """What a pickle of it does when it is read."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(path: Path, content: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, one in content.items():
            archive.writestr(name, one)


def edit_manifest(path: Path, change) -> None:
    content = members(path)
    manifest = json.loads(content["bundle.json"])
    change(manifest)
    pack(path, {**content, "bundle.json": json.dumps(manifest).encode()})


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def changed_weights(path: Path) -> None:
    content = members(path)
    pack(path, {**content, WEIGHTS: b"y" * 1000})


def flipped_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"x" * 100) + 50] ^= 1
    path.write_bytes(content)


def longer_member(path: Path) -> None:
    content = members(path)
    pack(path, {**content, WEIGHTS: b"x" * 5000})


def bomb(path: Path) -> None:
    """A member that unpacks to far more than its entry states."""
    content = members(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, one in content.items():
            archive.writestr(name, b"x" * 50_000_000 if name == WEIGHTS else one)
    raw = bytearray(path.read_bytes())
    for at in (i for i in range(len(raw) - 4) if raw[i : i + 4] == (50_000_000).to_bytes(4, "little")):
        raw[at : at + 4] = (1000).to_bytes(4, "little")
    path.write_bytes(raw)


def escaping(path: Path) -> None:
    pack(path, {**members(path), "../escaped.json": b"{}"})


def absolute(path: Path) -> None:
    pack(path, {**members(path), "/tmp/escaped.json": b"{}"})


def escaping_in_manifest(path: Path) -> None:
    edit_manifest(path, lambda it: it["files"].update({"../x.json": {"bytes": 1, "sha256": "0" * 64}}))


def with_pickle(path: Path) -> None:
    pack(path, {**members(path), f"{PLACE}/fold_0/checkpoint_final.pth": pickle.dumps(Runs(path.parent / "executed"))})


def pickle_as_weights(path: Path) -> None:
    content = members(path)
    content[WEIGHTS] = pickle.dumps(Runs(path.parent / "executed"))
    pack(path, content)


def with_link(path: Path) -> None:
    content = members(path)
    del content["README.md"]
    pack(path, content)
    info = zipfile.ZipInfo("README.md")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, "/etc/passwd")


def twice(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("README.md", "another")


def unknown_file(path: Path) -> None:
    pack(path, {**members(path), "notes.md": b"hello"})


def lacking(path: Path) -> None:
    content = members(path)
    del content[WEIGHTS]
    pack(path, content)


def no_manifest(path: Path) -> None:
    content = members(path)
    del content["bundle.json"]
    pack(path, content)


def not_json(path: Path) -> None:
    pack(path, {**members(path), "bundle.json": b"{"})


def newer(path: Path) -> None:
    edit_manifest(path, lambda it: it.update(format=2))


def other_result(path: Path) -> None:
    edit_manifest(path, lambda it: it.update(result="two"))


def folder_outside(path: Path) -> None:
    edit_manifest(path, lambda it: it["models"]["one"].update(folder="models/../.."))


def two_lines(path: Path) -> None:
    edit_manifest(path, lambda it: it["about"].update(title="x\nRUN something"))


def no_zip(path: Path) -> None:
    path.write_bytes(b"hello")


TAMPERED = {
    truncated: "damaged", changed_weights: "SHA-256 differs", flipped_byte: "damaged|differs",
    longer_member: "5000 bytes instead of 1000", bomb: "damaged|more than|fewer than", escaping: "leave its folder",
    absolute: "leave its folder", escaping_in_manifest: "leave its folder", with_pickle: "run nothing",
    pickle_as_weights: "bytes instead of", with_link: "link", twice: "twice", unknown_file: "does not name",
    lacking: "lacks", no_manifest: "no bundle", not_json: "not JSON", newer: "newer", other_result: "result",
    folder_outside: "folder", two_lines: "title", no_zip: "no bundle",
}  # fmt: skip


@pytest.mark.parametrize("tamper", TAMPERED, ids=lambda one: one.__name__)
def test_a_bundle_that_was_tampered_with_ends_in_one_sentence(tamper, bundle, tmp_path, capsys, monkeypatch):
    tamper(bundle)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))  # where bundles are unpacked
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=TAMPERED[tamper]), open_bundle(bundle):
        pass
    assert main(["inspect", str(bundle), "--verify"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(bundle) in line
    assert not (tmp_path / "executed").exists()
    assert set(tmp_path.rglob("*")) == before


def test_what_was_written_is_read(bundle):
    system, card, sizes = inspect_bundle(bundle)
    assert system == small_system()
    assert card == "# A system"
    assert sizes[WEIGHTS] == 1000
    with open_bundle(bundle) as opened:
        assert opened.system == small_system()
        folder = opened.folder
        assert (folder / WEIGHTS).read_text() == "x" * 1000
    assert not folder.exists()


def test_an_unpacked_bundle_is_taken_and_checked_as_well(bundle, tmp_path):
    place = tmp_path / "unpacked"
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(place)
    with open_bundle(place) as opened:
        assert opened.folder == place
    (place / WEIGHTS).write_text("y" * 1000)
    with pytest.raises(UserError, match="SHA-256"), open_bundle(place):
        pass


@pytest.mark.parametrize(
    "entry",
    [
        {"network_class_name": "os.system"},
        {"network_class_name": "torch.nn.modules.module.os.system"},
        {"network_class_name": "dynamic_network_architectures.architectures.unet.np.load"},
        {"network_class_name": "torch.nn.Conv3d", "arch_kwargs": {"conv_op": "subprocess.Popen"}},
    ],
    ids=str,
)
def test_plans_name_no_more_than_parts_of_networks(entry, tmp_path):
    """nnU-Net imports and calls what plans name."""
    network = {"network_class_name": "torch.nn.Conv3d", "arch_kwargs": {}, "_kw_requires_import": ["conv_op"], **entry}
    file = tmp_path / "plans.json"
    file.write_text(json.dumps({"configurations": {"3d_fullres": {"architecture": network}}}))
    with pytest.raises(UserError, match="no part of a network"):
        check_plans(file, tmp_path)


def test_a_model_says_whether_its_folds_have_other_checkpoints():
    model = small_system(folds=(0, 1)).models["one"]
    other = (*model.weights[:1], (1, "checkpoint_epoch_9.safetensors"))
    assert not model.differs_by_fold and replace(model, weights=other).differs_by_fold


def test_inspecting_loads_no_torch(bundle):
    code = (
        "import sys; from nnunet_brats_ext.bundles.archive import inspect_bundle; from pathlib import Path; "
        f"inspect_bundle(Path({str(bundle)!r})); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_time_limit_leaves_out_networks_in_a_stated_order():
    system = small_system((0, 1, 2))
    smaller = system.smaller_systems()
    assert [system.describe_smaller(one) for one in smaller[1:]] == [
        "2 of 3 networks",
        "1 of 3 networks",
        "1 of 3 networks, without test-time augmentation",
    ]
    assert smaller[0] is system
    for one in smaller:
        one.check()
    assert io.StringIO(system.describe_smaller(system)).read() == "3 of 3 networks"
