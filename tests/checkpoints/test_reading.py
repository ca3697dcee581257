"""`load_state`: what is understood, from every kind of source, and what is refused and how."""

import argparse
import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mli_fast.checkpoints import gather, load_state
from tests.checkpoints.cases import State, assert_same, mlp, state_of, write_torch


def write_shards(folder: Path, parts: Mapping[str, State], index: str) -> Path:
    folder.mkdir()
    for name, part in parts.items():
        if name.endswith(".safetensors"):
            save_file(part, folder / name)
        else:
            torch.save(part, folder / name)
    weight_map = {key: name for name, part in parts.items() for key in part}
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return folder


def halves(state: State, suffix: str) -> dict[str, State]:
    keys = list(state)
    return {
        f"model-00001-of-00002{suffix}": {key: state[key] for key in keys[:2]},
        f"model-00002-of-00002{suffix}": {key: state[key] for key in keys[2:]},
    }


SOURCES: dict[str, Callable[[Path, State], Any]] = {
    "mapping": lambda _, s: s,
    "ordered": lambda _, s: OrderedDict(s),
    "parameters": lambda _, s: {key: nn.Parameter(value) for key, value in s.items()},
    "nested-state_dict": lambda _, s: {"epoch": 3, "optimizer": {"lr": 0.1}, "state_dict": s},
    "nested-model_state_dict": lambda _, s: {"model_state_dict": s, "loss": 0.5},
    "nested-model_state": lambda _, s: {"model_state": s},
    "nested-model": lambda _, s: {"model": s, "args": {"a": 1}},
    "nested-twice": lambda _, s: {"model": {"state_dict": s}},
    "config-beside": lambda _, s: {"model": {"width": 4}, "state_dict": s},
    "empty-extra-state": lambda _, s: {**s, "0._extra_state": None, "2._extra_state": torch.empty(0)},
    "pt": lambda d, s: write_torch(d / "w.pt", s),
    "pt-str": lambda d, s: str(write_torch(d / "w.pt", s)),
    "pth-nested": lambda d, s: write_torch(d / "w.pth", {"model_state": s, "epoch": 1}),
    "pt-legacy": lambda d, s: write_torch(d / "w.pt", s, zipped=False),
    "bin": lambda d, s: write_torch(d / "pytorch_model.bin", s),
    "tar": lambda d, s: write_torch(d / "model.pth.tar", {"state_dict": s}),
    "safetensors": lambda d, s: (save_file(s, d / "w.safetensors"), d / "w.safetensors")[1],
    "folder-one": lambda d, s: write_torch(d / "w.pt", s).parent,
    "folder-among-others": lambda d, s: write_torch(write_torch(d / "optimizer.pt", {"lr": 1}).parent
                                                    / "pytorch_model.bin", s).parent,
    "shards-safetensors": lambda d, s: write_shards(d / "m", halves(s, ".safetensors"), "model.safetensors.index.json"),
    "shards-bin": lambda d, s: write_shards(d / "m", halves(s, ".bin"), "pytorch_model.bin.index.json"),
}  # fmt: skip


@pytest.mark.parametrize("case", SOURCES)
def test_load_state_reads(case: str, tmp_path: Path) -> None:
    state = state_of(mlp())
    found = load_state(SOURCES[case](tmp_path, state))
    assert_same(dict(sorted(found.items())), dict(sorted(state.items())))
    assert not any(value.requires_grad for value in found.values())


def test_load_state_of_a_module_shares_its_storage() -> None:
    model = mlp()
    found = load_state(model)
    assert_same(found, state_of(model))
    assert found["0.weight"].data_ptr() == model[0].weight.data_ptr()
    assert not found["0.weight"].requires_grad
    assert model[0].weight.requires_grad


def test_load_state_of_a_module_kept_in_a_mapping() -> None:
    assert_same(load_state({"model": mlp(), "epoch": 1}), state_of(mlp()))


def test_module_with_extra_state() -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"not": "a tensor"}

        def set_extra_state(self, state: Any) -> None: ...

    model = Extra(2, 2)
    with pytest.warns(UserWarning, match=r"checkpoint: extra state .*'_extra_state'.*not loaded"):
        assert set(load_state(model)) == {"weight", "bias"}
    with pytest.warns(UserWarning, match="theta_T: extra state") as warned:
        assert set(gather(model, [model, Extra(2, 2)]).values) == {"weight", "bias"}
    assert len(warned) == 2


def test_a_safetensors_index_is_preferred_to_a_pickled_one(tmp_path: Path) -> None:
    state = state_of(mlp())
    folder = write_shards(tmp_path / "m", halves(state, ".safetensors"), "model.safetensors.index.json")
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    assert set(load_state(folder)) == set(state)


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_torch(tmp_path / "w.pt", state_of(mlp()))
    assert_same(load_state("~/w.pt"), state_of(mlp()))


def test_writing_to_a_mapped_tensor_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"weight": torch.zeros(2000)}, path)
    before = path.read_bytes()
    load_state(path)["weight"].fill_(1.0)
    assert path.read_bytes() == before


class RunsCode:
    """A pickle of this would run a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pickled_code_is_refused_and_not_run(zipped: bool, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = write_torch(tmp_path / "evil.pt", {**state_of(mlp()), "x": RunsCode(marker)}, zipped)
    with pytest.raises(ValueError, match=r"evil\.pt: refused.*mkdir.*safetensors.*pass the state dict"):
        load_state(path)
    assert not marker.exists()


NEEDS_CODE: dict[str, Callable[[Path], object]] = {
    "whole-model": lambda path: torch.save(mlp(), path),
    "namespace": lambda path: torch.save({"state_dict": state_of(mlp()), "hparams": argparse.Namespace(a=1)}, path),
    "torchscript": lambda path: torch.jit.save(torch.jit.trace(mlp(), torch.ones(1, 3)), path),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", NEEDS_CODE)
def test_files_that_need_code_are_refused(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    NEEDS_CODE[case](path)
    with pytest.raises(ValueError, match=r"model\.ckpt: refused.*safetensors"):
        load_state(path)


@pytest.mark.parametrize("keep", [0, 3, 90, 0.5, 0.99], ids=lambda keep: f"keep{keep}")
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files(kind: str, keep: float, tmp_path: Path) -> None:
    path, state = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt"), {"w": torch.randn(100, 100)}
    save_file(state, path) if kind == "safetensors" else write_torch(path, state, kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(len(whole) * keep)])
    with pytest.raises(ValueError, match=r"w\.(pt|safetensors): (the file is empty|not a complete .*truncated)"):
        load_state(str(path))


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.npy"])
@pytest.mark.parametrize("content", [b"hello, this is no checkpoint\n", bytes(range(256)) * 4], ids=["text", "bytes"])
def test_other_formats(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: not a complete"):
        load_state(tmp_path / name)


@pytest.mark.parametrize("name", ["absent.pt", "absent.safetensors", "absent"])
def test_missing_path(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^{name}: no such file or folder") as caught:
        load_state(name)
    assert isinstance(caught.value, FileNotFoundError)


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    path = write_torch(tmp_path / "w.pt", state_of(mlp()))
    monkeypatch.setattr(Path, "open", refuse)  # not chmod: root reads everything
    with pytest.raises(ValueError, match=r"^.*w\.pt: cannot be read: .*Permission denied"):
        load_state(path)


@pytest.mark.parametrize("held", [torch.ones(2), [torch.ones(2)], 3], ids=["tensor", "list", "int"])
def test_file_without_a_mapping(held: object, tmp_path: Path) -> None:
    path = write_torch(tmp_path / "w.pt", held)
    with pytest.raises(ValueError, match=rf"w\.pt.*holds a {type(held).__name__}, not a state dict"):
        load_state(path)


def break_shards(folder: Path, how: str) -> str:
    """Damage a folder of shards and return what its error has to say."""
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    first = folder / "model-00001-of-00002.safetensors"
    if how == "shard missing":
        first.unlink()
        return f"the shard '{first.name}' is missing"
    if how == "shard truncated":
        first.write_bytes(first.read_bytes()[:-1])
        return f"shard {first.name}: not a complete safetensors"
    if how == "index truncated":
        index.write_text(index.read_text()[:-5])
        return "the index is not valid JSON"
    if how == "no weight_map":
        index.write_text(json.dumps({"metadata": {}}))
        return "no 'weight_map'"
    if how == "key absent":
        content["weight_map"]["9.weight"] = first.name
        index.write_text(json.dumps(content))
        return f"1 keys are listed but absent from their shard, first '9.weight' .in {first.name}"
    assert how == "outside"
    content["weight_map"]["0.weight"] = "../elsewhere.safetensors"
    index.write_text(json.dumps(content))
    return "points outside its folder"


@pytest.mark.parametrize(
    "how", ["shard missing", "shard truncated", "index truncated", "no weight_map", "key absent", "outside"]
)
def test_damaged_shards(how: str, tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "run", halves(state_of(mlp()), ".safetensors"), "model.safetensors.index.json")
    words = break_shards(folder, how)
    with pytest.raises(ValueError, match=f"run .model.safetensors.index.json.*{words}") as caught:
        load_state(folder)
    assert "cannot be read" not in str(caught.value)


def test_shard_that_is_no_state_dict(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "m", {"a.bin": {"w": torch.ones(1)}}, "pytorch_model.bin.index.json")
    torch.save([1], folder / "a.bin")
    with pytest.raises(ValueError, match=r"shard 'a\.bin' holds a list"):
        load_state(folder)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "holds no checkpoint file"),
        (["notes.txt"], "holds no checkpoint file"),
        (["a.pt", "b.safetensors"], "several checkpoint files .a.pt, b.safetensors."),
        ([f"{i}.pt" for i in range(7)], "4.pt, ... 7 in all"),
        (["a.index.json", "b.index.json"], "several indexes"),
    ],
    ids=["empty", "other", "two", "seven", "two-indexes"],
)
def test_folder_that_names_no_one_checkpoint(files: list[str], words: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=words):
        load_state(tmp_path)


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ({"weight": torch.ones(1), "lr": 0.1}, "value of 'lr' is a float, not a tensor"),
        ({"state_dict": {"weight": [1.0]}}, r"\['state_dict'\].*'weight' is a list"),
        ({3: torch.ones(1)}, "key 3 is a int"),
        ({"w": torch.ones(2, device="meta")}, "'w' is on the meta device"),
        ({"w": torch.ones(2, 2).to_sparse()}, "'w' is stored as torch.sparse_coo"),
        ({"w": torch.nn.UninitializedParameter()}, "'w' is an uninitialised lazy parameter"),
        ({"model": {"w": torch.ones(1)}, "state_dict": {"w": torch.ones(1)}}, "under several keys"),
    ],
    ids=["number", "list", "int-key", "meta", "sparse", "lazy", "two-inside"],
)
def test_mappings_that_are_no_state_dict(held: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_state(held, "theta_0")


@pytest.mark.parametrize("source", [None, 3, torch.ones(2), b"w.pt", [("w", torch.ones(1))]], ids=str)
def test_wrong_type(source: Any) -> None:
    with pytest.raises(TypeError, match=f"theta_T: a {type(source).__name__} is not a checkpoint"):
        gather(nn.Linear(1, 1), [nn.Linear(1, 1), source])


def test_error_survives_a_pickle(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load_state(tmp_path / "absent.pt")
    assert "absent.pt: no such file" in str(pickle.loads(pickle.dumps(caught.value)))
