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
    """A run after a completed step, and the products of the next step so far."""

    point: Point  # the iterate, without a Hessian
    method: Any
    first: Tensor  # the point at which the stage began [n]
    history: tuple[IterationRecord, ...]
    counts: Counts  # cost up to the completed step
    stage: int = 0  # number of the stage, from 0
    #: why each dropped part of the objective was bad, by name
    dropped: dict[str, str] = field(default_factory=dict)
    #: the best model [n] and its whole value, if steps are on samples
    best: tuple[Tensor, float] | None = None
    #: the last direction of negative curvature [n]
    negative_curvature: Tensor | None = None
    #: why the loss has no second derivative, if the fallback is used; else empty
    gradients_alone: str = ""
    products: tuple[SavedProduct, ...] = ()  # of the current step
    #: cost of resuming from saved states, in addition to ``counts``
    resumed: Counts = field(default_factory=Counts)
    seconds: float = 0.0  # since the run began

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
