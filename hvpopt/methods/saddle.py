"""Telling a minimum from a saddle, and leaving a saddle along negative curvature.

Where the gradient vanishes, the loss falls along the lowest eigenvector if λ_min < 0
(Nocedal and Wright, Numerical Optimization, 2006, §3.4).

Cells that affect neither gradient nor curvature stay where they are, by two rules. An
eigenvector v of λ < 0 is replaced by H v / λ, which is zero where the rows of H are. And
along a direction without curvature a decrease of the loss counts only if it is above the
loss's measured noise and the gradient at its end agrees.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, TypedDict

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.errors import BadPartError, SecondOrderError
from hvpopt.krylov.eigenvalue import (
    EigenvalueEstimate,
    eigenvalue_converged,
    estimate_from,
    rounding_at,
)
from hvpopt.krylov.lanczos import LanczosBasis
from hvpopt.methods.backtracking import Backtracking, rounding_of
from hvpopt.methods.method import Direction, Method, Stationary, Step, options_of
from hvpopt.methods.points import Budget, FreeCells, Point, Problem
from hvpopt.model._scale import euclidean_norm

#: Relative accuracy of λ_min.
EIGENVALUE_TOL = 0.1
#: How many times its noise the loss must fall by.
SIGNIFICANT = 10.0


class SecondOrderOptions(TypedDict, total=False):
    """The options of a SecondOrderMethod, which its subclasses take as they are."""

    max_products: int
    eigenvalue_floor: float
    confidence: float
    seed: int


class SecondOrderMethod(Method):
    """A method that distinguishes a minimum from a saddle by λ_min of the exact Hessian.

    Args:
        max_products: Products for one step, and for one estimate of λ_min. Default 300.
        eigenvalue_floor: Size relative to ``‖H‖`` under which λ_min counts as zero.
            Default 1e-6.
        confidence: Probability with which a minimum is one where it is certified, and
            with which the lower bounds on λ_min hold. Default 0.99.
        seed: Of all random vectors. Default 0.
        **unknown: None: refused by name.

    Raises:
        TypeError: For an option of the wrong type.
        ValueError: For a number out of range.
    """

    def __init__(
        self,
        *,
        max_products: int = 300,
        eigenvalue_floor: float = 1e-6,
        confidence: float = 0.99,
        seed: int = 0,
        **unknown: object,
    ) -> None:
        if unknown:
            raise TypeError(
                f"{type(self).__name__} has no option {', '.join(map(repr, unknown))}; "
                f"it has {', '.join(options_of(type(self)))}"
            )
        self.eigenvalue_floor = checks.number(
            "eigenvalue_floor", eigenvalue_floor, least=0.0, below=1.0
        )
        self.confidence = checks.number("confidence", confidence, above=0.0, below=1.0)
        self.max_products = checks.integer("max_products", max_products, least=1)
        self.seed = checks.seed("seed", seed)

    def escape(
        self, problem: Problem, point: Point, state: Any, budget: Budget
    ) -> Step | Stationary:
        """Return a step along negative curvature, or what is known of the point."""
        if bool(point.active.all()):
            return Stationary(True, "every cell is held at its bound")
        if budget.products < 1:
            reason = "λ_min was not looked at, for want of products"
            return Stationary(False, reason, unfinished=True)
        own = point.hessian if point.kind == "exact" else None
        made = None
        try:
            if own is None:
                made = own = problem.hessian(point)
            return self._look(problem, point, point.free_cells(own), budget)
        except BadPartError:
            raise
        except (RuntimeError, FloatingPointError) as error:
            out_of_memory = isinstance(error, torch.cuda.OutOfMemoryError)
            if out_of_memory or getattr(error, "ends_run", None) is not None:
                raise  # lost memory or a lost process is no property of the curvature
            reason = error.cause if isinstance(error, SecondOrderError) else str(error)
            return Stationary(False, f"its curvature is unknown: {reason}")
        finally:
            if made is not None:
                made.close()

    def _look(
        self, problem: Problem, point: Point, free: FreeCells, budget: Budget
    ) -> Step | Stationary:
        basis = LanczosBasis(free.operator, seed=self.seed)
        estimate = self._estimate(basis, budget)
        # what a matrix that is not symmetric to rounding shows is no eigenvalue
        error = max(rounding_at(basis), basis.asymmetry * basis.norm_estimate)
        zero = max(error, self.eigenvalue_floor * basis.norm_estimate)
        if estimate.value < -(zero if estimate.converged else error):
            return self._fall(problem, point, free, estimate)
        if not estimate.converged:
            reason = (
                f"no negative curvature was met in {_products(basis)}, and λ_min is "
                f"{estimate.message}"
            )
            return Stationary(False, reason, unfinished=True)
        if abs(estimate.value) <= zero:
            step = _fall_without_curvature(problem, point, free.extend(estimate.vector))
            if step is not None:
                return step
        if basis.norm_estimate == 0.0:
            return Stationary(False, "its Hessian vanishes, which says nothing")
        reason = (
            f"no negative curvature was found here: λ_min ≥ {estimate.lower:.2g} with "
            f"probability {self.confidence:g}, in {_products(basis)}"
        )
        return Stationary(True, reason)

    def _estimate(self, basis: LanczosBasis, budget: Budget) -> EigenvalueEstimate:
        # one is kept for the step along what is found
        limit = max(min(budget.cap(self.max_products), budget.cap(10**9) - 1), 1)
        converged = False
        while basis.size < limit and not converged:
            if basis.size and time.monotonic() > budget.deadline:
                break
            if not basis.extend():
                break
            converged = eigenvalue_converged(
                basis, EIGENVALUE_TOL, self.confidence, floor=self.eigenvalue_floor
            )
        return estimate_from(basis, EIGENVALUE_TOL, self.confidence, converged=converged)

    def _fall(
        self,
        problem: Problem,
        point: Point,
        free: FreeCells,
        estimate: EigenvalueEstimate,
    ) -> Step | Stationary:
        """Step along an eigenvector of negative curvature, if the loss falls along it."""
        # H v / λ is zero for cells that the loss does not depend on
        lowest = free.operator.matvec(estimate.vector) / estimate.value
        lowest = free.extend(lowest / euclidean_norm(lowest))
        downhill = -1.0 if float(lowest @ point.gradient) > 0.0 else 1.0
        direction = Direction(
            vector=downhill * _reach(point) * lowest,
            smallest_eigenvalue=estimate.value,
            lower_bound=estimate.lower,
            curvature_step=True,
            negative_curvature=downhill * lowest,
        )
        # a bound may close one of the two ways
        for way in (direction, replace(direction, vector=-direction.vector)):
            step = Backtracking().search(problem, point, way)
            fall = point.value - step.value
            if step.vector is not None and fall > rounding_of(problem, point):
                return step
        return Stationary(
            False,
            f"negative curvature {estimate.value:.3g} here, but no step along it lowered "
            "the loss above its rounding",
        )


def _fall_without_curvature(problem: Problem, point: Point, flat: Tensor) -> Step | None:
    """Return a step along a direction without curvature, if the loss falls along it.

    A degenerate saddle (the monkey's, x³ − 3xy²) falls with a power p > 2 of the length,
    so that the slope at the end is p times the fall. Where the loss is constant it
    changes by its rounding, and its slope is rounding too.
    """
    noise: float | None = None
    for way in (flat, -flat):
        vector = problem.space.project(point.vector + _reach(point) * way)
        fall = point.value - problem.value(vector)
        if not fall > rounding_of(problem, point):
            continue
        noise = _measured_noise(problem, point) if noise is None else noise
        if fall <= SIGNIFICANT * noise:
            continue
        end = problem.trial(vector)
        if end is None:
            continue
        # cells on which the loss does not depend at the end either stay where they are
        moved = (vector - point.vector).masked_fill(end.gradient == 0.0, 0.0)
        if -float(end.gradient @ moved) < fall:
            continue
        vector = point.vector + moved
        value = problem.value(vector)
        if point.value - value > SIGNIFICANT * noise:
            direction = Direction(moved, smallest_eigenvalue=0.0, curvature_step=True)
            return Step(vector, value, 1.0, 2, direction)
    return None


def _measured_noise(problem: Problem, point: Point) -> float:
    """Return how much the loss changes by where the point changes by its rounding."""
    # Of three values about a point where the loss is flat; the full procedure is Moré
    # and Wild's, SIAM J. Sci. Comput. 33, 2011.
    noise = rounding_of(problem, point)
    generator = torch.Generator().manual_seed(0)
    for k in (1.0, 2.0, 3.0):
        signs = torch.randint(0, 2, point.vector.shape, generator=generator)
        tiny = k * problem.space.eps * (2.0 * signs.to(point.vector) - 1.0)
        vector = problem.space.project(point.vector * (1.0 + tiny))
        noise = max(noise, abs(problem.value(vector) - point.value))
    return noise


def _products(basis: LanczosBasis) -> str:
    return f"{basis.size} product{'s' if basis.size != 1 else ''}"


def _reach(point: Point) -> float:
    return 0.1 * (1.0 + euclidean_norm(point.vector))
