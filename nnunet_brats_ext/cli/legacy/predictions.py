"""Verbs on folders of predictions: combining, post-processing, scoring and showing them."""

import argparse
from pathlib import Path

from nnunet_brats_ext.storage.errors import UserError


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
        from nnunet_brats_ext.predictions.ensemble import ensemble

        given = {name: value for name, value in vars(options).items() if value is not None}
        for name in ("verb", "run", "method", "inputs", "out"):
            given.pop(name)
        ensemble(options.method, options.inputs, options.out, **given)

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
        from nnunet_brats_ext.predictions.postprocess import postprocess
        from nnunet_brats_ext.predictions.rule_sets import collect_rules, save_rules

        rules = collect_rules(options.rules, options.rule, options.model, options.scheme)
        if options.save and not options.model:
            raise UserError("--save needs --model, the folder beside which the rules are saved")
        postprocess(options.predictions, options.out, rules, options.images, options.processes)
        if options.save:
            print("saved as", save_rules(rules, options.model, options.save))

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
    parser.add_argument(
        "--images", type=Path, help="with --reference: images as nnU-Net names them; true negatives count in the brain"
    )
    parser.add_argument("--scheme", default="glioma_2017", help="whose regions; default glioma_2017")
    parser.add_argument("-np", dest="processes", type=int, help="processes; default one per core, at most 8")

    def run(options: argparse.Namespace) -> None:
        from nnunet_brats_ext.predictions.uncertainty import map_uncertainty

        if options.images and not options.reference:
            raise UserError(f"--images {options.images}: only the scores need them, and those need --reference")
        map_uncertainty(
            options.inputs,
            options.out,
            options.measure,
            options.reference,
            options.scheme,
            options.processes,
            options.images,
        )

    parser.set_defaults(run=run)
