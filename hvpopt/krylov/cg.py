"""Preconditioned conjugate gradients that stop at negative curvature.

Hestenes and Stiefel, J. Res. Nat. Bur. Standards 49, 1952; the test for curvature is
Steihaug's, SIAM J. Numer. Anal. 20, 1983. A direction of negative curvature is an
outcome, not an error: it is returned.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from hvpopt.krylov.preconditioner import Preconditioner
from hvpopt.operators import SymmetricOperator


class CGStatus(Enum):
    """Why conjugate gradients ended."""

    CONVERGED = "the residual met its tolerance"
    NEGATIVE_CURVATURE = "a direction of zero or negative curvature was met"
    MAX_PRODUCTS = "the limit of products was reached before the residual's tolerance"
    DEADLINE = "the time limit was reached before the residual's tolerance"

    @property
    def message(self) -> str:
        """The sentence for a person."""
        return self.value


@dataclass(frozen=True)
class CGResult:
    """What conjugate gradients found.

    Attributes:
        x: The last iterate ``[n]``; for negative curvature the one before it was met.
        status: Why it ended.
        residual_norm: ``‖b − A x‖``, from the recurrence.
        n_products: Products spent.
        direction: The direction of negative curvature ``[n]``, else None.
        curvature: ``d·A d / d·d`` along it, else NaN.
    """

    x: Tensor
    status: CGStatus
    residual_norm: float
    n_products: int
    direction: Tensor | None = None
    curvature: float = math.nan


def cg(
    operator: SymmetricOperator,
    rhs: Tensor,
    *,
    tol: float = 1e-5,
    max_products: int | None = None,
    deadline: float = math.inf,
    preconditioner: Preconditioner | None = None,
) -> CGResult:
    """Solve ``A x = b`` from ``x = 0`` by preconditioned conjugate gradients.

    Args:
        operator: A, symmetric; need not be definite.
        rhs: b, ``[n]``.
        tol: Stop at ``‖b − A x‖ ≤ tol · ‖b‖``.
        max_products: Stop after this many products. Default ``2 n``.
        deadline: Stop when ``time.monotonic()`` passes this, seconds.
        preconditioner: Applies ``M⁻¹``. Default none.

    Returns:
        The iterate and why it ended.

    Raises:
        ValueError: If ``tol`` is not in (0, 1) or the right-hand side does not fit.
    """
    if not 0.0 < tol < 1.0:
        raise ValueError(f"tol is {tol}; it is relative and must lie in (0, 1)")
    if rhs.shape != (operator.size,):
        raise ValueError(
            f"the right-hand side has shape {tuple(rhs.shape)}, "
            f"expected ({operator.size},)"
        )
    if not bool(torch.isfinite(rhs).all()):
        raise ValueError("the right-hand side has NaN or infinite entries")
    limit = 2 * operator.size if max_products is None else max_products
    size = float(rhs.abs().max()) if rhs.numel() else 0.0
    if size == 0.0:
        return CGResult(torch.zeros_like(rhs), CGStatus.CONVERGED, 0.0, 0)
    # on a right-hand side of size 1: squares of small float32 numbers underflow
    x = torch.zeros_like(rhs)
    r = rhs / size
    target = tol * float(r.norm())
    z = r if preconditioner is None else preconditioner.apply(r)
    d = z.clone()
    rz = float(r @ z)
    products = 0
    norm = float(r.norm())
    status = CGStatus.CONVERGED
    while norm > target:
        if products >= limit:
            status = CGStatus.MAX_PRODUCTS
            break
        if time.monotonic() > deadline:
            status = CGStatus.DEADLINE
            break
        a_d = operator.matvec(d)
        products += 1
        curvature = float(d @ a_d)
        if curvature <= 0.0:
            return CGResult(
                x * size,
                CGStatus.NEGATIVE_CURVATURE,
                norm * size,
                products,
                direction=d,
                curvature=curvature / float(d @ d),
            )
        step = rz / curvature
        x = x + step * d
        r = r - step * a_d
        norm = float(r.norm())
        z = r if preconditioner is None else preconditioner.apply(r)
        rz, before = float(r @ z), rz
        d = z + (rz / before) * d
    return CGResult(x * size, status, norm * size, products)
