"""What a minimisation returns: the best model, why it ended, and what each step did."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import Any

from torch import Tensor

from hvpopt.methods.method import InnerStatus, Step
from hvpopt.methods.points import Point
from hvpopt.model._scale import euclidean_norm
from hvpopt.model.counts import Counts
from hvpopt.model.tensors import Model


class Status(Enum):
    """Why a minimisation ended; the value is a sentence for a person."""

    CONVERGED = "the projected gradient is within its tolerance"
    STATIONARY = "the projected gradient vanishes, but this may be no minimum"
    MAX_ITERATIONS = "the limit of iterations was reached"
    MAX_PRODUCTS = "the limit of Hessian-vector products was reached"
    MAX_SECONDS = "the limit of seconds was reached"
    NO_DECREASE = "no trial step lowered the loss"
    CALLBACK = "the callback asked to stop"
    INTERRUPTED = "interrupted from the keyboard; the best model so far is returned"
    TERMINATED = "terminated by a signal; the best model so far is returned"
    FAILED = "the loss or its derivatives failed; the best model so far is returned"
    UNBOUNDED = "the loss seems unbounded below"

    @property
    def message(self) -> str:
        """The sentence for a person."""
        return self.value


@dataclass(frozen=True)
class IterationRecord:
    """One iteration: the iterate it ended at and the step that led there.

    Attributes:
        iteration: Steps taken so far: 0 for the start. Where a stage begins, at a point
            that is known already, it is that of the record before.
        value: The objective.
        gradient_norm: Norm of the flat projected gradient.
        step_norm: Norm of the flat step that led here.
        relative_step: The largest change of a parameter in it, relative to its size.
        step_length: Fraction of the direction that was taken.
        trials: Values spent on the step.
        shift: τ.
        smallest_eigenvalue: λ_min at the iterate that the step left.
        lower_bound: Below λ_min, with the method's confidence.
        residual: Relative residual of the linear solve.
        inner_iterations: Iterations of the linear solver.
        inner_status: How the step's linear algebra ended.
        curvature_step: True for a step along negative curvature off a stationary point.
        predicted: Decrease that the quadratic model predicted for the whole direction.
        radius: Of the trust region that bounded the direction.
        active: Cells held at a bound.
        parts: Value of each named part of a sum.
        counts: Spent since the run began.
        seconds: Since the run began.
        stage: Number of the stage, from 0. Values of two stages are not to be compared.
        dropped: What was dropped from the objective so far (a bad shot), and why. Values
            of records that dropped different things are not to be compared.
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

    @property
    def objective(self) -> tuple[int, frozenset[str]]:
        """Which of the run's objectives this is a record of."""
        return self.stage, frozenset(self.dropped)

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain numbers and strings, for JSON."""
        plain = {k: v for k, v in asdict(self).items() if k != "counts"}
        plain["inner_status"] = self.inner_status.name if self.inner_status else None
        return {**plain, **self.counts.as_dict()}


@dataclass(frozen=True)
class MinimizeResult:
    """The outcome of a minimisation; field names follow scipy's OptimizeResult.

    Attributes:
        x: The best model, arranged, shaped and typed like the start.
        fun: The objective there.
        jac: Its gradient there, shaped like the model; None if the run ended before it
            was evaluated.
        success: True if the run converged to a minimum as far as its method can tell.
        status: Why it ended.
        message: The same in words, with what a person should know.
        nit: Accepted steps.
        nfev: Values without gradient.
        njev: Gradients.
        nhev: Hessian-vector products.
        counts: All of these and wave propagations.
        history: One record for the start of each stage and one for each accepted step.
        negative_curvature: The last direction of negative curvature that a step met,
            shaped like the model, of unit length in flat coordinates; None if none was.
        resume_counts: What going on from a saved state cost on top of ``counts``: the
            loss at the start, to tell the problem, and the graph, values and gradients
            of the interrupted step, made once more.
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
        """Values without gradient."""
        return self.counts.values

    @property
    def njev(self) -> int:
        """Gradients."""
        return self.counts.gradients

    @property
    def nhev(self) -> int:
        """Hessian-vector products."""
        return self.counts.products


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
    dropped: dict[str, str],
) -> IterationRecord:
    """Return the record of a step, or of the start of a stage.

    Args:
        step: That led to the point; None where a stage begins.
        point: Where it ended.
        before: Where it began ``[n]``.
        iteration: Steps taken so far.
        relative_step: The step's size relative to the model.
        counts: Spent since the run began.
        seconds: Since the run began.
        stage: Its number.
        dropped: From the objective, and why.
    """
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
        dropped=dropped,
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
    """Return why a run ended, for a person.

    Args:
        status: Why.
        detail: What more there is to say; may be empty.
        history: Told where the linear algebra ended early, and what was dropped.
    """
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
    if history and history[-1].dropped:
        told = "; ".join(f"{what}: {why}" for what, why in history[-1].dropped.items())
        message += f"; dropped from the objective ({told})"
    return message


#: A fall of this many times the loss's first size and slope is taken for endless.
ENDLESS = 1e20
#: Steps that tell whether a fall slows down.
TELLING = 12


def with_unbounded(result: MinimizeResult) -> MinimizeResult:
    """Return a result that says so where the loss seems unbounded below.

    It does where it fell by more than any loss of its scale, or where its derivatives
    overflowed on the way; and it may be where it fell below zero, far, and no slower in
    the last third of the steps than in the third before. What a run that failed says of
    its failure is kept.

    Args:
        result: Of a run.
    """
    # of one objective alone
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
    told = (
        f"from {history[0].value:.3g} it fell to {result.fun:.3g} in {len(history) - 1} "
        "steps, no slower at the end. Bound the model (lower=, upper=), add a term that "
        "grows with it, or look for a wrong sign in the loss"
    )
    if result.status in (Status.STATIONARY, Status.NO_DECREASE):
        message = f"{Status.UNBOUNDED.message}: {told}"
        return replace(result, status=Status.UNBOUNDED, message=message)
    status = result.status
    if status is Status.FAILED and (overflowed or "FloatingPointError" in result.message):
        status = Status.UNBOUNDED
    message = f"{result.message}; {Status.UNBOUNDED.message}: {told}"
    return replace(result, status=status, message=message)


def _scale(history: list[IterationRecord]) -> float:
    """Return the size of loss and slope where the run first met a gradient, or 0."""
    met = (record for record in history if record.gradient_norm > 0.0)
    first = next(met, history[0])
    return abs(first.value) + first.gradient_norm


def _falls_on(history: list[IterationRecord]) -> bool:
    """True if the loss falls far below zero, and no slower at the end."""
    values = [record.value for record in history]
    n = len(values) // 3
    if len(values) <= TELLING:
        return False
    first = abs(values[0]) + abs(values[1] - values[0])
    before, after = values[-2 * n] - values[-n], values[-n] - values[-1]
    # one step fewer in the last part than in the one before
    return values[-1] < -10.0 * first and after >= 0.9 * before * (n - 1) / n
