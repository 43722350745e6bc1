"""The ways out of a run that has not converged: limits, signals, refusals."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from hvpopt.restart.signals import SignalListener
from hvpopt.result import Status


@dataclass(frozen=True)
class Limits:
    """What a run may spend, and when it has converged; see ``minimize``.

    Attributes:
        max_iter: Steps.
        max_products: Hessian-vector products.
        max_seconds: Of this process.
        gtol: Relative norm of the projected gradient.

    Raises:
        ValueError: For a number out of range.
    """

    max_iter: int
    max_products: float
    max_seconds: float
    gtol: float

    def __post_init__(self) -> None:
        for name in ("max_products", "max_seconds", "max_iter"):
            limit = getattr(self, name)
            if not limit >= 0:
                raise ValueError(f"{name} is {limit}; it must be zero or positive")
        if not 0.0 <= self.gtol < 1.0:
            raise ValueError(
                f"gtol is {self.gtol}; it is relative and must lie in [0, 1)"
            )


class Stop(BaseException):
    """Carries the status that ends a run, and what to add to its sentence.

    Not an Exception, so that it passes through a method or a loss that handles those.

    Args:
        status: Why.
        detail: What more there is to say.
    """

    def __init__(self, status: Status, detail: str = "") -> None:
        super().__init__(status.message)
        self.status = status
        self.detail = detail


def heed(listener: SignalListener) -> None:
    """Raise Stop if a signal was received.

    Args:
        listener: Of the run.

    Raises:
        Stop: With the signal's own status.
    """
    if listener.received is not None:
        terminated = listener.received == signal.SIGTERM
        raise Stop(Status.TERMINATED if terminated else Status.INTERRUPTED)


class CallbackError(Exception):
    """Carries what the caller's own callback raised, which is not the loss's failure.

    Args:
        error: What it raised.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def check_repeatable(first: float, again: float) -> None:
    """Refuse a loss that changes from call to call.

    Args:
        first: The loss at the start.
        again: The same.

    Raises:
        ValueError: If they differ.
    """
    # threads may add in another order; a random loss differs by far more
    if abs(first - again) > 1e-4 * max(abs(first), abs(again)):
        raise ValueError(
            f"the loss is not deterministic: two calls at the start gave {first!r} and "
            f"{again!r}; fix its seed, or use model.eval() for a network"
        )
