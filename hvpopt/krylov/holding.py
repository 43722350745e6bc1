"""How vectors are held: whole, or some entries of each beside other processes.

A Krylov space is built of three things: products, which take and give whole vectors;
combinations of vectors, entry by entry; and inner products, which are sums over entries.
Only the first and the last need more than the entries that a process holds. A
``Holding`` says how it comes by them; the algorithm is the same for all.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

#: Rows that a basis has room for at first; the room doubles.
FIRST_ROWS = 16


class Holding(Protocol):
    """Which entries of each vector this process holds, and how it learns of the others.

    Where there are other processes, each of them must make the same calls in the same
    order, and all get the same bits.
    """

    def narrow(self, vector: Tensor) -> Tensor:
        """Return what is held of a whole vector ``[n]``, one axis."""

    def widen(self, part: Tensor, size: int) -> Tensor:
        """Return the whole vector ``[size]`` of which ``part`` is held."""

    def total(self, numbers: Tensor) -> Tensor:
        """Return sums over all entries, given those over the entries held.

        Args:
            numbers: One or several, of any shape.
        """

    def norm(self, part: Tensor) -> float:
        """Return the Euclidean norm of the whole vector of which ``part`` is held."""


class Whole:
    """Every entry, on this process alone."""

    def narrow(self, vector: Tensor) -> Tensor:
        """Return the vector itself."""
        return vector

    def widen(self, part: Tensor, size: int) -> Tensor:
        """Return the vector itself."""
        return part

    def total(self, numbers: Tensor) -> Tensor:
        """Return the numbers themselves."""
        return numbers

    def norm(self, part: Tensor) -> float:
        """Return the norm of the vector."""
        return float(part.norm())


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
