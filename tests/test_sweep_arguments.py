"""Every argument of `sweep` in every form that it may take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import mli_fast
from mli_fast.ops import backend
from tests.cases import Case, assert_same_points, case, named
from tests.data import Batch
from tests.models import ARCHITECTURES, endpoints_of
from tests.reference import assert_as_exact_as_torch, plain_loop, standard_error, to_dtype

ALPHAS = [0.0, 0.25, 0.6, 1.0]


def exact(c: Case, criterion: Any = "cross_entropy", **options: Any) -> Any:
    """The plain loop in fp64 on a case."""
    return plain_loop(c.model, c.theta_0, c.theta_T, c.batches, ALPHAS, criterion, **options)


# --------------------------------------------------------------------------------------------------------------- alphas


@pytest.mark.parametrize(
    ("alphas", "expected"),
    [
        pytest.param(5, [0.0, 0.25, 0.5, 0.75, 1.0], id="count"),
        pytest.param(1, [0.0], id="count-1"),
        pytest.param(np.int64(3), [0.0, 0.5, 1.0], id="numpy-count"),
        pytest.param([0.1, 0.7], [0.1, 0.7], id="list"),
        pytest.param((0, 1), [0.0, 1.0], id="tuple-of-ints"),
        pytest.param(range(-1, 3), [-1.0, 0.0, 1.0, 2.0], id="range-outside"),
        pytest.param(np.array([0.9, 0.1]), [0.9, 0.1], id="array-descending"),
        pytest.param(np.array([0.1], dtype=np.float32), [float(np.float32(0.1))], id="float32-array"),
        pytest.param(torch.tensor([0.25, -0.5]), [0.25, -0.5], id="tensor"),
        pytest.param(torch.tensor([0.1], dtype=torch.float64), [0.1], id="float64-tensor"),
        pytest.param([0.5, 0.5], [0.5, 0.5], id="duplicates"),
    ],
)
def test_alphas_in_any_form_are_kept_in_their_order(alphas: Any, expected: list[float]) -> None:
    result = case("mlp").sweep(alphas)
    assert result.alphas.dtype == np.float64
    assert result.alphas.tolist() == expected
    assert result.loss.shape == result.accuracy.shape == (len(expected),)
    assert_same_points(result, case("mlp").sweep(expected), range(len(expected)))


def test_fifty_alphas_are_the_default() -> None:
    c = case("mlp")
    result = mli_fast.sweep(c.model, c.theta_0, c.theta_T, c.batches, progress=False)
    np.testing.assert_array_equal(result.alphas, np.linspace(0, 1, 50))
    assert np.isfinite(result.accuracy).all()


# ------------------------------------------------------------------------------------------------------------ criterion


class TinyLanguageModel(nn.Module):
    """Logits [B, T, V] as a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.last = nn.Embedding(11, 6), nn.Linear(6, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(torch.tanh(self.words(tokens).cumsum(1)))


class OneOutput(nn.Module):
    """A single number per example, [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x))).squeeze(1)


class ImageToImage(nn.Module):
    """[B, 2, H, W] from [B, 2, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.conv(x))


def made(model: nn.Module, batches: list[Batch], criterion: str) -> Case:
    """A case of a model that the registry does not have."""
    return Case(model.eval(), *endpoints_of(lambda _: model), batches, criterion, ())


def language_case() -> Case:
    """Token batches with some labels ignored."""
    g = torch.Generator().manual_seed(5)
    batches = []
    for n in (4, 3):
        tokens = torch.randint(0, 11, (n, 6), generator=g)
        labels = tokens.clone()
        labels[0, :4] = -100
        batches.append((tokens, labels))
    return made(TinyLanguageModel(), batches, "causal_lm")


def numbers_case(criterion: str) -> Case:
    """One number per example."""
    batches = [(x, (y.float() > 1).float()) for x, y in case("mlp").batches]
    return made(OneOutput(), batches, criterion)


def images_case() -> Case:
    """Images onto images."""
    g = torch.Generator().manual_seed(6)
    draws = [(torch.randn(n, 2, 4, 3, generator=g), torch.randn(n, 2, 4, 3, generator=g)) for n in (3, 2)]
    return made(ImageToImage(), draws, "mse")


CRITERIA: dict[str, Callable[[], Case]] = {
    "cross_entropy": lambda: case("mlp"),
    "cross_entropy-per-pixel": lambda: case("segmentation"),
    "nll": lambda: case("log-softmax-nll"),
    "mse": lambda: case("regression-mse"),
    "mse-one-number": lambda: numbers_case("mse"),
    "mse-images": images_case,
    "bce_with_logits": lambda: case("multi-label-bce"),
    "bce_with_logits-one-number": lambda: numbers_case("bce_with_logits"),
    "causal_lm": language_case,
    "causal_lm-dicts": lambda: case("llama"),
}


@pytest.mark.parametrize("kind", CRITERIA)
def test_every_named_criterion_equals_the_plain_loop(engine: str, kind: str) -> None:
    c = CRITERIA[kind]()
    reference = exact(c, c.criterion)
    result = c.sweep(ALPHAS, precision="fp64")
    np.testing.assert_allclose(result.loss, reference.loss, rtol=1e-10)
    np.testing.assert_allclose(result["loss_stderr"], standard_error(reference.losses, reference.weights), rtol=1e-8)


def smoothed(outputs: Tensor, targets: Tensor) -> Tensor:
    """Per-example losses [B]."""
    return F.cross_entropy(outputs, targets, reduction="none", label_smoothing=0.1)


def batch_mean(outputs: Tensor, targets: Tensor) -> Tensor:
    """A 0-d loss: the mean over the batch."""
    return F.cross_entropy(outputs, targets, label_smoothing=0.1)


@pytest.mark.parametrize("criterion", [smoothed, batch_mean], ids=["per-example", "batch-mean"])
def test_a_callable_criterion(engine: str, criterion: Callable[[Tensor, Tensor], Tensor]) -> None:
    c = case("mlp")
    result = c.sweep(ALPHAS, precision="fp64", criterion=criterion, metrics=("accuracy",))
    np.testing.assert_allclose(result.loss, exact(c, smoothed).loss, rtol=1e-10)
    np.testing.assert_allclose(result.accuracy, exact(c).accuracy, rtol=1e-14)


def test_a_module_criterion(engine: str) -> None:
    c = case("mlp")
    result = c.sweep(ALPHAS, precision="fp64", criterion=nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1))
    np.testing.assert_allclose(result.loss, exact(c, smoothed).loss, rtol=1e-10)


@pytest.mark.parametrize("name", ["lstm", "item"])
def test_a_callable_criterion_of_networks_that_read_values_or_recur(name: str) -> None:
    c = case(name)
    result = c.sweep(ALPHAS, precision="fp64", criterion=smoothed, metrics=())
    np.testing.assert_allclose(result.loss, exact(c, smoothed).loss, rtol=1e-10)


# -------------------------------------------------------------------------------------------------------------- metrics


def margin(outputs: Tensor, targets: Tensor) -> Tensor:
    """The logit of the true class above the mean of all, [B]."""
    return outputs.gather(1, targets[:, None]).squeeze(1) - outputs.mean(1)


def is_wrong(outputs: Tensor, targets: Tensor) -> Tensor:
    """A metric that gives booleans, [B]."""
    return outputs.argmax(1) != targets


def test_metrics_of_ones_own_come_with_their_standard_error(engine: str) -> None:
    c = case("mlp")
    result = c.sweep(ALPHAS, precision="fp64", metrics={"margin": margin, "error": is_wrong})
    margins, reference = exact(c, margin).losses, exact(c)
    assert reference.correct is not None
    np.testing.assert_allclose(result["margin"], margins.mean(1), rtol=1e-9)
    np.testing.assert_allclose(result["margin_stderr"], standard_error(margins), rtol=1e-7)
    np.testing.assert_allclose(result["error"], 1 - reference.accuracy, rtol=1e-13)
    np.testing.assert_allclose(result["error_stderr"], standard_error(1 - reference.correct), rtol=1e-7)


def test_no_metrics_leave_the_loss() -> None:
    result = case("mlp").sweep(ALPHAS, metrics=())
    assert np.isfinite(result.loss).all()
    with pytest.raises((KeyError, AttributeError), match="accuracy"):
        _ = result.accuracy


@pytest.mark.parametrize("metric", ["accuracy", "class_loss", "class_accuracy", "prediction_histogram"])
def test_one_named_metric_alone(engine: str, metric: str) -> None:
    c = case("cnn-bn")
    result = c.sweep(ALPHAS, metrics=[metric], precision="fp64")
    np.testing.assert_allclose(result[metric], getattr(exact(c), metric), rtol=1e-9)
    if metric != "accuracy":
        assert result.dataset["class"].values.tolist() == [0, 1, 2, 3]


# --------------------------------------------------------------------------------------------------------------- loader


def whole(c: Case) -> tuple[Tensor, Tensor]:
    """All inputs and all targets."""
    return torch.cat([x for x, _ in c.batches]), torch.cat([y for _, y in c.batches])


LOADERS: dict[str, Callable[[Case], Any]] = {
    "pair": whole,
    "list-of-tuples": lambda c: c.batches,
    "list-of-lists": lambda c: [list(batch) for batch in c.batches],
    "tuple-of-tuples": lambda c: tuple(c.batches),
    "data-loader": lambda c: DataLoader(TensorDataset(*whole(c)), batch_size=5),
    "data-loader-workers": lambda c: DataLoader(TensorDataset(*whole(c)), batch_size=5, num_workers=1),
    "data-loader-odd": lambda c: DataLoader(TensorDataset(*whole(c)), batch_size=4),
    "generator": lambda c: (batch for batch in c.batches),
    "dicts": lambda c: [{"input": x, "labels": y} for x, y in c.batches],
    "int32-targets": lambda c: [(x, y.int()) for x, y in c.batches],
    "uint8-targets": lambda c: [(x, y.to(torch.uint8)) for x, y in c.batches],
    "double-inputs": lambda c: [(x.double(), y) for x, y in c.batches],
    "not-contiguous": lambda c: [(x.t().contiguous().t(), y) for x, y in c.batches],
}


@pytest.mark.parametrize("kind", LOADERS)
def test_every_kind_of_loader_gives_the_same_values(engine: str, kind: str) -> None:
    c = case("mlp")
    result = c.sweep(ALPHAS, loader=LOADERS[kind](c), precision="fp64")
    reference = exact(c)
    assert result.count == 13
    np.testing.assert_allclose(result.loss, reference.loss, rtol=1e-10)
    np.testing.assert_allclose(result["class_loss"], reference.class_loss, rtol=1e-10)
    np.testing.assert_allclose(result["loss_stderr"], standard_error(reference.losses), rtol=1e-8)


@pytest.mark.parametrize("precision", ["fp32", None])
def test_a_large_pair_is_cut_by_the_engine(engine: str, precision: str | None) -> None:
    c, n = case("mlp"), 5003
    g = torch.Generator().manual_seed(8)
    x, y = torch.randn(n, 6, generator=g), torch.randint(0, 4, (n,), generator=g)
    arguments = (c.model, c.theta_0, c.theta_T, [(x, y)], ALPHAS)
    result = c.sweep(ALPHAS, loader=(x, y), precision=precision)
    assert result.count == n
    in_64, in_32 = plain_loop(*arguments), plain_loop(*arguments, dtype=torch.float32)
    # over 5003 examples the plain loop's errors average out; one example's error is the fair measure
    peer = float(np.abs(in_32.losses - in_64.losses).mean())
    assert_as_exact_as_torch(result.loss, in_64.loss, in_32.loss, peer=peer)


def test_a_pair_stands_for_images_too(engine: str) -> None:
    c = case("cnn-bn")
    np.testing.assert_allclose(c.sweep(ALPHAS, loader=whole(c), precision="fp64").loss, exact(c).loss, rtol=1e-10)


def test_batches_of_any_layout_through_forward(engine: str) -> None:
    c = case("two-inputs")
    odd = [{"image": left, "meta": {"right": right}, "class": y} for (left, right), y in c.batches]

    def forward(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return model(batch["image"].to(model.left.weight.dtype), batch["meta"]["right"]), batch["class"]

    np.testing.assert_allclose(
        c.sweep(ALPHAS, loader=to_dtype(odd, torch.float64), forward=forward, precision="fp64").loss,
        exact(c).loss,
        rtol=1e-10,
    )


def test_forward_may_reshape_the_outputs(engine: str) -> None:
    c = case("gpt2")

    def forward(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return model(input_ids=batch["input_ids"]).logits[:, -1], batch["input_ids"][:, 0]

    def call(tokens: Tensor) -> Iterator[Batch]:
        yield from [(tokens, tokens[:, 0])]

    class LastLogits(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, tokens: Tensor) -> Tensor:
            return self.inner(input_ids=tokens).logits[:, -1]

    tokens = torch.cat([batch["input_ids"] for batch in c.batches])
    states = [{f"inner.{key}": value for key, value in state.items()} for state in (c.theta_0, c.theta_T)]
    reference = plain_loop(LastLogits(c.model), *states, list(call(tokens)), ALPHAS)
    result = c.sweep(ALPHAS, forward=forward, criterion="cross_entropy", metrics=("accuracy",), precision="fp64")
    np.testing.assert_allclose(result.loss, reference.loss, rtol=1e-10)
    np.testing.assert_allclose(result.accuracy, reference.accuracy, rtol=1e-14)


# --------------------------------------------------------------------------------------------- precision and the device


@pytest.mark.parametrize("name", ["mlp", "cnn-bn", "vit-plain", "gpt2"])
def test_bf16_is_as_exact_as_torchs_own(engine: str, name: str) -> None:
    c = case(name)
    peer = exact(c, c.criterion, dtype=torch.bfloat16)
    result = c.sweep(ALPHAS, precision="bf16")
    assert result.provenance["precision"] == "bf16"
    assert_as_exact_as_torch(result.loss, exact(c, c.criterion).loss, peer.loss, torch.bfloat16)
    assert np.abs(result.loss - exact(c, c.criterion).loss).max() > 1e-6  # it is bf16 indeed


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_precisions_that_a_cpu_does_not_have_say_so(precision: str) -> None:
    with pytest.raises(ValueError, match=f"(?is)(?=.*{precision})(?=.*cpu)"):
        case("mlp").sweep(3, precision=precision, device="cpu")


@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu")], ids=["none", "text", "device"])
def test_the_device_in_any_form(device: Any) -> None:
    c = case("mlp")
    assert_same_points(c.sweep(ALPHAS, device=device), c.sweep(ALPHAS), range(len(ALPHAS)))


@pytest.mark.parametrize("backend", ["reference", "native", "auto"])
@pytest.mark.parametrize("name", ["mlp", "wide", "cnn-bn", "norms", "gpt2", "bag-of-words"])
def test_every_backend_is_as_exact_as_torch(engine: str, name: str, backend: str) -> None:
    if backend == "native" and not mli_fast.backends()["native"]["available"]:
        with pytest.raises((ValueError, RuntimeError), match="native"):
            case("mlp").sweep(ALPHAS, backend=backend)
        return
    c = named(name)
    result = c.sweep(ALPHAS, backend=backend)
    in_64, in_32 = exact(c, c.criterion), exact(c, c.criterion, dtype=torch.float32)
    # the mean over hundreds of examples averages the plain loop's errors out: there one example's is the measure
    peer = float(np.abs(in_32.losses - in_64.losses).mean()) if name == "wide" else None
    assert_as_exact_as_torch(result.loss, in_64.loss, in_32.loss, peer=peer)
    assert backend == "auto" or result.provenance["backend"] == backend


def test_a_model_without_memory_is_architecture_enough(engine: str) -> None:
    c = case("cnn-bn")
    with torch.device("meta"):
        model = ARCHITECTURES["cnn-bn"].make()
    assert_same_points(c.sweep(ALPHAS, model=model, device="cpu"), c.sweep(ALPHAS), range(len(ALPHAS)))


@pytest.fixture
def not_interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As it is for users: Triton kernels run on a GPU or not at all."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    remembering = (backend._triton_missing, backend.usable)
    for function in remembering:
        function.cache_clear()
    yield
    monkeypatch.undo()
    for function in remembering:
        function.cache_clear()


@pytest.mark.usefixtures("not_interpreted")
def test_triton_on_a_cpu_says_what_to_use() -> None:
    with pytest.raises(ValueError, match=r"backend='triton' is not usable on cpu: Triton kernels run on a GPU"):
        case("mlp").sweep(3, backend="triton", device="cpu")


def test_backends_say_why_something_is_missing() -> None:
    answer = mli_fast.backends()
    assert answer["reference"]["available"] is True
    for name, entry in answer.items():
        assert isinstance(entry["available"], bool), name
        assert entry["available"] or entry["reason"].strip(), name


# ---------------------------------------------------------------------------------------------------- batch norm policy


@pytest.mark.parametrize("policy", ["interpolate", "start", "end"])
@pytest.mark.parametrize("name", ["cnn-bn", "mlp-batch-norm", "norms", "resnet", "mlp"])
def test_the_policy_of_batch_norm(engine: str, name: str, policy: str) -> None:
    c = case(name)
    reference = exact(c, batch_norm=policy)
    result = c.sweep(ALPHAS, precision="fp64", batch_norm=policy)
    np.testing.assert_allclose(result.loss, reference.loss, rtol=1e-10)
    assert result.provenance["batch_norm"] == policy


def test_the_policies_of_batch_norm_differ() -> None:
    """The cases above can tell the policies apart."""
    curves = [exact(case("cnn-bn"), batch_norm=policy).loss for policy in ("interpolate", "start", "end")]
    assert all(np.abs(a - b).max() > 1e-3 for a, b in ((curves[0], curves[1]), (curves[0], curves[2])))


@pytest.mark.parametrize("policy", ["recalibrate", "recalibrate-ema", "update-bn", "batch"])
def test_every_other_policy_is_taken_and_recorded(engine: str, policy: str) -> None:
    """Their values: tests/test_batch_norm.py."""
    c = case("cnn-bn")
    calibration = None if policy == "batch" else c.batches
    result = c.sweep(ALPHAS, batch_norm=policy, calibration=calibration)
    assert np.isfinite(result.loss).all()
    assert result.provenance["batch_norm"] == policy


# ------------------------------------------------------------------------------------------------ schedule, functionals


@pytest.mark.parametrize(
    ("schedule", "ends"),
    [
        pytest.param({"*": "linear"}, lambda c: (c.theta_0, c.theta_T), id="linear"),
        pytest.param({"*": "start"}, lambda c: (c.theta_0, c.theta_0), id="start"),
        pytest.param({"*": "end"}, lambda c: (c.theta_T, c.theta_T), id="end"),
    ],
)
def test_a_schedule_of_everything_is_a_sweep_of_other_ends(engine: str, schedule: Any, ends: Any) -> None:
    """Their values: tests/test_evaluate.py."""
    c = case("cnn-bn")
    theta_0, theta_T = ends(c)
    result = c.sweep(ALPHAS, schedule=schedule, precision="fp64")
    expected = c.sweep(ALPHAS, theta_0=theta_0, theta_T=theta_T, precision="fp64")
    np.testing.assert_allclose(result.loss, expected.loss, rtol=1e-12)
    assert result.provenance["schedule"] == schedule


@pytest.mark.parametrize(
    "metrics", ["gauss_length", ["accuracy", "path_length"], ("cka", "flips"), iter(["loss_slope"])]
)
def test_functionals_are_metrics_by_name(metrics: Any) -> None:
    """Their values: tests/test_functionals.py and tests/test_slopes.py."""
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    result = case("cnn-bn").sweep(ALPHAS, metrics=iter(names) if len(names) == 1 else metrics)
    for name in names:
        assert result.dataset[name].dims == (() if name in ("gauss_length", "path_length") else ("alpha",))
    assert result.provenance["metrics"] == names


# ----------------------------------------------------------------------------------------------- progress and compiling


@pytest.mark.parametrize("progress", [True, False, None], ids=["on", "off", "no-terminal"])
def test_the_bar_is_shown_where_asked_for(capfd: pytest.CaptureFixture[str], progress: bool | None) -> None:
    case("mlp").sweep(3, progress=progress)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert bool(shown.err) is bool(progress), shown.err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "cnn-bn"])
def test_compiled_gives_the_same_values(name: str) -> None:
    c = case(name)
    result = c.sweep(ALPHAS, compile=True)
    assert_as_exact_as_torch(result.loss, exact(c).loss, exact(c, dtype=torch.float32).loss)
    np.testing.assert_allclose(result.accuracy, exact(c).accuracy, rtol=1e-6)


@pytest.mark.parametrize("compiled", [False, "auto"])
def test_not_compiled_gives_the_same_values(compiled: bool | str) -> None:
    c = case("mlp")
    result = c.sweep(ALPHAS, compile=compiled)
    assert_as_exact_as_torch(result.loss, exact(c).loss, exact(c, dtype=torch.float32).loss)


@pytest.mark.parametrize("chunk", [1, 3, 100, "auto"])
def test_the_chunk_in_any_form(engine: str, chunk: int | str) -> None:
    c = case("cnn-bn")
    result = c.sweep(ALPHAS, chunk=chunk)
    assert_same_points(result, c.sweep(ALPHAS), range(len(ALPHAS)))
    assert 1 <= result.provenance["chunk"] <= len(ALPHAS)


@pytest.mark.parametrize("name", ["mlp", "cnn-bn", "conv3d", "lstm"])
def test_a_default_device_is_the_models_own_matter(name: str, engine: str) -> None:
    c = named(name)
    expected = c.sweep(ALPHAS)
    with torch.device("meta"):
        np.testing.assert_array_equal(c.sweep(ALPHAS).loss, expected.loss)
