"""Errors that tell more than Python's own, all with one base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hvpopt.krylov.eigenvalue import EigenvalueEstimate

#: What a person can do who wants to minimise all the same.
GRADIENTS_ALONE = (
    "hvpopt.minimize without a method, or with "
    "hvpopt.QuasiNewton(initial=hvpopt.GradientScale()), needs gradients alone"
)


class HvpoptError(Exception):
    """The base of hvpopt's own errors, each of which is one of Python's kinds as well."""


class BadPartError(HvpoptError, FloatingPointError):
    """Parts of a sum are not finite; the sum without them may be.

    Args:
        message: A sentence.
        parts: Why each of these parts is bad, by the name that ``Objective.without``
            takes; empty where the sum must not go on without them.

    Attributes:
        parts: As given.
    """

    def __init__(self, message: str, parts: Mapping[str, str]) -> None:
        super().__init__(message)
        self.parts = dict(parts)

    def within(self, name: str) -> None:
        """Name the parts as those of a term of a larger sum, ``"name: part"``."""
        self.parts = {f"{name}: {part}": why for part, why in self.parts.items()}


class WrittenError(HvpoptError, ValueError):
    """A function has changed what it was given, unseen by autograd."""

    #: No trial of a shorter step mends that (see ``Problem``).
    ends_run = True


class SecondOrderError(HvpoptError, RuntimeError):
    """A loss has a gradient, but no second derivative that autograd can take.

    Args:
        cause: Why, and what to do: a clause that follows "no second derivative: ".
        said: What torch or deepwave said; may be empty.

    Attributes:
        cause: As given.
    """

    def __init__(self, cause: str, said: str = "") -> None:
        found = f" ({said})" if said else ""
        super().__init__(
            "the loss has a gradient but no second derivative, so no Hessian-vector "
            f"products: {cause}. {GRADIENTS_ALONE}{found}"
        )
        self.cause = cause

    def __reduce__(self) -> Any:
        # the message is made of the arguments, which pickling would take for the first
        return _restore, (self.cause, str(self))


def _restore(cause: str, message: str) -> SecondOrderError:
    error = SecondOrderError(cause)
    error.args = (message,)
    return error


class AsymmetryError(HvpoptError, ValueError):
    """Products are clearly not those of a symmetric operator.

    Args:
        message: What was seen.
        estimate: What the basis shows nevertheless, not converged.
    """

    def __init__(self, message: str, estimate: EigenvalueEstimate) -> None:
        super().__init__(message)
        self.estimate = estimate


class StateError(HvpoptError, ValueError):
    """A saved state that is refused; the message names the difference or the damage."""


class DamagedError(StateError):
    """A state file that is truncated or altered."""


class RankError(HvpoptError, RuntimeError):
    """A rank failed, is lost, or differs from the others; raised alike on every rank.

    Args:
        message: What happened.
        ranks: Those that it happened to.
        ends_run: True if no further sum is possible; False for a model that was refused.

    Attributes:
        ranks: As given; empty where that is not known.
        ends_run: As given.
    """

    def __init__(
        self, message: str, ranks: tuple[int, ...] = (), *, ends_run: bool = True
    ) -> None:
        super().__init__(message)
        self.ranks = ranks
        self.ends_run = ends_run


class BadShotError(BadPartError):
    """A value, gradient or product is not finite, and these shots are why.

    Args:
        quantity: ``"value"``, ``"gradient"`` or ``"product"``.
        reasons: What was wrong, a phrase for each bad shot.
        group: Shots that ran together when the first of them was met.
        parameter: The propagator's model (or, by double backprop, the unknown) whose
            derivative is not finite; None where the value is not.
        unit: What the numbers count. Default ``"shot"``.
        to_blame: False if every shot failed, so that the model or the direction is the
            likely cause rather than a shot.
        may_drop: True if a minimiser may go on without the shots.

    Attributes:
        quantity: As given.
        reasons: As given, in order of the shots.
        shots: Their numbers in the survey that the caller made, in order.
        group: As given.
        parameter: As given.
        unit: As given.
        to_blame: As given.
        parts: Why each shot is bad, by the name that ``WaveformMisfit.without`` takes
            (``"shot 3"``); empty unless a minimiser may go on without them.
    """

    def __init__(
        self,
        quantity: str,
        reasons: Mapping[int, str],
        *,
        group: Sequence[int] = (),
        parameter: str | None = None,
        unit: str = "shot",
        to_blame: bool = True,
        may_drop: bool = False,
    ) -> None:
        self.quantity = quantity
        self.reasons = dict(sorted(reasons.items()))
        self.shots = list(self.reasons)
        self.group = list(group)
        self.parameter = parameter
        self.to_blame = to_blame
        self.unit = unit
        named = {f"{unit} {shot}": why for shot, why in self.reasons.items()}
        parts = named if may_drop and to_blame else {}
        super().__init__(self._sentence(named, may_drop=may_drop), parts)

    def _sentence(self, named: Mapping[str, str], *, may_drop: bool) -> str:
        told = "; ".join(f"{name}: {why}" for name, why in named.items())
        sentence = f"the {self.quantity} is not finite, and was not when repeated: {told}"
        if len(self.group) > 1:
            sentence += f" (met in the group of {self.unit}s {self.group})"
        if not self.to_blame:
            return f"{sentence}; every shot fails, so look at the model or the direction"
        if may_drop:
            return (
                f"{sentence}; mend such shots, or go on with misfit.without(error.parts)"
            )
        if self.unit == "shot":
            sentence += (
                "; mend or leave out such shots, or allow it with on_bad_shot='drop'"
            )
        return sentence
