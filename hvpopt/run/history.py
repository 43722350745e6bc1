"""The history of a run as JSON lines, to be followed during the run.

One line is one ``IterationRecord``, flushed at once. Unknown and infinite numbers are
null, since JSON has neither NaN nor infinity.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from hvpopt import checks
from hvpopt.run.result import IterationRecord

logger = logging.getLogger(__name__)

#: Bytes to read at a time in the search for the end of a line.
_BLOCK = 4096


def line_of(record: IterationRecord) -> str:
    """Return a record as one line of strict JSON, without the newline."""
    return json.dumps(_plain(record.as_dict()), allow_nan=False)


class HistoryFile:
    """A file of JSON lines, one for each record.

    If the file cannot be written, a warning is logged at the first of consecutive
    failures and the run continues. Missing records are written at the next success. An
    existing file is replaced, except for lines that equal the ``known`` records of a
    resumed run; missing ones are written, and everything after them (an incomplete line,
    a repeated step) is removed.
    """

    def __init__(
        self, path: str | os.PathLike[str], known: Iterable[IterationRecord] = ()
    ) -> None:
        self.path = Path(os.path.abspath(checks.path("history_file", path)))
        if self.path.is_dir():
            raise ValueError(f"history_file is the directory {self.path}")
        self._failed = False
        self._begun = False
        self._written = 0  # bytes of the lines that are known to be in the file
        self._waiting = [line_of(record) + "\n" for record in known]
        self._write()

    def add(self, record: IterationRecord) -> None:
        """Append a record."""
        self._waiting.append(line_of(record) + "\n")
        self._write()

    def _begin(self) -> None:
        if not self._waiting or not self.path.exists():
            self.path.write_text("", encoding="utf-8")
            self._begun = True
            return
        there = self.path.read_bytes().splitlines(keepends=True)
        same = 0
        for line, own in zip(there, self._waiting, strict=False):
            if line != own.encode():
                break
            same += 1
        # truncated rather than replaced, so that a program that follows it can continue
        self._written = sum(len(line) for line in there[:same])
        os.truncate(self.path, self._written)
        del self._waiting[:same]
        self._begun = True

    def _grow(self) -> None:
        """Write the waiting lines after the last complete line."""
        with open(self.path, "ab+") as file:
            size = file.seek(0, os.SEEK_END)
            # drops what a failed attempt wrote; the file may have been replaced since
            end = _end_of_lines(file, min(size, self._written) if self._failed else size)
            if end < size:
                file.truncate(end)
            file.write("".join(self._waiting).encode())
            file.flush()
            written = file.seek(0, os.SEEK_END)
        self._written = written
        self._waiting.clear()

    def _write(self) -> None:
        try:
            if not self._begun:
                self._begin()
            if self._waiting:
                self._grow()
            self._failed = False
        except OSError as error:
            level = logging.DEBUG if self._failed else logging.WARNING
            logger.log(
                level,
                "the history could not be written to %s, and the run goes on (%s: %s)",
                self.path,
                type(error).__name__,
                error,
            )
            self._failed = True


def _end_of_lines(file: BinaryIO, size: int) -> int:
    """Return the end of the last complete line among the first ``size`` bytes."""
    end = size
    while end > 0:
        begin = max(0, end - _BLOCK)
        file.seek(begin)
        found = file.read(end - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    return value
