"""Analysis of objectives and Hessians: checks, traces, spectra, each with its error."""

from hvpopt.analysis.density import SpectralDensity, spectral_density
from hvpopt.analysis.derivatives import (
    CheckReport,
    check_gradient,
    check_hessian,
    check_symmetry,
)
from hvpopt.analysis.design import ShotInformation, shot_information
from hvpopt.analysis.eigenpairs import Eigenpairs, eigenpairs
from hvpopt.analysis.estimate import CONFIDENCE, Estimate, student_factor
from hvpopt.analysis.functionals import FunctionalVariance
from hvpopt.analysis.log_determinant import log_determinant
from hvpopt.analysis.noise import Noise
from hvpopt.analysis.point_spread import PointSpread, point_spread, regularised_spread
from hvpopt.analysis.pointwise import PointwiseVariance
from hvpopt.analysis.posterior import (
    Posterior,
    PosteriorSamples,
    functional_variance,
    pointwise_variance,
    posterior_of,
    posterior_samples,
)
from hvpopt.analysis.prior import MaternPrior
from hvpopt.analysis.probed_diagonal import diagonal
from hvpopt.analysis.resolution import (
    CrossTalk,
    ResolutionLengths,
    cross_talk,
    resolution_lengths,
)
from hvpopt.analysis.responses import Probes, random_probes
from hvpopt.analysis.trace import trace
from hvpopt.analysis.whitened import WhitenedHessian

__all__ = [
    "CONFIDENCE",
    "CheckReport",
    "CrossTalk",
    "Eigenpairs",
    "Estimate",
    "FunctionalVariance",
    "MaternPrior",
    "Noise",
    "PointSpread",
    "PointwiseVariance",
    "Posterior",
    "PosteriorSamples",
    "Probes",
    "ResolutionLengths",
    "ShotInformation",
    "SpectralDensity",
    "WhitenedHessian",
    "check_gradient",
    "check_hessian",
    "check_symmetry",
    "cross_talk",
    "diagonal",
    "eigenpairs",
    "functional_variance",
    "log_determinant",
    "point_spread",
    "pointwise_variance",
    "posterior_of",
    "posterior_samples",
    "random_probes",
    "regularised_spread",
    "resolution_lengths",
    "shot_information",
    "spectral_density",
    "student_factor",
    "trace",
]
