"""The dense backend: an assembled Hessian, for validation and small models."""

from __future__ import annotations

import math

import scipy.linalg
import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.operators.symmetric import (
    DENSE_MEMORY_LIMIT,
    SymmetricOperator,
    checked_operator,
)


class DenseHessian:
    """A Hessian assembled from its products, with its spectrum's lower end and solves.

    Args:
        operator: Any symmetric operator, ``n × n``; costs n products.
        memory_limit: Refuse a matrix of more bytes than this, or a string such as
            ``"2GB"``. The Cholesky factor takes as much again.
        deadline: Raise when ``time.monotonic()`` passes this, seconds.

    Attributes:
        matrix: ``[n, n]``.

    Raises:
        TypeError: If ``operator`` is no SymmetricOperator.
        MemoryError: If the matrix needs more than ``memory_limit`` bytes.
        TimeoutError: If the deadline passes.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        *,
        memory_limit: str | float = DENSE_MEMORY_LIMIT,
        deadline: float = math.inf,
    ) -> None:
        self.matrix = checked_operator(operator).to_dense(
            memory_limit=memory_limit, deadline=deadline
        )

    def smallest_eigenvalue(self) -> tuple[float, Tensor]:
        """Return the smallest eigenvalue and its unit eigenvector ``[n]``."""
        values, vectors = scipy.linalg.eigh(
            self.matrix.cpu().numpy(), subset_by_index=[0, 0]
        )
        return float(values[0]), torch.from_numpy(vectors[:, 0].copy()).to(self.matrix)

    def solve(self, rhs: Tensor, shift: float = 0.0) -> Tensor:
        """Return x of ``(H + shift · I) x = rhs`` by a Cholesky factorisation.

        Args:
            rhs: ``[n]``.
            shift: Added to the diagonal.

        Returns:
            ``[n]``.

        Raises:
            TypeError: If ``rhs`` is no real tensor, or the shift no number.
            ValueError: If the shifted matrix is not positive definite, or ``rhs`` does
                not fit.
        """
        checks.tensor("the right-hand side", rhs, self.matrix.shape[:1])
        shift = checks.number("shift", shift, above=-math.inf, below=math.inf)
        shifted = self.matrix.clone()
        shifted.diagonal().add_(shift)
        factor, info = torch.linalg.cholesky_ex(shifted)
        if int(info):
            raise ValueError(
                f"H + {shift:g}·I is not positive definite (order-{int(info)} minor); "
                "shift it by more than minus its smallest eigenvalue"
            )
        solution = torch.cholesky_solve(rhs.to(self.matrix.dtype)[:, None], factor)
        return solution[:, 0]
