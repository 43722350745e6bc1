"""The trust-region problem in eigen-coordinates: a root in one number.

    minimise  g·y + ½ Σ θ_i y_i²   over  ‖y‖ ≤ Δ

is solved by y_i = −g_i / (θ_i + λ), with the multiplier λ ≥ max(−θ_1, 0) that puts ‖y‖
on the boundary, or λ = 0 inside it (Moré and Sorensen, SIAM J. Sci. Stat. Comput. 4,
1983; Conn, Gould and Toint, Trust-Region Methods, 2000, §7.3). In a Krylov space θ are
the Ritz values (Gould, Lucidi, Roma and Toint, SIAM J. Optim. 9, 1999).

The root is sought in p = θ_1 + λ, the distance to the pole, and not in λ: of
θ_i + λ = (θ_i − θ_1) + p nothing cancels, however nearly hard the case is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.optimize

EPS = float(np.finfo(float).eps)


@dataclass(frozen=True)
class BoundedMinimum:
    """The solution of a trust-region problem."""

    coordinates: np.ndarray  # y, [k]
    multiplier: float  # λ ≥ 0 of the constraint; diag(θ) + λI is positive semidefinite
    on_boundary: bool  # True if ‖y‖ = Δ


def bounded_minimum(
    eigenvalues: np.ndarray, gradient: np.ndarray, radius: float
) -> BoundedMinimum:
    """Minimise ``g·y + ½ Σ θ_i y_i²``, θ ascending ``[k]``, over ``‖y‖ ≤ radius``."""
    # the global minimum; of the two in the hard case, the one with y_1 ≥ 0
    if not 0.0 < radius < math.inf:
        raise ValueError(f"radius is {radius}; it must be positive and finite")
    # in units where the largest eigenvalue, the gradient and the radius are 1 each:
    # only the size ‖g‖ / (‖H‖ Δ) of the gradient is left as a parameter
    top = float(np.abs(eigenvalues).max())
    norm = float(np.linalg.norm(gradient))
    unit = top if top > 0.0 else 1.0
    theta = eigenvalues / unit
    size = norm / unit / radius
    direction = gradient / norm if norm > 0.0 else np.zeros_like(gradient)
    y, pole = _unit_ball(theta, direction, size)
    inside = pole is None
    return BoundedMinimum(
        coordinates=radius * y,
        multiplier=0.0 if pole is None else max((pole - float(theta[0])) * unit, 0.0),
        on_boundary=not inside,
    )


def _unit_ball(
    theta: np.ndarray, direction: np.ndarray, size: float
) -> tuple[np.ndarray, float | None]:
    """Return y in the unit ball, and θ_1 + λ (None inside the ball)."""
    lowest = float(theta[0])
    gaps = theta - lowest

    def step(pole: float) -> np.ndarray:
        below = gaps + pole
        # where the gradient is zero there is no step, also over a zero
        moves = np.zeros_like(direction)
        np.divide(direction, below, out=moves, where=direction != 0.0)
        return -size * moves

    at_pole = bool((direction[gaps + max(lowest, 0.0) == 0.0] != 0.0).any())
    if lowest >= 0.0 and not at_pole:
        y = step(lowest)
        if _norm(y) <= 1.0:
            return y, None
    elif lowest < 0.0 and not at_pole:
        y = step(0.0)
        length = _norm(y)
        if length <= 1.0:
            y[0] = math.sqrt(1.0 - length * length)
            return y, 0.0
    pole = _pole(gaps, direction, size, max(lowest, 0.0))
    y = step(pole)
    return y / np.linalg.norm(y), pole


def _norm(y: np.ndarray) -> float:
    """Return ‖y‖ where squares may overflow: next to the pole y is as long as 1/p."""
    largest = float(np.abs(y).max())
    return largest * float(np.linalg.norm(y / largest)) if largest > 0.0 else 0.0


def _pole(gaps: np.ndarray, direction: np.ndarray, size: float, least: float) -> float:
    """Return p with ‖y(p)‖ = 1, to rounding; ‖y(least)‖ is above 1."""
    at_lowest = float(np.linalg.norm(direction[gaps == 0.0]))
    # ‖g‖/(gap + p) bounds ‖y(p)‖ from both sides; so does the part along θ_1 from below
    high = max(size, least * (1 + EPS))
    low = max(least, size * at_lowest, size - float(gaps[-1]), 1e-250 * high)

    def excess(log_pole: float) -> float:
        y = direction / (gaps + math.exp(log_pole))
        # 1/‖y‖ is nearly linear in p, so that the root is found in a few steps
        return 1.0 / (size * _norm(y)) - 1.0

    # rounding may put the root just outside its bracket
    left, right = math.log(low) - 1e-12, math.log(high) + 1e-12
    if excess(left) >= 0.0:
        return low
    if excess(right) <= 0.0:
        return high
    # in log p: an eigenvalue of a misfit can be smaller than any absolute tolerance
    root = scipy.optimize.brentq(excess, left, right, xtol=1e-15, rtol=4 * EPS)
    return math.exp(float(root))
