"""Which method serves where none is chosen; ``benchmarks/RACE.md`` has the measurements.

Waveform misfits, and whatever else has a Gauss-Newton matrix, go to ``QuasiNewton``: the
matrix's diagonal, measured once, serves as L-BFGS's initial Hessian. Sums of many parts,
such as a survey's shots, go to ``StochasticQuasiNewton``, which ends with ``QuasiNewton``
on all parts. Any other loss goes to ``TrustRegionNewton``, whose exact products also see
negative curvature, or, if it turns out to have no second derivative, to ``QuasiNewton``
on gradients alone.
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
    """Return the method that ``minimize`` takes by default; it suits every objective."""
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
