"""Conjugate gradients against dense solves."""

import pytest
import torch
from on_device import DEVICE
from test_lanczos import symmetric

import hvpopt
from hvpopt import CGStatus


@pytest.fixture
def definite(generator):
    n = 60
    spectrum = 0.1 + torch.rand(n, generator=generator, dtype=torch.float64)
    matrix = symmetric(n, generator, spectrum)
    rhs = torch.randn(n, generator=generator, dtype=torch.float64)
    return matrix, rhs


@pytest.mark.parametrize("preconditioned", [False, True])
def test_matches_a_dense_solve(definite, preconditioned):
    matrix, rhs = definite
    diagonal = hvpopt.DiagonalPreconditioner(matrix.diagonal())
    result = hvpopt.cg(
        hvpopt.MatrixOperator(matrix),
        rhs,
        tol=1e-12,
        preconditioner=diagonal if preconditioned else None,
    )
    expected = torch.linalg.solve(matrix, rhs)
    assert result.status is CGStatus.CONVERGED
    assert float((result.x - expected).norm() / expected.norm()) < 1e-10


def test_reported_residual_is_the_true_one(definite):
    matrix, rhs = definite
    result = hvpopt.cg(hvpopt.MatrixOperator(matrix), rhs, tol=1e-3)
    true = float((rhs - matrix @ result.x).norm())
    assert result.residual_norm == pytest.approx(true, rel=1e-8)
    assert true <= 1e-3 * float(rhs.norm())


def test_good_preconditioner_saves_products(generator):
    diagonal = torch.logspace(0, 6, 200, dtype=torch.float64)
    matrix = torch.diag(diagonal)
    rhs = torch.randn(200, generator=generator, dtype=torch.float64)
    plain = hvpopt.cg(hvpopt.MatrixOperator(matrix), rhs, max_products=150)
    helped = hvpopt.cg(
        hvpopt.MatrixOperator(matrix),
        rhs,
        preconditioner=hvpopt.DiagonalPreconditioner(diagonal, damping=1e-12),
    )
    assert plain.status is CGStatus.MAX_PRODUCTS
    assert plain.n_products == 150
    assert helped.status is CGStatus.CONVERGED
    assert helped.n_products <= 3


def test_negative_curvature_keeps_its_direction(generator):
    spectrum = torch.linspace(-1, 5, 40, dtype=torch.float64)
    matrix = symmetric(40, generator, spectrum)
    rhs = torch.randn(40, generator=generator, dtype=torch.float64)
    result = hvpopt.cg(hvpopt.MatrixOperator(matrix), rhs, tol=1e-10)
    assert result.status is CGStatus.NEGATIVE_CURVATURE
    d = result.direction
    assert float(d @ matrix @ d) <= 0.0
    assert result.curvature == pytest.approx(float(d @ matrix @ d / (d @ d)), rel=1e-10)


def test_zero_right_hand_side_costs_nothing(definite):
    matrix, rhs = definite
    operator = hvpopt.MatrixOperator(matrix)
    result = hvpopt.cg(operator, torch.zeros_like(rhs))
    assert result.status is CGStatus.CONVERGED
    assert operator.counts.products == 0
    assert not result.x.any()


def test_counts_its_products(definite):
    matrix, rhs = definite
    operator = hvpopt.MatrixOperator(matrix)
    result = hvpopt.cg(operator, rhs, tol=1e-6)
    assert result.n_products == operator.counts.products


def test_deadline_in_the_past_is_its_own_status(definite):
    matrix, rhs = definite
    result = hvpopt.cg(hvpopt.MatrixOperator(matrix), rhs, deadline=0.0)
    assert result.status is CGStatus.DEADLINE


def test_every_status_has_a_sentence():
    assert all(len(status.message.split()) > 3 for status in CGStatus)


def test_tiny_float32_right_hand_sides_do_not_underflow():
    rhs = torch.full((4,), 1e-25)
    result = hvpopt.cg(hvpopt.MatrixOperator(2 * torch.eye(4)), rhs)
    assert result.status is CGStatus.CONVERGED
    assert torch.allclose(result.x, rhs / 2, rtol=1e-6, atol=0.0)


def noisy(matrix, noise, generator, declared=None):
    """An operator whose products are off by ``noise · ‖A‖ ‖w‖`` in random directions."""
    norm = float(torch.linalg.matrix_norm(matrix, 2))

    def product(w):
        error = torch.randn(len(w), generator=generator, dtype=w.dtype)
        return matrix @ w + noise * norm * w.norm() * error / error.norm()

    operator = hvpopt.FunctionOperator(product, len(matrix), device=DEVICE)
    if declared is not None:
        operator.noise = declared
    return operator


@pytest.mark.parametrize("noise", [1e-7, 1e-4])
@pytest.mark.parametrize("declared", [True, False])
def test_stops_at_the_rounding_of_the_products(generator, noise, declared):
    spectrum = torch.logspace(0, 2, 120, dtype=torch.float64)
    matrix = symmetric(120, generator, spectrum)
    rhs = torch.randn(120, generator=generator, dtype=torch.float64)
    operator = noisy(matrix, noise, generator, noise if declared else None)
    result = hvpopt.cg(operator, rhs, tol=1e-12, max_products=1000)
    assert result.status is CGStatus.FLOOR
    assert result.n_products < 200
    true = float((rhs - matrix @ result.x).norm())
    # what the recurrence says is still near the truth
    assert result.residual_norm / 3 < true < 10 * result.residual_norm


@pytest.mark.parametrize("noise", [1e-10, 1e-6, 1e-3])
def test_product_error_is_measured_for_nothing(generator, noise):
    spectrum = torch.linspace(1, 10, 150, dtype=torch.float64)
    matrix = symmetric(150, generator, spectrum)
    rhs = torch.randn(150, generator=generator, dtype=torch.float64)
    operator = noisy(matrix, noise, generator)
    result = hvpopt.cg(operator, rhs, tol=0.02)
    assert operator.counts.products == result.n_products
    assert noise / 5 < result.product_error < 10 * noise


def test_exact_products_show_no_error(definite):
    matrix, rhs = definite
    result = hvpopt.cg(hvpopt.MatrixOperator(matrix), rhs, tol=1e-8)
    assert result.product_error < 1e-14


def test_residual_vector_is_the_true_one(definite):
    matrix, rhs = definite
    result = hvpopt.cg(hvpopt.MatrixOperator(matrix), rhs, tol=1e-3)
    assert float((rhs - matrix @ result.x - result.residual).norm()) < 1e-10
    assert result.residual_norm == pytest.approx(float(result.residual.norm()), rel=1e-10)


def test_indefinite_preconditioner_is_refused(definite):
    class Wrong:
        def apply(self, vector):
            return -vector

    matrix, rhs = definite
    with pytest.raises(ValueError, match="not positive definite"):
        hvpopt.cg(hvpopt.MatrixOperator(matrix), rhs, preconditioner=Wrong())


# -- starts and model-shaped right-hand sides ------------------------------------------


def test_start_is_gone_on_from(definite, generator):
    matrix, rhs = definite
    operator = hvpopt.MatrixOperator(matrix)
    expected = torch.linalg.solve(matrix, rhs)
    near = expected + 1e-3 * torch.randn(60, generator=generator, dtype=torch.float64)
    kept = near.clone()
    result = hvpopt.cg(operator, rhs, start=near, tol=1e-10)
    assert result.status is CGStatus.CONVERGED
    assert float((result.x - expected).norm() / expected.norm()) < 1e-8
    assert result.n_products == operator.counts.products
    assert result.residual_norm == pytest.approx(
        float((rhs - matrix @ result.x).norm()), rel=1e-2, abs=1e-11
    )
    assert torch.equal(near, kept)
    # the tolerance is relative to b, not to what the start leaves
    loose = hvpopt.cg(operator, rhs, start=near, tol=0.5)
    assert loose.n_products == 1
    assert torch.equal(loose.x, near)


def test_start_at_the_solution_costs_its_product(definite):
    matrix, _ = definite
    x = torch.ones(60, dtype=torch.float64)
    result = hvpopt.cg(hvpopt.MatrixOperator(matrix), matrix @ x, start=x, tol=1e-12)
    assert result.status is CGStatus.CONVERGED
    assert result.n_products == 1
    assert torch.equal(result.x, x)


def test_tolerance_under_the_rounding_of_a_start_is_told(definite):
    """What the start's own product rounds, no further product mends."""
    matrix, rhs = definite
    large = 1e12 * torch.ones(60, dtype=torch.float64)
    result = hvpopt.cg(hvpopt.MatrixOperator(matrix), rhs, start=large, tol=1e-10)
    assert result.status is CGStatus.FLOOR


def quadratic(a, b):
    """A convex quadratic of two parameters that are coupled."""
    return (2 * a**2).sum() + (a.sum() - 3 * b.sum()) ** 2 + ((b - 1) ** 2).sum()


def two_parameters():
    return {
        "a": torch.ones(3, 2, dtype=torch.float64),
        "b": torch.zeros(4, dtype=torch.float64),
    }


@pytest.mark.parametrize("with_start", [False, True])
def test_model_shaped_sides_give_model_shaped_solutions(with_start, generator):
    model = two_parameters()
    mask = {"a": torch.rand(3, 2, generator=generator) < 0.6, "b": True}
    mask["a"][0, 0] = True
    space = hvpopt.ModelSpace(model, scale={"a": 3.0, "b": 0.5}, mask=mask)
    H = hvpopt.HessianOperator(quadratic, model, space=space)
    rhs = {
        n: torch.randn(t.shape, generator=generator).double() for n, t in model.items()
    }
    start = {n: torch.ones_like(t) for n, t in model.items()} if with_start else None
    found = hvpopt.cg(H, rhs, start=start, tol=1e-12)
    assert list(found.x) == ["a", "b"]
    # the Newton step, whatever the scale: H x = b in the free cells, and no other moves
    back = H @ found.x
    assert float((back["a"] - rhs["a"])[mask["a"]].norm()) < 1e-9
    assert float((back["b"] - rhs["b"]).norm()) < 1e-9
    assert not found.x["a"][~mask["a"]].any()
    assert found.residual["b"].shape == (4,)
    flat = hvpopt.cg(H, space.gradient_to_vector(rhs), tol=1e-12)
    assert flat.x.shape == (space.size,)
    step = space.step_to_model(flat.x)
    assert float((step["b"] - found.x["b"]).norm()) < 1e-9


def test_direction_of_negative_curvature_is_model_shaped():
    model = torch.ones(3, 2, dtype=torch.float64)
    H = hvpopt.HessianOperator(lambda v: -(v**2).sum(), model)
    found = hvpopt.cg(H, model)
    assert found.status is CGStatus.NEGATIVE_CURVATURE
    assert found.direction.shape == (3, 2)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"start": torch.ones(6).double()}, TypeError, "pass both alike"),
        (
            {"start": 0.0},
            TypeError,
            "the start is 0.0, and the right-hand side",
        ),
        (
            {"start": torch.full((3, 2), float("nan")).double()},
            ValueError,
            "the start has NaN or infinite entries",
        ),
        (
            {"rhs": torch.full((3, 2), float("inf")).double()},
            ValueError,
            "the right-hand side has NaN or infinite entries",
        ),
        ({"rhs": {"a": torch.ones(3, 2)}}, ValueError, "the gradient has parameters"),
        (
            {"rhs": torch.ones(6).double(), "start": torch.ones(3, 2).double()},
            ValueError,
            r"the start has shape \(3, 2\), expected \(6,\)",
        ),
    ],
)
def test_shapes_that_do_not_go_together(options, error, words):
    model = torch.ones(3, 2, dtype=torch.float64)
    H = hvpopt.HessianOperator(lambda v: (v**2).sum(), model)
    with pytest.raises(error, match=words):
        hvpopt.cg(**{"operator": H, "rhs": model, **options})


@pytest.mark.parametrize(
    "method",
    [
        hvpopt.ShiftedNewton(solver="cg", tol=1e-12),
        hvpopt.LineSearchNewton(tol=hvpopt.Constant(1e-12)),
    ],
)
def test_methods_solve_for_flat_vectors_of_a_scaled_line(method, generator):
    """A scaled model of one axis has the shape of its flat vectors: no second scaling."""
    scale = 0.1 + 5 * torch.rand(6, generator=generator, dtype=torch.float64)
    wanted = torch.randn(6, generator=generator, dtype=torch.float64)
    start = torch.zeros(6, dtype=torch.float64)
    weights = torch.arange(1.0, 7.0, dtype=torch.float64)
    result = hvpopt.minimize(
        lambda v: (weights * (v - wanted).square()).sum(),
        start,
        scale=scale,
        method=method,
        max_iter=1,
    )
    # the first step of Newton's method is the minimum of a quadratic
    assert float((result.x - wanted).norm() / wanted.norm()) < 1e-8


def test_no_product_means_none():
    """A start's residual takes a product: without one the solve begins at zero."""
    matrix = hvpopt.MatrixOperator(torch.eye(3, dtype=torch.float64))
    rhs = torch.ones(3, dtype=torch.float64)
    found = hvpopt.cg(matrix, rhs, start=0.5 * rhs, max_products=0)
    assert found.n_products == matrix.counts.products == 0
    assert found.status is not CGStatus.CONVERGED
