"""Saves the products of the current step, so that a resumed run does not repeat them.

A method is a deterministic function of its state and of the values, gradients and
products that it receives. A resumed run evaluates the values and gradients of the
interrupted step again, and takes its products from the saved state. Every product is kept
with a hash of its vector, so that it is used for that vector alone.
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
    """One Hessian-vector product."""

    asked: str  # label of the operator, and a hash of the vector
    product: Tensor  # [n]
    counts: Counts  # its cost


class ProductLog:
    """The products of the current step, and saved ones that were not used yet."""

    def __init__(self, *, keeps: bool) -> None:
        self._keeps = keeps
        self._made: list[SavedProduct] = []
        self._waiting: list[SavedProduct] = []

    def known(self) -> tuple[SavedProduct, ...]:
        """Return all products of the step: those used so far and those still saved."""
        return (*self._made, *self._waiting)

    @property
    def spent(self) -> Counts:
        """Cost of the products used so far in the step."""
        return sum((saved.counts for saved in self._made), Counts())

    def clear(self, waiting: Sequence[SavedProduct] = ()) -> None:
        """Begin a step; ``waiting`` are its saved products, oldest first."""
        self._made, self._waiting = [], list(waiting)

    def wrap(self, operator: SymmetricOperator, label: str) -> SymmetricOperator:
        """Return an operator whose products this log keeps, or takes from those saved."""
        # The label distinguishes the operator from others at the same point.
        return SavedProducts(operator, self, label)

    def product(self, operator: SymmetricOperator, label: str, vector: Tensor) -> Tensor:
        """Return a product ``[n]``: the next saved one if it matches, else a new one."""
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
        # a copy, since a method may overwrite its product
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
    """An operator whose products a log keeps; see ``ProductLog.wrap``."""

    def __init__(self, operator: SymmetricOperator, log: ProductLog, label: str) -> None:
        super().__init__([operator])
        self._log, self._label = log, label

    def _product(self, vector: Tensor) -> Tensor:
        return self._log.product(self.operators[0], self._label, vector)
