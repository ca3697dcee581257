"""What a sweep promises of its values: exact endpoints, points that stand alone, one pass over the data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from mli_fast.engine import forced
from tests.cases import POINTS, assert_same_points, case, named, under_both, wide
from tests.data import Batch
from tests.reference import assert_as_exact_as_torch, plain_loop

State = dict[str, Tensor]


# -------------------------------------------------------------------------------------------------- endpoints are exact

ENDPOINT_CASES = ("mlp", "wide", "cnn-bn", "resnet", "norms", "gpt2", "vit-plain", "bag-of-words", "lstm")


@under_both(*ENDPOINT_CASES)
def test_endpoints_are_bitwise_those_of_the_checkpoint_alone(name: str, under: str) -> None:
    c = named(name)
    with forced(under):
        both = c.sweep([0.0, 0.4, 1.0])
        start = c.sweep([0.0], theta_T=c.theta_0)
        end = c.sweep([1.0], theta_0=c.theta_T)
    assert_same_points(start, both, [0])
    assert_same_points(end, both, [2])


def spoiled(state: State, value: float, everywhere: bool) -> State:
    """The state with `value` in every floating-point entry, or in one entry of its last floating-point tensor only."""
    copies = {key: tensor.clone() for key, tensor in state.items()}
    floating = [key for key, tensor in copies.items() if tensor.is_floating_point()]
    for key in floating if everywhere else floating[-1:]:
        if everywhere:
            copies[key].fill_(value)
        else:
            copies[key].view(-1)[0] = value
    return copies


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=["nan", "inf", "minus-inf"])
@under_both("mlp", "cnn-bn", "gpt2", "bag-of-words", "lstm")
def test_endpoint_is_exact_where_the_other_one_is_not_finite(name: str, under: str, value: float) -> None:
    c = named(name)
    with forced(under):
        clean = c.sweep([0.0, 1.0])
        with pytest.warns(Warning, match="theta_T"):
            bad_end = c.sweep([0.0, 0.5, 1.0], theta_T=spoiled(c.theta_T, value, everywhere=True))
        with pytest.warns(Warning, match="theta_0"):
            bad_start = c.sweep([0.0, 0.5, 1.0], theta_0=spoiled(c.theta_0, value, everywhere=True))
    assert np.isnan(bad_end.loss).tolist() == [False, True, True]
    assert np.isnan(bad_start.loss).tolist() == [True, True, False]
    for variable in ("loss", "loss_stderr", "accuracy", "class_loss"):
        if variable in clean.dataset:
            assert clean[variable][0].tobytes() == bad_end[variable][0].tobytes(), variable
            assert clean[variable][1].tobytes() == bad_start[variable][2].tobytes(), variable


def test_one_nan_in_one_tensor_is_named_in_the_warning_and_spoils_only_its_points(engine: str) -> None:
    c = case("mlp")
    with pytest.warns(Warning, match=r"4\.bias"):
        result = c.sweep([0.0, 0.5, 1.0], theta_T=spoiled(c.theta_T, float("nan"), everywhere=False))
    assert np.isnan(result.loss).tolist() == [False, True, True]
    assert np.isnan(result.accuracy).tolist() == [False, True, True]
    assert np.isnan(result["loss_step"]).all()


@pytest.mark.parametrize("name", ["mlp", "resnet", "vit-plain", "gpt2", "embedding-bag", "weight-norm", "lstm"])
def test_finite_checkpoints_give_no_warning(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(case(name).sweep(3).loss).all()


# ------------------------------------------------------------------------------------------------- a point stands alone


@under_both("mlp", "wide", "cnn-bn", "resnet", "gpt2", "vit-plain", "norms", "lstm")
def test_a_point_stands_alone_whatever_the_chunk(name: str, under: str) -> None:
    c = named(name)
    with forced(under):
        whole = c.sweep(POINTS, chunk=len(POINTS))
        for chunk in (1, 2, 7, "auto"):
            assert_same_points(c.sweep(POINTS, chunk=chunk), whole, range(len(POINTS)))


@under_both("mlp", "wide", "cnn-bn", "gpt2", "vit-plain", "lstm")
def test_a_point_stands_alone_whatever_it_is_asked_with(name: str, under: str) -> None:
    c = named(name)
    orders = {
        "alone": [3],
        "subset": [1, 4, 6],
        "reversed": list(range(len(POINTS)))[::-1],
        "shuffled with duplicates": [4, 0, 4, 8, 2, 2, 7, 4],
    }
    with forced(under):
        whole = c.sweep(POINTS)
        for at in orders.values():
            assert_same_points(c.sweep([POINTS[i] for i in at]), whole, at)


def test_a_sweep_is_repeatable_bit_for_bit(engine: str) -> None:
    c = wide()
    assert_same_points(c.sweep(POINTS), c.sweep(POINTS), range(len(POINTS)))


# ---------------------------------------------------------------------------------- the loader is iterated exactly once


class Counting:
    """An iterable that counts how often it is iterated and how many batches are drawn."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches, self.iterations, self.drawn = batches, 0, 0

    def __iter__(self) -> Iterator[Batch]:
        self.iterations += 1
        for batch in self.batches:
            self.drawn += 1
            yield batch


@pytest.mark.parametrize("chunk", [1, 2, "auto"])
@pytest.mark.parametrize("batch_norm", ["interpolate", "start"])
def test_the_loader_is_iterated_once(engine: str, chunk: int | str, batch_norm: str) -> None:
    c = case("cnn-bn")
    loader = Counting(c.batches)
    result = c.sweep(5, loader=loader, chunk=chunk, batch_norm=batch_norm)
    assert (loader.iterations, loader.drawn, result.count) == (1, 3, 13)


@pytest.mark.parametrize("name", ["mlp", "item", "lstm", "control-flow"])
def test_the_loader_is_iterated_once_also_while_the_engine_is_chosen(name: str) -> None:
    c = case(name)
    loader = Counting(c.batches)
    result = c.sweep(5, loader=loader)
    assert (loader.iterations, loader.drawn, result.count) == (1, 3, 13)


def test_a_generator_will_do(engine: str) -> None:
    c = case("mlp")
    assert_same_points(c.sweep(4, loader=(batch for batch in c.batches)), c.sweep(4), range(4))


# -------------------------------------------------------------------------------------------- without the compiled part

SCRIPT = """
    import json, mli_fast
    from tests.models import ARCHITECTURES, endpoints
    values = {}
    for name in ("mlp", "cnn-bn", "norms", "bag-of-words", "lstm"):
        case = ARCHITECTURES[name]
        result = mli_fast.sweep(case.model(), *endpoints(name), case.data(), 5, progress=False)
        values[name] = [value.hex() for value in result.loss.tolist()]
    print(json.dumps({"values": values, "native": mli_fast.backends()["native"]}))
"""


def test_the_package_works_without_the_compiled_module() -> None:
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = os.environ | {"MLI_FAST_NATIVE": "0", "PYTHONPATH": root}
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["native"]["available"] is False
    assert "MLI_FAST_NATIVE" in answer["native"]["reason"]
    for name, values in answer["values"].items():
        c = case(name)
        arguments = (c.model, c.theta_0, c.theta_T, c.batches, np.linspace(0, 1, 5))
        exact, single = plain_loop(*arguments).loss, plain_loop(*arguments, dtype=torch.float32).loss
        assert_as_exact_as_torch(np.array([float.fromhex(value) for value in values]), exact, single)
