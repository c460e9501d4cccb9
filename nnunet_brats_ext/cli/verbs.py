"""The verbs of `nnunet_brats`, in groups: for each its options and the function that runs it, imported on use."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Verb:
    """One verb. options, run: `module:name` within the package; `run` takes the options and gives an exit code or None.

    describe: `module:name` of a function that gives the description, where its facts have their home elsewhere.
    hidden: an old name of another verb, accepted and not listed.
    """

    name: str
    help: str
    options: str
    run: str
    description: str = ""
    hidden: bool = False
    describe: str = ""

    def load_options(self) -> type:
        return _load(self.options)

    def load_description(self) -> str:
        return _load(self.describe)() if self.describe else self.description or self.help

    def load_run(self) -> Callable[[Any], int | None]:
        return _load(self.run)


GROUPS: dict[str, tuple[Verb, ...]] = {
    "Setting up": (
        Verb(
            "doctor",
            "check versions, folders, trainer lookup and labels; say what to do",
            "cli.setup:DoctorOptions",
            "cli.setup:doctor",
        ),
        Verb(
            "demo",
            "the whole way, from a BraTS folder to a scored submission, on synthetic patients",
            "demo:DemoOptions",
            "cli.setup:demo",
        ),
        Verb(
            "papers",
            "the papers, their trainers and configurations; your own ones too",
            "cli.setup:PapersOptions",
            "cli.setup:show_papers",
        ),
    ),
    "Data sets": (
        Verb(
            "convert",
            "a BraTS release or an own folder -> a data set in nnUNet_raw",
            "dataset_conversion.conversion:ConvertOptions",
            "cli.data:run_convert",
            "A BraTS release or an own folder becomes a data set in nnUNet_raw. Recognises every release from BraTS "
            "2012 to 2026, FeTS, MSD Task01, other public data sets, BIDS, and folders like CASE/t1.nii.gz, however "
            "nested; --layout describes any other. All bad cases are reported at once, before anything is written.",
        ),
        Verb(
            "layout",
            "an own folder -> its layout, for `convert --layout`: which file is what, shown for three cases",
            "dataset_conversion.proposal:LayoutOptions",
            "cli.data:run_layout",
            "Looks at the names in a folder of images, proposes a layout, shows which files three cases would have and "
            "what is left over, and writes it as a short TOML file to check and change. With --layout it shows what a "
            "file of yours makes of the folder.",
        ),
        Verb(
            "check",
            "are these patients what a network expects: a line and a picture for each, before anything is computed",
            "dataset_conversion.checking:CheckOptions",
            "cli.data:run_check",
            "Reads every image and looks for what spoils a prediction without a word: files that are empty or "
            "truncated, voxels that are not 1 mm, a skull, sequences that do not lie on each other or carry each "
            "other's names, inverted or clipped intensities, a FLAIR without bright region. Names the tool that would "
            "fix it. The exit code is 1 where something was found.",
        ),
        Verb(
            "restore",
            "predictions -> a submission: the release's labels, names and headers",
            "dataset_conversion.restoration:RestoreOptions",
            "cli.data:run_restore",
            "Predictions become a submission with the release's labels, names and headers. Works on predictions of "
            "imagesTs and on those of cross-validation. What the challenge would refuse is listed for all cases, and "
            "then nothing is written.",
        ),
        Verb(
            "phantom",
            "synthetic gliomas in BraTS form, deterministic by seed",
            "dataset_conversion.phantoms.folder:PhantomOptions",
            "cli.data:run_phantom",
        ),
        Verb(
            "distill",
            "manual labels + predictions on unlabelled cases -> one data set, to train a student on",
            "dataset_conversion.distillation.distill:DistillOptions",
            "cli.data:run_distill",
            "Manual labels and predictions on unlabelled cases become one data set, to train a student on. "
            "Pseudo-labelled cases only train. Cases with the same images as an excluded or a labelled one are left "
            "out, whatever their names. After Lachinov et al. 2019.",
        ),
        Verb(
            "filter-cases",
            "train again without the cases that a complete training could not learn (Henry 2020)",
            "dataset_conversion.case_filtering:FilterCasesOptions",
            "cli.data:run_filter_cases",
            "Reads the log of case losses of each fold's training, and removes from that fold's training cases those "
            "whose mean loss over the last epochs exceeds the mean of all cases by some standard deviations. Writes "
            "the reduced folds beside splits_final.json, with the removed cases in them, and a configuration "
            "CONFIGURATION_filtered that trains on them. Validation cases stay as they are.",
        ),
    ),
    "Training": (
        Verb(
            "plan",
            "nnU-Net's plans -> BraTSPlans: with the papers' configurations, fitted to a GPU's memory",
            "cli.training:PlanCommandOptions",
            "cli.training:print_plan",
            "Keeps nnU-Net's own configurations. The papers' share their preprocessed data, unless a paper resamples. "
            "Without a budget, patch and batch are the papers'; with one, the batch shrinks first, then the patch. "
            "Prints what to run next: all commands of a paper or of a trainer on request.",
        ),
    ),
    "Prediction": (
        Verb(
            "predict",
            "images -> label maps: all stages, folds and checkpoints of a model in one command",
            "inference.options:PredictOptions",
            "cli.models:run_predict",
            "nnU-Net's prediction, with the stage before a cascade's second one, the papers' windows and test-time "
            "augmentations, votes, and post-processing; of test cases, of each fold's own cases, by the best of "
            "several models, or for the training of a second stage. An interrupted run goes on where it stopped.",
        ),
        Verb(
            "choose",
            "of kept snapshots and of candidate models, the best of each fold by the paper's inference",
            "inference.options:ChooseOptions",
            "cli.models:run_choose",
            "Predicts each fold's own cases by every candidate, as `predict --cross-validation` does, scores them, and "
            "writes the best into the fold, where `predict -chk chosen` finds them. The scores are kept: another "
            "number or another score needs no prediction. In a cross-validation a case is then predicted by what the "
            "other half of its fold's cases has chosen, so that the choice does not flatter the score.",
        ),
        Verb(
            "attention",
            "where a model looks, as NIfTI and as pictures, for one checkpoint or a series",
            "inference.options:AttentionOptions",
            "cli.models:run_attention",
            "The coefficients of attention gates on the grid of the images, and heat maps of them: checkpoints in "
            "rows, gates in columns. Of networks that weigh channels: their weights, and the features that weigh most "
            "and least. One folder per case.",
        ),
        Verb(
            "ensemble",
            "several prediction folders -> one: mean, vote, or the merges of papers",
            "predictions.ensemble:EnsembleOptions",
            "cli.predictions:run_ensemble",
            describe="predictions.ensemble:describe_methods",
        ),
        Verb(
            "postprocess",
            "apply rules to label maps: small ET, small components, ...",
            "predictions.postprocess:PostprocessOptions",
            "cli.predictions:run_postprocess",
            "Rules come from --rules (a JSON file, a name saved beside -m, or a paper), then from --rule, in this "
            "order.",
        ),
        Verb(
            "uncertainty",
            "voxel maps of uncertainty per region from several predictions, and their QU-BraTS scores",
            "predictions.uncertainty_maps:UncertaintyOptions",
            "cli.predictions:run_uncertainty",
            "Writes CASE_unc_whole.nii.gz, _core, _enhance with whole numbers from 0 (certain) to 100; with "
            "--reference also uncertainty.json with QU-BraTS's filtered curves and scores.",
        ),
        Verb(
            "pool",
            "the old name of `predict --models`",
            "inference.options:PredictOptions",
            "cli.models:run_pool",
            hidden=True,
        ),
        Verb(
            "predict-stage",
            "the old name of `predict --for-next-stage`",
            "inference.options:PredictOptions",
            "cli.models:run_predict_stage",
            hidden=True,
        ),
    ),
    "Scores": (
        Verb(
            "evaluate",
            "scores of predictions, as a BraTS challenge computes them",
            "evaluation.evaluate:EvaluateOptions",
            "cli.scores:evaluate",
            "Compares label maps with references by the rules of a BraTS challenge and writes results.json, "
            "results.csv (one row per case and region) and results_summary.csv.",
        ),
        Verb(
            "rank",
            "BraTS ranking of several results, with the significance of every lead",
            "evaluation.ranking:RankOptions",
            "cli.scores:rank",
            "Ranks results.json files of `evaluate`, or folders of predictions scored on the way: per case, region "
            "and metric, averaged. Writes ranking.json and two CSV tables.",
        ),
        Verb(
            "tune",
            "thresholds of post-processing rules from cross-validation",
            "evaluation.tune:TuneOptions",
            "cli.scores:tune",
            "Chooses rules on all folds but one, tries them on that one, and so on; reports the gain on held-out cases "
            "with a permutation test; writes rules.json for `postprocess` and rules_report.json.",
        ),
        Verb(
            "report",
            "one HTML page from results: tables, charts, ranking, pictures of cases, training curves",
            "evaluation.report.inputs:ReportOptions",
            "cli.scores:report",
            "Makes one page that needs no network from results.json files of `evaluate`, one per model, and from "
            "whatever else is given; what is missing is left out with a sentence.",
        ),
    ),
    "Whole papers": (
        Verb(
            "run",
            "a recipe, from BraTS folder to report and submission, on this machine or a cluster",
            "workflow.run:RunOptions",
            "cli.recipes:print_run",
            "A paper as a graph of nnU-Net's and these commands, run by Snakemake. Started again, it goes on where it "
            "stopped: finished folds are kept, interrupted ones continued. Every paper has a recipe of its name; "
            "`compare` puts all side by side; a YAML file is one of yours.",
        ),
        Verb(
            "status",
            "what of a run is done, running, stopped or failed, with the log of each job",
            "workflow.status:StatusOptions",
            "cli.recipes:print_status",
        ),
    ),
}


def find_verb(name: str) -> Verb | None:
    return next((verb for verbs in GROUPS.values() for verb in verbs if verb.name == name), None)


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"nnunet_brats_ext.{module}"), name)
