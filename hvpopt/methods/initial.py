"""Where a quasi-Newton method starts from: curvature measured by a few products.

L-BFGS corrects an initial inverse Hessian H₀, which decides the step wherever its pairs
do not span the space. The usual H₀ is one number. The diagonal of the Gauss-Newton matrix
is smaller for deep cells, which the data constrain less than shallow ones, and costs a
few products, spent once (pseudo-Hessians serve waveform inversion so since Shin, Jang and
Min, Geophysical Prospecting 49, 2001).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.krylov.diagonal import WIDEST, estimate_diagonal, mean_and_error
from hvpopt.krylov.preconditioner import DiagonalPreconditioner, Preconditioner
from hvpopt.methods.method import OutOfBudget
from hvpopt.methods.points import Budget, Point, Problem
from hvpopt.model._scale import euclidean_norm, unit_of
from hvpopt.operators.symmetric import SymmetricOperator

#: Probes of an operator whose products cost a whole one, and most probes of any.
FEWEST, MOST = 2, 32
#: Probes after which it is decided whether a diagonal serves at all.
DECIDING = 2
#: Factor of the next step where one showed no positive curvature.
LENGTHENING = 4.0


class InitialCurvature(ABC):
    """Builds the initial inverse Hessian of a quasi-Newton method."""

    @abstractmethod
    def build(self, problem: Problem, point: Point, seed: int, budget: Budget) -> Any:
        """Return what is known of the curvature at a point, as plain tensors.

        Args:
            problem: For products.
            point: Where.
            seed: Of what is random.
            budget: What may be spent.

        Raises:
            OutOfBudget: If that is too little to measure anything.
        """

    @abstractmethod
    def preconditioner(self, state: Any) -> Preconditioner:
        """Return the initial inverse Hessian of what ``build`` returned."""

    @property
    def needs_products(self) -> bool:
        """True if ``build`` makes Hessian-vector products. Default True."""
        return True

    def lengthened(self, state: Any) -> Any:
        """Return the state after a whole step that showed no positive curvature.

        Asked as long as no step has shown any.

        Args:
            state: From ``build`` or the last ``lengthened``. Default returned as it is.
        """
        return state


@dataclass(frozen=True)
class DiagonalState:
    """A measured diagonal, or the one number that did better."""

    diagonal: Tensor  # [n], none negative
    damping: float  # floor relative to the largest entry
    #: curvature along the first direction, relative to the diagonal unless uniform
    scale: float = 1.0
    uniform: bool = False  # one number for all cells predicted the greater decrease


class _Scaled:
    """Division by one number."""

    def __init__(self, curvature: float) -> None:
        self._curvature = curvature

    def apply(self, vector: Tensor) -> Tensor:
        return vector / self._curvature


class _Sketches:
    """The sketches of one point's Hessian by number, each made once; a context."""

    def __init__(self, problem: Problem, point: Point, seed: int) -> None:
        self.kind = problem.objective.preferred_kind
        self.seed = seed
        self._problem = problem
        self._point = point
        self._made: dict[int, SymmetricOperator] = {}
        self._whole = False

    def __enter__(self) -> _Sketches:
        return self

    def __exit__(self, *_: object) -> None:
        for operator in self._made.values():
            operator.close()

    def __getitem__(self, k: int) -> SymmetricOperator:
        k = 0 if self._whole else k  # each would be the whole Hessian again
        if k not in self._made:
            made = self._problem.sketch(self._point, self.kind, self.seed + k)
            self._made[k] = made
            self._whole = made.cost >= 1.0
        return self._made[k]

    def release(self, k: int) -> None:
        """Close a sketch that is not used again."""
        if not self._whole and k in self._made:
            self._made.pop(k).close()


@dataclass(frozen=True)
class HessianDiagonal(InitialCurvature):
    """The diagonal of the Gauss-Newton matrix, from random probes, smoothed and damped.

    The probes are of the objective's ``sketch``: for a fixed-spread survey one encoded
    shot each, so that as many probes as there are shots cost one product. An objective
    without a Gauss-Newton matrix gives the size of its exact diagonal.

    A diagonal helps where cells differ in how well the data constrain them, as in depth
    below surface shots; it harms where its small entries are cells that the data do not
    constrain at all, as beside a transmission experiment. So after two probes the
    diagonal and one number for all cells are compared, by the decrease that the quadratic
    model predicts for the first step along each, and the better one is taken. The same
    products give its scale, with which the unit step is the best one along the first
    direction.

    Args:
        n_probes: Random vectors. Default: as many as cost one whole product, at least 2
            and at most 32.
        smooth: Standard deviation of the smoothing, cells. Default 3.
        damping: Floor of the diagonal relative to its largest entry. Default: the
            standard error of the estimate, since no entry is known better than that.

    Raises:
        ValueError: For a number out of range.
    """

    n_probes: int | None = None
    smooth: float = 3.0
    damping: float | None = None

    def __post_init__(self) -> None:
        n_probes = checks.optional(checks.integer, "n_probes", self.n_probes, least=1)
        smooth = checks.number("smooth", self.smooth, least=0.0, most=WIDEST)
        damping = checks.optional(
            checks.number, "damping", self.damping, above=0.0, below=math.inf
        )
        checks.put(self, n_probes=n_probes, smooth=smooth, damping=damping)

    def build(
        self, problem: Problem, point: Point, seed: int, budget: Budget
    ) -> DiagonalState:
        """Probe the diagonal at a point."""
        if budget.products < DECIDING + 2:
            raise OutOfBudget(
                f"measuring a diagonal takes at least {DECIDING + 2} products, and "
                f"{budget.products:g} are left"
            )
        with _Sketches(problem, point, seed) as sketches:
            n_probes = self.n_probes
            if n_probes is None:
                n_probes = min(max(FEWEST, round(1.0 / sketches[0].cost)), MOST)
            # two or three products more for the scale
            n_probes = min(n_probes, max(budget.cap(n_probes + 3) - 3, 1))
            few = min(n_probes, DECIDING)
            estimates = [self._probe(sketches, k) for k in range(few)]
            state = self._compare(self._damped(estimates), sketches[n_probes], point)
            if n_probes == few or state.uniform:
                return state
            for k in range(few, n_probes):
                if budget.out_of_time:
                    break
                estimates.append(self._probe(sketches, k))
            return self._scale(self._damped(estimates), sketches[n_probes], point)[1]

    def _probe(self, sketches: _Sketches, k: int) -> Tensor:
        seed = sketches.seed + k
        found = estimate_diagonal(sketches[k], n_probes=1, seed=seed, smooth=self.smooth)
        sketches.release(k)
        return found if sketches.kind == "gauss-newton" else found.abs()

    def _damped(self, estimates: list[Tensor]) -> DiagonalState:
        mean, error = mean_and_error(estimates)
        diagonal = mean.clamp(min=0.0)
        largest = float(diagonal.max())
        if not largest > 0.0:
            return DiagonalState(torch.ones_like(mean), 1.0)  # its scale is measured
        damping = self.damping
        if damping is None:
            known = math.isfinite(error)
            damping = min(max(error / largest, 1e-3), 1.0) if known else 0.05
        return DiagonalState(diagonal, damping)

    def _compare(
        self, state: DiagonalState, operator: SymmetricOperator, point: Point
    ) -> DiagonalState:
        """Take the diagonal or one number, whichever predicts the greater decrease."""
        tried = (
            self._scale(state, operator, point, uniform) for uniform in (True, False)
        )
        return max(tried, key=lambda pair: pair[0])[1]

    def _scale(
        self,
        state: DiagonalState,
        operator: SymmetricOperator,
        point: Point,
        uniform: bool = False,
    ) -> tuple[float, DiagonalState]:
        """Return the decrease predicted for the best length, and the scaled state."""
        state = replace(state, uniform=uniform)
        gradient = point.projected_gradient
        # in units: of a loss of 1e-170 the products of two gradients underflow
        gradient = gradient / unit_of(gradient)
        direction = self.preconditioner(state).apply(gradient)
        unit = unit_of(direction)
        direction = direction / unit
        slope = float(gradient @ direction)
        curvature = abs(float(direction @ operator.matvec(direction)))
        if not curvature > 0.0:
            # without curvature the first step is one unit long
            flat = replace(
                state, uniform=True, scale=euclidean_norm(point.projected_gradient)
            )
            return -math.inf, flat
        return slope * (slope / curvature), replace(state, scale=unit * curvature / slope)

    def preconditioner(self, state: DiagonalState) -> Preconditioner:
        """Return the damped diagonal's inverse, or the division by one number."""
        if state.uniform:
            return _Scaled(state.scale)
        diagonal = state.diagonal * state.scale
        return DiagonalPreconditioner(diagonal, damping=state.damping)


@dataclass(frozen=True)
class ScaleState:
    """The curvature that is assumed of the objective along its gradient."""

    curvature: float


@dataclass(frozen=True)
class GradientScale(InitialCurvature):
    """One number from gradients alone, for losses without second derivatives.

    The first step has a given length. From the first pair (s, y) on the number is
    ``y·y / s·y`` of the newest (Shanno and Phua, Math. Programming 14, 1978; Nocedal and
    Wright, Numerical Optimization, 2006, equation 7.20), which ``QuasiNewton`` takes with
    any initial curvature. Steps that show no positive curvature, and are taken whole, are
    followed by one four times as long.

    Args:
        first: Length of the first step relative to the norm of the flat model, or in
            flat coordinates where that is zero. Default 0.01.

    Raises:
        TypeError: If the length is no number.
        ValueError: If it is not positive and finite.
    """

    first: float = 0.01

    def __post_init__(self) -> None:
        first = checks.number("first", self.first, above=0.0, below=math.inf)
        checks.put(self, first=first)

    @property
    def needs_products(self) -> bool:
        """False."""
        return False

    def build(
        self, problem: Problem, point: Point, seed: int, budget: Budget
    ) -> ScaleState:
        """Return the curvature with which a step down has the first length."""
        length = self.first * (euclidean_norm(point.vector) or 1.0)
        return ScaleState(euclidean_norm(point.projected_gradient) / length)

    def preconditioner(self, state: ScaleState) -> Preconditioner:
        """Return the division by that curvature."""
        return _Scaled(state.curvature)

    def lengthened(self, state: ScaleState) -> ScaleState:
        """Return the state whose step is four times as long."""
        return ScaleState(state.curvature / LENGTHENING)
