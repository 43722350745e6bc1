"""What a run calls converged, and what finding that out may cost."""

import pytest
import torch
import waves

import hvpopt
from hvpopt import Status
from hvpopt.errors import SecondOrderError
from hvpopt.methods.convergence import relative_size

F64 = torch.float64
METHODS = {
    "trust region": hvpopt.TrustRegionNewton,
    "line search": hvpopt.LineSearchNewton,
    "quasi-Newton": hvpopt.QuasiNewton,
    "shifted, lanczos": hvpopt.ShiftedNewton,
    "shifted, cg": lambda: hvpopt.ShiftedNewton(solver="cg"),
    "shifted, cholesky": lambda: hvpopt.ShiftedNewton(solver="cholesky"),
}


@pytest.mark.parametrize("name", METHODS)
def test_no_success_while_unknowns_were_never_looked_at(name):
    """One step lowers the gradient by eight orders, and leaves 20 of 21 cells."""
    weights = torch.tensor([1e8] + [1.0] * 20, dtype=F64)
    start = torch.full((21,), 3.0, dtype=F64)
    result = hvpopt.minimize(
        lambda x: (weights * (x - 1) ** 2).sum(), start, method=METHODS[name]()
    )
    assert result.success
    assert float((result.x - 1).abs().max()) < 1e-3


GUESSING = {
    **METHODS,
    "gradients alone": lambda: hvpopt.QuasiNewton(initial=hvpopt.GradientScale()),
    "loose trust region": lambda: hvpopt.TrustRegionNewton(tol=0.5),
    "loose line search": lambda: hvpopt.LineSearchNewton(tol=0.5),
}


SOLVING = (*METHODS, "loose trust region", "loose line search")
SOLVING = tuple(name for name in SOLVING if name != "quasi-Newton")


@pytest.mark.parametrize("name", GUESSING)
def test_no_success_while_one_steep_direction_hides_the_others(name, generator):
    """As above, in unknowns that the steep direction mixes."""
    rotation = torch.linalg.qr(torch.randn(21, 21, generator=generator, dtype=F64))[0]
    weights = torch.tensor([1e8] + [1.0] * 20, dtype=F64)
    result = hvpopt.minimize(
        lambda x: (weights * (rotation @ (x - 1)) ** 2).sum(),
        torch.full((21,), 3.0, dtype=F64),
        method=GUESSING[name](),
        max_iter=300,
    )
    assert float((result.x - 1).abs().max()) < 1e-2 or not result.success
    if "alone" not in name:
        assert result.success


@pytest.mark.parametrize("name", SOLVING)
def test_no_success_where_float32_hides_the_soft_unknowns(name, generator):
    rotation = torch.linalg.qr(torch.randn(21, 21, generator=generator))[0]
    weights = torch.tensor([1e8] + [1.0] * 20)
    result = hvpopt.minimize(
        lambda x: (weights * (rotation @ (x - 1)) ** 2).sum(),
        torch.full((21,), 3.0),
        method=GUESSING[name](),
    )
    assert float((result.x - 1).abs().max()) < 0.1 or not result.success


@pytest.mark.parametrize("name", SOLVING)
def test_no_success_while_many_steep_directions_hide_the_others(name, generator):
    """What a linear solve to its accuracy shows, and a guess of curvature cannot."""
    weights = torch.cat([torch.linspace(1e8, 5e8, 40), torch.full((20,), 0.1)]).double()
    start = 3 + 0.3 * torch.randn(60, generator=generator, dtype=F64)
    result = hvpopt.minimize(
        lambda x: (weights * (x - 1) ** 2).sum(), start, method=GUESSING[name]()
    )
    assert float((result.x - 1).abs().max()) < 0.1 or not result.success


@pytest.mark.parametrize("weights", [[1e10, 1e3, 1.0], [1e12, 1e6, 1.0]])
@pytest.mark.parametrize("name", GUESSING)
def test_no_success_after_one_step_down_a_steep_valley(name, weights):
    c = torch.tensor(weights, dtype=F64)
    result = hvpopt.minimize(
        lambda x: (c * (x - 1) ** 2).sum(),
        torch.full((3,), 3.0, dtype=F64),
        method=GUESSING[name](),
    )
    assert float((result.x - 1).abs().max()) < 1e-2 or not result.success


@pytest.mark.parametrize("name", GUESSING)
def test_no_success_on_the_floor_of_a_steep_banana(name):
    result = hvpopt.minimize(
        lambda x: 1e6 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2,
        torch.tensor([-1.2, 1.0], dtype=F64),
        method=GUESSING[name](),
        max_iter=60,
    )
    assert result.fun < 1e-6 or not result.success


def test_a_misfit_of_zero_needs_no_step(generator):
    survey = waves.survey()
    (true,) = waves.models_of("scalar", generator)
    misfit = hvpopt.fwi.WaveformMisfit(survey, survey.simulate(true))
    result = hvpopt.minimize(misfit, true)
    assert result.success
    assert result.nhev == 0


@pytest.mark.parametrize("name", METHODS)
def test_no_success_far_up_an_exponential(name):
    start = torch.tensor([40.0], dtype=F64)
    result = hvpopt.minimize(lambda x: (x.exp() - x).sum(), start, method=METHODS[name]())
    assert result.success
    assert result.fun == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_a_small_parameter_counts_beside_a_large_one(name):
    """Units differ by nine orders; both parameters must have come to rest."""
    model = {
        "vp": torch.full((5,), 3000.0, dtype=F64),
        "damping": torch.full((5,), 1e-6, dtype=F64),
    }

    def loss(vp, damping):
        return ((vp - 2500) / 100).square().sum() + (damping * 1e6 - 3).square().sum()

    result = hvpopt.minimize(
        loss,
        model,
        method=METHODS[name](),
        gtol=1e-3,
        scale={"vp": 100.0, "damping": 1e-6},
    )
    assert result.success
    assert float((result.x["damping"] * 1e6 - 3).abs().max()) < 1e-2


def test_both_numbers_are_in_the_message():
    start = torch.zeros(3, dtype=F64)
    result = hvpopt.minimize(lambda x: (x - 1).exp().sum() - x.sum(), start)
    assert result.success
    assert "of the largest met (gtol 1e-06)" in result.message
    assert "change no parameter by more than" in result.message


def test_size_of_a_step_is_relative_to_each_parameter():
    model = (torch.tensor([3.0, 4.0], dtype=F64), torch.tensor([0.0], dtype=F64))
    space = hvpopt.ModelSpace(model, mask=(torch.tensor([True, True]), True))
    start = space.to_vector(model)
    step = torch.tensor([0.03, 0.04, 0.0], dtype=F64)
    assert relative_size(space, start, start, step) == pytest.approx(0.01)
    step[2] = 1e-9  # of a parameter that has been zero ever since
    assert relative_size(space, start, start, step) == float("inf")
    assert relative_size(space, start, start, 0 * step) == 0.0


def test_norms_of_parameters_follow_the_mask(generator):
    model = {
        "a": torch.randn(4, 3, generator=generator, dtype=F64),
        "b": torch.randn(5, generator=generator, dtype=F64),
        "c": torch.randn(2, generator=generator, dtype=F64),
    }
    mask = {
        "a": torch.rand(4, 3, generator=generator) < 0.5,
        "b": torch.zeros(5, dtype=torch.bool),
        "c": torch.ones(2, dtype=torch.bool),
    }
    space = hvpopt.ModelSpace(model, mask=mask)
    norms = space.norms(space.to_vector(model))
    expected = torch.stack([model[k][mask[k]].norm() for k in model])
    assert torch.allclose(norms, expected, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_from_a_solution_ends_well(name, generator):
    matrix = torch.randn(30, 12, generator=generator, dtype=F64)
    target = torch.randn(30, generator=generator, dtype=F64)

    def loss(x):
        return (matrix @ x - target).square().sum() + (x**4).sum()

    first = hvpopt.minimize(
        loss, torch.zeros(12, dtype=F64), method=METHODS[name](), gtol=1e-9
    )
    again = hvpopt.minimize(loss, first.x, method=METHODS[name]())
    assert again.success, again.message
    assert again.fun <= first.fun * (1 + 1e-12)


@pytest.mark.parametrize("name", ["trust region", "shifted, lanczos"])
def test_a_step_that_the_radius_cuts_may_be_small_too(name):
    """The Newton step of |x|^1.5 is twice too long, and its curvature grows."""
    result = hvpopt.minimize(
        lambda x: (x.abs() ** 1.5).sum(),
        torch.ones(3, dtype=F64),
        method=METHODS[name](),
        gtol=1e-4,
    )
    assert result.fun < 1e-9
    assert result.nit < 60


def test_curvature_that_is_not_finite_is_unknown():
    start = torch.zeros(3, dtype=F64)
    result = hvpopt.minimize(lambda x: (x.abs() ** 1.5).sum(), start)
    assert result.status is Status.STATIONARY
    assert "curvature is unknown" in result.message


@pytest.mark.parametrize("name", METHODS)
def test_a_limit_of_steps_is_told_where_more_would_be_taken(name):
    weights = torch.tensor([1e8] + [1.0] * 20, dtype=F64)
    result = hvpopt.minimize(
        lambda x: (weights * (x - 1) ** 2).sum(),
        torch.full((21,), 3.0, dtype=F64),
        method=METHODS[name](),
        max_iter=1,
    )
    assert result.status is Status.MAX_ITERATIONS or result.fun < 1e-6


def test_a_start_without_gradient_was_not_examined_within_no_steps():
    start = torch.zeros(3, dtype=F64)
    result = hvpopt.minimize(lambda x: (x**2).sum(), start, max_iter=0)
    assert result.status is Status.STATIONARY
    assert "its curvature was not examined" in result.message


# -- what it costs ------------------------------------------------------------------


def quadratic(n):
    weights = torch.linspace(1, 10, n, dtype=F64)
    return lambda x: (weights * (x - 1) ** 2).sum()


@pytest.mark.parametrize("name", ["trust region", "line search", "shifted, lanczos"])
def test_looking_costs_no_more_than_minimising(name):
    n = 3000
    result = hvpopt.minimize(
        quadratic(n), torch.zeros(n, dtype=F64), method=METHODS[name](), gtol=1e-4
    )
    assert result.success
    spent = result.history[-1].counts
    at_the_end = result.counts.products - spent.products
    # the step that proved to be small, and a look at λ_min
    minimising = spent.values + spent.gradients + spent.products
    assert at_the_end <= 2 * minimising


@pytest.mark.parametrize("name", ["trust region", "line search", "quasi-Newton"])
@pytest.mark.parametrize("limit", [60, 110, 150, 200, 260])
def test_a_limit_of_products_holds_for_certificates(name, limit):
    weights = torch.logspace(0, 3, 100, dtype=F64)
    result = hvpopt.minimize(
        lambda x: (weights * (x - 1) ** 2).sum() + 0.1 * ((x - 1) ** 4).sum(),
        torch.full((100,), 2.0, dtype=F64),
        method=METHODS[name](),
        certify=True,
        max_products=limit,
    )
    assert result.nhev <= limit


@pytest.mark.parametrize("name", METHODS)
def test_certificate_is_asked_for(name):
    loss, start = quadratic(12), torch.zeros(12, dtype=F64)
    plain = hvpopt.minimize(loss, start, method=METHODS[name]())
    sure = hvpopt.minimize(loss, start, method=METHODS[name](), certify=True)
    assert plain.success
    assert sure.success
    assert "no negative curvature was found here: λ_min ≥ " in sure.message
    assert "with probability 0.99, in 12 products" in sure.message
    assert torch.equal(plain.x, sure.x)
    if name == "quasi-Newton":
        assert plain.nhev < sure.nhev <= plain.nhev + 12
        assert "λ_min was not looked at" in plain.message


def test_a_saddle_on_the_way_is_no_end_for_newton_methods(generator):
    """Along x[1] = 0 the gradient leads to a saddle, and says nothing of the way out."""

    def ridge(x):
        return x[0] ** 2 - x[1] ** 2 + x[1] ** 4 + (x[2:] ** 2).sum()

    start = torch.randn(6, generator=generator, dtype=F64)
    start[1] = 0.0
    for name, make in METHODS.items():
        result = hvpopt.minimize(ridge, start, method=make(), certify=True)
        assert result.fun == pytest.approx(-0.25, abs=1e-4), name
        if name != "quasi-Newton":
            result = hvpopt.minimize(ridge, start, method=make())
            assert result.fun == pytest.approx(-0.25, abs=1e-4), name


def waveform_problem(generator):
    survey = waves.survey()
    (true,) = waves.models_of("scalar", generator)
    misfit = hvpopt.fwi.WaveformMisfit(survey, survey.simulate(true))
    return misfit, torch.full_like(true, 1900.0)


def test_waveform_misfits_end_at_a_met_tolerance(generator):
    misfit, start = waveform_problem(generator)
    result = hvpopt.minimize(misfit, start, lower=1500.0, upper=2400.0, gtol=0.3)
    assert result.status is Status.CONVERGED
    # nothing was spent after the last step
    assert result.counts == result.history[-1].counts
    assert misfit.counts.products == result.history[1].counts.products


def test_a_met_tolerance_at_the_last_step_is_success_too(generator):
    misfit, start = waveform_problem(generator)
    bounds = {"lower": 1500.0, "upper": 2400.0}
    free = hvpopt.minimize(misfit, start, gtol=0.3, **bounds)
    cut = hvpopt.minimize(misfit, start, gtol=0.3, max_iter=free.nit, **bounds)
    assert cut.success
    assert torch.equal(cut.x, free.x)


# -- curvature that is unknown ------------------------------------------------------


class OnceDifferentiable(torch.autograd.Function):
    """x² − y² with a backward of its own that cannot be differentiated again."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x[0] ** 2 - x[1] ** 2 + x[1] ** 4

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * torch.stack([2 * x[0], -2 * x[1] + 4 * x[1] ** 3])


class DetachedGradient(OnceDifferentiable):
    """The same, with a gradient that carries no graph at all."""

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        x = x.detach()
        return grad.detach() * torch.stack([2 * x[0], -2 * x[1] + 4 * x[1] ** 3])


@pytest.mark.filterwarnings("ignore:the gradient of parameter")
@pytest.mark.filterwarnings("ignore:steps come from gradients alone")
@pytest.mark.parametrize("certify", [False, True])
@pytest.mark.parametrize("function", [OnceDifferentiable, DetachedGradient])
@pytest.mark.parametrize(
    "method",
    [None, hvpopt.QuasiNewton(), hvpopt.QuasiNewton(initial=hvpopt.GradientScale())],
)
def test_unknown_curvature_is_no_minimum(method, function, certify):
    start = torch.zeros(2, dtype=F64)
    result = hvpopt.minimize(function.apply, start, method=method, certify=certify)
    assert result.status is Status.STATIONARY
    assert not result.success
    assert torch.equal(result.x, start)


@pytest.mark.parametrize("name", ["line search", "trust region"])
def test_methods_that_need_products_say_that_there_are_none(name):
    start = torch.zeros(2, dtype=F64)
    with pytest.raises(SecondOrderError, match="no second derivative"):
        hvpopt.minimize(OnceDifferentiable.apply, start, method=METHODS[name]())
