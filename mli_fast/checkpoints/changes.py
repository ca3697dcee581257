"""Notices that a checkpoint was written to while it was read, while its values were in use, or since."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from torch import Tensor


@dataclass
class _Open:
    """Files whose maps are in use, each with what messages call it and its size and time of writing at the start."""

    files: list[tuple[IO[bytes], str, tuple[int, int]]] = field(default_factory=list)
    closing: ExitStack = field(default_factory=ExitStack)


_open: ContextVar[_Open | None] = ContextVar("_open", default=None)


@contextmanager
def unchanged_files() -> Iterator[None]:
    """At its end, compare the files that were mapped within it with what they were when they were opened.

    A file that another one has replaced (renamed to its name) or that was removed still has its values: it is the
    one mapped that is compared.

    Raises:
        ValueError: One was written to, so that what was computed from it is of no certain weights.
    """
    opened = _Open()
    token = _open.set(opened)
    with opened.closing:
        try:
            yield
        finally:
            _open.reset(token)
        for file, given, before in opened.files:
            _compare(_written(file), before, given)


@contextmanager
def unchanged_file(place: Path, given: str, mapped: bool) -> Iterator[None]:
    """Compare a file that is read within it; a mapped one once more at the end of `unchanged_files`.

    Raises:
        ValueError: It was written to or replaced.
    """
    opened = _open.get()
    with ExitStack() as closing:
        file = closing.enter_context(place.open("rb"))
        before = _written(file)
        try:
            yield
        except Exception:
            _compare(_written(file), before, given)  # that is why it could not be read
            raise
        _compare(_written(file), before, given)
        _compare(_which(os.stat(place)), _which(os.fstat(file.fileno())), given)
        if mapped and opened is not None:
            opened.files.append((file, given, before))
            opened.closing.push(closing.pop_all())


def stamp(source: Any, state: Mapping[str, Tensor]) -> tuple[Any, ...] | None:
    """What is another after a checkpoint was written to or replaced.

    Args:
        source: The checkpoint: a path, whose file or folder is looked at, or anything in memory.
        state: What was read from it; of one in memory its tensors share the versions.
    """
    if not isinstance(source, str | os.PathLike):
        return tuple(value._version for value in state.values() if not value.is_inference())
    place = Path(split(os.fspath(source))[0]).expanduser()
    try:
        files = sorted(place.iterdir()) if place.is_dir() else [place]
        return tuple((file.name, *_which(at := file.stat()), at.st_size, at.st_mtime_ns) for file in files)
    except OSError:
        return None


def split(given: str) -> tuple[str, str | None]:
    """Take apart "file.pt::ema", unless a file is called so."""
    path, separator, chosen = given.rpartition("::")
    return (given, None) if not separator or os.path.exists(os.path.expanduser(given)) else (path, chosen)


def _written(file: IO[bytes]) -> tuple[int, int]:
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


def _which(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _compare(now: tuple[int, int], before: tuple[int, int], given: str) -> None:
    if now != before:
        raise ValueError(
            f"{given}: the file was changed while it was read, so its values may be of two states: write checkpoints "
            "to a new name and rename them, or copy this one first"
        )
