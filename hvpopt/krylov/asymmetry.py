"""How far products are from those of a symmetric operator, measured on the way.

For exact products ``q_i·(H q_j) = q_j·(H q_i)``. With orthonormal q of a Lanczos basis
the right side is known before ``H q_j`` is made: β_{j−1} for i = j − 1, and 0 before.
What the left side deviates by is the products' own error, at no further product. With D
its matrix, strictly upper triangular,

    H Q_k = Q_k (T_k + D_k) + β_k q_{k+1} e_kᵀ

holds to the rounding of the basis for whatever the products are, so that residuals that
take D in are true also of an operator that is not symmetric.
"""

from __future__ import annotations

import math

import numpy as np


class Asymmetry:
    """A tally of the deviations ``q_i·(H q_j) − q_j·(H q_i)``, i < j.

    Attributes:
        largest: The largest deviation, absolute; 0 until there are two vectors.
    """

    def __init__(self) -> None:
        self.largest = 0.0
        self._root_of_squares = 0.0
        self._count = 0
        self._noted = 0
        self._matrix = np.zeros((8, 8))

    def note(
        self, projections: np.ndarray, off_diagonal: list[float], unit: float
    ) -> None:
        """Note the projections of ``H q_j`` on the vectors before q_j.

        Args:
            projections: ``q_i·(H q_j) / unit``, i = 0 … j − 1.
            off_diagonal: β_0 … β_{j−1}.
            unit: A power of two near the size of ``H q_j``.
        """
        deviations = projections.copy()
        if off_diagonal:
            deviations[-1] -= off_diagonal[-1] / unit
            self.largest = max(self.largest, unit * float(np.abs(deviations).max()))
            length = unit * float(np.linalg.norm(deviations))
            # a sum of squares, which may lie outside the range of floats
            self._root_of_squares = math.hypot(self._root_of_squares, length)
            self._count += len(off_diagonal)
        j = self._noted
        if j == len(self._matrix):
            self._matrix = np.pad(self._matrix, (0, j))
        self._matrix[:j, j] = unit * deviations
        self._noted += 1

    def along(self, coordinates: np.ndarray, unit: float) -> float:
        """Return ``‖D_k y‖ / unit``.

        Args:
            coordinates: y, ``[k]``.
            unit: A power of two near the size of H.
        """
        k = len(coordinates)
        return float(np.linalg.norm(self._matrix[:k, :k] @ coordinates / unit))

    def error(self, size: int) -> float:
        """Return an estimate of the root mean square of ``‖δ(H q)‖`` for unit q.

        Each deviation is the difference of two errors' components. An error is taken to
        spread over all directions, of which it shows one.

        Args:
            size: n, the number of directions.
        """
        if not self._count:
            return 0.0
        return math.sqrt(0.5 * size / self._count) * self._root_of_squares
