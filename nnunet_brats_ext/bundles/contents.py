"""What bundle.json says: the models of a system, the predictions that it is made of, and where all of it comes from.

A system is a graph of named predictions: of networks, of an ensemble of other predictions, or of rules on another one.
Loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import Any

from nnunet_brats_ext.brats import LABEL_SCHEMES
from nnunet_brats_ext.predictions.ensemble import METHODS
from nnunet_brats_ext.predictions.rule_sets import RuleSet, rules_of
from nnunet_brats_ext.storage.errors import UserError

MANIFEST, CARD, MODELS = "bundle.json", "README.md", "models"
FORMAT = 1
Fold = int | str
Weights = tuple[tuple[Fold, str], ...]
"""Fold and name of each checkpoint; those of a name one fold after the other."""


@dataclass(frozen=True)
class BundledModel:
    """A trainer on a configuration, whose files lie in a folder of the bundle, as in nnU-Net's nnUNet_results.

    folder: models/DATASET/TRAINER__PLANS__CONFIGURATION. package: that the trainer is of, and its version. parameters:
    of the network. dice: fold -> mean Dice of nnU-Net's validation, where there was one.
    """

    folder: str
    trainer: str
    plans: str
    configuration: str
    weights: Weights
    package: tuple[str, str]
    parameters: int
    dice: Mapping[str, float] = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        return self.folder.split("/")[1]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> BundledModel:
        return cls(**{**content, "weights": _pairs(content["weights"]), "package": tuple(content["package"])})

    @property
    def differs_by_fold(self) -> bool:
        """Whether folds have other checkpoints than each other, as `choose` may choose them."""
        return len({frozenset(names) for names in checkpoints_by_fold(self.weights).values()}) > 1


@dataclass(frozen=True)
class Networks:
    """Some of the networks of a model: fold and checkpoint of each. weight: in a mean of several."""

    model: str
    weights: Weights
    weight: float = 1.0

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Networks:
        return cls(**{**content, "weights": _pairs(content["weights"])})


@dataclass(frozen=True)
class NetworkPrediction:
    """What the networks of a model come to, or those of several, averaged.

    previous: for each of `networks`, those whose label maps it refines. passes: how networks see a case, by the names
    of `inference.systems.Passes`. probabilities: whether they are kept for the next step.
    """

    networks: tuple[Networks, ...]
    previous: tuple[Networks | None, ...]
    passes: Mapping[str, Any]
    probabilities: bool = False

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> NetworkPrediction:
        previous = tuple(one and Networks.from_json(one) for one in content["previous"])
        networks = tuple(map(Networks.from_json, content["networks"]))
        return cls(networks, previous, content["passes"], content["probabilities"])

    @property
    def sources(self) -> tuple[str, ...]:
        return ()

    @property
    def has_probabilities(self) -> bool:
        return self.passes.get("combine") != "vote"


@dataclass(frozen=True)
class EnsemblePrediction:
    """Several predictions as one, by a method of `nnunet_brats ensemble`. options: that are set."""

    of: tuple[str, ...]
    method: str
    options: Mapping[str, Any]
    probabilities: bool = False

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> EnsemblePrediction:
        return cls(tuple(content["of"]), content["method"], content["options"], content["probabilities"])

    @property
    def sources(self) -> tuple[str, ...]:
        return self.of

    @property
    def has_probabilities(self) -> bool:
        return "save_probabilities" in METHODS[self.method].takes


@dataclass(frozen=True)
class RulesPrediction:
    """Post-processing rules on a prediction, as rule files hold them."""

    of: str
    rules: Mapping[str, Any]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> RulesPrediction:
        return cls(content["of"], content["rules"])

    @property
    def rule_set(self) -> RuleSet:
        return rules_of(self.rules)

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.of,)

    @property
    def probabilities(self) -> bool:
        return False

    @property
    def has_probabilities(self) -> bool:
        return False


Prediction = NetworkPrediction | EnsemblePrediction | RulesPrediction
KINDS: Mapping[str, type[Prediction]] = {
    "networks": NetworkPrediction,
    "ensemble": EnsemblePrediction,
    "rules": RulesPrediction,
}


@dataclass(frozen=True)
class BundledSystem:
    """A trained system: its models, its predictions in an order in which they can be made, and the last of them.

    about: what people want to know of it, as bundle.json has it: title, sequences, labels, data, scores, versions.
    """

    models: Mapping[str, BundledModel]
    predictions: Mapping[str, Prediction]
    result: str
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> BundledSystem:
        models = {name: BundledModel.from_json(one) for name, one in content["models"].items()}
        predictions: dict[str, Prediction] = {}
        for name, one in content["predictions"].items():
            predictions[name] = KINDS[one["kind"]].from_json(one)
        return cls(models, predictions, content["result"], content["about"])

    def to_json(self) -> dict[str, Any]:
        kinds = {kind: name for name, kind in KINDS.items()}
        return {
            "format": FORMAT,
            "about": dict(self.about),
            "models": {name: vars(one) for name, one in self.models.items()},
            "predictions": {
                name: {"kind": kinds[type(one)], **_plain(vars(one))} for name, one in self.predictions.items()
            },
            "result": self.result,
        }

    def check(self) -> None:
        """A UserError where predictions name others or models that are not there, or cannot be made in their order."""
        known: set[str] = set()
        for name, one in self.predictions.items():
            if missing := [source for source in one.sources if source not in known]:
                raise UserError(f"{MANIFEST}: prediction {name!r} is made of {missing[0]!r}, which comes later")
            known.add(name)
            if isinstance(one, EnsemblePrediction) and one.method not in METHODS:
                raise UserError(f"{MANIFEST}: prediction {name!r} has the method {one.method!r}, which does not exist")
            if isinstance(one, RulesPrediction):
                _ = one.rule_set
            if isinstance(one, NetworkPrediction) and len(one.networks) != len(one.previous):
                raise UserError(f"{MANIFEST}: prediction {name!r} states previous stages of others than its networks")
        scheme, labels = self.about["scheme"], set(map(int, self.about["labels"]))
        if scheme is not None and (scheme not in LABEL_SCHEMES or labels - set(LABEL_SCHEMES[scheme].trained)):
            raise UserError(f"{MANIFEST}: the numbering {scheme!r} is not one of these labels")
        if self.result not in known:
            raise UserError(f"{MANIFEST}: the result {self.result!r} is none of its predictions")
        for name, networks in self.networks():
            model = self.models.get(networks.model)
            if model is None:
                raise UserError(f"{MANIFEST}: prediction {name!r} needs {networks.model!r}, which is not there")
            if set(networks.weights) - set(model.weights):
                raise UserError(f"{MANIFEST}: prediction {name!r} needs more networks of {networks.model}")

    def networks(self) -> Iterator[tuple[str, Networks]]:
        """The networks of all predictions, those of previous stages included."""
        for name, one in self.predictions.items():
            if isinstance(one, NetworkPrediction):
                yield from ((name, networks) for networks in (*one.networks, *filter(None, one.previous)))

    @property
    def probabilities_of(self) -> str | None:
        """The prediction whose probabilities are nearest to the result: rules change label maps alone. None: a vote."""
        name = self.result
        while isinstance(one := self.predictions[name], RulesPrediction):
            name = one.of
        return name if one.has_probabilities else None

    def with_probabilities(self) -> BundledSystem:
        """The same system, which keeps the probabilities of its result; a UserError where there are none."""
        if (name := self.probabilities_of) is None:
            raise UserError("--probabilities: this system ends in a vote, which has none")
        one = self.predictions[name]
        assert not isinstance(one, RulesPrediction)
        one = replace(one, probabilities=True)
        return replace(self, predictions={**self.predictions, name: one})

    def smaller_systems(self) -> list[BundledSystem]:
        """The system with fewer and fewer networks, itself first, as a time limit asks for them.

        One network after the other is left out, always of the prediction that has most of them (of equals, of the
        last), from its last one on; first stages likewise. In the end each model has one network, and
        then test-time augmentation is left out, too.
        """
        found = [self]
        while (smaller := _with_fewer(found[-1])) is not None:
            found.append(smaller)
        plain = _without_symmetries(found[-1])
        return found if plain == found[-1] else [*found, plain]

    def describe_smaller(self, other: BundledSystem) -> str:
        """What another one of `smaller_systems` leaves out, in words."""
        count, left = (sum(len(networks.weights) for _, networks in one.networks()) for one in (self, other))
        mirrored = any(_symmetries_of(one) for one in self.predictions.values())
        plain = mirrored and not any(_symmetries_of(one) for one in other.predictions.values())
        return f"{left} of {count} networks" + (", without test-time augmentation" if plain else "")


def _symmetries_of(one: Prediction) -> bool:
    return isinstance(one, NetworkPrediction) and one.passes.get("symmetries") != "none"


def _with_fewer(system: BundledSystem) -> BundledSystem | None:
    counts = {
        (name, number, stage): len(networks.weights)
        for name, one in system.predictions.items()
        if isinstance(one, NetworkPrediction)
        for number, pair in enumerate(zip(one.previous, one.networks, strict=True))
        for stage, networks in zip(("previous", "networks"), pair, strict=True)
        if networks
    }
    name, number, stage = max(reversed(counts), key=lambda place: counts[place])
    if counts[name, number, stage] == 1:
        return None
    prediction = system.predictions[name]
    assert isinstance(prediction, NetworkPrediction)
    entries = list(getattr(prediction, stage))
    few = entries[number]
    entries[number] = replace(few, weights=few.weights[:-1])
    changes: dict[str, Any] = {stage: tuple(entries)}
    return replace(system, predictions={**system.predictions, name: replace(prediction, **changes)})


def _without_symmetries(system: BundledSystem) -> BundledSystem:
    predictions: dict[str, Prediction] = {
        name: replace(one, passes={**one.passes, "symmetries": "none"}) if isinstance(one, NetworkPrediction) else one
        for name, one in system.predictions.items()
    }
    return replace(system, predictions=predictions)


def checkpoints_by_fold(weights: Weights) -> dict[Fold, list[str]]:
    """Fold -> the names of its checkpoints."""
    found: dict[Fold, list[str]] = {}
    for fold, name in weights:
        found.setdefault(fold, []).append(name)
    return found


def _pairs(content: Sequence[Sequence[Any]]) -> Weights:
    return tuple((fold, name) for fold, name in content)


def _plain(value: Any) -> Any:
    """A value of dataclasses and tuples as JSON has it."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return _plain(vars(value)) if isinstance(value, Networks) else value


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of bundle.json."""
    import json

    return json.loads(resources.files(__package__).joinpath("bundle.schema.json").read_text(encoding="utf-8"))
