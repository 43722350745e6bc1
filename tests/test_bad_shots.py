"""Bad numbers and little memory: what is repeated, named, dropped or halved."""

import itertools
import warnings

import deepwave
import pytest
import torch
from waves import (
    D,
    arguments,
    models_of,
    one_thread,
    rand,
    random_step,
    relative,
    survey,
)

import hvpopt
from hvpopt.errors import BadShotError
from hvpopt.fwi import L2, Huber, Survey, WaveformMisfit
from hvpopt.fwi.hessian._groups import is_out_of_memory
from hvpopt.methods.points import Problem

__all__ = ["one_thread"]
N_SHOTS = 5
BAD = 3
ROUNDING = 1e-13
ENGINES = ("born", "double-backprop")
KINDS = ("exact", "gauss-newton")
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning"),
    # the steps of two iterations may leave models that are slow for their grid
    pytest.mark.filterwarnings("ignore:At least six grid cells:UserWarning"),
]


@pytest.fixture
def problem(generator):
    v = models_of("scalar", generator)[0]
    there = survey(n_shots=N_SHOTS)
    return there, there.simulate(1.02 * v), v, random_step((v,), generator)


class _BadSlope(torch.autograd.Function):
    """The same numbers, with a derivative that is NaN in some row."""

    @staticmethod
    def forward(ctx, data, row):
        ctx.row = row
        return data.clone()

    @staticmethod
    def backward(ctx, slope):
        slope = slope.clone()
        slope[ctx.row] = torch.nan
        return slope, None


def intercept(monkeypatch, there, faulty):
    """Send one survey's propagations through ``faulty``; encoded copies run as before."""
    for name in ("propagate", "propagate_born"):
        original = getattr(Survey, name)

        def call(self, *args, _name=name, _original=original, **kwargs):
            if self is there:
                return getattr(faulty, _name)(*args, **kwargs)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(Survey, name, call)
        setattr(faulty, f"_{name}", original.__get__(there))


class Faults:
    """Makes a survey's propagations fail, and notes which groups ran.

    Args:
        where: ``"data"``, ``"slope"`` (of data or scattered data), ``"scattered"`` or
            ``"deepwave"``.
        times: How often; None for always.
        shots: Those that fail.
    """

    def __init__(self, monkeypatch, there, where, times=None, shots=(BAD,)):
        self.where, self.left, self.shots = where, times, shots
        self.ran = []
        intercept(monkeypatch, there, self)

    def propagate(self, models, shots=None, **overrides):
        self.ran.append(shots)
        data = self._propagate(models, shots, **overrides)
        return self.spoil(data, shots, ("data", "slope"))

    def propagate_born(self, models, perturbations, shots=None):
        self.ran.append(shots)
        data, scattered, fields = self._propagate_born(models, perturbations, shots)
        data = self.spoil(data, shots, ("data",))
        scattered = self.spoil(scattered, shots, ("scattered", "slope"))
        return data, scattered, fields

    def spoil(self, data, shots, kinds):
        rows = [i for i, shot in enumerate(shots) if shot in self.shots]
        if not rows or self.left == 0 or self.where not in (*kinds, "deepwave"):
            return data
        if self.left is not None:
            self.left -= 1
        if self.where == "deepwave":
            raise deepwave.DeepwaveFloatingPointError("receiver amplitudes: 7 NaN")
        if self.where == "slope":
            return {c: _BadSlope.apply(d, rows) for c, d in data.items()}
        factor = torch.ones(len(shots), 1, 1, dtype=D)
        factor[rows] = torch.nan
        return {c: factor * d for c, d in data.items()}


def without(there, observed, shots=(BAD,), **options):
    """The misfit of a survey that never had some shots."""
    left = [s for s in range(there.n_shots) if s not in shots]
    given = arguments("scalar", there.n_shots)
    amplitudes, places = given["sources"]["u"]
    given["sources"] = {"u": (amplitudes[left], places[left])}
    given["receivers"] = {"u": given["receivers"]["u"][left]}
    return together(Survey("scalar", **given), observed[left], **options)


def together(there, observed, *args, shots_per_group=N_SHOTS, **options):
    """A misfit that runs all shots at once: a call for each takes five times as long."""
    return WaveformMisfit(
        there, observed, *args, shots_per_group=shots_per_group, **options
    )


def dropping(there, observed, *args, **options):
    return together(there, observed, *args, on_bad_shot="drop", **options)


def same(misfit, other, v, step):
    """Assert that two misfits agree in value, gradient and products."""
    assert misfit.value(v) == pytest.approx(other.value(v), rel=ROUNDING)
    (value, gradient), (wanted, slope) = (
        m.value_and_gradient(v) for m in (misfit, other)
    )
    assert value == pytest.approx(wanted, rel=ROUNDING)
    assert relative(gradient, slope) < ROUNDING
    for kind in KINDS:
        products = [m.hessian(v, kind) @ step for m in (misfit, other)]
        assert relative(*products) < 100 * ROUNDING


# -- once bad: repeated -----------------------------------------------------------------


@pytest.mark.parametrize("where", ["data", "deepwave"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_value_is_repeated_shot_by_shot(problem, monkeypatch, where, size):
    there, observed, v, _ = problem
    whole = together(there, observed).value(v)
    misfit = WaveformMisfit(there, observed, shots_per_group=size)
    faults = Faults(monkeypatch, there, where, times=1)
    assert misfit.value(v) == pytest.approx(whole, rel=ROUNDING)
    group = next(g for g in misfit.groups(v) if BAD in g)
    i = faults.ran.index(group)
    assert faults.ran[i + 1 : i + 1 + len(group)] == [[shot] for shot in group]
    assert len(faults.ran) == len(misfit.groups(v)) + len(group)
    assert misfit.counts.as_dict() == {
        "values": 1,
        "gradients": 0,
        "products": 0,
        "propagations": N_SHOTS + len(group),
    }


@pytest.mark.parametrize(("where", "times"), [("data", 1), ("slope", 1), ("slope", 2)])
def test_gradient_is_repeated(problem, monkeypatch, where, times):
    there, observed, v, _ = problem
    value, gradient = together(there, observed).value_and_gradient(v)
    misfit = WaveformMisfit(there, observed, shots_per_group=2)
    Faults(monkeypatch, there, where, times=times)
    found, slope = misfit.value_and_gradient(v)
    assert found == pytest.approx(value, rel=ROUNDING)
    assert relative(slope, gradient) < ROUNDING
    # numbers tell their group; of a gradient all groups are run again, then its shots
    extra = {("data", 1): 2, ("slope", 1): N_SHOTS, ("slope", 2): N_SHOTS + 2}
    spent = N_SHOTS + extra[where, times]
    assert misfit.counts.as_dict() == {
        "values": 0,
        "gradients": 1,
        "products": 0,
        "propagations": 2 * spent,
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [None, 1, 2])
def test_product_is_repeated(problem, monkeypatch, kind, engine, size):
    there, observed, v, step = problem
    expected = together(there, observed).hessian(v, kind) @ step
    misfit = WaveformMisfit(there, observed, engine=engine, shots_per_group=size)
    where = "scattered" if engine == "born" else "slope"
    Faults(monkeypatch, there, where, times=1)
    H = misfit.hessian(v, kind)
    assert relative(H @ step, expected) < 100 * ROUNDING
    assert H.counts.products == 1
    first = H.counts.propagations
    assert relative(H @ step, expected) < 100 * ROUNDING
    assert H.counts.propagations - first < first


# -- always bad: named ------------------------------------------------------------------


@pytest.mark.parametrize("where", ["data", "deepwave"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_value_names_the_shot(problem, monkeypatch, where, size):
    there, observed, v, _ = problem
    misfit = WaveformMisfit(there, observed, shots_per_group=size)
    faults = Faults(monkeypatch, there, where)
    with pytest.raises(BadShotError, match=f"shot {BAD}: ") as caught:
        misfit.value(v)
    assert caught.value.shots == [BAD]
    assert caught.value.parameter is None
    assert BAD in caught.value.group
    assert len(caught.value.group) <= size
    assert isinstance(caught.value, FloatingPointError)
    assert sum(BAD in group for group in faults.ran) == 2
    assert caught.value.parts == {}, "on_bad_shot=raise"
    assert misfit.counts.values == 1, "also what failed was run"


@pytest.mark.parametrize("propagator", ["scalar", "acoustic"])
def test_gradient_names_shot_and_parameter(generator, monkeypatch, propagator):
    models = models_of(propagator, generator)
    there = survey(propagator, N_SHOTS)
    observed = there.simulate(tuple(1.01 * m for m in models))
    misfit = WaveformMisfit(there, observed, shots_per_group=2)
    Faults(monkeypatch, there, "slope")
    model = models if len(models) > 1 else models[0]
    assert misfit.value(model) > 0
    with pytest.raises(
        BadShotError, match=r"gradient is not finite.*respect to"
    ) as caught:
        misfit.value_and_gradient(model)
    assert caught.value.shots == [BAD]
    assert caught.value.parameter == there.model_names[0]
    assert caught.value.group == [2, 3]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ENGINES)
def test_product_names_the_shot(problem, monkeypatch, kind, engine):
    there, observed, v, step = problem
    misfit = WaveformMisfit(there, observed, engine=engine)
    Faults(monkeypatch, there, "scattered" if engine == "born" else "slope")
    with pytest.raises(BadShotError, match="product") as caught:
        misfit.hessian(v, kind) @ step
    assert caught.value.shots == [BAD]
    assert caught.value.parameter is not None
    assert misfit.value(v) > 0


def test_a_bad_derivative_of_the_parameterisation_is_no_shots_fault(problem):
    there, observed, v, _ = problem
    model = {"v": v, "spare": torch.zeros(1, dtype=D)}
    misfit = WaveformMisfit(
        there, observed, parameterisation=lambda v, spare: v + 0 * spare.abs().sqrt()
    )
    found = Problem(misfit, hvpopt.ModelSpace(model))
    with pytest.raises(FloatingPointError, match="1 of 'spare'") as caught:
        found.linearise(found.space.to_vector(model), None)
    assert not isinstance(caught.value, BadShotError)


# -- dropped ----------------------------------------------------------------------------


@pytest.mark.parametrize("quantity", ["value", "gradient", "product"])
@pytest.mark.parametrize("misfit", ["l2", "huber", "envelope", "normalised-correlation"])
def test_without_bad_shots_is_the_survey_without_them(
    problem, monkeypatch, misfit, quantity
):
    there, observed, v, step = problem
    found = dropping(there, observed, misfit, shots_per_group=2)
    where = {"value": "data", "gradient": "slope", "product": "scattered"}[quantity]
    Faults(monkeypatch, there, where, shots=(0, BAD))
    evaluate = {
        "value": lambda: found.value(v),
        "gradient": lambda: found.value_and_gradient(v),
        "product": lambda: found.hessian(v) @ step,
    }[quantity]
    # every bad shot is found, and again: the misfit itself never changes
    for _ in range(2):
        with pytest.raises(BadShotError) as caught:
            evaluate()
        assert list(caught.value.parts) == ["shot 0", f"shot {BAD}"]
        assert caught.value.shots == [0, BAD]
    rest = found.without(caught.value.parts)
    assert rest.waveforms.shots.numbers == (1, 2, 4)
    assert (rest.name, rest.engine, rest.on_bad_shot) == ("waveforms", "auto", "drop")
    same(rest, without(there, observed, (0, BAD), misfit=misfit), v, step)
    assert float(rest(v)) == pytest.approx(rest.value(v), rel=ROUNDING)


def test_shots_keep_their_numbers_after_two_drops(problem, monkeypatch):
    there, observed, v, step = problem
    rest = dropping(there, observed).without({"shot 1": "noise"})
    faults = Faults(monkeypatch, rest.survey, "data", shots=(2,))  # shot 3 of all
    with pytest.raises(BadShotError, match="shot 3: the misfit is nan") as caught:
        rest.value(v)
    assert caught.value.parts == {"shot 3": "the misfit is nan"}
    assert faults.ran
    last = rest.without(caught.value.parts)
    same(last, without(there, observed, (1, BAD)), v, step)
    Faults(monkeypatch, last.survey, "data", shots=(2,))
    with pytest.raises(BadShotError, match="shot 4: "):
        last.value(v)
    with pytest.raises(ValueError, match=r"no shot 3; its shots are \[0, 2, 4\]"):
        last.without({"shot 3": "noise"})


def test_what_is_left_counts_in_the_whole(problem):
    there, observed, v, step = problem
    misfit = dropping(there, observed)
    rest = misfit.without({"shot 0": "noise"})
    rest.value_and_gradient(v)
    rest.hessian(v) @ step
    assert rest.counts.as_dict() == misfit.counts.as_dict()
    assert misfit.counts.propagations == (2 + 4) * (N_SHOTS - 1)


@pytest.mark.parametrize("kind", [L2, Huber])
def test_weights_by_shot_stay_with_their_shots(problem, generator, kind):
    there, observed, v, step = problem
    weights = rand((N_SHOTS, 4), generator)
    misfit = together(there, observed, kind(trace_weights=weights))
    left = [0, 1, 2, 4]
    other = without(there, observed, misfit=kind(trace_weights=weights[left]))
    same(misfit.without({f"shot {BAD}": "noise"}), other, v, step)


def test_encoded_products_are_of_the_shots_that_are_left(problem):
    there, observed, v, step = problem
    misfit = WaveformMisfit(there, observed)
    rest = misfit.without(dict.fromkeys(("shot 0", "shot 1", "shot 3"), "noise"))
    sketches = [rest.sample(1, seed=seed).hessian(v, "gauss-newton") for seed in range(8)]
    assert {H.cost for H in sketches} == {0.5}
    # of two shots there are two products, c c' = 1 and -1; their mean is the whole
    products = [H @ step for H in sketches]
    other = next(p for p in products if relative(p, products[0]) > ROUNDING)
    whole = rest.hessian(v, "gauss-newton") @ step
    assert relative((products[0] + other) / 2, whole) < 100 * ROUNDING


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("misfit", ["l2", "huber", "envelope", "normalised-correlation"])
def test_parts_of_some_shots_add_up_to_the_whole(problem, misfit, kind):
    there, observed, v, step = problem
    whole = WaveformMisfit(there, observed, misfit)
    parts = [whole.select(shots) for shots in ([4, 0], [1, 2, 3])]
    assert sum(p.value(v) for p in parts) == pytest.approx(whole.value(v), rel=ROUNDING)
    gradient = sum(p.value_and_gradient(v)[1] for p in parts)
    assert relative(gradient, whole.value_and_gradient(v)[1]) < ROUNDING
    operators = [p.hessian(v, kind) for p in parts]
    assert [H.shots for H in operators] == [[4, 0], [1, 2, 3]]
    product = sum(H @ step for H in operators)
    assert relative(product, whole.hessian(v, kind) @ step) < 100 * ROUNDING


def test_a_part_whose_shots_all_fail_names_them(problem, monkeypatch):
    there, observed, v, _ = problem
    part = dropping(there, observed).select([1, BAD])
    Faults(monkeypatch, part.survey, "data", shots=(0, 1))
    with pytest.raises(BadShotError) as caught:
        part.value(v)
    # other shots of the same sum may be good
    assert list(caught.value.parts) == ["shot 1", f"shot {BAD}"]


def test_if_every_shot_fails_none_may_be_dropped(problem, monkeypatch):
    there, observed, v, step = problem
    misfit = dropping(there, observed, shots_per_group=2)
    Faults(monkeypatch, there, "data", shots=range(N_SHOTS))
    with pytest.raises(BadShotError, match="every shot fails") as caught:
        misfit.value(v)
    assert caught.value.shots == list(range(N_SHOTS))
    assert caught.value.parts == {}
    with pytest.raises(BadShotError, match="every shot fails"):
        misfit.hessian(v) @ step


def test_encoded_shots_may_not_be_dropped(problem, monkeypatch):
    there, observed, v, step = problem
    encoded = dropping(there, observed).encode(torch.ones(2, N_SHOTS))
    Faults(monkeypatch, encoded.survey, "scattered", shots=(1,))
    with pytest.raises(BadShotError, match="encoded shot 1: ") as caught:
        encoded.hessian(v, "exact") @ step
    assert caught.value.parts == {}


def test_bad_options(problem):
    there, observed, _, _ = problem
    with pytest.raises(ValueError, match="'raise' or 'drop'"):
        WaveformMisfit(there, observed, on_bad_shot="ignore")
    misfit = WaveformMisfit(there, observed)
    with pytest.raises(ValueError, match=r"no shot 7; its shots are \[0, 1, 2, 3, 4\]"):
        misfit.without({"shot 7": "noise"})
    with pytest.raises(ValueError, match="would have no shot"):
        misfit.without({f"shot {i}": "noise" for i in range(N_SHOTS)})


# -- in a minimisation ------------------------------------------------------------------


def test_a_trial_with_a_bad_shot_is_refused(problem, monkeypatch):
    there, observed, v, _ = problem
    misfit = dropping(there, observed)
    found = Problem(misfit, hvpopt.ModelSpace(v))
    Faults(monkeypatch, there, "data")
    vector = found.space.to_vector(v)
    assert found.value(vector) == float("inf")
    assert "shot 3" in found.last_failure
    assert found.trial(vector) is None


def test_scipy_never_compares_values_of_two_sums(problem, monkeypatch):
    there, observed, v, _ = problem
    misfit = dropping(there, observed)
    bridge = hvpopt.as_scipy(misfit, v)
    value = bridge.fun(bridge.x0)
    Faults(monkeypatch, there, "data")
    for evaluate in (bridge.fun, bridge.jac):
        with pytest.raises(BadShotError, match=f"shot {BAD}: "):
            evaluate(bridge.x0 + 1.0)
    assert bridge.fun(bridge.x0) == value


def test_trial_that_fails_shortens_the_step(problem, monkeypatch):
    there, observed, v, _ = problem
    misfit = dropping(there, observed)
    seen = []

    class Method(hvpopt.QuasiNewton):
        def step(self, *args):
            faults.left = 2  # the group, and its shot alone
            seen.append(super().step(*args))
            return seen[-1]

    faults = Faults(monkeypatch, there, "data", times=0)
    result = hvpopt.minimize(misfit, v, method=Method(), max_iter=1)
    assert result.nit == 1
    assert seen[0].trials >= 2


@pytest.mark.parametrize("method", [hvpopt.QuasiNewton, hvpopt.TrustRegionNewton])
def test_inversion_equals_that_without_the_shot(problem, monkeypatch, method):
    there, observed, v, _ = problem
    expected = hvpopt.minimize(without(there, observed), v, method=method(), max_iter=2)
    misfit = dropping(there, observed)
    faults = Faults(monkeypatch, there, "data")
    with pytest.warns(RuntimeWarning) as warned:
        found = hvpopt.minimize(misfit, v, method=method(), max_iter=2)
    assert len(warned) == 1
    assert found.nit == expected.nit == 2
    # rounding of the first products is amplified by the method's own linear algebra
    assert found.fun == pytest.approx(expected.fun, rel=1e-8)
    assert relative(found.x, expected.x) < 1e-9
    # met in a group and alone at the start's value, and never again
    assert sum(BAD in (group or []) for group in faults.ran if group) == 2


def test_inversion_stops_with_the_shot_named(problem, monkeypatch):
    there, observed, v, _ = problem
    misfit = together(there, observed)

    def spoil(_, record):
        if record.iteration == 1:
            Faults(monkeypatch, there, "data")

    result = hvpopt.minimize(misfit, v, callback=spoil, max_iter=3)
    assert not result.success
    assert "shot 3" in result.message
    assert result.nit == 1


# -- memory -----------------------------------------------------------------------------

ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate"),
]


class Small:
    """A survey that holds so many shots; what a failed backward pass left lies about."""

    def __init__(self, monkeypatch, there, n_fit, error):
        self.n_fit, self.error = n_fit, error
        self.failed, self.ran = [], []
        intercept(monkeypatch, there, self)

    def propagate(self, models, shots=None, **overrides):
        self.check(models, shots)
        return self._propagate(models, shots, **overrides)

    def propagate_born(self, models, perturbations, shots=None):
        self.check([*models, *perturbations], shots)
        return self._propagate_born(models, perturbations, shots)

    def check(self, leaves, shots):
        self.ran.append(len(shots))
        if len(shots) > self.n_fit:
            self.failed.append(len(shots))
            for leaf in leaves:
                if leaf.is_leaf and leaf.requires_grad:
                    leaf.grad = torch.full_like(leaf, 7.0)
            raise self.error


@pytest.mark.parametrize(
    ("error", "n_fit", "tried"),
    [(ERRORS[0], 1, [5, 3, 2]), (ERRORS[1], 2, [5, 3]), (ERRORS[2], 3, [5])],
    ids=["MemoryError", "OutOfMemoryError", "RuntimeError"],
)
@pytest.mark.parametrize(
    ("quantity", "engine"),
    [("value", "born"), ("gradient", "born"), *itertools.product(KINDS, ENGINES)],
)
def test_groups_that_do_not_fit_are_halved(
    problem, monkeypatch, engine, quantity, n_fit, tried, error
):
    there, observed, v, step = problem
    misfit = WaveformMisfit(there, observed, engine=engine, shots_per_group=N_SHOTS)

    def run():
        if quantity == "value":
            return torch.tensor(misfit.value(v))
        if quantity == "gradient":
            return misfit.value_and_gradient(v)[1]
        return misfit.hessian(v, quantity) @ step

    expected = run()
    before = misfit.counts.snapshot()
    small = Small(monkeypatch, there, n_fit, error)
    with pytest.warns(RuntimeWarning, match="ran out of memory") as warned:
        found = run()
    assert len(warned) == len(tried)
    assert small.failed == tried
    assert relative(found, expected) < 100 * ROUNDING
    size = misfit.memory_plan.shots_per_group
    assert size == {1: 1, 2: 2, 3: 3}[n_fit]
    assert "memory ran out" in misfit.memory_plan.how
    # what ran is counted once
    assert misfit.counts.propagations - before.propagations == before.propagations
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert relative(run(), expected) < 100 * ROUNDING
    assert small.failed == tried


def test_an_operator_made_before_knows_the_new_size(problem, monkeypatch):
    there, observed, v, step = problem
    misfit = WaveformMisfit(there, observed, shots_per_group=N_SHOTS)
    H = misfit.hessian(v)
    expected = H @ step
    small = Small(monkeypatch, there, 2, ERRORS[0])
    with pytest.warns(RuntimeWarning):
        misfit.value(v)
    assert small.failed == [5, 3]
    assert relative(H @ step, expected) < 100 * ROUNDING
    assert small.failed == [5, 3]
    assert [len(group) for group in H.groups] == [2, 2, 1]


def test_one_shot_that_does_not_fit_is_an_error(problem, monkeypatch):
    there, observed, v, step = problem
    misfit = WaveformMisfit(there, observed, shots_per_group=2)
    Small(monkeypatch, there, 0, ERRORS[2])
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(MemoryError, match="shot 0 alone does not fit"),
    ):
        misfit.hessian(v) @ step
    # a shorter step needs no less memory
    found = Problem(misfit, hvpopt.ModelSpace(v))
    with pytest.raises(MemoryError, match="alone does not fit"):
        found.value(found.space.to_vector(v))


def test_other_errors_pass(problem, monkeypatch):
    there, observed, v, _ = problem
    misfit = WaveformMisfit(there, observed, shots_per_group=2)
    Small(monkeypatch, there, 1, RuntimeError("size mismatch"))
    with pytest.raises(RuntimeError, match="size mismatch"):
        misfit.value(v)
    assert not is_out_of_memory(ValueError("out of memory"))
