"""State files that are truncated, altered or not finite, at random places."""

import logging
import random
import shutil
from dataclasses import replace

import pytest
import torch
from runs import LONG, begin_or_resume, whole

import hvpopt
from hvpopt.errors import StateError
from hvpopt.run import _files as files
from hvpopt.run._checkpoint import load
from hvpopt.run._limits import Stop
from hvpopt.run.result import Status
from hvpopt.run.state_tree import encode

PLACES = 200 if LONG else 20
NAME = "trust region"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The state of a run that stopped within a step, with the state before beside it."""
    path = tmp_path_factory.mktemp("stopped") / "state"
    products = [0]
    product = hvpopt.HessianOperator._product

    def stopping(operator, vector):
        products[0] += 1
        if products[0] == 40:
            raise Stop(Status.TERMINATED)
        return product(operator, vector)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hvpopt.HessianOperator, "_product", stopping)
        result = begin_or_resume(NAME, path)
    assert result.status is Status.TERMINATED
    assert files.previous(path).exists()
    assert load(path)[1].products, "the state is to be one within a step"
    return path


@pytest.fixture
def saved(stopped, tmp_path):
    """A copy of that state, to be damaged."""
    path = tmp_path / "state"
    shutil.copy(stopped, path)
    shutil.copy(files.previous(stopped), files.previous(path))
    return path


def damage(path, draws, how):
    data = bytearray(path.read_bytes())
    place = draws.randrange(len(data))
    if how == "truncated":
        data = data[:place]
    elif how == "flipped":
        data[place] ^= 1 << draws.randrange(8)
    else:
        data[place : place + 64] = draws.randbytes(len(data[place : place + 64]))
    path.write_bytes(data)
    return place


@pytest.mark.parametrize("how", ["truncated", "flipped", "overwritten"])
def test_damaged_state_gives_way_to_the_one_before(saved, tmp_path, seed, how, caplog):
    draws = random.Random(seed)
    expected = whole(NAME).x
    before = load(files.previous(saved))[1]
    for k in range(PLACES):
        folder = tmp_path / str(k)
        folder.mkdir()
        path = folder / "state"
        shutil.copy(saved, path)
        shutil.copy(files.previous(saved), files.previous(path))
        place = damage(path, draws, how)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "hvpopt"):
            _, state, undamaged = load(path)
        assert not undamaged, f"byte {place}"
        assert "state before" in caplog.text
        assert torch.equal(state.point.vector, before.point.vector)
        assert len(state.history) == len(before.history)
        if k % 10 == 1:
            # the damaged file never becomes the one to fall back on
            begin_or_resume(NAME, path, callback=lambda *_: True)
            assert files.read(path)
            assert files.read(files.previous(path))
        if k % 10 == 0:
            assert torch.equal(begin_or_resume(NAME, path).x, expected)


def test_two_damaged_states_are_refused_in_words(saved, seed):
    draws = random.Random(seed)
    good = saved.read_bytes(), files.previous(saved).read_bytes()
    for _ in range(PLACES):
        saved.write_bytes(good[0])
        files.previous(saved).write_bytes(good[1])
        damage(saved, draws, draws.choice(["truncated", "flipped"]))
        damage(files.previous(saved), draws, draws.choice(["truncated", "flipped"]))
        with pytest.raises(StateError, match="state"):
            begin_or_resume(NAME, saved)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["vector", "gradient", "value", "product", "method"])
def test_content_that_is_not_finite_is_refused(saved, where, bad):
    problem, state, _ = load(saved)
    if where == "value":
        state = replace(state, point=replace(state.point, value=bad))
    elif where == "method":
        state = replace(state, method=replace(state.method, radius=bad))
    elif where == "product":
        state.products[0].product[3] = bad
    else:
        getattr(state.point, where)[3] = bad
    files.write(saved, *encode((problem, state)))
    with pytest.raises(StateError, match=f"{where}.*{bad}|{where}.*NaN or infinite"):
        begin_or_resume(NAME, saved)
