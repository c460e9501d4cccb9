"""The tasks of Zhou et al. 2020 (https://arxiv.org/abs/1906.01796) as data: their classes and regions.

Task 0 finds the whole tumour coarsely, task 1 refines it and divides it into labels, task 2 separates ET from all else.
The classes of the first two are the labels as trained and, as a fifth, everything outside the brain.
"""

from nnunet_brats_ext.brats import ED, ET, NCR

OUTSIDE = 4  # of the brain, or of the image; the background inside the brain is 0
TUMOUR, CORE = (ED, NCR, ET), (NCR, ET)
CLASSES = (5, 5, 2)  # that each task scores
REGIONS = 3  # WT, TC, ET, which the tasks are fused to
