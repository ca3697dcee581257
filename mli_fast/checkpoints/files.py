"""Reads what a checkpoint file or a folder of shards holds: no code of it is run, and large files are not copied."""

import json
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .archive import UnsafeError, check_legacy, check_zip
from .changes import unchanged_file
from .formats import foreign_folder, kind_of, run_folder
from .quantised import quantised_folder

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
COPIED = 256 << 20  # bytes up to which a checkpoint is copied: a map of a file that is truncated later ends the process
MOST_TENSORS = 100_000  # in one safetensors file
LONGEST_HEADER = 16 << 20  # bytes of its header
LONGEST_INDEX = 32 << 20  # bytes of an index of shards
_WHOLE_MODEL = ("model.safetensors", "pytorch_model.bin")  # preferred: training_args.bin may lie beside
_NEEDS_CODE = re.compile(r"GLOBAL|TorchScript|Trying to (?:call|instantiate)|Can only (?:build|create)", re.IGNORECASE)
_SHARD = re.compile(r"-\d+-of-(?!0*1\.)\d+\.")  # of several
_WAY_OUT = (
    "Way out: write its tensors to a .safetensors file, or, if you trust the file, load it yourself with "
    "torch.load(..., weights_only=False) and pass the state dict."
)


class CheckpointNotFoundError(FileNotFoundError, ValueError):
    """A checkpoint path that does not exist; bad input like any other, hence also a ValueError."""


def read_path(path: str | os.PathLike[str]) -> Any:
    """Return the object that a checkpoint file or folder holds, tensors on the CPU.

    Checkpoints of more than `COPIED` bytes are mapped where the format allows. A map ends the process (SIGBUS) where
    the file is truncated while it is in use, which cannot be caught.

    Args:
        path: A file that torch.save wrote, a .safetensors file, or a folder with an index of shards or one checkpoint.

    Raises:
        ValueError: The path is missing (then also a FileNotFoundError), unreadable, truncated, corrupt, ambiguous, of
            another format, or needs code to be run; the message begins with the path as given.
    """
    given = os.fspath(path)
    try:
        place = Path(path).expanduser()
        if not place.exists():
            raise CheckpointNotFoundError(f"{given}: no such file or folder")
        return _read_folder(place, given) if place.is_dir() else _read_file(place, given)
    except CheckpointNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{given}: cannot be read: {error}") from error
    except ValueError as error:
        if str(error).startswith(given):
            raise
        raise ValueError(f"{given}: cannot be read: {error}") from error
    except Exception as error:  # such as RecursionError: bad input is a ValueError, whatever it does
        raise ValueError(f"{given}: cannot be read: {type(error).__name__}: {error}") from error


def _read_file(place: Path, given: str, size: int | None = None) -> Any:
    """Read one file; ``size`` is that of the whole checkpoint, where the file is a part."""
    found = place.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{given}: not a regular file, but a device, a pipe or a socket")
    if found.st_size == 0:
        raise ValueError(f"{given}: the file is empty")
    try:
        kind = kind_of(place)
    except ValueError as error:
        raise ValueError(f"{given}: {error}") from error
    mapped = (found.st_size if size is None else size) > COPIED and kind != "torch"
    with unchanged_file(place, given, mapped):
        read = _read_safetensors if kind == "safetensors" else _read_torch
        return read(place, given, mapped)


def _read_safetensors(place: Path, given: str, mapped: bool) -> dict[str, Tensor]:
    with place.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        count = file.read(min(length, LONGEST_HEADER)).count(b'"data_offsets"')
    if LONGEST_HEADER < length <= place.stat().st_size or count > MOST_TENSORS:
        raise ValueError(
            f"{given}: its header of {length} bytes lists more tensors than are read ({MOST_TENSORS} in "
            f"{LONGEST_HEADER} bytes); split the file into shards with an index"
        )
    try:
        if not mapped:
            with suppress(KeyError):  # a dtype that only safe_open knows
                return safetensors.torch.load(place.read_bytes())
        with safe_open(place, framework="pt", device="cpu") as opened:
            found = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  (it is not a mapping)
        return found if mapped else {key: value.clone() for key, value in found.items()}
    except SafetensorError as error:
        raise ValueError(f"{given}: not a complete safetensors file (truncated or corrupt): {error}") from error


def _read_torch(place: Path, given: str, mapped: bool) -> Any:
    try:
        mapped = _checked(place) and mapped
        if place.suffix != ".safetensors":
            return torch.load(place, map_location="cpu", weights_only=True, mmap=mapped)
        with place.open("rb") as file:  # by its name torch.load would take it for safetensors
            return torch.load(file, map_location="cpu", weights_only=True, mmap=False)
    except UnsafeError as error:
        raise ValueError(f"{given}: {error}") from error
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


def _checked(place: Path) -> bool:
    """Check a file of torch.save without running it, and return whether it may be mapped."""
    try:
        if kind_of(place) == "zip":
            return check_zip(place)
        check_legacy(place)
    except UnsafeError:
        raise
    except Exception:  # noqa: BLE001  damaged, or in need of code: torch.load, which copies then, says what is wrong
        return False
    return False


def _read_folder(folder: Path, given: str) -> Any:
    if (said := quantised_folder(folder)) is not None:
        raise ValueError(f"{given}: {said}")
    indexes = sorted(folder.glob("*.index.json"))
    preferred = [index for index in indexes if index.name.endswith(".safetensors.index.json")] or indexes
    if len(preferred) > 1:
        raise ValueError(f"{given}: several indexes of shards ({_names(preferred)}); pass a folder with one of them")
    if preferred:
        return _read_shards(folder, preferred[0], given)
    files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and file.is_file())
    whole = next(([file] for name in _WHOLE_MODEL for file in files if file.name == name), None)
    chosen = files if whole is None else whole
    said = None if whole else foreign_folder(folder) or (run_folder(folder) if not files else None)
    if said is not None:
        raise ValueError(f"{given}: {said}")
    if files and all(_SHARD.search(file.name) for file in files):
        raise ValueError(
            f"{given}: shards without their index ({_names(files)}); the .index.json that was written with them has to "
            "lie beside"
        )
    if len(chosen) != 1:
        found = f"several checkpoint files ({_names(files)}); pass the path of one" if files else "no checkpoint file"
        raise ValueError(f"{given}: the folder holds {found} (looked for *.index.json and *{', *'.join(SUFFIXES)})")
    return _read_file(chosen[0], f"{given} ({chosen[0].name})")


def _read_shards(folder: Path, index: Path, given: str) -> dict[str, Tensor]:
    given = f"{given} ({index.name})"
    places = _weight_map(index, given)
    found = {name: _shard(folder, name, given) for name in sorted(set(places.values()))}
    size = sum(place.stat().st_size for place in found.values())
    shards = {name: _read_shard(place, name, given, size) for name, place in found.items()}
    absent = [key for key, name in places.items() if key not in shards[name]]
    if absent:
        raise ValueError(
            f"{given}: {len(absent)} keys are listed but absent from their shard, first "
            + ", ".join(f"{key!r} (in {places[key]})" for key in absent[:5])
        )
    return {key: shards[name][key] for key, name in places.items()}


def _weight_map(index: Path, given: str) -> dict[str, str]:
    found = index.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > LONGEST_INDEX:
        raise ValueError(f"{given}: the index is not a regular file of at most {LONGEST_INDEX} bytes")
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{given}: the index is not valid JSON (truncated or corrupt): {error}") from error
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{given}: the index has no 'weight_map' of keys to file names")
    return places


def _shard(folder: Path, name: str, given: str) -> Path:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{given}: the index points outside its folder: {name!r}")
    if not (folder / name).is_file():
        raise CheckpointNotFoundError(f"{given}: the shard {name!r} is missing from the folder")
    return folder / name


def _read_shard(place: Path, name: str, given: str, size: int) -> Mapping[str, Tensor]:
    shard = _read_file(place, f"{given}: shard {name}", size)
    if not isinstance(shard, Mapping):
        raise ValueError(f"{given}: the shard {name!r} holds a {type(shard).__name__}, not a state dict")
    return shard


def _names(files: list[Path]) -> str:
    shown = ", ".join(file.name for file in files[:5])
    return shown if len(files) <= 5 else f"{shown}, ... {len(files)} in all"
