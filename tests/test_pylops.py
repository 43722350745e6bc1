"""hvpopt's operators inside PyLops."""

import sys

import numpy as np
import pytest
import tolerances
import torch
from test_lanczos import symmetric

import hvpopt
from hvpopt.interop.pylops import to_pylops

N = 12


@pytest.fixture
def matrix(generator):
    return symmetric(N, generator)


def test_products_are_the_matrix_and_are_counted(matrix, seed):
    pylops = pytest.importorskip("pylops")
    H = hvpopt.MatrixOperator(matrix)
    op = to_pylops(H)
    w = np.random.default_rng(seed).standard_normal(N)
    assert isinstance(op, pylops.LinearOperator)
    assert op.shape == (N, N)
    assert op.dtype == np.float64
    for product in (op @ w, op.matvec(w), op.H @ w, op.rmatvec(w)):
        error = np.linalg.norm(product - matrix.numpy() @ w)
        assert error <= tolerances.PRODUCT * np.linalg.norm(w) * N
        assert product.dtype == np.float64
    assert H.counts.products == 4


def test_pylops_dot_test_passes_and_operators_compose(seed):
    pylops = pytest.importorskip("pylops")
    model = torch.linspace(-1, 1, N, dtype=torch.float64)
    with hvpopt.HessianOperator(lambda x: (x**4).sum() + x.prod(), model) as H:
        op = to_pylops(H)
        before = H.counts.products
        assert pylops.utils.dottest(op, N, N)
        assert H.counts.products == before + 2
        shifted = op + 20.0 * pylops.Identity(N)
        b = np.random.default_rng(seed).standard_normal(N)
        solution = pylops.cg(shifted, b, niter=50, tol=1e-14)[0]
        dense = H.to_dense().numpy() + 20.0 * np.eye(N)
    error = np.linalg.norm(solution - np.linalg.solve(dense, b))
    assert error <= 1e-5 * np.linalg.norm(b)
    with pytest.raises(RuntimeError, match="closed"):
        op @ b


def test_float32_operator_answers_in_float64(matrix):
    pytest.importorskip("pylops")
    op = to_pylops(hvpopt.MatrixOperator(matrix.float()))
    product = op @ np.ones(N)
    assert product.dtype == np.float64
    error = np.abs(product - matrix.numpy().sum(1)).max()
    assert error <= tolerances.FLOAT32 * np.abs(matrix.numpy()).sum(1).max()


def test_missing_pylops_is_said(matrix, monkeypatch):
    monkeypatch.setitem(sys.modules, "pylops", None)
    with pytest.raises(ImportError, match=r"pip install 'hvpopt\[pylops\]'"):
        to_pylops(hvpopt.MatrixOperator(matrix))


def test_what_is_no_operator_is_refused(matrix):
    with pytest.raises(TypeError, match="the operator is a Tensor"):
        to_pylops(matrix)


def test_complex_vectors_keep_their_imaginary_part():
    H = torch.tensor([[2.0, 0.0], [1.0, 3.0]], dtype=torch.float64)
    H = H + H.mT
    found = to_pylops(hvpopt.MatrixOperator(H)) @ np.array([1 + 2j, 0])
    np.testing.assert_allclose(found, H.numpy() @ np.array([1 + 2j, 0]))
