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
from hvpopt.analysis.design import ShotInformation, shot_information
from hvpopt.analysis.eigenpairs import Eigenpairs, eigenpairs
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
    "FunctionalVariance",
    "MaternPrior",
    "Noise",
    "PointwiseVariance",
    "Posterior",
    "PosteriorSamples",
    "ShotInformation",
    "SpectralDensity",
    "check_gradient",
    "check_hessian",
    "check_symmetry",
    "diagonal",
    "eigenpairs",
    "estimate_diagonal",
    "functional_variance",
    "log_determinant",
    "pointwise_variance",
    "posterior_of",
    "posterior_samples",
    "shot_information",
    "smooth_diagonal",
    "spectral_density",
    "student_factor",
    "trace",
]
