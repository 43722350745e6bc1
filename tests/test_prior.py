"""The Matérn prior and the noise, against dense matrices made cell by cell."""

import math

import pytest
import scipy.special
import torch
from tolerances import PRODUCT, ROUNDING, SOLVE

from hvpopt import ModelSpace
from hvpopt.analysis import MaternPrior, Noise

F64 = torch.float64
SPACINGS = {"a": (5.0, 4.0), "b": 10.0}
LENGTHS = {"a": (12.0, 20.0), "b": 25.0}


def space_of(generator, *, masked):
    model = {"a": torch.zeros(5, 7, dtype=F64), "b": torch.zeros(6, dtype=F64)}
    mask = None
    if masked:
        mask = {
            name: torch.rand(t.shape, generator=generator) > 0.3
            for name, t in model.items()
        }
        mask["a"][2, 3] = mask["b"][1] = True
    return ModelSpace(model, mask=mask, scale={"a": 2.0, "b": 0.5})


def prior_of(space):
    std = {"a": 30.0, "b": torch.arange(1.0, 7.0, dtype=F64)}
    return MaternPrior(space, length=LENGTHS, std=std, spacing=SPACINGS)


def dense_covariance(shape, lengths, spacings, std):
    """(1 − Σ b² ∂²)⁻² cell by cell, scaled to a standard deviation."""
    n, cells = math.prod(shape), torch.arange(math.prod(shape)).reshape(shape)
    smoothness = 2.0 - len(shape) / 2
    root = torch.eye(n, dtype=F64)
    for axis, (length, spacing) in enumerate(zip(lengths, spacings, strict=True)):
        reach = length**2 / (8 * smoothness) / spacing**2
        first = cells.narrow(axis, 0, shape[axis] - 1).reshape(-1)
        second = cells.narrow(axis, 1, shape[axis] - 1).reshape(-1)
        for i, j in zip(first.tolist(), second.tolist(), strict=True):
            root[i, i] += reach
            root[j, j] += reach
            root[i, j] -= reach
            root[j, i] -= reach
    inverse = torch.linalg.inv(root)
    covariance = inverse @ inverse
    weight = std / covariance.diagonal().sqrt()
    return weight[:, None] * covariance * weight


def dense_of(space):
    whole = torch.block_diag(
        dense_covariance((5, 7), LENGTHS["a"], SPACINGS["a"], torch.tensor(30.0 / 2.0)),
        dense_covariance((6,), (25.0,), (10.0,), torch.arange(1.0, 7.0, dtype=F64) / 0.5),
    )
    ones = space.step_to_model(torch.ones(space.size, dtype=F64))
    free = torch.cat([t.reshape(-1) for t in ones.values()]) != 0
    return whole[free][:, free]


@pytest.mark.parametrize("masked", [False, True])
def test_matrices_are_those_of_the_stencil(masked, generator):
    space = space_of(generator, masked=masked)
    prior, dense = prior_of(space), dense_of(space)
    eye = torch.eye(space.size, dtype=F64)
    torch.testing.assert_close(prior.covariance(eye), dense, rtol=PRODUCT, atol=1e-11)
    identity = dense @ prior.precision(eye)
    torch.testing.assert_close(identity, eye, rtol=0, atol=SOLVE)
    torch.testing.assert_close(
        prior.standard_deviation, dense.diagonal().sqrt(), rtol=PRODUCT, atol=0
    )


@pytest.mark.parametrize("masked", [False, True])
def test_square_roots(masked, generator):
    space = space_of(generator, masked=masked)
    prior, dense = prior_of(space), dense_of(space)
    white = torch.eye(prior.latent_size, dtype=F64)
    factor = prior.factor(white)
    torch.testing.assert_close(factor @ factor.mT, dense, rtol=PRODUCT, atol=1e-11)
    transposed = prior.factor_transposed(torch.eye(space.size, dtype=F64))
    torch.testing.assert_close(transposed, factor.mT, rtol=PRODUCT, atol=1e-11)
    vector = torch.randn(space.size, generator=generator, dtype=F64)
    square = float(vector @ torch.linalg.solve(dense, vector))
    assert float(vector @ prior.precision(vector)) == pytest.approx(square, rel=SOLVE)


@pytest.mark.parametrize("shape", [(400,), (160, 160)])
def test_length_is_that_of_the_matern_correlation(shape):
    length = 20.0
    prior = MaternPrior(shape, length=length, std=3.0)
    middle = tuple(n // 2 for n in shape)
    unit = torch.zeros(shape, dtype=F64)
    unit[middle] = 1.0
    column = prior.covariance(unit.reshape(-1)).reshape(shape) / 9.0
    order = 2.0 - len(shape) / 2
    for cells in (10, 20):
        z = math.sqrt(8 * order) * cells / length
        exact = 2 ** (1 - order) / math.gamma(order) * z**order
        exact *= scipy.special.kv(order, z)
        there = float(column[(*middle[:-1], middle[-1] + cells)])
        # the stencil is of second order in the spacing over the length
        assert there == pytest.approx(exact, abs=0.01)


def test_samples_have_the_covariance(generator, seed):
    space = space_of(generator, masked=True)
    prior, dense, n = prior_of(space), dense_of(space), 20_000
    draws = prior.sample(n, seed=seed)
    sizes = dense.diagonal().sqrt()
    correlation = dense / sizes[:, None] / sizes
    measured = (draws @ draws.mT / n) / sizes[:, None] / sizes
    # six standard errors of a mean of products
    assert float((measured - correlation).abs().max()) < 6 * math.sqrt(2 / n)
    assert torch.equal(prior.sample(3, seed=seed), draws[:, :3])


@pytest.mark.parametrize("masked", [False, True])
def test_objective_is_half_the_square(masked, generator):
    space = space_of(generator, masked=masked)
    prior, dense = prior_of(space), dense_of(space)
    mean = {"a": torch.ones(5, 7, dtype=F64), "b": torch.full((6,), 2.0, dtype=F64)}
    model = {
        name: torch.randn(t.shape, generator=generator, dtype=F64)
        for name, t in mean.items()
    }
    objective = prior.objective(mean)
    step = space.to_vector(model) - space.to_vector(mean)
    image = torch.linalg.solve(dense, step)
    value, gradient = objective.value_and_gradient(model)
    assert value == pytest.approx(0.5 * float(step @ image), rel=SOLVE)
    torch.testing.assert_close(
        space.gradient_to_vector(gradient), image, rtol=SOLVE, atol=SOLVE
    )
    total = 2.0 * objective + objective
    with total.hessian(model, "gauss-newton", space=space) as hessian:
        found = hessian.to_dense()
    precision = torch.linalg.inv(dense)
    torch.testing.assert_close(found, 3.0 * precision, rtol=SOLVE, atol=SOLVE)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"length": 0.0}, ValueError),
        ({"length": (1.0, 2.0, 3.0)}, ValueError),
        ({"length": {"x": 1.0}}, ValueError),
        ({"std": -1.0}, ValueError),
        ({"std": torch.ones(3, dtype=F64)}, ValueError),
        ({"std": "large"}, TypeError),
        ({"spacing": math.inf}, ValueError),
    ],
)
def test_bad_options_are_refused(options, error):
    with pytest.raises(error):
        MaternPrior((4, 5), **{"length": 2.0, "std": 1.0, **options})


def test_vectors_that_do_not_fit_are_refused():
    prior = MaternPrior((4, 5), length=2.0, std=1.0)
    with pytest.raises(ValueError, match="expected"):
        prior.covariance(torch.ones(19, dtype=F64))


def test_noise_of_residuals_and_of_quiet_samples(generator):
    data = 0.3 * torch.randn(40, 500, generator=generator, dtype=F64)
    found = Noise.from_residuals({"p": data}, n_fitted=1000)
    assert found.std == pytest.approx(
        math.sqrt(float(data.square().sum()) / 19_000), rel=10 * ROUNDING
    )
    assert found.weight == 0.5 * 20_000 / found.std**2
    quiet = Noise.from_quiet(data, n_samples=7)
    assert abs(quiet.std - 0.3) < 6 * 0.3 / math.sqrt(2 * data.numel())
    assert quiet.n_samples == 7
    assert Noise.of_likelihood().weight == 1.0


def autoregressive(n_traces, n_times, phi, generator):
    """Traces of ``e_t = φ e_{t−1} + w_t`` of variance 1, from a stationary start."""
    white = torch.randn(n_traces, n_times, generator=generator, dtype=F64)
    noise = [white[:, 0]]
    for t in range(1, n_times):
        noise.append(phi * noise[-1] + math.sqrt(1 - phi**2) * white[:, t])
    return torch.stack(noise, 1)


@pytest.mark.parametrize("phi", [0.0, 0.6, -0.6])
def test_correlated_noise_counts_by_the_peak_of_its_spectrum(phi, generator):
    data = 0.3 * autoregressive(60, 400, phi, generator)
    plain = Noise.from_quiet(data, n_samples=10)
    found = Noise.from_quiet(data, n_samples=10, correlated=True)
    factor = (found.std / plain.std) ** 2
    peak = (1 + abs(phi)) / (1 - abs(phi))
    # the largest of hundreds of averages of 60 and more: rather too large
    assert 0.9 * peak < factor < 2.2 * peak
    assert "correlated" in found.source
    residuals = Noise.from_residuals({"p": data, "v": data}, correlated=True)
    assert (residuals.std / plain.std) ** 2 == pytest.approx(factor, rel=SOLVE)


def test_error_bars_with_the_peak_are_never_too_small(generator):
    n, times, phi = 12, 40, 0.7
    gaps = (torch.arange(times)[:, None] - torch.arange(times)).abs()
    covariance = phi ** gaps.to(F64)
    peak = (1 + phi) / (1 - phi)
    jacobian = torch.randn(times, n, generator=generator, dtype=F64)
    for smooth in (False, True):
        if smooth:  # at the frequencies where the noise is strongest
            jacobian = covariance @ jacobian
        precision = torch.eye(n, dtype=F64)
        stated = torch.linalg.inv(precision + jacobian.mT @ jacobian / peak)
        pulled = stated @ jacobian.mT / peak
        true = stated @ precision @ stated + pulled @ covariance @ pulled.mT
        white = jacobian.mT @ torch.linalg.solve(covariance, jacobian)
        best = torch.linalg.inv(precision + white)
        for exact in (true, best):
            least = torch.linalg.eigvalsh(stated - exact)[0]
            assert float(least) > -SOLVE
    # the check can fail: of the mean of all samples an unweighted bar is far too small
    stated = 1 / (1 + times)
    true = (1 + float(covariance.sum())) / (1 + times) ** 2
    assert true > 3 * stated


def test_noise_without_arguments_says_what_to_pass():
    for make in (Noise, lambda: Noise(0.1), lambda: Noise(n_samples=3)):
        with pytest.raises(TypeError, match=r"pass Noise\(std, n_samples\)"):
            make()
    with pytest.raises(TypeError, match="correlated"):
        Noise.from_quiet(torch.ones(4), n_samples=1, correlated="yes")
    with pytest.raises(ValueError, match="20 stretches of 8"):
        Noise.from_quiet(torch.ones(3, 20), n_samples=1, correlated=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Noise(0.0, 3),
        lambda: Noise(1.0, 0),
        lambda: Noise.from_residuals(torch.zeros(4)),
        lambda: Noise.from_residuals(torch.ones(4), n_fitted=4),
    ],
)
def test_noise_without_a_size_is_refused(make):
    with pytest.raises(ValueError, match=r"must be|positive|lie"):
        make()
