"""QuasiNewton: minima against scipy, costs, bounds, and the curvature it begins with."""

import dataclasses
import itertools

import numpy as np
import pytest
import scipy.optimize
import torch
from tolerances import PRODUCT
from waves import SHAPE, D, arguments, models_of, one_thread, rand

import hvpopt
from hvpopt.fwi import Survey, WaveformMisfit
from hvpopt.krylov.diagonal import estimate_diagonal, mean_and_error
from hvpopt.methods.method import Direction, Step
from hvpopt.methods.points import Budget, Point, Problem

__all__ = ["one_thread"]


def quartic(generator, n):
    """A convex function whose Hessian is far from its diagonal, and its start."""
    a = torch.randn(n, n, generator=generator, dtype=D) / n**0.5
    b = torch.randn(n, generator=generator, dtype=D)

    def loss(x):
        return ((a @ x - b) ** 2).sum() + 0.1 * (x**4).sum()

    return loss, torch.randn(n, generator=generator, dtype=D)


def scipy_minimum(loss, x, bounds=None):
    def both(z):
        t = torch.as_tensor(z.copy()).requires_grad_()
        value = loss(t)
        (gradient,) = torch.autograd.grad(value, t)
        return float(value.detach()), gradient.numpy()

    options = {"maxiter": 10000, "maxfun": 20000, "ftol": 1e-16, "gtol": 1e-10}
    return scipy.optimize.minimize(
        both, x.numpy(), jac=True, method="L-BFGS-B", bounds=bounds, options=options
    )


@pytest.mark.parametrize("initial", [None, hvpopt.HessianDiagonal(n_probes=5, smooth=0)])
def test_minimum_is_scipys(initial, generator):
    loss, x = quartic(generator, 30)
    method = hvpopt.QuasiNewton(initial=initial)
    result = hvpopt.minimize(loss, x, method=method, max_iter=500, gtol=1e-8)
    expected = scipy_minimum(loss, x)
    assert result.status is hvpopt.Status.CONVERGED
    assert np.abs(result.x.numpy() - expected.x).max() < 1e-6


def test_minimum_within_bounds_is_scipys(generator):
    loss, _ = quartic(generator, 30)
    x = torch.zeros(30, dtype=D)
    seen = []

    def watched(t):
        seen.append(t.detach().clone())
        return loss(t)

    result = hvpopt.minimize(
        watched,
        x,
        method=hvpopt.QuasiNewton(),
        lower=-0.2,
        upper=0.3,
        max_iter=500,
        gtol=1e-8,
    )
    expected = scipy_minimum(loss, x, [(-0.2, 0.3)] * 30)
    assert result.success
    assert result.history[-1].active > 0
    assert np.abs(result.x.numpy() - expected.x).max() < 1e-6
    assert all(bool(((t >= -0.2) & (t <= 0.3)).all()) for t in seen)


def test_exact_diagonal_solves_a_separable_quadratic_at_once(generator):
    d = rand((40,), generator, 0.5, 50.0)
    b = rand((40,), generator, -1)
    method = hvpopt.QuasiNewton(
        initial=hvpopt.HessianDiagonal(n_probes=1, smooth=0, damping=1e-15)
    )
    result = hvpopt.minimize(
        lambda x: 0.5 * (d * x * x).sum() - (b * x).sum(),
        torch.zeros_like(b),
        method=method,
    )
    first, second = result.history[:2]
    assert second.gradient_norm <= 1e-10 * first.gradient_norm
    assert result.nit <= 1 + 3, "a guess is believed after three small steps"
    assert (result.x - b / d).norm() <= 1e-12 * (b / d).norm()


def test_accepted_unit_steps_cost_one_gradient_each(generator):
    loss, x = quartic(generator, 30)
    objective = hvpopt.TorchObjective(loss, convex=True)
    records = []
    hvpopt.minimize(
        objective,
        x,
        method=hvpopt.QuasiNewton(),
        max_iter=25,
        callback=lambda _, record: records.append(record),
    )
    spent = [b.counts - a.counts for a, b in itertools.pairwise(records)]
    assert spent[0].products == 4
    assert sum(s.products for s in spent[1:]) == 0
    gradient_first = [
        s
        for s, before, after in zip(spent[1:], records[1:], records[2:], strict=False)
        if before.step_length == after.step_length == 1.0
    ]
    assert gradient_first
    assert all((s.gradients, s.values) == (1, 0) for s in gradient_first)


@pytest.mark.parametrize(
    ("loss", "start"),
    [
        (lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4, [0.0, 0.0]),
        (lambda x: x.cos().sum(), [0.0, 0.0]),
    ],
)
def test_no_success_at_a_saddle_or_maximum(loss, start):
    x = torch.tensor(start, dtype=D)
    result = hvpopt.minimize(loss, x, method=hvpopt.QuasiNewton(), max_iter=200)
    assert result.success
    H = torch.autograd.functional.hessian(loss, result.x)
    assert float(torch.linalg.eigvalsh(H)[0]) > 0


def test_rosenbrock(generator):
    def loss(x):
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    x = 1 + 0.3 * torch.randn(12, generator=generator, dtype=D)
    method = hvpopt.QuasiNewton()
    result = hvpopt.minimize(loss, x, method=method, max_iter=1000, gtol=1e-9)
    assert result.success
    # the Hessian's smallest eigenvalue at the minimum is about a half
    first = max(record.gradient_norm for record in result.history)
    assert float((result.x - 1).norm()) < 4.0 * 1e-9 * first


def waveform_misfit(generator, **options):
    survey = Survey("scalar", **arguments("scalar", 4))
    (v_true,) = models_of("scalar", generator)
    return WaveformMisfit(survey, survey.simulate(v_true), **options)


def test_waveform_probes_are_encoded_and_cost_one_product(generator):
    misfit = waveform_misfit(generator)
    (v,) = models_of("scalar", generator)
    result = hvpopt.minimize(
        misfit, v, method=hvpopt.QuasiNewton(), lower=1550.0, upper=2250.0, max_iter=1
    )
    counts = result.counts
    assert counts.products in (2 + 2, 4 + 3), "probes, and two or three for the scale"
    waves = counts.propagations - 4 * counts.values - 8 * counts.gradients
    assert waves == 4 * counts.products, "one encoded shot each"
    assert result.fun < result.history[0].value


def test_measured_diagonal_is_the_mean_of_sketches(generator, seed):
    misfit = waveform_misfit(generator)
    (v,) = models_of("scalar", generator)
    space = hvpopt.ModelSpace(v)
    problem = Problem(misfit, space)
    point = problem.linearise(space.to_vector(v), None)
    state = hvpopt.HessianDiagonal(n_probes=6, smooth=0).build(
        problem, point, seed, Budget()
    )
    found = []
    for k in range(2 if state.uniform else 6):
        draws = torch.Generator().manual_seed(seed + k)
        signs = torch.randint(0, 2, (space.size,), generator=draws, dtype=torch.int8)
        z = 2.0 * signs.double() - 1.0
        H = misfit.sample(1, seed=seed + k).hessian(v, "gauss-newton")
        found.append(z * (H @ z.reshape(SHAPE)).flatten())
    stacked = torch.stack(found)
    expected = stacked.mean(0).clamp(min=0)
    assert (state.diagonal - expected).norm() <= PRODUCT * expected.norm()
    error = (stacked.var(0, correction=1) / len(found)).mean().sqrt()
    assert state.damping == pytest.approx(min(float(error / expected.max()), 1.0))


def test_standard_error_is_that_of_repeated_estimates(generator, seed):
    a = torch.randn(60, 60, generator=generator, dtype=D)
    operator = hvpopt.MatrixOperator(a @ a.mT)
    probed = [estimate_diagonal(operator, n_probes=1, seed=seed + k) for k in range(480)]
    found = [mean_and_error(probed[k : k + 8]) for k in range(0, 480, 8)]
    scatter = torch.stack([mean for mean, _ in found]).var(0).mean().sqrt()
    stated = np.mean([error for _, error in found])
    assert stated == pytest.approx(float(scatter), rel=0.1)


def test_refresh_measures_again(generator):
    loss, x = quartic(generator, 20)
    objective = hvpopt.TorchObjective(loss, convex=True)
    method = hvpopt.QuasiNewton(refresh=4)
    result = hvpopt.minimize(objective, x, method=method, max_iter=9, gtol=0)
    assert result.nhev == 3 * 4


def test_graphs_of_probes_are_closed(generator, monkeypatch):
    loss, x = quartic(generator, 20)
    closed = []
    close = hvpopt.HessianOperator.close
    monkeypatch.setattr(
        hvpopt.HessianOperator, "close", lambda self: (closed.append(1), close(self))
    )
    hvpopt.minimize(loss, x, method=hvpopt.QuasiNewton(), max_iter=1)
    assert len(closed) == 1


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: hvpopt.QuasiNewton(memory=0), ValueError, "memory is 0"),
        (lambda: hvpopt.QuasiNewton(refresh=0), ValueError, "refresh is 0"),
        (lambda: hvpopt.QuasiNewton(initial="diagonal"), TypeError, "str"),
        (lambda: hvpopt.HessianDiagonal(n_probes=0), ValueError, "n_probes is 0"),
        (lambda: hvpopt.HessianDiagonal(smooth=-1.0), ValueError, "smooth is -1"),
        (lambda: hvpopt.HessianDiagonal(damping=0.0), ValueError, "damping is 0"),
        (lambda: hvpopt.QuasiNewton(confidence=1.5), ValueError, "confidence is 1.5"),
        (lambda: hvpopt.QuasiNewton(max_products=0), ValueError, "max_products is 0"),
        (lambda: hvpopt.QuasiNewton(eigenvalue_floor=-1), ValueError, "floor is -1"),
        (lambda: hvpopt.QuasiNewton(globalisation=hvpopt.Wolfe()), TypeError, "Wolfe"),
    ],
)
def test_options_at_the_door(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize("method", [hvpopt.QuasiNewton(), hvpopt.TrustRegionNewton()])
def test_a_loss_without_curvature_goes_to_its_bounds(method):
    line = hvpopt.TorchObjective(lambda x: (2 * x + 0 * x**2).sum(), convex=True)
    start = torch.ones(5, dtype=D)
    result = hvpopt.minimize(line, start, method=method, lower=-3.0)
    assert result.success
    assert bool((result.x == -3.0).all())


def test_probes_that_miss_the_curvature_do_not_end_the_run():
    for seed in range(6):
        result = hvpopt.minimize(
            hvpopt.TorchObjective(lambda x: (x[0] - x[1]) ** 2, convex=True),
            torch.tensor([3.0, -1.0], dtype=D),
            method=hvpopt.QuasiNewton(seed=seed),
        )
        assert result.success


@pytest.mark.parametrize("size", [1e-100, 1e-18, 1e100])
def test_size_of_the_loss_changes_nothing(generator, size):
    loss, x = quartic(generator, 20)
    objective = hvpopt.TorchObjective(lambda v: size * loss(v), convex=True)
    result = hvpopt.minimize(objective, x, method=hvpopt.QuasiNewton(), max_iter=300)
    assert result.success


def test_float32_rounding_does_not_stop_a_good_step(generator):
    """The loss rounds by more than the last steps lower it, the gradient by far less.

    A square random matrix would not do: one in a hundred has a condition number at which
    the gradient itself rounds by more than ``gtol``.
    """
    u = torch.linalg.qr(torch.randn(60, 40, generator=generator, dtype=D))[0]
    v = torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=D))[0]
    a = (u * torch.linspace(1.0, 2.0, 40, dtype=D) @ v).float()
    b = torch.randn(60, generator=generator)
    objective = hvpopt.TorchObjective(lambda x: ((a @ x - b) ** 2).sum(), convex=True)
    start = torch.zeros(40)
    result = hvpopt.minimize(objective, start, method=hvpopt.QuasiNewton(), gtol=1e-5)
    assert result.success
    exact = torch.linalg.lstsq(a.double(), b.double()).solution
    # ‖x − x*‖ ≤ gtol ‖g₀‖ / 2σ_min², with ‖g₀‖ ≤ 2 σ_max² ‖x*‖
    error = float((result.x.double() - exact).norm() / exact.norm())
    assert error < 1.1 * 1e-5 * 2.0**2


@pytest.mark.parametrize("limit", [4, 7, 12])
def test_limit_of_products_holds_while_measuring(generator, limit):
    loss, x = quartic(generator, 20)
    result = hvpopt.minimize(
        hvpopt.TorchObjective(loss, convex=True),
        x,
        method=hvpopt.QuasiNewton(initial=hvpopt.HessianDiagonal(20)),
        max_products=limit,
    )
    assert result.nhev <= limit


def test_too_few_products_to_measure_anything(generator):
    loss, x = quartic(generator, 20)
    result = hvpopt.minimize(loss, x, method=hvpopt.QuasiNewton(), max_products=3)
    assert result.status is hvpopt.Status.MAX_PRODUCTS
    assert result.nhev == 0


def test_sum_with_a_regulariser_draws_new_signs_for_each_probe(generator):
    misfit = waveform_misfit(generator)
    flat = hvpopt.TorchObjective(lambda v: ((v - 1900.0) ** 2).mean(), convex=True)
    total = misfit + 1e-12 * flat
    (v,) = models_of("scalar", generator)
    assert total.sketch(v).cost == 0.25
    drawn = []
    sketch = misfit.sketch
    misfit.sketch = lambda *a, **k: (drawn.append(k["seed"]), sketch(*a, **k))[1]
    result = hvpopt.minimize(
        total, v, method=hvpopt.QuasiNewton(), lower=1550.0, upper=2250.0, max_iter=1
    )
    assert len(set(drawn)) >= 3
    assert result.njev <= 3


@pytest.mark.parametrize("spread", [1.0, 1e3])
def test_one_number_serves_where_the_diagonal_promises_less(generator, spread):
    """Compare by the decrease along each direction, from the dense matrix."""
    u = torch.ones(60, dtype=D) / 60**0.5
    scales = torch.logspace(0, np.log10(spread), 60, dtype=D)
    H = torch.diag(scales) + 20 * u[:, None] * u
    b = H @ rand((60,), generator, 0.5, 1.5) if spread == 1.0 else scales
    objective = hvpopt.TorchObjective(lambda x: 0.5 * x @ H @ x - b @ x, convex=True)
    space = hvpopt.ModelSpace(torch.zeros(60, dtype=D))
    problem = Problem(objective, space)
    point = problem.linearise(torch.zeros(60, dtype=D), None)
    state = hvpopt.HessianDiagonal(smooth=0).build(problem, point, 0, Budget())
    diagonal = state.diagonal + state.damping * state.diagonal.max()
    promised = {
        uniform: float(b @ d) ** 2 / float(d @ H @ d)
        for uniform, d in ((True, b), (False, b / diagonal))
    }
    assert state.uniform == (promised[True] > promised[False])
    direction = b if state.uniform else b / diagonal
    step = hvpopt.HessianDiagonal().preconditioner(state).apply(b)
    best = direction * float(b @ direction) / float(direction @ H @ direction)
    assert (step - best).norm() <= 1e-9 * best.norm()


# -- stages -------------------------------------------------------------------------


def walk(method, problem, point, state, n_steps):
    """Return the points of some steps, taken by hand, and the state after them."""
    points = [point]
    for _ in range(n_steps):
        step = method.step(problem, points[-1], state, Budget())
        points.append(problem.linearise(step.vector, None))
        state = method.update(state, *points[-2:], step)
    return points, state


def test_next_stage_keeps_curvature_and_makes_no_pair_of_two_objectives(generator):
    loss, x = quartic(generator, 12)
    drift = torch.randn(12, generator=generator, dtype=D)
    first, second = (
        Problem(hvpopt.TorchObjective(f, convex=True), hvpopt.ModelSpace(x))
        for f in (loss, lambda t: loss(t) + drift @ t)
    )
    method = hvpopt.QuasiNewton()
    points, state = walk(
        method, first, first.linearise(x, None), method.start(first), n_steps=3
    )
    kept = method.next_stage(second, state)
    assert state.pairs
    assert kept.pairs is state.pairs
    assert kept.initial is state.initial
    begun = second.linearise(points[-1].vector, None)
    points, last = walk(method, second, begun, kept, n_steps=2)
    assert second.objective.counts.products == 1, "of the scale, and no other"
    assert points[-1].value < begun.value
    new = last.pairs[len(state.pairs) :]
    assert new
    for (s, y), (a, b) in zip(new, itertools.pairwise(points), strict=True):
        assert torch.equal(s, b.vector - a.vector)
        assert torch.equal(y, b.gradient - a.gradient)


def test_curvature_of_another_stage_is_measured_anew_where_the_search_fails(generator):
    loss, x = quartic(generator, 12)
    problem = Problem(hvpopt.TorchObjective(loss, convex=True), hvpopt.ModelSpace(x))
    method = hvpopt.QuasiNewton()
    point = problem.linearise(x, None)
    step = method.step(problem, point, method.start(problem), Budget())
    assert step.memo.age == 0
    other = hvpopt.TorchObjective(lambda t: -loss(t), convex=True)
    other = Problem(other, hvpopt.ModelSpace(x))
    kept = method.next_stage(other, step.memo)
    # with the gradient of the other sum no trial lowers this one
    stuck = dataclasses.replace(point, value=-point.value)
    assert method.step(other, stuck, kept, Budget()).vector is None
    assert other.objective.counts.products > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pairs_are_kept_in_the_models_dtype(dtype):
    """Where its range holds them: a gradient times a large scale leaves float32's."""
    method = hvpopt.QuasiNewton()
    space = hvpopt.ModelSpace(torch.ones(3, dtype=dtype))
    problem = Problem(hvpopt.TorchObjective(lambda x: (x**2).sum()), space)
    ones = torch.ones(3, dtype=torch.float64)
    inactive = torch.zeros(3, dtype=torch.bool)

    def kept(slope):
        state = method.start(problem)
        before, after = (
            Point(size * ones, 1.0, slope * size * ones, None, inactive)
            for size in (0.0, 1.0)
        )
        step = Step(after.vector, 1.0, 1.0, 1, Direction(ones), memo=state)
        ((s, y),) = method.update(state, before, after, step).pairs
        assert torch.allclose(y.double(), slope * ones, rtol=1e-7)
        return {s.dtype, y.dtype}

    assert kept(2.0) == {dtype}
    assert kept(1e60) == {torch.float64}
