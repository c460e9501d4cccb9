"""Papers as data: what a `trainers/<paper>/paper.py` may say, and how papers are found. Imports nothing heavy.

Papers are the folders `trainers/*/paper.py` of this package and, in the same form, those that a user has put into a
folder of `nnUNet_extTrainer`, as `paper.py` or `<paper>/paper.py`. Nobody keeps a second list of papers, trainers,
configurations, tilings, test-time symmetries or published rules: whoever needs one asks here.
"""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from io import StringIO
from math import prod
from pathlib import Path
from traceback import extract_tb
from types import MappingProxyType, ModuleType
from typing import Any, Literal

from nnunet_brats_ext.storage.errors import UserError, did_you_mean

FILE, RECIPE = "paper.py", "recipe.yaml"
EXTERNAL = "nnUNet_extTrainer"  # nnU-Net's variable: folders with trainers of the user's own
HERE = Path(__file__).parent / "trainers"
NNUNETS_OWN = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")  # configurations

GIB = 2**30  # what nnU-Net and the makers of GPUs call a GB of their memory
RESERVE_BYTES = GIB  # CUDA's context, workspaces of its libraries, fragmentation: assumed, not measured
Precision = Literal["fp32", "mixed"]
Source = Literal["text", "release"]
Sizes = tuple[int, ...]


# ---- what a paper says ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Footprint:
    """What one step of training a network keeps in memory, at the width of its paper and with halvings of all axes.

    `benchmarks/memory.py` counts these constants; its column "B/voxel" at 128 x 128 x 128 is `bytes_per_voxel`.

    parameters: plus `parameters_per_voxel` of the patch, where fully connected layers depend on its size.
    optimiser_state: values per parameter; Adam 2, momentum 1.
    bytes_per_voxel: of the patch, per sample and by precision, at the peak of the step.
    """

    parameters: int
    optimiser_state: int
    bytes_per_voxel: Mapping[Precision, float]
    parameters_per_voxel: float = 0

    def constant_bytes(self, patch_size: Sequence[int], precision: Precision = "mixed") -> float:
        """Weights and the optimiser's state; mixed precision keeps a copy of the weights in 16 bits."""
        per_parameter = 4 * (1 + self.optimiser_state) + (2 if precision == "mixed" else 0)
        return per_parameter * self._parameters(patch_size)

    def step_bytes(self, patch_size: Sequence[int], batch_size: int, precision: Precision = "mixed") -> float:
        """The peak of a step without the GPU's reserve.

        The activations are gone by the time all gradients are there: the larger of the two counts.
        """
        activations = batch_size * prod(patch_size) * self.bytes_per_voxel[precision]
        return self.constant_bytes(patch_size, precision) + max(activations, 4 * self._parameters(patch_size))

    def gpu_gb(self, patch_size: Sequence[int], batch_size: int) -> float:
        """GPU memory in GB of training as nnU-Net does on CUDA, in mixed precision; `batch_size` of this GPU."""
        return (RESERVE_BYTES + self.step_bytes(patch_size, batch_size)) / GIB

    def _parameters(self, patch_size: Sequence[int]) -> float:
        return self.parameters + self.parameters_per_voxel * prod(patch_size)


@dataclass(frozen=True)
class Configuration:
    """What a paper trains on, on top of a configuration of nnU-Net; unless resampled, it shares its preprocessed data.

    patch_size: (z, y, x). None is the whole slice or volume, that is the largest case. Never more than that.
    batch_size: of all GPUs together, as nnU-Net counts it.
    poolings: halvings that the paper's network, branches included, needs its patch to allow.
    strides: where the network's own must be kept; None follows nnU-Net's rule for the patch.
    resampled: on data of its own, resampled so that the largest case fills the patch and every case is whole in it.
    footprint: of the network; None until it has been counted.
    """

    name: str
    patch_size: Sizes | None
    batch_size: int
    poolings: int
    base: str = "3d_fullres"
    strides: tuple[Sizes, ...] | None = None
    previous_stage: str | None = None
    resampled: bool = False
    footprint: Footprint | None = None
    paper: str = ""  # filled in when papers are found


@dataclass(frozen=True)
class Prediction:
    """How a trainer's network predicts a case, unless the user asks for something else.

    tiling: `sliding` is nnU-Net's; others are names of `inference.tilings` or of a paper's `tilings`.
    symmetries: what is averaged over, test-time augmentation; `mirror` is nnU-Net's, `none` predicts once.
    kept: the central part of a tile that a tiling of such tiles keeps; None is half of it.
    """

    tiling: str = "sliding"
    symmetries: str = "mirror"
    kept: Sizes | None = None


@dataclass(frozen=True)
class TrainerFacts:
    """What the package knows about a trainer class without importing it.

    name: of the class. configuration: that it is for. summary: what it changes, for tables. parameters: of its network
    at inference, for four channels (and the previous stage's labels) and three regions; None where plans decide.
    snapshot_epochs: after how many epochs to keep the weights, as checkpoint_epoch_N.pth; the environment may name
    more. previous_stage: in a cascade, the trainer of the previous stage; None is the trainer itself, as in nnU-Net.
    starts_from: the trainer whose final weights, of the same fold and configuration, training starts from.
    needs: a package that only an extra of the same name installs.
    attention: what shows where its network looks, as `FILE.py:NAME` beside paper.py; None has nothing to show.
    as_written_of: the trainer of which it is the variant by the paper's text, see `as_written`.
    """

    name: str
    configuration: str
    summary: str
    parameters: int | None = None
    prediction: Prediction = Prediction()
    snapshot_epochs: tuple[int, ...] = ()
    previous_stage: str | None = None
    starts_from: str | None = None
    needs: str | None = None
    attention: str | None = None
    as_written_of: str | None = None
    paper: str = ""  # filled in when papers are found

    @property
    def missing(self) -> str | None:
        """A sentence with the command that installs what the trainer needs, or None where that is there."""
        if self.needs is None or find_spec(self.needs):
            return None
        return f"{self.name} needs {self.needs}, which is not installed: pip install 'nnunet-brats-ext[{self.needs}]'"


def as_written(facts: TrainerFacts, **changes: Any) -> TrainerFacts:
    """The row of `...AsWrittenTrainer`: the same trainer by the paper's text, where that and the release disagree."""
    own = {
        "name": f"{facts.name.removesuffix('Trainer')}AsWrittenTrainer",
        "summary": f"{facts.name} by the paper's text, where text and release disagree",
        "as_written_of": facts.name,
    }
    return replace(facts, **(own | changes))


@dataclass(frozen=True)
class Difference:
    """Something of training or network that the text of a paper and its authors' release have differently.

    text, release: what each of them has, in a few words. default: what trainers follow unless they say otherwise.
    """

    text: str
    release: str
    default: Source = "release"


@dataclass(frozen=True)
class Symmetry:
    """Mirror along `flips`, then turn the axial plane by `quarter_turns`; axes counted from the end, -3 is z."""

    flips: tuple[int, ...] = ()
    quarter_turns: int = 0
    weight: float = 1.0


RegionScores = Mapping[str, Mapping[str, float]]
"""Region -> metric -> value; metrics as `evaluate` names them, Dice and other shares 0 to 1."""


@dataclass(frozen=True)
class PublishedResult:
    """A row of a paper's tables, and what of the paper's recipe stands beside it.

    scores: means. deviations, medians, ranges: what else the row has; over: of cases, of the means of folds, or of the
    means of single models. trainer: whose row it is; None of several. prediction: of the recipe, the row's counterpart;
    over models it is one with `each`. absent: instead, the reason why the recipe has none, as the paper's card says it.
    """

    system: str
    data: str
    scores: RegionScores = field(default_factory=dict)
    trainer: str | None = None
    table: str = ""
    prediction: str = ""
    absent: str = ""
    deviations: RegionScores = field(default_factory=dict)
    medians: RegionScores = field(default_factory=dict)
    ranges: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    over: Literal["cases", "folds", "models"] = "cases"

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Region and metric of all that it has."""
        given: tuple[Mapping[str, Mapping[str, Any]], ...] = (self.scores, self.deviations, self.medians, self.ranges)
        found = [(region, metric) for one in given for region, metrics in one.items() for metric in metrics]
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Paper:
    """One publication: everything that the rest of the package wants to know about it.

    differences: name -> where text and release disagree; `follows` of a trainer says which of them it takes.
    rules: name -> published post-processing, as rule files hold it. tilings: name -> `FILE.py:NAME` beside paper.py.
    symmetries: name -> what is averaged over. folder, key: filled in when papers are found.
    """

    title: str
    authors: str
    year: int
    link: str
    trainers: tuple[TrainerFacts, ...]
    configurations: tuple[Configuration, ...] = ()
    differences: Mapping[str, Difference] = field(default_factory=dict)
    rules: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    tilings: Mapping[str, str] = field(default_factory=dict)
    symmetries: Mapping[str, tuple[Symmetry, ...]] = field(default_factory=dict)
    results: tuple[PublishedResult, ...] = ()
    key: str = ""
    folder: Path = Path()

    @property
    def short(self) -> str:
        """Authors and year, as tables name a paper."""
        return f"{self.authors} {self.year}"

    def switches(self, *names: str) -> dict[str, Difference]:
        """Those of its `differences` that change something in a trainer, which declares them."""
        return {name: self.differences[name] for name in names}

    @property
    def recipe(self) -> Path | None:
        path = self.folder / RECIPE
        return path if path.is_file() else None

    def load(self, place: str) -> Any:
        """The object that `FILE.py:NAME` names, beside paper.py."""
        file, _, name = place.partition(":")
        return getattr(_load_module(self.folder / file), name)


# ---- finding --------------------------------------------------------------------------------------------------------


def find_papers(external: str | None = None) -> Mapping[str, Paper]:
    """Key -> paper, of this package and of the user's own; the key is the name of the paper's folder.

    external: the folders with the user's own, as in a path variable; None is what `nnUNet_extTrainer` says.
    """
    return _find_papers(os.environ.get(EXTERNAL, "") if external is None else external)


@lru_cache(maxsize=4)
def _find_papers(external: str) -> Mapping[str, Paper]:
    papers: dict[str, Paper] = {}
    trainers: dict[str, Path] = {}
    for file in [*sorted(HERE.glob(f"*/{FILE}")), *_external_files(external)]:
        paper = _read_paper(file)
        if paper.key in papers:
            raise UserError(f"{file} and {papers[paper.key].folder / FILE} are both called {paper.key!r}; rename one")
        for trainer in paper.trainers:
            if trainer.name in trainers:
                raise UserError(f"{file} and {trainers[trainer.name]} both have the trainer {trainer.name}; rename one")
            trainers[trainer.name] = file
        papers[paper.key] = paper
    known = [*NNUNETS_OWN, *(one.name for paper in papers.values() for one in paper.configurations)]
    for paper in papers.values():
        for trainer in paper.trainers:
            if trainer.configuration not in known:
                hint = did_you_mean(trainer.configuration, known)
                words = f"{trainer.name} is for the configuration {trainer.configuration!r}, which no paper has{hint}"
                raise UserError(f"{paper.folder / FILE}: {words}")
    return MappingProxyType(papers)


def _external_files(external: str) -> list[Path]:
    folders = [Path(folder) for folder in external.split(os.pathsep) if folder.strip()]
    return [file for folder in folders for file in (folder / FILE, *sorted(folder.glob(f"*/{FILE}"))) if file.is_file()]


def _read_paper(file: Path) -> Paper:
    try:
        paper = _load_module(file).PAPER
    except Exception as error:
        if file.is_relative_to(HERE):
            raise
        lines = [one.lineno for one in extract_tb(error.__traceback__) if one.filename == str(file)]
        place = f"{file}, line {lines[-1]}," if lines else str(file)
        raise UserError(f"{place} cannot be used: {type(error).__name__}: {error}") from error
    if not isinstance(paper, Paper):
        raise UserError(f"{file}: PAPER is {paper!r}; expected a Paper of nnunet_brats_ext.papers")
    key = file.parent.name
    configurations = tuple(replace(one, paper=key) for one in paper.configurations)
    trainers = tuple(replace(one, paper=key) for one in paper.trainers)
    return replace(paper, key=key, folder=file.parent, configurations=configurations, trainers=trainers)


def _load_module(file: Path) -> ModuleType:
    """A file of this package under its own name; one of the user's under a name of its path."""
    if file.is_relative_to(HERE):
        name = ".".join(file.relative_to(HERE.parents[1]).with_suffix("").parts)
        return importlib.import_module(name)
    name = f"nnunet_brats_ext_external_{file.parent.name}_{file.stem}_{abs(hash(str(file))):x}"
    if name not in sys.modules:
        spec = spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise UserError(f"{file} is no Python file that can be loaded")
        module = module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def find_paper(key: str) -> Paper:
    """The paper of that key; an unknown one is an error that lists those there are."""
    papers = find_papers()
    if key not in papers:
        raise UserError(f"no paper {key!r}; there are {', '.join(papers)}{did_you_mean(key, papers)}")
    return papers[key]


def configurations() -> dict[str, Configuration]:
    """Name -> configuration, of all papers."""
    return {one.name: one for paper in find_papers().values() for one in paper.configurations}


def stages_of(name: str) -> dict[str, str | list[str]]:
    """How nnU-Net's plans link a configuration: `previous_stage`, and `next_stage`, of which there may be several."""
    every = configurations()
    after = [one.name for one in every.values() if one.previous_stage == name]
    stages = {"previous_stage": every[name].previous_stage, "next_stage": after[0] if len(after) == 1 else after}
    return {key: stage for key, stage in stages.items() if stage}


def trainers() -> dict[str, TrainerFacts]:
    """Class name -> facts, of the trainers of all papers."""
    return {one.name: one for paper in find_papers().values() for one in paper.trainers}


def published_rules() -> dict[str, Sequence[Mapping[str, Any]]]:
    """Name -> published post-processing rules, of all papers."""
    return {name: rules for paper in find_papers().values() for name, rules in paper.rules.items()}


def symmetries() -> dict[str, tuple[Symmetry, ...]]:
    """Name -> test-time symmetries that only a paper has."""
    return {name: maps for paper in find_papers().values() for name, maps in paper.symmetries.items()}


def tilings() -> dict[str, tuple[Paper, str]]:
    """Name -> paper and place of a tiling that only this paper has."""
    return {name: (paper, place) for paper in find_papers().values() for name, place in paper.tilings.items()}


def facts_of_class(trainer: type) -> TrainerFacts:
    """The facts of a trainer class: its own, or those of the nearest class it derives from.

    Own facts are those of a paper, or a class attribute `facts`. A class that derives from none, such as nnU-Net's own
    trainers, predicts as nnU-Net does.
    """
    known = trainers()
    for one in trainer.__mro__:
        if isinstance(own := vars(one).get("facts"), TrainerFacts):
            return replace(own, name=trainer.__name__)
        if one.__name__ in known:
            return replace(known[one.__name__], name=trainer.__name__)
    return TrainerFacts(trainer.__name__, "3d_fullres", "")


def find_trainer(name: str) -> TrainerFacts:
    """The facts of a trainer by its name: of a paper, or of a class that nnU-Net finds (which loads torch)."""
    if name in (known := trainers()):
        return known[name]
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    try:
        return facts_of_class(find_trainer_class(name))
    except RuntimeError as error:
        found = {*known, *_names_with_subclasses(nnUNetTrainer)}  # nnU-Net has imported all of them in its search
        raise UserError(
            f"nnU-Net finds no trainer {name!r}{did_you_mean(name, found)}; `nnunet_brats papers` lists ours, and "
            f"{EXTERNAL} names the folders of your own"
        ) from error


def find_trainer_class(name: str) -> Any:
    """The trainer class that nnU-Net finds under a name, which loads torch; a RuntimeError where it finds none.

    nnU-Net imports all trainers of its own first, and timm for one of them, which takes a second. A paper's trainer is
    none of them, so that it is looked for in the other folders alone.
    """
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    with redirect_stdout(StringIO()):  # nnU-Net prints where it looks
        folders = os.environ.get(EXTERNAL, "").split(os.pathsep) if name in trainers() else []
        for folder in filter(os.path.isdir, folders):
            # As nnU-Net searches it: what was imported is forgotten, so that the next folder may have the same names.
            if found := recursive_find_python_class(folder, name, None, cleanup_imports_from_base_folder=True):
                return found
        return recursive_find_trainer_class_by_name(name)


def _names_with_subclasses(trainer: type) -> set[str]:
    subclasses: list[type] = trainer.__subclasses__()
    return {trainer.__name__, *(name for one in subclasses for name in _names_with_subclasses(one))}
