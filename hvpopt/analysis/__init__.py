"""Analysis of objectives and Hessians: checks, traces, spectra, each with its error."""

from hvpopt.analysis.density import (
    SpectralDensity,
    log_determinant,
    spectral_density,
)
from hvpopt.analysis.derivatives import (
    CheckReport,
    check_gradient,
    check_hessian,
    check_symmetry,
)
from hvpopt.analysis.eigenpairs import Eigenpairs, eigenpairs
from hvpopt.analysis.estimate import CONFIDENCE, Estimate, student_factor
from hvpopt.analysis.probed_diagonal import diagonal
from hvpopt.analysis.trace import trace
from hvpopt.krylov.diagonal import (
    DiagonalEstimate,
    estimate_diagonal,
    smooth_diagonal,
)

__all__ = [
    "CONFIDENCE",
    "CheckReport",
    "DiagonalEstimate",
    "Eigenpairs",
    "Estimate",
    "SpectralDensity",
    "check_gradient",
    "check_hessian",
    "check_symmetry",
    "diagonal",
    "eigenpairs",
    "estimate_diagonal",
    "log_determinant",
    "smooth_diagonal",
    "spectral_density",
    "student_factor",
    "trace",
]
