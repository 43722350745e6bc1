"""LanczosBasis against dense linear algebra."""

import math

import numpy as np
import pytest
import torch
from on_device import DEVICE, cpu_only

import hvpopt
from hvpopt.krylov.eigenvalue import excludes_below, lower_bound


def symmetric(n, generator, spectrum=None):
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    values = (
        torch.randn(n, generator=generator, dtype=torch.float64)
        if spectrum is None
        else spectrum
    )
    matrix = (q * values) @ q.mT
    return 0.5 * (matrix + matrix.mT)


@pytest.fixture
def problem(generator):
    n = int(torch.randint(30, 90, (1,), generator=generator))
    matrix = symmetric(n, generator)
    gradient = torch.randn(n, generator=generator, dtype=torch.float64)
    return hvpopt.MatrixOperator(matrix), matrix, gradient


def test_basis_is_orthonormal_and_tridiagonalises(problem):
    operator, matrix, gradient = problem
    basis = hvpopt.LanczosBasis(operator, rhs=-gradient)
    basis.extend(25)
    q = basis.vectors
    assert float((q @ q.mT - torch.eye(25, dtype=q.dtype)).abs().max()) < 1e-14
    t = q @ matrix @ q.mT
    expected = torch.diag(torch.tensor(basis.diagonal, dtype=q.dtype))
    off = torch.tensor(basis.off_diagonal[:-1], dtype=q.dtype)
    expected += torch.diag(off, 1) + torch.diag(off, -1)
    assert float((t - expected).abs().max()) < 1e-13


def test_extending_in_pieces_gives_the_same_basis(problem):
    operator, _, gradient = problem
    whole = hvpopt.LanczosBasis(operator, rhs=-gradient)
    whole.extend(20)
    pieces = hvpopt.LanczosBasis(operator, rhs=-gradient)
    for k in (1, 7, 12):
        pieces.extend(k)
    assert torch.equal(whole.vectors, pieces.vectors)


def test_one_product_for_each_vector(problem):
    operator, _, gradient = problem
    basis = hvpopt.LanczosBasis(operator, rhs=-gradient)
    basis.extend(11)
    basis.solve(shift=100.0)
    basis.residual_norm(shift=50.0)
    basis.ritz_vector()
    assert lower_bound(basis) == -math.inf
    assert operator.counts.products == basis.size == 11


@pytest.mark.parametrize("probe", [0.0, 1e-6])
def test_full_basis_solves_like_a_dense_solver(problem, probe):
    operator, matrix, gradient = problem
    shift = -1.5 * float(torch.linalg.eigvalsh(matrix)[0])
    basis = hvpopt.LanczosBasis(operator, rhs=-gradient, probe=probe)
    basis.extend(operator.size)
    step = basis.solve(shift)
    eye = torch.eye(operator.size, dtype=matrix.dtype)
    expected = torch.linalg.solve(matrix + shift * eye, -gradient)
    assert float((step.vector - expected).norm() / expected.norm()) < 1e-10
    decrease = -(gradient @ expected + 0.5 * expected @ matrix @ expected)
    assert step.decrease == pytest.approx(float(decrease), rel=1e-9)


@pytest.mark.parametrize("probe", [0.0, 1e-6, 1e-2])
@pytest.mark.parametrize("k", [1, 5, 17])
def test_residual_from_the_recurrence_is_the_true_residual(problem, probe, k):
    operator, matrix, gradient = problem
    shift = 2.0 - float(torch.linalg.eigvalsh(matrix)[0])
    basis = hvpopt.LanczosBasis(operator, rhs=-gradient, probe=probe, seed=3)
    basis.extend(k)
    step = basis.solve(shift)
    true = float((matrix @ step.vector + shift * step.vector + gradient).norm())
    assert step.residual_norm == pytest.approx(true, rel=1e-8)


def test_probe_leaves_at_most_a_residual_of_its_own_size(problem):
    operator, matrix, gradient = problem
    shift = 1.0 - float(torch.linalg.eigvalsh(matrix)[0])
    basis = hvpopt.LanczosBasis(operator, rhs=-gradient, probe=1e-6)
    basis.extend(operator.size - 1)
    assert basis.residual_norm(shift) <= 2e-6 * float(gradient.norm())


def test_smallest_ritz_value_falls_to_the_smallest_eigenvalue(problem):
    operator, matrix, gradient = problem
    basis = hvpopt.LanczosBasis(operator, rhs=-gradient, probe=0.1)
    exact = float(torch.linalg.eigvalsh(matrix)[0])
    last = math.inf
    while basis.extend():
        theta = basis.ritz_values[0]
        assert exact - 1e-12 <= theta <= last + 1e-12
        last = theta
    assert last == pytest.approx(exact, rel=1e-10)


def test_ritz_residual_is_the_true_residual(problem):
    operator, matrix, gradient = problem
    basis = hvpopt.LanczosBasis(operator, rhs=-gradient)
    basis.extend(15)
    x = basis.ritz_vector()
    true = float((matrix @ x - basis.ritz_values[0] * x).norm())
    assert basis.ritz_residual() == pytest.approx(true, rel=1e-8)


def test_lower_bounds_hold_with_at_least_the_stated_probability(generator):
    """At confidence 0.9, at most about a tenth of 200 random starts may overshoot."""
    spectrum = torch.linspace(-1.0, 5.0, 60, dtype=torch.float64)
    matrix = torch.diag(spectrum)
    broken = 0
    for _ in range(200):
        seed = int(torch.randint(2**31, (1,), generator=generator))
        basis = hvpopt.LanczosBasis(hvpopt.MatrixOperator(matrix), seed=seed)
        basis.extend(8)
        broken += lower_bound(basis, confidence=0.9) > -1.0 + 1e-12
    assert broken <= 36  # the probability of more at 0.1 each is under 1e-4


def test_lower_bound_closes_in_on_the_smallest_eigenvalue(problem):
    operator, matrix, _ = problem
    exact = float(torch.linalg.eigvalsh(matrix)[0])
    basis = hvpopt.LanczosBasis(operator)
    gaps = []
    for _ in range(3):
        basis.extend(9)
        gaps.append(exact - lower_bound(basis))
    assert gaps[0] > gaps[1] > gaps[2] >= -1e-12


def test_gradient_start_alone_bounds_nothing(problem):
    operator, _, gradient = problem
    basis = hvpopt.LanczosBasis(operator, rhs=-gradient)
    basis.extend(10)
    assert lower_bound(basis) == -math.inf
    assert not excludes_below(basis, -1e6)


def test_invariant_space_stops_growing(generator):
    matrix = symmetric(40, generator, torch.tensor([1.0, 2.0, 5.0] * 13 + [1.0]).double())
    basis = hvpopt.LanczosBasis(hvpopt.MatrixOperator(matrix))
    assert basis.extend(20) == 3
    assert basis.invariant
    np.testing.assert_allclose(basis.ritz_values, [1.0, 2.0, 5.0], rtol=1e-12)


def test_products_of_a_float32_operator_meet_float64_vectors(generator):
    matrix = symmetric(30, generator).float()
    operator = hvpopt.FunctionOperator(lambda v: matrix @ v.float(), 30, device=DEVICE)
    basis = hvpopt.LanczosBasis(operator)
    basis.extend(30)
    assert basis.vectors.dtype == torch.float64
    exact = float(torch.linalg.eigvalsh(matrix.double())[0])
    assert basis.ritz_values[0] == pytest.approx(exact, abs=1e-5)


def test_indefinite_shift_is_refused(problem):
    operator, _, gradient = problem
    basis = hvpopt.LanczosBasis(operator, rhs=-gradient)
    basis.extend(20)
    with pytest.raises(np.linalg.LinAlgError):
        basis.solve(shift=0.0)


def test_exact_products_show_no_asymmetry(problem):
    operator, _, gradient = problem
    basis = hvpopt.LanczosBasis(operator, rhs=-gradient)
    basis.extend()
    assert basis.asymmetry == 0.0
    basis.extend(20)
    assert 0.0 < basis.asymmetry < 1e-14
    assert operator.counts.products == 21


def noisy_problem(n, noise, generator):
    """Return a well-conditioned matrix and its products with a relative error."""
    spectrum = torch.linspace(1.0, 3.0, n, dtype=torch.float64)
    matrix = symmetric(n, generator, spectrum)

    def product(v):
        error = torch.randn(n, generator=generator, dtype=v.dtype) / math.sqrt(n)
        exact = matrix @ v
        return exact + noise * exact.norm() * error

    return matrix, hvpopt.FunctionOperator(product, n, device=DEVICE)


@pytest.mark.parametrize("n", [50, 400])
@pytest.mark.parametrize("noise", [1e-9, 1e-5])
def test_floor_is_the_residual_that_noisy_products_allow(n, noise, generator):
    matrix, operator = noisy_problem(n, noise, generator)
    gradient = torch.randn(n, generator=generator, dtype=torch.float64)
    basis = hvpopt.LanczosBasis(operator, rhs=-gradient)
    basis.extend(40)
    # one direction of n shows a √n-th of the error, or a few times that
    assert 0.5 < basis.asymmetry / noise * math.sqrt(n) < 20
    for shift, radius in ((0.0, None), (1.0, None), (0.0, 0.3 * float(gradient.norm()))):
        step = basis.solve(shift, radius=radius)
        total = shift + step.multiplier
        h = step.vector
        true = float((matrix @ h + total * h + gradient).norm() / gradient.norm())
        # of the products' error the space shows a part
        assert step.residual_norm / float(gradient.norm()) < 1.5 * true
        assert 0.2 < basis.floor(shift, radius=radius) / true < 5


def test_asymmetric_operator_is_seen(generator):
    matrix = symmetric(40, generator)
    matrix[3, 7] += 0.1
    basis = hvpopt.LanczosBasis(
        hvpopt.FunctionOperator(lambda v: matrix @ v, 40, device=DEVICE),
        rhs=torch.randn(40, generator=generator, dtype=torch.float64),
    )
    basis.extend(20)
    assert 1e-5 < basis.asymmetry < 0.1


def test_three_solvers_mean_the_same_right_hand_side(problem):
    """Of (H + τI) x = b: the same x, with the same sign, of the same arguments."""
    operator, matrix, rhs = problem
    shift = 1.0 - float(torch.linalg.eigvalsh(matrix)[0])
    shifted = matrix + shift * torch.eye(len(rhs), dtype=rhs.dtype)
    expected = torch.linalg.solve(shifted, rhs)
    basis = hvpopt.LanczosBasis(operator, rhs=rhs)
    basis.extend(len(rhs))
    found = {
        "cg": hvpopt.cg(hvpopt.MatrixOperator(shifted), rhs=rhs, tol=1e-12).x,
        "Lanczos": basis.solve(shift=shift).vector,
        "dense": hvpopt.DenseHessian(operator).solve(rhs, shift=shift),
    }
    for name, x in found.items():
        assert float((x - expected).norm()) < 1e-9 * float(expected.norm()), name
    # ½ x·(H + τI)x − b·x, which all of them minimise, falls from 0 to x
    short = basis.solve(shift=shift, radius=1e-3 * float(expected.norm()))
    assert float(short.vector @ rhs) > 0.0
    assert short.decrease > 0.0


@pytest.mark.parametrize("size", [1e-250, 1.0, 1e250])
def test_residuals_of_asymmetric_products_are_true(size, generator):
    n, k = 40, 30
    matrix = torch.randn(n, n, generator=generator, dtype=torch.float64)
    matrix = matrix + matrix.mT + 1e-4 * matrix
    plain = hvpopt.FunctionOperator(lambda v: matrix @ v, n, device=DEVICE)
    basis = hvpopt.LanczosBasis(plain, seed=1)
    times = hvpopt.FunctionOperator(lambda v: size * (matrix @ v), n, device=DEVICE)
    scaled = hvpopt.LanczosBasis(times, seed=1)
    basis.extend(k)
    scaled.extend(k)
    for index in (0, 5, -1):
        vector = basis.ritz_vector(index)
        wrong = matrix @ vector - float(basis.ritz_values[index]) * vector
        true = float(wrong.norm())
        assert basis.ritz_residual(index) == pytest.approx(true, rel=1e-6)
        assert scaled.ritz_residual(index) / size == pytest.approx(true, rel=1e-6)


@cpu_only("on_device.py calls each function of torch once more, and it is counted twice")
def test_an_extension_reads_its_projections_from_the_device_at_once(
    monkeypatch, generator
):
    matrix = torch.randn(60, 60, generator=generator, dtype=torch.float64)
    basis = hvpopt.LanczosBasis(hvpopt.MatrixOperator(matrix + matrix.mT), seed=1)
    reads = []

    def counted(name):
        plain = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda *args: reads.append(name) or plain(*args)
        )

    for name in ("cpu", "__float__", "item", "tolist"):
        counted(name)
    basis.extend(5)
    # the size of the product, its projections, and the length of what is left
    assert len(reads) == 3 * 5
