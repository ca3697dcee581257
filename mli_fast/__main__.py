"""``python -m mli_fast``, the same as ``mli-fast``."""

from mli_fast.cli import main

if __name__ == "__main__":
    main()
