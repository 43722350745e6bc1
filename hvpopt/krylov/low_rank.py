"""LowRankPreconditioner: the few directions that are known, and a number for the rest.

With a base B and vectors V that are orthonormal in it, ``VᵀBV = I``,

    M⁻¹ = B⁻¹/σ + V (diag(1/θ) − I/σ) Vᵀ

divides by θ_i along v_i and by σ elsewhere, relative to the base. In the coordinates
``C⁻¹v`` with ``B⁻¹ = C Cᵀ`` this is ``I/σ`` off an orthonormal basis and ``1/θ`` on it:
symmetric positive definite as long as θ and σ are. The vectors come from a Lanczos basis
at no product (``ritz_preconditioner``, ``ritz_pairs``), or from a random sketch
(``nystrom``).
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.krylov.lanczos import LanczosBasis
from hvpopt.krylov.pairs import Pair
from hvpopt.krylov.preconditioner import (
    DiagonalPreconditioner,
    Preconditioner,
    apply_base,
    checked_preconditioner,
)
from hvpopt.operators.symmetric import SymmetricOperator, checked_operator

#: Smallest θ and σ relative to the largest θ, where no damping asks for more.
FLOOR = 1e-12


@dataclass(frozen=True, eq=False)
class LowRankPreconditioner:
    """Division by θ along some directions and by σ along all others.

    Args:
        vectors: V, ``[n, r]``, orthonormal in the base: ``VᵀBV = I``.
        values: θ, ``[r]``, positive.
        rest: σ, positive.
        base: B. Default the identity.

    Raises:
        TypeError: For what is no tensor, no number or no preconditioner.
        ValueError: If shapes do not fit or a number is not positive.
    """

    vectors: Tensor
    values: Tensor
    rest: float
    _: KW_ONLY
    base: Preconditioner | None = None

    def __post_init__(self) -> None:
        checks.tensor("vectors", self.vectors)
        checks.tensor("values", self.values)
        checks.put(
            self,
            rest=checks.number("rest", self.rest, above=0.0, below=math.inf),
            base=checked_preconditioner(self.base, "base"),
        )
        shape = tuple(self.vectors.shape)
        if (
            not self.values.numel()
            or self.vectors.ndim != 2
            or self.values.shape != shape[1:]
        ):
            raise ValueError(
                f"vectors have shape {shape} and values {tuple(self.values.shape)}; "
                "expected [n, r] and [r]"
            )
        if not bool(((self.values > 0) & (self.values < math.inf)).all()):
            raise ValueError(
                f"values run from {float(self.values.min()):g} to "
                f"{float(self.values.max()):g}; all must be positive and finite"
            )

    @property
    def rank(self) -> int:
        """Number of directions known."""
        return int(self.values.numel())

    def apply(self, vector: Tensor) -> Tensor:
        """Return ``M⁻¹ vector``, ``[n]``."""
        checks.tensor("the vector", vector)
        if vector.shape != self.vectors.shape[:1]:
            raise ValueError(
                f"the vector has shape {tuple(vector.shape)}, expected "
                f"({self.vectors.shape[0]},)"
            )
        v = self.vectors.to(vector)
        weights = (1.0 / self.values - 1.0 / self.rest).to(vector)
        return apply_base(self.base, vector) / self.rest + v @ (weights * (v.mT @ vector))


def nystrom(
    operator: SymmetricOperator,
    rank: int,
    seed: int = 0,
    *,
    damping: float = 1e-6,
    base: DiagonalPreconditioner | None = None,
) -> LowRankPreconditioner:
    """Return a randomised Nyström preconditioner of a positive semidefinite operator.

    Frangella, Tropp and Udell, SIAM J. Matrix Anal. Appl. 44, 2023, algorithm 2.1 with
    its stabilising shift: from a random orthonormal test matrix Ω and the products
    Y = HΩ, ``Ĥ = Y (ΩᵀY)⁺ Yᵀ = U Λ̂ Uᵀ``; then θ = λ̂ + μ, and σ = λ̂_rank + μ. Cells
    in which every product is zero are divided by σ, and mixed with no other.

    Args:
        operator: H. Where it is indefinite the preconditioner still is definite, but
            may serve less; Gauss-Newton matrices are semidefinite.
        rank: Size of the sketch, and products spent.
        seed: Of the test matrix.
        damping: μ relative to the largest eigenvalue found. It should be near the
            smallest eigenvalues that matter. Default 1e-6.
        base: A diagonal D; the sketch is then of ``D^{-1/2} H D^{-1/2}``. Default none.

    Returns:
        The preconditioner, ``[n]`` to ``[n]``.

    Raises:
        ValueError: If ``rank`` is not in [1, n], or H is zero.
        TypeError: If the base is not diagonal, or for another argument of a wrong type.

    Example:
        >>> import torch, hvpopt
        >>> H = hvpopt.MatrixOperator(torch.diag(0.5 ** torch.arange(40.0)))
        >>> H.counts.products, hvpopt.nystrom(H, 8).rank, H.counts.products
        (0, 8, 8)
    """
    n = checked_operator(operator).size
    rank = checks.integer("rank", rank, least=1, most=n)
    seed = checks.seed("seed", seed)
    damping = _checked_damping(damping)
    if base is not None and not isinstance(base, DiagonalPreconditioner):
        raise TypeError(
            f"base is {checks.kind(base)}; a sketch needs the square root of its "
            "base, so give a DiagonalPreconditioner, and build others on top"
        )
    # drawn on the host, so that a seed means the same on every device
    draws = torch.Generator().manual_seed(seed)
    omega = torch.randn(n, rank, generator=draws, dtype=torch.float64)
    omega = torch.linalg.qr(omega)[0].to(operator.device)
    root = None if base is None else base.inverse.to(omega).sqrt()[:, None]
    y = operator.matmat(omega) if root is None else root * operator.matmat(root * omega)
    vectors, values = _nystrom_eigenpairs(omega, y, operator.noise)
    # Where all products are exactly zero the vectors hold rounding. Without it M⁻¹ falls
    # into two blocks, of which each stays definite.
    vectors = vectors.masked_fill((y == 0.0).all(1)[:, None], 0.0)
    largest = float(values.max())
    if not largest > 0.0:
        raise ValueError(
            f"the operator has no positive curvature in {rank} random directions"
        )
    theta = values.clamp(min=FLOOR * largest) + damping * largest
    return LowRankPreconditioner(
        vectors if root is None else root * vectors,
        theta,
        float(theta.min()),
        base=base,
    )


def _nystrom_eigenpairs(omega: Tensor, y: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Return U ``[n, r]`` and Λ̂ ``[r]``, none negative."""
    norm = float(torch.linalg.matrix_norm(y, 2))
    small = 0.5 * (omega.mT @ y + y.mT @ omega)
    lowest = float(torch.linalg.eigvalsh(small)[0])
    # What the sketch shows of negative curvature, or rounding, would end the Cholesky
    # factorisation; the shift is taken off again below.
    shift = max(noise, 1e-15) * math.sqrt(y.shape[0]) * norm + max(-2.0 * lowest, 0.0)
    if norm == 0.0:
        return omega, y.new_zeros(y.shape[1])
    eye = torch.eye(y.shape[1], dtype=y.dtype, device=y.device)
    factor = torch.linalg.cholesky(small + shift * eye)
    b = torch.linalg.solve_triangular(factor, (y + shift * omega).mT, upper=False).mT
    u, s, _ = torch.linalg.svd(b, full_matrices=False)
    return u, (s.square() - shift).clamp(min=0.0)


def ritz_preconditioner(
    basis: LanczosBasis, rank: int, *, accuracy: float = 0.1, damping: float = 1e-6
) -> LowRankPreconditioner:
    """Return a preconditioner from the Ritz pairs of a Lanczos basis, at no product.

    The largest |θ| lead, and σ is the smallest of those taken. Negative curvature counts
    by its size, so that M is definite where H is not. To correct a base, use
    ``ritz_pairs``: Ritz vectors are not orthonormal in one.

    Args:
        basis: Of H, with any start.
        rank: Pairs to take at most.
        accuracy: Leave out pairs whose residual, relative to |θ|, is above this; the
            best one is always taken. Default 0.1.
        damping: Smallest θ relative to the largest. Default 1e-6.

    Returns:
        The preconditioner, ``[n]`` to ``[n]``.

    Raises:
        TypeError: If the basis is none.
        ValueError: If the basis is empty or zero, or a number is out of range.
    """
    damping = _checked_damping(damping)
    vectors, values = _largest_ritz_pairs(basis, rank, accuracy, max(damping, FLOOR))
    return LowRankPreconditioner(vectors, values, float(values.min()))


def ritz_pairs(
    basis: LanczosBasis, rank: int, *, accuracy: float = 0.1
) -> tuple[Pair, ...]:
    """Return Ritz pairs as ``(u, |θ| u)`` for a PairsPreconditioner, at no product.

    On a base they make the limited memory preconditioner of Gratton, Sartenaer and
    Tshimanga, SIAM J. Optim. 21, 2011: ``M⁻¹ u = u / |θ|``, and the base elsewhere.

    Args:
        basis: Of H, with any start.
        rank: Pairs to take at most, those of largest |θ|.
        accuracy: As for ``ritz_preconditioner``.

    Returns:
        The pairs, the smallest |θ| first.

    Raises:
        TypeError: As for ``ritz_preconditioner``.
        ValueError: Likewise.
    """
    vectors, values = _largest_ritz_pairs(basis, rank, accuracy, FLOOR)
    columns = zip(vectors.unbind(1), values, strict=True)
    return tuple((u, value * u) for u, value in reversed(list(columns)))


def _largest_ritz_pairs(
    basis: LanczosBasis, rank: int, accuracy: float, floor: float
) -> tuple[Tensor, Tensor]:
    """Return U ``[n, r]`` and |θ| ``[r]``, falling, of the accurate Ritz pairs."""
    checks.instance("basis", basis, LanczosBasis, "pass hvpopt.LanczosBasis(operator)")
    rank = checks.integer("rank", rank, least=1)
    accuracy = checks.number("accuracy", accuracy, above=0.0)
    sizes = np.abs(basis.ritz_values)
    largest = float(sizes.max())
    if not largest > 0.0:
        raise ValueError("every Ritz value is zero; nothing is known of the operator")
    sizes = sizes.clip(min=floor * largest)
    residuals = np.array([basis.ritz_residual(i) for i in range(basis.size)])
    good = np.flatnonzero(residuals <= accuracy * sizes)
    if not good.size:
        good = np.array([int(np.argmin(residuals / sizes))])
    taken = good[np.argsort(-sizes[good])][:rank]
    vectors = torch.stack([basis.seen(basis.ritz_vector(int(i))) for i in taken], 1)
    some = vectors.any(0)
    return vectors[:, some], torch.from_numpy(sizes[taken]).to(vectors)[some]


def _checked_damping(damping: float) -> float:
    says = "it is relative and lies in [0, 1)"
    return checks.number("damping", damping, least=0.0, below=1.0, says=says)
