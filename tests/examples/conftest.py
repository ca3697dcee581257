"""Every example in its short form, run once for all tests."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest

from examples.common.task import Task


class Made(NamedTuple):
    """What an example wrote and printed."""

    out: Path
    printed: str

    def table(self, index: int | list[int] = 0, name: str = "table") -> pd.DataFrame:
        return pd.read_csv(self.out / f"{name}.csv", index_col=index)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """Runs an example by its name, once."""
    known: dict[str, Made] = {}

    def run(name: str) -> Made:
        if name not in known:
            printed, out = io.StringIO(), tmp_path_factory.mktemp(name)
            with contextlib.redirect_stdout(printed):
                importlib.import_module(f"examples.{name}").main(Task.of("digits", out, quick=True))
            known[name] = Made(out, printed.getvalue())
        return known[name]

    return run
