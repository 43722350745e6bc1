"""The look at a loss whose gradient carries no graph keeps to what a run may ask."""

import warnings

import pytest
import torch

import hvpopt

F64 = torch.float64
LINEAR = "carries no graph, so its block of the Hessian is zero"


@pytest.mark.filterwarnings(f"ignore:.*{LINEAR}")
@pytest.mark.parametrize("start", [0.0, 1e-9, 1.0])
@pytest.mark.parametrize("upper", [None, 1.0])
def test_a_linear_loss_is_never_evaluated_outside_its_bounds(start, upper):
    def loss(x):
        assert bool((x >= 0).all())
        assert upper is None or bool((x <= upper).all())
        return x.sum()

    model = torch.full((3,), start, dtype=F64)
    result = hvpopt.minimize(loss, model, lower=0.0, upper=upper)
    assert result.success
    assert torch.equal(result.x, torch.zeros(3, dtype=F64))


@pytest.mark.filterwarnings(f"ignore:.*{LINEAR}")
@pytest.mark.parametrize("scale", [None, 3.0])
def test_frozen_cells_are_not_moved(scale):
    seen = []

    def loss(a, b):
        seen.append(torch.cat([a.detach(), b.detach()]))
        return a.sum() ** 2 + b.sum()

    a, b = torch.tensor([1.0, 2.0], dtype=F64), torch.tensor([3.0, 4.0], dtype=F64)
    free = torch.tensor([True, False])
    space = hvpopt.ModelSpace((a, b), mask=[free, free], scale=scale)
    hvpopt.HessianOperator(loss, (a, b + 1), space=space).close()
    assert len(seen) == 2
    moved = seen[1] != seen[0]
    assert moved.tolist() == [True, False, True, False]


@pytest.mark.parametrize("lower", [0.0, -0.5])
def test_a_model_nearby_moves_inward_and_never_past_a_bound(lower, generator):
    model = torch.rand(50, generator=generator, dtype=F64)
    model[:10], model[10:20] = 0.0, 1.0
    low = torch.full((50,), lower, dtype=F64)
    low[:10] = 0.0
    low[45:] = model[45:]
    high = torch.ones(50, dtype=F64)
    high[45:] = model[45:]
    space = hvpopt.ModelSpace(model, lower=low, upper=high, scale=0.3)
    there = space.nearby(model)
    assert bool(((there >= low) & (there <= high)).all())
    assert bool((there != model)[:45].all())
    assert torch.equal(there[45:], model[45:])


class RefusalError(LookupError):
    pass


class LostError(LookupError):
    ends_run = True


@pytest.mark.parametrize(
    "error", [AssertionError, RefusalError, TypeError, FloatingPointError]
)
def test_a_loss_that_refuses_the_model_nearby_is_warned_of_as_before(error):
    start = torch.ones(3, dtype=F64)

    def loss(x):
        if not torch.equal(x.detach(), start):
            raise error("elsewhere")
        return x.sum()

    with pytest.warns(UserWarning, match=LINEAR):
        hvpopt.HessianOperator(loss, start)


@pytest.mark.parametrize("error", [MemoryError, torch.cuda.OutOfMemoryError, LostError])
def test_lost_memory_and_lost_processes_are_raised(error):
    start = torch.ones(3, dtype=F64)

    def loss(x):
        if not torch.equal(x.detach(), start):
            raise error("gone")
        return x.sum()

    with pytest.raises(error, match="gone"):
        hvpopt.HessianOperator(loss, start)


def test_a_run_asks_once_and_warns_once():
    calls = 0

    def loss(a, b):
        nonlocal calls
        calls += torch.is_grad_enabled()
        return ((a - 1) ** 4).sum() + b.sum()

    model = torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = hvpopt.minimize(
            loss, model, method=hvpopt.LineSearchNewton(), lower=[None, 0.0]
        )
    assert result.nit > 2
    assert calls == result.nit + 2
    assert result.counts.gradients == calls
    assert sum(LINEAR in str(warning.message) for warning in told) == 1
