"""The outer loop of every method.

A run is a sequence of stages, each of one fixed objective: those of a list, and one more
whenever a bad part of an objective is dropped. The model, the counts, the history and
the method's state pass from stage to stage.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise, takewhile
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from hvpopt.errors import BadPartError, SecondOrderError, StateError
from hvpopt.methods.convergence import (
    Iterate,
    Tolerance,
    next_step,
    relative_size,
    without_products,
)
from hvpopt.methods.method import (
    Method,
    OutOfBudget,
    SampledMethod,
    Stationary,
    Step,
)
from hvpopt.methods.points import Budget, Point, Problem
from hvpopt.model.counts import Counts, metered
from hvpopt.model.space import ModelSpace
from hvpopt.model.tensors import Model
from hvpopt.problem.objective import Objective
from hvpopt.problem.processes import ALONE, Processes
from hvpopt.run._checkpoint import Checkpoint
from hvpopt.run._fingerprint import check_same_value
from hvpopt.run._limits import (
    CallbackError,
    Limits,
    RefusedError,
    Stop,
    Watch,
    check_range,
    check_repeatable,
)
from hvpopt.run._saved_products import ProductLog
from hvpopt.run._stages import RECENT, Entry, Stage, about_samples
from hvpopt.run._state import RunState
from hvpopt.run.history import HistoryFile
from hvpopt.run.result import (
    IterationRecord,
    MinimizeResult,
    Status,
    record_of,
    sentence,
    with_unbounded,
)
from hvpopt.run.state_tree import check_storable

logger = logging.getLogger(__name__)

Callback = Callable[[Model, IterationRecord], Any]

#: Statuses that end the run, even if stages are left.
ENDING = (
    Status.CALLBACK,
    Status.INTERRUPTED,
    Status.TERMINATED,
    Status.MAX_SECONDS,
    Status.MAX_COST,
    Status.FAILED,
)
#: Statuses after which no whole value of a sampled objective is computed.
AT_ONCE = (
    Status.INTERRUPTED,
    Status.TERMINATED,
    Status.MAX_SECONDS,
    Status.FAILED,
)
#: Limits of a list's entry, of all its stages together.
LIMITS = (Status.MAX_ITERATIONS, Status.MAX_PRODUCTS)


class Run:
    """One run, a context manager. ``point`` is always the best point so far.

    Args:
        stages: The stages, in order.
        space: The model's coordinates and bounds.
        first: The starting point ``[n]``.
        watch: Checks the clock and signals.
        max_cost: Largest cost of all stages together, in gradients. Default no limit.
        fallback: Replaces the method if the first step shows that the loss has no second
            derivative. Default none: SecondOrderError is raised.
        callback: See ``minimize``. Default none.
        saving: True if the main process saves the run. Default False.
        processes: The processes that take the run's decisions together. Default this one
            alone.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        space: ModelSpace,
        first: Tensor,
        watch: Watch,
        *,
        max_cost: float = math.inf,
        fallback: Method | None = None,
        callback: Callback | None = None,
        saving: bool = False,
        processes: Processes = ALONE,
    ) -> None:
        self.stages = stages
        self.space = space
        self.first = first
        self.method = stages[0].method
        self.watch = watch
        self.max_cost = max_cost
        self.fallback = fallback
        self.checkpoint: Checkpoint | None = None
        self.saving = saving
        self.state: RunState | None = None
        self.point: Point
        self.problem: Problem
        self.history: list[IterationRecord] = []
        self.history_file: HistoryFile | None = None
        self._callback = callback
        self._stage, self._dropped = 0, dict[str, str]()
        self._gradients_alone = ""
        self._negative_curvature: Tensor | None = None
        self._pending: tuple[Tensor, float] | None = None
        # of a sampled stage: the best model by its whole value
        self._best: tuple[Tensor, float] | None = None
        self._entry = Entry()
        self._meters = ExitStack()
        self._meter, self._earlier = Counts(), Counts()
        self._resumed = Counts()
        self._began = time.monotonic()
        self._processes = processes
        self._products = ProductLog(keeps=saving and processes.is_main)
        # A step that the clock cuts short differs from that of an uninterrupted run and
        # from that of another process. The clock then ends the run within the step.
        self._cut_short = not saving and processes.count == 1

    def __enter__(self) -> Run:
        self._begin_stage(0)
        return self

    def __exit__(self, *_: object) -> None:
        self._meters.close()

    # -- beginning --------------------------------------------------------------

    def begin(self, checkpoint: Callable[[float, dict[str, str]], Checkpoint]) -> None:
        """Evaluate the first point; errors are raised.

        Args:
            checkpoint: Returns a Checkpoint, given the value at the start and the parts
                that were dropped for it. Called in the process that saves.
        """
        value = self._enter(self.first)
        if self.saving and self._processes.is_main:
            self.checkpoint = checkpoint(value, dict(self._dropped))

    def restore(self, state: RunState, checkpoint: Checkpoint | None) -> None:
        """Continue from a saved state.

        Args:
            state: The saved state.
            checkpoint: The checkpoint to save to; None if another process saves.
        """
        extra = self._spent
        self._begin_stage(state.stage)
        if state.dropped:
            self._become(self.problem.objective.without(state.dropped))
        self._dropped = dict(state.dropped)
        if state.stage > 0:
            self._check_same_stage(state)
        self.first, self.history = state.first, list(state.history)
        self._best = state.best
        self._entry = Entry.so_far(self.stages, self._stage, self.history)
        self._negative_curvature = state.negative_curvature
        if state.gradients_alone and self.fallback is not None:
            self.method, self.fallback = self.fallback, None
            self._gradients_alone = state.gradients_alone
        self._began = time.monotonic() - state.seconds
        self._earlier = state.counts
        self.point = self._ready(state.point)
        extra = extra + self._meter
        self._earlier = state.counts - self._meter
        self._resumed = state.resumed + extra
        self._products.clear(state.products)
        self.state, self.checkpoint = state, checkpoint

    def _check_same_stage(self, state: RunState) -> None:
        """Raise StateError if a later stage's loss is not that of the saved run."""
        model = self.space.to_model(state.point.vector)
        try:
            value = self._evaluated(state.method).objective.value(model)
        except BadPartError as error:
            message = f"the loss of stage {state.stage + 1} cannot be evaluated: {error}"
            raise StateError(message) from error
        check_same_value(
            state.point.value, value, where=f"where stage {state.stage + 1} was saved"
        )

    def _begin_stage(self, number: int) -> None:
        """Make a stage's objective the current one, and count its evaluations."""
        stage = self.stages[number]
        same = number > 0 and stage.objective is self.stages[number - 1].objective
        objective = stage.objective
        if same and self._dropped:
            objective = objective.without(self._dropped)
        else:
            self._dropped = {}
        self._stage = number
        self._entry = Entry.so_far(self.stages, self._stage, self.history)
        if not self._gradients_alone:
            self.method = stage.method
        self._meters.close()
        self._earlier = self._spent
        self._meter = self._meters.enter_context(metered(stage.objective.counts))
        self._become(objective)

    def _become(self, objective: Objective) -> None:
        """Make an objective the current one."""
        self.problem = Problem(objective, self.space, self._meter)
        self.problem.after = self._after_evaluation
        self.problem.check_kept = self._check_kept
        if self.saving:
            self.problem.wrap = self._products.wrap

    def _enter(
        self,
        vector: Tensor,
        step: Step | None = None,
        *,
        value: float = math.nan,
        handed: Any = None,
    ) -> float:
        """Begin a stage: evaluate its first point, and drop the parts that are bad there.

        Args:
            vector: The first point ``[n]``.
            step: The step that led there, if the point is not evaluated yet. Default
                none.
            value: The whole objective there, if it is known. Default NaN.
            handed: The state of the stage's method, if another method made one for this
                objective. Default none.

        Returns:
            The value there; NaN where a part was dropped after a step.

        Raises:
            ValueError: For a loss that is not finite at the start of a stage, or not
                deterministic.
            SecondOrderError: If the loss has no second derivative, and the method needs
                one.
        """
        begins = not self.history or self.history[-1].stage != self._stage
        before, known = self.first, None
        if self.state is not None:
            before, known = self.state.point.vector, self.state.method
        while True:
            try:
                if begins and math.isnan(value):
                    value = self._value_at(vector)
                if handed is not None:
                    method = handed
                elif known is None:
                    method = self.method.start(self.problem)
                    if self.saving:
                        check_storable(method, "the method's state")
                else:
                    method = self.method.next_stage(self.problem, known)
                problem = self._evaluated(method)
                again = value
                if begins and self.method.samples:
                    again = problem.objective.value(self.space.to_model(vector))
                kind = None if self._at_limit(int(step is not None)) else self.method.kind
                self.point = problem.linearise(vector, kind)
                break
            except BadPartError as error:
                value = math.nan
                self._drop(self._located(error, vector))
            except SecondOrderError as error:
                self._fall_back(error, stacklevel=5)
                known = None
        if begins:
            check_repeatable(again, self.point.value, self.space.eps)
            check_range(vector, self.point.gradient)
            self._best = (vector, value) if self.method.samples else None
        moved = vector - before
        size = relative_size(self.space, self.first, before, moved) if step else 0.0
        self._record(step, before, size, method)
        self._commit(method)
        return value

    def _evaluated(self, state: Any) -> Problem:
        """Return the problem at which a state's point is evaluated: of its sample."""
        if isinstance(self.method, SampledMethod):
            return self.method.sample(self.problem, state)
        return self.problem

    def _located(self, error: BadPartError, vector: Tensor) -> BadPartError:
        """Return an error that names the bad parts that an encoded sample has met.

        Args:
            error: What the sample raised.
            vector: Where ``[n]``.
        """
        if error.parts or not self.method.samples:
            return error
        problem = self.problem
        try:
            point = problem.linearise(vector, None)
            with problem.hessian(point, problem.preferred_kind) as hessian:
                hessian.matvec(point.gradient)
        except BadPartError as whole:
            return whole
        return error

    def _value_at(self, vector: Tensor) -> float:
        """Return the loss where a stage begins; raise ValueError if it is not finite."""
        value = self.problem.objective.value(self.space.to_model(vector))
        if not math.isfinite(value):
            raise ValueError(
                f"the loss is {value} at the starting model; start where it is finite"
            )
        return value

    def _drop(self, error: BadPartError) -> None:
        """Replace the objective by one without its bad parts.

        Args:
            error: Names the bad parts.

        Raises:
            BadPartError: If the run must not continue without them.
        """
        if error.parts.keys() <= self._dropped.keys():
            raise error  # none, or none that is not dropped yet
        objective = self.problem.objective.without(error.parts)
        for part, why in error.parts.items():
            message = f"{part} is dropped from the objective from now on: {why}"
            logger.warning(message)
            warnings.warn(message, RuntimeWarning, stacklevel=5)
        self._dropped = {**self._dropped, **error.parts}
        self._become(objective)
        best, self._best = self._best, None
        if best is not None and self.method.samples:
            # its value is of another objective
            value = self.problem.value(best[0])
            self._best = (best[0], value) if math.isfinite(value) else None

    def _fall_back(self, error: SecondOrderError, *, stacklevel: int) -> None:
        """Replace the method by the fallback, which needs no products.

        Args:
            error: Why the loss has no products.
            stacklevel: Of ``warnings.warn``, for the caller of ``minimize``.

        Raises:
            SecondOrderError: If there is no fallback.
        """
        if self.fallback is None:
            raise error
        warnings.warn(
            f"steps come from gradients alone, since the loss has no second derivative: "
            f"{error.cause}",
            stacklevel=stacklevel,
        )
        self.method, self.fallback = self.fallback, None
        self._gradients_alone = error.cause

    # -- the loop ---------------------------------------------------------------

    def run(self, bar: tqdm[Any], *, fresh: bool) -> MinimizeResult:
        """Take steps until the last stage ends, and return the result.

        Args:
            bar: Shows progress.
            fresh: True for a new run, False for a resumed one.

        Returns:
            The best model, and why the run ended.

        Raises:
            Exception: What the callback raised, or the loss before the first step.
            Stop: Never; each one is reported by the result.
        """
        discard = False
        try:
            if fresh:
                self._announce()
            while True:
                try:
                    self._step(bar)
                except Stop as stop:  # noqa: PERF203 - a stage ends once
                    number = self._following(stop.status)
                    if number is None:
                        raise
                    self._next_stage(number)
        except Stop as stop:
            return self._result(stop.status, stop.detail)
        except KeyboardInterrupt:
            return self._result(Status.INTERRUPTED)
        except CallbackError as error:
            discard = fresh and isinstance(error, RefusedError)
            raise error.error from None
        except Exception as error:
            if self.history[-1].iteration == 0 == self._stage and self._pending is None:
                # The caller's input is the likely cause, and the saved start is useless
                # unless products of the first step are saved or a process was lost.
                ended = getattr(error, "ends_run", False)
                discard = fresh and not ended and not self._products.known()
                raise
            return self._result(Status.FAILED, f"{type(error).__name__}: {error}")
        finally:
            self._release()
            self._finish(discard=discard)

    def _step(self, bar: tqdm[Any]) -> None:
        """Take a step, or raise Stop; at a bad part begin a stage without it."""
        assert self.state is not None
        taken: Step | None = None
        try:
            taken = self._accepted(self._next_step(self.state.method))
            self._advance(taken, self.state.method)
        except BadPartError as error:
            end = self.point.vector if taken is None else taken.vector
            assert end is not None
            self._drop(self._located(error, end))
            self._release()
            self._enter(end, taken)
            self._pending = None
        except SecondOrderError as error:
            if taken is not None:
                raise
            self._without_products(error)
            return
        except OutOfBudget as out:
            raise Stop(Status.MAX_PRODUCTS, str(out)) from None
        except TimeoutError as late:
            raise Stop(Status.MAX_SECONDS, str(late)) from None
        # the state is complete before the callback runs
        self._announce()
        bar.update(taken is not None)
        bar.set_postfix(loss=f"{self.point.value:.4g}", refresh=False)

    def _next_step(self, state: Any) -> Step | Stationary:
        """Return the method's step, or what is known of a point that needs none."""
        if self.method.samples:
            self._check_limits(None)
            if self.history[-1].gradient_norm <= self._limits.gtol * self._entry.steepest:
                # the next stage tells whether the whole objective has converged
                raise Stop(Status.NO_DECREASE, "the gradient of a sample vanishes")
            return self.method.step(self.problem, self.point, state, self._budget())
        at = Iterate(
            self.problem,
            self.method,
            self.point,
            state,
            self._tolerance(),
            self._budget(),
        )
        self._check_limits(at)
        return next_step(at)

    def _accepted(self, step: Step | Stationary) -> Step:
        """Return a step that was accepted; raise Stop for any other outcome."""
        if isinstance(step, Stationary):
            status = Status.CONVERGED if step.minimum else Status.STATIONARY
            raise Stop(status, step.reason)
        if step.vector is None:
            self._raise_bad_part()
            raise Stop(Status.NO_DECREASE, step.reason)
        return step

    def _raise_bad_part(self) -> None:
        """Raise BadPartError if a part that failed in the trials fails here too."""
        error = self.problem.last_error
        # a RankError that does not end the run: some processes rejected the trial model
        refused = getattr(error, "ends_run", None) is False
        if not (refused or isinstance(error, FloatingPointError)):
            return
        model = self.space.to_model(self.point.vector)
        if self.method.samples:  # whose trials are by gradients too
            self.problem.objective.value_and_gradient(model)
        self.problem.objective.value(model)

    def _advance(self, step: Step, state: Any) -> None:
        """Move to the step's end, and evaluate what the next iteration needs there."""
        assert step.vector is not None
        before = self.point
        self._release()
        # if evaluating the new point is interrupted or fails, it is still the best one
        self._pending = step.vector, step.value
        after = self._linearised(step.vector, step.point, steps=1)
        self.point, self._pending = after, None
        size = relative_size(
            self.space, self.first, before.vector, after.vector - before.vector
        )
        state = self.method.update(state, before, after, step)
        self._judge_where_it_grew(state)
        self._record(step, before.vector, size, state)
        self._commit(state)

    def _judge_where_it_grew(self, state: Any) -> None:
        """Evaluate the whole where the sample has grown, and keep the best model."""
        if not isinstance(self.method, SampledMethod) or self._best is None:
            return
        if self.method.sample_size(state) > self.history[-1].sample:
            value = self.problem.value(self.point.vector)
            if value < self._best[1]:
                self._best = self.point.vector, value

    def _following(self, status: Status) -> int | None:
        """Return the number of the stage that follows; None if the run ends.

        Args:
            status: Why the stage ends.
        """
        if status in ENDING:
            return None
        entry = self.stages[self._stage].entry
        for number in range(self._stage + 1, len(self.stages)):
            stage = self.stages[number]
            over = stage.entry == entry and status in LIMITS
            if not over and not (self._gradients_alone and stage.method.samples):
                return number
        return None

    def _next_stage(self, number: int) -> None:
        assert self.state is not None
        self._release()
        vector, value, handed = self.point.vector, math.nan, None
        stage, before = self.stages[number], self.stages[self._stage]
        if isinstance(self.method, SampledMethod):
            self._best = vector, value = self._judged()
            if stage.objective is not before.objective:
                value = math.nan
            if not stage.method.samples:
                handed = self.method.handed_on(self.state.method)
                if stage.entry != before.entry:
                    handed = stage.method.next_stage(self.problem, handed)
        self._begin_stage(number)
        self.first = vector
        self._enter(vector, value=value, handed=handed)
        self._announce()

    def _judged(self) -> tuple[Tensor, float]:
        """Return the best model of a sampled stage by its whole value, and that value."""
        vector = self.point.vector
        if self._best is not None and torch.equal(vector, self._best[0]):
            return self._best
        while True:
            value = self.problem.value(vector)
            error = self.problem.last_error if value == math.inf else None
            if not isinstance(error, BadPartError):
                break
            self._drop(error)
        if self._best is not None and not value < self._best[1]:
            return self._best
        if error is not None:
            raise error
        return vector, value

    def _without_products(self, error: SecondOrderError) -> None:
        """Restart with the fallback, or stop if the method's steps need no products.

        Args:
            error: The error of the last product.

        Raises:
            SecondOrderError: If the method needs products, and it is not the first step
                or there is no fallback.
            Stop: If products were only needed to look for negative curvature.
        """
        if not self.method.needs_products:
            # steps need no products, so this was the search for negative curvature
            detail = "its curvature is unknown"
            if not self._gradients_alone:
                detail += f", since the loss has no second derivative: {error.cause}"
            raise Stop(Status.STATIONARY, detail)
        if self._steps > 0:
            raise error
        self._fall_back(error, stacklevel=6)
        self._release()
        self.point = replace(self.point, hessian=None)
        assert self.state is not None
        self.state = replace(self.state, method=self.method.start(self.problem))
        if self.history[-1].sample:  # the point is one of a sample
            number = self._following(Status.STATIONARY)
            assert number is not None
            self._next_stage(number)
            return
        self._commit(self.state.method)
        if self.checkpoint is not None:
            self.checkpoint.save(self._to_be_saved())

    def _linearised(
        self, vector: Tensor, known: Point | None = None, *, steps: int = 0
    ) -> Point:
        """Return a point with value and gradient; with a Hessian if a step can follow."""
        if known is not None:
            return self._ready(known, steps=steps)
        kind = None if self._at_limit(steps) else self.method.kind
        return self.problem.linearise(vector, kind)

    def _ready(self, point: Point, *, steps: int = 0) -> Point:
        kind = None if self._at_limit(steps) else self.method.kind
        return self.problem.with_hessian(point, kind)

    # -- stopping ---------------------------------------------------------------

    @property
    def _limits(self) -> Limits:
        return self.stages[self._stage].limits

    def _start_of_stage(self) -> IterationRecord | None:
        """Return the first record of the stage; None before it is made."""
        return next((r for r in self.history if r.stage == self._stage), None)

    @property
    def _steps(self) -> int:
        """Number of steps of this stage so far; on samples, of passes over all parts."""
        if self.method.samples:
            return self._entry.sampled // self.stages[self._stage].objective.n_parts
        start = self._start_of_stage()
        return 0 if start is None else self.history[-1].iteration - start.iteration

    @property
    def _spent(self) -> Counts:
        """Cost of the run so far."""
        return self._earlier + self._meter

    @property
    def _cost(self) -> float:
        """Cost of the run so far, in gradients of each stage's objective."""
        objective = self.stages[self._stage].objective
        return self._entry.cost + objective.cost(self._spent - self._entry.counted)

    def _over_cost(self) -> bool:
        if self.max_cost == math.inf:
            return False
        # a sampled stage ends with a whole value, which costs half a gradient
        spare = 0.5 if self.method.samples else 0.0
        return self._cost + spare >= self.max_cost

    def _check_limits(self, at: Iterate | None) -> None:
        """Raise Stop if a limit is reached.

        Args:
            at: Where the run is, to say if it has converged; None on a sample.

        Raises:
            Stop: If one is.
        """
        self.watch.raise_if_signalled()
        if at is not None and self._at_limit():
            known = without_products(at)
            if known is not None:
                status = Status.CONVERGED if known.minimum else Status.STATIONARY
                raise Stop(status, known.reason)
        if self._entry.steps + self._steps >= self._limits.max_iter:
            raise Stop(Status.MAX_ITERATIONS)
        if self._out_of_products():
            raise Stop(Status.MAX_PRODUCTS)
        if self._over_cost():
            raise Stop(Status.MAX_COST)
        if self._out_of_time():
            raise Stop(Status.MAX_SECONDS)

    def _after_evaluation(self) -> None:
        """Save if a save is due, and raise Stop if the time is over or a signal came."""
        if self.state is None:
            return
        if self.checkpoint is not None:
            self.checkpoint.within_step(self._to_be_saved)
        if not self._cut_short and self._out_of_time():
            raise Stop(Status.MAX_SECONDS)
        self.watch.raise_if_signalled()

    def _at_limit(self, steps: int = 0) -> bool:
        """Return True if a limit allows no further step after ``steps`` more."""
        taken = self._entry.steps + self._steps + steps
        last = taken >= self._limits.max_iter
        limits = (self._out_of_products, self._over_cost, self._out_of_time)
        return last or any(reached() for reached in limits)

    def _out_of_time(self) -> bool:
        saver = self.checkpoint
        return self.watch.late(0.0 if saver is None else 2.0 * saver.slowest)

    def _out_of_products(self) -> bool:
        return self.method.needs_products and self._budget().products <= 0

    def _budget(self) -> Budget:
        deadline = self.watch.deadline if self._cut_short else math.inf
        spent = self._spent.products
        entry = self.stages[self._stage].entry
        begun = next(n for n, stage in enumerate(self.stages) if stage.entry == entry)
        if begun > 0:  # the cost of this entry alone, which may have no record yet
            there = (r for r in self.history if begun <= r.stage <= self._stage)
            start = next(there, None)
            spent -= spent if start is None else start.counts.products
        return Budget(self._limits.max_products - spent, deadline)

    def _tolerance(self) -> Tolerance:
        """Return the stage's tolerance, a function of its records alone.

        The records are the same in a resumed run, and so is the tolerance.
        """
        records = [r for r in self.history if r.stage == self._stage]
        last = records[-1]
        before = Counts() if self._stage == 0 else records[0].counts
        gtol = self._limits.gtol
        return Tolerance.after(
            self._steps,
            last.counts - before,
            looked=sum(
                later.counts.products - earlier.counts.products
                for earlier, later in pairwise(records)
                if later.curvature_step
            ),
            gtol=gtol,
            certify=self._limits.certify,
            start=self.first,
            # of the same objective: a dropped part may have dominated the gradient
            largest=max(
                r.gradient_norm for r in records if r.objective == last.objective
            ),
            rests=sum(
                1
                for _ in takewhile(
                    lambda r: r.step_norm > 0.0 and r.relative_step <= gtol,
                    reversed(records),
                )
            ),
        )

    # -- reports and saves ------------------------------------------------------

    def _record(self, step: Step | None, before: Tensor, size: float, state: Any) -> None:
        sample = 0
        if isinstance(self.method, SampledMethod):
            sample = self.method.sample_size(state)
        steps = -1 if not self.history else self.history[-1].iteration
        # the record that begins a later stage is not a step
        taken = step is not None or not self.history
        record = record_of(
            step,
            self.point,
            before,
            iteration=steps + taken,
            relative_step=size,
            counts=self._spent,
            seconds=time.monotonic() - self._began,
            stage=self._stage,
            dropped=dict(self._dropped),
            sample=sample,
        )
        self._entry = self._entry.after(record, is_step=step is not None)
        if step is not None and step.direction.negative_curvature is not None:
            self._negative_curvature = step.direction.negative_curvature
        self.history.append(record)

    def _commit(self, method: Any) -> None:
        """Make a completed step the state from which the run is saved."""
        self._check_kept(method)
        self._products.clear()
        self.state = RunState(
            point=replace(self.point, hessian=None),
            method=method,
            first=self.first,
            history=tuple(self.history),
            counts=self._spent,
            stage=self._stage,
            dropped=dict(self._dropped),
            best=self._best,
            negative_curvature=self._negative_curvature,
            gradients_alone=self._gradients_alone,
        )

    def _check_kept(self, state: Any) -> None:
        """Raise in the first steps if the method's state cannot be saved.

        Later the run continues unsaved, with a warning.

        Args:
            state: The method's state, or a part of it.

        Raises:
            RefusedError: If the state cannot be saved.
        """
        if not self.saving or len(self.history) > 2:
            return
        try:
            check_storable(state, "the method's state")
        except TypeError as error:
            raise RefusedError(error) from error

    def _to_be_saved(self) -> RunState:
        """Return the state after the last completed step, with the products since."""
        assert self.state is not None
        kept = self.state.counts + self._products.spent
        return replace(
            self.state,
            products=self._products.known(),
            # values and gradients of this step, which a resumed run evaluates again
            resumed=self._resumed + (self._spent - kept),
            seconds=time.monotonic() - self._began,
        )

    def _announce(self) -> None:
        """Pass the last record to the history file, the checkpoint and the callback."""
        record = self.history[-1]
        if self.history_file is not None:
            self.history_file.add(record)
        if self.checkpoint is not None:
            self.checkpoint.after_step(record.iteration, self._to_be_saved)
        if self._callback is None:
            return
        try:
            stop = self._callback(self.space.to_model(self.point.vector), record)
        except StopIteration:
            stop = True
        except Exception as error:
            raise CallbackError(error) from error
        if stop:
            raise Stop(Status.CALLBACK)

    def _finish(self, *, discard: bool) -> None:
        """Save the last state of the run, or remove the checkpoint."""
        if self.checkpoint is None:
            return
        if discard:
            self.checkpoint.discard()
            return
        try:
            self.checkpoint.finish(self._to_be_saved())
        except KeyboardInterrupt:
            logger.warning(
                "interrupted while saving: %s holds the state saved before",
                self.checkpoint.path,
            )

    def _release(self) -> None:
        if self.point.hessian is not None:
            self.point.hessian.close()

    def _best_of_samples(self, status: Status) -> tuple[Tensor, float, bool]:
        """Return the best model of a sampled stage, its value, and if that is a guess."""
        last = self.history[-1]
        if self._stage > last.stage and self._best is not None:
            return (*self._best, False)  # judged before the next stage failed to begin
        if status not in AT_ONCE:
            try:
                return (*self._judged(), False)
            except (Stop, KeyboardInterrupt, Exception) as error:
                logger.warning("the value of the whole objective failed: %s", error)
        values = [r.value for r in self.history if r.objective == last.objective]
        mean = sum(values[-RECENT:]) / len(values[-RECENT:])
        if self._best is not None:
            at_best = torch.equal(self.point.vector, self._best[0])
            if at_best or not mean < self._best[1]:
                return (*self._best, False)
        return self.point.vector, mean, True

    def _result(self, status: Status, detail: str = "") -> MinimizeResult:
        vector, value = self.point.vector, self.point.value
        jac: Model | None = self.space.gradient_to_model(self.point.gradient)
        estimated = False
        if self.history[-1].sample:
            vector, value, estimated = self._best_of_samples(status)
            jac = None
        elif self._pending is not None:
            (vector, value), jac = self._pending, None
        curvature = self._negative_curvature
        result = with_unbounded(
            MinimizeResult(
                x=self.space.to_model(vector),
                fun=value,
                jac=jac,
                success=status is Status.CONVERGED,
                status=status,
                message=sentence(status, detail, self.history),
                nit=self.history[-1].iteration + (self._pending is not None),
                counts=self._spent,
                history=self.history,
                negative_curvature=(
                    None if curvature is None else self.space.step_to_model(curvature)
                ),
                resume_counts=self._resumed,
            )
        )
        message = result.message + about_samples(
            self.history, self.stages[self._stage].objective, estimated
        )
        for part, why in self._dropped.items():
            if not any(part in record.dropped for record in self.history):
                message += f"; its value is without {part} ({why})"
        ended = self.history[-1].stage
        if ended < len(self.stages) - 1:
            message += f"; this was stage {ended + 1} of {len(self.stages)}"
        if self._stage > ended:
            message += f", and stage {self._stage + 1} could not begin"
        if not self.method.needs_products:
            message += "; its steps came from gradients alone"
            if self._gradients_alone:
                message += (
                    f", since the loss has no second derivative: {self._gradients_alone}"
                )
        return replace(result, message=message)
