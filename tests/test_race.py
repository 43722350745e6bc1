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
import race_sampled
from race_cost import BudgetSpent, Prices, RacedMisfit, Trace, measure
from race_peers import REFUSED, FlatFunction
from race_problems import PROBLEMS, build, faulted_model
from race_results import Results, Run, profile
from race_sampled import COSTS, Judge, Samples, SurveyEntrant, race_survey, two_loops
from race_setup import Problem
from race_survey_report import ERROR, MISFIT, SurveyRun, best_tries, survey_section
from race_surveys import (
    MARMOUSI,
    SURVEYS,
    build_survey,
    encodable,
    layered_model,
)

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


@pytest.mark.parametrize(
    ("make", "share"),
    [
        (lambda misfit: misfit.sample(1, seed=3), 0.5),  # one encoded shot of two
        (lambda misfit: misfit.sample(2, seed=3), 1.0),
        (lambda misfit: misfit.draw(1, seed=3), 0.5),
        (lambda misfit: misfit.encode(torch.ones(1, 2)), 0.5),
        (lambda misfit: misfit.draw(1, seed=3).select([0]), 0.5),
    ],
    ids=["sample 1", "sample 2", "draw", "encode", "of a sample"],
)
def test_an_evaluation_of_a_sample_costs_the_share_of_its_shots(make, share):
    problem = tiny()
    trace, v = traced(problem), problem.start
    sample = make(problem.misfit)
    for evaluate, price in (
        (lambda: sample.value_and_gradient(v), 1.0),
        (lambda: sample.value(v), 0.25),
        (lambda: sample.hessian(v) @ torch.ones_like(v), 1.5),
        (lambda: sample.value_and_gradient(v), 1.0),
        (lambda: problem.misfit.value_and_gradient(v), 1.0 / share),
    ):
        before = trace.meter.cost
        evaluate()
        assert trace.meter.cost - before == share * price
    assert len(trace.improvements) == 1, "a sample's misfit is not the whole one"


def test_a_sample_that_passes_the_budget_ends_the_run():
    problem = tiny()
    trace = traced(problem, budget=1.2)
    sample = problem.misfit.sample(1, seed=0)
    for cost in (0.5, 1.0, 1.5):
        sample.value_and_gradient(problem.start)
        assert trace.meter.cost == cost
    with pytest.raises(BudgetSpent):
        sample.value_and_gradient(problem.start)
    assert trace.meter.cost == 1.5


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


def test_a_price_is_the_median_of_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(race, "PRICE_PROCESSES", 2)
    prices = race.median_price(race.Job("published", 0, tmp_path))
    assert 0 < prices.value < 1 < 5 * prices.product


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
    assert bool(problem.misfit.waveforms.why_not_encoded()) != encodable(name)


def test_noise_of_a_survey_is_as_far_below_its_scattered_data_as_stated():
    clean = build_survey("streamer")
    water = clean.misfit.survey.simulate(torch.full_like(clean.true, 1500.0))
    (data,) = clean.misfit.waveforms.observed.values()
    for snr_db in (20.0, 10.0):
        noisy = build_survey(f"streamer-{snr_db:g}dB")
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


# -- surveys of many shots --------------------------------------------------------------

#: Entrants of surveys, one of each way to make a step.
SURVEYED = [
    entrant
    for entrant in race_sampled.SURVEY_ENTRANTS
    if not entrant.missing and not entrant.name.endswith(("0.3", "0.01", "0.03"))
]


@pytest.mark.parametrize("entrant", SURVEYED, ids=lambda entrant: entrant.slug)
def test_every_method_of_surveys_is_judged_at_each_cost(entrant):
    if entrant.samples is not None and entrant.samples.size > 2:
        pytest.skip("the tiny survey has two shots")
    result = race_survey(entrant, tiny(), PRICES, budget=8.0, seed=1)
    assert result["ended"] == "budget", result["message"]
    assert 8.0 < result["cost"] <= 8.0 + 1.5
    costs = [cost for cost in race_sampled.CHECKPOINTS if cost <= 8.0]
    assert [row[0] for row in result["judged"]] == costs
    assert result["judged"][-1][1] < 1.0
    assert json.loads(json.dumps(result)) == result


def test_a_run_is_judged_by_the_model_that_it_holds_at_a_cost():
    problem = tiny()
    judge = Judge(problem, PRICES, budget=3.0)
    misfit, model_error = problem.misfit, problem.model_error
    between = 0.5 * (problem.start + problem.true)
    expected = misfit.value(between) / judge.first
    misfit.value_and_gradient(problem.start)
    assert judge.meter.cost == 1.25
    judge.hold(between)
    misfit.value_and_gradient(between)
    judge.hold(problem.true)
    judge.finish()
    held = {cost: rest for cost, *rest in judge.rows}
    halfway = [pytest.approx(expected, rel=1e-4), pytest.approx(0.5)]
    assert held[1.0] == [1.0, 1.0], "held from the start"
    assert held[2.0] == halfway, "held from cost 1.25 to 2.25"
    assert held[3.0] == [0.0, model_error(problem.true)]
    expected_costs = [cost for cost in race_sampled.CHECKPOINTS if cost <= 3.0]
    assert list(held) == expected_costs, "none over the budget"
    assert judge.meter.cost == 2.25, "a judgement costs nothing"


def test_a_method_that_fails_on_a_survey_keeps_what_it_held():
    def fail(function, judge, _seed):
        judge.hold(function.problem.true)
        raise ArithmeticError("no")

    result = race_survey(SurveyEntrant("x", fail), tiny(), PRICES, 1.0, 0)
    assert (result["ended"], result["message"]) == ("failed", "ArithmeticError: no")
    assert result["judged"] == [[0.5, 0.0, 0.0], [1.0, 0.0, 0.0]]


def test_samples_of_steps_and_seeds_differ():
    problem = tiny()
    function = race_sampled.FlatFunction(problem, first=1.0)
    # the tiny survey is symmetric, so that either of its shots has the same misfit
    values = {
        Samples(1, encoded=True).function(function, seed, step).value(function.start)
        for seed in (1, 2)
        for step in range(6)
    }
    assert len(values) == 2, "equal signs and opposite ones"


def test_two_loops_map_changes_of_the_gradient_to_steps(generator):
    hessian = torch.diag(torch.arange(1.0, 6.0, dtype=torch.float64))
    steps = torch.eye(5, dtype=torch.float64)
    pairs = tuple((s, hessian @ s) for s in steps)
    vector = torch.randn(5, generator=generator, dtype=torch.float64)
    found = two_loops(pairs, vector)
    torch.testing.assert_close(found, torch.linalg.solve(hessian, vector))


def test_unknowns_scaled_by_illumination_are_minimised_in_the_same_bounds():
    problem = tiny()
    judge = Judge(problem, PRICES, budget=30.0)
    function = race_sampled.FlatFunction(problem, judge.first)
    held = []
    judge.hold = held.append
    with pytest.raises(BudgetSpent):
        race_sampled.lbfgsb(illuminated=True)(function, judge, 0)
    assert all(problem.space.inside(problem.space.to_vector(model)) for model in held)
    judge.meter.budget = math.inf
    assert problem.misfit.value(held[-1]) < 0.1 * judge.first
    assert function.refused == 0


def survey_run(method, judged, seed=0, family="", problem="streamer", ours=False):
    data = {"ended": "budget", "cost": 8.0, "seconds": 1.0}
    return SurveyRun(problem, seed, method, family, ours, judged, data)


def test_costs_between_checkpoints_are_interpolated_in_the_logarithm():
    run = survey_run("a", [[2.0, 1e-1, 0.9], [4.0, 1e-3, 0.8]])
    assert run.cost_to(1e-1) == 2.0
    assert run.cost_to(1e-2) == pytest.approx(3.0)
    assert run.cost_to(1e-3) == pytest.approx(4.0)
    assert run.cost_to(1e-4) == math.inf
    assert (run.at(4.0, MISFIT), run.at(4.0, ERROR)) == (1e-3, 0.8)
    assert math.isnan(run.at(8.0, MISFIT))


def test_the_best_tries_are_those_that_end_best_in_misfit_and_in_error():
    a = survey_run("a", [[8.0, 1e-2, 0.7]], family="f")
    b = survey_run("b", [[8.0, 1e-1, 0.6]], family="f")
    spoilt = survey_run("c", [[8.0, math.nan, math.nan]], family="f")
    assert best_tries([spoilt, a, b]) == {"a": "best misfit", "b": "best error"}
    assert best_tries([a, spoilt]) == {"a": "best misfit and error"}


def test_a_race_on_a_survey_tunes_resumes_and_writes_its_section(tmp_path, monkeypatch):
    """In this process, with the tiny problem in the place of a real one."""
    ran = []

    def in_process(jobs, _workers, told):
        for job in jobs:
            job.run()
            ran.append((job.method, job.seed))
            told(job, 0)

    monkeypatch.setattr(race, "run_all", in_process)
    monkeypatch.setattr(race, "PRICE_PROCESSES", 1)
    monkeypatch.setattr(race, "build_survey", lambda _name, **_: tiny())
    command = ["--only", "fixed-spread", "--out", str(tmp_path)]
    command += ["--methods", "Adam, 1 encoded", "L-BFGS-B", "minimize"]
    command += ["--budget", "4"]
    assert race.main(command) == 0
    assert ran[0] == (None, 0), "prices first"
    tried = [job for job in ran[1:] if "Adam" in job[0] and job[1] == 0]
    assert len(tried) == len(race_sampled.RATES)
    tuned = [job for job in ran if job[1] in race_sampled.SEEDS]
    assert len(tuned) in (3, 6), "the best in misfit, and the best in error"
    page = (tmp_path / "RACE.md").read_text()
    section = page[page.index("## Surveys of many shots") :]
    assert "**hvpopt.minimize, default**" in section
    rows = [line for line in section.splitlines() if line.startswith("| torch Adam")]
    assert len(rows) == len(tuned) / 3
    assert all("of 3)" in row for row in rows)
    pictures = [path.name for path in (tmp_path / "pictures").glob("*.png")]
    assert sorted(pictures) == ["surveys_error.png", "surveys_misfit.png"]
    assert all(f"pictures/{name}" in section for name in pictures)
    summary = next(x for x in section.splitlines() if x.startswith("| hvpopt.minimize"))
    _, _, *counts, _, _ = summary.split("|")
    assert sum(map(int, counts)) == 2 * sum(cost <= 4 for cost in COSTS)

    ran.clear()
    lost = tmp_path / "fixed-spread" / "scipy-l-bfgs-b_seed0.json"
    lost.rename(lost.with_suffix(".part"))
    assert race.main(command) == 0
    assert ran == [("scipy L-BFGS-B", 0)]
    assert survey_section(tmp_path / "nothing") == ""


def test_methods_of_samples_are_entered_where_they_can_be_taken():
    def families(name):
        jobs = race.survey_jobs(name, race.parse_arguments([]))
        found = [race_sampled.find_survey_entrant(j.method) for j in jobs if j.method]
        return {entrant.family for entrant in found if entrant.family}

    assert all("drawn" in family for family in families("streamer"))
    encoded = {"torch Adam", "torch SGD", "online L-BFGS"}
    expected = {f"{name}, encoded shots" for name in encoded}
    assert families("fixed-spread") == expected | {"torch Adam, drawn shots"}
    assert set(map(encodable, SURVEYS)) == {True, False}


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
    monkeypatch.setattr(race, "PRICE_PROCESSES", 1)
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
    files = (["--only", "marmousi"], ["--only", "marmousi-48"])
    for wrong in (*files, ["--workers", "0"], ["--budget", "0"]):
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
    with pytest.raises(ValueError, match="there is no method"):
        race_sampled.find_survey_entrant("x")
