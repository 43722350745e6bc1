"""The posterior variance of every cell, bracketed from both sides.

With F Fᵀ ≤ A ≤ F Fᵀ + μ (I − Q Qᵀ), for μ at least the largest eigenvalue of A − F Fᵀ
and Q a basis of what that is zero on, both ends have a diagonal that costs no product. A
Lanczos run from a random start bounds that eigenvalue with a stated probability.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hvpopt.analysis.estimate import Estimate
from hvpopt.analysis.noise import Noise
from hvpopt.analysis.prior import MaternPrior
from hvpopt.analysis.probes import independent_seeds
from hvpopt.analysis.subspace import Subspace
from hvpopt.krylov.eigenvalue import smallest_eigenvalue
from hvpopt.model.counts import Counts
from hvpopt.model.tensors import Model
from hvpopt.operators.symmetric import FunctionOperator, SymmetricOperator


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class PointwiseVariance(Estimate[Tensor]):
    """The posterior variance of every cell, with a bracket for every cell.

    ``value`` is the geometric mean of the bounds. ``upper`` holds with certainty;
    ``lower`` for all cells together with probability ``confidence``.

    Attributes:
        prior: Variance before any data ``[n]``.
        rank: Rank of what is known of the data's information.
        remainder: Upper bound μ of what the data may say along any direction outside it,
            relative to the prior, with probability ``confidence``.
        std_model: Standard deviation of every cell, shaped like the model.
    """

    prior: Tensor
    rank: int
    remainder: float
    std_model: Model


def remainder_bound(
    space: Subspace,
    operator: SymmetricOperator,
    n_products: int,
    confidence: float,
    seed: int,
) -> tuple[float, float]:
    """Return an upper bound μ of the eigenvalues of A − F Fᵀ, and its confidence."""
    # the seed of the start must be one that ``Posterior.explore`` never draws
    if len(space.kept) >= operator.size:
        return 0.0, 1.0
    low_rank = space.low_rank

    def negated(vector: Tensor) -> Tensor:
        return low_rank @ (low_rank.mT @ vector) - operator.matvec(vector) - vector

    # shifted by the prior's 1, beside which smaller eigenvalues do not matter
    rest = FunctionOperator(negated, operator.size, device=operator.device)
    rest.noise = operator.noise * (1.0 + space.norm_estimate)
    found = smallest_eigenvalue(
        rest,
        tol=0.05,
        max_products=min(n_products, operator.size),
        confidence=confidence,
        # the same start as the space's would find nothing outside it
        seed=independent_seeds(seed, 1)[0],
    )
    return max(-found.lower - 1.0, 0.0), confidence


def pointwise_answer(
    space: Subspace,
    prior: MaternPrior,
    noise: Noise,
    remainder: float,
    confidence: float,
    spent: Counts,
) -> PointwiseVariance:
    """Return the bracket of every cell that a space has; ``remainder`` is its μ."""
    before = prior.standard_deviation.square()
    lower, upper = diagonal_bounds(space, prior, before, remainder)
    value = (lower * upper).sqrt()
    ratio = (upper / lower).sqrt()
    return PointwiseVariance(
        value=value,
        lower=lower,
        upper=upper,
        confidence=confidence,
        n_products=spent.products,
        n_propagations=spent.propagations,
        message=(
            f"rank {space.size} leaves directions in which the data may say up "
            f"to {remainder:.3g} times what the prior does; the bounds of a cell's "
            f"standard deviation differ by {100 * (float(ratio.median()) - 1):.2g} % "
            f"in the middle and {100 * (float(ratio.max()) - 1):.2g} % at most; "
            f"{noise.source}"
        ),
        prior=before,
        rank=space.size,
        remainder=remainder,
        std_model=prior.space.step_to_model(value.sqrt()),
    )


def diagonal_bounds(
    space: Subspace, prior: MaternPrior, variance: Tensor, remainder: float
) -> tuple[Tensor, Tensor]:
    """Return bounds of diag(L (I + A)⁻¹ Lᵀ) ``[n]``, for A ≤ F Fᵀ + μ (I − Q Qᵀ)."""
    # Q and F are the space's, L the prior's, ``variance`` is diag(L Lᵀ), ``remainder`` μ
    if not space.size:
        return variance / (1.0 + remainder), variance
    factor = space.low_rank
    upper = variance - _row_squares(
        prior.factor(factor),
        factor.mT @ factor + torch.eye(factor.shape[1]).to(factor),
    )
    # all of F and Q lie in the span of W
    basis, _ = torch.linalg.qr(torch.cat([factor, space.kept.mT], 1))
    inside_factor, inside = basis.mT @ factor, basis.mT @ space.kept.mT
    middle = inside_factor @ inside_factor.mT - remainder * inside @ inside.mT
    most = 1.0 + remainder
    middle = middle + most * torch.eye(middle.shape[0]).to(middle)
    images = prior.factor(basis)
    outside = (variance - images.square().sum(1)).clamp(min=0.0)
    lower = outside / most + _row_squares(images, middle)
    return lower, torch.maximum(upper, lower)


def _row_squares(rows: Tensor, matrix: Tensor) -> Tensor:
    """Return rᵀ M⁻¹ r for each row r ``[n]`` of a block, M positive definite."""
    root = torch.linalg.cholesky(matrix)
    found: Tensor = torch.linalg.solve_triangular(root, rows.mT, upper=False)
    return found.square().sum(0)
