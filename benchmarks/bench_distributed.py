"""Strong scaling: the same gradient and products on 1, 2 and 4 ranks of one thread each.

Beside them runs one process with as many threads as there are ranks. All run one after
the other in each round, so that a drift of the machine's speed falls on all of them, and
the ratios are medians over rounds. What uses more threads than the machine has cores says
nothing of scaling, and is marked in the table.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_waveform import STEPS, seconds, surface_survey

from hvpopt import distributed

#: Ranks and threads of each, one process first.
WAYS = ((1, 1), (2, 1), (4, 1), (1, 2), (1, 4))
SURVEY = {"ny": 100, "nx": 150, "n_shots": 8, "steps": STEPS}
ROUNDS, REPEATS = 5, 2
#: Seconds that a rank waits for the others.
TIMEOUT = 300
KINDS = {"exact product": "exact", "Gauss-Newton product": "gauss-newton"}
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["hvpopt.distributed"])


def timed(objective: Any, start: torch.Tensor, repeats: int) -> dict[str, Any]:
    """Return the least seconds of a gradient and of each kind of product."""
    vector = torch.ones(start.numel(), dtype=torch.float64)
    operators = {name: objective.hessian(start, kind) for name, kind in KINDS.items()}
    calls = {"gradient": lambda: objective.value_and_gradient(start)}
    for name, operator in operators.items():
        calls[name] = lambda operator=operator: operator.matvec(vector)
    before = objective.bytes_reduced
    product = operators["exact product"].matvec(vector)
    found: dict[str, Any] = {
        "bytes": objective.bytes_reduced - before,
        "norm": float(product.norm()),
    }
    for name, call in calls.items():
        call()
        found[name] = min(seconds(call) for _ in range(repeats))
    return found


def work(
    rank: int, size: int, threads: int, folder: str, survey: dict[str, int], repeats: int
) -> None:
    """Time one rank and leave what it found in a file."""
    torch.set_num_threads(threads)
    if size > 1:
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=TIMEOUT),
        )
    with distributed.session(TIMEOUT):
        misfit, start = surface_survey(**survey)
        found = timed(distributed.shard(misfit), start, repeats)
    if size > 1:
        torch.distributed.destroy_process_group()
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


def run(size: int, threads: int, survey: dict[str, int], repeats: int) -> dict[str, Any]:
    """Time a number of ranks of some threads each; the seconds of the slowest rank."""
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            PROCESSES.Process(
                target=work,
                args=(rank, size, threads, folder, survey, repeats),
                daemon=True,
            )
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise RuntimeError(f"a rank of {size} failed")
        found = [
            json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(size)
        ]
    return {name: max(f[name] for f in found) for name in found[0]}


def measure(survey: dict[str, int], repeats: int, ways=WAYS) -> dict[Any, dict[str, Any]]:
    """Run every way once; see that all find the same product and reduce one vector."""
    runs = {way: run(*way, survey, repeats) for way in ways}
    float32_vector = 4 * survey["ny"] * survey["nx"]
    for (size, _), found in runs.items():
        assert found["bytes"] == (float32_vector if size > 1 else 0)
        assert found["norm"] == pytest.approx(runs[ways[0]]["norm"], rel=1e-4)
    return runs


def summary(rounds: list[dict[Any, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return for each way its seconds and its speed-up over the first, by medians."""
    first = next(iter(rounds[0]))
    return [
        {
            "ranks": size,
            "threads": threads,
            "bytes_reduced_per_product": rounds[0][size, threads]["bytes"],
            "seconds": {
                name: statistics.median(runs[size, threads][name] for runs in rounds)
                for name in ("gradient", *KINDS)
            },
            "speed_up": {
                name: statistics.median(
                    runs[first][name] / runs[size, threads][name] for runs in rounds
                )
                for name in ("gradient", *KINDS)
            },
        }
        for size, threads in rounds[0]
    ]


def test_strong_scaling(benchmark):
    rounds = []
    benchmark.pedantic(lambda: rounds.append(measure(SURVEY, REPEATS)), rounds=ROUNDS)
    benchmark.extra_info["environment"]["threads"] = "as in the table"
    benchmark.extra_info.update(
        scaling=summary(rounds),
        survey=SURVEY,
        cores=os.cpu_count(),
        bytes_of_a_model_vector=4 * SURVEY["ny"] * SURVEY["nx"],
    )
