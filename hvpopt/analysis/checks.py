"""Derivative checks: does a gradient, or a Hessian, belong to its loss?

The Taylor remainder of order p falls like ε^(p+1) as a step ε shrinks, until it meets
the rounding of the loss's own values. The slope is measured over a sweep of steps, on
the stretch between the two (the dolfin-adjoint test: Farrell, Ham, Funke and Rognes,
SIAM J. Sci. Comput. 35, 2013).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hvpopt.krylov.scale import euclidean_norm
from hvpopt.models import Model, named_tensors
from hvpopt.objective import Objective
from hvpopt.operators import SymmetricOperator
from hvpopt.space import ModelSpace
from hvpopt.torch_objective import as_objective

#: Consecutive steps that a slope is fitted to.
WINDOW = 4


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes:
        name: Which check.
        passed: The verdict.
        measured: The number that was judged: a slope, or a relative difference.
        expected: What it was held against, in words.
        steps: Steps ε of the sweep; empty for checks without one.
        remainders: Taylor remainder at each step.
        used: Indices of the steps that the slope was fitted to.
    """

    name: str
    passed: bool
    measured: float
    expected: str
    steps: tuple[float, ...] = ()
    remainders: tuple[float, ...] = ()
    used: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        verdict = "pass" if self.passed else "FAIL"
        head = f"{verdict}  {self.name}: {self.measured:.4g} (expected {self.expected})"
        rows = [
            f"    step {step:9.2e}  remainder {remainder:9.2e}"
            + ("  *" if i in self.used else "")
            for i, (step, remainder) in enumerate(
                zip(self.steps, self.remainders, strict=True)
            )
        ]
        return "\n".join([head, *rows])


def check_symmetry(
    operator: SymmetricOperator,
    *,
    tol: float | None = None,
    pairs: int = 3,
    seed: int = 0,
) -> CheckReport:
    """Check that ``u·Hw = w·Hu`` for random pairs of vectors.

    Args:
        operator: H; costs two products a pair.
        tol: Largest relative difference, ``|u·Hw − w·Hu| / (‖u‖‖Hw‖ + ‖w‖‖Hu‖)``.
            Default 100 times the operator's noise.
        pairs: Random pairs to try.
        seed: Of the vectors.

    Returns:
        The report; ``measured`` is the largest relative difference.
    """
    tol = 100 * operator.noise if tol is None else tol
    generator = torch.Generator().manual_seed(seed)
    worst = 0.0
    for _ in range(pairs):
        u, w = (
            torch.randn(operator.size, generator=generator, dtype=torch.float64).to(
                operator.device, operator.dtype
            )
            for _ in range(2)
        )
        hw, hu = operator.matvec(w), operator.matvec(u)
        size = float(u.norm()) * euclidean_norm(hw) + float(w.norm()) * euclidean_norm(hu)
        gap = abs(float(u @ hw) - float(w @ hu))
        worst = max(worst, gap / size if size else 0.0)
    return CheckReport("Hessian is symmetric", worst <= tol, worst, f"at most {tol:.1e}")


def check_gradient(
    loss: Objective | Callable[..., Tensor], model: Model, **options: object
) -> CheckReport:
    """Check a gradient: the first-order Taylor remainder has slope 2.

    Args:
        loss: An Objective or a scalar torch function.
        model: Where to expand.
        options: ``direction``, ``size``, ``halvings``, ``tol``, ``seed`` as for
            ``check_hessian``.

    Returns:
        The report; ``measured`` is the slope, or the worst remainder for a loss that is
        linear to rounding.
    """
    return _check_taylor(loss, model, order=1, **options)  # type: ignore[arg-type]


def check_hessian(
    loss: Objective | Callable[..., Tensor], model: Model, **options: object
) -> CheckReport:
    """Check a Hessian: the second-order Taylor remainder has slope 3.

    Args:
        loss: An Objective or a scalar torch function.
        model: Where to expand.
        options: ``direction``, a step shaped like the model (default random);
            ``size``, its largest step relative to the model's norm (default 0.02);
            ``halvings``, the length of the sweep (default 16); ``tol``, how far
            below the whole number the slope may be (default 0.1); ``seed``.

    Returns:
        The report; ``measured`` is the slope, or the worst remainder for a loss that is
        quadratic to rounding.
    """
    return _check_taylor(loss, model, order=2, **options)  # type: ignore[arg-type]


def _check_taylor(
    loss: Objective | Callable[..., Tensor],
    model: Model,
    *,
    order: int,
    direction: Model | None = None,
    size: float = 0.02,
    halvings: int = 16,
    tol: float = 0.1,
    seed: int = 0,
) -> CheckReport:
    objective = as_objective(loss)
    space = ModelSpace(model)
    start = space.to_vector(model)
    if direction is None:
        generator = torch.Generator().manual_seed(seed)
        along = torch.randn(space.size, generator=generator, dtype=torch.float64)
        along = along.to(start)
    else:
        along = space.step_to_vector(direction)
        if not bool(along.any()):
            raise ValueError("the direction is zero; leave it out for a random one")
    along = along * (size * (float(start.norm()) or 1.0) / float(along.norm()))
    slope, curvature, value = _derivatives(objective, model, space, along, order)

    steps = tuple(2.0**-i for i in range(halvings))
    values = [objective.value(space.to_model(start + e * along)) for e in steps]
    remainders = tuple(
        abs(v - value - e * slope - 0.5 * e * e * curvature)
        for e, v in zip(steps, values, strict=True)
    )
    eps = max(float(torch.finfo(t.dtype).eps) for t in named_tensors(model).values())
    # the values along the sweep round, not only the one that it starts from
    floor = 30 * eps * max([abs(value), *(abs(v) for v in values if math.isfinite(v))])
    name = ("gradient matches the loss", "Hessian matches the loss")[order - 1]
    used, measured = _fit(steps, remainders, floor)
    if not used:
        # right if even the longest step leaves nothing but rounding; else too few steps
        # stand clear of it to say anything
        worst = max(remainders)
        expected = (
            f"at most {floor:.1e}, or four steps above it: a larger size, or float64"
        )
        return CheckReport(name, worst <= floor, worst, expected, steps, remainders)
    wanted = order + 1
    return CheckReport(
        name,
        # steeper is right too: the next derivative may vanish along the direction
        measured >= wanted - tol,
        measured,
        f"slope {wanted}, or {tol:g} less at most",
        steps,
        remainders,
        used,
    )


def _derivatives(
    objective: Objective, model: Model, space: ModelSpace, along: Tensor, order: int
) -> tuple[float, float, float]:
    """Return slope and curvature along a direction, and the value."""
    if order == 1:
        value, gradient = objective.value_and_gradient(model)
        return float(space.gradient_to_vector(gradient) @ along), 0.0, value
    lin = objective.linearise(model, "exact", space=space)
    assert lin.hessian is not None
    slope = float(space.gradient_to_vector(lin.gradient) @ along)
    curvature = float(along @ lin.hessian.matvec(along))
    lin.hessian.close()
    return slope, curvature, lin.value


def _fit(
    steps: tuple[float, ...], remainders: tuple[float, ...], floor: float
) -> tuple[tuple[int, ...], float]:
    """Return the steps used and the slope, on the shortest steps above rounding.

    There the remainder is its own leading term: a wrong derivative of relative size δ
    shows only below a step of about δ, however straight the line above that is.
    """
    clean = 0
    while clean < len(steps) and floor < remainders[clean] < math.inf:
        clean += 1
    if clean < WINDOW:
        return (), math.nan
    used = tuple(range(clean - WINDOW, clean))
    x = np.log([steps[i] for i in used])
    y = np.log([remainders[i] for i in used])
    return used, float(np.polyfit(x, y, 1)[0])
