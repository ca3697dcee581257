"""Block sizes of the Triton kernels: sensible ones per architecture, or those that were measured on this GPU.

A configuration is what a launch passes on: compile-time block sizes by name, `num_warps` and `num_stages`. It may
depend on the kernel, the precision, the shape class and the GPU, never on the number of points.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import triton
from torch import Tensor

Configuration = Mapping[str, int]

HALVES = ("bfloat16", "float16")
_WAVES = 8  # programs per multiprocessor from which on splitting a loop over points gains nothing


def rows_class(rows: int) -> str:
    """The shape class of a blended product by its rows per point: few16, few32, few64, some128, some or many."""
    for most, name in ((16, "few16"), (32, "few32"), (64, "few64"), (128, "some128"), (512, "some")):
        if rows <= most:
            return name
    return "many"


_ROWS = {"few16": 16, "few32": 32, "few64": 64, "some128": 128, "some": 256, "many": 256}


def _tile(n: int, m: int, k: int, points: int, warps: int, stages: int) -> Configuration:
    blocks = {"BLOCK_N": n, "BLOCK_M": m, "BLOCK_K": k, "POINTS": points, "GROUP": 8}
    return {**blocks, "num_warps": warps, "num_stages": stages}


def _linear(precision: str, shape_class: str, hopper: bool) -> Configuration:
    rows = _ROWS[shape_class]
    depth = 64 if hopper and precision in HALVES else 32
    if precision == "float32":
        return _tile(128 if hopper else 64, min(rows, 128 if hopper else 64), depth, 2 if rows <= 32 else 1, 8, 3)
    most = 32 if hopper or precision in HALVES else 16  # rows of which four points fit the registers
    points = 4 if rows <= most else 2 if rows <= 64 else 1
    return _tile(128, min(rows, 256 if hopper else 128), depth, points, 8, 3)


def _linear_of_products(precision: str, shape_class: str, hopper: bool) -> Configuration:
    rows = _ROWS[shape_class]
    depth = 64 if hopper and precision in HALVES else 32
    wide = hopper and precision != "float32"
    return _tile(128 if hopper else 64, min(rows, 128 if wide else 64), depth, 2 if rows <= 32 else 1, 8, 2)


def _elementwise(precision: str, shape_class: str, hopper: bool) -> Configuration:
    return {"BLOCK": 2048, "num_warps": 8}


_DEFAULTS: Mapping[str, Callable[[str, str, bool], Configuration]] = {
    "blend": _elementwise,
    "combine": _elementwise,
    "linear": _linear,
    "linear_of_products": _linear_of_products,
}


def _linear_candidates(precision: str, shape_class: str) -> list[Configuration]:
    rows, depth = _ROWS[shape_class], 64 if precision in HALVES else 32
    sizes = (rows,) if rows <= 64 else (64, 128) if rows == 128 else (128, 256)
    groups = (1, 2, 4) if rows <= 64 else (1, 2) if rows == 128 else (1,)
    blocks = ((128, 8), (64, 4)) if rows <= 128 else ((128, 8), (64, 4), (256, 8))
    return [
        _tile(n, m, depth, points, warps, stages)
        for n, warps in blocks
        for m in sizes
        for points in groups
        for stages in (3, 4)
        if n * m * points <= 128 * 256
    ]


def _elementwise_candidates(precision: str, shape_class: str) -> list[Configuration]:
    return [{"BLOCK": block, "num_warps": warps} for block in (1024, 2048, 4096) for warps in (4, 8)]


TUNABLE: Mapping[str, Callable[[str, str], list[Configuration]]] = {  # kernel -> candidates for (precision, class)
    "blend": _elementwise_candidates,
    "combine": _elementwise_candidates,
    "linear": _linear_candidates,
    "linear_of_products": _linear_candidates,
}

_forced: dict[str, Configuration] = {}


def default(kernel: str, precision: str, shape_class: str, arch: int) -> Configuration:
    """The configuration where nothing was measured.

    Args:
        kernel: one of `TUNABLE`.
        precision: "float32", "tf32", "bfloat16", "float16" or "float64".
        shape_class: of `rows_class`; "" for the elementwise kernels.
        arch: compute capability, 80, 90, ...
    """
    return _DEFAULTS[kernel](precision, shape_class, arch // 10 == 9)


def configuration(kernel: str, precision: str, shape_class: str, device: torch.device) -> Configuration:
    """The configuration to launch with: the forced one, else the one measured on this GPU, else the default."""
    if kernel in _forced:
        return _forced[kernel]
    return _configuration(kernel, precision, shape_class, device, _path())


@functools.cache
def _configuration(kernel: str, precision: str, shape_class: str, device: torch.device, path: Path) -> Configuration:
    standard = default(kernel, precision, shape_class, capability(device))
    found = _read(path).get(_key(kernel, precision, shape_class, device))
    if found is None:
        return standard
    if set(found) != set(standard) or not all(_sensible(name, value) for name, value in found.items()):
        warnings.warn(f"{path}: not a configuration of {kernel}: {found}; the default is used", stacklevel=2)
        return standard
    return found


def _sensible(name: str, value: object) -> bool:
    if type(value) is not int or value < 1:
        return False
    return value <= 8 if name == "num_stages" else value & (value - 1) == 0


@contextlib.contextmanager
def forced(kernel: str, chosen: Configuration) -> Iterator[None]:
    """Within, every launch of that kernel takes this configuration."""
    before = _forced.get(kernel)
    _forced[kernel] = chosen
    try:
        yield
    finally:
        del _forced[kernel]
        if before is not None:
            _forced[kernel] = before


def tune(
    kernel: str,
    precision: str,
    shape_class: str,
    call: Callable[[], Tensor],
    accepts: Callable[[Tensor], bool],
    *,
    candidates: Sequence[Configuration] | None = None,
    measure: Callable[[Callable[[], Tensor]], float] | None = None,
) -> list[tuple[Configuration, float | str]]:
    """Measure candidates on given tensors and keep the fastest on disk for this GPU and Triton version.

    Args:
        kernel: one of `TUNABLE`.
        precision: as in `default`.
        shape_class: as in `default`.
        call: runs the operation on tensors of that class; its launches take the candidate.
        accepts: whether the values are right; a candidate that fails is not measured.
        candidates: default: the kernel's own in `TUNABLE`.
        measure: milliseconds of a call; default: the median of `triton.testing.do_bench`.

    Returns:
        Every candidate with its milliseconds, or with why it has none.
    """
    if measure is None:
        measure = functools.partial(triton.testing.do_bench, warmup=10, rep=40, return_mode="median")
    device: torch.device | None = None
    outcomes: list[tuple[Configuration, float | str]] = []
    for candidate in TUNABLE[kernel](precision, shape_class) if candidates is None else candidates:
        outcome: float | str
        with forced(kernel, candidate):
            try:
                values = call()
                device = values.device
                outcome = float(measure(call)) if accepts(values) else "wrong values"
            except Exception as error:  # noqa: BLE001 - a candidate that does not compile or fit is no reason to stop
                outcome = f"{type(error).__name__}: {error}"
        outcomes.append((candidate, outcome))
    measured = [(ms, i) for i, (_, ms) in enumerate(outcomes) if isinstance(ms, float)]
    if measured and device is not None:
        _store(_key(kernel, precision, shape_class, device), outcomes[min(measured)[1]][0])
    return outcomes


def as_exact_as(own: Tensor, exact: Tensor) -> Callable[[Tensor], bool]:
    """A check for `tune`: an error at most twice that of the values at hand, and a few units in the last place.

    Args:
        own: values of the configuration in use.
        exact: the same in float64.
    """
    units = 4 * torch.finfo(own.dtype).eps * exact.abs().max()
    allowed = 2 * (own.double() - exact).abs().max() + units
    return lambda values: bool((values.double() - exact).abs().max() <= allowed)


def capability(device: torch.device) -> int:
    """Compute capability as 80, 90, ...; Hopper's where kernels are interpreted."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that one program may use."""
    if device.type != "cuda":
        return 227 << 10
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin  # type: ignore[attr-defined]


def stages(most: int, stage_bytes: int, room: int) -> int:
    """Steps whose operands are in shared memory at a time: as many as fit into `room` bytes, 1 to `most`."""
    return max(1, min(most, room // stage_bytes))


def points_per_program(programs: int, points: int, device: torch.device) -> int:
    """How many points one of `programs` programs takes in turn, so that there is work for the whole GPU.

    A program reads what the points share once, so it takes as many as that allows.
    """
    wanted = _WAVES * _multiprocessors(device)
    splits = max(1, min(points, triton.cdiv(wanted, max(programs, 1))))
    return triton.cdiv(points, splits)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _key(kernel: str, precision: str, shape_class: str, device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"
    return "|".join((name, triton.__version__, kernel, precision, shape_class))


def _path() -> Path:
    own = os.environ.get("MLI_FAST_CACHE")
    if own:
        return Path(own) / "triton.json"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mli_fast" / "triton.json"


@functools.cache
def _read(path: Path) -> dict[str, Configuration]:
    try:
        table = json.loads(path.read_text())
        if not isinstance(table, dict) or not all(isinstance(v, dict) for v in table.values()):
            raise ValueError("not a table of configurations")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        warnings.warn(f"{path} is left aside: {error}", stacklevel=2)
        return {}
    return table


def _store(key: str, chosen: Configuration) -> None:
    path = _path()
    _read.cache_clear()
    table = {**_read(path), key: dict(chosen)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False) as file:
        json.dump(table, file, indent=1, sort_keys=True)
    os.replace(file.name, path)  # a reader sees the old file or the new one
    _read.cache_clear()
    _configuration.cache_clear()
