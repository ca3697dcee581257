"""The judge judged: against torch's own modules, closed forms and finite differences."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from tests import science_reference as reference
from tests.models import ARCHITECTURES, endpoints
from tests.reference import plain_loop

ALPHAS = np.array([-0.2, 0.0, 0.3, 1.0])


class Product(nn.Module):
    """The product of two weights and of the input: with `squared`, Goodfellow's (1 - w1 w2)^2."""

    def __init__(self, first: float, second: float) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.tensor([float(value)])) for value in (first, second))

    def forward(self, x: Tensor) -> Tensor:  # [N, 1] -> [N, 1]
        return x * self.first * self.second


ONES = [(torch.ones(3, 1), torch.ones(3, 1))]


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().sum(1)


def product(first: float, second: float) -> dict[str, Tensor]:
    return Product(first, second).state_dict()


@pytest.fixture
def normed() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Batch norms of two kinds with dropout between them, ragged batches of data that are not normal."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers = [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 5)]
        layers += [nn.BatchNorm1d(5, affine=False), nn.Tanh(), nn.Linear(5, 4)]
        X, y = 2 * torch.randn(17, 2, 6, 6) + 1, torch.arange(17) % 4
        return nn.Sequential(*layers), list(zip(X.split(7), y.split(7), strict=True))


def whole(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    X, y = zip(*batches, strict=True)
    return torch.cat(X), torch.cat(y)


def first_inputs(model: nn.Module, batches: Any) -> Tensor:
    """What reaches the first batch norm of `normed`, in fp64."""
    return reference.replica(model)[0](whole(batches)[0].double()).detach()


# ------------------------------------------------------------------------------------------------------------- points


@pytest.mark.parametrize("name", ["mlp", "resnet", "gpt2", "two-named-inputs", "integer-buffer", "segmentation"])
def test_curve_is_the_plain_loops(name: str) -> None:
    found = ARCHITECTURES[name]
    model, batches, (theta_0, theta_T) = found.model(), found.data(), endpoints(name)
    expected = plain_loop(model, theta_0, theta_T, batches, ALPHAS, found.criterion).loss
    losses = reference.curve_losses(model, reference.line(theta_0, theta_T, ALPHAS), batches, found.criterion)
    assert losses == pytest.approx(expected, rel=1e-12)


def test_a_coefficient_of_zero_leaves_its_anchor_out() -> None:
    point = reference.combine((product(1, 2), product(np.nan, np.inf), product(3, 5)), (0.5, 0, 2))
    assert point["first"].tolist() == [6.5]
    assert point["second"].tolist() == [11.0]


def test_plane_in_its_own_coordinates() -> None:
    """Anchors (0, 0), (2, 0), (1, 3): the frame is that of the two weights themselves."""
    anchors = product(0, 0), product(2, 0), product(1, 3)
    x, y = [-1.0, 0.0, 2.0], [0.5, 3.0]
    expected = [[(1 - a * b) ** 2 for b in y] for a in x]
    assert reference.plane_losses(Product(0, 0), anchors, x, y, ONES, squared) == pytest.approx(np.array(expected))


def test_plane_holds_its_anchors_and_leaves_running_statistics_out_of_distances() -> None:
    """At the coordinates of an anchor the loss is its own; statistics that are moved far move no coordinate."""
    found = ARCHITECTURES["resnet"]
    anchors = [*endpoints("resnet"), found.model(7).state_dict()]
    u, v = reference.frame(*anchors)[1:]
    assert [float(u @ u), float(v @ v), float(u @ v)] == pytest.approx([1, 1, 0], abs=1e-12)
    away = reference._flat(anchors[2]) - reference._flat(anchors[0])
    distance = float((reference._flat(anchors[1]) - reference._flat(anchors[0])).norm())
    at = [(0.0, 0.0), (distance, 0.0), (float(away @ u), float(away @ v))]
    losses = [reference.plane_losses(found.model(), anchors, [x], [y], found.data())[0, 0] for x, y in at]
    assert losses == pytest.approx(reference.curve_losses(found.model(), anchors, found.data()), rel=1e-9)
    far = [{k: v + 100 if k.endswith("running_mean") else v for k, v in a.items()} for a in anchors[1:]]
    assert torch.equal(reference.frame(anchors[0], *far)[1], u)


@pytest.mark.parametrize(
    ("others", "cumulative", "expected"),
    [
        ("end", None, lambda a: [(2 + a) * 5, 3 * (4 + a)]),
        ("start", None, lambda a: [(2 + a) * 4, 2 * (4 + a)]),
        ("end", "bottom", lambda a: [(2 + a) * 5, (2 + a) * (4 + a)]),
        ("start", "top", lambda a: [(2 + a) * (4 + a), 2 * (4 + a)]),
    ],
)
def test_layerwise_by_hand(others: str, cumulative: str | None, expected: Any) -> None:
    groups = {"a": ["first"], "b": ["second"]}
    found = reference.layerwise_losses(
        Product(0, 0), product(2, 4), product(3, 5), groups, [0.0, 0.25, 1.0], ONES, squared,
        others=others, cumulative=cumulative,
    )  # fmt: skip
    products = np.array([expected(a) for a in (0.0, 0.25, 1.0)]).T
    assert found == pytest.approx((1 - products) ** 2, rel=1e-12)


# --------------------------------------------------------------------------------------------------------- batch norm


def test_recalibrated_first_layer_is_update_bn_on_one_batch(normed: Any) -> None:
    model, batches = normed
    ours, theirs = reference.replica(model), reference.replica(model)
    X, y = whole(batches)
    reference.recalibrate(ours, [(X, y)])
    update_bn([X.double()], theirs[:4])  # the layers up to the first batch norm
    for name in ("running_mean", "running_var"):
        assert getattr(ours[1], name).numpy() == pytest.approx(getattr(theirs[1], name).numpy(), rel=1e-12)


def test_recalibrated_losses_are_update_bns_up_to_the_sample_variance(normed: Any) -> None:
    """In one batch the two differ in n / (n - 1) alone: training normalises by the biased variance of 272 values."""
    model, batches = normed
    model[3].p = 0.0  # update_bn runs everything in training mode
    X, y = whole(batches)
    other = reference.replica(model)
    update_bn([X.double()], other)
    expected = reference.mean_loss(other.eval(), batches)
    (loss,) = reference.recalibrated_losses(model, [model.state_dict()], [(X, y)], batches)
    untouched = reference.curve_losses(model, [model.state_dict()], batches)[0]
    assert abs(loss - expected) < 0.01 * abs(loss - untouched)


def test_recalibrated_statistics_are_those_of_each_layers_inputs(normed: Any) -> None:
    """Under the network as recalibrated, pooled over all batches, whatever they are cut into."""
    model, batches = normed
    network = reference.replica(model)
    reference.recalibrate(network, batches)
    X = whole(batches)[0].double()
    for index in (1, 6):
        given = network[:index](X).detach().transpose(0, 1).flatten(1)
        assert network[index].running_mean.numpy() == pytest.approx(given.mean(1).numpy(), rel=1e-12)
        assert network[index].running_var.numpy() == pytest.approx(given.var(1).numpy(), rel=1e-12)


def test_batch_norms_come_in_the_order_they_run() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
            self.none = nn.BatchNorm1d(2, track_running_stats=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.none(self.first(x)))

    network = reference.replica(Backwards())
    assert reference.batch_norms(network, (torch.randn(5, 2), None)) == [network.first, network.last]


def test_ema_is_the_modules_own_momentum(normed: Any) -> None:
    """From reset statistics, batch after batch; what comes after uses what is left in the end."""
    model, batches = normed
    model[1].momentum = 0.3
    model[1].running_mean.fill_(5.0)
    mean = torch.zeros(3, dtype=torch.float64)
    for given in first_inputs(model, batches).split(7):
        mean = 0.7 * mean + 0.3 * given.mean((0, 2, 3))
    seen: list[Tensor] = []
    model[1].register_forward_hook(lambda norm, *_: seen.append(norm.running_mean.clone()))
    reference.recalibrated_ema_losses(model, [model.state_dict()], batches, batches)
    assert len(seen) == 2 * len(batches)
    assert all(after.numpy() == pytest.approx(mean.numpy(), rel=1e-12) for after in seen[len(batches) - 1 :])


def test_dropout_is_off_while_batch_norms_train(normed: Any) -> None:
    model, batches = normed
    without = copy.deepcopy(model)
    without[3].p = 0.0
    random_state = torch.random.get_rng_state()
    for policy in (partial(reference.recalibrated_ema_losses, calibration=batches), reference.batch_statistics_losses):
        with_dropout, plain = (policy(m, [m.state_dict()], batches=batches) for m in (model, without))
        assert with_dropout == plain
    assert torch.equal(torch.random.get_rng_state(), random_state)


def test_batch_statistics_are_each_batchs_own(normed: Any) -> None:
    model, batches = normed
    body = reference.replica(model)
    total = 0.0
    with torch.no_grad():
        for x, y in batches:
            h = body[0](x.double())
            h = F.batch_norm(h, None, None, body[1].weight, body[1].bias, training=True).relu()
            h = F.batch_norm(body[5](h.flatten(1)), None, None, training=True).tanh()
            total += float(F.cross_entropy(body[8](h), y, reduction="sum"))
    (loss,) = reference.batch_statistics_losses(model, [model.state_dict()], batches)
    assert loss == pytest.approx(total / 17, rel=1e-12)


def test_a_policy_leaves_the_model_and_the_states_alone(normed: Any) -> None:
    model, batches = normed
    before, state = copy.deepcopy(model.state_dict()), model.state_dict()
    reference.recalibrated_losses(model, [state, state], batches, batches)
    reference.recalibrated_ema_losses(model, [state], batches, batches)
    reference.batch_statistics_losses(model, [state], batches)
    assert all(torch.equal(before[key], state[key]) for key in before)
    assert model.training


# -------------------------------------------------------------------------------------------------------- functionals


def test_slope_of_a_parabola_squared() -> None:
    """Along (alpha, alpha) the loss is (1 - alpha^2)^2, its slope -4 alpha (1 - alpha^2)."""
    ends = product(0, 0), product(1, 1)
    alphas = np.linspace(-0.5, 1.5, 5)
    velocity = [reference.difference(*ends)] * 5
    slopes = reference.loss_slopes(Product(0, 0), reference.line(*ends, alphas), velocity, ONES, squared)
    assert slopes == pytest.approx(-4 * alphas * (1 - alphas**2), abs=1e-12)


@pytest.mark.parametrize("name", ["cnn-bn", "gpt2", "tied-autoencoder", "segmentation", "vit"])
def test_slopes_are_those_of_the_curve(name: str) -> None:
    """Against central differences, whose error is of the order of step^2."""
    found, (theta_0, theta_T), step = ARCHITECTURES[name], endpoints(name), 1e-5
    alphas = [0.2, 0.7]

    def losses(shift: float) -> np.ndarray:
        points = reference.line(theta_0, theta_T, [alpha + shift for alpha in alphas])
        return reference.curve_losses(found.model(), points, found.data(), found.criterion)

    velocity = [reference.difference(theta_0, theta_T)] * 2
    points = reference.line(theta_0, theta_T, alphas)
    slopes = reference.loss_slopes(found.model(), points, velocity, found.data(), found.criterion)
    assert slopes == pytest.approx((losses(step) - losses(-step)) / (2 * step), rel=1e-5, abs=1e-7)


def test_logit_path_of_a_linear_network_is_straight() -> None:
    model, X = nn.Linear(3, 2), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    theta_0, theta_T = ({k: v.detach() + c for k, v in model.state_dict().items()} for c in (0, 1))
    path = reference.logit_path(model, reference.line(theta_0, theta_T, [0.0, 0.25, 1.0]), X)
    assert path.shape == (3, 5, 2)
    assert path[0] == pytest.approx(model.double()(X.double()).detach().numpy(), rel=1e-12)
    assert path[1] == pytest.approx(0.75 * path[0] + 0.25 * path[2], rel=1e-12)
