"""Dropping: a shot that is bad on the rank that runs it is dropped by all of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from hvpopt.distributed.exchange import Exchange
from hvpopt.distributed.messages import RankError
from hvpopt.distributed.part import MisfitOfShots
from hvpopt.fwi.bad_shots import BadShotError
from hvpopt.newton.problem import in_trial


@dataclass(frozen=True)
class Dropped:
    """What was dropped after a sum that failed.

    Attributes:
        reasons: What failed, for each shot; empty if the sum's error is to be raised.
        propagations: That all ranks spent on the sum.
    """

    reasons: dict[int, str] = field(default_factory=dict)
    propagations: int = 0


class Dropping:
    """Agrees with the other ranks on what to drop, as one process would decide it.

    Args:
        part: This rank's, which drops nothing of its own accord.
        exchange: With the other ranks.
        on_bad_shot: As for ``WaveformMisfit``.
    """

    def __init__(self, part: MisfitOfShots, exchange: Exchange, on_bad_shot: str) -> None:
        self.on_bad_shot = on_bad_shot
        self._part, self._exchange = part, exchange

    def settle(self, error: Exception, spent: int) -> Dropped:
        """Drop what any rank found bad, where that is allowed; two messages.

        Every rank must call it when a sum has failed.

        Args:
            error: What the sum raised here: on every rank its own, or a RankError.
            spent: Propagations of this rank for the sum.

        Returns:
            What was dropped.

        Raises:
            BadShotError: If every shot of all ranks fails, so that none is to blame.
        """
        if self.on_bad_shot != "drop" or self._exchange.size == 1 or in_trial():
            return Dropped()
        if isinstance(error, RankError) and error.ends_run:
            return Dropped()
        own = error.__cause__ if isinstance(error, RankError) else error
        bad: tuple[str, dict[int, str]] = ("", {})
        if isinstance(own, BadShotError) and own.unit == "shot":
            bad = own.quantity, own.reasons
        texts = self._exchange.tell(json.dumps([*bad, spent]))
        told = [json.loads(text) for text in texts]
        found = {int(shot): why for _, some, _ in told for shot, why in some.items()}
        if not found:
            return Dropped()
        if found.keys() >= set(self._part.live_shots):
            name = next(name for name, _, _ in told if name)
            raise BadShotError(name, found, to_blame=False) from error
        self._part.drop(found)
        return Dropped(found, sum(spent for _, _, spent in told))
