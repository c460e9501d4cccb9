"""Synthetic gliomas in BraTS form, for demos, tests and teaching: no patient, no download, no licence to sign.

anatomy.py makes a brain, tumours.py grows a tumour in it, signals.py simulates the images of both, case.py makes one
patient of the three, and folder.py writes patients in the form of a release.
"""

from nnunet_brats_ext.dataset_conversion.phantoms.case import Phantom, make_case
from nnunet_brats_ext.dataset_conversion.phantoms.folder import write_phantoms

__all__ = ["Phantom", "make_case", "write_phantoms"]
