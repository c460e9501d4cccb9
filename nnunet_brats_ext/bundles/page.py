"""What `segment` shows: a picture of each patient, tables of volumes and of their change, and one page of all."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from nnunet_brats_ext.bundles.contents import BundledSystem
from nnunet_brats_ext.bundles.measures import Change, change_rows, changes, places_in_time, volume_rows
from nnunet_brats_ext.evaluation.pictures import (
    REGION_COLOURS,
    HeadImage,
    PicturePanel,
    draw_grid,
    find_slices,
)
from nnunet_brats_ext.storage.csv_files import to_csv
from nnunet_brats_ext.storage.images import Grid, read_image
from nnunet_brats_ext.storage.output import partial_file, write_texts, writing

SUMMARY = PAGE, VOLUMES, TIMELINE = "index.html", "volumes.csv", "timeline.csv"
SHOWN = ("T1ce", "FLAIR")  # behind the outlines, where they are there


def draw_patient(
    path: Path,
    images: Path,
    sequences: Sequence[str],
    labels: np.ndarray,
    grid: Grid,
    regions: Mapping[str, tuple[int, ...]],
    title: str,
) -> None:
    """The axial slice with most tumour, of T1ce and FLAIR, each plain and with the outlines of all regions.

    images: the folder of CASE_0000.nii.gz and so on, in LPS as `labels` (z, y, x).
    """
    shown = [name for name in SHOWN if name in sequences] or list(sequences[:1])
    heads = []
    for name in shown:
        (file,) = images.glob(f"*_{sequences.index(name):04d}.nii.gz")
        heads.append(HeadImage.of(name, read_image(file).array, grid.spacing_mm))
    at = find_slices([labels], heads[0].box)[0]
    marked = heads[0].crop(labels[at])
    row = []
    for head in heads:
        grey = heads[0].crop(head.grey(head.image[at]))
        row += [PicturePanel(grey, head.name), PicturePanel(grey, "", marked)]
    caption = f"{title}, axial slice {at + 1} of {len(labels)}; the patient's right is on the left"
    figure = draw_grid([row], [""], regions, caption, heads[0].aspect)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial_file(path.with_name(path.stem), [".png"]) as partial:
            figure.savefig(f"{partial}.png", dpi=110, format="png")


def write_tables(
    out: Path,
    system: BundledSystem,
    cases: Sequence[Mapping[str, Any]],
    pictures: Mapping[str, Path],
    failed: Mapping[str, str],
) -> tuple[Path, Path, Path | None]:
    """Write the page and the tables of volumes and, where patients have several sessions, of their change.

    cases: what is noted of each. The paths of all three; None for a table that there is no need of.
    """
    found = changes(cases)
    content = {
        "title": system.about["title"],
        "note": system.about["note"],
        "licence": system.about["licence"],
        "cases": cases,
        "failed": failed,
        "pictures": {case: as_uri(path.read_bytes()) for case, path in pictures.items()},
        "patients": [_Timeline(patient, found) for patient in dict.fromkeys(one.patient for one in found)],
        "colours": REGION_COLOURS,
    }
    environment = Environment(
        loader=PackageLoader("nnunet_brats_ext.bundles", ""), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("page.html.jinja").render(content)
    files = {
        out / VOLUMES: to_csv(volume_rows(cases)),
        out / PAGE: page.encode("ascii", "xmlcharrefreplace").decode(),
    }
    timeline = out / TIMELINE if found else None
    if timeline:
        files[timeline] = to_csv(change_rows(found))
    write_texts(files)
    return out / PAGE, out / VOLUMES, timeline


def as_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


class _Timeline:
    """The sessions of a patient for the page: a table and a curve."""

    def __init__(self, patient: str, found: Sequence[Change]):
        self.patient = patient
        self.changes = [one for one in found if one.patient == patient]

    @property
    def curve(self) -> str:
        """The volumes of all regions over the sessions, as a picture."""
        sessions = list(dict.fromkeys(one.session for one in self.changes))
        places = dict(zip(sessions, places_in_time(sessions), strict=True))
        figure = Figure(figsize=(6.4, 3.2), layout="constrained", facecolor="white")
        axes = figure.subplots()
        for name, colour in zip(dict.fromkeys(one.name for one in self.changes), REGION_COLOURS, strict=False):
            own = [one for one in self.changes if one.name == name]
            axes.plot([places[one.session] for one in own], [one.ml for one in own], "o-", color=colour, label=name)
        most = max(one.ml for one in self.changes)
        axes.set(ylabel="volume (ml)", ylim=(0, 1.08 * most or 1), title=self.patient)
        many = len(sessions) > 4
        axes.set_xticks(list(places.values()), sessions, rotation=30 if many else 0, ha="right" if many else "center")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=110, format="png")
        return as_uri(buffer.getvalue())
