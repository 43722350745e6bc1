"""Preconditioners: symmetric positive definite approximations of an inverse Hessian.

One may be built on another, its ``base``: pairs of steps on low rank on a diagonal.
Those of this package are frozen dataclasses of tensors and numbers, so that a method
can keep them in its state from step to step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from hvpopt import checks


class Preconditioner(Protocol):
    """Anything that applies a symmetric positive definite ``M⁻¹`` to a flat vector."""

    def apply(self, vector: Tensor) -> Tensor:
        """Return ``M⁻¹ vector``, ``[n]``."""
        ...


def checked_preconditioner(
    preconditioner: object, name: str = "preconditioner"
) -> Preconditioner | None:
    """Return a preconditioner or None; raise TypeError for anything else."""
    use = "pass an object with apply(), such as a DiagonalPreconditioner"
    return checks.optional(checks.having, name, preconditioner, "apply", use)


def apply_base(base: Preconditioner | None, vector: Tensor) -> Tensor:
    """Return ``M⁻¹ vector``, ``[n]``, of a base; the vector itself where it is None."""
    if base is None:
        return vector
    what = f"what {type(base).__name__}.apply returned"
    return checks.tensor(what, base.apply(vector), tuple(vector.shape))


@dataclass(frozen=True, eq=False)
class DiagonalPreconditioner:
    """Division by a damped diagonal: ``M = diag(d) + damping · max(d)``.

    Args:
        diagonal: An estimate of the Hessian's diagonal ``[n]``. Negative entries count
            as zero. It is copied.
        damping: Floor relative to the largest entry. Default 1e-2.

    Attributes:
        diagonal: As given, without the damping.
        damping: As given.

    Raises:
        TypeError: If the diagonal is no real floating-point tensor, or the damping no
            number.
        ValueError: If the diagonal is not finite, has no positive entry, or the damping
            is not positive.
    """

    diagonal: Tensor
    _: KW_ONLY
    damping: float = 1e-2

    def __post_init__(self) -> None:
        diagonal = checks.tensor("the diagonal", self.diagonal)
        if (
            diagonal.ndim != 1
            or not diagonal.numel()
            or not bool(torch.isfinite(diagonal).all())
        ):
            raise ValueError(
                f"the diagonal must be a finite flat vector, got shape "
                f"{tuple(diagonal.shape)}"
            )
        largest = float(diagonal.max())
        if not largest > 0.0:
            raise ValueError(f"the diagonal's largest entry is {largest:g}, not positive")
        damping = checks.number("damping", self.damping, above=0.0, below=math.inf)
        checks.put(self, diagonal=diagonal.detach().clone(), damping=damping)
        if not bool(torch.isfinite(self.inverse).all()):
            raise ValueError(
                f"the diagonal's largest entry is {largest:g}, and with damping="
                f"{self.damping:g} its inverse leaves the range of {diagonal.dtype}; "
                "give it in float64, or scale the operator"
            )

    @cached_property
    def inverse(self) -> Tensor:
        """The diagonal of ``M⁻¹``, ``[n]``."""
        floor = self.damping * self.diagonal.max()
        return (self.diagonal.clamp(min=0.0) + floor).reciprocal()

    def apply(self, vector: Tensor) -> Tensor:
        """Return ``M⁻¹ vector``, ``[n]``."""
        checks.tensor("the vector", vector)
        if vector.shape != self.inverse.shape:
            raise ValueError(
                f"the vector has shape {tuple(vector.shape)}, the diagonal "
                f"{tuple(self.inverse.shape)}; estimate it in the space it is used in"
            )
        return vector * self.inverse.to(vector.dtype)


class RestrictedPreconditioner:
    """A preconditioner of all cells, used on some: ``R M⁻¹ Rᵀ``, still definite."""

    # R, ``restrict``, takes a vector [n] to the cells used; Rᵀ, ``extend``, is zero
    # elsewhere

    def __init__(
        self,
        preconditioner: Preconditioner,
        restrict: Callable[[Tensor], Tensor],
        extend: Callable[[Tensor], Tensor],
    ) -> None:
        self._preconditioner = preconditioner
        self._restrict = restrict
        self._extend = extend

    def apply(self, vector: Tensor) -> Tensor:
        """Return ``R M⁻¹ Rᵀ vector``."""
        return self._restrict(self._preconditioner.apply(self._extend(vector)))
