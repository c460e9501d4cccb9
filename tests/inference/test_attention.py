"""What `nnunet_brats attention` shows: coefficients of gates where they belong, in files and in pictures."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tiny_trainers import make_tiny
from torch import nn

from nnunet_brats_ext import papers, trainers
from nnunet_brats_ext.architectures.omnet.networks import OMNet
from nnunet_brats_ext.architectures.residual_unet import AttentionGatedResidualUNet
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.evaluation.pictures import HeadImage
from nnunet_brats_ext.inference.attention import require_same_axes
from nnunet_brats_ext.inference.case_files import find_image_files
from nnunet_brats_ext.inference.cases import ImageCases
from nnunet_brats_ext.inference.heat_maps import Panel, colour_scale, draw_panels, heat_over
from nnunet_brats_ext.inference.inner_maps import MapNetwork, MapPredictor
from nnunet_brats_ext.inference.workers import Workers
from nnunet_brats_ext.storage.datasets import DatasetDescription
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import read_grid, read_image, write_image
from nnunet_brats_ext.trainers import BraTSAttentionVAETrainer
from nnunet_brats_ext.trainers.lyu2020.gate_maps import GateMaps
from nnunet_brats_ext.trainers.zhou2020.channel_maps import ChannelMaps, draw_channels, weigh_channels

CPU = torch.device("cpu")
SMALL = dict(features_per_stage=(8, 16, 32, 64))
OBLIQUE = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]) @ np.array(
    [[1.0, 0.0, 0.0], [0.0, 0.96, -0.28], [0.0, 0.28, 0.96]]
)


# ---- the view on a gated network -----------------------------------------------------------------------------------


def gated(**changes) -> AttentionGatedResidualUNet:
    torch.manual_seed(0)
    return AttentionGatedResidualUNet(4, 3, **(SMALL | changes)).eval()


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        ((16, 24, 16), {}),
        ((8, 16, 24), dict(strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)))),
        ((16, 24), dict(strides=((1, 1), (2, 2), (2, 2), (2, 2)), conv_op=nn.Conv2d)),
    ],
    ids=["3d", "anisotropic", "2d"],
)
def test_the_view_shows_the_logits_untouched_and_what_each_gate_lets_pass(size, changes):
    network, x = gated(**changes), torch.randn(1, 4, *size)
    logits, passed = network(x), []
    for gate in network.gates:
        gate.register_forward_hook(lambda gate, inputs, output: passed.append((inputs[0], output)))
    view = GateMaps(network)
    shown = view(x)
    assert shown.shape == (1, 3 + 3, *size) == (1, view.num_maps, *size)
    assert torch.equal(shown[:, :3], logits)
    assert 0 < shown[:, 3:].min() < shown[:, 3:].max() < 1
    skip, output = passed[-1]  # of the finest gate, which works at full size
    assert torch.allclose(skip * shown[:, 3:4], output, atol=1e-6)
    assert torch.equal(view(x), shown), "a second forward starts anew"


def test_gates_are_called_by_the_size_at_which_they_work():
    assert GateMaps(gated()).titles == ["gate 0, full size", "gate 1, 1/2", "gate 2, 1/4"]
    anisotropic = gated(strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)))
    assert GateMaps(anisotropic).titles == ["gate 0, full size", "gate 1, 1/1×2", "gate 2, 1/2×4"]


def test_a_view_stores_and_loads_the_networks_own_weights():
    network, other = gated(), gated()
    nn.init.ones_(network.head.bias)
    view = GateMaps(other)
    view.load_state_dict(network.state_dict())
    assert torch.equal(other.head.bias, torch.ones(3))
    assert view.state_dict().keys() == network.state_dict().keys()


@pytest.mark.parametrize("name", trainers.__all__)
def test_the_trainers_that_an_error_names_are_those_whose_networks_can_be_shown(name, world):
    plans = PlansManager(world.plans)
    configuration = plans.get_configuration("2d" if "2D" in name else "3d_fullres")
    configuration.configuration["patch_size"] = [32] * len(configuration.patch_size)  # a multiple of all tokens
    with torch.device("meta"):
        network = getattr(trainers, name).build_network_architecture(plans, configuration, 4, 3, False)
    named = papers.trainers()[name].attention
    for paper in papers.find_papers().values():
        for place in {one.attention for one in paper.trainers if one.attention}:
            mine = named == place and papers.trainers()[name].paper == paper.key
            assert paper.load(place).applies(network) == mine


# ---- from windows to the image's space -----------------------------------------------------------------------------


class CopyOfFlair(MapNetwork):
    """Shows the input itself where others show what they make of it, squeezed into (0, 1)."""

    num_maps = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(x[:, 3:4])


def predictor_of(world, view, spacing_mm=None, transpose=(0, 1, 2), network: nn.Module | None = None) -> MapPredictor:
    plans = world.plans | {
        "transpose_forward": list(transpose),
        "transpose_backward": [int(axis) for axis in np.argsort(transpose)],
    }
    configuration = plans["configurations"]["3d_fullres"]
    configuration["patch_size"] = [16, 16, 16]
    if spacing_mm:
        configuration["spacing"] = list(spacing_mm)
    manager = PlansManager(plans)
    predictor = MapPredictor(CPU)
    predictor.manual_initialization(
        network or nn.Identity(), manager, manager.get_configuration("3d_fullres"), None, world.dataset_json, "", None
    )
    predictor.show_maps(view)
    return predictor


def tilted(world, folder: Path, spacing_mm=(1.1, 0.9, 2.0)) -> list[Path]:
    """One of the world's cases in an oblique frame with voxels of three different lengths."""
    folder.mkdir()
    for path in sorted((world.raw / "imagesTs").glob("*.nii.gz"))[:4]:
        image = sitk.ReadImage(str(path))
        image.SetSpacing(spacing_mm)
        image.SetOrigin((-31.0, 17.0, 5.5))
        image.SetDirection(OBLIQUE.ravel())
        sitk.WriteImage(image, str(folder / path.name))
    return sorted(folder.glob("*.nii.gz"))


def maps_in_image_space(predictor: MapPredictor, folder: Path, world) -> np.ndarray:
    files = find_image_files(folder, DatasetDescription(world.dataset_json))
    (case,) = ImageCases(files).read([predictor.description], list(files), Workers(0))
    data, properties = case.seen_by(predictor.description)
    return predictor.to_image_space(predictor.predict_sliding_window_return_logits(data), properties)


def normalised(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The image as nnU-Net normalises it, squeezed as the copy is, and the mask of its voxels."""
    image = read_image(path)[0].astype(float)
    mask = image != 0
    return 1 / (1 + np.exp(-(image - image[mask].mean()) / image[mask].std())), mask


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)], ids=str)
def test_a_map_lies_on_the_voxels_of_the_image_it_copies(transpose, world, tmp_path):
    images = tilted(world, tmp_path / "images")
    own_mm = [(2.0, 0.9, 1.1)[axis] for axis in transpose]
    (copy,) = maps_in_image_space(predictor_of(world, CopyOfFlair, own_mm, transpose), tmp_path / "images", world)
    expected, mask = normalised(images[3])
    assert copy.shape == expected.shape
    assert np.abs(copy - expected)[mask].max() < 1e-4


def test_a_map_on_another_grid_comes_back_to_the_same_place(world, tmp_path):
    images = tilted(world, tmp_path / "images")
    (copy,) = maps_in_image_space(
        predictor_of(world, CopyOfFlair, (1.0, 1.3, 1.4), (1, 2, 0)), tmp_path / "images", world
    )
    expected, mask = normalised(images[3])
    right = np.corrcoef(copy[mask], expected[mask])[0, 1]
    shifted = [
        np.corrcoef(copy[mask], np.roll(expected, step, axis)[mask])[0, 1] for axis in range(3) for step in (-1, 1)
    ]
    assert right > 0.9
    assert right > max(shifted) + 0.02, "a shift by a single voxel fits worse"


def test_gates_that_let_everything_pass_alike_give_a_map_of_that_constant(world, tmp_path):
    network = gated()
    for gate, share in zip(network.gates, (0.2, 0.5, 0.9), strict=True):
        norm = gate.psi[2]
        nn.init.zeros_(norm.weight)
        nn.init.constant_(norm.bias, np.log(share / (1 - share)))
    tilted(world, tmp_path / "images")
    predictor = predictor_of(world, GateMaps, (1.3, 1.1, 1.2), network=network)
    maps = maps_in_image_space(predictor, tmp_path / "images", world)[3:]
    for found, share in zip(maps, (0.9, 0.5, 0.2), strict=True):  # the finest first
        seen = found != 0
        assert np.allclose(found[seen], share, atol=1e-5)
        sides = [np.flatnonzero(seen.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
        assert seen.sum() == np.prod([len(side) for side in sides]), "one box, the head's"


# ---- the command ---------------------------------------------------------------------------------------------------

MODEL = ("-d", "901", "-tr", "BraTSAttentionVAETrainer", "-p", "AttentionPlans", "-f", "0", "-device", "cpu")
SNAPSHOTS = ("checkpoint_epoch_1.pth", "checkpoint_epoch_20.pth")


@pytest.fixture
def model(world) -> Path:
    """A second stage and a model without stages, each with two checkpoints that differ in their gates."""
    plans = world.plans | {"plans_name": "AttentionPlans"}
    small = {"inherits_from": "3d_fullres", "patch_size": [32, 32, 32]}
    plans["configurations"] |= {
        "alone": small,
        "first": small | {"next_stage": "second"},
        "second": small | {"previous_stage": "first"},
    }
    for configuration in ("alone", "second"):
        torch.manual_seed(0)
        given = plans | {"continue_training": False}
        trainer = BraTSAttentionVAETrainer(given, configuration, 0, world.dataset_json, CPU)
        folder = Path(trainer.output_folder_base)
        if (folder / "plans.json").exists():
            continue
        trainer.initialize()
        for name, epoch, bias in zip(SNAPSHOTS, (0, 19), (-1.0, 2.0), strict=True):
            trainer.current_epoch = epoch
            for gate in trainer.bare_network.network.gates:  # behind the VAE branch
                nn.init.constant_(gate.psi[2].bias, bias)
            trainer.save_checkpoint(str(Path(trainer.output_folder, name)))
        (folder / "plans.json").write_text(json.dumps(plans))
        (folder / "dataset.json").write_text(json.dumps(world.dataset_json))
    return folder


def attention(world, out: Path, *more: str, configuration: str = "second", split: str = "imagesTr") -> int:
    return main(["attention", "-i", str(world.raw / split), "-o", str(out), "-c", configuration, *MODEL, *more])


def a_case(world) -> str:
    return min((world.raw / "labelsTr").glob("*.nii.gz")).name.removesuffix(".nii.gz")


def test_a_series_of_checkpoints_of_a_second_stage_is_shown_on_the_images_grid(model, world, tmp_path):
    case, out = a_case(world), tmp_path / "out"
    previous = ("-prev_stage_predictions", str(world.raw / "labelsTr"))
    chosen = ("--cases", case, "--slices", "12", "17", "-chk", *SNAPSHOTS)
    assert attention(world, out, *previous, *chosen) == 0
    stems = [f"fold_0_checkpoint_epoch_{epoch}" for epoch in (1, 20)]
    maps = {f"{stem}_gate{level}.nii.gz" for stem in stems for level in range(2)}  # three stages
    labels = {f"{stem}_segmentation.nii.gz" for stem in stems}
    assert {path.name for path in out.iterdir()} == {case}
    assert {path.name for path in (out / case).iterdir()} == maps | labels | {"slice_012.png", "slice_017.png"}
    geometry = read_grid(world.raw / "imagesTr" / f"{case}_0000.nii.gz")
    means = {}
    for name in maps | labels:
        array, own, _ = read_image(out / case / name)
        assert geometry.difference(own) is None
        means[name] = array[array != 0].mean()
        if name in maps:
            assert array.dtype == np.float32
            assert 0 <= array.min() < array.max() <= 1
    reference = read_image(world.raw / "labelsTr" / f"{case}.nii.gz").array
    gate = read_image(out / case / f"{stems[0]}_gate0.nii.gz").array
    seen = tuple(slice(side.min(), side.max() + 1) for side in np.nonzero(gate))
    assert gate[seen].all() and max(gate[seen].shape) <= 32, "what the window on the tumour shows"
    outside = np.ones_like(reference, bool)
    outside[seen] = False
    segmented = read_image(out / case / f"{stems[0]}_segmentation.nii.gz").array
    assert outside.any() and (segmented[outside] == reference[outside]).all(), "the previous stage's labels"
    for level in range(2):
        early, late = (means[f"{stem}_gate{level}.nii.gz"] for stem in stems)
        assert early < 0.4 < 0.6 < late, "each checkpoint shows its own gates"

    again = ("--cases", case, "--reference", str(world.raw / "labelsTr"), "-chk", SNAPSHOTS[0])
    assert attention(world, out, *previous, *again) == 0
    tumour = (read_image(world.raw / "labelsTr" / f"{case}.nii.gz")[0] > 0).sum((1, 2))
    pictures = {path.name for path in (out / case).glob("*.png")} - {"slice_012.png", "slice_017.png"}
    (number,) = (int(name[6:9]) for name in pictures) if pictures else (12,)
    assert tumour[number - 1] == tumour.max(), "by default the slice with most tumour"


def test_a_model_without_previous_stage_is_shown_in_the_frame_of_tilted_images(model, world, tmp_path):
    images = tilted(world, tmp_path / "images")
    arguments = ["attention", "-i", str(tmp_path / "images"), "-o", str(tmp_path / "out"), "-c", "alone", *MODEL]
    assert main([*arguments, "-chk", SNAPSHOTS[0]]) == 0
    (case,) = (tmp_path / "out").iterdir()
    files = sorted(case.glob("*.nii.gz"))
    assert len(files) == 3
    assert all(read_grid(images[0]).difference(read_grid(path)) is None for path in files)
    assert len(list(case.glob("slice_*.png"))) == 1


def test_maps_of_images_with_other_axes_are_those_of_the_images_turned(model, world, tmp_path):
    images = Path(shutil.copytree(world.raw / "imagesTs", tmp_path / "images"))
    for file in images.glob("*.nii.gz"):
        turned = read_image(file).turned("SAL")
        write_image(file, turned.array, turned.grid)
    words = ("-c", "alone", *MODEL, "-chk", SNAPSHOTS[0])
    for name, folder in (("expected", world.raw / "imagesTs"), ("found", images)):
        assert main(["attention", "-i", str(folder), "-o", str(tmp_path / name), *words]) == 0
    files = sorted((tmp_path / "expected").rglob("*.nii.gz"))
    for file in files:
        one = read_image(file).turned("SAL")
        other = read_image(tmp_path / "found" / file.relative_to(tmp_path / "expected"))
        assert one.grid.difference(other.grid) is None
        np.testing.assert_array_equal(one.array, other.array)
    assert files
    first = read_image(file := min(images.glob("*.nii.gz"))).turned("LPS")
    write_image(file, first.array, first.grid)
    with pytest.raises(UserError, match="have their axes in different orders"):
        require_same_axes(find_image_files(images, DatasetDescription(world.dataset_json)))


@pytest.mark.parametrize(
    ("configuration", "more", "message"),
    [
        ("second", (), r"second refines the label maps of first.*predict .*-c first .*-tr BraTSVAETrainer"),
        ("second", ("-prev_stage_predictions", "{empty}"), r"{empty} lacks"),
        ("alone", ("-prev_stage_predictions", "{empty}"), "alone has no previous stage"),
        ("alone", ("--cases", "nobody"), "--cases nobody"),
        ("alone", ("--background", "PET"), "--background PET: the images are T1, T1ce, T2, FLAIR"),
        ("alone", ("--slices", "33"), "--slices 33.*1 to 32"),
        ("alone", ("--reference", "{empty}"), "{empty} lacks the label maps"),
        ("alone", ("-m", "{empty}"), "-m {empty} names the model by its folder"),
    ],
)
def test_an_error_quotes_what_is_wrong_and_nothing_is_written(
    configuration, more, message, model, world, tmp_path, capsys
):
    empty = tmp_path / "empty"
    empty.mkdir()
    more = [word.format(empty=empty) for word in more]
    cases = [] if "--cases" in more else ["--cases", a_case(world)]
    assert attention(world, tmp_path / "out", *cases, *more, "-chk", SNAPSHOTS[0], configuration=configuration) == 1
    assert re.search(message.format(empty=empty), capsys.readouterr().err, re.DOTALL)
    assert not list((tmp_path / "out").rglob("*")) if (tmp_path / "out").exists() else True


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: os.truncate(file, file.stat().st_size // 2), "truncated or damaged"),
        (lambda file: file.rename(file.with_name("t1ce.nii.gz")), "`nnunet_brats convert` names them so"),
    ],
    ids=["cut", "named otherwise"],
)
def test_spoiled_images_are_named_and_nothing_is_written(spoil, message, model, world, tmp_path, capsys):
    images = Path(shutil.copytree(world.raw / "imagesTs", tmp_path / "images"))
    spoil(sorted(images.glob("*_0001.nii.gz"))[0])
    words = ["attention", "-i", str(images), "-o", str(tmp_path / "out"), "-c", "alone", *MODEL, "-chk", SNAPSHOTS[0]]
    assert main(words) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_network_without_gates_is_refused_with_the_names_of_those_that_have_some(model, world, tmp_path, capsys):
    plans = json.loads((model / "plans.json").read_text()) | {"continue_training": False}
    trainer = trainers.BraTSVAETrainer(plans, "alone", 0, world.dataset_json, CPU)
    trainer.initialize()
    trainer.save_checkpoint(str(Path(trainer.output_folder, "checkpoint_final.pth")))
    for name in ("plans.json", "dataset.json"):
        Path(trainer.output_folder_base, name).write_text((model / name).read_text())
    words = ["BraTSVAETrainer" if word == "BraTSAttentionVAETrainer" else word for word in MODEL]
    images = str(world.raw / "imagesTs")
    assert main(["attention", "-i", images, "-o", str(tmp_path / "out"), "-c", "alone", *words]) == 1
    said = capsys.readouterr().err
    assert "BraTSVAETrainer has nothing to show here; those of BraTSAttentionVAETrainer, " in said
    assert " BraTSOMNetCGATrainer, " in said


# ---- pictures ------------------------------------------------------------------------------------------------------


def test_the_scale_of_colours_spans_all_maps_and_ends_on_tenths():
    scale = colour_scale([np.array([0.31, 0.42]), np.array([0.55]), np.array([])])
    assert (scale.vmin, scale.vmax) == pytest.approx((0.3, 0.6))
    flat = colour_scale([np.full(3, 0.5)])
    assert flat.vmin < flat.vmax
    assert colour_scale([]).vmax == 1


def test_high_is_red_low_is_blue_and_outside_the_head_is_black():
    heat = np.array([[0.0, 0.95, 0.95]])
    low, high, outside = heat_over(np.full((1, 3), 0.5), heat, np.array([[True, True, False]]), colour_scale([heat]))[0]
    assert low[2] > low[0]
    assert high[0] > high[2]
    assert not outside.any()
    heat[0, 0] = np.nan
    bare, *_ = heat_over(np.full((1, 3), 0.5), heat, np.ones((1, 3), bool), colour_scale([heat]))[0]
    assert (bare == 0.5).all(), "where nothing is to be shown"


def test_a_picture_has_a_row_per_checkpoint_a_column_per_map_and_one_bar():
    image = np.zeros((6, 20, 16))
    image[:, 4:16, 4:12] = 1 + np.arange(12)[:, None]
    image[:, 10, 8] = 0  # inside the head
    labels = np.zeros((20, 16), np.uint8)
    labels[8:12, 6:10] = 1
    head = HeadImage("case", image, (1.0, 2.0, 3.0), (slice(0, 6), slice(0, 20), slice(0, 16)), (1, 12))
    panels = [[Panel("", labels=labels), Panel("gate 0", np.full((20, 16), share))] for share in (0.2, 0.8)]
    figure = draw_panels(head, 2, ["epoch 1", "epoch 2"], panels, {"WT": (1, 2, 3), "TC": (2, 3)})
    *axes, bar = figure.axes
    assert [axis.get_ylabel() for axis in axes] == ["epoch 1", "", "epoch 2", ""]
    assert bar.get_ylim() == pytest.approx((0.2, 0.8))
    assert axes[0].images[0].get_array().shape == (20, 16, 3)
    heat = axes[1].images[0].get_array()
    assert heat[10, 8].any()
    assert not heat[2].any()
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["WT"]
    assert axes[0].get_aspect() == 2.0
    assert figure.get_suptitle() == "case, axial slice 3 of 6"


# ---- channels of OM-Net --------------------------------------------------------------------------------------------


def guided(guidance: str = "full") -> OMNet:
    torch.manual_seed(0)
    return OMNet(4, features_per_stage=(8, 8, 8, 8), guidance=guidance).eval()


@pytest.mark.parametrize("guidance", ["full", "tumour"])
def test_the_channels_that_the_view_shows_are_those_that_the_network_weighs(guidance):
    network, x = guided(guidance), torch.randn(1, 4, 16, 16, 16)
    logits = network(x)
    shown = ChannelMaps(network)(x)[0]
    assert shown.shape[0] == 12 + 2 + 8
    assert torch.equal(network.fuse(shown[None, :12]), logits)
    shown = shown[9:]  # as if three regions were in front of the guides
    features = network.backbone(x)
    assert torch.allclose(shown[5:], features[0], atol=1e-6)
    tumour = network.heads[0](features).softmax(1)[0, [1, 2, 3]].sum(0)
    assert torch.allclose(shown[3], tumour, atol=1e-5)
    weights = weigh_channels(shown[5:], shown[3])
    for name, likely in (("m_t", tumour), ("m_n", 1 - tumour)):
        response = (features[0] * likely).sum((1, 2, 3))
        assert np.allclose(weights[name], (response / response.sum()).detach(), atol=1e-5)
        assert weights[name].sum() == pytest.approx(1)


def test_a_channel_that_answers_to_the_tumour_alone_weighs_most_for_it():
    tumour = torch.zeros(4, 6, 6)
    tumour[1:3, 2:4, 2:4] = 1
    features = torch.stack([tumour, 1 - tumour, torch.full_like(tumour, 0.2)])
    weights = weigh_channels(features, tumour)
    assert list(np.argsort(-weights["m_t"])) == [0, 2, 1]
    assert list(np.argsort(-weights["m_n"])) == [1, 2, 0]
    assert weights["m_t"][1] == weights["m_n"][0] == 0


def test_the_picture_of_channels_shows_five_largest_and_five_smallest_of_each_weight():
    features = np.arange(1, 13, dtype=np.float32)[:, None, None] * np.ones((12, 20, 16), np.float32)
    image = np.ones((6, 20, 16))
    head = HeadImage("case", image, (1.0, 1.0, 1.0), (slice(0, 6), slice(0, 20), slice(0, 16)), (0, 1))
    ordered = np.arange(12) / 66
    weights = {"m_t": ordered, "m_n": ordered[::-1]}
    figure = draw_channels(
        head, 1, features, np.zeros((20, 16)), np.zeros((20, 16)), weights, "tumour", {"WT": (1, 2, 3)}
    )
    labels = [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()]
    assert labels == ["largest $m_t$", "smallest $m_t$", "largest $m_n$", "smallest $m_n$"]
    titles = [axis.get_title().partition(":")[0] for axis in figure.axes[5:]]
    channels = [int(title.removeprefix("channel ")) for title in titles]
    assert channels == [11, 10, 9, 8, 7, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 11, 10, 9, 8, 7]


def test_the_command_writes_the_weights_of_a_guided_network_per_case_and_slice(world, tmp_path, monkeypatch):
    make_tiny(trainers.BraTSOMNetCGATrainer, monkeypatch)
    plans = world.plans | {"plans_name": "AttentionPlans"}
    plans["configurations"]["3d_fullres"] |= {"patch_size": [32, 32, 32], "batch_size": 1}
    given = plans | {"continue_training": False}
    trainer = trainers.BraTSOMNetCGATrainer(given, "3d_fullres", 0, world.dataset_json, CPU)
    trainer.initialize()
    trainer.save_checkpoint(str(Path(trainer.output_folder, "checkpoint_final.pth")))
    Path(trainer.output_folder_base, "plans.json").write_text(json.dumps(plans))
    Path(trainer.output_folder_base, "dataset.json").write_text(json.dumps(world.dataset_json))
    case, out = a_case(world), tmp_path / "out"
    words = ["BraTSOMNetCGATrainer" if word == "BraTSAttentionVAETrainer" else word for word in MODEL]
    images = str(world.raw / "imagesTr")
    chosen = ("--cases", case, "--slices", "16", "--reference", str(world.raw / "labelsTr"))
    assert main(["attention", "-i", images, "-o", str(out), "-c", "3d_fullres", *words, *chosen]) == 0
    stem = "fold_0_checkpoint_final"
    ends = ("segmentation.nii.gz", "channels.json", "channels.csv", "channels.png")
    pictures = {f"{stem}_slice_016_{module}.png" for module in ("tumour", "core")}
    assert {path.name for path in (out / case).iterdir()} == {f"{stem}_{end}" for end in ends} | pictures
    weights = json.loads((out / case / f"{stem}_channels.json").read_text())
    assert set(weights) == {"tumour", "core"}
    for parts in weights.values():
        assert set(parts) == {"case", "slice 16"}
        for part in parts.values():
            assert sum(part["m_t"]) == pytest.approx(1, abs=1e-5)
            assert len(part["m_n"]) == 8
    rows = (out / case / f"{stem}_channels.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 2 * 8
    (alone := tmp_path / "alone").mkdir()
    for image in Path(images).glob(f"{case}_*"):
        (alone / image.name).symlink_to(image)
    assert main(["predict", "-i", str(alone), "-o", str(tmp_path / "p"), "-c", "3d_fullres", *words, "-np", "0"]) == 0
    drawn, predicted = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        for path in (out / case / f"{stem}_segmentation.nii.gz", tmp_path / "p" / f"{case}.nii.gz")
    )
    np.testing.assert_array_equal(drawn, predicted, "from the same tiles")
