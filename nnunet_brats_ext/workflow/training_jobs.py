"""The jobs up to trained models: data sets, plans, preprocessed data, folds."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

from nnunet_brats_ext.planning.plan import PLANNERS
from nnunet_brats_ext.training.environment import EPOCHS, ITERATIONS, SEED, SNAPSHOTS, requested_snapshots
from nnunet_brats_ext.workflow.jobs import (
    BASE_PLANS,
    SMOKE_CASES,
    SMOKE_EPOCHS,
    SMOKE_FOLDS,
    SMOKE_ITERATIONS,
    SMOKE_UNLABELLED,
    TEST,
    Jobs,
)
from nnunet_brats_ext.workflow.recipe_parts import PLANS, Data, Model
from nnunet_brats_ext.workflow.resources import Needs, bases


class TrainingJobs(Jobs):
    """Adds jobs as they are asked for, and what they need before them; a job asked for twice is there once."""

    @abstractmethod
    def predicted(self, prediction: str, branch: str) -> str:
        """The job that makes a prediction: pseudo-labels are one, and data to train on."""

    # ---- data ------------------------------------------------------------------------------------------------------

    def converted(self, data: Data) -> str:
        name = f"{'distill' if data.distill else 'convert'}/{data.name}"
        if name in self.jobs:
            return name
        setting, number, folder = self.setting, self.ids[data.name], self.dataset(data.name)
        words: list[object] = ["-d", number, "--name", folder.split("_", 1)[1], "-np", self.needs("convert").cpus]
        if data.distill:
            return self.distilled(name, data, words)
        normalised = ["--normalise", data.normalise] if data.normalise else []
        if data.source:
            command = ["nnunet_brats", "convert", setting.also[data.source], *words, *normalised]
            return self.add(name, command, setting.raw / folder)
        source: Path | None = setting.source
        after: list[str] = []
        if source is None:
            source, after = setting.folder / "release", [self.phantoms()]
        words += ["--folds", SMOKE_FOLDS if setting.smoke else data.folds] if not data.validation else []
        words += normalised
        first = next(one for one in self.recipe.data.values() if not one.distill and not one.source)
        if data != first and (data.folds, data.hold_out, data.validation) == (
            first.folds, first.hold_out, first.validation
        ):  # fmt: skip
            words += ["--same-patients-as", self.ids[first.name]]
            after.append(self.converted(first))
        else:
            for option, asked in (("--hold-out", data.hold_out), ("--validation", data.validation)):
                words += [option, 1 if setting.smoke else f"{asked:g}"] if asked else []
        return self.add(name, ["nnunet_brats", "convert", source, *words], setting.raw / folder, after)

    def distilled(self, name: str, data: Data, words: list[object]) -> str:
        """A data set of labels, those of others, and pseudo-labels of the cases without."""
        assert data.distill is not None
        base = self.base_of(data)
        command, after = ["nnunet_brats", "distill", *words, "--labelled", self.ids[base.name]], [self.converted(base)]
        for other in self.unlabelled_of(data):
            branch = TEST if other == base else f"{TEST}-{other.name}"
            after.append(self.predicted(data.distill, branch))
            command += ["--pseudo", self.jobs[after[-1]].result, self.images(base, branch)]
        for foreign in data.foreign:
            after.append(self.converted(self.recipe.data[foreign]))
            command += ["--foreign", self.ids[foreign]]
        command += [word for folder in data.exclude for word in ("--exclude", self.setting.also[folder])]
        return self.add(name, command, self.setting.raw / self.dataset(data.name), after)

    def unlabelled_of(self, data: Data) -> list[Data]:
        """The data sets with cases without label that a distilled one learns from."""
        names = (self.base_of(data).name,) if data.unlabelled is None else data.unlabelled
        every = [self.recipe.data[name] for name in names]
        return [one for one in every if one.source or self.setting.unlabelled]

    def phantoms(self) -> str:
        out = self.setting.folder / "release"
        number = ["--cases", SMOKE_CASES + SMOKE_UNLABELLED, "--unlabelled", SMOKE_UNLABELLED]
        look = ["--size", 32, 36, 32, "--anatomy", "procedural", "--contrast", 1.8]
        return self.add("phantom/release", ["nnunet_brats", "phantom", out, *number, *look, "-np", 1], out)

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
            wide = {self.recipe.paper_configuration(m): self.gpus(m) for m in models if self.gpus(m) > 1}
            shares = ",".join(f"{configuration}={gpus}" for configuration, gpus in wide.items() if configuration)
            fitted = ["--gpu-memory-gb", f"{budget:g}"] if budget else []
            fitted += ["--gpus", shares] if budget and shares else []
            # Plans in folders that others use may be what their models were trained with.
            own = ["--overwrite"] if self.setting.preprocessed.is_relative_to(self.setting.folder) else []
            command = ["nnunet_brats", "plan", number, *own, *fitted]
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
        facts: dict[str, object] = {"dataset": str(self.setting.raw / self.dataset(data.name) / "dataset.json")}
        after = [self.converted(data), *others[-1:]]
        return self.add(name, command, place / f"{plans}.json", after, facts=facts)

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
            # All of them write into one folder, so they wait for each other.
            others = [job for job in self.jobs if job.startswith(f"preprocess/{data.name}/")]
            self.add(name, command, place, [self.planned(data, plans), *others[-1:]], facts=facts)
        return name

    # ---- models ----------------------------------------------------------------------------------------------------

    def trained(self, model: Model, folds: Sequence[int | str] = ()) -> list[str]:
        return [self.train(model, fold) for fold in folds or self.folds(model)]

    def train(self, model: Model, fold: int | str) -> str:
        name = f"train/{model.name}/fold_{fold}"
        if name in self.jobs:
            return name
        after = [self.planned(self.recipe.data[model.data], model.plans), self.preprocessed(model)]
        facts: dict[str, object] = {
            "plans": str(self.setting.preprocessed / self.dataset(model.data) / f"{model.plans}.json"),
            "configuration": model.configuration,
            "fold": fold,
        }
        if before := self.recipe.refined_by(model):
            previous = self.recipe.model_of(before)
            after += self.trained(previous)
            facts["previous"] = [str(self.jobs[job].result) for job in self.trained(previous)]
            if model.maps:
                after.append(self.maps(model, previous))
                facts["maps"] = self.checkpoints(model.maps)
        if start := self.recipe.start_of(model):
            after.append(self.train(start, fold))
            facts["start"] = str(self.jobs[after[-1]].result)
        if model.filtered:
            after.append(self.filter_cases(self.recipe.models[model.filtered]))
        command = ["nnUNetv2_train", self.ids[model.data], model.configuration, fold, "-tr", model.trainer]
        command += ["-p", model.plans, "-device", self.setting.device]
        command += ["-num_gpus", self.gpus(model)] if self.gpus(model) > 1 else []
        return self.add(
            name, command, self.model_folder(model) / f"fold_{fold}", after, self.training_needs(model),
            self.training_environment(model), facts,
        )  # fmt: skip

    def training_needs(self, model: Model) -> Needs:
        each, asked, gpus = self.needs("train"), model.resources, max(self.gpus(model), 1)
        return Needs(
            min(asked.cpus or each.cpus * gpus, self.setting.cpus * gpus),
            asked.memory_gb or each.memory_gb * gpus,
            asked.hours or each.hours,
            self.gpus(model),
        )

    def training_environment(self, model: Model) -> dict[str, str]:
        if self.setting.smoke:
            short = {EPOCHS: str(SMOKE_EPOCHS), ITERATIONS: str(SMOKE_ITERATIONS), SNAPSHOTS: "1 2"}
            return {**short, SEED: "1", "nnUNet_n_proc_DA": "0"}  # the same weights every time
        environment = {EPOCHS: str(model.epochs)} if model.epochs else {}
        named = self.recipe.epochs_of(model) | {*requested_snapshots()}
        if more := named - {*self.trainer(model).snapshot_epochs}:
            environment[SNAPSHOTS] = " ".join(map(str, sorted(more)))
        return environment

    def filter_cases(self, model: Model) -> str:
        """A configuration without the training cases that a model could not learn."""
        place = self.setting.preprocessed / self.dataset(model.data)
        command = ["nnunet_brats", "filter-cases", self.ids[model.data], "-tr", model.trainer, "-p", model.plans]
        command += ["-c", model.configuration, "-f", *self.folds(model), "--overwrite"]
        out = place / f"splits_{model.configuration}_filtered.json"
        return self.add(f"filter/{model.name}", command, out, self.trained(model))

    def maps(self, model: Model, previous: Model) -> str:
        """Several stage-1 maps per training case, of which stage 2 draws."""
        out = self.model_folder(previous) / "predicted_next_stage" / f"{model.configuration}.maps"
        chosen = ["-chk", *self.checkpoints(model.maps), "--next-stages", model.configuration]
        command = ["nnunet_brats", "predict", "--for-next-stage", *self.model_words(previous, self.folds(previous))]
        command += [*chosen, "-np", self.workers("maps")]
        return self.add(f"maps/{model.name}", command, out, self.trained(previous))
