"""Born products through maps whose second derivative autograd has no third for."""

import pytest
import torch
from tolerances import FINITE_DIFFERENCE, PRODUCT
from torch.nn import functional as F  # noqa: N812 - torch's own name for it
from waves import SHAPE, D, one_thread, rand, random_step, relative, survey

import hvpopt
from hvpopt.fwi import WaveformMisfit

__all__ = ["one_thread"]
# torch's own, on the way to the second derivatives of staggered propagators
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")


def layer_norm(z):
    return 1900 + 40 * F.layer_norm(z, z.shape)


def layer_norm_of_rows(z):
    return 1900 + 40 * F.layer_norm(z, z.shape[-1:])


def batch_norm(z):
    return 1900 + 40 * F.batch_norm(z[:, None], None, None, training=True)[:, 0]


def group_norm(z):
    return 1900 + 40 * F.group_norm(z.reshape(1, 4, -1), 2).reshape(SHAPE)


def instance_norm(z):
    return 1900 + 40 * F.instance_norm(z[None, None])[0, 0]


class ConvNet(torch.nn.Module):
    """Convolutions with each kind of normalisation between them, in training mode."""

    def __init__(self, normalise):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(4)
            self.layers = torch.nn.Sequential(
                torch.nn.Conv2d(1, 4, 3, padding=1),
                normalise,
                torch.nn.Tanh(),
                torch.nn.Conv2d(4, 1, 3, padding=1),
            ).to(D)
        self.requires_grad_(False)

    def forward(self, z):
        return 1900 + 60 * torch.tanh(self.layers(z[None, None])[0, 0])


MAPS = {
    "layer norm": layer_norm,
    "layer norm of rows": layer_norm_of_rows,
    "batch norm in training": batch_norm,
    "group norm": group_norm,
    "instance norm": instance_norm,
    "network, batch norm": ConvNet(torch.nn.BatchNorm2d(4)),
    "network, group norm": ConvNet(torch.nn.GroupNorm(2, 4)),
    "network, layer norm": ConvNet(torch.nn.LayerNorm([4, *SHAPE])),
}


def misfit_of(parameterisation, unknowns, generator, propagator="scalar"):
    there = survey(propagator)
    near = hvpopt.model.tensors.rebuild(
        unknowns,
        [
            t + 0.3 * rand(t.shape, generator, -1, 1)
            for t in hvpopt.model.tensors.named_tensors(unknowns).values()
        ],
    )
    with torch.no_grad():
        observed = there.simulate(hvpopt.model.tensors.call_loss(parameterisation, near))
    return {
        engine: WaveformMisfit(
            there, observed, parameterisation=parameterisation, engine=engine
        )
        for engine in ("born", "double-backprop")
    }


@pytest.mark.parametrize("parameterisation", MAPS.values(), ids=MAPS)
def test_normalisations(parameterisation, generator):
    unknowns, step = (rand(SHAPE, generator, -1, 1) for _ in range(2))
    misfits = misfit_of(parameterisation, unknowns, generator)
    product = misfits["born"].hessian(unknowns) @ step
    double_backprop = misfits["double-backprop"].hessian(unknowns) @ step
    assert relative(product, double_backprop) < PRODUCT
    differences = hvpopt.FiniteDifferenceHessian(misfits["born"], unknowns)
    assert relative(product, differences @ step) < 10 * FINITE_DIFFERENCE


def test_several_parameters(generator):
    """One normalised together, one linear, one that a constant model stands beside."""

    def models(a, b):
        both = F.layer_norm(torch.stack([a, b]), (2, *SHAPE))
        return {"v": 1900 + 40 * both[0] + 5 * b, "rho": 2000 + 60 * both[1].exp()}

    def constant_density(a, b):
        return 1900 + 40 * F.layer_norm(a * b, SHAPE), torch.full(SHAPE, 2e3, dtype=D)

    unknowns = {name: rand(SHAPE, generator, -1, 1) for name in "ab"}
    step = {name: rand(SHAPE, generator, -1, 1) for name in "ab"}
    for function in (models, constant_density):
        misfits = misfit_of(function, unknowns, generator, "acoustic")
        product = misfits["born"].hessian(unknowns) @ step
        double_backprop = misfits["double-backprop"].hessian(unknowns) @ step
        for name, row in product.items():
            assert relative(row, double_backprop[name]) < PRODUCT


def test_gauss_newton(generator):
    unknowns, step = (rand(SHAPE, generator, -1, 1) for _ in range(2))
    misfits = misfit_of(layer_norm, unknowns, generator)
    products = [
        misfit.hessian(unknowns, "gauss-newton") @ step for misfit in misfits.values()
    ]
    assert relative(*products) < PRODUCT


@pytest.mark.parametrize("parameterisation", [layer_norm, lambda z: 1900 + 40 * z, None])
def test_a_product_costs_four_propagations_a_shot(parameterisation, generator):
    unknowns = rand(SHAPE, generator, -1, 1)
    if parameterisation is None:
        unknowns = 1900 + 40 * unknowns
    there = survey()
    observed = there.simulate(torch.full(SHAPE, 1900.0, dtype=D))
    misfit = WaveformMisfit(there, observed, parameterisation=parameterisation)
    operator = misfit.hessian(unknowns)
    operator @ random_step((unknowns,), generator)
    assert misfit.counts == hvpopt.Counts(products=1, propagations=4 * there.n_shots)
