"""HessianOperator: Hessian-vector products by double backprop.

The graph of the gradient is built once; each product is then one backward pass through
it (Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6, 1994).
FiniteDifferenceHessian differentiates gradients instead: an oracle that shares no code
with the graph.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.errors import SecondOrderError
from hvpopt.model._copies import call_with_graph, new_leaves
from hvpopt.model.counts import Counts
from hvpopt.model.space import ModelSpace, checked_space
from hvpopt.model.tensors import (
    Model,
    line_for_module,
    named_tensors,
    rebuild,
    warn_of_hooks,
)
from hvpopt.operators._autodiff import vjp
from hvpopt.operators._second_order import differentiable_gradient, second_derivatives
from hvpopt.operators.symmetric import SymmetricOperator

# A product through a long graph loses about a digit to accumulated rounding.
ROUNDING = 8.0
#: What to do about a loss that writes to its model unrecorded.
IN_PLACE = (
    "give limits of the model as bounds (lower=, upper=), and let the loss compute with "
    "a copy (v = v.clamp(0, 1) in place of v.data.clamp_(0, 1))"
)


def model_noise(model: Model) -> float:
    """Return the relative rounding expected of products with a model of this dtype."""
    return ROUNDING * _coarsest(model)


def _coarsest(model: Model) -> float:
    """Return the largest machine epsilon of a model's tensors."""
    named = named_tensors(model).items()
    tensors = [checks.tensor(f"parameter {name!r}", t) for name, t in named]
    return max(float(torch.finfo(t.dtype).eps) for t in tensors)


def gradient_graph(
    loss: Callable[..., Tensor], model: Model, *, create_graph: bool
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return a loss at a copy of a model, the leaves of its graph, and its gradients."""
    # The leaves share memory with the model, which the graph does not read. The loss
    # may work in place on what it is given, if autograd records that.
    named = named_tensors(model)
    for name, given in named.items():
        checks.tensor(f"parameter {name!r}", given)
    leaves = new_leaves(model)
    value = call_with_graph(loss, rebuild(model, leaves), "the loss", IN_PLACE)
    check_scalar(value)
    if not value.requires_grad:
        raise ValueError(
            "the loss does not depend on the model: its value carries no graph; check "
            "for .detach(), .item(), .numpy() or torch.no_grad() inside it"
        )
    if create_graph:
        gradients = differentiable_gradient(value, leaves)
    else:
        gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    ignored = [n for n, g in zip(named, gradients, strict=True) if g is None]
    if len(ignored) == len(named):
        raise ValueError(
            "the loss depends on tensors that require a gradient, and on none of its "
            "arguments: it reads a module or a tensor of its own. Compute it from its "
            f"arguments; for a module, {line_for_module()}"
        )
    if ignored:
        raise ValueError(
            f"the loss ignores parameter {', '.join(map(repr, ignored))}: its gradient "
            "there does not exist; use the parameter in the loss, or leave it out"
        )
    return value, leaves, [g for g in gradients if g is not None]


def check_scalar(value: object) -> None:
    """Raise unless a loss returned one finite real number in a torch tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"the loss returned a {type(value).__name__}; it must return a torch scalar"
        )
    if not value.is_floating_point():
        raise TypeError(f"the loss has dtype {value.dtype}; it must be real and floating")
    if value.numel() != 1:
        raise ValueError(
            f"the loss has shape {tuple(value.shape)}; reduce it to a scalar, with "
            ".sum() or .mean()"
        )
    if not bool(torch.isfinite(value.detach()).all()):
        raise ValueError(f"the loss is {float(value.detach())} at this model")


class HessianOperator(SymmetricOperator):
    """The exact Hessian of a scalar torch function, by products.

    The loss and its gradient are evaluated once, at a copy of the model; the graph is
    kept, and serves every product, until ``close()`` or the end of a ``with`` block. With
    it the operator cannot be pickled or deep-copied.

    Args:
        loss: Any twice-differentiable scalar torch function, called as the model is
            arranged: ``loss(t)``, ``loss(a, b)`` or ``loss(vp=a, vs=b)``.
        model: Where to linearise: a tensor, a tuple or a dict of tensors.
        space: Flat coordinates (scale, mask, bounds). Default ``ModelSpace(model)``.
        counts: The tally to advance. Default a new one.
        linear: Parameters known to have a gradient without graph; those found here are
            added, and neither examined nor warned of again. Default none known.

    Attributes:
        value: The loss at the model.
        gradient: Its gradient, shaped like the model.

    Raises:
        TypeError: For a model or a loss of the wrong type.
        ValueError: For a loss that is not scalar, not finite, or ignores a parameter.
        SecondOrderError: Here or at the first product, for a loss
            that has no second derivative; the message says what to do.

    Example:
        >>> import torch, hvpopt
        >>> x = torch.tensor([1.0, 2.0], dtype=torch.float64)
        >>> with hvpopt.HessianOperator(lambda x: (x**4).sum(), x) as H:
        ...     H @ torch.ones_like(x)
        tensor([12., 48.], dtype=torch.float64)
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        model: Model,
        *,
        space: ModelSpace | None = None,
        counts: Counts | None = None,
        linear: set[str] | None = None,
    ) -> None:
        checks.function("the loss", loss)
        warn_of_hooks(model, "space=ModelSpace(model, mask=...)")
        space = checked_space(space, model)
        super().__init__(space=space, counts=counts, noise=model_noise(model))
        model = space.arrange(model)
        self.counts.tally(gradients=1)
        value, leaves, gradients = gradient_graph(loss, model, create_graph=True)
        self.value = float(value.detach())
        self.gradient = rebuild(model, [g.detach().clone() for g in gradients])
        self._model = rebuild(model, [t.detach() for t in leaves])
        self._graph: tuple[list[Tensor], list[Tensor]] | None = (leaves, gradients)
        self._note_linear(
            lambda nearby: gradient_graph(loss, nearby, create_graph=False)[2],
            set() if linear is None else linear,
        )

    def _note_linear(
        self, gradient_at: Callable[[Model], list[Tensor]], known: set[str]
    ) -> None:
        """Warn of parameters whose gradient has no graph, and raise if it should have."""
        # A loss linear in a parameter has such a gradient, and so has one that computes
        # its own derivative without second order. One gradient nearby shows which.
        # Parameters found to be linear are added to ``known``.
        assert self._graph is not None
        assert self.space is not None
        here = dict(zip(named_tensors(self._model), self._graph[1], strict=True))
        linear = [
            name for name, g in here.items() if not g.requires_grad and name not in known
        ]
        if not linear:
            return
        self.counts.tally(gradients=1)
        try:
            found = gradient_at(self.space.nearby(self._model))
        except (MemoryError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:
            if getattr(error, "ends_run", False):
                raise
            found = []  # the loss refuses that model, and nothing is known
        changed = [
            name
            for (name, g), there in zip(here.items(), found, strict=False)
            if name in linear
            and float((there - g).norm())
            > float(torch.finfo(g.dtype).eps) ** (2 / 3) * float(g.norm())
        ]
        if changed:
            raise SecondOrderError(
                f"its gradient in parameter {', '.join(map(repr, changed))} changes with "
                "the model, but carries no graph. Compute it in differentiable torch "
                "operations, without .detach(), .data, torch.no_grad() or NumPy in a "
                "backward"
            )
        known.update(linear)
        warnings.warn(
            f"the gradient of parameter {', '.join(map(repr, linear))} carries no "
            "graph, so its block of the Hessian is zero: right for a loss linear in "
            "it, wrong if the loss computes its own gradient without second order",
            stacklevel=3,
        )

    def _product(self, vector: Tensor) -> Tensor:
        if self._graph is None:
            raise RuntimeError(
                "this HessianOperator is closed: its graph was released; make a new one"
            )
        assert self.space is not None
        leaves, gradients = self._graph
        step = named_tensors(self.space.step_to_model(vector.to(self.dtype))).values()
        self.counts.tally(products=1)
        with second_derivatives(certain=True):
            rows = vjp(gradients, leaves, list(step), retain_graph=True)
        return self.space.gradient_to_vector(rebuild(self._model, rows))

    def close(self) -> None:
        """Release the graph. Products raise from now on; value and gradient stay."""
        self._graph = None

    def __getstate__(self) -> dict[str, Any]:
        """Refuse to be pickled or deep-copied with a graph, which neither carries."""
        if self._graph is not None:
            raise TypeError(
                f"a {type(self).__name__} holds the autograd graph of its loss, which "
                "cannot be pickled, saved or deep-copied; take the model along and make "
                "a new one there, hvpopt.HessianOperator(loss, model), or the matrix of "
                "a small one, hvpopt.MatrixOperator(H.to_dense())"
            )
        return self.__dict__


class FiniteDifferenceHessian(SymmetricOperator):
    """Hessian-vector products by central differences of gradients; an oracle.

    ``H w ≈ (∇φ(m + εw) − ∇φ(m − εw)) / 2ε`` with ``ε = (eps)^⅓ · size / ‖w‖``, where
    the truncation error (∝ ε²) and the rounding error (∝ eps/ε) balance (Nocedal and
    Wright, Numerical Optimization, 2nd ed., §8.1). Two gradients a product.

    Args:
        loss: A scalar torch function, called as the model is arranged.
        model: Where to linearise: a tensor, a tuple or a dict of tensors.
        size: Length, in flat coordinates, over which the loss is about cubic. Default
            the norm of the flat model, or 1 if that is zero.
        space: Flat coordinates. Default ``ModelSpace(model)``.
        counts: The tally to advance. Default a new one.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        model: Model,
        *,
        size: float | None = None,
        space: ModelSpace | None = None,
        counts: Counts | None = None,
    ) -> None:
        checks.function("the loss", loss)
        size = checks.optional(checks.number, "size", size, above=0.0, below=math.inf)
        space = checked_space(space, model)
        eps = _coarsest(model)
        super().__init__(space=space, counts=counts, noise=eps ** (2 / 3))
        self._loss = loss
        self._model = named_tensors(space.arrange(model))
        length = float(space.to_vector(model).norm()) or 1.0 if size is None else size
        self._reach = eps ** (1 / 3) * length

    def _product(self, vector: Tensor) -> Tensor:
        norm = float(vector.norm())
        self.counts.tally(products=1)
        if norm == 0.0:
            return torch.zeros_like(vector)
        step = self._reach / norm
        ahead = self._gradient(step * vector.to(self.dtype))
        behind = self._gradient(-step * vector.to(self.dtype))
        return (ahead - behind).div_(2 * step)

    def _gradient(self, step: Tensor) -> Tensor:
        assert self.space is not None
        # not through to_model, which keeps to the bounds: both sides are needed
        shaped = self.space.step_to_model(step)
        moved = [
            m.detach() + s
            for m, s in zip(
                self._model.values(), named_tensors(shaped).values(), strict=True
            )
        ]
        model = rebuild(shaped, moved)
        self.counts.tally(gradients=1)
        _, _, gradients = gradient_graph(self._loss, model, create_graph=False)
        return self.space.gradient_to_vector(rebuild(model, gradients))
