"""A private copy of the model, in whose memory the values of a point are written."""

from __future__ import annotations

import copy
import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from mli_fast.capture import State
from mli_fast.capture.state import containers
from mli_fast.checkpoints.loading import Versioned, is_pytorchs, loads_plainly
from mli_fast.checkpoints.matching import model_entries
from mli_fast.checkpoints.values import same_bits
from mli_fast.engine.batches import Forward, check_readable
from mli_fast.engine.points import Points, Writer
from mli_fast.interrupts import safe
from mli_fast.trees import mapped


class Network:
    """The caller's architecture in eval mode.

    The copy shares no state with the caller's model, so nothing that a forward pass sets or changes reaches it. Values
    are written into the copy's own memory, as `load_state_dict` does: whatever reaches a parameter, by an attribute, a
    closure or a view, sees them.

    Args:
        model: the caller's model.
        forward: (model, batch) -> (outputs, targets).
        dtype: floating inputs and constants are brought to this dtype; None leaves them as they are.
        device: where the work is done.

    Attributes:
        model: the copy.
        memory: name -> its parameters and persistent buffers, for writing.
        changed_on_purpose: whether anything but values was changed since.
        versioned: whether the model's own way of loading is told that values are of its modules' versions.
        twins: name -> the caller's own, for a model that reaches them past the copy.
        layouts: (id of an anchor, layout) -> the anchor and a view or copy of it as kernels want it, for all points.
    """

    def __init__(self, model: nn.Module, forward: Forward, dtype: torch.dtype | None, device: torch.device) -> None:
        self.device, self._forward, self._callers, self._dtype = device, forward, model, dtype
        self.twins = {entry.name: entry.tensor for entry in model_entries(model)}
        self.model = _replica(model, dtype, device)
        entries = model_entries(self.model)
        self._aliases = {e.name: e.aliases for e in entries}
        self.own = {e.name: e.tensor for e in entries}
        self.memory = {name: tensor.detach() for name, tensor in self.own.items()}
        self._own_ways = self._slowly = not (loads_plainly(self.model) and _is_plain_in_modes(self.model))
        self._given = State(self.model, self.own.values()) if self._slowly else None
        self.model.eval()
        self._writers: dict[tuple[int, tuple[str, ...]], tuple[Points, Writer]] = {}
        self._holds: Any = None  # the points and the names whose constants are in memory
        self._borrowed: dict[str, Tensor] | None = None
        self._apart: list[Points] = []  # whose anchors have nothing to do with what is borrowed
        self._checked = False
        self.layouts: dict[tuple[int, Hashable], tuple[Tensor, Tensor]] = {}
        if dtype is not None:
            self.model.register_forward_pre_hook(lambda _, args, kwargs: _cast((args, kwargs), dtype), with_kwargs=True)
        self.changed_on_purpose = self.versioned = False
        self.state = State(self.model, self.own.values())

    def fresh(self) -> Network:
        """Another private copy, through which nothing has gone yet."""
        new = Network(self._callers, self._forward, self._dtype, self.device)
        new.versioned = self.versioned
        return new

    def look_again(self) -> None:
        """The model was changed on purpose: this is what passes start from."""
        self.changed_on_purpose = True
        self.state = State(self.model, self.own.values())

    # ---- values
    def load(self, points: Points, p: int, names: tuple[str, ...] | None = None) -> None:
        """Write the values of names, or of all, at point p into memory."""
        if self._borrowed is not None:
            self._take_apart(points, self._borrowed)
        chosen = tuple(points.names) if names is None else names
        key = (id(points), chosen)
        if key not in self._writers:
            self._writers[key] = points, Writer(points, self.memory, chosen)
        writer = self._writers[key][1]
        if self._holds != key:
            writer.constants()
            self._holds = key
        writer(p)
        if names is None and self._slowly:
            self._load_slowly(points.values(p))
        if self._borrowed is not None:
            for name in chosen:
                self.twins[name].detach().copy_(self.memory[name])

    def load_next(self, points: Points, p: int) -> None:
        """Go on to point p as a loop over points does: by the model's own `load_state_dict` and `eval()`, if any.

        What these reset of what a pass left behind is reset.
        """
        if self._own_ways:
            self._load_by_model(points.values(p))
        self.load(points, p)

    def forget(self) -> None:
        """What is in memory may have been changed."""
        self._holds = None

    def put_back(self) -> None:
        """Parameters that were given other memory (`.data = ...`) get theirs again."""
        for name, tensor in self.own.items():
            memory = self.memory[name]
            if tensor.layout is not torch.strided:
                continue
            if (
                tensor.data_ptr() != memory.data_ptr()
                or tensor.shape != memory.shape
                or tensor.stride() != memory.stride()
            ):
                tensor.data = memory
                self.forget()

    def _load_slowly(self, given: Mapping[str, Tensor]) -> None:
        """By the model's own `load_state_dict` and `eval()`, where hooks or overrides may do more than copy.

        Each point starts from the model as it was given.
        """
        assert self._given is not None
        self._given.restore()
        self._load_by_model(given)

    def _load_by_model(self, given: Mapping[str, Tensor]) -> None:
        values = Versioned((alias, v) for name, v in given.items() for alias in self._aliases[name])
        if self.versioned:
            values.like(self.model.state_dict())
        with torch.no_grad():
            self.model.load_state_dict(values, strict=False)
        self.model.eval()
        self.forget()

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """What values are computed in: the dtypes of parameters and persistent buffers, as for `load_state_dict`."""
        return {name: tensor.dtype for name, tensor in self.own.items()}

    @property
    def loads_as_written(self) -> bool:
        """Whether the model holds a point's values as they are written; if not, only plain passes are right."""
        return not self._slowly

    def check_loading(self, points: Points) -> None:
        """Find out, with two sets of values, whether the model's own way of loading does more than copy.

        It does if parameters hold something else afterwards, or if anything else on the model depends on the values:
        a layer fused by `eval()`, what a hook computes.
        """
        if not self._slowly or self._checked:
            return
        self._checked = True
        found: list[State] = []
        first = points.values(0)
        for factor in (1, 2):
            values = {n: v * factor if v.is_floating_point() else v for n, v in first.items()}
            self._load_slowly(values)
            if any(not same_bits(self.memory[name], value) for name, value in values.items()):
                return
            found.append(State(self.model, self.own.values()))
        if found[0].same_as(found[1]):
            self._slowly, self.state = False, found[1]

    @contextmanager
    def borrowing(self) -> Iterator[None]:
        """Within the block the caller's own parameters may `borrow` the values; then they are put back.

        Its modules are in eval mode meanwhile: what reaches them must not train a batch norm.
        """
        modes = [(module, module.training) for module in self._callers.modules()]
        try:
            for module, _ in modes:
                module.training = False
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            if self._borrowed is not None:
                for name, value in self._borrowed.items():
                    self.twins[name].detach().copy_(value)
                self._borrowed = None

    @property
    def borrows(self) -> bool:
        """Whether points' values are written to the caller's own parameters meanwhile."""
        return self._borrowed is not None

    def borrow(self) -> None:
        """The model reaches the caller's own parameters: they get each point's values from now on."""
        if self._borrowed is None:
            self._apart = []
            self._borrowed = {name: t.detach().clone() for name, t in self.twins.items()}
            self.forget()

    def _take_apart(self, points: Points, borrowed: Mapping[str, Tensor]) -> None:
        """Anchors that are the caller's own parameters, which are written to now, become the copies of these."""
        if any(known is points for known in self._apart):
            return
        self._apart.append(points)
        memory = {(t.data_ptr(), t.shape): name for name, t in self.twins.items() if t.layout is torch.strided}
        for name, group in points.anchors.items():
            names = [memory.get((a.data_ptr(), a.shape)) if a.layout is torch.strided else None for a in group]
            points.anchors[name] = tuple(a if n is None else borrowed[n] for a, n in zip(group, names, strict=True))
        self._writers.clear()

    # ---- passes
    def run(self, batch: Any) -> tuple[Any, Any]:
        """(outputs, targets) of one batch, which may be written to, with what is in memory."""
        safe()
        torch.clear_autocast_cache()  # what autocast cast of other values
        with _eager():
            return self._forward(self.model, batch)

    def evaluate(self, values: Mapping[str, Tensor], batch: Any) -> tuple[Any, Any]:
        """(outputs, targets) with these values for parameters and buffers; they may be differentiated."""
        safe()
        torch.clear_autocast_cache()
        every = {f"model.{alias}": value for name, value in values.items() for alias in self._aliases[name]}
        return functional_call(_Called(self.model, self._forward), every, (batch,), tie_weights=False)


def _eager() -> AbstractContextManager[Any]:
    """Compiled parts of a model run as they are written; only where there can be any: the import takes a second."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


class _Called(nn.Module):
    """What `functional_call` calls."""

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.model, self._forward = model, forward

    def forward(self, batch: Any) -> tuple[Any, Any]:
        return self._forward(self.model, batch)


class Streams:
    """The states of NumPy's and Python's random streams."""

    def __init__(self) -> None:
        state: Any = np.random.get_state()  # noqa: NPY002
        self._states = state[0], state[1].tobytes(), state[2:], random.getstate()

    def unchanged(self) -> bool:
        """Whether nothing was drawn since."""
        return Streams()._states == self._states


def _is_plain_in_modes(model: nn.Module) -> bool:
    """Whether `train()` and `eval()` of every module are PyTorch's own."""
    return all(is_pytorchs(module, name) for module in model.modules() for name in ("train", "eval"))


def _replica(model: nn.Module, dtype: torch.dtype | None, device: torch.device) -> nn.Module:
    """A deep copy with floating tensors in `dtype`; tensors that share memory do so in the copy too."""
    memo: dict[int, Any] = {}
    storages: dict[Any, Tensor] = {}
    for module in model.modules():  # most of what hangs on one is empty; made here, where it costs a tenth
        memo.update((id(v), type(v)()) for v in vars(module).values() if type(v) in _EMPTIED and not v)
    loaded = {id(entry.tensor) for entry in model_entries(model)}
    for place, container in containers(model):
        for key, value in container.items() if isinstance(container, dict) else enumerate(container):
            if isinstance(value, Tensor) and id(value) not in memo:
                plain = _is_plain(value)
                if not plain or id(value) not in loaded:  # what is loaded may have been freed
                    check_readable(value, f"the model's {_called(place, key)!r}")
                if plain:
                    memo[id(value)] = _tensor_copy(value, storages, device, dtype)
                elif value.layout in _COMPRESSED:  # which deepcopy does not know
                    memo[id(value)] = value.detach().to(device, copy=True)
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise TypeError(
            f"the model {type(model).__name__} cannot be copied ({type(error).__name__}: {error}); mli_fast works on a "
            "private copy, so that yours is never changed"
        ) from error


def _called(place: str, key: Any) -> str:
    """The name of a tensor in a container of the model, as `named_parameters` and `named_buffers` give it."""
    names = [*place.split("."), str(key)]
    return ".".join(name for name in names if name not in ("", "_parameters", "_buffers"))


_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
_EMPTIED = (dict, OrderedDict, set, list)


def _is_plain(tensor: Tensor) -> bool:
    return (
        type(tensor) in (Tensor, nn.Parameter, nn.Buffer) and tensor.layout is torch.strided and not tensor.is_quantized
    )


def _tensor_copy(
    tensor: Tensor, storages: dict[Any, Tensor], device: torch.device, dtype: torch.dtype | None
) -> Tensor:
    """A copy in a copy of its storage, of the same geometry; one storage for all tensors of a dtype that lie in it."""
    wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    if tensor.device.type == "meta":
        new = torch.empty_strided(tensor.shape, tensor.stride(), dtype=wanted, device=device)
    else:
        storage = tensor.untyped_storage()
        own = tensor.dtype if wanted != tensor.dtype else None  # unchanged, tensors of different dtypes may share bytes
        key = storage._cdata, own
        if key not in storages:
            whole = torch.empty(0, dtype=own or torch.uint8, device=tensor.device)
            size = storage.nbytes() // whole.element_size()
            whole.set_(storage, 0, (size,), (1,))
            storages[key] = whole.to(device, wanted if own else None, copy=True)
        new = torch.empty(0, dtype=wanted, device=device)
        new.set_(storages[key].untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
        new = new.conj_physical() if tensor.is_conj() else new
        new = new.neg() if tensor.is_neg() else new
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(new, requires_grad=tensor.requires_grad)
    if isinstance(tensor, nn.Buffer):
        return nn.Buffer(new, persistent=tensor.persistent)
    return new


def _cast(x: Any, dtype: torch.dtype) -> Any:
    return mapped(lambda t: t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t, x)


Run = Callable[[Any], tuple[Any, Any]]
