"""Many ranks against one: the same numbers, the same bits on each, the same errors."""

import gc
import logging
import re
import socket
import sys
import time
import weakref
from pathlib import Path

import distributed_worker as worker
import pytest
import rank_runs
import torch
from tolerances import PRODUCT, SAME_INVERSION

import hvpopt
from hvpopt import distributed
from hvpopt.distributed._checksum import BLOCK, checksum
from hvpopt.distributed._shares import shares

ROOT = Path(__file__).parents[1]
CELLS = 12 * 17
#: Ranks that only end by their timeout are killed before it, and have another exit code.
AT_ONCE = {"timeout": 200.0, "limit": 90.0}


class Ran:
    """What ranks returned, None for one that did not; and how they ended."""

    def __init__(
        self, processes, task, size, folder, *, timeout=20.0, limit=40.0, **options
    ):
        folder = Path(folder, f"{task}-{size}-{time.monotonic_ns()}")
        folder.mkdir()
        ranks = [
            processes.Process(
                target=worker.main,
                args=(task, rank, size, str(folder), timeout, options),
                daemon=True,
            )
            for rank in range(size)
        ]
        began = time.monotonic()
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(max(0.0, began + limit - time.monotonic()))
        self.seconds = time.monotonic() - began
        self.exits = [process.exitcode for process in ranks]
        for process in ranks:
            process.kill()
        self.found = [
            torch.load(path, weights_only=False) if path.exists() else None
            for path in (folder / f"{rank}.pt" for rank in range(size))
        ]
        self.told = [(folder / f"{rank}.err").read_text() for rank in range(size)]

    def all(self):
        assert self.exits == [0] * len(self.exits), "\n".join(self.told)
        return self.found


@pytest.fixture
def run(processes, tmp_path, seed):
    def start(task, size, **options):
        return Ran(processes, task, size, tmp_path, seed=seed, **options)

    return start


def same_bits(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_bits(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same_bits, a, b))
    return a == b


def flat(lists):
    return [item for items in lists for item in items]


def gap(a, b):
    return float((a - b).norm() / b.norm())


# -- the same inversion ---------------------------------------------------------------


@pytest.mark.parametrize("method", worker.METHODS)
def test_one_two_and_four_ranks_invert_alike(run, seed, method):
    alone = worker.invert(seed, method, shard=False)
    assert same_bits(worker.invert(seed, method), alone)
    x, fun, status, counts, _ = alone
    # of the start and of three steps; a trial by its gradient may be refused
    assert 4 <= counts["gradients"] <= 7
    assert counts["products"] > 0
    for size in (2, 4):
        found = run("invert", size, method=method).all()
        assert all(same_bits(found[0], other) for other in found)
        there, value, ended, spent, reduced = found[0]
        assert gap(there, x) <= SAME_INVERSION
        assert abs(value - fun) <= SAME_INVERSION * fun
        assert (ended, spent) == (status, counts)
        assert reduced == 8 * CELLS * (spent["products"] + spent["gradients"])


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (2, {}),
        (4, {"engine": "double-backprop"}),
        (3, {"shots_per_group": 2}),
        (3, {"n_shots": 2}),
        (2, {"costs": [5.0, 1, 1, 1, 1, 1, 1]}),
    ],
)
def test_every_sum_is_that_of_the_whole_survey(run, seed, size, options):
    whole, counts, _ = worker.evaluate(seed, shard=False, **options)
    found = run("evaluate", size, **options).all()
    assert all(same_bits(found[0], other) for other in found)
    parts, spent, reduced = found[0]
    for name, expected in whole.items():
        assert gap(parts[name], expected) <= PRODUCT, name
    assert spent == counts
    assert reduced == 8 * CELLS


def test_float32_waves_reduce_float32_vectors(run, seed):
    whole, _, _ = worker.evaluate(seed, shard=False, dtype=torch.float32)
    found, _, reduced = run("evaluate", 2, dtype=torch.float32).all()[0]
    assert found["exact product"].dtype == torch.float64
    assert gap(found["exact product"], whole["exact product"]) < 1e-5
    assert found["gradient"].dtype == torch.float32
    assert reduced == 4 * CELLS


def test_without_other_ranks_it_is_the_misfit(seed):
    misfit, start = worker.problem(seed)
    sharded = distributed.shard(misfit)
    assert torch.equal(sharded(start), misfit(start))
    assert sharded.shots == list(range(7))
    assert sharded.bytes_reduced == 0
    assert (distributed.rank(), distributed.size(), distributed.is_main()) == (0, 1, True)
    assert distributed.any_rank(True)
    assert not distributed.any_rank(False)


def test_sum_with_a_regulariser(seed):
    misfit, start = worker.problem(seed)

    def smooth(v):
        return 1e-9 * (v.diff(dim=0).square().sum() + v.diff(dim=1).square().sum())

    sums = [
        part + hvpopt.TorchObjective(smooth, convex=True)
        for part in (misfit, distributed.shard(misfit))
    ]
    plain, sharded = [hvpopt.minimize(total, start, max_iter=2) for total in sums]
    assert torch.equal(plain.x, sharded.x)
    assert plain.counts == sharded.counts


# -- sharing out ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 9])
def test_equal_costs_give_neighbours_and_equal_numbers(size):
    dealt = shares([1.0] * 7, size)
    assert flat(dealt) == list(range(7))
    lengths = [len(places) for places in dealt]
    assert max(lengths) - min(lengths) <= 1
    assert len(dealt) == size


def test_timings_that_differ_little_count_as_equal():
    assert shares([1.0, 1.2, 1.1, 1.0], 2) == [[0, 1], [2, 3]]


def test_unequal_costs_are_balanced(generator):
    costs = (torch.rand(40, generator=generator) + 0.05).tolist()
    dealt = shares(costs, 4)
    assert sorted(flat(dealt)) == list(range(40))
    loads = [sum(costs[place] for place in places) for places in dealt]
    assert max(loads) <= 4 / 3 * sum(costs) / 4 + max(costs) / 3


def test_measured_costs_are_the_same_everywhere(run):
    found = run("shares_of_survey", 3, n_shots=7, measure=True).all()
    assert sorted(flat(shots for shots, _ in found)) == list(range(7))
    assert [counts["propagations"] for _, counts in found] == [7 + 3] * 3


def test_more_ranks_than_shots_leave_some_idle(run):
    ran = run("shares_of_survey", 3, n_shots=2)
    assert [shots for shots, _ in ran.all()] == [[0], [1], []]
    assert "1 of 3 ranks have no shot" in ran.told[0]
    assert ran.told[1:] == ["", ""]


@pytest.mark.parametrize(
    "costs", [[1.0] * 6, [1.0] * 6 + [0.0], [1.0] * 6 + [float("inf")]]
)
def test_costs_that_do_not_fit_are_refused(seed, costs):
    misfit, _ = worker.problem(seed)
    with pytest.raises(ValueError, match="7 positive numbers"):
        distributed.shard(misfit, costs=costs)
    with pytest.raises(ValueError, match="7 positive numbers"):
        distributed.own_shots(7, costs)


def test_only_waveform_misfits_are_sharded(seed):
    misfit, start = worker.problem(seed)
    with pytest.raises(TypeError, match="shard the waveform terms"):
        distributed.shard(misfit + misfit)
    with pytest.raises(ValueError, match="not both"):
        distributed.shard(misfit, start, costs=[1.0] * 7)


# -- each rank its own data -----------------------------------------------------------


@pytest.mark.parametrize("misfit", worker.MISFITS)
def test_no_rank_needs_the_data_of_others(run, seed, misfit):
    whole = worker.own_data(seed, misfit, shard=False)
    found = run("own_data", 2, misfit=misfit).all()
    assert same_bits(*found)
    assert found[0].keys() == whole.keys()
    for name, expected in whole.items():
        assert gap(found[0][name], expected) <= SAME_INVERSION, name


def test_no_rank_keeps_the_data_of_others(run):
    found = run("rows_held", 3).all()
    assert found == [
        (True, 3, [0, 1, 2]),
        (True, 2, [3, 4]),
        (True, 2, [5, 6]),
    ]


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("data", "RankError: ranks hold different models, vectors or data: rank 1 of 3"),
        ("missing", "each of the 7 must be on one rank"),
        ("twice", "each of the 7 must be on one rank"),
        ("counts", "rank 1: ValueError: the misfit's survey records"),
    ],
)
def test_ranks_whose_shots_do_not_fit_are_told(run, how, told):
    ran = run("differ_in_shots", 3, how=how)
    assert all(told in text for text in ran.found), ran.found


def test_constants_that_do_not_merge_are_refused(seed):
    class Largest(hvpopt.fwi.L2):
        def constants(self, observed):
            largest = max(float(d.abs().max()) for d in observed.values())
            return {**super().constants(observed), "largest": largest}

    class Merged(Largest):
        def merged(self, constants):
            largest = max(c["largest"] for c in constants)
            return {**super().merged(constants), "largest": largest}

    misfit, start = worker.problem(seed, shots_per_group=None)
    survey, (data,) = misfit.survey, misfit.waveforms.observed.values()
    parts = {"shot 1": "it is noise"}
    other = distributed.shard(hvpopt.fwi.WaveformMisfit(survey, data, Merged()))
    assert other.without(parts).value(start) == misfit.without(parts).value(start)
    other = distributed.shard(hvpopt.fwi.WaveformMisfit(survey, data, Largest()))
    with pytest.raises(ValueError, match=r"'largest'.*merged"):
        other.without(parts)


def test_own_shots_go_with_the_whole_survey(seed):
    misfit, start = worker.problem(seed)
    for options, told in (
        ({"shots": [0]}, "together"),
        ({"survey": misfit.survey}, "together"),
        ({"survey": misfit.survey, "shots": range(7), "model": start}, "own_shots"),
        ({"survey": misfit.survey, "shots": range(6)}, "survey records"),
        ({"survey": misfit.survey, "shots": range(7, 14)}, "shots"),
    ):
        with pytest.raises(ValueError, match=told):
            distributed.shard(misfit, **options)
    shots = distributed.own_shots(7)
    sharded = distributed.shard(misfit, survey=misfit.survey, shots=shots)
    assert sharded.value(start) == misfit.value(start)


# -- bad shots ------------------------------------------------------------------------


def test_bad_shots_of_one_rank_are_told_alike_by_all(run, seed):
    cases = [
        ([3], "drop"),
        ([0, 6], "drop"),  # on two ranks, and the only shot of one
        ([3], "raise"),
        (range(7), "drop"),
    ]
    alone = worker.meet_bad_shots(seed, cases)
    found = run("meet_bad_shots", 4, cases=cases).all()
    assert all(same_bits(found[0], other) for other in found)
    for (bad, on_bad_shot), there, here in zip(cases, found[0], alone, strict=True):
        errors, left = there
        for text, parts, shots in errors[:3]:
            assert shots == list(bad)
            may_drop = on_bad_shot == "drop" and len(shots) < 7
            assert parts.keys() == ({f"shot {s}" for s in shots} if may_drop else set())
            assert "every shot fails" in text or len(shots) < 7
        # one process meets them in groups as the ranks do: one shot each
        assert errors == here[0]
        assert (left is None) == (not errors[0][1])
        if left is not None:
            assert all(map(lambda a, b: gap(a, b) <= PRODUCT, left[:3], here[1][:3]))
            assert left[3:] == here[1][3:]
            assert [shots for *_, shots in errors[3:]] == [[4], [5]]


def test_shots_that_are_not_there_cannot_be_dropped(seed):
    misfit, _ = worker.problem(seed)
    sharded = distributed.shard(misfit)
    for parts, told in (
        ({"shot 7": "why"}, "has no shot 7"),
        ({f"shot {shot}": "why" for shot in range(7)}, "would have no shot"),
    ):
        for objective in (misfit, sharded):
            with pytest.raises(ValueError, match=told):
                objective.without(parts)
    with pytest.raises(TypeError, match="parts"):
        sharded.without("shot 3")


# -- failing together -----------------------------------------------------------------


@pytest.mark.parametrize("minimised", [False, True])
def test_what_one_rank_raises_is_raised_on_all(run, minimised):
    ran = run("fail", 3, how="raise", minimised=minimised, **AT_ONCE)
    for seen, seconds in ran.found:
        if not minimised:
            assert seen[0] == "RankError"
            assert seen[2] == (1,)
        assert "rank 1: OSError: the disk of this rank is gone" in seen[1]
        assert seconds < AT_ONCE["timeout"] / 2
    # the end of the session says so too, or torchrun would not start them again
    assert ran.exits == [1, 1, 1]


def test_a_failing_value_ends_all_ranks(run):
    ran = run("fail", 2, how="raise", when="value", **AT_ONCE)
    assert ran.exits == [1, 1]
    assert all("the disk of this rank is gone" in told for told in ran.told)


def test_killed_rank_ends_the_others(run):
    ran = run("fail", 3, how="kill", minimised=False, **AT_ONCE)
    assert ran.exits == [1, -9, 1]
    for rank in (0, 2):
        seen, seconds = ran.found[rank]
        assert seen[0] == "RankError"
        assert "lost the others" in seen[1]
        assert seconds < AT_ONCE["timeout"] / 2


def test_rank_that_hangs_ends_the_others_after_the_timeout(run):
    ran = run("fail", 2, how="sleep", minimised=False, timeout=2.0)
    seen, seconds = ran.found[0]
    assert "lost the others" in seen[1]
    assert 1.5 < seconds < 5.9
    assert ran.exits == [1, 1]


def test_model_that_one_rank_refuses_shortens_the_step_on_all(run):
    # values: at the start, then a trial for each step; the third belongs to step two
    ran = run("fail", 2, how="refuse", when="value", max_iter=2, timeout=10.0)
    for (status, _, trials), _ in ran.all():
        assert status == "MAX_ITERATIONS"
        assert trials[2] > trials[1] == 1


def test_interrupted_rank_interrupts_all(run):
    found = run("fail", 2, how="interrupt", timeout=10.0).all()
    assert [seen[0] for seen, _ in found] == ["INTERRUPTED"] * 2


def test_model_that_all_refuse_is_refused_as_by_the_misfit(run, seed):
    misfit, start = worker.problem(seed)
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - its text is compared
        misfit.value(start * 10)
    value = misfit.value(start)
    for text, after in run("refuse", 2).all():
        assert text == str(refused.value)
        assert abs(after - value) <= PRODUCT * value


@pytest.mark.parametrize("what", ["model", "vector"])
def test_ranks_that_hold_something_else_are_named(run, what):
    ran = run("differ", 3, what=what, **AT_ONCE)
    for ranks, text in ran.found:
        assert ranks == (1,)
        assert "hold different models, vectors or data" in text
    assert ran.exits == [1, 1, 1]


@pytest.mark.parametrize("what", ["evaluation", "end"])
def test_ranks_that_part_are_named(run, what):
    ran = run("differ", 3, what=what, **AT_ONCE)
    for rank in (0, 2):
        ranks, text = ran.found[rank]
        assert ranks == (1,)
        assert "are at different evaluations" in text
    assert ran.exits == [1, 1, 1]


def test_error_between_evaluations_reaches_all(run):
    ran = run("raise_outside", 2)
    assert ran.exits == [1, 1]
    assert "rank 1: OSError: no room for a picture" in ran.told[0]
    assert "OSError: no room for a picture" in ran.told[1]


# -- ranks and sessions ---------------------------------------------------------------


def test_only_rank_0_speaks(run):
    found = run("look_around", 2).all()
    assert [row[:3] for row in found] == [(0, 2, True), (1, 2, False)]
    assert found[0][3] < logging.CRITICAL == found[1][3]
    assert [row[4:6] for row in found] == [(True, False)] * 2


def test_session_without_torchrun_does_nothing():
    with distributed.session():
        assert distributed.size() == 1
    with pytest.raises(ValueError, match="timeout is 0"), distributed.session(0):
        pass


def test_nothing_keeps_the_group_of_a_session_alive(seed, monkeypatch):
    """Its threads would outlive the interpreter, which then aborts now and then."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in given.items():
        monkeypatch.setenv(name, str(value))
    misfit, start = worker.problem(seed)
    with distributed.session():
        group = weakref.ref(torch.distributed.group.WORLD)
        sharded = distributed.shard(misfit)
        sharded.value(start)
        assert group() is not None
    gc.collect()
    assert group() is None
    assert not sharded.exchange.is_current


def test_graph_is_refused_on_several_ranks(seed, monkeypatch):
    misfit, start = worker.problem(seed)
    sharded = distributed.shard(misfit)
    monkeypatch.setattr(sharded.exchange, "size", 2)
    with pytest.raises(RuntimeError, match="no graph"):
        sharded(start)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_checksum_knows_every_entry(generator, dtype):
    tensor = torch.randn(1000, generator=generator).to(dtype)
    place = int(torch.randint(1000, (), generator=generator))
    other = tensor.clone()
    other[place] = torch.nextafter(other[place], other[place] + 1)
    swapped = tensor.flip(0)
    assert checksum(tensor) == checksum(tensor.clone().reshape(10, 100))
    assert len({checksum(t) for t in (tensor, other, swapped)}) == 3
    assert checksum(tensor, other) != checksum(other, tensor)


def test_checksum_goes_by_blocks(generator):
    tensor = torch.randn(BLOCK + 5, generator=generator)
    other = tensor.clone()
    other[BLOCK + 2] += 1
    assert checksum(tensor) != checksum(other)


# -- torchrun -------------------------------------------------------------------------


def test_example_runs_alike_under_python_and_torchrun(
    processes, tmp_path, capsys, monkeypatch
):
    script = str(ROOT / "examples/distributed.py")
    monkeypatch.setattr(sys, "argv", sys.argv)
    rank_runs.run_script(script, str(tmp_path / "alone"))
    alone = capsys.readouterr().out
    out, ran = tmp_path / "out", (rank_runs.run_script, script, str(tmp_path / "ranks"))
    agent = processes.Process(target=rank_runs.under_torchrun, args=(out, 0, *ran))
    agent.start()
    agent.join(120)
    agent.kill()
    ranks = out.read_text()
    assert agent.exitcode == 0, ranks
    assert "1 rank," in alone
    assert "2 ranks," in ranks
    models = [torch.load(tmp_path / name / "model.pt") for name in ("alone", "ranks")]
    assert gap(*models) <= SAME_INVERSION
    final = [re.findall(r"final misfit (\S+)", told) for told in (alone, ranks)]
    # rank 0 alone prints
    assert [len(found) for found in final] == [1, 1]
    assert float(final[0][0]) == pytest.approx(float(final[1][0]), rel=SAME_INVERSION)
