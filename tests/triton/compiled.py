"""Triton kernels compiled for GPUs that need not be there, and what their machine code says.

Used by scripts that tests run in a process of their own, since one with TRITON_INTERPRET=1 cannot compile.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class MachineCode(NamedTuple):
    """One kernel's."""

    registers: int
    spilled: int  # bytes of stack and local memory
    sass: str


def machine_code(
    kernel: Any,
    arguments: Mapping[str, str],  # name -> "*bf16", "i32", "fp32", ... of what is not constexpr
    constants: Mapping[str, Any],
    arch: int,
    aligned: Sequence[str] = (),
    **options: Any,
) -> MachineCode:
    """Compile `kernel` for sm_<arch>; `aligned` are the arguments divisible by 16; options: num_warps, num_stages."""
    names = list(kernel.arg_names)
    signature = {name: arguments.get(name, "constexpr") for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(kernel, signature=signature, constexprs=dict(constants), attrs=attributes)
    built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage, sass = (
            subprocess.run([TOOL, flag, file.name], capture_output=True, text=True, check=True).stdout
            for flag in ("--dump-resource-usage", "--dump-sass")
        )
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return MachineCode(found["REG"], found["STACK"] + found["LOCAL"], sass)
