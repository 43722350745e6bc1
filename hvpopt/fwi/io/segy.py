"""SEG-Y by segyio, an optional extra: models and gathers as arrays."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from hvpopt import checks
from hvpopt.fwi.io.gathers import Array, Gathers, as_array

ByteOrder: TypeAlias = "Literal['little', 'big'] | None"

# SEG-Y rev 1 stores coordinates as integers with a power of ten beside them.
_SCALARS = (1000, 100, 10, 1)
_FEET = 0.3048


def _segyio() -> Any:
    try:
        # by name: segyio ships no types
        return importlib.import_module("segyio")
    except ImportError as error:
        raise ImportError(
            "SEG-Y needs segyio, which could not be imported; install it with: "
            'pip install "hvpopt[segy]"'
        ) from error


@contextmanager
def _segy(path: Path, byte_order: ByteOrder) -> Iterator[Any]:
    checks.optional(checks.choice, "byte_order", byte_order, ("little", "big"))
    segyio = _segyio()
    try:
        file = segyio.open(str(path), ignore_geometry=True, endian=byte_order or "big")
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as SEG-Y: {error}; check the file, and "
            f"byte_order={byte_order or 'big'!r}"
        ) from error
    with file:
        yield file


def _field(file: Any, name: str) -> Array:
    fields = _segyio().TraceField
    if not hasattr(fields, name):
        raise ValueError(
            f"{name!r} is no SEG-Y trace header; use segyio's name of one, such as "
            "'FieldRecord', 'EnergySourcePoint' or 'SourceX'"
        )
    values: Array = file.attributes(getattr(fields, name))[:]
    return values


def read_segy_model(path: Path, byte_order: ByteOrder, *, flat: bool) -> Array:
    """Return ``[depth, trace]``, or ``[depth, inline, crossline]`` of a cube."""
    with _segy(path, byte_order) as file:
        traces: Array = file.trace.raw[:]
        lines, i = np.unique(_field(file, "INLINE_3D"), return_inverse=True)
        crosslines, j = np.unique(_field(file, "CROSSLINE_3D"), return_inverse=True)
    if flat or len(lines) == 1 or len(crosslines) == 1:
        section: Array = traces.T
        return section
    grid = (len(lines), len(crosslines))
    if not len(traces) == len(np.unique(i * grid[1] + j)) == math.prod(grid):
        raise ValueError(
            f"{path} has {len(traces)} traces, which do not fill its {grid[0]} inlines × "
            f"{grid[1]} crosslines once each; pass shape=({traces.shape[1]}, "
            f"{len(traces)}) to read them as one section"
        )
    cube = np.empty((*grid, traces.shape[1]), traces.dtype)
    cube[i, j] = traces
    by_depth: Array = np.moveaxis(cube, -1, 0)
    return by_depth


def read_segy_gathers(
    path: Path,
    dt: float | None,
    byte_order: ByteOrder,
    shot_key: str,
    dtype: torch.dtype,
    *,
    pad: bool,
) -> Gathers:
    """Return the gathers of a SEG-Y file, one shot for each value of a trace header.

    The arguments are those of ``read_gathers``.

    Raises:
        ValueError: If a trace starts after its shot, or before, or headers do not fit.
    """
    gathers, delays = read_segy_shots(path, dt, byte_order, shot_key, dtype, pad=pad)
    if delays.any():
        raise ValueError(
            f"{path} has traces that start at {float(delays[delays != 0][0]) * 1e3:g} ms "
            "(DelayRecordingTime); shift them to start at time zero, or read it with "
            "read_survey, which does"
        )
    return gathers


def read_segy_shots(
    path: Path,
    dt: float | None,
    byte_order: ByteOrder,
    shot_key: str,
    dtype: torch.dtype,
    *,
    pad: bool,
) -> tuple[Gathers, Array]:
    """Return gathers as they stand in the file, and when each trace starts.

    The start counts from the shot, ``[shot, receiver]``, seconds; zero for padding. The
    arguments are those of ``read_gathers``.

    Raises:
        ValueError: If headers do not fit.
    """
    with _segy(path, byte_order) as file:
        keys = _field(file, shot_key)
        traces: Array = file.trace.raw[:]
        sources, receivers = _positions(path, file)
        dt = _segy_dt(path, file) if dt is None else dt
        delays = _scaled(file, "DelayRecordingTime", "ScalarTraceHeader") / 1e3
    names, first, shot = np.unique(keys, return_index=True, return_inverse=True)
    # shots in the file's order, whatever their numbers
    rank = np.argsort(np.argsort(first))
    names, first, shot = names[np.argsort(first)], np.sort(first), rank[shot]
    counts = np.bincount(shot)
    most = int(counts.max())
    if int(counts.min()) < most and not pad:
        few = names[counts < most]
        raise ValueError(
            f"{path} has {int(counts.min())} to {most} receivers per shot: {len(few)} of "
            f"{len(names)} shots have fewer than {most} ({shot_key} "
            f"{', '.join(map(str, few[:5]))}{', …' if len(few) > 5 else ''}); pass "
            "pad=True to fill them with dead traces, or another shot_key"
        )
    moved = (sources != sources[first][shot]).any(1)
    if moved.any():
        raise ValueError(
            f"{path} has several source positions within one shot, first in {shot_key} "
            f"{keys[moved][0]}; pass the trace header that tells the shots apart, as "
            "shot_key='EnergySourcePoint' or 'SourceX'"
        )
    in_order = np.argsort(shot, kind="stable")
    slot = np.empty_like(shot)
    slot[in_order] = np.arange(shot.size) - np.repeat(np.cumsum(counts) - counts, counts)
    data = np.zeros((len(names), most, traces.shape[1]), traces.dtype)
    where = np.full((len(names), most, 3), np.nan)
    live = np.zeros((len(names), most), bool)
    data[shot, slot], where[shot, slot], live[shot, slot] = traces, receivers, True
    starts = np.zeros(live.shape)
    starts[shot, slot] = delays
    located = bool(sources.any() or receivers.any())
    gathers = Gathers(
        torch.tensor(data, dtype=dtype),
        dt,
        torch.from_numpy(sources[first]) if located else None,
        torch.from_numpy(where) if located else None,
        None if live.all() else torch.from_numpy(live),
    )
    return gathers, starts


def read_segy_traces(path: Path, byte_order: ByteOrder) -> tuple[Array, float]:
    """Return the traces of a file ``[trace, time]``, and their interval in seconds."""
    with _segy(path, byte_order) as file:
        traces: Array = file.trace.raw[:]
        return traces, _segy_dt(path, file)


@dataclass(frozen=True, eq=False)
class SegyHeaders:
    """What the headers of a SEG-Y file say.

    Attributes:
        n_traces: Number of traces.
        n_samples: Of each trace.
        format: Code of the samples' number format.
        revision: Of the standard, as ``"1.0"``; ``"0"`` where the file says none.
        feet: True if lengths are in feet.
        dt: Sampling interval, seconds, or why it is not known.
        positions: Of sources and receivers, each ``[trace, 3]``, metres, or why they are
            not known.
        starts: When each trace starts after the shot, seconds.
        keys: Headers that may tell shots apart, by segyio's name.
    """

    n_traces: int
    n_samples: int
    format: int
    revision: str
    feet: bool
    dt: float | str
    positions: tuple[Array, Array] | str
    starts: Array
    keys: dict[str, Array]


def read_segy_headers(
    path: Path, byte_order: ByteOrder, keys: Sequence[str]
) -> SegyHeaders:
    """Return what the headers of a file say.

    Args:
        path: Of the file.
        byte_order: Of the file. Default big-endian.
        keys: Trace headers to return, by segyio's name.

    Raises:
        ValueError: If it cannot be read, or there is no such header.
    """
    with _segy(path, byte_order) as file:
        bins = _segyio().BinField
        try:
            dt: float | str = _segy_dt(path, file)
        except ValueError as error:
            dt = str(error)
        try:
            positions: tuple[Array, Array] | str = _positions(path, file)
        except ValueError as error:
            positions = str(error)
        revision = int(file.bin[bins.SEGYRevision])
        return SegyHeaders(
            file.tracecount,
            len(file.samples),
            int(file.bin[bins.Format]),
            f"{revision}.{int(file.bin[bins.SEGYRevisionMinor])}" if revision else "0",
            _in_feet(file),
            dt,
            positions,
            _scaled(file, "DelayRecordingTime", "ScalarTraceHeader") / 1e3,
            {key: _field(file, key) for key in keys},
        )


def segy_blocks(path: Path, byte_order: ByteOrder, traces: int) -> Iterator[Array]:
    """Yield the samples of a file, some traces at a time.

    Args:
        path: Of the file.
        byte_order: Of the file. Default big-endian.
        traces: At most so many at a time.

    Yields:
        ``[trace, time]``.
    """
    with _segy(path, byte_order) as file:
        for first in range(0, file.tracecount, traces):
            yield file.trace.raw[first : first + traces]


def _in_feet(file: Any) -> bool:
    return int(file.bin[_segyio().BinField.MeasurementSystem]) == 2


def _segy_dt(path: Path, file: Any) -> float:
    headers = _field(file, "TRACE_SAMPLE_INTERVAL")
    # rev 2 reads the two bytes as unsigned
    found = {int(file.bin[_segyio().BinField.Interval]) & 0xFFFF}
    found = (found | {int(i) & 0xFFFF for i in np.unique(headers)}) - {0}
    if len(found) != 1:
        raise ValueError(
            f"{path} has sampling intervals {sorted(found) or 'of zero'} µs in its "
            "headers; pass the right one as dt=..., in seconds"
        )
    return found.pop() / 1e6


def _scaled(file: Any, name: str, scalar: str) -> Array:
    """Return a header of every trace, times or divided by another."""
    values = _field(file, name).astype(np.float64)
    factor = _field(file, scalar).astype(np.float64)
    size = np.maximum(np.abs(factor), 1.0)  # zero means one
    scaled: Array = np.where(factor < 0, values / size, values * size)
    return scaled


def _positions(path: Path, file: Any) -> tuple[Array, Array]:
    """Return source and receiver positions of every trace ``[trace, 3]``, metres."""
    kinds = set(np.unique(_field(file, "CoordinateUnits")).tolist())
    if kinds - {0, 1}:
        raise ValueError(
            f"{path} has positions in degrees or seconds of arc (CoordinateUnits "
            f"{sorted(kinds)}); project them to metres first"
        )
    feet = _in_feet(file)

    def metres(name: str, scalar: str, sign: int = 1) -> Array:
        scaled = sign * _scaled(file, name, scalar)
        return scaled * _FEET if feet else scaled

    depth = metres("SourceDepth", "ElevationScalar")
    surface = metres("SourceSurfaceElevation", "ElevationScalar")
    sources = [depth - surface] + [
        metres(n, "SourceGroupScalar") for n in ("SourceY", "SourceX")
    ]
    receivers = [metres("ReceiverGroupElevation", "ElevationScalar", -1)]
    receivers += [metres(n, "SourceGroupScalar") for n in ("GroupY", "GroupX")]
    # adding zero turns −0 to 0
    return np.stack(sources, 1) + 0.0, np.stack(receivers, 1) + 0.0


def gather_headers(gathers: Gathers, live: Array) -> list[dict[str, int]]:
    """Return the trace headers of gathers, one dict for each live trace."""
    if gathers.sources is None or gathers.receivers is None:
        raise ValueError(
            "SEG-Y gathers need positions; give Gathers sources and receivers, (z, y, x) "
            "in metres, or write .npy"
        )
    sources, receivers = as_array(gathers.sources), as_array(gathers.receivers)
    if not (np.isfinite(sources).all() and np.isfinite(receivers[live]).all()):
        raise ValueError("positions hold NaN or infinite values; give them in metres")
    reach = max(np.abs(sources).max(), np.abs(receivers[live]).max())
    scales = [s for s in _SCALARS if reach * s < 2**31 - 1]
    if not scales:
        raise ValueError(f"positions reach {reach:g} m, beyond SEG-Y's 4-byte integers")

    def whole(metres: Any) -> int:
        return round(float(metres) * scales[0])

    return [
        {
            "FieldRecord": int(s) + 1,
            "EnergySourcePoint": int(s) + 1,
            "TraceNumber": int(r) + 1,
            "SourceGroupScalar": -scales[0],
            "ElevationScalar": -scales[0],
            "CoordinateUnits": 1,
            "SourceDepth": whole(sources[s, 0]),
            "SourceY": whole(sources[s, 1]),
            "SourceX": whole(sources[s, 2]),
            "ReceiverGroupElevation": -whole(receivers[s, r, 0]),
            "GroupY": whole(receivers[s, r, 1]),
            "GroupX": whole(receivers[s, r, 2]),
        }
        for s, r in np.argwhere(live)
    ]


def write_segy(
    path: Path,
    traces: Array,
    headers: list[dict[str, int]],
    interval: int,
    file_dtype: str | None,
    byte_order: ByteOrder,
) -> None:
    """Write traces ``[trace, time]`` with their headers; interval in microseconds."""
    if file_dtype not in (None, "float32"):
        raise ValueError(f"file_dtype is {file_dtype!r}; SEG-Y is written in 'float32'")
    segyio = _segyio()
    spec = segyio.spec()
    spec.format = 5  # IEEE floats
    spec.samples = np.arange(traces.shape[1]) * interval / 1e3
    spec.tracecount = len(traces)
    spec.endian = byte_order or "big"
    with segyio.create(str(path), spec) as file:
        file.bin.update(hdt=interval, dto=interval, mfeet=1)
        common = {"TRACE_SEQUENCE_FILE": 0, "TraceIdentificationCode": 1}
        common["TRACE_SAMPLE_INTERVAL"] = interval
        for i, (trace, header) in enumerate(zip(traces, headers, strict=True)):
            own = {**common, **header, "TRACE_SEQUENCE_FILE": i + 1}
            file.header[i] = {getattr(segyio.TraceField, n): v for n, v in own.items()}
            file.trace[i] = np.ascontiguousarray(trace, dtype=np.float32)
