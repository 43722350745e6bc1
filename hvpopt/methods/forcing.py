"""Forcing terms: how accurately each Newton step's linear system is to be solved.

A step h is accurate enough at ``‖H h + g‖ ≤ η ‖g‖``. Far from a minimum a larger η saves
products; near one, η must fall if convergence is to be faster than linear (Dembo,
Eisenstat and Steihaug, SIAM J. Numer. Anal. 19, 1982). Choice 2 of Eisenstat and Walker,
SIAM J. Sci. Comput. 17, 1996, follows the decrease of the gradient over the last step;
the square root follows its decrease since the first.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass

from hvpopt import checks

#: The safeguard of choice 2 acts while the last η keeps the new one above this.
SAFEGUARD = 0.1
#: Largest η where the gradient grew.
GROWN = 0.5


@dataclass(frozen=True)
class ForcingState:
    """What one linear solve leaves to the next."""

    tol: float  # η for the next linear solve
    first_norm: float | None = None  # ‖g‖ at the first point; None before the first step


class Forcing(ABC):
    """A rule for the relative tolerance of the next linear solve."""

    @abstractmethod
    def start(self) -> ForcingState:
        """Return the state of a run that has taken no step."""

    def tolerance(self, state: ForcingState) -> float:
        """Return η in (0, 1): solve until ``‖H h + g‖ ≤ η ‖g‖``.

        Args:
            state: From ``start`` or the last ``update``.
        """
        return state.tol

    @abstractmethod
    def update(self, state: ForcingState, before: float, after: float) -> ForcingState:
        """Return the state after an accepted step.

        Args:
            state: Of the step's linear solve.
            before: ``‖g‖`` where the step began, over the free cells.
            after: ``‖g‖`` where it ended.
        """


@dataclass(frozen=True)
class Constant(Forcing):
    """The same tolerance for every step: convergence is linear at this rate.

    Args:
        tol: η, in (0, 1).

    Raises:
        ValueError: If ``tol`` is not in (0, 1).
    """

    tol: float = 1e-2

    def __post_init__(self) -> None:
        checks.put(self, tol=checks.fraction("tol", self.tol))

    def start(self) -> ForcingState:
        """Return the state of a run that has taken no step."""
        return ForcingState(self.tol)

    def update(self, state: ForcingState, before: float, after: float) -> ForcingState:
        """Return the state after an accepted step: the same."""
        return state


@dataclass(frozen=True)
class EisenstatWalker2(Forcing):
    """Choice 2 of Eisenstat and Walker: how far the gradient's norm fell.

    ``η = γ (‖g⁺‖ / ‖g‖)^α``, and at least ``γ η_last^α`` while that is above 0.1. Where
    the gradient grew, η is that of the last solve, or 0.5 if that is smaller.
    Convergence has order α, or nearly 2 for α = 2.

    Args:
        gamma: γ, in (0, 1]. Default 0.9.
        alpha: α, in (1, 2]. Default 2.
        initial: η of the first solve. Default 0.5.
        cap: Largest η. Default 0.9.
        floor: Smallest η; products that round allow no less. Default 1e-8.

    Raises:
        ValueError: If one is out of its range, or not floor ≤ initial ≤ cap.
    """

    gamma: float = 0.9
    alpha: float = 2.0
    _: KW_ONLY
    initial: float = 0.5
    cap: float = 0.9
    floor: float = 1e-8

    def __post_init__(self) -> None:
        for name in ("initial", "cap", "floor"):
            checks.put(self, **{name: checks.fraction(name, getattr(self, name))})
        if not self.floor <= self.initial <= self.cap:
            raise ValueError(
                f"initial is {self.initial}; it must lie between floor={self.floor} and "
                f"cap={self.cap}"
            )
        checks.put(
            self,
            gamma=checks.number("gamma", self.gamma, above=0.0, most=1.0),
            alpha=checks.number("alpha", self.alpha, above=1.0, most=2.0),
        )

    def start(self) -> ForcingState:
        """Return the state of a run that has taken no step."""
        return ForcingState(self.initial)

    def update(self, state: ForcingState, before: float, after: float) -> ForcingState:
        """Return the state after an accepted step."""
        wanted = self._wanted(state.tol, before, after)
        return ForcingState(min(max(wanted, self.floor), self.cap))

    def _wanted(self, last: float, before: float, after: float) -> float:
        """Return η before floor and cap."""
        if not math.isfinite(after):
            return self.cap
        if not before > 0.0:
            # a gradient of zero leaves nothing to measure by, and no step to come
            return self.floor
        if after >= before:
            # no power that may overflow; and the cap would make the next solve a single
            # steepest-descent step, which can let the gradient grow again, for ever
            return min(last, GROWN)
        kept = self.gamma * math.pow(last, self.alpha)
        fallen = self.gamma * math.pow(after / before, self.alpha)
        return max(fallen, kept if kept > SAFEGUARD else 0.0)


@dataclass(frozen=True)
class SquareRoot(Forcing):
    """``η = min(cap, (‖g‖ / ‖g₀‖)^½)``, g₀ the gradient of the first point.

    Dembo and Steihaug, Math. Program. 26, 1983, with the exponent of Nocedal and
    Wright, Numerical Optimization, §7.1, made free of units. Superlinear of order 1.5.

    Args:
        cap: Largest η, and that of the first solve. Default 0.5.
        floor: Smallest η. Default 1e-8.

    Raises:
        ValueError: If they are not in (0, 1) with floor ≤ cap.
    """

    cap: float = 0.5
    floor: float = 1e-8

    def __post_init__(self) -> None:
        checks.put(
            self,
            cap=checks.fraction("cap", self.cap),
            floor=checks.fraction("floor", self.floor),
        )
        if self.floor > self.cap:
            raise ValueError(f"floor is {self.floor}, above cap={self.cap}")

    def start(self) -> ForcingState:
        """Return the state of a run that has taken no step."""
        return ForcingState(self.cap)

    def update(self, state: ForcingState, before: float, after: float) -> ForcingState:
        """Return the state after an accepted step."""
        first = before if state.first_norm is None else state.first_norm
        if not (first > 0.0 and math.isfinite(after)):
            return ForcingState(self.cap, first)
        wanted = math.sqrt(after / first)
        return ForcingState(min(max(wanted, self.floor), self.cap), first)


def as_forcing(tol: float | Forcing) -> Forcing:
    """Return a forcing term; a number in (0, 1) becomes a constant one."""
    if isinstance(tol, Forcing):
        return tol
    if not checks.is_number(tol):
        raise TypeError(
            f"tol is {checks.shown(tol)}; pass a number in (0, 1) or an instance "
            "such as hvpopt.EisenstatWalker2()"
        )
    return Constant(checks.fraction("tol", tol))
