"""check_gradient, check_hessian, check_symmetry: they pass what is right alone."""

import pytest
import torch
from on_device import DEVICE
from tolerances import SLOPE, SYMMETRY

import hvpopt
from hvpopt import FunctionOperator, HessianOperator, MatrixOperator, TorchObjective
from hvpopt.analysis import check_gradient, check_hessian, check_symmetry

F64 = torch.float64


def draw(generator, *shape):
    return torch.randn(shape, generator=generator, dtype=F64)


def smooth(x):
    """Every derivative along a positive direction is positive: none cancels."""
    return torch.exp(0.5 * x).sum() + torch.exp(0.1 * x.sum())


def smooth_pair(a, b):
    return smooth(torch.cat([a.reshape(-1), b.reshape(-1)]))


class WrongGradient(torch.autograd.Function):
    """x³ with a gradient that is off by a thousandth."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 1.001 * gradient * 3 * x.square()


class WrongHessian(torch.autograd.Function):
    """x³ with the right gradient, whose own derivative treats one factor as constant."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * 3 * x * x.detach()


class Doubled(torch.autograd.Function):
    """x with twice its gradient."""

    @staticmethod
    def forward(_ctx, x):
        return x.clone()

    @staticmethod
    def backward(_ctx, gradient):
        return 2 * gradient


class Lopsided(torch.autograd.Function):
    """x·y with the right gradient, of which the part for y forgets that it knows x."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x * y

    @staticmethod
    def backward(ctx, gradient):
        x, y = ctx.saved_tensors
        return gradient * y, gradient * x.detach()


def wrong_gradient(x):
    return WrongGradient.apply(x).sum()


def wrong_hessian(x):
    return WrongHessian.apply(x).sum()


@pytest.fixture
def model(generator):
    return draw(generator, 3, 4).abs() + 0.5


@pytest.fixture
def positive(generator):
    return draw(generator, 3, 4).abs() + 0.1


# -- what is right passes -----------------------------------------------------------


def test_right_gradient_has_slope_two(model, positive):
    report = check_gradient(smooth, model, direction=positive)
    assert report, str(report)
    assert abs(report.measured - 2) < SLOPE


def test_right_hessian_has_slope_three(model, positive):
    report = check_hessian(smooth, model, direction=positive)
    assert report, str(report)
    assert abs(report.measured - 3) < SLOPE


def test_models_of_several_parameters(generator):
    a, b = draw(generator, 2, 3).abs(), draw(generator, 4).abs()
    for model in ((a, b), {"a": a, "b": b}):
        assert check_gradient(smooth_pair, model, direction=model)
        assert check_hessian(smooth_pair, model, direction=model)


def test_objective_passes_like_its_function(model, positive):
    total = TorchObjective(smooth) + 0.1 * TorchObjective(lambda x: (x**4).sum())
    assert check_gradient(total, model, direction=positive)
    assert check_hessian(total, model, direction=positive)


def test_given_direction_is_the_one_that_is_checked():
    def half_wrong(x):
        return WrongGradient.apply(x[0]) + (x[1:] ** 3).sum()

    model = torch.ones(3, dtype=F64)
    right, wrong = torch.eye(3, dtype=F64)[1], torch.eye(3, dtype=F64)[0]
    assert check_gradient(half_wrong, model, direction=right)
    assert not check_gradient(half_wrong, model, direction=wrong)


def test_quadratic_passes_on_rounding_alone(model, seed):
    report = check_hessian(lambda x: x.square().sum(), model, seed=seed)
    assert report, str(report)
    assert report.used == ()
    assert report.measured < 1e-12


def test_linear_loss_passes_the_gradient_check(model, seed):
    assert check_gradient(lambda x: (3 * x).sum() + 1, model, seed=seed)


@pytest.mark.parametrize("offset", [0.0, 1e-3])
def test_quadratic_passes_where_its_value_is_zero(offset, model, seed):
    target = model + offset
    report = check_hessian(lambda x: (x - target).square().sum(), model, seed=seed)
    assert report, str(report)


def test_check_costs_a_value_a_step_and_one_product(model):
    objective = TorchObjective(smooth)
    check_hessian(objective, model, halvings=9)
    assert objective.counts == hvpopt.Counts(values=9, gradients=1, products=1)


def test_model_is_left_alone(model):
    before = model.clone()
    check_gradient(smooth, model)
    check_hessian(smooth, model)
    assert torch.equal(model, before)


# -- what is wrong fails ------------------------------------------------------------


def test_wrong_gradient_fails_in_every_direction(model, seed):
    reports = [check_gradient(wrong_gradient, model, seed=seed + i) for i in range(60)]
    passed = [str(report) for report in reports if report]
    assert not passed, f"{len(passed)} of {len(reports)} pass, such as\n{passed[0]}"


def test_wrong_gradient_is_told_by_its_slope(model, positive):
    report = check_gradient(wrong_gradient, model, direction=positive)
    assert not report, str(report)
    assert abs(report.measured - 1) < SLOPE


def test_wrong_gradient_fails_the_hessian_check_too(model, positive):
    assert not check_hessian(wrong_gradient, model, direction=positive)


def test_wrong_hessian_passes_the_gradient_check_and_fails_its_own(model, positive):
    assert check_gradient(wrong_hessian, model, direction=positive)
    report = check_hessian(wrong_hessian, model, direction=positive)
    assert not report, str(report)
    assert abs(report.measured - 2) < SLOPE


def test_missing_second_order_term_fails(model, positive):
    def frozen(x):
        return (x.detach() * x.square()).sum()

    assert not check_gradient(frozen, model, direction=positive)
    assert not check_hessian(frozen, model, direction=positive)


def test_wrong_gradient_of_a_linear_loss_fails(model, seed):
    assert not check_gradient(lambda x: Doubled.apply(x).sum(), model, seed=seed)


def test_loss_that_is_not_finite_on_the_way_fails():
    model = torch.full((4,), 1e-3, dtype=F64)
    down = -torch.ones(4, dtype=F64)
    report = check_gradient(lambda x: x.log().sum(), model, size=1e6, direction=down)
    assert not report, str(report)


# -- symmetry -----------------------------------------------------------------------


def test_hessian_is_symmetric(model, seed):
    report = check_symmetry(HessianOperator(smooth, model), tol=SYMMETRY, seed=seed)
    assert report, str(report)


def test_symmetry_costs_two_products_a_pair(model):
    H = HessianOperator(smooth, model)
    check_symmetry(H, n_pairs=4)
    assert H.counts.products == 8


def test_asymmetric_operator_fails(generator, seed):
    root = draw(generator, 12, 12)
    matrix = root + root.mT
    assert check_symmetry(MatrixOperator(matrix), seed=seed)
    matrix[0, 5] += 1e-3
    report = check_symmetry(
        FunctionOperator(lambda v: matrix @ v, 12, device=DEVICE), seed=seed
    )
    assert not report, str(report)


def test_asymmetry_of_a_wrong_backward_fails(seed):
    model = torch.ones(4, dtype=F64)
    H = HessianOperator(lambda x: Lopsided.apply(x[:2], x[2:]).sum(), model)
    assert not check_symmetry(H, seed=seed)


def test_zero_operator_is_symmetric():
    assert check_symmetry(FunctionOperator(torch.zeros_like, 5)).measured == 0.0


# -- reports ------------------------------------------------------------------------


def test_report_reads_as_a_verdict_with_its_sweep(model, positive):
    good = check_hessian(smooth, model, direction=positive)
    bad = check_hessian(wrong_hessian, model, direction=positive)
    assert str(good).startswith("pass  Hessian matches the loss: ")
    assert str(bad).startswith("FAIL  Hessian matches the loss: ")
    assert "expected slope 3, or 0.1 less at most" in str(bad)
    assert str(good).count("remainder") == len(good.steps) == 16
    assert str(good).count("*") == len(good.used) == 4


@pytest.mark.parametrize("size", [1e-300, 1.0, 1e307])
def test_symmetry_of_products_of_any_size(size):
    matrix = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
    for given, symmetric in ((matrix, False), (matrix @ matrix.mT, True)):
        operator = hvpopt.FunctionOperator(
            lambda w, m=given: size * (m @ w), 2, device=DEVICE
        )
        assert bool(check_symmetry(operator)) is symmetric
