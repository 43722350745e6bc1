"""When a run has converged: a small gradient, a small next step, and known curvature.

A gradient that is small beside the largest one met says little where curvatures differ
much: one step down a steep valley lowers it by orders of magnitude, and leaves all other
unknowns where they began. So two tests must hold, both free of units (Dennis and
Schnabel, Numerical Methods for Unconstrained Optimization, 1983, §7.2):

    ‖P g‖ ≤ gtol · (the largest ‖P g‖ met)               the gradient
    ‖h_p‖ ≤ gtol · max(‖x⁰_p‖, ‖x_p‖, ‖x_p − x⁰_p‖)      the step, for every parameter p

where h is the whole step that the method would take next. The second also holds where the
decrease that the step promises, ½|g·h|, is below the rounding of the loss: no later step
could then be seen to lower it.

A third question is whether the point is a minimum at all. What a quasi-Newton method has
learnt of the curvature is positive by construction. Other methods look at the smallest
eigenvalue, by default with no more products than the run has made evaluations so far.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hvpopt.counts import Counts
from hvpopt.krylov.scale import euclidean_norm
from hvpopt.newton.backtracking import rounding_of
from hvpopt.newton.method import Direction, Method, Stationary, Step
from hvpopt.newton.problem import Budget, Point, Problem
from hvpopt.space import ModelSpace

#: Products that a run may spend on a start without gradient, where it has spent nothing.
FIRST_LOOK = 20


@dataclass(frozen=True)
class Tolerance:
    """What a run calls converged, and what it has met so far.

    Attributes:
        gtol: Of the gradient and of the next step, both relative.
        certify: Certify that λ_min is not negative, whatever that costs.
        start: The first point of the run ``[n]``.
        largest: The largest norm of the projected gradient that was met.
        allowance: Products that may be spent on λ_min where ``certify`` is False.
        steps: Steps taken so far.
    """

    gtol: float
    certify: bool
    start: Tensor
    largest: float
    allowance: float
    steps: int

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
    ) -> Tolerance:
        """Return the tolerance of a run that has come so far.

        Args:
            steps: Taken so far.
            spent: By the run, up to where it is.
            looked: Products of these that went into steps off stationary points.
            gtol: See the class.
            certify: See the class.
            start: See the class.
            largest: See the class.
        """
        minimising = spent.values + spent.gradients + spent.products - looked
        allowance = max(minimising - looked, 0) if steps else FIRST_LOOK
        return cls(gtol, certify, start, largest, allowance, steps)

    def gradient_met(self, point: Point) -> bool:
        """True if the projected gradient at a point is within its tolerance."""
        norm = euclidean_norm(point.projected_gradient)
        return norm <= self.gtol * self.largest


def next_step(
    problem: Problem,
    method: Method,
    point: Point,
    state: object,
    budget: Budget,
    tolerance: Tolerance,
) -> Step | Stationary:
    """Return the method's next step, or what is known of a point that needs none.

    A step that was found on the way and is not small is returned: nothing is spent twice.

    Args:
        problem: For values and products.
        method: How to step.
        point: Where the run is.
        state: Of the method.
        budget: What may still be spent.
        tolerance: When the run has converged.
    """
    if not tolerance.gradient_met(point):
        return method.step(problem, point, state, budget)
    if euclidean_norm(point.projected_gradient) == 0.0:
        told = "the projected gradient is zero"
        return _examine(problem, method, point, state, budget, tolerance, told, False)
    foreseen = method.predicted_step(problem, point, state)
    step = None
    if foreseen is None:
        step = method.step(problem, point, state, budget)
        direction = step.direction
    else:
        direction = Direction(foreseen)
    told = _small(problem, point, direction, tolerance)
    if not told:
        return method.step(problem, point, state, budget) if step is None else step
    negative = direction.negative_curvature is not None
    return _examine(problem, method, point, state, budget, tolerance, told, negative)


def without_products(
    problem: Problem, method: Method, point: Point, state: object, tolerance: Tolerance
) -> Stationary:
    """Return what is known of a point with a small gradient where a run must end.

    Args:
        problem: For the space; nothing is evaluated.
        method: As for ``next_step``.
        point: Likewise, with a gradient within its tolerance.
        state: Of the method.
        tolerance: When the run has converged.
    """
    foreseen = method.predicted_step(problem, point, state)
    told = ""
    if foreseen is not None:
        told = _small(problem, point, Direction(foreseen), tolerance)
    if told and _trusted(problem, method) and tolerance.steps and not tolerance.certify:
        return Stationary(True, told)
    return Stationary(False, told or "how far the next step would go is unknown")


def _small(
    problem: Problem, point: Point, direction: Direction, tolerance: Tolerance
) -> str:
    """Say in words that a step is small and how small; empty if it is not."""
    size = relative_size(problem.space, tolerance.start, point, direction.vector)
    promised = 0.5 * abs(float(point.gradient @ direction.vector))
    hidden = promised <= rounding_of(problem, point)
    if direction.bounded or not (size <= tolerance.gtol or hidden):
        return ""
    ratio = euclidean_norm(point.projected_gradient) / tolerance.largest
    told = (
        f"its norm is {ratio:.2g} of the largest met (gtol {tolerance.gtol:g}), and the "
        f"next step would change no parameter by more than {size:.2g} of its size"
    )
    if size > tolerance.gtol:
        told += (
            f" and lower the loss by {promised:.2g}, which is below the rounding of "
            f"its value {point.value:.6g}"
        )
    return told


def _trusted(problem: Problem, method: Method) -> bool:
    # curvature that is positive by construction, or a misfit that others minimise so
    return not method.examines_curvature or problem.objective.has_gauss_newton


def _examine(
    problem: Problem,
    method: Method,
    point: Point,
    state: object,
    budget: Budget,
    tolerance: Tolerance,
    told: str,
    negative: bool,
) -> Step | Stationary:
    """Look for negative curvature as far as a run may; ``told`` is what is known."""
    known = tolerance.steps > 0 and not negative
    if not tolerance.certify:
        if known and _trusted(problem, method):
            told += "; λ_min was not looked at (certify=True does)"
            return Stationary(True, told)
        budget = budget.at_most(tolerance.allowance)
    found = method.escape(problem, point, state, budget)
    if isinstance(found, Step):
        return found
    minimum = found.minimum
    reason = f"{told}; {found.reason}"
    if not tolerance.certify and known and found.unfinished:
        minimum = True
        reason += ", and certify=True would go on"
    return Stationary(minimum, reason)


def relative_size(space: ModelSpace, start: Tensor, point: Point, step: Tensor) -> float:
    """Return how far a step goes, relative to the model: the largest of all parameters.

    Args:
        space: Of the flat vectors.
        start: The first point of the run ``[n]``.
        point: Where the step begins.
        step: ``[n]``; shortened to the bounds here.

    Returns:
        The largest ``‖h_p‖ / max(‖x⁰_p‖, ‖x_p‖, ‖x_p − x⁰_p‖)``; infinite where a
        parameter that has been zero ever since the start would move.
    """
    moved = space.project(point.vector + step) - point.vector
    sizes = torch.stack(
        [space.norms(v) for v in (start, point.vector, point.vector - start)]
    ).amax(0)
    lengths = space.norms(moved)
    # 0/0: a parameter that is zero and stays there
    ratios = torch.where(lengths > 0.0, lengths / sizes, 0.0)
    return float(ratios.max())
