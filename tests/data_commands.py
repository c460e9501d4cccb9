"""The public functions in one process, and what their commands print."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from nnunet_brats_ext import dataset_conversion
from nnunet_brats_ext.cli import data
from nnunet_brats_ext.dataset_conversion.conversion import ConvertOptions
from nnunet_brats_ext.dataset_conversion.restoration import RestoreOptions
from nnunet_brats_ext.storage.options import Options


def convert(source: Any, dataset_id: int, **options: Any) -> Path:
    """The folder of a converted data set."""
    return dataset_conversion.convert(source, dataset_id, **{"processes": 1} | options).folder


def restore(predictions: Path | str, out: Path | str, **options: Any) -> list[Path]:
    """The files of a submission."""
    return list(dataset_conversion.restore(predictions, out, **{"processes": 1} | options).files)


def manifest_of(dataset: Path) -> dict[str, Any]:
    return json.loads((dataset / "manifest.json").read_text())


def printed(command: Any, options: Options) -> str:
    """What a command prints, in lines as long as needed."""
    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(stream):
        patch.setenv("COLUMNS", "10000")
        command(options)
    return stream.getvalue()


def printed_by_convert(source: Any, dataset_id: int, **options: Any) -> str:
    return printed(data.run_convert, ConvertOptions(source, dataset_id, **{"processes": 1} | options))


def printed_by_restore(predictions: Path, out: Path, **options: Any) -> str:
    return printed(data.run_restore, RestoreOptions(predictions, out, **{"processes": 1} | options))
