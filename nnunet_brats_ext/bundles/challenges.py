"""What challenges give to a container and take back: names, numbering and grid, as the layouts of releases have them.

A challenge is a release of `dataset_conversion/layouts.toml`; `plain` is any folder of patients. Loads no torch.
"""

from collections.abc import Mapping
from typing import NamedTuple

from nnunet_brats_ext.brats import LABEL_SCHEMES
from nnunet_brats_ext.dataset_conversion.layouts import LAYOUTS, Layout


class Challenge(NamedTuple):
    """How a challenge names, numbers and places what it gives and takes. layout: None reads any folder.

    scheme: of the labels that it takes; None is that of the system.
    """

    title: str
    layout: Layout | None
    scheme: str | None
    submission: str = "{case}.nii.gz"

    @property
    def sequences(self) -> tuple[str, ...]:
        return self.layout.sequences if self.layout else ()

    @property
    def grid(self) -> str:
        if self.layout is None or self.layout.shape is None:
            return "the patient's own"
        return " x ".join(map(str, self.layout.shape))

    @property
    def numbers(self) -> str:
        return LABEL_SCHEMES[self.scheme].numbers if self.scheme else "as in BraTS, or `--labels`"

    def example(self, sequence: str) -> str:
        """What a file of a sequence is called."""
        return f"{self.layout.files[sequence][0]}.nii.gz" if self.layout else "any name that says what it is"


PLAIN = "plain"
TITLES = {  # name of the challenge -> title and release
    "BraTS2021-GLI": ("BraTS 2021, 2022: glioma", "BraTS2021"),
    "FeTS2022": ("FeTS 2022", "FeTS2022"),
    "BraTS2023-GLI": ("BraTS 2023: glioma", "BraTS2023-GLI"),
    "BraTS2023-SSA": ("BraTS 2023 to 2025: Africa", "BraTS2023-SSA"),
    "BraTS2023-MEN": ("BraTS 2023: meningioma", "BraTS2023-MEN"),
    "BraTS2023-MET": ("BraTS 2023: metastases", "BraTS2023-MET"),
    "BraTS2023-PED": ("BraTS 2023: children", "BraTS2023-PED"),
    "BraTS2024-GLI": ("BraTS 2024 to 2026: glioma after treatment", "BraTS2024-GLI"),
    "BraTS2024-PED": ("BraTS 2024 to 2026: children", "BraTS2024-PED"),
    "BraTS2024-MET": ("BraTS 2024: metastases", "BraTS2024-MET"),
    "BraTS2024-MEN-RT": ("BraTS 2024: meningioma before radiotherapy", "BraTS2024-MEN-RT"),
    "BraTS2024-GoAT": ("BraTS 2024 to 2026: generalisability", "BraTS2024-GoAT"),
    "BraTS2025-GLI-PRE": ("BraTS 2025, 2026: glioma before treatment", "BraTS2025-GLI-PRE"),
    "BraTS2025-MET": ("BraTS 2025, 2026: metastases", "BraTS2025-MET"),
}
CHALLENGES: Mapping[str, Challenge] = {
    **{
        name: Challenge(title, LAYOUTS[release], LAYOUTS[release].scheme_name, LAYOUTS[release].submission)
        for name, (title, release) in TITLES.items()
    },
    PLAIN: Challenge("any folder of patients", None, None),
}


def table() -> str:
    """All challenges as a table in Markdown."""
    rows = [
        "| `--challenge` | what | files that go in | files that come out | labels | grid |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in CHALLENGES.items():
        shown = ", ".join(f"`{one.example(sequence)}`" for sequence in one.sequences) or one.example("T1")
        rows.append(f"| `{name}` | {one.title} | {shown} | `{one.submission}` | {one.numbers} | {one.grid} |")
    return "\n".join(rows)
