"""Which shots serve a product alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hvpopt.fwi.survey.arguments import indices, whole


class ShotSubset:
    """All shots, fixed ones, or others at each linearisation.

    A subset stays the same for all the products of one Hessian, or that would not be
    one linear operator. The k-th subset follows from the seed and k alone.

    Args:
        n_shots: Of the survey.
        which: None for all, a sequence of indices, ``"rotating"`` for consecutive blocks
            that go round, or ``"random"`` for draws without replacement.
        size: Shots in a rotating or random subset.
        seed: For ``"random"``.

    Raises:
        ValueError: For shots that are not in the survey, or a size that does not fit.
    """

    def __init__(
        self,
        n_shots: int,
        which: str | Sequence[int] | None,
        size: int | None,
        seed: int,
    ) -> None:
        self._n_shots, self._seed, self._size = n_shots, seed, size
        self._drawn = 0
        moving = which in ("rotating", "random") if isinstance(which, str) else False
        if isinstance(which, str) and not moving:
            raise ValueError(
                f"product_shots is {which!r}; it must be 'rotating', 'random', 'encoded' "
                "or indices"
            )
        if moving != (size is not None):
            raise ValueError(
                "shots_per_product goes with product_shots='rotating' or 'random'; got "
                f"shots_per_product={size} and product_shots={which!r}"
            )
        if size is not None:
            size = whole("shots_per_product", size, 1, n_shots)
        self._which = which
        self._fixed: list[int] | None = None
        if which is None:
            self._fixed = list(range(n_shots))
        elif not isinstance(which, str):
            self._fixed = self.check(which)

    def check(self, shots: Sequence[int]) -> list[int]:
        """Return shots in order.

        Args:
            shots: Indices.

        Returns:
            The same, sorted.

        Raises:
            ValueError: If there is none, one repeats, or one is not in the survey.
        """
        return indices("shots", shots, self._n_shots)

    def next(self) -> list[int]:
        """Return the shots of the next linearisation."""
        if self._fixed is not None:
            return self._fixed
        assert self._size is not None
        k, self._drawn = self._drawn, self._drawn + 1
        if self._which == "rotating":
            return sorted((k * self._size + i) % self._n_shots for i in range(self._size))
        generator = torch.Generator().manual_seed(self._seed + k)
        drawn = torch.randperm(self._n_shots, generator=generator)[: self._size]
        return sorted(drawn.tolist())
