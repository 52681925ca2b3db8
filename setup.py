"""Builds the native kernel if there is a compiler; pyproject.toml holds everything else."""

import importlib.util
import os
import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

NATIVE = "qkvbench.native"
BUILD = Path(__file__).parent / "src" / "qkvbench" / "native" / "build.py"

# Loaded by path: the package cannot be imported before its dependencies are installed.
spec = importlib.util.spec_from_file_location("native_build", BUILD)
assert spec
assert spec.loader
native_build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native_build)


class BuildKernel(build_ext):
    """Puts the library into the wheel, or into the source tree of an editable installation."""

    def get_ext_filename(self, fullname: str) -> str:
        """The library's own name: it does not use the interface of one Python version."""
        return str(Path(*fullname.split(".")[:-1]) / native_build.LIBRARY)

    def build_extension(self, ext: Extension) -> None:
        """Compile; if that fails, go on: torch then decodes.

        An editable installation stays on this machine, so it needs no other machine's kernels. None
        is compiled if the kernel is switched off: `qkv` compiles it beside pip.
        """
        if os.environ.get("QKVBENCH_NATIVE") == "none":
            return
        x86 = native_build.x86_here() if self.editable_mode else None
        try:
            built = native_build.build(x86=x86)
        except native_build.BuildError as error:
            print(f"qkvbench: the native kernel is not built: {error}. torch decodes instead.")
            return
        into = Path(self.get_ext_fullpath(ext.name))
        if into.resolve() != built.resolve():
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(built, into)

    def copy_extensions_to_source(self) -> None:
        """No-op: the library is built in the source tree."""


setup(
    ext_modules=[Extension(f"{NATIVE}._kernels", sources=[], optional=True)],
    cmdclass={"build_ext": BuildKernel},
)
