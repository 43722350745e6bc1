"""SymmetricOperator: products, blocks, sums, restrictions, dense and SciPy forms."""

import numpy as np
import pytest
import torch
from on_device import DEVICE
from scipy.sparse.linalg import eigsh
from tolerances import PRODUCT, SOLVE

import hvpopt
from hvpopt import FunctionOperator, MatrixOperator
from hvpopt.operators import symmetric
from hvpopt.operators.symmetric import RestrictedOperator, ShiftedOperator, SumOperator

F64 = torch.float64


def draw(generator, *shape):
    return torch.randn(shape, generator=generator, dtype=F64)


@pytest.fixture
def matrix(generator):
    root = draw(generator, 9, 9)
    return root + root.mT


def close(actual, expected):
    return float((actual - expected).norm()) <= PRODUCT * float(expected.norm())


# -- products -----------------------------------------------------------------------


def test_product_with_a_vector_and_with_a_block(matrix, generator):
    H = MatrixOperator(matrix)
    vector, block = draw(generator, 9), draw(generator, 9, 4)
    assert close(H @ vector, matrix @ vector)
    assert close(H @ block, matrix @ block)


def test_empty_block_has_an_empty_product(matrix):
    H = MatrixOperator(matrix)
    assert (H @ torch.empty(9, 0, dtype=F64)).shape == (9, 0)
    assert H.counts.products == 0


def test_block_may_be_strided(matrix, generator):
    block = draw(generator, 3, 9).mT
    assert close(MatrixOperator(matrix) @ block, matrix @ block)


def test_every_column_counts_once(matrix, generator):
    H = MatrixOperator(matrix)
    H @ draw(generator, 9)
    H @ draw(generator, 9, 5)
    assert H.counts == hvpopt.Counts(products=6)


def test_product_keeps_the_dtype_it_was_given(matrix):
    H = MatrixOperator(matrix)
    assert (H @ torch.ones(9)).dtype == torch.float32
    assert (H @ torch.ones(9, 2, dtype=F64)).dtype == F64


def test_operator_without_a_space_takes_no_model_shaped_step(matrix):
    with pytest.raises(ValueError, match=r"shape \(3, 3\), expected \(9,\) or \(9, k\)"):
        MatrixOperator(matrix) @ torch.ones(3, 3, dtype=F64)


def test_right_hand_side_is_not_overwritten(matrix, generator):
    block = draw(generator, 9, 2)
    before = block.clone()
    for H in (
        MatrixOperator(matrix),
        2.0 * MatrixOperator(matrix),
        MatrixOperator(matrix) * 2.0,
        ShiftedOperator(MatrixOperator(matrix), 3.0),
    ):
        result = H @ block
        assert torch.equal(block, before)
        assert result.untyped_storage().data_ptr() != block.untyped_storage().data_ptr()


def test_non_finite_product_names_the_operator_and_the_count():
    H = FunctionOperator(lambda v: v / 0.0, 3, device=DEVICE)
    with pytest.raises(FloatingPointError, match="product 1 of FunctionOperator is not"):
        H @ torch.ones(3, dtype=F64)


# -- sums, shifts, restrictions -----------------------------------------------------


def test_weighted_sum_of_operators(matrix, generator):
    other = torch.diag(draw(generator, 9))
    vector = draw(generator, 9)
    H = MatrixOperator(matrix) + 0.5 * MatrixOperator(other)
    assert close(H @ vector, matrix @ vector + 0.5 * (other @ vector))


def test_sum_counts_a_product_once_and_once_in_every_term(matrix, generator):
    first, second = MatrixOperator(matrix), MatrixOperator(matrix)
    H = first + second
    H @ draw(generator, 9, 3)
    assert (H.counts.products, first.counts.products, second.counts.products) == (3, 3, 3)


def test_sum_takes_over_the_propagations_of_its_terms():
    class Wave(MatrixOperator):
        def _product(self, vector):
            self.counts.tally(propagations=4)
            return super()._product(vector)

    H = SumOperator([(1.0, Wave(torch.eye(2))), (1.0, MatrixOperator(torch.eye(2)))])
    H @ torch.ones(2)
    assert H.counts.propagations == 4


def test_closing_a_sum_closes_its_terms():
    model = torch.ones(2, dtype=F64)
    terms = [hvpopt.HessianOperator(lambda x: (x**4).sum(), model) for _ in range(2)]
    H = terms[0] + terms[1]
    H.close()
    for term in terms:
        with pytest.raises(RuntimeError, match="closed"):
            term @ model


def test_sum_takes_model_shaped_steps_where_its_terms_do(generator):
    model = draw(generator, 2, 3)
    H = hvpopt.HessianOperator(lambda x: (x**4).sum(), model)
    step = draw(generator, 2, 3)
    assert close((2.0 * H) @ step, 24 * model**2 * step)


def test_shift_adds_to_the_diagonal_and_shares_the_counts(matrix, generator):
    H = MatrixOperator(matrix)
    vector = draw(generator, 9)
    assert close(ShiftedOperator(H, 2.5) @ vector, matrix @ vector + 2.5 * vector)
    assert H.counts.products == 1


def test_number_added_to_an_operator_is_a_shift(matrix, generator):
    H, vector = MatrixOperator(matrix), draw(generator, 9)
    product = matrix @ vector
    for shifted in (H + 0.5, 0.5 + H, H + np.float32(0.5), H + torch.tensor(0.5)):
        assert isinstance(shifted, ShiftedOperator)
        assert close(shifted @ vector, product + 0.5 * vector)
    assert close((H - 2) @ vector, product - 2 * vector)
    assert close((H - 0.5 * H + 1.0) @ vector, 0.5 * product + vector)
    assert (H + 1.0).counts is H.counts


@pytest.mark.parametrize(
    ("shift", "error", "words"),
    [
        (float("nan"), ValueError, "the shift is nan; it must be finite"),
        (float("inf"), ValueError, "the shift is inf; it must be finite"),
        ("0.1", TypeError, "unsupported operand"),
        (torch.ones(9), TypeError, "unsupported operand"),
    ],
)
def test_shift_that_is_no_finite_number(shift, error, words, matrix):
    with pytest.raises(error, match=words):
        MatrixOperator(matrix) + shift


def test_restriction_keeps_rows_and_columns(matrix, generator):
    keep = torch.tensor([True, False, True, True, False, True, False, False, True])
    H = RestrictedOperator(MatrixOperator(matrix), keep)
    vector = draw(generator, 5)
    assert close(H @ vector, matrix[keep][:, keep] @ vector)
    assert torch.equal(H.restrict(H.extend(vector)), vector)
    assert not H.extend(vector)[~keep].any()


def test_derived_operators_take_over_what_they_do_not_change(generator):
    model, keep = draw(generator, 3, 3), torch.arange(9) < 5
    H = hvpopt.HessianOperator(lambda x: (x**4).sum(), model)
    H.cost, H.noise = 0.25, 1e-9
    for made in (ShiftedOperator(H, 1.0), RestrictedOperator(H, keep), 2.0 * H):
        assert (made.cost, made.noise) == (0.25, 1e-9)
        assert made.dtype is H.dtype
        # the cells of a restriction are no model
        assert made.space is (H.space if made.size == 9 else None)
        counts = made.counts.snapshot()
        made @ draw(generator, made.size)
        assert (made.counts.snapshot() - counts).products == 1
    whole = hvpopt.HessianOperator(lambda x: (x**2).sum(), model)
    assert (H + whole).cost == 0.25
    assert (H + whole).noise == 1e-9


@pytest.mark.parametrize("keep", [None, 2])
def test_every_operator_closes_at_the_end_of_its_block(matrix, keep):
    with MatrixOperator(matrix) as H:
        assert close(H.to_dense(), matrix)
    assert close(H.to_dense(), matrix)  # which holds nothing that it could release
    model = torch.ones(9, dtype=F64)
    own = hvpopt.HessianOperator(lambda x: (x**4).sum(), model)
    made = ShiftedOperator(own, 1.0)
    made = made if keep is None else RestrictedOperator(made, torch.arange(9) < keep)
    with made:
        made @ torch.ones(made.size, dtype=F64)
    with pytest.raises(RuntimeError, match="closed"):
        own @ model


# -- dense --------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 4, 9, 100])
def test_to_dense_returns_the_matrix_at_one_product_a_column(
    matrix, columns, monkeypatch
):
    monkeypatch.setattr(symmetric, "DENSE_COLUMNS", columns)
    H = FunctionOperator(lambda v: matrix @ v, 9, device=DEVICE)
    assert close(H.to_dense(), matrix)
    assert H.counts.products == 9


def test_to_dense_returns_the_symmetric_part(generator):
    root = draw(generator, 6, 6)
    dense = FunctionOperator(lambda v: root @ v, 6, device=DEVICE).to_dense()
    assert torch.equal(dense, dense.mT)
    assert close(dense, 0.5 * (root + root.mT))


def test_memory_limit_is_the_matrix_to_the_byte(matrix):
    H = MatrixOperator(matrix)
    needed = 9 * 9 * 8
    H.to_dense(memory_limit=needed)
    spent = H.counts.products
    with pytest.raises(MemoryError, match=r"needs 648 bytes.*memory_limit=647"):
        H.to_dense(memory_limit=needed - 1)
    assert H.counts.products == spent, "a refusal must come before the first product"


def test_default_limit_names_the_bytes_of_a_large_matrix():
    H = FunctionOperator(torch.clone, 100_000)
    with pytest.raises(MemoryError, match="needs 80,000,000,000 bytes"):
        H.to_dense()


# -- scipy --------------------------------------------------------------------------


def test_scipy_form_has_the_same_products(matrix, generator):
    linear = MatrixOperator(matrix).to_scipy()
    block = draw(generator, 9, 3)
    assert linear.dtype == np.float64
    assert linear.shape == (9, 9)
    assert close(torch.as_tensor(linear @ block.numpy()), matrix @ block)
    assert close(torch.as_tensor(linear.T @ block.numpy()), matrix @ block)


def test_scipy_form_counts_its_products(matrix):
    H = MatrixOperator(matrix)
    H.to_scipy() @ np.ones((9, 2))
    assert H.counts.products == 2


def test_scipy_form_takes_a_read_only_vector(matrix):
    vector = np.ones(9)
    vector.setflags(write=False)
    product = torch.as_tensor(MatrixOperator(matrix).to_scipy() @ vector)
    assert close(product, matrix @ torch.ones(9, dtype=F64))


@pytest.mark.parametrize(("which", "index"), [("SA", 0), ("LA", -1)])
def test_eigsh_over_the_scipy_form_finds_the_ends_of_the_spectrum(matrix, which, index):
    start = np.ones(9)
    value = eigsh(MatrixOperator(matrix).to_scipy(), k=1, which=which, v0=start)[0][0]
    exact = torch.linalg.eigvalsh(matrix)
    assert abs(value - float(exact[index])) < SOLVE * float(exact.abs().max())


def test_float32_operator_has_a_float32_scipy_form():
    linear = MatrixOperator(torch.eye(3)).to_scipy()
    assert linear.dtype == np.float32
    assert (linear @ np.ones(3)).tolist() == [1.0, 1.0, 1.0]


def test_scipy_operator_takes_complex_vectors(generator):
    a = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    a = a + a.mT
    operator = hvpopt.MatrixOperator(a)
    z = torch.randn(4, generator=generator, dtype=torch.complex128)
    np.testing.assert_allclose(operator.to_scipy() @ z.numpy(), a.numpy() @ z.numpy())
    assert operator.counts.products == 2
