"""From trained models to one file, and from patients to label maps in their own space."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.model_sharing.model_import import install_model_from_zip_file
from untrained_models import save_untrained, small_plans

from nnunet_brats_ext import bundles
from nnunet_brats_ext.brats import LABEL_SCHEMES, remap
from nnunet_brats_ext.bundles import bundle, segment, segmentation
from nnunet_brats_ext.bundles.archive import open_bundle
from nnunet_brats_ext.bundles.challenges import CHALLENGES, table
from nnunet_brats_ext.bundles.containers import pinned, write_wheel
from nnunet_brats_ext.bundles.patients import find_patients, make_ready
from nnunet_brats_ext.bundles.runs import PASSES
from nnunet_brats_ext.bundles.systems import SystemAtWork
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.dataset_conversion.checking import CheckedPatient
from nnunet_brats_ext.inference import predict, predictor
from nnunet_brats_ext.inference.checkpoints import open_checkpoint
from nnunet_brats_ext.inference.networks import Machine
from nnunet_brats_ext.inference.options import PredictOptions
from nnunet_brats_ext.papers import EXTERNAL
from nnunet_brats_ext.predictions.case_clusters import features_of, fit_clusters
from nnunet_brats_ext.predictions.rule_sets import RuleSet
from nnunet_brats_ext.predictions.rules import RuleInput
from nnunet_brats_ext.storage import shared_memory
from nnunet_brats_ext.storage.errors import Notice, UserError
from nnunet_brats_ext.storage.images import read_grid, read_image, read_label_map, turn, write_image
from nnunet_brats_ext.training.preconditions import LOADERS, limit_loaders
from nnunet_brats_ext.workflow.recipe import OF_PREDICTION

CASE, OTHER = "BraTS20_Validation_007", "BraTS20_Validation_008"
SHARED = Path(__file__).parents[3] / "shared"
SEQUENCES = ("t1", "t1ce", "t2", "flair")


@pytest.fixture(scope="module")
def models(world_on_disk, tmp_path_factory) -> Path:
    """A cascade of two stages with two folds each."""
    results = tmp_path_factory.mktemp("results")
    cascade = {"first": {"next_stage": "second"}, "second": {"previous_stage": "first"}}
    plans = small_plans(world_on_disk, "SmallPlans", cascade)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (world_on_disk.settings | {"nnUNet_results": str(results)}).items():
            patch.setenv(name, value)
        for seed, stage in enumerate(cascade, start=1):
            save_untrained(world_on_disk, plans, stage, folds=(0, 1), seed=seed)
    return results / "Dataset901_World"


def folder_of(models: Path, stage: str) -> Path:
    return models / f"BraTSBaselineTrainer__SmallPlans__{stage}"


@pytest.fixture(scope="module")
def voted(models, world_on_disk, tmp_path_factory) -> Path:
    """The cascade as a bundle, with votes and rules."""
    out = tmp_path_factory.mktemp("bundles") / "voted.zip"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_raw", world_on_disk.settings["nnUNet_raw"])
        bundle(folder_of(models, "second"), out=out, combine="vote", rules=["lyu2020"], trusted=True)
    return out


@pytest.fixture(scope="module")
def single(models, tmp_path_factory) -> Path:
    """The first stage as a bundle."""
    out = tmp_path_factory.mktemp("bundles") / "single.zip"
    bundle(folder_of(models, "first"), out=out, licence="CC0-1.0", title="First stage", trusted=True)
    return out


@pytest.fixture(autouse=True)
def quick_checks(monkeypatch):
    """What `check` finds is tested elsewhere, and takes seconds."""
    monkeypatch.setattr(segmentation, "check_case", lambda case: CheckedPatient(case.name, []))


@pytest.fixture
def patients(world, tmp_path) -> Path:
    """The two unlabelled cases of the release, to be spoiled."""
    folder = world.root / "release" / "MICCAI_BraTS2020_ValidationData"
    return Path(shutil.copytree(folder, tmp_path / folder.name))


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No folder of nnU-Net is named, and home is another one."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def labels_of(path: Path) -> np.ndarray:
    return read_label_map(path)[0]


def segmented(path: Path, *folders: Path, out: Path, **options):
    return segment(path, *folders, out=out, device="cpu", **options)


# ---- from models to a file -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", ["release", "text"])
def test_a_bundled_cascade_with_votes_and_rules_gives_what_predict_gives(
    ties, voted, models, patients, world, tmp_path
):
    votes = dict(combine="vote", ties=ties, rules=["lyu2020"], trusted=True)
    predict(
        world.raw / "imagesTs", tmp_path / "expected", folder_of(models, "second"), device="cpu", processes=0, **votes
    )
    if ties == "text":
        voted = tmp_path / "by the text.zip"
        bundle(folder_of(models, "second"), out=voted, **votes)
    found = segmented(voted, patients, out=tmp_path / "out", labels="trained")
    assert len(found.patients) == 2
    for case, one in found.patients.items():
        assert np.array_equal(labels_of(one.label_map), labels_of(tmp_path / "expected" / f"{case}.nii.gz"))
    if ties == "text":
        from_release = tmp_path / "expected release"
        votes["ties"] = "release"
        predict(world.raw / "imagesTs", from_release, folder_of(models, "second"), device="cpu", processes=0, **votes)
        files = [path.name for path in from_release.glob("*.nii.gz")]
        assert any(
            not np.array_equal(labels_of(from_release / name), labels_of(tmp_path / "expected" / name))
            for name in files
        ), "else this test cannot fail"


def test_what_a_recipe_says_of_a_prediction_reaches_the_bundle():
    schema = json.loads((Path(bundles.__file__).parent / "bundle.schema.json").read_text())
    words = {{"tta": "symmetries"}.get(word, word) for word in OF_PREDICTION} - {"checkpoints"}
    assert words == set(PASSES)
    (networks,) = (
        one for one in schema["properties"]["predictions"]["additionalProperties"]["oneOf"]
        if "passes" in one["properties"]
    )  # fmt: skip
    assert words <= set(networks["properties"]["passes"]["properties"])


def test_a_mean_of_models_gives_what_ensemble_gives(models, patients, world, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(models.parent))
    folders = [folder_of(models, "first"), folder_of(models, "second")]
    for number, folder in enumerate(folders):
        options = dict(device="cpu", processes=0, save_probabilities=True, trusted=True)
        predict(world.raw / "imagesTs", tmp_path / str(number), folder, **options)
    words = ["ensemble", "-i", str(tmp_path / "0"), str(tmp_path / "1"), "-o", str(tmp_path / "mean"), "-np", "1"]
    assert main([*words, "--weights", "2", "1"]) == 0
    bundle(*folders, out=tmp_path / "two.zip", weights=[2, 1], trusted=True)
    found = segmented(tmp_path / "two.zip", patients / CASE, out=tmp_path / "out", labels="trained")
    assert np.array_equal(labels_of(found[CASE].label_map), labels_of(tmp_path / "mean" / f"{CASE}.nii.gz"))


def test_rules_for_clusters_of_cases_are_applied_as_postprocess_applies_them(models, patients, world, tmp_path):
    """The two cases are the centres of two clusters, of which one loses its whole tumour."""
    options = dict(device="cpu", processes=0, trusted=True)
    predict(world.raw / "imagesTs", tmp_path / "before", folder_of(models, "first"), **options)
    files = sorted((tmp_path / "before").glob("*.nii.gz"))
    inputs = [RuleInput(labels_of(file), read_grid(file).voxel_volume_mm3) for file in files]
    clusters = fit_clusters(np.stack([features_of(one, False) for one in inputs]), 2, False)
    rules = tmp_path / "rules.json"
    rules.write_text(RuleSet(({"rule": "small-et", "min_ml": 1e6, "cluster": 0},), clusters=clusters).to_json())
    words = ["postprocess", "-i", str(tmp_path / "before"), "-o", str(tmp_path / "after"), "--rules", str(rules)]
    assert main([*words, "-np", "1"]) == 0
    bundle(folder_of(models, "first"), out=tmp_path / "ruled.zip", rules=[str(rules)], trusted=True)
    found = segmented(tmp_path / "ruled.zip", patients, out=tmp_path / "out", labels="trained")
    for file in files:
        label_map = found[file.name.removesuffix(".nii.gz")].label_map
        assert np.array_equal(labels_of(label_map), labels_of(tmp_path / "after" / file.name))
    changed = [not np.array_equal(labels_of(file), labels_of(tmp_path / "after" / file.name)) for file in files]
    assert sorted(changed) == [False, True]


def test_a_bundle_says_what_it_is(voted, capsys):
    assert main(["inspect", str(voted)]) == 0
    shown = capsys.readouterr().out
    for words in (
        "vote of BraTSBaselineTrainer_second (folds 0, 1; final)", "small-et min_voxels=500", "T1, T1ce, T2, FLAIR",
        "nnunet-brats-ext 0.1.0", "6 labelled cases of 6 patients", "SHA-256", "Licence of the weights: not stated",
        "fold_1/checkpoint_final.safetensors", "3 of 4 networks",
    ):  # fmt: skip
        assert words in shown, words


def test_nnunet_takes_each_model_of_a_bundle(voted, models, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "installed"))
    assert main(["inspect", str(voted), "--nnunet", str(tmp_path / "zips")]) == 0
    assert capsys.readouterr().out.count("nnUNetv2_install_pretrained_model_from_zip") == 2
    for path in (tmp_path / "zips").glob("*.zip"):
        install_model_from_zip_file(str(path))
    installed = folder_of(tmp_path / "installed" / models.name, "first")
    file = installed / "fold_1" / "checkpoint_final.pth"
    weights = torch.load(file, weights_only=True)["network_weights"]
    expected = open_checkpoint(folder_of(models, "first") / "fold_1" / "checkpoint_final.pth")["network_weights"]
    assert weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in weights)
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(installed), (0, 1), "checkpoint_final.pth")
    assert len(predictor.list_of_parameters) == 2


def test_predict_says_that_a_checkpoint_is_code_unless_it_is_none(models, voted, world, tmp_path, recwarn):
    words = [
        "predict",
        "-m",
        "",
        "-i",
        str(world.raw / "imagesTs"),
        "-o",
        "",
        *["-device", "cpu", "-np", "0", "--tta", "none"],
    ]

    def notices(model: Path, out: str, *more: str) -> list[str]:
        words[2], words[6] = str(model), str(tmp_path / out)
        recwarn.clear()
        assert main([*words, *more]) == 0
        return [str(one.message) for one in recwarn if "is code" in str(one.message)]

    assert len(notices(folder_of(models, "first"), "one")) == 1
    assert not notices(folder_of(models, "first"), "two", "--trusted")
    main(["inspect", str(voted), "--nnunet", str(tmp_path / "zips")])
    os.environ["nnUNet_results"] = str(tmp_path / "installed")  # the world's fixture resets it
    for path in (tmp_path / "zips").glob("*first.zip"):
        install_model_from_zip_file(str(path))
    assert not notices(folder_of(tmp_path / "installed" / models.name, "first"), "three"), "tensors only"
    with open_bundle(voted) as opened:
        name = opened.model_folder("BraTSBaselineTrainer_first")
        assert not notices(name, "four", "-chk", "checkpoint_final.safetensors")
    maps = [labels_of(tmp_path / out / f"{CASE}.nii.gz") for out in ("one", "two", "three", "four")]
    assert all(np.array_equal(maps[0], other) for other in maps[1:])


# ---- from a patient to a label map -----------------------------------------------------------------------------------


def test_a_patient_in_three_lines_without_any_environment(single, patients, tmp_path, nowhere):
    result = segment(single, patients / CASE, out=tmp_path / "out")
    found = result[CASE]
    assert found.volumes_ml.keys() == {"ED", "NCR", "WT", "TC", "ET"}
    grid, own = read_grid(found.label_map), read_grid(patients / CASE / f"{CASE}_t1.nii.gz")
    assert grid == own
    labels = labels_of(found.label_map)
    ml = grid.voxel_volume_mm3 / 1000
    assert found.volumes_ml["WT"] == pytest.approx((labels > 0).sum() * ml)
    assert found.volumes_ml["ED"] == pytest.approx((labels == 2).sum() * ml), "as BraTS numbers oedema"
    with result.volumes.open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert float(rows["ET"]["volume_ml"]) == pytest.approx(found.volumes_ml["ET"], abs=1e-3)
    assert float(rows["WT"]["product_mm2"]) > 0
    page = result.page.read_text()
    assert CASE in page and "data:image/png;base64," in page and "http" not in page
    assert found.picture.stat().st_size > 10_000
    assert json.loads((tmp_path / "out" / "details" / f"{CASE}.json").read_text())["seconds"] > 0


@pytest.mark.parametrize(
    ("labels", "scheme"), [("brats", "glioma_2023"), ("brats-before-2023", "glioma_2017"), ("trained", "decathlon")]
)
def test_the_numbering_is_as_asked_for(labels, scheme, single):
    with open_bundle(single) as opened:
        numbers = segmentation.numbers_written(opened.system, labels)
    assert numbers == LABEL_SCHEMES[scheme].trained


def test_label_maps_lie_in_the_patients_own_axes(single, patients, tmp_path):
    straight = segmented(single, patients / CASE, out=tmp_path / "straight", probabilities=True)
    for path in (patients / CASE).glob("*.nii.gz"):
        image = read_image(path).turned("SAR")
        write_image(path, image.array, image.grid)
    turned = segmented(single, patients / CASE, out=tmp_path / "turned", probabilities=True)
    image = read_image(turned[CASE].label_map)
    assert image.grid.axes == "SAR"
    assert np.array_equal(turn(image.array, "SAR", "LPS"), labels_of(straight[CASE].label_map))
    here, there = (read_image(one[CASE].probabilities["ET"]) for one in (turned, straight))
    assert np.allclose(here.turned("LPS").array, there.array) and there.array.max() <= 1
    assert {one["name"]: one["ml"] for one in turned[CASE].details["measures"]} == straight[CASE].volumes_ml


def test_named_files_of_other_formats_and_other_names_are_one_patient(single, patients, tmp_path):
    named = {}
    for sequence in SEQUENCES:
        named[sequence] = tmp_path / "Smith J" / f"x_{len(named)}.nrrd"
        named[sequence].parent.mkdir(exist_ok=True)
        image = read_image(patients / CASE / f"{CASE}_{sequence}.nii.gz")
        write_image(named[sequence], image.array, image.grid)
    expected = segmented(single, patients / CASE, out=tmp_path / "expected")
    found = segmented(single, out=tmp_path / "out", **named)
    assert np.array_equal(labels_of(found["Smith J"].label_map), labels_of(expected[CASE].label_map))
    with pytest.raises(UserError, match="has no FLAIR; --missing"):
        named.pop("flair")
        found = segmented(single, out=tmp_path / "without", **named)
        raise UserError(found.failed["Smith J"])
    found = segmented(single, out=tmp_path / "with", **named, missing=True)
    assert any("not trained without sequences" in note for note in found["Smith J"].details["notes"])


def test_a_case_that_fails_stops_no_other_and_what_is_done_is_not_done_again(single, patients, tmp_path, capsys):
    broken = patients / "BraTS20_Validation_008" / "BraTS20_Validation_008_t2.nii.gz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:2000])
    words = ["segment", str(single), str(patients), "-o", str(tmp_path / "out"), "-device", "cpu"]
    assert main(words) == 1
    shown = capsys.readouterr()
    assert "to segment: 2\n" in shown.out
    assert f"{CASE}: WT" in shown.out and "BraTS20_Validation_008: failed" in shown.out and "truncated" in shown.out
    done = tmp_path / "out" / f"{CASE}.nii.gz"
    written = done.stat().st_mtime_ns
    broken.write_bytes(whole)
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "to segment: 1\n" in shown and "already: 1" in shown
    assert done.stat().st_mtime_ns == written
    assert "BraTS20_Validation_008" in (tmp_path / "out" / "index.html").read_text()
    assert main([*words, "--labels", "trained"]) == 1, "not continued with other settings"
    assert "made with other settings (labels)" in capsys.readouterr().err


def named_files(patients: Path, case: str) -> dict[str, Path]:
    return {sequence: patients / case / f"{case}_{sequence}.nii.gz" for sequence in SEQUENCES}


def scan_of(patients: Path, case: str, folder: Path) -> dict[str, Path]:
    """The files of a case in a folder called as those of other patients are."""
    folder.mkdir(parents=True)
    found = {sequence: folder / f"{sequence}.nii.gz" for sequence in SEQUENCES}
    for sequence, file in named_files(patients, case).items():
        shutil.copy(file, found[sequence])
    return found


def test_another_patient_of_the_same_name_is_not_taken_for_the_finished_one(single, patients, tmp_path, monkeypatch):
    first = scan_of(patients, CASE, tmp_path / "p1" / "Smith")
    second = scan_of(patients, OTHER, tmp_path / "p2" / "Smith")
    out = tmp_path / "out"
    done = segmented(single, out=out, **first)["Smith"]
    before = done.label_map.read_bytes()
    with pytest.raises(UserError) as refused:
        segmented(single, out=out, **second)
    for words in ("Smith", str(second["t1"]), str(first["t1"]), "-o", "--name", "--overwrite"):
        assert words in str(refused.value), words
    assert done.label_map.read_bytes() == before
    with pytest.raises(UserError, match="Smith") as refused:
        segmented(single, second["t1"].parent, out=out)
    assert "--name" not in str(refused.value), "folders have no such option"
    monkeypatch.chdir(tmp_path)  # the same files, spelled otherwise
    (tmp_path / "linked").symlink_to(tmp_path / "p1", target_is_directory=True)
    assert segmented(single, out=out, **{name: Path("p1/Smith") / path.name for name, path in first.items()}).before
    assert segmented(single, out=out, **{name: Path("linked/Smith") / path.name for name, path in first.items()}).before
    details = out / "details" / "Smith.json"
    noted = json.loads(details.read_text())
    noted.pop("files")  # of an older version
    details.write_text(json.dumps(noted))
    assert segmented(single, out=out, **second).before == ["Smith"]


def test_what_is_overwritten_is_gone_before_the_first_case_is_predicted(single, patients, tmp_path, monkeypatch):
    out = tmp_path / "out"
    segmented(single, patients, out=out, probabilities=True)
    seen = []

    def stopped(self, *arguments):
        seen.extend(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and path.name[0] != ".")
        raise KeyboardInterrupt

    monkeypatch.setattr(SystemAtWork, "predict", stopped)
    with pytest.raises(KeyboardInterrupt):
        segmented(single, patients, out=out, labels="trained", probabilities=True, overwrite=True)
    assert seen == ["segment.json"]
    monkeypatch.undo()
    monkeypatch.setattr(segmentation, "check_case", lambda case: CheckedPatient(case.name, []))
    found = segmented(single, patients, out=out, labels="trained", probabilities=True)
    assert not found.before and len(found.patients) == 2
    broken = named_files(patients, OTHER)["t2"]
    broken.write_bytes(broken.read_bytes()[:2000])
    found = segmented(single, patients, out=out, labels="trained", probabilities=True, overwrite=True)
    assert OTHER in found.failed and not (out / f"{OTHER}.nii.gz").exists()
    assert not list(out.rglob(f"{OTHER}*")) and (out / f"{CASE}.nii.gz").is_file()


def test_overwriting_some_patients_with_other_settings_is_refused_and_with_the_same_keeps_the_others(
    single, patients, tmp_path
):
    out = tmp_path / "out"
    segmented(single, patients, out=out)
    label_map = out / f"{CASE}.nii.gz"
    before = label_map.stat().st_mtime_ns
    with pytest.raises(UserError, match=rf"{OTHER}.*other settings \(labels\).*name them too"):
        segmented(single, patients / CASE, out=out, labels="trained", overwrite=True)
    assert label_map.stat().st_mtime_ns == before
    segmented(single, patients / CASE, out=out, overwrite=True)
    assert label_map.stat().st_mtime_ns > before
    assert segmented(single, patients, out=out).before == [CASE, OTHER]


def test_sessions_of_a_patient_give_a_table_and_a_curve(single, patients, tmp_path):
    sessions = tmp_path / "clinic" / "Smith"
    for number, case in enumerate(sorted(patients.iterdir())):
        target = sessions / f"2024-0{number + 1}-15"
        target.mkdir(parents=True)
        for sequence in SEQUENCES:
            shutil.copy(case / f"{case.name}_{sequence}.nii.gz", target / f"{sequence}.nii.gz")
    result = segmented(single, sessions.parent, out=tmp_path / "out")
    with result.timeline.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["patient"], row["session"]) for row in rows if row["name"] == "ET"] == [
        ("Smith", "2024-01-15"),
        ("Smith", "2024-02-15"),
    ]
    assert "Over time" in result.page.read_text()
    volumes = [float(row["volume_ml"]) for row in rows if row["name"] == "WT"]
    expected = 100 * (volumes[1] - volumes[0]) / volumes[0]
    assert float(rows[-3]["change_since_baseline_percent"]) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("precision", ["default", "bf16"])
def test_the_precision_that_was_asked_for_is_that_of_every_network(precision, voted, patients, tmp_path, monkeypatch):
    used = []
    own = predictor.BraTSPredictor.predict_average

    def noted(self, *arguments):
        used.append(self.precision)
        return own(self, *arguments)

    monkeypatch.setattr(predictor, "require_bf16", lambda device: None)  # a processor may have to emulate it
    monkeypatch.setattr(predictor.BraTSPredictor, "predict_average", noted)
    segmented(voted, patients / CASE, out=tmp_path / "out", precision=precision)
    assert used == [precision] * 6, "two of stage 1, and two of stage 2 on each of them"


def test_a_time_limit_leaves_out_networks_and_says_so(voted, patients, tmp_path):
    found = segmented(voted, patients / CASE, out=tmp_path / "out", time_limit=0.001)
    assert "2 of 4 networks, without test-time augmentation" in found[CASE].details["notes"][-1]
    found = segmented(voted, patients / CASE, out=tmp_path / "all", time_limit=1e6)
    assert not any("lack of time" in note for note in found[CASE].details["notes"])


def test_a_trainer_that_is_not_there_is_named_with_its_package(single, patients, tmp_path, monkeypatch):
    place = tmp_path / "unpacked"
    shutil.unpack_archive(single, place)
    text = (place / "bundle.json").read_text().replace('"trainer": "BraTSBaselineTrainer"', '"trainer": "BraTSX1"')
    (place / "bundle.json").write_text(text)
    with pytest.raises(UserError, match=r"BraTSX1 of nnunet-brats-ext 0\.1\.0"):
        segmented(place, patients / CASE, out=tmp_path / "out")


def resampled(source: Path, target: Path, spacing_mm: tuple[float, ...], axes: str = "LPS") -> None:
    image = sitk.DICOMOrient(sitk.Cast(sitk.ReadImage(str(source)), sitk.sitkFloat32), axes)
    size = [round(n * s / mm) for n, s, mm in zip(image.GetSize(), image.GetSpacing(), spacing_mm, strict=True)]
    target.parent.mkdir(parents=True, exist_ok=True)
    same = sitk.Transform()
    image = sitk.Resample(image, size, same, sitk.sitkLinear, image.GetOrigin(), spacing_mm, image.GetDirection(), 0.0)
    sitk.WriteImage(image, str(target))


SMOOTH_TRAINER = """
import torch
from nnunet_brats_ext.trainers import BraTSBaselineTrainer


class SmoothTrainer(BraTSBaselineTrainer):
    @classmethod
    def build_network_architecture(cls, *arguments, **named):
        return torch.nn.Conv3d(4, 3, 3, padding=1)
"""


def smooth_bundle(world, place: Path, patch: pytest.MonkeyPatch) -> Path:
    """A network that finds where FLAIR, blurred, is bright: as smooth as trained ones are, and trained by nobody."""
    (place / "own").mkdir()
    (place / "own" / "smooth_trainers.py").write_text(SMOOTH_TRAINER)
    patch.setenv(EXTERNAL, os.pathsep.join([str(place / "own"), os.environ.get(EXTERNAL, "")]))
    network = torch.nn.Conv3d(4, 3, 3, padding=1)
    with torch.no_grad():
        network.weight.zero_()
        network.weight[:, 3] = 1 / 27
        network.bias.fill_(-1.2)  # standard deviations
    plans = small_plans(world, "Plans", {"smooth": {"spacing": [2.0, 2.0, 2.0], "patch_size": [64, 64, 64]}})
    model = place / "Dataset901_World" / "SmoothTrainer__Plans__smooth"
    (model / "fold_0").mkdir(parents=True)
    (model / "plans.json").write_text(json.dumps(plans))
    (model / "dataset.json").write_text(json.dumps(world.dataset_json))
    names = {
        "trainer_name": "SmoothTrainer",
        "init_args": {"configuration": "smooth", "plans": {"plans_name": "Plans"}},
    }
    torch.save({"network_weights": network.state_dict(), **names}, model / "fold_0" / "checkpoint_final.pth")
    bundle(model, out=place / "smooth.zip")
    return place / "smooth.zip"


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


@pytest.mark.skipif(not (SHARED / "real_patients").is_dir(), reason="needs real patients beside the project")
def test_a_real_patient_in_two_spaces_has_one_label_map(world, tmp_path, monkeypatch):
    """In other axes and of other voxels, as another scanner has it: after going back it scores within 0.02 Dice."""
    name = "BraTS2021_00000"
    source = SHARED / "real_patients" / "BraTS2021_Training_Data" / name
    for sequence in SEQUENCES:
        file = f"{name}_{sequence}.nii.gz"
        resampled(source / file, tmp_path / "own" / name / file, (2.0, 2.0, 2.0))
        resampled(source / file, tmp_path / "turned" / name / file, (1.8, 2.2, 2.0), "SAR")
    (tmp_path / "model").mkdir()
    path = smooth_bundle(world, tmp_path / "model", monkeypatch)
    reference = sitk.ReadImage(str(source / f"{name}_seg.nii.gz"))
    masks = []
    for space, axes in (("own", "LPS"), ("turned", "SAR")):
        label_map = segmented(path, tmp_path / space / name, out=tmp_path / space / "out")[name].label_map
        assert read_grid(label_map).axes == axes
        back = sitk.Resample(sitk.ReadImage(str(label_map)), reference, sitk.Transform(), sitk.sitkNearestNeighbor)
        masks.append(sitk.GetArrayFromImage(back) > 0)
    tumour = sitk.GetArrayFromImage(reference) > 0
    assert dice(masks[0], tumour) > 0.6
    assert dice(masks[0], tumour) == pytest.approx(dice(masks[1], tumour), abs=0.02)


# ---- containers ------------------------------------------------------------------------------------------------------


def test_challenges_state_names_labels_and_grid():
    assert {name.split("-")[0] for name in CHALLENGES} == {
        "BraTS2021", "FeTS2022", "BraTS2023", "BraTS2024", "BraTS2025", "plain",
    }  # fmt: skip
    page = (Path(__file__).parents[2] / "docs" / "bundles.md").read_text()
    assert table() in page, "stale: paste the output of `nnunet_brats_ext.bundles.challenges.table()` into the page"
    for one in CHALLENGES.values():
        assert (one.layout is None) == (one.scheme is None)


NEW_NAMES = dict(zip(SEQUENCES, ("t1n", "t1c", "t2w", "t2f"), strict=True))
NAMES = {  # challenge -> a case's name as no rule has it, and how its files are called
    "BraTS2021-GLI": ("00017", "{case}_{sequence}", dict(zip(SEQUENCES, SEQUENCES, strict=True))),
    "BraTS2023-GLI": ("Patient.A", "{case}-{sequence}", NEW_NAMES),
    "BraTS2025-GLI-PRE": ("BraTS-GLI-00001-000", "{case}-{sequence}", NEW_NAMES),
}


@pytest.fixture(scope="module")
def container(single, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("containers") / "container"
    assert main(["container", str(single), "-o", str(out), "--challenge", "BraTS2023-GLI", "--time-limit", "3600"]) == 0
    return out


def as_challenge(patients: Path, target: Path, challenge: str) -> str:
    """The first patient under a challenge's names; the name of the case."""
    case, form, names = NAMES[challenge]
    (target / case).mkdir(parents=True)
    for sequence, written in names.items():
        name = form.format(case=case, sequence=written)
        shutil.copy(patients / CASE / f"{CASE}_{sequence}.nii.gz", target / case / f"{name}.nii.gz")
    return case


@pytest.mark.parametrize("challenge", NAMES)
def test_a_challenge_gets_its_names_and_labels_and_nothing_else(challenge, single, patients, tmp_path):
    case = as_challenge(patients, tmp_path / "input", challenge)
    segmented(single, tmp_path / "input", out=tmp_path / "output", challenge=challenge)
    assert [path.name for path in (tmp_path / "output").iterdir()] == [f"{case}.nii.gz"]
    expected = segmented(single, patients / CASE, out=tmp_path / "expected", labels="trained")
    numbers = LABEL_SCHEMES[CHALLENGES[challenge].scheme].trained
    there = remap(labels_of(expected[CASE].label_map), numbers)
    assert np.array_equal(labels_of(tmp_path / "output" / f"{case}.nii.gz"), there)


def can_be_nobody_without_network() -> bool:
    words = [
        "unshare",
        "--net",
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        sys.executable,
        "-c",
        "",
    ]
    try:
        return subprocess.run(words, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not can_be_nobody_without_network(), reason="needs root, unshare and setpriv")
def test_the_entry_point_runs_as_anybody_without_network_on_input_that_is_only_read(
    container, patients, tmp_path_factory
):
    place = Path("/tmp") / f"nnunet_brats_container_{os.getpid()}"  # pytest's folders are closed to others
    try:
        shutil.copytree(container, place / "opt")
        case = as_challenge(patients, place / "input", "BraTS2023-GLI")
        shutil.copytree(place / "input" / case, place / "input" / "Broken")
        for path in (place / "input" / "Broken").iterdir():
            content = path.read_bytes()
            path.rename(path.with_name(path.name.replace(case, "Broken"))).write_bytes(content[: len(content) // 2])
        for path in (place / "input", *(place / "input").rglob("*")):
            path.chmod(0o555)
        (place / "output").mkdir()
        for path in (place, place / "output"):
            path.chmod(0o777)
        settings = {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2]),
            "SYSTEM": str(place / "opt" / "system"), "INPUT": str(place / "input"), "OUTPUT": str(place / "output"),
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        words = ["unshare", "--net", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        done = subprocess.run(
            [*words, "sh", place / "opt" / "entrypoint.sh"], env=settings, capture_output=True, text=True
        )
        assert done.returncode == 1, done.stdout + done.stderr
        assert "Broken: failed" in done.stdout and "truncated" in done.stdout
        assert [path.name for path in (place / "output").iterdir()] == [f"{case}.nii.gz"]
        assert read_image(place / "output" / f"{case}.nii.gz").array.max() <= 3
    finally:
        shutil.rmtree(place, ignore_errors=True)


def test_a_container_is_built_of_pinned_packages_and_this_one(container):
    lines = (container / "requirements.txt").read_text().split()
    assert lines == pinned()
    assert all("==" in line for line in lines)
    assert {"torch", "nnunetv2", "simpleitk", "numpy"} <= {line.split("==")[0] for line in lines}
    assert "/opt/entrypoint.sh" in (container / "Dockerfile").read_text()
    assert "3600" in (container / "entrypoint.sh").read_text() and os.access(container / "entrypoint.sh", os.X_OK)
    assert "1 of 2 networks" in (container / "README.md").read_text()


def test_the_wheel_in_a_container_installs_this_package(tmp_path):
    wheel = write_wheel(tmp_path)
    words = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(tmp_path / "here"),
    ]
    subprocess.run([*words, "--disable-pip-version-check", str(wheel)], check=True)
    assert (tmp_path / "here" / "nnunet_brats_ext" / "bundles" / "bundle.schema.json").is_file()
    assert (tmp_path / "here" / "nnunet_brats_ext.pth").is_file()


def test_a_challenge_that_a_system_cannot_take_part_in_is_refused(single, tmp_path, capsys):
    words = ["container", str(single), "-o", str(tmp_path / "out"), "--challenge"]
    assert main([*words, "BraTS2024-MEN-RT"]) == 1
    assert "gives T1ce, and no T1" in capsys.readouterr().err


@pytest.mark.skipif(
    not shutil.which("docker") or subprocess.run(["docker", "info"], capture_output=True).returncode != 0,
    reason="no docker that works here",
)
def test_the_image_is_built(container):
    subprocess.run(["docker", "build", "-t", "nnunet-brats-test", str(container)], check=True)


# ---- shared memory ---------------------------------------------------------------------------------------------------


def test_with_little_shared_memory_no_workers_are_used_and_a_line_says_why(monkeypatch, tmp_path):
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(64_000_000, 0, 64_000_000))
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path)
    with pytest.warns(Notice, match="64 MB, too little for worker processes"):
        assert Machine.from_options(PredictOptions(device="cpu", processes=3)).workers == 0
    monkeypatch.setenv(LOADERS, "2")
    assert limit_loaders() is None, "as the user asks"
    monkeypatch.delenv(LOADERS)
    assert "64 MB" in limit_loaders()
    assert os.environ[LOADERS] == "0"


def test_nothing_is_said_where_there_is_enough(monkeypatch, tmp_path):
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path / "none")
    assert Machine.from_options(PredictOptions(device="cpu", processes=3)).workers == 3


# ---- finding patients ------------------------------------------------------------------------------------------------


def empty(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize(
    ("files", "cases"),
    [
        (["{0}/t1.nii.gz", "{0}/t1ce.nii.gz"], {"Smith"}),
        (["{0}/BraTS-GLI-00001-000-t1n.nii.gz", "{0}/BraTS-GLI-00001-000-t1c.nii.gz"], {"BraTS-GLI-00001-000"}),
        (["{0}/a/T1w.nii", "{0}/a/FLAIR.nii", "{0}/b/T1w.nii", "{0}/b/FLAIR.nii"], {"a", "b"}),
    ],
    ids=["one patient", "several releases have this name", "two patients"],
)
def test_the_folder_of_one_patient_is_found_as_a_folder_of_many(files, cases, tmp_path):
    root = tmp_path / "Smith"
    empty(*(tmp_path / file.format(root.name) for file in files))
    assert {case.name.removeprefix("Smith_") for case in find_patients([root]).cases} == cases


def test_a_patients_images_are_made_ready_for_a_models_channels(single, patients, tmp_path):
    (case,) = find_patients([patients / CASE]).cases
    with open_bundle(single) as opened:
        ready = make_ready(case, SystemAtWork(opened, Machine("cpu")).description, tmp_path / "ready")
    for number, sequence in enumerate(SEQUENCES):
        expected = read_image(patients / CASE / f"{CASE}_{sequence}.nii.gz")
        assert np.array_equal(read_image(ready.files[number]).array, expected.array)
