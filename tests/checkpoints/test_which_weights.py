"""Which weights of a file that holds several sets are taken, what is said of the others, and how one is chosen."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mli_fast import sweep
from mli_fast.checkpoints import gather, load_state
from mli_fast.checkpoints.reading import NESTED
from tests.checkpoints.cases import State, assert_same, mlp, state_of, write_torch

BESIDE: dict[str, tuple[Callable[[State, State], dict[str, Any]], str, str]] = {
    "timm": (lambda w, e: {"epoch": 3, "state_dict": w, "state_dict_ema": e}, "state_dict", "state_dict_ema"),
    "detr": (lambda w, e: {"model": w, "model_ema": e, "optimizer": {"state": {}}}, "model", "model_ema"),
    "module": (lambda w, e: {"model": w, "ema": {"module": e, "updates": 7}}, "model", "ema.module"),
    "parallel": (lambda w, e: {"model": {f"module.{k}": v for k, v in w.items()}, "ema": e}, "model", "ema"),
    "deep": (lambda w, e: {"model": {"state_dict": w}, "callbacks": {"ema": {"w": e}}}, "model.state_dict",
             "callbacks.ema.w"),
    "live-modules": (lambda w, e: {"model": mlp(), "ema": mlp(1)}, "model", "ema"),
}  # fmt: skip


@pytest.mark.parametrize("case", BESIDE)
@pytest.mark.parametrize("on_disk", [True, False], ids=["file", "mapping"])
def test_weights_that_lie_beside_those_taken_are_named(case: str, on_disk: bool, tmp_path: Path) -> None:
    made, taken, other = BESIDE[case]
    held = made(state_of(mlp()), state_of(mlp(1)))
    if on_disk and case == "live-modules":
        held = {key: state_of(module) for key, module in held.items()}
    path = write_torch(tmp_path / "w.pt", held)
    with pytest.warns(UserWarning, match="are taken, but others lie beside them") as warned:
        found = load_state(path if on_disk else held)
    (said,) = (str(warning.message) for warning in warned)
    assert f"the weights under {taken!r} are taken" in said
    assert f"under {other!r}: pass" in said
    assert (f"'{path}::{other}' or '{path}::{taken}' to choose" in said) == on_disk
    assert torch.equal(next(iter(found.values())), mlp()[0].weight)


@pytest.mark.parametrize("case", BESIDE)
def test_the_suffix_chooses_without_a_warning(case: str, tmp_path: Path) -> None:
    made, taken, other = BESIDE[case]
    if case == "live-modules":
        return
    path = write_torch(tmp_path / "w.pt", made(state_of(mlp()), state_of(mlp(1))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(load_state(f"{path}::{other}"), state_of(mlp(1)))
        first, *_ = load_state(f"{path}::{taken}").values()
    assert torch.equal(first, mlp()[0].weight)


def test_a_choice_is_unwrapped_like_a_file(tmp_path: Path) -> None:
    path = write_torch(tmp_path / "w.pt", {"model": state_of(mlp()), "ema": {"module": state_of(mlp(1)), "decay": 0.9}})
    assert_same(load_state(f"{path}::ema"), state_of(mlp(1)))


def test_a_key_with_dots_and_a_file_with_colons(tmp_path: Path) -> None:
    path = write_torch(tmp_path / "w.pt", {"ema.v2": state_of(mlp(1))})
    assert_same(load_state(f"{path}::ema.v2"), state_of(mlp(1)))
    assert_same(load_state(write_torch(tmp_path / "a::b", state_of(mlp()))), state_of(mlp()))


@pytest.mark.parametrize("chosen", ["ema", "model.ema", "epoch.x"])
def test_a_choice_that_is_not_there(chosen: str, tmp_path: Path) -> None:
    path = write_torch(tmp_path / "w.pt", {"model": {"w": torch.ones(1)}, "epoch": 3})
    with pytest.raises(ValueError, match=rf"w\.pt::{chosen}.*: nothing lies under '(ema|x)'; there are"):
        load_state(f"{path}::{chosen}")


def test_a_choice_that_holds_no_weights(tmp_path: Path) -> None:
    path = write_torch(tmp_path / "w.pt", {"model": {"w": torch.ones(1)}, "epoch": 3})
    with pytest.raises(ValueError, match=r"w\.pt::epoch.*holds a int, not a state dict"):
        load_state(f"{path}::epoch")


def test_several_state_dicts_are_named_with_the_choice(tmp_path: Path) -> None:
    path = write_torch(tmp_path / "w.pt", {"model": {"w": torch.ones(1)}, "state_dict": {"w": torch.zeros(1)}})
    with pytest.raises(ValueError, match=r"several keys.*; pass '.*w\.pt::state_dict' or '.*w\.pt::model'"):
        load_state(path)
    assert_same(load_state(f"{path}::model"), {"w": torch.ones(1)})


@pytest.mark.parametrize("beside", ["optimizer", "same", "other-names", "ema-of-nothing"])
def test_what_is_no_other_set_of_weights_is_not_named(beside: str) -> None:
    state = state_of(mlp())
    others: dict[str, Any] = {
        "optimizer": {"optimizer": {"exp_avg": state_of(mlp(1))}},
        "same": {"weights": state},
        "other-names": {"discriminator": {f"{key}_d": value for key, value in state.items()}},
        "ema-of-nothing": {"ema": {}},
    }[beside]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(load_state({"model": state, **others}), state)


def test_a_mapping_under_its_own_key() -> None:
    held: dict[str, Any] = {}
    held["model"] = held
    with pytest.raises(ValueError, match=r"\['model'\].*more than 16 mappings in each other"):
        load_state(held)


@pytest.mark.parametrize("key", NESTED)
def test_a_file_of_mappings_in_mappings(key: str, tmp_path: Path) -> None:
    held: dict[str, Any] = {}
    for _ in range(200):
        held = {key: held}
    with pytest.raises(ValueError, match=r"w\.pt.*more than 16 mappings in each other"):
        load_state(write_torch(tmp_path / "w.pt", held))


def test_mappings_that_are_shared_are_walked_once(tmp_path: Path) -> None:
    shared: dict[str, Any] = {}
    for _ in range(60):
        shared = {"a": shared, "b": shared}
    path = write_torch(tmp_path / "w.pt", {"model": shared, "state_dict": {"w": torch.ones(1)}})
    assert_same(load_state(path), {"w": torch.ones(1)})


@pytest.mark.parametrize("where", ["ema", "callbacks.ema", ""])
def test_averages_without_names_are_told(where: str, tmp_path: Path) -> None:
    averages: dict[str, Any] = {"decay": 0.9, "shadow_params": [value + 1 for value in state_of(mlp()).values()]}
    held: dict[str, Any] = averages
    for key in reversed(where.split(".") if where else []):
        held = {key: held}
    path = write_torch(tmp_path / "w.pt", {"model": state_of(mlp()), **held})
    said = f"the weights under 'model' are taken; '{where + '.' if where else ''}shadow_params' holds moving averages"
    with pytest.warns(UserWarning, match=said):
        assert_same(load_state(path), state_of(mlp()))
    alone = write_torch(tmp_path / "a.pt", averages)
    with pytest.raises(ValueError, match=r"'shadow_params' holds moving averages without names.*pass its state_dict"):
        load_state(alone)


@pytest.mark.parametrize("nested", [True, False])
def test_averages_whose_keys_lie_among_the_weights(nested: bool, tmp_path: Path) -> None:
    both = [(f"{name}.{key}", value) for name, of in (("model", mlp()), ("ema_model", mlp(1))) for key, value in
            state_of(of).items()]  # fmt: skip
    path = write_torch(tmp_path / "w.pt", {"state_dict": dict(both), "epoch": 3} if nested else dict(both))
    with pytest.raises(ValueError, match=r"'ema_model\.' in front \(so they are with 'model\.'\).*'FILE::ema_mod"):
        gather(mlp(), [path, mlp()])
    assert_same(load_state(f"{path}::ema_model"), state_of(mlp(1)))
    assert_same(load_state(f"{path}::model"), state_of(mlp()))


def test_the_provenance_names_the_key_that_weights_lie_under(tmp_path: Path) -> None:
    nested = write_torch(tmp_path / "n.pt", {"state_dict": state_of(mlp(1)), "epoch": 3})
    deep = f"{write_torch(tmp_path / 'd.pt', {'ema': {'module': state_of(mlp(2))}})}::ema"
    flat = write_torch(tmp_path / "f.pt", state_of(mlp(2)))
    data = torch.randn(5, 3), torch.zeros(5).long()
    told = sweep(mlp(), nested, deep, data, alphas=2).provenance["anchors"]
    assert told == [f"{nested}::state_dict", f"{deep}.module"]
    assert sweep(mlp(), *told, data, alphas=2).provenance["anchors"] == told
    assert sweep(mlp(), flat, mlp(), data, alphas=2).provenance["anchors"] == [str(flat), "Sequential"]
