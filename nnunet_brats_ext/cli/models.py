"""The verbs of trained models: `predict` and `attention`; each calls one function and prints what came of it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table

from nnunet_brats_ext.cli.imports import quick_imports
from nnunet_brats_ext.evaluation.metric_facts import facts_of_metric
from nnunet_brats_ext.inference.chosen import CHOSEN, CHOSEN_FILE
from nnunet_brats_ext.inference.options import AttentionOptions, ChooseOptions, ModelOptions, PredictOptions
from nnunet_brats_ext.storage.errors import UserError, each_notice_once

if TYPE_CHECKING:
    from nnunet_brats_ext.inference.profiling import Profile
    from nnunet_brats_ext.inference.selection import Selection
    from nnunet_brats_ext.inference.work import WorkPlan


def run_predict(options: PredictOptions) -> None:
    with quick_imports():
        from nnunet_brats_ext.inference.prediction import plan_by_sequences, plan_prediction

    with each_notice_once():
        plans = plan_by_sequences(options) if options.by_sequences else [plan_prediction(options)]
        for number, plan in enumerate(plans):
            if number == 0:  # what the user can fix comes first
                say_where(options)
                if options.precision != "default":
                    print(f"networks compute in {options.precision}: a few voxels at the borders of regions may differ")
            run_plan(plan, options)


def run_plan(plan: "WorkPlan", options: PredictOptions) -> None:
    """Predict, and print what came of it."""
    if plan.chosen:
        Console().print(table_of_choice(plan.chosen, options.by))
    outcome = plan.run()
    for note in outcome.notes:
        print(note)
    for title, profile in outcome.profiles:
        if options.profile:
            Console().print(table_of_profile(profile, title))
        elif options.low_memory_mb:
            print(f"{title}: {describe_peak(profile, options.low_memory_mb)}")
    if outcome.changes:
        from nnunet_brats_ext.cli.predictions import print_changes

        print_changes(outcome.changes)
    if outcome.maps:
        for maps in dict.fromkeys(folder.parent for folder in outcome.maps):
            count = sum(path.is_dir() and path.name[0] != "." for path in maps.iterdir())
            print(f"{count} maps per case in {maps}; training of stage 2 draws from them")
    elif outcome.finished_before == len(outcome.label_maps):
        print(f"{len(outcome.label_maps)} cases are in {outcome.out} already; --overwrite predicts them anew")
    else:
        before = f", {outcome.finished_before} of them before" if outcome.finished_before else ""
        print(f"{len(outcome.label_maps)} cases predicted into {outcome.out}{before}")


def run_pool(options: PredictOptions) -> None:
    """The old verb for `predict --models`."""
    if not options.models:
        raise UserError("missing: --models, the candidates, as TRAINER:CONFIGURATION")
    run_predict(options)


def run_predict_stage(options: PredictOptions) -> None:
    """The old verb for `predict --for-next-stage`."""
    run_predict(replace(options, for_next_stage=True))


def run_choose(options: ChooseOptions) -> None:
    """The scores of all candidates, the choice, and the next command."""
    with quick_imports():
        from nnunet_brats_ext.inference.selection import choose_checkpoints

    say_where(options)
    chosen, outcome = choose_checkpoints(options)
    for note in outcome.notes:
        print(note)
    Console().print(table_of_choice(chosen, options.by))
    for fold, each in chosen.items():
        if len(each.halves) == 1:
            print(f"fold {fold} has one case, which its checkpoints are chosen by: its score will be too good")
    folders = dict.fromkeys(one.folder for each in chosen.values() for one in each.means)
    for folder in folders:
        print(f"written: {folder}/fold_*/{CHOSEN_FILE}")
    if options.out:
        print(f"written: {options.out}")
    print(f"next: nnunet_brats predict -m {next(iter(folders))} -chk {CHOSEN} -i IMAGES -o PREDICTIONS")


def run_attention(options: AttentionOptions) -> None:
    with quick_imports():
        from nnunet_brats_ext.inference.attention import attend

    say_where(options)
    print(f"{len(attend(options))} cases shown in {options.out}")


def say_where(options: ModelOptions) -> None:
    from nnunet_brats_ext.inference.predictor import find_device

    if find_device(options.device).type == "cpu" and options.device is None:
        print("torch sees no GPU on this machine: the CPU is used, which takes longer")


def table_of_choice(chosen: "Mapping[int, Selection]", by: str) -> Table:
    """A row per candidate, a column per fold."""
    from nnunet_brats_ext.inference.selection import name_of

    score = "mean rank" if by == "ranking" else f"Dice of {by}" if by.isupper() else f"mean {facts_of_metric(by).title}"
    folds = (Column(f"fold {fold}", justify="right") for fold in chosen)
    table = Table(Column("candidate", overflow="fold"), *folds, title=f"{score} on the cases of each fold; * is chosen")
    best = {fold: [name_of(one) for one in each.best] for fold, each in chosen.items()}
    means = {fold: {name_of(one): mean for one, mean in each.means.items()} for fold, each in chosen.items()}
    for name in dict.fromkeys(name for each in means.values() for name in each):
        cells = [(f"{each[name]:.4f}" if name in each else "") + (" *" if name in best[fold] else "  ")
                 for fold, each in means.items()]  # fmt: skip
        table.add_row(name, *cells)
    return table


def table_of_profile(profile: "Profile", title: str) -> Table:
    """A row per case, then one for loading the model and one over all."""
    megabytes = 2**20
    steps = list(dict.fromkeys(step for each in profile.cases.values() for step in each))
    table = Table(title=f"{title}, on {profile.describe_device()}")
    table.add_column("case", overflow="fold")
    for step in steps:
        table.add_column(f"{step} [s]", justify="right")
    table.add_column("peak [MB]", justify="right")
    for case, each in profile.cases.items():
        peak = max(peak for _, peak in each.values())
        table.add_row(case, *(f"{each[step][0]:.2f}" for step in steps), f"{peak / megabytes:.0f}")
    total = [sum(each[step][0] for each in profile.cases.values()) / len(profile.cases) for step in steps]
    table.add_section()
    table.add_row("loading the model", *("" for _ in steps), f"{profile.load[1] / megabytes:.0f}")
    table.add_row("mean; highest", *(f"{seconds:.2f}" for seconds in total), f"{profile.peak_mb:.0f}")
    return table


def describe_peak(profile: "Profile", limit_mb: float) -> str:
    kind = "device memory" if profile.device.type == "cuda" else "resident memory above the start"
    peak = f"at most {profile.peak_mb:.0f} MB of {kind}"
    if profile.peak_mb > limit_mb:
        return f"{peak}, more than the {limit_mb:.0f} MB asked for; this model does not allow less"
    return f"{peak}, of {limit_mb:.0f} MB"
