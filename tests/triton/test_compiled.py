"""The machine code of every Triton kernel, compiled for GPUs that need not be there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.machine_code import overwritten

pytest.importorskip("triton")
pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]

IN_FLIGHT = """
    /*0100*/   HGMMA.64x256x16.F32.BF16 R24, R152, gdesc[UR8], R24, gsb0 ;  /* 0x0 */
    /*0110*/   WARPGROUP.DEPBAR.LE gsb0, 0x3 ;  /* 0x0 */
    /*0120*/   {0} ;  /* 0x0 */
    /*0130*/   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;  /* 0x0 */
    /*0140*/   FADD R152, R1, R2 ;  /* 0x0 */
"""


@pytest.fixture(scope="module")
def kernels() -> Mapping[str, Mapping[str, Any]]:
    """What `compile_all` says of each, from a process that compiles instead of interpreting."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.triton.compile_all"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def names(kernels: Mapping[str, Mapping[str, Any]], key: str, value: Any) -> list[str]:
    return [name for name, kernel in kernels.items() if kernel[key] == value]


def test_every_kernel_compiles_and_none_spills(kernels: Mapping[str, Mapping[str, Any]]) -> None:
    assert {name: k["error"] for name, k in kernels.items() if k["error"]} == {}
    assert {name: k["spilled"] for name, k in kernels.items() if k["spilled"]} == {}


def test_hopper_multiplies_from_registers(kernels: Mapping[str, Mapping[str, Any]]) -> None:
    """Blended weights go from registers into the matrix unit, never through shared memory."""
    wanted = names(kernels, "register_operand", True)
    assert wanted
    for name in wanted:
        assert kernels[name]["products"] > 0, name
        assert kernels[name]["from_registers"] == kernels[name]["products"], name


def test_no_register_is_written_while_a_product_reads_it(kernels: Mapping[str, Mapping[str, Any]]) -> None:
    assert {name: k["overwritten"] for name, k in kernels.items() if k["overwritten"]} == {}


def test_tiles_are_copied_asynchronously_and_results_stored_wide(kernels: Mapping[str, Mapping[str, Any]]) -> None:
    for name, kernel in kernels.items():
        if name.startswith(("linear-", "linear_of_products-")):
            assert kernel["copies"] > 0, name
        if name.startswith(("linear-", "linear_of_products-", "blend", "combine")):
            assert kernel["wide"] > 0, name


@pytest.mark.parametrize(
    ("instruction", "hazard"),
    [
        ("F2FP.BF16.F32.PACK_AB R155, R4, R13", True),
        ("LDSM.16.M88.4 R149, [R216+UR11+0x18000]", True),
        ("IMAD.WIDE R154, R3, 0x2, R186", True),
        ("@!P4 BRA 0x1430", True),
        ("FADD R156, R1, R2", False),
        ("STS.128 [R152], R188", False),
        ("ISETP.GE.AND P0, PT, R153, R3, PT", False),
    ],
)
def test_the_check_sees_what_writes_registers(instruction: str, hazard: bool) -> None:
    assert overwritten(IN_FLIGHT.format(instruction)) == ([instruction] if hazard else [])
