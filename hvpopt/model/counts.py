"""Counts: the cost of a run, in evaluations and in wave propagations."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

#: Threads may share a tally, and a signal handler may interrupt ``tally``.
_lock = threading.RLock()


@dataclass
class Counts:
    """A tally of evaluations.

    Every objective and every operator has one. An operator made by an objective reports
    to the objective's tally too, which is then the total cost. Subtract two snapshots
    for the cost between them. An evaluation is counted when it begins, so a failed one
    counts too. Threads may share a tally; ``metered`` separates what each of them adds.

    Attributes:
        values: Loss evaluations without a graph.
        gradients: Loss-and-gradient evaluations. Building the graph for Hessian-vector
            products counts as one.
        products: Hessian-vector products (one per column of a block), and products with
            a Jacobian or its transpose.
        propagations: Wave propagations, one for each pass of one shot's wavefield over
            all time steps: a value takes 1 per shot, a gradient 2. Zero for a plain
            torch function.
    """

    values: int = 0
    gradients: int = 0
    products: int = 0
    propagations: int = 0
    _parent: Counts | None = field(default=None, repr=False, compare=False)

    def tally(
        self,
        *,
        values: int = 0,
        gradients: int = 0,
        products: int = 0,
        propagations: int = 0,
    ) -> None:
        """Add evaluations to this tally and to those it reports to."""
        with _lock:
            self.values += values
            self.gradients += gradients
            self.products += products
            self.propagations += propagations
        meter = _meters.get().get(id(self))
        for other in (self._parent, meter):
            if other is not None:
                other.tally(
                    values=values,
                    gradients=gradients,
                    products=products,
                    propagations=propagations,
                )

    def child(self) -> Counts:
        """Return a new tally, at zero, that reports to this one."""
        return Counts(_parent=self)

    def snapshot(self) -> Counts:
        """Return a copy that later work does not change."""
        return Counts(self.values, self.gradients, self.products, self.propagations)

    def as_dict(self) -> dict[str, int]:
        """Return the four numbers as a plain dictionary, for JSON and tables."""
        return {
            "values": self.values,
            "gradients": self.gradients,
            "products": self.products,
            "propagations": self.propagations,
        }

    def __add__(self, other: Counts) -> Counts:
        total = self.snapshot()
        total.tally(**other.as_dict())
        return total

    def __sub__(self, other: Counts) -> Counts:
        difference = self.snapshot()
        difference.tally(**{name: -n for name, n in other.as_dict().items()})
        return difference


#: The meters of the current block, by the identity of the tallies that they meter.
_meters: ContextVar[Mapping[int, Counts]] = ContextVar("meters", default={})  # noqa: B039


@contextmanager
def metered(counts: Counts, *, pass_on: bool = False) -> Iterator[Counts]:
    """Count separately what the current thread adds to a tally within a block.

    What the block's thread adds to the tally is added to a new one as well; threads that
    it starts are not included. Of nested blocks with the same tally only the innermost
    counts, unless ``pass_on`` is True.

    Yields:
        The new tally.
    """
    around = _meters.get()
    own = Counts(_parent=around.get(id(counts)) if pass_on else None)
    token = _meters.set({**around, id(counts): own})
    try:
        yield own
    finally:
        _meters.reset(token)
