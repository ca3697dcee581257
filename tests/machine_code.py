"""What Hopper's machine code says of its asynchronous products."""

from __future__ import annotations

import re

# a product whose left operand comes from registers: that operand is the second one written
FROM_REGISTERS = re.compile(r"HGMMA\S* R\d+, R(\d+), gdesc")


def written(instruction: str) -> set[int]:
    """Registers that an instruction of the machine code may write, taken widely."""
    parts = re.match(r"(?:@!?U?P\w+ )?([A-Z0-9_.]+) +(?:P\w+, )?R(\d+)", instruction)
    if parts is None or re.match(r"ST|HGMMA|ATOM|RED|LDGSTS", parts[1]):
        return set()
    width = 4 if re.search(r"128|LDSM", parts[1]) else 2 if re.search(r"64|WIDE|DADD|DFMA|DMUL|F64", parts[1]) else 1
    return set(range(int(parts[2]), int(parts[2]) + width))


def overwritten(sass: str, may_branch: bool = False) -> list[str]:
    """Instructions that write registers which a product in flight may still read as its left operand.

    The processor does not hold them back: every such product has to be waited for before. Read from top to bottom, so
    a branch while a product is in flight counts too, unless it is known to lead to where the code goes on.
    """
    groups: list[set[int]] = []  # operands of the products in flight, group by group
    open_group: set[int] = set()
    found = []
    for instruction in re.findall(r"/\*[0-9a-f]{4,}\*/ +(.*?) *;", sass):
        operand = FROM_REGISTERS.search(instruction)
        wait = re.search(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x(\w+)", instruction)
        if operand:
            open_group |= set(range(int(operand[1]), int(operand[1]) + 4))
            if "gsb0" in instruction:
                groups, open_group = [*groups, open_group], set()
        elif wait:
            pending = int(wait[1], 16)
            groups = groups[-pending:] if pending else []
        else:
            busy = open_group.union(*groups)
            if busy and (busy & written(instruction) or ("BRA" in instruction and not may_branch)):
                found.append(instruction)
    return found
