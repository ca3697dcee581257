"""The parts that are no measurement: the build, the tests, the memory checker."""

from __future__ import annotations

import os
import shutil
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu.about import ROOT
from benchmarks.gpu.process import Running, start

Result = dict[str, Any]
Save = Callable[[Result], None]
FOLDERS = ("tests/triton", "tests/cuda", "tests/gpu")
TOGETHER = 6  # test files at a time: compiling kernels is most of their time
PYTEST = ("-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "--tb=short")
NOTHING_COLLECTED = 5  # pytest's exit status
FOUND = 99  # the memory checker's, where it found something


def build(folder: Path, until: float, save: Save) -> Result:
    """The compiled module, in place, CUDA included."""
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # cmake and ninja may be there
    env = {"MLI_FAST_CUDA": "1", "MLI_FAST_NATIVE": "1", "PATH": tools}
    running = start([sys.executable, "setup.py", "build_ext", "--inplace"], env, folder)
    code = running.finish(until)
    lines = running.log.read_text(errors="replace").splitlines()
    result: Result = {"decisions": [line for line in lines if line.startswith("mli_fast:")]}
    result["warnings"] = [line for line in lines if "warning" in line.lower() or "spill" in line.lower()][:40]
    if code != 0:
        result |= {"failed": "out of time" if code is None else f"exit status {code}", "log": running.tail()}
    return result


def tested(folder: Path, until: float, save: Save) -> Result:
    """Every file with GPU tests in a process of its own, several at a time."""
    waiting = [str(f.relative_to(ROOT)) for name in FOLDERS for f in sorted((ROOT / name).glob("test_*.py"))]
    running: dict[str, Running] = {}
    result: Result = {"files": {}}
    while waiting or running:
        while waiting and len(running) < TOGETHER:
            name = waiting.pop(0)
            report = folder / f"{Path(name).parent.name}-{Path(name).stem}.xml"
            running[name] = start([sys.executable, *PYTEST, f"--junitxml={report}", name], None, folder)
        time.sleep(0.05)
        over = time.monotonic() > until
        for name in [n for n, r in running.items() if over or r.process.poll() is not None]:
            done = running.pop(name)
            done.finish(0)
            report = folder / f"{Path(name).parent.name}-{Path(name).stem}.xml"
            result["files"][name] = outcome(done, report)
            save(totalled(result))
        if over:
            result["files"] |= {name: {"failed": "no time left", "failures": []} for name in waiting}
            waiting = []
    return totalled(result)


def sanitizer(folder: Path, until: float, save: Save) -> Result:
    """The native kernels' tests under compute-sanitizer's memcheck."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not os.access(tool, os.X_OK):
        return {"reason": "compute-sanitizer is not installed"}
    report = folder / "sanitizer.xml"
    command = [tool, "--tool", "memcheck", "--error-exitcode", str(FOUND), sys.executable, *PYTEST]
    # without PyTorch's pool every tensor is an allocation of its own, whose bounds can be checked
    env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    running = start([*command, f"--junitxml={report}", "tests/cuda"], env, folder)
    code = running.finish(until)
    lines = [x for x in running.log.read_text(errors="replace").splitlines() if x.startswith("=========")]
    result: Result = {"errors": lines[:60], "summary": next((x for x in lines if "ERROR SUMMARY" in x), None)}
    if code == FOUND or any("Invalid" in x or "Misaligned" in x for x in lines):
        result["failed"] = f"memcheck: {result['summary'] or 'errors'}"
    elif code is None:
        result["reason"] = "out of time; no error until then"
    else:
        result = totalled(result | {"files": {"tests/cuda": outcome(running, report)}})
    return result


def outcome(done: Running, report: Path) -> Result:
    """What one run of pytest came to."""
    found: Result = {"seconds": round(time.monotonic() - done.started, 1), "failures": []}
    code = done.process.returncode
    if report.exists():
        suite = next(iter(ElementTree.parse(report).getroot().iter("testsuite")))
        counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
        found |= {"tests": counts["tests"], "skipped": counts["skipped"]}
        found["passed"] = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
        for case in suite.iter("testcase"):
            wrong = case.find("failure") if case.find("failure") is not None else case.find("error")
            if wrong is not None:
                text = (wrong.get("message") or "")[:300] + "\n" + (wrong.text or "")[-700:]
                found["failures"].append({"test": f"{case.get('classname')}::{case.get('name')}", "message": text})
    if done.late or code == -9:
        found["failed"] = "out of time"
    elif code not in (0, NOTHING_COLLECTED):
        found["failed"] = f"exit status {code}"
    if "failed" in found:
        found["log"] = done.tail()
    return found


def totalled(result: Result) -> Result:
    """The result with the sums over its files."""
    files = result["files"].values()
    result["passed"] = sum(f.get("passed", 0) for f in files)
    result["skipped"] = sum(f.get("skipped", 0) for f in files)
    result["failures"] = [failure["test"] for f in files for failure in f["failures"]]
    wrong = [f"{name}: {f['failed']}" for name, f in result["files"].items() if "failed" in f]
    if wrong and "failed" not in result:
        result["failed"] = "; ".join(wrong)
    return result
