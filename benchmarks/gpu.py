"""Products, memory and a sampled inversion on a GPU; writes GPU.md and gpu.json.

    python benchmarks/gpu.py                 # on the first CUDA device
    python benchmarks/gpu.py --device cpu    # small, to see whether it runs; prints only

Everything is warmed up, and the device is waited for before and after each timing. Times
are medians over rounds, and each round times every kind once, so that a drift of the
device's speed falls on all of them. Ratios are medians of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
import warnings
import xml.etree.ElementTree
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import deepwave
import torch
from bench_waveform import surface_survey
from race_setup import below, smooth
from race_surveys import WATER, fixed_spread, layered_model
from torch import Tensor
from two_layer import two_layer

import hvpopt
from hvpopt.fwi import WaveformMisfit
from hvpopt.fwi.hessian.memory import PeakMemory
from hvpopt.fwi.hessian.waveforms import Waveforms

HERE = Path(__file__).parent
NO_GPU = (
    "this benchmark needs a CUDA device, and torch sees none: install a torch built for "
    "CUDA (pip install torch==2.13.0 from PyPI is one) on a machine with an NVIDIA GPU "
    "and its driver, or pass --device cpu for a small run that writes nothing"
)

#: Bytes that one shot's product needs at least beside its histories, for small runs.
SMALLEST_LIMIT = 50_000_000
#: Threads of what runs on the CPU beside a GPU.
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Sizes:
    """How large everything is, and how often it is timed.

    Attributes:
        cells: Rows and columns of the surveys of products.
        steps: Of time.
        shots: Of each survey of products.
        copies: Columns of the blocks.
        rounds: Of each timing.
        published: Cells of the published experiment.
        rows: Of its dense Hessian that are timed.
        cost: Of the sampled inversion, in gradients of the whole survey.
    """

    cells: tuple[int, int] = (200, 600)
    steps: int = 1500
    shots: tuple[int, ...] = (1, 16)
    copies: tuple[int, ...] = (4, 16)
    rounds: int = 5
    published: tuple[int, int] = (20, 30)
    rows: int = 20
    cost: float = 6.0


SMALL = Sizes(
    cells=(24, 40), steps=60, shots=(2,), copies=(3,), rounds=2, rows=2, cost=2.0
)


def wait(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(device: torch.device, function: Callable[[], Any]) -> float:
    """Return how long a call takes, with what it leaves to the device."""
    wait(device)
    began = time.perf_counter()
    function()
    wait(device)
    return time.perf_counter() - began


def timed(
    device: torch.device, kinds: dict[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the median time of each kind, and its ratio to the first kind's.

    Args:
        device: That they run on.
        kinds: What is timed, by name; called once before.
        rounds: Each times all kinds.
    """
    for run in kinds.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, run in kinds.items():
            times[name].append(seconds(device, run))
    first = next(iter(times.values()))
    ratios = {
        name: statistics.median(t / f for t, f in zip(found, first, strict=True))
        for name, found in times.items()
    }
    return {name: statistics.median(found) for name, found in times.items()}, ratios


def peak(device: torch.device, function: Callable[[], Any]) -> int:
    """Return how far a call raises the memory in use, bytes."""
    with PeakMemory(device) as memory:
        function()
    return memory.bytes


def moved(misfit: WaveformMisfit, device: torch.device, **options: Any) -> WaveformMisfit:
    """Return a misfit of the same survey and data on a device."""
    given: Waveforms = misfit.waveforms
    observed = {channel: d.to(device) for channel, d in given.observed.items()}
    return WaveformMisfit(misfit.survey.to(device=device), observed, **options)


def random_like(v: Tensor, *size: int) -> Tensor:
    """Return normal numbers of a model's shape, drawn on the CPU."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*size, *v.shape, generator=generator).to(v)


def products(device: torch.device, sizes: Sizes, n_shots: int) -> dict[str, Any]:
    """Return times and memory of products of one survey, float32."""
    host, start = surface_survey(*sizes.cells, n_shots, steps=sizes.steps)
    misfit, v = moved(host, device), start.to(device)
    w = random_like(v)
    born = misfit.hessian(v)
    gauss_newton = misfit.hessian(v, "gauss-newton")
    assert born.engine == "born"

    def whole_double_backprop() -> Tensor:
        with hvpopt.HessianOperator(misfit, v) as operator:
            return operator @ w

    kinds: dict[str, Callable[[], Any]] = {
        "gradient": partial(misfit.value_and_gradient, v),
        "value": partial(misfit.value, v),
        "Born product": lambda: born @ w,
        "Gauss-Newton product": lambda: gauss_newton @ w,
        "double backprop, whole": whole_double_backprop,
    }
    for run in kinds.values():
        run()
    memory = {name: peak(device, run) for name, run in kinds.items()}
    product = born @ w
    error = float((product - whole_double_backprop()).norm() / product.norm())
    times, ratios = timed(device, kinds, sizes.rounds)
    with hvpopt.HessianOperator(misfit, v) as graph:
        # apart: its graph, three histories, would lie beside those of the other kinds
        name = "double backprop, graph kept"
        pair = {"gradient": kinds["gradient"], name: lambda: graph @ w}
        more = timed(device, pair, sizes.rounds)
        times[name], ratios[name] = more[0][name], more[1][name]
    found: dict[str, Any] = {
        "shots": n_shots,
        "seconds": times,
        "ratios": ratios,
        "peak_bytes": memory,
        "born_against_double_backprop": error,
        "plan": plan_of(host, start, device, memory["Born product"], w),
    }
    if device.type != "cpu":
        torch.set_num_threads(CORES)
        # timed once, after a warm-up of one shot: it takes seconds
        host.select([0]).value_and_gradient(start)
        on_cpu = seconds(torch.device("cpu"), lambda: host.value_and_gradient(start))
        ratio = on_cpu / times["gradient"]
        found["cpu"] = {"seconds": on_cpu, "threads": CORES, "ratio": ratio}
    return found


def plan_of(
    host: WaveformMisfit, start: Tensor, device: torch.device, used: int, w: Tensor
) -> dict[str, Any] | None:
    """Return what a misfit with 0.6 of a product's memory plans, and what it uses."""
    if host.survey.n_shots == 1 or not used:
        return None
    limit = max(int(0.6 * used), SMALLEST_LIMIT)
    misfit, v = moved(host, device, memory_limit=limit), start.to(device)
    operator = misfit.hessian(v)
    operator @ w  # plans the groups
    most = peak(device, lambda: operator @ w)
    plan = asdict(misfit.memory_plan)
    return {"limit": limit, "used": most, "plan": plan, "told": str(misfit.memory_plan)}


def blocks(device: torch.device, sizes: Sizes, k: int) -> dict[str, Any]:
    """Return times and memory of k products, one after the other and by model copies."""
    host, start = surface_survey(*sizes.cells, 1, steps=sizes.steps)
    misfit, v = moved(host, device), start.to(device)
    columns = random_like(v, k).reshape(k, -1).mT
    operator = misfit.hessian(v)

    def one_by_one() -> Tensor:
        return torch.stack([operator @ column for column in columns.unbind(1)], 1)

    kinds = {"single": one_by_one, "copies": lambda: operator @ columns}
    expected, found = one_by_one(), operator @ columns
    error = (found - expected).norm() / expected.norm()
    assert float(error) < 1e-4, f"block products are wrong by {float(error):.1e}"
    memory = {name: peak(device, run) for name, run in kinds.items()}
    times, ratios = timed(device, kinds, sizes.rounds)
    return {
        "columns": k,
        "seconds": times,
        "speed_up": 1 / ratios["copies"],
        "peak_bytes": memory,
        "error": float(error),
    }


def published(device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """Return the time of a matrix-free step of the published problem, and a dense one's.

    Rows of the dense Hessian are timed with the documentation's double backprop, a few
    of them; the whole has one for each cell.
    """
    experiment = two_layer(*sizes.published)
    misfit, v = moved(experiment.misfit, device), experiment.v_start.to(device)

    def step() -> hvpopt.Result:
        method = hvpopt.ShiftedNewton(solver="lanczos")
        return hvpopt.minimize(misfit, v, method=method, max_iter=1)

    result = step()
    whole = statistics.median(seconds(device, step) for _ in range(sizes.rounds))
    with hvpopt.HessianOperator(misfit, v) as operator:
        units = torch.eye(v.numel(), sizes.rows, dtype=v.dtype, device=device)
        operator @ units[:, 0]
        rows = seconds(device, lambda: operator @ units)
    return {
        "cells": v.numel(),
        "products": result.counts.products,
        "value": [misfit.value(v), result.fun],
        "seconds": whole,
        "rows_timed": sizes.rows,
        "seconds_of_a_row": rows / sizes.rows,
        "dense_seconds": rows / sizes.rows * v.numel(),
    }


def inversion(device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """Return what the default method, which takes samples, reaches on 48 shots."""
    true = layered_model()
    survey = fixed_spread()
    misfit = moved(WaveformMisfit(survey, survey.simulate(true)), device)
    start = smooth(true, WATER, 6.0).to(device)
    options = {"lower": 1400.0, "upper": 3800.0, "mask": below(start, WATER)}
    options["mask"] = options["mask"].to(device)
    first = misfit.value(start)
    misfit.value_and_gradient(start)
    gradient = seconds(device, lambda: misfit.value_and_gradient(start))
    before = misfit.counts.propagations
    began = time.perf_counter()
    result = hvpopt.minimize(misfit, start, max_cost=sizes.cost, **options)
    wait(device)
    spent = time.perf_counter() - began
    true = true.to(device)
    return {
        "shots": survey.n_shots,
        "cells": list(true.shape),
        "steps": result.nit,
        "message": result.message,
        "seconds": spent,
        "gradient_seconds": gradient,
        "cost": (misfit.counts.propagations - before) / misfit.gradient_propagations,
        "misfit": result.fun / first,
        "model_error": float((result.x - true).norm() / (start - true).norm()),
    }


def environment(device: torch.device) -> dict[str, Any]:
    """Return what a run was measured on."""
    found = {
        "device": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "deepwave": deepwave.__version__,
        "measured": time.strftime("%Y-%m-%d"),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["device"] = properties.name
        found["memory_bytes"] = properties.total_memory
        found["cuda"] = torch.version.cuda
    return found


def measure(device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """Return all measurements, as JSON holds them."""
    parts: dict[str, Callable[[], Any]] = {
        "products": lambda: [products(device, sizes, n) for n in sizes.shots],
        "blocks": lambda: [blocks(device, sizes, k) for k in sizes.copies],
        "published": lambda: published(device, sizes),
        "inversion": lambda: inversion(device, sizes),
    }
    found: dict[str, Any] = {"environment": environment(device), "sizes": asdict(sizes)}
    for name, part in parts.items():
        began = time.perf_counter()
        found[name] = part()
        print(f"{name}: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
    return found


def tests(path: Path) -> dict[str, float]:
    """Return how many tests ended how, from a file in the format of JUnit."""
    (suite,) = xml.etree.ElementTree.parse(path).iter("testsuite")
    failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
    told = [skipped.attrib["message"] for skipped in suite.iter("skipped")]
    return {
        "passed": int(suite.attrib["tests"]) - len(told) - failed,
        "failed": failed,
        "not_begun": sum(message.startswith("not begun within") for message in told),
        "not_here": sum(not message.startswith("not begun within") for message in told),
        "seconds": float(suite.attrib["time"]),
    }


def size(n_bytes: float) -> str:
    """Return a number of bytes in MB or GB."""
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def duration(value: float) -> str:
    """Return seconds in ms or s."""
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def product_lines(found: dict[str, Any]) -> list[str]:
    """Return the table of products, and what memory plans kept."""
    ny, nx = found["sizes"]["cells"]
    lines = [
        "## What a product costs, in gradients",
        "",
        f"Scalar, {ny} × {nx} cells, {found['sizes']['steps']} time steps, float32. "
        "Double backprop, whole, makes the graph anew for its one product. Memory is the "
        "rise of the allocator's peak.",
        "",
        "| shots | | time | in gradients | peak memory |",
        "|--:|---|--:|--:|--:|",
    ]
    for row in found["products"]:
        for name, value in row["seconds"].items():
            memory = row["peak_bytes"].get(name)
            lines.append(
                f"| {row['shots']} | {name} | {duration(value)} "
                f"| {row['ratios'][name]:.2f} | {size(memory) if memory else '–'} |"
            )
    lines.append("")
    for row in found["products"]:
        if "cpu" in row:
            cpu = row["cpu"]
            lines.append(
                f"The gradient of {row['shots']} shots takes {duration(cpu['seconds'])} "
                f"on this machine's CPU with {cpu['threads']} threads (timed once), "
                f"{cpu['ratio']:.3g} times as long."
            )
        if row["plan"] is not None:
            plan = row["plan"]
            lines.append(
                f"With `memory_limit` {size(plan['limit'])}, products of {row['shots']} "
                f"shots used {size(plan['used'])} at their peak ({plan['told']})."
            )
    return lines


def page(found: dict[str, Any]) -> str:
    """Return GPU.md."""
    where = found["environment"]
    told = [where["device"]]
    if "memory_bytes" in where:
        told += [size(where["memory_bytes"]), f"CUDA {where['cuda']}"]
    lines = [
        "# On a GPU",
        "",
        "Written by `make gpu` (benchmarks/gpu.py). All figures but those that name the "
        "CPU are of the device.",
        "",
        f"Device: {', '.join(told)}. Python {where['python']}, torch {where['torch']}, "
        f"deepwave {where['deepwave']}. Measured on {where['measured']}.",
        "",
        *product_lines(found),
        "",
        "## Several products at once",
        "",
        "One shot of the same survey. Single products run one after the other; by "
        "copies, which is what `H @ block` does on a GPU, each column propagates with a "
        "copy of the model of its own, all in one call.",
        "",
        "| columns | single | by copies | single over copies | peak memory |",
        "|--:|--:|--:|--:|--:|",
    ]
    for row in found["blocks"]:
        times, memory = row["seconds"], row["peak_bytes"]
        lines.append(
            f"| {row['columns']} | {duration(times['single'])} "
            f"| {duration(times['copies'])} | {row['speed_up']:.2f} "
            f"| {size(memory['single'])}, {size(memory['copies'])} |"
        )
    step, run = found["published"], found["inversion"]
    ny, nx = run["cells"]
    lines += [
        "",
        f"## One step of the published problem, {step['cells']} cells, float64",
        "",
        'A step of `ShiftedNewton(solver="lanczos")` took '
        f"{duration(step['seconds'])} and {step['products']} products (misfit "
        f"{step['value'][0]:.3e} to {step['value'][1]:.3e}). A row of the dense Hessian "
        f"by double backprop took {duration(step['seconds_of_a_row'])}, timed over "
        f"{step['rows_timed']} rows; all {step['cells']} would take "
        f"{duration(step['dense_seconds'])}, "
        f"{step['dense_seconds'] / step['seconds']:.3g} times the step.",
        "",
        "## One sampled inversion",
        "",
        f"{run['shots']} shots with shared receivers on {ny} × {nx} cells, float32, "
        f"`minimize` with its default method: {run['steps']} steps in "
        f"{duration(run['seconds'])}, a cost of {run['cost']:.2f} gradients of the whole "
        f"survey ({duration(run['gradient_seconds'])} each). The misfit fell to "
        f"{run['misfit']:.2e} of the start's, the model error to "
        f"{run['model_error']:.3f} of it. It ended so: {run['message']}",
        "",
    ]
    if "tests" in found:
        ran = found["tests"]
        lines += [
            "## The tests on this device",
            "",
            f"{ran['passed']} passed and {ran['failed']} failed in "
            f"{duration(ran['seconds'])}; {ran['not_begun']} had not begun by then, "
            f"{ran['not_here']} have no part in it.",
            "",
        ]
    if found.get("not_measured"):
        lines += ["## Not measured", ""]
        lines += [f"- {what}" for what in found["not_measured"]] + [""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--device", default="cuda", help="cuda (the default), or cpu")
    parser.add_argument("--tests", type=Path, help="what pytest --junitxml wrote")
    given = parser.parse_args()
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(NO_GPU)
    warnings.filterwarnings("ignore")
    if device.type == "cpu":
        print(page(measure(device, SMALL)))
        return
    found = measure(device, Sizes())
    if given.tests is not None:
        found["tests"] = tests(given.tests)
    (HERE / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    (HERE / "GPU.md").write_text(page(found))
    print(page(found))


if __name__ == "__main__":
    main()
