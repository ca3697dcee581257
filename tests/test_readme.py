"""The README's example runs as it is written, and its links lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def run(script: Path) -> list[str]:
    """The lines a script prints, run on its own in its own folder."""
    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": search, "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, script], cwd=script.parent, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


def test_first_python_block_runs_as_written_in_ten_lines(tmp_path: Path) -> None:
    assert len(BLOCKS[0].splitlines()) <= 10
    script = tmp_path / "example.py"
    script.write_text(BLOCKS[0], encoding="utf-8")
    *_, first, last, rise = run(script)
    assert 0 < float(last) < float(first), "the trained end has the smaller loss"
    assert float(rise) >= 0


def test_all_python_blocks_run_one_after_the_other(tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text("".join(BLOCKS), encoding="utf-8")
    assert run(script)[-1] == "interpolate"
    assert (tmp_path / "curve.nc").stat().st_size > 0
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_relative_link_leads_to_a_file(target: str) -> None:
    assert (ROOT / target).is_file()


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`?make ([\w-]+)`?", README))))
def test_make_target_named_in_the_readme_exists(command: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{command}:", makefile, flags=re.MULTILINE)


def test_measured_table_can_be_filled_between_its_markers() -> None:
    assert README.count("<!-- bench -->") == 1
    assert README.index("<!-- bench -->") < README.index("<!-- /bench -->")
