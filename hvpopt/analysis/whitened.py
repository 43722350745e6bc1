"""The Hessian relative to the prior: how much more the data say than the prior does."""

from __future__ import annotations

from torch import Tensor

from hvpopt.analysis.noise import Noise
from hvpopt.analysis.prior import MaternPrior
from hvpopt.operators.symmetric import DerivedOperator, SymmetricOperator


class WhitenedHessian(DerivedOperator):
    """A = ω Lᵀ G L: what the data say relative to the prior, ``[m, m]``.

    Args:
        hessian: G, of a mean of squares.
        prior: L.
        noise: ω.
    """

    def __init__(
        self, hessian: SymmetricOperator, prior: MaternPrior, noise: Noise
    ) -> None:
        super().__init__([hessian], size=prior.latent_size)
        self._prior, self._weight = prior, noise.weight

    def _product(self, vector: Tensor) -> Tensor:
        (hessian,) = self.operators
        image = hessian.matvec(self._prior.factor(vector))
        found: Tensor = self._weight * self._prior.factor_transposed(image)
        return found
