"""A stand-in for CUDA graphs on the CPU: operators are written down while they run, and run again in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        results = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        self.calls.append((func, args, kwargs or {}, results))
        return result

    def play(self) -> None:
        """Every call again, its results where they were."""
        for func, args, kwargs, results in self.calls:
            again = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, Tensor)]
            for mine, theirs in zip(results, again, strict=True):
                if mine.data_ptr() != theirs.data_ptr():  # neither a view nor a change in place
                    mine.copy_(theirs)


class TapeRecorder:
    """What `mli_fast.engine.graphs.CudaRecorder` is on a GPU; passes seem to be all launching."""

    def __init__(self, launching: float = 1.0) -> None:
        self.launching = launching
        self.recorded = self.replayed = 0

    def timed(self, work: Callable[[], Any]) -> tuple[Any, float, float]:
        return work(), self.launching, 1.0

    def record(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        with _Tape() as tape:
            result = work()
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            tape.play()

        return result, replay
