"""What the built module holds for GPUs: the architectures, the instructions that matter, and no spilled registers."""

from __future__ import annotations

import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from mli_fast import native
from mli_fast.native import cuda
from tests.machine_code import overwritten

BUILT = bool(cuda.architectures())
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BUILT, reason=f"no CUDA kernels built: {cuda.why_missing()}"),
]
KERNEL = re.compile(r"linear_kernelILNS0_4KindE(\d)ELi(\d)ELi(\d+)ELi(\d+)E")


def dump(*flags: str) -> str:
    spec = find_spec("triton")
    if spec is None or spec.origin is None:
        pytest.skip("cuobjdump comes with triton, which is not installed")
    tool = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    module = native.module()
    assert module is not None
    assert module.__file__ is not None
    return subprocess.run([tool, *flags, module.__file__], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def usage() -> dict[str, list[dict[str, int]]]:
    """Kernel -> resources, an entry for each architecture."""
    found: dict[str, list[dict[str, int]]] = {}
    for name, line in re.findall(r"Function (\w+):\s*\n\s*(.*)", dump("--dump-resource-usage")):
        found.setdefault(name, []).append({key: int(n) for key, n in re.findall(r"\b([A-Z]+):(\d+)", line)})
    return found


@pytest.fixture(scope="module")
def sass() -> dict[str, str]:
    """Kernel -> machine code for sm_90a."""
    parts = re.split(r"\n\s*Function : (\w+)\n", dump("--dump-sass", "--gpu-architecture", "sm_90a"))
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_architectures() -> None:
    listed = dump("--list-elf", "--list-ptx")
    assert cuda.architectures() == ("sm_80", "sm_90a", "compute_80")
    assert re.search(r"sm_80\.cubin", listed)
    assert re.search(r"sm_90a?\.cubin", listed)  # some versions of the tool leave the a out; HGMMA below needs it
    assert re.search(r"sm_80\.ptx", listed)


def test_nothing_is_spilled(usage: dict[str, list[dict[str, int]]]) -> None:
    assert usage
    spilled = {name: u for name, us in usage.items() for u in us if u["STACK"] or u["LOCAL"]}
    assert not spilled


def test_every_kind_and_tile_is_there(usage: dict[str, list[dict[str, int]]]) -> None:
    found = {tuple(map(int, m.groups())) for m in map(KERNEL.search, usage) if m}
    tiles = ((256, 1), (128, 2), (64, 4), (16, 16)), ((128, 1), (64, 2), (16, 8))
    assert found == {(kind, r, *tile) for kind in range(4) for r in (1, 2, 3, 4) for tile in tiles[kind == 3]}


def test_blended_weights_are_the_register_operand(sass: dict[str, str]) -> None:
    kernels = {name: code for name, code in sass.items() if KERNEL.search(name)}
    assert kernels
    for name, code in kernels.items():
        products = re.findall(r"HGMMA\S* .*", code)
        columns = KERNEL.search(name).group(3)  # type: ignore[union-attr]
        assert products, name
        assert all(re.match(rf"HGMMA\.64x{columns}x\d+\S* R\d+, R\d+, gdesc\[", p) for p in products), name
        assert "UTMALDG.2D" in code, name
        assert "UTMALDG.3D" in code, name
        assert "UTMALDG.2D.MULTICAST" in code, name
        assert re.search(r"LDSM\.16\.M88\.4", code), name
        assert "USETMAXREG" in code, name


def test_products_overlap_with_the_blend(sass: dict[str, str]) -> None:
    for name, code in sass.items():
        if KERNEL.search(name):
            waits = re.findall(r"WARPGROUP\.DEPBAR\.LE gsb0, (0x\w)", code)
            assert set(waits) - {"0x0"}, name  # else each product is waited for before the next blend


def test_no_product_in_flight_loses_its_operand(sass: dict[str, str]) -> None:
    for name, code in sass.items():
        if KERNEL.search(name):
            assert overwritten(code, may_branch=True) == [], name  # branches: to wait for a stage, or past the last one


def test_blend_moves_16_bytes(sass: dict[str, str]) -> None:
    kernels = {name: code for name, code in sass.items() if "blend_kernel" in name}
    assert len(kernels) == 7 * 5
    for name, code in kernels.items():
        assert re.search(r"LDG\.E\.128", code), name
        assert re.search(r"STG\.E\.128", code), name
        assert re.search(r"STG\.E\.EF\.128", code), name  # past the caches
