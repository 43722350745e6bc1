"""ShotMisfit: what waveform misfits of one process and of several have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeVar

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.fwi.survey.survey import Survey
from hvpopt.problem.objective import Objective

Misfit = TypeVar("Misfit", bound="ShotMisfit")


class ShotMisfit(Objective):
    """A waveform misfit as a sum over the shots of its survey, which can be sampled."""

    survey: Survey

    @abstractmethod
    def encode(self: Misfit, codes: Tensor) -> Misfit:
        """Return the misfit of simultaneous sources; see ``WaveformMisfit.encode``."""

    @abstractmethod
    def draw(self: Misfit, n_shots: int, *, seed: int = 0) -> Misfit:
        """Return the misfit of some drawn shots; see ``WaveformMisfit.draw``."""

    @abstractmethod
    def why_not_encoded(self) -> str:
        """Return why the shots cannot be encoded; empty where they can."""

    def sample(self: Misfit, size: int, *, seed: int = 0) -> Misfit:
        """Return the misfit of a sample of shots, whose mean over seeds is this misfit.

        Of encoded shots with random signs where shots can be encoded, which takes an L2
        misfit without weights and a fixed spread; else of drawn ones.

        Args:
            size: Encoded or drawn shots, at most as many as there are shots.
            seed: Of the signs, or of the choice of shots.

        Raises:
            ValueError: If there are not so many shots.
        """
        size = checks.integer("size", size, least=1, most=self.n_parts)
        if self.why_not_encoded():
            return self.draw(size, seed=seed)
        return self.encode(random_codes(size, self.n_parts, seed))

    @property
    def has_gauss_newton(self) -> bool:
        """True, since every data misfit has some curvature in the data."""
        return True

    @property
    def n_parts(self) -> int:
        """Number of shots."""
        return self.survey.n_shots

    @property
    def encodes(self) -> bool:
        """True if a sample is of encoded shots; see ``sample``."""
        return not self.why_not_encoded()

    @property
    def gradient_propagations(self) -> int:
        """Two for each shot."""
        return 2 * self.n_parts

    @property
    def sketch_size(self) -> int:
        """1 where shots can be encoded, else a third of the shots, rounded up."""
        return 1 if self.encodes else -(-self.n_parts // 3)


def random_codes(n_encoded: int, n_shots: int, seed: int) -> Tensor:
    """Return random signs ``[encoded shot, shot]``, float64 on the CPU."""
    seed = checks.integer("seed", seed, least=0)
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (n_encoded, n_shots), generator=generator)
    return 2.0 * signs.double() - 1.0
