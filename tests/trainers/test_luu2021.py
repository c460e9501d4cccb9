"""Luu & Park 2021: values and counts of the authors' networks, axial attention, the training that they go on from."""

import pytest
import torch
from golden_networks import fill, wave
from tiny_trainers import build, random_batch, tiny

from nnunet_brats_ext import papers
from nnunet_brats_ext.architectures.wide_encoder_unet import AxialAttention, AxialAttentionUNet, WideEncoderUNet
from nnunet_brats_ext.storage.errors import UserError

# Values of github.com/rixez/Brats21_KAIST_MRI_Lab at b8e7c9f with axial-attention 0.6.1, in float64 and eval mode, with
# the weights of `fill`: the finest output at [0, :, 8, 12, 16], its mean and deviation, those of the coarser outputs.
AXIAL = dict(strides=(1, 2, 2, 2), features_per_stage=(16, 32, 64, 128), patch_size=(32, 32, 64))
GOLDEN = {
    "BL": (
        lambda: WideEncoderUNet(4, 3, features_per_stage=(8, 16, 32, 64, 80, 80), widening=1, norm="batch"),
        [1.396604508, -1.267577361, 1.096865458], (1.116870821, 3.604826836),
        [(0.048931084, 0.039709943), (-0.001303602, 0.013699384), (-0.002061182, 0.006110425),
         (-0.001493903, 0.013434834)],
    ),
    "BL + L + GN": (
        lambda: WideEncoderUNet(4, 3, features_per_stage=(8, 16, 32, 64, 64, 64)),
        [0.264647761, 0.450193077, -0.183008286], (0.376580312, 0.769577698),
        [(0.319521266, 1.147566716), (0.169254517, 0.134861107), (0.220507335, 0.228455096),
         (0.212866412, 0.156211753)],
    ),
    "BL + AA": (
        lambda: AxialAttentionUNet(4, 3, **AXIAL),
        [0.086351243, 0.132450837, 0.161270890], (0.089908462, 0.052699372),
        [(-0.000748029, 0.013629795), (-0.001986902, 0.006133535)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_a_network_gives_the_values_of_the_authors_release(name):
    make, voxel, finest, coarser = GOLDEN[name]
    network = fill(make()).double().eval()
    network.deep_supervision = True
    with torch.no_grad():
        outputs = network(wave(1, 4, 32, 32, 64))
    assert outputs[0][0, :, 8, 12, 16].tolist() == pytest.approx(voxel, abs=1e-8)
    assert [(o.mean().item(), o.std().item()) for o in outputs] == [
        pytest.approx(expected, abs=1e-8) for expected in (finest, *coarser)
    ]
    assert [o.shape[2] for o in outputs] == [32, 16, 8, 4, 2][: len(outputs)]


def test_the_counts_are_those_of_the_authors_networks():
    counted = {one.name: one.parameters for one in papers.find_paper("luu2021").trainers}
    assert counted == {
        "BraTSLuu2021Trainer": 87_413_760,
        "BraTSLuu2021BaselineTrainer": 31_198_176,
        "BraTSLuu2021AxialTrainer": 50_561_760,
    }


def test_axial_attention_mixes_along_every_axis_and_takes_another_size():
    torch.manual_seed(0)
    attention = AxialAttention(8, (4, 6, 8), heads=2, head_channels=4)
    x = torch.randn(1, 8, 4, 6, 8)
    before = attention(x)
    changed = x.clone()
    changed[0, :, 1, 2, 3] += 1
    assert (attention(changed) - before)[0, :, 3, 5, 7].abs().max() > 0, "one axis after the other reaches every voxel"
    assert attention(torch.randn(2, 8, 6, 4, 16)).shape == (2, 8, 6, 4, 16)
    with torch.no_grad():
        for embedding in attention.embeddings:
            embedding.fill_(1.0)
        flat = attention(torch.zeros(1, 8, 4, 6, 8))
        assert torch.allclose(attention(torch.zeros(1, 8, 8, 6, 8))[..., 0, 0, 0], flat[..., 0, 0, 0], atol=1e-6)


def test_a_patch_of_another_number_of_axes_is_an_error():
    with pytest.raises(UserError, match=r"patch_size \(8, 8\) does not fit Conv3d: give 3 numbers"):
        AxialAttentionUNet(4, 3, patch_size=(8, 8))


def test_it_trains_as_the_release_does_and_its_embeddings_are_of_the_planned_patch(world):
    with tiny("BraTSLuu2021AxialTrainer"):
        strides = [[1] * 3, [2] * 3, [2] * 3]
        trainer = build(world, "BraTSLuu2021AxialTrainer", patch_size=[16, 16, 24], strides=strides)
        trainer.initialize()
    assert (trainer.rotation_degrees, trainer.brightness_per_channel, trainer.elastic_probability) == (90, 0.5, 0.3)
    assert trainer.loss.loss.dc.batch_dice
    assert [tuple(e.shape[2:]) for a in trainer.network.attentions for e in a.embeddings] == []  # of two stages
    whole = AxialAttentionUNet(4, 3, strides=(1, 2, 2), features_per_stage=(4, 8, 8), patch_size=(16, 16, 24))
    assert [tuple(e.shape[2:]) for a in whole.attentions for e in a.embeddings] == [(8, 1, 1), (1, 8, 1), (1, 1, 12)]
    finest, *_ = trainer.network(random_batch(trainer)["data"])
    assert finest.shape[2:] == (16, 16, 24)
