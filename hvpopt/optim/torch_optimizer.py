"""Newton: a ``torch.optim`` optimiser that takes the steps of any hvpopt method."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.methods.convergence import Iterate, Tolerance, next_step, relative_size
from hvpopt.methods.method import Method, Stationary, Step, checked_method
from hvpopt.methods.points import Point, Problem
from hvpopt.methods.trust_region import TrustRegionNewton
from hvpopt.model._scale import euclidean_norm
from hvpopt.model.counts import Counts
from hvpopt.model.space import ModelSpace, PerParameter
from hvpopt.model.tensors import Model, named_tensors, warn_of_hooks
from hvpopt.optim.closure import Closure, ClosureObjective
from hvpopt.run._limits import check_repeatable

#: Effect of a hook on a parameter, for the warning.
HOOKS = (
    "makes gradients and products that belong to no one loss, or is not called: there is "
    "no backward() here"
)


class Newton(torch.optim.Optimizer):
    """Any hvpopt method, one outer step at each ``step(closure)``.

    The closure computes the loss from the parameters and returns it. Unlike a closure of
    ``torch.optim.LBFGS`` it must not call ``backward()``: second derivatives need the
    graph that this would free. It is called with gradients on once a step and with
    gradients off for each trial, and must return the same loss for the same parameters.

    A step costs the gradient at its start, its products and its trial values, as in
    hvpopt.minimize. The first step costs one more value, to detect and refuse a loss that
    is not deterministic (dropout, noise, a batch drawn within the closure). The iterates
    are those of minimize with ``scale=1`` too, unless the parameters are changed between
    steps: the method then restarts from their values. A gradient that a line search has
    already evaluated is used again only if the closure is the same object.

    After a step, ``.grad`` of each parameter holds the gradient at the start of the step,
    as with every torch optimiser. Parameters are changed in place.

    Args:
        params: Tensors, named tensors, or one parameter group. Those that do not require
            a gradient at construction are not changed.
        method: The method that takes the steps. Default ``TrustRegionNewton()``.
        scale: Size of one unit of each parameter, one for all or a sequence with an
            entry for each of ``params``; see ModelSpace. Default 1.
        mask: True where cells may change; one for all or a sequence. Default all.
        lower: Lower bounds in the parameters' units, one for all or a sequence. Every
            iterate and trial is within the bounds. Default none.
        upper: Upper bounds, like ``lower``. Default none.
        gtol: Stationary when the norm of the projected gradient is at most ``gtol``
            times the largest so far, and the next step would change no parameter by
            more than ``gtol`` of its size; as for ``minimize``. Default 1e-6.
        certify: Certify that such a point is a minimum; as for ``minimize``. Default
            False.
        **unknown: None: refused by name.

    Attributes:
        last: The last Step; or, where the gradient vanishes and no negative curvature is
            found, a Stationary, whose ``minimum`` is True if the point is a minimum. None
            before the first step. A Step whose ``vector`` is None did not lower the loss
            and did not change the parameters.
        method, gtol, certify: As given.

    Raises:
        TypeError: For a method or parameters of the wrong type.
        ValueError: For a method of samples, several parameter groups, no parameter that
            requires a gradient, ``gtol`` out of range, or options that do not fit the
            parameters.

    Example:
        >>> import torch, hvpopt
        >>> x = torch.tensor([-1.2, 1.0], dtype=torch.float64, requires_grad=True)
        >>> optimizer = hvpopt.optim.Newton([x])
        >>> for _ in range(30):
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
        certify: bool = False,
        **unknown: object,
    ) -> None:
        if unknown:
            raise TypeError(
                f"Newton has no option {', '.join(map(repr, unknown))}: its method "
                "chooses step and direction (no learning rate, momentum or weight "
                "decay); it has method, scale, mask, lower, upper, gtol and certify"
            )
        method = TrustRegionNewton() if method is None else method
        if checked_method(method).samples:
            raise ValueError(
                f"{type(method).__name__} takes its steps on samples of a sum, and a "
                "closure has none; pass method=hvpopt.QuasiNewton(), or minimise the "
                "misfit itself by hvpopt.minimize(misfit, model)"
            )
        gtol = checks.gtol(gtol)
        use = "pass a list of tensors, or what parameters() of a module returns"
        if isinstance(params, torch.nn.Module):
            raise TypeError(
                f"params is a {type(params).__name__}; pass module.parameters()"
            )
        checks.having("params", params, "__iter__", use)
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
        self.certify = checks.flag("certify", certify)
        self.last: Step | Stationary | None = None
        self._repeats = False
        self._largest: float
        self._state: Any
        self._taken: tuple[Point, Step] | None
        self._begin()

    @property
    def counts(self) -> Counts:
        """Cost of the steps so far."""
        return self._objective.counts

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Take one step of the method.

        Args:
            closure: Returns the loss, a differentiable scalar; must not call backward.

        Returns:
            The loss at the start of the step, detached.

        Raises:
            TypeError: For a closure that is not callable or returns no torch scalar.
            ValueError: For a closure that calls backward, ignores a parameter, or returns
                a loss that is not a finite scalar or not deterministic.
        """
        use = "step needs a function that returns the loss, without calling backward"
        checks.function("the closure", closure, use)
        if not self._repeats:
            warn_of_hooks(tuple(self._params), fate=HOOKS, stacklevel=5)
        same = closure is self._objective.closure
        self._objective.closure = closure
        if not self._untouched():
            self._begin()
        before = self.counts.snapshot()
        point = self._start_point(same_closure=same)
        try:
            norm = euclidean_norm(point.projected_gradient)
            self._largest = max(self._largest, norm)
            step = self._next_step(point)
        finally:
            if point.hessian is not None:
                point.hessian.close()
        self._count(step, point.vector, self.counts.snapshot() - before)
        self.last = step
        left = replace(point, hessian=None)
        if isinstance(step, Step) and step.vector is not None:
            self._vector, self._taken = step.vector, (left, step)
            self._write(self._space.to_model(step.vector))
        self._show_gradient(left)
        return torch.tensor(point.value, dtype=torch.float64)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Raise for a second parameter group, since the parameters share one Hessian."""
        if self.param_groups:
            raise ValueError(
                "Newton takes one parameter group, since the Hessian couples all "
                "parameters; pass scale, mask or bounds as sequences instead"
            )
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the method, without the parameters and the options.

        It contains dataclasses of hvpopt: load it with ``weights_only=False``.
        """
        counted = (self._first, self._steps, self._spent, self._looked, self._rests)
        progress = (self._vector, self._state, self._taken, self._largest, counted)
        return {**super().state_dict(), "progress": copy.deepcopy(progress)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of another optimiser; load the parameters separately.

        Args:
            state_dict: From a Newton with the same parameters and options.

        Raises:
            TypeError: If the state is not a mapping.
            ValueError: For the state of another class of optimiser, or of another size.
        """
        rest = dict(checks.having("the state", state_dict, "keys", "pass a state_dict()"))
        if "progress" not in rest:
            raise ValueError("this is not the state of an hvpopt.optim.Newton")
        vector, state, taken, largest, counted = copy.deepcopy(rest.pop("progress"))
        if vector.shape != self._vector.shape:
            raise ValueError(
                f"the state is of {vector.numel()} free cells, and the parameters have "
                f"{self._vector.numel()}"
            )
        super().load_state_dict(rest)
        self._begin()
        self._vector = vector.to(self._space.device)
        self._state, self._taken, self._largest = state, taken, largest
        self._first, self._steps, self._spent, self._looked, self._rests = counted
        self._first = self._first.to(self._space.device)

    def _begin(self) -> None:
        """Start the method at the values of the parameters."""
        model = tuple(p.detach() for p in self._params)
        self._space = ModelSpace(model, **self._options)
        self._problem = Problem(self._objective, self._space)
        self._vector = self._space.to_vector(model)
        self._state = self.method.start(self._problem)
        self._taken = None
        self._largest = 0.0
        self._first, self._steps = self._vector, 0
        self._spent, self._looked, self._rests = Counts(), 0, 0

    def _untouched(self) -> bool:
        """Return True if the parameters have not changed since the last step."""
        kept = named_tensors(self._space.to_model(self._vector)).values()
        return all(map(torch.equal, kept, (p.detach() for p in self._params)))

    def _start_point(self, *, same_closure: bool) -> Point:
        """Evaluate the current point, in the same order as minimize."""
        kind = self.method.kind
        if self._taken is None:
            point = self._problem.linearise(self._vector, kind)
            self._check_repeatable(point)
            return point
        before, step = self._taken
        if step.point is not None and same_closure:
            point = self._problem.with_hessian(step.point, kind)
        else:
            point = self._problem.linearise(self._vector, kind)
        self._state = self.method.update(self._state, before, point, step)
        self._taken = None
        return point

    def _check_repeatable(self, point: Point) -> None:
        """Raise if the loss is not deterministic; checked at the first step only."""
        if self._repeats:
            return
        try:
            again = self._objective.value(self._space.to_model(self._vector))
            check_repeatable(point.value, again, self._space.eps)
        except BaseException:
            if point.hessian is not None:
                point.hessian.close()
            raise
        self._repeats = True

    def _next_step(self, point: Point) -> Step | Stationary:
        tolerance = Tolerance.after(
            self._steps,
            self._spent,
            self._looked,
            gtol=self.gtol,
            certify=self.certify,
            start=self._first,
            largest=self._largest,
            rests=self._rests,
        )
        return next_step(
            Iterate(self._problem, self.method, point, self._state, tolerance)
        )

    def _count(self, step: Step | Stationary, before: Tensor, spent: Counts) -> None:
        """Update what the tolerance depends on: costs and sizes of the steps."""
        self._spent = self._spent + spent
        if isinstance(step, Step) and step.vector is not None:
            self._steps += 1
            moved = step.vector - before
            size = relative_size(self._space, self._first, before, moved)
            self._rests = self._rests + 1 if size <= self.gtol else 0
            self._looked += spent.products * step.direction.curvature_step

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
    """Drop the entries of parameters that do not require a gradient."""
    if not isinstance(option, (tuple, list)):
        return option
    if len(option) != len(free):
        raise ValueError(f"{what} has {len(option)} entries for {len(free)} parameters")
    return [value for value, kept in zip(option, free, strict=True) if kept]
