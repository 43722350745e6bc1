"""Posterior variances against dense algebra: brackets, low rank, samples, calibration."""

import itertools
import math

import pytest
import scipy.stats
import torch
import waves
from on_device import DEVICE
from tolerances import SOLVE

from hvpopt import MatrixOperator, ModelSpace, minimize
from hvpopt.analysis import (
    MaternPrior,
    Noise,
    Posterior,
    functional_variance,
    pointwise_variance,
    posterior_of,
    posterior_samples,
)
from hvpopt.fwi import WaveformMisfit
from hvpopt.krylov.lanczos import LanczosBasis
from hvpopt.operators.symmetric import FunctionOperator

F64 = torch.float64
#: What rounding may take from a bound, relative.
SLACK = 1e-9


class Linear:
    """Data d = J m + e on a grid, some of it frozen, and its dense posterior."""

    def __init__(self, generator, shape=(7, 8), n_data=30, decades=3.0, std=0.1):
        mask = torch.rand(shape, generator=generator) > 0.2
        mask[2:4, 2:4] = True
        self.space = ModelSpace(torch.zeros(shape, dtype=F64), mask=mask, scale=2.0)
        n = self.space.size
        sizes = torch.logspace(0, -decades, n_data, dtype=F64)
        self.jacobian = sizes[:, None] * torch.randn(
            n_data, n, generator=generator, dtype=F64
        )
        self.prior = MaternPrior(self.space, length=3.0, std=4.0)
        self.noise = Noise(std, n_data)
        square = self.jacobian.mT @ self.jacobian
        self.hessian = MatrixOperator(2.0 / n_data * square)
        precision = self.prior.precision(torch.eye(n, dtype=F64))
        self.covariance = torch.linalg.inv(
            0.5 * (precision + precision.mT) + square / std**2
        )
        # the mean of a region, a contrast, a cell, as a person writes them
        mean = torch.zeros(shape, dtype=F64)
        mean[2:4, 2:4] = 0.25
        contrast = mean.clone()
        contrast[5, mask[5]] = -1.0 / max(int(mask[5].sum()), 1)
        cell = torch.zeros(n, dtype=F64)
        cell[n // 2] = 1.0
        self.questions = [mean, contrast, cell]
        flat = [self.space.gradient_to_vector(t) for t in (mean, contrast)]
        self.flat = torch.stack([*flat, cell], 1)
        self.true = (self.flat * (self.covariance @ self.flat)).sum(0)


def assert_between(lower, true, upper):
    assert bool((lower <= true * (1 + SLACK)).all())
    assert bool((upper >= true * (1 - SLACK)).all())


@pytest.mark.parametrize("guided", [False, True])
def test_brackets_hold_after_any_number_of_products(guided, generator):
    problem = Linear(generator)
    # any positive diagonal will do; one far from the true one too
    rough = torch.rand(problem.space.size, generator=generator, dtype=F64)
    posterior = Posterior(
        problem.hessian, problem.prior, problem.noise, diagonal=rough if guided else None
    )
    spent, width = 0, math.inf
    for most in (0, 1, 2, 5, 10, 20, 30):
        found = posterior.functional_variance(
            problem.questions, tol=1e-8, max_products=most
        )
        spent += found.n_products
        assert found.n_products <= most
        assert_between(found.lower, problem.true, found.upper)
        ratio = float((found.upper / found.lower).max()) if spent else math.inf
        assert ratio <= width * (1 + SLACK)
        width = ratio
    assert problem.hessian.counts.products == spent
    torch.testing.assert_close(found.value, problem.true, rtol=1e-7, atol=0)
    prior = problem.prior.covariance(problem.flat)
    torch.testing.assert_close(
        found.prior, (problem.flat * prior).sum(0), rtol=SOLVE, atol=0
    )
    assert torch.equal(found.std, found.value.sqrt())


def test_tolerance_ends_the_search_and_a_second_question_costs_less(generator):
    problem = Linear(generator)
    posterior = Posterior(problem.hessian, problem.prior, problem.noise)
    found = posterior.functional_variance(problem.questions, tol=0.05)
    low, high = found.std_bounds
    assert bool((high <= 1.05 * low).all())
    again = posterior.functional_variance(problem.questions[0], tol=0.05)
    assert again.n_products == 0
    assert float(again.lower[0]) == pytest.approx(float(found.lower[0]), rel=SOLVE)


def test_one_question_gives_gauss_and_gauss_radau(generator):
    problem, k = Linear(generator), 6
    prior, weight = problem.prior, problem.noise.weight
    u = prior.factor_transposed(problem.flat[:, 0])

    def product(vector):
        image = problem.hessian.matvec(prior.factor(vector))
        return vector + weight * prior.factor_transposed(image)

    basis = LanczosBasis(FunctionOperator(product, u.numel(), device=DEVICE), rhs=u)
    basis.extend(k)
    off = torch.tensor(basis.off_diagonal, dtype=F64)
    t = torch.diag(torch.tensor(basis.diagonal, dtype=F64))
    t += torch.diag(off[:-1], 1) + torch.diag(off[:-1], -1)
    square = float(u @ u)
    gauss = square * float(torch.linalg.inv(t)[0, 0])
    # Golub, SIAM Rev. 15, 1973: the last row that gives T the eigenvalue 1
    unit = torch.zeros(k, dtype=F64)
    unit[-1] = off[-1] ** 2
    last = 1.0 + torch.linalg.solve(t - torch.eye(k, dtype=F64), unit)[-1]
    radau = torch.zeros(k + 1, k + 1, dtype=F64)
    radau[:k, :k], radau[k, k] = t, last
    radau[k, k - 1] = radau[k - 1, k] = off[-1]
    above = square * float(torch.linalg.inv(radau)[0, 0])
    found = functional_variance(
        problem.hessian, prior, problem.noise, problem.questions[0], max_products=k
    )
    assert float(found.lower[0]) == pytest.approx(gauss, rel=1e-7)
    assert float(found.upper[0]) == pytest.approx(above, rel=1e-7)


def test_diagonal_saves_products_where_light_is_uneven(generator):
    n = 400
    light = torch.logspace(0, -4, n, dtype=F64)
    rows = torch.eye(n, dtype=F64) + 0.2 * torch.randn(
        n, n, generator=generator, dtype=F64
    ) / math.sqrt(n)
    jacobian = rows * light.sqrt()
    hessian = MatrixOperator(2e5 * jacobian.mT @ jacobian)
    prior, noise = MaternPrior((n,), length=3.0, std=1.0), Noise.of_likelihood()
    mean = torch.zeros(n, dtype=F64)
    mean[n // 2 : n // 2 + 5] = 0.2
    plain = functional_variance(hessian, prior, noise, mean)
    diagonal = hessian.matrix.diagonal()
    guided = functional_variance(hessian, prior, noise, mean, diagonal=diagonal)
    assert guided.n_products < 0.6 * plain.n_products


def test_low_rank_is_never_below_and_lower_bounds_hold_in_200_seeds(generator):
    confidence, missed = 0.9, 0
    problem = Linear(generator, n_data=20, decades=2.0)
    true = problem.covariance.diagonal()
    for seed in range(200):
        found = pointwise_variance(
            problem.hessian,
            problem.prior,
            problem.noise,
            n_products=8,
            n_bound=4,
            confidence=confidence,
            seed=seed,
        )
        assert found.rank == 8
        assert 8 < found.n_products <= 12
        assert bool((found.upper >= true * (1 - SLACK)).all())
        missed += not bool((found.lower <= true * (1 + SLACK)).all())
    # a false alarm once in a million runs at most
    assert missed <= scipy.stats.binom.ppf(1 - 1e-6, 200, 1 - confidence)


@pytest.mark.parametrize("top", [1e6, 1e13, 1e15])
def test_lower_bounds_hold_beside_an_eigenvalue_that_hides_the_others(top, seed):
    weights = torch.cat([torch.tensor([top], dtype=F64), torch.linspace(1, 100, 29)])
    true = 1.0 / (1.0 + weights.double())
    prior = MaternPrior((30,), length=0.01, std=1.0)
    hessian = MatrixOperator(torch.diag(weights.double()))
    for n_products, k in itertools.product((10, 25, 30), range(5)):
        found = pointwise_variance(
            hessian,
            prior,
            Noise.of_likelihood(),
            n_products=n_products,
            confidence=1 - 1e-9,
            seed=seed + k,
        )
        # products round to 1e-16 of the largest: 1e-3 of the others' part at 1e13
        assert bool((found.lower <= true * (1 + 1e-2)).all())
        assert bool((true <= found.upper * (1 + 1e-2)).all())


def test_bound_of_any_seed_has_a_start_of_its_own(seed):
    weights = torch.linspace(1, 100, 60, dtype=F64)
    true = 1.0 / (1.0 + weights)
    prior = MaternPrior((60,), length=0.01, std=1.0)
    for first in (0, seed % 1000):
        for later in (first - 1, first, first + 1):
            posterior = Posterior(
                MatrixOperator(torch.diag(weights)), prior, Noise.of_likelihood()
            )
            posterior.explore(6, seed=first)
            found = posterior.pointwise_variance(
                n_products=0, n_bound=6, confidence=1 - 1e-9, seed=later
            )
            assert found.rank == 6
            assert found.remainder > 10.0  # eigenvalues of 100 are left
            assert bool((found.lower <= true * (1 + SLACK)).all())


def test_all_products_give_the_whole_posterior(generator, seed):
    problem = Linear(generator)
    true = problem.covariance.diagonal()
    options = {"n_products": 60, "seed": seed}
    found = pointwise_variance(problem.hessian, problem.prior, problem.noise, **options)
    torch.testing.assert_close(found.lower, true, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.upper, true, rtol=1e-6, atol=0)
    n = 4000
    drawn = posterior_samples(
        problem.hessian, problem.prior, problem.noise, n, n_bound=5, **options
    )
    assert drawn.remainder < 1e-6
    variance = drawn.value.square().mean(1)
    # six standard errors of a mean of squares
    assert float((variance / true - 1.0).abs().max()) < 6 * math.sqrt(2 / n)
    first = problem.space.step_to_vector(drawn.models[0])
    torch.testing.assert_close(first, drawn.value[:, 0], rtol=SOLVE, atol=SOLVE)


def test_truth_lies_within_one_and_two_deviations_as_often_as_it_should(generator):
    problem, n = Linear(generator, decades=1.5), 50
    found = functional_variance(
        problem.hessian, problem.prior, problem.noise, problem.questions[0], tol=1e-6
    )
    truth = problem.prior.sample(
        n, seed=int(torch.randint(10**6, (), generator=generator))
    ).to(problem.jacobian)
    errors = torch.randn(len(problem.jacobian), n, generator=generator, dtype=F64)
    data = problem.jacobian @ truth + problem.noise.std * errors
    pulled = problem.jacobian.mT @ data / problem.noise.std**2
    most_probable = problem.covariance @ pulled
    distance = (problem.flat[:, 0] @ (truth - most_probable)).abs() / found.std
    assert_calibrated(distance)


def assert_calibrated(distance):
    """Check that normal distances, in standard deviations, are so distributed."""
    n = len(distance)
    for within in (1.0, 2.0):
        chance = math.erf(within / math.sqrt(2.0))
        hits = int((distance <= within).sum())
        assert scipy.stats.binom.ppf(1e-6, n, chance) <= hits
        assert hits <= scipy.stats.binom.ppf(1 - 1e-6, n, chance)


def test_truth_of_a_born_problem_lies_where_it_should(generator):
    survey, n = waves.survey(n_shots=2), 50
    start = waves.models_of("scalar", generator)[0]
    mask = torch.zeros(start.shape, dtype=torch.bool)
    mask[7:11, 4:10] = True
    space = ModelSpace(start, mask=mask)
    prior = MaternPrior(space, length=15.0, std=100.0, spacing=(5.0, 6.0))
    at_start = survey.simulate(start)
    truth = prior.sample(n, seed=int(torch.randint(10**6, (), generator=generator)))

    def born(step):
        h = 1e-3 / float(step.abs().max())
        ends = [survey.simulate(start + s * h * step) for s in (1.0, -1.0)]
        return (ends[0] - ends[1]) / (2.0 * h)

    data = [born(space.step_to_model(column.contiguous())) for column in truth.unbind(1)]
    std = 0.3 * float(torch.stack(data).square().mean().sqrt())
    noise, centres = Noise(std, at_start.numel()), []
    hessian = WaveformMisfit(survey, at_start).hessian(start, "gauss-newton", space=space)
    dense = hessian.to_dense()
    precision = prior.precision(torch.eye(space.size, dtype=F64))
    covariance = torch.linalg.inv(0.5 * (precision + precision.mT) + noise.weight * dense)
    for clean in data:
        errors = torch.randn(clean.shape, generator=generator, dtype=F64)
        misfit = WaveformMisfit(survey, at_start + clean + std * errors)
        _, gradient = misfit.value_and_gradient(start)
        pulled = -noise.weight * space.gradient_to_vector(gradient)
        centres.append(covariance @ pulled)
    question = torch.zeros_like(start)
    question[8:10, 5:8] = 1 / 6
    found = functional_variance(hessian, prior, noise, question, tol=1e-6)
    # noise and prior decide both: neither is the answer already
    assert 0.02 < float(found.std / found.prior_std) < 0.98
    flat = space.gradient_to_vector(question)
    assert_calibrated((flat @ (truth - torch.stack(centres, 1))).abs() / found.std)


def test_posterior_of_waveforms_at_the_end_of_minimize(generator):
    survey = waves.survey(n_shots=2)
    true = waves.models_of("scalar", generator)[0]
    start = torch.full_like(true, 1900.0)
    misfit = WaveformMisfit(survey, survey.simulate(true))
    mask = torch.ones(start.shape, dtype=torch.bool)
    mask[:7] = False
    space = ModelSpace(start, scale=100.0, mask=mask)
    prior = MaternPrior(space, length=15.0, std=200.0, spacing=(5.0, 6.0))
    data = survey.simulate(start)
    noise = Noise(0.02 * float(data.square().mean().sqrt()), data.numel())
    whole = misfit + (1 / noise.weight) * prior.objective(start)
    result = minimize(whole, start, max_iter=1)
    mean = torch.zeros_like(start)
    mean[8:11, 6:9] = 1 / 9
    posterior = posterior_of(result, misfit, prior, noise)
    assert posterior.setup.products == 8
    found = posterior.functional_variance(mean)
    dense = misfit.hessian(result.x, "gauss-newton", space=space).to_dense()
    precision = prior.precision(torch.eye(space.size, dtype=F64))
    covariance = torch.linalg.inv(0.5 * (precision + precision.mT) + noise.weight * dense)
    flat = space.gradient_to_vector(mean)
    assert_between(found.lower, flat @ covariance @ flat, found.upper)
    assert found.n_propagations == 4 * 2 * found.n_products
    cells = posterior.pointwise_variance(n_products=20, n_bound=8, confidence=0.9999)
    assert_between(cells.lower, covariance.diagonal(), cells.upper)
    assert cells.std_model.shape == start.shape


def test_no_error_bar_without_noise_or_for_questions_that_do_not_fit(generator):
    problem = Linear(generator)
    with pytest.raises(TypeError, match="an error bar needs the size of the noise"):
        Posterior(problem.hessian, problem.prior, None)
    with pytest.raises(TypeError, match="prior"):
        Posterior(problem.hessian, None, problem.noise)
    with pytest.raises(ValueError, match="rows"):
        Posterior(problem.hessian, MaternPrior((3,), length=1.0, std=1.0), problem.noise)
    posterior = Posterior(problem.hessian, problem.prior, problem.noise)
    for question in (torch.ones(3, dtype=F64), torch.zeros(problem.space.size)):
        with pytest.raises(ValueError, match=r"shape|weighs"):
            posterior.functional_variance(question)
    with pytest.raises(ValueError, match="diagonal"):
        Posterior(
            problem.hessian,
            problem.prior,
            problem.noise,
            diagonal=-torch.ones(problem.space.size, dtype=F64),
        )
