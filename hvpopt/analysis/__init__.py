"""Looking at objectives and Hessians: checks of derivatives."""

from hvpopt.analysis.checks import (
    CheckReport,
    check_gradient,
    check_hessian,
    check_symmetry,
)

__all__ = ["CheckReport", "check_gradient", "check_hessian", "check_symmetry"]
