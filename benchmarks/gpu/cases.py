"""The work that kernels are measured on: per op the shapes, our call, the vendor's way, and the float64 judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.precision import DTYPES
from mli_fast.ops import blend as blend_op
from mli_fast.ops import combine as combine_op
from mli_fast.ops import conv as conv_op
from mli_fast.ops import cross_entropy as cross_entropy_op
from mli_fast.ops import linear as linear_op
from mli_fast.ops.blend.many import Blender
from mli_fast.ops.dispatch import shape_class
from mli_fast.ops.epilogue import Epilogue
from mli_fast.ops.linear import chain as chain_op
from mli_fast.ops.linear import reference as linear_reference

NO_EPILOGUE = Epilogue()


@dataclass(frozen=True)
class Case:
    """One op at one shape in one precision."""

    op: str
    dtype: str  # of the first operand, as the dispatch table calls it
    shape: tuple[int, ...]  # see the op's builder
    goal: float | None = None  # the vendor's time over ours
    other: str | None = None  # the dtype of the result (blend, combine) or of the anchors (linear), where another one

    @property
    def key(self) -> str:
        """What tells it from the others."""
        return f"{self.op}/{self.dtype}{f'+{self.other}' if self.other else ''}/{self.text}"

    @property
    def text(self) -> str:
        """The shape."""
        return "x".join(map(str, self.shape))


@dataclass
class Bench:
    """A case made concrete."""

    ours: Callable[[], Any]  # by whichever backend is asked for
    vendor: Callable[[], Any]  # PyTorch's own, on weights blended beforehand where there are weights
    exact: Callable[[], Tensor]  # float64, of a few points
    picked: Callable[[Any], Tensor]  # of a result, the values that `exact` gives
    cls: str  # of `shape_class`
    flops: float = 0.0
    moved: float = 0.0  # bytes that have to be read and written
    # PyTorch's products on weights that our kernels blend: the other routes that "auto" can take
    plain: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    about_vendor: str = ""


def coefficients(points: int, device: torch.device) -> Tensor:
    """Those of a line from end to end: [P, 2]."""
    alphas = torch.linspace(0, 1, points, dtype=torch.float64)
    return torch.stack([1 - alphas, alphas], 1).to(device)


def few(points: int) -> list[int]:
    """The points that are compared with float64."""
    return sorted({0, points // 2, points - 1})


def _normal(*shape: int, dtype: torch.dtype, device: torch.device, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, device=device) * scale).to(dtype)


def blend(case: Case, device: torch.device) -> Bench:
    """(P, elements); P = 1: the tensors of a ResNet-18, scaled to so many elements, in one call."""
    points, elements = case.shape
    dtype, out = DTYPES[case.dtype], DTYPES[case.other or case.dtype]
    c = coefficients(points, device) if points > 1 else torch.tensor([[0.3, 0.7]], dtype=torch.float64, device=device)
    which = few(points)
    if points == 1:
        sizes = [max(1, elements * n // 128) for n in (1, 1, 1, 1, 2, 2, 4, 4, 16, 32, 64)]
        anchors = [[_normal(n, dtype=dtype, device=device) for _ in range(2)] for n in sizes]
        first, second = [pair[0] for pair in anchors], [pair[1] for pair in anchors]
        total = sum(sizes)
        outs = [torch.empty(n, dtype=out, device=device) for n in sizes]
        blenders: dict[int, Blender] = {}

        def ours() -> list[Tensor]:
            from mli_fast.ops.backend import current

            choice = id(current())
            if choice not in blenders:
                blenders[choice] = Blender(anchors, out, outs)
            blenders[choice](c[0])
            return outs

        def vendor() -> Any:
            return torch._foreach_lerp(first, second, 0.7)

        def exact() -> Tensor:
            return torch.cat([0.3 * a.double() + 0.7 * b.double() for a, b in anchors])

        moved = total * (2 * dtype.itemsize + out.itemsize)
        return Bench(ours, vendor, exact, lambda r: torch.cat([t.reshape(-1) for t in r]), "any", moved=moved)
    pair = [_normal(elements, dtype=dtype, device=device) for _ in range(2)]
    alphas = c[:, 1:].to(dtype)
    return Bench(
        partial(blend_op.blend, pair, c, out),
        lambda: torch.lerp(pair[0][None], pair[1][None], alphas).to(out),
        lambda: torch.stack([c[p, 0] * pair[0].double() + c[p, 1] * pair[1].double() for p in which]),
        lambda r: r[which],
        "any",
        moved=elements * (2 * dtype.itemsize + points * out.itemsize),
        about_vendor="torch.lerp, broadcast",
    )


def combine(case: Case, device: torch.device) -> Bench:
    """(P, M, N): R = 2 products, a shift per point, ReLU."""
    points, rows, columns = case.shape
    dtype, out = DTYPES[case.dtype], DTYPES[case.other or case.dtype]
    c, which = coefficients(points, device), few(points)
    terms = [_normal(rows, columns, dtype=dtype, device=device) for _ in range(2)]
    shift = _normal(points, columns, dtype=dtype, device=device)
    alphas = c[:, 1].to(dtype)[:, None, None]

    def exact() -> Tensor:
        sums = [c[p, 0] * terms[0].double() + c[p, 1] * terms[1].double() + shift[p].double() for p in which]
        return torch.stack(sums).relu()

    return Bench(
        lambda: combine_op.combine(terms, c, Epilogue(None, shift, None, "relu"), -1, out),
        lambda: torch.lerp(terms[0][None], terms[1][None], alphas).add_(shift[:, None]).relu_().to(out),
        exact,
        lambda r: r[which],
        "any",
        moved=rows * columns * (2 * dtype.itemsize + points * out.itemsize),
        about_vendor="torch.lerp, add, ReLU",
    )


def _weights(case: Case, columns: int, depth: int, device: torch.device) -> list[Tensor]:
    dtype = DTYPES[case.other or case.dtype]
    return [_normal(columns, depth, dtype=dtype, device=device, scale=depth**-0.5) for _ in range(2)]


def _exact_weights(weights: list[Tensor], c: Tensor, which: list[int]) -> Tensor:
    return torch.stack([c[p, 0] * weights[0].double() + c[p, 1] * weights[1].double() for p in which])


def _blended_before(weights: list[Tensor], c: Tensor, dtype: torch.dtype) -> Tensor:
    """The weights of all points, [P, ...], made once and not timed."""
    out = torch.empty(len(c), *weights[0].shape, dtype=dtype, device=c.device)
    for p, row in enumerate(c.float()):
        out[p] = row[0] * weights[0].float() + row[1] * weights[1].float()
    return out


def linear(case: Case, device: torch.device) -> Bench:
    """(P, M, N, K): an input per point, nothing after the product."""
    points, rows, columns, depth = case.shape
    dtype, c, which = DTYPES[case.dtype], coefficients(points, device), few(points)
    x = _normal(points, rows, depth, dtype=dtype, device=device)
    weights = _weights(case, columns, depth, device)
    before = _blended_before(weights, c, dtype).mT
    other = partial(linear_reference.linear, x, weights, c, NO_EPILOGUE)
    return Bench(
        partial(linear_op.linear, x, weights, c, NO_EPILOGUE),
        lambda: torch.bmm(x, before),
        lambda: torch.bmm(x[which].double(), _exact_weights(weights, c, which).mT),
        lambda r: r[which],
        shape_class("linear", rows, columns, depth),
        flops=2.0 * points * rows * columns * depth,
        moved=x.nbytes + 2 * weights[0].nbytes + points * rows * columns * dtype.itemsize,
        plain={"triton": other, "native": other},
        about_vendor="torch.bmm on weights blended beforehand",
    )


def linear_of_products(case: Case, device: torch.device) -> Bench:
    """(P, M, N, K): the second layer straight from the first one's R = 2 products [M, K], ReLU between."""
    points, rows, columns, depth = case.shape
    dtype, c, which = DTYPES[case.dtype], coefficients(points, device), few(points)
    products = [_normal(rows, depth, dtype=torch.float32, device=device) for _ in range(2)]
    shift = _normal(points, depth, dtype=dtype, device=device)
    weights = _weights(case, columns, depth, device)
    layers = [
        chain_op.Layer(weights, c, Epilogue(None, shift, None, "relu")),
        chain_op.Layer(weights, c, NO_EPILOGUE),
    ]
    before = _blended_before(weights, c, dtype).mT

    def hidden(p: int) -> Tensor:
        return (c[p, 0] * products[0].double() + c[p, 1] * products[1].double() + shift[p].double()).relu()

    stored = torch.stack([hidden(p).to(dtype) for p in range(points)])

    def separate() -> Tensor:
        x = combine_op.combine(products, c, layers[0].epilogue, -1, dtype)
        return linear_reference.linear(x, weights, c, NO_EPILOGUE)

    return Bench(
        lambda: chain_op.chain(None, products, layers, dtype),
        lambda: torch.bmm(stored, before),
        lambda: torch.stack([hidden(p) @ w.mT for p, w in zip(which, _exact_weights(weights, c, which), strict=True)]),
        lambda r: r[which],
        shape_class("linear_of_products", rows, columns, depth),
        flops=2.0 * points * rows * columns * depth,
        plain={"triton": separate, "native": separate},
        about_vendor="torch.bmm on weights blended and activations stored beforehand",
    )


def conv(case: Case, device: torch.device) -> Bench:
    """(P, B, C, H, N, k, stride): channels innermost, bias and ReLU after it, padding k // 2."""
    points, batch, channels, size, columns, kernel, stride = case.shape
    dtype, c, which = DTYPES[case.dtype], coefficients(points, device), few(points)
    x = _normal(points, batch, size, size, channels, dtype=dtype, device=device).movedim(-1, 2)
    scale = (channels * kernel**2) ** -0.5
    weights = [
        _normal(columns, kernel, kernel, channels, dtype=dtype, device=device, scale=scale).movedim(-1, 1)
        for _ in range(2)
    ]
    shift = _normal(points, columns, dtype=dtype, device=device)
    geometry = conv_op.Geometry((stride,) * 2, (kernel // 2,) * 2, (1, 1), 1)
    before = [w.contiguous(memory_format=torch.channels_last) for w in _blended_before(weights, c, dtype)]
    epilogue = Epilogue(None, shift, None, "relu")
    move = (geometry.stride, geometry.padding, geometry.dilation, 1)

    def vendor() -> list[Tensor]:
        if device.type == "cuda":
            return [torch.cudnn_convolution_relu(x[p], before[p], shift[p], *move) for p in range(points)]
        return [F.conv2d(x[p], before[p], shift[p], *move).relu_() for p in range(points)]

    def exact() -> Tensor:
        part = x[which][:, :EXACT_IMAGES].double()
        exact_weights = _exact_weights(weights, c, which)
        return torch.stack(
            [F.conv2d(part[i], exact_weights[i], shift[p].double(), *move) for i, p in enumerate(which)]
        ).relu()

    def picked(result: Any) -> Tensor:
        return torch.stack([result[p][:EXACT_IMAGES] for p in which])

    out_size = (size + 2 * (kernel // 2) - kernel) // stride + 1
    return Bench(
        partial(conv_op.conv, x, weights, c, geometry, epilogue),
        vendor,
        exact,
        picked,
        shape_class("conv", 2, columns, channels),
        flops=2.0 * points * batch * out_size**2 * columns * channels * kernel**2,
        moved=x.nbytes + points * batch * out_size**2 * columns * dtype.itemsize,
        about_vendor="cuDNN with bias and ReLU, a call per point, weights blended beforehand",
    )


EXACT_IMAGES = 64  # per point are compared with float64


def cross_entropy(case: Case, device: torch.device) -> Bench:
    """(P, M, C): loss and arg max of every row."""
    points, rows, classes = case.shape
    dtype, which = DTYPES[case.dtype], few(points)
    logits = _normal(points, rows, classes, dtype=dtype, device=device, scale=3.0)
    targets = torch.randint(classes, (rows,), device=device)
    flat, repeated = logits.view(-1, classes), targets.repeat(points)

    def vendor() -> tuple[Tensor, Tensor]:
        losses = F.cross_entropy(flat.float(), repeated, reduction="none")
        return losses.view(points, rows), flat.argmax(-1)

    def exact() -> Tensor:
        return torch.stack([F.cross_entropy(logits[p].double(), targets, reduction="none") for p in which])

    return Bench(
        partial(cross_entropy_op.cross_entropy, logits, targets),
        vendor,
        exact,
        lambda r: r[0][which],
        "any",
        moved=logits.nbytes,
        about_vendor="F.cross_entropy of float32 logits, and arg max",
    )


def linear_cross_entropy(case: Case, device: torch.device) -> Bench:
    """(P, M, V, K): the last product of a language model and its loss."""
    points, rows, classes, depth = case.shape
    dtype, c, which = DTYPES[case.dtype], coefficients(points, device), few(points)
    x = _normal(points, rows, depth, dtype=dtype, device=device)
    weights = _weights(case, classes, depth, device)
    targets = torch.randint(classes, (rows,), device=device)
    before = _blended_before(weights, c, dtype).mT

    def vendor() -> tuple[Tensor, Tensor]:
        logits = torch.bmm(x, before).view(-1, classes)
        losses = F.cross_entropy(logits.float(), targets.repeat(points), reduction="none")
        return losses.view(points, rows), logits.argmax(-1)

    def exact() -> Tensor:
        logits = torch.bmm(x[which].double(), _exact_weights(weights, c, which).mT)
        return torch.stack([F.cross_entropy(z, targets, reduction="none") for z in logits])

    def separate() -> tuple[Tensor, Tensor]:
        return cross_entropy_op.cross_entropy(linear_reference.linear(x, weights, c, NO_EPILOGUE), targets)

    return Bench(
        partial(cross_entropy_op.linear_cross_entropy, x, weights, c, None, targets),
        vendor,
        exact,
        lambda r: r[0][which],
        shape_class("linear_cross_entropy", classes),
        flops=2.0 * points * rows * classes * depth,
        plain={"triton": separate, "native": separate},
        about_vendor="torch.bmm on weights blended beforehand, F.cross_entropy of float32 logits, arg max",
    )


BUILDERS: dict[str, Callable[[Case, torch.device], Bench]] = {
    "blend": blend,
    "combine": combine,
    "linear": linear,
    "linear_of_products": linear_of_products,
    "conv": conv,
    "cross_entropy": cross_entropy,
    "linear_cross_entropy": linear_cross_entropy,
}

# (P, M, N, K), the goals in bfloat16 and TF32, and in float32
_LINEAR = (
    ((50, 512, 4096, 4096), 0.9),
    ((50, 512, 1024, 1024), 0.9),
    ((20, 4096, 4096, 4096), 0.95),
    ((50, 4096, 1024, 1024), 0.95),
    ((50, 64, 4096, 4096), 1.5),
    ((50, 16, 4096, 4096), 2.0),
)
FLOAT32_GOAL = 1.8
# (B, C, H, N, k, stride) of ResNet-18 and ResNet-20
_RESNET18 = ((512, 64, 32, 64, 3, 1), (512, 128, 16, 128, 3, 1), (512, 256, 8, 256, 3, 1), (512, 512, 4, 512, 3, 1))
_RESNET18_STRIDED = ((512, 64, 32, 128, 3, 2), (512, 64, 32, 128, 1, 2))
_RESNET20 = ((512, 16, 32, 16, 3, 1), (512, 32, 16, 32, 3, 1), (512, 64, 8, 64, 3, 1), (512, 16, 32, 32, 3, 2))


def all_cases() -> list[Case]:
    """What `make gpu-check` measures, the most telling first."""
    found = [Case("linear", "bfloat16", shape, goal) for shape, goal in _LINEAR]
    found += [Case("blend", "float32", (50, 4096 * 4096), 0.85), Case("blend", "bfloat16", (50, 4096 * 4096), 0.85)]
    found += [Case("conv", "bfloat16", (20, *shape)) for shape in (*_RESNET20, *_RESNET18)]
    found += [Case("linear_of_products", "bfloat16", (50, rows, 1024, 1024)) for rows in (4096, 512)]
    found += [Case("linear", "float32", shape, FLOAT32_GOAL) for shape, _ in _LINEAR]
    found += [Case("cross_entropy", d, (50, 10_000, 10)) for d in ("bfloat16", "float32")]
    found += [
        Case("linear_cross_entropy", "bfloat16", shape) for shape in ((16, 4096, 8192, 768), (50, 4096, 10, 1024))
    ]
    found += [Case("combine", d, (50, 8192, 1024)) for d in ("float32", "bfloat16")]
    found += [Case("linear", "tf32", shape) for shape, _ in _LINEAR]
    found += [Case("linear_of_products", d, (50, 4096, 1024, 1024)) for d in ("tf32", "float32")]
    found += [Case("conv", "tf32", (20, *shape)) for shape in (*_RESNET20[:3], *_RESNET18[:3])]
    found += [Case("blend", "float32", (1, 11_000_000)), Case("blend", "float32", (50, 4096 * 4096), None, "bfloat16")]
    found += [Case("combine", "float32", (50, 8192, 1024), None, "bfloat16")]
    found += [Case("linear", "bfloat16", shape, None, "float32") for shape, _ in _LINEAR[1::2]]
    found += [Case("conv", "bfloat16", (20, *shape)) for shape in _RESNET18_STRIDED]
    found += [Case("conv", "float32", (20, *_RESNET20[0])), Case("conv", "float32", (20, *_RESNET18[1]))]
    found += [
        Case("cross_entropy", "bfloat16", (2, 16384, 8192)),
        Case("linear_cross_entropy", "tf32", (4, 4096, 8192, 768)),
        Case("linear_cross_entropy", "tf32", (50, 4096, 10, 1024)),
        Case("linear_cross_entropy", "float32", (50, 4096, 10, 1024)),
    ]
    return found


TINY = {
    "blend": (3, 37),
    "combine": (3, 5, 7),
    "linear": (3, 5, 17, 19),
    "linear_of_products": (3, 5, 17, 19),
    "conv": (2, 2, 3, 5, 4, 3, 1),
    "cross_entropy": (3, 5, 7),
    "linear_cross_entropy": (2, 5, 11, 16),
}


def tiny_cases() -> list[Case]:
    """A tiny shape for every op in every precision that is measured, so that all of this code runs without a GPU."""
    seen = {(case.op, case.dtype, case.other): case for case in all_cases()}
    found = [Case(op, dtype, TINY[op], case.goal, other) for (op, dtype, other), case in seen.items()]
    return [*found, Case("blend", "float32", (1, 256)), Case("conv", "float32", (2, 2, 8, 6, 16, 3, 2))]
