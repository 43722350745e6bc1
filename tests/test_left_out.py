"""Runs whose objective loses a shot on the way: what is compared, recorded and saved."""

import json
import math

import pytest
import torch
from test_bad_shots import BAD, N_SHOTS, Faults, dropping, one_thread, problem, without

import hvpopt
from hvpopt.restart.state_tree import StateError

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


def test_objective_that_has_lost_more_is_refused(problem, monkeypatch, tmp_path):
    there, observed, v, _ = problem
    path = tmp_path / "run.safetensors"
    hvpopt.minimize(dropping(there, observed), v, max_iter=1, checkpoint=path)
    misfit = dropping(there, observed)
    with pytest.warns(RuntimeWarning):
        misfit.drop({0: "too loud"})
    monkeypatch.setattr("hvpopt.restart.fingerprint.VALUE_TOLERANCE", math.inf)
    with pytest.raises(StateError, match=r"and this objective \['shot 0'\]"):
        hvpopt.resume(path, misfit)


def test_what_is_no_part_cannot_be_left_out(problem):
    there, observed, _, _ = problem
    misfit = dropping(there, observed)
    with pytest.raises(ValueError, match="not in the survey"):
        misfit.leave_out({f"shot {N_SHOTS}": "?"})
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
