"""Zhou et al. 2020: one task against three in one pass, without and with attention; small tiles against large."""

from studies.workbench import Model, Trial, Workbench

DATASET, RELEASE = "940", "release"
MODELS = {
    "MC1": Model(DATASET, "StudyMC1Trainer", "omnet_one_task"),
    "OM-Net": Model(DATASET, "StudyOMNetTrainer", "omnet"),
    "OM-Net + CGA": Model(DATASET, "StudyOMNetCGATrainer", "omnet"),
}
LARGE_TILE = ("--patch-size", "48", "64", "48")


def prepare(bench: Workbench) -> None:
    bench.phantoms(RELEASE, 15, 8)
    bench.convert(RELEASE, DATASET)
    one_task = dict(inherits_from="omnet", batch_size=6)  # as many patches in a step as the others have for three
    bench.plan(DATASET, {"omnet": dict(batch_size=2), "omnet_one_task": one_task})


def run(trial: Trial) -> list[str]:
    """Fold 0 of each, six patches per step; each predicted in the paper's tiles and in large ones."""
    names: list[str] = []
    for name, model in MODELS.items():
        trial.train(model)
        trial.predict(name, model)
        trial.predict(f"{name}, large tiles", model, *LARGE_TILE)
        names += [trial.score(each, DATASET, f"references_{RELEASE}") for each in (name, f"{name}, large tiles")]
        names.append(trial.agreement(f"{name}, large tiles", name, DATASET))
    return names
