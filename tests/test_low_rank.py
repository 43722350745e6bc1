"""LowRankPreconditioner against dense inverses, error bounds and iteration counts."""

import math

import pytest
import torch
from test_lanczos import symmetric
from test_pairs import F64, dense, randn
from tolerances import SOLVE

import hvpopt
from hvpopt import (
    DiagonalPreconditioner,
    LowRankPreconditioner,
    MatrixOperator,
    PairsPreconditioner,
    nystrom,
    ritz_pairs,
    ritz_preconditioner,
)
from hvpopt.krylov.preconditioner import RestrictedPreconditioner


def decaying(n, generator, rate=0.7):
    return symmetric(n, generator, rate ** torch.arange(n, dtype=F64) + 1e-8)


def approximation(preconditioner, damping):
    """The low-rank matrix that a sketch without a base stands for."""
    mu = damping / (1.0 + damping) * float(preconditioner.values.max())
    v = preconditioner.vectors
    return (v * (preconditioner.values - mu)) @ v.mT, mu


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("based", [False, True])
def test_is_the_dense_inverse_of_its_formula(generator, based):
    n, r = 40, 6
    base = None
    root = torch.eye(n, dtype=F64)
    if based:
        diagonal = 0.1 + torch.rand(n, generator=generator, dtype=F64)
        base = DiagonalPreconditioner(diagonal)
        root = torch.diag(base.inverse.sqrt().reciprocal())
    u = torch.linalg.qr(randn(n, r, generator=generator))[0]
    values = torch.logspace(3, 1, r, dtype=F64)
    preconditioner = LowRankPreconditioner(
        torch.linalg.solve(root, u), values, 2.0, base=base
    )
    # M = D^½ (U θ Uᵀ + σ (I − U Uᵀ)) D^½, inverted densely
    middle = (u * (values - 2.0)) @ u.mT + 2.0 * torch.eye(n, dtype=F64)
    expected = torch.linalg.inv(root @ middle @ root)
    assert relative(dense(preconditioner, n), expected) < SOLVE


@pytest.mark.parametrize("rank", [1, 7, 60])
def test_sketch_spends_its_rank_in_products(generator, rank):
    operator = MatrixOperator(decaying(60, generator))
    assert nystrom(operator, rank).rank == rank
    assert operator.counts.products == rank


def test_sketch_keeps_its_error_bound(generator, seed):
    """Proposition 2.2 of Frangella, Tropp and Udell, on the mean of some sketches."""
    n, rank = 120, 20
    matrix = decaying(n, generator)
    spectrum = torch.linalg.eigvalsh(matrix).flip(0)
    bounds = []
    for p in range(2, rank - 1):
        k = rank - p
        tail = float(spectrum[k:].sum())
        bounds.append(
            (1 + 2 * k / (p - 1)) * float(spectrum[k])
            + 2 * math.e**2 * rank / (p * p - 1) * tail
        )
    errors = []
    for i in range(10):
        sketch = nystrom(MatrixOperator(matrix), rank, seed + i, damping=0.0)
        low, _ = approximation(sketch, 0.0)
        errors.append(float(torch.linalg.matrix_norm(matrix - low, 2)))
    assert sum(errors) / len(errors) <= min(bounds)
    # and no better than the best matrix of this rank
    assert min(errors) >= float(spectrum[rank]) * (1 - 1e-6)


def test_condition_number_is_bounded(generator, seed):
    """Theorem 5.1 of the same: κ ≤ (λ̂_r + μ + ‖E‖) / μ for H + μI."""
    n, rank, damping = 100, 15, 1e-3
    matrix = decaying(n, generator)
    sketch = nystrom(MatrixOperator(matrix), rank, seed, damping=damping)
    low, mu = approximation(sketch, damping)
    error = float(torch.linalg.matrix_norm(matrix - low, 2))
    product = dense(sketch, n) @ (matrix + mu * torch.eye(n, dtype=F64))
    spectrum = torch.linalg.eigvals(product).real
    assert float(spectrum.max() / spectrum.min()) <= (sketch.rest + error) / mu


def test_exact_low_rank_is_found_exactly(generator, seed):
    spectrum = torch.zeros(50, dtype=F64)
    spectrum[:5] = torch.tensor([1.0, 2.0, 5.0, 7.0, 9.0], dtype=F64)
    matrix = symmetric(50, generator, spectrum)
    sketch = nystrom(MatrixOperator(matrix), 8, seed, damping=0.0)
    low, _ = approximation(sketch, 0.0)
    assert relative(low, matrix) < 1e-7  # the shift costs half the digits at most


@pytest.mark.parametrize("based", [False, True])
def test_sketch_saves_products(generator, seed, based):
    n, rank = 200, 25
    root = torch.logspace(0, 1.5, n, dtype=F64) if based else torch.ones(n, dtype=F64)
    core = decaying(n, generator, rate=0.6) + 1e-4 * torch.eye(n, dtype=F64)
    matrix = core * root * root[:, None]
    base = DiagonalPreconditioner(root.square(), damping=1e-12) if based else None
    rhs = randn(n, generator=generator)
    operator = MatrixOperator(matrix)
    plain = hvpopt.cg(operator, rhs, tol=1e-8, preconditioner=base, max_products=2000)
    sketch = nystrom(operator, rank, seed, base=base, damping=1e-4)
    helped = hvpopt.cg(operator, rhs, tol=1e-8, preconditioner=sketch)
    assert helped.status is hvpopt.CGStatus.CONVERGED
    assert helped.n_products <= plain.n_products / 2
    assert operator.counts.products == helped.n_products + rank + plain.n_products


@pytest.mark.parametrize("make", ["sketch", "sketch on base", "ritz", "pairs"])
def test_is_definite_where_the_operator_is_not(generator, seed, make):
    matrix = symmetric(40, generator)
    base = DiagonalPreconditioner(matrix.square().sum(0).sqrt())
    operator = MatrixOperator(matrix)
    basis = hvpopt.LanczosBasis(operator, seed=seed)
    basis.extend(20)
    preconditioner = {
        "sketch": lambda: nystrom(operator, 12, seed),
        "sketch on base": lambda: nystrom(operator, 12, seed, base=base),
        "ritz": lambda: ritz_preconditioner(basis, 12),
        "pairs": lambda: PairsPreconditioner(ritz_pairs(basis, 12), base=base),
    }[make]()
    found = dense(preconditioner, 40)
    assert relative(found, found.mT) < SOLVE
    assert float(torch.linalg.eigvalsh(found)[0]) > 0.0


def test_full_basis_gives_the_inverse_of_the_absolute_value(generator, seed):
    n = 30
    matrix = symmetric(n, generator)
    basis = hvpopt.LanczosBasis(MatrixOperator(matrix), seed=seed)
    basis.extend(n)
    theta, u = torch.linalg.eigh(matrix)
    expected = (u / theta.abs()) @ u.mT
    low = ritz_preconditioner(basis, n, damping=0.0, accuracy=1e9)
    pairs = PairsPreconditioner(ritz_pairs(basis, n, accuracy=1e9), memory=n)
    assert relative(dense(low, n), expected) < 1e-6
    assert relative(dense(pairs, n), expected) < 1e-6


@pytest.mark.parametrize("based", [False, True])
def test_ritz_pairs_recycle_a_basis_at_no_product(generator, seed, based):
    n = 200
    root = torch.logspace(0, 0.5, n, dtype=F64) if based else torch.ones(n, dtype=F64)
    spectrum = torch.ones(n, dtype=F64) + torch.rand(n, generator=generator, dtype=F64)
    spectrum[:8] = torch.logspace(2, 4, 8, dtype=F64)
    matrix = symmetric(n, generator, spectrum) * root * root[:, None]
    base = DiagonalPreconditioner(root.square(), damping=1e-12) if based else None
    operator = MatrixOperator(matrix)
    basis = hvpopt.LanczosBasis(operator, seed=seed)
    basis.extend(60)
    recycled = (
        PairsPreconditioner(ritz_pairs(basis, 8), base=base, scale=1.0)
        if based
        else ritz_preconditioner(basis, 8)
    )
    assert operator.counts.products == 60
    rhs = randn(n, generator=generator)
    plain = hvpopt.cg(operator, rhs, tol=1e-8, preconditioner=base)
    helped = hvpopt.cg(operator, rhs, tol=1e-8, preconditioner=recycled)
    assert helped.n_products < 0.8 * plain.n_products


def test_inaccurate_ritz_pairs_are_left_out(generator, seed):
    matrix = decaying(80, generator)
    basis = hvpopt.LanczosBasis(MatrixOperator(matrix), seed=seed)
    basis.extend(12)
    low = ritz_preconditioner(basis, 12, accuracy=1e-3)
    assert 1 <= low.rank < 12
    for u, value in zip(low.vectors.unbind(1), low.values, strict=True):
        assert float((matrix @ u - value * u).norm()) <= 1e-3 * float(value) * 1.001


def test_pairs_on_low_rank_on_a_diagonal(generator, seed):
    n = 60
    root = torch.logspace(0, 2, n, dtype=F64)
    matrix = decaying(n, generator) * root * root[:, None]
    matrix = matrix + 1e-3 * torch.diag(root.square())
    diagonal = DiagonalPreconditioner(root.square(), damping=1e-12)
    low = nystrom(MatrixOperator(matrix), 10, seed, base=diagonal)
    whole = PairsPreconditioner(base=low)
    for s in randn(4, n, generator=generator):
        whole = whole.with_pair(s, matrix @ s)
    found = dense(whole, n)
    assert float(torch.linalg.eigvalsh(0.5 * (found + found.mT))[0]) > 0.0
    rhs = randn(n, generator=generator)
    spent = {
        name: hvpopt.cg(
            MatrixOperator(matrix), rhs, tol=1e-8, preconditioner=p, max_products=5000
        ).n_products
        for name, p in {"none": None, "diagonal": diagonal, "all": whole}.items()
    }
    assert spent["all"] < spent["diagonal"] < spent["none"]


def test_restriction_is_the_block_of_the_inverse(generator, seed):
    matrix = decaying(40, generator)
    low = nystrom(MatrixOperator(matrix), 10, seed)
    keep = torch.rand(40, generator=generator) < 0.6
    keep[:2] = torch.tensor([True, False])

    def extend(vector):
        full = torch.zeros(40, dtype=F64)
        full[keep] = vector
        return full

    restricted = RestrictedPreconditioner(low, lambda v: v[keep], extend)
    found = dense(restricted, int(keep.sum()))
    assert relative(found, dense(low, 40)[keep][:, keep]) < SOLVE
    assert float(torch.linalg.eigvalsh(0.5 * (found + found.mT))[0]) > 0.0


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda h: nystrom(h, 0), "rank is 0"),
        (lambda h: nystrom(h, 21), "rank is 21"),
        (lambda h: nystrom(h, 3, damping=-1.0), "damping is"),
        (lambda h: nystrom(-1.0 * h, 3), "no positive curvature"),
        (lambda h: nystrom(0.0 * h, 3), "no positive curvature"),
        (lambda h: ritz_preconditioner(hvpopt.LanczosBasis(h), 3), "empty"),
        (lambda h: ritz_preconditioner(hvpopt.LanczosBasis(h), 0), "rank is 0"),
        (
            lambda h: ritz_preconditioner(hvpopt.LanczosBasis(h), 3, accuracy=0.0),
            "accuracy is",
        ),
        (
            lambda _: LowRankPreconditioner(torch.ones(3, 2), torch.ones(3), 1.0),
            "expected",
        ),
        (
            lambda _: LowRankPreconditioner(torch.ones(3, 1), torch.zeros(1), 1.0),
            "must be positive",
        ),
        (lambda h: nystrom(h, 3).apply(torch.ones(4)), "has shape"),
    ],
)
def test_bad_input_is_refused(make, match):
    operator = MatrixOperator(torch.eye(20, dtype=F64))
    with pytest.raises(ValueError, match=match):
        make(operator)


def test_base_without_a_square_root_is_refused():
    operator = MatrixOperator(torch.eye(20, dtype=F64))
    with pytest.raises(TypeError, match="DiagonalPreconditioner"):
        nystrom(operator, 3, base=PairsPreconditioner())
