"""Files that are written to while they are read, or while a sweep uses what was mapped of them."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import mli_fast
from mli_fast.checkpoints import files, load_state, unchanged_files

SIZE = 64
WORDS = r"w\.(pt|safetensors): the file was changed while it was read"


def linear(seed: int) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(SIZE, SIZE)


def save(path: Path, seed: int) -> Path:
    state = dict(linear(seed).state_dict())
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def renamed(path: Path) -> None:
    save(path.with_stem("other"), 5)
    os.replace(path.with_stem("other"), path)


CHANGES: dict[str, Callable[[Path], None]] = {
    "overwritten": lambda path: void(path.write_bytes(save(path.with_stem("other"), 5).read_bytes())),
    "saved-again": lambda path: void(save(path, 5)),
    "grown": lambda path: void(path.open("ab").write(b"x")),
}


def void(_: object) -> None: ...


class Batches:
    """Batches between which something happens to a file."""

    def __init__(self, happens: Callable[[], object]) -> None:
        self._happens = happens

    def __iter__(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(0)
        for index in range(3):
            if index == 1:
                self._happens()
            yield torch.randn(8, SIZE, generator=generator), torch.randint(0, SIZE, (8,), generator=generator)


def swept(path: Path, happens: Callable[[], object] = lambda: None) -> Any:
    return mli_fast.sweep(linear(0), path, linear(2).state_dict(), Batches(happens), alphas=3, progress=False)


@pytest.fixture
def _mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "COPIED", 0)


@pytest.mark.usefixtures("_mapping")
@pytest.mark.parametrize(
    ("change", "name"),  # safetensors replaces a file that it saves again
    [*((change, "w.pt") for change in CHANGES), ("overwritten", "w.safetensors"), ("grown", "w.safetensors")],
)
def test_a_mapped_file_that_changes_during_a_sweep_is_said(change: str, name: str, tmp_path: Path) -> None:
    path = save(tmp_path / name, 1)
    with pytest.raises(ValueError, match=WORDS):
        swept(path, lambda: CHANGES[change](path))


@pytest.mark.usefixtures("_mapping")
@pytest.mark.parametrize("how", [renamed, Path.unlink], ids=["renamed-onto", "removed"])
def test_a_mapped_file_that_is_replaced_keeps_its_values(how: Callable[[Path], None], tmp_path: Path) -> None:
    path = save(tmp_path / "w.pt", 1)
    expected = swept(path)
    found = swept(path, lambda: how(path))
    assert found["loss"].tobytes() == expected["loss"].tobytes()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("change", [*CHANGES, "truncated"])
def test_a_small_file_may_change_once_it_is_read(change: str, name: str, tmp_path: Path) -> None:
    path = save(tmp_path / name, 1)
    expected = swept(path)
    happens = CHANGES.get(change, lambda path: os.truncate(path, 10))
    found = swept(path, lambda: happens(path))
    assert found["loss"].tobytes() == expected["loss"].tobytes()


@pytest.mark.parametrize("fails", [True, False])
def test_a_file_that_changes_while_it_is_read(fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, load = save(tmp_path / "w.pt", 1), torch.load

    def interrupted(*args: Any, **options: Any) -> Any:
        held = load(*args, **options)
        path.write_bytes(b"PK\x03\x04")
        if fails:
            raise RuntimeError("invalid header")
        return held

    monkeypatch.setattr(torch, "load", interrupted)
    with pytest.raises(ValueError, match=WORDS):
        load_state(path)


def test_a_file_that_is_replaced_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, load = save(tmp_path / "w.pt", 1), torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: (load(*args, **options), renamed(path))[0])
    with pytest.raises(ValueError, match=WORDS):
        load_state(path)


def spoilt(path: Path) -> None:
    assert set(load_state(path)) == {"weight", "bias"}
    save(path, 5)
    load_state("an.pt")


@pytest.mark.usefixtures("_mapping")
def test_another_error_is_not_hidden_and_files_are_closed(tmp_path: Path) -> None:
    path, before = save(tmp_path / "w.pt", 1), len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self") else 0
    with pytest.raises(ValueError, match=r"an\.pt: no such file"), unchanged_files():
        spoilt(path)
    assert before == (len(os.listdir("/proc/self/fd")) if before else 0)
