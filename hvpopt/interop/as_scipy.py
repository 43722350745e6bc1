"""as_scipy: an hvpopt objective as the NumPy callables that SciPy's methods take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import Bounds
from torch import Tensor

from hvpopt import checks
from hvpopt.model.counts import Counts
from hvpopt.model.space import ModelSpace, PerParameter
from hvpopt.model.tensors import Model, warn_of_hooks
from hvpopt.operators.jacobian import Jacobian
from hvpopt.operators.symmetric import SymmetricOperator
from hvpopt.problem.objective import Kind, Objective, check_kind
from hvpopt.problem.torch_objective import as_objective

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

Vector: TypeAlias = npt.NDArray[np.float64]


@overload
def as_scipy(objective: SymmetricOperator | Jacobian) -> LinearOperator: ...


@overload
def as_scipy(
    objective: Objective | Callable[..., Tensor],
    model: Model,
    *,
    scale: PerParameter = None,
    mask: PerParameter = None,
    lower: PerParameter = None,
    upper: PerParameter = None,
    hessian: Kind | None = "exact",
) -> ScipyProblem: ...


def as_scipy(
    objective: Any,
    model: Model | None = None,
    *,
    scale: PerParameter = None,
    mask: PerParameter = None,
    lower: PerParameter = None,
    upper: PerParameter = None,
    hessian: Kind | None = "exact",
) -> ScipyProblem | LinearOperator:
    """Return an objective, or an operator, as functions of flat float64 NumPy vectors.

    Args:
        objective: An Objective, or any scalar torch function called as the model is
            arranged; or, alone, a SymmetricOperator or a Jacobian.
        model: The start: a tensor, a tuple or a dict of tensors. Not changed.
        scale: Size of one unit of each parameter; see ModelSpace. Default 1.
        mask: True where cells may change; see ModelSpace. Default all.
        lower: Lower bounds in the model's units; see ModelSpace. Default none.
        upper: Upper bounds in the model's units; see ModelSpace. Default none.
        hessian: ``"exact"`` (the default), ``"gauss-newton"``, or None for a method
            without products; gradients then keep no graph.

    Returns:
        The problem, whose methods are arguments of ``scipy.optimize.minimize``. Of an
        operator, a ``scipy.sparse.linalg.LinearOperator`` for SciPy's solvers.

    Raises:
        TypeError: For an objective or model of the wrong type, an objective without
            model, or an operator with one.
        ValueError: For an unknown Hessian, or options that do not fit the model.

    Example:
        >>> import scipy.optimize, torch, hvpopt
        >>> x0 = torch.tensor([-1.2, 1.0], dtype=torch.float64)
        >>> f = lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
        >>> p = hvpopt.as_scipy(f, x0)
        >>> result = scipy.optimize.minimize(
        ...     p.fun, p.x0, jac=p.jac, hessp=p.hessp, method="trust-ncg", tol=1e-9)
        >>> p.to_model(result.x)
        tensor([1.0000, 1.0000], dtype=torch.float64)
    """
    if isinstance(objective, (SymmetricOperator, Jacobian)):
        if model is not None:
            raise TypeError("an operator is made at its model; pass as_scipy(operator)")
        return objective.to_scipy()
    if model is None:
        raise TypeError("as_scipy of an objective needs the start: as_scipy(loss, model)")
    if hessian is not None:
        check_kind(hessian, "hessian")
    warn_of_hooks(model)
    space = ModelSpace(model, scale=scale, mask=mask, lower=lower, upper=upper)
    return ScipyProblem(as_objective(objective), space, space.to_vector(model), hessian)


@dataclass(frozen=True)
class _Evaluated:
    """Value, gradient and Hessian at a flat point."""

    vector: Vector
    value: float
    gradient: Vector
    hessian: SymmetricOperator | None


class ScipyProblem:
    """The value, gradient and products of an objective, on flat vectors; see as_scipy.

    In the order of SciPy's calls nothing is evaluated twice. ``fun`` costs one value;
    ``jac`` costs one gradient, which also gives the value and serves ``hessp``. Besides
    the point of the newest gradient, that of the newest product is kept until a product
    at another point: a trust-region method that rejects a trial continues from there.

    SciPy minimises one function, so a bad shot raises BadShotError for every
    ``on_bad_shot``.

    Attributes:
        objective: The objective.
        space: The flat coordinates.
        kind: Kind of the products.
        x0: The start ``[n]``, float64.
        bounds: A ``scipy.optimize.Bounds``, or None if no cell has a bound. The functions
            do not enforce it; pass it to the method.
    """

    def __init__(
        self, objective: Objective, space: ModelSpace, start: Tensor, kind: Kind | None
    ) -> None:
        self.objective = objective
        self.space = space
        self.kind = kind
        self.x0 = to_numpy(start)
        self.bounds = _bounds(space)
        self._valued: tuple[Vector, float] | None = None
        self._newest: _Evaluated | None = None
        self._base: _Evaluated | None = None

    @property
    def counts(self) -> Counts:
        """Cost of the objective so far, including evaluations outside this problem."""
        return self.objective.counts

    def fun(self, x: npt.ArrayLike) -> float:
        """Return the value at ``x`` ``[n]``, without computing a gradient."""
        vector = self._flat(x)
        known = self._known(vector)
        if known is not None:
            return known.value
        if self._valued is None or not np.array_equal(self._valued[0], vector):
            self._valued = vector, self.objective.value(self.to_model(vector))
        value: float = self._valued[1]
        return value

    def jac(self, x: npt.ArrayLike) -> Vector:
        """Return the gradient with respect to ``x``, ``[n]``."""
        return np.array(self._evaluate(self._flat(x)).gradient)

    def fun_and_jac(self, x: npt.ArrayLike) -> tuple[float, Vector]:
        """Return value and gradient ``[n]`` at ``x`` ``[n]``, for ``jac=True``."""
        evaluated = self._evaluate(self._flat(x))
        return evaluated.value, evaluated.gradient.copy()

    def hessp(self, x: npt.ArrayLike, p: npt.ArrayLike) -> Vector:
        """Return the product of the Hessian at ``x`` with ``p``.

        Args:
            x: The point ``[n]``.
            p: The vector ``[n]``.

        Returns:
            The product ``[n]``.

        Raises:
            ValueError: If this problem was made with ``hessian=None``.
        """
        if self.kind is None:
            raise ValueError(
                "this problem has no products: it was made with hessian=None"
            )
        evaluated = self._evaluate(self._flat(x))
        if self._base is not evaluated:
            _close(self._base)
            self._base = evaluated
        assert evaluated.hessian is not None
        product = evaluated.hessian.matvec(self._tensor(self._flat(p)))
        return to_numpy(product)

    def to_model(self, x: npt.ArrayLike) -> Model:
        """Return the model of a flat vector, arranged and typed like the start."""
        return self.space.to_model(self._tensor(self._flat(x)))

    def close(self) -> None:
        """Release the kept values, gradients and graphs; the problem stays usable."""
        _close(self._newest)
        _close(self._base)
        self._valued = self._newest = self._base = None

    def _evaluate(self, vector: Vector) -> _Evaluated:
        known = self._known(vector)
        if known is not None:
            return known
        if self._newest is not self._base:
            _close(self._newest)
        # released before the new graph is built: at most two graphs are held
        self._newest = self._base
        model = self.to_model(vector)
        lin = self.objective.linearise(model, self.kind, space=self.space)
        gradient = to_numpy(self.space.gradient_to_vector(lin.gradient))
        self._newest = _Evaluated(vector, lin.value, gradient, lin.hessian)
        return self._newest

    def _known(self, vector: Vector) -> _Evaluated | None:
        for evaluated in (self._newest, self._base):
            if evaluated is not None and np.array_equal(evaluated.vector, vector):
                return evaluated
        return None

    def _flat(self, values: npt.ArrayLike) -> Vector:
        array = checks.numbers_of("the vector", values)
        if array.size != self.space.size:
            raise ValueError(
                f"the vector has shape {array.shape}, expected ({self.space.size},)"
            )
        return array.reshape(-1)

    def _tensor(self, vector: Vector) -> Tensor:
        return torch.from_numpy(vector).to(self.space.device)


def to_numpy(tensor: Tensor) -> Vector:
    """Return a tensor as a new float64 array, which a caller may change."""
    return np.array(tensor.cpu().numpy(), dtype=np.float64)


def _close(evaluated: _Evaluated | None) -> None:
    if evaluated is not None and evaluated.hessian is not None:
        evaluated.hessian.close()


def _bounds(space: ModelSpace) -> Bounds | None:
    if not space.bounded:
        return None
    lower, upper = (
        np.full(space.size, default) if side is None else to_numpy(side)
        for side, default in ((space.lower, -np.inf), (space.upper, np.inf))
    )
    return Bounds(lower, upper)
