"""A small result of every layout, made by hand."""

from __future__ import annotations

import json

import numpy as np
import xarray as xr

from mli_fast.result import SweepResult

MARKS = [["theta_0", [0.0, 0.0]], ["theta_1", [4.0, 0.0]], ["theta_2", [1.0, 2.0]]]


def line() -> xr.Dataset:
    """Loss 2, 1, 1.25 at alpha 0, 0.5, 1."""
    return xr.Dataset(
        {
            "loss": ("alpha", [2.0, 1.0, 1.25]),
            "accuracy": ("alpha", [0.1, 0.8, 0.7]),
            "class_loss": (("alpha", "class"), [[1.0, 3.0], [0.0, 2.0], [1.5, 1.0]]),
            "gauss_length": 1.5,
            "count": 100,
        },
        coords={"alpha": [0.0, 0.5, 1.0]},
    )


def runs() -> xr.Dataset:
    """Final losses 1.25, 0.05, NaN of three runs; only the second is monotone. Alphas out of order, up to 1.5."""
    return xr.Dataset(
        {
            # at alpha        1.0   0.0  1.5   0.5
            "loss": (
                ("run", "alpha"),
                [[1.25, 2.0, 9.0, 1.0], [0.05, 1.0, 0.0, 0.5], [np.nan, 2.0, 1.0, 1.5]],
            ),
            "accuracy": (("run", "alpha"), np.linspace(0.0, 1.0, 12).reshape(3, 4)),
            "class_loss": (("run", "alpha", "class"), np.arange(24.0).reshape(3, 4, 2)),
            "distance": ("run", [3.0, 4.0, 5.0]),
            "gauss_length": ("run", [0.5, 0.25, np.nan]),
            "gauss_length_stderr": ("run", [0.125, 0.25, np.nan]),
            "count": 100,
        },
        coords={"run": ["sgd", 'adam, "lr" 0.1', "ü # nan"], "alpha": [1.0, 0.0, 1.5, 0.5], "class": [3, 7]},
    )


def groups() -> xr.Dataset:
    """Two groups, the first with a value missing."""
    loss = np.array([[3.0, np.inf, 1.0], [1.5, 1.25, 1.0]])
    return xr.Dataset(
        {"loss": (("group", "alpha"), loss), "accuracy": (("group", "alpha"), 1 - loss / 4)},
        coords={"group": ["conv1 (weight)", "fc"], "alpha": [0.0, 0.25, 1.0], "depth": ("group", [0, 1])},
        attrs={"provenance": json.dumps({"criterion": "cross_entropy", "path": "line"})},
    )


def surface() -> xr.Dataset:
    """loss = 1 + x + 10 y on a 4 x 3 grid whose x is out of order; least at (0, 0), 35 in the far corner."""
    x, y = np.array([1.0, 0.0, 4.0, 2.0]), np.array([0.0, 1.0, 3.0])
    loss = 1.0 + x[:, None] + 10.0 * y
    return xr.Dataset(
        {
            "loss": (("x", "y"), loss),
            "loss_stderr": (("x", "y"), loss / 10),
            "accuracy": (("x", "y"), 1 / loss),
            "count": 100,
        },
        coords={"x": x, "y": y},
        attrs={"provenance": json.dumps({"path": "plane", "criterion": "mse", "marks": MARKS})},
    )


def points() -> xr.Dataset:
    """Three points with two axes."""
    return xr.Dataset(
        {"loss": ("point", [1.0, 0.5, 2.0]), "class_loss": (("point", "class"), np.arange(6.0).reshape(3, 2))},
        coords={"task_1": ("point", [0.0, 0.25, 1.0]), "task_2": ("point", [1.0, -0.5, 0.0])},
    )


LAYOUTS = {
    "line": line,
    "runs": runs,
    "groups": groups,
    "surface": surface,
    "points": points,
    "cut": lambda: surface().isel(y=1),
    "one-run": lambda: runs().isel(run=1),
    "no-runs": lambda: runs().isel(run=[]),
}


def result_of(layout: str) -> SweepResult:
    return SweepResult(LAYOUTS[layout]())
