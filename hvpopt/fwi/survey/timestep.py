"""The time step: resolved once, before anything runs.

Deepwave propagates at an internal step that obeys the CFL condition and samples model
gradients once for each of the caller's steps. Where the two differ the gradient is no
longer the derivative of what was computed, and its second order raises. So a survey
propagates at the internal step itself, and resamples on both sides of the propagator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deepwave.discretisation import cfl_condition_n, downsample, upsample
from torch import Tensor


@dataclass(frozen=True)
class TimeStep:
    """How a survey steps through time.

    Attributes:
        dt: Sampling interval of wavelets and data, seconds.
        nt: Samples in the data.
        inner_dt: Step of the propagation, seconds; ``dt / step_ratio``.
        inner_nt: Steps of the propagation, ``nt · step_ratio``.
        step_ratio: Propagation steps for each sample; 1 where ``dt`` is stable.
        freq_taper_frac: Deepwave's option for the resampling. Default 0.
        time_pad_frac: Deepwave's option for the resampling. Default 0.
        time_taper: Deepwave's option for the resampling. Default False.
    """

    dt: float
    nt: int
    inner_dt: float
    inner_nt: int
    step_ratio: int
    freq_taper_frac: float = 0.0
    time_pad_frac: float = 0.0
    time_taper: bool = False

    def refine(self, wavelets: Tensor) -> Tensor:
        """Return wavelets ``[..., nt]`` at the inner step, ``[..., inner_nt]``."""
        return upsample(
            wavelets,
            self.step_ratio,
            freq_taper_frac=self.freq_taper_frac,
            time_pad_frac=self.time_pad_frac,
            time_taper=self.time_taper,
        )

    def coarsen(self, data: Tensor) -> Tensor:
        """Return data ``[..., inner_nt]`` at ``dt``, ``[..., nt]``; differentiable."""
        return downsample(
            data,
            self.step_ratio,
            freq_taper_frac=self.freq_taper_frac,
            time_pad_frac=self.time_pad_frac,
            time_taper=self.time_taper,
        )


def resolve_time_step(
    grid_spacing: Sequence[float],
    dt: float,
    nt: int,
    max_vel: float,
    *,
    courant_number: float | None = None,
    freq_taper_frac: float = 0.0,
    time_pad_frac: float = 0.0,
    time_taper: bool = False,
) -> TimeStep:
    """Return the largest stable step that divides ``dt``, as deepwave would choose it."""
    # spacing in metres, times in seconds, speed in metres per second; the other options
    # are deepwave's, for the resampling
    for name, value in (("dt", dt), ("max_vel", max_vel)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}; it must be positive and finite")
    spacing = list(grid_spacing)
    inner_dt, ratio = cfl_condition_n(spacing, dt, max_vel, courant_number=courant_number)
    # dt / ratio can round to just above the limit that dt itself divides
    while (
        cfl_condition_n(spacing, inner_dt, max_vel, courant_number=courant_number)[1] > 1
    ):
        ratio += 1
        inner_dt = dt / ratio
    return TimeStep(
        dt=dt,
        nt=nt,
        inner_dt=inner_dt,
        inner_nt=nt * ratio,
        step_ratio=ratio,
        freq_taper_frac=freq_taper_frac,
        time_pad_frac=time_pad_frac,
        time_taper=time_taper,
    )
