"""Turns any accepted source (module, mapping, file, folder) into a flat state dict of detached tensors."""

import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .files import read_path

Source = nn.Module | Mapping[str, Any] | str | os.PathLike[str]
NESTED = ("state_dict", "model_state_dict", "model_state", "model")  # where trainers put the model among other things


def load_state(source: Source, label: str = "checkpoint") -> dict[str, Tensor]:
    """Return the state dict that a source holds: keys as they stand there, tensors detached and not copied.

    Files are read without running code (``weights_only=True``) and mapped where the format allows (.safetensors, and
    torch.save's zip format), so tensors take memory only as they are touched, and the file must not be overwritten
    while they are in use. A mapping that nests the state dict under
    "state_dict", "model_state_dict", "model_state" or "model" beside other things is understood. Extra state of modules
    (keys ending in ``_extra_state``) is left out, with a warning where it holds anything.

    Args:
        source: A module, a state dict, or the path of a .pt/.pth/.ckpt/.bin or .safetensors file or of a folder with an
            index of shards (``*.index.json``) or with one checkpoint file. Nothing of the caller's is modified.
        label: What error messages call a source that is no path.

    Raises:
        TypeError: The source is of another type.
        ValueError: The file is missing, truncated, corrupt or needs code to be run; or a value is no tensor, has no
            values (meta device, uninitialised lazy parameter) or is sparse or quantised. Names the path and key.

    >>> load_state({"epoch": 3, "state_dict": {"weight": torch.ones(2)}})
    {'weight': tensor([1., 1.])}
    """
    if isinstance(source, str | os.PathLike):
        given = repr(os.fspath(source))
        label = given if label == "checkpoint" else f"{label} ({given})"
        held = read_path(source)
        if not isinstance(held, Mapping):
            raise ValueError(f"{label}: the file holds a {type(held).__name__}, not a state dict")
        return _flat(held, label)
    if isinstance(source, nn.Module | Mapping):
        return _flat(source, label)
    raise TypeError(
        f"{label}: a {type(source).__name__} is not a checkpoint; pass a module, a state dict, or the path of a .pt, "
        ".pth, .ckpt, .bin or .safetensors file or of a folder of shards"
    )


def _flat(held: nn.Module | Mapping[str, Any], label: str) -> dict[str, Tensor]:
    """Unwrap nested layouts and return the validated state dict."""
    if isinstance(held, nn.Module):
        held = held.state_dict()
    inner = _nested_key(held, label)
    if inner is not None:
        return _flat(held[inner], f"{label}[{inner!r}]")
    extra = [key for key in held if str(key).endswith("_extra_state")]
    unused = [key for key in extra if not _is_nothing(held[key])]
    if unused:
        warnings.warn(
            f"{label}: extra state of modules ({', '.join(map(repr, unused))}) is not loaded, the model's own is used: "
            "call its set_extra_state with what all points are to have",
            UserWarning,
            stacklevel=2,
        )
    state = {key: value for key, value in held.items() if key not in extra}
    return {key: _tensor(key, value, label) for key, value in state.items()}


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, Tensor) and value.numel() == 0)


def _nested_key(held: Mapping[str, Any], label: str) -> str | None:
    """Return the key under which ``held`` keeps the state dict, or None where it is the state dict itself."""
    inner = [key for key in NESTED if isinstance(held.get(key), nn.Module | Mapping)]
    if len(inner) > 1:  # a "model" beside the state dict may be the model's configuration
        inner = [key for key in inner if _holds_tensors(held[key])] or inner
    if len(inner) > 1:
        raise ValueError(f"{label}: state dicts under several keys ({', '.join(map(repr, inner))}); pass one of them")
    return inner[0] if inner else None


def _holds_tensors(held: nn.Module | Mapping[str, Any]) -> bool:
    values = held.state_dict().values() if isinstance(held, nn.Module) else held.values()
    return any(isinstance(value, Tensor) or (isinstance(value, Mapping) and _holds_tensors(value)) for value in values)


def _tensor(key: Any, value: Any, label: str) -> Tensor:
    """Return one entry detached, or say why it cannot be an anchor."""
    if not isinstance(key, str):
        raise ValueError(f"{label}: the key {key!r} is a {type(key).__name__}, not a parameter's name")
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{label}: the value of {key!r} is a {type(value).__name__}, not a tensor; pass the state dict alone, or "
            f"nested under one of {', '.join(NESTED)}"
        )
    if is_lazy(value):
        raise ValueError(f"{label}: {key!r} is an uninitialised lazy parameter; run one forward pass first")
    if value.is_meta:
        raise ValueError(f"{label}: {key!r} is on the meta device and has no values; load the weights first")
    if value.layout != torch.strided or value.is_quantized:
        kind = "quantised" if value.is_quantized else f"stored as {value.layout}"
        raise ValueError(f"{label}: {key!r} is {kind}, which does not interpolate; make it a dense float tensor first")
    return value.detach()
