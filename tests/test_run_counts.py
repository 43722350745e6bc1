"""Counts of runs: what failed was run too, and threads that share a loss count apart."""

import threading

import pytest
import torch
from waves import models_of, one_thread, random_step, survey

import hvpopt
from hvpopt import Counts
from hvpopt.fwi import WaveformMisfit
from hvpopt.model.counts import metered

__all__ = ["one_thread"]


def rosenbrock(x):
    return (10 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


@pytest.fixture
def start():
    return torch.tensor([-1.2, 1.0] * 5, dtype=torch.float64)


# -- what failed was run ------------------------------------------------------------


METHODS = {
    "wolfe": lambda: hvpopt.LineSearchNewton(globalisation=hvpopt.Wolfe()),
    "backtracking": hvpopt.LineSearchNewton,
    "trust region": hvpopt.TrustRegionNewton,
    "shifted": hvpopt.ShiftedNewton,
    "quasi-Newton": hvpopt.QuasiNewton,
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("how", ["overflows", "raises"])
def test_every_call_of_the_loss_is_counted(name, how):
    made = [0]

    def loss(x):
        made[0] += 1
        value = -(x**2).sum()  # unbounded below: trials grow until they fail
        if how == "raises" and float(value.detach()) < -1e6:
            raise ValueError("too far away")
        return value

    start = torch.tensor([1.0, 2.0], dtype=torch.float64)
    result = hvpopt.minimize(loss, start, method=METHODS[name](), max_iter=30)
    # a call is that of a value or of a gradient; products have their graph
    assert result.counts.values + result.counts.gradients == made[0]


def test_a_failing_term_of_a_sum_counts_in_both():
    def broken(_):
        raise ValueError("broken")

    term = hvpopt.TorchObjective(broken)
    total = hvpopt.TorchObjective(rosenbrock) + term
    x = torch.zeros(3, dtype=torch.float64)
    for evaluate in (total.value, total.value_and_gradient, total.linearise):
        with pytest.raises(ValueError, match="broken"):
            evaluate(x)
    assert total.counts == Counts(values=1, gradients=2)
    assert term.counts == Counts(values=1, gradients=2)


@pytest.mark.parametrize("engine", ["born", "double-backprop"])
def test_waves_that_ran_count_where_what_follows_fails(generator, engine):
    v = models_of("scalar", generator)[0]
    there = survey(n_shots=2)
    failing = [False]

    def l2(simulated, observed):
        if failing[0]:
            raise RuntimeError("no more")
        return (simulated - observed).square().sum()

    misfit = WaveformMisfit(
        there, there.simulate(1.02 * v), l2, engine=engine, shots_per_group=2
    )
    hessian = misfit.hessian(v)
    failing[0] = True
    for evaluate, expected in (
        (misfit.value, Counts(values=1, propagations=2)),
        (misfit.value_and_gradient, Counts(gradients=1, propagations=4)),
    ):
        before = misfit.counts.snapshot()
        with pytest.raises(RuntimeError, match="no more"):
            evaluate(v)
        assert misfit.counts - before == expected
    with pytest.raises(RuntimeError, match="no more"):
        hessian @ random_step((v,), generator)
    assert hessian.counts.products == 1
    assert hessian.counts.propagations >= 4


def test_what_deepwave_refuses_has_run_nothing(generator):
    v = models_of("scalar", generator)[0]
    there = survey(n_shots=2)
    misfit = WaveformMisfit(there, there.simulate(v))
    with pytest.raises(ValueError):  # noqa: PT011 - deepwave's words
        misfit.value(100 * v)
    assert misfit.counts.propagations == 0


# -- each run's own ------------------------------------------------------------


def solo(loss, start, **options):
    return hvpopt.minimize(loss, start, method=hvpopt.TrustRegionNewton(), **options)


def taking_turns(jobs):
    """Run jobs in threads that all are under way before any of them ends."""
    results, errors = [None] * len(jobs), []

    def run(place, job):
        try:
            results[place] = job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i, job)) for i, job in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    assert not errors
    return results


@pytest.mark.parametrize("kind", ["plain", "sum"])
def test_threads_that_share_a_loss_count_their_own(start, kind):
    meeting = threading.Barrier(2, timeout=60.0)

    def shared():
        plain = hvpopt.TorchObjective(rosenbrock)
        ridge = hvpopt.TorchObjective(lambda x: (x**2).sum(), name="ridge")
        return plain if kind == "plain" else plain + 0.01 * ridge

    def meet(_, record):
        if record.iteration in (0, 2, 4):
            meeting.wait()

    others = 0.5 * start
    alone = [solo(shared(), x) for x in (start, others)]
    assert min(result.nit for result in alone) > 4
    loss = shared()
    found = taking_turns(
        [lambda x=x: solo(loss, x, callback=meet) for x in (start, others)]
    )
    for own, expected in zip(found, alone, strict=True):
        assert torch.equal(own.x, expected.x)
        assert own.counts == expected.counts
        assert [r.counts for r in own.history] == [r.counts for r in expected.history]
    assert loss.counts == found[0].counts + found[1].counts


def test_limits_of_threads_are_their_own(start):
    loss = hvpopt.TorchObjective(rosenbrock)
    expected = solo(hvpopt.TorchObjective(rosenbrock), start)
    limit = expected.nhev + 1  # the run itself keeps to it
    spending, spent = threading.Event(), threading.Event()

    def wait(_, record):
        if record.iteration == 1:
            spending.set()
            assert spent.wait(60.0)

    def spend():
        assert spending.wait(60.0)
        with loss.hessian(start) as hessian:
            for _ in range(2 * limit):
                hessian @ torch.ones_like(start)
        spent.set()

    found, _ = taking_turns(
        [lambda: solo(loss, start, callback=wait, max_products=limit), spend]
    )
    assert found.success
    assert found.counts == expected.counts
    assert loss.counts.products == found.nhev + 2 * limit


def test_saved_runs_of_threads_keep_their_own_counts(start, tmp_path):
    loss = hvpopt.TorchObjective(rosenbrock)
    whole = solo(hvpopt.TorchObjective(rosenbrock), start)

    def run(path):
        result = solo(loss, start, checkpoint=path, max_iter=3)
        return result.counts, hvpopt.minimize(loss, start, checkpoint=path, max_iter=100)

    found = taking_turns([lambda k=k: run(tmp_path / f"state{k}") for k in range(2)])
    assert found[0][0] == found[1][0]
    for _, result in found:
        assert result.counts == whole.counts
        assert torch.equal(result.x, whole.x)


def test_a_run_in_a_callback_counts_for_itself(start):
    loss = hvpopt.TorchObjective(rosenbrock)
    expected = solo(hvpopt.TorchObjective(rosenbrock), start)
    inner = []

    def nested(_, record):
        if record.iteration == 2:
            inner.append(solo(loss, 0.5 * start))

    result = solo(loss, start, callback=nested, max_products=expected.nhev + 1)
    assert result.counts == expected.counts
    assert inner[0].counts == solo(hvpopt.TorchObjective(rosenbrock), 0.5 * start).counts
    assert loss.counts == result.counts + inner[0].counts


def test_a_tally_loses_nothing_between_threads():
    total = Counts()
    children = [total.child() for _ in range(4)]

    def work(child):
        for _ in range(2000):
            child.tally(products=1)

    taking_turns([lambda c=c: work(c) for c in children])
    assert total.products == 8000


def test_meters_are_told_of_children_and_pass_on_if_asked():
    root = Counts()
    child = root.child()
    with metered(root) as outer:
        child.tally(values=1)
        with metered(root, pass_on=True) as passing:
            child.tally(values=2)
            with metered(root) as own:
                root.tally(values=4)
    root.tally(values=8)
    assert (outer.values, passing.values, own.values, root.values) == (3, 2, 4, 15)
