"""LanczosBasis: one orthonormal Krylov space, and all that can be read off it.

    H Q_k = Q_k T_k + β_k q_{k+1} e_kᵀ,    T_k tridiagonal with diagonal α, off-diagonal β

Every q is orthogonalised against all before it, twice ("twice is enough": Giraud,
Langou, Rozložník and van den Eshof, Numer. Math. 101, 2005), so that T_k is the
projection of H to rounding. From (Q_k, T_k), with no further product: Ritz values with
their residuals, the solution of (H + τI) h = −g for every τ with its residual, the
trust-region step of every radius (Gould, Lucidi, Roma and Toint, SIAM J. Optim. 9,
1999), a lower bound on the smallest eigenvalue (bounds.py), and how far the products
are from those of a symmetric operator.

A start that is not random at all can be orthogonal to the lowest eigenvector (the hard
case): the space never sees it, and bounds nothing. Hence ``probe``.

Whatever is squared on the way is in units near its size, powers of two, so that the
size of H or g matters as long as both are normal numbers of their dtype: a loss may be
multiplied by 1e-170 or 1e150.

Where the operator says that vectors are shared out over processes (``holding``), each
holds its part of every basis vector; what is read off T is the same on all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.krylov.asymmetry import Asymmetry
from hvpopt.krylov.bounds import log_component, log_mass, lower_bound
from hvpopt.krylov.right_hand_side import RightHandSide
from hvpopt.krylov.rows import Rows
from hvpopt.krylov.start import first_vector
from hvpopt.krylov.subproblem import BoundedMinimum, bounded_minimum
from hvpopt.model.scale import power_of_two, unit_of
from hvpopt.operators.symmetric import SymmetricOperator, checked_operator

#: Radii beyond these, relative to the size of ‖g‖ / ‖H‖, are taken for them.
TINY, HUGE = 1e-250, 1e250


@dataclass(frozen=True)
class KrylovStep:
    """The step that minimises ``g·h + ½ h·(H + τI)h`` over a Krylov space.

    Attributes:
        vector: The step h, ``[n]``.
        residual_norm: ``‖(H + (τ + λ)I) h + g‖``, from the recurrence and the asymmetry
            of the products.
        decrease: ``−(g·h + ½ h·Hh)``, what the unshifted quadratic model predicts.
        norm: ``‖h‖``.
        multiplier: λ ≥ 0 of the radius; 0 without one, or inside it.
        on_boundary: True if the radius bounds the step: ``‖h‖`` is the radius.
        hard_case: True if g says as good as nothing of the lowest Ritz vector, and a
            multiple of it takes the step to the boundary.
    """

    vector: Tensor
    residual_norm: float
    decrease: float
    norm: float
    multiplier: float = 0.0
    on_boundary: bool = False
    hard_case: bool = False


class LanczosBasis:
    """An orthonormal basis of a Krylov space, extendable and never restarted.

    Where the operator's ``holding`` shares vectors out, all processes must make the same
    calls: the constructor, ``extend``, ``solve`` and ``ritz_vector`` exchange messages.

    Args:
        operator: The symmetric operator H.
        start: The gradient g ``[n]`` whose Newton steps ``solve`` returns. Default
            None: a random start, for eigenvalues alone.
        probe: Size of a random vector added to the start, relative to ``start``. It
            lets the basis see directions orthogonal to ``start`` at the price of a
            relative residual of at most about ``probe`` in ``solve``. Default 0.
        seed: Of the random vector.

    Attributes:
        diagonal: α, one number per basis vector.
        off_diagonal: β, one number per basis vector; the last couples to the vector
            that the next extension adds.
        invariant: True once the space is closed under H: nothing is left to add.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: If ``start`` does not fit, is not finite, or is zero without probe.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        start: Tensor | None = None,
        *,
        probe: float = 0.0,
        seed: int = 0,
    ) -> None:
        probe = checks.number("probe", probe, least=0.0, below=math.inf)
        seed = checks.seed("seed", seed)
        self.operator = checked_operator(operator)
        self.diagonal: list[float] = []
        self.off_diagonal: list[float] = []
        self.invariant = False
        self._eigen: tuple[np.ndarray, np.ndarray] | None = None
        self._asymmetry = Asymmetry()
        self._held = operator.holding

        whole, self._certainty = first_vector(operator, start, probe, seed)
        first = self._held.narrow(whole)
        self._rows = Rows(first, operator.size + 1)
        self._rhs: RightHandSide | None = None
        # True where the gradient or a product has an entry: see ``solve``
        self._seen = torch.zeros_like(whole, dtype=torch.bool)
        if start is not None:
            self._seen |= start != 0.0
            self._rhs = RightHandSide(start.to(whole.dtype), self._held)
            self._rhs.note(first)

    # -- growing ----------------------------------------------------------------

    @property
    def size(self) -> int:
        """Number of basis vectors, k; also the number of products spent."""
        return len(self.diagonal)

    @property
    def vectors(self) -> Tensor:
        """The basis as rows ``[k, n]``, a view; where it is shared out, this part's.

        Then ``[k, m]`` with m the entries of a vector that this process holds, maybe 0.
        """
        return self._rows.first(self.size)

    def extend(self, k: int = 1) -> int:
        """Add up to ``k`` vectors, at one product each.

        Args:
            k: How many to add.

        Returns:
            How many were added; fewer when the space became invariant.
        """
        k = checks.integer("k", k, least=0)
        for added in range(k):
            if self.invariant:
                return added
            self._add_vector()
        return k

    def _add_vector(self) -> None:
        j, held = self.size, self._held
        basis = self._rows.first(j + 1)
        q = basis[j]
        # w = H q_j − α_j q_j − β_{j−1} q_{j−1}, with the recurrence and its rounding
        # both taken care of by orthogonalising against the whole basis
        whole = self.operator.matvec(held.widen(q, self.operator.size))
        self._seen |= whole != 0.0
        unit = unit_of(whole)
        w = held.narrow(whole / unit)
        numbers = held.total(torch.cat([basis @ w, (q @ w).reshape(1)]))
        projections = numbers[:-1]
        told = numbers.cpu().numpy()  # one transfer from the device
        self.diagonal.append(unit * float(told[-1]))
        self._asymmetry.note(told[:-2], self.off_diagonal, unit)
        w = w - basis.mT @ projections
        w = w - basis.mT @ held.total(basis @ w)
        length = held.norm(w)
        beta = unit * length
        self.off_diagonal.append(beta)
        self._eigen = None
        if j + 1 == self.operator.size:
            self.invariant = True
            self.off_diagonal[-1] = 0.0
            return
        if beta <= 10 * math.sqrt(self.operator.size) * self.rounding:
            # Sums of n terms round like √n: what is left may be rounding, and would
            # not be orthogonal after two passes. β stays as measured, since a small one
            # alone does not prove that no eigenvalue hides.
            self.invariant = True
            return
        self._rows.append(w / length)
        if self._rhs is not None:
            self._rhs.note(self._rows.first(j + 2)[-1])

    def _combine(self, coordinates: np.ndarray) -> Tensor:
        """Return the vector ``[n]`` of coordinates in the basis ``[k]``."""
        basis = self.vectors
        part = basis.mT @ torch.from_numpy(coordinates.copy()).to(basis)
        return self._held.widen(part, self.operator.size)

    @property
    def _complete(self) -> bool:
        """True once all of H has been seen, and no eigenvalue can hide."""
        return self.size == self.operator.size

    @property
    def rounding(self) -> float:
        """The rounding of one operation on numbers of size ‖H‖; never 0."""
        eps = float(torch.finfo(self.vectors.dtype).eps)
        info = torch.finfo(self.operator.dtype)
        # below the smallest normal number of the products it is no longer relative
        return max(eps * self.norm_estimate, info.eps * info.tiny)

    @property
    def asymmetry(self) -> float:
        """Largest ``|q_i·(H q_j) − q_j·(H q_i)|`` met, relative to ``norm_estimate``.

        A free measure of the products' error along one direction: rounding for exact
        products, and 0 until there are two vectors.
        """
        return self._asymmetry.largest / (self.norm_estimate or 1.0)

    # -- eigenvalues ------------------------------------------------------------

    @property
    def norm_estimate(self) -> float:
        """An estimate of ‖H‖ from T, within a factor of 2 of that of T."""
        beta = [0.0, *self.off_diagonal]
        return max((abs(a) + beta[i] for i, a in enumerate(self.diagonal)), default=0.0)

    def _eigenpairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return Ritz values divided by the unit, and the eigenvectors of T."""
        if not self.size:
            raise ValueError("the basis is empty; call extend() first")
        if self._eigen is None:
            diagonal, off_diagonal = self._tridiagonal()
            self._eigen = scipy.linalg.eigh_tridiagonal(diagonal, off_diagonal[:-1])
        return self._eigen

    @property
    def _unit(self) -> float:
        """A power of two near ‖H‖."""
        return power_of_two(self.norm_estimate)

    def _tridiagonal(self) -> tuple[np.ndarray, np.ndarray]:
        """Return α and β of T / unit."""
        unit = self._unit
        return np.array(self.diagonal) / unit, np.array(self.off_diagonal) / unit

    @property
    def ritz_values(self) -> np.ndarray:
        """Eigenvalues of T, ascending ``[k]``. The first is never below λ_min."""
        return self._unit * self._eigenpairs()[0]

    def ritz_vector(self, index: int = 0) -> Tensor:
        """Return the unit Ritz vector ``[n]`` of a Ritz value."""
        vectors = self._eigenpairs()[1]
        return self._combine(vectors[:, self._checked_index(index)])

    def seen(self, vector: Tensor) -> Tensor:
        """Return a vector ``[n]``, zero where neither start nor products have entries.

        An eigenvector of a nonzero eigenvalue has no part there; a Ritz vector has what
        is left of the random start.

        Args:
            vector: ``[n]``.
        """
        return vector.masked_fill(~self._seen, 0.0)

    def ritz_residual(self, index: int = 0) -> float:
        """Return ``‖H x − θ x‖``, the distance from θ to some eigenvalue at most.

        What the products deviate from those of a symmetric operator is part of it.
        """
        y, unit = self._eigenpairs()[1][:, self._checked_index(index)], self._unit
        outside = self.off_diagonal[-1] / unit * abs(float(y[-1]))
        return unit * math.hypot(outside, self._asymmetry.along(y, unit))

    def _checked_index(self, index: int) -> int:
        return checks.integer("index", index, least=-self.size, most=self.size - 1)

    def excludes_below(self, value: float, confidence: float = 0.999) -> bool:
        """Return True if no eigenvalue lies below ``value``, at a stated confidence.

        Args:
            value: A number at or below the smallest Ritz value.
            confidence: Probability, over the random part of the start, with which the
                answer True is right.

        Raises:
            ValueError: If ``confidence`` is not in (0, 1).
        """
        value = checks.number("value", value)
        confidence = checks.number("confidence", confidence, above=0.0, below=1.0)
        if not self.size or value > self.ritz_values[0]:
            return False
        if self._complete:
            return True
        mass = log_mass(value, self.diagonal, self.off_diagonal, self.rounding)
        return mass + 2 * self._log_component(confidence) >= 0.0

    def lower_bound(self, confidence: float = 0.999) -> float:
        """Return a lower bound on λ_min that holds with probability ``confidence``.

        Without a random part in the start there is none: −inf.
        """
        confidence = checks.number("confidence", confidence, above=0.0, below=1.0)
        if not self._certainty and not self._complete:
            return -math.inf
        top = float(self.ritz_values[0])
        rounding = self.operator.noise * self.norm_estimate
        if self.excludes_below(top - rounding, confidence):
            return top - rounding
        return lower_bound(
            top,
            self._log_component(confidence),
            self.diagonal,
            self.off_diagonal,
            resolution=rounding,
            rounding=self.rounding,
        )

    def _log_component(self, confidence: float) -> float:
        return log_component(self._certainty, confidence, self.operator.size)

    # -- steps ------------------------------------------------------------------

    def residual_norm(self, shift: float = 0.0, *, radius: float | None = None) -> float:
        """Return ``‖(H + (τ + λ)I) h + g‖`` of the step that ``solve`` would give."""
        y = self._coordinates(shift, radius).coordinates
        return self._known_rhs.unit * self._residual(y)

    def solve(self, shift: float = 0.0, *, radius: float | None = None) -> KrylovStep:
        """Return the best step h in this space; costs no product.

        Args:
            shift: τ. Without a radius, any number that makes T + τI positive definite.
            radius: Δ. Default none.

        Returns:
            Without a radius the Galerkin solution of ``(H + τI) h = −g``, optimal over
            the space in the energy norm. With one, the global minimum of
            ``g·h + ½ h·(H + τI)h`` over the steps of the space with ``‖h‖ ≤ Δ``. The
            step is zero in entries where g and every product are zero (a random part of
            the start would move them), and has no part along Ritz vectors of which
            neither H nor g says more than its rounding.

        Raises:
            numpy.linalg.LinAlgError: If there is no radius and T + τI is not positive
                definite.
            ValueError: If the basis is empty or has no gradient, or the radius is not
                positive and finite.
        """
        found = self._coordinates(shift, radius)
        y, size = _in_unit(found.coordinates)
        rhs = self._known_rhs
        unit = rhs.unit * (size / self._unit)
        return KrylovStep(
            vector=(unit * self._combine(y)).masked_fill_(~self._seen, 0.0),
            residual_norm=rhs.unit * self._residual(found.coordinates),
            decrease=rhs.unit * (unit * rhs.decrease(y, size, *self._tridiagonal())),
            norm=unit * float(np.linalg.norm(y)),
            multiplier=found.multiplier,
            on_boundary=found.on_boundary,
            hard_case=found.hard_case,
        )

    def floor(self, shift: float = 0.0, *, radius: float | None = None) -> float:
        """Return the relative residual under which a step's own is not to be believed.

        The recurrence takes the products for exact. With an error of size ε‖H‖ in each,
        the true residual of ``solve(shift, radius=radius)`` is uncertain by about
        ``ε ‖H‖ ‖h‖``, whatever the recurrence says, and extending the basis for less is
        wasted. ε is what the asymmetry of the products shows, assuming that errors
        spread over all directions; at least the rounding of one operation.

        Args:
            shift: τ.
            radius: Δ. Default none.

        Returns:
            ``ε ‖H‖ ‖h‖ / ‖g‖``; errors raised are those of ``solve``.
        """
        y, size = _in_unit(self._coordinates(shift, radius).coordinates)
        length = size * float(np.linalg.norm(y))
        error = max(self._asymmetry.error(self.operator.size), self.rounding)
        return error / self._unit * length / (self._known_rhs.norm or 1.0)

    @property
    def _known_rhs(self) -> RightHandSide:
        if self._rhs is None:
            raise ValueError("a basis with a random start solves nothing; pass start=g")
        return self._rhs

    def _coordinates(self, shift: float, radius: float | None = None) -> BoundedMinimum:
        """Return a step in units of (unit of g) / (unit of H), with λ as it is."""
        shift = checks.number("shift", shift, above=-math.inf, below=math.inf)
        radius = checks.optional(
            checks.number, "radius", radius, above=0.0, below=math.inf
        )
        unit, rhs = self._unit, self._known_rhs
        theta, vectors = self._eigenpairs()
        slopes = vectors.T @ rhs.coordinates(self.size)
        # A direction of which neither curvature nor gradient says more than rounding is
        # none to step along: their quotient could be anything.
        noise = 4 * self.operator.noise
        zero = max(noise * self.norm_estimate, 1e3 * self.rounding) / unit
        silent = (np.abs(theta) <= zero) & (np.abs(slopes) <= noise * rhs.norm)
        slopes, vectors = slopes[~silent], vectors[:, ~silent]
        shifted = theta[~silent] + shift / unit
        if not shifted.size:
            return BoundedMinimum(np.zeros(self.size), 0.0, False, False)
        if radius is not None:
            length = radius * (unit / rhs.unit)
            found = bounded_minimum(shifted, slopes, min(max(length, TINY), HUGE))
            return replace(
                found,
                coordinates=vectors @ found.coordinates,
                multiplier=unit * found.multiplier,
            )
        if shifted[0] <= 0.0:
            raise np.linalg.LinAlgError(
                f"T + τI is not positive definite: τ = {shift:g}, smallest Ritz value "
                f"{self.ritz_values[0]:g}"
            )
        y = np.asarray(vectors @ (-slopes / shifted))
        return BoundedMinimum(y, multiplier=0.0, on_boundary=False, hard_case=False)

    def _residual(self, y: np.ndarray) -> float:
        """Return the residual of a step, both in their units."""
        last = self.off_diagonal[-1] / self._unit * float(y[-1])
        recurrence = self._known_rhs.residual(self.size, last)
        y, size = _in_unit(y)
        return math.hypot(recurrence, size * self._asymmetry.along(y, self._unit))


def _in_unit(y: np.ndarray) -> tuple[np.ndarray, float]:
    """Return a vector divided by a power of two near its largest entry, and that."""
    unit = power_of_two(float(np.abs(y).max()))
    return y / unit, unit
