"""MisfitOfShots: what one rank's shots contribute to a misfit over all of them."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from hvpopt.fwi.hessian.runner import GroupRunner
from hvpopt.fwi.misfit.waveform_misfit import WaveformMisfit
from hvpopt.model.counts import Counts
from hvpopt.model.tensors import Model, copy_model


class MisfitOfShots(WaveformMisfit):
    """Some shots of a misfit over all of them: a part of the same sum.

    Args:
        whole: Its parts are shared, its counts are not.
        mine: Indices; None for all that take part.
    """

    def __init__(self, whole: WaveformMisfit, mine: list[int] | None) -> None:
        # not built anew: the whole one has checked its data and knows its constants
        self.__dict__.update(vars(whole))
        self.counts = Counts()
        self._live = copy.deepcopy(whole._live)
        if mine is not None:
            # others must leave a shot out too, at the same time
            self._live.may_drop = False
        self._product_shots = copy.deepcopy(whole._product_shots)
        self._runner = GroupRunner(self._shrink, alone=mine is None)
        self._mine = mine

    @property
    def shots(self) -> list[int]:
        """Those of this part that take part."""
        live = self.live_shots
        return live if self._mine is None else [s for s in self._mine if s in set(live)]

    def groups(self, model: Model, shots: Sequence[int] | None = None) -> list[list[int]]:
        """Return the groups of some shots, by default of this part's."""
        return super().groups(model, self.shots if shots is None else shots)

    def seconds(self, model: Model, shots: Sequence[int]) -> Tensor:
        """Return the seconds of the value of some shots, one by one.

        Args:
            model: Where.
            shots: Indices; the first runs twice, since it also pays for libraries.

        Returns:
            Of every shot of the survey ``[n_shots]``, float64; 0 for the others.
        """
        seconds = torch.zeros(self.survey.n_shots, dtype=torch.float64)
        with torch.no_grad():
            models = self.waveforms.models(copy_model(model))
            for shot in [*shots[:1], *shots]:
                began = time.perf_counter()
                self.counts.tally(propagations=1)
                float(self.waveforms.loss(models, [shot]))
                seconds[shot] = time.perf_counter() - began
        return seconds
