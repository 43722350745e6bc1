"""A Lanczos basis shared out over ranks against the same basis on one process."""

import math

import pytest
import rank_bases
import torch
from test_distributed import AT_ONCE, CELLS, fork_server, gap, run, same_bits
from tolerances import SAME_INVERSION, SHARED_BASIS

import hvpopt
from hvpopt.distributed.ranks import current_exchange
from hvpopt.distributed.slices import Slices
from hvpopt.krylov.rows import FIRST_ROWS
from hvpopt.operators.holding import WHOLE
from hvpopt.operators.symmetric import RestrictedOperator, ShiftedOperator
from hvpopt.run.journal import Journal, JournalOperator

__all__ = ["fork_server", "run"]

#: Unknowns: fewer than ranks, fewer than fill them, more than the first rows of a basis.
SIZES = (1, 3, 5, 21)


def test_operators_made_of_others_hold_a_basis_as_they_do():
    plain = hvpopt.MatrixOperator(torch.eye(4, dtype=torch.float64))
    shared = hvpopt.MatrixOperator(torch.eye(4, dtype=torch.float64))
    shared.holding = Slices(current_exchange(), 0, print)
    keep = torch.tensor([True, False, True, True])
    for operator in (
        plain + shared,
        2.0 * shared,
        ShiftedOperator(shared, 1.0),
        RestrictedOperator(plain + shared, keep),
        JournalOperator(shared, Journal(), "product"),
    ):
        assert operator.holding is shared.holding
    assert (plain + plain).holding is WHOLE


def test_without_other_ranks_nothing_is_shared(seed):
    options = {"case": "bounded", "max_iter": 1}
    alone, bases, _ = rank_bases.invert(seed, shard=False, **options)
    found, same_bases, _ = rank_bases.invert(seed, **options)
    assert same_bits(found, alone)
    assert bases == same_bases


def columns_of(n, size):
    """Return how many of n entries each rank holds."""
    each = math.ceil(n / size)
    return [min(each, max(0, n - rank * each)) for rank in range(size)]


# -- inversions -----------------------------------------------------------------------


@pytest.mark.parametrize("case", ["sum", "bounded"])
def test_sharing_does_not_change_an_inversion(run, seed, case):
    alone, bases, returned = rank_bases.invert(seed, case, shard=False)
    x, fun, status, counts, _, _ = alone
    sizes, products, _ = zip(*bases, strict=True)
    assert sum(products) == counts["products"] > 4
    # a whole vector for each product, and for each that a basis returned
    n_gathered = sum(
        n * (k + calls) for n, k, calls in zip(sizes, products, returned, strict=True)
    )
    free = CELLS - 1
    assert free % 4 == 3
    assert max(sizes) == free if case == "sum" else max(sizes) < free
    for size in (2, 4):
        found = run("rank_bases.invert", size, case=case).all()
        assert all(same_bits(found[0][0], other[0]) for other in found)
        there, value, ended, spent, reduced, gathered = found[0][0]
        assert gap(there, x) <= SAME_INVERSION
        assert abs(value - fun) <= SAME_INVERSION * fun
        assert (ended, spent) == (status, counts)
        assert reduced == 8 * (free * counts["products"] + CELLS * counts["gradients"])
        assert gathered == 8 * n_gathered
        for rank, (_, held, _) in enumerate(found):
            assert held == [
                (n, k, (k, columns_of(n, size)[rank]))
                for n, k in zip(sizes, products, strict=True)
            ]


def test_bases_are_shared_only_where_asked(run):
    options = {"case": "sum", "max_iter": 1}
    found = run("rank_bases.invert", 2, share_basis=False, **options).all()
    for same, bases, _ in found:
        assert same[-1] == 0
        assert all(shape == (k, n) for n, k, shape in bases)


# -- bases ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 4])
def test_shared_bases_of_dense_matrices(run, seed, size):
    ran = run("rank_bases.dense", size, sizes=SIZES).all()
    for n, ranks in zip(SIZES, zip(*ran, strict=True), strict=True):
        found = ranks[0]
        assert all(same_bits(found["same"], other["same"]) for other in ranks)
        agrees_with_dense(
            *rank_bases.problem_of_size(seed, n), found["same"], found["alone"]
        )
        rows = torch.cat([rank["rows"] for rank in ranks], 1)
        eye = torch.eye(n, dtype=torch.float64)
        assert float((rows @ rows.mT - eye).abs().max()) < SHARED_BASIS
        room = FIRST_ROWS
        while room < n:
            room *= 2
        for rank, columns in zip(ranks, columns_of(n, size), strict=True):
            assert rank["rows"].shape == (n, columns)
            assert rank["storage"] == 8 * min(room, n + 1) * columns
            # of every product, and what was asked for; float64 each
            assert rank["gathered"] == (n, 3, {torch.float64})
        assert found["messages"] == messages(n, math.ceil(n / size))


def agrees_with_dense(matrix, gradient, same, products_alone):
    values, _ = torch.linalg.eigh(1.5 * matrix)
    scale = float(values.abs().max())
    diagonal, ritz_values, step, bounded, lowest, estimate = same
    close = SHARED_BASIS * scale
    assert float((values.new_tensor(ritz_values) - values).abs().max()) < close
    assert sum(diagonal) == pytest.approx(float(values.sum()), abs=len(diagonal) * close)
    for found, shift in ((step, 1.0 - ritz_values[0]), (bounded, bounded[1])):
        residual = 1.5 * matrix @ found[0] + shift * found[0] + gradient
        assert float(residual.norm() / gradient.norm()) < close
    vector, multiplier = bounded
    within = 0.1 - float(vector.norm())
    assert within == pytest.approx(0.0, abs=close) or (within > 0.0 and not multiplier)
    assert float((1.5 * matrix @ lowest - values[0] * lowest).norm()) < close
    assert float(lowest.norm()) == pytest.approx(1.0)
    assert estimate[0] == pytest.approx(float(values[0]) / 1.5, rel=1e-6)
    assert estimate[1] == products_alone


def messages(n, each):
    """Return how many messages the start has sent, and each extension after it."""

    def of(numbers):
        # a header alone carries one number
        return 1 if numbers == 1 else 2

    begun = of(1) + of(1)  # a coordinate of the gradient, and the norm of what is left
    return [begun] + [
        of(each)  # q
        + of(j + 2)  # the first projections, and α
        + of(j + 1)  # the second
        + of(1)  # β
        + (begun if j + 1 < n else 0)  # the last one has no vector to follow
        for j in range(n)
    ]


# -- failing together -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("product", "rank 1: OSError: the disk of this rank is gone"),
        ("basis", "rank 1: MemoryError: no room"),
        ("start", "hold different models or vectors: rank 1 of"),
        ("numbers", "hold different models or vectors: rank 1 of"),
        ("less", "are at different evaluations"),
    ],
)
def test_rank_that_fails_or_differs_ends_all(run, how, told):
    ran = run("rank_bases.fail", 3, how=how, **AT_ONCE)
    assert ran.exits == [1, 1, 1]
    assert told in ran.told[0]
    assert told in ran.told[2]
