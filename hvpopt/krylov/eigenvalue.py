"""The smallest eigenvalue: a value, its residual, and bounds on both sides.

The smallest Ritz value θ is an upper bound on λ_min always. A small residual says only
that θ is near some eigenvalue, so that ``converged`` asks for a lower bound as well: that
of van Dorsselaer, Hochstenbach and van der Vorst, SIAM J. Matrix Anal. Appl. 22, 2000.
With p_j the Lanczos polynomials of T and u the lowest eigenvector, ⟨u, q_{j+1}⟩ = p_j(λ)
⟨u, q_1⟩, and the squares of these add up to at most 1. An eigenvalue λ below every Ritz
value would make p_j(λ) grow beyond that, unless ⟨u, q_1⟩ is tiny, which a random start
makes improbable.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.errors import AsymmetryError
from hvpopt.krylov.lanczos import LanczosBasis
from hvpopt.model._shown import screen, summarised
from hvpopt.operators.symmetric import SymmetricOperator, checked_operator

#: Default limit of the products of one estimate.
MAX_PRODUCTS = 300
#: Asymmetry relative to ‖H‖ that no rounding explains: then there is no λ_min.
NOT_SYMMETRIC = 1e-2


@dataclass(frozen=True, repr=False)
class EigenvalueEstimate:
    """An estimate of the smallest eigenvalue λ_min of a symmetric operator.

    Attributes:
        value: The estimate, a Rayleigh quotient.
        vector: The unit vector ``[n]`` it belongs to.
        residual: ``‖H x − value x‖``; some eigenvalue lies within it of ``value``.
        lower: Lower bound on λ_min, right with probability ``confidence``.
        upper: Upper bound on λ_min, certain up to the rounding of one product.
        converged: True if residual and ``upper − lower`` are within tolerance.
        n_products: Products spent.
        confidence: Probability with which ``lower`` is a bound.
        message: What ended the estimate, a sentence.
    """

    value: float
    vector: Tensor
    residual: float
    lower: float
    upper: float
    converged: bool
    n_products: int
    confidence: float
    message: str

    def __repr__(self) -> str:
        rows = {
            "value": f"{self.value:.6g}, residual {self.residual:.3g}",
            "bounds": f"{self.lower:.6g} (with probability {self.confidence:g}) to "
            f"{self.upper:.6g}",
            "vector": summarised(self.vector),
            "n_products": str(self.n_products),
        }
        return screen(f"EigenvalueEstimate: {self.message}", rows)


def smallest_eigenvalue(
    operator: SymmetricOperator,
    *,
    tol: float = 1e-2,
    start: Tensor | None = None,
    floor: float = 0.0,
    max_products: int | None = None,
    deadline: float = math.inf,
    confidence: float = 0.999,
    seed: int = 0,
) -> EigenvalueEstimate:
    """Estimate the smallest eigenvalue of a symmetric operator from its products.

    Args:
        operator: H, ``n × n``.
        tol: Relative accuracy: residual and bound width at most ``tol · |λ|``. A value
            that is zero to rounding is accepted at the rounding of the products.
        start: A vector ``[n]`` with a large component along the lowest eigenvector,
            where one is known. A random vector of equal length is added. Default none: a
            random start.
        floor: Size of an eigenvalue, relative to ``‖H‖``, under which it counts as
            zero and need not be resolved. Default 0.
        max_products: Stop after this many. Default ``min(n, 300)``.
        deadline: Stop when ``time.monotonic()`` passes this, seconds.
        confidence: Probability with which the lower bound holds.
        seed: Of the random start.

    Returns:
        The estimate. Not reaching ``tol`` is no error: look at ``converged``.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: For tolerances out of range, or if the products are clearly not those
            of a symmetric operator: ``q_i·(H q_j)`` and ``q_j·(H q_i)`` of two basis
            vectors differ by over a hundredth of ``‖H‖``, and ten times
            ``operator.noise``.

    Example:
        >>> import torch, hvpopt
        >>> H = hvpopt.MatrixOperator(torch.diag(torch.arange(-3.0, 40.0)))
        >>> round(hvpopt.smallest_eigenvalue(H, tol=1e-4).value, 3)
        -3.0
    """
    checked_operator(operator)
    tol = checks.fraction("tol", tol)
    floor = checks.number("floor", floor, least=0.0, below=math.inf)
    says = "an estimate needs at least 1"
    most = checks.optional(checks.limit, "max_products", max_products, least=1, says=says)
    # an operator without rows is refused by the basis
    limit = min(operator.size, MAX_PRODUCTS) if most is None else most
    deadline = checks.number("deadline", deadline)
    confidence = checks.number("confidence", confidence, above=0.0, below=1.0)
    seed = checks.seed("seed", seed)
    if start is not None:
        checks.tensor("the start", start, (operator.size,))
    rhs, probe = (None, 0.0) if start is None else (-start, 1.0)
    basis = LanczosBasis(operator, rhs=rhs, probe=probe, seed=seed)
    converged = False
    while basis.size < limit and not converged:
        if basis.size and time.monotonic() > deadline:
            break
        if not basis.extend():
            break
        _refuse_asymmetry(basis, tol, confidence)
        converged = eigenvalue_converged(basis, tol, confidence, floor=floor)
    return estimate_from(basis, tol, confidence, converged=converged)


def _refuse_asymmetry(basis: LanczosBasis, tol: float, confidence: float) -> None:
    """Raise AsymmetryError if no rounding explains how asymmetric the products are."""
    if basis.asymmetry <= max(NOT_SYMMETRIC, 10 * basis.operator.noise):
        return
    raise AsymmetryError(
        f"the operator is not symmetric, so that it has no smallest eigenvalue to find: "
        f"q_i·(H q_j) and q_j·(H q_i) differ by {basis.asymmetry:.2g} of ‖H‖ for two of "
        f"the first {basis.size} basis vectors; check its product, or pass 0.5 (H + Hᵀ)",
        estimate_from(basis, tol, confidence, converged=False),
    )


def tolerance_at(basis: LanczosBasis, tol: float, floor: float = 0.0) -> float:
    """Return the absolute error that ``tol`` allows the lowest Ritz value."""
    # never below the rounding of the products or of the basis
    theta = abs(float(basis.ritz_values[0]))
    norm = float(np.abs(basis.ritz_values).max())
    return max(tol * max(theta, floor * norm), rounding_at(basis))


def rounding_at(basis: LanczosBasis) -> float:
    """Return the size under which an eigenvalue cannot be told from zero."""
    norm = float(np.abs(basis.ritz_values).max())
    # A basis that cannot be extended may lack an eigenvector of which the start has a
    # thousandth: its eigenvalue is uncertain by a thousand roundings. Below the smallest
    # normal number rounding is no longer relative.
    smallest = float(torch.finfo(basis.operator.dtype).tiny)
    return max(4 * basis.operator.noise * norm, 1e3 * basis.rounding, smallest)


def eigenvalue_converged(
    basis: LanczosBasis, tol: float, confidence: float, *, floor: float = 0.0
) -> bool:
    """Return True if the lowest Ritz value is λ_min to a relative tolerance."""
    # for a basis with a random part in its start; ``floor`` is relative to ‖H‖
    allowed = tolerance_at(basis, tol, floor)
    if basis.invariant and not basis.complete and basis.certainty:
        # what the start has less of than this would not have extended the basis
        component = math.exp(_log_component(basis, confidence))
        unseen = 10 * math.sqrt(basis.operator.size) * basis.rounding
        allowed = max(allowed, min(unseen / component, tol * basis.norm_estimate))
    if basis.ritz_residual() > allowed:
        return False
    return excludes_below(basis, float(basis.ritz_values[0]) - allowed, confidence)


def estimate_from(
    basis: LanczosBasis, tol: float, confidence: float, *, converged: bool
) -> EigenvalueEstimate:
    """Return the estimate of λ_min that a basis gives."""
    theta = float(basis.ritz_values[0])
    norm = float(np.abs(basis.ritz_values).max())
    # what the products were seen to be wrong by, where that is more than was declared
    error = max(basis.operator.noise, basis.asymmetry) * norm
    lower = lower_bound(basis, confidence) - max(error - basis.operator.noise * norm, 0.0)
    if not converged:
        message = (
            f"not converged to tol={tol:g} after {basis.size} products: residual "
            f"{basis.ritz_residual():.3g}, bounds {theta - lower:.3g} apart, asymmetry "
            f"of the products {basis.asymmetry:.1g} of ‖H‖"
        )
    elif theta - lower > tol * abs(theta) or tol * abs(theta) < rounding_at(basis):
        message = "converged to the rounding of the products, which is above tol·|λ|"
    else:
        message = f"converged to tol={tol:g}"
    return EigenvalueEstimate(
        value=theta,
        vector=basis.ritz_vector(),
        residual=basis.ritz_residual(),
        lower=lower,
        upper=theta + error,
        converged=converged,
        n_products=basis.size,
        confidence=confidence,
        message=message,
    )


def excludes_below(basis: LanczosBasis, value: float, confidence: float = 0.999) -> bool:
    """Return True if no eigenvalue lies below ``value``, at a stated confidence."""
    # the probability, over the random part of the start, with which True is right
    if not basis.size or value > basis.ritz_values[0]:
        return False
    if basis.complete:
        return True
    return _log_mass(basis, value) + 2 * _log_component(basis, confidence) >= 0.0


def lower_bound(basis: LanczosBasis, confidence: float = 0.999) -> float:
    """Return a lower bound on λ_min that holds with probability ``confidence``."""
    # over the random part of the basis's start; without one there is no bound: −inf
    if not basis.certainty and not basis.complete:
        return -math.inf
    top = float(basis.ritz_values[0])
    # below the rounding of a product nothing is resolved; the search begins there
    resolution = basis.operator.noise * basis.norm_estimate
    if excludes_below(basis, top - resolution, confidence):
        return top - resolution
    component = _log_component(basis, confidence)

    def excess(distance: float) -> float:
        return _log_mass(basis, top - distance) + 2 * component

    near = far = max(resolution, basis.rounding)
    while excess(far) < 0.0:
        near, far = far, 4 * far
    # in log distance: eigenvalues of a misfit can be smaller than any xtol
    distance = scipy.optimize.brentq(
        lambda d: excess(math.exp(d)), math.log(near), math.log(far), xtol=1e-6
    )
    return top - math.exp(distance)


def _log_component(basis: LanczosBasis, confidence: float) -> float:
    """Return log c, with |⟨u, q_1⟩| ≥ c at the given confidence for any unit u.

    q_1 = (ĝ + w ζ/√n)/‖·‖ with ζ standard normal: ⟨u, q_1⟩ is normal whatever ĝ
    is, with density at most √n/(w√2π) · ‖·‖, hence c = (1 − confidence) w/‖·‖ √(π/2n).
    """
    weight = basis.certainty * (1.0 - confidence)
    if not weight:
        return -math.inf
    return math.log(weight) + 0.5 * math.log(math.pi / (2 * basis.operator.size))


def _log_mass(basis: LanczosBasis, value: float) -> float:
    """Return log Σ p_j(value)², j = 0 … k, scaled on the way against overflow."""
    if not math.isfinite(value):
        return math.inf
    rounding = basis.rounding
    previous, current, total, exponent = 0.0, 1.0, 1.0, 0.0
    before = 0.0
    for alpha, measured in zip(basis.diagonal, basis.off_diagonal, strict=True):
        beta = max(measured, rounding)
        # divided first: a value of any size times the polynomials may overflow
        new = (value - alpha) / beta * current - before / beta * previous
        previous, current, before = current, new, beta
        total += new * new
        if total > 1e200:
            previous, current = previous * 1e-100, current * 1e-100
            total, exponent = total * 1e-200, exponent + 200 * math.log(10)
    return math.log(total) + exponent
