"""Sampled stages: the best model by the whole objective, and text for a result.

A step on a sample is judged by that sample. The whole objective is evaluated where the
samples grow and where the stage ends, and the run keeps the best model by these values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hvpopt.problem.objective import Objective
from hvpopt.run.result import IterationRecord

#: Last losses of samples whose mean is an estimate of the objective.
RECENT = 5


class Best:
    """The best model ``[n]`` of a sampled stage and its whole value; None outside one."""

    def __init__(self) -> None:
        self.known: tuple[Tensor, float] | None = None

    def evaluate_again(self, value_of: Callable[[Tensor], float]) -> None:
        """Take the value of another objective; drop the model if it is not finite."""
        best, self.known = self.known, None
        if best is not None and math.isfinite(value := value_of(best[0])):
            self.known = best[0], value

    def compare(self, vector: Tensor, value_of: Callable[[Tensor], float]) -> None:
        """Keep another model ``[n]`` if it is better; nothing outside a sampled stage."""
        if self.known is not None:
            value = value_of(vector)
            if value < self.known[1]:
                self.known = vector, value

    def judge(
        self, vector: Tensor, value_of: Callable[[Tensor], tuple[float, Exception | None]]
    ) -> tuple[Tensor, float]:
        """Return the better of another model ``[n]`` and the best one, and its value."""
        # ``value_of`` returns the whole value and the error for which it is infinite,
        # which is raised if there is no best model.
        if self.known is not None and torch.equal(vector, self.known[0]):
            return self.known
        value, error = value_of(vector)
        if self.known is not None and not value < self.known[1]:
            return self.known
        if error is not None:
            raise error
        return vector, value

    def guess(
        self, vector: Tensor, history: Sequence[IterationRecord]
    ) -> tuple[Tensor, float, bool]:
        """Return what ``judge`` would, by the last samples; and if it is an estimate."""
        values = [r.value for r in history if r.objective == history[-1].objective]
        mean = sum(values[-RECENT:]) / len(values[-RECENT:])
        if self.known is not None:
            at_best = torch.equal(vector, self.known[0])
            if at_best or not mean < self.known[1]:
                return (*self.known, False)
        return vector, mean, True


def about_samples(
    history: Sequence[IterationRecord], objective: Objective, estimated: bool
) -> str:
    """Return a clause on the samples that steps were taken on; empty for none."""
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
