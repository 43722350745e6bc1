"""Surveys from files: headers and positions to a Survey, and the data that go with it."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import deepwave
import numpy as np
import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.fwi.data.mutes import RecordedSamples
from hvpopt.fwi.data.transforms import DataTransform
from hvpopt.fwi.io.formats import PathLike
from hvpopt.fwi.io.gathers import Gathers, check_dt, existing_file
from hvpopt.fwi.io.geometry import (
    Grid,
    Spots,
    choose_grid,
    faces_of,
    largest_offset,
    located,
    projected,
)
from hvpopt.fwi.io.segy import SegyShots, read_segy_shots
from hvpopt.fwi.io.segy_headers import ByteOrder
from hvpopt.fwi.io.wavelets import SEGY, peak_frequency, read_wavelets
from hvpopt.fwi.survey._options import check_channels, check_options, spacing_of
from hvpopt.fwi.survey.interpolation import Interpolation
from hvpopt.fwi.survey.physics import find_propagator
from hvpopt.fwi.survey.survey import Survey

#: Likeness of two names, from 0 to 1, at which one is taken for the other spelt wrong.
ALIKE = 0.8


@dataclass(frozen=True, eq=False)
class SurveyData:
    """A survey and what it recorded, ready for ``WaveformMisfit``.

    ``WaveformMisfit(found.survey, found.observed, L2(trace_weights=found.trace_weights,
    sample_weights=found.sample_weights))`` is its misfit; the weights are None where
    every sample counts.

    Attributes:
        survey: Sources, receivers, grid spacing and time.
        observed: ``[shot, receiver, time]`` at the survey's ``dt``; zero where there was
            no recording.
        origin: Position of a model's first cell, metres: ``(depth, along the line)`` or
            ``(depth, y, x)``.
        spacing: Cell size in each dimension, metres.
        shape: Of a model, in cells, that holds all positions.
        trace_weights: One for each trace that takes part and zero for the others
            ``[shot, receiver]``, or None where all do.
        sample_weights: Zero where a trace had not started or had ended, ``[time]`` where
            all traces start and end together, else ``[shot, receiver, time]``; None where
            all start at time zero or before and end together.
        shots: Which of the file's shots these are, in its order.
        dropped: Traces that do not take part, though the file has them: ``(shot,
            receiver)`` in the file's order ``[n, 2]``, by the reason, ``"dead"`` (all
            samples are zero, or its header says so) or ``"not finite"``. Traces that are
            not seismic data, or of another component, are not counted here.
        info: What was read, chosen and left out, as sentences.
    """

    survey: Survey
    observed: Tensor
    origin: tuple[float, ...]
    spacing: tuple[float, ...]
    shape: tuple[int, ...]
    trace_weights: Tensor | None
    sample_weights: Tensor | None
    shots: tuple[int, ...]
    dropped: Mapping[str, Tensor]
    info: str

    @property
    def transforms(self) -> list[DataTransform]:
        """What zeroes unrecorded samples, for misfits that take no ``sample_weights``."""
        weights = self.sample_weights
        return [] if weights is None else [RecordedSamples(weights)]

    def __repr__(self) -> str:
        return f"<SurveyData: {self.info}>"


def read_survey(
    path: PathLike | Gathers,
    *,
    wavelet: Any,
    grid_spacing: float | Sequence[float],
    max_vel: float,
    pml_freq: float | None = None,
    propagator: str = "scalar",
    n_dimensions: int = 2,
    origin: Sequence[float] | None = None,
    shape: Sequence[int] | None = None,
    depth: float | None = None,
    margin: int = 10,
    line: Sequence[Sequence[float]] | None = None,
    max_off_line: float | None = None,
    source_depth: float | None = None,
    receiver_depth: float | None = None,
    source_channel: str | None = None,
    receiver_channel: str | None = None,
    halfwidth: int = 4,
    snap: float = 1e-3,
    dt: float | None = None,
    nt: int | None = None,
    shot_key: str = "FieldRecord",
    component: str | int | None = None,
    byte_order: ByteOrder = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    **options: Any,
) -> SurveyData:
    """Read a survey and its data from a SEG-Y file, or from gathers with positions.

    Positions are ``(z, y, x)`` in metres, z downwards from the datum: of a source
    SourceDepth − SourceSurfaceElevation, of a receiver −ReceiverGroupElevation, with
    their scalars, feet converted. Receivers may move with the shot or stay, and shots
    may have different numbers of them. A position between nodes is interpolated (Hicks,
    Geophysics 67, 2002). Traces that are dead (all zero, or so marked in their header) or
    not finite do not take part, nor do those whose header says that they are no seismic
    data; samples after a trace's own end have no weight.

    Args:
        path: Of a ``.sgy`` or ``.segy`` file, or gathers that have positions.
        wavelet: Amplitudes of the source, sampled at ``dt`` from time zero: ``[time]``,
            or ``[shot, time]`` for every shot of the file; the path of a ``.npy`` or
            SEG-Y file of them; or the dominant frequency, hertz, of a Ricker wavelet
            with its peak after 1.5 periods.
        grid_spacing: Cell size, metres; one number or one per dimension.
        max_vel: The fastest wave speed that a model may have, metres per second.
        pml_freq: The absorbing boundary's dominant frequency, hertz. Default the
            wavelet's.
        propagator: Of deepwave.
        n_dimensions: 2 (default) projects positions on a line, the second axis; 3 takes
            them as they are.
        origin: Position of the first cell, metres: ``(depth, along)`` or ``(depth, y,
            x)``. Default: depth zero, or above it by as many whole cells as interpolation
            needs; where the face above reflects (free or rigid in ``boundary=``, or of
            zero ``pml_width``), such that it reflects at depth zero. Along the line,
            ``margin`` cells before the first position.
        shape: Of the model, in cells. Default as large as positions, ``margin`` and
            ``depth`` need.
        depth: Of the default shape's last cell, metres. Default half the largest offset
            below the deepest position.
        margin: Cells of the default grid beyond the outermost positions along the line.
        line: Its ends ``((x, y), (x, y))``, metres; distances count from the first. By
            default the x or y coordinate where all positions share the other one, else
            the line of least squares, from its end of least x.
        max_off_line: The farthest that a position may lie off the line, metres. Default
            two cells.
        source_depth: Of all sources, metres, in place of the headers', which then may
            differ within a shot.
        receiver_depth: Of all receivers, metres, in place of the headers'.
        source_channel: Of the propagator. Default its first, an explosion.
        receiver_channel: Of the propagator. Default its first, pressure.
        halfwidth: Of the interpolation's window, cells.
        snap: Distance, cells, within which a position is moved to its node (headers are
            rounded); 0.5 moves all. Source positions in the headers of one shot that
            differ by no more, or by two units of the headers (one of more than five
            centimetres, at most a metre), are one: their mean.
        dt: Sampling interval, seconds. Default the headers'.
        nt: Samples to keep, from time zero. Default all.
        shot_key: SEG-Y trace header, by segyio's name, that tells the shots apart.
        component: Sensor whose traces to read, where a file holds several
            (TraceIdentificationCode): ``"seismic"`` (no sensor named), ``"pressure"``,
            ``"vertical"``, ``"crossline"``, ``"inline"``, ``"rotated vertical"``,
            ``"rotated transverse"``, ``"rotated radial"``, or a code. Default the only
            one there is. It chooses traces alone: what the survey records is
            ``receiver_channel``.
        byte_order: Of the file. Default big-endian.
        dtype: Of data and wavelets. Default float32, or that of the gathers.
        device: Of data and wavelets.
        **options: Any other option of the deepwave propagator, as ``Survey`` takes them.

    Returns:
        The survey, its data, and what was chosen.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: For SEG-Y without segyio.
        TypeError: For arguments of the wrong type.
        ValueError: If the file has no positions, they lie off the line or outside the
            grid, no trace is live, several components are there and none is named, or
            headers, wavelet or options do not fit.

    Example:
        >>> found = read_survey("line.sgy", wavelet=8.0, grid_spacing=12.5,
        ...                     max_vel=4500.0)  # doctest: +SKIP
        >>> misfit = WaveformMisfit(found.survey, found.observed)  # doctest: +SKIP
    """
    _check_names(options)
    checks.floating("dtype", torch.float32 if dtype is None else dtype)
    n_dimensions = checks.integer("n_dimensions", n_dimensions, least=2, most=3)
    spacing = tuple(spacing_of(grid_spacing, n_dimensions))
    snap = checks.number("snap", snap, least=0.0, below=math.inf)
    found = _read(
        path,
        dt,
        byte_order,
        shot_key,
        dtype,
        component,
        None if source_depth is None else _depth("source_depth", source_depth),
        tuple(snap * size for size in (spacing[0], min(spacing[1:]), min(spacing[1:]))),
    )
    gathers, starts = found.gathers, torch.from_numpy(found.starts)
    lengths = torch.from_numpy(found.lengths)
    dtype = gathers.data.dtype if dtype is None else dtype
    sources, receivers = _positions(path, gathers, source_depth, receiver_depth)
    exists, dropped = _live(gathers)
    shots = exists.any(1).nonzero()[:, 0]
    if not len(shots):
        raise ValueError("no trace is live: all are zero, or not finite")
    _check_finite(sources, receivers, exists)
    amplitudes = read_wavelets(wavelet, gathers, byte_order)[shots].to(device, dtype)
    data = torch.where(exists[..., None], gathers.data, 0.0)[shots]
    sources, receivers, exists = sources[shots, None], receivers[shots], exists[shots]
    begins = starts[shots][exists]
    observed, recorded = _from_time_zero(
        data, starts[shots], lengths[shots], exists, gathers.dt
    )
    if nt is not None:
        nt = checks.integer("nt", nt, least=1, most=observed.shape[2])
        _check_recorded(nt, recorded, gathers.dt)
    observed = observed[..., :nt].to(device, dtype)

    if pml_freq is None:
        pml_freq = peak_frequency(wavelet, amplitudes, gathers.dt)

    told = [_counts(exists), *found.told]
    farthest = largest_offset(sources, receivers, exists)
    if n_dimensions == 2:
        limit = 2 * spacing[1] if max_off_line is None else max_off_line
        sources, receivers, sentence = projected(
            sources,
            receivers,
            exists,
            line,
            checks.number("max_off_line", limit, least=0.0, below=math.inf),
            shots.tolist(),
        )
        told.append(sentence)
    function = find_propagator(checks.text("propagator", propagator))
    options = check_options(function, options)
    fired, fires_at = _channel("source", propagator, n_dimensions, source_channel)
    taken, taken_at = _channel("receiver", propagator, n_dimensions, receiver_channel)
    every = torch.ones(len(shots), 1, dtype=torch.bool)
    spots = [
        Spots("source", sources, every, fires_at, shots.tolist()),
        Spots("receiver", receivers, exists, taken_at, shots.tolist()),
    ]
    deepest = max(float(s.positions[s.exists][:, 0].max()) for s in spots)
    grid = choose_grid(
        spots,
        Grid(
            (0.0,) * n_dimensions,
            spacing,
            (1,) * n_dimensions,
            faces_of(propagator, options, n_dimensions),
            checks.integer("halfwidth", halfwidth, least=1, most=10),
            snap,
        ),
        origin,
        shape,
        deepest + farthest / 2 if depth is None else _depth("depth", depth),
        checks.integer("margin", margin, least=0),
    )
    told.append(_depths(spots))
    chosen = "" if origin is not None and shape is not None else ", chosen to hold them"
    told.append(f"Grid: {grid}{chosen}.")
    if above := grid.face_above():
        told.append(above.strip())
    source, _ = located(spots[0], grid, device)
    receiver, mask = located(spots[1], grid, device)
    told.append(_between(spots, (source, receiver), grid))
    survey = Survey(
        propagator,
        grid_spacing=spacing,
        dt=gathers.dt,
        sources={fired: (amplitudes[:, None], source)},
        receivers={taken: receiver if mask is None else (receiver, mask)},
        max_vel=max_vel,
        pml_freq=pml_freq,
        nt=observed.shape[2],
        **options,
    )
    ended = lengths[shots][exists] < gathers.data.shape[2]
    told += _starts(begins, recorded, ended)
    for reason, which in dropped.items():
        told.append(f"Left out, {reason}: {_number(len(which), 'trace')}.")
    if len(shots) < len(gathers.data):
        silent = _number(len(gathers.data) - len(shots), "shot")
        told.append(f"Left out, no live trace: {silent}.")
    return SurveyData(
        survey,
        observed,
        grid.origin,
        spacing,
        grid.shape,
        None if bool(exists.all()) else exists.to(device, dtype),
        None if recorded is None else recorded[..., :nt].to(device, dtype),
        tuple(shots.tolist()),
        dropped,
        " ".join([*told, survey.info]),
    )


# -- what the file holds ------------------------------------------------------------


def _read(
    path: Any,
    dt: float | None,
    byte_order: ByteOrder,
    shot_key: str,
    dtype: torch.dtype | None,
    component: str | int | None,
    source_depth: float | None,
    tolerance: tuple[float, ...],
) -> SegyShots:
    """Return gathers, and when each trace starts and how long it is."""
    dt = checks.optional(check_dt, "dt", dt)
    if isinstance(path, Gathers):
        taken = Gathers(
            path.data.detach().cpu(),
            path.dt if dt is None else dt,
            path.sources,
            path.receivers,
            path.live,
        )
        if component is not None:
            raise ValueError(
                f"component is {component!r}, which chooses traces of a SEG-Y file; "
                "Gathers hold those of one component"
            )
        shape = tuple(path.data.shape[:2])
        ends = np.full(shape, path.data.shape[2])
        return SegyShots(taken, np.zeros(shape), ends, ())
    file = checks.path("path (which may be hvpopt.fwi.Gathers)", path)
    if file.suffix.lower() not in SEGY:
        raise ValueError(
            f"{file} is no SEG-Y file (.sgy, .segy), and no other holds positions; read "
            "it with read_gathers, and give read_survey Gathers(data, dt, sources, "
            "receivers)"
        )
    existing_file(file)
    shot_key = checks.text("shot_key", shot_key)
    found = read_segy_shots(
        file,
        dt,
        byte_order,
        shot_key,
        dtype or torch.float32,
        pad=True,
        component=component,
        source_depth=source_depth,
        tolerance=tolerance,
    )
    check_dt("dt", found.gathers.dt)
    return found


def _depth(name: str, value: Any) -> float:
    """Return a depth, metres."""
    return float(checks.number(name, value, below=math.inf))


def _positions(
    path: Any, gathers: Gathers, source_depth: float | None, receiver_depth: float | None
) -> tuple[Tensor, Tensor]:
    """Return positions of sources ``[shot, 3]`` and receivers ``[shot, receiver, 3]``."""
    what = "the gathers hold" if isinstance(path, Gathers) else f"{path} holds"
    if gathers.sources is None or gathers.receivers is None:
        missing = "sources" if gathers.sources is None else "receivers"
        raise ValueError(
            f"{what} no positions of {missing} (z, y, x); give them: "
            "Gathers(data, dt, sources, receivers)"
        )
    found = []
    for name, given, z in (
        ("source", gathers.sources, source_depth),
        ("receiver", gathers.receivers, receiver_depth),
    ):
        where = given.detach().to("cpu", torch.float64, copy=True)
        flat = where.view(-1, 3)[:, 1:].nan_to_num()
        if not isinstance(path, Gathers) and len(flat) > 1 and not bool(flat.any()):
            header = "SourceX and SourceY" if name == "source" else "GroupX and GroupY"
            raise ValueError(
                f"{path} holds no {name} positions: {header} are zero in all traces; "
                "read it with read_gathers, and give read_survey Gathers(data, dt, "
                "sources, receivers)"
            )
        if z is not None:
            where[..., 0] = _depth(f"{name}_depth", z)
        found.append(where)
    return found[0], found[1]


def _live(gathers: Gathers) -> tuple[Tensor, dict[str, Tensor]]:
    """Return which traces take part ``[shot, receiver]``, and which do not, and why."""
    exists = torch.ones(gathers.data.shape[:2], dtype=torch.bool)
    if gathers.live is not None:
        exists = gathers.live.cpu().clone()
    finite, quiet = gathers.data.isfinite().all(-1), (gathers.data == 0).all(-1)
    reasons = {"not finite": exists & ~finite, "dead": exists & quiet}
    dropped = {r: which.nonzero() for r, which in reasons.items() if bool(which.any())}
    return exists & finite & ~quiet, dropped


def _check_names(options: Mapping[str, Any]) -> None:
    """Raise TypeError for an option of deepwave that is one of ours, spelt wrong."""
    own = list(inspect.signature(read_survey).parameters)
    for name in options:
        for meant in difflib.get_close_matches(name, own, 1, ALIKE):
            raise TypeError(
                f"read_survey has no option {name!r}; did you mean {meant!r}?"
            )


def _check_finite(sources: Tensor, receivers: Tensor, exists: Tensor) -> None:
    for name, bad in (
        ("source", (~sources.isfinite().all(-1) & exists.any(1))[:, None]),
        ("receiver", ~receivers.isfinite().all(-1) & exists),
    ):
        if bool(bad.any()):
            shot, point = (int(i) for i in bad.nonzero()[0])
            raise ValueError(
                f"{int(bad.sum())} {name} positions are NaN or infinite, first that of "
                f"{name} {point} of shot {shot}; give them in metres, or mark the trace "
                "as not live"
            )


def _from_time_zero(
    data: Tensor, starts: Tensor, lengths: Tensor, exists: Tensor, dt: float
) -> tuple[Tensor, Tensor | None]:
    """Return data that start with the shot, and where they were recorded, or None."""
    starts = torch.where(exists, starts, starts[exists][0])
    lengths = torch.where(exists, lengths, lengths[exists][0])
    samples = (starts / dt).round().long()
    if bool(((samples * dt - starts).abs() > 1e-3 * dt).any()):
        off = float(starts[(samples * dt - starts).abs() > 1e-3 * dt][0])
        raise ValueError(
            f"a trace starts at {off * 1e3:g} ms (DelayRecordingTime), which is no whole "
            f"number of samples of {dt * 1e3:g} ms; resample the data"
        )
    n = data.shape[2]
    if not bool(samples.any()) and bool((lengths == n).all()):
        return data, None
    if bool((samples + lengths <= 0).any()):
        raise ValueError(f"a trace ends before its shot: it starts at {starts.min():g} s")
    whole_length = n + int(samples.max())
    moved = data.new_zeros((*data.shape[:2], whole_length))
    for shift in torch.unique(samples).tolist():
        mine = samples == shift
        first, last = max(shift, 0), shift + n
        traces = torch.zeros(int(mine.sum()), whole_length, dtype=data.dtype)
        traces[:, first:last] = data[mine][:, first - shift :]
        moved[mine] = traces
    time = torch.arange(whole_length)
    begin, end = samples[..., None], (samples + lengths)[..., None]
    recorded = (time >= begin) & (time < end)
    if bool(recorded.all()):
        return moved, None
    alike = bool((recorded == recorded[0, 0]).all())
    return moved, recorded[0, 0] if alike else recorded


def _check_recorded(nt: int, recorded: Tensor | None, dt: float) -> None:
    """Raise ValueError unless some of the first samples were recorded."""
    if recorded is None or bool(recorded[..., :nt].any()):
        return
    first = int(recorded.flatten(0, -2).any(0).int().argmax())
    raise ValueError(
        f"nt is {nt}, {nt * dt:g} s from the shot, in which nothing was recorded: traces "
        f"start at {first * dt:g} s (DelayRecordingTime); nt must be above {first}"
    )


# -- what is told -------------------------------------------------------------------


def _starts(begins: Tensor, recorded: Tensor | None, ended: Tensor) -> list[str]:
    """Return what was done about traces that do not begin with the shot."""
    first, last = float(begins.min()), float(begins.max())
    told = []
    if first < 0.0:
        told.append(f"Cut, before the shot: up to {-first * 1e3:g} ms.")
    if recorded is not None:
        missing = [f"the first {last * 1e3:g} ms"] if last > 0.0 else []
        if first < last or bool(ended.any()):
            missing.append(f"the end of {'all' if bool(ended.all()) else 'some'} traces")
        told.append(
            f"Not recorded, and zero here: {' or '.join(missing)}; give sample_weights "
            "to the misfit."
        )
    return told


def _counts(exists: Tensor) -> str:
    per_shot = exists.sum(1)
    least, most = int(per_shot.min()), int(per_shot.max())
    each = f"{most}" if least == most else f"{least} to {most}"
    return f"{_number(len(exists), 'shot')} of {each} live receivers."


def _number(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _channel(
    kind: str, propagator: str, n_dimensions: int, given: str | None
) -> tuple[str, tuple[float, ...]]:
    """Return a channel's name, and where its nodes lie from the cells, in cells."""
    spec = deepwave.spec(propagator)
    offered = getattr(spec, f"{kind}_channels")(n_dimensions)
    name = offered[0] if given is None else checks.text(f"{kind}_channel", given)
    check_channels(kind, [name], offered)
    # a velocity component lies half a cell on along its own axis
    axes = ("z", "y", "x")[-n_dimensions:]
    return name, tuple(0.5 if name == axis else 0.0 for axis in axes)


def _depths(spots: Sequence[Spots]) -> str:
    told = []
    for group in spots:
        z = group.positions[..., 0][group.exists]
        low, high = float(z.min()), float(z.max())
        at = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        told.append(f"{group.name}s at {at} m")
    return f"Depths, downwards: {', '.join(told)}."


def _between(
    spots: Sequence[Spots], where: Sequence[Tensor | Interpolation], grid: Grid
) -> str:
    """Return which positions are interpolated."""
    between, shared = [], []
    for group, found in zip(spots, where, strict=True):
        nodes = grid.nodes(group)[group.exists]
        if not bool((nodes == nodes.round()).all()):
            between.append(f"{group.name}s")
        elif isinstance(found, Interpolation):
            shared.append(f"{group.name}s")
    told = []
    if between:
        told.append(
            f"{' and '.join(between).capitalize()} lie between nodes and are "
            f"interpolated (Hicks, {2 * grid.halfwidth} cells in each dimension)."
        )
    else:
        told.append("All positions are on nodes.")
    if shared:
        told.append(f"Some {' and '.join(shared)} of a shot share one.")
    return " ".join(told)
