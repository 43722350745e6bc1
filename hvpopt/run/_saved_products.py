"""Products of the step under way, saved so that none is made twice.

A method is a deterministic function of its state and of the values, gradients and
products that it is given. A run that goes on evaluates the values and gradients of the
interrupted step again, and is given its products from the state: that brings the method
to where it was, whatever it was building, for the price of vector arithmetic. Every
product is kept with a hash of its vector, so that it never answers another question.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hvpopt.model.counts import Counts
from hvpopt.operators.symmetric import DerivedOperator, SymmetricOperator
from hvpopt.run._fingerprint import hash_tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedProduct:
    """One product.

    Attributes:
        asked: Of which operator, and a hash of the vector.
        product: ``[n]``.
        counts: What it cost.
    """

    asked: str
    product: Tensor
    counts: Counts


class ProductLog:
    """The products of the step under way, and those still to be given again.

    Args:
        keeps: Keep products at all; where several processes make one, one keeps it.
    """

    def __init__(self, *, keeps: bool) -> None:
        self._keeps = keeps
        self._made: list[SavedProduct] = []
        self._waiting: list[SavedProduct] = []

    def known(self) -> tuple[SavedProduct, ...]:
        """Return all products of the step: those made and those still to be given."""
        return (*self._made, *self._waiting)

    def clear(self, waiting: Sequence[SavedProduct] = ()) -> None:
        """Begin a step, with products that are to be given again.

        Args:
            waiting: Oldest first. Default none.
        """
        self._made, self._waiting = [], list(waiting)

    def wrap(self, operator: SymmetricOperator, label: str) -> SymmetricOperator:
        """Return an operator whose products are kept, and given again.

        Args:
            operator: Makes them.
            label: Tells it from other operators at the same point.
        """
        return SavedProducts(operator, self, label)

    def product(self, operator: SymmetricOperator, label: str, vector: Tensor) -> Tensor:
        """Return a product, made or given again.

        Args:
            operator: Makes it.
            label: See ``wrap``.
            vector: ``[n]``.
        """
        if not (self._keeps or self._waiting):
            return operator.matvec(vector)
        asked = f"{label} {hash_tensor(vector)}"
        if self._waiting and self._waiting[0].asked == asked:
            saved = self._waiting.pop(0)
            operator.counts.tally(**saved.counts.as_dict())
        else:
            before = operator.counts.snapshot()
            made = operator.matvec(vector)
            self._give_up_waiting()
            saved = SavedProduct(asked, made, operator.counts.snapshot() - before)
        if not self._keeps:
            return saved.product
        self._made.append(saved)
        # a method may overwrite what it is given, and what is kept must stay
        return saved.product.clone()

    def _give_up_waiting(self) -> None:
        if self._waiting:
            logger.warning(
                "the step that was interrupted takes another way than before (other "
                "rounding on this machine, or a loss that changes): its last %d products "
                "are made again",
                len(self._waiting),
            )
        self._waiting = []


class SavedProducts(DerivedOperator):
    """An operator whose products a log keeps.

    Args:
        operator: Makes them.
        log: Keeps them.
        label: See ``ProductLog.wrap``.
    """

    def __init__(self, operator: SymmetricOperator, log: ProductLog, label: str) -> None:
        super().__init__([operator])
        self._log, self._label = log, label

    def _product(self, vector: Tensor) -> Tensor:
        return self._log.product(self.operators[0], self._label, vector)
