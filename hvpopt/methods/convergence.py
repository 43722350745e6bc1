"""When a run has converged: a small gradient, a small next step, and known curvature.

A gradient that is small beside the largest one met says little where curvatures differ
much: one step down a steep valley lowers it by orders of magnitude, and leaves all other
unknowns where they began. So two tests must hold, both free of units (Dennis and
Schnabel, Numerical Methods for Unconstrained Optimization, 1983, §7.2):

    ‖P g‖ ≤ gtol · (the largest ‖P g‖ met)               the gradient
    ‖h_p‖ ≤ gtol · max(‖x⁰_p‖, ‖x_p‖, ‖x_p − x⁰_p‖)      the step, for every parameter p

where h is the whole step that the method would take next: of a Newton method solved to
``ACCURACY``, of a quasi-Newton method by the curvature that it guesses. Of a guess the
last ``GUESSES`` steps that were taken must have been as small too: steep directions may
have been all that it knew. (Newton methods on waveforms are asked for the last step
alone.) The second test also holds where the decrease that the step promises,
½|g·h|, is below the rounding of the loss: no later step could then be seen to lower it.

A third question is whether the point is a minimum at all. What a quasi-Newton method has
learnt of the curvature is positive by construction. Other methods look at the smallest
eigenvalue, by default with no more products than half the run's evaluations so far.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

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
from hvpopt.model.counts import Counts
from hvpopt.model.scale import euclidean_norm
from hvpopt.model.space import ModelSpace

#: Products that a run may spend on a look at λ_min where it starts.
FIRST_LOOK = 20
#: Relative residual of the linear solve by which a step is called small.
ACCURACY = 1e-4
#: Small steps, one after the other, by which a guess of the curvature is believed.
GUESSES = 3
#: Fraction of the largest gradient under which only its rounding is left.
VANISHED = 1e-14


@dataclass(frozen=True)
class Tolerance:
    """What a run calls converged, and what it has met so far.

    Attributes:
        gtol: Of the gradient and of the next step, both relative.
        certify: Certify that λ_min is not negative, whatever that costs.
        start: The first point of the run ``[n]``.
        largest: The largest norm of the projected gradient that was met.
        allowance: Products that may be spent on the proof where ``certify`` is False.
        steps: Steps taken so far.
        rests: How many of the last steps, one after the other up to now, changed no
            parameter by more than ``gtol`` of its size.
    """

    gtol: float
    certify: bool
    start: Tensor
    largest: float
    allowance: float
    steps: int
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
        """Return the tolerance of a run that has come so far.

        Args:
            steps: Taken so far.
            spent: By the run, up to where it is.
            looked: Products of these that went into steps off stationary points.
            gtol: See the class.
            certify: See the class.
            start: See the class.
            largest: See the class.
            rests: See the class.
        """
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
    before = problem.counts.products

    def left() -> Budget:
        return budget.without(problem.counts.products - before)

    def examine(told: str, negative: bool) -> Step | Stationary:
        spent = problem.counts.products - before
        return _examine(
            problem, method, point, state, left(), tolerance, spent, told, negative
        )

    if euclidean_norm(point.projected_gradient) == 0.0:
        return examine("the projected gradient is zero", negative=False)
    if not tolerance.gradient_met(point):
        step = method.step(problem, point, state, budget)
        told = _small(problem, point, step.direction, tolerance, or_hidden=False)
        if step.vector is None and told and _begun_here(problem, point, tolerance):
            return examine(told, step.direction.negative_curvature is not None)
        return step
    foreseen = method.predicted_step(problem, point, state)
    if foreseen is not None:
        # of a guess, what was taken must have been small too
        told = _small(problem, point, Direction(foreseen), tolerance)
        if told and tolerance.rested(GUESSES):
            return examine(told, negative=False)
        step = method.step(problem, point, state, budget)
        # a step of no decrease is no proof either, unless one before it was small or
        # nothing is left of the gradient
        norm = euclidean_norm(point.projected_gradient)
        vanished = norm <= VANISHED * tolerance.largest
        spent_out = step.vector is None and (tolerance.rested(1) or vanished)
        return examine(told, negative=False) if told and spent_out else step
    if _trusted(problem, method) and not tolerance.certify:
        # of waveforms a Newton step costs too much to be asked for its size alone
        if tolerance.rested(1):
            return examine(_at_rest(point, tolerance), negative=False)
        return method.step(problem, point, state, budget)
    # only the size of the step is asked for, and unknowns may hide in its residual
    proof = budget.at_most(max(tolerance.allowance, 1))
    try:
        step = method.step(problem, point, state, replace(proof, accuracy=ACCURACY))
    except OutOfBudget:  # a dense matrix is made whole or not at all
        step = method.step(problem, point, state, left())
    direction = step.direction
    told = _small(problem, point, direction, tolerance)
    known = _accurate(direction) or tolerance.rested(1)
    if not (told and known):
        return step
    return examine(told, direction.negative_curvature is not None)


def without_products(
    problem: Problem, method: Method, point: Point, state: object, tolerance: Tolerance
) -> Stationary | None:
    """Return what is known of a point where a run must end; None if that is nothing.

    Args:
        problem: For the space; nothing is evaluated.
        method: As for ``next_step``.
        point: As for ``next_step``.
        state: Of the method.
        tolerance: When the run has converged.
    """
    if euclidean_norm(point.projected_gradient) == 0.0:
        told = "the projected gradient is zero, and its curvature was not examined"
        return Stationary(False, told)
    proven = _trusted(problem, method) and not tolerance.certify
    if not (proven and tolerance.gradient_met(point) and tolerance.steps):
        return None
    foreseen = method.predicted_step(problem, point, state)
    told = ""
    if foreseen is None and tolerance.rested(1):
        told = _at_rest(point, tolerance)
    elif foreseen is not None and tolerance.rested(GUESSES):
        told = _small(problem, point, Direction(foreseen), tolerance)
    return Stationary(True, told) if told else None


def _accurate(direction: Direction) -> bool:
    """True if a linear solve went as far as it was asked to, or as it can."""
    floor = direction.status is InnerStatus.FLOOR
    return floor or not direction.residual > 2.0 * ACCURACY


def _begun_here(problem: Problem, point: Point, tolerance: Tolerance) -> bool:
    """True if a run began where it is, so that its gradients are no measure."""
    moved = point.vector - tolerance.start
    size = relative_size(problem.space, tolerance.start, tolerance.start, moved)
    return size <= math.sqrt(tolerance.gtol)


def _at_rest(point: Point, tolerance: Tolerance) -> str:
    ratio = euclidean_norm(point.projected_gradient) / tolerance.largest
    return (
        f"its norm is {ratio:.2g} of the largest met (gtol {tolerance.gtol:g}), and the "
        f"last step changed no parameter by more than {tolerance.gtol:g} of its size"
    )


def _small(
    problem: Problem,
    point: Point,
    direction: Direction,
    tolerance: Tolerance,
    *,
    or_hidden: bool = True,
) -> str:
    """Say in words that a step is small and how small; empty if it is not."""
    if not math.isfinite(direction.unbounded):
        return ""
    # of the step that the trust region would not have cut
    moved = problem.space.project(point.vector + direction.vector) - point.vector
    size = direction.unbounded * relative_size(
        problem.space, tolerance.start, point.vector, moved
    )
    hidden = or_hidden and _hidden(problem, point, direction)
    if not (size <= tolerance.gtol or hidden):
        return ""
    ratio = euclidean_norm(point.projected_gradient) / tolerance.largest
    told = (
        f"its norm is {ratio:.2g} of the largest met (gtol {tolerance.gtol:g}), and the "
        f"next step would change no parameter by more than {size:.2g} of its size"
    )
    if size > tolerance.gtol:
        told += (
            f" and lower the loss by {_promised(point, direction):.2g}, which is below "
            f"the rounding of its value {point.value:.6g}"
        )
    return told


def _promised(point: Point, direction: Direction) -> float:
    """Return the decrease that the whole step promises, ½|g·h|."""
    slope = abs(float(point.gradient @ direction.vector))
    return 0.5 * direction.unbounded * slope


def _hidden(problem: Problem, point: Point, direction: Direction) -> bool:
    """True if what a step promises is below the rounding of the loss."""
    return _promised(point, direction) <= rounding_of(problem, point)


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
    spent: int,
    told: str,
    negative: bool,
) -> Step | Stationary:
    """Look for negative curvature as far as a run may; ``told`` is what is known."""
    known = tolerance.steps > 0 and not negative
    if not tolerance.certify:
        if problem.objective.has_gauss_newton and point.value == 0.0:
            return Stationary(True, f"{told}, and so is the misfit")
        if tolerance.steps and _trusted(problem, method):
            told += "; λ_min was not looked at (certify=True does)"
            return Stationary(True, told)
        # at the start the products of a step were no proof, and the first look is whole
        used = spent if tolerance.steps else 0
        budget = budget.at_most(max(tolerance.allowance - used, 0))
    found = method.escape(problem, point, state, budget)
    if isinstance(found, Step):
        return found
    minimum = found.minimum
    reason = f"{told}; {found.reason}"
    if not tolerance.certify and found.unfinished:
        minimum = known
        reason += ", and certify=True would go on"
    return Stationary(minimum, reason)


def relative_size(
    space: ModelSpace, start: Tensor, vector: Tensor, step: Tensor
) -> float:
    """Return how far a step goes, relative to the model: the largest of all parameters.

    Args:
        space: Of the flat vectors.
        start: The first point of the run ``[n]``.
        vector: Where the step begins ``[n]``.
        step: ``[n]``.

    Returns:
        The largest ``‖h_p‖ / max(‖x⁰_p‖, ‖x_p‖, ‖x_p − x⁰_p‖)``; infinite where a
        parameter that has been zero ever since the start would move.
    """
    sizes = torch.stack([space.norms(v) for v in (start, vector, vector - start)])
    lengths = space.norms(step)
    # 0/0: a parameter that is zero and stays there
    ratios = torch.where(lengths > 0.0, lengths / sizes.amax(0), 0.0)
    return float(ratios.max())
