"""Ensembling beyond nnU-Net's equal mean: weights, mixed heads, votes, and the merges that papers describe."""
