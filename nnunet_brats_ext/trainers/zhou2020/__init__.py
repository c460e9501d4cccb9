"""Zhou et al. 2020: OM-Net with cross-task guided attention, and its ablations, https://arxiv.org/abs/1906.01796."""
