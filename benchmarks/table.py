"""The comparison as Markdown: `python -m benchmarks.table results.json` prints the README's table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HEAD = ("work", "mli_fast", "best peer", "plain loop", "best peer / ours", "plain loop / ours")


def _milliseconds(seconds: float | None) -> str:
    return "n/a" if seconds is None else f"{1e3 * seconds:,.0f} ms"


def _ratio(value: float | None, target: float | None) -> str:
    if value is None:
        return "n/a"
    return f"**{value:.2f}x**" + (f" (asked: {target:g}x)" if target else "")


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def markdown(summary: dict[str, Any]) -> str:
    """The table of ratios, and a line on memory.

    >>> row = dict(title="MLP", ours_s=0.5, best_peer="jax", best_peer_s=1.0, plain_loop_s=4.0, variants={"jax":
    ...     {"title": "JAX"}}, best_peer_over_ours=2.0, plain_loop_over_ours=8.0, target_best_peer=None,
    ...     target_plain_loop=8.0)
    >>> print(markdown({"rows": [row], "memory": None}).splitlines()[-1])
    | MLP | 500 ms | 1,000 ms (JAX) | 4,000 ms | **2.00x** | **8.00x** (asked: 8x) |
    """
    lines = [_line(HEAD), _line(["---"] * len(HEAD))]
    for row in summary["rows"]:
        best = row["variants"][row["best_peer"]]["title"] if row["best_peer"] else "none"
        lines.append(
            _line(
                [
                    row["title"],
                    _milliseconds(row["ours_s"]),
                    f"{_milliseconds(row['best_peer_s'])} ({best})",
                    _milliseconds(row["plain_loop_s"]),
                    _ratio(row["best_peer_over_ours"], row["target_best_peer"]),
                    _ratio(row["plain_loop_over_ours"], row["target_plain_loop"]),
                ]
            )
        )
    if summary.get("memory"):
        lines += ["", _memory(summary["memory"])]
    return "\n".join(lines)


def _memory(memory: dict[str, Any]) -> str:
    parts = [
        f"{name} {found['theta_multiple']:.2f} x |theta| ({found['points']} alphas)"
        if "theta_multiple" in found
        else f"{name}: {found['reason']}"
        for name, found in memory["variants"].items()
    ]
    return f"Peak memory beyond the checkpoints and the data, {memory['title']}: " + ", ".join(parts) + "."


def details(summary: dict[str, Any]) -> str:
    """Every variant of every row: median, ratio to ours, rounds, options, or why there is no figure."""
    lines = []
    for row in summary["rows"]:
        lines.append(f"{row['title']}  [{row['data']}]")
        for variant in row["variants"].values():
            lines.append("  " + _detail(variant, row["ours_s"]))
    return "\n".join(lines)


def _detail(variant: dict[str, Any], ours: float | None) -> str:
    if variant["median_s"] is None:
        return f"{variant['title']:24s} n/a: {variant['reason']}"
    ratio = f"{variant['median_s'] / ours:6.2f}x" if ours else "   n/a"
    chosen = ", ".join(f"{key}={value}" for key, value in (variant["options"] or {}).items() if value)
    time = _milliseconds(variant["median_s"])
    share = variant.get("share_of_points_timed", 1.0)
    part = f"  timed at {share:.0%} of the points" if share < 1 else ""
    part = "  estimated while tuning" if variant.get("estimated") else part
    return f"{variant['title']:24s} {time:>12s} {ratio}  rounds {variant['rounds']}  {chosen}{part}"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.table results.json")
    found = json.loads(Path(sys.argv[1]).read_text())
    machine = found["machine_info"]
    print(markdown(found["mli_fast"]))
    print(
        f"\n{machine['cpu']} (family/model {machine['cpu_family_model']}), {machine['cores']} cores, "
        f"{', '.join(machine['isa'])}; torch {found['versions']['torch']}, fp32, medians, {found['datetime'][:10]}."
    )


if __name__ == "__main__":
    main()
