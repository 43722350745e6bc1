"""Products with a Jacobian by reverse mode alone, differentiable with create_graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def vjp(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> list[Tensor]:
    """Return ``Jᵀ weights`` for each input; zero where no output depends on it."""
    # Outputs without a graph count as constant. ``retain_graph`` is by default as
    # ``create_graph``.
    pairs = [(o, w) for o, w in zip(outputs, weights, strict=True) if o.requires_grad]
    if not pairs:
        return [torch.zeros_like(i) for i in inputs]
    found = torch.autograd.grad(
        [o for o, _ in pairs],
        inputs,
        [w for _, w in pairs],
        create_graph=create_graph,
        retain_graph=retain_graph,
        allow_unused=True,
    )
    return [
        torch.zeros_like(i) if f is None else f
        for f, i in zip(found, inputs, strict=True)
    ]


def jvp(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    steps: Sequence[Tensor],
) -> list[Tensor]:
    """Return ``J steps`` by two reverse passes; not differentiable.

    ``Jᵀu`` is linear in ``u``, so its derivative in ``u`` along ``steps`` is ``J steps``
    (the double-backward trick). The graph of ``outputs`` is kept. Autograd's derivative
    of ``J steps`` is wrong for ``layer_norm`` and ``batch_norm``; take second derivatives
    as ``∇⟨Jᵀu, steps⟩``, by two calls of ``vjp``.
    """
    dummies = [torch.zeros_like(o, requires_grad=True) for o in outputs]
    with torch.enable_grad():
        back = vjp(outputs, inputs, dummies, create_graph=True)
    return vjp(back, dummies, steps, retain_graph=True)
