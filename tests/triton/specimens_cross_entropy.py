"""The Triton cross entropy, alone and fused, as it is launched: what `compiled.machine_code` takes and has to give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import triton.language as tl

from mli_fast.ops.cross_entropy import fused_triton
from mli_fast.ops.cross_entropy import triton as alone

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ROWS = {"losses": "*fp64", "predictions": "*i64", "targets": "*i64"}
TILES = {"largest_tiles": "*fp32", "total_tiles": "*fp32", "key_tiles": "*i32", "target_logits": "*fp32"}


def simple(
    name: str, kernel: Any, arch: int, pointers: Mapping[str, str], sizes: Iterable[str], **constants: Any
) -> dict[str, Any]:
    """A kernel without a matrix product."""
    arguments = {**pointers, **dict.fromkeys(sizes, "i32")}
    return {
        "name": f"{name}-sm_{arch}",
        "kernel": kernel,
        "arguments": arguments,
        "constants": constants,
        "arch": arch,
        "aligned": tuple(pointers),
        "options": {"num_warps": 4},
        "register_operand": False,
    }


def rows(arch: int, kind: str, block: int) -> dict[str, Any]:
    """`cross_entropy` of as many classes as a block holds, or more."""
    return simple(
        f"cross_entropy-{kind}-{block}",
        alone.cross_entropy_fwd_kernel,
        arch,
        {"logits": f"*{kind}", **ROWS},
        ("M", "C", "row_tiles"),
        ROWS=max(1, 512 // block),
        BLOCK=block,
        WIDE=tl.float64 if kind == "fp64" else tl.float32,
    )


def fused(arch: int, kind: str, rows: int, anchors: int = 2, tf32: bool = False) -> dict[str, Any]:
    """`linear_cross_entropy` with a bias and so many rows per point."""
    block = fused_triton.blocks(DTYPES[kind], tf32, rows)
    pointers = {"x": f"*{kind}", "weights": f"*{kind}", "coefficients": "*fp64", "shift": "*fp32", "targets": "*i64"}
    sizes = dict.fromkeys(("P", "M", "V", "K", "x_point", "anchor_step", "row_tiles"), "i32")
    constants = {
        "R": anchors,
        "BV": block.v,
        "BM": block.m,
        "BK": block.k,
        "GROUP": 8,
        "TF32": tf32,
        "PRECISION": "ieee" if kind != "fp32" else "tf32" if tf32 else "tf32x3",
    }
    return {
        "name": f"linear_cross_entropy-{'tf32' if tf32 else kind}-M{rows}-R{anchors}-sm_{arch}",
        "kernel": fused_triton.linear_cross_entropy_fwd_kernel,
        "arguments": {**pointers, **TILES, **sizes},
        "constants": constants,
        "arch": arch,
        "aligned": (*pointers, *TILES, "K", "x_point", "anchor_step"),
        "options": {"num_warps": block.warps, "num_stages": block.stages},
        "register_operand": arch == 90,
    }


SPECIMENS = [
    rows(80, "fp32", 16),
    rows(90, "fp32", 16),
    rows(90, "bf16", 2048),
    rows(90, "fp64", 2048),
    simple(
        "merge_tiles", fused_triton.merge_tiles_kernel, 90, TILES | ROWS, ("rows", "M", "V", "tiles"), ROWS=32, TILES=32
    ),
    fused(80, "bf16", 4096),
    fused(80, "fp32", 4096),
    fused(90, "bf16", 16),
    fused(90, "fp16", 64),
    fused(90, "bf16", 4096, anchors=3),
    fused(90, "fp32", 4096),
    fused(90, "fp32", 4096, tf32=True),
]
