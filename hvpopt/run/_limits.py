"""Reasons to end a run that has not converged: limits, signals, unusable losses."""

from __future__ import annotations

import math
import signal
import sys
import time
from dataclasses import dataclass

from torch import Tensor

from hvpopt import checks
from hvpopt.model._scale import euclidean_norm
from hvpopt.problem.processes import Processes
from hvpopt.run.result import Status
from hvpopt.run.signals import SignalListener

#: Norm of a flat model above which, or below the reciprocal of which, ``check_range``
#: checks that curvatures are in the range of float64.
EXTREME = 1e100


@dataclass(frozen=True)
class Limits:
    """Limits and tolerances of a stage; see ``minimize``."""

    max_iter: float
    max_products: float
    gtol: float
    certify: bool = False

    def __post_init__(self) -> None:
        checks.put(
            self,
            max_iter=checks.limit("max_iter", self.max_iter),
            max_products=checks.limit("max_products", self.max_products),
            gtol=checks.gtol(self.gtol),
            certify=checks.flag("certify", self.certify),
        )


class Stop(BaseException):
    """Ends a run with a status, and text for its message.

    Derived from BaseException, so that a method or loss that catches Exception does not
    catch it.
    """

    def __init__(self, status: Status, detail: str = "") -> None:
        super().__init__(status.message)
        self.status = status
        self.detail = detail


class Watch:
    """Checks clocks and signals, with the same result in every process of a run.

    With several processes each check sends a message, so all processes must make the same
    calls. ``deadline`` is the ``time.monotonic()``, seconds, at which the run ends.
    """

    def __init__(
        self, max_seconds: float, listener: SignalListener, processes: Processes
    ) -> None:
        self.deadline = time.monotonic() + max_seconds
        self._listener, self._processes = listener, processes

    def raise_if_signalled(self) -> None:
        """Raise Stop, with the signal's status, if any process received a signal."""
        received = self._processes.largest(self._listener.received or 0)
        if received:
            if self._listener.received is None:  # another process received it
                self._listener.note(signal.Signals(int(received)))
            self._listener.told = True
            terminated = received == signal.SIGTERM
            raise Stop(Status.TERMINATED if terminated else Status.INTERRUPTED)

    def late(self, spare: float = 0.0) -> bool:
        """Return True if any process has less than ``spare`` seconds left."""
        if self.deadline == math.inf:
            return False
        return bool(self._processes.largest(time.monotonic() > self.deadline - spare))


class CallbackError(Exception):
    """Wraps an exception of the caller's callback, to distinguish it from the loss's."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class RefusedError(CallbackError):
    """Wraps the error for a state of the caller's method that cannot be saved."""

    # It ends the run within its first steps, when little is lost.


def check_repeatable(first: float, again: float, eps: float) -> None:
    """Raise ValueError if a loss differs at one model by more than ``√eps``, relative."""
    # another order of sums changes less than this, random numbers far more
    if abs(first - again) > math.sqrt(eps) * max(abs(first), abs(again)):
        raise ValueError(
            f"the loss is not deterministic: two calls at the start gave {first!r} and "
            f"{again!r}; fix its seed, or use model.eval() for a network"
        )


def check_range(vector: Tensor, gradient: Tensor) -> None:
    """Raise ValueError if curvatures would leave the range of float64."""
    # This is if the norm of ``vector`` is over 1e100 or under 1e-100, and the
    # gradient's norm divided by it underflows or overflows.
    size, steepness = euclidean_norm(vector), euclidean_norm(gradient)
    extreme = size > EXTREME or 0.0 < size < 1.0 / EXTREME
    if not extreme or steepness == 0.0:
        return
    curvature = steepness / size
    if not sys.float_info.min <= curvature < math.inf:
        raise ValueError(
            f"the starting model has norm {size:.2g} and the gradient {steepness:.2g}, "
            "in flat coordinates: curvatures, which are of the size of their quotient, "
            f"leave the range of float64; pass scale={size:.1g}, by which the unknowns "
            "are divided"
        )
