"""What the data say of a model and what they do not, from a few Hessian products.

1. The faulted model of ``faulted.py``, seen by 48 shots: resolution lengths and the
   directions that are resolved worst, and point spreads on a comb of cells; from products
   of encoded shots.
2. P velocity, S velocity and density of ``elastic.py``, seen by 48 shots: how the three
   trade off, and the resolution lengths of each, from the same 45 products.

It prints what each cost, in gradients of the whole survey. Pictures go to
``output/uncertainty``; ``docs/analysis.md`` says how to read them.

    python examples/uncertainty.py
"""

from __future__ import annotations

import time
from pathlib import Path

import elastic
import faulted
import torch
from matplotlib.figure import Figure
from torch import Tensor

import hvpopt
from hvpopt import analysis, plotting

N_SHOTS = 48
SPACING = 25.0  # metres, of the faulted model
OUTPUT = Path("output/uncertainty")


def save(figure: Figure, name: str) -> None:
    """Save a picture and say where."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    path = OUTPUT / f"{name}.png"
    figure.savefig(path, dpi=100)
    print(f"    saved {path}")


def print_cost(misfit: hvpopt.Objective, estimate: analysis.Estimate[Tensor]) -> None:
    """Print what was found, and its cost in gradients of the whole survey."""
    spent = hvpopt.Counts(propagations=estimate.n_propagations)
    print(f"  {estimate.message}")
    print(
        f"    {estimate.n_products} products of encoded shots, as many waves as "
        f"{misfit.cost(spent):.2f} gradients"
    )


def faulted_misfit() -> tuple[hvpopt.fwi.WaveformMisfit, Tensor, Tensor]:
    """Return the misfit of the faulted model, a smooth model, and the free cells."""
    true = faulted.faulted_model()
    rows = faulted.water_rows(true)
    start = faulted.smooth(true, rows, 3.0)
    survey = faulted.make_survey(true, SPACING, seconds=1.5, n_shots=N_SHOTS)
    free = torch.ones_like(true, dtype=torch.bool)
    free[:rows] = False
    return hvpopt.fwi.WaveformMisfit(survey, survey.simulate(true)), start, free


def resolution() -> None:
    """Map resolution lengths, and draw point spreads of cells on a comb."""
    misfit, v, free = faulted_misfit()
    print(f"faulted model: {misfit.survey.n_shots} shots, {int(free.sum())} cells")
    space = hvpopt.ModelSpace(v, mask=free)
    probes = analysis.random_probes(misfit, v, space=space)
    lengths = analysis.resolution_lengths(probes, spacing=SPACING)
    print_cost(misfit, lengths)
    save(plotting.plot_lengths(lengths), "resolution_lengths")
    cells = [(y, x) for y in (12, 28, 42) for x in (20, 60, 100)]
    spread = analysis.point_spread(
        misfit, cells, v, n_combs=3, n_draws=8, sample=2, space=space
    )
    print_cost(misfit, spread)
    save(plotting.plot_point_spreads(spread, spacing=SPACING), "point_spreads")


def elastic_misfit() -> tuple[
    hvpopt.fwi.WaveformMisfit, dict[str, Tensor], hvpopt.ModelSpace
]:
    """Return the misfit of the three lenses, the start and its coordinates."""
    ny, nx = 20, 60
    start = elastic.layered(ny, nx)
    misfit = elastic.make_misfit(elastic.with_lenses(start), N_SHOTS, samples=130)
    free = torch.ones(ny, nx, dtype=torch.bool)
    free[:3] = False  # around sources and receivers
    return misfit, start, hvpopt.ModelSpace(start, scale=elastic.SCALE, mask=free)


def trade_off() -> None:
    """Measure the coupling of three parameters, and the resolution of each."""
    misfit, start, space = elastic_misfit()
    print(f"\nelastic model: {misfit.survey.n_shots} shots, {space.size} unknowns")
    probes = analysis.random_probes(misfit, start, space=space)
    talk = analysis.cross_talk(probes)
    print_cost(misfit, talk)
    save(plotting.plot_cross_talk(talk, spacing=elastic.DX), "cross_talk")
    print("  from the same products:")
    for name in probes.names:
        lengths = analysis.resolution_lengths(probes, name, spacing=elastic.DX)
        print(f"    {lengths.message}")
        save(plotting.plot_lengths(lengths), f"resolution_lengths_{name}")


def main() -> None:
    """Run all parts."""
    began = time.perf_counter()
    torch.set_num_threads(1)  # on grids this small a second thread mostly waits
    resolution()
    trade_off()
    print(f"done in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
