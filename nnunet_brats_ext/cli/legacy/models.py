"""Verbs of networks: planning their training, predicting with them, looking into them."""

import argparse
from pathlib import Path

from nnunet_brats_ext.storage.errors import UserError


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
    add_passes(parser)
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

    def run(options: argparse.Namespace) -> None:
        from nnunet_brats_ext.inference.models import find_model
        from nnunet_brats_ext.inference.predict import Mode, predict
        from nnunet_brats_ext.predictions.rule_sets import collect_rules

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


def add_pool(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "pool",
        help="of several models the best of each fold, and the mean of all that are chosen",
        description="Henry et al. 2020's pool: in every fold, the candidates with the highest Dice in nnU-Net's own "
        "validation; the mean of the probabilities of all chosen models and folds. An interrupted run goes on where it "
        "stopped.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("-i", dest="images", type=Path, help="images as nnU-Net names them")
    what.add_argument(
        "--cross-validation",
        action="store_true",
        help="the labelled cases instead, each by the models of its own fold; from validations with --npz",
    )
    parser.add_argument("-o", dest="out", type=Path, required=True, help="output folder")
    parser.add_argument("-d", dest="dataset", required=True, help="number or name of the data set")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans; default nnUNetPlans")
    parser.add_argument("--models", nargs="+", required=True, metavar="TRAINER:CONFIGURATION", help="the candidates")
    parser.add_argument("--best", type=int, default=2, metavar="N", help="to keep in every fold; default 2")
    parser.add_argument(
        "-f", dest="folds", nargs="+", type=int, default=[], metavar="FOLD", help="default: all that are trained"
    )
    add_passes(parser)
    parser.add_argument("--save_probabilities", action="store_true", help="also CASE.npz, as nnU-Net writes it")
    parser.add_argument("--overwrite", action="store_true", help="make anew what is there")
    parser.add_argument("--keep-members", action="store_true", help="keep what each model has predicted")
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), default="cuda")

    def run(options: argparse.Namespace) -> None:
        from nnunet_brats_ext.inference.models import find_model
        from nnunet_brats_ext.inference.pool import pool
        from nnunet_brats_ext.inference.predict import Mode

        if options.images:
            check_device(options.device)
        models = []
        for word in options.models:
            trainer, _, configuration = word.partition(":")
            if not configuration:
                raise UserError(f"--models {word}: expected TRAINER:CONFIGURATION")
            models.append(find_model(options.dataset, trainer, configuration, options.plans, folds=()))
        mode = Mode(options.tiling, options.tta, device=options.device, processes=options.processes)
        pool(
            models, options.out, options.images, mode, options.best, options.folds,
            options.save_probabilities, options.overwrite, options.keep_members,
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


def add_passes(parser: argparse.ArgumentParser) -> None:
    """How a network sees an image, and by how many processes it is fed."""
    parser.add_argument(
        "--tiling",
        metavar="TILING",
        default="paper",
        help="default paper: what the trainer's paper does",
    )
    parser.add_argument(
        "--tta",
        metavar="SYMMETRIES",
        default="paper",
        help="test-time augmentation; mirror is nnU-Net's",
    )
    parser.add_argument(
        "-np",
        dest="processes",
        type=int,
        default=3,
        help="processes that preprocess, and as many that write; 0 does all in one; default 3",
    )


def check_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch sees no CUDA device on this machine; use -device cpu")


def model_choice(options: argparse.Namespace) -> tuple:
    """The arguments of `inference.models.find_model`, once the device is known to exist."""
    check_device(options.device)
    folds = fold_names(options.folds)
    return options.dataset, options.trainer, options.configuration, options.plans, folds, options.checkpoints


def fold_names(folds: list[str] | None) -> list[int | str] | None:
    return [int(fold) if fold.isdecimal() else fold for fold in folds] if folds else None
