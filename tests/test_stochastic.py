"""StochasticQuasiNewton and the runs that take steps on samples."""

import json
import math
import os
import signal
import warnings
from dataclasses import replace
from itertools import pairwise

import distributed_worker as worker
import pytest
import torch
from samples import D, Rows, flat, rows_of
from test_distributed import run, same_bits
from tolerances import PRODUCT, SAME_INVERSION
from waves import arguments, models_of, one_thread, perturbed, rand, wavelets

import hvpopt
from hvpopt import QuasiNewton, Status, StochasticQuasiNewton
from hvpopt.errors import BadPartError, BadShotError, StateError
from hvpopt.fwi import Survey, WaveformMisfit
from hvpopt.fwi.hessian.waveforms import Waveforms
from hvpopt.methods.default import default_method
from hvpopt.methods.stochastic import falls
from hvpopt.run._checkpoint import Checkpoint, load
from hvpopt.run.signals import acknowledge

__all__ = ["one_thread", "run"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:At least six grid cells:UserWarning"),
]
#: Minima of two runs whose gradients are 1e-6 of their first ones, relative.
SAME_MINIMUM = 1e-5
WAYS = [pytest.param(True, id="encoded"), pytest.param(False, id="drawn")]


def zeros(rows):
    return torch.zeros(rows.matrix.shape[-1], dtype=D)


def whole_value(rows, model):
    """Return the value of all parts, with nothing counted."""
    there = Rows(rows.matrix, rows.data, bend=rows.bend)
    return there.value(model)


def sampled(rows, start=None, **options):
    method = options.pop("method", None) or StochasticQuasiNewton()
    start = zeros(rows) if start is None else start
    if "checkpoint" in options:
        options.setdefault("checkpoint_every", 999)  # at the end alone
    return hvpopt.minimize(rows, start, method=method, **options)


def gap(a, b):
    apart = float((flat(a) - flat(b)).norm())
    return apart / float(flat(b).norm()) if apart else 0.0


# -- samples are right on average -------------------------------------------------------


def line_of(n_shots, propagator="scalar", **options):
    """A survey of shots at different cells of the small grid's second row."""
    given = arguments(propagator, 1)
    ((channel, _),) = given["sources"].items()
    places = torch.tensor([[[2, 1 + (i * 14) // n_shots]] for i in range(n_shots)])
    given["sources"] = {channel: (wavelets(1).expand(n_shots, 1, -1).clone(), places)}
    ((channel, receivers),) = given["receivers"].items()
    given["receivers"] = {channel: receivers.repeat(n_shots, 1, 1)}
    return Survey(propagator, **{**given, **options})


def smoothness(v):
    return 1e-9 * (v.diff(dim=0).square().sum() + v.diff(dim=1).square().sum())


def sampled_sums(generator):
    """Sums that can be sampled, encoded, drawn or both, and a model of all of them."""
    (v_true,) = models_of("scalar", generator)
    few, many = line_of(3), line_of(6)
    encoded = WaveformMisfit(few, few.simulate(v_true))
    drawn = WaveformMisfit(many, many.simulate(v_true), "huber")
    other = WaveformMisfit(many, many.simulate(v_true), name="others")
    whole = hvpopt.TorchObjective(smoothness, convex=True)
    sums = {
        "encoded": encoded,
        "drawn": drawn,
        "encoded, regularised": 2.0 * encoded + whole,
        "drawn, regularised": drawn + 3.0 * whole,
        "two encoded": other + 0.5 * encoded,
        "encoded and drawn": drawn + 0.5 * encoded + whole,
    }
    (model,) = perturbed((v_true,), generator)
    return sums, model


def test_mean_of_samples_is_the_whole(generator):
    sums, model = sampled_sums(generator)
    w = rand((model.numel(),), generator, -1)

    def numbers_of(objective):
        value, gradient = objective.value_and_gradient(model)
        slope = float(gradient.reshape(-1) @ w)
        curvatures = [
            float(w @ (objective.hessian(model, kind) @ w))
            for kind in ("exact", "gauss-newton")
        ]
        return torch.tensor([value, slope, *curvatures], dtype=D)

    for name in ("drawn, regularised", "two encoded", "encoded and drawn"):
        objective = sums[name]
        whole = numbers_of(objective)
        found = torch.stack(
            [numbers_of(objective.sample(2, seed=seed)) for seed in range(16)]
        )
        mean, error = found.mean(0), found.std(0) / math.sqrt(len(found))
        assert bool((error > 0.0).all()), name
        # Student's t of 15 degrees of freedom is over 7 once in 200,000 times
        assert bool(((mean - whole).abs() <= 7.0 * error).all()), (name, mean, whole)


def test_parts_of_sums_and_what_they_cost(generator):
    sums, model = sampled_sums(generator)
    assert {name: one.n_parts for name, one in sums.items()} == {
        "encoded": 3,
        "drawn": 6,
        "encoded, regularised": 3,
        "drawn, regularised": 6,
        "two encoded": 6,
        "encoded and drawn": 6,
    }
    assert [name for name, one in sums.items() if one.encodes] == [
        "encoded",
        "encoded, regularised",
        "two encoded",
    ]
    for objective in sums.values():
        before = objective.counts.snapshot()
        objective.value_and_gradient(model)
        assert objective.cost(objective.counts - before) == 1.0
        assert objective.sample(2).gradient_propagations < objective.gradient_propagations
    plain = hvpopt.TorchObjective(smoothness)
    assert plain.cost(hvpopt.Counts(2, 3, 4)) == 0.5 * 2 + 3 + 2.0 * 4


# -- the end is that of the whole -------------------------------------------------------


@pytest.mark.parametrize("encoded", WAYS)
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_last_stage_ends_where_quasi_newton_does(generator, encoded, noise):
    rows = rows_of(generator, 40, 4, 12, encoded=encoded, noise=noise, bend=0.02)
    result = sampled(rows, max_iter=300)
    whole = hvpopt.minimize(
        Rows(rows.matrix, rows.data, bend=rows.bend),
        zeros(rows),
        method=QuasiNewton(),
        max_iter=300,
    )
    assert result.success, result.message
    assert gap(result.x, whole.x) < SAME_MINIMUM
    value = whole_value(rows, result.x)
    assert result.fun == pytest.approx(value, rel=PRODUCT)
    assert value <= whole.fun * (1 + 1e-9) + 1e-10 * whole.history[0].value
    last = [record for record in result.history if record.sample == 0]
    assert {record.stage for record in last} == {1}
    assert all(record.sample for record in result.history if record.stage == 0)
    gradient = Rows(rows.matrix, rows.data, bend=rows.bend).value_and_gradient(result.x)
    assert torch.allclose(result.jac, gradient[1], atol=1e-12)
    made = "encoded" if encoded else "drawn"
    assert f"{made} parts, since it is a sum of 40" in result.message


def test_noise_that_cannot_be_fitted_makes_samples_grow(generator):
    for encoded in (True, False):
        first = 1 if encoded else 4
        # in some a step of the first size fails, and the whole follows at once
        for _ in range(5):
            rows = rows_of(generator, encoded=encoded, noise=0.5)
            result = sampled(rows)
            sizes = [record.sample for record in result.history]
            assert result.success
            assert sizes[0] == first
            assert sizes[-1] == 0
            # they only grow, up to half of the parts
            steps = [size for size in sizes if size]
            assert steps == sorted(steps)
            assert steps[-1] <= 20
            if grown := steps[-1] > first:
                break
        assert grown


@pytest.mark.parametrize("encoded", WAYS)
def test_sample_on_which_no_step_goes_down_grows(generator, encoded):
    """The first samples refuse every model but the start; larger ones none."""

    class Narrow(Rows):
        def value_and_gradient(self, model):
            if self.n_parts <= size and bool(flat(model).any()):
                raise ValueError("this model is refused")
            return super().value_and_gradient(model)

    rows = rows_of(generator, encoded=encoded)
    size = 1 if encoded else 4
    narrow = Narrow(rows.matrix, rows.data, encoded=encoded)
    result = sampled(narrow)
    assert result.success
    assert [r.sample for r in result.history[:3]] == [size, 4 * size, 4 * size]
    zero, moved = result.history[1:3]
    assert zero.step_norm == zero.relative_step == 0.0
    assert moved.step_norm > 0.0
    assert result.counts == narrow.spent()


def test_without_noise_a_few_gradients_lower_the_whole(generator):
    """Most of the time: 7 in 100 runs keep half of it, 4 nearly all (of 400 seeds)."""
    left = []
    for _ in range(15):
        rows = rows_of(generator)
        first = whole_value(rows, zeros(rows))
        left.append(sampled(rows, max_cost=8.0).fun / first)
    assert max(left) <= 1.0
    assert sorted(left)[7] < 0.5


def test_falling_is_told_by_the_slope(generator):
    noise = torch.rand(50, generator=generator).tolist()
    down = [(1 + 0.1 * r) * 0.9**k for k, r in enumerate(noise)]
    assert falls(down)
    assert not falls(down[::-1])
    assert not falls([1.0, 1.0])
    assert not falls([0.0] * 10)


# -- limits: never success, and an honest value -----------------------------------------


def stop_in_sampling(kind, rows, **options):
    """End a run by a limit of some kind in its sampled stage."""
    evaluations = [0]

    def at(number, act):
        def count(_):
            evaluations[0] += 1
            if evaluations[0] == number:
                act()

        rows.at[0] = count

    if kind == "raised":

        def fail():
            raise LookupError("the disk is gone")

        at(60, fail)
    elif kind == "callback":
        options["callback"] = lambda _, record: record.iteration == 12
    elif kind == "seconds":
        options.update(max_seconds=1e-9)
    elif kind in ("SIGINT", "SIGTERM"):
        at(60, lambda: os.kill(os.getpid(), getattr(signal, kind)))
    else:
        options[kind] = {"max_cost": 3.0, "max_iter": 1, "max_products": 12}[kind]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    acknowledge()
    try:
        return sampled(rows, **options)
    finally:
        acknowledge()
        signal.signal(signal.SIGINT, before)
        rows.at[0] = lambda _: None


STATUSES = {
    "max_cost": Status.MAX_COST,
    "max_iter": Status.MAX_ITERATIONS,
    "max_products": Status.MAX_PRODUCTS,
    "callback": Status.CALLBACK,
    "seconds": Status.MAX_SECONDS,
    "SIGINT": Status.INTERRUPTED,
    "SIGTERM": Status.TERMINATED,
    "raised": Status.FAILED,
}


@pytest.mark.parametrize("encoded", WAYS)
@pytest.mark.parametrize("kind", STATUSES)
def test_limit_in_a_sampled_stage(generator, kind, encoded):
    if kind == "max_products" and not encoded:
        pytest.skip("drawn parts make no products after the first step")
    rows = rows_of(generator, encoded=encoded)
    result = stop_in_sampling(kind, rows)
    assert result.status is STATUSES[kind], result.message
    assert not result.success
    assert result.jac is None
    assert result.history[-1].sample > 0
    value = whole_value(rows, result.x)
    if "is an estimate" in result.message:
        assert kind in ("seconds", "SIGINT", "SIGTERM", "raised")
        values = [record.value for record in result.history]
        assert result.fun == pytest.approx(sum(values[-5:]) / len(values[-5:]))
    else:
        assert result.fun == pytest.approx(value, rel=PRODUCT)
        assert value <= whole_value(rows, zeros(rows))
    # what failed was evaluated too, but not told in time to the last record
    assert result.counts == rows.spent()
    assert "it ended before its steps on all parts" in result.message


def test_a_run_that_ends_at_its_start_knows_its_value(generator):
    rows = rows_of(generator)
    evaluations = [0]

    def count(_):
        evaluations[0] += 1
        if evaluations[0] == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    rows.at[0] = count
    acknowledge()
    result = sampled(rows)
    acknowledge()
    assert result.nit == 0
    assert torch.equal(result.x, zeros(rows))
    assert result.fun == pytest.approx(whole_value(rows, zeros(rows)), rel=PRODUCT)
    assert "estimate" not in result.message


def test_limits_are_of_samples_and_the_whole_together(generator):
    """Two passes of samples and the steps after them, and so with products."""
    rows = rows_of(generator, noise=0.5)
    full = sampled(rows)
    passes = sum(r.sample for r in full.history[1:] if r.stage == 0) // 40
    steps = [record for record in full.history if record.stage == 1][1:]
    assert passes > 0
    assert len(steps) > 4
    limited = sampled(rows_like(rows), max_iter=passes + 2)
    assert limited.status is Status.MAX_ITERATIONS
    assert [r.stage for r in limited.history].count(1) == 1 + 2
    spent = next(r.counts.products for r in full.history if r.stage == 1)
    few = sampled(rows_like(rows), max_products=spent)
    assert few.status is Status.MAX_PRODUCTS
    assert few.counts.products <= spent


def rows_like(rows, **changes):
    options = {"encoded": rows.encoded, "bend": rows.bend, "drop": rows.drop}
    return Rows(rows.matrix, rows.data, **{**options, **changes})


@pytest.mark.parametrize("encoded", WAYS)
@pytest.mark.parametrize("limit", [0.0, 1.0, 2.5, 7.0, 15.0])
def test_limit_of_cost_is_kept(generator, encoded, limit):
    rows = rows_of(generator, encoded=encoded)
    result = sampled(rows, max_cost=limit)
    assert result.status is Status.MAX_COST
    spent = rows.cost(rows.spent())
    costs = [rows.cost(record.counts) for record in result.history]
    largest = max([b - a for a, b in pairwise(costs)], default=0.0)
    assert spent <= max(limit, costs[0]) + largest + 0.5
    if limit > costs[0] + 0.5:
        assert result.nit > 0
    # no step more would have been allowed, and none was left out
    assert costs[-1] + 0.5 >= limit


def test_limit_of_cost_of_other_methods_and_of_losses_without_waves(generator):
    rows = rows_of(generator)
    result = hvpopt.minimize(rows, zeros(rows), method=QuasiNewton(), max_cost=30.0)
    assert result.status is Status.MAX_COST
    assert 30.0 <= rows.cost(result.counts) < 36.0

    def loss(x):
        return (10 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    start = torch.tensor([-1.2, 1.0] * 3, dtype=D)
    plain = hvpopt.TorchObjective(loss)
    for method in (hvpopt.TrustRegionNewton(), QuasiNewton()):
        ended = hvpopt.minimize(plain, start, method=method, max_cost=25.0)
        assert ended.status is Status.MAX_COST
        costs = [plain.cost(record.counts) for record in ended.history]
        assert costs[-2] < 25.0 <= costs[-1]


def test_samples_that_lead_astray_leave_the_start(generator):
    """What is returned is the best by whole values, of which the start is one."""

    class Astray(Rows):
        def value_and_gradient(self, model):
            value, gradient = super().value_and_gradient(model)
            # of a sample: down to a far place, with values that fall on the way there
            if self.codes is not None:
                away = flat(model) - 50.0
                return float(away @ away) + 1.0, 2.0 * away
            return value, gradient

        def value(self, model):
            if self.codes is not None:
                return self.value_and_gradient(model)[0]
            return super().value(model)

    rows = rows_of(generator)
    astray = Astray(rows.matrix, rows.data)
    result = sampled(astray, max_iter=1)
    assert result.nit > 0
    assert torch.equal(result.x, zeros(rows))
    assert result.fun == pytest.approx(whole_value(rows, zeros(rows)), rel=PRODUCT)
    # and the last stage begins there
    seen = []
    sampled(
        Astray(rows.matrix, rows.data),
        callback=lambda x, record: seen.append((record.stage, x)),
    )
    begun = next(x for stage, x in seen if stage == 1)
    assert torch.equal(begun, zeros(rows))


# -- what is counted and told -----------------------------------------------------------


@pytest.mark.parametrize("encoded", WAYS)
def test_everything_is_counted_once(generator, encoded, tmp_path, capsys):
    rows = rows_of(generator, encoded=encoded, noise=0.5)
    history = tmp_path / "history.jsonl"
    seen = []

    def callback(model, record):
        assert record.counts == rows.spent(), "told as soon as it is spent"
        seen.append((record.iteration, record.sample, model))

    result = sampled(rows, callback=callback, history_file=history, progress=True)
    assert result.success
    assert result.counts == rows.spent() == rows.counts.snapshot()
    assert [(r.iteration, r.sample) for r in result.history] == [s[:2] for s in seen]
    assert torch.equal(seen[-1][2], result.x)
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    assert [line["sample"] for line in lines] == [size for _, size, _ in seen]
    assert [line["stage"] for line in lines] == [r.stage for r in result.history]
    told = capsys.readouterr().err
    assert f"{result.nit}step" in told
    assert "loss=" in told
    # a whole value at the start and at the end of the samples; one sample's to compare
    # the loss with itself
    made = [(what, n) for what, n in rows.made if n == 40]
    gradients = sum(1 for what, _ in made if what == "gradient")
    assert gradients >= 1 + len([r for r in result.history if r.stage == 1]) - 1


def test_record_is_of_the_sample_that_it_names(generator):
    rows = rows_of(generator)
    result = sampled(rows, max_cost=3.0)
    method, space = StochasticQuasiNewton(), hvpopt.ModelSpace(zeros(rows))
    problem = hvpopt.methods.points.Problem(rows_like(rows), space)
    first = method.sample(problem, method.start(problem))
    there = first.objective.value_and_gradient(zeros(rows))
    assert result.history[0].value == there[0]
    assert result.history[0].gradient_norm == pytest.approx(float(there[1].norm()))
    assert first.objective.n_parts == result.history[0].sample == 1


# -- killed and resumed -----------------------------------------------------------------


class Killed(BaseException):
    """What no handler catches, like a kill; nothing is saved after it."""


@pytest.fixture
def unsynced(monkeypatch):
    """Hundreds of saves, without waiting for the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def killed(monkeypatch, objectives, start, path, number, *, within, **options):
    """Run until an evaluation; return the result if it is not reached.

    Args:
        monkeypatch: For the saves.
        objectives: Of which evaluations are counted together.
        start: The model.
        path: Of the checkpoint.
        number: Of the evaluation, from 1.
        within: True to save before each of the last three evaluations, so that products
            of the step under way are saved; False to save after every ninth step.
        options: Of minimize.
    """
    left = [number]

    def count(_):
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    def within_step(saver, state):
        if within and left[0] <= 3:
            saver.save(state())

    for objective in objectives:
        objective.at[0] = count
    every = 1_000_000 if within else 9
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "within_step", within_step)
        patch.setattr(Checkpoint, "finish", _finish(left))
        try:
            return hvpopt.minimize(
                objectives, start, checkpoint=path, checkpoint_every=every, **options
            )
        except Killed:
            return None


def _finish(left):
    finish = Checkpoint.finish

    def unless_killed(saver, state):
        if left[0] > 0:
            finish(saver, state)

    return unless_killed


def same(result, whole):
    """Assert that two runs are the same bit by bit, but for their seconds."""
    assert torch.equal(flat(result.x), flat(whole.x))
    assert result.fun == whole.fun
    assert result.status is whole.status
    assert result.message == whole.message
    own, expected = (
        repr([replace(record, seconds=0.0) for record in one.history])
        for one in (result, whole)
    )
    assert own == expected
    assert result.counts == whole.counts


def moments(made, n_parts):
    """Return numbers of evaluations of every kind in a run, with where they are."""
    whats = [what for what, _ in made]
    sizes = [n for _, n in made]
    whole = [k for k, n in enumerate(sizes, 1) if n == n_parts]
    larger = (k for k, n in enumerate(sizes, 1) if k > 30 and n > sizes[20])
    grown = next(larger, len(made))
    paired = [k for k, what in enumerate(whats, 1) if what == "product" and k > 20]
    later = [k for k in whole if k > 30]
    found = {2, 6, 20, *paired[:1], grown - 1, grown, *later[:3], len(made)}
    return sorted(found)


@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize("encoded", WAYS)
@pytest.mark.parametrize("within", [True, False])
def test_killed_at_any_evaluation_it_is_the_same_run(
    generator, tmp_path, monkeypatch, encoded, within
):
    """Within the measurement, a pair's product, at growth and at the change of stage."""
    rows = rows_of(generator, 12, 2, 4, encoded=encoded, noise=2.0, bend=0.02)
    start = zeros(rows)
    options = {"method": StochasticQuasiNewton(size=1), "gtol": 1e-3}
    whole = hvpopt.minimize(rows, start, **options)
    assert {record.stage for record in whole.history} == {0, 1}
    for number in moments(rows.made, 12):
        path = tmp_path / f"{number}"
        first = killed(
            monkeypatch, [rows_like(rows)], start, path, number, within=within, **options
        )
        assert first is None
        result = hvpopt.minimize(
            rows_like(rows), start, checkpoint=path, checkpoint_every=999, **options
        )
        same(result, whole)
        if within:
            assert result.resume_counts.products == 0


@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize("encoded", WAYS)
def test_killed_again_and_again_in_lists(generator, tmp_path, monkeypatch, encoded):
    """Also in the samples of a second entry, with another number of parts."""
    one = rows_of(generator, 12, 2, 4, encoded=encoded, noise=2.0, bend=0.02)
    two = rows_of(generator, 16, 2, 4, encoded=encoded, noise=2.0, bend=0.02)
    start, path = zeros(one), tmp_path / "state"
    options = {
        "method": StochasticQuasiNewton(size=1),
        "max_iter": [2, 5],
        "max_cost": 20.0,
    }
    whole = hvpopt.minimize([one, two], start, **options)
    assert {record.stage for record in whole.history} >= {0, 2}
    for session in range(40):
        pair = [rows_like(one), rows_like(two)]
        number = 12 + 7 * session
        result = killed(
            monkeypatch, pair, start, path, number, within=session % 3 > 0, **options
        )
        if result is not None:
            break
    assert session > 1
    same(result, whole)


@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize("encoded", WAYS)
def test_stopped_after_each_step_it_is_the_same_run(generator, tmp_path, encoded):
    rows = rows_of(generator, 8, 2, 4, encoded=encoded, noise=2.0)
    start, path = zeros(rows), tmp_path / "state"
    options = {"method": StochasticQuasiNewton(size=1), "max_cost": 8.0}
    whole = hvpopt.minimize(rows, start, **options)
    for _ in range(2 * len(whole.history)):
        result = hvpopt.minimize(
            rows_like(rows),
            start,
            checkpoint=path,
            callback=lambda *_: True,
            **options,
        )
        if result.status is not Status.CALLBACK:
            break
        assert result.fun == pytest.approx(whole_value(rows, result.x), rel=PRODUCT)
    same(result, whole)
    assert result.resume_counts.values > len(whole.history)


@pytest.mark.parametrize("encoded", WAYS)
@pytest.mark.parametrize("limit", [{"max_iter": 1}, {"max_cost": 2.0}, {"max_iter": 0}])
def test_a_limit_is_raised_later(generator, tmp_path, encoded, limit):
    rows = rows_of(generator, 30, 4, 10, encoded=encoded, noise=1.0)
    path = tmp_path / "state"
    whole = sampled(rows)
    first = sampled(rows_like(rows), checkpoint=path, **limit)
    assert not first.success
    assert load(path)[1].stage == 0
    same(sampled(rows_like(rows), checkpoint=path), whole)


def test_a_loss_that_fails_goes_on_from_where_it_was(generator, tmp_path):
    rows = rows_of(generator, 30, 4, 10, noise=1.0)
    whole = sampled(rows)
    path = tmp_path / "state"
    first = stop_in_sampling("raised", rows_like(rows), checkpoint=path)
    assert first.status is Status.FAILED
    same(sampled(rows_like(rows), checkpoint=path), whole)


@pytest.mark.parametrize(
    ("difference", "method"),
    [
        ("size", StochasticQuasiNewton(size=3)),
        ("memory", StochasticQuasiNewton(memory=7)),
        ("seed", StochasticQuasiNewton(seed=1)),
        ("last", StochasticQuasiNewton(last=QuasiNewton(memory=3))),
        ("method", QuasiNewton()),
    ],
)
def test_another_method_is_refused(generator, tmp_path, difference, method):
    rows = rows_of(generator)
    path = tmp_path / "state"
    sampled(rows, checkpoint=path, max_cost=2.0)
    with pytest.raises(StateError, match=difference):
        hvpopt.minimize(rows_like(rows), zeros(rows), method=method, checkpoint=path)


def test_another_sample_is_refused(generator, tmp_path):
    """In a later stage the loss is compared where the state was saved, on its sample."""
    one, two, other = (rows_of(generator, noise=0.3) for _ in range(3))
    path = tmp_path / "state"
    sampled([one, two], zeros(one), checkpoint=path, max_iter=[1, 1])
    assert load(path)[1].stage == 2
    with pytest.raises(StateError, match="the loss where stage 3 was saved"):
        sampled([one, other], zeros(one), checkpoint=path)


# -- bad parts --------------------------------------------------------------------------


@pytest.mark.parametrize("encoded", WAYS)
@pytest.mark.parametrize(
    "where", [("value",), ("gradient",), ("product",), ("value", "gradient", "product")]
)
@pytest.mark.parametrize("after", [0, 7, 40])
def test_bad_part_is_dropped(generator, encoded, where, after):
    rows = rows_of(generator, 20, 4, 8, encoded=encoded, noise=1.0, drop=True)
    evaluations = [0]

    def count(_):
        evaluations[0] += 1
        if evaluations[0] > after:
            rows.bad[3] = where

    rows.at[0] = count
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        result = sampled(rows, max_iter=300)
    assert result.success, result.message
    told = [str(w.message) for w in warned]
    if "product" in where and len(where) == 1 and not told:
        # drawn samples after the first step make no product
        assert not encoded
        return
    assert len(told) == 1
    assert "part 3 is dropped from the objective" in told[0]
    assert list(result.history[-1].dropped) == ["part 3"]
    left = [i for i in range(20) if i != 3]
    alone = Rows(rows.matrix[left], rows.data[left])
    assert result.fun == pytest.approx(alone.value(result.x), rel=1e-9)
    expected = hvpopt.minimize(alone, zeros(rows), method=QuasiNewton(), max_iter=300)
    assert gap(result.x, expected.x) < SAME_MINIMUM
    assert "dropped from the objective (part 3" in result.message
    assert result.counts == rows.spent()
    if after < 40:
        sizes = [record.sample for record in result.history if record.dropped]
        # values are of the whole alone, where no step of a sample is judged by one
        if where != ("value",):
            assert sizes[0] > 0, "samples go on without it"


@pytest.mark.parametrize("encoded", WAYS)
@pytest.mark.parametrize("where", ["value", "gradient", "product"])
def test_bad_part_that_must_not_be_dropped(generator, encoded, where):
    rows = rows_of(generator, encoded=encoded)
    rows.bad[3] = (where,)
    try:
        result = sampled(rows)
    except BadPartError as error:
        told = str(error)
    else:
        told = result.message
        # drawn samples need not meet the part before it is met by the whole, which makes
        # no product
        assert not encoded
        if where == "product":
            return
        assert not result.success
    assert "part 3" in told


@pytest.mark.parametrize("encoded", WAYS)
def test_run_that_dropped_a_part_is_resumed(generator, tmp_path, encoded):
    rows = rows_of(generator, 20, 4, 8, encoded=encoded, noise=1.0, drop=True)

    def spoil(objective, stop=None):
        def callback(_, record):
            if record.iteration == 5:
                objective.bad[3] = ("value", "gradient")
            return stop is not None and record.iteration >= stop

        return callback

    with pytest.warns(RuntimeWarning, match="part 3 is dropped"):
        whole = sampled(rows, callback=spoil(rows))
    path = tmp_path / "state"
    first = rows_like(rows)
    with pytest.warns(RuntimeWarning, match="part 3 is dropped"):
        sampled(first, callback=spoil(first, stop=20), checkpoint=path)
    again = rows_like(rows)
    again.bad[3] = ("value", "gradient")
    with warnings.catch_warnings():
        # where the samples before the stop had not met it, the part is dropped now
        warnings.simplefilter("ignore", RuntimeWarning)
        result = sampled(again, checkpoint=path)
    same(result, whole)


def test_part_that_is_bad_only_in_the_last_value_is_told(generator):
    rows = rows_of(generator, drop=True)

    def callback(*_):
        rows.bad[3] = ("value",)

    with pytest.warns(RuntimeWarning, match="part 3 is dropped"):
        result = sampled(rows, max_cost=3.0, callback=callback)
    alone = Rows(*(t[[i for i in range(40) if i != 3]] for t in (rows.matrix, rows.data)))
    assert result.fun == pytest.approx(alone.value(result.x), rel=PRODUCT)
    assert "part 3" in result.message


class SpoiltShot:
    """Makes the data of one shot NaN, and of every encoded shot; or only their slope.

    Attributes:
        begun: Whether it does.
    """

    def __init__(self, monkeypatch, number, where="data"):
        original, self.begun = Waveforms.data_loss, False

        def data_loss(waveforms, data, shots=None):
            numbers = waveforms.shots.of(shots)
            # encoded shots are of all shots until one of the twelve is dropped
            coded = waveforms.shots.unit != "shot"
            there = coded and waveforms.cost * 12 == len(waveforms.shots.numbers)
            rows = [row for row, n in enumerate(numbers) if there or n == number]
            rows = [] if coded and not there else rows
            if self.begun and rows:
                data = {c: _Spoilt.apply(d, rows, where) for c, d in data.items()}
            return original(waveforms, data, shots)

        monkeypatch.setattr(Waveforms, "data_loss", data_loss)


class _Spoilt(torch.autograd.Function):
    @staticmethod
    def forward(ctx, data, rows, where):
        ctx.rows, data = rows, data.clone()
        if where == "data":
            data[rows] = torch.nan
        return data

    @staticmethod
    def backward(ctx, slope):
        slope = slope.clone()
        slope[ctx.rows] = torch.nan
        return slope, None, None


@pytest.mark.parametrize("misfit", ["l2", "huber"])
@pytest.mark.parametrize("where", ["data", "slope"])
@pytest.mark.parametrize("after", [0, 2])
def test_bad_shot_is_named_as_in_the_survey(generator, monkeypatch, misfit, where, after):
    survey = line_of(12)
    (v_true,) = models_of("scalar", generator)
    observed = survey.simulate(v_true)
    objective = WaveformMisfit(survey, observed, misfit, on_bad_shot="drop")
    (start,) = perturbed((v_true,), generator)
    spoilt = SpoiltShot(monkeypatch, 7, where)
    spoilt.begun = after == 0

    def callback(_, record):
        spoilt.begun |= record.iteration >= after

    options = {"lower": 1500.0, "upper": 2400.0}
    with pytest.warns(RuntimeWarning, match="shot 7 is dropped") as warned:
        result = sampled(objective, start, max_iter=4, callback=callback, **options)
    assert len(warned) == 1
    assert list(result.history[-1].dropped) == ["shot 7"]
    # and may end before the limit, where their loss no longer falls
    without = [r for r in result.history if r.dropped]
    assert without[0].sample > 0, "the samples go on"
    left = objective.without({"shot 7": "bad"})
    assert result.fun == pytest.approx(left.value(result.x), rel=1e-10)
    if where == "slope" and misfit != "l2":
        return  # drawn samples need not meet it
    refusing = WaveformMisfit(survey, observed, misfit)
    with pytest.raises(BadShotError, match="shot 7"):
        sampled(refusing, start, max_iter=1, **options)


# -- models that are refused, bounds, parameters ----------------------------------------


@pytest.mark.parametrize("encoded", WAYS)
def test_step_to_a_refused_model_is_shortened(generator, encoded):
    rows = rows_of(generator, encoded=encoded)
    rows.highest[0] = 0.4
    result = sampled(rows, max_cost=8.0)
    assert result.nit > 0
    assert any(record.step_length < 1.0 for record in result.history[1:])
    assert float(result.x.max()) <= 0.4
    assert result.fun < whole_value(rows, zeros(rows))


@pytest.mark.parametrize("encoded", WAYS)
def test_model_that_the_whole_refuses_is_not_returned(generator, encoded):
    class Refusing(Rows):
        def value(self, model):
            if self.codes is None and len(self.numbers) == 40 and bool(model.any()):
                raise ValueError("refused")
            return super().value(model)

    rows = rows_of(generator, encoded=encoded)
    seen = []
    refused = Refusing(rows.matrix, rows.data, encoded=encoded)
    result = sampled(refused, max_cost=3.0, callback=lambda x, _: seen.append(x))
    assert len(seen) > 2
    assert torch.equal(result.x, zeros(rows))
    assert result.fun == whole_value(rows, zeros(rows))


@pytest.mark.parametrize("misfit", ["l2", "huber"])
def test_models_faster_than_the_survey_allows(generator, misfit):
    """Without bounds a step may leave the range of the survey: it is shortened."""
    survey = line_of(12, max_vel=2250.0)
    (v_true,) = models_of("scalar", generator)
    objective = WaveformMisfit(survey, survey.simulate(v_true), misfit)
    (start,) = perturbed((v_true,), generator, by=0.01)
    result = sampled(objective, start, max_iter=3)
    assert result.nit > 0
    assert result.status is Status.MAX_ITERATIONS, result.message
    assert float(result.x.max()) < 2250.0
    assert result.fun < objective.value(start)


@pytest.mark.parametrize("encoded", WAYS)
def test_bounds_and_mask_hold_for_every_iterate(generator, encoded):
    rows = rows_of(generator, encoded=encoded, noise=0.3)
    asked = []

    class Watching(Rows):
        def value_and_gradient(self, model):
            asked.append(model.clone())
            return super().value_and_gradient(model)

        def value(self, model):
            asked.append(model.clone())
            return super().value(model)

    watching = Watching(rows.matrix, rows.data, encoded=encoded)
    lower, upper = -0.3, torch.linspace(0.1, 0.6, 30, dtype=D)
    mask = torch.arange(30) % 7 != 0
    options = {"lower": lower, "upper": upper, "mask": mask, "scale": 0.5}
    result = sampled(watching, max_iter=300, **options)
    seen = torch.stack(asked)
    assert bool((seen >= lower).all())
    assert bool((seen <= upper).all())
    assert not bool(seen[:, ~mask].any())
    assert result.success, result.message
    assert result.history[-1].active > 0
    expected = hvpopt.minimize(
        rows_like(rows), zeros(rows), method=QuasiNewton(), max_iter=300, **options
    )
    assert gap(result.x, expected.x) < SAME_MINIMUM


def test_several_parameters_as_a_dict(generator):
    rows = rows_of(generator, noise=0.3)
    model = {
        "a": torch.zeros(2, 5, dtype=D),
        "b": torch.zeros(20, dtype=torch.float32),
    }
    result = sampled(rows, model, scale={"a": 2.0, "b": 0.5}, gtol=1e-4)
    assert result.success, result.message
    assert result.x["a"].shape == (2, 5)
    assert result.x["b"].dtype is torch.float32
    expected = hvpopt.minimize(rows_like(rows), zeros(rows), method=QuasiNewton())
    assert gap(result.x, expected.x) < 1e-3


@pytest.mark.parametrize("propagator", ["acoustic", "elastic"])
def test_waveforms_of_several_parameters(generator, propagator):
    survey = line_of(12, propagator)
    true = models_of(propagator, generator)
    objective = WaveformMisfit(survey, survey.simulate(true))
    start = perturbed(true, generator, by=0.01)
    scale = [float(t.mean()) for t in start]
    result = sampled(objective, start, max_iter=2, scale=scale, max_cost=3.0)
    assert result.nit > 0
    assert len(result.x) == len(start)
    assert result.fun == pytest.approx(objective.value(result.x), rel=1e-10)
    assert result.fun < objective.value(start)


def test_parameterisation_weights_and_single_precision(generator):
    survey = line_of(12)
    (v_true,) = models_of("scalar", generator)
    observed = survey.simulate(v_true)
    slowness = 1e3 / v_true
    cases = {
        "parameterised": WaveformMisfit(survey, observed, "l2", lambda s: 1e3 / s),
        "weighted": WaveformMisfit(
            survey,
            observed,
            hvpopt.fwi.L2(
                trace_weights=torch.linspace(0.5, 1.5, 48, dtype=D).view(12, 4)
            ),
            lambda s: 1e3 / s,
        ),
    }
    single = survey.to(dtype=torch.float32)
    cases["float32"] = WaveformMisfit(single, observed.float(), "l2", lambda s: 1e3 / s)
    assert [case.encodes for case in cases.values()] == [True, False, True]
    for name, objective in cases.items():
        (start,) = perturbed((slowness,), generator, by=0.01)
        start = start.to(objective.survey.dtype)
        # of 1e3/v between 1600 and 2200 m/s
        result = sampled(objective, start, max_iter=2, lower=0.41, upper=0.7)
        assert result.x.dtype is start.dtype
        assert result.fun < 0.9 * objective.value(start), name
        assert result.fun == pytest.approx(objective.value(result.x), rel=1e-5)


# -- lists of stages and the default ----------------------------------------------------


def test_lists_of_losses_share_nothing_but_what_was_learnt(generator):
    one = rows_of(generator, 40, 4, 10, noise=1.0)
    two = rows_of(generator, 24, 4, 10, noise=1.0)
    result = sampled([one, two], zeros(one), max_iter=[2, 300])
    assert result.success, result.message
    expected = hvpopt.minimize(rows_like(two), zeros(two), method=QuasiNewton())
    assert gap(result.x, expected.x) < SAME_MINIMUM
    stages = [record.stage for record in result.history]
    assert stages == sorted(stages)
    assert set(stages) == {0, 2, 3}, "the first entry has no steps left for the whole"
    assert result.counts == one.spent() + two.spent()
    assert sum(r.sample for r in result.history[1:] if r.stage == 0) in (80, 81)


def test_entries_that_are_the_same_objective(generator):
    rows = rows_of(generator, 40, 4, 10, noise=1.0)
    result = sampled([rows, rows], zeros(rows), max_iter=[1, 300])
    assert result.success
    assert {record.stage for record in result.history} == {0, 2, 3}
    assert result.counts == rows.spent()


def test_sampled_entry_then_one_that_cannot_be_sampled(generator):
    rows = rows_of(generator, 40, 4, 10, noise=1.0)
    few = rows_of(generator, 2, 40, 10, noise=1.0, encoded=False)
    result = sampled([rows, few], zeros(rows), max_iter=[1, 300])
    assert result.success, result.message
    expected = hvpopt.minimize(rows_like(few), zeros(few), method=QuasiNewton())
    assert gap(result.x, expected.x) < SAME_MINIMUM
    # and the other way round
    result = sampled([few, rows], zeros(rows), max_iter=[3, 300])
    assert result.success
    assert [r.sample for r in result.history][:4] == [0] * 4


def test_default_samples_where_there_are_parts_enough(generator):
    def named(n_parts, encoded):
        rows = rows_of(generator, n_parts, 1, 5, encoded=encoded)
        return type(default_method(rows)).__name__

    assert named(11, True) == named(23, False) == "QuasiNewton"
    assert named(12, True) == named(24, False) == "StochasticQuasiNewton"
    plain = hvpopt.TorchObjective(smoothness)
    assert isinstance(default_method(plain), hvpopt.TrustRegionNewton)
    rows = rows_of(generator, 40, 4, 10, noise=1.0)
    result = hvpopt.minimize(rows, zeros(rows))
    same(result, sampled(rows_like(rows)))
    assert "steps were on samples of 1" in result.message
    assert "encoded parts, since it is a sum of 40" in result.message
    few = rows_of(generator, 6)
    assert "samples" not in hvpopt.minimize(few, zeros(few)).message


def test_default_for_a_list_suits_every_entry(generator):
    many, few = rows_of(generator, noise=0.3), rows_of(generator, 15, encoded=False)
    result = hvpopt.minimize([many, few], zeros(many), max_iter=2)
    assert not any(record.sample for record in result.history)
    survey = line_of(24)
    (v,) = models_of("scalar", generator)
    observed = survey.simulate(v)
    for misfit, expected in (("l2", True), ("huber", True)):
        chosen = default_method(WaveformMisfit(survey, observed, misfit))
        assert isinstance(chosen, StochasticQuasiNewton) is expected


# -- ranks ------------------------------------------------------------------------------


@pytest.mark.parametrize("misfit", ["l2", "huber"])
def test_one_two_and_four_ranks_sample_alike(run, seed, misfit):
    alone = worker.sample(seed, misfit, shard=False)
    x, fun, status, counts, sizes = alone
    assert same_bits(worker.sample(seed, misfit), alone)
    assert set(sizes) == {2}
    assert status == "MAX_COST"
    for size in (2, 4):
        found = run("sample", size, misfit=misfit).all()
        assert all(same_bits(found[0], other) for other in found)
        assert gap(found[0][0], x) <= SAME_INVERSION
        assert abs(found[0][1] - fun) <= SAME_INVERSION * fun
        assert found[0][2:] == (status, counts, sizes)


def test_samples_have_a_part_for_each_rank(run):
    for ranks, expected in ((2, {2}), (3, {3})):
        found = run("sample", ranks, misfit="l2", parts=None).all()
        assert {sizes for *_, every in found for sizes in every} == expected


# -- the door ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"size": 0}, ValueError, "size is 0"),
        ({"size": 2.5}, (TypeError, ValueError), "size is"),
        ({"size": "many"}, TypeError, "size is"),
        ({"memory": 0}, ValueError, "memory is 0"),
        ({"memory": None}, TypeError, "memory is"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"seed": "x"}, TypeError, "seed is"),
        ({"last": hvpopt.TrustRegionNewton()}, TypeError, r"hvpopt.QuasiNewton\(...\)"),
        ({"last": QuasiNewton}, TypeError, "last is the class QuasiNewton"),
    ],
)
def test_bad_options_of_the_method(options, error, words):
    with pytest.raises(error, match=words):
        StochasticQuasiNewton(**options)


@pytest.mark.parametrize(
    ("limit", "error", "words"),
    [
        (-1.0, ValueError, "max_cost is -1"),
        (math.nan, ValueError, "max_cost is nan"),
        ("much", TypeError, "max_cost is"),
        ([1.0, 2.0], TypeError, "max_cost is"),
    ],
)
def test_bad_limits_of_cost(generator, limit, error, words):
    rows = rows_of(generator)
    with pytest.raises(error, match=words):
        sampled(rows, max_cost=limit)


def test_it_is_no_method_of_scipy():
    with pytest.raises(TypeError, match="scipy_method"):
        StochasticQuasiNewton()(None)


def test_options_are_shown_and_set():
    method = StochasticQuasiNewton(size=3, memory=7, seed=5, last=QuasiNewton(memory=9))
    assert (method.size, method.memory, method.seed) == (3, 7, 5)
    assert method.last.memory == 9


# -- what a user may come with ----------------------------------------------------------


@pytest.mark.parametrize("encoded", WAYS)
def test_start_at_the_true_model(generator, encoded):
    rows = rows_of(generator, encoded=encoded)
    decay = torch.linalg.lstsq(
        rows.matrix.reshape(-1, 30), rows.data.reshape(-1)
    ).solution
    exact = Rows(rows.matrix, rows.matrix @ decay, encoded=encoded)
    result = sampled(exact, decay)
    assert result.success, result.message
    assert gap(result.x, decay) < 1e-12
    assert exact.cost(result.counts) < 30.0


@pytest.mark.parametrize("encoded", WAYS)
def test_zero_gradient_at_the_start(generator, encoded):
    """A maximum or a saddle along every sample: nothing moves, and nothing crashes."""
    rows = rows_of(generator, encoded=encoded)
    flat_there = Rows(torch.zeros_like(rows.matrix), rows.data, encoded=encoded)
    result = sampled(flat_there, zeros(rows))
    assert torch.equal(result.x, zeros(rows))
    assert result.status in (Status.STATIONARY, Status.CONVERGED), result.message
    assert flat_there.cost(result.counts) < 60.0


def test_one_part_is_the_whole(generator):
    rows = rows_of(generator, 1, 40)
    result = sampled(rows)
    assert result.success
    assert not any(record.sample for record in result.history)
    assert "samples" not in result.message


@pytest.mark.parametrize("encoded", WAYS)
@pytest.mark.parametrize("size", [20, 21, 40, 1000])
def test_large_first_sizes(generator, encoded, size):
    rows = rows_of(generator, encoded=encoded, noise=0.3)
    method = StochasticQuasiNewton(size=size)
    result = sampled(rows, method=method, max_iter=300)
    # once in hundreds of seeds the last gain is under the loss's rounding: no proof
    assert result.success or "it may be at the rounding" in result.message
    norms = [record.gradient_norm for record in result.history]
    assert norms[-1] <= 1e-6 * max(norms)
    sizes = {record.sample for record in result.history}
    assert sizes == ({20, 0} if size == 20 else {0})


@pytest.mark.parametrize("encoded", WAYS)
@pytest.mark.parametrize("unit", [1e-150, 1e120])
def test_units_of_the_loss_change_nothing(generator, encoded, unit):
    rows = rows_of(generator, encoded=encoded, noise=0.3)
    result = sampled(rows, max_cost=3.0)
    root = 2.0 ** round(math.log2(unit) / 2)
    scaled = Rows(root * rows.matrix, root * rows.data, encoded=encoded)
    found = sampled(scaled, max_cost=3.0)
    assert found.nit == result.nit
    assert gap(found.x, result.x) < 1e-9


@pytest.mark.parametrize("encoded", WAYS)
@pytest.mark.parametrize("unit", [1e-100, 1e100])
def test_units_of_the_model_change_nothing(generator, encoded, unit):
    rows = rows_of(generator, encoded=encoded, noise=0.3)
    result = sampled(rows, max_cost=3.0)
    unit = 2.0 ** round(math.log2(unit))
    scaled = Rows(rows.matrix / unit, rows.data, encoded=encoded)
    found = sampled(scaled, max_cost=3.0)
    assert found.nit == result.nit
    assert gap(found.x / unit, result.x) < 1e-9


def test_exact_curvature_where_there_is_no_gauss_newton_matrix(generator):
    class Plain(Rows):
        has_gauss_newton = False

        def hessian(self, model, kind="exact", *, space=None):
            assert kind == "exact"
            return super().hessian(model, kind, space=space)

    for encoded in (True, False):
        rows = rows_of(generator, 20, 4, 8, encoded=encoded, noise=1.0, bend=0.02)
        plain = Plain(rows.matrix, rows.data, encoded=encoded, bend=0.02)
        result = sampled(plain, max_iter=300)
        expected = hvpopt.minimize(
            rows_like(rows), zeros(rows), method=QuasiNewton(), max_iter=300
        )
        assert result.success, result.message
        assert gap(result.x, expected.x) < SAME_MINIMUM


def test_all_cells_frozen(generator):
    rows = rows_of(generator)
    with pytest.raises(ValueError, match="free"):
        sampled(rows, mask=False)


def test_loss_that_is_random_is_refused(generator):
    class Random(Rows):
        def value(self, model):
            return super().value(model) * (1 + float(torch.rand(())))

    rows = rows_of(generator)
    with pytest.raises(ValueError, match="not deterministic"):
        sampled(Random(rows.matrix, rows.data))


def test_regulariser_without_second_derivative_goes_on_by_gradients(generator, tmp_path):
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return 1e-9 * ((x - 2000.0) ** 2).sum()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, slope):
            (x,) = ctx.saved_tensors
            return 2e-9 * (x - 2000.0) * slope

    survey = line_of(12)
    (v_true,) = models_of("scalar", generator)
    (start,) = perturbed((v_true,), generator)

    def loss():
        misfit = WaveformMisfit(survey, survey.simulate(v_true))
        return misfit + hvpopt.TorchObjective(Once.apply, convex=True)

    def run(**options):
        return hvpopt.minimize(loss(), start, lower=1500.0, upper=2400.0, **options)

    with pytest.warns(UserWarning, match="gradients alone"):
        whole = run(max_iter=4)
    assert whole.nit == 4
    assert whole.fun == pytest.approx(loss().value(whole.x), rel=1e-10)
    assert whole.fun < loss().value(start)
    assert "its steps came from gradients alone" in whole.message
    path = tmp_path / "state"
    with pytest.warns(UserWarning, match="gradients alone"):
        run(max_iter=2, checkpoint=path)
    same(run(max_iter=4, checkpoint=path), whole)


def test_own_sample_is_made_only_where_a_step_is_judged_by_it(generator):
    rows = rows_of(generator)
    made = []
    sample = rows.sample

    def noted(size, *, seed=0):
        made.append(seed)
        return sample(size, seed=seed)

    rows.sample = noted
    result = sampled(rows, max_cost=4.0)
    steps = [record for record in result.history if record.sample and record.step_norm]
    judged = sum(record.trials > 1 for record in steps)
    values = result.counts.values
    # one of each step, of each pair and of the setting up, and one where a step is judged
    pairs = len(steps) // 5
    assert len(made) <= len(steps) + pairs + 10 + judged + values


def test_analysis_is_there_after_the_import():
    assert callable(hvpopt.analysis.trace)
