"""The parts of a model: what each parameter is, and the parameters that a kind, a layer or a pattern selects."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from mli_fast.checkpoints.matching import model_entries

Order = Callable[[], Sequence[str]]

KINDS = ("weight", "bias", "norm", "embedding")  # every parameter is of one of them
LAST_BIAS = "last_bias"  # a kind besides
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_PARAMETRISED = re.compile(r"(?:(.*)\.)?parametrizations\.([^.]+)\.")
_SHOWN = 8


@dataclass(frozen=True)
class Part:
    """A parameter or persistent buffer.

    Attributes:
        name: its canonical name.
        names: all its names, where it is tied.
        owners: the modules that hold it, by these names.
        tensor: itself.
        kind: one of `KINDS`; "statistics" for the buffers of a norm, "buffer" for others.
    """

    name: str
    names: tuple[str, ...]
    owners: tuple[str, ...]
    tensor: Tensor
    kind: str


class Parts:
    """The parameters and persistent buffers of a model, to be selected from.

    Args:
        model: the architecture.
        depth_order: the names of its layers in the order they are called, as `depth_order` finds them; None: the order
            in which they are registered.
    """

    def __init__(self, model: nn.Module, depth_order: Order | None = None) -> None:
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._distinct = [name for name, _ in model.named_modules()]
        self._depth_order = depth_order
        parameters = {id(parameter) for parameter in model.parameters()}
        self.parts = [
            Part(e.name, e.aliases, tuple(owner_of(a)[0] for a in e.aliases), e.tensor, self._kind(e.name, buffer))
            for e in model_entries(model)
            for buffer in [id(e.tensor) not in parameters]
        ]
        self._held: dict[str, list[Part]] = {}
        for part in self.parts:
            for owner in dict.fromkeys(part.owners):
                self._held.setdefault(owner, []).append(part)

    @cached_property
    def layers(self) -> list[str]:
        """The modules that themselves hold parameters or running statistics, in depth order."""
        if self._depth_order is not None:
            return list(self._depth_order())
        return self.registered_layers()

    def registered_layers(self) -> list[str]:
        """`layers` in the order in which they are registered."""
        return [name for name in self._distinct if any(part.kind != "buffer" for part in self.held_by(name))]

    def held_by(self, layer: str) -> list[Part]:
        """What a module itself holds."""
        return self._held.get(layer, [])

    def of_kind(self, key: str) -> list[Part]:
        """What is of a kind; nothing where the key is no kind."""
        if key == LAST_BIAS:
            layers = [name for name in self.layers if not is_norm(self._modules[name])]
            return [part for part in self.held_by(layers[-1]) if part.kind == "bias"] if layers else []
        found = [part for part in self.parts if part.kind == key and key in KINDS]
        without_weights = [p for p in self.parts if p.kind == "statistics" and self._leader(p.owners[0]) is None]
        return found + without_weights if key == "norm" else found

    def select(self, key: str, what: str) -> tuple[str, ...]:
        """The canonical names that a key stands for, and the statistics of the norms whose weight is among them.

        Args:
            key: a kind ("weight", "bias", "norm", "embedding", "last_bias"), else a layer, else a pattern of names.
            what: what a message calls the argument that holds the key.

        Raises:
            ValueError: the key matches nothing.
            TypeError: it is no string.
        """
        if not isinstance(key, str):
            raise TypeError(f"{what}: expected a kind, a layer or a pattern of names, got {key!r}")
        for find in (self.of_kind, self._below, self._like):
            found = find(key)
            if found:
                return self.with_statistics({part.name for part in found})
        raise ValueError(f"{what}: {key!r} matches nothing in the model; {self._what_there_is()}")

    def with_statistics(self, names: set[str]) -> tuple[str, ...]:
        """These names and the statistics of those norms whose first parameter, the weight, is among them; in order."""
        return tuple(
            part.name
            for part in self.parts
            if part.name in names or (part.kind == "statistics" and self._leader(part.owners[0]) in names)
        )

    def _leader(self, owner: str) -> str | None:
        """The first parameter of a norm; None for other modules, and for norms without one."""
        held = [part.name for part in self.held_by(owner) if part.kind == "norm"]
        return held[0] if held else None

    def _below(self, key: str) -> list[Part]:
        return [part for part in self.parts if any(name.startswith(f"{key}.") for name in part.names)]

    def _like(self, key: str) -> list[Part]:
        return [part for part in self.parts if any(fnmatchcase(name, key) for name in part.names)]

    def _kind(self, name: str, buffer: bool) -> str:
        owner, leaf = owner_of(name)
        module = self._modules[owner]
        if is_norm(module):
            return "statistics" if buffer else "norm"
        if buffer:
            return "buffer"
        if isinstance(module, EMBEDDINGS):
            return "embedding"
        return "bias" if "bias" in leaf else "weight"

    def _what_there_is(self) -> str:
        kinds = [kind for kind in (*KINDS, LAST_BIAS) if self.of_kind(kind)]
        layers = [name for name in self.layers if name]
        names = [part.name for part in self.parts]
        return "; ".join(
            f"{what}: {', '.join(map(repr, found[:_SHOWN])) or 'none'}{', ...' if len(found) > _SHOWN else ''}"
            for what, found in (("kinds", kinds), ("layers", layers), ("names", names))
        )


def owner_of(name: str) -> tuple[str, str]:
    """The module that uses a parameter, and what it is called there; behind a parametrisation the module it is of.

    >>> owner_of("body.0.weight"), owner_of("body.0.parametrizations.weight.original1")
    (('body.0', 'weight'), ('body.0', 'weight'))
    """
    found = _PARAMETRISED.match(name)
    if found:
        return found[1] or "", found[2]
    owner, _, leaf = name.rpartition(".")
    return owner, leaf


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises: one of PyTorch's norms, or called one and without any matrix or submodule."""
    if isinstance(module, NORMS):
        return True
    plain = not any(True for _ in module.children()) and all(p.ndim <= 1 for p in module.parameters(recurse=False))
    return plain and "norm" in type(module).__name__.lower()
