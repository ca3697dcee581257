"""The multi-tensor blend's kernel, its table and the kernel that splits float32, without a GPU, bit for bit.

`BlendPlan` makes its table for tensors that say they are on a GPU, and the source of the kernels is compiled for the
CPU, where a grid is a loop over its threads.
"""

from __future__ import annotations

import ctypes
import importlib
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mli_fast.native.cuda import BlendPlan
from tests.cuda.emulation import EMULATED, SOURCES, build, normal, rounded

pytestmark = pytest.mark.slow
PAIRS = [
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float64, torch.float64),
    (torch.float64, torch.float32),
]
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# Dimension 0 of 27, 5 and 3 elements per index next to vectors of 2, 4 and 8; chunks of 1024 to 4096 elements.
SHAPES = [(), (1,), (0, 3), (4, 0), (7, 13), (16, 64), (64, 3, 3, 3), (48, 5), (90, 100), (67, 135), (3000, 3)]
MARGIN = 64  # bytes in front of and behind memory that a kernel is given
DEVICE = torch.device("cuda", 0)


class OnGpu(Tensor):
    """Memory of the CPU that says it is a GPU's."""

    device = property(lambda self: DEVICE)  # type: ignore[assignment]

    def to(self, *args: object, **kwargs: object) -> Tensor:
        return self


class Placed:
    """A tensor between two margins, all bytes 0xff (NaN) until values are written, `shift` elements off alignment."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, shift: int = 0) -> None:
        size, margin = torch.Size(shape).numel(), MARGIN // dtype.itemsize
        self.memory = torch.full(((2 * margin + shift + size) * dtype.itemsize,), 0xFF, dtype=torch.uint8).view(dtype)
        assert self.memory.data_ptr() % 16 == 0
        self.start, self.end = margin + shift, margin + shift + size
        self.tensor = self.memory[self.start : self.end].view(shape)
        self.on_gpu = self.tensor.as_subclass(OnGpu)

    @classmethod
    def of(cls, values: Tensor, shift: int = 0) -> Placed:
        placed = cls(tuple(values.shape), values.dtype, shift)
        placed.tensor.copy_(values)
        return placed

    def written(self) -> Tensor:
        """The tensor, every element of which has been written, and nothing beside it."""
        bits = self.memory.view(BITS[self.memory.itemsize])
        assert (bits[: self.start] == -1).all()
        assert (bits[self.end :] == -1).all()
        assert (bits[self.start : self.end] != -1).all()
        return self.tensor


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    texts = {n: (SOURCES / n).read_text() for n in ("blend.cu", "split.cu", "kernels.hpp", "numbers.cuh")}
    launch = re.compile(r"(\w+(?:<[\w, ]+>)?)<<<(.+?)>>>\((.*?)\);")
    for name in ("blend.cu", "split.cu"):
        texts[name] = launch.sub(r"loops::launch(\2, [&] { \1(\3); });", texts[name])
    store = re.compile(
        r'asm volatile\("st\.global\.v4\.u32 \[%0\], \{%1, %2, %3, %4\};" ::"l"\(__cvta_generic_to_global\(to\)\), '
        r'"r"\(bits\.x\), "r"\(bits\.y\), "r"\(bits\.z\),\s+"r"\(bits\.w\)\s+: "memory"\);'
    )
    texts["blend.cu"], found = store.subn("loops::store(reinterpret_cast<uint4*>(to), bits);", texts["blend.cu"])
    assert found == 1
    texts["split.cu"], found = re.subn("most = 1 << 20", "most = 2", texts["split.cu"])  # a small grid strides as well
    assert found == 1
    replacements = [EMULATED / "intrinsics.hpp", *EMULATED.glob("loops/*.*")]
    flags = ["-fno-strict-aliasing", "-include", "loops.hpp"]
    return build(tmp_path_factory.mktemp("loops"), texts, replacements, ["blend.cu", "split.cu", "main.cpp"], *flags)


@pytest.fixture
def native(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The module that `BlendPlan` calls; `stores` says how many were 16 bytes wide, and how many of those streamed."""
    header, single_anchors, chunk = (ctypes.c_int * 3).in_dll(library, "blend_constants")
    module = SimpleNamespace(blend_header=header, blend_single_anchors=single_anchors, blend_chunk=chunk)

    def blend(
        plan: tuple[int, int, list[int]],
        chunk_count: int,
        anchors: int,
        points: int,
        coefficients: int,
        stride: int,
        types: tuple[int, int],
        scale_wide: bool,
        streaming: bool,
        *on: int,
    ) -> None:
        tensors, chunks, single = plan
        assert len(single) <= header + single_anchors
        numbers = [chunk_count, anchors, points, stride, *types, scale_wide, streaming, len(single)]
        counts = (ctypes.c_int64 * 3)()
        error = library.emulated_blend(
            ctypes.c_void_p(tensors),
            ctypes.c_void_p(chunks),
            (ctypes.c_int64 * len(single))(*single),
            ctypes.c_void_p(coefficients),
            (ctypes.c_int64 * len(numbers))(*numbers),
            counts,
        )
        assert error == 0
        *module.stores, faults = counts
        assert faults == 0

    module.blend = blend
    target = importlib.import_module("mli_fast.native.cuda.blend")
    monkeypatch.setattr(target, "require", lambda: module)
    monkeypatch.setattr(target, "launch_on", lambda device: (0, 0))
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: Placed.of(tensor).on_gpu)
    return module


def expected(
    library: ctypes.CDLL, anchors: list[Tensor], row: Tensor, scale: Tensor | None, target: torch.dtype
) -> Tensor:
    """Fused multiply-adds in the order of the anchors, then the scale, then one rounding."""
    wide = torch.float64 if anchors[0].dtype == torch.float64 else torch.float32
    total = torch.zeros(anchors[0].shape, dtype=wide)
    add, number = (
        (library.multiply_add_f64, ctypes.c_double)
        if wide == torch.float64
        else (library.multiply_add_f32, ctypes.c_float)
    )
    for anchor, c in zip(anchors, row.to(wide).tolist(), strict=True):
        if c != 0:
            term = anchor.to(wide).contiguous()
            add(number(c), *(ctypes.c_void_p(t.data_ptr()) for t in (term, total)), ctypes.c_int64(total.numel()))
    if scale is not None:
        total = total * scale.to(wide).view(-1, *[1] * (total.dim() - 1))
    return total.to(target)


def assert_same_bits(got: Tensor, wanted: Tensor) -> None:
    """Equal, the sign of zero included; which NaN it is does not matter."""
    nan = wanted.isnan()
    assert torch.equal(got.isnan(), nan)
    bits = BITS[got.itemsize]
    assert torch.equal(got.view(bits)[~nan], wanted.view(bits)[~nan])


@pytest.mark.parametrize("layout", ["aligned", "outs off", "anchors off"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize(("source", "target"), PAIRS, ids=str)
def test_many_tensors_in_one_launch(
    library: ctypes.CDLL, native: Any, source: torch.dtype, target: torch.dtype, count: int, layout: str
) -> None:
    points, streaming, factor = {
        "aligned": (3, True, torch.float32),
        "outs off": (1, False, torch.float64),
        "anchors off": (7, False, torch.float32),
    }[layout]
    anchors = [[normal(*s, dtype=source, seed=20 * t + r) for r in range(count)] for t, s in enumerate(SHAPES)]
    for group in anchors:
        group[0].view(-1)[:1], group[0].view(-1)[-1:] = torch.inf, torch.nan
    scales = [
        normal(points, s[0], dtype=factor, seed=300 + t) if s and (t % 2 == 0 or layout != "aligned") else None
        for t, s in enumerate(SHAPES)
    ]
    own = layout == "anchors off"
    c = normal(len(SHAPES) if own else 1, points, count, dtype=torch.float64, seed=400)
    c[:, ::2, 0] = 0.0  # leaves out NaN and infinity
    places = [
        [Placed.of(a, shift=own and (t + r) % count == 0 and t % 3 > 0) for r, a in enumerate(group)]
        for t, group in enumerate(anchors)
    ]
    outs = [Placed((points, *s), target, layout == "outs off" and t % 2 == 1) for t, s in enumerate(SHAPES)]
    factors = [None if s is None else Placed.of(s, shift=1) for s in scales]
    plan = BlendPlan(
        [o.on_gpu for o in outs],
        [[a.on_gpu for a in group] for group in places],
        [None if f is None else f.on_gpu for f in factors],
    )
    coefficients = Placed.of(c if own else c[0], shift=1)
    plan(coefficients.on_gpu, streaming=streaming)

    wide_stores, per_store = 0, 16 // target.itemsize
    for t, (out, group, scale) in enumerate(zip(outs, anchors, scales, strict=True)):
        written = out.written()
        for p in range(points):
            row = c[t if own else 0, p]
            wanted = expected(library, group, row, None if scale is None else scale[p], target)
            assert_same_bits(written[p], wanted)
        starts = [out.tensor.data_ptr(), *(a.tensor.data_ptr() for a in places[t])]
        elements = group[0].numel()
        if all(at % 16 == 0 for at in starts) and (points == 1 or elements % per_store == 0):
            wide_stores += points * (elements // per_store)
    assert wide_stores > 1000
    assert native.stores == [wide_stores, wide_stores * streaming]


@pytest.mark.parametrize("count", [1, 2, 5, 8, 9])
@pytest.mark.parametrize(("source", "target"), PAIRS[:4], ids=str)
def test_one_tensor_any_order_of_points_and_fewer_of_them(
    library: ctypes.CDLL, native: Any, source: torch.dtype, target: torch.dtype, count: int
) -> None:
    shape, points = (50, 121), 7
    anchors = [normal(*shape, dtype=source, seed=r) for r in range(count)]
    c = normal(points, count, dtype=torch.float64, seed=50)
    places = [Placed.of(a) for a in anchors]

    def blended(rows: Tensor, planned: int) -> Tensor:
        out = Placed((planned, *shape), target)
        plan = BlendPlan([out.on_gpu], [[a.on_gpu for a in places]])
        assert (plan._table is None) == (count <= native.blend_single_anchors)
        plan(Placed.of(rows).on_gpu)
        assert (out.tensor[len(rows) :].view(BITS[target.itemsize]) == -1).all()
        return out.tensor[: len(rows)]

    whole = blended(c, points)
    for p, row in enumerate(c):
        assert_same_bits(whole[p], expected(library, anchors, row, None, target))
    order = [5, 0, 3, 6, 2]
    assert torch.equal(blended(c[order], points), whole[order])
    assert torch.equal(blended(c[5:6], 1), whole[5:6])


@pytest.mark.parametrize("shifts", [(0, 0), (1, 0), (0, 1)], ids=str)
@pytest.mark.parametrize("count", [1, 3, 4, 1000, 1023, 1024, 5000])
def test_split(library: ctypes.CDLL, count: int, shifts: tuple[int, int]) -> None:
    values = normal(count, dtype=torch.float32, seed=count)
    values[::7] *= 1e-30
    if count > 4:
        values[-3:] = torch.tensor([0.0, torch.nan, -torch.inf])
    x, parts = Placed.of(values, shifts[0]), Placed((2, count), torch.float32, shifts[1])
    at = [ctypes.c_void_p(t.tensor.data_ptr()) for t in (x, parts)]
    assert library.emulated_split(*at, ctypes.c_int64(count)) == 0
    high, low = parts.written()
    assert_same_bits(high, rounded(values))
    assert_same_bits(low, rounded(values - rounded(values)))
    finite = values.isfinite()
    missing = values.double() - high.double() - low.double()
    assert (missing.abs() <= 2.0**-22 * values.double().abs())[finite].all()
