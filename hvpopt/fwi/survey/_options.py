"""What a survey is given, checked: deepwave's options, grid spacing, shapes."""

from __future__ import annotations

import inspect
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.fwi.survey.acquisition import Points
from hvpopt.fwi.survey.timestep import TimeStep

#: Cells that the fastest wave may cross in one sample: the shortest wave of a grid is a
#: few cells long, and is sampled at least twice a period, seldom a thousand times.
MIN_CELLS, MAX_CELLS = 0.002, 50.0

# What the survey gives to deepwave itself, and how a caller gives it.
_OWN = {
    "sources": "sources={channel: (amplitudes, locations)}",
    "receivers": "receivers={channel: locations}",
    "bg_receivers": "receivers={channel: locations}",
}


def check_options(
    function: Callable[..., Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return options that deepwave takes and the survey can honour; else raise."""
    # widths of the boundary become Python ints
    known = {
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    checked = dict(options)
    for name, value in options.items():
        if name in _OWN or name.startswith(("source_", "receiver_")):
            way = _OWN.get(name, "sources={channel: ...} and receivers={channel: ...}")
            raise TypeError(f"{name} is not an option of a survey; pass {way}")
        if name not in known:
            raise TypeError(
                f"deepwave's {function.__name__} has no option {name!r}; it has "
                + ", ".join(
                    sorted(n for n in known if not n.startswith(("source", "rec")))
                )
            )
        if name == "pml_width":
            several = isinstance(value, (list, tuple))
            widths = [
                checks.integer(name, width, least=0)
                for width in (value if several else [value])
            ]
            checked[name] = widths if several else widths[0]
        if name == "model_gradient_sampling_interval" and value != 1:
            raise ValueError(
                f"model_gradient_sampling_interval={value} makes gradients inexact, and "
                "their second order undefined; save memory with shots_per_group=, "
                "memory_limit= or checkpoint_segments="
            )
    return checked


def check_shots_and_dimensions(
    sources: Mapping[str, tuple[Tensor, Points]], receivers: Mapping[str, Points]
) -> int:
    """Return the number of coordinates; all channels must share it, and the shots."""
    points = {f"sources[{c!r}]": p for c, (_, p) in sources.items()}
    points |= {f"receivers[{c!r}]": p for c, p in receivers.items()}
    shots = {name: p.n_shots for name, p in points.items()}
    dimensions = {name: p.n_dimensions for name, p in points.items()}
    for what, numbers in (("shots", shots), ("coordinates", dimensions)):
        if len(set(numbers.values())) > 1:
            raise ValueError(
                f"numbers of {what} differ: "
                + ", ".join(f"{name} {n}" for name, n in numbers.items())
            )
    kinds = {f"{a.dtype} on {a.device}" for a, _ in sources.values()}
    if len(kinds) > 1:
        raise ValueError(f"wavelets differ: {', '.join(sorted(kinds))}; convert them")
    return next(iter(dimensions.values()))


def check_channels(kind: str, given: Iterable[str], offered: Sequence[str]) -> None:
    """Raise ValueError for a channel that the propagator does not offer."""
    for channel in given:
        if channel not in offered:
            raise ValueError(
                f"unknown {kind} channel {channel!r}; this propagator has "
                f"{', '.join(map(repr, offered))}"
            )


def spacing_of(grid_spacing: float | Sequence[float], n_dimensions: int) -> list[float]:
    """Return the cell size in each dimension, from one number or one of each."""
    several = isinstance(grid_spacing, (list, tuple, Tensor, np.ndarray))
    given: list[Any] = [grid_spacing]
    if several and np.ndim(grid_spacing) > 0:
        given = list(grid_spacing)  # type: ignore[arg-type]
    spacing = [
        float(checks.number("grid_spacing", s, above=0.0, below=math.inf)) for s in given
    ]
    if len(spacing) == 1:
        spacing *= n_dimensions
    if len(spacing) != n_dimensions:
        raise ValueError(
            f"grid_spacing is {grid_spacing}; it must be positive, one number or one for "
            f"each of {n_dimensions} dimensions"
        )
    return spacing


def check_units(spacing: Sequence[float], dt: float, max_vel: float) -> None:
    """Raise ValueError where metres, seconds and metres per second are not meant."""
    # In one sample a wave at ``max_vel`` crosses a fraction of a cell, or a few where the
    # propagator takes several steps a sample. In other units that is off by a thousand.
    cells = max_vel * dt / min(spacing)
    if MIN_CELLS <= cells <= MAX_CELLS:
        return
    given = f"dt={dt:g} s, max_vel={max_vel:g} m/s and grid_spacing={min(spacing):g} m"
    if cells > MAX_CELLS:
        raise ValueError(
            f"{given} let a wave cross {cells:.4g} cells in one sample, too coarse to "
            "record; dt is in seconds (4 ms is 0.004), grid_spacing in metres"
        )
    raise ValueError(
        f"{given} let a wave cross {cells:.2g} of a cell in one sample, too fine to be "
        "meant; velocities are in m/s (2.5 km/s is 2500.0), grid_spacing in metres"
    )


def samples_of(amplitudes: Iterable[Tensor], nt: int | None) -> int:
    """Return the number of samples to record, of wavelets ``[shot, source, time]``."""
    if nt is not None:
        return checks.integer("nt", nt, least=1)
    lengths = {int(a.shape[-1]) for a in amplitudes}
    if len(lengths) > 1:
        raise ValueError(
            f"wavelets have {sorted(lengths)} samples; give all the same, or pass nt="
        )
    return lengths.pop()


def fit_samples(amplitudes: Tensor, nt: int) -> Tensor:
    """Return wavelets of ``nt`` samples, padded with zeros or cut."""
    missing = nt - amplitudes.shape[-1]
    return torch.nn.functional.pad(amplitudes, (0, missing)) if missing else amplitudes


def pml_widths(options: Mapping[str, Any], n_dimensions: int) -> list[int]:
    """Return the cells of absorbing boundary at each face, two for each dimension."""
    widths = options.get("pml_width", 20)
    if isinstance(widths, int):
        return [widths] * (2 * n_dimensions)
    return [int(width) for width in widths]


def bare_faces(options: Mapping[str, Any], n_dimensions: int) -> list[int]:
    """Return the faces that the caller gave no width and named no condition for."""
    named = options.get("boundary")
    named = [named] * (2 * n_dimensions) if isinstance(named, str) else named
    return [
        i
        for i, width in enumerate(pml_widths(options, n_dimensions))
        if width == 0 and (named is None or named[i] == "pml")
    ]


def silence(category: type[Warning]) -> None:
    """Ignore a category of warnings that deepwave attributes to this package."""
    # The caller's own calls of deepwave still warn. Filters are left as they are where
    # they ignore it already: changing them clears Python's record of what it warned of.
    for action, message, kind, module, _ in warnings.filters:
        if (
            message is None
            and issubclass(category, kind)
            and (module is None or re.match(module, __name__))
        ):
            if action == "ignore":
                return
            break
    warnings.filterwarnings("ignore", category=category, module=r"hvpopt\.fwi\.")


def describe(
    what: str,
    step: TimeStep,
    max_vel: float,
    pml_freq: float,
    n_dimensions: int,
    options: Mapping[str, Any],
) -> str:
    """Return what a survey resolved, as sentences."""
    told = [
        f"{what}, {step.nt} samples of {step.dt:g} s; max_vel {max_vel:g} and pml_freq "
        f"{pml_freq:g} pinned."
    ]
    if step.step_ratio > 1:
        told.append(
            f"dt {step.dt:g} s is above the CFL limit: waves run {step.inner_nt} steps "
            f"of {step.inner_dt:g} s (ratio {step.step_ratio}), wavelets were resampled "
            f"once, recordings return at {step.dt:g} s."
        )
    else:
        told.append("dt is stable: nothing is resampled.")
    if faces := bare_faces(options, n_dimensions):
        told.append(
            f"Faces {', '.join(map(str, faces))} have zero width and no named condition: "
            "deepwave's implicit reflector, as asked for."
        )
    if options.get("storage_compression"):
        told.append("Lossy storage: gradients and products are approximate.")
    if options.get("survey_pad") is not None:
        told.append("survey_pad: results depend on which shots run together.")
    return " ".join(told)
