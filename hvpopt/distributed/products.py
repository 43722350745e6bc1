"""ShardedHessian: Hessian-vector products of shots that are shared out over ranks."""

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

    ``ShardedMisfit.hessian`` makes it. Each rank holds the memory of its own shots.
    Products are sent in the dtype of the model: those of float32 waves have no more
    digits, even if flat vectors are float64.

    Attributes:
        kind: ``"exact"`` or ``"gauss-newton"``.
        shots: Numbers of the shots of all ranks.
        part: The Hessian of this rank's shots.
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
        """Engine of the products, ``"born"``, ``"double-backprop"`` or ``"eager"``."""
        return self.part.engine

    @property
    def engine_reason(self) -> str:
        """Why this engine was chosen."""
        return self.part.engine_reason

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
        """Release the memory of this rank's operator. No message is sent."""
        self.part.close()
