"""Anchors from modules, state dicts and checkpoint files: reading, matching to a model, and the errors of both."""

from .anchors import Anchors, gather
from .changes import stamp, unchanged_files
from .reading import Source, load_state

__all__ = ["Anchors", "Source", "gather", "load_state", "stamp", "unchanged_files"]
