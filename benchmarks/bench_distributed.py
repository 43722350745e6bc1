"""Strong scaling: the same product and gradient on 1, 2 and 4 ranks of one thread each.

    python benchmarks/bench_distributed.py            # writes distributed.json, a table
    python benchmarks/bench_distributed.py --smoke    # a second, to see that it runs

Beside them runs one process with as many threads as there are ranks. All run one after
the other in each round, so that a drift of the machine's speed falls on all of them, and
the ratios are medians over rounds. Ranks beyond the machine's cores say nothing of
scaling and are marked.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepwave
import torch

import hvpopt
from hvpopt import distributed

RANKS = (1, 2, 4)
ROUNDS = 5
RESULTS = Path(__file__).with_name("distributed.json")


def problem(
    cells: tuple[int, int], n_shots: int, steps: int
) -> tuple[hvpopt.fwi.WaveformMisfit, torch.Tensor]:
    """Return a surface survey's misfit and a start, m/s, float32."""
    ny, nx = cells
    depth = torch.linspace(1500, 2500, ny)
    start = depth[:, None].expand(cells).contiguous()
    v_true = start.clone()
    v_true[ny // 2 :] += 200
    wavelet = deepwave.wavelets.ricker(10.0, steps, 0.001, 0.1)
    sources = torch.full((n_shots, 1, 2), 2)
    sources[:, 0, 1] = torch.linspace(5, nx - 6, n_shots).long()
    receivers = torch.full((n_shots, nx - 10, 2), 2)
    receivers[:, :, 1] = torch.arange(5, nx - 5)
    survey = hvpopt.fwi.Survey(
        "scalar",
        grid_spacing=10.0,
        dt=0.001,
        sources={"u": (wavelet.repeat(n_shots, 1, 1), sources)},
        receivers={"u": receivers},
        max_vel=3000.0,
        pml_freq=10.0,
    )
    return hvpopt.fwi.WaveformMisfit(survey, survey.simulate(v_true)), start


def timed(objective: Any, start: torch.Tensor, repeats: int) -> dict[str, float]:
    """Return the least seconds of a gradient and of each kind of product."""
    vector = torch.ones(start.numel(), dtype=torch.float64)
    operators = {
        "exact product": objective.hessian(start),
        "Gauss-Newton product": objective.hessian(start, "gauss-newton"),
    }
    calls = {
        "gradient": lambda: objective.value_and_gradient(start),
        **{
            name: lambda operator=operator: operator.matvec(vector)
            for name, operator in operators.items()
        },
    }
    found = {}
    for name, call in calls.items():
        call()
        seconds = []
        for _ in range(repeats):
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
        found[name] = min(seconds)
    before = getattr(objective, "bytes_reduced", 0)
    operators["exact product"].matvec(vector)
    found["bytes"] = getattr(objective, "bytes_reduced", 0) - before
    return found


def work(rank: int, size: int, threads: int, folder: str, options: dict) -> None:
    """Time one rank and leave what it found in a file."""
    torch.set_num_threads(threads)
    if size > 1:
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=300),
        )
    repeats = options.pop("repeats")
    with distributed.session(300):
        misfit, start = problem(**options)
        found = timed(distributed.shard(misfit), start, repeats)
    if size > 1:
        torch.distributed.destroy_process_group()
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


def run(size: int, threads: int, options: dict) -> dict[str, float]:
    """Time a number of ranks of some threads each; what the slowest rank took."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=work, args=(r, size, threads, folder, dict(options)))
            for r in range(size)
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


def measure(options: dict, rounds: int) -> dict[str, Any]:
    """Run every number of ranks, and threads instead of ranks, in each round."""
    ways = [(size, 1) for size in RANKS] + [(1, size) for size in RANKS[1:]]
    runs: dict[tuple[int, int], list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            runs[way].append(run(*way, options))
    names = [name for name in runs[ways[0]][0] if name != "bytes"]
    rows = [
        {
            "ranks": size,
            "threads": threads,
            "cores": os.cpu_count(),
            "bytes reduced in a product": runs[size, threads][0]["bytes"],
            **{
                name: {
                    "seconds": statistics.median(r[name] for r in runs[size, threads]),
                    "speed-up": statistics.median(
                        one[name] / r[name]
                        for one, r in zip(runs[1, 1], runs[size, threads], strict=True)
                    ),
                }
                for name in names
            },
        }
        for size, threads in ways
    ]
    return {"problem": options, "rounds": rounds, "rows": rows}


def table(result: dict[str, Any]) -> str:
    """Return the rows as Markdown."""
    names = [name for name, cell in result["rows"][0].items() if isinstance(cell, dict)]
    lines = [
        "| ranks | threads each | " + " | ".join(f"{n}, speed-up" for n in names) + " |",
        "|--:|--:|" + "--:|" * len(names),
    ]
    for row in result["rows"]:
        cells = [
            f"{row[name]['seconds']:.3g} s, {row[name]['speed-up']:.2f}" for name in names
        ]
        many = row["ranks"] * row["threads"] > row["cores"]
        mark = " (more than cores)" if many else ""
        lines.append(
            f"| {row['ranks']}{mark} | {row['threads']} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, and write the JSON unless this is a smoke test."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="tiny; writes nothing")
    if parser.parse_args().smoke:
        options = {"cells": (20, 40), "n_shots": 4, "steps": 50, "repeats": 1}
        print(table(measure(options, 1)))
        return
    options = {"cells": (100, 200), "n_shots": 8, "steps": 300, "repeats": 3}
    result = measure(options, ROUNDS)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
