"""Conjugate gradients against dense solves."""

import pytest
import torch
from test_lanczos import symmetric

import hvpopt
from hvpopt import CGStatus


@pytest.fixture
def definite(generator):
    n = 60
    spectrum = 0.1 + torch.rand(n, generator=generator, dtype=torch.float64)
    matrix = symmetric(n, generator, spectrum)
    rhs = torch.randn(n, generator=generator, dtype=torch.float64)
    return matrix, rhs


@pytest.mark.parametrize("preconditioned", [False, True])
def test_matches_a_dense_solve(definite, preconditioned):
    matrix, rhs = definite
    diagonal = hvpopt.DiagonalPreconditioner(matrix.diagonal())
    result = hvpopt.cg(
        hvpopt.MatrixOperator(matrix),
        rhs,
        tol=1e-12,
        preconditioner=diagonal if preconditioned else None,
    )
    expected = torch.linalg.solve(matrix, rhs)
    assert result.status is CGStatus.CONVERGED
    assert float((result.x - expected).norm() / expected.norm()) < 1e-10


def test_reported_residual_is_the_true_one(definite):
    matrix, rhs = definite
    result = hvpopt.cg(hvpopt.MatrixOperator(matrix), rhs, tol=1e-3)
    true = float((rhs - matrix @ result.x).norm())
    assert result.residual_norm == pytest.approx(true, rel=1e-8)
    assert true <= 1e-3 * float(rhs.norm())


def test_good_preconditioner_saves_products(generator):
    diagonal = torch.logspace(0, 6, 200, dtype=torch.float64)
    matrix = torch.diag(diagonal)
    rhs = torch.randn(200, generator=generator, dtype=torch.float64)
    plain = hvpopt.cg(hvpopt.MatrixOperator(matrix), rhs, max_products=150)
    helped = hvpopt.cg(
        hvpopt.MatrixOperator(matrix),
        rhs,
        preconditioner=hvpopt.DiagonalPreconditioner(diagonal, damping=1e-12),
    )
    assert plain.status is CGStatus.MAX_PRODUCTS
    assert plain.n_products == 150
    assert helped.status is CGStatus.CONVERGED
    assert helped.n_products <= 3


def test_negative_curvature_keeps_its_direction(generator):
    spectrum = torch.linspace(-1, 5, 40, dtype=torch.float64)
    matrix = symmetric(40, generator, spectrum)
    rhs = torch.randn(40, generator=generator, dtype=torch.float64)
    result = hvpopt.cg(hvpopt.MatrixOperator(matrix), rhs, tol=1e-10)
    assert result.status is CGStatus.NEGATIVE_CURVATURE
    d = result.direction
    assert float(d @ matrix @ d) <= 0.0
    assert result.curvature == pytest.approx(float(d @ matrix @ d / (d @ d)), rel=1e-10)


def test_zero_right_hand_side_costs_nothing(definite):
    matrix, rhs = definite
    operator = hvpopt.MatrixOperator(matrix)
    result = hvpopt.cg(operator, torch.zeros_like(rhs))
    assert result.status is CGStatus.CONVERGED
    assert operator.counts.products == 0
    assert not result.x.any()


def test_counts_its_products(definite):
    matrix, rhs = definite
    operator = hvpopt.MatrixOperator(matrix)
    result = hvpopt.cg(operator, rhs, tol=1e-6)
    assert result.n_products == operator.counts.products


def test_deadline_in_the_past_is_its_own_status(definite):
    matrix, rhs = definite
    result = hvpopt.cg(hvpopt.MatrixOperator(matrix), rhs, deadline=0.0)
    assert result.status is CGStatus.DEADLINE


def test_every_status_has_a_sentence():
    assert all(len(status.message.split()) > 3 for status in CGStatus)


def test_tiny_float32_right_hand_sides_do_not_underflow():
    rhs = torch.full((4,), 1e-25)
    result = hvpopt.cg(hvpopt.MatrixOperator(2 * torch.eye(4)), rhs)
    assert result.status is CGStatus.CONVERGED
    assert torch.allclose(result.x, rhs / 2, rtol=1e-6, atol=0.0)
