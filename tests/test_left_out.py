"""Runs whose objective loses a shot on the way: what is compared, recorded and saved."""

import json
import os
import signal
import warnings

import pytest
import torch
from test_bad_shots import BAD, N_SHOTS, Faults, dropping, one_thread, problem, without

import hvpopt
from hvpopt.distributed import shard
from hvpopt.run.signals import acknowledge
from hvpopt.run.state_tree import StateError

__all__ = ["one_thread", "problem"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:At least six grid cells:UserWarning"),
]
METHODS = {
    "trust region": hvpopt.TrustRegionNewton,
    "line search": hvpopt.LineSearchNewton,
    "quasi-Newton": hvpopt.QuasiNewton,
}
NAME = f"shot {BAD}"


def spoil_after(monkeypatch, there, iteration, where="scattered"):
    """Return a callback after which a shot's scattered data, or all its data, are NaN."""

    def callback(_, record):
        if record.iteration == iteration:
            Faults(monkeypatch, there, where)

    return callback


def left_out(result):
    return [list(record.left_out) for record in result.history]


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("trust region", "data"),
        ("trust region", "scattered"),
        ("line search", "slope"),
        ("line search", "scattered"),
        ("quasi-Newton", "data"),
        ("quasi-Newton", "slope"),
    ],
)
def test_shot_that_is_bad_from_the_start(problem, monkeypatch, name, where):
    there, observed, v, _ = problem
    method = METHODS[name]
    expected = hvpopt.minimize(without(there, observed), v, method=method(), max_iter=2)
    Faults(monkeypatch, there, where)
    misfit = dropping(there, observed)
    with pytest.warns(RuntimeWarning, match=f"{NAME} is left out") as warned:
        found = hvpopt.minimize(1.0 * misfit, v, method=method(), max_iter=2)
    assert len(warned) == 1
    assert found.nit == expected.nit == 2
    assert found.fun == pytest.approx(expected.fun, rel=1e-8)
    assert left_out(found) == 3 * [[f"waveforms: {NAME}"]]
    assert f"left out of the objective (waveforms: {NAME}: " in found.message


@pytest.mark.parametrize("name", ["trust region", "line search"])
def test_product_that_meets_a_bad_shot_has_its_point_evaluated_again(
    problem, monkeypatch, name
):
    there, observed, v, _ = problem
    method = METHODS[name]
    first = hvpopt.minimize(dropping(there, observed), v, method=method(), max_iter=1)
    misfit = dropping(there, observed)
    with pytest.warns(RuntimeWarning):
        found = hvpopt.minimize(
            misfit,
            v,
            method=method(),
            max_iter=2,
            callback=spoil_after(monkeypatch, there, 1),
        )
    assert left_out(found) == [[], [NAME], [NAME]]
    alone = without(there, observed)
    expected = hvpopt.minimize(alone, first.x, method=method(), max_iter=1)
    values = [record.value for record in found.history[1:]]
    assert values == pytest.approx([r.value for r in expected.history], rel=1e-8)
    # once more than if the shot had never been there: the point it was lost at
    gradients = first.counts.gradients + expected.counts.gradients
    assert found.counts.gradients == gradients


@pytest.mark.parametrize("where", ["data", "slope"])
def test_shot_that_is_lost_where_no_product_is_made(problem, monkeypatch, where):
    """Trials drop nothing; when all have failed, the point they left is looked at."""
    there, observed, v, _ = problem
    method = hvpopt.QuasiNewton()
    misfit = dropping(there, observed)
    with pytest.warns(RuntimeWarning) as warned:
        found = hvpopt.minimize(
            misfit,
            v,
            method=method,
            max_iter=3,
            callback=spoil_after(monkeypatch, there, 1, where),
        )
    assert len(warned) == 1
    assert found.nit == 3
    assert left_out(found)[0] == []
    assert left_out(found)[2:] == [[NAME], [NAME]]
    alone = without(there, observed)
    for record, model in zip(found.history[2:], [None, found.x], strict=True):
        if model is not None:
            assert record.value == pytest.approx(alone.value(model), rel=1e-10)


def test_history_file_tells_an_iteration_again(problem, monkeypatch, tmp_path):
    there, observed, v, _ = problem
    path = tmp_path / "history.jsonl"
    with pytest.warns(RuntimeWarning):
        hvpopt.minimize(
            dropping(there, observed),
            v,
            method=hvpopt.TrustRegionNewton(),
            max_iter=2,
            callback=spoil_after(monkeypatch, there, 1),
            history_file=path,
        )
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1, 1, 2]
    assert [list(row["left_out"]) for row in rows] == [[], [], [NAME], [NAME]]
    assert rows[1]["value"] != rows[2]["value"]


@pytest.mark.parametrize("product_shots", [None, "rotating", "random"])
@pytest.mark.parametrize("stop", [1, 2])
def test_resumed_run_leaves_out_what_the_run_did(
    problem, monkeypatch, tmp_path, product_shots, stop
):
    """Also if the shot is well again: the same sum, to the last bit."""
    there, observed, v, _ = problem
    options = {
        "product_shots": product_shots,
        "shots_per_product": None if product_shots is None else 4,
    }

    def run(**more):
        with pytest.warns(RuntimeWarning), monkeypatch.context() as patch:
            return hvpopt.minimize(
                dropping(there, observed, **options),
                v,
                method=hvpopt.TrustRegionNewton(),
                callback=spoil_after(patch, there, 0),
                **more,
            )

    whole = run(max_iter=4)
    assert [NAME] in left_out(whole)
    path = tmp_path / "run.safetensors"
    stopped = run(max_iter=stop, checkpoint=path)
    assert left_out(stopped)[-1] == [NAME]
    misfit = dropping(there, observed, **options)
    with pytest.warns(RuntimeWarning) as warned:
        found = hvpopt.resume(path, misfit, method=hvpopt.TrustRegionNewton(), max_iter=4)
    assert len(warned) == 1
    assert misfit.dropped_shots == [BAD]
    assert torch.equal(found.x, whole.x)
    assert left_out(found) == left_out(whole)
    assert found.counts == whole.counts


def losing(misfit, quantity, lose, stop):
    """Let something happen before a call, and SIGTERM come in one that drops a shot.

    Args:
        misfit: To watch.
        quantity: Its method.
        lose: Given the number of the call, from 1, before it and with a half after it.
        stop: Send SIGTERM.
    """
    original, calls = getattr(misfit, quantity), 0

    def evaluate(model):
        nonlocal calls
        calls += 1
        lose(calls)
        before = misfit.dropped_shots
        found = original(model)
        lose(calls + 0.5)
        if stop and misfit.dropped_shots != before:
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    setattr(misfit, quantity, evaluate)
    return misfit


@pytest.mark.parametrize("where", ["slope", "data"])
def test_run_that_ends_as_a_shot_is_lost(problem, monkeypatch, tmp_path, where):
    """What is evaluated without it is no answer to a question about the sum with it.

    The shot is lost by the gradient at the last point; or, since it is bad in all trials
    of the second step, by the value at the point that they left.
    """
    there, observed, v, _ = problem
    path = tmp_path / "run.safetensors"
    quantity = {"slope": "value_and_gradient", "data": "value"}[where]

    def run(stop=False, resumed=False, **options):
        misfit = dropping(there, observed)
        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            # the gradients of two points, then the last; resumed, the last is left
            when = {"slope": 1 if resumed else 3, "data": 1.5 if resumed else 0}[where]

            def lose(call):
                if call == when:
                    Faults(patch, there, where)

            losing(misfit, quantity, lose, stop)
            if resumed:
                return hvpopt.resume(path, misfit, **options), misfit
            callback = None if when else spoil_after(patch, there, 1, where)
            return hvpopt.minimize(misfit, v, callback=callback, **options), misfit

    if where == "slope":
        options = {"max_iter": 2, "method": hvpopt.TrustRegionNewton(max_products=4)}
    else:
        options = {"max_iter": 3, "method": hvpopt.QuasiNewton()}
    whole, _ = run(**options)
    assert left_out(whole)[-1] == [NAME]
    stopped, misfit = run(stop=True, checkpoint=path, **options)
    assert stopped.status is hvpopt.Status.TERMINATED
    acknowledge()
    assert misfit.dropped_shots == [BAD]
    found, misfit = run(resumed=True, **options)
    assert misfit.dropped_shots == [BAD]
    assert left_out(found) == left_out(whole)
    assert torch.equal(found.x, whole.x)
    assert found.fun == pytest.approx(without(there, observed).value(found.x), rel=1e-12)


@pytest.mark.parametrize("then", ["bad at the start", "bad later"])
@pytest.mark.parametrize("now", ["bad", "well"])
def test_state_of_a_run_that_lost_a_shot_is_resumed(
    problem, monkeypatch, tmp_path, caplog, then, now
):
    there, observed, v, _ = problem
    path = tmp_path / "run.safetensors"
    with monkeypatch.context() as patch:
        callback = spoil_after(patch, there, 1, "data") if then == "bad later" else None
        if callback is None:
            Faults(patch, there, "data")
        misfit = dropping(there, observed)
        options = {"max_iter": 2, "checkpoint": path, "callback": callback}
        with pytest.warns(RuntimeWarning):
            stopped = hvpopt.minimize(misfit, v, **options)
    assert left_out(stopped)[-1] == [NAME]
    if now == "bad":
        Faults(monkeypatch, there, "data")
    misfit = dropping(there, observed)
    with pytest.warns(RuntimeWarning) as warned:
        found = hvpopt.resume(path, misfit, max_iter=4)
    assert len(warned) == 1
    assert found.nit == 4
    assert misfit.dropped_shots == [BAD]
    assert found.fun == pytest.approx(without(there, observed).value(found.x), rel=1e-12)
    told = "cannot be compared with the saved one" in caplog.text
    assert told == (then == "bad later" and now == "bad")


def test_shot_that_a_callback_loses_is_noticed(problem, monkeypatch):
    there, observed, v, _ = problem
    misfit = dropping(there, observed)

    def callback(model, record):
        if record.iteration == 1:
            Faults(monkeypatch, there, "data")
            misfit.value(model)

    with pytest.warns(RuntimeWarning):
        found = hvpopt.minimize(misfit, v, max_iter=3, callback=callback)
    assert left_out(found) == [[], [NAME], [NAME], [NAME]]
    values = [record.value for record in found.history[1:]]
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(without(there, observed).value(found.x), rel=1e-12)


def test_convergence_is_judged_by_gradients_of_one_sum(problem, monkeypatch):
    """A loud shot's gradient, hundreds of times the others', says nothing of these."""
    there, observed, v, _ = problem
    observed = observed.clone()
    observed[BAD] *= 300
    with pytest.warns(RuntimeWarning):
        found = hvpopt.minimize(
            dropping(there, observed),
            v,
            gtol=1e-2,
            max_iter=3,
            callback=spoil_after(monkeypatch, there, 1, "data"),
        )
    assert found.history[-1].gradient_norm < 1e-2 * found.history[0].gradient_norm
    assert found.status is hvpopt.Status.MAX_ITERATIONS
    assert not any(record.curvature_step for record in found.history)


@pytest.mark.parametrize("where", ["data", "scattered"])
def test_sharded_misfit_counts_what_failed_too(problem, monkeypatch, where):
    there, observed, v, _ = problem
    methods = {"data": hvpopt.QuasiNewton, "scattered": hvpopt.TrustRegionNewton}
    found = []
    for wrap in (lambda misfit: misfit, shard, lambda misfit: 1.0 * shard(misfit)):
        with monkeypatch.context() as patch, pytest.warns(RuntimeWarning):
            found.append(
                hvpopt.minimize(
                    wrap(dropping(there, observed)),
                    v,
                    method=methods[where](),
                    max_iter=2,
                    callback=spoil_after(patch, there, 1, where),
                ).counts
            )
    assert found[0] == found[1] == found[2]


def test_objective_that_has_lost_more_is_refused(problem, tmp_path):
    there, observed, v, _ = problem
    path = tmp_path / "run.safetensors"
    hvpopt.minimize(dropping(there, observed), v, max_iter=1, checkpoint=path)
    misfit = dropping(there, observed)
    with pytest.warns(RuntimeWarning):
        misfit.drop({0: "too loud"})
    with pytest.raises(StateError, match=r"leaves out \['shot 0'\], and the saved run"):
        hvpopt.resume(path, misfit)


def test_what_is_no_part_cannot_be_left_out(problem):
    there, observed, _, _ = problem
    misfit = dropping(there, observed)
    with pytest.raises(ValueError, match="not in the survey"):
        misfit.leave_out({f"shot {N_SHOTS}": "?"})
    with pytest.raises(
        ValueError, match=r"has shots to leave out, and no \['receiver 2'\]"
    ):
        misfit.leave_out({"receiver 2": "?"})
    loss = hvpopt.TorchObjective(lambda x: (x**2).sum(), name="size")
    with pytest.raises(ValueError, match="'size' has no part"):
        loss.leave_out({"shot 0": "?"})
    total = misfit + loss
    with pytest.warns(RuntimeWarning):
        total.leave_out({"waveforms: shot 1": "quiet"})
    assert misfit.why_dropped == {1: "quiet"}
    assert total.left_out == {"waveforms: shot 1": "quiet"}
    with pytest.raises(ValueError, match=r"no term of 'waveforms \+ size' has"):
        total.leave_out({"wavefronts: shot 1": "quiet"})
