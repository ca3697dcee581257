"""What the command line prints: tables, a result in short, and errors as one clean line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import typer
from numpy.typing import NDArray

from mli_fast.result import SweepResult, describe

_BAD_INPUT = (ValueError, TypeError, FileNotFoundError)
_WIDTH = 100


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: drawn by rich on a terminal, plain text elsewhere.

    Args:
        head: Column titles; one that starts with ``<`` is set left (without the sign), the others right.
        rows: The cells.
    """
    left = [title.startswith("<") for title in head]
    titles = [title.removeprefix("<") for title in head]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for title, is_left in zip(titles, left, strict=True):
            table.add_column(Text(title), justify="left" if is_left else "right")
        for row in rows:
            table.add_row(*map(Text, row))
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for row in [titles, *rows]:
        cells = zip(row, widths, left, strict=True)
        typer.echo(
            "  ".join(cell.ljust(width) if is_left else cell.rjust(width) for cell, width, is_left in cells).rstrip()
        )


def print_summary(result: SweepResult) -> None:
    """Print a result in a few lines: some points of a curve or a surface, or a line for each run or group.

    Args:
        result: The result of a sweep.
    """
    if _has_lines(result):
        _print_lines(result)
    else:
        _print_points(result, _main_points(result))
    _print_verdict(result)
    _print_effort(result)


def print_curve(result: SweepResult) -> None:
    """Print every point of a curve, in ascending alpha; of a surface some, and of runs and groups a line for each.

    Args:
        result: The result of a sweep.
    """
    if _has_lines(result):
        _print_lines(result)
    elif len(result.dims) > 1:
        _print_points(result, _main_points(result))
    else:
        head, rows = _rows(result)
        print_table(head, [rows[index] for index in _order(result)])
    _print_verdict(result)


def print_provenance(provenance: Mapping[str, Any]) -> None:
    """Print how a result was made, a line for each entry; what is long is cut short, what is empty left out.

    Args:
        provenance: The result's provenance.
    """
    entries = {key: in_short(value) for key, value in provenance.items() if value not in (None, "", {}, [])}
    width = max(map(len, entries), default=0)
    for key, text in entries.items():
        typer.echo(f"{key:<{width}}  {text if len(text) <= _WIDTH else text[: _WIDTH - 3] + '...'}")


@contextmanager
def errors_as_lines(debug: bool) -> Iterator[None]:
    """Turn exceptions into one line on stderr and an exit code, and warnings into lines.

    Exit codes: 2 for bad input (ValueError, TypeError, FileNotFoundError), 1 for other errors, 130 for Ctrl-C.

    Args:
        debug: Let exceptions through, so that Python shows the traceback.

    Yields:
        Nothing.

    Raises:
        typer.Exit: With the code.
    """
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            yield
        # Typer's own, and a reader such as head that has seen enough, which Typer ends quietly.
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            if debug:
                raise
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from None
        except Exception as error:
            if debug:
                raise
            _print_error(error)
            raise typer.Exit(2 if isinstance(error, _BAD_INPUT) else 1) from error


def _print_error(error: Exception) -> None:
    # str() of a KeyError is the repr of its message.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if not isinstance(error, _BAD_INPUT) or not text:
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    typer.echo(f"error: {text}", err=True)
    for note in getattr(error, "__notes__", []):
        typer.echo(f"  {note}", err=True)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    typer.echo(f"warning: {message}", err=True)


def _has_lines(result: SweepResult) -> bool:
    return result.dims[0] in ("run", "group")


def _print_lines(result: SweepResult) -> None:
    """The table of the runs or groups, with standard errors beside their values."""
    table = result.table()
    columns = {
        name: _cells(table[name].to_numpy(), table.get(f"{name}_stderr"))
        for name in table
        if not name.endswith("_stderr")
    }
    head = [f"<{result.dims[0]}", *(name.replace("_", " ") for name in columns)]
    print_table(head, [list(row) for row in zip(map(str, table.index), *columns.values(), strict=True)])


def _print_points(result: SweepResult, named: Mapping[str, int]) -> None:
    """Some points of a result, each under a name."""
    head, rows = _rows(result)
    print_table(["<", *head], [[name, *rows[index]] for name, index in named.items()])


def _main_points(result: SweepResult) -> dict[str, int]:
    """Names of points that say most -> their indices: of a surface its extremes and the anchors, else the ends."""
    losses = np.where(np.isfinite(result.loss), result.loss, np.nan).ravel()
    lowest = {} if np.isnan(losses).all() else {"lowest loss": int(np.nanargmin(losses))}
    if result.dims != ("x", "y"):
        order = _order(result)
        return {"first": int(order[0]), **lowest, "last": int(order[-1])}
    highest = {"highest loss": int(np.nanargmax(losses))} if lowest else {}
    x, y = np.meshgrid(result["x"], result["y"], indexing="ij")
    marks = result.provenance.get("marks", [])
    return {
        **lowest,
        **highest,
        **{f"nearest to {name}": int(np.argmin((x - at[0]) ** 2 + (y - at[1]) ** 2)) for name, at in marks},
    }


def _order(result: SweepResult) -> NDArray[np.intp]:
    """Ascending along a line; single points as they are."""
    positions = np.arange(result.size) if result.dims == ("point",) else result[result.dims[0]]
    return np.argsort(positions, kind="stable")


def _print_verdict(result: SweepResult) -> None:
    if result.dims == ("alpha",) and np.any((result.alphas >= 0.0) & (result.alphas <= 1.0)):
        typer.echo(f"monotone: {describe(result.monotonicity())}")


def _print_effort(result: SweepResult) -> None:
    parts = [f"{result.size} points"]
    if "count" in result:
        parts.append(f"{result.count:,} examples")
    made = result.provenance
    if "seconds" in made:
        parts.append(f"{made['seconds']:.3g} s")
    parts += [f"{key} {made[key]}" for key in ("engine", "backend", "device") if key in made]
    typer.echo(", ".join(parts))


def _rows(result: SweepResult) -> tuple[list[str], list[list[str]]]:
    """Titles and one row of cells for each point, in the result's own order."""
    table = result.to_dataframe()
    columns = {axis: _cells(table[axis].to_numpy() + 0.0, digits=4) for axis in result.axes}
    for name in ("loss", "accuracy"):
        if name in table:
            columns[name] = _cells(table[name].to_numpy(), table.get(f"{name}_stderr"))
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def _cells(values: NDArray[Any], errors: Iterable[float] | None = None, digits: int = 5) -> list[str]:
    """Cells of one variable, with its standard error where there is one; decimals line up unless the scale forbids."""
    if values.dtype.kind == "b":
        return ["yes" if value else "no" for value in values]
    if values.dtype.kind != "f":
        return [str(value) for value in values]
    largest = np.max(np.abs(values), where=np.isfinite(values), initial=0.0)
    form = f".{digits}{'f' if largest == 0.0 or 0.01 <= largest < 1e5 else 'e'}"
    if errors is None:
        return [f"{value:{form}}" for value in values]
    return [f"{value:{form}} +- {error:{form}}" for value, error in zip(values, errors, strict=True)]


def in_short(value: Any) -> str:
    """A value of a provenance in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={in_short(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(in_short, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
