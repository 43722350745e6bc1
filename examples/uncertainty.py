"""What the data say of a model and what they do not, from a few Hessian products.

1. The faulted model of ``faulted.py``, seen by 48 shots: resolution lengths and the
   directions that are resolved worst, and point spreads on a comb of cells; from products
   of encoded shots.
2. P velocity, S velocity and density of ``elastic.py``, seen by 48 shots: how the three
   trade off, and the resolution lengths of each, from the same 45 products.

3. The faulted model at half the resolution, seen by four shots with noise of 10 dB, and a
   Matérn prior: the error bar of a region's mean and of every cell, samples of the
   posterior, its eigenvalues and their density, the resolution of the regularised
   solution, and the information against the number of shots.

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


def coarse_problem() -> tuple[
    hvpopt.fwi.WaveformMisfit, Tensor, analysis.MaternPrior, analysis.Noise
]:
    """Return the misfit to noisy data of a coarser model, a start, prior and noise."""
    true = faulted.faulted_model()[::2, ::2].contiguous()
    start = faulted.smooth(true, 3, 2.0)
    survey = faulted.make_survey(true, SPACING, seconds=1.0, n_shots=4)
    clean = survey.simulate(true)
    std = 0.32 * float(clean.square().mean().sqrt())  # 10 dB under the signal
    generator = torch.Generator().manual_seed(0)
    errors = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
    misfit = hvpopt.fwi.WaveformMisfit(survey, clean + std * errors)
    free = torch.ones_like(true, dtype=torch.bool)
    free[:3] = False
    space = hvpopt.ModelSpace(start, mask=free)
    prior = analysis.MaternPrior(space, length=400.0, std=150.0, spacing=SPACING)
    return misfit, start, prior, analysis.Noise(std, clean.numel())


def error_bars() -> None:
    """Draw standard deviations, samples, the spectrum and regularised spreads."""
    misfit, v, prior, noise = coarse_problem()
    print(f"\ncoarse faulted model: {misfit.survey.n_shots} shots, {prior.size} cells")
    posterior = analysis.posterior_of(v, misfit, prior, noise)
    region = torch.zeros_like(v)
    region[12:15, 29:32] = 1 / 9
    mean = posterior.functional_variance(region)
    print(f"  {mean.message}")
    low, high = (float(bound) for bound in mean.std_bounds)
    print(
        f"    standard deviation of a 3 × 3 mean: {low:.1f} to {high:.1f} m/s, "
        f"before the data {float(mean.prior_std):.0f} m/s"
    )
    cells = posterior.pointwise_variance(n_products=40, n_bound=10)
    print(f"  {cells.message}")
    before = prior.space.step_to_model(prior.standard_deviation)
    water = before == 0.0
    before = before.masked_fill(water, torch.nan)
    after = cells.std_model.masked_fill(water, torch.nan)
    save(
        plotting.plot_deviations(before, after, spacing=SPACING, unit="m/s"), "deviations"
    )
    samples = posterior.samples(3, mean=v, seed=1)
    print(f"  {samples.message}")
    save(plotting.plot_samples(v, samples.models, spacing=SPACING, unit="m/s"), "samples")
    whitened = analysis.WhitenedHessian(posterior.hessian, prior, noise)
    # a residual of 1 at most, the prior's line: the largest are ten thousand times that
    found = analysis.eigenpairs(whitened, 24, tol=1e-4, max_products=80)
    print(f"  {found.message}")
    most, last = (float(found.value[i]) for i in (0, -1))
    print(f"    the data say {most:.0f} to {last:.0f} times what the prior does")
    figure = plotting.plot_eigenvalues(found.value, residuals=found.residuals)
    save(figure, "eigenvalues")
    density = analysis.spectral_density(whitened, n_probes=2, n_steps=12)
    print(f"  {density.message}")
    figure = plotting.plot_density(
        density.points,
        density.value,
        torch.as_tensor(density.standard_error),
        logarithmic=True,
    )
    save(figure, "density")
    spread = analysis.regularised_spread(
        posterior.hessian,
        prior,
        [(6, 30), (20, 30)],
        weight=noise.weight,
        max_products=40,
    )
    print(f"  {spread.message}")
    for i, (name, cell) in enumerate(spread.cells):
        at = spread.grids[name].index(cell)
        low, high = (float(bound[i, at]) for bound in spread.interval)
        print(f"    {cell} is resolved to {low:.2f} … {high:.2f} of 1")
    save(plotting.plot_point_spreads(spread, spacing=SPACING), "regularised_spreads")
    information(misfit, v, prior, noise)


def information(
    misfit: hvpopt.fwi.WaveformMisfit,
    v: Tensor,
    prior: analysis.MaternPrior,
    noise: analysis.Noise,
) -> None:
    """Draw what each further shot tells at least."""
    hessians = [
        misfit.select([s]).hessian(v, "gauss-newton", space=prior.space)
        for s in range(misfit.survey.n_shots)
    ]
    found = analysis.shot_information(hessians, prior, noise, n_products=30)
    print(f"  {found.message}")
    print(f"    greedy order of shots: {found.order}")
    save(plotting.plot_information(found.gain), "information")


def main() -> None:
    """Run all parts."""
    began = time.perf_counter()
    torch.set_num_threads(1)  # on grids this small a second thread mostly waits
    resolution()
    trade_off()
    error_bars()
    print(f"done in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
