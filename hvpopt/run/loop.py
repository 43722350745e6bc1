"""The one outer loop, for every method, and its ways out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, takewhile
from typing import Any

from torch import Tensor
from tqdm import tqdm

from hvpopt.methods.convergence import (
    Iterate,
    Tolerance,
    next_step,
    relative_size,
    without_products,
)
from hvpopt.methods.method import Direction, Method, OutOfBudget, Stationary, Step
from hvpopt.methods.points import Budget, Point, Problem, SumChanged
from hvpopt.model.counts import Counts
from hvpopt.model.space import ModelSpace
from hvpopt.model.tensors import Model
from hvpopt.operators.second_order import SecondOrderError
from hvpopt.problem.objective import Kind, Objective
from hvpopt.run.checkpoint import Checkpoint, RunState
from hvpopt.run.fingerprint import leave_out
from hvpopt.run.history import HistoryFile
from hvpopt.run.journal import Journal, JournalObjective
from hvpopt.run.limits import (
    CallbackError,
    Limits,
    RefusedError,
    Stop,
    Watch,
    check_range,
    check_repeatable,
)
from hvpopt.run.recorder import Callback, Recorder
from hvpopt.run.result import MinimizeResult, Status, sentence
from hvpopt.run.state_tree import check_storable


class Loop:
    """One run. ``point`` is always the best point so far.

    ``impossible`` is the error for which the method gave way to the fallback.

    Args:
        objective: What to minimise.
        space: The model's coordinates and bounds.
        first: Where the run began ``[n]``.
        method: How to step.
        limits: When to end.
        watch: Looks at the clock and at signals.
        callback: See ``minimize``.
        history_file: Grows with the history.
        saving: The run is saved: by the main process, which keeps what each step
            evaluates for that.
        counts: What the run spends of the objective. Default the objective's own tally.
        fallback: Goes on where the loss turns out at the first step to have no second
            derivative. Default none: that is raised.
    """

    def __init__(
        self,
        objective: Objective,
        space: ModelSpace,
        first: Tensor,
        method: Method,
        limits: Limits,
        watch: Watch,
        *,
        callback: Callback | None = None,
        history_file: HistoryFile | None = None,
        saving: bool = False,
        counts: Counts | None = None,
        fallback: Method | None = None,
    ) -> None:
        processes = objective.processes
        self.journal = Journal(
            recording=saving and processes.is_main,
            after=self._pause,
            keeps=lambda: not self._lost_something(),
        )
        self.problem = Problem(JournalObjective(objective, self.journal, counts), space)
        self.saving = saving
        self.problem.check_kept = self._check_kept
        self.first = first
        self.method = method
        self.fallback = fallback
        self.impossible: SecondOrderError | None = None
        self.limits = limits
        self.watch = watch
        # A step that a clock cuts short is not the one that an uninterrupted run takes,
        # nor that of another process: then the clock ends the run within the step.
        self.cut_short = not saving and processes.count == 1
        self.recorder = Recorder(objective, self.journal, callback, history_file, counts)
        self.point: Point
        self.pending: tuple[Tensor, float] | None = None
        self.drawn: dict[str, int] = {}
        self.kind: Kind | None = None
        self.fresh = False

    # -- beginning --------------------------------------------------------------

    def start(
        self, checkpoint: Callable[[float, dict[str, str]], Checkpoint] | None
    ) -> None:
        """Evaluate the first point; what fails here is raised.

        Args:
            checkpoint: Makes one, given the value at the start and what it leaves out.
        """
        start = self.first
        value, left_out = self._start_value(start), self._left_out()
        try:
            state = self.method.start(self.problem)
            if self.saving:
                check_storable(state, "the method's state")
            self.point = self._evaluate(start, state)
        except SecondOrderError as error:
            state = self._fall_back(error, stacklevel=4)
            self.point = self._evaluate(start, state)
        if self._left_out() == left_out:
            check_repeatable(value, self.point.value, self.problem.space.eps)
        check_range(self.point.vector, self.point.gradient)
        step = Step(start, self.point.value, 0.0, 0, Direction(start))
        self.recorder.add(step, self.point, start)
        if checkpoint is not None:
            self.recorder.checkpoint = checkpoint(value, left_out)
        self.fresh = True
        self._commit(state)

    def restore(
        self, state: RunState, resuming: Counts, checkpoint: Checkpoint | None
    ) -> None:
        """Go to where a saved run was.

        Args:
            state: Of the run.
            resuming: What resuming has cost so far.
            checkpoint: To save to; None where another process does.

        Raises:
            StateError: If the objective is another sum than the run's.
        """
        objective = self.problem.objective
        leave_out(objective, state.left_out)
        objective.restore(state.objective)
        self.drawn, self.kind = dict(state.objective), state.kind
        self.recorder.restore(state)
        before = objective.counts.snapshot()
        point = state.point(self.problem.space)
        last = len(state.history) > self.limits.max_iter or self._spent_out()
        self.point = self.problem.with_hessian(point, None if last else state.kind)
        spent = objective.counts.snapshot() - before
        self.recorder.restore(state)  # once more: that was no cost of the run itself
        self.recorder.resuming = state.resuming + resuming + spent
        self.recorder.checkpoint = checkpoint
        self.journal.clear()
        self.journal.replay(state.events)

    # -- the loop ---------------------------------------------------------------

    def run(self, bar: tqdm[Any]) -> MinimizeResult:
        """Step until a way out, and return what was reached."""
        assert self.recorder.base is not None
        discard = False
        try:
            if self.fresh:
                self._announce()
            state = self.recorder.base.method
            while True:
                try:
                    # a callback may have met a bad shot too
                    self._look_for_losses()
                    step = self._next_step(state)
                except SumChanged:
                    state = self._evaluate_again()
                    continue
                except SecondOrderError as error:
                    state = self._without_products(error)
                    continue
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
            discard = self.fresh and isinstance(error, RefusedError)
            raise error.error from None
        except Exception as error:
            if self.steps == 0 and self.pending is None:
                # the caller's input is the likely cause, and the start all that is known;
                # unless products of the first step are, or a process was lost
                ended = getattr(error, "ends_run", False)
                discard = self.fresh and not ended and not self.journal.known()
                raise
            return self._result(Status.FAILED, f"{type(error).__name__}: {error}")
        finally:
            self._release()
            self.recorder.finish(discard=discard)

    def _next_step(self, state: Any) -> Step:
        """Return an acceptable step, or stop."""
        tolerance = self._tolerance()
        self._check_limits(state, tolerance)
        step = next_step(self._iterate(state, tolerance))
        if isinstance(step, Stationary):
            status = Status.CONVERGED if step.minimum else Status.STATIONARY
            raise Stop(status, step.reason)
        if step.vector is None:
            self._look_again()
            raise Stop(Status.NO_DECREASE, step.reason)
        return step

    def _iterate(self, state: Any, tolerance: Tolerance) -> Iterate:
        return Iterate(
            self.problem, self.method, self.point, state, tolerance, self._budget()
        )

    def _look_again(self) -> None:
        """Raise SumChanged if what failed in trials fails, and is left out, here too."""
        error = self.problem.last_error
        # of several processes some may have refused: an error that does not end the run
        refused = getattr(error, "ends_run", None) is False
        if refused or isinstance(error, FloatingPointError):
            self.problem.objective.value(self.problem.space.to_model(self.point.vector))
            self._look_for_losses()

    def _look_for_losses(self) -> None:
        """Raise SumChanged if the point was evaluated with what is left out by now."""
        if self._lost_something():
            raise SumChanged

    def _lost_something(self) -> bool:
        base = self.recorder.base
        return base is not None and self._left_out().keys() != base.left_out.keys()

    def _advance(self, step: Step, state: Any) -> Any:
        """Move to the step's end and evaluate what the next iteration will read."""
        assert step.vector is not None
        before = self.point
        self._release()
        # if evaluating the new point is interrupted or fails, it is still the best one
        self.pending = step.vector, step.value
        left_out = self._left_out()
        after = self._evaluate(step.vector, state, step.point)
        self.point, self.pending = after, None
        size = relative_size(
            self.problem.space, self.first, before.vector, after.vector - before.vector
        )
        self.recorder.add(step, after, before.vector, size)
        if self._left_out() == left_out:
            state = self.method.update(state, before, after, step)
        else:  # points of different sums tell a method nothing of one another
            state = self.method.start(self.problem)
        self._commit(state)
        # the state is whole before anybody else's code runs
        self._announce()
        return state

    def _evaluate_again(self) -> Any:
        """Evaluate the point anew, where the objective has become another sum."""
        self._release()
        self.journal.clear()
        state = self.method.start(self.problem)
        self._note_state(state)
        last = self.steps >= self.limits.max_iter or self._spent_out()
        kind = None if last else self.kind
        self.point = self.problem.linearise(self.point.vector, kind)
        self.recorder.correct(self.point)
        self._commit(state)
        if self.recorder.checkpoint is not None:
            self.recorder.checkpoint.save(self.recorder.state())
        return state

    def _fall_back(self, error: SecondOrderError, *, stacklevel: int) -> Any:
        """Take the method that needs no products, if there is one.

        Args:
            error: Why.
            stacklevel: From here to the caller of ``minimize``, for the warning.

        Returns:
            The state that it begins with.

        Raises:
            SecondOrderError: If there is none.
        """
        if self.fallback is None:
            raise error
        warnings.warn(
            f"steps come from gradients alone, since the loss has no second derivative: "
            f"{error.cause}",
            stacklevel=stacklevel,
        )
        self.method, self.fallback = self.fallback, None
        self.impossible = error
        return self.method.start(self.problem)

    def _without_products(self, error: SecondOrderError) -> Any:
        """Go on from the start without products, or end where none were needed so far.

        Args:
            error: What the last product said.

        Returns:
            The state of the method that goes on.

        Raises:
            SecondOrderError: If a step needed some and cannot do without.
            Stop: If only what kind of point this is remains unknown.
        """
        if not self.method.needs_products:
            # no step has made a product, so this was the look for negative curvature
            detail = "its curvature is unknown"
            if self.impossible is None:
                detail += f", since the loss has no second derivative: {error.cause}"
            raise Stop(Status.STATIONARY, detail)
        if self.steps > 0:
            raise error
        state = self._fall_back(error, stacklevel=6)
        self._release()
        self.journal.clear()
        self._note_state(state)
        self.point = replace(self.point, hessian=None)
        self._commit(state)
        if self.recorder.checkpoint is not None:
            self.recorder.checkpoint.change_method(self.method, error.cause)
            self.recorder.checkpoint.save(self.recorder.state())
        return state

    def _evaluate(self, vector: Tensor, state: Any, known: Point | None = None) -> Point:
        """Linearise, or only differentiate where no further step will be taken."""
        last = len(self.recorder.history) >= self.limits.max_iter or self._spent_out()
        self._note_state(state)
        kind = None if last else self.kind
        if known is not None:
            return self.problem.with_hessian(known, kind)
        return self.problem.linearise(vector, kind)

    def _note_state(self, state: Any) -> None:
        # what linearising anew, after a restart, must begin with
        self.kind = self.method.kind
        self.drawn = self.problem.objective.state()

    # -- limits -----------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Accepted steps so far."""
        return len(self.recorder.history) - 1

    def _check_limits(self, state: Any, tolerance: Tolerance) -> None:
        self.watch.raise_if_signalled()
        last = self.steps >= self.limits.max_iter
        if last or self._spent_out():
            known = without_products(self._iterate(state, tolerance))
            if known is not None:
                status = Status.CONVERGED if known.minimum else Status.STATIONARY
                raise Stop(status, known.reason)
        if last:
            raise Stop(Status.MAX_ITERATIONS)
        if self._out_of_products():
            raise Stop(Status.MAX_PRODUCTS)
        if self._out_of_time():
            raise Stop(Status.MAX_SECONDS)

    def _pause(self) -> None:
        """Look at the clock and at signals; called after each evaluation."""
        if self.recorder.base is None:
            return
        if self.recorder.checkpoint is not None:
            self.recorder.checkpoint.within_step(self.recorder.state)
        if not self.cut_short and self._out_of_time():
            raise Stop(Status.MAX_SECONDS)
        self.watch.raise_if_signalled()

    def _out_of_time(self) -> bool:
        saver = self.recorder.checkpoint
        return self.watch.late(0.0 if saver is None else 2.0 * saver.slowest)

    def _out_of_products(self) -> bool:
        return self.method.needs_products and self._budget().products <= 0

    def _spent_out(self) -> bool:
        return self._out_of_products() or self._out_of_time()

    def _budget(self) -> Budget:
        deadline = self.watch.deadline if self.cut_short else math.inf
        left = self.limits.max_products - self.recorder.spent.products
        return Budget(left, deadline)

    def _start_value(self, start: Tensor) -> float:
        value = self.problem.objective.value(self.problem.space.to_model(start))
        if not math.isfinite(value):
            raise ValueError(
                f"the loss is {value} at the starting model; start where it is finite"
            )
        return value

    def _tolerance(self) -> Tolerance:
        """Return what the run calls converged, by its records alone.

        They are the same after a restart, and so is what is decided by them.
        """
        history = self.recorder.history
        last = history[-1]
        # of the same sum: what is left out may have been most of the gradient
        norms = (
            record.gradient_norm
            for record in history
            if record.left_out.keys() == last.left_out.keys()
        )
        looked = sum(
            after.counts.products - before.counts.products
            for before, after in pairwise(history)
            if after.curvature_step
        )
        return Tolerance.after(
            self.steps,
            last.counts,
            looked,
            gtol=self.limits.gtol,
            certify=self.limits.certify,
            start=self.first,
            largest=max(norms),
            rests=sum(
                1
                for _ in takewhile(
                    lambda r: r.iteration and r.relative_step <= self.limits.gtol,
                    reversed(history),
                )
            ),
        )

    # -- telling ----------------------------------------------------------------

    def _check_kept(self, state: Any) -> None:
        """Refuse what no saved state can hold, as long as little is lost by that.

        Later the run goes on, and a warning says that it is not saved.

        Args:
            state: What the method keeps, or a part of it.

        Raises:
            RefusedError: If it cannot be stored.
        """
        if not self.saving or len(self.recorder.history) > 2:
            return
        try:
            check_storable(state, "the method's state")
        except TypeError as error:
            raise RefusedError(error) from error

    def _commit(self, state: Any) -> None:
        self._check_kept(state)
        self.recorder.commit(self.point, state, self.kind, self.drawn)

    def _announce(self) -> None:
        self.recorder.announce(lambda: self.problem.space.to_model(self.point.vector))

    def _left_out(self) -> dict[str, str]:
        return self.problem.objective.left_out

    def _release(self) -> None:
        if self.point.hessian is not None:
            self.point.hessian.close()

    def _result(self, status: Status, detail: str = "") -> MinimizeResult:
        space = self.problem.space
        vector, value, gradient = self.point.vector, self.point.value, self.point.gradient
        jac: Model | None = space.gradient_to_model(gradient)
        if self.pending is not None:
            (vector, value), jac = self.pending, None
        curvature = self.recorder.negative_curvature
        return MinimizeResult(
            x=space.to_model(vector),
            fun=value,
            jac=jac,
            success=status is Status.CONVERGED,
            status=status,
            message=sentence(status, detail, self.recorder.history),
            nit=self.steps + (self.pending is not None),
            counts=self.recorder.spent,
            history=self.recorder.history,
            negative_curvature=(
                None if curvature is None else space.step_to_model(curvature)
            ),
            resume_counts=self.recorder.resuming + self.journal.repeated,
        )
