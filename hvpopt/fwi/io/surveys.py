"""Surveys from files: headers and positions to a Survey, and the data that go with it."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import deepwave
import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.fwi.io.formats import PathLike
from hvpopt.fwi.io.gathers import Gathers, check_dt, existing_file
from hvpopt.fwi.io.geometry import (
    Grid,
    Spots,
    choose_grid,
    largest_offset,
    located,
    mirror_faces,
    projected,
)
from hvpopt.fwi.io.segy import ByteOrder, read_segy_shots
from hvpopt.fwi.io.wavelets import SEGY, peak_frequency, read_wavelets
from hvpopt.fwi.survey._options import check_channels, spacing_of
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
            all traces start together, else ``[shot, receiver, time]``; None where all
            start at time zero or before.
        shots: Which of the file's shots these are, in its order.
        dropped: Traces that do not take part, though the file has them: ``(shot,
            receiver)`` in the file's order ``[n, 2]``, by the reason, ``"dead"`` (all
            samples are zero) or ``"not finite"``.
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
    Geophysics 67, 2002). Traces that are dead (all zero) or not finite do not take part.

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
            needs (with a free or rigid face above in ``boundary=`` of the scalar
            propagator, its plane is depth zero, one or half a cell above the first
            cell); along the line, ``margin`` cells before the first position.
        shape: Of the model, in cells. Default as large as positions, ``margin`` and
            ``depth`` need.
        depth: Of the default shape's last cell, metres. Default half the largest offset.
        margin: Cells of the default grid beyond the outermost positions along the line.
        line: Its ends ``((x, y), (x, y))``, metres; distances count from the first. By
            default the x or y coordinate where all positions share the other one, else
            the line of least squares, from its end of least x.
        max_off_line: The farthest that a position may lie off the line, metres. Default
            two cells.
        source_depth: Of all sources, metres, in place of the headers'.
        receiver_depth: Of all receivers, metres, in place of the headers'.
        source_channel: Of the propagator. Default its first, an explosion.
        receiver_channel: Of the propagator. Default its first, pressure.
        halfwidth: Of the interpolation's window, cells.
        snap: Distance, cells, within which a position is moved to its node (headers are
            rounded); 0.5 moves all.
        dt: Sampling interval, seconds. Default the headers'.
        nt: Samples to keep. Default all.
        shot_key: SEG-Y trace header, by segyio's name, that tells the shots apart.
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
            grid, no trace is live, or headers, wavelet or options do not fit.

    Example:
        >>> found = read_survey("line.sgy", wavelet=8.0, grid_spacing=12.5,
        ...                     max_vel=4500.0)  # doctest: +SKIP
        >>> misfit = WaveformMisfit(found.survey, found.observed)  # doctest: +SKIP
    """
    _check_names(options)
    checks.floating("dtype", torch.float32 if dtype is None else dtype)
    n_dimensions = checks.integer("n_dimensions", n_dimensions, least=2, most=3)
    spacing = tuple(spacing_of(grid_spacing, n_dimensions))
    gathers, starts = _read(path, dt, byte_order, shot_key, dtype)
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
    observed, recorded = _from_time_zero(data, starts[shots], exists, gathers.dt)
    if nt is not None:
        nt = checks.integer("nt", nt, least=1, most=observed.shape[2])
    observed = observed[..., :nt].to(device, dtype)

    if pml_freq is None:
        pml_freq = peak_frequency(wavelet, amplitudes, gathers.dt)

    told = [_counts(exists)]
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
    find_propagator(checks.text("propagator", propagator))
    fired, fires_at = _channel("source", propagator, n_dimensions, source_channel)
    taken, taken_at = _channel("receiver", propagator, n_dimensions, receiver_channel)
    every = torch.ones(len(shots), 1, dtype=torch.bool)
    spots = [
        Spots("source", sources, every, fires_at, shots.tolist()),
        Spots("receiver", receivers, exists, taken_at, shots.tolist()),
    ]
    grid = choose_grid(
        spots,
        Grid(
            (0.0,) * n_dimensions,
            spacing,
            (1,) * n_dimensions,
            mirror_faces(propagator, options.get("boundary"), n_dimensions),
            checks.integer("halfwidth", halfwidth, least=1, most=10),
            checks.number("snap", snap, least=0.0, below=math.inf),
        ),
        origin,
        shape,
        farthest / 2 if depth is None else checks.number("depth", depth, below=math.inf),
        checks.integer("margin", margin, least=0),
    )
    told.append(_depths(spots))
    chosen = "" if origin is not None and shape is not None else ", chosen to hold them"
    told.append(f"Grid: {grid}{chosen}.")
    source, _ = located(spots[0], grid, device)
    receiver, mask = located(spots[1], grid, device)
    told.append(_between(source, receiver, grid))
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
    told += _starts(begins, recorded)
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
) -> tuple[Gathers, Tensor]:
    """Return gathers, and when each trace starts ``[shot, receiver]``, seconds."""
    dt = checks.optional(check_dt, "dt", dt)
    if isinstance(path, Gathers):
        taken = Gathers(
            path.data.detach().cpu(),
            path.dt if dt is None else dt,
            path.sources,
            path.receivers,
            path.live,
        )
        return taken, torch.zeros(path.data.shape[:2], dtype=torch.float64)
    file = checks.path("path (which may be hvpopt.fwi.Gathers)", path)
    if file.suffix.lower() not in SEGY:
        raise ValueError(
            f"{file} is no SEG-Y file (.sgy, .segy), and no other holds positions; read "
            "it with read_gathers, and give read_survey Gathers(data, dt, sources, "
            "receivers)"
        )
    existing_file(file)
    shot_key = checks.text("shot_key", shot_key)
    gathers, starts = read_segy_shots(
        file, dt, byte_order, shot_key, dtype or torch.float32, pad=True
    )
    check_dt("dt", gathers.dt)
    return gathers, torch.from_numpy(starts)


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
            where[..., 0] = checks.number(f"{name}_depth", z, below=math.inf)
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
    data: Tensor, starts: Tensor, exists: Tensor, dt: float
) -> tuple[Tensor, Tensor | None]:
    """Return data that start with the shot, and where they were recorded, or None."""
    starts = torch.where(exists, starts, starts[exists][0])
    samples = (starts / dt).round().long()
    if bool(((samples * dt - starts).abs() > 1e-3 * dt).any()):
        off = float(starts[(samples * dt - starts).abs() > 1e-3 * dt][0])
        raise ValueError(
            f"a trace starts at {off * 1e3:g} ms (DelayRecordingTime), which is no whole "
            f"number of samples of {dt * 1e3:g} ms; resample the data"
        )
    if not bool(samples.any()):
        return data, None
    n = data.shape[2]
    if int(samples.min()) <= -n:
        raise ValueError(f"a trace ends before its shot: it starts at {starts.min():g} s")
    whole_length = n + int(samples.max())
    moved = data.new_zeros((*data.shape[:2], whole_length))
    recorded = torch.zeros(moved.shape, dtype=torch.bool)
    for shift in torch.unique(samples).tolist():
        mine = samples == shift
        first, last = max(shift, 0), shift + n
        traces = torch.zeros(int(mine.sum()), whole_length, dtype=data.dtype)
        traces[:, first:last] = data[mine][:, first - shift :]
        moved[mine] = traces
        there = torch.zeros(whole_length, dtype=torch.bool)
        there[first:last] = True
        recorded[mine] = there
    if bool(recorded.all()):
        return moved, None
    alike = bool((samples == samples[0, 0]).all())
    return moved, recorded[0, 0] if alike else recorded


# -- what is told -------------------------------------------------------------------


def _starts(begins: Tensor, recorded: Tensor | None) -> list[str]:
    """Return what was done about traces that do not begin with the shot."""
    first, last = float(begins.min()), float(begins.max())
    told = []
    if first < 0.0:
        told.append(f"Cut, before the shot: up to {-first * 1e3:g} ms.")
    if recorded is not None:
        missing = [f"the first {last * 1e3:g} ms"] if last > 0.0 else []
        missing += ["the end of some traces"] if first < last else []
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
    source: Tensor | Interpolation, receiver: Tensor | Interpolation, grid: Grid
) -> str:
    names = [
        name
        for name, where in (("Sources", source), ("receivers", receiver))
        if isinstance(where, Interpolation)
    ]
    if not names:
        return "All positions are on nodes."
    window = 2 * grid.halfwidth
    return (
        f"{' and '.join(names).capitalize()} lie between nodes and are interpolated "
        f"(Hicks, {window} cells in each dimension)."
    )
