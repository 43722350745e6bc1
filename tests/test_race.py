"""The race: costs are the misfit's own counts at their prices, for all libraries."""

import json
import math
import sys
from pathlib import Path

import deepwave
import pytest
import torch
from tolerances import PRODUCT

import hvpopt

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import race
import race_methods
from race_cost import BudgetSpent, Prices, RacedMisfit, Trace, measure
from race_peers import REFUSED, FlatFunction
from race_problems import PROBLEMS, build, faulted_model
from race_results import Results, Run, profile
from race_setup import Problem
from race_surveys import MARMOUSI, build_survey, layered_model

PRICES = Prices(gradient_seconds=0.01, value=0.25, product=1.5)
#: Entrants that minimise, on any problem.
ENTERED = [
    entrant
    for entrant in race_methods.ENTRANTS
    if not entrant.missing and (entrant.problems is None or entrant.ours)
]


def tiny(seed=0):
    """Return a problem of 60 free cells whose gradient takes milliseconds."""
    true = torch.full((8, 10), 1600.0, dtype=torch.float64)
    true[5:] += 20.0 + seed
    start = torch.full_like(true, 1610.0)
    start[:2] = 1600.0
    mask = torch.ones(8, 10, dtype=torch.bool)
    mask[:2] = False
    wavelet = deepwave.wavelets.ricker(25.0, 60, 0.001, 0.04, dtype=torch.float64)
    receivers = torch.ones(2, 8, 2, dtype=torch.long)
    receivers[:, :, 1] = torch.arange(1, 9)
    survey = hvpopt.fwi.Survey(
        "scalar",
        grid_spacing=5.0,
        dt=0.001,
        sources={"u": (wavelet.repeat(2, 1, 1), torch.tensor([[[1, 2]], [[1, 7]]]))},
        receivers={"u": receivers},
        max_vel=2000.0,
        pml_freq=25.0,
        pml_width=4,
    )
    return Problem(
        name="published",
        title="a tiny one",
        misfit=RacedMisfit(survey, survey.simulate(true)),
        start=start,
        true=true,
        lower=1400.0,
        upper=1900.0,
        scale=20.0,
        mask=mask,
        budget=8.0,
    )


def traced(problem, budget=math.inf):
    first = problem.misfit.value(problem.start)
    return Trace(problem.misfit, problem.model_error, PRICES, budget, first)


def test_each_evaluation_costs_its_price():
    problem = tiny()
    trace, misfit, v = traced(problem), problem.misfit, problem.start
    misfit.value(v)
    assert trace.meter.cost == 0.25
    misfit.value_and_gradient(v)
    assert trace.meter.cost == 1.25
    misfit.hessian(v) @ torch.ones_like(v)
    assert trace.meter.cost == 2.75
    misfit.select([1]).hessian(v) @ torch.ones_like(v)
    assert trace.meter.cost == 3.5, "half the shots, half a product"
    hvpopt.fwi.source_illumination(misfit, v)  # a quarter of a product's propagations
    misfit.value(v)
    assert trace.meter.cost == 3.5 + 1.5 / 4 + 0.25
    assert trace.meter.as_dict() == {
        "values": 2,
        "gradients": 1,
        "products": 2,
        "propagations": 2 + 4 + 8 + 4 + 2 + 2,
    }


def test_trace_keeps_the_best_model_and_no_evaluation_past_the_budget():
    problem = tiny()
    trace, misfit = traced(problem, budget=0.8), problem.misfit
    worse = problem.start + 5.0
    misfit.value(problem.start)
    misfit.value(worse)
    misfit.value(problem.true)
    with pytest.raises(BudgetSpent):
        misfit.value(problem.start)
    rows = [(row.cost, row.misfit, row.error) for row in trace.improvements]
    assert rows == [(0.25, 1.0, 1.0), (0.75, 0.0, 0.0)]


def test_budget_is_no_exception_that_a_library_could_catch():
    assert not issubclass(BudgetSpent, Exception)


@pytest.mark.parametrize("entrant", ENTERED, ids=lambda entrant: entrant.slug)
def test_every_method_spends_its_budget_and_no_more(entrant):
    if entrant.name.startswith("pytorch-minimize"):
        pytest.importorskip("torchmin")
    result = race_methods.race(entrant, tiny(), PRICES, budget=25.0)
    assert result["ended"] == "budget", result["message"]
    counts = result["counts"]
    values, gradients = counts["values"], counts["gradients"]
    products = (counts["propagations"] - 2 * (values + 2 * gradients)) / 8
    counted = 0.25 * values + gradients + 1.5 * products
    assert result["cost"] == pytest.approx(counted, abs=1e-3)
    assert 25.0 < result["cost"] <= 26.5
    costs, _, misfits, _ = zip(*result["trace"], strict=True)
    assert max(costs) <= 25.0
    assert misfits[0] == pytest.approx(1.0)
    if "Shifted" not in entrant.name and "default" not in entrant.name:
        assert misfits[-1] < 0.9  # these two may need more for their first step
    assert list(misfits) == sorted(misfits, reverse=True)
    assert json.loads(json.dumps(result)) == result


def test_a_failure_is_a_result():
    def fail(_function, _trace):
        raise ArithmeticError("no")

    result = race_methods.race(race_methods.Entrant("x", fail), tiny(), PRICES, 12.0)
    assert result["ended"] == "failed"
    assert result["message"] == "ArithmeticError: no"


def test_torch_peers_get_the_derivatives_of_the_plain_loss(generator):
    problem = tiny()
    function = FlatFunction(problem, first=3.0)
    z = function.start + 0.1 * torch.rand(
        function.start.shape, generator=generator, dtype=torch.float64
    )
    w = torch.randn(z.shape, generator=generator, dtype=torch.float64)
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(function.torch(z), z, create_graph=True)
    (product,) = torch.autograd.grad(gradient, z, w)
    cells = problem.mask.reshape(-1).nonzero().reshape(-1)

    def plain(z):
        flat = problem.start.reshape(-1).index_put((cells,), 20.0 * z)
        return problem.misfit(flat.reshape(8, 10)) / 3.0

    (expected,) = torch.autograd.grad(plain(z), z)
    expected_product = torch.autograd.functional.vhp(plain, z.detach(), w)[1]
    torch.testing.assert_close(gradient.detach(), expected, rtol=PRODUCT, atol=1e-14)
    assert float((product - expected_product).norm() / product.norm()) < PRODUCT


def test_a_refused_trial_costs_nothing_and_shortens_the_step():
    problem = tiny()
    trace = traced(problem)
    function = FlatFunction(problem, first=1.0)
    fast = function.start.clone()
    fast[0] = 2001.0 / 20.0
    assert function.value(fast) == REFUSED
    value, gradient = function.value_and_gradient(fast)
    assert value == REFUSED
    assert not gradient.any()
    assert function.refused == 2
    assert trace.meter.cost == 0.0


def test_prices_are_measured():
    problem = tiny()
    prices = measure(problem.misfit, problem.start, problem.true)
    assert prices.gradient_seconds > 0
    assert 0 < prices.value < 1 < 5 * prices.product
    assert prices.misfit_at_true == 0.0


@pytest.mark.parametrize("name", [name for name in PROBLEMS if name != "published"])
def test_problems_fit_their_bounds_and_follow_the_seed(name):
    first, other = build(name, 0), build(name, 1)
    for problem in (first, other):
        true = problem.space.to_vector(problem.true)
        assert problem.space.inside(true), "the true model is within the bounds"
        assert problem.model_error(problem.start) == 1.0
        assert problem.model_error(problem.true) == 0.0
    assert first.model_error(other.true) > 0.0


def test_a_seed_makes_the_same_problem_again():
    for model in (faulted_model, layered_model):
        assert torch.equal(model(7), model(7))
        assert not torch.equal(model(7), model(8))


@pytest.mark.parametrize("name", ["fixed-spread", "streamer", "elastic-24"])
def test_surveys_of_many_shots_can_be_encoded_where_the_spread_is_fixed(name):
    problem = build_survey(name)
    assert problem.misfit.survey.n_shots >= 24
    assert problem.space.inside(problem.space.to_vector(problem.true))
    assert problem.model_error(problem.start) == 1.0
    assert bool(problem.misfit.waveforms.why_not_encoded()) == (name == "streamer")


@pytest.mark.parametrize("snr_db", [20.0, 10.0])
def test_noise_of_a_survey_is_as_far_below_its_scattered_data_as_stated(snr_db):
    clean = build_survey("streamer")
    noisy = build_survey(f"streamer-{snr_db:g}dB")
    survey = clean.misfit.survey
    water = survey.simulate(torch.full_like(clean.true, 1500.0))
    data = survey.simulate(clean.true)
    ratio = noisy.misfit.value(noisy.true) / float((data - water).square().mean())
    assert -10 * math.log10(ratio) == pytest.approx(snr_db, abs=1e-3)


def test_every_cable_of_the_streamer_is_whole_and_within_the_model():
    acquisition = build_survey("streamer").misfit.survey.arguments()
    _, sources, _ = acquisition["sources"]["u"]
    receivers, _ = acquisition["receivers"]["u"]
    assert receivers.shape == (48, 24, 2)
    assert 0 <= int(receivers[..., 1].min()) < int(receivers[..., 1].max()) < 100
    offsets = (receivers[..., 1] - sources[..., 1]).abs()
    assert torch.equal(offsets, (2 + 2 * torch.arange(24)).repeat(48, 1))


def run_of(method, costs, problem="salt", ended="budget"):
    """Return a run that falls to 0.1, 0.01, … at costs."""
    trace = [[c, 0.0, 10.0 ** -(i + 1), 0.5 / (i + 1)] for i, c in enumerate(costs)]
    data = {"ended": ended, "budget": 100.0}
    return Run(problem, 0, method, False, [[0.2, 0.0, 1.0, 1.0], *trace], data)


def test_cost_to_a_level_and_error_at_a_cost():
    run = run_of("a", [10.0, 30.0])
    assert [run.cost_to(level) for level in (0.1, 0.05, 1e-3)] == [10.0, 30.0, math.inf]
    assert [run.error_at(cost) for cost in (5.0, 29.0, 100.0)] == [1.0, 0.5, 0.25]
    assert math.isnan(run.error_at(101.0)), "the run was shorter"
    assert run_of("a", [10.0], ended="finished").error_at(101.0) == 0.5


def test_performance_profile():
    runs = [
        run_of("a", [10.0]),
        run_of("b", [20.0]),
        run_of("a", [30.0], "elastic"),
        run_of("b", [10.0], "elastic"),
        run_of("a", [], "acoustic"),
        run_of("b", [5.0], "acoustic"),
        run_of("a", [], "noisy"),
        run_of("b", [], "noisy"),
    ]
    found = profile(Results(runs, [], {}), ["a", "b"], 0.1)
    assert found == {"a": [1.0, 3.0, math.inf], "b": [1.0, 1.0, 2.0]}


def test_the_race_resumes_and_writes_its_page(tmp_path, monkeypatch):
    """In this process, with the tiny problem in the place of a real one."""
    ran = []

    def in_process(jobs, _workers, told):
        for job in jobs:
            job.run()
            ran.append(job.method)
            told(job, 0)

    monkeypatch.setattr(race, "run_all", in_process)
    monkeypatch.setattr(race, "build", lambda _name, seed, _path: tiny(seed))
    chosen = ["ShiftedNewton", "L-BFGS-B", "rate 0.1", "torch.func.grad"]
    command = ["--only", "published", "--out", str(tmp_path), "--methods", *chosen]
    assert race.main(command) == 0
    assert ran[0] is None, "prices first"
    assert len(ran) == 1 + 4
    page = (tmp_path / "RACE.md").read_text()
    shifted = next(line for line in page.splitlines() if "| **ShiftedNewton()**" in line)
    assert "| – | – | – | – |" in shifted, "its first step is over the budget"
    assert "| ShiftedNewton() (1) | 0–1–0 |" in page, "which is a loss, not an absence"
    assert "torch.func.grad, published: " in page
    pictures = list((tmp_path / "pictures").glob("*.png"))
    assert len(pictures) == 3
    assert all(path.stat().st_size < 150_000 for path in pictures)

    ran.clear()
    lost = tmp_path / "published" / "scipy-l-bfgs-b_seed0.json"
    lost.rename(lost.with_suffix(".part"))  # as a run that was killed leaves it
    assert race.main(command) == 0
    assert ran == ["scipy L-BFGS-B"]
    ran.clear()
    assert race.main([*command, "--budget", "3"]) == 0
    assert len(ran) == 4, "another budget is another run; prices stay"


def test_options_at_the_door(capsys):
    for wrong in (["--only", "marmousi"], ["--workers", "0"], ["--budget", "0"]):
        with pytest.raises(SystemExit):
            race.parse_arguments(wrong)
    assert "--marmousi" in capsys.readouterr().err
    with pytest.raises(ValueError, match="there is no problem 'salty'"):
        build("salty")
    with pytest.raises(ValueError, match="there is no survey 'salty'"):
        build_survey("salty")
    for name in MARMOUSI:
        with pytest.raises(ValueError, match="needs its file"):
            build_survey(name)
    with pytest.raises(ValueError, match="there is no method"):
        race_methods.find("x")
