"""Spectra and posterior variances beside curvlinops and scipy.

    pip install curvlinops-for-pytorch==3.0.1
    python benchmarks/compare_spectrum.py

The dense Gauss-Newton matrix takes 600 products; all else is algebra with 600 rows.
Every library multiplies with the same matrices, each column is counted, and the errors
are against dense algebra in the same run. Writes SPECTRUM.md.
"""

import math
import sys
import warnings
from pathlib import Path

import numpy as np
import scipy
import torch
from scipy.sparse.linalg import LinearOperator, cg, eigsh

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from two_layer import two_layer

import hvpopt
from hvpopt import analysis

try:
    import curvlinops
    from curvlinops._torch_base import PyTorchLinearOperator
except ModuleNotFoundError:
    curvlinops = None

HERE = Path(__file__).parent
SEEDS = 10
N_PRODUCTS = (24, 48, 96)


class Problem:
    """One matrix with what dense algebra says of it."""

    def __init__(self, name, matrix):
        self.name = name
        self.matrix = 0.5 * (matrix + matrix.T)
        self.size = len(matrix)
        self.values = torch.linalg.eigvalsh(self.matrix)
        self.counts = 0

    def operator(self):
        """Return hvpopt's operator, which counts by itself."""
        return hvpopt.MatrixOperator(self.matrix)

    def apply(self, block):
        """Return the products with a vector or the columns of a block, and count."""
        self.counts += 1 if block.ndim == 1 else block.shape[1]
        return self.matrix @ block

    def for_curvlinops(self):
        """Return the operator that curvlinops takes."""
        problem = self

        class Counted(PyTorchLinearOperator):
            SELF_ADJOINT = True
            device = torch.device("cpu")
            dtype = torch.float64

            def _matmat(self, blocks):
                return [problem.apply(blocks[0])]

        return Counted([(self.size,)], [(self.size,)])

    def for_scipy(self):
        """Return the operator that scipy takes."""

        def apply(vector):
            return self.apply(torch.from_numpy(np.array(vector).reshape(-1))).numpy()

        return LinearOperator((self.size, self.size), matvec=apply, dtype=np.float64)

    def counted(self, function):
        """Return what a function returns, and the matvecs that it took."""
        self.counts = 0
        found = function()
        return found, self.counts


def problems():
    experiment = two_layer(20, 30)
    with experiment.misfit.hessian(experiment.v_start, "gauss-newton") as operator:
        yield Problem("Gauss-Newton, two layers", operator.to_dense())
    generator = torch.Generator().manual_seed(0)
    n = 600
    basis = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[
        0
    ]
    index = torch.arange(1, n + 1, dtype=torch.float64)
    yield Problem("eigenvalues 1/i", (basis / index) @ basis.T)
    fourfold = torch.where(index < 5, 1.0, 0.9 / index)
    yield Problem("the largest four times", (basis * fourfold) @ basis.T)


def rms(errors):
    return math.sqrt(float(np.mean(np.square(errors))))


def sampled_rows(problem, exact, ours, theirs, error):
    """Return rows of an estimate at several numbers of products."""
    rows = []
    for n_products in N_PRODUCTS:
        for name, function in ours.items():
            found = [function(problem.operator(), n_products, s) for s in range(SEEDS)]
            held = np.mean(
                [float(torch.as_tensor(inside(f, exact)).double().mean()) for f in found]
            )
            used = {f.n_products for f in found}
            errors = [error(f.value) for f in found]
            rows.append([name, max(used), f"{rms(errors):.1e}", f"{held:.2f}"])
        for name, function in theirs.items():
            errors, spent = [], []
            for s in range(SEEDS):
                torch.manual_seed(s)
                value, counts = problem.counted(
                    lambda f=function, n=n_products: f(problem.for_curvlinops(), n)
                )
                errors.append(error(value))
                spent.append(counts)
            rows.append([name, max(spent), f"{rms(errors):.1e}", "none stated"])
    return rows


def inside(estimate, exact):
    low, high = estimate.interval
    return (low <= exact) & (exact <= high)


def trace_rows(problem):
    exact = float(problem.matrix.trace())
    theirs = {}
    if curvlinops:
        theirs = {
            "curvlinops hutchinson_trace": curvlinops.hutchinson_trace,
            "curvlinops hutchpp_trace": curvlinops.hutchpp_trace,
            "curvlinops xtrace": curvlinops.xtrace,
        }
    return sampled_rows(
        problem,
        exact,
        {
            "hvpopt": lambda h, n, s: analysis.trace(h, n_products=n, seed=s),
            "hvpopt, positive=True": lambda h, n, s: analysis.trace(
                h, n_products=n, seed=s, positive=True
            ),
        },
        theirs,
        lambda value: (float(value) - exact) / exact,
    )


def diagonal_rows(problem):
    exact = problem.matrix.diagonal()
    theirs = {}
    if curvlinops:
        theirs = {
            "curvlinops hutchinson_diag": curvlinops.hutchinson_diag,
            "curvlinops xdiag": curvlinops.xdiag,
        }
    return sampled_rows(
        problem,
        exact,
        {"hvpopt": lambda h, n, s: analysis.diagonal(h, n_products=n, seed=s)},
        theirs,
        lambda value: float((value - exact).norm() / exact.norm()),
    )


def density_rows(problem, n_probes=8, n_steps=30):
    errors, widths, held, products = [], [], [], 0
    theirs, spent = [], []
    for s in range(SEEDS):
        found = analysis.spectral_density(
            problem.operator(), n_probes=n_probes, n_steps=n_steps, seed=s
        )
        products = found.n_products
        exact = (problem.values <= found.points[:, None]).double().mean(1)
        errors.append(float((found.value - exact).abs().mean()))
        widths.append(float((found.upper - found.lower).mean()))
        held.append(float(inside(found, exact).double().mean()))
        if curvlinops:
            torch.manual_seed(s)
            np.random.seed(s)  # noqa: NPY002 - eigsh's own start
            (grid, density), counts = problem.counted(
                lambda: curvlinops.lanczos_approximate_spectrum(
                    problem.for_curvlinops(), n_steps, num_repeats=n_probes
                )
            )
            summed = torch.cumulative_trapezoid(density, grid)
            at = np.interp(found.points.numpy(), grid[1:].numpy(), summed.numpy())
            theirs.append(float((torch.from_numpy(at) - exact).abs().mean()))
            spent.append(counts)
    rows = [
        [
            "hvpopt",
            products,
            f"{rms(errors):.1e}",
            f"{np.mean(held):.2f}, bounds {np.mean(widths):.1e} apart",
        ]
    ]
    if curvlinops:
        name = "curvlinops lanczos_approximate_spectrum"
        rows.append([name, max(spent), f"{rms(theirs):.1e}", "none stated"])
    return rows


def log_determinant_rows(problem):
    shift = 1e-3 * float(problem.values[-1])
    shifted = problem.values.clamp(min=0.0) + shift
    exact = float(shifted.log().sum())
    # in units of the shift, so that the scale of the matrix does not count
    size = float((shifted / shift).log().sum())
    rows = []
    for n_steps, n_deflated in ((10, 0), (5, 40), (30, 0), (15, 120)):
        found = [
            analysis.log_determinant(
                problem.operator(),
                shift=shift,
                n_steps=n_steps,
                n_deflated=n_deflated,
                seed=s,
            )
            for s in range(SEEDS)
        ]
        held = np.mean([inside(f, exact) for f in found])
        apart = np.mean([f.upper - f.lower for f in found]) / size
        error = rms([(f.value - exact) / size for f in found])
        stated = f"{held:.2f}, bounds {apart:.1e} apart"
        name = f"hvpopt, {n_deflated} deflated, 8 vectors of {n_steps}"
        products = max(f.n_products for f in found)
        rows.append([name, products, f"{error:.1e}", stated])
    return rows


def eigenpair_rows(problem, k=10):
    exact, norm = problem.values.flip(0)[:k], float(problem.values.abs().max())
    found = analysis.eigenpairs(problem.operator(), k, tol=1e-6)
    held = bool(((found.lower <= exact) & (exact <= found.upper)).all())
    error = float((found.value - exact).abs().max()) / norm
    stated = f"{'all' if held else 'NOT all'} in bounds, {found.message}"
    rows = [["hvpopt", found.n_products, f"{error:.1e}", stated]]
    for name, tol in (("scipy eigsh, tol 1e-6", 1e-6), ("scipy eigsh, default", 0)):
        start = np.random.default_rng(0).standard_normal(problem.size)
        (values, _), counts = problem.counted(
            lambda tol=tol, start=start: eigsh(
                problem.for_scipy(), k=k, which="LA", tol=tol, v0=start
            )
        )
        values = torch.from_numpy(np.sort(values)[::-1].copy())
        error = float((values - exact).abs().max()) / norm
        rows.append([name, counts, f"{error:.1e}", "none stated"])
    return rows


class Bayesian:
    """A problem's matrix as a Hessian with a prior, and the dense posterior.

    Cells are those of the first problem; noise makes the data say ten thousand times
    what the prior does along the leading direction.
    """

    SHAPE = (20, 30)

    def __init__(self, problem):
        self.prior = analysis.MaternPrior(self.SHAPE, length=6.0, std=1.0)
        factor = self.prior.factor(torch.eye(problem.size, dtype=torch.float64))
        whitened = factor.T @ problem.matrix @ factor
        unit = 1e4 / float(torch.linalg.eigvalsh(whitened)[-1])
        self.noise = analysis.Noise.of_likelihood()
        self.hessian = Problem(problem.name, unit * problem.matrix)
        self.whitened = Problem(problem.name, unit * whitened)
        identity = torch.eye(problem.size, dtype=torch.float64)
        self.shifted = Problem(problem.name, identity + self.whitened.matrix)
        self.covariance = factor @ torch.linalg.inv(self.shifted.matrix) @ factor.T
        self.factor = factor
        question = torch.zeros(self.SHAPE, dtype=torch.float64)
        question[9:12, 14:17] = 1 / 9
        self.question = question.reshape(-1)
        self.std = math.sqrt(float(self.question @ self.covariance @ self.question))


def functional_rows(problem):
    case, rows = Bayesian(problem), []
    right = case.factor.T @ case.question
    for most in (20, 40, 80):
        found = analysis.functional_variance(
            case.hessian.operator(),
            case.prior,
            case.noise,
            case.question,
            tol=1e-9,
            max_products=most,
        )
        low, high = (float(bound[0]) for bound in found.std_bounds)
        held = low <= case.std * (1 + 1e-9) and high >= case.std * (1 - 1e-9)
        error = abs(float(found.std[0]) / case.std - 1)
        stated = f"{'in' if held else 'NOT in'} bounds, {high / low - 1:.1e} apart"
        rows.append(["hvpopt", found.n_products, f"{error:.1e}", stated])
        # the same number of steps of conjugate gradients, for (I + A) x = u
        x, counts = case.shifted.counted(lambda n=most: by_cg(case, right, n))
        error = abs(math.sqrt(float(right @ x)) / case.std - 1)
        rows.append(["scipy cg", counts, f"{error:.1e}", "none stated"])
        if curvlinops:
            x, counts = case.shifted.counted(lambda n=most: by_cg_inverse(case, right, n))
            error = abs(math.sqrt(float(right @ x)) / case.std - 1)
            name = "curvlinops CGInverseLinearOperator"
            rows.append([name, counts, f"{error:.1e}", "none stated"])
    return rows


def by_cg(case, right, most):
    operator = case.shifted.for_scipy()
    solution, _ = cg(operator, right.numpy(), rtol=0.0, maxiter=most)
    return torch.from_numpy(solution)


def by_cg_inverse(case, right, most):
    inverse = curvlinops.CGInverseLinearOperator(
        case.shifted.for_curvlinops(), max_iter=most, max_tridiag_iter=0, tolerance=0.0
    )
    return inverse @ right


def pointwise_rows(problem):
    case, rows = Bayesian(problem), []
    exact = case.covariance.diagonal().sqrt()
    for most in (40, 80):
        found = analysis.pointwise_variance(
            case.hessian.operator(),
            case.prior,
            case.noise,
            n_products=most - 10,
            n_bound=10,
        )
        low, high = found.lower.sqrt(), found.upper.sqrt()
        inside = (low <= exact * (1 + 1e-9)) & (high >= exact * (1 - 1e-9))
        error = float((found.value.sqrt() / exact - 1).abs().max())
        apart = float((high / low).max()) - 1
        stated = f"{'all' if inside.all() else 'NOT all'} in bounds, {apart:.1e} apart"
        rows.append(["hvpopt", found.n_products, f"{error:.1e}", stated])
        k = most // 2
        start = np.random.default_rng(0).standard_normal(problem.size)
        (values, vectors), counts = case.whitened.counted(
            lambda k=k, start=start: eigsh(
                case.whitened.for_scipy(), k=k, which="LA", tol=1e-2, v0=start
            )
        )
        values, vectors = torch.from_numpy(values), torch.from_numpy(vectors)
        images = case.factor @ vectors
        variance = case.factor.square().sum(1) - images.square() @ (values / (1 + values))
        error = float((variance.sqrt() / exact - 1).abs().max())
        name = f"low rank by scipy eigsh, {k} pairs"
        rows.append([name, counts, f"{error:.1e}", "none stated"])
    return rows


PARTS = [
    ("Trace", "relative error, rms over seeds", trace_rows),
    ("Diagonal", "relative error of the vector, rms over seeds", diagonal_rows),
    (
        "Cumulative spectral density, 8 vectors of 30 steps",
        "mean absolute error over 200 points, rms over seeds",
        density_rows,
    ),
    (
        "log det(H + τI), τ = λ_max/1000",
        "error relative to log det(I + H/τ), rms over seeds",
        log_determinant_rows,
    ),
    (
        "Posterior standard deviation of the mean of 3 × 3 cells",
        "relative to the exact one",
        functional_rows,
    ),
    (
        "Posterior standard deviation of every cell",
        "largest relative error of a cell",
        pointwise_rows,
    ),
    ("Ten largest eigenvalues", "largest error relative to ‖H‖", eigenpair_rows),
]


def report():
    versions = f"torch {torch.__version__.split('+')[0]}, scipy {scipy.__version__}"
    if curvlinops:
        versions += ", curvlinops 3.0.1"
    lines = [
        "# Spectra and posteriors by products, beside curvlinops and scipy",
        "",
        "Written by `compare_spectrum.py`. Each matrix has 600 rows and is the same for "
        "all; matvecs are counted column by column; errors are against dense algebra in "
        f"float64, over {SEEDS} seeds where probes are random. The last column says how "
        "often the interval stated at 0.95 held the exact value. " + versions + ".",
        "",
        "The first matrix is the Gauss-Newton matrix of `examples/two_layer.py` (20 × 30 "
        "cells, one shot). curvlinops has no log-determinant; it takes eigenpairs from "
        "scipy's `eigsh`. That states a tolerance, but not whether an eigenvalue was "
        "missed, and the products that hvpopt spends beyond the first Krylov space are "
        "those that tell. Posterior variances are those of a Matérn prior on the cells "
        "of the first problem, with noise that lets the data say 10⁴ times what the "
        "prior does along the leading direction.",
    ]
    found = list(problems())
    for title, what, rows_of in PARTS:
        lines += ["", f"## {title}", ""]
        lines += [f"Error: {what}.", ""]
        lines += ["| matrix | by | matvecs | error | stated |", "|---|---|--:|--:|---|"]
        for problem in found:
            for row in rows_of(problem):
                lines.append(f"| {problem.name} | " + " | ".join(map(str, row)) + " |")
                print(lines[-1], flush=True)
    return lines


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    (HERE / "SPECTRUM.md").write_text("\n".join(report()) + "\n")
