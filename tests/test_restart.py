"""States saved and resumed: bit by bit the same run, and no state in a wrong problem."""

import json
import os
import stat
from dataclasses import dataclass, replace

import pytest
import torch
from on_device import DEVICE

import hvpopt
from hvpopt import Status
from hvpopt.errors import StateError
from hvpopt.krylov.diagonal import estimate_diagonal
from hvpopt.methods.forcing import ForcingState
from hvpopt.methods.method import InnerStatus
from hvpopt.operators.symmetric import MatrixOperator
from hvpopt.run import _files as files
from hvpopt.run._checkpoint import load
from hvpopt.run._saved_products import ProductLog
from hvpopt.run.signals import acknowledge
from hvpopt.run.state_tree import decode, encode, non_finite, register


def rosenbrock(x):
    return (10 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


@pytest.fixture
def start():
    return torch.tensor([-1.2, 1.0] * 5, dtype=torch.float64)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state"


def probed(hessian):
    found = estimate_diagonal(hessian, n_probes=4)
    return hvpopt.DiagonalPreconditioner(found.abs())


METHODS = {
    "trust region": hvpopt.TrustRegionNewton,
    "lanczos": hvpopt.ShiftedNewton,
    "cg": lambda: hvpopt.ShiftedNewton(solver="cg"),
    "cholesky": lambda: hvpopt.ShiftedNewton(solver="cholesky"),
    "quasi-Newton": lambda: hvpopt.QuasiNewton(refresh=7),
    "line search": lambda: hvpopt.LineSearchNewton(memory=3),
    "wolfe": lambda: hvpopt.LineSearchNewton(
        globalisation=hvpopt.Wolfe(),
        preconditioner=lambda _, point: probed(point.hessian),
        refresh=5,
    ),
}


def same(result, whole):
    """Assert that two runs are the same bit by bit, but for their seconds.

    On a GPU to rounding: sums there may be rounded by where a vector lies in memory.
    """
    if DEVICE.type != "cpu":
        torch.testing.assert_close(result.x, whole.x, rtol=1e-6, atol=1e-6)
        assert result.status is whole.status
        return
    assert torch.equal(result.x, whole.x)
    assert torch.equal(result.jac, whole.jac)
    assert result.status is whole.status
    assert result.counts == whole.counts
    own = [replace(record, seconds=0.0) for record in result.history]
    # NaN is not itself
    assert repr(own) == repr([replace(record, seconds=0.0) for record in whole.history])
    if whole.negative_curvature is not None:
        assert torch.equal(result.negative_curvature, whole.negative_curvature)


@pytest.mark.parametrize("name", METHODS)
def test_stopped_after_each_step_it_is_the_same_run(start, path, name):
    method = METHODS[name]()
    whole = hvpopt.minimize(rosenbrock, start, method=method, max_iter=40)
    result = hvpopt.minimize(
        rosenbrock,
        start,
        method=method,
        max_iter=40,
        checkpoint=path,
        callback=lambda *_: True,
    )
    sessions = 1
    while result.status is Status.CALLBACK:
        result = hvpopt.minimize(
            rosenbrock,
            start,
            method=METHODS[name](),
            max_iter=40,
            checkpoint=path,
            callback=lambda *_: True,
        )
        sessions += 1
    assert sessions >= whole.nit + 1 > 5
    same(result, whole)


@pytest.mark.parametrize("name", METHODS)
def test_stopped_after_a_few_products_it_makes_none_twice(start, path, name):
    """Every session makes a few products more, however long one step is."""
    made = {"value": 0, "gradient": 0, "product": 0}
    left = [0]

    class Counting(hvpopt.TorchObjective):
        def value(self, model):
            spend("value")
            return super().value(model)

        def value_and_gradient(self, model):
            spend("gradient")
            return super().value_and_gradient(model)

    def spend(what):
        if what == "product":
            if left[0] == 0:
                os.kill(os.getpid(), 15)
            left[0] -= 1
        made[what] += 1

    product = hvpopt.HessianOperator._product

    def counted(operator, vector):
        spend("product")
        return product(operator, vector)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hvpopt.HessianOperator, "_product", counted)
        left[0] = -1
        objective = Counting(rosenbrock)
        options = {"method": METHODS[name](), "max_iter": 12}
        whole = hvpopt.minimize(objective, start, **options)
        expected = dict(made)
        made.update(dict.fromkeys(made, 0))
        left[0], sessions = 4, 1
        result = hvpopt.minimize(objective, start, checkpoint=path, **options)
        while result.status is Status.TERMINATED:
            left[0], sessions = 3, sessions + 1
            assert sessions < 400, "no session gets any further"
            acknowledge()
            result = hvpopt.minimize(
                Counting(rosenbrock),
                start,
                method=METHODS[name](),
                max_iter=12,
                checkpoint=path,
            )
    same(result, whole)
    assert sessions > 6 or expected["product"] < 12
    assert made["product"] == expected["product"]
    # values and gradients of an interrupted step are made again, and told apart
    again = result.resume_counts
    assert made["value"] == expected["value"] + again.values


@pytest.mark.parametrize("seconds", [0.0, 60.0])
@pytest.mark.parametrize("name", METHODS)
def test_what_is_evaluated_twice_is_told_apart(start, path, name, seconds):
    """Sessions that end at any evaluation, also while saved products are given again."""
    start = start[:6]  # the number of sessions follows that of products
    left, made = [0], {"values": 0, "gradients": 0, "products": 0}

    def spend(what):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), 15)
        made[what] += what != "gradients"  # these are counted with graphs, below

    class Counting(hvpopt.TorchObjective):
        def value(self, model):
            spend("values")
            return super().value(model)

        def value_and_gradient(self, model):
            spend("gradients")
            return super().value_and_gradient(model)

    product = hvpopt.HessianOperator._product

    def counted(operator, vector):
        spend("products")
        return product(operator, vector)

    options = {"max_iter": 8, "checkpoint": path, "checkpoint_seconds": seconds}
    whole = hvpopt.minimize(rosenbrock, start, method=METHODS[name](), max_iter=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hvpopt.HessianOperator, "_product", counted)
        for session in range(200):
            # every second one ends as it begins, the others go further and further
            left[0] = 1 if session % 2 else 2 + session // 2
            objective = Counting(rosenbrock)
            result = hvpopt.minimize(objective, start, method=METHODS[name](), **options)
            made["gradients"] += objective.counts.gradients
            acknowledge()
            twice = result.resume_counts
            assert min(twice.as_dict().values()) >= 0
            assert twice.products == 0
            if result.status is not Status.TERMINATED:
                break
    assert session > 2
    same(result, whole)
    total = (result.counts + result.resume_counts).as_dict()
    assert {kind: total[kind] for kind in made} == made


def test_resuming_costs_a_value_and_a_graph_and_says_so(start, path):
    objective = hvpopt.TorchObjective(rosenbrock)
    first = hvpopt.minimize(objective, start, max_iter=4, checkpoint=path)
    assert first.resume_counts == hvpopt.Counts()
    again = hvpopt.TorchObjective(rosenbrock)
    second = hvpopt.minimize(again, start, max_iter=8, checkpoint=path)
    whole = hvpopt.minimize(rosenbrock, start, max_iter=8)
    assert second.counts == whole.counts
    assert second.resume_counts == hvpopt.Counts(values=1, gradients=1)
    spent = second.counts - first.counts + second.resume_counts
    assert again.counts == spent
    third = hvpopt.minimize(rosenbrock, start, checkpoint=path, max_iter=9)
    assert third.resume_counts == hvpopt.Counts(values=2, gradients=2)


def test_bounds_mask_and_scale_go_on(start, path):
    options = {
        "scale": torch.linspace(0.5, 2.0, 10),
        "mask": torch.arange(10) != 3,
        "lower": -1.25,
        "upper": 1.05,
    }
    whole = hvpopt.minimize(rosenbrock, start, **options)
    hvpopt.minimize(rosenbrock, start, max_iter=3, checkpoint=path, **options)
    same(hvpopt.minimize(rosenbrock, start, checkpoint=path, **options), whole)
    assert whole.x[3] == start[3]


def test_models_of_several_tensors_go_on(path):
    def loss(a, b):
        return ((a - 1) ** 4).sum() + ((b + 2) ** 2 * (1 + a.mean() ** 2)).sum()

    model = {"a": torch.zeros(2, 3, dtype=torch.float64), "b": torch.zeros(4)}
    options = {"scale": {"a": 2.0}, "upper": {"a": 0.8}}
    whole = hvpopt.minimize(loss, model, **options)
    hvpopt.minimize(loss, model, checkpoint=path, max_iter=2, **options)
    result = hvpopt.minimize(loss, model, checkpoint=path, **options)
    assert set(result.x) == {"a", "b"}
    assert all(torch.equal(result.x[name], whole.x[name]) for name in model)
    assert result.x["b"].dtype is torch.float32


def test_method_without_a_hessian_pays_for_none(start, path):
    options = {"method": hvpopt.QuasiNewton(), "max_iter": 3}
    hvpopt.minimize(rosenbrock, start, checkpoint=path, **options)
    options["max_iter"] = 5
    again = hvpopt.minimize(rosenbrock, start, checkpoint=path, **options)
    assert again.resume_counts == hvpopt.Counts(values=1)


def test_answers_to_other_questions_are_not_taken(start, path, caplog, monkeypatch):
    """A step that goes another way than it did is evaluated anew, and said so."""
    product = hvpopt.HessianOperator._product
    made = [0]

    def stopping(operator, vector):
        made[0] += 1
        if made[0] == 30:
            os.kill(os.getpid(), 15)
        return product(operator, vector)

    monkeypatch.setattr(hvpopt.HessianOperator, "_product", stopping)
    hvpopt.minimize(rosenbrock, start, checkpoint=path)
    acknowledge()
    problem, state, _ = load(path)
    assert state.products
    asked = [
        replace(saved, asked=saved.asked[:-1] + "!", product=torch.ones(10))
        for saved in state.products
    ]
    files.write(path, *encode((problem, replace(state, products=tuple(asked)))))
    result = hvpopt.minimize(rosenbrock, start, checkpoint=path)
    assert torch.equal(result.x, hvpopt.minimize(rosenbrock, start).x)
    assert f"last {len(asked)} products are made again" in caplog.text


# -- what is refused ------------------------------------------------------------


@pytest.fixture
def saved(start, path):
    hvpopt.minimize(rosenbrock, start, max_iter=3, checkpoint=path, upper=2.0)
    return path


@pytest.mark.parametrize(
    ("difference", "change"),
    [
        ("start", {"model": torch.zeros(10, dtype=torch.float64)}),
        ("parameters", {"model": torch.zeros(9, dtype=torch.float64)}),
        ("parameters", {"model": torch.tensor([-1.2, 1.0] * 5)}),
        ("upper", {"upper": 3.0}),
        ("lower", {"lower": -3.0}),
        ("scale", {"scale": 3.0}),
        ("mask", {"mask": torch.arange(10) != 4}),
        ("method", {"method": hvpopt.ShiftedNewton()}),
        ("seed", {"method": hvpopt.TrustRegionNewton(seed=1)}),
        ("forcing", {"method": hvpopt.TrustRegionNewton(tol=0.1)}),
    ],
)
def test_state_of_another_problem_is_refused_by_name(saved, start, difference, change):
    given = {"model": start, "upper": 2.0} | change
    model = given.pop("model")
    before = saved.read_bytes()
    with pytest.raises(StateError, match=f"another problem.*{difference}"):
        hvpopt.minimize(rosenbrock, model, checkpoint=saved, **given)
    assert saved.read_bytes() == before


def test_another_loss_is_refused(saved, start):
    def other(x):
        return rosenbrock(x) * 1.01

    with pytest.raises(StateError, match=r"objective: 'rosenbrock' there, 'other'"):
        hvpopt.minimize(other, start, checkpoint=saved, upper=2.0)
    other.__name__ = "rosenbrock"
    with pytest.raises(StateError, match="loss at the start"):
        hvpopt.minimize(other, start, checkpoint=saved, upper=2.0)


def test_state_of_another_version_is_refused(saved, start, monkeypatch):
    monkeypatch.setattr(files, "FORMAT", 2)
    with pytest.raises(StateError, match=r"format 1.* reads 2"):
        hvpopt.minimize(rosenbrock, start, checkpoint=saved, upper=2.0)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"checkpoint": 3}, TypeError),
        ({"checkpoint": "s", "checkpoint_every": 0}, ValueError),
        ({"checkpoint": "s", "checkpoint_seconds": -1.0}, ValueError),
        ({"checkpoint": "s", "checkpoint_seconds": float("nan")}, ValueError),
        ({"checkpoint": "/tmp"}, ValueError),
    ],
)
def test_bad_options_are_refused_at_the_door(start, options, error):
    with pytest.raises(error, match="checkpoint"):
        hvpopt.minimize(rosenbrock, start, **options)


def test_run_that_fails_at_once_leaves_no_state(start, path):
    class Broken(hvpopt.ShiftedNewton):
        def step(self, *arguments):
            raise LookupError("broken")

    with pytest.raises(LookupError):
        hvpopt.minimize(rosenbrock, start, method=Broken(), checkpoint=path)
    assert not path.exists()


def test_first_step_that_fails_leaves_the_state_of_its_products(start, path):
    method = hvpopt.TrustRegionNewton(tol=1e-10)
    whole = hvpopt.minimize(rosenbrock, start, method=method, max_iter=3)
    failing = hvpopt.TorchObjective(rosenbrock)
    hessian = failing.hessian

    def broken(*args, **kwargs):
        operator = hessian(*args, **kwargs)
        matvec = operator.matvec

        def product(vector):
            if failing.counts.products == 2:
                raise OSError("gone")
            return matvec(vector)

        operator.matvec = product
        return operator

    failing.hessian = broken
    failing.name = hvpopt.TorchObjective(rosenbrock).name
    with pytest.raises(OSError, match="gone"):
        hvpopt.minimize(failing, start, method=method, max_iter=3, checkpoint=path)
    assert len(load(path)[1].products) == 2
    found = hvpopt.minimize(rosenbrock, start, method=method, max_iter=3, checkpoint=path)
    same(found, whole)


@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
def test_memory_that_runs_out_in_saving_ends_no_run(
    start, path, monkeypatch, caplog, error
):
    def full(*_, **__):
        raise error("not enough memory")

    monkeypatch.setattr(files, "save_tensors", full)
    found = hvpopt.minimize(rosenbrock, start, max_iter=3, checkpoint=path)
    assert found.nit == 3
    assert caplog.text.count("cannot be saved") == 1
    assert list(path.parent.iterdir()) == []


def test_interrupt_in_the_last_save_loses_no_result(start, path, monkeypatch):
    write, calls = files.write, 0

    def interrupted(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 3:  # after the start, after two steps, at the end
            raise KeyboardInterrupt
        write(*args, **kwargs)

    monkeypatch.setattr(files, "write", interrupted)
    found = hvpopt.minimize(
        rosenbrock, start, max_iter=3, checkpoint=path, checkpoint_every=2
    )
    assert found.nit == 3
    assert len(load(path)[1].history) == 3


def test_state_has_the_mode_that_the_umask_gives(start, path):
    before = os.umask(0o027)
    try:
        hvpopt.minimize(rosenbrock, start, max_iter=1, checkpoint=path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_log_that_keeps_nothing_gives_what_it_has_again():
    operator = MatrixOperator(2.0 * torch.eye(3, dtype=torch.float64))
    vectors = torch.eye(3, dtype=torch.float64)
    keeping, log = ProductLog(keeps=True), ProductLog(keeps=False)
    for vector in vectors[:2]:
        keeping.wrap(operator, "a") @ vector
    log.clear(keeping.known())
    assert torch.equal(log.wrap(operator, "a") @ vectors[0], 2.0 * vectors[0])
    assert operator.counts.products == 3, "told, and not made"
    assert log.known() == keeping.known()[1:]


# -- files and trees ------------------------------------------------------------


def test_every_step_is_saved_and_the_two_last_kept(start, path):
    steps = []

    def callback(_, record):
        steps.append(len(load(path)[1].history) - 1)
        assert steps[-1] == record.iteration - record.iteration % 3
        if len(steps) > 3:
            before = load(files.previous(path))[1]
            assert len(before.history) - 1 == steps[-1] - 3

    hvpopt.minimize(
        rosenbrock, start, checkpoint=path, checkpoint_every=3, callback=callback
    )
    assert len(steps) > 9
    assert sorted(p.name for p in path.parent.iterdir()) == ["state", "state.previous"]


def test_state_is_synced_before_it_is_renamed(path, monkeypatch):
    done = []
    sync, move = os.fsync, os.replace

    def noted_sync(descriptor):
        directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        done.append("sync directory" if directory else "sync")
        sync(descriptor)

    def noted_move(source, target):
        done.append(f"to {target.name}")
        move(source, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_move)
    skeleton, tensors = encode((1.5, torch.ones(3)))
    files.write(path, skeleton, tensors)
    assert done == ["sync", "to state", "sync directory"]
    files.write(path, skeleton, tensors)
    assert done[3:] == ["sync", "to state.previous", "to state", "sync directory"]


def test_file_system_without_links_keeps_two_states(path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    for k in range(3):
        files.write(path, k, {})
    assert files.read(path)[0] == 2
    assert files.read(files.previous(path))[0] == 1


def test_trees_come_back_as_they_went(generator):
    matrix = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    tree = {
        "numbers": (1, 2.5, -0.0, float("inf"), True, None, "text", 10**30),
        "tensors": [matrix, matrix.mT, matrix[:, 1], matrix.to(torch.bfloat16)],
        "state": ForcingState(0.1 + 0.2, None),
        "status": InnerStatus.FLOOR,
        "empty": ((), [], {}),
    }
    skeleton, tensors = encode(tree)
    back = decode(json.loads(json.dumps(skeleton, allow_nan=False)), tensors)
    assert back["numbers"] == tree["numbers"]
    assert [type(n) for n in back["numbers"]] == [type(n) for n in tree["numbers"]]
    assert str(back["numbers"][2]) == "-0.0"
    for own, given in zip(back["tensors"], tree["tensors"], strict=True):
        assert torch.equal(own, given.cpu())
        assert own.dtype == given.dtype
        assert own.stride() == given.stride(), "sums run along memory"
        assert own.data_ptr() != given.data_ptr()
    for name in ("state", "status", "empty"):
        assert back[name] == tree[name]


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "hvpopt.methods.forcing.math.inf",
        "hvpopt.methods.method.Tensor",
        "hvpopt.methods.shifted.ShiftedNewton",
        "hvpopt.run.minimize.minimize",
        "hvpopt.run._files.os",
        "",
    ],
)
def test_no_state_names_another_type(name):
    with pytest.raises(StateError, match="not one that a state may hold"):
        decode({"type": name, "fields": {}}, {})
    with pytest.raises(StateError, match="not one that a state may hold"):
        decode({"enum": name, "name": "CONVERGED"}, {})


def test_no_module_is_imported_for_a_state(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("an import")

    monkeypatch.setattr("builtins.__import__", refuse)
    skeleton, tensors = encode(ForcingState(0.5))
    assert decode(skeleton, tensors) == ForcingState(0.5)


@dataclass(frozen=True)
class Mine:
    number: float


def test_types_of_ones_own_are_registered(monkeypatch):
    with pytest.raises(TypeError, match=r"state\['a'\] is a .*Mine.*register"):
        encode({"a": Mine(1.0)})
    monkeypatch.setattr("hvpopt.run.state_tree._registered", {})
    assert register(Mine) is Mine
    assert decode(*encode(Mine(2.0))) == Mine(2.0)
    with pytest.raises(TypeError, match="no dataclass"):
        register(int)


@pytest.mark.parametrize("bad", [object(), {1: 2}, {3.0}, lambda: 0, b"bytes"])
def test_what_no_state_holds_is_told(bad):
    with pytest.raises(TypeError, match=r"state\[0\]"):
        encode([bad])


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ((1.0, torch.ones(2)), ""),
        ((1.0, float("nan")), "state[1] is nan"),
        ({"a": torch.tensor([1.0, float("inf")])}, "state['a'] has 1 NaN or infinite"),
        (ForcingState(float("-inf")), "state.tol is -inf"),
        (torch.ones(3, dtype=torch.int64), ""),
    ],
)
def test_what_is_not_finite_is_found(tree, sentence):
    found = non_finite(tree)
    assert found.startswith(sentence)
    assert bool(found) == bool(sentence)


def test_skeleton_of_another_make_is_refused():
    for skeleton in (
        {"tensor": "missing"},
        {"type": "hvpopt.methods.forcing.ForcingState", "fields": {"other": 1}},
        {"enum": "hvpopt.methods.method.InnerStatus", "name": "OTHER"},
        {"unknown": 1},
    ):
        with pytest.raises(StateError):
            decode(skeleton, {})


def test_state_that_can_no_longer_be_saved_is_warned_of(start, path, caplog):
    class Odd(hvpopt.ShiftedNewton):
        def update(self, state, before, after, step):
            taken.append(1)
            return (
                object()
                if len(taken) >= 3
                else super().update(state, before, after, step)
            )

        def step(self, problem, point, state, budget):
            state = self.start(problem) if type(state) is object else state
            return super().step(problem, point, state, budget)

        escape = step

    taken = []
    result = hvpopt.minimize(rosenbrock, start, method=Odd(), checkpoint=path, max_iter=6)
    assert result.nit == 6
    assert len(caplog.records) == 1
    assert "object" in caplog.text
    assert len(load(path)[1].history) == 3
