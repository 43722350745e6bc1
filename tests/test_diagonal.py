"""Diagonals by probing, against the dense diagonal; and their smoothing."""

import pytest
import torch
from on_device import DEVICE
from tolerances import PRODUCT, ROUNDING

from hvpopt import MatrixOperator, ModelSpace
from hvpopt.krylov.diagonal import estimate_diagonal, smooth_diagonal
from hvpopt.operators.symmetric import FunctionOperator, ShiftedOperator

F64 = torch.float64


def random_symmetric(n, generator):
    a = torch.randn(n, n, generator=generator, dtype=F64)
    return a + a.T


def in_space(diagonal, space):
    """Return a diagonal operator that knows its model space."""
    operator = FunctionOperator(lambda v: diagonal * v, space.size, device=DEVICE)
    operator.space = space
    return operator


def test_one_probe_is_exact_for_a_diagonal_operator(generator):
    diagonal = torch.randn(30, generator=generator, dtype=F64)
    found = estimate_diagonal(MatrixOperator(torch.diag(diagonal)), n_probes=1)
    torch.testing.assert_close(found, diagonal, rtol=4 * ROUNDING, atol=0)


@pytest.mark.parametrize("n_probes", [1, 3, 7])
def test_each_probe_counts_one_product(n_probes, generator):
    operator = MatrixOperator(random_symmetric(6, generator))
    estimate_diagonal(operator, n_probes=n_probes)
    assert operator.counts.products == n_probes


def test_error_has_the_variance_of_the_off_diagonal_row(generator):
    # Σ_{j≠i} H_ij² / s for ±1 probes; the mean over many runs of few probes is unbiased
    n, s, runs = 8, 2, 3000
    matrix = random_symmetric(n, generator)
    operator = MatrixOperator(matrix)
    first = int(torch.randint(0, 10**6, (1,), generator=generator)) * runs
    errors = torch.stack(
        [
            estimate_diagonal(operator, n_probes=s, seed=first + i) - matrix.diagonal()
            for i in range(runs)
        ]
    )
    variance = (matrix - torch.diag(matrix.diagonal())).square().sum(1) / s
    # six standard errors of a mean: false alarms once in some ten million runs
    assert bool((errors.mean(0).abs() < 6 * (variance / runs).sqrt()).all())
    torch.testing.assert_close(errors.var(0), variance, rtol=0.3, atol=0)


def test_many_probes_converge_to_the_dense_diagonal(generator):
    matrix = random_symmetric(10, generator)
    found = estimate_diagonal(MatrixOperator(matrix), n_probes=8000)
    off = (matrix - torch.diag(matrix.diagonal())).square().sum(1).sqrt()
    error = (found - matrix.diagonal()).abs() / off
    assert float(error.max()) < 0.15


def test_same_seed_same_estimate_and_another_seed_another(generator):
    operator = MatrixOperator(random_symmetric(10, generator))
    first, again, other = (estimate_diagonal(operator, seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_global_random_state_is_left_alone(generator):
    operator = MatrixOperator(random_symmetric(4, generator))
    before = torch.get_rng_state()
    estimate_diagonal(operator)
    assert torch.equal(torch.get_rng_state(), before)


def test_shift_moves_every_entry_by_itself(generator):
    operator = MatrixOperator(random_symmetric(10, generator))
    plain = estimate_diagonal(operator)
    shifted = estimate_diagonal(ShiftedOperator(operator, 2.5))
    torch.testing.assert_close(shifted, plain + 2.5, rtol=PRODUCT, atol=PRODUCT)


def test_smoothing_keeps_a_constant_at_edges_and_beside_frozen_cells():
    mask = torch.ones(7, 9, dtype=torch.bool)
    mask[2:4, 3:8] = False
    space = ModelSpace(torch.ones(7, 9, dtype=F64), mask=mask)
    constant = torch.full((space.size,), 3.0, dtype=F64)
    smooth = smooth_diagonal(constant, space, 2.0)
    torch.testing.assert_close(smooth, constant, rtol=PRODUCT, atol=0)


def test_smoothing_is_a_normalised_gaussian_of_the_free_cells(generator):
    mask = torch.rand(11, generator=generator) < 0.7
    mask[0] = True
    space = ModelSpace(torch.ones(11, dtype=F64), mask=mask)
    values = torch.rand(space.size, generator=generator, dtype=F64)
    at = mask.nonzero().reshape(-1).double()
    weights = torch.exp(-0.5 * ((at[:, None] - at) / 3.0) ** 2)
    expected = weights @ values / weights.sum(1)
    smooth = smooth_diagonal(values, space, 3.0)
    torch.testing.assert_close(smooth, expected, rtol=PRODUCT, atol=0)


def test_smoothing_happens_in_model_units_whatever_the_scale(generator):
    model = torch.ones(6, 5, dtype=F64)
    scale = 0.5 + torch.rand(6, 5, generator=generator, dtype=F64)
    plain, scaled = ModelSpace(model), ModelSpace(model, scale=scale)
    values = torch.rand(30, generator=generator, dtype=F64)
    square = scale.reshape(-1).square()
    expected = smooth_diagonal(values, plain, 1.5) * square
    found = smooth_diagonal(values * square, scaled, 1.5)
    torch.testing.assert_close(found, expected, rtol=PRODUCT, atol=0)


def test_parameters_of_any_shape_and_dtype_do_not_mix():
    model = {
        "vp": torch.ones(4, 5, dtype=torch.float32),
        "rho": torch.ones(8, dtype=F64),
    }
    # a scale whose square a float32 model could not hold
    space = ModelSpace(model, scale={"vp": 1e-25, "rho": 1e20})
    values = torch.cat([torch.full((20,), 2.0), torch.full((8,), 7.0)]).double()
    smooth = smooth_diagonal(values, space, 4.0)
    torch.testing.assert_close(smooth, values, rtol=PRODUCT, atol=0)


def test_zero_width_smooths_nothing(generator):
    space = ModelSpace(torch.ones(3, 4, dtype=F64))
    values = torch.rand(12, generator=generator, dtype=F64)
    assert torch.equal(smooth_diagonal(values, space, 0.0), values)


def test_smoothing_lowers_the_error_of_a_smooth_diagonal(generator):
    # neighbours coupled with random signs over a diagonal that varies slowly
    space = ModelSpace(torch.ones(20, 20, dtype=F64))
    matrix = 0.3 * random_symmetric(400, generator) / 20
    true = torch.linspace(1, 2, 400, dtype=F64)
    matrix += torch.diag(true - matrix.diagonal())
    operator = MatrixOperator(matrix)
    operator.space = space
    rough = estimate_diagonal(operator, n_probes=2)
    smooth = estimate_diagonal(operator, n_probes=2, smooth=2.0)
    assert float((smooth - true).norm()) < 0.6 * float((rough - true).norm())


def test_estimate_takes_the_smoothing_of_its_space(generator):
    space = ModelSpace(torch.ones(4, 5, dtype=F64))
    diagonal = torch.rand(20, generator=generator, dtype=F64)
    found = estimate_diagonal(in_space(diagonal, space), n_probes=1, smooth=1.0)
    expected = smooth_diagonal(diagonal, space, 1.0)
    torch.testing.assert_close(found, expected, rtol=PRODUCT, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_probes": 0}, "n_probes is 0"),
        ({"smooth": 1.0}, "no ModelSpace"),
    ],
)
def test_bad_options_are_refused_before_any_product(options, message):
    operator = MatrixOperator(torch.eye(3, dtype=F64))
    with pytest.raises(ValueError, match=message):
        estimate_diagonal(operator, **options)
    assert operator.counts.products == 0


@pytest.mark.parametrize("width", [-1.0, float("nan"), float("inf")])
def test_bad_width_is_refused(width):
    space = ModelSpace(torch.ones(3, dtype=F64))
    with pytest.raises(ValueError, match="width is"):
        smooth_diagonal(torch.ones(3, dtype=F64), space, width)
