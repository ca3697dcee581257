"""Several lines at once: the table that has a row for each, and which of them end well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

    from mli_fast.result.sweep_result import SweepResult


def ends(alphas: NDArray[np.float64]) -> tuple[int, int] | None:
    """Indices of the smallest and of the largest alpha in [0, 1]; None if there is none.

    Examples:
        >>> ends(np.array([1.5, 0.0, 1.0, -1.0]))
        (1, 2)
    """
    inside = np.flatnonzero((alphas >= 0.0) & (alphas <= 1.0))
    if inside.size == 0:
        return None
    return int(inside[np.argmin(alphas[inside])]), int(inside[np.argmax(alphas[inside])])


def table(result: SweepResult, tol: float) -> pd.DataFrame:
    """See ``SweepResult.table``."""
    import pandas as pd

    dim, places = result.dims[0], ends(result.alphas)
    columns: dict[str, Any] = {}
    if places is not None:
        for name in ("loss", "accuracy"):
            if name in result:
                columns[f"initial_{name}"], columns[f"final_{name}"] = result[name][:, places].T
        if "loss" in result:
            verdicts = [line.monotonicity(tol=tol) for _, line in result.lines()]
            columns["min_delta"] = np.array([verdict.min_delta for verdict in verdicts], dtype=np.float64)
            columns["monotone"] = np.array([verdict.monotone for verdict in verdicts], dtype=bool)
    columns |= {str(name): one.values for name, one in result.dataset.data_vars.items() if one.dims == (dim,)}
    return pd.DataFrame(columns, index=pd.Index(result[dim].tolist(), name=dim))
