"""Saving: the state from which a run is saved, and when it is."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any

from hvpopt.model.counts import Counts
from hvpopt.problem.processes import Processes
from hvpopt.run._account import Account
from hvpopt.run._checkpoint import Checkpoint
from hvpopt.run._limits import RefusedError
from hvpopt.run._saved_products import ProductLog
from hvpopt.run._state import RunState
from hvpopt.run.state_tree import check_storable

logger = logging.getLogger(__name__)


class Saving:
    """What a run saves; it only holds the state where nothing is saved.

    Attributes:
        state: After the last completed step; None before the first point.
        checkpoint: Writes the file; None where this process writes none.
        products: Those of the current step.
        resumed: Cost of resuming from saved states, in addition to the run's own.
    """

    def __init__(self, account: Account, *, saves: bool, processes: Processes) -> None:
        self.saves = saves
        self.state: RunState | None = None
        self.checkpoint: Checkpoint | None = None
        self.products = ProductLog(keeps=saves and processes.is_main)
        self.resumed = Counts()
        self._account = account
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the run began, in earlier processes too."""
        return time.monotonic() - self._began

    def reserve(self) -> float:
        """Return the seconds that the last save may take."""
        return 0.0 if self.checkpoint is None else 2.0 * self.checkpoint.slowest

    def go_on(self, state: RunState, checkpoint: Checkpoint | None) -> None:
        """Continue from a saved state, with its products for the interrupted step."""
        self.products.clear(state.products)
        self.state, self.checkpoint = state, checkpoint

    def count_seconds_from(self, seconds: float) -> None:
        """Let so many seconds have passed since the run began."""
        self._began = time.monotonic() - seconds

    def check_kept(self, state: Any) -> None:
        """Raise RefusedError in the first steps if a method's state cannot be saved."""
        # Later the run continues unsaved, with a warning.
        if not self.saves or len(self._account.history) > 2:
            return
        try:
            check_storable(state, "the method's state")
        except TypeError as error:
            raise RefusedError(error) from error

    def commit(self, state: RunState) -> None:
        """Make a completed step the state from which the run is saved."""
        self.products.clear()
        self.state = state

    def to_be_saved(self) -> RunState:
        """Return the state after the last completed step, with the products since."""
        assert self.state is not None
        kept = self.state.counts + self.products.spent
        return replace(
            self.state,
            products=self.products.known(),
            # values and gradients of this step, which a resumed run evaluates again
            resumed=self.resumed + (self._account.spent - kept),
            seconds=self.seconds,
        )

    def save(self) -> None:
        """Save now."""
        if self.checkpoint is not None:
            self.checkpoint.save(self.to_be_saved())

    def after_step(self, iteration: int) -> None:
        """Save if a save is due after a step."""
        if self.checkpoint is not None:
            self.checkpoint.after_step(iteration, self.to_be_saved)

    def within_step(self) -> None:
        """Save if a save is due within a step."""
        if self.checkpoint is not None:
            self.checkpoint.within_step(self.to_be_saved)

    def finish(self, *, discard: bool) -> None:
        """Save the last state of the run, or remove the checkpoint."""
        if self.checkpoint is None:
            return
        if discard:
            self.checkpoint.discard()
            return
        try:
            self.checkpoint.finish(self.to_be_saved())
        except KeyboardInterrupt:
            logger.warning(
                "interrupted while saving: %s holds the state saved before",
                self.checkpoint.path,
            )
