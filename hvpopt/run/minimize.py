"""minimize: checks its arguments, and runs the outer loop."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

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
from hvpopt.problem.processes import ALONE, Processes
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
from hvpopt.run._loop import Callback, Run
from hvpopt.run._stages import Stage
from hvpopt.run._state import RunState
from hvpopt.run.history import HistoryFile
from hvpopt.run.result import IterationRecord, MinimizeResult
from hvpopt.run.signals import SignalListener

logger = logging.getLogger(__name__)

#: Ratio of sizes, without a scale, of which a run warns.
UNSEEN = 1e6
#: What serves here for options of scipy.optimize and torch.optim.
_ELSEWHERE = {
    "args": "pass a function of the model alone, such as a lambda",
    "bounds": "use lower= and upper=, numbers or tensors like the model",
    "hess": "torch differentiates the loss",
    "hessp": "torch differentiates the loss",
    "jac": "torch differentiates the loss",
    "lr": "the method finds the length of its steps",
    "maxfun": "use max_cost=, in gradients of the whole loss",
    "maxiter": "use max_iter=",
    "options": "they are arguments of minimize itself, such as max_iter= and gtol=",
    "tol": "use gtol=, relative to the largest gradient",
}

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
    max_cost: float = math.inf,
    gtol: float | Sequence[float] = 1e-6,
    certify: bool = False,
    callback: Callback | None = None,
    progress: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1,
    checkpoint_seconds: float = 60.0,
    history_file: str | os.PathLike[str] | None = None,
    **unknown: NoReturn,
) -> MinimizeResult:
    """Minimise a scalar function of a model.

    Args:
        loss: An Objective, or any scalar torch function called as the model is
            arranged: ``loss(t)``, ``loss(a, b)`` or ``loss(vp=a, vs=b)``. Or a list of
            them, the stages of a run (for example of rising frequency): each starts from
            the end of the one before, with the method's state.
        model: The start: a tensor, a tuple or a dict of tensors. Not changed. Hooks on it
            are ignored, with a warning.
        method: The method that takes the steps. Default ``QuasiNewton()`` for an
            objective with a Gauss-Newton matrix, such as a waveform misfit, or
            ``StochasticQuasiNewton()`` if it has parts enough to be sampled (12 encoded
            shots, or 24 drawn ones); else ``TrustRegionNewton()``; and, with a warning,
            ``QuasiNewton(initial=GradientScale())`` if the first step shows that the loss
            has no second derivative.
        scale: Size of one unit of each parameter; see ModelSpace. Default 1; for a
            waveform misfit in the propagator's own models ``"auto"``, without which no
            method would move moduli beside buoyancy. For other losses of parameters whose
            sizes differ by more than a factor of 1e6 a warning is logged.
        mask: True where cells may change; see ModelSpace. Default all.
        lower: Lower bounds in the model's units, scalars or tensors; see ModelSpace.
            Every iterate and trial is within the bounds. Default none.
        upper: Upper bounds in the model's units, like ``lower``. Default none.
        max_iter: Largest number of steps for each loss: one number, or a list with one
            for each. Of steps on samples, as many as take all parts of the objective
            once count as one. Default 100.
        max_products: Largest number of Hessian-vector products for each loss, of samples
            or of the whole, a number or a list. The last step may be cut short. Ignored
            by methods without products. Default no limit.
        max_seconds: Largest time of this process, seconds, for all stages together;
            checked between products. Default no limit.
        max_cost: Largest cost of all stages together, in gradients of the whole
            objective, by wave propagations: a gradient takes two for each shot, a value
            one and a Hessian-vector product up to four. (Of a loss without waves a value
            counts a half and a product two.) No step begins beyond it, and the last one
            may pass it. Default no limit.
        gtol: Converged when the norm of the projected gradient is at most ``gtol``
            times the largest so far, and the next step would change no parameter by
            more than ``gtol`` of its size (or would decrease the loss by less than its
            rounding). The message states both numbers. The largest is that of the stage,
            or that since the last drop of a shot. A number or a list. Default 1e-6.
            (scipy's BFGS requires 1e-5 of the absolute gradient, its L-BFGS-B that or a
            relative decrease of 2e-9 of the loss; optimistix small changes of both loss
            and model.)
        certify: Certify that the Hessian has no negative eigenvalue before a point is
            called converged, and leave the point if it has one. This takes up to the
            method's ``max_products`` exact products each time. Default False: methods
            that use the exact Hessian of a plain loss estimate λ_min with at most half
            as many products as the run has evaluated; QuasiNewton, whose curvature is
            positive by construction, and waveform misfits do not estimate it, unless no
            step was taken. The message states which.
        callback: Called with the model and its record after the start and each step.
            Returning a true value, or raising StopIteration, ends the run.
        progress: Show a tqdm bar with loss and gradient.
        checkpoint: File to save the run to, after steps and, with the products so far,
            within steps. If the file exists, the run resumes from it: on the same
            machine and number of threads the iterates are bit for bit those of an
            uninterrupted run, on a CPU; on a GPU their last digits can differ. Loss,
            model, method and options must be those of the saved run; limits and
            callbacks may differ (``max_iter`` includes the steps before).
            The state before the last is kept as ``NAME.previous``. With a checkpoint,
            ``max_seconds`` ends the run within a step, early enough to save, instead of
            cutting the step short; and the products of the current step stay in memory,
            which doubles that of a Lanczos basis. The directory must exist. During the
            run ``NAME.lock`` excludes other runs from the path; a killed process leaves
            it unlocked. A failed save is logged as a warning and does not end the run;
            the result's message names the last state saved. Default none.
        checkpoint_every: Steps between saves. Each save is synced to disk, so increase
            this if steps are short. Default 1.
        checkpoint_seconds: Seconds since the last save after which to save between the
            products of a step. Default 60.
        history_file: File of JSON lines, to which each step appends a record. An existing
            file is replaced; a resumed run keeps its lines. Default none.
        **unknown: None: refused by name.

    Returns:
        The best model and the history. A run that reaches a limit, fails after its first
        step, or receives SIGINT or SIGTERM returns too, and its message says why; after a
        signal when the current product is done, after a second SIGINT at once. Exceptions
        of the callback are raised.

        A signal ends the current run and, if that was started in a callback, the outer
        ones. Then it is passed to the script, which keeps the result. A handler that the
        script has installed is called when the run returns. With Python's default
        handlers SIGTERM ends the process, and a second SIGINT (in the same run or a later
        one) raises KeyboardInterrupt, when the script begins another run; an exception of
        an installed handler is raised then too. A script with several runs therefore
        stops before the next one; to continue after SIGTERM it calls
        ``hvpopt.run.signals.acknowledge()`` first. A first SIGINT ends one run only,
        whose ``status`` is ``Status.INTERRUPTED``; so does every SIGINT in an interactive
        session. Between runs hvpopt handles no signals.

        Evaluations of the same loss by other threads, and those of another run in the
        callback, are neither counted nor limited.

    Raises:
        TypeError: For a model, loss, method or option of the wrong type, or, with a
            checkpoint, a method whose state cannot be saved.
        ValueError: For a loss that is not scalar, not finite at the start, not
            deterministic, or ignores a parameter; for bounds, scales or masks that do
            not fit; for limits out of range; for a history that is the checkpoint's file.
        SecondOrderError: For a loss without second derivative and a method that needs
            products.
        StateError: If the checkpoint is of another problem, method or version, is not
            finite, or is damaged and so is its previous version. If only the last one is
            damaged, a warning is logged and the run resumes from the previous version.
        FileNotFoundError: If the checkpoint's directory does not exist.
        BlockingIOError: If another run saves to the checkpoint's path.
        OSError: If the checkpoint's directory cannot be written.

    Example:
        >>> import torch, hvpopt
        >>> x = torch.tensor([-1.2, 1.0], dtype=torch.float64)
        >>> f = lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
        >>> hvpopt.minimize(f, x).x
        tensor([1.0000, 1.0000], dtype=torch.float64)
    """
    checks.no_option(minimize, unknown, _ELSEWHERE)
    losses: list[Any] = list(loss) if isinstance(loss, (list, tuple)) else [loss]
    if not losses:
        raise ValueError("the list of losses is empty; give one for each stage")
    each = {"max_iter": max_iter, "max_products": max_products, "gtol": gtol}
    objectives = [as_objective(one) for one in losses]
    limits = [Limits(certify=certify, **options) for options in _by_stage(each, loss)]
    max_seconds = checks.number("max_seconds", max_seconds, least=0.0)
    max_cost = checks.number("max_cost", max_cost, least=0.0)
    checks.optional(checks.function, "callback", callback)
    progress = checks.flag("progress", progress)
    path = None
    if checkpoint is not None:
        path = check_checkpoint(checkpoint, checkpoint_every, checkpoint_seconds)
        check_apart(path, history_file)
    warn_of_hooks(model)
    start = copy_model(model)
    by_default = scale is None
    if by_default and any(o.sizes_are_units for o in objectives):
        scale = "auto"
    space = ModelSpace(start, scale=scale, mask=mask, lower=lower, upper=upper)
    sizes = space.sizes() if by_default and space.scale is None else {}
    if sizes and max(sizes.values()) > UNSEEN * min(sizes.values()):
        logger.warning(
            "parameters differ much in size (%s): in one unit, steps may move the "
            "smaller alone, and call that converged; pass scale='auto', or sizes by "
            "parameter",
            ", ".join(f"{name} {size:.0e}" for name, size in sizes.items()),
        )
    # the default method must suit every stage
    chosen = default_method(*objectives) if method is None else checked_method(method)
    stages = [
        Stage(objective, limit, each_method, entry)
        for entry, (objective, limit) in enumerate(zip(objectives, limits, strict=True))
        for each_method in chosen.stages(objective)
    ]
    shared = (o.processes for o in objectives if o.processes is not ALONE)
    processes = next(shared, ALONE)
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
            Watch(max_seconds, listener, processes),
            max_cost=max_cost,
            fallback=gradients_alone() if method is None else None,
            callback=callback,
            saving=path is not None,
            processes=processes,
        ) as run,
    ):
        found = _saved(path, processes, space.device)
        known: tuple[IterationRecord, ...] = ()
        if found is not None:
            problem, state, undamaged = found
            check_same(problem, known_by)
            _check_start(run, problem, state)
            save = saver(problem, keep=undamaged, there=state) if main else None
            run.restore(state, save)
            known = state.history
            # the log owns the saved products: release the other reference to them
            del state
            found = None
        if main and history_file is not None:
            run.history_file = HistoryFile(history_file, known)
        if not known:
            run.begin(
                lambda value, dropped: saver({**known_by, VALUE: value, DROPPED: dropped})
            )
        sampled = any(stage.method.samples for stage in stages)
        total = sum(min(stage.limits.max_iter, 10**9) for stage in stages)
        with tqdm(
            total=None if sampled else total,
            initial=run.history[-1].iteration,
            disable=not (progress and main),
            unit="step",
        ) as bar:
            result = run.run(bar, fresh=not known)
        if run.checkpoint is not None and run.checkpoint.failure:
            message = f"{result.message}; {run.checkpoint.failure}"
            result = replace(result, message=message)
        return result


def _by_stage(options: dict[str, Any], loss: object) -> Iterator[dict[str, Any]]:
    """Yield the options of each stage: the entry of a list, else the number."""
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
    """Return what ``load`` returns for a checkpoint; None if there is no file."""
    if path is None:
        return None
    # a shared file system may show the file to one process and not yet to another
    there = processes.largest(path.exists() or previous(path).exists())
    return load(path, device) if there else None


def _check_start(run: Run, problem: dict[str, Any], state: RunState) -> None:
    """Raise StateError if the loss at the start of a saved run had another value."""
    objective = run.stages[0].objective
    if problem[DROPPED]:
        objective = objective.without(problem[DROPPED])
    try:
        value = objective.value(run.space.to_model(run.first))
    except BadPartError as error:
        first = (record for record in state.history if record.stage == 0)
        dropped = {part for record in first for part in record.dropped}
        # steps on samples need not have evaluated the part
        known = state.history[-1].sample > 0 or error.parts.keys() <= dropped
        if not error.parts or not known:
            message = f"the loss at its start cannot be evaluated any more: {error}"
            raise StateError(message) from error
        logger.warning(
            "the loss at the start cannot be compared with the saved one: %s, which the "
            "run dropped later, is bad already",
            ", ".join(sorted(error.parts)),
        )
        return
    check_same_value(problem[VALUE], value)


@contextmanager
def _alone(path: Path | None) -> Iterator[None]:
    """Lock a path against other runs within a block; do nothing for None."""
    if path is None:
        yield
        return
    with PathLock(path) as lock:
        if lock.held:
            sweep(path)
        yield
