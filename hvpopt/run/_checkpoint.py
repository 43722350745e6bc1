"""Checkpoint: saves the state of a run to a file after and within steps."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hvpopt import checks
from hvpopt.errors import StateError
from hvpopt.model.counts import Counts
from hvpopt.run import _files as files
from hvpopt.run._state import RunState
from hvpopt.run.result import IterationRecord
from hvpopt.run.state_tree import Encoded, decode, encode

logger = logging.getLogger(__name__)


def load(
    path: Path, device: torch.device | str = "cpu"
) -> tuple[dict[str, Any], RunState, bool]:
    """Return fingerprint and state from a checkpoint, and True if it was undamaged."""
    # If it was damaged, the state is that of its previous version.
    skeleton, tensors, undamaged = files.read_newest(path)
    found = decode(skeleton, tensors)
    if not isinstance(found, tuple) or not isinstance(found[1], RunState):
        raise StateError(f"{path} holds no state of a run")
    if bad := found[1].unusable():
        raise StateError(f"{path} is refused: {bad}")
    if torch.device(device).type != "cpu":
        found = decode(skeleton, tensors, device)
    return found[0], found[1], undamaged


class Checkpoint:
    """Saves a run to a file; a save that fails does not end the run.

    Attributes:
        slowest: Duration of the slowest save so far, seconds.
    """

    def __init__(
        self,
        path: Path,
        problem: dict[str, Any],
        *,
        every: int = 1,
        seconds: float = 60.0,
        keep: bool = True,
        there: RunState | None = None,
    ) -> None:
        self.path = path
        self.every, self.seconds = every, seconds
        self.slowest = 0.0
        self._problem = problem
        self._keep = keep
        self._last = time.monotonic()
        self._error = ""
        self._newest: tuple[int, int, Counts] | None = None
        self._there = "" if there is None else there.place
        # a run on samples has thousands of records, and saves after each
        self._records: list[tuple[IterationRecord, Encoded]] = []

    def after_step(self, iteration: int, state: Callable[[], RunState]) -> None:
        """Save the state if the iteration is a multiple of ``every``."""
        if iteration % self.every == 0:
            self.save(state())

    def within_step(self, state: Callable[[], RunState]) -> None:
        """Save the state if ``seconds`` have passed since the last save."""
        if time.monotonic() - self._last >= self.seconds:
            self.save(state())

    def finish(self, state: RunState) -> None:
        """Save the last state of a run, unless it is saved already."""
        if _content(state) != self._newest:
            self.save(state)

    def discard(self) -> None:
        """Remove the file and its previous version."""
        files.remove(self.path)

    @property
    def failure(self) -> str:
        """A message with the last saved state if a later save failed; else empty."""
        if not self._error:
            return ""
        last = self._there or "no state"
        return f"{last} is saved in {self.path}, since saving failed ({self._error})"

    def save(self, state: RunState) -> None:
        """Save a state; warn at the first of consecutive failures."""
        began = time.monotonic()
        try:
            if bad := state.unusable():
                raise StateError(f"the state is not finite: {bad}")
            history: Any = self._encoded(state.history)
            skeleton, tensors = encode((self._problem, replace(state, history=history)))
            files.write(self.path, skeleton, tensors, keep=self._keep)
            self._keep = True
            self._newest = _content(state)
            self._there, self._error = state.place, ""
        except (OSError, StateError, TypeError, MemoryError, RuntimeError) as error:
            level = logging.DEBUG if self._error else logging.WARNING
            self._error = f"{type(error).__name__}: {error}"
            logger.log(
                level,
                "the state cannot be saved to %s, and the run goes on without (%s)",
                self.path,
                self._error,
            )
        self._last = time.monotonic()
        self.slowest = max(self.slowest, self._last - began)

    def _encoded(self, records: tuple[IterationRecord, ...]) -> tuple[Encoded, ...]:
        """Return records encoded, each once in the life of this object."""
        known = self._records
        for k, record in enumerate(records):
            if k == len(known) or known[k][0] is not record:
                known[k:] = [(record, Encoded(record))]
        return tuple(encoded for _, encoded in known[: len(records)])


def _content(state: RunState) -> tuple[int, int, Counts]:
    """Return what a state of a run has that an earlier one may lack."""
    return len(state.history), len(state.products), state.resumed


def check_checkpoint(path: str | os.PathLike[str], every: int, seconds: float) -> Path:
    """Return a checkpoint's absolute path, after checking its options."""
    # Links are resolved, so that a save replaces the file rather than the link.
    checks.path("checkpoint", path)
    says = "it is steps, 1 or more"
    checks.integer("checkpoint_every", every, least=1, says=says)
    checks.number("checkpoint_seconds", seconds, least=0.0)
    found = Path(os.path.realpath(path))
    if found.is_dir():
        raise ValueError(f"checkpoint is the directory {found}; pass a file in it")
    if not found.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT,
            f"checkpoint is to be saved as {found}, and there is no directory "
            f"{found.parent}; make it first",
        )
    return found


def check_apart(path: Path, history_file: str | os.PathLike[str] | None) -> None:
    """Raise ValueError if the history file is one of a checkpoint's files."""
    if not isinstance(history_file, (str, os.PathLike)):
        return  # HistoryFile checks the type
    given = os.path.realpath(history_file)
    for file in (path, files.previous(path), path.with_name(f"{path.name}.lock")):
        there = file.exists() and os.path.exists(given)
        if os.path.realpath(file) == given or (there and os.path.samefile(file, given)):
            raise ValueError(
                f"history_file is {os.fspath(history_file)!r}, a file of the checkpoint; "
                "give the history a file of its own"
            )
