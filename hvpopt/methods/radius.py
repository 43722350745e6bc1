"""When a trust region accepts, shrinks and grows.

The scheme is Conn, Gould and Toint's, Trust-Region Methods, 2000, §6.1, with their
constants; the new radius after a poor step is that of Dennis and Schnabel, Numerical
Methods for Unconstrained Optimization, 1983, §6.4.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hvpopt import checks


@dataclass(frozen=True)
class Radii:
    """Thresholds of the ratio actual / predicted decrease, and factors of the radius.

    Args:
        accept: A trial above it is a step. Default 1e-4.
        poor: A step under it shrinks the next radius. Default 0.25.
        good: A step above it, on the boundary, grows the next radius. Default 0.75.
        excellent: Above it, on the boundary, a larger radius is tried at once, at the
            price of one value. Default 0.9.
        shrink: Least and largest factor of a shrinking radius. Default (0.1, 0.5).
        grow: Factor of a growing one. Default 2.

    Raises:
        TypeError: For what is no number, or no pair of them.
        ValueError: If the thresholds do not rise within (0, 1), or a factor is out of
            range.
    """

    accept: float = 1e-4
    poor: float = 0.25
    good: float = 0.75
    excellent: float = 0.9
    shrink: tuple[float, float] = (0.1, 0.5)
    grow: float = 2.0

    def __post_init__(self) -> None:
        names = ("accept", "poor", "good", "excellent")
        thresholds = tuple(checks.number(name, getattr(self, name)) for name in names)
        checks.put(
            self,
            **dict(zip(names, thresholds, strict=True)),
            shrink=checks.pair("shrink", self.shrink, above=0.0, below=1.0),
            grow=checks.number("grow", self.grow, above=1.0, below=math.inf),
        )
        if not 0.0 < self.accept <= self.poor < self.good <= self.excellent < 1.0:
            raise ValueError(
                f"accept, poor, good, excellent are {thresholds}; they must rise within "
                "(0, 1)"
            )

    def shorter(self, length: float, slope: float, change: float) -> float:
        """Return the radius after a poor step: where a parabola has its minimum.

        The parabola goes through the value and slope at the start and the value at the
        end of the step.

        Args:
            length: Of the step.
            slope: ``g·h`` of the step.
            change: Of the loss over the step; infinite where it could not be evaluated.
        """
        low, high = self.shrink
        if not math.isfinite(change) or change <= slope:
            return math.sqrt(low * high) * length
        return float(np.clip(-0.5 * slope / (change - slope), low, high)) * length
