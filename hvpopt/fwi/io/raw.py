"""Arrays in files: NumPy's ``.npy`` and bare numbers in ``.bin``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from hvpopt.fwi.io.gathers import Array

ByteOrder: TypeAlias = "Literal['little', 'big'] | None"
Order: TypeAlias = "Literal['C', 'F']"

FORMATS = {".npy": "npy", ".bin": "bin", ".sgy": "segy", ".segy": "segy"}


def read_array(
    path: Path,
    shape: Sequence[int] | None,
    file_dtype: str,
    order: Order,
    byte_order: ByteOrder,
) -> Array:
    """Return the real numbers of a ``.npy`` or ``.bin`` file."""
    if format_of(path) == "npy":
        try:
            array: Array = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(
                f"{path} is no .npy file of plain numbers: {error}"
            ) from error
    else:
        array = _read_raw(path, shape, _raw_dtype(file_dtype, byte_order), order)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{path} holds {array.dtype}, not real numbers; convert it first")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _read_raw(
    path: Path, shape: Sequence[int] | None, stored: np.dtype[Any], order: Order
) -> Array:
    if shape is None:
        raise ValueError(f"{path} does not hold its shape; pass shape=(...)")
    cells, found = math.prod(shape), path.stat().st_size
    if found != cells * stored.itemsize:
        names = ("float32", "float64")
        fits = [n for n in names if cells * np.dtype(n).itemsize == found]
        raise ValueError(
            f"{path} has {found:,} bytes; shape {tuple(shape)} of {stored.name} takes "
            f"{cells * stored.itemsize:,}; "
            + (f"pass file_dtype={fits[0]!r}" if fits else "check shape and file_dtype")
        )
    return np.fromfile(path, stored).reshape(tuple(shape), order=_order(order))


def write_array(
    path: Path, array: Array, file_dtype: str | None, order: Order, byte_order: ByteOrder
) -> None:
    """Write real numbers as ``.npy`` or ``.bin``."""
    stored = _raw_dtype(file_dtype or array.dtype.name, byte_order)
    if stored.name not in ("float32", "float64"):
        # others would cut digits or overflow without a word
        raise ValueError(f"file_dtype is {stored.name!r}; write 'float32' or 'float64'")
    with path.open("wb") as file:
        if format_of(path) == "npy":
            np.save(file, array.astype(stored.newbyteorder("=")), allow_pickle=False)
        else:
            file.write(array.astype(stored).tobytes(order=_order(order)))


def _raw_dtype(name: str, byte_order: ByteOrder) -> np.dtype[Any]:
    if not isinstance(name, str):
        raise TypeError(f"file_dtype is {name!r}; it must be a name such as 'float32'")
    if byte_order not in (None, "little", "big"):
        raise ValueError(f"byte_order is {byte_order!r}; it must be 'little' or 'big'")
    try:
        stored = np.dtype(name)
    except TypeError as error:
        raise ValueError(f"file_dtype is {name!r}: {error}") from error
    if stored.kind not in "fiu":
        raise ValueError(f"file_dtype is {name!r}; it must be real, such as 'float32'")
    ordered: np.dtype[Any] = stored.newbyteorder(">" if byte_order == "big" else "<")
    return ordered


def _order(order: Order) -> Order:
    if order not in ("C", "F"):
        raise ValueError(f"order is {order!r}; it must be 'C' or 'F'")
    return order


def format_of(path: Path) -> str:
    """Return which format a path's suffix names, or raise ValueError."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(
            f"{path} has the suffix {path.suffix!r}; known are {', '.join(FORMATS)}"
        )
    return FORMATS[path.suffix.lower()]
