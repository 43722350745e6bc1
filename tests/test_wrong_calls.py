"""Wrong calls say in words what to write instead, and what they say works."""

import re

import numpy as np
import pytest
import scipy.optimize
import torch
from scipy.optimize import rosen, rosen_der

import hvpopt
from hvpopt import analysis
from hvpopt.errors import DamagedError

F64 = torch.float64
X = torch.tensor([-1.2, 1.0], dtype=F64)


def rosenbrock(x):
    return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2


def operator():
    return hvpopt.MatrixOperator(torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=F64)))


def by_scipy(method):
    return scipy.optimize.minimize(rosen, np.ones(2), jac=rosen_der, method=method)


def parameters():
    return [X.clone().requires_grad_()]


def saved(tmp_path):
    path = tmp_path / "result.safetensors"
    hvpopt.minimize(rosenbrock, X, max_iter=1).save(path)
    return path


NEWTON = hvpopt.optim.Newton
WRONG = {
    # methods in SciPy
    "class in scipy": (
        lambda: by_scipy(hvpopt.QuasiNewton),
        TypeError,
        r"method=hvpopt\.scipy_method\(hvpopt\.QuasiNewton\(\)\)",
    ),
    "class of samples in scipy": (
        lambda: by_scipy(hvpopt.StochasticQuasiNewton),
        TypeError,
        r"method=hvpopt\.scipy_method\(hvpopt\.StochasticQuasiNewton\(\)\)",
    ),
    "instance in scipy": (
        lambda: by_scipy(hvpopt.QuasiNewton()),
        TypeError,
        r"cannot be called; .*method=hvpopt\.scipy_method\(hvpopt\.QuasiNewton\(",
    ),
    "scipy_method not called": (
        lambda: by_scipy(hvpopt.scipy_method),
        TypeError,
        r"pass method=hvpopt\.scipy_method\(\) to scipy\.optimize\.minimize",
    ),
    "name in scipy_method": (
        lambda: hvpopt.scipy_method("trust-ncg"),
        TypeError,
        "method is a str; pass an instance of a method, such as hvpopt.QuasiNewton",
    ),
    "forcing term in scipy_method": (
        lambda: hvpopt.scipy_method(hvpopt.SquareRoot()),
        TypeError,
        "method is a SquareRoot; pass an instance of a method",
    ),
    # options of methods
    "positional tolerance": (
        lambda: hvpopt.LineSearchNewton(0.1),
        TypeError,
        r"options are given by name: hvpopt\.LineSearchNewton\(hessian=..., tol, glob",
    ),
    "positional Hessian": (
        lambda: hvpopt.TrustRegionNewton("gauss-newton"),
        TypeError,
        r"options are given by name: hvpopt\.TrustRegionNewton\(hessian=..., tol, rad",
    ),
    "positional solver": (
        lambda: hvpopt.ShiftedNewton("cg"),
        TypeError,
        r"options are given by name: hvpopt\.ShiftedNewton\(solver=..., hessian, tol,",
    ),
    "forcing": (
        lambda: hvpopt.LineSearchNewton(forcing=0.1),
        TypeError,
        "LineSearchNewton has no option 'forcing'; it has hessian, tol, globalisation",
    ),
    "option of another method": (
        lambda: hvpopt.QuasiNewton(tol=1e-3, radius=2.0),
        TypeError,
        "QuasiNewton has no option 'tol', 'radius'; it has memory, initial, refresh,.*"
        "max_products, eigenvalue_floor, confidence, seed$",
    ),
    "option of no sampled method": (
        lambda: hvpopt.StochasticQuasiNewton(batch=4),
        TypeError,
        r"'batch'; options are given by name: .*\(size=..., memory, last, seed\)",
    ),
    "forcing term as class": (
        lambda: hvpopt.ShiftedNewton(tol=hvpopt.EisenstatWalker2),
        TypeError,
        "tol is the class EisenstatWalker2; pass a number",
    ),
    "kind of shifted Hessian": (
        lambda: hvpopt.ShiftedNewton(hessian="newton"),
        ValueError,
        "hessian is 'newton'; it must be 'exact' or 'gauss-newton'",
    ),
    # torch.optim
    "parameters in a method": (
        lambda: hvpopt.QuasiNewton(torch.nn.Linear(2, 1).parameters(), lr=0.1),
        TypeError,
        r"for torch parameters: hvpopt\.optim\.Newton\(params, hvpopt\.QuasiNewton\(\)",
    ),
    "learning rate": (
        lambda: NEWTON(parameters(), lr=0.1, momentum=0.9),
        TypeError,
        r"Newton has no option 'lr', 'momentum': .*no learning rate",
    ),
    "module as parameters": (
        lambda: NEWTON(torch.nn.Linear(2, 1)),
        TypeError,
        r"params is a Linear; pass module\.parameters\(\)",
    ),
    "step without closure": (
        lambda: NEWTON(parameters()).step(),
        TypeError,
        "the closure is None, which cannot be called; step needs a function that "
        "returns the loss, without calling backward",
    ),
    "optimiser as method": (
        lambda: hvpopt.minimize(rosenbrock, X, method=torch.optim.Adam),
        TypeError,
        "method is the class Adam; pass an instance of a method",
    ),
    # Krylov
    "positional right-hand side": (
        lambda: hvpopt.LanczosBasis(operator(), X),
        TypeError,
        "takes 2 positional arguments but 3 were given",
    ),
    "right-hand side of another size": (
        lambda: hvpopt.LanczosBasis(operator(), rhs=X),
        ValueError,
        r"rhs has shape \(2,\), expected \(3,\)",
    ),
    "basis without right-hand side": (
        lambda: hvpopt.LanczosBasis(operator()).solve(),
        ValueError,
        "the basis is empty|pass rhs=b",
    ),
    "size of memory in words": (
        lambda: hvpopt.DenseHessian(operator(), memory_limit="a lot"),
        ValueError,
        "memory_limit is 'a lot'; give a size such as '2GB', '512MiB' or bytes",
    ),
    "memory of eigenpairs": (
        lambda: analysis.eigenpairs(operator(), 1, memory_limit=-1),
        ValueError,
        "memory_limit is -1; it must be at least 1",
    ),
    "Hessian of a trace": (
        lambda: analysis.trace(operator(), hessian="exact"),
        TypeError,
        "an operator is at a model already; leave hessian out",
    ),
    "Hessian of a scipy problem": (
        lambda: hvpopt.as_scipy(rosenbrock, X, hessian="newton"),
        ValueError,
        "hessian is 'newton'; it must be 'exact' or 'gauss-newton'",
    ),
    # results
    "number as path": (
        lambda: hvpopt.MinimizeResult.load(3),
        TypeError,
        "path is 3; pass a string or a pathlib.Path",
    ),
    "no file": (
        lambda: hvpopt.MinimizeResult.load("no/such/file"),
        FileNotFoundError,
        "no/such/file",
    ),
}


@pytest.mark.parametrize("call", WRONG)
def test_wrong_calls_say_what_to_write(call):
    wrong, error, words = WRONG[call]
    with pytest.raises(error, match=words):
        wrong()


def test_wrong_files_of_results_are_told(tmp_path):
    path = saved(tmp_path)
    with pytest.raises(FileExistsError, match="pass overwrite=True to replace it"):
        hvpopt.MinimizeResult.load(path).save(path)
    with pytest.raises(ValueError, match="device is 'gpu'"):
        hvpopt.MinimizeResult.load(path, device="gpu")
    path.write_text("not a result")
    with pytest.raises(DamagedError, match=r"result\.safetensors"):
        hvpopt.MinimizeResult.load(path)


def test_what_is_said_to_scipy_works():
    for name in ("QuasiNewton", "TrustRegionNewton", "ShiftedNewton"):
        with pytest.raises(TypeError) as error:
            by_scipy(getattr(hvpopt, name))
        (line,) = re.findall(r"method=(hvpopt\.scipy_method.*)$", str(error.value))
        assert by_scipy(eval(line, {"hvpopt": hvpopt})).success


def test_what_is_said_of_torch_parameters_works():
    params = parameters()
    with pytest.raises(TypeError) as error:
        hvpopt.QuasiNewton(params, lr=1e-3)
    (line,) = re.findall(r": (hvpopt\.optim.*)$", str(error.value))
    optimizer = eval(line, {"hvpopt": hvpopt, "params": params})
    before = float(rosenbrock(params[0]).detach())
    for _ in range(5):
        optimizer.step(lambda: rosenbrock(params[0]))
    assert float(rosenbrock(params[0]).detach()) < before


def test_methods_with_arguments_of_their_own_are_left_alone():
    class Mine(hvpopt.QuasiNewton):
        def __init__(self, alpha, **options):
            self.alpha = alpha
            super().__init__(**options)

    assert Mine(3.0, memory=4).memory == 4
    with pytest.raises(TypeError, match="has no option 'tol'; it has alpha, memory, "):
        Mine(3.0, tol=1.0)


# -- modules ------------------------------------------------------------------------


@pytest.fixture
def network(generator):
    module = torch.nn.Sequential(
        torch.nn.Linear(2, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1)
    ).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    inputs = torch.randn(30, 2, generator=generator, dtype=F64)
    outputs = inputs.sum(1, keepdim=True).sin()
    return module, inputs, lambda found: (found - outputs).square().mean()


def lines(error):
    """Return the indented lines of a message, as a user would paste them."""
    found = re.findall(r"^    (.*)$", str(error.value), flags=re.MULTILINE)
    return "\n".join(found)


MODELS = {
    "module": lambda module: module,
    "generator": lambda module: module.parameters(),
    "named generator": lambda module: module.named_parameters(),
    "list": lambda module: list(module.parameters()),
    "tuple": lambda module: tuple(module.parameters()),
    "dict": lambda module: dict(module.named_parameters()),
}


def pasted(error, module, inputs, loss):
    """Run the lines of a message as a user would paste them."""
    names = {"hvpopt": hvpopt, "torch": torch, "module": module, "inputs": inputs}
    exec(lines(error), names | {"loss": loss})
    return float(loss(module(inputs)).detach())


@pytest.mark.parametrize("what", MODELS)
def test_a_module_is_refused_with_the_line_that_works(what, network):
    """A loss that reads the module, whatever of the module is given as the model."""
    module, inputs, loss = network
    with pytest.raises((TypeError, ValueError)) as error:
        hvpopt.minimize(lambda *_, **__: loss(module(inputs)), MODELS[what](module))
    assert lines(error).splitlines() == [
        "result = hvpopt.minimize(lambda **p: loss(torch.func.functional_call(module, p, "
        "(inputs,))), dict(module.named_parameters()))",
        "module.load_state_dict(result.x, strict=False)",
    ]
    if what == "module":
        before = float(loss(module(inputs)).detach())
        assert pasted(error, module, inputs, loss) < 0.9 * before


@pytest.mark.parametrize("call", [hvpopt.HessianOperator, hvpopt.as_scipy])
def test_a_module_is_refused_wherever_a_model_is_taken(call, network):
    module, inputs, loss = network
    with pytest.raises(TypeError, match="functional_call"):
        call(lambda **_: loss(module(inputs)), module)


def test_the_line_leaves_frozen_parameters_where_they_are(network):
    module, inputs, loss = network
    module[0].weight.requires_grad_(False)
    frozen = module[0].weight.clone()
    with pytest.raises(TypeError) as error:
        hvpopt.minimize(lambda **_: loss(module(inputs)), module)
    before = float(loss(module(inputs)).detach())
    assert pasted(error, module, inputs, loss) < before
    assert torch.equal(module[0].weight, frozen)
