"""Processes: the processes that evaluate an objective together."""

from __future__ import annotations


class Processes:
    """The processes that run the same loop; this class stands for a single process.

    All processes must take the same decisions. Those that depend on clocks and signals,
    which differ between processes, are taken from the result of ``largest``.
    """

    count: int = 1
    is_main: bool = True

    def largest(self, number: float) -> float:
        """Return the largest of one number from each process; all must call it."""
        return number


#: The ``processes`` of an objective that this process evaluates alone.
ALONE = Processes()
