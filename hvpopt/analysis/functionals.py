"""The posterior variance of linear functionals, bracketed from both sides.

For every x, whatever it comes from,

    2 u·x − x·(I + A) x  ≤  uᵀ (I + A)⁻¹ u  ≤  ‖u − A x‖² + x·A x

with equality at x = (I + A)⁻¹ u. The best x of a subspace needs the products with its
basis alone, so that every functional reads what others found. In a Krylov space of u
these are Gauss's rule below and Gauss-Radau's above, with the node 1 (Golub and Meurant,
Matrices, Moments and Quadrature, 2010). The best upper bound is the variance after
replacing A by its Nyström approximation, for all u at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.analysis.estimate import Estimate
from hvpopt.analysis.noise import Noise
from hvpopt.analysis.prior import MaternPrior
from hvpopt.analysis.subspace import Subspace
from hvpopt.model.counts import Counts
from hvpopt.model.tensors import Model

Questions: TypeAlias = "Model | list[Any]"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class FunctionalVariance(Estimate[Tensor]):
    """The posterior variance of linear functionals of the model, one entry for each.

    ``value`` is the geometric mean of ``lower`` and ``upper``, which bound the variance
    with certainty, up to the rounding of the products.

    Attributes:
        prior: Their variance before any data, ``[k]``.
        rounding: Estimated error of the bounds by the rounding of the products, ``[k]``,
            from how far these are from symmetric.
    """

    prior: Tensor
    rounding: Tensor

    @property
    def std(self) -> Tensor:
        """Standard deviation ``[k]``, in the units of t·m."""
        return torch.as_tensor(self.value).sqrt()

    @property
    def std_bounds(self) -> tuple[Tensor, Tensor]:
        """Lower and upper bound of the standard deviation, each ``[k]``."""
        lower, upper = torch.as_tensor(self.lower), torch.as_tensor(self.upper)
        return lower.sqrt(), upper.sqrt()

    @property
    def prior_std(self) -> Tensor:
        """Standard deviation before any data ``[k]``."""
        return self.prior.sqrt()


@dataclass(frozen=True, eq=False)
class Bracket:
    """Bounds of uᵀ (I + A)⁻¹ u for the columns u of a block, each ``[k]``."""

    lower: Tensor
    upper: Tensor
    rounding: Tensor  # estimated error of the bounds by the rounding of the products, [k]
    # u − (I + A) x of the lower bound's x, [m, k]; orthogonal to the space
    residual: Tensor


def bracket(space: Subspace, right: Tensor) -> Bracket:
    """Return a space's best bounds of uᵀ (I + A)⁻¹ u, for columns u ``[m, k]``."""
    norms = right.square().sum(0)
    if not space.size:
        # x = 0 below; (I + A)⁻¹ ≤ I above
        return Bracket(0.0 * norms, norms, 0.0 * norms, right)
    symmetric = 0.5 * (space.projected + space.projected.mT)
    eye = torch.eye(space.size).to(symmetric)
    coordinates = space.rows @ right
    y = torch.linalg.solve(symmetric + eye, coordinates)
    lower = (coordinates * y).sum(0)
    factor = space.low_rank
    inner = torch.linalg.cholesky(
        factor.mT @ factor + torch.eye(factor.shape[1]).to(factor)
    )
    reduced = torch.linalg.solve_triangular(inner, factor.mT @ right, upper=False)
    upper = norms - reduced.square().sum(0)
    skew = (space.projected - space.projected.mT) @ y
    rounding = 3.0 * y.norm(dim=0) * skew.norm(dim=0)
    residual = right - space.rows.mT @ y - space.images.mT @ y
    return Bracket(lower, torch.maximum(upper, lower), rounding, residual)


def answer(
    found: Bracket, prior: Tensor, noise: Noise, tol: float, spent: Counts
) -> FunctionalVariance:
    """Return brackets as the answer to questions, and say how narrow they are."""
    lower, upper = found.lower, found.upper
    value = (lower * upper).sqrt()
    wide = float((upper / lower).sqrt().max()) - 1.0
    message = (
        f"the bounds of each standard deviation are within {100 * wide:.2g} % of "
        f"each other after {spent.products} products; {noise.source}"
    )
    if wide > tol:
        message += f"; {100 * tol:.2g} % was asked for: allow more products"
    if float((found.rounding / lower).max()) > 0.1 * wide:
        message += (
            "; the rounding of the products may shift them by "
            f"{50 * float((found.rounding / lower).max()):.2g} %: use float64"
        )
    return FunctionalVariance(
        value=value,
        lower=lower,
        upper=upper,
        n_products=spent.products,
        n_propagations=spent.propagations,
        message=message,
        prior=prior,
        rounding=found.rounding,
    )


def block_of(t: Questions, prior: MaternPrior) -> Tensor:
    """Return questions as the columns of a block ``[n, k]`` of flat vectors."""
    space = prior.space
    if isinstance(t, list):
        checks.integer("the number of questions", len(t), least=1)
        return torch.cat([block_of(one, prior) for one in t], 1)
    if isinstance(t, (tuple, Mapping)) or (isinstance(t, Tensor) and space.accepts(t)):
        return space.gradient_to_vector(t)[:, None]
    checks.tensor("t", t)
    if t.ndim not in (1, 2) or t.shape[0] != space.size:
        raise ValueError(
            f"t has shape {tuple(t.shape)}; expected the model's shape, ({space.size},) "
            f"or ({space.size}, k)"
        )
    block = t.detach().to(space.device, torch.float64)
    if not bool(torch.isfinite(block).all()):
        raise ValueError("t has NaN or infinite entries")
    return block[:, None] if block.ndim == 1 else block
