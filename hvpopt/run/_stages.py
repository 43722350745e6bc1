"""The stages of a run, and what its records say of them.

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

#: Last losses of samples whose mean is an estimate of the objective.
RECENT = 5


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        objective: The objective to minimise.
        limits: Limits and tolerances of the stage.
        method: Takes the steps.
        entry: Place of the objective in the list of losses. Its limits of steps and
            products are of all stages of the entry together. Default 0.
    """

    objective: Objective
    limits: Limits
    method: Method
    entry: int = 0


@dataclass(frozen=True)
class Entry:
    """What a run has spent before its current stage, and on samples in it.

    All of it comes from the records alone, which are the same in a resumed run.

    Attributes:
        cost: Cost of the stages before, in gradients of each one's objective.
        counted: What was counted by their end.
        steps: Steps of the entry's stages before; of steps on samples, passes over all
            parts.
        sampled: Parts in the samples of the current stage's steps.
        steepest: The largest norm of a gradient in the current stage.
    """

    cost: float = 0.0
    counted: Counts = field(default_factory=Counts)
    steps: int = 0
    sampled: int = 0
    steepest: float = 0.0

    @classmethod
    def so_far(
        cls, stages: Sequence[Stage], number: int, history: Sequence[IterationRecord]
    ) -> Entry:
        """Return what the records say.

        Args:
            stages: All stages of the run.
            number: Number of the current one.
            history: All records so far.
        """
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


def about_samples(
    history: Sequence[IterationRecord], objective: Objective, estimated: bool
) -> str:
    """Return a clause on the samples that steps were taken on; empty for none.

    Args:
        history: All records.
        objective: That is sampled.
        estimated: True if the value of the result is an estimate.
    """
    sizes = [r.sample for r in history if r.sample and r.step_norm > 0.0]
    if not sizes:
        return ""
    made = "encoded" if objective.encodes else "drawn"
    least, most = min(sizes), max(sizes)
    many = f"{least}" if least == most else f"{least} to {most}"
    clause = (
        f"; {len(sizes)} steps were on samples of {many} {made} parts, since it is a sum "
        f"of {objective.n_parts}"
    )
    if least < most:
        clause += (
            "; samples grew because their loss no longer fell, as it does where only "
            "noise of the data or of the samples is left"
        )
    if estimated:
        clause += f"; its value is an estimate, the mean of the last {RECENT} samples"
    return clause
