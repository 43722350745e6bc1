"""Which shots matter: information of every shot and of every subset, from one subspace.

With A_s = ω Lᵀ G_s L of shot s alone and A = Σ A_s, what a set of shots tells beyond the
prior is ½ log det (I + Σ_{s ∈ S} A_s), in nats (Alexanderian, Petra, Stadler and Ghattas,
SIAM/ASA J. Uncertain. Quantif. 4, 2016). The products A_s Q with one basis Q are kept for
each shot, at the cost of products with A, and serve every set of shots.

By Cauchy's interlacing, ½ log det (I + QᵀA_S Q) is a lower bound of a set's information.
An upper bound is, for B ≥ 0, log det (I + B) ≤ log det (I + QᵀB Q) + tr (B) − tr (QᵀB Q)
(Fischer's inequality, and log (1 + x) ≤ x); the trace comes from a caller who has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.analysis.estimate import Estimate
from hvpopt.analysis.noise import Noise, checked_noise
from hvpopt.analysis.prior import MaternPrior, white_block
from hvpopt.analysis.whitened import WhitenedHessian
from hvpopt.model.counts import metered
from hvpopt.operators.symmetric import SymmetricOperator, checked_operator


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ShotInformation(Estimate[Tensor]):
    """What each shot tells, and an order in which to add shots; in nats.

    ``value`` is the information of each shot alone within the subspace ``[s]``, and
    ``lower`` the same, a lower bound; ``upper`` adds what lies outside, infinity without
    traces. ``n_products`` counts those of single shots.

    Attributes:
        loss: What all shots tell less without each one, within the subspace ``[s]``.
        order: Shots in greedy order: each adds most to those before it.
        gain: Information of the first 1, 2, … shots of ``order``, within the subspace
            ``[s]``; its last entry is that of all.
        gain_upper: Upper bounds of these; infinity without traces.
        projected: QᵀA_s Q of each shot ``[s, k, k]``.
    """

    loss: Tensor
    order: list[int]
    gain: Tensor
    gain_upper: Tensor
    projected: Tensor

    def information(self, shots: Sequence[int]) -> float:
        """Return what a set of shots tells within the subspace, a lower bound.

        Args:
            shots: Their numbers.
        """
        return _information(self.projected[list(shots)].sum(0))


def shot_information(
    hessians: Sequence[SymmetricOperator],
    prior: MaternPrior,
    noise: Noise,
    *,
    n_products: int = 40,
    traces: Tensor | None = None,
    seed: int = 0,
) -> ShotInformation:
    """Return which shots matter, from products kept apart for each shot.

    Args:
        hessians: G_s of each shot: Gauss-Newton Hessians of parts that add up to the
            misfit, such as ``misfit.select([s]).hessian(model, "gauss-newton",
            space=prior.space)``.
        prior: The prior.
        noise: The noise of all data: ``noise.n_samples`` is that of the whole misfit.
        n_products: Products of every shot. The basis is a Krylov space of the sum, from a
            random start, so that it holds what all shots together say most of. Default
            40.
        traces: tr (A_s) of each shot or upper bounds of it ``[s]``, relative to the
            prior. Default none, which leaves upper bounds at infinity.
        seed: Of the random start.

    Returns:
        The information of each shot, of all without it, and a greedy order.

    Raises:
        TypeError: For an argument of the wrong type, or without noise.
        ValueError: For no shot, sizes that differ, or a number out of range.
    """
    checked_noise(noise)
    n_products = checks.integer("n_products", n_products, least=1)
    checks.integer("the number of shots", len(hessians), least=1)
    parts = [WhitenedHessian(checked_operator(h), prior, noise) for h in hessians]
    for part in parts:
        if part.operators[0].size != prior.size:
            raise ValueError(
                f"a Hessian has {part.operators[0].size} rows, the prior {prior.size} "
                "free cells; make both in the same space"
            )
    if traces is not None:
        checks.tensor("traces", traces, (len(parts),))
    products = propagations = 0
    rows: list[Tensor] = []
    images: list[Tensor] = []
    direction = white_block(prior.latent_size, 1, seed)[:, 0].to(parts[0].device)
    for _ in range(min(n_products, prior.latent_size)):
        q = _orthogonal(direction, rows)
        if q is None:
            break
        each = []
        for part in parts:
            with metered(part.counts) as spent:
                each.append(part.matvec(q))
            products += spent.products
            propagations += spent.propagations
        rows.append(q)
        images.append(torch.stack(each))
        direction = images[-1].sum(0)
    basis = torch.stack(rows)
    # [s, k, k]
    projected = torch.stack(images, 1) @ basis.mT
    projected = 0.5 * (projected + projected.mT)
    return _ranked(projected, traces, products, propagations, noise)


def _orthogonal(direction: Tensor, rows: list[Tensor]) -> Tensor | None:
    """Return what of a direction is outside the rows, of length 1; None if nothing is."""
    length = float(direction.norm())
    if not length:
        return None
    q = direction / length
    for _ in range(2):
        for row in rows:
            q = q - row * (row @ q)
        rest = float(q.norm())
        if rest < 1e-10:
            return None
        q = q / rest
    return q


def _ranked(
    projected: Tensor,
    traces: Tensor | None,
    products: int,
    propagations: int,
    noise: Noise,
) -> ShotInformation:
    n_shots = len(projected)
    whole = _information(projected.sum(0))
    alone = projected.new_tensor([_information(own) for own in projected])
    total = projected.sum(0)
    loss = projected.new_tensor([whole - _information(total - own) for own in projected])
    order: list[int] = []
    gain: list[float] = []
    so_far = torch.zeros_like(total)
    while len(order) < n_shots:
        left = [s for s in range(n_shots) if s not in order]
        reached = [_information(so_far + projected[s]) for s in left]
        best = max(range(len(left)), key=reached.__getitem__)
        order.append(left[best])
        gain.append(reached[best])
        so_far = so_far + projected[left[best]]
    outside = torch.full_like(alone, math.inf)
    if traces is not None:
        inside = projected.diagonal(dim1=1, dim2=2).sum(1)
        outside = 0.5 * (traces.to(inside) - inside).clamp(min=0.0)
    gains = projected.new_tensor(gain)
    return ShotInformation(
        value=alone,
        lower=alone,
        upper=alone + outside,
        n_products=products,
        n_propagations=propagations,
        message=(
            f"all {n_shots} shots tell at least {whole:.4g} nats, shot {order[0]} alone "
            f"{gain[0]:.4g}, within a subspace of {projected.shape[1]} directions; "
            f"{noise.source}"
        ),
        loss=loss,
        order=order,
        gain=gains,
        gain_upper=gains + outside[order].cumsum(0),
        projected=projected,
    )


def _information(matrix: Tensor) -> float:
    """Return ½ log det (I + M) of a positive semidefinite matrix."""
    values = torch.linalg.eigvalsh(matrix).clamp(min=0.0)
    return 0.5 * float(torch.log1p(values).sum())
