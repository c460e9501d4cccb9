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
            "A BraTS release or an own folder becomes a data set in nnUNet_raw. Recognises BraTS 2012, 2013 and "
            "2015 to 2026, FeTS, MSD Task01, other public data sets, BIDS, and folders like CASE/t1.nii.gz, however "
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
            "prepare",
            "raw scans -> registered, in the space of an atlas, without skull; and results back",
            "dataset_conversion.preparation:PrepareOptions",
            "cli.data:run_prepare",
            "Registers the raw scans of each patient, brings them to the space of an atlas and takes the skull off, by "
            "brainles-preprocessing: pip install 'nnunet-brats-ext[prepare]'. What it writes goes into `check`, "
            "`convert` and, converted, `predict`. The transforms are kept: --back brings label maps to the grid of the "
            "raw T1ce. Patients who are done stay where a run was interrupted.",
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
    "Trained weights": (
        Verb(
            "import",
            "trained weights of nnU-Net v1, MONAI or a paper's authors -> a model of nnU-Net v2",
            "weights.importing:ImportOptions",
            "cli.weights:run_import",
            "Recognises whose weights a file or folder holds, brings channels and regions into our order, and writes a "
            "model's folder that nnUNetv2_predict, `predict`, `ensemble` and -pretrained_weights take. Nothing is "
            "downloaded, and nothing in the file is executed.",
        ),
        Verb(
            "export",
            "a trained network as ONNX or TorchScript, with what to do before and behind it as JSON",
            "weights.exporting:ExportOptions",
            "cli.weights:run_export",
            "Writes the network of one fold at one size of input, compares what it computes with the network itself, "
            "and writes beside it how images are prepared and how logits become labels.",
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
            "writes the best into the fold, where `predict -chk chosen` finds them, and `-chk chosen:2` the best two. "
            "The scores are kept: another number or another score needs no prediction. In a cross-validation a case is "
            "then predicted by what the other half of its fold's cases has chosen, so that the choice does not flatter "
            "the score.",
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
            "relabel",
            "rewrite the numbering in a folder of label maps, such as ET from 4 to 3",
            "predictions.relabel:RelabelOptions",
            "cli.predictions:run_relabel",
            "Rewrites the labels of label maps from one numbering to another (--from glioma_2017 --to trained), or "
            "single values (--map 4=3). Headers stay, and files are named CASE.nii.gz; a value that the numbering does "
            "not have is an error.",
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
    "Trained systems": (
        Verb(
            "bundle",
            "a run, or trained models -> one file with all that prediction needs, to hand on",
            "bundles.options:BundleOptions",
            "cli.systems:run_bundle",
            "Packs models with their chosen folds and checkpoints, stages, ensembles and post-processing into one zip "
            "of JSON and safetensors, from which nothing can be executed, with a model card. Of a run of `nnunet_brats "
            "run`, the system of its submission; or models by their folders, of which several are averaged.",
        ),
        Verb(
            "inspect",
            "what a bundle holds, without loading anything of it",
            "bundles.options:InspectOptions",
            "cli.systems:run_inspect",
            "Prints the model card and the files of a bundle. --nnunet writes each of its models as a zip that "
            "nnUNetv2_install_pretrained_model_from_zip takes.",
        ),
        Verb(
            "segment",
            "patients by a bundle: label maps in their own space, volumes, pictures, a page",
            "bundles.options:SegmentOptions",
            "cli.systems:run_segment",
            "Takes patient folders in any layout, or the files of one patient; needs no folders of nnU-Net and no "
            "environment variables. Writes each label map in the grid, axes and header of the patient's own first "
            "image, volumes.csv with volumes and axial diameters, a picture for each patient, one page for all, and "
            "for patients with several sessions timeline.csv. What an interrupted call has finished is not done again. "
            "The exit code is 1 where a patient failed; the others are there.",
        ),
        Verb(
            "container",
            "a bundle -> a folder from which a challenge's container is built: Dockerfile, Apptainer, pinned packages",
            "bundles.options:ContainerOptions",
            "cli.systems:run_container",
            "The container reads a read-only /input and writes flat files into /output, in the names, labels and grid "
            "of a challenge: no network, any user, GPU or CPU, no shared memory. It keeps to a time limit by leaving "
            "out networks, in the order that `inspect` lists.",
        ),
    ),
    "Scores": (
        Verb(
            "evaluate",
            "scores of predictions, as a BraTS challenge computes them",
            "evaluation.evaluate:EvaluateOptions",
            "cli.scores:evaluate",
            "Compares label maps with references by the rules of a BraTS challenge and writes results.json, "
            "results.csv (one row per case and region), results_summary.csv and, where the challenge scores lesions, "
            "results_lesions.csv and .json (one row per lesion). Predictions are folders, a trained model with its "
            "folds, or files, in any orientation of the grid; several are scored side by side.",
        ),
        Verb(
            "presets",
            "the challenges whose scores `evaluate` computes: years, cohorts, regions, columns, ranking",
            "cli.presets:PresetsOptions",
            "cli.presets:show_presets",
        ),
        Verb(
            "rank",
            "BraTS ranking of several results, its stability, and paired tests of every score",
            "evaluation.ranking:RankOptions",
            "cli.scores:rank",
            "Ranks results.json files of `evaluate`, or folders of predictions scored on the way: per case, region "
            "and metric, averaged. Says how stable the places are when cases are drawn anew, and compares every score "
            "of every two systems. Writes ranking.json and three CSV tables.",
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
            "`compare` puts all side by side, `today` joins four of them; a YAML file is one of yours.",
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
