"""Losses with a gradient but no second derivative: what is said, and how they end."""

import copy
import pickle
import warnings

import deepwave
import numpy as np
import pytest
import torch
from tolerances import PRODUCT

import hvpopt
from hvpopt.errors import SecondOrderError

F64 = torch.float64
SHAPE, SPACING = (9, 10), 10.0
METHODS = {
    "shifted": hvpopt.ShiftedNewton,
    "trust region": hvpopt.TrustRegionNewton,
    "line search": hvpopt.LineSearchNewton,
    "quasi": hvpopt.QuasiNewton,
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def wave_options(frequency, nt, dt):
    source = torch.tensor([[[2, 3]], [[2, 6]]])
    receivers = torch.tensor([[[6, x] for x in (1, 3, 5, 7)]]).repeat(2, 1, 1)
    wavelet = deepwave.wavelets.ricker(frequency, nt, dt, 1.2 / frequency, dtype=F64)
    return {
        "source_amplitudes": wavelet.expand(2, 1, nt).contiguous(),
        "source_locations": source,
        "max_vel": 2500.0,
        "pml_freq": frequency,
        "pml_width": 4,
    }, receivers


def coarse_in_time(backend="auto"):
    """A plain waveform loss whose dt is above the CFL limit, and its start."""
    dt = 0.004
    options, receivers = wave_options(12.0, 50, dt)
    options |= {"receiver_locations": receivers, "backend": backend}

    def record(v):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return deepwave.scalar(v, SPACING, dt, **options)[-1]

    true = torch.full(SHAPE, 2000.0, dtype=F64)
    true[4:6, 4:6] = 2100.0
    observed = record(true).detach()
    return lambda v: (record(v) - observed).square().sum(), torch.full_like(true, 2000.0)


def scattering():
    """A loss through scalar_born, and its start."""
    dt = 0.001
    options, receivers = wave_options(25.0, 50, dt)
    options |= {"sc_receiver_locations": receivers}
    background = torch.full(SHAPE, 2000.0, dtype=F64)

    def record(dv):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return deepwave.scalar_born(background, SPACING, dt, dv=dv, **options)[-1]

    true = torch.zeros(SHAPE, dtype=F64)
    true[4:6, 4:6] = 50.0
    observed = record(true).detach()
    return lambda dv: (record(dv) - observed).square().sum(), torch.zeros_like(true)


class OnceQuartic(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**4

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 4 * ctx.saved_tensors[0] ** 3 * grad


class NumpyQuartic(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**4

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().cpu().numpy()
        return torch.as_tensor(4 * np.power(x, 3)).to(grad) * grad


class RefusesTwice(torch.autograd.Function):
    """A cube whose own backward raises when it is differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return RefusesTwice.Back.apply(grad, *ctx.saved_tensors)

    class Back(torch.autograd.Function):
        @staticmethod
        def forward(_ctx, grad, _x):
            return grad.clone()

        @staticmethod
        def backward(_ctx, _grad):
            raise NotImplementedError("nobody has written this")


def quartic_of(function):
    return lambda x: function.apply(x - 1).sum() + (x**2).sum()


def small_start():
    return torch.tensor([3.0, 2.0, -1.0], dtype=F64)


def compiled():
    torch._dynamo.reset()
    function = torch.compile(lambda x: ((x - 1) ** 4 + x**2).sum(), backend="aot_eager")
    try:
        function(small_start())
        x = small_start().requires_grad_()
        torch.autograd.grad(function(x), x)
    except Exception as error:
        pytest.skip(f"torch.compile does not work here: {error}")
    return function, small_start()


def squares_refused_twice():
    return lambda x: (RefusesTwice.apply(x) ** 2).sum(), small_start()


LOSSES = {
    "dt above the CFL limit": (coarse_in_time, "survey.simulate"),
    "scalar_born": (scattering, 'backend="eager"'),
    "once_differentiable": (
        lambda: (quartic_of(OnceQuartic), small_start()),
        "OnceQuartic in it is marked once_differentiable",
    ),
    "once_differentiable, and no more": (
        lambda: (lambda x: OnceQuartic.apply(x - 1).sum(), small_start()),
        "marked once_differentiable",
    ),
    "once_differentiable, under a square": (
        lambda: (lambda x: OnceQuartic.apply(x - 1).square().sum(), small_start()),
        "marked once_differentiable",
    ),
    "NumPy in its backward": (
        lambda: (lambda x: NumpyQuartic.apply(x - 1).sum(), small_start()),
        "carries no graph",
    ),
    "torch.compile": (compiled, "torch.compile"),
    "a backward that raises": (squares_refused_twice, "nobody has written this"),
}


@pytest.fixture(params=LOSSES)
def without_second_order(request):
    make, words = LOSSES[request.param]
    loss, start = make()
    return loss, start, words


# -- what is said -------------------------------------------------------------------


def test_hessian_says_what_to_do(without_second_order):
    loss, start, words = without_second_order
    with pytest.raises(SecondOrderError, match="no second derivative") as error:
        hvpopt.HessianOperator(loss, start) @ torch.ones_like(start)
    assert words in str(error.value)
    assert "GradientScale" in str(error.value)


@pytest.mark.parametrize("method", METHODS)
def test_method_that_needs_products_says_so(without_second_order, method):
    loss, start, words = without_second_order
    with pytest.raises(SecondOrderError) as error:
        hvpopt.minimize(loss, start, method=METHODS[method]())
    assert words in str(error.value)


def test_optimiser_says_so(without_second_order):
    loss, start, words = without_second_order
    v = start.clone().requires_grad_()
    with pytest.raises(SecondOrderError) as error:
        hvpopt.optim.Newton([v]).step(lambda: loss(v))
    assert words in str(error.value)


def test_cure_that_is_named_works():
    """Deepwave's eager backend, and a Survey, give the products."""
    loss, start = coarse_in_time(backend="eager")
    step = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=F64)
    product = hvpopt.HessianOperator(loss, start) @ step
    dt = 0.004
    options, receivers = wave_options(12.0, 50, dt)
    sources = options.pop("source_amplitudes"), options.pop("source_locations")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        survey = hvpopt.fwi.Survey(
            "scalar",
            grid_spacing=SPACING,
            dt=dt,
            sources={"u": sources},
            receivers={"u": receivers},
            **options,
        )
    true = torch.full(SHAPE, 2000.0, dtype=F64)
    true[4:6, 4:6] = 2100.0
    observed = survey.simulate(true)
    H = hvpopt.HessianOperator(
        lambda v: (survey.simulate(v) - observed).square().sum(), start
    )
    assert float((H @ step - product).norm() / product.norm()) < PRODUCT


def test_other_errors_pass_as_they_are():
    class OutOfMemory(torch.autograd.Function):
        @staticmethod
        def forward(_ctx, x):
            return x.clone()

        @staticmethod
        def backward(_ctx, _grad):
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    def broken(_x):
        raise RuntimeError("my own bug")

    with pytest.raises(RuntimeError, match="out of memory") as error:
        hvpopt.HessianOperator(lambda x: OutOfMemory.apply(x).sum(), small_start())
    assert not isinstance(error.value, SecondOrderError)
    with pytest.raises(RuntimeError, match=r"^my own bug"):
        hvpopt.HessianOperator(broken, small_start())


def test_backward_that_always_fails_is_no_second_order_error():
    class NoBackward(torch.autograd.Function):
        @staticmethod
        def forward(_ctx, x):
            return x.clone()

        @staticmethod
        def backward(_ctx, _grad):
            raise RuntimeError("derivative for aten::nothing is not implemented")

    with pytest.raises(RuntimeError) as error:
        hvpopt.minimize(lambda x: NoBackward.apply(x).sum(), small_start())
    assert not isinstance(error.value, SecondOrderError)


def test_once_differentiable_on_the_way_to_others_is_no_matter():
    other = torch.ones(3, dtype=F64, requires_grad=True)
    H = hvpopt.HessianOperator(
        lambda x: (x**4).sum() + OnceQuartic.apply(other).sum(), small_start()
    )
    assert torch.allclose(H @ torch.ones(3, dtype=F64), 12 * small_start() ** 2)


def test_loss_linear_in_a_parameter_is_told_from_one_without_second_order():
    model = {"a": small_start(), "b": small_start()}
    with pytest.warns(UserWarning, match="parameter 'b' carries"):
        H = hvpopt.HessianOperator(lambda a, b: (a**4).sum() + 2 * b.sum(), model)
    assert H.counts.gradients == 2
    with pytest.raises(SecondOrderError, match="parameter 'b' changes"):
        hvpopt.HessianOperator(
            lambda a, b: (a**4).sum() + NumpyQuartic.apply(b).sum(), model
        )


def test_error_survives_pickling_and_copying():
    error = SecondOrderError("a cause", "words")
    for twin in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert isinstance(twin, SecondOrderError)
        assert (str(twin), twin.cause) == (str(error), "a cause")


# -- how they end -------------------------------------------------------------------


def known_minimum(name):
    if name == "a backward that raises":
        return lambda x: (x**2).sum()
    if "and no more" in name or "NumPy" in name:
        return lambda x: ((x - 1) ** 4).sum()
    if "square" in name:
        return lambda x: ((x - 1) ** 8).sum()
    return lambda x: ((x - 1) ** 4 + x**2).sum()


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in list(LOSSES)[:2]])
def test_minimum_is_found_from_gradients_alone(name):
    loss, start = LOSSES[name][0]()
    with pytest.warns(UserWarning, match="steps come from gradients alone"):
        result = hvpopt.minimize(loss, start, gtol=1e-9)
    twice = hvpopt.minimize(known_minimum(name), start, gtol=1e-9)
    assert result.fun <= twice.fun + 1e-6
    assert result.status is not hvpopt.Status.FAILED
    assert "no negative curvature" not in result.message
    assert "steps came from gradients alone" in result.message
    assert LOSSES[name][1] in result.message


@pytest.mark.parametrize("name", list(LOSSES)[:2])
def test_waveform_loss_is_minimised_from_gradients_alone(name):
    loss, start = LOSSES[name][0]()
    with pytest.warns(UserWarning, match="steps come from gradients alone"):
        result = hvpopt.minimize(loss, start, max_iter=40)
    assert result.fun < 1e-2 * float(loss(start))
    assert result.status is not hvpopt.Status.FAILED
    assert LOSSES[name][1] in result.message
    assert result.nhev <= 1


def test_warning_points_to_the_caller(without_second_order):
    loss, start, _ = without_second_order
    with pytest.warns(UserWarning, match="gradients alone") as caught:
        hvpopt.minimize(loss, start, max_iter=1)
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_method_on_gradients_alone_makes_no_product(without_second_order):
    loss, start, _ = without_second_order
    method = hvpopt.QuasiNewton(initial=hvpopt.GradientScale())
    result = hvpopt.minimize(loss, start, method=method, max_iter=1)
    assert result.nhev == 0
    assert result.fun < float(loss(start))


def test_callback_meets_each_step_once():
    loss, start = squares_refused_twice()
    met = []
    with pytest.warns(UserWarning, match="gradients alone"):
        hvpopt.minimize(loss, start, callback=lambda _, r: met.append(r.iteration))
    assert met == list(range(len(met)))


def test_stationary_start_is_not_called_a_minimum():
    saddle = torch.zeros(2, dtype=F64)
    with pytest.warns(UserWarning, match="gradients alone"):
        result = hvpopt.minimize(lambda x: OnceQuartic.apply(x).sum() - x @ x, saddle)
    assert not result.success
    assert "unknown" in result.message


@pytest.mark.parametrize("name", ["once_differentiable", "a backward that raises"])
def test_saved_run_goes_on_without_products(name, tmp_path):
    loss, start = LOSSES[name][0]()
    path = tmp_path / "run.safetensors"
    with pytest.warns(UserWarning, match="gradients alone"):
        whole = hvpopt.minimize(loss, start, max_iter=6)
    with pytest.warns(UserWarning, match="gradients alone"):
        hvpopt.minimize(loss, start, max_iter=3, checkpoint=path)
    result = hvpopt.minimize(loss, start, checkpoint=path, max_iter=6)
    assert torch.equal(result.x, whole.x)
    assert "gradients alone" in result.message


def test_run_saved_before_its_first_product_falls_back_when_it_is_resumed(tmp_path):
    loss, start = squares_refused_twice()
    path = tmp_path / "run.safetensors"
    hvpopt.minimize(loss, start, checkpoint=path, callback=lambda *_: True)
    with pytest.warns(UserWarning, match="gradients alone"):
        result = hvpopt.minimize(loss, start, checkpoint=path)
    assert result.fun < 1e-12


# -- the scale from gradients -------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("origin", [0.0, 1.0, 1e6])
def test_quadratics_of_any_scale_and_origin(scale, origin):
    weights = torch.arange(1.0, 11.0, dtype=F64)
    truth = origin + torch.linspace(-1, 1, 10, dtype=F64)
    method = hvpopt.QuasiNewton(initial=hvpopt.GradientScale())
    result = hvpopt.minimize(
        lambda x: scale * (weights * (x - truth) ** 2).sum(),
        torch.full((10,), origin + 3.0, dtype=F64),
        method=method,
        gtol=1e-8,
    )
    assert float((result.x - truth).norm()) < 1e-5
    assert result.njev + result.nfev < 60


def test_steps_lengthen_where_the_loss_shows_no_curvature():
    method = hvpopt.QuasiNewton(initial=hvpopt.GradientScale())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its Hessian is zero, if it is examined
        result = hvpopt.minimize(
            lambda x: x.sum(), torch.ones(3, dtype=F64), lower=-1e6, method=method
        )
    assert result.fun == -3e6
    assert result.nit < 30


def test_bounds_hold_without_products():
    method = hvpopt.QuasiNewton(initial=hvpopt.GradientScale())
    low = torch.tensor([0.5, 2.0, -1.0], dtype=F64)
    result = hvpopt.minimize(
        lambda x: ((x - 1) ** 4 + (x - 1) ** 2).sum(), low + 2, lower=low, method=method
    )
    expected = torch.tensor([1.0, 2.0, 1.0], dtype=F64)
    assert torch.allclose(result.x, expected, atol=1e-5)


@pytest.mark.parametrize("first", [0.0, -1.0, float("nan"), float("inf")])
def test_first_length_out_of_range(first):
    with pytest.raises(ValueError, match=f"first is {first}"):
        hvpopt.GradientScale(first)


@pytest.mark.parametrize("name", ["once_differentiable", "a backward that raises"])
def test_message_of_a_resumed_run_says_why_there_were_no_products(name, tmp_path):
    loss, start = LOSSES[name][0]()
    path = tmp_path / "run.safetensors"
    with pytest.warns(UserWarning, match="gradients alone"):
        whole = hvpopt.minimize(loss, start)
    with pytest.warns(UserWarning, match="gradients alone"):
        hvpopt.minimize(loss, start, max_iter=2, checkpoint=path)
    # also what a resumed run has saved knows why
    hvpopt.minimize(loss, start, checkpoint=path, max_iter=3)
    result = hvpopt.minimize(loss, start, checkpoint=path, max_iter=100)
    assert "since the loss has no second derivative: " in result.message
    assert result.message == whole.message


def test_a_method_that_needs_no_products_has_no_limit_of_them(tmp_path):
    start = torch.full((4,), 3.0, dtype=F64)
    method = hvpopt.QuasiNewton(initial=hvpopt.GradientScale())
    path = tmp_path / "run.safetensors"

    def loss(x):
        return ((x - 1) ** 4 + (x - 1) ** 2).sum()

    whole = hvpopt.minimize(loss, start, method=method, max_products=0)
    hvpopt.minimize(
        loss, start, method=method, max_products=0, max_iter=2, checkpoint=path
    )
    result = hvpopt.minimize(loss, start, checkpoint=path, method=method, max_iter=100)
    assert whole.success
    assert whole.nhev == 0
    assert torch.equal(result.x, whole.x)


def test_a_run_that_gave_way_to_gradients_goes_on_past_its_products():
    loss, start = squares_refused_twice()
    with pytest.warns(UserWarning, match="gradients alone"):
        result = hvpopt.minimize(loss, start, max_products=1)
    assert result.fun < 1e-12


@pytest.mark.parametrize(
    "method",
    [None, hvpopt.QuasiNewton(), hvpopt.LineSearchNewton()],
    ids=["default", "quasi-Newton", "line search"],
)
def test_other_methods_end_without_products(method):
    start = torch.full((4,), 3.0, dtype=F64)
    result = hvpopt.minimize(
        lambda x: ((x - 1) ** 4).sum(), start, method=method, max_products=0
    )
    assert result.status is hvpopt.Status.MAX_PRODUCTS
    assert result.nit == 0
