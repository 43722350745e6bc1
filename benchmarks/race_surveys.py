"""Surveys of many shots to race on; all but Marmousi are made from a seed.

The scalar ones share a model of layers under water, bent and cut by three faults, with a
slow lens and a fast body. Two surveys of 48 shots record it: ``fixed-spread``, whose
shots share the receivers, and ``streamer``, whose receivers move with the shot, so that
shots cannot be encoded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from race_cost import RacedMisfit
from race_problems import lens, marmousi
from race_setup import (
    Jitter,
    Problem,
    below,
    direct_wave,
    noise_like,
    row_of_points,
    smooth,
    spread,
    survey_of,
)
from torch import Tensor

import hvpopt

#: In gradients of the whole survey.
BUDGET = 8.0
NY, NX = 30, 100  # cells of 33 m
WATER = 4  # rows
N_SHOTS = 48
FREQUENCY = 4.5  # hertz
DT = 0.0035  # seconds
CABLE = 24  # receivers of a streamer, two cells apart


def layered_model(seed: int = 0, per_cell: int = 1) -> Tensor:
    """Return layers under water, bent and cut, with a slow lens and a fast body, m/s.

    Each cell holds the mean over itself, so that grids agree on where a layer ends.

    Args:
        seed: Of throws, places and velocities.
        per_cell: Samples along each side of a cell of 33 m.

    Returns:
        ``[30 · per_cell, 100 · per_cell]``.
    """
    jitter, inside = Jitter(seed), 4
    depth, x = (
        ((torch.arange(n * per_cell * inside) + 0.5) / inside - 0.5) / per_cell
        for n in (NY, NX)
    )
    depth = depth[:, None]
    moved = jitter(2.0, 0.7) * torch.sin(4 * torch.pi * x / NX + jitter(0.0, 1.0))
    moved = moved + jitter(4.0, 1.0) * (x > jitter(24, 4) + 0.4 * depth)
    moved = moved - jitter(5.0, 1.0) * (x > jitter(55, 4) - 0.3 * depth)
    moved = moved + jitter(3.0, 1.0) * (x > jitter(82, 4) + 0.5 * depth)
    bed = depth - moved
    v = torch.full(bed.shape, 1650.0)
    layers = ((8.5, 1900), (12.5, 2150), (16.0, 2000), (20.0, 2400), (24.0, 2250))
    for top, velocity in layers:
        v[bed > top] = jitter(velocity, 50.0)
    v[bed > 27.5] = 2800.0
    slow = ((x - jitter(70, 4)) / 8) ** 2 + ((depth - jitter(12, 1)) / 2.5) ** 2 < 1
    v[slow] -= 200.0
    fast = ((x - jitter(38, 4)) / 9) ** 2 + ((depth - jitter(18, 1.5)) / 4) ** 2 < 1
    v[fast] = 3200.0
    v[depth[:, 0] < WATER - 0.5] = 1500.0
    return torch.nn.functional.avg_pool2d(v[None], inside)[0]


def fixed_spread(per_cell: int = 1) -> hvpopt.fwi.Survey:
    """Return shots along the surface that share receivers in every second cell.

    Args:
        per_cell: Of the grid; on a finer one the same places and strength.
    """
    return _survey(
        row_of_points(1, spread(3, NX - 4, N_SHOTS)),
        row_of_points(1, torch.arange(0, NX, 2)),
        per_cell,
    )


def streamer(per_cell: int = 1) -> hvpopt.fwi.Survey:
    """Return shots along the surface, each with a cable of its own on one side.

    The line is sailed in two parts, from its middle to either end, so that every cable
    is whole: of shots in the left half it lies to the right, of the others to the left.

    Args:
        per_cell: Of the grid; on a finer one the same places and strength.
    """
    shots = spread(3, NX - 4, N_SHOTS)
    offsets = torch.where(shots < NX / 2, 1, -1)[:, None] * (2 + 2 * torch.arange(CABLE))
    columns = shots[:, None] + offsets
    return _survey(row_of_points(1, shots), row_of_points(1, columns), per_cell)


def _survey(sources: Tensor, receivers: Tensor, per_cell: int) -> hvpopt.fwi.Survey:
    return survey_of(
        "scalar",
        per_cell * sources,
        per_cell * receivers,
        dx=33.0 / per_cell,
        dt=DT,
        seconds=1.33,
        frequency=FREQUENCY,
        max_vel=3900.0,
        # a point source is spread over one cell
        amplitude=float(per_cell**2),
    )


#: What each survey is, for titles.
LAYOUTS: dict[str, tuple[Callable[[int], hvpopt.fwi.Survey], str]] = {
    "fixed-spread": (fixed_spread, f"{N_SHOTS} surface shots that share the receivers"),
    "streamer": (streamer, f"{N_SHOTS} surface shots, each with a cable of its own"),
}


def layered(
    seed: int = 0, *, layout: str, snr_db: float | None = None, fine: bool = False
) -> Problem:
    """Return the layered model seen by one of the surveys.

    Args:
        seed: Of the model, and of the noise.
        layout: The survey, one of ``LAYOUTS``.
        snr_db: How far noise of the wavelet's spectrum is below the data without their
            direct wave, decibels. Default no noise.
        fine: Data of a grid twice as fine, except for the direct wave through the water,
            on whose near field no two grids agree: as though it had been muted in both.
    """
    make, what = LAYOUTS[layout]
    survey, true = make(1), layered_model(seed)
    name, more = layout, ""
    if fine:
        name, more = f"{layout}-fine", "; data of a grid twice as fine"
        finer, finer_true = make(2), layered_model(seed, per_cell=2)
        scattered = finer.simulate(finer_true) - direct_wave(finer, finer_true)
        observed = scattered + direct_wave(survey, true)
    else:
        observed = survey.simulate(true)
    if snr_db is not None:
        name, more = f"{layout}-{snr_db:g}dB", f"; noise of {snr_db:g} dB"
        scattered = observed - direct_wave(survey, true)
        seed_of_noise = 1000 + seed
        observed = observed + noise_like(scattered, snr_db, FREQUENCY, DT, seed_of_noise)
    return Problem(
        name=name,
        title=f"faulted layers under water with a lens and a fast body, {what}{more}",
        misfit=RacedMisfit(survey, observed),
        start=smooth(true, WATER, 6.0),
        true=true,
        lower=1400.0,
        upper=3800.0,
        scale=150.0,
        mask=below(true, WATER),
        budget=BUDGET,
    )


def elastic(seed: int = 0) -> Problem:
    """Return two lenses of each of vp, vs and density, seen by 24 shots."""
    jitter, ny, nx, frozen, n_shots = Jitter(seed), 24, 64, 3, 24
    growth = 1 + 0.2 * torch.arange(ny)[:, None] / ny
    background = {"vp": 2000.0, "vs": 1150.0, "rho": 2000.0}
    scale = {"vp": 200.0, "vs": 120.0, "rho": 200.0}
    start = {name: (v * growth).repeat(1, nx) for name, v in background.items()}
    true = {name: v.clone() for name, v in start.items()}
    # each parameter has a high lens in one third of the line and a low one in another
    for sign, first in ((1.0, 0), (-0.7, 1)):
        for i, name in enumerate(true):
            column = nx * (1 + 2 * ((i + first) % 3)) / 6
            here = lens(ny, nx, jitter(column, 4), jitter(8 + 8 * first, 1.5))
            true[name] = true[name] + sign * scale[name] * here
    for name in true:
        true[name][:frozen] = start[name][:frozen]
    survey = survey_of(
        "elastic",
        row_of_points(1, spread(3, nx - 4, n_shots)),
        row_of_points(1, torch.arange(1, nx - 1)),
        dx=10.0,
        dt=0.0014,
        seconds=0.45,
        frequency=14.0,
        max_vel=3000.0,
        channels=("y", ("y", "x")),
        # a unit force moves so little that squares would underflow in float32
        amplitude=1e8,
    )
    change = hvpopt.fwi.VpVsRho()
    return Problem(
        name="elastic-24",
        title=f"vp, vs and density: two lenses of each, {n_shots} shots, two components",
        misfit=RacedMisfit(
            survey, survey.simulate(change(**true)), parameterisation=change
        ),
        start=start,
        true=true,
        lower={name: 0.8 * v for name, v in background.items()},
        upper={name: 1.4 * v for name, v in background.items()},
        scale=scale,
        mask=below(start["vp"], frozen),
        budget=BUDGET,
    )


#: Surveys that need no file, in the order of the page.
SURVEYS: dict[str, Callable[[int], Problem]] = {
    **{
        f"{layout}{ending}": partial(layered, layout=layout, **options)
        for layout in LAYOUTS
        for ending, options in (
            ("", {}),
            ("-20dB", {"snr_db": 20.0}),
            ("-10dB", {"snr_db": 10.0}),
            ("-fine", {"fine": True}),
        )
    },
    "elastic-24": elastic,
}
#: Shots of Marmousi and the budget, by the problem's name.
MARMOUSI = {"marmousi-48": (48, BUDGET), "marmousi-12": (12, 10.0)}


def encodable(name: str) -> bool:
    """Return whether a survey's shots can be encoded: not those of a streamer."""
    return not name.startswith("streamer")


def build_survey(name: str, seed: int = 0, marmousi_path: Path | None = None) -> Problem:
    """Return a survey of many shots by name.

    Args:
        name: One of ``SURVEYS``, or of ``MARMOUSI``.
        seed: Of the model; Marmousi has none.
        marmousi_path: The file, for Marmousi.

    Raises:
        ValueError: For an unknown name, or Marmousi without a file.
    """
    if name in MARMOUSI:
        if marmousi_path is None:
            raise ValueError(f"the problem {name!r} needs its file: --marmousi PATH")
        n_shots, budget = MARMOUSI[name]
        return marmousi(marmousi_path, n_shots, name, budget)
    if name not in SURVEYS:
        known = ", ".join([*SURVEYS, *MARMOUSI])
        raise ValueError(f"there is no survey {name!r}; there are {known}")
    return SURVEYS[name](seed)
