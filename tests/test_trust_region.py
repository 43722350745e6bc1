"""TrustRegionNewton: its costs, its steps, its runs, bounds and options."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear
from test_bounded_steps import dense_step, model
from test_lanczos import symmetric

import hvpopt
from hvpopt import Status
from hvpopt.methods.forcing import Constant
from hvpopt.methods.method import InnerStatus, Stationary
from hvpopt.methods.points import Budget, Problem

# -- steps ----------------------------------------------------------------------


def step_of(loss, x, **options):
    """Return a method's first step, and the counts before and after it."""
    problem = Problem(hvpopt.TorchObjective(loss), hvpopt.ModelSpace(x))
    method = hvpopt.TrustRegionNewton(**options)
    state = method.start(problem)
    point = problem.linearise(problem.space.to_vector(x), "exact")
    before = problem.objective.counts.snapshot()
    step = method.step(problem, point, state, Budget())
    spent = problem.objective.counts.snapshot() - before
    return step, spent, point, method.update(state, point, point, step)


def products_for(point, radius, tol):
    """Return how many products one radius takes."""
    probe = hvpopt.TrustRegionNewton().probe * tol
    basis = hvpopt.LanczosBasis(point.hessian, rhs=-point.gradient, probe=probe)
    basis.extend()
    while basis.residual_norm(radius=radius) > tol * float(point.gradient.norm()):
        basis.extend()
    return basis.size


def flattening(x):
    weights = torch.linspace(1.0, 3.0, len(x), dtype=x.dtype)
    return (weights * torch.sqrt(1 + x**2)).sum()


def test_rejected_radii_cost_values_and_no_product(generator):
    x = 4 + torch.rand(12, generator=generator, dtype=torch.float64)
    step, spent, point, _ = step_of(flattening, x, radius=1e3, tol=1e-3)
    assert step.trials == spent.values > 1, "the Newton step overshoots by far"
    assert spent.gradients == 0
    assert spent.products == step.direction.inner_iterations
    assert spent.products == products_for(point, 1e3, 1e-3)
    assert step.direction.radius < 1e3
    assert step.value < point.value


def test_larger_radii_cost_values_and_no_product(generator):
    matrix = symmetric(30, generator, torch.linspace(1, 2, 30).double())
    x = torch.randn(30, generator=generator, dtype=torch.float64)
    first = 1e-3 * float(x.norm())
    step, spent, point, state = step_of(
        lambda v: 0.5 * v @ matrix @ v, x, radius=first, tol=0.1
    )
    assert step.direction.radius > 100 * first
    assert step.trials == spent.values > 6
    assert spent.products == products_for(point, first, 0.1)
    assert step.value == pytest.approx(point.value - step.direction.predicted, rel=1e-9)
    assert state.radius >= step.direction.radius


def test_too_large_a_radius_is_taken_back():
    """Past the bend of ``cosh`` the model fails: the better trial is kept."""

    def bend(v):
        return torch.cosh(3 * v).sum() - 60 * v.sum()

    x = torch.zeros(3, dtype=torch.float64)
    values = []

    def watched(v):
        values.append(float(bend(v.detach())))
        return bend(v)

    step, *_ = step_of(watched, x, radius=0.2)
    assert step.value == min(values)


def test_first_radius_is_that_of_the_newton_step(generator):
    matrix = symmetric(20, generator, torch.linspace(1, 9, 20).double())
    x = torch.randn(20, generator=generator, dtype=torch.float64)
    step, spent, *_ = step_of(lambda v: 0.5 * v @ matrix @ v, x, tol=1e-10)
    assert step.trials == spent.values == 1
    assert step.direction.radius == pytest.approx(float(x.norm()), rel=1e-8)
    assert float(step.vector.norm()) < 1e-8 * float(x.norm())


def test_first_radius_at_negative_curvature_is_that_of_the_shifted_step(generator):
    matrix = symmetric(20, generator, torch.linspace(-2, 9, 20).double())
    x = torch.randn(20, generator=generator, dtype=torch.float64)
    step, *_ = step_of(lambda v: 0.5 * v @ matrix @ v, x, tol=1e-8, max_trials=1)
    eye = torch.eye(20, dtype=torch.float64)
    expected = torch.linalg.solve(matrix + 3.0 * eye, -matrix @ x)
    assert step.direction.radius == pytest.approx(float(expected.norm()), rel=1e-4)


def test_poor_step_shrinks_the_next_radius():
    """A step to where a quartic has risen again earns a seventh of what was predicted."""
    x = torch.zeros(1, dtype=torch.float64)
    step, _, point, state = step_of(
        lambda v: (-v + 0.5 * v**2 + 0.39 * v**4).sum(), x, radius=2.0
    )
    assert step.trials == 1
    assert (point.value - step.value) / step.direction.predicted == pytest.approx(0.22)
    # the parabola through value and slope has its minimum at 0.5 / 0.89
    assert state.radius == pytest.approx(0.5, rel=1e-6)


def test_steps_lost_in_rounding_stop_being_accepted(generator):
    """The value is constant to rounding: the second such step in vain ends the run."""
    x = torch.rand(4, generator=generator, dtype=torch.float64)
    step, _, _, state = step_of(lambda v: 1.0 + 1e-20 * torch.exp(v).sum(), x)
    assert step.vector is not None
    assert step.memo.below_rounding
    assert state.stalled, "the gradient at the same point has not fallen"


def test_direction_says_what_the_linear_algebra_found(generator):
    matrix = symmetric(25, generator, torch.linspace(-2, 5, 25).double())
    x = torch.randn(25, generator=generator, dtype=torch.float64)
    step, _, point, _ = step_of(
        lambda v: 0.5 * v @ matrix @ v, x, tol=1e-11, radius=0.3, max_trials=1
    )
    direction = step.direction
    h = direction.vector
    expected, multiplier = dense_step(matrix, point.gradient, direction.radius)
    assert direction.status is InnerStatus.CONVERGED
    np.testing.assert_allclose(h.numpy(), expected, atol=1e-6 * direction.radius)
    assert direction.shift == pytest.approx(multiplier, rel=1e-6)
    assert direction.predicted == pytest.approx(-model(matrix, point.gradient, h))
    true = (matrix @ h + direction.shift * h + point.gradient).norm()
    assert direction.residual == pytest.approx(
        float(true / point.gradient.norm()), rel=1e-3, abs=1e-12
    )
    negative = direction.negative_curvature
    assert float(negative.norm()) == pytest.approx(1.0)
    curvature = float(negative @ matrix @ negative)
    assert curvature == pytest.approx(direction.smallest_eigenvalue)
    assert curvature < -1.5


def test_too_few_products_are_confessed(generator):
    matrix = symmetric(60, generator, torch.logspace(-4, 0, 60).double())
    x = torch.randn(60, generator=generator, dtype=torch.float64)
    step, spent, *_ = step_of(lambda v: 0.5 * v @ matrix @ v, x, tol=1e-8, max_products=3)
    assert spent.products == 3
    assert step.direction.status is InnerStatus.RESIDUAL
    assert step.vector is not None


def test_no_acceptable_radius_says_why():
    def rising(v):
        # every trial is refused; only the gradient is believable
        return (v**2).sum() + (0.0 if torch.is_grad_enabled() else 1e3)

    x = torch.ones(3, dtype=torch.float64)
    step, spent, *_ = step_of(rising, x, radius=1e-3, max_trials=7)
    assert step.vector is None
    assert spent.values == step.trials == 7
    assert "none of 7 radii" in step.reason


# -- runs -----------------------------------------------------------------------


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def test_counts_are_what_the_loss_saw():
    calls = {"graph": 0, "plain": 0}

    def counted(x):
        calls["graph" if torch.is_grad_enabled() else "plain"] += 1
        return rosenbrock(x)

    x = torch.tensor([-1.2, 1.0] * 5, dtype=torch.float64)
    result = hvpopt.minimize(counted, x, method=hvpopt.TrustRegionNewton(), max_iter=15)
    assert result.nfev == calls["plain"]
    assert result.nfev == 1 + sum(record.trials for record in result.history)
    assert result.njev == calls["graph"] == result.nit + 1
    assert result.nhev == sum(record.inner_iterations for record in result.history)
    values = [record.value for record in result.history]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("exponent", [-33, 20])
def test_units_of_the_loss_change_nothing(exponent):
    x = torch.tensor([-1.2, 1.0] * 3, dtype=torch.float64)
    method = hvpopt.TrustRegionNewton()
    plain = hvpopt.minimize(rosenbrock, x, method=method)
    scaled = hvpopt.minimize(lambda v: 2.0**exponent * rosenbrock(v), x, method=method)
    assert torch.equal(scaled.x, plain.x)
    assert scaled.counts == plain.counts


def test_units_of_the_model_change_nothing():
    x = torch.tensor([-1.2, 1.0] * 3, dtype=torch.float64)
    unit = 2.0**-30
    method = hvpopt.TrustRegionNewton()
    plain = hvpopt.minimize(rosenbrock, x, method=method)
    scaled = hvpopt.minimize(lambda v: rosenbrock(v / unit), unit * x, method=method)
    assert torch.equal(scaled.x, unit * plain.x)


LEAVING = {
    "saddle": (lambda v: v[0] ** 2 - v[1] ** 2 + 0.1 * v[1] ** 4, [0.0, 0.0], -2.5),
    "ridge": (lambda v: v[0] ** 2 - v[1] ** 2 + 0.1 * v[1] ** 4, [1.0, 0.0], -2.5),
    "maximum": (lambda v: torch.cos(v).sum(), [0.0, 0.0, 0.0], -3.0),
    "flat maximum": (lambda v: (v**4).sum() - (v**2).sum(), [0.0, 0.0], -0.5),
    # its Hessian vanishes at the saddle itself, where no second-order method sees a way
    "monkey saddle": (
        lambda v: v[0] ** 3 - 3 * v[0] * v[1] ** 2 + (v**2).sum() ** 2,
        [0.0, 1e-4],
        -27 / 256,
    ),
}


@pytest.mark.parametrize("name", LEAVING)
def test_saddles_and_maxima_are_left(name):
    loss, start, lowest = LEAVING[name]
    x = torch.tensor(start, dtype=torch.float64)
    result = hvpopt.minimize(loss, x, method=hvpopt.TrustRegionNewton(), gtol=1e-8)
    assert result.status is Status.CONVERGED
    assert result.fun == pytest.approx(lowest, rel=1e-6)


class HalfHessian(hvpopt.TorchObjective):
    """A loss whose Gauss-Newton matrix is the identity, and knows no saddle."""

    asked = ()

    def hessian(self, model, kind="exact", *, space=None):
        self.asked = (*self.asked, kind)
        if kind == "exact":
            return super().hessian(model, kind, space=space)
        eye = torch.eye(model.numel(), dtype=torch.float64)
        operator = hvpopt.MatrixOperator(2 * eye)
        operator.counts = self.counts.child()
        return operator

    def linearise(self, model, kind="exact", *, space=None):
        return hvpopt.Objective.linearise(self, model, kind, space=space)


def test_gauss_newton_steps_end_where_the_exact_hessian_agrees():
    def valley(v):
        return v[0] ** 2 + v[1] ** 4 - v[1] ** 2 + 0.25

    objective = HalfHessian(valley)
    # a random part of the Krylov space would step past the saddle
    method = hvpopt.TrustRegionNewton(hessian="gauss-newton", probe=0.0)
    x = torch.tensor([3.0, 0.0], dtype=torch.float64)
    result = hvpopt.minimize(objective, x, method=method, max_iter=200)
    assert objective.asked[0] == "gauss-newton"
    assert "exact" in objective.asked
    assert result.status is Status.CONVERGED
    assert abs(float(result.x[1])) == pytest.approx(math.sqrt(0.5), rel=1e-3)


def test_points_know_which_hessian_they_carry():
    objective = HalfHessian(lambda v: (v**2).sum())
    x = torch.tensor([3.0, 1.0], dtype=torch.float64)
    problem = Problem(objective, hvpopt.ModelSpace(x))
    point = problem.linearise(x, hvpopt.TrustRegionNewton(hessian="gauss-newton").kind)
    assert point.kind == "gauss-newton"
    assert problem.with_hessian(point, "exact").kind == "exact"


def plain(state):
    if dataclasses.is_dataclass(state):
        return all(plain(getattr(state, f.name)) for f in dataclasses.fields(state))
    return state is None or type(state) in (int, float, bool, str)


def test_state_is_made_of_plain_things():
    x = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    *_, state = step_of(rosenbrock, x)
    assert plain(state)


def test_rounding_of_the_loss_does_not_stop_a_good_step():
    """The last steps lower the loss by less than the rounding of its large value."""

    def offset(v):
        return 1e6 + (torch.cosh(v - 1) - 1).sum()

    x = torch.linspace(-1.0, 2.0, 8, dtype=torch.float64)
    result = hvpopt.minimize(
        offset, x, method=hvpopt.TrustRegionNewton(), gtol=1e-12, max_iter=50
    )
    assert result.status is Status.CONVERGED
    assert float((result.x - 1).abs().max()) < 1e-10
    values = [record.value for record in result.history]
    rise = max(b - a for a, b in itertools.pairwise(values))
    assert rise <= 8 * np.finfo(float).eps * 1e6


def test_pure_rounding_ends_the_run(generator):
    """Values are noise around a constant, the gradient never falls."""

    def noisy(v):
        waves = torch.sin(1e14 * v).sum().detach()
        return 1.0 + 1e-13 * waves + 1e-17 * torch.exp(v).sum()

    x = torch.rand(4, generator=generator, dtype=torch.float64)
    result = hvpopt.minimize(noisy, x, method=hvpopt.TrustRegionNewton(), max_iter=1000)
    assert result.status is Status.NO_DECREASE
    assert result.nit < 100


# -- bounds ---------------------------------------------------------------------


def boxed_quadratic(n, generator, spectrum):
    matrix = symmetric(n, generator, spectrum)
    linear = matrix @ torch.randn(n, generator=generator, dtype=torch.float64)
    lower = -torch.rand(n, generator=generator, dtype=torch.float64)
    upper = torch.rand(n, generator=generator, dtype=torch.float64)

    def loss(v):
        flat = v.detach()
        assert bool((flat >= lower).all())
        assert bool((flat <= upper).all())
        return 0.5 * v @ matrix @ v - linear @ v

    return loss, matrix, linear, lower, upper


@pytest.mark.parametrize("condition", [10.0, 1e4])
def test_bounded_quadratics_match_an_active_set_method(condition, generator):
    n = 40
    spectrum = torch.logspace(0, -math.log10(condition), n, dtype=torch.float64)
    loss, matrix, linear, lower, upper = boxed_quadratic(n, generator, spectrum)
    start = 0.5 * (lower + upper)
    result = hvpopt.minimize(
        loss,
        start,
        lower=lower,
        upper=upper,
        method=hvpopt.TrustRegionNewton(),
        gtol=1e-9,
    )
    root = torch.linalg.cholesky(matrix)
    side = torch.linalg.solve_triangular(root, linear[:, None], upper=False)[:, 0]
    oracle = lsq_linear(
        root.mT.numpy(),
        side.numpy(),
        bounds=(lower.numpy(), upper.numpy()),
        method="bvls",
        tol=1e-14,
    )
    assert result.status is Status.CONVERGED
    assert 0 < result.history[-1].active < n
    np.testing.assert_allclose(result.x.numpy(), oracle.x, atol=1e-5)
    assert result.fun == pytest.approx(
        float(loss(torch.as_tensor(oracle.x).clamp(lower, upper))), rel=1e-10
    )


def test_bounded_indefinite_quadratics_end_at_a_local_minimum(generator):
    n = 30
    spectrum = torch.linspace(-0.2, 3.0, n, dtype=torch.float64)
    loss, matrix, linear, lower, upper = boxed_quadratic(n, generator, spectrum)
    result = hvpopt.minimize(
        loss,
        0.5 * (lower + upper),
        lower=lower,
        upper=upper,
        method=hvpopt.TrustRegionNewton(),
        gtol=1e-9,
    )
    assert result.status is Status.CONVERGED
    gradient = matrix @ result.x - linear
    low, high = result.x <= lower, result.x >= upper
    assert bool((gradient[low] >= 0).all())
    assert bool((gradient[high] <= 0).all())
    free = ~(low | high)
    assert bool(free.any())
    assert float(gradient[free].abs().max()) < 1e-6
    assert float(torch.linalg.eigvalsh(matrix[free][:, free])[0]) > 0.0


def test_rosenbrock_behind_a_bound_meets_its_first_order_conditions():
    x = torch.tensor([-1.2, 0.6] * 5, dtype=torch.float64)
    result = hvpopt.minimize(
        rosenbrock, x, lower=-1.3, upper=0.6, method=hvpopt.TrustRegionNewton()
    )
    assert result.status is Status.CONVERGED
    gradient = torch.func.grad(rosenbrock)(result.x)
    held = result.x == 0.6
    assert bool(held.any())
    assert bool((gradient[held] <= 0).all())
    assert float(gradient[~held].abs().max()) < 1e-2
    hessian = torch.autograd.functional.hessian(rosenbrock, result.x)
    assert float(torch.linalg.eigvalsh(hessian[~held][:, ~held])[0]) > 0.0


def test_step_that_only_pushes_against_bounds_still_descends():
    """The Newton step leaves the box from the start; steepest descent does not."""
    matrix = torch.tensor([[1.0, 0.99], [0.99, 1.0]], dtype=torch.float64)
    gradient = torch.tensor([-1.0, -1.2], dtype=torch.float64)

    def loss(v):
        return gradient @ v + 0.5 * v @ matrix @ v

    x = torch.zeros(2, dtype=torch.float64)
    newton = torch.linalg.solve(matrix, -gradient)
    assert float(newton[0]) < 0.0
    result = hvpopt.minimize(
        loss,
        x,
        lower=torch.tensor([0.0, -1.0], dtype=torch.float64),
        upper=torch.tensor([1.0, 0.5], dtype=torch.float64),
        method=hvpopt.TrustRegionNewton(tol=1e-6),
        gtol=1e-9,
    )
    assert result.status is Status.CONVERGED
    # cell 1 ends at its bound 0.5, cell 0 where its own derivative vanishes
    np.testing.assert_allclose(result.x.numpy(), [1 - 0.99 * 0.5, 0.5], rtol=1e-6)


def test_every_cell_at_its_bound_is_converged():
    x = torch.ones(3, dtype=torch.float64)
    result = hvpopt.minimize(
        lambda v: -torch.exp(v).sum(), x, upper=1.0, method=hvpopt.TrustRegionNewton()
    )
    assert result.status is Status.CONVERGED


# -- rounding of the products ---------------------------------------------------


def test_tolerance_under_the_floor_ends_the_solve(generator):
    """In float32 a relative residual of 1e-12 is not to be had."""
    n = 300
    x = torch.rand(n, generator=generator)
    noise = 0.2 * torch.randn(n, n, generator=generator) / math.sqrt(n)

    def loss(v):
        return torch.cosh(noise @ v + v).sum()

    for method in (
        hvpopt.TrustRegionNewton(tol=1e-12),
        hvpopt.ShiftedNewton(tol=1e-12),
    ):
        result = hvpopt.minimize(loss, x, method=method, max_iter=1)
        record = result.history[-1]
        assert record.inner_status is InnerStatus.FLOOR
        assert record.inner_iterations < 100
        assert record.residual < 1e-5
        assert "under the rounding of the products" in result.message
    point = Problem(hvpopt.TorchObjective(loss), hvpopt.ModelSpace(x)).linearise(
        x.double(), "exact"
    )
    # just enough products for the residual to pass under the floor
    basis = hvpopt.LanczosBasis(point.hessian, rhs=-point.gradient)
    norm = float(point.gradient.norm())
    basis.extend()
    while basis.residual_norm() > basis.floor() * norm:
        basis.extend()
    _, spent, *_ = step_of(loss, x, tol=1e-12, max_trials=1)
    assert spent.products <= basis.size + 2


# -- at the door ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hessian": "newton"}, "hessian is 'newton'"),
        ({"tol": 0.0}, "tol is 0.0"),
        ({"tol": 1.5}, "tol is 1.5"),
        ({"probe": -0.1}, "probe is -0.1"),
        ({"probe": 1.0}, "probe is 1.0"),
        ({"confidence": 1.0}, "confidence is 1.0"),
        ({"eigenvalue_floor": -1.0}, "eigenvalue_floor is -1.0"),
        ({"max_products": 0}, "max_products is 0"),
        ({"max_trials": 0}, "max_trials is 0"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        hvpopt.TrustRegionNewton(**options)


def test_options_of_the_wrong_type_are_refused():
    with pytest.raises(TypeError):
        hvpopt.TrustRegionNewton(tol="tight")


def test_forcing_terms_and_numbers_are_taken_alike():
    assert hvpopt.TrustRegionNewton(tol=0.3).forcing == Constant(0.3)


def test_escape_of_a_minimum_says_so():
    x = torch.zeros(3, dtype=torch.float64)
    problem = Problem(hvpopt.TorchObjective(lambda v: (v**2).sum()), hvpopt.ModelSpace(x))
    method = hvpopt.TrustRegionNewton()
    point = problem.linearise(x, "exact")
    outcome = method.escape(problem, point, method.start(problem), Budget())
    assert isinstance(outcome, Stationary)
    assert outcome.minimum


def test_next_stage_keeps_the_radius_and_asks_for_a_rough_step_again(generator):
    x = torch.randn(6, generator=generator, dtype=torch.float64)
    *_, state = step_of(rosenbrock, x, radius=0.3)
    problem = Problem(hvpopt.TorchObjective(rosenbrock), hvpopt.ModelSpace(x))
    method = hvpopt.TrustRegionNewton(radius=0.3)
    begun = method.next_stage(problem, dataclasses.replace(state, stalled=True))
    first = method.start(problem)
    assert begun.radius == state.radius
    assert begun.forcing == first.forcing != state.forcing
    assert not begun.stalled
