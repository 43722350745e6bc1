"""StochasticQuasiNewton: L-BFGS on samples of a sum of many parts.

A gradient of a few shots costs a small part of a gradient of the survey, and is right on
average. Two ways keep its noise out of the curvature. Where a part of a sample is a
random sum of all parts (encoded shots), pairs (s, y = G s) come from Gauss-Newton
products: s is the change between the means of two groups of iterates, and the product is
of a sample of its own (Byrd, Hansen, Nocedal and Singer, SIAM J. Optim. 26, 2016), so
that s·y is never negative. Where a sample is of some parts only (drawn shots), a few
steps are taken on each, and the pairs are the steps and changes of the gradient within
one sample.

Both begin from the diagonal of the Gauss-Newton matrix, measured by a few products of
samples, and take the unit step. A sample grows when the loss of fresh samples, an
unbiased estimate of that of the whole, no longer falls (van Leeuwen and Herrmann,
Geophysical Prospecting 61, 2013; Bollapragada et al., ICML 2018), or when no trial of a
step lowers the loss of the current one. When it would be most of the sum, the whole is
minimised by ``QuasiNewton`` with the same diagonal and pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.errors import BadPartError
from hvpopt.krylov.diagonal import estimate_diagonal
from hvpopt.krylov.pairs import Pair, PairsPreconditioner, safely_positive
from hvpopt.krylov.preconditioner import DiagonalPreconditioner, Preconditioner
from hvpopt.methods.initial import DiagonalState, HessianDiagonal
from hvpopt.methods.method import (
    Direction,
    Method,
    OutOfBudget,
    SampledMethod,
    Step,
)
from hvpopt.methods.points import Budget, Point, Problem
from hvpopt.methods.quasi_newton import QuasiNewton, QuasiNewtonState, kept_pair
from hvpopt.model._scale import unit_of
from hvpopt.problem.objective import Objective

#: Fewest parts of a sum that ``minimize`` samples by default, encoded and drawn.
FEWEST_ENCODED, FEWEST_DRAWN = 12, 24
#: Weight of the earlier directions where each step has a sample of its own.
MOMENTUM = 0.7
#: Steps between two pairs by products.
GROUP = 5
#: Shots of a first drawn sample, and steps on each drawn sample.
DRAWN, STEPS = 4, 5
#: Probes of the diagonal by encoded samples, fewest and most, and parts of the sum for
#: each: with 12 or 24 shots six would take most of a gradient. Probes by drawn samples.
ENCODED_PROBES, PARTS_OF_A_PROBE, DRAWN_PROBES = (3, 6), 8, 4
#: Standard deviation of the smoothing of the diagonal, cells.
SMOOTH = 3.0
#: Dampings of the diagonal, of which that is taken that agrees best with the pairs; and
#: the place of the one before there are pairs.
DAMPINGS = (3e-3, 1e-2, 3e-2, 0.1, 0.3)
FIRST_DAMPING = 1
#: Factor of the size of a sample where it grows, and share of the parts above which the
#: whole takes its place.
GROWTH, WHOLE = 4, 0.5
#: Fewest samples by which the trend of the loss is judged.
TREND = 12
#: Rise of the loss of the next sample, relative to the mean of the last ones, above which
#: the step is judged on its own sample too.
RISE = 1.5
#: Trials of a step, each half as long as the one before.
TRIALS = 12


@dataclass(frozen=True)
class StochasticState:
    """What one step leaves to the next."""

    size: int  # parts of the current sample
    encoded: bool  # parts are random sums of all parts, and pairs come from products
    number: int = 0  # of the current sample
    on_sample: int = 0  # steps taken on the current sample
    #: the measured diagonal; None before the first step
    initial: DiagonalState | None = None
    pairs: tuple[Pair, ...] = ()  # steps and curvature along them, oldest first
    #: sum over all pairs of the logarithm of ``agreement``, for each damping
    fits: tuple[float, ...] = (0.0,) * len(DAMPINGS)
    #: weighted sum of gradients [n]; it grows from zero, so that first steps are short
    momentum: Tensor | None = None
    total: Tensor | None = None  # sum of the iterates of the current group [n]
    mean: Tensor | None = None  # mean of the iterates of the last group [n]
    in_group: int = 0  # iterates in ``total``
    length: float = 1.0  # of the last step relative to the direction
    #: at the start of the last samples of this size, oldest first
    losses: tuple[float, ...] = ()
    single: bool = False  # pairs are kept in float32, since the model is float32


class StochasticQuasiNewton(SampledMethod):
    """Stochastic quasi-Newton: L-BFGS on samples, then on the whole sum.

    For a sum of many parts that can be sampled, such as a ``WaveformMisfit`` of many
    shots, alone or with regularisation. Any other objective is left to ``last``.

    Each record's value and gradient are those of its sample. The whole is evaluated at
    the start, where a sample grows and at the end: the best model is the best by these
    values. A step on which the loss of samples rises much is judged on its own sample,
    and halved until it lowers that.

    Args:
        size: Parts of the first samples. Default 1 where they are encoded, 4 where they
            are drawn, and at least one for each process.
        memory: Pairs to keep. Default 20.
        last: The method for the whole sum. Default ``QuasiNewton()``.
        seed: Of the samples and probes. Default 0.

    Raises:
        TypeError: For an option of the wrong type.
        ValueError: For a number out of range.

    Example:
        >>> import torch, hvpopt
        >>> method = hvpopt.StochasticQuasiNewton(size=2, seed=1)
        >>> one = hvpopt.TorchObjective(lambda x: (x**2).sum())  # of one part
        >>> start = torch.ones(3, dtype=torch.float64)
        >>> hvpopt.minimize(one, start, method=method).success
        True
    """

    def __init__(
        self,
        *,
        size: int | None = None,
        memory: int = 20,
        last: QuasiNewton | None = None,
        seed: int = 0,
    ) -> None:
        self.size = checks.optional(checks.integer, "size", size, least=1)
        self.memory = checks.integer("memory", memory, least=1)
        self.last = QuasiNewton() if last is None else last
        use = "pass a hvpopt.QuasiNewton(...)"
        checks.instance("last", self.last, QuasiNewton, use)
        self.seed = checks.integer("seed", seed, least=0)

    def stages(self, objective: Objective) -> Sequence[Method]:
        """Return this method and the last, or that alone if sampling saves nothing."""
        size = self._first_size(objective)
        if size > WHOLE * objective.n_parts:
            return [self.last]
        return [self, self.last]

    def _first_size(self, objective: Objective) -> int:
        size = self.size
        if size is None:
            size = max(1 if objective.encodes else DRAWN, objective.processes.count)
        return min(size, objective.n_parts)

    # -- samples ----------------------------------------------------------------

    def sample(self, problem: Problem, state: StochasticState) -> Problem:
        """Return the problem of the sample at which the state's point was evaluated."""
        return problem.sampled(state.size, self._seed(0, state.number))

    def sample_size(self, state: StochasticState) -> int:
        """Return the number of parts of that sample."""
        return state.size

    def _seed(self, purpose: int, number: int) -> int:
        """Return a seed; those of one purpose follow each other, as samples are drawn."""
        sequence = np.random.SeedSequence([self.seed, purpose])
        return int(sequence.generate_state(1)[0]) + number

    def _next(self, problem: Problem, state: StochasticState) -> StochasticState:
        """Return the state with the number of the sample of the next point."""
        if not state.encoded and state.on_sample + 1 < STEPS:
            return replace(state, on_sample=state.on_sample + 1)
        return replace(state, number=state.number + 1, on_sample=0)

    # -- one step ---------------------------------------------------------------

    def start(self, problem: Problem) -> StochasticState:
        """Return the state of a run that has measured nothing yet."""
        single = problem.space.eps >= torch.finfo(torch.float32).eps
        objective = problem.objective
        size = self._first_size(objective)
        return StochasticState(size, objective.encodes, single=single)

    def next_stage(self, problem: Problem, state: Any) -> StochasticState:
        """Return the state of a new start: the diagonal costs less than a gradient."""
        start = self.start(problem)
        if isinstance(state, StochasticState):  # no sample twice
            start = replace(start, number=state.number + 1)
        return start

    def step(
        self, problem: Problem, point: Point, state: StochasticState, budget: Budget
    ) -> Step:
        """Return a step, with its end evaluated on the next sample."""
        problem.last_error = None
        if state.initial is None:
            state = self._measure(problem, point, state, budget)
        if state.in_group == GROUP:
            state = self._close_group(problem, point, state, budget)
        if state.on_sample == 0:
            state = self._follow(problem, point, state)
            if state.size > WHOLE * problem.objective.n_parts:
                reason = "the loss of samples no longer falls"
                return Step(None, point.value, 0.0, 0, Direction(point.gradient), reason)
        beta = MOMENTUM if state.encoded else 0.0
        momentum = point.gradient * (1.0 - beta)
        if state.momentum is not None and beta:
            momentum = momentum + beta * state.momentum
        step = self._search(problem, point, replace(state, momentum=momentum))
        if step.vector is None and not isinstance(problem.last_error, BadPartError):
            step = self._grow(problem, point, state, step)
        return step

    def _grow(
        self, problem: Problem, point: Point, state: StochasticState, failed: Step
    ) -> Step:
        """Return a step of length zero to a larger sample; the failed one if it fails."""
        size = GROWTH * state.size
        if size > WHOLE * problem.objective.n_parts:
            return failed
        then = replace(
            state, size=size, number=state.number + 1, on_sample=0, losses=(), length=1.0
        )
        end = self.sample(problem, then).trial(point.vector)
        if end is None:
            return failed
        return replace(
            failed, vector=end.vector, value=end.value, reason="", point=end, memo=then
        )

    def _search(self, problem: Problem, point: Point, state: StochasticState) -> Step:
        """Try the step, and halves of it, until one is not refused."""
        assert state.momentum is not None
        then = self._next(problem, state)
        following = self.sample(problem, then)
        inverse = self.preconditioner(state)
        vector = -inverse.apply(state.momentum)
        length = min(1.0, 1.25 * state.length)
        recent = [*state.losses, point.value][-GROUP:]
        own: Problem | None = None  # made at its first use: encoding costs something
        for trial in range(1, TRIALS + 1):
            end = following.trial(problem.space.project(point.vector + length * vector))
            if end is not None:
                falls_too = True
                if end.value > RISE * sum(recent) / len(recent):
                    own = self.sample(problem, state) if own is None else own
                    falls_too = own.value(end.vector) < point.value
                if falls_too:
                    direction = Direction(vector)
                    then = replace(
                        then,
                        momentum=state.momentum,
                        length=length,
                    )
                    return Step(
                        end.vector, end.value, length, trial, direction, "", end, then
                    )
                assert own is not None
                problem.last_error = own.last_error
            else:
                problem.last_error = following.last_error
            bad = isinstance(problem.last_error, BadPartError)
            if bad and following.trial(point.vector) is None:
                break  # no shorter step would help
            if trial == 1:
                # the directions before may be what leads up
                state = replace(state, momentum=point.gradient)
                vector = -inverse.apply(point.gradient)
            length *= 0.5
        reason = f"none of {trial} trials along the direction was acceptable"
        if problem.last_failure:
            reason += f" (last refusal: {problem.last_failure})"
        return Step(None, point.value, 0.0, trial, Direction(vector), reason)

    def update(
        self, state: StochasticState, before: Point, after: Point, step: Step
    ) -> StochasticState:
        """Return the state after a step; a pair is added within one sample."""
        state = step.memo
        if state.on_sample:
            s, y = after.vector - before.vector, after.gradient - before.gradient
            return self._with_pair(state, s, y)
        state = replace(state, losses=(*state.losses, after.value))
        if not state.encoded:
            return state
        total = after.vector if state.total is None else state.total + after.vector
        return replace(state, total=total, in_group=state.in_group + 1)

    # -- curvature --------------------------------------------------------------

    def preconditioner(self, state: StochasticState) -> Preconditioner:
        """Return the inverse Hessian of a state."""
        assert state.initial is not None
        return PairsPreconditioner(
            state.pairs,
            memory=self.memory,
            base=HessianDiagonal().preconditioner(state.initial),
        )

    def _measure(
        self, problem: Problem, point: Point, state: StochasticState, budget: Budget
    ) -> StochasticState:
        """Return the state with a diagonal from probes, and a first scale."""
        kind = problem.objective.preferred_kind
        n_probes = DRAWN_PROBES
        if state.encoded:
            fewest, most = ENCODED_PROBES
            affordable = problem.objective.n_parts // PARTS_OF_A_PROBE
            n_probes = min(max(affordable, fewest), most)
        if budget.products < n_probes + 1:
            raise OutOfBudget(
                f"measuring a diagonal takes {n_probes + 1} products, and "
                f"{budget.products:g} are left"
            )
        size = state.size
        if not state.encoded:
            size = max(size // 2, 1)
        estimates = []
        for k in range(n_probes):
            probed = problem.sampled(size, self._seed(1, k))
            with probed.hessian(point, kind) as hessian:
                estimates.append(
                    estimate_diagonal(hessian, seed=k, n_probes=1, smooth=SMOOTH)
                )
        diagonal = torch.stack(estimates).mean(0)
        diagonal = diagonal.abs() if kind == "exact" else diagonal.clamp(min=0.0)
        if not float(diagonal.max()) > 0.0:
            diagonal = torch.ones_like(diagonal)
        # with its own sample the unit step does not go too far, whatever is noise in it
        own = self.sample(problem, state)
        base = DiagonalPreconditioner(diagonal, damping=DAMPINGS[FIRST_DAMPING])
        direction = base.apply(point.gradient)
        unit = unit_of(direction)
        direction = direction / unit
        with own.hessian(point, kind) as hessian:
            curvature = abs(float(direction @ hessian.matvec(direction)))
        slope = float(point.gradient @ direction)
        scale = unit * curvature / slope if curvature > 0.0 < slope else 1.0
        initial = DiagonalState(diagonal, DAMPINGS[FIRST_DAMPING], scale)
        return replace(state, initial=initial)

    def _close_group(
        self, problem: Problem, point: Point, state: StochasticState, budget: Budget
    ) -> StochasticState:
        """Return the state with the pair of the last two groups of iterates."""
        assert state.total is not None
        mean = state.total / state.in_group
        if state.mean is not None and budget.products >= 1:
            s = mean - state.mean
            if bool(s.any()):
                sample = problem.sampled(state.size, self._seed(2, state.number))
                at = replace(point, vector=mean)
                with sample.hessian(at, problem.objective.preferred_kind) as hessian:
                    state = self._with_pair(state, s, hessian.matvec(s))
        return replace(state, mean=mean, total=None, in_group=0)

    def _with_pair(self, state: StochasticState, s: Tensor, y: Tensor) -> StochasticState:
        """Return the state with a pair more, and the damping that agrees best."""
        initial = state.initial
        if initial is None or not safely_positive(s, y):
            return state
        fits = tuple(
            fit + math.log(agreement(initial.diagonal, damping, s, y))
            for fit, damping in zip(state.fits, DAMPINGS, strict=True)
        )
        damping = DAMPINGS[fits.index(max(fits))]
        pair = kept_pair(s, y, single=state.single)
        return replace(
            state,
            pairs=(*state.pairs, pair)[-self.memory :],
            fits=fits,
            initial=replace(initial, damping=damping),
        )

    def _follow(
        self, problem: Problem, point: Point, state: StochasticState
    ) -> StochasticState:
        """Return the state with a larger sample if the loss of samples has stalled."""
        n_parts = problem.objective.n_parts
        steps = 1 if state.encoded else STEPS
        span = max(TREND, round(2 * n_parts / (state.size * steps)))
        if len(state.losses) < span or falls(state.losses[-span:]):
            return replace(state, losses=state.losses[-span:])
        return replace(state, size=GROWTH * state.size, losses=())

    def handed_on(self, state: StochasticState) -> QuasiNewtonState:
        """Return the state with which the last method begins."""
        return QuasiNewtonState(
            pairs=state.pairs, initial=state.initial, age=1, single=state.single
        )


def falls(losses: Sequence[float]) -> bool:
    """Return True if a sequence of noisy losses falls, by the slope of its logarithm."""
    # Of losses that are not all positive the slope is their own.
    heights = np.log(losses) if min(losses) > 0.0 else np.asarray(losses)
    steps = np.arange(len(heights)) - 0.5 * (len(heights) - 1)
    return float(steps @ heights) < 0.0


def agreement(diagonal: Tensor, damping: float, s: Tensor, y: Tensor) -> float:
    """Return how well a damped diagonal M ``[n]`` maps s to y, between 0 and 1.

    It is ``(s·y)² / ((s·M s) (y·M⁻¹y))`` for ``s·y > 0``, 1 where y is a multiple of M s.
    Noise in y that M⁻¹ amplifies lowers it.
    """
    matrix = diagonal / diagonal.max() + damping
    s, y = s / unit_of(s), y / unit_of(y)
    most = float(s @ (matrix * s)) * float(y @ (y / matrix))
    return max(float(s @ y) ** 2 / most, math.ulp(0.0))
