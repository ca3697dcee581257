"""What a sweep returns: curves along alpha with their provenance, and how to read, plot, save and load them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from mli_fast.measures import Monotonicity, monotonicity
from mli_fast.storage import load_dataset, save_dataset, split_columns

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Float64 = NDArray[np.float64]


class SweepResult:
    """Curves along alpha: loss, accuracy and any further metric, with the provenance of the run.

    Everything is held in ``dataset``; the rest of the class reads from it.

    Attributes:
        dataset: Dimension ``alpha`` (a coordinate, in the order asked for) and, for class-wise variables, ``class``.

    Examples:
        >>> import xarray as xr
        >>> curve = xr.Dataset({"loss": ("alpha", [2.0, 1.0, 1.25]), "count": 100}, coords={"alpha": [0.0, 0.5, 1.0]})
        >>> result = SweepResult(curve)
        >>> result.loss
        array([2.  , 1.  , 1.25])
        >>> result.monotonicity().min_delta
        0.25
        >>> result
        SweepResult: 3 alphas from 0 to 1, 100 examples
          loss      2 -> 1.25
          monotone  no, min Delta 0.25 (from alpha 0.5 to 1)
    """

    def __init__(self, dataset: xr.Dataset) -> None:
        """Wrap a dataset, which is not copied.

        Args:
            dataset: See the class.

        Raises:
            TypeError: If it is not an xarray.Dataset.
            ValueError: If it has no one-dimensional ``alpha`` coordinate.
        """
        if not isinstance(dataset, xr.Dataset):
            raise TypeError(f"dataset must be an xarray.Dataset, got {type(dataset).__name__}")
        if "alpha" not in dataset.coords or dataset["alpha"].dims != ("alpha",):
            raise ValueError(
                f"dataset needs a coordinate 'alpha' along a dimension 'alpha', got {list(dataset.coords)}"
            )
        self.dataset = dataset

    @property
    def alphas(self) -> Float64:
        """The points [A], in the order asked for."""
        return self._curve("alpha")

    @property
    def loss(self) -> Float64:
        """Mean loss per example [A]."""
        return self._curve("loss")

    @property
    def accuracy(self) -> Float64:
        """Fraction of examples classified right [A], in 0..1.

        Raises:
            AttributeError: If the sweep was not asked for it.
        """
        if "accuracy" not in self:
            raise AttributeError("this result has no accuracy: ask for it with metrics=('accuracy',)")
        return self._curve("accuracy")

    @property
    def count(self) -> int:
        """Number of examples every point was evaluated on."""
        return int(self["count"])

    @property
    def provenance(self) -> dict[str, Any]:
        """How the result was made: settings, choices, versions, device, counts, seconds. Empty if it is not known."""
        return dict(json.loads(self.dataset.attrs.get("provenance", "{}")))

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Any variable as an array.

        Args:
            name: Of a variable or a coordinate, such as ``"loss_stderr"`` or ``"class_accuracy"``.

        Returns:
            The values, in the order of the variable's dimensions ([A], or [A, classes]).

        Raises:
            KeyError: If there is none of that name; the message lists what there is.
        """
        if name not in self:
            raise KeyError(f"no variable {name!r} in this result; there are: {', '.join(self)}")
        return np.asarray(self.dataset[name].values)

    def __contains__(self, name: object) -> bool:
        """Whether there is a variable or coordinate of that name."""
        return name in self.dataset.variables

    def __iter__(self) -> Iterator[str]:
        """Names of all variables and coordinates."""
        return (str(name) for name in self.dataset.variables)

    def monotonicity(self, variable: str = "loss", tol: float = 0.0) -> Monotonicity:
        """How far a curve is from never rising on [0, 1], whatever order the alphas were asked for in.

        Args:
            variable: A curve that is better when lower. ``"error"`` is 1 - accuracy; an accuracy itself is taken as it
                is, so that its gains count as rises.
            tol: Rise still taken as monotone, in the variable's own units.

        Returns:
            min Delta (the largest draw-up), the verdict, and where the rise starts and ends.

        Raises:
            KeyError: If there is no such variable.
            ValueError: If the variable is not a single curve, no alpha lies in [0, 1], or ``tol`` is negative.
        """
        values = 1.0 - self.accuracy if variable == "error" and variable not in self else self[variable]
        if values.shape != self.alphas.shape:
            raise ValueError(f"monotonicity needs one value per alpha, but {variable!r} has shape {values.shape}")
        return monotonicity(self.alphas, values, tol)

    def plot(self, ax: Axes | None = None, *, label: str | None = None) -> Axes:
        """Draw loss and, where there is one, accuracy against alpha; needs matplotlib.

        Args:
            ax: Axes to draw on: loss on the left, accuracy dashed on a twin axis on the right. None makes a new figure
                with a panel for each.
            label: Name of this curve in the legend.

        Returns:
            The axes of the loss. ``.figure`` of it can be saved with ``savefig``, and shows in a notebook.
        """
        from mli_fast.plot import plot

        return plot(self, ax, label=label)

    def to_dataframe(self) -> pd.DataFrame:
        """A pandas table with one row per alpha; class-wise variables become columns such as ``class_loss[3]``."""
        import pandas as pd

        names = [name for name in self if "alpha" in self.dataset[name].dims]
        names.sort(key=lambda name: name != "alpha")
        return pd.DataFrame(dict(column for name in names for column in split_columns(self.dataset, name)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result so that ``mli_fast.load`` returns it bit for bit.

        Args:
            path: ``.nc`` (NetCDF-4), ``.json``, or ``.csv`` (one row per alpha under a header line). An existing file
                is replaced in one step.

        Raises:
            ValueError: If the suffix is not one of these.
            FileNotFoundError: If the folder to write into does not exist.
        """
        save_dataset(self.dataset, path)

    def __repr__(self) -> str:
        """A few readable lines: range of alphas, values at the ends, monotone or not."""
        alphas = self.alphas
        order = np.argsort(alphas, kind="stable")
        first, last = order[[0, -1]] if alphas.size else (None, None)
        span = f" from {alphas[first] + 0.0:.6g} to {alphas[last] + 0.0:.6g}" if first is not None else ""
        examples = f", {self.count:,} examples" if "count" in self else ""
        lines = [f"{type(self).__name__}: {alphas.size} alphas{span}{examples}"]
        for name in ("loss", "accuracy"):
            if name in self and first is not None:
                values = self._curve(name)
                bad = int(np.count_nonzero(~np.isfinite(values)))
                note = f" ({bad} of {values.size} not finite)" if bad else ""
                lines.append(f"  {name:<8}  {values[first]:.6g} -> {values[last]:.6g}{note}")
        if "loss" in self and np.any((alphas >= 0.0) & (alphas <= 1.0)):
            lines.append(f"  monotone  {describe(self.monotonicity())}")
        return "\n".join(lines)

    def _curve(self, name: str) -> Float64:
        return np.asarray(self[name], dtype=np.float64)


def describe(verdict: Monotonicity) -> str:
    """A monotonicity verdict in a few words.

    Examples:
        >>> describe(Monotonicity(0.25, False, 0.5, 1.0, 0.0))
        'no, min Delta 0.25 (from alpha 0.5 to 1)'
    """
    if np.isnan(verdict.min_delta):
        return "unknown, the curve holds NaN"
    where = ""
    if verdict.min_delta > 0.0:
        where = f" (from alpha {verdict.start_alpha:.4g} to {verdict.end_alpha:.4g})"
    return f"{'yes' if verdict.monotone else 'no'}, min Delta {verdict.min_delta:.4g}{where}"


def load(path: str | os.PathLike[str]) -> SweepResult:
    """Read a result that ``SweepResult.save`` wrote.

    Args:
        path: ``.nc``, ``.json`` or ``.csv``.

    Returns:
        The result, bit for bit as it was saved.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the suffix is not a known one, or the file is damaged or not a result.
    """
    dataset = load_dataset(path)
    try:
        return SweepResult(dataset)
    except ValueError as error:
        raise ValueError(f"{path}: not a result of a sweep ({error})") from error
