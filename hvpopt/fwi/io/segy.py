"""Models and gathers from SEG-Y, by segyio, an optional extra."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hvpopt import checks
from hvpopt.fwi.io.gathers import Array, Gathers
from hvpopt.fwi.io.segy_headers import (
    FORMATS,
    UNDECODED,
    ByteOrder,
    choose_traces,
    ends_of,
    field,
    format_code,
    in_feet,
    interval_of,
    lengths_of,
    load_segyio,
    positions_of,
    rounding_of,
    scaled,
    sources_of,
    units_of,
)


@contextmanager
def _segy(path: Path, byte_order: ByteOrder) -> Iterator[Any]:
    checks.optional(checks.choice, "byte_order", byte_order, ("little", "big"))
    segyio = load_segyio()
    _check_format(path, byte_order or "big")
    try:
        file = segyio.open(str(path), ignore_geometry=True, endian=byte_order or "big")
    except IndexError:
        # what segyio does with headers that nothing follows
        raise ValueError(f"{path} holds no traces: its headers are all of it") from None
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as SEG-Y: {error}; check the file, and "
            f"byte_order={byte_order or 'big'!r}"
        ) from error
    with file:
        if file.tracecount == 0:
            raise ValueError(f"{path} holds no traces")
        yield file


def _check_format(path: Path, byte_order: str) -> None:
    """Raise ValueError unless segyio decodes a file's number format."""
    code = format_code(path, byte_order)
    if code is None or (code in FORMATS and code not in UNDECODED):
        return
    says = "convert the file to 4-byte IEEE floats (format 5) first"
    if code in FORMATS:
        raise ValueError(
            f"{path} holds {FORMATS[code]} (format {code}), which segyio cannot decode; "
            + says
        )
    other = {"big": "little", "little": "big"}[byte_order]
    if format_code(path, other) in FORMATS:
        says = f"pass byte_order={other!r}, in which it is one"
    raise ValueError(
        f"{path} cannot be read as SEG-Y: its number format (bytes 3225 and 3226) is "
        f"{code}, byte_order={byte_order!r}, which is none that SEG-Y has; if it is "
        f"SEG-Y, {says}"
    )


def read_segy_model(path: Path, byte_order: ByteOrder, *, flat: bool) -> Array:
    """Return ``[depth, trace]``, or ``[depth, inline, crossline]`` of a cube."""
    with _segy(path, byte_order) as file:
        traces: Array = file.trace.raw[:]
        lines, i = np.unique(field(file, "INLINE_3D"), return_inverse=True)
        crosslines, j = np.unique(field(file, "CROSSLINE_3D"), return_inverse=True)
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


def read_segy_traces(path: Path, byte_order: ByteOrder) -> tuple[Array, float]:
    """Return the traces of a file ``[trace, time]``, and their interval in seconds."""
    with _segy(path, byte_order) as file:
        traces: Array = file.trace.raw[:]
        delays = scaled(file, "DelayRecordingTime", "ScalarTraceHeader")
        if delays.any():
            raise ValueError(
                f"a trace of {path} starts at {float(delays[delays != 0][0]):g} ms "
                "(DelayRecordingTime); shift it so that its first sample is at time "
                "zero, or pass its amplitudes so as an array"
            )
        return traces, interval_of(path, file)


def read_segy_gathers(
    path: Path,
    dt: float | None,
    byte_order: ByteOrder,
    shot_key: str,
    dtype: torch.dtype,
    *,
    pad: bool,
    component: str | int | None,
) -> Gathers:
    """Return the gathers of a SEG-Y file, by arguments of ``read_gathers``."""
    found = read_segy_shots(
        path, dt, byte_order, shot_key, dtype, pad=pad, component=component
    )
    if (delays := found.starts).any():
        raise ValueError(
            f"{path} has traces that start at {float(delays[delays != 0][0]) * 1e3:g} ms "
            "(DelayRecordingTime); shift them to start at time zero, or read it with "
            "read_survey, which does"
        )
    return found.gathers


@dataclass(frozen=True, eq=False)
class SegyShots:
    """Gathers as they stand in a file, and what its headers say of their traces."""

    gathers: Gathers  # zero where a trace is marked dead, or has ended
    starts: Array  # after the shot [shot, receiver], s; zero for padding and dead traces
    lengths: Array  # samples that were recorded of each trace [shot, receiver]
    told: tuple[str, ...]  # what was left out or changed, as sentences


def read_segy_shots(
    path: Path,
    dt: float | None,
    byte_order: ByteOrder,
    shot_key: str,
    dtype: torch.dtype,
    *,
    pad: bool,
    component: str | int | None = None,
    source_depth: float | None = None,
    tolerance: Sequence[float] = (0.0, 0.0, 0.0),
) -> SegyShots:
    """Return gathers and what headers say of their traces; see ``read_survey``."""
    # ``source_depth`` is of all sources, metres, in place of the headers'; ``tolerance``
    # is by how much positions (z, y, x) of one source may differ, metres, where that is
    # more than the unit of the headers
    with _segy(path, byte_order) as file:
        keys = field(file, shot_key)
        traces: Array = file.trace.raw[:]
        sources, receivers = positions_of(path, file)
        dt = interval_of(path, file) if dt is None else dt
        delays = scaled(file, "DelayRecordingTime", "ScalarTraceHeader") / 1e3
        lengths = lengths_of(file)
        codes = field(file, "TraceIdentificationCode")
        units = units_of(file)
    kept, dead, told = choose_traces(str(path), codes, component)
    located = bool(sources[kept].any() or receivers[kept].any())
    if not kept.all():
        traces = traces[kept]
    keys, sources, receivers, delays, lengths, units, dead = (
        values[kept]
        for values in (keys, sources, receivers, delays, lengths, units, dead)
    )
    traces[dead], delays[dead] = 0, 0.0
    # a header that says less than the trace holds is of another file
    stale = ends_of(traces) > lengths
    lengths[stale] = traces.shape[1]
    if stale.any():
        told.append(
            f"{int(stale.sum())} traces hold samples after the end that their headers "
            "state (TRACE_SAMPLE_COUNT): they are taken as recorded."
        )
    names, first, shot = np.unique(keys, return_index=True, return_inverse=True)
    # shots in the file's order, whatever their numbers
    rank = np.argsort(np.argsort(first))
    names, shot = names[np.argsort(first)], rank[shot]
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
    if source_depth is not None:
        sources[:, 0] = source_depth
    fired, apart = sources_of(sources, shot, dead)
    allowed = np.maximum(rounding_of(units, dead), np.array(tolerance) * (1 + 1e-6))
    if (apart > allowed).any():
        worst = int((apart / allowed).max(1).argmax())
        shown = [
            f"{by:.4g} m apart in {name} (up to {limit:.3g} m is taken for rounding)"
            for name, by, limit in zip(
                ("depth", "y", "x"), apart[worst], allowed, strict=True
            )
            if by > limit
        ]
        raise ValueError(
            f"{path} has several source positions within one shot: those of {shot_key} "
            f"{names[worst]} lie up to {' and '.join(shown)}; pass the trace header "
            "that tells the shots apart, as shot_key='EnergySourcePoint' or 'SourceX'; "
            "where they are one source, read_survey takes their mean within snap= cells, "
            "and source_depth= in place of their depths"
        )
    if apart.any():
        told.append(
            f"Source positions differ by up to {float(apart.max()):.3g} m within a shot; "
            "their mean is taken."
        )
    in_order = np.argsort(shot, kind="stable")
    slot = np.empty_like(shot)
    slot[in_order] = np.arange(shot.size) - np.repeat(np.cumsum(counts) - counts, counts)
    data = np.zeros((len(names), most, traces.shape[1]), traces.dtype)
    where = np.full((len(names), most, 3), np.nan)
    live = np.zeros((len(names), most), bool)
    data[shot, slot], where[shot, slot], live[shot, slot] = traces, receivers, True
    starts, ends = np.zeros(live.shape), np.full(live.shape, traces.shape[1])
    starts[shot, slot], ends[shot, slot] = delays, lengths
    gathers = Gathers(
        torch.tensor(data, dtype=dtype),
        dt,
        torch.from_numpy(fired) if located else None,
        torch.from_numpy(where) if located else None,
        None if live.all() else torch.from_numpy(live),
    )
    return SegyShots(gathers, starts, ends, tuple(told))


@dataclass(frozen=True, eq=False)
class SegyHeaders:
    """What the headers of a SEG-Y file say."""

    n_traces: int
    n_samples: int
    format: int  # code of the samples' number format
    revision: str  # of the standard, as "1.0"; "0" where the file says none
    feet: bool  # True if lengths are in feet
    dt: float | str  # seconds, or why it is not known
    # of sources and receivers [trace, 3], metres, or why not known
    positions: tuple[Array, Array] | str
    starts: Array  # when each trace starts after the shot, seconds
    lengths: Array  # samples that were recorded of each trace
    codes: Array  # TraceIdentificationCode of each trace
    units: Array  # of the headers' positions [trace, 3], metres
    keys: dict[str, Array]  # headers that may tell shots apart, by segyio's name


def read_segy_headers(
    path: Path, byte_order: ByteOrder, keys: Sequence[str]
) -> SegyHeaders:
    """Return what the headers of a file say; ``keys`` are by segyio's name."""
    with _segy(path, byte_order) as file:
        bins = load_segyio().BinField
        try:
            dt: float | str = interval_of(path, file)
        except ValueError as error:
            dt = str(error)
        try:
            positions: tuple[Array, Array] | str = positions_of(path, file)
        except ValueError as error:
            positions = str(error)
        revision = int(file.bin[bins.SEGYRevision])
        return SegyHeaders(
            file.tracecount,
            len(file.samples),
            int(file.bin[bins.Format]),
            f"{revision}.{int(file.bin[bins.SEGYRevisionMinor])}" if revision else "0",
            in_feet(file),
            dt,
            positions,
            scaled(file, "DelayRecordingTime", "ScalarTraceHeader") / 1e3,
            lengths_of(file),
            field(file, "TraceIdentificationCode"),
            units_of(file),
            {key: field(file, key) for key in keys},
        )


def segy_blocks(path: Path, byte_order: ByteOrder, traces: int) -> Iterator[Array]:
    """Yield the samples of a file ``[trace, time]``, at most so many traces at a time."""
    with _segy(path, byte_order) as file:
        for first in range(0, file.tracecount, traces):
            yield file.trace.raw[first : first + traces]
