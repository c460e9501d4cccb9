"""The card of a bundled system, in Markdown, written from bundle.json. Loads no torch."""

from collections.abc import Iterator

from nnunet_brats_ext.bundles.contents import (
    BundledSystem,
    EnsemblePrediction,
    NetworkPrediction,
    Networks,
    RulesPrediction,
    Weights,
    checkpoints_by_fold,
)
from nnunet_brats_ext.dataset_conversion.normalisation import NORMALISATIONS
from nnunet_brats_ext.predictions.rule_sets import describe_rule
from nnunet_brats_ext.storage.datasets import PERCENTILE_MINMAX

SHOWN = ("dice", "hd95", "lesionwise_dice", "lesionwise_hd95", "sensitivity", "specificity")


def write_card(system: BundledSystem) -> str:
    """What the system is, what goes in and comes out, how it was trained and scored, what it may be used for."""
    return "\n".join(_lines(system)) + "\n"


def _lines(system: BundledSystem) -> Iterator[str]:
    about = system.about
    count = sum(len(model.weights) for model in system.models.values())
    yield f"# {about['title']}"
    yield ""
    yield f"A trained system of {count} network{'s' if count > 1 else ''} for brain tumours in MRI. {about['note']}"
    yield ""
    yield "## Use"
    yield ""
    yield "```bash"
    yield "nnunet_brats segment THIS_FILE.zip PATIENT_FOLDER -o OUT"
    yield "```"
    yield ""
    yield "## Input and output"
    yield ""
    yield f"- Sequences: {', '.join(about['sequences'])}, on one grid, skull removed."
    if about["normalised_beforehand"]:
        way = NORMALISATIONS[about.get("normalisation", PERCENTILE_MINMAX)]  # earlier bundles do not say
        yield f"- Images become on the way in: {way.what}."
    else:
        yield "- Images are normalised by nnU-Net's plans, which are in the file."
    names = ", ".join(f"{label} {name}" for label, name in about["labels"].items())
    yield f"- Labels as trained: {names}. `segment --labels` chooses the numbering of what it writes."
    regions = (f"{name} = {' + '.join(map(str, labels))}" for name, labels in about["regions"].items())
    yield f"- Regions: {', '.join(regions)}."
    yield ""
    yield "## What it is made of"
    yield ""
    yield "| model | trainer | of | configuration | networks | parameters | Dice of nnU-Net's validation |"
    yield "|---|---|---|---|---|---|---|"
    for name, model in system.models.items():
        dice = ", ".join(f"{fold}: {value:.3f}" for fold, value in model.dice.items()) or "not known"
        yield (
            f"| {name} | `{model.trainer}` | {' '.join(model.package).strip()} | {model.configuration} | "
            f"{networks_in_words(model.weights)} | "
            f"{model.parameters:,} | {dice} |"
        )
    yield ""
    for number, (name, one) in enumerate(system.predictions.items(), 1):
        mark = " This is the result." if name == system.result else ""
        yield f"{number}. **{name}**: {describe(one)}.{mark}"
    yield ""
    yield "## Training data"
    yield ""
    for data in about["data"]:
        patients = f" of {data['patients']} patients" if data.get("patients") else ""
        release = f", {data['release']}" if data.get("release") else ""
        digest = f"; SHA-256 over the hashes of its files: `{data['sha256']}`" if data.get("sha256") else ""
        yield f"- {data['name']}{release}: {data['cases']} labelled cases{patients}{digest}"
    yield ""
    yield "## Scores in cross-validation"
    yield ""
    yield from _scores(system)
    yield ""
    yield "## Licence and citation"
    yield ""
    yield f"Licence of the weights: {about['licence']}."
    yield ""
    yield from (f"- {one}" for one in about["citations"])
    yield ""
    yield "## Versions"
    yield ""
    yield f"Made with {', '.join(f'{name} {version}' for name, version in about['versions'].items())}."


def describe(one: NetworkPrediction | EnsemblePrediction | RulesPrediction) -> str:
    """A prediction in words."""
    if isinstance(one, EnsemblePrediction):
        weights = one.options.get("weights")
        weighted = f", weighted {' : '.join(f'{weight:g}' for weight in weights)}" if weights else ""
        return f"{one.method} of {', '.join(one.of)}{weighted}"
    if isinstance(one, RulesPrediction):
        return f"{one.of} after the rules {', '.join(map(describe_rule, one.rules['rules']))}"
    how = {"vote": "vote", "probabilities": "mean probability"}.get(one.passes.get("combine", ""), "mean logits")
    several = len(one.networks) > 1 or len(one.networks[0].weights) > 1
    words = " and ".join(
        _networks(networks) + (f", on label maps of {_networks(before)}" if before else "")
        for networks, before in zip(one.networks, one.previous, strict=True)
    )
    options = "".join(
        f", {name} {one.passes[key]}"
        for key, name in (("ties", "ties by the"), ("tiling", "tiling"), ("symmetries", "test-time augmentation"))
        if key in one.passes
    )
    return (f"{how} of {words}" if several else words) + options


def _networks(networks: Networks) -> str:
    return f"{networks.model} ({networks_in_words(networks.weights)})"


def networks_in_words(weights: Weights) -> str:
    """Which folds have which checkpoints: folds 0, 1; final. Where they differ: fold 0: epoch_100; fold 1: final."""
    of_fold = checkpoints_by_fold(weights)
    names = [
        ", ".join(name.rsplit(".", 1)[0].removeprefix("checkpoint_") for name in each) for each in of_fold.values()
    ]
    if len(set(names)) > 1:
        return "; ".join(f"fold {fold}: {each}" for fold, each in zip(of_fold, names, strict=True))
    return f"fold{'s' if len(of_fold) > 1 else ''} {', '.join(map(str, of_fold))}; {names[0]}"


def _scores(system: BundledSystem) -> Iterator[str]:
    scores = system.about["scores"]
    if not scores:
        yield "Not stated."
        return
    for name, one in scores.items():
        mark = " (the result)" if name == system.result else ""
        regions = one["mean"]
        metrics = [key for key in SHOWN if key in next(iter(regions.values()))] or list(next(iter(regions.values())))
        yield f"{name}{mark}, {one['cases']} cases, by the rules of {one['preset']}, means:"
        yield ""
        yield f"| region | {' | '.join(metrics)} |"
        yield f"|---|{'---|' * len(metrics)}"
        for region, values in regions.items():
            cells = ("" if values[key] is None else f"{values[key]:.3f}" for key in metrics)
            yield f"| {region} | {' | '.join(cells)} |"
        yield ""
