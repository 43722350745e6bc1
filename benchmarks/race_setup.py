"""What a problem of the race is, and the parts that several problems are made of.

Every problem has the same parts, whatever its physics: a misfit, a start, a true model,
bounds, a mask of the cells that may change, and the size of one unit of each parameter.
All methods search in the same unknowns, ``model / scale`` of the free cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import deepwave
import torch
from race_cost import RacedMisfit
from scipy.ndimage import gaussian_filter
from torch import Tensor

import hvpopt
from hvpopt.model.space import PerParameter
from hvpopt.model.tensors import Model, named_tensors


@dataclass(frozen=True)
class Problem:
    """One inversion.

    Attributes:
        name: Short, for files and tables.
        title: What it is, for a page.
        misfit: To minimise.
        start: Model to start from.
        true: Model that the data are of (in fine-grid, sampled on the coarse grid).
        lower: Bounds, in the model's units.
        upper: Bounds, likewise; below the survey's ``max_vel``.
        scale: One unit of each parameter.
        mask: True where cells may change; None for everywhere.
        budget: Of one run, in gradients.
    """

    name: str
    title: str
    misfit: RacedMisfit
    start: Model
    true: Model
    lower: PerParameter
    upper: PerParameter
    scale: PerParameter
    mask: Tensor | None = None
    budget: float = 100.0

    @cached_property
    def space(self) -> hvpopt.ModelSpace:
        """The flat coordinates of every method, float64."""
        return hvpopt.ModelSpace(
            self.start,
            scale=self.scale,
            mask=self.mask,
            lower=self.lower,
            upper=self.upper,
        )

    def model_error(self, model: Model) -> float:
        """Return the scaled distance to the true model, relative to the start's."""
        true = self.space.to_vector(self.true)
        wanted = (true - self.space.to_vector(self.start)).norm()
        return float((true - self.space.to_vector(model)).norm() / wanted)

    @property
    def size(self) -> str:
        """Cells, unknowns, shots and steps, in words."""
        tensors = named_tensors(self.start)
        ny, nx = next(iter(tensors.values())).shape
        survey = self.misfit.survey
        steps = survey.resolved.nt * survey.resolved.step_ratio
        return (
            f"{ny} × {nx} cells, {self.space.size} unknowns, {survey.n_shots} shots, "
            f"{steps} steps, {str(survey.dtype).removeprefix('torch.')}"
        )


# -- parts of several problems ----------------------------------------------------------


def row_of_points(row: int, columns: Tensor) -> Tensor:
    """Return locations ``[point, 2]`` along a row of cells."""
    return torch.stack([torch.full_like(columns, row), columns], -1)


def spread(first: int, last: int, n: int) -> Tensor:
    """Return ``n`` cells from ``first`` to ``last``, about equally far apart."""
    return torch.linspace(first, last, n).round().long()


def survey_of(
    propagator: str,
    sources: Tensor,
    receivers: Tensor,
    *,
    dx: float,
    dt: float,
    seconds: float,
    frequency: float,
    max_vel: float,
    channels: tuple[str, tuple[str, ...]] = ("u", ("u",)),
    amplitude: float = 1.0,
) -> hvpopt.fwi.Survey:
    """Return a survey whose shots have one source each.

    Args:
        propagator: Its name.
        sources: Locations ``[shot, 2]``.
        receivers: Locations ``[receiver, 2]``, which all shots share, or of each shot
            ``[shot, receiver, 2]``.
        dx: Cell size, metres.
        dt: Sampling interval, seconds.
        seconds: To record.
        frequency: Peak of the Ricker wavelet, hertz.
        max_vel: The fastest speed that a model may have, m/s.
        channels: Of the source, and of the receivers.
        amplitude: Of the wavelet.
    """
    n_shots = sources.shape[0]
    nt = round(seconds / dt)
    wavelet = amplitude * deepwave.wavelets.ricker(frequency, nt, dt, 1.3 / frequency)
    everywhere = receivers if receivers.ndim == 3 else receivers.repeat(n_shots, 1, 1)
    source, recorded = channels
    return hvpopt.fwi.Survey(
        propagator,
        grid_spacing=dx,
        dt=dt,
        sources={source: (wavelet.repeat(n_shots, 1, 1), sources[:, None])},
        receivers=dict.fromkeys(recorded, everywhere),
        max_vel=max_vel,
        pml_freq=frequency,
        pml_width=10,
    )


def direct_wave(survey: hvpopt.fwi.Survey, like: Tensor) -> Tensor:
    """Return what a scalar survey records over water alone, on the grid of a model."""
    data = survey.simulate(torch.full_like(like, 1500.0))
    assert isinstance(data, Tensor)
    return data


def noise_like(
    scattered: Tensor, snr_db: float, frequency: float, dt: float, seed: int
) -> Tensor:
    """Return noise with the spectrum of a Ricker wavelet.

    Args:
        scattered: The data that it is relative to, ``[shot, receiver, time]``.
        snr_db: How far its norm is below theirs, decibels.
        frequency: Peak of the wavelet, hertz.
        dt: Sampling interval, seconds.
        seed: Of the numbers.
    """
    nt = scattered.shape[-1]
    wavelet = deepwave.wavelets.ricker(frequency, nt, dt, 1.3 / frequency)
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(scattered.shape, generator=generator)
    coloured = torch.fft.rfft(white) * torch.fft.rfft(wavelet).abs()
    noise = torch.fft.irfft(coloured, n=nt)
    noise *= 10 ** (-snr_db / 20) * scattered.norm() / noise.norm()
    return noise


def smooth(v: Tensor, rows: int, cells: float) -> Tensor:
    """Blur the slowness, which keeps travel times, under the frozen rows."""
    slowness = gaussian_filter(1 / v.double().numpy(), cells, mode="nearest")
    start = (1 / torch.from_numpy(slowness)).to(v)
    start[:rows] = v[:rows]
    return start


def below(v: Tensor, rows: int) -> Tensor:
    """Return a mask that freezes the first rows."""
    free = torch.ones(v.shape, dtype=torch.bool)
    free[:rows] = False
    return free


class Jitter:
    """Numbers that vary with the seed; seed 0 leaves them as they are."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._size = 0.0 if seed == 0 else 1.0

    def __call__(self, middle: float, reach: float) -> float:
        """Return a number within ``reach`` of ``middle``."""
        draw = 2 * float(torch.rand((), generator=self._generator)) - 1
        return middle + self._size * reach * draw
