"""What a method works on: flat points, values, linearisations, a budget."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from hvpopt.model.counts import Counts
from hvpopt.model.space import ModelSpace
from hvpopt.model.tensors import named_tensors
from hvpopt.operators.symmetric import RestrictedOperator, SymmetricOperator
from hvpopt.problem.objective import Kind, Linearisation, Objective

logger = logging.getLogger(__name__)

#: A decrease of up to this many roundings of the loss may be invisible in its values.
MANY_ROUNDINGS = 1e4


@dataclass(frozen=True)
class Point:
    """A flat point with what has been evaluated there.

    Attributes:
        vector: ``[n]``.
        value: The objective.
        gradient: With respect to the flat vector, ``[n]``.
        hessian: At this point, by products; None where a run needs none any more.
        active: True ``[n]`` for cells at a bound that descent would push through it.
        parts: Value of each named part of a sum.
        kind: Which Hessian ``hessian`` is.
    """

    vector: Tensor
    value: float
    gradient: Tensor
    hessian: SymmetricOperator | None
    active: Tensor
    parts: dict[str, float] = field(default_factory=dict)
    kind: Kind = "exact"

    @property
    def projected_gradient(self) -> Tensor:
        """The gradient ``[n]``, zero on active cells; vanishes at a bounded minimum."""
        return self.gradient.masked_fill(self.active, 0.0)

    def free_cells(self, hessian: SymmetricOperator | None = None) -> FreeCells:
        """Return the Hessian (default the point's own) and gradient of the free cells."""
        hessian = self.hessian if hessian is None else hessian
        if hessian is None:
            raise RuntimeError("this point was evaluated without a Hessian")
        if not bool(self.active.any()):
            return FreeCells(hessian, self.gradient, _same, _same)
        restricted = RestrictedOperator(hessian, ~self.active)
        gradient = restricted.restrict(self.gradient)
        return FreeCells(restricted, gradient, restricted.restrict, restricted.extend)


@dataclass(frozen=True)
class FreeCells:
    """The linear algebra of the cells that no bound holds."""

    operator: SymmetricOperator  # the Hessian's rows and columns of these cells
    gradient: Tensor  # the gradient's entries
    restrict: Callable[[Tensor], Tensor]  # from a full vector [n] to these cells
    #: from a vector of these cells to [n], zero elsewhere
    extend: Callable[[Tensor], Tensor]


def _same(vector: Tensor) -> Tensor:
    return vector


@dataclass(frozen=True)
class Budget:
    """What a run may still spend."""

    products: float = math.inf  # Hessian-vector products left
    deadline: float = math.inf  # when time.monotonic() passes this, seconds, the run ends
    #: largest relative residual of a linear solve, however loose the method's own
    accuracy: float = 1.0

    @property
    def out_of_time(self) -> bool:
        """True once the deadline has passed."""
        return time.monotonic() > self.deadline

    def cap(self, products: int) -> int:
        """Return ``products``, or what is left of them if that is less."""
        return int(min(products, self.products))

    def without(self, products: float) -> Budget:
        """Return the budget less these products."""
        return replace(self, products=self.products - products)

    def at_most(self, products: float) -> Budget:
        """Return the budget with no more products than these."""
        return replace(self, products=min(self.products, products))


class Problem:
    """An objective in the flat coordinates of a model space.

    Args:
        objective: What to minimise.
        space: The model's coordinates and bounds.
        counts: The tally that evaluations advance. Default the objective's own.

    Attributes:
        last_error: What the loss raised when it last refused a trial, or None.
        after: Called after each trial and each product; may raise to end the run. Default
            it does nothing.
        wrap: Called with each operator that is made and a label that names it; returns
            the operator that methods get. Default the same.
        check_kept: Called with what a method means to keep in its state, before it spends
            more on it; raises where a saved run could not store that. Default it does
            nothing.
    """

    def __init__(
        self, objective: Objective, space: ModelSpace, counts: Counts | None = None
    ) -> None:
        self.objective = objective
        self.space = space
        self.counts = objective.counts if counts is None else counts
        self.last_error: Exception | None = None
        self.after: Callable[[], None] = lambda: None
        self.wrap: Callable[[SymmetricOperator, str], SymmetricOperator] = _unwrapped
        self.check_kept: Callable[[Any], None] = lambda _: None

    @property
    def last_failure(self) -> str:
        """The last error in words; empty without one."""
        error = self.last_error
        return "" if error is None else f"{type(error).__name__}: {error}"

    def value(self, vector: Tensor) -> float:
        """Return the objective at ``[n]``; infinite where the loss refuses the model."""
        # A loss may refuse a model, such as one faster than ``max_vel``; a minimiser
        # then tries a shorter step. Lack of GPU memory is raised, since a shorter step
        # needs no less.
        value = math.inf
        try:
            value = self.objective.value(self.space.to_model(vector))
        except (ValueError, ArithmeticError, RuntimeError) as error:
            self._refuse(error)
        else:
            if not math.isfinite(value):
                self._refuse(ValueError(f"the loss is {value} at this model"))
        self.after()
        return value if math.isfinite(value) else math.inf

    def trial(self, vector: Tensor) -> Point | None:
        """Return value and gradient at ``[n]``; None where the loss refuses the model."""
        point = None
        try:
            point = self.linearise(vector, None)
        except (ValueError, ArithmeticError, RuntimeError) as error:
            self._refuse(error)
        self.after()
        return point

    def why_none_lowered(self, point: Point, tried: str, *, promised: float) -> str:
        """Return a sentence on why no trial was acceptable."""
        # ``tried`` is like "none of 20 trials along the direction"; ``promised`` is the
        # largest decrease of the loss that a trial promised.
        reason = f"{tried} lowered the loss {point.value:.6g}"
        if promised <= MANY_ROUNDINGS * self.space.eps * abs(point.value):
            reason += "; it may be at the rounding of its values"
        elif not self.last_failure:
            reason += (
                f", of which the first promised {promised:.2g} less; the gradient may "
                "be wrong (analysis.check_gradient tells), or the loss noisier than its "
                "dtype"
            )
        if self.last_failure:
            reason += f" (last refusal: {self.last_failure})"
        return reason

    def _refuse(self, error: Exception) -> None:
        """Note why a trial was refused, or raise what is no refusal of this model."""
        lost = getattr(error, "ends_run", False)  # a process, say
        if lost or isinstance(error, torch.cuda.OutOfMemoryError):
            raise error
        self.last_error = error
        logger.info("trial refused by the loss: %s", self.last_failure)

    def linearise(self, vector: Tensor, kind: Kind | None) -> Point:
        """Return value, gradient and, unless ``kind`` is None, Hessian at a point."""
        model = self.space.to_model(vector)
        lin = self.objective.linearise(model, kind, space=self.space)
        hessian = lin.hessian
        if hessian is not None:
            hessian = self._watched(hessian, f"product {kind}")
        return self._point(vector, replace(lin, hessian=hessian), kind)

    def hessian(self, point: Point, kind: Kind = "exact") -> SymmetricOperator:
        """Return a Hessian at a point; the caller closes it.

        It costs a gradient where products need a graph, and nothing where they do not.
        """
        model = self.space.to_model(point.vector)
        operator = self.objective.hessian(model, kind, space=self.space)
        return self._watched(operator, f"product {kind}")

    def sketch(self, point: Point, kind: Kind, seed: int) -> SymmetricOperator:
        """Return the objective's estimate of a Hessian; the caller closes it."""
        model = self.space.to_model(point.vector)
        operator = self.objective.sketch(model, kind, space=self.space, seed=seed)
        return self._watched(operator, f"sketch {kind} {seed}")

    def sampled(self, size: int, seed: int) -> Problem:
        """Return the problem of a sample of ``size`` parts, which counts here."""
        other = Problem(self.objective.sample(size, seed=seed), self.space, self.counts)
        other.after, other.check_kept = self.after, self.check_kept
        wrap = self.wrap
        other.wrap = lambda operator, label: wrap(operator, f"{label} of sample {seed}")
        return other

    def with_hessian(self, point: Point, kind: Kind | None) -> Point:
        """Return the point with a Hessian of its own, unless ``kind`` is None."""
        if kind is None:
            return point
        return replace(point, hessian=self.hessian(point, kind), kind=kind)

    def _watched(self, operator: SymmetricOperator, label: str) -> SymmetricOperator:
        operator = self.wrap(operator, label)
        operator.after = self.after
        return operator

    def _point(self, vector: Tensor, lin: Linearisation, kind: Kind | None) -> Point:
        gradient = self.space.gradient_to_vector(lin.gradient)
        if not math.isfinite(lin.value) or not bool(torch.isfinite(gradient).all()):
            bad = {
                name: int((~torch.isfinite(g)).sum())
                for name, g in named_tensors(lin.gradient).items()
            }
            told = ", ".join(f"{n} of {name!r}" for name, n in bad.items() if n)
            raise FloatingPointError(
                f"the loss is {lin.value:g}, and of its {gradient.numel()} gradient "
                f"entries {int((~torch.isfinite(gradient)).sum())} are not finite"
                + (f" ({told})" if told else "")
            )
        return Point(
            vector=vector,
            value=lin.value,
            gradient=gradient,
            hessian=lin.hessian,
            active=self.space.active_mask(vector, gradient),
            parts=lin.parts,
            kind=kind or "exact",
        )


def _unwrapped(operator: SymmetricOperator, _: str) -> SymmetricOperator:
    return operator
