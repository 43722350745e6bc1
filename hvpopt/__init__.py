"""Exact second-order optimisation without forming the Hessian."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from hvpopt import optim
from hvpopt._version import __version__
from hvpopt.interop.as_scipy import as_scipy
from hvpopt.interop.scipy_method import scipy_method
from hvpopt.krylov.cg import CGResult, CGStatus, cg
from hvpopt.krylov.eigenvalue import EigenvalueEstimate, smallest_eigenvalue
from hvpopt.krylov.lanczos import LanczosBasis
from hvpopt.krylov.pairs import PairsPreconditioner
from hvpopt.krylov.preconditioner import DiagonalPreconditioner
from hvpopt.methods.backtracking import Backtracking
from hvpopt.methods.forcing import (
    Constant,
    EisenstatWalker2,
    Forcing,
    SquareRoot,
)
from hvpopt.methods.initial import (
    GradientScale,
    HessianDiagonal,
    InitialCurvature,
)
from hvpopt.methods.line_search import LineSearchNewton
from hvpopt.methods.quasi_newton import QuasiNewton
from hvpopt.methods.shifted import ShiftedNewton
from hvpopt.methods.stochastic import StochasticQuasiNewton
from hvpopt.methods.trust_region import TrustRegionNewton
from hvpopt.methods.wolfe import Wolfe
from hvpopt.model.counts import Counts
from hvpopt.model.space import ModelSpace
from hvpopt.operators.autograd import FiniteDifferenceHessian, HessianOperator
from hvpopt.operators.dense import DenseHessian
from hvpopt.operators.jacobian import Jacobian
from hvpopt.operators.symmetric import FunctionOperator, MatrixOperator, SymmetricOperator
from hvpopt.problem.objective import Linearisation, Objective, SumObjective
from hvpopt.problem.regularisers.cross_gradient import CrossGradient
from hvpopt.problem.regularisers.regulariser import Regulariser
from hvpopt.problem.regularisers.tikhonov import ReferenceModel, Tikhonov
from hvpopt.problem.regularisers.total_variation import TotalVariation
from hvpopt.problem.torch_objective import TorchObjective
from hvpopt.run.minimize import minimize
from hvpopt.run.result import IterationRecord, MinimizeResult, Status

if TYPE_CHECKING:
    from hvpopt import analysis, distributed, fwi

__all__ = [
    "Backtracking",
    "CGResult",
    "CGStatus",
    "Constant",
    "Counts",
    "CrossGradient",
    "DenseHessian",
    "DiagonalPreconditioner",
    "EigenvalueEstimate",
    "EisenstatWalker2",
    "FiniteDifferenceHessian",
    "Forcing",
    "FunctionOperator",
    "GradientScale",
    "HessianDiagonal",
    "HessianOperator",
    "InitialCurvature",
    "IterationRecord",
    "Jacobian",
    "LanczosBasis",
    "LineSearchNewton",
    "Linearisation",
    "MatrixOperator",
    "MinimizeResult",
    "ModelSpace",
    "Objective",
    "PairsPreconditioner",
    "QuasiNewton",
    "ReferenceModel",
    "Regulariser",
    "ShiftedNewton",
    "SquareRoot",
    "Status",
    "StochasticQuasiNewton",
    "SumObjective",
    "SymmetricOperator",
    "Tikhonov",
    "TorchObjective",
    "TotalVariation",
    "TrustRegionNewton",
    "Wolfe",
    "__version__",
    "analysis",
    "as_scipy",
    "cg",
    "distributed",
    "fwi",
    "minimize",
    "optim",
    "scipy_method",
    "smallest_eigenvalue",
]

#: Imported when they are first asked for: deepwave takes seconds, and plain losses none.
_ON_REQUEST = ("analysis", "distributed", "fwi", "interop", "plotting")


def __getattr__(name: str) -> ModuleType:
    if name in _ON_REQUEST:
        return importlib.import_module(f"hvpopt.{name}")
    raise AttributeError(f"module 'hvpopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_REQUEST})
