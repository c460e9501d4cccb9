"""A prediction on a CPU takes the threads that torch has, as OMP_NUM_THREADS or a script has set them.

It leaves their number as it was: nnU-Net, which writes with another number of threads, takes that back.
"""

from collections.abc import Iterator

import pytest
import torch
from untrained_models import save_untrained, small_plans

from nnunet_brats_ext.cli import main
from nnunet_brats_ext.inference import BraTSPredictor

THREADS = 3  # neither what the tests set in the environment nor nnU-Net's default
MODEL = "-d 901 -tr BraTSBaselineTrainer -p SmallPlans -c first -f 0 -device cpu -np 0 --tta none"


@pytest.fixture
def first_stage(world, tmp_path, monkeypatch) -> Iterator[None]:
    """An untrained model, in a process with so many threads."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    stages = {"first": {"next_stage": "second"}, "second": {"previous_stage": "first"}}
    before = torch.get_num_threads()
    try:
        save_untrained(world, small_plans(world, "SmallPlans", stages), "first")
        torch.set_num_threads(THREADS)
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("words", ["-o {out} -i {images}", "--for-next-stage --in-sample"])
def test_networks_have_the_threads_of_the_process_and_so_has_what_comes_after(
    words, first_stage, world, tmp_path, monkeypatch
):
    of_networks, predict = [], BraTSPredictor.predict_average

    def noted(*arguments):
        of_networks.append(torch.get_num_threads())
        return predict(*arguments)

    monkeypatch.setattr(BraTSPredictor, "predict_average", noted)
    given = words.format(out=tmp_path / "out", images=world.raw / "imagesTs")
    assert main(["predict", *MODEL.split(), *given.split()]) == 0
    assert set(of_networks) == {THREADS}
    assert torch.get_num_threads() == THREADS
