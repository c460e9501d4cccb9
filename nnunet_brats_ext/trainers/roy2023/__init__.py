"""Roy et al. 2023, MedNeXt: U-Nets of ConvNeXt blocks in four sizes. https://arxiv.org/abs/2303.09975"""
