"""Where the eigenvalues are, and the log-determinant: stochastic Lanczos quadrature.

From a random unit vector u, k Lanczos steps give a quadrature rule: the k Ritz values as
nodes, the squared first entries of T's eigenvectors as weights (Golub and Meurant,
Matrices, Moments and Quadrature, 2010). It stands for the measure of u, which has the
weight ``(u·x_j)²`` at the eigenvalue λ_j, and on average over u the weight 1/n. Hence two
errors, which are kept apart:

- of the quadrature, bounded for each u with certainty. The measure up to a node θ_j has
  at least the weights before the node and at most those up to it (Chebyshev, Markov and
  Stieltjes). Of log(λ + τ), whose even derivatives are negative and odd ones positive,
  Gauss's rule is an upper bound, and Gauss-Radau's with a node at or below λ_min a lower
  one.
- of the random vectors, from the scatter over them (Ubaru, Chen and Saad, SIAM J. Matrix
  Anal. Appl. 38, 2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import scipy.linalg
import torch
from scipy.stats import norm as normal
from torch import Tensor

from hvpopt import checks
from hvpopt.analysis.estimate import CONFIDENCE, Estimate, student_factor
from hvpopt.analysis.probes import independent_seeds
from hvpopt.krylov.lanczos import LanczosBasis
from hvpopt.model.counts import Counts, metered
from hvpopt.operators.symmetric import SymmetricOperator, checked_operator

Array: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.float64]]"

#: Eigenvalues at which the cumulative density is given unless a caller asks for others.
N_POINTS = 200


@dataclass(frozen=True)
class Quadrature:
    """The rule of one random vector.

    Attributes:
        nodes: Ritz values, ascending ``[k]``.
        weights: Of the nodes, adding up to 1, ``[k]``.
        diagonal: α of the Lanczos recurrence ``[k]``.
        off_diagonal: β ``[k]``; the last is 0 where the rule is exact.
    """

    nodes: Array
    weights: Array
    diagonal: Array
    off_diagonal: Array

    @property
    def exact(self) -> bool:
        """True where the space was closed: the rule has no error."""
        return float(self.off_diagonal[-1]) == 0.0


@dataclass(frozen=True, eq=False, kw_only=True)
class SpectralDensity(Estimate[Tensor]):
    """How the eigenvalues are distributed.

    ``value`` is the cumulative density at ``points``: the fraction of eigenvalues up to
    each. ``standard_error`` is that of the random vectors, ``lower`` and ``upper`` bound
    the quadratures' own error, and ``interval`` has both. All are on the device of the
    points that were asked for, else on the CPU.

    Attributes:
        points: Eigenvalues at which the cumulative density is given, ascending ``[p]``.
        rules: The quadrature of each random vector.
        size: n, the number of eigenvalues.
    """

    points: Tensor
    rules: tuple[Quadrature, ...]
    size: int

    def density(self, points: Tensor, width: float) -> Estimate[Tensor]:
        """Return the density of eigenvalues, smoothed with a Gaussian.

        Args:
            points: Where, ``[p]``.
            width: Standard deviation of the Gaussian, in units of eigenvalues. Structure
                between nodes that are further apart than this is the rules' own.

        Returns:
            The density ``[p]``, whose integral is 1, with its standard error over the
            random vectors. The rules' own error is not bounded.

        Raises:
            TypeError: For an argument of the wrong type.
            ValueError: If the width is not positive.
        """
        width = checks.number("width", width, above=0.0, below=math.inf)
        at = checks.tensor("points", points).double().cpu().numpy()
        curves = np.stack(
            [
                normal.pdf(at[:, None], rule.nodes, width) @ rule.weights
                for rule in self.rules
            ]
        )
        mean, error = _mean_and_error(curves)
        factor = student_factor(self.confidence, len(curves))
        return Estimate(
            value=torch.from_numpy(mean).to(points.device),
            standard_error=torch.from_numpy(error).to(points.device),
            margin=torch.from_numpy(factor * error).to(points.device),
            confidence=self.confidence,
            n_products=self.n_products,
            n_propagations=self.n_propagations,
            message=f"the density smoothed over {width:g}",
        )


def spectral_density(
    operator: SymmetricOperator,
    *,
    n_probes: int = 8,
    n_steps: int = 30,
    points: Tensor | None = None,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> SpectralDensity:
    """Estimate how the eigenvalues of an operator are distributed.

    Args:
        operator: On vectors ``[n]``.
        n_probes: Random vectors, at least 2.
        n_steps: Products for each of them; fewer where its space is closed before.
        points: Where to give the cumulative density, ascending ``[p]``. Default 200
            points that reach over all Ritz values.
        seed: Of the random vectors.
        confidence: Probability, for each point, that ``interval`` holds the cumulative
            density.

    Returns:
        The cumulative density with bounds and standard error.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: For a number out of range, or points that do not ascend.
    """
    confidence = checks.number("confidence", confidence, above=0.0, below=1.0)
    if points is not None:
        checks.tensor("points", points)
        if points.ndim != 1 or not points.numel() or bool((points.diff() <= 0).any()):
            raise ValueError("points must be numbers in ascending order, [p]")
    rules, counts = quadratures(operator, n_probes, n_steps, seed)
    if points is None:
        low = min(float(rule.nodes[0]) for rule in rules)
        high = max(float(rule.nodes[-1]) for rule in rules)
        pad = 0.02 * ((high - low) or abs(high) or 1.0)
        points = torch.linspace(low - pad, high + pad, N_POINTS, dtype=torch.float64)
    at = points.double().cpu().numpy()
    lower, value, upper = (
        np.stack(curves)
        for curves in zip(*(_cumulative(rule, at) for rule in rules), strict=True)
    )
    # each bound is a mean over random vectors too, and errs by its own scatter
    errors = [_mean_and_error(curves)[1] for curves in (lower, value, upper)]
    error = np.maximum.reduce(errors)
    factor = student_factor(confidence, len(rules))
    message = f"{len(rules)} random vectors, {counts.products} products"
    if operator.noise > 1e-12:
        size = operator.noise * max(float(np.abs(rule.nodes).max()) for rule in rules)
        message += f"; eigenvalues below {size:.1e} are the products' own rounding"
    return SpectralDensity(
        value=torch.from_numpy(value.mean(0)).to(points.device),
        standard_error=torch.from_numpy(error).to(points.device),
        margin=torch.from_numpy(factor * error).to(points.device),
        lower=torch.from_numpy(lower.mean(0)).to(points.device),
        upper=torch.from_numpy(upper.mean(0)).to(points.device),
        confidence=confidence,
        n_products=counts.products,
        n_propagations=counts.propagations,
        message=message,
        points=points,
        rules=tuple(rules),
        size=operator.size,
    )


def log_determinant(
    operator: SymmetricOperator,
    *,
    shift: float = 0.0,
    lowest: float = 0.0,
    n_probes: int = 8,
    n_steps: int = 30,
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
    confidence = checks.number("confidence", confidence, above=0.0, below=1.0)
    lowest = checks.number("lowest", lowest, above=-math.inf, below=math.inf)
    shift = checks.number("shift", shift, least=-lowest, below=math.inf)
    rules, counts = quadratures(operator, n_probes, n_steps, seed)
    size, top = operator.size, max(float(np.abs(rule.nodes).max()) for rule in rules)
    rounding = 4 * operator.noise * top
    bounds = [_log_bounds(rule, shift, lowest, rounding) for rule in rules]
    lower, upper = size * np.array(bounds).T
    bounded = bool(np.isfinite(lower).all())
    scattered = [lower, upper] if bounded else [upper]
    middle = float(np.mean([values.mean() for values in scattered]))
    error = max(float(_mean_and_error(values)[1]) for values in scattered)
    message = f"{len(rules)} random vectors, {counts.products} products"
    if not bounded:
        message += "; no lower bound without lowest + shift above 0"
    if rounding > shift + lowest:
        message += "; lowest + shift is below the products' own rounding"
    # of sums of n terms
    epsilon = float(np.finfo(float).eps) * max(abs(float(upper.mean())), size)
    return Estimate(
        value=middle,
        standard_error=error,
        margin=student_factor(confidence, len(rules)) * error + epsilon,
        lower=float(lower.mean()) if bounded else -math.inf,
        upper=float(upper.mean()),
        confidence=confidence,
        n_products=counts.products,
        n_propagations=counts.propagations,
        message=message,
    )


def quadratures(
    operator: SymmetricOperator, n_probes: int, n_steps: int, seed: int
) -> tuple[list[Quadrature], Counts]:
    """Return the Gauss rule of each of several random vectors, and what they cost.

    Args:
        operator: On vectors ``[n]``.
        n_probes: Random vectors, at least 2.
        n_steps: Products for each of them.
        seed: Of the random vectors.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: For a number out of range.
    """
    operator = checked_operator(operator)
    n_probes = checks.integer("n_probes", n_probes, least=2)
    n_steps = checks.integer("n_steps", n_steps, least=1)
    rules = []
    with metered(operator.counts, pass_on=True) as counts:
        for own in independent_seeds(seed, n_probes):
            basis = LanczosBasis(operator, seed=own)
            basis.extend(n_steps)
            rules.append(rule_of(basis))
    return rules, counts


def rule_of(basis: LanczosBasis) -> Quadrature:
    """Return Gauss's rule for the measure of a basis's first vector.

    Args:
        basis: With at least one vector.
    """
    diagonal, off_diagonal = np.array(basis.diagonal), np.array(basis.off_diagonal)
    if basis.invariant:
        off_diagonal[-1] = 0.0
    return _gauss(diagonal, off_diagonal)


def _gauss(diagonal: Array, off_diagonal: Array) -> Quadrature:
    unit = float(np.abs(diagonal).max() + np.abs(off_diagonal).max()) or 1.0
    nodes, vectors = scipy.linalg.eigh_tridiagonal(
        diagonal / unit, off_diagonal[:-1] / unit
    )
    places: Array = np.asarray(unit * nodes, dtype=np.float64)
    weights: Array = np.asarray(vectors[0] ** 2, dtype=np.float64)
    return Quadrature(places, weights, diagonal, off_diagonal)


def radau_rule(rule: Quadrature, node: float) -> Quadrature:
    """Return Gauss-Radau's rule with a prescribed node and one node more, at no product.

    The last entry α̃ of the enlarged T is what makes ``node`` one of its eigenvalues:
    ``α̃ = node + β_k δ``, where ``(T − node I) x = β_k e_k`` and δ = x_k.

    Args:
        rule: Gauss's rule of k nodes; where it is exact it is returned as it is.
        node: Below all nodes, or above all.

    Raises:
        ValueError: If the node is among the others.
    """
    if rule.exact:
        return rule
    shifted, off_diagonal = rule.diagonal - node, rule.off_diagonal
    below, above = node < rule.nodes[0], node > rule.nodes[-1]
    if not (below or above):
        raise ValueError(
            f"the node {node:g} lies among Ritz values from {rule.nodes[0]:g} to "
            f"{rule.nodes[-1]:g}; it must bound the eigenvalues"
        )
    # x_k = β_k / d_k with d the pivots of T − node I
    pivot = shifted[0]
    for alpha, beta in zip(shifted[1:], off_diagonal[:-1], strict=True):
        pivot = alpha - beta / pivot * beta
    last = off_diagonal[-1]
    enlarged = np.append(rule.diagonal, node + last / pivot * last)
    return _gauss(enlarged, np.append(off_diagonal, 0.0))


def rule_value(rule: Quadrature, function: Callable[[Array], Array]) -> float:
    """Return a rule's value for the integral of a function of the eigenvalues.

    Args:
        rule: The rule.
        function: Of an array of nodes.
    """
    return float(rule.weights @ function(rule.nodes))


def _log_bounds(
    rule: Quadrature, shift: float, lowest: float, rounding: float
) -> tuple[float, float]:
    """Return bounds on uᵀ log(H + τI) u."""
    if rule.nodes[0] < lowest - rounding:
        raise ValueError(
            f"a Ritz value is {rule.nodes[0]:g}, below lowest={lowest:g}: give a true "
            "lower bound on the eigenvalues, and a shift that lifts it above 0"
        )

    def logarithm(nodes: Array) -> Array:
        # a node that rounding has put below a bound is at it
        lifted = np.maximum(nodes, lowest) + shift
        return np.log(np.maximum(lifted, max(rounding, np.finfo(float).tiny)))

    upper = rule_value(rule, logarithm)
    if rule.exact:
        return upper, upper
    if lowest + shift <= 0.0:
        return -math.inf, upper
    if rule.nodes[0] <= lowest:  # by rounding: nothing lies between node and bound
        return math.log(lowest + shift), upper
    return min(rule_value(radau_rule(rule, lowest), logarithm), upper), upper


def _cumulative(rule: Quadrature, at: Array) -> tuple[Array, Array, Array]:
    """Return lower bound, middle and upper bound of a measure up to points."""
    summed = np.concatenate([[0.0], np.cumsum(rule.weights)])
    summed[-1] = 1.0
    index = np.searchsorted(rule.nodes, at, side="right")  # nodes at or below
    if rule.exact:
        return summed[index], summed[index], summed[index]
    lower = summed[np.maximum(index - 1, 0)]
    upper = summed[np.minimum(index + 1, len(rule.nodes))]
    # beyond the outermost nodes part of the outermost weight may lie
    half = np.concatenate([[0.0], summed[1:] - 0.5 * rule.weights, [1.0]])
    step = float(rule.nodes[-1] - rule.nodes[0]) / len(rule.nodes) or 1.0
    places = np.concatenate([[rule.nodes[0] - step], rule.nodes, [rule.nodes[-1] + step]])
    return lower, np.clip(np.interp(at, places, half), lower, upper), upper


def _mean_and_error(values: Array) -> tuple[Array, Array]:
    """Return mean over the first axis and its standard error."""
    mean: Array = np.asarray(values.mean(0))
    return mean, np.asarray(values.std(0, ddof=1) / math.sqrt(len(values)))
