"""`layout`: what an own folder looks like, as a layout that the user can check, change and give to `convert`.

The words that the field uses for sequences and labels say what a file holds; what changes from file to file besides
is the name of the case.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np

from nnunet_brats_ext.brats import LABEL_SCHEMES, SEQUENCES, find_sequence
from nnunet_brats_ext.dataset_conversion.layouts import LABEL, LAYOUTS, STACK, Layout, find_role
from nnunet_brats_ext.dataset_conversion.scan import GRADES, PARTS, Source, decide, image_files, scan
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.images import ending, read_grid, read_image, to_integers
from nnunet_brats_ext.storage.json_files import read_json
from nnunet_brats_ext.storage.options import Options, argument, option
from nnunet_brats_ext.storage.output import write_text
from nnunet_brats_ext.storage.shared_options import scheme_option

SHOWN = 3  # cases
UNKNOWN = "?"  # which sequence a volume of a 4-D file is
LABELS_READ = 20  # label maps, to see which values they have
_SEPARATORS = "-_. "
_SESSION = re.compile(
    r"\d{1,8}|\d{4}-\d\d-\d\d|(pre|post|base|follow|fu|tp|time|ses|visit|week|month|day|scan)\w*", re.IGNORECASE
)
_WORD = re.compile(r"[^\W_]+")
_IMAGES = re.compile(r"(images?)\w*", re.IGNORECASE)
_NO_LABEL = re.compile(r"(brain|skull|head)([-_ ]?parenchyma)?[-_ ]?(mask|seg)", re.IGNORECASE)  # not of tumours


@dataclass(frozen=True)
class LayoutOptions(Options):
    """Options of `layout`."""

    source: Path = argument("an own folder of images", metavar="SOURCE")
    out: Path | None = option(
        "-o", writes="file", metavar="FILE", default=None, help="write the layout here (default: only show it)"
    )
    layout: Path | None = option(metavar="FILE", default=None, help="show what this layout makes of the folder instead")
    scheme: str | None = scheme_option("how the label maps are numbered, where their values do not decide it")
    overwrite: bool = option(default=False, help="replace the FILE of -o")


@dataclass(frozen=True)
class Proposal:
    """A layout, what it makes of a folder, and the values in (some of) its label maps."""

    source: Source
    label_values: Sequence[int]
    text: str

    @property
    def layout(self) -> Layout:
        return self.source.layout


def propose_layout(options: LayoutOptions) -> Proposal:
    """The layout of a folder, written where the options say so; an error where its names show none."""
    if options.out and options.out.exists() and not options.overwrite:
        raise UserError(f"{options.out} exists; name another file with -o, or replace it with --overwrite")
    source = scan(options.source, Layout.read(options.layout)) if options.layout else find_layout_of(options.source)
    values = label_values(source)
    layout = source.layout
    if options.scheme:
        layout = layout.with_scheme(options.scheme)
    elif layout.scheme is None and 4 in values and set(values) <= {0, 1, 2, 4}:
        layout = layout.with_scheme("glioma_2017")
    source = replace(source, layout=layout)
    text = to_text(replace(layout, name=f"My-{layout.name}") if layout.name in LAYOUTS else layout, values)
    if options.out:
        write_text(options.out, text)
    return Proposal(source, values, text)


def find_layout_of(root: Path) -> Source:
    """The cases of a folder by a known layout, or else by the one that its names show."""
    files = image_files(root)
    try:
        known = decide(root, files)[0]
    except UserError:
        known = None
    if known and (not known.generic or known.name == "BIDS"):
        return scan(root, known)
    layout = infer([file.path for file in files], root)
    return scan(root, layout)


# ---- inference ------------------------------------------------------------------------------------------------------


@dataclass
class _Named:
    """A file whose name says what it holds. parts: its path without ending, the role's word as `{}` in one of them."""

    path: Path
    role: str
    word: str
    parts: tuple[str, ...]
    at: int  # which part has the word
    groups: dict[str, str] = field(default_factory=dict)

    @property
    def sides(self) -> tuple[str, str]:
        left, _, right = self.parts[-1].partition("{}")
        return left, right

    @property
    def form(self) -> tuple:
        """Files of one role and one form differ in nothing but the names of the cases."""
        left, right = self.sides
        return len(self.parts), self.at - len(self.parts), _count(left), _count(right), self.word.casefold()


def _count(text: str) -> int:
    return sum(text.count(separator) for separator in _SEPARATORS)


def name_file(path: Path) -> _Named | None:
    """What the words in the name of a file, or else in the folders above, say that it holds."""
    stem = path.name[: -len(ending(path))]
    parts = (*path.parts[:-1], stem)
    for at in range(len(parts) - 1, -1, -1):
        if (found := find_role(parts[at])) is None:
            continue
        role, match = found
        if role == LABEL and _NO_LABEL.search(parts[at]):
            return None
        text = parts[at]
        marked = text[: match.start()] + "{}" + text[match.end() :]
        return _Named(path, role, match[0], (*parts[:at], marked, *parts[at + 1 :]), at)
    return None


def infer(paths: Sequence[Path], root: Path) -> Layout:
    """The layout of files by their names alone; an error where fewer than two roles are named."""
    named = [found for path in paths if (found := name_file(path))]
    by_role: dict[str, list[_Named]] = defaultdict(list)
    for one in named:
        by_role[one.role].append(one)
    sequences, stack = [role for role in SEQUENCES if role in by_role], tuple[str, ...]()
    if not sequences:
        by_role[STACK], stack = find_stacks(paths, root)
        sequences = [STACK] if stack else []
    if not sequences:
        seen = f"such as {paths[0]}" if paths else "for there is none"
        raise UserError(
            f"no file in {root} is named after a sequence ({', '.join(SEQUENCES)}), {seen}; write a layout by hand as "
            "docs/own_data.md shows, or rename the files"
        )
    reference = max((_commonest(by_role[role]) for role in sequences), key=len)
    grades = _find_groups(reference)
    groups: list[str] = [name for name in ("patient", "session") if name in reference[0].groups]
    case = "_".join(f"{{{name}}}" for name in groups)
    cases = {case.format(**one.groups): one.groups for one in reference}
    files = {}
    for role in (*sequences, LABEL):
        if patterns := _patterns_of(by_role.get(role, []), cases):
            files[role] = patterns
    order = [role for role in ("T1ce", "T1", "FLAIR", "T2", LABEL, STACK) if role in files]  # the longer names first
    title = re.sub(r"[^A-Za-z0-9]", "", root.resolve().name) or "Own"
    expressions: dict[str, str] = {name: _expression([one.groups[name] for one in reference]) for name in groups}
    return Layout(
        name=title if title not in LAYOUTS else f"My{title}",
        case=case,
        groups=expressions,
        files={role: files[role] for role in order},
        grades=grades,
        stack=stack or None,
    )


def find_stacks(paths: Sequence[Path], root: Path) -> tuple[list[_Named], tuple[str, ...]]:
    """The files that hold two to four volumes, and what these are: of a dataset.json beside, else `UNKNOWN` each.

    The word that stands for the role is the last one of their names, where all share it, or the folder `imagesTr`.
    """
    volumes = {}
    for path in paths:
        with suppress(UserError):  # `convert` reports what cannot be read
            size = read_grid(root / path).size
            if len(size) == 4 and 2 <= size[-1] <= len(SEQUENCES):
                volumes[path] = size[-1]
    if not volumes:
        return [], ()
    stems = {path: path.name[: -len(ending(path))] for path in volumes}
    last = {re.split(f"[{_SEPARATORS}]", stem)[-1] for stem in stems.values()}
    named = []
    for path, stem in stems.items():
        parts, at, word = [*path.parts[:-1], stem], len(path.parts) - 1, ""
        if len(last) == 1 and len(stems) > 1:
            (word,) = last
            parts[at] = stem[: -len(word)] + "{}"
        elif len(parts) > 1 and (folder := _IMAGES.fullmatch(parts[-2])):
            at, word = at - 1, folder[1]
            parts[at] = "{}"
        else:
            parts[at] += "{}"
        named.append(_Named(path, STACK, word, tuple(parts), at))
    (count, _), *_ = Counter(volumes.values()).most_common()
    return named, _order_noted(root / "dataset.json", count)


def _order_noted(file: Path, count: int) -> tuple[str, ...]:
    """The order of the volumes that a dataset.json gives, the Decathlon's or nnU-Net's; `UNKNOWN` where none does."""
    content: dict = {}
    with suppress(UserError):
        content = read_json(file) if file.is_file() else {}
    noted = content.get("modality") or content.get("channel_names")
    names = [find_sequence(str(noted.get(str(number)))) for number in range(count)] if isinstance(noted, dict) else []
    known = [name for name in names if name]
    return tuple(known) if len(set(known)) == count else (UNKNOWN,) * count


def _commonest(named: Sequence[_Named]) -> list[_Named]:
    """The files of the form that most of them have; of two, that with the shorter names."""
    forms: dict[tuple, list[_Named]] = defaultdict(list)
    for one in named:
        forms[one.form].append(one)
    return max(forms.values(), key=lambda files: (len(files), -len(str(files[0].path))))


def _find_groups(files: Sequence[_Named]) -> tuple[str, ...]:
    """Put the parts of each case's name into its `groups`; gives the names of folders that are grades.

    The names of folders that differ come first, from the outside in, then what else differs in the name of the file.
    """
    found: list[list[str]] = []
    grades: tuple[str, ...] = ()
    for number in range(len(files[0].parts) - 1):
        values = [one.parts[number] for one in files]
        if len(set(values)) == 1 or number == files[0].at:
            continue
        if {value.upper() for value in values} <= GRADES.keys():
            grades = tuple(sorted({value.upper() for value in values}))
        elif not all(PARTS.fullmatch(value) for value in values):
            found.append(values)
    rests = [_rest(one, [values[i] for values in found]) for i, one in enumerate(files)]
    if len(set(rests)) > 1 or (not found and all(rests)):
        found.append(rests)
    if not found:  # one case: its folder
        found = [[one.parts[-2] if len(one.parts) > 1 else one.parts[-1] for one in files]]
    if len(found) == 1:
        found = _split_sessions(found[0])
    for i, one in enumerate(files):
        patient, *sessions = [values[i] for values in found]
        one.groups["patient"] = patient
        if sessions:
            one.groups["session"] = "_".join(sessions) if len(sessions) > 1 else sessions[0]
    return grades


def _rest(one: _Named, known: Sequence[str]) -> str:
    """What the name of a file has besides the word of its role and the names of its folders."""
    left, right = one.sides if one.at == len(one.parts) - 1 else (one.parts[-1], "")
    for value in sorted(known, key=len, reverse=True):
        left, right = left.replace(value, ""), right.replace(value, "")
    return left.strip(_SEPARATORS) or right.strip(_SEPARATORS)


def _split_sessions(values: Sequence[str]) -> list[list[str]]:
    """The names as patients and sessions, where their ends look like time points and several share a beginning."""
    split = [re.fullmatch(r"(.+?)[-_. ]([^_. ]+)", value) for value in values]
    heads = Counter(match[1] for match in split if match)
    ends = all(match and _SESSION.fullmatch(match[2]) for match in split)
    if ends and 2 <= len(heads) < len(set(values)):
        return [[match[1] for match in split if match], [match[2] for match in split if match]]
    return [list(values)]


def _expression(values: Sequence[str]) -> str:
    """A regular expression of the parts of names that were seen: letters, digits and their separators."""
    separators = "".join(sorted({character for value in values for character in value if not character.isalnum()}))
    if all(value.isdecimal() for value in values):
        return r"\d+"
    letters = "A-Za-z0-9" if all(value.isascii() for value in values) else r"\w"
    return f"[{letters}{re.escape(separators)}]+?" if separators else f"[{letters}]+"


def _patterns_of(named: Sequence[_Named], cases: Mapping[str, Mapping[str, str]]) -> tuple[str, ...]:
    """The patterns of the files of a role: the one that most cases have, then those of the cases without it."""
    by_pattern: dict[str, dict[str, Path]] = defaultdict(dict)
    by_word = _by_rarest_word(cases)
    for one in named:
        words = dict.fromkeys(_WORD.findall(str(one.path)))
        if found := _pattern_of(one, {case: cases[case] for word in words for case in by_word.get(word, ())}):
            pattern, case = found
            by_pattern[pattern].setdefault(case, one.path)
    patterns: list[str] = []
    covered: set[str] = set()
    for pattern in sorted(by_pattern, key=lambda pattern: (-len(by_pattern[pattern]), len(pattern))):
        if not by_pattern[pattern].keys() <= covered:
            patterns.append(pattern)
            covered |= by_pattern[pattern].keys()
    return tuple(patterns[:5])


def _by_rarest_word(cases: Mapping[str, Mapping[str, str]]) -> Mapping[str, list[str]]:
    """Word -> the cases of whose names it is the rarest, so that no file is compared with thousands of names."""
    words = {case: _WORD.findall(" ".join(groups.values())) for case, groups in cases.items()}
    counts = Counter(word for those in words.values() for word in set(those))
    found: dict[str, list[str]] = defaultdict(list)
    for case, those in words.items():
        found[min(those, key=lambda word: counts[word], default="")].append(case)
    return found


def _pattern_of(one: _Named, cases: Mapping[str, Mapping[str, str]]) -> tuple[str, str] | None:
    """The pattern of a file, from the first folder that has a part of the case's name on; and the case."""
    text = PurePosixPath(*one.path.parts[:-1], one.path.name[: -len(ending(one.path))]).as_posix()
    best: tuple[int, str, str] | None = None
    for case, groups in cases.items():
        if case in text:
            score, marked = len(case) + 1, text.replace(case, "{case}")
        else:
            marked = text
            if not all(value in text for value in groups.values()):
                continue
            score = sum(map(len, groups.values()))
        for name, value in sorted(groups.items(), key=lambda item: -len(item[1])):
            marked = _replace_word(marked, value, f"{{{name}}}")
        complete = "{case}" in marked or all(f"{{{name}}}" in marked for name in groups)
        if complete and (best is None or score > best[0]):
            best = score, marked, case
    if best is None:
        return None
    parts = best[1].split("/")
    first = next(number for number, part in enumerate(parts) if "{" in part)
    first = min(first, one.at)
    kept = ["*" if PARTS.fullmatch(part) and number > first else part for number, part in enumerate(parts)]
    return "/".join(kept[first:]), best[2]


def _replace_word(text: str, value: str, by: str) -> str:
    """The text with a value replaced where it is a word of its own, outside of what was replaced before."""
    return re.sub(rf"(?<![A-Za-z0-9{{]){re.escape(value)}(?![A-Za-z0-9}}])", lambda _: by, text)


# ---- what the labels are --------------------------------------------------------------------------------------------


def label_values(source: Source) -> list[int]:
    """The values in some label maps of the source; those that cannot be read are reported by `convert`."""
    values: set[int] = set()
    labelled = [case.files[LABEL] for case in source.cases if case.labelled]
    for path in labelled[:: max(len(labelled) // LABELS_READ, 1)][:LABELS_READ]:
        try:
            array = to_integers(read_image(path).array)
        except UserError:
            continue
        values |= set(np.unique(array).tolist())
    return sorted(values)


# ---- the file -------------------------------------------------------------------------------------------------------


def to_text(layout: Layout, values: Sequence[int]) -> str:
    """A layout as a TOML file with a comment at each key."""
    lines = [
        "# A layout for nnunet_brats: check it, change it, and give it to `nnunet_brats convert --layout`.",
        "",
        f"name = {_quote(layout.name)} # part of the data set's name",
        f"case = {_quote(layout.case)} # the name of a case; cases with the same {{patient}} stay in one fold",
    ]
    if layout.patient:
        lines.append(f"patient = {_quote(layout.patient)} # what the time points of a patient share")
    if layout.grades:
        lines.append(f"grades = [{', '.join(map(_quote, layout.grades))}] # folders that grade patients")
    if layout.stack and UNKNOWN in layout.stack:
        lines += ["", f"# The files have {len(layout.stack)} volumes each, and no name says what they are. State it:"]
        lines += [f"# stack = [{', '.join(map(_quote, SEQUENCES[: len(layout.stack)]))}] # in the order of the files"]
    elif layout.stack:
        lines.append(f"stack = [{', '.join(map(_quote, layout.stack))}] # order of the sequences in a 4-D file")
    if layout.scheme_name:
        lines.append(f"scheme = {_quote(layout.scheme_name)} # labels: {layout.numbering.numbers}")
    elif not layout.own_labels and values:
        fitting = [name for name, one in LABEL_SCHEMES.items() if set(values) <= set(one.released)]
        lines += ["", f"# The label maps have the values {', '.join(map(str, values))}. Keep one of these lines:"]
        lines += [f"# scheme = {_quote(name)} # {LABEL_SCHEMES[name].numbers}" for name in fitting]
        lines.append('# or state the numbering at the end of the file: [labels], 1 = "NCR", 2 = "ED", 3 = "ET"')
    if layout.groups:
        lines += ["", "[groups] # what the parts of a name look like, as regular expressions"]
        lines += [f"{name} = {_quote(expression)}" for name, expression in layout.groups.items()]
    lines += [
        "",
        "[files] # ends of paths without .nii.gz; `*` is anything; of several the first that a case has is taken",
        *(f"{role} = {_list(patterns)}" for role, patterns in layout.files.items()),
    ]
    if layout.own_labels:
        lines += ["", "[labels]", *(f"{value} = {_quote(name)}" for value, name in layout.own_labels.items())]
    return "\n".join([*lines, ""])


def _quote(text: str) -> str:
    return f"'{text}'" if "\\" in text or '"' in text else f'"{text}"'


def _list(texts: Sequence[str]) -> str:
    return _quote(texts[0]) if len(texts) == 1 else f"[{', '.join(map(_quote, texts))}]"
