"""Messages that say what to do, and the lines that they name, which work."""

import pytest
import scipy.optimize
import torch
from waves import arguments, models_of

import hvpopt
from hvpopt.fwi import Survey, VpVsRho, WaveformMisfit
from hvpopt.run.result import Status

F64 = torch.float64
METHODS = {
    "shifted": hvpopt.ShiftedNewton,
    "trust region": hvpopt.TrustRegionNewton,
    "line search": hvpopt.LineSearchNewton,
    "Wolfe": lambda: hvpopt.LineSearchNewton(globalisation=hvpopt.Wolfe()),
    "quasi": hvpopt.QuasiNewton,
    "gradients": lambda: hvpopt.QuasiNewton(initial=hvpopt.GradientScale()),
}


# -- methods within scipy -----------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_method_handed_to_scipy_names_what_scipy_takes(method):
    made = METHODS[method]()
    with pytest.raises(
        TypeError, match=r"method=hvpopt\.scipy_method\(hvpopt\."
    ) as error:
        scipy.optimize.minimize(
            scipy.optimize.rosen, [1.0, 2.0], jac=scipy.optimize.rosen_der, method=made
        )
    assert type(made).__name__ in str(error.value)


def test_the_line_that_is_named_works():
    result = scipy.optimize.minimize(
        scipy.optimize.rosen,
        [-1.2, 1.0],
        jac=scipy.optimize.rosen_der,
        method=hvpopt.scipy_method(hvpopt.TrustRegionNewton()),
    )
    assert result.fun < 1e-8


# -- modules and parameters as models -----------------------------------------------


def network():
    generator = torch.Generator().manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)
    ).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    inputs = torch.randn(20, 2, generator=generator, dtype=F64)
    return module, inputs, inputs.sum(1, keepdim=True).sin()


@pytest.mark.parametrize(
    "take",
    [lambda f, m: hvpopt.minimize(f, m), lambda f, m: hvpopt.HessianOperator(f, m)],
)
@pytest.mark.parametrize("what", ["module", "parameters", "named"])
def test_module_is_refused_with_the_line_that_works(take, what):
    module, inputs, _ = network()
    model = {
        "module": lambda: module,
        "parameters": module.parameters,
        "named": module.named_parameters,
    }[what]()
    with pytest.raises(TypeError, match=r"dict\(module\.named_parameters\(\)\)") as error:
        take(lambda _: module(inputs).sum(), model)
    assert "functional_call" in str(error.value)
    assert "as_tensor" not in str(error.value)


def test_the_line_for_a_module_works():
    module, inputs, outputs = network()

    def misfit(found):
        return (found - outputs).square().mean()

    before = float(misfit(module(inputs)).detach())
    result = hvpopt.minimize(
        lambda **p: misfit(torch.func.functional_call(module, p, (inputs,))),
        dict(module.named_parameters()),
        max_iter=10,
    )
    assert float(misfit(module(inputs)).detach()) == before
    module.load_state_dict(result.x, strict=False)
    assert float(misfit(module(inputs)).detach()) == pytest.approx(result.fun)
    assert result.fun < 0.1 * before


def test_parameter_dict_and_list_are_refused_with_the_lines_that_work():
    start = torch.zeros(3, dtype=F64)
    named = torch.nn.ParameterDict({"a": start.clone(), "b": start.clone()})
    listed = torch.nn.ParameterList([start.clone(), start.clone()])

    def loss(a, b):
        return ((a - 1) ** 2).sum() + ((b + 1) ** 2).sum()

    with pytest.raises(TypeError, match=r"pass dict\(parameters\.items\(\)\)"):
        hvpopt.minimize(loss, named)
    with pytest.raises(TypeError, match=r"pass tuple\(parameters\)"):
        hvpopt.minimize(loss, listed)
    assert hvpopt.minimize(loss, dict(named.items())).fun < 1e-9
    assert hvpopt.minimize(loss, tuple(listed)).fun < 1e-9


# -- losses that take their model whole ---------------------------------------------

PAIR = [torch.zeros(3, dtype=F64), torch.ones(2, dtype=F64)]
NAMED = dict(zip(("a", "b"), PAIR, strict=True))


def of_list(tensors):
    return sum(((t - 2) ** 2).sum() for t in tensors)


def of_dict(tensors):
    return of_list(tensors.values())


@pytest.mark.parametrize(
    "take",
    [lambda f, m: hvpopt.minimize(f, m), lambda f, m: hvpopt.HessianOperator(f, m)],
)
@pytest.mark.parametrize(
    ("loss", "model", "line"),
    [
        (of_list, PAIR, r"pass lambda \*model: loss\(model\)"),
        (of_list, tuple(PAIR), r"pass lambda \*model: loss\(model\)"),
        (of_dict, NAMED, r"pass lambda \*\*model: loss\(model\)"),
    ],
)
def test_loss_of_a_whole_list_or_dict_is_told_how_it_is_called(take, loss, model, line):
    with pytest.raises(TypeError, match=line) as error:
        take(loss, model)
    assert "loss cannot be called as its model is arranged" in str(error.value)


def test_a_parameterisation_is_not_called_the_loss(generator):
    survey = Survey("elastic", **arguments("elastic", 1))
    models = dict(zip(survey.model_names, models_of("elastic", generator), strict=True))
    observed = survey.simulate(models)
    misfit = WaveformMisfit(survey, observed, parameterisation=VpVsRho())
    model = dict.fromkeys(("vp", "vs", "density"), torch.full((12, 14), 1500.0))
    with pytest.raises(TypeError, match="parameterisation VpVsRho cannot be called"):
        misfit.value(model)


def test_the_lines_for_a_whole_list_and_dict_work():
    assert hvpopt.minimize(lambda *model: of_list(model), PAIR).fun < 1e-9
    assert hvpopt.minimize(lambda **model: of_dict(model), NAMED).fun < 1e-9


def test_type_error_from_within_the_loss_is_raised_as_it_is():
    def broken(x):
        return x + "one"

    with pytest.raises(TypeError, match="str") as error:
        hvpopt.minimize(broken, PAIR[0])
    assert "arranged" not in str(error.value)


# -- losses without a minimum -------------------------------------------------------

UNBOUNDED = {
    "square": lambda x: -(x**2).sum(),
    "exponential": lambda x: -x.exp().sum(),
    "quartic": lambda x: x[0] ** 2 - x[1] ** 4,
    "slope": lambda x: x[0] ** 2 - x[1],
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", UNBOUNDED)
def test_loss_unbounded_below_is_called_so(name, method):
    start = torch.tensor([0.3, 0.5], dtype=F64)
    result = hvpopt.minimize(UNBOUNDED[name], start, method=METHODS[method]())
    assert not result.success
    assert "the loss seems unbounded below" in result.message
    assert "lower=, upper=" in result.message
    assert "no minimum" not in result.message
    assert result.status not in (Status.STATIONARY, Status.FAILED, Status.NO_DECREASE)


BOUNDED = {
    "quadratic far below zero": lambda x: ((x - 50) ** 2).sum() - 1e6,
    "quadratic": lambda x: (x**2 - 1e3 * x).sum(),
    "quartic": lambda x: (x**4 - 16 * x**2 + 5 * x).sum(),
    "banana": lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2 - 1e3,
    "large": lambda x: 1e100 * (x**2 - x).sum(),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("max_iter", [1, 5, 14, 40])
def test_loss_with_a_minimum_is_not_called_unbounded(name, method, max_iter):
    start = torch.tensor([-1.2, 1.0], dtype=F64)
    result = hvpopt.minimize(
        BOUNDED[name], start, method=METHODS[method](), max_iter=max_iter
    )
    assert "unbounded" not in result.message


@pytest.mark.parametrize("max_iter", [1, 3, 6, 30])
@pytest.mark.parametrize("method", METHODS)
def test_fall_from_a_saddle_at_zero_is_not_called_unbounded(method, max_iter):
    result = hvpopt.minimize(
        lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4,
        torch.zeros(2, dtype=F64),
        method=METHODS[method](),
        max_iter=max_iter,
    )
    assert "unbounded" not in result.message


def test_failure_on_the_way_down_is_told():
    calls = []

    def loss(x):
        calls.append(1)
        if len(calls) > 45:
            raise OSError("my disk is full")
        return -(1 + x.square()).log().sum()

    result = hvpopt.minimize(
        loss, torch.ones(3, dtype=F64), method=hvpopt.LineSearchNewton()
    )
    assert result.status is hvpopt.Status.FAILED
    assert "my disk is full" in result.message


def test_bound_that_is_named_gives_a_minimum():
    start = torch.tensor([0.3, 0.5], dtype=F64)
    result = hvpopt.minimize(UNBOUNDED["square"], start, lower=-1.0, upper=2.0)
    assert "unbounded" not in result.message
    assert result.fun == -8.0
