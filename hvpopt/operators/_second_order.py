"""The error for a loss that has a gradient, but no second derivative.

Torch and deepwave raise a RuntimeError of their own for that, as a rule at the first
product; a function marked ``once_differentiable`` may also give wrong products without an
error. Here both become a SecondOrderError, which says what to change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hvpopt.errors import SecondOrderError

#: Phrases of torch 2.13 and deepwave 0.1.0, what they mean, and what to do.
_KNOWN = (
    (
        "double backward with sampled model gradients",
        "deepwave's compiled propagator has none where dt is above the CFL limit. Make "
        "the recordings in the loss by survey.simulate(v) of a hvpopt.fwi.Survey, which "
        "propagates at a stable step; or choose a smaller dt, or pass "
        'backend="eager" to deepwave (slower)',
    ),
    (
        "Second-order differentiation (double-backward",
        "the compiled backend of this deepwave propagator has none. Pass "
        'backend="eager" to it (slower)',
    ),
    (
        "does not currently support double backward",
        "torch.compile makes functions that can be differentiated once. Pass the "
        "function that was compiled instead",
    ),
    (
        "@once_differentiable",
        "an autograd function in it is marked once_differentiable. Write its backward in "
        "differentiable torch operations, and take the mark away",
    ),
    (
        "derivative for aten::",
        "torch has none for an operation in it. Write that one in other operations",
    ),
    (
        "does not require grad and does not have a grad_fn",
        "a backward in it is cut from the graph. Write it in differentiable torch "
        "operations, without .detach(), .data or torch.no_grad()",
    ),
)
#: Errors that have another cause than a missing derivative.
_OTHER = ("out of memory", "allocate memory", "DefaultCPUAllocator", "CUDA error")
#: All functions that the decorator makes share one code object.
_ONCE = once_differentiable(lambda *_: None).__code__


def as_second_order(
    error: RuntimeError, *, certain: bool = False
) -> SecondOrderError | None:
    """Return the SecondOrderError that an error stands for; None if it is another."""
    # ``certain``: the gradient itself is known to exist, so that whatever failed, other
    # than memory or the device, is its derivative.
    said = str(error)
    if isinstance(error, SecondOrderError) or hasattr(error, "ends_run"):
        return None
    for phrase, cause in _KNOWN:
        if phrase in said:
            return SecondOrderError(cause, _first_sentence(error))
    if certain and not any(phrase in said for phrase in _OTHER):
        return SecondOrderError(f"differentiating it failed ({_first_sentence(error)})")
    return None


@contextmanager
def second_derivatives(*, certain: bool = False) -> Iterator[None]:
    """Convert errors of a block that differentiates gradients, by as_second_order."""
    try:
        yield
    except RuntimeError as error:
        found = as_second_order(error, certain=certain)
        if found is None:
            raise
        raise found from error


def differentiable_gradient(
    value: Tensor, leaves: list[Tensor]
) -> tuple[Tensor | None, ...]:
    """Return a scalar's gradient with a graph, one tensor or None for each leaf."""
    # It raises SecondOrderError if only the plain gradient exists, or if products would
    # be wrong without an error.
    check_twice_differentiable(value, leaves)
    try:
        return torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
    except RuntimeError as error:
        found = as_second_order(error, certain=True)
        if found is None:
            raise
        try:
            torch.autograd.grad(value, leaves, allow_unused=True)
        except RuntimeError:
            raise error from None  # there is no gradient either
        raise found from error


def check_twice_differentiable(value: Tensor, leaves: Iterable[Tensor]) -> None:
    """Raise SecondOrderError if a graph contains a ``once_differentiable`` function."""
    # Torch raises for it only where the gradient that reaches the function depends on
    # the leaves. Elsewhere, as at the end of a loss, it takes the part for a constant.
    wanted = {id(leaf) for leaf in leaves}
    for node in _nodes(value.grad_fn):
        owner: Any = getattr(type(node), "_forward_cls", None)
        backward = getattr(owner, "backward", None)
        if getattr(backward, "__code__", None) is not _ONCE:
            continue
        if any(id(getattr(n, "variable", None)) in wanted for n in _nodes(node)):
            raise SecondOrderError(
                f"the autograd function {owner.__qualname__} in it is marked "
                "once_differentiable. Write its backward in differentiable torch "
                "operations, and take the mark away"
            )


def _nodes(root: Any) -> Iterator[Any]:
    """Yield the nodes of an autograd graph, each once."""
    seen = {root}
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        yield node
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                waiting.append(child)


def _first_sentence(error: Exception) -> str:
    words = " ".join(str(error).split())
    head = words.split(". ")[0]
    return f"{type(error).__name__}: {head if len(head) <= 300 else head[:297] + '...'}"
