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

#: Number formats of SEG-Y revision 2, by their code.
FORMATS = {
    1: "4-byte IBM floats",
    2: "4-byte integers",
    3: "2-byte integers",
    4: "4-byte fixed-point numbers",
    5: "4-byte IEEE floats",
    6: "8-byte IEEE floats",
    7: "3-byte integers",
    8: "1-byte integers",
    9: "8-byte integers",
    10: "4-byte unsigned integers",
    11: "2-byte unsigned integers",
    12: "8-byte unsigned integers",
    15: "3-byte unsigned integers",
    16: "1-byte unsigned integers",
}
#: Those of them that segyio 1.9 cannot decode: it takes them for IBM floats.
UNDECODED = (4, 7, 15)

#: What a trace is, by its TraceIdentificationCode (SEG-Y revision 1, bytes 29-30).
PLAIN, DEAD = (-1, 0, 1), 2
COMPONENTS = {
    1: "seismic",
    11: "pressure",
    12: "vertical",
    13: "crossline",
    14: "inline",
    15: "rotated vertical",
    16: "rotated transverse",
    17: "rotated radial",
}
OTHERS = {
    2: "dead",
    3: "dummy",
    4: "time break",
    5: "uphole",
    6: "sweep",
    7: "timing",
    8: "water break",
    9: "near-field gun signature",
    10: "far-field gun signature",
    18: "vibrator reaction mass",
    19: "vibrator baseplate",
    20: "vibrator estimated ground force",
    21: "vibrator reference",
    22: "time-velocity pairs",
}
#: The largest difference of one source's positions that rounding explains, metres: two
#: units of fine headers, one of coarse ones.
FINE, COARSEST = 0.1, 1.0


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


def format_code(path: Path, byte_order: str) -> int | None:
    """Return the code of a file's number format, at byte 3225; None if it is shorter."""
    with path.open("rb") as opened:
        opened.seek(3224)
        code = opened.read(2)
    return int.from_bytes(code, byte_order) if len(code) == 2 else None  # type: ignore[arg-type]


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
    component: str | int | None,
) -> Gathers:
    """Return the gathers of a SEG-Y file, one shot for each value of a trace header.

    The arguments are those of ``read_gathers``.

    Raises:
        ValueError: If a trace starts after its shot, or before, or headers do not fit.
    """
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
    """Gathers as they stand in a file, and what its headers say of their traces.

    Attributes:
        gathers: Samples are zero of traces that are marked dead, and where a trace has
            ended.
        starts: When each trace starts after the shot ``[shot, receiver]``, seconds; zero
            for padding and dead traces.
        lengths: Samples that were recorded of each trace ``[shot, receiver]``.
        told: What was left out or changed, as sentences.
    """

    gathers: Gathers
    starts: Array
    lengths: Array
    told: tuple[str, ...]


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
    """Return gathers, and what headers say of their traces.

    Args:
        path: As in ``read_gathers``, as are those not named here.
        dt: Of the samples.
        byte_order: Of the file.
        shot_key: What tells shots apart.
        dtype: Of the samples.
        pad: Fill shots of fewer receivers.
        component: As in ``read_survey``.
        source_depth: Of all sources, metres, in place of the headers'.
        tolerance: By how much positions ``(z, y, x)`` of one source may differ, metres,
            where that is more than the unit of the headers.

    Raises:
        ValueError: If headers do not fit.
    """
    with _segy(path, byte_order) as file:
        keys = _field(file, shot_key)
        traces: Array = file.trace.raw[:]
        sources, receivers = _positions(path, file)
        dt = _segy_dt(path, file) if dt is None else dt
        delays = _scaled(file, "DelayRecordingTime", "ScalarTraceHeader") / 1e3
        lengths = _lengths(file)
        codes = _field(file, "TraceIdentificationCode")
        units = _units(file)
    kept, dead, told = choose_traces(str(path), codes, component)
    located = bool(sources[kept].any() or receivers[kept].any())
    if not kept.all():
        traces = traces[kept]
    keys, sources, receivers, delays, lengths, units, dead = (
        values[kept]
        for values in (keys, sources, receivers, delays, lengths, units, dead)
    )
    traces[dead], delays[dead] = 0, 0.0
    for i in np.flatnonzero(lengths < traces.shape[1]):
        traces[i, lengths[i] :] = 0
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


def choose_traces(
    path: str, codes: Array, component: str | int | None
) -> tuple[Array, Array, list[str]]:
    """Return which traces are data, by what their headers say they are.

    Args:
        path: Of the file, for errors.
        codes: TraceIdentificationCode of each trace.
        component: As ``read_survey`` takes it.

    Returns:
        True for the traces to read; True for those that are marked dead; and sentences
        of what is left out.

    Raises:
        ValueError: If there are traces of several components and none is named, or none
            of the one that is.
    """
    kinds: Array = np.where(np.isin(codes, PLAIN), 1, codes)
    present = [code for code in COMPONENTS if (kinds == code).any()]
    wanted = None if component is None else _component(component)
    if wanted is None:
        if len(present) > 1:
            names = " or ".join(repr(COMPONENTS[code]) for code in present)
            raise ValueError(
                f"{path} holds traces of several sensors (TraceIdentificationCode): "
                f"{named_codes(kinds[np.isin(kinds, present)])}; pass component={names}"
            )
        dead = kinds == DEAD
        if not present and not dead.any():
            raise ValueError(
                f"{path} holds no seismic traces (TraceIdentificationCode): "
                f"{named_codes(kinds)}; to read some as they are, pass their code as "
                "component="
            )
        taken = np.isin(kinds, present)
    else:
        taken = kinds == wanted
        if not taken.any():
            raise ValueError(
                f"component is {component!r}, of which {path} has no trace; it has "
                f"{named_codes(kinds)}"
            )
        dead = (kinds == DEAD) & (wanted != DEAD)
    told = []
    if wanted is not None or present not in ([], [1]):
        told.append(f"Component: {named_codes(kinds[taken])}.")
    if (rest := ~taken & ~dead).any():
        what = "not seismic data" if wanted is None else "other traces"
        told.append(f"Left out, {what}: {named_codes(kinds[rest])}.")
    return taken | dead, dead, told


def _component(component: Any) -> int:
    """Return the code of a component."""
    codes = {name: code for code, name in COMPONENTS.items()}
    if isinstance(component, str):
        return codes[checks.choice("component", component, codes)]
    code = checks.integer(
        "component (a name, or a TraceIdentificationCode)",
        component,
        least=-(2**15),
        most=2**15 - 1,
    )
    return 1 if code in PLAIN else code


def named_codes(codes: Array) -> str:
    """Return how many traces have which TraceIdentificationCode, in words."""
    told = []
    for code, number in zip(*np.unique(codes, return_counts=True), strict=True):
        name = {**COMPONENTS, **OTHERS}.get(int(code), "unknown")
        told.append(f"{number} of code {code} ({name})")
    return ", ".join(told)


def sources_of(sources: Array, shot: Array, dead: Array) -> tuple[Array, Array]:
    """Return the mean position of each shot's sources, and how far they lie apart.

    Args:
        sources: Of each trace ``[trace, 3]``, metres.
        shot: Which each trace is of, from zero.
        dead: True for traces that count only where a shot has no other.

    Returns:
        The means ``[shot, 3]``, and the largest difference in each axis ``[shot, 3]``.
    """
    counts = np.bincount(shot[~dead], minlength=int(shot.max()) + 1)
    taken = ~dead | (counts[shot] == 0)
    own, where = shot[taken], sources[taken]
    low, high = np.full((len(counts), 3), np.inf), np.full((len(counts), 3), -np.inf)
    np.minimum.at(low, own, where)
    np.maximum.at(high, own, where)
    total = np.stack([np.bincount(own, weights=axis) for axis in where.T], 1)
    # a mean of equal numbers is rounded
    mean = np.where(low == high, low, total / np.bincount(own)[:, None])
    return mean, high - low


def read_segy_traces(path: Path, byte_order: ByteOrder) -> tuple[Array, float]:
    """Return the traces of a file ``[trace, time]``, and their interval in seconds.

    Raises:
        ValueError: If a trace does not start at time zero, or headers do not fit.
    """
    with _segy(path, byte_order) as file:
        traces: Array = file.trace.raw[:]
        delays = _scaled(file, "DelayRecordingTime", "ScalarTraceHeader")
        if delays.any():
            raise ValueError(
                f"a trace of {path} starts at {float(delays[delays != 0][0]):g} ms "
                "(DelayRecordingTime); shift it so that its first sample is at time "
                "zero, or pass its amplitudes so as an array"
            )
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
        lengths: Samples that were recorded of each trace.
        codes: TraceIdentificationCode of each trace.
        units: Of the headers' positions ``[trace, 3]``, metres.
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
    lengths: Array
    codes: Array
    units: Array
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
            _lengths(file),
            _field(file, "TraceIdentificationCode"),
            _units(file),
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


def _lengths(file: Any) -> Array:
    """Return how many samples of each trace were recorded, by its own count or all."""
    own = _field(file, "TRACE_SAMPLE_COUNT").astype(np.int64) & 0xFFFF
    whole = len(file.samples)
    # two bytes hold no more; revision 2 has longer traces, all of one length
    given = (own > 0) & (own < whole) & (whole <= 0xFFFF)
    lengths: Array = np.where(given, own, whole)
    return lengths


def _units(file: Any) -> Array:
    """Return what one unit of positions is in the headers ``[trace, 3]``, metres."""
    units = []
    for scalar in ("ElevationScalar", "SourceGroupScalar", "SourceGroupScalar"):
        factor = _field(file, scalar).astype(np.float64)
        size = np.maximum(np.abs(factor), 1.0)
        units.append(np.where(factor < 0, 1 / size, size))
    return np.stack(units, 1) * (_FEET if _in_feet(file) else 1.0)


def rounding_of(units: Array, dead: Array) -> Array:
    """Return by how much positions of one source may differ as they are rounded, metres.

    By two units of up to five centimetres, by one of larger ones, and by a metre at most:
    what is farther apart may be two sources.

    Args:
        units: Of each trace's positions ``[trace, 3]``, metres.
        dead: True for traces that count only where there is no other.

    Returns:
        The limits ``(z, y, x)``.
    """
    own = units[dead if dead.all() else ~dead].max(0)
    fine = np.minimum(2 * own, FINE)
    limits: Array = np.minimum(np.maximum(own, fine), COARSEST) * (1 + 1e-6)
    return limits


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
