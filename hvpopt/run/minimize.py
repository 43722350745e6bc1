"""minimize and resume: the doors of the outer loop."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from hvpopt import checks
from hvpopt.methods.default import default_method, gradients_alone
from hvpopt.methods.method import Method, checked_method
from hvpopt.model.counts import metered
from hvpopt.model.space import ModelSpace, PerParameter
from hvpopt.model.tensors import Model, copy_model, named_tensors, warn_of_hooks
from hvpopt.operators.second_order import SecondOrderError
from hvpopt.problem.objective import Objective
from hvpopt.problem.torch_objective import as_objective
from hvpopt.run.checkpoint import (
    Checkpoint,
    ProblemState,
    check_apart,
    check_checkpoint,
    load,
)
from hvpopt.run.files import previous, sweep
from hvpopt.run.fingerprint import (
    VALUE,
    check_same,
    fingerprint,
    method_fingerprint,
    value_of_same_sum,
)
from hvpopt.run.history import HistoryFile
from hvpopt.run.limits import Limits, Watch
from hvpopt.run.lock import PathLock
from hvpopt.run.loop import Loop
from hvpopt.run.recorder import Callback
from hvpopt.run.result import IterationRecord, MinimizeResult, with_unbounded
from hvpopt.run.signals import SignalListener


def minimize(
    loss: Objective | Callable[..., Tensor],
    model: Model,
    *,
    method: Method | None = None,
    scale: PerParameter = None,
    mask: PerParameter = None,
    lower: PerParameter = None,
    upper: PerParameter = None,
    max_iter: int = 100,
    max_products: float = math.inf,
    max_seconds: float = math.inf,
    gtol: float = 1e-6,
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
            arranged: ``loss(t)``, ``loss(a, b)`` or ``loss(vp=a, vs=b)``.
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
        max_iter: Steps at most.
        max_products: Hessian-vector products at most. The last step may be cut short. A
            method that needs none goes on without.
        max_seconds: Seconds at most; looked at between products.
        gtol: Converged when the norm of the projected gradient is at most ``gtol``
            times the largest met so far, and the next step would change no parameter by
            more than ``gtol`` of its size (or promises less than the rounding of the
            loss). The message states both numbers. Where a shot was dropped, the largest
            gradient since. Default 1e-6. (scipy's BFGS asks for an absolute 1e-5 of the
            gradient alone, its L-BFGS-B for that or for a relative fall of 2e-9 of the
            loss; optimistix for small changes of both loss and model.)
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
        checkpoint: File that the run is saved to, for ``resume``: after steps, and
            within them as far as they have come. The state before stays beside it as
            ``NAME.previous``. With it a limit of seconds ends the run within a step,
            early enough to save, instead of cutting the step short; and the values and
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
            there is replaced. Default none.

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
        FileExistsError: If the checkpoint exists: resume it, or remove it.
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
    limits = Limits(max_iter, max_products, max_seconds, gtol, certify)
    checks.optional(checks.function, "callback", callback)
    progress = checks.flag("progress", progress)
    path = None
    if checkpoint is not None:
        path = check_checkpoint(checkpoint, checkpoint_every, checkpoint_seconds)
        check_apart(path, history_file)
    options: dict[str, Any] = {
        "scale": scale,
        "mask": mask,
        "lower": lower,
        "upper": upper,
    }
    warn_of_hooks(model)
    start = copy_model(model)
    space = ModelSpace(start, **options)
    objective = as_objective(loss)
    chosen = _check_method(method, objective)
    main = objective.processes.is_main

    def first_checkpoint(value: float, left_out: dict[str, str]) -> Checkpoint:
        assert path is not None
        own = fingerprint(objective, space, start, loop.method, value)
        device = str(space.device)
        problem = ProblemState(
            start,
            _plain(options),
            device,
            _saved(limits),
            own,
            left_out,
            "" if loop.impossible is None else loop.impossible.cause,
        )
        return Checkpoint(
            path, problem, every=checkpoint_every, seconds=checkpoint_seconds
        )

    with (
        SignalListener() as listener,
        _alone(path if main else None),
        metered(objective.counts) as counts,
    ):
        if path is not None:
            _check_none_there(path)
        loop = Loop(
            objective,
            space,
            space.to_vector(start),
            chosen,
            limits,
            Watch(limits.max_seconds, listener, objective.processes),
            callback=callback,
            history_file=_history(history_file) if main else None,
            saving=path is not None,
            counts=counts,
            fallback=gradients_alone() if method is None else None,
        )
        saves = path is not None and main
        loop.start(first_checkpoint if saves else None)
        return _run(loop, progress)


def resume(
    checkpoint: str | os.PathLike[str],
    loss: Objective | Callable[..., Tensor],
    model: Model | None = None,
    *,
    method: Method | None = None,
    scale: PerParameter = None,
    mask: PerParameter = None,
    lower: PerParameter = None,
    upper: PerParameter = None,
    max_iter: int | None = None,
    max_products: float | None = None,
    max_seconds: float = math.inf,
    gtol: float | None = None,
    certify: bool | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    checkpoint_every: int = 1,
    checkpoint_seconds: float = 60.0,
    history_file: str | os.PathLike[str] | None = None,
) -> MinimizeResult:
    """Go on with a run that ``minimize(..., checkpoint=...)`` saved, and go on saving it.

    On the same machine and number of threads the iterates are, bit by bit, those of a run
    that was never interrupted. Nothing that is saved of the step under way is evaluated
    again: the method gets the same values and products once more. Loading a state
    executes nothing that is in it.

    Args:
        checkpoint: The file.
        loss: The same function as before.
        model: The start as given to ``minimize``, together with ``scale``, ``mask``,
            ``lower`` and ``upper``, to have them compared with the state's. Default
            None: all five are the state's own, on the device that they were on; where
            this machine has none such, on another of its type or on the host, with a
            warning. A model that is given says which device the run goes on.
        method: As given to ``minimize``, with the same options.
        scale: See ``model``.
        mask: See ``model``.
        lower: See ``model``.
        upper: See ``model``.
        max_iter: Steps at most, those before included. Default as before.
        max_products: Hessian-vector products at most, those before included. Default as
            before. A method that needs none goes on without.
        max_seconds: Of this process.
        gtol: Default as before.
        certify: Default as before.
        callback: As for ``minimize``; called after steps to come.
        progress: As for ``minimize``.
        checkpoint_every: As for ``minimize``.
        checkpoint_seconds: As for ``minimize``.
        history_file: As for ``minimize``; lines that it has are not written again.

    Returns:
        As ``minimize`` of the whole run. Its ``counts`` go on from the saved ones;
        ``resume_counts`` says what going on has cost on top: the loss at the start, to
        tell whether it is the same, and a gradient where products need a graph.

    Raises:
        FileNotFoundError: If there is no state.
        BlockingIOError: If another run, which is named, saves to that path.
        OSError: If its directory cannot be written.
        hvpopt.run.state_tree.StateError: If the state is of another problem, method
            or version, is not finite, or is damaged together with the one before it. If
            the last one alone is damaged, a warning is logged and the run goes on from
            the one before.
        TypeError: For a loss, method or option of the wrong type.
        ValueError: For limits out of range, or bounds, scale or mask without a model.

    Example:
        >>> import os, tempfile, torch, hvpopt
        >>> path = os.path.join(tempfile.mkdtemp(), "run.safetensors")
        >>> f = lambda x: ((x - 1) ** 4).sum() + (x**2).sum()
        >>> start = torch.zeros(3, dtype=torch.float64)
        >>> hvpopt.minimize(f, start, max_iter=2, checkpoint=path).nit
        2
        >>> hvpopt.resume(path, f, max_iter=50).success
        True
    """
    path = check_checkpoint(checkpoint, checkpoint_every, checkpoint_seconds)
    check_apart(path, history_file)
    checks.optional(checks.function, "callback", callback)
    progress = checks.flag("progress", progress)
    given: dict[str, Any] = {
        "scale": scale,
        "mask": mask,
        "lower": lower,
        "upper": upper,
    }
    if model is None and any(option is not None for option in given.values()):
        names = [name for name, option in given.items() if option is not None]
        raise ValueError(
            f"{', '.join(names)} given without the model; give all as to minimize, or "
            "none, and the state's own are taken"
        )
    if model is not None:
        warn_of_hooks(model)
    objective = as_objective(loss)
    fallback = gradients_alone() if method is None else None
    method = _check_method(method, objective)
    main = objective.processes.is_main
    with (
        SignalListener() as listener,
        _alone(path if main else None),
        metered(objective.counts) as counts,
    ):
        problem, state, whole = load(path, None if model is None else _device_of(model))
        if fallback is not None and _was_saved_by(fallback, problem):
            method, fallback = fallback, None
        saved = problem.limits
        limits = Limits(
            saved["max_iter"] if max_iter is None else max_iter,
            saved["max_products"] if max_products is None else max_products,
            max_seconds,
            saved["gtol"] if gtol is None else gtol,
            bool(saved["certify"]) if certify is None else certify,
        )
        start = problem.model if model is None else copy_model(model)
        space = ModelSpace(start, **(problem.options if model is None else given))
        own = fingerprint(objective, space, start, method, problem.fingerprint[VALUE])
        # all but the value: a model of another shape is told before the loss meets it
        check_same(problem.fingerprint, own)
        at_start = space.to_model(space.to_vector(start))
        own[VALUE] = value_of_same_sum(
            objective,
            at_start,
            problem.fingerprint[VALUE],
            problem.left_out,
            state.left_out,
        )
        check_same(problem.fingerprint, own)
        loop = Loop(
            objective,
            space,
            space.to_vector(start),
            method,
            limits,
            Watch(limits.max_seconds, listener, objective.processes),
            callback=callback,
            history_file=_history(history_file, state.history) if main else None,
            saving=True,
            counts=counts,
            fallback=fallback,
        )
        if problem.impossible:
            loop.impossible = SecondOrderError(problem.impossible)
        saver = Checkpoint(
            path,
            replace(problem, limits=_saved(limits)),
            every=checkpoint_every,
            seconds=checkpoint_seconds,
            keep=whole,
            there=state,
        )
        loop.restore(state, counts.snapshot(), saver if main else None)
        # what the step under way has evaluated is the journal's, and not held twice
        del state
        return _run(loop, progress)


def _run(loop: Loop, progress: bool) -> MinimizeResult:
    done = loop.steps
    total = loop.limits.max_iter
    shown = progress and loop.problem.objective.processes.is_main
    with tqdm(total=total, initial=done, disable=not shown, unit="step") as bar:
        result = with_unbounded(loop.run(bar))
    told = result.message
    if not loop.method.needs_products:
        told += "; its steps came from gradients alone"
        if loop.impossible is not None:
            told += f", since the loss has no second derivative: {loop.impossible.cause}"
    saver = loop.recorder.checkpoint
    if saver is not None and saver.failure:
        told += f"; {saver.failure}"
    return replace(result, message=told)


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


def _check_none_there(path: Path) -> None:
    for file in (path, previous(path)):
        if file.exists():
            raise FileExistsError(
                f"{file} exists; hvpopt.resume({str(path)!r}, loss) goes on from it. "
                "To begin anew, remove it first"
            )


def _device_of(model: Model) -> torch.device:
    return next(iter(named_tensors(model).values())).device


def _was_saved_by(method: Method, problem: ProblemState) -> bool:
    own = method_fingerprint(method)
    return {name: problem.fingerprint.get(name) for name in own} == own


def _history(
    path: str | os.PathLike[str] | None, known: Iterable[IterationRecord] = ()
) -> HistoryFile | None:
    return None if path is None else HistoryFile(path, known)


def _check_method(method: object, objective: Objective) -> Method:
    return default_method(objective) if method is None else checked_method(method)


def _saved(limits: Limits) -> dict[str, float]:
    return {
        "max_iter": limits.max_iter,
        "max_products": limits.max_products,
        "gtol": limits.gtol,
        "certify": limits.certify,
    }


def _plain(option: Any) -> Any:
    """Return options with every array as a tensor of its own, for the state."""
    if isinstance(option, Mapping):
        return {name: _plain(child) for name, child in option.items()}
    if isinstance(option, (list, tuple)):
        return [_plain(child) for child in option]
    if option is None or isinstance(option, (bool, int, float)):
        return option
    return torch.as_tensor(option).detach().clone()
