"""Models that load in their own way: overrides of `load_state_dict` and hooks of it, run on copies of the model."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .matching import bare_name, prefixes
from .values import same_bits

State = Mapping[str, Tensor]
Fit = Callable[[State], dict[str, Tensor]]
_LOADING = ("load_state_dict", "_load_from_state_dict", "set_extra_state")


class Versioned(dict[str, Tensor]):
    """A state dict with the versions of modules, as `state_dict()` gives it.

    Attributes:
        place: The keys, joined by dots, under which it lay in what it was read from.
    """

    _metadata: Any
    place = ""

    def like(self, state: Mapping[str, Any], prefix: str = "") -> "Versioned":
        """Itself, with the versions that another state dict has, if it has any."""
        held = getattr(state, "_metadata", None)
        if isinstance(held, Mapping):
            self._metadata = {bare_name(f"{name}.", prefix)[:-1]: about for name, about in held.items()}
        return self


def is_pytorchs(module: nn.Module, name: str) -> bool:
    """Whether an attribute of a class is one of `torch.nn`'s, in whichever class it is written."""
    if name in vars(module):
        return False
    writer = next(kind for kind in type(module).__mro__ if name in vars(kind))
    return writer.__module__.startswith("torch.nn.")


def loads_plainly(model: nn.Module) -> bool:
    """Whether all modules are loaded as PyTorch's own are, without hooks.

    >>> loads_plainly(nn.Sequential(nn.BatchNorm1d(2), nn.MultiheadAttention(2, 1)))
    True
    """
    return all(
        all(map(partial(is_pytorchs, module), _LOADING))
        and not module._load_state_dict_pre_hooks
        and not module._load_state_dict_post_hooks
        for module in model.modules()
    )


def match_by_model(
    model: nn.Module, states: Sequence[State], fits: Sequence[Fit], labels: Sequence[str]
) -> tuple[list[dict[str, Tensor]], bool]:
    """Match the checkpoints of a model that loads in its own way.

    Points are loaded by the model too, so values are taken as they stand where that does the same to all of them.
    Where names, shapes or versions say otherwise, a copy of the model loads each.

    Args:
        model: The architecture.
        states: Keys as they stand in the checkpoints.
        fits: What matches each of them to the model.
        labels: What messages call them.

    Returns:
        The matched state dicts, and whether they are of the model's own versions.

    Raises:
        ValueError: One does not fit the model in either way, or what is loaded would change again at each loading.
    """
    own = {name: module._version for name, module in model.named_modules() if not is_pytorchs(module, "_version")}
    given = [_versions(state, own) for state in states]
    if all(one == given[0] for one in given) and given[0] in ({}, own):
        try:
            fitting = [fit(state) for fit, state in zip(fits, states, strict=True)]
        except ValueError:
            pass  # as they stand, they do not fit
        else:
            return fitting, given[0] == own
    return [_loaded(model, *one) for one in zip(states, fits, labels, strict=True)], True


def _versions(state: State, names: Mapping[str, Any]) -> dict[str, Any]:
    prefix = prefixes(state)[-1]
    found: Any = getattr(Versioned().like(state, prefix), "_metadata", {})
    found = found if any(name in found for name in names) else getattr(state, "_metadata", None) or {}
    return {name: found[name]["version"] for name in names if "version" in found.get(name, {})}


def _loaded(model: nn.Module, state: State, fit: Fit, label: str) -> dict[str, Tensor]:
    """The values that a copy of the model holds once it has loaded a state dict."""
    reasons: list[Exception] = []
    for given in _forms(state):
        try:
            first = _load(model, given)
        except Exception as error:  # noqa: BLE001  a hook may raise anything
            reasons.append(error)
            continue
        if any(not same_bits(first[key], value) for key, value in _load(model, first).items()):
            raise ValueError(
                f"{label}: the model's own load_state_dict (or a hook of it) changes values each time, so no point can "
                "be loaded; load it yourself, take the hooks off the model, and pass the model's state_dict()"
            )
        return fit(first)
    fit(state)  # raises, and says more of what does not fit
    raise ValueError(f"{label} does not fit the model: its own load_state_dict raises {reasons[0]}") from reasons[0]


def _forms(state: State) -> Iterator[Versioned]:
    for prefix in prefixes(state):
        yield Versioned((bare_name(key, prefix), value.clone()) for key, value in state.items()).like(state, prefix)


def _load(model: nn.Module, state: Versioned) -> Versioned:
    replica = copy.deepcopy(model)
    if any(tensor.is_meta for tensor in (*replica.parameters(), *replica.buffers())):
        replica.to_empty(device="cpu")
    extra = {key: value for key, value in replica.state_dict().items() if key.endswith("_extra_state")}
    with torch.no_grad():
        replica.load_state_dict(Versioned({**extra, **state}).like(state))
    found = replica.state_dict()
    return Versioned((key, value) for key, value in found.items() if key not in extra).like(found)
