"""hvpopt.optim.Newton against hvpopt.minimize, and its care for the parameters."""

import io
import itertools
from dataclasses import replace

import pytest
import torch

import hvpopt
from hvpopt.methods.method import Stationary
from hvpopt.optim import Newton

METHODS = {
    "lanczos": hvpopt.ShiftedNewton,
    "cg": lambda: hvpopt.ShiftedNewton(solver="cg"),
    "cholesky": lambda: hvpopt.ShiftedNewton(solver="cholesky"),
    "trust": hvpopt.TrustRegionNewton,
    "line": hvpopt.LineSearchNewton,
    "wolfe": lambda: hvpopt.LineSearchNewton(globalisation=hvpopt.Wolfe()),
}


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def bent(a, b):
    """Two parameters of different shapes and dtypes; not convex."""
    coupling = (a.mean() * b.double()[0]).sin()
    return ((a**2 - 1) ** 2).sum() + (b.double() ** 2).sum() + coupling


@pytest.fixture
def start(generator):
    return 2 * torch.rand(8, generator=generator, dtype=torch.float64) - 0.5


@pytest.fixture
def pair(generator):
    a = torch.rand(2, 3, generator=generator, dtype=torch.float64) - 0.5
    return a, torch.rand(4, generator=generator)


def leaves(*tensors):
    return [t.clone().requires_grad_() for t in tensors]


def iterates(loss, model, steps, *, method=None, **options):
    seen = []
    hvpopt.minimize(
        loss,
        model,
        method=hvpopt.ShiftedNewton() if method is None else method,
        max_iter=steps,
        callback=lambda m, record: seen.append((m, record)),
        **options,
    )
    return seen


@pytest.mark.parametrize("method", METHODS)
def test_iterates_and_costs_are_those_of_minimize_bit_for_bit(start, method):
    expected = iterates(rosenbrock, start, 6, method=METHODS[method]())
    (x,) = leaves(start)
    optimizer = Newton([x], METHODS[method]())

    def closure():
        return rosenbrock(x)

    assert torch.equal(x, expected[0][0])
    for model, record in expected[1:]:
        loss = optimizer.step(closure)
        before = expected[record.iteration - 1][1]
        assert torch.equal(x.detach(), model)
        assert float(loss) == before.value
        assert optimizer.last.length == record.step_length
        # both have spent one more value, at the door, and minimize the next gradient
        spent, theirs = optimizer.counts, record.counts
        assert spent.products == theirs.products
        assert spent.values == theirs.values
        assert spent.gradients <= theirs.gradients


def test_several_parameters_scale_mask_and_bounds(pair):
    options = {
        "scale": [1.0, 10.0],
        "mask": [torch.arange(6).reshape(2, 3) != 4, None],
        "lower": [-0.8, None],
        "upper": [0.9, 5.0],
    }
    expected = iterates(bent, pair, 5, **options)
    a, b = leaves(*pair)
    optimizer = Newton([a, b], hvpopt.ShiftedNewton(), **options)
    for model, _ in expected[1:]:
        optimizer.step(lambda: bent(a, b))
        assert torch.equal(a.detach(), model[0])
        assert torch.equal(b.detach(), model[1])
    assert a[1, 1] == pair[0][1, 1]
    assert (a.dtype, b.dtype) == (torch.float64, torch.float32)


def test_network_with_a_frozen_layer(seed):
    torch.manual_seed(seed)
    net = torch.nn.Sequential(
        torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1)
    ).double()
    net[0].requires_grad_(False)
    inputs = torch.randn(40, 3, dtype=torch.float64)
    targets = torch.randn(40, 1, dtype=torch.float64)
    frozen = net[0].weight.clone()
    optimizer = Newton(net.parameters(), hvpopt.ShiftedNewton(), gtol=1e-8)
    for _ in range(4):
        loss = optimizer.step(lambda: (net(inputs) - targets).square().mean())
    # least squares in the last layer: one exact step would do
    hidden = torch.cat([torch.tanh(net[0](inputs)), torch.ones(40, 1).double()], 1)
    solution = torch.linalg.lstsq(hidden, targets).solution
    best = (hidden @ solution - targets).square().mean()
    assert float(loss) == pytest.approx(float(best), rel=1e-5)
    assert torch.equal(net[0].weight, frozen)
    assert net[0].weight.grad is None


def test_parameters_keep_their_memory_and_gradients_are_where_the_step_started(start):
    (x,) = leaves(start)
    address, view = x.data_ptr(), x.detach()
    optimizer = Newton([x])
    for _ in range(3):
        before = x.detach().clone()
        loss = optimizer.step(lambda: rosenbrock(x))
        assert not loss.requires_grad
        assert float(loss) == float(rosenbrock(before))
        gradient = torch.func.grad(rosenbrock)(before)
        assert torch.equal(x.grad, gradient)
        assert not torch.equal(x.detach(), before)
    assert x.data_ptr() == address
    assert torch.equal(view, x.detach())
    assert x.is_leaf


def test_method_starts_anew_where_the_parameters_were_changed(start):
    (x,) = leaves(start)
    optimizer = Newton([x], hvpopt.TrustRegionNewton())
    for _ in range(3):
        optimizer.step(lambda: rosenbrock(x))
    with torch.no_grad():
        x.copy_(start.flip(0))
    fresh = iterates(rosenbrock, start.flip(0), 3, method=hvpopt.TrustRegionNewton())
    for model, _ in fresh[1:]:
        optimizer.step(lambda: rosenbrock(x))
        assert torch.equal(x.detach(), model)


class LooksAhead(hvpopt.ShiftedNewton):
    """Takes products elsewhere, after the parameters were back home."""

    def step(self, problem, point, state, budget):
        self.ahead = problem.linearise(point.vector + 0.1, "exact")
        step = super().step(problem, point, state, budget)
        self.product = self.ahead.hessian.matvec(self.ahead.gradient)
        return step


def test_products_are_of_the_point_that_they_were_asked_for(start):
    (x,) = leaves(start)
    method = LooksAhead()

    def loss(x):
        return (x**4).sum() + x.sin().sum()  # whose graph keeps x itself, not a slice

    Newton([x], method).step(lambda: loss(x))
    with hvpopt.HessianOperator(loss, start + 0.1) as H:
        assert torch.equal(method.product, H @ method.ahead.gradient)


class HandsOver(hvpopt.ShiftedNewton):
    """Evaluates the gradient at the end of its step, and asks for its own Hessian."""

    def __init__(self):
        super().__init__()
        self.kind = None

    def step(self, problem, point, state, budget):
        linearised = problem.with_hessian(point, "exact")
        step = super().step(problem, linearised, state, budget)
        linearised.hessian.close()
        return replace(step, point=problem.linearise(step.vector, None))


def test_gradient_that_a_method_handed_over_is_not_spent_again(start):
    (x,) = leaves(start)
    optimizer = Newton([x], HandsOver())

    def closure():
        return rosenbrock(x)

    optimizer.step(closure)
    assert optimizer.counts.gradients == 3
    optimizer.step(closure)
    assert optimizer.counts.gradients == 5
    optimizer.step(lambda: rosenbrock(x))  # perhaps another batch
    assert optimizer.counts.gradients == 8


@pytest.mark.parametrize("method", METHODS)
def test_state_goes_through_a_file_bit_for_bit(start, method):
    (x,) = leaves(start)
    optimizer = Newton([x], METHODS[method]())
    for _ in range(3):
        optimizer.step(lambda: rosenbrock(x))
    file = io.BytesIO()
    torch.save({"x": x.detach(), "optimizer": optimizer.state_dict()}, file)
    for _ in range(3):
        optimizer.step(lambda: rosenbrock(x))

    file.seek(0)
    saved = torch.load(file, weights_only=False)
    (y,) = leaves(saved["x"])
    resumed = Newton([y], METHODS[method]())
    resumed.load_state_dict(saved["optimizer"])
    for _ in range(3):
        resumed.step(lambda: rosenbrock(y))
    assert torch.equal(x, y)


def test_state_of_float32_parameters_keeps_its_digits(pair):
    b = pair[1]

    def loss(x):
        return (x.double() ** 4 + x.double().sin()).sum()

    (x,) = leaves(b)
    optimizer = Newton([x])
    optimizer.step(lambda: loss(x))
    (y,) = leaves(x.detach())
    resumed = Newton([y])
    resumed.load_state_dict(optimizer.state_dict())
    for _ in range(2):
        optimizer.step(lambda: loss(x))
        resumed.step(lambda: loss(y))
    assert torch.equal(x, y)


def test_minimum_is_reported_and_not_left():
    (x,) = leaves(torch.ones(4, dtype=torch.float64))
    optimizer = Newton([x], hvpopt.ShiftedNewton())
    for _ in range(3):
        optimizer.step(lambda: (x**2).sum())
    assert isinstance(optimizer.last, Stationary)
    assert optimizer.last.minimum
    kept = x.detach().clone()
    optimizer.step(lambda: (x**2).sum())
    assert torch.equal(x.detach(), kept)


def test_saddle_is_left():
    (x,) = leaves(torch.zeros(2, dtype=torch.float64))
    optimizer = Newton([x])
    for _ in range(15):
        optimizer.step(lambda: x[0] ** 2 - x[1] ** 2 + x[1] ** 4)
    assert float(x[1].detach().abs()) == pytest.approx(0.5**0.5, rel=1e-4)


@pytest.mark.parametrize("fatal", [0, 1, 2, 4])
def test_failing_closure_leaves_the_parameters_alone(start, fatal):
    (x,) = leaves(start)
    x.grad = torch.ones_like(x)
    optimizer = Newton([x])
    calls = []

    def closure():
        calls.append(1)
        if len(calls) > fatal:
            raise KeyboardInterrupt
        return rosenbrock(x)

    address = x.data_ptr()
    kept = [start]

    def run():
        while True:
            optimizer.step(closure)
            kept.append(x.detach().clone())

    with pytest.raises(KeyboardInterrupt):
        run()
    assert torch.equal(x.detach(), kept[-1])
    assert x.data_ptr() == address
    assert len(kept) > 1 or bool((x.grad == 1.0).all())
    assert len(calls) == fatal + 1


def test_closure_that_calls_backward_is_refused(start):
    (x,) = leaves(start)
    optimizer = Newton([x])

    def closure():
        optimizer.zero_grad()
        loss = rosenbrock(x)
        loss.backward()
        return loss

    with pytest.raises(ValueError, match="must only return the loss"):
        optimizer.step(closure)
    assert torch.equal(x.detach(), start)


@pytest.mark.parametrize(
    ("closure", "error", "match"),
    [
        (lambda _: 3.0, TypeError, "returned a float"),
        (lambda x: x**2, ValueError, "reduce it to a scalar"),
        (lambda x: x.detach().sum(), ValueError, "carries no graph"),
        (lambda x: x.sum() * float("nan"), ValueError, "nan"),
    ],
)
def test_wrong_loss_is_refused(start, closure, error, match):
    (x,) = leaves(start)
    with pytest.raises(error, match=match):
        Newton([x]).step(lambda: closure(x))


def test_ignored_parameter_is_named(pair):
    a, b = leaves(*pair)
    with pytest.raises(ValueError, match=r"index \[1\]"):
        Newton([a, b]).step(lambda: (a**2).sum())


def test_wrong_arguments_are_refused(start, pair):
    x, a = leaves(start, pair[0])
    with pytest.raises(TypeError, match="ShiftedNewton"):
        Newton([x], hvpopt.ShiftedNewton)
    with pytest.raises(ValueError, match="one parameter group"):
        Newton([{"params": [x]}, {"params": [a]}])
    optimizer = Newton([x])
    with pytest.raises(ValueError, match="one parameter group"):
        optimizer.add_param_group({"params": [a]})
    with pytest.raises(ValueError, match="requires a gradient"):
        Newton([start])
    with pytest.raises(ValueError, match=r"gtol is 1\.0"):
        Newton([x], gtol=1.0)
    with pytest.raises(ValueError, match="lower has 3 entries for 2"):
        Newton([x, a], lower=[0.0] * 3)
    with pytest.raises(ValueError, match="outside its bounds"):
        Newton([x], lower=10.0)
    with pytest.raises(TypeError, match="closure is None"):
        optimizer.step(None)
    with pytest.raises(ValueError, match=r"not the state of an hvpopt\.optim\.Newton"):
        optimizer.load_state_dict(torch.optim.SGD([x], lr=0.1).state_dict())
    with pytest.raises(ValueError, match="6 free cells"):
        optimizer.load_state_dict(Newton([a]).state_dict())
    with pytest.raises(ValueError, match="Gauss-Newton"):
        Newton([x], hvpopt.TrustRegionNewton(hessian="gauss-newton")).step(
            lambda: rosenbrock(x)
        )


# -- losses that change from call to call --------------------------------------------


def dropped_out():
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(16, 3, generator=generator, dtype=torch.float64)
    dropout = torch.nn.Dropout(0.5)
    return dropout, lambda x: (dropout(data * x) @ x - 1.0).square().mean()


def noisy():
    generator = torch.Generator().manual_seed(0)
    return lambda x: rosenbrock(x) * (1 + 0.1 * torch.randn((), generator=generator))


def in_batches():
    batches = itertools.cycle(range(3))
    return lambda x: (x**2).sum() + x[next(batches)] ** 2


@pytest.mark.parametrize("name", ["dropout", "noise", "batch"])
def test_random_loss_is_refused_as_minimize_refuses_it(name):
    loss = {"dropout": dropped_out()[1], "noise": noisy(), "batch": in_batches()}[name]
    start = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    (x,) = leaves(start)
    optimizer = Newton([x])

    with pytest.raises(ValueError, match="not deterministic"):
        hvpopt.minimize(loss, start)
    with pytest.raises(ValueError, match="not deterministic"):
        optimizer.step(lambda: loss(x))
    assert torch.equal(x.detach(), start)


def test_network_in_eval_mode_is_taken_after_the_refusal():
    dropout, loss = dropped_out()
    (x,) = leaves(torch.ones(3, dtype=torch.float64))
    optimizer = Newton([x])
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"model\.eval"):
        optimizer.step(lambda: loss(x))
    dropout.eval()
    before = float(loss(x).detach())
    optimizer.step(lambda: loss(x))
    assert float(loss(x).detach()) < before


def test_the_check_costs_one_value_once(start):
    (x,) = leaves(start)
    optimizer = Newton([x])
    optimizer.step(lambda: rosenbrock(x))
    first = optimizer.counts.values - optimizer.last.trials
    with torch.no_grad():
        x.mul_(0.9)  # the method begins anew
    before = optimizer.counts.values
    optimizer.step(lambda: rosenbrock(x))
    assert first == 1
    assert optimizer.counts.values - before == optimizer.last.trials


@pytest.mark.parametrize("unseen", ["data", "no_grad"])
def test_closure_that_clamps_its_parameters_is_refused(unseen):
    (x,) = leaves(torch.full((4,), 3.0, dtype=torch.float64))

    def closure():
        if unseen == "data":
            x.data.clamp_(0, 1)
        else:
            with torch.no_grad():
                x.clamp_(0, 1)
        return ((x - 2) ** 2).sum()

    with pytest.raises(ValueError, match=r"lower= and upper="):
        Newton([x]).step(closure)
    assert bool((x == 3.0).all())


def test_closure_with_a_little_noise_is_refused(start):
    (x,) = leaves(start)
    calls = []

    def closure():
        calls.append(1)
        return rosenbrock(x) * (1 + 1e-6 * len(calls))

    with pytest.raises(ValueError, match="not deterministic"):
        Newton([x]).step(closure)
