"""Copies of models for a caller's functions, which may write to their arguments.

A function may work in place on its copy if autograd records the operation. Writes that
autograd does not record (``.data``, ``torch.no_grad()``) are refused: the value would
then belong to another point than the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from hvpopt.errors import WrittenError
from hvpopt.model.tensors import Model, call_loss, copy_model, named_tensors, rebuild


class GraphCopies:
    """Copies that are part of the graph of tensors, checked for writes after a call."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._given = list(tensors)
        with torch.enable_grad():
            self.tensors = [t.clone() for t in tensors]
        self._nodes: list[Node | None] = [t.grad_fn for t in self.tensors]

    def check(self, names: Iterable[str], what: str, cure: str) -> None:
        """Raise WrittenError if autograd did not record a write to a copy."""
        for name, given, copy, node in zip(
            names, self._given, self.tensors, self._nodes, strict=True
        ):
            if node is None or copy.grad_fn is not node:
                continue  # not differentiated, or written in place within the graph
            # under no_grad() the version grows even if no entry changes; a write to
            # .data does not change it
            if copy._version == 0 and same(given, copy):
                continue
            changed = int((given.detach() != copy.detach()).sum())
            raise WrittenError(
                f"{what} writes to {name!r} where autograd cannot see it, by .data or "
                f"under torch.no_grad() ({changed} of {given.numel()} entries changed "
                "here), so that its value belongs to another point than its gradient; "
                + cure
            )


def same(a: Tensor, b: Tensor) -> bool:
    """True if two tensors of one shape hold the same numbers, NaN included."""
    a, b = a.detach(), b.detach()
    return torch.equal(a, b) or torch.equal(a.nan_to_num(), b.nan_to_num())


def writes(
    function: Callable[..., Any], model: Model, what: str = "the loss"
) -> tuple[Any, bool]:
    """Call a function without a graph; return its result, and if it wrote to its copy."""
    copy = copy_model(model)
    with torch.no_grad():
        value: Any = call_loss(function, copy, what)
    pairs = zip(named_tensors(model).values(), named_tensors(copy).values(), strict=True)
    return value, not all(same(a, b) for a, b in pairs)


def call_with_graph(
    function: Callable[..., Any], model: Model, what: str, cure: str
) -> Any:
    """Call a function with copies of a model that are part of the model's graph."""
    named = named_tensors(model)
    copies = GraphCopies(list(named.values()))
    with torch.enable_grad():
        value: Any = call_loss(function, rebuild(model, copies.tensors), what)
    copies.check(named, what, cure)
    return value


def new_leaves(model: Model) -> list[Tensor]:
    """Return leaves for a graph, which share the model's memory; do not change them."""
    return [
        (t.clone() if t.is_inference() else t).detach().requires_grad_()
        for t in named_tensors(model).values()
    ]


def copied_leaves(model: Model) -> list[Tensor]:
    """Return leaves for a graph that share no memory with the model."""
    return [t.detach().clone().requires_grad_() for t in named_tensors(model).values()]
