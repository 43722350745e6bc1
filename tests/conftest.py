"""Seeds that are fresh for every test and named when it fails; a single thread; a device.

``HVPOPT_SEED`` gives all tests one seed, ``HVPOPT_THREADS`` another number of threads,
``HVPOPT_DEVICE`` another device than the CPU (on_device.py). With ``HVPOPT_SECONDS`` the
tests that have not begun by then are skipped, and files take turns.
"""

import gc
import math
import multiprocessing
import os
import time
from collections import Counter
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from on_device import DEVICE, OnDevice, cpu_only

# tensors here are small: a second thread only waits, long where cores are shared
torch.set_num_threads(int(os.environ.get("HVPOPT_THREADS", "1")))

SEED_VARIABLE = "HVPOPT_SEED"
#: When this process began its tests, and for how long it begins more.
BEGAN, SECONDS = time.monotonic(), float(os.environ.get("HVPOPT_SECONDS", "inf"))
used_seed = pytest.StashKey[int]()

#: Files that take longest, longest first: begun in this order, before all others, so that
#: no process waits for one at the end.
LONGEST = (
    "test_tutorials",
    "test_stochastic",
    "test_distributed",
    "test_published",
    "test_distributed_runs",
    "test_more_functions",
    "test_race",
    "test_born",
    "test_restart",
    "test_resolution",
    "test_bad_shots",
    "test_waveform_misfit",
    "test_kill",
    "test_dropped_shots",
    "test_spectrum",
)


TESTS = Path(__file__).parent

#: Files that no other device has a part in, and why.
CPU_ONLY = {
    "test_benchmarks": "benchmarks of ranks and of files; benchmarks/gpu.py is the GPU's",
    "test_damage": "processes of their own, and files",
    "test_disk": "processes of their own, and files",
    "test_distributed": "ranks that share one machine exchange through its memory",
    "test_distributed_runs": "ranks that share one machine exchange through its memory",
    "test_io": "files are read to the CPU",
    "test_docstrings": "it runs what docstrings print",
    "test_kill": "processes of their own, and files",
    "test_layers": "it reads sources",
    "test_plotting": "pictures are drawn from the CPU",
    "test_pylops": "PyLops multiplies on the CPU",
    "test_race": "the race is run on the CPU",
    "test_readme": "it runs the README as printed",
    "test_resolution": "responses are kept, and compared, on the CPU",
    "test_signals": "processes of their own",
    "test_signals_in_scripts": "processes of their own",
    "test_tutorials": "it runs the documentation as printed",
}

if DEVICE.type != "cpu":
    # before the test files are imported: some make tensors then
    OnDevice().__enter__()


@pytest.fixture(scope="session")
def processes():
    """A context whose processes are forked from one that has imported everything.

    One for all tests: what it imports is settled when it starts.
    """
    context = multiprocessing.get_context("forkserver")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        folders = map(str, (TESTS.parent, TESTS, TESTS / "faults"))
        patch.setenv("PYTHONPATH", os.pathsep.join(folders))
        context.set_forkserver_preload(
            ["distributed_worker", "rank_runs", "runs", "test_signals_in_scripts"]
        )
        forkserver.ensure_running()
    return context


def pytest_collection_modifyitems(items):
    place = {stem: k for k, stem in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))
    if math.isfinite(SECONDS):
        turns = Counter()
        turn = {item: turns.update([item.path]) or turns[item.path] for item in items}
        items.sort(key=turn.__getitem__)
    for item in items:
        reason = CPU_ONLY.get(item.path.stem)
        if reason is None and "processes" in item.fixturenames:
            reason = "processes of their own"
        if reason is not None:
            item.add_marker(cpu_only(reason))


def pytest_runtest_setup():
    if time.monotonic() - BEGAN > SECONDS:
        pytest.skip(f"not begun within {SECONDS:g} s")


def pytest_collection_finish():
    # what was imported stays: a collection that goes through it takes a tenth of a second
    gc.collect()
    gc.freeze()


@pytest.fixture
def seed(request):
    given = os.environ.get(SEED_VARIABLE)
    value = int.from_bytes(os.urandom(4), "little") if given is None else int(given)
    request.node.stash[used_seed] = value
    return value


@pytest.fixture
def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if used_seed in item.stash and report.failed:
        command = f"{SEED_VARIABLE}={item.stash[used_seed]} pytest '{item.nodeid}'"
        report.sections.append(("seed; run again with", command))
    return report


def pytest_report_header():
    given = os.environ.get(SEED_VARIABLE)
    source = "fresh for each test" if given is None else f"{given} from {SEED_VARIABLE}"
    return f"seed: {source}; torch threads: {torch.get_num_threads()}; device: {DEVICE}"
