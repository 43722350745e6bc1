"""Exchange: sums over ranks that give every rank the same bits, or the same error.

A sum takes two messages. The first, of 48 bytes from each rank to all, says whether the
rank's part succeeded, what it was asked for and the checksum of its input; it carries
the scalar part as well. Only if all agree do vectors follow: each rank adds one slice of
them, in float64 and in the order of ranks, and sends the sum to all. That is the traffic
of a ring all-reduce, 2 (W − 1)/W vectors out of each of W ranks, and no rank holds more
than two vectors for it. What ranks hold in parts is gathered behind the same first
message.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hvpopt.distributed.messages import (
    FINE,
    INTERRUPTED,
    REFUSED,
    SUMS,
    Header,
    Part,
    RankError,
    status_of,
)

#: Bytes of an error's text that other ranks are told.
_TEXT = 2048


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

    def total(self, what: str, agreed: int, work: Callable[[], Part]) -> Part:
        """Return the sum of every rank's part.

        An error in some rank's work is raised on all. Where every rank meets the same
        kind (a model that a propagator refuses), each raises its own; else it is a
        RankError, and unless it refuses a model (ValueError, ArithmeticError) no further
        sum is possible.

        Args:
            what: One of ``SUMS``.
            agreed: Checksum of what all ranks must hold alike.
            work: Returns this rank's part.

        Returns:
            The sum, the same bits on every rank.

        Raises:
            RankError: If a rank failed, is lost, or differs.
            KeyboardInterrupt: If a rank was interrupted in its work.
        """
        if self.size == 1:
            return work()
        if self.failure is not None:
            raise RankError(str(self.failure), self.failure.ranks)
        part, error = Part(), None
        try:
            part = work()
        except BaseException as raised:
            error = raised
        headers = self._agree(what, agreed, part, error)
        return Part(
            sum(h.value for h in headers),
            None if part.vector is None else self._sum(part.vector),
            sum(h.propagations for h in headers),
        )

    def gather(self, row: Tensor, agreed: int) -> Tensor:
        """Return a row of numbers of every rank, for what ranks hold in parts.

        As before a sum, a header first says whether all ranks are here. A single number
        travels in it; more than one take a second message.

        Args:
            row: ``[k]``, as long on every rank.
            agreed: Checksum of what all ranks must hold alike.

        Returns:
            ``[W, k]`` in float64, the same bits on every rank.

        Raises:
            RankError: If a rank failed, is lost, or differs.
        """
        if self.size == 1:
            return row.double().reshape(1, -1)
        if self.failure is not None:
            raise RankError(str(self.failure), self.failure.ranks)
        alone = row.numel() == 1
        part = Part(float(row)) if alone else Part()
        headers = self._agree("basis", agreed, part, None)
        if alone:
            return row.new_tensor([[h.value] for h in headers], dtype=torch.float64)
        return self._rows(row.double()).to(row.device)

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
        headers = self._agree("flag", 0, Part(number), None)
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

    def _agree(
        self, what: str, agreed: int, part: Part, error: BaseException | None
    ) -> list[Header]:
        """Exchange the first message; return every rank's, all fine and alike."""
        self._step += 1
        header = Header(
            status_of(error),
            SUMS.index(what),
            self._step,
            agreed,
            part.value,
            part.propagations,
        )
        headers = [Header.unpack(row) for row in self._gather(header.pack())]
        self._check(headers, error)
        return headers

    def _check(self, headers: list[Header], error: BaseException | None) -> None:
        """Raise what every rank must raise, if anything."""
        failed = [rank for rank, h in enumerate(headers) if h.status != FINE]
        if failed:
            self._raise(headers, failed, error)
        for name, held in (
            ("are at different evaluations", [(h.step, SUMS[h.what]) for h in headers]),
            ("hold different models or vectors", [h.agreed for h in headers]),
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
        return self._rows(row).cpu()

    def _rows(self, row: Tensor) -> Tensor:
        """Return a row of every rank ``[W, k]``, where messages are made."""
        sent = row.to(self._device)
        rows = sent.new_empty(self.size, sent.numel())
        self._call(dist.all_gather, list(rows.unbind(0)), sent)
        return rows

    def _sum(self, vector: Tensor) -> Tensor:
        n = vector.numel()
        slice_size = -(-n // self.size)
        sent = vector.new_zeros(self.size * slice_size, device=self._device)
        sent[:n] = vector
        parts = torch.empty_like(sent)
        self._call(dist.all_to_all_single, parts, sent)
        rows = parts.reshape(self.size, slice_size)
        total = rows[0].double()
        for row in rows[1:]:
            total += row
        slices = list(sent.reshape(self.size, slice_size).unbind(0))
        self._call(dist.all_gather, slices, total.to(vector.dtype))
        return sent[:n].to(vector.device)

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


def default_group() -> Any:
    """Return torch's default process group, or None without one."""
    if dist.is_available() and dist.is_initialized():
        return dist.group.WORLD
    return None


def _ranks(ranks: tuple[int, ...]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))
