"""What products with A have told: a subspace, its images, and a low rank below A.

With Q an orthonormal basis and AQ its images, the Nyström approximation F Fᵀ =
A Q (QᵀA Q)⁻¹ QᵀA is at most A ≥ 0 and equal to it on Q.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hvpopt.operators.symmetric import SymmetricOperator

#: Eigenvalues of QᵀAQ under this, relative to the largest, are dropped: the bounds then
#: are those of the other directions.
CUTOFF = 1e-13


class Subspace:
    """An orthonormal basis Q and its images A Q, as rows, for A ≥ 0, ``[m, m]``."""

    def __init__(self, operator: SymmetricOperator) -> None:
        self._operator = operator
        self._rows = torch.empty(
            0, operator.size, dtype=torch.float64, device=operator.device
        )
        self._images = self._rows.clone()
        self._projected = self._rows.new_empty(0, 0)
        self._factor: Tensor | None = None
        self._kept = self._rows
        self.size = 0

    @property
    def rows(self) -> Tensor:
        """Q as rows ``[k, m]``."""
        return self._rows[: self.size]

    @property
    def images(self) -> Tensor:
        """A Q as rows ``[k, m]``."""
        return self._images[: self.size]

    def add(self, direction: Tensor) -> bool:
        """Add a direction ``[m]`` at one product; return False, at none, if Q has it."""
        length = float(direction.norm())
        if self.size == self._operator.size or not length:
            return False
        q = direction / length
        for _ in range(2):
            q = q - self.rows.mT @ (self.rows @ q)
            rest = float(q.norm())
            if rest < 1e-10:
                return False
            q = q / rest
        image = self._operator.matvec(q)
        k = self.size
        if len(self._rows) == k:
            room = torch.empty_like(self._rows).resize_(max(16, k), self._operator.size)
            self._rows = torch.cat([self._rows, room])
            self._images = torch.cat([self._images, room])
        self._rows[k], self._images[k] = q, image
        self.size = k + 1
        grown = self._projected.new_empty(k + 1, k + 1)
        grown[:k, :k] = self._projected
        grown[:, k] = self.rows @ image
        grown[k, :k] = self.images[:k] @ q
        self._projected, self._factor = grown, None
        return True

    @property
    def projected(self) -> Tensor:
        """QᵀA Q ``[k, k]`` as the products are; entry (i, j) is q_i · A q_j."""
        return self._projected

    @property
    def norm_estimate(self) -> float:
        """The largest entry of the diagonal of QᵀA Q, at most ‖A‖."""
        return float(self._projected.diagonal().max()) if self.size else 0.0

    @property
    def low_rank(self) -> Tensor:
        """F ``[m, r]`` of the Nyström approximation F Fᵀ ≤ A."""
        if self._factor is None:
            theta, vectors = torch.linalg.eigh(
                0.5 * (self._projected + self._projected.mT)
            )
            kept = theta > CUTOFF * float(theta.abs().max()) if self.size else theta > 0.0
            self._factor = self.images.mT @ (vectors[:, kept] / theta[kept].sqrt())
            self._kept = self.rows if kept.all() else vectors[:, kept].mT @ self.rows
        return self._factor

    @property
    def kept(self) -> Tensor:
        """An orthonormal basis ``[r, m]`` of the part of Q on which A and F Fᵀ agree."""
        _ = self.low_rank
        return self._kept

    def shrink(self, white: Tensor) -> Tensor:
        """Return (I + F Fᵀ)^(−1/2) times a block ``[m, k]``."""
        u, sigma, _ = torch.linalg.svd(self.low_rank, full_matrices=False)
        change = (1.0 + sigma.square()).rsqrt() - 1.0
        shrunk: Tensor = white + u @ (change[:, None] * (u.mT @ white))
        return shrunk
