"""What a value and a Hessian-vector product cost, in gradients of the same run."""

import time

import pytest
import torch
from two_layer import two_layer

import hvpopt

pytestmark = pytest.mark.filterwarnings("ignore::deepwave.ZeroWidthFaceWarning")

ROUNDS = 9


def median_seconds(function):
    """Return the median time of a warmed-up call."""
    function()
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return sorted(times)[ROUNDS // 2]


@pytest.mark.parametrize(("ny", "nx"), [(20, 30), (40, 60)])
@pytest.mark.parametrize("engine", ["double backprop", "Born pass"])
def test_product(benchmark, ny, nx, engine):
    experiment = two_layer(ny, nx)
    v = experiment.v_start
    loss = experiment.misfit if engine == "Born pass" else experiment.loss
    objective = loss if engine == "Born pass" else hvpopt.TorchObjective(loss)
    gradient = median_seconds(lambda: objective.value_and_gradient(v))
    value = median_seconds(lambda: objective.value(v))
    operator = objective.hessian(v)
    w = torch.randn(v.shape, dtype=v.dtype, generator=torch.Generator().manual_seed(0))
    benchmark.pedantic(lambda: operator @ w, rounds=ROUNDS, warmup_rounds=2)
    product = benchmark.stats.stats.median
    operator.close()
    benchmark.extra_info.update(
        engine=engine,
        cells=ny * nx,
        value_in_gradients=value / gradient,
        product_in_gradients=product / gradient,
        gradient_seconds=gradient,
    )
