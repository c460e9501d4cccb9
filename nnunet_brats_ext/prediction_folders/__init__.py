"""Folders of predictions as nnU-Net writes them: CASE.nii.gz, and CASE.npz with CASE.pkl beside it on request.

What `ensemble`, `postprocess`, `tune`, `rank` and `uncertainty` share: files (`images`), what the channels of
probabilities mean (`heads`), the folders themselves, checked before any work begins (`members`), and how a command
runs over their cases (`runs`).
"""
