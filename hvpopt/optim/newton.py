"""Newton: any hvpopt method, one step at each call."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hvpopt.counts import Counts
from hvpopt.krylov.scale import euclidean_norm
from hvpopt.models import Model, named_tensors
from hvpopt.newton.method import Method, Stationary, Step
from hvpopt.newton.problem import Budget, Point, Problem
from hvpopt.newton.trust_region import TrustRegionNewton
from hvpopt.optim.closure import Closure, ClosureObjective
from hvpopt.space import ModelSpace, PerParameter


class Newton(torch.optim.Optimizer):
    """Any hvpopt method, one outer step at each ``step(closure)``.

    The closure computes the loss from the parameters and returns it. Unlike a closure of
    ``torch.optim.LBFGS`` it must not call ``backward()``: second derivatives need the
    graph that this would free. It is called with gradients on once a step and with
    gradients off for each trial, and must give the same loss for the same parameters.

    A step costs the gradient where it starts, its products and its trial values, as in
    hvpopt.minimize. The iterates are the same too, until somebody else changes the
    parameters: the method then starts anew from where they are. A gradient that a line
    search has already evaluated is used again only if the closure is the same object.

    After a step, ``.grad`` of each parameter holds the gradient where the step started,
    as with every torch optimiser. Each parameter keeps its memory.

    Args:
        params: Tensors, named tensors, or one parameter group. Those that do not require
            a gradient now are left alone.
        method: How to step. Default ``TrustRegionNewton()``.
        scale: Size of one unit of each parameter, one for all or a sequence with an
            entry for each of ``params``; see ModelSpace.
        mask: True where cells may change, likewise.
        lower: Lower bounds, likewise. No iterate and no trial breaks them.
        upper: Upper bounds, likewise.
        gtol: Stationary when the norm of the projected gradient is at most ``gtol``
            times the largest met so far.

    Attributes:
        last: The last Step; or, where the gradient vanishes and no negative curvature is
            found, a Stationary, whose ``minimum`` says whether to stop. None at first.
            A Step without a vector lowered nothing, and left the parameters alone.

    Raises:
        TypeError: For a method or parameters of the wrong type.
        ValueError: For several parameter groups, no parameter that requires a gradient,
            ``gtol`` out of range, or options that do not fit the parameters.

    Example:
        >>> import torch, hvpopt
        >>> x = torch.tensor([-1.2, 1.0], dtype=torch.float64, requires_grad=True)
        >>> optimizer = hvpopt.optim.Newton([x])
        >>> for _ in range(25):
        ...     loss = optimizer.step(
        ...         lambda: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2)
        >>> x.detach()
        tensor([1.0000, 1.0000], dtype=torch.float64)
    """

    def __init__(
        self,
        params: Iterable[Any],
        method: Method | None = None,
        *,
        scale: PerParameter = None,
        mask: PerParameter = None,
        lower: PerParameter = None,
        upper: PerParameter = None,
        gtol: float = 1e-6,
    ) -> None:
        method = TrustRegionNewton() if method is None else method
        if not isinstance(method, Method):
            raise TypeError(
                f"method is {method!r}; pass an instance of a method, such as "
                "hvpopt.TrustRegionNewton()"
            )
        if not 0.0 <= gtol < 1.0:
            raise ValueError(f"gtol is {gtol}; it is relative and must lie in [0, 1)")
        super().__init__(params, {})
        given = self.param_groups[0]["params"]
        self._params: list[Tensor] = [p for p in given if p.requires_grad]
        if not self._params:
            raise ValueError("none of the parameters requires a gradient")
        free = [p.requires_grad for p in given]
        options = {"scale": scale, "mask": mask, "lower": lower, "upper": upper}
        self._options: dict[str, Any] = {
            name: _of_free(name, option, free) for name, option in options.items()
        }
        self._objective = ClosureObjective(self._params)
        self.method = method
        self.gtol = gtol
        self.last: Step | Stationary | None = None
        self._space: ModelSpace
        self._problem: Problem
        self._vector: Tensor
        self._state: Any
        self._largest: float
        self._taken: tuple[Point, Step] | None
        self._begin()

    @property
    def counts(self) -> Counts:
        """What the steps have cost so far."""
        return self._objective.counts

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]
        """Take one step of the method.

        Args:
            closure: Returns the loss, a differentiable scalar; must not call backward.

        Returns:
            The loss where the step started, detached.

        Raises:
            TypeError: For a closure that is not callable or returns no torch scalar.
            ValueError: For a closure that calls backward, ignores a parameter, or
                returns a loss that is not a finite scalar.
        """
        if not callable(closure):
            raise TypeError(
                f"the closure is a {type(closure).__name__}; step needs a function that "
                "returns the loss"
            )
        same = closure is self._objective.closure
        self._objective.closure = closure
        if not self._untouched():
            self._begin()
        point = self._start_point(same_closure=same)
        try:
            norm = euclidean_norm(point.projected_gradient)
            self._largest = max(self._largest, norm)
            step = self._next_step(point)
        finally:
            if point.hessian is not None:
                point.hessian.close()
        self.last = step
        left = replace(point, hessian=None)
        if isinstance(step, Step) and step.vector is not None:
            self._vector, self._taken = step.vector, (left, step)
            self._write(self._space.to_model(step.vector))
        self._show_gradient(left)
        return torch.tensor(point.value, dtype=torch.float64)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse a second group: the parameters share one Hessian.

        Args:
            param_group: As for every torch optimiser.

        Raises:
            ValueError: If there is a group already.
        """
        if self.param_groups:
            raise ValueError(
                "Newton takes one parameter group, since the Hessian couples all "
                "parameters; pass scale, mask or bounds as sequences instead"
            )
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return what the next step depends on beside the parameters and the options.

        It holds hvpopt's own dataclasses: load it with ``weights_only=False``.
        """
        progress = (self._vector, self._state, self._taken, self._largest)
        return {**super().state_dict(), "progress": copy.deepcopy(progress)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on as the optimiser whose state this is; load the parameters as well.

        Args:
            state_dict: Of a Newton with the same parameters and options.

        Raises:
            ValueError: For the state of another kind of optimiser or of another size.
        """
        rest = dict(state_dict)
        if "progress" not in rest:
            raise ValueError("this is not the state of an hvpopt.optim.Newton")
        vector, state, taken, largest = copy.deepcopy(rest.pop("progress"))
        if vector.shape != self._vector.shape:
            raise ValueError(
                f"the state is of {vector.numel()} free cells, and the parameters have "
                f"{self._vector.numel()}"
            )
        super().load_state_dict(rest)
        self._begin()
        self._vector = vector.to(self._space.device)
        self._state, self._taken, self._largest = state, taken, largest

    def _begin(self) -> None:
        """Start the method from where the parameters are."""
        model = tuple(p.detach() for p in self._params)
        self._space = ModelSpace(model, **self._options)
        self._problem = Problem(self._objective, self._space)
        self._vector = self._space.to_vector(model)
        self._state = self.method.start(self._problem)
        self._taken = None
        self._largest = 0.0

    def _untouched(self) -> bool:
        """True if the parameters are what the last step left."""
        ours = named_tensors(self._space.to_model(self._vector)).values()
        return all(map(torch.equal, ours, (p.detach() for p in self._params)))

    def _start_point(self, *, same_closure: bool) -> Point:
        """Evaluate the point, in the order in which minimize does."""
        kind = self.method.next_kind(self._state)
        if self._taken is None:
            return self._problem.linearise(self._vector, kind)
        before, step = self._taken
        if step.point is not None and same_closure:
            point = self._problem.with_hessian(step.point, kind)
        else:
            point = self._problem.linearise(self._vector, kind)
        self._state = self.method.remember(self._state, before, point, step)
        self._taken = None
        return point

    def _next_step(self, point: Point) -> Step | Stationary:
        norm = euclidean_norm(point.projected_gradient)
        stationary = norm <= self.gtol * self._largest
        take = self.method.escape if stationary else self.method.step
        return take(self._problem, point, self._state, Budget())

    def _write(self, model: Model) -> None:
        for parameter, new in zip(
            self._params, named_tensors(model).values(), strict=True
        ):
            parameter.copy_(new)

    def _show_gradient(self, point: Point) -> None:
        gradient = named_tensors(self._space.gradient_to_model(point.gradient)).values()
        for parameter, new in zip(self._params, gradient, strict=True):
            parameter.grad = new


def _of_free(what: str, option: PerParameter, free: Sequence[bool]) -> PerParameter:
    """Drop the entries of parameters that are left alone."""
    if not isinstance(option, (tuple, list)):
        return option
    if len(option) != len(free):
        raise ValueError(f"{what} has {len(option)} entries for {len(free)} parameters")
    return [value for value, kept in zip(option, free, strict=True) if kept]
