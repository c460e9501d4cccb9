"""Rules as data: a JSON file holds a list of them, each with its name and its parameters, applied in that order.

`{"scheme": "glioma_2017", "rules": [{"rule": "small-et", "min_voxels": 500}, ...]}`; the scheme says which regions
there are. With `"clusters"`, a case belongs to one of several groups of similar cases, and a rule that has a number as
`"cluster"` is for the cases of that group alone. A file lies beside a model as `brats_rules_NAME.json` and is found
again by NAME; the rules that papers publish have names of their own.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_brats_ext.brats import LABEL_SCHEMES, LabelScheme
from nnunet_brats_ext.papers import published_rules
from nnunet_brats_ext.predictions import rules
from nnunet_brats_ext.predictions.case_clusters import CaseClusters, read_clusters
from nnunet_brats_ext.predictions.rules import RuleInput
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import read_json, to_json
from nnunet_brats_ext.storage.output import write_text

DEFAULT_SCHEME = "glioma_2017"
REGION = "region"  # the one parameter that is no number
CLUSTER = "cluster"  # for which cases a rule is; no parameter of it


@dataclass(frozen=True)
class Rule:
    """One kind of rule.

    function: of a case and of the rule's parameters, which are its keyword arguments. fixed: those that the rule sets
    itself. thresholds: parameters of which one at least is needed; `NAME=500` sets the first. on_probabilities:
    parameters with which it looks at probabilities. needs_images: whether it looks at images.
    """

    function: Callable[..., np.ndarray]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    thresholds: tuple[str, ...] = ()
    on_probabilities: tuple[str, ...] = ()
    needs_images: bool = False

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        known = inspect.signature(self.function).parameters
        return {n: one for n, one in known.items() if one.kind is one.KEYWORD_ONLY and n not in self.fixed}


VOLUMES = ("min_voxels", "min_ml")
SHARES = ("fraction_of_largest", "fraction_of_region")
RULES: Mapping[str, Rule] = {
    "small-et": Rule(rules.small_region, {REGION: "ET"}, VOLUMES, ("unless_mean_probability",)),
    "small-region": Rule(rules.small_region, {}, VOLUMES, ("unless_mean_probability",)),
    "small-components": Rule(rules.small_components, {}, (*VOLUMES, *SHARES), ("unless_mean_probability",)),
    "unlikely-components": Rule(
        rules.unlikely_components, {}, ("min_mean_probability",), on_probabilities=("min_mean_probability",)
    ),
    "oedema-to-core": Rule(rules.oedema_to_core, needs_images=True),
}


@dataclass(frozen=True)
class RuleSet:
    """Rules in the order in which they apply, the scheme whose regions they name, and clusters that they are for."""

    rules: tuple[Mapping[str, Any], ...]
    scheme_name: str = DEFAULT_SCHEME
    clusters: CaseClusters | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.scheme_name, str) or self.scheme_name not in LABEL_SCHEMES:
            raise UserError(f"scheme {self.scheme_name!r} is none of {', '.join(LABEL_SCHEMES)}")
        for number, rule in enumerate(self.rules, 1):
            if problem := _problem(rule, self.scheme) or self._problem_of_cluster(rule):
                raise UserError(f"rule {number}, {problem}")

    def _problem_of_cluster(self, rule: Mapping[str, Any]) -> str | None:
        known = range(len(self.clusters.centres) if self.clusters else 0)
        if CLUSTER not in rule or (isinstance(rule[CLUSTER], int) and rule[CLUSTER] in known):
            return None
        return f"{describe_rule(rule)}: no cluster {rule[CLUSTER]!r} among {len(known)}, which count from 0"

    @property
    def scheme(self) -> LabelScheme:
        return LABEL_SCHEMES[self.scheme_name]

    @property
    def needing_images(self) -> list[str]:
        """The names of the rules that look at images, and of the clusters where they do."""
        rules = [rule["rule"] for rule in self.rules if RULES[rule["rule"]].needs_images]
        return [*rules, *(["clusters"] if self.clusters and self.clusters.images else [])]

    @property
    def needs_images(self) -> bool:
        return bool(self.needing_images)

    @property
    def needs_probabilities(self) -> bool:
        return any(map(needs_probabilities, self.rules))

    def apply(self, case: RuleInput) -> tuple[np.ndarray, list[int]]:
        """The final label map, and how many voxels each rule changed."""
        case = replace(case, scheme=self.scheme)
        cluster = self.clusters.of(case) if self.clusters else None
        changed = []
        for rule in self.rules:
            if rule.get(CLUSTER, cluster) != cluster:
                changed.append(0)
                continue
            kind = RULES[rule["rule"]]
            labels = kind.function(case, **kind.fixed, **_parameters(rule))
            changed.append(int(np.count_nonzero(labels != case.labels)))
            case = replace(case, labels=labels)
        return case.labels, changed

    def as_json(self) -> dict[str, Any]:
        """As a file of rules has it."""
        clusters = {"clusters": self.clusters.as_json()} if self.clusters else {}
        return {"scheme": self.scheme_name, **clusters, "rules": list(map(dict, self.rules))}

    def to_json(self) -> str:
        return to_json(self.as_json())


def needs_probabilities(rule: Mapping[str, Any]) -> bool:
    """Whether a rule with its parameters, such as `parse_rule` gives it, looks at probabilities."""
    return rule.get("rule") in RULES and not {*RULES[rule["rule"]].on_probabilities}.isdisjoint(rule)


# ---- names and files ------------------------------------------------------------------------------------------------


def find_rules(name: str, model: Path | None = None) -> RuleSet:
    """Rules by the path of a file, by the name under which they were saved beside `model`, or by a paper's name."""
    saved = [model / f"brats_rules_{name}.json"] if model else []
    for path in (*saved, Path(name)):
        if path.is_file():
            return read_rules(path)
    published = published_rules()
    if name in published:
        return RuleSet(tuple(published[name]))
    there = ", ".join([*_saved_beside(model), *published]) if model else ", ".join(published)
    files = " and ".join(f"no file {path}" for path in (*saved, Path(name)))
    others = [one for one in model.parent.iterdir() if name in _saved_beside(one)] if model else []
    advice = f". Those beside {others[0].name} are taken by their path: {rules_file(others[0], name)}" if others else ""
    raise UserError(f"no rules called {name!r}: {files}, and no paper of that name; there are {there}{advice}")


def _saved_beside(model: Path) -> list[str]:
    """The names of the rules that were saved beside a model."""
    return [path.stem.removeprefix("brats_rules_") for path in sorted(model.glob("brats_rules_*.json"))]


def collect_rules(
    names: Sequence[str], texts: Sequence[str], model: Path | None = None, scheme_name: str | None = None
) -> RuleSet:
    """The rules of several names (`find_rules`), then single ones (`parse_rule`), all of one scheme."""
    found = [find_rules(name, model) for name in names]
    if scheme_name and not texts:
        raise UserError(f"--scheme {scheme_name}: is for --rule; rules that --rules names have a scheme of their own")
    if texts:
        found.append(RuleSet(tuple(map(parse_rule, texts)), scheme_name or DEFAULT_SCHEME))
    if not found:
        raise UserError("no rules given: use --rules or --rule")
    first = found[-1]  # the papers' come first, and name the regions of all gliomas
    if any((one.scheme.regions, one.scheme.paint) != (first.scheme.regions, first.scheme.paint) for one in found):
        schemes = sorted({one.scheme_name for one in found})
        raise UserError(f"the rules are for the regions of different schemes: {', '.join(schemes)}")
    clustered = [one.clusters for one in found if one.clusters]
    if len(clustered) > 1:
        raise UserError(f"{len(clustered)} of the rule files have clusters of their own; apply one after the other")
    return RuleSet(tuple(rule for one in found for rule in one.rules), first.scheme_name, *clustered)


def save_rules(rule_set: RuleSet, model: Path, name: str) -> Path:
    """Save rules beside a model, to be found by name."""
    path = rules_file(model, name)
    write_text(path, rule_set.to_json())
    return path


def rules_file(model: Path, name: str) -> Path:
    """Where rules of that name are saved beside a model, whose folder must exist."""
    if not model.is_dir():
        raise UserError(f"-m {model} is no folder of a trained model")
    return model / f"brats_rules_{name}.json"


def read_rules(path: Path) -> RuleSet:
    """Rules from a JSON file, checked; the error names the file, the rule and the key."""
    content = read_json(path)
    try:
        return rules_of(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def rules_of(content: Mapping[str, Any]) -> RuleSet:
    """Rules from the content of such a file, checked; the error names the rule and the key."""
    if not set(content) <= {"scheme", "rules", "clusters"} or not isinstance(content.get("rules"), list):
        raise UserError(f'expected {{"scheme": NAME, "rules": [...]}}, got {_shortened(content)}')
    clusters = read_clusters(content["clusters"]) if "clusters" in content else None
    return RuleSet(tuple(content["rules"]), content.get("scheme", DEFAULT_SCHEME), clusters)


def parse_rule(text: str) -> dict[str, Any]:
    """`small-et=500`, `small-et=0.5ml`, `small-components:WT=50`, `unlikely-components:ET=0.6`, `oedema-to-core`.

    One threshold and one region; whatever has more of them is written as a JSON file. Names are checked by `RuleSet`.
    """
    head, _, value = text.partition("=")
    name, _, region = head.partition(":")
    rule: dict[str, Any] = {"rule": name} | ({REGION: region} if region else {})
    if value:
        kind = RULES.get(name)
        parameter = kind.thresholds[0] if kind and kind.thresholds else "min_voxels"
        if value.endswith("ml"):
            parameter, value = "min_ml", value[:-2]
        try:
            rule[parameter] = float(value) if "." in value else int(value)
        except ValueError:
            raise UserError(f"rule {text!r}: {value!r} is no number") from None
    return rule


def describe_rule(rule: Mapping[str, Any]) -> str:
    """One rule in a line, such as `small-et min_voxels=500`."""
    cluster = [f"in cluster {rule[CLUSTER]}"] if CLUSTER in rule else []
    return " ".join([rule["rule"], *(f"{name}={value}" for name, value in _parameters(rule).items()), *cluster])


def _parameters(rule: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in rule.items() if name not in ("rule", CLUSTER)}


def _shortened(content: Mapping[str, Any]) -> str:
    text = str(content)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _problem(rule: Any, scheme: LabelScheme) -> str | None:
    """What is wrong with an entry of a rule set, in words; None if nothing is."""
    if not isinstance(rule, Mapping) or not isinstance(rule.get("rule"), str) or rule["rule"] not in RULES:
        return f'{rule!r}: "rule" should be one of {", ".join(RULES)}'
    kind, given, shown = RULES[rule["rule"]], _parameters(rule), describe_rule(rule)
    parameters, regions = kind.parameters, ", ".join(scheme.regions)
    if others := sorted(set(given) - set(parameters)):
        return f"{shown}: {', '.join(others)} is none of {', '.join(parameters)}"
    for name, value in given.items():
        if name == REGION and (not isinstance(value, str) or value not in scheme.regions):
            return f"{shown}: no region {value!r} among {regions}"
        if name != REGION and not _is_size(value):
            return f"{shown}: {name} should be a number from 0 on, not {value!r}"
    if kind.thresholds and not {*kind.thresholds} & set(given):
        return f"{shown}: lacks a threshold: {', '.join(sorted(kind.thresholds))}"
    if REGION in parameters and parameters[REGION].default is inspect.Parameter.empty and REGION not in given:
        return f"{shown}: lacks a region: {regions}"
    return None


def _is_size(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < inf
