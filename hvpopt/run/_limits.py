"""The ways out of a run that has not converged: limits, signals, refusals."""

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

#: Sizes of a flat model, or one over them, from which on it is looked whether the
#: curvatures that belong to it are numbers.
EXTREME = 1e100


@dataclass(frozen=True)
class Limits:
    """What a run may spend, and when it has converged; see ``minimize``.

    Attributes:
        max_iter: Steps.
        max_products: Hessian-vector products.
        max_seconds: Of this process.
        gtol: Relative norm of the projected gradient, and size of the next step.
        certify: Certify a minimum by λ_min.

    Raises:
        TypeError: For what is no number.
        ValueError: For a number out of range.
    """

    max_iter: float
    max_products: float
    max_seconds: float
    gtol: float
    certify: bool = False

    def __post_init__(self) -> None:
        checks.put(
            self,
            max_iter=checks.limit("max_iter", self.max_iter),
            max_products=checks.limit("max_products", self.max_products),
            max_seconds=checks.number("max_seconds", self.max_seconds, least=0.0),
            gtol=checks.gtol(self.gtol),
            certify=checks.flag("certify", self.certify),
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


class Watch:
    """Looks at clocks and signals, and tells every process of a run the same.

    With several processes both questions are messages: all must ask them alike.

    Args:
        max_seconds: Of this process.
        listener: Notes signals.
        processes: Those of the run.

    Attributes:
        deadline: When ``time.monotonic()`` passes this, seconds, the run ends.
    """

    def __init__(
        self, max_seconds: float, listener: SignalListener, processes: Processes
    ) -> None:
        self.deadline = time.monotonic() + max_seconds
        self._listener, self._processes = listener, processes

    def raise_if_signalled(self) -> None:
        """Raise Stop, with the signal's own status, if a process received one."""
        received = self._processes.largest(self._listener.received or 0)
        if received:
            if self._listener.received is None:  # that of another process of the run
                self._listener.note(signal.Signals(int(received)))
            self._listener.told = True
            terminated = received == signal.SIGTERM
            raise Stop(Status.TERMINATED if terminated else Status.INTERRUPTED)

    def late(self, spare: float = 0.0) -> bool:
        """Return True once less time than ``spare``, seconds, is left to a process."""
        if self.deadline == math.inf:
            return False
        return bool(self._processes.largest(time.monotonic() > self.deadline - spare))


class CallbackError(Exception):
    """Carries what the caller's own callback raised, which is not the loss's failure.

    Args:
        error: What it raised.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class RefusedError(CallbackError):
    """Carries the error for a state of the caller's own method that cannot be saved.

    It ends the run where that is first known, before more is spent on it.
    """


def check_repeatable(first: float, again: float, eps: float) -> None:
    """Refuse a loss that changes from call to call.

    Args:
        first: The loss at the start.
        again: The same.
        eps: Machine epsilon of the model's dtype; the two may differ by its root.

    Raises:
        ValueError: If they differ.
    """
    # threads may add in another order; a random loss differs by far more
    if abs(first - again) > math.sqrt(eps) * max(abs(first), abs(again)):
        raise ValueError(
            f"the loss is not deterministic: two calls at the start gave {first!r} and "
            f"{again!r}; fix its seed, or use model.eval() for a network"
        )


def check_range(vector: Tensor, gradient: Tensor) -> None:
    """Refuse unknowns so large or so small that no curvature of theirs is a number.

    Args:
        vector: The flat starting point ``[n]``.
        gradient: The flat gradient there ``[n]``.

    Raises:
        ValueError: If its size is over 1e100 or under 1e-100, and the gradient divided by
            it underflows or overflows float64.
    """
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
