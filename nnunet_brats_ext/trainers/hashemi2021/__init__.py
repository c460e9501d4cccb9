"""Hashemi et al. 2021: memory-efficient 2-D U-Nets, https://github.com/Nima-Hs/BraTS."""
