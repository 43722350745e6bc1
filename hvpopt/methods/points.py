"""What a method sees of the problem: flat points, values, linearisations, a budget."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from hvpopt.model.space import ModelSpace
from hvpopt.model.tensors import named_tensors
from hvpopt.operators.symmetric import RestrictedOperator, SymmetricOperator
from hvpopt.problem.objective import Kind, Linearisation, Objective

logger = logging.getLogger(__name__)

T = TypeVar("T")

_in_trial: ContextVar[bool] = ContextVar("in_trial", default=False)


class SumChanged(FloatingPointError):  # noqa: N818 - a signal to evaluate again
    """The objective has left something out for good, and is another sum from now on.

    Raised where a caller holds values of the sum before: it evaluates them again rather
    than compare the two.
    """


def in_trial() -> bool:
    """Return True while a trial point is evaluated.

    A trial's value is compared to that of the point it left. An objective may then refuse
    a model, which shortens the step, but must not change what it is the sum of.
    """
    return _in_trial.get()


@contextmanager
def trials() -> Iterator[None]:
    """A block whose evaluations are trials, for a minimiser that compares their values.

    Yields:
        Nothing.
    """
    token = _in_trial.set(True)
    try:
        yield
    finally:
        _in_trial.reset(token)


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
        """Return the Hessian and gradient of the cells that are not active.

        Args:
            hessian: Default the point's own.

        Raises:
            RuntimeError: If there is none.
        """
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
    """The linear algebra of the cells that no bound holds.

    Attributes:
        operator: The Hessian's rows and columns of these cells.
        gradient: The gradient's entries.
        restrict: From a full vector ``[n]`` to these cells.
        extend: From a vector of these cells to the full ``[n]``, zero elsewhere.
    """

    operator: SymmetricOperator
    gradient: Tensor
    restrict: Callable[[Tensor], Tensor]
    extend: Callable[[Tensor], Tensor]


def _same(vector: Tensor) -> Tensor:
    return vector


@dataclass(frozen=True)
class Budget:
    """What a run may still spend.

    Attributes:
        products: Hessian-vector products left.
        deadline: When ``time.monotonic()`` passes this, seconds, the run ends.
        accuracy: Relative residual that a linear solve is asked for at least, however
            loose the method's own tolerance.
    """

    products: float = math.inf
    deadline: float = math.inf
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

    Attributes:
        last_error: What the loss raised when it last refused a trial, or None.
        check_kept: Called with what a method means to keep in its state, before it spends
            more on it; raises where a saved run could not store that. Default it does
            nothing.
    """

    def __init__(self, objective: Objective, space: ModelSpace) -> None:
        self.objective = objective
        self.space = space
        self.last_error: Exception | None = None
        self.check_kept: Callable[[Any], None] = lambda _: None

    @property
    def last_failure(self) -> str:
        """The last error in words; empty without one."""
        error = self.last_error
        return "" if error is None else f"{type(error).__name__}: {error}"

    def value(self, vector: Tensor) -> float:
        """Return the objective at a trial point; infinite where it cannot be evaluated.

        A loss may refuse a model (one faster than ``max_vel``, say). For a trial that
        means "shorter, please", so the refusal is logged and the value is infinite.

        Args:
            vector: ``[n]``.

        Returns:
            The value, or infinity.

        Raises:
            torch.cuda.OutOfMemoryError: A shorter step needs no less memory.
        """
        value = self._try(lambda: self.objective.value(self.space.to_model(vector)))
        return value if value is not None and math.isfinite(value) else math.inf

    def trial(self, vector: Tensor) -> Point | None:
        """Return value and gradient at a trial point; None where they cannot be.

        Args:
            vector: ``[n]``.

        Raises:
            torch.cuda.OutOfMemoryError: A shorter step needs no less memory.
        """
        return self._try(lambda: self.linearise(vector, None))

    def _try(self, evaluate: Callable[[], T]) -> T | None:
        try:
            with trials():
                return evaluate()
        except torch.cuda.OutOfMemoryError:
            raise
        except (ValueError, ArithmeticError, RuntimeError) as error:
            if getattr(error, "ends_run", False):
                raise  # a lost process is no refusal of this model
            self.last_error = error
            logger.info("trial refused by the loss: %s", self.last_failure)
            return None

    def linearise(self, vector: Tensor, kind: Kind | None) -> Point:
        """Return value, gradient and, unless ``kind`` is None, Hessian at a point."""
        model = self.space.to_model(vector)
        lin = self.objective.linearise(model, kind, space=self.space)
        return self._point(vector, lin, kind)

    def hessian(self, point: Point, kind: Kind = "exact") -> SymmetricOperator:
        """Return a Hessian at a point; the caller closes it.

        It costs a gradient where products need a graph, and nothing where they do not.

        Args:
            point: Where.
            kind: Which.
        """
        model = self.space.to_model(point.vector)
        return self.objective.hessian(model, kind, space=self.space)

    def with_hessian(self, point: Point, kind: Kind | None) -> Point:
        """Return the point with a Hessian of its own, unless ``kind`` is None."""
        if kind is None:
            return point
        return replace(point, hessian=self.hessian(point, kind), kind=kind)

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
            active=self.space.pushed_out(vector, gradient),
            parts=lin.parts,
            kind=kind or "exact",
        )
