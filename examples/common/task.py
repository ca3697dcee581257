"""The command line of an example, and where its table and its figure go."""

from __future__ import annotations

import argparse
import inspect
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from examples.common.data import Dataset, load

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINE = 110  # characters


@dataclass(frozen=True)
class Task:
    """What an example is to do.

    Attributes:
        data: to work on.
        out: the folder to write to.
        quick: a short form, to see that all of it works; its figures mean little.
    """

    data: Dataset
    out: Path
    quick: bool = False

    @classmethod
    def of(cls, where: str, out: Path, quick: bool = False) -> Task:
        """Loads the data and makes the folder."""
        data = load(where)
        out.mkdir(parents=True, exist_ok=True)
        return cls(data.quick() if quick else data, out, quick)

    def table(self, frame: pd.DataFrame, name: str = "table") -> None:
        """Prints a table and writes it to `{name}.csv`."""
        frame.to_csv(self.out / f"{name}.csv")
        print(f"\n{markdown(frame)}\n")

    def say(self, *sentences: str) -> None:
        """Prints what was found, in lines of readable length."""
        print(textwrap.fill(" ".join(sentences), LINE))

    def figure(self, figure: Figure, name: str = "figure") -> None:
        """Writes a figure to `{name}.png`."""
        figure.savefig(self.out / f"{name}.png")


def command(main: Callable[[Task], None]) -> None:
    """Runs an example from the command line."""
    module = inspect.getmodule(main)
    assert module is not None
    name = Path(inspect.getfile(main)).stem
    parser = argparse.ArgumentParser(f"python -m examples.{name}", description=module.__doc__)
    parser.add_argument(
        "--data", default="digits", help="'digits', or a folder with MNIST's idx files (default: digits)"
    )
    parser.add_argument("--out", type=Path, default=Path("examples-output") / name, help="folder to write to")
    parser.add_argument("--quick", action="store_true", help="a short form, to see that all of it works")
    given = parser.parse_args()
    started = time.perf_counter()
    try:
        task = Task.of(given.data, given.out, given.quick)
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    print(task.data)
    main(task)
    print(f"\nWritten to {task.out}/ in {time.perf_counter() - started:.0f} s")


def markdown(frame: pd.DataFrame) -> str:
    """A Markdown table with aligned columns; numbers to three digits."""
    shown = frame.reset_index()
    cells = [list(map(str, shown.columns)), *(list(map(_cell, row)) for row in shown.to_numpy(object).tolist())]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, row, widths))} |" for row in cells)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
