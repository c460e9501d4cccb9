"""Published BraTS systems as nnU-Net v2 trainers, and what nnU-Net lacks around them for BraTS."""

__version__ = "0.1.0"
