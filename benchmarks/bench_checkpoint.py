"""What saving a run costs, in iterations of the same run.

A survey of the size of Marmousi on 30 m cells: 100 × 310 cells, 12 surface shots, a
Ricker wavelet of 4 Hz, 4 s recorded, float32. A run saves once after each step, and
within a step when the last save is a minute old; besides, it keeps the products of the
step under way, each with a hash of its vector. Both are timed inside real runs.

Files are written to pytest's temporary folder, whose file system is noted: on a disk a
save waits for the disk, in memory it would not. ``--basetemp`` chooses another place.
"""

from __future__ import annotations

import functools
import inspect
import os
import statistics
import time
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from race_setup import below, row_of_points, smooth, spread, survey_of

import hvpopt
from hvpopt.operators.symmetric import SymmetricOperator
from hvpopt.run import _checkpoint as checkpoints
from hvpopt.run import _files as files
from hvpopt.run._checkpoint import Checkpoint, load
from hvpopt.run._saved_products import SavedProducts
from hvpopt.run._state import RunState

WATER = 8  # rows
FULL = {"cells": (100, 310), "n_shots": 12, "recorded": 4.0}
#: The same state with cheaper waves, so that many iterations can be afforded.
SHORT = {"cells": (100, 310), "n_shots": 4, "recorded": 0.75}
PAIRS, MOST_PAIRS = 20, hvpopt.QuasiNewton().memory
MOST_PRODUCTS = hvpopt.TrustRegionNewton().max_products
EVERY_SECONDS = (
    inspect.signature(hvpopt.minimize).parameters["checkpoint_seconds"].default
)
#: Largest share of an iteration that saving may take.
SHARE = 0.02

#: Parts of a save: who does it, and what it is called in the table.
SAVING = (
    (Checkpoint, "after_step", "the rest"),
    (Checkpoint, "within_step", "the rest"),
    (Checkpoint, "finish", "the rest"),
    (Checkpoint, "save", "the rest"),
    (RunState, "unusable", "check"),
    (checkpoints, "encode", "copy"),
    (files, "checksum", "SHA-256"),
    (files, "save_tensors", "write"),
    (os, "fsync", "sync"),
)
#: What keeps and hashes products; and what it has to wait for.
RECORDING = [(SavedProducts, "matvec", "recording")]
WAVES = [
    (hvpopt.fwi.WaveformMisfit, name, "waves")
    for name in ("value", "linearise", "hessian", "sketch")
] + [(SymmetricOperator, name, "waves") for name in ("matvec", "matmat")]


class Stopwatch:
    """Seconds by label; of calls within calls, each counts for its own label alone."""

    def __init__(self, patch: pytest.MonkeyPatch, *watched: Any) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner: list[float] = []
        for owner, name, label in watched:
            patch.setattr(owner, name, self._timed(getattr(owner, name), label))

    def _timed(self, function: Any, label: str) -> Any:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            self._inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                whole = time.perf_counter() - began
                self.seconds[label] += whole - self._inner.pop()
                if self._inner:
                    self._inner[-1] += whole

        return timed

    @property
    def saving(self) -> float:
        """Seconds of all parts of saving."""
        return sum(self.seconds[label] for label in {label for *_, label in SAVING})


# -- the problem ------------------------------------------------------------------------


def layers(ny: int, nx: int) -> torch.Tensor:
    """Return bent layers that grow faster with depth, under water, m/s."""
    depth = torch.arange(ny)[:, None].float() - WATER
    bed = depth - 3 * torch.sin(2 * torch.pi * torch.arange(nx) / 60)
    v = 1700 + 30 * depth + 150 * torch.sign(torch.sin(bed / 4))
    v[:WATER] = 1500
    return v


def inversion(
    cells: tuple[int, int], n_shots: int, recorded: float
) -> tuple[hvpopt.fwi.WaveformMisfit, torch.Tensor, dict[str, Any]]:
    """Return a misfit, a start, m/s, and the options of ``minimize``."""
    ny, nx = cells
    true = layers(ny, nx)
    survey = survey_of(
        "scalar",
        row_of_points(1, spread(6, nx - 7, n_shots)),
        row_of_points(1, torch.arange(0, nx, 2)),
        dx=30.0,
        dt=0.004,
        seconds=recorded,
        frequency=4.0,
        max_vel=6300.0,
    )
    misfit = hvpopt.fwi.WaveformMisfit(survey, survey.simulate(true))
    options = {
        "scale": 300.0,
        "mask": below(true, WATER),
        "lower": 1400.0,
        "upper": 6200.0,
    }
    return misfit, smooth(true, WATER, 6.0), options


def run(problem: Any, watch: Stopwatch | None = None, **options: Any) -> list[Any]:
    """Minimise; return for each iteration its seconds, those of saving and recording."""
    misfit, start, given = problem
    marks = []

    def mark(*_: Any) -> None:
        spent = (watch.saving, watch.seconds["recording"]) if watch else (0.0, 0.0)
        marks.append((time.perf_counter(), *spent))

    result = hvpopt.minimize(misfit, start, callback=mark, gtol=0.0, **given, **options)
    assert result.status is hvpopt.Status.MAX_ITERATIONS, result.message
    return [
        tuple(b - a for a, b in zip(before, after, strict=True))
        for before, after in pairwise(marks)
    ]


def watched_run(problem: Any, path: Path, **options: Any) -> dict[str, Any]:
    """Run with a checkpoint; return what its iterations took, and saving's share."""
    with pytest.MonkeyPatch.context() as patch:
        watch = Stopwatch(patch, *SAVING, *RECORDING, *WAVES)
        rows = run(problem, watch, checkpoint=path, **options)
    own = [seconds - saving - recording for seconds, saving, recording in rows]
    return {
        "iteration_seconds": statistics.median(own),
        "saving_seconds": statistics.median(saving for _, saving, _ in rows),
        "recording_seconds": statistics.median(recording for *_, recording in rows),
        "share": statistics.median(
            (saving + recording) / rest
            for (_, saving, recording), rest in zip(rows, own, strict=True)
        ),
        "unknowns": int(problem[2]["mask"].sum()),
        "threads": torch.get_num_threads(),
        "file_system": file_system(path.parent),
    }


def saves(path: Path, problem: Any, state: RunState, rounds: int) -> dict[str, Any]:
    """Save a state some times; return seconds, by medians, and bytes."""
    saver = Checkpoint(path, problem)
    saver.save(state)
    whole, parts = [], []
    for _ in range(rounds):
        with pytest.MonkeyPatch.context() as patch:
            watch = Stopwatch(patch, *SAVING)
            saver.save(state)
        whole.append(watch.saving)
        parts.append(watch.seconds)
    return {
        "bytes": path.stat().st_size,
        "seconds": statistics.median(whole),
        "worst_seconds": max(whole),
        "parts": {name: statistics.median(p[name] for p in parts) for name in parts[0]},
    }


def file_system(folder: Path) -> str:
    """Return the type of the file system that holds a folder; empty if unknown."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return ""
    lines = [line.split() for line in mounts.read_text().splitlines()]
    held = [(len(at), kind) for _, at, kind, *_ in lines if folder.is_relative_to(at)]
    return max(held)[1] if held else ""


# -- what is measured -------------------------------------------------------------------


def quasi_newton(
    folder: Path,
    full: dict[str, Any],
    short: dict[str, Any],
    *,
    iterations: int = 3,
    pairs: int = PAIRS,
    rounds: int = 9,
) -> dict[str, Any]:
    """Measure ``QuasiNewton``, whose state grows by a pair of vectors each step.

    Whole iterations are those of the full survey. The state with many pairs comes from
    the short one, which has the same cells; there runs with and without a checkpoint
    alternate, which take the same steps, so that each iteration is compared with itself:
    the faster of two with against the faster of two without.
    """
    # of all shots: the default would step on samples
    options = {"method": hvpopt.QuasiNewton()}
    found = watched_run(
        inversion(**full), folder / "full", max_iter=iterations, **options
    )
    problem, seconds = inversion(**short), {True: [], False: []}
    for turn in range(4):
        with_checkpoint = turn in (1, 2)  # a drift of the machine's speed cancels
        path = folder / f"short {turn}" if with_checkpoint else None
        rows = run(problem, max_iter=pairs + 2, checkpoint=path, **options)
        seconds[with_checkpoint].append([whole for whole, *_ in rows])
    given, state, _ = load(folder / "short 2")
    method = state.method
    assert len(method.pairs) >= pairs
    held = {
        str(pairs): method.pairs[-pairs:],
        # contents do not matter to the seconds
        str(MOST_PAIRS): (method.pairs * MOST_PAIRS)[:MOST_PAIRS],
    }
    found["saves"] = {
        name: saves(
            folder / name,
            given,
            replace(state, method=replace(method, pairs=kept)),
            rounds,
        )
        for name, kept in held.items()
    }
    for row in found["saves"].values():
        spent = row["seconds"] + found["recording_seconds"]
        row["share"] = spent / found["iteration_seconds"]
    least = {
        way: [min(twice) for twice in zip(*rows, strict=True)]
        for way, rows in seconds.items()
    }
    added = [a - b for a, b in zip(least[True], least[False], strict=True)]
    found["alternated"] = {
        "added_seconds": statistics.median(added),
        "quartiles": statistics.quantiles(added)[::2],
        "iteration_seconds": statistics.median(least[False]),
        "share": statistics.median(added) / found["iteration_seconds"],
    }
    return found


def trust_region(
    folder: Path,
    full: dict[str, Any],
    *,
    products: int = 6,
    seconds: float = 15.0,
    rounds: int = 5,
) -> dict[str, Any]:
    """Measure one iteration of ``TrustRegionNewton``, whose products are kept and saved.

    It saves within the step every ``seconds``, more often than by default. The share of
    the longest step, whose products are all in the file, is that of one save in the
    default time between two.
    """
    path, problem = folder / "run", inversion(**full)
    found = watched_run(
        problem,
        path,
        # a tolerance that takes all of the products
        method=hvpopt.TrustRegionNewton(tol=1e-6, max_products=products),
        max_iter=1,
        checkpoint_seconds=seconds,
    )
    assert problem[0].counts.products == products
    # the last save before the one that ends the step
    given, state, _ = load(files.previous(path))
    kept = state.products
    assert kept
    longest = replace(state, products=(kept * MOST_PRODUCTS)[:MOST_PRODUCTS])
    found["products"] = products
    found["checkpoint_seconds"] = seconds
    found["saves"] = {
        str(len(kept)): saves(folder / "kept", given, state, rounds),
        str(MOST_PRODUCTS): saves(folder / "longest", given, longest, rounds),
    }
    for row in found["saves"].values():
        row["share"] = row["seconds"] / EVERY_SECONDS
    return found


def test_quasi_newton(benchmark, tmp_path):
    found = benchmark.pedantic(quasi_newton, (tmp_path, FULL, SHORT), rounds=1)
    benchmark.extra_info.update(pairs=found, full=FULL, short=SHORT)
    assert found["share"] < SHARE
    assert found["alternated"]["share"] < SHARE
    assert all(row["share"] < SHARE for row in found["saves"].values())


def test_trust_region(benchmark, tmp_path):
    found = benchmark.pedantic(trust_region, (tmp_path, FULL), rounds=1)
    benchmark.extra_info.update(products=found, every_seconds=EVERY_SECONDS)
    assert found["share"] < SHARE
    assert all(row["share"] < SHARE for row in found["saves"].values())
