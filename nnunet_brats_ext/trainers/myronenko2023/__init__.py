"""Myronenko et al. 2023: Auto3DSeg's SegResNet, the winner of three tasks of 2023. https://arxiv.org/abs/2510.25058"""
