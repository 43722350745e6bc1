"""The history as JSON lines: strict, complete, and growing while the run goes."""

import json
import logging
import math

import pytest
import torch

import hvpopt
from hvpopt.run.history import HistoryFile, line_of
from hvpopt.run.result import IterationRecord


def loss(x):
    return (10 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


@pytest.fixture
def start():
    return torch.tensor([-1.2, 1.0] * 3, dtype=torch.float64)


def strict(text):
    """Parse JSON lines, with neither NaN nor infinity."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_each_record_is_a_line_that_says_the_same(start, tmp_path):
    path = tmp_path / "run.jsonl"
    result = hvpopt.minimize(loss, start, history_file=path)
    lines = strict(path.read_text())
    assert len(lines) == result.nit + 1
    for line, record in zip(lines, result.history, strict=True):
        for key, value in record.as_dict().items():
            unknown = isinstance(value, float) and not math.isfinite(value)
            assert line[key] == (None if unknown else value)


def test_lines_are_there_while_the_run_goes(start, tmp_path):
    path = tmp_path / "run.jsonl"
    seen = []
    hvpopt.minimize(
        loss,
        start,
        history_file=path,
        callback=lambda *_: seen.append(len(strict(path.read_text()))),
    )
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) > 3


def test_a_new_run_replaces_what_is_there(start, tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text("another\n" * 100)
    result = hvpopt.minimize(loss, start, history_file=path)
    assert len(strict(path.read_text())) == result.nit + 1


def records(n):
    return [IterationRecord(k, 1.0 / (k + 1), seconds=0.1 * k) for k in range(n)]


@pytest.mark.parametrize(
    "tail",
    ["", '{"iteration": 4, "val', line_of(IterationRecord(4, 9.0)) + "\n", "\n"],
)
@pytest.mark.parametrize("lines_there", [0, 2, 4])
def test_a_resumed_file_holds_every_record_once(tmp_path, tail, lines_there):
    path = tmp_path / "run.jsonl"
    known = records(4)
    there = [line_of(record) + "\n" for record in known[:lines_there]]
    path.write_text("".join(there) + tail)
    file = HistoryFile(path, known)
    file.add(records(5)[4])
    assert path.read_text() == "".join(line_of(record) + "\n" for record in records(5))


def test_what_a_follower_has_read_stays_in_place(tmp_path):
    path = tmp_path / "run.jsonl"
    known = records(3)
    path.write_text("".join(line_of(record) + "\n" for record in known))
    with open(path) as follower:
        follower.read()
        HistoryFile(path, known).add(records(4)[3])
        assert [line["iteration"] for line in strict(follower.read())] == [3]


def test_a_file_that_becomes_unwritable_ends_no_run(start, tmp_path, caplog):
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "run.jsonl"

    def remove(*_):
        path.unlink(missing_ok=True)
        if folder.exists():
            folder.rmdir()

    with caplog.at_level(logging.WARNING, "hvpopt"):
        result = hvpopt.minimize(loss, start, history_file=path, callback=remove)
    assert result.success
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(path) in caplog.text


@pytest.mark.parametrize("bad", [3, True, ["a"]])
def test_a_path_of_another_type_is_refused(start, bad):
    with pytest.raises(TypeError, match="history_file"):
        hvpopt.minimize(loss, start, history_file=bad)


def test_an_empty_path_is_no_wish_for_none(start):
    with pytest.raises(ValueError, match="directory"):
        hvpopt.minimize(loss, start, history_file="")


def test_a_directory_is_refused(start, tmp_path):
    with pytest.raises(ValueError, match="directory"):
        hvpopt.minimize(loss, start, history_file=tmp_path)


def test_the_library_prints_nothing(start, tmp_path, capfd):
    path = tmp_path / "state"
    hvpopt.minimize(loss, start, checkpoint=path, history_file=tmp_path / "h", max_iter=2)
    hvpopt.minimize(loss, start, checkpoint=path, max_iter=4)
    assert capfd.readouterr() == ("", "")
