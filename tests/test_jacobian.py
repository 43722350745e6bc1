"""The Jacobian of waveforms against derivatives of deepwave called plainly."""

import math
import pickle

import deepwave
import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from tolerances import PRODUCT
from torch.autograd import functional
from waves import (
    SHAPE,
    D,
    models_of,
    one_thread,
    perturbed,
    plain,
    rand,
    random_step,
    relative,
    single,
    survey,
)

import hvpopt
from hvpopt import CGStatus
from hvpopt.fwi import L2, Survey, WaveformMisfit
from hvpopt.interop.pylops import to_pylops
from hvpopt.model.tensors import named_tensors, rebuild
from hvpopt.operators.jacobian import Jacobian

__all__ = ["one_thread"]
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")

TINY = (6, 7)


def tiny_arguments(propagator="scalar", n_shots=2, n_receivers=2, nt=28):
    """Few cells and samples, so that a matrix is a matter of seconds."""
    wavelet = deepwave.wavelets.ricker(40.0, nt, 0.0005, 0.006, dtype=D)
    sources = torch.tensor([[[1, 1 + 3 * i]] for i in range(n_shots)])
    receivers = torch.tensor([[[3, 1 + 2 * i] for i in range(n_receivers)]])
    source, receiver = {"scalar": ("u", "u"), "acoustic": ("volume_rate", "p")}[
        propagator
    ]
    return {
        "grid_spacing": [5.0, 6.0],
        "dt": 0.0005,
        "sources": {source: (wavelet.repeat(n_shots, 1, 1), sources)},
        "receivers": {receiver: receivers.repeat(n_shots, 1, 1)},
        "max_vel": 2500.0,
        "pml_freq": 40.0,
        "pml_width": 2,
    }


class Tiny:
    """A survey of some cells, and the dense derivative of its recordings by deepwave."""

    def __init__(self, g, propagator="scalar", n_shots=2, n_receivers=2, **options):
        self.given = tiny_arguments(propagator, n_shots, n_receivers)
        self.survey = Survey(propagator, **self.given)
        self.models = models_of(propagator, g, shape=TINY)
        self.model = single(self.models)
        self.observed = self.survey.simulate(single(perturbed(self.models, g, 0.01)))
        self.misfit = WaveformMisfit(self.survey, self.observed, **options)
        self.propagator = propagator

    def data(self, *models):
        recorded = plain(self.propagator, models, self.given)
        return next(iter(recorded.values()))

    def dense(self):
        """``[m, n]``, a row for each sample by one reverse pass."""
        leaves = [m.clone().requires_grad_() for m in self.models]
        recorded = self.data(*leaves).reshape(-1)
        rows = []
        for i in range(recorded.numel()):
            unit = torch.zeros_like(recorded)
            unit[i] = 1.0
            found = torch.autograd.grad(recorded, leaves, unit, retain_graph=True)
            rows.append(torch.cat([f.reshape(-1) for f in found]))
        return torch.stack(rows)


def flat(model):
    return torch.cat([t.reshape(-1) for t in named_tensors(model).values()])


def some_step(model, g):
    tensors = named_tensors(model).values()
    return rebuild(model, [0.05 * t * rand(t.shape, g, -1) for t in tensors])


def inner(a, b):
    return float(flat(a) @ flat(b))


# -- the matrix -----------------------------------------------------------------------


@pytest.mark.parametrize("propagator", ["scalar", "acoustic"])
def test_matrix_is_the_derivative_of_plain_deepwave(propagator, generator):
    """More unknowns than samples, or fewer: rectangular either way."""
    tiny = Tiny(generator, propagator, n_shots=1)
    expected = tiny.dense()
    jacobian = tiny.misfit.jacobian(tiny.model, weighted=False)
    assert jacobian.shape == expected.shape
    by_columns = jacobian @ torch.eye(jacobian.shape[1], dtype=D)
    assert relative(by_columns, expected) < 1e-10
    by_rows = jacobian.T @ torch.eye(jacobian.shape[0], dtype=D)[:, ::5]
    assert relative(by_rows, expected.T[:, ::5]) < 1e-10
    # weighted, as the misfit takes its mean of squares
    weighted = tiny.misfit.jacobian(tiny.model)
    step = rand((weighted.shape[1],), generator, -1.0)
    root = tiny.observed.numel() ** -0.5
    assert relative(weighted @ step, root * (expected @ step)) < 1e-10


def lame(vp, vs, rho):
    return rho * (vp**2 - 2 * vs**2), rho * vs**2, 1 / rho


def case_of(name, g, **options):
    """A misfit, its unknowns and the function of recordings, by a name."""
    if name == "elastic":
        points = torch.tensor([[[4, x] for x in (3, 8, 12)]]).repeat(2, 1, 1)
        acquisition = survey("elastic", receivers={"y": points, "x": points[:, :2]})
        lamb, mu, buoyancy = models_of("elastic", g)
        unknowns = deepwave.lambmubuoyancy_to_vpvsrho(lamb, mu, buoyancy)
        model = dict(zip(("vp", "vs", "rho"), unknowns, strict=True))
        observed = acquisition.simulate(perturbed((lamb, mu, buoyancy), g))
        options["parameterisation"] = lame
    else:
        acquisition = survey(name.split()[0], 3)
        models = models_of(name.split()[0], g)
        model = single(models)
        observed = acquisition.simulate(single(perturbed(models, g)))
        if "slowness" in name:
            model = models[0] ** -2
            options["parameterisation"] = torch.rsqrt
    if "weights" in name:
        weights = rand(observed.shape[:2], g)
        weights[0, 0] = 0.0
        samples = rand((observed.shape[2],), g)
        options["misfit"] = L2(trace_weights=weights, sample_weights=samples)
    if "envelope" in name:
        options["misfit"] = "envelope"
    return WaveformMisfit(acquisition, observed, **options), model


CASES = (
    "scalar",
    "acoustic",
    "elastic",
    "scalar slowness",
    "scalar weights",
    "scalar envelope",
)


@pytest.mark.parametrize("name", CASES)
def test_adjoint_and_gauss_newton_and_gradient(name, generator):
    misfit, model = case_of(name, generator, shots_per_group=2)
    jacobian = misfit.jacobian(model)
    step = rebuild(
        model,
        [0.05 * t * rand(t.shape, generator, -1) for t in named_tensors(model).values()],
    )
    data = jacobian @ step
    other = rebuild(
        data, [rand(d.shape, generator, -1) for d in named_tensors(data).values()]
    )
    scale = float(flat(data).norm() * flat(other).norm())
    assert abs(inner(data, other) - inner(jacobian.T @ other, step)) < 1e-10 * scale
    # 2 JᵀJ is the Gauss-Newton matrix, however it is made
    expected = flat(misfit.hessian(model, "gauss-newton") @ step)
    assert relative(2 * flat(jacobian.T @ data), expected) < PRODUCT
    assert relative(2 * flat(jacobian.normal() @ step), expected) < PRODUCT
    # the residual squares to the misfit, and gives its gradient
    residual = jacobian.residual()
    value, gradient = misfit.value_and_gradient(model)
    assert inner(residual, residual) == pytest.approx(value, rel=PRODUCT)
    assert relative(-2 * flat(jacobian.T @ residual), flat(gradient)) < PRODUCT


@pytest.mark.parametrize("name", ["acoustic", "scalar slowness", "scalar envelope"])
def test_taylor_slope(name, generator):
    """What J leaves of a change of the residual falls with the square of the step."""
    misfit, model = case_of(name, generator)
    here = flat(misfit.jacobian(model).residual())
    tensors = list(named_tensors(model).values())
    step = [0.05 * t * rand(t.shape, generator, -1) for t in tensors]
    linear = flat(misfit.jacobian(model) @ rebuild(model, step))
    sizes = (1e-3, 1e-4)
    left = []
    for size in sizes:
        there = rebuild(model, [t + size * s for t, s in zip(tensors, step, strict=True)])
        change = here - flat(misfit.jacobian(there).residual())
        left.append(float((change - size * linear).norm()))
    assert math.log10(left[0] / left[1]) == pytest.approx(2.0, abs=0.1)


def test_data_of_a_step_are_those_of_autograd(generator):
    """By torch's own Jacobian-vector product of the parameterised recordings."""
    misfit, model = case_of("scalar slowness", generator)
    step = 0.05 * model * rand(SHAPE, generator, -1)
    _, expected = functional.jvp(
        lambda m: misfit.survey.propagate([m.rsqrt()])["u"], model, step
    )
    assert relative(misfit.jacobian(model, weighted=False) @ step, expected) < 1e-10


@pytest.mark.parametrize("name", ["scalar", "elastic"])
def test_double_backprop_makes_the_same_products(name, generator):
    born, model = case_of(name, generator)
    other = WaveformMisfit(
        born.survey,
        born.waveforms.observed,
        parameterisation=born.waveforms.parameterisation,
        engine="double-backprop",
    )
    step = rebuild(model, [0.05 * t for t in named_tensors(model).values()])
    jacobian = other.jacobian(model)
    assert jacobian.engine == "double-backprop"
    found = flat(jacobian @ step)
    n_shots = born.survey.n_shots
    assert other.counts.as_dict()["propagations"] == 6 * n_shots
    assert relative(found, flat(born.jacobian(model) @ step)) < 1e-10
    normal = flat(jacobian.normal() @ step)
    assert relative(normal, flat(born.jacobian(model).normal() @ step)) < 1e-10


def test_propagator_without_a_born_pass(generator):
    """By double backprop on deepwave's eager backend, against differences."""
    given = tiny_arguments("acoustic", nt=20)
    given["sources"] = {"pressure_rate": given["sources"]["volume_rate"]}
    given["receivers"] = {"p": given["receivers"]["p"]}
    acquisition = Survey("viscoacoustic", q_freq=40.0, **given)
    v, rho = models_of("acoustic", generator, shape=TINY)
    model = v, rho, rand(TINY, generator, 50.0, 100.0)
    misfit = WaveformMisfit(
        acquisition, acquisition.simulate(perturbed(model, generator))
    )
    jacobian = misfit.jacobian(model, weighted=False)
    step = some_step(model, generator)
    data = jacobian @ step
    size = 1e-3
    ahead, behind = (
        acquisition.simulate(tuple(m + s * d for m, d in zip(model, step, strict=True)))
        for s in (size, -size)
    )
    assert relative(data, (ahead - behind) / (2 * size)) < 1e-5
    other = rand(data.shape, generator, -1)
    scale = float(data.norm() * other.norm())
    assert abs(inner(data, other) - inner(jacobian.T @ other, step)) < 1e-10 * scale


@pytest.mark.parametrize("make", ["select", "encode", "draw", "without"])
def test_misfits_made_of_a_misfit_have_theirs(make, seed, generator):
    whole, model = case_of("scalar", generator)
    misfit = {
        "select": lambda: whole.select([2, 0]),
        "encode": lambda: whole.encode(torch.tensor([[1.0, -1.0, 1.0]])),
        "draw": lambda: whole.draw(2, seed=seed),
        "without": lambda: whole.without({"shot 1": "bad"}),
    }[make]()
    jacobian = misfit.jacobian(model)
    step = random_step((model,), generator)
    expected = misfit.hessian(model, "gauss-newton") @ step
    assert relative(2 * (jacobian.T @ (jacobian @ step)), expected) < PRODUCT
    residual = jacobian.residual()
    assert float(residual.square().sum()) == pytest.approx(misfit.value(model))
    assert len(residual) == misfit.survey.n_shots


# -- forms and coordinates ------------------------------------------------------------


def test_answers_as_it_is_asked(generator):
    misfit, model = case_of("elastic", generator)
    mask = torch.rand(SHAPE, generator=generator) < 0.6
    mask[0, 0] = True
    scale = {"vp": 100.0, "vs": 60.0, "rho": 80.0}
    space = hvpopt.ModelSpace(model, scale=scale, mask=mask)
    jacobian = misfit.jacobian(model, space=space)
    n_samples = sum(d.numel() for d in jacobian.residual().values())
    assert jacobian.shape == (n_samples, space.size)
    vector = rand((space.size,), generator, -1)
    step = space.step_to_model(vector)
    data = jacobian @ step
    assert list(data) == ["y", "x"]
    assert data["x"].shape == (2, 2, 72)
    assert torch.equal(jacobian.to_vector(data), jacobian @ vector)
    again = jacobian.to_data(jacobian @ vector)
    assert all(torch.equal(again[c], data[c]) for c in data)
    block = torch.stack([vector, -2 * vector], 1)
    once = jacobian @ vector
    assert relative(jacobian @ block, torch.stack([once, -2 * once], 1)) < PRODUCT
    assert (jacobian @ block[:, :0]).shape == (n_samples, 0)
    # gradients: zero where frozen, and scaled inversely to steps
    gradient = jacobian.T @ data
    assert list(gradient) == ["vp", "vs", "rho"]
    assert not any(g[~mask].any() for g in gradient.values())
    flat_gradient = jacobian.T @ jacobian.to_vector(data)
    assert relative(flat_gradient, space.gradient_to_vector(gradient)) < PRODUCT
    assert jacobian.T.T is jacobian
    assert jacobian.T.shape == jacobian.shape[::-1]
    normal = jacobian.normal(0.5)
    assert relative(normal @ vector, flat_gradient + 0.5 * vector) < PRODUCT


def test_float32_survey_keeps_its_dtype(generator):
    acquisition = survey("scalar", dtype=torch.float32)
    (v,) = models_of("scalar", generator, torch.float32)
    misfit = WaveformMisfit(acquisition, acquisition.simulate(v + 20.0))
    jacobian = misfit.jacobian(v)
    data = jacobian @ torch.ones_like(v)
    image = jacobian.T @ data
    assert data.dtype == image.dtype == torch.float32
    assert jacobian.residual().dtype == torch.float32
    vector = torch.ones(v.numel(), dtype=D)
    assert (jacobian @ vector).dtype == torch.float64
    assert relative(data.double(), (jacobian @ vector).reshape(data.shape)) < 1e-6
    # the data of a caller in another dtype
    assert relative(jacobian.T @ data.double(), image) < 1e-6


def test_groups_change_rounding_alone(generator):
    one, model = case_of("scalar", generator, shots_per_group=1)
    together = WaveformMisfit(one.survey, one.waveforms.observed, shots_per_group=3)
    step = random_step((model,), generator)
    data = one.jacobian(model) @ step
    assert relative(data, together.jacobian(model) @ step) < PRODUCT
    image = one.jacobian(model).T @ data
    assert relative(image, together.jacobian(model).T @ data) < PRODUCT


def test_model_is_copied_and_data_are_not_changed(generator):
    misfit, model = case_of("scalar", generator)
    jacobian = misfit.jacobian(model)
    step = random_step((model,), generator)
    data = jacobian @ step
    kept = data.clone()
    image = jacobian.T @ data
    model.mul_(1.01)
    assert torch.equal(jacobian @ step, kept)
    assert torch.equal(data, kept)
    assert torch.equal(jacobian.T @ data, image)
    again = pickle.loads(pickle.dumps(jacobian))
    assert torch.equal(again @ step, data)


# -- cost -----------------------------------------------------------------------------


def test_propagations_are_counted_where_they_happen(generator):
    misfit, model = case_of("scalar", generator, shots_per_group=2)
    n = misfit.survey.n_shots
    jacobian = misfit.jacobian(model)
    assert misfit.counts.as_dict() == dict.fromkeys(misfit.counts.as_dict(), 0)

    def spent(work):
        before = misfit.counts.snapshot()
        result = work()
        used = misfit.counts - before
        return result, (used.values, used.gradients, used.products, used.propagations)

    data, cost = spent(lambda: jacobian @ torch.ones_like(model))
    assert cost == (0, 0, 1, 2 * n)
    image, cost = spent(lambda: jacobian.T @ data)
    assert cost == (0, 0, 1, 2 * n)
    _, cost = spent(jacobian.residual)
    assert cost == (1, 0, 0, n)
    normal, cost = spent(lambda: jacobian.normal(1e-3))
    assert cost == (0, 0, 0, 0)
    _, cost = spent(lambda: normal @ image)
    assert cost == (0, 0, 1, 4 * n)
    found, cost = spent(lambda: hvpopt.cg(normal, image, max_products=3))
    assert cost == (0, 0, found.n_products, 4 * n * found.n_products)


# -- failures -------------------------------------------------------------------------


def test_bad_shot_is_named(generator, monkeypatch):
    misfit, model = case_of("scalar", generator, shots_per_group=3)
    propagate = Survey.propagate_born

    def broken(self, models, perturbations, shots=None):
        data, scattered, fields = propagate(self, models, perturbations, shots)
        if 1 in shots:
            scattered["u"][list(shots).index(1), 0, 5] = math.inf
        return data, scattered, fields

    monkeypatch.setattr(Survey, "propagate_born", broken)
    with pytest.raises(hvpopt.fwi.BadShotError, match="shot 1") as error:
        misfit.jacobian(model) @ torch.ones_like(model)
    assert error.value.shots == [1]


def test_group_out_of_memory_is_halved(generator, monkeypatch):
    misfit, model = case_of("scalar", generator, shots_per_group=3)
    jacobian, step = misfit.jacobian(model), torch.ones_like(model)
    expected = jacobian @ step
    propagate = Survey.propagate_born

    def scarce(self, models, perturbations, shots=None):
        if len(shots) > 1:
            raise MemoryError("out of memory")
        return propagate(self, models, perturbations, shots)

    monkeypatch.setattr(Survey, "propagate_born", scarce)
    with pytest.warns(RuntimeWarning, match="ran out of memory in a product"):
        found = jacobian @ step
    assert relative(found, expected) < PRODUCT
    assert misfit.memory_plan.shots_per_group == 1


# -- least-squares migration ----------------------------------------------------------


def migrated(survey, observed, v0, damping):
    """Least-squares migration, as it is printed in the documentation."""
    misfit = hvpopt.fwi.WaveformMisfit(survey, observed)
    J = misfit.jacobian(v0)
    found = hvpopt.cg(J.normal(damping), J.T @ J.residual(), tol=1e-12)
    return found.x


@pytest.mark.parametrize("n_receivers", [1, 3])
def test_migration_by_cg_and_by_lsqr_is_the_dense_solution(n_receivers, generator):
    tiny = Tiny(generator, n_receivers=n_receivers)
    root = tiny.observed.numel() ** -0.5
    matrix = root * tiny.dense()
    rhs = root * (tiny.observed - tiny.data(*tiny.models)).reshape(-1)
    damping = 1e-2 * float(torch.linalg.matrix_norm(matrix, 2)) ** 2
    normal = matrix.T @ matrix + damping * torch.eye(matrix.shape[1], dtype=D)
    expected = torch.linalg.solve(normal, matrix.T @ rhs)
    image = migrated(tiny.survey, tiny.observed, tiny.model, damping)
    assert image.shape == TINY
    assert relative(image.reshape(-1), expected) < 1e-9
    jacobian = tiny.misfit.jacobian(tiny.model)
    found = scipy.sparse.linalg.lsqr(
        hvpopt.as_scipy(jacobian),
        jacobian.to_vector(jacobian.residual()).numpy(),
        damp=math.sqrt(damping),
        atol=1e-13,
        btol=1e-13,
    )
    assert relative(torch.as_tensor(found[0]), expected) < 1e-9


def test_migration_with_a_regulariser(generator):
    """A penalty's Hessian beside JᵀJ: the regularised least-squares solution."""
    tiny = Tiny(generator)
    root = tiny.observed.numel() ** -0.5
    matrix = root * tiny.dense()
    rhs = root * (tiny.observed - tiny.data(*tiny.models)).reshape(-1)
    penalty = hvpopt.Tikhonov(spacing=(5.0, 6.0), name="rough")
    rough = penalty.hessian(tiny.model).to_dense()
    weight = 1e-2 * float(
        torch.linalg.matrix_norm(matrix, 2) ** 2 / rough.diagonal().max()
    )
    small = 1e-3 * float(torch.linalg.matrix_norm(matrix, 2)) ** 2
    normal = matrix.T @ matrix + weight * rough
    normal += small * torch.eye(len(rough), dtype=D)
    J = tiny.misfit.jacobian(tiny.model)
    operator = J.normal() + weight * penalty.hessian(tiny.model, space=J.space) + small
    found = hvpopt.cg(operator, J.T @ J.residual(), tol=1e-12)
    expected = torch.linalg.solve(normal, matrix.T @ rhs)
    assert relative(found.x.reshape(-1), expected) < 1e-9


def test_migration_moves_the_misfit_down(generator):
    """A least-squares image is a Gauss-Newton step: it explains most of the data."""
    tiny = Tiny(generator, n_receivers=3)
    J = tiny.misfit.jacobian(tiny.model)
    image = J.T @ J.residual()
    size = float((J.normal() @ image).norm() / image.norm())
    found = hvpopt.cg(J.normal(1e-3 * size), image, max_products=40)
    before = tiny.misfit.value(tiny.model)
    assert tiny.misfit.value(tiny.model + found.x) < 0.1 * before


def test_scipy_operator_has_both_products(generator):
    tiny = Tiny(generator)
    jacobian = tiny.misfit.jacobian(tiny.model)
    operator = hvpopt.as_scipy(jacobian)
    assert operator.shape == jacobian.shape
    assert operator.dtype == np.float64
    w, u = (rand((size,), generator, -1) for size in reversed(jacobian.shape))
    assert relative(torch.as_tensor(operator @ w.numpy()), jacobian @ w) < PRODUCT
    assert relative(torch.as_tensor(operator.T @ u.numpy()), jacobian.T @ u) < PRODUCT
    hessian = hvpopt.as_scipy(jacobian.normal())
    assert relative(torch.as_tensor(hessian @ w.numpy()), jacobian.normal() @ w) < PRODUCT


def test_pylops_operator_passes_the_dot_test(generator):
    pylops = pytest.importorskip("pylops")
    tiny = Tiny(generator)
    jacobian = tiny.misfit.jacobian(tiny.model)
    operator = to_pylops(jacobian)
    w, u = (rand((size,), generator, -1) for size in reversed(jacobian.shape))
    assert relative(torch.as_tensor(operator @ w.numpy()), jacobian @ w) < PRODUCT
    assert relative(torch.as_tensor(operator.H @ u.numpy()), jacobian.T @ u) < PRODUCT
    stacked = pylops.VStack([operator, 0.1 * pylops.Identity(jacobian.shape[1])])
    assert stacked.shape == (sum(jacobian.shape), jacobian.shape[1])


def test_scaled_and_masked_migration(generator):
    """In flat coordinates damping weighs scaled steps; frozen cells stay."""
    tiny = Tiny(generator)
    mask = torch.rand(TINY, generator=generator) < 0.6
    mask[2, 2] = True
    space = hvpopt.ModelSpace(tiny.model, scale=30.0, mask=mask)
    root = tiny.observed.numel() ** -0.5
    matrix = 30.0 * root * tiny.dense()[:, mask.reshape(-1)]
    rhs = root * (tiny.observed - tiny.data(*tiny.models)).reshape(-1)
    damping = 1e-2 * float(torch.linalg.matrix_norm(matrix, 2)) ** 2
    normal = matrix.T @ matrix + damping * torch.eye(space.size, dtype=D)
    expected = 30.0 * torch.linalg.solve(normal, matrix.T @ rhs)
    J = tiny.misfit.jacobian(tiny.model, space=space)
    found = hvpopt.cg(J.normal(damping), J.T @ J.residual(), tol=1e-12)
    assert found.status is CGStatus.CONVERGED
    assert relative(found.x[mask], expected) < 1e-9
    assert not found.x[~mask].any()


# -- wrong calls ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def fixed():
    g = torch.Generator().manual_seed(0)
    tiny = Tiny(g)
    tiny.J = tiny.misfit.jacobian(tiny.model)
    return tiny


WRONG = [
    (lambda t: t.J @ [1.0], (TypeError, ValueError), "not a torch.Tensor|parameters"),
    (lambda t: t.J @ 3.0, TypeError, r"the right-hand side is a float; pass a tensor"),
    (
        lambda t: t.J @ torch.ones(5, dtype=D),
        ValueError,
        r"shape \(5,\), expected \(42,",
    ),
    (
        lambda t: t.J @ torch.ones(42).int(),
        TypeError,
        "dtype torch.int32; it must be re",
    ),
    (lambda t: t.J.T @ torch.ones(4, dtype=D), ValueError, r"or the data's shape"),
    (
        lambda t: t.J @ (math.inf * t.model),
        ValueError,
        "the step has NaN or infinite entries",
    ),
    (
        lambda t: t.J.T @ (math.nan * t.observed),
        ValueError,
        "the data of channel 'u' have NaN or infinite samples",
    ),
    (
        lambda t: t.J.T @ {"p": t.observed},
        ValueError,
        r"the data have channels \['p'\], expected \['u'\]",
    ),
    (
        lambda t: t.J.T @ {"u": t.observed[:1]},
        ValueError,
        r"the data of channel 'u' has shape \(1, 2, 28\), expected \(2, 2, 28\)",
    ),
    (lambda t: t.J.T @ [t.observed], TypeError, "the right-hand side is a list; pass"),
    (lambda t: t.J.to_vector([1]), TypeError, "the data are a list; pass a tensor"),
    (lambda t: t.J.normal(-1.0), ValueError, "damping is -1.0; it must be zero or pos"),
    (lambda t: t.J.normal("small"), TypeError, "damping is 'small'; pass a number"),
    (
        lambda t: t.misfit.jacobian(t.model, weighted="no"),
        TypeError,
        "weighted is .*; pass True or False",
    ),
    (
        lambda t: WaveformMisfit(t.survey, t.observed, "huber").jacobian(t.model),
        ValueError,
        "the misfit 'huber' is no sum of squares.*weighted=False",
    ),
    (lambda t: t.misfit.jacobian(-t.model), ValueError, "model 'v' is -"),
    (
        lambda t: t.misfit.jacobian(t.model, space="all"),
        TypeError,
        r"space is a str; pass hvpopt.ModelSpace\(model\)",
    ),
    (
        lambda t: hvpopt.as_scipy(t.J, t.model),
        TypeError,
        r"an operator is made at its model; pass as_scipy\(operator\)",
    ),
    (
        lambda t: hvpopt.as_scipy(t.misfit),
        TypeError,
        r"as_scipy of an objective needs the start: as_scipy\(loss, model\)",
    ),
    (
        lambda t: hvpopt.cg(t.J, t.model),
        TypeError,
        r"the operator is a WaveformJacobian; pass J.normal\(damping\)",
    ),
]


@pytest.mark.parametrize(("call", "error", "words"), WRONG)
def test_wrong_call(call, error, words, fixed):
    with pytest.raises(error, match=words):
        call(fixed)


def test_huber_has_the_derivative_of_the_data(fixed):
    tiny = fixed
    huber = WaveformMisfit(tiny.survey, tiny.observed, "huber")
    step = torch.ones_like(tiny.model)
    found = huber.jacobian(tiny.model, weighted=False) @ step
    expected = tiny.misfit.jacobian(tiny.model, weighted=False) @ step
    assert torch.equal(found, expected)


def test_residual_of_another_shape_is_refused(fixed):
    class Mixed(L2):
        def residual(self, simulated, observed, shots, constants):
            return [d.sum(-1) for d in simulated.values()]

    tiny = fixed
    misfit = WaveformMisfit(tiny.survey, tiny.observed, Mixed())
    with pytest.raises(ValueError, match="a Jacobian needs one of each channel's shape"):
        misfit.jacobian(tiny.model)


def test_it_is_a_jacobian(fixed):
    jacobian = fixed.J
    assert isinstance(jacobian, Jacobian)
    assert isinstance(jacobian, hvpopt.Jacobian)
