"""Models drawn from a posterior of low rank."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hvpopt.analysis.estimate import Estimate
from hvpopt.model.tensors import Model, named_tensors, rebuild


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class PosteriorSamples(Estimate[Tensor]):
    """Models drawn from the posterior of low rank, whose variance is never too small.

    ``value`` has the samples as columns ``[n, k]``, deviations from the mean where no
    mean was given.

    Attributes:
        models: The samples, shaped like the model.
        rank: Rank of what is known of the data's information.
        remainder: Upper bound μ of what the data may say beyond it along any direction,
            relative to the prior, with probability ``confidence``: the variance of no
            functional is more than ``1 + μ`` times the true one. Infinity if it was not
            estimated.
    """

    models: list[Model]
    rank: int
    remainder: float


def sum_of(model: Model, step: Model) -> Model:
    """Return a model plus a step of its shape.

    Args:
        model: Whose tensors are added to.
        step: What is added.
    """
    pairs = zip(named_tensors(model).values(), named_tensors(step).values(), strict=True)
    return rebuild(model, [entry.detach() + change for entry, change in pairs])
