"""Quadrature rules from Lanczos runs: what each random vector says of a spectrum.

From a unit vector u, k Lanczos steps give a rule: the k Ritz values as nodes, the squared
first entries of T's eigenvectors as weights (Golub and Meurant, Matrices, Moments and
Quadrature, 2010). It stands for the measure of u, which has the weight ``(u·x_j)²`` at
the eigenvalue λ_j, and on average over u the weight 1/n.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from hvpopt import checks
from hvpopt.analysis.estimate import Array
from hvpopt.analysis.probes import independent_seeds
from hvpopt.krylov.lanczos import LanczosBasis
from hvpopt.model.counts import Counts, metered
from hvpopt.operators.symmetric import SymmetricOperator, checked_operator


@dataclass(frozen=True)
class Quadrature:
    """The rule of one random vector; nodes and weights (of sum 1) are ``[k]``."""

    nodes: Array  # Ritz values, ascending
    weights: Array
    diagonal: Array  # α of the Lanczos recurrence
    off_diagonal: Array  # β; the last is 0 where the rule is exact

    @property
    def exact(self) -> bool:
        """True where the space was closed, so that the rule has no error."""
        return float(self.off_diagonal[-1]) == 0.0


def quadratures(
    operator: SymmetricOperator, n_probes: int, n_steps: int, seed: int
) -> tuple[list[Quadrature], Counts]:
    """Return the Gauss rule of each of several random vectors, and what they cost."""
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
    """Return Gauss's rule for the measure of a basis's first vector."""
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
    """Return Gauss-Radau's rule with a node outside all others added, at no product."""
    # The last entry α̃ of the enlarged T is what makes ``node`` one of its eigenvalues:
    # α̃ = node + β_k δ, where (T − node I) x = β_k e_k and δ = x_k.
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
    """Return a rule's value for the integral of a function of the eigenvalues."""
    return float(rule.weights @ function(rule.nodes))


def mean_and_error(values: Array) -> tuple[Array, Array]:
    """Return the mean over the first axis, of random vectors, and its standard error."""
    mean: Array = np.asarray(values.mean(0))
    return mean, np.asarray(values.std(0, ddof=1) / math.sqrt(len(values)))
