"""Where the eigenvalues are: stochastic Lanczos quadrature.

The error of the quadrature is bounded for each random vector: the measure up to a node
θ_j has at least the weights before the node and at most those up to it (Chebyshev, Markov
and Stieltjes). That of the random vectors comes from their scatter (Ubaru, Chen and Saad,
SIAM J. Matrix Anal. Appl. 38, 2017).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.analysis.estimate import (
    CONFIDENCE,
    Array,
    Estimate,
    skewed_margin,
)
from hvpopt.analysis.quadrature import Quadrature, mean_and_error, quadratures
from hvpopt.operators.symmetric import SymmetricOperator

#: Eigenvalues at which the cumulative density is given unless a caller asks for others.
N_POINTS = 200


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class SpectralDensity(Estimate[Tensor]):
    """How the eigenvalues are distributed.

    ``value`` is the cumulative density at ``points``: the fraction of eigenvalues up to
    each. ``standard_error`` is that of the random vectors, ``lower`` and ``upper`` bound
    the quadratures' own error, and ``interval`` has both. All are on the device of the
    points that were asked for, else on the CPU.

    Attributes:
        points: Eigenvalues at which the cumulative density is given, ascending ``[p]``.
    """

    points: Tensor


def spectral_density(
    operator: SymmetricOperator,
    *,
    n_probes: int = 8,
    n_steps: int = 30,
    points: Tensor | None = None,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> SpectralDensity:
    """Estimate how the eigenvalues of an operator are distributed.

    Args:
        operator: On vectors ``[n]``.
        n_probes: Random vectors, at least 2.
        n_steps: Products for each of them; fewer where its space is closed before.
        points: Where to give the cumulative density, ascending ``[p]``. Default 200
            points that reach over all Ritz values.
        seed: Of the random vectors.
        confidence: Probability, for each point, that ``interval`` holds the cumulative
            density.

    Returns:
        The cumulative density with bounds and standard error.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: For a number out of range, or points that do not ascend.
    """
    confidence = checks.number("confidence", confidence, above=0.0, below=1.0)
    if points is not None:
        checks.tensor("points", points)
        if points.ndim != 1 or not points.numel() or bool((points.diff() <= 0).any()):
            raise ValueError("points must be numbers in ascending order, [p]")
    rules, counts = quadratures(operator, n_probes, n_steps, seed)
    if points is None:
        low = min(float(rule.nodes[0]) for rule in rules)
        high = max(float(rule.nodes[-1]) for rule in rules)
        pad = 0.02 * ((high - low) or abs(high) or 1.0)
        points = torch.linspace(low - pad, high + pad, N_POINTS, dtype=torch.float64)
    at = points.double().cpu().numpy()
    top = max(float(np.abs(rule.nodes).max()) for rule in rules)
    reach = 4 * operator.noise * top  # a node this near may lie on either side
    lower, value, upper = (
        np.stack(curves)
        for curves in zip(*(_cumulative(rule, at, reach) for rule in rules), strict=True)
    )
    # each bound is a mean over random vectors too, and errs by its own scatter
    means, errors = zip(
        *(mean_and_error(curves) for curves in (lower, value, upper)), strict=True
    )
    error = np.maximum.reduce(errors)
    # fractions have a floor and a ceiling, and are skewed near to either
    above = np.maximum(np.stack([means, 1.0 - np.stack(means)]), 0.0)
    margins = skewed_margin(above, np.stack([errors] * 2), len(rules), confidence)
    message = f"{len(rules)} random vectors, {counts.products} products"
    if operator.noise > 1e-12:
        size = operator.noise * top
        message += f"; eigenvalues below {size:.1e} are the products' own rounding"
    return SpectralDensity(
        value=torch.from_numpy(value.mean(0)).to(points.device),
        standard_error=torch.from_numpy(error).to(points.device),
        margin=torch.from_numpy(margins.max((0, 1))).to(points.device),
        lower=torch.from_numpy(lower.mean(0)).to(points.device),
        upper=torch.from_numpy(upper.mean(0)).to(points.device),
        confidence=confidence,
        n_products=counts.products,
        n_propagations=counts.propagations,
        message=message,
        points=points,
    )


def _cumulative(rule: Quadrature, at: Array, reach: float) -> tuple[Array, Array, Array]:
    """Return lower bound, middle and upper bound of a measure at points, each ``[p]``."""
    # of an exact rule, a node within reach of a point is taken to lie at it, and counts
    summed = np.concatenate([[0.0], np.cumsum(rule.weights)])
    summed[-1] = 1.0
    # nodes at or below
    first = np.searchsorted(rule.nodes, at - reach, side="right")
    last = np.searchsorted(rule.nodes, at + reach, side="right")
    if rule.exact:
        return summed[first], summed[last], summed[last]
    lower = summed[np.maximum(first - 1, 0)]
    upper = summed[np.minimum(last + 1, len(rule.nodes))]
    # beyond the outermost nodes part of the outermost weight may lie
    half = np.concatenate([[0.0], summed[1:] - 0.5 * rule.weights, [1.0]])
    step = float(rule.nodes[-1] - rule.nodes[0]) / len(rule.nodes) or 1.0
    places = np.concatenate([[rule.nodes[0] - step], rule.nodes, [rule.nodes[-1] + step]])
    return lower, np.clip(np.interp(at, places, half), lower, upper), upper
