"""SIGINT and SIGTERM as a wish to stop, noted until what is being computed is done.

A signal ends the run under way, which returns its best model. Then it reaches the script:
a handler of the script's own is called as the run returns; what would end the script on
the spot, and lose the result, waits until the next run begins.
"""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

#: What is noted; schedulers send the second before they kill.
HEARD = (signal.SIGINT, signal.SIGTERM)

#: The listeners of this process's main thread, the outermost run's first.
_active: list[SignalListener] = []
#: What the next run raises or sends as it begins.
_pending: list[signal.Signals | BaseException] = []
#: Whether an earlier run of the script was ended by SIGINT.
_interrupted_before = False


class SignalListener:
    """Notes SIGINT and SIGTERM while it is entered, and passes them on at its end.

    A second SIGINT raises KeyboardInterrupt at once, for a person who cannot wait. Of
    nested runs each notes a signal, since it asks all of them to stop. Handlers are
    installed in the main thread alone, since Python allows no other, and those that were
    there before are put back at the end. A signal that the process ignores stays ignored.

    At the end of the outermost run each signal reaches the handler of the script:

    - A function of its own is called, once. What it raises is raised by the next run as
      it begins, so that the result of this one is not lost.
    - SIGTERM that would end the process is sent again as the next run begins.
    - A first SIGINT is used up by the result that tells of it. A second one, in the same
      run or a later one, and one that no result tells of, is KeyboardInterrupt as the
      next run begins; or at once, where an error is leaving this run already. In an
      interactive session, where the next run may be another matter, it is used up too.

    Attributes:
        received: The first signal; None as long as there was none.
        told: True once the run's result says that it was ended by a signal.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.told = False
        self._times: dict[signal.Signals, int] = {}
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> SignalListener:
        if threading.current_thread() is not threading.main_thread():
            return self
        if _active:
            # a run that begins in a callback while the outer one is to stop
            self.received = _active[-1].received
        else:
            _deliver_pending()
        for number in HEARD:
            handler = signal.getsignal(number)
            # None: installed from C, and could not be put back
            if handler is not None and handler is not signal.SIG_IGN:
                self._before[number] = handler
        _active.append(self)
        for number in self._before:
            signal.signal(number, _note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, handler)
        if self in _active:
            _active.remove(self)
        for number, handler in before.items():
            # the outer run of a nested one has noted the signal itself
            if handler is not _note and self._times.get(number):
                self._pass_on(number, handler, error)

    def note(self, number: signal.Signals) -> None:
        """Note a signal.

        Args:
            number: Which; also one that another process of the run received.
        """
        self.received = self.received or number
        self._times[number] = self._times.get(number, 0) + 1

    def _pass_on(
        self, number: signal.Signals, handler: Any, error: BaseException | None
    ) -> None:
        """Let a signal reach the handler that the script has."""
        global _interrupted_before
        if number == signal.SIGINT and handler in _OF_PYTHON:
            used_up = self.told and self._times[number] == 1 and not _interrupted_before
            interactive = hasattr(sys, "ps1")
            _interrupted_before = not interactive
            if error is not None:
                # no result tells of it, so it must not wait; it may be on its way already
                if not isinstance(error, KeyboardInterrupt):
                    _send(number)
            elif not (used_up or interactive):
                _pending.append(number)
        elif callable(handler):
            try:
                handler(number, sys._getframe())
            except BaseException as raised:
                if error is not None:
                    raise
                _pending.append(raised)
        else:
            _pending.append(number)


def acknowledge() -> None:
    """Forget the signals of runs before, for a script that goes on all the same.

    After ``result.status`` told of SIGTERM a script may save, and return; the next run
    would end it. One that wants to go on with another run calls this first.
    """
    global _interrupted_before
    _pending.clear()
    _interrupted_before = False


#: Handlers of SIGINT that the script has not chosen itself, or that end it.
_OF_PYTHON = (signal.default_int_handler, signal.SIG_DFL)


def _note(number: int, _: FrameType | None) -> None:
    """Note a signal in every run of the main thread."""
    at_once = number == signal.SIGINT and any(run.received for run in _active)
    for run in _active:
        run.note(signal.Signals(number))
    if at_once:
        raise KeyboardInterrupt


def _deliver_pending() -> None:
    """Raise or send what earlier runs have left, by the handlers there are now."""
    while _pending:
        waiting = _pending.pop(0)
        if isinstance(waiting, BaseException):
            raise waiting
        _send(waiting)


def _send(number: signal.Signals) -> None:
    """Do what the process does at a signal now."""
    global _interrupted_before
    if number == signal.SIGINT:
        _interrupted_before = False
    handler = signal.getsignal(number)
    if callable(handler):
        handler(number, sys._getframe())
        return
    # the process may end here, and what it has printed is not to be lost
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    signal.raise_signal(number)
