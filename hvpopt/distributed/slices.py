"""Slices: vectors of a Krylov basis shared out over ranks, by neighbouring entries.

Of a vector ``[n]`` every rank holds ⌈n/W⌉ entries; the last ranks have fewer, or none. A
basis of k vectors then takes k·n/W numbers on each rank instead of k·n, and a product,
which needs whole vectors, gathers one. Sums over entries are added up in the order of
ranks, so that all see the same bits and decide alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hvpopt.distributed.checksum import checksum, combined
from hvpopt.distributed.exchange import Exchange


class Slices:
    """Each rank's neighbouring entries of a vector; a ``Holding``.

    All ranks must make the same calls. Whatever is held or summed is sent in float64.

    A vector that ranks cut their slices from must be the same on all. Once it is cut no
    rank can see that of another, so each message compares checksums of all that were.

    Args:
        exchange: With the other ranks.
        agreed: A checksum to begin with, the model's.
        note_gathered: Told each whole vector that is put together.
    """

    def __init__(
        self,
        exchange: Exchange,
        agreed: int,
        note_gathered: Callable[[Tensor], None],
    ) -> None:
        self._exchange = exchange
        self._agreed = agreed
        self._note_gathered = note_gathered

    def narrow(self, vector: Tensor) -> Tensor:
        """Return this rank's entries of a vector ``[n]``, a copy; no message."""
        self._agreed = combined(self._agreed, checksum(vector))
        each = self._each(vector.numel())
        first = self._exchange.rank * each
        return vector[first : first + each].clone()

    def widen(self, part: Tensor, size: int) -> Tensor:
        """Return the vector ``[size]`` whose slices the ranks hold; two messages.

        Args:
            part: This rank's slice.
            size: n.

        Raises:
            RankError: If a rank failed, is lost, or asks for something else.
        """
        padded = part.new_zeros(self._each(size))
        padded[: part.numel()] = part
        whole = self._gather(padded).reshape(-1)[:size].to(part.dtype)
        self._note_gathered(whole)
        return whole

    def total(self, numbers: Tensor) -> Tensor:
        """Return the sums over ranks; two messages, or one for a single number.

        Args:
            numbers: As many on every rank, of any shape.

        Raises:
            RankError: If a rank failed, is lost, or asks for something else.
        """
        rows = self._gather(numbers.reshape(-1))
        total = rows[0].clone()
        for row in rows[1:]:
            total += row
        return total.to(numbers.dtype).reshape(numbers.shape)

    def norm(self, part: Tensor) -> float:
        """Return the norm of the vector whose slices the ranks hold; one message.

        Args:
            part: This rank's slice.

        Raises:
            RankError: If a rank failed, is lost, or asks for something else.
        """
        rows = self._gather(torch.linalg.vector_norm(part).reshape(1))
        # squares of small norms would underflow
        return math.hypot(*rows.reshape(-1).tolist())

    def _gather(self, row: Tensor) -> Tensor:
        # as many numbers too, or their messages would not match
        agreed = combined(self._agreed, row.numel())
        return self._exchange.gather(row, agreed)

    def _each(self, size: int) -> int:
        return -(-size // self._exchange.size)
