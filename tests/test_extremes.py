"""Sizes far from 1, and operators that are not symmetric: true answers, or refusals."""

import math

import numpy as np
import pytest
import torch
from on_device import DEVICE
from test_lanczos import symmetric

import hvpopt
from hvpopt import CGStatus
from hvpopt.analysis.derivatives import check_symmetry
from hvpopt.krylov.pairs import safely_positive
from hvpopt.model._scale import euclidean_norm as norm
from hvpopt.model._scale import power_of_two, unit_of

D = torch.float64
SIZES = [1e-300, 1e-200, 1e-170, 1.0, 1e170, 1e200, 1e300]


# -- units --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_units_and_their_reciprocals_are_normal_numbers(dtype):
    info = torch.finfo(dtype)
    sizes = [info.tiny * info.eps, info.tiny, 0.3, 1.0, 5.0, info.max]
    for size in sizes:
        unit = torch.tensor(power_of_two(size, dtype), dtype=dtype)
        assert math.frexp(float(unit))[0] == 0.5
        assert info.tiny <= float(unit) < math.inf
        assert info.tiny <= float(1 / unit) < math.inf
        if info.tiny <= size < info.max / 4:
            assert 1.0 <= size / float(unit) < 2.0
    for nothing in (0.0, math.inf, math.nan):
        assert power_of_two(nothing, dtype) == 1.0
    assert unit_of(torch.zeros(0, dtype=dtype)) == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norm_of_any_size(dtype, generator):
    vector = torch.randn(50, generator=generator, dtype=dtype)
    info = torch.finfo(dtype)
    plain = float(vector.norm())
    assert norm(vector) == plain
    for exponent in (-100, -60, 60, 100) if dtype is torch.float32 else (-900, 900):
        scaled = vector * math.ldexp(1.0, exponent)
        assert norm(scaled) == pytest.approx(
            math.ldexp(plain, exponent), rel=4 * info.eps
        )
    assert norm(torch.zeros(3, dtype=dtype)) == 0.0
    assert norm(torch.tensor([math.inf, 1.0], dtype=dtype)) == math.inf
    assert math.isnan(norm(torch.tensor([math.nan, 1.0], dtype=dtype)))


# -- Krylov spaces ------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("lowest", [-1.0, 0.1])
def test_eigenvalue_of_an_operator_of_any_size(size, lowest, generator):
    matrix = symmetric(40, generator, torch.linspace(lowest, 5.0, 40, dtype=D))
    found = hvpopt.smallest_eigenvalue(hvpopt.MatrixOperator(size * matrix), tol=1e-4)
    assert found.converged
    assert found.value / size == pytest.approx(lowest, rel=1e-4)
    assert found.lower / size <= lowest + 1e-13
    assert found.upper / size >= lowest - 1e-13
    assert (found.upper - found.lower) / size <= 2e-4 * abs(lowest)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pull", [1e-200, 1.0, 1e200])
def test_steps_of_a_basis_of_any_size(size, pull, generator):
    matrix = symmetric(30, generator, torch.linspace(-1.0, 5.0, 30, dtype=D))
    g = torch.randn(30, generator=generator, dtype=D)
    unit = pull / size
    if not 1e-290 < unit < 1e290:
        pytest.skip("the step is no number")
    basis = hvpopt.LanczosBasis(hvpopt.MatrixOperator(size * matrix), rhs=-pull * g)
    basis.extend(12)
    for options in ({"shift": 2.0 * size}, {"radius": 0.3 * unit}):
        step = basis.solve(**options)
        shift = options.get("shift", 0.0) / size + step.multiplier / size
        h = step.vector / unit
        residual = norm(matrix @ h + shift * h + g)
        assert step.residual_norm / pull == pytest.approx(residual, rel=1e-6, abs=1e-12)
        assert basis.residual_norm(**options) == step.residual_norm
        assert step.norm / unit == pytest.approx(norm(h), rel=1e-12)
        decrease = -float(g @ h + 0.5 * h @ matrix @ h)
        if 1e-290 < pull * unit < 1e290:
            assert (step.decrease / pull) / unit == pytest.approx(decrease, rel=1e-9)
        assert 1e-18 < basis.floor(**options) < 1e-13


def test_a_step_far_beyond_the_newton_step_is_on_the_boundary(generator):
    matrix = symmetric(20, generator, torch.linspace(-1.0, 5.0, 20, dtype=D))
    g = torch.randn(20, generator=generator, dtype=D)
    basis = hvpopt.LanczosBasis(hvpopt.MatrixOperator(matrix), rhs=-1e-200 * g)
    basis.extend(20)
    step = basis.solve(radius=1.0)
    assert step.on_boundary
    assert step.norm == pytest.approx(1.0)
    assert step.decrease == pytest.approx(0.5)
    assert step.residual_norm < 1e-14


@pytest.mark.parametrize("size", [1e-36, 1e36])
def test_float32_operators_of_any_size(size, generator):
    matrix = symmetric(30, generator, torch.linspace(0.5, 5.0, 30, dtype=D)).float()
    operator = hvpopt.MatrixOperator(size * matrix)
    found = hvpopt.smallest_eigenvalue(operator, tol=1e-2)
    assert found.converged
    assert found.value / size == pytest.approx(0.5, rel=1e-2)


def test_what_lies_under_the_smallest_number_counts_as_zero():
    matrix = torch.diag(torch.linspace(-3e-322, 9e-322, 20, dtype=D))
    found = hvpopt.smallest_eigenvalue(hvpopt.MatrixOperator(matrix), tol=1e-4)
    assert "rounding" in found.message or not found.converged


# -- conjugate gradients ------------------------------------------------------------


@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e20, 1e30])
@pytest.mark.parametrize("pull", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_cg_of_any_size(size, pull, dtype, preconditioned, generator):
    if dtype is torch.float64:
        size, pull = size**6, pull**6
    matrix = symmetric(40, generator, torch.linspace(1.0, 3.0, 40, dtype=D))
    diagonal = matrix.diagonal().to(dtype) * size
    matrix = matrix.to(dtype)
    b = torch.randn(40, generator=generator, dtype=D).to(dtype)
    result = hvpopt.cg(
        hvpopt.MatrixOperator(size * matrix),
        pull * b,
        tol=1e-3,
        preconditioner=(
            hvpopt.DiagonalPreconditioner(diagonal) if preconditioned else None
        ),
    )
    unit = pull / size
    if torch.finfo(dtype).tiny * 1e4 < unit < torch.finfo(dtype).max / 1e3:
        assert result.status is CGStatus.CONVERGED
        true = (b.double() - matrix.double() @ (result.x.double() / unit)).norm()
        assert true <= 1.01e-3 * b.double().norm()
        assert result.residual_norm / pull == pytest.approx(float(true), rel=1e-2)
    elif not torch.finfo(dtype).tiny * 1e-3 < unit < torch.finfo(dtype).max * 1e4:
        assert result.status is CGStatus.OUT_OF_RANGE
        assert not result.x.any()
        assert result.residual_norm == pytest.approx(norm(pull * b))


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_cg_meets_negative_curvature_of_any_size(size, generator):
    matrix = symmetric(30, generator, torch.linspace(-2.0, -1.0, 30, dtype=D)).float()
    b = torch.randn(30, generator=generator)
    result = hvpopt.cg(hvpopt.MatrixOperator(size * matrix), b)
    assert result.status is CGStatus.NEGATIVE_CURVATURE
    assert -2.01 < result.curvature / size < -0.99


def test_cg_is_the_same_to_the_bit_in_other_units(generator):
    matrix = symmetric(40, generator, torch.linspace(0.1, 3.0, 40, dtype=D))
    b = torch.randn(40, generator=generator, dtype=D)
    plain, other = (
        hvpopt.cg(hvpopt.MatrixOperator(s * matrix), t * b, tol=1e-8)
        for s, t in ((1.0, 1.0), (2.0**-600, 2.0**300))
    )
    assert plain.n_products == other.n_products
    assert torch.equal(plain.x, other.x * 2.0**-450 * 2.0**-450)


def test_what_cg_says_of_an_operator_that_is_not_symmetric(generator):
    """CONVERGED is true of any operator; else it says what is wrong."""
    b = torch.randn(40, generator=generator, dtype=D)
    for part in (1e-3, 0.1, 1.0, 3.0):
        other = torch.randn(40, 40, generator=generator, dtype=D)
        matrix = symmetric(40, generator, torch.linspace(1.0, 3.0, 40, dtype=D))
        matrix = matrix + part * (other - other.mT)
        operator = hvpopt.FunctionOperator(lambda v, m=matrix: m @ v, 40, device=DEVICE)
        for tol in (0.1, 1e-3, 1e-8):
            result = hvpopt.cg(operator, b, tol=tol)
            true = norm(b - matrix @ result.x)
            if result.status is CGStatus.CONVERGED:
                assert true <= 1.001 * tol * norm(b)
            assert result.residual_norm == pytest.approx(true, rel=1e-6, abs=1e-12)
        if part >= 1.0:
            assert result.status is CGStatus.ASYMMETRIC


# -- symmetry -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-200, 1.0, 1e200])
def test_no_smallest_eigenvalue_of_an_operator_that_is_not_symmetric(size, generator):
    a = size * torch.randn(40, 40, generator=generator, dtype=D)
    with pytest.raises(ValueError, match=r"not symmetric.*of ‖H‖"):
        hvpopt.smallest_eigenvalue(
            hvpopt.FunctionOperator(lambda v: a @ v, 40, device=DEVICE)
        )


@pytest.mark.parametrize("part", [1e-8, 1e-5, 1e-3, 0.1])
def test_residuals_are_true_of_any_operator(part, generator):
    other = torch.randn(40, 40, generator=generator, dtype=D)
    matrix = symmetric(40, generator, torch.linspace(0.1, 5.0, 40, dtype=D))
    matrix = matrix + part * (other - other.mT) / 40**0.5
    operator = hvpopt.FunctionOperator(lambda v: matrix @ v, 40, device=DEVICE)
    g = torch.randn(40, generator=generator, dtype=D)
    basis = hvpopt.LanczosBasis(operator, rhs=-g)
    for _ in range(3):
        basis.extend(12)
        x = basis.ritz_vector()
        residual = norm(matrix @ x - float(basis.ritz_values[0]) * x)
        assert basis.ritz_residual() == pytest.approx(residual, rel=1e-6, abs=1e-13)
        step = basis.solve(shift=1.0)
        h = step.vector
        residual = norm(matrix @ h + h + g)
        assert step.residual_norm == pytest.approx(residual, rel=1e-6, abs=1e-12)


def test_an_eigenvalue_is_not_known_better_than_the_products_are_symmetric(generator):
    other = torch.randn(40, 40, generator=generator, dtype=D)
    matrix = symmetric(40, generator, torch.linspace(0.1, 5.0, 40, dtype=D))
    matrix = matrix + 1e-3 * (other - other.mT)
    operator = hvpopt.FunctionOperator(lambda v: matrix @ v, 40, device=DEVICE)
    found = hvpopt.smallest_eigenvalue(operator, tol=1e-5)
    assert not found.converged
    assert "asymmetry" in found.message
    true = norm(matrix @ found.vector - found.value * found.vector)
    assert found.residual == pytest.approx(true, rel=1e-6)


@pytest.mark.parametrize("noise", [1e-9, 1e-6])
def test_declared_noise_is_no_asymmetry(noise, generator):
    matrix = symmetric(60, generator, torch.linspace(-1.0, 5.0, 60, dtype=D))

    def product(v):
        error = torch.randn(60, generator=generator, dtype=D)
        return matrix @ v + noise * norm(v) * error / norm(error)

    operator = hvpopt.FunctionOperator(product, 60, device=DEVICE)
    operator.noise = noise
    found = hvpopt.smallest_eigenvalue(operator, tol=1e-3)
    assert found.converged
    assert found.value == pytest.approx(-1.0, rel=1e-3)


def test_ritz_values_scale_with_the_operator(generator):
    matrix = symmetric(20, generator, torch.linspace(-1.0, 5.0, 20, dtype=D))
    plain, tiny = (
        hvpopt.LanczosBasis(hvpopt.MatrixOperator(s * matrix), seed=3)
        for s in (1.0, 2.0**-700)
    )
    plain.extend(10)
    tiny.extend(10)
    assert np.array_equal(plain.ritz_values, tiny.ritz_values * 2.0**700)
    assert torch.equal(plain.ritz_vector(), tiny.ritz_vector())


# -- runs ---------------------------------------------------------------------------

METHODS = {
    "shifted": hvpopt.ShiftedNewton,
    "shifted cg": lambda: hvpopt.ShiftedNewton(solver="cg"),
    "shifted cholesky": lambda: hvpopt.ShiftedNewton(solver="cholesky"),
    "trust region": hvpopt.TrustRegionNewton,
    "line search": lambda: hvpopt.LineSearchNewton(memory=3),
    "wolfe": lambda: hvpopt.LineSearchNewton(globalisation=hvpopt.Wolfe()),
    "quasi-newton": hvpopt.QuasiNewton,
}


def quartic(generator, n=6):
    a = torch.randn(n, n, generator=generator, dtype=D) / n**0.5
    b = torch.randn(n, generator=generator, dtype=D)
    return lambda x: ((a @ x - b) ** 2).sum() + 0.1 * (x**4).sum()


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_the_size_of_a_loss_changes_no_step(name, bounded, generator):
    """Powers of two round nothing: near 1e-170, 1e-271, 1e200 the steps are the same."""
    loss = quartic(generator)
    options = {"lower": -0.2, "upper": 0.3} if bounded else {}
    start = torch.zeros(6, dtype=D)
    runs = [
        hvpopt.minimize(
            lambda x, s=2.0**exponent: s * loss(x),
            start,
            method=METHODS[name](),
            max_iter=4,
            gtol=1e-12,
            **options,
        )
        for exponent in (0, -565, -900, 665)
    ]
    assert runs[0].fun < runs[0].history[0].value
    for run in runs[1:]:
        assert run.status is runs[0].status
        assert run.nit == runs[0].nit
        assert float((run.x - runs[0].x).norm()) <= 1e-9 * float(runs[0].x.norm())


@pytest.mark.parametrize("size", [1e-290, 1e-170, 1e200, 1e290])
def test_no_wrong_success_of_a_loss_of_any_size(size, generator):
    loss = quartic(generator)
    for name, make in METHODS.items():
        result = hvpopt.minimize(
            lambda x: size * loss(x), torch.full((6,), 0.3, dtype=D), method=make()
        )
        x = result.x.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x), x)
        assert result.success, name
        assert float(gradient.norm()) < 1e-3, name


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e30])
def test_no_wrong_success_in_float32(size, generator):
    loss = quartic(generator)
    for name, make in METHODS.items():
        result = hvpopt.minimize(
            lambda x: size * loss(x.double()).float(),
            torch.full((6,), 0.3),
            method=make(),
            gtol=1e-3,
        )
        x = result.x.double().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x), x)
        assert result.success, name
        assert float(gradient.norm()) < 1.0, name


@pytest.mark.parametrize("size", [2.0**-565, 2.0**665])
def test_pairs_of_any_size(size, generator):
    matrix = symmetric(20, generator, torch.linspace(1.0, 3.0, 20, dtype=D))
    steps = torch.randn(4, 20, generator=generator, dtype=D)
    plain = hvpopt.PairsPreconditioner([(s, matrix @ s) for s in steps])
    other = hvpopt.PairsPreconditioner([(s, size * (matrix @ s)) for s in steps])
    for s in steps:
        across = torch.linalg.qr(torch.stack([s, matrix @ s], 1))[0][:, 1]
        assert not safely_positive(s, size * across)
    g = torch.randn(20, generator=generator, dtype=D)
    assert len(other.pairs) == 4
    expected = plain.apply(g)
    assert float((other.apply(size * g) - expected).norm()) <= 1e-12 * expected.norm()


def test_a_diagonal_whose_inverse_is_no_number_is_refused():
    with pytest.raises(ValueError, match=r"leaves the range of torch\.float32"):
        hvpopt.DiagonalPreconditioner(torch.full((4,), 1e-40))


@pytest.mark.parametrize("size", [1e-170, 1e200])
def test_asymmetry_of_any_size_fails_its_check(size, generator):
    a = size * torch.randn(10, 10, generator=generator, dtype=D)
    operator = hvpopt.FunctionOperator(lambda v: a @ v, 10, device=DEVICE)
    assert not check_symmetry(operator).passed
    symmetrical = hvpopt.MatrixOperator(a + a.mT)
    assert check_symmetry(symmetrical).passed
