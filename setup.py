"""Everything is declared in pyproject.toml, but for the start-up hook, which has to lie beside the package."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

HOOK = Path("nnunet_brats_ext", "plugin", "nnunet_brats_ext.pth")


class BuildWithHook(build_py):
    """Copies the hook to the top of the wheel, and so of site-packages; uninstalling removes it again."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copyfile(HOOK, Path(self.build_lib, HOOK.name))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), str(Path(self.build_lib, HOOK.name))]


class EditableWithHook(editable_wheel):
    """The same for `pip install --editable`, whose wheel holds links only: it is opened and packed once more."""

    def run(self) -> None:
        super().run()
        (wheel,) = Path(self.dist_dir).glob("*.whl")
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, "-m", "wheel", "unpack", "--dest", folder, wheel], check=True)
            (content,) = Path(folder).iterdir()
            shutil.copy(HOOK, content)
            wheel.unlink()
            subprocess.run([sys.executable, "-m", "wheel", "pack", "--dest-dir", wheel.parent, content], check=True)


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildWithHook, "editable_wheel": EditableWithHook})
