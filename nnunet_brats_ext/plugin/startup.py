"""Runs whenever Python starts in an environment that has this package (see `nnunet_brats_ext.pth`)."""

from nnunet_brats_ext import plugin

if not plugin.opted_out():
    plugin.register()
