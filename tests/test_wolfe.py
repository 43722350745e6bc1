"""Wolfe: both conditions hold, bounds hold, refusals shorten, gradients are counted."""

import pytest
import torch

import hvpopt
from hvpopt import Backtracking, ModelSpace, TorchObjective, Wolfe
from hvpopt.methods.method import Direction
from hvpopt.methods.points import Problem

F64 = torch.float64


def problem_of(loss, start, **bounds):
    problem = Problem(TorchObjective(loss), ModelSpace(start, **bounds))
    return problem, problem.linearise(start, None)


def vector(*entries):
    return torch.tensor(entries, dtype=F64)


def wavy(x):
    return (x**2).sum() + (3 * torch.sin(5 * x)).sum() + 0.1 * (x**4).sum()


@pytest.mark.parametrize("slope", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("length", [1e-3, 0.1, 1.0, 30.0, 1e4])
def test_both_conditions_hold(generator, slope, length):
    start = torch.randn(6, generator=generator, dtype=F64)
    problem, point = problem_of(wavy, start)
    tilt = 0.3 * torch.rand(6, generator=generator, dtype=F64)
    direction = Direction(-length * (1 + tilt) * point.gradient)
    step = Wolfe(slope=slope, max_trials=60).search(problem, point, direction)
    first = float(point.gradient @ direction.vector)
    x = step.vector.clone().requires_grad_()
    value = wavy(x)
    last = float(torch.autograd.grad(value, x)[0] @ direction.vector)
    assert step.value == pytest.approx(float(value.detach()), rel=1e-14)
    assert float(value.detach()) <= point.value + 1e-4 * step.length * first
    assert abs(last) <= slope * abs(first)
    expected = start + step.length * direction.vector
    assert float((step.vector - expected).norm()) < 1e-12 * (1 + float(expected.norm()))


def test_trials_are_gradients_and_the_end_is_not_evaluated_again():
    problem, point = problem_of(wavy, vector(1.0, -2.0))
    step = Wolfe(slope=0.1).search(problem, point, Direction(-point.gradient))
    assert problem.objective.counts.gradients == 1 + step.trials
    assert problem.objective.counts.values == 0
    assert step.trials > 1
    again = problem.linearise(step.vector, None)
    assert torch.equal(step.point.gradient, again.gradient)
    assert step.point.value == step.value
    assert step.point.hessian is None


def test_unit_step_comes_first():
    problem, point = problem_of(lambda x: (x**2).sum(), vector(3.0, 4.0))
    step = Wolfe().search(problem, point, Direction(-point.vector))
    assert (step.length, step.trials) == (1.0, 1)


def test_step_much_too_short_is_lengthened():
    problem, point = problem_of(lambda x: (x**2).sum(), vector(3.0, 4.0))
    direction = Direction(-1e-3 * point.vector)
    assert Wolfe().search(problem, point, direction).length > 10
    assert Backtracking().search(problem, point, direction).length == 1.0


@pytest.mark.parametrize("bad", ["nan", "raise"])
def test_refused_trials_shorten(bad):
    def loss(x):
        if float(x.detach()[0]) > 2.0:
            if bad == "raise":
                raise ValueError("too fast")
            return x.sum() * float("nan")
        return (x - 5).square().sum()

    problem, point = problem_of(loss, vector(0.0))
    step = Wolfe().search(problem, point, Direction(vector(5.0)))
    assert 0.0 < float(step.vector) <= 2.0
    assert step.value < point.value


def test_a_bound_in_the_way_is_searched_along_the_projected_path():
    loss = lambda x: (x - vector(5.0, 1.0)).square().sum()  # noqa: E731
    problem, point = problem_of(loss, vector(0.0, 0.0), upper=2.0)
    direction = Direction(vector(5.0, 1.0))
    step = Wolfe().search(problem, point, direction)
    assert torch.equal(step.vector, vector(2.0, 1.0))
    assert torch.equal(
        step.vector, Backtracking().search(problem, point, direction).vector
    )
    assert step.point is None, "by values alone"


def test_lengthening_ends_at_the_bound(generator):
    lower = -torch.rand(4, generator=generator, dtype=F64) - 0.2
    start = torch.zeros(4, dtype=F64)
    problem, point = problem_of(lambda x: x.sum(), start, lower=lower)
    step = Wolfe().search(problem, point, Direction(-1e-3 * torch.ones(4, dtype=F64)))
    assert bool((step.vector >= lower).all())
    nearest = int(lower.argmax())
    assert float(step.vector[nearest]) == pytest.approx(float(lower[nearest]), rel=1e-12)


def test_uphill_and_flat_are_no_steps():
    problem, point = problem_of(lambda x: (x**2).sum(), vector(3.0))
    step = Wolfe().search(problem, point, Direction(vector(1.0)))
    assert step.vector is None
    assert "does not descend" in step.reason
    coarse, at = problem_of(
        lambda x: (x**2).sum() + 1e20 * (1 + 0 * x.sum()), vector(3.0)
    )
    # rounding hides the decrease, and no trial can meet the first condition
    step = Wolfe(max_trials=5).search(coarse, at, Direction(vector(-3.0)))
    assert step.vector is None or step.value <= at.value


def test_nothing_acceptable_is_said_with_the_refusal():
    def loss(x):
        if float(x.detach()[0]) != 1.0:
            raise ValueError("only here")
        return x.sum()

    problem, point = problem_of(loss, vector(1.0))
    step = Wolfe(max_trials=4).search(problem, point, Direction(vector(-1.0)))
    assert step.vector is None
    assert step.trials == 4
    assert "only here" in step.reason


def test_out_of_trials_takes_the_best_so_far():
    problem, point = problem_of(lambda x: (x**2).sum(), vector(1e6))
    step = Wolfe(max_trials=2).search(problem, point, Direction(vector(-1e-6)))
    assert step.trials == 2
    assert point.value > step.value
    assert step.length == 4.0


def test_curvature_steps_are_judged_by_backtracking():
    def saddle(x):
        return x[0] ** 2 - x[1] ** 2 + x[1] ** 4

    problem, point = problem_of(saddle, vector(0.0, 0.0))
    direction = Direction(vector(0.0, 0.1), smallest_eigenvalue=-2.0, curvature_step=True)
    step = Wolfe().search(problem, point, direction)
    assert step.value < 0.0


def test_slope_decides_where_rounding_hides_the_decrease(generator):
    weights = 1 + torch.rand(8, generator=generator, dtype=F64)
    start = 1e-7 * torch.randn(8, generator=generator, dtype=F64)
    problem, point = problem_of(lambda x: 1e3 + (weights * x * x).sum(), start)
    newton = Direction(-start)
    step = Wolfe().search(problem, point, newton)
    assert (step.length, step.trials) == (1.0, 1)
    assert float(step.point.gradient.norm()) == 0.0
    # too far is still too far: the slope has turned and grown
    beyond = Direction(-2.5 * start)
    assert Wolfe().search(problem, point, beyond).length < 1.0
    # and backtracking asks whether the gradient has shrunk
    assert Backtracking().search(problem, point, newton).length == 1.0
    refused_or_shorter = Backtracking().search(problem, point, beyond)
    assert refused_or_shorter.vector is None or refused_or_shorter.length < 1.0


@pytest.mark.parametrize(
    "options",
    [
        {"decrease": 0.0},
        {"decrease": 0.6},
        {"slope": 1e-5},
        {"slope": 1.0},
        {"growth": 1.0},
        {"max_trials": 0},
        {"rounding": -1.0},
    ],
)
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        hvpopt.Wolfe(**options)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: (torch.linspace(1, 100, 12) * (x - 1) ** 2).sum() + 1.0,
        lambda x: (x - x.log()).sum(),
        lambda x: ((x - 1) ** 10).sum() + 1e3,
    ],
    ids=["offset", "logarithm", "flat"],
)
def test_float32_runs_to_its_own_rounding(loss):
    start = torch.linspace(0.6, 1.4, 12)
    method = hvpopt.LineSearchNewton(globalisation=hvpopt.Wolfe())
    result = hvpopt.minimize(loss, start, method=method)
    assert result.success, result.message
