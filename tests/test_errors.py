"""Bad input gets an error that names the key, the shapes or the batch, and says what to do."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import mli_fast
from tests.cases import Case, assert_same_points, case
from tests.data import Batch
from tests.models import endpoints_of
from tests.reference import assert_as_exact_as_torch, plain_loop

State = dict[str, Tensor]
THIRD = r"batch 2\b"  # batches are counted from 0, as enumerate does


def without(state: State, key: str) -> State:
    """The state less one key."""
    return {name: value for name, value in state.items() if name != key}


def says(*parts: str) -> str:
    """A pattern that finds all parts, in any order."""
    return "(?s)" + "".join(f"(?=.*{part})" for part in parts)


# ---------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("which", ["theta_0", "theta_T"])
def test_a_missing_key_is_named(which: str) -> None:
    c = case("mlp")
    with pytest.raises(ValueError, match=says(which, re.escape("4.bias"))):
        c.sweep(3, **{which: without(getattr(c, which), "4.bias")})


@pytest.mark.parametrize("which", ["theta_0", "theta_T"])
def test_a_key_too_many_is_named(which: str) -> None:
    c = case("mlp")
    with pytest.raises(ValueError, match=says(which, re.escape("6.weight"))):
        c.sweep(3, **{which: getattr(c, which) | {"6.weight": torch.zeros(2)}})


def test_checkpoints_of_another_model_name_keys_of_both_sides() -> None:
    c, other = case("mlp"), case("one-parameter")
    with pytest.raises(ValueError, match=says(re.escape("0.weight"), "scale")):
        c.sweep(3, theta_0=other.theta_0, theta_T=other.theta_T)


def test_an_unknown_common_prefix_is_hinted_at() -> None:
    c = case("mlp")
    prefixed = {f"trunk.net.{key}": value for key, value in c.theta_T.items()}
    with pytest.raises(ValueError, match=says("theta_T", r"starts with .trunk\.net\.")):
        c.sweep(3, theta_T=prefixed)


def test_the_prefix_of_data_parallel_is_understood() -> None:
    c = case("mlp")
    prefixed = {f"module.{key}": value for key, value in c.theta_T.items()}
    assert_same_points(c.sweep(3, theta_T=prefixed), c.sweep(3), range(3))


@pytest.mark.parametrize("which", ["theta_0", "theta_T"])
def test_a_shape_that_differs_is_shown_with_the_other(which: str) -> None:
    c = case("mlp")
    longer = getattr(c, which) | {"2.weight": torch.zeros(7, 12)}
    with pytest.raises(ValueError, match=says(which, re.escape("2.weight"), r"7, 12", r"7, 11")):
        c.sweep(3, **{which: longer})


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_dtypes_that_differ_are_computed_in_the_wider_and_recorded(engine: str, narrow: torch.dtype) -> None:
    c = case("mlp")
    half = {key: value.to(narrow) for key, value in c.theta_0.items()}
    widened = {key: value.float() for key, value in half.items()}
    result = c.sweep(5, theta_0=half)
    assert_same_points(result, c.sweep(5, theta_0=widened), range(5))
    assert str(narrow) in str(result.provenance)


def test_one_double_endpoint_is_no_less_exact(engine: str) -> None:
    c = case("mlp")
    double = {key: value.double() for key, value in c.theta_0.items()}
    arguments = (c.model, c.theta_0, c.theta_T, c.batches, np.linspace(0, 1, 5))
    single = plain_loop(*arguments, dtype=torch.float32).loss
    assert_as_exact_as_torch(c.sweep(5, theta_0=double).loss, plain_loop(*arguments).loss, single)


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_checkpoints_stored_in_half_are_computed_in_the_precision_asked_for(engine: str, narrow: torch.dtype) -> None:
    c = case("cnn-bn")
    halves = [{k: v.to(narrow) if v.is_floating_point() else v for k, v in s.items()} for s in (c.theta_0, c.theta_T)]
    arguments = (c.model, *halves, c.batches, np.linspace(0, 1, 5))
    result = c.sweep(5, theta_0=halves[0], theta_T=halves[1], precision="fp64")
    np.testing.assert_allclose(result.loss, plain_loop(*arguments).loss, rtol=1e-10)


def test_integer_buffers_that_differ_are_an_ends_own_and_recorded(engine: str) -> None:
    c = case("integer-buffer")
    assert not torch.equal(c.theta_0["order"], c.theta_T["order"])
    result = c.sweep([0.0, 0.5])
    assert "order" in str(result.provenance)
    same = c.sweep([0.5], theta_0=c.theta_0 | {"order": c.theta_T["order"]})
    assert_same_points(same, result, [1])
    assert_same_points(c.sweep([0.0], theta_T=c.theta_0), result, [0])


def test_tied_names_with_different_values_are_refused() -> None:
    c = case("gpt2")
    torn = c.theta_T | {"lm_head.weight": c.theta_T["lm_head.weight"] + 1}
    with pytest.raises(ValueError, match=says("theta_T", r"lm_head\.weight", r"transformer\.wte\.weight")):
        c.sweep(3, theta_T=torn)


def test_one_name_of_a_tied_weight_is_enough(engine: str) -> None:
    c = case("gpt2")
    single = [without(state, "lm_head.weight") for state in (c.theta_0, c.theta_T)]
    assert_same_points(c.sweep(3, theta_0=single[0], theta_T=single[1]), c.sweep(3), range(3))


def test_a_checkpoint_that_needs_code_is_refused_with_the_way_out(tmp_path: Path) -> None:
    c, path = case("mlp"), tmp_path / "whole-module.pt"
    torch.save(c.model, path)
    with pytest.raises(ValueError, match=says(re.escape(str(path)), "safetensors")):
        c.sweep(3, theta_T=path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_truncated_file_is_an_error_with_its_path(tmp_path: Path, suffix: str) -> None:
    c, path = case("mlp"), tmp_path / f"final{suffix}"
    torch.save(c.theta_T, path) if suffix == ".pt" else save_file(c.theta_T, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        c.sweep(3, theta_T=path)


@pytest.mark.parametrize("name", ["nowhere.pt", "nowhere.safetensors", "no/such/folder"])
def test_a_missing_file_is_an_error_with_its_path(tmp_path: Path, name: str) -> None:
    c = case("mlp")
    with pytest.raises((FileNotFoundError, ValueError), match=re.escape(str(tmp_path / name))):
        c.sweep(3, theta_0=str(tmp_path / name))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_give_what_state_dicts_give(tmp_path: Path, suffix: str, engine: str) -> None:
    c = case("cnn-bn")
    paths = {}
    for which in ("theta_0", "theta_T"):
        paths[which] = tmp_path / f"{which}{suffix}"
        state = getattr(c, which)
        torch.save(state, paths[which]) if suffix == ".pt" else save_file(state, paths[which])
    assert_same_points(c.sweep(3, **paths), c.sweep(3), range(3))


# --------------------------------------------------------------------------------------------------------------- alphas


@pytest.mark.parametrize(
    "alphas",
    [
        [], np.empty(0), torch.empty(0), [[0.0, 1.0]], np.zeros((2, 2)), torch.zeros(1, 1), 0, -3,
        [0.0, float("nan")], [float("inf")], np.array([0.5, -np.inf]), torch.tensor([float("nan")]),
    ],
    ids=[
        "empty-list", "empty-array", "empty-tensor", "2-d-list", "2-d-array", "2-d-tensor", "count-0", "count-negative",
        "nan", "inf", "minus-inf", "nan-tensor",
    ],
)  # fmt: skip
def test_alphas_that_make_no_curve_are_refused(alphas: Any) -> None:
    with pytest.raises(ValueError, match="alphas"):
        case("mlp").sweep(alphas)


@pytest.mark.parametrize("alphas", ["50", None, [object()], ["a"]], ids=["string", "none", "objects", "strings"])
def test_alphas_of_the_wrong_type_are_refused(alphas: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="alphas"):
        case("mlp").sweep(alphas)


# ----------------------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize(
    "loader",
    [list, tuple, lambda: iter(()), lambda: [(torch.empty(0, 6), torch.empty(0, dtype=torch.long))]],
    ids=["list", "tuple", "generator", "no-examples"],
)
def test_an_empty_loader_is_an_error(loader: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"(?i)loader.*(empty|no batch|nothing)|no batch of the loader"):
        case("mlp").sweep(3, loader=loader())


def test_a_pair_of_unequal_lengths_is_an_error_with_both() -> None:
    with pytest.raises(ValueError, match=says(r"\b13\b", r"\b12\b")):
        case("mlp").sweep(3, loader=(torch.randn(13, 6), torch.zeros(12, dtype=torch.long)))


def test_a_pair_without_examples_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"(?i)empty|no example"):
        case("mlp").sweep(3, loader=(torch.randn(0, 6), torch.zeros(0, dtype=torch.long)))


def with_third(batches: list[Batch], change: Callable[[Tensor, Tensor], Batch]) -> list[Batch]:
    """The batches with the third one changed."""
    return [*batches[:2], change(*batches[2])]


def first_target(value: int) -> Callable[[Tensor, Tensor], Batch]:
    """A change of the first target to `value`."""
    return lambda x, y: (x, torch.cat([torch.tensor([value]), y[1:]]))


BAD_TARGETS: dict[str, tuple[Callable[[Tensor, Tensor], Batch], tuple[str, ...]]] = {
    "too-large": (first_target(4), (r"\b4\b", "class")),
    "far-too-large": (first_target(1000), (r"\b1000\b", r"\b4\b")),
    "negative": (first_target(-1), (r"-1\b", "class")),
    "float": (lambda x, y: (x, y.float()), ("float32",)),
    "bool": (lambda x, y: (x, y > 1), ("bool",)),
    "column": (lambda x, y: (x, y[:, None]), (r"3, 1",)),
    "too-few": (lambda x, y: (x, y[:2]), (r"\b2\b", r"\b3\b")),
    "scalar": (lambda x, y: (x, y[0]), (r"shape",)),
    "not-a-tensor": (lambda x, y: (x, y.tolist()), ("list",)),
}


@pytest.mark.parametrize("kind", BAD_TARGETS)
def test_bad_targets_are_an_error_with_the_batch_and_what_was_seen(engine: str, kind: str) -> None:
    change, seen = BAD_TARGETS[kind]
    c = case("mlp")
    with pytest.raises((ValueError, TypeError), match=says(THIRD, *seen)):
        c.sweep(3, loader=with_third(c.batches, change))


@pytest.mark.parametrize("criterion", ["mse", "bce_with_logits"])
def test_targets_that_would_broadcast_are_an_error_with_both_shapes(engine: str, criterion: str) -> None:
    c = case("regression-mse" if criterion == "mse" else "multi-label-bce")
    wrong = with_third(c.batches, lambda x, y: (x, y[:, 0]))
    with pytest.raises(ValueError, match=says(THIRD, r"3, [34]\b", r"[(\[]3,?[)\]]")):
        c.sweep(3, loader=wrong, criterion=criterion, metrics=())


def all_or_one(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """A single example's values must not be taken for all the others'."""
    outputs = model(batch[0])
    rows = 1 if outputs[0, 0] > outputs[1, 0] else len(outputs)
    return outputs[:rows], batch[1][:rows]


def ignoring(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Targets that count at some points and not at others."""
    outputs, targets = model(batch[0]), batch[1].clone()
    targets[outputs.amax(1) < outputs.amax()] = -100
    return outputs, targets


def by_its_own_labels(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    outputs = model(batch[0])
    return outputs, outputs.argmax(1)


@pytest.mark.parametrize(
    ("forward", "metrics", "told"),
    [
        (all_or_one, (), r"batch \d+: \d examples at some points and \d at others.*criterion"),
        (ignoring, (), "differs from point to point.*criterion"),
        (by_its_own_labels, ("class_loss",), "differs from point to point.*criterion"),
    ],
)
def test_points_that_are_scored_on_other_examples_are_refused(
    engine: str, forward: Any, metrics: tuple[str, ...], told: str
) -> None:
    torch.manual_seed(0)
    a, b = (nn.Linear(6, 4) for _ in range(2))
    data = [(torch.randn(7, 6), torch.arange(7) % 4) for _ in range(3)]
    with pytest.raises(ValueError, match=f"(?s){told}"):
        mli_fast.sweep(a, a, b, data, 9, forward=forward, metrics=metrics, progress=False)


def test_labels_of_a_points_own_are_scored(engine: str) -> None:
    torch.manual_seed(0)
    a, b = (nn.Linear(6, 4) for _ in range(2))
    data = [(torch.randn(7, 6), torch.arange(7) % 4) for _ in range(3)]
    assert mli_fast.sweep(a, a, b, data, 9, forward=by_its_own_labels, progress=False).accuracy.tolist() == [1.0] * 9


def test_a_batch_that_is_no_pair_is_an_error_that_points_to_forward() -> None:
    c = case("mlp")
    wrong = [*c.batches[:2], torch.randn(3, 6)]
    with pytest.raises((ValueError, TypeError), match=says(THIRD, "forward")):
        c.sweep(3, loader=wrong)


def test_a_dict_batch_without_labels_is_an_error_that_names_its_keys() -> None:
    c = case("two-named-inputs")
    wrong = [*c.batches[:2], {key: value for key, value in c.batches[2].items() if key != "labels"}]
    with pytest.raises((ValueError, KeyError), match=says(THIRD, "labels", "left", "right")):
        c.sweep(3, loader=wrong)


def test_something_that_is_no_loader_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="loader"):
        case("mlp").sweep(3, loader=17)


# ------------------------------------------------------------------------------------------------------------ arguments

BAD_ARGUMENTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "criterion": ({"criterion": "cross-entropy"}, ("criterion", "cross-entropy", "cross_entropy", "causal_lm")),
    "metric": ({"metrics": ("acuracy",)}, ("acuracy", "accuracy", "class_loss")),
    "batch_norm": ({"batch_norm": "keep"}, ("batch_norm", "keep", "interpolate", "start")),
    "precision": ({"precision": "float32"}, ("precision", "float32", "fp32", "bf16")),
    "backend": ({"backend": "cudnn"}, ("backend", "cudnn", "reference", "native")),
    "chunk-0": ({"chunk": 0}, ("chunk",)),
    "chunk-negative": ({"chunk": -2}, ("chunk",)),
    "chunk-text": ({"chunk": "many"}, ("chunk", "many")),
    "chunk-float": ({"chunk": 2.5}, ("chunk",)),
    "model": ({"model": lambda x: x}, ("model", "Module")),
    "theta_0": ({"theta_0": 17}, ("theta_0|int",)),
    "theta_T": ({"theta_T": {"0.weight": 3}}, ("theta_T|0.weight",)),
    "device": ({"device": "abacus"}, ("abacus",)),
    "metric-callable": ({"metrics": {"mine": 3}}, ("mine",)),
}


@pytest.mark.parametrize("kind", BAD_ARGUMENTS)
def test_a_bad_argument_is_named_together_with_what_would_do(kind: str) -> None:
    options, seen = BAD_ARGUMENTS[kind]
    with pytest.raises((ValueError, TypeError, RuntimeError), match=says(*seen)):
        case("mlp").sweep(3, **options)


def test_bad_arguments_are_found_before_the_data_is_touched() -> None:
    def never() -> Iterator[Batch]:
        raise AssertionError("the loader was read")
        yield

    for options in (BAD_ARGUMENTS[kind][0] for kind in BAD_ARGUMENTS):
        with pytest.raises((ValueError, TypeError, RuntimeError)):
            case("mlp").sweep(3, loader=never(), **options)


@pytest.mark.parametrize("what", ["criterion", "metric"])
def test_a_callable_that_returns_another_shape_is_an_error_that_shows_it(engine: str, what: str) -> None:
    def pairs(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs[:, :2]

    options = {"criterion": pairs} if what == "criterion" else {"metrics": {"pairs": pairs}}
    with pytest.raises(ValueError, match=says("pairs|criterion", r"5, 2", r"\b5\b")):
        case("mlp").sweep(3, **({"metrics": ()} | options))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises((ValueError, RuntimeError), match=r"(?i)cuda"):
        case("mlp").sweep(3, device="cuda")


@pytest.mark.parametrize("device", ["mps", "xpu", "hpu", "vulkan", "nonsense", "", 1.5])
def test_a_device_that_cannot_be_used_is_one_sentence(device: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"^device='{device}' cannot be used: .* no such device.*; pass 'cpu', or 'cu"
    ):
        case("mlp").sweep(3, device=device)


def test_the_meta_device_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^device='meta' holds no values; pass 'cpu', or 'cuda' for a GPU$"):
        case("mlp").sweep(3, device="meta")


# ---------------------------------------------------------------------------------- exceptions of the caller's own code


class Mishap(Exception):
    """An error that only the caller's code can raise."""

    def __init__(self, text: str, code: int) -> None:  # two arguments: it cannot be rebuilt from its message
        super().__init__(text)
        self.code = code


class Raises(nn.Module):
    """A model that raises in a batch of three."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        if len(x) == 3:
            raise Mishap("in the model", 41)
        return self.last(hidden)


def raising_loader(batches: list[Batch]) -> Iterator[Batch]:
    """Two batches, then an error."""
    yield from batches[:2]
    raise Mishap("in the loader", 42)


def raising_metric(outputs: Tensor, targets: Tensor) -> Tensor:
    """A metric that raises in a batch of three."""
    if len(targets) == 3:
        raise Mishap("in the metric", 43)
    return outputs.mean(1)


@pytest.mark.parametrize(("where", "code"), [("model", 41), ("loader", 42), ("metric", 43)])
def test_the_callers_exception_keeps_its_type_and_gains_batch_and_chunk(engine: str, where: str, code: int) -> None:
    c = case("mlp")
    options: dict[str, Any] = {"chunk": 2}
    if where == "model":
        model = Raises()
        c = Case(model, *endpoints_of(lambda _: model), c.batches)
    elif where == "loader":
        options["loader"] = raising_loader(c.batches)
    else:
        options["metrics"] = {"mine": raising_metric}
    with pytest.raises(Mishap, match=f"in the {where}") as caught:
        c.sweep(4, **options)
    assert caught.value.code == code
    notes = "\n".join(caught.value.__notes__)
    assert re.search(THIRD, notes), notes
    assert where == "loader" or re.search(r"chunk|point|alpha", notes), notes


def test_torchs_own_error_in_the_model_gains_the_batch_too(engine: str) -> None:
    c = case("mlp")
    wrong = [*c.batches[:2], (torch.randn(3, 7), c.batches[2][1])]
    with pytest.raises((RuntimeError, ValueError)) as caught:
        c.sweep(3, loader=wrong)
    notes = str(caught.value) + "\n".join(getattr(caught.value, "__notes__", []))
    assert re.search(THIRD, notes), notes


def test_the_public_names_are_there() -> None:
    assert {"sweep", "SweepResult", "load", "backends"} <= set(dir(mli_fast))


class Smoothed(nn.Module):
    """A criterion that carries a mean from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, outputs: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        self.mean.mul_(0.9).add_(outputs.mean(0), alpha=0.1)
        return ((outputs - self.mean) ** 2).sum(1)


def noisy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs + torch.randn(4), targets, reduction="none")


@pytest.mark.parametrize("function", [Smoothed(), noisy], ids=["state", "random"])
@pytest.mark.parametrize("where", ["criterion", "metrics"])
def test_scoring_that_is_no_function_of_its_arguments(function: Any, where: str) -> None:
    given = {"criterion": function, "metrics": ()} if where == "criterion" else {"metrics": {"own": function}}
    with pytest.raises(ValueError, match="other values for the same outputs"):
        case("mlp").sweep([0.0, 0.5, 1.0], **given)


def test_a_mean_of_unclear_many() -> None:
    c, weights = case("mlp"), torch.ones(4)

    def one_number(outputs: torch.Tensor, targets: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, targets[1], weight=targets[0])

    def each(outputs: torch.Tensor, targets: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, targets[1], reduction="none")

    options = {"forward": lambda model, batch: (model(batch[0]), (weights, batch[1])), "metrics": ()}
    with pytest.raises(ValueError, match=r"returned one number.*are 4, 5"):
        c.sweep([0.0, 1.0], criterion=one_number, **options)
    assert_same = np.testing.assert_allclose
    assert_same(c.sweep([0.0, 1.0], criterion=each, **options).loss, c.sweep([0.0, 1.0]).loss, rtol=1e-6)


# ------------------------------------------------------------------------------------------------- what is said, once


def said_once(what: str, run: Callable[[], Any]) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run()
    found = [w for w in seen if re.search(what, str(w.message))]
    assert len(found) == 1, [str(w.message) for w in seen]
    assert Path(found[0].filename).parent == Path(__file__).parent, "it does not name the caller's line"


def normed() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 4))


def test_ends_in_the_same_memory() -> None:
    c = case("mlp")
    model = copy.deepcopy(c.model)
    theta_0 = model.state_dict()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    said_once("theta_0 and theta_T are the same memory", lambda: c.sweep(3, theta_0=theta_0, theta_T=model))


def test_an_end_that_is_trained_meanwhile() -> None:
    c = case("mlp")
    model = copy.deepcopy(c.model)

    def batches() -> Iterator[Batch]:
        for batch in c.batches:
            with torch.no_grad():
                model[0].weight.add_(0.1)  # type: ignore[operator]
            yield batch

    with pytest.raises(ValueError, match=r"theta_T: '0\.weight' was written to during the sweep"):
        c.sweep(3, theta_T=model, loader=batches())


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_codes_of_quantised_weights(dtype: torch.dtype) -> None:
    c = case("mlp")
    with pytest.raises(ValueError, match=rf"theta_T: '0\.weight' is {dtype}.*dequantise"):
        c.sweep(3, theta_T=c.theta_T | {"0.weight": c.theta_T["0.weight"].to(dtype)})


@pytest.mark.parametrize("policy", ["start", "end", "batch", "recalibrate", "recalibrate-ema", "update-bn"])
def test_a_policy_without_a_batch_norm(policy: str) -> None:
    c = case("mlp")
    options = {} if policy in ("start", "end", "batch") else {"calibration": c.batches}
    said_once(f"'{policy}' found no batch norm", lambda: c.sweep(3, batch_norm=policy, **options))


def test_a_variance_that_becomes_negative() -> None:
    ends, x = [normed(), normed()], torch.randn(9, 6)
    ends[1][1].running_var.fill_(0.1)  # type: ignore[union-attr]
    data = [(x, torch.arange(9) % 4)]
    run = lambda alphas: lambda: mli_fast.layerwise(ends[0], *ends, data, alphas, progress=False)  # noqa: E731
    said_once(r"'1.running_var' is negative at 4\.0", run([0.0, 1.0, 4.0, 5.0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run([0.0, 0.5, 1.0])()


@pytest.mark.parametrize("given", [nn.CrossEntropyLoss, nn.MSELoss])
def test_a_criterion_that_is_a_class(given: type) -> None:
    with pytest.raises(TypeError, match=rf"criterion={given.__name__} is a class; pass an instance"):
        case("mlp").sweep(3, criterion=given)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (lambda x: x.long(), r"inputs of shapes \(5, 6\), torch.int64; forward=.* precision="),
        (list, r"inputs of shapes \[\(6,\), .*forward="),
    ],
    ids=["integers", "list of examples"],
)
def test_a_call_that_fails_says_what_the_model_was_given(inputs: Callable[[Any], Any], words: str) -> None:
    c = case("mlp")
    with pytest.raises((RuntimeError, TypeError)) as caught:
        c.sweep(3, loader=[(inputs(x), y) for x, y in c.batches])
    assert re.search(words, " ".join(caught.value.__notes__))


def test_class_probabilities_name_the_criterion_that_takes_them() -> None:
    c = case("mlp")
    soft = [(x, nn.functional.one_hot(y, 4).float()) for x, y in c.batches]
    with pytest.raises(ValueError, match=r"class probabilities: criterion=nn\.CrossEntropyLoss\(\)"):
        c.sweep(3, loader=soft)
    hard = c.sweep(3, criterion=nn.CrossEntropyLoss()).loss
    given = c.sweep(3, loader=soft, criterion=nn.CrossEntropyLoss(), metrics=()).loss
    np.testing.assert_allclose(given, hard, rtol=1e-6)


def test_an_example_without_a_batch_dimension() -> None:
    c = case("mlp")
    with pytest.raises(ValueError, match="give the inputs a batch dimension"):
        c.sweep(3, loader=[(c.batches[0][0][0], c.batches[0][1][0])])


class Adapted(nn.Module):
    """A linear layer and a low-rank change of it."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.lora_A, self.lora_B = nn.Linear(6, 4), nn.Linear(6, 2, bias=False), nn.Linear(2, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.lora_B(self.lora_A(x))


def test_low_rank_factors_that_move_apart() -> None:
    c, ends = case("mlp"), [Adapted(), Adapted()]
    said_once("'lora_A.weight' and its partner", lambda: mli_fast.sweep(ends[0], *ends, c.batches, 3, progress=False))
    ends[1].lora_A.load_state_dict(ends[0].lora_A.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mli_fast.sweep(ends[0], *ends, c.batches, 3, progress=False)
