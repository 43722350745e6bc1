"""DenseHessian against torch.linalg."""

import pytest
import torch
from tolerances import PRODUCT, SOLVE

from hvpopt import DenseHessian, FunctionOperator, HessianOperator, MatrixOperator

F64 = torch.float64


@pytest.fixture
def matrix(generator):
    root = torch.randn(11, 11, generator=generator, dtype=F64)
    return root + root.mT


def test_assembly_costs_one_product_a_column(matrix):
    H = MatrixOperator(matrix)
    dense = DenseHessian(H)
    assert float((dense.matrix - matrix).abs().max()) <= PRODUCT
    assert H.counts.products == 11


def test_assembles_the_hessian_of_a_loss(generator):
    model = torch.randn(3, 4, generator=generator, dtype=F64)
    with HessianOperator(lambda x: (x**4).sum(), model) as H:
        dense = DenseHessian(H)
    expected = torch.diag(12 * model.reshape(-1) ** 2)
    assert float((dense.matrix - expected).norm() / expected.norm()) < PRODUCT


def test_smallest_eigenpair(matrix):
    value, vector = DenseHessian(MatrixOperator(matrix)).smallest_eigenvalue()
    exact = torch.linalg.eigvalsh(matrix)
    size = float(exact.abs().max())
    assert abs(value - float(exact[0])) < SOLVE * size
    assert float(vector.norm()) == pytest.approx(1.0, rel=1e-12)
    assert float((matrix @ vector - value * vector).norm()) < SOLVE * size


def test_solves_the_shifted_system_and_keeps_its_matrix(matrix, generator):
    shift = 1.0 - float(torch.linalg.eigvalsh(matrix)[0])
    rhs = torch.randn(11, generator=generator, dtype=F64)
    dense = DenseHessian(MatrixOperator(matrix))
    before, given = dense.matrix.clone(), rhs.clone()
    x = dense.solve(rhs, shift)
    residual = matrix @ x + shift * x - rhs
    assert float(residual.norm() / rhs.norm()) < SOLVE
    assert torch.equal(dense.matrix, before)
    assert torch.equal(rhs, given)


def test_solve_without_a_shift_on_a_definite_matrix(generator):
    rhs = torch.randn(4, generator=generator, dtype=F64)
    x = DenseHessian(MatrixOperator(2 * torch.eye(4, dtype=F64))).solve(rhs)
    assert float((x - rhs / 2).norm() / rhs.norm()) < PRODUCT


@pytest.mark.parametrize("shift", [0.0, 0.9])
def test_indefinite_system_is_refused(shift):
    spectrum = torch.tensor([3.0, 2.0, -1.0], dtype=F64)
    dense = DenseHessian(MatrixOperator(torch.diag(spectrum)))
    with pytest.raises(ValueError, match=r"is not positive definite \(order-3 minor\)"):
        dense.solve(torch.ones(3, dtype=F64), shift)


def test_matrix_above_the_memory_limit_is_refused_before_any_product():
    H = FunctionOperator(torch.clone, 1000)
    with pytest.raises(MemoryError, match="needs 8,000,000 bytes"):
        DenseHessian(H, memory_limit=7_999_999)
    assert H.counts.products == 0


def test_dense_matrix_does_not_share_the_operators_memory(matrix):
    dense = DenseHessian(MatrixOperator(matrix))
    dense.matrix.zero_()
    assert matrix.any()
