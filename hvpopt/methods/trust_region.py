"""TrustRegionNewton: the minimum of the quadratic model within a radius.

The radius bounds the step where the model is not to be trusted, negative curvature
included (Conn, Gould and Toint, Trust-Region Methods, 2000, §6.1). All radii of one
linearisation share one Lanczos basis (Gould, Lucidi, Roma and Toint, SIAM J. Optim. 9,
1999), so that a rejected trial costs a value and no product, and so does a look at a
larger radius.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from hvpopt import checks
from hvpopt.methods.backtracking import GRADIENT_PROGRESS
from hvpopt.methods.forcing import (
    Forcing,
    ForcingState,
    SquareRoot,
    as_forcing,
)
from hvpopt.methods.method import Step
from hvpopt.methods.points import Budget, Point, Problem
from hvpopt.methods.saddle import SecondOrderMethod
from hvpopt.methods.trial import RadiusSearch, SearchMemo
from hvpopt.model.scale import euclidean_norm
from hvpopt.problem.objective import Kind, check_kind


@dataclass(frozen=True)
class TrustRegionState:
    """What one step leaves to the next.

    Attributes:
        radius: Of the next step; None before the first.
        forcing: State of the forcing term.
        stalled: True if the last step's decrease was under the rounding of the loss and
            the gradient did not fall either: from here on the loss itself must fall.
    """

    radius: float | None
    forcing: ForcingState
    stalled: bool = False


class TrustRegionNewton(SecondOrderMethod):
    """Newton's method in a trust region, for indefinite Hessians as for definite ones.

    Args:
        hessian: ``"exact"`` or ``"gauss-newton"``. Default ``"exact"``.
        tol: Of the linear solve, ``‖(H + λI) h + g‖ ≤ tol · ‖g‖``: a number, or a
            forcing term that follows the run. Default ``SquareRoot()``.
        radius: Of the first step, in flat coordinates. Default None: the length of the
            Newton step, or where negative curvature is met that of the step of
            H + 1.5|θ_1|I. A long one costs values alone.
        probe: Size of the random part of the Krylov space's start, relative to the
            tolerance of the solve. It lets the space see negative curvature that the
            gradient says nothing of (the hard case), and is how far, relative to the
            step, unknowns move of which the loss says nothing. Default 1e-4.
        max_products: Products for one step. Default 300.
        max_trials: Values for one step. Default 30.
        eigenvalue_floor: Size relative to ``‖H‖`` under which λ_min of a stationary
            point counts as zero. Default 1e-6.
        confidence: With which a minimum is certified. Default 0.99.
        seed: Of the random parts.

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
        hessian: Kind = "exact",
        *,
        tol: float | Forcing | None = None,
        radius: float | None = None,
        probe: float = 1e-4,
        max_products: int = 300,
        max_trials: int = 30,
        eigenvalue_floor: float = 1e-6,
        confidence: float = 0.99,
        seed: int = 0,
    ) -> None:
        super().__init__(
            eigenvalue_floor=eigenvalue_floor,
            confidence=confidence,
            max_products=max_products,
            seed=seed,
        )
        check_kind(hessian)
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

    def step(
        self, problem: Problem, point: Point, state: TrustRegionState, budget: Budget
    ) -> Step:
        """Return the step of the largest radius that the loss agrees with."""
        tol = min(self.forcing.tolerance(state.forcing), budget.accuracy)
        search = RadiusSearch(
            problem,
            point,
            budget,
            tol=tol,
            probe=self.probe * tol,
            max_products=self.max_products,
            max_trials=self.max_trials,
            confidence=self.confidence,
            seed=self.seed,
            exacting=state.stalled,
        )
        return search.run(state.radius)

    def remember(
        self, state: TrustRegionState, before: Point, after: Point, step: Step
    ) -> TrustRegionState:
        """Return the state after an accepted step."""
        memo: Any = step.memo
        if not isinstance(memo, SearchMemo):
            # off a stationary point: the region must reach as far as that step did
            moved = euclidean_norm(after.vector - before.vector)
            radius = None if state.radius is None else max(state.radius, moved)
            return replace(state, radius=radius, stalled=False)
        norm_before = euclidean_norm(before.projected_gradient)
        norm_after = euclidean_norm(after.projected_gradient)
        return replace(
            state,
            radius=memo.radius,
            forcing=self.forcing.remember(state.forcing, norm_before, norm_after),
            stalled=memo.below_rounding and norm_after > GRADIENT_PROGRESS * norm_before,
        )
