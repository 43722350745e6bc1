"""Checks of a caller's arguments by type and range.

Each function takes the name of an option and its value, and returns the value in plain
Python. It raises TypeError for a value of the wrong type and ValueError for one out of
range; the message states what is wrong, the value, and what to do.

A number may be a Python number, a NumPy scalar, or a tensor or array without dimensions.
Booleans, strings and NaN are rejected. A float without a fraction is accepted as a whole
number, since ``1e3`` and many results of NumPy are floats; 2.5 is not.
"""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
import os
import re
from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")
P = ParamSpec("P")

#: Longest ``repr`` of a value that a message shows, in characters.
SHOWN = 60
#: Seeds that ``torch.Generator.manual_seed`` takes.
SEEDS = (-(2**63), 2**64 - 1)


def shown(value: object) -> str:
    """Return a description of a value for a message."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Tensor):
        return f"a Tensor of shape {tuple(value.shape)} and dtype {value.dtype}"
    if isinstance(value, np.ndarray):
        return f"a ndarray of shape {value.shape} and dtype {value.dtype}"
    if isinstance(value, (list, tuple, dict, set)) or callable(value):
        return f"a {type(value).__name__}"
    text = repr(value)
    if len(text) > SHOWN or " at 0x" in text:
        return f"a {type(value).__name__}"
    return text


def kind(value: object) -> str:
    """Return a description of a value's class for a message; None is ``None``."""
    if value is None:
        return "None"
    return shown(value) if isinstance(value, type) else f"a {type(value).__name__}"


def is_number(value: object) -> bool:
    """Return True if a value has a type that ``number`` accepts."""
    return _plain(value) is not None


# -- numbers --------------------------------------------------------------------


def number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    says: str = "",
) -> float:
    """Return a real number within a range as a Python int or float."""
    # ``above`` and ``below`` are exclusive, ``least`` and ``most`` inclusive; ``below``
    # set to infinity requires a finite number. ``says`` replaces the range in the error
    # message.
    plain = _checked(name, value, above, least, below, most, says)
    # torch's scalars do not hold larger integers
    return float(plain) if abs(plain) > 2**53 else plain


def _checked(
    name: str,
    value: Any,
    above: float | None,
    least: float | None,
    below: float | None,
    most: float | None,
    says: str,
) -> int | float:
    """Return what ``number`` returns, without converting large ints to float."""
    plain = _plain(value)
    if plain is None:
        raise TypeError(f"{name} is {shown(value)}; pass a number")
    inside = (
        not math.isnan(plain)
        and (above is None or plain > above)
        and (least is None or plain >= least)
        and (below is None or plain < below)
        and (most is None or plain <= most)
        and (below != math.inf or plain != -math.inf)
    )
    if not inside:
        says = says or _range(above, least, below, most)
        raise ValueError(f"{name} is {plain}; {says}")
    return plain


def fraction(name: str, value: Any) -> float:
    """Return a relative number in the open interval (0, 1); see ``number``."""
    says = "it is relative and must lie in (0, 1)"
    return number(name, value, above=0.0, below=1.0, says=says)


def gtol(value: Any) -> float:
    """Return a relative gradient tolerance in [0, 1); see ``number``."""
    says = "it is relative and must lie in [0, 1)"
    return number("gtol", value, least=0.0, below=1.0, says=says)


def integer(
    name: str,
    value: Any,
    *,
    least: int | None = None,
    most: int | None = None,
    says: str = "",
) -> int:
    """Return a whole number from ``least`` to ``most`` as a Python int."""
    plain = _checked(name, value, None, least, None, most, says)
    if math.isinf(plain) or int(plain) != plain:
        raise ValueError(f"{name} is {plain}; it must be a whole number")
    return int(plain)


def limit(name: str, value: Any, *, least: int = 0, says: str = "") -> float:
    """Return a whole number, or infinity for no limit; see ``integer``."""
    plain = _plain(value)
    if plain == math.inf:
        return math.inf
    return integer(name, value, least=least, says=says)


def seed(name: str, value: Any, *, spare: int = 0) -> int:
    """Return a seed for torch to which the caller may add a number up to ``spare``."""
    least, most = SEEDS
    says = f"it must be a whole number from -2**63 to 2**64 - {spare + 1}"
    return integer(name, value, least=least, most=most - spare, says=says)


def pair(name: str, value: Any, *, above: float, below: float) -> tuple[float, float]:
    """Return two numbers in ascending order, both between exclusive limits."""
    if isinstance(value, np.ndarray) or (isinstance(value, Tensor) and not value.is_meta):
        value = value.tolist()
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name} is {shown(value)}; pass a pair of numbers, (low, high)")
    low, high = (number(f"an entry of {name}", entry) for entry in value)
    if not above < low <= high < below:
        raise ValueError(
            f"{name} is {(low, high)}; it must rise within ({above:g}, {below:g})"
        )
    return low, high


def per_axis(name: str, value: Any, n_axes: int) -> tuple[float, ...]:
    """Return a positive number for each axis of a grid; one number serves every axis."""
    array = isinstance(value, (Tensor, np.ndarray)) and value.ndim == 1
    several = array or isinstance(value, (tuple, list))
    entries = list(value) if several else [value] * n_axes
    if len(entries) != n_axes:
        raise ValueError(f"{name} has {len(entries)} entries for a grid of {n_axes} axes")
    return tuple(float(number(name, e, above=0.0, below=math.inf)) for e in entries)


def lengths(name: str, value: Any, *, least: int = 1) -> tuple[int, ...]:
    """Return the lengths of a grid's axes, whole numbers of at least ``least``."""
    given = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(value, Tensor):
        given = None if value.is_meta else value.tolist()
    unordered = isinstance(given, (str, bytes, Mapping, Set))
    if unordered or not isinstance(given, Iterable):
        raise TypeError(
            f"{name} is {shown(value)}; pass a tuple with a length for each axis"
        )
    return tuple(integer(f"an entry of {name}", entry, least=least) for entry in given)


def flag(name: str, value: Any) -> bool:
    """Return True or False; 0 and 1 are accepted too, the string "no" is not."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    on_meta = isinstance(value, Tensor) and value.is_meta
    if isinstance(value, (Tensor, np.ndarray)) and not value.ndim and not on_meta:
        return flag(name, value.item())
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise TypeError(f"{name} is {shown(value)}; pass True or False")


def numbers_of(name: str, value: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return real numbers as a new float64 array."""
    try:
        array = np.array(value)
    except (TypeError, ValueError, RuntimeError):
        array = np.array(None)
    if array.dtype.kind == "O":
        real = array.size > 0 and all(map(is_number, array.flat))
        if real:
            plain = [_plain(entry) for entry in array.flat]
            array = np.array(plain, dtype=np.float64).reshape(array.shape)
    else:
        real = array.dtype.kind in "iuf"
    if not real:
        raise TypeError(f"{name} is {shown(value)}; pass real numbers")
    return array.astype(np.float64)


def memory(name: str, value: Any) -> float:
    """Return a whole number of bytes, or infinity for no limit."""
    # A string such as "2GB" (10⁹ bytes each) or "512 MiB" (2²⁰) is accepted too.
    if not isinstance(value, str):
        size = number(name, value, least=1.0)
        return size if size == math.inf else int(size)
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?)\s*([kmgt]?)(i?)b?\s*", value.lower())
    if match is None or not float(match[1]):
        raise ValueError(
            f"{name} is {shown(value)}; give a size such as '2GB', '512MiB' or bytes"
        )
    digits, unit, binary = match.groups()
    return int(float(digits) * (1024 if binary else 1000) ** " kmgt".index(unit or " "))


# -- strings, functions and objects ---------------------------------------------


def choice(name: str, value: Any, names: Iterable[str]) -> str:
    """Return a string that is one of ``names``."""
    known = tuple(names)
    if isinstance(value, str) and value in known:
        return value
    allowed = " or ".join(map(repr, known)) if len(known) < 3 else f"one of {known}"
    error = ValueError if isinstance(value, str) else TypeError
    raise error(f"{name} is {shown(value)}; it must be {allowed}")


def text(name: str, value: Any) -> str:
    """Return a string."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is {shown(value)}; pass a text")
    return value


def path(name: str, value: Any) -> Path:
    """Return a path of a file or folder, which need not exist."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} is {shown(value)}; pass a string or a pathlib.Path")
    return Path(value)


def function(name: str, value: Any, use: str = "pass a function") -> Any:
    """Return a callable that is not a class; ``use`` says in the message what to do."""
    if isinstance(value, type):
        raise TypeError(f"{name} is {kind(value)}; {use}, or an instance")
    if not callable(value):
        raise TypeError(f"{name} is {kind(value)}, which cannot be called; {use}")
    return value


def instance(name: str, value: Any, wanted: Callable[..., T], use: str) -> T:
    """Return an instance of ``wanted``; ``use`` says in the message what to do."""
    if not isinstance(value, cast("type[T]", wanted)):
        raise TypeError(f"{name} is {kind(value)}; {use}")
    return value


def having(name: str, value: Any, method: str, use: str) -> Any:
    """Return an object with a given method, neither a class nor a tensor."""
    if isinstance(value, (type, Tensor)) or not callable(getattr(value, method, None)):
        raise TypeError(f"{name} is {kind(value)}; {use}")
    return value


def optional(
    check: Callable[Concatenate[str, Any, P], T],
    name: str,
    value: Any,
    *args: P.args,
    **options: P.kwargs,
) -> T | None:
    """Apply a check of this module, unless the value is None."""
    return None if value is None else check(name, value, *args, **options)


def put(owner: object, **values: Any) -> None:
    """Set attributes of a frozen dataclass, from its ``__post_init__``."""
    for name, value in values.items():
        object.__setattr__(owner, name, value)


# -- tensors --------------------------------------------------------------------


def tensor(name: str, value: Any, shape: tuple[int, ...] | None = None) -> Tensor:
    """Return a real floating-point tensor, of a required shape if one is given."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is {shown(value)}; wrap it with torch.as_tensor")
    if not value.is_floating_point():
        raise TypeError(f"{name} has dtype {value.dtype}; it must be real and floating")
    if shape is not None and value.shape != shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {shape}")
    if value.is_meta:
        raise ValueError(f"{name} is on the meta device and holds no numbers")
    return value


def floating(name: str, value: Any) -> torch.dtype:
    """Return a real floating-point dtype."""
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise TypeError(
            f"{name} is {shown(value)}; pass torch.float64, torch.float32 or another "
            "real floating-point dtype"
        )
    return value


def no_option(
    function: Callable[..., Any], unknown: Mapping[str, object], meant: Mapping[str, str]
) -> None:
    """Raise TypeError for options that a function does not have."""
    # ``meant`` says what serves for options of other libraries, by their names.
    for name in unknown:
        own = [p for p in inspect.signature(function).parameters if p != "unknown"]
        close = difflib.get_close_matches(name, own, 1, 0.75)
        instead = f"use {close[0]}=" if close else f"it has {', '.join(own)}"
        raise TypeError(
            f"{function.__name__} has no option {name!r}; {meant.get(name, instead)}"
        )


def device(value: Any) -> torch.device:
    """Return a device with its index, as tensors report it: ``cuda`` is ``cuda:0``."""
    if not isinstance(value, (str, torch.device)):
        raise TypeError(f"device is {shown(value)}; pass 'cpu', 'cuda' or a torch.device")
    try:
        return torch.empty(0, device=value).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device is {str(value)!r}, not to be had: {reason}") from error


# -- helpers --------------------------------------------------------------------


def _plain(value: Any) -> int | float | None:
    """Return a value as a Python number, or None if it is not a number."""
    if isinstance(value, Tensor):
        if value.ndim or value.is_meta:
            return None
        value = value.item()
    elif isinstance(value, np.ndarray):
        if value.ndim:
            return None
        value = value.item()
    if isinstance(value, (bool, np.bool_)):
        return None
    if not isinstance(value, (int, np.integer, numbers.Real)):
        return None
    try:
        plain = float(value)
    except OverflowError:
        return math.inf if cast("int", value) > 0 else -math.inf
    return int(value) if isinstance(value, (int, np.integer)) else plain


def _range(
    above: float | None, least: float | None, below: float | None, most: float | None
) -> str:
    """Return a description of a range for a message."""
    bounded = most is not None or (below is not None and below < math.inf)
    low = above if above is not None else least
    if low is not None and bounded:
        left, right = "[" if above is None else "(", "]" if below is None else ")"
        return (
            f"it must lie in {left}{low:g}, {most if below is None else below:g}{right}"
        )
    if low is None:
        if bounded:
            return f"it must be {'below' if most is None else 'at most'} " + (
                f"{below if most is None else most:g}"
            )
        return "it must be finite" if below == math.inf else "it must not be NaN"
    words = "above" if above is not None else "at least"
    text = f"it must be {words} {low:g}"
    if low == 0.0:
        text = f"it must be {'positive' if above is not None else 'zero or positive'}"
    return text + (" and finite" if below == math.inf else "")
