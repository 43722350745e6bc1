"""What a person tries first: names of other libraries, objects printed, small data."""

import numpy as np
import pytest
import torch
from waves import D, models_of, one_thread, perturbed, survey

import hvpopt
from hvpopt.fwi import FunctionMisfit, WaveformMisfit, frequency_stages

__all__ = ["one_thread"]
X = torch.tensor([1.0, 2.0], dtype=D)


def loss(x):
    return (x**4).sum()


def waves(generator, n_shots=2, **options):
    there = survey(n_shots=n_shots)
    models = models_of("scalar", generator)
    (start,) = perturbed(models, generator)
    return WaveformMisfit(there, there.simulate(models), **options), start


# -- names of other libraries -----------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("maxiter", "use max_iter="),
        ("bounds", "use lower= and upper="),
        ("tol", "use gtol="),
        ("jac", "torch differentiates the loss"),
        ("lr", "the method finds the length"),
        ("options", "arguments of minimize itself"),
        ("max_itr", "use max_iter="),
        ("chekpoint", "use checkpoint="),
        ("colour", "it has loss, model, method, scale"),
    ],
)
def test_options_of_other_libraries_are_refused_with_ours(option, words):
    with pytest.raises(TypeError, match=f"minimize has no option '{option}'; .*{words}"):
        hvpopt.minimize(loss, X, **{option: 3})


def test_a_closure_has_no_samples():
    x = X.clone().requires_grad_()
    with pytest.raises(
        ValueError, match=r"on samples of a sum.*method=hvpopt.QuasiNewto"
    ):
        hvpopt.optim.Newton([x], method=hvpopt.StochasticQuasiNewton())


def test_submodules_are_there_when_asked_for():
    assert callable(hvpopt.plotting.plot_images)
    pytest.importorskip("pylops")
    assert callable(hvpopt.interop.pylops.to_pylops)
    with pytest.raises(AttributeError, match="has no attribute 'jax'"):
        _ = hvpopt.interop.jax


# -- what is printed --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (hvpopt.QuasiNewton(), "QuasiNewton()"),
        (hvpopt.QuasiNewton(memory=3), "QuasiNewton(memory=3)"),
        (hvpopt.StochasticQuasiNewton(seed=4), "StochasticQuasiNewton(seed=4)"),
        (hvpopt.ShiftedNewton(solver="cg"), "ShiftedNewton(solver='cg')"),
        (hvpopt.TrustRegionNewton(), "TrustRegionNewton()"),
        (hvpopt.LineSearchNewton(), "LineSearchNewton()"),
    ],
)
def test_a_method_shows_the_options_that_were_chosen(method, text):
    assert repr(method) == text


class Mine(hvpopt.QuasiNewton):
    made = 0

    def __init__(self, rate, weights=None):
        super().__init__()
        Mine.made += 1
        self.rate, self.weights = rate, weights


def test_a_method_of_ones_own_shows_all_its_options():
    method = Mine(0.5, np.zeros(3))
    made = Mine.made
    text = repr(method)
    assert "rate=0.5" in text
    assert "weights=array([0., 0., 0.])" in text
    assert Mine.made == made, "nothing is made to be compared with"


def test_groups_of_options_are_shown_as_they_are_given():
    assert repr(hvpopt.LineSearchNewton(memory=3)) == "LineSearchNewton(memory=3)"


def test_half_made_objects_print(generator):
    misfit, start = waves(generator)
    for whole in (misfit, misfit.hessian(start), hvpopt.ModelSpace(start)):
        assert type(whole).__name__ in repr(object.__new__(type(whole)))


def test_spaces_of_many_parameters_fit_a_screen():
    model = {f"layer {k}": torch.ones(2) for k in range(3000)}
    assert len(repr(hvpopt.ModelSpace(model))) < 200


def test_objects_say_what_they_are(generator):
    misfit, start = waves(generator)
    assert repr(misfit) == "<WaveformMisfit 'waveforms': not evaluated yet>"
    misfit.value(start)
    assert "1 values, 2 propagations" in repr(misfit)
    operator = misfit.hessian(start)
    n = start.numel()
    assert repr(operator).startswith(f"<BornHessian: {n} × {n}, torch.float64 on ")
    assert repr(operator).endswith("0 products>")
    assert repr(misfit + hvpopt.Tikhonov(spacing=5.0)).startswith("<SumObjective ")
    jacobian = misfit.jacobian(start)
    assert repr(jacobian).startswith(f"<WaveformJacobian: {2 * 4 * 72} × {n}, 0 pro")
    assert repr(hvpopt.fwi.L2()) == "<L2: the misfit 'l2'>"
    space = hvpopt.ModelSpace({"a": torch.ones(3, 4)}, scale=2.0, lower=0.0)
    assert "12 free cells of 12, a [3, 4]; torch.float64 on" in repr(space)
    assert repr(space).endswith(", scaled, bounded>")


def test_history_compares_what_can_be_compared(generator):
    misfit, start = waves(generator)
    stages = frequency_stages(misfit, [40.0, 60.0])
    result = hvpopt.minimize([*stages, misfit], start, max_iter=2)
    assert [r.loss for r in result.history] == [r.stage for r in result.history]
    last = [r for r in result.history if r.loss == 2]
    told = f"loss of the last objective {last[0].value:.4g} to {last[-1].value:.4g}"
    assert told in " ".join(repr(result).split())


def test_records_of_sampled_runs_name_their_loss(generator):
    misfit, start = waves(generator, n_shots=4)
    method = hvpopt.StochasticQuasiNewton()
    result = hvpopt.minimize([misfit, misfit], start, method=method, max_iter=3)
    stages = {r.stage: r.loss for r in result.history}
    assert set(stages) <= {0, 1, 2, 3}
    assert all(loss == stage // 2 for stage, loss in stages.items())
    assert max(stages.values()) == 1


def test_a_minimum_shows_no_direction_of_negative_curvature():
    def double_well(x):
        return (x**4).sum() - (x**2).sum()

    start = torch.full((3,), 0.01, dtype=D)
    result = hvpopt.minimize(double_well, start, method=hvpopt.TrustRegionNewton())
    assert result.success
    assert "negative_curvature" not in repr(result)


# -- data -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["l2", "huber", "envelope"])
def test_data_whose_squares_underflow_are_refused(name, generator):
    there = survey(dtype=torch.float32)
    (model,) = models_of("scalar", generator, torch.float32)
    observed = there.simulate(model)
    WaveformMisfit(there, observed, name)
    with pytest.raises(ValueError, match=r"square torch.float32.*multiply wavelets and"):
        WaveformMisfit(there, 1e-22 * observed / observed.abs().max(), name)
    # float64 holds them, and what a caller's own function does is not known
    there64 = survey()
    WaveformMisfit(there64, 1e-22 * observed.double(), "l2")
    own = FunctionMisfit(lambda a, b: (1e20 * (a - b)).square().sum())
    WaveformMisfit(there, 1e-22 * observed, own)


def test_a_partial_weight_is_refused():
    model = {"vp": torch.ones(3, 4, dtype=D), "rho": torch.ones(3, 4, dtype=D)}
    with pytest.raises(ValueError, match="weight gives none of parameter 'rho'; name"):
        hvpopt.Tikhonov(spacing=2.0, weight={"vp": 1.0}).value(model)
    whole = hvpopt.Tikhonov(spacing=2.0, weight={"vp": 1.0, "rho": 0.0})
    assert whole.value(model) == 0.0


# -- linear algebra ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "words"),
    [("maxiter", "use max_products="), ("rtol", "use tol="), ("x0", "use start=")],
)
def test_options_of_scipys_cg_are_refused_with_ours(option, words):
    operator = hvpopt.MatrixOperator(torch.eye(2, dtype=D))
    with pytest.raises(TypeError, match=f"cg has no option '{option}'; {words}"):
        hvpopt.cg(operator, X, **{option: 3})


def test_a_krylov_space_says_how_to_make_its_vectors_flat(generator):
    misfit, start = waves(generator)
    operator = misfit.hessian(start)
    with pytest.raises(ValueError, match=r"rhs=H.space.gradient_to_vector\(rhs\)"):
        hvpopt.LanczosBasis(operator, rhs=start)
    basis = hvpopt.LanczosBasis(operator, rhs=operator.space.gradient_to_vector(start))
    basis.extend(3)
    shaped = operator.space.step_to_model(basis.solve(shift=1.0).vector)
    assert shaped.shape == start.shape
