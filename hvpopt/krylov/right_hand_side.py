"""The right-hand side of a Krylov space: what the space sees of g, and what it does not.

With orthonormal q_1 … q_k and c_i = q_i·g, the step h = Q_k y of (H + τI) h = −g has

    (H + τI) h + g = (I − Q_k Q_kᵀ) g + β_k y_k q_{k+1}

if y solves the projected equations. The first term vanishes for a space that starts
from g, and is small for one whose start has a random part as well.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from hvpopt.model.scale import unit_of
from hvpopt.operators.holding import Holding


class RightHandSide:
    """A vector g in the coordinates of a basis that grows, in a unit of its own.

    Everything but ``unit`` is of g / unit, whose squares do not leave the range of
    float64.

    Args:
        vector: g ``[n]``, in the dtype of the basis. It is not changed.
        held: How the vectors of the basis are held.

    Attributes:
        unit: A power of two near the largest entry of g.
        norm: ‖g‖ / unit.
    """

    def __init__(self, vector: Tensor, held: Holding) -> None:
        self.unit = unit_of(vector)
        scaled = vector / self.unit
        self.norm = float(scaled.norm())
        self._held = held
        # what lies outside the basis; shrunk as the basis grows
        self._outside = held.narrow(scaled).clone()
        self._coordinates: list[float] = []
        self._outside_norms: list[float] = []

    def note(self, q: Tensor) -> None:
        """Note the next basis vector, as far as it is held.

        The basis has one more vector than products: q_{k+1} counts in the residual.
        """
        coordinate = float(self._held.total(q @ self._outside))
        self._outside.sub_(q, alpha=coordinate)
        self._coordinates.append(coordinate)
        self._outside_norms.append(self._held.norm(self._outside))

    def coordinates(self, k: int) -> np.ndarray:
        """Return ``[c_1 … c_k]``."""
        return np.array(self._coordinates[:k])

    def residual(self, k: int, last: float) -> float:
        """Return ``‖(I − Q_k Q_kᵀ) g + last · q_{k+1}‖``.

        Args:
            k: Size of the space.
            last: β_k y_k.
        """
        # what lies outside splits into its part along q_{k+1} and the rest; a space that
        # is closed under H has no q_{k+1}
        if len(self._coordinates) > k:
            return math.hypot(self._outside_norms[k], last + self._coordinates[k])
        return math.hypot(self._outside_norms[-1], last)

    def decrease(
        self, y: np.ndarray, size: float, diagonal: np.ndarray, off_diagonal: np.ndarray
    ) -> float:
        """Return ``−(g·h + ½ h·Hh) / size`` of the step h = size · Q_k y.

        Args:
            y: ``[k]``, of entries up to about 1.
            size: Of the step.
            diagonal: α of T_k, the projection of H.
            off_diagonal: β, as many.
        """
        cross = off_diagonal[:-1] * y[:-1] * y[1:]
        curvature = float(diagonal @ (y * y) + 2.0 * cross.sum())
        return -(float(self.coordinates(len(y)) @ y) + 0.5 * size * curvature)
