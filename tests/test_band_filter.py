"""BandFilter against scipy's filter forwards and backwards; what it refuses."""

import math

import numpy as np
import pytest
import scipy.signal
import torch
from transformed import made_with
from waves import D, one_thread, rand, relative

from hvpopt.fwi import BandFilter

__all__ = ["one_thread"]


@pytest.mark.parametrize("order", [2, 4])
@pytest.mark.parametrize("band", ["lowpass", "highpass", "bandpass"])
def test_filter_is_scipys_forwards_and_backwards(band, order, generator):
    dt, nt = 0.004, int(torch.randint(180, 260, (), generator=generator))
    low, high = (float(rand((), generator, *at)) for at in ((2, 6), (12, 60)))
    series = rand((2, 3, nt), generator, -1)
    corners = {"lowpass": [high], "highpass": [low], "bandpass": [low, high]}[band]
    ours = BandFilter(
        low=None if band == "lowpass" else low,
        high=None if band == "highpass" else high,
        order=order,
    )
    sos = scipy.signal.butter(
        order, corners if len(corners) > 1 else corners[0], band, fs=1 / dt, output="sos"
    )
    silence = 6000  # on both sides; the slowest of these responses is over after 3000
    padded = np.pad(series.numpy(), ((0, 0), (0, 0), (silence, silence)))
    expected = scipy.signal.sosfiltfilt(sos, padded, padtype=None)
    expected = torch.from_numpy(expected[..., silence : silence + nt].copy())
    got = ours.filter(series, dt)
    assert relative(got, expected) < 1e-11
    dense = ours.filter(torch.eye(nt, dtype=D), dt)
    assert relative(dense, dense.T) < 1e-13  # zero phase
    # a Toeplitz matrix: nothing wraps round
    assert relative(dense[1:, 1:], dense[:-1, :-1]) < 1e-13
    spectrum = torch.linalg.eigvalsh(dense)
    assert float(spectrum.min()) > -1e-13
    assert float(spectrum.max()) < 1 + 1e-12


def test_filter_halves_the_amplitude_at_its_corners():
    dt, n = 0.004, 4001
    t = dt * (torch.arange(n, dtype=D) - n // 2)
    for corner in (4.0, 20.0):
        wave = torch.cos(2 * math.pi * corner * t)
        got = BandFilter(low=4.0, high=20.0).filter(wave, dt)
        assert float(got[n // 2]) == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_of_a_pulse_at_one_end_arrives_at_the_other(dtype):
    series = torch.zeros(301, dtype=dtype)
    series[-1] = 1
    got = BandFilter(high=60.0).filter(series, 0.004)
    assert float(got[:200].abs().max()) < 10 * torch.finfo(dtype).eps
    assert float(got[-1]) > 0.3


WRONG = {
    "filter none": (lambda: BandFilter(), ValueError, "give low=, high= or both"),
    "filter text": (lambda: BandFilter(high="6"), TypeError, "high is '6'; pass"),
    "filter zero": (lambda: BandFilter(low=0.0), ValueError, "low is 0"),
    "filter order": (
        lambda: BandFilter(low=9, high=3),
        ValueError,
        "low is 9 Hz and high 3 Hz",
    ),
    "filter of order 0": (lambda: BandFilter(high=3, order=0), ValueError, "order is 0"),
    "filter of half order": (
        lambda: BandFilter(high=3, order=2.5),
        ValueError,
        "order is 2.5; it must be a whole number",
    ),
    "filter above Nyquist": (
        lambda: made_with(BandFilter(high=1000.0)),
        ValueError,
        "high is 1000 Hz, and data sampled at 0.0005 s hold frequencies below 1000 Hz",
    ),
    "filter too narrow": (
        lambda: made_with(BandFilter(low=20.0, high=20.001)),
        ValueError,
        "rings for .* widen the band",
    ),
    "filter of integers": (
        lambda: BandFilter(high=3).filter(torch.arange(9), 0.004),
        TypeError,
        "int64",
    ),
    "filter of a list": (
        lambda: BandFilter(high=3).filter([1.0, 2.0], 0.004),
        TypeError,
        "series is a list",
    ),
    "filter in milliseconds": (
        lambda: BandFilter(high=3).filter(torch.ones(9), 4.0),
        ValueError,
        "data sampled at 4 s",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls(case):
    call, error, words = WRONG[case]
    with pytest.raises(error, match=words):
        call()
