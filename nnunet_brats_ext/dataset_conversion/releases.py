"""Every BraTS release as one row of `RELEASES`: how it lays out its folders, names its files and numbers its labels.

Reading and writing share the table. `Release.recognise` turns a path into (case, role); `Release.path` turns them into
a path, which is how phantoms are written. A *role* is what a file holds: one of `SEQUENCES`, `LABEL`, or `STACK` where
a release keeps all sequences in one 4-D file. A *kind* is how the release spells a role in its file names.

    release = RELEASES["BraTS2020"]
    case = release.case_name(7)  # BraTS20_Training_007
    files = {role: folder / release.path(case, role) for role in release.roles}

`release.sequences` are the channels in our order, `release.scheme` the numbering of the labels, `release.stack` the
order of the sequences in a 4-D file (None where each has a file of its own).
"""

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePath, PurePosixPath
from typing import Any

from nnunet_brats_ext.brats import LABEL_SCHEMES, SEQUENCES, LabelScheme
from nnunet_brats_ext.storage.errors import UserError

LABEL = "label"
STACK = "stack"  # all sequences in one 4-D file

SRI24_ORIGIN_MM = (0.0, -239.0, 0.0)  # as ITK reads it (LPS); NIfTI's affine says (0, 239, 0)


@dataclass(frozen=True)
class Release:
    """One row: what a BraTS release looks like on disk, and what its challenge takes back.

    name: what `--release` takes.
    case: a case name; the group `patient`, where present, is what the time points of one patient share.
    case_format: a case name from {number}, {session}, {letter}, {grade} and {part}, which is `training` or `held_out`.
    numbered: the case names that this release gives out, where another release has the same form of names.
    kinds: kind -> role. The first kind of a role is how we write it; a later one, found beside it, supersedes it.
    location: a regular expression for the end of a path, folders included, where `{case}_{kind}` does not describe it.
    folder, file, label_file: where to write; fields {case}, {kind}, {grade}, {id} and the groups of `case`.
    hint: a folder name that only this release has.
    superseding: a folder, inside the source, whose files replace the same files found elsewhere.
    misnamed: file name as handed out -> as it should be.
    stray_labels: label found in some files -> the label that was meant; both as released.
    grades: the folders that grade the patients, the first for high grade.
    shape, origin_mm: the grid the challenge expects of a submission, in ITK's order; None where any will do.
    """

    name: str
    case: str
    case_format: str
    scheme_name: str
    folder: str
    kinds: Mapping[str, str]
    file: str = "{case}-{kind}.nii.gz"
    label_file: str | None = None
    location: str = r"(?P<case>{case})[-_](?P<kind>{kind})(?:\.nii(?:\.gz)?)?"
    held_out_folder: str | None = None
    training: str = ""
    held_out: str = ""
    first_session: int = 0
    numbered: str | None = None
    hint: str | None = None
    grades: tuple[str, ...] = ()
    stack: tuple[str, ...] | None = None
    superseding: str | None = None
    misnamed: Mapping[str, str] = field(default_factory=dict)
    stray_labels: Mapping[int, int] = field(default_factory=dict)
    shape: tuple[int, int, int] | None = None
    origin_mm: tuple[float, float, float] | None = None
    submission: str = "{case}.nii.gz"

    @property
    def scheme(self) -> LabelScheme:
        return LABEL_SCHEMES[self.scheme_name]

    @property
    def sequences(self) -> tuple[str, ...]:
        """The channels, in nnU-Net's order; one for radiotherapy planning, four elsewhere."""
        return SEQUENCES if self.stack else tuple(name for name in SEQUENCES if name in self.kinds.values())

    @property
    def roles(self) -> tuple[str, ...]:
        """The files of a labelled case: images first, the label last."""
        return (*((STACK,) if self.stack else self.sequences), LABEL)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        # Longest first, so that `final_seg` is not read as a case that ends in `_final`.
        kinds = "|".join(re.escape(kind) for kind in sorted(self.kinds, key=len, reverse=True))
        return re.compile("(?:^|/)" + self.location.replace("{case}", self.case).replace("{kind}", kinds) + "$")

    def recognise(self, path: PurePath) -> tuple[str, str] | None:
        """(case, kind) of a file, by its own name or else by the folders it lies in; None if it is not ours.

        The folders count because some copies wrap each scan in a folder of the scan's name.
        """
        path = path.with_name(self.misnamed.get(path.name, path.name))
        for place in (path, *path.parents):
            if match := self._pattern.search(place.as_posix()):
                return match["case"].replace("/", "_"), match["kind"]
        return None

    def is_case(self, case: str) -> bool:
        """Whether it is a case name of this release."""
        return re.fullmatch(self.case, case) is not None

    def gives_out(self, case: str) -> bool:
        """Whether this release, among those with the same form of names, numbers a case like that."""
        return re.fullmatch(self.numbered or self.case, case) is not None

    def groups(self, case: str) -> dict[str, str]:
        """What a case name says: `patient`, `session`, `site`, `grade`, as far as they are in it."""
        match = re.fullmatch(self.case, case)
        return {key: value for key, value in match.groupdict().items() if value} if match else {}

    def patient(self, case: str) -> str:
        """What all time points of the patient share; the case itself where its name has no patient."""
        return self.groups(case).get("patient", case)

    def case_name(self, number: int, session: int = 0, *, grade: str | None = None, training: bool = True) -> str:
        """The name of the case of that number; `session` counts the patient's time points from 0."""
        return self.case_format.format(
            number=number,
            part=self.training if training else self.held_out,
            session=self.first_session + session,
            letter="ABCDEFGH"[session % 8],
            grade=grade or (self.grades[0] if self.grades else ""),
        )

    def path(self, case: str, role: str, *, grade: str | None = None, training: bool = True) -> PurePosixPath:
        """Where a role of a case lies in a fresh copy of the release, from the folder that holds the release's root.

        `grade` is one of `grades` and only matters where the release sorts its cases by it.
        A sequence of a stacked release gives the 4-D file.
        """
        match = re.fullmatch(self.case, case)
        if match is None:
            raise ValueError(f"{case!r} is no case name of {self.name}, which has {self.case_format!r}")
        role = STACK if self.stack and role in SEQUENCES else role
        kind = next((kind for kind, held in self.kinds.items() if held == role), None)
        if kind is None:
            raise ValueError(f"{self.name} has no {role!r}, only {', '.join(self.roles)}")
        folder = self.folder if training else self.held_out_folder or self.folder
        file = (self.label_file if role == LABEL else None) or self.file
        if self.stack and role == STACK and not training:
            file = file.replace("imagesTr", "imagesTs")
        fields = {
            "case": case,
            "kind": kind,
            "grade": grade or (self.grades[0] if self.grades else ""),
            "id": 10000 + zlib.crc32(f"{case}{kind}".encode()) % 90000,  # the archive of 2013 and 2015 numbered files
            **match.groupdict(),
        }
        return PurePosixPath(folder.format(**fields), file.format(**fields))


_Fields = dict[str, Any]

_KINDS_2017 = {"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "FLAIR", "seg": LABEL}
_KINDS_2023 = {"t1n": "T1", "t1c": "T1ce", "t2w": "T2", "t2f": "FLAIR", "seg": LABEL}
_KINDS_ARCHIVE = {"MR_T1": "T1", "MR_T1c": "T1ce", "MR_T2": "T2", "MR_Flair": "FLAIR", "OT": LABEL}

_ARCHIVE: _Fields = dict(  # the Virtual Skeleton Database wrapped every scan in a folder of its own
    kinds=_KINDS_ARCHIVE,
    scheme_name="glioma_2013",
    file="VSD.Brain.XX.O.{kind}.{id}/VSD.Brain.XX.O.{kind}.{id}.mha",
    label_file="VSD.Brain_3more.XX.O.{kind}.{id}/VSD.Brain_3more.XX.O.{kind}.{id}.mha",
)
_ARCHIVE_FILE = r"/VSD\.Brain[^/]*?\.(?P<kind>{kind})(?:\.\d+)?(?:\.mha)?"
_SRI24: _Fields = dict(shape=(240, 240, 155), origin_mm=SRI24_ORIGIN_MM)
_GLIOMA_2017: _Fields = dict(kinds=_KINDS_2017, scheme_name="glioma_2017", file="{case}_{kind}.nii.gz", **_SRI24)
_GRADED: _Fields = dict(grades=("HGG", "LGG"))
_SITES = r"[A-Za-z0-9]+"  # 2013, TCIA01, CBICA, WashU, ...


def _cohort(label: str, scheme_name: str = "glioma_2023", **rest: Any) -> _Fields:
    """What the cohorts from 2023 on share: BraTS-<label>-<five digits>-<three digits of the time point>."""
    return dict(
        case=rf"(?P<patient>BraTS-{label}-\d{{5}})-(?P<session>\d{{3}})",
        case_format=f"BraTS-{label}-{{number:05d}}-{{session:03d}}",
        kinds=_KINDS_2023,
        scheme_name=scheme_name,
    ) | dict(rest)


_ROWS = (
    Release(
        name="BraTS2012",
        case=r"(?P<patient>BRATS_(?P<grade>HG|LG)\d{4})",
        case_format="BRATS_{grade}{number:04d}",
        kinds={"T1": "T1", "T1C": "T1ce", "T2": "T2", "FLAIR": "FLAIR", "truth": LABEL},
        location=r"(?P<case>{case})_(?P<kind>{kind})(?:\.mha)?",
        scheme_name="glioma_2012",
        folder="BRATS-1/Images/{case}",
        file="{case}_{kind}.mha",
        grades=("HG", "LG"),
    ),
    Release(
        name="BraTS2013",
        **_ARCHIVE,
        case=r"(?P<patient>(?P<grade>HG|LG)_(?P<number>\d{4}))",  # the two grades count from 1 each
        location=r"(?P<case>(?:HG|LG)/\d{4})" + _ARCHIVE_FILE,
        case_format="{grade}_{number:04d}",
        folder="BRATS-2/Image_Data/{grade}/{number}",
        grades=("HG", "LG"),
    ),
    Release(
        name="BraTS2015",
        **_ARCHIVE,
        **_GRADED,
        case=r"brats_(?P<patient>(?:2013|tcia)_pat\d+)_(?P<session>\d+)",
        location="(?P<case>{case})" + _ARCHIVE_FILE,
        case_format="brats_tcia_pat{number:03d}_{session:04d}",
        folder="BRATS2015_Training/{grade}/{case}",
        held_out_folder="BRATS2015_Testing/HGG_LGG/{case}",
        first_session=1,
    ),
    Release(
        name="BraTS2017",
        **_GLIOMA_2017,
        **_GRADED,
        case=rf"Brats17_(?P<patient>(?P<site>{_SITES})_[A-Za-z0-9]+)_(?P<session>\d+)",
        case_format="Brats17_TCIA_{number:03d}_{session}",
        folder="Brats17TrainingData/{grade}/{case}",
        held_out_folder="Brats17ValidationData/{case}",
        first_session=1,
    ),
    Release(
        name="BraTS2018",
        **_GLIOMA_2017,
        **_GRADED,
        case=rf"Brats18_(?P<patient>(?P<site>{_SITES})_[A-Za-z0-9]+)_(?P<session>\d+)",
        case_format="Brats18_TCIA01_{number:03d}_{session}",
        folder="MICCAI_BraTS_2018_Data_Training/{grade}/{case}",
        held_out_folder="MICCAI_BraTS_2018_Data_Validation/{case}",
        first_session=1,
    ),
    Release(
        name="BraTS2019",
        **_GLIOMA_2017,
        **_GRADED,
        case=rf"BraTS19_(?P<patient>(?P<site>{_SITES})_[A-Za-z0-9]+)_(?P<session>\d+)",
        case_format="BraTS19_TCIA01_{number:03d}_{session}",
        folder="MICCAI_BraTS_2019_Data_Training/{grade}/{case}",
        held_out_folder="MICCAI_BraTS_2019_Data_Validation/{case}",
        first_session=1,
    ),
    Release(
        name="BraTS2020",
        **_GLIOMA_2017,
        case=r"BraTS20_(?:Training|Validation|Testing)_\d{3}",
        case_format="BraTS20_{part}_{number:03d}",
        training="Training",
        held_out="Validation",
        folder="MICCAI_BraTS2020_TrainingData/{case}",
        held_out_folder="MICCAI_BraTS2020_ValidationData/{case}",
        misnamed={
            "W39_1998.09.19_Segm.nii": "BraTS20_Training_355_seg.nii",
            "W39_1998.09.19_Segm.nii.gz": "BraTS20_Training_355_seg.nii.gz",
        },
    ),
    Release(
        name="BraTS2021",
        **_GLIOMA_2017,
        case=r"(?P<patient>BraTS2021_\d{5})",
        case_format="BraTS2021_{number:05d}",
        folder="BraTS2021_Training_Data/{case}",
        held_out_folder="BraTS2021_ValidationData/{case}",
    ),
    Release(
        name="FeTS2021",
        **_GLIOMA_2017,
        case=r"FeTS21_(?:Training|Validation)_\d{3}",
        case_format="FeTS21_{part}_{number:03d}",
        training="Training",
        held_out="Validation",
        folder="MICCAI_FeTS2021_TrainingData/{case}",
        held_out_folder="MICCAI_FeTS2021_ValidationData/{case}",
    ),
    Release(
        name="FeTS2022",
        **_GLIOMA_2017 | dict(kinds={**_KINDS_2017, "final_seg": LABEL}),
        case=r"FeTS2022_\d{5}",
        case_format="FeTS2022_{number:05d}",
        folder="MICCAI_FeTS2022_TrainingData/{case}",
        held_out_folder="MICCAI_FeTS2022_ValidationData/{case}",
    ),
    Release(
        name="BraTS2023-GLI",
        **_cohort("GLI", **_SRI24),
        numbered=r"BraTS-GLI-\d{5}-0\d\d",
        hint=r"BraTS[-_]?2023|2023[-_]BraTS",
        folder="ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData/{case}",
        held_out_folder="ASNR-MICCAI-BraTS2023-GLI-Challenge-ValidationData/{case}",
    ),
    Release(
        name="BraTS2023-SSA",
        **_cohort("SSA", **_SRI24),
        folder="ASNR-MICCAI-BraTS2023-SSA-Challenge-TrainingData_V2/{case}",
        held_out_folder="ASNR-MICCAI-BraTS2023-SSA-Challenge-ValidationData/{case}",
        superseding=r"TrainingData_V\d",
    ),
    Release(
        name="BraTS2023-MEN",
        **_cohort("MEN", **_SRI24),
        folder="ASNR-MICCAI-BraTS2023-MEN-Challenge-TrainingData/BraTS-MEN-Train/{case}",
        held_out_folder="ASNR-MICCAI-BraTS2023-MEN-Challenge-ValidationData/{case}",
        superseding=r"BraTS-MEN-TRAIN-FIX-V\d",
    ),
    Release(
        name="BraTS2023-MET",
        **_cohort("MET", **_SRI24),
        hint=r"BraTS[-_]?2023|2023[-_]BraTS",
        folder="ASNR-MICCAI-BraTS2023-MET-Challenge-TrainingData/{case}",
        held_out_folder="ASNR-MICCAI-BraTS2023-MET-Challenge-ValidationData/{case}",
    ),
    Release(
        name="BraTS2023-PED",
        **_cohort("PED", **_SRI24),
        hint=r"BraTS[-_]?2023|2023[-_]BraTS",
        folder="ASNR-MICCAI-BraTS2023-PED-Challenge-TrainingData/{case}",
        held_out_folder="ASNR-MICCAI-BraTS2023-PED-Challenge-ValidationData/{case}",
    ),
    Release(  # after treatment; the same cases serve 2025
        name="BraTS2024-GLI",
        **_cohort("GLI", "resected_2024", shape=(182, 218, 182)),
        numbered=r"BraTS-GLI-\d{5}-1\d\d",
        hint=r"BraTS[-_]?2024|2024[-_]BraTS",
        folder="BraTS2024-BraTS-GLI-TrainingData/training_data1_v2/{case}",
        held_out_folder="BraTS2024-BraTS-GLI-ValidationData/validation_data/{case}",
        first_session=100,
        superseding=r"training_data1_v\d",
    ),
    Release(  # and 2025
        name="BraTS2024-PED",
        **_cohort("PED", "paediatric_2024"),
        hint=r"PEDs?[-_]?202[45]|BraTS[-_]?202[45]|202[45][-_]BraTS",
        folder="BraTS-PEDs2024_Training/{case}",
        held_out_folder="BraTS-PEDs2024_Validation/{case}",
    ),
    Release(
        name="BraTS2024-MET",
        **_cohort("MET", "resected_2024"),
        hint=r"BraTS[-_]?2024|2024[-_]BraTS",
        folder="MICCAI-BraTS2024-MET-Challenge-TrainingData_1/{case}",
        held_out_folder="MICCAI-BraTS2024-MET-Challenge-ValidationData/{case}",
    ),
    Release(
        name="BraTS2024-MEN-RT",
        case=r"(?P<patient>BraTS-MEN-RT-\d{4})-(?P<session>\d)",
        case_format="BraTS-MEN-RT-{number:04d}-{session}",
        kinds={"t1c": "T1ce", "gtv": LABEL},
        scheme_name="radiotherapy_2024",
        folder="BraTS-MEN-RT-Train-v2/{case}",
        held_out_folder="BraTS-MEN-RT-Val-v1/{case}",
        file="{case}_{kind}.nii.gz",
        first_session=1,
        superseding=r"BraTS-MEN-RT-Train-v[2-9]",
    ),
    Release(
        name="BraTS2024-GoAT",
        case=r"(?P<patient>BraTS-GoAT-\d{5})",
        case_format="BraTS-GoAT-{number:05d}",
        kinds=_KINDS_2023,
        scheme_name="glioma_2023",
        folder="MICCAI2024-BraTS-GoAT-TrainingData-With-GroundTruth/{case}",
        held_out_folder="MICCAI2024-BraTS-GoAT-ValidationData/{case}",
    ),
    Release(
        name="BraTS2025-GLI-PRE",
        **_cohort("GLI", shape=(182, 218, 182)),
        numbered=r"BraTS-GLI-\d{5}-0\d\d",
        hint=r"BraTS[-_]?2025|2025[-_]BraTS",
        folder="BraTS2025-GLI-PRE-Challenge-TrainingData/{case}",
        held_out_folder="BraTS2025-GLI-PRE-Challenge-ValidationData/{case}",
    ),
    Release(  # and 2026, whose validation cases lack the time point
        name="BraTS2025-MET",
        **_cohort("MET", "resected_2024", case=r"(?P<patient>BraTS-MET-\d{5})(?:-(?P<session>\d{3}))?"),
        hint=r"BraTS[-_]?202[56]|202[56][-_]BraTS",
        folder="MICCAI-LH-BraTS2025-MET-Challenge-Training/{case}",
        held_out_folder="MICCAI-LH-BraTS2025-MET-Challenge-ValidationData/{case}",
        superseding=r"corrected[-_ ]labels",
        stray_labels={6: 4},
    ),
    Release(  # the companion of BraTS2023-MET; a letter counts the time points
        name="UCSF-BMSR",
        case=r"(?P<patient>\d{6})(?P<session>[A-Z])",
        case_format="{number:06d}{letter}",
        kinds={"T1pre": "T1", "T1post": "T1ce", "T2Synth": "T2", "FLAIR": "FLAIR", "seg": LABEL, "BraTS-seg": LABEL},
        scheme_name="glioma_2023",
        folder="UCSF_BrainMetastases_TRAIN/{case}",
        file="{case}_{kind}.nii.gz",
    ),
    Release(
        name="MSD-Task01",
        case=r"BRATS_\d{3}",
        case_format="BRATS_{number:03d}",
        kinds={"imagesTr": STACK, "imagesTs": STACK, "labelsTr": LABEL},
        location=r"(?P<kind>{kind})/(?P<case>{case})(?:\.nii(?:\.gz)?)?",
        scheme_name="decathlon",
        folder="Task01_BrainTumour",
        file="imagesTr/{case}.nii.gz",
        label_file="labelsTr/{case}.nii.gz",
        stack=("FLAIR", "T1", "T1ce", "T2"),
    ),
)

RELEASES: Mapping[str, Release] = {release.name: release for release in _ROWS}


def find_release(name: str) -> Release:
    """The release of that name, in any capitals; an unknown one is an error that lists the known."""
    for known, release in RELEASES.items():
        if known.casefold() == name.casefold():
            return release
    raise UserError(f"no release is called {name!r}; known are {', '.join(RELEASES)}")
