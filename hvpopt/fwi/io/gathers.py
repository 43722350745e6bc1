"""Gathers: shot gathers and where they were recorded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from hvpopt import checks

Array: TypeAlias = "np.ndarray[Any, Any]"


@dataclass(frozen=True, eq=False)
class Gathers:
    """Shot gathers and where they were recorded.

    Positions are ``(z, y, x)`` in metres, z downwards, in float64: as the axes of a
    model run. ``deepwave.to_cells(positions[..., [0, 2]], grid_spacing, origin)`` makes
    the cells of a 2-D survey of them.

    Attributes:
        data: ``[shot, receiver, time]``.
        dt: Sampling interval, seconds.
        sources: ``[shot, 3]``, or None where the file holds none (all are zero).
        receivers: ``[shot, receiver, 3]``, or None; ``[receiver, 3]`` is expanded.
        live: Boolean ``[shot, receiver]``, False for traces that padding added (their
            samples are zero, their positions NaN). None where all are real.

    Raises:
        ValueError: If shapes do not fit, or ``dt`` is not plausible in seconds.
    """

    data: Tensor
    dt: float
    sources: Tensor | None = None
    receivers: Tensor | None = None
    live: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("data", "sources", "receivers", "live"):
            tensor = getattr(self, name)
            if name == "data" or tensor is not None:
                checks.instance(name, tensor, Tensor, "pass a torch.Tensor")
        if self.data.ndim != 3 or self.data.numel() == 0:
            raise ValueError(
                f"gathers have shape {tuple(self.data.shape)}, expected [shot, receiver, "
                "time], none empty; add an axis to a single shot with data[None]"
            )
        checks.put(self, dt=check_dt("dt", self.dt))
        shots, receivers, _ = self.data.shape
        if self.receivers is not None and self.receivers.shape == (receivers, 3):
            object.__setattr__(self, "receivers", self.receivers.expand(shots, -1, -1))
        for name, shape in (
            ("sources", (shots, 3)),
            ("receivers", (shots, receivers, 3)),
            ("live", (shots, receivers)),
        ):
            tensor = getattr(self, name)
            if tensor is not None and tensor.shape != shape:
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)}, expected {shape} for data "
                    f"of shape {tuple(self.data.shape)}"
                )
        if self.live is not None and self.live.dtype != torch.bool:
            raise TypeError(f"live is {self.live.dtype}; it must be torch.bool")


def existing_file(file: Path) -> Path:
    """Return the path of a file, or raise FileNotFoundError if there is none."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file} (seen from {Path.cwd()})")
    return file


def check_dt(name: str, dt: Any) -> float:
    """Return a sampling interval that is plausible in seconds."""
    says = "it is in seconds and must lie in (0, 1); 4 ms is 0.004"
    return float(checks.number(name, dt, above=0.0, below=1.0, says=says))


def as_array(tensor: Tensor) -> Array:
    """Return a real tensor's numbers on the host, or raise TypeError."""
    checks.instance("a model or its data", tensor, Tensor, "pass a torch.Tensor")
    if not tensor.is_floating_point():
        raise TypeError(f"a tensor of {tensor.dtype} is no model or data; use .float()")
    array: Array = tensor.detach().cpu().numpy()
    return array
