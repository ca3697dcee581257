"""`gather`: what is blended, constant, kept or widened, and that nothing of the caller's changes."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mli_fast.checkpoints import Anchors, files, gather
from tests.checkpoints.cases import conv_bn, mlp, state_of


def mapped_file(tensor: Tensor) -> str:
    """Name the file whose mapping holds a tensor's memory ('' for ordinary memory)."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *rest = line.split(maxsplit=5)
        low, high = (int(end, 16) for end in span.split("-"))
        if low <= tensor.data_ptr() < high:
            return rest[4] if len(rest) == 5 else ""
    return ""


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs Linux to see mappings")
@pytest.mark.parametrize("name", ["big.safetensors", "big.pt"])
def test_large_files_are_mapped_not_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "COPIED", 1 << 20)
    path, state = tmp_path / name, {"weight": torch.randn(700, 600), "bias": torch.randn(700)}
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    anchors = gather(nn.Linear(600, 700), [path, {key: value + 1 for key, value in state.items()}])
    for key, (first, second) in anchors.values.items():
        assert torch.equal(first, state[key])
        assert mapped_file(first) == str(path), key  # still the mapping after matching and scanning: no copy was made
        assert mapped_file(second) != str(path)


def test_gather_sorts_values() -> None:
    model, start, end = conv_bn(), conv_bn(1), conv_bn(2)
    with torch.no_grad():
        end[0].bias.copy_(start[0].bias)
        end[1].num_batches_tracked.fill_(7)
    anchors = gather(model, [start, end])
    assert anchors.count == 2
    assert list(anchors.values) == [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    counter = "1.num_batches_tracked"
    assert {name for name, values in anchors.values.items() if len(values) == 2} == {"0.weight", counter}
    for found, given in zip(anchors.values["0.weight"], (start, end), strict=True):
        assert found.data_ptr() == given[0].weight.data_ptr()  # not copied
        assert not found.requires_grad
    assert [int(tracked) for tracked in anchors.values[counter]] == [0, 7]
    assert list(anchors.kept) == [counter]
    assert "int64" in anchors.kept[counter]
    assert "theta_T" in anchors.kept[counter]
    assert anchors.widened == {}
    assert anchors.nonfinite == {}


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_gather_any_number_of_anchors(count: int) -> None:
    sources = [mlp(seed) for seed in range(count)]
    anchors = gather(mlp(), sources, [f"anchor {index}" for index in range(count)])
    assert anchors.count == count
    for name, values in anchors.values.items():
        assert len(values) == count
        for value, source in zip(values, sources, strict=True):
            assert torch.equal(value, source.get_parameter(name))


@pytest.mark.parametrize(("sources", "names"), [([], ()), ([mlp()], ("a", "b"))], ids=["none", "unequal"])
def test_gather_needs_a_name_for_each(sources: list[nn.Module], names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=f"{len(sources)} checkpoints with {len(names)} names"):
        gather(mlp(), sources, names)


BITS = {
    "zero-signs": (torch.tensor([0.0]), torch.tensor([-0.0]), 2),
    "nan-itself": (torch.tensor([float("nan")]), torch.tensor([float("nan")]), 1),
    "last-bit": (torch.tensor([1.0]), torch.tensor([1.0 + 2**-23]), 2),
    "one-of-many": (torch.zeros(4097), torch.zeros(4097).index_fill(0, torch.tensor([4096]), 1e-45), 2),
    "float16": (torch.ones(3).half(), torch.ones(3).half(), 1),
    "float64": (torch.ones(3).double(), torch.ones(3).double(), 1),
    "empty": (torch.ones(0, 3), torch.ones(0, 3), 1),
    "scalar": (torch.tensor(2.0), torch.tensor(2.5), 2),
    "other-layout": (torch.arange(6.0).reshape(2, 3), torch.arange(6.0).reshape(2, 3).t().contiguous().t(), 1),
    "complex-same": (torch.ones(2, dtype=torch.complex64), torch.ones(2, dtype=torch.complex64), 1),
    "complex128-same": (torch.ones(2, dtype=torch.complex128), torch.ones(2, dtype=torch.complex128), 1),
    "complex-other": (torch.tensor([1 + 1j]), torch.tensor([1 + 2j]), 2),
    "conjugate-same": (torch.tensor([1 + 2j]).conj(), torch.tensor([1 - 2j]), 1),
}


class One(nn.Module):
    """A model of one parameter (or buffer) of any dtype."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        if value.is_floating_point() or value.is_complex():
            self.p = nn.Parameter(torch.zeros_like(value))
        else:
            self.register_buffer("p", torch.zeros_like(value))


def one(*values: Tensor, model: Tensor | None = None) -> Anchors:
    sources = [{"p": value} for value in values]
    return gather(One(values[0] if model is None else model), sources, [f"anchor {i}" for i in range(len(values))])


@pytest.mark.parametrize("case", BITS)
def test_constant_means_bit_identical(case: str) -> None:
    first, second, count = BITS[case]
    values = one(first, second).values["p"]
    assert len(values) == count
    assert all(value.is_contiguous() for value in values)
    torch.testing.assert_close(values[-1], second.resolve_conj(), rtol=0, atol=0, equal_nan=True)


def test_three_anchors_of_which_two_agree_are_blended() -> None:
    assert len(one(torch.ones(2), torch.ones(2), torch.zeros(2)).values["p"]) == 3


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "int64"),
        (torch.tensor([True]), torch.tensor([False]), "bool"),
    ],
    ids=["int", "bool"],
)
def test_what_cannot_blend_is_whole(first: Tensor, second: Tensor, words: str) -> None:
    anchors = one(first, second)
    assert all(torch.equal(found, given) for found, given in zip(anchors.values["p"], (first, second), strict=True))
    assert words in anchors.kept["p"]
    assert "anchor 1" in anchors.kept["p"]


WIDENED = {
    "half-float": (torch.float16, torch.float32, torch.float32),
    "bf16-half": (torch.bfloat16, torch.float16, torch.float32),
    "float-double": (torch.float32, torch.float64, torch.float64),
    "int-float": (torch.int64, torch.float32, torch.float32),
}


@pytest.mark.parametrize("case", WIDENED)
def test_different_dtypes_are_computed_in_the_wider(case: str) -> None:
    first, second, wide = WIDENED[case]
    values = torch.tensor([1.0, 2.0])
    anchors = one(values.to(first), (values + 1).to(second), model=values)
    assert [value.dtype for value in anchors.values["p"]] == [wide, wide]
    assert torch.equal(anchors.values["p"][0], values.to(wide))
    assert anchors.widened == {"p": f"{first}, {second} -> {wide}"}


def test_same_values_in_different_dtypes_are_constant_and_recorded() -> None:
    anchors = one(torch.ones(2).half(), torch.ones(2))
    assert len(anchors.values["p"]) == 1
    assert anchors.values["p"][0].dtype == torch.float32
    assert list(anchors.widened) == ["p"]


def test_a_common_dtype_other_than_the_models_stays() -> None:
    anchors = one(torch.zeros(2).half(), torch.ones(2).half(), model=torch.zeros(2))
    assert anchors.values["p"][0].dtype == torch.float16
    assert anchors.widened == {}


def test_the_model_says_whether_a_value_is_an_integer() -> None:
    anchors = one(torch.tensor([1.0]), torch.tensor([2.0]), model=torch.tensor([0]))
    assert [value.tolist() for value in anchors.values["p"]] == [[1], [2]]
    assert anchors.widened == {"p": "torch.float32 -> torch.int64"}
    assert "p" in anchors.kept


@pytest.mark.parametrize(
    ("bad", "model"),
    [(torch.tensor([1.5]), torch.tensor([0])), (torch.tensor([1j]), torch.tensor([0.0]))],
    ids=["fraction-as-int", "complex-as-float"],
)
def test_values_the_model_cannot_hold(bad: Tensor, model: Tensor) -> None:
    with pytest.raises(ValueError, match=rf"anchor 1: 'p' is {bad.dtype} but the model's is {model.dtype}"):
        one(bad.real.round(), bad, model=model)


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ([[0.0], [NAN]], (1,)),
        ([[INF], [0.0]], (0,)),
        ([[INF, -INF], [NAN, 1.0], [0.0, 0.0]], (0, 1)),
        ([[NAN], [NAN]], (0, 1)),
        ([[3e38, 3e38], [1.0, 1.0]], ()),
    ],
    ids=["nan-end", "inf-start", "three", "constant", "overflowing-sum"],
)
def test_nonfinite_values_are_listed(values: list[list[float]], where: tuple[int, ...]) -> None:
    assert one(*map(torch.tensor, values)).nonfinite == ({"p": where} if where else {})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64], ids=str)
def test_nonfinite_values_of_every_dtype(dtype: torch.dtype) -> None:
    values = torch.full((70,), 6e4, dtype=dtype)
    bad = values.clone()
    bad[69] = INF
    assert one(values, bad).nonfinite == {"p": (1,)}


def test_models_without_and_with_one_parameter() -> None:
    assert gather(nn.ReLU(), [nn.ReLU(), {}]).values == {}
    assert len(gather(nn.PReLU(), [nn.PReLU(), nn.PReLU(init=0.5)]).values["weight"]) == 2


def test_frozen_parameters_are_ordinary() -> None:
    model, end = mlp(), mlp(1)
    model[0].requires_grad_(False)
    end.requires_grad_(False)
    assert all(len(values) == 2 for values in gather(model, [mlp(), end]).values.values())


def test_meta_model_serves_as_architecture() -> None:
    with torch.device("meta"):
        model = mlp()
    anchors = gather(model, [mlp(1), mlp(2)])
    assert torch.equal(anchors.values["0.weight"][1], mlp(2)[0].weight)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_models() -> None:
    def lazy() -> nn.Module:
        return nn.Sequential(nn.LazyLinear(2))

    ready = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"the model's '0\.weight' is an uninitialised lazy.*forward"):
        gather(lazy(), [ready, ready])
    with pytest.raises(ValueError, match=r"theta_T: '0\.weight' is an uninitialised lazy.*forward"):
        gather(ready, [ready, lazy()])


def test_parametrized_models() -> None:
    def normed() -> nn.Module:
        return nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))

    anchors = gather(normed(), [normed(), normed()])
    assert "parametrizations.weight.original0" in anchors.values


def test_misaligned_values_are_realigned() -> None:
    raw = torch.zeros(17, dtype=torch.uint8)
    odd = torch.frombuffer(bytearray(raw.numpy().tobytes()), dtype=torch.float32, count=4, offset=1)
    for value in one(odd, torch.ones(4)).values["p"]:
        assert value.data_ptr() % 4 == 0


def fingerprint(source: Any) -> dict[str, tuple[Any, ...]]:
    held = source.state_dict(keep_vars=True) if isinstance(source, nn.Module) else source
    return {
        key: (id(value), value.data_ptr(), value._version, value.requires_grad, value.detach().clone().tolist())
        for key, value in held.items()
    }


def test_the_callers_things_are_left_alone() -> None:
    model, start, end = conv_bn(), conv_bn(1), {**state_of(conv_bn(2)), "_extra_state": torch.ones(1)}
    end["0.weight"] = end["0.weight"].half()
    model.train()
    before = [fingerprint(thing) for thing in (model, start, end)], list(end), torch.get_rng_state()
    with pytest.warns(UserWarning, match="extra state"):
        gather(model, [start, end])
    after = [fingerprint(thing) for thing in (model, start, end)], list(end), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    assert model.training


def test_anchors_compare_by_identity() -> None:
    first = one(torch.ones(2), torch.zeros(2))
    assert first == first
    assert first != one(torch.ones(2), torch.zeros(2))
