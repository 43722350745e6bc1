"""TrustRegionNewton: the minimum of the quadratic model within a radius.

The radius bounds the step also where the curvature is negative (Conn, Gould and Toint,
Trust-Region Methods, 2000, §6.1). All radii of one linearisation share one Lanczos basis
(Gould, Lucidi, Roma and Toint, SIAM J. Optim. 9, 1999), so that another trial, of a
smaller or a larger radius, costs a value and no product.

Trials are judged by value alone. Where a bound cuts a step short, the model's decrease
along the rest would take a product. There it is estimated by the mean curvature of the
whole step to choose the radius, and acceptance takes Armijo's decrease along the cut
step, as in Backtracking: since the step turns to steepest descent as the radius falls,
some radius passes (Bertsekas, SIAM J. Control Optim. 20, 1982).

Near a minimum both decreases are below the rounding of the loss. Adding that rounding to
both makes their ratio tend to 1 there (Conn, Gould and Toint, §17.4.2).
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.krylov.eigenvalue import lower_bound, rounding_at
from hvpopt.krylov.lanczos import KrylovStep, LanczosBasis
from hvpopt.methods.backtracking import GRADIENT_PROGRESS, shortened
from hvpopt.methods.forcing import (
    Forcing,
    ForcingState,
    SquareRoot,
    as_forcing,
)
from hvpopt.methods.method import Direction, InnerStatus, Step
from hvpopt.methods.points import Budget, Point, Problem
from hvpopt.methods.saddle import SecondOrderMethod, SecondOrderOptions
from hvpopt.model._scale import euclidean_norm
from hvpopt.problem.objective import Kind, check_kind

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Ratios actual / predicted decrease, and factors of the radius, of Conn, Gould and Toint,
# §6.1.
#: A trial above it is a step.
ACCEPT = 1e-4
#: A step under it shrinks the next radius.
POOR = 0.25
#: A step above it, on the boundary, grows the next radius.
GOOD = 0.75
#: Above it, on the boundary, a larger radius is tried at once, for one value.
EXCELLENT = 0.9
#: Times its rounding, a decrease of the loss that is certainly visible.
VISIBLE = 1e6
#: Least and largest factor of a shrinking radius, and the factor of a growing one.
SHRINK, GROW = (0.1, 0.5), 2.0
#: Factor of the tolerance where the decrease of a step is below the loss's rounding.
REFINEMENT = 0.1


@dataclass(frozen=True)
class TrustRegionState:
    """What one step leaves to the next."""

    radius: float | None  # of the next step; None before the first
    forcing: ForcingState
    #: the decrease was below the rounding of the loss and the gradient did not fall
    stalled: bool = False


class TrustRegionNewton(SecondOrderMethod):
    """Newton's method in a trust region, for indefinite Hessians as for definite ones.

    Args:
        hessian: ``"exact"`` or ``"gauss-newton"``. Default ``"exact"``.
        tol: Of the linear solve, ``‖(H + λI) h + g‖ ≤ tol · ‖g‖``: a number, or a
            forcing term that follows the run. Default ``SquareRoot()``.
        radius: Of the first step, in flat coordinates. Default None: the length of the
            Newton step, or where negative curvature is met that of the step of
            H + 1.5|θ_1|I. One that is too long costs values alone.
        probe: Size of the random part of the Krylov space's start, relative to the
            tolerance of the solve. With it the space contains negative curvature
            orthogonal to the gradient (the hard case). Unknowns that do not affect the
            loss move by about this, relative to the step. Default 1e-4.
        max_trials: Values for one step. Default 30.
        **options: ``max_products``, ``eigenvalue_floor``, ``confidence`` and ``seed`` of
            a ``SecondOrderMethod``.

    Raises:
        TypeError: For a tolerance that is neither number nor forcing term.
        ValueError: For an unknown Hessian or a number out of range.

    Example:
        >>> import torch, hvpopt
        >>> saddle = lambda v: v[0] ** 4 - v[0] ** 2 + v[1] ** 2
        >>> x0 = torch.tensor([0.0, 1.0], dtype=torch.float64)
        >>> result = hvpopt.minimize(saddle, x0, method=hvpopt.TrustRegionNewton())
        >>> round(result.fun, 6)
        -0.25
    """

    def __init__(
        self,
        *,
        hessian: Kind = "exact",
        tol: float | Forcing | None = None,
        radius: float | None = None,
        probe: float = 1e-4,
        max_trials: int = 30,
        **options: Unpack[SecondOrderOptions],
    ) -> None:
        super().__init__(**options)
        check_kind(hessian, "hessian")
        self.kind = hessian
        self.forcing = SquareRoot() if tol is None else as_forcing(tol)
        self.radius = checks.optional(
            checks.number, "radius", radius, above=0.0, below=math.inf
        )
        says = "it is relative to the tolerance and must lie in [0, 1)"
        self.probe = checks.number("probe", probe, least=0.0, below=1.0, says=says)
        self.max_trials = checks.integer("max_trials", max_trials, least=1)

    def start(self, problem: Problem) -> TrustRegionState:
        """Return the state that a run begins with."""
        return TrustRegionState(self.radius, self.forcing.start())

    def next_stage(self, problem: Problem, state: TrustRegionState) -> TrustRegionState:
        """Return the radius of the last state and a new tolerance for a new objective."""
        return TrustRegionState(state.radius, self.forcing.start())

    def step(
        self, problem: Problem, point: Point, state: TrustRegionState, budget: Budget
    ) -> Step:
        """Return the step of the largest radius that the loss agrees with."""
        tol = min(self.forcing.tolerance(state.forcing), budget.accuracy)
        search = _RadiusSearch(
            self, problem, point, budget, tol=tol, strict=state.stalled
        )
        return search.run(state.radius)

    def update(
        self, state: TrustRegionState, before: Point, after: Point, step: Step
    ) -> TrustRegionState:
        """Return the state after an accepted step."""
        memo: Any = step.memo
        if not isinstance(memo, _Memo):
            # off a stationary point: the region must reach as far as that step did
            moved = euclidean_norm(after.vector - before.vector)
            radius = None if state.radius is None else max(state.radius, moved)
            return replace(state, radius=radius, stalled=False)
        norm_before = euclidean_norm(before.projected_gradient)
        norm_after = euclidean_norm(after.projected_gradient)
        return replace(
            state,
            radius=memo.radius,
            forcing=self.forcing.update(state.forcing, norm_before, norm_after),
            stalled=memo.below_rounding and norm_after > GRADIENT_PROGRESS * norm_before,
        )


@dataclass(frozen=True)
class _Memo:
    """What an accepted step tells the next."""

    radius: float  # for the next step
    below_rounding: bool  # the predicted decrease is below the rounding of the loss


@dataclass(frozen=True)
class _Trial:
    """A step of one radius and the loss at its end."""

    radius: float  # Δ
    step: KrylovStep
    vector: Tensor  # the end, inside the bounds [n]
    value: float
    length: float  # of what was really moved
    slope: float  # g·(moved)
    predicted: float  # by the model, or its estimate where a bound cut the step
    cut: bool  # a bound cut the step
    ratio: float  # actual over predicted decrease, the loss's rounding added to both
    below_rounding: bool  # the predicted decrease is below the rounding of the loss
    accepted: bool  # it may be the step


class _RadiusSearch:
    """The search for the radius of one step."""

    # ``tol`` is the relative residual of the linear solve; ``strict`` asks for a
    # decrease also below the rounding of the loss.

    def __init__(
        self,
        method: TrustRegionNewton,
        problem: Problem,
        point: Point,
        budget: Budget,
        *,
        tol: float,
        strict: bool,
    ) -> None:
        self.method = method
        self.problem = problem
        self.point = point
        self.budget = budget
        self.free = point.free_cells()
        self.basis = LanczosBasis(
            self.free.operator,
            rhs=-self.free.gradient,
            probe=method.probe * tol,
            seed=method.seed,
        )
        self.norm = euclidean_norm(self.free.gradient)
        self.tol = tol
        self.limit = max(budget.cap(method.max_products), 1)
        self.rounding = self.free.operator.noise * abs(point.value)
        self.slack = 0.0 if strict else self.rounding
        self.trials = 0
        self.promised = 0.0  # largest decrease that a trial promised
        self.refused = math.inf  # length of the shortest step that was not accepted

    def run(self, radius: float | None) -> Step:
        """Return the step of the best radius, without a vector if none is acceptable."""
        self.problem.last_error = None
        first = radius = self._first_radius() if radius is None else radius
        asked, status = self.tol, InnerStatus.RESIDUAL
        failed = 0
        while True:
            reached = self._extend(radius)
            # the status at the first tolerance, not at a later refinement, is reported
            status = reached if self.tol == asked else status
            trial = self._try(radius)
            if trial.accepted:
                return self._finish(*self._larger(trial), status)
            self.refused = min(self.refused, trial.step.norm)
            failed += 1
            radius = shortened(
                self._shorter(trial),
                failed,
                length=trial.radius,
                promised=max(trial.predicted, 0.0),
                rounding=self.rounding,
            )
            too_small = trial.below_rounding or self._vanishes(radius)
            if self.trials >= self.method.max_trials or (
                too_small and not self._refine(first)
            ):
                return self._give_up(trial, status)
            if too_small:
                radius, self.refused, failed = first, math.inf, 0

    # -- the Krylov space -------------------------------------------------------

    def _first_radius(self) -> float:
        self._extend(None)
        # longer by 1e-9, or a Newton step would count as bounded
        return (1 + 1e-9) * self.basis.solve(self._first_shift()).norm

    def _first_shift(self) -> float:
        if self.basis.norm_estimate == 0.0:
            # a flat model: a step as long as the point is from the origin
            length = 1.0 + euclidean_norm(self.point.vector)
            return max(self.norm / length, sys.float_info.min)
        lowest = float(self.basis.ritz_values[0])
        rounding = rounding_at(self.basis)
        if lowest > rounding:
            return 0.0
        return max(-1.5 * lowest, 2 * rounding)

    def _extend(self, radius: float | None) -> InnerStatus:
        """Extend the basis until its step is accurate enough, or as far as it goes."""
        if not self.basis.size:
            self.basis.extend()
        while (status := self._status(radius)) is InnerStatus.RESIDUAL:
            spent = self.basis.size >= self.limit or self.budget.out_of_time
            if spent or not self.basis.extend():
                break
        return status

    def _status(self, radius: float | None) -> InnerStatus:
        shift = self._first_shift() if radius is None else 0.0
        residual = self.basis.residual_norm(shift, radius=radius) / self.norm
        floor = self.basis.floor(shift, radius=radius)
        if residual > max(self.tol, floor):
            return InnerStatus.RESIDUAL
        return InnerStatus.CONVERGED if floor <= self.tol else InnerStatus.FLOOR

    def _refine(self, radius: float) -> bool:
        """Lower the tolerance of the step; return False if none is more accurate."""
        # An inaccurate step decreases the loss along the steep directions alone. Where
        # that is below rounding, the others may still decrease it.
        if self.basis.invariant or self._status(radius) is not InnerStatus.CONVERGED:
            return False
        residual = self.basis.residual_norm(radius=radius) / self.norm
        self.tol = REFINEMENT * min(self.tol, residual)
        return True

    # -- trials -----------------------------------------------------------------

    def _try(self, radius: float) -> _Trial:
        point, space = self.point, self.problem.space
        step = self.basis.solve(radius=radius)
        end = point.vector + self.free.extend(step.vector)
        vector = space.project(end)
        moved = vector - point.vector
        cut = space.bounded and not torch.equal(vector, end)
        slope = float(point.gradient @ moved)
        length = euclidean_norm(moved)
        value = math.inf
        if slope < 0.0 or (not cut and length > 0.0):
            self.trials += 1
            value = self.problem.value(vector)
        predicted = step.decrease
        if cut:
            own_slope = float(self.free.gradient @ step.vector)
            # of minus half the step's own mean curvature, as much as was moved
            part = (length / step.norm) ** 2
            predicted = -slope + part * (step.decrease + own_slope)
        # what a trial is accepted by; for a whole step that is its ratio
        asked = ACCEPT * (-slope if cut else max(predicted, 0.0))
        self.promised = max(self.promised, predicted)
        actual = point.value - value
        lifted = max(predicted, 0.0) + self.slack
        # no visible decrease where one was predicted: the gradient may be wrong
        noise = actual <= self.rounding and self.promised > VISIBLE * self.rounding
        return _Trial(
            radius=radius,
            step=step,
            vector=vector,
            value=value,
            length=length,
            slope=slope,
            predicted=predicted,
            cut=cut,
            ratio=(actual + self.slack) / lifted if lifted > 0.0 else -math.inf,
            # far below zero it is what cancellation left
            below_rounding=not cut and abs(predicted) <= self.rounding,
            accepted=not noise and actual + self.slack >= asked + ACCEPT * self.slack,
        )

    def _larger(self, trial: _Trial) -> tuple[_Trial, bool]:
        """Return the best of a trial and larger ones, and whether one was too large."""
        while (
            trial.step.on_boundary
            and trial.ratio >= EXCELLENT
            and not trial.below_rounding
            and self.trials < self.method.max_trials
        ):
            radius = GROW * trial.radius
            if radius >= self.refused:  # it would be that step again, or a longer one
                return trial, True
            larger = self._try(radius)
            if not larger.accepted or larger.value >= trial.value:
                return trial, True
            trial = larger
        return trial, False

    def _shorter(self, trial: _Trial) -> float:
        length = trial.step.norm
        if trial.cut:
            # a step may reach far beyond a bound: what counts is how far it moved
            length = max(trial.length, SHRINK[0] * length)
        change = trial.value - self.point.value
        return min(_shorter_radius(length, trial.slope, change), 0.5 * trial.radius)

    def _vanishes(self, radius: float) -> bool:
        eps = torch.finfo(self.point.vector.dtype).eps
        return radius <= eps * float(self.point.vector.abs().max())

    # -- outcomes ---------------------------------------------------------------

    def _finish(self, trial: _Trial, bounded: bool, status: InnerStatus) -> Step:
        radius = trial.radius
        if trial.ratio < POOR:
            radius = self._shorter(trial)
        elif trial.ratio > GOOD and trial.step.on_boundary and not bounded:
            radius = GROW * trial.radius
        memo = _Memo(radius, trial.below_rounding)
        direction = self._direction(trial, status)
        return Step(trial.vector, trial.value, 1.0, self.trials, direction, memo=memo)

    def _direction(self, trial: _Trial, status: InnerStatus) -> Direction:
        lowest = float(self.basis.ritz_values[0])
        error = self.basis.asymmetry * self.basis.norm_estimate
        negative = lowest < -max(rounding_at(self.basis), error)
        return Direction(
            vector=self.free.extend(trial.step.vector),
            status=status,
            shift=trial.step.multiplier,
            smallest_eigenvalue=lowest,
            lower_bound=lower_bound(self.basis, self.method.confidence),
            residual=trial.step.residual_norm / self.norm,
            inner_iterations=self.basis.size,
            predicted=trial.step.decrease,
            radius=trial.radius,
            negative_curvature=(
                self.free.extend(self.basis.ritz_vector()) if negative else None
            ),
            unbounded=self._unbounded(trial, lowest),
        )

    def _unbounded(self, trial: _Trial, lowest: float) -> float:
        """Return how many times longer the step would be without its radius."""
        if not trial.step.on_boundary:
            return 1.0
        if lowest <= 0.0:
            return math.inf
        return self.basis.solve().norm / trial.step.norm

    def _give_up(self, trial: _Trial, status: InnerStatus) -> Step:
        tried = f"none of {self.trials} radii down to {trial.radius:.3g}"
        reason = self.problem.why_none_lowered(self.point, tried, promised=self.promised)
        direction = self._direction(trial, status)
        return Step(None, self.point.value, 0.0, self.trials, direction, reason)


def _shorter_radius(length: float, slope: float, change: float) -> float:
    """Return the radius after a poor step: where a parabola has its minimum.

    The parabola goes through the value and slope ``g·h`` at the start and the value at
    the end of the step (Dennis and Schnabel, Numerical Methods for Unconstrained
    Optimization, 1983, §6.4.3). An infinite ``change`` is of a step whose end could not
    be evaluated.
    """
    low, high = SHRINK
    if not math.isfinite(change) or change <= slope:
        return math.sqrt(low * high) * length
    return min(max(-0.5 * slope / (change - slope), low), high) * length
