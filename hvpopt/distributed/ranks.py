"""The ranks of an inversion: this process's number and device, and their session."""

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
    """Return the number of processes, 1 without a process group."""
    return current_exchange().size


def is_main() -> bool:
    """Return True on rank 0, which prints and writes; always without a process group."""
    return rank() == 0


def any_rank(flag: bool) -> bool:
    """Return True on every rank if ``flag`` is true on one.

    For decisions of a callback that may differ between ranks, such as
    ``callback=lambda model, record: any_rank(stop_file.exists())``. Every rank must call
    it.

    Args:
        flag: The flag of this rank.

    Returns:
        The same on every rank.

    Raises:
        TypeError: If the flag is not True or False.
        RankError: If a rank failed, is lost, or is at another call.
    """
    return current_exchange().largest(float(checks.flag("flag", flag))) > 0


def device() -> torch.device:
    """Return this rank's device: the GPU of its number on the machine, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", local % torch.cuda.device_count())


class Ranks(Processes):
    """The ranks that evaluate an objective together; rank 0 writes."""

    def __init__(self, exchange: Exchange) -> None:
        self.count = exchange.size
        self.is_main = exchange.rank == 0
        self._exchange = exchange

    def largest(self, number: float) -> float:
        """Return the largest of one number from each rank; every rank must call it."""
        return self._exchange.largest(float(number))


@contextmanager
def session(timeout: float = 60.0, *, backend: str | None = None) -> Iterator[None]:
    """Join the other processes of ``torchrun`` within a ``with`` block.

    Without torchrun it does nothing, so that the same script runs under ``python``. An
    existing process group is used, and not destroyed at the end.

    An error that leaves the block on one rank is raised on the others as RankError, at
    their next sum or at the end of the block. A failure that ``minimize`` has reported in
    its result is raised at the end of the block too, so that the process ends with an
    error and ``torchrun --max-restarts`` restarts all processes (on several machines set
    ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`` for that, see pytorch issue 135712). If a
    process is killed, the others end when its connection breaks, or after ``timeout``.

    Within the block only rank 0 logs and warns.

    Args:
        timeout: Longest time that a rank waits for the others in one message, seconds.
            It must exceed the difference between the fastest and the slowest rank in one
            evaluation, and the time that rank 0 takes to save. After a failure the ranks
            end within this time and that of their current evaluation. Default 60.
        backend: ``"nccl"`` or ``"gloo"``. Default ``"nccl"`` if every local rank has a
            GPU, else ``"gloo"``.

    Yields:
        Nothing.

    Raises:
        TypeError: If the timeout is not a number.
        ValueError: If the timeout is not positive.
        RankError: If another rank failed, is lost, or is not at the end of its block.
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
    dist.init_process_group(backend, timeout=limit, **_store_of_this_restart(limit))
    return True


def _store_of_this_restart(limit: timedelta) -> dict[str, Any]:
    """Return the arguments of ``init_process_group`` for a store of this restart only.

    torchrun keeps one store for all restarts of a script. It contains the addresses of
    ranks that have ended, to which new ranks would connect (pytorch issue 135712). A
    prefix with the number of restarts avoids this, but only ranks on one machine agree
    on that number.
    """
    given = os.environ
    shared = given.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not shared or given.get("LOCAL_WORLD_SIZE") != given.get("WORLD_SIZE"):
        return {}
    store = dist.TCPStore(  # type: ignore[attr-defined]
        given["MASTER_ADDR"], int(given["MASTER_PORT"]), is_master=False, timeout=limit
    )
    restart = given.get("TORCHELASTIC_RESTART_COUNT", "0")
    prefixed = dist.PrefixStore(f"hvpopt/{restart}", store)  # type: ignore[attr-defined]
    return {
        "store": prefixed,
        "rank": int(given["RANK"]),
        "world_size": int(given["WORLD_SIZE"]),
    }
