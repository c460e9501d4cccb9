"""The models of both stages of Lyu & Shu 2020, as their code saves them.

https://github.com/shu-hai/two-stage-VAE-Attention-gate-BraTS2020
"""

from nnunet_brats_ext.architectures.residual_unet import RELEASED_KEYS, RELEASED_KEYS_OF_GATES, RELEASED_UNUSED
from nnunet_brats_ext.brats import SEQUENCES
from nnunet_brats_ext.weights.key_maps import covers, names_left_out, renamed
from nnunet_brats_ext.weights.plans import configuration_of_paper
from nnunet_brats_ext.weights.sources import LABELS, REGIONS, ForeignModel, Given, WeightsSource


def open_model(given: Given) -> ForeignModel | None:
    state = given.state
    if not covers(state, RELEASED_KEYS):
        return None
    second = covers(state, RELEASED_KEYS_OF_GATES)
    key_map = {**RELEASED_KEYS, **(RELEASED_KEYS_OF_GATES if second else {})}
    configuration = "lyu_stage2" if second else "lyu_stage1"
    return ForeignModel(
        system=f"stage {2 if second else 1} of Lyu & Shu 2020",
        trainer="BraTSAttentionVAETrainer" if second else "BraTSVAETrainer",
        plans_name="Lyu2020Plans",
        configuration=configuration,
        configurations={
            "lyu_stage1": configuration_of_paper("lyu_stage1", next_stage="lyu_stage2"),
            "lyu_stage2": configuration_of_paper("lyu_stage2"),
        },
        inputs=(*LABELS, *SEQUENCES) if second else SEQUENCES,
        outputs=REGIONS,
        folds={"": lambda: renamed(state, key_map, RELEASED_UNUSED)},
        files={"": [given.path]},
        input_layers=("stem.weight",),
        output_layers=("head.weight", "head.bias"),
        unused=names_left_out(state, RELEASED_UNUSED),
        notes=(
            "the three outputs paint oedema, necrosis and enhancing tumour in this order, as the authors' label maps; "
            "trained with sums of them as regions, they are no nested probabilities",
        ),
    )


SOURCE = WeightsSource(
    title="Lyu & Shu 2020: epoch_*.pth or best_model.pth of stage 1 or 2",
    published="the code alone, https://github.com/shu-hai/two-stage-VAE-Attention-gate-BraTS2020; weights on request",
    licence="not stated",
    trained_on="80 % of the 369 training cases of BraTS 2020",
    open=open_model,
    stored_classes=("nvnet.", "attVnet_add.", "siren_pytorch."),
)
