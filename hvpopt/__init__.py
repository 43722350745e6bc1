"""Exact second-order optimisation without forming the Hessian."""

from hvpopt.counts import Counts
from hvpopt.hessian import FiniteDifferenceHessian, HessianOperator
from hvpopt.objective import Linearisation, Objective, SumObjective, TorchObjective
from hvpopt.operators import FunctionOperator, MatrixOperator, SymmetricOperator
from hvpopt.space import ModelSpace

__all__ = [
    "Counts",
    "FiniteDifferenceHessian",
    "FunctionOperator",
    "HessianOperator",
    "Linearisation",
    "MatrixOperator",
    "ModelSpace",
    "Objective",
    "SumObjective",
    "SymmetricOperator",
    "TorchObjective",
]
