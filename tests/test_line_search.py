"""LineSearchNewton: convergence, costs, bounds, negative curvature, what persists."""

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import torch
import waves
from test_lanczos import symmetric

import hvpopt
from hvpopt import (
    DiagonalPreconditioner,
    EisenstatWalker2,
    LineSearchNewton,
    SquareRoot,
    Status,
    TorchObjective,
    Wolfe,
)
from hvpopt.methods.method import InnerStatus
from hvpopt.methods.points import Budget, Problem

F64 = torch.float64


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def logistic(generator, n=30, rows=150):
    features = torch.randn(rows, n, generator=generator, dtype=F64)
    features = features * torch.logspace(0, -2, n, dtype=F64)
    signs = 2.0 * (torch.rand(rows, generator=generator) < 0.5).double() - 1.0

    def loss(x):
        margins = signs * (features @ x)
        return torch.nn.functional.softplus(-margins).mean() + 1e-4 * x.square().sum()

    return loss


def quartic(generator, n=40):
    weights = torch.logspace(0, 2, n, dtype=F64)
    centre = torch.randn(n, generator=generator, dtype=F64)
    return lambda x: (weights * ((x - centre) ** 4 + 0.1 * x * x)).sum()


def by_scipy(loss, start, **options):
    def both(x):
        t = torch.as_tensor(x.copy()).requires_grad_()
        value = loss(t)
        return float(value.detach()), torch.autograd.grad(value, t)[0].numpy()

    options = {"method": "L-BFGS-B", "tol": 1e-15, **options}
    return scipy.optimize.minimize(
        both, start.numpy(), jac=True, options={"maxiter": 5000}, **options
    )


def quadratic(matrix, rhs):
    return lambda x: 0.5 * x @ matrix @ x - rhs @ x


METHODS = {
    "default": {},
    "square root": {"tol": SquareRoot()},
    "constant": {"tol": 0.1},
    "wolfe": {"globalisation": Wolfe()},
    "pairs": {"memory": 8},
}


@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("make", [logistic, quartic])
def test_scipy_agrees_on_the_minimum(generator, make, options):
    loss = make(generator)
    start = torch.zeros(40 if make is quartic else 30, dtype=F64)
    result = hvpopt.minimize(loss, start, method=LineSearchNewton(**options), gtol=1e-8)
    assert result.status is Status.CONVERGED
    expected = by_scipy(loss, start)
    assert result.fun <= expected.fun + 1e-9 * abs(expected.fun)
    if make is logistic:  # the quartic is too flat to fix its argument
        assert np.abs(result.x.numpy() - expected.x).max() < 1e-2


@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
def test_rosenbrock_converges(generator, options):
    # some starts lead along the whole valley: 20 to 90 steps as a rule, 419 were seen
    start = torch.randn(8, generator=generator, dtype=F64)
    method = LineSearchNewton(**options)
    result = hvpopt.minimize(rosenbrock, start, method=method, max_iter=2000, gtol=1e-9)
    assert result.success
    # it has a local minimum besides
    again = by_scipy(rosenbrock, result.x)
    assert result.fun <= again.fun + 1e-9


@pytest.mark.parametrize(("n", "at"), [(30, 0.0), (10, -0.5), (100, -1.2)])
def test_a_gradient_that_grew_does_not_make_steepest_descents(n, at):
    """Which the first of these ran into, a cycle of two steps."""

    def chained(x):
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    start = torch.full((n,), at, dtype=torch.float64)
    result = hvpopt.minimize(chained, start, method=LineSearchNewton(), max_iter=600)
    assert result.success, result.message
    assert result.nit < 5 * n + 100


NAN_BELOW = 5.0


def nan_below(x):
    return (x**2).sum() + torch.where(x < NAN_BELOW, torch.nan, torch.zeros_like(x)).sum()


class WrongSign(torch.autograd.Function):
    """x², with minus its gradient."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x**2).sum()

    @staticmethod
    def backward(ctx, weight):
        (x,) = ctx.saved_tensors
        return -2 * weight * x


@pytest.mark.parametrize("globalisation", [hvpopt.Backtracking(), hvpopt.Wolfe()])
def test_what_no_trial_lowered_is_told_by_its_cause(globalisation):
    method = LineSearchNewton(globalisation=globalisation)
    start = torch.tensor([5.0, 5.0], dtype=torch.float64)
    refused = hvpopt.minimize(nan_below, start, method=method)
    assert "(last refusal: ValueError: the loss is nan at this model)" in refused.message
    assert "rounding" not in refused.message
    wrong = hvpopt.minimize(WrongSign.apply, start, method=LineSearchNewton())
    assert "the gradient may be wrong (analysis.check_gradient tells)" in wrong.message
    assert not wrong.success


def test_quadratic_solved_exactly_takes_one_step(generator):
    n = 25
    matrix = symmetric(n, generator, 1 + torch.rand(n, generator=generator).double())
    rhs = torch.randn(n, generator=generator, dtype=F64)
    result = hvpopt.minimize(
        quadratic(matrix, rhs),
        torch.zeros(n, dtype=F64),
        method=LineSearchNewton(tol=1e-10),
        callback=lambda _, record: record.iteration == 1,
    )
    assert result.nit == 1
    assert result.nhev == result.history[1].inner_iterations <= n
    assert result.nfev == 2  # the start's check and one trial
    expected = torch.linalg.solve(matrix, rhs)
    assert float((result.x - expected).norm() / expected.norm()) < 1e-8
    assert result.history[1].predicted == pytest.approx(-result.fun, rel=1e-6)


@pytest.mark.parametrize("globalisation", [None, Wolfe()])
def test_products_are_conjugate_gradients_alone(generator, globalisation):
    loss = logistic(generator)
    method = LineSearchNewton(globalisation=globalisation, memory=5)
    last = {}
    result = hvpopt.minimize(
        loss,
        torch.zeros(30, dtype=F64),
        method=method,
        gtol=0.0,
        max_iter=4,
        callback=lambda _, record: last.update(counts=record.counts),
    )
    assert result.nhev == sum(record.inner_iterations for record in result.history)
    trials = sum(record.trials for record in result.history)
    if globalisation is None:
        assert result.nfev == 1 + trials
        assert result.njev == 1 + result.nit
    else:
        assert result.nfev == 1
        # a torch loss makes its graph anew for products, but for the last point
        assert result.njev == 1 + trials + result.nit - 1


@pytest.mark.parametrize("forcing", [EisenstatWalker2(), SquareRoot()])
def test_convergence_is_faster_than_linear(generator, forcing):
    loss = logistic(generator)
    start = torch.zeros(30, dtype=F64)
    result = hvpopt.minimize(loss, start, method=LineSearchNewton(tol=forcing), gtol=1e-8)
    norms = [record.gradient_norm for record in result.history]
    rates = [b / a for a, b in itertools.pairwise(norms)]
    assert result.success
    assert min(rates[-2:]) < 1e-2
    slow = hvpopt.minimize(loss, start, method=LineSearchNewton(tol=0.5), gtol=1e-8)
    assert slow.nit > 1.5 * result.nit


def test_stated_residual_meets_the_forcing_term(generator):
    loss = logistic(generator)
    result = hvpopt.minimize(
        loss, torch.zeros(30, dtype=F64), method=LineSearchNewton(tol=0.03), gtol=1e-8
    )
    for record in result.history[1:]:
        assert record.inner_status is InnerStatus.CONVERGED
        assert record.residual <= 0.03


@pytest.mark.parametrize("globalisation", [None, Wolfe()])
@pytest.mark.parametrize("pairs", [0, 6])
def test_scipy_agrees_on_the_bounded_minimum(generator, globalisation, pairs):
    n = 30
    matrix = symmetric(n, generator, torch.logspace(0, 2, n, dtype=F64))
    rhs = 10 * torch.randn(n, generator=generator, dtype=F64)
    lower = -torch.rand(n, generator=generator, dtype=F64)
    upper = torch.rand(n, generator=generator, dtype=F64)

    def loss(x):
        if not bool(((x >= lower) & (x <= upper)).all()):
            raise AssertionError("a trial broke a bound")
        return quadratic(matrix, rhs)(x) + 0.1 * (x**4).sum()

    start = torch.zeros(n, dtype=F64)
    result = hvpopt.minimize(
        loss,
        start,
        lower=lower,
        upper=upper,
        gtol=1e-8,
        max_iter=300,
        method=LineSearchNewton(globalisation=globalisation, memory=pairs),
    )
    box = list(zip(lower.tolist(), upper.tolist(), strict=True))
    expected = by_scipy(loss, start, bounds=box)
    assert result.status is Status.CONVERGED, result.message
    assert result.fun == pytest.approx(expected.fun, rel=1e-8)
    assert result.history[-1].active > 0
    assert np.abs(result.x.numpy() - expected.x).max() < 1e-4


def test_direction_pushed_against_its_bound_is_rescued():
    """Bertsekas' trap: the projected Newton direction climbs, from the bound itself."""
    matrix = torch.tensor([[1.0, 1.9], [1.9, 4.0]], dtype=F64)
    gradient = torch.tensor([-0.1, -1.0], dtype=F64)  # both cells are free
    newton = torch.linalg.solve(matrix, -gradient)
    assert newton[0] < 0.0, "pushes the first through its bound"

    def loss(x):
        return quadratic(matrix, -gradient)(x) + 0 * x.sum()

    result = hvpopt.minimize(
        loss, torch.zeros(2, dtype=F64), lower=0.0, method=LineSearchNewton(tol=1e-8)
    )
    expected = by_scipy(loss, torch.zeros(2, dtype=F64), bounds=[(0, None)] * 2)
    assert result.success
    assert result.fun == pytest.approx(expected.fun, rel=1e-10)


def test_saddle_is_left_and_curvature_reported(generator):
    matrix = symmetric(20, generator, torch.linspace(-1, 3, 20).double())
    loss = lambda x: 0.5 * x @ matrix @ x + 0.25 * x.square().sum() ** 2  # noqa: E731
    for start in (torch.zeros(20), 1e-3 * torch.randn(20, generator=generator)):
        result = hvpopt.minimize(loss, start.double(), method=LineSearchNewton())
        assert result.success
        assert result.fun == pytest.approx(-0.25, abs=1e-6)  # −λ²/4 at λ = −1
        lowest = result.negative_curvature
        assert float(lowest @ matrix @ lowest) < 0.0
        assert float(lowest.norm()) == pytest.approx(1.0)


def test_first_direction_of_negative_curvature_descends(generator):
    matrix = -symmetric(10, generator, 1 + torch.rand(10, generator=generator).double())
    loss = lambda x: 0.5 * x @ matrix @ x + (x**4).sum()  # noqa: E731
    problem = Problem(TorchObjective(loss), hvpopt.ModelSpace(torch.zeros(10).double()))
    start = 1e-3 * torch.randn(10, generator=generator, dtype=F64)
    point = problem.linearise(start, "exact")
    method = LineSearchNewton()
    direction = method.step(problem, point, method.start(problem), Budget()).direction
    h = direction.vector
    assert direction.status is InnerStatus.INDEFINITE
    assert direction.inner_iterations == point.hessian.counts.products == 1
    assert float(h @ point.gradient) < 0.0
    # steepest descent, as long as the model with its curvature's sign turned says
    curvature = float(h @ matrix @ h)
    slope = float(h @ point.gradient)
    along = float(h @ point.gradient / (h.norm() * point.gradient.norm()))
    assert along == pytest.approx(-1.0)
    assert slope == pytest.approx(curvature, rel=1e-2)
    assert direction.predicted == pytest.approx(-slope - 0.5 * curvature, rel=1e-2)


def test_maximum_is_left_not_called_a_minimum():
    result = hvpopt.minimize(
        lambda x: (torch.cos(x)).sum(),
        torch.zeros(3, dtype=F64),
        method=LineSearchNewton(globalisation=Wolfe()),
    )
    assert result.success
    assert result.fun == pytest.approx(-3.0)


# -- Gauss-Newton -----------------------------------------------------------------


class Residuals(TorchObjective):
    """½‖r(x)‖² with its Gauss-Newton matrix, and a note of which Hessians were made."""

    def __init__(self, residual):
        super().__init__(lambda x: 0.5 * residual(x).square().sum(), convex=True)
        self.residual = residual
        self.kinds = []

    def hessian(self, model, kind="exact", *, space=None):
        self.kinds.append(kind)
        if kind == "exact":
            return super().hessian(model, kind, space=space)
        jacobian = torch.autograd.functional.jacobian(self.residual, model)
        operator = hvpopt.MatrixOperator(jacobian.mT @ jacobian)
        operator.counts = self.counts.child()
        return operator

    def linearise(self, model, kind="exact", *, space=None):
        if kind == "gauss-newton":
            value, gradient = self.value_and_gradient(model)
            operator = self.hessian(model, kind, space=space)
            return hvpopt.Linearisation(value, gradient, operator)
        return super().linearise(model, kind, space=space)


def test_gauss_newton_does_not_hide_a_saddle():
    """J vanishes at 0, a maximum: the Gauss-Newton matrix is zero there, not negative."""
    objective = Residuals(lambda x: x**2 - 1)
    method = LineSearchNewton(hessian="gauss-newton")
    result = hvpopt.minimize(objective, torch.zeros(3, dtype=F64), method=method)
    assert result.fun == pytest.approx(0.0, abs=1e-8)
    assert result.history[1].curvature_step


def test_waveforms_start_with_gauss_newton_on_illumination(generator):
    acquisition = waves.survey()
    true = 2000 + 50 * torch.rand(waves.SHAPE, generator=generator, dtype=F64)
    misfit = hvpopt.fwi.WaveformMisfit(acquisition, acquisition.simulate(true))
    start = torch.full(waves.SHAPE, 2000.0, dtype=F64)

    def build(problem, point):
        model = problem.space.to_model(point.vector)
        return hvpopt.fwi.source_illumination(misfit, model, space=problem.space)

    method = LineSearchNewton(
        tol=0.3,
        hessian="gauss-newton",
        preconditioner=build,
        memory=10,
        max_products=8,
    )
    result = hvpopt.minimize(misfit, start, method=method, max_iter=4, upper=2400.0)
    assert result.nit == 4, result.message
    assert result.fun < 0.3 * result.history[0].value
    assert result.nhev == sum(r.inner_iterations for r in result.history)


def test_max_products_bounds_each_step(generator):
    result = hvpopt.minimize(
        quartic(generator),
        torch.zeros(40, dtype=F64),
        method=LineSearchNewton(tol=1e-8, max_products=3),
        max_iter=5,
    )
    spent = [record.inner_iterations for record in result.history[1:]]
    assert max(spent) == 3
    assert result.history[1].inner_status is InnerStatus.RESIDUAL
    assert result.fun < result.history[0].value


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"tol": 0.0}, ValueError),
        ({"tol": "tight"}, TypeError),
        ({"hessian": "newton"}, ValueError),
        ({"globalisation": 3}, TypeError),
        ({"preconditioner": torch.ones(3)}, TypeError),
        ({"preconditioner": DiagonalPreconditioner}, TypeError),
        ({"memory": -1}, ValueError),
        ({"refresh": 0}, ValueError),
        ({"max_products": 0}, ValueError),
        ({"eigenvalue_floor": math.nan}, ValueError),
        ({"confidence": 1.0}, ValueError),
    ],
)
def test_bad_options_are_refused(options, error):
    with pytest.raises(error, match=next(iter(options)).split("_")[0]):
        LineSearchNewton(**options)


def test_next_stage_keeps_the_preconditioner_and_asks_for_a_rough_solve_again(generator):
    start = torch.randn(8, generator=generator, dtype=F64)
    problem = Problem(TorchObjective(rosenbrock), hvpopt.ModelSpace(start))
    forcing = EisenstatWalker2(initial=0.3)
    method = LineSearchNewton(tol=forcing, memory=3)
    point, state = problem.linearise(start, "exact"), method.start(problem)
    for _ in range(4):
        step = method.step(problem, point, state, Budget())
        after = problem.linearise(step.vector, "exact")
        state, point = method.update(state, point, after, step), after
    begun = method.next_stage(problem, state)
    assert begun.preconditioner is state.preconditioner
    assert begun.preconditioner.step_pairs
    assert begun.forcing == method.start(problem).forcing != state.forcing
