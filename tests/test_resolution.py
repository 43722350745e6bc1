"""Point spreads, resolution lengths and cross-talk, against dense algebra in float64."""

import math

import pytest
import scipy.stats
import torch
from tolerances import PRODUCT, ROUNDING, SOLVE
from waves import one_thread, rand, survey  # noqa: F401 - an autouse fixture

from hvpopt import MatrixOperator, ModelSpace
from hvpopt.analysis.point_spread import point_spread, regularised_spread
from hvpopt.analysis.prior import MaternPrior
from hvpopt.analysis.resolution import cross_talk, resolution_lengths
from hvpopt.analysis.responses import Probes, grids_of, mean_of_products, random_probes
from hvpopt.fwi import WaveformMisfit
from hvpopt.problem.objective import Objective

F64 = torch.float64
RUNS = 200
CONFIDENCE = 0.9


def within_binomial_limits(hits, runs=RUNS, confidence=CONFIDENCE):
    """True if hits of runs are no rarer than one in 10,000 at this confidence.

    Intervals from few probes are made by approximate quantiles: two per cent are allowed.
    """
    low = scipy.stats.binom.ppf(5e-5, runs, confidence - 0.02)
    return low <= hits


def positions(ny, nx):
    y, x = torch.meshgrid(
        torch.arange(ny, dtype=F64), torch.arange(nx, dtype=F64), indexing="ij"
    )
    return torch.stack([y.reshape(-1), x.reshape(-1)], 1)


def spread_matrix(ny, nx, metric):
    """A symmetric matrix whose every column is a Gaussian of one metric."""
    at = positions(ny, nx)
    gaps = at[:, None] - at[None]
    return torch.exp(-0.5 * torch.einsum("abi,ij,abj->ab", gaps, metric, gaps))


def metric_of(lengths, angle):
    turn = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]],
        dtype=F64,
    )
    return turn @ torch.diag(torch.tensor(lengths, dtype=F64) ** -2) @ turn.T


def random_seed(generator):
    return int(torch.randint(0, 10**8, (), generator=generator))


def factored(n, rank, generator):
    a = torch.randn(rank, n, generator=generator, dtype=F64)
    return a.T @ a / rank


class Parts(Objective):
    """A quadratic that is a sum of parts ``J_sᵀ J_s``, sampled with random signs."""

    def __init__(self, jacobians):
        super().__init__("parts")
        self.jacobians = jacobians

    @property
    def n_parts(self):
        return len(self.jacobians)

    @property
    def encodes(self):
        return True

    def value(self, model):
        raise NotImplementedError

    def value_and_gradient(self, model):
        raise NotImplementedError

    def __call__(self, *args, **kwargs):
        raise NotImplementedError

    def hessian(self, model, kind="exact", *, space=None):
        matrix = torch.einsum("sij,sik->jk", self.jacobians, self.jacobians)
        operator = MatrixOperator(matrix)
        operator.counts = self.counts.child()
        return operator

    def sample(self, size, *, seed=0):
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (size, self.n_parts), generator=generator)
        codes = 2.0 * signs.to(F64) - 1.0
        encoded = torch.einsum("es,sij->eij", codes, self.jacobians)
        other = Parts(encoded / math.sqrt(size))
        other.counts = self.counts.child()
        return other


# -- grids --------------------------------------------------------------------------


def test_grid_finds_every_free_cell_in_the_flat_vector(generator):
    model = {"a": torch.rand(3, 5, dtype=F64), "b": torch.rand(4, dtype=F64)}
    mask = {
        "a": torch.rand(3, 5, generator=generator) < 0.6,
        "b": torch.tensor([True, False, True, True]),
    }
    space = ModelSpace(model, mask=mask, scale={"a": 3.0, "b": 0.1})
    flat = torch.arange(1.0, space.size + 1, dtype=F64)
    found = []
    for name, grid in grids_of(space).items():
        picture = grid.scatter(flat)
        assert torch.equal(picture != 0, mask[name])
        for cell in mask[name].nonzero().tolist():
            found.append(grid.index(tuple(cell)))
            assert picture[tuple(cell)] == flat[found[-1]]
    assert found == list(range(space.size))


def test_mean_of_products_of_samples_leaves_out_their_squares(generator):
    a, b = torch.randn(2, 3, 4, 5, generator=generator, dtype=F64)
    outer = torch.einsum("kix,kjx->kxij", a, b)
    off = outer.sum((-2, -1)) - outer.diagonal(dim1=-2, dim2=-1).sum(-1)
    torch.testing.assert_close(
        mean_of_products(a, b), off / 12, rtol=PRODUCT, atol=PRODUCT
    )
    one = mean_of_products(a[:, :1], b[:, :1])
    torch.testing.assert_close(one, a[:, 0] * b[:, 0], rtol=ROUNDING, atol=0)


# -- resolution lengths -------------------------------------------------------------


def test_lengths_of_a_gaussian_spread_are_its_own(generator):
    angle = math.pi * float(torch.rand((), generator=generator, dtype=F64))
    metric = metric_of([1.3, 2.4], angle)
    operator = MatrixOperator(spread_matrix(24, 25, metric))
    space = ModelSpace(torch.zeros(24, 25, dtype=F64))
    # many probes: what is left is the edge of the grid, far from its middle
    probes = random_probes(
        operator, space=space, n_probes=150, seed=random_seed(generator)
    )
    found = resolution_lengths(probes, spacing=(2.0, 5.0), window=2.0)
    spacing = torch.tensor([2.0, 5.0], dtype=F64)
    physical = metric / spacing[:, None] / spacing[None, :]
    expected = physical.diagonal().rsqrt()
    torch.testing.assert_close(found.value[:, 12, 12], expected, rtol=0.16, atol=0)
    values, axes = torch.linalg.eigh(physical)
    principal = values.flip(0).rsqrt()
    torch.testing.assert_close(found.principal[:, 12, 12], principal, rtol=0.24, atol=0)
    assert float((found.direction[:, 12, 12] @ axes[:, 0]).abs()) > 0.95
    anisotropy = float(principal[1] / principal[0])
    assert float(found.anisotropy[12, 12]) == pytest.approx(anisotropy, rel=0.35)


def expected_lengths(matrix, grid, window):
    """What infinitely many probes would give: sums with H² in place of y yᵀ."""
    every = Probes(
        # column k of H as answer k: the sum of y yᵀ is H², exactly
        responses=matrix.reshape(1, len(matrix), 1, len(matrix)),
        grids={"model": grid},
        whole=True,
        noise=0.0,
        n_products=0,
        n_propagations=0,
    )
    return resolution_lengths(every, window=window).value


def test_lengths_are_within_their_error_as_often_as_they_say(generator):
    shape, window = (12, 14), 2.0
    mask = torch.ones(shape, dtype=torch.bool)
    mask[:2] = False
    space = ModelSpace(torch.zeros(shape, dtype=F64), mask=mask)
    free = mask.reshape(-1)
    matrix = spread_matrix(*shape, metric_of([1.0, 1.6], 0.4))[free][:, free]
    weights = torch.rand(space.size, generator=generator, dtype=F64) + 0.5
    matrix = weights[:, None] * matrix * weights[None, :]
    operator, grid = MatrixOperator(matrix), grids_of(space)["model"]
    truth = expected_lengths(matrix, grid, window)
    first = random_seed(generator)
    cells = [(4, 3), (6, 7), (9, 11)]
    hits = torch.zeros(2, len(cells))
    for run in range(RUNS):
        probes = random_probes(operator, space=space, n_probes=5, seed=first + run)
        found = resolution_lengths(probes, window=window, confidence=CONFIDENCE)
        low, high = found.interval
        inside = (low <= truth) & (truth <= high)
        hits += torch.stack([inside[:, y, x] for y, x in cells], 1)
    assert bool(found.value[:, ~mask].isnan().all())
    for count in hits.reshape(-1).tolist():
        assert within_binomial_limits(count)
    # the margins are no wider than they need be: something is missed
    assert float(hits.sum()) < 0.99 * RUNS * hits.numel()


def test_lengths_of_samples_are_within_their_error_as_often_as_they_say(generator):
    shape, window, n_parts = (10, 12), 2.0, 12
    space, model = (
        ModelSpace(torch.zeros(shape, dtype=F64)),
        torch.zeros(shape, dtype=F64),
    )
    root = spread_matrix(*shape, metric_of([0.8, 1.2], 0.4))
    rows = torch.randn(n_parts, 40, space.size, generator=generator, dtype=F64)
    parts = Parts(rows @ root / math.sqrt(40 * n_parts))
    matrix = torch.einsum("sij,sik->jk", parts.jacobians, parts.jacobians)
    truth = expected_lengths(matrix, grids_of(space)["model"], window)
    first, told, hits = random_seed(generator), torch.zeros(2), torch.zeros(2)
    for run in range(RUNS):
        probes = random_probes(parts, model, space=space, seed=first + run)
        found = resolution_lengths(probes, window=window, confidence=CONFIDENCE)
        low, high = found.interval
        known = ~found.value.isnan()
        inside = known & (low <= truth) & (truth <= high)
        told += known.flatten(1).double().mean(1)
        hits += inside.flatten(1).double().mean(1)
    # mean over the cells where a length was told
    for axis in range(2):
        assert told[axis] > 0.3 * RUNS
        share = float(hits[axis] / told[axis])
        assert within_binomial_limits(share * RUNS)
        assert share < 0.985  # the margins are no wider than they need be


def test_lengths_along_one_and_three_axes(generator):
    for shape, length in (((60,), 2.0), ((8, 8, 9), 1.2)):
        at = torch.cartesian_prod(*[torch.arange(n, dtype=F64) for n in shape])
        at = at.reshape(len(at), -1)
        gaps = (at[:, None] - at[None]).norm(dim=-1)
        operator = MatrixOperator(torch.exp(-0.5 * (gaps / length) ** 2))
        space = ModelSpace(torch.zeros(shape, dtype=F64))
        probes = random_probes(
            operator, space=space, n_probes=100, seed=random_seed(generator)
        )
        found = resolution_lengths(probes, window=1.5)
        middle = (slice(None), *(n // 2 for n in shape))
        expected = torch.full((len(shape),), length, dtype=F64)
        torch.testing.assert_close(found.value[middle], expected, rtol=0.2, atol=0)


def test_an_axis_of_one_cell_has_no_length_and_says_so(generator):
    at = torch.arange(30, dtype=F64)
    operator = MatrixOperator(torch.exp(-0.5 * ((at[:, None] - at) / 2.0) ** 2))
    space = ModelSpace(torch.zeros(1, 30, dtype=F64))
    probes = random_probes(operator, space=space, seed=random_seed(generator))
    found = resolution_lengths(probes, window=3.0)
    assert bool(found.value[0].isnan().all())
    assert not bool(found.value[1].isnan().any())
    assert found.message.endswith("; no length along axis 0, which has one cell alone")


def test_one_probe_has_no_error_and_says_so():
    operator = MatrixOperator(spread_matrix(6, 7, metric_of([1.0, 1.0], 0.0)))
    space = ModelSpace(torch.zeros(6, 7, dtype=F64))
    found = resolution_lengths(random_probes(operator, space=space, n_probes=1))
    assert bool(found.standard_error.isnan().all())
    assert bool(torch.as_tensor(found.margin).isnan().all())


# -- cross-talk ---------------------------------------------------------------------


def coupled(generator, rank=40):
    model = {"a": torch.zeros(5, 6, dtype=F64), "b": torch.zeros(5, 6, dtype=F64)}
    jacobian = torch.randn(rank, 60, generator=generator, dtype=F64)
    jacobian[:, 30:] += 0.7 * jacobian[:, :30]
    return ModelSpace(model), jacobian


def dense_coupling(matrix):
    blocks = matrix.reshape(2, 30, 2, 30).permute(0, 2, 1, 3)
    norms = torch.linalg.matrix_norm(blocks)
    own = norms.diagonal()
    return norms / (own[:, None] * own[None, :]).sqrt()


def test_cross_talk_is_within_its_error_as_often_as_it_says(generator):
    space, jacobian = coupled(generator)
    matrix = jacobian.T @ jacobian
    truth = dense_coupling(matrix)
    operator, first, hits = MatrixOperator(matrix), random_seed(generator), 0
    for run in range(RUNS):
        probes = random_probes(operator, space=space, n_probes=6, seed=first + run)
        found = cross_talk(probes, confidence=CONFIDENCE)
        low, high = found.interval
        hits += int(low[0, 1] <= truth[0, 1] <= high[0, 1])
    assert within_binomial_limits(hits)
    assert found.n_products == 12
    torch.testing.assert_close(found.value, found.value.mT, rtol=ROUNDING, atol=0)
    assert found.value.diagonal().tolist() == [1.0, 1.0]
    assert set(found.answers) == {(i, j) for i in "ab" for j in "ab"}
    assert bool((found.answers["a", "a"] == 1.0).all())


def test_parameters_that_do_not_touch_have_no_cross_talk(generator):
    space, _ = coupled(generator)
    matrix = torch.block_diag(factored(30, 40, generator), factored(30, 40, generator))
    found = cross_talk(random_probes(MatrixOperator(matrix), space=space))
    assert torch.equal(found.value, torch.eye(2, dtype=F64))


def test_one_parameter_told_twice_is_coupled_wholly(generator):
    space, _ = coupled(generator)
    own = factored(30, 40, generator)
    matrix = torch.cat([torch.cat([own, own], 1), torch.cat([own, own], 1)])
    found = cross_talk(random_probes(MatrixOperator(matrix), space=space, n_probes=60))
    assert float(found.value[0, 1]) == pytest.approx(1.0, abs=0.1)


def test_squares_of_two_encodings_are_unbiased_where_those_of_one_are_not(generator):
    space, jacobian = coupled(generator, rank=48)
    parts = Parts(jacobian.reshape(8, 6, 60))
    matrix = jacobian.T @ jacobian
    norm = float(matrix.square().sum())
    model = {"a": torch.zeros(5, 6, dtype=F64), "b": torch.zeros(5, 6, dtype=F64)}
    probes = random_probes(
        parts,
        model,
        n_probes=400,
        n_samples=2,
        space=space,
        seed=random_seed(generator),
    )
    own = probes.responses
    assert own.shape == (2, 400, 2, 60)
    assert probes.n_products == parts.counts.products == 1600
    squares = mean_of_products(own.flatten(0, 1), own.flatten(0, 1)).sum(-1)
    error = 2 * float(squares.std()) / math.sqrt(400)
    found = 2 * float(squares.mean())
    assert abs(found - norm) < 5 * error
    # the check can fail: one encoding, squared, is off by far more than that
    biased = 2 * float(own.square().sum(-1).mean())
    assert abs(biased - norm) > 10 * error


def test_sampled_cross_talk_is_within_its_error_or_not_told(generator):
    space, jacobian = coupled(generator, rank=96)
    truth = float(dense_coupling(jacobian.T @ jacobian)[0, 1])
    parts, first = Parts(jacobian.reshape(8, 12, 60)), random_seed(generator)
    model = {"a": torch.zeros(5, 6, dtype=F64), "b": torch.zeros(5, 6, dtype=F64)}
    hits = told = 0
    for run in range(80):
        probes = random_probes(parts, model, n_samples=4, space=space, seed=first + run)
        found = cross_talk(probes, confidence=CONFIDENCE)
        low, high = found.interval
        told += int(not bool(found.value[0, 1].isnan()))
        hits += int(low[0, 1] <= truth <= high[0, 1])
    assert told > 40
    assert within_binomial_limits(hits, told)


def test_too_few_samples_tell_nothing_and_say_so(generator):
    space, jacobian = coupled(generator, rank=96)
    parts = Parts(jacobian.reshape(48, 2, 60))
    model = {"a": torch.zeros(5, 6, dtype=F64), "b": torch.zeros(5, 6, dtype=F64)}
    messages = [
        cross_talk(random_probes(parts, model, space=space, seed=seed)).message
        for seed in range(5)
    ]
    assert sum("do not suffice" in message for message in messages) >= 3


# -- point spreads ------------------------------------------------------------------


def test_lone_cell_has_its_column_exactly(generator):
    matrix = factored(30, 20, generator)
    space = ModelSpace(torch.zeros(5, 6, dtype=F64))
    operator = MatrixOperator(matrix)
    found = point_spread(operator, [(2, 3)], space=space)
    torch.testing.assert_close(found.value[0], matrix[15], rtol=PRODUCT, atol=0)
    assert found.n_products == operator.counts.products == 1
    assert float(found.leakage) == 0.0
    assert found.confidence == 1.0
    torch.testing.assert_close(
        found.picture(0), matrix[15].reshape(5, 6), rtol=PRODUCT, atol=0
    )


def test_as_many_combs_as_cells_leave_no_leakage(generator):
    matrix = factored(30, 20, generator)
    space = ModelSpace(torch.zeros(5, 6, dtype=F64))
    cells = [(0, 0), (2, 3), (4, 5)]
    operator = MatrixOperator(matrix)
    found = point_spread(operator, cells, space=space, n_combs=3)
    rows = matrix[[0, 15, 29]]
    torch.testing.assert_close(found.value, rows, rtol=PRODUCT, atol=PRODUCT)
    assert operator.counts.products == 3
    assert not bool(found.standard_error.any())


def test_leakage_is_within_its_error_as_often_as_it_says(generator):
    matrix = factored(48, 30, generator)
    space = ModelSpace(torch.zeros(6, 8, dtype=F64))
    operator, first = MatrixOperator(matrix), random_seed(generator)
    cells = [(y, x) for y in (0, 3, 5) for x in (0, 2, 5, 7)]
    entries, hits, squares = [3, 20, 41], torch.zeros(3), torch.zeros(2, 3, dtype=F64)
    place = torch.tensor([y * 8 + x for y, x in cells])
    for run in range(RUNS):
        found = point_spread(
            operator,
            cells,
            space=space,
            n_draws=8,
            seed=first + run,
            confidence=CONFIDENCE,
        )
        low, high = found.interval
        truth = matrix[place[4], entries]
        inside = (low[4, entries] <= truth) & (truth <= high[4, entries])
        hits += inside
        squares[0] += (found.value[4, entries] - truth) ** 2
        squares[1] += found.standard_error[4, entries] ** 2
    assert found.n_products == 8
    for count in hits.tolist():
        assert within_binomial_limits(count)
    # the variance of the leakage is estimated without bias; of 8 of 16 orthogonal rows
    others = torch.cat([place[:4], place[5:]])
    variance = matrix[others][:, entries].square().sum(0) / 8 * (8 / 15)
    torch.testing.assert_close(squares[0] / RUNS, variance, rtol=0.5, atol=0)
    torch.testing.assert_close(squares[1] / RUNS, variance, rtol=0.3, atol=0)


@pytest.mark.parametrize("n_cells", [2, 3, 4, 8])
def test_combs_of_few_cells_are_within_their_margin_as_often_as_they_say(
    n_cells, generator
):
    matrix = torch.eye(20, dtype=F64) + 0.5
    space, first = ModelSpace(torch.zeros(20, dtype=F64)), random_seed(generator)
    places = torch.randperm(20, generator=generator)[:n_cells]
    size = 1 << (n_cells - 1).bit_length()
    for n_draws in (2, 4, 8):
        hits = torch.zeros(n_cells)
        for run in range(RUNS):
            found = point_spread(
                MatrixOperator(matrix),
                [(int(place),) for place in places],
                space=space,
                n_draws=n_draws,
                seed=first + run,
                confidence=CONFIDENCE,
            )
            low, high = found.interval
            assert not bool(low.isinf().any() | high.isinf().any())
            inside = (low <= matrix[places]) & (matrix[places] <= high)
            # of the first cell, at all cells of the comb
            hits += inside[0, places]
            if n_draws >= size:
                assert bool(inside.all())
        assert found.n_products == min(n_draws, size)
        assert bool(found.near.all()) == (n_draws >= size)
        assert bool(found.standard_error.any()) == (n_draws < size)
        for count in hits.tolist():
            assert count >= scipy.stats.binom.ppf(1e-6, RUNS, CONFIDENCE), n_draws


def test_one_draw_of_several_cells_has_no_error(generator):
    operator = MatrixOperator(factored(12, 6, generator))
    space = ModelSpace(torch.zeros(12, dtype=F64))
    found = point_spread(operator, [(1,), (8,)], space=space, n_draws=1)
    assert bool(found.standard_error.isnan().all() and found.margin.isnan().all())


def test_whole_rounds_of_samples_leak_nothing(generator):
    jacobian = torch.randn(24, 12, generator=generator, dtype=F64)
    # a part of nothing: samples are drawn, and each is all of the matrix
    parts = Parts(torch.stack([jacobian, torch.zeros_like(jacobian)]))
    model = torch.zeros(12, dtype=F64)
    matrix = jacobian.T @ jacobian
    for n_draws in (4, 8):
        found = point_spread(parts, [(1,), (5,), (9,)], model, n_draws=n_draws)
        torch.testing.assert_close(found.value, matrix[[1, 5, 9]])
        assert found.n_products == n_draws


def test_far_cells_share_a_comb_and_leak_little():
    metric = metric_of([1.2, 1.2], 0.0)
    operator = MatrixOperator(spread_matrix(18, 22, metric))
    space = ModelSpace(torch.zeros(18, 22, dtype=F64))
    cells = [(3, 3), (3, 18), (14, 3), (14, 18), (4, 4), (4, 17), (13, 4), (13, 17)]
    one = point_spread(operator, cells, space=space, n_combs=1)
    two = point_spread(operator, cells, space=space, n_combs=2)
    assert two.n_products == 2 * one.n_products
    assert float(two.leakage.max()) < 0.1 * float(one.leakage.max())
    # near each cell the columns are its own
    for i, (_, (y, x)) in enumerate(two.cells):
        column = operator.matrix[y * 22 + x]
        gap = (two.value[i] - column)[two.near[i]].abs().max()
        assert float(gap) < 0.05


def test_sampled_columns_are_unbiased(generator):
    jacobian = torch.randn(48, 30, generator=generator, dtype=F64)
    parts, matrix = Parts(jacobian.reshape(8, 6, 30)), jacobian.T @ jacobian
    model = torch.zeros(5, 6, dtype=F64)
    found = point_spread(
        parts, [(1, 1), (3, 4)], model, n_draws=500, seed=random_seed(generator)
    )
    off = (found.value - matrix[[7, 22]]).abs() / found.standard_error
    assert float(off.max()) < 5.5
    assert found.n_products == parts.counts.products == 500


# -- the regularised solution -------------------------------------------------------


class DensePrior:
    """A prior with a dense square root, wider than it is high."""

    def __init__(self, root):
        self.root, self.size = root, len(root)
        self.standard_deviation = root.square().sum(1).sqrt()

    def factor(self, white):
        return self.root @ white

    def factor_transposed(self, vector):
        return self.root.T @ vector


@pytest.mark.parametrize("max_products", [2, 5, None])
def test_regularised_spread_is_bracketed_however_early_it_ends(max_products, generator):
    n = 30
    matrix, weight = factored(n, 12, generator), 3.0
    prior = DensePrior(torch.randn(n, n + 4, generator=generator, dtype=F64) / 5)
    precision = torch.linalg.inv(prior.root @ prior.root.T)
    truth = torch.linalg.solve(weight * matrix + precision, weight * matrix)
    space = ModelSpace(torch.zeros(5, 6, dtype=F64))
    operator = MatrixOperator(matrix)
    found = regularised_spread(
        operator,
        prior,
        [(1, 2), (3, 5)],
        weight=weight,
        tol=1e-10 if max_products is None else 0.02,
        max_products=max_products,
        space=space,
    )
    columns = truth[:, [8, 23]].T
    slack = SOLVE * float(columns.abs().max())
    assert bool((found.lower - slack <= columns).all())
    assert bool((columns <= found.upper + slack).all())
    assert found.n_products == operator.counts.products
    if max_products is None:
        torch.testing.assert_close(found.value, columns, rtol=0, atol=slack)
    else:
        assert found.n_products <= 2 * max_products
        assert "did not reach" in found.message


def test_regularised_spread_under_a_matern_prior(generator):
    mask = torch.ones(5, 6, dtype=torch.bool)
    mask[0, :2] = False
    space = ModelSpace(torch.zeros(5, 6, dtype=F64), mask=mask, scale=2.0)
    prior = MaternPrior(space, length=3.0, std=0.7)
    matrix = factored(28, 12, generator)
    precision = prior.precision(torch.eye(28, dtype=F64))
    found = regularised_spread(
        MatrixOperator(matrix), prior, [(2, 2)], weight=5.0, tol=1e-9, space=space
    )
    truth = torch.linalg.solve(5.0 * matrix + precision, 5.0 * matrix)
    index = found.grids["model"].index((2, 2))
    torch.testing.assert_close(found.value[0], truth[:, index], rtol=0, atol=SOLVE)
    assert bool((found.upper - found.lower < 1e-7).all())


def test_regularised_spread_of_an_indefinite_operator_is_refused():
    space = ModelSpace(torch.zeros(5, 6, dtype=F64))
    operator = MatrixOperator(-10.0 * torch.eye(30, dtype=F64))
    with pytest.raises(ValueError, match="not positive semidefinite"):
        regularised_spread(
            operator, DensePrior(torch.eye(30, dtype=F64)), [(0, 0)], space=space
        )


# -- waveforms ----------------------------------------------------------------------


@pytest.fixture
def small_misfit(generator):
    made = survey("scalar", n_shots=5)
    true = rand((12, 17), generator, 1600, 2200)
    misfit = WaveformMisfit(made, made.simulate(true))
    return misfit, rand((12, 17), generator, 1700, 2100)


def test_encoded_statistics_of_waves_agree_with_whole_products(small_misfit, generator):
    misfit, v = small_misfit
    mask = torch.zeros(12, 17, dtype=torch.bool)
    mask[6:10, 3:14] = True
    space = ModelSpace(v, scale=100.0, mask=mask)
    dense = misfit.hessian(v, "gauss-newton", space=space).to_dense()
    before = misfit.counts.snapshot()
    probes = random_probes(
        misfit, v, n_probes=100, space=space, seed=random_seed(generator)
    )
    spent = misfit.counts - before
    # one encoded shot for each product, four propagations
    assert probes.n_products == spent.products == 300
    assert probes.n_propagations == spent.propagations == 1200
    squares = mean_of_products(probes.responses[0], probes.responses[0]).sum(-1)
    # squares have long tails: of 12 probes 6 errors are passed by 2 seeds in 100
    error = float(squares.std()) / math.sqrt(100)
    assert abs(float(squares.mean()) - float(dense.square().sum())) < 6 * error
    spread = point_spread(misfit, [(8, 4), (9, 13)], v, space=space, n_draws=16)
    index = [spread.grids["model"].index(cell) for cell in ((8, 4), (9, 13))]
    off = (spread.value - dense[index]).norm() / spread.standard_error.norm()
    assert 0.3 < float(off) < 3.0
    assert spread.n_propagations == 64


# -- bad input ----------------------------------------------------------------------

SPACE = ModelSpace(torch.zeros(3, 4, dtype=F64), mask=torch.eye(3, 4) == 0)
OPERATOR = MatrixOperator(torch.eye(9, dtype=F64))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: point_spread(OPERATOR, [(0, 1)]), ValueError, "no ModelSpace"),
        (lambda: point_spread(OPERATOR, [], space=SPACE), ValueError, "no cell"),
        (lambda: point_spread(OPERATOR, [(0, 0)], space=SPACE), ValueError, "frozen"),
        (lambda: point_spread(OPERATOR, [(9, 0)], space=SPACE), ValueError, "no cell"),
        (
            lambda: point_spread(OPERATOR, [(0, 1), (0, 1)], space=SPACE),
            ValueError,
            "twice",
        ),
        (
            lambda: point_spread(OPERATOR, [("vp", (0, 1))], space=SPACE),
            ValueError,
            "none of the parameters",
        ),
        (
            lambda: point_spread(OPERATOR, [(0, 1)], torch.zeros(3, 4), space=SPACE),
            TypeError,
            "for objectives",
        ),
        (
            lambda: random_probes(Parts(torch.zeros(1, 2, 9, dtype=F64))),
            TypeError,
            "needs the model",
        ),
        (
            lambda: random_probes(MatrixOperator(torch.eye(5)), space=SPACE),
            ValueError,
            "9 cells",
        ),
        (
            lambda: random_probes(OPERATOR, n_probes=0, space=SPACE),
            ValueError,
            "n_probes",
        ),
        (lambda: resolution_lengths(OPERATOR), TypeError, "random_probes"),
        (
            lambda: resolution_lengths(random_probes(OPERATOR, space=SPACE), "vs"),
            ValueError,
            "must be one of",
        ),
        (
            lambda: resolution_lengths(
                random_probes(OPERATOR, space=SPACE), spacing=(1.0, 2.0, 3.0)
            ),
            ValueError,
            "2 axes",
        ),
        (lambda: cross_talk([OPERATOR]), TypeError, "random_probes"),
    ],
)
def test_bad_input_is_refused(call, error, match):
    with pytest.raises(error, match=match):
        call()
