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

from tests.triton.compiled import machine_code
from tests.triton.specimens_linear import Specimen

MODULES = ("specimens_linear", "specimens_conv", "specimens_cross_entropy")
# a product whose left operand comes from registers: that operand is the second one written
FROM_REGISTERS = re.compile(r"HGMMA\S* R\d+, R(\d+), gdesc")
WIDE_ACCESS = re.compile(r"\b(LDG|STG)\.E\.128\b")


@functools.cache
def specimens() -> dict[str, Specimen]:
    """Those of every op that has some, by name."""
    found = [importlib.import_module(f"tests.triton.{m}") for m in MODULES if find_spec(f"tests.triton.{m}")]
    every = [Specimen(**s) if isinstance(s, dict) else s for module in found for s in module.SPECIMENS]
    return {specimen.name: specimen for specimen in every}


def written(instruction: str) -> set[int]:
    """Registers that an instruction of the machine code may write, taken widely."""
    parts = re.match(r"(?:@!?U?P\w+ )?([A-Z0-9_.]+) +(?:P\w+, )?R(\d+)", instruction)
    if parts is None or re.match(r"ST|HGMMA|ATOM|RED|LDGSTS", parts[1]):
        return set()
    width = 4 if re.search(r"128|LDSM", parts[1]) else 2 if re.search(r"64|WIDE|DADD|DFMA|DMUL|F64", parts[1]) else 1
    return set(range(int(parts[2]), int(parts[2]) + width))


def overwritten(sass: str) -> list[str]:
    """Instructions that write registers which a product in flight may still read as its left operand.

    The processor does not hold them back: every such product has to be waited for before.
    """
    busy: set[int] = set()
    found = []
    for instruction in re.findall(r"/\*[0-9a-f]{4,}\*/ +(.*?) *;", sass):
        operand = FROM_REGISTERS.search(instruction)
        if operand:
            busy |= set(range(int(operand[1]), int(operand[1]) + 4))
        elif re.search(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x0", instruction):
            busy.clear()
        elif busy and (busy & written(instruction) or "BRA" in instruction):
            found.append(instruction)
    return found


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
