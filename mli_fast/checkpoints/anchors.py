"""Gathers the anchors of a sweep: every parameter's values in all checkpoints, blended, constant or whole."""

import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from mli_fast.caller import caller

from .loading import loads_plainly, match_by_model
from .matching import Entry, Spare, match, model_entries
from .reading import Source, load_state
from .values import CODES, all_finite, blends, cast_exactly, plain, same_bits, wider


@dataclass(frozen=True, eq=False)
class Anchors:
    """The values of a model's parameters and persistent buffers at R anchors, under the model's canonical names.

    Attributes:
        values: Name -> R tensors of the parameter's shape, or one (constant: bit-identical in all anchors). Detached,
            contiguous, in one dtype per name, and where possible in the caller's own storage: not to be written to.
        kept: Names that are not blended although the anchors differ -> why, and what a point has.
        widened: Names whose dtypes differed -> "torch.float16, torch.float32 -> torch.float32".
        nonfinite: Names that hold NaN or Inf -> indices of the anchors that do.
        count: The number of anchors R.
        versioned: Whether a model that loads in its own way is to be told that they are of its modules' versions.
    """

    values: dict[str, tuple[Tensor, ...]]
    kept: dict[str, str] = field(default_factory=dict)
    widened: dict[str, str] = field(default_factory=dict)
    nonfinite: dict[str, tuple[int, ...]] = field(default_factory=dict)
    count: int = 2
    versioned: bool = False


def gather(
    model: nn.Module,
    sources: Sequence[Source],
    names: Sequence[str] = ("theta_0", "theta_T"),
    held: Mapping[str, int] | None = None,
) -> Anchors:
    """Read R checkpoints, match each to the model, and sort every parameter into blended, constant or whole.

    Non-persistent buffers are the model's own and are not part of the anchors. No tensor is copied unless its dtype,
    layout or alignment has to change.

    Args:
        model: The architecture; its values are not used (it may be on the meta device) and nothing in it changes.
        sources: R sources, each as `load_state` takes them.
        names: What messages call them, one each.
        held: Name -> the anchor that alone gives its values, so that others need none; None where there is no such way.

    Raises:
        TypeError: A source is of a wrong type.
        ValueError: A source cannot be read, or its keys, shapes or dtypes do not fit the model.

    >>> model = nn.Linear(1, 1)
    >>> start = {"weight": torch.zeros(1, 1), "bias": torch.ones(1)}
    >>> end = {"weight": torch.ones(1, 1), "bias": torch.ones(1)}
    >>> {name: len(values) for name, values in gather(model, [start, end]).values.items()}
    {'weight': 2, 'bias': 1}
    """
    if not sources or len(names) != len(sources):
        raise ValueError(f"{len(sources)} checkpoints with {len(names)} names; give at least one, and a name for each")
    entries = model_entries(model)
    given = [load_state(source, name) for source, name in zip(sources, names, strict=True)]
    fits = [
        partial(match, entries=entries, label=_label(source, name), spare=_spare(index, len(sources), held))
        for index, (source, name) in enumerate(zip(sources, names, strict=True))
    ]
    if loads_plainly(model):
        states, versioned = [fit(one) for fit, one in zip(fits, given, strict=True)], False
    else:
        states, versioned = match_by_model(model, given, fits, names)
    for name, index in (held or {}).items():
        for state in states:
            state.setdefault(name, states[index][name])
    _check_apart(sources, states, names)
    anchors = Anchors(values={}, count=len(sources), versioned=versioned)
    for entry in entries:
        _add(anchors, entry, [state[entry.name] for state in states], names)
    return anchors


def _spare(index: int, count: int, held: Mapping[str, int] | None) -> Spare:
    """What an anchor need not have, and how to say that it need not."""
    if held is None:
        return Spare()
    ways = {0: "end", count - 1: "start"} if count > 1 else {}
    return Spare(frozenset(name for name, at in held.items() if at != index), ways.get(index))


def _label(source: Source, name: str) -> str:
    return name if isinstance(source, nn.Module | Mapping) else f"{name} ({str(source)!r})"


def _check_apart(sources: Sequence[Source], states: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> None:
    """Warn of anchors that were meant to be two and lie in the same memory."""
    for (i, a), (j, b) in itertools.combinations(enumerate(states), 2):
        pairs = [(a[name], b[name]) for name in a if blends(a[name].dtype) and a[name].numel()]
        if sources[i] is not sources[j] and pairs and all(_address(x) == _address(y) for x, y in pairs):
            warnings.warn(
                f"{names[i]} and {names[j]} are the same memory, so that nothing moves between them: state_dict() is "
                "no copy; keep one with {name: value.clone() for name, value in model.state_dict().items()}",
                UserWarning,
                stacklevel=caller(),
            )


def _address(tensor: Tensor) -> int | None:
    return tensor.data_ptr() or None if type(tensor) in (Tensor, nn.Parameter) else id(tensor)


def _add(anchors: Anchors, entry: Entry, given: list[Tensor], names: Sequence[str]) -> None:
    """File one parameter's R values under what is to be done with them."""
    dtypes = list(dict.fromkeys(value.dtype for value in given))
    values = [plain(value) for value in _in_one_dtype(entry, given, names)]
    dtype = values[0].dtype
    if dtypes != [dtype]:
        anchors.widened[entry.name] = f"{', '.join(map(str, dtypes))} -> {dtype}"
    constant = all(same_bits(values[0], value) for value in values[1:])
    finite = [all_finite(values[0])] * len(values) if constant else [all_finite(value) for value in values]
    if not all(finite):
        anchors.nonfinite[entry.name] = tuple(index for index, good in enumerate(finite) if not good)
    anchors.values[entry.name] = (values[-1],) if constant else tuple(values)
    if not constant and not blends(dtype):
        anchors.kept[entry.name] = f"not floating-point ({dtype}), and the anchors differ: {names[-1]}'s between them"


def _in_one_dtype(entry: Entry, given: list[Tensor], names: Sequence[str]) -> list[Tensor]:
    """Bring the values to the widest dtype among them; the model decides only between float, complex and integer."""
    own, dtype = entry.tensor.dtype, wider(value.dtype for value in given)
    for name, value in zip(names, given, strict=True):
        if value.dtype in CODES and value.dtype != own and blends(own):
            raise ValueError(
                f"{name}: {entry.name!r} is {value.dtype} and the model's is {own}: codes of a quantised weight, whose "
                "scales lie elsewhere, do not interpolate; dequantise the checkpoint first"
            )
    if _kind(own) == _kind(dtype):
        return [value.to(dtype) for value in given]
    cast = [cast_exactly(value, own) for value in given]
    for name, value, exact in zip(names, given, cast, strict=True):
        if exact is None:
            raise ValueError(
                f"{name}: {entry.name!r} is {value.dtype} but the model's is {own}, which cannot hold its values; "
                "convert it in the checkpoint"
            )
    return [exact for exact in cast if exact is not None]


def _kind(dtype: torch.dtype) -> str:
    return "complex" if dtype.is_complex else "float" if dtype.is_floating_point else "integer"
