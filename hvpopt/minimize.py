"""minimize: the one outer loop, for every method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor
from tqdm import tqdm

from hvpopt.models import Model, copy_model
from hvpopt.newton.default import default_method
from hvpopt.newton.method import Direction, Method, OutOfBudget, Stationary, Step
from hvpopt.newton.problem import Budget, Point, Problem
from hvpopt.objective import Objective, as_objective
from hvpopt.result import IterationRecord, MinimizeResult, Status
from hvpopt.space import ModelSpace, PerParameter

Callback = Callable[[Model, IterationRecord], Any]


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
    callback: Callback | None = None,
    progress: bool = False,
) -> MinimizeResult:
    """Minimise a scalar function of a model.

    Args:
        loss: An Objective, or any scalar torch function called as the model is
            arranged: ``loss(t)``, ``loss(a, b)`` or ``loss(vp=a, vs=b)``.
        model: The start: a tensor, a tuple or a dict of tensors. Not changed.
        method: How to step. Default ``QuasiNewton()`` for an objective with a
            Gauss-Newton matrix, such as a waveform misfit, else ``TrustRegionNewton()``.
        scale: Size of one unit of each parameter; see ModelSpace.
        mask: True where cells may change; see ModelSpace.
        lower: Lower bounds, scalars or tensors; see ModelSpace. No iterate and no trial
            breaks them.
        upper: Upper bounds, likewise.
        max_iter: Steps at most.
        max_products: Hessian-vector products at most. The last step may be cut short.
        max_seconds: Seconds at most; looked at between products.
        gtol: Converged when the norm of the projected gradient is at most ``gtol``
            times the largest met so far, and no negative curvature is found.
        callback: Called with the model and its record after the start and each step.
            Returning a true value, or raising StopIteration, ends the run.
        progress: Show a tqdm bar with loss and gradient.

    Returns:
        The best model and the history. A run that is interrupted, meets a limit, or
        fails after its first step returns too, and says why. What a callback raises is
        raised.

    Raises:
        TypeError: For a model or loss of the wrong type.
        ValueError: For a loss that is not scalar, not finite at the start, ignores a
            parameter or changes from call to call; for bounds, scales or masks that do
            not fit; for limits out of range.

    Example:
        >>> import torch, hvpopt
        >>> x = torch.tensor([-1.2, 1.0], dtype=torch.float64)
        >>> f = lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
        >>> hvpopt.minimize(f, x).x
        tensor([1.0000, 1.0000], dtype=torch.float64)
    """
    for name, limit in (("max_products", max_products), ("max_seconds", max_seconds)):
        if not limit >= 0:
            raise ValueError(f"{name} is {limit}; it must be zero or positive")
    if max_iter < 0:
        raise ValueError(f"max_iter is {max_iter}; it must be zero or positive")
    if not 0.0 <= gtol < 1.0:
        raise ValueError(f"gtol is {gtol}; it is relative and must lie in [0, 1)")
    space = ModelSpace(
        copy_model(model), scale=scale, mask=mask, lower=lower, upper=upper
    )
    objective = as_objective(loss)
    chosen: object = default_method(objective) if method is None else method
    if not isinstance(chosen, Method):
        what = chosen.__name__ if isinstance(chosen, type) else type(chosen).__name__
        raise TypeError(
            f"method is {what}; pass an instance of a method, such as "
            "hvpopt.QuasiNewton()"
        )
    method = chosen
    loop = _Loop(
        Problem(objective, space),
        method,
        max_iter=max_iter,
        max_products=max_products,
        deadline=time.monotonic() + max_seconds,
        gtol=gtol,
        callback=callback,
    )
    with tqdm(total=max_iter, disable=not progress, unit="step") as bar:
        return loop.run(space.to_vector(model), bar)


class _Stop(Exception):  # noqa: N818 - a way out, not an error
    """Carries the status that ends the loop, and what to add to its sentence."""

    def __init__(self, status: Status, detail: str = "") -> None:
        super().__init__(status.message)
        self.status = status
        self.detail = detail


class _CallbackError(Exception):
    """Carries what the caller's own callback raised, which is not the loss's failure."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class _Loop:
    """The state of one run. ``point`` is always the best point so far."""

    def __init__(
        self,
        problem: Problem,
        method: Method,
        *,
        max_iter: int,
        max_products: float,
        deadline: float,
        gtol: float,
        callback: Callback | None,
    ) -> None:
        self.problem = problem
        self.method = method
        self.max_iter = max_iter
        self.max_products = max_products
        self.deadline = deadline
        self.gtol = gtol
        self.callback = callback
        self.began = time.monotonic()
        self.before = problem.objective.counts.snapshot()
        self.history: list[IterationRecord] = []
        self.point: Point
        self.pending: tuple[Tensor, float] | None = None
        self.negative_curvature: Tensor | None = None

    def run(self, start: Tensor, bar: tqdm[Any]) -> MinimizeResult:
        # what fails here is the caller's loss or model: let the error reach the door
        value = self._start_value(start)
        state = self.method.start(self.problem)
        self.point = self._evaluate(start, state)
        _check_repeatable(value, self.point.value)
        try:
            self._record(Step(start, self.point.value, 0.0, 0, Direction(start)), start)
            while True:
                step = self._next_step(state)
                state = self._advance(step, state)
                bar.update()
                bar.set_postfix(loss=f"{self.point.value:.4g}", refresh=False)
        except _Stop as stop:
            return self._result(stop.status, stop.detail)
        except OutOfBudget as out:
            return self._result(Status.MAX_PRODUCTS, str(out))
        except TimeoutError as late:
            return self._result(Status.MAX_SECONDS, str(late))
        except KeyboardInterrupt:
            return self._result(Status.INTERRUPTED)
        except _CallbackError as error:
            raise error.error from None
        except Exception as error:
            if len(self.history) <= 1 and self.pending is None:
                raise  # nothing is lost yet, and the caller's input is the likely cause
            return self._result(Status.FAILED, f"{type(error).__name__}: {error}")
        finally:
            self._release()

    # -- one iteration ----------------------------------------------------------

    def _next_step(self, state: Any) -> Step:
        """Return an acceptable step, or stop."""
        self._check_limits()
        step: Step | Stationary
        if self._stationary():
            step = self.method.escape(self.problem, self.point, state, self._budget())
            if isinstance(step, Stationary):
                status = Status.CONVERGED if step.minimum else Status.STATIONARY
                raise _Stop(status, step.reason)
        else:
            step = self.method.step(self.problem, self.point, state, self._budget())
        if step.vector is None:
            raise _Stop(Status.NO_DECREASE, step.reason)
        return step

    def _advance(self, step: Step, state: Any) -> Any:
        """Move to the step's end and evaluate what the next iteration will read."""
        assert step.vector is not None
        before = self.point
        self._release()
        # if evaluating the new point is interrupted or fails, it is still the best one
        self.pending = step.vector, step.value
        self.point = self._evaluate(step.vector, state, step.point)
        self.pending = None
        self._record(step, before.vector)
        return self.method.remember(state, before, self.point, step)

    def _evaluate(self, vector: Tensor, state: Any, known: Point | None = None) -> Point:
        """Linearise, or only differentiate where no further step will be taken."""
        last = len(self.history) >= self.max_iter or self._budget().products <= 0
        kind = (
            None if last or self._budget().out_of_time else self.method.next_kind(state)
        )
        if known is not None:
            return self.problem.with_hessian(known, kind)
        return self.problem.linearise(vector, kind)

    def _check_limits(self) -> None:
        last = len(self.history) > self.max_iter
        spent = last or self._budget().products <= 0 or self._budget().out_of_time
        if self._stationary() and spent and self.point.hessian is None:
            raise _Stop(Status.STATIONARY, "its curvature was not examined")
        if last:
            raise _Stop(Status.MAX_ITERATIONS)
        if self._budget().products <= 0:
            raise _Stop(Status.MAX_PRODUCTS)
        if self._budget().out_of_time:
            raise _Stop(Status.MAX_SECONDS)

    def _start_value(self, start: Tensor) -> float:
        value = self.problem.objective.value(self.problem.space.to_model(start))
        if not math.isfinite(value):
            raise ValueError(
                f"the loss is {value} at the starting model; start where it is finite"
            )
        return value

    def _stationary(self) -> bool:
        return self.history[-1].gradient_norm <= self.gtol * max(
            record.gradient_norm for record in self.history
        )

    def _budget(self) -> Budget:
        spent = self.problem.objective.counts.products - self.before.products
        return Budget(self.max_products - spent, self.deadline)

    # -- records ----------------------------------------------------------------

    def _record(self, step: Step, before: Tensor) -> None:
        direction = step.direction
        record = IterationRecord(
            iteration=len(self.history),
            value=self.point.value,
            gradient_norm=float(self.point.projected_gradient.norm()),
            step_norm=float((self.point.vector - before).norm()),
            step_length=step.length,
            trials=step.trials,
            active=int(self.point.active.sum()),
            parts=self.point.parts,
            counts=self._spent(),
            seconds=time.monotonic() - self.began,
        )
        if self.history:
            record = replace(
                record,
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
            if direction.negative_curvature is not None:
                self.negative_curvature = direction.negative_curvature
        self.history.append(record)
        self._call_back(record)

    def _call_back(self, record: IterationRecord) -> None:
        if self.callback is None:
            return
        try:
            stop = self.callback(self.problem.space.to_model(self.point.vector), record)
        except StopIteration:
            stop = True
        except Exception as error:
            raise _CallbackError(error) from error
        if stop:
            raise _Stop(Status.CALLBACK)

    def _spent(self) -> Any:
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
        message = status.message + (f": {detail}" if detail else "")
        missed = [
            record
            for record in self.history
            if record.inner_status is not None and record.inner_status.name != "CONVERGED"
        ]
        if missed:
            message += (
                f"; in {len(missed)} of {len(self.history) - 1} steps the linear algebra "
                f"missed a tolerance (last: {missed[-1].inner_status.message})"  # type: ignore[union-attr]
            )
        return MinimizeResult(
            x=space.to_model(vector),
            fun=value,
            jac=jac,
            success=status is Status.CONVERGED,
            status=status,
            message=message,
            nit=len(self.history) - 1 + (self.pending is not None),
            counts=self._spent(),
            history=self.history,
            negative_curvature=(
                None
                if self.negative_curvature is None
                else space.step_to_model(self.negative_curvature)
            ),
        )


def _check_repeatable(first: float, again: float) -> None:
    """Refuse a loss that changes from call to call."""
    # threads may add in another order; a random loss differs by far more
    if abs(first - again) > 1e-4 * max(abs(first), abs(again)):
        raise ValueError(
            f"the loss is not deterministic: two calls at the start gave {first!r} and "
            f"{again!r}; fix its seed, or use model.eval() for a network"
        )
