"""Processes killed at random moments, in and between steps and in the midst of a save."""

import json
import random

import pytest
import torch
from runs import LONG, METHODS, kill_after, log_uniform, run_to_the_end, whole

from hvpopt.run import _files as files

KILLS = 50 if LONG else 6


@pytest.mark.parametrize("name", METHODS if LONG else ["trust region"])
def test_killed_runs_end_where_the_uninterrupted_one_does(
    processes, name, tmp_path, seed
):
    draws = random.Random(seed)
    expected = whole(name)
    begun = processes.Event()
    killed = places = run = misses = 0
    # until enough of them hit a saved state, on a slow machine too
    while killed < KILLS or (places <= KILLS // 4 and killed < 10 * KILLS):
        folder = tmp_path / str(run)
        folder.mkdir()
        seen, goal = set(), max(KILLS, killed + KILLS // 4 + 1)
        while True:
            # the last attempts are left in peace, or a test might never end
            longest = 0.6 * 1.5**misses
            limit = log_uniform(draws, 0.002, longest) if killed < goal else 120.0
            arguments = name, str(folder), begun
            process = processes.Process(target=run_to_the_end, args=arguments)
            if not kill_after(process, begun, limit):
                assert process.exitcode == 0
                break
            killed += 1
            misses += not (folder / "state").exists()
            for path in (folder / "state", files.previous(folder / "state")):
                if path.exists():
                    _, state = files.read(path)[0]["tuple"]
                    products = len(state["fields"]["products"]["tuple"])
                    seen.add((len(state["fields"]["history"]["tuple"]), products))
        done = torch.load(folder / "done")
        assert torch.equal(done["x"], expected.x)
        lines = (folder / "history.jsonl").read_text().splitlines()
        assert [json.loads(line)["iteration"] for line in lines] == list(
            range(expected.nit + 1)
        )
        values = [record.value for record in expected.history]
        assert [json.loads(line)["value"] for line in lines] == values
        places += len(seen)
        run += 1
    assert places > KILLS // 4, "the kills hit the same place again and again"
