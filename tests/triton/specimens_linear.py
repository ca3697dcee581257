"""What of blend, combine and linear is compiled for GPUs that need not be there."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton.language as tl

from mli_fast.ops.blend.triton import blend_fwd_kernel, blend_many_fwd_kernel
from mli_fast.ops.combine.triton import combine_fwd_kernel
from mli_fast.ops.launching import default
from mli_fast.ops.linear.triton import linear_fwd_kernel


class Specimen(NamedTuple):
    """The arguments of `machine_code`, and whether a Hopper kernel has to multiply from registers."""

    name: str
    kernel: Any
    arguments: dict[str, str]
    constants: dict[str, Any]
    arch: int
    aligned: tuple[str, ...]
    options: dict[str, int]
    register_operand: bool = False


TYPES = {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": tl.float32}
PRECISIONS = {  # name -> element type, input precision
    "bfloat16": ("bf16", "ieee"),
    "float16": ("fp16", "ieee"),
    "tf32": ("fp32", "tf32"),
    "float32": ("fp32", "tf32x3"),
}


def linear(precision: str, rows: str, arch: int, anchors: int = 2, products: int = 0, **changes: int) -> Specimen:
    """The linear kernel in its default configuration, with a whole epilogue but for the residual."""
    element, input_precision = PRECISIONS[precision]
    kernel = "linear_of_products" if products else "linear"
    blocks = {**default(kernel, precision, rows, arch), **changes}
    options = {name: blocks.pop(name) for name in ("num_warps", "num_stages")}
    pointers = dict.fromkeys(("out", "x", "weights"), f"*{element}") | dict.fromkeys(("scale", "shift"), "*fp32")
    constants: dict[str, Any] = {"residual": None, **blocks}
    if products:
        pointers |= {"x": "*fp32", "first": "*fp64", "first_scale": "*fp32", "first_shift": "*fp32"}
    else:
        constants |= dict.fromkeys(("first", "first_scale", "first_shift"))
    sizes = [n for n in linear_fwd_kernel.arg_names if n.startswith("stride") or n.endswith("step")]
    constants |= {
        "R": anchors,
        "PRODUCTS": products,
        "SHARED": products > 0,
        "COMPUTE": TYPES[element],
        "PRECISION": input_precision,
        "ACTIVATION": "relu",
        "FIRST_ACTIVATION": "relu",
    }
    arguments = pointers | {"coefficients": "*fp64"} | dict.fromkeys("PMNK", "i32") | dict.fromkeys(sizes, "i32")
    arguments |= dict.fromkeys(("weight_step", "product_step", "stride_x_point", "stride_out_point"), "i64")
    return Specimen(
        f"{kernel}-{precision}-{rows}-R{anchors}-sm_{arch}",
        linear_fwd_kernel,
        arguments,
        constants,
        arch,
        (*pointers, "coefficients", "N", "K", *sizes),
        options,
        register_operand=arch == 90,
    )


def simple(
    name: str, kernel: Any, arch: int, arguments: dict[str, str], constants: dict[str, Any], aligned: tuple[str, ...]
) -> Specimen:
    """A kernel without a matrix product."""
    return Specimen(f"{name}-sm_{arch}", kernel, arguments, constants, arch, aligned, {"num_warps": 8})


def blend(arch: int) -> Specimen:
    """The blend of one tensor."""
    pointers = {"out": "*bf16", "anchors": "*bf16", "coefficients": "*fp64"}
    sizes = dict.fromkeys(("P", "points", "length", "inner"), "i32")
    steps = dict.fromkeys(("step", "stride_out", "stride_coefficients", "stride_scale"), "i64")
    constants = {"scale": None, "R": 2, "WIDE": tl.float32, "ALIGNED": 8, "BLOCK": 2048}
    aligned = (*pointers, "step", "stride_out")
    return simple("blend", blend_fwd_kernel, arch, pointers | sizes | steps, constants, aligned)


def blend_many(arch: int) -> Specimen:
    """The blend of many tensors."""
    pointers = {"table": "*i64", "blocks": "*i64", "coefficients": "*fp64"}
    sizes = dict.fromkeys(("P", "points", "aligned", "stride_coefficients_tensor", "stride_coefficients"), "i32")
    types = {"ANCHOR": tl.bfloat16, "OUT": tl.bfloat16, "WIDE": tl.float32}
    constants = {"R": 2, **types, "ALIGNED": 8, "BLOCK": 2048}
    return simple("blend-many", blend_many_fwd_kernel, arch, pointers | sizes, constants, tuple(pointers))


def combine(arch: int, anchors: int = 2) -> Specimen:
    """The combination of products with a whole epilogue."""
    pointers = {"out": "*bf16", "products": "*fp32", "coefficients": "*fp64", "residual": "*bf16"}
    pointers |= {"scale": "*fp32", "shift": "*fp32"}
    sizes = [n for n in combine_fwd_kernel.arg_names if n.startswith("stride") or n.endswith("step")]
    arguments = pointers | dict.fromkeys(("P", "M", "N", "points"), "i32") | dict.fromkeys(sizes, "i32")
    constants = {"R": anchors, "WIDE": tl.float32, "ACTIVATION": "gelu", "BLOCK_M": 8, "BLOCK_N": 256}
    aligned = (*pointers, "N", *(s for s in sizes if s != "stride_coefficients"))
    return simple(f"combine-R{anchors}", combine_fwd_kernel, arch, arguments, constants, aligned)


SPECIMENS = [
    *(linear("bfloat16", rows, 90) for rows in ("few32", "few64", "some")),
    linear("float16", "few32", 90),
    *(linear(precision, rows, 90) for precision in ("tf32", "float32") for rows in ("few32", "some")),
    linear("bfloat16", "few32", 90, 3, num_stages=2),
    linear("float32", "some", 90, 3, num_stages=2),
    linear("bfloat16", "few32", 80),
    *(linear(precision, "some", 80) for precision in ("bfloat16", "tf32", "float32")),
    *(linear("bfloat16", rows, 90, products=2) for rows in ("few32", "some")),
    *(linear(precision, "some", 90, products=2) for precision in ("tf32", "float32")),
    *(blend_many(arch) for arch in (80, 90)),
    *(f(90) for f in (blend, combine)),
]
