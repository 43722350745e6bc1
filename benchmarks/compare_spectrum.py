"""Trace, diagonal, density, log-determinant and eigenpairs beside curvlinops and scipy.

    pip install curvlinops-for-pytorch==3.0.1
    python benchmarks/compare_spectrum.py

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
from scipy.sparse.linalg import LinearOperator, eigsh

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
        found = [ours(problem.operator(), n_products, s) for s in range(SEEDS)]
        held = np.mean(
            [float(torch.as_tensor(inside(f, exact)).double().mean()) for f in found]
        )
        used = {f.n_products for f in found}
        errors = [error(f.value) for f in found]
        rows.append(["hvpopt", max(used), f"{rms(errors):.1e}", f"{held:.2f}"])
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
        lambda h, n, s: analysis.trace(h, n_products=n, seed=s),
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
        lambda h, n, s: analysis.diagonal(h, n_products=n, seed=s),
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
    for n_steps in (10, 30):
        found = [
            analysis.log_determinant(
                problem.operator(), shift=shift, n_steps=n_steps, seed=s
            )
            for s in range(SEEDS)
        ]
        held = np.mean([inside(f, exact) for f in found])
        apart = np.mean([f.upper - f.lower for f in found]) / size
        error = rms([(f.value - exact) / size for f in found])
        stated = f"{held:.2f}, bounds {apart:.1e} apart"
        rows.append(["hvpopt", found[0].n_products, f"{error:.1e}", stated])
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


PARTS = [
    ("Trace", "relative error, rms over seeds", trace_rows),
    ("Diagonal", "relative error of the vector, rms over seeds", diagonal_rows),
    (
        "Cumulative spectral density, 8 vectors of 30 steps",
        "mean absolute error over 200 points, rms over seeds",
        density_rows,
    ),
    (
        "log det(H + τI), τ = λ_max/1000, 8 vectors of 10 and 30 steps",
        "error relative to log det(I + H/τ), rms over seeds",
        log_determinant_rows,
    ),
    ("Ten largest eigenvalues", "largest error relative to ‖H‖", eigenpair_rows),
]


def report():
    versions = f"torch {torch.__version__.split('+')[0]}, scipy {scipy.__version__}"
    if curvlinops:
        versions += ", curvlinops 3.0.1"
    lines = [
        "# Spectra by products, beside curvlinops and scipy",
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
        "those that tell.",
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
