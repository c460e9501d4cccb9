"""Checkpoints: written whole, refused by name where training cannot go on from them."""

import errno
from pathlib import Path

import pytest
import torch
from tiny_trainers import build, make_tiny

from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.trainers import BraTSBaselineTrainer, BraTSVAETrainer
from nnunet_brats_ext.training.base import BraTSTrainer


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


@pytest.fixture
def checkpoint(world, tmp_path) -> Path:
    trainer = build(world, BraTSBaselineTrainer)
    trainer.initialize()
    file = tmp_path / "checkpoint_final.pth"
    trainer.save_checkpoint(str(file))
    return file


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def replace_by_random_bytes(file: Path) -> None:
    file.write_bytes(bytes(range(256)) * 100)


def replace_by_a_snapshot(file: Path) -> None:
    content = torch.load(file, weights_only=False)
    torch.save({key: content[key] for key in ("network_weights", "current_epoch", "init_args")}, file)


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (flip_a_byte, "has another checksum than it was written with"),
        (cut, "is damaged, or no checkpoint"),
        (lambda file: file.write_bytes(b""), "is damaged, or no checkpoint"),
        (replace_by_random_bytes, "is damaged, or no checkpoint"),
        (lambda file: torch.save([1, 2], file), "it lacks network_weights"),
        (replace_by_a_snapshot, "it lacks optimizer_state, logging"),
    ],
    ids=["another byte", "cut", "empty", "random bytes", "something else", "a snapshot"],
)
def test_a_checkpoint_from_which_no_training_can_go_on_is_named(damage, sentence, checkpoint, world):
    damage(checkpoint)
    with pytest.raises(UserError, match=sentence) as caught:
        build(world, BraTSBaselineTrainer).load_checkpoint(str(checkpoint))
    assert str(caught.value).startswith(str(checkpoint))


def test_weights_of_another_trainer_are_named_with_their_file_and_trainer(checkpoint, world, monkeypatch):
    make_tiny(BraTSVAETrainer, monkeypatch)
    with pytest.raises(UserError, match=r"do not fit the network of BraTSVAETrainer: \d+ of \d+ differ") as caught:
        build(world, BraTSVAETrainer).load_checkpoint(str(checkpoint))
    assert f"the weights in {checkpoint}, of BraTSBaselineTrainer" in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),  # torch's, on a full disk
    ],
    ids=["by the system", "by torch"],
)
def test_a_full_disk_is_named_and_the_earlier_checkpoint_is_left(error, checkpoint, world, monkeypatch):
    before = checkpoint.read_bytes()
    trainer = build(world, BraTSBaselineTrainer)
    trainer.initialize()

    def fail(content, file) -> None:
        Path(file).write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(UserError, match=r"could not be written: .* GB free") as caught:
        trainer.save_checkpoint(str(checkpoint))
    assert str(checkpoint) in str(caught.value)
    assert checkpoint.read_bytes() == before
    assert list(checkpoint.parent.iterdir()) == [checkpoint]
