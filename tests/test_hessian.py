"""HessianOperator against torch.autograd.functional.hessian; counts, memory, release."""

import weakref
from typing import ClassVar

import deepwave
import pytest
import torch
from scipy.sparse.linalg import eigsh
from tolerances import (
    FINITE_DIFFERENCE,
    FLOAT32,
    GRADIENT,
    MEMORY_GROWTH,
    PRODUCT,
    SLOPE,
    SOLVE,
    SYMMETRY,
)

import hvpopt
from hvpopt.analysis import check_hessian, check_symmetry

F64 = torch.float64
SHAPES = {
    "vector": (7,),
    "matrix": (3, 5),
    "row": (1, 6),
    "scalar": (),
    "tuple": ((3, 4), (5,), ()),
    "dict": {"vp": (3, 4), "rho": (3, 4), "q": (2,)},
}


def draw(generator, *shape):
    return torch.randn(shape, generator=generator, dtype=F64)


def join(model):
    tensors = list(hvpopt.model.tensors.named_tensors(model).values())
    return torch.cat([t.reshape(-1) for t in tensors])


class Problem:
    """A random nonlinear loss that couples every cell of a random model to the rest."""

    def __init__(self, kind, generator):
        shapes = SHAPES[kind]
        if isinstance(shapes, dict):
            self.model = {name: draw(generator, *s) for name, s in shapes.items()}
        elif shapes and isinstance(shapes[0], tuple):
            self.model = tuple(draw(generator, *s) for s in shapes)
        else:
            self.model = draw(generator, *shapes)
        self.point = join(self.model)
        self.size = self.point.numel()
        self.A, self.B = (draw(generator, 2 * self.size, self.size) for _ in range(2))

    def flat_loss(self, u):
        first, second = self.A @ u, self.B @ u
        return (torch.tanh(first) * second.square()).mean() + torch.sin(second).sum()

    def loss(self, *tensors, **named):
        return self.flat_loss(join(tensors or named))

    @property
    def dense(self):
        return torch.autograd.functional.hessian(self.flat_loss, self.point)

    def shaped(self, vector):
        return hvpopt.ModelSpace(self.model).step_to_model(vector)

    def operator(self, **options):
        return hvpopt.HessianOperator(self.loss, self.model, **options)


@pytest.fixture(params=SHAPES)
def problem(request, generator):
    return Problem(request.param, generator)


def relative(actual, expected):
    return float((actual - expected).norm() / expected.norm())


# -- products -----------------------------------------------------------------------


def test_flat_products_match_the_dense_hessian(problem, generator):
    vector = draw(generator, problem.size)
    product = problem.operator().matvec(vector)
    assert relative(product, problem.dense @ vector) < PRODUCT


def test_block_products_match_the_dense_hessian(problem, generator):
    block = draw(generator, problem.size, 3)
    product = problem.operator().matmat(block)
    assert product.shape == block.shape
    assert relative(product, problem.dense @ block) < PRODUCT


def test_model_shaped_products_match_the_dense_hessian(problem, generator):
    vector = draw(generator, problem.size)
    product = problem.operator() @ problem.shaped(vector)
    assert type(product) is type(problem.model)
    assert relative(join(product), problem.dense @ vector) < PRODUCT
    for got, cell in zip(
        hvpopt.model.tensors.named_tensors(product).values(),
        hvpopt.model.tensors.named_tensors(problem.model).values(),
        strict=True,
    ):
        assert got.shape == cell.shape


@pytest.mark.parametrize("kind", ["matrix", "tuple", "dict"])
def test_matmul_tells_flat_block_and_model_shaped_apart(kind, generator):
    problem = Problem(kind, generator)
    H, dense = problem.operator(), problem.dense
    vector, block = draw(generator, problem.size), draw(generator, problem.size, 2)
    assert relative(H @ vector, dense @ vector) < PRODUCT
    assert relative(H @ block, dense @ block) < PRODUCT
    assert relative(join(H @ problem.shaped(vector)), dense @ vector) < PRODUCT


def test_whole_matrix_matches_with_its_cross_parameter_blocks(generator):
    problem = Problem("dict", generator)
    dense = problem.dense
    assert float(dense[:12, 12:24].abs().max()) > 1e-3
    assert float(dense[12:24, 24:].abs().max()) > 1e-3
    assert relative(problem.operator().to_dense(), dense) < PRODUCT


def test_products_are_symmetric(problem):
    eye = torch.eye(problem.size, dtype=F64)
    matrix = problem.operator().matmat(eye)
    assert float((matrix - matrix.mT).abs().max()) <= SYMMETRY * float(matrix.abs().max())


def test_products_are_linear(generator):
    problem = Problem("tuple", generator)
    H = problem.operator()
    u, w = draw(generator, problem.size), draw(generator, problem.size)
    assert relative(H @ (2 * u - 3 * w), 2 * (H @ u) - 3 * (H @ w)) < PRODUCT


def test_same_graph_serves_the_same_product_again(problem, generator):
    H = problem.operator()
    vector = draw(generator, problem.size)
    first = H.matvec(vector)
    H.matvec(draw(generator, problem.size))
    assert torch.equal(H.matvec(vector), first)


def test_value_and_gradient_are_those_of_the_loss(problem):
    H = problem.operator()
    gradient = torch.autograd.functional.jacobian(problem.flat_loss, problem.point)
    assert H.value == float(problem.flat_loss(problem.point))
    assert relative(join(H.gradient), gradient) < GRADIENT


def test_float32_model_gives_float32_products_of_float64_vectors(generator):
    model = draw(generator, 3, 4).float()
    H = hvpopt.HessianOperator(lambda x: (x**4).sum(), model)
    step = draw(generator, 12)
    expected = 12 * model.double().reshape(-1) ** 2 * step
    assert (H @ step).dtype == F64
    assert (H @ step.reshape(3, 4).float()).dtype == torch.float32
    assert relative(H @ step, expected) < FLOAT32


def test_parameters_of_mixed_dtypes(generator):
    model = {"a": draw(generator, 4).float(), "b": draw(generator, 4)}
    H = hvpopt.HessianOperator(lambda a, b: (a.double() ** 2 * b**2).sum(), model)
    a, b = model["a"].double(), model["b"]
    product = H @ {"a": torch.ones(4), "b": torch.ones(4, dtype=F64)}
    assert product["a"].dtype == torch.float32
    assert relative(product["a"].double(), 2 * b**2 + 4 * a * b) < FLOAT32
    assert relative(product["b"], 2 * a**2 + 4 * a * b) < PRODUCT


def test_model_and_space_may_name_parameters_in_different_orders(generator):
    a, b = draw(generator, 3), draw(generator, 3)
    space = hvpopt.ModelSpace({"a": a, "b": b})
    H = hvpopt.HessianOperator(
        lambda a, b: (a**3).sum() + (a * b**2).sum(), {"b": b, "a": a}, space=space
    )
    step = draw(generator, 6)
    u, w = step[:3], step[3:]
    expected = torch.cat([6 * a * u + 2 * b * w, 2 * b * u + 2 * a * w])
    assert relative(H @ step, expected) < PRODUCT


def test_products_do_not_depend_on_an_outer_no_grad(generator):
    problem = Problem("matrix", generator)
    vector = draw(generator, problem.size)
    with torch.no_grad():
        product = problem.operator() @ vector
    assert relative(product, problem.dense @ vector) < PRODUCT


# -- nothing of the caller's --------------------------------------------------------


def test_operator_stays_where_it_was_linearised(generator):
    model, step = draw(generator, 3, 5), draw(generator, 3, 5)
    H = hvpopt.HessianOperator(lambda x: (x * x * x).sum(), model)
    expected, gradient = 6 * model * step, 3 * model**2
    model.fill_(100.0)
    assert relative(H @ step, expected) < PRODUCT
    assert relative(H.gradient, gradient) < GRADIENT


def test_model_gradient_and_step_are_left_alone(generator):
    problem = Problem("matrix", generator)
    problem.model.requires_grad_()
    before = problem.model.detach().clone()
    H = problem.operator()
    step = draw(generator, 3, 5)
    kept = step.clone()
    product = H @ step
    assert problem.model.grad is None
    assert torch.equal(problem.model.detach(), before)
    assert torch.equal(step, kept)
    assert not product.requires_grad


def test_results_share_no_memory(generator):
    problem = Problem("matrix", generator)
    H = problem.operator()
    step = draw(generator, 3, 5)
    tensors = [problem.model, step, H.gradient, H @ step, H @ step]
    assert len({t.untyped_storage().data_ptr() for t in tensors}) == len(tensors)


def test_gradients_of_two_parameters_share_no_memory(generator):
    model = (draw(generator, 4), draw(generator, 4))
    H = hvpopt.HessianOperator(lambda a, b: ((a + b) ** 3).sum(), model)
    first, second = H.gradient
    first.zero_()
    assert second.any()


# -- counts -------------------------------------------------------------------------


def test_graph_costs_one_gradient_and_a_column_one_product(problem, generator):
    H = problem.operator()
    assert H.counts == hvpopt.Counts(gradients=1)
    H.matvec(draw(generator, problem.size))
    H.matmat(draw(generator, problem.size, 3))
    H @ problem.shaped(draw(generator, problem.size))
    assert H.counts == hvpopt.Counts(gradients=1, products=5)


def test_loss_is_called_once_for_all_products(generator):
    calls = []
    H = hvpopt.HessianOperator(
        lambda x: (calls.append(1), (x**3).sum())[1], draw(generator, 4)
    )
    H @ draw(generator, 4, 6)
    assert len(calls) == 1


def test_given_counts_are_advanced(generator):
    counts = hvpopt.Counts()
    H = Problem("vector", generator).operator(counts=counts)
    H @ draw(generator, 7)
    assert counts == hvpopt.Counts(gradients=1, products=1)


# -- release ------------------------------------------------------------------------


def test_closed_operator_keeps_value_and_gradient_and_refuses_products(generator):
    problem = Problem("matrix", generator)
    H = problem.operator()
    value, gradient = H.value, H.gradient.clone()
    H.close()
    H.close()
    assert H.value == value
    assert torch.equal(H.gradient, gradient)
    with pytest.raises(RuntimeError, match="HessianOperator is closed"):
        H @ draw(generator, problem.size)


def test_with_block_closes_even_on_an_error(generator):
    operator = Problem("vector", generator).operator()
    with pytest.raises(ValueError, match="right-hand side has shape"), operator as H:
        H @ draw(generator, 8)
    with pytest.raises(RuntimeError, match="closed"):
        operator @ draw(generator, 7)


class Token:
    """Lives as long as the graph's node that holds it; can be referred to weakly."""


class Cube(torch.autograd.Function):
    tokens: ClassVar = []

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.token = Token()
        Cube.tokens.append(weakref.ref(ctx.token))
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * 3 * x.square()


@pytest.mark.parametrize("release", ["close", "with", "del"])
def test_leaf_and_graph_are_freed_on_release(release, generator):
    seen = []
    Cube.tokens.clear()

    def loss(x):
        seen.append(weakref.ref(x))
        return Cube.apply(x).square().sum()

    H = hvpopt.HessianOperator(loss, draw(generator, 5))
    H @ draw(generator, 5)
    seen += Cube.tokens
    assert [ref() is None for ref in seen] == [False, False]
    if release == "close":
        H.close()
    elif release == "with":
        with H:
            pass
    else:
        del H
    assert [ref() is None for ref in seen] == [True, True]


def resident():
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return 1024 * int(line.split()[1])


def test_memory_does_not_grow_over_200_products(generator):
    cells = 400_000
    assert 200 * cells * 8 >= 10 * MEMORY_GROWTH
    H = hvpopt.HessianOperator(lambda x: (x * x * x).sum(), draw(generator, cells))
    vector = draw(generator, cells)
    for _ in range(5):
        H.matvec(vector)
    before = resident()
    for _ in range(200):
        H.matvec(vector)
    assert resident() - before < MEMORY_GROWTH


# -- losses without second order ----------------------------------------------------


def test_linear_loss_warns_and_has_a_zero_hessian():
    with pytest.warns(
        UserWarning, match="gradient of parameter 'model' carries no graph"
    ):
        H = hvpopt.HessianOperator(lambda x: (3 * x).sum(), torch.ones(4, dtype=F64))
    assert not (H @ torch.ones(4, dtype=F64)).any()
    assert H.counts.products == 1


def test_warning_names_the_linear_parameter_alone(generator):
    model = {"a": draw(generator, 3), "b": draw(generator, 2)}
    with pytest.warns(UserWarning, match="parameter 'b' carries"):
        H = hvpopt.HessianOperator(lambda a, b: (a**4).sum() + 2 * b.sum(), model)
    product = H @ {"a": torch.ones(3, dtype=F64), "b": torch.ones(2, dtype=F64)}
    assert relative(product["a"], 12 * model["a"] ** 2) < PRODUCT
    assert not product["b"].any()


def test_bilinear_loss_has_curvature_and_no_warning(generator):
    model = (draw(generator, 3), draw(generator, 3))
    H = hvpopt.HessianOperator(lambda a, b: a @ b, model)
    first, second = H @ (torch.ones(3, dtype=F64), torch.zeros(3, dtype=F64))
    assert not first.any()
    assert second.tolist() == [1.0, 1.0, 1.0]


# -- the finite-difference oracle ---------------------------------------------------


def test_finite_differences_agree(problem, generator):
    oracle = hvpopt.FiniteDifferenceHessian(problem.loss, problem.model, size=0.1)
    block = draw(generator, problem.size, 3)
    assert relative(oracle.matmat(block), problem.dense @ block) < FINITE_DIFFERENCE


def test_finite_differences_cost_two_gradients_a_product(generator):
    problem = Problem("matrix", generator)
    oracle = hvpopt.FiniteDifferenceHessian(problem.loss, problem.model)
    oracle @ draw(generator, problem.size, 2)
    assert oracle.counts == hvpopt.Counts(gradients=4, products=2)


def test_finite_difference_product_does_not_depend_on_the_length_of_its_vector(generator):
    problem = Problem("vector", generator)
    oracle = hvpopt.FiniteDifferenceHessian(problem.loss, problem.model, size=0.1)
    vector = draw(generator, 7)
    long = oracle @ (1e8 * vector)
    assert relative(long, 1e8 * (problem.dense @ vector)) < FINITE_DIFFERENCE


def test_finite_difference_product_of_zero_is_zero_and_free(generator):
    problem = Problem("vector", generator)
    oracle = hvpopt.FiniteDifferenceHessian(problem.loss, problem.model)
    assert not (oracle @ torch.zeros(7, dtype=F64)).any()
    assert oracle.counts.gradients == 0


@pytest.mark.parametrize("scale", [None, 2.0])
def test_finite_differences_see_both_sides_of_a_bound(scale, generator):
    model = 1 + torch.rand(5, generator=generator, dtype=F64)
    space = hvpopt.ModelSpace(model, lower=model, scale=scale)
    oracle = hvpopt.FiniteDifferenceHessian(lambda x: (x**4).sum(), model, space=space)
    product = space.gradient_to_model(oracle.matvec(space.to_vector(torch.ones(5))))
    assert relative(product, 12 * model**2) < FINITE_DIFFERENCE


# -- scipy --------------------------------------------------------------------------


def test_eigsh_over_the_scipy_form_finds_the_smallest_eigenvalue(generator):
    problem = Problem("dict", generator)
    H = problem.operator()
    value = eigsh(
        H.to_scipy(), k=1, which="SA", v0=draw(generator, problem.size).numpy()
    )[0][0]
    exact = torch.linalg.eigvalsh(problem.dense)
    assert abs(value - float(exact[0])) < SOLVE * float(exact.abs().max())


# -- waves --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wave():
    """A 12 × 17 model, 60 steps of 0.5 ms: under the CFL limit of 0.85 ms at 2000 m/s."""
    dt, steps = 0.0005, 60
    pulse = deepwave.wavelets.ricker(50.0, steps, dt, 0.01, dtype=F64)

    def simulate(v):
        out = deepwave.scalar(
            v,
            4.0,
            dt,
            source_amplitudes=pulse.reshape(1, 1, steps),
            source_locations=torch.tensor([[[1, 8]]]),
            receiver_locations=torch.tensor([[[1, 2], [1, 8], [9, 14]]]),
            pml_width=5,
            boundary="pml",
            pml_freq=50.0,
            max_vel=2000.0,
        )
        return out.receiver_amplitudes

    v = torch.full((12, 17), 1500.0, dtype=F64)
    v_true = v.clone()
    v_true[6:] = 1800.0
    observed = simulate(v_true)
    power = float(observed.square().sum())
    return lambda v: (simulate(v) - observed).square().sum() / power, v


def test_wave_products_match_the_dense_hessian(wave, generator):
    loss, v = wave
    block = draw(generator, v.numel(), 4)
    dense = torch.autograd.functional.hessian(loss, v).reshape(v.numel(), v.numel())
    with hvpopt.HessianOperator(loss, v) as H:
        assert relative(H @ block, dense @ block) < PRODUCT


def test_wave_hessian_is_symmetric(wave, seed):
    loss, v = wave
    with hvpopt.HessianOperator(loss, v) as H:
        report = check_symmetry(H, tol=SYMMETRY, seed=seed)
    assert report, str(report)


def test_wave_hessian_has_second_order_taylor_slope(wave):
    loss, v = wave
    report = check_hessian(loss, v)
    assert report, str(report)
    assert abs(report.measured - 3) < SLOPE
