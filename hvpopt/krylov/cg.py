"""Preconditioned conjugate gradients that stop at negative curvature.

Hestenes and Stiefel, J. Res. Nat. Bur. Standards 49, 1952; the test for curvature, whose
direction is returned, is Steihaug's, SIAM J. Numer. Anal. 20, 1983. Consecutive
directions measure how symmetric the products are, at no cost: ``d_j·(A d_{j+1})`` and
``(A d_j)·d_{j+1}`` come from two products and should agree. Below the rounding of the
products, ``ε ‖A‖ max ‖x‖``, the true residual does not follow that of the recurrence
(Greenbaum, SIAM J. Matrix Anal. Appl. 18, 1997), and further products lower nothing.

All is done in units near the size of b, of the first ``M⁻¹ r`` and of the first product,
powers of two: squares stay in the range of the dtype, and rounding is unchanged.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Generic, NoReturn, TypeVar, cast

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.krylov.preconditioner import (
    Preconditioner,
    apply_base,
    checked_preconditioner,
)
from hvpopt.model._scale import euclidean_norm, times_power, unit_of
from hvpopt.model._shown import screen, summarised
from hvpopt.model.tensors import Model
from hvpopt.operators.symmetric import SymmetricOperator, checked_operator

#: A flat vector, or what is shaped like the operator's model.
Shaped = TypeVar("Shaped", bound=Model)

#: Asymmetry of products relative to ‖A‖ that no rounding explains.
NOT_SYMMETRIC = 1e-2


class CGStatus(Enum):
    """Why conjugate gradients ended."""

    CONVERGED = "the residual met its tolerance"
    NEGATIVE_CURVATURE = "a direction of zero or negative curvature was met"
    MAX_PRODUCTS = "the limit of products was reached before the residual's tolerance"
    DEADLINE = "the time limit was reached before the residual's tolerance"
    FLOOR = "the tolerance lies under the rounding of the products"
    ASYMMETRIC = "the operator is not symmetric: its products contradict each other"
    OUT_OF_RANGE = (
        "the solution lies outside the range of its dtype; the start is returned"
    )

    @property
    def message(self) -> str:
        """The sentence for a person."""
        return self.value


@dataclass(frozen=True, repr=False)
class CGResult(Generic[Shaped]):
    """What conjugate gradients found.

    Norms and curvature are those of flat vectors.

    Attributes:
        x: The last iterate, ``[n]`` or shaped like the model, as the right-hand side was;
            for negative curvature the one before it was met.
        status: Why it ended.
        residual_norm: ``‖b − A x‖``, from the recurrence.
        n_products: Products spent.
        direction: The direction of negative curvature, shaped like ``x``, else None.
        curvature: ``d·A d / d·d`` along it, else NaN.
        residual: ``b − A x``, shaped like the right-hand side, from the recurrence.
        product_error: An estimate of ``‖δ(A d)‖ / ‖A‖‖d‖``, a few times too large, where
            the errors of two products are as independent as rounding; NaN before there
            are three.
    """

    x: Shaped
    status: CGStatus
    residual_norm: float
    n_products: int
    direction: Shaped | None = None
    curvature: float = math.nan
    residual: Shaped | None = None
    product_error: float = math.nan

    def __repr__(self) -> str:
        curvature = f"{self.curvature:.4g} along " if self.direction is not None else ""
        rows = {
            "x": summarised(self.x),
            "residual_norm": f"{self.residual_norm:.4g}",
            "n_products": str(self.n_products),
            "direction": curvature + summarised(self.direction),
        }
        return screen(f"CGResult: {self.status.message}", rows)


#: What serves here for options of scipy.sparse.linalg.cg.
_ELSEWHERE = {
    "M": "use preconditioner=",
    "atol": "use tol=, relative to the right-hand side",
    "callback": "it has none",
    "maxiter": "use max_products=",
    "rtol": "use tol=",
    "x0": "use start=",
}


def cg(
    operator: SymmetricOperator,
    rhs: Shaped,
    *,
    start: Shaped | None = None,
    tol: float = 1e-5,
    max_products: int | None = None,
    deadline: float = math.inf,
    preconditioner: Preconditioner | None = None,
    **unknown: NoReturn,
) -> CGResult[Shaped]:
    """Solve ``A x = b`` by preconditioned conjugate gradients.

    Args:
        operator: A, symmetric; need not be definite.
        rhs: b, ``[n]``; or shaped like the model, a gradient, where the operator has a
            space and ``H @`` takes steps of that shape. The solution then has it too.
        start: The first iterate, shaped like ``rhs``; its product counts. Default zero,
            as for a right-hand side of zero.
        tol: Stop at ``‖b − A x‖ ≤ tol · ‖b‖``.
        max_products: Stop after this many products. Default ``2 n``.
        deadline: Stop when ``time.monotonic()`` passes this, seconds.
        preconditioner: Applies ``M⁻¹``. Default none.
        **unknown: None: refused by name.

    Returns:
        The iterate and why it ended.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: If ``tol`` is not in (0, 1), the right-hand side or the start does not
            fit, or the preconditioner is not positive definite.

    Example:
        >>> import torch, hvpopt
        >>> A = hvpopt.MatrixOperator(torch.tensor([[2.0, 1.0], [1.0, 3.0]]).double())
        >>> found = hvpopt.cg(A, torch.tensor([3.0, 4.0], dtype=torch.float64))
        >>> found.status.name, found.n_products
        ('CONVERGED', 2)
        >>> found.x
        tensor([1.0000, 1.0000], dtype=torch.float64)
    """
    checks.no_option(cg, unknown, _ELSEWHERE)
    checked_operator(operator)
    options: dict[str, Any] = {
        "tol": tol,
        "max_products": max_products,
        "deadline": deadline,
        "preconditioner": preconditioner,
    }
    space, given = operator.space, cast("Any", rhs)
    if space is None or not space.accepts(given):
        flat: Any = flat_cg(operator, given, start=cast("Any", start), **options)
        return cast("CGResult[Shaped]", flat)
    x = None
    if start is not None:
        if not space.accepts(start):
            raise TypeError(
                f"the start is {checks.shown(start)}, and the right-hand side is shaped "
                "like the model; pass both alike"
            )
        x = space.step_to_vector(start)
    found = flat_cg(operator, space.gradient_to_vector(given), start=x, **options)
    negative, residual = found.direction, found.residual
    shaped: Any = replace(
        cast("CGResult[Any]", found),
        x=space.step_to_model(found.x),
        direction=None if negative is None else space.step_to_model(negative),
        residual=None if residual is None else space.gradient_to_model(residual),
    )
    return cast("CGResult[Shaped]", shaped)


def flat_cg(
    operator: SymmetricOperator,
    rhs: Tensor,
    *,
    start: Tensor | None = None,
    tol: float = 1e-5,
    max_products: int | None = None,
    deadline: float = math.inf,
    preconditioner: Preconditioner | None = None,
) -> CGResult[Tensor]:
    """Return what ``cg`` does, of vectors ``[n]`` that are flat whatever the model is."""
    # A flat vector of a scaled model of one axis has that model's shape, and ``cg`` would
    # take it for a model. Methods, which work with flat vectors alone, call this one.
    tol = checks.fraction("tol", tol)
    most = checks.optional(checks.limit, "max_products", max_products)
    deadline = checks.number("deadline", deadline)
    checked_preconditioner(preconditioner)
    measured = _Measurements(operator)
    _check_flat("the right-hand side", rhs, operator)
    if start is not None:
        _check_flat("the start", start, operator)
    limit = 2 * operator.size if most is None else most
    if start is not None and limit < 1:
        start = None  # its residual takes a product
    if not bool(rhs.any()):
        zero = torch.zeros_like(rhs)
        return CGResult(zero, CGStatus.CONVERGED, 0.0, 0, residual=zero)
    size = unit_of(rhs)
    x = torch.zeros_like(rhs)
    first = rhs
    if start is not None:
        first = rhs - operator.matvec(start).to(rhs.dtype)
        measured.products += 1
    r = first / size
    target = tol * float((rhs / size).norm())
    z, steps = _in_unit(r, preconditioner)
    d = z.clone()
    unit = 0.0
    rz = _inner(r, z)
    norm = float(r.norm())
    status = CGStatus.CONVERGED
    negative: Tensor | None = None
    curvature = math.nan
    while norm > target:
        if norm <= measured.floor or rz <= 0.0:  # of M⁻¹ a product may also round
            status = CGStatus.FLOOR
            break
        if measured.products >= limit:
            status = CGStatus.MAX_PRODUCTS
            break
        if time.monotonic() > deadline:
            status = CGStatus.DEADLINE
            break
        product = operator.matvec(d)
        if not unit:
            unit = unit_of(product)
            if start is not None:
                measured.note_iterate(times_power(start, unit, size))
        a_d = product / unit
        d_a_d = float(d @ a_d)
        measured.note_product(d, a_d)
        if d_a_d <= 0.0:
            status, negative = CGStatus.NEGATIVE_CURVATURE, d
            curvature = unit * (d_a_d / float(d @ d))
            break
        step = rz / d_a_d
        x = x + step * d
        r = r - step * a_d
        norm = float(r.norm())
        measured.note_iterate(x)
        if norm <= target:
            break
        z = apply_base(preconditioner, r) / steps
        rz, before = _inner(r, z), rz
        d = z + (rz / before) * d
    if status in (CGStatus.FLOOR, CGStatus.MAX_PRODUCTS) and measured.asymmetric:
        status = CGStatus.ASYMMETRIC
    unit = unit or 1.0
    solution = times_power(x, size, unit)
    # what the way into the dtype's range and back loses counts as residual
    lost = euclidean_norm(times_power(solution, unit, size) - x) * measured.norm
    if not lost <= max(target, norm):
        status = CGStatus.OUT_OF_RANGE
        solution, r = torch.zeros_like(rhs), first / size
        norm = float(r.norm())
    if start is not None:
        solution = solution + start
    return CGResult(
        solution,
        status,
        norm * size,
        measured.products,
        direction=negative,
        curvature=curvature,
        residual=r * size,
        product_error=measured.product_error,
    )


def _check_flat(what: str, vector: object, operator: SymmetricOperator) -> None:
    flat = checks.tensor(what, vector, (operator.size,))
    if not bool(torch.isfinite(flat).all()):
        raise ValueError(f"{what} has NaN or infinite entries")


class _Measurements:
    """Norm and symmetry of an operator, from the products of one solve."""

    def __init__(self, operator: SymmetricOperator) -> None:
        self.noise = operator.noise
        self.size = operator.size
        self.products = 0
        self.norm = 0.0
        self._largest_x = 0.0
        self._gaps: list[float] = []
        self._last: tuple[Tensor, Tensor, float] | None = None

    def note_product(self, d: Tensor, a_d: Tensor) -> None:
        """Note a direction and its product."""
        length = float(d.norm())
        self.norm = max(self.norm, float(a_d.norm()) / length)
        if self._last is not None:
            before, a_before, length_before = self._last
            gap = abs(float(before @ a_d) - float(a_before @ d))
            self._gaps.append(gap / (length * length_before))
        self._last = d, a_d, length
        self.products += 1

    def note_iterate(self, x: Tensor) -> None:
        """Note the length of an iterate."""
        self._largest_x = max(self._largest_x, float(x.norm()))

    @property
    def floor(self) -> float:
        """The residual below which the products' rounding is larger."""
        measured = self.product_error
        noise = self.noise if math.isnan(measured) else max(self.noise, measured)
        return noise * self.norm * self._largest_x

    @property
    def asymmetric(self) -> bool:
        """True if no rounding explains how the products deviate from symmetry."""
        largest = max(self._gaps, default=0.0)
        return largest > max(NOT_SYMMETRIC, 10 * self.noise) * self.norm

    @property
    def product_error(self) -> float:
        """The products' relative error; NaN before there are three."""
        if len(self._gaps) < 2 or self.norm == 0.0:
            return math.nan
        # Two errors of length δ in independent directions: their components along one
        # unit vector each differ by δ √(2/n) on average.
        mean_square = sum(gap * gap for gap in self._gaps) / len(self._gaps)
        return math.sqrt(0.5 * self.size * mean_square) / self.norm


def _in_unit(r: Tensor, preconditioner: Preconditioner | None) -> tuple[Tensor, float]:
    """Return ``M⁻¹ r / unit``, and the unit: a power of two near its size."""
    if preconditioner is None:
        return r, 1.0
    z = apply_base(preconditioner, r)
    unit = unit_of(z)
    return z / unit, unit


def _inner(r: Tensor, z: Tensor) -> float:
    """Return r·M⁻¹r, or raise ValueError where M⁻¹ is clearly not positive definite."""
    product = float(r @ z)
    if not product > -1e-6 * float(r.norm()) * float(z.norm()) and bool(r.any()):
        raise ValueError(
            f"the preconditioner is not positive definite: r·M⁻¹r = {product:g}"
        )
    return product
