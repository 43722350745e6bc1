"""Products of several columns at once, each with model copies of its own."""

import logging

import pytest
import torch
from on_device import DEVICE
from tolerances import PRODUCT
from waves import (
    CHANNELS,
    D,
    models_of,
    one_thread,
    perturbed,
    relative,
    single,
    survey,
)

import hvpopt
from hvpopt.errors import BadShotError
from hvpopt.fwi import L2, Mute, Survey, WaveformMisfit
from hvpopt.fwi.hessian import _groups
from hvpopt.fwi.hessian._groups import FILLS_GPU, GroupRunner
from hvpopt.fwi.hessian.born import PROPAGATIONS, BornHessian

__all__ = ["one_thread"]
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")

N_COLUMNS = 5
together = pytest.mark.usefixtures("at_once")


@pytest.fixture
def at_once(monkeypatch):
    """Let columns propagate together on every device, as many as the runner says."""
    copies = property(lambda self: self._runner.copies(self._groups))
    monkeypatch.setattr(BornHessian, "columns_at_once", copies)


def columns_for(operator, generator, k=N_COLUMNS):
    return torch.randn(operator.size, k, generator=generator, dtype=D)


def one_by_one(operator, block):
    return torch.stack([operator.matvec(column) for column in block.unbind(1)], 1)


def curved(*models):
    """A map with second derivatives, between cells too."""
    return tuple(m + m.roll(1, 1).square() / (40 * m.detach().max()) for m in models)


def problem(generator, n_shots=3, propagator="scalar", **options):
    there = survey(propagator, n_shots)
    models = models_of(propagator, generator)
    start = single(perturbed(models, generator))
    misfit = WaveformMisfit(there, there.simulate(single(models)), **options)
    return misfit, start


# -- products ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["exact", "gauss-newton"])
@pytest.mark.parametrize("nonlinear", [False, True])
@pytest.mark.parametrize("propagator", CHANNELS)
@together
def test_equal_to_single_products(propagator, nonlinear, kind, generator):
    options = {"parameterisation": curved} if nonlinear else {}
    misfit, start = problem(generator, 3, propagator, shots_per_group=2, **options)
    operator = misfit.hessian(start, kind)
    assert operator.engine == "born"
    assert operator.columns_at_once == FILLS_GPU // 2
    block = columns_for(operator, generator)
    assert relative(operator @ block, one_by_one(operator, block)) < PRODUCT


@together
def test_equal_to_double_backprop(generator):
    misfit, start = problem(generator, misfit="huber", parameterisation=curved)
    operator = misfit.hessian(start)
    block = columns_for(operator, generator, 3)
    with hvpopt.HessianOperator(misfit, start) as oracle:
        assert relative(operator @ block, oracle @ block) < PRODUCT


@pytest.mark.parametrize("misfit", ["l2", "huber", "envelope", "normalised-correlation"])
@together
def test_any_misfit(misfit, generator):
    objective, start = problem(generator, misfit=misfit)
    operator = objective.hessian(start)
    block = columns_for(operator, generator)
    # products of several misfits cancel; rounding is relative to their terms
    assert relative(operator @ block, one_by_one(operator, block)) < 10 * PRODUCT


@together
def test_rows_keep_their_weights_and_mutes(generator):
    weights = torch.rand(3, 4, generator=generator, dtype=D)
    tops = 0.01 * torch.rand(3, 4, generator=generator, dtype=D)
    objective, start = problem(generator, misfit=L2(trace_weights=weights))
    for whole in (objective, objective.transformed(Mute(top=tops, taper=0.004))):
        operator = whole.hessian(start)
        block = columns_for(operator, generator)
        assert relative(operator @ block, one_by_one(operator, block)) < PRODUCT


@together
def test_samples(generator):
    whole, start = problem(generator, n_shots=4)
    for seed in range(2):
        operator = whole.sample(2, seed=seed).hessian(start)
        block = columns_for(operator, generator)
        assert relative(operator @ block, one_by_one(operator, block)) < PRODUCT


@together
def test_sums_shifts_and_restrictions_pass_blocks_on(generator, monkeypatch):
    misfit, start = problem(generator)
    objective = misfit + 1e-9 * hvpopt.Tikhonov(spacing=5.0)
    keep = torch.rand(start.numel(), generator=generator) > 0.3
    sums = objective.hessian(start)
    restricted = hvpopt.operators.symmetric.RestrictedOperator(sums + 0.5, keep)
    block = columns_for(restricted, generator)
    expected = one_by_one(restricted, block)
    calls = []
    propagate = type(misfit.survey).propagate_born

    def noted(self, models, perturbations, shots=None):
        calls.append(len(shots))
        return propagate(self, models, perturbations, shots)

    monkeypatch.setattr(type(misfit.survey), "propagate_born", noted)
    assert restricted.columns_at_once == sums.columns_at_once > 1
    before = sums.counts.snapshot()
    assert relative(restricted @ block, expected) < PRODUCT
    assert max(calls) > max(len(g) for g in misfit.hessian(start).groups)
    spent = sums.counts.snapshot() - before
    assert spent.products == N_COLUMNS
    assert spent.propagations == PROPAGATIONS * N_COLUMNS * misfit.survey.n_shots


@together
def test_dense_trace_and_diagonal(generator, seed):
    misfit, start = problem(generator, n_shots=1)
    operator = misfit.hessian(start)
    assert operator.columns_at_once == FILLS_GPU
    units = torch.eye(operator.size, dtype=D)
    dense = one_by_one(operator, units)
    assert relative(operator.to_dense(), 0.5 * (dense + dense.mT)) < PRODUCT
    found = hvpopt.analysis.trace(operator, n_products=20, seed=seed)
    assert found.n_products == 20


@together
def test_counts_and_looks(generator):
    misfit, start = problem(generator, shots_per_group=1)
    operator, looks = misfit.hessian(start), []
    operator.after = lambda: looks.append(operator.counts.products)
    operator @ columns_for(operator, generator, FILLS_GPU + 2)
    assert operator.counts.products == FILLS_GPU + 2
    assert operator.counts.propagations == PROPAGATIONS * 3 * (FILLS_GPU + 2)
    assert looks == [FILLS_GPU, FILLS_GPU + 2]


@together
def test_empty_and_single_blocks(generator):
    misfit, start = problem(generator)
    operator = misfit.hessian(start)
    assert (operator @ torch.empty(operator.size, 0, dtype=D)).shape == (operator.size, 0)
    column = columns_for(operator, generator, 1)
    assert torch.equal(operator @ column, one_by_one(operator, column))


@together
def test_wrong_blocks(generator):
    misfit, start = problem(generator)
    operator = misfit.hessian(start)
    with pytest.raises(ValueError, match="NaN or infinite"):
        operator @ torch.full((operator.size, 3), torch.nan, dtype=D)
    with pytest.raises(ValueError, match="has shape"):
        operator @ torch.ones(operator.size + 1, 3, dtype=D)
    assert operator.counts.products == 0


# -- how many ---------------------------------------------------------------------------


def test_only_a_gpu_takes_several(generator):
    misfit, start = problem(generator, n_shots=1)
    expected = FILLS_GPU if DEVICE.type == "cuda" else 1
    assert misfit.hessian(start).columns_at_once == expected


@pytest.mark.parametrize(
    ("n_shots", "size", "limit", "largest", "expected"),
    [
        (1, 1, None, None, FILLS_GPU),
        (40, 5, None, None, FILLS_GPU // 5),
        (40, 40, None, None, 1),
        (40, 5, None, 3, 1),
        (40, 5, None, 8, 1),
        (2, 2, 1e9, None, 1),
        (9, 1, 1e9, None, 1),
    ],
)
def test_copies_keep_to_the_limit(n_shots, size, limit, largest, expected):
    runner = GroupRunner(n_shots, size, limit, one_graph=False)
    runner.largest = largest
    groups = _groups.groups_of(range(n_shots), size)
    assert runner.copies(groups) == expected


# -- failures ---------------------------------------------------------------------------


@pytest.fixture
def small_device(monkeypatch):
    """Let Born passes of more rows than ``most`` run out of memory; rows that ran."""
    ran = []
    propagate = Survey.propagate_born

    def small(self, models, perturbations, shots=None):
        if len(shots) > small.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        ran.append(len(shots))
        return propagate(self, models, perturbations, shots)

    small.most, small.ran = FILLS_GPU, ran
    monkeypatch.setattr(Survey, "propagate_born", small)
    return small


@together
@pytest.mark.parametrize(("most", "left"), [(3, 1), (5, 1), (6, 2), (14, 2)])
def test_too_little_memory_runs_fewer_together(
    most, left, generator, small_device, caplog
):
    misfit, start = problem(generator, shots_per_group=3)
    operator = misfit.hessian(start)
    block = columns_for(operator, generator)
    expected = one_by_one(operator, block)
    small_device.most = most
    small_device.ran.clear()
    before = operator.counts.snapshot()
    with caplog.at_level(logging.WARNING):
        assert relative(operator @ block, expected) < PRODUCT
    assert f"from now on at most {left} run together" in caplog.text
    spent = operator.counts.snapshot() - before
    assert spent.products == N_COLUMNS
    assert spent.propagations == PROPAGATIONS * sum(small_device.ran)
    assert sum(small_device.ran) == N_COLUMNS * misfit.survey.n_shots
    assert operator.columns_at_once == left


@together
def test_a_block_that_does_not_fit_changes_no_group_of_shots(generator, small_device):
    misfit, start = problem(generator, n_shots=7, shots_per_group=7)
    small_device.most = 7
    sample = misfit.sample(1).hessian(start)
    block = columns_for(sample, generator, FILLS_GPU)
    expected = one_by_one(sample, block)
    small_device.ran.clear()
    assert relative(sample @ block, expected) < PRODUCT
    assert small_device.ran == [4, 4, 4, 4]
    assert misfit.hessian(start).groups == [list(range(7))]


@together
def test_bad_shots_are_named(generator, monkeypatch):
    misfit, start = problem(generator)
    operator = misfit.hessian(start)
    propagate = type(misfit.survey).propagate_born

    def broken(self, models, perturbations, shots=None):
        data, scattered, fields = propagate(self, models, perturbations, shots)
        bad = torch.tensor([float("nan") if s == 1 else 1.0 for s in shots]).to(start)
        scattered = {c: d * bad[:, None, None] for c, d in scattered.items()}
        return data, scattered, fields

    monkeypatch.setattr(type(misfit.survey), "propagate_born", broken)
    with pytest.raises(BadShotError) as error:
        operator @ columns_for(operator, generator)
    assert error.value.shots == [1]


@together
def test_other_errors_are_raised_as_they_are(generator, monkeypatch):
    misfit, start = problem(generator)
    operator = misfit.hessian(start)

    def broken(*_):
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(type(misfit.survey), "propagate_born", broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        operator @ columns_for(operator, generator)
