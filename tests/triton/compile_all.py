"""Compile every kernel for GPUs that need not be there and print, as JSON, what their machine code says.

Run as `python -m tests.triton.compile_all [part of a name]`, without TRITON_INTERPRET=1.
"""

from __future__ import annotations

import functools
import importlib
import json
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from typing import Any

from tests.machine_code import FROM_REGISTERS, overwritten
from tests.triton.compiled import machine_code
from tests.triton.specimens_linear import Specimen

MODULES = ("specimens_linear", "specimens_conv", "specimens_cross_entropy")
WIDE_ACCESS = re.compile(r"\b(LDG|STG)\.E\.128\b")


@functools.cache
def specimens() -> dict[str, Specimen]:
    """Those of every op that has some, by name."""
    found = [importlib.import_module(f"tests.triton.{m}") for m in MODULES if find_spec(f"tests.triton.{m}")]
    every = [Specimen(**s) if isinstance(s, dict) else s for module in found for s in module.SPECIMENS]
    return {specimen.name: specimen for specimen in every}


def report(name: str) -> dict[str, Any]:
    """What is asserted on, of one kernel."""
    specimen = specimens()[name]
    try:
        code = machine_code(
            specimen.kernel,
            specimen.arguments,
            specimen.constants,
            specimen.arch,
            aligned=specimen.aligned,
            **specimen.options,
        )
    except Exception as error:  # noqa: BLE001 - the others are still worth a look
        return {"error": f"{type(error).__name__}: {error}"}
    products = re.findall(r"HGMMA.*gdesc.*", code.sass)
    return {
        "error": None,
        "registers": code.registers,
        "spilled": code.spilled,
        "products": len(products),
        "from_registers": len(FROM_REGISTERS.findall(code.sass)),
        "register_operand": specimen.register_operand,
        "overwritten": overwritten(code.sass),
        "copies": code.sass.count("LDGSTS"),
        "wide": len(WIDE_ACCESS.findall(code.sass)),
    }


if __name__ == "__main__":
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    names = [name for name in specimens() if wanted in name]
    with ProcessPoolExecutor(2) as pool:
        print(json.dumps(dict(zip(names, pool.map(report, names), strict=True)), indent=1))
