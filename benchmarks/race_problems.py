"""Small waveform inversions to race on; each is made from a seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import deepwave
import numpy as np
import torch
from race_cost import RacedMisfit
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
from scipy.ndimage import gaussian_filter
from torch import Tensor

import hvpopt


def published(_seed: int = 0) -> Problem:
    """Return Deepwave's Hessian example at a stable time step; it has no seed."""
    ny, nx, frequency, dt = 20, 30, 25.0, 0.0008
    true = torch.full((ny, nx), 1500.0, dtype=torch.float64)
    true[ny // 2 :] += 200.0
    # torchvision's gaussian_blur(true, 31), which the example takes
    blurred = gaussian_filter(true.numpy(), 5.0, mode="mirror", radius=15)
    wavelet = deepwave.wavelets.ricker(
        frequency, 400, dt, 1.3 / frequency, dtype=torch.float64
    )
    survey = hvpopt.fwi.Survey(
        "scalar",
        grid_spacing=4.0,
        dt=dt,
        sources={"u": (wavelet[None, None], torch.tensor([[[1, nx // 2]]]))},
        receivers={"u": row_of_points(1, torch.arange(10, nx - 10))[None]},
        max_vel=2000.0,
        pml_freq=frequency,
        pml_width=[0, 20, 20, 20],
    )
    return Problem(
        name="published",
        title="Deepwave's Hessian example: two layers, one shot, free surface",
        misfit=RacedMisfit(survey, survey.simulate(true)),
        start=torch.from_numpy(blurred),
        true=true,
        lower=1000.0,
        upper=2000.0,
        scale=100.0,
        budget=400.0,
    )


def camembert(seed: int = 0) -> Problem:
    """Return a circular inclusion between a column of sources and one of receivers."""
    jitter, n = Jitter(seed), 50
    middle = [jitter(n / 2, 5.0), jitter(n / 2, 5.0)]
    radius, contrast = jitter(10.0, 2.0), jitter(500.0, 60.0)
    y, x = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    start = torch.full((n, n), 2000.0)
    inside = (y - middle[0]) ** 2 + (x - middle[1]) ** 2 < radius**2
    true = start + contrast * inside
    survey = survey_of(
        "scalar",
        row_of_points(2, spread(3, n - 4, 6)).flip(-1),
        row_of_points(n - 3, torch.arange(1, n - 1)).flip(-1),
        dx=20.0,
        dt=0.0028,
        seconds=0.85,
        frequency=12.0,
        max_vel=2900.0,
    )
    return Problem(
        name="camembert",
        title="a fast disc, seen in transmission from a homogeneous start",
        misfit=RacedMisfit(survey, survey.simulate(true)),
        start=start,
        true=true,
        lower=1600.0,
        upper=2800.0,
        scale=100.0,
    )


def faulted_model(seed: int, per_cell: int = 1) -> Tensor:
    """Return layers under water, bent and cut by two faults, m/s.

    Each cell holds the mean over itself, so that grids agree on where a layer ends.

    Args:
        seed: Of throws, places and velocities.
        per_cell: Samples along each side of a cell of 25 m.

    Returns:
        ``[36 · per_cell, 80 · per_cell]``.
    """
    jitter, ny, nx, inside = Jitter(seed), 36, 80, 4
    depth, x = (
        ((torch.arange(n * per_cell * inside) + 0.5) / inside - 0.5) / per_cell
        for n in (ny, nx)
    )
    depth = depth[:, None]
    moved = jitter(3.0, 1.0) * torch.sin(2 * torch.pi * x / nx)
    moved = moved + jitter(5.0, 1.5) * (x > jitter(26, 4) + 0.4 * depth)
    moved = moved - jitter(4.0, 1.5) * (x > jitter(60, 4) - 0.3 * depth)
    bed = depth - moved
    v = torch.full(bed.shape, 1700.0)
    for top, velocity in ((10.5, 2000), (15.5, 2300), (20.5, 2100), (26.5, 2600)):
        v[bed > top] = jitter(velocity, 60.0)
    v[bed > 32.5] = 2900.0
    v[depth[:, 0] < WATER - 0.5] = 1500.0
    return torch.nn.functional.avg_pool2d(v[None], inside)[0]


WATER = 4  # rows of the faulted models
FREQUENCY = 6.0  # hertz
DT = 0.003  # seconds
SNR_DB = 25.0


def _faulted_survey(per_cell: int = 1) -> hvpopt.fwi.Survey:
    """Return 6 surface shots; on a finer grid the same places and strength."""
    return survey_of(
        "scalar",
        per_cell * row_of_points(1, spread(4, 75, 6)),
        per_cell * row_of_points(1, torch.arange(0, 80, 2)),
        dx=25.0 / per_cell,
        dt=DT,
        seconds=1.35,
        frequency=FREQUENCY,
        max_vel=3400.0,
        # a point source is spread over one cell
        amplitude=float(per_cell**2),
    )


def _faulted(name: str, title: str, seed: int, observed: Tensor | None) -> Problem:
    true = faulted_model(seed)
    survey = _faulted_survey()
    data = survey.simulate(true) if observed is None else observed
    return Problem(
        name=name,
        title=title,
        misfit=RacedMisfit(survey, data),
        start=smooth(true, WATER, 6.0),
        true=true,
        lower=1400.0,
        upper=3300.0,
        scale=100.0,
        mask=below(true, WATER),
    )


def faulted(seed: int = 0) -> Problem:
    """Return a faulted model under water with surface shots."""
    title = "faulted layers under water, 6 surface shots, smoothed start"
    return _faulted("faulted", title, seed, None)


def noisy(seed: int = 0) -> Problem:
    """Return the faulted model with noise in the wavelet's band."""
    survey, true = _faulted_survey(), faulted_model(seed)
    clean = survey.simulate(true)
    scattered = clean - direct_wave(survey, true)
    noise = noise_like(scattered, SNR_DB, FREQUENCY, DT, seed=1000 + seed)
    title = (
        f"the faulted problem with noise of the wavelet's spectrum, {SNR_DB:g} dB below "
        "the data without their direct wave"
    )
    return _faulted("noisy", title, seed, clean + noise)


def fine_grid(seed: int = 0) -> Problem:
    """Return the faulted model with data made on a grid twice as fine.

    The direct wave through the water, whose near field no two grids agree on, is the
    coarse grid's: as though it had been muted in both.
    """
    coarse, fine = _faulted_survey(), _faulted_survey(per_cell=2)
    true = faulted_model(seed, per_cell=2)
    scattered = fine.simulate(true) - direct_wave(fine, true)
    observed = scattered + direct_wave(coarse, faulted_model(seed))
    title = "the faulted problem with data of a grid twice as fine"
    return _faulted("fine-grid", title, seed, observed)


def salt(seed: int = 0) -> Problem:
    """Return a high-contrast body in sediments that grow faster with depth."""
    jitter, ny, nx, water = Jitter(seed), 36, 80, 4
    depth = torch.arange(ny)[:, None].float()
    x = torch.arange(nx)[None, :].float()
    true = (1700.0 + 25.0 * depth).expand(ny, nx).clone()
    top = 13 + 3.0 * torch.cos(0.25 * (x - jitter(40, 5)))
    wide = jitter(18.0, 3.0)
    body = ((x - jitter(40, 6)) / wide) ** 2 + ((depth - 19) / 8.0) ** 2 < 1
    true[body & (depth > top)] = 3800.0
    true[:water] = 1500.0
    survey = survey_of(
        "scalar",
        row_of_points(1, spread(4, nx - 5, 6)),
        row_of_points(1, torch.arange(0, nx, 2)),
        dx=25.0,
        dt=0.0024,
        seconds=1.2,
        frequency=5.0,
        max_vel=4300.0,
    )
    return Problem(
        name="salt",
        title="a salt-like body of 3800 m/s in sediments, 6 surface shots",
        misfit=RacedMisfit(survey, survey.simulate(true)),
        start=smooth(true, water, 5.0),
        true=true,
        lower=1400.0,
        upper=4200.0,
        scale=200.0,
        mask=below(true, water),
    )


def lens(ny: int, nx: int, column: float, row: float) -> Tensor:
    """Return a smooth lens of height 1."""
    y = (torch.arange(ny)[:, None] - row) / 2.5
    x = (torch.arange(nx)[None, :] - column) / 5.0
    return torch.exp(-0.5 * (x**2 + y**2))


def acoustic(seed: int = 0) -> Problem:
    """Return a fast and a dense lens in layers: velocity and density together."""
    jitter, ny, nx, water = Jitter(seed), 32, 60, 4
    start = {"v": torch.full((ny, nx), 1500.0), "rho": torch.full((ny, nx), 1000.0)}
    start["v"][water:], start["rho"][water:] = 1800.0, 1900.0
    start["v"][24:], start["rho"][24:] = 2200.0, 2200.0
    scale = {"v": 150.0, "rho": 300.0}
    true = {
        name: start[name] + scale[name] * lens(ny, nx, jitter(column, 4), jitter(15, 2))
        for name, column in (("v", 18), ("rho", 42))
    }
    for name in true:
        true[name][:water] = start[name][:water]
    survey = survey_of(
        "acoustic",
        row_of_points(1, spread(4, nx - 5, 6)),
        row_of_points(1, torch.arange(0, nx, 2)),
        dx=10.0,
        dt=0.0016,
        seconds=0.6,
        frequency=14.0,
        max_vel=2600.0,
        channels=("volume_rate", ("p",)),
    )
    return Problem(
        name="acoustic",
        title="velocity and density: a fast and a dense lens in layers",
        misfit=RacedMisfit(survey, survey.simulate(true)),
        start=start,
        true=true,
        lower={"v": 1400.0, "rho": 900.0},
        upper={"v": 2500.0, "rho": 3000.0},
        scale=scale,
        mask=below(start["v"], water),
    )


def elastic(seed: int = 0) -> Problem:
    """Return a lens of each of vp, vs and density, recorded in two components."""
    jitter, ny, nx, frozen = Jitter(seed), 24, 44, 3
    growth = 1 + 0.2 * torch.arange(ny)[:, None] / ny
    background = {"vp": 2000.0, "vs": 1150.0, "rho": 2000.0}
    scale = {"vp": 200.0, "vs": 120.0, "rho": 200.0}
    start = {name: (v * growth).repeat(1, nx) for name, v in background.items()}
    true = {
        name: start[name]
        + scale[name] * lens(ny, nx, jitter(11.0 * (i + 1), 3), jitter(11, 2))
        for i, name in enumerate(start)
    }
    for name in true:
        true[name][:frozen] = start[name][:frozen]
    survey = survey_of(
        "elastic",
        row_of_points(1, spread(3, nx - 4, 6)),
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
    observed = survey.simulate(change(**true))
    return Problem(
        name="elastic",
        title="vp, vs and density: a lens of each, recorded in two components",
        misfit=RacedMisfit(survey, observed, parameterisation=change),
        start=start,
        true=true,
        lower={name: 0.8 * v for name, v in background.items()},
        upper={name: 1.4 * v for name, v in background.items()},
        scale=scale,
        mask=below(start["vp"], frozen),
    )


def marmousi(
    path: Path, n_shots: int = 12, name: str = "marmousi", budget: float = 100.0
) -> Problem:
    """Return Marmousi on cells of 60 m, from a file of cells of 30 m.

    Args:
        path: A ``.npy`` file of P velocities in m/s, ``[100, 310]``: depth, distance.
        n_shots: At the surface, about equally far apart.
        name: Of the problem.
        budget: Of one run, in gradients.

    Raises:
        ValueError: If the file holds an array of another shape.
    """
    v = np.load(path)
    if v.shape != (100, 310):
        raise ValueError(f"{path} holds an array of shape {v.shape}, not (100, 310)")
    true = torch.from_numpy(np.ascontiguousarray(v[::2, ::2].astype(np.float32)))
    rows = max(int((true < 1550.0).all(1).int().cumprod(0).sum()), 2)
    nx = true.shape[1]
    survey = survey_of(
        "scalar",
        row_of_points(1, spread(6, nx - 7, n_shots)),
        row_of_points(1, torch.arange(0, nx, 2)),
        dx=60.0,
        dt=0.004,
        seconds=4.0,
        frequency=4.0,
        max_vel=6300.0,
    )
    return Problem(
        name=name,
        title=f"Marmousi on 60 m cells, {n_shots} surface shots, Ricker of 4 Hz",
        misfit=RacedMisfit(survey, survey.simulate(true)),
        start=smooth(true, rows, 6.0),
        true=true,
        lower=1400.0,
        upper=6200.0,
        scale=300.0,
        mask=below(true, rows),
        budget=budget,
    )


#: Problems that need no file, in the order of the page.
PROBLEMS: dict[str, Callable[[int], Problem]] = {
    "published": published,
    "camembert": camembert,
    "faulted": faulted,
    "salt": salt,
    "acoustic": acoustic,
    "elastic": elastic,
    "noisy": noisy,
    "fine-grid": fine_grid,
}
#: Problems that are the same for every seed.
UNSEEDED = ("published", "marmousi")


def build(name: str, seed: int = 0, marmousi_path: Path | None = None) -> Problem:
    """Return a problem by name.

    Args:
        name: One of ``PROBLEMS``, or ``"marmousi"``.
        seed: Of its geometry.
        marmousi_path: The file, for ``"marmousi"``.

    Raises:
        ValueError: For an unknown name, or ``"marmousi"`` without a file.
    """
    if name == "marmousi":
        if marmousi_path is None:
            raise ValueError("the problem 'marmousi' needs its file: --marmousi PATH")
        return marmousi(marmousi_path)
    if name not in PROBLEMS:
        known = ", ".join([*PROBLEMS, "marmousi"])
        raise ValueError(f"there is no problem {name!r}; there are {known}")
    return PROBLEMS[name](seed)
