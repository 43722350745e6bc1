"""Runs of several stages, each of one fixed objective."""

import json
import os

import pytest
import torch
from waves import arguments, models_of, one_thread

import hvpopt
from hvpopt import Status
from hvpopt.errors import BadPartError, StateError
from hvpopt.fwi import Survey, WaveformMisfit
from hvpopt.run._checkpoint import load
from hvpopt.run.signals import acknowledge

__all__ = ["one_thread"]
F64 = torch.float64
METHODS = {
    "trust region": hvpopt.TrustRegionNewton,
    "shifted": hvpopt.ShiftedNewton,
    "line search": hvpopt.LineSearchNewton,
    "quasi-Newton": hvpopt.QuasiNewton,
}


def rosenbrock(x):
    return (10 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def bowl_at(centre, weight=1.0):
    def bowl(x):
        return weight * ((x - centre) ** 2 * torch.arange(1.0, 7.0, dtype=x.dtype)).sum()

    return bowl


@pytest.fixture
def start():
    return torch.tensor([-1.2, 1.0] * 3, dtype=F64)


def told(result):
    return [(record.stage, record.iteration) for record in result.history]


@pytest.mark.parametrize("name", METHODS)
def test_each_stage_begins_where_the_one_before_ended(start, name):
    stages = [bowl_at(3.0), bowl_at(-1.0, 10.0), rosenbrock]
    result = hvpopt.minimize(stages, start, method=METHODS[name]())
    assert result.success, result.message
    assert torch.allclose(result.x, torch.ones(6, dtype=F64), atol=1e-4)
    first = {}
    for k, record in enumerate(result.history):
        first.setdefault(record.stage, k)
    assert list(first) == [0, 1, 2]
    for stage in (1, 2):
        before, begun = result.history[first[stage] - 1 : first[stage] + 1]
        assert begun.iteration == before.iteration
        assert begun.step_norm == 0.0
        # of another objective, at the minimum of the one before
        centre = torch.full((6,), [3.0, -1.0][stage - 1], dtype=F64)
        assert begun.value == pytest.approx(float(stages[stage](centre)), rel=1e-3)
    assert result.nit == result.history[-1].iteration == len(result.history) - 3


def test_a_list_of_one_is_the_loss_itself(start):
    alone, listed = (hvpopt.minimize(f, start) for f in (rosenbrock, [rosenbrock]))
    assert torch.equal(alone.x, listed.x)
    assert alone.counts == listed.counts
    assert alone.message == listed.message


def test_limits_of_each_stage(start):
    stages = [rosenbrock, bowl_at(3.0), rosenbrock]
    result = hvpopt.minimize(stages, start, max_iter=[2, 1, 3], gtol=[1e-6, 1e-6, 1e-12])
    assert told(result) == [(0, 0), (0, 1), (0, 2), (1, 2), (1, 3), (2, 3)] + [
        (2, k) for k in (4, 5, 6)
    ]
    assert result.status is Status.MAX_ITERATIONS
    assert result.nit == 6
    limited = hvpopt.minimize(
        stages[::2], start, method=hvpopt.TrustRegionNewton(), max_products=[5, 4]
    )
    spent = {record.stage: record.counts.products for record in limited.history}
    assert limited.status is Status.MAX_PRODUCTS
    assert spent[0] == 5
    assert 5 < limited.counts.products <= 9
    every = hvpopt.minimize(stages[::2], start, max_iter=2)
    assert told(every)[-1] == (1, 4), "one number is every stage's limit"


def test_a_wish_to_stop_ends_the_whole_run(start):
    seen = []

    def callback(_, record):
        seen.append((record.stage, record.iteration))
        return record.stage == 1

    result = hvpopt.minimize(
        [bowl_at(0.0), rosenbrock, bowl_at(1.0)], start, callback=callback
    )
    assert result.status is Status.CALLBACK
    assert "this was stage 2 of 3" in result.message
    assert seen == told(result)


def test_a_later_stage_that_fails_loses_nothing(start):
    def broken(_):
        raise LookupError("not here")

    result = hvpopt.minimize([bowl_at(2.0), broken], start)
    assert result.status is Status.FAILED
    assert "LookupError: not here" in result.message
    assert torch.allclose(result.x, torch.full((6,), 2.0, dtype=F64))
    with pytest.raises(LookupError):
        hvpopt.minimize([broken, bowl_at(2.0)], start)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_iter": [1, 2, 3]}, "max_iter has 3 entries, and there are 2 losses"),
        ({"gtol": [1e-3]}, "gtol has 1 entries"),
        ({"max_products": []}, "max_products has 0 entries"),
        ({"max_iter": [1, 2.5]}, r"max_iter is 2\.5"),
    ],
)
def test_lists_that_do_not_fit_are_refused(start, options, words):
    with pytest.raises(ValueError, match=words):
        hvpopt.minimize([rosenbrock, rosenbrock], start, **options)
    with pytest.raises(TypeError, match="max_iter is a list"):
        hvpopt.minimize(rosenbrock, start, max_iter=[1])
    with pytest.raises(ValueError, match="list of losses is empty"):
        hvpopt.minimize([], start)


@pytest.mark.parametrize("name", METHODS)
def test_stopped_after_each_step_it_is_the_same_run(start, tmp_path, name):
    def run(**options):
        return hvpopt.minimize(
            [rosenbrock, bowl_at(3.0), rosenbrock],
            start,
            method=METHODS[name](),
            max_iter=[3, 2, 5],
            **options,
        )

    whole, path = run(), tmp_path / "state"
    history = tmp_path / "history.jsonl"
    sessions = 0
    while True:
        options = {"checkpoint": path, "history_file": history}
        result = run(callback=lambda *_: True, **options)
        sessions += 1
        if result.status is not Status.CALLBACK:
            break
        assert load(path)[1].stage == result.history[-1].stage
    assert sessions > whole.nit
    assert torch.equal(result.x, whole.x)
    assert result.counts == whole.counts
    assert told(result) == told(whole)
    rows = [json.loads(line) for line in history.read_text().splitlines()]
    assert [(row["stage"], row["iteration"]) for row in rows] == told(whole)


def test_a_signal_within_a_step_of_a_later_stage(start, tmp_path, monkeypatch):
    product, made = hvpopt.HessianOperator._product, [0]
    options = {"method": hvpopt.TrustRegionNewton(tol=1e-8), "max_iter": [2, 6]}
    stages = [bowl_at(3.0), rosenbrock]
    whole = hvpopt.minimize(stages, start, **options)

    def counted(operator, vector):
        made[0] += 1
        if made[0] == whole.nhev - 3:
            os.kill(os.getpid(), 15)
        return product(operator, vector)

    monkeypatch.setattr(hvpopt.HessianOperator, "_product", counted)
    path = tmp_path / "state"
    stopped = hvpopt.minimize(stages, start, checkpoint=path, **options)
    assert stopped.status is Status.TERMINATED
    assert load(path)[1].stage == 1
    acknowledge()
    result = hvpopt.minimize(stages, start, checkpoint=path, **options)
    assert torch.equal(result.x, whole.x)
    assert result.counts == whole.counts
    assert made[0] == whole.nhev, "no product was made twice"


def test_other_stages_are_refused(start, tmp_path):
    path = tmp_path / "state"
    hvpopt.minimize([rosenbrock, bowl_at(1.0)], start, max_iter=1, checkpoint=path)
    with pytest.raises(ValueError, match="objective: 'rosenbrock, then bowl' there"):
        hvpopt.minimize([rosenbrock, rosenbrock], start, checkpoint=path)


def test_counts_are_those_of_all_stages(start):
    losses = [hvpopt.TorchObjective(f) for f in (rosenbrock, bowl_at(3.0))]
    result = hvpopt.minimize([*losses, losses[0]], start, max_iter=3)
    assert result.counts == losses[0].counts + losses[1].counts
    totals = [record.counts.gradients for record in result.history]
    assert totals == sorted(totals)


def test_what_a_stage_measured_serves_the_next(generator):
    survey = Survey("scalar", **arguments("scalar", 3))
    observed = survey.simulate(models_of("scalar", generator))
    (start,) = models_of("scalar", generator)
    whole = WaveformMisfit(survey, observed)
    result = hvpopt.minimize(
        [2.0 * whole, whole], start, lower=1550.0, upper=2250.0, max_iter=3
    )
    assert [record.stage for record in result.history] == 4 * [0] + 4 * [1]
    before, begun = result.history[3:5]
    assert begun.value == pytest.approx(0.5 * before.value, rel=1e-6)
    assert result.fun < begun.value
    # the measured diagonal and the pairs; one product tells their scale here
    assert result.counts.products == before.counts.products + 1 > 1


def test_curvature_of_another_scale_costs_one_product():
    """As many gradients as from nothing, and fewer products than to measure anew."""
    weights = torch.logspace(-1, 2, 30, dtype=F64)

    def valley(centre, scale):
        return lambda x: scale * (0.5 * weights * (x - centre) ** 2).sum()

    method = hvpopt.QuasiNewton
    first = hvpopt.minimize(valley(1.0, 1.0), torch.zeros(30, dtype=F64), method=method())
    for scale in (1e-4, 1.0, 1e4):
        stages = [valley(1.0, 1.0), valley(-2.0, scale)]
        result = hvpopt.minimize(stages, torch.zeros(30, dtype=F64), method=method())
        alone = hvpopt.minimize(stages[1], first.x, method=method())
        assert result.success
        spent = result.counts - first.counts
        assert spent.gradients <= alone.counts.gradients + 2
        assert spent.products == 1 < alone.counts.products


def test_a_later_stage_without_second_derivative_goes_on_by_gradients(start):
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return ((x - 2) ** 2).sum()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, slope):
            (x,) = ctx.saved_tensors
            return 2 * (x - 2) * slope

    with pytest.warns(UserWarning, match="gradients alone"):
        result = hvpopt.minimize([bowl_at(1.0), Once.apply], start)
    assert result.success, result.message
    assert torch.allclose(result.x, torch.full((6,), 2.0, dtype=F64), atol=1e-4)


def test_another_loss_in_a_later_stage_is_refused(start, tmp_path):
    path = tmp_path / "state"
    stages = [bowl_at(1.0), bowl_at(2.0, 3.0)]
    hvpopt.minimize(stages, start, checkpoint=path, max_iter=[3, 1])
    with pytest.raises(StateError, match=r"the loss where stage 2 was saved"):
        hvpopt.minimize([stages[0], bowl_at(5.0)], start, checkpoint=path)
    again = hvpopt.minimize(stages, start, checkpoint=path)
    assert again.success
    assert again.resume_counts.values >= 2


def test_a_later_stage_that_cannot_begin_says_so(start):
    def nowhere(x):
        return rosenbrock(x) * torch.nan

    def random(x):
        return rosenbrock(x) + torch.rand(())

    for wrong, words in ((nowhere, "the loss is nan"), (random, "not deterministic")):
        result = hvpopt.minimize([bowl_at(1.0), wrong, rosenbrock], start)
        assert result.status is Status.FAILED
        assert words in result.message
        assert "this was stage 1 of 3, and stage 2 could not begin" in result.message


def test_an_objective_that_stays_bad_ends_the_run(start):
    """Its ``without`` does not leave the bad part out, however often it is called."""

    class Stubborn(hvpopt.TorchObjective):
        def value(self, model):
            raise BadPartError("the misfit is nan", {"shot 3": "nan"})

        def without(self, parts):
            return self

    with (
        pytest.warns(RuntimeWarning, match="shot 3 is dropped"),
        pytest.raises(BadPartError, match="the misfit is nan"),
    ):
        hvpopt.minimize(Stubborn(rosenbrock), start)
