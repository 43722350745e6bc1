"""Exact second-order optimisation without forming the Hessian."""

from hvpopt import distributed, fwi, optim
from hvpopt.counts import Counts
from hvpopt.dense import DenseHessian
from hvpopt.hessian import FiniteDifferenceHessian, HessianOperator
from hvpopt.interop.scipy import scipy_method
from hvpopt.krylov.cg import CGResult, CGStatus, cg
from hvpopt.krylov.eigenvalue import EigenvalueEstimate, smallest_eigenvalue
from hvpopt.krylov.lanczos import LanczosBasis
from hvpopt.krylov.low_rank import (
    LowRankPreconditioner,
    nystrom,
    ritz_pairs,
    ritz_preconditioner,
)
from hvpopt.krylov.pairs import PairsPreconditioner
from hvpopt.krylov.preconditioner import DiagonalPreconditioner
from hvpopt.minimize import minimize, resume
from hvpopt.newton.backtracking import Backtracking
from hvpopt.newton.curvature import GaussNewtonFirst
from hvpopt.newton.forcing import (
    Constant,
    EisenstatWalker1,
    EisenstatWalker2,
    Forcing,
    ForcingFacts,
    SquareRoot,
)
from hvpopt.newton.initial import (
    CauchyScale,
    GradientScale,
    HessianDiagonal,
    HessianSketch,
    InitialCurvature,
)
from hvpopt.newton.line_search import LineSearchNewton
from hvpopt.newton.quasi_newton import QuasiNewton
from hvpopt.newton.radius import Radii
from hvpopt.newton.shifted import ShiftedNewton
from hvpopt.newton.trust_region import TrustRegionNewton
from hvpopt.newton.wolfe import Wolfe
from hvpopt.objective import Linearisation, Objective, SumObjective
from hvpopt.operators import FunctionOperator, MatrixOperator, SymmetricOperator
from hvpopt.result import IterationRecord, MinimizeResult, Status
from hvpopt.scipy_bridge import as_scipy
from hvpopt.space import ModelSpace
from hvpopt.torch_objective import TorchObjective

__all__ = [
    "Backtracking",
    "CGResult",
    "CGStatus",
    "CauchyScale",
    "Constant",
    "Counts",
    "DenseHessian",
    "DiagonalPreconditioner",
    "EigenvalueEstimate",
    "EisenstatWalker1",
    "EisenstatWalker2",
    "FiniteDifferenceHessian",
    "Forcing",
    "ForcingFacts",
    "FunctionOperator",
    "GaussNewtonFirst",
    "GradientScale",
    "HessianDiagonal",
    "HessianOperator",
    "HessianSketch",
    "InitialCurvature",
    "IterationRecord",
    "LanczosBasis",
    "LineSearchNewton",
    "Linearisation",
    "LowRankPreconditioner",
    "MatrixOperator",
    "MinimizeResult",
    "ModelSpace",
    "Objective",
    "PairsPreconditioner",
    "QuasiNewton",
    "Radii",
    "ShiftedNewton",
    "SquareRoot",
    "Status",
    "SumObjective",
    "SymmetricOperator",
    "TorchObjective",
    "TrustRegionNewton",
    "Wolfe",
    "as_scipy",
    "cg",
    "distributed",
    "fwi",
    "minimize",
    "nystrom",
    "optim",
    "resume",
    "ritz_pairs",
    "ritz_preconditioner",
    "scipy_method",
    "smallest_eigenvalue",
]
