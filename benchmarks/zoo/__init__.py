"""Models that others wrote, each held against a plain loop: `make zoo`."""
