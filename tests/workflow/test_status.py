"""What is done about failures, by what their logs say."""

import pytest

from nnunet_brats_ext.workflow.status import advise


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("torch.cuda.OutOfMemoryError: CUDA out of memory.", "a lower --gpu-memory-gb"),
        ("RuntimeError: Some background worker is 6 feet under", "too little main memory"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        (  # what torch says of a full disk at a checkpoint
            "RuntimeError: [enforce fail at inline_container.cc:659] . unexpected pos 67203008 vs 67202900",
            "the disk is full",
        ),
        ("RuntimeError: [enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/39: "
         "file write failed", "the disk is full"),
        ("x.json could not be written: No space left on device (0.00 GB free in /x); make room", "the disk is full"),
        ("RuntimeError: PytorchStreamReader failed reading zip archive: failed finding central directory",
         "a checkpoint is damaged"),
        ("slurmstepd: error: *** STEP 3.0 CANCELLED AT 2026-01-01 DUE TO TIME LIMIT ***", "from its last checkpoint"),
        ("anything else", "correct what the log says"),
    ],
)  # fmt: skip
def test_a_log_is_answered_with_advice(tmp_path, said, advice):
    (tmp_path / "log").write_text(f"...\n{said}\n")
    assert advice in advise(tmp_path / "log")


def test_only_the_last_attempt_counts(tmp_path):
    (tmp_path / "log").write_text("No space left on device\n\n2026-01-01 10:00:00 $ nnUNetv2_train\nanything else\n")
    assert "correct what the log says" in advise(tmp_path / "log")
