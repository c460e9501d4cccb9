"""The papers' configurations in nnU-Net's plans: sizes, topology, memory, files."""

import json
import sys
from copy import deepcopy
from dataclasses import replace
from math import ceil, prod
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_brats_ext import papers
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.papers import GIB, configurations
from nnunet_brats_ext.planning.brats_plans import add_configurations, rebuild, resolve
from nnunet_brats_ext.planning.fitting import PLAIN_UNET, Cases, fit, reductions, within_cases
from nnunet_brats_ext.planning.plan import plan
from nnunet_brats_ext.planning.topology import deepest_topology, divisors
from nnunet_brats_ext.trainers import BraTSAttentionVAETrainer, BraTSBaselineTrainer, BraTSVAETrainer

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import memory  # the counting that the constants come from

ROWS = configurations()
NAMES = sorted(ROWS)
VOLUMES = [name for name in NAMES if ROWS[name].base == "3d_fullres"]
FOOTPRINTS = {name: row.footprint for name, row in ROWS.items()} | {"nnunet": PLAIN_UNET}
BRATS = Cases((1.0, 1.0, 1.0), (140.0, 171.0, 137.0), (155, 190, 170))  # brains of BraTS 2020, as nnU-Net crops them
SHAPES = [[140, 171, 137], [155, 165, 130], [128, 190, 170]]  # of three cases; the largest per axis as above


def architecture(axes: int, widest: int) -> dict:
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 6,
            "features_per_stage": [min(32 * 2**stage, widest) for stage in range(6)],
            "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
            "kernel_sizes": [[3] * axes] * 6,
            "strides": [[1] * axes, *[[2] * axes] * 5],
            "n_conv_per_stage": [2] * 6,
            "n_conv_per_stage_decoder": [2] * 5,
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def configuration(name: str, patch_size: list[int], batch_size: int, widest: int) -> dict:
    axes = len(patch_size)
    return {
        "data_identifier": f"nnUNetPlans_{name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": batch_size,
        "patch_size": patch_size,
        "median_image_size_in_voxels": [140.0, 171.0, 137.0][-axes:],
        "spacing": [1.0] * axes,
        "normalization_schemes": ["ZScoreNormalization"] * 4,
        "use_mask_for_norm": [True] * 4,
        "architecture": architecture(axes, widest),
        "batch_dice": axes == 2,
    }


@pytest.fixture
def plans() -> dict:
    """What nnU-Net plans for BraTS 2020."""
    return {
        "dataset_name": "Dataset137_BraTS2020",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [140, 171, 137],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            "2d": configuration("2d", [192, 160], 105, 512),
            "3d_fullres": configuration("3d_fullres", [128, 128, 128], 2, 320),
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
    }


FINGERPRINT = {"shapes_after_crop": SHAPES, "spacings": [[1.0, 1.0, 1.0]] * 3}


@pytest.fixture
def on_disk(plans, tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "Dataset137_BraTS2020"
    folder.mkdir()
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    (folder / "dataset_fingerprint.json").write_text(json.dumps(FINGERPRINT))
    (tmp_path / "raw" / "Dataset139_Converted").mkdir(parents=True)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    return folder


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on busy cores, several wait for each other longer than they work
    yield
    torch.set_num_threads(threads)


def cumulated(strides) -> np.ndarray:
    return np.prod(np.array(strides), axis=0)


# ---- sizes and topology --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NAMES if ROWS[name].patch_size])
def test_real_brains_hold_every_papers_patch_and_batch(name, plans):
    planned, fits = add_configurations(plans, "BraTSPlans", FINGERPRINT)
    assert tuple(planned["configurations"][name]["patch_size"]) == ROWS[name].patch_size
    assert planned["configurations"][name]["batch_size"] == ROWS[name].batch_size
    assert fits[name].reasons == ()


def test_the_two_dimensional_configuration_sees_whole_slices(plans):
    planned, _ = add_configurations(plans, "BraTSPlans", FINGERPRINT)
    assert planned["configurations"]["hashemi_2d"]["patch_size"] == [192, 176]  # 190 x 170, to multiples of 2^4


def test_without_a_fingerprint_the_median_case_is_the_largest(plans):
    planned, fits = add_configurations(plans, "BraTSPlans")
    assert planned["configurations"]["lyu_stage1"]["patch_size"] == [128, 176, 144]  # 171, 137 to multiples of 16
    assert "128 x 192 x 160 -> 128 x 176 x 144: the largest case has 140 x 171 x 137" in fits["lyu_stage1"].reasons


def test_cases_are_measured_at_the_spacing_and_in_the_axes_of_the_plans(plans):
    plans["transpose_forward"] = [2, 0, 1]
    plans["configurations"]["3d_fullres"]["spacing"] = [2.0, 1.0, 1.0]
    # One case of 150 x 180 x 160 voxels of 1 x 1 x 2 mm: transposed and at 2 x 1 x 1 mm it has 160 x 150 x 180.
    _, fits = add_configurations(plans, "P", {"shapes_after_crop": [[150, 180, 160]], "spacings": [[1.0, 1.0, 2.0]]})
    assert "the largest case has 160 x 150 x 180" in fits["lyu_stage1"].reasons[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("largest", [(155, 190, 170), (143, 171, 137), (100, 120, 90), (57, 64, 61), (32, 36, 32)])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 1.0, 1.0)])
def test_strides_divide_a_patch_that_no_case_falls_short_of(name, largest, spacing):
    row = ROWS[name]
    axes = 2 if row.base == "2d" else 3
    cases = Cases(spacing[-axes:], tuple(map(float, largest))[-axes:], largest[-axes:])
    patch_size, strides, kernels = within_cases(row, cases)
    assert not any(np.array(patch_size) % cumulated(strides))
    assert len(strides) == len(kernels)
    needed = divisors(cases.spacing, patch_size, row.poolings)
    within = [length < case + step for length, case, step in zip(patch_size, cases.largest, needed, strict=True)]
    assert all(within), "the patch exceeds the case by more than rounding"


@pytest.mark.parametrize(
    ("patch_size", "poolings", "divisor"),
    [
        ((128, 192, 160), 4, (32, 32, 32)),  # 4 x 6 x 5 at the bottom: nnU-Net's own depth
        ((128, 144, 144), 4, (16, 16, 16)),  # five halvings would need 160
        ((112, 160, 128), 4, (16, 32, 32)),  # 7 is too short for a fifth halving, 10 and 8 are not
    ],
)
def test_the_topology_is_the_deepest_that_leaves_the_patch_alone(patch_size, poolings, divisor):
    chosen = deepest_topology((1.0, 1.0, 1.0), patch_size, poolings)
    assert chosen.patch_size == patch_size
    assert tuple(cumulated(chosen.strides)) == divisor


def test_om_net_keeps_its_three_halvings_of_all_axes(plans):
    planned, _ = add_configurations(plans, "BraTSPlans", FINGERPRINT)
    strides = PlansManager(planned).get_configuration("omnet").pool_op_kernel_sizes
    assert strides == [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]


# ---- what nnU-Net reads --------------------------------------------------------------------------------------------


def test_nnunets_own_configurations_are_kept(plans):
    before = deepcopy(plans)
    planned, _ = add_configurations(plans, "BraTSPlans", FINGERPRINT, gpu_memory_gb=11)
    assert plans == before
    assert planned["plans_name"] == "BraTSPlans"
    assert all(planned["configurations"][name] == kept for name, kept in before["configurations"].items())


def test_a_base_that_the_plans_lack_leaves_its_configurations_out(plans):
    del plans["configurations"]["3d_fullres"]
    planned, _ = add_configurations(plans, "BraTSPlans", FINGERPRINT)
    assert set(planned["configurations"]) == {"2d", "hashemi_2d"}


@pytest.mark.parametrize("name", NAMES)
def test_nnunet_resolves_it_as_we_do_and_reads_the_preprocessed_data_of_its_base_or_its_own(name, plans):
    planned, _ = add_configurations(plans, "BraTSPlans", FINGERPRINT)
    manager = PlansManager(json.loads(json.dumps(planned)))
    found, base = manager.get_configuration(name), manager.get_configuration(ROWS[name].base)
    resolved = resolve(planned["configurations"], name)
    assert {key: found.configuration[key] for key in resolved} == json.loads(json.dumps(resolved))
    assert base.data_identifier == f"nnUNetPlans_{ROWS[name].base}"
    assert found.data_identifier == (f"BraTSPlans_{name}" if ROWS[name].resampled else base.data_identifier)
    given = found.network_arch_init_kwargs
    lengths = [len(given[key]) for key in ("strides", "kernel_sizes", "features_per_stage", "n_conv_per_stage")]
    assert lengths == [given["n_stages"]] * 4
    assert len(given["n_conv_per_stage_decoder"]) == given["n_stages"] - 1


def test_stages_name_each_other(plans):
    manager = PlansManager(add_configurations(plans, "BraTSPlans", FINGERPRINT)[0])
    for name in ROWS:
        found = manager.get_configuration(name)
        for stage in found.next_stage_names or ():
            assert manager.get_configuration(stage).previous_stage_name == name
        if found.previous_stage_name:
            assert name in manager.get_configuration(found.previous_stage_name).next_stage_names


@pytest.mark.parametrize("name", VOLUMES)
@pytest.mark.parametrize("trainer", [BraTSBaselineTrainer, BraTSVAETrainer, BraTSAttentionVAETrainer])
@pytest.mark.parametrize("gpu_memory_gb", [None, 8])
def test_networks_are_built_for_its_patch(name, trainer, gpu_memory_gb, plans):
    planned, _ = add_configurations(plans, "BraTSPlans", FINGERPRINT, gpu_memory_gb)
    manager = PlansManager(planned)
    found = manager.get_configuration(name)
    with torch.device("meta"), torch.no_grad():
        network = trainer.build_network_architecture(manager, found, 4, 3, enable_deep_supervision=False).eval()
        assert network(torch.empty(1, 4, *found.patch_size)).shape == (1, 3, *found.patch_size)


@pytest.mark.parametrize("patch_size", [(64, 64, 64), (128, 192, 160), (256, 256, 256)])
def test_nnunets_residual_network_follows_a_shallower_or_deeper_topology(patch_size, plans):
    base = plans["configurations"]["3d_fullres"]
    counts = base["architecture"]["arch_kwargs"]
    del counts["n_conv_per_stage"]
    counts |= {"n_blocks_per_stage": [1, 3, 4, 6, 6, 6], "n_conv_per_stage_decoder": [1] * 5}
    base["architecture"]["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    plans["configurations"]["other"] = {
        "inherits_from": "3d_fullres",
        "patch_size": list(patch_size),
        "architecture": rebuild(base["architecture"], deepest_topology((1.0, 1.0, 1.0), patch_size, 4)),
    }
    manager = PlansManager(plans)
    with torch.device("meta"), torch.no_grad():
        network = BraTSBaselineTrainer.build_network_architecture(
            manager, manager.get_configuration("other"), 4, 3, enable_deep_supervision=False
        ).eval()
        assert network(torch.empty(1, 4, *patch_size)).shape == (1, 3, *patch_size)


# ---- memory --------------------------------------------------------------------------------------------------------


def test_more_memory_never_means_less():
    for name in ("lyu_stage1", "lyu_stage2"):
        fits = [fit(ROWS[name], BRATS, budget) for budget in (3, 4, 6, 8, 11, 12, 16, 24, 32, 40, 48, 80)]
        for budget, chosen in zip((3, 4, 6, 8, 11, 12, 16, 24, 32, 40, 48, 80), fits, strict=True):
            assert chosen.estimate_gb is not None
            assert chosen.estimate_gb <= budget
        voxels = [prod(chosen.topology.patch_size) * chosen.batch_size for chosen in fits]
        assert voxels == sorted(voxels)
        assert voxels[0] < voxels[-1] == prod(ROWS[name].patch_size or ()) * ROWS[name].batch_size


def test_the_batch_shrinks_before_the_patch_and_the_patch_keeps_the_networks_depth():
    row = ROWS["lyu_stage1"]
    steps = list(reductions(row, within_cases(row, BRATS), BRATS))
    assert [batch for _, batch in steps[:4]] == [4, 3, 2, 1]
    assert {chosen.patch_size for chosen, _ in steps[:4]} == {(128, 192, 160)}
    assert {batch for _, batch in steps[4:]} == {1}
    assert steps[4][0].patch_size == (128, 192, 144)  # 160 / 137 is the largest share of the median case
    assert steps[-1][0].patch_size == (64, 64, 64)  # four halvings leave 4, nnU-Net's shortest edge
    for chosen, _ in steps:
        assert not any(np.array(chosen.patch_size) % cumulated(chosen.strides))
        assert [list(stride) for stride in chosen.strides[1:5]] == [[2, 2, 2]] * 4


def test_several_gpus_share_the_batch():
    # 22 GB on one GPU; with the paper's four, each has one sample and needs less than 8 GB.
    chosen = fit(ROWS["lyu_stage1"], BRATS, 8, gpus=4)
    assert (chosen.batch_size, chosen.topology.patch_size, chosen.reasons) == (4, (128, 192, 160), ())
    assert fit(ROWS["lyu_stage1"], BRATS, 24).batch_size == 4
    assert fit(ROWS["lyu_stage1"], BRATS, 8).batch_size == 1
    # Two samples on each of two GPUs are too much for 8 GB; less is one on each, never three on two.
    assert fit(ROWS["lyu_stage1"], BRATS, 8, gpus=2).batch_size == 2


def test_what_was_changed_and_why_is_said():
    chosen = fit(ROWS["lyu_stage1"], BRATS, 6)
    patch = " x ".join(map(str, chosen.topology.patch_size))
    expected = f"batch 4 -> 1, 128 x 192 x 160 -> {patch}: 6 GB asked, estimate {chosen.estimate_gb:.1f} GB"
    assert chosen.reasons == (expected,)


def test_too_small_a_budget_is_an_error_that_says_what_would_do():
    with pytest.raises(
        ValueError, match=r"--gpu-memory-gb 1.5: too little for lyu_stage1: .* 64 x 64 x 64 .* 1\.\d GB"
    ):
        fit(ROWS["lyu_stage1"], BRATS, 1.5)


def test_a_network_that_nobody_counted_keeps_its_papers_setting():
    chosen = fit(replace(ROWS["henry_b"], footprint=None), BRATS, 1)
    assert (chosen.topology.patch_size, chosen.batch_size, chosen.estimate_gb) == ((128, 128, 128), 3, None)


def test_strides_that_differ_between_axes_are_outside_the_estimate():
    chosen = fit(ROWS["lyu_stage1"], Cases((5.0, 1.0, 1.0), (31.0, 171.0, 137.0), (31, 190, 170)), 1)
    assert chosen.estimate_gb is None
    assert "no estimate for strides that differ between the axes" in chosen.reasons


def sizes_to_count() -> list[tuple[str, tuple[int, ...], int]]:
    """Every configuration with a footprint that a trainer is for, at its paper's patch, one or two samples; nnU-Net."""
    trained = {one.configuration for one in papers.trainers().values()}
    rows = [row for name, row in ROWS.items() if row.footprint and name in trained]
    papers_own = [(row.name, row.patch_size or (192, 176), min(row.batch_size, 2)) for row in rows]
    return [*papers_own, ("nnunet", (128, 128, 128), 2)]


@pytest.mark.parametrize(("name", "size", "batch"), sizes_to_count())
def test_the_estimate_is_what_a_step_holds(name, size, batch):
    for precision, count in (("fp32", memory.count_fp32), ("mixed", memory.count_mixed)):
        counted = count(name, size, batch).peak
        assert FOOTPRINTS[name].step_bytes(size, batch, precision) == pytest.approx(counted, rel=0.03)


def test_every_footprint_is_one_of_those_that_are_counted():
    counted = [FOOTPRINTS[name] for name, *_ in sizes_to_count()]
    assert [name for name, footprint in FOOTPRINTS.items() if footprint and footprint not in counted] == []


@pytest.mark.parametrize("name", ["lyu_stage1", "henry_b", "primus_l"])
def test_the_estimate_holds_for_patches_that_a_small_gpu_gets(name):
    size = (64, 96, 80)
    for precision, count in (("fp32", memory.count_fp32), ("mixed", memory.count_mixed)):
        counted = count(name, size, 2).peak
        assert FOOTPRINTS[name].step_bytes(size, 2, precision) == pytest.approx(counted, rel=0.05)


def test_counting_without_data_is_counting_a_real_step(one_thread):
    size, batch = (32, 48, 32), 1
    real = memory.count_fp32("lyu_stage1", size, batch, fake=False)
    assert real == pytest.approx(memory.count_fp32("lyu_stage1", size, batch), rel=0.01)
    assert FOOTPRINTS["lyu_stage1"].step_bytes(size, batch, "fp32") == pytest.approx(real.peak, rel=0.15)


def test_parameters_are_those_of_the_paper():
    # Shu & Lyu's stages at their papers' patches, VAE included.
    for name, size, parameters in (
        ("lyu_stage1", (128, 192, 160), 39_936_119),
        ("lyu_stage2", (128, 128, 128), 30_922_944),
    ):
        adam_in_fp32 = 12  # bytes: a weight and two averages
        assert FOOTPRINTS[name].constant_bytes(size, "fp32") == adam_in_fp32 * parameters


def test_the_estimate_includes_a_reserve_for_the_gpu():
    footprint = FOOTPRINTS["lyu_stage1"]
    assert footprint.gpu_gb((64, 64, 64), 1) == 1 + footprint.step_bytes((64, 64, 64), 1) / GIB


# ---- the command ---------------------------------------------------------------------------------------------------


def test_the_plans_are_written_and_the_next_commands_printed(on_disk, capsys):
    (on_disk / "nnUNetPlans_3d_fullres").mkdir()
    assert main(["plan", "137", "--gpu-memory-gb", "8"]) == 0
    written = json.loads((on_disk / "BraTSPlans.json").read_text())
    assert written["configurations"]["lyu_stage1"]["batch_size"] == 1
    printed = capsys.readouterr().out
    assert "nnUNetv2_train 137 lyu_stage1 $fold -tr BraTSVAETrainer -p BraTSPlans" in printed
    assert "nnUNetv2_train 137 lyu_stage2 $fold -tr BraTSAttentionVAETrainer -p BraTSPlans" in printed
    assert "nnUNetv2_preprocess -d 137 -plans_name BraTSPlans -c 2d" in printed
    assert "-c 3d_fullres" not in printed
    assert sorted(path.name for path in on_disk.iterdir() if path.is_file()) == [
        "BraTSPlans.json", "dataset_fingerprint.json", "nnUNetPlans.json",
    ]  # fmt: skip


@pytest.mark.parametrize("number", [None, 2, 10])
def test_all_folds_that_there_are_get_trained(number, on_disk, capsys):
    if number:
        (on_disk / "splits_final.json").write_text(json.dumps([{"train": ["a"], "val": ["b"]}] * number))
    assert main(["plan", "137"]) == 0
    printed = capsys.readouterr().out
    folds = " ".join(map(str, range(number or 5)))  # without the file, nnU-Net draws five
    loops = [line for line in printed.splitlines() if "nnUNetv2_train" in line]
    assert loops
    assert all(line.strip().startswith(f"for fold in {folds}; do nnUNetv2_train") for line in loops)


def test_no_more_gpus_are_asked_for_than_the_batch_has_samples(on_disk, capsys):
    assert main(["plan", "137", "--gpus", "8"]) == 0  # both stages of Lyu & Shu have a batch of four
    printed = capsys.readouterr().out
    assert "-tr BraTSVAETrainer -p BraTSPlans -num_gpus 4; done" in printed


def test_a_configuration_can_have_gpus_of_its_own(on_disk, capsys):
    assert main(["plan", "137", "--gpu-memory-gb", "24", "--gpus", "2,lyu_stage1=4"]) == 0
    batches = json.loads((on_disk / "BraTSPlans.json").read_text())["configurations"]
    assert [batches[name]["batch_size"] for name in ("lyu_stage1", "lyu_stage2")] == [4, 4]
    printed = capsys.readouterr().out
    assert "-tr BraTSVAETrainer -p BraTSPlans -num_gpus 4; done" in printed
    assert "-tr BraTSAttentionVAETrainer -p BraTSPlans -num_gpus 2" in printed
    assert "-tr BraTSDeepSupervisionTrainer -p BraTSPlans; done\n" in printed, "a batch of one"


def test_other_plans_of_that_name_are_replaced_on_request_only(on_disk, capsys):
    target = on_disk / "BraTSPlans.json"
    assert main(["plan", "137", "--gpu-memory-gb", "12"]) == 0
    first = target.read_text()
    assert main(["plan", "137", "--gpu-memory-gb", "12"]) == 0
    assert "Nothing new" in capsys.readouterr().out
    assert main(["plan", "137"]) == 1
    assert "BraTSPlans.json exists and differs (" in capsys.readouterr().err
    assert target.read_text() == first
    assert main(["plan", "137", "--name", "Others"]) == 0
    assert main(["plan", "137", "--overwrite"]) == 0
    others = json.loads((on_disk / "Others.json").read_text().replace("Others", "BraTSPlans"))
    assert json.loads(target.read_text()) == others


def test_a_configuration_that_somebody_added_survives(on_disk):
    target = on_disk / "BraTSPlans.json"
    main(["plan", "137"])
    edited = json.loads(target.read_text())
    edited["configurations"]["mine"] = {"inherits_from": "lyu_stage2", "batch_size": 2}
    target.write_text(json.dumps(edited))
    assert main(["plan", "137"]) == 0
    assert main(["plan", "137", "--gpu-memory-gb", "8", "--overwrite"]) == 0
    written = json.loads(target.read_text())
    assert written["configurations"]["mine"] == {"inherits_from": "lyu_stage2", "batch_size": 2}
    assert written["configurations"]["lyu_stage1"]["batch_size"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["138"], "there are Dataset137_BraTS2020, Dataset139_Converted; `nnunet_brats convert` makes"),
        (["139"], "nnUNetv2_plan_and_preprocess -d 139 --verify_dataset_integrity\n"),
        (["137", "-p", "nnUNetResEncUNetLPlans"], "-d 137 --verify_dataset_integrity -pl nnUNetPlannerResEncL\n"),
        (["137", "-p", "Mine"], "-overwrite_plans_name Mine\n"),
        (["137", "--name", "nnUNetPlans"], "--name nnUNetPlans would replace the plans"),
        (["137", "--name", "../x"], "--name '../x': a name without folder"),
        (["1000"], "ID 1000: expected at least 1 and at most 999"),
        (["137", "--gpu-memory-gb", "-3"], "--gpu-memory-gb -3.0: expected more than 0"),
        (["137", "--gpu-memory-gb", "nan"], "--gpu-memory-gb nan: expected more than 0"),
        (["137", "--gpu-memory-gb", "inf"], "--gpu-memory-gb inf: expected more than 0 and at most"),
        (["137", "--gpu-memory-gb", "1"], "--gpu-memory-gb 1: too little for "),
        (["137", "--gpus", "0"], "--gpus 0: expected a number of at least 1"),
        (["137", "--gpus", "two"], "--gpus two: expected a number"),
        (["137", "--gpus", "lyu_stage3=4"], "lyu_stage3 is none of "),
        (["137", "--gpus", "lyu_stage3=4"], "; did you mean 'lyu_stage"),
        (["137", "-tr", "BraTSVAETrainr"], "no trainer 'BraTSVAETrainr'; did you mean 'BraTSVAETrainer'?"),
        (["137", "-tr", "BraTSVAETrainer", "--paper", "lyu2020"], "choose one of them"),
        (["137", "--gpus", "lyu_stage1="], "--gpus lyu_stage1=: expected a number"),
    ],
)
def test_what_cannot_be_done_is_quoted_and_nothing_is_written(arguments, message, on_disk, capsys):
    assert main(["plan", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not list(on_disk.glob("BraTSPlans*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plans: plans.pop("configurations"), "nnUNetPlans.json, as a whole: 'configurations' is a required"),
        (lambda plans: plans.update(configurations=[1]), "nnUNetPlans.json, configurations: [1] is not"),
        (lambda plans: plans.pop("transpose_forward"), "transpose_forward should be an order of 0, 1, 2"),
        (lambda plans: plans["configurations"]["2d"].pop("spacing"), "'2d' lacks spacing"),
        (
            lambda plans: plans["configurations"]["2d"].update(batch_size="two"),
            "configurations.2d.batch_size: 'two' is not",
        ),
        (lambda plans: plans["configurations"].update(a={"inherits_from": "a"}), "'a' inherits from 'a'"),
        (lambda plans: plans["configurations"]["2d"].pop("architecture"), "is of an older nnU-Net; run: nnUNetv2_plan"),
    ],
)
def test_plans_that_somebody_has_edited_are_refused_with_file_and_key(change, message, plans, on_disk, capsys):
    change(plans)
    (on_disk / "nnUNetPlans.json").write_text(json.dumps(plans))
    assert main(["plan", "137"]) == 1
    assert message in capsys.readouterr().err
    assert not list(on_disk.glob("BraTSPlans*"))


def test_from_python_it_returns_what_was_chosen_and_prints_nothing(on_disk, capsys):
    planned = plan(137, gpu_memory_gb=24, gpus="2,lyu_stage1=4", name="Mine")
    assert planned.file == on_disk / "Mine.json"
    assert planned.written
    assert json.loads(planned.file.read_text()) == planned.plans
    assert planned.fits["lyu_stage1"].batch_size == 4
    assert planned.gpus["lyu_stage2"] == 2
    assert not plan(137, gpu_memory_gb=24, gpus="2,lyu_stage1=4", name="Mine").written
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_the_environment_has_to_name_the_folder(monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    assert main(["plan", "137"]) == 1
    assert "export nnUNet_preprocessed=" in capsys.readouterr().err


def test_both_stages_meet_on_plans_of_nnunet_itself(world, capsys):
    """From nnU-Net's real plans of a data set to trainers that load its data, at the sizes of both stages."""
    assert main(["plan", "901", "--overwrite"]) == 0
    folder = Path(world.root, "nnUNet_preprocessed", world.dataset)
    try:
        plans = json.loads((folder / "BraTSPlans.json").read_text()) | {"continue_training": False}
    finally:
        (folder / "BraTSPlans.json").unlink()
    device = torch.device("cpu")
    first = BraTSVAETrainer(deepcopy(plans), "lyu_stage1", 0, world.dataset_json, device)
    second = BraTSAttentionVAETrainer(deepcopy(plans), "lyu_stage2", 0, world.dataset_json, device)
    plain = BraTSBaselineTrainer(deepcopy(plans), "lyu_stage1", 0, world.dataset_json, device)

    # nnU-Net writes here after the validation of stage 1, and stage 2 reads there.
    assert "lyu_stage2_single" in first.configuration_manager.next_stage_names
    (stage,) = set(first.configuration_manager.next_stage_names) & {second.configuration_name}
    written = Path(first.output_folder_base, "predicted_next_stage", stage)
    assert Path(second.folder_with_segs_from_previous_stage) == written
    assert Path(first.preprocessed_dataset_folder) == Path(second.preprocessed_dataset_folder)
    assert Path(first.preprocessed_dataset_folder).is_dir()

    for trainer in (first, plain):
        trainer.initialize()
        loader, _ = trainer.get_dataloaders()
        patch_size = trainer.configuration_manager.patch_size
        assert next(loader)["data"].shape == (4, 4, *patch_size)
    # The phantoms have 32 x 36 x 32 voxels, the brains in them less.
    assert all(length <= ceil(size / 16) * 16 for length, size in zip(patch_size, (32, 36, 32), strict=True))
