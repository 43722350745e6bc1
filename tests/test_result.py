"""Results on a screen, and in a file."""

import dataclasses

import pytest
import torch

import hvpopt
from hvpopt.errors import StateError

F64 = torch.float64


def quartic(*tensors, **named):
    cells = [t.double().reshape(-1) for t in (*tensors, *named.values())]
    x = torch.cat(cells)
    return (x**4).sum() - (x**2).sum() + 0.1 * (x[1:] * x[:-1]).sum()


@pytest.fixture
def starts(generator):
    def drawn(*shape, dtype=F64):
        return torch.randn(*shape, generator=generator, dtype=F64).to(dtype)

    return {
        "tensor": drawn(3, 4),
        "float32": drawn(5, 2, dtype=torch.float32).mT,
        "tuple": (drawn(2, 3), drawn(4, dtype=torch.float32)),
        "dict": {"vp": drawn(3), "vs": drawn(2, 2, dtype=torch.float32)},
    }


ARRANGED = ["tensor", "float32", "tuple", "dict"]


def same(a, b):
    """True if two trees are equal to the bit, NaN included."""
    if isinstance(a, torch.Tensor):
        return a.dtype is b.dtype and a.stride() == b.stride() and torch.equal(a, b)
    if dataclasses.is_dataclass(a):
        names = [field.name for field in dataclasses.fields(a)]
        return type(a) is type(b) and all(
            same(getattr(a, n), getattr(b, n)) for n in names
        )
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


# -- in a file ------------------------------------------------------------------


@pytest.mark.parametrize("arranged", ARRANGED)
def test_a_result_is_loaded_as_it_was_saved(arranged, starts, tmp_path):
    result = hvpopt.minimize(quartic, starts[arranged], max_iter=4)
    path = tmp_path / "result.safetensors"
    result.save(path)
    loaded = hvpopt.MinimizeResult.load(path)
    assert same(loaded, result)
    assert loaded.nhev == result.nhev > 0
    assert repr(loaded) == repr(result)
    assert [p.name for p in tmp_path.iterdir()] == ["result.safetensors"]


@pytest.mark.parametrize("arranged", ARRANGED)
def test_a_loaded_result_is_a_start(arranged, starts, tmp_path):
    path = tmp_path / "result.safetensors"
    first = hvpopt.minimize(quartic, starts[arranged], max_iter=2)
    first.save(path)
    again = hvpopt.minimize(quartic, hvpopt.MinimizeResult.load(path).x, max_iter=2)
    assert same(again.x, hvpopt.minimize(quartic, first.x, max_iter=2).x)


def test_a_result_without_gradient_is_saved(starts, tmp_path):
    result = hvpopt.minimize(quartic, starts["tuple"], max_iter=1)
    bare = dataclasses.replace(
        result, jac=None, fun=float("nan"), status=hvpopt.Status.FAILED, success=False
    )
    bare.save(tmp_path / "bare")
    assert same(hvpopt.MinimizeResult.load(tmp_path / "bare"), bare)


def test_an_existing_file_is_replaced_on_request_alone(starts, tmp_path):
    path = tmp_path / "result.safetensors"
    first = hvpopt.minimize(quartic, starts["tensor"], max_iter=1)
    second = hvpopt.minimize(quartic, starts["tensor"], max_iter=3)
    first.save(path)
    with pytest.raises(FileExistsError, match="pass overwrite=True to replace it"):
        second.save(path)
    assert same(hvpopt.MinimizeResult.load(path), first)
    second.save(path, overwrite=True)
    assert same(hvpopt.MinimizeResult.load(path), second)
    assert [p.name for p in tmp_path.iterdir()] == ["result.safetensors"]


def test_results_and_saved_runs_are_told_apart(starts, tmp_path):
    run, path = tmp_path / "run.safetensors", tmp_path / "result.safetensors"
    start = starts["tensor"]
    hvpopt.minimize(quartic, start, max_iter=1, checkpoint=run).save(path)
    with pytest.raises(StateError, match=r"no saved result; .* checkpoint=path"):
        hvpopt.MinimizeResult.load(run)
    with pytest.raises(StateError, match="holds no state of a run"):
        hvpopt.minimize(quartic, start, checkpoint=path)


def test_a_damaged_result_is_refused(starts, tmp_path):
    path = tmp_path / "result.safetensors"
    hvpopt.minimize(quartic, starts["dict"], max_iter=1).save(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StateError):
        hvpopt.MinimizeResult.load(path)


# -- on a screen ----------------------------------------------------------------


def fits(text):
    lines = text.splitlines()
    return len(lines) <= 24 and max(map(len, lines)) <= 88


@pytest.mark.parametrize("status", hvpopt.Status)
def test_a_result_fits_a_screen_and_says_how_it_ended(status, starts):
    result = hvpopt.minimize(quartic, starts["tensor"].reshape(-1), max_iter=3)
    many = {f"layer.{k}.weight": torch.zeros(300, 200) for k in range(40)}
    converged = status is hvpopt.Status.CONVERGED
    result = dataclasses.replace(
        result,
        x=many,
        jac=many,
        status=status,
        success=converged,
        message=f"{status.message}: " + "a long story of many shots, " * 200,
    )
    assert fits(repr(result))
    assert repr(result) == str(result)
    how = "converged" if converged else "not converged"
    assert repr(result).startswith(f"MinimizeResult: {how} after 3 steps\n")
    assert status.name in repr(result)
    assert "layer.0.weight: float32 [300, 200], 0" in repr(result)
    assert "and 36 parameters more" in repr(result)


def test_ranges_and_bad_numbers_are_shown(starts):
    result = hvpopt.minimize(quartic, starts["tensor"].reshape(-1), max_iter=1)
    x = torch.linspace(1500.0, 4500.0, 300)
    shown = repr(dataclasses.replace(result, x=x))
    assert "x: float32 [300], 1500 to 4500\n" in shown
    x[3], x[5] = float("nan"), float("inf")
    shown = repr(dataclasses.replace(result, x=x, jac=x[3:4]))
    assert "x: float32 [300], 1500 to 4500, 2 NaN or infinite\n" in shown
    assert "jac: float32 [1], 1 NaN or infinite\n" in shown


def test_estimates_and_solutions_fit_a_screen(generator):
    n = 5000
    diagonal = torch.rand(n, generator=generator, dtype=F64) + 0.5
    operator = hvpopt.FunctionOperator(lambda v: diagonal * v, n)
    estimate = hvpopt.smallest_eigenvalue(operator)
    assert fits(repr(estimate))
    assert repr(estimate).startswith(f"EigenvalueEstimate: {estimate.message}\n")
    assert f"value: {estimate.value:.6g}," in repr(estimate)
    assert "with probability 0.999" in repr(estimate)
    assert "vector: float64 [5000]," in repr(estimate)
    rhs = torch.ones(n, dtype=F64)
    solution = hvpopt.cg(operator, rhs)
    assert fits(repr(solution))
    assert repr(solution).startswith("CGResult: the residual met its tolerance\n")
    assert "x: float64 [5000]," in repr(solution)
    assert "direction" not in repr(solution)
    diagonal[7] = -2.0
    downhill = hvpopt.cg(operator, rhs, max_products=500)
    assert fits(repr(downhill))
    assert "negative curvature was met" in repr(downhill)
    assert f"direction: {downhill.curvature:.4g} along float64" in repr(downhill)
