"""The diagonal of an operator that is known by its products alone.

With s random vectors ``z_k`` of independent entries ±1,

    d = (1/s) Σ_k z_k ⊙ H z_k        (entry by entry)

is the diagonal on average (Bekas, Kokiopoulou and Saad, Applied Numerical Mathematics
57, 2007). Its error comes from the off-diagonal entries: entry i has the variance
``Σ_{j≠i} H_ij² / s``. Where the diagonal is known to vary slowly from cell
to cell, smoothing averages that error away at no further product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from hvpopt import checks
from hvpopt.model._scale import unit_of
from hvpopt.model.space import ModelSpace
from hvpopt.operators.symmetric import SymmetricOperator, checked_operator

#: Widest smoothing, cells; no axis has as many.
WIDEST = 1e6


def estimate_diagonal(
    operator: SymmetricOperator,
    *,
    n_probes: int = 3,
    seed: int = 0,
    smooth: float = 0.0,
) -> Tensor:
    """Return an estimate of a diagonal ``[n]``, smoothed over ``smooth`` cells."""
    # Entries may be negative, also of a positive definite operator. One probe is exact
    # for a diagonal operator. Without smoothing, which needs an operator with a
    # ModelSpace, it is unbiased.
    checked_operator(operator)
    n_probes = checks.integer("n_probes", n_probes, least=1)
    seed = checks.seed("seed", seed)
    smooth = checks.number("smooth", smooth, least=0.0, most=WIDEST)
    if smooth and operator.space is None:
        raise ValueError(
            "smooth needs to know which cells are neighbours, and this operator has no "
            "ModelSpace; leave smooth out"
        )
    generator = torch.Generator().manual_seed(seed)
    estimates = []
    for _ in range(n_probes):
        signs = torch.randint(
            0, 2, (operator.size,), generator=generator, dtype=torch.int8
        )
        z = 2.0 * signs.to(operator.device, operator.dtype) - 1.0
        estimates.append(z * operator.matvec(z))
    if smooth:
        assert operator.space is not None
        estimates = [smooth_diagonal(e, operator.space, smooth) for e in estimates]
    return torch.stack(estimates).mean(0)


def mean_and_error(estimates: Sequence[Tensor]) -> tuple[Tensor, float]:
    """Return the mean of estimates ``[n]`` and the rms standard error of its entries."""
    # the error is NaN for one estimate
    stacked = torch.stack(list(estimates))
    mean, n = stacked.mean(0), len(stacked)
    if n == 1:
        return mean, math.nan
    unit = unit_of(stacked)  # squares of small entries underflow
    return mean, unit * math.sqrt(float((stacked / unit).var(0).mean()) / n)


def smooth_diagonal(diagonal: Tensor, space: ModelSpace, width: float) -> Tensor:
    """Smooth a Hessian's diagonal ``[n]`` by a Gaussian of ``width`` cells."""
    # It is smoothed in the model's units, so that a scale that differs from cell to cell
    # does not show in the result. Frozen cells take no part: near them and at the edges
    # it is an average over free cells. A constant stays what it is.
    checks.instance("space", space, ModelSpace, "pass hvpopt.ModelSpace(model)")
    checks.tensor("the diagonal", diagonal, (space.size,))
    width = checks.number("width", width, least=0.0, most=WIDEST)
    scale = torch.ones_like(diagonal) if space.scale is None else space.scale
    values = (diagonal / scale.square()).cpu().double().numpy()
    smoothed, first = [], 0
    for mask in space.free.values():
        free = mask.cpu().numpy()
        n = int(free.sum())
        smoothed.append(_average(values[first : first + n], free, width))
        first += n
    flat = torch.from_numpy(np.concatenate(smoothed)).to(diagonal)
    return flat * scale.square()


def _average(
    values: np.ndarray[tuple[int], np.dtype[np.float64]],
    free: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    width: float,
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    grid = np.zeros(free.shape)
    grid[free] = values
    total = gaussian_filter(grid, width, mode="constant")
    weight = gaussian_filter(free.astype(np.float64), width, mode="constant")
    return np.asarray(total[free] / weight[free], dtype=np.float64)
