"""PyTorch's own database of functions: each as a small network, replayed bit for bit, and planned.

`python -m tests.opinfo` takes every function, see `main` and `judged`.
"""

from __future__ import annotations

import copy
import random
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

import mli_fast
from mli_fast.engine.modes import forced
from mli_fast.evaluation import Evaluation, Job
from mli_fast.options import Options

WAYS = ("function", "in place", "out")
POINTS = (0.0, 0.3, 1.0)


class Applied(nn.Module):
    """A function of parameters and of the batch.

    Args:
        function: takes the sample's arguments.
        leaves: the sample's arguments, flat.
        spec: how they were.
        own: which of the tensors are parameters.
        way: of `WAYS`.
    """

    def __init__(self, function: Any, leaves: list[Any], spec: Any, own: set[int], way: str, out: Any) -> None:
        super().__init__()
        self.function, self.spec, self.way, self.own, self.out = function, spec, way, sorted(own), out
        self.leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        for i, leaf in enumerate(leaves):
            if i in own:
                floating = leaf.is_floating_point() or leaf.is_complex()
                value = leaf.detach().clone()
                self.register_parameter(f"p{i}", nn.Parameter(value, requires_grad=floating))

    def forward(self, given: dict[str, Tensor]) -> Any:
        leaves = list(self.leaves)
        for i in self.own:
            leaves[i] = getattr(self, f"p{i}")
        for name, tensor in given.items():
            leaves[int(name)] = tensor
        args, kwargs = tree_unflatten(leaves, self.spec)
        if self.way == "in place":
            args = (args[0].clone(), *args[1:])
        if self.way == "out":
            kwargs = {**kwargs, "out": tree_map_only(Tensor, torch.zeros_like, self.out)}
        found = self.function(*args, **kwargs)
        return [t for t in tree_flatten(found)[0] if isinstance(t, Tensor)]


def cases(op: Any, dtype: torch.dtype, most: int) -> Iterator[tuple[str, Applied, dict[str, Tensor]]]:
    """Networks of a function with a batch each; the first tensor is of the batch, or a parameter, in turn."""
    samples = list(op.sample_inputs("cpu", dtype, requires_grad=False))
    samples.sort(key=lambda s: sum(t.numel() for t in tree_flatten(s.args)[0] if isinstance(t, Tensor)))
    for sample in samples[:: max(1, len(samples) // most)][:most]:
        leaves, spec = tree_flatten(((sample.input, *sample.args), dict(sample.kwargs)))
        leaves = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        if any(isinstance(leaf, Tensor) and leaf.layout is not torch.strided for leaf in leaves):
            continue  # such a batch is plain PyTorch's, see `test_rules.py`
        tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        for way, function in zip(WAYS, (op.op, op.get_inplace(), op.op if op.supports_out else None), strict=True):
            if function is None:
                continue
            try:
                args, kwargs = tree_unflatten([_copied(leaf) for leaf in leaves], spec)
                out = function(*args, **kwargs)
            except Exception:  # noqa: BLE001 - this sample has no such form
                continue
            for own in (set(tensors[1:]), set(tensors[:1])):
                own = {i for i in own if leaves[i].is_floating_point() or leaves[i].is_complex()}
                batch = {str(i): leaves[i] for i in tensors if i not in own}
                yield way, Applied(function, leaves, spec, own, way, out), batch


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def judged(net: Applied, batch: dict[str, Tensor]) -> str:
    """ "right (engine)", "refused", "fails in PyTorch", or what is wrong; at three points, on two batches."""
    theta_0 = {k: v.clone() for k, v in net.state_dict().items()}
    theta_T = {k: v * 0.7 if v.dtype.is_floating_point or v.is_complex() else v for k, v in theta_0.items()}
    other = {k: v.roll(1) if v.dim() and v.numel() else v for k, v in batch.items()}
    line = mli_fast.Line(theta_0, theta_T)
    verdicts = set()
    for how in ("replay", "planned"):
        options = Options(forward=lambda m, b: (m(b), torch.zeros(1)), criterion="mse", metrics=())
        try:
            with forced(how), Evaluation(copy.deepcopy(net), [batch, other], options) as evaluation:
                work = evaluation._work(Job(line, line.points(POINTS)), evaluation.anchors(line))
                planner = evaluation._planner()
                try:
                    of_both = [
                        [planner.passes.plain(work.points, one, p)[0] for p in range(len(POINTS))]
                        for one in (batch, other)
                    ]
                except Exception:  # noqa: BLE001 - the function's own
                    return "fails in PyTorch"
                for one, following, plain in ((batch, other, of_both[0]), (other, batch, of_both[1])):
                    route = planner.route(work.points, one, following, None)
                    if planner.differing is not None:
                        return f"the self-check saw: {planner.differing} ({how})"
                    if route.plan is None:
                        verdicts.add("refused: " + "; ".join(planner.reasons))
                        continue
                    for p, expected in enumerate(plain):
                        try:
                            found = route.plan.result(route.plan.prepare(p, p + 1), route.shared)[0]
                        except mli_fast.capture.record.OtherAnswer:
                            continue
                        if len(found) != len(expected):
                            return f"{len(found)} results for {len(expected)} ({how})"
                        for mine, theirs in zip(found, expected, strict=True):
                            if not _same(mine[0], theirs, exact=how == "replay"):
                                return f"wrong ({how})"
        except Exception as error:  # noqa: BLE001 - what is raised is a result
            return f"raises {type(error).__name__}: {str(error)[:150]}"
    return next(iter(verdicts), "right")


def _same(mine: Tensor, theirs: Tensor, exact: bool) -> bool:
    if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
        return False
    if exact:
        return torch.equal(mine, theirs) or torch.allclose(mine, theirs, rtol=0, atol=0, equal_nan=True)
    return torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5, equal_nan=True)


def main() -> None:
    """Judge every function; or those whose name holds the argument; or, by "--some COUNT SEED", some."""
    found: Counter[str] = Counter()
    functions, most = list(op_db), 6
    if sys.argv[1:2] == ["--some"]:
        functions, most = random.Random(int(sys.argv[3])).sample(functions, int(sys.argv[2])), 2
    elif len(sys.argv) > 1:
        functions = [op for op in functions if sys.argv[1] in op.name]
    for op in functions:
        for verdict in of_function(op, most):
            kind = verdict[1].split(":")[0]
            found[kind] += 1
            if not verdict[1].startswith(("right", "fails")):
                print(op.name, op.variant_test_name, *verdict, flush=True)
    print(dict(found))


def of_function(op: Any, most: int) -> Iterator[tuple[str, str]]:
    """(way, verdict) of some samples of a function."""
    torch.manual_seed(0)
    dtypes = [d for d in (torch.float32, torch.complex64, torch.int64) if d in op.dtypes]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for dtype in dtypes[:2]:
            try:
                drawn = list(cases(op, dtype, most))
            except Exception:  # noqa: BLE001 - the database has no samples for this machine
                continue
            for way, net, batch in drawn:
                yield f"{dtype} {way}", judged(net, batch)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
