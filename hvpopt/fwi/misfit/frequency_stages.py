"""Frequency stages: one misfit for each band of frequencies, from low to high."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.fwi.data.band_filter import BandFilter
from hvpopt.fwi.misfit.waveform_misfit import WaveformMisfit
from hvpopt.fwi.survey.survey import Data


def frequency_stages(
    misfit: WaveformMisfit, bands: Iterable[Any], *, order: int = 4
) -> list[WaveformMisfit]:
    """Return the misfits of a multiscale inversion, one for each band of frequencies.

    At low frequencies a wave that arrives early or late is more seldom off by half a
    period, where the misfit has other minima (cycle skipping). So low frequencies come
    first, and each stage starts from the model of the one before (Bunks et al.,
    Geophysics 60, 1995):

        stages = hvpopt.fwi.frequency_stages(misfit, [3.0, 6.0, 12.0])
        result = hvpopt.minimize([*stages, misfit], v)

    A stage is ``misfit.transformed(BandFilter(...))``: simulated and observed data are
    filtered alike, after the misfit's own transforms, so that the true model fits each
    stage exactly. Without such transforms, this is the misfit of a filtered wavelet and
    filtered data, except that what a zero-phase filter spreads before time 0 is not lost.

    A stage takes the same propagations as the misfit, at the survey's time step, and
    holds a filtered copy of the observed data.

    Args:
        misfit: Of all frequencies, of all shots. Not changed; what the stages evaluate
            counts there too.
        bands: Of each stage, hertz: the corner of a low-pass, or ``(low, high)``.
        order: Of the Butterworth filters, which run forwards and backwards. Default 4.

    Returns:
        One misfit for each band, in the order given, to be passed to ``minimize``, alone
        or with ``misfit`` itself as the last stage.

    Raises:
        TypeError: If the misfit is no ``WaveformMisfit``, or a band neither a number nor
            a pair of numbers.
        ValueError: For no band; a corner that is not positive, or at or above the Nyquist
            frequency of the data's ``dt``; a pair in another order; or a band in which
            the data have nothing but rounding.
    """
    use = "pass a hvpopt.fwi.WaveformMisfit; on several ranks shard() each stage"
    checks.instance("misfit", misfit, WaveformMisfit, use)
    if isinstance(bands, (str, bytes)) or not isinstance(bands, Iterable):
        raise TypeError(
            f"bands is {checks.shown(bands)}; give a list of corners or pairs in hertz, "
            "such as [3, 6, 12] or [(1, 3), (1, 6)]"
        )
    filters = [_filter(band, order) for band in bands]
    if not filters:
        raise ValueError("there are no bands; give one for each stage, such as [3, 6]")
    stages = []
    for one in filters:
        stage = misfit.transformed(one)
        _check_energy(one, misfit.waveforms.observed, stage.waveforms.observed)
        stages.append(stage)
    return stages


def _filter(band: Any, order: int) -> BandFilter:
    array = isinstance(band, (Tensor, np.ndarray)) and band.ndim == 1
    if isinstance(band, (tuple, list)) or array:
        if len(band) != 2:
            raise ValueError(f"a band is {tuple(band)}; give a corner, or (low, high)")
        low, high = (_corner("a corner of a band", corner) for corner in band)
        return BandFilter(low=low, high=high, order=order)
    return BandFilter(high=_corner("a band", band), order=order)


def _corner(name: str, value: Any) -> float:
    return checks.number(name, value, above=0.0, below=math.inf)


def _check_energy(band: BandFilter, observed: Data, filtered: Data) -> None:
    """Raise ValueError if the filter has left nothing but rounding."""
    before, after = (
        torch.stack([d.double().norm() for d in data.values()]).norm()
        for data in (observed, filtered)
    )
    eps = max(torch.finfo(d.dtype).eps for d in observed.values())
    if not after > 10 * eps * before:
        raise ValueError(
            f"{band} leaves {float(after / before):.1g} of the amplitude of the observed "
            "data, which is their rounding; begin with a band that the wavelet reaches"
        )
