"""Many lines and many groups in one pass: each is what it is alone, and what the plain loop says."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mli_fast
from mli_fast import evaluation, schedules
from mli_fast.checkpoints.matching import model_entries
from mli_fast.engine import forced
from tests import science_reference as reference
from tests.calls import Calls, Residual
from tests.cases import Case, assert_same_points, case, under_both
from tests.models import Backwards, Noisy, endpoints_of
from tests.plain_points import bend, blended, losses_in, spoilt, three
from tests.reference import assert_as_exact_as_torch
from tests.test_contracts import Counting
from tests.test_evaluate import evaluate, raises_at_once
from tests.test_left_alone import Mishap, assert_unchanged, lived_in, snapshot, stops_after

ALPHAS = [0.0, 0.3, 1.0]
MODELS = ("mlp", "cnn-bn", "vit-plain", "lstm")


def sweep_many(c: Case, lines: Any, alphas: Any = ALPHAS, **options: Any) -> mli_fast.SweepResult:
    """`mli_fast.sweep_many` on a case; its model and loader may be replaced by name."""
    model, loader = options.pop("model", c.model), options.pop("loader", c.batches)
    options = {"criterion": c.criterion, "metrics": c.metrics, "progress": False} | options
    return mli_fast.sweep_many(model, lines, loader, alphas, **options)


def layerwise(c: Case, alphas: Any = ALPHAS, **options: Any) -> mli_fast.SweepResult:
    """`mli_fast.layerwise` on a case, likewise."""
    model, loader = options.pop("model", c.model), options.pop("loader", c.batches)
    options = {"criterion": c.criterion, "metrics": c.metrics, "progress": False} | options
    return mli_fast.layerwise(model, c.theta_0, c.theta_T, loader, alphas, **options)


def assert_same(ours: mli_fast.SweepResult, theirs: mli_fast.SweepResult) -> None:
    """Bit for bit, every variable that both have, of which the loss is one."""
    compared = sorted(set(ours.dataset.data_vars) & set(theirs.dataset.data_vars), key=str)
    assert {"loss", "loss_stderr", "loss_step"} <= set(compared)
    for name in compared:
        mine, other = np.asarray(ours[str(name)]), np.asarray(theirs[str(name)])
        assert mine.tobytes() == other.tobytes(), f"{name}: {mine} is not {other}"


# ----------------------------------------------------------------------------------------------------------- many lines


@under_both(*MODELS)
def test_every_line_is_its_own_sweep_bit_for_bit(name: str, under: str) -> None:
    c, middle = case(name), bend(name)
    bent = mli_fast.Bezier(c.theta_0, middle, c.theta_T)
    metrics = (*c.metrics, "gauss_length", "path_length", "monotone_examples")
    lines = {"there": (c.theta_0, c.theta_T), "back": mli_fast.Line(c.theta_T, c.theta_0), "bent": bent}
    with forced(under):
        many = sweep_many(c, lines, metrics=metrics)
        assert many.dims == ("run", "alpha")
        assert many["run"].tolist() == ["there", "back", "bent"]
        assert_same(many.select(run="there"), c.sweep(ALPHAS, metrics=metrics))
        assert_same(many.select(run="back"), c.sweep(ALPHAS, metrics=metrics, theta_0=c.theta_T, theta_T=c.theta_0))
        assert_same(many.select(run="bent"), evaluate(c, bent, ALPHAS, metrics=metrics))
        assert_same(sweep_many(c, {"bent": bent}, metrics=metrics).select(run="bent"), many.select(run="bent"))
    assert many.count == 13


@under_both("mlp", "cnn-bn", "vit-plain")
def test_every_line_equals_the_plain_loop(name: str, under: str) -> None:
    c, networks = case(name), dict(zip("abc", three(name), strict=True))
    with forced(under):
        many = sweep_many(c, mli_fast.all_pairs(networks), precision="fp64")
    for label, (start, end) in zip(("a - b", "a - c", "b - c"), ("ab", "ac", "bc"), strict=True):
        states = reference.line(networks[start], networks[end], ALPHAS)
        expected = reference.curve_losses(c.model, states, c.batches)
        np.testing.assert_allclose(many.select(run=label).loss, expected, rtol=1e-10)


def test_lines_may_come_in_any_form(tmp_path: FilePath) -> None:
    c, (start, middle, end) = case("mlp"), three("mlp")
    expected = sweep_many(c, {"0": (start, end), "1": (middle, end)})
    pairs = [(start, end), (middle, end)]
    for lines in (pairs, tuple(pairs), [mli_fast.Line(*pair) for pair in pairs], dict(enumerate(pairs))):
        assert_same(sweep_many(c, lines), expected)
    assert_same(sweep_many(c, mli_fast.to_one({"0": start, "1": middle}, end)), expected)
    for label, state in (("0", start), ("1", middle)):
        (tmp_path / label).mkdir()
        torch.save(state, tmp_path / label / "init.pt")
        torch.save(end, tmp_path / label / "final.pt")
    for folder in (tmp_path, str(tmp_path), mli_fast.run_folders(tmp_path)):
        found = sweep_many(c, folder)
        assert_same(found, expected)
        assert found["run"].tolist() == ["0", "1"]


def test_defaults_are_fifty_alphas_accuracy_and_gauss_length() -> None:
    c = case("mlp")
    many = mli_fast.sweep_many(c.model, [(c.theta_0, c.theta_T)], c.batches, progress=False)
    assert many.loss.shape == many.accuracy.shape == (1, 50)
    assert many["gauss_length"].shape == (1,)


def test_distances_are_those_of_the_ends() -> None:
    c = case("cnn-bn")
    start, middle, end = three("cnn-bn")
    many = sweep_many(c, {"line": (start, end), "bent": mli_fast.Bezier(middle, start, end)})
    for run, theta_0 in (("line", start), ("bent", middle)):
        moved = {k: v.double() for k, v in reference.difference(theta_0, end).items() if "running" not in k}
        norm = float(torch.cat([v.reshape(-1) for v in moved.values()]).norm())
        length = float(torch.cat([theta_0[k].double().reshape(-1) for k in moved]).norm())
        one = many.select(run=run)
        assert float(one["distance"]) == pytest.approx(norm, rel=1e-12)
        assert float(one["distance_relative"]) == pytest.approx(norm / length, rel=1e-12)


def test_the_table_and_the_filter_are_of_these_lines() -> None:
    c = case("mlp")
    many = sweep_many(c, mli_fast.all_pairs(dict(zip("abc", three("mlp"), strict=True))), 9)
    table = many.table()
    np.testing.assert_array_equal(table["final_loss"], many.loss[:, -1])
    np.testing.assert_array_equal(table["distance"], many["distance"])
    for label, line in many.lines():
        verdict = line.monotonicity()
        assert table.loc[label, "min_delta"] == verdict.min_delta
    limit = np.sort(many.loss[:, -1])[1]
    assert many.filter(limit)["run"].tolist() == [
        r for r, row in zip(many["run"], many.loss, strict=True) if row[-1] <= limit
    ]


def test_a_file_in_several_lines_is_read_once(tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    c, read = case("mlp"), Counter[str]()
    for label, state in zip("abc", three("mlp"), strict=True):
        torch.save(state, tmp_path / f"{label}.pt")
    files = {label: tmp_path / f"{label}.pt" for label in "abc"}
    load = torch.load

    def counting(path: Any, *args: Any, **kwargs: Any) -> Any:
        read[FilePath(getattr(path, "name", path)).name] += 1
        return load(path, *args, **kwargs)

    monkeypatch.setattr(torch, "load", counting)
    many = sweep_many(c, mli_fast.all_pairs(files))
    monkeypatch.undo()
    assert read == {"a.pt": 1, "b.pt": 1, "c.pt": 1}
    assert_same(many, sweep_many(c, mli_fast.all_pairs(dict(zip("abc", three("mlp"), strict=True)))))


def test_one_run_that_is_nan_spoils_no_other(engine: str) -> None:
    c = case("cnn-bn")
    lines = {"bad": (c.theta_0, spoilt(c.theta_T)), "good": (c.theta_0, c.theta_T)}
    with pytest.warns(evaluation.NonFiniteWarning, match="theta_T"):
        many = sweep_many(c, lines)
    assert np.isnan(many.select(run="bad").loss).tolist() == [False, True, True]
    assert np.isnan(many.select(run="bad")["distance"])
    assert many.select(run="bad").loss[0] == many.select(run="good").loss[0]
    assert_same(many.select(run="good"), c.sweep(ALPHAS))


def test_what_the_provenance_says_of_many_lines(engine: str) -> None:
    c = case("cnn-bn")
    told = sweep_many(c, {"a": (c.theta_0, c.theta_T), "b": mli_fast.Bezier(*three("cnn-bn"))}).provenance
    assert json.loads(json.dumps(told)) == told
    assert told["path"] == "line and bezier"
    assert (told["engine"], told["points"], told["examples"], told["batches"]) == (engine, 6, 13, 3)
    assert told["anchors"] == [["dict", "dict"], ["dict", "dict", "dict"]]


# ------------------------------------------------------------------------------------------------------- layer by layer


def names_of(c: Case, groups: Any = None) -> dict[str, set[str]]:
    """The state dict's keys of every group."""
    aliases = {entry.name: entry.aliases for entry in model_entries(c.model)}
    return {g: {a for n in names for a in aliases[n]} for g, names in schedules.groups(c.model, groups).items()}


@pytest.mark.parametrize(
    ("others", "cumulative"), [("end", None), ("start", None), ("end", "bottom"), ("start", "top"), ("end", "top")]
)
@under_both("mlp", "cnn-bn")
def test_layerwise_equals_the_plain_loop(name: str, under: str, others: str, cumulative: str | None) -> None:
    assert_layerwise_is_the_loop(name, under, others, cumulative)


@under_both("pre-activation-resnet", "lstm", "batch-norm-first")
def test_layerwise_of_every_model_equals_the_plain_loop(name: str, under: str) -> None:
    assert_layerwise_is_the_loop(name, under, "end", "bottom")


def assert_layerwise_is_the_loop(name: str, under: str, others: str, cumulative: str | None) -> None:
    """In fp64, one engine, every layer."""
    c = case(name)
    with forced(under):
        result = layerwise(c, others=others, cumulative=cumulative, precision="fp64", metrics=())
    groups = {group: sorted(names) for group, names in names_of(c).items()}
    ordered = {group: groups[group] for group in result["group"].tolist()}
    assert ordered.keys() == groups.keys()
    expected = reference.layerwise_losses(
        c.model, c.theta_0, c.theta_T, ordered, ALPHAS, c.batches, c.criterion, others=others, cumulative=cumulative
    )
    np.testing.assert_allclose(result.loss, expected, rtol=1e-10)
    assert result.dims == ("group", "alpha")
    assert (result.provenance["others"], result.provenance["cumulative"]) == (others, cumulative)


@under_both("mlp", "cnn-bn")
def test_layerwise_is_as_exact_as_torch_in_fp32(name: str, under: str) -> None:
    c = case(name)
    with forced(under):
        result = layerwise(c)
    for group, names in names_of(c).items():
        start = {key: c.theta_0[key] if key in names else value for key, value in c.theta_T.items()}
        single = [blended((start, c.theta_T), (1 - a, a), torch.float32) for a in ALPHAS]
        assert_as_exact_as_torch(
            result.select(group=group).loss,
            reference.curve_losses(c.model, reference.line(start, c.theta_T, ALPHAS), c.batches),
            losses_in(torch.float32, c.model, single, c.batches, c.criterion),
        )


IN_COMPANY = (
    "mlp", "cnn-bn", "pre-activation-resnet", "writes-into-its-input", "vit-plain", "gpt2", "tied-autoencoder",
    "weight-norm", "integer-buffer", "lstm", "control-flow",
)  # fmt: skip


@under_both(*IN_COMPANY)
def test_a_group_is_the_sweep_in_which_it_alone_moves_bit_for_bit(name: str, under: str) -> None:
    c = case(name)
    every = list(names_of(c))
    some = {label: list(schedules.groups(c.model)[label]) for label in (every[0], every[len(every) // 2], every[-1])}
    with forced(under):
        result = layerwise(c, groups=some)
        for group, names in names_of(c, some).items():
            start = {key: c.theta_0[key] if key in names else value for key, value in c.theta_T.items()}
            assert_same(result.select(group=group), case(name).sweep(ALPHAS, theta_0=start))


@under_both("cnn-bn", "lstm")
def test_a_group_is_the_same_in_any_company(name: str, under: str) -> None:
    c = case(name)
    with forced(under):
        whole = layerwise(c, others="start", groups="parameter")
        labels = whole["group"].tolist()
        for some in (labels[2:3], labels[::-2]):
            part = layerwise(c, others="start", groups=some, chunk=2)
            for label in some:
                assert_same(part.select(group=label), whole.select(group=label))


@under_both("mlp", "cnn-bn")
def test_the_ends_of_every_group_are_exact(name: str, under: str) -> None:
    c = case(name)
    with forced(under):
        all_at_end, all_at_start = c.sweep([1.0], theta_0=c.theta_T), c.sweep([0.0], theta_T=c.theta_0)
        of_end, of_start = layerwise(c), layerwise(c, others="start")
        for group in of_end["group"].tolist():
            assert_same_points(all_at_end, of_end.select(group=group), [2])
            assert_same_points(all_at_start, of_start.select(group=group), [0])
        for cumulative, last in (("bottom", -1), ("top", 0)):
            everything = layerwise(c, cumulative=cumulative)
            group = everything["group"].tolist()[last]
            assert_same(everything.select(group=group), c.sweep(ALPHAS))


def test_held_values_that_are_nan_spoil_everything_and_moving_ones_their_points(engine: str) -> None:
    c = case("mlp")
    bad = Case(c.model, c.theta_0 | {"2.bias": torch.full((7,), float("nan"))}, c.theta_T, c.batches)
    with pytest.warns(evaluation.NonFiniteWarning, match=r"2\.bias.*theta_0"):
        found = layerwise(bad)
    assert np.isnan(found.loss).tolist() == [[False] * 3, [True, True, False], [False] * 3]
    clean = layerwise(c)
    assert found.loss[[0, 2]].tobytes() == clean.loss[[0, 2]].tobytes()
    assert found.loss[1, 2] == clean.loss[1, 2]
    with pytest.warns(evaluation.NonFiniteWarning):
        held = layerwise(bad, others="start")
    assert np.isnan(held.loss).tolist() == [[True] * 3, [True, True, False], [True] * 3]


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        pytest.param(None, ["0", "1", "4", "5", "9"], id="default"),
        pytest.param("layer", ["0", "1", "4", "5", "9"], id="layer"),
        pytest.param("kind", ["weight", "bias", "norm"], id="kind"),
        pytest.param("parameter", ["0.weight", "1.weight", "1.bias", "4.weight"], id="parameter"),
        pytest.param(["norm", "4", "*.bias"], ["norm", "4", "*.bias"], id="list"),
        pytest.param({"head": "9", "norms": ["1", "5"]}, ["head", "norms"], id="mapping"),
    ],
)
def test_groups_in_any_form(groups: Any, expected: list[str]) -> None:
    c = case("cnn-bn")
    result = layerwise(c, groups=groups)
    assert result["group"].tolist()[: len(expected)] == expected
    for group, names in names_of(c, groups).items():
        start = {key: c.theta_0[key] if key in names else value for key, value in c.theta_T.items()}
        assert_same(result.select(group=group), c.sweep(ALPHAS, theta_0=start))


@pytest.mark.parametrize("precision", [None, "fp64", "bf16"])
def test_layers_are_in_the_order_of_their_calls(precision: str | None) -> None:
    model = Backwards()
    c = Case(model, *endpoints_of(lambda _: model), case("mlp").batches)
    assert layerwise(c, precision=precision)["group"].tolist() == ["first", "middle", "last"]
    pair = tuple(torch.cat(column) for column in zip(*c.batches, strict=True))
    assert layerwise(c, precision=precision, loader=pair)["group"].tolist() == ["first", "middle", "last"]


def test_twenty_five_alphas_are_the_default_and_other_options_are_those_of_sweep() -> None:
    c = case("cnn-bn")
    result = mli_fast.layerwise(c.model, c.theta_0, c.theta_T, c.batches, progress=False, batch_norm="start")
    assert result.loss.shape == (5, 25)
    names = names_of(c)["4"]
    start = {key: c.theta_0[key] if key in names | statistics(c) else v for key, v in c.theta_T.items()}
    end = c.theta_T | {key: c.theta_0[key] for key in statistics(c)}
    swept = c.sweep(25, theta_0=start, theta_T=end, metrics=("accuracy",))
    assert_same(result.select(group="4"), swept)


def statistics(c: Case) -> set[str]:
    """The names of all running statistics."""
    return {key for key in c.theta_0 if key.endswith(("running_mean", "running_var"))}


@pytest.mark.parametrize("policy", ["recalibrate", "recalibrate-ema", "update-bn", "batch"])
def test_every_policy_of_batch_norm_goes_with_layerwise(policy: str, engine: str) -> None:
    c = case("cnn-bn")
    options: dict[str, Any] = {"batch_norm": policy}
    if policy != "batch":
        options["calibration"] = c.batches
    result = layerwise(c, groups=["1", "4"], **options)
    for group, names in names_of(c, ["1", "4"]).items():
        start = {key: c.theta_0[key] if key in names else value for key, value in c.theta_T.items()}
        assert_same(result.select(group=group), c.sweep(ALPHAS, theta_0=start, **options))


def test_layers_are_traced_under_every_policy_from_a_pair_too() -> None:
    c = case("mlp-batch-norm")
    pair = tuple(torch.cat(column) for column in zip(*c.batches, strict=True))
    options: dict[str, Any] = {"loader": pair, "batch_norm": "batch"}
    assert layerwise(c, **options)["group"].tolist() == ["0", "1", "3", "5", "6"]


def test_a_schedule_goes_with_layerwise(engine: str) -> None:
    """What moves does so by its schedule; what is held stays."""
    c = case("mlp")
    options = {"schedule": {"bias": schedules.power(2)}, "precision": "fp64"}
    result = layerwise(c, groups=["weight", "2"], **options)
    rest = {"2.weight", "2.bias"}
    start = {key: c.theta_0[key] if key in rest else value for key, value in c.theta_T.items()}
    np.testing.assert_allclose(result.loss[1], c.sweep(ALPHAS, theta_0=start, **options).loss, rtol=1e-12)
    weights = {key: c.theta_0[key] if "weight" in key else value for key, value in c.theta_T.items()}
    np.testing.assert_allclose(result.loss[0], c.sweep(ALPHAS, theta_0=weights, precision="fp64").loss, rtol=1e-12)


# --------------------------------------------------------------------------------------------------- what it costs


def placed(call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> int:
    """How many numbers of anchors are laid out for the work, each storage once."""
    seen: dict[int, Tensor] = {}
    place = evaluation.Points

    def noting(anchors: Any, *args: Any) -> Any:
        seen.update({t.data_ptr(): t for group in anchors.values() for t in group})
        return place(anchors, *args)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "Points", noting)
        call()
    return sum(t.numel() for t in seen.values())


@pytest.mark.parametrize("precision", [None, "fp64"])
def test_anchors_lie_in_memory_once_however_many_groups_or_lines(
    precision: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    c, networks = case("mlp"), dict(zip("abc", three("mlp"), strict=True))
    size = sum(t.numel() for t in c.theta_0.values())
    assert placed(lambda: layerwise(c, groups="parameter", precision=precision), monkeypatch) == 2 * size
    many = mli_fast.all_pairs(networks)
    assert placed(lambda: sweep_many(c, many, precision=precision), monkeypatch) == 3 * size


@pytest.mark.parametrize("precision", [None, "fp64"])
def test_what_lies_before_a_group_is_computed_once(precision: str | None) -> None:
    """The norms are held, so that one call serves all groups behind it."""
    depth, points = 5, 4
    model = Residual(depth)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    end = {k: v + 0.1 for k, v in start.items()}
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    c = Case(model, start, end, [(x, torch.arange(5) % 3)], metrics=("accuracy",))
    groups = [f"layers.{i}" for i in range(depth)]
    with Calls() as calls:
        layerwise(c, points, groups=groups, precision=precision, check=False)
    behind = 2 * points * sum(depth - 1 - i for i in range(depth))  # two calls a block depend on the point
    recorded, shared = 2 * 2 * depth, 2 * depth
    assert calls.count["native_layer_norm"] == behind + recorded + shared


@pytest.mark.parametrize("verb", ["layerwise", "sweep_many", "homogeneous"])
def test_the_network_is_traced_once(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    c, traced = case("mlp"), []
    order = schedules.depth_order

    def counting(*args: Any) -> Any:
        traced.append(1)
        return order(*args)

    monkeypatch.setattr(schedules, "depth_order", counting)
    homogeneous = {"schedule": {"bias": "homogeneous"}}
    if verb == "sweep_many":
        sweep_many(c, [(c.theta_0, c.theta_T)] * 4, **homogeneous)
    else:
        layerwise(c, **(homogeneous if verb == "homogeneous" else {}))
    assert len(traced) == 1


# ------------------------------------------------------------------------------------------------------------ contracts


VERBS: dict[str, Callable[..., Any]] = {
    "sweep_many": lambda c, **o: sweep_many(c, [(c.theta_0, c.theta_T), (c.theta_T, c.theta_0)], **o),
    "homogeneous": lambda c, **o: sweep_many(
        c, [(c.theta_0, c.theta_T), (c.theta_T, c.theta_0)], schedule={"bias": "homogeneous"}, **o
    ),
    "layerwise": layerwise,
    "layerwise-kind": lambda c, **o: layerwise(c, groups="kind", **o),
    "layerwise-homogeneous": lambda c, **o: layerwise(c, schedule={"bias": "homogeneous"}, **o),
}


@pytest.mark.parametrize("verb", VERBS)
def test_the_loader_is_iterated_once(verb: str, engine: str) -> None:
    c = case("cnn-bn")
    loader = Counting(c.batches)
    result = VERBS[verb](c, loader=loader)
    assert (loader.iterations, loader.drawn, result.count) == (1, 3, 13)


@pytest.mark.parametrize("verb", VERBS)
def test_a_generator_will_do(verb: str, engine: str) -> None:
    c = case("cnn-bn")
    assert_same(VERBS[verb](c, loader=(batch for batch in c.batches)), VERBS[verb](c))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", ["cnn-bn", "writes-into-its-input"])
def test_the_callers_things_are_as_they_were(name: str, verb: str, engine: str) -> None:
    c = lived_in(name)
    before = snapshot(c)
    VERBS[verb](c, chunk=2)
    assert_unchanged(before, snapshot(c))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("where", ["loader", "first-batch", "ctrl-c", "ctrl-c-at-once"])
def test_they_are_after_an_exception_too(verb: str, where: str) -> None:
    c = lived_in("mlp-batch-norm")
    error = KeyboardInterrupt() if where.startswith("ctrl-c") else Mishap("no more")
    loader = raises_at_once(error) if where in ("first-batch", "ctrl-c-at-once") else stops_after(c.batches, error)
    before = snapshot(c)
    with pytest.raises(type(error)):
        VERBS[verb](c, loader=loader)
    assert_unchanged(before, snapshot(c))


def test_noise_is_the_same_for_every_line_and_group(engine: str) -> None:
    model = Noisy()
    c = Case(model, *endpoints_of(lambda _: model), case("mlp").batches)
    many = sweep_many(c, [(c.theta_T, c.theta_0), (c.theta_0, c.theta_T)])
    assert_same(many.select(run="1"), c.sweep(ALPHAS))
    groups = layerwise(c, groups=["first", "last"])
    assert_same(groups.select(group="last"), layerwise(c, groups=["last"]).select(group="last"))


# --------------------------------------------------------------------------------------------------------------- errors


def two_labels() -> Any:
    """Labels that are one once they are text."""
    return {1: three("mlp")[:2], "1": three("mlp")[1:]}


BAD: dict[str, tuple[Callable[[Case], Any], type[Exception], str]] = {
    "no-lines": (lambda c: sweep_many(c, []), ValueError, "lines is empty"),
    "no-lines-by-name": (lambda c: sweep_many(c, {}), ValueError, "lines is empty"),
    "one-state": (lambda c: sweep_many(c, [c.theta_0]), TypeError, r"lines\['0'\]"),
    "three-states": (lambda c: sweep_many(c, [three("mlp")]), TypeError, r"lines\['0'\]"),
    "number": (lambda c: sweep_many(c, 17), TypeError, "lines.*int"),
    "plane": (lambda c: sweep_many(c, {"a": mli_fast.Plane(*three("mlp"))}), TypeError, r"lines\['a'\].*one axis"),
    "no-folder": (lambda c: sweep_many(c, "nowhere/at/all"), ValueError, "nowhere/at/all"),
    "line-alphas": (lambda c: sweep_many(c, [three("mlp")[:2]], []), ValueError, "alphas is empty"),
    "same-labels": (lambda c: sweep_many(c, two_labels()), ValueError, "'1'"),
    "other-ranges": (
        lambda c: sweep_many(c, [three("mlp")[:2], mli_fast.random_directions(c.theta_0, 1)], 5),
        ValueError,
        "(?i)alphas",
    ),
    "metric-named-distance": (
        lambda c: sweep_many(c, [three("mlp")[:2]], metrics={"distance": lambda o, y: o[:, 0]}),
        ValueError,
        "'distance'.*taken",
    ),
    "lines-unknown-option": (lambda c: sweep_many(c, [three("mlp")[:2]], colour="red"), TypeError, "colour"),
    "others": (lambda c: layerwise(c, others="middle"), ValueError, "others='middle'.*end.*start"),
    "cumulative": (lambda c: layerwise(c, cumulative="up"), ValueError, "cumulative='up'.*bottom.*top"),
    "no-parameters": (
        lambda c: mli_fast.layerwise(nn.Flatten(), {}, {}, c.batches, 3, progress=False),
        ValueError,
        "(?i)group|parameter",
    ),
    "groups-word": (lambda c: layerwise(c, groups="layers"), ValueError, "groups='layers'.*'layer'"),
    "groups-none": (lambda c: layerwise(c, groups=[]), ValueError, "groups is empty"),
    "groups-pattern": (lambda c: layerwise(c, groups=["head.*"]), ValueError, r"head\.\*.*nothing.*'4'"),
    "groups-mapping": (lambda c: layerwise(c, groups={"a": ["9"]}), ValueError, "'a'.*'9'.*nothing"),
    "groups-kind": (lambda c: layerwise(c, groups=17), TypeError, "groups.*17"),
    "group-kind": (lambda c: layerwise(c, groups=[17]), TypeError, "groups.*17"),
    "alphas": (lambda c: layerwise(c, [[0.0]]), ValueError, r"alphas.*\(1, 1\)"),
    "unknown-option": (lambda c: layerwise(c, colour="red"), TypeError, "colour"),
    "schedule": (lambda c: layerwise(c, groups="kind", schedule={"9": "end"}), ValueError, "schedule.*'9'.*nothing"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_call_is_refused_by_name(kind: str) -> None:
    call, error, told = BAD[kind]
    with pytest.raises(error, match=f"(?s){told}"):
        call(case("mlp"))


TRACED = ("groups-mapping", "groups-pattern", "no-parameters")
"""What is known only of the network's layers in the order of their calls."""


def never() -> Iterator[Any]:
    """A loader that must not be read."""
    raise AssertionError("the loader was read")
    yield


@pytest.mark.parametrize("kind", [kind for kind in BAD if kind not in TRACED])
def test_it_is_refused_before_the_data_is_read(kind: str) -> None:
    call, error, told = BAD[kind]
    c = case("mlp")
    with pytest.raises(error, match=f"(?s){told}"):
        call(Case(c.model, c.theta_0, c.theta_T, never()))  # type: ignore[arg-type]


@pytest.mark.parametrize("verb", VERBS)
def test_an_empty_loader_is_an_error(verb: str) -> None:
    with pytest.raises(ValueError, match=r"loader.*empty"):
        VERBS[verb](case("mlp"), loader=iter(()))


@pytest.mark.parametrize("verb", VERBS)
def test_an_exception_names_its_batch(verb: str) -> None:
    with pytest.raises(Mishap) as caught:
        VERBS[verb](case("mlp"), loader=raises_at_once(Mishap("no")))
    assert any("batch 0" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("verb", VERBS)
def test_the_warning_of_nan_is_one_and_points_to_the_caller(verb: str) -> None:
    c = case("mlp")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        VERBS[verb](Case(c.model, c.theta_0, spoilt(c.theta_T), c.batches))
    assert [FilePath(w.filename).parent.name for w in caught] == ["tests"]
