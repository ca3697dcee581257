"""Measurements of mli_fast against every other way of doing the same work. `python -m benchmarks.run` does it all."""
