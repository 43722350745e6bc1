"""Checks that a gradient or a Hessian is the derivative of its loss.

The Taylor remainder of order p decreases like ε^(p+1) with the step ε, down to the
rounding of the loss's values. Its slope on a logarithmic scale is fitted to the shortest
steps of a sweep above that rounding (the dolfin-adjoint test: Farrell, Ham, Funke and
Rognes, SIAM J. Sci. Comput. 35, 2013).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.model._scale import euclidean_norm
from hvpopt.model.space import ModelSpace
from hvpopt.model.tensors import Model, named_tensors
from hvpopt.operators.autograd import model_noise
from hvpopt.operators.symmetric import SymmetricOperator, checked_operator
from hvpopt.problem.objective import Objective
from hvpopt.problem.torch_objective import as_objective

#: Number of consecutive steps to which a slope is fitted.
WINDOW = 4
#: Standard deviations from zero above which a term of the remainder is significant.
SIGNIFICANT = 10.0
#: Relative error of a derivative that a check must be able to detect to pass.
RESOLUTION = 0.01

Outcome: TypeAlias = "Literal['pass', 'fail', 'cannot be told']"


@dataclass(frozen=True)
class CheckReport:
    """The result of a check; true as a Boolean if it passed.

    Attributes:
        name: Name of the check.
        passed: True if the outcome is ``"pass"``.
        measured: The measured number: a slope, or a relative difference.
        expected: Description of the values of ``measured`` that pass.
        steps: Steps ε of the sweep; empty for checks without one.
        remainders: Taylor remainder at each step.
        used: Indices of the steps to which the slope was fitted.
        outcome: ``"pass"``; ``"fail"``, if the derivative is wrong beyond the rounding
            of the loss; or ``"cannot be told"``, if that rounding hides errors of 1 %
            and more. A correct derivative does not fail for the rounding of its loss.
    """

    name: str
    passed: bool
    measured: float
    expected: str
    steps: tuple[float, ...] = ()
    remainders: tuple[float, ...] = ()
    used: tuple[int, ...] = ()
    outcome: Outcome = "pass"

    @property
    def failed(self) -> bool:
        """True if the outcome is ``"fail"``."""
        return self.outcome == "fail"

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        verdict = {"pass": "pass", "fail": "FAIL"}.get(self.outcome, self.outcome)
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
    n_pairs: int = 3,
    seed: int = 0,
) -> CheckReport:
    """Check that ``u·Hw = w·Hu`` for random pairs of vectors.

    Args:
        operator: The operator H; each pair costs two products.
        tol: Largest relative difference, ``|u·Hw − w·Hu| / (‖u‖‖Hw‖ + ‖w‖‖Hu‖)``.
            Default 100 times the operator's noise.
        n_pairs: Number of random pairs. Default 3.
        seed: Seed of the vectors. Default 0.

    Returns:
        The report; ``measured`` is the largest relative difference.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: For a number out of range.
    """
    checked_operator(operator)
    tol = 100 * operator.noise if tol is None else checks.number("tol", tol, above=0.0)
    n_pairs = checks.integer("n_pairs", n_pairs, least=1)
    generator = torch.Generator().manual_seed(checks.seed("seed", seed))
    worst = 0.0
    for _ in range(n_pairs):
        u, w = (
            torch.randn(operator.size, generator=generator, dtype=torch.float64).to(
                operator.device, operator.dtype
            )
            for _ in range(2)
        )
        hw, hu = operator.matvec(w), operator.matvec(u)
        unit = max(euclidean_norm(hw), euclidean_norm(hu))
        if unit == 0.0:
            continue
        # in units of the larger product, whose inner products may leave float64
        hw, hu = hw / unit, hu / unit
        size = float(u.norm()) * euclidean_norm(hw) + float(w.norm()) * euclidean_norm(hu)
        worst = max(worst, abs(float(u @ hw) - float(w @ hu)) / size)
    return CheckReport(
        "Hessian is symmetric",
        worst <= tol,
        worst,
        f"at most {tol:.1e}",
        outcome="pass" if worst <= tol else "fail",
    )


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
        The report; ``measured`` as for ``check_hessian``.

    Raises:
        TypeError: For an unknown option, or one of the wrong type.
        ValueError: For a number out of range, or a direction that is zero.

    Example:
        >>> import torch
        >>> from hvpopt import analysis
        >>> x = torch.tensor([0.3, 0.7], dtype=torch.float64)
        >>> analysis.check_gradient(lambda x: x.exp().sum(), x).passed
        True
    """
    return _check_taylor(loss, model, 1, options)


def check_hessian(
    loss: Objective | Callable[..., Tensor], model: Model, **options: object
) -> CheckReport:
    """Check a Hessian: the second-order Taylor remainder has slope 3.

    Args:
        loss: An Objective or a scalar torch function.
        model: Where to expand.
        options: ``direction``, a step shaped like the model (default random);
            ``size``, the longest step relative to the model's norm (default 0.02);
            ``halvings``, the number of steps in the sweep (default 16); ``tol``, the
            largest amount by which the slope may be below 3 (default 0.1); ``seed`` of
            the random direction (default 0).

    Returns:
        The report; ``measured`` is the slope, or the largest remainder if that is within
        rounding, or the relative error if the slope is below its tolerance. The rounding
        of the loss is estimated from the shortest steps, and ``outcome`` from powers of
        the step fitted to the sweep.

    Raises:
        TypeError: For an unknown option, or one of the wrong type.
        ValueError: For a number out of range, or a direction that is zero.
    """
    return _check_taylor(loss, model, 2, options)


def _check_taylor(
    loss: Objective | Callable[..., Tensor],
    model: Model,
    order: int,
    options: dict[str, Any],
) -> CheckReport:
    unknown = sorted(set(options) - {"direction", "size", "halvings", "tol", "seed"})
    if unknown:
        raise TypeError(
            f"unknown options {unknown}; there are direction, size, halvings, tol, seed"
        )
    direction: Model | None = options.get("direction")
    size = checks.number("size", options.get("size", 0.02), above=0.0, below=math.inf)
    halvings = checks.integer("halvings", options.get("halvings", 16), least=1, most=1000)
    tol = checks.number("tol", options.get("tol", 0.1), least=0.0, below=math.inf)
    seed = checks.seed("seed", options.get("seed", 0))
    objective = as_objective(loss)
    space = ModelSpace(model)
    start = space.to_vector(model)
    if direction is None:
        generator = torch.Generator().manual_seed(seed)
        along = torch.randn(space.size, generator=generator, dtype=torch.float64)
        along = along.to(start)
    else:
        along = space.step_to_vector(direction)
        if not bool(torch.isfinite(along).all()):
            raise ValueError("the direction has NaN or infinite cells")
        if not bool(along.any()):
            raise ValueError("the direction is zero; leave it out for a random one")
    along = along * (size * (float(start.norm()) or 1.0) / float(along.norm()))
    known = _derivatives(objective, model, space, along, order)

    steps = tuple(2.0**-i for i in range(halvings))
    values = [objective.value(space.to_model(start + e * along)) for e in steps]
    signed = [
        v - known.value - e * known.slope - 0.5 * e * e * known.curvature
        for e, v in zip(steps, values, strict=True)
    ]
    remainders = tuple(map(abs, signed))
    eps = max(float(torch.finfo(t.dtype).eps) for t in named_tensors(model).values())
    # values along the sweep may be larger than that at the start, and round by more
    finite = [abs(v) for v in values if math.isfinite(v)]
    rounding = 30 * eps * max([abs(known.value), *finite])
    fit = _fit_powers(steps, signed, [eps * abs(v) for v in values], order)
    floor = rounding if fit is None else max(rounding, 10 * fit.noise)
    name = ("gradient matches the loss", "Hessian matches the loss")[order - 1]
    used, slope = _fit_slope(steps, remainders, floor)
    wanted = order + 1
    worst = max(remainders)

    def report(outcome: Outcome, measured: float, expected: str) -> CheckReport:
        return CheckReport(
            name, outcome == "pass", measured, expected, steps, remainders, used, outcome
        )

    by_slope = f"slope {wanted}, or {tol:g} less at most"
    if fit is not None and fit.is_wrong(known.roundings):
        if used:
            return report("fail", slope, by_slope)
        return report("fail", worst, f"at most {floor:.1e}")
    if not used and worst <= rounding:
        # the remainder of the longest step is within rounding
        return report("pass", worst, f"at most {rounding:.1e}")
    if fit is not None and fit.resolves(known.term(order)):
        # a steeper slope passes: the next derivative may vanish along the direction
        if used and slope >= wanted - tol:
            return report("pass", slope, by_slope)
        error = fit.error(known.term(order))
        return report("pass", error, f"an error of at most {RESOLUTION:g}")
    hint = (
        f"slope {wanted} over four steps above the loss's own rounding, {floor:.1e}: try "
        "another size, more halvings, or float64"
    )
    return report("cannot be told", slope if used else worst, hint)


@dataclass(frozen=True)
class _Derivatives:
    """The derivatives that an objective returns, along a direction."""

    value: float  # at the start
    slope: float  # first derivative
    curvature: float  # second derivative; 0 in a check of the gradient
    # rounding of Taylor terms of order 1 and up; smaller errors are not called wrong
    roundings: tuple[float, ...]

    def term(self, order: int) -> float:
        """Return the coefficient of a power in the Taylor series."""
        return self.slope if order == 1 else 0.5 * self.curvature


def _derivatives(
    objective: Objective, model: Model, space: ModelSpace, along: Tensor, order: int
) -> _Derivatives:
    length, noise = float(along.norm()), 100 * model_noise(model)
    if order == 1:
        value, shaped = objective.value_and_gradient(model)
        gradient = space.gradient_to_vector(shaped)
        rounding = noise * float(gradient.norm()) * length
        return _Derivatives(value, float(gradient @ along), 0.0, (rounding,))
    lin = objective.linearise(model, "exact", space=space)
    assert lin.hessian is not None
    gradient = space.gradient_to_vector(lin.gradient)
    product = lin.hessian.matvec(along)
    lin.hessian.close()
    roundings = (
        noise * float(gradient.norm()) * length,
        noise * 0.5 * float(product.norm()) * length,
    )
    return _Derivatives(
        lin.value, float(gradient @ along), float(along @ product), roundings
    )


def _fit_slope(
    steps: tuple[float, ...], remainders: tuple[float, ...], floor: float
) -> tuple[tuple[int, ...], float]:
    """Return the steps used and the slope, on the shortest steps above rounding."""
    # there the leading term dominates the remainder: a relative error δ of the derivative
    # changes the slope only for steps below about δ
    clean = 0
    while clean < len(steps) and floor < remainders[clean] < math.inf:
        clean += 1
    if clean < WINDOW:
        return (), math.nan
    used = tuple(range(clean - WINDOW, clean))
    x = np.log([steps[i] for i in used])
    y = np.log([remainders[i] for i in used])
    return used, float(np.polyfit(x, y, 1)[0])


@dataclass(frozen=True)
class _Powers:
    """A remainder as a sum of powers of the step, up to two above the order."""

    order: int  # of the derivative that is checked
    noise: float  # rounding of the loss's values, estimated from the shortest steps
    longest: float  # the longest step at which the sum fits to within the noise
    remainder: float  # its size at that step
    found: tuple[float, ...]  # coefficients of the powers from 0 up
    uncertain: tuple[float, ...]  # uncertainty of each coefficient

    def is_wrong(self, roundings: tuple[float, ...]) -> bool:
        """Return True if a power that exact derivatives cancel is significant."""
        return any(
            abs(self.found[p]) > max(self.uncertain[p], roundings[p - 1])
            for p in range(1, self.order + 1)
        )

    def resolves(self, term: float) -> bool:
        """Return True if an error of RESOLUTION in the highest derivative shows."""
        return self.uncertain[self.order] <= RESOLUTION * self._size(term)

    def error(self, term: float) -> float:
        """Return the error of the highest derivative, relative to its ``term``."""
        return abs(self.found[self.order]) / self._size(term)

    def _size(self, term: float) -> float:
        # the remainder, if the derivative vanishes along the direction
        return abs(term) + self.remainder / self.longest**self.order


def _fit_powers(
    steps: tuple[float, ...],
    signed: list[float],
    roundings: list[float],
    order: int,
) -> _Powers | None:
    """Fit powers of the step to the longest part of a sweep that they describe."""
    # The rounding of a loss may exceed that of its dtype by far. On the shortest steps a
    # power series of few terms is exact, so that its residual is this rounding; the
    # constant term is the rounding of the value at the start.
    powers = np.arange(order + 3)
    n_steps = len(steps)
    first = next((i for i in range(n_steps) if all(map(math.isfinite, signed[i:]))), 0)
    if not all(map(math.isfinite, signed)) and first == 0:
        return None
    if n_steps - first < len(powers) + 2:
        return None
    tail = max(first, n_steps - len(powers) - 3)
    values, least = np.asarray(signed), np.maximum(roundings, np.finfo(float).tiny)

    def fitted(begin: int, noise: float) -> tuple[Any, Any, float]:
        """Return coefficients, their deviations for unit noise, and the residual."""
        x = np.asarray(steps[begin:])
        weights = 1 / np.maximum(least[begin:], noise)
        unit = weights.max()  # of a loss that is zero its squares are out of range
        weights = weights / unit
        scales = x[0] ** -powers.astype(float)
        matrix = (x[:, None] / x[0]) ** powers * weights[:, None]
        solved = np.linalg.lstsq(matrix, values[begin:] * weights, rcond=None)[0]
        residual = matrix @ solved - values[begin:] * weights
        spread = unit * np.linalg.norm(residual) / math.sqrt(len(x) - len(powers))
        deviations = np.sqrt(np.diag(np.linalg.pinv(matrix.T @ matrix))) / unit
        return solved * scales, deviations * scales, float(spread)

    coefficients, _, spread = fitted(tail, 0.0)
    noise = max(float(least[tail:].max()) * spread, abs(float(coefficients[0])))
    for begin in range(first, tail + 1):
        coefficients, deviations, spread = fitted(begin, noise)
        if spread <= 3:
            break
    # higher powers bias the coefficients too, and less so on a shorter stretch
    shorter, _, _ = fitted(begin + 1, noise)
    uncertain = SIGNIFICANT * deviations * max(spread, 1.0)
    uncertain += 3 * np.abs(coefficients - shorter)
    return _Powers(
        order,
        noise,
        steps[begin],
        abs(signed[begin]),
        tuple(map(float, coefficients)),
        tuple(map(float, uncertain)),
    )
