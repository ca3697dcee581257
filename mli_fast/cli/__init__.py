"""The command line: ``mli-fast demo | sweep | show | info``."""

from mli_fast.cli.commands import app, main

__all__ = ["app", "main"]
