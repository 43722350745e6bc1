"""Exchange: sums over ranks, with the same bits or the same error on every rank.

A sum takes two messages. The first, of 48 bytes from each rank to all, contains whether
the rank's part succeeded, the kind of sum, the checksum of its input, and the scalar
part. Only if all ranks agree do vectors follow: each rank adds one slice of them, in
float64 and in the order of ranks, and sends the sum to all. This is the traffic of a ring
all-reduce, 2 (W − 1)/W vectors out of each of W ranks; each rank holds two vectors for
it.
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

#: Kinds of sums; ranks that request different kinds are out of step.
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
#: How a rank's part ended; REFUSED for a model that the rank rejects.
FINE, REFUSED, FAILED, INTERRUPTED = range(4)
#: Length of an error's text that is sent to other ranks, bytes.
_TEXT = 2048


@dataclass(frozen=True)
class Part:
    """The part of one rank in a sum, or the sum."""

    value: float = 0.0
    vector: Tensor | None = None  # [n], of the same dtype on every rank


@dataclass(frozen=True)
class Header:
    """The first message of a rank, of 48 bytes."""

    status: int  # how the rank's part ended
    what: int  # kind of the sum, an index into ``SUMS``
    step: int  # number of the sum, from 1
    agreed: int  # checksum of the input, which must be the same on every rank
    value: float
    propagations: int  # wave propagations of the rank's work

    def pack(self) -> Tensor:
        """Return the header as a row of six 64-bit integers."""
        raw = struct.pack("<4qdq", *vars(self).values())
        return torch.frombuffer(bytearray(raw), dtype=torch.int64)

    @classmethod
    def unpack(cls, row: Tensor) -> Header:
        """Return the header that ``pack`` made a row of."""
        return cls(*struct.unpack("<4qdq", row.numpy().tobytes()))


class _Buffers:
    """The memory of a sum: two vectors ``[n]``, and a slice in float64."""

    def __init__(self, vector: Tensor, size: int, device: torch.device) -> None:
        self.n, self.home = vector.numel(), vector.device
        each = -(-self.n // size)
        self.sent = vector.new_zeros(size * each, device=device)
        self.sent[: self.n] = vector
        self.parts = torch.empty_like(self.sent)
        self.total = self.sent.new_empty(each, dtype=torch.float64)


class Exchange:
    """The sums of this process with the others of torch's default process group.

    Without a process group this process is the only rank.

    Attributes:
        rank: Number of this process.
        size: Number of ranks, W.
        failure: Why no further sum is possible, or None.
    """

    def __init__(self) -> None:
        group = default_group()
        # a weak reference, so that torch ends the group's threads before the interpreter
        # exits: a thread that needs the interpreter's lock later would abort the process
        self._group = None if group is None else weakref.ref(group)
        self.rank = 0 if group is None else dist.get_rank()
        self.size = 1 if group is None else dist.get_world_size()
        self.failure: RankError | None = None
        self._step = 0

    @property
    def is_current(self) -> bool:
        """True while the default group is the one that the exchange was made for."""
        group = None if self._group is None else self._group()
        return (self._group is None or group is not None) and group is default_group()

    def total(
        self,
        what: str,
        agreed: int,
        work: Callable[[], Part],
        *,
        own: Counts | None = None,
        total: Counts | None = None,
    ) -> Part:
        """Return the sum of every rank's part, the same bits on every rank.

        An error in one rank's work is raised on all ranks. If every rank has an error of
        the same class (for a model that a propagator rejects), each raises its own;
        otherwise it is a RankError, and unless the ranks rejected a model (ValueError,
        ArithmeticError) no further sum is possible.

        ``agreed`` is a checksum of the input. Propagations of this rank's work count in
        ``own``, those of all ranks in ``total``, also if the work of one fails.

        Raises:
            RankError: If a rank failed, is lost, or differs.
            KeyboardInterrupt: If a rank was interrupted in its work.
        """
        own = own or Counts()
        before = own.propagations
        if self.size > 1:
            self._raise_failure()
        part, error, buffers = Part(), None, None
        try:
            part = work()
            if self.size > 1 and part.vector is not None:
                # before the header, so that the others learn of a lack of memory
                buffers = _Buffers(part.vector, self.size, self._device)
        except BaseException as raised:
            error = raised
        spent = own.propagations - before
        if self.size == 1:
            if total is not None:
                total.tally(propagations=spent)
            if error is not None:
                raise error
            return part
        headers = self._headers(what, agreed, part.value, spent, error)
        if total is not None:
            total.tally(propagations=sum(h.propagations for h in headers))
        self._check(headers, error)
        value = sum(h.value for h in headers)
        if buffers is None:
            return Part(value)
        with self._in_step():
            return Part(value, self._sum(buffers).to(buffers.home))

    def largest(self, number: float) -> float:
        """Return the largest of one number from each rank; one message."""
        if self.size == 1:
            return number
        self._raise_failure()
        headers = self._headers("flag", 0, number)
        self._check(headers, None)
        return max(h.value for h in headers)

    def tell(self, text: str) -> list[str]:
        """Return one text from each rank, in the order of ranks; two messages."""
        if self.size == 1:
            return [text]
        raw = text.encode()
        length = int(self.largest(len(raw)))
        with self._in_step():
            return self._texts(raw, max(1, length))

    def leave(self, error: BaseException | None) -> None:
        """Make the last sum of a session, which sends this rank's error to the others."""
        if self.size == 1:
            return
        if self.failure is not None:
            if error is None:
                self._raise_failure()
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

    # -- helpers ----------------------------------------------------------------

    def _raise_failure(self) -> None:
        """Raise RankError if an earlier failure allows no further sum."""
        if self.failure is not None:
            raise RankError(str(self.failure), self.failure.ranks)

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
        """Exchange messages within a block; an error in it allows no further sum."""
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
        """Raise the same error on every rank if one failed or their headers differ."""
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
                listed = ", ".join(f"rank {r}: {held[r]}" for r in range(self.size))
                self.failure = RankError(
                    f"ranks {name}: {_ranks(differ)} of {self.size} differ ({listed}). "
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
        """Return the rows of all ranks ``[W, k]``, on the CPU."""
        sent = row.to(self._device)
        rows = sent.new_empty(self.size, sent.numel())
        self._call(dist.all_gather, list(rows.unbind(0)), sent)
        return rows.cpu()

    def _sum(self, buffers: _Buffers) -> Tensor:
        self._call(dist.all_to_all_single, buffers.parts, buffers.sent)
        rows = buffers.parts.reshape(self.size, -1)
        buffers.total.copy_(rows[0])
        for row in rows[1:]:
            buffers.total += row
        slices = list(buffers.sent.reshape(self.size, -1).unbind(0))
        self._call(dist.all_gather, slices, buffers.total.to(buffers.sent.dtype))
        return buffers.sent[: buffers.n]

    def _call(self, collective: Callable[..., Any], *tensors: Any) -> None:
        try:
            collective(*tensors)
        except BaseException as error:
            # after any error in a message this rank is out of step
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
    """Return how a part ended, given the error that it raised or None."""
    if error is None:
        return FINE
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return REFUSED if isinstance(error, (ValueError, ArithmeticError)) else FAILED


def default_group() -> Any:
    """Return torch's default process group, or None if there is none."""
    if dist.is_available() and dist.is_initialized():
        return dist.group.WORLD
    return None


def _ranks(ranks: tuple[int, ...]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))
