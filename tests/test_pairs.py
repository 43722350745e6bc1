"""PairsPreconditioner against dense BFGS updates, and what pairs save."""

import pytest
import torch
from test_lanczos import symmetric
from tolerances import SOLVE

import hvpopt
from hvpopt import DiagonalPreconditioner, PairsPreconditioner

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
    preconditioner = PairsPreconditioner()
    for s, y in pairs:
        preconditioner = preconditioner.with_pair(s, y)
        assert float((preconditioner.apply(y) - s).norm() / s.norm()) < SOLVE
    assert len(preconditioner.pairs) == 5


def test_memory_forgets_the_oldest(pairs):
    kept = PairsPreconditioner(pairs, memory=2)
    assert [s is t for (s, _), (t, _) in zip(kept.pairs, pairs[-2:], strict=True)] == [
        True,
        True,
    ]
    assert kept.with_pair(*pairs[0]).pairs[0][0] is pairs[-1][0]


@pytest.mark.parametrize("damped", [False, True])
def test_is_definite_whatever_it_is_shown(generator, damped):
    indefinite = symmetric(20, generator, torch.linspace(-1, 1, 20, dtype=F64))
    lowest = torch.linalg.eigh(indefinite)[1][:, :1].mT
    steps = torch.cat([randn(29, 20, generator=generator), lowest])
    preconditioner = PairsPreconditioner(damped=damped, memory=50)
    for s in steps:
        preconditioner = preconditioner.with_pair(s, indefinite @ s)
    matrix = dense(preconditioner, 20)
    assert float((matrix - matrix.mT).abs().max() / matrix.abs().max()) < SOLVE
    lowest, *_, highest = torch.linalg.eigvalsh(0.5 * (matrix + matrix.mT)).tolist()
    # it may be badly conditioned: nearly flat pairs are taken
    assert lowest > -1e-10 * highest
    assert len(preconditioner.pairs) == 30 if damped else len(preconditioner.pairs) < 30


def test_unsafe_curvature_changes_nothing(pairs):
    known = PairsPreconditioner(pairs)
    s, y = pairs[0]
    across = y - (s @ y) / (s @ s) * s
    for bad in (-y, across, torch.zeros_like(y), y * float("nan")):
        assert known.with_pair(s, bad) is known
    with pytest.raises(ValueError, match="not safely positive"):
        PairsPreconditioner(((s, -y),))


def test_damping_keeps_a_fifth_of_the_known_curvature(pairs):
    known = PairsPreconditioner(pairs, damped=True)
    s, y = pairs[0][0], -pairs[0][1]
    expected = 0.2 * float(y @ known.apply(y))
    mended, _ = known.with_pair(s, y).pairs[-1]
    assert float(mended @ y) == pytest.approx(expected, rel=SOLVE)


def test_n_conjugate_pairs_are_the_inverse(matrix, generator):
    rhs = randn(30, generator=generator)
    solve = hvpopt.cg(
        hvpopt.MatrixOperator(matrix), rhs, tol=1e-14, keep_pairs=300, max_products=300
    )
    preconditioner = PairsPreconditioner(solve.pairs, memory=300)
    again = hvpopt.cg(
        hvpopt.MatrixOperator(matrix), rhs, tol=1e-6, preconditioner=preconditioner
    )
    assert again.n_products <= 3 < solve.n_products


def test_pairs_of_one_solve_save_products_of_the_next(generator):
    n = 300
    spectrum = torch.ones(n, dtype=F64) + torch.rand(n, generator=generator, dtype=F64)
    spectrum[:12] = torch.logspace(2, 5, 12, dtype=F64)
    matrix = symmetric(n, generator, spectrum)
    other = matrix + 0.1 * symmetric(n, generator)
    first, second = randn(2, n, generator=generator)
    solve = hvpopt.cg(hvpopt.MatrixOperator(matrix), first, tol=1e-6, keep_pairs=60)
    assert len(solve.pairs) <= 60
    operator = hvpopt.MatrixOperator(other)
    plain = hvpopt.cg(operator, second, tol=1e-6)
    helped = hvpopt.cg(
        operator,
        second,
        tol=1e-6,
        preconditioner=PairsPreconditioner(solve.pairs, memory=60),
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
        lambda p: PairsPreconditioner(p).with_pair(p[0][0], p[0][1][:-1]),
        lambda p: PairsPreconditioner(p).apply(torch.ones(31, dtype=F64)),
    ],
)
def test_bad_input_is_refused(pairs, make):
    with pytest.raises(ValueError, match=r"(memory is|scale is|shapes|shape)"):
        make(pairs)
