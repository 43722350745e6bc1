"""The race on surveys of many shots: its results, and the page's section on them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from race_results import median
from race_sampled import CHECKPOINTS, COSTS, MOMENTUM, SEEDS, SURVEY_ENTRANTS, TUNING_SEED
from race_surveys import MARMOUSI, SURVEYS
from race_tables import table

#: Fractions of the start's misfit that costs are interpolated to.
LEVELS = (1e-1, 1e-2, 1e-3)
#: A ratio to the best peer up to which a number is nearly as good.
NEAR = 1.1
#: The method that ``minimize`` takes for these surveys.
SAMPLED = "StochasticQuasiNewton()"
#: Names of the quantities that are judged, by their column.
MISFIT, ERROR = 1, 2


@dataclass(frozen=True)
class SurveyRun:
    """One run, as its file tells it.

    Attributes:
        problem: By name.
        seed: Of its samples.
        method: By name.
        family: That it is a try of; empty for a method that is not tuned.
        ours: True for hvpopt's.
        judged: Rows of cost, misfit and model error at each checkpoint.
        data: Everything else.
    """

    problem: str
    seed: int
    method: str
    family: str
    ours: bool
    judged: list[list[float]]
    data: dict[str, Any]

    @property
    def is_try(self) -> bool:
        """True for one that a family was tuned with."""
        return bool(self.family) and self.seed == TUNING_SEED

    def at(self, cost: float, column: int) -> float:
        """Return the misfit or the model error at a checkpoint; NaN if there is none."""
        found = (row[column] for row in self.judged if row[0] == cost)
        return next(found, math.nan)

    def final(self, column: int) -> float:
        """Return the misfit or the model error at the last checkpoint; inf of none."""
        value = self.judged[-1][column] if self.judged else math.inf
        return value if math.isfinite(value) else math.inf

    def cost_to(self, level: float) -> float:
        """Return the cost at which the misfit passed a level; infinite if never.

        The logarithm of the misfit is interpolated linearly between checkpoints.

        Args:
            level: Fraction of the start's misfit.
        """
        cost, misfit = 0.0, 1.0
        for next_cost, next_misfit, _ in self.judged:
            if next_misfit <= 0.0:
                return next_cost
            if next_misfit <= level:
                share = math.log(misfit / level) / math.log(misfit / next_misfit)
                return cost + share * (next_cost - cost)
            cost, misfit = next_cost, next_misfit
        return math.inf


@dataclass(frozen=True)
class Row:
    """A line of a table: a method's runs on a problem, of several seeds.

    Attributes:
        title: Of the method, with its tuning.
        label: The same on every problem: of a family, in what it ended best.
        runs: Of its seeds.
    """

    title: str
    label: str
    runs: list[SurveyRun]

    @property
    def ours(self) -> bool:
        """True for hvpopt's."""
        return self.runs[0].ours

    def at(self, cost: float, column: int) -> float:
        """Return the median over seeds at a checkpoint."""
        return median(run.at(cost, column) for run in self.runs)


@dataclass(frozen=True)
class SurveyResults:
    """Every file of the race on surveys of many shots.

    Attributes:
        runs: All of them, tries as well.
        prices: Of each problem, as saved.
    """

    runs: list[SurveyRun]
    prices: dict[str, dict[str, Any]]

    @property
    def problems(self) -> list[str]:
        """Names of the problems with runs, in the order of the page."""
        present = {run.problem for run in self.runs}
        return [name for name in [*SURVEYS, *MARMOUSI] if name in present]

    def families(self, problem: str) -> dict[str, list[SurveyRun]]:
        """Return the tries of each family on a problem."""
        tries: dict[str, list[SurveyRun]] = {}
        for run in self.runs:
            if run.problem == problem and run.is_try:
                tries.setdefault(run.family, []).append(run)
        return tries

    def rows(self, problem: str, *, every: bool = False) -> list[Row]:
        """Return a problem's lines, in the order of the race.

        Of a family there are the tries that ended best, with the runs of their own seeds;
        where those are missing, with the try itself.

        Args:
            problem: By name.
            every: True for all tries of a family.
        """
        chosen: dict[str, tuple[str, str]] = {}
        for family, tries in self.families(problem).items():
            for name, why in best_tries(tries).items():
                chosen[name] = f"{name} ({why} of {len(tries)})", f"{family}, {why}"
        rows = []
        for entrant in SURVEY_ENTRANTS:
            runs = [
                run
                for run in self.runs
                if run.problem == problem and run.method == entrant.name
            ]
            if entrant.family:
                runs = [run for run in runs if not run.is_try] or runs
                if entrant.name not in chosen and not every:
                    continue
            if runs:
                title, label = chosen.get(entrant.name, (entrant.name, entrant.name))
                rows.append(Row(title, label, runs))
        return rows


def best_tries(tries: Sequence[SurveyRun]) -> dict[str, str]:
    """Return the methods that ended best, and in what: in misfit, in error or in both.

    Args:
        tries: Of one family on one problem, all with the same seed.
    """
    by_misfit = min(tries, key=lambda run: run.final(MISFIT)).method
    by_error = min(tries, key=lambda run: run.final(ERROR)).method
    if by_misfit == by_error:
        return {by_misfit: "best misfit and error"}
    return {by_misfit: "best misfit", by_error: "best error"}


def load_surveys(folder: Path) -> SurveyResults:
    """Return the results in a folder, one subfolder for each problem.

    Args:
        folder: With files ``<problem>/<method>_seed<n>.json``.
    """
    runs, prices = [], {}
    known = {entrant.name for entrant in SURVEY_ENTRANTS}
    for problem in [*SURVEYS, *MARMOUSI]:
        for path in sorted((folder / problem).glob("*_seed*.json")):
            data = json.loads(path.read_text())
            if "method" not in data:
                prices[problem] = data
            elif data["method"] in known:
                runs.append(
                    SurveyRun(
                        problem,
                        data["seed"],
                        data["method"],
                        data["family"],
                        data["ours"],
                        data.pop("judged"),
                        data,
                    )
                )
    return SurveyResults(runs, prices)


# -- the page's section -----------------------------------------------------------------


def survey_section(folder: Path, pictures: Sequence[Path] = ()) -> str:
    """Return the section from the files in a folder; empty if there is no run.

    Args:
        folder: Of the race's files.
        pictures: To show. Default none.
    """
    results = load_surveys(folder)
    if not results.runs:
        return ""
    parts = [_introduction(results), _summary(results), at_a_glance(results)]
    parts += [f"![{path.stem}](pictures/{path.name})" for path in pictures]
    parts += [_problem(results, name) for name in results.problems]
    return "\n\n".join(part for part in parts if part)


def _introduction(results: SurveyResults) -> str:
    tuning = [run for run in results.runs if run.is_try]
    spent = sum(run.data["cost"] for run in tuning)
    others = ", ".join(f"{cost:g}" for cost in CHECKPOINTS if cost not in COSTS)
    return f"""## Surveys of many shots

Cost is in gradients of the whole survey, as above: of a sample of k of n shots, drawn or
encoded, a gradient costs k / n, and values and products their prices times k / n. A run
is judged by the model that it holds when its cost reaches 2, 4 and 8 ({others} as
well, in the files): whole misfit and model error, relative to the start's, of the current
iterate, not the best, by a misfit whose evaluations are not counted. Costs to a level are
interpolated between these, linearly in the misfit's logarithm.

Peers that take samples are given those of hvpopt: encoded shots have random signs, drawn
ones are spread evenly along the line. Of each family sample sizes and rates were tried
with one seed, as many as its title says ({len(tuning)} runs in all, {spent:.0f}
gradients of tuning, which no table charges). The one that ended best in misfit
and the one that ended best in model error were run again with seeds
{", ".join(map(str, SEEDS))}: median, and smallest to largest in brackets (no brackets
where only the try has been run).

The last number of a name is what is tuned: for Adam the rate, in units of the problem's
scale; for SGD (momentum {MOMENTUM:g}) the root mean square of its first step in these
units; for the online L-BFGS (Schraudolph, Yu and Günter 2007: pairs by two gradients of
one sample) a gain on its quasi-Newton step, halved in one pass over the survey.
"L-BFGS-B, illumination" searches in unknowns scaled by the root of the source
illumination (three probes of the Gauss-Newton diagonal for several parameters), whose
cost is counted."""


def _summary(results: SurveyResults) -> str:
    """Return how ours compare with the best of all peers, one by one comparison."""
    names = [entrant.name for entrant in SURVEY_ENTRANTS if entrant.ours]
    lines = []
    for name in names:
        ratios = [
            ratio
            for problem in results.problems
            for ratio in _ratios(results.rows(problem, every=True), name)
        ]
        if ratios:
            won = sum(ratio <= 1.0 for ratio in ratios)
            near = sum(1.0 < ratio <= NEAR for ratio in ratios)
            lines.append(
                [
                    name,
                    str(won),
                    str(near),
                    str(len(ratios) - won - near),
                    f"{max(ratios):.2f}",
                ]
            )
    if not lines:
        return ""
    head = [
        "method",
        "at or under the best peer",
        f"within {NEAR:g} times",
        "worse",
        "worst ratio",
    ]
    return "\n".join(
        [
            "Misfit and model error at costs 2, 4 and 8 on every problem, against the "
            "best of all peers at that cost in that quantity, tries of the tuning "
            "included, which need not be the same peer from one comparison to the next:",
            "",
            table(head, lines),
        ]
    )


def _ratios(rows: Sequence[Row], name: str) -> list[float]:
    """Return a method's ratios to the best peer; infinite where it has no number."""
    own = next((row for row in rows if row.runs[0].method == name), None)
    if own is None:
        return []
    ratios = []
    for cost in COSTS:
        for column in (MISFIT, ERROR):
            best = best_peer(rows, cost, column)
            ratio = own.at(cost, column) / best
            if math.isfinite(best):
                ratios.append(ratio if math.isfinite(ratio) else math.inf)
    return ratios


def best_peer(rows: Iterable[Row], cost: float, column: int) -> float:
    """Return the best peer's median at a checkpoint; NaN if there is none."""
    numbers = [row.at(cost, column) for row in rows if not row.ours]
    return min((n for n in numbers if math.isfinite(n)), default=math.nan)


def at_a_glance(results: SurveyResults) -> str:
    """Return a table of the sampled method beside the best peer for each number."""
    lines = []
    for problem in results.problems:
        rows = results.rows(problem, every=True)
        own = next((row for row in rows if row.runs[0].method == SAMPLED), None)
        if own is not None:
            cells = (
                f"{own.at(cost, MISFIT):.1e} / {own.at(cost, ERROR):.2f} "
                f"({best_peer(rows, cost, MISFIT):.1e} / "
                f"{best_peer(rows, cost, ERROR):.2f})"
                for cost in COSTS
            )
            lines.append([problem, *cells])
    if not lines:
        return ""
    return "\n".join(
        [
            f"Misfit / model error of {SAMPLED}, medians over seeds; in brackets the "
            "best peer's of each number, tries included:",
            "",
            table(["survey", *(f"cost {cost:g}" for cost in COSTS)], lines),
        ]
    )


def _problem(results: SurveyResults, name: str) -> str:
    one = results.prices[name]
    lines = [
        f"### {name}",
        "",
        f"{one['title'][0].upper()}{one['title'][1:]}. {one['size']}. A gradient takes "
        f"{one['gradient_seconds']:.2f} s; r_v = {one['value']:.2f}, "
        f"r_p = {one['product']:.2f}.",
    ]
    if one["misfit_at_true"] > 0:
        lines.append(
            f"The true model has {one['misfit_at_true']:.2g} of the start's misfit."
        )
    head = [
        "method",
        *(f"misfit at {cost:g}" for cost in COSTS),
        *(f"error at {cost:g}" for cost in COSTS),
        *(f"cost to {level:g}" for level in LEVELS),
        "seconds",
        "ended by",
    ]
    return "\n".join([*lines, "", table(head, map(_line, results.rows(name)))])


def _line(row: Row) -> list[str]:
    runs = row.runs
    ended = ", ".join(dict.fromkeys(run.data["ended"] for run in runs))
    return [
        f"**{row.title}**" if row.ours else row.title,
        *(_spread((run.at(cost, MISFIT) for run in runs), "{:.1e}") for cost in COSTS),
        *(_spread((run.at(cost, ERROR) for run in runs), "{:.3f}") for cost in COSTS),
        *(_spread((run.cost_to(level) for run in runs), "{:.1f}") for level in LEVELS),
        f"{median(run.data['seconds'] for run in runs):.0f}",
        ended,
    ]


def _spread(numbers: Iterable[float], form: str) -> str:
    """Return the median, and the smallest and largest in brackets where they differ."""
    known = sorted(number for number in numbers if not math.isnan(number))
    if not known:
        return "–"
    low, middle, high = (
        form.format(number) if math.isfinite(number) else "–"
        for number in (known[0], median(known), known[-1])
    )
    return middle if low == high else f"{middle} ({low} to {high})"
