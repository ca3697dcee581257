"""Families of lines, for `sweep_many`: label -> line."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path as FilePath

from mli_fast.checkpoints import Source

from .line import Line


def to_one(starts: Mapping[str, Source], theta_T: Source) -> dict[str, Line]:
    """A line from each of several networks to one.

    Args:
        starts: label -> state dict, module or path of a checkpoint; alpha = 0.
        theta_T: likewise; alpha = 1 of all.

    Example:
        >>> to_one({"seed 0": "init0.pt", "seed 1": "init1.pt"}, "final.pt")["seed 1"].anchors
        ('init1.pt', 'final.pt')
    """
    return {label: Line(theta_0, theta_T) for label, theta_0 in starts.items()}


def all_pairs(networks: Mapping[str, Source]) -> dict[str, Line]:
    """A line between any two of several networks, as for barriers between independently trained ones.

    Args:
        networks: label -> state dict, module or path of a checkpoint.

    Raises:
        ValueError: fewer than two.

    Example:
        >>> list(all_pairs({"a": "a.pt", "b": "b.pt", "c": "c.pt"}))
        ['a - b', 'a - c', 'b - c']
    """
    if len(networks) < 2:
        raise ValueError(f"all_pairs: at least two networks are needed, got {len(networks)}")
    return {f"{a} - {b}": Line(networks[a], networks[b]) for a, b in itertools.combinations(networks, 2)}


def run_folders(folder: str | os.PathLike[str], start: str = "init.*", end: str = "final.*") -> dict[str, Line]:
    """The line of each run below a folder: each sub-folder that holds a start and an end, in the order of their names.

    Args:
        folder: holds a sub-folder for each run.
        start: pattern of the checkpoint at alpha = 0 within a run's folder.
        end: of the one at alpha = 1.

    Raises:
        ValueError: no such folder, none with both, or one where a pattern fits several files.
    """
    parent = FilePath(folder)
    if not parent.is_dir():
        raise ValueError(f"{parent}: no such folder")
    found = {}
    for run in sorted(p for p in parent.iterdir() if p.is_dir()):
        ends = [sorted(run.glob(pattern)) for pattern in (start, end)]
        for pattern, files in zip((start, end), ends, strict=True):
            if len(files) > 1:
                names = ", ".join(file.name for file in files)
                raise ValueError(f"{run}: {pattern!r} fits several files ({names}); say which with start= or end=")
        if all(ends):
            found[run.name] = Line(ends[0][0], ends[1][0])
    if not found:
        raise ValueError(f"{parent}: no folder in it holds both {start!r} and {end!r}")
    return found
