"""Turns any accepted source (module, mapping, file, folder) into a flat state dict of detached tensors."""

import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mli_fast.caller import caller
from mli_fast.native.checks import unreadable

from .changes import split
from .files import read_path
from .loading import Versioned

Source = nn.Module | Mapping[str, Any] | str | os.PathLike[str]
NESTED = ("state_dict", "model_state_dict", "model_state", "model", "module")  # where trainers put the model
SHADOW = "shadow_params"  # where torch_ema and diffusers keep moving averages
_DEEPEST = 16  # of mappings in mappings
_MOST_EXPANDED = 1 << 30  # bytes of a tensor from a file whose elements share memory
_PYTORCHS = (Tensor, nn.Parameter, nn.Buffer)
_MOST_SEEN = 1000  # mappings in which other weights are looked for


def load_state(source: Source, label: str = "checkpoint") -> dict[str, Tensor]:
    """Return the state dict that a source holds: keys as they stand there, tensors detached and not copied.

    Negative and conjugate views are resolved, which copies them.
    Files are read without running code (``weights_only=True``). Files of more than 256 MiB are mapped where the format
    allows (.safetensors, and torch.save's zip format, uncompressed), so their tensors take memory only as they are
    touched; such a file must not be written to while they are in use: new values may be mixed with old ones, and a
    file that becomes shorter ends the process (SIGBUS). Smaller files are copied.
    A mapping that nests the state dict under "state_dict", "model_state_dict", "model_state", "model" or "module"
    beside other things is understood; ``"file.pt::ema"`` takes what a file holds under "ema" or under keys that begin
    with "ema.", and ``"file.pt::a.b"`` what lies deeper. Where weights of the same names, or moving averages without
    names, lie beside those taken, a warning names both. Extra state of modules (keys ending in ``_extra_state``) is
    left out, with a warning where it holds anything.

    Args:
        source: A module, a state dict, or the path of a .pt/.pth/.ckpt/.bin or .safetensors file or of a folder with an
            index of shards (``*.index.json``) or with one checkpoint file. Nothing of the caller's is modified.
        label: What error messages call a source that is no path.

    Raises:
        TypeError: The source is of another type.
        ValueError: The file is missing, truncated, corrupt, of another format or needs code to be run; or a value is no
            tensor, has no values (meta device, uninitialised lazy parameter, freed storage, a subclass without memory)
            or is sparse, nested or quantised. Names the path and key.

    >>> load_state({"epoch": 3, "state_dict": {"weight": torch.ones(2)}})
    {'weight': tensor([1., 1.])}
    """
    if isinstance(source, str | os.PathLike):
        given = repr(os.fspath(source))
        label = given if label == "checkpoint" else f"{label} ({given})"
        path, chosen = split(os.fspath(source))
        held = read_path(path)
        if chosen is not None:
            held = _at(held, chosen, label)
        if not isinstance(held, nn.Module | Mapping):
            raise ValueError(f"{label}: the file holds a {type(held).__name__}, not a state dict")
        return _flat(held, label, f"{path}::{chosen}." if chosen else f"{path}::")
    if isinstance(source, nn.Module | Mapping):
        return _flat(source, label, None)
    raise TypeError(
        f"{label}: a {type(source).__name__} is not a checkpoint; pass a module, a state dict, or the path of a .pt, "
        ".pth, .ckpt, .bin or .safetensors file or of a folder of shards"
    )


def _at(held: Any, chosen: str, label: str) -> Any:
    """Return what lies under a key, or under keys that dots join."""
    if isinstance(held, Mapping) and chosen in held:
        return held[chosen]
    first, dot, rest = chosen.partition(".")
    if isinstance(held, Mapping) and first in held and dot:
        return _at(held[first], rest, label)
    for among in (held, *(held.get(key) for key in NESTED)) if isinstance(held, Mapping) else ():
        if isinstance(among, Mapping) and (found := _below(among, f"{chosen}.")):
            return found
    keys = [repr(key) for key in held] if isinstance(held, Mapping) else []
    there = f"there are {', '.join(keys[:10])}{', ...' if len(keys) > 10 else ''}" if keys else "there are no keys"
    raise ValueError(f"{label}: nothing lies under {chosen!r}; {there}")


def _below(held: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """What a mapping holds under keys of a prefix, without it."""
    return {str(key)[len(prefix) :]: value for key, value in held.items() if str(key).startswith(prefix)}


def _flat(held: nn.Module | Mapping[str, Any], label: str, start: str | None) -> dict[str, Tensor]:
    """Unwrap nested layouts and return the validated state dict; ``start`` and a key choose that key of a file."""
    whole = taken = _mapping(held)
    keys: list[str] = []
    while (inner := _nested_key(taken, label, start, keys)) is not None:
        keys.append(inner)
        taken, label = _mapping(taken[inner]), f"{label}[{inner!r}]"
        if len(keys) > _DEEPEST:
            raise ValueError(f"{label}: more than {_DEEPEST} mappings in each other; pass the state dict alone")
    if _is_nameless(taken.get(SHADOW)):
        raise ValueError(f"{label}: {_shadow_said(SHADOW)}")
    extra = [key for key in taken if str(key).endswith("_extra_state")]
    unused = [key for key in extra if not _is_nothing(taken[key])]
    if unused:
        warnings.warn(
            f"{label}: extra state of modules ({', '.join(map(repr, unused))}) is not loaded, the model's own is used: "
            "call its set_extra_state with what all points are to have",
            UserWarning,
            stacklevel=caller(),
        )
    state = {key: _tensor(key, value, label) for key, value in taken.items() if key not in extra}
    for key, value in state.items() if start is not None else ():
        if value.nbytes > _MOST_EXPANDED and value.nbytes > value.untyped_storage().nbytes():
            raise ValueError(
                f"{label}: {key!r} of shape {tuple(value.shape)} is an expanded tensor; save it contiguous"
            )
    others = _others(whole, keys, state)[:5]
    for shadow in (other for other in others if other.rpartition(".")[2] == SHADOW):
        warnings.warn(
            f"{label}: the weights under {'.'.join(keys)!r} are taken; {_shadow_said(shadow)}",
            UserWarning,
            stacklevel=caller(),
        )
    others = [other for other in others if other.rpartition(".")[2] != SHADOW]
    if others:
        name = ".".join(keys)
        ways = (f"the mapping under {key!r}" if start is None else f"'{start}{key}'" for key in [*others, name])
        warnings.warn(
            f"{label}: the weights under {name!r} are taken, but others lie beside them, under "
            f"{', '.join(map(repr, others))}: pass {' or '.join(ways)} to choose",
            UserWarning,
            stacklevel=caller(),
        )
    found = Versioned(state).like(taken)
    found.place = ".".join(keys)
    return found


def _mapping(held: nn.Module | Mapping[str, Any]) -> Mapping[str, Any]:
    return held.state_dict() if isinstance(held, nn.Module) else held


def _others(whole: Mapping[str, Any], keys: list[str], state: Mapping[str, Tensor]) -> list[str]:
    """List where tensors of the same names, such as their moving averages, lie beside the state dict taken."""
    if not keys:
        return []
    taken: Any = whole
    for key in keys:
        taken = _mapping(taken)[key]
    names, seen = {_bare(key) for key in state}, {id(whole), id(taken)}
    found: list[str] = [SHADOW] if _is_nameless(whole.get(SHADOW)) else []
    waiting: list[tuple[str, Mapping[str, Any]]] = [("", whole)]
    for prefix, held in waiting:  # grows
        for key, value in held.items():
            if not isinstance(value, nn.Module | Mapping) or id(value) in seen or "optim" in str(key):
                continue
            seen.add(id(value))
            if _is_nameless(_mapping(value).get(SHADOW)):
                found.append(f"{prefix}{key}.{SHADOW}")
            there = {_bare(str(name)) for name, inner in _mapping(value).items() if isinstance(inner, Tensor)}
            if 2 * len(there & names) > len(names):
                found.append(f"{prefix}{key}")
            elif prefix.count(".") < 3 and len(waiting) < _MOST_SEEN:
                waiting.append((f"{prefix}{key}.", _mapping(value)))
    return found


def _is_nameless(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value)


def _shadow_said(where: str) -> str:
    return (
        f"{where!r} holds moving averages without names, in the order of model.parameters(): to use them, copy them "
        "into the model's parameters one by one and pass its state_dict()"
    )


def _bare(key: str) -> str:
    return key.removeprefix("_orig_mod.").removeprefix("module.").removeprefix("model.")


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, Tensor) and value.numel() == 0)


def _nested_key(held: Mapping[str, Any], label: str, start: str | None, above: list[str]) -> str | None:
    """Return the key under which ``held`` keeps the state dict, or None where it is the state dict itself."""
    inner = [key for key in NESTED if isinstance(held.get(key), nn.Module | Mapping)]
    if len(inner) > 1:  # a "model" beside the state dict may be the model's configuration
        inner = [key for key in inner if _holds_tensors(held[key])] or inner
    if len(inner) > 1:
        ways = (f"'{start}{'.'.join([*above, key])}'" for key in inner)
        one = "one of them" if start is None else " or ".join(ways)
        raise ValueError(f"{label}: state dicts under several keys ({', '.join(map(repr, inner))}); pass {one}")
    return inner[0] if inner else None


def _holds_tensors(held: nn.Module | Mapping[str, Any]) -> bool:
    waiting, seen = [held], {id(held)}
    for mapping in waiting:  # grows
        for value in _mapping(mapping).values():
            if isinstance(value, Tensor):
                return True
            if isinstance(value, Mapping) and id(value) not in seen:  # files may share one mapping 2 ** 40 times
                seen.add(id(value))
                waiting.append(value)
    return False


def _tensor(key: Any, value: Any, label: str) -> Tensor:
    """Return one entry detached, or say why it cannot be an anchor."""
    if not isinstance(key, str):
        raise ValueError(f"{label}: the key {key!r} is a {type(key).__name__}, not a parameter's name")
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{label}: the value of {key!r} is a {type(value).__name__}, not a tensor; pass the state dict alone, or "
            f"nested under one of {', '.join(NESTED)}"
        )
    if type(value) in _PYTORCHS:
        return _readable(key, value, label)
    try:
        whole = value.full_tensor() if hasattr(value, "full_tensor") else value  # DTensor: every rank comes by here
        return _readable(key, whole, label)
    except ValueError:
        raise
    except Exception as error:  # a tensor subclass runs code of its own, and may raise anything
        raise ValueError(
            f"{label}: {key!r} is a {type(value).__name__}, a tensor subclass that cannot be read "
            f"({type(error).__name__}: {error}); pass plain tensors"
        ) from error


def _readable(key: str, value: Tensor, label: str) -> Tensor:
    if is_lazy(value):
        raise ValueError(f"{label}: {key!r} is an uninitialised lazy parameter; run one forward pass first")
    if value.is_meta:
        raise ValueError(f"{label}: {key!r} is on the meta device and has no values; load the weights first")
    if value.layout != torch.strided or value.is_quantized or value.is_nested:
        kind = "quantised" if value.is_quantized else "nested" if value.is_nested else f"stored as {value.layout}"
        raise ValueError(f"{label}: {key!r} is {kind}, which does not interpolate; make it a dense float tensor first")
    if (reason := unreadable(value)) is not None:
        raise ValueError(
            f"{label}: {key!r} is {reason}; pass whole tensors with memory of their own (FSDP: get_model_state_dict of "
            "torch.distributed.checkpoint.state_dict with full_state_dict=True)"
        )
    return value.detach().resolve_conj().resolve_neg()
