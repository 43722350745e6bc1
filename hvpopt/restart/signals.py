"""SIGINT and SIGTERM as a wish to stop, heard when what is being computed is done."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

#: What is heard; schedulers send the second before they kill.
HEARD = (signal.SIGINT, signal.SIGTERM)


class SignalListener:
    """Notes the first SIGINT or SIGTERM while it is entered.

    A second SIGINT raises KeyboardInterrupt at once, for a person who cannot wait.
    Handlers are installed in the main thread alone, since Python allows no other, and
    those that were there before are put back at the end. A signal that the process
    ignores stays ignored.

    Attributes:
        received: The signal; None as long as there was none.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> SignalListener:
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in HEARD:
            handler = signal.getsignal(number)
            # None: installed from C, and could not be put back
            if handler is not None and handler is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number)
