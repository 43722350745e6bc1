"""Bad shots: those whose numbers are not finite, and what they are called.

A shot is bad when what it contributes is NaN or infinite, alone and for the second time.
An evaluation that meets bad shots raises; nothing is dropped within one. A caller may go
on with ``WaveformMisfit.without``, which is another sum: its values are not to be
compared with those of the sum before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hvpopt import checks
from hvpopt.errors import BadShotError


@dataclass(frozen=True)
class ShotNames:
    """What the shots of a misfit are called, and what may become of bad ones."""

    numbers: tuple[int, ...]  # of each shot in the survey that the caller made
    unit: str = "shot"
    may_drop: bool = False  # True if a minimiser may go on without bad shots
    # True if other shots are evaluated elsewhere: all of these may then be bad
    some: bool = False
    # of each shot in the weights of the data misfit; the numbers where None
    rows: tuple[int, ...] | None = None

    def select(self, shots: Sequence[int], *, some: bool) -> ShotNames:
        """Return those of some shots, of a sum that has others or not."""
        numbers = tuple(self.numbers[shot] for shot in shots)
        rows = None if self.rows is None else tuple(self.rows[shot] for shot in shots)
        return replace(self, numbers=numbers, some=some, rows=rows)

    def renamed(self, numbers: Sequence[int]) -> ShotNames:
        """Return other names for these shots, as part of a larger sum."""
        rows = self.numbers if self.rows is None else self.rows
        return replace(self, numbers=tuple(numbers), some=True, rows=rows)

    def rest(self, parts: Mapping[str, str], owner: str) -> list[int]:
        """Return the indices of the shots that are left without some."""
        # ``parts`` has why each shot is dropped, by name: {"shot 3": "the misfit is nan"}
        checks.instance("parts", parts, Mapping, "pass a dict such as {'shot 3': why}")
        indices = {f"{self.unit} {n}": i for i, n in enumerate(self.numbers)}
        if unknown := sorted(map(str, set(parts) - set(indices))):
            raise ValueError(
                f"{owner!r} has no {', '.join(unknown)}; its {self.unit}s are "
                f"{list(self.numbers)}"
            )
        left = [i for name, i in indices.items() if name not in parts]
        if not left:
            raise ValueError(f"{owner!r} without {sorted(parts)} would have no shot")
        return left

    def of(self, shots: Sequence[int] | None) -> list[int]:
        """Return the numbers of some shots. Default all."""
        every = range(len(self.numbers))
        return [self.numbers[shot] for shot in (every if shots is None else shots)]

    def rows_of(self, shots: Sequence[int] | None) -> list[int]:
        """Return the rows of some shots in the data misfit's weights. Default all."""
        rows = self.numbers if self.rows is None else self.rows
        return list(rows) if shots is None else [rows[shot] for shot in shots]

    def error(
        self,
        quantity: str,
        bad: Mapping[int, str],
        group: Sequence[int],
        parameter: str | None,
    ) -> BadShotError:
        """Return the error that names bad shots, by index, and what was wrong."""
        # ``group`` ran together when the first of them was met
        return BadShotError(
            quantity,
            {self.numbers[shot]: why for shot, why in bad.items()},
            group=self.of(group),
            parameter=parameter,
            unit=self.unit,
            to_blame=self.some or len(bad) < len(self.numbers),
            may_drop=self.may_drop and self.unit == "shot",
        )
