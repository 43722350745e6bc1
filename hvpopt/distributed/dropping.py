"""Dropping: a shot that is bad on the rank that runs it is dropped by all of them."""

from __future__ import annotations

import json

from hvpopt.distributed.exchange import Exchange, RankError
from hvpopt.distributed.part import MisfitOfShots
from hvpopt.fwi.hessian.bad_shots import BadShotError
from hvpopt.methods.points import in_trial


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

    def settle(self, error: Exception) -> dict[int, str]:
        """Drop what any rank found bad, where that is allowed; two messages.

        Every rank must call it when a sum has failed.

        Args:
            error: What the sum raised here: on every rank its own, or a RankError.

        Returns:
            What failed, for each shot dropped; nothing if the error is to be raised.

        Raises:
            BadShotError: If every shot of all ranks fails, so that none is to blame.
        """
        if self.on_bad_shot != "drop" or self._exchange.size == 1 or in_trial():
            return {}
        if isinstance(error, RankError) and error.ends_run:
            return {}
        own = error.__cause__ if isinstance(error, RankError) else error
        bad: tuple[str, dict[int, str]] = ("", {})
        if isinstance(own, BadShotError) and own.unit == "shot":
            bad = own.quantity, own.reasons
        texts = self._exchange.tell(json.dumps(bad))
        told = [json.loads(text) for text in texts]
        found = {int(shot): why for _, some in told for shot, why in some.items()}
        if not found:
            return {}
        if found.keys() >= set(self._part.live_shots):
            name = next(name for name, _ in told if name)
            raise BadShotError(name, found, to_blame=False) from error
        self._part.drop(found)
        return found
