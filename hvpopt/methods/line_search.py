"""LineSearchNewton: truncated Newton with a line search.

Each Newton system is solved by conjugate gradients no further than a forcing term asks,
and no further than the first direction of negative curvature (Dembo and Steihaug, Math.
Program. 26, 1983). What the solves and steps show of the curvature is kept as pairs and
preconditions the next solve (Morales and Nocedal, SIAM J. Optim. 10, 2000). Cells that a
bound holds leave the solve (Bertsekas, SIAM J. Control Optim. 20, 1982).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from torch import Tensor

from hvpopt import checks
from hvpopt.krylov.cg import CGResult, CGStatus, cg
from hvpopt.krylov.pairs import Pair
from hvpopt.krylov.preconditioner import Preconditioner, apply_base
from hvpopt.methods.backtracking import Backtracking
from hvpopt.methods.forcing import (
    EisenstatWalker2,
    Forcing,
    ForcingState,
    as_forcing,
)
from hvpopt.methods.method import Direction, InnerStatus, Step
from hvpopt.methods.points import Budget, Point, Problem
from hvpopt.methods.preconditioning import (
    PreconditionerBuilder,
    PreconditionerState,
    Preconditioning,
)
from hvpopt.methods.saddle import SecondOrderMethod
from hvpopt.methods.wolfe import Wolfe
from hvpopt.model.scale import euclidean_norm
from hvpopt.problem.objective import Kind, check_kind


@dataclass(frozen=True, eq=False)
class LineSearchState:
    """What persists from step to step.

    Attributes:
        forcing: Of the next linear solve.
        preconditioner: Base and pairs.
    """

    forcing: ForcingState
    preconditioner: PreconditionerState = field(default_factory=PreconditionerState)


@dataclass(frozen=True)
class _Memo:
    """What a step leaves to the state."""

    preconditioner: PreconditionerState
    pairs: tuple[Pair, ...]


class LineSearchNewton(SecondOrderMethod):
    """Truncated Newton: conjugate gradients to a forcing term, then a line search.

    Args:
        forcing: How accurately to solve, ``‖H h + g‖ ≤ η ‖g‖``: a number or a forcing
            term. Default ``EisenstatWalker2()``.
        hessian: ``"exact"`` or ``"gauss-newton"``. Default ``"exact"``.
        globalisation: ``Backtracking()``, by values alone, or ``Wolfe()``. Default
            ``Backtracking()``.
        preconditioner: Base of conjugate gradients, in flat coordinates ``[n]``: a
            preconditioner, or a function ``(problem, point)`` that builds one when the
            run begins. Its products count. Default none.
        refresh: Build again after this many steps. Default never.
        pairs: Steps whose ``(s, y)`` correct the base. Default 0.
        cg_pairs: Directions of the last solves that do. Default 0.
        max_products: Products for one linear solve, and for one look at λ_min. Default
            100.
        eigenvalue_floor: Size relative to ``‖H‖`` under which λ_min counts as zero when
            a stationary point is examined. Default 1e-6.
        confidence: With which a minimum is certified. Default 0.99.
        seed: Of the random probe of a stationary point.

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
        forcing: float | Forcing | None = None,
        *,
        hessian: Kind = "exact",
        globalisation: Backtracking | Wolfe | None = None,
        preconditioner: Preconditioner | PreconditionerBuilder | None = None,
        refresh: int | None = None,
        pairs: int = 0,
        cg_pairs: int = 0,
        max_products: int = 100,
        eigenvalue_floor: float = 1e-6,
        confidence: float = 0.99,
        seed: int = 0,
    ) -> None:
        self.forcing = as_forcing(EisenstatWalker2() if forcing is None else forcing)
        check_kind(hessian)
        self.kind = hessian
        self.globalisation = Backtracking() if globalisation is None else globalisation
        use = "pass Backtracking() or Wolfe()"
        checks.having("globalisation", self.globalisation, "search", use)
        super().__init__(
            eigenvalue_floor=eigenvalue_floor,
            confidence=confidence,
            max_products=max_products,
            seed=seed,
        )
        self.preconditioning = Preconditioning(preconditioner, refresh, pairs, cg_pairs)

    # -- one step ---------------------------------------------------------------

    def step(
        self, problem: Problem, point: Point, state: LineSearchState, budget: Budget
    ) -> Step:
        """Return the truncated Newton step, shortened as far as the loss asks."""
        prepared, budget = self.preconditioning.prepare(
            problem, point, state.preconditioner, budget
        )
        direction, solution = self._solve(
            point, replace(state, preconditioner=prepared), budget
        )
        free = point.free_cells()
        step = self.globalisation.search(problem, point, direction)
        gradient = point.projected_gradient
        uphill = float(gradient @ direction.vector) >= 0.0
        if step.vector is None and (problem.space.bounded or uphill):
            # Cells at a bound that the gradient would free may be pushed out by the
            # Newton direction, and what is left of it need not descend; nor need the
            # solution of a system whose products are noise. The projected gradient does.
            reach = euclidean_norm(direction.vector) / euclidean_norm(gradient)
            steepest = replace(direction, vector=-reach * gradient, predicted=math.nan)
            step = self.globalisation.search(problem, point, steepest)
        pairs = tuple((free.extend(d), free.extend(a_d)) for d, a_d in solution.pairs)
        return replace(step, memo=_Memo(prepared, pairs))

    def direction(
        self, problem: Problem, point: Point, state: LineSearchState, budget: Budget
    ) -> Direction:
        """Return the truncated Newton direction at a linearised point.

        Args:
            problem: For a builder of preconditioners.
            point: With its Hessian.
            state: From ``start`` or the last ``remember``.
            budget: What may still be spent.
        """
        prepared, budget = self.preconditioning.prepare(
            problem, point, state.preconditioner, budget
        )
        return self._solve(point, replace(state, preconditioner=prepared), budget)[0]

    def _solve(
        self, point: Point, state: LineSearchState, budget: Budget
    ) -> tuple[Direction, CGResult]:
        free = point.free_cells()
        gradient = free.gradient
        preconditioner = self.preconditioning.on_free_cells(
            state.preconditioner, point, free
        )
        solution = cg(
            free.operator,
            -gradient,
            tol=min(self.forcing.tolerance(state.forcing), budget.accuracy),
            max_products=max(budget.cap(self.max_products), 1),
            deadline=budget.deadline,
            preconditioner=preconditioner,
            keep_pairs=self.preconditioning.cg_pairs,
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
        direction = Direction(
            vector=free.extend(vector),
            status=_INNER_STATUS[solution.status],
            residual=solution.residual_norm / euclidean_norm(gradient),
            inner_iterations=solution.n_products,
            predicted=predicted,
            negative_curvature=None
            if met is None
            else free.extend(met / euclidean_norm(met)),
        )
        return direction, solution

    # -- the state ------------------------------------------------------------------

    def start(self, problem: Problem) -> LineSearchState:
        """Return the state that a run begins with."""
        return LineSearchState(self.forcing.start())

    def remember(
        self, state: LineSearchState, before: Point, after: Point, step: Step
    ) -> LineSearchState:
        """Return the state after an accepted step."""
        memo = step.memo
        # a step along negative curvature off a stationary point solved nothing
        solved = isinstance(memo, _Memo)
        forcing = state.forcing
        if solved:
            norms = (euclidean_norm(p.projected_gradient) for p in (before, after))
            forcing = self.forcing.remember(forcing, *norms)
        return LineSearchState(
            forcing=forcing,
            preconditioner=self.preconditioning.remember(
                memo.preconditioner if solved else state.preconditioner,
                before,
                after,
                memo.pairs if solved else (),
            ),
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
    solution: CGResult,
    gradient: Tensor,
    preconditioner: Preconditioner | None,
    point: Point,
) -> tuple[Tensor, float]:
    """Return steepest descent, preconditioned, where there is no iterate yet.

    Negative curvature met there is as good a measure of length as positive: the
    quadratic model with its sign turned, but no further than the point itself is
    from the origin.
    """
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
