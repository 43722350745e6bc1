"""PairsPreconditioner against dense BFGS updates, and what pairs save."""

import pytest
import torch
from test_lanczos import symmetric
from tolerances import SOLVE

import hvpopt
from hvpopt import DiagonalPreconditioner, PairsPreconditioner
from hvpopt.krylov.pairs import safely_positive

F64 = torch.float64


def randn(*shape, generator):
    return torch.randn(*shape, generator=generator, dtype=F64)


def dense(preconditioner, n):
    columns = [preconditioner.apply(e) for e in torch.eye(n, dtype=F64)]
    return torch.stack(columns, 1)


def bfgs_inverse(inverse, pairs):
    """The dense update, (I − ρ s yᵀ) H (I − ρ y sᵀ) + ρ s sᵀ."""
    eye = torch.eye(len(inverse), dtype=F64)
    for s, y in pairs:
        rho = 1.0 / (s @ y)
        left = eye - rho * torch.outer(s, y)
        inverse = left @ inverse @ left.mT + rho * torch.outer(s, s)
    return inverse


@pytest.fixture
def matrix(generator):
    return symmetric(30, generator, torch.logspace(0, 3, 30, dtype=F64))


@pytest.fixture
def pairs(matrix, generator):
    steps = randn(5, 30, generator=generator)
    return tuple((s, matrix @ s) for s in steps)


@pytest.mark.parametrize("based", [False, True])
@pytest.mark.parametrize("scale", [0.7, "auto"])
def test_is_the_dense_bfgs_inverse(matrix, pairs, based, scale):
    base = DiagonalPreconditioner(matrix.diagonal()) if based else None
    start = torch.eye(30, dtype=F64) if base is None else torch.diag(base.inverse)
    s, y = pairs[-1]
    factor = s @ y / (y @ start @ y) if scale == "auto" else scale
    expected = bfgs_inverse(factor * start, pairs)
    found = dense(PairsPreconditioner(pairs, base=base, scale=scale), 30)
    assert float((found - expected).norm() / expected.norm()) < SOLVE


def test_newest_pair_is_met_exactly(pairs):
    for k, (s, y) in enumerate(pairs, 1):
        preconditioner = PairsPreconditioner(pairs[:k])
        assert float((preconditioner.apply(y) - s).norm() / s.norm()) < SOLVE
    assert len(preconditioner.pairs) == 5


def test_memory_forgets_the_oldest(pairs):
    kept = PairsPreconditioner(pairs, memory=2)
    assert [s is t for (s, _), (t, _) in zip(kept.pairs, pairs[-2:], strict=True)] == [
        True,
        True,
    ]


def test_is_definite_with_every_pair_that_it_takes(generator):
    indefinite = symmetric(20, generator, torch.linspace(-1, 1, 20, dtype=F64))
    lowest = torch.linalg.eigh(indefinite)[1][:, :1].mT
    steps = torch.cat([randn(29, 20, generator=generator), lowest])
    shown = [(s, indefinite @ s) for s in steps]
    taken = [pair for pair in shown if safely_positive(*pair)]
    assert 0 < len(taken) < 30
    preconditioner = PairsPreconditioner(taken, memory=50)
    matrix = dense(preconditioner, 20)
    assert float((matrix - matrix.mT).abs().max() / matrix.abs().max()) < SOLVE
    lowest, *_, highest = torch.linalg.eigvalsh(0.5 * (matrix + matrix.mT)).tolist()
    # it may be badly conditioned: nearly flat pairs are taken
    assert lowest > -1e-10 * highest
    assert len(preconditioner.pairs) == len(taken)


def test_unsafe_curvature_is_refused(pairs):
    s, y = pairs[0]
    across = y - (s @ y) / (s @ s) * s
    for bad in (-y, across, torch.zeros_like(y), y * float("nan")):
        assert not safely_positive(s, bad)
        with pytest.raises(ValueError, match="not safely positive"):
            PairsPreconditioner(((s, bad),))


def test_n_conjugate_pairs_are_the_inverse(matrix, generator):
    rhs = randn(30, generator=generator)
    plain = hvpopt.cg(hvpopt.MatrixOperator(matrix), rhs, tol=1e-6)
    conjugate = torch.linalg.eigh(matrix)[1].mT
    preconditioner = PairsPreconditioner([(s, matrix @ s) for s in conjugate], memory=30)
    again = hvpopt.cg(
        hvpopt.MatrixOperator(matrix), rhs, tol=1e-6, preconditioner=preconditioner
    )
    assert again.n_products <= 3 < plain.n_products


def test_pairs_of_one_matrix_save_products_with_the_next(generator):
    n = 300
    spectrum = torch.ones(n, dtype=F64) + torch.rand(n, generator=generator, dtype=F64)
    spectrum[:12] = torch.logspace(2, 5, 12, dtype=F64)
    matrix = symmetric(n, generator, spectrum)
    other = matrix + 0.1 * symmetric(n, generator)
    rhs = randn(n, generator=generator)
    pairs = [(s, matrix @ s) for s in torch.linalg.eigh(matrix)[1][:, -12:].mT]
    operator = hvpopt.MatrixOperator(other)
    plain = hvpopt.cg(operator, rhs, tol=1e-6)
    helped = hvpopt.cg(
        operator,
        rhs,
        tol=1e-6,
        preconditioner=PairsPreconditioner(pairs),
    )
    assert helped.n_products < 0.75 * plain.n_products
    assert operator.counts.products == plain.n_products + helped.n_products


def test_keeps_the_dtype_of_the_vector(pairs):
    assert PairsPreconditioner(pairs).apply(torch.ones(30)).dtype is torch.float32


@pytest.mark.parametrize(
    "make",
    [
        lambda p: PairsPreconditioner(p, memory=0),
        lambda p: PairsPreconditioner(p, scale=0.0),
        lambda p: PairsPreconditioner(p, scale=float("inf")),
        lambda p: PairsPreconditioner([(p[0][0], p[0][1][:-1])]),
        lambda p: PairsPreconditioner(p).apply(torch.ones(31, dtype=F64)),
    ],
)
def test_bad_input_is_refused(pairs, make):
    with pytest.raises(ValueError, match=r"(memory is|scale is|shapes|shape)"):
        make(pairs)
