"""Cells of which the loss says nothing stay where they are, in every method."""

import deepwave
import pytest
import torch

import hvpopt
from hvpopt.fwi import Survey, WaveformMisfit

F64, F32 = torch.float64, torch.float32
METHODS = {
    "trust region": hvpopt.TrustRegionNewton,
    "Gauss-Newton trust region": lambda: hvpopt.TrustRegionNewton(hessian="gauss-newton"),
    "line search": hvpopt.LineSearchNewton,
    "quasi-Newton": hvpopt.QuasiNewton,
    "line search, pairs": lambda: hvpopt.LineSearchNewton(memory=3),
    "shifted, lanczos": hvpopt.ShiftedNewton,
    "shifted, cg": lambda: hvpopt.ShiftedNewton(solver="cg"),
    "shifted, cholesky": lambda: hvpopt.ShiftedNewton(solver="cholesky"),
}
PLAIN = {name: make for name, make in METHODS.items() if "Gauss" not in name}
#: The random part of a Krylov space's start may move what no product restrains.
PROBE = 1e-3


def least_squares(generator, dtype, n_seen=8, n_cells=20):
    """A misfit of the first cells; all others have a gradient of zero."""
    matrix = torch.randn(30, n_seen, generator=generator, dtype=F64).to(dtype)
    centre = matrix.sum(1)

    def loss(x):
        seen = (x[:n_seen] - 1500) / 1000
        return (matrix @ seen - centre).square().sum() + 0 * x.sum()

    return loss, torch.full((n_cells,), 1500.0, dtype=dtype), n_seen


@pytest.mark.parametrize("certify", [False, True])
@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("name", PLAIN)
def test_unseen_cells_of_a_plain_loss_keep_every_bit(
    name, dtype, bounded, certify, generator
):
    loss, start, n_seen = least_squares(generator, dtype)
    bounds = {"lower": 0.0, "upper": 5000.0} if bounded else {}
    result = hvpopt.minimize(
        loss, start, method=PLAIN[name](), gtol=1e-4, certify=certify, **bounds
    )
    assert torch.equal(result.x[n_seen:], start[n_seen:])
    assert result.fun < 1e-3 * float(loss(start))


@pytest.mark.parametrize("name", PLAIN)
def test_unseen_cells_keep_every_bit_when_a_saddle_is_left(name):
    def loss(x):
        return x[0] ** 2 - x[1] ** 2 + x[1] ** 4 + 0 * x.sum()

    start = torch.tensor([0.0, 0.0, 3.0, -2.0, 5.0], dtype=F64)
    result = hvpopt.minimize(loss, start, method=PLAIN[name]())
    assert result.fun == pytest.approx(-0.25, abs=1e-6)
    assert torch.equal(result.x[2:], start[2:])


@pytest.mark.parametrize("name", PLAIN)
def test_unseen_cells_keep_every_bit_at_a_degenerate_saddle(name):
    def monkey(x):
        return x[0] ** 3 - 3 * x[0] * x[1] ** 2 + (x[:2] ** 2).sum() ** 2 + 0 * x.sum()

    start = torch.tensor([0.0, 0.0, 3.0, -2.0], dtype=F64)
    result = hvpopt.minimize(monkey, start, method=PLAIN[name](), certify=True)
    assert result.fun == pytest.approx(-27 / 256)
    assert torch.equal(result.x[2:], start[2:])


@pytest.mark.parametrize("name", PLAIN)
def test_a_null_space_that_mixes_cells_is_not_walked(name, generator):
    matrix = torch.randn(8, 20, generator=generator, dtype=F64)
    target = matrix @ torch.randn(20, generator=generator, dtype=F64)
    start = torch.randn(20, generator=generator, dtype=F64)
    result = hvpopt.minimize(
        lambda x: (matrix @ x - target).square().sum(),
        start,
        method=PLAIN[name](),
        certify=True,
    )
    moved = result.x - start
    row_space = torch.linalg.svd(matrix, full_matrices=False)[2]
    along_null = moved - row_space.mT @ (row_space @ moved)
    # a quasi-Newton method starts from a diagonal, which is no multiple of one
    if not name.startswith("quasi-Newton"):
        assert float(along_null.norm()) <= PROBE * float(moved.norm())
    assert result.fun < 1e-8 * float((matrix @ start - target).square().sum())


def layered(dtype):
    """Six layers, the last of which no wave can reach in the time recorded."""
    rows, columns, nt, frequency = 60, 14, 20, 50.0
    sources = torch.tensor([[[1, 3]], [[1, 10]]])
    receivers = torch.tensor([[[1, i] for i in range(1, 13, 2)]] * 2)
    wavelet = deepwave.wavelets.ricker(frequency, nt, 0.0008, 0.5 / frequency)
    survey = Survey(
        "scalar",
        grid_spacing=5.0,
        dt=0.0008,
        sources={"u": (wavelet.to(dtype).repeat(2, 1, 1), sources)},
        receivers={"u": receivers},
        max_vel=2500.0,
        pml_freq=frequency,
        pml_width=4,
    )

    def velocity(layers):
        return layers.repeat_interleave(rows // 6)[:, None] * torch.ones(
            1, columns, dtype=layers.dtype
        )

    true = torch.tensor([1600, 1700, 1800, 1750, 1900, 1950], dtype=dtype)
    observed = survey.simulate(velocity(true))
    return WaveformMisfit(survey, observed, parameterisation=velocity)


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("name", METHODS)
def test_layers_that_no_wave_reaches_keep_every_bit(name, dtype, bounded):
    misfit = layered(dtype)
    start = torch.full((6,), 1750.0, dtype=dtype)
    gradient = misfit.value_and_gradient(start)[1]
    assert float(gradient[0]) != 0.0
    assert float(gradient[5]) == 0.0
    bounds = {"lower": 1400.0, "upper": 2400.0} if bounded else {}
    result = hvpopt.minimize(
        misfit, start, method=METHODS[name](), max_iter=2, certify=True, **bounds
    )
    assert result.fun < result.history[0].value
    assert torch.equal(result.x[5], start[5])
