"""Traces and their headers to SEG-Y."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hvpopt.fwi.io.gathers import Array, Gathers, as_array
from hvpopt.fwi.io.segy_headers import ByteOrder, load_segyio

# SEG-Y rev 1 stores coordinates as integers with a power of ten beside them.
_SCALARS = (1000, 100, 10, 1)


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
    segyio = load_segyio()
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
