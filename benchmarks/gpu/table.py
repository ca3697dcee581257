"""The GPU figures as Markdown: `python -m benchmarks.gpu.table results.json` prints the README's tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.adopt import kernel_rows, shape_of


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _table(head: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    return [_line(head), _line(["---"] * len(head)), *(_line(row) for row in rows)] if rows else []


def _ms(seconds: float | None) -> str:
    return "n/a" if seconds is None else f"{1e3 * seconds:,.1f} ms"


def _ratio(value: float | None, goal: float | None) -> str:
    reached = "n/a" if value is None else f"**{value:.2f}x**"
    return reached + (f" (goal {goal:g}x)" if goal else "")


def _rows(report: Mapping[str, Any], part: str) -> list[dict[str, Any]]:
    return list(report["parts"].get(part, {}).get("rows", {}).values())


def sweeps(report: Mapping[str, Any]) -> list[str]:
    """Work, ours, the best peer, the plain loop, and what was reached beside what was asked for."""
    lines = []
    for row in _rows(report, "sweeps"):
        if "variants" not in row:
            continue
        variants, best = row["variants"], row.get("best_peer")
        plain = variants.get("plain_loop", {})
        other = f"{_ms(row.get('best_peer_s'))} ({variants[best]['title']})" if best else "n/a"
        ratios = [_ratio(row.get("ratio"), row["goal"])]
        if plain or row["goal_plain"]:
            took = f"{_ms(plain.get('median_s'))}, {plain.get('scaled', 'not measured')}"
            ratios.append(_ratio(row.get("ratio_plain"), row["goal_plain"]) + f" than the DataLoader loop ({took})")
        ours = _ms(row.get("ours_s"))
        reason = variants.get("mli_fast", {}).get("reason") or variants.get("mli_fast", {}).get("failed")
        lines.append([f"{row['title']}, {row['precision']}", reason or ours, other, "; ".join(ratios)])
    return _table(("sweep", "mli_fast", "best peer", "best peer / ours"), lines)


def kernels(report: Mapping[str, Any]) -> list[str]:
    """Every case with its fastest kernel, against the vendor on weights blended beforehand."""
    cases: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in kernel_rows(report):
        cases.setdefault((row["op"], row["dtype"], shape_of(row)), []).append(row)
    lines = []
    for (op, dtype, shape), rows in cases.items():
        timed = [r for r in rows if r.get("ms")]
        if not timed:
            lines.append([f"{op}, {dtype}, {shape}", "n/a", "", "", "", rows[0]["reason"] or ""])
            continue
        best = min(timed, key=lambda r: r["ms"])
        rate = f"{best['tflops']:.0f} TFLOP/s" if best["tflops"] else f"{best['gbps'] / 1e3:.2f} TB/s"
        errors = f"{best['rms_error']:.1e} ({best['vendor_rms_error']:.1e})"
        way = best["kernel"] if not best["plain"] else best["route"]
        times = f"{best['ms']:.3f} ms ({best['vendor_ms']:.3f})"
        lines.append([f"{op}, {dtype}, {shape}", way, times, rate, errors, _ratio(best["ratio"], best["goal"])])
    return _table(("kernel", "by", "ours (vendor)", "rate", "error (vendor's)", "vendor / ours"), lines)


def ceilings(report: Mapping[str, Any]) -> list[str]:
    """One line: copy and products."""
    found = report["parts"].get("ceilings", {}).get("rows", {})
    parts = [f"{name} {row['tbps']:.2f} TB/s" for name, row in found.items() if "tbps" in row]
    parts += [f"{name} {row['tflops']:.0f} TFLOP/s" for name, row in found.items() if "tflops" in row]
    copied = found.get("copy", {}).get("tbps")
    blends = [r for r in kernel_rows(report) if r["op"] == "blend" and r.get("ms") and not r["plain"]]
    parts += [
        f"blend ({r['kernel']}, {r['dtype']}, {shape_of(r)}) {r['gbps'] / 1e3:.2f} TB/s, "
        f"{100 * r['gbps'] / 1e3 / copied:.0f} % of the copy"
        for r in blends
        if copied
    ]
    return ["Ceilings: " + "; ".join(parts) + "."] if parts else []


def memory(report: Mapping[str, Any]) -> list[str]:
    """One line: ours, vmap's, and what ours is made of."""
    found = report["parts"].get("memory", {}).get("rows", {})
    ours, theirs = (found.get(name, {}) for name in ("mli_fast", "vmap"))
    if "peak_bytes" not in ours:
        return []
    text = f"Peak memory beyond checkpoints and data, {ours['title']}: {ours['peak_bytes'] / 2**20:,.0f} MiB"
    text += f" (|theta| is {ours['theta_bytes'] / 2**20:,.0f} MiB)"
    if theirs.get("peak_bytes"):
        share = f"{ours['peak_bytes'] / theirs['peak_bytes']:.3f} of it (goal {ours['goal']:.3f})"
        text += f"; vmap {theirs['peak_bytes'] / 2**20:,.0f} MiB, {share}"
    return [text + "."]


def markdown(report: Mapping[str, Any]) -> str:
    """All tables, and what they were measured on."""
    gpu, versions = report["gpu"], report["versions"]
    foot = f"{gpu['name']}, torch {versions['torch']}, CUDA {versions.get('cuda')}, Triton {versions.get('triton')}, "
    foot += f"medians, {report['date'][:10]}."
    blocks = [sweeps(report), kernels(report), ceilings(report), memory(report), [foot]]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.gpu.table results.json")
    print(markdown(json.loads(Path(sys.argv[1]).read_text())))


if __name__ == "__main__":
    main()
