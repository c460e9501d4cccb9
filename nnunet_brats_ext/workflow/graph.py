"""A recipe as a graph of jobs: each one a command line, what it waits for, and what it writes. Free of files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_brats_ext.planning.plan import PLANNERS
from nnunet_brats_ext.workflow.recipe import Data, Ensemble, Model, Postprocessing, Recipe
from nnunet_brats_ext.workflow.resources import KINDS, SMOKE, Needs, bases

CROSS_VALIDATION, TEST = "cv", "test"  # predictions of each fold's own cases; of the cases without label
PLANS, BASE_PLANS = "BraTSPlans", "nnUNetPlans"
EPOCHS, ITERATIONS, SNAPSHOTS, SEED = (
    f"nnUNet_brats_{name}" for name in ("epochs", "iterations", "snapshots", "seed")
)  # fmt: skip
SMOKE_EPOCHS, SMOKE_FOLDS, SMOKE_CASES, SMOKE_UNLABELLED = 2, 2, 6, 2


@dataclass(frozen=True)
class Setting:
    """Where and how a recipe runs.

    source: the release; None makes phantoms. release: its name, for names of data sets. gpus: the most that one
    training gets; 0 on a CPU. cpus: cores that a job may have. datasets: names that data sets have already, by ID.
    """

    folder: Path
    raw: Path
    preprocessed: Path
    results: Path
    dataset_id: int
    release: str
    unlabelled: bool
    source: Path | None = None
    smoke: bool = False
    device: str = "cuda"
    gpus: int = 1
    cpus: int = 8
    folds: tuple[int, ...] | None = None
    gpu_memory_gb: float | None = None
    datasets: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A command line with what it waits for and what it writes. `name` is KIND/..., unique.

    facts: of a training or a preprocessing, by which `resume` sees what of it is done.
    """

    name: str
    command: tuple[str, ...]
    result: Path
    after: tuple[str, ...]
    needs: Needs
    environment: dict[str, str] = field(default_factory=dict)
    facts: dict[str, object] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.name.split("/")[0]


def build_graph(recipe: Recipe, setting: Setting) -> dict[str, Job]:
    """All jobs of a recipe by name, each after those it waits for."""
    builder = Builder(recipe, setting)
    scores = [builder.evaluate(name) for name in recipe.evaluated]
    if len(scores) > 1:
        builder.rank(scores)
    builder.report(scores)
    if setting.unlabelled:
        for name in recipe.submissions:
            builder.restore(name)
    return builder.jobs


def with_probabilities(recipe: Recipe) -> Iterator[str]:
    """The predictions of which something needs more than label maps."""
    for ensemble in recipe.ensembles.values():
        if ensemble.method in ("mean", "nested"):
            yield from ensemble.of
    for rules in recipe.postprocessing.values():
        steps = [*rules.rule, *(rules.tune or {}).get("grid", ())]
        if any(step.startswith("unlikely-components") for step in steps) or any(Path(r).suffix for r in rules.rules):
            yield rules.of


class Builder:
    """Adds jobs as they are asked for, and what they need before them; a job asked for twice is there once."""

    def __init__(self, recipe: Recipe, setting: Setting):
        self.recipe, self.setting = recipe, setting
        self.jobs: dict[str, Job] = {}
        self.ids = {name: setting.dataset_id + i for i, name in enumerate(recipe.data)}
        self.averaged = set(with_probabilities(recipe))

    def add(
        self, name: str, command: Sequence[object], result: Path, after: Sequence[str] = (), needs: Needs | None = None,
        environment: dict[str, str] | None = None, facts: dict[str, object] | None = None,
    ) -> str:  # fmt: skip
        words = tuple(map(str, command))
        self.jobs[name] = Job(
            name, words, result, tuple(dict.fromkeys(after)), needs or self.needs(name.split("/")[0]),
            environment or {}, facts or {},
        )  # fmt: skip
        return name

    def needs(self, kind: str) -> Needs:
        wanted = SMOKE if self.setting.smoke else KINDS[kind]
        gpus = KINDS[kind].gpus if self.setting.device == "cuda" else 0
        return Needs(min(wanted.cpus, self.setting.cpus), wanted.memory_gb, wanted.hours, gpus)

    # ---- data ------------------------------------------------------------------------------------------------------

    def dataset(self, data: str) -> str:
        number = self.ids[data]
        suffix = "" if data == next(iter(self.ids)) else f"_{data}"
        return self.setting.datasets.get(number, f"Dataset{number:03d}_{self.setting.release}{suffix}")

    def base_of(self, data: Data) -> Data:
        """The data set whose labels and unlabelled images a distilled one takes over."""
        return self.recipe.data[self.recipe.models_of(data.distill)[0].data] if data.distill else data

    def images(self, data: Data, branch: str) -> Path:
        place = self.setting.raw / self.dataset(self.base_of(data).name)
        return place / ("imagesTr" if branch == CROSS_VALIDATION else "imagesTs")

    def labels(self) -> Path:
        first = self.base_of(next(iter(self.recipe.data.values())))
        return self.setting.raw / self.dataset(first.name) / "labelsTr"

    def converted(self, data: Data) -> str:
        name = f"{'distill' if data.distill else 'convert'}/{data.name}"
        if name in self.jobs:
            return name
        setting, number, folder = self.setting, self.ids[data.name], self.dataset(data.name)
        words: list[object] = ["-d", number, "--name", folder.split("_", 1)[1], "-np", self.needs("convert").cpus]
        if data.distill:
            base = self.base_of(data)
            pseudo = self.predicted(data.distill, TEST)
            labelled = ["--labelled", self.ids[base.name]]
            images = ["--pseudo", self.jobs[pseudo].result, self.images(base, TEST)]
            command = ["nnunet_brats", "distill", *words, *labelled, *images]
            return self.add(name, command, setting.raw / folder, [pseudo, self.converted(base)])
        source, after = setting.source, []
        if source is None:
            source, after = setting.folder / "release", [self.phantoms()]
        folds = SMOKE_FOLDS if setting.smoke else data.folds
        words += ["--folds", folds]
        if data.normalise:
            words += ["--normalise", data.normalise]
        first = next(one for one in self.recipe.data.values() if not one.distill)
        if data != first and data.folds == first.folds:
            words += ["--same-patients-as", self.ids[first.name]]
            after.append(self.converted(first))
        return self.add(name, ["nnunet_brats", "convert", source, *words], setting.raw / folder, after)

    def phantoms(self) -> str:
        out = self.setting.folder / "release"
        number = ["--cases", SMOKE_CASES + SMOKE_UNLABELLED, "--unlabelled", SMOKE_UNLABELLED]
        look = ["--size", 32, 36, 32, "--anatomy", "procedural", "--contrast", 1.8]
        return self.add("phantom/release", ["nnunet_brats", "phantom", out, *number, *look, "--processes", 1], out)

    def planned(self, data: Data, plans: str) -> str:
        """The plans of a data set: nnU-Net's, or ours made from those."""
        ours = plans == PLANS
        name = f"configure/{data.name}" if ours else f"plan/{data.name}/{plans}"
        final = f"shrink/{data.name}" if ours and self.setting.smoke else name
        if final in self.jobs:
            return final
        number, place = self.ids[data.name], self.setting.preprocessed / self.dataset(data.name)
        if ours:
            models = [model for model in self.recipe.models.values() if (model.data, model.plans) == (data.name, plans)]
            budget = self.setting.gpu_memory_gb or self.recipe.gpu_memory_gb
            share = min(self.gpus(model) for model in models) or 1
            fitted = ["--gpu-memory-gb", f"{budget:g}", "--gpus", share] if budget else []
            command = ["nnunet_brats", "plan", number, "--overwrite", *fitted]
            job = self.add(name, command, place / f"{plans}.json", [self.planned(data, BASE_PLANS)])
            if job == final:
                return job
            command = ["python", "-m", "nnunet_brats_ext.workflow.shrink", place / f"{plans}.json"]
            return self.add(final, command, place / f"{plans}.json", [job])
        planner = PLANNERS.get(plans, f" -overwrite_plans_name {plans}").split()
        cpus = self.needs("plan").cpus
        command = ["nnUNetv2_plan_and_preprocess", "-d", number, "--no_pp", "--verify_dataset_integrity", *planner]
        command += ["-npfp", cpus] + (["-gpu_memory_target", 0.1] if self.setting.smoke else [])
        # Planners of one data set share its fingerprint, and wait for each other so that it is made once.
        others = [job for job in self.jobs if job.startswith(f"plan/{data.name}/")]
        return self.add(name, command, place / f"{plans}.json", [self.converted(data), *others[-1:]])

    def preprocessed(self, model: Model) -> str:
        """The data that a model trains on: once for all configurations that share them."""
        data = self.recipe.data[model.data]
        if model.plans == PLANS:
            unfiltered = self.recipe.models[model.filtered] if model.filtered else model
            ((configuration, own),) = bases([unfiltered.configuration]).items()
            plans = PLANS if own else BASE_PLANS
        else:
            configuration, plans = model.configuration, model.plans
        name = f"preprocess/{data.name}/{plans}/{configuration}"
        if name not in self.jobs:
            place = self.setting.preprocessed / self.dataset(data.name)
            command = ["nnUNetv2_preprocess", "-d", self.ids[data.name], "-plans_name", plans, "-c", configuration]
            command += ["-np", self.needs("preprocess").cpus]
            facts: dict[str, object] = {"plans": str(place / f"{plans}.json"), "configuration": configuration}
            facts["labels"] = str(self.setting.raw / self.dataset(data.name) / "labelsTr")
            self.add(name, command, place, [self.planned(data, plans)], facts=facts)
        return name

    # ---- models ----------------------------------------------------------------------------------------------------

    def folds(self, model: Model) -> tuple[int, ...]:
        """Of a model that another one refines, all: between them they hold every training case."""
        every = self.every_fold(model)
        if any(other.previous_stage == model.name for other in self.recipe.models.values()):
            return every
        chosen = self.setting.folds or model.folds or every
        return tuple(fold for fold in chosen if fold in every) or every

    def every_fold(self, model: Model) -> tuple[int, ...]:
        return tuple(range(SMOKE_FOLDS if self.setting.smoke else self.recipe.data[model.data].folds))

    def gpus(self, model: Model) -> int:
        return min(model.gpus, self.setting.gpus) if self.setting.device == "cuda" else 0

    def model_folder(self, model: Model) -> Path:
        name = f"{model.trainer}__{model.plans}__{model.configuration}"
        return self.setting.results / self.dataset(model.data) / name

    def checkpoints(self, names: Sequence[str | int]) -> list[str]:
        """File names; a number is the snapshot after that epoch. A short run has few epochs to name."""
        if self.setting.smoke:
            numbers = [name for name in names if isinstance(name, int)]
            names = [1 + numbers.index(name) % SMOKE_EPOCHS if isinstance(name, int) else name for name in names]
        names = [f"epoch_{name}" if isinstance(name, int) else name for name in names]
        return list(dict.fromkeys(f"checkpoint_{name}.pth" for name in names))

    def trained(self, model: Model) -> list[str]:
        return [self.train(model, fold) for fold in self.folds(model)]

    def train(self, model: Model, fold: int) -> str:
        name = f"train/{model.name}/fold_{fold}"
        if name in self.jobs:
            return name
        after = [self.planned(self.recipe.data[model.data], model.plans), self.preprocessed(model)]
        facts: dict[str, object] = {
            "plans": str(self.setting.preprocessed / self.dataset(model.data) / f"{model.plans}.json"),
            "configuration": model.configuration,
            "fold": fold,
        }
        if model.previous_stage:
            previous = self.recipe.models[model.previous_stage]
            after += self.trained(previous)
            facts["previous"] = [str(self.jobs[job].result) for job in self.trained(previous)]
            if model.maps:
                after.append(self.maps(model, previous))
        if model.filtered:
            after.append(self.filter_cases(self.recipe.models[model.filtered]))
        command = ["nnUNetv2_train", self.ids[model.data], model.configuration, fold, "-tr", model.trainer]
        command += ["-p", model.plans, "-device", self.setting.device]
        command += ["-num_gpus", self.gpus(model)] if self.gpus(model) > 1 else []
        command += ["--npz"] if model.name in self.averaged else []
        return self.add(
            name, command, self.model_folder(model) / f"fold_{fold}", after, self.training_needs(model),
            self.training_environment(model), facts,
        )  # fmt: skip

    def training_needs(self, model: Model) -> Needs:
        each, asked, gpus = self.needs("train"), model.resources, max(self.gpus(model), 1)
        return Needs(
            min(asked.cpus or each.cpus * gpus, self.setting.cpus),
            asked.memory_gb or each.memory_gb * gpus,
            asked.hours or each.hours,
            self.gpus(model),
        )

    def training_environment(self, model: Model) -> dict[str, str]:
        if self.setting.smoke:
            return {EPOCHS: str(SMOKE_EPOCHS), ITERATIONS: "2", SNAPSHOTS: "1 2", SEED: "1", "nnUNet_n_proc_DA": "0"}
        return {EPOCHS: str(model.epochs)} if model.epochs else {}

    def filter_cases(self, model: Model) -> str:
        """A configuration without the training cases that a model could not learn."""
        place = self.setting.preprocessed / self.dataset(model.data)
        command = ["nnunet_brats", "filter-cases", self.ids[model.data], "-tr", model.trainer, "-p", model.plans]
        command += ["-c", model.configuration, "-f", *self.folds(model), "--overwrite"]
        out = place / f"splits_{model.configuration}_filtered.json"
        return self.add(f"filter/{model.name}", command, out, self.trained(model))

    def maps(self, model: Model, previous: Model) -> str:
        """Several stage-1 maps per training case, of which stage 2 draws."""
        out = self.model_folder(previous) / "predicted_next_stage"
        chosen = ["-chk", *self.checkpoints(model.maps)]
        command = ["nnunet_brats", "predict-stage", *self.model_words(previous), *chosen, "-np", self.workers("maps")]
        return self.add(f"maps/{previous.name}", command, out, self.trained(previous))

    def model_words(self, model: Model) -> list[object]:
        words = ["-d", self.ids[model.data], "-tr", model.trainer, "-c", model.configuration, "-p", model.plans]
        return [*words, "-f", *self.folds(model), "-device", self.setting.device]

    def workers(self, kind: str) -> int:
        return 0 if self.setting.smoke else max(self.needs(kind).cpus // 2, 1)

    # ---- predictions -----------------------------------------------------------------------------------------------

    def folder(self, prediction: str, branch: str) -> Path:
        return self.setting.folder / "predictions" / branch / prediction

    def predicted(self, prediction: str, branch: str) -> str:
        recipe = self.recipe
        if prediction in recipe.models:
            model = recipe.models[prediction]
            return self.collect(model) if branch == CROSS_VALIDATION else self.predict(model)
        if prediction in recipe.ensembles:
            return self.ensemble(recipe.ensembles[prediction], branch)
        return self.postprocess(recipe.postprocessing[prediction], branch)

    def collect(self, model: Model) -> str:
        out, after = self.folder(model.name, CROSS_VALIDATION), self.trained(model)
        validations = [self.jobs[job].result / "validation" for job in after]
        command = ["python", "-m", "nnunet_brats_ext.workflow.collect", *validations, "-o", out]
        return self.add(f"collect/{model.name}", command, out, after)

    def predict(self, model: Model) -> str:
        out, after = self.folder(model.name, TEST), self.trained(model)
        data = self.recipe.data[model.data]
        command = ["nnunet_brats", "predict", "-i", self.images(data, TEST), "-o", out, *self.model_words(model)]
        if model.checkpoints:
            command += ["-chk", *self.checkpoints(model.checkpoints)]
        if model.previous_stage:
            previous = self.recipe.models[model.previous_stage]
            command += ["-prev_tr", previous.trainer, "-prev_f", *self.folds(previous)]
            command += ["-prev_chk", *self.checkpoints(previous.checkpoints)] if previous.checkpoints else []
        for option in ("combine", "tiling", "tta"):
            if value := getattr(model, option):
                command += [f"--{option}", value]
        if model.name in self.averaged and model.combine != "vote":
            command.append("--save_probabilities")
        command += ["-np", self.workers("predict")]
        return self.add(f"predict/{model.name}", command, out, [*after, self.converted(self.base_of(data))])

    def ensemble(self, ensemble: Ensemble, branch: str) -> str:
        out = self.folder(ensemble.name, branch)
        after = [self.predicted(member, branch) for member in ensemble.of]
        command = ["nnunet_brats", "ensemble", "-i", *(self.jobs[job].result for job in after), "-o", out]
        command += ["--method", ensemble.method, "-np", self.needs("ensemble").cpus]
        command += ["--weights", *ensemble.weights] if ensemble.weights else []
        command += ["--space", ensemble.space] if ensemble.space else []
        if ensemble.method in ("mean", "nested") and ensemble.name in self.averaged:
            command.append("--save-probabilities")
        return self.add(f"ensemble/{branch}/{ensemble.name}", command, out, after)

    def postprocess(self, rules: Postprocessing, branch: str) -> str:
        out, before = self.folder(rules.name, branch), self.predicted(rules.of, branch)
        command = ["nnunet_brats", "postprocess", self.jobs[before].result, "-o", out]
        after = [before]
        if rules.tune is not None:
            after.append(self.tune(rules))
            command += ["--rules", self.jobs[after[-1]].result]
        command += ["--rules", *rules.rules] if rules.rules else []
        command += ["--rule", *rules.rule] if rules.rule else []
        data = self.recipe.data[self.recipe.models_of(rules.of)[0].data]
        command += ["--images", self.images(data, branch), "-np", self.needs("postprocess").cpus]
        return self.add(f"postprocess/{branch}/{rules.name}", command, out, after)

    def tune(self, rules: Postprocessing) -> str:
        name = f"tune/{rules.name}"
        if name not in self.jobs:
            out = self.setting.folder / "rules" / f"{rules.name}.json"
            before = self.predicted(rules.of, CROSS_VALIDATION)
            data = self.recipe.data[self.recipe.models_of(rules.of)[0].data]
            splits = self.setting.preprocessed / self.dataset(data.name) / "splits_final.json"
            command = ["nnunet_brats", "tune", self.labels(), self.jobs[before].result, "--splits", splits, "-o", out]
            settings = rules.tune or {}
            command += ["--grid", *settings["grid"]] if "grid" in settings else []
            command += ["--objective", settings["objective"]] if "objective" in settings else []
            command += [*self.preset(), "--images", self.images(data, CROSS_VALIDATION), "-np", self.needs("tune").cpus]
            self.add(name, command, out, [before])
        return name

    # ---- scores ----------------------------------------------------------------------------------------------------

    def preset(self) -> list[str]:
        return ["--preset", self.recipe.preset, "--cohort", self.recipe.cohort]

    def evaluate(self, prediction: str) -> str:
        """Scores of the cross-validation; where it lacks folds, of the cases that those have."""
        before = self.predicted(prediction, CROSS_VALIDATION)
        out = self.setting.folder / "results" / f"{prediction}.json"
        command = ["nnunet_brats", "evaluate", self.labels(), self.jobs[before].result, *self.preset(), "-o", out]
        partial = any(
            len(self.folds(model)) < len(self.every_fold(model)) for model in self.recipe.models_of(prediction)
        )
        command += (["--partial"] if partial else []) + ["-np", self.needs("evaluate").cpus]
        return self.add(f"evaluate/{prediction}", command, out, [before])

    def rank(self, scores: Sequence[str]) -> str:
        out = self.setting.folder / "ranking.json"
        command = ["nnunet_brats", "rank", *(self.jobs[job].result for job in scores)]
        command += ["--names", *self.names(scores), "-o", out, "-np", self.needs("rank").cpus]
        return self.add("rank/all", command, out, scores)

    def report(self, scores: Sequence[str]) -> str:
        out, labels = self.setting.folder / "report.html", self.labels()
        command = ["nnunet_brats", "report", *(self.jobs[job].result for job in scores), "-o", out]
        command += ["--title", self.recipe.title, "--names", *self.names(scores), "--reference", labels]
        command += ["--images", labels.with_name("imagesTr"), "--predictions"]
        command += [self.folder(name, CROSS_VALIDATION) for name in self.names(scores)]
        models = {model.name: model for name in self.names(scores) for model in self.recipe.models_of(name)}
        command += ["--models", *(self.model_folder(model) for model in models.values())]
        command += ["-np", self.needs("report").cpus]
        return self.add("report/all", command, out, scores)

    def names(self, scores: Sequence[str]) -> list[str]:
        return [job.split("/", 1)[1] for job in scores]

    def restore(self, prediction: str) -> str:
        before = self.predicted(prediction, TEST)
        several = len(self.recipe.submissions) > 1
        out = self.setting.folder / "submission" / (prediction if several else "")
        data = self.base_of(self.recipe.data[self.recipe.models_of(prediction)[0].data])
        command = ["nnunet_brats", "restore", self.jobs[before].result, "-o", out, "-d", self.ids[data.name]]
        return self.add(f"restore/{prediction}", [*command, "-np", self.needs("restore").cpus], out, [before])
