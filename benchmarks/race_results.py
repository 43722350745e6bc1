"""Results of the race, read from its files, and what tables and pictures ask of them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from race_methods import ADAM, ENTRANTS
from race_problems import PROBLEMS

#: Fractions of the start's misfit that runs are timed to.
LEVELS = (1e-1, 1e-2, 1e-3, 1e-4)
#: Costs, in gradients, at which model errors are compared.
COSTS = (25.0, 50.0, 100.0)
BEST_ADAM = "torch Adam, best rate"


@dataclass(frozen=True)
class Run:
    """One run, as its file tells it.

    Attributes:
        problem: By name.
        seed: Of the problem.
        method: By name.
        ours: True for hvpopt's.
        trace: Rows of cost, seconds, misfit and model error, one for each improvement.
        data: Everything else.
    """

    problem: str
    seed: int
    method: str
    ours: bool
    trace: list[list[float]]
    data: dict[str, Any]

    @property
    def where(self) -> tuple[str, int]:
        """The problem and its seed, on which runs compare."""
        return self.problem, self.seed

    def cost_to(self, level: float) -> float:
        """Return the cost at which the misfit fell to a level; infinite if never."""
        return next((row[0] for row in self.trace if row[2] <= level), math.inf)

    def error_at(self, cost: float) -> float:
        """Return the error of the best model at a cost; NaN where the run was shorter.

        A run that ended by itself keeps its last model.
        """
        if self.data["ended"] == "budget" and self.data["budget"] < cost:
            return math.nan
        found = [row[3] for row in self.trace if row[0] <= cost]
        return found[-1] if found else math.nan

    @property
    def misfit(self) -> float:
        """The best misfit, relative to the start's."""
        return self.trace[-1][2] if self.trace else math.inf

    @property
    def error(self) -> float:
        """The error of the best model, relative to the start's."""
        return self.trace[-1][3] if self.trace else math.nan


@dataclass(frozen=True)
class Results:
    """Every file of a race.

    Attributes:
        runs: Those that evaluated the misfit, even if they never lowered it, and all of
            hvpopt's: a method that fails or stalls has lost, and is counted so.
        failures: Peers that never came to evaluate it.
        prices: Of each problem and seed, as saved.
    """

    runs: list[Run]
    failures: list[Run]
    prices: dict[tuple[str, int], dict[str, Any]]

    @property
    def problems(self) -> list[str]:
        """Names of the problems, in the order of the race."""
        present = {problem for problem, _ in self.prices}
        return [name for name in [*PROBLEMS, "marmousi"] if name in present]

    @property
    def instances(self) -> list[tuple[str, int]]:
        """Problems and seeds with runs."""
        return sorted({run.where for run in self.runs})

    def methods(self, problem: str | None = None) -> list[str]:
        """Return the methods with runs, on one problem or on any, in order."""
        present = {r.method for r in self.runs if problem in (None, r.problem)}
        return [entrant.name for entrant in ENTRANTS if entrant.name in present]

    def of(self, method: str, problem: str | None = None) -> list[Run]:
        """Return a method's runs, on one problem or on all."""
        return [
            run
            for run in self.runs
            if run.method == method and problem in (None, run.problem)
        ]

    def with_best_adam(self) -> Results:
        """Return the results with the best rate of Adam on each instance for all rates.

        The best is the one with the lowest final misfit; finding it cost all the runs.
        """
        rates = [run for run in self.runs if run.method.startswith(ADAM)]
        best: dict[tuple[str, int], Run] = {}
        for run in rates:
            if run.where not in best or run.misfit < best[run.where].misfit:
                best[run.where] = run
        chosen = [replace(run, method=BEST_ADAM) for run in best.values()]
        others = [run for run in self.runs if not run.method.startswith(ADAM)]
        return replace(self, runs=[*others, *chosen])

    def where_most_ran(self) -> Results:
        """Return the results of the instances that half of the methods or more ran on."""
        ran = dict.fromkeys(self.instances, 0)
        for run in self.runs:
            ran[run.where] += 1
        enough = {where for where, n in ran.items() if 2 * n >= max(ran.values())}
        return replace(self, runs=[run for run in self.runs if run.where in enough])

    def everywhere(self) -> list[str]:
        """Return the methods that ran on every instance, in order."""
        names = [*(entrant.name for entrant in ENTRANTS), BEST_ADAM]
        return [
            name
            for name in names
            if {run.where for run in self.of(name)} == set(self.instances)
        ]


def load(folder: Path) -> Results:
    """Return the results in a folder, one subfolder for each problem.

    Args:
        folder: With files ``<problem>/<method>_seed<n>.json``. Those of surveys of many
            shots are left to ``race_survey_report``.

    Raises:
        FileNotFoundError: If it holds none, of surveys of many shots either.
    """
    runs, failures, prices = [], [], {}
    order = {entrant.name: i for i, entrant in enumerate(ENTRANTS)}
    paths = sorted(folder.glob("*/*_seed*.json"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no results; run the race first")
    for path in paths:
        if path.parent.name not in [*PROBLEMS, "marmousi"]:
            continue
        data = json.loads(path.read_text())
        if "method" not in data:
            prices[data["problem"], data["seed"]] = data
        elif data["method"] in order:
            run = Run(
                data["problem"],
                data["seed"],
                data["method"],
                data["ours"],
                data.pop("trace"),
                data,
            )
            (runs if run.trace or run.ours else failures).append(run)
    runs.sort(key=lambda run: order[run.method])
    return Results(runs, failures, prices)


def median(numbers: Iterable[float]) -> float:
    """Return the median, NaN of nothing; a median between finite and infinite is inf."""
    known = [number for number in numbers if not math.isnan(number)]
    return statistics.median(known) if known else math.nan


def profile(results: Results, methods: list[str], level: float) -> dict[str, list[float]]:
    """Return each method's cost ratios to the best one, sorted: a performance profile.

    The fraction of instances with a ratio up to t is ρ(t) of Dolan and Moré, Math.
    Program. 91, 2002. Instances that no method solved are left out.

    Args:
        results: Of the race.
        methods: To compare; the best is the best of these.
        level: Fraction of the start's misfit that counts as solved.
    """
    costs = {
        method: {run.where: run.cost_to(level) for run in results.of(method)}
        for method in methods
    }
    best = {
        where: min((row.get(where, math.inf) for row in costs.values()), default=math.inf)
        for where in results.instances
    }
    solved = [where for where, cost in best.items() if cost < math.inf]
    return {
        method: sorted(row.get(where, math.inf) / best[where] for where in solved)
        for method, row in costs.items()
    }
