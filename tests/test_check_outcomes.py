"""Checks of derivatives where a loss rounds by more than its dtype."""

import pytest
import torch
from waves import D, models_of, one_thread, perturbed, survey

import hvpopt
from hvpopt.analysis import check_gradient, check_hessian
from hvpopt.fwi import WaveformMisfit
from hvpopt.problem.objective import Objective

__all__ = ["one_thread"]

FACTORS = {"1 %": 1.01, "sign": -1.0, "half": 0.5, "none": 0.0}


def phase(simulated, observed):
    """Differences of phase at the first frequencies: divides by small spectra."""
    spectra = [torch.fft.rfft(d)[..., 1:6] for d in (simulated, observed)]
    both = spectra[0] * spectra[1].conj()
    return torch.atan2(both.imag, both.real).square().sum()


def wasserstein(simulated, observed):
    """Squared distance of distribution functions of traces made positive."""

    def distribution(traces):
        scale = 3 / observed.detach().abs().amax(-1, keepdim=True)
        mass = torch.nn.functional.softplus(scale * traces)
        return torch.cumsum(mass / mass.sum(-1, keepdim=True), -1)

    return (distribution(simulated) - distribution(observed)).square().sum()


class Wrong(Objective):
    """An objective whose Hessian is multiplied by a factor."""

    def __init__(self, right, factor):
        super().__init__("wrong")
        self.right, self.factor = right, factor

    def value(self, model):
        return self.right.value(model)

    def value_and_gradient(self, model):
        return self.right.value_and_gradient(model)

    def hessian(self, model, kind="exact", *, space=None):
        return self.factor * self.right.hessian(model, kind, space=space)

    def __call__(self, *args, **kwargs):
        return self.right(*args, **kwargs)


class Noisy(Objective):
    """A smooth function whose values round by a given relative size."""

    def __init__(self, noise, factor=1.0, dtype=D):
        super().__init__("noisy")
        self.noise, self.factor = noise, factor
        self.generator = torch.Generator().manual_seed(3)
        self.smooth = hvpopt.TorchObjective(
            lambda x: torch.exp(0.5 * x).sum() + torch.sin(x.sum())
        )

    def value(self, model):
        drawn = float(torch.randn((), generator=self.generator, dtype=D))
        return self.smooth.value(model) * (1 + self.noise * drawn)

    def value_and_gradient(self, model):
        return self.value(model), self.smooth.value_and_gradient(model)[1]

    def hessian(self, model, kind="exact", *, space=None):
        return self.factor * self.smooth.hessian(model, kind, space=space)

    def __call__(self, *args, **kwargs):
        return self.smooth(*args, **kwargs)


def waveform_misfit(misfit, generator, dtype=D):
    there = survey(dtype=dtype)
    (v,) = models_of("scalar", generator, dtype)
    observed = there.simulate(*perturbed((v,), generator))
    return WaveformMisfit(there, observed, misfit), v


MISFITS = {"l2": "l2", "phase": phase, "wasserstein": wasserstein}
misfits = pytest.mark.parametrize("misfit", MISFITS.values(), ids=MISFITS)


@misfits
def test_right_hessians_pass_in_float64(misfit, generator, seed):
    objective, v = waveform_misfit(misfit, generator)
    report = check_hessian(objective, v, seed=seed)
    assert report, str(report)
    assert report.outcome == "pass"


@misfits
def test_right_hessians_never_fail_in_float32(misfit, generator, seed):
    objective, v = waveform_misfit(misfit, generator, torch.float32)
    for check in (check_gradient, check_hessian):
        report = check(objective, v, seed=seed)
        assert not report.failed, str(report)
        assert bool(report) == (report.outcome == "pass")


@pytest.mark.parametrize("factor", FACTORS.values(), ids=FACTORS)
@misfits
def test_wrong_hessians_fail(misfit, factor, generator, seed):
    objective, v = waveform_misfit(misfit, generator)
    report = check_hessian(Wrong(objective, factor), v, seed=seed)
    assert report.failed, str(report)


def test_a_dropped_second_order_term_fails(generator, seed):
    """What layer normalisation was off by: the term of the map's curvature."""
    there = survey()
    (v,) = models_of("scalar", generator)
    observed = there.simulate(*perturbed((v,), generator))
    u = v.log()
    right = WaveformMisfit(there, observed, parameterisation=torch.exp)
    assert check_hessian(right, u, seed=seed, size=0.002)

    class Dropped(Wrong):
        def hessian(self, model, kind="exact", *, space=None):
            return self.right.hessian(model, "gauss-newton", space=space)

    assert check_hessian(Dropped(right, 1.0), u, seed=seed, size=0.002).failed


@pytest.mark.parametrize("noise", [1e-15, 1e-12, 1e-9, 1e-6, 1e-3])
def test_noise_alone_is_never_called_wrong(noise, seed):
    model = torch.linspace(0.5, 1.5, 9, dtype=D)
    for i in range(20):
        for check in (check_gradient, check_hessian):
            report = check(Noisy(noise), model, seed=seed % 2**31 + i)
            assert not report.failed, str(report)


@pytest.mark.parametrize("noise", [1e-15, 1e-13, 1e-10, 1e-7, 1e-4])
def test_what_noise_hides_is_not_passed(noise):
    model = torch.linspace(0.5, 1.5, 9, dtype=D)
    along = torch.ones(9, dtype=D)
    for factor in FACTORS.values():
        report = check_hessian(Noisy(noise, factor), model, direction=along)
        assert not report, str(report)
        assert report.failed or noise > 1e-12, str(report)


def test_words():
    model = torch.linspace(0.5, 1.5, 9, dtype=D)
    told = str(check_hessian(Noisy(1e-3), model))
    assert told.startswith("cannot be told  Hessian matches the loss: ")
    assert "own rounding" in told
    assert "or float64" in told


def test_a_loss_that_is_nowhere_finite_cannot_be_told():
    model, down = (torch.full((4,), x, dtype=D) for x in (1e-3, -1.0))
    report = check_gradient(lambda x: x.log().sum(), model, size=1e6, direction=down)
    assert report.outcome == "cannot be told", str(report)
