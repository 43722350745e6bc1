"""Benchmarks that run in several processes or write files, on tiny surveys."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import bench_checkpoint
import bench_distributed
import gpu
import report
import torch

pytestmark = pytest.mark.usefixtures("processes")
TINY = {"cells": (20, 30), "n_shots": 2, "recorded": 0.6}


def test_scaling_is_measured_on_ranks():
    survey = {"ny": 12, "nx": 30, "n_shots": 2, "steps": 20}
    vector = 4 * 12 * 30
    runs = bench_distributed.measure(survey, 1, ways=((1, 1), (2, 1)))
    one, two = ways = bench_distributed.summary([runs])
    assert set(one["speed_up"].values()) == {1.0}
    for kind, seconds in two["seconds"].items():
        assert two["speed_up"][kind] == pytest.approx(one["seconds"][kind] / seconds)
    assert [way["bytes_reduced_per_product"] for way in ways] == [0, vector]
    lines = report.scaling_lines(
        {"survey": survey, "cores": 1, "scaling": ways, "bytes_of_a_model_vector": vector}
    )
    assert lines[-2].startswith("| 1 × 1 |")
    assert lines[-1].startswith("| 2 × 1 (more than the cores) |")
    assert lines[-1].endswith(f"| {vector} | 1 |")


def test_cost_of_a_checkpoint_is_measured(tmp_path):
    pairs = bench_checkpoint.quasi_newton(tmp_path, TINY, TINY, pairs=3, rounds=2)
    products = bench_checkpoint.trust_region(
        tmp_path, TINY, products=3, seconds=0.0, rounds=2
    )
    cells = pairs["unknowns"]
    # two float32 vectors a pair, and one of float64 a product
    for found, size in ((pairs, 2 * 4 * cells), (products, 8 * cells)):
        (held, few), (most, many) = found["saves"].items()
        assert held == "3"
        more = (int(most) - 3) * size
        assert more < many["bytes"] - few["bytes"] < 1.2 * more
        for row in (few, many):
            assert row["parts"]["sync"] > 0
            assert sum(row["parts"].values()) == pytest.approx(row["seconds"])
        for seconds in ("saving_seconds", "iteration_seconds"):
            assert found[seconds] > 0
    assert products["recording_seconds"] > 0
    assert pairs["recording_seconds"] == 0, "its products are those of the first step"
    lines = report.checkpoint_lines(
        {"pairs": pairs, "full": TINY, "short": TINY},
        {"products": products, "every_seconds": 60.0},
    )
    assert "| `TrustRegionNewton` | 300 products |" in "\n".join(lines)


@pytest.mark.filterwarnings("ignore::deepwave.ZeroWidthFaceWarning")
def test_page_of_a_gpu_is_made_of_what_was_measured():
    tiny = gpu.Sizes(
        cells=(24, 40),
        steps=60,
        shots=(2,),
        copies=(3,),
        rounds=1,
        published=(16, 24),
        rows=2,
        cost=2.0,
    )
    found = gpu.measure(torch.device("cpu"), tiny)
    (products,), (block,) = found["products"], found["blocks"]
    assert products["born_against_double_backprop"] < 1e-4
    assert products["ratios"]["gradient"] == 1.0
    assert block["error"] < 1e-4
    assert block["speed_up"] == pytest.approx(
        block["seconds"]["single"] / block["seconds"]["copies"]
    )
    step, run = found["published"], found["inversion"]
    assert step["dense_seconds"] == pytest.approx(16 * 24 * step["seconds_of_a_row"])
    assert step["value"][1] < step["value"][0]
    assert run["cost"] > 0.0
    assert run["steps"] > 0
    assert 0.0 < run["misfit"] <= 1.0
    lines = gpu.page(found).splitlines()
    assert sum(line.startswith("| 2 | ") for line in lines) == len(products["seconds"])
    assert sum(line.startswith("| 3 | ") for line in lines) == 1


def test_committed_page_of_a_gpu_is_of_the_committed_figures():
    found = json.loads((gpu.HERE / "gpu.json").read_text())
    assert gpu.page(found) == (gpu.HERE / "GPU.md").read_text()
    if found.get("not_measured"):
        assert "## Not measured" in gpu.page(found)
    assert "## Not measured" not in gpu.page({**found, "not_measured": []})


TESTS = """
def test_a(): pass
def test_b(): assert False
def test_c():
    import pytest
    pytest.skip("not here")
"""


@pytest.mark.parametrize(("limit", "ran"), [("inf", True), ("0", False)])
def test_what_tests_of_a_device_did_is_counted(limit, ran, tmp_path):
    file, written = tmp_path / "test_some.py", tmp_path / "some.xml"
    file.write_text(TESTS)
    options = ["-q", "-p", "conftest", "-p", "no:cacheprovider", "-c", os.devnull]
    folder = str(Path(__file__).parent)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"--junitxml={written}", file],
        env={**os.environ, "HVPOPT_SECONDS": limit, "PYTHONPATH": folder},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == ran, ended.stdout
    found = gpu.tests(written)
    assert found.pop("seconds") > 0
    names = ("passed", "failed", "not_begun", "not_here")
    assert found == dict(zip(names, (1, 1, 0, 1) if ran else (0, 0, 3, 0), strict=True))


def test_benchmark_of_a_gpu_says_that_there_is_none(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        gpu.main()
