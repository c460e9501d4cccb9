"""Weights of nnU-Net v1 and of MONAI, what a model becomes, and files that are damaged, of others, or hostile."""

import copy
import json
import os
import pickle
import shutil
import zipfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from released_weights import folder_of_v1, network_of
from spoiling import PREPROCESSED, RAW

from nnunet_brats_ext import trainers
from nnunet_brats_ext.bundles import bundle
from nnunet_brats_ext.bundles.archive import open_bundle
from nnunet_brats_ext.bundles.containers import extras_of, pinned
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.inference.models import open_model
from nnunet_brats_ext.inference.prediction import predict
from nnunet_brats_ext.inference.tilings import Volume
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.trainers.baseline.tilings import GAUSSIAN, MONAI
from nnunet_brats_ext.training.environment import EPOCHS, ITERATIONS
from nnunet_brats_ext.weights.importing import LABELS, ImportOptions, import_weights
from nnunet_brats_ext.weights.reading import read_pickle, read_torch
from nnunet_brats_ext.weights.sources import find_sources


def imported(source: Path, out: Path, **options):
    return import_weights(ImportOptions(source=source, out=str(out), **options))


# ---- nnU-Net v1 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [
        ("regions", ("WT", "TC", "ET")),
        ("softmax", ("background", "ED", "NCR", "ET")),  # channels FLAIR, T1, T1ce, T2; other axes
        ("2d", ("background", "ED", "NCR", "ET")),
        ("lowres", ("background", "ED", "NCR", "ET")),
        ("cascade", ("background", "ED", "NCR", "ET")),  # and labels behind the images
    ],
)
def test_a_model_of_v1_gives_what_v1_gives(kind, outputs, tmp_path):
    golden = folder_of_v1(kind, tmp_path / "v1")
    done = imported(tmp_path / "v1", tmp_path / "model")
    assert (done.sequences, done.outputs) == (("T1", "T1ce", "T2", "FLAIR"), outputs)
    labels = [label for label in LABELS if label in done.model.inputs]
    order = [done.model.inputs.index(one) for one in (*done.sequences, *labels)]
    network = network_of(done)
    for size, values, spread in zip(golden["sizes"], golden["values"], golden["spread"], strict=True):
        image = np.random.RandomState(sum(size)).standard_normal((1, len(order), *size)).astype(np.float32)
        with torch.no_grad():
            logits = network(torch.from_numpy(image[:, order]))[0].flatten(1).numpy()
        found = logits[:, np.linspace(0, logits.shape[1] - 1, 7).astype(int)]
        assert np.abs(found - np.array(values)).max() < 1e-5 * spread


def test_plans_of_v1_are_carried_over(tmp_path):
    folder_of_v1("softmax", tmp_path / "v1", ("fold_0", "fold_1"))
    done = imported(tmp_path / "v1", tmp_path / "model")
    assert done.folds == ("0", "1")
    plans = json.loads((tmp_path / "model" / "plans.json").read_text())
    planned = plans["configurations"]["3d_fullres"]
    assert plans["transpose_forward"] == plans["transpose_backward"] == [1, 0, 2]
    assert planned["patch_size"] == [32, 40, 24]
    assert planned["normalization_schemes"] == ["ZScoreNormalization"] * 4
    assert planned["use_mask_for_norm"] == [True] * 4
    open_model(tmp_path / "model")


def test_a_model_of_v1_is_imported_and_predicts_whole_patients(tmp_path, world, capsys):
    folder_of_v1("regions", tmp_path / "v1")
    images = Path(shutil.copytree(world.raw / "imagesTs", tmp_path / "images"))
    for path in images.iterdir():  # small in v1's voxels of 1 mm
        image = sitk.ReadImage(str(path))
        image.SetSpacing((1, 1, 1))
        sitk.WriteImage(image, str(path))
    assert main(["import", str(tmp_path / "v1"), "-o", str(tmp_path / "model")]) == 0
    shown = capsys.readouterr().out
    assert "nnU-Net v1" in shown and "do not evaluate on these cases" in " ".join(shown.split())
    words = f"predict -m {tmp_path / 'model'} -f 0 -i {images} -o {tmp_path / 'out'} -device cpu -np 0"
    assert main([*words.split(), "--tta", "none"]) == 0
    label_maps = list((tmp_path / "out").glob("*.nii.gz"))
    assert len(label_maps) == 2
    for path in label_maps:
        image = sitk.ReadImage(str(images / path.name.replace(".", "_0000.", 1)))
        assert sitk.ReadImage(str(path)).GetSize() == image.GetSize()


def test_both_stages_of_a_cascade_become_models_of_one_data_set_and_predict_one_after_the_other(everything, tmp_path):
    """Plans of both name both stages, so that those beside the data set, for training, are the same."""
    plans_file = everything / PREPROCESSED / "nnUNetPlansV1.json"
    models = {}
    for stage in ("lowres", "cascade"):
        folder_of_v1(stage, tmp_path / stage)
        models[stage] = imported(tmp_path / stage, "901").folder
        assert json.loads(plans_file.read_text()) == json.loads((models[stage] / "plans.json").read_text())
    assert open_model(models["cascade"]).previous_model().folder == models["lowres"]
    (tmp_path / "images").mkdir()
    random = np.random.default_rng(0)
    for channel in range(4):
        image = sitk.GetImageFromArray(random.integers(1, 99, (28, 34, 26)).astype(np.float32))
        sitk.WriteImage(image, str(tmp_path / "images" / f"case_{channel:04d}.nii.gz"))
    options = dict(device="cpu", processes=0, trusted=True)
    found = {}
    for name, model, more in (
        ("first", "lowres", {}),  # with its trainer's symmetries, as `both` sees it
        ("second", "cascade", {"previous": (tmp_path / "first",), "symmetries": "none"}),
        ("both", "cascade", {"symmetries": "none"}),
        ("none", "cascade", {"previous": (tmp_path / "empty",), "symmetries": "none"}),
    ):
        (case,) = predict(tmp_path / "images", tmp_path / name, models[model], **options, **more).values()
        found[name] = sitk.GetArrayFromImage(sitk.ReadImage(str(case)))
        if name == "first":
            (tmp_path / "empty").mkdir()
            empty = sitk.GetImageFromArray(np.zeros_like(found["first"]))
            sitk.WriteImage(empty, str(tmp_path / "empty" / case.name))
    assert np.array_equal(found["both"], found["second"])
    assert not np.array_equal(found["none"], found["second"])


@pytest.mark.parametrize("patch_size", [(8, 8, 6), (8, 6)])
@pytest.mark.parametrize("exclusive", [False, True])
def test_windows_of_v1_put_every_voxel_in_its_place(patch_size, exclusive):
    data = torch.randn(4, 5, 12, 9)
    regions = ((0, 1, 2), (1, 2), (2,))
    volume = Volume(data, {}, patch_size, (1,) * len(patch_size), 4, regions, 3 + exclusive, patch_size)
    logits = GAUSSIAN(lambda window: window[:, : 3 + exclusive], volume)
    expected = torch.log_softmax(data, 0) if exclusive else data[:3]
    assert torch.allclose(logits, expected, atol=1e-4)


def test_windows_of_v1_average_probabilities_and_not_logits():
    """Two windows over one place, one sure that it is tumour and the other a little against it."""
    answers = iter([20.0, -1.0])

    def predict(window: torch.Tensor) -> torch.Tensor:
        return torch.full_like(window[:, :1], next(answers))

    logits = GAUSSIAN(predict, Volume(torch.zeros(1, 4, 4, 6), {}, (4, 4, 4), (1, 1, 1), 1, ((1,),), 1, (4, 4, 4)))
    shared = logits[0, :, :, 2:4].sigmoid()
    weights = compute_gaussian((4, 4, 4), sigma_scale=1 / 8, dtype=torch.float32, device=torch.device("cpu"))
    first, second = weights[:, :, 2:], weights[:, :, :2]
    expected = (first * torch.tensor(20.0).sigmoid() + second * torch.tensor(-1.0).sigmoid()) / (first + second)
    assert torch.allclose(shared, expected, atol=1e-5)


def test_what_v1_had_and_version_2_does_not_is_refused(tmp_path):
    folder_of_v1("regions", tmp_path / "v1")
    file = tmp_path / "v1" / "fold_0" / "model_final_checkpoint.model.pkl"
    content = read_pickle(file)
    file.write_bytes(pickle.dumps(content | {"name": "nnUNetTrainerV2_GN"}))
    with pytest.raises(UserError, match="nnUNetTrainerV2_GN: its normalisation or nonlinearity"):
        imported(tmp_path / "v1", tmp_path / "model")


# ---- MONAI ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SegResNet", "SwinUNETR"])
def test_a_network_of_monai_gives_what_monai_gives(name, tmp_path):
    nets = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    if name == "SegResNet":
        network = nets.SegResNet(
            blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1), init_filters=8, in_channels=4, out_channels=3
        )
        (tmp_path / "bundle" / "configs").mkdir(parents=True)
        (tmp_path / "bundle" / "models").mkdir()
        channels = dict(enumerate(("T1c", "T1", "T2", "FLAIR")))
        metadata = {"version": "0.3.0", "network_data_format": {"inputs": {"image": {"channel_def": channels}}}}
        (tmp_path / "bundle" / "configs" / "metadata.json").write_text(json.dumps(metadata))
        source, order = tmp_path / "bundle", [1, 0, 2, 3]
        torch.save(network.state_dict(), source / "models" / "model.pt")
    else:
        network = nets.SwinUNETR(in_channels=4, out_channels=3, feature_size=12)
        source, order = tmp_path / "model.pt", [3, 1, 0, 2]
        torch.save({"epoch": 1, "best_acc": np.float64(0.9), "state_dict": network.state_dict()}, source)
    done = imported(source, tmp_path / "model")
    ours, network = network_of(done), network.eval()
    for size in ((64, 32, 32), (32, 64, 32)):
        image = torch.randn(1, 4, *size)
        with torch.no_grad():
            theirs = network(image[:, order])
            difference = (ours(image) - theirs[:, [1, 0, 2]]).abs().max()
        assert difference < 1e-5 * theirs.std()
    bundle(tmp_path / "model", out=tmp_path / "system.zip", trusted=True)
    with open_bundle(tmp_path / "system.zip") as opened:
        assert extras_of(opened.system) == {"monai"}  # which a container installs
    assert any(line.startswith("monai==") for line in pinned(["benchmark"]))


def test_a_whole_patient_gets_the_label_map_that_monai_gives(tmp_path):
    nets, transforms = pytest.importorskip("monai.networks.nets"), pytest.importorskip("monai.transforms")
    inferers = pytest.importorskip("monai.inferers")
    torch.manual_seed(0)
    network = nets.SegResNet(
        blocks_down=(1, 1, 1), blocks_up=(1, 1), init_filters=8, in_channels=4, out_channels=3
    ).eval()
    images = np.random.default_rng(0).integers(0, 5, (4, 40, 36, 28)).astype(np.float32)  # zeros inside the brain, too
    images[:, :6] = images[:, :, -4:] = 0
    normalised = transforms.NormalizeIntensity(nonzero=True, channel_wise=True)(images[[1, 0, 2, 3]])[None]
    with torch.no_grad():
        network.conv_final[2].conv.bias.sub_(network(normalised[..., :32, :32, :24]).mean((0, 2, 3, 4)))
        logits = inferers.sliding_window_inference(normalised, (32, 32, 24), 1, network, overlap=0.6)[0]
    torch.save(network.state_dict(), tmp_path / "model.pt")
    core, whole, enhancing = (logits > 0).numpy()
    expected = np.select([enhancing, core, whole], [3, 2, 1])
    (tmp_path / "images").mkdir()
    for channel, image in enumerate(images):
        sitk.WriteImage(sitk.GetImageFromArray(image.T), str(tmp_path / "images" / f"case_{channel:04d}.nii.gz"))
    imported(tmp_path / "model.pt", tmp_path / "model")
    found = predict(
        tmp_path / "images", tmp_path / "out", tmp_path / "model", device="cpu", processes=0, patch_size=(32, 32, 24),
        trusted=True,
    )  # fmt: skip
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(found["case"]))).T
    assert all(np.mean(expected == label) > 0.05 for label in range(4))
    brain = (images != 0).any(0)
    assert np.array_equal(labels[brain], expected[brain])


def test_monai_sees_the_whole_image(tmp_path):
    pytest.importorskip("monai")
    properties = {
        "shape_before_cropping": (12, 10, 8),
        "bbox_used_for_cropping": [[2, 8], [1, 9], [0, 4]],
        "shape_after_cropping_and_before_resampling": (6, 8, 4),
    }
    seen = []

    def predict(window: torch.Tensor) -> torch.Tensor:
        seen.append(window.shape[2:])
        return window[:, :1] * 2

    data = torch.rand(4, 6, 8, 4)
    logits = MONAI(predict, Volume(data, properties, (16, 16, 8), (8, 8, 8), 4, ((0,),), 1, (8, 8, 4)))
    assert seen == [(16, 16, 8)]
    assert torch.equal(logits, data[:1] * 2)


# ---- where models go ------------------------------------------------------------------------------------------------


def test_files_become_folds_of_one_model(tmp_path):
    folder_of_v1("regions", tmp_path / "v1", ("fold_0", "fold_3"))
    files = {fold: tmp_path / "v1" / f"fold_{fold}" / "model_final_checkpoint.model" for fold in (0, 3)}
    imported(files[0], tmp_path / "model")
    with pytest.raises(UserError, match="has fold 0 already"):
        imported(files[0], tmp_path / "model")
    imported(files[3], tmp_path / "model")
    assert open_model(tmp_path / "model").folds == (0, 3)
    noted = json.loads((tmp_path / "model" / "imported_from.json").read_text())
    assert set(noted["files"]) == {"0", "3"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(UserError, match="is there and is no imported model"):
        imported(files[0], tmp_path / "other")


def test_an_empty_folder_becomes_a_whole_model(tmp_path):
    folder_of_v1("regions", tmp_path / "v1")
    for name in ("model", "Dataset901_World/BraTSNNUNetV1Trainer__nnUNetPlansV1__3d_fullres"):
        (tmp_path / name).mkdir(parents=True)
        done = imported(tmp_path / "v1", tmp_path / name.split("/")[0])
        assert done.folder == tmp_path / name
        assert open_model(done.folder).folds == (0,)
        assert {"plans.json", "dataset.json", "imported_from.json"} <= {path.name for path in done.folder.iterdir()}


# ---- files that are not what they should be -------------------------------------------------------------------------


class Hostile:
    """Pickled, it has a function called by whoever reads it without care."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self):
        return os.system, (f"touch {self.place}",)


def hostile_torch(folder: Path, place: Path) -> Path:
    torch.save({"state_dict": Hostile(place)}, folder / "model.pt")
    return folder / "model.pt"


def hostile_old_torch(folder: Path, place: Path) -> Path:
    torch.save({"state_dict": Hostile(place)}, folder / "model.pth", _use_new_zipfile_serialization=False)
    return folder / "model.pth"


def hostile_v1(folder: Path, place: Path) -> Path:
    folder_of_v1("regions", folder / "v1")
    (folder / "v1" / "fold_0" / "model_final_checkpoint.model.pkl").write_bytes(pickle.dumps({"plans": Hostile(place)}))
    return folder / "v1"


@pytest.mark.parametrize("make", [hostile_torch, hostile_old_torch, hostile_v1])
def test_nothing_that_a_file_names_is_executed(make, tmp_path):
    source = make(tmp_path, tmp_path / "executed")
    with pytest.raises(
        UserError, match=r"asks for (posix|nt)\.system, which weights do not need.* Nothing of it was executed"
    ):
        imported(source, tmp_path / "model")
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "model").exists()


def test_a_whole_stored_network_is_read_without_its_code(tmp_path):
    torch.save({"model": torch.nn.DataParallel(torch.nn.Sequential(torch.nn.Linear(2, 3)))}, tmp_path / "model.pth")
    from nnunet_brats_ext.weights.reading import find_state

    state = find_state(read_torch(tmp_path / "model.pth"))
    assert {name: tuple(value.shape) for name, value in state.items()} == {"0.weight": (3, 2), "0.bias": (3,)}


def program(folder: Path) -> Path:
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(folder / "model.ts"))
    return folder / "model.ts"


def archive(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "model.zip", "w") as zipped:
        zipped.writestr("fold_0/model.model", "x")
    return folder / "model.zip"


def text(folder: Path) -> Path:
    (folder / "model.pt").write_text("weights")
    return folder / "model.pt"


def cut(folder: Path) -> Path:
    torch.save({"a": torch.zeros(1000)}, folder / "model.pt")
    os.truncate(folder / "model.pt", 2000)
    return folder / "model.pt"


def of_nobody(folder: Path) -> Path:
    torch.save({"layer.weight": torch.zeros(3, 3)}, folder / "model.pt")
    return folder / "model.pt"


def of_version_2(folder: Path) -> Path:
    torch.save({"network_weights": {"a": torch.zeros(1)}, "init_args": {}}, folder / "checkpoint_final.pth")
    return folder / "checkpoint_final.pth"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (program, "is a TorchScript program"),
        (archive, "unpack it"),
        (text, "is no file of torch, or it is cut short"),
        (cut, "is no file of torch, or it is cut short"),
        (of_nobody, "1 weights, such as layer.weight, of no network that is known"),
        (of_version_2, "is a checkpoint of nnU-Net v2 already"),
        (lambda folder: folder, "holds no weights that can be imported"),
        (lambda folder: folder / "none", "does not exist"),
    ],
)
def test_other_files_are_named_in_one_sentence(make, words, tmp_path, capsys):
    assert main(["import", str(make(tmp_path)), "-o", str(tmp_path / "model")]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_every_source_says_where_its_weights_are_and_what_they_were_trained_on():
    assert len(find_sources()) >= 8
    for source in find_sources():
        assert all((source.title, source.published, source.licence, source.trained_on))


# ---- training on ----------------------------------------------------------------------------------------------------


def test_training_goes_on_from_all_weights_of_an_imported_model(everything, tmp_path, monkeypatch):
    folder_of_v1("regions", tmp_path / "v1")
    done = import_weights(ImportOptions(source=tmp_path / "v1", out="901"))
    plans = json.loads((everything / PREPROCESSED / "nnUNetPlansV1.json").read_text())
    plans["configurations"]["3d_fullres"]["data_identifier"] = "nnUNetPlans_3d_fullres"  # the data are the same
    plans |= {"continue_training": False}
    monkeypatch.setenv(EPOCHS, "1")
    monkeypatch.setenv(ITERATIONS, "1")
    description = json.loads((everything / RAW / "dataset.json").read_text())
    with redirect_stdout(StringIO()):
        trainer = trainers.BraTSNNUNetV1Trainer(plans, "3d_fullres", 0, description, torch.device("cpu"))
        trainer.initialize()
        untrained = copy.deepcopy(trainer.network)
        load_pretrained_weights(trainer.network, str(done.start))
        imported_network = network_of(done)
        imported_weights = imported_network.state_dict()
        for name, value in trainer.network.state_dict().items():
            assert torch.equal(value, imported_weights[name]), name
        batches = []
        step = trainer.train_step
        trainer.train_step = lambda batch: (batches.append(copy.deepcopy(batch)), step(batch))[1]
        trainer.run_training()
    (batch,) = batches
    imported_network.decoder.deep_supervision = True
    with torch.no_grad():
        as_imported, at_random = (
            float(trainer.loss(network(batch["data"]), batch["target"])) for network in (imported_network, untrained)
        )
    begins = float(trainer.logger.get_value("train_losses", step=0))
    assert begins == pytest.approx(as_imported, abs=1e-5), "training begins at the loss of the imported network"
    assert abs(begins - at_random) > 0.01
    files = (done.folder / "fold_0" / "checkpoint_final.pth", done.start)
    trained, start = (torch.load(file, weights_only=False) for file in files)
    for name, value in start["network_weights"].items():
        assert torch.equal(value, imported_weights[name]), "the next fold starts from the same"
    assert any(not torch.equal(trained["network_weights"][name], imported_weights[name]) for name in imported_weights)
