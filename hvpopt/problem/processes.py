"""Processes: those that evaluate an objective together, and decide alike."""

from __future__ import annotations


class Processes:
    """One process or several that run the same loop; here one alone.

    Several must take the same decisions. What differs among them, clocks and signals,
    goes through ``largest`` first.

    Attributes:
        count: How many there are.
        is_main: True in the one that writes files and shows progress.
    """

    count: int = 1
    is_main: bool = True

    def largest(self, number: float) -> float:
        """Return the largest of the numbers that the processes give.

        With several it is a message, and every process must call it.

        Args:
            number: This process's.
        """
        return number


#: What an objective of this process alone has.
ALONE = Processes()
