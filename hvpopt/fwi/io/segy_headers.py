"""What SEG-Y headers say: number formats, kinds of traces, positions and times."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from hvpopt import checks
from hvpopt.fwi.io.gathers import Array

ByteOrder: TypeAlias = "Literal['little', 'big'] | None"

#: Metres in a foot.
FEET = 0.3048

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


def load_segyio() -> Any:
    """Return the module segyio, or raise ImportError that tells how to install it."""
    try:
        # by name: segyio ships no types
        return importlib.import_module("segyio")
    except ImportError as error:
        raise ImportError(
            "SEG-Y needs segyio, which could not be imported; install it with: "
            'pip install "hvpopt[segy]"'
        ) from error


def format_code(path: Path, byte_order: str) -> int | None:
    """Return the code of a file's number format, at byte 3225; None if it is shorter."""
    with path.open("rb") as opened:
        opened.seek(3224)
        code = opened.read(2)
    return int.from_bytes(code, byte_order) if len(code) == 2 else None  # type: ignore[arg-type]


def field(file: Any, name: str) -> Array:
    """Return a header of every trace, by segyio's name."""
    fields = load_segyio().TraceField
    if not hasattr(fields, name):
        raise ValueError(
            f"{name!r} is no SEG-Y trace header; use segyio's name of one, such as "
            "'FieldRecord', 'EnergySourcePoint' or 'SourceX'"
        )
    values: Array = file.attributes(getattr(fields, name))[:]
    return values


def scaled(file: Any, name: str, scalar: str) -> Array:
    """Return a header of every trace, times or divided by another."""
    values = field(file, name).astype(np.float64)
    factor = field(file, scalar).astype(np.float64)
    size = np.maximum(np.abs(factor), 1.0)  # zero means one
    scaled: Array = np.where(factor < 0, values / size, values * size)
    return scaled


def ends_of(traces: Array) -> Array:
    """Return the number of samples of each trace up to the last that is not zero."""
    sounding = traces != 0
    last = traces.shape[1] - sounding[:, ::-1].argmax(1)
    ends: Array = np.where(sounding.any(1), last, 0)
    return ends


def lengths_of(file: Any) -> Array:
    """Return how many samples of each trace were recorded, by its own count or all."""
    own = field(file, "TRACE_SAMPLE_COUNT").astype(np.int64) & 0xFFFF
    whole = len(file.samples)
    # two bytes hold no more; revision 2 has longer traces, all of one length
    given = (own > 0) & (own < whole) & (whole <= 0xFFFF)
    lengths: Array = np.where(given, own, whole)
    return lengths


def in_feet(file: Any) -> bool:
    """Return True if a file gives its lengths in feet."""
    return int(file.bin[load_segyio().BinField.MeasurementSystem]) == 2


def units_of(file: Any) -> Array:
    """Return what one unit of positions is in the headers ``[trace, 3]``, metres."""
    units = []
    for scalar in ("ElevationScalar", "SourceGroupScalar", "SourceGroupScalar"):
        factor = field(file, scalar).astype(np.float64)
        size = np.maximum(np.abs(factor), 1.0)
        units.append(np.where(factor < 0, 1 / size, size))
    return np.stack(units, 1) * (FEET if in_feet(file) else 1.0)


def rounding_of(units: Array, dead: Array) -> Array:
    """Return by how much positions of one source differ by rounding, ``(z, y, x)``, m."""
    # By two units of up to five centimetres, by one of larger ones, and by a metre at
    # most: what is farther apart may be two sources. Units are [trace, 3]; dead traces
    # count only where there is no other.
    own = units[dead if dead.all() else ~dead].max(0)
    fine = np.minimum(2 * own, FINE)
    limits: Array = np.minimum(np.maximum(own, fine), COARSEST) * (1 + 1e-6)
    return limits


def interval_of(path: Path, file: Any) -> float:
    """Return the sampling interval of a file, seconds."""
    headers = field(file, "TRACE_SAMPLE_INTERVAL")
    # rev 2 reads the two bytes as unsigned
    found = {int(file.bin[load_segyio().BinField.Interval]) & 0xFFFF}
    found = (found | {int(i) & 0xFFFF for i in np.unique(headers)}) - {0}
    if len(found) != 1:
        raise ValueError(
            f"{path} has sampling intervals {sorted(found) or 'of zero'} µs in its "
            "headers; pass the right one as dt=..., in seconds"
        )
    return found.pop() / 1e6


def positions_of(path: Path, file: Any) -> tuple[Array, Array]:
    """Return source and receiver positions of every trace ``[trace, 3]``, metres."""
    kinds = set(np.unique(field(file, "CoordinateUnits")).tolist())
    if kinds - {0, 1}:
        raise ValueError(
            f"{path} has positions in degrees or seconds of arc (CoordinateUnits "
            f"{sorted(kinds)}); project them to metres first"
        )
    feet = in_feet(file)

    def metres(name: str, scalar: str, sign: int = 1) -> Array:
        values = sign * scaled(file, name, scalar)
        return values * FEET if feet else values

    depth = metres("SourceDepth", "ElevationScalar")
    surface = metres("SourceSurfaceElevation", "ElevationScalar")
    sources = [depth - surface] + [
        metres(n, "SourceGroupScalar") for n in ("SourceY", "SourceX")
    ]
    receivers = [metres("ReceiverGroupElevation", "ElevationScalar", -1)]
    receivers += [metres(n, "SourceGroupScalar") for n in ("GroupY", "GroupX")]
    # adding zero turns −0 to 0
    return np.stack(sources, 1) + 0.0, np.stack(receivers, 1) + 0.0


def sources_of(sources: Array, shot: Array, dead: Array) -> tuple[Array, Array]:
    """Return mean and largest difference of each shot's sources, ``[shot, 3]``."""
    # positions are [trace, 3], metres; dead traces count only where a shot has no other
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


def choose_traces(
    path: str, codes: Array, component: str | int | None
) -> tuple[Array, Array, list[str]]:
    """Return masks of the traces to read and of dead ones, and what is left out."""
    # a ValueError tells of traces of several components where none is named, or none of
    # the one that is
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
