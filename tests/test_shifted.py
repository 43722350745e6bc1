"""ShiftedNewton's directions against the dense shifted Newton step."""

import math
from dataclasses import replace

import pytest
import torch
from test_lanczos import symmetric

import hvpopt
from hvpopt.methods import shifted
from hvpopt.methods.forcing import ForcingState
from hvpopt.methods.method import InnerStatus
from hvpopt.methods.points import Budget, Point, Problem

SOLVERS = ["lanczos", "cg", "cholesky"]


def point_at(matrix, gradient, active=None):
    return Point(
        vector=torch.zeros_like(gradient),
        value=0.0,
        gradient=gradient,
        hessian=hvpopt.MatrixOperator(matrix),
        active=torch.zeros_like(gradient, dtype=torch.bool) if active is None else active,
    )


def dense_step(matrix, gradient, factor=1.5):
    smallest = float(torch.linalg.eigvalsh(matrix)[0])
    shift = max(-factor * smallest, 0.0)
    eye = torch.eye(len(gradient), dtype=matrix.dtype)
    return torch.linalg.solve(matrix + shift * eye, -gradient), smallest, shift


@pytest.fixture(params=["indefinite", "definite"])
def quadratic(request, generator):
    n = int(torch.randint(40, 100, (1,), generator=generator))
    u = torch.rand(n, generator=generator, dtype=torch.float64)
    spectrum = 4 * u - 1 if request.param == "indefinite" else 0.2 + u
    gradient = torch.randn(n, generator=generator, dtype=torch.float64)
    return symmetric(n, generator, spectrum), gradient


@pytest.mark.parametrize("solver", SOLVERS)
def test_direction_is_the_dense_shifted_newton_step(quadratic, solver):
    matrix, gradient = quadratic
    method = hvpopt.ShiftedNewton(solver=solver, tol=1e-9, eigenvalue_tol=1e-6)
    direction = method.direction(point_at(matrix, gradient), Budget())
    expected, smallest, shift = dense_step(matrix, gradient)
    assert direction.status is InnerStatus.CONVERGED
    # of a positive λ_min the Lanczos solver certifies the sign alone
    rough = solver == "lanczos" and smallest > 0
    assert direction.smallest_eigenvalue == pytest.approx(
        smallest, rel=0.5 if rough else 1e-6
    )
    assert direction.shift == pytest.approx(shift, rel=1e-6)
    assert float((direction.vector - expected).norm() / expected.norm()) < 1e-5
    assert direction.lower_bound <= smallest + 1e-12


@pytest.mark.parametrize("solver", SOLVERS)
def test_stated_tolerances_are_met(quadratic, solver):
    matrix, gradient = quadratic
    method = hvpopt.ShiftedNewton(solver=solver, tol=1e-3)
    direction = method.direction(point_at(matrix, gradient), Budget())
    h, tau = direction.vector, direction.shift
    true = float((matrix @ h + tau * h + gradient).norm() / gradient.norm())
    assert true <= 1e-3
    assert direction.residual == pytest.approx(true, rel=1e-6, abs=1e-12)
    assert float(torch.linalg.eigvalsh(matrix)[0]) + tau > 0.0


def test_lanczos_solver_spends_no_product_on_the_shift(quadratic):
    matrix, gradient = quadratic
    point = point_at(matrix, gradient)
    direction = hvpopt.ShiftedNewton(solver="lanczos").direction(point, Budget())
    assert point.hessian.counts.products == direction.inner_iterations


@pytest.mark.parametrize("solver", SOLVERS)
def test_hard_case_is_seen_and_shifted(solver):
    """The gradient has no component along the one direction of negative curvature."""
    spectrum = torch.linspace(1.0, 10.0, 60, dtype=torch.float64)
    spectrum[0] = -3.0
    gradient = torch.ones(60, dtype=torch.float64)
    gradient[0] = 0.0
    point = point_at(torch.diag(spectrum), gradient)
    direction = hvpopt.ShiftedNewton(solver=solver).direction(point, Budget())
    assert direction.shift == pytest.approx(4.5, rel=1e-2)


def test_active_cells_leave_the_solve(quadratic, generator):
    matrix, gradient = quadratic
    active = torch.rand(len(gradient), generator=generator) < 0.3
    method = hvpopt.ShiftedNewton(tol=1e-9, eigenvalue_tol=1e-6)
    direction = method.direction(point_at(matrix, gradient, active), Budget())
    free = ~active
    expected, _, _ = dense_step(matrix[free][:, free], gradient[free])
    assert not direction.vector[active].any()
    error = (direction.vector[free] - expected).norm() / expected.norm()
    assert float(error) < 1e-5


def test_preconditioner_saves_products_and_changes_no_step(generator):
    n = 120
    diagonal = torch.logspace(0, 5, n, dtype=torch.float64)
    matrix = torch.diag(diagonal) + 0.1 * symmetric(n, generator)
    matrix[0, 0] = -2.0
    gradient = torch.randn(n, generator=generator, dtype=torch.float64)
    active = torch.rand(n, generator=generator) < 0.2
    point = point_at(matrix, gradient, active)
    options = {"solver": "cg", "tol": 1e-8, "max_products": 3000}
    plain, helped = (
        hvpopt.ShiftedNewton(preconditioner=p, **options).direction(point, Budget())
        for p in (None, hvpopt.DiagonalPreconditioner(diagonal, damping=1e-9))
    )
    assert helped.status is plain.status is InnerStatus.CONVERGED
    assert helped.inner_iterations < plain.inner_iterations / 2
    error = (helped.vector - plain.vector).norm() / plain.vector.norm()
    assert float(error) < 1e-4
    with pytest.raises(ValueError, match="solver='cg'"):
        hvpopt.ShiftedNewton(preconditioner=hvpopt.DiagonalPreconditioner(diagonal))


@pytest.mark.parametrize("floor", [-1.0, 1.0, float("nan")])
def test_floor_out_of_range_is_refused(floor):
    with pytest.raises(ValueError, match="eigenvalue_floor is"):
        hvpopt.ShiftedNewton(eigenvalue_floor=floor)


def test_factor_sets_the_shift(generator):
    matrix = symmetric(50, generator, torch.linspace(-1, 3, 50).double())
    gradient = torch.randn(50, generator=generator, dtype=torch.float64)
    direction = hvpopt.ShiftedNewton(factor=2.5, eigenvalue_tol=1e-4).direction(
        point_at(matrix, gradient), Budget()
    )
    assert direction.shift == pytest.approx(2.5, rel=1e-4)


@pytest.mark.parametrize("solver", ["lanczos", "cg"])
def test_too_few_products_are_confessed(generator, solver):
    matrix = symmetric(100, generator, torch.linspace(-1, 3, 100).double())
    gradient = torch.randn(100, generator=generator, dtype=torch.float64)
    direction = hvpopt.ShiftedNewton(solver=solver, max_products=4).direction(
        point_at(matrix, gradient), Budget()
    )
    assert direction.status is not InnerStatus.CONVERGED
    assert float(direction.vector @ gradient) < 0.0, "still downhill"


def test_linear_solve_can_miss_where_the_eigenvalue_does_not():
    spectrum = torch.linspace(0.0, 1.0, 400, dtype=torch.float64) ** 2 + 1e-3
    gradient = torch.ones(400, dtype=torch.float64)
    method = hvpopt.ShiftedNewton(eigenvalue_floor=0.5, tol=1e-12, max_products=30)
    direction = method.direction(point_at(torch.diag(spectrum), gradient), Budget())
    assert direction.status is InnerStatus.RESIDUAL
    assert direction.residual > 1e-12


def test_singular_hessian_still_gives_a_finite_step():
    gradient = torch.ones(6, dtype=torch.float64)
    for solver in SOLVERS:
        zero = torch.zeros(6, 6, dtype=torch.float64)
        direction = hvpopt.ShiftedNewton(solver=solver).direction(
            point_at(zero, gradient), Budget()
        )
        assert bool(torch.isfinite(direction.vector).all()), solver


def test_deadline_ends_the_inner_loop_after_one_product(generator):
    matrix = symmetric(50, generator)
    gradient = torch.randn(50, generator=generator, dtype=torch.float64)
    direction = hvpopt.ShiftedNewton().direction(
        point_at(matrix, gradient), Budget(math.inf, deadline=0.0)
    )
    assert direction.inner_iterations == 1
    assert direction.status is InnerStatus.RESIDUAL


def test_each_search_for_the_lowest_eigenvector_begins_with_the_last_one(
    generator, monkeypatch
):
    starts, found = [], []
    estimate = shifted.smallest_eigenvalue

    def watched(*args, start=None, **options):
        starts.append(start)
        found.append(estimate(*args, start=start, **options))
        return found[-1]

    monkeypatch.setattr(shifted, "smallest_eigenvalue", watched)
    hvpopt.minimize(
        lambda x: (x**4).sum() - 2 * (x**2).sum() + 0.1 * x[0] * x[1],
        0.2 * torch.rand(12, generator=generator, dtype=torch.float64),
        method=hvpopt.ShiftedNewton(solver="cg"),
        max_iter=2,
        gtol=0,
    )
    assert starts[0] is None
    assert found[0].value < 0
    assert torch.equal(starts[1], found[0].vector)


def test_direction_of_negative_curvature_is_reported_and_seeds_the_next(generator):
    """The lowest eigenvector changes little from step to step, and is found sooner."""
    q = torch.linalg.qr(torch.randn(60, 60, generator=generator, dtype=torch.float64))[0]
    theta = torch.linspace(1.0, 10.0, 60, dtype=torch.float64)
    theta[0] = -0.05
    H = (q * theta) @ q.mT

    def loss(x):
        return 0.5 * x @ H @ x + 1e-3 * (x**4).sum()

    start = torch.randn(60, generator=generator, dtype=torch.float64)
    spent = {}
    for solver in ("cg", "lanczos"):
        result = hvpopt.minimize(
            loss, start, method=hvpopt.ShiftedNewton(solver=solver), max_iter=1, gtol=0
        )
        found = result.negative_curvature
        dense = torch.autograd.functional.hessian(loss, start)
        lowest = torch.linalg.eigh(dense)[1][:, 0]
        assert abs(float(found @ lowest)) == pytest.approx(1.0, abs=1e-2)
    operator = hvpopt.MatrixOperator(dense)
    for name, first in (("random", None), ("seeded", found)):
        estimate = hvpopt.smallest_eigenvalue(operator, tol=1e-2, start=first)
        spent[name] = estimate.n_products
    assert spent["seeded"] <= spent["random"]


class _Lopsided(torch.autograd.Function):
    """Half a square norm, whose gradient and Hessian have a skew part."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 0.5 * (x @ x)

    @staticmethod
    def backward(ctx, along):
        (x,) = ctx.saved_tensors
        turned = torch.cat([x[5:], -x[:5]])
        return along * (x + 0.3 * turned)


def test_asymmetric_products_are_told_in_words_and_end_no_run():
    start = torch.linspace(1.0, 2.0, 10, dtype=torch.float64)
    result = hvpopt.minimize(
        _Lopsided.apply, start, method=hvpopt.ShiftedNewton(solver="cg"), max_iter=3
    )
    assert result.status is not hvpopt.Status.FAILED
    assert result.fun < 0.5 * float(_Lopsided.apply(start))
    assert result.history[1].inner_status is InnerStatus.ASYMMETRIC
    assert "not those of a symmetric matrix" in result.message


def test_asymmetric_products_have_no_smallest_eigenvalue():
    start = torch.linspace(1.0, 2.0, 10, dtype=torch.float64)
    with (
        hvpopt.HessianOperator(_Lopsided.apply, start) as operator,
        pytest.raises(ValueError, match="the operator is not symmetric"),
    ):
        hvpopt.smallest_eigenvalue(operator)


def test_next_stage_looks_for_negative_curvature_where_it_was():
    lowest = torch.ones(3, dtype=torch.float64)
    method = hvpopt.ShiftedNewton(solver="cg", tol=hvpopt.SquareRoot())
    start = method.start(None)
    state = replace(start, forcing=ForcingState(1e-5, 2.0), lowest=lowest)
    assert method.next_stage(None, state).lowest is lowest
    assert method.next_stage(None, state).forcing == start.forcing


@pytest.mark.parametrize("solver", ["lanczos", "cg"])
def test_a_forcing_term_follows_the_run(solver, generator):
    """Each solve is as accurate as the term asks, by the gradient at its start."""
    terms = []

    class Watched(hvpopt.SquareRoot):
        def update(self, state, before, after):
            terms.append(super().update(state, before, after))
            return terms[-1]

    start = torch.randn(12, generator=generator, dtype=torch.float64)
    result = hvpopt.minimize(
        lambda x: torch.cosh(x).sum() + 0.5 * (x[1:] * x[:-1]).sum() + (x**2).sum(),
        start,
        method=hvpopt.ShiftedNewton(solver=solver, tol=Watched()),
        gtol=1e-9,
    )
    assert result.success
    norms = [record.gradient_norm for record in result.history]
    fallen = [min(max((norm / norms[0]) ** 0.5, 1e-8), 0.5) for norm in norms[1:]]
    assert [term.tol for term in terms] == pytest.approx(fallen)
    for record, tol in zip(result.history[1:], [0.5, *fallen[:-1]], strict=True):
        assert record.residual <= tol * (1 + 1e-9)


class _SineFit(hvpopt.TorchObjective):
    """½ ‖sin(A x) − d‖², whose Gauss-Newton matrix is written out."""

    has_gauss_newton = True

    def __init__(self, matrix, data):
        super().__init__(lambda x: 0.5 * (torch.sin(matrix @ x) - data).square().sum())
        self.matrix = matrix

    def hessian(self, model, kind="exact", *, space=None):
        if kind == "exact":
            return super().hessian(model, kind, space=space)
        jacobian = torch.cos(self.matrix @ model)[:, None] * self.matrix
        return hvpopt.MatrixOperator(jacobian.mT @ jacobian)

    def linearise(self, model, kind="exact", *, space=None):
        return hvpopt.Objective.linearise(self, model, kind, space=space)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_gauss_newton_matrix_needs_no_shift(solver, generator):
    matrix = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    start, data = 0.1 * matrix[0], torch.randn(40, generator=generator).double()
    objective = _SineFit(matrix, data)
    method = hvpopt.ShiftedNewton(solver=solver, hessian="gauss-newton", tol=1e-10)
    problem = Problem(objective, hvpopt.ModelSpace(start))
    point = problem.linearise(start, method.kind)
    direction = method.direction(point, Budget())
    jacobian = torch.cos(matrix @ start)[:, None] * matrix
    normal = jacobian.mT @ jacobian
    expected = torch.linalg.solve(
        normal, -jacobian.mT @ (torch.sin(matrix @ start) - data)
    )
    error = float((direction.vector - expected).norm() / expected.norm())
    assert direction.shift == 0.0
    assert error < 1e-9 * float(torch.linalg.cond(normal))
