"""The error bar of a 3 × 3 mean on the race's faulted problem, by number of products.

Noise 20 dB below the data without their direct wave, linearised at the true model, prior
of 300 m/s. Run it as ``python benchmarks/error_bars.py``; a product takes a second.
"""

from __future__ import annotations

import argparse

import torch
from race_problems import faulted
from race_setup import direct_wave

import hvpopt
from hvpopt.analysis import MaternPrior, Noise, Posterior, posterior_of

SNR_DB = 20.0
SPACING, STD = 25.0, 300.0
#: Correlation lengths in cells. With the longer one the mean's standard deviation before
#: any data is 247 m/s.
LENGTHS = (5.6, 3.0)
#: Numbers of products after which the bounds are read.
READ_AT = (20, 40, 50, 55, 60)
#: Rows and columns of the mean.
REGION = slice(15, 18), slice(39, 42)


def main(seed: int, *, plain: bool) -> None:
    """Print the bounds of the standard deviation, with and without the diagonal."""
    problem = faulted(seed)
    survey, true = problem.misfit.survey, problem.true
    clean = survey.simulate(true)
    scattered = clean - direct_wave(survey, true)
    std = float(scattered.square().mean().sqrt()) * 10 ** (-SNR_DB / 20)
    noise = Noise(std, clean.numel())
    space = hvpopt.ModelSpace(true, mask=problem.mask)
    mean = torch.zeros_like(true)
    mean[REGION] = 1.0 / mean[REGION].numel()
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="a Krylov space as well")
    given = parser.parse_args()
    main(given.seed, plain=given.plain)
