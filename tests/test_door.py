"""What is given from outside is checked by type and range: wrong calls, one a row."""

import math
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy.optimize import rosen, rosen_der, rosen_hess_prod

import hvpopt
from hvpopt import analysis, checks, distributed, plotting
from hvpopt.interop.pylops import to_pylops
from hvpopt.krylov.diagonal import estimate_diagonal, smooth_diagonal

F64 = torch.float64
X = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
NAN, INF = math.nan, math.inf
META = torch.ones(3, dtype=F64, device="meta")
ARRAY = np.ones(3)
T = TypeError
V = ValueError


def loss(x):
    return ((x - 0.5) ** 4).sum() + (x**2).sum()


def operator():
    return hvpopt.MatrixOperator(torch.diag(X))


def with_space():
    return hvpopt.HessianOperator(loss, X)


def basis():
    made = hvpopt.LanczosBasis(operator(), rhs=-X)
    made.extend(2)
    return made


def objective():
    return hvpopt.TorchObjective(loss, name="o")


def minimize(**options):
    options = {"loss": loss, "model": X, "max_iter": 1} | options
    return hvpopt.minimize(options.pop("loss"), options.pop("model"), **options)


def space(**options):
    return hvpopt.ModelSpace(options.pop("model", X), **options)


def cg(**options):
    options = {"operator": operator(), "rhs": X} | options
    return hvpopt.cg(**options)


def eigenvalue(**options):
    return hvpopt.smallest_eigenvalue(**{"operator": operator()} | options)


def returned(result):
    return hvpopt.FunctionOperator(lambda _: result, 3) @ X


class Returns:
    """A preconditioner that returns something else."""

    def __init__(self, result):
        self.result = result

    def apply(self, _):
        return self.result


def newton(**options):
    p = X.clone().requires_grad_()
    closure = options.pop("closure", lambda: loss(p))
    return hvpopt.optim.Newton(options.pop("params", [p]), **options).step(closure)


def scipy(fun=rosen, x0=(1.0, 2.0), jac=rosen_der, hessp=rosen_hess_prod, **options):
    call = {k: options.pop(k) for k in ("bounds", "callback", "tol") if k in options}
    run = hvpopt.scipy_method(**{"maxiter": 1} | options)
    return run(fun, x0, jac=jac, hessp=hessp, **call)


def draw(**options):
    axes = options.pop("axes", None) or Figure().add_subplot()
    options = {"image": torch.ones(2, 3), "title": "a"} | options
    return plotting.draw_image(axes, **options)


def plot_hessian(matrix=None, shape=(1, 3), cell=(0, 1)):
    matrix = torch.eye(3) if matrix is None else matrix
    return plotting.plot_hessian(matrix, shape, cell)


def session(**options):
    with distributed.session(**options):
        pass


TR, LS = hvpopt.TrustRegionNewton, hvpopt.LineSearchNewton
SN, QN = hvpopt.ShiftedNewton, hvpopt.QuasiNewton

#: Rows of call, error and words of the message.
SEEDS = [
    (lambda: TR(seed=1.5), V, "seed is 1.5; it must be a whole number"),
    (lambda: TR(seed="0"), T, "seed is '0'; pass a number"),
    (lambda: TR(seed=True), T, "seed is True; pass a number"),
    (lambda: TR(seed=None), T, "seed is None"),
    (lambda: TR(seed=2**64), V, r"from -2\*\*63 to 2\*\*64 - 1"),
    (lambda: TR(seed=-(2**63) - 1), V, r"from -2\*\*63"),
    (lambda: TR(seed=NAN), V, "seed is nan; it must be a whole number"),
    (lambda: TR(seed=INF), V, "seed is inf; it must be a whole number"),
    (lambda: TR(seed=torch.Generator()), T, "seed is a Generator"),
    (lambda: LS(seed=0.5), V, "seed is 0.5"),
    (lambda: SN(seed=[0]), T, "seed is a list"),
    (lambda: QN(seed=2**64 - 1), V, r"seed is 18446744073709551615; .* 2\*\*64 - 4294"),
    (lambda: hvpopt.LanczosBasis(operator(), seed="a"), T, "seed is 'a'"),
    (lambda: eigenvalue(seed=0.5), V, "seed is 0.5"),
    (lambda: estimate_diagonal(operator(), seed=2**64), V, "seed is 1844"),
    (lambda: analysis.check_symmetry(operator(), seed="1"), T, "seed is '1'"),
    (lambda: analysis.check_gradient(loss, X, seed=X), T, r"seed is a Tensor of shape"),
    (lambda: analysis.check_hessian(loss, X, seed=1j), T, "seed is 1j"),
    (lambda: objective().sketch(X, "exact", seed=True), T, "seed is True"),
]

NUMBERS = [
    (lambda: minimize(max_iter=2.5), V, "max_iter is 2.5; it must be a whole number"),
    (lambda: minimize(max_iter="10"), T, "max_iter is '10'; pass a number"),
    (lambda: minimize(max_iter=True), T, "max_iter is True; pass a number"),
    (lambda: minimize(max_iter=NAN), V, "max_iter is nan; it must be zero or positive"),
    (lambda: minimize(max_iter=None), T, "max_iter is None"),
    (lambda: minimize(max_products="all"), T, "max_products is 'all'"),
    (lambda: minimize(max_products=[10]), T, "max_products is a list"),
    (lambda: minimize(max_products=0.5), V, "max_products is 0.5; it must be a whole"),
    (lambda: minimize(max_seconds="1 h"), T, "max_seconds is '1 h'"),
    (lambda: minimize(max_seconds=-1), V, "max_seconds is -1; it must be zero or pos"),
    (lambda: minimize(gtol="1e-6"), T, "gtol is '1e-6'; pass a number"),
    (lambda: minimize(gtol=torch.ones(3)), T, r"gtol is a Tensor of shape \(3,\)"),
    (lambda: minimize(gtol=1e-6j), T, "gtol is 1e-06j"),
    (lambda: minimize(gtol=np.float32(NAN)), V, "gtol is nan"),
    (lambda: TR(tol="0.1"), T, "tol is '0.1'; pass a number in"),
    (lambda: TR(tol=2.0), V, "tol is 2.0; it is relative and must lie in"),
    (lambda: TR(radius="1"), T, "radius is '1'"),
    (lambda: TR(radius=NAN), V, "radius is nan; it must be positive and finite"),
    (lambda: TR(radius=10**400), V, "radius is inf; it must be positive and finite"),
    (lambda: TR(probe=None), T, "probe is None"),
    (lambda: TR(probe=1.0), V, r"probe is 1.0; it is relative to the tolerance"),
    (lambda: TR(max_products=INF), V, "max_products is inf; it must be a whole number"),
    (lambda: TR(max_trials=1.5), V, "max_trials is 1.5; it must be a whole number"),
    (lambda: TR(eigenvalue_floor="0"), T, "eigenvalue_floor is '0'"),
    (lambda: TR(confidence=True), T, "confidence is True"),
    (lambda: LS(tol=True), T, "tol is True"),
    (lambda: LS(refresh=0), V, "refresh is 0; it must be at least 1"),
    (lambda: LS(refresh="never"), T, "refresh is 'never'"),
    (lambda: LS(memory=-1), V, "memory is -1; it must be zero or positive"),
    (lambda: SN(factor="2"), T, "factor is '2'"),
    (lambda: SN(tol=NAN), V, r"tol is nan; it is relative and must lie in \(0, 1\)"),
    (
        lambda: SN(memory_limit="2 cows"),
        V,
        "memory_limit is '2 cows'; give a size such as",
    ),
    (lambda: SN(solver=3), T, "solver is 3; it must be one of"),
    (lambda: QN(memory=2.5), V, "memory is 2.5; it must be a whole number"),
    (lambda: QN(memory=0), V, "memory is 0; it must be at least 1"),
    (lambda: QN(refresh=True), T, "refresh is True"),
    (lambda: hvpopt.Backtracking(decrease="1e-4"), T, "decrease is '1e-4'"),
    (lambda: hvpopt.Backtracking(shrink=0.5), T, "shrink is 0.5; pass a pair of num"),
    (lambda: hvpopt.Backtracking(shrink=(0.1, "0.5")), T, "an entry of shrink is '0.5'"),
    (lambda: hvpopt.Backtracking(shrink=[0.1]), T, "shrink is a list; pass a pair"),
    (lambda: hvpopt.Backtracking(max_trials=2.5), V, "max_trials is 2.5"),
    (lambda: hvpopt.Wolfe(slope="0.9"), T, "slope is '0.9'"),
    (lambda: hvpopt.Wolfe(slope=1e-5), V, "slope is 1e-05; it must lie in .decrease, 1"),
    (lambda: hvpopt.Wolfe(growth=NAN), V, "growth is nan; it must be above 1 and finite"),
    (lambda: hvpopt.Wolfe(rounding=None), T, "rounding is None"),
    (lambda: hvpopt.Constant("0.1"), T, "tol is '0.1'"),
    (lambda: hvpopt.EisenstatWalker2(gamma=None), T, "gamma is None"),
    (lambda: hvpopt.EisenstatWalker2(alpha=NAN), V, r"alpha is nan; .* in \(1, 2\]"),
    (lambda: hvpopt.SquareRoot(cap=1j), T, "cap is 1j"),
    (lambda: hvpopt.HessianDiagonal(n_probes=1.5), V, "n_probes is 1.5"),
    (lambda: hvpopt.HessianDiagonal(smooth="3"), T, "smooth is '3'"),
    (lambda: hvpopt.HessianDiagonal(damping=NAN), V, "damping is nan; it must be pos"),
    (lambda: hvpopt.GradientScale("x"), T, "first is 'x'"),
    (lambda: hvpopt.GradientScale(None), T, "first is None"),
    (lambda: hvpopt.GradientScale(True), T, "first is True"),
    (lambda: hvpopt.GradientScale(0.0), V, "first is 0"),
    (lambda: hvpopt.DiagonalPreconditioner(X, damping="1"), T, "damping is '1'"),
    (lambda: hvpopt.PairsPreconditioner(memory=1.5), V, "memory is 1.5"),
    (lambda: hvpopt.PairsPreconditioner(scale=None), T, "scale is None"),
    (lambda: hvpopt.PairsPreconditioner(scale="big"), V, "positive or 'auto'"),
    (lambda: cg(tol="1e-3"), T, "tol is '1e-3'"),
    (lambda: cg(tol=NAN), V, "tol is nan; it is relative and must lie in"),
    (lambda: cg(max_products=2.5), V, "max_products is 2.5; it must be a whole number"),
    (lambda: cg(max_products="10"), T, "max_products is '10'"),
    (lambda: cg(deadline="soon"), T, "deadline is 'soon'"),
    (lambda: cg(deadline=NAN), V, "deadline is nan; it must not be NaN"),
    (lambda: eigenvalue(tol=True), T, "tol is True"),
    (lambda: eigenvalue(floor="0"), T, "floor is '0'"),
    (lambda: eigenvalue(confidence=NAN), V, "confidence is nan"),
    (lambda: eigenvalue(max_products=2.5), V, "max_products is 2.5"),
    (lambda: hvpopt.LanczosBasis(operator(), rhs=-X, probe="0"), T, "probe is '0'"),
    (lambda: basis().extend(1.5), V, "k is 1.5; it must be a whole number"),
    (lambda: basis().extend(-1), V, "k is -1; it must be zero or positive"),
    (lambda: basis().ritz_vector(2), V, r"index is 2; it must lie in \[-2, 1\]"),
    (lambda: basis().ritz_residual("0"), T, "index is '0'"),
    (lambda: basis().solve(NAN), V, "shift is nan"),
    (lambda: basis().solve("1"), T, "shift is '1'"),
    (lambda: basis().solve(radius=-1), V, "radius is -1; it must be positive and finite"),
    (lambda: operator().to_dense(memory_limit=None), T, "memory_limit is None"),
    (lambda: hvpopt.DenseHessian(operator(), deadline="1"), T, "deadline is '1'"),
    (lambda: hvpopt.DenseHessian(operator()).solve(X, NAN), V, "shift is nan"),
    (lambda: hvpopt.FunctionOperator(torch.clone, 2.5), V, "size is 2.5"),
    (lambda: hvpopt.FunctionOperator(torch.clone, 0), V, "size is 0; it must be at lea"),
    (lambda: hvpopt.FunctionOperator(torch.clone, "3"), T, "size is '3'"),
    (lambda: hvpopt.FiniteDifferenceHessian(loss, X, size=0), V, "size is 0; it must be"),
    (lambda: "2" * operator(), T, "the weight is '2'"),
    (lambda: NAN * operator(), V, "the weight is nan"),
    (lambda: "2" * objective(), T, "the weight of 'o' is '2'"),
    (lambda: ARRAY * objective(), T, "the weight of 'o' is a ndarray of shape"),
    (lambda: ARRAY * operator(), T, "the weight is a ndarray"),
    (lambda: hvpopt.SumObjective([(INF, objective())]), V, "the weight of 'o' is inf"),
    (
        lambda: analysis.check_symmetry(operator(), n_pairs=0),
        V,
        "n_pairs is 0; it must be",
    ),
    (lambda: analysis.check_symmetry(operator(), tol=NAN), V, "tol is nan"),
    (lambda: analysis.check_hessian(loss, X, halvings=0), V, "halvings is 0; it must"),
    (lambda: analysis.check_hessian(loss, X, size="1"), T, "size is '1'"),
    (
        lambda: analysis.check_gradient(loss, X, steps=3),
        T,
        r"unknown options \['steps'\]",
    ),
    (lambda: estimate_diagonal(operator(), n_probes=1.5), V, "n_probes is 1.5"),
    (lambda: estimate_diagonal(with_space(), smooth=NAN), V, "smooth is nan"),
    (lambda: smooth_diagonal(X, space(), -1), V, "width is -1; it must lie"),
    (lambda: newton(gtol="0"), T, "gtol is '0'"),
    (lambda: newton(gtol=NAN), V, "gtol is nan; it is relative and must lie in"),
    (lambda: hvpopt.scipy_method(maxiter="3"), T, "maxiter is '3'"),
    (lambda: hvpopt.scipy_method(gtol=2.0), V, "gtol is 2.0"),
    (lambda: session(timeout="60"), T, "timeout is '60'"),
    (lambda: session(timeout=0), V, "timeout is 0; it must be positive"),
    (lambda: draw(spacing=NAN), V, "spacing is nan; it must be positive and finite"),
    (lambda: draw(limits=1.0), T, "limits is 1.0; pass a pair of numbers"),
    (lambda: plot_hessian(cell=(0, 7)), V, r"cell is \(0, 7\); the model has"),
    (lambda: plot_hessian(cell=(0, 0.5)), V, "an entry of cell is 0.5"),
    (lambda: plot_hessian(shape=3), T, r"shape is 3; pass \(depth, distance\)"),
    (lambda: plot_hessian(shape=(2, 3)), V, r"the matrix has shape \(3, 3\), expected"),
]

OBJECTS = [
    (lambda: minimize(method=QN), T, "method is the class QuasiNewton; pass an instance"),
    (lambda: minimize(method=hvpopt.Wolfe()), T, "method is a Wolfe; pass an instance"),
    (lambda: minimize(loss=QN), T, "the loss is the class QuasiNewton"),
    (lambda: minimize(loss=torch.nn.MSELoss), T, "the loss is the class MSELoss"),
    (lambda: minimize(loss=None), T, "the loss is None, which cannot be called"),
    (lambda: minimize(callback="print"), T, "callback is a str, which cannot be called"),
    (lambda: minimize(callback=[print]), T, "callback is a list, which cannot be called"),
    (lambda: minimize(callback=QN), T, "callback is the class QuasiNewton"),
    (lambda: minimize(progress="no"), T, "progress is 'no'; pass True or False"),
    (lambda: minimize(progress=None), T, "progress is None; pass True or False"),
    (lambda: minimize(checkpoint=3), T, "checkpoint is 3; pass a string or a path"),
    (lambda: minimize(history_file=3), T, "history_file is 3; pass a string or"),
    (
        lambda: TR(hessian="newton"),
        V,
        "hessian is 'newton'; it must be 'exact' or 'gauss-newton'",
    ),
    (
        lambda: TR(hessian=None),
        T,
        "hessian is None; it must be 'exact' or 'gauss-newton'",
    ),
    (lambda: TR(tol=hvpopt.SquareRoot), T, "tol is the class SquareRoot; pass a num"),
    (lambda: LS(globalisation=hvpopt.Backtracking), T, "is the class Backtracking; pass"),
    (lambda: LS(globalisation="wolfe"), T, "globalisation is a str; pass Backtracking"),
    (lambda: LS(preconditioner=X), T, "preconditioner is Tensor; pass an object with"),
    (
        lambda: SN(solver="cg", preconditioner=X),
        T,
        "preconditioner is a Tensor; pass an obj",
    ),
    (
        lambda: SN(solver="cg", preconditioner=hvpopt.PairsPreconditioner),
        T,
        "preconditioner is the class PairsPreconditioner; pass an object",
    ),
    (lambda: SN(globalisation=hvpopt.Wolfe), T, "is the class Wolfe; pass a Backtracki"),
    (lambda: SN(globalisation=0), T, "globalisation is a int; pass a Backtracking"),
    (lambda: QN(globalisation=hvpopt.Wolfe()), T, "is a Wolfe; pass a Backtracking"),
    (lambda: QN(initial=hvpopt.GradientScale), T, "initial is the class GradientS"),
    (lambda: QN(initial=0), T, "initial is a int; pass an InitialCurvature"),
    (lambda: hvpopt.Wolfe(backtracking=hvpopt.Backtracking), T, "is the class Backtr"),
    (lambda: hvpopt.TorchObjective(QN), T, "the loss is the class QuasiNewton"),
    (lambda: hvpopt.TorchObjective(loss, name=3), T, "name is 3; pass a text"),
    (lambda: hvpopt.TorchObjective(loss, convex="yes"), T, "convex is 'yes'; pass True"),
    (lambda: objective().hessian(X, ARRAY), T, "kind is a ndarray"),
    (lambda: objective().hessian(X, space=X), T, "space is a Tensor; pass hvpopt.ModelS"),
    (lambda: hvpopt.SumObjective(3), T, "terms is a int; pass pairs"),
    (lambda: hvpopt.SumObjective([objective()]), T, "a term of the sum is a TorchObject"),
    (lambda: hvpopt.SumObjective([(1.0, loss)]), T, "is a function; pass an Objective"),
    (lambda: hvpopt.HessianOperator(3, X), T, "the loss is a int, which cannot be call"),
    (lambda: hvpopt.HessianOperator(loss, X, counts=0), T, "counts is a int; pass"),
    (lambda: hvpopt.HessianOperator(loss, X, space=hvpopt.ModelSpace), T, "space is the"),
    (lambda: hvpopt.PairsPreconditioner(3), T, r"pairs is a int; pass pairs \(s, y\)"),
    (lambda: hvpopt.PairsPreconditioner([X]), T, r"a pair is a Tensor; pass \(s, y\)"),
    (lambda: hvpopt.PairsPreconditioner(base=hvpopt.QuasiNewton), T, "base is the class"),
    (lambda: cg(preconditioner=X), T, "preconditioner is a Tensor; pass an object"),
    (lambda: cg(preconditioner=lambda v: v), T, "preconditioner is a function; pass an"),
    (lambda: cg(preconditioner=Returns(None)), T, "what Returns.apply returned is None"),
    (
        lambda: cg(preconditioner=Returns(X[:2])),
        V,
        r"returned has shape \(2,\), expected",
    ),
    (lambda: hvpopt.FunctionOperator(None, 3), T, "the product is None, which can"),
    (lambda: hvpopt.FunctionOperator(X, 3), T, "the product is a Tensor, which cannot"),
    (
        lambda: hvpopt.FunctionOperator(torch.clone, 3, dtype=float),
        T,
        "dtype is the class",
    ),
    (lambda: hvpopt.FunctionOperator(torch.clone, 3, dtype=torch.int64), T, "dtype is"),
    (
        lambda: hvpopt.FunctionOperator(torch.clone, 3, device="gpu"),
        V,
        "is 'gpu', not to",
    ),
    (lambda: hvpopt.FunctionOperator(torch.clone, 3, device=0.5), T, "device is 0.5"),
    (lambda: newton(params=3), T, "params is a int; pass a list of tensors"),
    (lambda: newton(params=X), T, "params is a Tensor; pass a list of tensors"),
    (lambda: newton(method=TR), T, "method is the class TrustRegionNewton"),
    (lambda: newton(closure=3), T, "the closure is a int, which cannot be called; step"),
    (
        lambda: hvpopt.optim.Newton([X.clone().requires_grad_()]).load_state_dict("x"),
        T,
        r"the state is a str; pass a state_dict\(\)",
    ),
    (lambda: hvpopt.scipy_method(TR), T, "method is the class TrustRegionNewton"),
    (lambda: hvpopt.scipy_method("bfgs"), T, "method is a str"),
    (lambda: scipy(fun=None), T, "fun is None, which cannot be called"),
    (
        lambda: scipy(fun=lambda _: None),
        T,
        "what fun returned is None; pass real numbers",
    ),
    (lambda: scipy(jac=lambda _: "1"), T, "what jac returned is '1'; pass real numbers"),
    (lambda: scipy(hessp=3), T, "hessp is a int, which cannot be called"),
    (lambda: scipy(callback=3), T, "callback is a int, which cannot be called"),
    (lambda: scipy(bounds=3), T, r"bounds is 3; pass pairs \(low, high\)"),
    (lambda: scipy(x0=["a", "b"]), T, "x0 is a list; pass real numbers"),
    (lambda: hvpopt.as_scipy(3, X), T, "the loss is a int"),
    (lambda: hvpopt.as_scipy(loss, X, hessian=3), T, "hessian is 3"),
    (lambda: hvpopt.as_scipy(loss, X).fun("x"), T, "the vector is 'x'; pass real numb"),
    (lambda: hvpopt.as_scipy(loss, X).jac(ARRAY + 1j), T, "pass real numbers"),
    (lambda: distributed.shard(operator()), T, r"shard\(\) takes a WaveformMisfit"),
    (lambda: distributed.any_rank("no"), T, "flag is 'no'; pass True or False"),
    (lambda: session(backend=3), T, "backend is a int; pass 'gloo' or 'nccl'"),
    (lambda: draw(axes=3), T, "axes is a int; pass the axes of a figure"),
    (lambda: draw(title=3), T, "title is 3; pass a text"),
    (lambda: draw(signed="no"), T, "signed is 'no'"),
    (lambda: plotting.plot_images([X]), T, "images is a list; pass images by their tit"),
    (lambda: plotting.plot_convergence([1]), T, "histories is a list; pass MinimizeRes"),
    (
        lambda: plotting.plot_convergence({"a": [1.0]}),
        T,
        "a history is a list; pass Mini",
    ),
    (lambda: plotting.plot_convergence({}, against=1), T, "against is 1; it must be one"),
]

#: Functions that take an operator, by name.
TAKERS = {
    "cg": lambda given: hvpopt.cg(given, X),
    "LanczosBasis": hvpopt.LanczosBasis,
    "smallest_eigenvalue": hvpopt.smallest_eigenvalue,
    "DenseHessian": hvpopt.DenseHessian,
    "estimate_diagonal": estimate_diagonal,
    "check_symmetry": analysis.check_symmetry,
    "to_pylops": to_pylops,
}

TENSORS = [
    (lambda: cg(rhs=ARRAY), T, "the right-hand side is a ndarray.*torch.as_tensor"),
    (lambda: cg(rhs=[1.0, 2.0, 3.0]), T, "right-hand side is a list; wrap it with torch"),
    (lambda: cg(rhs=X.long()), T, "right-hand side has dtype torch.int64; it must be"),
    (lambda: cg(rhs=X + 1j), T, "right-hand side has dtype torch.complex128"),
    (lambda: cg(rhs=META), V, "on the meta device and holds no numbers"),
    (lambda: eigenvalue(start=ARRAY), T, "the start is a ndarray"),
    (lambda: eigenvalue(start=X.long()), T, "the start has dtype torch.int64"),
    (lambda: hvpopt.LanczosBasis(operator(), rhs=[1.0]), T, "rhs is a list"),
    (lambda: operator().matvec(ARRAY), T, "the right-hand side is a ndarray; pass a ten"),
    (lambda: operator().matmat([X]), T, "the right-hand side is a list; pass a tensor"),
    (lambda: hvpopt.MatrixOperator(np.eye(3)), T, "the matrix is a ndarray.*as_tensor"),
    (lambda: hvpopt.MatrixOperator([[1.0]]), T, "the matrix is a list; wrap it with"),
    (lambda: hvpopt.MatrixOperator(torch.eye(3).long()), T, "matrix has dtype torch.int"),
    (lambda: hvpopt.MatrixOperator(torch.eye(3) + 0j), T, "matrix has dtype torch.compl"),
    (
        lambda: hvpopt.MatrixOperator(torch.ones(0, 0)),
        V,
        r"the matrix has shape \(0, 0\)",
    ),
    (lambda: hvpopt.DenseHessian(operator()).solve(ARRAY), T, "right-hand side is a nd"),
    (lambda: hvpopt.DenseHessian(operator()).solve(X[:2]), V, r"side has shape \(2,\)"),
    (lambda: hvpopt.DiagonalPreconditioner([1.0]), T, "the diagonal is a list; wrap it"),
    (lambda: hvpopt.DiagonalPreconditioner(X.long()), T, "diagonal has dtype torch.int"),
    (lambda: hvpopt.DiagonalPreconditioner(X[:0]), V, r"got shape \(0,\)"),
    (lambda: hvpopt.DiagonalPreconditioner(X).apply(ARRAY), T, "the vector is a ndarray"),
    (lambda: hvpopt.PairsPreconditioner([(X, ARRAY)]), T, "y is a ndarray"),
    (lambda: hvpopt.PairsPreconditioner((([1.0], X),)), T, "s is a list"),
    (lambda: hvpopt.PairsPreconditioner().apply(3.0), T, "the vector is 3.0; wrap it"),
    (lambda: smooth_diagonal(ARRAY, space(), 1.0), T, "the diagonal is a ndarr"),
    (lambda: smooth_diagonal(X[:2], space(), 1.0), V, r"diagonal has shape \(2"),
    (lambda: smooth_diagonal(X, X, 1.0), T, "space is a Tensor; pass hvpopt.Mo"),
    (lambda: analysis.check_hessian(loss, X, direction=ARRAY), T, "got ndarray"),
    (lambda: analysis.check_hessian(loss, X, direction=X * NAN), V, "direction has NaN"),
    (lambda: draw(image=[[1.0]]), T, "the image is a list; pass a 2-D tensor"),
    (lambda: draw(image=X), V, r"the image is a Tensor of shape \(3,\).*2-D tensor"),
    (lambda: returned(None), T, "the product of FunctionOperator is None"),
    (lambda: returned(ARRAY), T, "the product of FunctionOperator is a ndarray"),
    (lambda: returned(1.0), T, "the product of FunctionOperator is 1.0"),
    (
        lambda: returned(X[:2]),
        V,
        r"of FunctionOperator has shape \(2,\), expected \(3,\)",
    ),
    (lambda: returned(X[None]), V, r"FunctionOperator has shape \(1, 3\), expected \(3,"),
    (lambda: returned(X.sum()), V, r"FunctionOperator has shape \(\), expected \(3,\)"),
    (lambda: returned(X + 1j), T, "FunctionOperator has dtype torch.complex128"),
    (lambda: returned(X.long()), T, "FunctionOperator has dtype torch.int64"),
    (lambda: returned(META), V, "on the meta device and holds no numbers"),
]

MODELS = [
    (lambda: space(model=ARRAY), T, "got ndarray; wrap it with torch.as_tensor"),
    (lambda: space(model=META), V, "the model is on the meta device"),
    (lambda: space(model={1: X}), T, "the parameter name 1 is no text"),
    (lambda: space(model=X.to_sparse()), T, "'model' is sparse; pass tensor.to_dense"),
    (lambda: space(dtype="float64"), T, "dtype is 'float64'; pass torch.float64"),
    (lambda: space(dtype=torch.int64), T, "dtype is torch.int64; pass torch.float64"),
    (lambda: space(dtype=torch.complex128), T, "dtype is torch.complex128"),
    (lambda: space(lower="0"), T, "lower of parameter 'model' is '0'; pass a number or"),
    (lambda: space(lower=1j), T, "lower of parameter 'model' has dtype torch.complex"),
    (lambda: space(lower=X + 0j), T, "has dtype torch.complex128; it must be real"),
    (lambda: space(upper=object()), T, "upper of parameter 'model' is a object; pass"),
    (lambda: space(upper={9}), T, "upper of parameter 'model' is a set; pass a number"),
    (lambda: space(lower=True), T, "lower of parameter 'model' has dtype torch.bool"),
    (lambda: space(lower=[0.0, 0.0, 0.0]), V, "a list has one for each parameter, a ten"),
    (lambda: space(scale="2"), V, "scale is '2'; pass 'auto', a number"),
    (lambda: space(mask="all"), T, "mask of parameter 'model' is 'all'; pass True, Fals"),
    (lambda: space(mask=1), T, "mask of parameter 'model' has dtype"),
    (lambda: minimize(lower="0"), T, "lower of parameter 'model' is '0'"),
    (lambda: newton(upper=1j), T, "upper of parameter '0' has dtype torch.complex"),
    (lambda: hvpopt.as_scipy(loss, X, scale="1"), V, "scale is '1'; pass 'auto'"),
    (lambda: space().to_vector(X.long()), T, "the model has dtype torch.int64"),
    (lambda: space().to_vector(X + 1j), T, "the model has dtype torch.complex128"),
    (lambda: space().to_model([1.0, 2.0, 3.0]), T, "the flat vector is a list; wrap it"),
    (lambda: space().to_model(ARRAY), T, "the flat vector is a ndarray"),
    (lambda: space().project(3.0), T, "the flat vector is 3.0"),
    (lambda: space().inside("x"), T, "the flat vector is 'x'"),
    (lambda: space().active_mask(X, ARRAY), T, "the flat vector is a ndarray"),
    (lambda: space().step_to_model(X.long()), T, "the flat vector has dtype torch.int64"),
    (lambda: objective().value(X.long()), T, "parameter 'model' has dtype torch.int64"),
    (lambda: objective().value_and_gradient(X > 0), T, "'model' has dtype torch.bool"),
    (lambda: objective().hessian(X.long()), T, "dtype torch.int64"),
    (lambda: hvpopt.HessianOperator(loss, X.long(), space=space()), T, "torch.int64"),
]

TABLES = {
    "seed": SEEDS,
    "number": NUMBERS,
    "object": OBJECTS,
    "tensor": TENSORS,
    "model": MODELS,
}
ROWS = {
    f"{table} {i}: {words}": row
    for table, rows in TABLES.items()
    for i, row in enumerate(rows)
    for words in [row[2]]
}


@pytest.mark.parametrize(("call", "error", "words"), ROWS.values(), ids=ROWS)
def test_wrong_call_is_refused_in_words(call, error, words):
    with pytest.raises(error, match=f"(?s){words}") as caught:
        call()
    last = caught.traceback[-1]
    assert "hvpopt" in str(last.path), "an internal error, not a refusal"
    assert "raise" in str(last.statement)


@pytest.mark.parametrize("take", TAKERS.values(), ids=TAKERS)
@pytest.mark.parametrize(
    ("given", "words"),
    [
        (torch.eye(3, dtype=F64), r"is a Tensor; pass hvpopt.MatrixOperator\(t\)"),
        (np.eye(3), r"is a ndarray; pass hvpopt.MatrixOperator\(torch.from_numpy\(a\)\)"),
        (torch.clone, r"pass hvpopt.FunctionOperator\(f, n\)"),
        (hvpopt.MatrixOperator, "is the class MatrixOperator; pass a SymmetricOperator"),
        (None, "is None; pass a SymmetricOperator"),
        ([[1.0]], "is a list; pass a SymmetricOperator"),
    ],
    ids=["tensor", "array", "function", "class", "nothing", "list"],
)
def test_what_is_no_operator_is_told_how_to_become_one(take, given, words):
    with pytest.raises(TypeError, match=f"the operator {words}|the operator.*{words}"):
        take(given)


@pytest.mark.parametrize("other", ["", ".previous"])
@pytest.mark.parametrize("way", ["same", "relative", "symlink"])
def test_history_is_not_written_over_the_checkpoint(tmp_path, monkeypatch, other, way):
    path = tmp_path / "run.safetensors"
    history = tmp_path / ("run.safetensors" + other)
    if way == "relative":
        monkeypatch.chdir(tmp_path)
        history = os.path.join(".", history.name)
    elif way == "symlink":
        link = tmp_path / "history.jsonl"
        link.symlink_to(history)
        history = link
    with pytest.raises(ValueError, match=r"history_file is .*a file of the checkpoint"):
        minimize(checkpoint=path, history_file=history)
    assert not path.exists()
    minimize(checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"history_file is .*a file of the checkpoint"):
        minimize(checkpoint=path, history_file=history)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"callback": 3}, "callback is a int, which cannot be called"),
        ({"progress": "no"}, "progress is 'no'"),
        ({"max_iter": 2.5}, "max_iter is 2.5"),
        ({"gtol": "0"}, "gtol is '0'"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0; it is steps, 1 or more"),
        ({"checkpoint_every": "1"}, "checkpoint_every is '1'"),
        ({"checkpoint_seconds": NAN}, "checkpoint_seconds is nan; it must be zero or"),
        ({"method": TR}, "method is the class TrustRegionNewton"),
        ({"loss": 3}, "the loss is a int"),
    ],
)
def test_saved_run_refuses_in_words(tmp_path, option, words):
    path = tmp_path / "run.safetensors"
    minimize(checkpoint=path)
    with pytest.raises((TypeError, ValueError), match=words):
        hvpopt.minimize(option.pop("loss", loss), X, checkpoint=path, **option)


NUMBERS_TAKEN = [3, 3.0, np.int64(3), np.float32(3), torch.tensor(3), np.array(3.0)]


@pytest.mark.parametrize("three", NUMBERS_TAKEN, ids=repr)
def test_number_of_any_kind_is_taken_where_a_number_is_meant(three):
    third = three / 10 if not isinstance(three, int) else 0.3
    method = hvpopt.TrustRegionNewton(
        tol=third, radius=three, max_products=three, max_trials=three, seed=three
    )
    result = minimize(
        method=method, max_iter=three, max_products=three, max_seconds=three, gtol=third
    )
    plain = minimize(
        method=hvpopt.TrustRegionNewton(
            tol=float(third), radius=3, max_products=3, max_trials=3, seed=3
        ),
        max_iter=3,
        max_products=3,
        max_seconds=3,
        gtol=float(third),
    )
    assert torch.equal(result.x, plain.x)
    assert (type(method.max_trials), type(method.seed)) == (int, int)
    assert (three * operator() @ X).tolist() == [3.0, 12.0, 27.0]
    assert (three * objective()).value(X) == 3 * objective().value(X)


@pytest.mark.parametrize(
    "make",
    [
        lambda k: hvpopt.QuasiNewton(memory=k, refresh=k, seed=k),
        lambda k: hvpopt.LineSearchNewton(refresh=k, memory=k, seed=k),
        lambda k: hvpopt.ShiftedNewton(max_products=k, factor=k, seed=k),
        lambda k: hvpopt.Backtracking(max_trials=k),
    ],
)
def test_options_are_kept_as_plain_numbers(make):
    # a state's fingerprint tells options by their value, and not by who made them
    expected = {name: repr(v) for name, v in vars(make(3)).items() if v is not None}
    for three in (np.int64(3), torch.tensor(3)):
        found = vars(make(three))
        plain = [k for k, v in vars(make(3)).items() if isinstance(v, (int, float))]
        assert {k: repr(found[k]) for k in plain} == {k: expected[k] for k in plain}


def test_whole_floats_become_integers_and_others_do_not():
    assert checks.integer("n", 1e3) == 1000
    assert isinstance(checks.integer("n", np.float64(1e3)), int)
    assert checks.seed("seed", 2**64 - 1) == 2**64 - 1
    assert checks.limit("n", INF) == INF
    assert checks.number("x", Fraction(1, 4)) == 0.25
    for wrong in (2.5, NAN, INF):
        with pytest.raises(ValueError, match="n is"):
            checks.integer("n", wrong)


@pytest.mark.parametrize("limits", [{}, {"above": 0.0}, {"least": 0.0}], ids=repr)
def test_finite_number_is_neither_infinite_nor_nan(limits):
    for wrong in (INF, -INF, NAN, 10**400, -(10**400)):
        with pytest.raises(ValueError, match=r"x is .*; it must be .*finite"):
            checks.number("x", wrong, below=INF, **limits)


LENGTHS = [[3, 4.0], np.array([3, 4]), torch.Size([3, 4]), torch.tensor([3.0, 4.0])]


@pytest.mark.parametrize("given", [*LENGTHS, range(3, 5)], ids=repr)
def test_lengths_of_axes_become_integers(given):
    found = checks.lengths("shape", given)
    assert found == (3, 4)
    assert all(type(length) is int for length in found)


@pytest.mark.parametrize(
    "wrong",
    [3, None, "34", b"34", {3, 4}, {3: 4}, torch.tensor(3), np.array(3)],
    ids=repr,
)
def test_what_is_no_sequence_of_lengths_is_refused(wrong):
    with pytest.raises(TypeError, match=r"shape is .*; pass a tuple with a length"):
        checks.lengths("shape", wrong)


def test_wrong_lengths_texts_and_paths_are_refused():
    for wrong, error in (([3, True], T), (["3"], T), ([0], V), ([2.5], V), ([NAN], V)):
        with pytest.raises(error, match="an entry of shape is"):
            checks.lengths("shape", wrong)
    assert checks.lengths("shape", [0], least=0) == (0,)
    for wrong in (3, None, b"a", str):
        with pytest.raises(T, match=r"name is .*; pass a text"):
            checks.text("name", wrong)
        with pytest.raises(T, match=r"path is .*; pass a string or a pathlib\.Path"):
            checks.path("path", wrong)
    assert checks.path("path", "a") == checks.path("path", Path("a")) == Path("a")


@pytest.mark.parametrize("yes", [True, 1, np.bool_(True), torch.tensor(True)], ids=repr)
def test_truth_values_of_any_kind_are_taken(yes):
    assert checks.flag("flag", yes) is True
    assert hvpopt.TorchObjective(loss, convex=yes).convex is True


@pytest.mark.parametrize(
    "wrong", ["no", 2, 1.0, None, torch.empty((), device="meta")], ids=repr
)
def test_other_truth_values_are_refused(wrong):
    with pytest.raises(T, match=r"flag is .*; pass True or False"):
        checks.flag("flag", wrong)


def test_what_was_valid_still_is():
    assert minimize(max_iter=INF, max_products=INF).success
    assert hvpopt.cg(operator(), X, max_products=INF).residual_norm < 1e-4
    assert TR(seed=-1).seed == -1
    method = SN(globalisation=hvpopt.Wolfe())
    assert minimize(method=method, max_iter=50).success
    assert scipy(disp=0, maxiter=2.0).nit <= 2


def test_run_without_a_limit_of_steps_can_be_resumed(tmp_path):
    path = tmp_path / "run.safetensors"
    minimize(max_iter=INF, max_products=2, checkpoint=path)
    assert minimize(max_iter=INF, max_products=INF, checkpoint=path).success
