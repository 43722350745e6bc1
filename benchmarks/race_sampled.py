"""Methods for surveys of many shots, and one run of one of them.

Peers are those that a user of deepwave would pick. Those that take samples of the shots
are given the same samples as hvpopt's method: encoded shots (random signs), or drawn ones
(spread evenly along the line). Each is tuned: a family is tried with every sample size
and rate, all with one seed. What ends best in misfit and what ends best in model error
are run again with other seeds.

A run is judged at fixed costs: the model that it holds when its cost reaches them, by a
misfit of its own whose evaluations are not counted.
"""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize
import torch
from race_cost import BudgetSpent, Meter, Prices
from race_methods import DEFAULT, Entrant, environment
from race_peers import ENDLESS, HISTORY, FlatFunction
from race_setup import Problem
from torch import Tensor

import hvpopt
from hvpopt.fwi.hessian.memory import PeakMemory
from hvpopt.model.tensors import Model, copy_model

#: Costs, in gradients of the whole survey, at which runs are judged.
CHECKPOINTS = (0.5, 1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0, 10.0)
#: Those of the tables, at which tries are judged too while a family is tuned.
COSTS = (2.0, 4.0, 8.0)
#: Of the samples, while a family is tuned, and of what it is compared with.
TUNING_SEED, SEEDS = 0, (1, 2, 3)
#: Of Adam, in units of a problem's scale.
RATES = (0.03, 0.1, 0.3)
#: Root mean square of SGD's first step, in the same units. On three surveys 0.1 ended at
#: a third of the start's misfit or more.
FIRST_STEPS = (0.003, 0.01, 0.03)
#: Of the online L-BFGS, relative to its quasi-Newton step.
GAINS = (0.1, 0.3, 1.0)
#: Root mean square of its first step, which has no pairs yet.
FIRST_STEP_WITHOUT_PAIRS = 0.01
#: Drawn shots a step of Adam, and of the others.
DRAWN, DRAWN_ELSE = (1, 2, 4, 8), 4
#: Encoded shots a step of Adam.
ENCODED = (1, 2)
MOMENTUM = 0.9
#: Floor of an illumination, relative to its largest entry.
ILLUMINATION_FLOOR = 1e-2


class Judge:
    """The whole misfit and the model error of a run's model at given costs.

    Args:
        problem: Whose run. Its misfit counts on a Meter from now on.
        prices: Of the problem.
        budget: In gradients.
        costs: To judge at. Default ``CHECKPOINTS``.

    Attributes:
        meter: What was spent.
        rows: Cost, misfit and model error at each checkpoint passed, both relative to
            the start's.
    """

    def __init__(
        self,
        problem: Problem,
        prices: Prices,
        budget: float,
        costs: tuple[float, ...] = CHECKPOINTS,
    ) -> None:
        # counts on the tally that the problem had until now, which nobody reads
        self._misfit = problem.misfit.with_waveforms(problem.misfit.waveforms)
        self._model_error = problem.model_error
        self.first = self._misfit.value(problem.start)
        self.meter = Meter(
            prices=prices, n_shots=problem.misfit.survey.n_shots, budget=budget
        )
        problem.misfit.counts = self.meter
        self.rows: list[list[float]] = []
        self._left = [cost for cost in costs if cost <= budget]
        self._held = problem.start
        self._judged: tuple[float, float] | None = (1.0, 1.0)
        self._began, self._paused = time.perf_counter(), 0.0

    @property
    def seconds(self) -> float:
        """Since the run began, without those of the judgements."""
        return time.perf_counter() - self._began - self._paused

    def hold(self, model: Model) -> None:
        """Take a run's next model, which it has from this cost on."""
        while self._left and self._left[0] < self.meter.cost:
            self._judge(self._left.pop(0))
        self._held, self._judged = copy_model(model), None

    def finish(self) -> None:
        """Judge the last model at all costs that are left."""
        while self._left:
            self._judge(self._left.pop(0))

    def _judge(self, cost: float) -> None:
        began = time.perf_counter()
        if self._judged is None:
            misfit = self._misfit.value(self._held) / self.first
            self._judged = misfit, self._model_error(self._held)
        self.rows.append([cost, *(float(f"{number:.5g}") for number in self._judged)])
        self._paused += time.perf_counter() - began


@dataclass(frozen=True)
class Samples:
    """Samples of a survey's shots, one for each step of a run.

    Attributes:
        size: Shots of a sample.
        encoded: True for encoded shots, false for drawn ones.
    """

    size: int
    encoded: bool

    @property
    def title(self) -> str:
        """In words."""
        return f"{self.size} {'encoded' if self.encoded else 'drawn'} a step"

    def function(self, function: FlatFunction, seed: int, step: int) -> FlatFunction:
        """Return the misfit of a step's sample, as a function of the same unknowns.

        Args:
            function: Of the whole misfit.
            seed: Of the run.
            step: Its number.
        """
        misfit, number = function.problem.misfit, seed * ENDLESS + step
        if self.encoded:
            # draws the shots of surveys that cannot be encoded, where this is not entered
            assert not misfit.waveforms.why_not_encoded()
            sample = misfit.sample(self.size, seed=number)
        else:
            sample = misfit.draw(self.size, seed=number)
        return function.of(sample)


#: Runs a method with a seed and returns why it ended.
SampledRun = Callable[[FlatFunction, Judge, int], str]


@dataclass(frozen=True)
class SurveyEntrant:
    """One method of the race on surveys of many shots.

    Attributes:
        name: In tables; files are named after it.
        run: Minimises, and returns a message if it ends before its budget.
        ours: True for hvpopt's own.
        seeds: Of its runs.
        family: Of which it is one try; empty for a method that is not tuned.
        samples: That it takes; None for all shots, or of its own choice.
        only_drawn: True if it is not entered where shots can be encoded.
        needs: The class of hvpopt that it runs; skipped where hvpopt lacks it.
    """

    name: str
    run: SampledRun
    ours: bool = False
    seeds: tuple[int, ...] = (TUNING_SEED,)
    family: str = ""
    samples: Samples | None = None
    only_drawn: bool = False
    needs: str | None = None

    @property
    def missing(self) -> bool:
        """True if this hvpopt has no such method."""
        return self.needs is not None and not hasattr(hvpopt, self.needs)

    @property
    def slug(self) -> str:
        """The name as a file's."""
        return Entrant(self.name, lambda *_: "").slug

    def enters(self, *, encodable: bool) -> bool:
        """Return whether it runs on a survey whose shots can, or cannot, be encoded."""
        if self.missing:
            return False
        if self.samples is not None and self.samples.encoded:
            return encodable
        return not (self.only_drawn and encodable)


# -- methods of samples -----------------------------------------------------------------

Optimiser = torch.optim.Optimizer


def _torch_run(
    make: Callable[[Tensor, Tensor], Optimiser], samples: Samples
) -> SampledRun:
    """Return a run of a torch optimiser, each step projected onto the bounds.

    Args:
        make: Makes the optimiser of the unknowns, given them and the first gradient.
        samples: One for each step.
    """

    def run(function: FlatFunction, judge: Judge, seed: int) -> str:
        z, space = function.start.clone(), function.problem.space
        optimiser: Optimiser | None = None
        for step in range(ENDLESS):
            _, z.grad = samples.function(function, seed, step).value_and_gradient(z)
            optimiser = optimiser or make(z, z.grad)
            optimiser.step()
            z.copy_(space.project(z))
            judge.hold(space.to_model(z))
        return "out of iterations"

    return run


def adam(rate: float, samples: Samples) -> SampledRun:
    """Return a run of Adam with a sample a step.

    Args:
        rate: In units of the scale.
        samples: One for each step.
    """
    return _torch_run(lambda z, _: torch.optim.Adam([z], lr=rate), samples)


def sgd(first_step: float, samples: Samples) -> SampledRun:
    """Return a run of SGD with momentum with a sample a step.

    Args:
        first_step: Its root mean square, in units of the scale.
        samples: One for each step.
    """

    def make(z: Tensor, gradient: Tensor) -> Optimiser:
        rate = first_step / float(gradient.square().mean().sqrt())
        return torch.optim.SGD([z], lr=rate, momentum=MOMENTUM)

    return _torch_run(make, samples)


def online_lbfgs(gain: float, samples: Samples) -> SampledRun:
    """Return a run of the online L-BFGS: pairs by two gradients of the same sample.

    Schraudolph, Yu and Günter, AISTATS 2007, with their decreasing gain τ / (τ + step), τ
    the steps of one pass over the survey, and their mean scale of the pairs. Pairs of
    negative curvature, which a convex function does not have, are left out.

    Args:
        gain: Of the first steps, relative to the quasi-Newton step.
        samples: One for each step.
    """

    def run(function: FlatFunction, judge: Judge, seed: int) -> str:
        problem = function.problem
        z, space = function.start.clone(), problem.space
        tau = problem.misfit.survey.n_shots / samples.size
        pairs: tuple[tuple[Tensor, Tensor], ...] = ()
        for step in range(ENDLESS):
            sample = samples.function(function, seed, step)
            _, gradient = sample.value_and_gradient(z)
            if pairs:
                direction = -two_loops(pairs, gradient) * gain * tau / (tau + step)
            else:
                # a small step, to learn a scale from
                size = float(gradient.square().mean().sqrt())
                direction = -gradient * (FIRST_STEP_WITHOUT_PAIRS / size)
            there = space.project(z + direction)
            s = there - z
            _, after = sample.value_and_gradient(there)
            z, y = there, after - gradient
            judge.hold(space.to_model(z))
            if float(s @ y) > 1e-8 * float(s.norm() * y.norm()):
                pairs = (*pairs, (s, y))[-HISTORY:]
        return "out of iterations"

    return run


def two_loops(pairs: tuple[tuple[Tensor, Tensor], ...], vector: Tensor) -> Tensor:
    """Return the L-BFGS inverse of pairs (s, y) times a vector.

    The two loops of Nocedal, Math. Comp. 35, 1980, about the mean of sᵀy / yᵀy.

    Args:
        pairs: Oldest first, at least one.
        vector: ``[n]``.
    """
    q, weights = vector, []
    for s, y in reversed(pairs):
        weights.append(float(s @ q) / float(s @ y))
        q = q - weights[-1] * y
    q = q * math.fsum(float(s @ y / (y @ y)) for s, y in pairs) / len(pairs)
    for (s, y), weight in zip(pairs, reversed(weights), strict=True):
        q = q + (weight - float(y @ q) / float(s @ y)) * s
    return q


# -- methods of all shots ---------------------------------------------------------------


def lbfgsb(*, illuminated: bool) -> SampledRun:
    """Return a run of SciPy's L-BFGS-B on all shots.

    Args:
        illuminated: True to search in unknowns in which the illumination is about the
            same in every cell: the wavefields' energy for one velocity (Shin, Jang and
            Min, 2001), three probes of the Gauss-Newton diagonal for several parameters.
    """

    def run(function: FlatFunction, judge: Judge, _seed: int) -> str:
        space = function.problem.space
        root = _root_illumination(function) if illuminated else torch.ones(space.size)
        root = root.to(function.start)
        low, high = space.lower, space.upper
        assert low is not None
        assert high is not None

        def both(x: np.ndarray) -> tuple[float, np.ndarray]:
            z = torch.from_numpy(x.copy()) / root
            value, gradient = function.value_and_gradient(space.project(z))
            return value, (gradient / root).numpy()

        def hold(x: np.ndarray) -> None:
            judge.hold(space.to_model(space.project(torch.from_numpy(x.copy()) / root)))

        result = scipy.optimize.minimize(
            both,
            (root * function.start).numpy(),
            jac=True,
            method="L-BFGS-B",
            bounds=scipy.optimize.Bounds((root * low).numpy(), (root * high).numpy()),
            callback=hold,
            options={
                "maxcor": HISTORY,
                "ftol": 0.0,
                "gtol": 0.0,
                "maxiter": ENDLESS,
                "maxfun": ENDLESS,
            },
        )
        return str(result.message)

    return run


def _root_illumination(function: FlatFunction) -> Tensor:
    """Return the square root of the damped illumination of each unknown, at most 1."""
    problem = function.problem
    misfit, start, space = problem.misfit, problem.start, problem.space
    if isinstance(start, Tensor):
        found = hvpopt.fwi.source_illumination(misfit, start, space=space)
    else:
        found = hvpopt.fwi.gauss_newton_diagonal(misfit, start, space=space)
    relative = found.diagonal / found.diagonal.max()
    return (relative + ILLUMINATION_FLOOR).sqrt()


def _hvpopt(needs: str | None = None, *, seeded: bool = False) -> SampledRun:
    """Return a run of hvpopt's minimize, with a method or its default.

    The meter ends it: ``max_cost`` counts propagations, whatever their price.

    Args:
        needs: The method's class; None for the default.
        seeded: True if it takes a seed.
    """

    def run(function: FlatFunction, judge: Judge, seed: int) -> str:
        problem = function.problem
        options: dict[str, Any] = {}
        if needs is not None:
            chosen = {"seed": seed} if seeded else {}
            options["method"] = getattr(hvpopt, needs)(**chosen)
        result = hvpopt.minimize(
            problem.misfit,
            problem.start,
            scale=problem.scale,
            mask=problem.mask,
            lower=problem.lower,
            upper=problem.upper,
            max_iter=ENDLESS,
            gtol=0.0,
            callback=lambda model, _record: judge.hold(model),
            **options,
        )
        judge.hold(result.x)
        return result.message

    return run


# -- who runs ---------------------------------------------------------------------------


def _tries(
    family: str,
    make: Callable[[float, Samples], SampledRun],
    rates: tuple[float, ...],
    sizes: tuple[int, ...],
    *,
    encoded: bool,
    only_drawn: bool = False,
) -> list[SurveyEntrant]:
    """Return a family: every sample size with every rate."""
    kind = "encoded" if encoded else "drawn"
    tries = []
    for size, rate in itertools.product(sizes, rates):
        samples = Samples(size, encoded)
        tries.append(
            SurveyEntrant(
                f"{family}, {samples.title}, {rate:g}",
                make(rate, samples),
                family=f"{family}, {kind} shots",
                samples=samples,
                only_drawn=only_drawn,
            )
        )
    return tries


SURVEY_ENTRANTS: tuple[SurveyEntrant, ...] = (
    SurveyEntrant(DEFAULT, _hvpopt(), ours=True),
    SurveyEntrant(
        "StochasticQuasiNewton()",
        _hvpopt("StochasticQuasiNewton", seeded=True),
        ours=True,
        seeds=SEEDS,
        needs="StochasticQuasiNewton",
    ),
    SurveyEntrant(
        "QuasiNewton(), all shots", _hvpopt("QuasiNewton"), ours=True, needs="QuasiNewton"
    ),
    SurveyEntrant("scipy L-BFGS-B", lbfgsb(illuminated=False)),
    SurveyEntrant("scipy L-BFGS-B, illumination", lbfgsb(illuminated=True)),
    *_tries("torch Adam", adam, RATES, ENCODED, encoded=True),
    *_tries("torch Adam", adam, RATES, DRAWN, encoded=False),
    *_tries("torch SGD", sgd, FIRST_STEPS, (1,), encoded=True),
    *_tries("torch SGD", sgd, FIRST_STEPS, (DRAWN_ELSE,), encoded=False, only_drawn=True),
    *_tries("online L-BFGS", online_lbfgs, GAINS, (1,), encoded=True),
    *_tries(
        "online L-BFGS",
        online_lbfgs,
        GAINS,
        (DRAWN_ELSE,),
        encoded=False,
        only_drawn=True,
    ),
)


def find_survey_entrant(name: str) -> SurveyEntrant:
    """Return a method by its name.

    Raises:
        ValueError: If there is none.
    """
    for entrant in SURVEY_ENTRANTS:
        if entrant.name == name:
            return entrant
    known = "; ".join(entrant.name for entrant in SURVEY_ENTRANTS)
    raise ValueError(f"there is no method {name!r}; there are: {known}")


def race_survey(
    entrant: SurveyEntrant, problem: Problem, prices: Prices, budget: float, seed: int
) -> dict[str, Any]:
    """Run one method on one survey and return what became of it, for JSON.

    Args:
        entrant: The method.
        problem: To minimise; its misfit counts for this run alone from now on.
        prices: Of the problem.
        budget: In gradients.
        seed: Of the samples.
    """
    with PeakMemory() as peak, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tried = entrant.family and seed == TUNING_SEED
        judge = Judge(problem, prices, budget, COSTS if tried else CHECKPOINTS)
        function = FlatFunction(problem, judge.first)
        try:
            ended, message = "finished", entrant.run(function, judge, seed)
        except BudgetSpent:
            ended, message = "budget", ""
        except Exception as error:  # a method's failure is a result of the race
            ended, message = "failed", f"{type(error).__name__}: {error}"
        seconds = judge.seconds
        judge.finish()
    return {
        "problem": problem.name,
        "method": entrant.name,
        "family": entrant.family,
        "ours": entrant.ours,
        "budget": budget,
        "ended": ended,
        "message": message[:500],
        "cost": round(judge.meter.cost, 3),
        "seconds": round(seconds, 2),
        "peak_bytes": peak.bytes,
        "counts": judge.meter.as_dict(),
        "columns": ["cost", "misfit", "error"],
        "judged": judge.rows,
        "environment": environment(),
    }
