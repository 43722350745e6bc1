"""Transforms of the data, applied alike to simulated and observed.

With a transform T the misfit is ``ℓ(T d)``: its gradient in the data is ``Tᵀ ∇ℓ`` and its
second derivative ``Tᵀ ∇²ℓ T``; where ℓ is a sum of squares, Gauss-Newton takes
``2 (R T J)ᵀ R T J`` with R the Jacobian of what is squared. T is linear: these are exact.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from hvpopt import checks
from hvpopt.fwi.data.data_misfits import copied
from hvpopt.fwi.survey.acquisition import Shots
from hvpopt.fwi.survey.survey import Data, Survey
from hvpopt.model._copies import same
from hvpopt.operators._autodiff import vjp

#: How a transform acts on the data of some shots of the survey that it was fitted to.
Apply: TypeAlias = "Callable[[Data, Shots], Data]"


class DataTransform(ABC):
    """A linear map of the data, the same for simulated and observed.

    Attributes:
        name: For errors.
        multiplies: True if it multiplies each sample by a number, and no more. Default
            False.
    """

    name: str = "transform"
    multiplies: bool = False

    @property
    def same_for_every_shot(self) -> bool:
        """True if it does the same to every shot, so that shots may be mixed."""
        return False

    @abstractmethod
    def fit(self, survey: Survey) -> Apply:
        """Return how it acts on a survey's data, ``apply(data, shots)``.

        ``data`` are by channel, ``[shot, receiver, time]``, the rows of ``shots``: a list
        of indices in the survey, or None for all. ``apply`` returns as many, in the same
        shapes, linear in the data and differentiable.

        Args:
            survey: The acquisition, of all shots.

        Raises:
            ValueError: If it does not fit the survey.
        """


@dataclass(frozen=True)
class Processing:
    """Transforms in their order, fitted to a survey: T; ``steps`` are how they act."""

    transforms: tuple[DataTransform, ...] = ()
    steps: tuple[Apply, ...] = ()

    @classmethod
    def fitted(cls, transforms: Sequence[DataTransform], survey: Survey) -> Processing:
        """Return transforms fitted to a survey."""
        if isinstance(transforms, DataTransform) or not isinstance(transforms, Sequence):
            raise TypeError(
                f"transforms is {checks.kind(transforms)}; give a list of them, such as "
                "[hvpopt.fwi.BandFilter(high=6.0)]"
            )
        for transform in transforms:
            if isinstance(transform, type) and issubclass(transform, DataTransform):
                raise TypeError(
                    f"a transform is {checks.kind(transform)}; pass an instance, "
                    f"{transform.__name__}(...)"
                )
            checks.instance(
                "a transform", transform, DataTransform, "pass a DataTransform"
            )
        return cls(tuple(transforms), tuple(one.fit(survey) for one in transforms))

    def then(self, other: Processing) -> Processing:
        """Return these transforms and, after them, others."""
        return Processing(self.transforms + other.transforms, self.steps + other.steps)

    def __call__(self, data: Data, shots: Shots = None) -> Data:
        """Return T d for the rows of some shots, None for all; differentiable."""
        for step in self.steps:
            data = step(data, shots)
        return data

    def of_observed(self, observed: Data) -> Data:
        """Return the observed data as the misfit compares them; the given ones stay."""
        # A ValueError tells of a transform that writes to its data, changes shapes, is
        # not linear, carries no graph or mixes shots, and of data of which nothing is
        # left.
        if not self.steps:
            return observed
        for place, step in enumerate(self.steps):
            transform = self.transforms[place]
            _check_linear(transform.name, step, observed)
            given, observed = observed, step(observed, None)
            _check_rows(transform.name, step, given, observed)
            if _silent(observed) and not _silent(given):
                raise ValueError(
                    f"the {transform.name} leaves nothing of the observed data, every "
                    "sample is zero after it; times are in seconds, offsets in metres"
                )
        return {channel: d.detach() for channel, d in observed.items()}

    def why_not_same(self) -> str:
        """Return why T differs from shot to shot, a clause; empty where it does not."""
        for transform in self.transforms:
            if not transform.same_for_every_shot:
                return f"the {transform.name} may differ from shot to shot"
        return ""

    def transposed(
        self, simulated: Data, shots: Shots
    ) -> tuple[Data, Callable[[Data], Data]]:
        """Return T d without graph, and what applies Tᵀ to data like it."""
        leaves = {c: d.detach().requires_grad_() for c, d in simulated.items()}
        with torch.enable_grad():
            seen = self(leaves, shots)

        def back(data: Data) -> Data:
            weights = [data[channel] for channel in seen]
            pulled = vjp(
                list(seen.values()), list(leaves.values()), weights, retain_graph=True
            )
            return dict(zip(leaves, pulled, strict=True))

        return {channel: d.detach() for channel, d in seen.items()}, back


def _silent(data: Data) -> bool:
    return not any(bool(d.any()) for d in data.values())


def _check_rows(name: str, step: Apply, given: Data, whole: Data) -> None:
    """Raise ValueError unless the last shot alone is what it is among the others."""
    last = len(next(iter(given.values()))) - 1
    alone = step({channel: d[last:] for channel, d in given.items()}, [last])
    for channel, d in whole.items():
        error = float((alone[channel] - d[last:]).norm())
        # a filter that leaves little leaves rounding of what it was given
        scale = float(d[last:].norm() + given[channel][last:].norm())
        if not error <= torch.finfo(d.dtype).eps ** 0.5 * scale:
            raise ValueError(
                f"the {name} makes of a shot alone something else than among others, so "
                "that results would depend on the groups; act on each shot by itself, "
                "and take the rows of `shots` of what differs from shot to shot"
            )


def _check_linear(name: str, step: Apply, observed: Data) -> None:
    """Raise ValueError unless a transform of the first shot is linear, with a graph."""
    generator = torch.Generator().manual_seed(0)
    first = {channel: d[:1] for channel, d in observed.items()}
    noise = {}
    for channel, d in first.items():
        size = float(d.abs().max()) or 1.0
        drawn = torch.randn(d.shape, generator=generator, dtype=d.dtype)
        noise[channel] = size * drawn.to(d.device)
    leaves = {c: (d + noise[c]).requires_grad_() for c, d in first.items()}
    parts = []
    for some in (first, noise):
        given = copied(some)
        parts.append(step(given, [0]))
        if not all(same(given[c], d) for c, d in some.items()):
            raise ValueError(
                f"the {name} writes to the data that it is given; return new tensors, or "
                "work on d.clone()"
            )
    with torch.enable_grad():
        total = step(leaves, [0])
    if not isinstance(total, Mapping) or set(total) != set(first):
        found = list(total) if isinstance(total, Mapping) else checks.kind(total)
        raise ValueError(
            f"the {name} returned {found}; it must return a dict of the channels "
            f"{list(first)}"
        )
    for channel, d in first.items():
        if total[channel].shape != d.shape:
            raise ValueError(
                f"the {name} returned {tuple(total[channel].shape)} for channel "
                f"{channel!r} of shape {tuple(d.shape)}; it must keep shapes"
            )
        if not total[channel].requires_grad:
            raise ValueError(
                f"the {name} returned data that carry no graph; use torch operations "
                "alone, without .detach(), .numpy() or torch.no_grad()"
            )
        added = parts[0][channel] + parts[1][channel]
        error = float((total[channel].detach() - added).norm())
        scale = float(added.norm() + d.norm() + noise[channel].norm())
        if not error <= torch.finfo(d.dtype).eps ** 0.5 * scale:
            raise ValueError(
                f"the {name} is not linear in the data: of a sum it does not make the "
                "sum of what it makes of each; call it within a misfit function instead"
            )
