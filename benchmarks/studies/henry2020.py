"""Henry et al. 2020: what do averaged weights give, what 16 test-time maps, what the merge of pipelines?"""

from studies.workbench import Model, Trial, Workbench

RELEASE = "release"
MINMAX, ZSCORE = "910", "911"
MODELS = {
    "A": Model(MINMAX, "StudyHenryATrainer", "henry"),
    "A without averaging": Model(MINMAX, "StudyHenryAWithoutAveragingTrainer", "henry"),
    "B": Model(ZSCORE, "StudyHenryBTrainer", "henry_b"),
}


def prepare(bench: Workbench) -> None:
    bench.phantoms(RELEASE, 15, 8)
    bench.convert(RELEASE, MINMAX, "--normalise", "percentile-minmax")
    bench.convert(RELEASE, ZSCORE)
    bench.plan(MINMAX, {"henry": dict(patch_size=[32, 32, 32], batch_size=1)})
    bench.plan(ZSCORE, {"henry_b": dict(patch_size=[32, 32, 32], batch_size=3)})


def run(trial: Trial) -> list[str]:
    """Fold 0 of each model, predicted once and 16-fold; A decides ET and NCR of the merged label maps."""
    datasets = {}
    for name, model in MODELS.items():
        trial.train(model)
        trial.predict(name, model, "--tta", "none")
        trial.predict(f"{name}, TTA", model, "--tta", "henry16")
        datasets |= {name: model.dataset, f"{name}, TTA": model.dataset}
    trial.ensemble("A and B merged, TTA", ["A, TTA", "B, TTA"], "--method", "two-pass")
    datasets["A and B merged, TTA"] = ZSCORE
    return [trial.score(name, dataset, f"references_{RELEASE}") for name, dataset in datasets.items()]
