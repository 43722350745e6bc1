"""A lower bound on the smallest eigenvalue, from the coefficients of a Lanczos run.

The bound is that of van Dorsselaer, Hochstenbach and van der Vorst, SIAM J. Matrix Anal.
Appl. 22, 2000. With p_j the Lanczos polynomials of T and u the lowest eigenvector,
⟨u, q_{j+1}⟩ = p_j(λ) ⟨u, q_1⟩, and the squares of these add up to at most 1. An
eigenvalue λ below every Ritz value would make p_j(λ) grow beyond that, unless ⟨u, q_1⟩
is tiny, which a random start makes improbable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import scipy.optimize


def log_component(certainty: float, confidence: float, size: int) -> float:
    """Return log c, with |⟨u, q_1⟩| ≥ c at the given confidence for any unit u.

    q_1 = (ĝ + w ζ/√n)/‖·‖ with ζ standard normal: ⟨u, q_1⟩ is normal whatever ĝ
    is, with density at most √n/(w√2π) · ‖·‖, hence c = (1 − confidence) w √(π/2n).

    Args:
        certainty: w/‖·‖, the weight of the random part of q_1.
        confidence: Probability.
        size: n.
    """
    weight = certainty * (1.0 - confidence)
    if not weight:
        return -math.inf
    return math.log(weight) + 0.5 * math.log(math.pi / (2 * size))


def log_mass(
    value: float,
    diagonal: Sequence[float],
    off_diagonal: Sequence[float],
    rounding: float,
) -> float:
    """Return log Σ p_j(value)², j = 0 … k, scaled on the way against overflow.

    Args:
        value: Where to evaluate the Lanczos polynomials.
        diagonal: α.
        off_diagonal: β, as many.
        rounding: Stands for a β that is smaller.
    """
    if not math.isfinite(value):
        return math.inf
    previous, current, total, exponent = 0.0, 1.0, 1.0, 0.0
    before = 0.0
    for alpha, measured in zip(diagonal, off_diagonal, strict=True):
        beta = max(measured, rounding)
        # divided first: a value of any size times the polynomials may overflow
        new = (value - alpha) / beta * current - before / beta * previous
        previous, current, before = current, new, beta
        total += new * new
        if total > 1e200:
            previous, current = previous * 1e-100, current * 1e-100
            total, exponent = total * 1e-200, exponent + 200 * math.log(10)
    return math.log(total) + exponent


def lower_bound(
    top: float,
    component: float,
    diagonal: Sequence[float],
    off_diagonal: Sequence[float],
    *,
    resolution: float,
    rounding: float,
) -> float:
    """Return the number below ``top`` under which no eigenvalue lies.

    Args:
        top: The smallest Ritz value; at ``top − resolution`` the mass is not enough.
        component: As ``log_component`` gives it.
        diagonal: α.
        off_diagonal: β, as many.
        resolution: What a product's rounding hides; the search begins there.
        rounding: Stands for a β that is smaller.
    """

    def excess(distance: float) -> float:
        return log_mass(top - distance, diagonal, off_diagonal, rounding) + 2 * component

    near = far = max(resolution, rounding)
    while excess(far) < 0.0:
        near, far = far, 4 * far
    # in log distance: eigenvalues of a misfit can be smaller than any xtol
    distance = scipy.optimize.brentq(
        lambda d: excess(math.exp(d)), math.log(near), math.log(far), xtol=1e-6
    )
    return top - math.exp(distance)
