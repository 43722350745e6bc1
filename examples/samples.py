"""A survey of 48 shots, inverted at the price of a few gradients.

The script makes layers that a lens, a fast body and two faults disturb, simulates 48
surface shots over them, and inverts the data from a smooth start by three methods at
equal cost: ``hvpopt.minimize`` with nothing chosen, which steps on encoded shots (all
sources at once, with random signs) and measures curvature by Hessian-vector products of
them; Adam on the same encoded shots; and L-BFGS-B on all shots. It prints misfit and
model error, and saves the models in ``output/samples``.

    python examples/samples.py

Costs are in gradients of the whole survey, by wave propagations: a gradient of one
encoded shot is 1/48, a product with it 2/48, and a value of all shots 1/2.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import deepwave
import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter
from scipy.optimize import minimize as scipy_minimize
from torch import Tensor

import hvpopt
from hvpopt.plotting import draw_image

N_SHOTS = 48
SPACING, DT, NT, FREQUENCY = 25.0, 0.003, 420, 6.0  # metres, seconds, samples, hertz
WATER = 4  # rows of water, which are known
COST = 4.0  # of each method, in gradients of the survey
LOWER, UPPER, UNIT = 1400.0, 3300.0, 100.0  # m/s; the unit is Adam's and L-BFGS-B's too
OUTPUT = Path("output/samples")


def layered_model(ny: int = 36, nx: int = 120) -> Tensor:
    """Return layers under water with two faults, a lens and a fast body, m/s."""
    depth, x = torch.arange(ny)[:, None].float(), torch.arange(nx)[None, :].float()
    moved = 3.0 * torch.sin(2 * torch.pi * x / nx)
    moved = moved + 5.0 * (x > 40 + 0.4 * depth) - 4.0 * (x > 88 - 0.3 * depth)
    v = torch.full((ny, nx), 1700.0)
    for top, velocity in ((10, 2000.0), (15, 2300.0), (20, 2100.0), (26, 2600.0)):
        v[depth - moved > top] = velocity
    v = v + 250.0 * torch.exp(-(((x - 20) / 6) ** 2) - ((depth - 17) / 2.5) ** 2)
    v[((x - 64) / 9) ** 2 + ((depth - 22) / 3.5) ** 2 < 1] = 2900.0
    v[:WATER] = 1500.0
    return v


def smooth(v: Tensor) -> Tensor:
    """Blur the slowness under the water, which keeps its travel times."""
    slowness = gaussian_filter(1 / v.double().numpy(), 6.0, mode="nearest")
    start = (1 / torch.from_numpy(slowness)).to(v)
    start[:WATER] = v[:WATER]
    return start


def make_survey(nx: int) -> hvpopt.fwi.Survey:
    """Return surface shots with one fixed spread of receivers, so that they add up."""
    wavelet = deepwave.wavelets.ricker(FREQUENCY, NT, DT, 1.3 / FREQUENCY)
    at = torch.linspace(4, nx - 5, N_SHOTS).round().long()
    across = torch.arange(0, nx, 2)
    receivers = torch.stack([torch.ones_like(across), across], -1)
    return hvpopt.fwi.Survey(
        "scalar",
        grid_spacing=SPACING,
        dt=DT,
        sources={
            "u": (
                wavelet.repeat(N_SHOTS, 1, 1),
                torch.stack([torch.ones_like(at), at], -1)[:, None],
            )
        },
        receivers={"u": receivers.repeat(N_SHOTS, 1, 1)},
        max_vel=3400.0,
        pml_freq=FREQUENCY,
        pml_width=10,
    )


def sampled(misfit: hvpopt.fwi.WaveformMisfit, start: Tensor, free: Tensor) -> Tensor:
    """Return the model of ``minimize`` with nothing chosen but a limit of cost."""
    result = hvpopt.minimize(
        misfit,
        start,
        scale=UNIT,
        mask=free,
        lower=LOWER,
        upper=UPPER,
        max_cost=COST,
        progress=True,
    )
    print(result.message)
    assert isinstance(result.x, Tensor)
    return result.x


def adam(misfit: hvpopt.fwi.WaveformMisfit, start: Tensor, free: Tensor) -> Tensor:
    """Return the model of Adam on one encoded shot a step."""
    v = start.clone()
    optimizer = torch.optim.Adam([v], lr=0.1 * UNIT)
    for k in range(int(COST * N_SHOTS)):
        _, gradient = misfit.sample(1, seed=k).value_and_gradient(v)
        assert isinstance(gradient, Tensor)
        v.grad = gradient * free
        optimizer.step()
        v.clamp_(LOWER, UPPER)
    return v


def lbfgsb(misfit: hvpopt.fwi.WaveformMisfit, start: Tensor, free: Tensor) -> Tensor:
    """Return the model of scipy's L-BFGS-B on all shots."""
    space = hvpopt.ModelSpace(start, scale=UNIT, mask=free)

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = misfit.value_and_gradient(space.to_model(torch.from_numpy(x)))
        return first * value, first * space.gradient_to_vector(gradient).numpy()

    first = 1.0 / misfit.value(start)  # its tolerances are absolute
    found = scipy_minimize(
        loss,
        space.to_vector(start).numpy(),
        jac=True,
        method="L-BFGS-B",
        bounds=[(LOWER / UNIT, UPPER / UNIT)] * space.size,
        options={"maxfun": int(COST)},
    )
    model = space.to_model(torch.from_numpy(found.x))
    assert isinstance(model, Tensor)
    return model


def picture(models: dict[str, Tensor], titles: dict[str, str]) -> Figure:
    """Return the models, all on one scale."""
    figure = Figure(figsize=(11.0, 6.6), layout="constrained")
    true = models["true"]
    limits = (float(true.min()), float(true.max()))
    axes = figure.subplots(3, 2)
    axes[2, 1].set_visible(False)
    for ax, (name, model) in zip(axes.flat, models.items(), strict=False):
        title = titles.get(name, name)
        draw_image(ax, model, title, spacing=SPACING, unit="m/s", limits=limits)
    return figure


def main() -> None:
    """Simulate, invert three times, print the table and save the picture."""
    began = time.perf_counter()
    torch.set_num_threads(1)  # on a grid as small as this a second thread mostly waits
    true = layered_model()
    start = smooth(true)
    free = torch.ones_like(true, dtype=torch.bool)
    free[:WATER] = False
    survey = make_survey(true.shape[1])
    misfit = hvpopt.fwi.WaveformMisfit(survey, survey.simulate(true))
    first, away = misfit.value(start), (true - start).norm()

    methods: dict[str, Callable[..., Tensor]] = {
        "hvpopt.minimize": sampled,
        "Adam, encoded shots": adam,
        "L-BFGS-B, all shots": lbfgsb,
    }
    models, titles = {"true": true, "start": start}, {}
    print(f"{N_SHOTS} shots; each method has {COST:g} gradients of the survey to spend")
    for name, method in methods.items():
        clock = time.perf_counter()
        model = method(misfit, start, free)
        seconds = time.perf_counter() - clock
        error = float((true - model).norm() / away)
        models[name] = model
        titles[name] = f"{name}: misfit {misfit.value(model) / first:.1e}, {error:.2f}"
        print(
            f"{name:22} misfit {misfit.value(model) / first:8.1e} of the start's, "
            f"model error {error:.2f}, {seconds:.0f} s"
        )

    OUTPUT.mkdir(parents=True, exist_ok=True)
    path = OUTPUT / "models.png"
    picture(models, titles).savefig(path, dpi=110)
    print(f"saved {path}; done in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
