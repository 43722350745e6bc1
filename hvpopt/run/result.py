"""The result of a minimisation: the best model, why it ended, and a record per step."""

from __future__ import annotations

import errno
import math
import os
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.errors import StateError
from hvpopt.methods.method import InnerStatus, Step
from hvpopt.methods.points import Point
from hvpopt.model._scale import euclidean_norm
from hvpopt.model._shown import screen, summarised
from hvpopt.model.counts import Counts
from hvpopt.model.tensors import Model
from hvpopt.run import _files as files
from hvpopt.run.state_tree import decode, encode


class Status(Enum):
    """Why a minimisation ended; the value is a message."""

    CONVERGED = "the projected gradient is within its tolerance"
    STATIONARY = "the projected gradient vanishes, but this may be no minimum"
    MAX_ITERATIONS = "the limit of iterations was reached"
    MAX_PRODUCTS = "the limit of Hessian-vector products was reached"
    MAX_COST = "the limit of cost was reached"
    MAX_SECONDS = "the limit of seconds was reached"
    NO_DECREASE = "no trial step lowered the loss"
    CALLBACK = "the callback asked to stop"
    INTERRUPTED = "interrupted from the keyboard; the best model so far is returned"
    TERMINATED = "terminated by a signal; the best model so far is returned"
    FAILED = "the loss or its derivatives failed; the best model so far is returned"
    UNBOUNDED = "the loss seems unbounded below"

    @property
    def message(self) -> str:
        """The message, which is the member's value."""
        return self.value


@dataclass(frozen=True)
class IterationRecord:
    """One iteration: the step, and the iterate at its end.

    Attributes:
        iteration: Number of steps so far, 0 at the start. The first record of a later
            stage repeats the number of the record before.
        value: The objective.
        gradient_norm: Norm of the flat projected gradient.
        step_norm: Norm of the flat step. Default 0, for no step.
        relative_step: The largest change of a parameter in the step, relative to its
            size. Default 0.
        step_length: Step length as a fraction of the direction. Default 0.
        trials: Number of trial values of the step. Default 0.
        shift: The shift τ of the Hessian. Default 0.
        smallest_eigenvalue: λ_min at the start of the step; NaN if not estimated.
        lower_bound: Lower bound of λ_min, with the method's confidence. Default −∞.
        residual: Relative residual of the linear solve; NaN without one.
        inner_iterations: Iterations of the linear solver. Default 0.
        inner_status: Why the linear solver ended; None without one.
        curvature_step: True for a step along negative curvature from a stationary point.
        predicted: Decrease of the quadratic model for the full direction; NaN if unknown.
        radius: Radius of the trust region that bounded the direction. Default ∞.
        active: Number of cells held at a bound.
        parts: Value of each named part of a sum; empty for a single objective.
        counts: Cost since the run began.
        seconds: Seconds since the run began.
        stage: Number of the stage, from 0: a loss has one, or one of steps on samples and
            one of the whole. Values of different stages are not comparable.
        loss: Place of the stage's loss in the list of losses, from 0.
        dropped: Why each dropped part of the objective (a bad shot) was bad, by name.
            Values of records with different dropped parts are not comparable.
        sample: Number of parts of the sample of which ``value`` and ``gradient_norm``
            are; 0 for the whole objective.
    """

    iteration: int
    value: float
    gradient_norm: float = math.nan
    step_norm: float = 0.0
    relative_step: float = 0.0
    step_length: float = 0.0
    trials: int = 0
    shift: float = 0.0
    smallest_eigenvalue: float = math.nan
    lower_bound: float = -math.inf
    residual: float = math.nan
    inner_iterations: int = 0
    inner_status: InnerStatus | None = None
    curvature_step: bool = False
    predicted: float = math.nan
    radius: float = math.inf
    active: int = 0
    parts: dict[str, float] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    seconds: float = 0.0
    stage: int = 0
    dropped: dict[str, str] = field(default_factory=dict)
    sample: int = 0
    loss: int = 0

    @property
    def objective(self) -> tuple[int, frozenset[str]]:
        """Stage and dropped parts, which identify the objective of the record."""
        return self.stage, frozenset(self.dropped)

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain numbers and strings, for JSON."""
        plain = {k: v for k, v in asdict(self).items() if k != "counts"}
        plain["inner_status"] = self.inner_status.name if self.inner_status else None
        return {**plain, **self.counts.as_dict()}


#: What a file of a result begins with, where a saved run has its problem.
RESULT = "MinimizeResult"


@dataclass(frozen=True, repr=False)
class MinimizeResult:
    """The outcome of a minimisation; field names follow scipy's OptimizeResult.

    ``print`` shows it on one screen, tensors by shape and range. ``save`` and ``load``
    keep it in a file.

    Attributes:
        x: The best model, arranged, shaped and typed like the start.
        fun: The objective at ``x``.
        jac: Its gradient at ``x``, shaped like the model; None if the run ended before
            it was evaluated.
        success: True if the run converged to a minimum, as far as its method can tell.
        status: Why the run ended.
        message: Why the run ended, with details such as dropped shots.
        nit: Number of accepted steps.
        nfev: Number of values without gradient.
        njev: Number of gradients.
        nhev: Number of Hessian-vector products.
        counts: These three numbers and that of wave propagations.
        history: One record for the start of each stage and one for each accepted step.
        negative_curvature: The last direction of negative curvature found by a step,
            shaped like the model, of unit length in flat coordinates; None if none was
            found.
        resume_counts: Cost of resuming from saved states, in addition to ``counts``: the
            loss at the start, to check that the problem is the same, and the graph,
            values and gradients of the interrupted step.
    """

    x: Model
    fun: float
    jac: Model | None
    success: bool
    status: Status
    message: str
    nit: int
    counts: Counts
    history: list[IterationRecord]
    negative_curvature: Model | None = None
    resume_counts: Counts = field(default_factory=Counts)

    @property
    def nfev(self) -> int:
        """Number of values without gradient."""
        return self.counts.values

    @property
    def njev(self) -> int:
        """Number of gradients."""
        return self.counts.gradients

    @property
    def nhev(self) -> int:
        """Number of Hessian-vector products."""
        return self.counts.products

    def __repr__(self) -> str:
        how = "converged" if self.success else "not converged"
        spent = {name: n for name, n in self.counts.as_dict().items() if n}
        counts = ", ".join(f"{n} {name}" for name, n in spent.items())
        rows = {
            "status": self.status.name,
            "message": self.message,
            "fun": f"{self.fun:.6g}",
            "x": summarised(self.x),
            "jac": summarised(self.jac),
            "counts": counts,
            "history": _shown(self.history),
            # negative curvature of earlier steps is irrelevant at a minimum
            "negative_curvature": (
                "" if self.success else summarised(self.negative_curvature)
            ),
        }
        plural = "" if self.nit == 1 else "s"
        return screen(f"MinimizeResult: {how} after {self.nit} step{plural}", rows)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the result to a file of the safetensors format, from which it loads.

        Args:
            path: Path of the file, such as ``"result.safetensors"``.
            overwrite: Replace an existing file. Default False.

        Raises:
            TypeError: If ``path`` is not a path.
            FileExistsError: If the file exists and ``overwrite`` is False.
            OSError: If the file cannot be written; an existing one is then unchanged.
        """
        file = checks.path("path", path)
        if file.exists() and not checks.flag("overwrite", overwrite):
            raise FileExistsError(
                errno.EEXIST, "the file exists; pass overwrite=True to replace it", path
            )
        skeleton, tensors = encode((RESULT, self))
        files.write(file, skeleton, tensors, keep=False)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, device: torch.device | str = "cpu"
    ) -> MinimizeResult:
        """Return the result that ``save`` wrote; no code of the file is executed.

        Args:
            path: Path of the file.
            device: Device of its tensors. Default the host.

        Raises:
            TypeError: If ``path`` is not a path.
            FileNotFoundError: If there is no file.
            StateError: If the file is damaged, or is no result.
            ValueError: If this machine has no such device.
        """
        skeleton, tensors = files.read(checks.path("path", path))
        found = decode(skeleton, tensors, checks.device(device))
        if isinstance(found, tuple) and len(found) == 2 and found[0] == RESULT:
            result: MinimizeResult = found[1]
            return result
        raise StateError(
            f"{os.fspath(path)} is no saved result; a saved run goes on with "
            "hvpopt.minimize(loss, model, checkpoint=path)"
        )


def _shown(history: list[IterationRecord]) -> str:
    """Return a line of a history: number of records, loss, gradient and time."""
    # Loss and gradient are those of the last objective: others are not to be compared.
    if not history:
        return ""
    last = history[-1]
    first = next(r for r in history if r.objective == last.objective)
    norms = f"{first.gradient_norm:.3g} to {last.gradient_norm:.3g}"
    of = "" if first is history[0] else " of the last objective"
    if last.sample:
        of = f" of samples of {last.sample}"
    return (
        f"{len(history)} records, loss{of} {first.value:.4g} to {last.value:.4g}, "
        f"gradient norm {norms}, {last.seconds:.3g} s"
    )


def record_of(
    step: Step | None,
    point: Point,
    before: Tensor,
    *,
    iteration: int,
    relative_step: float,
    counts: Counts,
    seconds: float,
    stage: int,
    loss: int,
    dropped: dict[str, str],
    sample: int = 0,
) -> IterationRecord:
    """Return the record of a step, or, with ``step`` None, of the start of a stage."""
    record = IterationRecord(
        iteration=iteration,
        value=point.value,
        gradient_norm=euclidean_norm(point.projected_gradient),
        relative_step=relative_step,
        active=int(point.active.sum()),
        parts=point.parts,
        counts=counts,
        seconds=seconds,
        stage=stage,
        loss=loss,
        dropped=dropped,
        sample=sample,
    )
    if step is None:
        return record
    direction = step.direction
    return replace(
        record,
        step_norm=euclidean_norm(point.vector - before),
        step_length=step.length,
        trials=step.trials,
        shift=direction.shift,
        smallest_eigenvalue=direction.smallest_eigenvalue,
        lower_bound=direction.lower_bound,
        residual=direction.residual,
        inner_iterations=direction.inner_iterations,
        inner_status=direction.status,
        curvature_step=direction.curvature_step,
        predicted=direction.predicted,
        radius=direction.radius,
    )


def sentence(status: Status, detail: str, history: list[IterationRecord]) -> str:
    """Return the message of a result: status, detail, and what the records add."""
    message = status.message + (f": {detail}" if detail else "")
    missed = [
        record.inner_status
        for record in history
        if record.inner_status not in (None, InnerStatus.CONVERGED)
    ]
    if missed and missed[-1] is not None:
        message += (
            f"; in {len(missed)} of {history[-1].iteration} steps the linear algebra "
            f"ended before its tolerance (last: {missed[-1].message})"
        )
    # also what an earlier stage went without
    parts = {part: why for record in history for part, why in record.dropped.items()}
    if parts:
        dropped = "; ".join(f"{part}: {why}" for part, why in parts.items())
        message += f"; dropped from the objective ({dropped})"
    return message


#: A decrease by this many times the loss's first size and slope is taken for unbounded.
ENDLESS = 1e20
#: Number of values from which on a decrease can be judged to slow down or not.
TELLING = 12


def with_unbounded(result: MinimizeResult) -> MinimizeResult:
    """Return a result whose message says so if the loss seems unbounded below.

    It does if it decreased by more than ENDLESS times its scale, if its derivatives
    overflowed, or if it decreased far below zero, and no slower in the last third of the
    steps than in the third before. The message of a failed run is kept.
    """
    # records of the last objective alone
    last = result.history[-1].objective
    history = [record for record in result.history if record.objective == last]
    falling = len(history) > 1 and result.fun < min(history[0].value, 0.0)
    if result.success or not falling:
        return result
    overflowed = not math.isfinite(history[-1].gradient_norm)
    scale = _scale(history)
    endless = overflowed or (scale > 0.0 and not -result.fun <= ENDLESS * scale)
    if not endless and not _falls_on(history):
        return result
    advice = (
        f"from {history[0].value:.3g} it fell to {result.fun:.3g} in {len(history) - 1} "
        "steps, no slower at the end. Bound the model (lower=, upper=), add a term that "
        "grows with it, or look for a wrong sign in the loss"
    )
    if result.status in (Status.STATIONARY, Status.NO_DECREASE):
        message = f"{Status.UNBOUNDED.message}: {advice}"
        return replace(result, status=Status.UNBOUNDED, message=message)
    status = result.status
    if status is Status.FAILED and (overflowed or "FloatingPointError" in result.message):
        status = Status.UNBOUNDED
    message = f"{result.message}; {Status.UNBOUNDED.message}: {advice}"
    return replace(result, status=status, message=message)


def _scale(history: list[IterationRecord]) -> float:
    """Return |loss| + gradient norm at the first record with a gradient, or the first."""
    met = (record for record in history if record.gradient_norm > 0.0)
    first = next(met, history[0])
    return abs(first.value) + first.gradient_norm


def _falls_on(history: list[IterationRecord]) -> bool:
    """Return True if the loss decreases far below zero, and no slower at the end."""
    values = [record.value for record in history]
    n = len(values) // 3
    if len(values) <= TELLING:
        return False
    first = abs(values[0]) + abs(values[1] - values[0])
    before, after = values[-2 * n] - values[-n], values[-n] - values[-1]
    # one step fewer in the last part than in the one before
    return values[-1] < -10.0 * first and after >= 0.9 * before * (n - 1) / n
