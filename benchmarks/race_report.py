"""RACE.md from the race's files: tables for each problem, and ours against L-BFGS-B."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from pathlib import Path

from race_methods import ADAM_RATES, DEFAULT, REFERENCE
from race_peers import HISTORY, REFUSED
from race_results import COSTS, LEVELS, Results, Run, load, median, profile
from race_survey_report import load_surveys, survey_section
from race_tables import number, table

#: Levels and cost of the first table.
GLANCE_LEVELS, GLANCE_COST = (1e-2, 1e-3), 50.0
#: Ratios of cost this near to 1, and errors this near to each other, are ties.
TIE = 0.05
#: Ratios to the best method at which the profiles' table reads them.
RATIOS = (1.0, 1.5, 2.0, 4.0)


def write(folder: Path, beside: Path) -> Path:
    """Write the page and its pictures from the files in a folder.

    Args:
        folder: With the race's JSON files.
        beside: Where ``RACE.md`` and ``pictures/`` go.

    Returns:
        The page's path.
    """
    # here, so that the processes of the race need no matplotlib
    from race_pictures import draw, draw_surveys

    results = load(folder)
    sections = [introduction(results)]
    if results.runs:
        tuned = results.with_best_adam()
        pictures = draw(tuned, beside / "pictures")
        sections += [
            at_a_glance(results),
            against_reference(results),
            profiles(tuned),
            *(f"![{path.stem}](pictures/{path.name})" for path in pictures),
            "## Each problem",
        ]
    sections += [problem_section(results, name) for name in results.problems]
    drawn = draw_surveys(load_surveys(folder), beside / "pictures")
    sections += [failures(results), survey_section(folder, drawn)]
    page = beside / "RACE.md"
    page.write_text("\n\n".join(section for section in sections if section) + "\n")
    return page


# -- the page's parts -------------------------------------------------------------------


def introduction(results: Results) -> str:
    """Return what is compared, and how it is counted."""
    rates = ", ".join(f"{rate:g}" for rate in ADAM_RATES)
    return f"""# A race at equal cost

Written by `python benchmarks/race.py` from the files in `benchmarks/race`.

**Unknowns.** Every method searches in the same: the free cells of `model / scale`, in
float64; waves run in the dtype that each problem states.

**The default** of `hvpopt.minimize` is `QuasiNewton()` on problems of fewer than 12
shots, which are all but Marmousi down to "Surveys of many shots". There it was run before
`minimize` sampled surveys of 12 shots, which `marmousi-12` below shows, and is
`QuasiNewton()` too.

**Cost** is in gradients of the same problem: gradients + r_v · values + r_p · products.
r_v and r_p are CPU time relative to a gradient's, medians measured for each problem
before its runs. The misfit's own tally counts, whatever library calls it. A product over
some of the shots, or over encoded ones, costs the share of a product that its wave
propagations are. A run ends when its budget is spent; one that passes a level in misfit
below the noise (noisy, fine-grid) fits noise from there on, at growing model error.

**Misfit and model error** are of the best model so far, relative to the start's. The
error is the distance to the true model in scaled free cells.

**Peers.** L-BFGS-B has the same bounds and {HISTORY} corrections, as has torch's LBFGS
without bounds. Adam is projected onto the bounds; its rates ({rates} of the scale a step)
are each a run of the full budget, and "best rate" is chosen by the final misfit after
them: tuning cost {len(ADAM_RATES)} budgets. Newton and trust-region peers use hvpopt's
products of the exact Hessian and have no bounds. A trial that the survey refuses (faster
than its `max_vel`, say) costs nothing and has {REFUSED:g} times the start's misfit. Trust
regions start at a tenth of a unit in every cell. All tolerances are zero.

Runs have one thread each, two at a time by default, so seconds are of a shared machine.
Peak memory is the rise of the resident set in a process of its own.
{_environment(results)}"""


def _environment(results: Results) -> str:
    if not results.prices:
        return ""
    where = next(iter(results.prices.values()))["environment"]
    return (
        f"{where['machine']}, Python {where['python']}, torch {where['torch']}, deepwave "
        f"{where['deepwave']}, scipy {where['scipy']}; {where['date']}."
    )


def problem_section(results: Results, name: str) -> str:
    """Return one problem's prices and table."""
    prices = [row for (problem, _), row in results.prices.items() if problem == name]
    one = prices[0]

    def price(key: str) -> float:
        return median(row[key] for row in prices)

    lines = [
        f"### {name}",
        "",
        f"{one['title'][0].upper()}{one['title'][1:]}. {one['size']}. A gradient takes "
        f"{price('gradient_seconds'):.3f} s; r_v = {price('value'):.2f}, "
        f"r_p = {price('product'):.2f}.",
    ]
    floor = price("misfit_at_true")
    if floor > 0:
        lines.append(f"The true model has {floor:.1e} of the start's misfit.")
    if len(prices) > 1:
        lines.append(f"Medians over {len(prices)} seeds.")
    methods = results.methods(name)
    if not methods:
        return "\n".join(lines)
    head = [
        "method",
        *(f"cost to {level:g}" for level in LEVELS),
        *(f"error at {cost:g}" for cost in COSTS),
        "final misfit",
        "final error",
        "cost",
        "seconds",
        "peak MB",
        "ended by",
    ]
    rows = [_row(results.of(method, name)) for method in methods]
    return "\n".join([*lines, "", table(head, rows)])


def _row(runs: list[Run]) -> list[str]:
    one = runs[0]
    name = f"**{one.method}**" if one.ours else one.method
    note = f" ({one.data['note']})" if one.data["note"] else ""
    refused = sum(run.data["refused"] for run in runs)
    ended = ", ".join(dict.fromkeys(run.data["ended"] for run in runs))
    return [
        name + note,
        *(number(median(run.cost_to(level) for run in runs)) for level in LEVELS),
        *(number(median(run.error_at(cost) for run in runs), 3) for cost in COSTS),
        f"{median(run.misfit for run in runs):.1e}",
        number(median(run.error for run in runs), 3),
        number(median(run.data["cost"] for run in runs)),
        number(median(run.data["seconds"] for run in runs)),
        number(median(run.data["peak_bytes"] / 1e6 for run in runs)),
        ended + (f"; {refused} refused" if refused else ""),
    ]


def at_a_glance(results: Results) -> str:
    """Return a table of the default beside L-BFGS-B on every problem."""
    lines = []
    for problem in results.problems:
        own, other = results.of(DEFAULT, problem), results.of(REFERENCE, problem)
        if own and other:
            costs = (
                (median(run.cost_to(level) for run in runs) for runs in (own, other))
                for level in GLANCE_LEVELS
            )
            errors = (
                median(run.error_at(GLANCE_COST) for run in runs) for runs in (own, other)
            )
            cells = [
                *("{} ({})".format(*map(number, pair)) for pair in costs),
                "{} ({})".format(*(number(error, 2) for error in errors)),
            ]
            lines.append([problem, *cells])
    if not lines:
        return ""
    head = [
        "problem",
        *(f"cost to {level:g}" for level in GLANCE_LEVELS),
        f"error at {GLANCE_COST:g}",
    ]
    return "\n".join(
        [
            f"Cost to a fraction of the start's misfit and model error of {DEFAULT}, in "
            f"brackets those of {REFERENCE}:",
            "",
            table(head, lines),
        ]
    )


def against_reference(results: Results) -> str:
    """Return the tables of our wins and losses against L-BFGS-B."""
    ours = list(dict.fromkeys(run.method for run in results.runs if run.ours))
    reference = {run.where: run for run in results.of(REFERENCE)}
    if not ours or not reference:
        return ""
    costs, errors = [], []
    for method in ours:
        pairs = [
            (run, reference[run.where])
            for run in results.of(method)
            if run.where in reference
        ]
        cells = [f"{method} ({len(pairs)})"]
        for level in LEVELS:
            found = [(a.cost_to(level), b.cost_to(level)) for a, b in pairs]
            cells += [_tally(found), _mean_ratio(found)]
        costs.append(cells)
        cells = [f"{method} ({len(pairs)})"]
        for cost in COSTS:
            found = [(a.error_at(cost), b.error_at(cost)) for a, b in pairs]
            cells += [_tally(found), _mean_ratio(found)]
        errors.append(cells)
    return "\n".join(
        [
            f"## hvpopt against {REFERENCE}",
            "",
            "Wins–losses–ties over problems (their number in brackets), and the "
            f"geometric mean of the ratio to {REFERENCE} where both have a number: under "
            f"1 is in hvpopt's favour. A tie is a ratio within {TIE:.0%} of 1; to reach "
            "a level that the other does not is a win; where neither does, the problem "
            "is not counted.",
            "",
            "Cost to a fraction of the start's misfit:",
            "",
            table(["method", *_with_ratio(f"to {level:g}" for level in LEVELS)], costs),
            "",
            "Model error at equal cost:",
            "",
            table(["method", *_with_ratio(f"at {cost:g}" for cost in COSTS)], errors),
        ]
    )


def _with_ratio(names: Iterable[str]) -> list[str]:
    return [text for name in names for text in (name, "ratio")]


def _tally(pairs: list[tuple[float, float]]) -> str:
    wins = losses = ties = 0
    for own, other in pairs:
        if not math.isfinite(own) and not math.isfinite(other):
            continue
        if math.isfinite(own) and math.isfinite(other) and abs(own / other - 1) <= TIE:
            ties += 1
        # a level that only one reached, or an error that only one has
        elif not math.isfinite(other) or own < other:
            wins += 1
        else:
            losses += 1
    return f"{wins}–{losses}–{ties}"


def _mean_ratio(pairs: list[tuple[float, float]]) -> str:
    logs = [
        math.log(own / other)
        for own, other in pairs
        if math.isfinite(own) and math.isfinite(other)
    ]
    return f"{math.exp(sum(logs) / len(logs)):.2f}" if logs else "–"


def profiles(results: Results) -> str:
    """Return the performance profiles read at a few ratios."""
    results = results.where_most_ran()
    methods = results.everywhere()
    if not methods:
        return ""
    found = {level: profile(results, methods, level) for level in LEVELS}
    rows = []
    for method in methods:
        cells = [method]
        for level in LEVELS:
            ratios = found[level][method]
            n = max(len(ratios), 1)
            shares = [sum(ratio <= t for ratio in ratios) / n for t in RATIOS]
            solved = sum(math.isfinite(ratio) for ratio in ratios) / n
            cells.append(" / ".join(f"{share:.0%}" for share in [*shares, solved]))
        rows.append(cells)
    solved = ", ".join(
        f"{len(next(iter(found[level].values())))} to {level:g}" for level in LEVELS
    )
    read = ", ".join(f"{t:g}" for t in RATIOS)
    return "\n".join(
        [
            "## Performance profiles",
            "",
            "Dolan and Moré, Math. Program. 91, 2002: the share of problems that a "
            f"method solved within {read} times the best method's cost, and at any cost. "
            f"Of the {len(results.instances)} problems that most methods ran on, and the "
            "methods that ran on all of these; a problem counts where one of them solved "
            f"it ({solved}).",
            "",
            table(["method", *(f"to {level:g}" for level in LEVELS)], rows),
        ]
    )


def failures(results: Results) -> str:
    """Return what did not run, and why."""
    every = [*results.runs, *results.failures]
    stopped = [run for run in every if run.data["ended"] == "failed"]
    if not results.failures and not stopped:
        return ""
    lines = ["## What could not run, or stopped with an error", ""]
    silent = [run for run in results.failures if run not in stopped]
    lines += [
        f"- {run.method}, {run.problem}: "
        + (textwrap.shorten(run.data["message"], 300, placeholder=" …") or "no message")
        for run in [*stopped, *silent]
    ]
    return "\n".join(lines)
