"""Lyu & Shu 2020: a two-stage cascade with VAE regularisation and attention gates, https://arxiv.org/abs/2011.02881."""
