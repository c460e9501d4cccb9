"""Rules as data: a JSON file holds a list of them, each with its name and its parameters, applied in that order.

`{"scheme": "glioma_2017", "rules": [{"rule": "small-et", "min_voxels": 500}, ...]}`; the scheme says which regions
there are. A file lies beside a model as `brats_rules_NAME.json` and is found again by NAME; the rules that papers
publish have names of their own.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_brats_ext.brats import LABEL_SCHEMES, LabelScheme
from nnunet_brats_ext.papers import published_rules
from nnunet_brats_ext.predictions import rules
from nnunet_brats_ext.predictions.rules import Case
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.json_files import read_json
from nnunet_brats_ext.storage.output import write_text

RULES: Mapping[str, Callable[..., np.ndarray]] = {
    "small-et": partial(rules.small_region, region="ET"),
    "small-region": rules.small_region,
    "small-components": rules.small_components,
    "unlikely-components": rules.unlikely_components,
    "oedema-to-core": rules.oedema_to_core,
}
THRESHOLDS = {"min_voxels", "min_ml", "fraction_of_largest", "fraction_of_region", "min_mean_probability"}
PROBABILITY_PARAMETERS = {"unless_mean_probability", "min_mean_probability"}


@dataclass(frozen=True)
class RuleSet:
    """Rules in the order in which they apply, and the scheme whose regions they speak of."""

    rules: tuple[Mapping[str, Any], ...]
    scheme_name: str = "glioma_2017"

    def __post_init__(self) -> None:
        if self.scheme_name not in LABEL_SCHEMES:
            raise UserError(f"scheme {self.scheme_name!r} is none of {', '.join(LABEL_SCHEMES)}")
        for rule in self.rules:
            _check(rule, self.scheme)

    @property
    def scheme(self) -> LabelScheme:
        return LABEL_SCHEMES[self.scheme_name]

    @property
    def needs_images(self) -> bool:
        return any(rule["rule"] == "oedema-to-core" for rule in self.rules)

    @property
    def needs_probabilities(self) -> bool:
        return any(PROBABILITY_PARAMETERS & set(rule) for rule in self.rules)

    def apply(self, case: Case) -> tuple[np.ndarray, list[int]]:
        """The final label map, and how many voxels each rule changed."""
        case = replace(case, scheme=self.scheme)
        changed = []
        for rule in self.rules:
            parameters = {name: value for name, value in rule.items() if name != "rule"}
            labels = RULES[rule["rule"]](case, **parameters)
            changed.append(int(np.count_nonzero(labels != case.labels)))
            case = replace(case, labels=labels)
        return case.labels, changed

    def to_json(self) -> str:
        return json.dumps({"scheme": self.scheme_name, "rules": list(map(dict, self.rules))}, indent=2) + "\n"


def find_rules(name: str, model: Path | None = None) -> RuleSet:
    """Rules by the path of a file, by the name under which they were saved beside `model`, or by a paper's name."""
    saved = [model / f"brats_rules_{name}.json"] if model else []
    for path in (*saved, Path(name)):
        if path.is_file():
            return read_rules(path)
    published = published_rules()
    if name in published:
        return RuleSet(tuple(published[name]))
    beside = sorted(model.glob("brats_rules_*.json")) if model else []
    names = [path.stem.removeprefix("brats_rules_") for path in beside]
    raise UserError(f"no rules called {name!r}, and no such file; there are {', '.join([*names, *published])}")


def collect_rules(
    names: Sequence[str], texts: Sequence[str], model: Path | None = None, scheme_name: str | None = None
) -> RuleSet:
    """The rules of several names (`find_rules`), then single ones (`parse_rule`), all of one scheme."""
    found = [find_rules(name, model) for name in names]
    if texts:
        found.append(RuleSet(tuple(map(parse_rule, texts)), scheme_name or "glioma_2017"))
    if not found:
        raise UserError("no rules given: use --rules or --rule")
    first = found[-1]  # the papers' come first, and speak of the regions of all gliomas
    if any((one.scheme.regions, one.scheme.paint) != (first.scheme.regions, first.scheme.paint) for one in found):
        schemes = sorted({one.scheme_name for one in found})
        raise UserError(f"the rules speak of the regions of different schemes: {', '.join(schemes)}")
    return RuleSet(tuple(rule for one in found for rule in one.rules), first.scheme_name)


def save_rules(rule_set: RuleSet, model: Path, name: str) -> Path:
    """Save rules beside a model, to be found by name."""
    if not model.is_dir():
        raise UserError(f"{model} is no folder of a trained model")
    path = model / f"brats_rules_{name}.json"
    write_text(path, rule_set.to_json())
    return path


def read_rules(path: Path) -> RuleSet:
    """Rules from a JSON file, checked; the error names the file and the rule."""
    content = read_json(path)
    strangers = sorted(set(content) - {"scheme", "rules"})
    try:
        if strangers or not isinstance(content.get("rules"), list):
            raise UserError(f'expected {{"scheme": ..., "rules": [...]}}, got the keys {sorted(content)}')
        return RuleSet(tuple(content["rules"]), content.get("scheme", "glioma_2017"))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def parse_rule(text: str) -> dict[str, Any]:
    """`small-et=500`, `small-et=0.5ml`, `small-components:WT=50`, `unlikely-components:ET=0.6`, `oedema-to-core`.

    One threshold and one region; whatever has more of them is written as a JSON file.
    """
    head, _, value = text.partition("=")
    name, _, region = head.partition(":")
    rule: dict[str, Any] = {"rule": name} | ({"region": region} if region else {})
    if value:
        parameter = "min_mean_probability" if name == "unlikely-components" else "min_voxels"
        if value.endswith("ml"):
            parameter, value = "min_ml", value[:-2]
        try:
            rule[parameter] = float(value) if "." in value else int(value)
        except ValueError:
            raise UserError(f"rule {text!r}: {value!r} is no number") from None
    return rule


def describe(rule: Mapping[str, Any]) -> str:
    """One rule in a line, such as `small-et min_voxels=500`."""
    return " ".join([rule["rule"], *(f"{name}={value}" for name, value in rule.items() if name != "rule")])


def _check(rule: Any, scheme: LabelScheme) -> None:
    if not isinstance(rule, Mapping) or rule.get("rule") not in RULES:
        raise UserError(f"rule {rule!r} is none of {', '.join(RULES)}")
    parameters = [name for name in inspect.signature(RULES[rule["rule"]]).parameters if name != "case"]
    if rule["rule"] == "small-et":
        parameters.remove("region")
    given = {name: value for name, value in rule.items() if name != "rule"}
    if strangers := sorted(set(given) - set(parameters)):
        raise UserError(f"rule {describe(rule)}: {', '.join(strangers)} is none of {', '.join(parameters)}")
    if rule["rule"] == "unlikely-components" and "region" not in given:
        raise UserError(f"rule {describe(rule)} lacks a region: {', '.join(scheme.regions)}")
    if given.get("region", "WT") not in scheme.regions:
        raise UserError(f"rule {describe(rule)}: no region {given.get('region')} among {', '.join(scheme.regions)}")
    for name, value in given.items():
        if name != "region" and (isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0):
            raise UserError(f"rule {describe(rule)}: {name} should be a number from 0 on")
    if (possible := THRESHOLDS & set(parameters)) and not possible & set(given):
        raise UserError(f"rule {describe(rule)} lacks a threshold: {', '.join(sorted(possible))}")
