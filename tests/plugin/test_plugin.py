"""Installing makes nnU-Net find our trainers; uninstalling leaves nothing. Every way of installing is really done."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

import pytest
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_brats_ext import papers, plugin
from nnunet_brats_ext.plugin import doctor
from nnunet_brats_ext.plugin.requirements import complaint, require_nnunet, requirements
from nnunet_brats_ext.storage import shared_memory

ROOT = Path(__file__).parents[2]
FIND = """
import multiprocessing
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find

def where(name):
    return find(name).__module__

if __name__ == "__main__":
    import nnunet_brats_ext.trainers
    assert find("BraTSVAETrainer") is nnunet_brats_ext.trainers.BraTSVAETrainer
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print("worker:", pool.apply(where, ("BraTSVAETrainer",)))
    print("own:", where("MyTrainer"))
"""


def pip(python: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "-q", *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def environment(**changes: str) -> dict[str, str]:
    """Ours without what a developer may have exported."""
    dropped = (plugin.VARIABLE, plugin.OPT_OUT, "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if name not in dropped} | changes


def python_in(folder: Path) -> tuple[Path, Path]:
    """A virtual environment that sees the packages of this one, but not this one's start-up hooks."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    site_packages = next(folder.glob("lib/python*/site-packages"))
    (site_packages / "zz_parent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python, site_packages


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the sources, so that building leaves the working tree alone."""
    copy = tmp_path_factory.mktemp("checkout") / "source"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "*.egg-info", "build", "__pycache__"))
    return copy


@pytest.fixture(scope="module")
def installs(checkout, tmp_path_factory) -> dict[str, list[str]]:
    """Way of installing -> arguments for pip."""
    built = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(built), str(checkout)], check=True, capture_output=True
    )
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    return {"wheel": [str(wheel)], "sdist": [str(sdist)], "editable": ["--editable", str(checkout)]}


@pytest.mark.parametrize("way", ["wheel", "sdist", "editable"])
def test_every_way_of_installing_registers_and_uninstalling_leaves_nothing(way, installs, tmp_path):
    python, site_packages = python_in(tmp_path / "venv")
    before = sorted(site_packages.iterdir())
    pip(python, "install", "--no-deps", *installs[way])

    own = tmp_path / "own trainers"
    own.mkdir()
    (own / "mine.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n\n"
        "class MyTrainer(nnUNetTrainer): pass\n"
    )
    script = tmp_path / "find.py"
    script.write_text(FIND)
    done = subprocess.run(
        [python, script], env=environment(nnUNet_extTrainer=str(own)), cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "worker: nnunet_brats_ext.trainers.lyu2020" in done.stdout
    assert "own: mine" in done.stdout

    pip(python, "uninstall", "--yes", "nnunet-brats-ext")
    assert sorted(p for p in site_packages.iterdir() if p.name != "__pycache__") == before
    silent = subprocess.run([python, "-c", "pass"], env=environment(), capture_output=True, text=True)
    assert (silent.returncode, silent.stderr) == (0, "")


def test_the_hook_appends_once_and_never_overwrites(monkeypatch):
    monkeypatch.setenv(plugin.VARIABLE, "/users/own")
    plugin.register()
    plugin.register()
    assert os.environ[plugin.VARIABLE] == os.pathsep.join(["/users/own", plugin.SHIM])


@pytest.mark.parametrize(("value", "registered"), [("0", False), ("false", False), ("1", True)])
def test_the_hook_can_be_switched_off(value, registered):
    code = "import os, nnunet_brats_ext.plugin.startup; print(os.environ.get('nnUNet_extTrainer', ''))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(**{plugin.OPT_OUT: value}),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (plugin.SHIM in done.stdout) == registered


CLASS_OF_OUR_NAME = (
    "from nnunet_brats_ext.trainers import BraTSVAETrainer as Ours\nclass BraTSVAETrainer(Ours): own = True\n"
)


def test_our_lookup_finds_what_nnunet_finds(tmp_path, monkeypatch):
    """nnU-Net's own trainers, none, and one of the user's in a folder that comes before ours."""
    for name in ("nnUNetTrainer", "nnUNetTrainerNoMirroring"):
        assert papers.find_trainer_class(name) is recursive_find_trainer_class_by_name(name)
    with pytest.raises(RuntimeError, match="BraTSNobodysTrainer"):
        papers.find_trainer_class("BraTSNobodysTrainer")
    (tmp_path / "theirs.py").write_text(CLASS_OF_OUR_NAME)
    monkeypatch.setenv(plugin.VARIABLE, os.pathsep.join([str(tmp_path), plugin.SHIM]))
    theirs, same = papers.find_trainer_class("BraTSVAETrainer"), recursive_find_trainer_class_by_name("BraTSVAETrainer")
    assert theirs.__module__ == same.__module__ == "theirs"
    monkeypatch.setenv(plugin.VARIABLE, os.pathsep.join(["", str(tmp_path / "gone"), plugin.SHIM]))
    assert papers.find_trainer_class("BraTSVAETrainer").__module__ == "nnunet_brats_ext.trainers.lyu2020.trainers"


def test_our_lookup_of_our_trainers_does_not_load_what_only_nnunets_need():
    code = (
        "import sys; from nnunet_brats_ext import papers; papers.find_trainer_class('BraTSVAETrainer'); "
        "sys.exit('timm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_shim_offers_nothing_where_the_package_is_missing(tmp_path):
    python, _ = python_in(tmp_path)
    (tmp_path / "shim.py").write_text(Path(plugin.SHIM, "nnunet_brats_trainers.py").read_text())
    done = subprocess.run(
        [python, tmp_path / "shim.py"], env=environment(), capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_requirements_are_read_from_the_metadata():
    assert {"nnunetv2", "torch", "SimpleITK", "numpy"} <= {r.name for r in requirements()}
    assert not any(complaint(r) for r in requirements())


@pytest.mark.parametrize("installed", [None, "2.5.1", "3.0"])
def test_a_missing_or_foreign_nnunet_gives_one_sentence(installed, monkeypatch):
    def version(name: str) -> str:
        if installed is None:
            raise metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(ImportError, match=r"nnunetv2.* is (not )?installed; run: pip install 'nnunetv2") as caught:
        require_nnunet()
    assert "\n" not in str(caught.value)


def test_the_doctor_names_what_is_missing_and_what_to_do(monkeypatch, tmp_path):
    for name in doctor.FOLDERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "nowhere"))
    findings = {finding.subject: finding for finding in doctor.check_folders()}
    assert "mkdir -p" in findings["nnUNet_raw"].fix
    assert "export nnUNet_results=" in findings["nnUNet_results"].fix
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    assert not next(doctor.check_folders()).fix


def test_the_doctor_finds_every_trainer_and_every_label():
    assert not any(finding.fix for finding in [*doctor.check_trainers(), *doctor.check_labels()])


def test_the_doctor_names_every_data_set_that_cannot_be_used(monkeypatch, tmp_path):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    scheme = doctor.LABEL_SCHEMES["glioma_2023"]
    good = {"brats_release": "BraTS2023-GLI", "labels": scheme.nnunet_labels(), "regions_class_order": scheme.paint}
    contents = {
        "Dataset001_Broken": "{",
        "Dataset002_List": "[]",
        "Dataset003_NoOrder": json.dumps({key: good[key] for key in ("brats_release", "labels")}),
        "Dataset004_NoLabels": json.dumps({"brats_release": "BraTS2023-GLI"}),
        "Dataset005_Good": json.dumps(good),
        "Dataset006_Foreign": json.dumps({"labels": {"background": 0}}),
    }
    for name, content in contents.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "dataset.json").write_text(content)
    findings = {finding.subject: finding for finding in doctor.check_datasets()}
    assert list(findings) == list(contents)[:5]
    assert [name for name, finding in findings.items() if not finding.fix] == ["Dataset005_Good"]
    for name in list(contents)[:4]:
        assert str(tmp_path / name / "dataset.json") in findings[name].state
    assert "regions_class_order" in findings["Dataset003_NoOrder"].state


def test_the_doctor_sees_a_wrong_painting_order():
    scheme = doctor.LABEL_SCHEMES["glioma_2023"]
    wrong = {"labels": scheme.nnunet_labels(), "regions_class_order": [2, 1, 3]}  # right for labels as released
    assert "changed" in doctor.round_trip(scheme, wrong)


def test_the_doctor_names_links_that_lead_nowhere(monkeypatch, tmp_path):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    (tmp_path / "Dataset001_Moved" / "imagesTr").mkdir(parents=True)
    (tmp_path / "Dataset001_Moved" / "dataset.json").write_text("{}")
    (tmp_path / "Dataset001_Moved" / "imagesTr" / "a_0000.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    (finding,) = doctor.check_datasets()
    assert "a_0000.nii.gz" in finding.state and finding.fix


def test_the_doctor_names_the_torch_that_is_slow(monkeypatch):
    monkeypatch.setattr("torch.__version__", "2.9.1+cu128")
    slow, _ = doctor.check_device()
    assert "four times slower" in slow.state and "torch!=2.9.*" in slow.fix


def test_the_doctor_names_full_disks_and_small_shared_memory(monkeypatch, tmp_path):
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(64_000_000, 63_000_000, 1_000_000))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path)
    assert "0.00 GB free" in next(doctor.check_folders()).state and next(doctor.check_folders()).fix
    assert "--shm-size" in next(doctor.check_shared_memory()).fix
