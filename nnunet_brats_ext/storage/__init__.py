"""Files and processes: JSON, images, safe output and resume, a process pool, nnU-Net's folders, data set descriptions.

Everything else builds on this package; it imports nothing of ours but `brats`, and never torch.
"""
