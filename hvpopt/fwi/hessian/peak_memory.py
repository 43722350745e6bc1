"""Peak memory of a stretch of code, measured."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from pathlib import Path
from types import TracebackType

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


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
        >>> from hvpopt.fwi.hessian.peak_memory import PeakMemory
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = _resident("VmHWM")
        self.bytes = max(peak - self._level, 0)


def _give_back_free_memory() -> None:
    """Return freed memory to the system, which would hide a rise that reuses it."""
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
