"""Symmetries, tilings and windows: each is right if a network that changes nothing gives back what it was shown."""

from dataclasses import replace
from itertools import product
from mmap import mmap
from pathlib import Path
from time import sleep
from types import SimpleNamespace
from weakref import ref

import numpy as np
import pytest
import torch

from nnunet_brats_ext import papers
from nnunet_brats_ext.inference import cases, memory
from nnunet_brats_ext.inference.checkpoints import Weights
from nnunet_brats_ext.inference.choices import X, Y, Z, find_symmetries, find_tiling, symmetry_names, tiling_names
from nnunet_brats_ext.inference.memory import bytes_of_pass, free_bytes
from nnunet_brats_ext.inference.predictor import BraTSPredictor
from nnunet_brats_ext.inference.profiling import MB, MemoryMeter
from nnunet_brats_ext.inference.symmetries import apply, average_probabilities, logits_of, undo
from nnunet_brats_ext.inference.tilings import CERTAIN, WHOLE_BRAIN, StoredVolume, Volume, predict_slices
from nnunet_brats_ext.papers import Symmetry
from nnunet_brats_ext.trainers.lyu2020.windows import STRICT_STARTS, strict_window, tumour_window

EVERY_NAME = pytest.mark.parametrize("name", [name for name in symmetry_names() if find_symmetries(name)])
TUMOUR, OVERLAP = find_tiling("tumour"), find_tiling("overlap")
REGIONS = ((0, 1, 2), (1, 2), (2,))  # WT, TC, ET among the one-hot ED, NCR, ET


def volume(data, patch_size=(8, 8, 8), image_channels=1, kept=(4, 4, 4), divisor=(4, 4, 4), properties=None) -> Volume:
    return Volume(data, properties or {}, patch_size, divisor, image_channels, REGIONS, len(REGIONS), kept)


def echo(x: torch.Tensor) -> torch.Tensor:
    """Three regions, each the first channel."""
    return x[:, :1].repeat(1, 3, *[1] * (x.ndim - 2))


# ---- symmetries ------------------------------------------------------------------------------------------------------


@EVERY_NAME
def test_every_map_is_undone_by_its_inverse(name):
    x = torch.arange(3 * 6 * 6.0).reshape(1, 1, 3, 6, 6)
    for symmetry in find_symmetries(name):
        assert torch.equal(undo(symmetry, apply(symmetry, x)), x), symmetry


@EVERY_NAME
@pytest.mark.parametrize("shape", [(1, 1, 4, 6, 8), (1, 1, 6, 8)], ids=["volume", "slice"])
def test_averaging_an_identity_network_gives_back_its_input(name, shape):
    x = torch.randn(shape)
    assert torch.allclose(average_probabilities(lambda x: x, x, find_symmetries(name)), x, atol=1e-4)


@EVERY_NAME
@pytest.mark.parametrize("shape", [(1, 2, 4, 6, 6), (1, 2, 4, 6, 8), (2, 2, 6, 6)], ids=["cube", "volume", "slices"])
def test_symmetries_in_one_batch_give_what_they_give_one_by_one(name, shape):
    torch.manual_seed(0)
    x, sizes = torch.randn(shape), []

    def predict(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return images[:, :1] * torch.arange(1.0, shape[-1] + 1)[: images.shape[-1]]  # no symmetry of its own

    one_by_one = average_probabilities(predict, x, find_symmetries(name))
    number = len(sizes)
    assert torch.allclose(average_probabilities(predict, x, find_symmetries(name), at_once=5), one_by_one, atol=1e-5)
    assert sum(sizes[number:]) == number * len(x) == sum(sizes[:number])


def images_under(name: str) -> dict[bytes, float]:
    """Every image that the network sees of an asymmetric one -> its weight."""
    x = torch.arange(2 * 4 * 4.0).reshape(1, 1, 2, 4, 4)
    seen: dict[bytes, float] = {}
    for symmetry in find_symmetries(name):
        key = apply(symmetry, x).contiguous().numpy().tobytes()
        seen[key] = seen.get(key, 0) + symmetry.weight
    return seen


def test_henrys_sixteen_maps_are_twelve_with_the_weights_of_the_paper():
    # The paper's table: no flip or one of three flips, each with one of four turns.
    x = torch.arange(2 * 4 * 4.0).reshape(1, 1, 2, 4, 4)
    table: dict[bytes, float] = {}
    for flip, turns in product(((), (Z,), (Y,), (X,)), range(4)):
        key = apply(Symmetry(flip, turns), x).contiguous().numpy().tobytes()
        table[key] = table.get(key, 0) + 1
    assert len(table) == len(find_symmetries("henry16")) == 12
    assert images_under("henry16") == table


def test_the_group_has_sixteen_different_maps_of_equal_weight():
    assert sorted(images_under("dihedral16").values()) == [1.0] * 16


def test_eight_mirrors_and_four_in_plane():
    assert sorted(images_under("mirror8").values()) == [1.0] * 8
    assert sorted(images_under("inplane-mirror").values()) == [1.0] * 4


def test_probabilities_are_averaged_and_not_logits():
    x = torch.zeros(1, 1, 1, 1, 2)
    x[..., 0] = 10.0
    mirrors = (Symmetry(), Symmetry((X,)))
    predicted = average_probabilities(lambda x: torch.tensor([[[[[10.0, -10.0]]]]]), x, mirrors)
    assert torch.allclose(torch.sigmoid(predicted), torch.full_like(predicted, 0.5))


def test_logits_of_certain_probabilities_are_finite():
    assert torch.isfinite(logits_of(torch.tensor([0.0, 1.0]))).all()


@EVERY_NAME
def test_labels_that_exclude_each_other_keep_their_probabilities_under_averaging(name):
    x = torch.randn(1, 4, 4, 6, 8)
    predicted = average_probabilities(lambda x: x, x, find_symmetries(name), exclusive=True)
    assert torch.allclose(predicted.softmax(1), x.softmax(1), atol=1e-5)


def test_the_probabilities_of_folds_are_averaged_as_those_of_labels_or_of_regions():
    logits = torch.randn(2, 4, 3, 3, 3)
    for has_regions, probabilities in ((True, logits.sigmoid().mean(0)), (False, logits.softmax(1).mean(0))):
        predictor = BraTSPredictor(average="probabilities", device=torch.device("cpu"))
        predictor.label_manager = SimpleNamespace(has_regions=has_regions)
        predictor.list_of_parameters = [{}, {}]
        predictor.predict_each = lambda data, properties, checkpoints: iter(logits)
        mean = predictor.predict_average(logits, {})
        assert torch.allclose(mean.sigmoid() if has_regions else mean.softmax(0), probabilities, atol=1e-5)


def test_a_model_of_labels_predicts_whole_slices_and_whole_brains():
    """As nnU-Net's own without regions: one output more than there are foreground labels."""
    data = torch.randn(1, 7, 6, 8)

    def predict(x: torch.Tensor) -> torch.Tensor:
        return x[:, :1].repeat(1, 4, *[1] * (x.ndim - 2))

    predictor = BraTSPredictor("brain", "none", device=torch.device("cpu"))
    predictor.label_manager = SimpleNamespace(has_regions=False, foreground_labels=[1, 2, 3], num_segmentation_heads=4)
    predictor.dataset_json = {"channel_names": {"0": "T1"}}
    for axes in (2, 3):
        predictor.configuration_manager = SimpleNamespace(patch_size=[8] * axes, pool_op_kernel_sizes=[[1] * axes])
        predictor.kept = (4,) * axes
        whole = WHOLE_BRAIN(predict, predictor._volume(data))
        assert torch.equal(whole, data.repeat(4, 1, 1, 1))
        if axes == 2:
            sliced = predict_slices(predict, predictor._volume(data), lambda predict: 3)
            assert torch.equal(sliced, whole.half())


def test_every_trainer_names_symmetries_and_a_tiling_that_exist():
    for facts in papers.trainers().values():
        assert facts.prediction.symmetries in symmetry_names(), facts.name
        assert facts.prediction.tiling in tiling_names(), facts.name


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_the_memory_of_a_pass_is_counted_without_data():
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 8, 1), torch.nn.ReLU(), torch.nn.Conv3d(8, 1, 1))
    voxels = 64**3
    # The input, and before each layer ends, what it takes and what it gives.
    assert bytes_of_pass(network, (1, 1, 64, 64, 64)) == 4 * voxels * (1 + 8 + 8)
    assert next(network.parameters()).device.type == "cpu"


@pytest.mark.parametrize("group", ["/", "/job/step"])
def test_free_memory_is_what_the_machine_and_every_control_group_leave(group, tmp_path, monkeypatch):
    if not Path("/proc/self/cgroup").is_file():
        pytest.skip("no control groups on this system")
    here, everywhere = tmp_path / group.strip("/"), free_bytes(torch.device("cpu"))
    here.mkdir(parents=True, exist_ok=True)
    for name, content in (("max", "1000"), ("current", "800"), ("stat", "anon 500\ninactive_file 300")):
        (here / f"memory.{name}").write_text(content)
    real = Path.read_text
    monkeypatch.setattr(memory, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(
        Path, "read_text", lambda path: f"1:cpu:/\n0::{group}\n" if path.name == "cgroup" else real(path)
    )
    assert free_bytes(torch.device("cpu")) == 500
    (tmp_path / "memory.max").write_text("max")
    assert free_bytes(torch.device("cpu")) == (500 if group != "/" else pytest.approx(everywhere, rel=0.5))


# ---- tilings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(9, 13, 6), (8, 8, 8), (5, 20, 17)], ids=str)
def test_overlap_tiles_of_an_identity_network_give_back_the_volume(shape):
    data = torch.randn(1, *shape)
    predicted = OVERLAP(echo, volume(data, kept=(3, 4, 2)))
    assert torch.equal(predicted, data.repeat(3, 1, 1, 1))


def test_overlap_tiles_keep_only_what_lies_in_their_middle():
    def edges_are_wrong(x: torch.Tensor) -> torch.Tensor:
        wrong = torch.full_like(x, 99.0)
        wrong[..., 2:-2, 2:-2, 2:-2] = x[..., 2:-2, 2:-2, 2:-2]
        return echo(wrong)

    data = torch.randn(1, 10, 11, 12)
    assert torch.equal(OVERLAP(edges_are_wrong, volume(data)), data.repeat(3, 1, 1, 1))


def test_overlap_tiles_of_the_paper_number_4464_on_a_brats_volume():
    # 155 = 31 x 5 and 240 = 12 x 20: 31 x 12 x 12 tiles (Zhou et al. 2020, section on inference)
    seen = []

    def count(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return x[:, :1].expand(-1, 3, -1, -1, -1)

    OVERLAP(count, volume(torch.zeros(1, 155, 240, 240), patch_size=(16, 32, 32), kept=(5, 20, 20)))
    assert sum(seen) == 4464


@pytest.mark.parametrize("axes", [3, 2], ids=["3d", "2d"])
def test_a_whole_brain_is_padded_to_what_the_network_halves(axes):
    def predict(x: torch.Tensor) -> torch.Tensor:
        assert all(size % 4 == 0 for size in x.shape[2:])
        return echo(x)

    data = torch.randn(1, 9, 13, 6)
    predicted = WHOLE_BRAIN(predict, volume(data, divisor=(4,) * axes))
    assert torch.equal(predicted, data.repeat(3, 1, 1, 1))


def with_labels(shape, *voxels) -> torch.Tensor:
    """One image channel of noise and the one-hot labels of a previous stage: ET at the voxels."""
    data = torch.cat([torch.randn(1, *shape), torch.zeros(3, *shape)])
    for voxel in voxels:
        data[(3, *voxel)] = 1
    return data


@pytest.mark.parametrize("shape", [(12, 20, 16), (6, 20, 5)], ids=["larger than the window", "smaller"])
def test_a_window_on_the_tumour_is_pasted_over_the_previous_stage(shape):
    data = with_labels(shape, (3, 18, 2), (3, 17, 2), (3, 1, 2))  # the last one far from the others
    predicted = TUMOUR(echo, volume(data))
    image = data[:1].repeat(3, 1, 1, 1)
    inside = (predicted == image).all(0)
    size = [min(n, 8) for n in shape]
    assert inside.sum() == np.prod(size)
    assert inside[3, 17:19, 2].all()
    assert not inside[3, 1, 2]
    assert (predicted[:, 3, 1, 2] == CERTAIN).all(), "tumour outside the window keeps its label"
    assert (predicted[:, ~inside] == CERTAIN).sum() == 3
    assert (predicted[:, ~inside] == -CERTAIN).sum() == 3 * ((~inside).sum() - 1)


def test_of_labels_that_exclude_each_other_the_background_is_pasted_too():
    data = with_labels((12, 20, 16), (3, 18, 2), (3, 17, 2), (3, 1, 2))
    labels = replace(volume(data), regions=((0,), (1,), (2,)), outputs=4)
    predicted = TUMOUR(lambda x: x[:, :1].repeat(1, 4, 1, 1, 1), labels)
    inside = (predicted == data[0]).all(0)
    assert inside.sum() == 8**3
    assert (predicted[3, 3, 1, 2], predicted[0, 3, 1, 2]) == (CERTAIN, -CERTAIN)
    assert (predicted[0, ~inside] == CERTAIN).sum() == (~inside).sum() - 1


def test_windows_on_the_tumour_need_a_previous_stage():
    with pytest.raises(ValueError, match="previous stage"):
        TUMOUR(echo, volume(torch.zeros(1, 8, 8, 8)))


def test_turned_windows_are_padded_where_the_strides_of_the_axes_differ():
    predictor = BraTSPredictor(symmetries="henry16", device=torch.device("cpu"))
    predictor.configuration_manager = SimpleNamespace(
        patch_size=[4, 8, 6], pool_op_kernel_sizes=[[1, 1, 1], [2, 2, 2], [2, 2, 1]]
    )
    predictor.label_manager = SimpleNamespace(has_regions=True)

    def predict(x: torch.Tensor) -> torch.Tensor:
        assert all(size % divisor == 0 for size, divisor in zip(x.shape[2:], (4, 4, 2), strict=True))
        return x

    predictor.network = predict
    x = torch.randn(1, 3, 4, 8, 6)
    assert torch.allclose(predictor._internal_maybe_mirror_and_predict(x), x, atol=1e-4)


# ---- windows ---------------------------------------------------------------------------------------------------------


def test_the_window_holds_as_much_tumour_as_any_on_the_grid():
    rng = np.random.default_rng(0)
    window = (16, 32, 32)
    for _ in range(20):
        found = np.zeros((40, 90, 75), bool)
        low = rng.integers(0, (20, 60, 50))
        found[tuple(slice(a, a + b) for a, b in zip(low, rng.integers(3, 30, 3), strict=True))] = True
        z, y, x = tumour_window(found, window)
        counts = {
            (v, w): found[z : z + 16, v : v + 32, w : w + 32].sum()
            for v in (*range(0, 58, 16), 58)
            for w in (*range(0, 43, 16), 43)
        }
        assert counts[y, x] == max(counts.values())
        slices = np.flatnonzero(found.any((1, 2)))
        assert abs(z + 8 - (slices[0] + slices[-1]) / 2) <= 1 or z in (0, 24)


def test_without_tumour_the_window_is_central():
    assert tumour_window(np.zeros((40, 90, 75), bool), (16, 32, 32)) == (12, 29, 21)


def test_among_equal_windows_the_closest_to_the_tumour_wins():
    found = np.zeros((16, 128, 32), bool)
    found[8, 60, 16] = True  # in the windows that start at 32 and 48, whose centres are 47.5 and 63.5
    assert tumour_window(found, (16, 32, 32)) == (0, 48, 0)


def test_a_volume_smaller_than_the_window_lies_in_its_middle():
    found = np.zeros((10, 90, 75), bool)
    found[4, 4, 4] = True
    assert tumour_window(found, (16, 32, 32)) == (-3, 0, 0)


def test_the_authors_have_eight_windows():
    assert len(STRICT_STARTS) == 8
    assert {z for z, _, _ in STRICT_STARTS} == {13}
    assert {y for _, y, _ in STRICT_STARTS} == {24, 40, 56, 72}
    assert {x for _, _, x in STRICT_STARTS} == {40, 56}


def test_a_strict_window_is_chosen_on_the_uncropped_grid():
    box = [[5, 150], [30, 220], [41, 199]]
    found = np.zeros([high - low for low, high in box], bool)
    found[60, 150:160, 100:110] = True  # native y 180..190, x 141..151
    native = np.add(strict_window(found, box, (155, 240, 240)), (5, 30, 41)).tolist()
    assert native == [13, 72, 56]  # whose centre is nearer than that of (13, 72, 40), which holds the tumour as well
    with pytest.raises(ValueError, match="155"):
        strict_window(found, box, (160, 240, 240))
    with pytest.raises(ValueError, match="1 mm"):
        strict_window(found[1:], box, (155, 240, 240))


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_slices_in_batches_are_the_slices_one_by_one():
    data = torch.randn(1, 7, 6, 8)
    flat = volume(data, patch_size=(8, 8), divisor=(4, 4))
    sizes = []

    def predict(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        assert x.shape[2:] == (8, 8), "padded to the patch"
        return echo(x)

    predicted = predict_slices(predict, flat, lambda predict: len(predict(1)))
    assert torch.equal(predicted, data.repeat(3, 1, 1, 1).half())
    assert sizes == [1, 3, 3, 1]


def test_slices_of_a_stored_volume_are_those_of_the_volume(tmp_path):
    data = torch.randn(2, 7, 6, 8).transpose(2, 3)  # in any order in memory
    stored = StoredVolume(data, tmp_path)
    assert torch.equal(stored[:, 2:5], data[:, 2:5])
    assert not list(tmp_path.iterdir()), "the file has no name, so that nothing is left of an interrupted run"
    either = [predict_slices(echo, volume(each, patch_size=(8, 8)), lambda predict: 3) for each in (stored, data)]
    assert torch.equal(*either)


FOLDS = 3


def mapped_mb(folder: Path) -> dict[str, float]:
    """Files of a folder that are mapped -> how much of them is in memory."""
    found: dict[str, float] = {}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *_, last = line.split()
        if "-" in first:
            mapped = Path(last)
        elif first == "Rss:" and mapped.parent == folder:
            found[mapped.name] = found.get(mapped.name, 0) + int(line.split()[1]) / 1024
    return found


@pytest.fixture
def frugal(tmp_path, monkeypatch):
    """A predictor with a memory budget and checkpoints of a network of 4 MB, which predicts the mean of its weights."""
    predictor = BraTSPredictor("sliding", "none", memory_budget_mb=630, device=torch.device("cpu"))
    predictor.network = torch.nn.Linear(1024, 1024, bias=False)
    predictor.configuration_manager = SimpleNamespace(patch_size=(8, 8))
    predictor.checkpoints = [tmp_path / f"{fold}.pth" for fold in range(FOLDS)]
    for fold, file in enumerate(predictor.checkpoints):
        moments = torch.ones(1024, 1024)  # an optimiser's, which a checkpoint holds as well
        torch.save({"network_weights": {"weight": torch.full((1024, 1024), float(fold))}, "moments": moments}, file)
    predictor.list_of_parameters = Weights(predictor.checkpoints)
    predictor.seen = []

    def predict(data: torch.Tensor) -> torch.Tensor:
        mean = predictor.network.weight.detach().mean()
        predictor.seen.append(mapped_mb(tmp_path))
        return mean * torch.ones(1, 1, 1, 1)

    monkeypatch.setattr(predictor, "predict_sliding_window_return_logits", predict)
    return predictor


def test_with_a_budget_the_weights_are_in_memory_once_and_only_while_they_predict(frugal, tmp_path):
    frugal._release_weights()  # as after loading
    for _ in range(2):  # cases
        assert frugal.predict_average(torch.zeros(1, 1, 1, 1), {}) == 1, "the mean of 0, 1 and 2"
        assert list(mapped_mb(tmp_path)) == ["0.pth"]
        assert mapped_mb(tmp_path)["0.pth"] < 1
    assert [list(files) for files in frugal.seen] == [["0.pth"], ["1.pth"], ["2.pth"]] * 2
    assert all(4 <= sum(files.values()) < 5 for files in frugal.seen), "the network's, not a copy; no moments"


def test_with_a_budget_a_preprocessed_case_is_in_a_file_and_not_in_memory(frugal, tmp_path, monkeypatch):
    monkeypatch.setattr(cases, "preprocessing", lambda model: "alike")
    data = np.random.default_rng(0).normal(size=(1, 2, 8, 8)).astype(np.float32)
    alive, expected = ref(data), data.copy()
    case = cases.ImageCase("a", [], {"alike": (data, np.zeros((2, 8, 8), np.int8), {})})
    del data
    seen, _ = case.seen_by(None, last=True)
    volume = frugal.stored(seen, tmp_path)
    del seen
    assert np.array_equal(volume[:], expected)
    assert alive() is None


def test_the_meter_sees_what_is_allocated():
    meter = MemoryMeter(torch.device("cpu"))
    with meter.peak() as peak, mmap(-1, 256 * MB) as block:  # no memory that the C library has kept
        block.write(bytes(256 * MB))
        sleep(0.3)  # it is sampled
    with meter.peak() as later:
        pass
    assert peak[0] > later[0] + 200 * MB, "what is freed again is in the peak only"
