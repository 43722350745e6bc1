"""What ranks tell each other before and in a sum, and the error that all then raise."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import torch
from torch import Tensor

#: What a sum can be of; ranks that ask for different ones have parted.
SUMS = ("value", "gradient", "hessian", "product", "costs", "flag", "end")
#: How a rank's part ended.
FINE, REFUSED, FAILED, INTERRUPTED = range(4)


class RankError(RuntimeError):
    """A rank failed, is lost, or differs from the others; raised alike on every rank.

    Args:
        message: What happened.
        ranks: Those that it happened to.
        ends_run: True if no further sum is possible; False for a model that was refused.

    Attributes:
        ranks: As given; empty where that is not known.
        ends_run: As given.
    """

    def __init__(
        self, message: str, ranks: tuple[int, ...] = (), *, ends_run: bool = True
    ) -> None:
        super().__init__(message)
        self.ranks = ranks
        self.ends_run = ends_run


@dataclass(frozen=True)
class Part:
    """What one rank contributes to a sum, or the sum.

    Attributes:
        value: A scalar.
        vector: ``[n]``, of the same dtype on every rank; or None.
    """

    value: float = 0.0
    vector: Tensor | None = None


@dataclass(frozen=True)
class Header:
    """The first message of a rank, of 48 bytes.

    Attributes:
        status: How its part ended.
        what: Place in ``SUMS``.
        step: Number of the sum.
        agreed: Checksum of what all ranks must hold alike.
        value: Of its part.
        propagations: Wave propagations that its work took.
    """

    status: int
    what: int
    step: int
    agreed: int
    value: float
    propagations: int

    def pack(self) -> Tensor:
        """Return it as a row of 64-bit integers."""
        raw = struct.pack("<4qdq", *vars(self).values())
        return torch.frombuffer(bytearray(raw), dtype=torch.int64)

    @classmethod
    def unpack(cls, row: Tensor) -> Header:
        """Return the header of such a row."""
        return cls(*struct.unpack("<4qdq", row.numpy().tobytes()))


class Room:
    """Where a vector is summed: two of its size, and a slice in float64.

    Args:
        vector: This rank's.
        size: Ranks.
        device: Where messages are made.
    """

    def __init__(self, vector: Tensor, size: int, device: torch.device) -> None:
        self.n, self.home = vector.numel(), vector.device
        each = -(-self.n // size)
        self.sent = vector.new_zeros(size * each, device=device)
        self.sent[: self.n] = vector
        self.parts = torch.empty_like(self.sent)
        self.total = self.sent.new_empty(each, dtype=torch.float64)


def status_of(error: BaseException | None) -> int:
    """Return how a part ended that raised an error, or None."""
    if error is None:
        return FINE
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return REFUSED if isinstance(error, (ValueError, ArithmeticError)) else FAILED
