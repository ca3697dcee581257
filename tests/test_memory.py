"""Caches are bounded: memory does not grow with a process's sweeps, a sweep's points, or the pairs of files."""

from __future__ import annotations

import gc
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import mli_fast
from mli_fast import buffers
from mli_fast.engine import network as networks

MIB = 2**20


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def network() -> nn.Module:
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)]
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5))


def data(examples: int = 16) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(examples, 3, 16, 16), torch.arange(examples) % 5)]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux")
def test_two_hundred_sweeps_in_a_process() -> None:
    a, b, batches = network(), network(), data()
    seen = []
    for i in range(200):
        mli_fast.sweep(a, a, b, batches, 5, progress=False)
        if i in (50, 199):
            seen.append(resident())
    assert seen[1] - seen[0] < 8 * MIB


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux")
def test_five_thousand_points() -> None:
    a, b = network(), network()
    mli_fast.sweep(a, a, b, data(2), 50, progress=False)
    before = resident()
    mli_fast.sweep(a, a, b, data(2), 5000, progress=False)
    assert resident() - before < 32 * MIB


def test_pairs_of_files_copy_each_anchor_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[networks.Network] = []

    class Seen(networks.Network):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]
            made.append(self)

    monkeypatch.setattr("mli_fast.evaluation.Network", Seen)
    files = []
    for i in range(6):
        save_file(network().state_dict(), tmp_path / f"{i}.safetensors")
        files.append(tmp_path / f"{i}.safetensors")
    pairs = {f"{i}-{j}": mli_fast.Line(files[i], files[j]) for i, j in combinations(range(6), 2)}
    pairs |= {f"back {i}": mli_fast.Line(files[i], files[0]) for i in range(1, 6)}
    assert len(pairs) == 20
    mli_fast.sweep_many(network(), pairs, data(), 3, backend="native", progress=False)
    (net,) = made
    weights = 3  # of the network's products
    assert 0 < len(net.layouts) <= 6 * weights


def test_a_pool_holds_no_more_than_its_budget() -> None:
    pool = buffers.Pool(budget=1000)

    def tensor(size: int) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8).set_(pool.storage(size))

    kept = [tensor(400), tensor(400)]
    assert pool.held == 800
    assert tensor(400).data_ptr() not in {t.data_ptr() for t in kept}
    assert pool.held == 800
    first = kept.pop(0).data_ptr()
    assert tensor(400).data_ptr() == first
    del kept
    last = tensor(900)
    assert pool.held == last.numel() == 900


def test_results_of_checks_are_kept_within_one_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of many kinds in one group: what all their plans keep is bounded together."""
    from mli_fast.engine import planner
    from mli_fast.engine.plan import Plan
    from mli_fast.trees import bytes_in

    room, held, plans = 240, [], []
    cache = Plan.cache

    def watched(plan: Plan, *given: Any) -> None:
        plans.append(plan)
        cache(plan, *given)
        held.append(sum(bytes_in(r) for p in {id(p): p for p in plans}.values() for r in p.cached.values()))

    monkeypatch.setattr(Plan, "cache", watched)
    monkeypatch.setattr(planner, "CACHED_BYTES", room)
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(4, 6), nn.Softmax(1), nn.Linear(6, 3)) for _ in range(3)]
    data = [(torch.randn(n, 4), torch.arange(n) % 3) for n in range(2, 9)]
    mli_fast.sweep(*models, data, [0.0, 0.5, 1.0], progress=False)
    assert 0 < max(held) <= room
    assert held[-1] == max(held)
    assert all(not p.cached for p in plans)
