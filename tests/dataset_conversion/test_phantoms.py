"""Phantoms: the same seed gives the same patient, tumours nest, and the images show what a radiologist expects."""

import csv
import json
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from release_folders import numbered

from nnunet_brats_ext.brats import ED, ET, EXTRA, LABEL_SCHEMES, NCR, SEQUENCES, to_regions
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.dataset_conversion.layouts import LABEL, LAYOUTS, STACK
from nnunet_brats_ext.dataset_conversion.phantoms import Phantom, make_case, write_phantoms
from nnunet_brats_ext.dataset_conversion.phantoms import folder as folder_module
from nnunet_brats_ext.dataset_conversion.phantoms.anatomy import (
    CSF,
    VoxelGrid,
    field_grid,
    head_grid,
    load_template,
    smooth_noise,
)
from nnunet_brats_ext.dataset_conversion.phantoms.case import block_majority, block_mean
from nnunet_brats_ext.dataset_conversion.phantoms.tumours import (
    draw_kind,
    is_multifocal,
    lowest_cost,
    without_small_components,
)

SMALL = (40, 48, 40)  # voxels of 4 mm
PROCEDURAL = "procedural"  # the one anatomy that is always there


@pytest.fixture(scope="module")
def phantoms():
    return [make_case(seed=3, index=index, shape=SMALL, anatomy=PROCEDURAL) for index in range(12)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantoms") / "brats"
    write_phantoms(out, cases=3, unlabelled=1, shape=(32, 36, 32), seed=5, anatomy=PROCEDURAL, processes=1)
    return out


def assert_same(one, other):
    np.testing.assert_array_equal(one.labels, other.labels)
    assert one.images.keys() == other.images.keys()
    for name, image in one.images.items():
        np.testing.assert_array_equal(image, other.images[name])


def test_a_case_depends_on_its_seed_and_number_alone(phantoms):
    assert_same(phantoms[4], make_case(3, 4, SMALL, anatomy=PROCEDURAL))
    for other in (phantoms[5], make_case(4, 4, SMALL, anatomy=PROCEDURAL)):
        assert (phantoms[4].images["T1"] != other.images["T1"]).any()


def test_one_sequence_is_the_same_with_and_without_the_others(phantoms):
    alone = make_case(3, 0, SMALL, anatomy=PROCEDURAL, sequences=["T1ce"])
    assert list(alone.images) == ["T1ce"]
    np.testing.assert_array_equal(alone.images["T1ce"], phantoms[0].images["T1ce"])


def test_no_two_heads_are_equal_nor_is_any_symmetric(phantoms):
    heads = [phantom.images["T1"] > 0 for phantom in phantoms]
    for i, head in enumerate(heads):
        assert all((head != other).any() for other in heads[i + 1 :])
        assert (head != head[::-1]).any()


def test_the_patient_is_the_same_at_every_size():
    """At half the spacing the tumour has the same place within a voxel (4 mm) and the same volumes within a fifth."""
    coarse, fine = (make_case(3, 2, shape, anatomy=PROCEDURAL) for shape in (SMALL, (80, 96, 80)))
    middles, volumes = [], []
    for phantom in (coarse, fine):
        voxels = np.argwhere(phantom.labels > 0)
        middles.append((voxels.mean(0) - (np.array(phantom.labels.shape) - 1) / 2) * phantom.spacing_mm)
        volumes.append([(phantom.labels >= label).sum() * phantom.spacing_mm**3 for label in (1, 2)])
    assert np.abs(middles[0] - middles[1]).max() < 4
    np.testing.assert_allclose(*volumes, rtol=0.2)


@pytest.mark.parametrize(
    "shape, spacing_mm",
    [
        ((240, 240, 155), 1.0),  # BraTS
        ((182, 218, 182), 1.0),  # MNI152
        ((120, 120, 78), 1.99),  # 155 mm of head over 78 voxels, rounded up to 0.01 mm
        ((48, 56, 48), 3.43),  # 192 mm over 56
        ((32, 32, 32), 6.0),  # 192 mm over 32
    ],
)
def test_the_field_of_view_holds_a_head_with_the_finest_voxels(shape, spacing_mm):
    image = field_grid(shape)
    assert image.spacing_mm == pytest.approx(spacing_mm)
    head, window = head_grid(image)
    assert np.zeros(shape, bool)[window].shape == head.shape
    assert all(n * spacing_mm >= field for n, field in zip(head.shape, (160, 192, 155), strict=True))
    assert all(part.start == n - part.stop for part, n in zip(window, shape, strict=True)), "both have the same middle"


@pytest.mark.parametrize("shape", [(32, 32, 32), (33, 47, 38), (64, 40, 36)])
def test_every_size_shows_a_head_within_the_field_and_a_tumour(shape):
    for index in range(2):
        phantom = make_case(1, index, shape, anatomy=PROCEDURAL)
        head = phantom.images["T1"] > 0
        assert head.shape == phantom.labels.shape == shape
        litres = head.sum() * phantom.spacing_mm**3 / 1e6
        assert 0.9 < litres < 2, "skull-stripped brains"
        assert not any(head.take(end, axis).any() for axis in (0, 1) for end in (0, -1)), "cut off at the sides"
        assert not head[..., -1].any(), "cut off at the top"
        assert (phantom.labels > 0).sum() * phantom.spacing_mm**3 > 15_000, "under 15 ml"


def test_background_is_zero_and_brain_positive_in_all_sequences(phantoms):
    for phantom in phantoms:
        head = phantom.images["T1"] != 0
        assert (phantom.labels[~head] == 0).all()
        for image in phantom.images.values():
            assert image.dtype == np.int16 and image.min() == 0
            np.testing.assert_array_equal(image > 0, head)


def test_regions_nest_and_none_is_its_parent(phantoms):
    for phantom in phantoms:
        regions = to_regions(phantom.labels, LABEL_SCHEMES["glioma_2017"].regions)
        assert 0 < regions["TC"].sum() < regions["WT"].sum()
        assert regions["ET"].sum() < regions["TC"].sum()
        assert not (regions["ET"] & ~regions["TC"]).any() and not (regions["TC"] & ~regions["WT"]).any()


def test_a_dozen_cases_hold_low_grades_cases_without_et_and_multifocal_ones(phantoms):
    without_et = [phantom for phantom in phantoms if not (phantom.labels == ET).any()]
    assert 1 <= len(without_et) <= 4
    assert {phantom.grade for phantom in without_et} == {"LGG"}
    assert {phantom.grade for phantom in phantoms} == {"HGG", "LGG"}
    assert {phantom.foci for phantom in phantoms} >= {1, 2}


@pytest.mark.parametrize("seed", range(20))
def test_every_dozen_has_the_rarer_kinds_and_the_shares_are_those_of_the_table(seed):
    kinds = [draw_kind(seed, index) for index in range(1000)]
    multifocal = [is_multifocal(seed, index) for index in range(1000)]
    assert np.mean([kind.grade == "LGG" for kind in kinds]) == pytest.approx(0.21, abs=0.005)
    assert np.mean(multifocal) == pytest.approx(0.2, abs=0.005)
    for start in range(0, 988, 13):
        assert any(kind.enhancing_of_core == (0, 0) for kind in kinds[start : start + 12])
        assert any(multifocal[start : start + 12])


def test_sequences_show_the_tumour_as_mri_does_on_block_mean(phantoms):
    """Means over cases with ET, each relative to the brain around the tumour."""

    def shown(sequence, label):
        ratios = []
        for phantom in phantoms:
            image, region = phantom.images[sequence], phantom.labels == label
            if region.sum() > 10 and (phantom.labels == ET).any():
                ratios.append(image[region].mean() / image[(image > 0) & (phantom.labels == 0)].mean())
        return np.mean(ratios)

    for sequence in ("FLAIR", "T2"):
        assert shown(sequence, ED) > 1.05 and shown(sequence, ET) > 1.05
    assert shown("T2", NCR) > shown("T2", ED)
    assert shown("T1", NCR) < shown("T1", ED) < 1.05
    assert shown("T1ce", ET) > 1.2 > 1 > shown("T1ce", NCR)


def test_no_threshold_on_any_sequence_finds_the_whole_tumour(phantoms):
    """The best Dice over all thresholds, upper and lower, chosen with the truth at hand; FLAIR is the best of them."""

    def best_dice(image, whole):
        brain = image > 0
        count = np.arange(1, brain.sum() + 1)
        hits = whole[brain][np.argsort(image[brain])]
        return max((2 * np.cumsum(h) / (count + hits.sum())).max() for h in (hits, hits[::-1]))

    scores = {s: [best_dice(p.images[s], p.labels > 0) for p in phantoms] for s in SEQUENCES}
    assert max(map(max, scores.values())) < 0.95
    assert 0.4 < np.mean(scores["FLAIR"]) < 0.85
    assert all(np.mean(scores[sequence]) < 0.5 for sequence in ("T1", "T1ce", "T2"))


def test_fluid_is_bright_on_t2_and_dark_on_the_other_sequences():
    phantom = make_case(0, 0, (80, 96, 80), anatomy=PROCEDURAL)
    brain = (phantom.images["T2"] > 0) & (phantom.labels == 0)
    fluid = brain & (phantom.images["T2"] > np.percentile(phantom.images["T2"][brain], 97))
    for sequence in ("T1", "T1ce", "FLAIR"):
        assert phantom.images[sequence][fluid].mean() < 0.85 * phantom.images[sequence][brain].mean()


@pytest.mark.parametrize("name", LABEL_SCHEMES)
def test_a_case_has_the_labels_that_its_scheme_names(name):
    scheme = LABEL_SCHEMES[name]
    assert draw_kind(2, 0).grade == "HGG", "which have all labels"
    labels = make_case(2, 0, SMALL, scheme, PROCEDURAL, sequences=[]).labels
    assert set(np.unique(labels).tolist()) == {0, *scheme.names}


def test_a_cavity_lies_within_the_core():
    """Seen along each axis, the cavity (RC) has tumour on both sides far more often than not."""
    labels = make_case(2, 0, (64, 72, 64), LABEL_SCHEMES["resected_2024"], PROCEDURAL, []).labels
    cavity = np.argwhere(labels == EXTRA)
    tumour = np.argwhere((labels > 0) & (labels != EXTRA))
    assert len(cavity)
    assert (cavity.min(0) >= tumour.min(0)).all() and (cavity.max(0) <= tumour.max(0)).all()


def test_the_real_anatomy_has_folded_cortex_between_white_matter_and_fluid():
    pytest.importorskip("nilearn")
    phantom = make_case(0, 1, SMALL, anatomy="mni152")
    assert 0.9 < (phantom.images["T1"] > 0).sum() * phantom.spacing_mm**3 / 1e6 < 2
    assert (phantom.labels == ET).any()
    assert (phantom.images["T1"] != make_case(0, 1, SMALL, anatomy=PROCEDURAL).images["T1"]).any()


def test_without_nilearn_auto_is_procedural_and_mni152_says_what_to_install(monkeypatch):
    from nnunet_brats_ext.dataset_conversion.phantoms.anatomy import mni152_template

    mni152_template.cache_clear()
    monkeypatch.setitem(sys.modules, "nilearn", None)  # makes every import of it fail
    assert_same(make_case(0, 0, (32, 32, 32)), make_case(0, 0, (32, 32, 32), anatomy=PROCEDURAL))
    with pytest.raises(ValueError, match=r"pip install 'nnunet-brats-ext\[phantom\]'"):
        make_case(0, 0, (32, 32, 32), anatomy="mni152")


def test_an_unknown_anatomy_is_quoted():
    with pytest.raises(ValueError, match="'martian' is not among auto, mni152, procedural"):
        load_template("martian")


def test_a_template_is_probabilities_within_the_brain():
    tissues = load_template(PROCEDURAL).tissues
    assert tissues.min() >= 0 and tissues.max() <= 1 + 1e-5
    total = tissues.sum(0)
    assert set(np.unique(total.round(2)).tolist()) == {0, 1}
    assert 0.05 < tissues[CSF].sum() / total.sum() < 0.3


def test_smooth_noise_has_unit_variance_and_is_the_same_field_at_any_resolution():
    coarse = VoxelGrid((20, 24, 19), 8.0)
    fields = np.stack([smooth_noise(np.random.default_rng(seed), coarse, 10) for seed in range(300)])
    # 300 draws: the standard error of a variance of 1 is sqrt(2 / 299) = 0.08, over all voxels far less
    assert fields.var(0).mean() == pytest.approx(1, abs=0.03)
    assert fields.mean() == pytest.approx(0, abs=0.02)
    # a third of the spacing puts every middle voxel of a block where the coarse one is
    fine = smooth_noise(np.random.default_rng(0), coarse.refined(3), 10)
    np.testing.assert_allclose(fine[1::3, 1::3, 1::3], fields[0], atol=1e-4)


def test_averages_and_majorities_are_taken_over_blocks():
    labels = np.zeros((4, 2, 2), np.uint8)
    labels[:2] = np.array([[[0, 0], [0, 1]], [[3, 3], [3, 1]]])  # 0 three times, 3 three times, 1 twice
    np.testing.assert_array_equal(block_majority(labels, 2), [[[3]], [[0]]])
    np.testing.assert_allclose(block_mean(labels == 3, 2), [[[3 / 8]], [[0]]])
    assert block_majority(labels, 1) is labels


def test_the_lowest_cost_voxels_are_as_many_as_asked_for_and_of_the_given_ones():
    cost = np.array([5, 1, 4, 2, 3])
    among = np.array([True, False, True, True, True])
    np.testing.assert_array_equal(np.flatnonzero(lowest_cost(cost, among, 2)), [3, 4])
    assert lowest_cost(cost, among, 0).sum() == 0
    assert lowest_cost(cost, among, 9).sum() == 4


def test_small_components_are_those_under_a_twentieth():
    mask = np.zeros(100, bool)
    mask[:60] = mask[70:74] = mask[80:82] = True  # 60 + 4 + 2 = 66, of which a twentieth is 3.3
    np.testing.assert_array_equal(np.flatnonzero(without_small_components(mask)), [*range(60), *range(70, 74)])


def test_a_folder_is_what_the_release_hands_out(folder):
    release = LAYOUTS["BraTS2020"]
    for case, training in (("BraTS20_Training_001", True), ("BraTS20_Validation_003", False)):
        assert all((folder / release.path(case, name, training=training)).is_file() for name in SEQUENCES)
        assert (folder / release.path(case, LABEL, training=training)).exists() == training
    assert sum(path.name.endswith(".nii.gz") for path in folder.rglob("*")) == 2 * 5 + 4


def test_files_lie_in_space_as_brats_has_them(folder):
    image = sitk.ReadImage(str(folder / LAYOUTS["BraTS2020"].path("BraTS20_Training_001", "T2")))
    assert image.GetSize() == (32, 36, 32)
    assert image.GetSpacing() == pytest.approx((5.34,) * 3)  # 192 mm over 36 is 5.333, rounded up
    assert image.GetOrigin() == pytest.approx((0, -35 * 5.34, 0), abs=1e-4)
    assert image.GetDirection() == pytest.approx(np.eye(3).ravel())
    assert image.GetPixelID() == sitk.sitkInt16
    expected = make_case(5, 0, (32, 36, 32), anatomy=PROCEDURAL).images["T2"]
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), expected.transpose(2, 1, 0))


def test_the_name_mapping_has_grades_and_names_in_earlier_releases(folder):
    with (folder / "MICCAI_BraTS2020_TrainingData" / "name_mapping.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["BraTS_2020_subject_ID"] for row in rows] == ["BraTS20_Training_001", "BraTS20_Training_002"]
    manifest = json.loads((folder / "phantoms.json").read_text())["cases"]
    assert [row["Grade"] for row in rows] == [row["grade"] for row in manifest[:2]]
    assert LAYOUTS["BraTS2018"].is_case(rows[1]["BraTS_2018_subject_ID"])
    assert rows[0]["TCGA_TCIA_subject_ID"] == "NA"


def empty_phantom(seed, index, shape, scheme, anatomy, sequences, contrast):
    """What `make_case` gives, at no cost: every label of the scheme, and grades in turn."""
    labels = np.zeros(shape, np.uint8)
    labels[0, 0, : len(scheme.names)] = list(scheme.names)
    return Phantom({name: np.ones(shape, np.int16) for name in sequences}, labels, ("HGG", "LGG")[index % 2], 1, 1.0)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_release_can_be_written_and_recognises_its_own_files(name, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "make_case", empty_phantom)
    release = numbered(LAYOUTS[name])
    (row,) = write_phantoms(tmp_path / "out", name, cases=1, shape=(32, 33, 34), anatomy=PROCEDURAL)
    found = {}
    for path in (tmp_path / "out").rglob("*"):
        known = release.recognise(path.relative_to(tmp_path / "out")) if path.is_file() else None
        if known:
            assert known.case == row["case"]
            found[known.role] = sitk.ReadImage(str(path))
    assert set(found) == set(release.roles)
    assert set(np.unique(sitk.GetArrayFromImage(found[LABEL])).tolist()) == set(release.numbering.released)
    for role, image in found.items():
        assert image.GetSize()[:3] == (32, 33, 34), role
        assert image.GetDimension() == (4 if role == STACK else 3)


@pytest.mark.parametrize("name", [name for name, release in LAYOUTS.items() if release.grades])
def test_grades_are_in_the_path_where_the_release_sorts_by_them(name, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "make_case", empty_phantom)
    rows = write_phantoms(tmp_path / "out", name, cases=2, shape=(32, 32, 32), anatomy=PROCEDURAL, processes=1)
    for row, grade in zip(rows, LAYOUTS[name].grades, strict=True):
        assert (tmp_path / "out" / LAYOUTS[name].path(row["case"], LABEL, grade=grade)).is_file()


def test_processes_and_the_number_of_cases_change_nothing(folder, tmp_path):
    out = tmp_path / "again"
    write_phantoms(out, cases=2, shape=(32, 36, 32), seed=5, anatomy=PROCEDURAL, processes=2)
    for name in (*SEQUENCES, LABEL):
        path = LAYOUTS["BraTS2020"].path("BraTS20_Training_002", name)
        one, other = (sitk.GetArrayFromImage(sitk.ReadImage(str(root / path))) for root in (folder, out))
        np.testing.assert_array_equal(one, other)


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(folder_module, "write_image", full)
    with pytest.raises(ValueError, match="case 1: No space"):
        write_phantoms(tmp_path / "out", cases=1, shape=(32, 32, 32), anatomy=PROCEDURAL)
    assert list(tmp_path.iterdir()) == []


def test_only_phantoms_are_overwritten_and_only_when_asked(tmp_path, capsys):
    out, options = tmp_path / "out", ["--cases", "1", "--size", "32", "32", "32", "--anatomy", PROCEDURAL]
    assert main(["phantom", str(out), *options]) == 0
    assert main(["phantom", str(out), *options]) == 1
    assert "add --overwrite" in capsys.readouterr().err
    assert main(["phantom", str(out), *options, "--release", "FeTS2022", "--overwrite"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["MICCAI_FeTS2022_TrainingData", "phantoms.json"]
    assert list(tmp_path.iterdir()) == [out], "no scratch folder stays"
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("text")
    assert main(["phantom", str(tmp_path / "thesis"), *options, "--overwrite"]) == 1
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "text"


@pytest.mark.parametrize(
    "options, message",
    [
        (["--size", "31", "40", "40"], "--size 31: expected at least 32"),
        (["--cases", "2", "--unlabelled", "3"], "--unlabelled 3: expected at most as many as --cases 2"),
        (["--release", "BraTS1999"], "'BraTS1999'"),
    ],
)
def test_bad_requests_are_quoted_and_write_nothing(options, message, tmp_path, capsys):
    assert main(["phantom", str(tmp_path / "out"), *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_labels_of_unlabelled_cases_can_be_kept_back_to_score_with(tmp_path):
    order = dict(cases=2, unlabelled=1, shape=(32, 32, 32), anatomy=PROCEDURAL, processes=1)
    write_phantoms(tmp_path / "out", references=tmp_path / "kept", **order)
    (kept,) = (tmp_path / "kept").iterdir()
    assert kept.name == "BraTS20_Validation_002.nii.gz"
    assert not list((tmp_path / "out").rglob("BraTS20_Validation_002_seg.nii.gz"))
    labels = set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(kept)))))
    assert {0} < labels <= {0, 1, 2, 4}


def test_contrast_sets_tumours_off_and_leaves_their_shape_alone():
    plain, vivid = (make_case(3, 0, (40, 40, 40), anatomy=PROCEDURAL, contrast=contrast) for contrast in (1, 2))
    assert np.array_equal(plain.labels, vivid.labels)

    def oedema_above_brain(phantom: Phantom) -> float:
        flair, labels = phantom.images["FLAIR"], phantom.labels
        return flair[labels == ED].mean() / flair[(labels == 0) & (flair > 0)].mean()

    assert oedema_above_brain(vivid) > 1.2 * oedema_above_brain(plain)
