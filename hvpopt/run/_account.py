"""Account: what a run has spent, and what its limits leave."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import pairwise, takewhile

from torch import Tensor

from hvpopt.methods.convergence import Iterate, Tolerance, without_products
from hvpopt.methods.points import Budget
from hvpopt.model.counts import Counts, metered
from hvpopt.run._limits import Limits, Stop, Watch
from hvpopt.run._stages import Entry, Stage
from hvpopt.run.result import IterationRecord, Status


class Account:
    """The records and counts of a run, compared with the limits of its stages.

    ``cut_short`` is True if the clock may end a step before it is complete; ``reserve``
    returns the seconds that are needed to save the run.

    Attributes:
        number: Number of the current stage, from 0.
        method: The method that takes the steps: the stage's, or its replacement.
        history: All records.
        entry: What has been spent on the current entry of the list of losses.
        meter: What the current stage's objective has evaluated in this stage.
        earlier: What was spent before that.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        watch: Watch,
        max_cost: float,
        *,
        cut_short: bool,
        reserve: Callable[[], float],
    ) -> None:
        self.stages = stages
        self.number = 0
        self.method = stages[0].method
        self.history: list[IterationRecord] = []
        self.entry = Entry()
        self.meter, self.earlier = Counts(), Counts()
        self._meters = ExitStack()
        self._watch, self._max_cost = watch, max_cost
        self._cut_short, self._reserve = cut_short, reserve

    def begin_stage(self, number: int) -> None:
        """Make a stage the current one, and count what its objective evaluates."""
        self.number = number
        self.look_back()
        self.close()
        self.earlier = self.spent
        self.meter = self._meters.enter_context(metered(self.stage.objective.counts))

    def look_back(self) -> None:
        """Take what the current entry has spent from the records."""
        self.entry = Entry.so_far(self.stages, self.number, self.history)

    def close(self) -> None:
        """Stop counting."""
        self._meters.close()

    def add(self, record: IterationRecord, *, is_step: bool) -> None:
        """Add a record, which is one of a step or of a stage's beginning."""
        self.entry = self.entry.after(record, is_step=is_step)
        self.history.append(record)

    # -- what is spent ----------------------------------------------------------

    @property
    def stage(self) -> Stage:
        """The current stage."""
        return self.stages[self.number]

    @property
    def limits(self) -> Limits:
        """Those of the current stage."""
        return self.stage.limits

    @property
    def spent(self) -> Counts:
        """Cost of the run so far."""
        return self.earlier + self.meter

    @property
    def cost(self) -> float:
        """Cost of the run so far, in gradients of each stage's objective."""
        since = self.spent - self.entry.counted
        return self.entry.cost + self.stage.objective.cost(since)

    @property
    def begins(self) -> bool:
        """True if the current stage has no record yet."""
        return not self.history or self.history[-1].stage != self.number

    @property
    def steps(self) -> int:
        """Number of steps of this stage so far; on samples, of passes over all parts."""
        if self.method.samples:
            return self.entry.sampled // self.stage.objective.n_parts
        start = next((r for r in self.history if r.stage == self.number), None)
        return 0 if start is None else self.history[-1].iteration - start.iteration

    # -- what is left -----------------------------------------------------------

    def raise_if_over(self, at: Iterate | None) -> None:
        """Raise Stop after a signal or at a limit; ``at`` is None on a sample."""
        self._watch.raise_if_signalled()
        if at is not None and self.at_limit():
            known = without_products(at)
            if known is not None:
                status = Status.CONVERGED if known.minimum else Status.STATIONARY
                raise Stop(status, known.reason)
        if self.entry.steps + self.steps >= self.limits.max_iter:
            raise Stop(Status.MAX_ITERATIONS)
        if self._out_of_products():
            raise Stop(Status.MAX_PRODUCTS)
        if self._over_cost():
            raise Stop(Status.MAX_COST)
        if self._out_of_time():
            raise Stop(Status.MAX_SECONDS)

    def raise_if_late(self) -> None:
        """Raise Stop within a step if a signal came, or if the time is over."""
        if not self._cut_short and self._out_of_time():
            raise Stop(Status.MAX_SECONDS)
        self._watch.raise_if_signalled()

    def at_limit(self, steps: int = 0) -> bool:
        """Return True if a limit allows no further step after ``steps`` more."""
        taken = self.entry.steps + self.steps + steps
        last = taken >= self.limits.max_iter
        limits = (self._out_of_products, self._over_cost, self._out_of_time)
        return last or any(reached() for reached in limits)

    def _out_of_products(self) -> bool:
        return self.method.needs_products and self.budget().products <= 0

    def _over_cost(self) -> bool:
        if self._max_cost == math.inf:
            return False
        # a sampled stage ends with a whole value, which costs half a gradient
        spare = 0.5 if self.method.samples else 0.0
        return self.cost + spare >= self._max_cost

    def _out_of_time(self) -> bool:
        return self._watch.late(self._reserve())

    def budget(self) -> Budget:
        """Return the products and the time that the current step may take."""
        deadline = self._watch.deadline if self._cut_short else math.inf
        spent = self.spent.products
        entry = self.stage.entry
        begun = next(n for n, stage in enumerate(self.stages) if stage.entry == entry)
        if begun > 0:  # the cost of this entry alone, which may have no record yet
            there = (r for r in self.history if begun <= r.stage <= self.number)
            start = next(there, None)
            spent -= spent if start is None else start.counts.products
        return Budget(self.limits.max_products - spent, deadline)

    def tolerance(self, first: Tensor) -> Tolerance:
        """Return the stage's tolerance; ``first`` is the point where it began ``[n]``."""
        # It depends on the records alone, which are the same in a resumed run.
        records = [r for r in self.history if r.stage == self.number]
        last = records[-1]
        before = Counts() if self.number == 0 else records[0].counts
        gtol = self.limits.gtol
        return Tolerance.after(
            self.steps,
            last.counts - before,
            looked=sum(
                later.counts.products - earlier.counts.products
                for earlier, later in pairwise(records)
                if later.curvature_step
            ),
            gtol=gtol,
            certify=self.limits.certify,
            start=first,
            # of the same objective: a dropped part may have dominated the gradient
            largest=max(
                r.gradient_norm for r in records if r.objective == last.objective
            ),
            rests=sum(
                1
                for _ in takewhile(
                    lambda r: r.step_norm > 0.0 and r.relative_step <= gtol,
                    reversed(records),
                )
            ),
        )
