"""Adds the start-up line (`.pth`) to the wheel: pyproject.toml has no key for it."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PTH = "ktt-bentoml-compat.pth"


class BuildWithPth(build_py):
    """Copies the `.pth` file to the top of the wheel, which becomes site-packages."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_file(PTH, str(Path(self.build_lib) / PTH))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), str(Path(self.build_lib) / PTH)]


setup(cmdclass={"build_py": BuildWithPth})
