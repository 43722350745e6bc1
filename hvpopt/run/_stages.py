"""The stages of a run, and what its records contain about them.

An entry of the list of losses has one stage, or two: of steps on samples of the
objective, and of the whole. Its limits of steps and products are of both together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from hvpopt.methods.method import Method
from hvpopt.model.counts import Counts
from hvpopt.problem.objective import Objective
from hvpopt.run._limits import Limits
from hvpopt.run.result import IterationRecord


@dataclass(frozen=True)
class Stage:
    """One stage of a run."""

    objective: Objective
    limits: Limits
    method: Method
    entry: int = 0  # place of the objective in the list of losses


@dataclass(frozen=True)
class Entry:
    """What a run has spent before its current stage, and on samples in it.

    All of it comes from the records alone, which are the same in a resumed run.
    """

    cost: float = 0.0  # of the stages before, in gradients of each one's objective
    counted: Counts = field(default_factory=Counts)  # what was counted by their end
    #: of the entry's stages before; of steps on samples, passes over all parts
    steps: int = 0
    sampled: int = 0  # parts in the samples of the current stage's steps
    steepest: float = 0.0  # the largest norm of a gradient in the current stage

    @classmethod
    def so_far(
        cls, stages: Sequence[Stage], number: int, history: Sequence[IterationRecord]
    ) -> Entry:
        """Return what the records contain at stage ``number``."""
        cost, counted, steps = 0.0, Counts(), 0
        for place, stage in enumerate(stages[:number]):
            records = [record for record in history if record.stage == place]
            if not records:
                continue
            cost += stage.objective.cost(records[-1].counts - counted)
            counted = records[-1].counts
            if stage.entry == stages[number].entry:
                taken = _steps(records)
                passes = sum(record.sample for record in taken) // stage.objective.n_parts
                steps += passes if stage.method.samples else len(taken)
        records = [record for record in history if record.stage == number]
        return cls(
            cost,
            counted,
            steps,
            sampled=sum(record.sample for record in _steps(records)),
            steepest=max((record.gradient_norm for record in records), default=0.0),
        )

    def after(self, record: IterationRecord, *, is_step: bool) -> Entry:
        """Return the entry with one record more."""
        return replace(
            self,
            sampled=self.sampled + record.sample * is_step,
            steepest=max(self.steepest, record.gradient_norm),
        )


def _steps(records: Sequence[IterationRecord]) -> list[IterationRecord]:
    """Return the records of a stage that are of steps."""
    return [b for a, b in pairwise(records) if b.iteration > a.iteration]
