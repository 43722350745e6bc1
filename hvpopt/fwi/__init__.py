"""Full-waveform inversion: surveys, waveform misfits and their products."""

from hvpopt.errors import BadShotError
from hvpopt.fwi.data.band_filter import BandFilter
from hvpopt.fwi.data.data_misfits import L2, DataMisfit, Huber
from hvpopt.fwi.data.mutes import (
    CosineTaper,
    LinearMoveout,
    Mute,
    OffsetLimits,
    RecordedSamples,
)
from hvpopt.fwi.data.trace_misfits import (
    DeepwaveMisfit,
    Envelope,
    FunctionMisfit,
    NormalisedCorrelation,
)
from hvpopt.fwi.data.transforms import DataTransform
from hvpopt.fwi.hessian.born import BornHessian, WaveformHessian
from hvpopt.fwi.hessian.double_backprop import DoubleBackpropHessian
from hvpopt.fwi.hessian.memory import MemoryPlan
from hvpopt.fwi.hessian.waveform_jacobian import WaveformJacobian
from hvpopt.fwi.io.formats import read_gathers, read_model, write_gathers, write_model
from hvpopt.fwi.io.gathers import Gathers
from hvpopt.fwi.io.surveys import SurveyData, read_survey
from hvpopt.fwi.maps.grids import CoarseGrid, SubRegion
from hvpopt.fwi.maps.parameterisation import Chain, Parameterisation
from hvpopt.fwi.maps.quantities import Log, SlownessSquared, VpVsRho
from hvpopt.fwi.misfit.frequency_stages import frequency_stages
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
    "BandFilter",
    "BornHessian",
    "Chain",
    "CoarseGrid",
    "CosineTaper",
    "DataMisfit",
    "DataTransform",
    "DeepwaveMisfit",
    "DoubleBackpropHessian",
    "Envelope",
    "FunctionMisfit",
    "Gathers",
    "Huber",
    "Illumination",
    "LinearMoveout",
    "Log",
    "MemoryPlan",
    "Mute",
    "NormalisedCorrelation",
    "OffsetLimits",
    "Parameterisation",
    "RecordedSamples",
    "SlownessSquared",
    "SubRegion",
    "Survey",
    "SurveyData",
    "TimeStep",
    "VpVsRho",
    "WaveformHessian",
    "WaveformJacobian",
    "WaveformMisfit",
    "frequency_stages",
    "gauss_newton_diagonal",
    "read_gathers",
    "read_model",
    "read_survey",
    "source_illumination",
    "write_gathers",
    "write_model",
]
