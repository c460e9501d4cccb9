"""Verbs that make data sets of nnU-Net from releases and predictions, and the other way."""

import argparse
import os
from pathlib import Path


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
    parser.add_argument(
        "--overwrite", action="store_true", help="convert anew, replacing the data set and folds that are there"
    )
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
