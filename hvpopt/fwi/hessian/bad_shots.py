"""Bad shots: those whose numbers are not finite, and what becomes of them.

A shot is bad when what it contributes is NaN or infinite, alone and for the second time.
Where the caller allows it, bad shots are dropped: from then on value, gradient and
products are those of the survey without them, normalised by the data that are left.

A minimiser must never compare a value with a shot to one without it. Therefore no shot is
dropped in a trial, whose step is shortened instead; only if all trials fail is the point
that they left evaluated once more, and what is bad there dropped. At a new point value
and gradient are both evaluated again without the shot before anything is compared to
them. A product belongs to a point whose value is known already: it drops the shot and
raises ``ShotDropped``, for the caller to evaluate that point again.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping, Sequence

from hvpopt.fwi.data.data_misfits import Constants, DataMisfit, _Weighted
from hvpopt.fwi.survey.acquisition import take
from hvpopt.fwi.survey.survey import Data
from hvpopt.methods.points import SumChanged, in_trial

logger = logging.getLogger(__name__)


class BadShotError(FloatingPointError):
    """A value, gradient or product is not finite, and these shots are why.

    Args:
        quantity: ``"value"``, ``"gradient"`` or ``"product"``.
        reasons: What was wrong, a phrase for each bad shot.
        group: Shots that ran together when the first of them was met.
        parameter: The propagator's model (or, by double backprop, the unknown) whose
            derivative is not finite; None where the value is not.
        unit: What the indices count. Default ``"shot"``.
        to_blame: False if every shot failed, so that the model or the direction is the
            likely cause rather than a shot.

    Attributes:
        quantity: As given.
        reasons: As given.
        shots: Their indices in the survey, in order.
        group: As given.
        parameter: As given.
        to_blame: As given.
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
    ) -> None:
        self.quantity = quantity
        self.reasons = dict(sorted(reasons.items()))
        self.shots = list(self.reasons)
        self.group = list(group)
        self.parameter = parameter
        self.to_blame = to_blame
        self.unit = unit
        super().__init__(self._sentence())

    def _sentence(self) -> str:
        told = "; ".join(f"{self.unit} {s}: {why}" for s, why in self.reasons.items())
        sentence = f"the {self.quantity} is not finite, and was not when repeated: {told}"
        if len(self.group) > 1:
            sentence += f" (met in the group of {self.unit}s {self.group})"
        if not self.to_blame:
            return f"{sentence}; every shot fails, so look at the model or the direction"
        if self.unit == "shot":
            sentence += (
                "; mend or leave out such shots, or allow it with on_bad_shot='drop'"
            )
        return sentence


class ShotDropped(BadShotError, SumChanged):  # noqa: N818 - a signal to evaluate again
    """A product's bad shots were dropped: what was known of the point is of another sum.

    Evaluate value, gradient and Hessian again. Arguments and attributes are those of
    ``BadShotError``.
    """

    def _sentence(self) -> str:
        return (
            f"dropped in a {self.quantity}: {', '.join(map(str, self.shots))}; the "
            "objective is the sum of the other shots from now on: evaluate value, "
            "gradient and Hessian again before comparing with them"
        )


class LiveShots:
    """Which shots still take part.

    Args:
        n_shots: Of the survey.
        on_bad_shot: ``"raise"`` or ``"drop"``.

    Attributes:
        indices: Those that take part, in order.
        reasons: What failed, for each shot that was dropped.

    Raises:
        ValueError: For another ``on_bad_shot``.
    """

    def __init__(self, n_shots: int, on_bad_shot: str) -> None:
        if on_bad_shot not in ("raise", "drop"):
            raise ValueError(
                f"on_bad_shot is {on_bad_shot!r}; it must be 'raise' or 'drop'"
            )
        self.may_drop = on_bad_shot == "drop"
        self.indices = list(range(n_shots))
        self.reasons: dict[int, str] = {}

    @property
    def dropping(self) -> bool:
        """True if a bad shot met now is dropped: never in a trial."""
        return self.may_drop and not in_trial()

    def drop(self, reasons: Mapping[int, str]) -> None:
        """Drop shots, warning once for each.

        Args:
            reasons: What failed, for each shot.

        Raises:
            ValueError: If no shot would be left, or one is not in the survey.
        """
        known = {*self.indices, *self.reasons}
        if unknown := set(reasons) - known:
            raise ValueError(
                f"shots {sorted(unknown)} are not in the survey: it has 0 to {max(known)}"
            )
        left = [shot for shot in self.indices if shot not in reasons]
        if not left:
            raise ValueError(f"dropping shots {sorted(reasons)} would leave none")
        for shot in sorted(set(reasons) - set(self.reasons)):
            self.reasons[shot] = reasons[shot]
            message = (
                f"shot {shot} is left out of the misfit from now on: {reasons[shot]}"
            )
            logger.warning(message)
            warnings.warn(message, RuntimeWarning, stacklevel=4)
        self.indices = left


def constants_without(misfit: DataMisfit, observed: Data, live: list[int]) -> Constants:
    """Return what normalises a misfit of some shots alone.

    Args:
        misfit: The data misfit.
        observed: By channel, every shot.
        live: Shots that take part.
    """
    if isinstance(misfit, _Weighted):
        # weights enter no constant, and those by shot fit the whole survey only
        misfit = copy.copy(misfit)
        misfit._traces = misfit._samples = None
    return misfit.take_constants(
        {channel: take(d, live) for channel, d in observed.items()}
    )
