"""Bounded steps of a Krylov space against a dense trust-region solver."""

import math

import numpy as np
import pytest
import torch
from test_lanczos import symmetric
from tolerances import TRUST_REGION_STEP

import hvpopt
from hvpopt.krylov.subproblem import bounded_minimum

SWEEP = np.concatenate([np.logspace(-4, 4, 17), np.logspace(4, -4, 9)])


def dense_step(matrix, gradient, radius):
    """Solve the trust-region problem by eigenvalues and bisection in long double."""
    theta, u = (t.numpy() for t in torch.linalg.eigh(matrix))
    g = (u.T @ gradient.numpy()).astype(np.longdouble)
    gaps = theta.astype(np.longdouble) - theta[0]

    def step(pole):
        return -g / (gaps + pole)

    low = np.longdouble(max(theta[0], 0.0))
    if low > 0.0 and np.linalg.norm(step(low)) <= radius:
        return u @ step(low).astype(float), 0.0
    high = np.linalg.norm(g) / radius + low
    for _ in range(3000):
        # by ratio once the bracket is away from zero
        middle = np.sqrt(low * high) if low > 0.0 else high * np.longdouble(1e-3)
        if not low < middle < high or high < 1e-4000 * np.abs(theta).max():
            break
        if np.linalg.norm(step(middle)) > radius:
            low = middle
        else:
            high = middle
    return u @ step(high).astype(float), float(high - np.longdouble(theta[0]))


def model(matrix, gradient, h):
    return float(gradient @ h + 0.5 * h @ matrix @ h)


def spectrum_of(kind, n, generator):
    u = torch.rand(n, generator=generator, dtype=torch.float64)
    if kind == "definite":
        return 0.01 + u
    if kind == "indefinite":
        return 4 * u - 1
    # clusters around −1, 1 and 3
    spectrum = (torch.arange(n) % 3) * 2.0 - 1.0 + 1e-4 * u
    spectrum[0] = -1.1
    return spectrum


@pytest.fixture(params=[5, 37, 80])
def size(request):
    return request.param


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e6])
@pytest.mark.parametrize("kind", ["definite", "indefinite", "clustered"])
def test_step_of_every_radius_is_the_dense_one(size, kind, scale, generator):
    matrix = scale * symmetric(size, generator, spectrum_of(kind, size, generator))
    gradient = torch.randn(size, generator=generator, dtype=torch.float64)
    operator = hvpopt.MatrixOperator(matrix)
    basis = hvpopt.LanczosBasis(operator, rhs=-gradient)
    basis.extend(size)
    products = operator.counts.products
    reference = float(gradient.norm()) / scale
    for radius in reference * SWEEP:
        step = basis.solve(radius=radius)
        expected, multiplier = dense_step(matrix, gradient, radius)
        error = np.linalg.norm(step.vector.numpy() - expected)
        assert error <= TRUST_REGION_STEP * np.linalg.norm(expected)
        assert step.multiplier == pytest.approx(multiplier, rel=1e-8, abs=1e-12 * scale)
        assert step.on_boundary == (multiplier > 0.0)
        assert step.norm <= radius * (1 + 1e-12)
        decrease = -model(matrix, gradient, step.vector)
        assert step.decrease == pytest.approx(decrease, rel=1e-8)
    assert operator.counts.products == products


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e6])
@pytest.mark.parametrize("component", [1e-3, 1e-7, 1e-10, 0.0])
def test_hard_and_nearly_hard_cases(size, component, scale, generator):
    spectrum = torch.linspace(1.0, 3.0, size, dtype=torch.float64)
    spectrum[0] = -1.0
    matrix = scale * torch.diag(spectrum)
    gradient = torch.randn(size, generator=generator, dtype=torch.float64)
    gradient[0] = component * gradient[1:].norm()
    operator = hvpopt.MatrixOperator(matrix)
    basis = hvpopt.LanczosBasis(operator, rhs=-gradient, probe=1e-3)
    basis.extend(size)
    for radius in float(gradient.norm()) / scale * SWEEP:
        step = basis.solve(radius=radius)
        h = step.vector.numpy()
        if component:
            expected, _ = dense_step(matrix, gradient, radius)
        else:
            # exactly hard beyond a radius: the rest of the step, and ±the eigenvector
            rest = -gradient / (spectrum + 1.0) / scale
            rest[0] = 0.0
            short = radius**2 - float(rest @ rest)
            if short > 0.0:
                expected = rest.numpy()
                expected[0] = math.copysign(math.sqrt(short), h[0])
                # Rounding leaves the gradient a part δ along the eigenvector. That puts λ
                # at δ/√short from the pole, which is no rounding where nothing is short.
                part = math.sqrt(short) / radius
                assert step.multiplier == pytest.approx(scale, rel=1e-12 + 1e-14 / part)
            else:
                expected, _ = dense_step(matrix, gradient, radius)
        assert np.linalg.norm(h - expected) <= 1e-7 * np.linalg.norm(expected)
        assert step.on_boundary
        assert step.norm == pytest.approx(radius, rel=1e-12)
    assert operator.counts.products == size


def test_residual_of_a_bounded_step_is_the_true_one(generator):
    matrix = symmetric(60, generator)
    gradient = torch.randn(60, generator=generator, dtype=torch.float64)
    basis = hvpopt.LanczosBasis(hvpopt.MatrixOperator(matrix), rhs=-gradient, probe=1e-3)
    for _ in range(4):
        basis.extend(5)
        for radius in (0.1, 1.0, 10.0):
            step = basis.solve(radius=radius)
            h = step.vector
            true = float((matrix @ h + step.multiplier * h + gradient).norm())
            assert step.residual_norm == pytest.approx(true, rel=1e-8)
            assert basis.residual_norm(radius=radius) == step.residual_norm


def test_shift_and_radius_go_together(generator):
    matrix = symmetric(30, generator)
    gradient = torch.randn(30, generator=generator, dtype=torch.float64)
    basis = hvpopt.LanczosBasis(hvpopt.MatrixOperator(matrix), rhs=-gradient)
    basis.extend(30)
    shifted = matrix + 0.7 * torch.eye(30, dtype=torch.float64)
    expected, multiplier = dense_step(shifted, gradient, 0.5)
    step = basis.solve(0.7, radius=0.5)
    np.testing.assert_allclose(step.vector.numpy(), expected, rtol=1e-8)
    assert step.multiplier == pytest.approx(multiplier)


@pytest.mark.parametrize("theta", [[-2.0, 1.0], [0.0, 1.0], [0.0, 0.0], [3.0, 4.0]])
def test_degenerate_problems_have_finite_minima(theta):
    for g in ([0.0, 1.0], [0.0, 0.0], [1.0, 0.0]):
        found = bounded_minimum(np.array(theta), np.array(g), 0.5)
        y = found.coordinates
        assert np.isfinite(y).all()
        assert np.linalg.norm(y) <= 0.5 * (1 + 1e-12)
        # no point of a fine grid is lower
        angle, r = np.meshgrid(np.linspace(0, 2 * np.pi, 361), np.linspace(0, 0.5, 51))
        grid = np.stack([r * np.cos(angle), r * np.sin(angle)])
        value = np.tensordot(g, grid, 1) + 0.5 * np.tensordot(theta, grid**2, 1)
        own = np.dot(g, y) + 0.5 * np.dot(theta, y**2)
        assert own <= value.min() + 1e-12


@pytest.mark.parametrize("radius", [0.0, -1.0, math.inf, math.nan])
def test_radius_out_of_range_is_refused(radius, generator):
    basis = hvpopt.LanczosBasis(
        hvpopt.MatrixOperator(symmetric(5, generator)), rhs=torch.ones(5).double()
    )
    basis.extend(5)
    with pytest.raises(ValueError, match="radius is"):
        basis.solve(radius=radius)
    if radius == radius:
        with pytest.raises(ValueError, match="radius is"):
            hvpopt.TrustRegionNewton(radius=radius)
