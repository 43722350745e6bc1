"""The loss of a closure as an Objective, and its Hessian by double backprop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hvpopt.errors import WrittenError
from hvpopt.model._copies import same
from hvpopt.model.space import ModelSpace
from hvpopt.model.tensors import Model, named_tensors
from hvpopt.operators._second_order import differentiable_gradient
from hvpopt.operators.autograd import HessianOperator, check_scalar, model_noise
from hvpopt.operators.symmetric import SymmetricOperator
from hvpopt.problem.objective import Kind
from hvpopt.problem.torch_objective import GraphObjective

Closure = Callable[[], Tensor]


class ClosureObjective(GraphObjective):
    """The loss of a closure, which reads the values of the parameters.

    A graph needs the values that it was built with, while trials need others. During an
    evaluation ``.data`` of each parameter is therefore a copy of the evaluated model, and
    is restored afterwards: nothing is overwritten in place.

    Attributes:
        closure: Computes and returns the loss; set before each step.
        linear: Names of parameters in which the loss was found to be linear.
    """

    def __init__(self, params: list[Tensor]) -> None:
        super().__init__("closure")
        self.params = params
        self.closure: Closure | None = None
        self.linear: set[str] = set()

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Raise TypeError, since a closure takes no arguments."""
        raise TypeError("a closure reads its parameters, and takes no tensors")

    @contextmanager
    def placed(self, model: Model) -> Iterator[None]:
        """Set the parameters to the values of a model within a block; refuse writes."""
        homes = [p.data for p in self.params]
        lent = [t.detach() for t in named_tensors(model).values()]
        try:
            for parameter, tensor in zip(self.params, lent, strict=True):
                parameter.data = tensor.clone()
            yield
            for i, (parameter, tensor) in enumerate(zip(self.params, lent, strict=True)):
                if not same(parameter, tensor):
                    raise WrittenError(
                        f"the closure writes to the parameter of index {i} among those "
                        "that require a gradient; a loss must leave them as they are: "
                        "pass lower= and upper= for bounds"
                    )
        finally:
            for parameter, home in zip(self.params, homes, strict=True):
                parameter.data = home

    def value(self, model: Model) -> float:
        """Return the loss, building no graph."""
        self.counts.tally(values=1)
        with self.placed(model), torch.no_grad():
            value = self._call()
        return float(value)

    def differentiate(
        self, model: Model, *, create_graph: bool
    ) -> tuple[float, list[Tensor]]:
        """Return the loss and its gradient, one tensor by parameter; not counted."""
        with self.placed(model), torch.enable_grad():
            value = self._without_backward()
            check_scalar(value)
            if not value.requires_grad:
                raise ValueError(
                    "the loss does not depend on the parameters: it carries no graph; "
                    "check for .detach(), .item() or torch.no_grad() in the closure"
                )
            if create_graph:
                found = differentiable_gradient(value, self.params)
            else:
                found = torch.autograd.grad(value, self.params, allow_unused=True)
        ignored = [i for i, g in enumerate(found) if g is None]
        if ignored:
            raise ValueError(
                f"the loss ignores the parameters of index {ignored} among those that "
                "require a gradient; leave them out, or set requires_grad to False"
            )
        return float(value.detach()), [g for g in found if g is not None]

    def _call(self) -> Tensor:
        assert self.closure is not None
        return self.closure()

    def _without_backward(self) -> Tensor:
        """Call the closure; raise ValueError if it called ``backward()``."""
        kept = [p.grad for p in self.params]
        try:
            for parameter in self.params:
                parameter.grad = None
            value = self._call()
            if any(p.grad is not None and bool(p.grad.any()) for p in self.params):
                raise ValueError(
                    "the closure called backward(); it must only return the loss, whose "
                    "graph Hessian-vector products need"
                )
        finally:
            for parameter, gradient in zip(self.params, kept, strict=True):
                parameter.grad = gradient
        return value

    def value_and_gradient(self, model: Model) -> tuple[float, Model]:
        """Return the loss and its gradient."""
        self.counts.tally(gradients=1)
        value, gradients = self.differentiate(model, create_graph=False)
        return value, tuple(g.clone() for g in gradients)

    def hessian(
        self, model: Model, kind: Kind = "exact", *, space: ModelSpace | None = None
    ) -> HessianOperator:
        """Return the Hessian by double backprop; a closure has no Gauss-Newton matrix."""
        if kind == "gauss-newton":
            raise ValueError(
                "a closure's loss has no residual for Gauss-Newton; use a method with "
                "the exact Hessian"
            )
        space = ModelSpace(model) if space is None else space
        return ClosureHessian(self, model, space)


class ClosureHessian(HessianOperator):
    """Products from the graph of a closure's gradient, at the model of the graph."""

    def __init__(
        self, objective: ClosureObjective, model: Model, space: ModelSpace
    ) -> None:
        # HessianOperator would make leaves of its own; here they are the parameters
        SymmetricOperator.__init__(
            self,
            space=space,
            counts=objective.counts.child(),
            noise=model_noise(model),
        )
        self._objective = objective
        self._model = space.arrange(model)
        self.counts.tally(gradients=1)
        self.value, gradients = objective.differentiate(model, create_graph=True)
        self.gradient = tuple(g.detach().clone() for g in gradients)
        self._graph = (objective.params, gradients)
        self._note_linear(
            lambda nearby: objective.differentiate(nearby, create_graph=False)[1],
            objective.linear,
        )

    def _product(self, vector: Tensor) -> Tensor:
        with self._objective.placed(self._model):
            return super()._product(vector)
