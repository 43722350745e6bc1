"""Frequency stages: bands of one misfit, the wavelet they stand for, a skipped cycle."""

import deepwave
import numpy as np
import pytest
import torch
from waves import (
    DT,
    FREQ,
    NT,
    D,
    arguments,
    models_of,
    one_thread,
    random_step,
    relative,
    survey,
)

import hvpopt
from hvpopt.fwi import (
    BandFilter,
    CoarseGrid,
    Mute,
    Survey,
    WaveformMisfit,
    frequency_stages,
)

__all__ = ["one_thread"]


def problem(generator, n_shots=2, **options):
    there = survey(n_shots=n_shots)
    (v,) = models_of("scalar", generator)
    true = 1.02 * v
    return WaveformMisfit(there, there.simulate(true), **options), v, true


def test_each_stage_compares_filtered_data(generator):
    misfit, v, _ = problem(generator)
    observed, simulated = misfit.waveforms.observed["u"], misfit.survey.simulate(v)
    before = misfit.counts.values
    stages = frequency_stages(misfit, [40.0, (20.0, 90.0), [30, 120]], order=3)
    filters = [
        BandFilter(high=40.0, order=3),
        BandFilter(low=20.0, high=90.0, order=3),
        BandFilter(low=30.0, high=120.0, order=3),
    ]
    for stage, band in zip(stages, filters, strict=True):
        difference = band.filter(simulated, DT) - band.filter(observed, DT)
        expected = float(difference.square().mean())
        assert stage.value(v) == pytest.approx(expected, rel=1e-12)
    assert misfit.counts.values == before + 3
    # the misfit itself stays as it was
    assert misfit.waveforms.observed["u"] is observed
    expected = float((simulated - observed).square().mean())
    assert misfit.value(v) == pytest.approx(expected, rel=1e-12)


def test_bands_may_be_of_numpy_or_torch(generator):
    misfit, v, _ = problem(generator)
    pairs = [(20.0, 90.0), np.array([20.0, 90.0]), torch.tensor([20.0, 90.0])]
    first, *others = frequency_stages(misfit, pairs)
    assert all(other.value(v) == first.value(v) for other in others)
    with pytest.raises(TypeError, match="positional"):
        BandFilter(6.0)  # a low-pass, or a high-pass?


def test_true_model_fits_every_stage_exactly(generator):
    """Also where the record is cut off while waves still pass."""
    misfit, v, true = problem(generator)
    last = misfit.waveforms.observed["u"][..., -1].abs().max()
    assert float(last) > 0.01 * float(misfit.waveforms.observed["u"].abs().max())
    for stage in frequency_stages(misfit, [30.0, 60.0]):
        assert stage.value(true) <= 1e-28 * stage.value(v)


@pytest.mark.parametrize("name", ["l2", "huber"])
@pytest.mark.parametrize("per_trace", [False, True])
def test_what_was_not_recorded_is_filtered_on_neither_side(name, per_trace, generator):
    there = survey(n_shots=2)
    (v,) = models_of("scalar", generator)
    true = 1.02 * v
    whole = there.simulate(true)
    weights = torch.ones_like(whole) if per_trace else torch.ones(NT, dtype=D)
    weights[..., :12] = 0.0
    if per_trace:
        weights[0, 1, 60:] = 0.0
    make = {"l2": hvpopt.fwi.L2, "huber": hvpopt.fwi.Huber}[name]
    data_misfit = make(sample_weights=weights)
    misfit = WaveformMisfit(there, whole * weights, data_misfit)
    band = BandFilter(high=40.0)
    (stage,) = frequency_stages(misfit, [40.0])
    given = WaveformMisfit(there, whole * weights, data_misfit, transforms=[band])
    simulated = there.simulate(v) * weights
    filtered = band.filter(simulated, DT) - band.filter(whole * weights, DT)
    for found in (stage, given):
        assert found.value(true) == 0.0
        assert found.value(v) > 0.0
        if name == "l2":
            expected = float((filtered.square() * weights).mean())
            assert found.value(v) == pytest.approx(expected, rel=1e-10)
    # twice is once
    (again,) = frequency_stages(stage, [30.0])
    names = [one.name for one in again.waveforms.processing.transforms]
    assert names.count("mask of recorded samples") == 1
    # weights where there are data are a choice: the filter sees all of them
    late = torch.ones(NT, dtype=D)
    late[50:60] = 0.0
    chosen = WaveformMisfit(there, whole, make(sample_weights=late))
    (plain,) = frequency_stages(chosen, [40.0])
    assert [one.name for one in plain.waveforms.processing.transforms] == [band.name]


def test_stages_of_what_is_left_of_a_survey_keep_their_masks(generator):
    there = survey(n_shots=4)
    (v,) = models_of("scalar", generator)
    true = 1.02 * v
    weights = torch.ones(4, 4, NT, dtype=D)
    weights[1, :, :20] = 0.0
    weights[3, 2, 50:] = 0.0
    observed = there.simulate(true) * weights
    misfit = WaveformMisfit(there, observed, hvpopt.fwi.L2(sample_weights=weights))
    (whole,) = frequency_stages(misfit, [40.0])
    left = misfit.without({"shot 2": "bad"})
    (stage,) = frequency_stages(left, [40.0])
    assert stage.value(true) == 0.0
    expected = whole.without({"shot 2": "bad"})
    assert stage.value(v) == pytest.approx(expected.value(v), rel=1e-12)
    assert (
        relative(stage.value_and_gradient(v)[1], expected.value_and_gradient(v)[1])
        < 1e-10
    )
    for shots in ([0, 2], [1]):
        part, same = stage.select(shots), expected.select(shots)
        assert part.value(v) == pytest.approx(same.value(v), rel=1e-12)


def test_mask_of_recorded_samples_serves_misfits_without_weights(generator):
    there = survey(n_shots=2)
    (v,) = models_of("scalar", generator)
    whole = there.simulate(1.02 * v)
    weights = torch.ones_like(whole)
    weights[..., :15] = 0.0
    mask = hvpopt.fwi.RecordedSamples(weights)
    for name in ("envelope", "normalised-correlation", "l2"):
        plain = WaveformMisfit(there, whole * weights, name)
        misfit = plain.transformed(mask)
        assert misfit.value(1.02 * v) == pytest.approx(0.0, abs=1e-14)
        assert misfit.value(v) > 1e-12
        muted = plain.transformed(Mute(top=15 * DT))
        assert misfit.value(v) == pytest.approx(muted.value(v), rel=1e-12)


def test_stage_is_the_misfit_of_a_filtered_wavelet(generator):
    """F(m; H s) = H F(m; s): the wavelet begins late and the record ends late enough."""
    band, nt, quiet = BandFilter(high=70.0, order=2), 900, 300
    late = deepwave.wavelets.ricker(FREQ, nt, DT, quiet * DT, dtype=D)
    given = arguments("scalar", 2)
    _, cells = given["sources"]["u"]
    wavelet = late.expand(2, 1, nt).contiguous()
    (v,) = models_of("scalar", generator)
    recorded = [
        Survey("scalar", **{**given, "sources": {"u": (wave, cells)}}).simulate(v)
        for wave in (wavelet, band.filter(wavelet, DT))
    ]
    filtered = band.filter(recorded[0], DT)
    assert relative(filtered, recorded[0]) > 0.1  # the filter does something
    inside = slice(0, nt - quiet)
    assert relative(recorded[1][..., inside], filtered[..., inside]) < 1e-9


def test_transforms_of_the_misfit_come_first(generator):
    mute = Mute(top=0.4 * NT * DT, taper=0.004)
    misfit, v, true = problem(generator, transforms=[mute])
    (stage,) = frequency_stages(misfit, [50.0])
    there = misfit.survey
    expected = WaveformMisfit(
        there, there.simulate(true), transforms=[mute, BandFilter(high=50.0)]
    )
    assert stage.value(v) == pytest.approx(expected.value(v), rel=1e-12)
    step = random_step((v,), generator)
    for kind in ("exact", "gauss-newton"):
        got, wanted = (m.hessian(v, kind) @ step for m in (stage, expected))
        assert relative(got, wanted) < 1e-12


def test_stages_keep_options_and_can_be_encoded(generator):
    misfit, v, _ = problem(
        generator, n_shots=3, engine="double-backprop", on_bad_shot="drop", name="line"
    )
    (stage,) = frequency_stages(misfit, [60.0])
    assert (stage.engine, stage.on_bad_shot, stage.name) == (
        "double-backprop",
        "drop",
        "line",
    )
    assert stage.encodes
    left = stage.without({"shot 1": "bad"})
    parts = stage.select([0, 2])
    # two of three shots, normalised by their own data
    assert left.value(v) == pytest.approx(1.5 * parts.value(v), rel=1e-12)


def test_normalisation_is_of_the_band(generator):
    """δ of Huber's follows the filtered data, as if they had been given."""
    misfit, v, _ = problem(generator, misfit="huber")
    band = BandFilter(high=45.0)
    (stage,) = frequency_stages(misfit, [45.0])
    filtered = band.filter(misfit.waveforms.observed["u"], DT)
    rms = float(filtered.square().mean().sqrt())
    assert stage.waveforms.constants["delta"] == pytest.approx(rms, rel=1e-12)
    assert stage.value(v) > 0


# -- a cycle that is skipped ------------------------------------------------------------

BACKGROUND = 1900.0
FASTER = [[2300.0, 2500.0, 2350.0], [2450.0, 2300.0, 2400.0]]


def across():
    """Waves of 11 Hz across 600 m, and six unknown velocities.

    Those of the start arrive 60 ms late, of which half a period is 45 ms.
    """
    ny, nx, nt, dt, frequency = 12, 34, 110, 0.004, 11.0
    sources = torch.tensor([[[3, 2]], [[8, 2]]])
    depth = torch.arange(2, ny - 2)
    receivers = torch.stack([depth, torch.full_like(depth, nx - 3)], -1)
    wavelet = deepwave.wavelets.ricker(frequency, nt, dt, 1.2 / frequency, dtype=D)
    there = Survey(
        "scalar",
        grid_spacing=20.0,
        dt=dt,
        sources={"u": (wavelet.repeat(2, 1, 1), sources)},
        receivers={"u": receivers.repeat(2, 1, 1)},
        max_vel=2800.0,
        pml_freq=frequency,
        pml_width=5,
    )
    grid = CoarseGrid((2, 3), (ny, nx))
    true = torch.tensor(FASTER, dtype=D)
    observed = there.simulate(grid(true))
    misfit = WaveformMisfit(there, observed, parameterisation=grid)
    return misfit, torch.full((2, 3), BACKGROUND, dtype=D), true


def test_stages_solve_what_the_full_band_alone_does_not():
    """A fixed model: the full band alone makes slower what is too slow, to the bounds."""
    misfit, start, true = across()
    options = {"scale": 100.0, "lower": 1400.0, "upper": 2800.0}
    method = hvpopt.QuasiNewton
    alone = hvpopt.minimize(misfit, start, method=method(), max_iter=20, **options)
    stages = frequency_stages(misfit, [3.0])
    staged = hvpopt.minimize(
        [*stages, misfit], start, method=method(), max_iter=[5, 12], **options
    )
    away = float((start - true).norm())
    assert alone.success
    assert alone.fun > 0.2 * misfit.value(start)
    assert float((alone.x - true).norm()) > 1.5 * away
    assert staged.fun < 1e-6 * misfit.value(start)
    assert float((staged.x - true).norm()) < 0.01 * away


# -- bad input --------------------------------------------------------------------------


def small():
    return WaveformMisfit(survey(), torch.ones(2, 4, NT, dtype=D))


def silent():
    return WaveformMisfit(survey(), torch.zeros(2, 4, NT, dtype=D))


WRONG = {
    "a survey": (
        lambda: frequency_stages(survey(), [3]),
        TypeError,
        "misfit is a Survey; pass a hvpopt.fwi.WaveformMisfit",
    ),
    "a function": (
        lambda: frequency_stages(lambda v: v, [3]),
        TypeError,
        "misfit is a function",
    ),
    "one number": (lambda: frequency_stages(small(), 6.0), TypeError, r"such as \[3, 6"),
    "text": (lambda: frequency_stages(small(), "3 6"), TypeError, "bands is '3 6'; giv"),
    "texts": (lambda: frequency_stages(small(), ["3"]), TypeError, "a band is '3'; pass"),
    "none": (lambda: frequency_stages(small(), []), ValueError, "there are no bands"),
    "negative": (lambda: frequency_stages(small(), [-3]), ValueError, "a band is -3"),
    "three corners": (
        lambda: frequency_stages(small(), [(1, 2, 3)]),
        ValueError,
        r"a band is \(1, 2, 3\); give a corner, or \(low, high\)",
    ),
    "order of a pair": (
        lambda: frequency_stages(small(), [(90, 30)]),
        ValueError,
        "low is 90 Hz and high 30 Hz",
    ),
    "pair with none": (
        lambda: frequency_stages(small(), [(None, 30)]),
        TypeError,
        "a corner of a band is None",
    ),
    "above Nyquist": (
        lambda: frequency_stages(small(), [30, 1200]),
        ValueError,
        "high is 1200 Hz, and data sampled at 0.0005 s hold frequencies below 1000 Hz",
    ),
    "order of the filter": (
        lambda: frequency_stages(small(), [30], order=0),
        ValueError,
        "order is 0",
    ),
    "silent data": (
        lambda: frequency_stages(silent(), [30]),
        ValueError,
        "of the amplitude of the observed data",
    ),
    "selected shots": (
        lambda: frequency_stages(small().select([0]), [30]),
        ValueError,
        "transform the misfit of all shots",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls(case):
    call, error, words = WRONG[case]
    with pytest.raises(error, match=words):
        call()


def test_band_below_the_wavelet_is_refused():
    """In float32 what a filter leaves of frequencies far away is rounding."""
    there = survey().to(torch.float32)
    t = DT * torch.arange(NT)
    # smooth at both ends and narrow: nothing is left at low frequencies
    window = torch.sin(torch.pi * t / t[-1]) ** 6
    tone = (window * torch.sin(2 * torch.pi * 450.0 * t)).expand(2, 4, NT).contiguous()
    misfit = WaveformMisfit(there, tone)
    with pytest.raises(ValueError, match="begin with a band that the wavelet reaches"):
        frequency_stages(misfit, [8.0], order=6)
