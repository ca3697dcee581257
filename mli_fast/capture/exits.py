"""Ways out of PyTorch that pass the dispatcher by, noted while a pass is recorded, and what it does otherwise then.

Methods are patched, since a function mode would turn PyTorch's fast paths off.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing.pool
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.utils._python_dispatch as dispatch
from torch import Tensor
from torch.utils import dlpack

Note = Callable[[Tensor, str], None]  # an exit of that kind
Refuse = Callable[[str], None]
Within = Callable[[], contextlib.AbstractContextManager[None]]

_ONE_AT_A_TIME = threading.RLock()  # two threads would put back each other's methods
_MEMORY = ("numpy", "__array__", "data_ptr", "__dlpack__", "untyped_storage", "storage", "_typed_storage")
_NUMBERS = frozenset({int, float, bool, complex})
# Where another thread, which no mode sees, may be given work: (class, method)
_HANDING_OVER: tuple[tuple[type, str], ...] = (
    (threading.Thread, "start"),
    (threading.Event, "set"),
    (threading.Condition, "notify"),
    (queue.Queue, "put"),
    (concurrent.futures.ThreadPoolExecutor, "submit"),
    (multiprocessing.pool.Pool, "_check_running"),  # all of its methods ask that first
)
_PADDING = "_pad_packed_sequence"
# With packed sequences they read the batch sizes themselves
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu", _PADDING)
_READING = (*_RECURRENT, "tensor_split")  # numbers of tensors, below what is patched
# Composites that read or write memory behind the dispatcher
_BEHIND = tuple(
    name
    for name in dir(torch)
    if name.startswith(("_sobol_engine_", "fbgemm_", "quantized_gru", "quantized_lstm", "quantized_rnn", "_wrapped_"))
    or name in ("_shape_as_tensor", "_rowwise_prune", "choose_qparams_optimized", "_choose_qparams_per_tensor")
)
_UNSEEN_IN_SCRIPTS = ("prim::tolist", "aten::tensor(", "aten::as_tensor(", *(f"aten::{name}(" for name in _READING))


@contextlib.contextmanager
def noted(note: Note, refuse: Refuse, unseen: Refuse, of_python_data: Within) -> Iterator[None]:
    """Within the block every exit that the dispatcher does not see is reported.

    Args:
        note: gets the tensor whose numbers leave as Python data, before they do.
        refuse: gets the reason why nothing is known of what comes back.
        unseen: gets the reason why from now on not all that runs is seen.
        of_python_data: within it tensors are made from nothing but Python data.
    """
    with _ONE_AT_A_TIME, contextlib.ExitStack() as stack:

        def patch(holder: Any, name: str, make: Callable[..., Any], *how: Any) -> None:
            original, own = getattr(holder, name), name in vars(holder)
            before = vars(holder).get(name)

            def put_back() -> None:
                if own:
                    setattr(holder, name, before)
                elif name in vars(holder):
                    delattr(holder, name)

            stack.callback(put_back)  # before the change: Ctrl-C may come in between
            setattr(holder, name, make(original, *how))

        thread = threading.get_ident()

        def here(report: Callable[..., None]) -> Callable[..., None]:
            """Other threads, of a loader, a progress bar or another sweep, do such things all the time."""
            return lambda *what: report(*what) if threading.get_ident() == thread else None

        note, refuse, unseen = here(note), here(refuse), here(unseen)

        def hands_out_memory(name: str) -> Callable[[Any], Any]:
            def make(original: Any) -> Any:
                def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
                    refuse(f"memory of a tensor leaves PyTorch (Tensor.{name})")
                    return original(tensor, *args, **kwargs)

                return method

            return make

        for name in ("apply_", "map_", "map2_"):
            patch(Tensor, name, lambda original: _refusing(original, refuse, "a Python function is given the elements"))
        leaves = "memory of a tensor leaves PyTorch (to_dlpack)"
        for namespace in (torch, dlpack):
            patch(namespace, "to_dlpack", lambda original: _refusing(original, refuse, leaves))
        for name in _MEMORY:
            patch(Tensor, name, hands_out_memory(name))
        patch(Tensor, "tolist", lambda original: _noting(original, note, "tolist", 0))
        for holder in (torch, Tensor):
            patch(holder, "tensor_split", lambda original: _noting(original, note, "tolist", 1))
        for holder, name in ((torch, "matmul"), (Tensor, "matmul"), (Tensor, "__matmul__"), (Tensor, "__rmatmul__")):
            patch(holder, name, _expanding)
        for namespace in (torch, torch._VF):
            for name in _RECURRENT:
                patch(namespace, name, lambda original: _noting(original, note, "tolist", 1))
            patch(namespace, _PADDING, _counting)
        for name in _BEHIND:
            patch(torch, name, lambda original, name=name: _refusing(original, refuse, f"torch.{name} works unseen"))
        for kind in (torch._ops.OpOverload, torch._ops.OpOverloadPacket):
            patch(kind, "__call__", lambda original: _by_name(original, refuse))
        for name in ("tensor", "as_tensor", "asarray", "scalar_tensor"):
            shares = name in ("as_tensor", "asarray")
            patch(torch, name, lambda original, *how: _making(original, refuse, of_python_data, *how), 0, shares)
        patch(Tensor, "new_tensor", lambda original: _making(original, refuse, of_python_data, 1, False))
        patch(torch, "from_numpy", lambda original: _refusing(original, refuse, "a tensor in an array's memory"))
        patch(
            dispatch,
            "_disable_current_modes",
            lambda original: _refusing(original, refuse, "dispatch modes are switched off (a tensor is printed?)"),
        )
        for owner, name in _HANDING_OVER:
            patch(owner, name, lambda original: _refusing(original, unseen, "another thread is given work"))
        for scripted in (torch._C.ScriptFunction, torch._C.ScriptMethod):
            patch(scripted, "__call__", lambda original: _scripted(original, refuse))
        patch(torch.utils, "swap_tensors", lambda original: _refusing(original, refuse, "tensors are swapped"))
        yield


def _noting(original: Any, note: Note, kind: str, at: int) -> Any:
    """Notes the argument at a position where that is a tensor of integers."""

    def method(*args: Any, **kwargs: Any) -> Any:
        value = (
            args[at]
            if len(args) > at
            else next((kwargs[k] for k in ("tensor_indices_or_sections", "batch_sizes") if k in kwargs), None)
        )
        if isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex()):
            note(value, kind)
        return original(*args, **kwargs)

    return method


def _counting(original: Any) -> Any:
    """The lengths of sequences, which PyTorch writes behind the dispatcher, by operators."""

    def padded(data: Tensor, batch_sizes: Tensor, batch_first: bool, *args: Any, **kwargs: Any) -> Any:
        out, lengths = original(data, batch_sizes, batch_first, *args, **kwargs)
        each = torch.arange(out.shape[0 if batch_first else 1], device=batch_sizes.device)
        return out, (batch_sizes.unsqueeze(1) > each).sum(0).to(lengths.dtype)

    return padded


def _by_name(original: Any, refuse: Refuse) -> Any:
    """Operators that are called as such, past the functions that are patched."""

    def call(operator: Any, /, *args: Any, **kwargs: Any) -> Any:
        if operator.__name__.split(".")[0] in _READING:
            refuse(f"an operator that reads numbers of tensors is called as such ({operator})")
        return original(operator, *args, **kwargs)

    return call


def _expanding(original: Any) -> Any:
    """A batched product by a single matrix as outside a recording: under a mode PyTorch folds the batch."""

    def product(a: Any, b: Any, **kwargs: Any) -> Any:
        if isinstance(a, Tensor) and isinstance(b, Tensor) and a.dim() == b.dim() == 3 and len(a) != len(b):
            if len(a) == 1 and not a.requires_grad:
                a = a.expand(len(b), -1, -1)
            elif len(b) == 1 and not b.requires_grad:
                b = b.expand(len(a), -1, -1)
        return original(a, b, **kwargs)

    return product


def _refusing(original: Any, refuse: Refuse, why: str) -> Any:
    def method(*args: Any, **kwargs: Any) -> Any:
        refuse(why)
        return original(*args, **kwargs)

    return method


def _scripted(original: Any, refuse: Refuse) -> Any:
    """TorchScript reads numbers, and makes tensors of numbers, past every mode."""

    def call(script: Any, *args: Any, **kwargs: Any) -> Any:
        text = str(script.inlined_graph)
        found = next((name for name in _UNSEEN_IN_SCRIPTS if name in text), None)
        if found is not None:
            refuse(f"TorchScript code that calls {found.rstrip('(')}")
        return original(script, *args, **kwargs)

    return call


_UNKNOWN = "a tensor is made from {}s that hold more than numbers"


def _making(original: Any, refuse: Refuse, of_python_data: Within, at: int, shares: bool) -> Any:
    """Numbers of tensors in lists would leave unseen; everything else is Python data, whatever it came from."""

    def function(*args: Any, **kwargs: Any) -> Any:
        data = args[at] if len(args) > at else kwargs.get("data", kwargs.get("obj", kwargs.get("s")))
        if isinstance(data, Tensor):
            return original(*args, **kwargs)
        if not _plain(data):
            refuse(_UNKNOWN.format(type(data).__name__))
        elif shares and isinstance(data, np.ndarray):
            refuse("a tensor in an array's memory")
        with of_python_data():
            return original(*args, **kwargs)

    return function


def _plain(data: Any) -> bool:
    if isinstance(data, (tuple, list)):
        return all(type(item) in _NUMBERS or _plain(item) for item in data)
    return type(data) in _NUMBERS or isinstance(data, (np.ndarray, np.generic))
