"""How label maps are numbered when they leave: as viewers, releases and challenges expect. Loads no torch."""

from nnunet_brats_ext.brats import LABEL_SCHEMES
from nnunet_brats_ext.bundles.challenges import CHALLENGES
from nnunet_brats_ext.bundles.contents import BundledSystem
from nnunet_brats_ext.bundles.options import BRATS, BRATS_BEFORE_2023, TRAINED
from nnunet_brats_ext.storage.errors import UserError


def numbers_written(system: BundledSystem, labels: str = BRATS, challenge: str | None = None) -> dict[int, int]:
    """Label as trained -> label as written."""
    trained = {int(label): int(label) for label in system.about["labels"]} | {0: 0}
    name = system.about["scheme"]
    if challenge and (scheme := CHALLENGES[challenge].scheme):
        wanted = LABEL_SCHEMES[scheme]
        own = {name for label, name in system.about["labels"].items()}
        if lacking := own - set(wanted.names.values()):
            raise UserError(
                f"--challenge {challenge} has no label {', '.join(sorted(lacking))}, which this system predicts; its "
                f"labels are {wanted.numbers}"
            )
        values = {wanted.names[label]: released for released, label in wanted.released.items() if label}
        return {0: 0} | {int(label): values[name] for label, name in system.about["labels"].items()}
    if labels == TRAINED or name is None:
        return trained
    if labels == BRATS_BEFORE_2023:
        if name != "glioma_2023":
            raise UserError(f"--labels {labels}: this system has other labels than glioma had then; choose another")
        name = "glioma_2017"
    return dict(LABEL_SCHEMES[name].trained)
