"""`segment`: patients in, label maps, volumes, pictures and a page out. No folders of nnU-Net, no environment."""

import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from glob import escape
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch

from nnunet_brats_ext.brats import remap
from nnunet_brats_ext.bundles.archive import Bundle, open_bundle
from nnunet_brats_ext.bundles.challenges import CHALLENGES
from nnunet_brats_ext.bundles.contents import BundledSystem, RulesPrediction
from nnunet_brats_ext.bundles.measures import Measure, measure
from nnunet_brats_ext.bundles.numbering import numbers_written
from nnunet_brats_ext.bundles.options import SegmentOptions
from nnunet_brats_ext.bundles.page import SUMMARY, draw_patient, write_tables
from nnunet_brats_ext.bundles.patients import FoundPatients, ReadyPatient, find_patients, make_ready, named_patient
from nnunet_brats_ext.bundles.systems import SystemAtWork, SystemOutput, require_trainers
from nnunet_brats_ext.bundles.time_limits import TimeLimit
from nnunet_brats_ext.dataset_conversion.checking import check_case
from nnunet_brats_ext.dataset_conversion.scan import SourceCase
from nnunet_brats_ext.inference.networks import Machine
from nnunet_brats_ext.inference.outputs import RunSettings, is_whole, locked, predictions_in
from nnunet_brats_ext.inference.predictor import find_device
from nnunet_brats_ext.storage.errors import Notice, UserError, shorten
from nnunet_brats_ext.storage.images import read_label_map, read_probabilities
from nnunet_brats_ext.storage.json_files import read_json, to_json, write_json
from nnunet_brats_ext.storage.output import partial_file, writing
from nnunet_brats_ext.storage.parallel import progress_shown

SETTINGS, DETAILS, PICTURES, PROBABILITIES = "segment.json", "details", "pictures", "probabilities"
ENDING = ".nii.gz"
Say = Callable[[str], object]


@dataclass(frozen=True)
class SegmentedPatient:
    """A case that was segmented. label_map, picture, probabilities: files. details: all that is noted of it."""

    case: str
    label_map: Path
    details: Mapping[str, Any]
    picture: Path | None = None
    probabilities: Mapping[str, Path] = field(default_factory=dict)

    @property
    def volumes_ml(self) -> dict[str, float]:
        """Region or label -> its volume."""
        return {one["name"]: one["ml"] for one in self.details["measures"]}


@dataclass
class Segmentation:
    """What came of a call. patients: by case. failed: case -> why. page, volumes, timeline: files, where written."""

    out: Path
    patients: dict[str, SegmentedPatient] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    before: list[str] = field(default_factory=list)
    page: Path | None = None
    volumes: Path | None = None
    timeline: Path | None = None

    def __getitem__(self, case: str) -> SegmentedPatient:
        return self.patients[case]


def segment(bundle: Path | str, *patients: Path | str, out: Path | str, **options: Any) -> Segmentation:
    """Segment patients by a bundled system; options: the fields of `SegmentOptions`. It prints nothing.

    A patient that fails does not stop the others; `failed` of the result says why.
    """
    asked = SegmentOptions(bundle=Path(bundle), patients=tuple(map(Path, patients)), out=Path(out), **options)
    return segment_patients(asked)


def segment_patients(options: SegmentOptions, say: Say = lambda line: None) -> Segmentation:
    """The same with its options in one object. say: is given a line first, and one for each patient."""
    begun = time.monotonic()
    with open_bundle(options.bundle) as bundle:  # first, because folders of many patients take longer to look through
        require_trainers(bundle.system)
        found = patients_of(options)
        work = _Work(bundle, options, say, begun)
        for line in found.evidence:
            say(line)
        settings = RunSettings(options.out / SETTINGS, work.settings(), options.overwrite)
        work.check(found.cases, settings)
        with locked(options.out):
            result = work.run(found.cases, settings)
    return result


def patients_of(options: SegmentOptions) -> FoundPatients:
    """The cases that the options name."""
    files = {"T1": options.t1, "T1ce": options.t1ce, "T2": options.t2, "FLAIR": options.flair}
    named = {sequence: path for sequence, path in files.items() if path is not None}
    if named and options.patients:
        raise UserError(f"{options.patients[0]}: name folders, or files with --t1 and so on, not both")
    if named:
        return FoundPatients([named_patient(named, options.name)], [])
    if not options.patients:
        raise UserError("missing: PATIENT, a folder, or the files of one with --t1, --t1ce, --t2 and --flair")
    release, any_name = options.release, options.any_name
    challenge = CHALLENGES[options.challenge] if options.challenge else None
    if challenge and challenge.layout and not release and not options.layout:
        return find_patients(options.patients, challenge.layout.name, any_name=True, or_any=True)
    return find_patients(options.patients, release, options.layout, any_name)


class _Work:
    """One call: its system, its machine, and what becomes of its patients."""

    def __init__(self, bundle: Bundle, options: SegmentOptions, say: Say, begun: float):
        self.bundle, self.options, self.say = bundle, options, say
        self.full = bundle.system.with_probabilities() if options.probabilities else bundle.system
        machine = Machine(find_device(options.device).type, processes=0, trusted=True)
        self.machine, self.system = machine, SystemAtWork(bundle, machine, options.precision)
        self.description = self.system.description
        self.numbers = numbers_written(bundle.system, options.labels, options.challenge)
        self.names = {int(label): name for label, name in bundle.system.about["labels"].items()}
        self.regions = {name: tuple(labels) for name, labels in bundle.system.about["regions"].items()}
        self.challenge = CHALLENGES[options.challenge] if options.challenge else None
        self.begun = begun
        self.result = Segmentation(options.out)

    def settings(self) -> dict[str, Any]:
        """What decides the result."""
        kept = ("labels", "precision", "time_limit", "missing", "probabilities")
        return {"bundle": self.bundle.sha256, **{name: getattr(self.options, name) for name in kept}}

    # ---- all patients ------------------------------------------------------------------------------------------------

    def run(self, cases: Sequence[SourceCase], settings: RunSettings) -> Segmentation:
        out = self.options.out
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
        self.check(cases, settings)  # again, now that no other run writes
        if self.options.overwrite:
            self._clear(cases, settings)
        left = [case for case in cases if self.options.overwrite or not self._is_there(case)]
        self.result.before = [case.name for case in cases if case not in left]
        if left:
            self.say(f"to segment: {len(left)}")
        limit = self._limit(len(left))
        queue = list(left)
        while queue:
            case = queue.pop(0)
            done = case.name in self.result.patients
            level = limit.next_level(len(queue) + 1, done) if limit else 0
            if level is None:
                break
            patient = self._segment(case, limit.systems[level] if limit else self.full)
            if limit and patient and not done:
                if limit.per_cost is None and len(limit.systems) > 1:
                    queue.append(case)  # by more networks, if there is time in the end
                limit.measure(level, patient.details["seconds"], patient.details["network_seconds"])
            if patient and not self.options.challenge:
                settings.note()
        for case in cases:
            if case.name not in self.result.failed and case.name not in self.result.patients:
                self._read_again(case)
        if not self.options.challenge and self.result.patients:
            self._write_summary(cases)
        return self.result

    def check(self, cases: Sequence[SourceCase], settings: RunSettings) -> None:
        """A UserError where the folder holds what these cases may not join, or their names with other files."""
        if self.options.challenge:  # nothing is noted beside its label maps
            return
        settings.check()
        if not self.options.overwrite:
            for case in cases:
                if self._is_there(case):
                    self._require_same_files(case)
            return
        own = {self.label_map(case).name for case in cases}
        others = sorted(path.name for path in predictions_in(settings.out) if path.name not in own)
        noted, content = read_json(settings.file) if others else {}, json.loads(to_json(settings.content))
        if differing := [key for key in {**content, **noted} if others and noted.get(key) != content.get(key)]:
            raise UserError(
                f"{settings.out} holds {shorten(others, 3)} of other patients, made with other settings "
                f"({', '.join(differing)}), and --overwrite replaces only the patients that are named; name them too, "
                "or choose another folder with -o"
            )

    def _require_same_files(self, case: SourceCase) -> None:
        """A UserError where the finished case of this name was made of other files, say of another patient's."""
        if differing := case.other_file(read_json(self._details(case)).get("files")):
            role, before, now = differing
            by_name = "" if self.options.patients else "another --name, "
            raise UserError(
                f"{self.options.out} has {case.name} already, of other files: {role} was {before} and is {now}; choose "
                f"another folder with -o, {by_name}or replace it with --overwrite"
            )

    def _clear(self, cases: Sequence[SourceCase], settings: RunSettings) -> None:
        """Remove what is to be overwritten, the label maps first, so that nothing of it is taken for a new result.

        What stays was made with the same settings, so that they can be noted before anything is predicted.
        """
        out = self.options.out
        with writing(out):
            for case in cases:
                self.label_map(case).unlink(missing_ok=True)
            if self.options.challenge:
                return
            for name in SUMMARY:
                (out / name).unlink(missing_ok=True)
            for case in cases:
                for path in (*self._probabilities(case).values(), self._picture(case), self._details(case)):
                    path.unlink(missing_ok=True)
        if settings.file.is_file():
            settings.note()

    def _limit(self, patients: int) -> TimeLimit | None:
        if self.options.time_limit is None:
            return None
        systems = self.full.smaller_systems()
        costs = [self.system.passes_per_case(one) for one in systems]
        return TimeLimit(systems, costs, self.begun + self.options.time_limit, time.monotonic)

    def _segment(self, case: SourceCase, system: BundledSystem) -> SegmentedPatient | None:
        """Segment one case; None where it failed, which is noted."""
        begun = time.monotonic()
        try:
            with warnings.catch_warnings(record=True) as caught, progress_shown(False):
                warnings.simplefilter("always", Notice)
                patient = self._segment_case(case, system, caught, begun)
        except (UserError, OSError, MemoryError, torch.OutOfMemoryError) as error:
            self._failed(case, error)
            return None
        except Exception as error:  # a defect of ours; in a challenge every other case counts
            if not self.options.challenge:
                raise
            self._failed(case, error)
            return None
        self.result.patients[case.name] = patient
        self.say(self._line(patient))
        return patient

    def _failed(self, case: SourceCase, error: BaseException) -> None:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        self.result.failed[case.name] = reason
        self.say(f"{case.name}: failed: {reason}")

    def _line(self, patient: SegmentedPatient) -> str:
        every = patient.details["measures"]
        shown = [one for one in every if one["kind"] == "region"] or every
        volumes = ", ".join(f"{one['name']} {one['ml']:.1f} ml" for one in shown)
        used = f"{patient.details['seconds']:.0f} s, at most {patient.details['memory_mb'] / 1000:.1f} GB"
        notes = "".join(f"\n  look: {note}" for note in patient.details["notes"])
        return f"{patient.case}: {volumes}; {used}{notes}"

    # ---- one patient -------------------------------------------------------------------------------------------------

    def _segment_case(
        self, case: SourceCase, system: BundledSystem, caught: Sequence[Any], begun: float
    ) -> SegmentedPatient:
        notes = [finding.sentence + f" ({finding.fix})" for finding in self._suitability(case)]
        with TemporaryDirectory(prefix="nnunet_brats_case_", ignore_cleanup_errors=True) as place:
            folder = Path(place)
            ready = make_ready(case, self.description, folder / "in", self.options.missing)
            self._refuse_rules_without_images(ready)
            with _peak_memory(self.machine.device) as peak:
                output = self.system.predict({case.name: ready.files}, ready.images, folder / "out", system)
            notes += [str(one.message) for one in caught if issubclass(one.category, Notice)]
            if self.challenge and self.challenge.layout and self.challenge.layout.shape not in (None, ready.grid.size):
                notes.append(f"{ready.grid.size} voxels, where {self.options.challenge} has {self.challenge.grid}")
            if system is not self.full:
                notes.append(f"for lack of time, by {self.full.describe_smaller(system)}")
            labels, grid = read_label_map(output.label_map)
            details: dict[str, Any] = {
                "case": case.name,
                "patient": case.patient,
                "session": session_of(case),
                "notes": notes,
                "measures": [_noted(one) for one in self._measure(labels, grid.spacing_mm)],
                "numbering": dict(
                    sorted(((self.names[label], self.numbers[label]) for label in self.names), key=itemgetter(1))
                ),
                "spacing_mm": grid.spacing_mm,
                "files": case.noted_files,
            }
            picture = None
            if not self.options.challenge:
                picture = self._picture(case)
                draw_patient(picture, ready.images, self.description.acquired, labels, grid, self.regions, case.name)
            probabilities = self._write_probabilities(ready, output, grid.axes)
            details |= {"seconds": time.monotonic() - begun, "memory_mb": peak[0]}
            details["network_seconds"] = output.network_seconds
            if not self.options.challenge:
                write_json(self._details(case), details)
            target = self.label_map(case)
            with partial_file(target.with_name(case.name), [target.name.removeprefix(case.name)]) as partial:
                written = remap(labels, self.numbers)
                ready.write_back(written, grid.axes, Path(f"{partial}{target.name.removeprefix(case.name)}"))
        return SegmentedPatient(case.name, target, details, picture, probabilities)

    def _suitability(self, case: SourceCase) -> Sequence[Any]:
        """What is likely wrong with the images; what cannot be read is an error of its own, and said there."""
        return [one for one in check_case(case).findings if one.kind not in ("files", "missing")]

    def _refuse_rules_without_images(self, ready: ReadyPatient) -> None:
        looking = [one for one in self.full.predictions.values() if isinstance(one, RulesPrediction)]
        if ready.missing and any(one.rule_set.needs_images for one in looking):
            raise UserError(f"{ready.case.name} lacks {', '.join(ready.missing)}, which rules of this system look at")

    def _measure(self, labels: np.ndarray, spacing_mm: tuple[float, ...]) -> list[Measure]:
        return measure(labels, spacing_mm, self.names, self.regions)

    def _write_probabilities(self, ready: ReadyPatient, output: SystemOutput, axes: str) -> dict[str, Path]:
        """An image per region, from 0 to 1."""
        if not self.options.probabilities:
            return {}
        if output.probabilities is None:
            raise AssertionError("probabilities were asked for and not kept")
        values = read_probabilities(output.probabilities)
        written = {}
        for name, one in zip(self.description.head(len(values)).names, values, strict=True):
            if name == "background":
                continue
            plain = "".join(letter if letter.isalnum() else "_" for letter in name)
            target = self.options.out / PROBABILITIES / f"{ready.case.name}_{plain}{ENDING}"
            with partial_file(target.with_name(target.name.removesuffix(ENDING)), [ENDING]) as partial:
                ready.write_back(one.astype(np.float32), axes, Path(f"{partial}{ENDING}"))
            written[name] = target
        return written

    # ---- files -------------------------------------------------------------------------------------------------------

    def label_map(self, case: SourceCase) -> Path:
        name = self.challenge.submission if self.challenge else "{case}.nii.gz"
        return self.options.out / name.format(case=case.name)

    def _details(self, case: SourceCase) -> Path:
        return self.options.out / DETAILS / f"{case.name}.json"

    def _picture(self, case: SourceCase) -> Path:
        return self.options.out / PICTURES / f"{case.name}.png"

    def _probabilities(self, case: SourceCase) -> dict[str, Path]:
        """Region -> file, of those that are there; not those of a case whose name goes on after that of this one."""
        start = f"{case.name}_"
        longer = [path.stem for path in (self.options.out / DETAILS).glob("*.json") if path.stem.startswith(start)]
        return {
            path.name[len(start) : -len(ENDING)]: path
            for path in sorted((self.options.out / PROBABILITIES).glob(f"{escape(start)}*{ENDING}"))
            if not any(path.name.startswith(f"{other}_") for other in longer)
        }

    def _is_there(self, case: SourceCase) -> bool:
        """Whether an earlier call has finished the case."""
        return is_whole(self.label_map(case)) and (bool(self.options.challenge) or self._details(case).is_file())

    def _read_again(self, case: SourceCase) -> None:
        """Take over what an earlier call has made of a case."""
        if self.options.challenge:
            return
        picture = self._picture(case)
        self.result.patients[case.name] = SegmentedPatient(
            case.name,
            self.label_map(case),
            read_json(self._details(case)),
            picture if picture.is_file() else None,
            self._probabilities(case),
        )

    def _write_summary(self, cases: Sequence[SourceCase]) -> None:
        ordered = [self.result.patients[case.name] for case in cases if case.name in self.result.patients]
        files = write_tables(
            self.options.out,
            self.bundle.system,
            [one.details for one in ordered],
            {one.case: one.picture for one in ordered if one.picture},
            self.result.failed,
        )
        self.result.page, self.result.volumes, self.result.timeline = files


def session_of(case: SourceCase) -> str:
    """What the name of a case has besides the patient's."""
    return case.name.removeprefix(case.patient).strip("-_. ") or case.name


def _noted(one: Measure) -> dict[str, Any]:
    longest, perpendicular, product, number = one.diameters
    return {
        "name": one.name, "kind": one.kind, "ml": one.ml, "longest_mm": longest, "perpendicular_mm": perpendicular,
        "product_mm2": product, "slice": None if number is None else number + 1,
    }  # fmt: skip


@contextmanager
def _peak_memory(device: str) -> Iterator[list[float]]:
    """A list that holds the highest memory in MB, once the block has ended: of this process or of the GPU."""
    from nnunet_brats_ext.inference.profiling import MB, MemoryMeter

    meter = MemoryMeter(torch.device(device))
    highest: list[float] = []
    with meter.peak() as peak:
        yield highest
    resident = psutil.Process().memory_info().rss if device == "cuda" else peak[0] + meter.baseline
    highest.append(max(resident, peak[0]) / MB)
