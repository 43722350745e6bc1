"""Memory: what a group of shots needs, as estimated, as measured and as allowed."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
#: Room left for what a measurement of one shot does not show (fragmentation, threads).
HEADROOM = 1.05


@dataclass(frozen=True)
class MemoryPlan:
    """What one pass over a group of shots needs, as estimated and as measured.

    Attributes:
        limit: Bytes that the caller allowed, or None.
        shots_per_group: Shots that run together.
        estimated: Bytes of one shot's product, by deepwave's estimator: a lower bound.
        measured: Bytes that one shot's product used at its peak, or None where that
            was not or cannot be measured.
        how: What measured it.
        group: Bytes that the first full group's product used at its peak, or None.
    """

    limit: float | None
    shots_per_group: int
    estimated: int | None = None
    measured: int | None = None
    how: str = "not measured"
    group: int | None = None

    def __str__(self) -> str:
        told = [f"{self.shots_per_group} shots a group"]
        for what, size in (
            ("limit", self.limit),
            ("one shot estimated", self.estimated),
            ("one shot measured", self.measured),
            ("one group measured", self.group),
        ):
            if size is not None:
                told.append(f"{what} {size / 1e6:.3g} MB")
        return "; ".join([*told, self.how])


def plan_memory(
    limit: float, n_shots: int, estimated: int, measured: int | None, how: str
) -> MemoryPlan:
    """Return how many shots run together under a limit, or raise MemoryError."""
    # the limit is of bytes on top of what the process holds already; ``estimated`` and
    # ``measured`` are of one shot
    need = max(estimated, measured or 0, 1) * HEADROOM
    if need > limit:
        raise MemoryError(
            f"one shot's product needs about {need / 1e6:.4g} MB, above memory_limit of "
            f"{limit / 1e6:.4g} MB; split time with checkpoint_segments=, put histories "
            "on disk with storage_mode='disk', or raise the limit"
        )
    size = int(min(n_shots, limit / need))
    return MemoryPlan(limit, size, estimated, measured, how)


class PeakMemory:
    """Measures how far memory rose above its level at the start of a ``with`` block.

    On a CUDA device the allocator's own peak. On a CPU the process's peak resident set
    as Linux reports it (``VmHWM``, reset at the start through ``clear_refs``); where it
    cannot be reset, only a rise above every earlier peak is seen.

    Args:
        device: Whose memory. Default the CPU's.

    Attributes:
        bytes: The rise; 0 until the block has ended.
        how: What measured it.

    Example:
        >>> import torch
        >>> from hvpopt.fwi.hessian.memory import PeakMemory
        >>> with PeakMemory() as peak:
        ...     _ = torch.ones(4_000_000)
        >>> peak.bytes > 8e6
        True
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.bytes = 0
        self.how = (
            "torch.cuda.max_memory_allocated"
            if self.device.type == "cuda"
            else "the peak resident set (VmHWM)"
        )
        self._level = 0

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._level = torch.cuda.memory_allocated(self.device)
        else:
            _give_back_free_memory()
            with contextlib.suppress(OSError):
                _CLEAR_REFS.write_text("5")
            self._level = _resident("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = _resident("VmHWM")
        self.bytes = max(peak - self._level, 0)


def _give_back_free_memory() -> None:
    """Return freed memory to the system: a rise that reuses it would not be measured."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _resident(field: str) -> int:
    """Return a field of /proc/self/status, bytes; elsewhere the peak since the start."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
