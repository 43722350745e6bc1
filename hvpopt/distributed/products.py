"""ShardedHessian: products whose shots run on many ranks, each its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hvpopt.distributed._checksum import checksum
from hvpopt.distributed._exchange import Part
from hvpopt.fwi.hessian.born import WaveformHessian
from hvpopt.operators.symmetric import SymmetricOperator

if TYPE_CHECKING:
    from hvpopt.distributed.sharded import ShardedMisfit


class ShardedHessian(SymmetricOperator):
    """The Hessian of a ShardedMisfit; a product is one sum over ranks.

    Made by ``ShardedMisfit.hessian``. Each rank holds what its own shots need.

    Args:
        part: Of this rank's shots.
        misfit: Makes the sums.
        agreed: Checksum of the model.
        wire: Dtype that products are sent in, the model's: float32 waves have no more
            digits, whatever the dtype of flat vectors.

    Attributes:
        kind: ``"exact"`` or ``"gauss-newton"``.
        shots: The numbers of those that take part, on all ranks.
        part: As given.
    """

    def __init__(
        self,
        part: WaveformHessian,
        misfit: ShardedMisfit,
        agreed: int,
        wire: torch.dtype,
    ) -> None:
        super().__init__(
            part.size,
            dtype=part.dtype,
            device=part.device,
            space=part.space,
            counts=misfit.counts.child(),
            noise=part.noise,
        )
        self.cost, self.kind = part.cost, part.kind
        self.shots = list(misfit.numbers)
        self.part = part
        self._misfit, self._agreed, self._wire = misfit, agreed, wire

    @property
    def engine(self) -> str:
        """What makes the products: ``"born"``, ``"double-backprop"`` or ``"eager"``."""
        return self.part.engine

    @property
    def engine_reason(self) -> str:
        """Why this engine."""
        return self.part.engine_reason

    @property
    def curvature(self) -> str:
        """What serves as the curvature in the data."""
        return self.part.curvature

    def _product(self, vector: Tensor) -> Tensor:
        self.counts.tally(products=1)
        misfit = self._misfit

        def work() -> Part:
            row = self.part.matvec(vector) if misfit.shots else torch.zeros_like(vector)
            return Part(0.0, row.to(self._wire))

        alone = misfit.exchange.size == 1
        agreed = 0 if alone else checksum(vector, start=self._agreed)
        total = misfit.total("product", agreed, work, self.part.counts, self.counts)
        assert total.vector is not None
        return total.vector

    def close(self) -> None:
        """Release what this rank's operator holds. No message is sent."""
        self.part.close()
