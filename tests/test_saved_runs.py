"""Saved runs are safe, or say that they are not."""

import contextlib
import errno
import json
import logging
import os
import signal
import socket
import sys
import threading

import pytest
import torch

import hvpopt
from hvpopt.run import _files as files
from hvpopt.run._checkpoint import load
from hvpopt.run._lock import PathLock
from hvpopt.run.history import HistoryFile, line_of
from hvpopt.run.result import IterationRecord

unix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")


def rosenbrock(x):
    return (10 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


@pytest.fixture
def start():
    return torch.tensor([-1.2, 1.0] * 5, dtype=torch.float64)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state"


# -- what cannot be saved is refused ----------------------------------------------


def counting():
    calls = [0]

    def loss(x):
        calls[0] += 1
        return rosenbrock(x)

    return loss, calls


def test_a_missing_directory_is_refused_before_the_loss_is_called(start, tmp_path):
    loss, calls = counting()
    with pytest.raises(FileNotFoundError, match=r"no directory .*missing; make it"):
        hvpopt.minimize(loss, start, checkpoint=tmp_path / "missing" / "state")
    assert calls == [0]


def test_a_file_in_place_of_the_directory_is_refused(start, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="no directory"):
        hvpopt.minimize(rosenbrock, start, checkpoint=tmp_path / "file" / "state")


def test_a_directory_that_cannot_be_written_is_refused(start, path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    loss, calls = counting()
    monkeypatch.setattr("hvpopt.run._lock.os.open", refuse)
    with pytest.raises(PermissionError, match=r"nothing can be saved to .*state"):
        hvpopt.minimize(loss, start, checkpoint=path)
    assert calls == [0]


class Mine:
    """A caller's preconditioner, of which no state knows."""

    def apply(self, vector):
        return vector


def test_a_preconditioner_that_no_state_holds_is_refused_when_it_is_built(start, path):
    method = hvpopt.LineSearchNewton(preconditioner=lambda *_: Mine())
    objective = hvpopt.TorchObjective(rosenbrock)
    with pytest.raises(TypeError, match=r"Mine.*which a saved state cannot hold"):
        hvpopt.minimize(
            objective, start, method=method, checkpoint=path, checkpoint_every=50
        )
    assert objective.counts.products == 0
    assert list(path.parent.iterdir()) == [], "the same call may be made again"
    assert hvpopt.minimize(objective, start, method=method).success


def test_a_given_preconditioner_is_no_part_of_the_state(start, path):
    method = hvpopt.LineSearchNewton(preconditioner=Mine())
    assert hvpopt.minimize(rosenbrock, start, method=method, checkpoint=path).success


@pytest.mark.parametrize("when", [0, 1])
def test_a_method_whose_state_no_file_holds_is_refused(start, path, when):
    class Odd(hvpopt.ShiftedNewton):
        def start(self, problem):
            return super().start(problem) if when else object()

        def update(self, *_):
            return object()

    objective = hvpopt.TorchObjective(rosenbrock)
    with pytest.raises(TypeError, match="method's state is a object"):
        hvpopt.minimize(
            objective, start, method=Odd(), checkpoint=path, checkpoint_every=50
        )
    if when == 0:
        assert objective.counts == hvpopt.Counts(values=1)
    assert list(path.parent.iterdir()) == []


# -- failures to save are told ---------------------------------------------------------


def failing_at(monkeypatch, saves):
    """Let some saves fail, by number from 1."""
    made = [0]
    write = files.write

    def maybe(*args, **kwargs):
        made[0] += 1
        if made[0] in saves:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*args, **kwargs)

    monkeypatch.setattr(files, "write", maybe)
    return made


def test_each_failure_after_a_success_is_warned_of(start, path, monkeypatch, caplog):
    failing_at(monkeypatch, {2, 3, 5})  # the first save is of the start
    result = hvpopt.minimize(rosenbrock, start, checkpoint=path, max_iter=5)
    warned = [r for r in caplog.records if "cannot be saved" in r.getMessage()]
    assert len(warned) == 2
    assert "is saved in" not in result.message
    assert len(load(path)[1].history) == 6


def test_the_message_names_the_step_that_was_saved_last(start, path, monkeypatch):
    failing_at(monkeypatch, set(range(4, 100)))
    result = hvpopt.minimize(rosenbrock, start, checkpoint=path, max_iter=5)
    assert f"the state after step 2 is saved in {path}" in result.message
    assert "No space left" in result.message
    again = hvpopt.minimize(rosenbrock, start, checkpoint=path, max_iter=4)
    assert "the state after step 2 is saved in" in again.message
    assert len(load(path)[1].history) == 3


def test_the_message_says_that_nothing_was_saved(start, path, monkeypatch):
    failing_at(monkeypatch, set(range(100)))
    result = hvpopt.minimize(rosenbrock, start, checkpoint=path, max_iter=2)
    assert f"no state is saved in {path}" in result.message


# -- one run at a path -------------------------------------------------------------------


def test_a_second_run_at_a_path_names_the_first(start, path):
    told = []

    def callback(_, record):
        if record.iteration != 1:
            return
        with pytest.raises(BlockingIOError, match="in use") as caught:
            hvpopt.minimize(rosenbrock, start, checkpoint=path)
        told.append(str(caught.value))

    result = hvpopt.minimize(rosenbrock, start, checkpoint=path, callback=callback)
    assert result.success
    assert len(told) == 1
    for text in told:
        assert f"{os.getpid()} on {socket.gethostname()}" in text
    assert sorted(p.name for p in path.parent.iterdir()) == ["state", "state.previous"]


def hold(path, held, until):
    """Run with a state at a path until told to stop; in a child process."""

    def callback(_, record):
        if record.iteration == 2:
            held.set()
            until.wait(60.0)

    x = torch.tensor([-1.2, 1.0] * 5, dtype=torch.float64)
    hvpopt.minimize(rosenbrock, x, checkpoint=path, callback=callback)


def test_a_run_of_another_process_is_named_and_its_death_frees_the_path(
    processes, start, path
):
    held, until = processes.Event(), processes.Event()
    process = processes.Process(target=hold, args=(path, held, until), daemon=True)
    process.start()
    try:
        assert held.wait(120.0)
        host = socket.gethostname()
        with pytest.raises(BlockingIOError, match=f"process {process.pid} on {host}"):
            hvpopt.minimize(rosenbrock, start, checkpoint=path)
        process.kill()
        process.join(60.0)
        (path.parent / "state.1234-0123abcd.new").write_text("what a save has left")
        whole = hvpopt.minimize(rosenbrock, start)
        assert torch.equal(hvpopt.minimize(rosenbrock, start, checkpoint=path).x, whole.x)
        left = sorted(p.name for p in path.parent.iterdir())
        assert left == ["state", "state.previous"]
    finally:
        process.kill()
        process.join(60.0)


@unix
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_that_is_forked_holds_no_lock(path):
    read, write = os.pipe()
    with PathLock(path):
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)  # until the parent lets go
            os._exit(0)
    try:
        os.close(read)
        with PathLock(path) as lock:
            assert lock.held
    finally:
        os.close(write)
        os.waitpid(child, 0)


def test_many_that_want_a_lock_get_it_one_at_a_time(path):
    inside, most, got = [0], [0], [0]
    guard = threading.Lock()

    def work():
        for _ in range(100):
            with contextlib.suppress(BlockingIOError), PathLock(path):
                with guard:
                    inside[0] += 1
                    got[0] += 1
                    most[0] = max(most[0], inside[0])
                with guard:
                    inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert got[0] >= 1  # how many others found it taken is a matter of time
    assert list(path.parent.iterdir()) == []


def test_where_there_are_no_locks_a_warning_says_so(start, path, monkeypatch, caplog):
    def refuse(_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("hvpopt.run._lock._lock", refuse)
    other = path.parent / "state.99-0123abcd.new"
    other.write_text("perhaps of another process")
    assert hvpopt.minimize(rosenbrock, start, checkpoint=path).success
    assert "no other process" in caplog.text
    assert other.exists()


def test_temporary_names_are_used_once(path, monkeypatch):
    names = []
    save = files.save_tensors

    def noted(tensors, file, metadata):
        names.append(file.name)
        save(tensors, file, metadata)

    monkeypatch.setattr(files, "save_tensors", noted)
    for k in range(3):
        files.write(path, k, {})
    assert len(set(names)) == 3
    assert all(str(os.getpid()) in name for name in names)


# -- links, directories, devices ---------------------------------------------


@unix
@pytest.mark.parametrize("begun", [False, True])
def test_a_link_stays_a_link(start, tmp_path, begun):
    (tmp_path / "big").mkdir()
    link, target = tmp_path / "state", tmp_path / "big" / "run"
    link.symlink_to(target)
    whole = hvpopt.minimize(rosenbrock, start)
    steps = 3 if begun else 100
    result = hvpopt.minimize(rosenbrock, start, checkpoint=link, max_iter=steps)
    if begun:
        result = hvpopt.minimize(rosenbrock, start, checkpoint=link, max_iter=100)
    assert torch.equal(result.x, whole.x)
    assert link.is_symlink()
    assert not target.is_symlink()
    assert {p.name for p in target.parent.iterdir()} == {"run", "run.previous"}


def test_relative_paths_survive_another_directory(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()

    def leave(*_):
        os.chdir(tmp_path / "elsewhere")

    result = hvpopt.minimize(
        rosenbrock, start, checkpoint="state", history_file="lines", callback=leave
    )
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert len(load(tmp_path / "state")[1].history) == result.nit + 1
    assert len((tmp_path / "lines").read_text().splitlines()) == result.nit + 1


def test_a_state_comes_to_the_device_that_is_asked_for(start, path):
    """``meta`` stands in for a device that this machine may lack."""
    hvpopt.minimize(rosenbrock, start, checkpoint=path, max_iter=3)
    _, state, _ = load(path, "meta")
    assert {state.point.vector.device.type, state.first.device.type} == {"meta"}
    assert load(path)[1].point.vector.device.type == "cpu"


# -- the history ---------------------------------------------------------------


def records(n):
    return [IterationRecord(k, 1.0 / (k + 1), seconds=0.1 * k) for k in range(n)]


def lines(path):
    return [json.loads(line)["iteration"] for line in path.read_text().splitlines()]


@unix
@pytest.mark.parametrize("room", [1, 50, 300, 700])
def test_a_disk_that_was_full_leaves_no_joined_line(tmp_path, room):
    """Limited in a child, whose files cannot grow for a while."""
    path = tmp_path / "run.jsonl"
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            import resource

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            file = HistoryFile(path)
            for k, record in enumerate(records(9)):
                if k == 2:
                    limit = path.stat().st_size + room
                    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
                if k == 6:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
                file.add(record)
            status = 0
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    expected = "".join(line_of(record) + "\n" for record in records(9))
    assert path.read_text() == expected


def test_each_failure_of_the_history_after_a_success_is_warned_of(tmp_path, caplog):
    path = tmp_path / "folder" / "run.jsonl"
    with caplog.at_level(logging.WARNING, "hvpopt"):
        file = HistoryFile(path)
        file.add(records(1)[0])
        path.parent.mkdir()
        for record in records(3)[1:]:
            file.add(record)
        assert lines(path) == [0, 1, 2]
        path.unlink()
        path.parent.rmdir()
        for record in records(5)[3:]:
            file.add(record)
    assert len(caplog.records) == 2
    path.parent.mkdir()
    file.add(records(6)[5])
    assert lines(path) == [3, 4, 5], "those that were there are gone with the file"


def test_half_a_line_that_somebody_left_is_cut(tmp_path):
    path = tmp_path / "run.jsonl"
    file = HistoryFile(path)
    file.add(records(1)[0])
    with open(path, "a") as other:
        other.write('{"iteration": 7, "val' + "x" * 9000)
    file.add(records(2)[1])
    assert lines(path) == [0, 1]
