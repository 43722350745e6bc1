"""How vectors are held: whole, or some entries of each beside other processes.

A Krylov space is built of three things: products, which take and give whole vectors;
combinations of vectors, entry by entry; and inner products, which are sums over entries.
Only the first and the last need more than the entries that a process holds. A
``Holding`` says how it comes by them; the algorithm is the same for all.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


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


#: What an operator has whose vectors nobody shares.
WHOLE = Whole()
