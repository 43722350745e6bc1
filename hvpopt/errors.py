"""The exceptions that hvpopt raises, with one base class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hvpopt.krylov.eigenvalue import EigenvalueEstimate

#: How to minimise a loss that has no second derivative; ends a message.
GRADIENTS_ALONE = (
    "hvpopt.minimize without a method, or with "
    "hvpopt.QuasiNewton(initial=hvpopt.GradientScale()), needs gradients alone"
)


class HvpoptError(Exception):
    """The base class; every subclass also derives from a built-in exception."""

    def __reduce__(self) -> Any:
        # pickling calls the class with ``args``, which are here the message alone
        return _restored, (type(self), self.args, self.__dict__)


def _restored(
    kind: type[HvpoptError], args: tuple[Any, ...], held: dict[str, Any]
) -> Any:
    error = kind.__new__(kind, *args)
    error.__dict__.update(held)
    return error


class BadPartError(HvpoptError, FloatingPointError):
    """Parts of a sum are not finite; the sum without them may be.

    Attributes:
        parts: Why each bad part is bad, by the name that ``Objective.without`` takes;
            empty if the run must not continue without them.
    """

    def __init__(self, message: str, parts: Mapping[str, str]) -> None:
        super().__init__(message)
        self.parts = dict(parts)

    def within(self, name: str) -> None:
        """Prefix the names of the parts with that of a term, ``"name: part"``."""
        self.parts = {f"{name}: {part}": why for part, why in self.parts.items()}


class WrittenError(HvpoptError, ValueError):
    """A function has changed its argument in a way that autograd does not record."""

    #: A shorter trial step does not help, so the run ends (see ``Problem``).
    ends_run = True


class SecondOrderError(HvpoptError, RuntimeError):
    """A loss has a gradient, but no second derivative that autograd can take.

    Attributes:
        cause: Why, and what to do: a clause that follows "no second derivative: ".
    """

    def __init__(self, cause: str, said: str = "") -> None:
        found = f" ({said})" if said else ""
        super().__init__(
            "the loss has a gradient but no second derivative, so no Hessian-vector "
            f"products: {cause}. {GRADIENTS_ALONE}{found}"
        )
        self.cause = cause


class AsymmetryError(HvpoptError, ValueError):
    """Products are clearly not those of a symmetric operator.

    Attributes:
        estimate: The eigenvalue estimate from the basis so far, not converged.
    """

    def __init__(self, message: str, estimate: EigenvalueEstimate) -> None:
        super().__init__(message)
        self.estimate = estimate


class StateError(HvpoptError, ValueError):
    """A saved state cannot be used; the message names the difference or the damage."""


class DamagedError(StateError):
    """A state file is truncated or altered."""


class RankError(HvpoptError, RuntimeError):
    """A rank failed, is lost, or differs from the others; raised on every rank.

    Attributes:
        ranks: Numbers of the ranks concerned; empty for unknown.
        ends_run: True if no further sum is possible; False if a rank only refused a
            model.
    """

    def __init__(
        self, message: str, ranks: tuple[int, ...] = (), *, ends_run: bool = True
    ) -> None:
        super().__init__(message)
        self.ranks = ranks
        self.ends_run = ends_run


class BadShotError(BadPartError):
    """A value, gradient or product is not finite because of some shots.

    Attributes:
        quantity: ``"value"``, ``"gradient"`` or ``"product"``.
        reasons: What is wrong with each bad shot, by its number, in order of the shots.
        shots: Numbers of the bad shots in the caller's survey, ascending.
        group: Shots that ran together when the first bad one was found.
        parameter: The propagator's model (or, by double backprop, the unknown) whose
            derivative is not finite; None if the value is not finite.
        unit: What a number in ``reasons`` counts, ``"shot"`` by default.
        to_blame: False if every shot failed, so that the model or the direction is the
            likely cause rather than a shot.
        parts: Why each shot is bad, by the name that ``WaveformMisfit.without`` takes
            (``"shot 3"``); empty unless a minimiser may continue without them.
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
        causes = "; ".join(f"{name}: {why}" for name, why in named.items())
        sentence = (
            f"the {self.quantity} is not finite, and was not when repeated: {causes}"
        )
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
