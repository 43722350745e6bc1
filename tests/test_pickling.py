"""Operators that are pickled, saved and copied: the same products, or a refusal."""

import copy
import io
import pickle

import pytest
import torch
from waves import SHAPE, one_thread, survey

import hvpopt
from hvpopt.operators.symmetric import RestrictedOperator, ShiftedOperator

__all__ = ["one_thread"]

F64 = torch.float64


def quartic(x):
    return (x**4).sum()


def model():
    return torch.tensor([1.0, 2.0, 3.0], dtype=F64)


def hessian():
    return hvpopt.HessianOperator(quartic, model())


def matrix():
    rows = [[4.0, 1.0, 0.0], [1.0, 3.0, -1.0], [0.0, -1.0, 2.0]]
    return hvpopt.MatrixOperator(torch.tensor(rows, dtype=F64))


def triple(vector):
    return 3.0 * vector


def keep():
    return torch.tensor([True, False, True])


def waveform(engine, kind="exact", **options):
    acquisition = survey()
    v = torch.full(SHAPE, 1800.0, dtype=F64)
    misfit = hvpopt.fwi.WaveformMisfit(
        acquisition, acquisition.simulate(v + 50.0), engine=engine, **options
    )
    return misfit.hessian(v, kind)


def saved(operator):
    file = io.BytesIO()
    torch.save(operator, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def pickled(operator):
    return pickle.loads(pickle.dumps(operator))


COPIES = {"pickle": pickled, "torch.save": saved, "deepcopy": copy.deepcopy}
REBUILT = {
    "matrix": matrix,
    "sum": lambda: matrix() + 2.0 * matrix(),
    "shifted": lambda: ShiftedOperator(matrix(), 0.5),
    "restricted": lambda: RestrictedOperator(matrix(), keep()),
    "sum of restricted": lambda: (
        RestrictedOperator(matrix(), keep())
        + 0.5 * RestrictedOperator(ShiftedOperator(matrix(), 1.0), keep())
    ),
    "function": lambda: hvpopt.FunctionOperator(triple, 3),
    "differences": lambda: hvpopt.FiniteDifferenceHessian(quartic, model()),
    "born": lambda: waveform("born"),
    "born, Gauss-Newton": lambda: waveform("born", "gauss-newton"),
    "double backprop": lambda: waveform("double-backprop"),
    "double backprop in groups": lambda: waveform("double-backprop", shots_per_group=1),
    "double backprop, Gauss-Newton": lambda: waveform("double-backprop", "gauss-newton"),
    "sum of waves and a matrix": lambda: (
        waveform("double-backprop")
        + hvpopt.MatrixOperator(torch.eye(SHAPE[0] * SHAPE[1], dtype=F64))
    ),
}
REFUSED = {
    "hessian": hessian,
    "sum": lambda: matrix() + 2.0 * hessian(),
    "shifted": lambda: ShiftedOperator(hessian(), 0.5),
    "restricted": lambda: RestrictedOperator(hessian(), keep()),
    "sum of restricted": lambda: (
        RestrictedOperator(matrix(), keep()) + RestrictedOperator(hessian(), keep())
    ),
}


def random_vector(operator):
    g = torch.Generator().manual_seed(0)
    return torch.randn(operator.size, generator=g, dtype=F64)


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("kind", REBUILT)
@pytest.mark.parametrize("used", [False, True])
def test_copy_makes_the_same_products(kind, way, used):
    operator = REBUILT[kind]()
    vector = random_vector(operator)
    if used:
        operator @ vector
    twin = COPIES[way](operator)
    expected = operator @ vector
    assert float(expected.norm()) > 0.0
    torch.testing.assert_close(twin @ vector, expected, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("used", [False, True])
def test_what_holds_a_graph_is_refused_in_words(kind, way, used):
    operator = REFUSED[kind]()
    if used:
        operator @ random_vector(operator)
    with pytest.raises(TypeError, match="holds the autograd graph of its loss"):
        COPIES[way](operator)


def test_hessian_of_a_closure_is_refused():
    x = model().requires_grad_()
    objective = hvpopt.optim.torch_optimizer.ClosureObjective([x])
    objective.closure = lambda: quartic(x)
    with pytest.raises(TypeError, match="holds the autograd graph"):
        copy.deepcopy(objective.hessian((model(),)))


@pytest.mark.parametrize("way", COPIES)
def test_closed_hessian_stays_closed(way):
    operator = hessian()
    operator.close()
    twin = COPIES[way](operator)
    assert twin.value == operator.value
    with pytest.raises(RuntimeError, match="closed"):
        twin @ model()


@pytest.mark.parametrize("way", COPIES)
def test_dense_hessian_is_copied(way):
    dense = hvpopt.DenseHessian(hessian())
    assert torch.equal(COPIES[way](dense).matrix, dense.matrix)


@pytest.mark.parametrize("make", [hessian, lambda: waveform("double-backprop")])
def test_shallow_copy_shares_the_graph(make):
    operator = make()
    vector = random_vector(operator)
    expected = operator @ vector
    assert torch.equal(copy.copy(operator) @ vector, expected)


def test_copy_leaves_the_graph_to_the_original():
    operator = waveform("double-backprop")
    vector = random_vector(operator)
    operator @ vector
    before = operator.counts.propagations
    copy.deepcopy(operator)
    operator @ vector
    assert operator.counts.propagations - before == 10  # a product of two shots: no graph
