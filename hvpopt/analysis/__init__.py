"""Analysis of objectives and Hessians: checks of derivatives, estimates of diagonals."""

from hvpopt.analysis.derivatives import (
    CheckReport,
    check_gradient,
    check_hessian,
    check_symmetry,
)
from hvpopt.analysis.estimate import CONFIDENCE, Estimate, student_factor
from hvpopt.krylov.diagonal import (
    DiagonalEstimate,
    estimate_diagonal,
    smooth_diagonal,
)

__all__ = [
    "CONFIDENCE",
    "CheckReport",
    "DiagonalEstimate",
    "Estimate",
    "check_gradient",
    "check_hessian",
    "check_symmetry",
    "estimate_diagonal",
    "smooth_diagonal",
    "student_factor",
]
