"""When a run has converged: a small gradient, a small next step, and known curvature.

A small gradient alone says little where curvatures differ much: one step along a steep
direction lowers it by orders of magnitude, and leaves all other unknowns where they
began. So two tests must hold, both free of units (Dennis and Schnabel, Numerical Methods
for Unconstrained Optimization, 1983, §7.2):

    ‖P g‖ ≤ gtol · (the largest ‖P g‖ met)               the gradient
    ‖h_p‖ ≤ gtol · max(‖x⁰_p‖, ‖x_p‖, ‖x_p − x⁰_p‖)      the step, for every parameter p

where h is the whole step that the method would take next: of a Newton method solved to
``ACCURACY``, of a quasi-Newton method by its approximate curvature, of which the last
``GUESSES`` steps must have been as small too. (Newton methods on waveforms are asked for
the last step only.) The second test also holds where the predicted decrease ½|g·h| is
below the rounding of the loss. Methods whose curvature is not positive by construction
then look at the smallest eigenvalue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from hvpopt.methods.backtracking import rounding_of
from hvpopt.methods.method import (
    Direction,
    InnerStatus,
    Method,
    OutOfBudget,
    Stationary,
    Step,
)
from hvpopt.methods.points import Budget, Point, Problem
from hvpopt.model._scale import euclidean_norm
from hvpopt.model.counts import Counts
from hvpopt.model.space import ModelSpace

#: Products that a run may spend on λ_min where it starts.
FIRST_LOOK = 20
#: Relative residual of the linear solve by which a step is called small.
ACCURACY = 1e-4
#: Small steps, one after the other, that confirm an approximate curvature.
GUESSES = 3
#: Fraction of the largest gradient under which only its rounding is left.
VANISHED = 1e-14


@dataclass(frozen=True)
class Tolerance:
    """What a run calls converged, and what it has met so far."""

    gtol: float  # of the gradient and of the next step, both relative
    certify: bool  # certify that λ_min is not negative, whatever that costs
    start: Tensor  # the first point of the run [n]
    largest: float  # the largest norm of the projected gradient so far
    allowance: float  # products for the proof if certify is False
    steps: int  # taken so far
    #: how many of the last steps changed no parameter by more than gtol of its size
    rests: int

    @classmethod
    def after(
        cls,
        steps: int,
        spent: Counts,
        looked: int,
        *,
        gtol: float,
        certify: bool,
        start: Tensor,
        largest: float,
        rests: int,
    ) -> Tolerance:
        """Return the tolerance of a run after ``steps`` steps that have ``spent``."""
        # ``looked`` of the products went into steps off stationary points.
        minimising = spent.values + spent.gradients + spent.products - looked
        # half: products of one long Krylov space cost more than those of many short ones
        share = max(minimising // 2, min(minimising, FIRST_LOOK))
        allowance = max(share - looked, 0) if steps else FIRST_LOOK
        return cls(gtol, certify, start, largest, allowance, steps, rests)

    def rested(self, steps: int) -> bool:
        """True if the last steps, as many as there were up to this number, were small."""
        return self.rests >= min(steps, self.steps)

    def gradient_met(self, point: Point) -> bool:
        """True if the projected gradient at a point is within its tolerance."""
        norm = euclidean_norm(point.projected_gradient)
        return norm <= self.gtol * self.largest


@dataclass(frozen=True)
class Iterate:
    """Where a run is when it asks for its next step."""

    problem: Problem
    method: Method
    point: Point
    state: Any
    tolerance: Tolerance
    budget: Budget = field(default_factory=Budget)

    @property
    def assumes_minimum(self) -> bool:
        """True if a point with small gradient and step counts as a minimum.

        So it does for a method whose curvature is positive by construction, and for a
        misfit, which is bounded below by a known value.
        """
        examines = self.method.examines_curvature
        return not examines or self.problem.objective.has_gauss_newton

    @property
    def gradient_ratio(self) -> float:
        """The norm of the projected gradient, relative to the largest so far."""
        return euclidean_norm(self.point.projected_gradient) / self.tolerance.largest

    @property
    def begun_here(self) -> bool:
        """True if a run began where it is, so that its gradients are no measure."""
        start = self.tolerance.start
        moved = self.point.vector - start
        size = relative_size(self.problem.space, start, start, moved)
        return size <= math.sqrt(self.tolerance.gtol)

    def predicted_step(self) -> Tensor | None:
        """Return the method's next step if that costs no product, else None."""
        return self.method.predicted_step(self.problem, self.point, self.state)


def next_step(at: Iterate) -> Step | Stationary:
    """Return the method's next step, or what is known of a point that needs none."""
    # A step that was found on the way and is not small is returned: nothing is spent
    # twice.
    point, tolerance, method = at.point, at.tolerance, at.method
    counts = at.problem.counts
    before = counts.products

    def examine(reason: str, negative: bool) -> Step | Stationary:
        return _examine(at, counts.products - before, reason, negative)

    if euclidean_norm(point.projected_gradient) == 0.0:
        return examine("the projected gradient is zero", negative=False)
    if not tolerance.gradient_met(point):
        step = method.step(at.problem, point, at.state, at.budget)
        reason = _small(at, step.direction, or_hidden=False)
        if step.vector is None and reason and at.begun_here:
            return examine(reason, step.direction.negative_curvature is not None)
        return step
    predicted = at.predicted_step()
    if predicted is not None:
        # the curvature is approximate: the steps taken must have been small too
        reason = _small(at, Direction(predicted))
        if reason and tolerance.rested(GUESSES):
            return examine(reason, negative=False)
        step = method.step(at.problem, point, at.state, at.budget)
        # a step of no decrease is no proof either, unless one before it was small or
        # nothing is left of the gradient
        norm = euclidean_norm(point.projected_gradient)
        rounding = max(VANISHED, 4 * at.problem.space.eps)
        vanished = norm <= rounding * tolerance.largest
        spent_out = step.vector is None and (tolerance.rested(1) or vanished)
        return examine(reason, negative=False) if reason and spent_out else step
    if at.assumes_minimum and not tolerance.certify:
        # a Newton step on waveforms costs too much to compute it for its size only
        if tolerance.rested(1):
            return examine(_at_rest(at), negative=False)
        return method.step(at.problem, point, at.state, at.budget)
    # only the size of the step is needed, accurate in flat directions too
    proof = at.budget.at_most(max(tolerance.allowance, 1))
    try:
        step = method.step(at.problem, point, at.state, replace(proof, accuracy=ACCURACY))
    except OutOfBudget:  # a dense matrix is made whole or not at all
        step = method.step(
            at.problem, point, at.state, at.budget.without(counts.products - before)
        )
    direction = step.direction
    reason = _small(at, direction)
    known = _accurate(direction) or tolerance.rested(1)
    if not (reason and known):
        return step
    return examine(reason, direction.negative_curvature is not None)


def without_products(at: Iterate) -> Stationary | None:
    """Return what is known of a point without evaluating anything; None for nothing."""
    point, tolerance = at.point, at.tolerance
    if euclidean_norm(point.projected_gradient) == 0.0:
        reason = "the projected gradient is zero, and its curvature was not examined"
        return Stationary(False, reason)
    proven = at.assumes_minimum and not tolerance.certify
    if not (proven and tolerance.gradient_met(point) and tolerance.steps):
        return None
    predicted = at.predicted_step()
    reason = ""
    if predicted is None and tolerance.rested(1):
        reason = _at_rest(at)
    elif predicted is not None and tolerance.rested(GUESSES):
        reason = _small(at, Direction(predicted))
    return Stationary(True, reason) if reason else None


def _accurate(direction: Direction) -> bool:
    """True if a linear solve reached ``ACCURACY``, or the least residual possible."""
    floor = direction.status is InnerStatus.FLOOR
    return floor or not direction.residual > 2.0 * ACCURACY


def _at_rest(at: Iterate) -> str:
    gtol = at.tolerance.gtol
    return (
        f"its norm is {at.gradient_ratio:.2g} of the largest met (gtol {gtol:g}), and "
        f"the last step changed no parameter by more than {gtol:g} of its size"
    )


def _small(at: Iterate, direction: Direction, *, or_hidden: bool = True) -> str:
    """Return a clause on how small a step is; empty if it is not small."""
    space, point, tolerance = at.problem.space, at.point, at.tolerance
    if not math.isfinite(direction.unbounded):
        if euclidean_norm(point.projected_gradient) > VANISHED * tolerance.largest:
            return ""
        ratio = f"{at.gradient_ratio:.2g} of the largest met"
        return f"its norm is {ratio}, which is its rounding"
    # of the step that the trust region would not have cut
    moved = space.project(point.vector + direction.vector) - point.vector
    size = direction.unbounded * relative_size(
        space, tolerance.start, point.vector, moved
    )
    promised = 0.5 * direction.unbounded * abs(float(point.gradient @ direction.vector))
    hidden = or_hidden and promised <= rounding_of(at.problem, point)
    if not (size <= tolerance.gtol or hidden):
        return ""
    reason = (
        f"its norm is {at.gradient_ratio:.2g} of the largest met (gtol "
        f"{tolerance.gtol:g}), and the next step would change no parameter by more than "
        f"{size:.2g} of its size"
    )
    if size > tolerance.gtol:
        reason += (
            f" and lower the loss by {promised:.2g}, which is below the rounding of its "
            f"value {point.value:.6g}"
        )
    return reason


def _examine(at: Iterate, spent: int, reason: str, negative: bool) -> Step | Stationary:
    """Return a step along negative curvature, or what is known of the point."""
    # ``spent``: products that the question has cost so far; ``negative``: True if
    # negative curvature was met.
    problem, tolerance = at.problem, at.tolerance
    budget = at.budget.without(spent)
    known = tolerance.steps > 0 and not negative
    cut = False  # by the run's own limit of products
    if not tolerance.certify:
        if problem.objective.has_gauss_newton and at.point.value == 0.0:
            return Stationary(True, f"{reason}, and so is the misfit")
        if tolerance.steps and at.assumes_minimum:
            reason += "; λ_min was not looked at (certify=True does)"
            return Stationary(True, reason)
        # at the start the products of a step were no proof, and do not count here
        used = spent if tolerance.steps else 0
        allowance = max(tolerance.allowance - used, 0)
        cut = budget.products < allowance
        budget = budget.at_most(allowance)
    found = at.method.escape(problem, at.point, at.state, budget)
    if isinstance(found, Step):
        return found
    minimum = found.minimum
    reason = f"{reason}; {found.reason}"
    if not tolerance.certify and found.unfinished:
        minimum = known and not cut
        reason += (
            "; the limit of products leaves no more"
            if cut
            else ", and certify=True would go on"
        )
    return Stationary(minimum, reason)


def relative_size(
    space: ModelSpace, start: Tensor, vector: Tensor, step: Tensor
) -> float:
    """Return the largest ``‖h_p‖ / max(‖x⁰_p‖, ‖x_p‖, ‖x_p − x⁰_p‖)`` of parameters p."""
    # All vectors are flat ``[n]``. It is infinite where a parameter that has been zero
    # ever since the start would move.
    sizes = torch.stack([space.norms(v) for v in (start, vector, vector - start)])
    lengths = space.norms(step)
    # 0/0: a parameter that is zero and stays there
    ratios = torch.where(lengths > 0.0, lengths / sizes.amax(0), 0.0)
    return float(ratios.max())
