"""What a script sees of SIGINT and SIGTERM: its result first, then the signal."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch

import hvpopt
from hvpopt import Status
from hvpopt.run import signals
from hvpopt.run.signals import acknowledge

ROOT = Path(__file__).parents[1]

#: A script with three stages, to which signals come in the midst of chosen evaluations.
SCRIPT = """
import os, signal, sys
import torch, hvpopt

signal.signal(signal.SIGINT, signal.default_int_handler)
{setup}
calls = 0
when = {when!r}  # (stage, call of the loss, signal)


def loss(x):
    global calls
    calls += 1
    for at, call, number in when:
        if (at, call) == (stage, calls):
            os.kill(os.getpid(), number)
    return (10 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


try:
    for stage in range(3):
        calls = 0
        start = torch.tensor([-1.2, 1.0] * 3, dtype=torch.float64)
        result = hvpopt.minimize(loss, start)
        better = result.fun < result.history[0].value
        print(stage, result.status.name, better, end=";")
{between}
    print("the end", end=";")
except KeyboardInterrupt:
    print("KeyboardInterrupt", end=";")
except SystemExit as leaving:
    print("SystemExit", leaving.code, end=";")
"""
TERM, INT = int(signal.SIGTERM), int(signal.SIGINT)


def source_of(when, setup="", between=""):
    return SCRIPT.format(
        when=when,
        setup=textwrap.dedent(setup),
        between=textwrap.indent(textwrap.dedent(between), 8 * " "),
    )


def execute(source, path):
    """Run a script in a process that has imported everything already."""
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), 1)
    sys.stdout = os.fdopen(1, "w")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    exec(source, {"__name__": "__main__"})
    sys.stdout.flush()


@pytest.fixture
def ran(processes, tmp_path):
    """Return a function that runs a script: what it printed, and its exit status."""

    def run(*parts):
        path = tmp_path / "printed"
        process = processes.Process(target=execute, args=(source_of(*parts), path))
        process.start()
        process.join(120)
        printed = [line for line in path.read_text().split(";") if line]
        return printed, process.exitcode

    return run


def ran_by_python(*parts):
    """Return what a script printed that Python itself ran, and its exit status."""
    source = source_of(*parts)
    done = subprocess.run(
        [sys.executable, "-c", source],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return [line for line in done.stdout.split(";") if line], done.returncode


def test_a_script_without_signals_runs_to_its_end(ran):
    assert ran([]) == (
        [f"{k} CONVERGED True" for k in range(3)] + ["the end"],
        0,
    )


def test_terminated_script_gets_its_result_and_begins_no_other_run(ran):
    for run in (ran, ran_by_python):
        printed, status = run([(1, 20, TERM)])
        assert printed == ["0 CONVERGED True", "1 TERMINATED True"]
        assert status == -TERM


def test_handler_of_the_script_is_called_as_the_run_returns(ran):
    setup = """
        asked = []
        signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    """
    printed, status = ran(
        [(1, 20, TERM)], setup, "if asked: print('asked', end=';'); break"
    )
    assert printed == ["0 CONVERGED True", "1 TERMINATED True", "asked", "the end"]
    assert status == 0


def test_what_the_handler_raises_comes_after_the_result(ran):
    setup = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))"
    printed, status = ran([(1, 20, TERM)], setup)
    assert printed == ["0 CONVERGED True", "1 TERMINATED True", "SystemExit 7"]
    assert status == 0


def test_one_that_acknowledges_goes_on(ran):
    printed, status = ran([(1, 20, TERM)], "", "hvpopt.run.signals.acknowledge()")
    assert printed[1:] == ["1 TERMINATED True", "2 CONVERGED True", "the end"]
    assert status == 0


def test_first_interrupt_ends_one_run(ran):
    printed, status = ran([(1, 20, INT)])
    assert printed[1:] == ["1 INTERRUPTED True", "2 CONVERGED True", "the end"]
    assert status == 0


def test_second_interrupt_in_a_run_reaches_the_script(ran):
    printed, _ = ran([(1, 20, INT), (1, 20, INT)])
    assert printed[1:] == ["1 INTERRUPTED True", "KeyboardInterrupt"]


def test_second_interrupt_in_a_later_run_reaches_the_script(ran):
    printed, _ = ran([(0, 20, INT), (1, 20, INT)])
    assert printed == ["0 INTERRUPTED True", "1 INTERRUPTED True", "KeyboardInterrupt"]


def test_interrupt_between_runs_is_pythons(ran):
    printed, _ = ran([], "", "if stage == 1: os.kill(os.getpid(), signal.SIGINT)")
    assert printed[1:] == ["1 CONVERGED True", "KeyboardInterrupt"]


# -- in this process -----------------------------------------------------------------


def rosenbrock(x):
    return (10 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


@pytest.fixture
def start():
    return torch.tensor([-1.2, 1.0] * 3, dtype=torch.float64)


@pytest.fixture(autouse=True)
def pythons_handlers():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    acknowledge()
    yield
    acknowledge()
    signal.signal(signal.SIGINT, before)


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_in_a_nested_run_ends_the_outer_ones(start, number):
    ended = []

    def inner_once(_, record):
        if record.iteration == 1:
            done = []

            def inner_loss(x):
                if x.requires_grad and not done:
                    done.append(1)
                    send(number)
                return rosenbrock(x)

            losses = (inner_loss, rosenbrock)
            ended.extend(hvpopt.minimize(f, start, max_iter=9) for f in losses)

    result = hvpopt.minimize(rosenbrock, start, callback=inner_once)
    expected = Status.INTERRUPTED if number == signal.SIGINT else Status.TERMINATED
    assert [inner.status for inner in ended] == [expected] * 2
    assert [inner.nit for inner in ended] == [0, 0]
    assert result.status is expected
    assert result.nit == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_in_a_nested_start_that_fails_ends_the_outer_run(start, number):
    def failing(x):
        send(number)
        return x.sum() * torch.nan

    def callback(_, record):
        if record.iteration == 1:
            with pytest.raises(ValueError, match="nan"):
                hvpopt.minimize(failing, start)

    result = hvpopt.minimize(rosenbrock, start, callback=callback)
    expected = Status.INTERRUPTED if number == signal.SIGINT else Status.TERMINATED
    assert result.status is expected
    assert result.nit == 1


def test_interrupt_in_a_start_that_fails_reaches_the_script(start):
    def failing(x):
        send(signal.SIGINT)
        return x.sum() * torch.nan

    with pytest.raises(KeyboardInterrupt) as caught:
        hvpopt.minimize(failing, start)
    assert isinstance(caught.value.__context__, ValueError)
    assert hvpopt.minimize(rosenbrock, start).success


def test_terminate_in_a_start_that_fails_reaches_the_script(start):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:

        def failing(x):
            send(signal.SIGTERM)
            return x.sum() * torch.nan

        with pytest.raises(ValueError, match="nan"):
            hvpopt.minimize(failing, start)
        assert heard == [1]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_interrupt_that_no_result_tells_of_reaches_the_script(start):
    """It comes when the run has ended already, as the callback asked it to."""

    def callback(*_):
        send(signal.SIGINT)
        return True

    result = hvpopt.minimize(rosenbrock, start, callback=callback)
    assert result.status is Status.CALLBACK
    with pytest.raises(KeyboardInterrupt):
        hvpopt.minimize(rosenbrock, start)
    assert hvpopt.minimize(rosenbrock, start).success


def test_interrupts_of_an_interactive_session_do_not_outlive_their_run(
    start, monkeypatch
):
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)

    def callback(_, record):
        if record.iteration == 2:
            send(signal.SIGINT)

    for _ in range(3):
        result = hvpopt.minimize(rosenbrock, start, callback=callback)
        assert result.status is Status.INTERRUPTED


def test_runs_in_other_threads_deliver_nothing(start):
    signals._pending.append(signal.SIGINT)
    found = []
    thread = threading.Thread(
        target=lambda: found.append(hvpopt.minimize(rosenbrock, start))
    )
    thread.start()
    thread.join()
    assert found[0].success
    with pytest.raises(KeyboardInterrupt):
        hvpopt.minimize(rosenbrock, start)


@pytest.mark.parametrize("later", [False, True])
def test_a_signal_that_another_process_received_is_passed_on_too(start, later):
    """Whichever stage's objective has the processes."""

    class Other(hvpopt.problem.processes.Processes):
        def largest(self, number):
            return max(number, int(signal.SIGTERM) if told else 0)

    class Shared(hvpopt.TorchObjective):
        processes = Other()

    told, heard = [], []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        result = hvpopt.minimize(
            [rosenbrock, Shared(rosenbrock)] if later else Shared(rosenbrock),
            start,
            callback=lambda _, record: told.append(1) if record.iteration == 2 else None,
        )
        assert result.status is Status.TERMINATED
        assert heard == [1]
    finally:
        signal.signal(signal.SIGTERM, before)
