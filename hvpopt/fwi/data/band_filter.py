"""BandFilter: a zero-phase Butterworth filter of the data, as a linear map.

A filter is a convolution with its impulse response. The response is computed once, in
float64, from the filter's spectrum on an axis so long that it has decayed, and cut
where it is below rounding. Records are then padded with zeros by the response's length,
so that nothing wraps round: T is the Toeplitz matrix of the response, symmetric.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.fwi.data.transforms import Apply, DataTransform
from hvpopt.fwi.survey.acquisition import Shots
from hvpopt.fwi.survey.survey import Data, Survey

#: Samples within which a response must die away to be computed: 32 MB.
LONGEST = 2**22


@dataclass(frozen=True, kw_only=True)
class BandFilter(DataTransform):
    """A zero-phase Butterworth low-pass, high-pass or band-pass filter.

    The spectrum is multiplied by the squared magnitude of a digital Butterworth filter:
    1/2 (−6 dB) at the corners, what ``scipy.signal.sosfiltfilt`` (and ObsPy's
    ``zerophase=True``) makes by filtering forwards and backwards.

    Beyond both ends a record is taken for zero. A trace that is cut off while it is
    still large has a step there, which the filter spreads over the length of its
    response, in simulated and observed data alike; ``CosineTaper(end=...)`` before the
    filter avoids it.

    Args:
        low: Lower corner, hertz. Default none: a low-pass.
        high: Upper corner, hertz. Default none: a high-pass.
        order: Of the Butterworth filter. Default 4.

    Raises:
        TypeError: If corners or the order are no numbers.
        ValueError: For no corner, one that is not positive, or corners in another order;
            when it meets the survey, for a corner at or above the Nyquist frequency, or
            a band so narrow that it rings for millions of samples.

    Example:
        >>> t = torch.arange(500, dtype=torch.float64) * 0.004
        >>> slow, fast = torch.sin(2 * torch.pi * 2 * t), torch.sin(2 * torch.pi * 30 * t)
        >>> kept = BandFilter(high=8.0).filter(slow + fast, dt=0.004)
        >>> bool((kept - slow)[200:300].abs().max() < 1e-3)
        True
    """

    low: float | None = None
    high: float | None = None
    order: int = 4

    name = "band filter"

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise ValueError("a band filter needs a corner; give low=, high= or both")
        for name, corner in (("low", self.low), ("high", self.high)):
            if corner is not None:
                corner = checks.number(name, corner, above=0.0, below=math.inf)
                checks.put(self, **{name: corner})
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(
                f"low is {self.low:g} Hz and high {self.high:g} Hz; give (low, high) "
                "with low below high"
            )
        checks.put(self, order=checks.integer("order", self.order, least=1, most=20))

    @property
    def same_for_every_shot(self) -> bool:
        """True, since one response serves every shot."""
        return True

    def fit(self, survey: Survey) -> Apply:
        """Return how it acts on a survey's data; see ``DataTransform``.

        Raises:
            ValueError: For a corner at or above the Nyquist frequency of the survey's
                ``dt``, or a band that rings for too long.
        """
        dt, nt = survey.resolved.dt, survey.resolved.nt
        return self._convolution(nt, dt, survey.dtype, survey.device)

    def filter(self, series: Tensor, dt: float) -> Tensor:
        """Return filtered time series, such as wavelets; differentiable.

        Args:
            series: ``[..., time]``, real.
            dt: Sampling interval, seconds.

        Raises:
            TypeError: If the series are no real tensor.
            ValueError: For a corner at or above the Nyquist frequency, or a band that
                rings for too long.
        """
        checks.instance("series", series, Tensor, "pass a torch.Tensor [..., time]")
        if not series.is_floating_point() or series.ndim == 0:
            raise TypeError(
                f"series are a tensor of {series.dtype} with {series.ndim} dimensions; "
                "give floating-point numbers [..., time]"
            )
        nt, dt = series.shape[-1], checks.number("dt", dt, above=0.0, below=math.inf)
        return self._convolution(nt, dt, series.dtype, series.device).convolve(series)

    def _convolution(
        self, nt: int, dt: float, dtype: torch.dtype, device: torch.device
    ) -> _Convolution:
        """Return the filter of records of a length, or raise ValueError."""
        nyquist = 0.5 / dt
        for name, corner in (("low", self.low), ("high", self.high)):
            if corner is not None and not corner < nyquist:
                raise ValueError(
                    f"{name} is {corner:g} Hz, and data sampled at {dt:g} s hold "
                    f"frequencies below {nyquist:g} Hz alone; lower it, or leave it out"
                )
        from scipy.fft import next_fast_len
        from scipy.signal import butter, freqz_zpk

        corners = [c for c in (self.low, self.high) if c is not None]
        kind: Any = "highpass" if self.high is None else "lowpass"
        design: Any = butter(
            self.order,
            corners[0] if len(corners) == 1 else corners,
            kind if len(corners) == 1 else "bandpass",
            fs=1 / dt,
            output="zpk",
        )
        zeros, poles, gain = design
        slowest = max(abs(poles))
        eps = torch.finfo(torch.float64).eps
        # of a zero-phase filter the response is a sum of p^|k| over the poles p
        ringing = math.log(eps) / math.log(slowest) if slowest < 1 else math.inf
        if not ringing < LONGEST:
            raise ValueError(
                f"{self} rings for {ringing * dt:.3g} s, and records are {nt * dt:.3g} s "
                "long; widen the band, raise or leave out low, or lower the order"
            )
        n = next_fast_len(nt + math.ceil(ringing), real=True)
        axis = torch.arange(n // 2 + 1).numpy() * (2 * math.pi / n)
        _, spectrum = freqz_zpk(zeros, poles, gain, worN=axis)
        power = torch.from_numpy(abs(spectrum) ** 2)
        response = torch.fft.irfft(power, n=n)[:nt]
        above = response.abs() > torch.finfo(dtype).eps * response.abs().max()
        lags = int(above.nonzero().max())
        padded = next_fast_len(nt + lags, real=True)
        kept = response.new_zeros(padded)
        kept[: lags + 1] = response[: lags + 1]
        kept[padded - lags :] = response[1 : lags + 1].flip(0)
        return _Convolution(torch.fft.rfft(kept).real.to(device, dtype), padded, nt)


@dataclass(frozen=True)
class _Convolution:
    """Convolves records of ``nt`` samples with a response, on an axis of ``padded``."""

    spectrum: Tensor  # of the response on the padded axis, [frequency], real
    padded: int
    nt: int

    def __call__(self, data: Data, shots: Shots) -> Data:
        return {channel: self.convolve(d) for channel, d in data.items()}

    def convolve(self, series: Tensor) -> Tensor:
        """Return the filtered series ``[..., time]``."""
        spectrum = torch.fft.rfft(series, n=self.padded) * self.spectrum
        filtered: Tensor = torch.fft.irfft(spectrum, n=self.padded)
        return filtered[..., : self.nt]
