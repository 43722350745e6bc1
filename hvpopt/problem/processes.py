"""Processes: the processes that evaluate an objective together."""

from __future__ import annotations


class Processes:
    """The processes that run the same loop; this class stands for a single process.

    All processes must take the same decisions. Those that depend on clocks and signals,
    which differ between processes, are taken from the result of ``largest``.

    Attributes:
        count: Number of processes.
        is_main: True in the process that writes files and shows progress.
    """

    count: int = 1
    is_main: bool = True

    def largest(self, number: float) -> float:
        """Return the largest of one number from each process.

        With several processes it sends a message, and every process must call it.

        Args:
            number: The number of this process.
        """
        return number


#: The ``processes`` of an objective that this process evaluates alone.
ALONE = Processes()
