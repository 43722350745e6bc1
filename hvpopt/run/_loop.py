"""The outer loop of every method.

A run is a sequence of stages, each of one fixed objective: those of a list, and one more
whenever a bad part of an objective is dropped. The model, the counts, the history and
the method's state pass from stage to stage.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from tqdm import tqdm

from hvpopt.errors import BadPartError, SecondOrderError
from hvpopt.methods.convergence import (
    Iterate,
    next_step,
    relative_size,
)
from hvpopt.methods.method import (
    Method,
    OutOfBudget,
    SampledMethod,
    Stationary,
    Step,
)
from hvpopt.methods.points import Point, Problem
from hvpopt.model.space import ModelSpace
from hvpopt.model.tensors import Model
from hvpopt.problem.processes import ALONE, Processes
from hvpopt.run._account import Account
from hvpopt.run._checkpoint import Checkpoint
from hvpopt.run._current import Current
from hvpopt.run._limits import (
    CallbackError,
    RefusedError,
    Stop,
    Watch,
    check_range,
    check_repeatable,
)
from hvpopt.run._samples import Best, about_samples
from hvpopt.run._saving import Saving
from hvpopt.run._stages import Stage
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

    ``fallback`` replaces the method if the first step shows that the loss has no second
    derivative. ``saving`` is True if the main process saves the run.
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
        self.fallback = fallback
        self.point: Point
        self.history_file: HistoryFile | None = None
        self._callback = callback
        self._gradients_alone = ""
        self._negative_curvature: Tensor | None = None
        self._pending: tuple[Tensor, float] | None = None
        self._best = Best()
        self._processes = processes
        self._account = Account(
            stages,
            watch,
            max_cost,
            # A step that the clock cuts short differs from that of an uninterrupted run
            # and from that of another process. The clock then ends the run within the
            # step.
            cut_short=not saving and processes.count == 1,
            reserve=lambda: self._saving.reserve(),
        )
        self._saving = Saving(self._account, saves=saving, processes=processes)
        self._current = Current(
            space, self._account, self._saving, self._best, self._after_evaluation
        )

    def __enter__(self) -> Run:
        self._begin_stage(0)
        return self

    def __exit__(self, *_: object) -> None:
        self._account.close()

    @property
    def history(self) -> list[IterationRecord]:
        """All records so far."""
        return self._account.history

    @property
    def method(self) -> Method:
        """The method that takes the steps."""
        return self._account.method

    @property
    def problem(self) -> Problem:
        """The objective of the stage, without dropped parts, in flat coordinates."""
        return self._current.problem

    @property
    def checkpoint(self) -> Checkpoint | None:
        """Writes the saved state; None where this process writes none."""
        return self._saving.checkpoint

    # -- beginning --------------------------------------------------------------

    def begin(self, checkpoint: Callable[[float, dict[str, str]], Checkpoint]) -> None:
        """Evaluate the first point; errors are raised."""
        # ``checkpoint`` is called in the process that saves, with the value at the
        # start and the parts that were dropped for it.
        value = self._enter(self.first)
        if self._saving.saves and self._processes.is_main:
            self._saving.checkpoint = checkpoint(value, dict(self._current.dropped))

    def restore(self, state: RunState, checkpoint: Checkpoint | None) -> None:
        """Continue from a saved state; ``checkpoint`` is None where another saves."""
        account = self._account
        extra = account.spent
        self._begin_stage(state.stage)
        self._current.go_on_without(state.dropped)
        if state.stage > 0:
            self._current.check_same(state)
        self.first = state.first
        account.history = list(state.history)
        account.look_back()
        self._best.known = state.best
        self._negative_curvature = state.negative_curvature
        if state.gradients_alone and self.fallback is not None:
            account.method, self.fallback = self.fallback, None
            self._gradients_alone = state.gradients_alone
        self._saving.count_seconds_from(state.seconds)
        account.earlier = state.counts
        self.point = self._ready(state.point.vector, state.point)
        extra = extra + account.meter
        account.earlier = state.counts - account.meter
        self._saving.resumed = state.resumed + extra
        self._saving.go_on(state, checkpoint)

    def _begin_stage(self, number: int) -> None:
        """Make a stage the current one, with its method."""
        if not self._gradients_alone:
            self._account.method = self.stages[number].method
        self._current.begin_stage(number)

    def _enter(
        self,
        vector: Tensor,
        step: Step | None = None,
        *,
        value: float = math.nan,
        handed: Any = None,
    ) -> float:
        """Begin a stage: evaluate its first point, and drop parts that are bad there."""
        # ``step`` led there, if the point is not evaluated yet; ``value`` is the whole
        # objective there, if known; ``handed`` is a state that another method made for
        # this one. The value there is returned, NaN where a part was dropped after a
        # step.
        begins, state = self._account.begins, self._saving.state
        before, known = self.first, None
        if state is not None:
            before, known = state.point.vector, state.method
        while True:
            try:
                if begins and math.isnan(value):
                    value = self._current.first_value(vector)
                if handed is not None:
                    method = handed
                elif known is None:
                    method = self.method.start(self.problem)
                    if self._saving.saves:
                        check_storable(method, "the method's state")
                else:
                    method = self.method.next_stage(self.problem, known)
                problem = self._current.sampled(method)
                again = value
                if begins and self.method.samples:
                    again = problem.objective.value(self.space.to_model(vector))
                kind = (
                    None
                    if self._account.at_limit(int(step is not None))
                    else self.method.kind
                )
                self.point = problem.linearise(vector, kind)
                break
            except BadPartError as error:
                value = math.nan
                self._current.drop(self._current.located(error, vector))
            except SecondOrderError as error:
                self._fall_back(error, stacklevel=5)
                known = None
        if begins:
            check_repeatable(again, self.point.value, self.space.eps)
            check_range(vector, self.point.gradient)
            self._best.known = (vector, value) if self.method.samples else None
        moved = vector - before
        size = relative_size(self.space, self.first, before, moved) if step else 0.0
        self._record(step, before, size, method)
        self._commit(method)
        return value

    def _fall_back(self, error: SecondOrderError, *, stacklevel: int) -> None:
        """Replace the method by one that needs no products, or raise ``error``."""
        if self.fallback is None:
            raise error
        warnings.warn(
            f"steps come from gradients alone, since the loss has no second derivative: "
            f"{error.cause}",
            stacklevel=stacklevel,
        )
        self._account.method, self.fallback = self.fallback, None
        self._gradients_alone = error.cause

    # -- the loop ---------------------------------------------------------------

    def run(self, bar: tqdm[Any], *, fresh: bool) -> MinimizeResult:
        """Take steps until the last stage ends, and return the result."""
        # What the callback raised, or the loss before the first step, is raised.
        # ``fresh`` is False for a resumed run.
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
            begun = self.history[-1].iteration > 0 or self._account.number > 0
            if not begun and self._pending is None:
                # The caller's input is the likely cause, and the saved start is useless
                # unless products of the first step are saved or a process was lost.
                ended = getattr(error, "ends_run", False)
                discard = fresh and not ended and not self._saving.products.known()
                raise
            return self._result(Status.FAILED, f"{type(error).__name__}: {error}")
        finally:
            self._release()
            self._saving.finish(discard=discard)

    def _step(self, bar: tqdm[Any]) -> None:
        """Take a step, or raise Stop; at a bad part begin a stage without it."""
        state = self._saving.state
        assert state is not None
        taken: Step | None = None
        try:
            taken = self._accepted(self._next_step(state.method))
            self._advance(taken, state.method)
        except BadPartError as error:
            end = self.point.vector if taken is None else taken.vector
            assert end is not None
            self._current.drop(self._current.located(error, end))
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
        account = self._account
        if self.method.samples:
            account.raise_if_over(None)
            steepest = account.entry.steepest
            if self.history[-1].gradient_norm <= account.limits.gtol * steepest:
                # the next stage examines whether the whole objective has converged
                raise Stop(Status.NO_DECREASE, "the gradient of a sample vanishes")
            return self.method.step(self.problem, self.point, state, account.budget())
        at = Iterate(
            self.problem,
            self.method,
            self.point,
            state,
            account.tolerance(self.first),
            account.budget(),
        )
        account.raise_if_over(at)
        return next_step(at)

    def _accepted(self, step: Step | Stationary) -> Step:
        """Return a step that was accepted; raise Stop for any other outcome."""
        if isinstance(step, Stationary):
            status = Status.CONVERGED if step.minimum else Status.STATIONARY
            raise Stop(status, step.reason)
        if step.vector is None:
            self._current.raise_bad_part(self.point.vector)
            raise Stop(Status.NO_DECREASE, step.reason)
        return step

    def _advance(self, step: Step, state: Any) -> None:
        """Move to the step's end, and evaluate what the next iteration needs there."""
        assert step.vector is not None
        before = self.point
        self._release()
        # if evaluating the new point is interrupted or fails, it is still the best one
        self._pending = step.vector, step.value
        after = self._ready(step.vector, step.point, steps=1)
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
        if isinstance(self.method, SampledMethod) and (
            self.method.sample_size(state) > self.history[-1].sample
        ):
            self._best.compare(self.point.vector, self.problem.value)

    def _following(self, status: Status) -> int | None:
        """Return the number of the stage that follows; None if the run ends."""
        if status in ENDING:
            return None
        for number in range(self._account.number + 1, len(self.stages)):
            stage = self.stages[number]
            over = stage.entry == self._account.stage.entry and status in LIMITS
            if not over and not (self._gradients_alone and stage.method.samples):
                return number
        return None

    def _next_stage(self, number: int) -> None:
        state = self._saving.state
        assert state is not None
        self._release()
        vector, value, handed = self.point.vector, math.nan, None
        stage, before = self.stages[number], self._account.stage
        if isinstance(self.method, SampledMethod):
            vector, value = self._best.judge(vector, self._current.whole_value)
            self._best.known = vector, value
            if stage.objective is not before.objective:
                value = math.nan
            if not stage.method.samples:
                handed = self.method.handed_on(state.method)
                if stage.entry != before.entry:
                    handed = stage.method.next_stage(self.problem, handed)
        self._begin_stage(number)
        self.first = vector
        self._enter(vector, value=value, handed=handed)
        self._announce()

    def _without_products(self, error: SecondOrderError) -> None:
        """Restart with the fallback, stop, or raise, as a product does not exist."""
        # It stops if products were only needed to look for negative curvature.
        if not self.method.needs_products:
            # steps need no products, so this was the search for negative curvature
            detail = "its curvature is unknown"
            if not self._gradients_alone:
                detail += f", since the loss has no second derivative: {error.cause}"
            raise Stop(Status.STATIONARY, detail)
        if self._account.steps > 0:
            raise error
        self._fall_back(error, stacklevel=6)
        self._release()
        self.point = replace(self.point, hessian=None)
        state = self._saving.state
        assert state is not None
        state = replace(state, method=self.method.start(self.problem))
        self._saving.state = state
        if self.history[-1].sample:  # the point is one of a sample
            number = self._following(Status.STATIONARY)
            assert number is not None
            self._next_stage(number)
            return
        self._commit(state.method)
        self._saving.save()

    def _ready(self, vector: Tensor, known: Point | None, *, steps: int = 0) -> Point:
        """Return a point with value and gradient; with a Hessian if a step can follow."""
        kind = None if self._account.at_limit(steps) else self.method.kind
        if known is not None:
            return self.problem.with_hessian(known, kind)
        return self.problem.linearise(vector, kind)

    def _after_evaluation(self) -> None:
        """Save if a save is due, and raise Stop if the time is over or a signal came."""
        if self._saving.state is None:
            return
        self._saving.within_step()
        self._account.raise_if_late()

    # -- records, states and the result -----------------------------------------

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
            counts=self._account.spent,
            seconds=self._saving.seconds,
            stage=self._account.number,
            loss=self._account.stage.entry,
            dropped=dict(self._current.dropped),
            sample=sample,
        )
        self._account.add(record, is_step=step is not None)
        if step is not None and step.direction.negative_curvature is not None:
            self._negative_curvature = step.direction.negative_curvature

    def _commit(self, method: Any) -> None:
        """Make a completed step the state from which the run is saved."""
        self._saving.check_kept(method)
        state = RunState(
            point=replace(self.point, hessian=None),
            method=method,
            first=self.first,
            history=tuple(self.history),
            counts=self._account.spent,
            stage=self._account.number,
            dropped=dict(self._current.dropped),
            best=self._best.known,
            negative_curvature=self._negative_curvature,
            gradients_alone=self._gradients_alone,
        )
        self._saving.commit(state)

    def _announce(self) -> None:
        """Pass the last record to the history file, the checkpoint and the callback."""
        record = self.history[-1]
        if self.history_file is not None:
            self.history_file.add(record)
        self._saving.after_step(record.iteration)
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

    def _release(self) -> None:
        if self.point.hessian is not None:
            self.point.hessian.close()

    def _best_of_samples(self, status: Status) -> tuple[Tensor, float, bool]:
        """Return the best model of a sampled stage, its value, and if that is a guess."""
        begun = self._account.number > self.history[-1].stage
        if begun and self._best.known is not None:
            return (*self._best.known, False)  # judged before the next stage failed
        vector = self.point.vector
        if status not in AT_ONCE:
            try:
                return (*self._best.judge(vector, self._current.whole_value), False)
            except (Stop, KeyboardInterrupt, Exception) as error:
                logger.warning("the value of the whole objective failed: %s", error)
        return self._best.guess(vector, self.history)

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
                counts=self._account.spent,
                history=self.history,
                negative_curvature=(
                    None if curvature is None else self.space.step_to_model(curvature)
                ),
                resume_counts=self._saving.resumed,
            )
        )
        message = result.message + about_samples(
            self.history, self._account.stage.objective, estimated
        )
        for part, why in self._current.dropped.items():
            if not any(part in record.dropped for record in self.history):
                message += f"; its value is without {part} ({why})"
        ended = self.history[-1].stage
        if ended < len(self.stages) - 1:
            if self.stages[ended].entry == self.stages[-1].entry:
                message += "; it ended before its steps on all parts"
            else:
                message += f"; this was stage {ended + 1} of {len(self.stages)}"
        if self._account.number > ended:
            message += f", and stage {self._account.number + 1} could not begin"
        if not self.method.needs_products:
            message += "; its steps came from gradients alone"
            if self._gradients_alone:
                message += (
                    f", since the loss has no second derivative: {self._gradients_alone}"
                )
        return replace(result, message=message)
