"""How far products are from those of a symmetric operator, measured on the way.

For exact products ``q_i·(H q_j) = q_j·(H q_i)``. With orthonormal q of a Lanczos basis
the right side is known before ``H q_j`` is made: β_{j−1} for i = j − 1, and 0 before.
What the left side deviates by is the products' own error, at no further product.
"""

from __future__ import annotations

import math

from torch import Tensor


class Asymmetry:
    """A tally of the deviations ``q_i·(H q_j) − q_j·(H q_i)``, i < j.

    Attributes:
        largest: The largest deviation, absolute; 0 until there are two vectors.
    """

    def __init__(self) -> None:
        self.largest = 0.0
        self._squares = 0.0
        self._count = 0

    def note(self, projections: Tensor, off_diagonal: list[float]) -> None:
        """Note the projections of ``H q_j`` on the vectors before q_j.

        Args:
            projections: ``q_i·(H q_j)``, i = 0 … j − 1.
            off_diagonal: β_0 … β_{j−1}.
        """
        if not off_diagonal:
            return
        deviations = projections.clone()
        deviations[-1] -= off_diagonal[-1]
        self.largest = max(self.largest, float(deviations.abs().max()))
        self._squares += float(deviations @ deviations)
        self._count += len(off_diagonal)

    def error(self, size: int) -> float:
        """Return an estimate of the root mean square of ``‖δ(H q)‖`` for unit q.

        Each deviation is the difference of two errors' components. An error is taken to
        spread over all directions, of which it shows one.

        Args:
            size: n, the number of directions.
        """
        if not self._count:
            return 0.0
        return math.sqrt(0.5 * size * self._squares / self._count)
