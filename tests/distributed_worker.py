"""What the ranks of test_distributed.py run, each in a process of its own."""

import importlib
import logging
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import waves

import hvpopt
from hvpopt import distributed

METHODS = {
    "quasi-newton": hvpopt.QuasiNewton,
    "trust-region": hvpopt.TrustRegionNewton,
}


def problem(seed, n_shots=7, dtype=torch.float64, **options):
    """Return a misfit of a few small shots, and a start."""
    generator = torch.Generator().manual_seed(seed)
    survey = waves.survey(n_shots=n_shots, dtype=dtype)
    (v_true,) = waves.models_of("scalar", generator, dtype)
    misfit = hvpopt.fwi.WaveformMisfit(survey, survey.simulate(v_true), **options)
    (start,) = waves.perturbed((v_true,), generator)
    return misfit, start


def costs_of(objective):
    return objective.counts.as_dict(), getattr(objective, "bytes_reduced", 0)


def invert(seed, method, shard=True, max_iter=3, **options):
    """Invert; the model, the counts and the bytes reduced."""
    misfit, start = problem(seed, **options)
    objective = distributed.shard(misfit) if shard else misfit
    result = hvpopt.minimize(
        objective,
        start,
        method=METHODS[method](),
        max_iter=max_iter,
        lower=1500.0,
        upper=2400.0,
    )
    return result.x, result.fun, result.status.name, *costs_of(objective)


def evaluate(seed, shard=True, dtype=torch.float64, n_shots=7, costs=None, **options):
    """Evaluate everything once; numbers and vectors by name, the counts and the bytes."""
    misfit, start = problem(seed, n_shots, dtype, **options)
    objective = distributed.shard(misfit, costs=costs) if shard else misfit
    w = torch.randn(start.numel(), generator=torch.Generator().manual_seed(seed)).double()
    found = {"value": torch.tensor(objective.value(start)).double()}
    value, found["gradient"] = objective.value_and_gradient(start)
    found["value beside the gradient"] = torch.tensor(value).double()
    before = getattr(objective, "bytes_reduced", 0)
    some = list(range(n_shots))[: max(1, n_shots // 3)]
    operators = {
        "exact": objective.hessian(start),
        "gauss-newton": objective.hessian(start, "gauss-newton"),
        "sketch": objective.sketch(start, seed=3),
        "encoded": objective.encoded_hessian(start, "exact", 2, seed=5),
        "some shots": objective.hessian(start, shots=some),
    }
    for name, operator in operators.items():
        found[f"{name} product"] = operator @ w
        found[f"{name} cost"] = torch.tensor(operator.cost)
        operator.close()
    reduced = getattr(objective, "bytes_reduced", 0) - before
    found["diagonal"] = hvpopt.fwi.gauss_newton_diagonal(objective, start).diagonal
    return found, costs_of(objective)[0], reduced / len(operators)


def shares_of_survey(seed, n_shots, costs=None, measure=False):
    """Share shots out; this rank's, and the costs."""
    misfit, start = problem(seed, n_shots)
    sharded = distributed.shard(misfit, start if measure else None, costs=costs)
    return sharded.shots, sharded.costs, sharded.counts.as_dict()


def fail(seed, how, when="product", minimised=True, max_iter=50):
    """Let rank 1 fail after its second product; what the others then see."""
    misfit, start = problem(seed)
    sharded = distributed.shard(misfit)
    if distributed.rank() == 1:
        _break(sharded, how, when)
    began = time.monotonic()
    try:
        if minimised:
            method = hvpopt.TrustRegionNewton()
            found = hvpopt.minimize(sharded, start, method=method, max_iter=max_iter)
            seen = found.status.name, found.message, [r.trials for r in found.history]
        else:
            operator = sharded.hessian(start)
            for _ in range(4):
                operator.matvec(torch.ones(start.numel(), dtype=torch.float64))
            seen = "none", "", []
    except Exception as error:
        seen = type(error).__name__, str(error), getattr(error, "ranks", None)
    return seen, time.monotonic() - began


def _break(sharded, how, when):
    calls = 0
    name = {"product": "hessian", "value": "value"}[when]
    original = getattr(sharded.part, name)

    def work():
        nonlocal calls
        calls += 1
        if calls < 3:
            return
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "sleep":
            time.sleep(6)
        elif how == "interrupt":
            raise KeyboardInterrupt
        elif how == "refuse":
            if calls == 3:
                raise FloatingPointError("these waves overflow")
        else:
            raise OSError("the disk of this rank is gone")

    def broken(*args, **kwargs):
        made = original(*args, **kwargs)
        if when == "value":
            work()
            return made
        matvec = made.matvec

        def product(vector):
            work()
            return matvec(vector)

        made.matvec = product
        return made

    setattr(sharded.part, name, broken)


def differ(seed, what):
    """Let rank 1 hold something else; the ranks that the error names."""
    misfit, start = problem(seed)
    sharded = distributed.shard(misfit)
    other = distributed.rank() == 1
    if what == "model" and other:
        start.view(-1)[5] *= 1 + 1e-15
    parted = what == "evaluation" and other
    call = sharded.value_and_gradient if parted else sharded.value
    try:
        if what == "vector":
            vector = torch.ones(start.numel(), dtype=torch.float64)
            vector[7] += other * 1e-15
            sharded.hessian(start).matvec(vector)
        elif what == "end" and other:
            return None
        else:
            call(start)
    except distributed.RankError as error:
        return error.ranks, str(error)
    return None


def refuse(seed):
    """Offer a model that every rank's propagator refuses; the error, and one more sum."""
    misfit, start = problem(seed)
    sharded = distributed.shard(misfit)
    try:
        sharded.value(start * 10)
    except ValueError as error:
        return str(error), sharded.value(start)
    return None


def look_around(seed):  # noqa: ARG001 - every task has one
    """Return who this rank is, what it logs, and what all decide."""
    level = logging.getLogger("hvpopt").getEffectiveLevel()
    return (
        distributed.rank(),
        distributed.size(),
        distributed.is_main(),
        level,
        distributed.any_rank(distributed.rank() == 1),
        distributed.any_rank(False),
        str(distributed.device()),
    )


def raise_outside(seed):
    """Let rank 1 raise between evaluations."""
    misfit, start = problem(seed)
    sharded = distributed.shard(misfit)
    for _ in range(3):
        sharded.value(start)
        if distributed.rank() == 1:
            raise OSError("no room for a picture")


def main(task, rank, size, folder, timeout, options):
    """Join the others, run a task, and leave what it returned in a file."""
    torch.set_num_threads(1)
    # the parent reads what matters from the files
    sys.stderr = Path(folder, f"{rank}.err").open("w")  # noqa: SIM115
    if size > 1:
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout),
        )
    with distributed.session(timeout):
        module, _, name = task.rpartition(".")
        tasks = vars(importlib.import_module(module)) if module else globals()
        torch.save(tasks[name](**options), Path(folder, f"{rank}.pt"))
    torch.save(True, Path(folder, f"{rank}.left"))
