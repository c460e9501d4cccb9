"""Isensee et al. 2020: nnU-Net for BraTS 2020, the winner. https://arxiv.org/abs/2011.00848"""
