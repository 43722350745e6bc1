"""Exact second-order optimisation without forming the Hessian."""

from hvpopt import fwi
from hvpopt.counts import Counts
from hvpopt.dense import DenseHessian
from hvpopt.hessian import FiniteDifferenceHessian, HessianOperator
from hvpopt.krylov.cg import CGResult, CGStatus, cg
from hvpopt.krylov.eigenvalue import EigenvalueEstimate, smallest_eigenvalue
from hvpopt.krylov.lanczos import LanczosBasis
from hvpopt.krylov.preconditioner import DiagonalPreconditioner
from hvpopt.minimize import minimize
from hvpopt.newton.backtracking import Backtracking
from hvpopt.newton.shifted import ShiftedNewton
from hvpopt.objective import Linearisation, Objective, SumObjective, TorchObjective
from hvpopt.operators import FunctionOperator, MatrixOperator, SymmetricOperator
from hvpopt.result import IterationRecord, MinimizeResult, Status
from hvpopt.space import ModelSpace

__all__ = [
    "Backtracking",
    "CGResult",
    "CGStatus",
    "Counts",
    "DenseHessian",
    "DiagonalPreconditioner",
    "EigenvalueEstimate",
    "FiniteDifferenceHessian",
    "FunctionOperator",
    "HessianOperator",
    "IterationRecord",
    "LanczosBasis",
    "Linearisation",
    "MatrixOperator",
    "MinimizeResult",
    "ModelSpace",
    "Objective",
    "ShiftedNewton",
    "Status",
    "SumObjective",
    "SymmetricOperator",
    "TorchObjective",
    "cg",
    "fwi",
    "minimize",
    "smallest_eigenvalue",
]
