"""LanczosBasis: one orthonormal Krylov space, and all that follows from it.

    H Q_k = Q_k T_k + β_k q_{k+1} e_kᵀ,    T_k tridiagonal with diagonal α, off-diagonal β

Every q is orthogonalised against all before it, twice ("twice is enough": Giraud,
Langou, Rozložník and van den Eshof, Numer. Math. 101, 2005), so that T_k is the
projection of H to rounding. From (Q_k, T_k) follow, with no further product, Ritz values,
the solution of (H + τI) h = b for every τ, the trust-region step of every radius (Gould,
Lucidi, Roma and Toint, SIAM J. Optim. 9, 1999), each with its residual, and how
asymmetric the products are. A Newton step has b = −g, in whose terms the code is written.

A start without a random part can be orthogonal to the lowest eigenvector (the hard case).
Then no space of it contains this eigenvector, and λ_min has no lower bound; ``probe``
adds a random part.

Squares are formed in units near the size of what is squared, powers of two, so that H and
g may have any size that their dtype holds as normal numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.krylov.subproblem import BoundedMinimum, bounded_minimum
from hvpopt.model._scale import power_of_two, unit_of
from hvpopt.operators.symmetric import SymmetricOperator, checked_operator

#: Radii beyond these, relative to the size of ‖g‖ / ‖H‖, are taken for them.
TINY, HUGE = 1e-250, 1e250
#: Rows that a basis has room for at first; the room doubles.
FIRST_ROWS = 16


@dataclass(frozen=True)
class KrylovStep:
    """The step that minimises ``½ h·(H + τI)h − b·h`` over a Krylov space.

    Attributes:
        vector: The step h, ``[n]``.
        residual_norm: ``‖(H + (τ + λ)I) h − b‖``, from the recurrence and the asymmetry
            of the products.
        decrease: ``b·h − ½ h·Hh``, what the unshifted quadratic model predicts.
        norm: ``‖h‖``.
        multiplier: λ ≥ 0 of the radius; 0 without one, or inside it.
        on_boundary: True if the radius bounds the step: ``‖h‖`` is the radius.
    """

    vector: Tensor
    residual_norm: float
    decrease: float
    norm: float
    multiplier: float = 0.0
    on_boundary: bool = False


class LanczosBasis:
    """An orthonormal basis of a Krylov space, extendable and never restarted.

    Args:
        operator: The symmetric operator H.
        rhs: The right-hand side b ``[n]`` of ``solve``, with which the space starts; for
            Newton steps minus the gradient. Default None: a random start, for
            eigenvalues alone.
        probe: Size of a random vector added to the start, relative to ``rhs``. It
            lets the basis include directions orthogonal to ``rhs`` at the price of a
            relative residual of at most about ``probe`` in ``solve``. Default 0.
        seed: Of the random vector.

    Attributes:
        diagonal: α, one number per basis vector.
        off_diagonal: β, one number per basis vector; the last couples to the vector
            that the next extension adds.
        certainty: Length of the random part of the first vector, which has length 1.
        invariant: True once the space is closed under H: nothing is left to add.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: If ``rhs`` does not fit, is not finite, or is zero without probe.

    Example:
        >>> import torch, hvpopt
        >>> H = hvpopt.MatrixOperator(torch.diag(torch.tensor([1.0, 4.0])))
        >>> basis = hvpopt.LanczosBasis(H, rhs=torch.tensor([2.0, 5.0]))
        >>> basis.extend(2)
        2
        >>> basis.solve(shift=1.0).vector.round(decimals=6)  # of (H + 1) h = b
        tensor([1., 1.], dtype=torch.float64)
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        *,
        rhs: Tensor | None = None,
        probe: float = 0.0,
        seed: int = 0,
    ) -> None:
        probe = checks.number("probe", probe, least=0.0, below=math.inf)
        seed = checks.seed("seed", seed)
        self.operator = checked_operator(operator)
        self.diagonal: list[float] = []
        self.off_diagonal: list[float] = []
        self.invariant = False
        self._norm = 0.0
        self._eigen: tuple[np.ndarray, np.ndarray] | None = None
        # the last step asked for: its residual, its floor and itself are asked in turn
        self._solved: tuple[tuple[int, float, float | None], BoundedMinimum] | None = None
        self._asymmetry = _Asymmetry()
        start = None if rhs is None else -_flat(operator, rhs)
        first, self.certainty = _first_vector(operator, start, probe, seed)
        # rows are contiguous, so that a product with the basis is one gemv
        self._rows = first.new_empty(min(FIRST_ROWS, operator.size + 1), operator.size)
        self._rows[0] = first
        self._gradient: _Gradient | None = None
        # True where the gradient or a product has an entry: see ``solve``
        self._seen = torch.zeros_like(first, dtype=torch.bool)
        if start is not None:
            self._seen |= start != 0.0
            self._gradient = _Gradient(start.to(first.dtype))
            self._gradient.note(first)

    # -- growing ----------------------------------------------------------------

    @property
    def size(self) -> int:
        """Number of basis vectors, k; also the number of products spent."""
        return len(self.diagonal)

    @property
    def vectors(self) -> Tensor:
        """The basis as rows ``[k, n]``, a view."""
        return self._rows[: self.size]

    @property
    def next_vector(self) -> Tensor:
        """The unit vector ``[n]`` that the next extension adds; a view.

        Raises:
            ValueError: If the space is closed, so that there is none.
        """
        if self.invariant:
            raise ValueError("the space is closed under the operator: no vector follows")
        return self._rows[self.size]

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
        j = self.size
        basis = self._rows[: j + 1]
        q = basis[j]
        # w = H q_j − α_j q_j − β_{j−1} q_{j−1}, with the recurrence and its rounding
        # both taken care of by orthogonalising against the whole basis
        product = self.operator.matvec(q)
        self._seen |= product != 0.0
        unit = unit_of(product)
        w = product / unit
        projections = basis @ w
        # one transfer from the device
        numbers = torch.cat([projections, (q @ w).reshape(1)]).cpu().numpy()
        self.diagonal.append(unit * float(numbers[-1]))
        before = self.off_diagonal[-1] if self.off_diagonal else 0.0
        self._norm = max(self._norm, abs(self.diagonal[-1]) + before)
        self._asymmetry.note(numbers[:-2], self.off_diagonal, unit)
        w = w - basis.mT @ projections
        w = w - basis.mT @ (basis @ w)
        length = float(w.norm())
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
            # alone does not prove that no eigenvalue is missed.
            self.invariant = True
            return
        if len(self._rows) == j + 1:
            room = min(2 * (j + 1), self.operator.size + 1)
            grown = self._rows.new_empty(room, self.operator.size)
            grown[: j + 1] = self._rows
            self._rows = grown
        self._rows[j + 1] = w / length
        if self._gradient is not None:
            self._gradient.note(self._rows[j + 1])

    def _combine(self, coordinates: np.ndarray) -> Tensor:
        """Return the vector ``[n]`` of coordinates in the basis ``[k]``."""
        basis = self.vectors
        return basis.mT @ torch.from_numpy(coordinates.copy()).to(basis)

    @property
    def complete(self) -> bool:
        """True once the space is the whole one, so that T has every eigenvalue of H."""
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

        It measures the products' error along one direction: rounding for exact products,
        and 0 until there are two vectors.
        """
        return self._asymmetry.largest / (self.norm_estimate or 1.0)

    # -- eigenvalues ------------------------------------------------------------

    @property
    def norm_estimate(self) -> float:
        """An estimate of ‖H‖ from T, within a factor of 2 of that of T."""
        return self._norm

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

    def ritz_residual(self, index: int = 0) -> float:
        """Return ``‖H x − θ x‖``, the distance from θ to some eigenvalue at most.

        What the products deviate from those of a symmetric operator is part of it.
        """
        y, unit = self._eigenpairs()[1][:, self._checked_index(index)], self._unit
        outside = self.off_diagonal[-1] / unit * abs(float(y[-1]))
        return unit * math.hypot(outside, self._asymmetry.along(y, unit))

    def _checked_index(self, index: int) -> int:
        return checks.integer("index", index, least=-self.size, most=self.size - 1)

    # -- steps ------------------------------------------------------------------

    def residual_norm(self, shift: float = 0.0, *, radius: float | None = None) -> float:
        """Return ``‖(H + (τ + λ)I) h − b‖`` of the step that ``solve`` would give."""
        y = self._coordinates(shift, radius).coordinates
        return self._known_gradient.unit * self._residual(y)

    def solve(self, shift: float = 0.0, *, radius: float | None = None) -> KrylovStep:
        """Return the best step h in this space; costs no product.

        Args:
            shift: τ. Without a radius, any number that makes T + τI positive definite.
            radius: Δ. Default none.

        Returns:
            Without a radius the Galerkin solution of ``(H + τI) h = b``, optimal over
            the space in the energy norm. With one, the global minimum of
            ``½ h·(H + τI)h − b·h`` over the steps of the space with ``‖h‖ ≤ Δ``. The
            step is zero in entries where b and every product are zero (a random part of
            the start would move them), and has no part along Ritz vectors of which
            neither H nor b says more than its rounding.

        Raises:
            numpy.linalg.LinAlgError: If there is no radius and T + τI is not positive
                definite.
            ValueError: If the basis is empty or has no right-hand side, or the radius is
                not positive and finite.
        """
        found = self._coordinates(shift, radius)
        y, size = _in_unit(found.coordinates)
        known = self._known_gradient
        unit = known.unit * (size / self._unit)
        return KrylovStep(
            vector=(unit * self._combine(y)).masked_fill_(~self._seen, 0.0),
            residual_norm=known.unit * self._residual(found.coordinates),
            decrease=known.unit * (unit * known.decrease(y, size, *self._tridiagonal())),
            norm=unit * float(np.linalg.norm(y)),
            multiplier=found.multiplier,
            on_boundary=found.on_boundary,
        )

    def floor(self, shift: float = 0.0, *, radius: float | None = None) -> float:
        """Return the relative residual below which a step's own is rounding.

        The recurrence takes the products for exact. With an error of size ε‖H‖ in each,
        the true residual of ``solve(shift, radius=radius)`` is uncertain by about
        ``ε ‖H‖ ‖h‖``, whatever the recurrence says, and extending the basis for less is
        wasted. ε is what the asymmetry of the products shows, assuming that errors
        spread over all directions; at least the rounding of one operation.

        Args:
            shift: τ.
            radius: Δ. Default none.

        Returns:
            ``ε ‖H‖ ‖h‖ / ‖b‖``; errors raised are those of ``solve``.
        """
        y, size = _in_unit(self._coordinates(shift, radius).coordinates)
        length = size * float(np.linalg.norm(y))
        error = max(self._asymmetry.error(self.operator.size), self.rounding)
        return error / self._unit * length / (self._known_gradient.norm or 1.0)

    @property
    def _known_gradient(self) -> _Gradient:
        if self._gradient is None:
            raise ValueError("a basis with a random start solves nothing; pass rhs=b")
        return self._gradient

    def _coordinates(self, shift: float, radius: float | None = None) -> BoundedMinimum:
        """Return a step in units of (unit of g) / (unit of H), with λ as it is."""
        asked = self.size, shift, radius
        if self._solved is None or self._solved[0] != asked:
            self._solved = asked, self._minimum(shift, radius)
        return self._solved[1]

    def _minimum(self, shift: float, radius: float | None) -> BoundedMinimum:
        shift = checks.number("shift", shift, above=-math.inf, below=math.inf)
        radius = checks.optional(
            checks.number, "radius", radius, above=0.0, below=math.inf
        )
        unit, known = self._unit, self._known_gradient
        theta, vectors = self._eigenpairs()
        slopes = vectors.T @ known.coordinates(self.size)
        # A direction of which neither curvature nor gradient says more than rounding is
        # none to step along: their quotient could be anything.
        noise = 4 * self.operator.noise
        zero = max(noise * self.norm_estimate, 1e3 * self.rounding) / unit
        undetermined = (np.abs(theta) <= zero) & (np.abs(slopes) <= noise * known.norm)
        slopes, vectors = slopes[~undetermined], vectors[:, ~undetermined]
        shifted = theta[~undetermined] + shift / unit
        if not shifted.size:
            return BoundedMinimum(np.zeros(self.size), 0.0, False)
        if radius is not None:
            length = radius * (unit / known.unit)
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
        return BoundedMinimum(y, multiplier=0.0, on_boundary=False)

    def _residual(self, y: np.ndarray) -> float:
        """Return the residual of a step, both in their units."""
        last = self.off_diagonal[-1] / self._unit * float(y[-1])
        recurrence = self._known_gradient.residual(self.size, last)
        y, size = _in_unit(y)
        return math.hypot(recurrence, size * self._asymmetry.along(y, self._unit))


def _in_unit(y: np.ndarray) -> tuple[np.ndarray, float]:
    """Return a vector divided by a power of two near its largest entry, and that."""
    unit = power_of_two(float(np.abs(y).max()))
    return y / unit, unit


def _flat(operator: SymmetricOperator, rhs: Tensor) -> Tensor:
    """Return a right-hand side ``[n]``, or raise."""
    shaped = not isinstance(rhs, Tensor) or rhs.ndim != 1
    if shaped and operator.space is not None and operator.space.accepts(rhs):
        raise ValueError(
            "rhs has the shape of the model, and a Krylov space is of flat vectors; pass "
            "rhs=H.space.gradient_to_vector(rhs), and H.space.step_to_model(step.vector) "
            "returns the model's shape; or call hvpopt.cg(H, rhs), which takes both"
        )
    return checks.tensor("rhs", rhs, (operator.size,))


def _first_vector(
    operator: SymmetricOperator, start: Tensor | None, probe: float, seed: int
) -> tuple[Tensor, float]:
    """Return q_1 = q/‖q‖ ``[n]`` in float64, and the length of its random part."""
    n = operator.size
    if n == 0:
        raise ValueError("the operator has no rows; every cell is frozen or held")
    # float64 whatever the operator's dtype: orthogonality is worth the memory
    vector = torch.zeros(n, dtype=torch.float64, device=operator.device)
    if start is not None:
        if start.device != operator.device:
            raise ValueError(
                f"rhs is on {start.device}, the operator on {operator.device}; "
                "move it with .to()"
            )
        if not bool(torch.isfinite(start).all()):
            raise ValueError("rhs has NaN or infinite entries")
        scaled = start.to(vector) / unit_of(start)
        length = float(scaled.norm())
        if length == 0.0 and probe == 0.0:
            raise ValueError(
                "rhs is zero and spans no Krylov space; at a stationary point use a "
                "random start (rhs=None)"
            )
        if length > 0.0:
            vector += scaled / length
    weight = 1.0 if start is None else probe
    if weight:
        # drawn on the host, so that a seed means the same on every device
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(n, generator=generator, dtype=torch.float64)
        vector += noise.to(vector) * (weight / math.sqrt(n))
    length = float(vector.norm())
    return vector / length, weight / length


class _Asymmetry:
    """The deviations ``q_i·(H q_j) − q_j·(H q_i)``, i < j, which cost no product.

    The second term is known before ``H q_j`` is made: β_{j−1} for i = j − 1, and 0 for
    smaller i. What the first deviates by is the products' own error. With D its matrix,
    strictly upper triangular,

        H Q_k = Q_k (T_k + D_k) + β_k q_{k+1} e_kᵀ

    holds to the rounding of the basis whatever the products are, so that residuals which
    include D are true also of an operator that is not symmetric.
    """

    def __init__(self) -> None:
        self.largest = 0.0  # absolute
        self._root_of_squares = 0.0
        self._count = 0
        self._noted = 0
        self._matrix = np.zeros((8, 8))

    def note(
        self, projections: np.ndarray, off_diagonal: list[float], unit: float
    ) -> None:
        """Note ``q_i·(H q_j) / unit``, i = 0 … j − 1, given β_0 … β_{j−1}."""
        deviations = projections.copy()
        if off_diagonal:
            deviations[-1] -= off_diagonal[-1] / unit
            self.largest = max(self.largest, unit * float(np.abs(deviations).max()))
            length = unit * float(np.linalg.norm(deviations))
            # a sum of squares, which may lie outside the range of floats
            self._root_of_squares = math.hypot(self._root_of_squares, length)
            self._count += len(off_diagonal)
        j = self._noted
        if j == len(self._matrix):
            self._matrix = np.pad(self._matrix, (0, j))
        self._matrix[:j, j] = unit * deviations
        self._noted += 1

    def along(self, y: np.ndarray, unit: float) -> float:
        """Return ``‖D_k y‖ / unit``."""
        k = len(y)
        return float(np.linalg.norm(self._matrix[:k, :k] @ y / unit))

    def error(self, n: int) -> float:
        """Return an estimate of the rms of ``‖δ(H q)‖`` for unit vectors q ``[n]``."""
        # Each deviation is the difference of two errors' components. An error is taken to
        # spread over all n directions, of which it shows one.
        if not self._count:
            return 0.0
        return math.sqrt(0.5 * n / self._count) * self._root_of_squares


class _Gradient:
    """The vector g = −b in the coordinates of a basis that grows, in a unit of its own.

    With c_i = q_i·g, the step h = Q_k y of (H + τI) h = −g has

        (H + τI) h + g = (I − Q_k Q_kᵀ) g + β_k y_k q_{k+1}

    if y solves the projected equations. The first term vanishes for a space that starts
    from g, and is small for one whose start has a random part as well. Everything but
    ``unit``, a power of two near the largest entry of g, is of g / unit.
    """

    def __init__(self, vector: Tensor) -> None:
        self.unit = unit_of(vector)
        # what lies outside the basis; shrunk as the basis grows
        self._outside = vector / self.unit
        self.norm = float(self._outside.norm())
        self._coordinates: list[float] = []
        self._outside_norms: list[float] = []

    def note(self, q: Tensor) -> None:
        """Note the next basis vector: there is one more of them than products."""
        coordinate = float(q @ self._outside)
        self._outside.sub_(q, alpha=coordinate)
        self._coordinates.append(coordinate)
        self._outside_norms.append(float(self._outside.norm()))

    def coordinates(self, k: int) -> np.ndarray:
        """Return ``[c_1 … c_k]``."""
        return np.array(self._coordinates[:k])

    def residual(self, k: int, last: float) -> float:
        """Return ``‖(I − Q_k Q_kᵀ) g + last · q_{k+1}‖``, last = β_k y_k."""
        # what lies outside splits into its part along q_{k+1} and the rest; a space that
        # is closed under H has no q_{k+1}
        if len(self._coordinates) > k:
            return math.hypot(self._outside_norms[k], last + self._coordinates[k])
        return math.hypot(self._outside_norms[-1], last)

    def decrease(
        self, y: np.ndarray, size: float, diagonal: np.ndarray, off_diagonal: np.ndarray
    ) -> float:
        """Return ``−(g·h + ½ h·Hh) / size`` of the step h = size · Q_k y."""
        cross = off_diagonal[:-1] * y[:-1] * y[1:]
        curvature = float(diagonal @ (y * y) + 2.0 * cross.sum())
        return -(float(self.coordinates(len(y)) @ y) + 0.5 * size * curvature)
