"""LineSearchNewton: truncated Newton with a line search.

Each Newton system is solved by conjugate gradients no further than a forcing term asks,
and no further than the first direction of negative curvature (Dembo and Steihaug, Math.
Program. 26, 1983). Pairs (s, y) of the last steps correct the base preconditioner of the
next solve. Cells that a bound holds are excluded from the solve (Bertsekas, SIAM J.
Control Optim. 20, 1982).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.krylov.cg import CGResult, CGStatus, flat_cg
from hvpopt.krylov.pairs import Pair, PairsPreconditioner, safely_positive
from hvpopt.krylov.preconditioner import (
    DiagonalPreconditioner,
    Preconditioner,
    RestrictedPreconditioner,
    apply_base,
)
from hvpopt.methods.backtracking import Backtracking
from hvpopt.methods.forcing import (
    EisenstatWalker2,
    Forcing,
    ForcingState,
    as_forcing,
)
from hvpopt.methods.method import Direction, InnerStatus, OutOfBudget, Step
from hvpopt.methods.points import Budget, FreeCells, Point, Problem
from hvpopt.methods.saddle import SecondOrderMethod, SecondOrderOptions
from hvpopt.methods.wolfe import Wolfe
from hvpopt.model._scale import euclidean_norm
from hvpopt.problem.objective import Kind, check_kind

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: Builds a preconditioner for all cells at a point; may use the point's Hessian.
PreconditionerBuilder = Callable[[Problem, Point], Preconditioner]


@dataclass(frozen=True, eq=False)
class PreconditionerState:
    """What persists of a preconditioner from step to step."""

    base: Preconditioner | None = None  # what a function built; None where none did
    age: int = 0  # steps taken since
    step_pairs: tuple[Pair, ...] = ()  # (s, y) of steps taken, oldest first


@dataclass(frozen=True, eq=False)
class LineSearchState:
    """What persists from step to step."""

    forcing: ForcingState  # of the next linear solve
    preconditioner: PreconditionerState = field(default_factory=PreconditionerState)


class LineSearchNewton(SecondOrderMethod):
    """Truncated Newton: conjugate gradients to a forcing term, then a line search.

    Args:
        hessian: ``"exact"`` or ``"gauss-newton"``. Default ``"exact"``.
        tol: Of the linear solve, ``‖H h + g‖ ≤ tol · ‖g‖``: a number, or a forcing term
            that follows the run. Default ``EisenstatWalker2()``.
        globalisation: ``Backtracking()``, by values alone, or ``Wolfe()``. Default
            ``Backtracking()``.
        preconditioner: Base of conjugate gradients, in flat coordinates ``[n]``: a
            preconditioner, or a function ``(problem, point)`` that builds one when the
            run begins. Its products count. Default none.
        refresh: Build again after this many steps. Default never.
        memory: Pairs ``(s, y)`` of the last steps to keep, which correct the base.
            Default 0.
        **options: ``max_products``, ``eigenvalue_floor``, ``confidence`` and ``seed`` of
            a ``SecondOrderMethod``; ``max_products`` is 100 by default.

    Raises:
        ValueError: For a number out of range or an unknown Hessian.
        TypeError: For a forcing term, globalisation or preconditioner of a wrong type.

    Example:
        >>> import torch, hvpopt
        >>> f = lambda x: ((x - 1) ** 4).sum() + (x**2).sum()
        >>> start = torch.zeros(5, dtype=torch.float64)
        >>> hvpopt.minimize(f, start, method=hvpopt.LineSearchNewton()).success
        True
    """

    def __init__(
        self,
        *,
        hessian: Kind = "exact",
        tol: float | Forcing | None = None,
        globalisation: Backtracking | Wolfe | None = None,
        preconditioner: Preconditioner | PreconditionerBuilder | None = None,
        refresh: int | None = None,
        memory: int = 0,
        **options: Unpack[SecondOrderOptions],
    ) -> None:
        check_kind(hessian, "hessian")
        self.kind = hessian
        self.forcing = EisenstatWalker2() if tol is None else as_forcing(tol)
        self.globalisation = Backtracking() if globalisation is None else globalisation
        use = "pass Backtracking() or Wolfe()"
        checks.having("globalisation", self.globalisation, "search", use)
        options.setdefault("max_products", 100)
        super().__init__(**options)
        self.preconditioning = _Preconditioning(preconditioner, refresh, memory)

    # -- one step ---------------------------------------------------------------

    def step(
        self, problem: Problem, point: Point, state: LineSearchState, budget: Budget
    ) -> Step:
        """Return the truncated Newton step, shortened by the globalisation."""
        prepared, budget = self.preconditioning.prepare(
            problem, point, state.preconditioner, budget
        )
        state = replace(state, preconditioner=prepared)
        direction = self._direction(point, state, budget)
        step = self.globalisation.search(problem, point, direction)
        gradient = point.projected_gradient
        uphill = float(gradient @ direction.vector) >= 0.0
        if step.vector is None and (problem.space.bounded or uphill):
            # The Newton direction may lead cells at a bound out of it, and without these
            # it need not descend; nor need the solution of a system whose products are
            # noise. The projected gradient does.
            reach = euclidean_norm(direction.vector) / euclidean_norm(gradient)
            steepest = replace(direction, vector=-reach * gradient, predicted=math.nan)
            step = self.globalisation.search(problem, point, steepest)
        return replace(step, memo=prepared)

    def _direction(
        self, point: Point, state: LineSearchState, budget: Budget
    ) -> Direction:
        """Return the truncated Newton direction at a linearised point."""
        free = point.free_cells()
        gradient = free.gradient
        preconditioner = self.preconditioning.on_free_cells(
            state.preconditioner, point, free
        )
        solution = flat_cg(
            free.operator,
            -gradient,
            tol=min(self.forcing.tolerance(state.forcing), budget.accuracy),
            max_products=max(budget.cap(self.max_products), 1),
            deadline=budget.deadline,
            preconditioner=preconditioner,
        )
        vector = solution.x
        if bool(vector.any()):
            # x is orthogonal to its residual, hence h·Hh = −g·h
            predicted = -0.5 * float(gradient @ vector)
        else:
            vector, predicted = _first_direction(
                solution, gradient, preconditioner, point
            )
        met = solution.direction
        return Direction(
            vector=free.extend(vector),
            status=_INNER_STATUS[solution.status],
            residual=solution.residual_norm / euclidean_norm(gradient),
            inner_iterations=solution.n_products,
            predicted=predicted,
            negative_curvature=None
            if met is None
            else free.extend(met / euclidean_norm(met)),
        )

    # -- the state ------------------------------------------------------------------

    def start(self, problem: Problem) -> LineSearchState:
        """Return the state that a run begins with."""
        return LineSearchState(self.forcing.start())

    def next_stage(self, problem: Problem, state: LineSearchState) -> LineSearchState:
        """Return the state with a new tolerance, since that follows one objective."""
        return replace(state, forcing=self.forcing.start())

    def update(
        self, state: LineSearchState, before: Point, after: Point, step: Step
    ) -> LineSearchState:
        """Return the state after an accepted step."""
        prepared, forcing = step.memo, state.forcing
        # a step along negative curvature off a stationary point solved nothing
        if isinstance(prepared, PreconditionerState):
            norms = (euclidean_norm(p.projected_gradient) for p in (before, after))
            forcing = self.forcing.update(forcing, *norms)
        else:
            prepared = state.preconditioner
        return LineSearchState(
            forcing, self.preconditioning.update(prepared, before, after)
        )


_INNER_STATUS = {
    CGStatus.CONVERGED: InnerStatus.CONVERGED,
    CGStatus.NEGATIVE_CURVATURE: InnerStatus.INDEFINITE,
    CGStatus.MAX_PRODUCTS: InnerStatus.RESIDUAL,
    CGStatus.DEADLINE: InnerStatus.RESIDUAL,
    CGStatus.FLOOR: InnerStatus.FLOOR,
    CGStatus.ASYMMETRIC: InnerStatus.FLOOR,
    CGStatus.OUT_OF_RANGE: InnerStatus.RESIDUAL,
}


def _first_direction(
    solution: CGResult[Tensor],
    gradient: Tensor,
    preconditioner: Preconditioner | None,
    point: Point,
) -> tuple[Tensor, float]:
    """Return preconditioned steepest descent, and its decrease, without an iterate."""
    # Negative curvature there determines the length as positive curvature does, by the
    # model with its sign turned, but no further than the point itself is from the
    # origin.
    if solution.direction is None:  # the deadline
        down, curvature = -apply_base(preconditioner, gradient), 0.0
    else:
        down, curvature = solution.direction, solution.curvature
    norm = euclidean_norm(down)
    slope = float(gradient @ down) / norm
    longest = 1.0 + euclidean_norm(point.vector)
    size = abs(curvature) * longest
    length = longest if -slope >= size else -slope / abs(curvature)
    predicted = -length * (slope + 0.5 * curvature * length)
    return down * (length / norm), predicted


@dataclass(frozen=True)
class _Preconditioning:
    """How a method preconditions its linear solves."""

    given: Preconditioner | PreconditionerBuilder | None = None
    refresh: int | None = None
    memory: int = 0

    def __post_init__(self) -> None:
        checks.put(
            self,
            refresh=checks.optional(checks.integer, "refresh", self.refresh, least=1),
            memory=checks.integer("memory", self.memory, least=0),
        )
        what: object = self.given
        wrong = isinstance(what, (type, torch.Tensor))
        if wrong or not (what is None or _applies(what) or callable(what)):
            raise TypeError(
                f"preconditioner is {getattr(what, '__name__', type(what).__name__)}; "
                "pass an object with apply(), such as a DiagonalPreconditioner, or a "
                "function of (problem, point) that returns one"
            )

    def prepare(
        self,
        problem: Problem,
        point: Point,
        state: PreconditionerState,
        budget: Budget,
    ) -> tuple[PreconditionerState, Budget]:
        """Return state and budget after building the base, where that is due."""
        given = self.given
        if given is None or isinstance(given, type) or _applies(given):
            return state, budget
        due = self.refresh is not None and state.age >= self.refresh
        if state.base is not None and not due:
            return state, budget
        before = problem.counts.products
        built = given(problem, point)  # type: ignore[operator]
        if not _applies(built):
            raise TypeError(
                f"the function given as preconditioner returned a "
                f"{type(built).__name__}, which has no apply()"
            )
        left = budget.products - (problem.counts.products - before)
        if left <= 0:
            raise OutOfBudget("building the preconditioner took the products left")
        if isinstance(built, DiagonalPreconditioner):
            # a diagonal and a number, whatever else a subclass carries
            built = DiagonalPreconditioner(built.diagonal, damping=built.damping)
        problem.check_kept(built)
        return replace(state, base=built, age=0), replace(budget, products=left)

    def on_free_cells(
        self, state: PreconditionerState, point: Point, free: FreeCells
    ) -> Preconditioner | None:
        """Return the preconditioner of the cells that no bound holds."""
        whole = state.base
        if whole is None and _applies(self.given):
            whole = self.given  # type: ignore[assignment]
        pairs = state.step_pairs
        if pairs:
            whole = PairsPreconditioner(pairs, memory=len(pairs), base=whole)
        if whole is None or not bool(point.active.any()):
            return whole
        return RestrictedPreconditioner(whole, free.restrict, free.extend)

    def update(
        self, state: PreconditionerState, before: Point, after: Point
    ) -> PreconditionerState:
        """Return the state after an accepted step."""
        step_pairs = state.step_pairs
        s, y = after.vector - before.vector, after.gradient - before.gradient
        if self.memory and safely_positive(s, y):
            step_pairs = (*step_pairs, (s, y))[-self.memory :]
        return replace(state, age=state.age + 1, step_pairs=step_pairs)


def _applies(candidate: object) -> bool:
    return callable(getattr(candidate, "apply", None))
