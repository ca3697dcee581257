"""Any path at any points, and surfaces: equal to plain loops, with the contracts of a sweep."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mli_fast
from mli_fast.engine import forced
from mli_fast.evaluation import Evaluation, Job
from mli_fast.options import Options
from mli_fast.paths import Path
from tests import science_reference as reference
from tests.cases import PER_POINT, Case, assert_same_points, case, under_both
from tests.models import ARCHITECTURES, Backwards, endpoints_of
from tests.plain_points import anchors_of, bend, blended, losses_in, spoilt, three
from tests.reference import assert_as_exact_as_torch
from tests.test_contracts import Counting
from tests.test_left_alone import Mishap, RaisesOnShortBatch, assert_unchanged, bits, lived_in, snapshot, stops_after

MODELS = ("mlp", "cnn-bn", "resnet", "vit-plain", "tied-autoencoder", "lstm")


def loaded(name: str, state: dict[str, Tensor]) -> nn.Module:
    """A module, in which what is tied is tied."""
    model = ARCHITECTURES[name].model()
    model.load_state_dict(state)
    return model


PATHS: dict[str, tuple[Callable[[str], Path], Any]] = {
    "line": (lambda name: mli_fast.Line(*three(name)[::2]), [-0.1, 0.0, 0.3, 1.0]),
    "bezier": (lambda name: mli_fast.Bezier(*three(name)), [0.0, 0.3, 1.0, 1.1]),
    "bezier-cubic": (lambda name: mli_fast.Bezier(*three(name), bend(name, 4)), [0.0, 0.35, 0.8]),
    "polyline": (lambda name: mli_fast.Polyline(*three(name), bend(name, 4)), [0.0, 0.2, 1 / 3, 0.9, 1.05]),
    "task-vectors": (lambda name: mli_fast.TaskVectors(*three(name)), [0.0, 0.3, 0.5]),
    "tasks-apart": (lambda name: mli_fast.TaskVectors(*three(name), separate=True), [[0.0, 1.0], [0.3, 0.2]]),
    "directions-1": (lambda name: mli_fast.random_directions(loaded(name, bend(name)), 1, seed=3), [-0.4, 0.0, 1.0]),
    "directions-2": (lambda name: mli_fast.random_directions(loaded(name, bend(name))), [[0.0, 0.0], [0.3, -0.2]]),
    "directions-3": (
        lambda name: mli_fast.random_directions(loaded(name, bend(name)), 3, normalize="layer", zero_vectors=False),
        [[0.1, 0.2, -0.3], [0.0, 0.5, 0.0]],
    ),
    "plane": (lambda name: mli_fast.Plane(*three(name)), [[0.0, 0.0], [1.5, 2.0], [-1.0, 0.5]]),
}


def evaluate(c: Case, path: Path, points: Any, **options: Any) -> mli_fast.SweepResult:
    """`mli_fast.evaluate` on a case; its model and loader may be replaced by name."""
    model, loader = options.pop("model", c.model), options.pop("loader", c.batches)
    options = {"criterion": c.criterion, "metrics": c.metrics, "progress": False} | options
    return mli_fast.evaluate(model, path, points, loader, **options)


def surface(c: Case, plane: Path, x: Any, y: Any, **options: Any) -> mli_fast.SweepResult:
    """`mli_fast.surface` on a case, likewise."""
    model, loader = options.pop("model", c.model), options.pop("loader", c.batches)
    options = {"criterion": c.criterion, "metrics": c.metrics, "progress": False} | options
    return mli_fast.surface(model, plane, loader, x, y, **options)


def states_of(path: Path, points: Any) -> list[dict[str, Tensor]]:
    """Every point as a state dict in fp64."""
    return [reference.combine(anchors_of(path), row) for row in path.coefficients(path.points(points)).tolist()]


# ---------------------------------------------------------------------------------------------------- equal to the loop


def assert_equals_the_loop(name: str, under: str, kind: str) -> None:
    """In fp64, one engine."""
    c, (make, points) = case(name), PATHS[kind]
    path = make(name)
    with forced(under):
        result = evaluate(c, path, points, precision="fp64", metrics=())
    expected = reference.curve_losses(c.model, states_of(path, points), c.batches, c.criterion)
    np.testing.assert_allclose(result.loss, expected, rtol=1e-10)
    assert result.count == 13


@pytest.mark.parametrize("kind", PATHS)
@under_both("mlp", "cnn-bn", "lstm")
def test_every_path_equals_the_plain_loop(name: str, under: str, kind: str) -> None:
    assert_equals_the_loop(name, under, kind)


@pytest.mark.parametrize("kind", ["bezier", "directions-2", "plane"])
@under_both("resnet", "vit-plain", "tied-autoencoder")
def test_every_model_equals_the_plain_loop(name: str, under: str, kind: str) -> None:
    assert_equals_the_loop(name, under, kind)


@pytest.mark.parametrize("kind", ["bezier", "directions-2", "plane"])
@under_both("mlp", "cnn-bn", "resnet", "vit-plain")
def test_every_path_is_as_exact_as_torch_in_fp32(name: str, under: str, kind: str) -> None:
    c, (make, _) = case(name), PATHS[kind]
    path = make(name)
    grid = np.linspace(0, 1, 5)
    points = grid if len(path.axes) == 1 else np.stack([grid, grid[::-1]], 1)
    with forced(under):
        ours = evaluate(c, path, points).loss
    rows = path.coefficients(path.points(points))
    single = [blended(anchors_of(path), row, torch.float32) for row in rows]
    assert_as_exact_as_torch(
        ours,
        reference.curve_losses(c.model, states_of(path, points), c.batches, c.criterion),
        losses_in(torch.float32, c.model, single, c.batches, c.criterion),
    )


@under_both(*MODELS, "gpt2")
def test_a_surface_equals_the_plain_loop(name: str, under: str) -> None:
    c, anchors = case(name), three(name)
    plane = mli_fast.Plane(*anchors)
    with forced(under):
        result = surface(c, plane, 3, [-0.5, 2.0], precision="fp64", metrics=())
    assert result.dims == ("x", "y")
    np.testing.assert_array_equal(result["x"], plane.along("x", 3))
    expected = reference.plane_losses(c.model, anchors, result["x"], result["y"], c.batches, c.criterion)
    np.testing.assert_allclose(result.loss, expected, rtol=1e-10)


def test_a_surface_of_random_directions_equals_the_plain_loop(engine: str) -> None:
    c, path = case("cnn-bn"), mli_fast.random_directions(bend("cnn-bn"), seed=5)
    result = surface(c, path, 3, 2, precision="fp64", metrics=())
    points = [[x, y] for x in result["x"] for y in result["y"]]
    expected = reference.curve_losses(c.model, states_of(path, points), c.batches).reshape(3, 2)
    np.testing.assert_allclose(result.loss, expected, rtol=1e-10)
    np.testing.assert_array_equal(result["x"], [-1, 0, 1])


def test_a_surface_is_evaluate_on_its_grid(engine: str) -> None:
    """Every variable, in the shape of the grid, class-wise ones included; marks say where the anchors lie."""
    c, plane = case("cnn-bn"), mli_fast.Plane(*three("cnn-bn"))
    x, y = [2.0, -1.0, 0.5], [0.0, 3.0]
    folded, flat = surface(c, plane, x, y), evaluate(c, plane, [[a, b] for a in x for b in y])
    assert flat.dims == ("point",)
    assert flat.axes == ("x", "y")
    for name in PER_POINT:
        ours = np.asarray(folded[name])
        assert ours.shape[:2] == (3, 2)
        assert ours.reshape(6, *ours.shape[2:]).tobytes() == np.asarray(flat[name]).tobytes(), name
    assert folded["class"].tolist() == [0, 1, 2, 3]
    assert folded.count == flat.count == 13
    for result in (folded, flat):
        assert result.provenance["path"] == "plane"
        labels, places = zip(*result.provenance["marks"], strict=True)
        assert labels == ("theta_0", "theta_1", "theta_2")
        np.testing.assert_allclose(places, [place for _, place in plane.marks])


def test_a_surface_of_two_tasks_has_their_axes() -> None:
    c = case("mlp")
    path = mli_fast.TaskVectors(*three("mlp"), separate=True)
    result = surface(c, path, 3, [0.0, 0.4], precision="fp64", metrics=())
    assert result.loss.shape == (3, 2)
    points = [[x, y] for x in (0.0, 0.5, 1.0) for y in (0.0, 0.4)]
    expected = reference.curve_losses(c.model, states_of(path, points), c.batches).reshape(3, 2)
    np.testing.assert_allclose(result.loss, expected, rtol=1e-10)


def test_twenty_five_by_twenty_five_is_the_default() -> None:
    c = case("mlp")
    result = mli_fast.surface(c.model, mli_fast.Plane(*three("mlp")), c.batches, progress=False)
    assert result.loss.shape == (25, 25)
    assert np.isfinite(result.accuracy).all()


def test_a_line_evaluated_is_the_sweep(engine: str) -> None:
    c = case("cnn-bn")
    evaluated, swept = evaluate(c, mli_fast.Line(c.theta_0, c.theta_T), [0.0, 0.4, 1.0]), c.sweep([0.0, 0.4, 1.0])
    assert list(evaluated) == list(swept)
    for name in evaluated:
        assert np.asarray(evaluated[name]).tobytes() == np.asarray(swept[name]).tobytes(), name
    assert evaluated.provenance["path"] == swept.provenance["path"] == "line"


def test_a_pair_of_tensors_is_data_too(engine: str) -> None:
    c = case("mlp")
    pair = tuple(torch.cat(column) for column in zip(*c.batches, strict=True))
    path = mli_fast.Bezier(*three("mlp"))
    expected = evaluate(c, path, 4, precision="fp64").loss
    np.testing.assert_allclose(evaluate(c, path, 4, precision="fp64", loader=pair).loss, expected, rtol=1e-12)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_anchors_may_be_files(tmp_path: FilePath, suffix: str, engine: str) -> None:
    from safetensors.torch import save_file

    c, anchors, files = case("cnn-bn"), three("cnn-bn"), []
    for i, state in enumerate(anchors):
        files.append(tmp_path / f"{i}{suffix}")
        torch.save(state, files[-1]) if suffix == ".pt" else save_file(state, files[-1])
    assert_same_points(evaluate(c, mli_fast.Bezier(*files), 3), evaluate(c, mli_fast.Bezier(*anchors), 3), range(3))
    grid = [[0.0, 0.0], [1.0, 2.0]]
    assert_same_points(evaluate(c, mli_fast.Plane(*files), grid), evaluate(c, mli_fast.Plane(*anchors), grid), range(2))


# ------------------------------------------------------------------------------------------------------------ schedules


def scheduled(c: Case, path: Path, alphas: Sequence[float], own: dict[str, Callable[[float], float]]) -> np.ndarray:
    """The plain loop where the names in `own` are at s(alpha)."""
    states = states_of(path, alphas)
    for name, s in own.items():
        for state, moved in zip(states, states_of(path, [s(a) for a in alphas]), strict=True):
            state[name] = moved[name]
    return reference.curve_losses(c.model, states, c.batches, c.criterion)


@pytest.mark.parametrize("kind", ["line", "bezier", "polyline"])
def test_schedules_equal_the_plain_loop(engine: str, kind: str) -> None:
    c, path, alphas = case("mlp"), PATHS[kind][0]("mlp"), [0.0, 0.3, 0.8, 1.0]
    schedule = {"weight": mli_fast.schedules.power(2), "2": "start", "*.bias": np.sqrt, "last_bias": "end"}
    own: dict[str, Callable[[float], float]] = {
        "0.weight": lambda a: a**2,
        "4.weight": lambda a: a**2,
        "2.weight": lambda a: 0.0,
        "0.bias": np.sqrt,
        "2.bias": np.sqrt,
        "4.bias": lambda a: 1.0,
    }
    result = evaluate(c, path, alphas, schedule=schedule, precision="fp64")
    np.testing.assert_allclose(result.loss, scheduled(c, path, alphas, own), rtol=1e-10)
    assert result.provenance["schedule"] == {
        "weight": "power(2)", "2": "start", "*.bias": "sqrt", "last_bias": "end"
    }  # fmt: skip


@pytest.mark.parametrize("precision", [None, "fp64"])
def test_the_homogeneous_schedule_follows_the_depth_of_the_call(engine: str, precision: str | None) -> None:
    """The layers are registered last first: only the traced pass knows which is which."""
    c = case("mlp")
    rename = {"0": "first", "2": "middle", "4": "last"}
    ends = [{f"{rename[k[0]]}{k[1:]}": v for k, v in state.items()} for state in (c.theta_0, c.theta_T)]
    alphas, loader = [-0.2, 0.3, 1.0], Counting(c.batches)
    own = Case(Backwards(), *ends, c.batches)
    result = own.sweep(alphas, loader=loader, schedule={"bias": "homogeneous"}, precision=precision)
    assert (loader.iterations, loader.drawn, result.count) == (1, 3, 13)
    powers: dict[str, Callable[[float], float]] = {
        "first.bias": lambda a: a, "middle.bias": lambda a: a**2, "last.bias": lambda a: a**3
    }  # fmt: skip
    expected = scheduled(own, mli_fast.Line(*ends), alphas, powers)
    np.testing.assert_allclose(result.loss, expected, rtol=1e-10 if precision else 1e-5)


def test_the_last_bias_is_that_of_the_layer_called_last(engine: str) -> None:
    """The layer that is registered last has none."""

    class LastFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(11, 4), nn.Linear(6, 11, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.first(x)))

    model, alphas = LastFirst(), [0.0, 0.4]
    c = Case(model, *endpoints_of(lambda _: model), case("mlp").batches)
    result = c.sweep(alphas, schedule={"last_bias": "end"}, precision="fp64")
    expected = scheduled(c, mli_fast.Line(c.theta_0, c.theta_T), alphas, {"last.bias": lambda a: 1.0})
    np.testing.assert_allclose(result.loss, expected, rtol=1e-10)


def test_running_statistics_follow_the_schedule_of_their_norm(engine: str) -> None:
    c, alphas = case("cnn-bn"), [0.0, 0.3, 1.0]
    own = {f"1.{leaf}": (lambda a: a**2) for leaf in ("weight", "bias", "running_mean", "running_var")}
    own |= {f"5.{leaf}": (lambda a: a**2) for leaf in ("weight", "bias", "running_mean", "running_var")}
    result = c.sweep(alphas, schedule={"norm": mli_fast.schedules.power(2)}, precision="fp64")
    expected = scheduled(c, mli_fast.Line(c.theta_0, c.theta_T), alphas, own)
    np.testing.assert_allclose(result.loss, expected, rtol=1e-10)


def test_a_schedule_point_stands_alone(engine: str) -> None:
    c, alphas = case("cnn-bn"), [0.0, 0.2, 0.5, 0.8, 1.0]
    options = {"schedule": {"bias": "homogeneous", "norm": "end", "weight": mli_fast.schedules.power(3)}}
    whole = c.sweep(alphas, **options)
    for at in ([2], [4, 0, 3, 3]):
        assert_same_points(c.sweep([alphas[i] for i in at], **options), whole, at)
    for chunk in (1, 2, 4):
        assert_same_points(c.sweep(alphas, chunk=chunk, **options), whole, range(5))
    still = c.sweep(alphas, schedule={"*": "linear"})
    assert_same_points(still, c.sweep(alphas), range(5))


# -------------------------------------------------------------------------------------------- exact where anchors are


ANCHORED = ("mlp", "cnn-bn", "lstm")


@pytest.mark.parametrize(
    ("make", "places"),
    [
        pytest.param(mli_fast.Bezier, {0: 0.0, 2: 1.0}, id="bezier"),
        pytest.param(mli_fast.Polyline, {0: 0.0, 1: 0.5, 2: 1.0}, id="polyline"),
    ],
)
@under_both(*ANCHORED)
def test_the_anchors_of_a_curve_are_exact_and_others_may_be_nan(
    name: str, under: str, make: Any, places: dict[int, float]
) -> None:
    c, anchors = case(name), three(name)
    with forced(under):
        whole = evaluate(c, make(*anchors), [0.0, 0.2, 0.5, 0.7, 1.0])
        for i, alpha in places.items():
            alone = evaluate(c, make(*[anchors[i]] * 3), [alpha])
            assert_same_points(alone, whole, [[0.0, 0.2, 0.5, 0.7, 1.0].index(alpha)])
            others = [state if j == i else spoilt(state) for j, state in enumerate(anchors)]
            with pytest.warns(mli_fast.evaluation.NonFiniteWarning):
                found = evaluate(c, make(*others), [0.3, alpha, 0.8])
            assert np.isnan(found.loss).tolist() == [True, False, True]
            for variable in ("loss", "accuracy", "class_loss"):
                if variable in alone:
                    assert found[variable][1].tobytes() == alone[variable][0].tobytes(), variable


@under_both("mlp", "cnn-bn", "lstm")
def test_a_task_of_scale_zero_is_left_out(name: str, under: str) -> None:
    c, (base, first, second) = case(name), three(name)
    with forced(under):
        clean = evaluate(
            c, mli_fast.TaskVectors(base, first, second, separate=True), [[0, 0], [1, 0], [0, 1], [0.3, 0]]
        )
        path = mli_fast.TaskVectors(base, first, spoilt(second), separate=True)
        with pytest.warns(mli_fast.evaluation.NonFiniteWarning, match="task_2"):
            found = evaluate(c, path, [[0, 0], [1, 0], [0, 1], [0.3, 0]])
        starts = evaluate(c, mli_fast.Line(base, base), [0.0]), evaluate(c, mli_fast.Line(first, first), [0.0])
    assert np.isnan(found.loss).tolist() == [False, False, True, False]
    assert found.loss[[0, 1, 3]].tobytes() == clean.loss[[0, 1, 3]].tobytes()
    assert [clean.loss[0], clean.loss[1]] == [starts[0].loss[0], starts[1].loss[0]]


def test_the_middle_of_random_directions_is_the_network_itself(engine: str) -> None:
    c, theta = case("cnn-bn"), bend("cnn-bn")
    middle = evaluate(c, mli_fast.random_directions(theta), [[0.3, 0.1], [0.0, 0.0]])
    assert_same_points(evaluate(c, mli_fast.Line(theta, theta), [0.0]), middle, [1])


# ------------------------------------------------------------------------------------------------- a point stands alone


@pytest.mark.parametrize("kind", ["bezier", "plane", "directions-3"])
@under_both("mlp", "cnn-bn", "lstm")
def test_a_point_of_a_path_stands_alone(name: str, under: str, kind: str) -> None:
    c, path = case(name), PATHS[kind][0](name)
    grid = np.array([0.0, 0.13, 0.5, 0.77, 1.0, 1.2])
    points = grid if len(path.axes) == 1 else np.stack([np.roll(grid, k) for k in range(len(path.axes))], 1)
    with forced(under):
        whole = evaluate(c, path, points)
        for at in ([3], [5, 4, 3, 2, 1, 0], [2, 2, 5, 0]):
            assert_same_points(evaluate(c, path, points[at]), whole, at)
        for chunk in (1, 4):
            assert_same_points(evaluate(c, path, points, chunk=chunk), whole, range(6))


def test_a_surface_is_the_same_whichever_coordinates_are_asked_for(engine: str) -> None:
    c, plane = case("cnn-bn"), mli_fast.Plane(*three("cnn-bn"))
    whole = surface(c, plane, [0.0, 1.0, 2.0], [-1.0, 0.5])
    part = surface(c, plane, [2.0, 0.0], [0.5], chunk=1)
    for name in ("loss", "loss_stderr", "accuracy", "class_loss"):
        assert np.asarray(part[name])[:, 0].tobytes() == np.asarray(whole[name])[[2, 0], 1].tobytes(), name


# ----------------------------------------------------------------------------------- the caller's things are left alone


def calls_of(c: Case, name: str) -> dict[str, Callable[..., Any]]:
    """The verbs of this file on a case."""
    start, middle, end = c.theta_0, bend(name), c.theta_T
    return {
        "evaluate": lambda **o: evaluate(c, mli_fast.Bezier(start, middle, end), 3, **o),
        "surface": lambda **o: surface(c, mli_fast.Plane(start, middle, end), 2, 2, **o),
        "homogeneous": lambda **o: c.sweep([0.0, 0.4], schedule={"bias": "homogeneous"}, **o),
    }


VERBS = ("evaluate", "surface", "homogeneous")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", ["cnn-bn", "writes-into-its-input", "gpt2"])
def test_the_callers_things_are_as_they_were(name: str, verb: str, engine: str) -> None:
    c = lived_in(name)
    call = calls_of(c, name)[verb]
    before = snapshot(c)
    call(chunk=2)
    assert_unchanged(before, snapshot(c))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("where", ["loader", "first-batch", "ctrl-c", "ctrl-c-at-once"])
def test_they_are_after_an_exception_too(verb: str, where: str, engine: str) -> None:
    c = lived_in("mlp-batch-norm")
    error = KeyboardInterrupt() if where.startswith("ctrl-c") else Mishap("no more")
    loader = raises_at_once(error) if where in ("first-batch", "ctrl-c-at-once") else stops_after(c.batches, error)
    call = calls_of(c, "mlp-batch-norm")[verb]
    before = snapshot(c)
    with pytest.raises(type(error)):
        call(loader=loader)
    assert_unchanged(before, snapshot(c))


def raises_at_once(error: BaseException) -> Iterator[Any]:
    """A loader without a first batch."""
    raise error
    yield


def test_they_are_after_an_exception_in_the_traced_pass(engine: str) -> None:
    model = RaisesOnShortBatch()
    batches = case("mlp").batches[::-1]  # the short one first, which is traced
    c = Case(model, *endpoints_of(lambda _: model), batches)
    before = snapshot(c)
    with pytest.raises(Mishap):
        c.sweep(3, schedule={"bias": "homogeneous"})
    assert_unchanged(before, snapshot(c))


class Writes(nn.Module):
    """Writes into a buffer of numbers and into one of integers on every call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)
        self.register_buffer("mean", torch.ones(8))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.mean.mul_(0.5)
        return self.last(torch.relu(self.first(x) + self.mean))


@pytest.mark.parametrize("options", [{}, {"schedule": {"bias": "homogeneous"}}], ids=["plain", "traced"])
def test_a_model_that_writes_into_its_buffers_does_not_reach_the_checkpoints(options: dict[str, Any]) -> None:
    model = Writes()
    states = [{k: v.clone() for k, v in model.state_dict().items()} for _ in range(2)]
    held = [{k: bits(v) for k, v in state.items()} for state in states]
    c = Case(model, *states, case("mlp").batches)
    with forced("plain"):
        c.sweep(3, state="per-batch", **options)
    assert [{k: bits(v) for k, v in state.items()} for state in states] == held


def test_the_traced_pass_does_not_change_the_values(engine: str) -> None:
    """A model that writes into its input, given a schedule that is linear for all that there is."""
    c = case("writes-into-its-input")
    options = {"schedule": {"first.bias": "homogeneous"}}  # the first layer's bias moves as alpha
    assert_same_points(c.sweep(3, **options), case("writes-into-its-input").sweep(3), range(3))


# --------------------------------------------------------------------------------------------------- one pass over data


@pytest.mark.parametrize("verb", VERBS)
def test_the_loader_is_iterated_once(engine: str, verb: str) -> None:
    c = case("cnn-bn")
    loader = Counting(c.batches)
    result = calls_of(c, "cnn-bn")[verb](loader=loader, chunk=2)
    assert (loader.iterations, loader.drawn, result.count) == (1, 3, 13)


@pytest.mark.parametrize("verb", VERBS)
def test_a_generator_will_do(engine: str, verb: str) -> None:
    c = case("cnn-bn")
    call = calls_of(c, "cnn-bn")[verb]
    assert call(loader=(batch for batch in c.batches)).loss.tobytes() == call().loss.tobytes()


# --------------------------------------------------------------------------------------------------------------- errors


def test_collinear_networks_make_no_plane() -> None:
    start, end = three("mlp")[::2]
    middle = {key: (start[key] + value) / 2 for key, value in end.items()}
    with pytest.raises(ValueError, match=r"theta_2.*line"):
        mli_fast.Plane(start, end, middle)


def on_plane(c: Case, points: Any, **options: Any) -> Any:
    """`evaluate` on a plane."""
    return evaluate(c, mli_fast.Plane(*three("mlp")), points, **options)


def over_plane(c: Case, x: Any, y: Any, **options: Any) -> Any:
    """`surface` over the same."""
    return surface(c, mli_fast.Plane(*three("mlp")), x, y, **options)


def on_line(c: Case, points: Any, **options: Any) -> Any:
    """`evaluate` on a line."""
    return evaluate(c, mli_fast.Line(c.theta_0, c.theta_T), points, **options)


def first_output(outputs: Tensor, targets: Tensor) -> Tensor:
    """A metric."""
    return outputs[:, 0]


BAD: dict[str, tuple[Callable[[Case], Any], type[Exception], str]] = {
    "no-path": (lambda c: evaluate(c, "line", 3), TypeError, "path.*str"),
    "pair-for-a-path": (lambda c: evaluate(c, (c.theta_0, c.theta_T), 3), TypeError, "path.*tuple"),
    "surface-of-no-path": (lambda c: surface(c, c.theta_0, 3, 3), TypeError, "path.*dict"),
    "surface-of-a-curve": (
        lambda c: surface(c, mli_fast.Bezier(*three("mlp")), 3, 3),
        ValueError,
        "two axes.*bezier.*1",
    ),
    "surface-of-three": (
        lambda c: surface(c, mli_fast.random_directions(c.theta_0, 3), 3, 3),
        ValueError,
        "two axes.*random_directions.*3",
    ),
    "count-on-a-plane": (lambda c: on_plane(c, 25), TypeError, "points.*count"),
    "points-1-d": (lambda c: on_plane(c, [0.0, 1.0]), ValueError, r"points.*\(2,\)"),
    "points-3-columns": (lambda c: on_plane(c, [[0.0] * 3]), ValueError, r"points.*\(1, 3\)"),
    "points-nan": (lambda c: on_plane(c, [[0.0, np.nan]]), ValueError, r"points\[0\].*nan"),
    "points-none": (lambda c: on_plane(c, np.empty((0, 2))), ValueError, "points is empty"),
    "alphas-2-d": (lambda c: evaluate(c, mli_fast.Bezier(*three("mlp")), [[0.0]]), ValueError, r"alphas.*\(1, 1\)"),
    "x-none": (lambda c: over_plane(c, [], 3), ValueError, "x is empty"),
    "y-0": (lambda c: over_plane(c, 3, 0), ValueError, "y=0"),
    "x-text": (lambda c: over_plane(c, "many", 3), TypeError, "x.*many"),
    "adaptive": (lambda c: on_line(c, "adaptive"), TypeError, "alphas.*adaptive"),
    "schedule-on-a-plane": (lambda c: over_plane(c, 3, 3, schedule={"bias": "end"}), ValueError, "schedule.*plane"),
    "metric": (lambda c: over_plane(c, 2, 2, metrics=("acuracy",)), ValueError, "acuracy.*accuracy"),
    "functional": (lambda c: over_plane(c, 2, 2, metrics=("gauss_length",)), ValueError, "gauss_length.*line"),
    "slope": (lambda c: on_plane(c, [[0.0, 1.0]], metrics=("loss_slope",)), ValueError, "loss_slope.*line"),
    "metric-named-x": (lambda c: over_plane(c, 2, 2, metrics={"x": first_output}), ValueError, "'x'.*taken"),
    "metric-named-as-a-variable": (
        lambda c: on_line(c, 2, metrics={"loss_step": first_output}),
        ValueError,
        "'loss_step'.*taken",
    ),
    "unknown-option": (lambda c: on_line(c, 3, colour="red"), TypeError, "colour"),
    "tol": (lambda c: on_line(c, 3, tol=0.1), TypeError, "tol"),
    "option-value": (lambda c: on_line(c, 3, chunk=0), ValueError, "chunk=0"),
    "anchor-keys": (
        lambda c: evaluate(c, mli_fast.Bezier(c.theta_0, {"a": torch.ones(1)}, c.theta_T), 3),
        ValueError,
        r"bend.*0\.weight",
    ),
    "anchor-kind": (lambda c: evaluate(c, mli_fast.Bezier(c.theta_0, 17, c.theta_T), 3), TypeError, "bend"),
    "schedule-matches-nothing": (lambda c: on_line(c, 3, schedule={"head*": "end"}), ValueError, r"head\*.*nothing"),
    "schedule-unknown": (lambda c: on_line(c, 3, schedule={"bias": "square"}), ValueError, "bias.*square"),
    "schedule-last": (lambda c: on_line(c, 3, schedule={"last_bias": "no"}), ValueError, "last_bias.*'no' is not one"),
    "schedule-no-mapping": (lambda c: on_line(c, 3, schedule="homogeneous"), TypeError, "schedule.*mapping"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_call_is_refused_by_name_before_the_data_is_read(kind: str) -> None:
    (call, error, told), mlp = BAD[kind], case("mlp")
    loader = Counting(mlp.batches)
    c = Case(mlp.model, mlp.theta_0, mlp.theta_T, loader)  # type: ignore[arg-type]
    with pytest.raises(error, match=f"(?s){told}"):
        call(c)
    assert loader.iterations == 0


@pytest.mark.parametrize("options", [{}, {"schedule": {"bias": "homogeneous"}}], ids=["plain", "traced"])
def test_an_empty_loader_is_an_error(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"loader.*empty"):
        evaluate(case("mlp"), mli_fast.Bezier(*three("mlp")), 3, loader=iter(()), **options)


@pytest.mark.parametrize("verb", ["evaluate", "traced"])
def test_an_exception_names_the_batch_and_the_points(verb: str) -> None:
    c = case("mlp")
    options = {"schedule": {"bias": "homogeneous"}} if verb == "traced" else {}
    with pytest.raises(Mishap) as caught:
        evaluate(c, mli_fast.Bezier(*three("mlp")), 3, loader=raises_at_once(Mishap("no")), **options)
    assert any("batch 0" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("verb", ["evaluate", "homogeneous"])
def test_the_warning_of_nan_points_to_the_caller(verb: str) -> None:
    c = case("mlp")
    call = calls_of(Case(c.model, c.theta_0, spoilt(c.theta_T), c.batches), "mlp")[verb]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert [FilePath(w.filename).parent.name for w in caught] == ["tests"]


def test_provenance_is_the_same_however_often_it_is_asked() -> None:
    c = case("mlp")
    with Evaluation(c.model, c.batches, Options()) as evaluation:
        evaluation.run([Job(mli_fast.Line(c.theta_0, c.theta_T), np.array([0.0, 0.5]))])
        made = evaluation.provenance()
        made.pop("anchors")
        assert evaluation.provenance() == made | {"anchors": [["dict", "dict"]]}
