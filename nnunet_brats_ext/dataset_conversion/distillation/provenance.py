"""The manifest of a distilled data set: where each case comes from, what was left out and why."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnunet_brats_ext import __version__
from nnunet_brats_ext.dataset_conversion.dataset_folder import RawDataset
from nnunet_brats_ext.dataset_conversion.distillation.examination import Examination
from nnunet_brats_ext.dataset_conversion.distillation.selection import Selection
from nnunet_brats_ext.dataset_conversion.distillation.sources import Candidate

FORMAT = 1


def distillation_manifest(
    labelled: RawDataset,
    kept: Mapping[str, Candidate],
    patients: Mapping[str, str],
    examined: Mapping[str, Examination],
    selection: Selection,
    folds_from: str,
    fingerprint: str,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Like that of a conversion, so that the same commands read it, with `kind`, `source` and `confidence` per case."""
    sequences = labelled.description.acquired
    packages = ("nnunetv2", "numpy", "SimpleITK", "scipy")
    return {
        "format": FORMAT,
        "made_by": f"nnunet-brats-ext {__version__}",
        "versions": {package: version(package) for package in packages},
        "fingerprint": fingerprint,
        "distillation": dict(options),
        "release": labelled.manifest.get("release"),
        "recognised": f"distilled from {labelled.folder.name}",
        "source": str(labelled.folder.resolve()),
        "label_mapping": labelled.manifest.get("label_mapping", {}),
        "folds": folds_from,
        "skipped": {},
        "unrecognised": [],
        "cases": {
            key: {
                **_entry(case, examined[key], patients[key], sequences),
                "remarks": selection.remarks.get(key, []),
            }
            for key, case in kept.items()
        },
        "dropped": [vars(dropped) for dropped in selection.dropped],
    }


def _entry(case: Candidate, found: Examination, patient: str, sequences: Sequence[str]) -> dict[str, Any]:
    return {
        "labelled": True,
        "kind": case.kind,
        "source": str(case.source.resolve()),
        "name_at_source": case.case,
        "patient": patient,
        "known_as": sorted(case.identities - {patient}),
        "grade": case.described.get("grade"),
        "site": case.described.get("site"),
        "files": {name: _file(path, found) for name, path in zip(sequences, case.images, strict=True)},
        "label": _file(case.label, found) if case.label else None,
        "labels": list(found.labels),
        "tumour_voxels": found.tumour_voxels,
        "confidence": found.confidence,
        "probabilities": str(case.npz.resolve()) if case.npz else None,
        "grid": found.grid.to_json(),
    }


def _file(path: Path, found: Examination) -> dict[str, str]:
    return {"path": str(path.resolve()), "sha256": found.sha256[path]}
