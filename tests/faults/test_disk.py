"""Disks that are full or cannot be written: one warning, and the run goes on."""

import errno
import logging
import os
import random

import torch
from runs import LONG, begin_or_resume, run_to_the_end, whole

from hvpopt.run import _files as files

NAME = "trust region"


def test_file_size_limit_ends_no_run(processes, tmp_path):
    process = processes.Process(
        target=run_to_the_end, args=(NAME, str(tmp_path), None, 2000)
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    assert not list(tmp_path.glob("state*")), "and no half file stays"


def test_disk_that_fills_up_keeps_the_last_state(tmp_path, monkeypatch, caplog, seed):
    draws = random.Random(seed)
    expected = whole(NAME).x
    sync = os.fsync
    for k in range(20 if LONG else 2):
        path = tmp_path / f"state{k}"
        full = draws.randrange(3, 60)
        calls = [0]

        def fill(descriptor, full=full, calls=calls):
            calls[0] += 1
            if calls[0] > full:
                raise OSError(errno.ENOSPC, "No space left on device")
            sync(descriptor)

        caplog.clear()
        with caplog.at_level(logging.WARNING, "hvpopt"):
            monkeypatch.setattr(os, "fsync", fill)
            result = begin_or_resume(NAME, path, checkpoint_seconds=0.0)
            monkeypatch.setattr(os, "fsync", sync)
        assert torch.equal(result.x, expected)
        assert caplog.text.count("No space left") == 1
        assert files.read(path)
        beside = [file.name for file in tmp_path.glob(f"state{k}.*")]
        assert beside == [f"state{k}.previous"]
        assert torch.equal(begin_or_resume(NAME, path).x, expected)


def test_unwritable_path_is_warned_of_once(tmp_path, caplog):
    path = tmp_path / "missing" / "file"
    with caplog.at_level(logging.WARNING, "hvpopt"):
        result = begin_or_resume(NAME, tmp_path / "state", history_file=path)
    assert torch.equal(result.x, whole(NAME).x)
    assert len(caplog.records) == 1
    assert str(path) in caplog.text
