"""TorchObjective: any scalar torch function as an Objective."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from torch import Tensor

from hvpopt import checks
from hvpopt.model._copies import call_with_graph, new_leaves, writes
from hvpopt.model.space import ModelSpace
from hvpopt.model.tensors import Model, named_tensors, rebuild
from hvpopt.operators.autograd import (
    IN_PLACE,
    HessianOperator,
    check_scalar,
    gradient_graph,
)
from hvpopt.problem.objective import Kind, Linearisation, Objective, check_kind


class GraphObjective(Objective):
    """An objective whose Hessian keeps the graph of value and gradient."""

    @abstractmethod
    def hessian(
        self, model: Model, kind: Kind = "exact", *, space: ModelSpace | None = None
    ) -> HessianOperator:
        """Return the Hessian at a model, which has ``value`` and ``gradient`` too."""

    def linearise(
        self,
        model: Model,
        kind: Kind | None = "exact",
        *,
        space: ModelSpace | None = None,
    ) -> Linearisation:
        """Return value, gradient and Hessian from one graph."""
        if kind is None:
            return super().linearise(model, None)
        # the passes that build the graph give the value and the gradient
        operator = self.hessian(model, kind, space=space)
        return Linearisation(operator.value, operator.gradient, operator)


class TorchObjective(GraphObjective):
    """Any scalar torch function of one or several tensors.

    Args:
        loss: Called as the model is arranged: ``loss(t)``, ``loss(a, b)`` or
            ``loss(vp=a, vs=b)``. Its arguments are copies, on which it may work in
            place. A write that autograd does not record (``v.data.clamp_(0, 1)``) is
            refused when it is detected: use bounds instead.
        name: Name of its part in a sum. Default the function's name.
        convex: True if the loss is convex in the model (most regularisers are). Its
            exact Hessian then serves as its Gauss-Newton matrix. Default False.

    Raises:
        TypeError: If ``loss`` cannot be called or is a class, or for another option of
            the wrong type.

    Example:
        >>> import torch, hvpopt
        >>> fit = hvpopt.TorchObjective(lambda x: ((x - 3) ** 2).sum(), name="fit")
        >>> small = hvpopt.TorchObjective(lambda x: (x**2).sum(), name="size")
        >>> start = torch.zeros(2, dtype=torch.float64)
        >>> parts = hvpopt.minimize(fit + 0.5 * small, start).history[-1].parts
        >>> {name: round(value, 6) for name, value in parts.items()}
        {'fit': 2.0, 'size': 4.0}
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        *,
        name: str | None = None,
        convex: bool = False,
    ) -> None:
        checks.function("the loss", loss)
        checks.optional(checks.text, "name", name)
        super().__init__(name or str(getattr(loss, "__name__", type(loss).__name__)))
        self._loss = loss
        self._works_in_place = False
        self._linear: set[str] = set()
        self.convex = checks.flag("convex", convex)

    @property
    def has_gauss_newton(self) -> bool:
        """True if the loss is declared convex."""
        return self.convex

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Return the loss as a differentiable torch scalar."""
        return self._loss(*args, **kwargs)

    def value(self, model: Model) -> float:
        """Return the objective, building no graph. NaN and infinity are returned."""
        for name, given in named_tensors(model).items():
            checks.tensor(f"parameter {name!r}", given)
        self.counts.tally(values=1)
        value, wrote = writes(self._loss, model)
        if wrote and not self._works_in_place:
            # raises unless autograd records the write; checked once
            leaves = rebuild(model, new_leaves(model))
            call_with_graph(self._loss, leaves, "the loss", IN_PLACE)
            self._works_in_place = True
        if isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point():
            return float(value)
        check_scalar(value)
        return float(value)

    def value_and_gradient(self, model: Model) -> tuple[float, Model]:
        """Return the objective and its gradient, shaped like the model."""
        self.counts.tally(gradients=1)
        value, _, gradients = gradient_graph(self._loss, model, create_graph=False)
        # autograd may return one buffer for two parameters, or an expanded scalar
        return float(value.detach()), rebuild(model, [g.clone() for g in gradients])

    def hessian(
        self, model: Model, kind: Kind = "exact", *, space: ModelSpace | None = None
    ) -> HessianOperator:
        """Return the Hessian by double backprop; all products use one graph.

        Args:
            model: Where to linearise.
            kind: ``"exact"``; ``"gauss-newton"`` only for a loss declared convex.
            space: Flat coordinates. Default ``ModelSpace(model)``.

        Returns:
            An operator with the attributes ``value`` and ``gradient``.

        Raises:
            ValueError: For Gauss-Newton of a loss that is not declared convex.
        """
        check_kind(kind)
        if kind == "gauss-newton" and not self.convex:
            raise ValueError(
                f"{self.name!r} is a plain torch function, without the residual that "
                "Gauss-Newton needs; use kind='exact', or declare a convex function with "
                "TorchObjective(..., convex=True)"
            )
        return HessianOperator(
            self._loss,
            model,
            space=space,
            counts=self.counts.child(),
            linear=self._linear,
        )


def as_objective(loss: Objective | Callable[..., Tensor]) -> Objective:
    """Return ``loss`` if it is an Objective, else a TorchObjective of it."""
    return loss if isinstance(loss, Objective) else TorchObjective(loss)
