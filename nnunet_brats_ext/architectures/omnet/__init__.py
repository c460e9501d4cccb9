"""OM-Net, one network for three nested tasks, and what it is compared with: https://arxiv.org/abs/1906.01796.

Facts from the paper (Zhou et al. 2020) and from the layer tables that the authors published; written from scratch.
"""
