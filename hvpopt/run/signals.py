"""SIGINT and SIGTERM end a run after its current evaluation, then reach the script."""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

#: Signals that end a run; schedulers send SIGTERM before they kill a process.
HEARD = (signal.SIGINT, signal.SIGTERM)

#: The listeners of this process's main thread, the outermost run's first.
_active: list[SignalListener] = []
#: Signals to send and exceptions to raise when the next run begins.
_pending: list[signal.Signals | BaseException] = []
#: Whether an earlier run of the script was ended by SIGINT.
_interrupted_before = False


class SignalListener:
    """Context manager that records SIGINT and SIGTERM, and passes them on at its end.

    A second SIGINT raises KeyboardInterrupt at once. Every one of nested runs records a
    signal, since it ends all of them. Handlers are installed in the main thread only, as
    Python requires, and the previous ones are restored at the end. A signal that the
    process ignores stays ignored.

    At the end of the outermost run each signal is passed to the handler of the script:

    - A function is called once. An exception of it is raised when the next run begins,
      so that the result of this one is not lost.
    - SIGTERM with the default action is sent again when the next run begins.
    - A first SIGINT that the result reports is not passed on. A second one, in the same
      run or a later one, and one that no result reports, raises KeyboardInterrupt when
      the next run begins; or at once, if another error is raised by this run. In an
      interactive session none is deferred to the next run.

    Attributes:
        received: The first signal; None if there was none.
        told: True if the run's result reports that a signal ended it.
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
            # begun in a callback while the outer run is about to stop
            self.received = _active[-1].received
        else:
            _deliver_pending()
        for number in HEARD:
            handler = signal.getsignal(number)
            # None: installed from C, and could not be restored
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
            # otherwise the outer run has recorded the signal itself
            if handler is not _note and self._times.get(number):
                self._pass_on(number, handler, error)

    def note(self, number: signal.Signals) -> None:
        """Record a signal, of this process or of another one of the run."""
        self.received = self.received or number
        self._times[number] = self._times.get(number, 0) + 1

    def _pass_on(
        self, number: signal.Signals, handler: Any, error: BaseException | None
    ) -> None:
        """Pass a signal to the script's handler, at once or when the next run begins."""
        global _interrupted_before
        if number == signal.SIGINT and handler in _OF_PYTHON:
            used_up = self.told and self._times[number] == 1 and not _interrupted_before
            interactive = hasattr(sys, "ps1")
            _interrupted_before = not interactive
            if error is not None:
                # no result reports it, so it is raised now, unless it is being raised
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
    """Discard the deferred signals of earlier runs, so that a script can continue.

    If ``result.status`` is ``Status.TERMINATED``, the next run ends the script, unless
    this is called first.
    """
    global _interrupted_before
    _pending.clear()
    _interrupted_before = False


#: Python's and the system's default handlers of SIGINT.
_OF_PYTHON = (signal.default_int_handler, signal.SIG_DFL)


def _note(number: int, _: FrameType | None) -> None:
    """Record a signal in every run of the main thread."""
    at_once = number == signal.SIGINT and any(run.received for run in _active)
    for run in _active:
        run.note(signal.Signals(number))
    if at_once:
        raise KeyboardInterrupt


def _deliver_pending() -> None:
    """Raise or send what earlier runs have deferred, to the current handlers."""
    while _pending:
        waiting = _pending.pop(0)
        if isinstance(waiting, BaseException):
            raise waiting
        _send(waiting)


def _send(number: signal.Signals) -> None:
    """Call the current handler of a signal, or raise the signal for a default one."""
    global _interrupted_before
    if number == signal.SIGINT:
        _interrupted_before = False
    handler = signal.getsignal(number)
    if callable(handler):
        handler(number, sys._getframe())
        return
    # the signal may end the process before its output is written
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    signal.raise_signal(number)
