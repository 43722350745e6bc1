"""Which method serves where none is chosen.

Waveform misfits, and whatever else has a Gauss-Newton matrix, go to ``QuasiNewton``: the
matrix's diagonal, measured once, serves as L-BFGS's initial Hessian. On the problems of
``benchmarks/RACE.md``, where the figures are, it needed no more than 1.5 times the best
method's cost to reach a misfit of 1e-2, 1e-3 or 1e-4 of the start's.

If they are sums of many parts, a survey's shots, they go to ``StochasticQuasiNewton``,
which ends with ``QuasiNewton`` on all parts. What that gains on surveys of 24 and 48
shots is on the same page.

Any other loss goes to ``TrustRegionNewton``, whose exact products also see negative
curvature. A loss that turns out to have no second derivative goes to ``QuasiNewton`` on
gradients alone.
"""

from __future__ import annotations

from hvpopt.methods.initial import GradientScale
from hvpopt.methods.method import Method
from hvpopt.methods.quasi_newton import QuasiNewton
from hvpopt.methods.stochastic import (
    FEWEST_DRAWN,
    FEWEST_ENCODED,
    StochasticQuasiNewton,
)
from hvpopt.methods.trust_region import TrustRegionNewton
from hvpopt.problem.objective import Objective


def default_method(*objectives: Objective) -> Method:
    """Return the method that ``minimize`` takes where none is given.

    Args:
        *objectives: What is to be minimised, each of which the method must suit.
    """
    if not all(objective.has_gauss_newton for objective in objectives):
        return TrustRegionNewton()
    sampled = all(
        objective.n_parts >= (FEWEST_ENCODED if objective.encodes else FEWEST_DRAWN)
        for objective in objectives
    )
    return StochasticQuasiNewton() if sampled else QuasiNewton()


def gradients_alone() -> Method:
    """Return the method that ``minimize`` goes on with where products are impossible."""
    return QuasiNewton(initial=GradientScale())
