"""Starts where curvature is rounding, and steps that a model only seems to promise."""

import itertools
import math

import pytest
import torch

import hvpopt

D = torch.float64
METHODS = {
    "trust region": hvpopt.TrustRegionNewton,
    "line search": hvpopt.LineSearchNewton,
    "Wolfe": lambda: hvpopt.LineSearchNewton(globalisation=hvpopt.Wolfe()),
    "shifted": hvpopt.ShiftedNewton,
    "shifted, cg": lambda: hvpopt.ShiftedNewton(solver="cg"),
    "shifted, dense": lambda: hvpopt.ShiftedNewton(solver="cholesky"),
    "quasi-Newton": hvpopt.QuasiNewton,
    "gradients": lambda: hvpopt.QuasiNewton(initial=hvpopt.GradientScale()),
}


def log_cosh(x):
    """The logarithm of 2 cosh(x − 30), whose curvature at 0 is 4e-26."""
    return torch.nn.functional.softplus(2 * (x - 30)).sum() - (x - 30).sum()


def rounded_norm(x):
    """A norm, smooth within 1e-6: along the gradient its curvature is 1e-12."""
    return torch.sqrt(x.square().sum() + 1e-12)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("loss", "start", "minimum"),
    [(log_cosh, [0.0], math.log(2)), (rounded_norm, [1.0, 2.0], 1e-6)],
    ids=["log cosh", "norm"],
)
def test_a_step_by_rounded_curvature_is_shortened_as_far_as_it_must(
    name, loss, start, minimum
):
    start = torch.tensor(start, dtype=D)
    result = hvpopt.minimize(loss, start, method=METHODS[name]())
    assert result.fun == pytest.approx(minimum, rel=1e-6), result.message
    assert result.nfev < 250


def two_units(size):
    """Two parameters in units far apart, whose minimum is 5/7, and a start."""

    def loss(a, b):
        a, b = a / size, b * size
        return ((a - 1) ** 2).sum() + ((b - 1) ** 2).sum() + 0.5 * (a * b).sum()

    start = torch.tensor([2.0, 3.0], dtype=D) * size, torch.tensor([3.0], dtype=D) / size
    return loss, start


@pytest.mark.parametrize("size", [1e3, 1e4, 1e5])
def test_no_step_is_taken_that_the_model_does_not_promise(size):
    """Far below zero, a predicted decrease is what cancellation left."""
    loss, start = two_units(size)
    result = hvpopt.minimize(loss, start)
    values = [record.value for record in result.history]
    assert all(b <= a * (1 + 1e-14) for a, b in itertools.pairwise(values))
    assert result.fun == min(values)
    assert result.fun == pytest.approx(5 / 7, rel=1e-4)


@pytest.mark.parametrize("solver", ["lanczos", "cg", "cholesky"])
@pytest.mark.parametrize("size", [1e4, 1e6])
def test_a_shift_that_shortens_the_step_is_no_sign_of_a_minimum(solver, size):
    loss, start = two_units(size)
    method = hvpopt.ShiftedNewton(solver=solver)
    result = hvpopt.minimize(loss, start, method=method, max_iter=30)
    assert not result.success or result.fun < 0.7143


@pytest.mark.parametrize("limit", [2, 3])
def test_a_look_that_the_limit_of_products_cuts_is_no_proof(limit):
    def saddle(x):
        return x[0] ** 2 - x[1] ** 2 + x[1] ** 4

    start = torch.tensor([1.0, 0.0], dtype=D)
    method = hvpopt.LineSearchNewton()
    result = hvpopt.minimize(saddle, start, method=method, max_products=limit)
    assert result.fun == 0.0
    assert not result.success
    assert "the limit of products leaves no more" in result.message


@pytest.mark.parametrize("name", ["trust region", "quasi-Newton"])
def test_a_minimum_to_the_rounding_of_float32_is_mostly_called_one(name, generator):
    """About one run in a hundred ends where float32 says neither yes nor no."""
    b, start = torch.randn(2, 20, 1, generator=generator)
    starts = [(s, x) for s, x in zip(b, start, strict=True) if abs(slope(x, s)) > 0.1]
    found = 0
    for shift, x in starts:

        def loss(x, shift=shift):
            return torch.sin(x + shift).sum() + 0.05 * (x @ x) + 5

        found += hvpopt.minimize(loss, x, method=METHODS[name]()).success
    assert found >= len(starts) - 4


def slope(x, shift):
    return float(torch.cos(x + shift) + 0.1 * x)


class WrongSign(torch.autograd.Function):
    """A quadratic whose gradient points the other way."""

    @staticmethod
    def forward(ctx, x, curvatures):
        ctx.save_for_backward(x, curvatures)
        return 0.5 * (curvatures * x * x).sum() + 1.0

    @staticmethod
    def backward(ctx, out):
        x, curvatures = ctx.saved_tensors
        return -out * curvatures * x, None


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("size", [1e-2, 1.0, 1e6])
def test_a_gradient_of_the_wrong_sign_ends_a_run_at_once(name, size, generator):
    curvatures = 0.5 + torch.rand(9, generator=generator, dtype=D)
    start = size * (1.0 + torch.rand(9, generator=generator, dtype=D))
    result = hvpopt.minimize(
        lambda x: WrongSign.apply(x, curvatures), start, method=METHODS[name]()
    )
    assert result.status is hvpopt.Status.NO_DECREASE
    assert "the gradient may be wrong" in result.message
    assert torch.equal(result.x, start)
    assert result.counts.values + result.counts.gradients < 50
