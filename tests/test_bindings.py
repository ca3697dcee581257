"""Python bindings in place of `torch.ops`: the operator itself, the same arguments, the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mli_fast.engine.bindings import DIRECT

X, Y, SQUARE, IMAGE = torch.rand(3, 4) + 0.5, torch.rand(3, 4) + 0.5, torch.rand(3, 3), torch.rand(2, 4, 5, 5)
CUBE, VECTOR, INDEX = torch.rand(2, 3, 3), torch.rand(4), torch.tensor([[0, 2, 1, 0]])
SAMPLES: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "add": [((X, Y), {}), ((X, 2.0), {}), ((X, Y), {"alpha": 3}), ((X, VECTOR), {})],
    "sub": [((X, Y), {}), ((X, 2), {"alpha": 0.5})],
    "mul": [((X, Y), {}), ((X, 0.3), {}), ((X, torch.tensor(2.0, dtype=torch.float64)), {})],
    "div": [((X, Y), {}), ((X, 3), {})],
    "add_": [((X, Y), {}), ((X, 1.5), {}), ((X, Y), {"alpha": 2})],
    "sub_": [((X, Y), {}), ((X, Y), {"alpha": 2})],
    "mul_": [((X, Y), {}), ((X, 1.5), {})],
    "div_": [((X, Y), {}), ((X, 1.5), {})],
    "copy_": [((X, Y), {}), ((X, Y.double(), False), {})],
    "masked_fill_": [((X, Y > 1, 0.5), {})],
    "where": [((X > 1, X, Y), {})],
    "lerp": [((X, Y, 0.3), {})],
    "pow": [((X, 2), {}), ((X, 0.5), {})],
    "cumsum": [((X, 1), {}), ((X, 0), {"dtype": torch.float64})],
    "addmm": [((VECTOR, X, X.new_ones(4, 4)), {}), ((X, SQUARE, Y), {"beta": 0.5, "alpha": 2})],
    "mm": [((SQUARE, X), {}), ((X.t(), Y), {})],
    "bmm": [((CUBE, CUBE), {})],
    "baddbmm": [((CUBE, CUBE, CUBE), {}), ((CUBE, CUBE, CUBE), {"beta": 0.5, "alpha": 2})],
    "cat": [(([X, Y],), {}), (([X, Y], 1), {})],
    "stack": [(([X, Y],), {}), (([X, Y], 2), {})],
    "clone": [((X,), {}), ((X.t(),), {"memory_format": torch.contiguous_format})],
    "gather": [((X, 0, INDEX), {})],
    "index_select": [((X, 0, INDEX[0]), {})],
    "sum": [((X, [1]), {}), ((X, [0, -1], True), {"dtype": torch.float64})],
    "mean": [((X, [1]), {}), ((X, [0, -1], True), {})],
    "_softmax": [((X, -1, False), {})],
    "_log_softmax": [((X, 0, False), {})],
    "native_layer_norm": [((X, [4], VECTOR, None, 1e-5), {})],
    "native_group_norm": [((IMAGE, VECTOR, VECTOR, 2, 4, 25, 2, 1e-5), {})],
    "native_batch_norm": [((IMAGE, VECTOR, None, VECTOR, VECTOR, False, 0.1, 1e-5), {})],
    "convolution": [((IMAGE, torch.rand(3, 4, 2, 2), None, [2, 1], [1, 0], [1, 1], False, [0, 0], 1), {})],
    "embedding": [((X, INDEX), {}), ((X, INDEX, 1), {})],
    "constant_pad_nd": [((X, [1, 2], 0.5), {})],
    "permute": [((CUBE, [2, 0, 1]), {})],
    "select": [((X, 0, 1), {}), ((X, -1, -2), {})],
    "split_with_sizes": [((X, [1, 3], 1), {}), ((X, [1, 2]), {})],
    "squeeze": [((X[:, None], 1), {})],
    "transpose": [((CUBE, 0, -1), {})],
    "unbind": [((X,), {}), ((X, 1), {})],
    "unsqueeze": [((X, -1), {})],
    "expand": [((X[:, None], [3, 2, 4]), {}), ((VECTOR, [3, -1]), {"implicit": True})],
    "view": [((X, [2, 6]), {}), ((X, [-1]), {})],
    "gelu": [((X,), {}), ((X,), {"approximate": "tanh"})],
    "softplus": [((X,), {}), ((X, 2.0, 10.0), {})],
    **{name: [((X, Y), {})] for name in ("maximum", "minimum", "eq", "ge", "gt", "le", "lt")},
}
DEFAULT: list[tuple[tuple[Any, ...], dict[str, Any]]] = [((X - 1,), {}), ((X,), {})]


class Seen(TorchDispatchMode):
    """The operators that run within."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((func, repr((args, kwargs or {}))))
        return func(*args, **(kwargs or {}))


def copied(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.clone(memory_format=torch.preserve_format) if isinstance(a, Tensor) else a for a in args)


def bits(result: Any) -> list[Any]:
    parts = [result] if isinstance(result, Tensor) else result
    return [(t.stride(), t.dtype, t.shape, t.contiguous().numpy().tobytes()) for t in parts]


@pytest.mark.parametrize("operator", DIRECT, ids=str)
def test_a_binding_is_its_operator(operator: Any) -> None:
    name = operator._schema.name.removeprefix("aten::")
    for args, kwargs in SAMPLES.get(name, DEFAULT):
        found = []
        for call in (operator, DIRECT[operator]):
            own = copied(args)
            with torch.no_grad(), Seen() as seen:
                result = call(*own, **kwargs)
            found.append((seen.calls, bits(result), bits([a for a in own if isinstance(a, Tensor)])))
        assert found[0][0][0][0] is operator
        assert found[0] == found[1]
