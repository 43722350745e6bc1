"""Recorder: what a run tells of its steps, to whom, and what is saved of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from hvpopt.methods.method import Step
from hvpopt.methods.points import Point
from hvpopt.model.counts import Counts
from hvpopt.model.scale import euclidean_norm
from hvpopt.model.tensors import Model
from hvpopt.problem.objective import Kind, Objective
from hvpopt.run.checkpoint import Checkpoint, RunState
from hvpopt.run.history import HistoryFile
from hvpopt.run.journal import Journal
from hvpopt.run.limits import CallbackError, Stop
from hvpopt.run.result import IterationRecord, Status, record_of

logger = logging.getLogger(__name__)

Callback = Callable[[Model, IterationRecord], Any]


class Recorder:
    """Keeps the history, the history file and the state to be saved.

    Args:
        objective: Whose counts are told.
        journal: Of the step under way.
        callback: See ``minimize``.
        history_file: Grows with the history.
        counts: What the run spends. Default the objective's own tally.

    Attributes:
        history: All records.
        negative_curvature: The last direction met ``[n]``, or None.
        resuming: What going on from saved states has cost.
        checkpoint: Where states are saved; None for nowhere.
        base: The run after its last whole step; None before there is one.
    """

    def __init__(
        self,
        objective: Objective,
        journal: Journal,
        callback: Callback | None = None,
        history_file: HistoryFile | None = None,
        counts: Counts | None = None,
    ) -> None:
        self.history: list[IterationRecord] = []
        self.negative_curvature: Tensor | None = None
        self.resuming = Counts()
        self.checkpoint: Checkpoint | None = None
        self.base: RunState | None = None
        self._objective, self._journal = objective, journal
        self._callback, self._history_file = callback, history_file
        self._began = time.monotonic()
        self._counts = objective.counts if counts is None else counts
        self._before = self._counts.snapshot()

    def restore(self, state: RunState) -> None:
        """Go on from a saved state; what is spent from now on comes on top.

        Args:
            state: Of the run.
        """
        self.base = replace(state, events=())
        self.history = list(state.history)
        self.negative_curvature = state.negative_curvature
        self._began = time.monotonic() - state.seconds
        self._before = self._counts - state.counts

    @property
    def spent(self) -> Counts:
        """What the run has spent."""
        return self._counts.snapshot() - self._before

    def add(
        self, step: Step, point: Point, before: Tensor, relative_step: float = 0.0
    ) -> None:
        """Add the record of a step.

        Args:
            step: That led to the point.
            point: Where it ended.
            before: Where it began ``[n]``.
            relative_step: Its size relative to the model.
        """
        record = record_of(
            step,
            point,
            before,
            relative_step=relative_step,
            iteration=len(self.history),
            counts=self.spent,
            seconds=time.monotonic() - self._began,
            left_out=self._objective.left_out,
        )
        if step.direction.negative_curvature is not None:
            self.negative_curvature = step.direction.negative_curvature
        self.history.append(record)

    def correct(self, point: Point) -> None:
        """Tell of the last point again, where the objective has become another sum.

        Args:
            point: Evaluated anew.
        """
        record = replace(
            self.history[-1],
            value=point.value,
            gradient_norm=euclidean_norm(point.projected_gradient),
            active=int(point.active.sum()),
            parts=point.parts,
            counts=self.spent,
            left_out=self._objective.left_out,
        )
        self.history[-1] = record
        if self._history_file is not None:
            self._history_file.add(record)

    def commit(
        self, point: Point, method: Any, kind: Kind | None, drawn: dict[str, int]
    ) -> None:
        """Note a whole step; what is saved from here on begins at it.

        Args:
            point: Where the run is.
            method: The method's state.
            kind: Of the Hessian that the method wants here.
            drawn: The objective's state before it was linearised here.
        """
        self._journal.clear()
        self.base = RunState(
            vector=point.vector,
            value=point.value,
            gradient=point.gradient,
            parts=point.parts,
            kind=kind,
            method=method,
            objective=drawn,
            left_out=self._objective.left_out,
            history=tuple(self.history),
            counts=self.spent,
            negative_curvature=self.negative_curvature,
        )

    def state(self) -> RunState:
        """Return what there is to save: the last whole step, and what came after it."""
        assert self.base is not None
        return replace(
            self.base,
            resuming=self.resuming + self._journal.repeated,
            seconds=time.monotonic() - self._began,
            events=tuple(self._journal.known()),
        )

    def finish(self, *, discard: bool) -> None:
        """Save the state that a run ends with, or remove what was saved.

        Args:
            discard: Remove it.
        """
        if self.checkpoint is None:
            return
        if discard:
            self.checkpoint.discard()
            return
        try:
            self.checkpoint.finish(self.state())
        except KeyboardInterrupt:
            logger.warning(
                "interrupted while saving: %s holds the state saved before",
                self.checkpoint.path,
            )

    def announce(self, model: Callable[[], Model]) -> None:
        """Tell the history file, the checkpoint and the callback of the last record.

        Args:
            model: Returns the model that the callback gets.

        Raises:
            Stop: If the callback asks for it.
            CallbackError: If it raises.
        """
        record = self.history[-1]
        if self._history_file is not None:
            self._history_file.add(record)
        if self.checkpoint is not None:
            self.checkpoint.after_step(record.iteration, self.state)
        if self._callback is None:
            return
        try:
            stop = self._callback(model(), record)
        except StopIteration:
            stop = True
        except Exception as error:
            raise CallbackError(error) from error
        if stop:
            raise Stop(Status.CALLBACK)
