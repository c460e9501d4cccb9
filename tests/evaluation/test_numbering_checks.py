"""Label maps that are numbered otherwise than is said: by their values, their shapes and their agreement."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from label_maps import make_pair

from nnunet_brats_ext.brats import ED, ET, EXTRA, LABEL_SCHEMES, NCR, remap
from nnunet_brats_ext.evaluation import evaluate_case, evaluate_folders, find_preset
from nnunet_brats_ext.evaluation.presets import PRESETS
from nnunet_brats_ext.storage.errors import Notice

SHARED = Path(__file__).parents[3] / "shared"
BRATS_2020 = SHARED / "real_scores" / "brats2020"


def write_cases(folder: Path, *cases: np.ndarray) -> Path:
    folder.mkdir()
    for number, labels in enumerate(cases):
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(folder / f"case_{number}.nii.gz"))
    return folder


def released(labels: np.ndarray, scheme: str) -> np.ndarray:
    return remap(labels, LABEL_SCHEMES[scheme].trained)


@pytest.mark.parametrize(
    ("year", "cohort"), [(year, cohort) for year, cohorts in PRESETS.items() for cohort in cohorts]
)
def test_what_is_numbered_as_is_said_gives_no_notice(year, cohort):
    scheme = find_preset(year, cohort).scheme
    pair = make_pair(scheme)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        evaluate_case(*pair, preset=year, cohort=cohort)
        evaluate_case(*(released(labels, scheme) for labels in pair), preset=year, cohort=cohort, labels="released")


@pytest.mark.parametrize("year", ["brats2023", "brats2024", "brats2026"])
def test_released_labels_that_are_scored_as_trained_are_noticed_and_the_other_way_round(year):
    scheme = find_preset(year, "met").scheme
    pair = make_pair(scheme)
    with pytest.warns(Notice, match=r"label 1, read as ED, lies inside 2, read as NCR.* say --labels released$"):
        evaluate_case(*(released(labels, scheme) for labels in pair), preset=year, cohort="met")
    with pytest.warns(Notice, match=r"label 2, read as ED, lies inside 1, read as NCR.* say --labels trained$"):
        evaluate_case(*pair, preset=year, cohort="met", labels="released")


def test_the_numbering_of_a_later_year_is_noticed_too():
    pair = [released(labels, "glioma_2023") for labels in make_pair("glioma_2017")]
    with pytest.warns(Notice, match=r"If they are glioma_2023 \(1 NCR, 2 ED, 3 ET\), say --labels glioma_2023$"):
        evaluate_case(*pair, preset="brats2020")


def test_a_prediction_that_is_numbered_otherwise_than_its_reference_is_noticed(tmp_path):
    reference, prediction = make_pair("glioma_2023")
    references = write_cases(tmp_path / "references", *[reference] * 3)
    predictions = write_cases(
        tmp_path / "predictions", *[released(prediction, "glioma_2023")] * 2, prediction
    )  # most of them
    said = r"in 2 of 3 cases .* prediction's 2 as ED, 1 as NCR: .* --labels trained,released"
    with pytest.warns(Notice, match=said):
        evaluate_folders(references, predictions, "brats2023", labels="trained")
    predictions = write_cases(tmp_path / "others", released(prediction, "glioma_2023"), prediction, prediction)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        evaluate_folders(references, predictions, "brats2023", labels="trained")


def test_a_poor_prediction_is_no_other_numbering():
    """It confuses tissues, but no exchange of labels makes it clearly better."""
    reference, prediction = make_pair("glioma_2023")
    poor = np.where(prediction > 0, np.random.default_rng(0).integers(1, 4, prediction.shape), 0).astype(np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        evaluate_case(reference, poor)
        evaluate_case(reference, np.where(prediction > 0, ED, 0).astype(np.uint8))


def test_a_label_that_is_predicted_as_another_is_no_other_numbering():
    reference, prediction = make_pair("glioma_2013")
    net = np.where(reference == NCR, EXTRA, reference)  # a core of NET alone, which is predicted as NCR
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        scores = evaluate_case(net, np.where(prediction == EXTRA, NCR, prediction), preset="brats2015")
        assert scores == evaluate_case(reference, prediction, preset="brats2015")
    assert scores["TC"]["ppv"] < 1


def test_files_of_2020_are_not_scored_as_those_of_2024(tmp_path):
    """Where 4 is ET, a preset whose 4 is the cavity gave ET 1.000 and scored ET as RC."""
    pair = [released(labels, "glioma_2017") for labels in make_pair("glioma_2017")]
    folders = [write_cases(tmp_path / name, labels) for name, labels in zip("ab", pair, strict=True)]
    for score, both in ((evaluate_case, pair), (evaluate_folders, folders)):
        for cohort in ("gli", "met"):
            with pytest.raises(ValueError, match=r"references hold 4 and never 3.* say --labels glioma_2017"):
                score(*both, preset="brats2024", cohort=cohort, labels="released")
    believed = evaluate_case(*pair, preset="brats2024", labels="resected_2024")  # a cavity without enhancement
    assert believed["RC"]["reference_ml"] > 0 == believed["ET"]["reference_ml"]
    as_they_are = evaluate_case(*pair, preset="brats2024", labels="glioma_2017")
    assert as_they_are["ET"]["reference_ml"] == believed["RC"]["reference_ml"]


def test_a_case_without_enhancement_among_others_is_no_contradiction(tmp_path):
    labels, _ = make_pair("resected_2024")
    without = np.where(labels == ET, NCR, labels)
    assert EXTRA in without
    cases = [released(one, "resected_2024") for one in (labels, without)]
    folders = [write_cases(tmp_path / name, *cases) for name in "ab"]
    assert evaluate_folders(*folders, "brats2024", labels="released")["cases"]["case_1"]["RC"]["dice"] == 1


def test_the_numbering_is_inferred_where_values_decide_and_asked_for_where_they_do_not(tmp_path):
    pair = make_pair("glioma_2017")
    without = np.where(pair[0] == ET, NCR, pair[0])  # says nothing; the next case does
    old = [released(labels, "glioma_2017") for labels in (without, *pair)]
    folders = [write_cases(tmp_path / "references", *old[:2]), write_cases(tmp_path / "predictions", old[0], old[2])]
    for preset in ("brats2020", "brats2023"):
        with pytest.warns(Notice, match=r"references is read as glioma_2017 \(1 NCR, 2 ED, 4 ET\), because of its val"):
            results = evaluate_folders(*folders, preset)
        assert results == evaluate_folders(*folders, preset, labels="glioma_2017")
    masks = [(labels > 0).astype(np.uint8) for labels in pair]
    target = [write_cases(tmp_path / name, mask) for name, mask in zip("cd", masks, strict=True)]
    assert evaluate_folders(*target, "brats2024", "men-rt")["labels"] == "trained"  # 1 is 1
    new = [write_cases(tmp_path / name, labels) for name, labels in zip("ef", pair, strict=True)]
    for files, preset in ((new, "brats2020"), (new, "brats2023"), (folders, "brats2024")):
        with pytest.raises(ValueError, match="add --labels trained"):
            evaluate_folders(*files, preset)


def test_boolean_masks_are_no_label_maps():
    mask = np.zeros((5, 5, 5), bool)
    with pytest.raises(ValueError, match="these are boolean masks, not label maps; compare masks with `dice`"):
        evaluate_case(mask, mask, preset="brats2023")
    with pytest.raises(ValueError, match=r"labels \[4\] are not among .* say how they are numbered"):
        evaluate_case(np.full((5, 5, 5), 4), np.zeros((5, 5, 5), int))


def test_channels_that_are_the_same_everywhere_are_noticed(tmp_path):
    reference, prediction = make_pair("glioma_2023")
    regions = find_preset("brats2023").regions
    folders = [write_cases(tmp_path / "references", reference, reference), tmp_path / "predictions"]
    folders[1].mkdir()

    def write(number: int, *names: str) -> None:
        masks = [np.isin(prediction, regions[name]).astype(np.uint8) for name in names]
        image = sitk.JoinSeries([sitk.GetImageFromArray(mask) for mask in masks])
        sitk.WriteImage(image, str(folders[1] / f"case_{number}.nii.gz"))

    for number in range(2):
        write(number, "TC", "TC", "ET")
    said = r"TC and WT are the same in all 2 predictions, but not in the references, which have ED between them; check"
    with pytest.warns(Notice, match=said):
        evaluate_folders(*folders, "brats2023", labels="trained", channels="TC,WT,ET")
    write(1, "TC", "WT", "ET")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        evaluate_folders(*folders, "brats2023", labels="trained", channels="TC,WT,ET")


@pytest.mark.skipif(not BRATS_2020.exists(), reason="needs the real label maps")
@pytest.mark.parametrize("network", ["network_a", "network_b"])
def test_real_patients_and_networks_are_noticed_only_where_they_are_numbered_otherwise(network, tmp_path):
    references, predictions = BRATS_2020 / "reference", BRATS_2020 / network
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", Notice)
        plain = evaluate_folders(references, predictions)
    assert [str(one.message).split(" is read as ")[1][:11] for one in said] == ["glioma_2017"] * 2
    assert plain["summary"]["WT"]["dice"]["mean"] > 0.7
    table = np.array([0, 1, 2, 0, 3], np.uint8)  # as BraTS 2023 numbers them
    for folder in (references, predictions):
        (tmp_path / folder.name).mkdir()
        for path in folder.iterdir():
            labels = table[sitk.GetArrayFromImage(sitk.ReadImage(str(path)))]
            sitk.WriteImage(sitk.GetImageFromArray(labels), str(tmp_path / folder.name / path.name))
    renumbered = [tmp_path / references.name, tmp_path / predictions.name]
    with pytest.warns(Notice, match="in 2 of 2 references the label 1, read as ED, lies inside 2"):
        evaluate_folders(*renumbered, labels="trained")
