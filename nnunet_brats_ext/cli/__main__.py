"""`python -m nnunet_brats_ext.cli`, where the command is not on the path."""

import sys

from nnunet_brats_ext.cli import main

sys.exit(main())
