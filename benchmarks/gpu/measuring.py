"""A measuring part from outside: its child process, started again for what is left when the GPU gave it up."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu import child
from benchmarks.gpu.process import Running, start

GRACE_S = 3.0  # before the deadline the child is to stop by itself
ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}


def command(part: str, keys: list[str], seconds: float, out: Path, options: tuple[str, ...]) -> list[str]:
    """The child's."""
    return [
        *(sys.executable, "-m", "benchmarks.gpu.child", part, "--seconds", f"{seconds:.1f}", "--out", str(out)),
        *options,
        "--",
        *keys,
    ]


def begin(part: str, keys: list[str], folder: Path, seconds: float, options: tuple[str, ...]) -> Running:
    """Start a child for these keys."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / "jax")}
    if part == "warming":  # what it measures beside others is not to be kept
        cache |= {"MLI_FAST_CACHE": str(folder / "cache"), "TORCHINDUCTOR_COMPILE_THREADS": "3"}
    out = folder / f"{part}.jsonl"
    return start(command(part, keys, seconds, out, options), ENVIRONMENT | cache, folder)


def measured(
    part: str, folder: Path, until: float, save: Callable[[dict[str, Any]], None], options: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The rows of a part, saved as they come.

    Args:
        part: of `child.PARTS`.
        folder: for its files.
        until: the deadline, by time.monotonic.
        save: takes what there is so far.
        options: more arguments of the child: --device, --tiny.
    """
    keys, out = child.module(part).keys("--tiny" in options), folder / f"{part}.jsonl"
    result: dict[str, Any] = {"rows": {}}
    ended: dict[str, dict[str, str]] = {}  # keys whose process did not finish them, and why
    while left := [key for key in keys if key not in result["rows"]]:
        seconds = until - time.monotonic() - GRACE_S
        if seconds < 1:
            result["rows"] |= {key: {"reason": "no time left"} for key in left}
            break
        running = begin(part, left, folder, seconds, options)
        known = 0
        while running.process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
            if out.exists() and out.stat().st_size != known:
                known = out.stat().st_size
                save(result | {"rows": rows_of(out)[0]})
        code = running.finish(0)
        found, cut_off = rows_of(out)
        for key in set(cut_off) - set(ended):
            why = f"its process ended with exit status {code}"
            ended[key] = {"reason": "out of time"} if code is None else {"failed": why}
        for key, what in ended.items():
            found[key] |= what
        progress = set(found) - set(result["rows"])
        result["rows"] = found
        if code not in (0, child.FAULT):
            result["log"] = running.tail()
        if not progress:
            result["failed"] = "out of time" if code is None else f"exit status {code} before anything was measured"
            break
        save(result)
    return result


def rows_of(out: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The last row of every key, and the keys whose row is not complete."""
    found: dict[str, dict[str, Any]] = {}
    done: dict[str, bool] = {}
    for line in out.read_text().splitlines() if out.exists() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # the line that was being written
            continue
        found[entry["key"]], done[entry["key"]] = entry["row"], entry["done"]
    return found, [key for key, complete in done.items() if not complete]
