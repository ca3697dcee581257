"""One measuring part in a process of its own: `python -m benchmarks.gpu.child PART --seconds S --out FILE KEY...`.

Every line of the file is a JSON object {key, row, done}: a row may come again, more complete each time, so that what a
deadline or a fault on the GPU cuts off is the least. A fault ends the process; whoever started it starts it again for
the keys that are left.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu.timing import OutOfTime

PARTS = ("ceilings", "tuning", "kernels", "sweeps", "memory", "warming")  # modules with keys() and measure()
FAULT = 3  # exit status: the GPU takes no more work from this process
Emit = Callable[[dict[str, Any]], None]


def module(part: str) -> Any:
    """The module that measures a part."""
    return importlib.import_module(f"benchmarks.gpu.{part}")


def measure(part: str, keys: list[str], seconds: float, out: Path, device: str, tiny: bool) -> int:
    """Measure the keys one after the other, each with its share of what time is left; the exit status."""
    import torch

    place, ends = torch.device(device), time.monotonic() + seconds
    with out.open("a") as file:

        def write(key: str, row: dict[str, Any], done: bool) -> None:
            file.write(json.dumps({"key": key, "row": row, "done": done}, default=str) + "\n")
            file.flush()

        for index, key in enumerate(keys):
            share = (ends - time.monotonic()) / (len(keys) - index)
            if share < 0.2:
                write(key, {"reason": "no time left"}, True)
                continue
            kept: dict[str, Any] = {}

            def emit(row: dict[str, Any], key: str = key, kept: dict[str, Any] = kept) -> None:
                kept.update(row)
                write(key, kept, False)

            emit({})
            try:
                module(part).measure(key, share, emit, place, tiny)
            except OutOfTime as error:
                kept["reason"] = str(error)
            except Exception as error:  # noqa: BLE001  a part that fails is recorded, and the rest goes on
                kept["failed"] = f"{type(error).__name__}: {str(error)[:800]}"
                traceback.print_exc()
            write(key, kept, True)
            if place.type == "cuda" and not usable(place):
                return FAULT
    return 0


def usable(device: Any) -> bool:
    """Whether the GPU still takes work from this process; memory that is not in use is given back."""
    import gc

    import torch

    try:
        torch.cuda.synchronize(device)
        gc.collect()
        torch.cuda.empty_cache()
    except Exception:  # noqa: BLE001  whatever it is, this process is of no more use
        traceback.print_exc()
        return False
    return True


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.child", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("keys", nargs="+")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, for tests of the measuring code itself")
    a = parser.parse_args(arguments)
    return measure(a.part, a.keys, a.seconds, a.out, a.device, a.tiny)


if __name__ == "__main__":
    sys.exit(main())
