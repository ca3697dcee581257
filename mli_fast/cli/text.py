"""What the command line prints: tables, a result in short, and errors as one clean line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import typer

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
    """Print a result in a few lines: both ends, the lowest loss, and whether the curve is monotone.

    Args:
        result: The result of a sweep.
    """
    order = np.argsort(result.alphas, kind="stable")
    points = {"first": order[0], "last": order[-1]}
    if np.isfinite(result.loss).any():
        lowest = int(np.nanargmin(np.where(np.isfinite(result.loss), result.loss, np.nan)))
        points = {"first": order[0], "lowest loss": lowest, "last": order[-1]}
    head, rows = _curve_rows(result)
    print_table(["<", *head], [[name, *rows[index]] for name, index in points.items()])
    _print_verdict(result)
    _print_effort(result)


def print_curve(result: SweepResult) -> None:
    """Print every point of a result, in ascending alpha.

    Args:
        result: The result of a sweep.
    """
    head, rows = _curve_rows(result)
    print_table(head, [rows[index] for index in np.argsort(result.alphas, kind="stable")])
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


def _print_verdict(result: SweepResult) -> None:
    if np.any((result.alphas >= 0.0) & (result.alphas <= 1.0)):
        typer.echo(f"monotone: {describe(result.monotonicity())}")


def _print_effort(result: SweepResult) -> None:
    parts = [f"{result.alphas.size} points"]
    if "count" in result:
        parts.append(f"{result.count:,} examples")
    made = result.provenance
    if "seconds" in made:
        parts.append(f"{made['seconds']:.3g} s")
    parts += [f"{key} {made[key]}" for key in ("engine", "backend", "device") if key in made]
    typer.echo(", ".join(parts))


def _curve_rows(result: SweepResult) -> tuple[list[str], list[list[str]]]:
    """Titles and one row of cells for each point, in the result's own order."""
    head = ["alpha", "loss"]
    columns = [[f"{alpha + 0.0:.4f}" for alpha in result.alphas], _with_error(result, "loss")]
    if "accuracy" in result:
        head.append("accuracy")
        columns.append(_with_error(result, "accuracy"))
    return head, [list(row) for row in zip(*columns, strict=True)]


def _with_error(result: SweepResult, variable: str) -> list[str]:
    """Cells of one variable, with its standard error where there is one; decimals line up unless the scale forbids."""
    values = result[variable]
    largest = np.max(np.abs(values), where=np.isfinite(values), initial=0.0)
    form = ".5f" if largest == 0.0 or 0.01 <= largest < 1e5 else ".5e"
    if f"{variable}_stderr" not in result:
        return [f"{value:{form}}" for value in values]
    return [
        f"{value:{form}} +- {error:{form}}" for value, error in zip(values, result[f"{variable}_stderr"], strict=True)
    ]


def in_short(value: Any) -> str:
    """A value of a provenance in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={in_short(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(in_short, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
