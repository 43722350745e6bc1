"""Scaling by powers of two, so that squares neither underflow nor overflow.

A squared norm leaves the range of float64 for entries under 1e-154 or over 1e154, and
that of float32 for 1e-19 and 1e19. Division by a power of two is exact: a scaled
computation has the same bits as the plain one, wherever both are in range.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def power_of_two(size: float, dtype: torch.dtype = torch.float64) -> float:
    """Return the largest power of two up to a size; 1 for zero, infinity and NaN."""
    # Both the power and its reciprocal are normal numbers of the dtype.
    if not 0.0 < size < math.inf:
        return 1.0
    info = torch.finfo(dtype)
    lowest, highest = math.frexp(info.tiny)[1] - 1, math.frexp(info.max)[1] - 2
    exponent = math.frexp(size)[1] - 1
    return math.ldexp(1.0, min(max(exponent, lowest), highest))


def unit_of(vector: Tensor) -> float:
    """Return the largest power of two up to a vector's largest entry; 1 for zero."""
    size = float(vector.abs().max()) if vector.numel() else 0.0
    return power_of_two(size, vector.dtype)


def euclidean_norm(vector: Tensor) -> float:
    """Return the norm of a vector ``[n]`` whose squares may be out of range."""
    plain = float(torch.linalg.vector_norm(vector))
    info = torch.finfo(vector.dtype)
    if math.sqrt(info.tiny) / info.eps < plain < math.inf:
        return plain
    unit = unit_of(vector)
    return unit * float(torch.linalg.vector_norm(vector / unit))


def times_power(vector: Tensor, above: float, below: float) -> Tensor:
    """Return ``vector · above / below``, where the quotient may be out of range."""
    # ``above`` and ``below`` are powers of two.
    exponent = math.frexp(above)[1] - math.frexp(below)[1]
    half = exponent // 2
    return vector * math.ldexp(1.0, half) * math.ldexp(1.0, exponent - half)
