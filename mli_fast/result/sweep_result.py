"""The result of a sweep: values at points of parameter space, and how to read, plot, save and load them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from mli_fast.adaptive import interpolant
from mli_fast.measures import Monotonicity, Verdict, is_monotonic, monotonicity
from mli_fast.result import runs
from mli_fast.result.summary import summary
from mli_fast.storage import all_columns, layout_of, load_dataset, save_dataset

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Float64 = NDArray[np.float64]


class SweepResult:
    """Loss, accuracy and any further metric at points of parameter space, with the provenance of the run.

    Everything is held in ``dataset``; the rest of the class reads from it. Its points lie on the dimensions

    - ``(alpha)``: a curve along a path of one parameter,
    - ``(x, y)``: a surface; ``(x)`` or ``(y)``: a cut through one,
    - ``(run, alpha)``: a curve for each of several runs,
    - ``(group, alpha)``: a curve for each group of parameters that moves alone,
    - ``(point)``: points of any path, with a coordinate for each of its axes.

    Attributes:
        dataset: Variables on these dimensions (a coordinate each, in the order asked for), on a part of them
            (``distance`` on ``run``) or on none (``count``); class-wise ones have a dimension ``class`` as well.

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
        >>> losses = ("run", "alpha"), [[2.0, 1.0], [2.0, 3.0]]
        >>> both = SweepResult(xr.Dataset({"loss": losses}, coords={"run": ["sgd", "adam"], "alpha": [0.0, 1.0]}))
        >>> both.select(run="adam").loss
        array([2., 3.])
        >>> both.table()
              initial_loss  final_loss  min_delta  monotone
        run
        sgd            2.0         1.0        0.0      True
        adam           2.0         3.0        1.0     False
    """

    def __init__(self, dataset: xr.Dataset) -> None:
        """Wrap a dataset, which is not copied.

        Args:
            dataset: See the class.

        Raises:
            TypeError: If it is not an xarray.Dataset.
            ValueError: If its points lie on other dimensions, or a coordinate is missing.
        """
        if not isinstance(dataset, xr.Dataset):
            raise TypeError(f"dataset must be an xarray.Dataset, got {type(dataset).__name__}")
        self._dims = layout_of(dataset)
        self.dataset = dataset

    @property
    def dims(self) -> tuple[str, ...]:
        """The dimensions that the points lie on, such as ``("alpha",)`` or ``("x", "y")``."""
        return self._dims

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the coordinates that say where a point lies: the dimensions, or those of ``point``."""
        if self.dims != ("point",):
            return self.dims
        return tuple(str(name) for name, axis in self.dataset.coords.items() if axis.dims == self.dims)

    @property
    def size(self) -> int:
        """Number of points."""
        return math.prod(self.dataset.sizes[dim] for dim in self.dims)

    @property
    def alphas(self) -> Float64:
        """The points along each line [A], in the order asked for.

        Raises:
            AttributeError: If the points do not lie along alpha.
        """
        if "alpha" not in self.dims:
            axes = " and ".join(f"result[{axis!r}]" for axis in self.axes)
            raise AttributeError(f"this result has no alphas: its points are at {axes}")
        return self._values("alpha")

    @property
    def loss(self) -> Float64:
        """Mean loss per example, in the shape of ``dims``: [A], [X, Y], [runs, A], ..."""
        return self._values("loss")

    @property
    def accuracy(self) -> Float64:
        """Fraction of examples classified right, in 0..1, in the shape of ``dims``.

        Raises:
            AttributeError: If the sweep was not asked for it.
        """
        if "accuracy" not in self:
            raise AttributeError("this result has no accuracy: ask for it with metrics=('accuracy',)")
        return self._values("accuracy")

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
            The values, in the order of the variable's dimensions ([A], [A, classes], [runs], ...).

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

    def select(self, **labels: Any) -> SweepResult:
        """A part of the result: one run or group, a cut through a surface, or several runs.

        Args:
            **labels: Dimension -> label, or a list of labels, which keeps the dimension. Coordinates that are no whole
                numbers are found to five digits, as they are printed.

        Returns:
            That part; a dimension of a single label is gone.

        Raises:
            ValueError: If there is no such dimension or label (the message lists them), or not even a line is left.
        """
        places = {}
        for dim, wanted in labels.items():
            if dim not in self.dims:
                raise ValueError(f"select: this result has no dimension {dim!r}, only {', '.join(self.dims)}")
            several = isinstance(wanted, (list, tuple, np.ndarray))
            places[dim] = [self._place(dim, one) for one in wanted] if several else self._place(dim, wanted)
        part = self.dataset.isel(places)
        if not set(self.dims) & set(part.dims):
            raise ValueError(f"select: {labels} is a single point, no result; read it from .dataset or .to_dataframe()")
        return SweepResult(part)

    def lines(self) -> Iterator[tuple[Any, SweepResult]]:
        """The single curves of a result with runs or groups.

        Yields:
            Label and curve, in the order of the result.

        Raises:
            ValueError: If the result has neither runs nor groups.
        """
        dim = self._several_lines("lines")
        for place, label in enumerate(self[dim].tolist()):
            yield label, SweepResult(self.dataset.isel({dim: place}))

    def filter(self, max_final_loss: float) -> SweepResult:
        """The runs (or groups) whose training went well: their final loss is not above a limit.

        Lucas et al. 2021 (arXiv:2104.11044) look only at runs of fully connected networks with a final training loss
        of at most 0.1, and call one non-monotone if its min Delta is above 1e-3: ``filter(0.1).table(tol=1e-3)``. On
        CIFAR the limit is 1.0 or 2.0, and any rise counts: ``filter(1.0).table(tol=0.0)``.

        Args:
            max_final_loss: Largest loss kept, at the largest alpha in [0, 1]. A loss of NaN is never kept.

        Returns:
            The runs kept, in their order; there may be none.

        Raises:
            ValueError: If the result has neither runs nor groups, no alpha in [0, 1], or the limit is NaN.
        """
        dim = self._several_lines("filter")
        if math.isnan(max_final_loss):
            raise ValueError("max_final_loss is NaN, which keeps nothing; give a number")
        places = runs.ends(self.alphas)
        if places is None:
            raise ValueError("filter: no alpha lies in [0, 1], so that there is no final loss")
        return SweepResult(self.dataset.isel({dim: np.flatnonzero(self.loss[:, places[1]] <= max_final_loss)}))

    def table(self, tol: float = 0.0) -> pd.DataFrame:
        """A pandas table with a row for each run (or group).

        Args:
            tol: Rise of the loss still taken as monotone, in its own units. See ``filter`` for the numbers in papers.

        Returns:
            Indexed by the label, with the columns ``initial_loss`` and ``final_loss`` (at the smallest and the largest
            alpha in [0, 1]), the same of ``accuracy`` where there is one, ``min_delta`` and ``monotone``, and every
            variable that has one value a run, such as ``distance`` and ``gauss_length``. Without an alpha in [0, 1]
            there are these last ones alone.

        Raises:
            ValueError: If the result has neither runs nor groups, or ``tol`` is negative.
        """
        self._several_lines("table")
        return runs.table(self, tol)

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
            ValueError: If the result is not one line along alpha, the variable is not a single curve, no alpha lies in
                [0, 1], or ``tol`` is negative.
        """
        if self.dims != ("alpha",):
            advice = f"; select one first, as in .select({self.dims[0]}=...)" if "alpha" in self.dims else ""
            raise ValueError(
                f"monotonicity is of one line along alpha, the points lie on {', '.join(self.dims)}{advice}"
            )
        values = 1.0 - self.accuracy if variable == "error" and variable not in self else self[variable]
        if values.shape != self.alphas.shape:
            raise ValueError(f"monotonicity needs one value per alpha, but {variable!r} has shape {values.shape}")
        return monotonicity(self.alphas, values, tol)

    def at(self, alphas: ArrayLike, variable: str = "loss") -> Float64:
        """A curve between its points, by the cubic spline through them (`mli_fast.adaptive.interpolant`).

        Args:
            alphas: Where, any shape; NaN beyond the points and next to ones that are not finite.
            variable: A curve with one value per alpha.

        Raises:
            KeyError: If there is no such variable.
            ValueError: If it is not a single curve.
        """
        values = self[variable]
        if self.dims != ("alpha",) or values.shape != self.alphas.shape:
            raise ValueError(f"{variable!r} is not one curve over alpha: its shape is {values.shape}")
        return interpolant(self.alphas, values)(alphas)

    def is_monotonic(self, variable: str = "loss", confidence: float = 0.95) -> Verdict:
        """Whether the loss falls all the way, as far as this many examples can tell.

        Args:
            variable: ``"loss"``: judged by the differences to the alpha before, with their paired standard errors;
                ``"loss_slope"``: by d loss / d alpha at every point.
            confidence: With which a step has to be known to fall, or one to rise.

        Returns:
            The verdict of ``mli_fast.measures.is_monotonic``: monotone, not monotone or undecided.

        Raises:
            KeyError: If the sweep did not compute that.
            ValueError: If this is not a single line with points in ascending alpha.
        """
        name = "loss_step" if variable == "loss" else variable
        if self.dims != ("alpha",) or (np.diff(self.alphas) < 0).any():
            raise ValueError("is_monotonic needs a single line, its alphas ascending; select one, or sort them")
        return is_monotonic(self[name], self[f"{name}_stderr"], confidence)

    def plot(self, ax: Axes | None = None, **options: Any) -> Axes:
        """Draw the result; needs matplotlib. Points that are not finite are left blank, and it is said how many.

        Loss is drawn and, where there is one, accuracy: a curve along alpha, a line for each run, a row of a heat map
        for each group, or a surface over x and y.

        Args:
            ax: Axes to draw on. None makes a new figure, with a panel for each of loss and accuracy. On given axes
                curves have the loss on the left and accuracy dashed on a twin axis on the right; heat maps and
                surfaces draw one variable only.
            **options: For curves ``label``, their name in the legend. For heat maps and surfaces ``variable`` (that one
                alone) and ``log`` (logarithmic colours). For surfaces ``kind`` ("filled", "contour", "3d") and
                ``trajectory`` ([T, 2] points, drawn over it from its start to its end).

        Returns:
            The axes of the loss. ``.figure`` of it can be saved with ``savefig``, and shows in a notebook.

        Raises:
            ValueError: If an option does not fit, or there is no picture of such a result.
            TypeError: If it has no such option.
        """
        from mli_fast.plot import plot

        return plot(self, ax, **options)

    def to_dataframe(self) -> pd.DataFrame:
        """A pandas table with one row per point; class-wise variables become columns such as ``class_loss[3]``."""
        import pandas as pd

        return pd.DataFrame(dict(all_columns(self.dataset)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result so that ``mli_fast.load`` returns it bit for bit.

        Args:
            path: ``.nc`` (NetCDF-4), ``.json``, or ``.csv`` (one row per point under a header line). An existing file
                is replaced in one step.

        Raises:
            ValueError: If the suffix is not one of these, or a variable cannot be stored.
            FileNotFoundError: If the folder to write into does not exist.
            OSError: If it cannot be written, such as on a full disk.
        """
        save_dataset(self.dataset, path)

    def __repr__(self) -> str:
        """A few readable lines: which points, the main values on them, monotone or not."""
        return summary(self)

    def _values(self, name: str) -> Float64:
        return np.asarray(self[name], dtype=np.float64)

    def _several_lines(self, what: str) -> str:
        """The dimension that counts the lines."""
        if self.dims[0] not in ("run", "group"):
            raise ValueError(
                f"{what}: needs a result with runs or groups, the points of this one lie on {', '.join(self.dims)}"
            )
        return self.dims[0]

    def _place(self, dim: str, wanted: Any) -> int:
        """Index of a label: the one that is equal or, of coordinates, the nearest that is printed the same."""
        if dim == "point":
            raise ValueError("select: points have no labels; take them from .dataset by their index")
        labels = self[dim].tolist()
        if wanted in labels:
            return labels.index(wanted)
        near = [label for label in labels if isinstance(label, float) and isinstance(wanted, Real)]
        # A zero of a grid may be off by the rounding of its largest coordinate.
        zero = 1e-12 * max(map(abs, near), default=0.0)
        near = [label for label in near if math.isclose(label, wanted, rel_tol=1e-5, abs_tol=zero)]
        if not near:
            known = ", ".join(f"{label:.6g}" if isinstance(label, float) else repr(label) for label in labels)
            raise ValueError(f"select: there is no {dim}={wanted!r}; there are: {known}")
        return labels.index(min(near, key=lambda label: abs(label - wanted)))


def load(path: str | os.PathLike[str]) -> SweepResult:
    """Read a result that ``SweepResult.save`` wrote.

    A ``.nc`` without a checksum, by an earlier version or another program, is read in a process of its own.

    Args:
        path: ``.nc``, ``.json`` or ``.csv``.

    Returns:
        The result, bit for bit as it was saved.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the suffix is not a known one, or the file is damaged, refers to others or is not a result.
    """
    dataset = load_dataset(path)
    try:
        return SweepResult(dataset)
    except ValueError as error:
        raise ValueError(f"{path}: not a result of a sweep ({error})") from error
