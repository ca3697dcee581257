"""Linear layers one after the other in one call, without their results ever leaving the cache.

Condition: each but the last has one reader, no residual and rows like the next one's, and the blended weights stay in
cache together.
"""

from __future__ import annotations

import math

from mli_fast.program import Program
from mli_fast.rewrites.products import Kernels, Product


def rewrite(program: Program, kernels: Kernels) -> None:
    """Join each chain into its last layer."""
    for node in program.nodes.copy():
        if node not in program.nodes or not _in_chains(node.product):
            continue
        while True:
            maker = program.maker.get(node.product.first.x.number)
            if maker is None or maker not in program.nodes or not _in_chains(maker.product):
                break
            before = maker.product
            if before.residual is not None or maker.out in program.outputs:
                break
            if len(program.readers[maker.out]) != 1 or node.inputs.count(maker.out) != 1:  # also as its residual
                break
            if _rows(before) != math.prod(program.shape[node.product.first.x.number][:-1]):
                break
            layers = [*before.before, before, *node.product.before, node.product]
            first = program.maker.get(layers[0].x.number)
            if first is None or program.depends.isdisjoint(first.ops):  # its products are made once for all points
                layers = layers[1:]
            weights = sum(p.shape[-1] * program.shape[p.x.number][-1] for p in layers)
            if before.kernel != node.product.kernel or not kernels.chains(before.kernel, weights):
                break
            node.product.before = [*before.before, before, *node.product.before]
            before.before = []
            program.remove(maker, into=node)
            program.changed(node)


def _in_chains(product: Product | None) -> bool:
    return product is not None and product.kind == "linear"


def _rows(product: Product) -> int:
    return math.prod(product.shape[:-1])
