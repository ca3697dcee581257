"""Builds the compiled kernels (CMake + Ninja) into ``mli_fast/_native``; everything else is in pyproject.toml.

Environment:
    MLI_FAST_NATIVE: ``1`` makes a failing build an error, ``0`` skips it; otherwise the install goes on without it.
    MLI_FAST_CUDA: ``auto`` (default), ``0`` or ``1``; the decision is printed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def say(text: str) -> None:
    """Prints a line that also shows where the build back end swallows standard output until a failure."""
    print(f"mli_fast: {text}", file=sys.stderr, flush=True)


def decide_cuda() -> None:
    """Prints what MLI_FAST_CUDA leads to.

    Raises:
        RuntimeError: It is 1, and this version has no CUDA sources, or it is none of auto, 0, 1.
    """
    asked = os.environ.get("MLI_FAST_CUDA", "auto")
    if asked == "1":
        raise RuntimeError("MLI_FAST_CUDA=1, but there are no CUDA sources in this version: leave it at auto or 0")
    if asked not in ("auto", "0"):
        raise RuntimeError(f"MLI_FAST_CUDA is {asked!r}; it takes auto, 0 or 1")
    nvcc = shutil.which("nvcc") or "not found"
    say(f"CUDA: off ({'asked for' if asked == '0' else f'no CUDA sources in this version; nvcc: {nvcc}'})")


class CMakeBuild(build_ext):
    """Runs CMake and puts the module where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        """Builds ``ext``, or says in one line why the package goes without it."""
        asked = os.environ.get("MLI_FAST_NATIVE", "auto")
        if asked == "0":
            say("compiled kernels: skipped (MLI_FAST_NATIVE=0)")
            return
        decide_cuda()
        try:
            self.run_cmake(ext)
        except (OSError, subprocess.CalledProcessError, ImportError) as error:
            if asked == "1":
                raise
            say(f"COMPILED KERNELS NOT BUILT, the package works without them but slower. Reason: {error}")

    def run_cmake(self, ext: Extension) -> None:
        """Configures, builds and copies; raises what went wrong."""
        import pybind11

        cmake = shutil.which("cmake")
        if cmake is None:
            raise OSError("cmake was not found on PATH")
        build = Path(self.build_temp).resolve() / "native"
        build.mkdir(parents=True, exist_ok=True)
        self.forget_stale_cache(build)
        ninja = shutil.which("ninja")
        configure = [cmake, "-S", str(ROOT), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release"]
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(build), "--parallel", str(os.cpu_count() or 1)], check=True)
        built = next(build.glob("_native*.so"))
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        # Replace, not overwrite: a running process may have the old file mapped.
        target.unlink(missing_ok=True)
        shutil.copy2(built, target)
        say(f"compiled kernels: {target.name}")

    @staticmethod
    def forget_stale_cache(build: Path) -> None:
        """Build isolation gives every install other tool paths; CMake would go on with the first ones."""
        cache = build / "CMakeCache.txt"
        if cache.exists() and f"Python_EXECUTABLE:UNINITIALIZED={sys.executable}\n" not in cache.read_text():
            shutil.rmtree(build)
            build.mkdir(parents=True)


setup(ext_modules=[Extension("mli_fast._native", sources=[], optional=True)], cmdclass={"build_ext": CMakeBuild})
