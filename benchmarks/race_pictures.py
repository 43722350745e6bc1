"""Pictures of the race: misfit and model error against cost, and performance profiles."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from race_methods import REFERENCE
from race_results import LEVELS, Results, Run, profile
from race_survey_report import ERROR, MISFIT, SurveyResults

#: Where misfits and profiles are cut off.
LOWEST_MISFIT = 1e-5
LARGEST_RATIO = 16.0
#: Of a figure, inches, which its legend needs.
NARROWEST = 9.7
DPI = 75


def draw(results: Results, folder: Path) -> list[Path]:
    """Write the pictures and return their paths.

    Args:
        results: Of the race; every rate of Adam, or the best.
        folder: To write to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    looks = _looks(results)
    figures = {
        "race_misfit": _curves(results, looks, 2, "misfit / start's"),
        "race_error": _curves(results, looks, 3, "model error / start's"),
        "race_profiles": _profiles(results, looks),
    }
    paths = []
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=DPI)
        paths.append(path)
    return paths


def draw_surveys(results: SurveyResults, folder: Path) -> list[Path]:
    """Write the pictures of the surveys of many shots and return their paths.

    Args:
        results: Of the race on them; no picture if there is no run.
        folder: To write to.
    """
    if not results.runs:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, column, label in (
        ("surveys_misfit", MISFIT, "misfit / start's"),
        ("surveys_error", ERROR, "model error / start's"),
    ):
        paths.append(folder / f"{name}.png")
        _survey_curves(results, column, label).savefig(paths[-1], dpi=DPI)
    return paths


def _survey_curves(results: SurveyResults, column: int, label: str) -> Figure:
    """Return a panel for each survey: medians over seeds at each checkpoint."""
    rows = {name: results.rows(name) for name in results.problems}
    labels = {row.label: row.ours for own in rows.values() for row in own}
    looks: Looks = {}
    for i, name in enumerate(sorted(labels, key=lambda name: (not labels[name], name))):
        style = "-" if labels[name] else ("--", ":", "-.")[i % 3]
        looks[name] = {"color": f"C{i % 10}", "lw": 1.8 if labels[name] else 1.1}
        looks[name]["ls"] = style
    across = min(4, len(rows))
    down = math.ceil(len(rows) / across)
    size = (max(3.6 * across, NARROWEST), 2.9 * down + 1.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False)
    for ax in axes.flat[len(rows) :]:
        ax.set_axis_off()
    for ax, (name, own) in zip(axes.flat, rows.items(), strict=False):
        for row in own:
            costs = [judged[0] for judged in row.runs[0].judged]
            heights = [row.at(cost, column) for cost in costs]
            ax.plot([0, *costs], [1, *heights], **looks[row.label])
        ax.set_title(name)
        ax.set_xlabel("cost (gradients)")
        ax.grid(alpha=0.3)
        if column == MISFIT:
            ax.set_yscale("log")
        ax.set_ylim(top=1.1)
    figure.supylabel(label)
    _legend(figure, axes.flat[0], looks)
    return figure


Looks = dict[str, dict[str, Any]]


def _looks(results: Results) -> Looks:
    """Return each method's line: ours full, peers broken, the reference black."""
    ours = {run.method for run in results.runs if run.ours}
    names = list(dict.fromkeys(run.method for run in results.runs))
    looks: Looks = {}
    for i, name in enumerate([n for n in names if n in ours]):
        looks[name] = {"color": f"C{i}", "lw": 1.8}
    for i, name in enumerate([n for n in names if n not in ours and n != REFERENCE]):
        style = ("--", ":", "-.")[i % 3]
        looks[name] = {"color": f"C{i % 10}", "lw": 1.0, "ls": style, "alpha": 0.8}
    looks[REFERENCE] = {"color": "k", "lw": 1.8}
    return {name: looks[name] for name in [*names] if name in looks}


def _curves(results: Results, looks: Looks, column: int, label: str) -> Figure:
    """Return a panel for each problem: a column of the traces against cost."""
    problems = [name for name in results.problems if _shown(results, name)]
    across = min(3, len(problems))
    down = math.ceil(len(problems) / across)
    size = (max(5.0 * across, NARROWEST), 3.4 * down + 1.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False)
    for ax in axes.flat[len(problems) :]:
        ax.set_axis_off()
    for ax, name in zip(axes.flat, problems, strict=False):
        budget = 0.0
        for run in _shown(results, name):
            budget = max(budget, run.data["budget"])
            ax.step(*_line(run, column), where="post", **looks[run.method])
        ax.set_title(name)
        ax.set_xlim(0, budget)
        ax.grid(alpha=0.3)
        if column == 2:
            ax.set_yscale("log")
            lowest = min(run.misfit for run in _shown(results, name))
            ax.set_ylim(max(LOWEST_MISFIT, 0.7 * lowest), 1.2)
        else:
            ax.set_ylim(top=1.02)
    for ax in axes.flat[max(0, len(problems) - across) : len(problems)]:
        ax.set_xlabel("cost (gradients)")
    figure.supylabel(label)
    _legend(figure, axes.flat[0], looks)
    return figure


def _shown(results: Results, problem: str) -> list[Run]:
    """Return the runs of a problem's first seed."""
    runs = [run for run in results.runs if run.problem == problem and run.trace]
    first = min((run.seed for run in runs), default=0)
    return [run for run in runs if run.seed == first]


def _line(run: Run, column: int) -> tuple[list[float], list[float]]:
    """Return cost and a column of the trace, drawn on to where the run's budget ends."""
    cost = [row[0] for row in run.trace]
    height = [row[column] for row in run.trace]
    end = max(run.data["budget"], *cost)
    return [*cost, end], [*height, height[-1]]


def _profiles(results: Results, looks: Looks) -> Figure:
    """Return a performance profile for each level."""
    results = results.where_most_ran()
    methods = results.everywhere()
    figure = Figure(figsize=(3.8 * len(LEVELS), 4.4), layout="constrained")
    axes = figure.subplots(1, len(LEVELS), squeeze=False)[0]
    for ax, level in zip(axes, LEVELS, strict=True):
        solved = 0
        for method, ratios in profile(results, methods, level).items():
            solved = len(ratios)
            n = max(solved, 1)
            x = [1.0, *ratios, math.inf]
            y = [0.0, *((i + 1) / n for i in range(len(ratios))), 1.0]
            inside = [(a, b) for a, b in zip(x, y, strict=True) if a <= LARGEST_RATIO]
            last = inside[-1][1] if inside else 0.0
            ax.step(
                [*(a for a, _ in inside), LARGEST_RATIO],
                [*(b for _, b in inside), last],
                where="post",
                **looks[method],
            )
        ax.set_title(f"to {level:g} of the start ({solved} solved)")
        ax.set_xlabel("cost / the best method's")
        ax.set_xscale("log", base=2)
        ticks = [1, 2, 4, 8, 16]
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlim(1, LARGEST_RATIO)
        ax.set_ylim(0, 1.03)
        ax.grid(alpha=0.3)
    figure.supylabel("fraction of problems solved")
    _legend(figure, axes[0], {name: looks[name] for name in methods})
    return figure


def _legend(figure: Figure, ax: Axes, looks: Looks) -> None:
    lines = [ax.plot([], [], label=name, **look)[0] for name, look in looks.items()]
    columns = int(figure.get_figwidth() // 3.2)
    figure.legend(handles=lines, loc="outside lower center", ncols=columns)
