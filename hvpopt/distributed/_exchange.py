"""Exchange: sums over ranks that give every rank the same bits, or the same error.

A sum takes two messages. The first, of 48 bytes from each rank to all, says whether the
rank's part succeeded, what it was asked for and the checksum of its input; it carries
the scalar part as well. Only if all agree do vectors follow: each rank adds one slice of
them, in float64 and in the order of ranks, and sends the sum to all. That is the traffic
of a ring all-reduce, 2 (W − 1)/W vectors out of each of W ranks, and no rank holds more
than two vectors for it.
"""

from __future__ import annotations

import struct
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hvpopt.errors import RankError
from hvpopt.model.counts import Counts

#: What a sum can be of; ranks that ask for different ones have parted.
SUMS = (
    "value",
    "gradient",
    "hessian",
    "product",
    "shots",
    "costs",
    "constants",
    "data",
    "flag",
    "end",
)
#: How a rank's part ended.
FINE, REFUSED, FAILED, INTERRUPTED = range(4)
#: Bytes of an error's text that other ranks are told.
_TEXT = 2048


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


class Exchange:
    """The sums of one process with the others of the default group, or with none.

    Attributes:
        rank: Of this process.
        size: Ranks, W.
        failure: Why no further sum is possible, or None.
    """

    def __init__(self) -> None:
        group = default_group()
        # held by nobody but torch: its threads end when it goes, which must be before the
        # interpreter does (one of them would want the lock then, and abort the process)
        self._group = None if group is None else weakref.ref(group)
        self.rank = 0 if group is None else dist.get_rank()
        self.size = 1 if group is None else dist.get_world_size()
        self.failure: RankError | None = None
        self._step = 0

    @property
    def is_current(self) -> bool:
        """True as long as the default group is the one that this was made for."""
        group = None if self._group is None else self._group()
        return (self._group is None or group is not None) and group is default_group()

    def total(
        self,
        what: str,
        agreed: int,
        work: Callable[[], Part],
        *,
        own: Counts | None = None,
        whole: Counts | None = None,
    ) -> Part:
        """Return the sum of every rank's part.

        An error in some rank's work is raised on all. Where every rank meets the same
        kind (a model that a propagator refuses), each raises its own; else it is a
        RankError, and unless it refuses a model (ValueError, ArithmeticError) no further
        sum is possible.

        Args:
            what: One of ``SUMS``.
            agreed: Checksum of what all ranks must hold alike.
            work: Returns this rank's part.
            own: Counts the propagations of this rank's work.
            whole: Is told those of all ranks, also if the work of one fails.

        Returns:
            The sum, the same bits on every rank.

        Raises:
            RankError: If a rank failed, is lost, or differs.
            KeyboardInterrupt: If a rank was interrupted in its work.
        """
        own = own or Counts()
        before = own.propagations
        if self.size > 1 and self.failure is not None:
            raise RankError(str(self.failure), self.failure.ranks)
        part, error, room = Part(), None, None
        try:
            part = work()
            if self.size > 1 and part.vector is not None:
                # before the others count on this rank to send it
                room = Room(part.vector, self.size, self._device)
        except BaseException as raised:
            error = raised
        spent = own.propagations - before
        if self.size == 1:
            if whole is not None:
                whole.tally(propagations=spent)
            if error is not None:
                raise error
            return part
        headers = self._headers(what, agreed, part.value, spent, error)
        if whole is not None:
            whole.tally(propagations=sum(h.propagations for h in headers))
        self._check(headers, error)
        value = sum(h.value for h in headers)
        if room is None:
            return Part(value)
        with self._in_step():
            return Part(value, self._sum(room).to(room.home))

    def largest(self, number: float) -> float:
        """Return the largest of the numbers that ranks give; one message.

        Args:
            number: This rank's.

        Raises:
            RankError: If a rank failed, is lost, or asks for something else.
        """
        if self.size == 1:
            return number
        if self.failure is not None:
            raise RankError(str(self.failure), self.failure.ranks)
        headers = self._headers("flag", 0, number)
        self._check(headers, None)
        return max(h.value for h in headers)

    def tell(self, text: str) -> list[str]:
        """Return what each rank tells, in their order; two messages.

        Args:
            text: This rank's, of any length.

        Raises:
            RankError: If a rank failed, is lost, or asks for something else.
        """
        if self.size == 1:
            return [text]
        raw = text.encode()
        length = int(self.largest(len(raw)))
        with self._in_step():
            return self._texts(raw, max(1, length))

    def leave(self, error: BaseException | None) -> None:
        """Part from the others: the last sum, which tells them of an error.

        Args:
            error: What ends this rank's work, or None.

        Raises:
            RankError: If there is none and another rank failed, is lost or goes on.
        """
        if self.size == 1:
            return
        if self.failure is not None:
            if error is None:
                raise RankError(str(self.failure), self.failure.ranks)
            return

        def work() -> Part:
            if error is not None:
                raise error
            return Part()

        try:
            self.total("end", 0, work)
        except BaseException:
            if error is None:
                raise

    # -- inside -----------------------------------------------------------------

    def _headers(
        self,
        what: str,
        agreed: int,
        value: float,
        spent: int = 0,
        error: BaseException | None = None,
    ) -> list[Header]:
        self._step += 1
        place = SUMS.index(what)
        header = Header(_status_of(error), place, self._step, agreed, value, spent)
        with self._in_step():
            return [Header.unpack(row) for row in self._gather(header.pack())]

    @contextmanager
    def _in_step(self) -> Iterator[None]:
        """A block that the other ranks are in too: what fails in it parts from them."""
        try:
            yield
        except BaseException as error:
            if self.failure is None:
                self.failure = RankError(
                    f"rank {self.rank} failed in a sum, and is out of step with the "
                    f"others ({type(error).__name__}: {error})",
                    (self.rank,),
                )
            if isinstance(error, Exception) and error is not self.failure:
                raise self.failure from error
            raise

    def _check(self, headers: list[Header], error: BaseException | None) -> None:
        """Raise what every rank must raise, if anything."""
        failed = [rank for rank, h in enumerate(headers) if h.status != FINE]
        if failed:
            self._raise(headers, failed, error)
        for name, held in (
            ("are at different evaluations", [(h.step, SUMS[h.what]) for h in headers]),
            ("hold different models, vectors or data", [h.agreed for h in headers]),
        ):
            usual = Counter(held).most_common(1)[0][0]
            differ = tuple(rank for rank, h in enumerate(held) if h != usual)
            if differ:
                told = ", ".join(f"rank {r}: {held[r]}" for r in range(self.size))
                self.failure = RankError(
                    f"ranks {name}: {_ranks(differ)} of {self.size} differ ({told}). "
                    "What runs beside a sharded misfit must be the same on every rank: "
                    "starts, seeds, clocks (use any_rank), deterministic functions",
                    differ,
                )
                raise self.failure

    def _raise(
        self, headers: list[Header], failed: list[int], error: BaseException | None
    ) -> None:
        text = "" if error is None else f"{type(error).__name__}: {error}"
        with self._in_step():
            texts = self._texts(text.encode()[:_TEXT], _TEXT)
        statuses = {headers[rank].status for rank in failed}
        if statuses == {INTERRUPTED}:
            raise KeyboardInterrupt
        kinds = {texts[rank].partition(":")[0] for rank in failed}
        if len(failed) == self.size and len(kinds) == 1 and error is not None:
            raise error
        found = RankError(
            f"{_ranks(tuple(failed))} of {self.size} failed in "
            f"{SUMS[headers[failed[0]].what]!r}: "
            + "; ".join(f"rank {rank}: {texts[rank]}" for rank in failed),
            tuple(failed),
            ends_run=statuses != {REFUSED},
        )
        if found.ends_run:
            self.failure = found
        raise found from error

    def _texts(self, raw: bytes, length: int) -> list[str]:
        padded = bytearray(raw.ljust(length, b"\0"))
        rows = self._gather(torch.frombuffer(padded, dtype=torch.uint8))
        return [
            row.numpy().tobytes().rstrip(b"\0").decode(errors="replace") for row in rows
        ]

    def _gather(self, row: Tensor) -> Tensor:
        """Return a row of every rank ``[W, k]``, on the CPU."""
        sent = row.to(self._device)
        rows = sent.new_empty(self.size, sent.numel())
        self._call(dist.all_gather, list(rows.unbind(0)), sent)
        return rows.cpu()

    def _sum(self, room: Room) -> Tensor:
        self._call(dist.all_to_all_single, room.parts, room.sent)
        rows = room.parts.reshape(self.size, -1)
        room.total.copy_(rows[0])
        for row in rows[1:]:
            room.total += row
        slices = list(room.sent.reshape(self.size, -1).unbind(0))
        self._call(dist.all_gather, slices, room.total.to(room.sent.dtype))
        return room.sent[: room.n]

    def _call(self, collective: Callable[..., Any], *tensors: Any) -> None:
        try:
            collective(*tensors)
        except BaseException as error:
            # this rank is out of step from here on, whatever ended the message
            self.failure = RankError(
                f"rank {self.rank} lost the others: one of them ended, or took longer "
                f"than the group's timeout ({type(error).__name__}: {error})"
            )
            if not isinstance(error, Exception):
                raise
            raise self.failure from error

    @property
    def _device(self) -> torch.device:
        if dist.get_backend() == "nccl":
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")


def _status_of(error: BaseException | None) -> int:
    """Return how a part ended that raised an error, or None."""
    if error is None:
        return FINE
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return REFUSED if isinstance(error, (ValueError, ArithmeticError)) else FAILED


def default_group() -> Any:
    """Return torch's default process group, or None without one."""
    if dist.is_available() and dist.is_initialized():
        return dist.group.WORLD
    return None


def _ranks(ranks: tuple[int, ...]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))
