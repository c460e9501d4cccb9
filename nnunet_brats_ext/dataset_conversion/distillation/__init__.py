"""Distillation as Lachinov et al. 2019 do it (https://arxiv.org/abs/2002.03688): train one network on many labels.

Manual labels, labels of other data sets and predictions of an ensemble on unlabelled cases become one nnU-Net data set.
`sources` finds the cases, `examination` reads them, `fingerprints` finds duplicate images, `selection` decides which
cases stay, `folds` which folds they train, `targets` makes soft targets, `provenance` the manifest, and `distill` is
the command.
"""
