"""What persists of a preconditioner: bases, pairs, their costs and their limits."""

import dataclasses

import pytest
import torch
from test_line_search import F64, METHODS, rosenbrock

import hvpopt
from hvpopt import (
    DiagonalPreconditioner,
    LineSearchNewton,
    Status,
    TorchObjective,
)
from hvpopt.krylov.diagonal import estimate_diagonal
from hvpopt.methods.method import OutOfBudget
from hvpopt.methods.points import Budget, Problem


def probed(point, n_probes):
    """A diagonal from this many products."""
    found = estimate_diagonal(point.hessian, n_probes=n_probes)
    return DiagonalPreconditioner(found.abs())


def test_builder_builds_once_and_again_when_told():
    calls = []

    def build(_, point):
        calls.append(float(point.value))
        return probed(point, 4)

    start = torch.zeros(12, dtype=F64) - 0.5
    result = hvpopt.minimize(
        rosenbrock, start, method=LineSearchNewton(preconditioner=build), max_iter=7
    )
    assert len(calls) == 1
    spent = sum(r.inner_iterations for r in result.history)
    assert result.nhev == spent + 4
    calls.clear()
    method = LineSearchNewton(preconditioner=build, refresh=3)
    result = hvpopt.minimize(rosenbrock, start, method=method, max_iter=7)
    values = [record.value for record in result.history]
    assert calls == [values[0], values[3], values[6]]


def test_building_is_within_the_product_limit():
    method = LineSearchNewton(preconditioner=lambda _, point: probed(point, 10))
    start = torch.zeros(12, dtype=F64) - 0.5
    result = hvpopt.minimize(rosenbrock, start, method=method, max_products=12)
    assert result.status is Status.MAX_PRODUCTS
    assert result.nhev == 12
    result = hvpopt.minimize(rosenbrock, start, method=method, max_products=10)
    assert result.nhev == 10
    assert result.nit == 0
    assert "preconditioner" in result.message
    problem = Problem(TorchObjective(rosenbrock), hvpopt.ModelSpace(start))
    point = problem.linearise(start, "exact")
    with pytest.raises(OutOfBudget):
        method.step(problem, point, method.start(problem), Budget(products=10))


def test_diagonal_base_saves_products_also_at_bounds(generator):
    n = 60
    weights = torch.logspace(0, 6, n, dtype=F64)
    centre = torch.randn(n, generator=generator, dtype=F64)
    loss = lambda x: (weights * (x - centre) ** 2).sum() + (x**4).sum()  # noqa: E731
    spent = {}
    for name, base in (
        ("no", None),
        ("yes", DiagonalPreconditioner(weights, damping=1e-9)),
    ):
        result = hvpopt.minimize(
            loss,
            torch.zeros(n, dtype=F64),
            lower=-0.5,
            upper=0.5,
            method=LineSearchNewton(preconditioner=base, memory=3),
            gtol=1e-7,
            max_iter=300,
        )
        assert result.success
        assert result.history[-1].active > 0
        spent[name] = sum(r.inner_iterations for r in result.history)
    assert spent["yes"] < spent["no"] / 3


def plain(value):
    """True for what can be saved: numbers, tensors, tuples and frozen dataclasses."""
    if isinstance(value, (float, int, bool, str, torch.Tensor, type(None))):
        return True
    if isinstance(value, tuple):
        return all(plain(v) for v in value)
    if not dataclasses.is_dataclass(value):
        return False
    frozen = type(value).__dataclass_params__.frozen
    return frozen and all(
        plain(getattr(value, f.name)) for f in dataclasses.fields(value)
    )


@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
def test_state_is_plain_and_bounded(generator, options):
    states = []

    class Watched(LineSearchNewton):
        def update(self, state, before, after, step):
            states.append(super().update(state, before, after, step))
            return states[-1]

    build = {"preconditioner": lambda _, point: probed(point, 3)}
    start = torch.randn(10, generator=generator, dtype=F64)
    hvpopt.minimize(rosenbrock, start, method=Watched(**options, **build), max_iter=15)
    assert len(states) > 3
    assert all(plain(state) for state in states)
    kept = states[-1].preconditioner
    assert len(kept.step_pairs) <= options.get("memory", 0)
    assert kept.base.diagonal.shape == (10,)


def test_function_that_builds_no_preconditioner_is_refused():
    method = LineSearchNewton(preconditioner=lambda *_: 3.0)
    with pytest.raises(TypeError, match="no apply"):
        hvpopt.minimize(rosenbrock, torch.zeros(4, dtype=F64), method=method)
