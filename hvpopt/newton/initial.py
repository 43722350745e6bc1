"""Where a quasi-Newton method starts from: curvature measured by a few products.

L-BFGS corrects an initial inverse Hessian H₀, and is as good as that is far from what
its pairs have seen. The usual H₀ is one number. The diagonal of the Gauss-Newton matrix
knows how much less the deep cells are seen than the shallow ones, and costs a few
products, spent once (pseudo-Hessians serve waveform inversion so since Shin, Jang and
Min, Geophysical Prospecting 49, 2001).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hvpopt.krylov.diagonal import estimate_diagonal
from hvpopt.krylov.low_rank import LowRankPreconditioner, nystrom
from hvpopt.krylov.preconditioner import DiagonalPreconditioner, Preconditioner
from hvpopt.newton.problem import Point, Problem
from hvpopt.objective import Kind
from hvpopt.operators import SymmetricOperator

#: Probes of an operator whose products cost a whole one, and most probes of any.
FEWEST, MOST = 3, 32


class InitialCurvature(ABC):
    """Builds the initial inverse Hessian of a quasi-Newton method."""

    @abstractmethod
    def build(self, problem: Problem, point: Point, seed: int) -> Any:
        """Return what is known of the curvature at a point, as plain tensors.

        Args:
            problem: For products.
            point: Where.
            seed: Of what is random.
        """

    @abstractmethod
    def preconditioner(self, state: Any) -> Preconditioner:
        """Return the initial inverse Hessian of what ``build`` returned."""


@dataclass(frozen=True)
class DiagonalState:
    """A measured diagonal.

    Attributes:
        diagonal: ``[n]``, none negative.
        damping: Floor relative to its largest entry.
    """

    diagonal: Tensor
    damping: float


@dataclass(frozen=True)
class HessianDiagonal(InitialCurvature):
    """The diagonal of the Gauss-Newton matrix, from random probes, smoothed and damped.

    The probes are of the objective's ``sketch``: for a fixed-spread survey one encoded
    shot each, so that as many probes as there are shots cost one product. An objective
    without a Gauss-Newton matrix gives the size of its exact diagonal.

    Args:
        n_probes: Random vectors. Default: as many as cost one whole product, at least 3
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
        if self.n_probes is not None and self.n_probes < 1:
            raise ValueError(f"n_probes is {self.n_probes}; it must be at least 1")
        if not 0.0 <= self.smooth < math.inf:
            raise ValueError(f"smooth is {self.smooth} cells; it must not be negative")
        if self.damping is not None and not 0.0 < self.damping < math.inf:
            raise ValueError(f"damping is {self.damping}; it must be positive")

    def build(self, problem: Problem, point: Point, seed: int) -> DiagonalState:
        """Probe the diagonal at a point."""
        model = problem.space.to_model(point.vector)
        kind: Kind = "gauss-newton" if problem.objective.has_gauss_newton else "exact"
        made: list[SymmetricOperator] = []

        def draw(k: int) -> SymmetricOperator:
            # a sketch that is the whole Hessian is made once
            if not made or made[-1].cost < 1.0:
                made.append(
                    problem.objective.sketch(
                        model, kind, space=problem.space, seed=seed + k
                    )
                )
            return made[-1]

        try:
            n_probes = self.n_probes
            if n_probes is None:
                n_probes = min(max(FEWEST, round(1.0 / draw(0).cost)), MOST)
                made[1:] = []
            found = estimate_diagonal(draw, n_probes, seed=seed, smooth=self.smooth)
        finally:
            for operator in made:
                operator.close()
        diagonal = found.diagonal.abs() if kind == "exact" else found.diagonal
        diagonal = diagonal.clamp(min=0.0)
        largest = float(diagonal.max())
        if not largest > 0.0:
            raise FloatingPointError(
                f"{found.n_products} probes found no curvature at this model"
            )
        damping = self.damping
        if damping is None:
            damping = found.standard_error / largest
            damping = min(max(damping, 1e-3), 1.0) if math.isfinite(damping) else 0.05
        return DiagonalState(diagonal, damping)

    def preconditioner(self, state: DiagonalState) -> DiagonalPreconditioner:
        """Return the damped diagonal's inverse."""
        return DiagonalPreconditioner(state.diagonal, damping=state.damping)


@dataclass(frozen=True)
class LowRankState:
    """A diagonal, and the few directions that it misses most.

    Attributes:
        diagonal: The measured diagonal.
        vectors: ``[n, r]``, orthonormal in the diagonal.
        values: Curvature along them relative to the diagonal, ``[r]``.
        rest: Of all other directions.
    """

    diagonal: DiagonalState
    vectors: Tensor
    values: Tensor
    rest: float


@dataclass(frozen=True)
class HessianSketch(InitialCurvature):
    """A diagonal with a randomised low-rank part on top (Nyström), of whole products.

    Args:
        rank: Products, and directions known. Default 8.
        diagonal: What the rest is divided by. Default ``HessianDiagonal()``.

    Raises:
        ValueError: If the rank is not positive.
    """

    rank: int = 8
    diagonal: HessianDiagonal = HessianDiagonal()

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}; it must be at least 1")

    def build(self, problem: Problem, point: Point, seed: int) -> LowRankState:
        """Probe the diagonal, then sketch what it leaves."""
        diagonal = self.diagonal.build(problem, point, seed)
        base = self.diagonal.preconditioner(diagonal)
        kind: Kind = "gauss-newton" if problem.objective.has_gauss_newton else "exact"
        operator = problem.hessian(point, kind)
        try:
            rank = min(self.rank, operator.size)
            found = nystrom(operator, rank, seed, base=base)
        finally:
            operator.close()
        return LowRankState(diagonal, found.vectors, found.values, found.rest)

    def preconditioner(self, state: LowRankState) -> LowRankPreconditioner:
        """Return the low-rank correction of the damped diagonal."""
        base = self.diagonal.preconditioner(state.diagonal)
        return LowRankPreconditioner(state.vectors, state.values, state.rest, base=base)


@dataclass(frozen=True)
class CauchyState:
    """One number.

    Attributes:
        curvature: Of the objective along its gradient.
    """

    curvature: float


class _Scaled:
    """Division by one number."""

    def __init__(self, curvature: float) -> None:
        self._curvature = curvature

    def apply(self, vector: Tensor) -> Tensor:
        return vector / self._curvature


@dataclass(frozen=True)
class CauchyScale(InitialCurvature):
    """The identity, scaled by the curvature along the gradient; one product."""

    def build(self, problem: Problem, point: Point, seed: int) -> CauchyState:
        """Measure the curvature along the gradient."""
        gradient = point.projected_gradient
        operator = problem.hessian(point)
        try:
            along = float(gradient @ operator.matvec(gradient))
        finally:
            operator.close()
        square = float(gradient @ gradient)
        # a flat or falling line says nothing; one unit of the model is then a first step
        curvature = abs(along) / square if along else math.sqrt(square)
        return CauchyState(curvature)

    def preconditioner(self, state: CauchyState) -> Preconditioner:
        """Return the division by that curvature."""
        return _Scaled(state.curvature)
