"""Traces, diagonals, densities, log-determinants and eigenpairs against dense algebra."""

import dataclasses
import itertools
import math
import sys

import numpy as np
import pytest
import torch
from on_device import DEVICE
from scipy.stats import binom
from test_encoding import misfit_of
from test_lanczos import symmetric
from tolerances import BY_CHANCE, FLOAT32, PRODUCT, ROUNDING, SOLVE
from waves import D, models_of, one_thread

import hvpopt
from hvpopt import FunctionOperator, MatrixOperator, TorchObjective
from hvpopt.analysis import (
    Estimate,
    diagonal,
    eigenpairs,
    log_determinant,
    spectral_density,
    student_factor,
    trace,
)
from hvpopt.analysis.probes import independent_seeds, random_normals
from hvpopt.analysis.quadrature import radau_rule, rule_of
from hvpopt.krylov.diagonal import estimate_diagonal

__all__ = ["one_thread"]
SEEDS = 200


def decaying(n, power=1.5):
    return torch.arange(1, n + 1, dtype=D) ** -power


def enough(hits, confidence=0.95):
    """True unless so few hits of 200 have a probability below ``BY_CHANCE``."""
    return hits >= binom.ppf(BY_CHANCE, SEEDS, confidence)


def holds(estimate, exact, slack=0.0):
    low, high = estimate.interval
    return (low - slack <= exact) & (exact <= high + slack)


class Encoded(TorchObjective):
    """Half the squares of J_s m summed over s; a sketch is the square of a random sum."""

    def __init__(self, jacobians):
        super().__init__(lambda m: 0.5 * (jacobians @ m).square().sum())
        self.dense = torch.einsum("sij,sik->jk", jacobians, jacobians)
        self.operators = []
        for signs in itertools.product((-1.0, 1.0), repeat=len(jacobians)):
            total = torch.einsum("s,sij->ij", torch.tensor(signs, dtype=D), jacobians)
            self.operators.append(MatrixOperator(total.T @ total))
            self.operators[-1].counts = self.counts.child()

    def sketch(self, model, kind="gauss-newton", *, space=None, seed=0):
        generator = torch.Generator().manual_seed(seed)
        which = torch.randint(0, len(self.operators), (1,), generator=generator)
        return self.operators[int(which)]


def encoded(generator, n=12, n_parts=5):
    return Encoded(torch.randn(n_parts, 8, n, generator=generator, dtype=D))


# -- the estimate itself ------------------------------------------------------------


def test_interval_keeps_to_what_was_sampled_and_what_was_bounded():
    assert Estimate(value=1.0, margin=0.5).interval == (0.5, 1.5)
    assert Estimate(value=1.0, lower=0.0, upper=3.0).interval == (0.0, 3.0)
    both = Estimate(value=1.0, margin=0.5, lower=0.0, upper=3.0)
    assert both.interval == (-0.5, 3.5)
    assert Estimate(value=1.0, margin=0.5, upper=3.0).interval == (-math.inf, 3.5)
    assert Estimate(value=1.0).interval == (-math.inf, math.inf)
    value = torch.tensor([1.0, 2.0], dtype=torch.float32)
    low, high = Estimate(value=value, margin=torch.tensor([0.5, 1.0])).interval
    assert low.tolist() == [0.5, 1.0]
    assert high.tolist() == [1.5, 3.0]


def test_student_factor_is_that_of_tables():
    assert student_factor(0.95, 11) == pytest.approx(2.228, abs=1e-3)
    assert student_factor(0.95, 10**6) == pytest.approx(1.960, abs=1e-3)
    assert math.isnan(student_factor(0.95, 1))


def test_neighbouring_seeds_have_no_probe_in_common():
    drawn = [set(independent_seeds(seed, 50)) for seed in range(20)]
    assert len(set.union(*drawn)) == 20 * 50


# -- trace --------------------------------------------------------------------------

SPECTRA = {
    "decaying": lambda n, _: decaying(n),
    "exponential": lambda n, _: 0.8 ** torch.arange(n, dtype=D),
    "step": lambda n, _: torch.where(torch.arange(n) < n // 5, 1.0, 1e-3).to(D),
    "flat": lambda n, g: 1 + 0.1 * torch.rand(n, generator=g, dtype=D),
    "indefinite": lambda n, g: torch.randn(n, generator=g, dtype=D),
}


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("spectrum", ["decaying", "step", "indefinite", "exponential"])
def test_trace_lies_in_its_interval_as_often_as_stated(spectrum, positive, generator):
    if positive and spectrum == "indefinite":
        spectrum = "flat"
    n = 60
    matrix = symmetric(n, generator, SPECTRA[spectrum](n, generator))
    operator, exact = MatrixOperator(matrix), float(matrix.trace())
    found = [
        trace(operator, n_products=12, seed=s, positive=positive) for s in range(SEEDS)
    ]
    assert enough(sum(holds(f, exact) for f in found))
    # and the error is not made safe by being useless
    rms = math.sqrt(np.mean([(f.value - exact) ** 2 for f in found]))
    stated = math.sqrt(np.mean([f.standard_error**2 for f in found]))
    assert 0.9 * rms < stated < 4 * rms


@pytest.mark.parametrize("positive", [False, True])
def test_exchangeable_trace_is_unbiased(positive, generator):
    matrix = symmetric(30, generator, decaying(30, 1.0))
    operator = MatrixOperator(matrix)
    values = [
        trace(operator, n_products=8, seed=s, positive=positive).value
        for s in range(SEEDS)
    ]
    errors = torch.tensor(values, dtype=D) - float(matrix.trace())
    assert abs(float(errors.mean())) < 6 * float(errors.std()) / math.sqrt(SEEDS)


def test_trace_beats_plain_probes_where_eigenvalues_decay(generator):
    matrix = symmetric(100, generator, 0.7 ** torch.arange(100, dtype=D))
    exact, plain = float(matrix.trace()), []
    for _ in range(20):
        z = torch.randn(100, 24, generator=generator, dtype=D).sign()
        plain.append(float((z * (matrix @ z)).sum()) / 24 - exact)
    ours = [
        trace(MatrixOperator(matrix), n_products=24, seed=s).value - exact
        for s in range(20)
    ]
    # about a hundredth; twenty seeds tell it within a factor of five
    assert np.square(ours).mean() < 5e-2 * np.square(plain).mean()


def nystrom_by_hand(matrix, probes, i, without=()):
    """The estimate of probe i from all others but ``without``, by dense algebra."""
    n = len(matrix)
    others = [k for k in range(probes.shape[1]) if k != i and k not in without]
    omega = probes[:, others]
    images = matrix @ omega
    low_rank = images @ torch.linalg.solve(omega.mT @ images, images.mT)
    basis = torch.linalg.qr(omega)[0]
    rest = probes[:, i] - basis @ (basis.mT @ probes[:, i])
    form = rest @ (matrix - low_rank) @ rest / (rest @ rest)
    return float(low_rank.trace() + (n - len(others)) * form)


def test_exchangeable_nystrom_is_that_of_its_definition(generator, seed):
    m, n = 7, 30
    matrix = symmetric(n, generator, decaying(n))
    operator = MatrixOperator(matrix)
    found = trace(operator, n_products=m, seed=seed, positive=True)
    assert found.n_products == operator.counts.products == m
    probes = random_normals(operator, m, seed)
    each = [nystrom_by_hand(matrix, probes, i) for i in range(m)]
    assert found.value == pytest.approx(np.mean(each), rel=1e-7)
    left = [
        np.mean([nystrom_by_hand(matrix, probes, i, (j,)) for i in range(m) if i != j])
        for j in range(m)
    ]
    error = math.sqrt(np.square(left - np.mean(left)).sum())
    assert found.standard_error == pytest.approx(error, rel=1e-6)


def test_negative_curvature_is_noticed(generator):
    matrix = symmetric(30, generator, SPECTRA["indefinite"](30, generator))
    with pytest.raises(ValueError, match="leave positive=True out"):
        trace(MatrixOperator(matrix), n_products=12, positive=True)


@pytest.mark.parametrize("positive", [False, True])
def test_float32_trace_holds_the_exact_one(positive, generator):
    n, missed = 60, 0
    matrix = symmetric(n, generator, 0.4 ** torch.arange(n, dtype=D))
    exact = float(matrix.float().double().trace())
    for s in range(40):
        found = trace(
            MatrixOperator(matrix.float()), n_products=30, seed=s, positive=positive
        )
        missed += not holds(found, exact)
    assert missed <= binom.ppf(1 - BY_CHANCE, 40, 0.05)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_trace_of_low_rank_is_exact_to_rounding(rank, positive, generator):
    half = torch.randn(50, rank, generator=generator, dtype=D)
    found = trace(MatrixOperator(half @ half.T), n_products=12, positive=positive)
    exact = float((half * half).sum())
    assert found.value == pytest.approx(exact, rel=SOLVE)
    assert holds(found, exact, slack=PRODUCT * exact)
    assert found.standard_error <= SOLVE * exact


@pytest.mark.parametrize("function", [trace, diagonal])
def test_as_many_products_as_rows_are_exact(function, generator):
    matrix = symmetric(9, generator)
    operator = MatrixOperator(matrix)
    found = function(operator, n_products=20)
    exact = matrix.diagonal() if function is diagonal else matrix.trace()
    torch.testing.assert_close(
        torch.as_tensor(found.value, dtype=D), exact, rtol=PRODUCT, atol=PRODUCT
    )
    assert found.n_products == operator.counts.products == 9


@pytest.mark.parametrize("function", [trace, diagonal])
def test_products_are_counted_where_they_happen(function, generator):
    operator = MatrixOperator(symmetric(40, generator))
    found = function(operator, n_products=13)
    assert found.n_products == operator.counts.products == 12
    assert found.n_propagations == 0


@pytest.mark.parametrize("size", [1e-160, 1e150])
@pytest.mark.parametrize("function", [trace, diagonal])
def test_units_of_any_size(function, size, generator):
    matrix = symmetric(30, generator, decaying(30))
    plain = function(MatrixOperator(matrix), n_products=10)
    scaled = function(
        FunctionOperator(lambda v: (matrix @ v) * size, 30, device=DEVICE), n_products=10
    )
    for name in ("value", "standard_error"):
        a, b = (torch.as_tensor(getattr(f, name), dtype=D) for f in (scaled, plain))
        torch.testing.assert_close(a / size, b, rtol=SOLVE, atol=SOLVE)


def test_rounding_of_float32_products_is_part_of_the_error(generator):
    half = torch.randn(50, 2, generator=generator)
    operator = MatrixOperator(half @ half.T)
    found = trace(operator, n_products=12)
    exact = float((half.double() ** 2).sum())
    assert abs(found.value - exact) <= FLOAT32 * exact
    assert holds(found, exact)
    assert "rounding" in found.message


# -- trace and diagonal by samples --------------------------------------------------


def test_sampled_trace_and_diagonal_cover(generator):
    objective = encoded(generator)
    model = torch.zeros(12, dtype=D)
    exact = objective.dense.diagonal()
    hits, entries = 0, torch.zeros(12)
    for s in range(SEEDS):
        hits += holds(trace(objective, model, n_products=16, seed=s), float(exact.sum()))
        entries += holds(diagonal(objective, model, n_products=8, seed=s), exact)
    # squares of normal sums are skewed: Student's interval holds 0.93 to 0.94 of them
    assert enough(hits, 0.93)
    assert enough(float(entries.mean()), 0.94)


def test_sampled_trace_of_few_large_eigenvalues_covers(generator):
    row = torch.randn(12, generator=generator, dtype=D)
    weights = torch.tensor([1.0, 0.3, 0.1, 0.1, 0.1], dtype=D)
    objective = Encoded(weights[:, None, None] * row)
    exact, hits = float(objective.dense.trace()), 0
    for s in range(SEEDS):
        found = trace(
            objective,
            torch.zeros(12, dtype=D),
            hessian="gauss-newton",
            n_products=10,
            seed=s,
        )
        hits += holds(found, exact)
    assert enough(hits)


@pytest.mark.parametrize("function", [trace, diagonal])
def test_samples_of_waves_cost_what_they_say(function, generator):
    misfit = misfit_of("scalar", generator)
    (model,) = models_of("scalar", generator)
    mask = torch.zeros_like(model, dtype=torch.bool)
    mask[4:6, 5:9] = True
    space = hvpopt.ModelSpace(model, mask=mask)
    dense = misfit.hessian(model, "gauss-newton", space=space).to_dense()
    before = misfit.counts.snapshot()
    found = function(misfit, model, n_products=8, space=space)
    spent = misfit.counts - before
    assert found.n_products == spent.products == 8
    # four propagations a product, of one encoded shot each
    assert found.n_propagations == spent.propagations == 8 * 4
    exact = dense.diagonal() if function is diagonal else dense.trace()
    error = (torch.as_tensor(found.value) - exact).abs()
    if function is trace:
        assert error < 12 * found.standard_error
    else:
        assert float((error.square() / found.standard_error**2).mean()) < 40


# -- diagonal -----------------------------------------------------------------------


@pytest.mark.parametrize("spectrum", ["decaying", "flat", "indefinite"])
def test_every_entry_lies_in_its_interval_as_often_as_stated(spectrum, generator):
    n = 24
    matrix = symmetric(n, generator, SPECTRA[spectrum](n, generator))
    operator, hits = MatrixOperator(matrix), torch.zeros(n)
    for s in range(SEEDS):
        hits += holds(diagonal(operator, n_products=12, seed=s), matrix.diagonal())
    # some entries fall short of what they are stated; on the whole they must not
    assert enough(float(hits.mean()), 0.95)


def test_diagonal_beats_plain_probes_where_eigenvalues_decay(generator):
    matrix = symmetric(80, generator, 0.7 ** torch.arange(80, dtype=D))
    operator, exact = MatrixOperator(matrix), matrix.diagonal()
    ours = diagonal(operator, n_products=24).value
    plain = estimate_diagonal(operator, n_probes=24)
    assert float((ours - exact).norm()) < 0.2 * float((plain - exact).norm())


# -- density ------------------------------------------------------------------------


def measures(matrix, rules_seed, n_probes, at):
    """Return the exact cumulative measure of each random vector, and their weights."""
    values, vectors = torch.linalg.eigh(matrix)
    curves = []
    for own in independent_seeds(rules_seed, n_probes):
        basis = hvpopt.LanczosBasis(MatrixOperator(matrix), seed=own)
        basis.extend(1)
        weights = (vectors.mT @ basis.vectors[0]) ** 2
        curves.append((weights * (values <= at[:, None])).sum(1))
    return torch.stack(curves)


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_quadrature_bounds_are_never_violated(spectrum, generator, seed):
    n = 50
    matrix = symmetric(n, generator, SPECTRA[spectrum](n, generator))
    low, high = torch.linalg.eigvalsh(matrix)[[0, -1]]
    at = torch.linspace(float(low) - 0.1, float(high) + 0.1, 57, dtype=D)
    for n_steps in (1, 3, 10, 25):
        found = spectral_density(
            MatrixOperator(matrix), n_probes=4, n_steps=n_steps, points=at, seed=seed
        )
        exact = measures(matrix, seed, 4, at).mean(0)
        assert bool((found.lower <= exact + SOLVE).all())
        assert bool((exact <= found.upper + SOLVE).all())
        assert bool((found.lower <= found.value).all())
        assert bool((found.value <= found.upper).all())


def test_density_covers_and_tightens(generator):
    n = 40
    matrix = symmetric(n, generator, torch.rand(n, generator=generator, dtype=D))
    at = torch.linspace(0.1, 0.9, 5, dtype=D)
    exact = (torch.linalg.eigvalsh(matrix) <= at[:, None]).double().mean(1)
    hits = torch.zeros(5)
    for s in range(SEEDS):
        found = spectral_density(
            MatrixOperator(matrix), n_probes=3, n_steps=4, points=at, seed=s
        )
        hits += holds(found, exact)
    assert enough(float(hits.min()))
    gaps = [
        float((f.upper - f.lower).max())
        for f in (
            spectral_density(MatrixOperator(matrix), n_steps=k, points=at)
            for k in (5, 15, 40)
        )
    ]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] <= SOLVE  # the whole space: no error of the quadrature is left


@pytest.mark.parametrize("n_probes", [3, 8])
def test_density_of_few_large_eigenvalues_covers(n_probes, generator):
    spectrum = torch.full((40,), 0.01, dtype=D)
    spectrum[0] = 10.0
    at, hits = torch.tensor([0.05, 5.0], dtype=D), torch.zeros(2)
    for turned, exact in ((1.0, 39 / 40), (-1.0, 1 / 40)):
        matrix = turned * symmetric(40, generator, spectrum)
        for s in range(SEEDS // 2):
            found = spectral_density(
                MatrixOperator(matrix),
                n_probes=n_probes,
                n_steps=10,
                points=(turned * at).sort().values,
                seed=s,
            )
            hits += holds(found, torch.full((2,), exact, dtype=D), slack=ROUNDING)
    assert enough(float(hits.min()))


def test_density_at_an_eigenvalue_has_it_within_its_bounds(generator):
    spectrum = torch.where(torch.arange(50) < 10, 1.0, 0.0).to(D)
    matrix = symmetric(50, generator, spectrum)
    at, exact = torch.tensor([0.0, 1.0], dtype=D), torch.tensor([0.8, 1.0], dtype=D)
    hits = torch.zeros(2)
    for s in range(SEEDS):
        found = spectral_density(MatrixOperator(matrix), points=at, seed=s)
        # the eigenvalue is on either side of the point, to rounding
        assert float(found.lower[0]) == 0.0
        assert bool(((found.value - exact).abs() <= 0.2).all())
        hits += holds(found, exact, slack=ROUNDING)
    assert enough(float(hits.min()))
    found = spectral_density(MatrixOperator(torch.eye(9, dtype=D)), points=at)
    assert found.value.tolist() == found.upper.tolist() == [0.0, 1.0]


def test_density_counts_its_products_and_rises(generator):
    operator = MatrixOperator(symmetric(40, generator))
    found = spectral_density(operator, n_probes=3, n_steps=7)
    assert found.n_products == operator.counts.products == 21
    assert bool((found.value.diff() >= 0).all())
    assert float(found.value[0]) < float(found.value[-1])


def test_radau_has_its_node_and_integrates_one_degree_more(generator):
    matrix = symmetric(30, generator, decaying(30))
    basis = hvpopt.LanczosBasis(MatrixOperator(matrix), seed=1)
    basis.extend(4)
    gauss = rule_of(basis)
    radau = radau_rule(gauss, -0.2)
    assert radau.nodes[0] == pytest.approx(-0.2, abs=SOLVE)
    u = basis.vectors[0]
    for rule, degree in ((gauss, 7), (radau, 8)):
        for power in range(degree + 1):
            exact = float(u @ torch.linalg.matrix_power(matrix, power) @ u)
            assert rule.weights @ rule.nodes**power == pytest.approx(exact, rel=SOLVE)
    with pytest.raises(ValueError, match="lies among Ritz values"):
        radau_rule(gauss, float(gauss.nodes.mean()))


# -- log-determinant ----------------------------------------------------------------


@pytest.mark.parametrize("n_deflated", [0, 12])
@pytest.mark.parametrize("base", [0.9, 0.6])
def test_log_determinant_covers(base, n_deflated, generator):
    # with 0.6 a few eigenvalues of the rest make all of its scatter, which is skewed
    n, shift = 40, 0.01
    values = base ** torch.arange(n, dtype=D)
    operator = MatrixOperator(symmetric(n, generator, values))
    exact = float((values + shift).log().sum())
    found = [
        log_determinant(
            operator, shift=shift, n_probes=3, n_steps=4, n_deflated=n_deflated, seed=s
        )
        for s in range(SEEDS)
    ]
    assert enough(sum(holds(f, exact) for f in found))
    rms = math.sqrt(np.mean([(f.value - exact) ** 2 for f in found]))
    stated = math.sqrt(np.mean([f.standard_error**2 for f in found]))
    # what the bounds leave open is no part of the standard error
    apart = max(f.upper - f.lower for f in found)
    assert 0.7 * rms - apart < stated < 1.4 * rms + apart


def known_part(matrix, shift, start, k):
    """Return a Krylov basis ``[n, k]`` and the rest's matrix, by dense algebra."""
    n = len(matrix)
    basis = hvpopt.LanczosBasis(MatrixOperator(matrix), seed=start)
    basis.extend(k)
    q = basis.vectors.mT
    shifted = matrix + shift * torch.eye(n, dtype=D)
    image = shifted @ q
    rest = shifted - image @ torch.linalg.solve(q.mT @ image, image.mT)
    return q, shifted, rest


@pytest.mark.parametrize("n_deflated", [0, 6])
@pytest.mark.parametrize("spectrum", ["decaying", "step", "flat"])
def test_log_determinant_of_the_same_vectors_is_always_bracketed(
    spectrum, n_deflated, generator, seed
):
    n, shift, m = 40, 0.01, 4
    matrix = symmetric(n, generator, SPECTRA[spectrum](n, generator))
    operator = MatrixOperator(matrix)
    *probes, start = independent_seeds(seed, m + 1)
    mean, outside = 0.0, torch.eye(n, dtype=D)
    rest = matrix + shift * outside
    if n_deflated:
        q, shifted, rest = known_part(matrix, shift, start, n_deflated)
        mean = float(torch.logdet(q.mT @ shifted @ q))
        outside = outside - q @ q.mT
    left = int(outside.trace().round())
    values, vectors = torch.linalg.eigh(rest)
    values, vectors = values[n - left :], vectors[:, n - left :]
    for own in probes:
        u = outside @ random_normals(operator, 1, own)[:, 0]
        weights = (vectors.mT @ (u / u.norm())) ** 2
        mean += left / m * float(weights @ values.log())
    gaps = []
    for n_steps in (1, 2, 4, 8):
        found = log_determinant(
            operator,
            shift=shift,
            n_probes=m,
            n_steps=n_steps,
            n_deflated=n_deflated,
            seed=seed,
        )
        # spaces of a matrix of two eigenvalues close early
        each = min(n_steps, 2) if spectrum == "step" else n_steps
        assert found.n_products == n - left + m * each
        assert found.lower - SOLVE <= mean <= found.upper + SOLVE
        assert found.lower <= found.value <= found.upper
        gaps.append(found.upper - found.lower)
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > gaps[3]


def test_deflation_leaves_less_to_sample_where_eigenvalues_decay(generator):
    n, shift = 100, 1e-3
    values = 0.8 ** torch.arange(n, dtype=D)
    operator = MatrixOperator(symmetric(n, generator, values))
    exact = float((values + shift).log().sum())
    errors = {}
    for options in ((8, 10, 0), (8, 5, 40)):
        n_probes, n_steps, n_deflated = options
        found = [
            log_determinant(
                operator,
                shift=shift,
                n_probes=n_probes,
                n_steps=n_steps,
                n_deflated=n_deflated,
                seed=s,
            )
            for s in range(20)
        ]
        assert {f.n_products for f in found} == {80}
        errors[n_deflated] = math.sqrt(np.mean([(f.value - exact) ** 2 for f in found]))
    assert errors[40] < 0.2 * errors[0]


def test_log_determinant_of_a_whole_or_closed_space_is_exact(generator):
    values = decaying(30)
    operator = MatrixOperator(symmetric(30, generator, values))
    whole = log_determinant(operator, shift=0.1, n_deflated=50)
    assert whole.value == pytest.approx(float((values + 0.1).log().sum()), rel=SOLVE)
    assert whole.n_products == 30
    assert whole.standard_error == 0.0
    assert whole.lower == whole.upper == whole.value
    half = torch.randn(30, 3, generator=generator, dtype=D)
    low = log_determinant(MatrixOperator(half @ half.T), shift=0.1, n_deflated=9)
    exact = torch.logdet(half @ half.T + 0.1 * torch.eye(30, dtype=D))
    assert low.value == pytest.approx(float(exact), rel=SOLVE)
    assert low.n_products < 9 + 8 * 15
    assert holds(low, float(exact), slack=SOLVE)


@pytest.mark.parametrize("n_deflated", [None, 0])
def test_log_determinant_without_a_shift_of_a_whole_space(n_deflated, generator):
    matrices = [
        torch.eye(8, dtype=D),
        torch.diag(torch.arange(1.0, 9.0, dtype=D)),
        torch.tensor([[2.0]], dtype=D),
        torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=D),
        symmetric(30, generator, 1 + torch.rand(30, generator=generator, dtype=D)),
    ]
    for matrix in matrices:
        found = log_determinant(
            MatrixOperator(matrix), n_deflated=n_deflated, n_steps=30, n_probes=16
        )
        exact = float(torch.logdet(matrix))
        if n_deflated is None:
            assert found.value == pytest.approx(exact, abs=1e-10)
        # exact rules leave the scatter alone
        assert found.lower == found.upper == found.value
        assert abs(found.value - exact) <= 3 * found.margin + PRODUCT


def test_log_determinant_of_float32_products_does_not_fail(generator):
    # far below the rounding of the products most eigenvalues of the rest are noise
    values = torch.cat([torch.logspace(0, -4, 12, dtype=D), torch.zeros(28, dtype=D)])
    matrix = symmetric(40, generator, values)
    for shift in (1e-2, 1e-4, 1e-9):
        found = log_determinant(
            MatrixOperator(matrix.float()), shift=shift, n_deflated=15
        )
        exact = float((values + shift).log().sum())
        if shift == 1e-9:
            assert "rounding" in found.message
        else:
            low, high = found.interval
            slack = 40 * 4e-6 / shift  # of 40 eigenvalues, each off by its rounding
            assert low - slack <= exact <= high + slack


@pytest.mark.parametrize("n_deflated", [0, 5])
def test_log_determinant_without_a_bound_below_says_so(n_deflated, generator):
    matrix = symmetric(20, generator, 1 + decaying(20))
    found = log_determinant(MatrixOperator(matrix), n_steps=4, n_deflated=n_deflated)
    assert found.lower == -math.inf
    assert "no lower bound" in found.message
    bounded = log_determinant(
        MatrixOperator(matrix), lowest=1.0, n_steps=4, n_deflated=n_deflated
    )
    assert math.isfinite(bounded.lower)
    assert bounded.upper == pytest.approx(found.upper, rel=SOLVE)


def test_wrong_lowest_eigenvalue_is_noticed(generator):
    matrix = symmetric(20, generator, torch.linspace(-1, 1, 20, dtype=D))
    for n_deflated in (0, 5):
        with pytest.raises(ValueError, match="below lowest=0"):
            log_determinant(MatrixOperator(matrix), shift=0.1, n_deflated=n_deflated)


# -- eigenpairs ---------------------------------------------------------------------


def hard_spectra(generator, n):
    u = torch.rand(n, generator=generator, dtype=D)
    first = torch.arange(n)
    yield "decaying", decaying(n)
    yield "indefinite", 2 * u - 1
    yield "four times the largest", torch.where(first < 4, 2.0, u)
    yield "all but the same", torch.where(first < 4, 2.0 + 1e-9 * first, u)
    yield "four times zero", torch.where(first < 4, 0.0, 1 + u)
    yield "identity", torch.ones(n, dtype=D)
    yield "nothing", torch.zeros(n, dtype=D)


@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_eigenpairs_are_those_of_dense_algebra(which, generator):
    k, n = 5, 60
    for name, spectrum in hard_spectra(generator, n):
        matrix = symmetric(n, generator, spectrum)
        operator = MatrixOperator(matrix)
        values = torch.linalg.eigvalsh(matrix)
        exact = values.flip(0)[:k] if which == "largest" else values[:k]
        found = eigenpairs(operator, k, which=which)
        assert found.converged, (name, found.message)
        torch.testing.assert_close(found.value, exact, rtol=0, atol=1e-6, msg=name)
        assert bool((found.lower <= exact + PRODUCT).all()), name
        assert bool((exact <= found.upper + PRODUCT).all()), name
        gram = found.vectors.mT @ found.vectors
        torch.testing.assert_close(gram, torch.eye(k, dtype=D), rtol=0, atol=PRODUCT)
        residual = matrix @ found.vectors - found.vectors * found.value
        assert bool((residual.norm(dim=0) <= found.residuals + PRODUCT).all()), name
        assert found.n_products == operator.counts.products


def test_one_krylov_space_alone_would_miss_a_multiple_eigenvalue(generator):
    spectrum = torch.where(torch.arange(50) < 3, 2.0, decaying(50))
    matrix = symmetric(50, generator, spectrum)
    basis = hvpopt.LanczosBasis(MatrixOperator(matrix))
    basis.extend(10)  # later rounding brings copies in
    assert int((basis.ritz_values > 1.99).sum()) == 1
    found = eigenpairs(MatrixOperator(matrix), 3)
    torch.testing.assert_close(found.value, torch.full((3,), 2.0, dtype=D))


def test_all_eigenpairs_of_a_small_operator(generator):
    matrix = symmetric(7, generator)
    found = eigenpairs(MatrixOperator(matrix), 7, which="smallest")
    torch.testing.assert_close(found.value, torch.linalg.eigvalsh(matrix))
    assert found.converged


def assert_eigenpairs(matrix, found, k, which):
    """Orthonormal vectors with true residuals and bounds; the k wanted if converged."""
    values = torch.linalg.eigvalsh(matrix)
    exact = values.flip(0)[:k] if which == "largest" else values[:k]
    there, size = ~found.value.isnan(), float(values.abs().max()) or 1.0
    vectors, slack = found.vectors[:, there], PRODUCT * size
    gram = vectors.mT @ vectors
    torch.testing.assert_close(gram, torch.eye(len(gram), dtype=D), rtol=0, atol=PRODUCT)
    residual = matrix @ vectors - vectors * found.value[there]
    assert bool((residual.norm(dim=0) <= found.residuals[there] + slack).all())
    assert not bool((found.lower > exact + slack).any())
    assert not bool((exact > found.upper + slack).any())
    if found.converged:
        torch.testing.assert_close(found.value, exact, rtol=0, atol=1e-6 * size)


@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_most_of_a_spectrum_with_repeated_eigenvalues(which, generator):
    three = torch.rand(20, generator=generator, dtype=D) + 0.5
    three[3:] = 0.0
    asked = [
        (torch.eye(6, dtype=D), (3, 5, 6)),
        (torch.eye(20, dtype=D), (15, 18)),
        (symmetric(20, generator, three), (15, 17, 18, 20)),
        (symmetric(20, generator, 0.3 ** torch.arange(20, dtype=D)), (19, 20)),
        (torch.zeros(5, 5, dtype=D), (4, 5)),
    ]
    for (matrix, sizes), seed in itertools.product(asked, range(3)):
        for k in sizes:
            found = eigenpairs(MatrixOperator(matrix), k, which=which, seed=seed)
            assert found.converged, (k, found.message)
            assert_eigenpairs(matrix, found, k, which)


@pytest.mark.parametrize("tol", [1e-6, 0.05, 0.5])
def test_vectors_of_few_products_are_eigenpairs_with_what_residual_they_say(
    tol, generator
):
    for _, spectrum in hard_spectra(generator, 24):
        matrix = symmetric(24, generator, spectrum)
        for k, most in itertools.product((2, 12, 24), (24, 40)):
            found = eigenpairs(MatrixOperator(matrix), k, tol=tol, max_products=most)
            # a rough tolerance lets values be as far off as it says
            found = dataclasses.replace(found, converged=found.converged and tol < 1e-3)
            assert_eigenpairs(matrix, found, k, "largest")


def test_wanted_where_locked_vectors_lie_is_missing_and_not_wrong(generator, monkeypatch):
    spectrum = torch.arange(12, dtype=D).div(4, rounding_mode="floor")
    matrix = symmetric(12, generator, spectrum)
    for end in (-0.5, 0.0, 0.1, 2.0):

        def note_range(search, _, end=end):
            # as if the first space had missed what is near to ``end`` and beyond
            search.norm, search.other_end = 2.0, end

        search = sys.modules[eigenpairs.__module__]._Search
        monkeypatch.setattr(search, "_note_range", note_range)
        for k in (3, 6, 12):
            found = eigenpairs(MatrixOperator(matrix), k, max_products=300)
            assert_eigenpairs(matrix, found, k, "largest")


def test_few_products_are_never_called_converged(generator):
    matrix = symmetric(80, generator, torch.rand(80, generator=generator, dtype=D))
    exact = torch.linalg.eigvalsh(matrix).flip(0)[:4]
    for limit in (4, 8, 16, 30):
        operator = MatrixOperator(matrix)
        found = eigenpairs(operator, 4, max_products=limit)
        assert operator.counts.products <= limit
        right = float((found.value - exact).abs().max()) <= 1e-5
        assert right or not found.converged
        assert bool((exact <= found.upper + PRODUCT).all())
    few = eigenpairs(MatrixOperator(matrix), 4, max_products=8)
    assert not few.converged
    assert float(few.upper.max()) == math.inf
    assert "not converged" in few.message


def test_memory_limit_restarts_and_finds_the_same(generator):
    matrix = symmetric(120, generator, torch.randn(120, generator=generator, dtype=D))
    room = 24 * 120 * 8
    whole = eigenpairs(MatrixOperator(matrix), 4)
    within = eigenpairs(MatrixOperator(matrix), 4, memory_limit=room)
    assert "restarted" in within.message
    assert "restarted" not in whole.message
    torch.testing.assert_close(within.value, whole.value, rtol=0, atol=1e-5)
    residual = matrix @ within.vectors - within.vectors * within.value
    assert bool((residual.norm(dim=0) <= within.residuals + PRODUCT).all())
    with pytest.raises(ValueError, match="has room for 9 vectors"):
        eigenpairs(MatrixOperator(matrix), 4, memory_limit=9 * 120 * 8)


def test_float32_eigenpairs_stop_at_their_rounding(generator):
    matrix = symmetric(60, generator, decaying(60))
    operator = MatrixOperator(matrix.float())
    found = eigenpairs(operator, 3, tol=1e-12)
    assert found.converged, found.message
    assert "rounding" in found.message
    exact = torch.linalg.eigvalsh(matrix).flip(0)[:3]
    torch.testing.assert_close(found.value, exact, rtol=0, atol=FLOAT32)
    assert bool((found.lower <= exact).all())


# -- bad input ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda h: trace(h, n_products=5), ValueError, "n_products is 5"),
        (lambda h: trace(h, positive="yes"), TypeError, "positive"),
        (lambda h: trace(h, confidence=1.0), ValueError, "confidence is 1"),
        (lambda h: trace(h, torch.ones(3)), TypeError, "leave model out"),
        (lambda h: diagonal(h, hessian="exact"), TypeError, "leave hessian out"),
        (lambda _: trace(TorchObjective(torch.sum)), TypeError, "pass the model"),
        (lambda _: trace(torch.eye(3)), TypeError, "MatrixOperator"),
        (lambda h: eigenpairs(h, 9), ValueError, "k is 9"),
        (lambda h: eigenpairs(h, 2, which="SA"), ValueError, "which is 'SA'"),
        (lambda h: spectral_density(h, n_probes=1), ValueError, "n_probes is 1"),
        (
            lambda h: spectral_density(h, points=torch.ones(2)),
            ValueError,
            "ascending order",
        ),
        (lambda h: log_determinant(h, shift=-1.0), ValueError, "shift is -1"),
        (lambda h: log_determinant(h, n_deflated=-1), ValueError, "n_deflated is -1"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(MatrixOperator(torch.eye(8, dtype=D)))


# -- what a result looks like -------------------------------------------------------


def test_results_fit_a_screen(generator):
    operator = MatrixOperator(symmetric(40, generator, decaying(40)))
    for found in (
        trace(operator),
        eigenpairs(operator, 3),
        spectral_density(operator),
        log_determinant(operator, shift=1.0, lowest=0.0),
    ):
        lines = repr(found).splitlines()
        assert len(lines) < 30
        assert max(map(len, lines)) <= 100
        assert lines[0].startswith(f"{type(found).__name__}: ")
    assert "vectors: float64 [40, 3]" in repr(eigenpairs(operator, 3))
    assert "inf" not in repr(trace(operator))
