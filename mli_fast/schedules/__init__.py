"""Schedules: how groups of parameters move along a path, and which parameters form a group."""

from .assignment import assign, check, groups, held
from .coefficients import coefficients, derivatives
from .order import depth_order
from .schedule import Schedule, power

__all__ = ["Schedule", "assign", "check", "coefficients", "depth_order", "derivatives", "groups", "held", "power"]
