"""WaveformMisfit: values and gradients against plain torch, data misfits, bad input."""

import functools
import sys

import deepwave
import pytest
import torch
from tolerances import GRADIENT
from torch.autograd import functional
from waves import (
    CHANNELS,
    DT,
    NT,
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
from hvpopt.fwi import (
    L2,
    DataMisfit,
    DeepwaveMisfit,
    Envelope,
    FunctionMisfit,
    Huber,
    NormalisedCorrelation,
    Survey,
    WaveformMisfit,
)

__all__ = ["one_thread"]
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")


@pytest.fixture
def data(generator):
    """Simulated and observed data of two channels."""
    shapes = {"p": (3, 4, 50), "x": (3, 2, 50)}
    return [{c: rand(s, generator, -1, 1) for c, s in shapes.items()} for _ in range(2)]


def value_of(misfit, simulated, observed, shots=None):
    constants = misfit.constants(observed)
    if shots is not None:
        simulated, observed = (
            {c: d[shots] for c, d in each.items()} for each in (simulated, observed)
        )
    return misfit.of_shots(simulated, observed, shots, constants)


# -- value and gradient -----------------------------------------------------------------


@pytest.mark.parametrize("propagator", CHANNELS)
def test_l2_is_torch_mse_of_all_data(propagator, generator):
    models = models_of(propagator, generator)
    there = survey(propagator, 3)
    observed = there.simulate(single(perturbed(models, generator)))
    misfit = WaveformMisfit(there, observed, shots_per_group=2)
    leaves = [m.clone().requires_grad_() for m in models]
    recorded = plain(propagator, leaves, arguments(propagator, 3))[
        CHANNELS[propagator][1]
    ]
    expected = torch.nn.MSELoss()(recorded, observed)
    slopes = torch.autograd.grad(expected, leaves)
    value, gradient = misfit.value_and_gradient(single(models))
    assert value == pytest.approx(float(expected.detach()), rel=1e-14)
    assert misfit.value(single(models)) == value
    for got, slope in zip(
        hvpopt.model.tensors.named_tensors(gradient).values(), slopes, strict=True
    ):
        assert relative(got, slope) < GRADIENT


def test_published_example():
    """25 Hz over 4 m and 4 ms: the misfit at the start is 9.3303e-4 (see DESIGN)."""
    true = torch.full((20, 30), 1500.0, dtype=D)
    true[10:] += 200
    k = 31
    x = torch.arange(k, dtype=D) - (k - 1) / 2
    weights = torch.exp(-0.5 * (x / (0.3 * ((k - 1) * 0.5 - 1) + 0.8)) ** 2)
    weights /= weights.sum()
    padded = torch.nn.functional.pad(true[None, None], (k // 2,) * 4, mode="reflect")
    across = torch.nn.functional.conv2d(padded, weights[None, None, None, :])
    start = torch.nn.functional.conv2d(across, weights[None, None, :, None])[0, 0]
    receivers = torch.ones(1, 10, 2, dtype=torch.long)
    receivers[0, :, 1] = torch.arange(10, 20)
    for dt, nt, ratio in ((0.004, 80, 5), (0.0008, 400, 1)):
        wavelet = deepwave.wavelets.ricker(25, nt, dt, 1.3 / 25, dtype=D)
        there = Survey(
            "scalar",
            grid_spacing=4.0,
            dt=dt,
            sources={"u": (wavelet.reshape(1, 1, -1), torch.tensor([[[1, 15]]]))},
            receivers={"u": receivers},
            max_vel=2000.0,
            pml_freq=25.0,
            pml_width=[0, 20, 20, 20],
        )
        assert there.resolved.step_ratio == ratio
        misfit = WaveformMisfit(there, there.simulate(true))
        assert misfit.value(start) == pytest.approx(9.3303e-4, rel=1e-5)
        with hvpopt.HessianOperator(misfit, start) as H:
            step = torch.cos(torch.arange(600.0, dtype=D)).reshape(20, 30)
            assert relative(misfit.hessian(start) @ step, H @ step) < 1e-12


def test_arrangements_of_the_unknowns(generator):
    v, rho = models_of("acoustic", generator)
    there = survey("acoustic")
    observed = there.simulate((1.02 * v, rho))
    misfit = WaveformMisfit(there, observed)
    value = misfit.value((v, rho))
    assert misfit.value({"rho": rho, "v": v}) == value
    assert float(misfit(v, rho)) == pytest.approx(value, rel=1e-14)
    assert float(misfit(rho=rho, v=v)) == pytest.approx(value, rel=1e-14)
    _, gradient = misfit.value_and_gradient({"rho": rho, "v": v})
    assert list(gradient) == ["rho", "v"]
    assert relative(gradient["v"], misfit.value_and_gradient((v, rho))[1][0]) < GRADIENT
    step = random_step((v, rho), generator)
    named = misfit.hessian({"rho": rho, "v": v}) @ {"rho": step[1], "v": step[0]}
    assert relative(named["rho"], (misfit.hessian((v, rho)) @ step)[1]) < 1e-12


def test_some_models_may_be_constant(generator):
    v, rho = models_of("acoustic", generator)
    there = survey("acoustic")
    misfit = WaveformMisfit(
        there, there.simulate((1.02 * v, rho)), parameterisation=lambda v: (v, rho)
    )
    both = WaveformMisfit(there, there.simulate((1.02 * v, rho)))
    step = random_step((v,), generator)
    _, gradient = misfit.value_and_gradient(v)
    assert relative(gradient, both.value_and_gradient((v, rho))[1][0]) < GRADIENT
    expected = both.hessian((v, rho)) @ (step, torch.zeros_like(rho))
    assert relative(misfit.hessian(v) @ step, expected[0]) < 1e-12
    only = misfit.hessian(v, "gauss-newton") @ step
    full = both.hessian((v, rho), "gauss-newton") @ (step, torch.zeros_like(rho))
    assert relative(only, full[0]) < 1e-12


def test_value_builds_no_graph_and_stores_nothing(generator, monkeypatch):
    v = models_of("scalar", generator)[0].requires_grad_()
    there = survey()
    misfit = WaveformMisfit(there, there.simulate(1.02 * v.detach()), shots_per_group=9)
    seen = []
    propagate = there.propagate

    def spy(models, shots=None, **overrides):
        data = propagate(models, shots, **overrides)
        seen.extend([torch.is_grad_enabled(), data["u"].requires_grad])
        return data

    monkeypatch.setattr(there, "propagate", spy)
    misfit.value(v)
    assert seen == [False, False]
    misfit.value_and_gradient(v)
    assert seen[2:] == [True, True]


def test_counts_and_repeats(generator):
    v = models_of("scalar", generator)[0]
    there = survey(n_shots=3)
    misfit = WaveformMisfit(there, there.simulate(1.02 * v), shots_per_group=2)
    values = {misfit.value(v) for _ in range(2)}
    gradients = [misfit.value_and_gradient(v)[1] for _ in range(2)]
    assert len(values) == 1
    assert torch.equal(*gradients)
    assert misfit.counts.as_dict() == {
        "values": 2,
        "gradients": 2,
        "products": 0,
        "propagations": (2 + 4) * 3,
    }


def test_adds_to_other_objectives(generator):
    v = models_of("scalar", generator)[0]
    there = survey()
    waves = WaveformMisfit(there, there.simulate(1.02 * v), name="waves")
    rough = hvpopt.TorchObjective(lambda v: v.diff(dim=0).square().sum(), convex=True)
    total = waves + 1e-9 * rough
    step = random_step((v,), generator)
    with hvpopt.HessianOperator(total, v) as expected:
        lin = total.linearise(v)
        assert relative(lin.hessian @ step, expected @ step) < 1e-12
        assert relative(lin.gradient, expected.gradient) < GRADIENT
    assert lin.parts["waves"] == waves.value(v)
    total.hessian(v, "gauss-newton") @ step


@pytest.mark.parametrize(
    ("method", "steps"),
    [(hvpopt.ShiftedNewton(), 3), (None, 40)],
    ids=["newton", "default"],
)
def test_minimises(method, steps, generator):
    v = 1.002 * torch.full(SHAPE, 2000.0, dtype=D)
    there = survey()
    misfit = WaveformMisfit(there, there.simulate(v))
    start = v * (1 + 0.01 * rand(SHAPE, generator, -1, 1))
    found = hvpopt.minimize(misfit, start, method=method, max_iter=steps)
    assert found.fun < 0.1 * misfit.value(start)


def test_float32_model_and_data(generator):
    v = models_of("scalar", generator)[0]
    there = survey()
    observed = there.simulate(1.02 * v)
    exact = WaveformMisfit(there, observed)
    narrow = WaveformMisfit(there.to(torch.float32), observed.float())
    step = random_step((v,), generator)
    H = narrow.hessian(v.float())
    product = H @ step.float()
    assert product.dtype == torch.float32
    assert relative(product.double(), exact.hessian(v) @ step) < 1e-3
    assert H.noise > 1e-8 > exact.hessian(v).noise


# -- data misfits -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "misfit",
    [
        L2(),
        Huber(),
        Huber(0.1),
        Envelope(),
        NormalisedCorrelation(),
        DeepwaveMisfit(deepwave.misfits.l2),
        DeepwaveMisfit(deepwave.misfits.envelope),
        DeepwaveMisfit(deepwave.misfits.normalised_cross_correlation),
        FunctionMisfit(lambda d, o: sum((d[c] - o[c]).abs().pow(3).sum() for c in d)),
    ],
    ids=lambda m: m.name,
)
def test_adds_over_shots_and_derivatives(misfit, data, generator):
    simulated, observed = data
    whole = value_of(misfit, simulated, observed)
    parts = [value_of(misfit, simulated, observed, s) for s in ([0, 1], [2])]
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-13)
    misfit.adds, kept = False, misfit.adds
    misfit.check_adds(observed)  # what a user's function goes through
    misfit.adds = kept

    constants = misfit.constants(observed)
    steps = {c: rand(d.shape, generator, -1, 1) for c, d in simulated.items()}
    r, q = misfit.derivatives(simulated, steps, observed, None, constants, "exact")

    def loss(p, x):
        return misfit.of_shots({"p": p, "x": x}, observed, None, constants)

    at, along = tuple(simulated.values()), tuple(steps.values())
    slope = functional.jacobian(loss, at)
    bend = functional.hvp(loss, at, along)[1]
    for i, channel in enumerate(simulated):
        assert relative(r[channel], slope[i]) < 1e-12
        assert relative(q[channel], bend[i]) < 1e-12


def test_scales_of_deepwave_misfits(data):
    """Means over all traces of all channels, whatever the group."""
    simulated, observed = data
    one = ({"p": simulated["p"]}, {"p": observed["p"]})
    pair = one[0]["p"], one[1]["p"]
    ours = value_of(NormalisedCorrelation(), *one)
    theirs = deepwave.misfits.normalised_cross_correlation(*pair)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-13)
    ours = value_of(Envelope(damping=1e-9), *one)
    theirs = deepwave.misfits.envelope(*pair)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-8)
    ours = value_of(DeepwaveMisfit(deepwave.misfits.l2), *one)
    assert float(ours) == pytest.approx(float(deepwave.misfits.l2(*pair)), rel=1e-13)


def test_huber_is_square_near_and_straight_far():
    observed = {"u": torch.zeros(1, 1, 4, dtype=D)}
    near = {"u": torch.full((1, 1, 4), 1e-5, dtype=D)}
    far = {"u": torch.full((1, 1, 4), 1e4, dtype=D)}
    assert float(value_of(Huber(1.0), near, observed)) == pytest.approx(1e-10)
    assert float(value_of(Huber(1.0), far, observed)) == pytest.approx(2e4, rel=1e-3)


@pytest.mark.parametrize("kind", [L2, Huber])
def test_weights(kind, data, generator):
    simulated, observed = ({"p": each["p"]} for each in data)
    traces = rand((3, 4), generator)
    times = rand((50,), generator)
    samples = rand((3, 4, 50), generator)
    for weights, factor in (
        ({"trace_weights": traces}, traces[..., None]),
        ({"sample_weights": times}, times),
        ({"sample_weights": samples}, samples),
        (
            {"trace_weights": {"p": traces}, "sample_weights": times},
            traces[..., None] * times,
        ),
    ):
        difference = simulated["p"] - observed["p"]
        misfit = kind(**weights)
        if kind is L2:
            expected = (factor * difference**2).mean()
        else:
            delta = observed["p"].square().mean().sqrt()
            bent = 2 * delta**2 * ((1 + (difference / delta) ** 2).sqrt() - 1)
            expected = (factor * bent).mean()
        value = float(value_of(misfit, simulated, observed))
        assert value == pytest.approx(float(expected), rel=1e-13)
        parts = [float(value_of(misfit, simulated, observed, s)) for s in ([0, 2], [1])]
        assert sum(parts) == pytest.approx(value, rel=1e-13)


def test_weights_that_are_zero_leave_finite_products(generator):
    """√w has no derivative at 0, and must not be asked for one."""
    v = models_of("scalar", generator)[0]
    there = survey()
    traces = torch.ones(2, 4, dtype=D)
    traces[1, 2] = 0
    observed = there.simulate(1.02 * v)
    misfit = WaveformMisfit(there, observed, L2(trace_weights=traces))
    step = random_step((v,), generator)
    for kind in ("exact", "gauss-newton"):
        assert bool(torch.isfinite(misfit.hessian(v, kind) @ step).all())
    spoilt = observed.clone()
    spoilt[1, 2] = 7.0
    other = WaveformMisfit(there, spoilt, L2(trace_weights=traces))
    assert other.value(v) == misfit.value(v)


def test_dead_traces_of_normalised_correlation(generator):
    v = models_of("scalar", generator)[0]
    mask = torch.ones(2, 4, dtype=torch.bool)
    mask[0, 1] = False
    given = arguments("scalar", 2)
    given["receivers"] = {"u": (given["receivers"]["u"], mask)}
    there = Survey("scalar", **given)
    observed = there.simulate(1.02 * v)
    misfit = WaveformMisfit(there, observed, "normalised-correlation")
    theirs = deepwave.misfits.normalised_cross_correlation(there.simulate(v), observed)
    assert misfit.value(v) == pytest.approx(float(theirs), rel=1e-12)
    step = random_step((v,), generator)
    for kind in ("exact", "gauss-newton"):
        assert bool(torch.isfinite(misfit.hessian(v, kind) @ step).all())
    scaled = WaveformMisfit(there, 1e-200 * observed, "normalised-correlation")
    assert scaled.value(v) == pytest.approx(misfit.value(v), rel=1e-12)


def test_envelope_product_is_finite_where_data_are_silent(generator):
    v = models_of("scalar", generator)[0]
    there = survey()
    misfit = WaveformMisfit(there, there.simulate(1.02 * v), "envelope")
    step = random_step((v,), generator)
    with hvpopt.HessianOperator(misfit, v) as H:
        assert relative(misfit.hessian(v) @ step, H @ step) < 1e-10
    bent = misfit.hessian(v, "gauss-newton")
    assert float((step * (bent @ step)).sum()) > 0


def test_function_of_one_channel_gets_tensors(generator):
    v = models_of("scalar", generator)[0]
    there = survey()
    observed = there.simulate(1.02 * v)
    loss = torch.nn.MSELoss(reduction="sum")
    misfit = WaveformMisfit(there, observed, loss, shots_per_group=1)
    mean = WaveformMisfit(there, observed)
    assert misfit.value(v) == pytest.approx(mean.value(v) * observed.numel(), rel=1e-13)
    step = random_step((v,), generator)
    product = misfit.hessian(v) @ step / observed.numel()
    assert relative(product, mean.hessian(v) @ step) < 1e-12


def test_functions_that_do_not_add_are_refused(generator):
    v = models_of("scalar", generator)[0]
    there = survey(n_shots=3)
    observed = there.simulate(v)
    for function in (
        torch.nn.functional.mse_loss,
        lambda d, o: (d - o).norm(),
        lambda d, o: ((d - o) / o.abs().max()).square().sum(),
        lambda d, o: (d.sum(0) - o.sum(0)).square().sum(),
    ):
        with pytest.raises(ValueError, match="does not add over shots"):
            WaveformMisfit(there, observed, function)
    with pytest.raises(ValueError, match="must return a torch scalar"):
        WaveformMisfit(there, observed, lambda d, o: d - o)
    # with one shot there is nothing to add
    alone = survey(n_shots=1)
    WaveformMisfit(alone, alone.simulate(v), torch.nn.functional.mse_loss)


# -- bad input --------------------------------------------------------------------------


def good():
    return torch.ones(2, 4, NT, dtype=D)


def with_nan():
    data = good()
    data[0, 0, 0] = torch.nan
    return data


@pytest.mark.parametrize(
    ("observed", "error", "message"),
    [
        (good()[:1], ValueError, r"shape \(1, 4, 72\), the survey records \(2, 4, 72\)"),
        (good()[..., ::2], ValueError, "36 samples, the survey records 72 of 0.0005 s"),
        (good()[0], ValueError, r"shape \(4, 72\)"),
        (good().float(), ValueError, "float32.*survey.to"),
        (good().long(), TypeError, "floating-point"),
        (good().to("meta"), ValueError, "on meta"),
        (with_nan(), ValueError, "1 NaN or infinite"),
        ({"p": good()}, ValueError, r"channels \['p'\], the survey records \['u'\]"),
        ({"u": None}, TypeError, "NoneType"),
        (None, TypeError, "NoneType"),
    ],
)
def test_bad_observed_data(observed, error, message):
    with pytest.raises(error, match=message):
        WaveformMisfit(survey(), observed)


def test_several_channels_need_a_mapping(generator):
    given = arguments("acoustic", 2)
    given["receivers"]["x"] = given["receivers"]["p"]
    there = Survey("acoustic", **given)
    models = models_of("acoustic", generator)
    observed = there.simulate(perturbed(models, generator))
    misfit = WaveformMisfit(there, dict(reversed(observed.items())))
    recorded = plain("acoustic", models, given)
    squares = sum(float((recorded[c] - observed[c]).square().sum()) for c in observed)
    count = sum(d.numel() for d in observed.values())
    assert misfit.value(models) == pytest.approx(squares / count, rel=1e-13)
    step = random_step(models, generator)
    with hvpopt.HessianOperator(misfit, models) as H:
        got, expected = misfit.hessian(models) @ step, H @ step
    assert all(relative(a, b) < 1e-12 for a, b in zip(got, expected, strict=True))
    with pytest.raises(ValueError, match="dict by channel"):
        WaveformMisfit(there, observed["p"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"misfit": "l3"}, ValueError, "'l2', 'huber'"),
        ({"misfit": 3}, TypeError, "not a function"),
        ({"misfit": L2(trace_weights=good()[0])}, ValueError, r"expected \(2, 4\)"),
        ({"misfit": L2(sample_weights=-good())}, ValueError, "not negative"),
        ({"shots_per_group": 0}, ValueError, "at least 1"),
        ({"shots_per_group": 1, "memory_limit": "1GB"}, ValueError, "not both"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        WaveformMisfit(survey(), good(), **options)


def test_bad_constants():
    for make in (lambda: Huber(0.0), lambda: Envelope(-1.0)):
        with pytest.raises(ValueError, match="positive"):
            make()
    silent = {"u": torch.zeros(2, 2, 5, dtype=D)}
    for misfit in (Huber(), Envelope()):
        with pytest.raises(ValueError, match="zero"):
            misfit.constants(silent)


def test_bad_models_raise_in_every_evaluation(generator):
    v = models_of("scalar", generator)[0]
    there = survey()
    misfit = WaveformMisfit(there, there.simulate(v))
    bad = v.clone()
    bad[2, 3] = 9000.0
    for evaluate in (misfit.value, misfit.value_and_gradient, misfit.hessian, misfit):
        with pytest.raises(ValueError, match="max_vel=2500"):
            evaluate(bad)
    with pytest.raises(ValueError, match="kind is 'newton'"):
        misfit.hessian(v, "newton")
    with pytest.raises(TypeError, match="by position or by name"):
        misfit()


def test_bad_parameterisations(generator):
    v = models_of("scalar", generator)[0]
    there = survey()
    observed = there.simulate(v)

    def evaluate(parameterisation, model):
        misfit = WaveformMisfit(there, observed, parameterisation=parameterisation)
        return misfit.value_and_gradient(model)

    with pytest.raises(ValueError, match="ignores 'b'"):
        evaluate(lambda a, b: a + 0 * b.detach(), {"a": v, "b": v})
    with pytest.raises(ValueError, match="carry no graph"):
        evaluate(lambda v: v.detach(), v)
    with pytest.raises(ValueError, match="takes \\['v'\\]"):
        evaluate(lambda v: {"vp": v}, v)


def test_subclass_without_of_shots_cannot_be_made():
    class Nothing(DataMisfit):
        pass

    with pytest.raises(TypeError, match="of_shots"):
        Nothing()


def test_nothing_passed_in_is_changed(generator):
    v = models_of("scalar", generator)[0].requires_grad_()
    given = arguments("scalar", 2)
    amplitudes = given["sources"]["u"][0].clone()
    there = Survey("scalar", dt=DT, **{k: x for k, x in given.items() if k != "dt"})
    observed = there.simulate(1.02 * v).detach()
    kept = observed.clone(), v.detach().clone()
    misfit = WaveformMisfit(there, observed)
    misfit.value_and_gradient(v)
    misfit.hessian(v) @ torch.ones_like(v)
    assert torch.equal(observed, kept[0])
    assert torch.equal(v, kept[1])
    assert v.grad is None
    assert torch.equal(given["sources"]["u"][0], amplitudes)


def test_hessian_of_a_disconnected_parameterisation_is_refused(generator):
    v = models_of("scalar", generator)[0]
    there = survey()
    misfit = WaveformMisfit(
        there, there.simulate(1.02 * v), parameterisation=lambda t: t.detach()
    )
    with pytest.raises(ValueError, match="carry no graph"):
        misfit.hessian(v)


def test_hessian_of_an_ignored_unknown_is_refused(generator):
    v = models_of("scalar", generator)[0]
    there = survey()
    observed = there.simulate(1.02 * v)
    misfit = WaveformMisfit(there, observed, parameterisation=lambda a, _: a)
    with pytest.raises(ValueError, match="ignores '1'"):
        misfit.hessian((v, v))


# -- layers -----------------------------------------------------------------------------


def frames_to(monkeypatch, function, call, of=""):
    """Return the names of the Python frames from a call to a function of deepwave.

    Args:
        monkeypatch: To spy with.
        function: Of deepwave.
        call: What is called.
        of: A frame that must be among them. Default any.
    """
    original, seen = getattr(deepwave, function), []

    def spy(*args, **kwargs):
        frame = sys._getframe(1)
        names = [function]
        while frame is not None and frame.f_code.co_name != "frames_to":
            names.append(frame.f_code.co_name)
            frame = frame.f_back
        seen.append(names[::-1])
        return original(*args, **kwargs)

    monkeypatch.setattr(deepwave, function, spy)
    call()
    return max((names for names in seen if not of or of in names), key=len)


# attributed to the spy, which calls deepwave here
@pytest.mark.filterwarnings("ignore::deepwave.MigrationWarning")
@pytest.mark.parametrize("kind", ["exact", "gauss-newton"])
def test_few_frames_lie_between_a_call_and_deepwave(generator, monkeypatch, kind):
    v = models_of("scalar", generator)[0]
    there = survey()
    misfit = WaveformMisfit(there, there.simulate(1.02 * v))
    operator = misfit.hessian(v, kind)
    unit = torch.ones(operator.size, dtype=D)
    for function, call in (
        ("scalar", functools.partial(misfit.value, v)),
        ("scalar", functools.partial(misfit.linearise, v, kind)),
        ("scalar_born", functools.partial(operator.matvec, unit)),
    ):
        names = frames_to(monkeypatch, function, call)
        assert len(names) <= 6, names


# attributed to the spy, which calls deepwave here
@pytest.mark.filterwarnings("ignore::deepwave.MigrationWarning")
@pytest.mark.parametrize(
    "method", [hvpopt.QuasiNewton, hvpopt.LineSearchNewton, hvpopt.ShiftedNewton]
)
def test_few_frames_lie_between_minimize_and_deepwave(generator, monkeypatch, method):
    """Of a value, from ``minimize`` itself to what calls deepwave."""
    v = models_of("scalar", generator)[0]
    there = survey()
    misfit = WaveformMisfit(there, there.simulate(1.02 * v))
    names = frames_to(
        monkeypatch,
        "scalar",
        functools.partial(hvpopt.minimize, misfit, v, method=method(), max_iter=2),
        of="value",
    )
    assert names[0] == "minimize"
    assert len(names) - 1 <= 12, names
