"""The README's first example runs as printed, and its figures are the benchmark's."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_first_example_runs_as_printed(capsys):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "the projected gradient is within its tolerance" in printed
    assert "products=" in printed


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#]+?)\)", README))
def test_links_lead_somewhere(path):
    assert path.startswith("https://") or (ROOT / path).exists()


def test_examples_and_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", README):
        assert f"\n{target}: " in makefile
    for example in re.findall(r"examples/\w+\.py", README):
        assert (ROOT / example).exists()


#: Problems of the race by their names in prose.
PROBLEMS = {
    "48 shots, faulted layers, fixed spread": "fixed-spread",
    "the same, noise 20 dB below the data": "fixed-spread-20dB",
    "the same, noise 10 dB below the data": "fixed-spread-10dB",
    "the same, data of a finer grid": "fixed-spread-fine",
    "48 shots, streamer (shots are drawn)": "streamer",
    "24 shots, elastic, three parameters": "elastic-24",
    "48 shots, Marmousi, fixed spread": "marmousi-48",
    "12 shots, Marmousi, fixed spread": "marmousi-12",
    "faulted layers": "faulted",
    "salt-like body": "salt",
    "elastic, three parameters": "elastic",
    "acoustic, two parameters": "acoustic",
    "disc in transmission": "camembert",
    "the published example": "published",
}


def rows_of(text):
    """Return the cells of tables' lines by the first cell, each line of several alike."""
    found = {}
    for line in text.splitlines():
        if line.startswith("|"):
            name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            found.setdefault(name, []).append(cells)
    return found


@pytest.mark.parametrize(("page", "least"), [("README.md", 13), ("docs/choosing.md", 5)])
def test_figures_of_the_race_are_those_of_its_page(page, least):
    race = rows_of((ROOT / "benchmarks/RACE.md").read_text().replace("e-0", "e-"))
    rows = rows_of((ROOT / page).read_text())
    shown = rows.keys() & PROBLEMS.keys()
    assert len(shown) >= least
    ((won, near, worse, worst),) = race["StochasticQuasiNewton()"][:1]
    text = " ".join((ROOT / page).read_text().split())
    assert f"in {won} of {int(won) + int(near) + int(worse)} " in text
    assert f"within 1.1 times of it in {near}" in text
    assert worst in text
    for name in shown:
        for cells in rows[name]:
            assert cells in race[PROBLEMS[name]], name


def test_figures_of_the_published_steps_are_those_of_their_page():
    page = (ROOT / "benchmarks/RESULTS.md").read_text()
    section = page.split("## The published Newton steps", 1)[1].split("\n## ", 1)[0]
    rows = rows_of((ROOT / "README.md").read_text())
    found = 0
    for cells, lines in rows_of(section).items():
        if not cells.isdigit():
            continue
        ((steps, dense, _, _, born, ratio, products, _),) = lines
        there, here = products.split(" / ")
        both = f"{dense}, {there} products", f"{born}, {here} products"
        assert [steps, *both, ratio] in rows[cells]
        found += 1
    assert found == 3
