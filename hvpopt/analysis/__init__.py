"""Analysis of objectives and Hessians: checks of derivatives, estimates of diagonals."""

from hvpopt.analysis.derivatives import (
    CheckReport,
    check_gradient,
    check_hessian,
    check_symmetry,
)
from hvpopt.analysis.design import ShotInformation, shot_information
from hvpopt.analysis.estimate import CONFIDENCE, Estimate, student_factor
from hvpopt.analysis.noise import Noise
from hvpopt.analysis.posterior import (
    FunctionalVariance,
    PointwiseVariance,
    Posterior,
    PosteriorSamples,
    functional_variance,
    pointwise_variance,
    posterior_of,
    posterior_samples,
)
from hvpopt.analysis.prior import MaternPrior
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
    "FunctionalVariance",
    "MaternPrior",
    "Noise",
    "PointwiseVariance",
    "Posterior",
    "PosteriorSamples",
    "ShotInformation",
    "check_gradient",
    "check_hessian",
    "check_symmetry",
    "estimate_diagonal",
    "functional_variance",
    "pointwise_variance",
    "posterior_of",
    "posterior_samples",
    "shot_information",
    "smooth_diagonal",
    "student_factor",
]
