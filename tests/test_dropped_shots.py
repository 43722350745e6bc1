"""Runs that drop a bad shot: what is compared, recorded and saved."""

import copy
import json
import pickle

import pytest
import torch
from test_bad_shots import BAD, N_SHOTS, Faults, dropping, one_thread, problem, without

import hvpopt
from hvpopt.distributed import shard
from hvpopt.errors import AsymmetryError, BadShotError, RankError, StateError

__all__ = ["one_thread", "problem"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:At least six grid cells:UserWarning"),
]


def quasi_newton():
    """Each of its trials meets a bad shot anew: six fail as twenty do."""
    return hvpopt.QuasiNewton(globalisation=hvpopt.Backtracking(max_trials=6))


METHODS = {
    "trust region": hvpopt.TrustRegionNewton,
    "line search": hvpopt.LineSearchNewton,
    "quasi-Newton": quasi_newton,
}
NAME = f"shot {BAD}"


def pickled(error):
    return pickle.loads(pickle.dumps(error))


def spoil_after(monkeypatch, there, iteration, where="scattered"):
    """Return a callback after which a shot's scattered data, or all its data, are NaN."""

    def callback(_, record):
        if record.iteration == iteration:
            Faults(monkeypatch, there, where)

    return callback


def dropped(result):
    return [(r.iteration, list(r.dropped)) for r in result.history]


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
    with pytest.warns(RuntimeWarning, match=f"{NAME} is dropped") as warned:
        found = hvpopt.minimize(1.0 * misfit, v, method=method(), max_iter=2)
    assert len(warned) == 1
    assert found.nit == expected.nit == 2
    assert found.fun == pytest.approx(expected.fun, rel=1e-8)
    # a bad product is met where the first point is known already
    whole = [(0, [])] if where == "scattered" else []
    assert dropped(found) == whole + [(k, [f"waveforms: {NAME}"]) for k in range(3)]
    assert f"dropped from the objective (waveforms: {NAME}: " in found.message


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
    assert dropped(found) == [(0, []), (1, []), (1, [NAME]), (2, [NAME])]
    alone = without(there, observed)
    expected = hvpopt.minimize(alone, first.x, method=method(), max_iter=1)
    values = [record.value for record in found.history[2:]]
    assert values == pytest.approx([r.value for r in expected.history], rel=1e-8)
    # once more than if the shot had never been there: the point it was lost at
    gradients = first.counts.gradients + expected.counts.gradients
    assert found.counts.gradients == gradients


@pytest.mark.parametrize("where", ["data", "slope"])
def test_shot_that_is_lost_where_no_product_is_made(problem, monkeypatch, where):
    """Trials drop nothing; when all have failed, the point they left is looked at."""
    there, observed, v, _ = problem
    method = quasi_newton()
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
    assert dropped(found)[0] == (0, [])
    assert dropped(found)[-2:] == [(2, [NAME]), (3, [NAME])]
    expected = without(there, observed).value(found.x)
    assert found.fun == pytest.approx(expected, rel=1e-10)


def test_history_file_tells_where_a_stage_begins(problem, monkeypatch, tmp_path):
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
    assert [list(row["dropped"]) for row in rows] == [[], [], [NAME], [NAME]]
    assert rows[1]["value"] != rows[2]["value"]


@pytest.mark.parametrize(
    ("method", "stop"), [("trust region", 1), ("line search", 2), ("quasi-Newton", 1)]
)
def test_resumed_run_drops_what_the_run_did(problem, monkeypatch, tmp_path, method, stop):
    """Also if the shot is well again: the same sum, to the last bit."""
    there, observed, v, _ = problem

    where = "data" if method == "quasi-Newton" else "scattered"

    def run(**more):
        with pytest.warns(RuntimeWarning), monkeypatch.context() as patch:
            return hvpopt.minimize(
                dropping(there, observed),
                v,
                method=METHODS[method](),
                callback=spoil_after(patch, there, 0, where),
                **more,
            )

    whole = run(max_iter=4)
    assert [NAME] in [left for _, left in dropped(whole)]
    path = tmp_path / "run.safetensors"
    stopped = run(max_iter=stop, checkpoint=path)
    assert dropped(stopped)[-1] == (stop, [NAME])
    misfit = dropping(there, observed)
    found = hvpopt.minimize(
        misfit, v, method=METHODS[method](), max_iter=4, checkpoint=path
    )
    assert torch.equal(found.x, whole.x)
    assert dropped(found) == dropped(whole)
    assert found.counts == whole.counts


def test_shot_that_the_gradient_at_a_new_point_meets(problem, monkeypatch):
    """The step stands, and the sum without the shot is evaluated where it ended."""
    there, observed, v, _ = problem
    misfit, calls = dropping(there, observed), 0
    evaluate = misfit.value_and_gradient

    def losing(model):
        nonlocal calls
        calls += 1
        if calls == 2:
            Faults(monkeypatch, there, "slope")
        return evaluate(model)

    misfit.value_and_gradient = losing
    with pytest.warns(RuntimeWarning):
        found = hvpopt.minimize(
            misfit, v, method=hvpopt.TrustRegionNewton(max_products=4), max_iter=2
        )
    assert dropped(found) == [(0, []), (1, [NAME]), (2, [NAME])]
    assert found.history[1].step_norm > 0
    expected = without(there, observed).value(found.x)
    assert found.fun == pytest.approx(expected, rel=1e-12)


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
        options = {"method": quasi_newton(), "max_iter": 2, "checkpoint": path}
        with pytest.warns(RuntimeWarning):
            stopped = hvpopt.minimize(misfit, v, callback=callback, **options)
    assert dropped(stopped)[-1] == (2, [NAME])
    if now == "bad":
        Faults(monkeypatch, there, "data")
    misfit = dropping(there, observed)
    found = hvpopt.minimize(misfit, v, **{**options, "max_iter": 4})
    assert found.nit == 4
    assert found.fun == pytest.approx(without(there, observed).value(found.x), rel=1e-12)
    told = "cannot be compared with the saved one" in caplog.text
    assert told == (then == "bad later" and now == "bad")


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
    methods = {"data": quasi_newton, "scattered": hvpopt.TrustRegionNewton}
    found = []
    for kind in ("misfit", "sharded", "sum"):
        misfit = dropping(there, observed)
        misfit = misfit if kind == "misfit" else shard(misfit)
        ran = there if kind == "misfit" else misfit.part.survey
        with monkeypatch.context() as patch, pytest.warns(RuntimeWarning):
            found.append(
                hvpopt.minimize(
                    1.0 * misfit if kind == "sum" else misfit,
                    v,
                    method=methods[where](),
                    max_iter=2,
                    callback=spoil_after(patch, ran, 1, where),
                ).counts
            )
    assert found[0] == found[1] == found[2]


def test_shot_that_is_bad_now_and_was_not_is_refused(problem, monkeypatch, tmp_path):
    there, observed, v, _ = problem
    path = tmp_path / "run.safetensors"
    hvpopt.minimize(dropping(there, observed), v, max_iter=1, checkpoint=path)
    Faults(monkeypatch, there, "data")
    with pytest.raises(StateError, match=rf"its start cannot be evaluated.*{NAME}"):
        hvpopt.minimize(dropping(there, observed), v, max_iter=2, checkpoint=path)


def test_two_shots_are_dropped_one_after_the_other(problem):
    """Each is named by its number in the whole survey."""
    there, observed, v, w = problem
    misfit = dropping(there, observed)
    first = misfit.without({"shot 1": "too loud"})
    second = first.without({f"shot {BAD}": "too quiet"})
    left = [k for k in range(N_SHOTS) if k not in (1, BAD)]
    alone = hvpopt.fwi.WaveformMisfit(there.select(left), observed[left])
    assert second.value(v) == pytest.approx(alone.value(v), rel=1e-12)
    assert torch.allclose(second.hessian(v) @ w, alone.hessian(v) @ w, rtol=1e-9, atol=0)
    assert misfit.counts.values == 1, "of the one that it was made of too"
    with pytest.raises(ValueError, match="has no shot 1"):
        second.without({"shot 1": "again"})


def test_what_is_no_part_cannot_be_dropped(problem):
    there, observed, v, _ = problem
    misfit = dropping(there, observed)
    for wrong in (f"shot {N_SHOTS}", "receiver 2"):
        with pytest.raises(ValueError, match=f"has no {wrong}"):
            misfit.without({wrong: "?"})
    loss = hvpopt.TorchObjective(lambda x: (x**2).sum(), name="size")
    with pytest.raises(ValueError, match="'size' has no part"):
        loss.without({"shot 0": "?"})
    total = misfit + 2.0 * loss
    other = total.without({"waveforms: shot 1": "quiet"})
    expected = misfit.without({"shot 1": "quiet"}).value(v) + 2.0 * loss.value(v)
    assert other.value(v) == pytest.approx(expected, rel=1e-12)
    assert total.counts.values == other.counts.values == 1
    with pytest.raises(ValueError, match=r"no term of 'waveforms \+ size' has"):
        total.without({"wavefronts: shot 1": "quiet"})


def test_parts_of_nested_sums_are_dropped(problem):
    there, observed, v, _ = problem
    inner = hvpopt.SumObjective([(2.0, dropping(there, observed))])
    outer = hvpopt.SumObjective([(1.0, inner)])
    parts = {f"{inner.name}: waveforms: shot 1": "quiet"}
    expected = 2.0 * dropping(there, observed).without({"shot 1": "quiet"}).value(v)
    assert outer.without(parts).value(v) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("to", [copy.copy, copy.deepcopy, pickled])
def test_errors_survive_a_copy(to):
    bad = BadShotError("value", {3: "the misfit is nan"}, may_drop=True)
    bad.within("waveforms")
    for error in (bad, RankError("gone", (1,)), AsymmetryError("no", None)):
        found = to(error)
        assert type(found) is type(error)
        assert str(found) == str(error)
        assert found.__dict__ == error.__dict__


def test_what_an_earlier_stage_dropped_is_known_in_a_later_one(
    problem, monkeypatch, tmp_path
):
    there, observed, v, _ = problem
    path = tmp_path / "run.safetensors"

    def run(**options):
        stages = [dropping(there, observed), without(there, observed)]
        options |= {"method": quasi_newton(), "max_iter": 2, "checkpoint": path}
        return hvpopt.minimize(stages, v, **options)

    spoil = spoil_after(monkeypatch, there, 1, "data")

    def callback(model, record):
        spoil(model, record)
        return record.stage == 1

    with pytest.warns(RuntimeWarning):
        stopped = run(callback=callback)
    assert [record.stage for record in stopped.history][-1] == 1
    found = run()
    assert found.nit == 4
    assert f"dropped from the objective ({NAME}: " in found.message
