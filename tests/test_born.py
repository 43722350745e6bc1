"""Born products against double backprop, jvp and vjp of deepwave called plainly."""

import gc

import deepwave
import pytest
import torch
from tolerances import FINITE_DIFFERENCE, PRODUCT, SYMMETRY
from torch.autograd import functional
from waves import (
    CHANNELS,
    DT,
    SHAPE,
    D,
    arguments,
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
from hvpopt.fwi import NormalisedCorrelation, Survey, WaveformMisfit

__all__ = ["one_thread"]
# torch's own, on the way to the second derivatives of staggered propagators
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")

BOUNDARIES = {
    "pml": {},
    "reflector": {"pml_width": [0, 4, 4, 4]},
    "free": {"pml_width": [0, 4, 4, 4], "boundary": ["free", "pml", "pml", "pml"]},
}


# -- oracles: written here, sharing nothing with hvpopt ---------------------------------


def unit(traces):
    return traces / traces.square().sum(-1, keepdim=True).sqrt()


def oracle_l2(d, o):
    return torch.nn.functional.mse_loss(d, o)


def oracle_huber(d, o):
    delta = o.square().mean().sqrt()
    return (2 * delta**2 * ((1 + ((d - o) / delta) ** 2).sqrt() - 1)).mean()


def oracle_correlation(d, o):
    return (1 - (unit(d) * unit(o)).sum(-1)).mean()


ORACLES = {
    "l2": oracle_l2,
    "huber": oracle_huber,
    "normalised-correlation": oracle_correlation,
}


def velocity_only(slowness_squared):
    return slowness_squared.rsqrt()


def gardner(log_v):
    v = log_v.exp()
    return {"rho": 310 * v**0.25, "v": v}


def lame(vp, vs, rho):
    return rho * (vp**2 - 2 * vs**2), rho * vs**2, 1 / rho


PARAMETERISATIONS = {"scalar": velocity_only, "acoustic": gardner, "elastic": lame}


def unknowns(propagator, models):
    """The unknowns that a nonlinear parameterisation maps near to these models."""
    if propagator == "scalar":
        return models[0] ** -2
    if propagator == "acoustic":
        return models[0].log()
    vp, vs, rho = deepwave.lambmubuoyancy_to_vpvsrho(*models)
    return {"vp": vp, "vs": vs, "rho": rho}


def called(parameterisation, tensors, names):
    return parameterisation(**dict(zip(names, tensors, strict=True)))


class Case:
    """One misfit, by hvpopt and by plain deepwave."""

    def __init__(
        self,
        propagator,
        g,
        *,
        n_shots=2,
        misfit="l2",
        nonlinear=False,
        options=None,
        **more,
    ):
        given = arguments(propagator, n_shots, **(options or {}))
        self.given, self.propagator = given, propagator
        self.survey = Survey(propagator, **given)
        start = models_of(propagator, g)
        self.observed = self.survey.simulate(single(perturbed(start, g)))
        self.channel = CHANNELS[propagator][1]
        self.map = PARAMETERISATIONS[propagator] if nonlinear else None
        self.model = unknowns(propagator, start) if nonlinear else single(start)
        self.tensors = tuple(hvpopt.model.tensors.named_tensors(self.model).values())
        self.step = hvpopt.model.tensors.rebuild(
            self.model, [t * rand(t.shape, g, -0.05, 0.05) for t in self.tensors]
        )
        self.steps = tuple(hvpopt.model.tensors.named_tensors(self.step).values())
        self.oracle = ORACLES[misfit]
        more = {"shots_per_group": n_shots} | more
        self.misfit = WaveformMisfit(self.survey, self.observed, misfit, self.map, **more)

    def models(self, *tensors):
        if self.map is None:
            return tensors
        unknown = hvpopt.model.tensors.rebuild(self.model, tensors)
        mapped = self.map(**unknown) if isinstance(unknown, dict) else self.map(unknown)
        if isinstance(mapped, dict):
            return tuple(mapped[n] for n in self.survey.model_names)
        return mapped if isinstance(mapped, tuple) else (mapped,)

    def data(self, *tensors):
        return plain(self.propagator, self.models(*tensors), self.given)[self.channel]

    def loss(self, *tensors):
        return self.oracle(self.data(*tensors), self.observed)

    def exact(self):
        leaves = [t.clone().requires_grad_() for t in self.tensors]
        slope = torch.autograd.grad(self.loss(*leaves), leaves, create_graph=True)
        return flat(torch.autograd.grad(slope, leaves, self.steps))

    def gauss_newton(self, residual_scale):
        """Jᵀ (∂ρ)ᵀ c ∂ρ J w for a residual ρ, by jvp and vjp."""
        residual, scale = residual_scale
        _, pushed = functional.jvp(
            lambda *t: residual(self.data(*t)), self.tensors, self.steps
        )
        _, back = functional.vjp(
            lambda *t: residual(self.data(*t)), self.tensors, scale * pushed
        )
        return flat(back)

    def product(self, kind="exact", **options):
        return flat(
            hvpopt.model.tensors.named_tensors(
                self.misfit.hessian(self.model, kind, **options) @ self.step
            ).values()
        )


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])


# -- exact ------------------------------------------------------------------------------


@pytest.mark.parametrize("n_shots", [1, 3])
@pytest.mark.parametrize(
    ("propagator", "boundary"),
    # deepwave's elastic has no free face; a vacuum does that, below
    [(p, b) for p in CHANNELS for b in BOUNDARIES if (p, b) != ("elastic", "free")],
)
def test_exact_matches_double_backprop(propagator, boundary, n_shots, generator):
    case = Case(propagator, generator, n_shots=n_shots, options=BOUNDARIES[boundary])
    assert case.misfit.hessian(case.model).engine == "born"
    assert relative(case.product(), case.exact()) < PRODUCT


@pytest.mark.parametrize("nonlinear", [False, True])
@pytest.mark.parametrize("misfit", ORACLES)
@pytest.mark.parametrize("propagator", CHANNELS)
def test_any_misfit_and_parameterisation(propagator, misfit, nonlinear, generator):
    case = Case(propagator, generator, misfit=misfit, nonlinear=nonlinear)
    assert relative(case.product(), case.exact()) < PRODUCT


def test_edge_cells_of_a_step_raise_no_warning(generator, monkeypatch):
    monkeypatch.setattr(deepwave._common, "_warned_once_causes", set())
    case = Case("scalar", generator, n_shots=1)
    case.product()


def test_second_derivative_of_the_map_matters(generator):
    """The case above would pass a product without V'' if it did not."""
    case = Case("scalar", generator, nonlinear=True)
    leaf = case.tensors[0].clone().requires_grad_()
    v = velocity_only(leaf)
    slope = torch.autograd.grad(v, leaf, torch.ones_like(v), create_graph=True)[0]
    v0 = v.detach().requires_grad_()
    inner = torch.autograd.grad(
        oracle_l2(plain("scalar", (v0,), case.given)["u"], case.observed),
        v0,
        create_graph=True,
    )[0]
    delta = slope.detach() * case.step
    without = slope.detach() * torch.autograd.grad(inner, v0, delta)[0]
    assert relative(without.reshape(-1), case.exact()) > 1e-3


def test_elastic_under_a_vacuum(generator):
    models = tuple(m.clone() for m in models_of("elastic", generator))
    for m in models:
        m[:2] = 0
    given = arguments("elastic", 2, pml_width=[0, 4, 4, 4])
    there = Survey("elastic", **given)
    observed = there.simulate(perturbed(models, generator))
    step = random_step(models, generator)
    misfit = WaveformMisfit(there, observed)
    leaves = [m.clone().requires_grad_() for m in models]
    loss = oracle_l2(plain("elastic", leaves, given)["y"], observed)
    slope = torch.autograd.grad(loss, leaves, create_graph=True)
    expected = flat(torch.autograd.grad(slope, leaves, step))
    assert relative(flat(misfit.hessian(models) @ step), expected) < PRODUCT


def test_network_as_parameterisation(generator):
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        weights = [
            torch.randn(20, 8, dtype=D),
            torch.randn(8, SHAPE[0] * SHAPE[1], dtype=D),
        ]
    unknown = rand((20,), generator, -1, 1)

    def network(z):
        hidden = torch.tanh(z @ weights[0])
        return 1900 + 100 * torch.tanh(hidden @ weights[1]).reshape(SHAPE)

    there = survey()
    observed = there.simulate(network(unknown + 0.1))
    misfit = WaveformMisfit(there, observed, parameterisation=network)
    dense = misfit.hessian(unknown).to_dense()
    expected = functional.hessian(
        lambda z: oracle_l2(plain("scalar", (network(z),), arguments())["u"], observed),
        unknown,
    )
    assert relative(dense, expected) < PRODUCT


def test_resampled_time_step(generator):
    """At 4 dt waves run at dt/…: the oracle resamples with deepwave's tools itself."""
    v, true = models_of("scalar", generator)[0], models_of("scalar", generator)[0]
    given = arguments("scalar", 2)
    amplitudes, locations = given["sources"]["u"]
    coarse = amplitudes[..., ::4].contiguous()
    there = Survey(
        "scalar", **{**given, "dt": 4 * DT, "sources": {"u": (coarse, locations)}}
    )
    ratio = there.resolved.step_ratio
    assert ratio > 1
    observed = there.simulate(true)
    assert observed.shape[-1] == coarse.shape[-1]
    fine = {
        **given,
        "dt": 4 * DT / ratio,
        "sources": {"u": (deepwave.discretisation.upsample(coarse, ratio), locations)},
    }
    leaf = v.clone().requires_grad_()
    data = deepwave.discretisation.downsample(plain("scalar", (leaf,), fine)["u"], ratio)
    slope = torch.autograd.grad(oracle_l2(data, observed), leaf, create_graph=True)[0]
    step = random_step((v,), generator)
    expected = torch.autograd.grad(slope, leaf, step)[0]
    assert relative(WaveformMisfit(there, observed).hessian(v) @ step, expected) < PRODUCT


def test_against_differences_of_gradients(generator):
    """The one oracle that shares no second derivative with deepwave."""
    case = Case("acoustic", generator, misfit="huber", nonlinear=True)
    differences = hvpopt.FiniteDifferenceHessian(case.misfit, case.model, size=0.3)
    expected = flat([differences @ case.step])
    assert relative(case.product(), expected) < FINITE_DIFFERENCE


@pytest.mark.parametrize("kind", ["exact", "gauss-newton"])
def test_symmetric(kind, generator):
    case = Case("acoustic", generator, misfit="normalised-correlation")
    H = case.misfit.hessian(case.model, kind)
    scale = torch.cat([t.reshape(-1) for t in case.tensors])
    u, w = (scale * rand(H.size, generator, -1, 1) for _ in range(2))
    gap = abs(float(u @ (H @ w) - w @ (H @ u)))
    assert gap < SYMMETRY * float(u.norm() * (H @ w).norm())


# -- Gauss-Newton -----------------------------------------------------------------------


@pytest.mark.parametrize("nonlinear", [False, True])
@pytest.mark.parametrize("propagator", CHANNELS)
def test_gauss_newton_matches_jvp_and_vjp(propagator, nonlinear, generator):
    case = Case(propagator, generator, nonlinear=nonlinear)
    expected = case.gauss_newton((lambda d: d, 2 / case.observed.numel()))
    assert relative(case.product("gauss-newton"), expected) < PRODUCT


def test_gauss_newton_of_normalised_correlation_is_of_its_residual(generator):
    case = Case("scalar", generator, misfit="normalised-correlation")
    expected = case.gauss_newton((unit, 1 / case.observed[..., 0].numel()))
    assert relative(case.product("gauss-newton"), expected) < PRODUCT


def test_gauss_newton_of_a_convex_misfit_is_its_curvature(generator):
    case = Case("scalar", generator, misfit="huber")
    data = case.data(*case.tensors)
    _, pushed = functional.jvp(case.data, case.tensors, case.steps)
    bent = functional.hvp(lambda d: oracle_huber(d, case.observed), data, pushed)[1]
    expected = functional.vjp(case.data, case.tensors, bent)[1]
    assert relative(case.product("gauss-newton"), flat(expected)) < PRODUCT


def test_gauss_newton_is_never_negative_where_it_says_so(generator):
    case = Case("scalar", generator, misfit="normalised-correlation")
    H = case.misfit.hessian(case.model, "gauss-newton")
    for _ in range(5):
        w = rand(H.size, generator, -1, 1)
        assert float(w @ (H @ w)) >= 0
    # the block of some cells, for its price
    some = rand(SHAPE, generator) < 0.2
    space = hvpopt.ModelSpace(case.model, mask=some)
    block = case.misfit.hessian(case.model, "gauss-newton", space=space)
    values = torch.linalg.eigvalsh(block.to_dense())
    assert float(values[0]) > -1e-12 * float(values[-1])


def test_gauss_newton_of_a_function_takes_its_curvature_as_it_is(generator):
    def concave(d, o):
        return -(d - o).square().sum()

    case = Case("scalar", generator)
    misfit = WaveformMisfit(case.survey, case.observed, concave)
    H = misfit.hessian(case.model, "gauss-newton")
    plain_l2 = case.gauss_newton((lambda d: d, -2.0))
    assert relative(flat([H @ case.step]), plain_l2) < PRODUCT
    w = rand(H.size, generator, -1, 1)
    assert float(w @ (H @ w)) < 0


# -- engines ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["exact", "gauss-newton"])
@pytest.mark.parametrize("propagator", CHANNELS)
def test_double_backprop_engine_agrees(propagator, kind, generator):
    case = Case(propagator, generator, n_shots=3, misfit="huber", nonlinear=True)
    other = WaveformMisfit(
        case.survey, case.observed, "huber", case.map, engine="double-backprop"
    )
    grouped = WaveformMisfit(
        case.survey,
        case.observed,
        "huber",
        case.map,
        engine="double-backprop",
        shots_per_group=2,
    )
    for misfit in (other, grouped):
        H = misfit.hessian(case.model, kind)
        assert H.engine == "double-backprop"
        product = hvpopt.model.tensors.named_tensors(H @ case.step).values()
        assert relative(flat(product), case.product(kind)) < PRODUCT
        H.close()
        with pytest.raises(RuntimeError, match="closed"):
            H @ case.step


def test_auto_says_why_it_does_not_take_born(generator):
    v = models_of("scalar", generator)[0]
    there = survey(forward_callback=print)
    H = WaveformMisfit(there, there.simulate(v)).hessian(v)
    assert H.engine == "double-backprop"
    assert "callback" in H.engine_reason
    born = WaveformMisfit(there, there.simulate(v), engine="born")
    with pytest.raises(ValueError, match="engine='born' does not hold here: callbacks"):
        born.hessian(v)


def test_a_propagator_without_second_order_runs_eagerly(generator):
    v, rho = models_of("acoustic", generator)
    q = rand(SHAPE, generator, 40, 60)
    given = arguments("acoustic", 1)
    amplitudes, locations = given["sources"]["volume_rate"]
    given |= {"sources": {"pressure_rate": (amplitudes, locations)}, "q_freq": 40.0}
    given["nt"] = 40
    there = Survey("viscoacoustic", **given)
    observed = there.simulate((1.02 * v, rho, q))
    misfit = WaveformMisfit(there, observed)
    H = misfit.hessian((v, rho, q))
    assert H.engine == "eager"
    assert "no viscoacoustic_born" in H.engine_reason
    step = random_step((v, rho, q), generator)
    differences = hvpopt.FiniteDifferenceHessian(misfit, (v, rho, q))
    expected = flat(differences @ step)
    assert relative(flat(H @ step), expected) < 1e-4  # three units: differences are poor
    with pytest.raises(ValueError, match="no viscoacoustic_born"):
        WaveformMisfit(there, observed, engine="born").hessian((v, rho, q))


def test_checkpointing_needs_the_born_engine(generator):
    v = models_of("scalar", generator)[0]
    there = survey(checkpoint_segments=3)
    misfit = WaveformMisfit(there, there.simulate(v), engine="double-backprop")
    with pytest.raises(ValueError, match="checkpoint_segments"):
        misfit.hessian(v)
    with pytest.raises(ValueError, match="engine is 'adjoint'"):
        WaveformMisfit(there, there.simulate(v), engine="adjoint")


@pytest.mark.parametrize("kind", ["exact", "gauss-newton"])
@pytest.mark.parametrize("option", ["checkpoint", "disk", "cpu"])
def test_memory_levers_keep_products(option, kind, generator, tmp_path):
    options = {
        "checkpoint": {"checkpoint_segments": 3},
        "disk": {"storage_mode": "disk", "storage_path": str(tmp_path)},
        "cpu": {"storage_mode": "cpu"},
    }[option]
    case = Case("acoustic", generator, nonlinear=True)
    there = survey("acoustic", **options)
    misfit = WaveformMisfit(there, case.observed, parameterisation=case.map)
    H = misfit.hessian(case.model, kind)
    assert H.engine == "born"
    assert relative(flat([H @ case.step]), case.product(kind)) < PRODUCT
    _, gradient = misfit.value_and_gradient(case.model)
    assert relative(gradient, case.misfit.value_and_gradient(case.model)[1]) < PRODUCT


# -- cost -------------------------------------------------------------------------------


def test_counts(generator):
    case = Case("scalar", generator, n_shots=3, shots_per_group=2)
    H = case.misfit.hessian(case.model)
    assert case.misfit.counts.propagations == 0
    H @ case.step
    assert (H.counts.products, H.counts.propagations) == (1, 4 * 3)
    case.misfit.hessian(case.model, "gauss-newton") @ case.step
    assert case.misfit.counts.as_dict() == {
        "values": 0,
        "gradients": 0,
        "products": 2,
        "propagations": 8 * 3,
    }
    double = WaveformMisfit(case.survey, case.observed, engine="double-backprop")
    H = double.hessian(case.model)
    for _ in range(2):
        H @ case.step
    assert double.counts.propagations == (2 + 5 + 5) * 3


def test_products_hold_nothing(generator):
    case = Case("scalar", generator, nonlinear=True)
    H = case.misfit.hessian(case.model)

    def alive():
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    H @ case.step
    before = alive()
    for _ in range(5):
        H @ case.step
    assert alive() == before


def test_products_repeat_bitwise_and_change_nothing(generator):
    case = Case("elastic", generator, nonlinear=True)
    kept = [t.clone() for t in case.tensors]
    first, second = case.product(), case.product()
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(kept, case.tensors, strict=True))


def test_no_elastic_block_is_silently_zero(generator):
    case = Case("elastic", generator, nonlinear=True)
    H = case.misfit.hessian(case.model)
    n = case.tensors[0].numel()
    for i, name in enumerate(case.model):
        step = torch.zeros(3 * n, dtype=D)
        step[i * n : (i + 1) * n] = case.model[name].reshape(-1)
        blocks = (H @ step).split(n)
        assert all(float(b.norm()) > 0 for b in blocks)


def test_custom_misfit_object(generator):
    """A subclass with weights of its own is exact as well."""

    class Doubled(NormalisedCorrelation):
        def of_shots(self, simulated, observed, shots, constants):
            return 2 * super().of_shots(simulated, observed, shots, constants)

    case = Case("scalar", generator, misfit="normalised-correlation")
    twice = WaveformMisfit(case.survey, case.observed, Doubled())
    product = flat([twice.hessian(case.model) @ case.step])
    assert relative(product, 2 * case.exact()) < PRODUCT
