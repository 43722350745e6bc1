"""SIGINT, SIGTERM and the clock: an orderly end, a saved state, handlers put back."""

import os
import signal
import threading
import time

import pytest
import torch

import hvpopt
from hvpopt import Status
from hvpopt.run._checkpoint import load
from hvpopt.run.signals import HEARD, SignalListener, acknowledge


@pytest.fixture(autouse=True)
def interrupts_are_heard():
    """A shell's background job ignores them, and so would a run in one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    acknowledge()
    yield
    acknowledge()
    signal.signal(signal.SIGINT, before)


def rosenbrock(x):
    return (10 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


@pytest.fixture
def start():
    return torch.tensor([-1.2, 1.0] * 5, dtype=torch.float64)


@pytest.fixture
def on_product(monkeypatch):
    """Do something in the midst of a product, by its number."""
    made = [0]
    actions = {}
    product = hvpopt.HessianOperator._product

    def watched(operator, vector):
        made[0] += 1
        actions.get(made[0], lambda: None)()
        return product(operator, vector)

    monkeypatch.setattr(hvpopt.HessianOperator, "_product", watched)
    return made, actions


def send(number):
    return lambda: os.kill(os.getpid(), number)


STATUS = {signal.SIGINT: Status.INTERRUPTED, signal.SIGTERM: Status.TERMINATED}


@pytest.mark.parametrize("number", HEARD)
@pytest.mark.parametrize("saving", [True, False])
def test_signal_ends_the_run_after_the_product(
    start, tmp_path, on_product, number, saving
):
    made, actions = on_product
    whole = hvpopt.minimize(rosenbrock, start)
    before = [signal.getsignal(heard) for heard in HEARD]
    made[0], actions[23] = 0, send(number)
    path = tmp_path / "state"
    options = {"checkpoint": path} if saving else {}
    result = hvpopt.minimize(rosenbrock, start, **options)
    assert result.status is STATUS[number]
    assert not result.success
    assert made[0] == 23 == result.nhev, "the product under way was ended, and no other"
    assert [signal.getsignal(heard) for heard in HEARD] == before
    assert result.fun == rosenbrock(result.x).item()
    if saving:
        assert load(path)[1].products
        acknowledge()
        on = hvpopt.minimize(rosenbrock, start, checkpoint=path)
        assert torch.equal(on.x, whole.x)
        assert on.counts == whole.counts
        assert made[0] == whole.nhev, "no product was made twice"


@pytest.mark.parametrize("number", HEARD)
def test_signal_in_a_loss_that_swallows_every_exception(start, number):
    calls = [0]

    def loss(x):
        calls[0] += 1
        try:
            if calls[0] == 9:
                send(number)()
        except Exception:
            return torch.full((), torch.nan)
        return rosenbrock(x)

    result = hvpopt.minimize(loss, start)
    assert result.status is STATUS[number]


def test_second_interrupt_does_not_wait(start, tmp_path, on_product):
    made, actions = on_product
    path = tmp_path / "state"

    def twice():
        send(signal.SIGINT)()
        send(signal.SIGINT)()
        raise AssertionError("the second signal came too late")

    actions[23] = twice
    result = hvpopt.minimize(rosenbrock, start, checkpoint=path)
    assert result.status is Status.INTERRUPTED
    assert result.nhev == 22
    del actions[23]
    made[0] = 0
    acknowledge()
    on = hvpopt.minimize(rosenbrock, start, checkpoint=path)
    whole = hvpopt.minimize(rosenbrock, start)
    assert torch.equal(on.x, whole.x)


def test_handlers_are_put_back_when_the_run_raises(start):
    before = [signal.getsignal(heard) for heard in HEARD]

    def callback(*_):
        assert [signal.getsignal(heard) for heard in HEARD] != before
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        hvpopt.minimize(rosenbrock, start, callback=callback)
    assert [signal.getsignal(heard) for heard in HEARD] == before


def test_handlers_of_the_caller_are_put_back(start):
    heard = []
    old = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        hvpopt.minimize(rosenbrock, start, max_iter=2)
        send(signal.SIGTERM)()
        assert heard == [1]
    finally:
        signal.signal(signal.SIGTERM, old)


def test_ignored_signal_stays_ignored(start):
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        result = hvpopt.minimize(
            rosenbrock, start, callback=lambda *_: send(signal.SIGINT)()
        )
        assert result.success
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, old)


def test_other_threads_install_nothing(start):
    before = [signal.getsignal(heard) for heard in HEARD]
    found = []

    def callback(*_):
        found.append([signal.getsignal(heard) for heard in HEARD])

    run = threading.Thread(
        target=lambda: hvpopt.minimize(rosenbrock, start, callback=callback, max_iter=2)
    )
    run.start()
    run.join()
    assert found == [before] * 3


def test_runs_within_runs_put_handlers_back_in_order():
    before = [signal.getsignal(heard) for heard in HEARD]
    with SignalListener() as outer:
        own = [signal.getsignal(heard) for heard in HEARD]
        with SignalListener() as inner:
            send(signal.SIGTERM)()
        assert inner.received == signal.SIGTERM
        assert outer.received == signal.SIGTERM
        assert [signal.getsignal(heard) for heard in HEARD] == own
    assert [signal.getsignal(heard) for heard in HEARD] == before


def test_clock_ends_a_saved_run_within_a_step(start, tmp_path, on_product):
    made, actions = on_product
    whole = hvpopt.minimize(rosenbrock, start)
    made[0], actions[23] = 0, lambda: time.sleep(1.0)
    path = tmp_path / "state"
    result = hvpopt.minimize(rosenbrock, start, checkpoint=path, max_seconds=0.9)
    assert result.status is Status.MAX_SECONDS
    assert made[0] <= 23
    made[0] = 100  # beyond the sleep
    on = hvpopt.minimize(rosenbrock, start, checkpoint=path)
    assert torch.equal(on.x, whole.x)
    assert on.counts == whole.counts


def test_a_limit_in_seconds_leaves_room_to_save(start, tmp_path, monkeypatch):
    from hvpopt.run import _files as files

    write = files.write

    def slowly(*arguments, **options):
        time.sleep(0.2)
        write(*arguments, **options)

    monkeypatch.setattr(files, "write", slowly)

    def loss(x):
        time.sleep(0.02)
        return rosenbrock(x)

    began = time.monotonic()
    result = hvpopt.minimize(
        loss, start, checkpoint=tmp_path / "state", checkpoint_every=100, max_seconds=1.2
    )
    assert result.status is Status.MAX_SECONDS
    assert time.monotonic() - began < 1.2
    assert len(load(tmp_path / "state")[1].history) == result.nit + 1
