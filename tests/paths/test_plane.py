"""The plane's frame, its coordinates and projections, and networks that span none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import mli_fast
from mli_fast.paths import Plane, random_directions
from tests.paths.cases import at, combined, flat, network, numbers

NETWORKS = tuple(network(seed) for seed in range(4))


def unit(plane: Plane, x: float, y: float) -> np.ndarray:
    return at(plane, (x, y)) - at(plane, (0.0, 0.0))


def test_the_frame_is_orthonormal_and_that_of_gram_schmidt() -> None:
    plane = Plane(*NETWORKS[:3])
    u, v = unit(plane, 1.0, 0.0), unit(plane, 0.0, 1.0)
    np.testing.assert_allclose([u @ u, u @ v, v @ v], [1.0, 0.0, 1.0], rtol=0, atol=1e-13)
    first, second = (flat(state) - flat(NETWORKS[0]) for state in NETWORKS[1:3])
    np.testing.assert_allclose(u, first / np.linalg.norm(first), rtol=0, atol=1e-13)
    assert v @ second > 0
    marks = dict(plane.marks)
    np.testing.assert_allclose(marks["theta_1"], [np.linalg.norm(first), 0.0], rtol=1e-14)
    np.testing.assert_allclose(marks["theta_2"], [u @ second, v @ second], rtol=1e-12)


def test_anchors_are_one_hot_at_their_marks() -> None:
    for seeds in ((0, 1, 2), (2, 0, 3), (3, 1, 0)):
        plane = Plane(*(NETWORKS[seed] for seed in seeds))
        np.testing.assert_array_equal(plane.coefficients([place for _, place in plane.marks]), np.eye(3))


@given(st.tuples(numbers, numbers), st.floats(-4, 4))
def test_projection_round_trips(point: tuple[float, float], off: float) -> None:
    plane = Plane(*NETWORKS[:3])
    row = plane.coefficients([point])[0]
    theta = combined(dict(enumerate(row.tolist())), dict(enumerate(NETWORKS)))
    np.testing.assert_allclose(plane.project(theta), [*point, 0.0], rtol=0, atol=1e-12)

    u, v, d = unit(plane, 1.0, 0.0), unit(plane, 0.0, 1.0), flat(NETWORKS[3]) - flat(NETWORKS[0])
    n = d - (d @ u) * u - (d @ v) * v
    n *= off / np.linalg.norm(n)
    sizes = [theta[name].numel() for name in ("conv.weight", "conv.bias", "norm.weight", "head.weight")]
    for name, part in zip(
        ("conv.weight", "conv.bias", "norm.weight", "head.weight"), np.split(n, np.cumsum(sizes)[:-1]), strict=True
    ):
        theta[name] = theta[name] + torch.from_numpy(part).view(theta[name].shape)
    np.testing.assert_allclose(plane.project(theta), [*point, abs(off)], rtol=0, atol=1e-12)


def test_projection_keeps_its_digits_on_a_flat_triangle() -> None:
    slightly = combined({0: 0.3, 1: 0.7 - 1e-6, 2: 1e-6}, dict(enumerate(NETWORKS)))
    plane = Plane(NETWORKS[0], NETWORKS[1], slightly)
    theta = combined(
        dict(enumerate(plane.coefficients([(0.5, 2.0)])[0].tolist())), {0: NETWORKS[0], 1: NETWORKS[1], 2: slightly}
    )
    np.testing.assert_allclose(plane.project(theta), [0.5, 2.0, 0.0], rtol=0, atol=1e-8)
    u, v = unit(plane, 1.0, 0.0), unit(plane, 0.0, 1.0)
    np.testing.assert_allclose([u @ u, u @ v, v @ v], [1.0, 0.0, 1.0], rtol=0, atol=1e-8)


def test_the_span_is_the_anchors_and_a_fifth_on_either_side() -> None:
    def net(*values: float) -> dict[str, torch.Tensor]:
        return {"weight": torch.tensor(values, dtype=torch.float32)}

    plane = Plane(net(0, 0), net(4, 0), net(-1, 5))
    assert plane.span("x") == (-2.0, 5.0)
    assert plane.span("y") == (-1.0, 6.0)


def test_running_statistics_and_counters_have_no_part_in_distances() -> None:
    moved = [dict(state) for state in NETWORKS]
    for k, state in enumerate(moved):
        state["norm.running_mean"] = torch.full((4,), 100.0 * k)
        state["norm.running_var"] = torch.full((4,), torch.nan)
        state["norm.num_batches_tracked"] = torch.tensor(1000 * k)
    assert Plane(*moved[:3]).marks == Plane(*NETWORKS[:3]).marks
    assert Plane(*moved[:3]).project(moved[3]) == Plane(*NETWORKS[:3]).project(NETWORKS[3])


def test_tied_values_count_once() -> None:
    def net(seed: int) -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            nn.init.normal_(parameter, generator=generator)
        model[1].weight = model[0].weight
        return model

    nets = [net(seed) for seed in range(3)]
    parts = [torch.cat([p.detach().double().flatten() for p in model.parameters()]) for model in nets]
    assert Plane(*nets).marks[1][1][0] == pytest.approx(float((parts[1] - parts[0]).norm()), rel=1e-12)


def test_anchors_of_files_of_modules_and_with_prefixes(tmp_path: Path) -> None:
    file = tmp_path / "theta.pt"
    torch.save({"epoch": 3, "state_dict": NETWORKS[0]}, file)
    wrapped = {f"module.{name}": value for name, value in NETWORKS[2].items()}
    plane = Plane(file, NETWORKS[1], wrapped)
    assert plane.marks == Plane(*NETWORKS[:3]).marks
    assert plane.anchors == (file, NETWORKS[1], wrapped)
    assert plane.project(file) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("along", [0.5, 0.3, -1.7, 40.0])
def test_collinear_networks_span_no_plane(dtype: torch.dtype, along: float) -> None:
    ends = network(0, dtype), network(1, dtype)
    exact = combined({0: 1 - along, 1: along}, {k: {n: v.double() for n, v in s.items()} for k, s in enumerate(ends)})
    third = {name: value.to(dtype) for name, value in exact.items()}
    with pytest.raises(ValueError, match=r"lie on one line: theta_2 is \S+ off the line .* rounding to \w+ alone") as e:
        Plane(*ends, third)
    assert str(dtype).removeprefix("torch.") in str(e.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_close_networks_of_low_precision_still_span_a_plane(dtype: torch.dtype) -> None:
    """Fine-tuning in bfloat16: a few values move by one step, others in each network."""
    start = network(0, dtype)
    step = 1 + 2 * torch.finfo(dtype).eps
    first = {**start, "head.weight": start["head.weight"] * step}
    second = {**start, "conv.weight": start["conv.weight"] * step}
    assert Plane(start, first, second).marks[2][1][1] > 0


@pytest.mark.parametrize(
    ("seeds", "names"),
    [((0, 0, 1), "theta_0 and theta_1"), ((0, 1, 0), "theta_0 and theta_2"), ((0, 1, 1), "theta_1 and theta_2")],
)
def test_equal_networks_span_no_plane(seeds: tuple[int, ...], names: str) -> None:
    with pytest.raises(ValueError, match=f"^{names} are equal in every parameter: a plane needs three networks"):
        Plane(*(network(seed) for seed in seeds))


def test_networks_that_do_not_fit_each_other() -> None:
    lacking = {name: value for name, value in NETWORKS[2].items() if name != "conv.bias"}
    with pytest.raises(ValueError, match=r"theta_2, compared with theta_0 .* missing: 'conv.bias'"):
        Plane(*NETWORKS[:2], lacking)
    with pytest.raises(ValueError, match=r"theta_1, .*'conv.bias' has shape \(3,\)"):
        Plane(NETWORKS[0], {**NETWORKS[1], "conv.bias": torch.zeros(3)}, NETWORKS[2])
    with pytest.raises(ValueError, match=r"theta, compared with theta_0 .* missing"):
        Plane(*NETWORKS[:3]).project(lacking)
    with pytest.raises(TypeError, match="theta_1: a int is not a checkpoint"):
        Plane(NETWORKS[0], 3, NETWORKS[2])  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_networks_with_holes_span_no_plane(value: float) -> None:
    broken = {**NETWORKS[1], "conv.bias": torch.full((4,), value)}
    with pytest.raises(ValueError, match=r"^theta_1: 'conv.bias' holds NaN or Inf; a plane needs finite networks$"):
        Plane(NETWORKS[0], broken, NETWORKS[2])


@pytest.mark.parametrize("kind", ["file", "folder", "module"])
def test_networks_that_change_after_the_path_was_made_are_refused(kind: str, tmp_path: Path) -> None:
    """Its coordinates would be of other values than its points."""
    nets = [nn.Linear(3, 2) for _ in range(3)]
    data = torch.randn(5, 3), torch.arange(5) % 2

    def write(at: int) -> Path:
        (tmp_path / str(at)).mkdir(exist_ok=True)
        torch.save(nets[at].state_dict(), tmp_path / str(at) / "w.pt")
        return tmp_path / str(at) / ("w.pt" if kind == "file" else "")

    sources = nets if kind == "module" else [write(at) for at in range(3)]
    plane, around = Plane(*sources), random_directions(sources[1])
    for path in (plane, around):
        assert mli_fast.surface(nets[0], path, data, 3, 3).loss.shape == (3, 3)
    with torch.no_grad():
        nets[1].weight.add_(1)
    write(1)
    for path, name in ((plane, "theta_1"), (around, "theta")):
        with pytest.raises(ValueError, match=f"^{name} was changed after this {path.kind} was made"):
            mli_fast.surface(nets[0], path, data, 3, 3)
