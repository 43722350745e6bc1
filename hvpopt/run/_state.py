"""RunState: the state of a run that the loop updates and a checkpoint saves."""

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
    """A run after a completed step, and the products of the next step so far.

    Attributes:
        point: The iterate, without a Hessian.
        method: The method's state.
        first: The point at which the stage began ``[n]``.
        history: All records.
        counts: Cost up to the completed step.
        stage: Number of the stage, from 0.
        dropped: Why each dropped part of the objective was bad, by name.
        best: The best model by its whole value ``[n]`` and that value, if steps are on
            samples; None otherwise.
        negative_curvature: The last direction of negative curvature ``[n]``, or None.
        gradients_alone: Why the loss has no second derivative, if a method without
            products replaced the default one; else empty.
        products: The products of the current step.
        resumed: Cost of resuming from saved states, in addition to ``counts``.
        seconds: Seconds since the run began.
    """

    point: Point
    method: Any
    first: Tensor
    history: tuple[IterationRecord, ...]
    counts: Counts
    stage: int = 0
    dropped: dict[str, str] = field(default_factory=dict)
    best: tuple[Tensor, float] | None = None
    negative_curvature: Tensor | None = None
    gradients_alone: str = ""
    products: tuple[SavedProduct, ...] = ()
    resumed: Counts = field(default_factory=Counts)
    seconds: float = 0.0

    @property
    def place(self) -> str:
        """A description of the state's position in its run, for a message."""
        step = f"the state after step {self.history[-1].iteration}"
        return step + f" and {len(self.products)} products" * bool(self.products)

    def unusable(self) -> str:
        """Return a description of a number that is not finite; empty if there is none."""
        # records may hold NaN for unknown values
        kept = {f.name: getattr(self, f.name) for f in fields(self)}
        del kept["history"]
        found = (non_finite(value, name) for name, value in kept.items())
        return next((sentence for sentence in found if sentence), "")
