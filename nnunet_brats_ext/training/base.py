"""The base class of all our trainers: the plain trainer with the features that every one of them has."""

from nnunet_brats_ext.training.cascade import PreviousStage
from nnunet_brats_ext.training.cpu_precision import CPUPrecision
from nnunet_brats_ext.training.reduced_folds import ReducedFolds
from nnunet_brats_ext.training.seams import PlainTrainer
from nnunet_brats_ext.training.snapshots import Snapshots
from nnunet_brats_ext.training.trial_runs import Seeded, ShortRuns


class BraTSTrainer(CPUPrecision, Seeded, ShortRuns, Snapshots, ReducedFolds, PreviousStage, PlainTrainer):
    """nnU-Net's trainer with override points, short runs, snapshots, reduced folds and cascades of two trainers.

    The override points are those of `PlainTrainer`. Every feature is a mixin in a module of its own, which extends the
    methods that it concerns and calls `super()`; no feature calls another one. Python asks the classes in this order:
    the trainer, further mixins that it lists first (`class Mine(StochasticWeightAveraging, BraTSVAETrainer)`), the
    trainers it derives from, the features above from left to right, `PlainTrainer`, and nnU-Net. What a mixin does
    before it calls `super()` comes first, and the rest comes last: `PreviousStage` looks for maps before `PlainTrainer`
    sets hyperparameters, and `ShortRuns` shortens the run afterwards.
    """
