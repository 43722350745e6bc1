"""minimize: the loop, its ways out, its counts, its care for the caller's things."""

import logging
import math
import time

import pytest
import torch

import hvpopt
from hvpopt import Status
from hvpopt.methods.default import default_method


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


@pytest.fixture
def start():
    return torch.tensor([-1.2, 1.0] * 5, dtype=torch.float64)


@pytest.mark.parametrize("solver", ["lanczos", "cg", "cholesky"])
def test_rosenbrock_converges_to_its_minimum(start, solver):
    method = hvpopt.ShiftedNewton(solver=solver)
    result = hvpopt.minimize(rosenbrock, start, method=method, gtol=1e-9)
    assert result.status is Status.CONVERGED
    assert result.success
    gradient = torch.func.grad(rosenbrock)(result.x)
    assert float(gradient.norm()) < 1e-5
    hessian = torch.autograd.functional.hessian(rosenbrock, result.x)
    assert float(torch.linalg.eigvalsh(hessian)[0]) > 0
    assert torch.equal(result.jac, gradient)
    values = [record.value for record in result.history]
    assert values == sorted(values, reverse=True)


def test_counts_are_what_the_loss_saw(start):
    calls = {"graph": 0, "plain": 0}

    def counted(x):
        calls["graph" if torch.is_grad_enabled() else "plain"] += 1
        return rosenbrock(x)

    result = hvpopt.minimize(counted, start, max_iter=6)
    assert result.nfev == calls["plain"]
    assert result.njev == calls["graph"] == result.nit + 1
    trials = sum(record.trials for record in result.history)
    assert result.nfev == trials + 1, "one value at the door, one a trial, no more"
    products = sum(record.inner_iterations for record in result.history)
    assert result.nhev == products
    assert result.history[-1].counts.products == products


def test_dict_and_tuple_models_come_back_as_they_went_in():
    def loss(a, b):
        return ((a - 1) ** 4).sum() + ((b + 2) ** 2 * (1 + a.mean() ** 2)).sum()

    a, b = torch.zeros(2, 3, dtype=torch.float64), torch.zeros(4)
    as_tuple = hvpopt.minimize(loss, (a, b), max_iter=30)
    as_dict = hvpopt.minimize(loss, {"a": a, "b": b}, max_iter=30)
    assert isinstance(as_tuple.x, tuple)
    assert set(as_dict.x) == {"a", "b"}
    for result in (as_tuple.x, tuple(as_dict.x.values())):
        assert result[0].shape == (2, 3)
        assert result[0].dtype is torch.float64
        assert result[1].dtype is torch.float32
        assert float((result[1] + 2).abs().max()) < 1e-2


def test_nothing_of_the_callers_is_changed(start):
    kept = start.clone().requires_grad_()
    lower = torch.full_like(start, -5.0)
    hvpopt.minimize(rosenbrock, kept, lower=lower, upper=5.0, max_iter=3)
    assert torch.equal(kept, start)
    assert kept.grad is None
    assert torch.equal(lower, torch.full_like(start, -5.0))


def test_no_trial_and_no_iterate_breaks_a_bound(start):
    lower, upper = -1.3, 0.6

    def watched(x):
        assert float(x.detach().min()) >= lower
        assert float(x.detach().max()) <= upper
        return rosenbrock(x)

    result = hvpopt.minimize(watched, start.clamp(max=upper), lower=lower, upper=upper)
    assert result.status is Status.CONVERGED
    assert result.history[-1].active > 0
    # first-order conditions: inside cells flat, cells at a bound pushed outward
    gradient = torch.func.grad(rosenbrock)(result.x)
    at_upper = result.x == upper
    assert bool((gradient[at_upper] <= 0).all())
    assert float(gradient[~at_upper].abs().max()) < 1e-2


def test_scipy_agrees_on_the_bounded_minimum(start):
    from scipy.optimize import minimize as scipy_minimize

    # the box holds several minima: another method may find another
    result = hvpopt.minimize(
        rosenbrock,
        start.clamp(max=0.6),
        method=hvpopt.ShiftedNewton(),
        lower=-1.3,
        upper=0.6,
        gtol=1e-9,
    )
    reference = scipy_minimize(
        lambda z: float(rosenbrock(torch.as_tensor(z))),
        start.clamp(max=0.6).numpy(),
        jac=lambda z: torch.func.grad(rosenbrock)(torch.as_tensor(z)).numpy(),
        method="L-BFGS-B",
        bounds=[(-1.3, 0.6)] * len(start),
        options={"ftol": 1e-16, "gtol": 1e-9, "maxiter": 1000},
    )
    assert result.fun == pytest.approx(reference.fun, rel=1e-9)


def test_frozen_cells_stay_bitwise(start):
    mask = torch.ones(10, dtype=torch.bool)
    mask[3] = False
    result = hvpopt.minimize(rosenbrock, start, mask=mask, max_iter=5)
    assert result.x[3] == start[3]
    assert float((result.x - start).abs().max()) > 0.1


def test_scale_does_not_move_the_minimum():
    centre = torch.tensor([3.0, 2e3], dtype=torch.float64)

    def loss(x):
        u = (x - centre) / torch.tensor([1.0, 1e3], dtype=torch.float64)
        return (u**2).sum() + (u[0] * u[1]) ** 2 + (u**4).sum()

    x0 = torch.tensor([0.0, 1e3], dtype=torch.float64)
    result = hvpopt.minimize(loss, x0, scale=torch.tensor([1.0, 1e3]), gtol=1e-10)
    assert result.success
    assert float(((result.x - centre) / centre).abs().max()) < 1e-6


def saddle(x):
    return x[0] ** 2 - x[1] ** 2 + x[1] ** 4


def test_saddle_is_left_not_called_a_minimum():
    result = hvpopt.minimize(saddle, torch.zeros(2, dtype=torch.float64))
    assert result.success
    assert result.history[1].curvature_step
    assert float(result.x[1].abs()) == pytest.approx(math.sqrt(0.5), rel=1e-4)


def test_maximum_is_left_not_called_a_minimum():
    result = hvpopt.minimize(lambda x: x.cos().sum(), torch.zeros(3, dtype=torch.float64))
    assert result.fun == pytest.approx(-3.0, rel=1e-8)


def test_start_at_the_minimum_needs_no_step():
    result = hvpopt.minimize(lambda x: (x**2).sum(), torch.zeros(4, dtype=torch.float64))
    assert result.status is Status.CONVERGED
    assert result.nit == 0
    assert "no negative curvature" in result.message


# -- ways out ---------------------------------------------------------------------


def test_max_iter(start):
    result = hvpopt.minimize(rosenbrock, start, max_iter=2)
    assert result.status is Status.MAX_ITERATIONS
    assert not result.success
    assert result.nit == 2
    assert len(result.history) == 3


def test_no_iterations_still_evaluates_the_start(start):
    result = hvpopt.minimize(rosenbrock, start, max_iter=0)
    assert result.fun == pytest.approx(float(rosenbrock(start)))
    assert result.nhev == 0


def test_max_products_is_not_exceeded(start):
    for limit in (0, 1, 13):
        result = hvpopt.minimize(rosenbrock, start, max_products=limit)
        assert result.status is Status.MAX_PRODUCTS
        assert result.nhev <= limit
        assert result.fun <= float(rosenbrock(start))


def test_max_seconds():
    def slow(x):
        time.sleep(0.02)
        return rosenbrock(x)

    start = torch.full((30,), -1.2, dtype=torch.float64)
    began = time.monotonic()
    result = hvpopt.minimize(slow, start, max_seconds=0.2)
    assert result.status is Status.MAX_SECONDS
    assert time.monotonic() - began < 5.0
    assert result.fun < float(rosenbrock(start))


@pytest.mark.parametrize("raises", [False, True])
def test_callback_can_stop(start, raises):
    seen = []

    def callback(model, record):
        seen.append((model, record))
        if record.iteration == 2:
            if raises:
                raise StopIteration
            return True
        return False

    result = hvpopt.minimize(rosenbrock, start, callback=callback)
    assert result.status is Status.CALLBACK
    assert [record.iteration for _, record in seen] == [0, 1, 2]
    assert torch.equal(seen[-1][0], result.x)
    assert float(rosenbrock(result.x)) == pytest.approx(seen[-1][1].value)


@pytest.mark.parametrize("fatal", [9, 12, 15])
def test_interrupt_returns_the_best_model(start, fatal):
    """Ctrl-C at any evaluation: the result is the best model that was evaluated."""
    seen = []

    def loss(x):
        if len(seen) == fatal:
            raise KeyboardInterrupt
        value = rosenbrock(x)
        seen.append(float(value.detach()))
        return value

    result = hvpopt.minimize(loss, start)
    assert result.status is Status.INTERRUPTED
    assert result.fun == pytest.approx(float(rosenbrock(result.x)), rel=1e-12)
    assert result.fun < seen[0]
    assert result.history[-1].value >= result.fun


def test_failing_loss_returns_the_best_model_and_says_why(start):
    calls = []

    def loss(x):
        calls.append(1)
        if torch.is_grad_enabled() and len(calls) > 6:
            raise RuntimeError("disk quota exceeded")
        return rosenbrock(x)

    result = hvpopt.minimize(loss, start)
    assert result.status is Status.FAILED
    assert "disk quota exceeded" in result.message
    assert result.fun == pytest.approx(float(rosenbrock(result.x)), rel=1e-12)
    assert result.fun < float(rosenbrock(start))


@pytest.mark.parametrize("bad", ["nan", "inf", "raise"])
def test_step_into_forbidden_ground_is_shortened(bad, caplog):
    """The unit Newton step from 0.2 overshoots past 3, where the loss is no number."""

    def loss(x):
        if bool((x.detach() > 3).any()):
            if bad == "raise":
                raise ValueError("model faster than max_vel")
            return x.sum() * float(bad)
        return (1 + (x - 1) ** 2).sqrt().sum() * 10 + 0 * x.sum()

    start = torch.tensor([-0.9], dtype=torch.float64)
    with caplog.at_level(logging.INFO, logger="hvpopt"):
        result = hvpopt.minimize(loss, start, method=hvpopt.ShiftedNewton())
    assert result.success
    assert float(result.x) == pytest.approx(1.0, abs=1e-4)
    assert result.history[1].step_length < 1.0
    assert ("max_vel" in caplog.text) == (bad == "raise")


def test_flat_rounding_ends_without_decrease():
    """A loss whose values are too coarse to show any decrease."""

    def coarse(x):
        return x.square().sum() + (x * 0 + 1e20).sum()

    result = hvpopt.minimize(coarse, torch.ones(3, dtype=torch.float64), gtol=0.0)
    assert result.status in (Status.NO_DECREASE, Status.CONVERGED)
    if result.status is Status.NO_DECREASE:
        assert "trials" in result.message


def test_missed_inner_tolerance_is_in_the_message():
    start = torch.linspace(-1, 1, 40, dtype=torch.float64)
    method = hvpopt.ShiftedNewton(max_products=3)
    result = hvpopt.minimize(rosenbrock, start, method=method, max_iter=2)
    assert (
        "in 2 of 2 steps the linear algebra ended before its tolerance" in result.message
    )
    assert result.history[1].inner_status.name == "RESIDUAL"


def test_every_status_has_a_sentence():
    assert all(len(status.message.split()) > 4 for status in Status)


def test_progress_bar_goes_to_stderr_and_only_on_request(start, capsys):
    hvpopt.minimize(rosenbrock, start, max_iter=2)
    assert capsys.readouterr() == ("", "")
    hvpopt.minimize(rosenbrock, start, max_iter=2, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "loss=" in captured.err


def test_history_is_json(start):
    import json

    result = hvpopt.minimize(rosenbrock, start, max_iter=2)
    text = json.dumps([record.as_dict() for record in result.history])
    assert json.loads(text)[2]["inner_status"] == "CONVERGED"


def test_parts_of_a_sum_are_recorded(start):
    data = hvpopt.TorchObjective(rosenbrock, name="misfit")
    rough = hvpopt.TorchObjective(
        lambda x: x.diff().square().sum(), name="roughness", convex=True
    )
    result = hvpopt.minimize(data + 0.1 * rough, start, max_iter=3)
    for record in result.history:
        assert set(record.parts) == {"misfit", "roughness"}
        assert sum(record.parts.values()) == pytest.approx(record.value)


# -- stationary points --------------------------------------------------------------


def test_every_cell_at_its_bound_is_a_minimum():
    result = hvpopt.minimize(
        lambda x: (x**2).sum(), torch.ones(3, dtype=torch.float64), lower=1.0
    )
    assert result.status is Status.CONVERGED
    assert "every cell is held at its bound" in result.message


@pytest.mark.parametrize("seed", range(8))
def test_maximum_at_a_bound_is_left_the_open_way(seed):
    result = hvpopt.minimize(
        lambda x: -(x**2).sum(),
        torch.zeros(1, dtype=torch.float64),
        lower=0.0,
        upper=1.0,
        method=hvpopt.ShiftedNewton(seed=seed),
    )
    assert float(result.x) == 1.0
    assert result.success


def test_stationary_point_that_was_not_examined_is_no_success():
    weights = torch.linspace(1, 2, 200, dtype=torch.float64)
    weights[0] = -0.01
    result = hvpopt.minimize(
        lambda x: (weights * x**2).sum(),
        torch.zeros(200, dtype=torch.float64),
        max_products=3,
    )
    assert result.status is Status.STATIONARY
    assert not result.success


def test_dense_step_beyond_the_product_limit_is_not_begun(start):
    method = hvpopt.ShiftedNewton(solver="cholesky")
    result = hvpopt.minimize(rosenbrock, start, max_products=25, method=method)
    assert result.status is Status.MAX_PRODUCTS
    assert result.nhev == 20
    assert "a dense step takes 10 products, and 5 are left" in result.message


def test_dense_assembly_looks_at_the_clock(start):
    def slow(x):
        time.sleep(0.05)
        return rosenbrock(x)

    method = hvpopt.ShiftedNewton(solver="cholesky")
    result = hvpopt.minimize(slow, start, max_seconds=0.12, method=method)
    assert result.status is Status.MAX_SECONDS


def test_what_a_callback_raises_is_raised(start):
    def callback(*_):
        raise AttributeError("my own bug")

    with pytest.raises(AttributeError, match="my own bug"):
        hvpopt.minimize(rosenbrock, start, callback=callback)


def test_preconditioner_of_another_size_is_refused_in_words(start):
    diagonal = hvpopt.DiagonalPreconditioner(torch.ones(7, dtype=torch.float64))
    method = hvpopt.ShiftedNewton(solver="cg", preconditioner=diagonal)
    with pytest.raises(ValueError, match="the diagonal \\(7,\\)"):
        hvpopt.minimize(rosenbrock, start, method=method)


def test_default_method_follows_the_objective(start):
    plain = hvpopt.TorchObjective(rosenbrock)
    assert isinstance(default_method(plain), hvpopt.TrustRegionNewton)
    convex = hvpopt.TorchObjective(lambda x: (x * x).sum(), convex=True)
    assert isinstance(default_method(convex), hvpopt.QuasiNewton)
    assert isinstance(default_method(plain + convex), hvpopt.TrustRegionNewton)
    assert hvpopt.minimize(rosenbrock, start).success


@pytest.mark.parametrize(
    "method",
    [
        hvpopt.TrustRegionNewton(),
        hvpopt.ShiftedNewton(),
        hvpopt.LineSearchNewton(),
        hvpopt.QuasiNewton(initial=hvpopt.GradientScale()),
    ],
)
def test_degenerate_saddle_is_left(method):
    """At the monkey saddle gradient and Hessian both vanish."""

    def monkey(x):
        return x[0] ** 3 - 3 * x[0] * x[1] ** 2 + (x * x).sum() ** 2

    start = torch.zeros(2, dtype=torch.float64)
    result = hvpopt.minimize(monkey, start, method=method)
    assert result.success
    assert result.fun == pytest.approx(-27 / 256)
