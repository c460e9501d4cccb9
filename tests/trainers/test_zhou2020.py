"""OM-Net of Zhou et al. 2020: networks, fusion, loss, samplers, curriculum, post-processing, and its commands."""

import json
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import threads_for_processes
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor, predict_entry_point
from nnunetv2.run.run_training import run_training_entry
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from scipy import ndimage
from tiny_trainers import build, make_tiny, random_batch, weights
from torch import nn
from torch.nn import functional

from nnunet_brats_ext import trainers
from nnunet_brats_ext.architectures.blocks import optional_names
from nnunet_brats_ext.architectures.omnet.backbone import FusionNet
from nnunet_brats_ext.architectures.omnet.fusion import DILATION, fuse_regions
from nnunet_brats_ext.architectures.omnet.heads import CrossTaskGuidedAttention, channel_importance
from nnunet_brats_ext.architectures.omnet.networks import ModelCascade, OMNet, TaskOutput
from nnunet_brats_ext.architectures.omnet.tasks import CLASSES, CORE, OUTSIDE, TUMOUR
from nnunet_brats_ext.brats import ED, ET, NCR
from nnunet_brats_ext.inference.choices import find_symmetries
from nnunet_brats_ext.inference.predictor import BraTSPredictor
from nnunet_brats_ext.inference.symmetries import predict_each
from nnunet_brats_ext.losses.multi_task import RELEASED_TRANSFER, TRANSFER, MultiTaskCrossEntropy, selected_rows
from nnunet_brats_ext.predictions.rule_sets import find_rules
from nnunet_brats_ext.predictions.rules import RuleInput
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.trainers import BraTSMC2Trainer, BraTSMC3Trainer, BraTSOMNetCGATrainer, BraTSOMNetTrainer
from nnunet_brats_ext.trainers.zhou2020.sampling import TaskDraws
from nnunet_brats_ext.trainers.zhou2020.tilings import CENTRAL_PARTS
from nnunet_brats_ext.trainers.zhou2020.trainers import curriculum_phase
from nnunet_brats_ext.trainers.zhou2020.transforms import TaskTargets
from nnunet_brats_ext.training.averaging import StochasticWeightAveraging
from nnunet_brats_ext.training.planned_network import PlannedNetwork

TRAINERS = [name for name in trainers.__all__ if "OMNet" in name or "MC" in name]
SMALL = dict(features_per_stage=(4, 8, 12, 16))
TINY = dict(patch_size=[8, 16, 16], batch_size=1)  # of a trainer
ANISOTROPIC = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2))
REGIONS = [(1, 2, 3), (2, 3), 3]


def small(tasks: int = 3, **options) -> OMNet:
    torch.manual_seed(0)
    return OMNet(4, tasks=tasks, **(SMALL | options))


def images(rows: int, size: tuple[int, ...] = (8, 16, 16), seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 4, *size, generator=torch.Generator().manual_seed(seed))


def targets(labels: torch.Tensor) -> list[torch.Tensor]:
    regions = torch.cat([torch.isin(labels, torch.tensor(r)) for r in (TUMOUR, CORE, (ET,))], 1)
    return [regions, labels]


# --- networks (acceptance tests 1, 2, 7, 9) ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "options", "in_layers", "with_biases_and_norms"),
    [
        (ModelCascade, dict(tasks=1), 13_812_256, 13_823_493),
        (ModelCascade, dict(tasks=2), 27_624_512, 27_646_986),
        (ModelCascade, dict(tasks=3), 41_436_672, 41_470_380),
        (OMNet, dict(tasks=1), 13_812_256, 13_823_493),
        (OMNet, {}, 13_867_776, 13_879_212),
        (OMNet, dict(squeeze=16), 13_867_776 + 384, 13_879_698),
        (OMNet, dict(squeeze=8), 13_867_776 + 768, 13_880_088),
        (OMNet, dict(guidance="full"), 13_812_733, 13_823_991),
        (OMNet, dict(guidance="minus"), 13_812_733, 13_823_991),
        (OMNet, dict(guidance="tumour"), 13_812_509, 13_823_760),
        (OMNet, dict(guidance="non_tumour"), 13_812_509, 13_823_760),
    ],
    ids=str,
)
def test_networks_have_the_weights_of_the_paper(architecture, options, in_layers, with_biases_and_norms):
    with torch.device("meta"):
        parameters = list(architecture(4, **options).parameters())
    assert sum(p.numel() for p in parameters if p.ndim > 1) == in_layers
    assert sum(p.numel() for p in parameters) == with_biases_and_norms


@pytest.mark.parametrize(
    ("model", "paper"),
    [
        ("MC1", 13.813), ("MC2", 27.626), ("MC3", 41.439), ("OMNet", 13.869), ("OMNetSE", 13.870), ("OMNetCGA", 13.814),
        ("OMNetCGAMinus", 13.814), ("OMNetCGATumor", 13.814), ("OMNetCGANonTumor", 13.814), ("OMNet0", 13.869),
        ("OMNetD", 13.869),
    ],
)  # fmt: skip
def test_trainers_build_the_networks_of_table_one(model, paper):
    """The paper rounds each layer to 0.001 M before it adds them up."""
    trainer = getattr(trainers, f"BraTS{model}Trainer")
    planned = PlannedNetwork((16, 32, 32), nn.Conv3d, ((1, 1, 1), *3 * [(2, 2, 2)]))
    with torch.device("meta"):
        network = trainer.build_network(planned, 4, 3, deep_supervision=False)
    assert sum(p.numel() for p in network.parameters() if p.ndim > 1) / 1e6 == pytest.approx(paper, abs=0.0025)


def test_layers_are_initialised_as_by_the_authors():
    network = OMNet(4)
    assert not network.backbone.encoder[0][0][0].bias.any()
    layers = [m for m in network.modules() if isinstance(m, nn.Conv3d | nn.ConvTranspose3d)][1:]
    assert all((layer.bias == 0.1).all() for layer in layers)
    transposed = network.backbone.upsamplings[0][0]  # 256 -> 128 channels: Caffe counts the outputs
    assert transposed.weight.std().item() == pytest.approx((2 / (128 * 8)) ** 0.5, rel=0.02)
    assert network.heads[2].layers[0][0].weight.std().item() == pytest.approx((2 / (32 * 27)) ** 0.5, rel=0.05)


def gradients_of(network: OMNet, task: int) -> tuple[bool, list[bool]]:
    """Whether the loss of a task reaches the backbone, and each of the heads."""
    network.train()(images(3)).scores[task].sum().backward()

    def reached(module: nn.Module) -> bool:
        got = {p.grad is not None for p in module.parameters()}
        assert len(got) == 1, "some parameters of a module have a gradient, others none"
        return got.pop()

    return reached(network.backbone), [reached(head) for head in network.heads]


@pytest.mark.parametrize("options", [{}, dict(squeeze=2), *(dict(guidance=g) for g in ("full", "minus", "tumour"))])
@pytest.mark.parametrize("task", range(3))
def test_gradients_of_a_task_reach_the_backbone_and_its_own_head_alone(options, task):
    assert gradients_of(small(**options), task) == (True, [other == task for other in range(3)])


def test_heads_see_the_rows_of_their_task_and_of_those_before():
    network, x = small().train(), images(6)
    seen = Counter()
    for name, module in [("backbone", network.backbone), *((str(i), head) for i, head in enumerate(network.heads))]:
        module.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: len(inputs[0])}))
    assert [len(score) for score in network(x).scores.values()] == [2, 4, 6]
    assert seen == {"backbone": 6, "0": 2, "1": 4, "2": 6}
    seen.clear()
    network.active_tasks = (0,)
    assert [len(score) for score in network(x).scores.values()] == [2]
    assert seen == {"backbone": 2, "0": 2}, "in phase 1 only the data of task 1 pass"
    guided = small(guidance="full").train()
    guided.heads[0].register_forward_pre_hook(lambda _, inputs: seen.update(guided=len(inputs[0])))
    assert [len(score) for score in guided(x).scores.values()] == [2, 4, 6]
    assert seen["guided"] == 6


def test_networks_of_a_cascade_see_their_own_rows_alone():
    network = ModelCascade(4, **SMALL).train()
    rows = []
    for module in network.networks:
        module.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0]))
    x = images(6)
    network(x)
    assert torch.equal(torch.cat(rows), x)


def test_channel_importance_sums_to_one_in_half_precision():
    features = 10 * torch.rand(2, 32, 64, 64, 64, dtype=torch.bfloat16)  # sums in fp16 end at 65,504
    attention = CrossTaskGuidedAttention(nn.Conv3d, 32, 5, TUMOUR)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        importance = channel_importance(features, attention.probabilities(torch.randn(2, 5, 64, 64, 64)))
    assert importance.dtype == torch.float32
    assert torch.isfinite(importance).all()
    torch.testing.assert_close(importance.sum(2), torch.ones(2, 2), atol=1e-5, rtol=0)
    assert not channel_importance(torch.zeros(1, 32, 2, 2, 2), torch.rand(1, 2, 2, 2, 2)).any()


def test_guided_attention_is_the_equations_of_the_paper():
    features, previous = torch.rand(2, 6, 3, 4, 5), torch.randn(2, 5, 3, 4, 5)
    tumour = previous.softmax(1)[:, 1:4].sum(1)  # Pt
    parts = {"tumour": tumour, "non_tumour": 1 - tumour}
    for guidance, composed in [("full", 1), ("tumour", 1), ("non_tumour", 1), ("minus", 0)]:
        module = CrossTaskGuidedAttention(nn.Conv3d, 6, 5, TUMOUR, guidance)
        total = torch.zeros(2, 5, 3, 4, 5)
        for name, p in parts.items():
            if name in module.project:
                m = torch.stack([(features[:, i] * p).sum((1, 2, 3)) for i in range(6)], 1)
                m = m / m.sum(1, keepdim=True)
                total += module.project[name](m[..., None, None, None] * features) * (p[:, None] if composed else 1)
        torch.testing.assert_close(module(features, previous), module.combine(total))


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((8, 16, 24), {}),
        ((4, 16, 8), dict(strides=ANISOTROPIC)),
        ((8, 8, 12), dict(strides=[(1, 1, 1), (2, 2, 2), (1, 1, 2)])),  # fewer levels than the paper's
        ((8, 8, 8), dict(strides=[(1, 1, 1)])),
        ((16, 32, 32), dict(strides=[*ANISOTROPIC, (2, 2, 2)])),  # more: the deeper ones are left out
        ((16, 24), dict(strides=[(1, 1), (2, 2), (2, 2), (2, 2)], conv_op=nn.Conv2d)),
    ],
    ids=str,
)
@pytest.mark.parametrize("build_network", [OMNet, lambda *a, **k: OMNet(*a, guidance="full", **k), ModelCascade])
def test_any_size_that_the_strides_allow_trains_and_predicts(size, options, build_network):
    network = build_network(4, **(SMALL | options))
    loss = MultiTaskCrossEntropy()(network(images(3, size)), targets(torch.randint(0, 5, (3, 1, *size))))
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    with torch.no_grad():
        assert network.eval()(images(1, size)).shape == (1, 3, *size)


def test_compiled_networks_have_no_graph_breaks():
    network = small(guidance="full", strides=[(1, 1, 1), (2, 2, 2)])
    compiled, x = torch.compile(network, backend="eager", fullgraph=True), images(3)
    for network.active_tasks in ((0,), (0, 1, 2)):
        assert tuple(compiled(x).scores) == network.active_tasks
    with torch.no_grad():
        assert torch.equal(compiled.eval()(x), network(x))
    torch._dynamo.reset()


def test_an_unknown_guidance_is_an_error_that_names_the_choices():
    with pytest.raises(UserError, match="guidance is 'both': choose one of full, minus, tumour, non_tumour"):
        OMNet(4, guidance="both")


# --- fusion (3) ----------------------------------------------------------------------------------------------------


def random_scores(rows: int, size: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    coarse, fine, et = (2 * torch.randn(rows, k, *size, generator=generator) for k in (5, 5, 2))
    coarse[:, 0] += 9  # little enough tumour that its dilation leaves something out
    return [coarse, fine, et]


def paper_rule(scores: list[torch.Tensor]) -> np.ndarray:
    """Dilate the coarse tumour; the best label within; ET or NCR in the core."""
    coarse, fine, et = (score.numpy() for score in scores)
    p = np.exp(coarse) / np.exp(coarse).sum(1, keepdims=True)
    near = np.stack([ndimage.binary_dilation(m, np.ones((11, 11, 11))) for m in p[:, 1:4].sum(1) > 0.5])
    best = np.where(near, fine.argmax(1), 0)
    labels = np.where(best == 1, ED, 0)
    return np.where(np.isin(best, (2, 3)), np.where(et.argmax(1) == 1, ET, NCR), labels)


def paint(logits: torch.Tensor) -> np.ndarray:
    labels = np.zeros((len(logits), *logits.shape[2:]), int)
    for label, region in enumerate(logits.unbind(1), start=1):
        labels[region.numpy() > 0] = label
    return labels


def test_painted_regions_are_the_rule_of_the_paper():
    scores = random_scores(2, (24, 32, 32))
    labels = paper_rule(scores)
    assert len(np.unique(labels)) == 4
    np.testing.assert_array_equal(paint(fuse_regions(scores)), labels)
    single = paint(fuse_regions(scores[:1]))
    np.testing.assert_array_equal(single, scores[0].numpy().argmax(1) % OUTSIDE)
    two = paint(fuse_regions(scores[:2]))
    near = labels > 0
    np.testing.assert_array_equal(two[near], scores[1].numpy().argmax(1)[near] % OUTSIDE)


@pytest.mark.parametrize("reduce", [torch.amax, torch.logsumexp])
@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_fused_regions_are_nested_and_bounded(reduce, tasks):
    scores = [100 * score.half() for score in random_scores(2, (8, 8, 8))[:tasks]]
    wt, tc, et = fuse_regions(scores, reduce).unbind(1)
    assert wt.dtype == torch.float32
    assert (wt >= tc).all()
    assert (tc >= et).all()
    assert wt.abs().max() <= 30


def test_the_log_sum_rule_gives_the_logit_of_summed_probabilities():
    scores = random_scores(1, (4, 4, 4))[:1]
    wt = fuse_regions(scores, torch.logsumexp)[0, 0].sigmoid()
    torch.testing.assert_close(wt, scores[0].softmax(1)[0, 1:4].sum(0))


def test_regions_stay_nested_in_nnunets_predictor(world):
    trainer = build(world, BraTSOMNetTrainer, **TINY)
    predictor = nnUNetPredictor(use_mirroring=True, device=torch.device("cpu"), allow_tqdm=False)
    managers = trainer.plans_manager, trainer.configuration_manager
    network = small(strides=trainer.configuration_manager.pool_op_kernel_sizes).eval()
    predictor.manual_initialization(
        network, *managers, [network.state_dict()], world.dataset_json, "BraTSOMNetTrainer", (0, 1)
    )
    wt, tc, et = predictor.predict_logits_from_preprocessed_data(images(1, (13, 20, 19))[0]).float()
    assert ((wt >= tc) & (tc >= et)).all()


@pytest.mark.parametrize(("symmetries", "normal"), [("none", 5), ("mirror8", 1)])
def test_the_papers_tiles_join_the_tasks_before_the_coarse_mask_grows(symmetries, normal, world):
    trainer = build(world, BraTSOMNetTrainer, **TINY)
    network = small(strides=trainer.configuration_manager.pool_op_kernel_sizes).eval()
    data = images(1, (24, 24, 24))[0]
    with torch.no_grad():
        for head, scores in zip(network.heads, network.all_scores(data[None]), strict=True):
            spread, middle = scores.std((0, 2, 3, 4)), scores.mean((0, 2, 3, 4))
            classifier = head.layers[-1]
            classifier.weight.mul_((2 / spread).view(-1, 1, 1, 1, 1))
            classifier.bias.copy_((classifier.bias - middle) * 2 / spread)
        network.heads[0].layers[-1].bias[0] += normal  # little enough tumour that its dilation leaves something out
    predictor = BraTSPredictor("overlap", symmetries, device=torch.device("cpu"))
    managers = trainer.plans_manager, trainer.configuration_manager
    predictor.manual_initialization(
        network, *managers, [network.state_dict()], world.dataset_json, "BraTSOMNetTrainer", None
    )
    predicted = predictor.predict_sliding_window_return_logits(data)[None]

    def scores_of(x: torch.Tensor) -> torch.Tensor:
        maps = find_symmetries(symmetries)
        with torch.no_grad():
            each = list(predict_each(lambda x: torch.cat(network.all_scores(x), 1), x, maps))
        return torch.stack(each).mean(0)

    joined = CENTRAL_PARTS(scores_of, predictor._volume(data))[None]
    labels = paper_rule(list(joined.split(CLASSES, 1)))
    assert len(np.unique(labels)) == 4
    np.testing.assert_array_equal(paint(predicted), labels)
    assert network(data[None, :, :8, :16, :16]).shape[1] == 3, "the network gives regions again"


def test_a_tile_of_nothing_is_normal_tissue_for_every_task(world):
    trainer = build(world, BraTSOMNetTrainer, **TINY)
    network = small(strides=trainer.configuration_manager.pool_op_kernel_sizes)
    predictor = BraTSPredictor("overlap", "none", skip_empty=True, device=torch.device("cpu"))
    managers = trainer.plans_manager, trainer.configuration_manager
    predictor.manual_initialization(
        network, *managers, [network.state_dict()], world.dataset_json, "BraTSOMNetTrainer", None
    )
    assert (predictor.predict_sliding_window_return_logits(torch.zeros(4, 8, 16, 16)) < 0).all()


# --- loss (4) ------------------------------------------------------------------------------------------------------


def patch(**shares: float) -> torch.Tensor:
    """Labels of a patch of 10 x 10 x 10 of which whole per cents are ED, NCR or ET."""
    labels = torch.zeros(1000, dtype=torch.uint8)
    start = 0
    for name, share in shares.items():
        count = round(1000 * share)
        labels[start : start + count] = {"ED": ED, "NCR": NCR, "ET": ET, "OUTSIDE": OUTSIDE}[name]
        start += count
    return labels.view(1, 10, 10, 10)


# 39 and 41 % of tumour, 49 and 51 % of core, and exactly at the thresholds; the same from Data-1 and from Data-2
DONORS = [
    patch(ED=0.39),
    patch(ED=0.3, NCR=0.11),
    patch(NCR=0.49),
    patch(NCR=0.21, ET=0.3),
    patch(ED=0.4),
    patch(ET=0.5),
]
OWN = [patch(OUTSIDE=1.0)] * 6
BATCH = torch.stack([*DONORS, *DONORS, *OWN])


def test_data_transfer_selects_the_patches_that_are_full_enough():
    labels = BATCH[:, 0]
    everything = [True] * 6
    tumour, core = [False, True, True, True, True, True], [False, False, False, True, False, True]
    assert selected_rows(labels[:6], 0, 6).tolist() == everything
    assert selected_rows(labels[:12], 1, 6).tolist() == tumour + everything
    assert selected_rows(labels, 2, 6).tolist() == core + core + everything
    assert selected_rows(labels, 2, 6, transfer={}).tolist() == [False] * 12 + everything


def test_text_and_release_differ_over_one_number_of_tumour_voxels(world):
    own = torch.full((1, 16, 32, 32), OUTSIDE)
    for voxels, text, release in [(6552, False, False), (6553, False, True), (6554, True, True), (8192, True, True)]:
        patch = torch.zeros(16 * 32 * 32, dtype=own.dtype)
        patch[:voxels] = NCR
        labels = torch.cat([patch.view(own.shape), own])
        for transfer, expected in ((TRANSFER, text), (RELEASED_TRANSFER, release)):
            assert selected_rows(labels, 1, 1, transfer).tolist() == [expected, True]
            assert selected_rows(labels, 2, 1, transfer).tolist() == [voxels >= 8192, True]
    for follows, transfer in (({}, TRANSFER), ("text", TRANSFER), ("release", RELEASED_TRANSFER)):
        for parent in (BraTSOMNetTrainer, BraTSOMNetCGATrainer):
            trainer = build(world, type("Own", (parent,), {"follows": follows}))
            assert trainer.transfer is trainer._build_loss().transfer is transfer


@pytest.mark.parametrize("transfer", [TRANSFER, {}])
def test_each_loss_is_the_mean_over_its_selected_rows(transfer):
    generator = torch.Generator().manual_seed(0)
    scores = {t: torch.randn(6 * (t + 1), k, 10, 10, 10, generator=generator) for t, k in enumerate((5, 5, 2))}
    loss = MultiTaskCrossEntropy(transfer=transfer)
    total = loss(TaskOutput(None, scores), targets(BATCH))
    labels = BATCH[:, 0].long()
    rows = [range(6), [1, 2, 3, 4, 5, *range(6, 12)], [3, 5, 9, 11, *range(12, 18)]] if transfer else [
        range(6), range(6, 12), range(12, 18)
    ]  # fmt: skip
    truths = labels, labels, (labels == ET).long()
    each = [functional.cross_entropy(scores[t][list(r)], truths[t][list(r)]) for t, r in enumerate(rows)]
    torch.testing.assert_close(torch.stack(list(loss.latest.values())), torch.stack(each))
    assert total.item() == pytest.approx(sum(each).item())


def test_the_loss_is_fp32_whatever_the_scores_are():
    scores = {0: torch.full((1, 5, 2, 2, 2), 60_000.0, dtype=torch.float16)}
    loss = MultiTaskCrossEntropy(tasks=1)(
        TaskOutput(None, scores), targets(torch.zeros(1, 1, 2, 2, 2, dtype=torch.uint8))
    )
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(np.log(5))


# --- samplers and targets (5) --------------------------------------------------------------------------------------


class Cases:
    """Data whose values are coordinates; a brain with or without tumour, on a grid that touches the lower borders."""

    source_folder, folder_with_segs_from_previous_stage = "", None
    shape = (30, 40, 40)

    def __init__(self, *tumours: str):
        self.tumours = {f"case{i}_{kind}": kind for i, kind in enumerate(tumours)}
        self.identifiers = list(self.tumours)

    def load_case(self, identifier):
        z, y, x = np.indices(self.shape)
        segmentation = np.where((z < 20) & (y < 25) & (x < 30), 0, -1)[None].astype(np.int16)
        kind = self.tumours[identifier]
        if kind != "healthy":
            segmentation[0, 2:8, 3:7, 4:8] = ED
        if kind == "core":
            segmentation[0, 3:5, 4:6, 5:7] = ET
        locations = {r: np.argwhere(np.isin(segmentation, r)) for r in REGIONS}
        return np.stack([z, y, x]).astype(np.float32), segmentation, None, {"class_locations": locations}


def drawn(cases: Cases, batches: int = 40, patch_size=(16, 20, 20), initial=(18, 24, 24)) -> tuple[list, torch.Tensor]:
    """The coordinates of the centres of each task, and the segmentations of the last batch, out of nnU-Net's loader."""
    view = TaskDraws(cases, REGIONS, tasks=3, rows_per_task=2, patch_size=initial)
    labels = SimpleNamespace(all_labels=[0, 1, 2, 3], has_ignore_label=False)
    loader = nnUNetDataLoader(view, 6, patch_size, patch_size, labels, oversample_foreground_percent=1.0)
    centres = [[], [], []]
    for _ in range(batches):
        batch = loader.generate_train_batch()
        for row, (data, segmentation) in enumerate(zip(batch["data"], batch["target"], strict=True)):
            middle = tuple(n // 2 for n in patch_size)
            if segmentation[(0, *middle)] >= 0:  # else the coordinates may be padding
                centres[row // 2].append(data[(slice(None), *middle)].int().tolist())
            elif row < 2:
                pytest.fail("the first task looks outside the brain")
    return [np.array(each) for each in centres], batch["target"]


def test_each_task_draws_its_centres_where_the_paper_does():
    np.random.seed(0)
    cases = Cases("core")
    _, segmentation, *_ = cases.load_case(cases.identifiers[0])
    (brain, near, core), targets_of_batch = drawn(cases)
    assert (segmentation[0][tuple(brain.T)] >= 0).all()
    assert len(np.unique(brain, axis=0)) > 70, "anywhere in the brain"
    assert (brain.min(0) < 5).all(), "close to the lower border as well"
    dilated = ndimage.binary_dilation(segmentation[0] > 0, np.ones((11, 11, 11)))
    assert dilated[tuple(near.T)].all()
    assert 0.02 < (segmentation[0][tuple(near.T)] > 0).mean() < 0.5, "mostly around the tumour, as its dilation is"
    assert (segmentation[0][tuple(core.T)] == ET).all()
    assert (targets_of_batch == -1).any()


@pytest.mark.parametrize("tumours", [("oedema",), ("healthy",), ("healthy", "oedema", "core")])
def test_cases_that_lack_what_a_task_looks_for_are_replaced(tumours):
    np.random.seed(0)
    (brain, _, core), _ = drawn(Cases(*tumours), batches=10)
    assert len(brain) == len(core) == 20
    if tumours[-1] == "core":
        assert (core >= (3, 4, 5)).all()
        assert (core < (5, 6, 7)).all()


def test_regions_that_preprocessing_did_not_know_are_an_error():
    view = TaskDraws(Cases("core"), [(1, 2, 3, 4), (2, 3), 3], 3, 1, (8, 8, 8))
    with pytest.raises(UserError, match=r"not \(1, 2, 3, 4\): run nnUNetv2_preprocess"):
        view.draw(view.identifiers[0], 1)


def test_targets_keep_what_lies_outside_the_brain():
    segmentation = torch.tensor([-1, 0, ED, NCR, ET], dtype=torch.int16).view(1, 5, 1, 1)
    regions, labels = TaskTargets(REGIONS)(segmentation=segmentation)["segmentation"]
    assert labels.flatten().tolist() == [OUTSIDE, 0, ED, NCR, ET]
    assert regions.int().flatten(1).tolist() == [[0, 0, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]
    a_further_label = TaskTargets([(1, 2, 3, 4), (2, 3, 4), 3])(segmentation=torch.full((1, 1, 1, 1), 4))
    assert a_further_label["segmentation"][1].item() == NCR, "the fourth label of some cohorts belongs to the core"


@pytest.mark.parametrize("augmented", [True, False])
def test_a_batch_holds_the_configurations_rows_for_each_task(augmented, world):
    class Trainer(BraTSOMNetTrainer):
        pass

    Trainer.augmented = augmented
    trainer = build(world, Trainer, **(TINY | dict(batch_size=2)))
    trainer.initialize()
    for loader in trainer.get_dataloaders():
        batch = next(loader)
        regions, labels = batch["target"]
        assert batch["data"].shape == (6, 4, 8, 16, 16)
        assert regions.shape == (6, 3, 8, 16, 16)
        assert labels.shape == (6, 1, 8, 16, 16)
        assert OUTSIDE in labels, "patches in so small a head reach beyond it"
        assert torch.equal(regions.sum(1, keepdim=True), labels % OUTSIDE)
        if not augmented:
            middle = labels[:, 0, 4, 8, 8]
            assert (middle[:2] != OUTSIDE).all()
            assert torch.isin(middle[4:], torch.tensor(CORE)).all()
    assert trainer.inference_allowed_mirroring_axes is None


def test_the_papers_tiles_cover_brats_and_hold_the_dilation_of_what_they_keep():
    prediction = BraTSOMNetTrainer.all_facts().prediction
    patch, kept = (16, 32, 32), prediction.kept
    assert [-(-size // step) for size, step in zip((155, 240, 240), kept, strict=True)] == [31, 12, 12]
    assert min((length - step) // 2 for length, step in zip(patch, kept, strict=True)) >= DILATION
    assert (prediction.tiling, prediction.symmetries) == ("overlap", "none")


# --- training (6) --------------------------------------------------------------------------------------------------


def test_the_curriculum_adds_a_task_after_a_twentieth_and_a_tenth():
    assert [curriculum_phase(epoch, 1000) for epoch in (0, 49, 50, 99, 100, 999)] == [1, 1, 2, 2, 3, 3]
    assert [curriculum_phase(epoch, 20) for epoch in range(4)] == [1, 2, 3, 3]
    assert [curriculum_phase(epoch, 2) for epoch in range(2)] == [1, 3]


@pytest.mark.parametrize(("follows", "phases"), [({}, [1, 2, 3, 3]), ("text", [1, 2, 3, 3]), ("release", [3] * 4)])
def test_the_release_trains_all_tasks_from_the_start(follows, phases, world):
    trainer = build(world, type("Own", (BraTSOMNetCGATrainer,), {"follows": follows}))
    found = []
    for trainer.current_epoch in (0, 50, 100, 999):
        found.append(trainer.phase)
    assert found == phases


def test_solver_and_length_are_the_papers(world):
    trainer = build(world, BraTSOMNetTrainer, **TINY)
    trainer.initialize()
    assert trainer.num_epochs * trainer.num_iterations_per_epoch == 400_000
    settings = trainer.optimizer.param_groups[0]
    assert isinstance(trainer.optimizer, torch.optim.SGD)
    assert (settings["momentum"], settings["nesterov"]) == (0.99, False)
    for epoch, halvings in [(0, 0), (199, 0), (200, 1), (400, 2), (599, 2), (600, 3), (800, 4), (999, 4)]:
        trainer.lr_scheduler.step(epoch)
        assert {g["lr"] for g in trainer.optimizer.param_groups} == {1e-3 * 0.5**halvings}
    decay = {id(p): group["weight_decay"] for group in trainer.optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(trainer.network.parameters()))
    for module in trainer.network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            assert (decay[id(module.weight)], decay[id(module.bias)]) == (5e-4, 0)
        if isinstance(module, nn.BatchNorm3d):
            assert decay[id(module.weight)] == decay[id(module.bias)] == 5e-4


def test_tasks_that_wait_stay_as_they_are_and_a_resumed_curriculum_goes_on(world, tmp_path):
    trainer = build(world, BraTSOMNetTrainer, **TINY)
    trainer.initialize()
    changed = []
    for epoch in (0, 50, 100):
        trainer.current_epoch = epoch
        trainer.network.train()
        before = weights(trainer)
        step = trainer.train_step(random_batch(trainer))
        after = weights(trainer)
        changed.append({name.split(".")[1] for name in before if name.startswith("heads") and
                        not torch.equal(before[name], after[name])})  # fmt: skip
        assert sum(name.startswith("task") for name in step) == len(changed)
    assert changed == [{"0"}, {"0", "1"}, {"0", "1", "2"}]
    trainer.current_epoch = 74
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    resumed = build(world, BraTSOMNetTrainer, **TINY)
    resumed.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    resumed.network.train()
    resumed.train_step(random_batch(resumed))
    assert resumed.network.active_tasks == (0, 1)


def test_networks_of_a_cascade_learn_as_if_alone(world):
    """The data of one network, and gradients that are clipped because of them, change nothing for another."""
    learned = []
    for scale in (1.0, 1e4):
        torch.manual_seed(0)
        trainer = build(world, BraTSMC3Trainer, **TINY)
        trainer.initialize()
        trainer.network.train()
        batch = random_batch(trainer)
        batch["data"][2:] *= scale
        trainer.train_step(batch)
        learned.append(weights(trainer))
    for name, same in [("networks.0", True), ("networks.1", True), ("networks.2", False)]:
        equal = [torch.equal(learned[0][key], learned[1][key]) for key in learned[0] if key.startswith(name)]
        assert all(equal) == same


def test_validation_scores_regions_and_measures_the_loss_of_all_tasks(world):
    trainer = build(world, BraTSOMNetCGATrainer, **TINY)
    trainer.initialize()
    trainer.network.eval()
    batch = random_batch(trainer)
    with torch.no_grad():
        output = trainer.network(batch["data"])
        seen = trainer.validation_step(batch)
        assert torch.equal(output.regions, fuse_regions(trainer.network.all_scores(batch["data"])))
    predicted = (output.regions > 0).sum((0, 2, 3, 4))
    np.testing.assert_array_equal(seen["tp_hard"] + seen["fp_hard"], predicted)
    assert seen["loss"] == pytest.approx(trainer.loss(output, batch["target"]).item(), rel=1e-4)
    assert len(output.scores) == 3


@pytest.mark.parametrize("labels", [{"WT": [1, 2, 3], "TC": [2, 3]}, {"WT": [1, 2], "TC": [2, 3], "ET": 3},
                                    {"WT": [1, 2, 3], "TC": [2, 3], "ET": 3, "RC": 4}])  # fmt: skip
def test_other_regions_than_three_nested_ones_are_quoted(labels, world):
    plans = world.plans | {"continue_training": False}
    dataset_json = world.dataset_json | {"labels": {"background": 0, **labels}}
    dataset_json["regions_class_order"] = [1, 2, 3, 4][: len(labels)]
    trainer = BraTSOMNetTrainer(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"three regions, each within the one before.*'WT'"):
        trainer.initialize()


def test_distributed_training_lets_tasks_wait(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        network = small()
        distributed = nn.parallel.DistributedDataParallel(network)
        labels = torch.randint(0, 5, (3, 1, 8, 16, 16))
        for network.active_tasks in ((0,), (0,), (0, 1, 2)):  # without a gradient of each, the second forward fails
            distributed.zero_grad()
            MultiTaskCrossEntropy()(distributed(images(3)), targets(labels)).backward()
            idle = network.idle_parameters()
            assert not any(p.grad.any() for p in idle)
        assert all(p.grad is not None and p.grad.any() for p in network.heads[2].layers[-1].parameters())
    finally:
        torch.distributed.destroy_process_group()


def test_networks_that_wait_stay_as_they_are_whatever_the_optimiser(world, tmp_path):
    class Averaged(StochasticWeightAveraging, BraTSMC2Trainer):
        """In a cycle, whose optimiser is Adam."""

    trainer = build(world, Averaged)
    trainer.initialize()
    trainer.enter(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        trainer.network = nn.parallel.DistributedDataParallel(trainer.network)
        trainer.train_step(random_batch(trainer))  # so that Adam has moments of all
        trainer.bare_network.steps = lambda phase: [(0,)]
        before = [parameter.detach().clone() for parameter in trainer.bare_network.networks[1].parameters()]
        trainer.train_step(random_batch(trainer, seed=1))
        assert all(map(torch.equal, before, trainer.bare_network.networks[1].parameters()))
    finally:
        torch.distributed.destroy_process_group()


# --- post-processing (8); each rule at its thresholds is tested with the rules themselves --------------------------


def tumours(*volumes: int) -> np.ndarray:
    labels = np.zeros((12, 12, 250), np.uint8)
    for i, volume in enumerate(volumes):
        labels[2 * i, 2 * i, :volume] = ED
    return labels


def both_steps(labels: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=(4, *labels.shape)).astype(np.float32)
    return find_rules("zhou2020-kmeans").apply(RuleInput(labels, images=noise))[0]


def test_both_steps_of_post_processing_keep_what_they_promise():
    first = find_rules("zhou2020")
    assert not both_steps(np.zeros((4, 4, 4), np.uint8)).any()
    one = tumours(50)
    np.testing.assert_array_equal(first.apply(RuleInput(one))[0], one)
    np.testing.assert_array_equal(first.apply(RuleInput(tumours(200, 20, 19)))[0], tumours(200, 20))
    without_et = both_steps(one)
    assert 0 < (without_et == NCR).sum() < 50, "no ET at all is little ET"
    np.testing.assert_array_equal(without_et > 0, one > 0)
    np.testing.assert_array_equal(both_steps(tumours(1)), tumours(1))
    for et, applies in ((9, True), (10, False)):  # strictly less than 5 % of 200 voxels
        labels = tumours(200)
        labels[0, 0, :et] = ET
        result = both_steps(labels)
        assert (NCR in result) == applies
        np.testing.assert_array_equal(result == ET, labels == ET)
    block = np.full((30, 30, 30), ED, np.uint8)
    for et, applies in ((999, True), (1000, False)):  # 3.7 % of the tumour
        labels = block.copy()
        labels.flat[:et] = ET
        assert (NCR in both_steps(labels)) == applies


def test_the_second_step_looks_at_what_the_first_has_left():
    labels = tumours(200, 15)
    labels[2, 2, :15] = ET  # a component of ET alone: with it 7 % of the case, without it none; it is removed first
    labels[0, 0, :9] = ET
    result = both_steps(labels)
    assert not result[2, 2].any()
    assert NCR in result[0, 0]


# --- nnU-Net's commands --------------------------------------------------------------------------------------------


@pytest.mark.end_to_end
@pytest.mark.parametrize("trainer", [BraTSOMNetTrainer, BraTSOMNetCGATrainer, BraTSMC3Trainer])
def test_nnunets_commands_train_and_predict(trainer, world, tmp_path, monkeypatch, capsys):
    folder = world.root / "nnUNet_preprocessed" / world.dataset
    plans = world.plans | {"plans_name": "TinyPlans"}
    plans["configurations"]["omnet"] = {"inherits_from": "3d_fullres", "patch_size": [28, 16, 28], "batch_size": 1}
    (folder / "TinyPlans.json").write_text(json.dumps(plans))
    model = ("-tr", trainer.__name__, "-p", "TinyPlans")
    device = ("-device", "cpu")
    make_tiny(trainer, monkeypatch)
    for variable, value in {"nnUNet_brats_epochs": "2", "nnUNet_brats_iterations": "1"}.items():
        monkeypatch.setenv(variable, value)

    def command(entry_point, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", list(words))
        threads = torch.get_num_threads()
        with threads_for_processes():
            entry_point()
        torch.set_num_threads(threads)
        return capsys.readouterr().out

    said = command(run_training_entry, "nnUNetv2_train", world.dataset, "omnet", "0", *model, *device)
    assert "Mean Validation Dice" in said
    assert "train_loss, of which task 3" in said
    options = ("-f", "0", "-step_size", "1", "-npp", "0", "-nps", "0", "--save_probabilities", *model, *device)
    out = tmp_path / "out"
    data = ("-i", str(world.raw / "imagesTs"), "-o", str(out), "-d", "901", "-c", "omnet")
    command(predict_entry_point, "nnUNetv2_predict", *data, *options)
    predictions = sorted(out.glob("*.nii.gz"))
    assert len(predictions) == 2
    for prediction in predictions:
        labels = sitk.GetArrayFromImage(sitk.ReadImage(str(prediction)))
        assert set(np.unique(labels)) <= {0, ED, NCR, ET}
        p = np.load(prediction.with_name(prediction.name.replace("nii.gz", "npz")))["probabilities"]
        assert (np.diff(p, axis=0) < 1e-3).all(), "nested, but for the rounding of nnU-Net's resampling"


def test_the_backbone_pools_maxima_and_that_of_an_earlier_checkpoint_averages_also_once_it_is_saved_again():
    def backbone() -> FusionNet:
        return FusionNet(1, nn.Conv3d, [(1, 1, 1), (2, 2, 2)], (4, 4)).eval()

    torch.manual_seed(0)
    x, new = torch.randn(1, 1, 4, 4, 4), backbone()
    assert isinstance(new.poolings[0], nn.MaxPool3d)
    weights = {name: value for name, value in new.state_dict().items() if name != "pools_maxima"}
    assert optional_names(new) == {"pools_maxima"}
    earlier = backbone()
    earlier.load_state_dict(weights)
    assert isinstance(earlier.poolings[0], nn.AvgPool3d)
    assert not torch.equal(earlier(x), new(x))
    saved, again = earlier.state_dict(), backbone()
    again.load_state_dict(saved)
    assert torch.equal(again(x), earlier(x))
    again.load_state_dict(new.state_dict())
    assert torch.equal(again(x), new(x))
    cascade = nn.ModuleList([backbone(), backbone()])
    cascade.load_state_dict({f"{i}.{name}": value for i in (0, 1) for name, value in weights.items()})
    assert torch.equal(cascade[1](x), earlier(x))
