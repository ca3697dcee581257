"""The recorder: a dispatch mode that writes down every operator below autograd."""

from __future__ import annotations

import gc
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mli_fast.capture.operators import PLAIN_DATA, operator
from mli_fast.capture.record import Answer, Exit, Geometry, Op, Record, Ref, taken

_TENSORS = (Tensor, nn.Parameter, nn.Buffer)
_storage_of = Tensor.untyped_storage  # as it is before `exits.noted` patches it
_AS_STRIDED, _UNBIND = torch.ops.aten.as_strided.default, torch.ops.aten.unbind.int


class Recorder(TorchDispatchMode):
    """Records what runs within it. After a refusal everything goes on, unrecorded: the pass's result is still right.

    A storage is known by its address; a weak reference keeps that address from being given to another storage without
    keeping the data.

    Args:
        parameters: name -> the tensors that the model has for its parameters and persistent buffers.
        twins: name -> other tensors that stand for the same parameters: the caller's own.
        batch: the tensors of the batch.

    Attributes:
        refused: why there is no record; None while there may be one.
        twins_seen: whether the pass reached one of the twins.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # else every call goes through a wrapper of torch._dynamo
        return False

    def __init__(self, parameters: Mapping[str, Tensor], twins: Mapping[str, Tensor], batch: Sequence[Tensor]) -> None:
        super().__init__()
        self.record, self.twins_seen = Record(), False
        self.refused: str | None = None
        self._python_data = 0  # calls in progress
        self._inference = torch.is_inference_mode_enabled()
        self._numbers: dict[int, tuple[Any, int]] = {}  # id of a tensor -> weak reference to it, its number
        self._first: dict[int, int] = {}  # storage -> the first value in it
        self._twins: dict[int, str] = {}  # storage of a twin -> a name that lies in it
        self._versions: list[tuple[int | None, int]] = []  # of each value: its version, and after how many operators
        self._written: dict[int, int] = {}  # storage -> after how many operators it was last written to
        self._empty: set[int] = set()  # storages that no operator has written to yet
        self._weak: list[Any] = []
        self._refs: list[Ref] = []
        self._kept: list[Tensor] = [*parameters.values(), *twins.values()]
        try:
            for name, tensor in parameters.items():
                self.record.parameters[name] = self._new(tensor)
            for tensor in batch:
                self.record.batch.append(self._new(tensor))
        except _Refusal as refusal:
            self.refuse(str(refusal))
        for name, tensor in twins.items():
            self._twins.setdefault(_storage_of(tensor)._cdata, name)

    def refuse(self, why: str) -> None:
        """Record nothing from here on; the first reason is kept."""
        if self.refused is None:
            self.refused = why
            self._numbers = {}  # a tensor with weak references cannot be swapped

    def unseen(self, why: str) -> None:
        """Not all that runs comes by here: it may reach a twin."""
        self.refuse(why)
        self.twins_seen = bool(self._twins)

    def close(self) -> None:
        """Give up the storages' addresses."""
        for reference in self._weak:
            torch.UntypedStorage._free_weak_ref(reference)
        self._weak, self._numbers, self._kept = [], {}, []

    @contextmanager
    def of_python_data(self) -> Iterator[None]:
        """Within the block tensors are made from Python data, which was looked through."""
        self._python_data += 1
        try:
            yield
        finally:
            self._python_data -= 1

    def exit(self, tensor: Tensor, kind: str) -> None:
        """Note that the tensor's numbers leave as Python data."""
        if self.refused is None:
            try:
                self._guard(self.filled(tensor), kind, taken(kind, tensor) if kind != "tolist" else _tolist(tensor))
            except _Refusal as refusal:
                self.refuse(str(refusal))

    def _guard(self, number: int, kind: str, answer: Any) -> None:
        storage = self.record.storage[number]
        self.record.ops.append(Op(Exit(kind, answer), (Ref(number),), {}, [], True, {storage}, set()))

    def _new(self, tensor: Tensor, is_view: bool = False) -> int:  # a view has the version of its base later on
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
            raise _Refusal(f"a {'nested tensor' if tensor.is_nested else f'tensor of layout {tensor.layout}'}")
        if tensor.is_conj() or tensor.is_neg():
            raise _Refusal("a tensor whose conjugation is put off")
        record = self.record
        number = len(record.storage)
        self._numbers[id(tensor)] = (weakref.ref(tensor), number)
        storage = _storage_of(tensor)
        key = storage._cdata
        if key not in self._first:
            self._first[key] = number
            self._weak.append(storage._weak_ref())
        record.storage.append(key)
        record.geometry.append(
            Geometry(tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()), tensor.dtype, tensor.device)
        )
        self._refs.append(Ref(number))
        self._versions.append((None if is_view or tensor.is_inference() else tensor._version, len(record.ops)))
        return number

    def _check_version(self, tensor: Tensor, number: int) -> None:
        """Refuse if a tensor was written to, and no operator that came by here did it: another thread, say."""
        if tensor.is_inference():
            return
        version, ops = self._versions[number]
        if tensor._version != version:
            if version is not None and self._written.get(self.record.storage[number], -1) < ops:
                raise _Refusal("a tensor was written to by what is not seen, such as another thread")
            self._versions[number] = tensor._version, len(self.record.ops)

    def number(self, tensor: Tensor) -> int:
        """The number of a tensor that an operator reads.

        Raises:
            _Refusal: nothing is known of where it comes from.
        """
        known = self._numbers.get(id(tensor))
        if known is not None and known[0]() is tensor:
            number = known[1]
            geometry = self.record.geometry[number]
            if (
                _storage_of(tensor)._cdata != self.record.storage[number]
                or geometry.shape != tensor.shape
                or geometry.stride != tensor.stride()
            ):
                raise _Refusal("a tensor's memory was exchanged (.data = ...)")
            self._check_version(tensor, number)
            return number
        if type(tensor) not in _TENSORS:
            raise _Refusal(f"a tensor of type {type(tensor).__name__}")
        key = _storage_of(tensor)._cdata
        if key in self._twins:
            self.twins_seen = True
            raise _Refusal(f"the model reaches the caller's own {self._twins[key]!r}")
        if key in self._first:  # a view that was made before the pass, or unseen
            return self._view(tensor, self._first[key])
        if _is_young(tensor):
            raise _Refusal("a tensor that no operator made")
        return self._constant(tensor)

    def filled(self, tensor: Tensor) -> int:
        """The number of a tensor whose values are read.

        Raises:
            _Refusal: nothing is known of where it comes from, or no operator gave it values.
        """
        number = self.number(tensor)
        if self.record.storage[number] in self._empty:
            raise _Refusal("memory is read that was written to by what is not seen")
        return number

    def _check_filled(self, known: Any, args_: tuple[Any, ...], kwargs_: dict[str, Any]) -> None:
        """Refuse if values are read where no operator has put any: a composite did, behind the dispatcher."""
        if not known.reads_values:
            return
        written = {i for i, _ in known.writes} | {name for _, name in known.writes}
        given = [a for i, a in enumerate(args_) if i not in written]
        given += [a for k, a in kwargs_.items() if k not in written]
        for a in given:
            for ref in a if isinstance(a, (list, tuple)) else (a,):
                if type(ref) is Ref and self.record.storage[ref.number] in self._empty:
                    raise _Refusal("memory is read that was written to by what is not seen")

    def _is_literal(self, tensor: Any) -> bool:
        """Whether a tensor has just been made from Python data."""
        known = self._numbers.get(id(tensor))
        if (known is not None and known[0]() is tensor) or type(tensor) not in _TENSORS:
            return False
        return _storage_of(tensor)._cdata not in self._first

    def _find_twins(self, args: Any) -> None:
        """The one question that has to be answered in a refused pass as well."""
        for a in args:
            if type(a) in (list, tuple):
                self._find_twins(a)
            elif type(a) in _TENSORS and a.layout is torch.strided and _storage_of(a)._cdata in self._twins:
                self.twins_seen = True

    def _constant(self, tensor: Tensor) -> int:
        number = self._new(tensor)
        self.record.constants[number] = tensor
        return number

    def _may_hold_numbers(self) -> bool:
        """Whether numbers of tensors may have gone into a tensor past the functions that are patched.

        As by an index that is a list, or by `torch.LongTensor`: PyTorch reads single elements in lists, and vectors in
        them by unbinding them. Parameters' own numbers differ at the two points that are recorded.
        """
        ops = self.record.ops
        if ops and ops[-1].func is _UNBIND:
            return True
        parameters = set(self.record.parameters.values())
        values = [known() for known, number in self._numbers.values() if number not in parameters]
        single = [t for t in values if t is not None and t.dim() == 0]
        own = id(values), id(single)
        return bool(single) and any(
            isinstance(o, (list, tuple, deque)) and id(o) not in own for o in gc.get_referrers(*single)
        )

    def _literal(self, tensor: Tensor) -> None:
        """Note a copy: the memory may be an array's, which the model writes to later."""
        number = self._new(tensor)
        last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
        whole = tensor.as_strided((last + 1 if tensor.numel() else 0,), (1,)).clone()
        self.record.constants[number] = whole.as_strided(tensor.shape, tensor.stride())
        self.record.literals.add(number)

    def _view(self, tensor: Tensor, base: int) -> int:
        was = self.record.geometry[base]
        if tensor.dtype != was.dtype:
            raise _Refusal("a view of another dtype that was made before the pass")
        number = self._new(tensor)
        key = self.record.storage[number]
        args = (Ref(base), list(tensor.shape), list(tensor.stride()), tensor.storage_offset())
        self.record.ops.append(Op(_AS_STRIDED, args, {}, [number], True, {key}, set()))
        return number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.refused is not None:
            self._find_twins(args)
            return func(*args, **kwargs)
        try:
            known = operator(func)
            why = known.why_not(args, kwargs)
            if why is not None:
                raise _Refusal(why)
            if torch.is_inference_mode_enabled() != self._inference:
                raise _Refusal("inference mode within the model, where PyTorch multiplies by other routines")
            if known.literal and self._is_literal(args[0]):
                if args[0].dim() and not self._python_data and self._may_hold_numbers():
                    raise _Refusal("a tensor is made from a list that may hold other tensors")
                self._literal(args[0])
            reads: set[int] = set()
            args_ = tuple([self._ref(a, reads) for a in args])
            kwargs_ = {k: self._ref(v, reads) for k, v in kwargs.items()} if kwargs else {}
            if not self._empty.isdisjoint(reads):
                self._check_filled(known, args_, kwargs_)
        except _Refusal as refusal:
            self.refuse(str(refusal))
            return func(*args, **kwargs)
        try:
            out = func(*args, **kwargs)
        except Exception as error:
            self.refuse(f"{func} raised {type(error).__name__}")  # the model may catch it and go another way
            raise
        if self.refused is None:
            try:
                self._note(func, known, args, args_, kwargs_, reads, out)
            except _Refusal as refusal:
                self.refuse(str(refusal))
        return out

    def _note(
        self,
        func: Any,
        known: Any,
        args: tuple[Any, ...],
        args_: tuple[Any, ...],
        kwargs_: dict[str, Any],
        reads: set[int],
        out: Any,
    ) -> None:
        storage = self.record.storage
        if known.is_item:
            self._guard(args_[0].number, "item", out)
            return
        writes = set()
        for i, name in known.writes:
            given = args_[i] if i < len(args_) else kwargs_.get(name)
            for ref in given if isinstance(given, (list, tuple)) else (given,):
                if type(ref) is Ref:
                    writes.add(storage[ref.number])
                    self._written[storage[ref.number]] = len(self.record.ops)
                    self._empty.discard(storage[ref.number])
        if type(out) in (bool, int, float, complex):
            answer = Answer(str(func), out, func)
            self.record.ops.append(Op(answer, args_, kwargs_, [], True, reads, writes))
            return
        single = isinstance(out, Tensor) or out is None
        parts = (out,) if single else out
        outs = [None if t is None or (known.gives_sizes and type(t) is int) else self._made(t, known) for t in parts]
        self.record.ops.append(Op(func, args_, kwargs_, outs, single, reads, writes))
        if known.empty and out.numel():
            self._empty.update(storage[n] for n in outs if n is not None)
        if known.dynamic and (not known.is_index or _has_mask(args[1])):
            for number, tensor in zip(outs, (out,) if single else out, strict=True):
                if number is not None:
                    self._guard(number, "shape", tuple(tensor.shape))
        if known.packs:  # what follows reads the batch sizes past the dispatcher
            assert outs[1] is not None
            self._guard(outs[1], "tolist", _tolist(out[1]))

    def _made(self, tensor: Any, by: Any) -> int:
        if not isinstance(tensor, Tensor):
            raise _Refusal(f"{by.name} gives {type(tensor).__name__}")
        known = self._numbers.get(id(tensor))
        if known is not None and known[0]() is tensor:
            geometry = self.record.geometry[known[1]]
            if geometry.shape == tensor.shape and geometry.stride == tensor.stride():
                return known[1]
        return self._new(tensor, by.gives_views)  # also one whose geometry an operator changed in place

    def _ref(self, a: Any, reads: set[int]) -> Any:
        kind = type(a)
        if kind in PLAIN_DATA:
            return a
        if kind is list or kind is tuple:
            return a if not a or type(a[0]) is int else kind([self._ref(x, reads) for x in a])
        if isinstance(a, Tensor):
            number = self.number(a)
            reads.add(self.record.storage[number])
            return self._refs[number]
        if kind in (torch.Size, torch.SymInt):
            return tuple(map(int, a))
        raise _Refusal(f"an operator's argument is a {kind.__name__}")


class _Refusal(Exception):
    """Why this pass has no record."""


_c_tolist = Tensor.tolist


def _tolist(tensor: Tensor) -> Any:
    return _c_tolist(tensor)


def _has_mask(indices: Any) -> bool:
    return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in indices)


def _is_young(tensor: Tensor) -> bool:
    """Whether the tensor came to be since the collector, which is off, ran last: within the pass."""
    return any(o is tensor for o in gc.get_objects(generation=0))
