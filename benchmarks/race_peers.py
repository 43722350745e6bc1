"""Methods of other libraries, each given the same function of the same unknowns.

They see the misfit relative to its start, as a function of the flat vector
``model / scale`` in float64. SciPy's call numpy functions; torch's differentiate a
scalar whose derivatives, first and second, are the misfit's own gradients and products,
so that a product costs them what it costs hvpopt.

Where a method has no bounds, the survey refuses some of its trials (a model faster than
``max_vel``, say). Such a trial costs nothing and has the misfit ``REFUSED`` and gradient
zero, from which line searches and trust regions shorten their steps. A run has no other
end than its budget where the library allows: tolerances are zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.optimize
import torch
from numpy.typing import NDArray
from race_cost import Trace
from race_setup import Problem
from scipy.sparse.linalg import eigsh
from torch import Tensor

import hvpopt
from hvpopt.operators.symmetric import SymmetricOperator

Vector = NDArray[np.float64]

#: Misfit, relative to the start's, of a trial that the survey refuses.
REFUSED = 1e3
#: Corrections that limited-memory methods keep.
HISTORY = 20
#: Iterations that no run reaches.
ENDLESS = 10**6


class FlatFunction:
    """The misfit relative to its start, of the flat vector.

    Args:
        problem: Whose misfit.
        first: Misfit at the start.
        misfit: In the place of the problem's: of a sample of its shots. Default none.

    Attributes:
        problem: As given.
        misfit: What is evaluated.
        start: The flat start ``[n]``, float64.
        refused: Trials that the survey refused.
    """

    def __init__(
        self,
        problem: Problem,
        first: float,
        misfit: hvpopt.fwi.WaveformMisfit | None = None,
    ) -> None:
        self.problem = problem
        self.misfit = problem.misfit if misfit is None else misfit
        # without bounds: a space that has them projects every model onto them
        self._space = hvpopt.ModelSpace(
            problem.start, scale=problem.scale, mask=problem.mask
        )
        self.start = self._space.to_vector(problem.start)
        self.refused = 0
        self._first = first
        self._at: Tensor | None = None
        self._operator: SymmetricOperator | None = None

    def of(self, misfit: hvpopt.fwi.WaveformMisfit) -> FlatFunction:
        """Return another misfit, as a function of the same unknowns."""
        return FlatFunction(self.problem, self._first, misfit)

    def value(self, z: Tensor) -> float:
        """Return the relative misfit."""
        try:
            return self.misfit.value(self._space.to_model(z)) / self._first
        except ValueError:
            self.refused += 1
            return REFUSED

    def value_and_gradient(self, z: Tensor) -> tuple[float, Tensor]:
        """Return the relative misfit and its gradient ``[n]``."""
        model = self._space.to_model(z)
        try:
            value, gradient = self.misfit.value_and_gradient(model)
        except ValueError:
            self.refused += 1
            return REFUSED, torch.zeros_like(z)
        return value / self._first, self._space.gradient_to_vector(gradient) / self._first

    def product(self, z: Tensor, w: Tensor) -> Tensor:
        """Return the product of the exact Hessian at ``z`` with ``w``, both ``[n]``."""
        if self._operator is None or self._at is None or not torch.equal(z, self._at):
            self._at = z.clone()
            self._operator = self.misfit.hessian(
                self._space.to_model(z), space=self._space
            )
        return self._operator.matvec(w) / self._first

    def torch(self, z: Tensor) -> Tensor:
        """Return the relative misfit as a scalar that torch differentiates twice."""
        if not z.requires_grad:
            return z.new_tensor(self.value(z))
        scalar: Tensor = _Value.apply(z, self)
        return scalar


class _Value(torch.autograd.Function):
    """The misfit; its gradient comes from the same evaluation."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, function: FlatFunction) -> Tensor:
        value, gradient = function.value_and_gradient(z.detach())
        ctx.save_for_backward(z, gradient)
        ctx.function = function
        return z.new_tensor(value)

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor, None]:
        z, gradient = ctx.saved_tensors
        return weight * _Gradient.apply(z, gradient, ctx.function), None


class _Gradient(torch.autograd.Function):
    """The gradient; the Hessian is symmetric, so its backward pass is a product."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, gradient: Tensor, function: FlatFunction) -> Tensor:
        ctx.save_for_backward(z)
        ctx.function = function
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor, None, None]:
        (z,) = ctx.saved_tensors
        return ctx.function.product(z.detach(), weight), None, None


# -- SciPy ------------------------------------------------------------------------------


class _Numpy:
    """A flat function with numpy's vectors; a gradient just computed is not repeated."""

    def __init__(self, function: FlatFunction) -> None:
        self._function = function
        self.start: Vector = function.start.numpy().copy()

    def both(self, x: Vector) -> tuple[float, Vector]:
        """Return value and gradient."""
        value, gradient = self._function.value_and_gradient(_tensor(x))
        return value, gradient.numpy()

    def value(self, x: Vector) -> float:
        """Return the value alone."""
        return self._function.value(_tensor(x))

    def gradient(self, x: Vector) -> Vector:
        """Return the gradient alone."""
        return self.both(x)[1]

    def product(self, x: Vector, w: Vector) -> Vector:
        """Return a Hessian-vector product."""
        return self._function.product(_tensor(x), _tensor(w)).numpy()


def _tensor(x: Vector) -> Tensor:
    return torch.from_numpy(np.array(x, dtype=np.float64))


def lbfgsb(function: FlatFunction) -> str:
    """Run SciPy's L-BFGS-B within the bounds; every trial takes value and gradient."""
    flat, space = _Numpy(function), function.problem.space
    low = -np.inf if space.lower is None else space.lower.numpy()
    high = np.inf if space.upper is None else space.upper.numpy()
    result = scipy.optimize.minimize(
        flat.both,
        flat.start,
        jac=True,
        method="L-BFGS-B",
        bounds=scipy.optimize.Bounds(low, high),
        options={
            "maxcor": HISTORY,
            "ftol": 0.0,
            "gtol": 0.0,
            "maxiter": ENDLESS,
            "maxfun": ENDLESS,
        },
    )
    return str(result.message)


def scipy_newton_cg(function: FlatFunction) -> str:
    """Run SciPy's Newton-CG; its Wolfe search takes value and gradient at each trial."""
    flat = _Numpy(function)
    result = scipy.optimize.minimize(
        flat.both,
        flat.start,
        jac=True,
        hessp=flat.product,
        method="Newton-CG",
        options={"xtol": 0.0, "maxiter": ENDLESS},
    )
    return str(result.message)


def scipy_trust_region(method: str) -> Callable[[FlatFunction], str]:
    """Return a run of SciPy's ``trust-ncg`` or ``trust-krylov``; trials take values."""

    def run(function: FlatFunction) -> str:
        flat = _Numpy(function)
        result = scipy.optimize.minimize(
            flat.value,
            flat.start,
            jac=flat.gradient,
            hessp=flat.product,
            method=method,
            options={
                "gtol": 0.0,
                "maxiter": ENDLESS,
                **_radii(function.start),
            },
        )
        return str(result.message)

    return run


def _radii(start: Tensor) -> dict[str, float]:
    """Return a first radius of a tenth of a unit in every cell, and ten units at most."""
    size = math.sqrt(start.numel())
    return {"initial_trust_radius": 0.1 * size, "max_trust_radius": 10.0 * size}


# -- torch ------------------------------------------------------------------------------


def torch_lbfgs(function: FlatFunction) -> str:
    """Run torch's LBFGS with its strong Wolfe search; it has no bounds."""
    z = function.start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [z],
        max_iter=ENDLESS,
        max_eval=ENDLESS,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = function.torch(z)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return "the line search found no step"


def adam(rate: float) -> Callable[[FlatFunction], str]:
    """Return a run of Adam, each step projected onto the bounds.

    Args:
        rate: In units of the scale.
    """

    def run(function: FlatFunction) -> str:
        z = function.start.clone().requires_grad_()
        optimiser = torch.optim.Adam([z], lr=rate)
        for _ in range(ENDLESS):
            optimiser.zero_grad()
            function.torch(z).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            with torch.no_grad():
                z.copy_(function.problem.space.project(z))
        return "out of iterations"

    return run


def pytorch_minimize(method: str) -> Callable[[FlatFunction], str]:
    """Return a run of pytorch-minimize, whose package is ``torchmin``.

    Args:
        method: ``"newton-cg"`` or ``"trust-ncg"``.
    """

    def run(function: FlatFunction) -> str:
        import torchmin

        options: dict[str, Any] = {"max_iter": ENDLESS}
        if method == "trust-ncg":
            options.update(gtol=0.0, **_radii(function.start))
        else:
            options.update(xtol=0.0)
        result = torchmin.minimize(
            function.torch, function.start.clone(), method=method, options=options
        )
        return str(result.message)

    return run


# -- the published script, and what cannot run ------------------------------------------


def published_dense(function: FlatFunction, trace: Trace, steps: int = 3) -> str:
    """Take the documentation's dense Newton steps, with the documentation's calls.

    They differentiate the plain loss, which no tally sees: a step is charged one product
    for each cell, at the price of hvpopt's for the one shot, and a gradient.
    """
    misfit = function.problem.misfit
    start = function.problem.start
    assert isinstance(start, Tensor)
    v, n = start.clone(), start.numel()
    for _ in range(steps):
        hess = torch.autograd.functional.hessian(misfit, v).detach().reshape(n, n)
        trace.meter.tally(products=n, propagations=4 * n)
        _, gradient = misfit.value_and_gradient(v)
        assert isinstance(gradient, Tensor)
        eig0 = eigsh(hess.numpy(), k=1, which="SA")[0].item()
        tau = max(-1.5 * eig0, 0)
        factor = torch.linalg.cholesky(hess + tau * torch.eye(n, dtype=v.dtype))
        v = v + torch.cholesky_solve(-gradient.reshape(-1, 1), factor).reshape(v.shape)
    misfit.value(v)
    return f"{steps} steps, as published"


def pytorch_minimize_exact(function: FlatFunction) -> str:
    """Try pytorch-minimize's ``newton-exact`` on the plain loss; it maps over columns."""
    import torchmin

    misfit, start = function.problem.misfit, function.problem.start
    assert isinstance(start, Tensor)
    result = torchmin.minimize(
        lambda flat: misfit(flat.reshape(start.shape)),
        start.reshape(-1),
        method="newton-exact",
        options={"max_iter": 1},
    )
    return str(result.message)


def torch_func(function: FlatFunction) -> str:
    """Try ``torch.func.grad``, which libraries built on functional transforms call."""
    torch.func.grad(function.problem.misfit)(function.problem.start)
    return "torch.func.grad differentiates the misfit"


def torch_func_hessian(function: FlatFunction) -> str:
    """Try ``torch.func.hessian``: forward over reverse, vectorised."""
    torch.func.hessian(function.problem.misfit)(function.problem.start)
    return "torch.func.hessian differentiates the misfit"
