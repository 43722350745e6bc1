"""The one outer loop, for every method, and its ways out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor
from tqdm import tqdm

from hvpopt.counts import Counts
from hvpopt.history import HistoryFile
from hvpopt.limits import CallbackError, Limits, Stop, check_repeatable, heed
from hvpopt.models import Model
from hvpopt.newton.method import Direction, Method, OutOfBudget, Stationary, Step
from hvpopt.newton.problem import Budget, Point, Problem
from hvpopt.objective import Kind, Objective
from hvpopt.restart.checkpoint import Checkpoint, RunState
from hvpopt.restart.journal import Journal, JournalObjective
from hvpopt.restart.signals import SignalListener
from hvpopt.result import (
    IterationRecord,
    MinimizeResult,
    Status,
    record_of,
    sentence,
)
from hvpopt.space import ModelSpace

Callback = Callable[[Model, IterationRecord], Any]


class Loop:
    """The state of one run. ``point`` is always the best point so far.

    Args:
        objective: What to minimise.
        space: The model's coordinates and bounds.
        method: How to step.
        limits: When to end.
        listener: Notes signals.
        callback: See ``minimize``.
        history_file: Grows with the history.
        keep_events: Keep what each step evaluates, for a checkpoint.
    """

    def __init__(
        self,
        objective: Objective,
        space: ModelSpace,
        method: Method,
        limits: Limits,
        listener: SignalListener,
        *,
        callback: Callback | None = None,
        history_file: HistoryFile | None = None,
        keep_events: bool = False,
    ) -> None:
        self.journal = Journal(recording=keep_events, after=self._pause)
        self.problem = Problem(JournalObjective(objective, self.journal), space)
        self.method = method
        self.limits = limits
        self.listener = listener
        self.callback = callback
        self.history_file = history_file
        self.checkpoint: Checkpoint | None = None
        self.began = time.monotonic()
        self.deadline = self.began + limits.max_seconds
        self.before = objective.counts.snapshot()
        self.resuming = Counts()
        self.history: list[IterationRecord] = []
        self.point: Point
        self.base: RunState | None = None
        self.pending: tuple[Tensor, float] | None = None
        self.negative_curvature: Tensor | None = None
        self.drawn: dict[str, int] = {}
        self.fresh = False

    # -- beginning --------------------------------------------------------------

    def start(
        self, start: Tensor, checkpoint: Callable[[float], Checkpoint] | None
    ) -> None:
        """Evaluate the first point; what fails here is raised.

        Args:
            start: ``[n]``.
            checkpoint: Makes one, given the value at the start.
        """
        value = self._start_value(start)
        state = self.method.start(self.problem)
        self.drawn = self.problem.objective.state()
        self.point = self._evaluate(start, state)
        check_repeatable(value, self.point.value)
        step = Step(start, self.point.value, 0.0, 0, Direction(start))
        self.history.append(self._record(step, self.point, start))
        if checkpoint is not None:
            self.checkpoint = checkpoint(value)
        self.fresh = True
        self._commit(state, self.method.next_kind(state))

    def restore(self, state: RunState, resuming: Counts, checkpoint: Checkpoint) -> None:
        """Go to where a saved run was.

        Args:
            state: Of the run.
            resuming: What resuming has cost so far.
            checkpoint: To save to.
        """
        objective = self.problem.objective
        objective.restore(state.objective)
        self.drawn = dict(state.objective)
        self.history = list(state.history)
        self.negative_curvature = state.negative_curvature
        self.began = time.monotonic() - state.seconds
        before = objective.counts.snapshot()
        self.before = before - state.counts
        point = state.point(self.problem.space)
        last = len(self.history) > self.limits.max_iter or self._spent_out()
        self.point = self.problem.with_hessian(point, None if last else state.kind)
        self.resuming = state.resuming + resuming + (objective.counts - before)
        self.before = objective.counts - state.counts
        self.journal.clear()
        self.journal.replay(state.events)
        self.base = replace(state, events=())
        self.checkpoint = checkpoint

    # -- the loop ---------------------------------------------------------------

    def run(self, bar: tqdm[Any]) -> MinimizeResult:
        """Step until a way out, and return what was reached."""
        assert self.base is not None
        discard = False
        try:
            if self.fresh:
                self._announce(self.history[-1], 0)
            state = self.base.method
            while True:
                step = self._next_step(state)
                state = self._advance(step, state)
                bar.update()
                bar.set_postfix(loss=f"{self.point.value:.4g}", refresh=False)
        except Stop as stop:
            return self._result(stop.status, stop.detail)
        except OutOfBudget as out:
            return self._result(Status.MAX_PRODUCTS, str(out))
        except TimeoutError as late:
            return self._result(Status.MAX_SECONDS, str(late))
        except KeyboardInterrupt:
            return self._result(Status.INTERRUPTED)
        except CallbackError as error:
            raise error.error from None
        except Exception as error:
            if len(self.history) <= 1 and self.pending is None:
                # nothing is lost yet, and the caller's input is the likely cause
                discard = self.fresh
                raise
            return self._result(Status.FAILED, f"{type(error).__name__}: {error}")
        finally:
            self._release()
            if self.checkpoint is not None:
                if discard:
                    self.checkpoint.discard()
                else:
                    self.checkpoint.finish(self._state())

    def _next_step(self, state: Any) -> Step:
        """Return an acceptable step, or stop."""
        self._check_limits()
        step: Step | Stationary
        if self._stationary():
            step = self.method.escape(self.problem, self.point, state, self._budget())
            if isinstance(step, Stationary):
                status = Status.CONVERGED if step.minimum else Status.STATIONARY
                raise Stop(status, step.reason)
        else:
            step = self.method.step(self.problem, self.point, state, self._budget())
        if step.vector is None:
            raise Stop(Status.NO_DECREASE, step.reason)
        return step

    def _advance(self, step: Step, state: Any) -> Any:
        """Move to the step's end and evaluate what the next iteration will read."""
        assert step.vector is not None
        before = self.point
        self._release()
        # if evaluating the new point is interrupted or fails, it is still the best one
        self.pending = step.vector, step.value
        kind = self.method.next_kind(state)
        self.drawn = self.problem.objective.state()
        after = self._evaluate(step.vector, state, step.point)
        self.point, self.pending = after, None
        record = self._record(step, after, before.vector)
        if step.direction.negative_curvature is not None:
            self.negative_curvature = step.direction.negative_curvature
        self.history.append(record)
        state = self.method.remember(state, before, after, step)
        self._commit(state, kind)
        # the state is whole before anybody else's code runs
        self._announce(record, record.iteration)
        return state

    def _evaluate(self, vector: Tensor, state: Any, known: Point | None = None) -> Point:
        """Linearise, or only differentiate where no further step will be taken."""
        last = len(self.history) >= self.limits.max_iter or self._spent_out()
        kind = None if last else self.method.next_kind(state)
        if known is not None:
            return self.problem.with_hessian(known, kind)
        return self.problem.linearise(vector, kind)

    # -- limits -----------------------------------------------------------------

    def _check_limits(self) -> None:
        heed(self.listener)
        last = len(self.history) > self.limits.max_iter
        if (
            self._stationary()
            and (last or self._spent_out())
            and self.point.hessian is None
        ):
            raise Stop(Status.STATIONARY, "its curvature was not examined")
        if last:
            raise Stop(Status.MAX_ITERATIONS)
        if self._budget().products <= 0:
            raise Stop(Status.MAX_PRODUCTS)
        if self._out_of_time():
            raise Stop(Status.MAX_SECONDS)

    def _pause(self) -> None:
        """Look at the clock and at signals; called after each evaluation."""
        if self.base is None:
            return
        if self.checkpoint is not None:
            self.checkpoint.within_step(self._state)
            if self._out_of_time():
                raise Stop(Status.MAX_SECONDS)
        heed(self.listener)

    def _out_of_time(self) -> bool:
        saving = 0.0 if self.checkpoint is None else 2.0 * self.checkpoint.slowest
        return time.monotonic() > self.deadline - saving

    def _spent_out(self) -> bool:
        return self._budget().products <= 0 or self._out_of_time()

    def _budget(self) -> Budget:
        spent = self.problem.objective.counts.products - self.before.products
        # A step that a clock cuts short would not be the one that an uninterrupted run
        # takes: with a checkpoint the clock ends the run within the step instead.
        deadline = math.inf if self.journal.recording else self.deadline
        return Budget(self.limits.max_products - spent, deadline)

    def _start_value(self, start: Tensor) -> float:
        value = self.problem.objective.value(self.problem.space.to_model(start))
        if not math.isfinite(value):
            raise ValueError(
                f"the loss is {value} at the starting model; start where it is finite"
            )
        return value

    def _stationary(self) -> bool:
        return self.history[-1].gradient_norm <= self.limits.gtol * max(
            record.gradient_norm for record in self.history
        )

    # -- records ----------------------------------------------------------------

    def _record(self, step: Step, point: Point, before: Tensor) -> IterationRecord:
        return record_of(
            step,
            point,
            before,
            iteration=len(self.history),
            counts=self._spent(),
            seconds=time.monotonic() - self.began,
        )

    def _commit(self, state: Any, kind: Kind | None) -> None:
        """Note a whole step; what is saved from here on begins at it."""
        self.journal.clear()
        self.base = RunState(
            vector=self.point.vector,
            value=self.point.value,
            gradient=self.point.gradient,
            parts=self.point.parts,
            kind=kind,
            method=state,
            objective=self.drawn,
            history=tuple(self.history),
            counts=self._spent(),
            negative_curvature=self.negative_curvature,
        )

    def _state(self) -> RunState:
        assert self.base is not None
        return replace(
            self.base,
            resuming=self.resuming + self.journal.repeated,
            seconds=time.monotonic() - self.began,
            events=tuple(self.journal.known()),
        )

    def _announce(self, record: IterationRecord, iteration: int) -> None:
        if self.history_file is not None:
            self.history_file.add(record)
        if self.checkpoint is not None:
            self.checkpoint.after_step(iteration, self._state)
        if self.callback is None:
            return
        try:
            stop = self.callback(self.problem.space.to_model(self.point.vector), record)
        except StopIteration:
            stop = True
        except Exception as error:
            raise CallbackError(error) from error
        if stop:
            raise Stop(Status.CALLBACK)

    def _spent(self) -> Counts:
        return self.problem.objective.counts.snapshot() - self.before

    def _release(self) -> None:
        if self.point.hessian is not None:
            self.point.hessian.close()

    def _result(self, status: Status, detail: str = "") -> MinimizeResult:
        space = self.problem.space
        vector, value, gradient = self.point.vector, self.point.value, self.point.gradient
        jac: Model | None = space.gradient_to_model(gradient)
        if self.pending is not None:
            (vector, value), jac = self.pending, None
        curvature = self.negative_curvature
        return MinimizeResult(
            x=space.to_model(vector),
            fun=value,
            jac=jac,
            success=status is Status.CONVERGED,
            status=status,
            message=sentence(status, detail, self.history),
            nit=len(self.history) - 1 + (self.pending is not None),
            counts=self._spent(),
            history=self.history,
            negative_curvature=(
                None if curvature is None else space.step_to_model(curvature)
            ),
            resume_counts=self.resuming + self.journal.repeated,
        )
