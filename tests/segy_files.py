"""SEG-Y files written by segyio alone, as another program would."""

import numpy as np
import pytest


def write_traces(path, traces, headers, dt=0.002, endian="big", code=5, **binary):
    """Write traces ``[trace, time]``, with a dict of headers for each."""
    segyio = pytest.importorskip("segyio")
    spec = segyio.spec()
    spec.format, spec.endian = code, endian
    spec.samples = np.arange(traces.shape[1]) * dt * 1e3
    spec.tracecount = len(traces)
    with segyio.create(str(path), spec) as file:
        file.bin.update(hdt=round(dt * 1e6), **binary)
        for i, (trace, header) in enumerate(zip(traces, headers, strict=True)):
            file.header[i] = {getattr(segyio.TraceField, k): v for k, v in header.items()}
            file.trace[i] = np.ascontiguousarray(trace, np.float32)
    return path


def write_line(path, data, sources, receivers, exists=None, headers=None, **options):
    """Write shots ``[shot, receiver, time]`` with positions ``(z, y, x)`` in centimetres.

    ``exists`` picks the traces to write; ``headers`` are more of each trace.
    """
    traces, own = [], []
    for s in range(len(data)):
        for r in range(data.shape[1]):
            if exists is not None and not exists[s, r]:
                continue
            (sz, sy, sx), (rz, ry, rx) = (
                [round(100 * float(c)) for c in p] for p in (sources[s], receivers[s, r])
            )
            traces.append(np.asarray(data[s, r]))
            own.append(
                {
                    "FieldRecord": 101 + s,
                    "SourceGroupScalar": -100,
                    "ElevationScalar": -100,
                    "CoordinateUnits": 1,
                    "SourceX": sx,
                    "SourceY": sy,
                    "SourceDepth": sz,
                    "GroupX": rx,
                    "GroupY": ry,
                    "ReceiverGroupElevation": -rz,
                    **(headers(s, r) if headers else {}),
                }
            )
    return write_traces(path, np.stack(traces), own, **options)
