"""The values at the points, by each of the ways in which they are asked for."""

from __future__ import annotations

import pytest
import torch

from mli_fast.engine.points import Points


@pytest.mark.parametrize("count", [1, 2, 7])
def test_many_vectors_at_once_are_each_alone_bit_for_bit(count: int) -> None:
    torch.manual_seed(0)
    shapes = {"a": (5,), "b": (17,), "one": (), "none": (0,), "matrix": (3, 2), "other": (4,), "wide": (6,)}
    anchors = {name: (torch.randn(shape), torch.randn(shape)) for name, shape in shapes.items()}
    anchors["half"] = torch.randn(9).half(), torch.randn(9).half()
    anchors["mixed"] = torch.randn(3), torch.randn(3).double()
    anchors["complex"] = torch.randn(4, dtype=torch.complex64), torch.randn(4, dtype=torch.complex64)
    anchors["whole"], anchors["constant"] = (torch.arange(3),), (torch.randn(8),)
    coefficients, others = torch.rand(count, 2, dtype=torch.float64), torch.rand(count, 2, dtype=torch.float64)
    tables = {"table": torch.randn(count, 11)}
    points = Points(anchors, coefficients, {"other": others}, {"wide": torch.float64}, tables)
    for start in range(count):
        for stop in range(start + 1, count + 1):
            found = points.vectors(points.names, start, stop)
            assert set(found) == set(points.names)
            for name, value in found.items():
                alone = points.rows(name, start, stop)
                assert value.dtype == alone.dtype == points.dtype_of(name)
                assert value.shape == alone.shape
                assert torch.equal(value, alone)
                assert points.bytes_of(name) == alone[0].numel() * alone.element_size()
