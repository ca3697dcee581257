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


def find_nvcc() -> str | None:
    """The CUDA compiler on PATH, in CUDA_HOME, or where NVIDIA installs it."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(home) / "bin"))


def decide_cuda() -> str | None:
    """The CUDA compiler to build with, None for a build without CUDA; prints what MLI_FAST_CUDA leads to.

    Raises:
        ValueError: It is none of auto, 0, 1.
        OSError: It is 1, and there is no nvcc.
    """
    asked = os.environ.get("MLI_FAST_CUDA", "auto")
    if asked not in ("auto", "0", "1"):
        raise ValueError(f"MLI_FAST_CUDA is {asked!r}; it takes auto, 0 or 1")
    nvcc = find_nvcc()
    if asked == "1" and nvcc is None:
        raise OSError("MLI_FAST_CUDA=1, but nvcc is neither on PATH nor in CUDA_HOME/bin nor in /usr/local/cuda/bin")
    why = "asked for by MLI_FAST_CUDA" if asked != "auto" else "nvcc found" if nvcc else "no nvcc found"
    if asked == "0" or nvcc is None:
        say(f"CUDA: off ({why})")
        return None
    say(f"CUDA: on ({why}: {nvcc})")
    return nvcc


class CMakeBuild(build_ext):
    """Runs CMake and puts the module where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        """Builds ``ext``, or says in one line why the package goes without it."""
        asked = os.environ.get("MLI_FAST_NATIVE", "auto")
        if asked == "0":
            say("compiled kernels: skipped (MLI_FAST_NATIVE=0)")
            return
        nvcc = decide_cuda()
        try:
            try:
                self.run_cmake(ext, nvcc)
            except (OSError, subprocess.CalledProcessError) as error:
                if nvcc is None or os.environ.get("MLI_FAST_CUDA", "auto") == "1":
                    raise
                say(f"CUDA KERNELS NOT BUILT, going on without them. Reason: {error}")
                self.run_cmake(ext, None)
        except (OSError, subprocess.CalledProcessError, ImportError) as error:
            if "1" in (asked, os.environ.get("MLI_FAST_CUDA")):
                raise
            say(f"COMPILED KERNELS NOT BUILT, the package works without them but slower. Reason: {error}")

    def run_cmake(self, ext: Extension, nvcc: str | None) -> None:
        """Configures, builds (with CUDA if there is an `nvcc`) and copies; raises what went wrong."""
        import pybind11

        cmake = shutil.which("cmake")
        if cmake is None:
            raise OSError("cmake was not found on PATH")
        build = Path(self.build_temp).resolve() / ("cuda" if nvcc else "native")
        build.mkdir(parents=True, exist_ok=True)
        self.forget_stale_cache(build)
        ninja = shutil.which("ninja")
        configure = [cmake, "-S", str(ROOT), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release"]
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
        configure += [f"-DMLI_CUDA={'ON' if nvcc else 'OFF'}", *([f"-DCMAKE_CUDA_COMPILER={nvcc}"] if nvcc else [])]
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(build), "--parallel", str(os.cpu_count() or 1)], check=True)
        built = next(build.glob("_native*.so"))
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        # Replace, not overwrite: a running process may have the old file mapped.
        target.unlink(missing_ok=True)
        shutil.copy2(built, target)
        say(f"compiled kernels: {target.name}, {'with' if nvcc else 'without'} CUDA")

    @staticmethod
    def forget_stale_cache(build: Path) -> None:
        """Build isolation gives every install other tool paths; CMake would go on with the first ones."""
        cache = build / "CMakeCache.txt"
        if cache.exists() and f"Python_EXECUTABLE:UNINITIALIZED={sys.executable}\n" not in cache.read_text():
            shutil.rmtree(build)
            build.mkdir(parents=True)


setup(ext_modules=[Extension("mli_fast._native", sources=[], optional=True)], cmdclass={"build_ext": CMakeBuild})
