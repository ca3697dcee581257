"""The benchmark's peers do the same work: their values agree with an fp64 loop at small sizes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import table
from benchmarks.measure import double, relative_error
from benchmarks.models import Cnn, Mlp, ResNet, Vit
from benchmarks.peers import PEERS, Options, Peer, Unavailable
from benchmarks.workloads import SETS, Problem, random_data

IMAGE = (3, 8, 8)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (partial(Mlp, 7, 11, 5, 4), (7,)),
    "cnn": (partial(Cnn, 3, 4, 6, 4), IMAGE),
    "resnet": (partial(ResNet, blocks=1, width=4, classes=4), IMAGE),
    "vit": (partial(Vit, dim=12, layers=1, heads=2, patch=4, size=8, classes=4), IMAGE),
    "vit-class-token": (partial(Vit, dim=12, layers=1, heads=2, patch=4, size=8, class_token=True, classes=4), IMAGE),
}
OPTIONS = {
    "whole": Options(23),
    "ragged": Options(5, points=2),
    "channels-last": Options(8, channels_last=True, points=1, math_attention=True),
}
# One compiled case per peer: compiling costs seconds and the arithmetic is that of the eager peer beside it.
EAGER = [peer for peer in PEERS.values() if not peer.compiled]
COMPILED = [peer for peer in PEERS.values() if peer.compiled]


def make(network: str, examples: int = 23, points: int = 4) -> Problem:
    """Two random endpoints with running statistics that differ, ragged sizes."""
    factory, shape = NETWORKS[network]
    X, y, _ = random_data(examples, shape, classes=4)
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = factory().train()
        with torch.no_grad():
            model(2 * X + seed)
        states.append({name: value.detach().clone() for name, value in model.state_dict().items()})
    return Problem(factory, states[0], states[1], X, y, np.linspace(0.0, 1.0, points))


def expected(peer: Peer, problem: Problem) -> np.ndarray:
    """The plain loop in fp64 on the question this peer answers."""
    return PEERS["plain_loop"].prepare(double(peer.question(problem)), Options(7))()


def check(peer: Peer, network: str, options: Options) -> None:
    problem = make(network)
    try:
        run = peer.prepare(problem, options)
    except Unavailable as error:
        pytest.skip(str(error))
    first, second = run(), run()
    assert first.dtype == np.float64
    assert relative_error(first, expected(peer, problem)) < 1e-5
    assert np.array_equal(first, second), "a second run starts from what the first left behind"


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("peer", EAGER, ids=lambda peer: peer.name)
def test_eager_peers_agree_with_fp64(peer: Peer, network: str, options: Options) -> None:
    check(peer, network, options)


@pytest.mark.parametrize("peer", COMPILED, ids=lambda peer: peer.name)
def test_compiled_peers_agree_with_fp64(peer: Peer) -> None:
    check(peer, "mlp", OPTIONS["whole"])


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
@pytest.mark.parametrize("points", [None, 1], ids=["vmap", "one-point"])
@pytest.mark.parametrize("network", [name for name in NETWORKS if name != "mlp"])
def test_jax_networks_are_the_same_networks(network: str, points: int | None) -> None:
    check(PEERS["jax"], network, Options(23, points=points))


def test_flat_call_takes_what_a_user_has() -> None:
    problem = make("mlp")
    losses = PEERS["tuned_loop"](*problem[:5], alphas=[0.0, 0.5], batch_size=6)
    assert losses.shape == (2,)
    assert relative_error(losses, expected(PEERS["tuned_loop"], problem.take(alphas=np.array([0.0, 0.5])))) < 1e-5


@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if not peer.compiled])
def test_peers_leave_the_endpoints_alone(name: str) -> None:
    problem = make("cnn")
    before = [{key: value.clone() for key, value in theta.items()} for theta in (problem.theta_0, problem.theta_T)]
    try:
        PEERS[name].prepare(problem, Options(23))()
    except Unavailable as error:
        pytest.skip(str(error))
    for theta, kept in zip((problem.theta_0, problem.theta_T), before, strict=True):
        assert all(torch.equal(theta[key], kept[key]) for key in kept)


def test_loss_landscapes_is_asked_its_own_question() -> None:
    """It never evaluates alpha = 0 and keeps the start's running statistics; the check has to know."""
    problem = make("cnn")
    asked = PEERS["loss_landscapes"].question(problem)
    assert asked.alphas.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert torch.equal(asked.theta_T["b1.running_mean"], problem.theta_0["b1.running_mean"])
    assert torch.equal(asked.theta_T["b1.weight"], problem.theta_T["b1.weight"])


def test_relative_error_sees_what_is_missing() -> None:
    values = np.array([1.0, 2.0])
    assert relative_error(values, values) == 0.0
    assert relative_error(np.array([1.0, 2.02]), values) == pytest.approx(0.01)
    assert relative_error(np.array([1.0, np.nan]), values) == float("inf")
    assert relative_error(values[:1], values) == float("inf")


def test_workload_names_are_unique() -> None:
    for rows in SETS.values():
        assert len({row.name for row in rows}) == len(rows)


def test_table_says_when_there_is_no_figure() -> None:
    row = {
        "title": "MLP",
        "data": "random",
        "ours_s": None,
        "best_peer": "jax",
        "best_peer_s": 1.0,
        "plain_loop_s": 4.0,
        "best_peer_over_ours": None,
        "plain_loop_over_ours": None,
        "target_best_peer": 2.5,
        "target_plain_loop": 8.0,
        "variants": {"jax": {"title": "JAX", "median_s": None, "reason": "not installed"}},
    }
    memory = {"title": "MLP", "variants": {"mli_fast": {"theta_multiple": 1.5, "points": 50}, "vmap": {"reason": "no"}}}
    text = table.markdown({"rows": [row], "memory": memory})
    assert "| MLP | n/a | 1,000 ms (JAX) | 4,000 ms | n/a | n/a |" in text
    assert "mli_fast 1.50 x |theta| (50 alphas), vmap: no." in text
    assert "n/a: not installed" in table.details({"rows": [row]})
