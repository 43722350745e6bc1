"""Shot groups, samples of shots, and memory limits."""

import pytest
import torch
from on_device import cpu_only
from waves import CHANNELS, D, models_of, one_thread, random_step, relative, survey

import hvpopt
from hvpopt import checks
from hvpopt.fwi import Survey, WaveformMisfit
from hvpopt.fwi.hessian import _groups
from hvpopt.fwi.hessian._engine import _plan_product
from hvpopt.fwi.hessian._groups import groups_of
from hvpopt.fwi.hessian.memory import HEADROOM, PeakMemory, plan_memory

__all__ = ["one_thread"]
N_SHOTS = 5
ROUNDING = 1e-14


@pytest.fixture
def problem(generator):
    v = models_of("scalar", generator)[0]
    there = survey(n_shots=N_SHOTS)
    return there, there.simulate(1.02 * v), v, random_step((v,), generator)


# -- groups -----------------------------------------------------------------------------


@pytest.mark.parametrize("misfit", ["l2", "huber", "envelope", "normalised-correlation"])
@pytest.mark.parametrize("size", [1, 2, 4, 9])
def test_results_do_not_depend_on_groups(problem, misfit, size):
    there, observed, v, step = problem
    whole = WaveformMisfit(there, observed, misfit, shots_per_group=there.n_shots)
    parts = WaveformMisfit(there, observed, misfit, shots_per_group=size)
    assert parts.value(v) == pytest.approx(whole.value(v), rel=ROUNDING)
    gradients = [m.value_and_gradient(v)[1] for m in (parts, whole)]
    assert relative(*gradients) < ROUNDING
    for kind in ("exact", "gauss-newton"):
        products = [m.hessian(v, kind) @ step for m in (parts, whole)]
        # products of several misfits cancel; rounding is relative to their terms
        assert relative(*products) < 100 * ROUNDING
    assert [len(g) for g in parts.hessian(v).groups] == {
        1: [1] * 5,
        2: [2, 2, 1],
        4: [4, 1],
        9: [5],
    }[size]


def test_group_lists():
    assert groups_of([3, 5, 6], 2) == [[3, 5], [6]]
    assert groups_of(range(2), 5) == [[0, 1]]


# -- samples ----------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["born", "double-backprop"])
def test_drawn_shots_are_scaled_up_for_the_others(problem, engine):
    there, observed, v, step = problem
    misfit = WaveformMisfit(there, observed, "huber", engine=engine)
    some = misfit.draw(2, seed=7)
    shots = list(some.waveforms.shots.numbers)
    part = misfit.select(shots)
    factor = N_SHOTS / 2
    assert some.value(v) == factor * part.value(v)
    assert (
        relative(some.value_and_gradient(v)[1], factor * part.value_and_gradient(v)[1])
        < ROUNDING
    )
    operator = some.hessian(v)
    assert operator.shots == shots
    assert operator.cost == 2 / N_SHOTS
    assert relative(operator @ step, factor * (part.hessian(v) @ step)) < ROUNDING
    assert float(some(v)) == pytest.approx(some.value(v), rel=ROUNDING)


def test_drawn_shots_follow_from_the_seed(problem):
    there, observed, _, _ = problem
    misfit = WaveformMisfit(there, observed)

    def draw():
        return [misfit.draw(2, seed=s).waveforms.shots.numbers for s in range(30)]

    drawn = draw()
    assert drawn == draw()
    assert len(set(drawn)) > 2
    assert all(len(set(shots)) == 2 for shots in drawn)
    assert set().union(*drawn) == set(range(N_SHOTS))
    for n_shots in (0, N_SHOTS + 1):
        with pytest.raises(ValueError, match=r"it must lie in \[1, 5\]"):
            misfit.draw(n_shots)


@pytest.mark.parametrize(("n_shots", "size"), [(7, 1), (7, 3), (8, 4), (9, 9)])
def test_every_shot_is_drawn_alike_often_and_spread_along_the_line(
    generator, n_shots, size
):
    """Whatever the order in which the shots are given."""
    order = torch.randperm(n_shots, generator=generator)
    locations = torch.stack([torch.ones(n_shots), order + 3], -1).long()
    there = Survey(
        "scalar",
        grid_spacing=5.0,
        dt=5e-4,
        sources={
            "u": (torch.ones(n_shots, 1, 8, dtype=torch.float64), locations[:, None])
        },
        receivers={"u": locations[:, None]},
        max_vel=2000.0,
        pml_freq=20.0,
        pml_width=2,
    )
    n_draws = 2000
    counts = torch.zeros(n_shots)
    step = n_shots / size
    for seed in range(n_draws):
        shots = there.draw(size, seed=seed)
        assert shots == sorted(set(shots))
        assert len(shots) == size
        counts[shots] += 1
        places = order[shots].sort().values
        assert all(step - 1 < gap < step + 1 for gap in places.diff().tolist())
    expected = n_draws * size / n_shots
    deviation = (expected * (1 - size / n_shots)) ** 0.5
    assert float((counts - expected).abs().max()) <= 5 * deviation


def test_a_sample_is_of_encoded_shots_or_of_drawn_ones(problem):
    there, observed, v, _ = problem
    quiet = hvpopt.TorchObjective(lambda x: 1e-6 * x.square().sum(), convex=True)
    encodable = WaveformMisfit(there, observed)
    other = WaveformMisfit(there, observed, "huber")
    assert encodable.sample(2, seed=3).waveforms.shots.unit == "encoded shot"
    drawn = other.sample(2, seed=3)
    assert list(drawn.waveforms.shots.numbers) == there.draw(2, seed=3)
    assert drawn.value(v) == other.draw(2, seed=3).value(v)
    total = 2.0 * other + quiet
    sample = total.sample(2, seed=3)
    expected = 2.0 * drawn.value(v) + quiet.value(v)
    assert sample.value(v) == pytest.approx(expected, rel=1e-12)
    assert total.counts.values == 1, "what samples evaluate counts in the whole too"
    assert quiet.sample(5) is quiet
    for size in (0, N_SHOTS + 1):
        for misfit in (encodable, other):
            with pytest.raises(ValueError, match=r"it must lie in \[1, 5\]"):
                misfit.sample(size)


# -- memory -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("2GB", 2 * 10**9),
        ("1.5 MiB", 1536 * 1024),
        ("300k", 300_000),
        ("12b", 12),
        (4096, 4096),
        (2.5e3, 2500),
        (float("inf"), float("inf")),
    ],
)
def test_sizes(size, expected):
    assert checks.memory("memory_limit", size) == expected


@pytest.mark.parametrize("size", ["much", "2 XB", "", "0GB", -3, float("nan")])
def test_bad_sizes(size):
    with pytest.raises(ValueError, match="memory_limit is"):
        checks.memory("memory_limit", size)


def test_plan_takes_the_larger_of_estimate_and_measurement():
    plan = plan_memory(1000, 50, estimated=90, measured=60, how="")
    assert plan.shots_per_group == int(1000 / (90 * HEADROOM))
    plan = plan_memory(1000, 50, estimated=60, measured=90, how="")
    assert plan.shots_per_group == int(1000 / (90 * HEADROOM))
    assert plan_memory(1000, 3, estimated=60, measured=None, how="").shots_per_group == 3
    with pytest.raises(MemoryError, match="checkpoint_segments"):
        plan_memory(50, 3, estimated=60, measured=None, how="")


def test_peak_is_what_a_block_used():
    n_bytes = 64 * 2**20
    with PeakMemory() as peak:
        held = torch.ones(n_bytes // 8, dtype=D)
        del held
    assert 0.9 * n_bytes < peak.bytes < 1.5 * n_bytes


def test_memory_limit_groups_shots_and_keeps_results(problem):
    there, observed, v, step = problem
    whole = WaveformMisfit(there, observed, shots_per_group=there.n_shots)
    roomy = WaveformMisfit(there, observed, memory_limit="8GB")
    assert roomy.memory_plan.measured is None
    assert relative(roomy.hessian(v) @ step, whole.hessian(v) @ step) < 1e-13
    plan = roomy.memory_plan
    first_a_value = WaveformMisfit(there, observed, memory_limit="8GB")
    first_a_value.value(v)
    assert first_a_value.memory_plan.estimated == plan.estimated
    assert plan.limit == 8 * 10**9
    assert plan.shots_per_group == N_SHOTS
    assert plan.estimated > 0
    assert plan.measured is not None
    assert "estimated" in str(plan)
    # one and a half shots fit by the estimate: groups of one
    need = max(plan.estimated, plan.measured) * HEADROOM
    tight = WaveformMisfit(there, observed, memory_limit=max(1.5 * need, 2e6))
    assert tight.value(v) == pytest.approx(whole.value(v), rel=ROUNDING)
    with pytest.raises(MemoryError, match="one shot's product needs"):
        WaveformMisfit(there, observed, memory_limit="1kB").value(v)
    measured = roomy.counts.propagations
    roomy.value(v)
    assert roomy.counts.propagations == measured + N_SHOTS  # measured once only


def test_run_stays_within_its_memory_limit(generator):
    """A survey whose ungrouped product needs four times the limit."""
    shape = (80, 100)
    v = models_of("scalar", generator, shape=shape)[0]
    there = survey(n_shots=8, nt=150)
    observed = there.simulate(1.02 * v)
    step = random_step((v,), generator)

    def used(misfit):
        H = misfit.hessian(v)
        H @ step
        with PeakMemory(v.device) as peak:
            product = H @ step
        return peak.bytes, product

    need, expected = used(WaveformMisfit(there, observed, shots_per_group=there.n_shots))
    limit = need // 4
    misfit = WaveformMisfit(there, observed, memory_limit=limit)
    peak, product = used(misfit)
    assert relative(product, expected) < 1e-12
    assert peak <= limit
    assert misfit.memory_plan.shots_per_group >= 1
    assert misfit.memory_plan.estimated <= misfit.memory_plan.measured * 1.5


@cpu_only("a GPU runs all shots together")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("fit", "expected"), [(0.0, {1: 1, 2: 2}), (3.5, {1: 3, 2: 2})])
def test_default_group_on_a_cpu_is_of_as_many_shots_as_threads_or_of_small_ones(
    problem, monkeypatch, threads, fit, expected
):
    there, observed, v, step = problem
    small = int(fit * there.history_bytes([v]))
    monkeypatch.setattr(_groups, "SMALL_GROUP", small)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        misfit = WaveformMisfit(there, observed)
    finally:
        torch.set_num_threads(before)
    assert len(misfit.hessian(v).groups[0]) == expected[threads]
    assert misfit.memory_plan.shots_per_group == expected[threads]
    one_graph = WaveformMisfit(there, observed, engine="double-backprop")
    assert len(one_graph.hessian(v).groups) == 1
    assert relative(misfit.hessian(v) @ step, one_graph.hessian(v) @ step) < 1e-12


def test_small_shots_run_together_unless_a_caller_says_otherwise(problem):
    there, observed, v, _ = problem
    assert WaveformMisfit(there, observed).groups(v) == [list(range(N_SHOTS))]
    few = WaveformMisfit(there, observed, shots_per_group=2)
    assert [len(group) for group in few.groups(v)] == [2, 2, 1]


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
@pytest.mark.parametrize("propagator", CHANNELS)
def test_histories_are_most_of_what_deepwave_plans_for(propagator, generator):
    nt = int(torch.randint(60, 200, (), generator=generator))
    shape = tuple(torch.randint(20, 50, (2,), generator=generator).tolist())
    models = models_of(propagator, generator, shape=shape)
    there = survey(propagator, nt=nt, pml_width=[0, 5, 9, 3], boundary="pml")
    planned = _plan_product(there, models)
    assert 0.4 * planned < there.history_bytes(models) < planned
