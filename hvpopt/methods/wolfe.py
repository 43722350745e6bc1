"""Wolfe: a step that lowers the loss enough and leaves the slope flat enough.

The strong conditions on φ(t) = f(z + t h),

    φ(t) ≤ φ(0) + c₁ t φ′(0),      |φ′(t)| ≤ c₂ |φ′(0)|,

by bracketing and zooming with cubic interpolation (Nocedal and Wright, Numerical
Optimization, 2006, algorithms 3.5 and 3.6). The second makes every step a pair of
positive curvature. A trial costs a value and a gradient, but the gradient of the accepted
one is the next point's own.

Where c₁ φ′(0) is below the rounding of φ, as near a minimum, the first condition is
replaced by ``φ′(t) ≤ (2 c₁ − 1) φ′(0)``, which is the same for a parabola (Hager and
Zhang, SIAM J. Optim. 16, 2005).
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.methods.backtracking import Backtracking, shortened
from hvpopt.methods.method import Direction, Step
from hvpopt.methods.points import Point, Problem
from hvpopt.model._scale import power_of_two

logger = logging.getLogger(__name__)

#: The bracket may not be narrower than this, relative to its far end.
NARROW = 1e-9


@dataclass(frozen=True)
class Wolfe:
    """Globalisation by the strong Wolfe conditions, from the unit step.

    A trial costs a value and a gradient, where one of ``Backtracking`` costs a value. In
    return every accepted step is a pair of positive curvature, for ``pairs`` of
    ``LineSearchNewton``, on losses whose curvature changes sign.

    Where the unit step leaves the bounds, ``backtracking`` searches along the projected
    path instead; it also takes steps along negative curvature.

    Args:
        decrease: c₁, of the first condition. Default 1e-4.
        slope: c₂, of the second. Default 0.9, for Newton directions.
        growth: Factor between trials while the loss still falls. Default 4.
        max_trials: Largest number of trial gradients. Default 20.
        rounding: Of the loss, relative: a rise by this much may be none. Default 1e-15,
            for a loss in float64; about 1e-7 for float32.
        backtracking: For steps that meet a bound. Default ``Backtracking()``.

    Raises:
        TypeError: For what is no number, or another ``backtracking``.
        ValueError: If not ``0 < decrease < slope < 1``, or a number is out of range.
    """

    decrease: float = 1e-4
    slope: float = 0.9
    growth: float = 4.0
    max_trials: int = 20
    rounding: float = 1e-15
    backtracking: Backtracking = field(default_factory=Backtracking)

    def __post_init__(self) -> None:
        decrease = checks.number("decrease", self.decrease, above=0.0, below=0.5)
        says = f"it must lie in (decrease, 1), with decrease={decrease}"
        checks.put(
            self,
            decrease=decrease,
            slope=checks.number(
                "slope", self.slope, above=decrease, below=1.0, says=says
            ),
            growth=checks.number("growth", self.growth, above=1.0, below=math.inf),
            max_trials=checks.integer("max_trials", self.max_trials, least=1),
            rounding=checks.number("rounding", self.rounding, least=0.0, below=1.0),
        )
        use = "pass a Backtracking(...)"
        checks.instance("backtracking", self.backtracking, Backtracking, use)

    def search(self, problem: Problem, point: Point, direction: Direction) -> Step:
        """Return a step that meets both conditions.

        Args:
            problem: For values, gradients and bounds.
            point: Where the direction starts.
            direction: To search along, unit step first.

        Returns:
            The step with its end's ``point``; if trials ran out, the best that met the
            first condition; without a vector if none did.
        """
        unit = point.vector + direction.vector
        if direction.curvature_step or not problem.space.inside(unit):
            return self.backtracking.search(problem, point, direction)
        return _Search(self, problem, point, direction).run()


@dataclass(frozen=True)
class _Trial:
    length: float
    value: float
    slope: float
    point: Point | None = None


class _Search:
    """One search along a ray."""

    def __init__(
        self, rule: Wolfe, problem: Problem, point: Point, direction: Direction
    ) -> None:
        self.rule = rule
        self.problem = problem
        self.point = point
        self.direction = direction
        self.trials = 0
        slope = float(point.gradient @ direction.vector)
        self.start = _Trial(0.0, point.value, slope, point)
        self.best = self.start
        problem.last_error = None

    def run(self) -> Step:
        """Return the accepted step, or the best there is."""
        if self.start.slope >= 0.0:
            return self._step(None, "the direction does not descend")
        accepted = self._bracket()
        if accepted is None and self.best is not self.start:
            # enough decrease, if not the flatness: better than no step
            accepted = self.best
        if accepted is None:
            tried = f"none of {self.trials} trials along the direction"
            promised = -self.start.slope
            reason = self.problem.why_none_lowered(self.point, tried, promised=promised)
            return self._step(None, reason)
        return self._step(accepted, "")

    def _bracket(self) -> _Trial | None:
        """Lengthen until a minimum is bracketed (algorithm 3.5)."""
        longest = _longest_inside(self.problem, self.point.vector, self.direction.vector)
        before, length = self.start, 1.0
        while self.trials < self.rule.max_trials:
            trial = self._try(length)
            if not self._decreases(trial) or (
                before is not self.start and trial.value >= before.value
            ):
                return self._zoom(before, trial)
            if self._flat(trial):
                return trial
            if trial.slope >= 0.0:
                return self._zoom(trial, before)
            if length >= longest:
                return trial  # still falling, and a bound ends the ray
            before, length = trial, min(self.rule.growth * length, longest)
        return None

    def _zoom(self, low: _Trial, high: _Trial) -> _Trial | None:
        """Narrow a bracket of which ``low`` is the better end (algorithm 3.6)."""
        while self.trials < self.rule.max_trials:
            width = abs(high.length - low.length)
            if width <= NARROW * max(high.length, low.length):
                return None
            length = _minimiser(low, high)
            if low is self.start:
                length = shortened(
                    length,
                    self.trials,
                    length=high.length,
                    promised=-self.rule.decrease * high.length * self.start.slope,
                    rounding=self.problem.space.eps * abs(self.start.value),
                )
            if torch.equal(self._end(length), self.point.vector):
                return None  # rounding leaves nothing of a step as short as this
            trial = self._try(length)
            if not self._decreases(trial) or trial.value >= low.value:
                high = trial
                continue
            if self._flat(trial):
                return trial
            if trial.slope * (high.length - low.length) >= 0.0:
                high = low
            low = trial
        return None

    def _decreases(self, trial: _Trial) -> bool:
        asked = self.rule.decrease * trial.length * self.start.slope
        # differences, since a sum with the value would lose the decrease to rounding
        change = trial.value - self.start.value
        if change <= asked:
            return True
        hidden = self.rule.rounding * abs(self.start.value)
        # a change below rounding, where the slope predicts a visible one for the unit
        # step, is the sign of a wrong gradient
        rounding = max(self.rule.rounding, self.problem.space.eps)
        asked = -self.rule.decrease * self.start.slope
        visible = asked > rounding * abs(self.start.value)
        if visible or change > hidden:
            return False
        return trial.slope <= (2.0 * self.rule.decrease - 1.0) * self.start.slope

    def _flat(self, trial: _Trial) -> bool:
        return abs(trial.slope) <= -self.rule.slope * self.start.slope

    def _try(self, length: float) -> _Trial:
        self.trials += 1
        point = self.problem.trial(self._end(length))
        if point is None:
            return _Trial(length, math.inf, math.nan)
        slope = float(point.gradient @ self.direction.vector)
        trial = _Trial(length, point.value, slope, point)
        best = self.best is self.start or trial.value < self.best.value
        if best and self._decreases(trial):
            self.best = trial
        return trial

    def _end(self, length: float) -> Tensor:
        # rounding may put the end of the longest step past its bound
        return self.problem.space.project(
            self.point.vector + length * self.direction.vector
        )

    def _step(self, trial: _Trial | None, reason: str) -> Step:
        if trial is None or trial.point is None:
            return Step(None, self.point.value, 0.0, self.trials, self.direction, reason)
        return Step(
            trial.point.vector,
            trial.value,
            trial.length,
            self.trials,
            self.direction,
            point=trial.point,
        )


def _longest_inside(problem: Problem, vector: Tensor, direction: Tensor) -> float:
    """Return the length at which the ray from ``vector`` meets its first bound."""
    longest = math.inf
    for bound, outward in (
        (problem.space.lower, direction < 0),
        (problem.space.upper, direction > 0),
    ):
        if bound is not None and bool(outward.any()):
            ways = (bound - vector)[outward] / direction[outward]
            longest = min(longest, float(ways.min()))
    return longest


def _minimiser(low: _Trial, high: _Trial) -> float:
    """Return a length between two trials, away from both ends.

    That of the cubic through values and slopes where there are both (Nocedal and Wright,
    equation 3.59), of the parabola through one slope where the far end has none, and the
    middle of a bracket whose far end has no value, nearer the good end.
    """
    a, b = low.length, high.length
    near, far = a + 0.1 * (b - a), b - 0.1 * (b - a)
    if not math.isfinite(high.value):
        return a + 0.3 * (b - a)
    length = math.nan
    rise = (high.value - low.value) / (b - a)
    # in units of the start's slope: squares of slopes may leave the range of floats
    unit = power_of_two(abs(low.slope))
    rise, start, end = rise / unit, low.slope / unit, high.slope / unit
    if math.isfinite(end):
        d1 = start + end - 3.0 * rise
        root = d1 * d1 - start * end
        if root >= 0.0:
            d2 = math.copysign(math.sqrt(root), b - a)
            below = end - start + 2.0 * d2
            if below != 0.0:
                length = b - (b - a) * (end + d2 - d1) / below
    if not math.isfinite(length) and rise != start:
        length = a - 0.5 * start * (b - a) / (rise - start)
    if not math.isfinite(length):
        return 0.5 * (a + b)
    return min(max(length, min(near, far)), max(near, far))
