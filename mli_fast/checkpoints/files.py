"""Reads what a checkpoint file or a folder of shards holds, running no code from it and copying no mapped file."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
_WHOLE_MODEL = ("model.safetensors", "pytorch_model.bin")  # preferred: training_args.bin may lie beside
_ZIP_MAGIC = b"PK\x03\x04"
_NEEDS_CODE = re.compile(r"GLOBAL|TorchScript|Trying to (?:call|instantiate)|Can only (?:build|create)", re.IGNORECASE)
_WAY_OUT = (
    "Way out: write its tensors to a .safetensors file, or, if you trust the file, load it yourself with "
    "torch.load(..., weights_only=False) and pass the state dict."
)


class CheckpointNotFoundError(FileNotFoundError, ValueError):
    """A checkpoint path that does not exist; bad input like any other, hence also a ValueError."""


def read_path(path: str | os.PathLike[str]) -> Any:
    """Return the object that a checkpoint file or folder holds, tensors on the CPU and mapped where the format allows.

    Args:
        path: A file that torch.save wrote, a .safetensors file, or a folder with an index of shards or one checkpoint.

    Raises:
        ValueError: The path is missing (then also a FileNotFoundError), unreadable, truncated, corrupt, ambiguous, or
            needs code to be run; the message begins with the path as given.
    """
    place = Path(path).expanduser()
    given = os.fspath(path)
    if not place.exists():
        raise CheckpointNotFoundError(f"{given}: no such file or folder")
    try:
        return _read_folder(place, given) if place.is_dir() else _read_file(place, given)
    except CheckpointNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{given}: cannot be read: {error}") from error


def _read_file(place: Path, given: str) -> Any:
    if place.stat().st_size == 0:
        raise ValueError(f"{given}: the file is empty")
    return _read_safetensors(place, given) if place.suffix == ".safetensors" else _read_torch(place, given)


def _read_safetensors(place: Path, given: str) -> dict[str, Tensor]:
    try:
        with safe_open(place, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (safe_open is not a mapping)
    except SafetensorError as error:
        raise ValueError(f"{given}: not a complete safetensors file (truncated or corrupt): {error}") from error


def _read_torch(place: Path, given: str) -> Any:
    with place.open("rb") as file:
        zipped = file.read(4) == _ZIP_MAGIC
    try:
        return torch.load(place, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a damaged file makes torch.load raise nearly anything
        text = str(error)
        if _NEEDS_CODE.search(text):
            found = re.search(r"GLOBAL:? ([\w.]+)|class ([\w.]+)", text)
            what = f" ({found[1] or found[2]})" if found else ""
            raise ValueError(f"{given}: refused: reading it would run pickled code{what}. {_WAY_OUT}") from error
        reason = text.split("Please file an issue")[-1].strip().replace("\n", " ") or "it ends too early"
        raise ValueError(
            f"{given}: not a complete file of torch.save (truncated, corrupt or another format): "
            f"{type(error).__name__}: {reason}"
        ) from error


def _read_folder(folder: Path, given: str) -> Any:
    indexes = sorted(folder.glob("*.index.json"))
    preferred = [index for index in indexes if index.name.endswith(".safetensors.index.json")] or indexes
    if len(preferred) > 1:
        raise ValueError(f"{given}: several indexes of shards ({_names(preferred)}); pass a folder with one of them")
    if preferred:
        return _read_shards(folder, preferred[0], given)
    files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and file.is_file())
    chosen = next(([file] for name in _WHOLE_MODEL for file in files if file.name == name), files)
    if len(chosen) != 1:
        found = f"several checkpoint files ({_names(files)}); pass the path of one" if files else "no checkpoint file"
        raise ValueError(f"{given}: the folder holds {found} (looked for *.index.json and *{', *'.join(SUFFIXES)})")
    return _read_file(chosen[0], f"{given} ({chosen[0].name})")


def _read_shards(folder: Path, index: Path, given: str) -> dict[str, Tensor]:
    given = f"{given} ({index.name})"
    places = _weight_map(index, given)
    shards = {name: _read_shard(folder, name, given) for name in sorted(set(places.values()))}
    absent = [key for key, name in places.items() if key not in shards[name]]
    if absent:
        raise ValueError(
            f"{given}: {len(absent)} keys are listed but absent from their shard, first "
            + ", ".join(f"{key!r} (in {places[key]})" for key in absent[:5])
        )
    return {key: shards[name][key] for key, name in places.items()}


def _weight_map(index: Path, given: str) -> dict[str, str]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{given}: the index is not valid JSON (truncated or corrupt): {error}") from error
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{given}: the index has no 'weight_map' of keys to file names")
    return places


def _read_shard(folder: Path, name: str, given: str) -> Mapping[str, Tensor]:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{given}: the index points outside its folder: {name!r}")
    if not (folder / name).is_file():
        raise CheckpointNotFoundError(f"{given}: the shard {name!r} is missing from the folder")
    shard = _read_file(folder / name, f"{given}: shard {name}")
    if not isinstance(shard, Mapping):
        raise ValueError(f"{given}: the shard {name!r} holds a {type(shard).__name__}, not a state dict")
    return shard


def _names(files: list[Path]) -> str:
    shown = ", ".join(file.name for file in files[:5])
    return shown if len(files) <= 5 else f"{shown}, ... {len(files)} in all"
