"""A recipe as a graph of jobs: each one a command line, what it waits for, and what it writes. Free of files."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from nnunet_brats_ext.dataset_conversion.splits import number_of_folds
from nnunet_brats_ext.inference.chosen import CHOSEN
from nnunet_brats_ext.storage.errors import UserError
from nnunet_brats_ext.storage.nnunet import SPLITS
from nnunet_brats_ext.workflow.jobs import CROSS_VALIDATION, SMOKE_EPOCHS, TEST, Setting
from nnunet_brats_ext.workflow.recipe import with_folders
from nnunet_brats_ext.workflow.recipe_parts import (
    Choice,
    Data,
    Ensemble,
    Model,
    ModelPrediction,
    Postprocessing,
    Recipe,
)
from nnunet_brats_ext.workflow.state import Job
from nnunet_brats_ext.workflow.training_jobs import TrainingJobs


def build_graph(recipe: Recipe, setting: Setting) -> dict[str, Job]:
    """All jobs of a recipe by name, each after those it waits for."""
    recipe = with_folders(recipe, setting.also)
    if setting.patients is not None and not number_of_folds(2, setting.patients):
        count = "1 patient" if setting.patients else "no patient"
        raise UserError(f"the source has {count} with labels; a cross-validation needs two")
    graph = Graph(recipe, setting)
    for model in recipe.models.values():
        every = graph.every_fold(model)
        if model.on_all:
            continue
        if unknown := sorted(set(setting.folds or ()) - set(every)):
            raise UserError(f"--folds {unknown[0]}: {model.name} has the folds 0 to {every[-1]} here")
    graph.score(recipe.evaluated)
    if setting.unlabelled:
        for name in recipe.submissions:
            graph.restore(name)
    for data in recipe.data.values():
        if f"distill/{data.name}" in graph.jobs and not data.foreign and not graph.unlabelled_of(data):
            raise UserError(
                f"the source has no cases without label, which {data.name!r} is to learn from; "
                "give a release that has some"
            )
    return graph.jobs


class Graph(TrainingJobs):
    """What becomes of trained models: predictions of both kinds of cases, their combinations, scores, a submission."""

    # ---- predictions -----------------------------------------------------------------------------------------------

    def predicted(self, prediction: str, branch: str) -> str:
        recipe = self.recipe
        if prediction in recipe.predictions:
            return self.predict(recipe.predictions[prediction], branch)
        if prediction in recipe.ensembles:
            return self.ensemble(recipe.ensembles[prediction], branch)
        return self.postprocess(recipe.postprocessing[prediction], branch)

    def predict(self, one: ModelPrediction, branch: str, before: ModelPrediction | None = None) -> str:
        """The cases without label by all folds, or each fold's own cases by its models, with the same inference.

        before: what it refines; default what the recipe says.
        """
        model = self.recipe.model_of(one)
        folds = self.scored_folds(one) if branch == CROSS_VALIDATION else self.predicting_folds(one)
        after = self.trained(model, folds)
        command = self.model_words(model, folds)
        if one.choice:
            command += ["-chk", self.chosen_by(one.choice)]
            after.append(self.choose(model))
        elif one.checkpoints:
            command += ["-chk", *self.checkpoints(one.checkpoints)]
        words, jobs = self.previous(one, before or self.recipe.refined_by(one))
        command += words
        after += jobs
        if one.name in self.averaged and one.combine != "vote":
            command.append("--save_probabilities")
        return self.prediction(one.name, branch, command, one, after)

    def members(self, one: ModelPrediction, branch: str) -> list[str]:
        """Every checkpoint of a prediction, on each of the stage before, as a prediction of its own."""
        before = self.recipe.refined_by(one)
        sources: list[ModelPrediction | None] = [before]
        if before and before.checkpoints:
            sources = [replace(before, checkpoints=(name,)) for name in self.kept(before.checkpoints)]
        jobs = []
        for source, name in product(sources, self.kept(one.checkpoints)):
            label = ".".join(map(str, (*(source.checkpoints if source else ()), name)))
            alone = replace(one, name=f"{one.name}.{label}", checkpoints=(name,))
            jobs.append(self.predict(alone, branch, source))
        return jobs

    def previous(self, one: ModelPrediction, before: ModelPrediction | None) -> tuple[list[object], list[str]]:
        """How `predict` and `choose` name the stage before, and how they combine; and the jobs to wait for."""
        words: list[object] = []
        after: list[str] = []
        if before:
            model = self.recipe.model_of(before)
            words += ["-prev_tr", model.trainer, "-prev_f", *self._of(before.folds, self.folds(model))]
            if before.choice:
                words += ["-prev_chk", self.chosen_by(before.choice)]
                after.append(self.choose(model))
            elif before.checkpoints:
                words += ["-prev_chk", *self.checkpoints(before.checkpoints)]
        words += ["--combine", one.combine] if one.combine else []
        return [*words, *(["--ties", one.ties] if one.ties else [])], after

    def choose(self, model: Model) -> str:
        """The checkpoints of each fold that predict its cases best, as many as any prediction of the model takes.

        They are judged by the first prediction that takes what is chosen: its previous stage, tiling and symmetries.
        """
        name = f"choose/{model.name}"
        if name not in self.jobs:
            one, choice = self.recipe.choices_of(model)[0]
            words, before = self.previous(one, self.recipe.refined_by(one))
            command = [*self.model_words(model, self.folds(model)), *words]
            command += ["-chk", *self.checkpoints(choice.of)] if choice.of else []
            choice = replace(choice, best=self.most_chosen(model))
            self.chosen(name, command, one, choice, [*self.trained(model), *before])
        return name

    def most_chosen(self, model: Model) -> int:
        return max(self.best_of(choice) for _, choice in self.recipe.choices_of(model))

    def best_of(self, choice: Choice) -> int:
        return min(choice.best, SMOKE_EPOCHS) if self.setting.smoke else choice.best  # a short run keeps few snapshots

    def chosen_by(self, choice: Choice) -> str:
        """How `predict` names the checkpoints of a choice: by their number, which a later choice may not lessen."""
        return f"{CHOSEN}:{self.best_of(choice)}"

    def chosen(
        self, name: str, models: Sequence[object], first: ModelPrediction, choice: Choice, after: Sequence[str]
    ) -> None:
        """A job that chooses. models: words that name the candidates. first: how the first of them predicts."""
        out = self.setting.folder / "choices" / f"{name.split('/', 1)[1]}.json"
        words = ["nnunet_brats", "choose", *models, "--best", choice.best, "--by", choice.by, *self.preset(), "-o", out]
        words += [*self.seen(first), "-np", self.workers("choose")]
        self.add(name, words, out, [*after, self.converted(self.base_of(self.data_of(first.name)))])

    def seen(self, one: ModelPrediction) -> list[str]:
        """Tiling and symmetries, where the recipe names them."""
        given = (("--tiling", one.tiling), ("--tta", one.tta))
        return [word for option, value in given if value for word in (option, value)]

    def prediction(
        self, name: str, branch: str, models: Sequence[object], first: ModelPrediction, after: Sequence[str]
    ) -> str:
        """A job that predicts. models: words that name them. first: of which data, tiling and symmetries are."""
        out, data = self.folder(name, branch), self.recipe.data[self.recipe.model_of(first).data]
        words = ["nnunet_brats", "predict", "-i", self.images(data, branch), "-o", out, *models]
        words += ["--cross-validation"] if branch == CROSS_VALIDATION else []
        words += [*self.seen(first), "-np", self.workers("predict")]
        job = f"predict/{name}" if branch == TEST else f"predict/{branch}/{name}"
        return self.add(job, words, out, [*after, self.converted(self.shown(data, branch))])

    def ensemble(self, ensemble: Ensemble, branch: str) -> str:
        if ensemble.best:
            return self.pool(ensemble, branch)
        out = self.folder(ensemble.name, branch)
        after = [self.predicted(member, branch) for member in ensemble.of]
        command = ["nnunet_brats", "ensemble", "-i", *(self.jobs[job].result for job in after), "-o", out]
        command += ["--method", ensemble.method, "-np", self.needs("ensemble").cpus]
        command += ["--weights", *ensemble.weights] if ensemble.weights else []
        command += ["--space", ensemble.space] if ensemble.space else []
        command += ["--ties", ensemble.ties] if ensemble.ties else []
        if ensemble.averages and ensemble.name in self.averaged:
            command.append("--save_probabilities")
        return self.add(f"ensemble/{branch}/{ensemble.name}", command, out, after)

    def pool(self, ensemble: Ensemble, branch: str) -> str:
        """The best models of each fold, which predict anew, as one job after that of the choice."""
        assert ensemble.best is not None
        models = [self.recipe.models[name] for name in ensemble.of]
        first = self.recipe.predictions[ensemble.of[0]]
        after = [job for model in models for job in self.trained(model)]
        command = ["-d", self.ids[models[0].data], "-p", models[0].plans]
        command += ["--models", *(f"{model.trainer}:{model.configuration}" for model in models)]
        command += ["-f", *self.scored_folds(first), "-device", self.setting.device]
        if (name := f"choose/{ensemble.name}") not in self.jobs:
            self.chosen(name, command, first, Choice(ensemble.best, ensemble.by), after)
        command += ["--best", ensemble.best, "--by", ensemble.by, *self.preset()]
        command += ["--save_probabilities"] if ensemble.name in self.averaged else []
        return self.prediction(ensemble.name, branch, command, first, [*after, name])

    def postprocess(self, rules: Postprocessing, branch: str) -> str:
        out, before = self.folder(rules.name, branch), self.predicted(rules.of, branch)
        command = ["nnunet_brats", "postprocess", "-i", self.jobs[before].result, "-o", out]
        after = [before]
        if rules.tune is not None:
            after.append(self.tune(rules))
            command += ["--rules", self.jobs[after[-1]].result]
        command += ["--rules", *rules.rules] if rules.rules else []
        command += ["--rule", *rules.rule] if rules.rule else []
        command += ["--images", self.images(self.data_of(rules.of), branch), "-np", self.needs("postprocess").cpus]
        return self.add(f"postprocess/{branch}/{rules.name}", command, out, after)

    def tune(self, rules: Postprocessing) -> str:
        name = f"tune/{rules.name}"
        if name not in self.jobs:
            folds = min((self.scored_folds(leaf) for leaf in self.recipe.leaves_of(rules.of)), key=len)
            if len(folds) < 2:
                raise UserError(
                    f"{rules.name} is tuned by holding out one fold after the other, and there is only fold "
                    f"{', '.join(map(str, folds))}; give two or more to --folds, or name with --only what is not tuned"
                )
            out = self.setting.folder / "rules" / f"{rules.name}.json"
            before = self.predicted(rules.of, CROSS_VALIDATION)
            data = self.data_of(rules.of)
            labels = self.labels(data, CROSS_VALIDATION)
            command = ["nnunet_brats", "tune", labels, self.jobs[before].result, *self.splits(data), "-o", out]
            settings = rules.tune or {}
            command += ["--grid", *settings["grid"]] if "grid" in settings else []
            command += ["--objective", settings["objective"]] if "objective" in settings else []
            command += ["--per-cluster", settings["per_cluster"]] if "per_cluster" in settings else []
            command += [*self.preset(), "--images", self.images(data, CROSS_VALIDATION), "-np", self.needs("tune").cpus]
            self.add(name, command, out, [before])
        return name

    # ---- scores ----------------------------------------------------------------------------------------------------

    def preset(self) -> list[str]:
        return ["--preset", self.recipe.preset, "--cohort", self.recipe.cohort]

    def score(self, names: Sequence[str]) -> None:
        """The scores of predictions, their ranking, and the report, which has those of `each` as a spread alone."""
        jobs = {name: self.evaluate(name) for name in names}
        many = {name for name, one in self.recipe.predictions.items() if one.each}
        scores = [job for name, job in jobs.items() if name not in many]
        if len(scores) > 1:
            self.rank(scores)
        if scores:
            self.report(scores, [job for name, job in jobs.items() if name in many])

    def evaluate(self, prediction: str) -> str:
        """Scores of the cases that are held out, beside which others are predicted; else of the cross-validation.

        Where that lacks folds, of the cases that those have.
        """
        branch = self.scored_branch
        leaves = self.recipe.leaves_of(prediction)
        apart = self.recipe.one_per_region.get(prediction, ())
        if leaves[0].each:
            before = self.members(leaves[0], branch)
        else:
            before = [self.predicted(name, branch) for name in apart or (prediction,)]
        out = self.setting.folder / "results" / f"{prediction}.json"
        command = [
            "nnunet_brats",
            "evaluate",
            self.labels(self.scored_data, branch),
            *(self.jobs[job].result for job in before),
        ]
        lacking = any(
            len(self.scored_folds(leaf)) < len(self.every_fold(self.recipe.model_of(leaf))) for leaf in leaves
        )
        partial = branch == TEST or lacking or self.scored_data.validation
        folds = self.splits(self.data_of(prediction)) if branch == CROSS_VALIDATION else []
        command += [*self.preset(), *folds, *(["--partial"] if partial else [])]
        command += ["--one-per-region"] if apart else []
        command += ["-o", out, "-np", self.needs("evaluate").cpus]
        return self.add(f"evaluate/{prediction}", command, out, [*before, self.converted(self.scored_data)])

    def splits(self, data: Data) -> list[object]:
        """How `tune` and `evaluate` learn of which fold a case is."""
        return ["--splits", self.setting.preprocessed / self.dataset(data.name) / SPLITS]

    def rank(self, scores: Sequence[str]) -> str:
        out = self.setting.folder / "ranking.json"
        command = ["nnunet_brats", "rank", *(self.jobs[job].result for job in scores)]
        command += ["--names", *self.names(scores), "-o", out, "-np", self.needs("rank").cpus]
        return self.add("rank/all", command, out, scores)

    def report(self, scores: Sequence[str], spreads: Sequence[str]) -> str:
        branch = self.scored_branch
        out, labels = self.setting.folder / "report.html", self.labels(self.scored_data, branch)
        command = ["nnunet_brats", "report", *(self.jobs[job].result for job in scores), "-o", out]
        command += ["--title", self.recipe.title, "--names", *self.names(scores), "--reference", labels]
        command += ["--images", labels.with_name(labels.name.replace("labels", "images"))]
        drawn = [name for name in self.names(scores) if name not in self.recipe.one_per_region]
        folders = [f"{name}={self.folder(name, branch)}" for name in drawn]
        command += ["--predictions", *folders] if folders else []
        models = {model.name: model for name in self.names(scores) for model in self.recipe.models_of(name)}
        command += ["--models", *(self.model_folder(model) for model in models.values())]
        if spreads:
            results = zip(self.names(spreads), (self.jobs[job].result for job in spreads), strict=True)
            command += ["--spreads", *(f"{name}={result}" for name, result in results)]
        if published := self.recipe.published:
            command += ["--paper", published.key]
        command += ["-np", self.needs("report").cpus]
        return self.add("report/all", command, out, [*scores, *spreads])

    def names(self, scores: Sequence[str]) -> list[str]:
        return [job.split("/", 1)[1] for job in scores]

    def restore(self, prediction: str) -> str:
        before = self.predicted(prediction, TEST)
        several = len(self.recipe.submissions) > 1
        out = self.setting.folder / "submission" / (prediction if several else "")
        data = self.base_of(self.data_of(prediction))
        command = ["nnunet_brats", "restore", self.jobs[before].result, "-o", out, "-d", self.ids[data.name]]
        return self.add(f"restore/{prediction}", [*command, "-np", self.needs("restore").cpus], out, [before])
