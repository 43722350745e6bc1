"""Whole runs on many ranks: saved by one, resumed by all, ended and mended alike."""

import json

import pytest
import rank_runs
import torch
from test_distributed import gap, run, same_bits
from tolerances import SAME_INVERSION

import hvpopt
from hvpopt.distributed._exchange import Exchange
from hvpopt.errors import RankError

__all__ = ["run"]


def everywhere(ran):
    """Return what rank 0 told, once all have told the same, and what each wrote."""
    found = ran.all()
    assert all(same_bits(found[0][0], other[0]) for other in found)
    return found[0][0], [written for _, written in found]


def test_one_rank_saves_and_all_go_on(run, tmp_path):
    whole, _ = everywhere(run("rank_runs.invert", 2, max_iter=3))
    path = tmp_path / "run.safetensors"
    first, written = everywhere(run("rank_runs.invert", 2, path=path, max_iter=1))
    assert first[2] == "MAX_ITERATIONS"
    assert len(written[0]) > 2
    assert written[1] == []
    resuming = {"path": path, "max_iter": 3}
    found, written = everywhere(run("rank_runs.invert", 2, **resuming))
    assert same_bits(found, whole)
    assert written[0]
    assert written[1] == []
    lines = path.with_suffix(".jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [0, 1, 2, 3]


def test_other_numbers_of_ranks_go_on_with_a_state(run, tmp_path):
    whole, _ = everywhere(run("rank_runs.invert", 1, max_iter=3))
    for before, after in ((2, 1), (1, 3)):
        path = tmp_path / f"{before}.safetensors"
        run("rank_runs.invert", before, path=path, max_iter=2).all()
        ran = run("rank_runs.invert", after, path=path, max_iter=3)
        found, _ = everywhere(ran)
        assert gap(found[0], whole[0]) <= SAME_INVERSION
        assert found[2] == whole[2]
        assert [row[2] for row in found[3]] == [row[2] for row in whole[3]]


def test_what_one_rank_hears_ends_all_and_nothing_is_lost(run, tmp_path):
    whole, _ = everywhere(run("rank_runs.invert", 3, max_iter=3))
    for ending, status in (("late", "MAX_SECONDS"), ("terminated", "TERMINATED")):
        path = tmp_path / f"{ending}.safetensors"
        ran = run("rank_runs.invert", 3, path=path, ending=ending, max_iter=3)
        ended, _ = everywhere(ran)
        assert ended[2] == status
        resuming = {"path": path, "max_iter": 3}
        found, _ = everywhere(run("rank_runs.invert", 3, **resuming))
        assert same_bits(found, whole)


def test_clock_ends_all_ranks_alike_without_a_state_too(run):
    ended, _ = everywhere(run("rank_runs.invert", 2, ending="late", max_iter=3))
    assert ended[2] == "MAX_SECONDS"


def test_torchrun_goes_on_from_the_state(processes, seed, tmp_path):
    """A rank fails within a step, then is killed; all others end with it, and go on."""
    agent = processes.Process(
        target=rank_runs.under_torchrun,
        args=(tmp_path / "out", 2, rank_runs.live, seed, tmp_path),
    )
    agent.start()
    agent.join(120)
    agent.kill()
    told = (tmp_path / "out").read_text()
    assert agent.exitcode == 0, told
    assert "rank 1: OSError: the disk of this rank is gone" in told
    # the agent names whichever end it sees first; who was killed has told nothing
    assert not (tmp_path / "1 in life 1").exists()
    assert (tmp_path / "0 in life 1").read_text() == "state True: FAILED"
    for rank in range(2):
        ended = (tmp_path / f"{rank} in life 2").read_text()
        assert ended == "state True: MAX_ITERATIONS"
    misfit, start = rank_runs.problem(seed)
    whole = hvpopt.minimize(
        misfit, start, method=hvpopt.TrustRegionNewton(), max_iter=3, **rank_runs.BOUNDS
    )
    assert gap(torch.load(tmp_path / "model.pt"), whole.x) <= SAME_INVERSION


def test_shot_that_is_bad_on_one_rank_is_dropped_by_all(run, seed):
    cases = [
        (3, 0, "drop"),  # from the start
        (3, 3, "drop"),  # later, in a product or a value
        (6, 0, "drop"),  # the only shot of its rank
        (3, 0, "raise"),
    ]
    alone = rank_runs.lose(seed, cases[:3:2], shard=False)
    found = run("rank_runs.lose", 4, cases=cases).all()
    for case, ranks in zip(cases, zip(*found, strict=True), strict=True):
        assert all(same_bits(ranks[0][0], other[0]) for other in ranks)
        if case[2] == "raise":
            assert "shot 3: the misfit is nan" in ranks[0][0]
            continue
        told, _, warned = ranks[0]
        assert [left for *_, left in told[3]][-1].keys() == {f"shot {case[0]}"}
        assert len(warned) == 1
        assert [other[2] for other in ranks[1:]] == [[]] * 3
    for (expected, _, _), place in zip(alone, (0, 2), strict=True):
        told = found[0][place][0]
        assert gap(told[0], expected[0]) <= SAME_INVERSION
        assert told[2] == expected[2]
        assert [row[2:] for row in told[3]] == [row[2:] for row in expected[3]]


def test_shot_that_only_trials_meet_is_dropped_by_all(run, seed):
    found, _ = everywhere(run("rank_runs.lose_in_trials", 2))
    (x, _, status, records), _ = rank_runs.lose_in_trials(seed, shard=False)
    assert [list(dropped) for *_, dropped in records][-1] == ["shot 3"]
    assert gap(found[0], x) <= SAME_INVERSION
    assert found[2] == status
    assert [row[3] for row in found[3]] == [row[3] for row in records]


def test_rank_without_memory_for_a_sum_tells_the_others(run):
    ran = run("rank_runs.lack_room", 3, timeout=10.0)
    for told, seconds in ran.found:
        assert "rank 1: MemoryError: no room for it" in told
        assert seconds < 5.0
    assert ran.exits == [1, 1, 1]


def test_what_fails_within_a_sum_parts_from_the_others():
    """Also in a trial, where a loss may refuse a model: they are a message ahead."""
    exchange = Exchange()
    with pytest.raises(RankError, match="out of step") as raised, exchange._in_step():
        raise RuntimeError("not enough memory")
    assert raised.value.ends_run
    assert exchange.failure is raised.value
    exchange.failure = None
    with pytest.raises(KeyboardInterrupt), exchange._in_step():
        raise KeyboardInterrupt
    assert exchange.failure is not None
