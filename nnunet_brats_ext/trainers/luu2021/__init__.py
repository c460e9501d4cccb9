"""Luu & Park 2021: a larger nnU-Net with group norm and axial attention, the winner of 2021.

https://arxiv.org/abs/2112.04653
"""
