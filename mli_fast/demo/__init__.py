"""The demo: three networks trained on handwritten digits, and their curves from initialisation to the end."""

from mli_fast.demo.run import main

__all__ = ["main"]
