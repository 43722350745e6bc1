"""The state of a run: what the loop holds, what is saved, and what is restored."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from hvpopt.methods.points import Point
from hvpopt.model.counts import Counts
from hvpopt.run._saved_products import SavedProduct
from hvpopt.run.result import IterationRecord
from hvpopt.run.state_tree import non_finite


@dataclass(frozen=True)
class RunState:
    """A run after a whole step, and the products that the step after it has made.

    Attributes:
        point: The iterate, without a Hessian.
        method: The method's state.
        first: Where the stage began ``[n]``.
        history: All records.
        counts: Spent up to here.
        stage: Number of the stage, from 0.
        dropped: Why each dropped part of the objective was bad, by name.
        negative_curvature: The last direction of negative curvature ``[n]``, or None.
        gradients_alone: Why the loss has no second derivative, where the method that was
            asked for gave way to one without products; else empty.
        products: Of the step under way.
        resumed: Spent on going on from saved states, on top of ``counts``.
        seconds: Since the run began.
    """

    point: Point
    method: Any
    first: Tensor
    history: tuple[IterationRecord, ...]
    counts: Counts
    stage: int = 0
    dropped: dict[str, str] = field(default_factory=dict)
    negative_curvature: Tensor | None = None
    gradients_alone: str = ""
    products: tuple[SavedProduct, ...] = ()
    resumed: Counts = field(default_factory=Counts)
    seconds: float = 0.0

    @property
    def place(self) -> str:
        """Where in its run the state is, in words."""
        told = f"the state after step {self.history[-1].iteration}"
        return told + f" and {len(self.products)} products" * bool(self.products)

    def unusable(self) -> str:
        """Return in words what is not finite, and must be; empty if all is well."""
        # a record says NaN where a method knows nothing
        kept = {f.name: getattr(self, f.name) for f in fields(self)}
        del kept["history"]
        found = (non_finite(value, name) for name, value in kept.items())
        return next((sentence for sentence in found if sentence), "")
