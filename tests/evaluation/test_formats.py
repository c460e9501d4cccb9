"""Label maps as they come: each form that docs/scores.md lists gives the scores of the plain one, to the last bit."""

import csv
import gzip
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from page_blocks import DOCS

from nnunet_brats_ext.brats import ED, ET, LABEL_SCHEMES, NCR
from nnunet_brats_ext.cli import main
from nnunet_brats_ext.evaluation import evaluate_folders
from nnunet_brats_ext.evaluation.label_maps import find_label_maps
from nnunet_brats_ext.evaluation.reading import paint_channels, read_labels
from nnunet_brats_ext.storage.errors import Notice, UserError

SHARED = Path(__file__).parents[3] / "shared" / "real_scores"
SIZE, SPACING, ORIGIN = (14, 12, 10), (1.0, 1.5, 2.0), (-3.0, -20.0, 7.0)
SCHEME = LABEL_SCHEMES["glioma_2017"]
IDENTITY = {value: value for value in range(4)}


def tumour(shift: int) -> np.ndarray:
    """Nested boxes without any symmetry, (z, y, x)."""
    labels = np.zeros(SIZE[::-1], np.uint8)
    for label, margin in ((ED, 2), (NCR, 3), (ET, 4)):
        labels[margin : 10 - margin, margin : 11 - margin, margin + shift : 12 - margin + shift] = label
    labels[0, 0, 0] = ED
    return labels


def image_of(labels: np.ndarray, vector: bool = False) -> sitk.Image:
    image = sitk.GetImageFromArray(labels, isVector=vector)
    image.SetSpacing((*SPACING, 1.0)[: image.GetDimension()])
    image.SetOrigin((*ORIGIN, 0.0)[: image.GetDimension()])
    return image


def masks_of(labels: np.ndarray, names: str) -> np.ndarray:
    values = {**SCHEME.regions, "ED": (ED,), "NCR": (NCR,), "background": (0,)}
    return np.stack([np.isin(labels, values[name]) for name in names.split(",")]).astype(np.float32)


def turned(axes: str):
    def write(labels: np.ndarray, path: Path) -> None:
        sitk.WriteImage(sitk.DICOMOrient(image_of(labels), axes), str(path))

    return write


def as_type(kind: type):
    return lambda labels, path: sitk.WriteImage(image_of(labels.astype(kind)), str(path))


def plain(labels: np.ndarray, path: Path) -> None:
    sitk.WriteImage(image_of(labels), str(path), path.name != "case.nii")


def gzip_called_nii(labels: np.ndarray, path: Path) -> None:
    plain(labels, path)
    path.write_bytes(gzip.compress(path.read_bytes()))


def nii_called_gz(labels: np.ndarray, path: Path) -> None:
    plain(labels, path)
    path.write_bytes(gzip.decompress(path.read_bytes()))


def channels_last(names: str, scale: float = 1.0):
    """As MONAI and nibabel write them: x, y, z, channel."""

    def write(labels: np.ndarray, path: Path) -> None:
        volumes = [image_of(mask * np.float32(scale)) for mask in masks_of(labels, names)]
        sitk.WriteImage(sitk.JoinSeries(volumes), str(path))

    return write


def channels_first(names: str):
    """An array (channel, x, y, z) saved as it is, which has lost its grid."""

    def write(labels: np.ndarray, path: Path) -> None:
        array = np.moveaxis(masks_of(labels, names).T, -1, 0)  # (x, y, z, c) -> (c, x, y, z)
        image = nibabel.Nifti1Image(array, np.eye(4))
        image.header["pixdim"][1:5] = (1, *SPACING)
        nibabel.save(image, path)

    return write


def components(names: str):
    """Several values per voxel, as ITK writes vectors."""
    return lambda labels, path: sitk.WriteImage(
        image_of(np.moveaxis(masks_of(labels, names), 0, -1), vector=True), str(path)
    )


FORMS = {  # as the table of docs/scores.md calls them: how a prediction is written, its ending, further options
    "`.nii.gz`": (plain, ".nii.gz", {}),
    "`.nii`": (plain, ".nii", {}),
    "`.mha`": (plain, ".mha", {}),
    "`.mhd`": (plain, ".mhd", {}),
    "`.nrrd`": (plain, ".nrrd", {}),
    "capitals: `.NII.GZ`": (plain, ".NII.GZ", {}),
    "compressed, but called `.nii`": (gzip_called_nii, ".nii", {}),
    "not compressed, but called `.nii.gz`": (nii_called_gz, ".nii.gz", {}),
    "RAS, as nibabel and MONAI turn images": (turned("RAS"), ".nii.gz", {}),
    "LAS, RPI, ASL or any other of the 48 orientations": (turned("ASL"), ".nii.gz", {}),
    "turned, in `.nrrd`": (turned("RPI"), ".nrrd", {}),
    "64-bit integers": (as_type(np.int64), ".nii.gz", {}),
    "whole numbers as floats": (as_type(np.float32), ".nii.gz", {}),
    "4-D, a mask per region": (channels_last("TC,WT,ET"), ".nii.gz", {"channels": "TC,WT,ET"}),
    "4-D, a probability per region": (channels_last("WT,TC,ET", 0.7), ".nii.gz", {"channels": "WT,TC,ET"}),
    "4-D, a probability per label": (
        channels_last("background,NCR,ED,ET", 0.6), ".nrrd", {"channels": "background,NCR,ED,ET"},
    ),
    "4-D, a mask per label": (channels_last("NCR,ED,ET"), ".nii.gz", {"channels": "NCR,ED,ET"}),
    "channels as the first axis": (channels_first("TC,WT,ET"), ".nii.gz", {"channels": "TC,WT,ET"}),
    "several components per voxel": (components("TC,WT,ET"), ".mha", {"channels": "TC,WT,ET"}),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    """One reference in `references`, and what a plain prediction of it scores in results.json."""
    for name, shift in (("references", 0), ("plain", 1)):
        (tmp_path / name).mkdir()
        plain(tumour(shift), tmp_path / name / "case.nii.gz")
    return tmp_path


def score(reference: Path, prediction: Path, **options) -> dict:
    return evaluate_folders(reference, prediction, labels="trained", **options)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_scores_as_the_plain_file_does(form, folder):
    write, ending, options = FORMS[form]
    (folder / "other").mkdir()
    if ending.isupper():
        plain(tumour(1), folder / "case.nii.gz")
        (folder / "case.nii.gz").rename(folder / "other" / f"case{ending}")
    else:
        write(tumour(1), folder / "other" / f"case{ending}")
    expected = score(folder / "references", folder / "plain")
    for found in (
        score(folder / "references", folder / "other", **options),
        score(folder / "references" / "case.nii.gz", folder / "other" / f"case{ending}", **options),
    ):
        assert found["cases"] == expected["cases"]
        assert found["confusion"] == expected["confusion"]


def test_references_may_come_in_every_form_too(folder):
    turned("RAS")(tumour(0), folder / "references" / "case.nii.gz")
    channels_first("TC,WT,ET")(tumour(1), folder / "plain" / "case.nii.gz")
    found = score(folder / "references", folder / "plain", channels="TC,WT,ET")
    assert 0.5 < found["cases"]["case"]["WT"]["dice"] < 1, "nothing is known of its orientation"
    for place, shift in (("references", 0), ("plain", 1)):
        channels_first("TC,WT,ET")(tumour(shift), folder / place / "case.nii.gz")
    without_labels = evaluate_folders(folder / "references", folder / "plain", channels=["TC", "WT", "ET"])
    plain(tumour(0), folder / "references" / "case.nii.gz")
    plain(tumour(1), folder / "plain" / "case.nii.gz")
    assert without_labels["cases"] == score(folder / "references", folder / "plain")["cases"]


def test_the_page_lists_exactly_the_forms_that_are_tested():
    page = (DOCS / "scores.md").read_text()
    table = page[page.index("| a prediction that is |") :].split("\n\n")[0].splitlines()[2:]
    assert [line.strip("|").split("|")[0].strip() for line in table] == [*FORMS, "axes not at right angles"]


def test_axes_that_are_not_at_right_angles_are_said_and_taken_on_request(folder):
    (folder / "sheared").mkdir()
    affine = np.diag((-1.0, -1.5, 2.0, 1.0))
    affine[:3, 3] = (3, 20, 7)
    affine[0, 1] = 0.02
    image = nibabel.Nifti1Image(tumour(1).T, affine)
    image.set_qform(None, 0)
    nibabel.save(image, folder / "sheared" / "case.nii.gz")
    with pytest.raises(UserError, match=r"not at right angles, .* --right-angles takes the nearest .* mm from where"):
        score(folder / "references", folder / "sheared")
    with pytest.raises(UserError, match=r"reference and prediction differ in direction"):
        score(folder / "references", folder / "sheared", right_angles=True)  # the shear is more than the tolerance
    affine[0, 1] = 0.005
    image = nibabel.Nifti1Image(tumour(1).T, affine)
    image.set_qform(None, 0)
    nibabel.save(image, folder / "sheared" / "case.nii.gz")
    found = score(folder / "references", folder / "sheared", right_angles=True)
    assert found["cases"] == score(folder / "references", folder / "plain")["cases"]


def test_other_formats_whose_axes_are_not_at_right_angles_are_taken_on_request_too(folder):
    header = (
        "NRRD0004\ntype: uchar\ndimension: 3\nspace: left-posterior-superior\nsizes: 14 12 10\n"
        "space directions: (1,0,0) (0.005,1.5,0) (0,0,2)\nkinds: domain domain domain\nencoding: raw\n"
        "space origin: (-3,-20,7)\n\n"
    )
    (folder / "sheared").mkdir()
    (folder / "sheared" / "case.nrrd").write_bytes(header.encode() + tumour(1).tobytes())
    with pytest.raises(UserError, match=r"case.nrrd has axes that are not at right angles, .* --right-angles"):
        score(folder / "references", folder / "sheared")
    found = score(folder / "references", folder / "sheared", right_angles=True)
    assert found["cases"] == score(folder / "references", folder / "plain")["cases"]


@pytest.mark.parametrize(
    ("names", "given", "options", "message"),
    [
        ("TC,WT,ET", tumour(1), {}, r"has four axes: say what its channels are, .* such as --channels WT,TC,ET"),
        ("TC,WT,ET", tumour(1), {"channels": "TC,WT"}, "14 x 12 x 10 x 3 voxels, so neither its first nor its last"),
        ("TC,WT,ET", tumour(1), {"channels": "TC,WT,RC"}, "no RC here; there are WT, TC, ET"),
        ("TC,WT,ET", tumour(1), {"channels": "TC,WT,WT"}, "a name is given twice"),
        ("TC,WT,ET", tumour(1), {"channels": "WT,TC,ET"}, "not nested as WT,TC,ET, but as TC,WT,ET"),
    ],
)
def test_channels_that_are_not_what_was_said_are_refused(names, given, options, message, folder):
    channels_last(names)(given, folder / "plain" / "case.nii.gz")
    with pytest.raises(UserError, match=message):
        score(folder / "references", folder / "plain", **options)
    channels_last(names, 20.0)(given, folder / "plain" / "case.nii.gz")
    with pytest.raises(UserError, match="values from 0 to 20; channels are masks or probabilities"):
        score(folder / "references", folder / "plain", channels=names)


def test_regions_that_are_not_quite_nested_are_counted_outwards_and_said():
    masks = masks_of(tumour(0), "WT,TC,ET")
    masks[1, 9, :, :9] = 1  # core outside of the whole tumour
    with pytest.warns(Notice, match=r"\d+% of the voxels of TC lie outside WT; they are counted as WT too"):
        painted = paint_channels(masks, ("WT", "TC", "ET"), SCHEME)
    assert (painted[9, :, :9] == NCR).all()


def test_another_grid_is_refused_with_what_to_do(folder):
    labels = tumour(1)
    moved = image_of(labels)
    moved.SetOrigin((0.0, 0.0, 0.0))
    sitk.WriteImage(moved, str(folder / "plain" / "case.nii.gz"))
    with pytest.raises(UserError, match=r"differ in origin_mm (.|\n)* copy the header of the reference"):
        score(folder / "references", folder / "plain")
    sitk.WriteImage(image_of(labels[1:]), str(folder / "plain" / "case.nii.gz"))
    with pytest.raises(UserError, match=r"differ in size (.|\n)* resample to it"):
        score(folder / "references", folder / "plain")


# ---- which files belong together -----------------------------------------------------------------------------------


@pytest.fixture
def pair(folder) -> tuple[Path, Path, dict]:
    """References and predictions of two cases, and their scores."""
    for name, shift in (("references", 0), ("plain", 1)):
        plain(tumour(shift), folder / name / "second.nii.gz")
    return folder / "references", folder / "plain", score(folder / "references", folder / "plain")["cases"]


def rename(folder: Path, name: str) -> Path:
    """The same files under other names, in a folder of their own; name: with {case}."""
    other = folder.with_name(f"{folder.name}_renamed")
    for path in sorted(folder.iterdir()):
        place = other / name.format(case=path.name.removesuffix(".nii.gz"))
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    return other


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("{case}_pred.nii.gz", "{case}_pred.nii.gz"),
        ("{case}_pred.nii.gz", "{case}_pred"),
        ("run-{case}-5.nii.gz", "run-{case}-*"),
        ("{case}/pred/seg.nii.gz", "{case}/pred/seg.nii.gz"),
        ("{case}/{case}_out.nii.gz", "{case}/{case}_out"),
    ],
)
def test_a_pattern_says_where_the_name_of_a_case_stands(name, pattern, pair):
    reference, prediction, expected = pair
    renamed = rename(prediction, name)
    shutil.copy(prediction / "case.nii.gz", renamed / "notes.nii.gz")
    assert score(reference, renamed, pattern=pattern)["cases"] == expected
    assert score(prediction, rename(reference, name), reference_pattern=None, pattern=pattern)["cases"].keys() == {
        *expected
    }


def test_names_that_share_no_case_are_answered_with_the_pattern_that_fits(pair):
    reference, prediction, _ = pair
    with pytest.raises(UserError, match=r"share no case; .*; add --pattern 'net1_\{case\}_pred.nii.gz'"):
        score(reference, rename(prediction, "net1_{case}_pred.nii.gz"))
    with pytest.raises(UserError, match=r"write \{case\} where the case's name stands"):
        score(reference, prediction, pattern="*_pred.nii.gz")
    with pytest.raises(UserError, match=r"no label map that is named as in the pattern '\{case\}_x', but case.nii.gz"):
        score(reference, prediction, pattern="{case}_x")


def test_case_folders_will_do_on_both_sides(pair):
    reference, prediction, expected = pair
    assert (
        score(rename(reference, "{case}/seg.nii.gz"), rename(prediction, "{case}/output.nii.gz"))["cases"] == expected
    )
    several = rename(prediction, "{case}/output.nii.gz")
    shutil.copy(prediction / "case.nii.gz", several / "case" / "other.nii.gz")
    with pytest.raises(UserError, match=r"holds 2 images .* --pattern or --reference-pattern, such as '\{case\}/other"):
        score(reference, several)


def test_the_names_of_a_release_inside_other_names_belong_together(tmp_path):
    for folder, name in (("references", "reference_{}.nii.gz"), ("predictions", "{}-net.nii.gz")):
        (tmp_path / folder).mkdir()
        for case in ("BraTS-MET-01352-000", "BraTS-MET-01352-001"):
            plain(tumour(folder == "predictions"), tmp_path / folder / name.format(case))
    found = score(tmp_path / "references", tmp_path / "predictions")
    assert list(found["cases"]) == ["reference_BraTS-MET-01352-000", "reference_BraTS-MET-01352-001"]
    (tmp_path / "server").mkdir()
    for case in ("01352-000", "01352-001"):
        plain(tumour(1), tmp_path / "server" / f"{case}.nii.gz")
    assert score(tmp_path / "references", tmp_path / "server")["cases"] == found["cases"]


def test_a_table_says_which_files_belong_together(pair, capsys):
    reference, prediction, expected = pair
    table = reference.parent / "pairs.csv"
    renamed = rename(prediction, "{case}/p.nii.gz")
    rows = [["reference", "prediction", "case"]]
    rows += [[f"{case}.nii.gz", f"{case}/p.nii.gz", case] for case in ("second", "case")]
    for separator in ",;\t":
        with table.open("w", newline="") as file:
            csv.writer(file, delimiter=separator).writerows(rows)
        found = score(reference, renamed, table=table)["cases"]
        assert found == expected and list(found) == ["second", "case"]
    table.write_text("reference,prediction\ncase.nii.gz,case/p.nii.gz\n")
    assert list(score(reference, renamed, table=table)["cases"]) == ["case"]
    for text, message in (
        ("a,b\n1,2\n", "has the columns a, b; expected reference, prediction"),
        ("reference,prediction\ncase.nii.gz,\n", "line 2: a reference and a prediction are needed"),
        ("reference,prediction\na,b\na,c\n", "line 3: case .* is there twice"),
    ):
        table.write_text(text)
        with pytest.raises(UserError, match=message):
            score(reference, renamed, table=table)
    command = ["evaluate", str(reference), str(renamed), "--table", "nowhere.csv", "--labels", "trained"]
    assert main([*command, "-o", str(reference.parent / "out.json")]) == 1
    assert "nowhere.csv cannot be read" in capsys.readouterr().err


def test_a_single_file_is_scored_against_its_case_of_a_folder(pair):
    reference, prediction, expected = pair
    assert score(reference / "second.nii.gz", prediction)["cases"] == {"second": expected["second"]}
    assert score(reference, prediction / "second.nii.gz")["cases"] == {"second": expected["second"]}


@pytest.fixture
def model(pair) -> Path:
    """A trained model's folder with two folds, each of which has predicted a case that it held out."""
    _, prediction, _ = pair
    folder = prediction.parent / "BraTSTrainer__nnUNetPlans__3d_fullres"
    for fold, case in enumerate(("case", "second")):
        (validation := folder / f"fold_{fold}" / "validation").mkdir(parents=True)
        shutil.copy(prediction / f"{case}.nii.gz", validation)
    (folder / "fold_all" / "validation").mkdir(parents=True)
    shutil.copy(prediction / "case.nii.gz", folder / "fold_all" / "validation")
    content = json.dumps({"labels": SCHEME.nnunet_labels()})
    (folder / "dataset.json").write_text(content)
    (folder.parent / "dataset.json").write_text(content)
    return folder


def test_a_model_folder_is_scored_by_what_each_fold_held_out(pair, model, capsys):
    reference, _, expected = pair
    out = model.parent / "results.json"
    assert main(["evaluate", str(reference), str(model), "-o", str(out), "-np", "1"]) == 0
    assert "standard deviation of 2 folds: WT" in capsys.readouterr().out
    results = json.loads(out.read_text())
    assert results["cases"] == expected
    assert results["folds"] == {"case": "0", "second": "1"}
    rows = list(csv.DictReader(out.with_suffix(".csv").open()))
    assert {(row["case"], row["fold"]) for row in rows} == {("case", "0"), ("second", "1")}
    summary = next(csv.DictReader((out.parent / "results_summary.csv").open()))
    assert summary["folds"] == "2" and float(summary["folds_mean"]) == pytest.approx(float(summary["mean"]))


def test_one_fold_is_scored_by_the_cases_that_it_held_out(pair, model):
    reference, _, expected = pair
    for place in (model / "fold_1", model / "fold_1" / "validation"):
        assert evaluate_folders(reference, place)["cases"] == {"second": expected["second"]}
    assert find_label_maps(model).folds == {"case": "0", "second": "1"}
    shutil.copy(model / "fold_0" / "validation" / "case.nii.gz", model / "fold_1" / "validation")
    with pytest.raises(UserError, match="two label maps of case case"):
        evaluate_folders(reference, model)


# ---- real files ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real label maps")
def test_a_real_prediction_in_ras_scores_as_in_lps(tmp_path):
    path = SHARED / "ras" / "BraTS-GLI-00242-000_pred.nii.gz"
    (tmp_path / "lps").mkdir()
    sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS"), str(tmp_path / "lps" / path.name))
    found = score(tmp_path / "lps", SHARED / "ras")["cases"]["BraTS-GLI-00242-000_pred"]
    assert {scores["dice"] for scores in found.values()} == {1}


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real label maps")
def test_a_real_file_of_three_channels_is_read_in_the_order_that_is_nested():
    label, prediction = (SHARED / "monai_4d" / f"SegResNet_sample_1_{name}.nii.gz" for name in ("label", "pred"))
    found = evaluate_folders(label, prediction, channels="ET,TC,WT")["cases"]
    (scores,) = found.values()
    assert [scores[region]["dice"] for region in ("WT", "TC", "ET")] == pytest.approx([0.967, 0.973, 0.955], abs=6e-4)
    with pytest.raises(UserError, match="not nested as TC,WT,ET, but as ET,TC,WT"):
        read_labels(label, IDENTITY, "glioma_2017", ("TC", "WT", "ET"))
