"""The blended operations: each folder is one op with its contract, its reference and its kernels."""
