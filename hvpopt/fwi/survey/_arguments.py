"""What waveform functions are given, by type and range: errors in words."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor


def kind_of(value: object) -> str:
    """Return what a value is, for errors: ``str '0.004'``, ``ndarray``, ``class L2``."""
    if isinstance(value, type):
        return f"class {value.__name__}"
    if value is None:
        return "None"
    name = type(value).__name__
    plain = isinstance(value, (str, bool, int, float, complex))
    return f"{name} {value!r}" if plain else name


def number(
    name: str, value: Any, *, positive: bool = False, least: float = -math.inf
) -> float:
    """Return a finite real number.

    Args:
        name: Of the argument, for errors.
        value: A number; also of NumPy, or a tensor of one element.
        positive: Refuse zero and less.
        least: Refuse less.

    Returns:
        The number.

    Raises:
        TypeError: If it is none.
        ValueError: If it is NaN, infinite or out of range.
    """
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        value = value.item() if math.prod(value.shape) == 1 else value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is {_a(value)}; it must be a number")
    if positive and not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; it must be positive and finite")
    if not max(least, -float(np.finfo(float).max)) <= value < math.inf:
        bound = f", {least:g} or more" if least > -math.inf else ""
        raise ValueError(f"{name} is {value}; it must be finite{bound}")
    return float(value)


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return a whole number within a range.

    Args:
        name: Of the argument, for errors.
        value: An integer, of Python, NumPy or torch.
        least: The least allowed.
        most: The most allowed. Default no limit.

    Returns:
        The integer.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is out of range.
    """
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        found = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {_a(value)}; it must be an integer") from None
    if found < least or (most is not None and found > most):
        allowed = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} is {found}; it must be {allowed}")
    return found


def indices(name: str, value: Any, n: int) -> list[int]:
    """Return distinct indices in order.

    Args:
        name: What they count, such as ``"shots"``.
        value: A sequence of integers, or a tensor or array of one axis.
        n: How many there are.

    Returns:
        The indices, sorted.

    Raises:
        TypeError: If they are no integers in a sequence.
        ValueError: If there is none, one repeats, or one is not from 0 to n − 1.
    """
    given = value.tolist() if isinstance(value, (Tensor, np.ndarray)) else value
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise TypeError(
            f"{name} are {_a(value)}; give a sequence of indices, such as [0, 2]"
        )
    given = list(given)
    for index in given:
        if isinstance(index, (bool, np.bool_)) or not hasattr(index, "__index__"):
            raise TypeError(
                f"{name} are {given}; {index!r} is no index: give integers from 0 to "
                f"{n - 1}"
            )
    taken = sorted(operator.index(i) for i in given)
    if not taken or len(set(taken)) < len(taken):
        raise ValueError(f"{name} are {given}; give each index once, at least one")
    if taken[0] < 0 or taken[-1] >= n:
        raise ValueError(f"{name} are {given}; the survey has {name} 0 to {n - 1}")
    return taken


def instance(name: str, value: Any, kind: type | tuple[type, ...], hint: str) -> None:
    """Raise TypeError unless a value is an instance of a class; the hint says of what."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {_a(value)}; it must be {hint}")


def text(name: str, value: Any) -> str:
    """Return a string, or raise TypeError."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is {_a(value)}; it must be a string")
    return value


def flag(name: str, value: Any) -> bool:
    """Return a Boolean, or raise TypeError."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is {_a(value)}; it must be True or False")
    return bool(value)


def path(name: str, value: Any) -> None:
    """Raise TypeError unless a value is a path."""
    if not isinstance(value, (str, os.PathLike)) or isinstance(value, bytes):
        raise TypeError(f"{name} is {_a(value)}; it must be a string or a Path")


def lengths(name: str, value: Any) -> tuple[int, ...]:
    """Return the lengths of axes, each at least 1.

    Args:
        name: Of the argument, for errors.
        value: A sequence of integers.

    Returns:
        The lengths.

    Raises:
        TypeError: If it is no sequence of integers.
        ValueError: If one is less than 1.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(
            f"{name} is {_a(value)}; give a tuple with a length for each axis"
        )
    return tuple(whole(f"an axis of {name}={tuple(value)}", n, 1) for n in value)


def _a(value: object) -> str:
    told = kind_of(value)
    if value is None:
        return told
    return f"{'an' if told[0] in 'aeiou' else 'a'} {told}"
