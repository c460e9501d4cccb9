"""nnU-Net runs on Windows as on Linux and macOS: importing the package needs nothing that Windows lacks."""

import subprocess
import sys

from test_layers import MODULES, dotted


def test_every_module_is_imported_without_fcntl():
    """One interpreter imports the trainers and everything else; Windows has no fcntl."""
    names = [dotted(module) for module in MODULES if module.stem != "__main__"]
    code = (
        "import importlib, sys\n"
        "sys.modules['fcntl'] = None  # makes every import of it fail\n"
        "failed = []\n"
        f"for name in {names!r}:\n"
        "    try: importlib.import_module(name)\n"
        "    except ImportError as error: failed.append(f'{name}: {error}')\n"
        "sys.exit('\\n'.join(failed) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
