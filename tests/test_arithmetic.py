"""PyTorch's switches for products of float32 are set for a sweep and put back, by whatever name they were set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from mli_fast.engine.guard import arithmetic

MATMUL, CUDNN = torch.backends.cuda.matmul, torch.backends.cudnn
READ: dict[str, Callable[[], Any]] = {
    "matmul": lambda: MATMUL.fp32_precision,
    "conv": lambda: CUDNN.conv.fp32_precision,
    "rnn": lambda: CUDNN.rnn.fp32_precision,
    "matmul, older": lambda: MATMUL.allow_tf32,
    "cudnn, older": lambda: CUDNN.allow_tf32,
    "level": torch.get_float32_matmul_precision,
    "reduced": lambda: MATMUL.allow_bf16_reduced_precision_reduction,
    "benchmark": lambda: CUDNN.benchmark,
    "deterministic": lambda: CUDNN.deterministic,
}
SET: dict[str, Callable[[], Any]] = {
    "as PyTorch starts": lambda: None,
    "older names, on": lambda: setattr(MATMUL, "allow_tf32", True),
    "older names, off": lambda: setattr(CUDNN, "allow_tf32", False),
    "newer names": lambda: setattr(MATMUL, "fp32_precision", "tf32"),
    "newer names, conv": lambda: setattr(CUDNN.conv, "fp32_precision", "tf32"),
    "level": lambda: torch.set_float32_matmul_precision("medium"),
    "benchmark": lambda: setattr(CUDNN, "benchmark", True),
}


def state() -> dict[str, Any]:
    """What can be read; PyTorch refuses an older name where only a newer one was set."""
    found = {}
    for name, read in READ.items():
        try:
            found[name] = read()
        except RuntimeError:
            continue
    return found


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    mkldnn = torch.backends.mkldnn.matmul.fp32_precision
    yield
    torch.set_float32_matmul_precision("highest")
    CUDNN.allow_tf32, CUDNN.benchmark = True, False
    MATMUL.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision = "none", mkldnn


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("before", SET)
def test_switches_are_put_back(before: str, tf32: bool) -> None:
    SET[before]()
    expected = state()
    with arithmetic(tf32):
        inside = state()
    found = state()
    assert {name: found[name] for name in expected} == expected
    wanted = "tf32" if tf32 else "ieee"
    assert [inside[name] for name in ("matmul", "conv", "rnn")] == [wanted] * 3
    assert (inside["reduced"], inside["benchmark"], inside["deterministic"]) == (False, False, True)


def test_switches_are_put_back_after_an_error() -> None:
    expected = state()
    with pytest.raises(KeyboardInterrupt), arithmetic(True):
        raise KeyboardInterrupt
    assert state() == expected
