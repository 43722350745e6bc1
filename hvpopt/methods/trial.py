"""Trial steps of several radii from one Krylov space, judged by value alone.

Where a bound cuts a step short, the model's decrease along what is left would take a
product. There the step's own mean curvature stands in for it to judge the radius, and
acceptance asks for Armijo's decrease along what was really moved, as Backtracking does:
since the step turns to steepest descent as the radius falls, some radius passes
(Bertsekas, SIAM J. Control Optim. 20, 1982).

Near a minimum both decreases fall below the rounding of the loss. Adding that rounding to
both makes their ratio tend to 1 there (Conn, Gould and Toint, §17.4.2).
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from hvpopt.krylov.eigenvalue import lower_bound, rounding_at
from hvpopt.krylov.lanczos import KrylovStep, LanczosBasis
from hvpopt.methods.method import Direction, InnerStatus, Step
from hvpopt.methods.points import Budget, Point, Problem
from hvpopt.model.scale import euclidean_norm

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
#: Least and largest factor of a shrinking radius, and the factor of a growing one.
SHRINK, GROW = (0.1, 0.5), 2.0
#: Factor of the tolerance where a step at the old one is lost in the loss's rounding.
REFINEMENT = 0.1


@dataclass(frozen=True)
class SearchMemo:
    """What an accepted step tells the next.

    Attributes:
        radius: For the next step.
        below_rounding: True if the predicted decrease is under the rounding of the loss.
    """

    radius: float
    below_rounding: bool


@dataclass(frozen=True)
class Trial:
    """A step of one radius and what the loss said to it.

    Attributes:
        radius: Δ.
        step: From the Krylov space.
        vector: The end, inside the bounds ``[n]``.
        value: The loss there.
        length: Of what was really moved.
        slope: ``g·(moved)``.
        predicted: Decrease by the model, or its stand-in where a bound cut the step.
        cut: True if a bound cut the step.
        ratio: Actual over predicted decrease, both lifted by the loss's rounding.
        below_rounding: True if the predicted decrease is under the rounding of the loss.
        accepted: True if it may be the step.
    """

    radius: float
    step: KrylovStep
    vector: Tensor
    value: float
    length: float
    slope: float
    predicted: float
    cut: bool
    ratio: float
    below_rounding: bool
    accepted: bool


class RadiusSearch:
    """The search for the radius of one step.

    Args:
        problem: For trial values.
        point: Where to step from, with its Hessian.
        budget: What may still be spent.
        tol: Relative residual of the linear solve.
        probe: Size of the random part of the space's start.
        max_products: At most.
        max_trials: Values at most.
        confidence: Of the lower bound on λ_min.
        seed: Of the random part.
        exacting: Ask for a decrease also under the rounding of the loss.
    """

    def __init__(
        self,
        problem: Problem,
        point: Point,
        budget: Budget,
        *,
        tol: float,
        probe: float,
        max_products: int,
        max_trials: int,
        confidence: float,
        seed: int,
        exacting: bool,
    ) -> None:
        self.problem = problem
        self.point = point
        self.budget = budget
        self.free = point.free_cells()
        self.basis = LanczosBasis(
            self.free.operator, self.free.gradient, probe=probe, seed=seed
        )
        self.norm = euclidean_norm(self.free.gradient)
        self.tol = tol
        self.limit = max(budget.cap(max_products), 1)
        self.max_trials = max_trials
        self.confidence = confidence
        self.rounding = self.free.operator.noise * abs(point.value)
        self.slack = 0.0 if exacting else self.rounding
        self.trials = 0
        self.refused = math.inf  # the shortest step of this basis that was no good

    def run(self, radius: float | None) -> Step:
        """Return the step of the best radius met.

        Args:
            radius: To begin with; None for that of the Newton step.

        Returns:
            The step; without a vector if no trial was acceptable.
        """
        self.problem.last_error = None
        first = radius = self._first_radius() if radius is None else radius
        asked, status = self.tol, InnerStatus.RESIDUAL
        while True:
            reached = self._extend(radius)
            # of a refinement that nobody asked for nothing is reported
            status = reached if self.tol == asked else status
            trial = self._try(radius)
            if trial.accepted:
                return self._finish(*self._larger(trial), status)
            self.refused = min(self.refused, trial.step.norm)
            radius = self._shorter(trial)
            hopeless = trial.below_rounding or self._vanishes(radius)
            if self.trials >= self.max_trials or (hopeless and not self._refine(first)):
                return self._give_up(trial, status)
            if hopeless:
                radius, self.refused = first, math.inf

    # -- the Krylov space -------------------------------------------------------

    def _first_radius(self) -> float:
        self._extend(None)
        # a hair longer, or a Newton step would count as bounded
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
        """Ask for a more accurate step; return False if there is none to be had."""
        # A rough step descends along the steep directions alone. Where rounding hides
        # that descent the valley along the others may still fall.
        if self.basis.invariant or self._status(radius) is not InnerStatus.CONVERGED:
            return False
        residual = self.basis.residual_norm(radius=radius) / self.norm
        self.tol = REFINEMENT * min(self.tol, residual)
        return True

    # -- trials -----------------------------------------------------------------

    def _try(self, radius: float) -> Trial:
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
        asked = ACCEPT * (-slope if cut else predicted)
        actual = point.value - value
        lifted = max(predicted, 0.0) + self.slack
        return Trial(
            radius=radius,
            step=step,
            vector=vector,
            value=value,
            length=length,
            slope=slope,
            predicted=predicted,
            cut=cut,
            ratio=(actual + self.slack) / lifted if lifted > 0.0 else -math.inf,
            below_rounding=not cut and predicted <= self.rounding,
            accepted=actual + self.slack >= asked + ACCEPT * self.slack,
        )

    def _larger(self, trial: Trial) -> tuple[Trial, bool]:
        """Return the best of a trial and larger ones, and whether one was too large."""
        while (
            trial.step.on_boundary
            and trial.ratio >= EXCELLENT
            and not trial.below_rounding
            and self.trials < self.max_trials
        ):
            radius = GROW * trial.radius
            if radius >= self.refused:  # it would be that step again, or a longer one
                return trial, True
            larger = self._try(radius)
            if not larger.accepted or larger.value >= trial.value:
                return trial, True
            trial = larger
        return trial, False

    def _shorter(self, trial: Trial) -> float:
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

    def _finish(self, trial: Trial, bounded: bool, status: InnerStatus) -> Step:
        radius = trial.radius
        if trial.ratio < POOR:
            radius = self._shorter(trial)
        elif trial.ratio > GOOD and trial.step.on_boundary and not bounded:
            radius = GROW * trial.radius
        memo = SearchMemo(radius, trial.below_rounding)
        direction = self._direction(trial, status)
        return Step(trial.vector, trial.value, 1.0, self.trials, direction, memo=memo)

    def _direction(self, trial: Trial, status: InnerStatus) -> Direction:
        lowest = float(self.basis.ritz_values[0])
        error = self.basis.asymmetry * self.basis.norm_estimate
        negative = lowest < -max(rounding_at(self.basis), error)
        return Direction(
            vector=self.free.extend(trial.step.vector),
            status=status,
            shift=trial.step.multiplier,
            smallest_eigenvalue=lowest,
            lower_bound=lower_bound(self.basis, self.confidence),
            residual=trial.step.residual_norm / self.norm,
            inner_iterations=self.basis.size,
            predicted=trial.step.decrease,
            radius=trial.radius,
            negative_curvature=(
                self.free.extend(self.basis.ritz_vector()) if negative else None
            ),
            unbounded=self._unbounded(trial, lowest),
        )

    def _unbounded(self, trial: Trial, lowest: float) -> float:
        """Return how many times longer the step would be without its radius."""
        if not trial.step.on_boundary:
            return 1.0
        if lowest <= 0.0:
            return math.inf
        return self.basis.solve().norm / trial.step.norm

    def _give_up(self, trial: Trial, status: InnerStatus) -> Step:
        reason = (
            f"none of {self.trials} radii down to {trial.radius:.3g} lowered the loss "
            f"{self.point.value:.6g} enough; it may be at the rounding of its values"
        )
        if self.problem.last_failure:
            reason += f" (last refusal: {self.problem.last_failure})"
        direction = self._direction(trial, status)
        return Step(None, self.point.value, 0.0, self.trials, direction, reason)


def _shorter_radius(length: float, slope: float, change: float) -> float:
    """Return the radius after a poor step: where a parabola has its minimum.

    The parabola goes through the value and slope at the start and the value at the end of
    the step (Dennis and Schnabel, Numerical Methods for Unconstrained Optimization, 1983,
    §6.4.3).

    Args:
        length: Of the step.
        slope: ``g·h`` of the step.
        change: Of the loss over the step; infinite where it could not be evaluated.
    """
    low, high = SHRINK
    if not math.isfinite(change) or change <= slope:
        return math.sqrt(low * high) * length
    return min(max(-0.5 * slope / (change - slope), low), high) * length
