"""Full-waveform inversion: surveys, waveform misfits and their products."""

from hvpopt.fwi.bad_shots import BadShotError, ShotDropped
from hvpopt.fwi.born import BornHessian, WaveformHessian
from hvpopt.fwi.data_misfits import L2, DataMisfit, Huber
from hvpopt.fwi.double_backprop import DoubleBackpropHessian
from hvpopt.fwi.gathers import Gathers
from hvpopt.fwi.grids import CoarseGrid, SubRegion
from hvpopt.fwi.groups import MemoryPlan
from hvpopt.fwi.illumination import (
    Illumination,
    gauss_newton_diagonal,
    source_illumination,
)
from hvpopt.fwi.io import read_gathers, read_model, write_gathers, write_model
from hvpopt.fwi.misfit import WaveformMisfit
from hvpopt.fwi.parameterisation import Chain, Parameterisation
from hvpopt.fwi.quantities import Log, SlownessSquared, VpVsRho
from hvpopt.fwi.survey import Survey
from hvpopt.fwi.timestep import TimeStep
from hvpopt.fwi.trace_misfits import (
    DeepwaveMisfit,
    Envelope,
    FunctionMisfit,
    NormalisedCorrelation,
)

__all__ = [
    "L2",
    "BadShotError",
    "BornHessian",
    "Chain",
    "CoarseGrid",
    "DataMisfit",
    "DeepwaveMisfit",
    "DoubleBackpropHessian",
    "Envelope",
    "FunctionMisfit",
    "Gathers",
    "Huber",
    "Illumination",
    "Log",
    "MemoryPlan",
    "NormalisedCorrelation",
    "Parameterisation",
    "ShotDropped",
    "SlownessSquared",
    "SubRegion",
    "Survey",
    "TimeStep",
    "VpVsRho",
    "WaveformHessian",
    "WaveformMisfit",
    "gauss_newton_diagonal",
    "read_gathers",
    "read_model",
    "source_illumination",
    "write_gathers",
    "write_model",
]
