"""The Triton convolution as it is launched: what `compiled.machine_code` takes, and what the code has to hold."""

from __future__ import annotations

from typing import Any

import torch

from mli_fast.ops.conv.triton import blocks, conv_fwd_kernel, depth_blocks

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
GEOMETRY = ("stride_h", "stride_w", "padding_h", "padding_w", "dilation_h", "dilation_w")
SIZES = ("pixels", "N", "C", "H", "W", "OH", "OW", "x_point", "anchor_step", "pixel_tiles", "n_tiles")


def specimen(arch: int, kind: str, channels: int, anchors: int = 2, tf32: bool = False) -> dict[str, Any]:
    """A 3 x 3 convolution with all of the epilogue, as many channels out as in."""
    block = blocks(DTYPES[kind], tf32, channels, 2**20)
    channel_block, tap_block = depth_blocks(channels, 9, block.depth)
    pointers = dict.fromkeys(("out", "x", "weights", "residual"), f"*{kind}")
    pointers |= {"coefficients": "*fp64", "scale": "*fp32", "shift": "*fp32"}
    constants = {
        "R": anchors,
        "KH": 3,
        "KW": 3,
        "BN": block.n,
        "BP": block.pixels,
        "BC": channel_block,
        "BT": tap_block,
        "ACTIVATION": "relu",
        "TF32": tf32,
        "PRECISION": "ieee" if kind != "fp32" else "tf32" if tf32 else "tf32x3",
    }
    return {
        "name": f"conv-{'tf32' if tf32 else kind}-N{channels}-R{anchors}-sm_{arch}",
        "kernel": conv_fwd_kernel,
        "arguments": pointers | dict.fromkeys(SIZES, "i32"),
        "constants": constants | dict.fromkeys(GEOMETRY, 1),
        "arch": arch,
        "aligned": (*pointers, "N", "C", "x_point", "anchor_step"),
        "options": {"num_warps": block.warps, "num_stages": block.stages},
        "register_operand": arch == 90 and block.n >= 64,  # fewer rows than a Hopper product takes: mma.sync
    }


SPECIMENS = [
    *(specimen(arch, *case) for arch in (80, 90) for case in (("bf16", 16), ("bf16", 128), ("fp32", 64))),
    specimen(80, "fp32", 64, tf32=True),
    specimen(90, "fp32", 64, tf32=True),
    specimen(90, "fp32", 16, tf32=True),
    specimen(90, "fp16", 32),
    specimen(90, "bf16", 64, anchors=3),
]
