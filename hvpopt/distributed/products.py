"""ShardedHessian: products whose shots run on many ranks, each its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hvpopt.distributed.checksum import checksum, combined
from hvpopt.distributed.dropping import Dropping
from hvpopt.distributed.exchange import Exchange, Part, RankError
from hvpopt.fwi.hessian.bad_shots import BadShotError, ShotDropped
from hvpopt.fwi.hessian.born import WaveformHessian
from hvpopt.fwi.hessian.groups import groups_of
from hvpopt.model.counts import Counts
from hvpopt.operators.symmetric import SymmetricOperator


class ShardedHessian(SymmetricOperator):
    """The Hessian of a ShardedMisfit; a product is one sum over ranks.

    Made by ``ShardedMisfit.hessian``. Each rank holds what its own shots need.

    Args:
        operator: Of all the shots that take part. It is narrowed to this rank's.
        places: Of this rank's among those shots.
        exchange: With the other ranks.
        agreed: Checksum of the model.
        wire: Dtype that products are sent in, the model's: float32 waves have no more
            digits, whatever the dtype of flat vectors.
        counts: The tally to advance.
        note_reduced: Told each vector that is summed.
        dropping: Asked when a product has failed.

    Attributes:
        kind: ``"exact"`` or ``"gauss-newton"``.
        shots: Those that take part, on all ranks.
        part: The operator of this rank's shots.
    """

    def __init__(
        self,
        operator: WaveformHessian,
        places: Sequence[int],
        exchange: Exchange,
        *,
        agreed: int,
        wire: torch.dtype,
        counts: Counts,
        note_reduced: Callable[[Tensor | None], None],
        dropping: Dropping,
    ) -> None:
        super().__init__(
            operator.size,
            dtype=operator.dtype,
            device=operator.device,
            space=operator.space,
            counts=counts,
            noise=operator.noise,
        )
        self.cost = operator.cost
        self.kind = operator.kind
        self.shots = operator.shots
        self._exchange, self._agreed = exchange, agreed
        self._wire, self._note_reduced = wire, note_reduced
        self._dropping = dropping
        largest = max(len(group) for group in operator.groups)
        # narrowed before its first product, so that no graph has been built
        operator.shots = [operator.shots[place] for place in places]
        operator.groups = groups_of(operator.shots, largest)
        self.part = operator

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

        def work() -> Part:
            if self.part.shots:
                row = self.part.matvec(vector)
            else:
                row = torch.zeros_like(vector)
            return Part(0.0, row.to(self._wire))

        alone = self._exchange.size == 1
        agreed = 0 if alone else combined(self._agreed, checksum(vector))
        try:
            total = self._exchange.total(
                "product", agreed, work, own=self.part.counts, whole=self.counts
            )
        except (RankError, BadShotError) as error:
            if dropped := self._dropping.settle(error):
                raise ShotDropped("product", dropped) from error
            raise
        assert total.vector is not None
        self._note_reduced(total.vector)
        return total.vector

    def close(self) -> None:
        """Release what this rank's operator holds. No message is sent."""
        self.part.close()
