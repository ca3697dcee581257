"""Measures of a curve of losses: NumPy arrays in, numbers out."""

from mli_fast.measures.monotonicity import Monotonicity, min_delta, monotonicity

__all__ = ["Monotonicity", "min_delta", "monotonicity"]
