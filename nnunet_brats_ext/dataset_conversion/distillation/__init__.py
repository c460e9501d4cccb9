"""Distillation as Lachinov et al. 2019 do it (https://arxiv.org/abs/2002.03688): train one network on many labels.

Manual labels, labels of other data sets and predictions of an ensemble on unlabelled cases become one nnU-Net data set.
What goes in (`sources`), which of it are the same images (`fingerprints`), what stays (`selection`), which folds it
trains (`folds`), the targets (`targets`), and the command (`distill`).
"""
