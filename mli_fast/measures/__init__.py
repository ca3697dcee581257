"""Measures of curves, outputs and parameters: NumPy arrays in, numbers out, each with its formula and source."""

from mli_fast.measures.barriers import barrier, mode_connectivity
from mli_fast.measures.distances import Distance, distance
from mli_fast.measures.envelope import convexity
from mli_fast.measures.function_space import gauss_length, gauss_lengths, path_length, path_lengths
from mli_fast.measures.monotonicity import Monotonicity, min_delta, monotonicity
from mli_fast.measures.plateau import homogeneous_crossing, plateau_length
from mli_fast.measures.rises import Bump, bumps, largest_step
from mli_fast.measures.roughness import roughness_index, total_variation
from mli_fast.measures.similarity import cka
from mli_fast.measures.verdict import Verdict, is_monotonic

__all__ = [
    "Bump",
    "Distance",
    "Monotonicity",
    "Verdict",
    "barrier",
    "bumps",
    "cka",
    "convexity",
    "distance",
    "gauss_length",
    "gauss_lengths",
    "homogeneous_crossing",
    "is_monotonic",
    "largest_step",
    "min_delta",
    "mode_connectivity",
    "monotonicity",
    "path_length",
    "path_lengths",
    "plateau_length",
    "roughness_index",
    "total_variation",
]
