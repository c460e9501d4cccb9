"""Files of weights, read without executing anything that they name.

A pickle can name any function of any module and have it called. Here it may name tensors, arrays and plain containers;
objects of classes that a source of weights declares become `Inert`, which hold what was stored and can do nothing.
"""

import hashlib
import importlib
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nnunet_brats_ext.storage.errors import UserError

ALLOWED: Mapping[str, Collection[str]] = {
    "collections": ("OrderedDict", "defaultdict"),
    "builtins": ("set", "frozenset", "complex", "slice", "range", "int", "float", "list", "dict", "str", "tuple"),
    "__builtin__": ("set", "frozenset", "complex", "slice", "xrange"),
    "_codecs": ("encode",),
    "numpy": ("dtype", "ndarray"),
    "numpy.core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "torch": ("Size", "device", "float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool"),
    "torch._utils": ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"),
}
"""Module -> what a file of weights may name of it. torch itself resolves the names of its storages."""

TORCH_OBJECTS = ("torch.nn.modules.", "torch.nn.parallel.", "torch.optim.")
"""Modules whose objects become inert, where a whole network was stored."""

OF_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how files before torch 1.6 begin
STATE_KEYS = ("state_dict", "model_state_dict", "model", "network", "net")
"""Where the systems keep their weights in what they save."""


class Inert:
    """An object of a class that is not imported: what was stored of it, and no behaviour."""

    def __new__(cls, *arguments: Any, **named: Any) -> "Inert":
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **named: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class Refused(pickle.UnpicklingError):
    """A file names something that weights do not need."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, *arguments: Any, inert: Collection[str] = (), **named: Any):
        super().__init__(*arguments, **named)
        self.inert = tuple(inert)

    def find_class(self, module: str, name: str) -> Any:
        if name in ALLOWED.get(module, ()) or (module == "torch" and name.endswith("Storage")):
            place = {"numpy.core.multiarray": "numpy._core.multiarray", "__builtin__": "builtins"}.get(module, module)
            return getattr(importlib.import_module(place), {"xrange": "range"}.get(name, name))
        if f"{module}.".startswith(self.inert) and "." not in name:
            return type(name, (Inert,), {"__module__": module})
        raise Refused(f"it asks for {module}.{name}, which weights do not need")


def read_pickle(file: Path) -> Any:
    """The content of a pickle of plain containers and arrays; a UserError where it is damaged or asks for more."""
    try:
        with file.open("rb") as stream:
            return _Unpickler(stream).load()
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # arbitrary bytes raise arbitrary errors when they are unpickled
        raise _unreadable(file, error) from error


def read_torch(file: Path, inert: Collection[str] = ()) -> Any:
    """What `torch.save` wrote, on the CPU; a UserError where it is damaged, of another kind, or asks for more.

    inert: modules, ending in a dot, whose objects become `Inert`.
    """
    _require_torch_file(file)
    unpickler = partial(_Unpickler, inert=(*TORCH_OBJECTS, *inert))

    class Unpickler(_Unpickler):  # torch derives from it
        def __init__(self, *arguments: Any, **named: Any):
            super().__init__(*arguments, inert=(*TORCH_OBJECTS, *inert), **named)

    module = SimpleNamespace(
        __name__="nnunet_brats_ext.weights.reading",
        Unpickler=Unpickler,
        load=lambda stream, **named: unpickler(stream, **named).load(),
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of storages, and of classes whose source it cannot compare
            return torch.load(file, map_location="cpu", pickle_module=module, weights_only=False)
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # arbitrary bytes raise arbitrary errors when they are unpickled
        raise _unreadable(file, error) from error


def _require_torch_file(file: Path) -> None:
    with file.open("rb") as stream:
        begins_as_torch = stream.read(len(OF_TORCH)) == OF_TORCH
    if begins_as_torch:
        return
    if zipfile.is_zipfile(file):
        try:
            with zipfile.ZipFile(file) as archive:
                names = [name.rpartition("/")[2] for name in archive.namelist()]
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise _unreadable(file, error) from error
        if "constants.pkl" in names:
            raise UserError(
                f"{file} is a TorchScript program, not weights; import the checkpoint that it was made from"
            )
        if "data.pkl" in names:
            return
        raise UserError(f"{file} is an archive of other files; unpack it and give the folder or the checkpoint in it")
    if tarfile.is_tarfile(file):
        raise UserError(f"{file} is an archive of other files; unpack it and give the folder or the checkpoint in it")
    raise UserError(f"{file} is no file of torch, or it is cut short; give a checkpoint as torch.save wrote it")


def _unreadable(file: Path, error: Exception) -> UserError:
    reason = str(error).strip().partition("\n")[0]
    if isinstance(error, Refused) or "weights do not need" in reason:
        return UserError(f"{file} is refused: {reason}. Nothing of it was executed")
    return UserError(f"{file} is damaged, or no file of weights ({type(error).__name__}: {reason[:200]}); get it again")


def find_state(content: Any) -> dict[str, Tensor] | None:
    """The weights by name in what a system saved: a state dict, one under a usual key, or a whole stored network."""
    if isinstance(content, Inert):
        found = dict(_tensors_of(content, ""))
    elif isinstance(content, Mapping):
        found = {name: value for name, value in content.items() if isinstance(value, Tensor)}
        if len(found) < len(content) or not all(isinstance(name, str) for name in found):
            parts = (find_state(content[key]) for key in STATE_KEYS if key in content)
            return next(filter(None, parts), None)
    else:
        return None
    while found and all(name.startswith("module.") for name in found):  # of torch's DataParallel
        found = {name.removeprefix("module."): value for name, value in found.items()}
    return found or None


def _tensors_of(module: Inert, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The weights of a stored network, under the names of its state dict."""
    stored = vars(module)
    for kind in ("_parameters", "_buffers"):
        for name, value in (stored.get(kind) or {}).items():
            if isinstance(value, Tensor) and name not in stored.get("_non_persistent_buffers_set", ()):
                yield prefix + name, value.detach()
    for name, child in (stored.get("_modules") or {}).items():
        if isinstance(child, Inert):
            yield from _tensors_of(child, f"{prefix}{name}.")


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(stream)


def _digest(stream: Any) -> str:
    """The same before Python 3.11."""
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
