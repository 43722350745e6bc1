"""scipy_method: hvpopt's methods inside ``scipy.optimize.minimize``."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import Bounds, OptimizeResult, OptimizeWarning
from torch import Tensor

from hvpopt import checks
from hvpopt.interop.as_scipy import Vector, to_numpy
from hvpopt.methods.method import Method, checked_method
from hvpopt.model.counts import Counts
from hvpopt.model.space import ModelSpace
from hvpopt.model.tensors import Model
from hvpopt.operators.autograd import FiniteDifferenceHessian, model_noise
from hvpopt.operators.symmetric import SymmetricOperator
from hvpopt.problem.objective import Kind, Objective
from hvpopt.run.minimize import minimize
from hvpopt.run.result import IterationRecord, MinimizeResult, Status

#: Names of the options in SciPy, and in ``hvpopt.minimize``.
OPTIONS = {
    "maxiter": "max_iter",
    "gtol": "gtol",
    "max_products": "max_products",
    "max_seconds": "max_seconds",
    "disp": "progress",
}
#: Status of SciPy's methods when a callback raises StopIteration.
STOPPED_BY_CALLBACK = 99


def scipy_method(
    method: Method | None = None, *wrong: object, **options: Any
) -> Callable[..., OptimizeResult]:
    """Return an hvpopt method as a ``method`` of ``scipy.optimize.minimize``.

    ``jac`` is required, as a function or as ``jac=True``. Products come from ``hess``
    (whose value may be an array, a sparse matrix or a LinearOperator) or, if there is
    none, from ``hessp``. With neither, or with ``hess="2-point"`` and similar strings,
    they are central differences of ``jac``: two gradients a product, about eight correct
    digits, evaluated up to 6e-6 ‖x‖ outside the bounds; the result's message says so.

    Every iterate and trial is within ``bounds``; ``x0`` is moved inside them first. A
    ``callback`` of either signature is called after each step. As in hvpopt.minimize, an
    exception of ``fun`` at a trial point shortens the step, and an interrupt or a failure
    after the first step returns the best point.

    Args:
        method: The method that takes the steps. Default that of hvpopt.minimize.
        *wrong: None: given where SciPy calls this function itself.
        **options: Defaults of ``maxiter``, ``gtol`` (relative to the largest gradient
            so far, unlike in SciPy), ``max_products``, ``max_seconds`` and ``disp`` (a
            progress bar). The ``options`` of a call take precedence; its ``tol`` serves
            as ``gtol`` if it has none.

    Returns:
        The callable. Its OptimizeResult has ``x fun jac success status message nit nfev
        njev nhev``, of which ``nfev``, ``njev`` and ``nhev`` count calls of the caller's
        functions, and ``counts`` and ``history`` as in MinimizeResult. ``status`` is 0
        for success and 99 for a callback that stopped the run.

    Raises:
        TypeError: For an unknown option, or a method of the wrong type.

    Example:
        >>> from scipy.optimize import minimize, rosen, rosen_der, rosen_hess_prod
        >>> minimize(rosen, [-1.2, 1.0], jac=rosen_der, hessp=rosen_hess_prod,
        ...          method=hvpopt.scipy_method(), options={"gtol": 1e-9}).x.round(6)
        array([1., 1.])
    """
    if wrong:
        raise TypeError(
            "scipy_method makes the method and is none: pass "
            "method=hvpopt.scipy_method() to scipy.optimize.minimize, with brackets"
        )
    if method is not None:
        checked_method(method)
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise TypeError(f"unknown options {unknown}; there are {sorted(OPTIONS)}")
    for name in ("maxiter", "max_products"):
        checks.optional(checks.limit, name, options.get(name))
    checks.optional(checks.number, "max_seconds", options.get("max_seconds"), least=0.0)
    if options.get("gtol") is not None:
        checks.gtol(options["gtol"])

    def run(
        fun: Callable[..., Any],
        x0: npt.ArrayLike,
        args: tuple[Any, ...] = (),
        jac: Any = None,
        hess: Any = None,
        hessp: Any = None,
        bounds: Any = None,
        constraints: Any = (),
        callback: Callable[..., Any] | None = None,
        tol: float | None = None,
        **given: Any,
    ) -> OptimizeResult:
        _check_constraints(constraints)
        objective = _CallableObjective(fun, jac, hess, hessp, args)
        start = checks.numbers_of("x0", x0)
        lower, upper = _bounds(bounds, start.size)
        result = minimize(
            objective,
            torch.from_numpy(np.clip(start, lower, upper)),
            method=method,
            lower=torch.from_numpy(lower),
            upper=torch.from_numpy(upper),
            callback=_callback(callback),
            **_loop_options(options if tol is None else options | {"gtol": tol}, given),
        )
        return _optimize_result(result, objective)

    return run


class _CallableObjective(Objective):
    """The callables of a SciPy problem; its model is one float64 tensor ``[n]``."""

    def __init__(
        self, fun: Callable[..., Any], jac: Any, hess: Any, hessp: Any, args: Any
    ) -> None:
        super().__init__(str(getattr(fun, "__name__", "fun")))
        checks.function("fun", fun)
        if not callable(jac) or isinstance(jac, type):
            raise ValueError(
                f"jac is {jac!r}; the gradient is needed: pass a function, or jac=True "
                "where fun returns it too"
            )
        differenced = hess is None or isinstance(hess, str)
        for name, function in (("hess", None if differenced else hess), ("hessp", hessp)):
            use = "pass a function, or leave it out for differences of jac"
            checks.optional(checks.function, name, function, use)
        self.fun, self.jac, self.args = fun, jac, args
        self.hess = None if differenced else hess
        self.hessp = None if hess is not None else hessp
        self.nhev = 0
        self._recent: list[tuple[Tensor, float]] = []

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        raise TypeError("NumPy callables have no torch graph")

    def value(self, model: Model) -> float:
        assert isinstance(model, Tensor)
        # the loop linearises at the last trial, or at the one before it
        for known, result in self._recent:
            if torch.equal(known, model):
                return result
        self.counts.tally(values=1)
        value = checks.numbers_of(
            "what fun returned", self.fun(to_numpy(model), *self.args)
        )
        if value.size != 1:
            raise ValueError(f"fun returned shape {value.shape}; expected one number")
        self._recent = [*self._recent[-1:], (model.clone(), float(value.reshape(())))]
        return self._recent[-1][1]

    def gradient(self, model: Tensor, counts: Counts) -> Tensor:
        counts.tally(gradients=1)
        return _vector(self.jac(to_numpy(model), *self.args), model.numel(), "jac")

    def value_and_gradient(self, model: Model) -> tuple[float, Model]:
        assert isinstance(model, Tensor)
        return self.value(model), self.gradient(model, self.counts)

    def hessian(
        self, model: Model, kind: Kind = "exact", *, space: ModelSpace | None = None
    ) -> SymmetricOperator:
        if kind == "gauss-newton":
            raise ValueError(
                "SciPy's callables define no Gauss-Newton matrix; use kind='exact', or "
                "return that matrix's products from hessp"
            )
        assert isinstance(model, Tensor)
        space = ModelSpace(model) if space is None else space
        if self.hess is None and self.hessp is None:
            return _DifferencedJac(self, model, space)
        return _CallableHessian(self, model, space)


class _CallableHessian(SymmetricOperator):
    """Products from ``hess``, evaluated once, at the first product, or from ``hessp``."""

    def __init__(
        self, objective: _CallableObjective, model: Tensor, space: ModelSpace
    ) -> None:
        counts = objective.counts.child()
        noise = model_noise(model)
        super().__init__(space=space, counts=counts, noise=noise)
        self._objective = objective
        self._model = model.clone()
        self._matrix: Any = None

    def _product(self, vector: Tensor) -> Tensor:
        assert self.space is not None
        step = self.space.step_to_model(vector.to(self.dtype))
        assert isinstance(step, Tensor)
        self.counts.tally(products=1)
        return self.space.gradient_to_vector(self._apply(to_numpy(step)))

    def _apply(self, step: Vector) -> Tensor:
        objective, x = self._objective, to_numpy(self._model)
        if objective.hess is None:
            assert objective.hessp is not None
            objective.nhev += 1
            product = objective.hessp(x, step, *objective.args)
            return _vector(product, step.size, "hessp")
        if self._matrix is None:
            objective.nhev += 1
            matrix = objective.hess(x, *objective.args)
            # operators and sparse matrices have a ``dot``
            matrix = matrix if hasattr(matrix, "dot") else np.asarray(matrix)
            if matrix.shape != (step.size, step.size):
                raise ValueError(
                    f"hess returned shape {matrix.shape}, expected {(step.size,) * 2}"
                )
            self._matrix = matrix
        return _vector(self._matrix.dot(step), step.size, "the product with hess")

    def close(self) -> None:
        self._matrix = None


class _DifferencedJac(FiniteDifferenceHessian):
    """Products by central differences of ``jac``."""

    def __init__(
        self, objective: _CallableObjective, model: Tensor, space: ModelSpace
    ) -> None:
        counts = objective.counts.child()
        super().__init__(objective, model.clone(), space=space, counts=counts)
        self._objective = objective

    def _gradient(self, step: Tensor) -> Tensor:
        assert self.space is not None
        shaped = self.space.step_to_model(step)
        assert isinstance(shaped, Tensor)
        moved = self._model["model"] + shaped
        return self.space.gradient_to_vector(self._objective.gradient(moved, self.counts))


def _vector(values: Any, size: int, what: str) -> Tensor:
    array = checks.numbers_of(f"what {what} returned", values)
    if array.size != size:
        raise ValueError(f"{what} returned shape {array.shape}, expected ({size},)")
    return torch.from_numpy(array.reshape(-1))


def _check_constraints(constraints: Any) -> None:
    none = constraints is None or (
        isinstance(constraints, (list, tuple)) and not constraints
    )
    if not none:
        raise ValueError(
            "hvpopt's methods take bounds but no constraints; use scipy's trust-constr "
            "(with hvpopt.as_scipy for its products), or drop them"
        )


def _bounds(bounds: Any, size: int) -> tuple[Vector, Vector]:
    if bounds is None:
        return np.full(size, -np.inf), np.full(size, np.inf)
    if isinstance(bounds, Bounds):
        sides = [np.asarray(side, dtype=np.float64) for side in (bounds.lb, bounds.ub)]
    else:
        try:
            pairs = [tuple(pair) for pair in bounds]
        except TypeError:
            raise TypeError(
                f"bounds is {checks.shown(bounds)}; pass pairs (low, high), or a "
                "scipy.optimize.Bounds"
            ) from None
        if len(pairs) != size or any(len(pair) != 2 for pair in pairs):
            raise ValueError(f"bounds must be {size} pairs (low, high), one an entry")
        low = [-np.inf if pair[0] is None else pair[0] for pair in pairs]
        high = [np.inf if pair[1] is None else pair[1] for pair in pairs]
        sides = [checks.numbers_of("a bound", side) for side in (low, high)]
    for side in sides:
        if side.shape not in ((), (1,), (size,)):
            raise ValueError(f"bounds have shape {side.shape}, expected ({size},)")
    lower, upper = (np.array(np.broadcast_to(side, (size,))) for side in sides)
    return lower, upper


def _loop_options(defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(given) - set(OPTIONS))
    if unknown:
        # a later SciPy may pass more options: ignore them with a warning
        warnings.warn(
            f"unknown options {unknown}; there are {sorted(OPTIONS)}",
            OptimizeWarning,
            stacklevel=4,
        )
    chosen = {k: v for k, v in given.items() if k in OPTIONS and v is not None}
    merged = {k: v for k, v in defaults.items() if v is not None} | chosen
    if checks.is_number(merged.get("disp")):
        merged["disp"] = merged["disp"] > 0  # SciPy's methods accept a verbosity level
    return {OPTIONS[name]: value for name, value in merged.items()}


def _callback(
    callback: Callable[..., Any] | None,
) -> Callable[[Model, IterationRecord], None] | None:
    """Adapt a callback of either of SciPy's signatures; only StopIteration stops."""
    if callback is None:
        return None
    checks.function("callback", callback)
    named = set(inspect.signature(callback).parameters) == {"intermediate_result"}

    def adapted(model: Model, record: IterationRecord) -> None:
        assert isinstance(model, Tensor)
        if record.iteration == 0:
            return  # SciPy calls it after steps only
        if named:
            now = {"x": to_numpy(model), "fun": record.value, "nit": record.iteration}
            callback(intermediate_result=_scipy_result(now))
        else:
            callback(to_numpy(model))

    return adapted


def _optimize_result(
    result: MinimizeResult, objective: _CallableObjective
) -> OptimizeResult:
    assert isinstance(result.x, Tensor)
    code = list(Status).index(result.status)
    message = result.message
    if objective.hess is None and objective.hessp is None:
        message += "; products by central differences of jac"
    fields = {
        "x": to_numpy(result.x),
        "fun": result.fun,
        "jac": to_numpy(result.jac) if isinstance(result.jac, Tensor) else None,
        "success": result.success,
        "status": STOPPED_BY_CALLBACK if result.status is Status.CALLBACK else code,
        "message": message,
        "nit": result.nit,
        "nfev": result.nfev,
        "njev": result.njev,
        "nhev": objective.nhev,
        "counts": result.counts,
        "history": result.history,
    }
    return _scipy_result(fields)


def _scipy_result(fields: dict[str, Any]) -> OptimizeResult:
    result = OptimizeResult()
    result.update(fields)
    return result
