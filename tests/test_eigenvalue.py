"""smallest_eigenvalue against dense eigenvalues: right, or not called converged."""

import pytest
import torch
from on_device import DEVICE
from test_lanczos import symmetric

import hvpopt
from hvpopt.krylov.eigenvalue import eigenvalue_converged, excludes_below, lower_bound


def spectra(generator):
    """Yield named spectra of five families, four sizes each: twenty matrices."""
    for n in (17, 40, 75, 120):
        u = torch.rand(n, generator=generator, dtype=torch.float64)
        yield f"definite-{n}", 0.05 + u
        yield f"indefinite-{n}", 2 * u - 1
        yield f"clustered-{n}", torch.where(u < 0.5, -1 - 1e-4 * u, 1 + u)
        yield f"singular-{n}", torch.where(u < 0.3, torch.zeros_like(u), u)
        yield f"wide-{n}", -(10.0 ** (-6 * u))


def test_twenty_random_matrices_to_a_thousandth(generator):
    seen = missed = 0
    for name, spectrum in spectra(generator):
        matrix = symmetric(len(spectrum), generator, spectrum)
        exact = float(torch.linalg.eigvalsh(matrix)[0])
        estimate = hvpopt.smallest_eigenvalue(hvpopt.MatrixOperator(matrix), tol=1e-3)
        assert estimate.converged, (name, estimate.message)
        # a singular matrix has λ_min at the rounding of its assembly
        assert estimate.value == pytest.approx(exact, rel=1e-3, abs=1e-12), name
        assert exact <= estimate.upper + 1e-13, name
        missed += estimate.lower - 1e-13 > exact
        seen += 1
    assert seen == 20
    # each lower bound holds with probability 0.999: two misses have less than 2e-4
    assert missed <= 1


def test_no_converged_flag_on_a_wrong_value(generator):
    """With too few products the answer is wrong, and says so."""
    flagged = 0
    for name, spectrum in spectra(generator):
        matrix = symmetric(len(spectrum), generator, spectrum)
        exact = float(torch.linalg.eigvalsh(matrix)[0])
        for limit in (1, 3, 6, 10, 15):
            estimate = hvpopt.smallest_eigenvalue(
                hvpopt.MatrixOperator(matrix), tol=1e-3, max_products=limit
            )
            right = abs(estimate.value - exact) <= 1e-3 * abs(exact) + 1e-13
            assert right or not estimate.converged, (name, limit)
            flagged += not estimate.converged
    assert flagged > 20


def hard_case():
    """A matrix whose gradient has no component along its lowest eigenvectors."""
    spectrum = torch.linspace(1.0, 10.0, 60, dtype=torch.float64)
    spectrum[0] = -3.0
    gradient = torch.ones(60, dtype=torch.float64)
    gradient[0] = 0.0
    return hvpopt.MatrixOperator(torch.diag(spectrum)), gradient


def test_gradient_orthogonal_to_the_lowest_eigenvector_is_not_trusted():
    operator, gradient = hard_case()
    alone = hvpopt.LanczosBasis(operator, rhs=-gradient)
    alone.extend(59)
    assert alone.ritz_values[0] > 0.99, "the gradient's own space must miss λ_min"
    estimate = hvpopt.smallest_eigenvalue(operator, start=gradient, tol=1e-3)
    assert estimate.converged
    assert estimate.value == pytest.approx(-3.0, rel=1e-3)


def test_estimate_describes_its_own_vector(generator):
    matrix = symmetric(50, generator)
    operator = hvpopt.MatrixOperator(matrix)
    estimate = hvpopt.smallest_eigenvalue(operator, tol=1e-6)
    v = estimate.vector
    assert float(v.norm()) == pytest.approx(1.0, rel=1e-12)
    assert float(v @ matrix @ v) == pytest.approx(estimate.value, rel=1e-10)
    residual = float((matrix @ v - estimate.value * v).norm())
    assert estimate.residual == pytest.approx(residual, rel=1e-3, abs=1e-13)
    assert estimate.n_products == operator.counts.products


def test_looser_tolerance_costs_fewer_products(generator):
    spectrum = torch.linspace(-1, 30, 200, dtype=torch.float64)
    matrix = symmetric(200, generator, spectrum)
    loose, tight = (
        hvpopt.smallest_eigenvalue(hvpopt.MatrixOperator(matrix), tol=tol)
        for tol in (1e-1, 1e-6)
    )
    assert loose.converged
    assert tight.converged
    assert loose.n_products < tight.n_products


def test_zero_operator_has_eigenvalue_zero():
    operator = hvpopt.FunctionOperator(torch.zeros_like, 9, device=DEVICE)
    estimate = hvpopt.smallest_eigenvalue(operator)
    assert estimate.value == 0.0
    assert estimate.converged
    assert estimate.n_products == 1


def test_deadline_in_the_past_stops_after_one_product(generator):
    operator = hvpopt.MatrixOperator(symmetric(40, generator))
    estimate = hvpopt.smallest_eigenvalue(operator, deadline=0.0)
    assert estimate.n_products == 1
    assert not estimate.converged


def test_floor_spares_resolving_an_eigenvalue_that_is_as_good_as_zero():
    spectrum = torch.linspace(1e-9, 1.0, 300, dtype=torch.float64)
    operator = hvpopt.MatrixOperator(torch.diag(spectrum))
    with_floor = hvpopt.smallest_eigenvalue(operator, tol=0.1, floor=0.1)
    without = hvpopt.smallest_eigenvalue(operator, tol=0.1)
    assert with_floor.converged
    assert with_floor.n_products < without.n_products


def test_decaying_float32_spectrum_is_not_called_invariant():
    """Off-diagonals far below n·eps·‖H‖, with the lowest eigenvalue among them."""
    n = 4000
    generator = torch.Generator().manual_seed(1)
    spectrum = torch.cat([torch.ones(1), 1e-3 * torch.rand(n - 1, generator=generator)])
    spectrum[5] = -3e-5
    operator = hvpopt.FunctionOperator(
        lambda v: spectrum * v, n, dtype=torch.float32, device=DEVICE
    )
    estimate = hvpopt.smallest_eigenvalue(operator)
    assert estimate.lower <= -3e-5
    assert estimate.converged
    # to the rounding of float32 products of norm 1
    assert estimate.value == pytest.approx(-3e-5, abs=4 * operator.noise)


def test_probe_below_rounding_certifies_nothing():
    spectrum = torch.linspace(1, 2, 3000, dtype=torch.float64)
    spectrum[7] = -1.0
    start = torch.zeros(3000, dtype=torch.float64)
    start[0] = 1.0
    operator = hvpopt.FunctionOperator(lambda v: spectrum * v, 3000, device=DEVICE)
    basis = hvpopt.LanczosBasis(operator, rhs=-start, probe=1e-13)
    basis.extend()
    assert basis.invariant
    assert lower_bound(basis, 0.99) < -1.0
    assert not excludes_below(basis, 0.0, 0.99)


@pytest.mark.parametrize("n", [20, 160])
def test_a_matrix_of_few_directions_converges_at_every_start(n, generator):
    """Its Krylov space closes early; what the start lacked is bounded by its rounding."""
    for seed in range(20):
        factor = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        matrix = factor @ factor.mT
        found = hvpopt.smallest_eigenvalue(hvpopt.MatrixOperator(matrix), seed=seed)
        assert found.converged, found.message
        assert "rounding" in found.message
        norm = float(torch.linalg.matrix_norm(matrix, 2))
        assert abs(found.value) < 1e-12 * norm
        assert -1e-6 * norm < found.lower <= 1e-12 * norm


def test_a_start_without_a_random_part_certifies_no_closed_space():
    matrix = torch.diag(torch.tensor([3.0, 2.0, 0.0, 0.0], dtype=torch.float64))
    start = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    basis = hvpopt.LanczosBasis(hvpopt.MatrixOperator(matrix), rhs=start)
    basis.extend(4)
    assert basis.invariant
    assert not eigenvalue_converged(basis, 1e-2, 0.99)
