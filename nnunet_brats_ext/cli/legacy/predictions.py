"""Verbs on folders of predictions: combining, post-processing, scoring and showing them."""

import argparse
import os
from pathlib import Path


def json_file(text: str) -> Path:
    """Where a JSON file is to be written, with tables beside it: told before hours of work, not after."""
    path = Path(text)
    if path.suffix != ".json" or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: give a file that ends in .json; others are written beside it")
    return path


def comma_separated(text: str) -> list[str]:
    return text.split(",")


def add_tune(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "tune",
        help="thresholds of post-processing rules from cross-validation",
        description="Chooses rules on all folds but one, tries them on that one, and so on; reports the gain on "
        "held-out cases with a permutation test; writes rules.json for `postprocess` and rules_report.json.",
    )
    parser.add_argument("reference", type=Path, help="reference label maps as trained, such as labelsTr")
    parser.add_argument("predictions", type=Path, help="folder of a trained model with fold_*/validation")
    parser.add_argument("--splits", type=Path, help="splits_final.json, if predictions is one folder of label maps")
    parser.add_argument(
        "--grid",
        nargs="+",
        metavar="RULE=V,V,...",
        help="what to try, in this order: small-et=50,100,500 small-components:WT=10,50 unlikely-components:ET=0.6,0.7 "
        "oedema-to-core; of every step one or none is chosen",
    )
    parser.add_argument("--objective", default="ranking", help="ranking (default) or a metric, such as dice")
    parser.add_argument("--preset", default="brats2020", help="as for `evaluate`")
    parser.add_argument("--cohort", default="gli", help="as for `evaluate`")
    parser.add_argument("--images", type=Path, help="images as nnU-Net names them, for oedema-to-core")
    parser.add_argument("-o", dest="out", type=json_file, default=Path("rules.json"), help="default: rules.json")
    parser.add_argument("--save", metavar="NAME", help="save the rules beside the trained model too, under this name")
    parser.add_argument("-np", dest="processes", type=int, help="processes; default one per core, at most 8")

    def run(options: argparse.Namespace) -> None:
        from nnunet_brats_ext.evaluation.tune import DEFAULT_GRID, tune
        from nnunet_brats_ext.predictions.rule_sets import save_rules

        rules = tune(
            options.reference,
            options.predictions,
            options.out,
            options.grid or DEFAULT_GRID,
            options.objective,
            options.preset,
            options.cohort,
            options.splits,
            options.images,
            options.processes,
        )
        print("written:", options.out)
        if options.save:
            print("saved as", save_rules(rules, options.predictions, options.save))

    parser.set_defaults(run=run)


def add_evaluate(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "evaluate",
        help="scores of predictions, as a BraTS challenge computes them",
        description="Compares label maps with references by the rules of a BraTS challenge and writes results.json, "
        "results.csv (one row per case and region) and results_summary.csv.",
    )
    parser.add_argument("reference", type=Path, help="folder of reference label maps (or of case folders), or one file")
    parser.add_argument("prediction", type=Path, help="folder of predicted label maps with the same names, or one file")
    parser.add_argument("--preset", default="brats2020", help="brats2017 to brats2021, brats2023, brats2024, brats2026")
    parser.add_argument("--cohort", default="gli", help="gli (default), ssa, men, met, ped, men-rt or goat")
    parser.add_argument(
        "--labels",
        type=comma_separated,
        metavar="LABELS",
        help="numbering of the files: trained, released, or a scheme's name; of references,predictions where they "
        "differ; default: ask their dataset.json",
    )
    parser.add_argument("--partial", action="store_true", help="score only the cases that both folders hold")
    parser.add_argument("-o", dest="out", type=json_file, default=Path("results.json"), help="default: results.json")
    parser.add_argument("-np", dest="processes", type=int, default=os.cpu_count() or 1, help="default: all CPU cores")

    def run(options: argparse.Namespace) -> None:
        from nnunet_brats_ext.evaluation.evaluate import evaluate_folders
        from nnunet_brats_ext.evaluation.results import print_results, save_results

        results = evaluate_folders(
            options.reference,
            options.prediction,
            options.preset,
            options.cohort,
            options.labels,
            options.partial,
            options.processes,
            progress=True,
        )
        print_results(results)
        print("written:", *save_results(results, options.out))

    parser.set_defaults(run=run)


def add_rank(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "rank",
        help="BraTS ranking of several results, with the significance of every lead",
        description="Ranks results.json files of `evaluate`, or folders of predictions scored on the way: per case, "
        "region and metric, averaged. Writes ranking.json and two CSV tables.",
    )
    parser.add_argument("sources", nargs="+", type=Path, metavar="RESULTS", help="results.json files or folders")
    parser.add_argument("--names", nargs="+", help="what to call them; default: where their paths differ")
    parser.add_argument("--metrics", nargs="+", help="default: lesion-wise Dice and HD95 if there are, else dice hd95")
    parser.add_argument("--reference", type=Path, help="reference label maps, to score folders")
    parser.add_argument("--preset", default="brats2020", help="to score folders: as for `evaluate`")
    parser.add_argument("--cohort", default="gli", help="to score folders: as for `evaluate`")
    parser.add_argument("--labels", type=comma_separated, metavar="LABELS", help="to score folders: as for `evaluate`")
    parser.add_argument("--permutations", type=int, default=100_000, help="of the test; default 100000")
    parser.add_argument("-o", dest="out", type=json_file, default=Path("ranking.json"), help="default: ranking.json")
    parser.add_argument("-np", dest="processes", type=int, default=os.cpu_count() or 1, help="default: all CPU cores")

    def run(options: argparse.Namespace) -> None:
        from nnunet_brats_ext.evaluation.ranking import load_entries, print_ranking, rank_entries, save_ranking

        entries = load_entries(
            options.sources,
            options.reference,
            options.names,
            preset=options.preset,
            cohort=options.cohort,
            labels=options.labels,
            processes=options.processes,
        )
        ranking = rank_entries(entries, options.metrics, options.permutations)
        print_ranking(ranking)
        print("written:", *save_ranking(ranking, options.out))

    parser.set_defaults(run=run)


def add_report(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "report",
        help="one HTML page from results: tables, charts, ranking, pictures of cases, training curves",
        description="Makes one page that needs no network from results.json files of `evaluate`, one per model, and "
        "from whatever else is given; what is missing is left out with a sentence.",
    )
    parser.add_argument("sources", nargs="+", type=Path, metavar="RESULTS", help="results.json files of `evaluate`")
    parser.add_argument("-o", dest="out", type=Path, default=Path("report.html"), help="default: report.html")
    parser.add_argument("--names", nargs="+", help="what to call the models; default: where their paths differ")
    parser.add_argument("--title", default="Segmentation report", help="default: %(default)s")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="reference label maps, to draw")
    parser.add_argument(
        "--predictions",
        nargs="+",
        default=[],
        metavar="[NAME=]DIR",
        help="predicted label maps, to draw: in the order of the results, or with the model's name",
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="imagesTr or imagesTs, or a BraTS release")
    parser.add_argument("--release", metavar="NAME", help="which release the images are, where it cannot be told")
    parser.add_argument("--cases", type=int, default=3, metavar="N", help="to draw, from best to worst (default: 3)")
    parser.add_argument("--metric", default="dice", help="by which they are chosen (default: %(default)s)")
    parser.add_argument("--region", help="by whose score; default: the mean over regions")
    parser.add_argument("--models", nargs="+", type=Path, default=[], metavar="DIR", help="model folders of nnU-Net")
    parser.add_argument("--uncertainty", type=Path, metavar="DIR", help="what `nnunet_brats uncertainty` wrote")
    parser.add_argument("-np", dest="processes", type=int, help="processes; default one per core, at most 8")

    def run(options: argparse.Namespace) -> None:
        from nnunet_brats_ext.evaluation.report.page import Options, write_report

        given = {name: value for name, value in vars(options).items() if name in Options.__dataclass_fields__}
        for note in write_report(options.sources, options.out, Options(**given)):
            print(note)
        print(f"written: {options.out} ({options.out.stat().st_size / 1000:.0f} kB)")

    parser.set_defaults(run=run)
