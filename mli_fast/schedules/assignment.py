"""Which parameters move how: schedules by kind, layer or pattern, and the groups of a layer-wise sweep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from .parts import KINDS, LAST_BIAS, Order, Part, Parts
from .schedule import NAMED, Frozen, Power, Schedule

HOMOGENEOUS = "homogeneous"
ROOT = "(root)"  # what the group of the parameters that the model itself holds is called


def assign(model: nn.Module, schedule: Mapping[str, Any], depth_order: Order | None = None) -> dict[str, Schedule]:
    """The schedule of every parameter that a mapping names; where several keys match, the last one holds.

    A key is a kind, else a layer, else a pattern of names:

    - "weight": what is none of the following, matrices and filters above all. "bias": parameters with "bias" in their
      name, those of norms apart. "norm": weight and bias of norms. "embedding": what embeddings hold. "last_bias": the
      bias of the last layer that is no norm; it matches nothing if that layer has none.
    - a module's path: all that it and the modules below it hold.
    - a pattern as in a shell ("layer?.*.weight") of whole names; a tied parameter is matched by each of its names.

    The running statistics of a norm go along whenever its weight is matched; those of a norm without one belong to the
    kind "norm".

    A schedule is "linear", "start" or "end" (held there), `power(p)`, "homogeneous", or a function of all alphas [A] ->
    s [A], whose attribute `derivative`, if it has one, is likewise ds/dalpha. "homogeneous" (Wang et al. 2022,
    arXiv:2210.01019): of what the key matches, the biases of the i-th layer with a matrix move as alpha^i, the rest as
    alpha, so that a bias stays in proportion to what comes to it through i layers.

    Args:
        model: the architecture.
        schedule: key -> schedule.
        depth_order: gives the layers in the order of their calls, see `depth_order`; called only if "homogeneous" or
            "last_bias" needs it. None: they are taken as registered.

    Returns:
        canonical name -> schedule. Parameters that no key matches are left out.

    Raises:
        ValueError: a key matches nothing, or an unknown schedule.
        TypeError: not a mapping, or a key or schedule of a wrong type.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> {name: str(s) for name, s in assign(model, {"bias": "homogeneous", "0.weight": "start"}).items()}
        {'0.bias': 'linear', '2.bias': 'power(2)', '0.weight': 'start'}
    """
    parts = Parts(model, depth_order)
    assigned: dict[str, Schedule] = {}
    for key, given in _mapping(schedule).items():
        names = parts.select(key, "schedule")
        if isinstance(given, str) and given == HOMOGENEOUS:
            assigned.update({name: Schedule(Power(i), key) for name, i in _degrees(parts, names).items()})
        else:
            assigned.update(dict.fromkeys(names, _schedule(given, key)))
    return assigned


def check(model: nn.Module, schedule: Mapping[str, Any]) -> None:
    """Raise what `assign` would, without asking for the order of the layers: whether there is a last bias is left open.

    Args:
        model: the architecture.
        schedule: see `assign`.

    Raises:
        ValueError: a key matches nothing, or an unknown schedule.
        TypeError: not a mapping, or a key or schedule of a wrong type.
    """
    given = dict(_mapping(schedule))
    last = given.pop(LAST_BIAS, HOMOGENEOUS)
    if last != HOMOGENEOUS:
        _schedule(last, LAST_BIAS)
    assign(model, given)


def held(model: nn.Module, schedule: Mapping[str, Any]) -> dict[str, float]:
    """The names that a schedule holds at one end, and s there; without asking for the order of the layers.

    Example:
        >>> held(nn.Linear(3, 2), {"weight": "end", "bias": "linear"})
        {'weight': 1.0}
    """
    given = {key: value for key, value in _mapping(schedule).items() if key != LAST_BIAS}
    found = {n: s.function.at for n, s in assign(model, given).items() if isinstance(s.function, Frozen)}
    if len(given) == len(schedule):
        return found
    biases = {part.name for part in Parts(model).of_kind("bias")}  # which one is the last is not known
    return {name: at for name, at in found.items() if name not in biases}


def groups(model: nn.Module, groups: Any = None, depth_order: Order | None = None) -> dict[str, tuple[str, ...]]:
    """The groups of parameters of a layer-wise sweep (Vlaar & Frankle 2022, arXiv:2106.16004).

    Args:
        model: the architecture.
        groups: None or "layer" (every module that itself holds parameters or running statistics), "kind" (weight, bias,
            norm, embedding), "parameter", a list of kinds, layers or patterns (see `assign`), or a mapping of labels to
            one or a list of these. The running statistics of a norm go with its weight; those of a norm without one are
            a group in "layer", and in none in "parameter".
        depth_order: gives the layers in the order of their calls; None: they are taken as registered.

    Returns:
        label -> canonical names; layers in depth order, each tied parameter with the first layer that holds it.

    Raises:
        ValueError: unknown, empty, or matching nothing.
        TypeError: of a wrong type.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        >>> groups(model, "kind")
        {'weight': ('0.weight',),
         'bias': ('0.bias',),
         'norm': ('1.weight', '1.bias', '1.running_mean', '1.running_var', '1.num_batches_tracked')}
        >>> groups(model, {"affine": ["1.weight", "1.bias"]})["affine"][:2]
        ('1.weight', '1.bias')
    """
    parts = Parts(model, depth_order)
    if groups is None or isinstance(groups, str):
        if groups in (None, "layer"):
            return _layers(parts)
        if groups == "kind":
            return {kind: parts.select(kind, "groups") for kind in KINDS if parts.of_kind(kind)}
        if groups == "parameter":
            return {part.name: parts.with_statistics({part.name}) for part in parts.parts if part.kind in KINDS}
        raise ValueError(
            f"groups={groups!r} is not one of 'layer', 'kind', 'parameter'; a kind, a layer or a pattern is given in a "
            "list"
        )
    if not isinstance(groups, Iterable):
        raise TypeError(f"groups: expected 'layer', 'kind', 'parameter', a list or a mapping, got {groups!r}")
    wanted = groups if isinstance(groups, Mapping) else {key: key for key in groups}
    if not wanted:
        raise ValueError("groups is empty: at least one is needed")
    return {label: _joined(parts, label, keys) for label, keys in wanted.items()}


def _mapping(schedule: Any) -> Mapping[str, Any]:
    if not isinstance(schedule, Mapping):
        raise TypeError(f"schedule: expected a mapping of kinds, layers or patterns to schedules, got {schedule!r}")
    return schedule


def _schedule(given: Any, key: str) -> Schedule:
    """What stands for a schedule, as one."""
    if isinstance(given, str):
        if given not in NAMED:
            known = ", ".join(map(repr, (*NAMED, HOMOGENEOUS)))
            raise ValueError(f"schedule of {key!r}: {given!r} is not one of {known}, power(p) or a function of alpha")
        return Schedule(NAMED[given], key)
    if not callable(given):
        raise TypeError(
            f"schedule of {key!r}: expected a name, power(p) or a function of alpha, got {given!r}; for alpha^p give "
            "mli_fast.schedules.power(p)"
        )
    return Schedule(given, key)


def _degrees(parts: Parts, names: Iterable[str]) -> dict[str, int]:
    """The power of alpha that each name moves with under the homogeneous rule."""
    degrees, depth = dict.fromkeys(names, 1), 0
    done: set[str] = set()
    for layer in parts.layers:
        held = parts.held_by(layer)
        depth += any(part.kind == "weight" and part.tensor.ndim > 1 for part in held)
        biases = {part.name for part in held if part.kind == "bias"} - done
        degrees.update(dict.fromkeys(biases & degrees.keys(), max(1, depth)))
        done |= biases
    return degrees


def _layers(parts: Parts) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    taken: set[str] = set()
    for layer in parts.layers:
        held: list[Part] = [part for part in parts.held_by(layer) if part.name not in taken]
        if held:
            found[layer or ROOT] = tuple(part.name for part in held)
            taken.update(found[layer or ROOT])
    return found


def _joined(parts: Parts, label: str, keys: Any) -> tuple[str, ...]:
    """The names that one or several keys select, each once."""
    if not isinstance(keys, str | Iterable):
        raise TypeError(f"groups[{label!r}]: expected a kind, a layer, a pattern or a list of these, got {keys!r}")
    listed = [keys] if isinstance(keys, str) else list(keys)
    if not listed:
        raise ValueError(f"groups[{label!r}] is empty: at least one kind, layer or pattern is needed")
    return parts.with_statistics({name for key in listed for name in parts.select(key, f"groups[{label!r}]")})
