"""The student that Lachinov et al. 2019 have released: https://github.com/lachinov/brats2019."""

from nnunet_brats_ext.architectures.post_activation_residual_unet import RELEASED_KEYS, RELEASED_UNUSED
from nnunet_brats_ext.brats import SEQUENCES
from nnunet_brats_ext.weights.key_maps import covers, names_left_out, renamed
from nnunet_brats_ext.weights.plans import configuration_of_paper
from nnunet_brats_ext.weights.sources import REGIONS, ForeignModel, Given, WeightsSource

CONFIGURATION = "lachinov_144"


def open_model(given: Given) -> ForeignModel | None:
    state = given.state
    if not covers(state, RELEASED_KEYS):
        return None
    return ForeignModel(
        system="the student of Lachinov et al. 2019, a residual U-Net",
        trainer="BraTSStudentTrainer",
        plans_name="Lachinov2019Plans",
        configuration=CONFIGURATION,
        configurations={CONFIGURATION: configuration_of_paper(CONFIGURATION)},
        inputs=SEQUENCES,
        outputs=REGIONS,
        folds={"": lambda: renamed(state, RELEASED_KEYS, RELEASED_UNUSED)},
        files={"": [given.path]},
        input_layers=("stem.0.weight",),
        output_layers=("head.weight", "head.bias"),
        reversed_axes=True,
        unused=names_left_out(state, RELEASED_UNUSED),
        notes=(
            "the authors normalise all voxels of the box around the brain, so that its background is below zero; here "
            "it is zero. Their labels follow from --rules lachinov2019",
        ),
    )


SOURCE = WeightsSource(
    title="Lachinov et al. 2019: the student, brain-tumor-segmentation-0002",
    published="https://github.com/lachinov/brats2019 (a link to Google Drive)",
    licence="MIT, of the repository",
    trained_on="BraTS 2019 (309 of 335 training cases by hand; validation cases, test cases of 2018 and the "
    "Decathlon's Task01 by an ensemble or as labelled)",
    open=open_model,
    stored_classes=("model.", "train."),
)
