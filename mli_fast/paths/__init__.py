"""Paths through parameter space: which points, and each as coefficients of the anchors."""

from .affine import TaskVectors
from .base import Path
from .curves import Bezier, Polyline
from .families import all_pairs, run_folders, to_one
from .line import Line
from .plane import Plane
from .random_directions import RandomDirections, random_directions

__all__ = [
    "Bezier",
    "Line",
    "Path",
    "Plane",
    "Polyline",
    "RandomDirections",
    "TaskVectors",
    "all_pairs",
    "random_directions",
    "run_folders",
    "to_one",
]
