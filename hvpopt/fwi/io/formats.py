"""Models and shot gathers, in and out: ``.npy``, raw ``.bin``, SEG-Y.

Everything is in SI units once read: m/s, kg/m³, metres, seconds. What a file does not
say (shape, sampling, units) the caller says, and what does not fit is an error. Models
are ``[depth, distance]`` or ``[depth, y, x]``, gathers ``[shot, receiver, time]``. Raw
files, bare numbers without a header, take them in either order: with ``order="C"`` the
last axis runs fastest in the file, with ``order="F"`` the first one does (depth, or
shot); ``shape`` always is the shape in memory. SEG-Y is revision 1 in 4-byte floats. No
file is written over unless ``overwrite=True``, and then only once the new one is
complete.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.fwi.io.gathers import Array, Gathers, as_array, check_dt, existing_file
from hvpopt.fwi.io.segy import read_segy_gathers, read_segy_model
from hvpopt.fwi.io.segy_headers import ByteOrder
from hvpopt.fwi.io.segy_write import gather_headers, write_segy

PathLike: TypeAlias = "str | os.PathLike[str]"
Order: TypeAlias = "Literal['C', 'F']"

#: Numbers of axes, and what they are.
MODEL = (1, 2, 3), "a model: [depth, distance] or so"
GATHERS = (3,), "gathers: [shot, receiver, time]"
FORMATS = {".npy": "npy", ".bin": "bin", ".sgy": "segy", ".segy": "segy"}


class _Unit(NamedTuple):
    factor: float  # to SI
    low: float  # the largest value of a plausible model lies between these, in SI
    high: float
    other: str  # the unit to suggest when it does not
    si: str


UNITS = {
    "m/s": _Unit(1.0, 50.0, 2e4, "km/s", "m/s"),
    "km/s": _Unit(1e3, 50.0, 2e4, "m/s", "m/s"),
    "kg/m3": _Unit(1.0, 50.0, 3e4, "g/cm3", "kg/m3"),
    "g/cm3": _Unit(1e3, 50.0, 3e4, "kg/m3", "kg/m3"),
}


def read_model(
    path: PathLike,
    *,
    units: Literal["m/s", "km/s", "kg/m3", "g/cm3"] | None = "m/s",
    shape: Sequence[int] | None = None,
    file_dtype: str = "float32",
    order: Order = "C",
    byte_order: ByteOrder = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Read a model.

    Args:
        path: Ends in ``.npy``, ``.bin``, ``.sgy`` or ``.segy``.
        units: Of the file. Converted to m/s or kg/m³, and checked for being plausible
            and not negative. None for any other quantity: as it is, unchecked.
        shape: ``[depth, distance]`` or ``[depth, y, x]``. Needed for raw files; checked
            for the others. Two axes read a SEG-Y cube as one section, trace by trace.
        file_dtype: Number type of a raw file, by its NumPy name.
        order: Which axis of a raw file runs fastest: the last (``"C"``) or depth
            (``"F"``, as in seismic traces).
        byte_order: Of a raw file (default little-endian) or SEG-Y (default big-endian).
        dtype: Of the result.

    Returns:
        The model in SI units, on the CPU. SEG-Y traces lie along distance; they make
        ``[depth, inline, crossline]`` where both line numbers vary.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: For SEG-Y without segyio.
        TypeError: If the file does not hold real numbers.
        ValueError: If suffix, bytes, shape, units or values do not fit.
    """
    file, shape = _existing(path, shape, dtype)
    factor = _factor(units)
    if _format_of(file) == "segy":
        array = read_segy_model(
            file, byte_order, flat=shape is not None and len(shape) < 3
        )
    else:
        array = _read_array(file, shape, file_dtype, order, byte_order)
    _check_shape(file, array, shape, MODEL)
    if units is not None:
        _check_units(file, array, units)
    if factor != 1:
        array = array.astype(np.float64) * factor
    return torch.tensor(array, dtype=dtype)


def write_model(
    path: PathLike,
    model: Tensor,
    *,
    units: Literal["m/s", "km/s", "kg/m3", "g/cm3"] | None = "m/s",
    file_dtype: str | None = None,
    order: Order = "C",
    byte_order: ByteOrder = None,
    overwrite: bool = False,
) -> None:
    """Write a model, so that ``read_model`` with the same options gives it back.

    Args:
        path: Ends in ``.npy``, ``.bin``, ``.sgy`` or ``.segy``.
        model: ``[depth, distance]`` or ``[depth, y, x]``, in SI units.
        units: To store it in.
        file_dtype: Number type to store. Default the model's own; always float32 in
            SEG-Y, which does not store the grid spacing either.
        order: As in ``read_model``.
        byte_order: As in ``read_model``.
        overwrite: Replace an existing file.

    Raises:
        FileExistsError: If the file exists and ``overwrite`` is False.
        FileNotFoundError: If there is no such folder.
        ImportError: For SEG-Y without segyio.
        TypeError: If a tensor is not floating-point.
        ValueError: If suffix, units or values do not fit.
    """
    path = checks.path("path", path)
    array = as_array(model)
    factor = _factor(units)
    _check_shape("the model", array, None, MODEL)
    if factor != 1:
        array = (array.astype(np.float64) / factor).astype(array.dtype)
    if units is not None:
        _check_units("the model", array, units, writing=True)
    with _replacing(path, overwrite=overwrite) as file:
        if _format_of(Path(path)) != "segy":
            _write_array(file, array, file_dtype, order, byte_order)
            return
        lines = array.shape[-1]
        traces = np.moveaxis(array, 0, -1).reshape(-1, array.shape[0])
        headers: list[dict[str, int]] = [
            {"CDP": i + 1, "INLINE_3D": i // lines + 1, "CROSSLINE_3D": i % lines + 1}
            for i in range(len(traces))
        ]
        write_segy(file, traces, headers, 1000, file_dtype, byte_order)


def read_gathers(
    path: PathLike,
    *,
    dt: float | None = None,
    shape: Sequence[int] | None = None,
    file_dtype: str = "float32",
    order: Order = "C",
    byte_order: ByteOrder = None,
    shot_key: str = "FieldRecord",
    pad: bool = False,
    component: str | int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Gathers:
    """Read shot gathers.

    Args:
        path: Ends in ``.npy``, ``.bin``, ``.sgy`` or ``.segy``.
        dt: Sampling interval, seconds. Needed for ``.npy`` and raw files; takes the
            place of SEG-Y's own where given.
        shape: ``[shot, receiver, time]``. Needed for raw files; checked for the others.
        file_dtype: Number type of a raw file, by its NumPy name.
        order: Which axis of a raw file runs fastest: time (``"C"``) or shot (``"F"``).
        byte_order: Of a raw file (default little-endian) or SEG-Y (default big-endian).
        shot_key: SEG-Y trace header, by segyio's name, that tells the shots apart.
            Shots and receivers keep the file's order.
        pad: Fill shots of fewer receivers with dead traces, instead of an error.
        component: Sensor of a SEG-Y file, by name or code, as in ``read_survey``; needed
            where traces are of several.
        dtype: Of the samples.

    Returns:
        The gathers; positions from SEG-Y alone, their scalars applied, in metres. Of
        SEG-Y, traces whose TraceIdentificationCode says that they are not seismic data
        are left out; samples are zero of those it marks as dead, and after the end of
        those that are shorter than the others (TRACE_SAMPLE_COUNT). A source's position
        is the mean of its traces', which may differ by two units of the headers (by one
        of more than five centimetres, at most by a metre).

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: For SEG-Y without segyio.
        TypeError: If the file does not hold real numbers.
        ValueError: If suffix, bytes, shape, sampling, headers or values do not fit.
    """
    file, shape = _existing(path, shape, dtype)
    dt = checks.optional(check_dt, "dt", dt)
    shot_key = checks.text("shot_key", shot_key)
    pad = checks.flag("pad", pad)
    if _format_of(file) == "segy":
        gathers = read_segy_gathers(
            file, dt, byte_order, shot_key, dtype, pad=pad, component=component
        )
        _check_shape(file, gathers.data.numpy(), shape, GATHERS)
        return gathers
    array = _read_array(file, shape, file_dtype, order, byte_order)
    _check_shape(file, array, shape, GATHERS)
    if dt is None:
        raise ValueError(f"{file} does not hold its sampling; pass dt=..., in seconds")
    return Gathers(torch.tensor(array, dtype=dtype), dt)


def write_gathers(
    path: PathLike,
    gathers: Gathers,
    *,
    file_dtype: str | None = None,
    order: Order = "C",
    byte_order: ByteOrder = None,
    overwrite: bool = False,
) -> None:
    """Write shot gathers, so that ``read_gathers`` gives them back.

    Args:
        path: Ends in ``.npy``, ``.bin``, ``.sgy`` or ``.segy``. Only SEG-Y holds the
            sampling (whole microseconds) and positions (rounded to a millimetre, or
            as far as its 4-byte integers reach).
        gathers: What to write; padded traces are left out of SEG-Y.
        file_dtype: Number type to store. Default the data's own; always float32 in
            SEG-Y.
        order: As in ``read_gathers``.
        byte_order: As in ``read_gathers``.
        overwrite: Replace an existing file.

    Raises:
        FileExistsError: If the file exists and ``overwrite`` is False.
        FileNotFoundError: If there is no such folder.
        ImportError: For SEG-Y without segyio.
        TypeError: If a tensor is not floating-point.
        ValueError: If suffix, sampling, positions or values do not fit.
    """
    path = checks.path("path", path)
    use = "pass hvpopt.fwi.Gathers: Gathers(data, dt)"
    checks.instance("gathers", gathers, Gathers, use)
    array = as_array(gathers.data)
    _check_shape("the data", array, None, GATHERS)
    with _replacing(path, overwrite=overwrite) as file:
        if _format_of(Path(path)) != "segy":
            _write_array(file, array, file_dtype, order, byte_order)
            return
        interval = round(gathers.dt * 1e6)
        if abs(interval - gathers.dt * 1e6) > 1e-3 or not 1 <= interval <= 32767:
            raise ValueError(
                f"dt={gathers.dt:g} s is not a whole number of microseconds from 1 to "
                "32767, which is all that SEG-Y holds; resample, or write .npy"
            )
        live = np.ones(array.shape[:2], bool)
        if gathers.live is not None:
            live = gathers.live.cpu().numpy()
        headers = gather_headers(gathers, live)
        write_segy(file, array[live], headers, interval, file_dtype, byte_order)


# -- plain arrays -------------------------------------------------------------------


def _read_array(
    path: Path,
    shape: Sequence[int] | None,
    file_dtype: str,
    order: Order,
    byte_order: ByteOrder,
) -> Array:
    """Return the real numbers of a ``.npy`` or ``.bin`` file."""
    if _format_of(path) == "npy":
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


def _write_array(
    path: Path, array: Array, file_dtype: str | None, order: Order, byte_order: ByteOrder
) -> None:
    """Write real numbers as ``.npy`` or ``.bin``."""
    stored = _raw_dtype(file_dtype or array.dtype.name, byte_order)
    if stored.name not in ("float32", "float64"):
        # others would round or overflow with no error
        raise ValueError(f"file_dtype is {stored.name!r}; write 'float32' or 'float64'")
    with path.open("wb") as file:
        if _format_of(path) == "npy":
            np.save(file, array.astype(stored.newbyteorder("=")), allow_pickle=False)
        else:
            file.write(array.astype(stored).tobytes(order=_order(order)))


def _raw_dtype(name: str, byte_order: ByteOrder) -> np.dtype[Any]:
    if not isinstance(name, str):
        raise TypeError(f"file_dtype is {name!r}; it must be a name such as 'float32'")
    checks.optional(checks.choice, "byte_order", byte_order, ("little", "big"))
    try:
        stored = np.dtype(name)
    except TypeError as error:
        raise ValueError(f"file_dtype is {name!r}: {error}") from error
    if stored.kind not in "fiu":
        raise ValueError(f"file_dtype is {name!r}; it must be real, such as 'float32'")
    ordered: np.dtype[Any] = stored.newbyteorder(">" if byte_order == "big" else "<")
    return ordered


def _order(order: Order) -> Order:
    checks.choice("order", order, ("C", "F"))
    return order


def _format_of(path: Path) -> str:
    """Return which format a path's suffix names, or raise ValueError."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(
            f"{path} has the suffix {path.suffix!r}; known are {', '.join(FORMATS)}"
        )
    return FORMATS[path.suffix.lower()]


# -- checks -----------------------------------------------------------------------


def _existing(
    path: PathLike, shape: Sequence[int] | None, dtype: torch.dtype
) -> tuple[Path, tuple[int, ...] | None]:
    """Return the file to read and the shape asked for, both checked as is the dtype."""
    file = checks.path("path", path)
    _format_of(file)
    existing_file(file)
    checks.floating("dtype", dtype)
    return file, None if shape is None else checks.lengths("shape", shape)


@contextmanager
def _replacing(path: PathLike, *, overwrite: bool) -> Iterator[Path]:
    """Yield a path to write to, moved to ``path`` once the block has succeeded."""
    overwrite = checks.flag("overwrite", overwrite)
    target = Path(path)
    _format_of(target)
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; pass overwrite=True to replace it")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent}; make it first")
    partial = target.with_name(f".partial-{os.getpid()}-{target.name}")
    try:
        yield partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _check_shape(
    path: object,
    array: Array,
    shape: Sequence[int] | None,
    kind: tuple[tuple[int, ...], str],
) -> None:
    """Raise unless an array has the shape asked for, the axes of its kind, no NaN."""
    if shape is not None and array.shape != tuple(shape):
        raise ValueError(f"{path} has shape {array.shape}, not shape={tuple(shape)}")
    axes, what = kind
    if array.ndim not in axes or array.size == 0:
        raise ValueError(f"{path} has shape {array.shape}, which does not fit {what}")
    finite = np.isfinite(array)
    if not finite.all():
        cell = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(
            f"{path} has {int((~finite).sum())} NaN or infinite values of {array.size}, "
            f"the first at {cell}; fill them, or check file_dtype and byte_order"
        )


def _factor(units: str | None) -> float:
    return 1.0 if units is None else UNITS[checks.choice("units", units, UNITS)].factor


def _check_units(
    path: object, array: Array, units: str, *, writing: bool = False
) -> None:
    """Raise ValueError, with the remedy, unless values are plausible in their units."""
    unit, low, high = UNITS[units], float(array.min()), float(array.max())
    if low < 0:
        raise ValueError(f"{path} has negative values, down to {low:g} {units}")
    if unit.low <= high * unit.factor <= unit.high:
        return
    other = UNITS[unit.other]
    if writing:
        own, top = UNITS[unit.si], high * unit.factor
        large = UNITS[own.other]
        says = "check its values"
        if large.low <= top * large.factor <= large.high:
            says = f"multiply it by {large.factor:g} if it is in {own.other}"
        raise ValueError(
            f"{path} has values up to {top:g}, which is not plausible: models are in "
            f"{unit.si}, and units= is the file's; {says}, or pass units=None to write "
            "it as it is"
        )
    likely = other.low <= high * other.factor <= other.high
    raise ValueError(
        f"{path} has values up to {high:g}, which is not plausible in {units}; "
        + (f"pass units={unit.other!r}" if likely else "check units and byte order")
        + ", or units=None to skip this check"
    )
