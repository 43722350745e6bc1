"""The largest or smallest eigenvalues with their vectors, residuals and bounds.

A Krylov space of one start has one vector of each eigenvalue, however often it occurs. So
converged vectors X are locked, and a new space starts from a fresh random vector with H
deflated, ``P H P + c X Xᵀ``, ``P = I − X Xᵀ``, c at the other end of the spectrum, until
with a stated confidence no wanted eigenvalue is left (the bound of ``eigenvalue.py``).

With Θ the Rayleigh quotients of X and R = HX − XΘ, the eigenvalues of H are those of Θ
and of P H P to within ‖R‖ (Weyl; Parlett, The Symmetric Eigenvalue Problem, 1998,
sections 10 and 11). Where a space would take more memory than a limit it is compressed to
Ritz vectors (thick restart: Wu and Simon, SIAM J. Matrix Anal. Appl. 22, 2000), and there
is no bound on what was missed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.analysis.estimate import Estimate
from hvpopt.analysis.probes import independent_seeds
from hvpopt.krylov.eigenvalue import excludes_below, lower_bound
from hvpopt.krylov.lanczos import LanczosBasis
from hvpopt.model.counts import metered
from hvpopt.operators.symmetric import (
    DerivedOperator,
    SymmetricOperator,
    checked_operator,
)

#: Default limit of the products of one call.
MAX_PRODUCTS = 1000
#: Default limit of the memory of basis vectors, bytes.
MEMORY_LIMIT = 4 * 1024**3
#: Products between two computations of Ritz values, at most; at first one.
STRIDE = 5
#: Ritz vectors that a restart keeps beside the wanted ones.
SPARE = 6
#: Missed is what lies beyond the last wanted eigenvalue by more than this part of it:
#: in a dense spectrum a finer distinction costs more than the eigenpairs.
MISSED = 1e-2
#: Half the distance, relative to ‖H‖, of what is locked from the end of the spectrum.
APART = 0.05
#: The size that an operator is given whose products are zero.
SMALL = 1e-100


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Eigenpairs(Estimate[Tensor]):
    """The eigenvalues at one end of the spectrum.

    ``value`` ``[k]`` has the largest first, or the smallest; ``lower`` and ``upper``
    bound each eigenvalue. The bound on the inner side holds always; the one on the outer
    side says that none was missed, and holds for all of them with ``confidence``. It is
    infinite where that is not known. All tensors are on the operator's device.

    Attributes:
        vectors: Orthonormal, as columns ``[n, k]``.
        residuals: Upper bounds on ``‖H x − value x‖``, ``[k]``, apart from the products'
            rounding.
        converged: True if all residuals are within tolerance and none was missed.
    """

    vectors: Tensor
    residuals: Tensor
    converged: bool


def eigenpairs(
    operator: SymmetricOperator,
    k: int = 6,
    *,
    which: str = "largest",
    tol: float = 1e-6,
    confidence: float = 0.999,
    max_products: int = MAX_PRODUCTS,
    memory_limit: str | float = MEMORY_LIMIT,
    seed: int = 0,
) -> Eigenpairs:
    """Find the k largest or smallest eigenvalues and their vectors.

    Args:
        operator: H, on vectors ``[n]``.
        k: How many, from 1 to n.
        which: ``"largest"`` or ``"smallest"``, with their signs.
        tol: Of the residuals, relative to ‖H‖.
        confidence: Probability with which none was missed, over the random starts.
        max_products: Stop after these.
        memory_limit: Of the vectors of one space, bytes or a string such as ``"2GB"``.
            Beyond it spaces are restarted.
        seed: Of the random starts.

    Returns:
        What was found, all k also where not converged; ``message`` says what is missing.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: For a number out of range.
    """
    operator = checked_operator(operator)
    k = checks.integer("k", k, least=1, most=operator.size)
    checks.choice("which", which, ("largest", "smallest"))
    tol = checks.number("tol", tol, above=0.0, below=1.0)
    confidence = checks.number("confidence", confidence, above=0.0, below=1.0)
    max_products = checks.integer("max_products", max_products, least=k)
    memory_limit = checks.memory("memory_limit", memory_limit)
    room = int(min(memory_limit / (8 * operator.size), operator.size + 1))
    if room < min(2 * k + SPARE, operator.size):
        raise ValueError(
            f"memory_limit has room for {room} vectors, and {k} eigenpairs need at least "
            f"{2 * k + SPARE}; raise it, or lower k"
        )
    search = _Search(operator, k, -1.0 if which == "largest" else 1.0, tol)
    with metered(operator.counts, pass_on=True) as counts:
        for own in independent_seeds(seed, k + 2):
            left = max_products - counts.products
            if search.finished or left < 1:
                break
            search.run(own, left, room, confidence)
    return search.result(confidence, counts.products, counts.propagations)


class _Search:
    """What was found so far, as the lowest eigenvalues of ``sign · H``."""

    def __init__(
        self, operator: SymmetricOperator, k: int, sign: float, tol: float
    ) -> None:
        self.operator = operator
        self.k = k
        self.sign = sign
        self.tol = tol
        self.vectors = torch.zeros(
            0, operator.size, dtype=torch.float64, device=operator.device
        )
        self.values = np.zeros(0)
        #: Of the deflated operator that each was found with, and of H itself.
        self.own_residuals = np.zeros(0)
        self.residuals = np.zeros(0)
        self.norm = 0.0
        self.other_end = 0.0
        #: No eigenvalue of the deflated operator is below this, at the confidence.
        self.rest = -math.inf
        self.none_missed = False
        self.finished = False
        self.restarted = False

    @property
    def allowed(self) -> float:
        """Largest residual that counts as converged."""
        return max(self.tol, self._rounding * math.sqrt(self.k)) * self._size

    @property
    def own_allowed(self) -> float:
        """Largest residual of a vector to lock; k of these make one of ``allowed``."""
        return max(self.tol / math.sqrt(self.k), self._rounding) * self._size

    @property
    def _rounding(self) -> float:
        return 4 * self.operator.noise

    @property
    def _size(self) -> float:
        # of an operator that is zero, the size of what it is deflated with
        return self.norm or abs(self.other_end)

    @property
    def edge(self) -> float:
        """The last of the wanted values; infinite while some are missing."""
        return float(self.values[self.k - 1]) if len(self.values) >= self.k else math.inf

    @property
    def excluded(self) -> float:
        """The value below which another eigenvalue of ``sign · H`` would be missed."""
        return self.edge - max(self.allowed, MISSED * abs(self.edge))

    def run(self, seed: int, left: int, room: int, confidence: float) -> None:
        """Search the complement of what is locked from a fresh random start."""
        deflated = _Deflated(self.operator, self.sign, self.vectors, self.other_end)
        basis = LanczosBasis(deflated, seed=seed)
        look = 1
        while True:
            basis.extend(min(look, left, room) - basis.size)
            if not len(self.values):
                self._note_range(basis.ritz_values)
            wanted = self._wanted(basis)
            residuals = np.array([basis.ritz_residual(i) for i in range(wanted)])
            settled = bool((residuals <= self.own_allowed).all())
            certain = not wanted and self._certified(basis, confidence)
            full = basis.size >= min(left, room) or basis.invariant
            if certain or full or (wanted and settled):
                break
            look = basis.size + min(STRIDE, 1 + basis.size // 4)
        if not wanted:
            self.none_missed, self.finished = certain, True
            self.rest = self.excluded if certain else lower_bound(basis, confidence)
        elif settled or basis.invariant or basis.size >= left:
            found = torch.stack([basis.ritz_vector(i) for i in range(wanted)])
            self._lock(found, basis.ritz_values[:wanted], residuals)
        else:
            self._restart(basis, deflated, wanted, left, room)
        if len(self.values) == self.operator.size:
            self.rest, self.none_missed, self.finished = math.inf, True, True

    def _note_range(self, ritz_values: np.ndarray) -> None:
        """Note ‖H‖, and a number beyond the end that is not wanted."""
        self.norm = max(self.norm, float(np.abs(ritz_values).max()))
        self.other_end = float(ritz_values[-1]) + 2 * APART * (self.norm or SMALL)

    def _wanted(self, basis: LanczosBasis) -> int:
        """Return how many of a basis's Ritz values belong to the k lowest of all."""
        values = basis.ritz_values
        if len(self.values):
            # what is locked lies at the other end, and is not found again; a wanted value
            # there, which the first space missed, is missing: then k are not found
            values = values[values < self.other_end - APART * (self.norm or SMALL)]
        values = values[: self.operator.size - len(self.values)]
        below = int((values < self.edge - self.allowed).sum())
        merged = np.sort(np.concatenate([self.values, values]))
        if len(self.values) < self.k and len(merged):
            edge = merged[min(self.k, len(merged)) - 1]
            below = int((values <= edge).sum())
        return min(below, self.k)

    def _certified(self, basis: LanczosBasis, confidence: float) -> bool:
        value = self.excluded
        return math.isfinite(value) and excludes_below(basis, value, confidence)

    def _lock(self, vectors: Tensor, values: np.ndarray, residuals: np.ndarray) -> None:
        """Take vectors ``[j, n]`` in, orthonormal to what is locked."""
        for _ in range(2):
            vectors = vectors - (vectors @ self.vectors.mT) @ self.vectors
        q, r = torch.linalg.qr(vectors.mT)
        # what others have nearly all of has no direction of its own, and no residual
        kept = r.diagonal().abs().cpu().numpy() > 0.5
        if not kept.all():
            vectors = vectors[torch.from_numpy(kept)]
            values, residuals = values[kept], residuals[kept]
            q, r = torch.linalg.qr(vectors.mT)
        vectors = q.mT
        # Of QR = V, with H V = V Θ + E apart from what is locked, the residuals are
        # Q (R Θ R⁻¹ − Θ) + E R⁻¹.
        factor = r.cpu().numpy()
        inverse = np.linalg.inv(factor)
        moved = (factor * values) @ inverse - np.diag(values)
        residuals = residuals @ np.abs(inverse) + np.linalg.norm(moved, axis=0)
        # xᵀ H y of a new x and a locked y is x's part of y's own residual
        totals = np.hypot(residuals, np.linalg.norm(self.own_residuals))
        order = np.argsort(np.concatenate([self.values, values]), kind="stable")
        self.values = np.concatenate([self.values, values])[order]
        self.residuals = np.concatenate([self.residuals, totals])[order]
        self.own_residuals = np.concatenate([self.own_residuals, residuals])[order]
        self.vectors = torch.cat([self.vectors, vectors])[torch.from_numpy(order)]

    def _restart(
        self,
        basis: LanczosBasis,
        deflated: SymmetricOperator,
        wanted: int,
        left: int,
        room: int,
    ) -> None:
        """Go on from a full basis by thick restarts until the wanted have converged."""
        self.restarted = True
        space = _ThickSpace(basis)
        while True:
            space.compress(min(wanted + SPARE, room // 2))
            while space.size < room and space.products < left and not space.closed:
                space.add(deflated)
            values, residuals = space.ritz()
            done = bool((residuals[:wanted] <= self.own_allowed).all())
            if done or space.products >= left or space.closed:
                break
        if not len(self.values):
            self._note_range(values)
        self._lock(space.ritz_vectors(wanted), values[:wanted], residuals[:wanted])

    def result(self, confidence: float, products: int, propagations: int) -> Eigenpairs:
        """Return the k lowest, in terms of H."""
        k, n, device = self.k, self.operator.size, self.operator.device
        found = min(k, len(self.values))
        values, residuals = np.full(k, math.nan), np.full(k, math.inf)
        values[:found], residuals[:found] = self.values[:k], self.residuals[:k]
        vectors = torch.full((n, k), math.nan, dtype=torch.float64, device=device)
        vectors[:, :found] = self.vectors[:found].mT
        rounding = self._rounding * self.norm * math.sqrt(k)
        distance = float(np.linalg.norm(self.residuals)) + rounding
        inner, outer = values + distance, np.minimum(values, self.rest) - distance
        lower, upper = (outer, inner) if self.sign > 0 else (-inner, -outer)
        converged = self.none_missed and bool((residuals <= self.allowed).all())
        return Eigenpairs(
            value=torch.from_numpy(self.sign * values).to(device),
            lower=torch.from_numpy(lower).to(device),
            upper=torch.from_numpy(upper).to(device),
            confidence=confidence,
            n_products=products,
            n_propagations=propagations,
            message=self._message(found, confidence, converged),
            vectors=vectors,
            residuals=torch.from_numpy(residuals).to(device),
            converged=converged,
        )

    def _message(self, found: int, confidence: float, converged: bool) -> str:
        if converged:
            text = (
                f"{self.k} eigenpairs converged to {self.tol:g} of ‖H‖; none was missed "
                f"at confidence {confidence:g}"
            )
        elif found < self.k:
            text = f"only {found} of {self.k} eigenpairs were found"
        elif float(self.residuals[: self.k].max()) > self.allowed:
            largest = self.residuals[: self.k].max()
            text = f"not converged: the largest residual is {largest:.2g}"
        else:
            text = "the residuals converged; whether one was missed is not known"
        if self._rounding * math.sqrt(self.k) > self.tol:
            text += "; the tolerance is below the products' own rounding"
        if self.restarted:
            text += "; restarted under the memory limit"
        return text


class _Deflated(DerivedOperator):
    """``sign · P H P + c X Xᵀ``, with the locked vectors as rows of X ``[j, n]``."""

    def __init__(
        self, operator: SymmetricOperator, sign: float, locked: Tensor, c: float
    ) -> None:
        super().__init__([operator])
        self.sign = sign
        self.locked = locked
        self.c = c

    def _product(self, vector: Tensor) -> Tensor:
        (operator,) = self.operators
        inside = self.locked @ vector
        outside = vector - inside @ self.locked
        product = self.sign * operator.matvec(outside)
        product = product - (self.locked @ product) @ self.locked
        return product + self.c * (inside @ self.locked)


class _ThickSpace:
    """A space of at most ``room`` vectors, with its whole projection of the operator."""

    def __init__(self, basis: LanczosBasis) -> None:
        self.rows = basis.vectors.clone()
        self.projection = np.diag(np.array(basis.diagonal))
        off = np.array(basis.off_diagonal)
        self.projection += np.diag(off[:-1], 1) + np.diag(off[:-1], -1)
        self.products = basis.size
        self.closed = basis.invariant
        # what the last product left outside: the next vector times β
        self.outside = basis.next_vector
        self.coupling = np.zeros(basis.size)
        self.coupling[-1] = off[-1]

    @property
    def size(self) -> int:
        """Number of vectors."""
        return len(self.rows)

    def ritz(self) -> tuple[np.ndarray, np.ndarray]:
        """Return Ritz values, ascending, and their residuals."""
        values, y = np.linalg.eigh(self.projection)
        return values, np.abs(self.coupling @ y)

    def ritz_vectors(self, k: int) -> Tensor:
        """Return the first Ritz vectors as rows ``[k, n]``."""
        y = np.linalg.eigh(self.projection)[1][:, :k]
        return torch.from_numpy(np.ascontiguousarray(y.T)).to(self.rows) @ self.rows

    def compress(self, k: int) -> None:
        """Keep the first k Ritz vectors alone; the coupling is then with each of them."""
        values, y = np.linalg.eigh(self.projection)
        self.rows = self.ritz_vectors(k)
        self.projection = np.diag(values[:k])
        self.coupling = self.coupling @ y[:, :k]

    def add(self, operator: SymmetricOperator) -> None:
        """Add the vector that the last product left outside, at one product."""
        k = self.size
        q = self.outside - self.rows.mT @ (self.rows @ self.outside)
        q = q / q.norm()
        product = operator.matvec(q)
        self.rows = torch.cat([self.rows, q[None]])
        along = self.rows @ product
        rest = product - along @ self.rows
        rest = rest - (self.rows @ rest) @ self.rows
        grown = np.zeros((k + 1, k + 1))
        grown[:k, :k] = self.projection
        grown[k, :k] = grown[:k, k] = self.coupling
        grown[k, k] = float(along[-1])
        self.projection = grown
        beta = float(rest.norm())
        self.coupling = np.append(np.zeros(k), beta)
        self.products += 1
        scale = np.abs(self.projection).max()
        self.closed = beta <= 1e3 * np.finfo(float).eps * scale
        self.outside = rest / (beta or 1.0)
