"""nnU-Net itself on our base trainer: what every paper is compared with."""
