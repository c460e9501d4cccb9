"""Trained weights of other systems as models of nnU-Net v2, and our networks for other systems."""
