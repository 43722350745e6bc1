"""Wavelets of a survey: given, from a file, or Ricker's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import deepwave
import numpy as np
import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.fwi.io.gathers import Gathers, existing_file
from hvpopt.fwi.io.segy import read_segy_traces
from hvpopt.fwi.io.segy_headers import ByteOrder

SEGY = (".sgy", ".segy")


def read_wavelets(wavelet: Any, gathers: Gathers, byte_order: ByteOrder) -> Tensor:
    """Return amplitudes ``[shot, time]``, float64, of what ``read_survey`` takes."""
    n_shots, dt = len(gathers.data), gathers.dt
    if isinstance(wavelet, (Tensor, np.ndarray)) and wavelet.ndim > 0:
        given = torch.as_tensor(wavelet).detach().cpu()
    elif isinstance(wavelet, (str, Path)):
        given = torch.from_numpy(_wavelet_file(Path(wavelet), dt, byte_order))
    elif wavelet is None or isinstance(wavelet, (bool, list, tuple)):
        raise TypeError(
            f"wavelet is {checks.shown(wavelet)}; give a tensor or array [time] or "
            "[shot, time], the path of a .npy or SEG-Y file, or a Ricker wavelet's "
            "frequency in hertz"
        )
    else:
        frequency = checks.number(
            "wavelet (a frequency)", wavelet, above=0.0, below=math.inf
        )
        if frequency * dt > 0.25:
            raise ValueError(
                f"a Ricker wavelet of wavelet={frequency:g} Hz is not sampled at "
                f"dt={dt:g} s: at most {0.25 / dt:g} Hz are"
            )
        samples = max(gathers.data.shape[2], math.ceil(3 / (frequency * dt)))
        given = deepwave.wavelets.ricker(
            frequency, samples, dt, 1.5 / frequency, dtype=torch.float64
        )
    if given.is_complex() or given.dtype == torch.bool:
        raise TypeError(f"the wavelet is {given.dtype}; it must be real")
    if given.ndim == 2 and len(given) == 1:
        given = given[0]
    if given.ndim not in (1, 2) or (given.ndim == 2 and len(given) != n_shots):
        raise ValueError(
            f"the wavelet has shape {tuple(given.shape)}; give [time], or [shot, time] "
            f"for the file's {n_shots} shots"
        )
    if not bool(given.isfinite().all()) or not bool(given.any()):
        raise ValueError("the wavelet is zero, or has NaN or infinite samples")
    return given.double().expand(n_shots, -1)


def _wavelet_file(file: Path, dt: float, byte_order: ByteOrder) -> np.ndarray[Any, Any]:
    existing_file(file)
    if file.suffix.lower() in SEGY:
        traces, own = read_segy_traces(file, byte_order)
        if not math.isclose(own, dt, rel_tol=1e-6):
            raise ValueError(
                f"the wavelet of {file} is sampled at {own:g} s, the data at {dt:g} s; "
                "resample it"
            )
        return np.asarray(traces, np.float64)
    if file.suffix.lower() != ".npy":
        raise ValueError(f"the wavelet's file {file} must end in .npy, .sgy or .segy")
    try:
        return np.asarray(np.load(file, allow_pickle=False), np.float64)
    except (ValueError, EOFError, TypeError) as error:
        raise ValueError(f"{file} is no .npy file of real numbers: {error}") from error


def peak_frequency(wavelet: Any, amplitudes: Tensor, dt: float) -> float:
    """Return the dominant frequency of wavelets ``[shot, time]``, Hz; given, or found."""
    if not isinstance(wavelet, (str, Path)) and np.ndim(wavelet) == 0:
        return float(wavelet)
    samples = max(amplitudes.shape[1], 2048)
    power = torch.fft.rfft(amplitudes.double().cpu(), samples).abs().square().sum(0)
    peak = float(torch.fft.rfftfreq(samples, dt, dtype=torch.float64)[power.argmax()])
    if peak == 0:
        raise ValueError("the wavelet has most energy at 0 Hz; pass pml_freq=, in hertz")
    return peak
