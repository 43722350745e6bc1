"""Born products against gradients and double backprop: seconds and peak memory.

One scalar survey on 68 × 202 and 200 × 300 cells with 1 and 8 surface shots, float32.
Every round times a gradient and then each kind of product, so that a drift of the
machine's speed falls on all of them; ratios are medians over rounds.
"""

import statistics
import time

import deepwave
import pytest
import torch

import hvpopt
from hvpopt.fwi.hessian.memory import PeakMemory

ROUNDS = 7
STEPS = 300


def layered(ny, nx, bottom, dtype):
    depth = torch.linspace(1500, bottom, ny, dtype=dtype)
    return depth[:, None].expand(ny, nx).contiguous()


def surface_survey(ny, nx, n_shots, dtype=torch.float32, steps=STEPS):
    """Return a misfit and a starting model, m/s, over a layered one."""
    v_true = layered(ny, nx, 2500, dtype)
    v_true[ny // 2 :] += 200
    start = layered(ny, nx, 2600, dtype)
    wavelet = deepwave.wavelets.ricker(10.0, steps, 0.001, 0.1, dtype=dtype)
    source = torch.full((n_shots, 1, 2), 2)
    source[:, 0, 1] = torch.linspace(5, nx - 6, n_shots).long()
    receivers = torch.full((n_shots, nx - 10, 2), 2)
    receivers[:, :, 1] = torch.arange(5, nx - 5)
    survey = hvpopt.fwi.Survey(
        "scalar",
        grid_spacing=10.0,
        dt=0.001,
        sources={"u": (wavelet.repeat(n_shots, 1, 1), source)},
        receivers={"u": receivers},
        max_vel=3000.0,
        pml_freq=10.0,
    )
    return hvpopt.fwi.WaveformMisfit(survey, survey.simulate(v_true)), start


def seconds(function):
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def peak(function):
    """Return the rise of the peak resident set, bytes: repeats differ by 1 to 2 %."""
    with PeakMemory() as memory:
        function()
    return memory.bytes


def peak_of_tensors(function):
    """Return the most that torch's CPU allocator held at once, bytes: exact."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        function()
    events = profile.profiler.kineto_results.events()
    allocations = [e for e in events if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(allocations, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize("n_shots", [1, 8])
@pytest.mark.parametrize(("ny", "nx"), [(68, 202), (200, 300)])
def test_product_costs_about_one_gradient(benchmark, ny, nx, n_shots):
    misfit, v = surface_survey(ny, nx, n_shots)
    w = torch.randn(ny, nx, generator=torch.Generator().manual_seed(0))
    born = misfit.hessian(v)
    assert born.engine == "born"

    def double_backprop_whole():
        with hvpopt.HessianOperator(misfit, v) as operator:
            return operator @ w

    kinds = {
        "gradient": lambda: misfit.value_and_gradient(v),
        "value": lambda: misfit.value(v),
        "born": lambda: born @ w,
        "autograd.functional.hvp": lambda: torch.autograd.functional.hvp(misfit, v, w),
    }
    memory = {name: peak(run) for name, run in kinds.items()}  # and a warm-up
    memory["double backprop"] = peak(double_backprop_whole)
    tensors = {
        "born": peak_of_tensors(kinds["born"]),
        "double backprop": peak_of_tensors(double_backprop_whole),
    }
    error = (born @ w - double_backprop_whole()).norm() / (born @ w).norm()
    assert float(error) < 1e-4
    graph = hvpopt.HessianOperator(misfit, v)
    kinds["double backprop, graph kept"] = lambda: graph @ w
    kinds["double backprop, graph kept"]()
    times = {name: [] for name in kinds}

    def one_round():
        for name, run in kinds.items():
            times[name].append(seconds(run))

    benchmark.pedantic(one_round, rounds=ROUNDS)
    graph.close()
    ratios = {
        name: statistics.median(
            t / g for t, g in zip(times[name], times["gradient"], strict=True)
        )
        for name in kinds
    }
    # Two histories a shot against three, and wavefields that do not grow with time.
    assert tensors["born"] <= 2 / 3 * tensors["double backprop"]
    assert memory["born"] <= 0.69 * memory["double backprop"]
    benchmark.extra_info.update(
        waveform_cells=f"{ny} × {nx}",
        shots=n_shots,
        shots_per_group=misfit.memory_plan.shots_per_group,
        gradient_seconds=statistics.median(times["gradient"]),
        ratios=ratios,
        peak_bytes=memory,
        peak_tensor_bytes=tensors,
    )


def test_memory_limit_of_a_quarter_is_kept(benchmark):
    whole, v = surface_survey(68, 202, 8)
    observed = whole.waveforms.observed["u"]
    misfit = hvpopt.fwi.WaveformMisfit(whole.survey, observed, shots_per_group=8)
    w = torch.randn(68, 202, generator=torch.Generator().manual_seed(0))
    ungrouped = peak(lambda: misfit.hessian(v) @ w)
    limit = ungrouped // 4
    limited = hvpopt.fwi.WaveformMisfit(whole.survey, observed, memory_limit=limit)
    limited.value(v)  # plans the groups

    def run():
        limited.value_and_gradient(v)
        operator = limited.hessian(v)
        for _ in range(3):
            operator @ w

    with PeakMemory() as memory:
        benchmark.pedantic(run, rounds=1)
    assert memory.bytes <= limit
    benchmark.extra_info.update(
        ungrouped_bytes=ungrouped,
        limit_bytes=limit,
        used_bytes=memory.bytes,
        plan=str(limited.memory_plan),
    )


def test_float32_floor(benchmark):
    """How far products of a float32 propagation are from those of a float64 one."""
    single, v = surface_survey(68, 202, 1)
    double, v64 = surface_survey(68, 202, 1, dtype=torch.float64)
    w = torch.randn(68, 202, generator=torch.Generator().manual_seed(0))
    operator = single.hessian(v)
    product = benchmark.pedantic(lambda: operator @ w, rounds=1)
    exact = double.hessian(v64) @ w.double()
    error = float((product - exact).norm() / exact.norm())
    assert error < 1e-4
    benchmark.extra_info.update(float32_floor=error)
