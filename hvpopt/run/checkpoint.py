"""What is saved of a run, and when."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.methods.method import Method
from hvpopt.methods.points import Point
from hvpopt.model.counts import Counts
from hvpopt.model.space import ModelSpace
from hvpopt.problem.objective import Kind
from hvpopt.run import files
from hvpopt.run.fingerprint import method_fingerprint
from hvpopt.run.journal import Event
from hvpopt.run.result import IterationRecord
from hvpopt.run.state_tree import (
    StateError,
    check_storable,
    decode,
    encode,
    non_finite,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProblemState:
    """What ``minimize`` was given, so that ``resume`` can do without.

    Attributes:
        model: The start.
        options: Scale, mask and bounds, as given.
        device: Of the model.
        limits: ``max_iter``, ``max_products`` and ``gtol``.
        fingerprint: See ``fingerprint``.
        left_out: What the objective had left out when its value at the start was taken.
        impossible: Why the method gave way to one without products; empty if it did not.
    """

    model: Any
    options: dict[str, Any]
    device: str
    limits: dict[str, float]
    fingerprint: dict[str, Any]
    left_out: dict[str, str] = field(default_factory=dict)
    impossible: str = ""


@dataclass(frozen=True)
class RunState:
    """A run between two steps, and what the step after has evaluated.

    Attributes:
        vector: The iterate ``[n]``.
        value: The objective there.
        gradient: ``[n]``.
        parts: Value of each named part of a sum.
        kind: Of the Hessian that the method wants here.
        method: The method's state.
        objective: The objective's state before it was linearised here.
        left_out: What the objective has left out.
        history: All records.
        counts: Spent up to here.
        resuming: Spent on resuming, on top.
        seconds: Spent since the run began.
        negative_curvature: The last direction met ``[n]``, or None.
        events: Of the step under way.
    """

    vector: Tensor
    value: float
    gradient: Tensor
    parts: dict[str, float]
    kind: Kind | None
    method: Any
    objective: dict[str, int]
    history: tuple[IterationRecord, ...]
    counts: Counts
    left_out: dict[str, str] = field(default_factory=dict)
    resuming: Counts = field(default_factory=Counts)
    seconds: float = 0.0
    negative_curvature: Tensor | None = None
    events: tuple[Event, ...] = ()

    def point(self, space: ModelSpace) -> Point:
        """Return the iterate, without a Hessian."""
        return Point(
            vector=self.vector,
            value=self.value,
            gradient=self.gradient,
            hessian=None,
            active=space.pushed_out(self.vector, self.gradient),
            parts=dict(self.parts),
        )

    def unusable(self) -> str:
        """Return in words what is not finite, and must be; empty if all is well."""
        # a record says NaN where a method knows nothing
        kept = {f.name: getattr(self, f.name) for f in fields(self)}
        del kept["history"]
        # and a trial that a loss refused may have an infinite value
        kept["events"] = tuple(event.tensors for event in self.events)
        found = (non_finite(value, name) for name, value in kept.items())
        return next((sentence for sentence in found if sentence), "")


def load(
    path: Path, device: torch.device | None = None
) -> tuple[ProblemState, RunState, bool]:
    """Return problem and run of the newest whole state, and True if no file was damaged.

    Args:
        path: Of the checkpoint.
        device: Where its tensors are to live. Default where they lived; where this
            machine has no such device, one of the same type, else the host, with a
            warning.

    Raises:
        FileNotFoundError: If there is none.
        StateError: If it is damaged, of another version, or not finite.
    """
    skeleton, tensors, whole = files.read_newest(path)
    problem, run = decode(skeleton, tensors)
    if not isinstance(problem, ProblemState) or not isinstance(run, RunState):
        raise StateError(f"{path} holds no state of a run")
    if bad := run.unusable():
        raise StateError(f"{path} is refused: {bad}")
    device = _device_at_hand(problem.device) if device is None else device
    if device.type != "cpu":
        problem, run = decode(skeleton, tensors, device)
    return replace(problem, device=str(device)), run, whole


def _device_at_hand(saved: str) -> torch.device:
    """Return the device that a state names, or the one that stands in for it here."""
    try:
        device = torch.device(saved)
    except RuntimeError as error:
        raise StateError(f"the state is of a device {saved!r}: {error}") from error
    for candidate in (device, torch.device(device.type)):
        try:
            found = torch.empty(0, device=candidate).device
        except (RuntimeError, AssertionError, NotImplementedError):
            continue
        break
    else:
        found = torch.device("cpu")
    if (found.type, found.index or 0) != (device.type, device.index or 0):
        logger.warning(
            "the state is of %s, which this machine does not have: the run goes on on "
            "%s, with other rounding; for another device give the model as well",
            saved,
            found,
        )
    return found


class Checkpoint:
    """Saves a run to a file, and never ends one because it cannot.

    Args:
        path: The file.
        every: Steps between saves.
        seconds: Within a step, save when this long has passed since the last save.
        problem: Written with every state.
        keep: Keep the file that is there as the previous one at the first save.
        there: The state that the file holds already; None for none.

    Attributes:
        slowest: Seconds that the slowest save took.

    Raises:
        TypeError: If the problem is of a kind that cannot be stored.
    """

    def __init__(
        self,
        path: Path,
        problem: ProblemState,
        *,
        every: int = 1,
        seconds: float = 60.0,
        keep: bool = True,
        there: RunState | None = None,
    ) -> None:
        check_storable(problem, "the problem")
        self.path = path
        self.every, self.seconds = every, seconds
        self.slowest = 0.0
        self._problem = problem
        self._keep = keep
        self._last = time.monotonic()
        self._error = ""
        self._newest: tuple[int, int] | None = None
        self._there = _place(there) if there is not None else ""

    def after_step(self, iteration: int, state: Callable[[], RunState]) -> None:
        """Save if this iteration is one to be saved."""
        if iteration % self.every == 0:
            self.save(state())

    def within_step(self, state: Callable[[], RunState]) -> None:
        """Save if long enough has passed."""
        if time.monotonic() - self._last >= self.seconds:
            self.save(state())

    def finish(self, state: RunState) -> None:
        """Save the state that a run ends with, unless it is saved already."""
        if (len(state.history), len(state.events)) != self._newest:
            self.save(state)

    def change_method(self, method: Method, impossible: str) -> None:
        """Go on saving, anew, what another method does.

        Args:
            method: Which.
            impossible: Why the first one gave way to it.
        """
        fingerprint = {**self._problem.fingerprint, **method_fingerprint(method)}
        self._problem = replace(
            self._problem, fingerprint=fingerprint, impossible=impossible
        )
        self.discard()
        self._keep, self._newest = False, None

    def discard(self) -> None:
        """Remove what was saved."""
        files.remove(self.path)

    @property
    def failure(self) -> str:
        """What was saved last, in words, where the save after it failed; else empty."""
        if not self._error:
            return ""
        last = self._there or "no state"
        return f"{last} is saved in {self.path}, since saving failed ({self._error})"

    def save(self, state: RunState) -> None:
        """Save a state; warn if that fails and the save before did not."""
        began = time.monotonic()
        try:
            if bad := state.unusable():
                raise StateError(f"the state is not finite: {bad}")
            skeleton, tensors = encode((self._problem, state))
            files.write(self.path, skeleton, tensors, keep=self._keep)
            self._keep = True
            self._newest = len(state.history), len(state.events)
            self._there, self._error = _place(state), ""
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


def _place(state: RunState) -> str:
    """Return in words where in its run a state is."""
    step = f"the state after step {len(state.history) - 1}"
    return step + f" and {len(state.events)} evaluations" * bool(state.events)


def check_checkpoint(path: str | os.PathLike[str], every: int, seconds: float) -> Path:
    """Return the path of a checkpoint, or raise for what is out of range.

    Args:
        path: The file.
        every: Steps between saves.
        seconds: Between saves within a step.

    Returns:
        Where the file really lies, whatever directory the process goes to: links are
        followed here, so that saving replaces the file and never the link.

    Raises:
        TypeError: If the path is none.
        ValueError: For a number out of range, or a directory.
        FileNotFoundError: If the directory that it is to lie in does not exist.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"checkpoint is {path!r}; pass the path of a file")
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
    """Refuse a history that would be written over a checkpoint, or over its previous one.

    Args:
        path: Of the checkpoint.
        history_file: Of the history, or None.

    Raises:
        ValueError: If they are one file.
    """
    if not isinstance(history_file, (str, os.PathLike)):
        return  # what is no path is refused where it is opened
    given = os.path.realpath(history_file)
    for file in (path, files.previous(path), path.with_name(f"{path.name}.lock")):
        there = file.exists() and os.path.exists(given)
        if os.path.realpath(file) == given or (there and os.path.samefile(file, given)):
            raise ValueError(
                f"history_file is {os.fspath(history_file)!r}, a file of the checkpoint; "
                "give the history a file of its own"
            )
