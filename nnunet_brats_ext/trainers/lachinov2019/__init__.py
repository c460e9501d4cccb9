"""Lachinov et al. 2019: three teachers and the student of their ensemble, https://arxiv.org/abs/2002.03688."""
