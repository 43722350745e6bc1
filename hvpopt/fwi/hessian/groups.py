"""Groups of shots, and how many fit in the memory that a caller names."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hvpopt.fwi.survey.arguments import number
from hvpopt.fwi.survey.survey import Survey

_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
#: Room left for what a measurement of one shot does not show (fragmentation, threads).
HEADROOM = 1.05


def parse_bytes(size: str | float) -> int:
    """Return a number of bytes.

    Args:
        size: A number of bytes, or a string such as ``"2GB"`` (10⁹), ``"512 MiB"`` (2²⁰).

    Returns:
        Bytes.

    Raises:
        ValueError: If it is no size, or not positive.
    """
    if isinstance(size, str):
        match = re.fullmatch(
            r"\s*([0-9]+(?:\.[0-9]*)?)\s*([kmgt]?)(i?)b?\s*", size.lower()
        )
        if match is None:
            raise ValueError(
                f"memory_limit is {size!r}; give a size such as '2GB', '512MiB' or bytes"
            )
        digits, unit, binary = match.groups()
        n_bytes = float(digits) * (1024 if binary else 1000) ** _UNITS[unit]
    else:
        n_bytes = number("memory_limit", size)
    if not 1 <= n_bytes < math.inf:
        raise ValueError(f"memory_limit is {size}; it must be a positive size")
    return int(n_bytes)


def default_group(survey: Survey) -> int:
    """Return how many shots run together unless a caller says otherwise.

    Deepwave runs shots on a CPU in parallel threads: a larger group saves no time, and
    fresh memory for its histories costs some (benchmarks/RESULTS.md). A GPU is filled by
    many shots. With ``survey_pad`` results depend on the group, so it stays whole.
    """
    if survey.device.type == "cpu" and survey.options.get("survey_pad") is None:
        return min(torch.get_num_threads(), survey.n_shots)
    return survey.n_shots


def groups_of(shots: Sequence[int], size: int) -> list[list[int]]:
    """Return shots in consecutive groups, the last perhaps smaller."""
    return [list(shots[i : i + size]) for i in range(0, len(shots), size)]


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
        group: Bytes that the first full group's product used at its peak, likewise.
    """

    limit: int | None
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
    limit: int, n_shots: int, estimated: int, measured: int | None, how: str
) -> MemoryPlan:
    """Return how many shots run together under a limit.

    Args:
        limit: Bytes allowed on top of what the process holds already.
        n_shots: Of the survey.
        estimated: Bytes of one shot, by deepwave.
        measured: Bytes of one shot, or None.
        how: What measured it.

    Returns:
        The plan.

    Raises:
        MemoryError: If not even one shot fits.
    """
    need = max(estimated, measured or 0, 1) * HEADROOM
    if need > limit:
        raise MemoryError(
            f"one shot's product needs about {need / 1e6:.4g} MB, above memory_limit of "
            f"{limit / 1e6:.4g} MB; split time with checkpoint_segments=, put histories "
            "on disk with storage_mode='disk', or raise the limit"
        )
    size = min(n_shots, int(limit / need))
    return MemoryPlan(limit, size, estimated, measured, how)
