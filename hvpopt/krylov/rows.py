"""Rows: the storage of a basis, a matrix that grows by a row at a time."""

from __future__ import annotations

from torch import Tensor

#: Rows that a basis has room for at first; the room doubles.
FIRST_ROWS = 16


class Rows:
    """Vectors, or the parts held of them, as rows of a matrix that grows.

    Rows are contiguous: appending copies nothing but now and then all, and a product
    with the matrix is one gemv.

    Args:
        first: The first row, ``[m]``.
        limit: Most rows that there can be.
    """

    def __init__(self, first: Tensor, limit: int) -> None:
        self._matrix = first.new_empty(min(FIRST_ROWS, limit), first.numel())
        self._matrix[0] = first
        self._limit = limit
        self._count = 1

    def append(self, row: Tensor) -> None:
        """Add a row ``[m]``."""
        room, m = self._matrix.shape
        if self._count == room:
            grown = self._matrix.new_empty(min(2 * room, self._limit), m)
            grown[:room] = self._matrix
            self._matrix = grown
        self._matrix[self._count] = row
        self._count += 1

    def first(self, k: int) -> Tensor:
        """Return the first k rows ``[k, m]``, a view."""
        return self._matrix[:k]
