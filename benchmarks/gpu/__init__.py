"""What a machine with a GPU has to show: `python -m benchmarks.gpu.run` builds, tests and measures everything."""
