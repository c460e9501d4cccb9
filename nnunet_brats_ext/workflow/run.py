"""The command `run`: a recipe on a release, planned here and carried out by Snakemake."""

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from nnunet_brats_ext.dataset_conversion.layouts import LAYOUTS
from nnunet_brats_ext.dataset_conversion.scan import Source, scan
from nnunet_brats_ext.dataset_conversion.splits import count_patients
from nnunet_brats_ext.evaluation.presets import find_preset, fitting_preset
from nnunet_brats_ext.storage.errors import Notice, UserError, did_you_mean
from nnunet_brats_ext.storage.json_files import read_json, write_json
from nnunet_brats_ext.storage.nnunet import FOLDERS, SPLITS, datasets_with_id, read_splits
from nnunet_brats_ext.storage.options import Options, argument, option
from nnunet_brats_ext.storage.output import check_output, write_text, writing
from nnunet_brats_ext.storage.shared_options import dataset_id_option, device_option, gpu_memory_option
from nnunet_brats_ext.workflow.distilled import Folders, check_distilled
from nnunet_brats_ext.workflow.engine import Say, engine_options, follow, release_stale_lock
from nnunet_brats_ext.workflow.graph import build_graph
from nnunet_brats_ext.workflow.jobs import SMOKE_CASES, Setting
from nnunet_brats_ext.workflow.ownership import only_one
from nnunet_brats_ext.workflow.recipe import SUFFIXES, find_recipe, load_recipe, restricted, with_folders
from nnunet_brats_ext.workflow.recipe_parts import Recipe
from nnunet_brats_ext.workflow.state import GRAPH, Run, older_states, relative_to

PHANTOM_RELEASE = "BraTS2020"
RECIPE_OF_RUN = "recipe.yaml"  # the copy in its folder


@dataclass(frozen=True)
class RunOptions(Options):
    """What to run, on what, where, and on how much of a machine or cluster."""

    recipe: str = argument("a name or a YAML file; --copy writes one to edit", metavar="RECIPE")
    source: Path | None = argument("the release; smoke can do without", default=None, metavar="SOURCE")
    copy: Path | None = option(
        default=None, metavar="FILE", writes="file", help="write the recipe there to edit it, and run nothing"
    )
    dataset_id: int = dataset_id_option("first ID of data sets", 137)
    also: tuple[str, ...] = option(
        metavar="NAME=FOLDER",
        repeat=True,
        default=(),
        help="a further release, by the name that the recipe has for it (repeatable)",
    )
    folder: Path | None = option(
        "-o", default=None, metavar="FOLDER", writes="folder", help="of the run; default: runs/RECIPE"
    )
    scale: Literal["full", "smoke"] = option(
        default="full", help="smoke: tiny cases, two folds, two epochs, in folders of its own"
    )
    dry_run: bool = option(default=False, help="print every job and what it needs, and run nothing")
    executor: Literal["local", "slurm", "kubernetes"] = option(default="local", help="what runs the jobs")
    profile: Path | None = option(default=None, metavar="FOLDER", help="Snakemake profile of your cluster")
    jobs: int | None = option(default=None, at_least=1, help="at most so many at once")
    gpus: int | None = option(default=None, at_least=1, help="at most so many at once (default: all there are)")
    gpu_memory_gb: float | None = gpu_memory_option()
    folds: tuple[int, ...] | None = option(
        default=None, metavar="FOLD", at_least=0, help="only these, but for stages before others"
    )
    only: tuple[str, ...] = option(
        default=(),
        metavar="PREDICTION",
        help="score these alone, do only what they need, and submit what is among them",
    )
    device: str = device_option("cuda")

    @property
    def smoke(self) -> bool:
        return self.scale == "smoke"


def copy_recipe(name: str, target: str | Path) -> Path:
    """Write a recipe where the user can edit it."""
    target = Path(target)
    if target.suffix not in SUFFIXES:
        raise UserError(f"--copy {target}: a recipe's file ends in .yaml")
    if target.exists():
        raise UserError(f"--copy {target} exists already; choose another name")
    with writing(target):
        shutil.copyfile(find_recipe(name), target)
    return target


def plan_run(options: RunOptions) -> tuple[Recipe, Run]:
    """A recipe and its jobs for this source, machine and folder; nothing is written."""
    recipe = load_recipe(find_recipe(options.recipe))
    if options.only:
        recipe = restricted(recipe, options.only)
    if options.profile and not options.profile.is_dir():
        raise UserError(f"--profile {options.profile} is no folder; it should hold a config.yaml of Snakemake")
    folder = folder_of_run(options)
    source = source_of_run(options)
    layout = source.layout if source else LAYOUTS[PHANTOM_RELEASE]
    recipe = scored_as(recipe, layout.scheme_name, layout.name)
    folders = further_folders(options, recipe, source)
    environment = nnunet_folders(options, folder)
    raw, preprocessed, results = (Path(environment[name]) for name in FOLDERS)
    devices, gpus, cpus = resources_for(options)
    datasets = datasets_there(folder / raw, [options.dataset_id + i for i in range(len(recipe.data))])
    setting = Setting(
        raw, preprocessed, results, options.dataset_id, layout.title,
        unlabelled=source is None or any(not case.labelled for case in source.cases),
        source=Path(relative_to(source.root.resolve(), folder)) if source else None,
        smoke=options.smoke,
        device=options.device,
        gpus=gpus,
        cpus=cpus,
        folds=options.folds,
        gpu_memory_gb=options.gpu_memory_gb,
        patients=count_patients(source.cases) if source else SMOKE_CASES,
        datasets=datasets,
        splits=splits_there(datasets, [folder / preprocessed, folder / raw]),
        also={name: Path(relative_to(path.resolve(), folder)) for name, path in folders.also.items()},
    )  # fmt: skip
    jobs = build_graph(recipe, setting)
    check_distilled(with_folders(recipe, folders.also), jobs, folders)
    graph = read_json(folder / GRAPH) if (folder / GRAPH).is_file() else {}
    older = older_states(folder, graph, renewed=True)
    return recipe, Run(folder, jobs, environment, tuple(devices), asdict(options), older)


def folder_of_run(options: RunOptions) -> Path:
    name = Path(options.recipe).stem
    folder = (options.folder or Path("runs", f"{name}_smoke" if options.smoke else name)).resolve()
    check_output("-o", folder, "folder")
    return folder


def scored_as(recipe: Recipe, scheme: str | None, release: str) -> Recipe:
    """The recipe with a preset that knows the labels of the source; another one than it names is a `Notice`."""
    preset, cohort = fitting_preset(recipe.preset, recipe.cohort, scheme, release)
    if (preset, cohort) != (recipe.preset, recipe.cohort):
        words = f"the labels of {release} are scored by {preset} {cohort}, not by {recipe.preset} {recipe.cohort}"
        warnings.warn(f"{words} as the recipe says", Notice, stacklevel=2)
    scored = replace(recipe, preset=preset, cohort=cohort)
    planned, there = (list(find_preset(one.preset, one.cohort).regions) for one in (recipe, scored))
    return scored if planned == there else _without_rows_per_region(scored, planned, there)


def _without_rows_per_region(recipe: Recipe, planned: Sequence[str], there: Sequence[str]) -> Recipe:
    """The recipe where it is scored by other regions than those that its rows of a prediction per region are of."""
    rows = [name for name in recipe.evaluated if name in recipe.one_per_region]
    left = tuple(name for name in recipe.evaluated if name not in rows)
    if rows:
        words = f"{', '.join(rows)}: left out, as they are of {', '.join(planned)}, one prediction each, and "
        words += f"{recipe.preset} scores {', '.join(there)}"
        if not left:
            raise UserError(f"{words}; nothing else is scored")
        warnings.warn(words, Notice, stacklevel=3)
    return replace(recipe, evaluated=left, one_per_region={})


def source_of_run(options: RunOptions) -> Source | None:
    """The release, and what was found in it; None for phantoms, which the run makes."""
    if options.source is not None:
        return scan(options.source)
    if options.smoke:
        return None
    raise UserError(f"run {options.recipe}: name the folder of the release; only --scale smoke makes cases of its own")


def further_folders(options: RunOptions, recipe: Recipe, source: Source | None) -> Folders:
    """The folders that the run is given, by their names; what else the recipe could use is a `Notice`."""
    known, found = recipe.further_folders, dict[str, Path]()
    for given in options.also:
        name, _, path = given.partition("=")
        if name not in known or name in found or not path:
            takes = f"this recipe takes {', '.join(known)}" if known else "this recipe takes no further folder"
            raise UserError(f"--also {given}: expected NAME=FOLDER, each name once; {takes}{did_you_mean(name, known)}")
        if not Path(path).is_dir():
            raise UserError(f"--also {given}: {path} is no folder")
        found[name] = Path(path)
    for model in (model for name in recipe.submissions for model in recipe.models_of(name)):
        data = recipe.data[model.data]
        own = data.distill and any(not recipe.data[one].source for one in data.unlabelled or [next(iter(recipe.data))])
        if own and not found.keys() & set(data.exclude):
            words = f"{model.name} learns from the cases without label that it is submitted for, which is no fair test"
            advice = f"; --also {data.exclude[0]}=FOLDER keeps them out" if data.exclude else ""
            warnings.warn(words + advice, Notice, stacklevel=2)
    if left := [name for name in known if name not in found]:
        warnings.warn(
            f"the recipe can use further folders: --also {'=FOLDER --also '.join(left)}=FOLDER", Notice, stacklevel=2
        )
    further = {data.source for data in recipe.data.values()} & found.keys()
    return Folders(source, found, {name: scan(found[name]) for name in further if name})


def nnunet_folders(options: RunOptions, folder: Path) -> dict[str, str]:
    """nnU-Net's folders by their variables, relative where they lie in the run's.

    A trial run must never meet real models: it has folders of its own, whatever the environment says.
    """
    given = {} if options.smoke else os.environ
    places = {name: Path(given.get(name) or folder / name).resolve() for name in FOLDERS}
    if files := [f"{name}={place}" for name, place in places.items() if place.exists() and not place.is_dir()]:
        raise UserError(f"{files[0]} is a file; it should be a folder")
    return {name: relative_to(place, folder) for name, place in places.items()}


def run_recipe(
    recipe: str, source: str | Path | None = None, say: Say = lambda text: None, **options: Any
) -> tuple[Run, bool]:
    """Run what is left of a recipe on a release, and wait until it ends; the run, and whether a signal stopped it.

    `state.states_of` says what has become of its jobs. say: is given a line whenever a job starts or ends. options:
    those of `RunOptions`.
    """
    if sys.platform == "win32":  # jobs end by signals to process groups, which Windows lacks
        raise UserError("recipes need Linux or macOS; nnU-Net's and the other commands run on Windows")
    given = RunOptions(recipe, Path(source) if source else None, **options)
    _, run = plan_run(given)
    with writing(run.folder):
        for folder in (run.folder, *(run.folder / one for one in run.environment.values())):
            folder.mkdir(parents=True, exist_ok=True)
    with only_one(run.folder / ".lock", f"{run.folder} is in use") as locked:
        for name, noted in run.older.items():
            write_json(run.state_file(name), noted)
        run = replace(run, older={})
        run.write()
        own, file = run.folder / RECIPE_OF_RUN, find_recipe(given.recipe)
        if not (own.exists() and own.samefile(file)):  # it is, where that copy is run again
            write_text(own, file.read_text(encoding="utf-8"))
        release_stale_lock(run.folder, locked)
        profile = given.profile.resolve() if given.profile else None
        stopped = follow(run, engine_options(run, given.executor, profile, given.jobs, given.gpus), say)
    return run, stopped


# ---- the machine -----------------------------------------------------------------------------------------------------


def resources_for(options: RunOptions) -> tuple[list[str], int, int]:
    """The GPUs of this machine to share out, how many of them one job may have, and how many cores with each.

    A cluster's scheduler shares out its own, and its nodes are taken for large.
    """
    if options.executor != "local":
        return [], options.gpus or 8, 64
    devices = local_gpus()[: options.gpus] if options.device == "cuda" else []
    if options.device == "cuda" and not devices and not options.dry_run:
        raise UserError(
            f"-device {options.device}: this machine has no GPU; "
            "run with -device cpu, or with --executor slurm where GPUs are"
        )
    gpus = max(len(devices), 1)
    return devices, gpus, max((os.cpu_count() or 1) // gpus, 1)


def datasets_there(raw: Path, numbers: Sequence[int]) -> dict[int, str]:
    """The names of data sets that are there already, by ID."""
    found = {number: datasets_with_id(number, raw) for number in numbers}
    return {number: paths[0].name for number, paths in found.items() if paths}


def splits_there(datasets: Mapping[int, str], places: Sequence[Path]) -> dict[int, int]:
    """How many folds data sets have already, by ID: where nnU-Net reads them, else beside the data."""
    found = {}
    for number, name in datasets.items():
        files = [file for place in places if (file := place / name / SPLITS).is_file()]
        if files:
            found[number] = len(read_splits(files[0]))
    return found


def local_gpus() -> list[str]:
    """The GPUs that this process may use, without loading torch."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return list(takewhile(lambda device: device not in ("", "-1"), map(str.strip, visible.split(","))))
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(i) for i, _ in enumerate(line for line in listed.splitlines() if line.startswith("GPU"))]
