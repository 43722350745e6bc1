"""Models and losses of any size: converged where they are, or refused in words."""

import pytest
import torch

import hvpopt

F64 = torch.float64
METHODS = {
    "trust region": hvpopt.TrustRegionNewton,
    "line search": hvpopt.LineSearchNewton,
    "quasi-Newton": hvpopt.QuasiNewton,
    "shifted, lanczos": hvpopt.ShiftedNewton,
    "shifted, cg": lambda: hvpopt.ShiftedNewton(solver="cg"),
    "shifted, cholesky": lambda: hvpopt.ShiftedNewton(solver="cholesky"),
}


def valley(unit, size, steepness):
    """A valley with its minimum at ``unit`` and a loss of about ``size``."""
    curvatures = torch.tensor([steepness] + [1.0] * 20, dtype=F64)

    def loss(x):
        return (size * curvatures * (x / unit - 1) ** 2).sum()

    return loss, torch.full((21,), 3 * unit, dtype=F64)


@pytest.mark.parametrize(("unit", "size"), [(1e-165, 1e-60), (1e160, 1e60), (1.0, 1.0)])
@pytest.mark.parametrize("name", [name for name in METHODS if "quasi" not in name])
def test_all_unknowns_of_a_tiny_or_huge_model_are_found(name, unit, size):
    loss, start = valley(unit, size, 1e8)
    result = hvpopt.minimize(loss, start, method=METHODS[name]())
    assert result.success
    assert float((result.x / unit - 1).abs().max()) < 1e-4


@pytest.mark.parametrize(("unit", "size"), [(1e-165, 1.0), (1e170, 1.0), (1e160, 1e-5)])
@pytest.mark.parametrize("name", [*METHODS, "gradients alone"])
def test_a_model_whose_curvature_is_no_number_is_refused_and_scale_serves(
    name, unit, size
):
    make = METHODS.get(name, lambda: hvpopt.QuasiNewton(initial=hvpopt.GradientScale()))
    loss, start = valley(unit, size, 1e2)
    with pytest.raises(ValueError, match=r"float64; pass scale="):
        hvpopt.minimize(loss, start, method=make())
    result = hvpopt.minimize(loss, start, method=make(), scale=unit)
    assert result.success
    assert float((result.x / unit - 1).abs().max()) < 1e-3


@pytest.mark.parametrize("unit", [1e-165, 1e160])
def test_a_saddle_of_a_tiny_or_huge_model_is_left(unit):
    size = 1e-60 if unit < 1 else 1e60

    def loss(x):
        x = x / unit
        return size * (x[0] ** 2 - x[1] ** 2 + x[1] ** 4)

    start = torch.tensor([unit, 0.0], dtype=F64)
    result = hvpopt.minimize(loss, start)
    assert result.success
    assert result.fun == pytest.approx(-0.25 * size, rel=1e-6)


@pytest.mark.parametrize("unit", [1e-200, 1.0, 1e200])
def test_norms_of_parameters_of_any_size(unit):
    model = {"a": torch.full((4,), 3 * unit, dtype=F64), "b": torch.zeros(2, dtype=F64)}
    space = hvpopt.ModelSpace(model)
    norms = space.norms(space.to_vector(model))
    assert float(norms[0] / unit) == pytest.approx(6.0)
    assert float(norms[1]) == 0.0


@pytest.mark.parametrize("start", [0.0, 3.0])
@pytest.mark.parametrize("size", [1e-300, 1e-170, 1.0, 1e200, 1e300])
def test_gradients_alone_minimise_a_loss_of_any_size(size, start):
    result = hvpopt.minimize(
        lambda x: size * ((x - 1) ** 2).sum(),
        torch.full((4,), start, dtype=F64),
        method=hvpopt.QuasiNewton(initial=hvpopt.GradientScale()),
    )
    assert result.success
    assert float((result.x - 1).abs().max()) < 1e-6
