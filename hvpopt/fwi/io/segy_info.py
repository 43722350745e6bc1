"""What a SEG-Y file holds, in words, and the line that reads it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from hvpopt import checks
from hvpopt.fwi.io.formats import PathLike
from hvpopt.fwi.io.gathers import Array, existing_file
from hvpopt.fwi.io.geometry import best_line
from hvpopt.fwi.io.segy import SegyHeaders, read_segy_headers, segy_blocks
from hvpopt.fwi.io.segy_headers import (
    COARSEST,
    COMPONENTS,
    FORMATS,
    PLAIN,
    ByteOrder,
    choose_traces,
    format_code,
    named_codes,
    rounding_of,
    sources_of,
)
from hvpopt.fwi.io.wavelets import SEGY

#: Headers that may tell shots apart, in the order in which they are tried.
SHOT_KEYS = ("FieldRecord", "EnergySourcePoint", "SourceX", "SourceY")
#: For the suggestion alone: the slowest wave of most surveys, the fastest that a model
#: may have, metres per second, and cells in the shortest wavelength, of a Ricker
#: wavelet's highest frequency (2.5 times its dominant one).
SLOWEST, FASTEST, CELLS = 1500.0, 5000.0, 5.0
_BLOCK, _SPECTRA = 4096, 64


class _Samples(NamedTuple):
    low: float
    high: float
    rms: float
    dead: int
    marked: int
    not_finite: int
    frequency: float  # cycles per sample; zero where there is none


class _Shots(NamedTuple):
    key: str
    number: int
    least: int  # receivers
    most: int
    fixed: bool
    apart: tuple[float, ...]  # of sources within a shot, in depth, y and x, metres
    depth: float | None  # of all sources, where headers differ within a shot


class _Taken(NamedTuple):
    """What read_survey reads of a file: traces of one component."""

    component: str | int | None
    kept: Array
    dead: Array  # of the kept, those that their headers mark


def segy_info(
    path: PathLike, *, byte_order: ByteOrder = None, shot_key: str | None = None
) -> str:
    """Return what a SEG-Y file holds, and the line that reads it as a survey."""
    # By default the byte order is the one in which the number format is known, and the
    # shot key the first of SHOT_KEYS that has one source position for each value.
    file = checks.path("path", path)
    if file.suffix.lower() not in SEGY:
        raise ValueError(f"{file} is no SEG-Y file: its name must end in .sgy or .segy")
    existing_file(file)
    byte_order = _byte_order(file) if byte_order is None else byte_order
    keys = SHOT_KEYS if shot_key is None else (shot_key,)
    whole = read_segy_headers(file, byte_order, keys)
    taken = _component(file, whole.codes)
    headers = _kept(whole, taken.kept)
    samples = _read_samples(file, byte_order, taken)
    known = FORMATS.get(headers.format, f"format {headers.format}")
    rows = [
        ("format", f"SEG-Y revision {headers.revision}, {byte_order}-endian, {known}"),
        ("traces", _traces(whole)),
    ]
    if not np.isin(whole.codes, PLAIN).all():
        rows.append(("trace codes", _codes(whole.codes, taken)))
    shots = None
    if isinstance(headers.positions, str):
        rows.append(("positions", headers.positions))
    else:
        shots = _find_shots(headers, taken.dead)
        rows += _places(headers, shots)
    rows += [
        ("units", "feet, read as metres" if headers.feet else "metres"),
        (
            "amplitudes",
            f"{samples.low:.6g} to {samples.high:.6g}, root mean square "
            f"{samples.rms:.6g}",
        ),
        (
            "bad traces",
            f"{samples.dead} dead (all samples zero), {samples.not_finite} with NaN or "
            "infinite samples"
            + (f", {samples.marked} marked dead" if samples.marked else ""),
        ),
    ]
    if samples.frequency and isinstance(headers.dt, float):
        rows.append(("frequency", f"{samples.frequency / headers.dt:.3g} Hz, dominant"))
    told = [f"{name:<11} {text}" for name, text in rows]
    return "\n".join(
        [str(file), *told, "", *_advice(file, byte_order, headers, shots, samples, taken)]
    )


def _byte_order(file: Path) -> ByteOrder:
    """Return the byte order in which the format's code, at byte 3225, is one."""
    codes = {order: format_code(file, order) for order in ("big", "little")}
    for order, code in codes.items():
        if code in FORMATS:
            return "big" if order == "big" else "little"
    raise ValueError(
        f"{file} cannot be read as SEG-Y: bytes 3225 and 3226, the code of its number "
        f"format, are {codes['big']} (big-endian) or {codes['little']} (little-endian), "
        "which is none"
        if codes["big"] is not None
        else f"{file} cannot be read as SEG-Y: it is shorter than the file header"
    )


def _component(file: Path, codes: Array) -> _Taken:
    """Return the traces that are read: where there are several sensors, of the first."""
    kinds: Array = np.where(np.isin(codes, PLAIN), 1, codes)
    present = [code for code in COMPONENTS if (kinds == code).any()]
    component: str | int | None = None
    if len(present) > 1:
        component = COMPONENTS[present[0]]
    elif not present and not (kinds == 2).any():
        component = int(np.bincount(kinds - kinds.min()).argmax() + kinds.min())
    kept, dead, _ = choose_traces(str(file), codes, component)
    return _Taken(component, kept, dead[kept])


def _codes(codes: Array, taken: _Taken) -> str:
    told = named_codes(np.where(np.isin(codes, PLAIN), 1, codes))
    if taken.component is not None:
        told += f"; what follows is of component={taken.component!r}"
    return told


def _kept(headers: SegyHeaders, kept: Array) -> SegyHeaders:
    """Return the headers of some traces."""
    places = headers.positions
    return replace(
        headers,
        n_traces=int(kept.sum()),
        positions=places
        if isinstance(places, str)
        else (places[0][kept], places[1][kept]),
        starts=headers.starts[kept],
        lengths=headers.lengths[kept],
        codes=headers.codes[kept],
        units=headers.units[kept],
        keys={name: values[kept] for name, values in headers.keys.items()},
    )


def _read_samples(file: Path, byte_order: ByteOrder, taken: _Taken) -> _Samples:
    """Return what the samples are like, read some thousand traces at a time."""
    low, high, energy, n, dead, bad = math.inf, -math.inf, 0.0, 0, 0, 0
    power: Array | float = 0.0
    alive, first = taken.kept.copy(), 0
    alive[taken.kept] = ~taken.dead
    for whole in segy_blocks(file, byte_order, _BLOCK):
        mine = np.arange(first, first + len(whole))
        first += len(whole)
        block = whole[alive[mine]]
        finite = np.isfinite(block).all(1)
        bad += int((~finite).sum())
        good = block[finite].astype(np.float64)
        quiet = ~good.any(1)
        dead += int(quiet.sum())
        if good.size:
            low, high = min(low, float(good.min())), max(high, float(good.max()))
            energy, n = energy + float((good**2).sum()), n + good.size
        live = good[~quiet]
        some = live[:: max(1, len(live) // _SPECTRA)]
        if len(some):
            power = power + (np.abs(np.fft.rfft(some)) ** 2).sum(0)
    frequency = 0.0
    if isinstance(power, np.ndarray) and len(power) > 2:
        power[0] = 0.0
        frequency = float(np.fft.rfftfreq(whole.shape[1])[power.argmax()])
    if n == 0:
        low = high = math.nan
    return _Samples(
        low,
        high,
        math.sqrt(energy / n) if n else math.nan,
        dead,
        int(taken.dead.sum()),
        bad,
        frequency,
    )


def _find_shots(headers: SegyHeaders, dead: Array) -> _Shots | None:
    """Return the shots by the first header that has one source for each value."""
    # within a shot positions may differ by a metre, as they jitter; depths by more, where
    # they differ as much within a shot as from shot to shot
    assert not isinstance(headers.positions, str)
    sources, receivers = headers.positions
    rounding = rounding_of(headers.units, dead)
    for name, keys in headers.keys.items():
        _, shot = np.unique(keys, return_inverse=True)
        fired, apart = sources_of(sources, shot, dead)
        most = tuple(float(by) for by in apart.max(0))
        if max(most[1:]) > COARSEST:
            continue
        depth = None
        if most[0] > rounding[0]:
            if float(np.ptp(sources[~dead][:, 0])) <= 2 * most[0]:
                depth = float(f"{fired[:, 0].mean():.4g}")
            elif most[0] > COARSEST:
                continue
        counts = np.bincount(shot)
        order = np.lexsort((*receivers.T, shot))
        rows = receivers[order]
        alike = len(set(counts.tolist())) == 1
        if alike:
            by_shot = rows.reshape(len(counts), -1, 3)
            alike = bool((by_shot == by_shot[:1]).all())
        return _Shots(
            name, len(counts), int(counts.min()), int(counts.max()), alike, most, depth
        )
    return None


def _traces(headers: SegyHeaders) -> str:
    told = f"{headers.n_traces}, of {headers.n_samples} samples"
    if isinstance(headers.dt, str):
        return f"{told}; {headers.dt}"
    told += f" every {headers.dt * 1e3:g} ms"
    low, high = float(headers.starts.min()), float(headers.starts.max())
    told += f", from {_range(low * 1e3, high * 1e3)} ms"
    if (headers.lengths < headers.n_samples).any():
        each = _range(int(headers.lengths.min()), int(headers.lengths.max()))
        told += f"; {each} samples recorded"
    return told


def _places(headers: SegyHeaders, shots: _Shots | None) -> list[tuple[str, str]]:
    assert not isinstance(headers.positions, str)
    sources, receivers = headers.positions
    rows = []
    if shots is None:
        rows.append(("shots", "not told apart by " + ", ".join(headers.keys)))
    else:
        each = _range(shots.least, shots.most)
        rows.append(("shots", f"{shots.number} by {shots.key}, {each} receivers each"))
        if shots.number > 1:
            kind = (
                "fixed" if shots.fixed else "moving: receivers differ from shot to shot"
            )
            rows.append(("spread", kind))
        if any(shots.apart):
            by = ", ".join(
                f"{by:.3g} m in {name}"
                for name, by in zip(("depth", "y", "x"), shots.apart, strict=True)
                if by
            )
            rows.append(
                (
                    "jitter",
                    f"sources of one shot differ by up to {by}; their mean is taken",
                )
            )
    apart = np.hypot(*(receivers - sources)[:, 1:].T)
    rows.append(("offsets", f"{_range(apart.min(), apart.max())} m"))
    for name, where in (("sources", sources), ("receivers", receivers)):
        z, y, x = (_range(c.min(), c.max()) for c in where.T)
        rows.append((name, f"x {x} m, y {y} m, depth {z} m"))
    line, off, _ = _line(headers)
    rows.append(("line", f"{line}; positions lie up to {off:.4g} m off it"))
    return rows


def _line(headers: SegyHeaders) -> tuple[str, float, float]:
    """Return the best line's name, how far positions lie off it, and its length."""
    positions = torch.from_numpy(np.concatenate(headers.positions))
    line = best_line(positions)
    along = line.along(positions)
    return line.name, float(line.off(positions).max()), float(along.max() - along.min())


def _range(low: float, high: float) -> str:
    return f"{low:.10g}" if low == high else f"{low:.10g} to {high:.10g}"


def _advice(
    file: Path,
    byte_order: ByteOrder,
    headers: SegyHeaders,
    shots: _Shots | None,
    samples: _Samples,
    taken: _Taken,
) -> list[str]:
    """Return the line that reads the file, or what it lacks."""
    if isinstance(headers.dt, str) or isinstance(headers.positions, str):
        missing = headers.dt if isinstance(headers.dt, str) else headers.positions
        return [f"read_survey cannot read it as it is: {missing}"]
    if shots is None:
        return [
            "read_survey cannot tell its shots apart: pass the header that does, as "
            "--shot-key here, as shot_key= there"
        ]
    for header, where in zip(
        ("SourceX and SourceY", "GroupX and GroupY"), headers.positions, strict=True
    ):
        if headers.n_traces > 1 and not where[:, 1:].any():
            return [
                f"read_survey needs positions: {header} are zero in all traces. Read "
                "it with read_gathers, and give read_survey Gathers(data, dt, sources, "
                "receivers)"
            ]
    if not samples.frequency:
        return ["read_survey cannot use it: no trace is live"]
    frequency = float(f"{min(samples.frequency, 0.2) / headers.dt:.2g}")
    spacing = _spacing(headers, frequency)
    _, off, length = _line(headers)
    given: dict[str, object] = {
        "wavelet": frequency,
        "grid_spacing": spacing,
        "max_vel": FASTEST,
    }
    if off > 0.2 * length:
        given["n_dimensions"] = 3
    elif off > 2 * spacing:
        given["max_off_line"] = math.ceil(off)
    beyond = np.array(shots.apart) > rounding_of(headers.units, taken.dead)
    if shots.depth is not None:
        given["source_depth"], beyond[0] = shots.depth, False
    if beyond.any():
        most = float(np.array(shots.apart)[beyond].max())
        given["snap"] = math.ceil(1000 * most / spacing) / 1000
    if shots.key != "FieldRecord":
        given["shot_key"] = shots.key
    if taken.component is not None:
        given["component"] = taken.component
    if byte_order == "little":
        given["byte_order"] = byte_order
    listed = ", ".join(f"{name}={value!r}" for name, value in given.items())
    return [
        f"hvpopt.fwi.read_survey({str(file)!r}, {listed})",
        "",
        "reads it. Put the source's own wavelet in place of a Ricker wavelet of the",
        "dominant frequency, and the fastest wave of your models for max_vel.",
    ]


def _spacing(headers: SegyHeaders, frequency: float) -> float:
    """Return a cell size that samples the waves, on which receivers lie if they can."""
    assert not isinstance(headers.positions, str)
    coarsest = SLOWEST / (2.5 * frequency * CELLS)
    steps = np.hypot(*np.diff(headers.positions[1][:, 1:], axis=0).T)
    steps = steps[steps > 0]
    if not len(steps):
        return float(f"{coarsest:.2g}")
    # what is rounded in headers says no more of the distance than their unit
    unit = min(float(headers.units[:, 1:].min()), COARSEST)
    alike = np.abs(steps - np.median(steps)) <= 2 * unit
    half = unit / 2
    step = max(round(float(steps[alike].mean()) / half) * half, half)
    fits = step / math.ceil(step / coarsest)
    if step < coarsest:
        fits = step * math.floor(coarsest / step)
    return float(f"{fits:.9g}")
