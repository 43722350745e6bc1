"""The first vector of a Krylov space: a gradient, a random vector, or a mixture."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.model.scale import unit_of
from hvpopt.operators.symmetric import SymmetricOperator


def first_vector(
    operator: SymmetricOperator, start: Tensor | None, probe: float, seed: int
) -> tuple[Tensor, float]:
    """Return the unit vector q_1 of a Krylov space.

    Args:
        operator: Of the space.
        start: A vector ``[n]``; None for a random one.
        probe: Size of a random vector to add, relative to ``start``.
        seed: Of the random vector.

    Returns:
        q_1 = q/‖q‖ ``[n]`` in float64, and w/‖q‖ where w is the weight of its random
        part.

    Raises:
        ValueError: If ``start`` does not fit, is not finite, or is zero without probe.
    """
    n = operator.size
    if n == 0:
        raise ValueError("the operator has no rows; every cell is frozen or held")
    # float64 whatever the operator's dtype: orthogonality is worth the memory
    like = torch.empty(0, dtype=torch.float64, device=operator.device)
    vector = like.new_zeros(n)
    if start is not None:
        checks.tensor("the start", start, (n,))
        if start.device != operator.device:
            raise ValueError(
                f"the start is on {start.device}, the operator on {operator.device}; "
                "move it with .to()"
            )
        if not bool(torch.isfinite(start).all()):
            raise ValueError("the start has NaN or infinite entries")
        unit = unit_of(start)
        scaled = start.to(like) / unit
        length = float(scaled.norm())
        if length == 0.0 and probe == 0.0:
            raise ValueError(
                "the start is zero and spans no Krylov space; at a stationary point "
                "use a random start (start=None)"
            )
        if length > 0.0:
            vector += scaled / length
    weight = 1.0 if start is None else probe
    if weight:
        # drawn on the host, so that a seed means the same on every device
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(n, generator=generator, dtype=torch.float64)
        vector += noise.to(vector) * (weight / math.sqrt(n))
    length = float(vector.norm())
    return vector / length, weight / length
