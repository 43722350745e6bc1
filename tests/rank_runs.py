"""What the ranks of test_distributed_runs.py run: whole inversions, saved and resumed."""

import os
import runpy
import signal
import sys
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import torch
from distributed_worker import Spoilt, problem
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import hvpopt
from hvpopt import distributed
from hvpopt.distributed import _exchange as exchange
from hvpopt.run import _files as files
from hvpopt.run.signals import acknowledge

BOUNDS = {"lower": 1500.0, "upper": 2400.0}
METHODS = {
    "quasi-newton": hvpopt.QuasiNewton,
    "trust-region": hvpopt.TrustRegionNewton,
}


def told(result, written):
    """Return what is compared of a result, and what this rank wrote."""
    records = [
        (r.iteration, r.value, r.counts.as_dict(), r.dropped) for r in result.history
    ]
    return (result.x, result.fun, result.status.name, records), written


def invert(seed, path=None, method="trust-region", ending=None, after=3, **options):
    """Invert, saving to a path; with an ``ending`` something happens on rank 1.

    Args:
        seed: Of the problem.
        path: Of the checkpoint and, with another suffix, of the history.
        method: A key of METHODS.
        ending: ``"late"`` (its clock leaps), ``"terminated"`` (SIGTERM) or a way of
            ``fail``, after some products.
        after: Products of rank 1 until that; each of three steps takes one at least.
        options: Of minimize, and ``misfit``: those of the misfit.
    """
    misfit, start = problem(seed, **options.pop("misfit", {}))
    sharded = distributed.shard(misfit)
    if ending is not None and distributed.rank() == min(1, distributed.size() - 1):
        end(sharded, ending, after)
    if ending == "late":
        options["max_seconds"] = 1e6
    written = []
    write = files.write

    def noting(file, *args, **kwargs):
        written.append(Path(file).name)
        write(file, *args, **kwargs)

    saving = {}
    if path is not None:
        history = Path(path).with_suffix(".jsonl")
        saving = {
            "checkpoint": path,
            "history_file": history,
            "checkpoint_seconds": 0.0,
        }
    options["method"] = METHODS[method]()
    with mock.patch.object(files, "write", noting):
        result = hvpopt.minimize(sharded, start, **BOUNDS, **options, **saving)
    acknowledge()  # the process may serve another test
    return told(result, written)


def end(sharded, how, after):
    """Let something happen on this rank after some of its products."""
    made = 0
    original = sharded.part.hessian

    def hessian(*args, **kwargs):
        operator = original(*args, **kwargs)
        matvec = operator.matvec

        def product(vector):
            nonlocal made
            made += 1
            if made == after:
                happen(how)
            return matvec(vector)

        operator.matvec = product
        return operator

    sharded.part.hessian = hessian


def happen(how):
    if how == "late":
        leap = time.monotonic() + 1e7
        mock.patch.object(time, "monotonic", return_value=leap).start()
    elif how == "terminated":
        os.kill(os.getpid(), signal.SIGTERM)
    elif how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        raise OSError("the disk of this rank is gone")


def lose(seed, cases, shard=True):
    """Invert while a shot is bad; what is left, and what this rank warned of."""
    found = []
    for shot, after, on_bad_shot in cases:
        # what is run of a group that fails is counted: one shot on each rank, and alone
        misfit, start = problem(seed, on_bad_shot=on_bad_shot, shots_per_group=1)
        objective = distributed.shard(misfit) if shard else misfit
        with warnings.catch_warnings(record=True) as warned, Spoilt(shot, after=after):
            if distributed.is_main():  # the session has quietened the others
                warnings.simplefilter("always", RuntimeWarning)
            try:
                result = hvpopt.minimize(
                    objective,
                    start,
                    method=hvpopt.TrustRegionNewton(max_products=4),
                    max_iter=3,
                    **BOUNDS,
                )
            except Exception as error:
                found.append((f"{type(error).__name__}: {error}", None, None))
                continue
        texts = [str(w.message) for w in warned if "is dropped" in str(w.message)]
        found.append((*told(result, []), texts))
    return found


def lose_in_trials(seed, shard=True):
    """Invert while a shot goes bad that no product meets: only trials do."""
    misfit, start = problem(seed, on_bad_shot="drop")
    objective = distributed.shard(misfit) if shard else misfit
    with ExitStack() as stack:

        def spoil(_, record):
            if record.iteration == 1:
                stack.enter_context(Spoilt(3))

        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", RuntimeWarning)
        method = hvpopt.QuasiNewton(globalisation=hvpopt.Backtracking(max_trials=6))
        options = {"method": method, "max_iter": 3, "callback": spoil}
        result = hvpopt.minimize(objective, start, **options, **BOUNDS)
    return told(result, [])


def lack_room(seed):
    """Let rank 1 find no memory for its second vector; what the others see, and when."""
    misfit, start = problem(seed, n_shots=3)
    sharded = distributed.shard(misfit)
    begun, calls = exchange._Buffers.__init__, 0

    def full(*args):
        nonlocal calls
        calls += 1
        if distributed.rank() == 1 and calls == 2:
            raise MemoryError("no room for it")
        begun(*args)

    began = time.monotonic()
    with mock.patch.object(exchange._Buffers, "__init__", full):
        try:
            for _ in range(3):
                sharded.value_and_gradient(start)
        except distributed.RankError as error:
            return str(error), time.monotonic() - began
    return None


def live(seed, folder):
    """Invert with a checkpoint, and end in the first two lives of these ranks.

    Rank 1 raises in the first and is killed in the second; the third goes on to the end.

    Args:
        seed: Of the problem.
        folder: Of the checkpoint and of what each rank tells.
    """
    torch.set_num_threads(1)
    number = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    path = folder / "run.safetensors"
    there = path.exists()
    with distributed.session(timeout=20):
        # two products are saved when the third fails, and one at least is left to make
        ending, after = (("raised", 3), ("killed", 1), (None, 0))[number]
        (x, _, status, _), _ = invert(seed, path, ending=ending, after=after, max_iter=3)
        name = f"{distributed.rank()} in life {number}"
        (folder / name).write_text(f"state {there}: {status}")
        if distributed.is_main():
            torch.save(x, folder / "model.pt")


def under_torchrun(out, restarts, function, *arguments):
    """Run a function on two ranks under torchrun's agent.

    The ranks are forked from this process, which has imported everything; the agent and
    what it tells them are those of the command with ``--standalone``.

    Args:
        out: The file of what the agent and the ranks write.
        restarts: How often the ranks may be started again.
        function: What each rank runs.
        arguments: Of the function.
    """
    descriptor = os.open(out, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="fork",
        max_restarts=restarts,
    )
    elastic_launch(config, function)(*arguments)


def run_script(script, *arguments):
    """Run a script as ``python script arguments`` does, in this process."""
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
