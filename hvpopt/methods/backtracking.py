"""Backtracking: shorten a step, from values, until it lowers the loss enough.

Trials run along the projected path z(t) = P(z + t h) from t = 1, so that no trial
breaks a bound and a cell already at its bound does not stop the others (Bertsekas,
SIAM J. Control Optim. 20, 1982). Sufficient decrease is Armijo's, measured along what
was really moved; the next t minimises the parabola through value, slope and trial.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from hvpopt import checks
from hvpopt.methods.method import Direction, Step
from hvpopt.methods.points import Point, Problem
from hvpopt.model._scale import euclidean_norm

_EPS = float(np.finfo(np.float64).eps)
#: Trials after which a step is shortened by growing factors: powers of the second.
PATIENCE, LEAST = 6, 0.1
#: Roundings of the loss by which a trial after a growing factor is to lower it.
FEW_ROUNDINGS = 16
#: A trial that is judged by its gradient must lower its norm to this fraction.
GRADIENT_PROGRESS = 0.9


@dataclass(frozen=True)
class Backtracking:
    """Globalisation by value-only trials from the unit step.

    Args:
        decrease: Fraction of the predicted first-order decrease to ask for (c₁ of
            Nocedal and Wright, §3.1). Default 1e-4.
        shrink: Least and largest factor between trials. Default (0.1, 0.5).
        max_trials: Largest number of trial values. Default 20.

    Raises:
        TypeError: For what is no number, or no pair of them.
        ValueError: For a number out of range.
    """

    decrease: float = 1e-4
    shrink: tuple[float, float] = (0.1, 0.5)
    max_trials: int = 20

    def __post_init__(self) -> None:
        checks.put(
            self,
            decrease=checks.number("decrease", self.decrease, above=0.0, below=0.5),
            shrink=checks.pair("shrink", self.shrink, above=0.0, below=1.0),
            max_trials=checks.integer("max_trials", self.max_trials, least=1),
        )

    def search(
        self,
        problem: Problem,
        point: Point,
        direction: Direction,
        *,
        gradient_first: bool = False,
    ) -> Step:
        """Return the longest trial that lowers the loss enough.

        Args:
            problem: For values and bounds.
            point: Where the direction starts.
            direction: To search along, unit step first.
            gradient_first: Take the gradient with the first trial's value, which saves
                that value if the trial is accepted and wastes the gradient if it is not.

        Returns:
            The step; without a vector if no trial was acceptable.
        """
        length, promised, refused = 1.0, 0.0, 1.0
        problem.last_error = None
        # where no more decrease than this is expected, the gradient is evaluated too
        hidden = 0.0 if direction.curvature_step else rounding_of(problem, point)
        for trial in range(1, self.max_trials + 1):
            vector = problem.space.project(point.vector + length * direction.vector)
            moved = vector - point.vector
            expected = self._expected_change(point, direction, moved)
            promised = max(promised, -expected)
            end: Point | None = None
            value = math.inf
            below_rounding = -hidden < expected < 0.0
            if expected < 0.0 and ((gradient_first and trial == 1) or below_rounding):
                end = problem.trial(vector)
                value = math.inf if end is None else end.value
            elif expected < 0.0:
                value = problem.value(vector)
            # differences, since a sum with the value would lose the decrease to rounding
            if value - point.value <= self.decrease * expected:
                step = Step(vector, value, length, trial, direction, point=end)
                return self._lengthened(problem, point, step, refused)
            if below_rounding and end is not None and value - point.value <= hidden:
                before = euclidean_norm(point.projected_gradient)
                after = euclidean_norm(end.projected_gradient)
                if after <= GRADIENT_PROGRESS * before:
                    return Step(vector, value, length, trial, direction, point=end)
            if self.decrease * abs(expected) < _EPS * abs(point.value):
                # shorter steps would pass by rounding, and the run would not advance
                break
            refused = length
            length = shortened(
                length * self._factor(point.value, value, expected),
                trial,
                length=length,
                promised=-self.decrease * expected,
                rounding=_EPS * abs(point.value),
            )
        tried = f"none of {trial} trials along the direction"
        reason = problem.why_none_lowered(point, tried, promised=promised)
        return Step(None, point.value, 0.0, trial, direction, reason)

    def _lengthened(
        self, problem: Problem, point: Point, step: Step, refused: float
    ) -> Step:
        """Return a step between an acceptable trial and the longer one before it."""
        # Where no more than the least factor lies between the two, the step itself.
        # ``refused`` is the length of the longer one.
        while step.length < self.shrink[0] * refused and step.trials < self.max_trials:
            length = math.sqrt(step.length) * math.sqrt(refused)
            vector = problem.space.project(point.vector + length * step.direction.vector)
            expected = self._expected_change(point, step.direction, vector - point.vector)
            value = problem.value(vector)
            step = replace(step, trials=step.trials + 1)
            if value < step.value and value - point.value <= self.decrease * expected:
                step = replace(
                    step, vector=vector, value=value, length=length, point=None
                )
            else:
                refused = length
        return step

    def _expected_change(
        self, point: Point, direction: Direction, moved: Tensor
    ) -> float:
        slope = float(point.gradient @ moved)
        if direction.curvature_step:
            curvature = direction.smallest_eigenvalue
            length = euclidean_norm(moved)  # of which the square may leave all range
            return min(slope, 0.0) + 0.5 * curvature * length * length
        return slope

    def _factor(self, start: float, value: float, expected: float) -> float:
        low, high = self.shrink
        if not math.isfinite(value) or expected >= 0.0:
            return math.sqrt(low * high)
        return float(np.clip(-0.5 * expected / (value - start - expected), low, high))


def shortened(
    plain: float, trials: int, *, length: float, promised: float, rounding: float
) -> float:
    """Return the length of the next trial: shorter still once several have failed.

    A step by a curvature that is rounding can be too long by more than any power of a
    fixed factor in so many trials. But it goes no further at once than to where the
    ``promised`` decrease, about linear in length, falls to a few roundings of the loss.
    """
    hidden = FEW_ROUNDINGS * rounding
    shortest = plain if promised <= hidden else min(plain, length * (hidden / promised))
    return max(plain * LEAST ** max(trials - PATIENCE, 0), shortest)


def rounding_of(problem: Problem, point: Point) -> float:
    """Return the rounding to be expected of the loss's values at a point."""
    return 8 * problem.space.eps * abs(point.value)  # a sum of many rounded terms
