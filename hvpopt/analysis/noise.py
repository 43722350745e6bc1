"""Noise: how large the errors of the data are, without which there are no error bars."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import scipy.signal
from torch import Tensor

from hvpopt import checks

Samples: TypeAlias = "Tensor | Mapping[str, Tensor]"


#: Stretches that a spectrum is averaged over at least, and samples of each.
SEGMENTS, SHORTEST = 20, 8
#: What stands for an argument that was not given.
_MISSING: Any = None
USE = (
    "pass Noise(std, n_samples), Noise.from_residuals(...) or Noise.from_quiet(...); "
    "Noise.of_likelihood() if the misfit is minus a log-likelihood"
)


@dataclass(frozen=True)
class Noise:
    """Independent Gaussian errors of one size in every sample of the data.

    They turn a mean of squares into minus the logarithm of a likelihood: with N samples
    and standard deviation σ it is ``weight`` = N / (2σ²) times the misfit.

    Errors that are correlated in time leave fewer independent samples than N. Their
    covariance Σ is at most κσ² times the identity, κ the peak of their spectrum over its
    mean (Σ is a Toeplitz matrix). A posterior made with κσ² in place of σ², as
    ``correlated=True`` does, is that of N / κ independent samples. Its error bars are
    never too small, neither for the model that minimises the misfit so weighted, whose
    error has the covariance ``Q⁻¹ (R + JᵀΣJ / (κσ²)²) Q⁻¹ ≤ Q⁻¹`` with
    ``Q = R + JᵀJ / (κσ²)``, nor beside those of an inversion that whitens the data. They
    are too large by up to √κ where the signal is at other frequencies than the noise.

    Args:
        std: σ, in the units of the data.
        n_samples: N, samples of all shots, receivers and times that the misfit averages.
        source: Where σ comes from, a sentence. Default that it was given.

    Raises:
        TypeError: If one is no number.
        ValueError: If one is not positive and finite.

    Example:
        >>> from hvpopt import analysis
        >>> analysis.Noise(std=0.5, n_samples=1000).weight
        2000.0
    """

    std: float = _MISSING
    n_samples: int = _MISSING
    source: str = "the standard deviation of the noise was given"

    def __post_init__(self) -> None:
        if self.std is None or self.n_samples is None:
            raise TypeError(
                "Noise needs the standard deviation of the noise and the number of "
                f"samples that the misfit averages: {USE}"
            )
        checks.put(
            self,
            std=checks.number("std", self.std, above=0.0, below=math.inf),
            n_samples=checks.integer("n_samples", self.n_samples, least=1),
        )

    @property
    def weight(self) -> float:
        """What times the mean of squares is minus the log-likelihood, N / (2σ²)."""
        return 0.5 * self.n_samples / self.std**2

    @classmethod
    def of_likelihood(cls) -> Noise:
        """Return the noise of a misfit that already is minus a log-likelihood."""
        return cls(1.0, 2, "the misfit is minus the logarithm of a likelihood as it is")

    @classmethod
    def from_residuals(
        cls, residuals: Samples, *, n_fitted: int = 0, correlated: bool = False
    ) -> Noise:
        """Return the noise whose size the residuals of a fitted model show.

        They hold what the model does not explain as well, so that σ is rather too large;
        and too small if the model has fitted noise, which ``n_fitted`` makes up for.

        Args:
            residuals: Simulated minus observed data, all samples of the misfit; a mapping
                by channel where there are several.
            n_fitted: Degrees of freedom that the fit has used up. Default 0.
            correlated: Enlarge σ for noise correlated in time, the last axis. Default
                False.

        Raises:
            TypeError: If they are no tensors of real numbers.
            ValueError: If they are zero, not finite, or no more than ``n_fitted``; or too
                short for a spectrum.
        """
        energy, n = _energy("the residuals", residuals)
        n_fitted = checks.integer("n_fitted", n_fitted, least=0, most=n - 1)
        std = math.sqrt(energy / (n - n_fitted))
        source = f"the standard deviation of the noise is that of {n} residuals"
        factor, note = _correlation("the residuals", residuals, correlated=correlated)
        return cls(std * math.sqrt(factor), n, source + note)

    @classmethod
    def from_quiet(
        cls, quiet: Samples, *, n_samples: int, correlated: bool = False
    ) -> Noise:
        """Return the noise that samples before the first arrival hold alone.

        Args:
            quiet: Observed samples without signal, in any shape; a mapping by channel
                where there are several.
            n_samples: Samples of all the data that the misfit averages.
            correlated: Enlarge σ for noise correlated in time, the last axis. Default
                False.

        Raises:
            TypeError: If they are no tensors of real numbers.
            ValueError: If they are zero or not finite, or too short for a spectrum.
        """
        energy, n = _energy("the quiet samples", quiet)
        std = math.sqrt(energy / n)
        source = f"the standard deviation of the noise is that of {n} quiet samples"
        factor, note = _correlation("the quiet samples", quiet, correlated=correlated)
        return cls(std * math.sqrt(factor), n_samples, source + note)


def _correlation(what: str, samples: Samples, *, correlated: bool) -> tuple[float, str]:
    """Return κ, the peak of the noise's spectrum over its mean, and what to say of it."""
    # Welch's estimate over at least SEGMENTS stretches of time; the scatter that is left
    # makes the peak rather too large. Structure narrower than one over the length of a
    # stretch is not resolved.
    if not checks.flag("correlated", correlated):
        return 1.0, ""
    tensors = list(samples.values()) if isinstance(samples, Mapping) else [samples]
    peaks = []
    for tensor in tensors:
        traces = np.atleast_1d(tensor.detach().double().cpu().numpy())
        length = min(traces.shape[-1], traces.size // SEGMENTS)
        if length < SHORTEST:
            raise ValueError(
                f"{what} have {traces.size} samples in traces of {traces.shape[-1]}; a "
                f"spectrum needs {SEGMENTS} stretches of {SHORTEST} at least"
            )
        _, power = scipy.signal.welch(
            traces, nperseg=length, detrend=False, return_onesided=False
        )
        mean = power.reshape(-1, length).mean(0)
        peaks.append(float(mean.max() / mean.mean()))
    factor = max(peaks)
    note = (
        f", times the root of {factor:.3g}: it is correlated in time, and this is the "
        "peak of its spectrum over the mean"
    )
    return factor, note


def checked_noise(noise: object) -> Noise:
    """Return noise, or raise TypeError that says why there is no error bar without it."""
    use = f"an error bar needs the size of the noise: {USE}"
    return checks.instance("noise", noise, Noise, use)


def _energy(what: str, samples: Samples) -> tuple[float, int]:
    """Return the sum of squares of all samples, and their number."""
    tensors = list(samples.values()) if isinstance(samples, Mapping) else [samples]
    for tensor in tensors:
        checks.tensor(what, tensor)
    energy = sum(float(t.detach().double().square().sum()) for t in tensors)
    if not 0.0 < energy < math.inf:
        raise ValueError(
            f"{what} have the sum of squares {energy:g}; it must be positive"
        )
    return energy, sum(t.numel() for t in tensors)
