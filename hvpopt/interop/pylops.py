"""hvpopt's operators as PyLops operators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.sparse.linalg import LinearOperator as ScipyOperator

from hvpopt.operators.jacobian import Jacobian
from hvpopt.operators.symmetric import SymmetricOperator, checked_operator

if TYPE_CHECKING:
    import pylops


def to_pylops(operator: SymmetricOperator | Jacobian) -> pylops.LinearOperator:
    """Return an operator as a ``pylops.LinearOperator`` on host vectors.

    It composes with PyLops' own operators and solvers. Every product, forward or
    adjoint, is one product of ``operator`` and is counted in ``operator.counts``.

    Args:
        operator: On flat vectors ``[n]``, on any device: symmetric, or a Jacobian, whose
            adjoint is its transpose.

    Returns:
        An operator on float64 NumPy vectors; of a symmetric one, self-adjoint. It holds a
        reference to ``operator``, and raises the same errors, for instance after
        ``close()``.

    Raises:
        ImportError: If PyLops is not installed.
        TypeError: If ``operator`` is neither.

    Example:
        >>> import numpy, pylops, torch, hvpopt
        >>> from hvpopt.interop.pylops import to_pylops
        >>> H = hvpopt.MatrixOperator(torch.tensor([[2.0, 1.0], [1.0, 3.0]]))
        >>> (to_pylops(H) + 0.5 * pylops.Identity(2)) @ numpy.array([1.0, 0.0])
        array([2.5, 1. ])
    """
    if not isinstance(operator, Jacobian):
        checked_operator(operator)
    try:
        from pylops import LinearOperator
    except ImportError as error:
        raise ImportError(
            "to_pylops needs PyLops; install it with: pip install 'hvpopt[pylops]'"
        ) from error
    products = operator.to_scipy()

    def forward(vector: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return _in_float64(products.matvec(vector))

    def adjoint(vector: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return _in_float64(products.rmatvec(vector))

    return LinearOperator(
        Op=ScipyOperator(
            operator.shape, matvec=forward, rmatvec=adjoint, dtype=np.float64
        ),
        dtype=np.dtype(np.float64),
    )


def _in_float64(product: npt.ArrayLike) -> npt.NDArray[Any]:
    found = np.asarray(product)
    return found if np.iscomplexobj(found) else found.astype(np.float64)
