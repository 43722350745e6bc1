"""minimize: the door of the outer loop."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from tqdm import tqdm

from hvpopt import checks
from hvpopt.errors import BadPartError, StateError
from hvpopt.methods.default import default_method, gradients_alone
from hvpopt.methods.method import Method, checked_method
from hvpopt.model.space import ModelSpace, PerParameter
from hvpopt.model.tensors import Model, copy_model, warn_of_hooks
from hvpopt.problem.objective import Objective
from hvpopt.problem.processes import Processes
from hvpopt.problem.torch_objective import as_objective
from hvpopt.run._checkpoint import Checkpoint, check_apart, check_checkpoint, load
from hvpopt.run._files import previous, sweep
from hvpopt.run._fingerprint import (
    DROPPED,
    VALUE,
    check_same,
    check_same_value,
    fingerprint,
)
from hvpopt.run._limits import Limits, Watch
from hvpopt.run._lock import PathLock
from hvpopt.run._loop import Callback, Run, Stage
from hvpopt.run._state import RunState
from hvpopt.run.history import HistoryFile
from hvpopt.run.result import IterationRecord, MinimizeResult
from hvpopt.run.signals import SignalListener

logger = logging.getLogger(__name__)

Loss: TypeAlias = Objective | Callable[..., Tensor]


def minimize(
    loss: Loss | Sequence[Loss],
    model: Model,
    *,
    method: Method | None = None,
    scale: PerParameter = None,
    mask: PerParameter = None,
    lower: PerParameter = None,
    upper: PerParameter = None,
    max_iter: int | Sequence[int] = 100,
    max_products: float | Sequence[float] = math.inf,
    max_seconds: float = math.inf,
    gtol: float | Sequence[float] = 1e-6,
    certify: bool = False,
    callback: Callback | None = None,
    progress: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1,
    checkpoint_seconds: float = 60.0,
    history_file: str | os.PathLike[str] | None = None,
) -> MinimizeResult:
    """Minimise a scalar function of a model.

    Args:
        loss: An Objective, or any scalar torch function called as the model is
            arranged: ``loss(t)``, ``loss(a, b)`` or ``loss(vp=a, vs=b)``. Or a list of
            them, the stages of a run (say, of rising frequency): each is minimised from
            where the one before ended, with what the method has learnt.
        model: The start: a tensor, a tuple or a dict of tensors. Not changed. Hooks on it
            are ignored, with a warning.
        method: How to step. Default ``QuasiNewton()`` for an objective with a
            Gauss-Newton matrix, such as a waveform misfit, else ``TrustRegionNewton()``.
            A loss that turns out at the first step to have no second derivative is
            minimised by ``QuasiNewton(initial=GradientScale())``, with a warning.
        scale: Size of one unit of each parameter; see ModelSpace.
        mask: True where cells may change; see ModelSpace.
        lower: Lower bounds, scalars or tensors; see ModelSpace. No iterate and no trial
            breaks them.
        upper: Upper bounds, likewise.
        max_iter: Steps of a stage at most: one number, or a list with one for each stage
            of a list of losses. Default 100.
        max_products: Hessian-vector products of a stage at most, a number or a list. The
            last step may be cut short. A method that needs none goes on without. Default
            no limit.
        max_seconds: Seconds of this process at most, for all stages together; looked at
            between products. Default no limit.
        gtol: Converged when the norm of the projected gradient is at most ``gtol``
            times the largest met so far, and the next step would change no parameter by
            more than ``gtol`` of its size (or promises less than the rounding of the
            loss). The message states both numbers. The largest is that of the stage, and
            where a shot was dropped that since. A number or a list. Default 1e-6.
            (scipy's BFGS asks for an absolute 1e-5 of the gradient alone, its L-BFGS-B
            for that or for a relative fall of 2e-9 of the loss; optimistix for small
            changes of both loss and model.)
        certify: Certify that the Hessian has no negative eigenvalue before a point is
            called converged, and leave it where there is one. The price is up to the
            method's ``max_products`` exact products each time. Default False: methods
            that use the exact Hessian of a plain loss look at λ_min with no more
            products than half of what the run has evaluated; QuasiNewton, whose
            curvature is positive by construction, and waveform misfits do not look,
            unless no step was taken at all. The message says which.
        callback: Called with the model and its record after the start and each step.
            Returning a true value, or raising StopIteration, ends the run.
        progress: Show a tqdm bar with loss and gradient.
        checkpoint: File that the run is saved to: after steps, and within them as far as
            their products have come. Where it exists, the run goes on from it: on the
            same machine and number of threads the iterates are, bit by bit, those of a
            run that was never interrupted. Loss, model, method and options are those of
            the saved run, or refused; limits and callbacks may be others (``max_iter``
            counts the steps before too). The state before stays beside it as
            ``NAME.previous``. With a checkpoint, a limit of seconds ends the run within a
            step, early enough to save, instead of cutting the step short; and the
            products of the step under way stay in memory, as much again as a Lanczos
            basis takes. Its directory must exist. As long as the run goes,
            ``NAME.lock`` keeps other runs from the path; a process that is killed leaves
            it unlocked. Where a save fails, a warning says so and the run goes on; the
            message of the result says what was saved last. Default none.
        checkpoint_every: Steps between saves. A save is synced to disk: where steps are
            quick, take more of them. Default 1.
        checkpoint_seconds: Within a step, save between products when this long has
            passed since the last save. Default 60.
        history_file: File of JSON lines that grows by one record at each step. What is
            there is replaced; where a run goes on, its lines stay. Default none.

    Returns:
        The best model and the history. A run that meets a limit, fails after its first
        step, or gets SIGINT or SIGTERM returns too, and says why; after a signal as soon
        as the product under way is done, and at a second SIGINT at once. What a callback
        raises is raised.

        A signal ends the run under way, the outer ones of a run in a callback included,
        and then reaches the script, which keeps the result. A handler of the script's own
        is called as the run returns. With Python's own handlers SIGTERM ends the process,
        and a second SIGINT (in the same run or a later one) raises KeyboardInterrupt, as
        soon as the script begins another run; so does what its own handler raises. A
        script with several runs therefore does not go on with the others. One that is
        to go on after SIGTERM calls ``hvpopt.run.signals.acknowledge()`` first. A
        first SIGINT ends one run alone, whose ``status`` is ``Status.INTERRUPTED``; in
        an interactive session any SIGINT does. Between runs signals are the script's.

        Evaluations that other threads make of the same loss at the same time, and those
        of another run in the callback, are neither counted nor limited here.

    Raises:
        TypeError: For a model, loss, method or option of the wrong type, or a method
            whose state cannot be saved where a checkpoint is asked for.
        ValueError: For a loss that is not scalar, not finite at the start, ignores a
            parameter or changes from call to call; for bounds, scales or masks that do
            not fit; for limits out of range; for a history that is the checkpoint's file.
        SecondOrderError: For a loss without second derivative and a method that needs
            products.
        hvpopt.run.state_tree.StateError: If the checkpoint is of another problem, method
            or version, is not finite, or is damaged together with the one before it. If
            the last one alone is damaged, a warning is logged and the run goes on from
            the one before.
        FileNotFoundError: If the checkpoint's directory does not exist.
        BlockingIOError: If another run, which is named, saves to the checkpoint's path.
        OSError: If the checkpoint's directory cannot be written.

    Example:
        >>> import torch, hvpopt
        >>> x = torch.tensor([-1.2, 1.0], dtype=torch.float64)
        >>> f = lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
        >>> hvpopt.minimize(f, x).x
        tensor([1.0000, 1.0000], dtype=torch.float64)
    """
    losses = loss if isinstance(loss, (list, tuple)) else [loss]
    if not losses:
        raise ValueError("the list of losses is empty; give one for each stage")
    each = {"max_iter": max_iter, "max_products": max_products, "gtol": gtol}
    stages = [
        Stage(
            as_objective(one),
            Limits(max_seconds=max_seconds, certify=certify, **options),
        )
        for one, options in zip(losses, _by_stage(each, loss), strict=True)
    ]
    checks.optional(checks.function, "callback", callback)
    progress = checks.flag("progress", progress)
    path = None
    if checkpoint is not None:
        path = check_checkpoint(checkpoint, checkpoint_every, checkpoint_seconds)
        check_apart(path, history_file)
    warn_of_hooks(model)
    start = copy_model(model)
    space = ModelSpace(start, scale=scale, mask=mask, lower=lower, upper=upper)
    objectives = [stage.objective for stage in stages]
    # one without a Gauss-Newton matrix needs a method that does without
    plainest = min(objectives, key=lambda objective: objective.has_gauss_newton)
    chosen = default_method(plainest) if method is None else checked_method(method)
    processes = objectives[0].processes
    main = processes.is_main
    known_by = fingerprint([o.name for o in objectives], space, start, chosen)

    def saver(problem: dict[str, Any], **options: Any) -> Checkpoint:
        assert path is not None
        return Checkpoint(
            path, problem, every=checkpoint_every, seconds=checkpoint_seconds, **options
        )

    with (
        SignalListener() as listener,
        _alone(path if main else None),
        Run(
            stages,
            space,
            space.to_vector(start),
            chosen,
            Watch(max_seconds, listener, processes),
            fallback=gradients_alone() if method is None else None,
            callback=callback,
            saving=path is not None,
        ) as run,
    ):
        found = _saved(path, processes, space.device)
        known: tuple[IterationRecord, ...] = ()
        if found is not None:
            problem, state, whole = found
            check_same(problem, known_by)
            _check_start(run, problem, state)
            save = saver(problem, keep=whole, there=state) if main else None
            run.restore(state, save)
            known = state.history
            # its products are the log's, and not held twice
            del state
            found = None
        if main and history_file is not None:
            run.history_file = HistoryFile(history_file, known)
        if not known:
            run.begin(
                lambda value, dropped: saver({**known_by, VALUE: value, DROPPED: dropped})
            )
        total = sum(min(stage.limits.max_iter, 10**9) for stage in stages)
        with tqdm(
            total=total,
            initial=run.history[-1].iteration,
            disable=not (progress and main),
            unit="step",
        ) as bar:
            result = run.run(bar, fresh=not known)
        if run.checkpoint is not None and run.checkpoint.failure:
            told = f"{result.message}; {run.checkpoint.failure}"
            result = replace(result, message=told)
        return result


def _by_stage(options: dict[str, Any], loss: object) -> Iterator[dict[str, Any]]:
    """Yield the options of each stage: of a list its entry, else the number."""
    if not isinstance(loss, (list, tuple)):
        yield options
        return
    for name, option in options.items():
        if isinstance(option, (list, tuple)) and len(option) != len(loss):
            raise ValueError(
                f"{name} has {len(option)} entries, and there are {len(loss)} losses; "
                "give a number, or a list with one for each loss"
            )
    for place in range(len(loss)):
        yield {
            name: option[place] if isinstance(option, (list, tuple)) else option
            for name, option in options.items()
        }


def _saved(
    path: Path | None, processes: Processes, device: torch.device
) -> tuple[dict[str, Any], RunState, bool] | None:
    """Return what a checkpoint holds; None where there is none."""
    if path is None:
        return None
    # file systems may show it to one process of a run and not yet to another
    there = processes.largest(path.exists() or previous(path).exists())
    return load(path, device) if there else None


def _check_start(run: Run, problem: dict[str, Any], state: RunState) -> None:
    """Refuse a state whose loss had another value at the start.

    Args:
        run: Its first stage's objective is evaluated.
        problem: What the saved one is known by.
        state: Says what was dropped later.

    Raises:
        StateError: If the values differ, or parts are bad that were not.
    """
    objective = run.stages[0].objective
    if problem[DROPPED]:
        objective = objective.without(problem[DROPPED])
    try:
        value = objective.value(run.space.to_model(run.first))
    except BadPartError as error:
        if not error.parts or not error.parts.keys() <= state.dropped.keys():
            told = f"the loss at its start cannot be evaluated any more: {error}"
            raise StateError(told) from error
        logger.warning(
            "the loss at the start cannot be compared with the saved one: %s, which the "
            "run dropped later, is bad already",
            ", ".join(sorted(error.parts)),
        )
        return
    check_same_value(problem[VALUE], value)


@contextmanager
def _alone(path: Path | None) -> Iterator[None]:
    """A block in which nobody else saves to a path."""
    if path is None:
        yield
        return
    with PathLock(path) as lock:
        if lock.held:
            sweep(path)
        yield
