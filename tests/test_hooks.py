"""Hooks on a model's tensors do nothing here, and are told of."""

import warnings

import pytest
import torch

import hvpopt

F64 = torch.float64
MASK = torch.tensor([True, False, True])


def bowl(x):
    return ((x - 1) ** 2).sum()


def hooked(kind="register_hook"):
    x = torch.zeros(3, dtype=F64, requires_grad=True)
    getattr(x, kind)(lambda given: given * MASK if kind == "register_hook" else None)
    return x


WAYS = {
    "minimize": lambda x: hvpopt.minimize(bowl, x),
    "Hessian": lambda x: hvpopt.HessianOperator(bowl, x),
    "scipy": lambda x: hvpopt.as_scipy(bowl, x),
}


@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
@pytest.mark.parametrize("way", WAYS)
def test_hook_is_told_of_once(way, kind):
    with pytest.warns(UserWarning, match=r"parameter 'model'.*ignored.*mask=") as caught:
        WAYS[way](hooked(kind))
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_hook_of_one_parameter_is_named():
    model = {"vp": torch.zeros(3, dtype=F64), "rho": hooked()}
    with pytest.warns(UserWarning, match="parameter 'rho' "):
        hvpopt.minimize(lambda vp, rho: bowl(vp) + bowl(rho), model)


def test_hook_is_told_of_where_a_run_goes_on(tmp_path):
    path = tmp_path / "run.safetensors"
    hvpopt.minimize(bowl, hooked().detach(), checkpoint=path, max_iter=0)
    with pytest.warns(UserWarning, match="ignored"):
        hvpopt.minimize(bowl, hooked(), checkpoint=path, max_iter=5)


def test_mask_that_the_warning_names_holds_the_cells():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = hvpopt.minimize(bowl, hooked().detach(), mask=MASK)
    assert torch.allclose(result.x, MASK.to(F64))


def test_no_hook_and_no_warning():
    x = torch.zeros(3, dtype=F64, requires_grad=True)
    x.register_hook(lambda g: g).remove()
    hvpopt.minimize(bowl, x)


@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
def test_optimiser_tells_of_a_hook_once(kind):
    x = hooked(kind)
    optimizer = hvpopt.optim.Newton([x])
    with pytest.warns(UserWarning, match=r"parameter '0'.*no backward.*mask=") as caught:
        optimizer.step(lambda: bowl(x))
    assert len(caught) == 1
    optimizer.step(lambda: bowl(x))  # a warning would be an error


def test_mask_of_the_optimiser_holds_the_cells():
    x = torch.zeros(3, dtype=F64, requires_grad=True)
    optimizer = hvpopt.optim.Newton([x], mask=MASK)
    for _ in range(3):
        optimizer.step(lambda: bowl(x) + x[0] * x[1])
    assert float(x[1].detach()) == 0.0
