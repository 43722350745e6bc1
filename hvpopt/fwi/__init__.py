"""Full-waveform inversion: surveys, waveform misfits and their products."""

from hvpopt.errors import BadShotError
from hvpopt.fwi.data.data_misfits import L2, DataMisfit, Huber
from hvpopt.fwi.data.trace_misfits import (
    DeepwaveMisfit,
    Envelope,
    FunctionMisfit,
    NormalisedCorrelation,
)
from hvpopt.fwi.hessian.born import BornHessian, WaveformHessian
from hvpopt.fwi.hessian.double_backprop import DoubleBackpropHessian
from hvpopt.fwi.hessian.memory import MemoryPlan
from hvpopt.fwi.io.formats import read_gathers, read_model, write_gathers, write_model
from hvpopt.fwi.io.gathers import Gathers
from hvpopt.fwi.io.surveys import SurveyData, read_survey
from hvpopt.fwi.maps.grids import CoarseGrid, SubRegion
from hvpopt.fwi.maps.parameterisation import Chain, Parameterisation
from hvpopt.fwi.maps.quantities import Log, SlownessSquared, VpVsRho
from hvpopt.fwi.misfit.illumination import (
    Illumination,
    gauss_newton_diagonal,
    source_illumination,
)
from hvpopt.fwi.misfit.waveform_misfit import WaveformMisfit
from hvpopt.fwi.survey.survey import Survey
from hvpopt.fwi.survey.timestep import TimeStep

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
    "SlownessSquared",
    "SubRegion",
    "Survey",
    "SurveyData",
    "TimeStep",
    "VpVsRho",
    "WaveformHessian",
    "WaveformMisfit",
    "gauss_newton_diagonal",
    "read_gathers",
    "read_model",
    "read_survey",
    "source_illumination",
    "write_gathers",
    "write_model",
]
