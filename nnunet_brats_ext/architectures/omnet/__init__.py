"""OM-Net, one network for three nested tasks, and the model cascade it is compared with.

Facts from the paper (Zhou et al. 2020, https://arxiv.org/abs/1906.01796) and from the layer tables that the authors
published; written from scratch.
"""
