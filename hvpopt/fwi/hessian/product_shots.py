"""ProductShots: what serves the products of the next linearisation."""

from __future__ import annotations

from collections.abc import Sequence

from hvpopt.fwi.hessian.encoding import why_not_encoded
from hvpopt.fwi.hessian.subsets import ShotSubset
from hvpopt.fwi.hessian.waveforms import Waveforms
from hvpopt.fwi.survey.arguments import whole


class ProductShots:
    """All shots, some, others each time, or all of them encoded.

    Args:
        waveforms: The misfit in its parts.
        which: As ``WaveformMisfit`` takes it for ``product_shots``.
        size: Likewise for ``shots_per_product``.
        seed: Of what is random.

    Attributes:
        n_encoded: Encoded shots in a product; 0 where shots are not encoded.

    Raises:
        ValueError: For shots that are not in the survey, a size that does not fit, or
            shots that cannot be encoded.
    """

    def __init__(
        self,
        waveforms: Waveforms,
        which: str | Sequence[int] | None,
        size: int | None,
        seed: int,
    ) -> None:
        self._n_shots = waveforms.survey.n_shots
        self._seed, self._drawn, self.n_encoded = seed, 0, 0
        if isinstance(which, str) and which == "encoded":
            self.n_encoded = _check_encoded(waveforms, size)
            which = size = None
        self._which, self._size = which, size
        self._live = list(range(self._n_shots))
        self._subset = ShotSubset(self._n_shots, which, size, seed)

    def next(self, live: list[int]) -> list[int]:
        """Return the shots of the next linearisation.

        Args:
            live: Those that take part in the misfit.

        Raises:
            ValueError: If none of fixed shots is left.
        """
        self._restrict(live)
        return [self._live[place] for place in self._subset.next()]

    def next_seed(self) -> int:
        """Return the seed of the next random signs."""
        self._drawn += 1
        return self._seed + self._drawn

    def check(self, shots: Sequence[int], live: list[int]) -> list[int]:
        """Return shots that a caller asked for, in order.

        Args:
            shots: Indices.
            live: Those that take part in the misfit.

        Raises:
            ValueError: If there is none, one repeats, is not in the survey or dropped.
        """
        taken = ShotSubset(self._n_shots, None, None, 0).check(shots)
        if gone := set(taken) - set(live):
            raise ValueError(f"shots {sorted(gone)} were dropped; give others")
        return taken

    def _restrict(self, live: list[int]) -> None:
        """Choose among the shots that are left, as if the survey had no others."""
        if live == self._live:
            return
        self._live = list(live)
        which, size = self._which, self._size
        if which is not None and not isinstance(which, str):
            which = [place for place, shot in enumerate(live) if shot in set(which)]
            if not which:
                raise ValueError(f"all of product_shots={self._which} were dropped")
        if size is not None:
            size = min(size, len(live))
        drawn = self._subset._drawn
        self._subset = ShotSubset(len(live), which, size, self._seed)
        self._subset._drawn = drawn

    def state(self) -> dict[str, int]:
        """Return how much has been drawn."""
        return {"codes": self._drawn, "subsets": self._subset._drawn}

    def restore(self, state: dict[str, int], live: list[int]) -> None:
        """Go back to a state.

        Args:
            state: From ``state``.
            live: Those that take part in the misfit.
        """
        self._restrict(live)
        self._drawn, self._subset._drawn = state["codes"], state["subsets"]


def _check_encoded(waveforms: Waveforms, n_encoded: int | None) -> int:
    reason = why_not_encoded(waveforms)
    if reason:
        raise ValueError(f"product_shots is 'encoded', but {reason}")
    if n_encoded is not None:
        n_encoded = whole("shots_per_product", n_encoded, 1, waveforms.survey.n_shots)
    if n_encoded is None:
        raise ValueError(
            f"shots_per_product is {n_encoded}; with product_shots='encoded' it is "
            f"the number of encoded shots, from 1 to {waveforms.survey.n_shots}"
        )
    return n_encoded
