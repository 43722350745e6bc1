"""The runs that the faults are done to, and child processes to do them in."""

import functools
import math
import os
import resource
import signal
from pathlib import Path

import torch

import hvpopt
from hvpopt.krylov.diagonal import estimate_diagonal

torch.set_num_threads(1)

#: A few of each fault in seconds, or all of them.
LONG = os.environ.get("HVPOPT_FAULTS") == "long"


def loss(x):
    # coupled, indefinite at the start, and a few dozen steps long
    rosenbrock = 10 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2
    return rosenbrock.sum() + 0.1 * torch.cos(3 * x).sum()


def start():
    return torch.tensor([-1.2, 1.0, 0.3, -0.4] * 6, dtype=torch.float64)


METHODS = {
    "trust region": hvpopt.TrustRegionNewton,
    "shifted": hvpopt.ShiftedNewton,
    "conjugate gradients": lambda: hvpopt.ShiftedNewton(solver="cg"),
    "line search": lambda: hvpopt.LineSearchNewton(
        memory=3, preconditioner=lambda _, point: probed(point), refresh=4
    ),
    "quasi-Newton": hvpopt.QuasiNewton,
}


def probed(point):
    diagonal = estimate_diagonal(point.hessian, n_probes=4)
    return hvpopt.DiagonalPreconditioner(diagonal.abs())


@functools.cache
def whole(name):
    """Return the result of a run that nothing interrupts; made once in a process."""
    return hvpopt.minimize(loss, start(), method=METHODS[name]())


def begin_or_resume(name, path, **options):
    """Go on from the state at a path if there is one, else begin."""
    return hvpopt.minimize(
        loss, start(), method=METHODS[name](), checkpoint=path, **options
    )


def run_to_the_end(name, folder, begun=None, file_size=None):
    """Run in a child process, saving after each evaluation; leave the model behind."""
    folder = Path(folder)
    if begun is not None:
        begun.set()
    if file_size is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    result = begin_or_resume(
        name,
        folder / "state",
        checkpoint_seconds=0.0,
        history_file=folder / "history.jsonl",
    )
    if file_size is not None:
        assert result.success, result.message
        assert torch.equal(result.x, whole(name).x)
        os._exit(0 if not (folder / "state").exists() else 1)
    torch.save({"x": result.x, "nit": result.nit}, folder / "done")


def kill_after(process, begun, delay):
    """Start a process, kill it a delay after it began; False if it ended by itself."""
    begun.clear()
    process.start()
    assert begun.wait(120.0)
    process.join(delay)
    alive = process.is_alive()
    if alive:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


def log_uniform(random, low, high):
    return math.exp(random.uniform(math.log(low), math.log(high)))
