"""Simultaneous sources: the mean over every choice of signs is the whole Hessian."""

import itertools

import deepwave
import pytest
import torch
from on_device import DEVICE
from tolerances import PRODUCT
from waves import SHAPE, D, arguments, models_of, one_thread, rand

import hvpopt
from hvpopt.fwi import Survey, WaveformMisfit
from hvpopt.fwi.misfit.shot_misfit import random_codes

__all__ = ["one_thread"]
# torch's own, on the way to the second derivatives of staggered propagators
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")


def misfit_of(propagator, generator, n_shots=3, **options):
    survey = Survey(propagator, **arguments(propagator, n_shots))
    observed = survey.simulate(models_of(propagator, generator))
    return WaveformMisfit(survey, observed, **options)


def every_sign(n_shots):
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=n_shots)), dtype=D)


@pytest.mark.parametrize("propagator", ["scalar", "acoustic"])
@pytest.mark.parametrize("kind", ["exact", "gauss-newton"])
def test_mean_over_every_sign_is_the_hessian(propagator, kind, generator):
    misfit = misfit_of(propagator, generator)
    model = models_of(propagator, generator)
    whole = misfit.hessian(model, kind)
    w = rand((whole.size,), generator, -1)
    total = torch.zeros_like(w)
    codes = every_sign(3)
    for code in codes:
        total += misfit.encode(code[None]).hessian(model, kind) @ w
    expected = whole @ w
    assert (total / len(codes) - expected).norm() <= PRODUCT * expected.norm()


def test_several_encoded_shots_are_the_mean_of_one_each(generator, seed):
    misfit = misfit_of("scalar", generator)
    (model,) = models_of("scalar", generator)
    operator = misfit.sample(2, seed=seed).hessian(model, "gauss-newton")
    w = rand(SHAPE, generator, -1)
    product = operator @ w
    codes = random_codes(2, 3, seed)
    apart = [misfit.encode(c[None]).hessian(model, "gauss-newton") @ w for c in codes]
    assert (product - sum(apart) / 2).norm() <= PRODUCT * product.norm()
    assert operator.cost == pytest.approx(2 / 3)
    assert misfit.counts.as_dict() == {
        "values": 0,
        "gradients": 0,
        "products": 2 + 1,
        "propagations": 2 * 4 + 8,
    }


def test_encoded_survey_records_the_coded_sum(generator, seed):
    survey = Survey("scalar", **arguments("scalar", 3))
    (model,) = models_of("scalar", generator)
    codes = random_codes(2, 3, seed)
    together = survey.encode(codes).simulate(model)
    expected = torch.einsum("ks,srt->krt", codes.to(DEVICE), survey.simulate(model))
    assert (together - expected).norm() <= PRODUCT * expected.norm()
    assert survey.n_shots == 3  # the caller's own is as it was


def test_mean_over_every_sign_is_value_and_gradient(generator):
    misfit = misfit_of("scalar", generator)
    model = 1.01 * models_of("scalar", generator)[0]
    found = [
        misfit.encode(code[None]).value_and_gradient(model) for code in every_sign(3)
    ]
    value, gradient = misfit.value_and_gradient(model)
    assert sum(v for v, _ in found) / 8 == pytest.approx(value, rel=PRODUCT)
    error = sum(g for _, g in found) / 8 - gradient
    assert error.norm() <= PRODUCT * gradient.norm()
    encoded = misfit.encode(random_codes(2, 3, seed=3))
    again = encoded.value_and_gradient(model)[0]
    assert encoded.value(model) == again == pytest.approx(float(encoded(model)))


def test_sketch_takes_a_third_of_the_shots_where_they_cannot_be_mixed(generator, seed):
    misfit = misfit_of("scalar", generator, misfit="huber", n_shots=4)
    (model,) = models_of("scalar", generator)
    operator = misfit.sketch(model, seed=seed)
    assert len(operator.shots) == 2
    assert operator.cost == 0.5


def test_sketch_of_a_sum_adds_the_terms(generator, seed):
    misfit = misfit_of("scalar", generator)
    flat = hvpopt.TorchObjective(lambda v: (v * v).sum(), convex=True)
    (model,) = models_of("scalar", generator)
    w = rand(SHAPE, generator, -1)
    together = (misfit + 0.5 * flat).sketch(model, seed=seed)
    expected = misfit.sketch(model, seed=seed) @ w + w
    assert (together @ w - expected).norm() <= PRODUCT * expected.norm()


def moving_receivers(generator):
    options = arguments("scalar", 2)
    locations = options["receivers"]["u"].clone()
    locations[1] += 1
    survey = Survey("scalar", **{**options, "receivers": {"u": locations}})
    (model,) = models_of("scalar", generator)
    return WaveformMisfit(survey, survey.simulate(model))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda g: misfit_of("scalar", g, misfit="huber"), "huber"),
        (lambda g: misfit_of("scalar", g, n_shots=1), "one shot"),
        (moving_receivers, "receivers differ"),
    ],
)
def test_shots_that_cannot_be_mixed_are_refused(make, why, generator):
    misfit = make(generator)
    with pytest.raises(ValueError, match=why):
        misfit.encode(torch.ones(1, misfit.survey.n_shots))


def test_options_at_the_door(generator):
    survey = misfit_of("scalar", generator).survey
    with pytest.raises(ValueError, match="codes have shape"):
        survey.encode(every_sign(3))
    with pytest.raises(ValueError, match="receivers differ"):
        moving_receivers(generator).survey.encode(torch.ones(1, 2))


def mean_error(survey, model, generator):
    """Relative error of the mean over every choice of signs."""
    misfit = WaveformMisfit(survey, survey.simulate(1.01 * model))
    w = rand(SHAPE, generator, -1)
    codes = every_sign(survey.n_shots)
    products = [misfit.encode(c[None]).hessian(model) @ w for c in codes]
    expected = misfit.hessian(model) @ w
    return float((sum(products) / len(codes) - expected).norm() / expected.norm())


def off_grid(kind, generator):
    """Hicks sources or receivers, whose supports overlap from shot to shot."""
    options = arguments("scalar", 2)
    (amplitudes, _) = options["sources"]["u"]
    if kind == "sources":
        places = torch.tensor([[[5.3, 5.2]], [[5.3, 7.4]]], dtype=D)
        where = deepwave.Hicks(places, halfwidth=2, model_shape=SHAPE, dtype=D)
        options["sources"] = {"u": (amplitudes, where)}
    else:
        places = torch.tensor([[[5.1, 6.1]], [[5.1, 6.4]]], dtype=D)
        where = deepwave.Hicks(places, halfwidth=2, model_shape=SHAPE, dtype=D)
        options["receivers"] = {"u": where}
    return Survey("scalar", **options), models_of("scalar", generator)[0]


def test_off_grid_sources_that_overlap_add_up(generator):
    survey, model = off_grid("sources", generator)
    assert mean_error(survey, model, generator) < PRODUCT


def test_off_grid_receivers_that_move_within_a_cell_are_told_apart(generator):
    survey, model = off_grid("receivers", generator)
    assert not survey.fixed_spread
    misfit = WaveformMisfit(survey, survey.simulate(model))
    with pytest.raises(ValueError, match="receivers differ"):
        misfit.encode(torch.ones(1, 2))


def test_shots_from_one_place_and_masked_sources_add_up(generator):
    options = arguments("scalar", 3)
    amplitudes, places = options["sources"]["u"]
    places = torch.cat([places, places + 1], 1)
    places[1] = places[0]
    amplitudes = torch.cat([amplitudes, 0.5 * amplitudes], 1)
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    options["sources"] = {"u": (amplitudes, places, mask)}
    (model,) = models_of("scalar", generator)
    assert mean_error(Survey("scalar", **options), model, generator) < PRODUCT
