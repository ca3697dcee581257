"""Commands in processes of their own, with a deadline: whatever they leave running is ended with them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gpu.about import ROOT

TAIL = 4000  # characters of what a command printed that are kept


@dataclass
class Running:
    """A command that has been started."""

    command: list[str]
    process: subprocess.Popen[bytes]
    log: Path
    started: float = field(default_factory=time.monotonic)
    late: bool = False

    def finish(self, until: float) -> int | None:
        """Wait until then (by time.monotonic) and end it; the exit status, None if it was not done."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.0, until - time.monotonic()))
        self.late = self.process.poll() is None
        self.stop()
        return None if self.late else self.process.returncode

    def stop(self) -> None:
        """End the whole group, what the command itself started included."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def tail(self) -> str:
        """The end of what it printed."""
        return self.log.read_text(errors="replace")[-TAIL:]


def start(command: Sequence[str], env: Mapping[str, str] | None = None, folder: Path | None = None) -> Running:
    """Start a command in the repository's root, in a group of its own, its output in a file."""
    folder = Path(tempfile.mkdtemp(prefix="gpu-check-")) if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.glob("*.log")))
    log = folder / f"{number:03d}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            list(command),
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Running(list(command), process, log)
