"""The package's version, as installed."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("mli-fast")
except PackageNotFoundError:  # imported from a checkout that was never installed
    VERSION = "0 (not installed)"
