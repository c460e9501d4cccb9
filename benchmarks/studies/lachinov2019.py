"""Lachinov et al. 2019: does a student of few manual and many pseudo-labelled cases reach its teachers?"""

from studies.workbench import Model, Trial, Workbench

LABELLED, HELD_OUT = "920", "921"
RELEASES = {LABELLED: "release", HELD_OUT: "held_out"}
TEACHERS = {
    "U-Net": Model(LABELLED, "StudyNoNewNetTrainer", "lachinov_128"),
    "residual U-Net": Model(LABELLED, "StudyResUNetVAETrainer", "lachinov_144"),
    "cascade": Model(LABELLED, "BraTSCascadedUNetTrainer", "lachinov_brain"),
}
IMAGES = f"nnUNet_raw/Dataset{HELD_OUT}_Study/imagesTs"
SMALL = dict(patch_size=[32, 32, 32], batch_size=2)
CASES = dict(labelled=6, unlabelled=24, held_out=8)  # two of the labelled ones validate


def prepare(bench: Workbench) -> None:
    bench.phantoms(RELEASES[LABELLED], CASES["labelled"], CASES["unlabelled"])
    bench.phantoms(RELEASES[HELD_OUT], 1, CASES["held_out"], seed=1)
    for dataset, release in RELEASES.items():
        bench.convert(release, dataset)
    bench.plan(LABELLED, {"lachinov_128": SMALL, "lachinov_144": SMALL, "lachinov_brain": dict(batch_size=2)})
    bench.run("nnUNetv2_preprocess", "-d", LABELLED, "-plans_name", "BraTSPlans", "-c", "lachinov_brain", "-np", "1")
    bench.split(LABELLED, 3)


def run(trial: Trial) -> list[str]:
    """Teachers and a student on fold 0; another student on the same and on what the ensemble says of the unlabelled."""
    unlabelled = f"nnUNet_raw/Dataset{LABELLED}_Study/imagesTs"
    for name, teacher in TEACHERS.items():
        trial.train(teacher)
        trial.predict(name, teacher, "--save_probabilities", images=IMAGES)
        trial.predict(f"{name} unlabelled", teacher, "--save_probabilities", images=unlabelled)
    trial.ensemble("ensemble of the three", list(TEACHERS))
    together = trial.ensemble("together unlabelled", [f"{name} unlabelled" for name in TEACHERS])

    few = Model(LABELLED, "StudyStudentTrainer", "lachinov_144")
    many = Model(str(930 + trial.seed), "StudyStudentTrainer", "lachinov_144")
    distilled = ("-d", many.dataset, "--name", "Study", "--labelled", LABELLED, "--pseudo", together, unlabelled)
    trial.bench.run("nnunet_brats", "distill", *distilled, "--exclude", IMAGES)
    trial.bench.plan(many.dataset, {"lachinov_144": SMALL})
    students = {"student, manual labels": few, "student, manual and pseudo-labels": many}
    for name, student in students.items():
        trial.train(student)
        trial.predict(name, student, images=IMAGES)
    names = (*TEACHERS, "ensemble of the three", *students)
    return [trial.score(name, HELD_OUT, f"references_{RELEASES[HELD_OUT]}") for name in names]
