"""Leaving a stationary point that is no minimum, along negative curvature.

Where the gradient vanishes it says nothing, and the lowest eigenvector is the way down
(Nocedal and Wright, Numerical Optimization, 2006, §3.4). One estimate of λ_min tells a
minimum from a saddle; its cost is the price of an honest "converged".
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.krylov.eigenvalue import smallest_eigenvalue
from hvpopt.newton.backtracking import Backtracking
from hvpopt.newton.method import Direction, Stationary, Step
from hvpopt.newton.problem import Budget, Point, Problem


def check_curvature_search(
    eigenvalue_floor: float, confidence: float, max_products: int
) -> tuple[float, float, int]:
    """Return a method's options of ``leave_saddle``; raise for what is out of range."""
    return (
        checks.number("eigenvalue_floor", eigenvalue_floor, least=0.0, below=1.0),
        checks.number("confidence", confidence, above=0.0, below=1.0),
        checks.integer("max_products", max_products, least=1),
    )


def leave_saddle(
    problem: Problem,
    point: Point,
    budget: Budget,
    globalisation: Backtracking,
    *,
    floor: float = 1e-6,
    confidence: float = 0.99,
    max_products: int = 300,
    seed: int = 0,
) -> Step | Stationary:
    """Step along negative curvature where the gradient vanishes, if there is any.

    Args:
        problem: For trial values, and for the exact Hessian where the point has none.
        point: Where the gradient is as good as zero.
        budget: What may still be spent.
        globalisation: Shortens the step.
        floor: Size relative to ``‖H‖`` under which λ_min counts as zero.
        confidence: With which a minimum is certified.
        max_products: To spend on λ_min.
        seed: Of the random probe.

    Returns:
        A step that lowered the loss, or what is known of the curvature here.
    """
    if bool(point.active.all()):
        return Stationary(True, "every cell is held at its bound")
    made = problem.hessian(point) if point.hessian is None else None
    try:
        free = point.free_cells(made)
        estimate = smallest_eigenvalue(
            free.operator,
            0.1,
            floor=floor,
            max_products=max(budget.cap(max_products), 1),
            deadline=budget.deadline,
            confidence=confidence,
            seed=seed,
        )
    finally:
        if made is not None:
            made.close()
    if estimate.upper >= 0.0:
        if estimate.converged:
            flat = free.extend(estimate.vector) if estimate.lower <= 0.0 else None
            step = None if flat is None else _fall(problem, point, flat)
            return step or Stationary(True, "no negative curvature here")
        return Stationary(
            False, f"no negative curvature found, but λ_min is {estimate.message}"
        )
    downhill = -1.0 if float(estimate.vector @ free.gradient) > 0.0 else 1.0
    reach = _reach(point)
    lowest = free.extend(downhill * estimate.vector)
    direction = Direction(
        vector=reach * lowest,
        smallest_eigenvalue=estimate.value,
        lower_bound=estimate.lower,
        curvature_step=True,
        negative_curvature=lowest,
    )
    # a bound may close one of the two ways
    for way in (direction, replace(direction, vector=-direction.vector)):
        step = globalisation.search(problem, point, way)
        if step.vector is not None:
            return step
    return Stationary(
        False,
        f"negative curvature {estimate.value:.3g} here, but no step along it lowered "
        "the loss",
    )


def _fall(problem: Problem, point: Point, flat: Tensor) -> Step | None:
    """Return a step along a direction without curvature, if the loss falls along it."""
    # two values tell a degenerate saddle (the monkey's) from a flat valley
    rounding = 100 * torch.finfo(point.vector.dtype).eps * abs(point.value)
    for way in (flat, -flat):
        direction = Direction(_reach(point) * way, smallest_eigenvalue=0.0)
        vector = problem.space.project(point.vector + direction.vector)
        value = problem.value(vector)
        if value < point.value - rounding:
            return Step(vector, value, 1.0, 1, direction)
    return None


def _reach(point: Point) -> float:
    return 0.1 * (1.0 + float(point.vector.norm()))
