"""PairsPreconditioner: an inverse Hessian from pairs of step and curvature.

Each pair (s, y) with y ≈ H s corrects a base preconditioner so that M⁻¹ y = s for the
newest pair (the BFGS update), by the two-loop recursion of Nocedal, Math. Comp. 35, 1980.
Pairs are made of steps and the changes of the gradient along them, which cost no product,
or of products with the Hessian.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.krylov.preconditioner import (
    Preconditioner,
    apply_base,
    checked_preconditioner,
)
from hvpopt.model._scale import euclidean_norm, unit_of

Pair = tuple[Tensor, Tensor]

#: Pairs are taken if s·y is above this times ‖s‖‖y‖. A matrix of condition number κ makes
#: none under 2/√κ, and the gradients of a float32 model round by about as much.
SAFE_CURVATURE = 1e-6


@dataclass(frozen=True, eq=False)
class PairsPreconditioner:
    """A base preconditioner, corrected by pairs (s, y ≈ H s) in the manner of L-BFGS.

    Positive definite whatever the pairs, since each has ``s·y > 0``.

    Args:
        pairs: ``(s, y)``, both ``[n]``, oldest first. Default none yet.
        memory: Pairs to keep; the oldest go first. Default 20.
        base: What the pairs correct. Default the identity.
        scale: Factor on the base: a positive number, or ``"auto"`` for
            ``s·y / (y · B y)`` of the newest pair, with B the base; it makes the sizes
            of base and pairs agree. Default ``"auto"``.

    Raises:
        TypeError: If a pair is no pair of tensors, or for another option of a wrong type.
        ValueError: If a pair's curvature is not safely positive, shapes differ, or
            numbers are out of range.
    """

    pairs: tuple[Pair, ...] = ()
    _: KW_ONLY
    memory: int = 20
    base: Preconditioner | None = None
    scale: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        checks.put(
            self,
            memory=checks.integer("memory", self.memory, least=1),
            base=checked_preconditioner(self.base, "base"),
        )
        if not isinstance(self.scale, str):
            says = "it must be positive or 'auto'"
            scale = checks.number(
                "scale", self.scale, above=0.0, below=float("inf"), says=says
            )
            checks.put(self, scale=scale)
        elif self.scale != "auto":
            raise ValueError(f"scale is {self.scale!r}; it must be positive or 'auto'")
        if not isinstance(self.pairs, (tuple, list)):
            raise TypeError(f"pairs is {checks.kind(self.pairs)}; pass pairs (s, y)")
        for pair in self.pairs:
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise TypeError(f"a pair is {checks.kind(pair)}; pass (s, y)")
            s, y = pair
            if not safely_positive(s, y):
                raise ValueError(
                    f"a pair has s·y = {float(s @ y):g}, which is not safely positive; "
                    "leave such pairs out"
                )
        object.__setattr__(self, "pairs", tuple(self.pairs)[-self.memory :])

    def apply(self, vector: Tensor) -> Tensor:
        """Return ``M⁻¹ vector``, ``[n]``."""
        checks.tensor("the vector", vector)
        if self.pairs and vector.shape != self.pairs[0][0].shape:
            raise ValueError(
                f"the vector has shape {tuple(vector.shape)}, the pairs "
                f"{tuple(self.pairs[0][0].shape)}"
            )
        q = vector
        alphas = []
        for (s, y), rho in zip(reversed(self.pairs), reversed(self._rhos), strict=True):
            alpha = rho * (s.to(q) @ q)
            q = q - alpha * y.to(q)
            alphas.append(alpha)
        q = self._factor * apply_base(self.base, q)
        for (s, y), rho, alpha in zip(
            self.pairs, self._rhos, reversed(alphas), strict=True
        ):
            q = q + (alpha - rho * (y.to(q) @ q)) * s.to(q)
        return q

    @cached_property
    def _rhos(self) -> list[float]:
        return [1.0 / float(s.double() @ y.double()) for s, y in self.pairs]

    @cached_property
    def _factor(self) -> float:
        if self.scale != "auto":
            return float(self.scale)
        if not self.pairs:
            return 1.0
        s, y = (vector.double() for vector in self.pairs[-1])
        unit = unit_of(y)
        y = y / unit
        return float(s @ y) / float(y @ apply_base(self.base, y)) / unit


def safely_positive(s: Tensor, y: Tensor) -> bool:
    """Return True if ``s·y``, of vectors ``[n]``, is positive by more than rounding."""
    checks.tensor("s", s)
    checks.tensor("y", y)
    if s.ndim != 1 or s.shape != y.shape:
        raise ValueError(
            f"a pair has shapes {tuple(s.shape)} and {tuple(y.shape)}; both must be [n]"
        )
    s, y = s.double(), y.double()
    curvature = float(s @ y)
    info = torch.finfo(torch.float64)
    # the update divides by it; it is not finite where an entry is not
    if not info.tiny <= curvature <= info.max / 4:
        return False
    return curvature / euclidean_norm(s) > SAFE_CURVATURE * euclidean_norm(y)
