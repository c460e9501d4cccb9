"""The contract that every trainer keeps, and the seams that the base offers."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch import nn

from nnunet_brats_ext import trainers
from nnunet_brats_ext.losses.dice import SoftDiceLoss
from nnunet_brats_ext.trainers import BraTSAttentionVAETrainer, BraTSBaselineTrainer, BraTSVAETrainer
from nnunet_brats_ext.trainers.lyu2020.transforms import ShiftIntensity
from nnunet_brats_ext.training.averaging import Cycles, StochasticWeightAveraging
from nnunet_brats_ext.training.base import SHORT_EPOCHS, SHORT_ITERATIONS, BraTSTrainer
from nnunet_brats_ext.training.branches import NetworkWithBranch

CPU = torch.device("cpu")
EVERY_TRAINER = pytest.mark.parametrize("name", trainers.__all__)


def build(world, trainer: type | str, configuration: str | None = None, fold: int | str = 0, **changes):
    """A trainer as nnU-Net's command builds it; by default on volumes, unless its name says 2D."""
    trainer_class = getattr(trainers, trainer) if isinstance(trainer, str) else trainer
    configuration = configuration or ("2d" if "2D" in trainer_class.__name__ else "3d_fullres")
    if hasattr(trainer_class, "tile_kept") and configuration == "3d_fullres":
        changes = {"patch_size": [8, 16, 16], "batch_size": 1} | changes  # trainers of small patches, 3 x 20 of them
    plans = world.plans
    if strides := changes.pop("strides", None):
        plans["configurations"][configuration]["architecture"]["arch_kwargs"]["strides"] = strides
    plans["configurations"][configuration] |= changes
    return trainer_class(plans | {"continue_training": False}, configuration, fold, world.dataset_json, CPU)


def random_batch(trainer, seed: int = 0) -> dict:
    """What the loader gives: a batch of images, and regions at every scale that the loss looks at."""
    generator = torch.Generator().manual_seed(seed)
    size = trainer.configuration_manager.patch_size
    shape = (trainer.batch_size, trainer.num_input_channels, *size)
    regions = trainer.label_manager.num_segmentation_heads
    scales = trainer._get_deep_supervision_scales()
    target = [
        torch.rand(shape[0], regions, *(round(n * s) for n, s in zip(size, scale, strict=True)), generator=generator)
        > 0.7
        for scale in scales or [[1] * len(size)]
    ]
    return {"data": torch.randn(shape, generator=generator), "target": target if scales else target[0]}


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.network.named_parameters()}


@EVERY_TRAINER
def test_nnunet_finds_it_and_it_names_its_paper(name):
    found = recursive_find_trainer_class_by_name(name)
    assert found is getattr(trainers, name)
    assert "https://" in (found.__doc__ or "")


@EVERY_TRAINER
def test_it_steps_stores_resumes_and_predicts_the_same_from_a_reloaded_model(name, world, monkeypatch):
    monkeypatch.setenv(SHORT_EPOCHS, "2")
    trainer = build(world, name)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    step = trainer.train_step(random_batch(trainer))
    assert all(np.isfinite(value).all() for value in step.values())
    trainer.network.eval()
    with torch.no_grad():
        seen = trainer.validation_step(random_batch(trainer, seed=1))
    assert np.isfinite(seen["loss"])
    assert len(seen["tp_hard"]) == 3
    trainer.set_deep_supervision_enabled(False)
    with torch.no_grad():
        logits = trainer.network(random_batch(trainer)["data"])
    trainer.set_deep_supervision_enabled(True)

    checkpoint = Path(trainer.output_folder, "checkpoint_final.pth")
    trainer.save_checkpoint(str(checkpoint))
    stored = torch.load(checkpoint, weights_only=False)
    assert stored["trainer_name"] == name

    resumed = build(world, name)
    resumed.load_checkpoint(str(checkpoint))
    assert resumed.current_epoch == 1
    before, after = weights(trainer), weights(resumed)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    trainer.current_epoch = resumed.current_epoch  # what is trained may depend on it
    for each in (trainer, resumed):
        torch.manual_seed(0)  # dropout and sampling
        each.network.train()
        each.train_step(random_batch(each, seed=2))
    before, after = weights(trainer), weights(resumed)
    assert all(torch.equal(before[key], after[key]) for key in before), "the optimiser's state is lost"

    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), checkpoint.name)
    with torch.no_grad():
        reloaded = predictor.network.eval()(random_batch(trainer)["data"])
    assert torch.allclose(reloaded, logits[0] if isinstance(logits, list) else logits, atol=1e-4)


@EVERY_TRAINER
def test_an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(name, world, monkeypatch):
    monkeypatch.setenv(SHORT_ITERATIONS, "1")

    def train(epochs_before_the_interruption: int | None) -> dict[str, torch.Tensor]:
        monkeypatch.setenv(SHORT_EPOCHS, "2")
        np.random.seed(0)
        torch.manual_seed(0)
        trainer = build(world, name, fold=1)
        trainer.save_every = 1
        if epochs_before_the_interruption is None:
            trainer.run_training()
            return weights(trainer)

        class Interruption(Exception):
            pass

        def interrupt() -> None:
            if trainer.current_epoch == epochs_before_the_interruption:
                raise Interruption

        trainer.on_epoch_start, start = (lambda: (interrupt(), start())), trainer.on_epoch_start
        with pytest.raises(Interruption):
            trainer.run_training()
        np.random.seed(99)
        torch.manual_seed(99)
        again = build(world, name, fold=1)
        again.load_checkpoint(str(Path(trainer.output_folder, "checkpoint_latest.pth")))
        again.run_training()
        return weights(again)

    whole, interrupted = train(None), train(1)
    assert all(torch.equal(whole[key], interrupted[key]) for key in whole)


@pytest.mark.parametrize(
    "name",
    ["BraTSBaselineTrainer", "BraTSDeepSupervisionBTrainer", "BraTSMC2Trainer", "BraTS2DTrainer"],
)
def test_any_trainer_can_be_averaged_after_what_would_be_its_whole_training(name, world, monkeypatch):
    monkeypatch.setenv(SHORT_ITERATIONS, "1")
    plain = getattr(trainers, name)
    configuration = "2d" if "2D" in name else None

    class Base(plain):
        hyperparameters = dict(num_epochs=3)

    class Averaged(StochasticWeightAveraging, plain):
        hyperparameters = dict(num_epochs=4)
        averaging = Cycles(base_epochs=3, cycles=1, cycle_epochs=1, snapshot_every=1)

    base, averaged = build(world, Base, configuration), build(world, Averaged, configuration)
    rates = []
    for trainer in (base, averaged):
        trainer.initialize()
        rates.append([])
        for epoch in range(3):
            trainer.lr_scheduler.step(epoch)
            rates[-1].append(trainer.optimizer.param_groups[0]["lr"])
    assert rates[0] == rates[1], "its own schedule rules the base"
    averaged.run_training()
    assert averaged.average.n_averaged == 2
    build(world, Averaged, configuration).load_checkpoint(str(Path(averaged.output_folder, "checkpoint_final.pth")))


def test_stage_one_of_lyu_stores_no_vae(world, monkeypatch):
    monkeypatch.setenv(SHORT_EPOCHS, "1")
    four_stages = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]  # as nnU-Net plans BraTS, and deeper
    trainer = build(world, BraTSVAETrainer, patch_size=[16, 16, 16], strides=[*four_stages, [2, 2, 2]])
    trainer.initialize()
    trainer.save_checkpoint(str(Path(trainer.output_folder, "checkpoint_best.pth")))
    stored = torch.load(Path(trainer.output_folder, "checkpoint_best.pth"), weights_only=False)
    assert sum(value.numel() for value in stored["network_weights"].values()) == 18_802_115
    assert isinstance(trainer.network, NetworkWithBranch)
    optimised = sum(p.numel() for group in trainer.optimizer.param_groups for p in group["params"])
    assert optimised > 18_802_115, "the branch is not trained"


def test_stage_one_of_lyu_trains_as_the_paper_states(world):
    trainer = build(world, BraTSVAETrainer)
    trainer.initialize()
    assert isinstance(trainer.optimizer, torch.optim.Adam)
    assert (trainer.initial_lr, trainer.weight_decay, trainer.num_epochs) == (1e-4, 1e-5, 300)
    for epoch in (0, 150, 299):
        trainer.lr_scheduler.step(epoch)
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4 * (1 - epoch / 300) ** 0.9)
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 1e-5


@pytest.mark.parametrize(
    ("configuration", "changes"),
    [
        ("2d", {}),
        ("3d_fullres", dict(patch_size=[16, 24, 32], batch_size=1)),
        (
            "3d_fullres",
            dict(patch_size=[8, 32, 32], batch_size=1, strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]),
        ),
    ],
    ids=["2d", "another patch", "anisotropic strides"],
)
def test_stage_one_of_lyu_works_on_other_configurations(configuration, changes, world):
    trainer = build(world, BraTSVAETrainer, configuration, **changes)
    trainer.initialize()
    trainer.network.train()
    assert np.isfinite(trainer.train_step(random_batch(trainer))["loss"])


@pytest.mark.parametrize(
    ("trainer_class", "axes"), [(BraTSVAETrainer, None), (BraTSBaselineTrainer, (0, 1, 2))], ids=["lyu", "nnU-Net"]
)
def test_predictions_are_mirrored_where_the_paper_does(trainer_class, axes, world):
    trainer = build(world, trainer_class)
    *_, training_axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert trainer.inference_allowed_mirroring_axes == axes
    assert training_axes == (0, 1, 2)


def test_an_epoch_draws_every_training_case_once(world):
    trainer = build(world, BraTSVAETrainer)
    training, validation = trainer.get_tr_and_val_datasets()
    batch_size = trainer.configuration_manager.batch_size
    assert trainer.num_iterations_per_epoch == -(-len(training.identifiers) // batch_size)
    assert trainer.num_val_iterations_per_epoch == -(-len(validation.identifiers) // batch_size)
    yardstick = build(world, BraTSBaselineTrainer)
    yardstick.get_tr_and_val_datasets()
    assert yardstick.num_iterations_per_epoch == 250


def test_every_process_of_the_loader_draws_its_own_torch_numbers(world):
    training, _ = build(world, BraTSBaselineTrainer).get_tr_and_val_datasets()
    queue = multiprocessing.get_context("fork").Queue()

    def work(number: int) -> None:
        np.random.seed(number)  # as batchgenerators does
        training.load_case(training.identifiers[0])
        queue.put(torch.randint(2**31, (1,)).item())

    before = torch.get_rng_state()
    for number in (1, 2):
        process = multiprocessing.get_context("fork").Process(target=work, args=(number,))
        process.start()
    assert queue.get(timeout=60) != queue.get(timeout=60)
    training.load_case(training.identifiers[0])
    assert torch.equal(torch.get_rng_state(), before), "without processes of its own, nothing is drawn"


def test_a_trial_run_is_short_and_says_so(world, monkeypatch):
    monkeypatch.setenv(SHORT_EPOCHS, "3")
    monkeypatch.setenv(SHORT_ITERATIONS, "7")
    trainer = build(world, BraTSVAETrainer)
    trainer.get_tr_and_val_datasets()
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (3, 7, 2)
    assert "SHORT RUN" in Path(trainer.log_file).read_text()


def test_on_a_cpu_training_keeps_to_the_threads_that_the_environment_names(world, monkeypatch):
    threads = torch.get_num_threads()
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads + 1))
        build(world, BraTSVAETrainer)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("value", ["0", "-1", "ten", "1.5"])
def test_an_unusable_length_is_quoted(value, world, monkeypatch):
    monkeypatch.setenv(SHORT_EPOCHS, value)
    with pytest.raises(ValueError, match=f"{SHORT_EPOCHS}={value}"):
        build(world, BraTSVAETrainer)


def test_a_dataset_without_regions_is_told_the_command_that_makes_them(world):
    dataset_json = world.dataset_json | {"labels": {"background": 0, "tumour": 1}}
    plans = world.plans | {"continue_training": False}
    with pytest.raises(ValueError, match="nnunet_brats convert"):
        BraTSVAETrainer(plans, "3d_fullres", 0, dataset_json, CPU)


def test_a_misspelt_hyperparameter_is_an_error(world):
    class Misspelt(BraTSTrainer):
        hyperparameters = dict(inital_lr=1.0)

    with pytest.raises(AttributeError, match=r"Misspelt.*inital_lr"):
        build(world, Misspelt)


def test_a_subclass_adds_to_the_hyperparameters_of_its_parent(world):
    class Faster(BraTSVAETrainer):
        hyperparameters = dict(initial_lr=3e-4)

    trainer = build(world, Faster)
    assert (trainer.initial_lr, trainer.num_epochs) == (3e-4, 300)


def test_a_loss_at_one_scale_goes_under_nnunets_weights_of_the_scales(world):
    class Dice(BraTSTrainer):
        def region_loss(self) -> nn.Module:
            return SoftDiceLoss()

    trainer = build(world, Dice)
    trainer.initialize()
    assert isinstance(trainer.loss, DeepSupervisionWrapper)
    assert isinstance(trainer.loss.loss, SoftDiceLoss)
    trainer.network.train()
    assert np.isfinite(trainer.train_step(random_batch(trainer))["loss"])


def cascade(world) -> dict:
    """Plans with a second configuration that refines the first, on the same preprocessed data."""
    plans = world.plans
    plans["configurations"]["first"] = {"inherits_from": "3d_fullres", "next_stage": "second"}
    plans["configurations"]["second"] = {"inherits_from": "3d_fullres", "previous_stage": "first"}
    return plans | {"continue_training": False}


def test_a_second_stage_names_the_cases_that_the_first_has_not_segmented_and_what_to_run(world):
    second = BraTSAttentionVAETrainer(cascade(world), "second", 0, world.dataset_json, CPU)
    second.dataset_class = infer_dataset_class(second.preprocessed_dataset_folder)
    folder = Path(second.folder_with_segs_from_previous_stage)
    assert str(folder).endswith("BraTSVAETrainer__nnUNetPlans__first/predicted_next_stage/second")
    with pytest.raises(FileNotFoundError, match="6 cases have no segmentation") as caught:
        second.get_tr_and_val_datasets()
    commands = str(caught.value).splitlines()[1:]
    assert commands[0].strip() == f"nnUNetv2_train {world.dataset} first 0 -tr BraTSVAETrainer -p nnUNetPlans"
    assert len(commands) == 5


def test_a_second_stage_trains_on_the_images_and_the_labels_of_the_first(world):
    second = BraTSAttentionVAETrainer(cascade(world), "second", 0, world.dataset_json, CPU)
    second.dataset_class = dataset_class = infer_dataset_class(second.preprocessed_dataset_folder)
    folder = Path(second.folder_with_segs_from_previous_stage)
    folder.mkdir(parents=True, exist_ok=True)
    data = dataset_class(second.preprocessed_dataset_folder)
    for case in data.identifiers:
        _, segmentation, _, _ = data.load_case(case)
        dataset_class.save_seg(np.clip(segmentation[0], 0, None).astype(np.uint8), str(folder / case))
    second.initialize()
    loader, _ = second.get_dataloaders()
    batch = next(loader)
    maps = batch["data"][:, 4:]
    assert set(maps.unique().tolist()) <= {0, 1}
    whole_tumour = batch["target"][:, 0].float()
    assert torch.equal(maps.sum(1), whole_tumour), "ED, NCR and ET of the first stage make its whole tumour"
    second.network.train()
    assert np.isfinite(second.train_step(batch)["loss"])


def test_extra_state_survives_a_checkpoint(world, tmp_path):
    class Counting(BraTSTrainer):
        seen = 0

        def extra_state(self):
            return {"seen": self.seen}

        def load_extra_state(self, state):
            self.seen = state["seen"]

    trainer = build(world, Counting)
    trainer.initialize()
    trainer.seen = 41
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pth"], "half a file is left"
    fresh = build(world, Counting)
    fresh.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    assert fresh.seen == 41


def test_a_checkpoint_of_nnunet_itself_can_be_continued(world, tmp_path):
    trainer = build(world, BraTSBaselineTrainer)
    trainer.initialize()
    super(BraTSTrainer, trainer).save_checkpoint(str(tmp_path / "theirs.pth"))
    build(world, BraTSBaselineTrainer).load_checkpoint(str(tmp_path / "theirs.pth"))


def test_the_loader_gives_augmented_images_that_are_zero_outside_the_brain(world):
    trainer = build(world, BraTSVAETrainer)
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    assert isinstance(loader, SingleThreadedAugmenter)
    batch = next(loader)
    size = trainer.configuration_manager.patch_size
    assert batch["data"].shape[1:] == (4, *size)
    assert batch["target"].shape[1:] == (3, *size)


def test_the_shift_moves_the_brain_and_nothing_else():
    brain = torch.zeros(1, 8, 8, 8)
    brain[..., :4] = 1
    image = torch.randn(4, 8, 8, 8) * brain
    shifted = ShiftIntensity(0.1)(image=image.clone(), segmentation=brain - 1)["image"]
    moved = (shifted - image) * brain
    assert torch.equal(shifted * (1 - brain), torch.zeros_like(image))
    for channel in range(4):
        shifts = moved[channel][brain[0] > 0]
        assert torch.allclose(shifts, shifts[0].expand_as(shifts), atol=1e-6)
        assert 0 < shifts[0].abs() <= 0.1 * image[channel][brain[0] > 0].std() * 1.01


def test_the_shift_leaves_a_patch_beside_the_head_alone():
    image = torch.zeros(4, 8, 8, 8)
    assert torch.equal(ShiftIntensity()(image=image.clone(), segmentation=-torch.ones(1, 8, 8, 8))["image"], image)
