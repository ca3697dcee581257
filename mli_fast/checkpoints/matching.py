"""Fits a state dict's keys to a model's names: wrapper prefixes, tied names, and what to say of a misfit."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product, takewhile

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .quantised import quantised
from .values import same_bits

_STRIPPED = ("module.", "model.")  # DataParallel, Lightning; taken off when every key has them and the rest then fits
_WRAPPERS = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")  # stand anywhere in a name
_MAY_LACK = ("num_batches_tracked", "position_ids")  # came and went between versions of PyTorch and transformers
_SHOWN = 5


@dataclass(frozen=True)
class Entry:
    """A parameter or persistent buffer of the model: its canonical name, all its names, and the tensor itself."""

    name: str
    aliases: tuple[str, ...]
    tensor: Tensor


@dataclass(frozen=True)
class Spare:
    """What one checkpoint need not have, since its value is another one's all along a path.

    Attributes:
        names: Canonical names.
        other: What a schedule calls the end that would do without this one; None where no schedule is possible.
    """

    names: frozenset[str] = frozenset()
    other: str | None = None

    def hint(self, names: Sequence[str], of: int) -> str:
        """How to do without values of these names, where they are one part of the model; else nothing."""
        part = _common_prefix(names)[:-1] or (names[0] if len(names) == 1 else "")
        if self.other is None or not part or len(names) == of:
            return ""
        return f" Hint: held at the other end, by schedule={{{part!r}: {self.other!r}}}, it needs no value at this one."


NONE_SPARE = Spare()


@dataclass(frozen=True)
class _Fit:
    """How a state dict's keys meet a model's names once the prefixes ``theirs`` and ``ours`` are taken off."""

    theirs: str
    ours: str
    keys: dict[str, str]  # bare name -> key of the state dict
    missing: list[str]  # canonical names
    excess: list[str]  # keys of the state dict

    def key_of(self, alias: str) -> str | None:
        return self.keys.get(bare_name(alias, self.ours))


def model_entries(model: nn.Module) -> list[Entry]:
    """List what a checkpoint has to give values for: parameters, then persistent buffers, tied ones once.

    Raises:
        ValueError: A parameter is lazy and not initialised yet, or anything is sparse.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> model[1].weight = model[0].weight
    >>> [entry.aliases for entry in model_entries(model)]
    [('0.weight', '1.weight'), ('0.bias',), ('1.bias',)]
    """
    names: dict[int, list[str]] = {}
    tensors: dict[int, Tensor] = {}
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *_persistent_buffers(model)):
        if is_lazy(tensor):
            raise ValueError(f"the model's {name!r} is an uninitialised lazy parameter; run one forward pass first")
        if tensor.layout != torch.strided:
            raise ValueError(
                f"the model's {name!r} is stored as {tensor.layout}, which does not interpolate; make it dense, or "
                "register it with persistent=False, so that it is the model's own at all points"
            )
        names.setdefault(id(tensor), []).append(name)
        tensors[id(tensor)] = tensor
    return [Entry(aliases[0], tuple(aliases), tensors[key]) for key, aliases in names.items()]


def match(
    state: Mapping[str, Tensor], entries: Sequence[Entry], label: str, spare: Spare = NONE_SPARE
) -> dict[str, Tensor]:
    """Return the state dict's tensors under the model's canonical names, in the model's order.

    Of names that may be spared, those that are missing or of another shape are left out.

    Args:
        state: Key -> tensor of any shape; the prefixes of wrappers are taken off where the rest then fits.
        entries: What the model needs.
        label: What messages call the state dict.
        spare: What need not be there.

    Raises:
        ValueError: Keys are missing or too many, tied names hold different values, or shapes differ.
    """
    if "n_averaged" in state and all(key.startswith("module.") for key in state if key != "n_averaged"):
        state = {key: value for key, value in state.items() if key != "n_averaged"}  # torch.optim's AveragedModel
    fit = _best_fit(state, entries)
    missing = [name for name in fit.missing if name not in spare.names]
    own = {entry.name: _own(entry) for entry in entries if entry.name in missing}
    if any(value is None for value in own.values()) or any(_last(key) not in _MAY_LACK for key in fit.excess):
        _refuse_quantised(state, entries, label)
        only = [name for name, value in own.items() if value is None and not fit.excess]
        raise ValueError(_misfit(fit, state, entries, label) + spare.hint(only, len(entries)))
    found = {
        entry.name: value if (value := own.get(entry.name)) is not None else state[_tied_key(fit, state, entry, label)]
        for entry in entries
        if entry.name in own or entry.name not in fit.missing
    }
    wrong = {e.name: e.tensor.shape for e in entries if e.name in found and found[e.name].shape != e.tensor.shape}
    for name in spare.names & wrong.keys():
        del found[name], wrong[name]
    if wrong:
        _refuse_quantised(state, entries, label)
        said = [
            f"{name!r} has shape {tuple(found[name].shape)}, the model's has {tuple(shape)}"
            for name, shape in wrong.items()
        ]
        more = f"; {len(wrong)} shapes differ in all" if len(wrong) > _SHOWN else ""
        hint = spare.hint(list(wrong), len(entries))
        raise ValueError(f"{label} does not fit the model: {'; '.join(said[:_SHOWN])}{more}{hint and f'.{hint}'}")
    return found


def _refuse_quantised(state: Mapping[str, Tensor], entries: Sequence[Entry], label: str) -> None:
    names = {alias for entry in entries for alias in entry.aliases}
    said = quantised({key: value for key, value in state.items() if key not in names or value.dtype == torch.uint8})
    if said is not None:
        raise ValueError(f"{label}: {said}")


def _own(entry: Entry) -> Tensor | None:
    """The value where a checkpoint has none, as when PyTorch loads it; None where that would be a misfit."""
    if _last(entry.name) == "num_batches_tracked":
        return torch.zeros_like(entry.tensor, device="cpu")
    return None if _last(entry.name) not in _MAY_LACK or entry.tensor.is_meta else entry.tensor.detach()


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _persistent_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, module in model.named_modules(remove_duplicate=False):
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}" if path else name, buffer


def _best_fit(state: Mapping[str, Tensor], entries: Sequence[Entry]) -> _Fit:
    """Try every prefix that may be taken off either side; the first full match wins, else the nearest."""
    ours = prefixes(alias for entry in entries for alias in entry.aliases)
    pairs = sorted(product(prefixes(state), ours), key=lambda pair: len(pair[0]) + len(pair[1]))
    fits = (_fit(state, entries, *pair) for pair in pairs)
    return min(fits, key=lambda fit: len(fit.missing) + len(fit.excess))


def prefixes(names: Iterable[str]) -> list[str]:
    """List '', then the wrapper prefix that all names share, then that with the next one inside it, and so on."""
    bare = [bare_name(name) for name in names]
    found = [""]
    while bare:
        longer = (found[-1] + prefix for prefix in _STRIPPED)
        shared = next((prefix for prefix in longer if all(name.startswith(prefix) for name in bare)), None)
        if shared is None:
            break
        found.append(shared)
    return found


def bare_name(name: str, prefix: str = "") -> str:
    """A name without what wrappers put into it, and without a prefix."""
    return _WRAPPERS.sub("", name)[len(prefix) :]


def _fit(state: Mapping[str, Tensor], entries: Sequence[Entry], theirs: str, ours: str) -> _Fit:
    keys = {bare_name(key, theirs): key for key in state}
    if len(keys) < len(state):  # 'w' beside '_orig_mod.w': two things, so names count as they stand
        keys = {key: key for key in state}
    known = {bare_name(alias, ours) for entry in entries for alias in entry.aliases}
    missing = [entry.name for entry in entries if not any(bare_name(alias, ours) in keys for alias in entry.aliases)]
    return _Fit(theirs, ours, keys, missing, [key for bare, key in keys.items() if bare not in known])


def _tied_key(fit: _Fit, state: Mapping[str, Tensor], entry: Entry, label: str) -> str:
    """Return the key that holds an entry's value; of tied names a checkpoint may hold one or all."""
    held = [key for key in map(fit.key_of, entry.aliases) if key is not None]
    for other in held[1:]:
        if not same_bits(state[held[0]], state[other]):
            raise ValueError(
                f"{label}: {held[0]!r} and {other!r} are one tied parameter in the model but differ in the checkpoint; "
                "untie them in the model, or drop one key"
            )
    return held[0]


def _misfit(fit: _Fit, state: Mapping[str, Tensor], entries: Sequence[Entry], label: str) -> str:
    parts = []
    if fit.missing:
        parts.append(f"{len(fit.missing)} of the model's {len(entries)} keys missing: {_first(fit.missing)}")
    if fit.excess:
        parts.append(f"{len(fit.excess)} of its {len(state)} keys too many: {_first(fit.excess)}")
    return f"{label} does not fit the model: {'; '.join(parts)}.{''.join(_hints(fit, state, entries, label))}"


def _hints(fit: _Fit, state: Mapping[str, Tensor], entries: Sequence[Entry], label: str) -> Iterator[str]:
    """Say what prefixes have to do with it, where they have."""
    theirs, ours = _common_prefix(list(state)), _common_prefix([entry.name for entry in entries])
    for whose, prefix, other in ((label, theirs, ours), ("the model", ours, theirs)):
        if prefix.removesuffix(other):
            yield f" Hint: every key of {whose} starts with {prefix.removesuffix(other)!r}."
    for whose, prefix in ((label, fit.theirs), ("the model", fit.ours)):
        if prefix:
            yield f" Compared after taking {prefix!r} off {whose}."
    bare_missing = {bare_name(name, fit.ours) for name in fit.missing}
    bare_excess = {bare_name(key, fit.theirs) for key in fit.excess}
    found, count = _inner_prefixes(bare_missing, bare_excess)
    if found:
        several = f" (so they are with {', '.join(map(repr, found[1:]))})" if len(found) > 1 else ""
        ways = " or ".join(f"'FILE::{(fit.theirs + prefix)[:-1]}'" for prefix in found)
        yield f" Hint: {count} of the missing keys are there with {found[0]!r} in front{several}; "
        yield f"take it off, drop the rest, or pass {ways} where this is a file."
    found, count = _inner_prefixes(bare_excess, bare_missing)
    if found:
        yield f" Hint: the model has {count} of the keys too many with {found[0]!r} in front; add it."


def _inner_prefixes(names: set[str], longer: set[str]) -> tuple[list[str], int]:
    """Return the prefixes under which most of ``names`` are found among ``longer``, and how many are."""
    counts: dict[str, int] = {}
    for name in longer:
        dots = (index + 1 for index, char in enumerate(name) if char == ".")
        for dot in dots:
            if name[dot:] in names:
                counts[name[:dot]] = counts.get(name[:dot], 0) + 1
    most = max(counts.values(), default=0)
    return sorted(prefix for prefix, count in counts.items() if count == most), most


def _common_prefix(names: Sequence[str]) -> str:
    """Return the dotted path that all names begin with, the last part of a name left out."""
    paths = [name.split(".")[:-1] for name in names]
    columns = takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return "".join(f"{parts[0]}." for parts in columns)


def _first(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
