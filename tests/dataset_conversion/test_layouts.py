"""Layouts of own folders: what a file may say, what is proposed, and that naming changes nothing in the data set."""

import json
import re
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import SimpleITK as sitk
from data_commands import convert, manifest_of, printed, restore
from release_folders import as_image, label_values, sequence_values, write

from nnunet_brats_ext.brats import LABEL_SCHEMES, SEQUENCES
from nnunet_brats_ext.cli import data
from nnunet_brats_ext.dataset_conversion.layouts import LABEL, LAYOUTS, STACK, Layout, layout_of_manifest
from nnunet_brats_ext.dataset_conversion.proposal import LayoutOptions, propose_layout, to_text
from nnunet_brats_ext.dataset_conversion.scan import scan
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.toml_files import parse_toml

REAL = Path(__file__).parents[3] / "shared" / "real_patients" / "BraTS2021_Training_Data"
KINDS = {"T1": "t1", "T1ce": "t1ce", "T2": "t2", "FLAIR": "flair", LABEL: "seg"}
UPPER = {"T1": "T1", "T1ce": "_T1CE", "T2": "t2W", "FLAIR": "FLAIR", LABEL: "SEG"}
PLAIN = {"T1": "t1", "T1ce": "t1c", "T2": "t2", "FLAIR": "flair", LABEL: "seg"}
BIDS = {"T1": "T1w", "T1ce": "ce-gd_T1w", "T2": "T2w", "FLAIR": "FLAIR"}


def as_released(number: int, role: str) -> str:
    return f"BraTS2021_{number:05d}/BraTS2021_{number:05d}_{KINDS[role]}.nii.gz"


# Eight namings of the same patients: number of the patient, role -> path.
NAMINGS = {
    "folders": lambda number, role: f"case{number}/{PLAIN[role]}.nii.gz",
    "capitals": lambda number, role: f"P{number:03d}/P{number:03d}-{UPPER[role].strip('_')}.nii.gz",
    "sessions": lambda number, role: (
        f"P{number // 2}/2020-0{number}-01/P{number // 2}_2020-0{number}-01_{PLAIN[role]}.nii.gz"
    ),
    "time points": lambda number, role: f"P{number // 2}/tp{number % 2}/{PLAIN[role]}.nii.gz",
    "by sequence": lambda number, role: f"{'masks' if role == LABEL else UPPER[role]}/case_{number:02d}.nii.gz",
    "UCSF-PDGM": lambda number, role: (
        f"UCSF-PDGM-{number:04d}_nifti/UCSF-PDGM-{number:04d}_"
        f"{ {**UPPER, 'T1ce': 'T1c', 'T2': 'T2', LABEL: 'tumor_segmentation'}[role] }.nii.gz"
    ),
    "UPENN-GBM": lambda number, role: (
        f"images_segm/UPENN-GBM-{number:05d}_11_segm.nii.gz"
        if role == LABEL
        else f"images_structural/UPENN-GBM-{number:05d}_11/UPENN-GBM-{number:05d}_11_"
        f"{ {**UPPER, 'T1ce': 'T1GD', 'T2': 'T2'}[role] }.nii.gz"
    ),
    "BIDS": lambda number, role: (
        f"derivatives/tumour/sub-{number}/anat/sub-{number}_desc-tumor_dseg.nii.gz"
        if role == LABEL
        else f"sub-{number}/anat/sub-{number}_{BIDS[role]}.nii.gz"
    ),
}


@pytest.fixture(autouse=True)
def raw(tmp_path, monkeypatch):
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path / "raw"


def write_cohort(root: Path, naming, numbers=(1, 2, 3, 4), labels: np.ndarray | None = None) -> Path:
    """Tiny patients under a naming; labels as released in 2017 unless given."""
    labels = label_values(LAYOUTS["BraTS2021"]) if labels is None else labels
    for number in numbers:
        for role in (*SEQUENCES, LABEL):
            array = labels if role == LABEL else sequence_values(f"patient {number}", role)
            write(as_image(array), root / naming(number, role))
    return root


def contents(dataset: Path) -> list[list[bytes]]:
    """The files of each case, channel by channel and label last, in the order of the cases."""
    return [
        [path.read_bytes() for path in (*sorted((dataset / "imagesTr").glob(f"{case}_000?.nii.gz")), label)]
        for label in sorted((dataset / "labelsTr").iterdir())
        for case in [label.name.removesuffix(".nii.gz")]
    ]


@pytest.mark.parametrize("naming", NAMINGS.values(), ids=NAMINGS)
def test_every_naming_is_recognised_or_proposed_and_gives_the_same_data_set(naming, tmp_path):
    expected = write_cohort(tmp_path / "expected", as_released)
    source = write_cohort(tmp_path / "cohort", naming)
    file = tmp_path / "layout.toml"
    proposal = propose_layout(LayoutOptions(source, out=file))
    assert (len(proposal.source.cases), proposal.source.unrecognised) == (4, [])
    assert not any(case.problems for case in proposal.source.cases)
    assert contents(convert(source, 2, layout=file)) == contents(convert(expected, 1))


@pytest.mark.skipif(not REAL.is_dir(), reason="the real patients are not here")
@pytest.mark.parametrize("naming", NAMINGS.values(), ids=NAMINGS)
def test_real_patients_under_another_naming_give_the_same_bytes_and_come_back(naming, tmp_path):
    real = sorted(REAL.iterdir())[:2]
    for number, folder in enumerate(real, start=2):
        for root, name in ((tmp_path / "own", naming), (tmp_path / "released", as_released)):
            for role, kind in KINDS.items():
                path = root / name(number, role)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(folder / f"{folder.name}_{kind}.nii.gz")
    file = tmp_path / "layout.toml"
    propose_layout(LayoutOptions(tmp_path / "own", out=file))
    own, released = convert(tmp_path / "own", 2, layout=file), convert(tmp_path / "released", 1)
    assert contents(own) == contents(released)
    for folder, path in zip(real, restore(own / "labelsTr", tmp_path / "back", dataset_id=2), strict=True):
        back, label = (sitk.ReadImage(str(one)) for one in (path, folder / f"{folder.name}_seg.nii.gz"))
        np.testing.assert_array_equal(*map(sitk.GetArrayFromImage, (back, label)))
        assert back.GetOrigin() == label.GetOrigin() and back.GetDirection() == label.GetDirection()


@pytest.mark.parametrize("naming", ["folders", "capitals", "UCSF-PDGM", "UPENN-GBM", "BIDS"])
def test_common_namings_need_no_layout(naming, tmp_path):
    source = scan(write_cohort(tmp_path / "cohort", NAMINGS[naming]))
    assert (len(source.cases), source.unrecognised) == (4, [])
    assert all(case.labelled and not case.problems for case in source.cases)
    dataset = convert(tmp_path / "cohort", 2)  # a 4 without 3: numbered as in 2017
    assert manifest_of(dataset)["label_mapping"] == {"0": 0, "1": 2, "2": 1, "4": 3}


def test_the_folder_of_one_patient_is_taken_by_its_own_name(tmp_path, monkeypatch):
    patient = write_cohort(tmp_path / "cohort", NAMINGS["folders"], numbers=(3,)) / "case3"
    monkeypatch.chdir(patient)
    for folder in (patient, Path()):
        (case,) = scan(folder).cases
        assert (case.name, case.problems, len(case.files)) == ("case3", [], 5)
        layout = propose_layout(LayoutOptions(folder)).layout
        assert (layout.case, layout.files["T1ce"]) == ("{patient}", ("{case}/t1c",))
    dataset = convert(patient, 2)
    assert manifest_of(dataset)["cases"]["case3"]["files"]["T1"]["path"] == "t1.nii.gz"


def test_time_points_of_a_patient_are_not_taken_for_patients(tmp_path):
    source = write_cohort(tmp_path / "cohort", lambda n, role: f"P{n // 2}/visit{n}/{PLAIN[role]}.nii.gz")
    with pytest.raises(UserError, match="cases in 3 folders, such as P0, P1 and 1 more, which may be patients"):
        scan(source)
    layout = propose_layout(LayoutOptions(source)).layout
    assert (layout.case, layout.files["T1"]) == ("{patient}_{session}", ("{patient}/{session}/t1",))
    assert [case.patient for case in scan(source, layout).cases] == ["P0", "P1", "P1", "P2"]


def test_grades_come_from_folders_also_in_an_own_layout(tmp_path):
    source = write_cohort(
        tmp_path / "cohort", lambda n, role: f"{'HGG' if n % 2 else 'LGG'}/patient_{n}/{PLAIN[role]}.nii.gz"
    )
    cases = scan(source, propose_layout(LayoutOptions(source)).layout).cases
    assert [(case.name, case.grade) for case in cases] == [
        ("patient_1", "HGG"), ("patient_2", "LGG"), ("patient_3", "HGG"), ("patient_4", "LGG"),
    ]  # fmt: skip


def test_names_with_letters_of_any_language_are_proposed(tmp_path):
    source = write_cohort(tmp_path / "cohort", lambda n, role: f"Müller {n}/besuch/{PLAIN[role]}.nii.gz")
    found = propose_layout(LayoutOptions(source)).source
    assert ([case.name for case in found.cases], found.unrecognised) == ([f"Müller {n}" for n in (1, 2, 3, 4)], [])


def test_masks_of_the_brain_and_derived_images_are_left_over(tmp_path):
    source = write_cohort(tmp_path / "cohort", NAMINGS["folders"])
    for number in (1, 2, 3, 4):
        write(as_image(np.ones((10, 9, 8), np.uint8)), source / f"case{number}/brain_mask.nii.gz")
        write(as_image(np.ones((10, 9, 8), np.uint8)), source / f"case{number}/t1_bias.nii.gz")
    found = propose_layout(LayoutOptions(source)).source
    assert {path.name for path in found.unrecognised} == {"brain_mask.nii.gz", "t1_bias.nii.gz"}
    assert all(case.files["T1"].name == "t1.nii.gz" for case in found.cases)


def test_labels_that_fit_several_numberings_are_asked_for(tmp_path):
    labels = label_values(LAYOUTS["BraTS2023-GLI"])
    source = write_cohort(tmp_path / "cohort", NAMINGS["folders"], labels=labels)
    with pytest.raises(UserError, match=r"labels 0, 1, 2, 3, which fit several.*\n  --scheme glioma_2013 +1 NCR, 2 ED"):
        convert(source, 2)
    assert manifest_of(convert(source, 2, scheme="decathlon"))["label_mapping"] == {"0": 0, "1": 1, "2": 2, "3": 3}
    text = propose_layout(LayoutOptions(source)).text
    assert '# scheme = "glioma_2023" # 1 NCR, 2 ED, 3 ET' in text


def test_without_label_maps_a_cohort_is_converted_to_predict_and_restored_as_numbered_today(tmp_path):
    source = write_cohort(tmp_path / "cohort", NAMINGS["folders"], numbers=(1, 2))
    for label in source.rglob("seg.nii.gz"):
        label.unlink()
    dataset = convert(source, 2)
    write(as_image(np.full((10, 9, 8), 3, np.uint8)), tmp_path / "predicted" / "case1.nii.gz")
    (path,) = restore(tmp_path / "predicted", tmp_path / "out", dataset_id=2)
    assert sorted(path.name for path in (dataset / "imagesTs").iterdir())[0] == "case1_0000.nii.gz"
    assert (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) == 3).all()


def test_an_own_numbering_is_converted_and_restored(tmp_path):
    labels = label_values(LAYOUTS["LUMIERE"])
    source = write_cohort(tmp_path / "cohort", NAMINGS["folders"], labels=labels)
    text = propose_layout(LayoutOptions(source)).text
    (tmp_path / "own.toml").write_text(text + '\n[labels]\n1 = "ET"\n2 = "NCR"\n3 = "ED"\n')
    dataset = convert(source, 2, layout=tmp_path / "own.toml")
    assert manifest_of(dataset)["label_mapping"] == {"0": 0, "1": 3, "2": 2, "3": 1}
    (path, *_) = restore(dataset / "labelsTr", tmp_path / "out", dataset_id=2)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), labels)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout_survives_its_file(layout):
    assert Layout.from_toml(layout.to_toml(), "here") == layout
    again = Layout.from_toml(parse_toml(to_text(layout, []), "here"), "here")
    assert (again.case, again.files, again.groups, again.scheme) == (
        layout.case, layout.files, layout.groups, layout.scheme,
    )  # fmt: skip


GOOD = 'name = "A"\ncase = "{patient}"\n[files]\nT1 = "{case}/t1"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "is no TOML: "),
        ('name = "A"', "lacks case and files; `nnunet_brats layout` writes"),
        (GOOD.replace("T1 =", "T1Gd ="), "files has no 'T1Gd'; did you mean T1"),
        (GOOD.replace("case =", "cases ="), "no key 'cases'; did you mean case?"),
        (GOOD.replace('"{case}/t1"', "7"), "T1 = 7; expected a text, or a list of texts"),
        (GOOD.replace("{patient}", "all"), "case = 'all' names no part such as"),
        (GOOD.replace("{case}/t1", "t1"), r"T1 = 't1' lacks \{patient\}, which is in the case's name"),
        (GOOD + '[groups]\npatient = "(P"\n', r"group patient = '\(P' is no regular expression"),
        (GOOD + '[groups]\npatient = "(P)"\n', r"write \(\?:\.\.\.\) instead"),
        (GOOD + '[labels]\n1 = "tumour"\n', r"labels \['TUMOUR'\] are none of the sets "),
        (GOOD + '[labels]\nfour = "ET"\n', "expected a table such as 1 = "),
        ('scheme = "glioma"\n' + GOOD, "no numbering 'glioma'; there are glioma_2012"),
        (GOOD.replace("T1 =", "label ="), "files names no sequence"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_quoted_with_its_name(text, message, tmp_path):
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(UserError, match=rf"own.toml.*{message}"):
        Layout.read(tmp_path / "own.toml")


def test_a_layout_may_take_the_keys_of_a_known_one(tmp_path):
    (tmp_path / "own.toml").write_text('name = "Ours"\nlike = "BraTS2021"\ncase = "Ours_{number}"\n')
    layout = Layout.read(tmp_path / "own.toml")
    match = layout.recognise(PurePosixPath("x/Ours_00007_T1CE.nii.gz"))
    assert (match.case, match.role, layout.scheme_name) == ("Ours_00007", "T1ce", "glioma_2017")


def test_cases_of_any_name_are_taken_where_it_is_asked_for(tmp_path):
    names = {**PLAIN, "T1": "t1n", "T2": "t2w", "FLAIR": "t2f"}
    labels = label_values(LAYOUTS["BraTS2023-GLI"])
    source = write_cohort(tmp_path / "input", lambda n, role: f"x{n}f/x{n}f-{names[role]}.nii.gz", labels=labels)
    with pytest.raises(UserError, match=r"no file in .* is named as in BraTS2023-GLI"):
        scan(source, "BraTS2023-GLI")
    with pytest.raises(UserError, match="--any-name needs the layout of the files"):
        scan(source, any_name=True)
    dataset = convert(source, 2, release="BraTS2023-GLI", any_name=True)
    assert [path.name for path in sorted((dataset / "labelsTr").iterdir())] == [f"x{n}f.nii.gz" for n in (1, 2, 3, 4)]
    with pytest.raises(UserError, match=r"size 8 x 9 x 10, where BraTS2023-GLI takes|is not named"):
        restore(dataset / "labelsTr", tmp_path / "a", release="BraTS2023-GLI", processes=1)
    loose = restore(dataset / "labelsTr", tmp_path / "b", release="BraTS2024-PED", any_name=True)
    assert [path.name for path in loose] == [f"x{n}f.nii.gz" for n in (1, 2, 3, 4)]


def test_a_near_miss_is_named(tmp_path):
    source = write_cohort(tmp_path / "cohort", as_released, numbers=(1,))
    folder = source / "BraTS2021_00001"
    (folder / "BraTS2021_00001_t2.nii.gz").rename(folder / "BraTS2021_00001_t2_ax.nii.gz")
    (found,) = scan(source).cases
    assert found.problems == ["no T2; did you mean BraTS2021_00001_t2_ax.nii.gz for T2?"]


def test_the_same_file_in_another_compression_is_a_remark_and_another_one_a_problem(tmp_path):
    source = write_cohort(tmp_path / "cohort", NAMINGS["folders"], numbers=(1, 2))
    for number in (1, 2):
        path = source / f"case{number}/t2.nii.gz"
        write(sitk.ReadImage(str(path if number == 1 else path.with_name("t1.nii.gz"))), path.with_name("t2.nii"))
    with pytest.raises(UserError, match=r"1 bad case:\n  case2: T2: t2.nii.gz and t2.nii differ; keep one"):
        convert(source, 2)
    dataset = convert(source, 2, skip_bad=True)
    assert manifest_of(dataset)["cases"]["case1"]["remarks"] == ["T2 is there a second time as t2.nii"]


def test_the_command_shows_three_cases_the_rest_and_the_next_command(tmp_path):
    source = write_cohort(tmp_path / "cohort", NAMINGS["folders"])
    write(as_image(np.ones((10, 9, 8), np.uint8)), source / "notes/adc.nii.gz")
    shown = printed(data.run_layout, LayoutOptions(source, out=tmp_path / "own.toml"))
    assert "4 cases" in shown and "case3/t1c.nii.gz" in shown and "case4/" not in shown
    assert "left over: 1 files: notes/adc.nii.gz" in shown
    assert re.search(r"next: nnunet_brats convert .*cohort --layout .*own.toml -d ID", shown)
    with pytest.raises(UserError, match=r"own.toml exists"):
        propose_layout(LayoutOptions(source, out=tmp_path / "own.toml"))
    assert "1 bad case" in printed(
        data.run_layout, LayoutOptions(_without(source, "case2/t1.nii.gz"), layout=tmp_path / "own.toml")
    )


def _without(source: Path, path: str) -> Path:
    (source / path).unlink()
    return source


def test_names_that_say_nothing_are_refused_with_a_way_out(tmp_path):
    write(as_image(np.ones((10, 9, 8), np.uint8)), tmp_path / "cohort/a/0001.nii.gz")
    with pytest.raises(UserError, match=r"no file in .*cohort is named after a sequence .*such as a/0001.nii.gz"):
        propose_layout(LayoutOptions(tmp_path / "cohort"))


STACKS = {
    "imagesTr": lambda number, role: (
        f"{'labels' if role == LABEL else 'images'}{'Ts' if number > 3 else 'Tr'}/P{number}"
    ),
    "a word": lambda number, role: f"P_{number}/P_{number}_{'seg' if role == LABEL else '4d'}",
    "no word": lambda number, role: f"P_{number}{'_mask' if role == LABEL else ''}",
}


@pytest.mark.parametrize("naming", STACKS.values(), ids=STACKS)
def test_files_of_all_sequences_are_proposed_and_their_order_is_asked_for_unless_it_is_noted(naming, tmp_path):
    expected = write_cohort(tmp_path / "expected", as_released)
    source, order = tmp_path / "cohort", ("FLAIR", "T1", "T1ce", "T2")
    for number in (1, 2, 3, 4):
        volumes = [as_image(sequence_values(f"patient {number}", role)) for role in order]
        write(sitk.JoinSeries(volumes), source / f"{naming(number, STACK)}.nii.gz")
        write(as_image(label_values(LAYOUTS["BraTS2021"])), source / f"{naming(number, LABEL)}.nii.gz")
    file = tmp_path / "own.toml"
    shown = printed(data.run_layout, LayoutOptions(source, out=file))
    assert "4 cases" in shown and "left over" not in shown and "first state in it which volume is which" in shown
    with pytest.raises(UserError, match="stack needs the order of the sequences, such as"):
        convert(source, 2, layout=file)
    (source / "dataset.json").write_text(json.dumps({"modality": dict(zip("0123", order, strict=True))}))
    propose_layout(LayoutOptions(source, out=file, overwrite=True))
    assert contents(convert(source, 2, layout=file)) == contents(convert(expected, 1))


def test_bids_names_are_read_as_the_specifications_own_library_reads_them():
    parse = pytest.importorskip("ancpbids.utils").parse_bids_name
    layout = LAYOUTS["BIDS"]
    for name in (
        "sub-01_T1w", "sub-01_ses-pre_T1w", "sub-01_ses-pre_acq-mprage_run-2_T1w", "sub-01_ce-gadolinium_T1w",
        "sub-01_ses-2_acq-space_ce-gd_rec-norm_T1w", "sub-01_T2w", "sub-01_acq-3d_FLAIR", "sub-01_space-MNI_T2w",
    ):  # fmt: skip
        known, found = parse(f"{name}.nii.gz"), layout.recognise(PurePosixPath(f"sub-01/anat/{name}.nii.gz"))
        entities = known["entities"]
        role = {"T1w": "T1ce" if "ce" in entities else "T1", "T2w": "T2", "FLAIR": "FLAIR"}[known["suffix"]]
        session = f"_ses-{entities['ses']}" if "ses" in entities else ""
        assert (found.case, found.role) == (f"sub-{entities['sub']}{session}", role)


def test_a_layout_without_any_sequence_is_answered_with_what_the_folder_holds(tmp_path):
    (tmp_path / "scan.nii.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"says by its name which sequence it is(.|\n)*scan.nii.gz"):
        scan(tmp_path, Layout(name="own", case="{x}", groups={"x": ".+"}, files={}))


# ---- a numbering by `scheme` or by [labels] ------------------------------------------------------------------------

SCHEME = "glioma_2023"
OWN_LABELS = {"1": "ET", "2": "NCR", "3": "ED"}
LIKE_TABLE = {"name": "Mine", "like": "LUMIERE"}  # LUMIERE has a table [labels]


def test_a_numbering_may_be_given_once_only():
    content = {"name": "Mine", "like": "BraTS2021", "scheme": SCHEME, "labels": OWN_LABELS}
    with pytest.raises(UserError, match=r"own.toml: scheme = 'glioma_2023' beside labels = \{'1': 'ET'.*keep one"):
        Layout.from_toml(content, "own.toml")


def test_a_scheme_replaces_inherited_labels_and_labels_an_inherited_scheme():
    assert LAYOUTS["LUMIERE"].own_labels and LAYOUTS["BraTS2021"].scheme_name
    by_scheme = Layout.from_toml({**LIKE_TABLE, "scheme": SCHEME}, "own.toml")
    assert by_scheme.numbering == LABEL_SCHEMES[SCHEME] and not by_scheme.own_labels
    by_labels = Layout.from_toml({"name": "Mine", "like": "BraTS2021", "labels": OWN_LABELS}, "own.toml")
    assert by_labels.numbering.released == {0: 0, 1: 3, 2: 2, 3: 1}
    assert by_labels.scheme_name is None
    assert Layout.from_toml(LIKE_TABLE, "own.toml").own_labels == LAYOUTS["LUMIERE"].own_labels


def test_a_manifest_with_both_is_numbered_by_its_labels_as_when_it_was_written():
    content = {**LAYOUTS["LUMIERE"].to_toml(), "scheme": SCHEME}
    assert layout_of_manifest({"layout": content}).numbering == LAYOUTS["LUMIERE"].numbering
