"""Who this process is among the others, and the time that they spend together."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from hvpopt import checks
from hvpopt.distributed._exchange import Exchange
from hvpopt.problem.processes import Processes

_current: Exchange | None = None


def current_exchange() -> Exchange:
    """Return this process's exchange with the others of the default group."""
    global _current
    if _current is None or not _current.is_current:
        _current = Exchange()
    return _current


def rank() -> int:
    """Return the number of this process, 0 without a process group."""
    return current_exchange().rank


def size() -> int:
    """Return how many processes there are, 1 without a process group."""
    return current_exchange().size


def is_main() -> bool:
    """True on rank 0, the one that prints and writes; always without a process group."""
    return rank() == 0


def any_rank(flag: bool) -> bool:
    """Return True on every rank if ``flag`` is true on one.

    For decisions of a callback that ranks would not take alike, such as
    ``callback=lambda model, record: any_rank(stop_file.exists())``. Every rank must call
    it.

    Args:
        flag: This rank's.

    Returns:
        The same on every rank.
    """
    return current_exchange().largest(float(checks.flag("flag", flag))) > 0


def device() -> torch.device:
    """Return this rank's device: the GPU of its number on the machine, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", local % torch.cuda.device_count())


class Ranks(Processes):
    """The ranks that evaluate an objective together; rank 0 writes.

    Args:
        exchange: With the other ranks.

    Attributes:
        count: Ranks.
        is_main: True on rank 0.
    """

    def __init__(self, exchange: Exchange) -> None:
        self.count = exchange.size
        self.is_main = exchange.rank == 0
        self._exchange = exchange

    def largest(self, number: float) -> float:
        """Return the largest of the numbers that ranks give; every rank must call it.

        Args:
            number: This rank's.

        Raises:
            RankError: If a rank failed, is lost, or asks for something else.
        """
        return self._exchange.largest(float(number))


@contextmanager
def session(timeout: float = 60.0, *, backend: str | None = None) -> Iterator[None]:
    """Join the other processes of ``torchrun`` for the length of a ``with`` block.

    Without torchrun it does nothing, so that a script runs alike under ``python``. A
    group that has been made already is used, and left as it is.

    An error that leaves the block on one rank is raised on the others as RankError, at
    their next sum or at the end of the block. A failure that ``minimize`` turned into a
    result is raised at the end of the block too, so that the process ends with an error
    and ``torchrun --max-restarts`` starts all of them again (on several machines set
    ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`` for that, see pytorch issue 135712). A
    process that is killed ends the others when its connection breaks, or after
    ``timeout``.

    Rank 0 alone speaks: in the block the others neither log nor warn.

    Args:
        timeout: Seconds that a rank waits for the others in one message. It must be
            longer than the fastest rank waits for the slowest in one evaluation, and
            than rank 0 takes to save. Ranks
            end within this time of a failure, and of what they are computing.
        backend: Default ``"nccl"`` where every local rank has a GPU, else ``"gloo"``.

    Yields:
        Nothing.

    Raises:
        TypeError: If the timeout is no number.
        ValueError: If it is not positive.
        RankError: If another rank failed, is lost, or has not come to its end.
    """
    timeout = checks.number("timeout", timeout, above=0.0)
    checks.optional(checks.instance, "backend", backend, str, "pass 'gloo' or 'nccl'")
    joined = _join(timeout, backend)
    others = current_exchange()
    try:
        try:
            with _quiet() if others.rank else nullcontext():
                yield
        except BaseException as error:
            others.leave(error)
            raise
        others.leave(None)
    finally:
        if joined:
            dist.destroy_process_group()


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("hvpopt")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _join(timeout: float, backend: str | None) -> bool:
    if "RANK" not in os.environ or not dist.is_available() or dist.is_initialized():
        return False
    if backend is None:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        cuda = torch.cuda.is_available() and local <= torch.cuda.device_count()
        backend = "nccl" if cuda and dist.is_nccl_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(device())
    limit = timedelta(seconds=timeout)
    dist.init_process_group(backend, timeout=limit, **_store_of_this_life(limit))
    return True


def _store_of_this_life(limit: timedelta) -> dict[str, Any]:
    """Return where to meet, apart from where the ranks met before a restart.

    torchrun keeps one store for all lives of a script, and in it the addresses of ranks
    that have ended: new ones then connect to those (pytorch issue 135712). Its count of
    restarts tells the lives apart, but is common to all ranks on one machine alone.
    """
    given = os.environ
    shared = given.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not shared or given.get("LOCAL_WORLD_SIZE") != given.get("WORLD_SIZE"):
        return {}
    store = dist.TCPStore(  # type: ignore[attr-defined]
        given["MASTER_ADDR"], int(given["MASTER_PORT"]), is_master=False, timeout=limit
    )
    life = given.get("TORCHELASTIC_RESTART_COUNT", "0")
    apart = dist.PrefixStore(f"hvpopt/{life}", store)  # type: ignore[attr-defined]
    return {
        "store": apart,
        "rank": int(given["RANK"]),
        "world_size": int(given["WORLD_SIZE"]),
    }
