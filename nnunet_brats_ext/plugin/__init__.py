"""How nnU-Net finds our trainers: a shim folder it searches, and a start-up hook that says where.

nnU-Net imports every module of the folders named in `nnUNet_extTrainer` and forgets them again, so that folder must not
be the package itself: it is `shim/`, whose one module hands out the classes of the installed package.

This module runs at every start of Python, so it uses `os.path`: importing pathlib would cost more than all the rest.
"""

import os

SHIM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "shim")  # noqa: PTH100, PTH118, PTH120
VARIABLE = "nnUNet_extTrainer"  # nnU-Net's; folders separated as in PATH
OPT_OUT = "nnUNet_brats_autoload"  # ours; 0 keeps the start-up hook from touching anything


def searched_folders() -> list[str]:
    """The folders that nnU-Net searches for trainers beside its own."""
    return [folder for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder]


def register() -> None:
    """Append the shim to the folders that nnU-Net searches, after whatever the user has put there."""
    folders = searched_folders()
    if SHIM not in folders:
        os.environ[VARIABLE] = os.pathsep.join([*folders, SHIM])


def opted_out() -> bool:
    return os.environ.get(OPT_OUT, "1").lower() in ("0", "f", "false")
