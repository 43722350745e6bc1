"""Bad input is refused by class and in words, at the door."""

import itertools
import math

import pytest
import torch

import hvpopt
from hvpopt.analysis import check_hessian
from hvpopt.operators.symmetric import SumOperator
from hvpopt.problem.objective import SumObjective

F64 = torch.float64
X = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
PAIR = (torch.ones(3, dtype=F64), torch.ones(2, dtype=F64))
NAMED = {"vp": torch.ones(3, dtype=F64), "rho": torch.ones(2, dtype=F64)}


def quartic(x):
    return (x**4).sum()


def filled(value):
    return torch.full((3,), value, dtype=F64)


def meta(*shape):
    return torch.zeros(shape, dtype=F64, device="meta")


def space(model=X, **options):
    return hvpopt.ModelSpace(model, **options)


def hessian(loss=quartic, model=X, **options):
    return hvpopt.HessianOperator(loss, model, **options)


def closed():
    operator = hessian()
    operator.close()
    return operator


def matrix(rows):
    return hvpopt.MatrixOperator(torch.tensor(rows, dtype=F64))


def identity(n=3):
    return hvpopt.MatrixOperator(torch.eye(n, dtype=F64))


def minimize(loss=quartic, model=X, **options):
    return hvpopt.minimize(loss, model, **options)


def dense_solve(shift):
    dense = hvpopt.DenseHessian(matrix([[1.0, 0.0], [0.0, -2.0]]))
    return dense.solve(torch.ones(2, dtype=F64), shift)


def second_alone(first, second):
    return first.sum().item() + quartic(second)


def changing_loss():
    calls = itertools.count(1)
    return lambda x: next(calls) * quartic(x)


def empty_basis():
    return hvpopt.LanczosBasis(identity(), rhs=-X)


MODELS = {
    "list of numbers": (
        lambda: space([1.0, 2.0]),
        TypeError,
        "'0' is a float, not a tor",
    ),
    "number": (lambda: space(1.0), TypeError, "a model is a tensor.*got float"),
    "nothing": (lambda: space(None), TypeError, "got NoneType.*torch.as_tensor"),
    "empty tuple": (lambda: space(()), ValueError, "holds no tensor"),
    "empty tensor": (lambda: space(X[:0]), ValueError, r"is empty, shape \(0,\)"),
    "array inside": (lambda: space({"vp": X.numpy()}), TypeError, "'vp' is a ndarray"),
    "int": (lambda: space(X.int()), TypeError, "dtype torch.int32.*floating-point"),
    "bool": (lambda: space(X > 0), TypeError, "dtype torch.bool.*floating-point"),
    "complex": (lambda: space(X + 0j), TypeError, "dtype torch.complex128.*real"),
    "int beside float": (
        lambda: space((X, X.long())),
        TypeError,
        "parameter '1' has dtype torch.int64",
    ),
    "nan": (lambda: space(filled(math.nan)), ValueError, "3 NaN or infinite cells of 3"),
    "inf": (
        lambda: space({"vp": X, "rho": torch.tensor([math.inf, 1.0])}),
        ValueError,
        "parameter 'rho' has 1 NaN or infinite cells of 2",
    ),
    "two devices": (
        lambda: space((X, meta(3))),
        ValueError,
        "'1' is on meta, the first parameter on cpu; put the whole model on one device",
    ),
    "two devices, turned": (
        lambda: space((meta(3), X)),
        ValueError,
        "'1' is on cpu, the first parameter on meta",
    ),
}

OPTIONS = {
    "scale zero": (lambda: space(scale=0.0), ValueError, "positive.*smallest value is 0"),
    "scale negative": (lambda: space(scale=-X), ValueError, "smallest value is -3"),
    "scale nan": (lambda: space(scale=math.nan), ValueError, "scale holds NaN or inf"),
    "scale inf": (lambda: space(scale=math.inf), ValueError, "scale holds NaN or inf"),
    "scale shape": (
        lambda: space(scale=torch.ones(2)),
        ValueError,
        r"scale of parameter 'model' has shape \(2,\).*does not fit the model's \(3,\)",
    ),
    "scale too many": (
        lambda: space(PAIR, scale=[1.0, 2.0, 3.0]),
        ValueError,
        "scale has 3 entries for 2 parameters",
    ),
    "scale unknown name": (
        lambda: space(NAMED, scale={"vs": 1.0}),
        ValueError,
        r"scale names parameters \['vs'\].*it has \['vp', 'rho'\]",
    ),
    "scale boolean": (lambda: space(scale=X > 0), TypeError, "expected numbers"),
    "mask all frozen": (lambda: space(mask=X < 0), ValueError, "freezes every cell"),
    "mask of numbers": (
        lambda: space(mask=torch.ones(3)),
        TypeError,
        "mask of parameter 'model' has dtype torch.float32, expected torch.bool",
    ),
    "mask shape": (
        lambda: space(PAIR, mask=(None, X > 0)),
        ValueError,
        r"mask of parameter '1' has shape \(3,\)",
    ),
    "bounds crossed": (
        lambda: space(lower=torch.tensor([0.0, 5.0, 5.0]), upper=4.0),
        ValueError,
        "lower bound is above upper bound in 2 cells",
    ),
    "model below": (
        lambda: space(lower=1.5),
        ValueError,
        "outside its bounds in 1 of 3 cells.*run from 1 to 3",
    ),
    "model above": (lambda: space(upper=0.5), ValueError, "in 3 of 3 cells.*clamp it"),
    "bound nan": (lambda: space(lower=math.nan), ValueError, "lower holds NaN"),
    "bound shape": (
        lambda: space(upper=torch.ones(4)),
        ValueError,
        r"upper of parameter 'model' has shape \(4,\)",
    ),
    "bound unknown name": (
        lambda: space(NAMED, upper={"vs": 1.0}),
        ValueError,
        r"upper names parameters \['vs'\]",
    ),
}

SHAPES = {
    "model shape": (
        lambda: space().to_vector(X[:2]),
        ValueError,
        r"the model has shape \(2,\) for parameter 'model', expected \(3,\)",
    ),
    "model device": (
        lambda: space().to_vector(meta(3)),
        ValueError,
        "the model is on meta.*the model is on cpu; move it",
    ),
    "model names": (
        lambda: space(NAMED).to_vector({"vp": X, "vs": X}),
        ValueError,
        r"has parameters \['vp', 'vs'\], expected \['vp', 'rho'\]",
    ),
    "one parameter missing": (
        lambda: space(PAIR).to_vector((X,)),
        ValueError,
        r"has parameters \['0'\], expected \['0', '1'\]",
    ),
    "dict for a tuple": (
        lambda: space(PAIR).to_vector(NAMED),
        ValueError,
        r"has parameters \['vp', 'rho'\], expected \['0', '1'\]",
    ),
    "tuple for a dict": (
        lambda: space(NAMED).to_vector(PAIR),
        ValueError,
        r"has parameters \['0', '1'\], expected \['vp', 'rho'\]",
    ),
    "tuple for a tensor": (
        lambda: space().to_vector((X,)),
        ValueError,
        r"has parameters \['0'\], expected \['model'\]",
    ),
    "dict for a tensor": (
        lambda: space().to_vector({"vp": X}),
        ValueError,
        r"has parameters \['vp'\], expected \['model'\]",
    ),
    "gradient shape": (
        lambda: space().gradient_to_vector(X[:1]),
        ValueError,
        r"the gradient has shape \(1,\)",
    ),
    "flat vector": (
        lambda: space().to_model(X[:2]),
        ValueError,
        r"flat vector of this model has shape \(3,\), got \(2,\)",
    ),
    "flat step": (
        lambda: space(scale=2.0).step_to_model(X[:, None]),
        ValueError,
        r"has shape \(3,\), got \(3, 1\)",
    ),
    "flat gradient": (
        lambda: space().gradient_to_model(X[:2]),
        ValueError,
        r"flat vector of this model has shape \(3,\), got \(2,\)",
    ),
}

LOSSES = {
    "not callable": (
        lambda: hvpopt.TorchObjective(3.0),
        TypeError,
        "the loss is a float, which cannot be called",
    ),
    "float": (lambda: hessian(lambda x: x.sum().item()), TypeError, "returned a float"),
    "none": (lambda: hessian(lambda _: None), TypeError, "returned a NoneType"),
    "vector": (
        lambda: hessian(lambda x: x**2),
        ValueError,
        r"shape \(3,\); reduce it to a scalar",
    ),
    "integer": (lambda: hessian(lambda x: x.sum().long()), TypeError, "must be real"),
    "complex": (lambda: hessian(lambda x: (x + 0j).sum()), TypeError, "complex128"),
    "nan": (lambda: hessian(lambda x: (x - 9).log().sum()), ValueError, "loss is nan at"),
    "inf": (lambda: hessian(lambda x: (x / 0).sum()), ValueError, "loss is inf at"),
    "detached": (
        lambda: hessian(lambda x: quartic(x.detach())),
        ValueError,
        r"does not depend on the model.*\.detach\(\)",
    ),
    "ignored parameter": (
        lambda: hessian(lambda vp, rho: quartic(vp) + rho.sum().item(), NAMED),
        ValueError,
        "the loss ignores parameter 'rho'",
    ),
    "ignored by value and gradient": (
        lambda: hvpopt.TorchObjective(second_alone).value_and_gradient(PAIR),
        ValueError,
        "the loss ignores parameter '0'",
    ),
    "value of a vector": (
        lambda: hvpopt.TorchObjective(lambda x: x).value(X),
        ValueError,
        r"shape \(3,\); reduce it",
    ),
    "value of a float": (
        lambda: hvpopt.TorchObjective(lambda _: 1.0).value(X),
        TypeError,
        "returned a float; it must return a torch scalar",
    ),
    "another model than the space's": (
        lambda: hessian(model=X[:2], space=space()),
        ValueError,
        r"the model has shape \(2,\)",
    ),
    "gradient of a finite difference": (
        lambda: hvpopt.FiniteDifferenceHessian(lambda x: x**2, X) @ X,
        ValueError,
        "reduce it to a scalar",
    ),
    "kind": (
        lambda: hvpopt.TorchObjective(quartic).hessian(X, "newton"),
        ValueError,
        "kind is 'newton'; it must be 'exact' or 'gauss-newton'",
    ),
    "gauss-newton": (
        lambda: hvpopt.TorchObjective(quartic).hessian(X, "gauss-newton"),
        ValueError,
        "without the residual that Gauss-Newton needs",
    ),
    "empty sum": (lambda: SumObjective([]), ValueError, "at least one term"),
    "weight nan": (
        lambda: math.nan * hvpopt.TorchObjective(quartic),
        ValueError,
        "the weight of 'quartic' is nan",
    ),
}

OPERATORS = {
    "rhs too short": (
        lambda: hessian() @ X[:2],
        ValueError,
        r"has shape \(2,\), expected \(3,\) or \(3, k\) or the model's shape",
    ),
    "rhs scalar": (lambda: identity() @ torch.tensor(1.0), ValueError, r"has shape \(\)"),
    "rhs cube": (
        lambda: identity() @ torch.ones(3, 3, 3),
        ValueError,
        r"has shape \(3, 3, 3\), expected \(3,\)",
    ),
    "block of wrong height": (
        lambda: identity() @ torch.ones(2, 3),
        ValueError,
        r"has shape \(2, 3\)",
    ),
    "rhs device": (lambda: identity() @ meta(3), ValueError, "on meta, the operator on"),
    "rhs nan": (
        lambda: identity() @ filled(math.nan),
        ValueError,
        "NaN or infinite entr",
    ),
    "rhs inf in a block": (
        lambda: hessian() @ torch.diag(filled(math.inf)),
        ValueError,
        "right-hand side has NaN or infinite entries",
    ),
    "rhs array": (
        lambda: identity() @ X.numpy(),
        TypeError,
        "is a ndarray.*pass a tensor",
    ),
    "rhs number": (lambda: hessian() @ 2.0, TypeError, "is a float.*or like the model"),
    "rhs integer": (lambda: hessian() @ torch.ones(3).long(), TypeError, "int64.*float"),
    "rhs boolean": (lambda: hessian() @ (X > 0), TypeError, "bool.*float"),
    "rhs complex": (lambda: identity() @ (X + 1j), TypeError, "complex128.*real"),
    "model-shaped rhs of numbers": (
        lambda: hessian(model=X.reshape(1, 3)) @ [1.0, 2.0, 3.0],
        TypeError,
        "'0' is a float, not a torch.Tensor",
    ),
    "model-shaped rhs with a name missing": (
        lambda: hessian(lambda vp, rho: quartic(vp) * quartic(rho), NAMED) @ {"vp": X},
        ValueError,
        r"has parameters \['vp'\], expected \['vp', 'rho'\]",
    ),
    "closed": (lambda: closed() @ X, RuntimeError, "HessianOperator is closed.*new one"),
    "product not finite": (
        lambda: hessian(lambda x: (x.abs() ** 1.5).sum(), 0 * X) @ X,
        FloatingPointError,
        "product 1 of HessianOperator is not finite although its right-hand side is",
    ),
    "dense too large": (
        lambda: identity().to_dense(memory_limit=71),
        MemoryError,
        r"3 × 3 matrix needs 72 bytes, above memory_limit=71",
    ),
    "matrix not square": (
        lambda: matrix([[1.0, 2.0]]),
        ValueError,
        r"shape \(1, 2\), expected \[n, n\]",
    ),
    "matrix not symmetric": (
        lambda: matrix([[1.0, 2.0], [3.0, 4.0]]),
        ValueError,
        "not symmetric: entries differ by up to 1",
    ),
    "matrix nan": (
        lambda: matrix([[math.nan]]),
        ValueError,
        "matrix has NaN or infinite",
    ),
    "sum of sizes": (
        lambda: identity(3) + identity(2),
        ValueError,
        "cannot add an operator of size 2 on cpu to one of size 3",
    ),
    "sum of nothing": (lambda: SumOperator([]), ValueError, "at least one term"),
    "indefinite solve": (lambda: dense_solve(1.0), ValueError, "not positive definite"),
    "direction of no length": (
        lambda: check_hessian(quartic, X, direction=0 * X),
        ValueError,
        "direction is zero",
    ),
}

KRYLOV = {
    "eigenvalue tol": (
        lambda: hvpopt.smallest_eigenvalue(identity(), tol=0.0),
        ValueError,
        r"tol is 0.0; it is relative and must lie in \(0, 1\)",
    ),
    "eigenvalue products": (
        lambda: hvpopt.smallest_eigenvalue(identity(), max_products=0),
        ValueError,
        "max_products is 0; an estimate needs at least 1",
    ),
    "eigenvalue confidence": (
        lambda: hvpopt.smallest_eigenvalue(identity(), confidence=1.0),
        ValueError,
        r"confidence is 1.0; it must lie in \(0, 1\)",
    ),
    "eigenvalue start": (
        lambda: hvpopt.smallest_eigenvalue(identity(), start=torch.ones(2)),
        ValueError,
        r"start has shape \(2,\), expected \(3,\)",
    ),
    "zero start": (
        lambda: hvpopt.LanczosBasis(identity(), rhs=0 * X),
        ValueError,
        "rhs is zero and spans no Krylov space",
    ),
    "start nan": (
        lambda: hvpopt.LanczosBasis(identity(), rhs=filled(math.nan)),
        ValueError,
        "rhs has NaN or infinite entries",
    ),
    "probe negative": (
        lambda: hvpopt.LanczosBasis(identity(), rhs=-X, probe=-1.0),
        ValueError,
        "probe is -1.0; it must be zero or positive",
    ),
    "empty basis": (
        lambda: empty_basis().solve(),
        ValueError,
        r"basis is empty; call extend\(\) first",
    ),
    "random basis solves nothing": (
        lambda: hvpopt.LanczosBasis(identity()).solve(),
        ValueError,
        "random start solves nothing; pass rhs=b",
    ),
    "cg tol": (
        lambda: hvpopt.cg(identity(), X, tol=1.0),
        ValueError,
        "tol is 1.0; it is",
    ),
    "cg rhs": (
        lambda: hvpopt.cg(identity(), X[:2]),
        ValueError,
        r"right-hand side has shape \(2,\), expected \(3,\)",
    ),
    "cg rhs nan": (
        lambda: hvpopt.cg(identity(), filled(math.nan)),
        ValueError,
        "right-hand side has NaN or infinite entries",
    ),
    "preconditioner without a positive entry": (
        lambda: hvpopt.DiagonalPreconditioner(-X),
        ValueError,
        "largest entry is -1, not positive",
    ),
    "preconditioner nan": (
        lambda: hvpopt.DiagonalPreconditioner(filled(math.nan)),
        ValueError,
        "diagonal must be a finite flat vector",
    ),
    "preconditioner matrix": (
        lambda: hvpopt.DiagonalPreconditioner(torch.eye(2)),
        ValueError,
        r"finite flat vector, got shape \(2, 2\)",
    ),
    "damping": (
        lambda: hvpopt.DiagonalPreconditioner(X, damping=0.0),
        ValueError,
        "damping is 0.0; it must be positive",
    ),
}

MINIMIZE = {
    "loss not callable": (
        lambda: minimize(3.0),
        TypeError,
        "loss is a float, which cann",
    ),
    "loss that changes": (
        lambda: minimize(changing_loss()),
        ValueError,
        "not deterministic: two calls at the start gave.*fix its seed",
    ),
    "loss nan": (
        lambda: minimize(lambda x: (x - 9).log().sum()),
        ValueError,
        "the loss is nan at the starting model; start where it is finite",
    ),
    "loss vector": (lambda: minimize(lambda x: x), ValueError, "reduce it to a scalar"),
    "loss float": (lambda: minimize(lambda _: 1.0), TypeError, "returned a float"),
    "loss detached": (
        lambda: minimize(lambda x: quartic(x.detach())),
        ValueError,
        "does not depend on the model",
    ),
    "loss ignores": (
        lambda: minimize(lambda a, b: second_alone(b, a), PAIR),
        ValueError,
        "the loss ignores parameter '1'",
    ),
    "gradient nan": (
        lambda: minimize(lambda x: x.sqrt().sum(), 0 * X),
        (ValueError, FloatingPointError),
        "of its 3 gradient entries|3 of its 3 gradient",
    ),
    "model": (lambda: minimize(model=[1.0]), TypeError, "'0' is a float"),
    "model nan": (lambda: minimize(model=filled(math.nan)), ValueError, "3 NaN or inf"),
    "start outside": (lambda: minimize(upper=2.5), ValueError, "outside its bounds in 1"),
    "all frozen": (lambda: minimize(mask=X < 0), ValueError, "freezes every cell"),
    "max_iter": (lambda: minimize(max_iter=-1), ValueError, "max_iter is -1; it must be"),
    "max_products": (
        lambda: minimize(max_products=-1),
        ValueError,
        "max_products is -1; it must be zero or positive",
    ),
    "max_seconds": (
        lambda: minimize(max_seconds=math.nan),
        ValueError,
        "max_seconds is nan; it must be zero or positive",
    ),
    "gtol negative": (lambda: minimize(gtol=-1e-9), ValueError, "gtol is -1e-09; it is"),
    "gtol one": (lambda: minimize(gtol=1.0), ValueError, r"must lie in \[0, 1\)"),
    "gtol nan": (lambda: minimize(gtol=math.nan), ValueError, "gtol is nan"),
    "method by name": (lambda: minimize(method="newton"), TypeError, "method.*str"),
    "method as a class": (
        lambda: minimize(method=hvpopt.ShiftedNewton),
        TypeError,
        "method",
    ),
    "solver": (
        lambda: hvpopt.ShiftedNewton(solver="lu"),
        ValueError,
        r"solver is 'lu'; it must be one of \('lanczos', 'cg', 'cholesky'\)",
    ),
    "factor": (
        lambda: hvpopt.ShiftedNewton(factor=1.0),
        ValueError,
        "factor is 1.0; H . τI is definite only for factor > 1",
    ),
    "factor inf": (lambda: hvpopt.ShiftedNewton(factor=math.inf), ValueError, "is inf"),
    "step tol": (
        lambda: hvpopt.ShiftedNewton(tol=1.0),
        ValueError,
        "tol is 1.0; it is relative and must",
    ),
    "step eigenvalue tol": (
        lambda: hvpopt.ShiftedNewton(eigenvalue_tol=0.0),
        ValueError,
        "eigenvalue_tol is 0.0; it must lie in",
    ),
    "step confidence": (
        lambda: hvpopt.ShiftedNewton(confidence=math.nan),
        ValueError,
        "confidence is nan; it must lie in",
    ),
    "step products": (
        lambda: hvpopt.ShiftedNewton(max_products=0),
        ValueError,
        "max_products is 0; it must be at least 1",
    ),
    "sufficient decrease": (
        lambda: hvpopt.Backtracking(decrease=0.5),
        ValueError,
        r"decrease is 0.5; it must lie in \(0, 0.5\)",
    ),
    "shrink": (
        lambda: hvpopt.Backtracking(shrink=(0.5, 0.1)),
        ValueError,
        r"shrink is \(0.5, 0.1\); it must rise within \(0, 1\)",
    ),
    "trials": (
        lambda: hvpopt.Backtracking(max_trials=0),
        ValueError,
        "max_trials is 0; it must be at least 1",
    ),
}

CASES = {
    f"{topic}: {name}": case
    for topic, table in (
        ("model", MODELS),
        ("option", OPTIONS),
        ("shape", SHAPES),
        ("loss", LOSSES),
        ("operator", OPERATORS),
        ("krylov", KRYLOV),
        ("minimize", MINIMIZE),
    )
    for name, case in table.items()
}


@pytest.mark.filterwarnings("ignore:Casting complex values:UserWarning")
@pytest.mark.parametrize(("call", "error", "words"), CASES.values(), ids=CASES)
def test_bad_input_is_refused_in_words(call, error, words):
    with pytest.raises(error, match=f"(?s){words}"):
        call()


def test_refusal_leaves_the_caller_a_usable_operator():
    H = hessian()
    for rhs in (X[:2], filled(math.nan), meta(3)):
        with pytest.raises(ValueError, match="right-hand side"):
            H @ rhs
    assert H.counts.products == 0
    assert (H @ X).tolist() == [12.0, 96.0, 324.0]


def test_dense_solver_above_its_memory_limit_is_refused():
    method = hvpopt.ShiftedNewton(solver="cholesky", memory_limit=10)
    with pytest.raises(MemoryError, match="needs 72 bytes, above memory_limit=10"):
        minimize(method=method)
