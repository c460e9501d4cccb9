"""Henry et al. 2020: deeply supervised U-Nets whose weights are averaged, https://arxiv.org/abs/2011.01045."""
