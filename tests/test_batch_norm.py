"""Batch-norm policies: at every point what torch's own modules give there, one point after the other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim.swa_utils import update_bn

import mli_fast
from mli_fast.engine import calibration, forced
from mli_fast.evaluation import Evaluation, Job
from mli_fast.options import Options
from tests import science_reference as reference
from tests.cases import Case, assert_same_points, case, under_both
from tests.data import Batch
from tests.models import endpoints_of
from tests.plain_points import blended, losses_in, three
from tests.reference import assert_as_exact_as_torch, call, cast, to_dtype

ALPHAS = [-0.1, 0.0, 0.3, 1.0]
NORMED = (
    "cnn-bn",
    "resnet",
    "pre-activation-resnet",
    "mlp-batch-norm",
    "conv3d",
    "batch-norm-2d-first",
    "batch-norm-first",
    "conv1d",
)
CALIBRATED = ("recalibrate", "recalibrate-ema", "update-bn")
POLICIES = (*CALIBRATED, "batch")
RULES: dict[str, Callable[..., np.ndarray]] = {
    "recalibrate": reference.recalibrated_losses,
    "recalibrate-ema": reference.recalibrated_ema_losses,
    "update-bn": reference.updated_losses,
}


def options_of(policy: str, batches: Any) -> dict[str, Any]:
    """The policy, with the data it needs."""
    return {"batch_norm": policy} | ({"calibration": batches} if policy in CALIBRATED else {})


def expected(
    policy: str, c: Case, calibration_batches: Sequence[Batch], alphas: Sequence[float] = ALPHAS
) -> np.ndarray:
    """The loss at every alpha by torch's own modules in fp64."""
    states = reference.line(c.theta_0, c.theta_T, alphas)
    if policy == "batch":
        return reference.batch_statistics_losses(c.model, states, c.batches, c.criterion)
    return RULES[policy](c.model, states, calibration_batches, c.batches, c.criterion)


def cut_again(batches: Sequence[Batch], sizes: Sequence[int]) -> list[Batch]:
    """The same examples in other batches."""
    x, y = (torch.cat(column) for column in zip(*batches, strict=True))
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


def made(model: nn.Module, batches: list[Batch] | None = None) -> Case:
    """A case of a model that the registry does not have."""
    return Case(model.eval(), *endpoints_of(lambda _: model), batches or case("mlp").batches)


# ----------------------------------------------------------------------------------------- equal to torch's own modules


@pytest.mark.parametrize("policy", POLICIES)
@under_both(*NORMED)
def test_every_policy_equals_torchs_own_modules(name: str, under: str, policy: str) -> None:
    c = case(name)
    data = cut_again(c.batches, [4, 7, 2])
    with forced(under):
        result = c.sweep(ALPHAS, precision="fp64", **options_of(policy, data))
    np.testing.assert_allclose(result.loss, expected(policy, c, data), rtol=1e-10)
    assert result.provenance["batch_norm"] == policy


@pytest.mark.parametrize("sizes", [[13], [12, 1], [1, 1, 1, 1, 1, 8]], ids=["one", "two", "many"])
@pytest.mark.parametrize("limit", [2**30, 1], ids=["together", "apart"])
def test_recalibration_is_over_all_the_data_however_it_is_cut(limit: int, sizes: list[int], monkeypatch: Any) -> None:
    """Apart, every batch waits at each norm until all others have been there."""
    monkeypatch.setattr(calibration, "MERGED_BYTES", limit)
    for name in ("resnet", "mlp-batch-norm") if len(sizes) < 3 else ("mlp-batch-norm",):
        c = case(name)
        result = c.sweep(ALPHAS, precision="fp64", batch_norm="recalibrate", calibration=cut_again(c.batches, sizes))
        np.testing.assert_allclose(result.loss, expected("recalibrate", c, c.batches), rtol=1e-10)


def passes(c: Case, limit: int, monkeypatch: Any, batches: list[Batch]) -> list[int]:
    """How many examples each forward pass of a calibration of one point had."""
    seen: list[int] = []
    run = calibration.Forwards.run

    def noting(self: Any, batch: Any, p: int) -> None:
        seen.append(len(batch[1]))
        run(self, batch, p)

    with monkeypatch.context() as patch:
        patch.setattr(calibration, "MERGED_BYTES", limit)
        patch.setattr(calibration.Forwards, "run", noting)
        c.sweep([0.3], batch_norm="recalibrate", calibration=batches)
    return seen[1:]  # the first looks for the widest input


def test_batches_go_together_as_far_as_memory_allows(monkeypatch: Any) -> None:
    c = case("mlp-batch-norm")  # 8 channels of fp32: 32 bytes an example
    ones = cut_again(c.batches, [1] * 13)
    assert passes(c, 2**30, monkeypatch, ones) == [13]
    apart = passes(c, 5 * 32, monkeypatch, ones)
    assert set(apart) == {5, 3}
    assert len(apart) <= 3 * 3  # two norms, and the end


def test_a_pair_is_cut_as_memory_allows(monkeypatch: Any) -> None:
    c = case("mlp-batch-norm")
    pair = tuple(torch.cat(column) for column in zip(*c.batches, strict=True))
    result = c.sweep(ALPHAS, precision="fp64", batch_norm="recalibrate", calibration=pair)
    np.testing.assert_allclose(result.loss, expected("recalibrate", c, c.batches), rtol=1e-10)
    assert max(passes(c, 5 * 32, monkeypatch, pair)) <= 5  # type: ignore[arg-type]


class TimeFirst(nn.Module):
    """Takes sequences as nn.RNN does unless told otherwise: [steps, examples, features]."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.norm, self.last = nn.RNN(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.rnn(x)[0][-1]))


class Masked(nn.Module):
    """Mixes the steps of a sequence by a matrix that comes with the batch and is no example's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 8), nn.BatchNorm1d(6), nn.Linear(8, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.last(self.norm(mask @ self.first(x)).mean(1))


class Scaled(nn.Module):
    """Multiplied by a number that comes with the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor, scale: float) -> Tensor:
        return self.last(self.norm(scale * self.first(x)))


class Named(nn.Module):
    """Takes its inputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.norm, self.last = (
            nn.Linear(6, 8),
            nn.Linear(3, 8),
            nn.BatchNorm1d(8),
            nn.Linear(8, 4),
        )

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.last(F.relu(self.norm(self.left(left) * self.right(right))))


class AlsoByBatch(nn.Module):
    """A norm that has no running statistics, and thus sees the batch, before one that has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.own = nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False)
        self.norm, self.last = nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(F.relu(self.own(self.first(x)))))


class Unused(nn.Module):
    """Has a norm that no pass reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.spare, self.last = (
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.BatchNorm1d(8), nn.Linear(8, 4)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)))


class Frozen(nn.Module):
    """Keeps one of its norms in eval mode, as fine-tuning does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.kept, self.norm, self.last = (
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.BatchNorm1d(8), nn.Linear(8, 4)
        )  # fmt: skip

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.kept.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(F.relu(self.kept(self.first(x)))))


def no_longer_tracking() -> nn.Module:
    """A norm that was told to keep its running statistics as they are, before one that was not."""
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 4))
    model[1].track_running_stats = False
    return model


def with_dropout() -> nn.Module:
    """Dropout before a norm, whose statistics it changes, and after the last."""
    return nn.Sequential(
        nn.Linear(6, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Tanh(), nn.BatchNorm1d(8), nn.Dropout(0.5),
        nn.Linear(8, 4)
    )  # fmt: skip


def other_state() -> nn.Module:
    """Modules that are no batch norms and have buffers that training writes to."""
    power = spectral_norm(nn.Linear(16, 4))
    return nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 8, 2), nn.InstanceNorm1d(8, track_running_stats=True), nn.ReLU(),
        nn.BatchNorm1d(8), nn.Flatten(), power
    )  # fmt: skip


class Reads(nn.Module):
    """Scales by a Python number taken from an activation; cannot be deferred."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.first(x))
        return self.last(torch.tanh(hidden) / (0.5 + float(hidden[0].detach().abs().max().numpy())))


class InPlace(nn.Module):
    """Writes into its input and into what the norm gives."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(0.7).add_(0.1)
        return self.last(F.relu_(self.norm(self.first(x)).add_(1.0)))


def draws(*shapes: tuple[int, ...]) -> list[Tensor]:
    """N(0, 1) tensors."""
    g = torch.Generator().manual_seed(11)
    return [torch.randn(shape, generator=g) for shape in shapes]


def labels(n: int) -> Tensor:
    """Classes."""
    return torch.arange(n) % 4


ODD: dict[str, Callable[[], Case]] = {
    "time-first": lambda: made(TimeFirst(), [(x, labels(5)) for x in draws((7, 5, 3), (7, 5, 3))]),
    "time-first-ragged": lambda: made(TimeFirst(), [(x, labels(5)) for x in draws((7, 5, 3), (4, 5, 3))]),
    "mask": lambda: made(Masked(), [((x, torch.eye(6) + 0.1), labels(len(x))) for x in draws((4, 6, 3), (3, 6, 3))]),
    "number": lambda: made(Scaled(), [((x, 2.0 + len(x)), labels(len(x))) for x in draws((4, 6), (3, 6))]),
    "named": lambda: made(
        Named(), [{"left": x, "right": x[:, :3] ** 2, "labels": labels(len(x))} for x in draws((4, 6), (3, 6), (2, 6))]
    ),
    "sequence-lengths": lambda: made(
        nn.Sequential(nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 4)),
        [(x, labels(len(x))) for x in draws((4, 3, 6), (3, 3, 9), (2, 3, 6))],
    ),
    "also-by-batch": lambda: made(AlsoByBatch()),
    "unused": lambda: made(Unused()),
    "frozen": lambda: made(Frozen()),
    "no-longer-tracking": lambda: made(no_longer_tracking()),
    "dropout": lambda: made(with_dropout()),
    "other-state": lambda: made(other_state()),
    "reads": lambda: made(Reads()),
    "in-place": lambda: made(InPlace()),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("limit", [2**30, 1], ids=["together", "apart"])
@pytest.mark.parametrize("kind", ODD)
def test_odd_batches_and_models_equal_torchs_own_modules(kind: str, limit: int, policy: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(calibration, "MERGED_BYTES", limit)
    c = ODD[kind]()
    result = c.sweep(ALPHAS, precision="fp64", metrics=(), **options_of(policy, c.batches))
    np.testing.assert_allclose(result.loss, expected(policy, c, c.batches), rtol=1e-10)


def left_by_update_bn(c: Case, state: Any, data: Sequence[Batch], dtype: torch.dtype) -> nn.Module:
    """The model at a point, in eval mode, after torch's own function, which begins at the random state as it is."""
    network = cast(copy.deepcopy(c.model), dtype)
    network.load_state_dict(state)
    with torch.random.fork_rng(), torch.no_grad():
        update_bn(([to_dtype(batch, dtype)] for batch in data), reference.OfBatches(network))
    return network.eval()


@under_both(*NORMED)
def test_update_bn_equals_torchs_own_in_float32(name: str, under: str) -> None:
    c = case(name)
    data = cut_again(c.batches, [4, 7, 2])
    with forced(under):
        result = c.sweep(ALPHAS, batch_norm="update-bn", calibration=data)
    networks = [left_by_update_bn(c, s, data, torch.float32) for s in reference.line(c.theta_0, c.theta_T, ALPHAS)]
    losses = [reference.mean_loss(network.double(), c.batches, c.criterion) for network in networks]
    np.testing.assert_allclose(result.loss, losses, rtol=1e-6)


@pytest.mark.parametrize("name", [*NORMED, *ODD])
def test_every_buffer_is_what_update_bn_leaves(name: str) -> None:
    c = ODD[name]() if name in ODD else case(name)
    options = Options(c.criterion, (), "update-bn", c.batches, precision="fp64")
    with Evaluation(c.model, c.batches, options) as evaluation:
        job = Job(mli_fast.Line(c.theta_0, c.theta_T), np.array(ALPHAS))
        points = evaluation._work(job, evaluation.anchors(job.path)).points
        ours = [points.values(p) for p in range(len(ALPHAS))]
    for values, state in zip(ours, reference.line(c.theta_0, c.theta_T, ALPHAS), strict=True):
        buffers = dict(left_by_update_bn(c, state, c.batches, torch.float64).named_buffers())
        for buffer_name, buffer in buffers.items():
            if buffer.is_floating_point():
                torch.testing.assert_close(values[buffer_name], buffer, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("momentum", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("policy", ["recalibrate-ema", "update-bn"])
def test_every_momentum_is_torchs(engine: str, policy: str, momentum: float | None) -> None:
    """None is the average over all batches so far, from the first on; for "update-bn" all are None."""
    c = case("cnn-bn")
    for module in c.model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = momentum
    result = c.sweep(ALPHAS, precision="fp64", **options_of(policy, c.batches))
    np.testing.assert_allclose(result.loss, expected(policy, c, c.batches), rtol=1e-10)


class Twice(nn.Module):
    """Calls one norm at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.middle, self.last = (
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 4)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.middle(F.relu(self.norm(self.first(x))))))


@pytest.mark.parametrize("policy", ["recalibrate-ema", "update-bn", "batch"])
def test_a_norm_that_is_called_twice_moves_twice(engine: str, policy: str) -> None:
    c = made(Twice())
    result = c.sweep(ALPHAS, precision="fp64", **options_of(policy, c.batches))
    np.testing.assert_allclose(result.loss, expected(policy, c, c.batches), rtol=1e-10)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["mlp", "norms", "gpt2"])
def test_without_a_batch_norm_every_policy_is_the_same(policy: str, name: str) -> None:
    """Instance norms with running statistics are none: they keep the interpolated ones."""
    c = case(name)
    with forced("plain"):
        assert_same_points(c.sweep(ALPHAS, **options_of(policy, c.batches)), c.sweep(ALPHAS), range(len(ALPHAS)))


@pytest.mark.parametrize("policy", POLICIES)
def test_dropout_is_drawn_by_update_bn_alone(engine: str, policy: str) -> None:
    c = made(with_dropout())
    sure = Case(copy.deepcopy(c.model), c.theta_0, c.theta_T, c.batches)
    for module in sure.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    options = options_of(policy, c.batches)
    torch.manual_seed(0)
    drawn = c.sweep(ALPHAS, **options)
    assert np.array_equal(drawn.loss, sure.sweep(ALPHAS, **options).loss) == (policy != "update-bn")
    assert_same_points(c.sweep([0.3], **options), drawn, [2])
    torch.manual_seed(1)
    assert np.array_equal(drawn.loss, c.sweep(ALPHAS, **options).loss) == (policy != "update-bn")


def test_the_policies_differ() -> None:
    """The cases above can tell them apart."""
    c = case("cnn-bn")
    curves = [expected(policy, c, c.batches) for policy in POLICIES] + [c.sweep(ALPHAS).loss]
    assert all(np.abs(a - b).max() > 1e-4 for i, a in enumerate(curves) for b in curves[:i])


@pytest.mark.parametrize("policy", CALIBRATED)
def test_every_verb_goes_with_recalibration(engine: str, policy: str) -> None:
    c, anchors = case("cnn-bn"), three("cnn-bn")
    options = {"precision": "fp64", "progress": False, **options_of(policy, c.batches)}

    def losses(points: Sequence[Any]) -> np.ndarray:
        return RULES[policy](c.model, points, c.batches, c.batches)

    plane, bezier = mli_fast.Plane(*anchors), mli_fast.Bezier(*anchors)
    found = mli_fast.surface(c.model, plane, c.batches, 2, 2, **options)
    grid = plane.coefficients([[x, y] for x in found["x"] for y in found["y"]])
    states = [reference.combine(anchors, row) for row in grid.tolist()]
    np.testing.assert_allclose(found.loss, losses(states).reshape(2, 2), rtol=1e-10)
    curve = mli_fast.evaluate(c.model, bezier, [0.2, 0.7], c.batches, **options)
    states = [reference.combine(anchors, row) for row in bezier.coefficients([0.2, 0.7]).tolist()]
    np.testing.assert_allclose(curve.loss, losses(states), rtol=1e-10)
    many = mli_fast.sweep_many(c.model, [anchors[:2], anchors[1:]], iter(c.batches), ALPHAS, **options)
    for run, pair in zip(("0", "1"), (anchors[:2], anchors[1:]), strict=True):
        np.testing.assert_allclose(many.select(run=run).loss, losses(reference.line(*pair, ALPHAS)), rtol=1e-10)


def test_norms_on_a_schedule_keep_their_weights_and_no_statistics(engine: str) -> None:
    """The averages of "recalibrate-ema" begin at reset statistics, whatever the schedule gives."""
    c = case("cnn-bn")
    options = {"precision": "fp64", "batch_norm": "recalibrate-ema", "calibration": c.batches}
    result = c.sweep(ALPHAS, schedule={"norm": "end"}, **options)
    norms = {key for key in c.theta_0 if key.split(".")[0] in ("1", "5")}
    start = {key: c.theta_T[key] if key in norms else value for key, value in c.theta_0.items()}
    np.testing.assert_allclose(
        result.loss, expected("recalibrate-ema", Case(c.model, start, c.theta_T, c.batches), c.batches), rtol=1e-10
    )


# ------------------------------------------------------------------------------------------------------------ exactness


@torch.no_grad()
def single(policy: str, c: Case, states: Sequence[Any]) -> np.ndarray:
    """The loss at every state by torch's own modules in fp32."""
    network = cast(copy.deepcopy(c.model).eval(), torch.float32)
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    measured = []
    for state in states:
        network.load_state_dict(state)
        if policy == "recalibrate":
            for norm in norms:  # in the order of their calls
                seen: list[Tensor] = []
                hook = norm.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
                for batch in c.batches:
                    call(network, to_dtype(batch, torch.float32))
                hook.remove()
                norm.momentum, norm.training = 1.0, True
                norm(torch.cat(seen))  # torch's own statistics of all that came in
                norm.training = False
        elif policy == "recalibrate-ema":
            reference.only_batch_norms_train(network)
            for norm in norms:
                norm.reset_running_stats()
            for batch in c.batches:
                call(network, to_dtype(batch, torch.float32))
        else:
            with torch.random.fork_rng():
                update_bn(([to_dtype(batch, torch.float32)] for batch in c.batches), reference.OfBatches(network))
        network.eval()
        measured.append({key: value.clone() for key, value in network.state_dict().items()})
    return losses_in(torch.float32, c.model, measured, c.batches, c.criterion)


@pytest.mark.parametrize("shift", [0.0, 30.0], ids=["centred", "far-from-zero"])
@pytest.mark.parametrize("policy", CALIBRATED)
@under_both("cnn-bn", "mlp-batch-norm")
def test_statistics_are_as_exact_as_torch_in_fp32(name: str, under: str, policy: str, shift: float) -> None:
    """Also where the mean is many deviations from zero, so that E[x^2] - E[x]^2 would lose digits.

    Of one set of data PyTorch's own error is luck: it is the largest over several.
    """
    c = case(name)
    states = [blended((c.theta_0, c.theta_T), (1 - a, a), torch.float32) for a in ALPHAS]
    sets = [Case(c.model, c.theta_0, c.theta_T, [(x + shift + 0.4 * k, y) for x, y in c.batches]) for k in range(4)]
    exact = [expected(policy, c, c.batches) for c in sets]
    plain = [single(policy, c, states) for c in sets]
    peer = float(max(np.abs(p - e).max() for p, e in zip(plain, exact, strict=True)))
    for c, e, p in zip(sets, exact, plain, strict=True):
        with forced(under):
            ours = c.sweep(ALPHAS, **options_of(policy, c.batches)).loss
        assert_as_exact_as_torch(ours, e, p, peer=peer)
