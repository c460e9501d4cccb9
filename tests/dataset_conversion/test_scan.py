"""Which release a folder holds, which files make up a case, and what is left alone."""

import os
import re
import shutil
from pathlib import Path, PurePosixPath

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from release_folders import label_values, write, write_case

from nnunet_brats_ext.dataset_conversion.cases import inspect_case
from nnunet_brats_ext.dataset_conversion.layouts import LABEL, LAYOUTS, STACK, find_layout
from nnunet_brats_ext.dataset_conversion.scan import scan


def touch(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"")


def touch_case(folder: Path, release: str, case: str, root: str | None = None) -> None:
    """Empty files under the release's names; `root` replaces the folders above the case's files."""
    row = LAYOUTS[release]
    for role in row.roles:
        path = row.path(case, role)
        touch(folder, str(path if root is None else PurePosixPath(root, path.name)))


@pytest.mark.parametrize("release", LAYOUTS.values(), ids=LAYOUTS)
def test_every_path_of_a_release_is_recognised_as_what_it_is(release):
    assert release.scheme or release.generic
    for training in (True, False):
        case = release.case_name(7, training=training)
        assert release.is_case(case)
        for role in release.roles[: None if training else -1]:
            found = release.recognise(release.path(case, role, training=training))
            assert (found.case, found.role) == (case, role)


@pytest.mark.parametrize("release", LAYOUTS.values(), ids=LAYOUTS)
def test_only_releases_with_shared_case_names_take_each_others_files(release):
    case = release.case_name(7)
    path = release.path(case, release.roles[0])
    others = {
        other.name
        for other in LAYOUTS.values()
        if other is not release and not (other.generic or release.generic) and other.recognise(path)
    }
    shared = [
        {"BraTS2023-GLI", "BraTS2025-GLI-PRE"},
        {"BraTS2023-PED", "BraTS2024-PED"},
        {"BraTS2023-MET", "BraTS2024-MET", "BraTS2025-MET"},
    ]
    assert others == next((names - {release.name} for names in shared if release.name in names), set())


@pytest.mark.parametrize(
    ("path", "release", "case", "role"),
    [
        # Names as published, written out by hand so that the table is not only compared with itself.
        ("Image_Data/HG/0001/VSD.Brain.XX.O.MR_T1c/VSD.Brain.XX.O.MR_T1c.686.mha", "BraTS2013", "HG_0001", "T1ce"),
        ("LG/0001/VSD.Brain_3more.XX.XX.OT/VSD.Brain_3more.XX.XX.OT.6560.mha", "BraTS2013", "LG_0001", LABEL),
        (
            "BRATS2015_Training/HGG/brats_2013_pat0001_1/VSD.Brain.XX.O.MR_Flair.54512/VSD.Brain.XX.O.MR_Flair.54512.mha",
            "BraTS2015",
            "brats_2013_pat0001_1",
            "FLAIR",
        ),
        ("HGG/Brats17_2013_0_1/Brats17_2013_0_1_t1.nii.gz", "BraTS2017", "Brats17_2013_0_1", "T1"),
        ("LGG/Brats18_TCIA09_141_1/Brats18_TCIA09_141_1_t1ce.nii.gz", "BraTS2018", "Brats18_TCIA09_141_1", "T1ce"),
        ("x/BraTS19_CBICA_ANG_1/BraTS19_CBICA_ANG_1_seg.nii", "BraTS2019", "BraTS19_CBICA_ANG_1", LABEL),
        ("BraTS20_Validation_001/BraTS20_Validation_001_t2.nii", "BraTS2020", "BraTS20_Validation_001", "T2"),
        ("BraTS2021_00000/BraTS2021_00000_flair.nii/00000057_brain_flair.nii", "BraTS2021", "BraTS2021_00000", "FLAIR"),
        ("BraTS2021_00000/BraTS2021_00000_t1.nii/BraTS2021_00000_t1.nii", "BraTS2021", "BraTS2021_00000", "T1"),
        ("FeTS2022_00001/FeTS2022_00001_final_seg.nii.gz", "FeTS2022", "FeTS2022_00001", LABEL),
        ("BraTS-SSA-00002-000/BraTS-SSA-00002-000-t2f.nii.gz", "BraTS2023-SSA", "BraTS-SSA-00002-000", "FLAIR"),
        ("BraTS-MEN-RT-0000-1/BraTS-MEN-RT-0000-1_gtv.nii.gz", "BraTS2024-MEN-RT", "BraTS-MEN-RT-0000-1", LABEL),
        ("BraTS-MEN-RT-0000-1/BraTS-MEN-RT-0000-1-gtv.nii.gz", "BraTS2024-MEN-RT", "BraTS-MEN-RT-0000-1", LABEL),
        ("BraTS-GoAT-00000/BraTS-GoAT-00000-t1n.nii.gz", "BraTS2024-GoAT", "BraTS-GoAT-00000", "T1"),
        ("UCSD - Training/BraTS-MET-00002-000-t1c.nii.gz", "BraTS2025-MET", "BraTS-MET-00002-000", "T1ce"),
        ("BraTS-MET-00002/BraTS-MET-00002-t1c.nii.gz", "BraTS2025-MET", "BraTS-MET-00002", "T1ce"),
        ("100101A/100101A_BraTS-seg.nii.gz", "UCSF-BMSR", "100101A", LABEL),
        ("Task01_BrainTumour/imagesTs/BRATS_485.nii.gz", "MSD-Task01", "BRATS_485", STACK),
    ],
)  # fmt: skip
def test_published_names_are_recognised(path, release, case, role):
    found = LAYOUTS[release].recognise(PurePosixPath(path))
    assert (found.case, found.role) == (case, role)


def test_a_release_is_found_by_name_whatever_its_capitals():
    assert find_layout("brats2023-gli").name == "BraTS2023-GLI"
    with pytest.raises(ValueError, match=r"no release is called 'BraTS1999'; known are BraTS2012, "):
        find_layout("BraTS1999")


def test_the_source_may_lie_under_any_nesting_and_among_junk(tmp_path):
    touch_case(
        tmp_path, "BraTS2018", "Brats18_TCIA01_147_1", "a/a/MICCAI_BraTS_2018_Data_Training/HGG/Brats18_TCIA01_147_1"
    )
    touch_case(
        tmp_path, "BraTS2018", "Brats18_TCIA09_141_1", "a/a/MICCAI_BraTS_2018_Data_Training/LGG/Brats18_TCIA09_141_1"
    )
    inside = "a/a/MICCAI_BraTS_2018_Data_Training/HGG/Brats18_TCIA01_147_1"
    touch(
        tmp_path,
        f"{inside}/._Brats18_TCIA01_147_1_t1.nii.gz",
        f"{inside}/.DS_Store",
        "__MACOSX/HGG/Brats18_TCIA01_147_1/Brats18_TCIA01_147_1_t1.nii.gz",
        "MICCAI_BraTS_2018_Data_Training.zip",
        "survival_data.csv",
        f"{inside}/brain_mask.nii.gz",
    )  # fmt: skip
    source = scan(tmp_path)
    assert source.layout.name == "BraTS2018"
    assert [(case.name, case.grade, case.problems) for case in source.cases] == [
        ("Brats18_TCIA01_147_1", "HGG", []),
        ("Brats18_TCIA09_141_1", "LGG", []),
    ]
    assert [case.patient for case in source.cases] == ["TCIA01_147", "TCIA09_141"]
    assert [path.name for path in source.unrecognised] == ["brain_mask.nii.gz"]


def test_a_folder_linked_into_itself_ends(tmp_path):
    touch_case(tmp_path, "BraTS2020", "BraTS20_Training_001")
    (tmp_path / "again").symlink_to(tmp_path)
    assert [case.problems for case in scan(tmp_path).cases] == [[]]


@pytest.mark.parametrize(
    ("folder", "case", "expected"),
    [
        ("ASNR-MICCAI-BraTS2023-PED-Challenge-TrainingData", "BraTS-PED-00001-000", "BraTS2023-PED"),
        ("BraTS-PEDs2024_Training", "BraTS-PED-00001-000", "BraTS2024-PED"),
        ("BraTS2025-PED-Training", "BraTS-PED-00001-000", "BraTS2024-PED"),
        ("MICCAI-BraTS2024-MET-Challenge-TrainingData_2", "BraTS-MET-00001-000", "BraTS2024-MET"),
        ("MICCAI-LH-BraTS2025-MET-Challenge-Training/UCSD - Training", "BraTS-MET-00001-000", "BraTS2025-MET"),
        ("BraTS2025-GLI-PRE-Challenge-TrainingData", "BraTS-GLI-00001-000", "BraTS2025-GLI-PRE"),
        ("anything", "BraTS-GLI-00005-100", "BraTS2024-GLI"),
        # The nearest folder wins.
        ("brats2023/BraTS-PEDs2024_Training", "BraTS-PED-00001-000", "BraTS2024-PED"),
    ],
)
def test_folders_and_time_points_distinguish_releases_of_the_same_names(tmp_path, folder, case, expected):
    touch_case(tmp_path, expected, case, f"{folder}/{case}")
    assert scan(tmp_path).layout.name == expected


@pytest.mark.parametrize(
    ("size", "expected"), [((240, 240, 155), "BraTS2023-GLI"), ((182, 218, 182), "BraTS2025-GLI-PRE")]
)
def test_the_grid_decides_what_names_and_folders_leave_open(tmp_path, size, expected):
    case = "BraTS-GLI-00001-000"
    for kind in ("t1n", "t1c", "t2w", "t2f"):
        write(sitk.Image(size, sitk.sitkUInt8), tmp_path / case / f"{case}-{kind}.nii.gz")
    assert scan(tmp_path).layout.name == expected


@pytest.mark.parametrize("folder", [".", "somewhere", "data"])
def test_a_release_that_could_be_one_of_two_is_never_guessed(tmp_path, folder):
    case = "BraTS-PED-00001-000"
    write_case(tmp_path / "elsewhere", LAYOUTS["BraTS2024-PED"], case)
    source = tmp_path / "brats2023_project" / "cases"  # a folder above the source proves nothing
    shutil.copytree(tmp_path / "elsewhere" / "BraTS-PEDs2024_Training", source / folder)
    with pytest.raises(
        ValueError, match=r"--release BraTS2023-PED .*1 NCR, 2 ED, 3 ET\n.*--release BraTS2024-PED .*1 ET, 2"
    ):
        scan(source)
    assert scan(source, "BraTS2024-PED").layout.name == "BraTS2024-PED"


def test_a_wrong_choice_among_the_same_names_shows_in_the_labels(tmp_path):
    case = "BraTS-PED-00001-000"
    write_case(tmp_path, LAYOUTS["BraTS2024-PED"], case)
    (found,) = scan(tmp_path / "BraTS-PEDs2024_Training", "BraTS2023-PED").cases
    inspect_case(found, normalise=None, tolerance_mm=0.1)
    assert re.search(
        r"label 4 in \d+ voxels; BraTS2023-PED has \[0, 1, 2, 3\]; it exists in BraTS2024-PED", found.problems[0]
    )


def test_a_source_of_several_releases_is_refused_with_what_it_holds(tmp_path):
    touch_case(tmp_path, "BraTS2020", "BraTS20_Training_001")
    touch_case(tmp_path, "BraTS2021", "BraTS2021_00000")
    touch_case(tmp_path, "BraTS2021", "BraTS2021_00002")
    with pytest.raises(ValueError, match="2 cases of BraTS2021, 1 cases of BraTS2020: convert each on its own"):
        scan(tmp_path)
    assert len(scan(tmp_path, "BraTS2021").cases) == 2


def test_a_release_that_is_asked_for_gets_no_files_of_another(tmp_path):
    """Each would be read in the numbering of the other."""
    old, new = "BraTS-PED-00001-000", "BraTS-PED-00002-000"
    touch_case(tmp_path, "BraTS2023-PED", old)
    touch_case(tmp_path, "BraTS2024-PED", new)
    source = scan(tmp_path, "BraTS2024-PED")
    assert [case.name for case in source.cases] == [new]
    assert {path.parent.name for path in source.unrecognised} == {old} and len(source.unrecognised) == 5
    assert [case.name for case in scan(tmp_path, "BraTS2023-PED").cases] == [old]


def test_a_release_that_is_asked_for_gets_no_time_points_of_another(tmp_path):
    for release, case in (("BraTS2023-GLI", "BraTS-GLI-00001-000"), ("BraTS2024-GLI", "BraTS-GLI-00001-100")):
        touch_case(tmp_path, release, case, f"cases/{case}")
    assert [case.name for case in scan(tmp_path, "BraTS2024-GLI").cases] == ["BraTS-GLI-00001-100"]
    assert [case.name for case in scan(tmp_path, "BraTS2023-GLI").cases] == ["BraTS-GLI-00001-000"]


def test_a_release_that_is_asked_for_takes_what_no_folder_gives_to_another(tmp_path):
    touch_case(tmp_path, "BraTS2023-PED", "BraTS-PED-00001-000")
    touch_case(tmp_path, "BraTS2024-PED", "BraTS-PED-00002-000", "renamed/BraTS-PED-00002-000")
    assert [case.name for case in scan(tmp_path, "BraTS2024-PED").cases] == ["BraTS-PED-00002-000"]
    assert len(scan(tmp_path, "BraTS2023-PED").cases) == 2
    # The folder that is named together with the release is taken for that release, whatever it is called.
    folder = tmp_path / LAYOUTS["BraTS2023-PED"].folder.split("/")[0]
    assert len(scan(folder, "BraTS2024-PED").cases) == 1
    (tmp_path / "renamed").rename(tmp_path / "BraTS2023")
    with pytest.raises(ValueError, match=r"no case in .* belongs to BraTS2024-PED; .* is of BraTS2023-PED by its name"):
        scan(tmp_path, "BraTS2024-PED")


def test_the_same_case_names_in_folders_of_two_releases_are_not_mixed(tmp_path):
    for release in ("BraTS2023-PED", "BraTS2024-PED"):
        touch_case(tmp_path, release, "BraTS-PED-00001-000")
    with pytest.raises(ValueError, match="1 cases of BraTS2023-PED, 1 cases of BraTS2024-PED"):
        scan(tmp_path)


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    for case in ("BraTS20_Training_001", "BraTS20_Training_002"):
        touch_case(tmp_path, "BraTS2020", case)
    scandir = os.scandir

    def stale(folder):
        if Path(folder).name == "BraTS20_Training_002":
            raise OSError(116, "Stale file handle", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", stale)
    with pytest.raises(OSError, match=r"Stale file handle: .*BraTS20_Training_002"):
        scan(tmp_path)


def test_a_training_case_that_lost_its_label_is_remarked(tmp_path):
    for case in ("BraTS20_Training_001", "BraTS20_Training_002"):
        touch_case(tmp_path, "BraTS2020", case)
    (tmp_path / LAYOUTS["BraTS2020"].path("BraTS20_Training_002", LABEL)).unlink()
    touch_case(
        tmp_path, "BraTS2020", "BraTS20_Validation_001", "MICCAI_BraTS2020_ValidationData/BraTS20_Validation_001"
    )
    (tmp_path / "MICCAI_BraTS2020_ValidationData/BraTS20_Validation_001/BraTS20_Validation_001_seg.nii.gz").unlink()
    remark = "no label although it lies in a training folder"
    assert [case.remarks for case in scan(tmp_path).cases] == [[], [remark], []]


def test_a_source_of_no_release_is_refused_with_what_was_seen_and_what_is_known(tmp_path):
    touch(tmp_path, "patient_1/t1.nii.gz")
    with pytest.raises(
        ValueError,
        match=r"1 image files, such as patient_1/t1.nii.gz.*no T1ce and no T2.*nnunet_brats layout .*BraTS2020",
    ):
        scan(tmp_path)
    (tmp_path / "patient_1/t1.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"no .nii.gz, .nii or .mha file"):
        scan(tmp_path, "BraTS2020")
    (tmp_path / "release.zip").write_bytes(b"")
    with pytest.raises(ValueError, match="is not a folder; unpack it first"):
        scan(tmp_path / "release.zip")


# Defects of the releases, each as it is known.


def test_case_355_of_2020_has_its_label_under_another_name(tmp_path):
    case = "BraTS20_Training_355"
    touch_case(tmp_path, "BraTS2020", case)
    folder = tmp_path / "MICCAI_BraTS2020_TrainingData" / case
    (folder / f"{case}_seg.nii.gz").rename(folder / "W39_1998.09.19_Segm.nii")
    (found,) = scan(tmp_path).cases
    assert found.files[LABEL].name == "W39_1998.09.19_Segm.nii"
    assert found.remarks == ["label was misnamed W39_1998.09.19_Segm.nii"]


def test_label_6_of_metastases_2025_means_4(tmp_path):
    release = LAYOUTS["BraTS2025-MET"]
    labels = label_values(release)
    labels[0, 0, :3] = 6
    write_case(tmp_path, release, "BraTS-MET-00001-000", labels=labels)
    (found,) = scan(tmp_path).cases
    assert inspect_case(found, normalise=None, tolerance_mm=0.1).labels == [0, 1, 2, 3, 4]
    assert (found.problems, found.remarks) == ([], ["label 6 -> 4 in 3 voxels"])


@pytest.mark.parametrize(
    ("release", "case", "earlier", "later"),
    [
        ("BraTS2023-MEN", "BraTS-MEN-00001-000", "BraTS-MEN-Train", "BraTS-MEN-TRAIN-FIX-V4"),
        ("BraTS2023-SSA", "BraTS-SSA-00002-000", "SSA-Challenge-TrainingData", "SSA-Challenge-TrainingData_V2"),
        ("BraTS2025-MET", "BraTS-MET-00002-000", "MICCAI-LH-BraTS2025-MET-Challenge-Training",
         "MICCAI-LH-BraTS2025-MET-Challenge-corrected-labels_batch1"),
        ("BraTS2024-GLI", "BraTS-GLI-00005-100", "training_data1", "training_data1_v2"),
        ("BraTS2024-MEN-RT", "BraTS-MEN-RT-0000-1", "BraTS-MEN-RT-Train-v1", "BraTS-MEN-RT-Train-v2"),
    ],
)  # fmt: skip
def test_a_correction_beside_the_release_supersedes_it(tmp_path, release, case, earlier, later):
    touch_case(tmp_path, release, case, f"{earlier}/{case}")
    label = LAYOUTS[release].path(case, LABEL).name
    touch(tmp_path, f"{later}/{case}/{label}")
    (found,) = scan(tmp_path).cases
    assert found.problems == []
    assert found.files[LABEL] == tmp_path / later / case / label
    assert found.remarks == [f"label from {later}/{case}/{label} supersedes {earlier}/{case}/{label}"]


@pytest.mark.parametrize(
    ("release", "case", "kind"), [("FeTS2022", "FeTS2022_00001", "final_seg"), ("UCSF-BMSR", "100101A", "BraTS-seg")]
)
def test_the_final_label_supersedes_the_first(tmp_path, release, case, kind):
    touch_case(tmp_path, release, case, case)
    touch(tmp_path, f"{case}/{case}_{kind}.nii.gz")
    (found,) = scan(tmp_path).cases
    assert (found.files[LABEL].name, found.problems) == (f"{case}_{kind}.nii.gz", [])


def test_an_overlay_replaces_files_of_its_cases_and_adds_none(tmp_path):
    touch_case(tmp_path / "source", "BraTS2020", "BraTS20_Training_001")
    touch(tmp_path / "first", "BraTS20_Training_001_seg.nii.gz", "BraTS20_Training_002_seg.nii.gz")
    touch(tmp_path / "second", "deep/er/BraTS20_Training_001_seg.nii.gz")
    source = scan(tmp_path / "source", overlays=[tmp_path / "first", tmp_path / "second"])
    (found,) = source.cases
    assert found.files[LABEL] == tmp_path / "second/deep/er/BraTS20_Training_001_seg.nii.gz"
    assert found.files["T1"].is_relative_to(tmp_path / "source")
    assert source.unrecognised == [tmp_path / "first/BraTS20_Training_002_seg.nii.gz"]


def test_two_files_with_equal_claims_and_missing_sequences_are_problems(tmp_path):
    touch_case(tmp_path, "BraTS2020", "BraTS20_Training_001", "a/BraTS20_Training_001")
    touch(tmp_path, "b/BraTS20_Training_001/BraTS20_Training_001_t1.nii")
    touch(tmp_path, "c/BraTS20_Training_002/BraTS20_Training_002_t1.nii")
    first, second = scan(tmp_path).cases
    assert first.problems == [
        "duplicate T1: a/BraTS20_Training_001/BraTS20_Training_001_t1.nii.gz, "
        "b/BraTS20_Training_001/BraTS20_Training_001_t1.nii; keep one"
    ]
    assert second.problems == ["no T1ce and no T2 and no FLAIR"]


# Patients, grades, sites.


def test_the_name_mapping_joins_a_patient_across_releases_and_grades(tmp_path):
    touch_case(tmp_path, "BraTS2020", "BraTS20_Training_001")
    (tmp_path / "name_mapping.csv").write_text(
        "Grade,BraTS_2017_subject_ID,BraTS_2018_subject_ID,TCGA_TCIA_subject_ID,BraTS_2019_subject_ID,BraTS_2020_subject_ID\n"
        "LGG,Brats17_TCIA_101_1,Brats18_TCIA09_101_1,TCGA-DU-7304,BraTS19_TCIA09_101_1,BraTS20_Training_001\n"
        "HGG,NA,NA,NA,NA,BraTS20_Training_002\n"
    )
    (found,) = scan(tmp_path).cases
    assert (found.patient, found.grade) == ("BraTS20_Training_001", "LGG")
    assert found.known_as == ["TCGA-DU-7304", "TCIA09_101", "TCIA_101"]


def test_a_name_mapping_that_maps_nothing_is_refused(tmp_path):
    touch_case(tmp_path, "BraTS2020", "BraTS20_Training_001")
    (tmp_path / "survival_info.csv").write_text("Brats20ID,Age\nBraTS20_Training_001,60\n")
    assert scan(tmp_path).cases[0].known_as == []
    with pytest.raises(ValueError, match=r"survival_info.csv has no column such as BraTS_2020_subject_ID"):
        scan(tmp_path, name_mapping=tmp_path / "survival_info.csv")


def test_a_broken_table_is_an_error_only_where_the_user_names_it(tmp_path):
    touch_case(tmp_path, "BraTS2020", "BraTS20_Training_001")
    table = tmp_path / "notes.csv"
    table.write_text("BraTS_2020_subject_ID,Grade\n" + "x" * 200_000)  # csv takes 131072 characters at most
    assert len(scan(tmp_path).cases) == 1
    with pytest.raises(ValueError, match=r"notes.csv is no CSV table: field larger than"):
        scan(tmp_path, name_mapping=table)


def test_a_partitioning_names_the_site(tmp_path):
    touch_case(tmp_path, "FeTS2022", "FeTS2022_00001")
    (tmp_path / "partitioning_1.csv").write_text("Partition_ID,Subject_ID\n18,FeTS2022_00001\n")
    assert scan(tmp_path).cases[0].site == "18"


def test_grades_of_2012_and_2013_come_from_names_and_folders(tmp_path):
    touch_case(tmp_path / "a", "BraTS2012", "BRATS_LG0001")
    touch_case(tmp_path / "b", "BraTS2013", "HG_0001")
    touch_case(tmp_path / "b", "BraTS2013", "LG_0001")
    assert [case.grade for case in scan(tmp_path / "a").cases] == ["LGG"]
    assert [(case.name, case.grade) for case in scan(tmp_path / "b").cases] == [("HG_0001", "HGG"), ("LG_0001", "LGG")]


def test_a_single_volume_kept_in_four_dimensions_is_read_as_three(tmp_path):
    release, case = LAYOUTS["BraTS2020"], "BraTS20_Training_001"
    files = write_case(tmp_path, release, case)
    t2 = nibabel.load(files["T2"])
    nibabel.save(nibabel.Nifti1Image(np.asarray(t2.dataobj)[..., None], t2.affine), files["T2"])
    (found,) = scan(tmp_path).cases
    inspect_case(found, normalise=None, tolerance_mm=0.1)
    assert nibabel.load(files["T2"]).shape == (8, 9, 10, 1)
    assert found.problems == []
