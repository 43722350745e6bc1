"""What the ranks of test_distributed.py run, each in a process of its own."""

import gc
import importlib
import logging
import os
import signal
import sys
import time
import weakref
from datetime import timedelta
from pathlib import Path
from unittest import mock

import torch
import waves

import hvpopt
from hvpopt import distributed
from hvpopt.fwi.hessian.waveforms import Waveforms

METHODS = {
    "quasi-newton": hvpopt.QuasiNewton,
    "trust-region": hvpopt.TrustRegionNewton,
}


def problem(seed, n_shots=7, dtype=torch.float64, *, shots_per_group=7, **options):
    """Return a misfit of a few small shots, and a start.

    All shots of a rank run together, in a fifth of the time that they take one by one.
    """
    options["shots_per_group"] = shots_per_group
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


def sample(seed, misfit, parts=2, shard=True):
    """Invert on samples, then on all shots; what is compared, and the samples' sizes.

    Args:
        seed: Of the problem.
        misfit: ``"l2"`` for encoded shots, ``"huber"`` for drawn ones.
        parts: Of the first samples; None for the default.
        shard: Run on ranks.
    """
    objective, start = problem(seed, misfit=misfit)
    objective = distributed.shard(objective) if shard else objective
    result = hvpopt.minimize(
        objective,
        start,
        method=hvpopt.StochasticQuasiNewton(size=parts),
        lower=1500.0,
        upper=2400.0,
        max_cost=5.0,
    )
    sizes = [record.sample for record in result.history]
    return result.x, result.fun, result.status.name, objective.counts.as_dict(), sizes


def evaluate(seed, shard=True, dtype=torch.float64, n_shots=7, costs=None, **options):
    """Evaluate everything once; numbers and vectors by name, the counts and the bytes."""
    options.setdefault("shots_per_group", None)
    misfit, start = problem(seed, n_shots, dtype, **options)
    objective = distributed.shard(misfit, costs=costs) if shard else misfit
    w = torch.randn(start.numel(), generator=torch.Generator().manual_seed(seed)).double()
    found = {"value": torch.tensor(objective.value(start)).double()}
    value, found["gradient"] = objective.value_and_gradient(start)
    found["value beside the gradient"] = torch.tensor(value).double()
    before = getattr(objective, "bytes_reduced", 0)
    operators = {
        "exact": objective.hessian(start),
        "gauss-newton": objective.hessian(start, "gauss-newton"),
        "sketch": objective.sketch(start, seed=3),
        "encoded": objective.sample(2, seed=5).hessian(start),
        "drawn": objective.draw(max(1, n_shots // 3), seed=7).hessian(start),
    }
    for name, operator in operators.items():
        found[f"{name} product"] = operator @ w
        found[f"{name} cost"] = torch.tensor(operator.cost)
        operator.close()
    reduced = getattr(objective, "bytes_reduced", 0) - before
    found["diagonal"] = hvpopt.fwi.gauss_newton_diagonal(objective, start).diagonal
    return found, costs_of(objective)[0], reduced / len(operators)


def weights(n_shots, n_receivers):
    """Return weights that differ from shot to shot and from receiver to receiver."""
    count = torch.arange(n_shots * n_receivers, dtype=torch.float64)
    return 1.0 + (count % 5).reshape(n_shots, n_receivers)


#: Data misfits that ranks normalise together; a function of some shots' weights.
MISFITS = {
    "l2": lambda _: "l2",
    "weighted": lambda weights: hvpopt.fwi.L2(trace_weights=weights),
    "huber": lambda _: "huber",
    "envelope": lambda _: "envelope",
    "correlation": lambda _: "normalised-correlation",
    "function": lambda _: lambda d, o: (d - o).pow(4).sum(),
}


def own_data(seed, misfit, shard=True):
    """Evaluate the misfit of data of which no rank sees those of other ranks' shots.

    Shots 2 and 5 have larger data, so that what normalises the others differs from what
    normalises all; they are dropped one after the other.

    Args:
        seed: Of the problem.
        misfit: A key of MISFITS.
        shard: Run on ranks. Otherwise the whole misfit on this process.
    """
    generator = torch.Generator().manual_seed(seed)
    survey = waves.survey(n_shots=7, dtype=torch.float64)
    (v_true,) = waves.models_of("scalar", generator, torch.float64)
    (start,) = waves.perturbed((v_true,), generator)
    data = survey.simulate(v_true)
    for shot in (2, 5):
        data[shot] *= shot
    of_all = weights(*data.shape[:2])
    if shard:
        shots = distributed.own_shots(survey.n_shots)
        objective = hvpopt.fwi.WaveformMisfit(
            survey.select(shots),
            data[shots].clone(),
            MISFITS[misfit](of_all[shots]),
            shots_per_group=7,
        )
        objective = distributed.shard(objective, survey=survey, shots=shots)
        data.fill_(torch.nan)
    else:
        objective = hvpopt.fwi.WaveformMisfit(
            survey, data, MISFITS[misfit](of_all), shots_per_group=7
        )
    w = torch.randn(start.numel(), generator=generator).double()
    found = {}
    for dropped in ("", "shot 5", "shot 2"):
        if dropped:
            objective = objective.without({dropped: "too large"})
        value, gradient = objective.value_and_gradient(start)
        found[f"value without {dropped}"] = torch.tensor(value)
        found[f"gradient without {dropped}"] = gradient
        for kind in ("exact", "gauss-newton"):
            product = objective.hessian(start, kind) @ w
            found[f"{kind} product without {dropped}"] = product
        found[f"sketch's product without {dropped}"] = objective.sketch(start) @ w
        if misfit == "l2":
            encoded = objective.sample(2, seed=3).hessian(start)
            found[f"encoded product without {dropped}"] = encoded @ w
    return found


def rows_held(seed):
    """Share out a misfit, and forget it; how many rows of the data this rank holds."""
    misfit, start = problem(seed)
    whole = weakref.ref(misfit.waveforms.observed["u"])
    sharded = distributed.shard(misfit)
    sharded.value(start)
    del misfit
    gc.collect()
    (rows,) = sharded.part.waveforms.observed.values()
    held = rows.untyped_storage().nbytes() // rows[0].nbytes
    return whole() is None, held, sharded.shots


def differ_in_shots(seed, how):
    """Let ranks have other shots or data than they must; the error."""
    misfit, _ = problem(seed)
    survey, data = misfit.survey, misfit.waveforms.observed["u"]
    shots = distributed.own_shots(7)
    other = distributed.rank() == 1
    try:
        if how == "data":
            data = data * (1 + other)
            distributed.shard(hvpopt.fwi.WaveformMisfit(survey, data))
        else:
            if how == "missing" and other:
                shots = shots[1:]
            if how == "twice" and other:
                shots = [0, *shots[1:]]
            own = hvpopt.fwi.WaveformMisfit(survey.select(shots), data[shots])
            if how == "counts" and other:
                shots = shots[1:]
            distributed.shard(own, survey=survey, shots=shots)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def meet_bad_shots(seed, cases):
    """Evaluate while shots are bad; the errors, and the misfits without the shots.

    Args:
        seed: Of the problem.
        cases: Bad shots and ``on_bad_shot``.
    """
    found = []
    for bad, on_bad_shot in cases:
        misfit, start = problem(seed, on_bad_shot=on_bad_shot, shots_per_group=1)
        objective = distributed.shard(misfit)
        w = torch.ones(start.numel(), dtype=torch.float64)
        with Spoilt(*bad):
            errors = [
                bad_shots(objective.value, start),
                bad_shots(objective.value_and_gradient, start),
                bad_shots(objective.hessian(start).matvec, w),
            ]
        left = None
        if parts := errors[0][1]:
            before = objective.counts.snapshot()
            other = objective.without(parts)
            value, gradient = other.value_and_gradient(start)
            product = other.hessian(start) @ w
            spent = (objective.counts - before).as_dict()
            left = torch.tensor(value), gradient, product, other.numbers, spent
            with Spoilt(4):
                errors.append(bad_shots(other.value, start))
            again = other.without(errors[-1][1])
            with Spoilt(5):
                errors.append(bad_shots(again.value, start))
        found.append((errors, left))
    return found


def bad_shots(call, argument):
    """Return what the error of a call says of bad shots."""
    try:
        call(argument)
    except hvpopt.fwi.BadShotError as error:
        return str(error), error.parts, error.shots
    return None


class Spoilt:
    """Makes the data of some shots NaN, wherever they run.

    Args:
        shots: Their numbers.
        after: Born passes, of any shots, before it begins.
    """

    def __init__(self, *shots, after=0):
        self.shots, self.left = shots, after
        self.patches = []

    def spoil(self, name):
        original = getattr(Waveforms, name)

        def call(waveforms, data, *args):
            self.left -= name == "derivatives"
            numbers = waveforms.shots.of(args[0 if name == "data_loss" else 1])
            if self.left <= 0 and waveforms.shots.unit == "shot":
                factor = torch.ones(len(numbers), 1, 1, dtype=torch.float64)
                for row, number in enumerate(numbers):
                    if number in self.shots:
                        factor[row] = torch.nan
                data = {channel: factor * d for channel, d in data.items()}
            return original(waveforms, data, *args)

        return call

    def __enter__(self):
        for name in ("data_loss", "derivatives"):
            self.patches.append(mock.patch.object(Waveforms, name, self.spoil(name)))
            self.patches[-1].start()

    def __exit__(self, *_):
        for patch in self.patches:
            patch.stop()


def shares_of_survey(seed, n_shots, costs=None, measure=False):
    """Share shots out; this rank's, and the costs."""
    misfit, start = problem(seed, n_shots)
    sharded = distributed.shard(misfit, start if measure else None, costs=costs)
    return sharded.shots, sharded.counts.as_dict()


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
