"""One vocabulary: an option has one name, one place and one kind of value everywhere."""

import inspect
import typing

import pytest

import hvpopt
from hvpopt import analysis, fwi

METHODS = [
    hvpopt.LineSearchNewton,
    hvpopt.QuasiNewton,
    hvpopt.ShiftedNewton,
    hvpopt.StochasticQuasiNewton,
    hvpopt.TrustRegionNewton,
]
FUNCTIONS = [
    *METHODS,
    hvpopt.LanczosBasis,
    hvpopt.DenseHessian,
    hvpopt.as_scipy,
    hvpopt.cg,
    hvpopt.minimize,
    hvpopt.optim.Newton,
    hvpopt.smallest_eigenvalue,
    hvpopt.HessianDiagonal,
    *(getattr(analysis, name) for name in analysis.__all__),
    fwi.gauss_newton_diagonal,
    fwi.source_illumination,
]

#: What each name means, and which values it may take, wherever it stands. Where another
#: name stands for nearly the same, the reason follows.
VOCABULARY = {
    # which Hessian; ``kind`` is the argument of methods that are called hessian or sketch
    "hessian": {"Kind", "Kind | None"},
    # relative accuracy asked for: of a linear solve a number or a forcing term
    "tol": {"float", "float | None", "float | Forcing | None"},
    # limit of products, which may be fewer; ``n_products`` are spent in full
    "max_products": {"int", "int | None", "float | Sequence[float]"},
    "n_products": {"int"},
    "n_probes": {"int", "int | None"},
    "n_samples": {"int"},
    "confidence": {"float"},
    "seed": {"int"},
    "deadline": {"float"},
    "memory_limit": {"str | float"},
    # pairs (s, y) of steps to keep
    "memory": {"int"},
    "refresh": {"int | None"},
    # standard deviation of a smoothing, cells; 0 for none
    "smooth": {"float"},
    # floor relative to the largest entry
    "damping": {"float", "float | None"},
    "preconditioner": {
        "Preconditioner | None",
        "Preconditioner | PreconditionerBuilder | None",
    },
    "globalisation": {"Backtracking | None", "Backtracking | Wolfe | None"},
    "space": {"ModelSpace | None"},
    "scale": {"PerParameter"},
    "mask": {"PerParameter"},
    "lower": {"PerParameter"},
    "upper": {"PerParameter"},
    "gtol": {"float", "float | Sequence[float]"},
    "certify": {"bool"},
}
#: Names that the vocabulary has replaced, or has another word for.
REPLACED = {
    "forcing": "tol",
    "kind": "hessian",
    "pairs": "memory, or n_pairs",
    "smooth_cells": "smooth",
    "of": "target",
    "rtol": "tol",
    "gradient": "rhs",
    "maxiter": "max_iter",
    "random_state": "seed",
}


def parameters(function):
    """Return the parameters of a function, or of a class's constructor."""
    made = function.__init__ if isinstance(function, type) else function
    return [p for p in inspect.signature(made).parameters.values() if p.name != "self"]


def options(function):
    """Return the parameters that have a default."""
    return [p for p in parameters(function) if p.default is not p.empty]


def is_called(what):
    """True unless it is a constant or a result of the analysis, made of fields."""
    result = inspect.isclass(what) and what.__module__.startswith("hvpopt.analysis.")
    return callable(what) and not result


CALLED = [function for function in FUNCTIONS if is_called(function)]


@pytest.mark.parametrize("function", CALLED, ids=lambda f: f.__name__)
def test_an_option_has_one_name_and_one_kind_of_value(function):
    for parameter in options(function):
        name = parameter.name
        assert name not in REPLACED, f"{name} is called {REPLACED[name]} elsewhere"
        if name in VOCABULARY:
            assert parameter.annotation in VOCABULARY[name], name


@pytest.mark.parametrize("function", CALLED, ids=lambda f: f.__name__)
def test_an_option_is_given_by_name(function):
    if function is hvpopt.HessianDiagonal:  # a value, whose fields have an order
        return
    for parameter in options(function):
        if parameter.name in VOCABULARY:
            assert parameter.kind is parameter.KEYWORD_ONLY, parameter.name


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_methods_take_their_options_by_name_alone(method):
    kinds = {p.kind for p in parameters(method)}
    assert kinds <= {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}


@pytest.mark.parametrize(
    "method",
    [hvpopt.LineSearchNewton, hvpopt.ShiftedNewton, hvpopt.TrustRegionNewton],
    ids=lambda m: m.__name__,
)
def test_newton_methods_mean_the_same_by_the_same_options(method):
    for hessian in ("exact", "gauss-newton"):
        assert method(hessian=hessian).kind == hessian
    assert method(tol=0.25).forcing == hvpopt.Constant(0.25)
    assert method(tol=hvpopt.SquareRoot()).forcing == hvpopt.SquareRoot()
    assert method().kind == "exact"
    made = method(max_products=7, eigenvalue_floor=1e-3, confidence=0.9, seed=5)
    found = made.max_products, made.eigenvalue_floor, made.confidence, made.seed
    assert found == (7, 1e-3, 0.9, 5)


def test_every_name_of_the_vocabulary_is_used():
    used = {p.name for function in CALLED for p in options(function)}
    assert set(VOCABULARY) <= used
    assert typing.get_type_hints(hvpopt.cg)["tol"] is float
