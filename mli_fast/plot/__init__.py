"""Pictures of results, drawn with matplotlib's object-oriented interface (no global state, no display)."""

from mli_fast.plot.files import check_plot_target, save_plot
from mli_fast.plot.grid import compare_policies, plot_curves
from mli_fast.plot.layouts import plot

__all__ = ["check_plot_target", "compare_policies", "plot", "plot_curves", "save_plot"]
