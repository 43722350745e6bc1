"""Nothing is kept between calls: memory stays flat and values repeat bitwise."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from waves import models_of, random_step, survey

from hvpopt.fwi import WaveformMisfit
from hvpopt.fwi.hessian.memory import PeakMemory

PRODUCTS = 100


@pytest.fixture
def problem(generator):
    v = models_of("scalar", generator)[0]
    there = survey(n_shots=3)
    misfit = WaveformMisfit(there, there.simulate(1.02 * v), shots_per_group=2)
    return misfit, v, random_step((v,), generator)


def test_memory_is_flat_over_a_hundred_products(problem):
    """A leaked history a product would add a hundred times one product's peak."""
    misfit, v, w = problem
    operator = misfit.hessian(v)
    operator @ w
    with PeakMemory() as one:
        operator @ w
    with PeakMemory() as many:
        for _ in range(PRODUCTS):
            operator @ w
    assert many.bytes < 3 * one.bytes + 2e6


def test_values_products_and_gradients_repeat_bitwise(problem):
    misfit, v, w = problem
    other = v * 1.01
    first = misfit.value(v), misfit.value_and_gradient(v), misfit.hessian(v) @ w
    misfit.value(other)
    misfit.hessian(other) @ w
    again = misfit.value(v), misfit.value_and_gradient(v), misfit.hessian(v) @ w
    assert first[0] == again[0]
    assert first[1][0] == again[1][0]
    assert torch.equal(first[1][1], again[1][1])
    assert torch.equal(first[2], again[2])


@pytest.mark.filterwarnings("default")  # catch_warnings is not safe between threads
def test_threads_of_calls_give_what_one_gives(problem):
    misfit, v, _ = problem
    models = [v * (1 + 0.002 * i) for i in range(6)]
    alone = [misfit.value(m) for m in models]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(misfit.value, models))
    assert together == alone
