"""Layouts of data sets: how a release or an own folder lays out its cases, names its files and numbers its labels.

A layout is data. `layouts.toml` has one table per BraTS release and public data set, and a user's own file has the same
keys. Reading and writing share it: `Layout.recognise` turns a path into (case, role); `Layout.path` turns them into a
path, which is how phantoms are written. A *role* is what a file holds: one of `SEQUENCES`, `LABEL`, or `STACK` where
all sequences are in one 4-D file.

    layout = LAYOUTS["BraTS2020"]
    case = layout.case_name(7)  # BraTS20_Training_007
    files = {role: folder / layout.path(case, role) for role in layout.roles}
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from difflib import get_close_matches
from functools import cached_property
from importlib import resources
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple

from nnunet_brats_ext.brats import LABEL_NAMES, LABEL_SCHEMES, SEQUENCE_NAMES, SEQUENCES, LabelScheme
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import ENDINGS
from nnunet_brats_ext.storage.toml_files import parse_toml, read_toml

LABEL = "label"
STACK = "stack"  # all sequences in one 4-D file
ROLES = (*SEQUENCES, LABEL, STACK)
PRESENT_SCHEME = "glioma_2023"  # how BraTS numbers glioma today
NAME_PART = r"[^/]+?"  # what a part of a name looks like where [groups] does not say
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_TOKEN = re.compile(r"\{\w+\}|\*\*|\*|[-_]|[^{*_-]+|\{")  # of a pattern
_CASE_TOKEN = re.compile(r"\{\w+\}|[^{]+|\{")  # of a case's name, where `-` is no `_`
_ENDING = "(?:" + "|".join(re.escape(ending) for ending in ENDINGS) + ")?$"


class Match(NamedTuple):
    """What a path is: a role of a case. rank: of its pattern. groups: the parts of the case's name."""

    case: str
    role: str
    rank: int
    groups: Mapping[str, str]


@dataclass(frozen=True)
class Layout:
    """How a data set looks on disk and, for a challenge, what it takes back. The fields are the keys of a TOML file.

    A pattern is the end of a path without `.nii.gz`. `{case}` and the groups stand for parts of the case's name,
    `{sequence}` for the field's names of the role, `*` for anything within a name, `**` also across folders. Capitals
    do not count, nor whether a name has `-` or `_` between its parts.

    name: what `--release` takes.
    case: the name of a case, of `{groups}`.
    groups: group -> regular expression.
    files: role -> its patterns, the preferred one first; a file counts as the first role that it fits.
    scheme_name: how labels are numbered, of `LABEL_SCHEMES`; None where the label maps or the user have to say.
    patient: what the time points of a patient share, of the groups; `{patient}` where there is such a group.
    generic: the names say nothing about where the data come from, so every other layout comes first.
    seen: whether it was tried on real files or is known from descriptions only.
    hint: a folder name that only this layout has.
    superseding: a folder, inside the source, whose files replace the same files found elsewhere.
    misnamed: file name as handed out -> as it should be.
    stray_labels: label found in some files -> the label that was meant; both as released.
    grades: the folders that grade the patients, the first for high grade.
    stack: the order of the sequences in a 4-D file.
    shape, origin_mm: the grid a challenge expects of a submission, in ITK's order; None where any will do.
    submission: the name of a file that the challenge takes.
    written, folder, held_out_folder, training, held_out, first_session, ending: how phantoms are written: a case's
    name with formats for {number} and {session}, the folders, what {part} is, and how files end.
    """

    name: str
    case: str
    files: Mapping[str, tuple[str, ...]]
    groups: Mapping[str, str] = field(default_factory=dict)
    scheme_name: str | None = None
    own_labels: Mapping[int, str] = field(default_factory=dict)
    patient: str = ""
    generic: bool = False
    seen: bool = True
    hint: str | None = None
    superseding: str | None = None
    misnamed: Mapping[str, str] = field(default_factory=dict)
    stray_labels: Mapping[int, int] = field(default_factory=dict)
    grades: tuple[str, ...] = ()
    stack: tuple[str, ...] | None = None
    shape: tuple[int, int, int] | None = None
    origin_mm: tuple[float, float, float] | None = None
    submission: str = "{case}.nii.gz"
    written: str = ""
    folder: str = ""
    held_out_folder: str | None = None
    training: str = ""
    held_out: str = ""
    first_session: int = 0
    ending: str = ".nii.gz"

    @classmethod
    def from_toml(cls, content: Mapping[str, Any], source: str) -> "Layout":
        """A layout of the keys of a TOML file; what is wrong with them is an error that names the file.

        source: what errors quote.
        """
        content = dict(content)
        if content.get("labels") and "scheme" in content:
            raise UserError(
                f"{source}: scheme = {content['scheme']!r} beside labels = {content['labels']!r}, which both number "
                "labels; keep one of the two"
            )
        if base := content.pop("like", None):
            content = _inherit(find_layout(base), content)
        known = {_KEYS.get(one.name, one.name): one for one in fields(cls)}
        for key in content:
            if key not in known:
                raise UserError(f"{source}: no key {key!r}; {_suggest(key, known)}")
        missing = [key for key, one in known.items() if _is_required(one) and key not in content]
        if missing:
            raise UserError(
                f"{source} lacks {' and '.join(missing)}; `nnunet_brats layout` writes a file with all keys"
            )
        values = {known[key].name: _checked(known[key].name, value, source) for key, value in content.items()}
        layout = cls(**values)
        layout.check(source)
        return layout

    @classmethod
    def read(cls, path: Path) -> "Layout":
        return cls.from_toml(read_toml(path), str(path))

    def to_toml(self) -> dict[str, Any]:
        """The keys of a TOML file that gives the layout; `from_toml` is the inverse. Defaults are left out."""
        content = {}
        for one in fields(self):
            value = getattr(self, one.name)
            default = one.default if one.default is not MISSING else {}
            if value != default or _is_required(one):
                content[_KEYS.get(one.name, one.name)] = _plain(value)
        return content

    def check(self, source: str) -> None:
        """An error where patterns and groups do not fit each other."""
        for group, expression in self.groups.items():
            try:
                re.compile(expression)
            except re.error as error:
                raise UserError(f"{source}: group {group} = {expression!r} is no regular expression: {error}") from None
            if re.compile(expression).groups:
                raise UserError(f"{source}: group {group} = {expression!r}: write (?:...) instead of (...)")
        wanted = set(_PLACEHOLDER.findall(self.case))
        if not wanted:
            raise UserError(f"{source}: case = {self.case!r} names no part such as {{patient}}")
        if STACK in self.files and not self.stack:
            raise UserError(f'{source}: stack needs the order of the sequences, such as stack = ["T1", "T1ce"]')
        for role, patterns in self.files.items():
            for pattern in patterns:
                there = set(_PLACEHOLDER.findall(pattern))
                if lost := sorted(wanted - there) if "case" not in there else []:
                    raise UserError(f"{source}: {role} = {pattern!r} lacks {{{lost[0]}}}, which is in the case's name")
        if not self.sequences:
            raise UserError(f"{source}: files names no sequence; there are {', '.join(SEQUENCES)}")
        try:
            _ = self.scheme
        except UserError as error:
            raise UserError(f"{source}: {error}") from None

    # ---- what it says ----------------------------------------------------------------------------------------------

    @property
    def scheme(self) -> LabelScheme | None:
        if self.own_labels:
            return own_scheme(self.own_labels)
        return LABEL_SCHEMES[self.scheme_name] if self.scheme_name else None

    @property
    def numbering(self) -> LabelScheme:
        """The scheme, where it is known by now."""
        assert self.scheme is not None, "convert decides the numbering before it writes"
        return self.scheme

    def with_scheme(self, name: str) -> "Layout":
        return replace(self, scheme_name=name, own_labels={})

    @property
    def title(self) -> str:
        """The name as a part of a data set's name in nnU-Net."""
        return re.sub(r"[^A-Za-z0-9]", "", self.name)

    @property
    def sequences(self) -> tuple[str, ...]:
        """The channels, in nnU-Net's order; one for radiotherapy planning, four elsewhere."""
        return tuple(name for name in SEQUENCES if name in (self.stack or self.files))

    @property
    def roles(self) -> tuple[str, ...]:
        """The files of a labelled case: images first, the label last."""
        return (*((STACK,) if self.stack else self.sequences), LABEL)

    def with_any_name(self) -> "Layout":
        """The same layout for cases of any name, as containers and hospitals make them up."""
        whole = all("{case}" in pattern for patterns in self.files.values() for pattern in patterns)
        if whole:
            return replace(
                self, case="{any_name}", groups={**self.groups, "any_name": NAME_PART}, patient="", hint=None
            )
        parts = dict.fromkeys(_PLACEHOLDER.findall(self.case), NAME_PART)
        return replace(self, groups={**self.groups, **parts}, hint=None)

    # ---- reading ---------------------------------------------------------------------------------------------------

    @cached_property
    def _patterns(self) -> list[tuple[str, str, int, re.Pattern[str]]]:
        """For each pattern: a text that every path of it has, the role, the rank, and the expression."""
        found = []
        for role, patterns in self.files.items():
            for rank, pattern in enumerate(patterns):
                expression, literals = self._expand(pattern, role)
                needle = max(literals, key=len, default="")
                found.append((needle, role, rank, re.compile(f"(?:^|/){expression}{_ENDING}", re.IGNORECASE)))
        return found

    @cached_property
    def _case_pattern(self) -> re.Pattern[str]:
        return re.compile(self._expand(self.case, "", _CASE_TOKEN)[0])

    def _expand(self, pattern: str, role: str, token: re.Pattern[str] = _TOKEN) -> tuple[str, list[str]]:
        """The regular expression of a pattern, and the plain texts in it, in lower case."""
        seen: set[str] = set()
        literals: list[str] = []

        def part(word: str) -> str:
            if word == "*":
                return "[^/]*"
            if word == "**":
                return ".*"
            if word in ("-", "_"):
                return "[-_]"
            if not (match := _PLACEHOLDER.fullmatch(word)):
                literals.append(word.casefold())
                return re.escape(word)
            name = match[1]
            if name == "case":
                return "".join(map(part, _CASE_TOKEN.findall(self.case)))
            if name == "sequence":
                return _names_of(role)
            if name in seen:
                return f"(?P={name})"
            seen.add(name)
            return f"(?P<{name}>{self.groups.get(name, NAME_PART)})"

        return "".join(map(part, token.findall(pattern))), literals

    def recognise(self, path: PurePath) -> Match | None:
        """What a file is, by its own name or else by the folders it lies in; None if it is not ours.

        The folders count because some copies wrap each scan in a folder of the scan's name.
        """
        path = path.with_name(self.misnamed.get(path.name, path.name))
        place = path.as_posix()
        while place:
            lower = place.casefold()
            for needle, role, rank, pattern in self._patterns:
                if needle in lower and (match := pattern.search(place)):
                    groups = {key: value for key, value in match.groupdict().items() if value is not None}
                    return Match(self.case.format(**groups), role, rank, groups)
            place = place.rpartition("/")[0]
        return None

    def is_case(self, case: str) -> bool:
        """Whether it is a case name of this layout."""
        return self._case_pattern.fullmatch(case) is not None

    def case_in(self, text: str) -> str | None:
        """The name of a case that a text contains; None for layouts whose cases have no name of their own."""
        match = None if self.case.startswith("{") else self._case_pattern.search(text)
        return match and match[0]

    def groups_of(self, case: str) -> dict[str, str]:
        """What a case name says: `patient`, `session`, `site`, `grade`, as far as they are in it."""
        match = self._case_pattern.fullmatch(case)
        return {key: value for key, value in match.groupdict().items() if value} if match else {}

    def patient_of(self, case: str) -> str:
        """What all time points of the patient share; the case itself where its name has no patient."""
        groups = self.groups_of(case)
        if self.patient:
            return self.patient.format(case=case, **groups) if groups else case
        return groups.get("patient", case)

    # ---- writing ---------------------------------------------------------------------------------------------------

    def case_name(self, number: int, session: int = 0, *, grade: str | None = None, training: bool = True) -> str:
        """The name of the case of that number; `session` counts the patient's time points from 0."""
        return (self.written or self.case).format(
            number=number,
            part=self.training if training else self.held_out,
            session=self.first_session + session,
            letter="ABCDEFGH"[session % 8],
            grade=grade or (self.grades[0] if self.grades else ""),
        )

    def path(self, case: str, role: str, *, grade: str | None = None, training: bool = True) -> PurePosixPath:
        """Where a role of a case lies in a fresh copy, from the folder that holds the data set's root.

        `grade` is one of `grades` and only matters where cases are sorted by it. A sequence of a stacked layout gives
        the 4-D file.
        """
        match = self._case_pattern.fullmatch(case)
        if match is None:
            raise ValueError(f"{case!r} is no case name of {self.name}, which has {self.case!r}")
        role = STACK if self.stack and role in SEQUENCES else role
        if role not in self.files:
            raise ValueError(f"{self.name} has no {role!r}, only {', '.join(self.roles)}")
        pattern = next(one for one in self.files[role] if "**" not in one)
        fields_ = {
            "grade": grade or (self.grades[0] if self.grades else ""),
            "part": self.training if training else self.held_out,
            "id": 10000 + zlib.crc32(f"{case}{pattern}".encode()) % 90000,  # the archive of 2013 and 2015 counts files
            "sequence": _written_name(role),
            **match.groupdict(default=""),
            "case": case,
        }
        folder = self.folder if training else self.held_out_folder or self.folder
        return PurePosixPath(folder.format(**fields_), pattern.replace("*", "").format(**fields_) + self.ending)


_KEYS = {"scheme_name": "scheme", "own_labels": "labels"}  # field -> key of a file


def _is_required(one: Any) -> bool:
    return one.default is MISSING and one.default_factory is MISSING


def _inherit(base: Layout, content: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of another layout, except those that are given; tables are merged key by key.

    A numbering that is given replaces that of the other layout, whichever of `scheme` and `labels` says it.
    """
    merged = base.to_toml()
    if "scheme" in content:
        merged.pop("labels", None)
    elif content.get("labels"):
        merged.pop("scheme", None)
    for key, value in content.items():
        merged[key] = {**merged[key], **value} if isinstance(value, Mapping) and key in merged else value
    return merged


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def _checked(name: str, value: Any, source: str) -> Any:
    """The value of a key in the type of its field."""
    if name == "files":
        return _files(value, source)
    if name in ("own_labels", "stray_labels"):
        if not isinstance(value, Mapping) or not all(str(key).isdecimal() for key in value):
            raise UserError(f'{source}: {_KEYS.get(name, name)} = {value!r}; expected a table such as 1 = "NCR"')
        return {int(key): one for key, one in value.items()}
    if name in ("groups", "misnamed"):
        if not isinstance(value, Mapping) or not all(isinstance(one, str) for one in value.values()):
            raise UserError(f"{source}: {name} = {value!r}; expected a table of texts")
        return dict(value)
    if name in ("grades", "stack", "shape", "origin_mm"):
        if not isinstance(value, list | tuple):
            raise UserError(f"{source}: {name} = {value!r}; expected a list")
        return tuple(value)
    kind = {"generic": bool, "seen": bool, "first_session": int}.get(name, str)
    if not isinstance(value, kind):
        raise UserError(f"{source}: {_KEYS.get(name, name)} = {value!r}; expected a {kind.__name__}")
    if name == "scheme_name" and value not in LABEL_SCHEMES:
        raise UserError(f"{source}: no numbering {value!r}; there are {', '.join(LABEL_SCHEMES)}, or a table [labels]")
    return value


def _files(value: Any, source: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, Mapping):
        raise UserError(f'{source}: files = {value!r}; expected a table such as T1 = "{{case}}/t1"')
    files = {}
    for role, patterns in value.items():
        if role not in ROLES:
            raise UserError(f"{source}: files has no {role!r}; {_suggest(role, ROLES)}")
        patterns = [patterns] if isinstance(patterns, str) else patterns
        if not isinstance(patterns, list | tuple) or not patterns or not all(isinstance(one, str) for one in patterns):
            raise UserError(f"{source}: {role} = {patterns!r}; expected a text, or a list of texts")
        files[role] = tuple(patterns)
    return files


def _suggest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """The nearest of some names, and all of them."""
    lower = {one.casefold(): one for one in known}
    close = get_close_matches(name.casefold(), lower, 1)
    hint = f"did you mean {lower[close[0]]}? " if close else ""
    return f"{hint}known are {', '.join(known)}"


def _names_of(role: str) -> str:
    """A regular expression of the field's names of a role, the longest first."""
    names = LABEL_NAMES if role == LABEL else SEQUENCE_NAMES.get(role, ())
    spelled = ["[-_ ]?".join(re.findall(r"t[12]|[a-z]+|\d+", name)) for name in sorted(names, key=len, reverse=True)]
    return f"(?:{'|'.join(spelled)})" + ("s?(?:Tr|Ts)?" if role == LABEL else "")


_WORDS = {
    role: re.compile(f"(?<![A-Za-z0-9]){_names_of(role)}(?![A-Za-z0-9])", re.IGNORECASE) for role in (*SEQUENCES, LABEL)
}


def find_role(text: str) -> tuple[str, re.Match[str]] | None:
    """The role that a word in a name stands for, and where; a word for labels counts most, then the longest."""
    found = [(role, match) for role, pattern in _WORDS.items() for match in pattern.finditer(text)]
    return max(found, key=lambda one: (one[0] == LABEL, len(one[1][0]), one[1].start()), default=None)


def _written_name(role: str) -> str:
    return LABEL_NAMES[0] if role == LABEL else next(iter(SEQUENCE_NAMES.get(role, ("",))))


def own_scheme(labels: Mapping[int, str]) -> LabelScheme:
    """The label scheme of names as a user gives them: ED, NCR, ET and perhaps one more, or WT alone.

    The known scheme that has the same regions lends them: RC lies outside the tumour, NET and CC in its core.
    """
    names = {value: str(name).upper() for value, name in labels.items()}
    for scheme in LABEL_SCHEMES.values():
        trained = {name: value for value, name in scheme.names.items()}
        if sorted(names.values()) == sorted(trained):
            released = {0: 0} | {value: trained[name] for value, name in names.items()}
            return replace(scheme, released=released)
    known = sorted({", ".join(sorted(scheme.names.values())) for scheme in LABEL_SCHEMES.values()})
    raise UserError(f"labels {sorted(names.values())} are none of the sets {'; '.join(known)}")


def _read_table() -> dict[str, Layout]:
    text = resources.files(__package__).joinpath("layouts.toml").read_text(encoding="utf-8")
    for name, content in parse_toml(text, "layouts.toml").items():
        LAYOUTS[name] = Layout.from_toml({"name": name, **content}, f"layouts.toml, {name}")
    return LAYOUTS


def find_layout(name: str) -> Layout:
    """The layout of that name, in any capitals; an unknown one is an error that lists the known."""
    for known, layout in LAYOUTS.items():
        if known.casefold() == name.casefold():
            return layout
    raise UserError(f"no release is called {name!r}; known are {', '.join(LAYOUTS)}")


def layout_of_manifest(manifest: Mapping[str, Any]) -> Layout:
    """The layout that a conversion noted: its name where it is a known one, all of it elsewhere."""
    if content := manifest.get("layout"):
        if content.get("labels"):  # earlier versions took both, and numbered by the table
            content = {key: value for key, value in content.items() if key != "scheme"}
        return Layout.from_toml(content, "manifest.json")
    return find_layout(str(manifest["release"]))


LAYOUTS: dict[str, Layout] = {}
_read_table()
