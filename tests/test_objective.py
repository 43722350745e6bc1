"""TorchObjective and SumObjective: values, gradients, Hessians, parts, and costs."""

import math

import pytest
import torch
from tolerances import GRADIENT, PRODUCT

import hvpopt
from hvpopt import Counts, SumObjective, TorchObjective
from hvpopt.problem.torch_objective import as_objective

F64 = torch.float64


def draw(generator, *shape):
    return torch.randn(shape, generator=generator, dtype=F64)


def quartic(x):
    return (x**4).sum()


def roughness(x):
    return x.diff().square().sum()


def relative(actual, expected):
    return float((actual - expected).norm() / expected.norm())


@pytest.fixture
def model(generator):
    return draw(generator, 6)


@pytest.fixture
def terms():
    return TorchObjective(quartic), TorchObjective(roughness, convex=True)


# -- one function -------------------------------------------------------------------


def test_value_gradient_and_hessian_of_a_function(model, generator):
    objective = TorchObjective(quartic)
    step = draw(generator, 6)
    value, gradient = objective.value_and_gradient(model)
    assert value == objective.value(model) == float(quartic(model))
    assert relative(gradient, 4 * model**3) < GRADIENT
    assert relative(objective.hessian(model) @ step, 12 * model**2 * step) < PRODUCT


@pytest.mark.parametrize(
    "arrange",
    [
        lambda a, b: (a, b),
        lambda a, b: {"a": a, "b": b},
    ],
)
def test_loss_is_called_as_the_model_is_arranged(arrange, generator):
    a, b = draw(generator, 2, 3), draw(generator, 3)
    objective = TorchObjective(lambda a, b: (a.square() * b).sum())
    model = arrange(a, b)
    _, gradient = objective.value_and_gradient(model)
    first, second = gradient.values() if isinstance(gradient, dict) else gradient
    assert type(gradient) is type(model)
    assert relative(first, 2 * a * b) < GRADIENT
    assert relative(second, a.square().sum(0)) < GRADIENT


def test_objective_is_callable_like_its_loss_and_differentiable(model):
    leaf = model.clone().requires_grad_()
    objective = TorchObjective(quartic)
    objective(leaf).backward()
    assert relative(leaf.grad, 4 * model**3) < GRADIENT
    assert objective.counts == Counts(), "a plain call is the caller's, and not counted"


def test_value_builds_no_graph_and_returns_a_float(model):
    graphs = []
    objective = TorchObjective(
        lambda x: (graphs.append((x**2).requires_grad), quartic(x))[1]
    )
    assert type(objective.value(model.requires_grad_())) is float
    assert graphs == [False]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_value_is_returned_for_a_line_search_to_judge(value, model):
    found = TorchObjective(lambda x: x.sum() * 0 + value).value(model)
    assert found == value or (math.isnan(found) and math.isnan(value))


def test_counts_of_each_evaluation(model, generator):
    objective = TorchObjective(quartic)
    objective.value(model)
    assert objective.counts == Counts(values=1)
    objective.value_and_gradient(model)
    assert objective.counts == Counts(values=1, gradients=1)
    H = objective.hessian(model)
    assert objective.counts == Counts(values=1, gradients=2)
    H @ draw(generator, 6, 4)
    assert objective.counts == Counts(values=1, gradients=2, products=4)
    assert H.counts == Counts(gradients=1, products=4)


def test_linearise_shares_one_graph(model, generator):
    objective = TorchObjective(quartic)
    lin = objective.linearise(model)
    assert objective.counts == Counts(gradients=1)
    assert lin.value == float(quartic(model))
    assert relative(lin.gradient, 4 * model**3) < GRADIENT
    step = draw(generator, 6)
    assert relative(lin.hessian @ step, 12 * model**2 * step) < PRODUCT


def test_gradient_shares_memory_with_nothing(generator):
    a, b = draw(generator, 3), draw(generator, 3)
    _, (first, second) = TorchObjective(
        lambda a, b: ((a + b) ** 3).sum()
    ).value_and_gradient((a, b))
    first.zero_()
    assert second.any()
    assert a.any()


def test_gradient_of_a_sum_can_be_written_to(model):
    _, gradient = TorchObjective(torch.sum).value_and_gradient(model)
    gradient[0] = 5.0
    assert gradient.tolist() == [5.0] + [1.0] * 5


def test_model_is_left_alone(model):
    model.requires_grad_()
    before = model.detach().clone()
    objective = TorchObjective(quartic)
    objective.value(model)
    objective.value_and_gradient(model)
    objective.linearise(model)
    assert model.grad is None
    assert torch.equal(model.detach(), before)


def test_name_is_the_functions_own_unless_given():
    assert TorchObjective(quartic).name == "quartic"
    assert TorchObjective(quartic, name="misfit").name == "misfit"
    assert TorchObjective(torch.nn.MSELoss()).name == "MSELoss"


def test_as_objective_wraps_a_function_once():
    objective = TorchObjective(quartic)
    assert as_objective(objective) is objective
    assert as_objective(quartic).name == "quartic"


# -- gauss-newton -------------------------------------------------------------------


def test_plain_function_has_no_gauss_newton_hessian(model):
    objective = TorchObjective(quartic)
    with pytest.raises(ValueError, match=r"'quartic' is a plain.*residual.*convex=True"):
        objective.hessian(model, kind="gauss-newton")
    with pytest.raises(ValueError, match="residual"):
        objective.linearise(model, "gauss-newton")


def test_declared_convex_function_serves_its_exact_hessian(model, generator):
    objective = TorchObjective(roughness, convex=True)
    step = draw(generator, 6)
    exact = objective.hessian(model) @ step
    assert torch.equal(objective.hessian(model, kind="gauss-newton") @ step, exact)


def test_sum_is_gauss_newton_only_if_every_term_is(model, terms):
    plain, convex = terms
    with pytest.raises(ValueError, match="'quartic' is a plain torch function"):
        (plain + convex).hessian(model, "gauss-newton")
    H = (convex + 2.0 * convex).hessian(model, "gauss-newton")
    expected = 3 * (convex.hessian(model) @ model)
    assert relative(H @ model, expected) < PRODUCT


@pytest.mark.parametrize("kind", ["newton", "", "Exact"])
def test_unknown_kind_is_refused(kind, model, terms):
    for objective in (terms[0], terms[1], terms[0] + terms[1]):
        with pytest.raises(ValueError, match="'exact' or 'gauss-newton'"):
            objective.hessian(model, kind=kind)


# -- sums ---------------------------------------------------------------------------


def test_weighted_sum_of_values_gradients_and_products(model, terms, generator):
    first, second = terms
    total = first + 0.3 * second
    step = draw(generator, 6)
    value, gradient = total.value_and_gradient(model)
    _, g1 = first.value_and_gradient(model)
    _, g2 = second.value_and_gradient(model)
    expected = first.hessian(model) @ step + 0.3 * (second.hessian(model) @ step)
    assert total.value(model) == pytest.approx(
        first.value(model) + 0.3 * second.value(model), rel=1e-14
    )
    assert value == total.value(model)
    assert relative(gradient, g1 + 0.3 * g2) < GRADIENT
    assert relative(total.hessian(model) @ step, expected) < PRODUCT
    assert relative(total.linearise(model).hessian @ step, expected) < PRODUCT


def test_sum_of_objectives_of_several_parameters(generator):
    model = {"a": draw(generator, 2, 2), "b": draw(generator, 3)}
    first = TorchObjective(lambda a, b: quartic(a) * b.square().sum())
    second = TorchObjective(lambda a, b: quartic(a) + roughness(b))
    total = first + 2.0 * second
    joint = TorchObjective(lambda a, b: first(a, b) + 2.0 * second(a, b))
    step = {"a": draw(generator, 2, 2), "b": draw(generator, 3)}
    _, gradient = total.value_and_gradient(model)
    _, expected = joint.value_and_gradient(model)
    product, dense = total.hessian(model) @ step, joint.hessian(model) @ step
    for name in model:
        assert relative(gradient[name], expected[name]) < GRADIENT
        assert relative(product[name], dense[name]) < PRODUCT


def test_sum_is_callable_like_a_loss(model, terms):
    total = terms[0] + 0.3 * terms[1]
    leaf = model.clone().requires_grad_()
    value = total(leaf)
    value.backward()
    assert float(value.detach()) == pytest.approx(total.value(model), rel=1e-14)
    assert relative(leaf.grad, total.value_and_gradient(model)[1]) < GRADIENT


def test_parts_are_reported_apart_with_their_weights(model, terms):
    total = terms[0] + 0.3 * terms[1]
    parts = total.parts(model)
    assert parts == {
        "quartic": float(quartic(model)),
        "roughness": 0.3 * float(roughness(model)),
    }
    assert total.linearise(model).parts == parts
    assert sum(parts.values()) == total.value(model)


def test_single_objective_has_one_part(model):
    assert TorchObjective(quartic).parts(model) == {"quartic": float(quartic(model))}


def test_weights_multiply_through_nested_sums(model, terms):
    first, second = terms
    total = 2.0 * (first + 3.0 * second) + 1.0 * (first + second)
    assert [weight for weight, _ in total.terms] == [2.0, 6.0, 1.0, 1.0]
    expected = 3 * float(quartic(model)) + 7 * float(roughness(model))
    assert total.value(model) == pytest.approx(expected, rel=1e-14)


@pytest.mark.filterwarnings("ignore:the gradient of parameter")
def test_the_gradient_that_tells_a_linear_term_counts_in_the_sum():
    calls = []

    def linear(x):
        calls.append(torch.is_grad_enabled())
        return x.sum()

    total = TorchObjective(linear) + TorchObjective(lambda x: ((x - 3) ** 2).sum())
    start = torch.zeros(3, dtype=torch.float64)
    result = hvpopt.minimize(total, start)
    assert result.njev == sum(calls)


def test_sums_are_written_as_python_writes_them(model, terms):
    first, second = terms
    total = sum([first, second * 3.0])
    assert [weight for weight, _ in total.terms] == [1.0, 3.0]
    assert total.value(model) == (first + 3.0 * second).value(model)
    for wrong in (lambda: 5 + first, lambda: first + 5, lambda: first * "2"):
        with pytest.raises(TypeError):
            wrong()


def test_names_that_repeat_are_numbered(model):
    total = TorchObjective(quartic) + TorchObjective(roughness) + TorchObjective(quartic)
    assert list(total.parts(model)) == ["quartic 1", "roughness", "quartic 3"]


@pytest.mark.parametrize(
    "names", [("r", "r", "r 1"), ("r 2", "r", "r"), ("r", "r", "r 2", "r 1")]
)
def test_no_part_is_lost_whatever_the_names(names, model):
    total = SumObjective([(1.0, TorchObjective(quartic, name=name)) for name in names])
    assert len(total.parts(model)) == len(names)
    expected = len(names) * float(quartic(model))
    assert total.value(model) == pytest.approx(expected, rel=1e-14)


def test_sum_of_a_sum_with_itself_evaluates_every_term(model, terms):
    both = terms[0] + terms[0]
    assert both.value(model) == 2 * float(quartic(model))
    assert terms[0].counts.values == 2


def test_sum_counts_each_evaluation_once_and_terms_theirs(model, terms, generator):
    total = terms[0] + 0.3 * terms[1]
    total.value(model)
    total.parts(model)
    total.value_and_gradient(model)
    lin = total.linearise(model)
    assert total.counts == Counts(values=2, gradients=2)
    assert [term.counts for term in terms] == [Counts(values=2, gradients=2)] * 2
    lin.hessian @ draw(generator, 6, 5)
    assert total.counts.products == 5
    assert [term.counts.products for term in terms] == [5, 5]


def test_hessian_of_a_sum_counts_the_gradient_that_its_graphs_cost(model, terms):
    total = terms[0] + terms[1]
    total.hessian(model)
    assert total.counts.gradients == 1


def test_sum_counts_the_propagations_of_its_terms(model):
    class Wave(TorchObjective):
        def value(self, model):
            self.counts.tally(propagations=3)
            return super().value(model)

    total = Wave(quartic) + 0.5 * Wave(roughness)
    total.value(model)
    assert total.counts.propagations == 6


def test_closing_the_hessian_of_a_sum_releases_every_graph(model, terms):
    H = (terms[0] + terms[1]).hessian(model)
    H.close()
    with pytest.raises(RuntimeError, match="closed"):
        H @ model


def test_space_reaches_every_term(model, terms):
    space = hvpopt.ModelSpace(model, scale=2.0, mask=torch.arange(6) < 4)
    H = (terms[0] + terms[1]).hessian(model, space=space)
    expected = 4.0 * (terms[0] + terms[1]).hessian(model).to_dense()[:4, :4]
    assert H.shape == (4, 4)
    assert relative(H.to_dense(), expected) < PRODUCT


def test_adding_what_is_no_objective_is_a_type_error(terms):
    with pytest.raises(TypeError):
        terms[0] + quartic
