"""The benchmark's peers do the same work: their values agree with an fp64 loop at small sizes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from benchmarks import measure as measuring
from benchmarks import table, tuning
from benchmarks.judging import TOLERANCE, Judge, relative_error
from benchmarks.models import Cnn, Mlp, ResNet, Vit
from benchmarks.peers import PEERS, Options, Peer, Run, Unavailable
from benchmarks.points import Layerwise, Line, Points, Surface
from benchmarks.workloads import GROUPS, SETS, Problem, Workload, digits_cnn, random_data
from tests import science_reference as reference

pytestmark = pytest.mark.slow
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
SCIENCE: dict[str, dict[str, Any]] = {
    "surface": {"points": Surface(3, margin=0.05)},
    "layerwise": {"points": Layerwise({"a": "c1.*", "b": "b1.*", "c": "*.weight"}, 3)},
    "recalibrated": {"calibration": 19},
}
ABLE = {
    "surface": ["tuned_loop", "plain_loop", "loss_landscapes", "vmap"],
    "layerwise": ["tuned_loop", "plain_loop", "vmap"],
    "recalibrated": ["tuned_loop", "plain_loop", "update_bn"],
}
# One compiled case per peer: compiling costs seconds and the arithmetic is that of the eager peer beside it.
EAGER = [peer for name, peer in PEERS.items() if not peer.compiled and name != "update_bn"]
COMPILED = [peer for peer in PEERS.values() if peer.compiled]


def make(network: str, examples: int = 23, points: Points = Line(4), calibration: int = 0) -> Problem:  # noqa: B008
    """Random anchors with running statistics that differ, ragged sizes."""
    factory, shape = NETWORKS[network]
    X, y, _ = random_data(examples, shape, classes=4)
    states = []
    for seed in range(3 if isinstance(points, Surface) else 2):
        torch.manual_seed(seed)
        model = factory().train()
        with torch.no_grad():
            model(2 * X + seed)
        states.append({name: value.detach().clone() for name, value in model.state_dict().items()})
    measured = (X[:calibration], y[:calibration]) if calibration else None
    return Problem(factory, tuple(states), points.coefficients(states), X, y, measured)


def expected(peer: Peer, problem: Problem, options: Options) -> np.ndarray:
    """The plain loop in fp64 on the question this peer answers."""
    asked = peer.question(problem)
    states = [
        {
            name: reference.combine([{"": anchor[name]} for anchor in asked.anchors], rows[point])[""]
            for name, rows in asked.coefficients.items()
        }
        for point in range(asked.count)
    ]
    model, data = asked.model_factory(), [(asked.X, asked.y)]
    if not asked.calibration:
        return reference.curve_losses(model, states, data)
    if peer.averages:
        losses = []
        network = reference.replica(model)
        for state in states:
            network.load_state_dict(state)
            update_bn([x.double() for x in asked.calibration[0].split(options.batch_size)], network)
            losses.append(reference.mean_loss(network.eval(), data))
        return np.array(losses)
    return reference.recalibrated_losses(model, states, [asked.calibration], data)


def check(peer: Peer, problem: Problem, options: Options) -> None:
    try:
        run = peer.prepare(problem, options)
    except Unavailable as error:
        pytest.skip(str(error))
    first, second = run(), run()
    assert first.dtype == np.float64
    assert relative_error(first, expected(peer, problem, options)) < 1e-5
    assert np.array_equal(first, second), "a second run starts from what the first left behind"


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("peer", EAGER, ids=lambda peer: peer.name)
def test_eager_peers_agree_with_fp64(peer: Peer, network: str, options: Options) -> None:
    check(peer, make(network), options)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in ABLE.items() for name in names])
def test_surfaces_layers_and_recalibration(kind: str, name: str, options: Options) -> None:
    check(PEERS[name], make("cnn", **SCIENCE[kind]), options)


@pytest.mark.parametrize("kind", ["line", *SCIENCE])
def test_who_cannot_says_so(kind: str) -> None:
    problem = make("cnn", **SCIENCE.get(kind, {}))
    for name, peer in PEERS.items():
        if peer.compiled or name in ABLE.get(kind, [peer.name for peer in EAGER]):
            continue
        with pytest.raises(
            Unavailable, match=r"it has lines|no rule for batch norms|nothing is recalibrated|not installed"
        ):
            peer.prepare(problem, Options(23))


@pytest.mark.parametrize("peer", COMPILED, ids=lambda peer: peer.name)
def test_compiled_peers_agree_with_fp64(peer: Peer) -> None:
    check(peer, make("mlp"), OPTIONS["whole"])


def test_compiled_loop_recalibrates() -> None:
    check(PEERS["compiled_loop"], make("cnn", **SCIENCE["recalibrated"]), OPTIONS["whole"])


def test_compiled_vmap_with_parameters_that_do_not_move() -> None:
    check(PEERS["compiled_vmap"], make("mlp", points=Layerwise({"a": "0.*", "b": "2.*"}, 3)), Options(23, points=3))


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
@pytest.mark.parametrize("points", [None, 1], ids=["vmap", "one-point"])
@pytest.mark.parametrize("network", [name for name in NETWORKS if name != "mlp"])
def test_jax_networks_are_the_same_networks(network: str, points: int | None) -> None:
    check(PEERS["jax"], make(network), Options(23, points=points))


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
@pytest.mark.parametrize("points", [3, 1], ids=["vmap", "one-point"])
@pytest.mark.parametrize("kind", ["surface", "layerwise"])
def test_jax_beside_a_line(kind: str, points: int) -> None:
    check(PEERS["jax"], make("cnn", **SCIENCE[kind]), Options(23, points=points))


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
def test_jax_has_the_network_of_the_digits() -> None:
    torch.manual_seed(0)
    states = [digits_cnn().state_dict() for _ in range(2)]
    X, y, _ = random_data(9, (1, 8, 8))
    check(PEERS["jax"], Problem.line(digits_cnn, *states, X, y, [0.0, 0.4]), Options(9))


def test_flat_call_takes_what_a_user_has() -> None:
    problem = make("mlp")
    losses = PEERS["tuned_loop"](
        problem.model_factory, *problem.anchors, problem.X, problem.y, alphas=[0.0, 1 / 3], batch_size=6
    )
    assert losses.shape == (2,)
    assert relative_error(losses, expected(PEERS["tuned_loop"], problem.take(points=slice(2)), Options(6))) < 1e-5


@pytest.mark.parametrize("name", [peer.name for peer in EAGER])
def test_peers_leave_the_endpoints_alone(name: str) -> None:
    problem = make("cnn")
    before = [{key: value.clone() for key, value in theta.items()} for theta in problem.anchors]
    try:
        PEERS[name].prepare(problem, Options(23))()
    except Unavailable as error:
        pytest.skip(str(error))
    for theta, kept in zip(problem.anchors, before, strict=True):
        assert all(torch.equal(theta[key], kept[key]) for key in kept)


def test_loss_landscapes_is_asked_its_own_question() -> None:
    """It never evaluates alpha = 0 and keeps the start's running statistics; the check has to know."""
    problem = make("cnn")
    asked = PEERS["loss_landscapes"].question(problem)
    assert asked.coefficients["b1.weight"].tolist() == [[0.75, 0.25], [0.5, 0.5], [0.25, 0.75], [0.0, 1.0]]
    assert asked.coefficients["b1.running_mean"].tolist() == [[1.0, 0.0]] * 4


def test_loss_landscapes_walks_a_serpentine() -> None:
    """Its columns run over 1..n in even rows and over 0..n - 1 in odd ones."""
    asked = PEERS["loss_landscapes"].question(make("cnn", points=Surface(2))).coefficients["c1.weight"]
    assert asked[:, 1:].tolist() == [[0.0, 0.5], [0.0, 1.0], [0.5, 0.0], [0.5, 0.5]]


def test_surface_lies_in_the_plane_as_it_is_defined() -> None:
    problem, surface = make("cnn", points=Surface(3)), Surface(3)
    x, y = surface.grid(problem.anchors)
    own = [reference.plane_coefficients(*problem.anchors, a, b) for a in x for b in y]
    assert np.allclose(problem.coefficients["c1.weight"], own, rtol=0, atol=1e-12)
    corners = [reference.plane_coefficients(*problem.anchors, a, b) for a in (x[0], x[-1]) for b in (y[0], y[-1])]
    assert np.max(corners) > 1.0


def test_layers_of_the_row_are_all_there_is() -> None:
    """Every entry of the network's state moves in exactly one of the eight groups."""
    points = Layerwise(GROUPS, 25)
    state = digits_cnn().state_dict()
    coefficients = points.coefficients((state, state))
    assert points.count == 200
    for name, rows in coefficients.items():
        moving = np.flatnonzero(rows[:, 0] > 0)
        assert len(moving) == 24, name
        assert len(set(moving // 25)) == 1, name


def test_mean_of_batch_statistics_is_the_exact_one_on_one_batch_up_to_the_sample_variance() -> None:
    problem = make("cnn", examples=200, calibration=200)
    exact, averaged, in_batches = (
        PEERS[name].prepare(problem, Options(size))()
        for name, size in (("tuned_loop", 200), ("update_bn", 200), ("update_bn", 10))
    )
    assert relative_error(averaged, exact) < 1e-4
    assert relative_error(in_batches, exact) > 3 * relative_error(averaged, exact)


@pytest.mark.parametrize("name", ["plain_loop", "update_bn", "tuned_loop", "vmap"])
def test_judge_tells_right_from_wrong(name: str) -> None:
    problem = make("cnn", **SCIENCE["surface" if name == "vmap" else "recalibrated"])
    judge, peer = Judge(problem, Options(23)), PEERS[name]
    values = peer.prepare(problem, Options(10))()
    assert judge.error(peer, Options(10), problem, values) < TOLERANCE
    assert judge.error(peer, Options(10), problem, values * (1 + 1e-4)) > TOLERANCE


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
@pytest.mark.parametrize("row", SETS["main"][-3:], ids=lambda row: row.name)
def test_a_part_of_the_work_is_a_part_of_the_work(row: Workload, peer: Peer) -> None:
    """What tuning tries is of the size it is scaled by."""
    state = digits_cnn().state_dict()
    coefficients = row.points.coefficients([{n: v + i * (i - 1.5) for n, v in state.items()} for i in range(3)])
    problem = Problem(digits_cnn, (), coefficients, torch.zeros(1797, 1), torch.zeros(1797))
    found = tuning._reduced(peer, problem, Options(300, points=row.points.row if peer.batched else None))
    if peer.batched:
        assert found.count == min(8 * row.points.row, problem.count)
        assert len(found.X) == 449
    else:
        assert found.count == (4 if peer.answers else 2)
        assert len(found.X) == 1797


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


@pytest.mark.parametrize(
    ("row", "points"),
    list(zip(SETS["main"][-3:], (Surface(3, margin=0.05), Layerwise(GROUPS, 3), Line(3)), strict=True)),
    ids=["surface", "layerwise", "recalibrated"],
)
def test_a_row_is_checked_before_it_is_timed(row: Workload, points: Points, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one peer that is wrong: it gets no time, the others and ours do."""

    def wrong(problem: Problem, options: Options) -> Run:
        run = PEERS["tuned_loop"].prepare(problem, options)
        return lambda: run() * (1 + 1e-3)

    chosen = {name: PEERS[name] for name in ("tuned_loop", "plain_loop")} | {"wrong": Peer("wrong", "wrong", wrong)}
    for module in (measuring, tuning):
        monkeypatch.setattr(module, "PEERS", chosen)
    found = measuring.measure(row.shrunk(32, points), 0.1, log=lambda _: None).as_json()
    variants = found["variants"]
    assert "differ by 1.0e-03" in variants["wrong"]["reason"]
    assert variants["wrong"]["median_s"] is None
    for name in ("mli_fast", "tuned_loop", "plain_loop"):
        assert len(variants[name]["seconds"]) >= 1, variants[name]["reason"]
        assert variants[name]["max_relative_error"] < 10 * TOLERANCE


def test_seconds_of_a_sample_are_scaled_to_all_points() -> None:
    (surface,) = (row for row in SETS["main"] if row.name.startswith("surface"))
    assert len(surface.sample()) == len(set(surface.sample())) == 75
    assert {0, 624} <= set(surface.sample())
    assert len({index % 25 for index in surface.sample()}) == 25, "every column is sampled"
