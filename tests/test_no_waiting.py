"""Nothing in a sweep's loop looks at values: whole sweeps on tensors that have none, where looking is an error."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mli_fast.blended.memo import mapped
from mli_fast.criteria import criterion
from mli_fast.engine import Work, evaluators, forced
from mli_fast.engine.batches import default_forward
from mli_fast.engine.network import Network
from mli_fast.engine.points import Points
from mli_fast.ops import points as point_tensors
from mli_fast.ops.backend import requested
from mli_fast.reducers import Reducer
from tests.cases import ALL_METRICS, named, under_both

run = importlib.import_module("mli_fast.engine.run")  # the package's attribute of that name is the function
META = torch.device("meta")
POINTS = 5


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are to be treated as those of a GPU, past its first look for NaN."""
    monkeypatch.setattr(point_tensors, "asynchronous", lambda tensor: tensor.is_meta)
    monkeypatch.setattr(evaluators, "asynchronous", lambda tensor: tensor.is_meta)
    monkeypatch.setattr(evaluators.LoopEngine, "_nan_is_unexplained", lambda self, outputs: False)


def without_values(x: Any) -> Any:
    return mapped(lambda leaf: leaf.to(META) if isinstance(leaf, Tensor) else leaf, x)


def swept(name: str, dtype: torch.dtype | None, metrics: tuple[str, ...]) -> Work:
    """A sweep from its first batch to its last, but for what is looked at in the end."""
    c = named(name)
    pairs = {
        key: (value, c.theta_T[key]) for key, value in c.theta_0.items() if key in dict(c.model.named_parameters())
    }
    pairs |= {key: (value,) for key, value in c.theta_0.items() if key in dict(c.model.named_buffers())}
    coefficients = torch.empty(POINTS, 2, dtype=torch.float64, device=META)
    work = Work(
        Network(c.model, default_forward, dtype, META),
        Points(without_values(pairs), coefficients, {}, dtype),
        Reducer(criterion(c.criterion), metrics, {}, POINTS, np.linspace(0, 1, POINTS)),
        np.linspace(0, 1, POINTS),
        META,
    )
    with torch.no_grad(), requested("auto"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(work.reducer, "finish", lambda: None)
        run.run([work], without_values(c.batches), progress=False)
    return work


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["own", "bf16"])
@under_both("mlp", "wide", "cnn-bn", "resnet", "norms", "conv1d", "multihead-attention", "vit-plain", "regression-mse")
def test_a_sweep_never_waits(name: str, under: str, dtype: torch.dtype | None) -> None:
    metrics = ALL_METRICS if name in ("mlp", "cnn-bn") else ("accuracy",)
    with forced(under):
        work = swept(name, dtype, metrics)
    assert work.reducer.batches == len(named(name).batches)
    assert work.plan is not None
    assert work.plan.engine == under
    assert work.plan.deferred


def test_the_test_would_notice() -> None:
    with pytest.raises(RuntimeError, match=r"meta"):
        torch.empty(1, device=META).tolist()
    with pytest.MonkeyPatch.context() as patch, forced("loop"):
        patch.setattr(point_tensors, "asynchronous", lambda tensor: False)
        with pytest.raises(Exception, match=r"meta"):
            swept("mlp", None, ("accuracy",))
