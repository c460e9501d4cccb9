"""What the verbs of the group "Setting up" print: doctor, papers, demo."""

from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape

from nnunet_brats_ext import papers
from nnunet_brats_ext.demo import Demo, DemoOptions
from nnunet_brats_ext.predictions.rule_sets import RuleSet, describe_rule
from nnunet_brats_ext.storage.options import Options, argument, option


@dataclass(frozen=True)
class DoctorOptions(Options):
    """`doctor` has none."""


@dataclass(frozen=True)
class PapersOptions(Options):
    """What `papers` shows."""

    paper: str | None = argument("one paper in full, such as lyu2020", None, choices=lambda: list(papers.find_papers()))
    markdown: bool = option(default=False, help="papers and trainers as the table of the README")


def doctor(options: DoctorOptions) -> int:
    """Print every finding and what to do about it; 1 if something is wrong."""
    from nnunet_brats_ext.plugin.doctor import examine

    console = Console(soft_wrap=True, highlight=False)
    wrong = 0
    for finding in examine():
        mark = "[red] x[/red]" if finding.fix else "[green]ok[/green]"
        console.print(f"{mark} [bold]{escape(finding.subject)}[/bold]: {escape(finding.state)}")
        if finding.fix:
            wrong += 1
            console.print(f"   [yellow]-> {escape(finding.fix)}[/yellow]")
    console.print("Nothing is wrong." if not wrong else f"{wrong} to fix.", style="bold")
    return int(wrong > 0)


def show_papers(options: PapersOptions) -> None:
    if options.markdown:
        print(readme_table())
        return
    console = Console(soft_wrap=True, highlight=False)
    chosen = [papers.find_paper(options.paper)] if options.paper else papers.find_papers().values()
    for paper in chosen:
        console.print(f"[bold]{paper.key}[/]: {escape(paper.title)}. {escape(paper.short)}, {paper.link}")
        for one in paper.trainers:
            console.print(f"  [cyan]{one.name}[/] on {one.configuration}: {escape(one.summary)}")
            if options.paper:
                style, kept = one.prediction, one.snapshot_epochs
                count = "as many as the plans give it" if one.parameters is None else f"{one.parameters:,}"
                console.print(f"    parameters: {count}")
                console.print(f"    predicts by tiling {style.tiling}, symmetries {style.symmetries}")
                if kept:
                    console.print(f"    keeps the weights after epochs {', '.join(map(str, kept))}")
        if options.paper:
            for configuration in paper.configurations:
                print_configuration(configuration, console)
        for name, rules in paper.rules.items():
            shown = " then ".join(map(describe_rule, RuleSet(tuple(rules)).rules))
            console.print(f"  rules {name}: {escape(shown)}")
        if paper.recipe:
            console.print(f"  recipe {paper.key}: `nnunet_brats run {paper.key} RELEASE`")
        if options.paper:
            for result in paper.results:
                means = result.scores or result.deviations
                dice = ", ".join(
                    f"{region} {values['dice']:.3f}" for region, values in means.items() if "dice" in values
                )
                what = "Dice" if result.scores else f"SD of Dice over {result.over}"
                here = f"in the recipe {result.prediction}" if result.prediction else f"not here: {result.absent}"
                words = f"{result.table or 'published'}, {result.system}, {result.data}: {what} {dice}; {here}"
                console.print(f"  {escape(words)}")


def print_configuration(one: papers.Configuration, console: Console) -> None:
    """What a configuration of a paper was understood as; sizes are (z, y, x)."""
    patch = "the largest case" if one.patch_size is None else " x ".join(map(str, one.patch_size))
    memory = "network not counted" if one.footprint is None else f"{one.footprint.parameters:,} parameters counted"
    console.print(
        f"  configuration {one.name}: patch (z, y, x) {patch}, batch {one.batch_size}, {one.poolings} poolings, "
        f"from {one.base}; {memory}"
    )


def readme_table() -> str:
    """The papers of this package and their trainers, as Markdown."""
    lines = ["| paper | title | trainers |", "|---|---|---|"]
    for paper in papers.find_papers(external="").values():
        names = ", ".join(f"`{one.name}`" for one in paper.trainers)
        lines.append(f"| [{paper.short}](docs/recipes/{paper.key}.md) | {paper.title} | {names} |")
    return "\n".join(lines)


def demo(options: DemoOptions) -> None:
    Demo(options).run()
