"""What the command line's texts stand for: ``pkg.mod:name``, lists of alphas, chunk sizes."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from torch import nn

from mli_fast.schedules import power


def parse_alphas(text: str) -> int | str | list[float]:
    """A whole number is a count of points from 0 to 1; anything with a comma or a point is a list of values.

    Args:
        text: What was given.

    Returns:
        The count, the values, or "adaptive".

    Raises:
        ValueError: If it is neither.

    Examples:
        >>> parse_alphas("50")
        50
        >>> parse_alphas("0, 0.25, 1")
        [0.0, 0.25, 1.0]
        >>> parse_alphas("0.5")
        [0.5]
    """
    if text == "adaptive":
        return text
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return [float(part) for part in text.rstrip(", ").split(",")]
    except ValueError:
        raise ValueError(f"--alphas {text!r}: give a count such as 50, values such as 0,0.25,1, or adaptive") from None


def parse_schedule(texts: Sequence[str]) -> dict[str, Any] | None:
    """What ``--schedule WHICH=HOW`` stand for; None where there are none.

    Args:
        texts: What was given.

    Returns:
        Kind, layer or pattern -> schedule.

    Raises:
        ValueError: If one has another form.

    Examples:
        >>> parse_schedule(["bias=start", "head.*=power:2"])
        {'bias': 'start', 'head.*': Power(exponent=2.0)}
    """
    found: dict[str, Any] = {}
    for text in texts:
        which, equals, how = text.rpartition("=")
        if not (which and equals and how):
            raise ValueError(f"--schedule {text}: give it as WHICH=HOW, such as bias=start or head.*=power:2")
        name, colon, exponent = how.partition(":")
        if name == "power" and colon:
            try:
                found[which] = power(float(exponent))
            except ValueError as error:
                raise ValueError(f"--schedule {text}: {error}") from None
        else:
            found[which] = how
    return found or None


def parse_chunk(text: str) -> int | str:
    """A number of points per pass, or a word such as ``auto``.

    Args:
        text: What was given.

    Returns:
        The number, or the text as it is, for the sweep to judge.
    """
    return int(text) if text.isdecimal() else text


def parse_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """Names of metrics; ``none`` alone asks for none beside the loss.

    Args:
        names: What was given.

    Returns:
        The names.
    """
    return () if list(names) == ["none"] else tuple(names)


def build_model(reference: str) -> nn.Module:
    """The module that ``--model pkg.mod:name`` stands for.

    Args:
        reference: Of a module instance, or of something to call without arguments that returns one.

    Returns:
        The module.

    Raises:
        ValueError: If there is nothing of that name.
        TypeError: If it neither is a module nor returns one.
    """
    found = find_object("--model", reference)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise TypeError(
            f"--model {reference}: is of type {type(found).__name__}, neither an nn.Module nor a callable "
            "that returns one"
        )
    model = _call("--model", reference, found)
    if not isinstance(model, nn.Module):
        raise TypeError(f"--model {reference}: returned {type(model).__name__} instead of an nn.Module")
    return model


def build_data(reference: str, option: str = "--data") -> Any:
    """The data that ``--data pkg.mod:name`` stands for.

    Args:
        reference: Of a loader (an iterable of batches) or an ``(X, y)`` pair, or of something to call without arguments
            that returns one.
        option: The option it was given to, for the messages.

    Returns:
        The loader or the pair.

    Raises:
        ValueError: If there is nothing of that name.
        TypeError: If it neither is data nor returns any.
    """
    found = find_object(option, reference)
    # A loader may be callable as well; a class that makes loaders is not one itself.
    if not isinstance(found, type) and _iterable(found):
        return found
    if not callable(found):
        raise TypeError(
            f"{option} {reference}: is of type {type(found).__name__}, neither an iterable of batches nor an (X, y) "
            "pair nor a callable that returns one"
        )
    data = _call(option, reference, found)
    if not _iterable(data):
        raise TypeError(
            f"{option} {reference}: returned {type(data).__name__} instead of an iterable of batches or an (X, y) pair"
        )
    return data


def find_object(option: str, reference: str) -> Any:
    """Import what ``pkg.mod:name`` names, looking in the current folder first.

    Args:
        option: The option it was given to, for the messages.
        reference: Module and attribute, joined by a colon.

    Returns:
        The object.

    Raises:
        ValueError: If the text has another form, or there is no such module or attribute.
    """
    module_name, colon, attribute = reference.partition(":")
    if not (module_name and colon and attribute):
        raise ValueError(f"{option} {reference}: give it as package.module:name, such as models:make_mlp")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that exists but itself imports a missing one is another matter: that error stands as it is.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            error.add_note(f"raised while importing {module_name} for {option}")
            raise
        raise ValueError(
            f"{option} {reference}: no module named {error.name!r} in the current folder or among those installed"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{option} {reference}: {_missing(found, part)}")
        found = getattr(found, part)
    return found


def _missing(owner: Any, name: str) -> str:
    names = [known for known in dir(owner) if not known.startswith("_")]
    close = difflib.get_close_matches(name, names, n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"{getattr(owner, '__name__', owner)!r} has no {name!r}{hint}"


def _call(option: str, reference: str, factory: Any) -> Any:
    try:
        return factory()
    except Exception as error:
        error.add_note(f"raised by {reference}, called without arguments for {option}")
        raise


def _iterable(value: Any) -> bool:
    return hasattr(value, "__iter__") or hasattr(value, "__getitem__")
