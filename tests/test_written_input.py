"""Functions of the user's that write to what they are given."""

import deepwave
import pytest
import torch
from tolerances import FINITE_DIFFERENCE, PRODUCT
from torch.autograd import functional
from waves import D, models_of, one_thread, perturbed, random_step, relative, survey

import hvpopt
from hvpopt.errors import WrittenError
from hvpopt.fwi import DataMisfit, WaveformMisfit
from hvpopt.fwi.data.data_misfits import DataMisfit as Base

__all__ = ["one_thread"]

X = torch.full((6,), 0.5, dtype=D)
TARGET = torch.linspace(-1, 2, 6, dtype=D)


def clamped_data(v):
    v.data.clamp_(0, 1)
    return (v - TARGET).square().sum()


def clamped_without_graph(v):
    with torch.no_grad():
        v.clamp_(0, 1)
    return (v - TARGET).square().sum()


def clamped_as_pair(a, b):
    b.data.clamp_(0, 1)
    return (a - 1).square().sum() + (b - TARGET).square().sum()


def scaled(v):
    """In place, where autograd sees it: a function like any other."""
    v.mul_(2).add_(1)
    return (v - TARGET).pow(4).sum()


def scaled_out_of_place(v):
    return (2 * v + 1 - TARGET).pow(4).sum()


METHODS = [
    hvpopt.QuasiNewton(),
    hvpopt.LineSearchNewton(),
    hvpopt.TrustRegionNewton(),
    hvpopt.ShiftedNewton(),
]


@pytest.mark.parametrize("start", [0.5, 3.0], ids=["inside", "outside"])
@pytest.mark.parametrize("loss", [clamped_data, clamped_without_graph])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_a_loss_that_clamps_its_model_is_told(method, loss, start):
    model = torch.full((6,), start, dtype=D)
    before = model.clone()
    with pytest.raises(WrittenError, match=r"'model'.*bounds \(lower=, upper=\)"):
        hvpopt.minimize(loss, model, method=method)
    assert torch.equal(model, before)


def test_what_is_told_to_do_works():
    found = hvpopt.minimize(lambda v: (v - TARGET).square().sum(), X, lower=0, upper=1)
    assert found.success
    assert float((found.x - TARGET.clamp(0, 1)).abs().max()) < 1e-6


def test_the_parameter_is_named():
    with pytest.raises(WrittenError, match=r"writes to 'b'.*2 of 6 entries"):
        hvpopt.HessianOperator(
            lambda a, b: clamped_as_pair(a, b),
            {"a": X, "b": torch.tensor([0.0, 0.5, 1.0, 2.0, -1.0, 0.7], dtype=D)},
        )


@pytest.mark.parametrize("loss", [clamped_data, clamped_without_graph, scaled])
def test_nothing_of_the_callers_changes(loss):
    objective = hvpopt.TorchObjective(loss)
    model = torch.full((6,), 3.0, dtype=D, requires_grad=True)
    before = model.detach().clone()
    for evaluate in (
        objective.value,
        objective.value_and_gradient,
        objective.linearise,
        objective.hessian,
        lambda m: hvpopt.FiniteDifferenceHessian(loss, m) @ X,
    ):
        try:
            evaluate(model)
        except WrittenError:
            assert loss is not scaled
        assert torch.equal(model.detach(), before)
        assert model.grad is None


def test_work_in_place_that_autograd_sees_is_right(generator):
    step = torch.randn(6, generator=generator, dtype=D)
    objective = hvpopt.TorchObjective(scaled)
    for _ in range(2):
        assert objective.value(X) == pytest.approx(float(scaled_out_of_place(X)))
    _, gradient = objective.value_and_gradient(X)
    expected = functional.jacobian(scaled_out_of_place, X)
    assert relative(gradient, expected) < PRODUCT
    hessian = functional.hessian(scaled_out_of_place, X)
    assert relative(objective.hessian(X) @ step, hessian @ step) < PRODUCT
    assert hvpopt.minimize(scaled, X).success


def test_models_with_nan_are_not_taken_for_written():
    model = torch.tensor([float("nan"), 1.0], dtype=D)
    assert hvpopt.TorchObjective(lambda v: v.sum()).value(model) != 0
    with pytest.raises(ValueError, match="the loss is nan"):
        hvpopt.TorchObjective(lambda v: v.sum()).value_and_gradient(model)


# -- misfits ------------------------------------------------------------------------


def tapered(simulated, observed):
    """As deepwave's examples do: the taper works in place."""
    taper = deepwave.discretisation.cosine_taper_end
    return (taper(simulated, 20) - taper(observed, 20)).square().sum()


def tapered_simulated(simulated, observed):
    return (
        (deepwave.discretisation.cosine_taper_end(simulated, 20) - observed)
        .square()
        .sum()
    )


def tapered_copy(simulated, observed):
    return tapered(simulated.clone(), observed.clone())


def simulated_copy(simulated, observed):
    return tapered_simulated(simulated.clone(), observed)


class Tapered(DataMisfit):
    """A caller's own class, with a residual of its own; all its methods write."""

    name = "tapered"

    def constants(self, observed):
        found = super().constants(observed)
        for data in observed.values():
            data.zero_()
        return found

    def of_shots(self, simulated, observed, shots, constants):
        (residual,) = self.residual(simulated, observed, shots, constants)
        return residual.square().sum()

    def residual(self, simulated, observed, shots, constants):
        (d,), (o,) = simulated.values(), observed.values()
        return [d.mul_(0.5).sub_(o.mul_(0.5))]


class Untapered(Tapered):
    def constants(self, observed):
        return Base.constants(self, observed)

    def residual(self, simulated, observed, shots, constants):
        (d,), (o,) = simulated.values(), observed.values()
        return [0.5 * d - 0.5 * o]


@pytest.mark.parametrize("n_shots", [1, 3])
@pytest.mark.parametrize(
    ("misfit", "pure"),
    [
        (tapered, tapered_copy),
        (tapered_simulated, simulated_copy),
        (Tapered(), Untapered()),
    ],
    ids=["both", "simulated", "class"],
)
def test_misfits_that_write_are_given_copies(misfit, pure, n_shots, generator):
    there = survey(n_shots=n_shots)
    (v,) = models_of("scalar", generator)
    observed = there.simulate(*perturbed((v,), generator))
    before = observed.clone()
    step = random_step((v,), generator)
    ours, theirs = (
        WaveformMisfit(there, observed, m, shots_per_group=2) for m in (misfit, pure)
    )
    assert ours.value(v) == theirs.value(v)
    (value, gradient), (_, expected) = (m.value_and_gradient(v) for m in (ours, theirs))
    assert value == pytest.approx(ours.value(v), rel=1e-12)
    assert relative(gradient, expected) < PRODUCT
    for kind in ("exact", "gauss-newton"):
        products = [m.hessian(v, kind) @ step for m in (ours, theirs)]
        assert relative(*products) < PRODUCT
    differences = hvpopt.FiniteDifferenceHessian(ours, v, size=200.0)
    exact = ours.hessian(v) @ step
    assert relative(exact, differences @ step) < 10 * FINITE_DIFFERENCE
    assert torch.equal(observed, before)


def test_a_misfit_that_writes_unseen_is_told_at_the_start(generator):
    def unseen(simulated, observed):
        simulated.data.mul_(0.5)
        return (simulated - observed).square().sum()

    there = survey()
    observed = there.simulate(*models_of("scalar", generator))
    with pytest.raises(WrittenError, match="'unseen' writes to 'simulated u'"):
        WaveformMisfit(there, observed, unseen)


# -- parameterisations --------------------------------------------------------------


def test_parameterisations_that_write(generator):
    there = survey()
    (v,) = models_of("scalar", generator)
    observed = there.simulate(*perturbed((v,), generator))
    u = (v / 500).sqrt()
    before = u.clone()

    def in_place(t):
        return t.pow_(2).mul_(500)

    def unseen(t):
        t.data.clamp_(1.85, 2.0)
        return 500 * t**2

    pure = WaveformMisfit(there, observed, parameterisation=lambda t: 500 * t**2)
    ours = WaveformMisfit(there, observed, parameterisation=in_place)
    step = random_step((u,), generator)
    assert ours.value(u) == pytest.approx(pure.value(u), rel=1e-12)
    assert relative(ours.hessian(u) @ step, pure.hessian(u) @ step) < PRODUCT
    told = WaveformMisfit(there, observed, parameterisation=unseen)
    for evaluate in (told.value, told.value_and_gradient, told.hessian):
        with pytest.raises(WrittenError, match=r"the parameterisation unseen writes to"):
            evaluate(u)
    assert torch.equal(u, before)
