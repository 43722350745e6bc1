"""ShiftedNewton: the Newton step of H + τI, with τ just large enough.

τ = max(−factor · λ_min, 0), as in the Hessian example of Deepwave's documentation; the
idea is Goldfeld, Quandt and Trotter's, Econometrica 34, 1966. With the Lanczos solver
λ_min and the step come from one Krylov space, so the shift costs no product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from hvpopt import checks
from hvpopt.errors import AsymmetryError
from hvpopt.krylov.cg import CGStatus, flat_cg
from hvpopt.krylov.eigenvalue import (
    excludes_below,
    lower_bound,
    rounding_at,
    smallest_eigenvalue,
    tolerance_at,
)
from hvpopt.krylov.lanczos import LanczosBasis
from hvpopt.krylov.preconditioner import (
    Preconditioner,
    RestrictedPreconditioner,
    checked_preconditioner,
)
from hvpopt.methods.backtracking import Backtracking
from hvpopt.methods.forcing import Constant, Forcing, ForcingState, as_forcing
from hvpopt.methods.method import (
    Direction,
    InnerStatus,
    OutOfBudget,
    Step,
)
from hvpopt.methods.points import Budget, FreeCells, Point, Problem
from hvpopt.methods.saddle import SecondOrderMethod, SecondOrderOptions
from hvpopt.model._scale import euclidean_norm
from hvpopt.operators.dense import DenseHessian
from hvpopt.operators.symmetric import DENSE_MEMORY_LIMIT, ShiftedOperator
from hvpopt.problem.objective import Kind, check_kind

if TYPE_CHECKING:
    from typing_extensions import Unpack

SOLVERS = ("lanczos", "cg", "cholesky")


@dataclass(frozen=True, eq=False)
class ShiftedState:
    """What one step leaves to the next."""

    forcing: ForcingState  # of the next linear solve
    #: direction of negative curvature that the last step met [n]
    lowest: Tensor | None = None


class ShiftedNewton(SecondOrderMethod):
    """Newton's method on H + τI with ``τ = max(−factor · λ_min, 0)``.

    Args:
        solver: ``"lanczos"``: λ_min and step from one Krylov space of the gradient, to
            which a random probe of size ``tol / 10`` is added so that no eigenvector is
            missing. ``"cg"``: λ_min by Lanczos from a random start, then conjugate
            gradients. ``"cholesky"``: the dense matrix, for small models.
        hessian: ``"exact"`` or ``"gauss-newton"``. Default ``"exact"``.
        tol: Of the linear solve, ``‖(H + τI) h + g‖ ≤ tol · ‖g‖``: a number, or a
            forcing term that follows the run. Default 1e-3.
        factor: Of the shift. Over 1. Default 1.5.
        eigenvalue_tol: Relative residual that a negative λ_min is asked for. Default
            1e-2, which puts the error of λ_min near its square. Of a positive one the
            Lanczos solver only certifies the sign, since τ = 0 whatever its size.
        preconditioner: Of conjugate gradients, in flat coordinates; solver ``"cg"``
            only. Default none. (For Lanczos, choose the ModelSpace's scale.)
        globalisation: Shortens steps. Default ``Backtracking()``.
        memory_limit: Of the dense matrix, bytes or a string such as ``"2GB"``.
        **options: ``max_products``, ``eigenvalue_floor``, ``confidence`` and ``seed`` of
            a ``SecondOrderMethod``.

    Raises:
        TypeError: For an option of the wrong type.
        ValueError: For an unknown solver or Hessian, or a number out of range.

    Example:
        >>> import torch, hvpopt
        >>> f = lambda x: (x**4 - x**2).sum()
        >>> start = torch.tensor([0.1, 0.5], dtype=torch.float64)  # λ_min < 0 here
        >>> result = hvpopt.minimize(f, start, method=hvpopt.ShiftedNewton())
        >>> round(result.fun, 6), result.history[1].shift > 0
        (-0.5, True)
    """

    def __init__(
        self,
        *,
        solver: str = "lanczos",
        hessian: Kind = "exact",
        tol: float | Forcing | None = None,
        factor: float = 1.5,
        eigenvalue_tol: float = 1e-2,
        preconditioner: Preconditioner | None = None,
        globalisation: Backtracking | None = None,
        memory_limit: str | float = DENSE_MEMORY_LIMIT,
        **options: Unpack[SecondOrderOptions],
    ) -> None:
        self.solver = checks.choice("solver", solver, SOLVERS)
        check_kind(hessian, "hessian")
        self.kind = hessian
        self.forcing = Constant(1e-3) if tol is None else as_forcing(tol)
        says = "H + τI is definite only for factor > 1"
        self.factor = checks.number(
            "factor", factor, above=1.0, below=math.inf, says=says
        )
        self.eigenvalue_tol = checks.number(
            "eigenvalue_tol", eigenvalue_tol, above=0.0, below=1.0
        )
        super().__init__(**options)
        if preconditioner is not None and solver != "cg":
            raise ValueError(
                f"a preconditioner goes with solver='cg', not {solver!r}; for Lanczos "
                "give minimize a scale, such as the diagonal to the power −1/2"
            )
        self.preconditioner = checked_preconditioner(preconditioner)
        self.globalisation = Backtracking() if globalisation is None else globalisation
        use = "pass a Backtracking(...)"
        checks.having("globalisation", self.globalisation, "search", use)
        self.memory_limit = checks.memory("memory_limit", memory_limit)

    def start(self, problem: Problem) -> ShiftedState:
        """Return the state that a run begins with."""
        return ShiftedState(self.forcing.start())

    def step(
        self, problem: Problem, point: Point, state: ShiftedState, budget: Budget
    ) -> Step:
        """Return the shifted Newton step, shortened by the globalisation."""
        direction = self.direction(
            point, budget, lowest=state.lowest, tol=self.forcing.tolerance(state.forcing)
        )
        step = self.globalisation.search(problem, point, direction)
        return replace(step, memo=direction.negative_curvature)

    def direction(
        self,
        point: Point,
        budget: Budget,
        *,
        lowest: Tensor | None = None,
        tol: float | None = None,
    ) -> Direction:
        """Return the shifted Newton direction at a linearised point.

        With solver ``"cg"`` the search for the lowest eigenvector begins with ``lowest``
        ``[n]``, that of the point before. ``tol`` is by default that of a first step.
        """
        free = point.free_cells()
        tol = self.forcing.start().tol if tol is None else tol
        if self.solver == "cg":
            direction = self._by_cg(free, budget, tol, lowest)
        elif self.solver == "lanczos":
            direction = self._by_lanczos(free, budget, tol)
        else:
            direction = self._by_cholesky(free, budget, tol)
        below = direction.negative_curvature
        return replace(
            direction,
            vector=free.extend(direction.vector),
            negative_curvature=None if below is None else free.extend(below),
        )

    def next_stage(self, problem: Problem, state: ShiftedState) -> ShiftedState:
        """Return the state with a new tolerance, since that follows one objective."""
        return replace(state, forcing=self.forcing.start())

    def update(
        self, state: ShiftedState, before: Point, after: Point, step: Step
    ) -> ShiftedState:
        """Return the state after an accepted step."""
        norms = (euclidean_norm(p.projected_gradient) for p in (before, after))
        forcing = state.forcing
        if not step.direction.curvature_step:  # which solved nothing
            forcing = self.forcing.update(forcing, *norms)
        return ShiftedState(forcing, None if step.memo is None else step.memo.clone())

    def _shift(self, smallest: float, rounding: float, least: float = 0.0) -> float:
        shift = max(-self.factor * smallest, 0.0)
        # a Hessian that is singular to rounding still needs something to divide by
        if smallest + shift > rounding:
            return shift
        return shift + (max(2 * rounding, least) or 1.0)

    @staticmethod
    def _without_shift(smallest: float, shift: float, rounding: float) -> float:
        """Return how many times longer a step may be without its shift."""
        if shift == 0.0 or smallest < -rounding:  # the shift is part of the step
            return 1.0
        return (smallest + shift) / smallest if smallest > rounding else math.inf

    def _by_lanczos(self, free: FreeCells, budget: Budget, tol: float) -> Direction:
        operator, gradient = free.operator, free.gradient
        tol = min(tol, budget.accuracy)
        basis = LanczosBasis(operator, rhs=-gradient, probe=0.1 * tol, seed=self.seed)
        norm = euclidean_norm(gradient)
        limit = max(budget.cap(self.max_products), 1)
        status = InnerStatus.EIGENVALUE
        enough = (InnerStatus.CONVERGED, InnerStatus.FLOOR)
        while status not in enough and basis.size < limit:
            if basis.size and budget.out_of_time:
                break
            if not basis.extend():
                break
            status = self._basis_status(basis, norm, tol)
        smallest = float(basis.ritz_values[0])
        rounding = rounding_at(basis)
        shift = self._basis_shift(basis)
        step = basis.solve(shift)
        return Direction(
            vector=step.vector,
            status=status,
            shift=shift,
            smallest_eigenvalue=smallest,
            lower_bound=lower_bound(basis, self.confidence),
            residual=step.residual_norm / norm,
            inner_iterations=basis.size,
            negative_curvature=basis.ritz_vector() if smallest < -rounding else None,
            unbounded=self._without_shift(smallest, shift, rounding),
        )

    def _basis_shift(self, basis: LanczosBasis) -> float:
        rounding = basis.operator.noise * basis.norm_estimate
        return self._shift(float(basis.ritz_values[0]), rounding)

    def _basis_status(self, basis: LanczosBasis, norm: float, tol: float) -> InnerStatus:
        """Return which tolerance the basis misses; the checks are in order of cost."""
        shift = self._basis_shift(basis)
        residual = basis.residual_norm(shift) / norm
        floor = basis.floor(shift)
        if residual > max(tol, floor):
            return InnerStatus.RESIDUAL
        zero = self.eigenvalue_floor * basis.norm_estimate
        if float(basis.ritz_values[0]) < -zero:
            allowed = tolerance_at(basis, self.eigenvalue_tol, self.eigenvalue_floor)
            if basis.ritz_residual() > allowed:
                return InnerStatus.EIGENVALUE
        # H + τI is definite if no eigenvalue lies below −τ; where λ_min is positive
        # its sign is all that the step needs
        if not excludes_below(basis, -max(shift, zero), self.confidence):
            return InnerStatus.EIGENVALUE
        return InnerStatus.CONVERGED if floor <= tol else InnerStatus.FLOOR

    def _by_cg(
        self, free: FreeCells, budget: Budget, tol: float, lowest: Tensor | None
    ) -> Direction:
        operator, gradient = free.operator, free.gradient
        limit = max(budget.cap(self.max_products), 1)
        asymmetric = False
        try:
            estimate = smallest_eigenvalue(
                operator,
                tol=self.eigenvalue_tol,
                start=None if lowest is None else free.restrict(lowest),
                floor=self.eigenvalue_floor,
                max_products=max(limit - 1, 1),  # conjugate gradients get one at least
                deadline=budget.deadline,
                confidence=self.confidence,
                seed=self.seed,
            )
        except AsymmetryError as error:
            # a step may lower the loss all the same, as with the other solvers
            estimate, asymmetric = error.estimate, True
        shift = self._shift(estimate.value, estimate.upper - estimate.value)
        preconditioner = self.preconditioner
        if preconditioner is not None:
            preconditioner = RestrictedPreconditioner(
                preconditioner, free.restrict, free.extend
            )
        solution = flat_cg(
            ShiftedOperator(operator, shift),
            -gradient,
            tol=min(tol, budget.accuracy),
            max_products=limit - estimate.n_products,
            deadline=budget.deadline,
            preconditioner=preconditioner,
        )
        status = InnerStatus.CONVERGED
        vector = solution.x
        if not estimate.converged:
            status = InnerStatus.EIGENVALUE
        elif solution.status is not CGStatus.CONVERGED:
            status = InnerStatus.RESIDUAL
        if solution.direction is not None:
            status = InnerStatus.INDEFINITE
        if asymmetric:
            status = InnerStatus.ASYMMETRIC
        if not bool(vector.any()):
            # no iterate yet: steepest descent, preconditioned where curvature was met
            vector = -gradient if solution.direction is None else solution.direction
        return Direction(
            vector=vector,
            status=status,
            shift=shift,
            smallest_eigenvalue=estimate.value,
            lower_bound=estimate.lower,
            residual=solution.residual_norm / euclidean_norm(gradient),
            inner_iterations=solution.n_products,
            negative_curvature=estimate.vector if estimate.upper < 0.0 else None,
            unbounded=self._without_shift(
                estimate.value, shift, estimate.upper - estimate.value
            ),
        )

    def _by_cholesky(self, free: FreeCells, budget: Budget, tol: float) -> Direction:
        operator, gradient = free.operator, free.gradient
        if operator.size > budget.products:
            raise OutOfBudget(
                f"a dense step takes {operator.size} products, and "
                f"{budget.products:g} are left"
            )
        dense = DenseHessian(
            operator, memory_limit=self.memory_limit, deadline=budget.deadline
        )
        smallest, _ = dense.smallest_eigenvalue()
        largest = float(dense.matrix.abs().max())
        rounding = operator.noise * largest
        # the gradient has rounding in a null space, which must not be divided by rounding
        shift = self._shift(smallest, rounding, self.eigenvalue_floor * largest)
        vector = dense.solve(-gradient, shift)
        residual = dense.matrix @ vector + shift * vector + gradient
        relative = euclidean_norm(residual) / euclidean_norm(gradient)
        return Direction(
            vector=vector,
            status=(InnerStatus.CONVERGED if relative <= tol else InnerStatus.RESIDUAL),
            shift=shift,
            smallest_eigenvalue=smallest,
            lower_bound=smallest - rounding,
            residual=relative,
            unbounded=self._without_shift(smallest, shift, rounding),
        )
