"""All that nnU-Net searches of nnunet_brats_ext: the trainers, under the one identity they have in the package."""

from typing import Any

try:
    from nnunet_brats_ext import trainers
except ModuleNotFoundError as error:
    # The search path is inherited by Pythons of other environments; there, this folder has nothing to offer.
    if error.name != "nnunet_brats_ext":
        raise
else:

    def __getattr__(name: str) -> Any:
        return getattr(trainers, name)
