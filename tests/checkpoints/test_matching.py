"""`gather`: keys against the model: wrapper prefixes, misfits and their hints, shapes, tied names."""

import copy
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mli_fast import sweep
from mli_fast.checkpoints import gather
from tests.checkpoints.cases import State, Tied, mlp, state_of, write_torch


def with_prefix(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "module.module.", "module._orig_mod.", "_orig_mod.module.model."]
)
def test_wrapper_prefixes_of_a_checkpoint(prefix: str) -> None:
    anchors = gather(mlp(), [with_prefix(state_of(mlp(1)), prefix), mlp(2)])
    assert list(anchors.values) == list(state_of(mlp()))
    assert torch.equal(anchors.values["2.bias"][0], mlp(1)[2].bias)


WRAPPED: dict[str, Callable[[nn.Sequential], nn.Module]] = {
    "dataparallel": nn.DataParallel,
    "compiled": lambda model: torch.compile(model),
    "compiled-inside": lambda model: nn.Sequential(torch.compile(model[0]), *model[1:]),
    "compiled-dataparallel": lambda model: torch.compile(nn.DataParallel(model)),
    "lightning": lambda model: nn.ModuleDict({"model": model}),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_wrapped_modules_on_either_side(case: str) -> None:
    wrapped = WRAPPED[case](mlp(1))
    assert torch.equal(gather(mlp(), [wrapped, mlp(2)]).values["0.bias"][0], mlp(1)[0].bias)
    anchors = gather(wrapped, [mlp(2), wrapped])
    assert list(anchors.values) == [name for name, _ in wrapped.named_parameters()]
    assert torch.equal(next(iter(anchors.values.values()))[0], mlp(2)[0].weight)


def test_a_lightning_checkpoint(tmp_path: Path) -> None:
    held = {
        "epoch": 4,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": with_prefix(state_of(mlp(1)), "model."),
        "hyper_parameters": {"lr": 0.1},
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1}]}],
    }
    path = write_torch(tmp_path / "epoch=4.ckpt", held)
    assert torch.equal(gather(mlp(), [mlp(), path]).values["2.weight"][1], mlp(1)[2].weight)


def test_a_model_whose_own_names_have_the_prefix() -> None:
    model, end = nn.ModuleDict({"model": mlp()}), nn.ModuleDict({"model": mlp(1)})
    assert list(gather(model, [model, end]).values) == list(state_of(model))


MISFITS: dict[str, tuple[Callable[[State], State], str]] = {
    "missing": (
        lambda s: {key: value for key, value in s.items() if key != "2.bias"},
        r"1 of the model's 4 keys missing: '2\.bias'\.$",
    ),
    "too-many": (lambda s: {**s, "4.weight": torch.ones(1)}, r"1 of its 5 keys too many: '4\.weight'\.$"),
    "other-prefix": (
        lambda s: with_prefix(s, "net."),
        r"4 of the model's 4 keys missing: '0\.weight', .*4 of its 4 keys too many: 'net\.0\.weight'.*"
        r"every key of theta_0 starts with 'net\.'.*4 of the missing keys are there with 'net\.' in front",
    ),
    "known-prefix-but-missing": (
        lambda s: with_prefix({key: value for key, value in s.items() if key != "2.bias"}, "module."),
        r"1 of the model's 4 keys missing: '2\.bias'\..*every key of theta_0 starts with 'module\.'",
    ),
    "lightning-with-metric": (
        lambda s: {**with_prefix(s, "model."), "metric.count": torch.ones(1)},
        r"4 of the model's 4 keys missing.*4 of the missing keys are there with 'model\.' in front",
    ),
    "nothing": (lambda s: {}, "4 of the model's 4 keys missing"),
    "wrapped-beside-bare": (
        lambda s: {**s, "_orig_mod.0.weight": torch.ones(1)},
        r"1 of its 5 keys too many: '_orig_mod\.0\.weight'",
    ),
}


@pytest.mark.parametrize("which", ["theta_0", "theta_T"])
@pytest.mark.parametrize("case", MISFITS)
def test_keys_that_do_not_fit(case: str, which: str) -> None:
    change, words = MISFITS[case]
    sources: list[Any] = [mlp(1), mlp(2)]
    sources[which == "theta_T"] = change(state_of(mlp(3)))
    with pytest.raises(ValueError, match=words.replace("theta_0", which)) as caught:
        gather(mlp(), sources)
    assert str(caught.value).startswith(f"{which} does not fit the model")


def test_a_checkpoint_of_the_inside_of_the_model() -> None:
    model = nn.ModuleDict({"body": mlp(), "tail": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=r"the model has 4 of the keys too many with 'body\.' in front"):
        gather(model, [mlp(), model])


def test_only_the_first_keys_are_shown(tmp_path: Path) -> None:
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(20)))
    path = write_torch(tmp_path / "few.pt", {f"x{i}": torch.ones(1) for i in range(30)})
    with pytest.raises(ValueError, match=r"40 of the model's 40 keys missing.*30 of its 30 keys too many") as caught:
        gather(model, [path, model])
    message = str(caught.value)
    assert "few.pt" in message
    assert "'2.weight', ..." in message
    assert "2.bias" not in message
    assert "'x4', ..." in message
    assert "x5" not in message


def test_shapes_that_differ() -> None:
    bad = state_of(mlp())
    bad["0.weight"] = torch.ones(5, 3)
    words = r"theta_T does not fit.*'0\.weight' has shape \(5, 3\), the model's has \(4, 3\)$"
    with pytest.raises(ValueError, match=words):
        gather(mlp(), [mlp(), bad])


def test_many_shapes_that_differ() -> None:
    wide = [nn.Sequential(*(nn.Linear(1, width) for _ in range(4))) for width in (2, 3)]
    with pytest.raises(ValueError, match=r"theta_0.*8 shapes differ in all"):
        gather(wide[0], [wide[1], wide[0]])


def tied(seed: int) -> Tied:
    torch.manual_seed(seed)
    return Tied()


@pytest.mark.parametrize("dropped", [(), ("head.weight",), ("embed.weight",)], ids=["all", "first", "last"])
def test_tied_names_in_a_checkpoint(dropped: tuple[str, ...]) -> None:
    end = {key: value for key, value in state_of(tied(1)).items() if key not in dropped}
    anchors = gather(tied(0), [tied(2), end])
    assert list(anchors.values) == ["embed.weight", "norm.weight", "norm.bias", "steps"]
    assert torch.equal(anchors.values["embed.weight"][1], tied(1).embed.weight)


@pytest.mark.parametrize("change", [lambda w: w + 1, lambda w: w.double()], ids=["value", "dtype"])
def test_tied_names_that_disagree(change: Callable[[Tensor], Tensor]) -> None:
    end = state_of(tied(1))
    end["head.weight"] = change(end["head.weight"])
    with pytest.raises(ValueError, match=r"theta_T: 'embed\.weight' and 'head\.weight' are one tied parameter"):
        gather(tied(0), [tied(2), end])


def test_a_tied_name_missing_altogether() -> None:
    end = {key: value for key, value in state_of(tied(1)).items() if "weight" not in key or "norm" in key}
    with pytest.raises(ValueError, match=r"1 of the model's 4 keys missing: 'embed\.weight'"):
        gather(tied(0), [tied(2), end])


def test_shared_modules_are_one() -> None:
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert list(gather(model, [model, copy.deepcopy(model)]).values) == ["0.weight", "0.bias"]


def test_shared_buffers_are_one() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    model[1].running_mean = model[0].running_mean
    names = list(gather(model, [model, state_of(model)]).values)
    assert "0.running_mean" in names
    assert "1.running_mean" not in names


def test_non_persistent_buffers_are_the_models_own() -> None:
    assert "mask" not in gather(tied(0), [tied(1), tied(2)]).values
    with pytest.raises(ValueError, match="too many: 'mask'"):
        gather(tied(0), [tied(1), {**state_of(tied(2)), "mask": torch.ones(3)}])


def test_transformers_folders(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=50, n_positions=8)
    models = [transformers.GPT2LMHeadModel(config) for _ in range(3)]
    models[1].save_pretrained(tmp_path / "one")
    models[2].save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    anchors = gather(models[0], [tmp_path / "one", tmp_path / "shards"])
    assert set(anchors.values) == {name for name, _ in models[0].named_parameters()}
    for name, values in anchors.values.items():
        for value, model in zip(values, models[1:], strict=False):
            assert torch.equal(value, model.get_parameter(name)), name
    assert len(anchors.values["transformer.wte.weight"]) == 2


class Positioned(nn.Module):
    """With a counter and positions, as old and new versions of libraries save or leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("position_ids", torch.arange(4))


@pytest.mark.parametrize("name", ["norm.num_batches_tracked", "position_ids"])
def test_counters_and_positions_may_be_on_one_side_alone(name: str) -> None:
    model, other = Positioned(), Positioned()
    other.norm.weight.data.fill_(2)
    lacking = {key: value for key, value in other.state_dict().items() if key != name}
    anchors = gather(model, [lacking, other])
    assert len(anchors.values["norm.weight"]) == 1
    assert torch.equal(anchors.values[name][0], other.state_dict()[name])
    assert (
        "position_ids"
        not in gather(
            nn.BatchNorm1d(3), [{**nn.BatchNorm1d(3).state_dict(), "position_ids": torch.arange(2)}], ["theta"]
        ).values
    )
    with torch.device("meta"):
        empty = Positioned()
    if name == "position_ids":
        with pytest.raises(ValueError, match="1 of the model's 6 keys missing: 'position_ids'"):
            gather(empty, [lacking], ["theta"])
    with pytest.raises(ValueError, match=r"keys missing: 'norm\.bias'"):
        gather(model, [{key: value for key, value in lacking.items() if key != "norm.bias"}], ["theta"])


@pytest.mark.parametrize("as_mapping", [False, True])
def test_an_averaged_model(as_mapping: bool) -> None:
    model = nn.Linear(2, 2)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(nn.Linear(2, 2))
    found = gather(nn.Linear(2, 2), [averaged.state_dict() if as_mapping else averaged], ["theta"]).values
    assert torch.equal(found["weight"][0], averaged.module.weight)


def headed(seed: int, outputs: int = 2) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(OrderedDict(body=nn.Linear(3, 4), fc=nn.Linear(4, outputs))).double()


@pytest.mark.parametrize("at", ["start", "end"])
@pytest.mark.parametrize("other", ["absent", "other-shape", "nan"])
def test_a_head_that_is_held_at_one_end_needs_no_value_at_the_other(at: str, other: str) -> None:
    x, y = torch.randn(5, 3).double(), torch.randint(0, 2, (5,))
    whole, lacking = headed(1), state_of(headed(2, 7 if other == "other-shape" else 2))
    if other == "absent":
        lacking = {key: value for key, value in lacking.items() if not key.startswith("fc.")}
    if other == "nan":
        lacking["fc.weight"] = torch.full_like(lacking["fc.weight"], float("nan"))
    filled = {**lacking, **{key: value for key, value in state_of(whole).items() if key.startswith("fc.")}}
    pairs = [(whole, one) if at == "start" else (one, whole) for one in (lacking, filled)]
    found, expected = (sweep(whole, *pair, (x, y), alphas=5, schedule={"fc": at}) for pair in pairs)
    assert torch.equal(torch.tensor(found.loss), torch.tensor(expected.loss))


@pytest.mark.parametrize("shaped", [True, False])
@pytest.mark.parametrize("lacks", [0, 1])
def test_a_misfit_of_one_part_says_that_it_may_be_held(lacks: int, shaped: bool) -> None:
    state = state_of(headed(2, 7))
    ends: list[Any] = [headed(1), headed(1)]
    ends[lacks] = state if shaped else {key: value for key, value in state.items() if not key.startswith("fc.")}
    way = f"Hint: held at the other end, by schedule={{'fc': '{['end', 'start'][lacks]}'}}, it needs no value"
    with pytest.raises(ValueError, match=re.escape(way)):
        sweep(headed(1), *ends, (torch.randn(5, 3).double(), torch.zeros(5).long()))
    schedule = {"fc": ["end", "start"][lacks], "last_bias": "linear"}  # so that a value at both ends is needed
    with pytest.raises(ValueError, match=r"does not fit the model: .*bias"):
        sweep(headed(1), *ends, (torch.randn(5, 3).double(), torch.zeros(5).long()), schedule=schedule)
