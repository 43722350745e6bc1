"""The history of a run as JSON lines, for whoever follows it while it goes.

One line is one ``IterationRecord``, flushed as soon as it is there. What is unknown or
infinite is null, since JSON has neither NaN nor infinity.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hvpopt.result import IterationRecord

logger = logging.getLogger(__name__)


def line_of(record: IterationRecord) -> str:
    """Return a record as one line of strict JSON, without the newline."""
    return json.dumps(_plain(record.as_dict()), allow_nan=False)


class HistoryFile:
    """A file of JSON lines that grows by one for each record.

    A file that cannot be written is warned of once, and the run goes on.

    Args:
        path: The file; what was there is replaced.
        known: Records of a run that goes on. Their lines stay where the file has them
            and are written where it has not; what comes after them, such as a line that
            was cut short or a step that is taken again, goes.

    Raises:
        TypeError: If the path is none.
        ValueError: If it is a directory.
    """

    def __init__(
        self, path: str | os.PathLike[str], known: Iterable[IterationRecord] = ()
    ) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"history_file is {path!r}; pass the path of a file")
        self.path = Path(path)
        if self.path.is_dir():
            raise ValueError(f"history_file is the directory {self.path}")
        self._warned = False
        self._try(lambda: self._begin([line_of(record) + "\n" for record in known]))

    def add(self, record: IterationRecord) -> None:
        """Append a record."""
        self._try(lambda: self._append(line_of(record) + "\n"))

    def _begin(self, lines: list[str]) -> None:
        if not lines or not self.path.exists():
            self.path.write_text("".join(lines), encoding="utf-8")
            return
        there = self.path.read_bytes().splitlines(keepends=True)
        same = 0
        for line, own in zip(there, lines, strict=False):
            if line != own.encode():
                break
            same += 1
        # cut in place: who follows the file keeps it
        with open(self.path, "r+b") as file:
            file.truncate(sum(len(line) for line in there[:same]))
            file.seek(0, os.SEEK_END)
            file.write("".join(lines[same:]).encode())

    def _append(self, line: str) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line)

    def _try(self, write: Any) -> None:
        try:
            write()
        except OSError as error:
            level = logging.DEBUG if self._warned else logging.WARNING
            logger.log(
                level,
                "the history could not be written to %s, and the run goes on (%s: %s)",
                self.path,
                type(error).__name__,
                error,
            )
            self._warned = True


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    return value
