"""The log-determinant: exact in a Krylov space, and by quadratures in the rest.

With Q an orthonormal basis and P = I − QQᵀ,

    log det(H + τI) = log det(QᵀHQ + τI) + log det(S),
    S = P (H + τI) P − P H Q (QᵀHQ + τI)⁻¹ QᵀH P,

S on what is orthogonal to Q; no eigenvalue of S is below those of H + τI, since its
inverse is a block of (H + τI)⁻¹. Only log det(S) is sampled. For a Krylov space,
``HQ = QT + β q eᵀ``, the correction of S is ``β² [(T + τI)⁻¹]_kk q qᵀ``, at no product.
(Deflation as for traces in Meyer, Musco, Musco and Woodruff, Hutch++, SOSA 2021.)

The error of the quadrature is bounded for each random vector: of log(λ + τ), whose even
derivatives are negative and odd ones positive, Gauss's rule is an upper bound and
Gauss-Radau's with a node at or below λ_min a lower one. That of the random vectors comes
from their scatter (Ubaru, Chen and Saad, SIAM J. Matrix Anal. Appl. 38, 2017).
"""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.analysis.estimate import CONFIDENCE, Estimate, skewed_margin
from hvpopt.analysis.probes import independent_seeds, random_normals
from hvpopt.analysis.quadrature import (
    Quadrature,
    mean_and_error,
    radau_rule,
    rule_of,
    rule_value,
)
from hvpopt.krylov.lanczos import LanczosBasis
from hvpopt.model.counts import metered
from hvpopt.operators.symmetric import (
    DerivedOperator,
    SymmetricOperator,
    checked_operator,
)


def log_determinant(
    operator: SymmetricOperator,
    *,
    shift: float = 0.0,
    lowest: float = 0.0,
    n_probes: int = 8,
    n_steps: int = 15,
    n_deflated: int | None = None,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Estimate[float]:
    """Estimate ``log det(H + τI)``.

    Args:
        operator: H, on vectors ``[n]``.
        shift: τ, above ``−lowest``.
        lowest: A number that no eigenvalue of H is below. Default 0, for a positive
            semidefinite operator such as a Gauss-Newton matrix.
        n_probes: Random vectors, at least 2.
        n_steps: Products for each of them; fewer where its space is closed before.
        n_deflated: Products for a Krylov space from another random start, which is
            counted exactly; the vectors sample what is orthogonal to it. Default as many
            as the random vectors take together, 120; 0 for none.
        seed: Of the random vectors.
        confidence: Probability that ``interval`` holds the log-determinant.

    Returns:
        The middle between the bounds of the quadratures, those bounds, and the standard
        error over the random vectors. Where ``lowest + shift`` is 0 there is no lower
        bound, and the value is Gauss's rule.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: For a number out of range, or a Ritz value below ``lowest``.
    """
    operator = checked_operator(operator)
    confidence = checks.number("confidence", confidence, above=0.0, below=1.0)
    lowest = checks.number("lowest", lowest, above=-math.inf, below=math.inf)
    shift = checks.number("shift", shift, least=-lowest, below=math.inf)
    n_probes = checks.integer("n_probes", n_probes, least=2)
    n_steps = checks.integer("n_steps", n_steps, least=1)
    n_deflated = checks.optional(checks.integer, "n_deflated", n_deflated, least=0)
    if n_deflated is None:
        n_deflated = n_probes * n_steps
    *seeds, first = independent_seeds(seed, n_probes + 1)
    rounding = 0.0
    with metered(operator.counts, pass_on=True) as counts:
        known, rest, left = 0.0, operator, operator.size
        rows = torch.empty(0, operator.size, dtype=torch.float64, device=operator.device)
        if n_deflated:
            basis = LanczosBasis(operator, seed=first)
            basis.extend(n_deflated)
            rule = rule_of(basis)
            rounding = 4 * operator.noise * float(np.abs(rule.nodes).max())
            _check(rule, lowest, rounding)
            known = float(_logarithms(rule.nodes, shift, lowest, rounding).sum())
            rest = _Complement(basis, shift, lowest, rounding)
            rounding *= rest.amplification
            rows, left = basis.vectors, operator.size - basis.size
        rules = []
        for own in seeds if left else []:
            (start,) = random_normals(operator, 1, own).unbind(1)
            start = _outside(rows, _outside(rows, start))
            vectors = LanczosBasis(rest, rhs=-start)
            vectors.extend(min(n_steps, left))
            rules.append(rule_of(vectors))
    for rule in rules:
        top = float(np.abs(rule.nodes).max())
        rounding = max(rounding, 4 * operator.noise * top)
    # without a rest both bounds are what is known
    bounds = [_bounds(rule, shift, lowest, rounding) for rule in rules] or [
        (0.0, 0.0)
    ] * 2
    lower, upper = known + left * np.array(bounds).T
    bounded = bool(np.isfinite(lower).all())
    scattered = [lower, upper] if bounded else [upper]
    middle = float(np.mean([values.mean() for values in scattered]))
    error = max(float(mean_and_error(values)[1]) for values in scattered)
    message = f"{len(rules)} random vectors, {counts.products} products"
    if n_deflated:
        message += f", {operator.size - left} of {operator.size} directions exactly"
    if not bounded:
        message += "; no lower bound without lowest + shift above 0"
    if rounding > shift + lowest:
        message += "; lowest + shift is below the products' own rounding"
    floor = -math.inf
    if lowest + shift > 0.0:  # at 0 exact rules are bounded, and yet have no floor
        floor = known + left * math.log(lowest + shift)
    margin = float(skewed_margin(middle - floor, error, n_probes, confidence))
    # of sums of n terms
    epsilon = float(np.finfo(float).eps) * max(abs(float(upper.mean())), operator.size)
    return Estimate(
        value=middle,
        standard_error=error,
        margin=margin + epsilon,
        lower=float(lower.mean()) if bounded else -math.inf,
        upper=float(upper.mean()),
        confidence=confidence,
        n_products=counts.products,
        n_propagations=counts.propagations,
        message=message,
    )


class _Complement(DerivedOperator):
    """S − τI on what is orthogonal to a Krylov space, and ``lowest`` within it."""

    # ``lowest``: no eigenvalue of H is below it. ``rounding``: what an eigenvalue of T
    # may be off by. ``amplification``: how many times an error of H's products may grow
    # in S.

    def __init__(
        self, basis: LanczosBasis, shift: float, lowest: float, rounding: float
    ) -> None:
        super().__init__([basis.operator])
        self._rows, self._lowest = basis.vectors, lowest
        self._next = None if basis.invariant else basis.next_vector
        beta = 0.0 if basis.invariant else basis.off_diagonal[-1]
        theta, y = scipy.linalg.eigh_tridiagonal(
            np.array(basis.diagonal), np.array(basis.off_diagonal[:-1])
        )
        # β (T + τI)⁻¹ e_k
        coupling = beta * (y @ (y[-1] / _lifted(theta, shift, lowest, rounding)))
        self._correction = beta * float(coupling[-1])
        self.amplification = (1.0 + float(np.linalg.norm(coupling))) ** 2

    def _product(self, vector: Tensor) -> Tensor:
        (operator,) = self.operators
        outside = _outside(self._rows, vector)
        product = _outside(self._rows, operator.matvec(outside))
        if self._next is not None:
            product = product - self._correction * (self._next @ outside) * self._next
        return product + self._lowest * (vector - outside)


def _outside(rows: Tensor, vector: Tensor) -> Tensor:
    """Return what of a vector ``[n]`` is orthogonal to orthonormal rows ``[k, n]``."""
    return vector - rows.mT @ (rows @ vector)


def _lifted(
    nodes: np.ndarray, shift: float, lowest: float, rounding: float
) -> np.ndarray:
    """Return λ + τ of nodes; one that rounding has put below a bound is at it."""
    lifted = np.maximum(nodes, lowest) + shift
    return np.asarray(np.maximum(lifted, max(rounding, np.finfo(float).tiny)))


def _logarithms(
    nodes: np.ndarray, shift: float, lowest: float, rounding: float
) -> np.ndarray:
    return np.asarray(np.log(_lifted(nodes, shift, lowest, rounding)))


def _check(rule: Quadrature, lowest: float, rounding: float) -> None:
    """Raise ValueError where a Ritz value contradicts the bound ``lowest``."""
    if rule.nodes[0] < lowest - rounding:
        raise ValueError(
            f"a Ritz value is {rule.nodes[0]:g}, below lowest={lowest:g}: give a true "
            "lower bound on the eigenvalues, and a shift that lifts it above 0"
        )


def _bounds(
    rule: Quadrature, shift: float, lowest: float, rounding: float
) -> tuple[float, float]:
    """Return bounds on uᵀ log(S) u, from the rule of u for S − τI."""
    _check(rule, lowest, rounding)

    def logarithm(nodes: np.ndarray) -> np.ndarray:
        return _logarithms(nodes, shift, lowest, rounding)

    upper = rule_value(rule, logarithm)
    if rule.exact:
        return upper, upper
    if lowest + shift <= 0.0:
        return -math.inf, upper
    if rule.nodes[0] <= lowest:  # by rounding: nothing lies between node and bound
        return math.log(lowest + shift), upper
    return min(rule_value(radau_rule(rule, lowest), logarithm), upper), upper
