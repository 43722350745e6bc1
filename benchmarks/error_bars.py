"""Error bars on the race's faulted problem, in float32 as it is raced.

Noise 20 dB below the data without their direct wave, linearised at the true model, prior
of 300 m/s. First the error bar of a 3 × 3 mean by number of products. Then every
quantity of the posterior, and beside it what float64 says: each bracket of float32 must
have a number in common with that of float64, which bounds the same variance.

    python benchmarks/error_bars.py             # both parts, under 4 minutes of one core
    python benchmarks/error_bars.py --part 2
"""

from __future__ import annotations

import argparse

import torch
from race_problems import faulted
from race_setup import direct_wave

import hvpopt
from hvpopt.analysis import (
    MaternPrior,
    Noise,
    Posterior,
    posterior_of,
    shot_information,
)

SNR_DB = 20.0
SPACING, STD = 25.0, 300.0
#: Correlation lengths in cells. With the longer one the mean's standard deviation before
#: any data is 247 m/s.
LENGTHS = (5.6, 3.0)
#: Numbers of products after which the bounds are read.
READ_AT = (20, 40, 50, 55, 60)
#: Rows and columns of the mean.
REGION = slice(15, 18), slice(39, 42)
#: Two further regions; and cells whose pointwise brackets are looked at.
OTHERS = ((slice(8, 11), slice(20, 23)), (slice(28, 31), slice(60, 63)))
CELLS = ((6, 20), (16, 40), (24, 60), (33, 5))
#: Products of the second part: for the questions, the cells, their bound, each shot.
ASKED, EXPLORED, BOUND, SHOTS = 40, 20, 10, 6


def noise_of(problem):
    """Return the noise, by the energy of the data without their direct wave."""
    survey, true = problem.misfit.survey, problem.true
    clean = survey.simulate(true)
    scattered = clean - direct_wave(survey, true)
    std = float(scattered.square().mean().sqrt()) * 10 ** (-SNR_DB / 20)
    return Noise(std, clean.numel())


def mean_of(region, like):
    """Return the weights of a region's mean, shaped like a model."""
    mean = torch.zeros_like(like)
    mean[region] = 1.0 / mean[region].numel()
    return mean


def by_products(problem, *, plain):
    """Print the bounds of the standard deviation, with and without the diagonal."""
    survey, true, noise = problem.misfit.survey, problem.true, noise_of(problem)
    space = hvpopt.ModelSpace(true, mask=problem.mask)
    mean = mean_of(REGION, true)
    for length in LENGTHS:
        prior = MaternPrior(space, length=length * SPACING, std=STD, spacing=SPACING)
        posterior = posterior_of(true, problem.misfit, prior, noise)
        setup = posterior.setup.propagations / (2 * survey.n_shots)
        kinds = {f"diagonal of 8 encoded shots ({setup:.1f} gradients)": posterior}
        if plain:
            kinds["Krylov space"] = Posterior(posterior.hessian, prior, noise)
        for name, kind in kinds.items():
            print(f"length {length} cells, {name}")
            spent = 0
            for most in READ_AT:
                found = kind.functional_variance(
                    mean, tol=1e-9, max_products=most - spent
                )
                spent += found.n_products
                low, high = (float(bound) for bound in found.std_bounds)
                print(
                    f"  {spent:3d} products: [{low:.2f}, {high:.2f}] m/s, "
                    f"{100 * (high / low - 1):.1f} %; prior {float(found.prior_std):.0f}",
                    flush=True,
                )


class Quantities:
    """What a posterior says, in the dtype of a model.

    Attributes:
        questions: Bounds of the standard deviation of three means, a contrast and four
            cells.
        cells: Bounds of the standard deviation of every cell.
        shots: Information.
    """

    def __init__(self, problem, noise, dtype):
        true, mask = problem.true.to(dtype), problem.mask
        survey = problem.misfit.survey.to(dtype)
        misfit = hvpopt.fwi.WaveformMisfit(survey, survey.simulate(true))
        space = hvpopt.ModelSpace(true, mask=mask)
        length = LENGTHS[0] * SPACING
        prior = MaternPrior(space, length=length, std=STD, spacing=SPACING)
        posterior = posterior_of(true, misfit, prior, noise)
        means = [mean_of(region, true) for region in (REGION, *OTHERS)]
        single = [torch.zeros_like(true) for _ in CELLS]
        for cell, t in zip(CELLS, single, strict=True):
            t[cell] = 1.0
        asked = [*means, means[0] - means[1], *single]
        self.questions = posterior.functional_variance(
            asked, tol=1e-9, max_products=ASKED
        )
        self.cells = posterior.pointwise_variance(n_products=EXPLORED, n_bound=BOUND)
        self.samples = posterior.samples(3)
        hessians = [
            misfit.select([s]).hessian(true, "gauss-newton", space=space)
            for s in range(survey.n_shots)
        ]
        self.shots = shot_information(hessians, prior, noise, n_products=SHOTS)
        grid = torch.zeros_like(mask, dtype=torch.long)
        grid[mask] = torch.arange(int(mask.sum()))
        self.places = [int(grid[cell]) for cell in CELLS]


def apart(low, high, other_low, other_high):
    """Return how many brackets have no number in common with the other ones."""
    return int(((low > other_high) | (other_low > high)).sum())


def in_both_precisions(problem):
    """Print every quantity in float32, and how many brackets float64 contradicts."""
    noise = noise_of(problem)
    found = [Quantities(problem, noise, d) for d in (torch.float32, torch.float64)]
    names = ["mean 1", "mean 2", "mean 3", "1 − 2", *map(str, CELLS)]
    print("standard deviations, m/s; float32, float64, rounding of the former's bounds")
    bounds = [entry.questions.std_bounds for entry in found]
    rounding = found[0].questions.rounding / found[0].questions.lower
    for i, name in enumerate(names):
        texts = [f"[{float(low[i]):7.2f}, {float(up[i]):7.2f}]" for low, up in bounds]
        print(f"  {name:9}", *texts, f"{50 * float(rounding[i]):.1g} %")
    print(f"  {found[0].questions.message}")
    print(f"  contradicted: {apart(*bounds[0], *bounds[1])} of {len(names)}")
    cells = [(e.cells.lower.sqrt(), e.cells.upper.sqrt()) for e in found]
    print(f"  {found[0].cells.message}")
    # of the same cells, by the questions of the other precision
    own = [bound[found[0].places] for bound in cells[0]]
    asked = tuple(bound[-len(CELLS) :] for bound in bounds[1])
    print(
        f"  contradicted: {apart(*cells[0], *cells[1])} of {len(cells[0][0])} cells by "
        f"the brackets of float64, {apart(*own, *asked)} of {len(CELLS)} by its "
        "questions"
    )
    print(f"  {found[0].samples.message}")
    gains = [entry.shots.gain for entry in found]
    error = float(((gains[0] - gains[1]) / gains[1]).abs().max())
    same = found[0].shots.order == found[1].shots.order
    print(f"  {found[0].shots.message}")
    print(f"  gains differ by {error:.1g} at most; the order is the same: {same}")


def main(seed, part, *, plain):
    """Run the parts asked for."""
    problem = faulted(seed)
    if part in (0, 1):
        by_products(problem, plain=plain)
    if part in (0, 2):
        in_both_precisions(problem)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", type=int, default=0, help="1 or 2; default both")
    parser.add_argument("--plain", action="store_true", help="a Krylov space as well")
    given = parser.parse_args()
    torch.set_num_threads(1)
    main(given.seed, given.part, plain=given.plain)
