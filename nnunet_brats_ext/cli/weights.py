"""What the verbs `import` and `export` print."""

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from nnunet_brats_ext import papers
from nnunet_brats_ext.storage.errors import shorten
from nnunet_brats_ext.training.environment import START
from nnunet_brats_ext.training.initial_weights import AT_RANDOM
from nnunet_brats_ext.weights.exporting import ExportOptions, export
from nnunet_brats_ext.weights.importing import ImportOptions, import_weights


def run_import(options: ImportOptions) -> None:
    """What was recognised, what became of it, and the next command."""
    done = import_weights(options)
    model, source = done.model, done.source
    table = Table(Column(style="bold"), Column(overflow="fold"), show_header=False, box=None)
    rows = {
        "recognised": model.system,
        "channels": _order(model.inputs[: len(done.sequences)], done.sequences),
        "outputs": _order(model.outputs, done.outputs),
        "trained on": f"{model.trained_on or source.trained_on}; do not evaluate on these cases",
        "licence": source.licence,
        "trainer": f"{model.trainer}, configuration {model.configuration}",
        "folds": ", ".join(done.folds),
    }
    if model.unused:
        rows["not needed"] = f"{len(model.unused)} weights: {shorten(model.unused, 3)}"
    if done.made_anew:
        rows["not in the file"] = (
            f"{len(done.made_anew)} weights that only training needs: {shorten(done.made_anew, 3)}"
        )
    if model.notes:
        rows["note"] = "\n".join(model.notes)
    for title, text in rows.items():
        table.add_row(title, escape(text))
    console = Console()
    console.print(table)
    folds = " ".join(done.folds)
    images = "IMAGES of `convert --normalise percentile-minmax`" if model.normalised_beforehand else "IMAGES"
    console.print(
        f"next: nnunet_brats predict -m {done.folder} -f {folds} -i {images} -o OUT", soft_wrap=True, markup=False
    )
    if done.plans is not None:
        number = int(done.plans.parent.name[7:10])
        start = f"{START}={AT_RANDOM} " if papers.find_trainer(model.trainer).starts_from else ""
        console.print(
            f"to train on: nnUNetv2_preprocess -d {number} -plans_name {model.plans_name} -c {model.configuration}, "
            f"then {start}nnUNetv2_train {number} {model.configuration} FOLD -tr {model.trainer} -p {model.plans_name} "
            f"-pretrained_weights {done.start}",
            soft_wrap=True,
            markup=False,
        )


def _order(given: tuple[str, ...], ours: tuple[str, ...]) -> str:
    names = ", ".join(given)
    return names if given == ours else f"{names}; now {', '.join(ours)}"


def run_export(options: ExportOptions) -> None:
    done = export(options)
    for file, description in zip(done.files, done.descriptions, strict=True):
        print(
            f"{file}: differs from the network by at most {done.difference[file.name]:.1e} of its spread; {description}"
        )
