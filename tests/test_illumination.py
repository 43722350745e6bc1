"""Illumination: against wavefields recorded everywhere and the dense Gauss-Newton."""

import deepwave
import pytest
import torch
import waves
from tolerances import PRODUCT, ROUNDING
from waves import models_of, one_thread, survey  # noqa: F401 - a fixture

from hvpopt import (
    CGStatus,
    MatrixOperator,
    ModelSpace,
    ShiftedNewton,
    cg,
    minimize,
)
from hvpopt.fwi import CoarseGrid, SlownessSquared, Survey, WaveformMisfit
from hvpopt.fwi.misfit.illumination import gauss_newton_diagonal, source_illumination
from hvpopt.krylov.diagonal import estimate_diagonal, smooth_diagonal

# deepwave's Born models load torch's forward-mode rules, compiled with torch.jit
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
F64 = torch.float64
SHAPE = (10, 14)


@pytest.fixture(scope="module")
def surface():
    """A small inversion from the surface: misfit, start, truth."""
    v = (1600 + 30 * torch.arange(SHAPE[0], dtype=F64))[:, None].repeat(1, SHAPE[1])
    true = v.clone()
    true[6:8, 4:10] += 150
    nt, dt, frequency = 80, 0.0025, 12.0
    wavelet = deepwave.wavelets.ricker(frequency, nt, dt, 1.2 / frequency, dtype=F64)
    receivers = torch.tensor([[1, x] for x in range(1, SHAPE[1], 2)])
    acquisition = Survey(
        "scalar",
        grid_spacing=10.0,
        dt=dt,
        sources={"u": (wavelet.repeat(2, 1, 1), torch.tensor([[[1, 3]], [[1, 10]]]))},
        receivers={"u": receivers.repeat(2, 1, 1)},
        max_vel=2500.0,
        pml_freq=frequency,
        pml_width=3,
    )
    observed = acquisition.simulate(true)
    return WaveformMisfit(acquisition, observed, shots_per_group=2), v, true


@pytest.fixture(scope="module")
def dense(surface):
    misfit, v, _ = surface
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    matrix = misfit.hessian(v, "gauss-newton").to_dense()
    torch.set_num_threads(threads)
    return matrix


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def recorded_everywhere(v, given):
    """The pseudo-Hessian from wavefields that receivers in every cell recorded."""
    ny, nx = v.shape
    cells = torch.cartesian_prod(torch.arange(ny), torch.arange(nx))
    n_shots = given["sources"]["u"][0].shape[0]
    given = {**given, "receivers": {"u": cells.repeat(n_shots, 1, 1)}}
    u = waves.plain("scalar", (v,), given)["u"]
    # two zero samples before the first: the medium was at rest
    u = torch.nn.functional.pad(u, (2, 0))
    second = (u[..., 2:] - 2 * u[..., 1:-1] + u[..., :-2]) / given["dt"] ** 2
    energy = second.square().sum((0, 2)) * given["dt"]
    return energy.reshape(ny, nx) * (2 / v**3) ** 2


# -- source illumination ----------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"pml_width": [0, 4, 4, 4]}])
def test_source_illumination_is_the_energy_of_virtual_sources(generator, options):
    given = waves.arguments("scalar", 2, **options)
    (v,) = models_of("scalar", generator)
    acquisition = Survey("scalar", **given)
    assert acquisition.resolved.step_ratio == 1
    misfit = WaveformMisfit(acquisition, acquisition.simulate(v))
    found = source_illumination(misfit, v).diagonal.reshape(v.shape)
    expected = recorded_everywhere(v, given)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12 * expected.max())


def test_source_illumination_of_a_resampled_survey_runs_at_the_inner_step(generator):
    (v,) = models_of("scalar", generator)
    fine = waves.arguments("scalar", 1)
    wavelet, where = fine["sources"]["u"]
    coarse = {**fine, "dt": 4 * fine["dt"], "sources": {"u": (wavelet[..., ::4], where)}}
    acquisition = Survey("scalar", **coarse)
    assert acquisition.resolved.step_ratio > 1
    misfit = WaveformMisfit(acquisition, acquisition.simulate(v))
    found = source_illumination(misfit, v)
    expected = recorded_everywhere(v, fine).reshape(-1)
    assert correlation(found.diagonal, expected) > 0.99
    assert float(found.diagonal.sum() / expected.sum()) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("size", [1, 2])
def test_groups_do_not_change_the_illumination(generator, size):
    acquisition = survey("scalar", 3)
    (v,) = models_of("scalar", generator)
    data = acquisition.simulate(v)
    whole = source_illumination(WaveformMisfit(acquisition, data), v)
    parts = source_illumination(
        WaveformMisfit(acquisition, data, shots_per_group=size), v
    )
    torch.testing.assert_close(parts.diagonal, whole.diagonal, rtol=PRODUCT, atol=0)


def test_illumination_adds_over_shots(generator):
    acquisition = survey("scalar", 3)
    (v,) = models_of("scalar", generator)
    misfit = WaveformMisfit(acquisition, acquisition.simulate(v))
    some, rest, whole = (
        source_illumination(part, v).diagonal
        for part in (misfit.select([0, 2]), misfit.select([1]), misfit)
    )
    torch.testing.assert_close(some + rest, whole, rtol=PRODUCT, atol=0)


def test_source_illumination_costs_one_propagation_a_shot(generator):
    acquisition = survey("scalar", 3)
    (v,) = models_of("scalar", generator)
    misfit = WaveformMisfit(acquisition, acquisition.simulate(v))
    before = misfit.counts.snapshot()
    source_illumination(misfit, v)
    spent = (misfit.counts - before).as_dict()
    assert spent == {"values": 0, "gradients": 0, "products": 0, "propagations": 3}


def test_source_illumination_runs_where_histories_are_checkpointed(generator):
    (v,) = models_of("scalar", generator)
    plain, split = survey("scalar", 2), survey("scalar", 2, checkpoint_segments=3)
    data = plain.simulate(v)
    expected = source_illumination(WaveformMisfit(plain, data), v).diagonal
    found = source_illumination(WaveformMisfit(split, data), v).diagonal
    torch.testing.assert_close(found, expected, rtol=PRODUCT, atol=0)


def test_cellwise_unknowns_take_the_square_of_the_chain_rule(generator):
    acquisition = survey("scalar", 2)
    (v,) = models_of("scalar", generator)
    data = acquisition.simulate(v)
    plain = source_illumination(WaveformMisfit(acquisition, data), v).diagonal
    change = SlownessSquared(2000.0)
    u = change.unknowns(v)
    misfit = WaveformMisfit(acquisition, data, parameterisation=change)
    found = source_illumination(misfit, u).diagonal
    # v = reference / √u, so dv/du = −v / 2u
    expected = plain * (v / (2 * u)).reshape(-1).square()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_unknowns_that_share_cells_take_the_diagonal_of_the_mapped_matrix(generator):
    acquisition = survey("scalar", 2)
    grid = CoarseGrid((4, 5), waves.SHAPE)
    u = waves.rand((4, 5), generator, 1700, 2100)
    data = acquisition.simulate(grid(u))
    plain = source_illumination(WaveformMisfit(acquisition, data), grid(u)).diagonal
    misfit = WaveformMisfit(acquisition, data, parameterisation=grid)
    found = source_illumination(misfit, u).diagonal
    jacobian = torch.autograd.functional.jacobian(grid, u).reshape(-1, 20)
    expected = jacobian.square().T @ plain
    # an average over 32 random signs
    assert correlation(found, expected) > 0.9


def test_scaled_and_masked_coordinates(generator):
    acquisition = survey("scalar", 2)
    (v,) = models_of("scalar", generator)
    misfit = WaveformMisfit(acquisition, acquisition.simulate(v))
    mask = torch.ones(v.shape, dtype=torch.bool)
    mask[:3] = False
    space = ModelSpace(v, scale=50.0, mask=mask)
    plain = source_illumination(misfit, v)
    found = source_illumination(misfit, v, space=space)
    expected = plain.diagonal.reshape(v.shape)[mask] * 2500
    torch.testing.assert_close(found.diagonal, expected, rtol=PRODUCT, atol=0)
    picture = found.picture()
    assert bool((picture[~mask] == 0).all())
    torch.testing.assert_close(
        picture[mask], expected / expected.max(), rtol=4 * ROUNDING, atol=0
    )


def test_float32_survives_tiny_amplitudes(generator):
    (v,) = models_of("scalar", generator)
    given = waves.arguments("scalar", 1)
    wavelet, where = given["sources"]["u"]
    small = {**given, "sources": {"u": (1e-22 * wavelet.float(), where)}}
    pictures = []
    for arguments, model in ((given, v), (small, v.float())):
        acquisition = Survey("scalar", **arguments)
        # squares of such data underflow; a correlation divides their size out
        name = "normalised-correlation"
        misfit = WaveformMisfit(acquisition, acquisition.simulate(model), name)
        pictures.append(source_illumination(misfit, model).picture().double())
    torch.testing.assert_close(pictures[1], pictures[0], rtol=1e-2, atol=1e-5)


def test_other_propagators_are_sent_to_the_gauss_newton_diagonal(generator):
    acquisition = survey("acoustic", 1)
    models = models_of("acoustic", generator)
    misfit = WaveformMisfit(acquisition, acquisition.simulate(models))
    with pytest.raises(ValueError, match="use gauss_newton_diagonal"):
        source_illumination(misfit, models)


def test_survey_pad_is_refused(generator):
    acquisition = survey("scalar", 1, survey_pad=3)
    (v,) = models_of("scalar", generator)
    misfit = WaveformMisfit(acquisition, acquisition.simulate(v))
    with pytest.raises(ValueError, match="survey_pad"):
        source_illumination(misfit, v)


def test_a_wavefield_of_zeros_is_an_error(generator):
    given = waves.arguments("scalar", 1)
    wavelet, where = given["sources"]["u"]
    acquisition = Survey("scalar", **{**given, "sources": {"u": (0 * wavelet, where)}})
    (v,) = models_of("scalar", generator)
    misfit = WaveformMisfit(acquisition, acquisition.simulate(v))
    with pytest.raises(ValueError, match="energy is 0"):
        source_illumination(misfit, v)


# -- the Gauss-Newton diagonal ----------------------------------------------------------


def test_probed_diagonal_is_near_the_smoothed_dense_one(surface, dense):
    misfit, v, _ = surface
    found = gauss_newton_diagonal(misfit, v, n_probes=4, smooth=2, seed=1)
    expected = smooth_diagonal(dense.diagonal(), ModelSpace(v), 2)
    assert correlation(found.diagonal, expected) > 0.9
    assert float(found.diagonal.sum() / expected.sum()) == pytest.approx(1, abs=0.25)


def test_source_illumination_follows_the_smoothed_dense_diagonal(surface, dense):
    misfit, v, _ = surface
    found = source_illumination(misfit, v, smooth=2).diagonal
    expected = smooth_diagonal(dense.diagonal(), ModelSpace(v), 2)
    assert correlation(found, expected) > 0.9


def test_probing_without_smoothing_is_unbiased(surface, dense, generator):
    misfit, v, _ = surface
    probes = 20
    # gauss_newton_diagonal clamps at zero, which is a bias: probe the operator itself
    seed = int(torch.randint(0, 10**9, (1,), generator=generator))
    hessian = misfit.hessian(v, "gauss-newton")
    found = estimate_diagonal(hessian, n_probes=probes, seed=seed)
    off = dense - torch.diag(dense.diagonal())
    deviation = (off.square().sum(1) / probes).sqrt()
    errors = (found - dense.diagonal()) / deviation
    # errors of unit variance about zero, correlated between neighbours
    assert float(errors.abs().max()) < 6
    assert abs(float(errors.mean())) < 1


def test_gauss_newton_diagonal_counts_its_products(surface):
    misfit, v, _ = surface
    before = misfit.counts.snapshot()
    gauss_newton_diagonal(misfit, v, n_probes=2)
    spent = misfit.counts - before
    assert (spent.products, spent.propagations) == (2, 2 * 4 * 2)


@pytest.mark.parametrize("propagator", ["acoustic", "elastic"])
def test_gauss_newton_diagonal_takes_any_propagator(propagator, generator):
    acquisition = survey(propagator, 1)
    models = models_of(propagator, generator)
    truth = waves.perturbed(models, generator)
    misfit = WaveformMisfit(acquisition, acquisition.simulate(truth))
    scale = tuple(float(m.abs().mean()) for m in models)
    space = ModelSpace(models, scale=scale)
    found = gauss_newton_diagonal(
        misfit, models, n_probes=3, smooth=2, seed=5, space=space
    )
    hessian = misfit.hessian(models, "gauss-newton", space=space)
    expected = estimate_diagonal(hessian, n_probes=3, seed=5, smooth=2).clamp(min=0)
    # few probes may leave all of a weak parameter negative: the damping holds it then
    torch.testing.assert_close(found.diagonal, expected, rtol=PRODUCT, atol=0)
    applied = found.apply(torch.ones_like(expected))
    assert bool(torch.isfinite(applied).all() & (applied > 0).all())


@pytest.mark.parametrize(
    "make",
    [
        lambda misfit, v: gauss_newton_diagonal(misfit, v, n_probes=3, smooth=3),
        lambda misfit, v: source_illumination(misfit, v),
        lambda misfit, v: source_illumination(misfit, v, smooth=1),
    ],
    ids=["gauss-newton", "source", "source, smoothed"],
)
@pytest.mark.parametrize("tol", [1e-1, 1e-2])
def test_conjugate_gradients_take_fewer_products(surface, dense, make, tol):
    misfit, v, _ = surface
    _, gradient = misfit.value_and_gradient(v)
    hessian, rhs = MatrixOperator(dense), -gradient.reshape(-1)
    plain = cg(hessian, rhs, tol=tol)
    better = cg(hessian, rhs, tol=tol, preconditioner=make(misfit, v))
    assert plain.status is better.status is CGStatus.CONVERGED
    assert better.n_products < plain.n_products


def test_damping_is_a_floor_under_the_quotient(generator):
    acquisition = survey("scalar", 1)
    (v,) = models_of("scalar", generator)
    misfit = WaveformMisfit(acquisition, acquisition.simulate(v))
    found = source_illumination(misfit, v, damping=0.1)
    applied = found.apply(torch.ones(v.numel(), dtype=F64))
    expected = 1 / (found.diagonal + 0.1 * found.diagonal.max())
    torch.testing.assert_close(applied, expected, rtol=4 * ROUNDING, atol=0)
    with pytest.raises(ValueError, match="damping"):
        source_illumination(misfit, v, damping=0.0)


@pytest.mark.parametrize("make", [source_illumination, gauss_newton_diagonal])
def test_minimize_takes_it_as_a_preconditioner(surface, make):
    """In scaled coordinates, with frozen cells and bounds that hold some others."""
    misfit, v, _ = surface
    mask = torch.ones(SHAPE, dtype=torch.bool)
    mask[:2] = False
    options = {"scale": 100.0, "mask": mask, "lower": 1500.0, "upper": 2000.0}
    space = ModelSpace(v, **options)
    illumination = make(misfit, v, space=space)
    before = misfit.counts.snapshot()
    result = minimize(
        misfit,
        v,
        method=ShiftedNewton(solver="cg", preconditioner=illumination),
        max_iter=2,
        **options,
    )
    assert result.fun < 0.2 * result.history[0].value
    assert torch.equal(result.x[:2], v[:2])
    spent = misfit.counts - before
    assert result.counts.products == spent.products
    assert result.counts.propagations == spent.propagations > 0
