"""Lyu & Shu 2020: does stage 2 help, and do several stage-1 maps per case?"""

from studies.workbench import Model, Trial, Workbench

DATASET, RELEASE = "905", "release"
STAGE_1 = Model(DATASET, "StudyVAETrainer", "lyu_stage1")
STAGE_2 = Model(DATASET, "StudyAttentionVAETrainer", "lyu_stage2")
EXPANDED = Model(DATASET, "StudyExpandedAttentionVAETrainer", "lyu_stage2")


def prepare(bench: Workbench) -> None:
    bench.phantoms(RELEASE, 12, 8)
    bench.convert(RELEASE, DATASET)
    small = dict(patch_size=[32, 32, 32], batch_size=2)
    bench.plan(DATASET, {STAGE_1.configuration: small, STAGE_2.configuration: small})
    bench.split(DATASET, 2)


def run(trial: Trial) -> list[str]:
    """Both folds of stage 1 with two snapshots; stage 2 on the map of the last weights, then on those of both."""
    epochs = (trial.epochs * 3 // 4, trial.epochs)
    trial.train(STAGE_1, 0, 1, nnUNet_brats_snapshots=" ".join(map(str, epochs)))
    trial.predict("stage 1", STAGE_1)
    trial.train(STAGE_2, 0, 1)
    trial.predict("stage 2, one map", STAGE_2, "--tiling", "tumour")
    snapshots = [f"checkpoint_epoch_{epoch}.pth" for epoch in epochs]
    stage = ("predict", "--for-next-stage", *STAGE_1.words, "-device", "cpu", "-np", "1", "-chk", *snapshots)
    trial.bench.run("nnunet_brats", *stage, **trial.settings)
    trial.train(EXPANDED, 0, 1)
    trial.predict("stage 2, two maps", EXPANDED, "--tiling", "tumour")
    names = ("stage 1", "stage 2, one map", "stage 2, two maps")
    return [trial.score(name, DATASET, f"references_{RELEASE}") for name in names]
