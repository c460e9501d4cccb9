"""`nnunet_brats <verb>`: arguments in, one function call out.

Every verb imports its function when it runs, so that `nnunet_brats evaluate` never waits for torch.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from nnunet_brats_ext import __version__
from nnunet_brats_ext.plugin.requirements import require_nnunet

Run = Callable[[argparse.Namespace], int | None]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="nnunet_brats", description="What nnU-Net lacks for BraTS.")
    parser.add_argument("--version", action="version", version=f"nnunet-brats-ext {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="verb", required=True)
    for add_verb in (
        add_doctor,
        add_demo,
        add_convert,
        add_restore,
        add_distill,
        add_plan,
        add_ensemble,
        add_filter_cases,
        add_phantom,
        add_evaluate,
        add_postprocess,
        add_predict,
        add_predict_stage,
        add_attention,
        add_rank,
        add_report,
        add_run,
        add_status,
        add_tune,
        add_uncertainty,
    ):
        add_verb(verbs)
    options = parser.parse_args(arguments)
    run: Run = options.run
    try:
        if options.verb != "doctor":  # which reports it with everything else
            require_nnunet()
        return run(options) or 0
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        # What the user can mend is told in a sentence; anything else is a defect of ours and keeps its traceback.
        print(f"nnunet_brats {options.verb}: {error}", file=sys.stderr)
        return 1


def add_doctor(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("doctor", help="check versions, folders, trainer lookup and labels; say how to mend them")

    def run(options: argparse.Namespace) -> int:
        from nnunet_brats_ext.plugin.doctor import examine

        return examine()

    parser.set_defaults(run=run)


def add_convert(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "convert",
        help="a BraTS release folder -> a data set in nnUNet_raw",
        description="Recognises every release from BraTS 2012 to 2026, FeTS, UCSF-BMSR and MSD Task01, however nested "
        "or renamed. All bad cases are reported at once, before anything is written.",
    )
    parser.add_argument("source", type=Path, help="the unpacked release, or a folder above it")
    parser.add_argument("-d", dest="dataset_id", type=int, required=True, metavar="ID", help="1 to 999, as nnU-Net has")
    parser.add_argument("--name", help="what follows the ID in the folder's name (default: the release's)")
    parser.add_argument("-o", dest="output", type=Path, metavar="FOLDER", help="instead of nnUNet_raw")
    parser.add_argument("--release", metavar="NAME", help="say which release it is, where it cannot be told")
    parser.add_argument(
        "--overlay",
        dest="overlays",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="corrected labels or images, that replace those of the same case (repeatable; the last wins)",
    )
    parser.add_argument(
        "--name-mapping", type=Path, metavar="CSV", help="patients and grades, where SOURCE has no such"
    )
    parser.add_argument(
        "--link",
        choices=("auto", "hard", "symbolic", "copy"),
        default="auto",
        help="how images that need no change get there; auto: the first of these that works",
    )
    parser.add_argument(
        "--normalise",
        choices=("percentile-minmax",),
        help="write images clipped to their 1st to 99th percentile and scaled to 0..1 (Henry 2020); nnU-Net then "
        "leaves them alone",
    )
    parser.add_argument(
        "--tolerance",
        dest="tolerance_mm",
        type=float,
        default=0.1,
        metavar="MM",
        help="how far apart the sequences of a case may lie; within it, headers are made equal (default: %(default)s)",
    )
    parser.add_argument("--folds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=12345, help="of the folds (default: %(default)s)")
    parser.add_argument("--same-patients-as", type=int, metavar="ID", help="keep patients in the folds they have there")
    parser.add_argument("--skip-bad", action="store_true", help="leave bad cases out; the manifest lists them")
    parser.add_argument("--overwrite", action="store_true", help="replace another conversion, and other folds")
    parser.add_argument("-np", dest="processes", type=int, default=min(8, os.cpu_count() or 1), help="processes")

    def run(options: argparse.Namespace) -> None:
        from nnunet_brats_ext.dataset_conversion.convert import Options, convert

        given = {name: value for name, value in vars(options).items() if name not in ("verb", "run", "source")}
        convert(options.source, Options(**given))

    parser.set_defaults(run=run)


def add_restore(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "restore",
        help="predictions -> a submission: the release's labels, names and headers",
        description="Works on predictions of imagesTs and on those of cross-validation. What the challenge would "
        "refuse is listed for all cases, and then nothing is written.",
    )
    parser.add_argument("predictions", type=Path, metavar="PRED", help="folder of label maps as trained")
    parser.add_argument("-o", dest="output", type=Path, required=True, metavar="OUT", help="folder of the submission")
    parser.add_argument(
        "-d", dest="dataset_id", type=int, metavar="ID", help="whose cases they are (default: ask PRED)"
    )
    parser.add_argument("--release", metavar="NAME", help="where there is no data set to ask")
    parser.add_argument("--source", type=Path, help="where the release's images lie now (default: as converted)")
    parser.add_argument("-np", dest="processes", type=int, default=min(8, os.cpu_count() or 1), help="processes")

    def run(options: argparse.Namespace) -> None:
        from nnunet_brats_ext.dataset_conversion.restore import restore

        restore(**{name: value for name, value in vars(options).items() if name not in ("verb", "run")})

    parser.set_defaults(run=run)


def add_distill(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "distill",
        help="manual labels + predictions on unlabelled cases -> one data set, to train a student on",
        description="Pseudo-labelled cases only ever train. Cases with the same images as an excluded or a labelled "
        "one are left out, whatever their names. After Lachinov et al. 2019.",
    )
    parser.add_argument("-d", dest="dataset_id", type=int, required=True, metavar="ID", help="of the new data set")
    parser.add_argument("--labelled", type=int, required=True, metavar="ID", help="data set with manual labels")
    parser.add_argument(
        "--pseudo",
        nargs=2,
        type=Path,
        action="append",
        default=[],
        metavar=("PREDICTIONS", "IMAGES"),
        help="a folder of predictions and that of the images predicted (repeatable; of the same images the first wins)",
    )
    parser.add_argument(
        "--foreign",
        type=int,
        action="append",
        default=[],
        metavar="ID",
        help="data set with labels of others, such as a converted MSD Task01 (repeatable)",
    )
    parser.add_argument(
        "--name", help="what follows the ID in the folder's name (default: the labelled one's, Distilled)"
    )
    parser.add_argument(
        "--exclude",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="what to evaluate on: a folder of images or label maps, a release, or a list of cases (repeatable)",
    )
    parser.add_argument(
        "--targets",
        choices=("hard", "soft"),
        default="hard",
        help="label maps alone, as in the paper, or probabilities beside them, for students that train on such",
    )
    parser.add_argument(
        "--min-confidence", type=float, metavar="C", help="leave out predictions less sure, 0 to 1 (needs .npz)"
    )
    parser.add_argument(
        "--near-duplicates",
        choices=("drop", "report", "off"),
        default="drop",
        help="cases that look the same but are stored differently (default: %(default)s); report keeps them, in folds "
        "that cannot leak",
    )
    parser.add_argument(
        "--similarity",
        type=float,
        default=0.8,
        metavar="S",
        help="from which they look the same (default: %(default)s)",
    )
    parser.add_argument(
        "--link",
        choices=("auto", "hard", "symbolic", "copy"),
        default="auto",
        help="how images get there; auto: the first of these that works",
    )
    parser.add_argument("--folds", type=int, default=5, help="where the labelled data set has none (default: 5)")
    parser.add_argument("--seed", type=int, default=12345, help="of such folds (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace another data set of that name, and its folds")
    parser.add_argument("-np", dest="processes", type=int, help="processes; default one per core, at most 8")

    def run(options: argparse.Namespace) -> None:
        from nnunet_brats_ext.dataset_conversion.distillation.distill import Options, distill

        distill(Options(**{name: value for name, value in vars(options).items() if name not in ("verb", "run")}))

    parser.set_defaults(run=run)


def add_plan(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "plan",
        help="nnU-Net's plans -> BraTSPlans: with the papers' configurations, fitted to a GPU's memory",
        description="Keeps nnU-Net's own configurations. The papers' share their preprocessed data, all but "
        "lachinov_brain. Without a budget, patch and batch are the papers'; with one, the batch shrinks first, then "
        "the patch.",
    )
    parser.add_argument("dataset_id", type=int, metavar="ID", help="of a data set that nnU-Net has planned")
    parser.add_argument("-p", dest="source", default="nnUNetPlans", help="plans to start from (default: %(default)s)")
    parser.add_argument("-o", dest="name", default="BraTSPlans", help="name of the new plans (default: %(default)s)")
    parser.add_argument("--gpu-memory-gb", type=float, metavar="N", help="memory of each GPU")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="that share a batch (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace plans of that name that differ")

    def run(options: argparse.Namespace) -> None:
        from nnunet_brats_ext.planning.plan import plan

        plan(**{name: value for name, value in vars(options).items() if name not in ("verb", "run")})

    parser.set_defaults(run=run)


def add_ensemble(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "ensemble",
        help="several prediction folders -> one: mean, vote, or the merges of papers",
        description="mean: of probabilities (.npz), any trainers and heads. majority: of label maps, with the tie rule "
        "of Lyu and Shu. two-pass: A decides ET and NCR, B oedema. nested: binary models of WT, TC, ET, in this order.",
    )
    parser.add_argument("-i", dest="inputs", nargs="+", type=Path, required=True, help="prediction folders")
    parser.add_argument("-o", dest="out", type=Path, required=True, help="output folder")
    parser.add_argument("--method", choices=("mean", "majority", "two-pass", "nested"), default="mean")
    parser.add_argument("--weights", nargs="+", type=float, help="one per folder (mean, majority)")
    parser.add_argument("--space", choices=("regions", "labels"), help="where mixed heads meet (mean); default regions")
    parser.add_argument(
        "--order", nargs="+", type=int, help="labels from outermost to innermost (majority); default as trained: 1 2 3"
    )
    parser.add_argument(
        "--save-probabilities", action="store_true", default=None, help="write .npz and .pkl too (mean, nested)"
    )
    parser.add_argument("--dtype", choices=("float32", "float16"), help="of saved probabilities; default float32")
    parser.add_argument("-np", dest="processes", type=int, help="processes; default one per core, at most 8")

    def run(options: argparse.Namespace) -> None:
        from nnunet_brats_ext.ensembling.folders import ensemble

        given = {name: value for name, value in vars(options).items() if value is not None}
        for name in ("verb", "run", "method", "inputs", "out"):
            given.pop(name)
        ensemble(options.method, options.inputs, options.out, **given)

    parser.set_defaults(run=run)


def add_filter_cases(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "filter-cases",
        help="train again without the cases that a complete training could not learn (Henry 2020)",
        description="Reads the log of case losses of each fold's training, and removes from that fold's training cases "
        "those whose mean loss over the last epochs exceeds the mean of all cases by some standard deviations. Writes "
        "the reduced folds beside splits_final.json, with the removed cases in them, and a configuration "
        "CONFIGURATION_filtered that trains on them. Validation cases stay as they are.",
    )
    parser.add_argument("dataset_id", type=int, metavar="ID")
    parser.add_argument("-tr", dest="trainer", required=True, metavar="TRAINER", help="that was trained")
    parser.add_argument("-c", dest="configuration", required=True, metavar="CONFIGURATION", help="it was trained on")
    parser.add_argument("-p", dest="plans_name", default="BraTSPlans", metavar="PLANS", help="(default: %(default)s)")
    parser.add_argument("-f", dest="folds", type=int, nargs="+", metavar="FOLD", help="(default: all)")
    parser.add_argument("--last-epochs", type=int, default=10, metavar="N", help="to average (default: %(default)s)")
    parser.add_argument(
        "--deviations", type=float, default=2.0, metavar="X", help="above the mean is too much (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier selection")

    def run(options: argparse.Namespace) -> None:
        from nnunet_brats_ext.dataset_conversion.case_filtering import filter_cases

        filter_cases(**{name: value for name, value in vars(options).items() if name not in ("verb", "run")})

    parser.set_defaults(run=run)


def add_phantom(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("phantom", help="synthetic gliomas in BraTS form, deterministic by seed")
    parser.add_argument("out", type=Path, help="folder to write; what a release unpacks to lies in it")
    parser.add_argument("--release", default="BraTS2020", help="whose layout, names and labels (default: %(default)s)")
    parser.add_argument("--cases", type=int, default=12, help="how many (default: %(default)s)")
    parser.add_argument("--unlabelled", type=int, default=0, metavar="N", help="leave the last N without label file")
    parser.add_argument(
        "--references", type=Path, metavar="DIR", help="write the labels of those N here, to score with"
    )
    parser.add_argument("--size", type=int, nargs=3, metavar=("X", "Y", "Z"), help="voxels (default: the release's)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument(
        "--anatomy",
        choices=("auto", "mni152", "procedural"),
        default="auto",
        help="mni152 needs nilearn; auto takes it where it is installed (default: %(default)s)",
    )
    parser.add_argument("--contrast", type=float, default=1.0, help="of tumours; 1 is that of patients (default)")
    parser.add_argument("--processes", type=int, help="(default: one per core, at most 8)")
    parser.add_argument("--overwrite", action="store_true", help="replace the phantoms that OUT holds")

    def run(options: argparse.Namespace) -> None:
        from nnunet_brats_ext.dataset_conversion.phantoms import write_phantoms

        write_phantoms(
            options.out,
            options.release,
            cases=options.cases,
            unlabelled=options.unlabelled,
            shape=options.size,
            seed=options.seed,
            anatomy=options.anatomy,
            processes=options.processes,
            overwrite=options.overwrite,
            references=options.references,
            contrast=options.contrast,
        )

    parser.set_defaults(run=run)


def add_demo(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("demo", help="the whole way, from a BraTS folder to a scored submission, on phantoms")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("brats_demo"), help="(default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), default="cpu", help="(default: %(default)s)")
    parser.add_argument("--cases", type=int, help="synthetic patients, held-out ones included")
    parser.add_argument("--held-out", type=int, help="of them not for training")
    parser.add_argument("--size", type=int, nargs=3, metavar=("X", "Y", "Z"), help="voxels of a head")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--iterations", type=int, help="per epoch")
    parser.add_argument("--folds", type=int, nargs="+")

    def run(options: argparse.Namespace) -> None:
        from nnunet_brats_ext.demo import Demo, Scale

        asked = {
            name: getattr(options, name) for name in ("cases", "held_out", "size", "epochs", "iterations", "folds")
        }
        scale = Scale(**{name: value for name, value in asked.items() if value is not None})
        Demo(options.folder, scale, options.device).run()

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
        help="numbering of the files: trained, released, or a scheme's name; default: ask their dataset.json",
    )
    parser.add_argument("--partial", action="store_true", help="score only the cases that both folders hold")
    parser.add_argument("-o", dest="out", type=Path, default=Path("results.json"), help="default: results.json")
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


def add_postprocess(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "postprocess",
        help="apply rules to label maps: small ET, small components, ...",
        description="Rules come from --rules (a JSON file, a name saved beside --model, or a paper: lyu2020, "
        "lachinov2019, zhou2020, zhou2020-kmeans), then from --rule, in this order.",
    )
    parser.add_argument("predictions", type=Path, metavar="IN", help="folder of label maps as trained")
    parser.add_argument("-o", dest="out", type=Path, required=True, help="output folder")
    parser.add_argument("--rules", nargs="+", default=[], metavar="RULES", help="files or names")
    parser.add_argument(
        "--rule",
        nargs="+",
        default=[],
        metavar="RULE",
        help="small-et=500 (voxels), small-et=0.5ml, small-components:WT=50, small-region:TC=20, "
        "unlikely-components:ET=0.6 (mean probability), oedema-to-core",
    )
    parser.add_argument("--scheme", help="whose regions --rule speaks of; default glioma_2017")
    parser.add_argument("--model", type=Path, help="folder of a trained model, where rules are found and saved by name")
    parser.add_argument("--save", metavar="NAME", help="save the rules beside --model under this name")
    parser.add_argument("--images", type=Path, help="images as nnU-Net names them, for oedema-to-core")
    parser.add_argument("-np", dest="processes", type=int, help="processes; default one per core, at most 8")

    def run(options: argparse.Namespace) -> None:
        from nnunet_brats_ext.postprocessing.folders import postprocess
        from nnunet_brats_ext.postprocessing.rule_files import collect_rules, save_rules

        rules = collect_rules(options.rules, options.rule, options.model, options.scheme)
        if options.save and not options.model:
            raise ValueError("--save needs --model, the folder beside which the rules are saved")
        postprocess(options.predictions, options.out, rules, options.images, options.processes)
        if options.save:
            print("saved as", save_rules(rules, options.model, options.save))

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
    parser.add_argument("--labels", help="to score folders: as for `evaluate`")
    parser.add_argument("--permutations", type=int, default=100_000, help="of the test; default 100000")
    parser.add_argument("-o", dest="out", type=Path, default=Path("ranking.json"), help="default: ranking.json")
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
    parser.add_argument("-o", dest="out", type=Path, default=Path("rules.json"), help="default: rules.json")
    parser.add_argument("--save", metavar="NAME", help="save the rules beside the trained model too, under this name")
    parser.add_argument("-np", dest="processes", type=int, help="processes; default one per core, at most 8")

    def run(options: argparse.Namespace) -> None:
        from nnunet_brats_ext.evaluation.tune import DEFAULT_GRID, tune
        from nnunet_brats_ext.postprocessing.rule_files import save_rules

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


def add_uncertainty(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "uncertainty",
        help="voxel maps of doubt per region from several predictions, and their QU-BraTS scores",
        description="Writes CASE_unc_whole.nii.gz, _core, _enhance with whole numbers from 0 (certain) to 100; with "
        "--reference also uncertainty.json with QU-BraTS's filtered curves and scores.",
    )
    parser.add_argument("-i", dest="inputs", nargs="+", type=Path, required=True, help="prediction folders")
    parser.add_argument("-o", dest="out", type=Path, required=True, help="output folder")
    parser.add_argument("--measure", choices=("entropy", "mutual-information"), default="entropy")
    parser.add_argument("--reference", type=Path, help="reference label maps as trained")
    parser.add_argument("--scheme", default="glioma_2017", help="whose regions; default glioma_2017")
    parser.add_argument("-np", dest="processes", type=int, help="processes; default one per core, at most 8")

    def run(options: argparse.Namespace) -> None:
        from nnunet_brats_ext.uncertainty import map_uncertainty

        map_uncertainty(
            options.inputs, options.out, options.measure, options.reference, options.scheme, options.processes
        )

    parser.set_defaults(run=run)


def add_predict(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "predict",
        help="images -> label maps: all stages, folds and checkpoints of a model in one command",
        description="nnU-Net's prediction, with the stage before a cascade's second one, the papers' windows and "
        "test-time augmentations, votes, and post-processing. An interrupted run goes on where it stopped.",
    )
    parser.add_argument("-i", dest="images", type=Path, required=True, help="images as nnU-Net names them")
    parser.add_argument("-o", dest="out", type=Path, required=True, help="output folder")
    add_model_arguments(parser)
    parser.add_argument(
        "--combine",
        choices=("logits", "probabilities", "vote"),
        default="logits",
        help="folds and checkpoints: mean of logits (nnU-Net's, default), of probabilities, or a vote",
    )
    parser.add_argument(
        "--tiling",
        choices=("paper", "sliding", "brain", "overlap", "tumour", "lyu8"),
        default="paper",
        help="default paper: what the trainer's paper does",
    )
    parser.add_argument(
        "--tta",
        choices=("paper", "none", "mirror", "mirror8", "mirror-y", "inplane-mirror", "henry16", "dihedral16"),
        default="paper",
        help="test-time augmentation; mirror is nnU-Net's",
    )
    parser.add_argument(
        "--patch-size", nargs="+", type=int, metavar="N", help="another size of windows than in training"
    )
    parser.add_argument("-step_size", type=float, default=0.5, help="of the sliding window, as a share of the patch")
    parser.add_argument(
        "-prev_stage_predictions",
        dest="previous",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="label maps of the previous stage, one folder per source; default: predicted on the way",
    )
    parser.add_argument("-prev_tr", dest="previous_trainer", help="default: the one that the trainer names")
    parser.add_argument(
        "-prev_f", dest="previous_folds", nargs="+", metavar="FOLD", help="default: all that are trained"
    )
    parser.add_argument("-prev_chk", dest="previous_checkpoints", nargs="+", default=["checkpoint_final.pth"])
    parser.add_argument("--save_probabilities", action="store_true", help="also CASE.npz, as nnU-Net writes it")
    parser.add_argument(
        "--rules",
        nargs="+",
        metavar="RULES",
        help="post-processing: a file, a name saved beside the model, or a paper, as in `nnunet_brats postprocess`",
    )
    parser.add_argument(
        "--low-memory",
        type=float,
        nargs="?",
        const=630.0,
        metavar="MB",
        help="stay within this much device memory, if the model allows it, and say how much it was; default 630",
    )
    parser.add_argument("--profile", action="store_true", help="tell seconds and peak memory of every step")
    parser.add_argument("--overwrite", action="store_true", help="predict anew what is there")
    parser.add_argument("--keep-members", action="store_true", help="keep what was voted over or averaged")
    parser.add_argument(
        "-np",
        dest="processes",
        type=int,
        default=3,
        help="processes that preprocess, and as many that write; 0 does all in one; default 3",
    )

    def run(options: argparse.Namespace) -> None:
        from nnunet_brats_ext.inference.models import find_model
        from nnunet_brats_ext.inference.predict import Mode, predict
        from nnunet_brats_ext.postprocessing.rule_files import collect_rules

        model = find_model(*model_choice(options))
        previous = options.previous
        if previous is None and model.previous_stage:
            folds = fold_names(options.previous_folds)
            previous = model.previous_model(options.previous_trainer, folds, options.previous_checkpoints)
        mode = Mode(
            options.tiling, options.tta, options.combine, options.step_size,
            tuple(options.patch_size) if options.patch_size else None, options.device, options.low_memory,
            options.profile, options.processes,
        )  # fmt: skip
        rules = collect_rules(options.rules, [], model.folder) if options.rules else None
        predict(
            options.images, options.out, model, mode, previous, options.save_probabilities, rules,
            options.overwrite, options.keep_members,
        )  # fmt: skip

    parser.set_defaults(run=run)


def add_predict_stage(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "predict-stage",
        help="stage-1 models over all training cases, for a stage 2 that draws one of several maps per case",
        description="Lyu & Shu 2020's expanded training data. By default every checkpoint name gives one map per case, "
        "made by the fold that did not train on it.",
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--in-sample",
        action="store_true",
        help="every fold predicts every case, also those it trained on, as the paper does",
    )
    parser.add_argument("--add", action="store_true", help="keep maps that other runs have made, beside these")
    parser.add_argument("--tta", choices=("paper", "none", "mirror"), default="paper", help="test-time augmentation")
    parser.add_argument("-np", dest="processes", type=int, default=3, help="processes that write; default 3")

    def run(options: argparse.Namespace) -> None:
        from nnunet_brats_ext.inference.models import find_model
        from nnunet_brats_ext.inference.stage_maps import predict_stage

        model = find_model(*model_choice(options))
        predict_stage(model, options.in_sample, options.add, options.tta, options.device, options.processes)

    parser.set_defaults(run=run)


def add_attention(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "attention",
        help="where a model looks, as NIfTI and as pictures, for one checkpoint or a series",
        description="The coefficients of attention gates on the grid of the images, and heat maps of them: checkpoints "
        "in rows, gates in columns. Of OM-Net with guided attention: the weights of its channels, and the features "
        "that weigh most and least. One folder per case.",
    )
    parser.add_argument("-i", dest="images", type=Path, required=True, help="images as nnU-Net names them")
    parser.add_argument("-o", dest="out", type=Path, required=True, help="output folder")
    add_model_arguments(parser)
    parser.add_argument(
        "-prev_stage_predictions",
        dest="previous",
        type=Path,
        metavar="FOLDER",
        help="label maps of the previous stage, for the second one of a cascade",
    )
    parser.add_argument("--cases", nargs="+", default=[], metavar="CASE", help="default: all")
    parser.add_argument(
        "--slices",
        nargs="+",
        type=int,
        default=[],
        metavar="N",
        help="axial slices to draw, counted from 1 at the feet; default: the one with most tumour",
    )
    parser.add_argument("--background", metavar="SEQUENCE", help="what to draw the maps over; default FLAIR")
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="DIR",
        help="label maps as trained, to outline; default: what each checkpoint predicts",
    )

    def run(options: argparse.Namespace) -> None:
        from nnunet_brats_ext.inference.attention import Choice, show_attention
        from nnunet_brats_ext.inference.models import find_model

        choice = Choice(options.previous, options.cases, options.slices, options.background, options.reference)
        show_attention(options.images, options.out, find_model(*model_choice(options)), choice, options.device)

    parser.set_defaults(run=run)


def add_run(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "run",
        help="a recipe, from BraTS folder to report and submission, on this machine or a cluster",
        description="A paper as a graph of nnU-Net's and these commands, run by Snakemake. Started again, it goes on "
        "where it stopped: finished folds are kept, interrupted ones continued. Recipes: baseline, compare, lyu2020, "
        "henry2020, lachinov2019, zhou2020, hashemi2021, or a YAML file of yours.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a name or a file; --copy gives one to edit")
    parser.add_argument("source", nargs="?", type=Path, metavar="SOURCE", help="the release; smoke can do without")
    parser.add_argument("--copy", type=Path, metavar="FILE", help="write the recipe there to edit it, and run nothing")
    parser.add_argument("-d", dest="dataset_id", type=int, default=137, metavar="ID", help="first ID (default: 137)")
    parser.add_argument("-o", dest="folder", type=Path, metavar="FOLDER", help="default: runs/RECIPE")
    parser.add_argument(
        "--scale",
        choices=("full", "smoke"),
        default="full",
        help="smoke: tiny cases, two folds, two epochs, in folders of its own",
    )
    parser.add_argument("--dry-run", action="store_true", help="print every job and what it needs, and run nothing")
    parser.add_argument("--executor", choices=("local", "slurm", "kubernetes"), default="local")
    parser.add_argument("--profile", type=Path, metavar="FOLDER", help="Snakemake profile of your cluster")
    parser.add_argument("--jobs", type=int, metavar="N", help="at most so many at once")
    parser.add_argument("--gpus", type=int, metavar="N", help="at most so many at once (default: all there are)")
    parser.add_argument("--gpu-memory-gb", type=float, metavar="N", help="of each GPU: fits the papers' patches to it")
    parser.add_argument("--folds", type=int, nargs="+", metavar="FOLD", help="only these, but for stages before others")
    parser.add_argument("-device", choices=("cuda", "cpu"), default="cuda")

    def run(options: argparse.Namespace) -> int:
        from nnunet_brats_ext.workflow.run import Options, copy_recipe, run_recipe

        if options.copy:
            print("written:", copy_recipe(options.recipe, options.copy))
            return 0
        given = {name: value for name, value in vars(options).items() if name in Options.__dataclass_fields__}
        return run_recipe(Options(**given | {"folds": tuple(options.folds) if options.folds else None}))

    parser.set_defaults(run=run)


def add_status(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("status", help="what of a run is done, running or failed, with the log of each job")
    parser.add_argument("folder", type=Path, help="of `nnunet_brats run`")

    def run(options: argparse.Namespace) -> int:
        from nnunet_brats_ext.workflow.status import show_status

        return show_status(options.folder)

    parser.set_defaults(run=run)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """What names a trained model, under the names that nnU-Net's own commands have for it."""
    parser.add_argument("-d", dest="dataset", required=True, help="number or name of the data set")
    parser.add_argument("-tr", dest="trainer", required=True, help="trainer")
    parser.add_argument("-c", dest="configuration", required=True, help="configuration")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans; default nnUNetPlans")
    parser.add_argument(
        "-f", dest="folds", nargs="+", metavar="FOLD", help="default: all numbered ones that are trained"
    )
    parser.add_argument("-chk", dest="checkpoints", nargs="+", default=["checkpoint_final.pth"], metavar="NAME")
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), default="cuda")


def model_choice(options: argparse.Namespace) -> tuple:
    """The arguments of `inference.models.find_model`, once the device is known to exist."""
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("torch sees no CUDA device on this machine; use -device cpu")
    folds = fold_names(options.folds)
    return options.dataset, options.trainer, options.configuration, options.plans, folds, options.checkpoints


def fold_names(folds: list[str] | None) -> list[int | str] | None:
    return [int(fold) if fold.isdecimal() else fold for fold in folds] if folds else None


if __name__ == "__main__":
    sys.exit(main())
