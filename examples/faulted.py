"""Multi-shot inversion of a faulted model, from surface data, by Newton's method.

The script makes a layered model that two faults cut, simulates eight surface shots over
it, smooths it, and inverts the data from there with exact Hessian-vector products: one
Born pass each, two shots at a time, the water layer frozen, velocities bounded. It prints
misfit and model error after each step, and saves pictures in ``output/faulted``.

    python examples/faulted.py

A model of your own (``.npy``, or ``.sgy`` and ``.segy`` with the extra ``hvpopt[segy]``)
takes its place:

    python examples/faulted.py model.npy --spacing 25

Some published files hold the transpose of what their shape says. The Marmousi model
``marmousi_100x310_vp.npy`` says [100, 310], but its numbers run down one trace after the
other; ``--reshape`` names the true order [distance, depth], and the script transposes.
It is 3 km deep, which ``--seconds 3`` records:

    python examples/faulted.py marmousi_100x310_vp.npy --spacing 30 --reshape 310 100
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import deepwave
import torch
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter
from torch import Tensor

import hvpopt
from hvpopt.fwi import gauss_newton_diagonal, source_illumination
from hvpopt.plotting import draw_convergence, draw_image

FREQUENCY = 8.0  # hertz, the peak of the Ricker wavelet
DT = 0.006  # seconds; waves run at half of it, which the survey sees to
N_SHOTS = 8
DEPTH = 1  # of sources and receivers, cells
OUTPUT = Path("output/faulted")


def faulted_model(ny: int = 48, nx: int = 120) -> Tensor:
    """Return layers under water, bent and cut by two faults ``[ny, nx]``, m/s."""
    depth = torch.arange(ny)[:, None].expand(ny, nx).float()
    x = torch.arange(nx).float()
    # how far each column has moved down: a fold, and the throws of two dipping faults
    moved = 3.0 * torch.sin(2 * torch.pi * x / nx)[None, :].expand(ny, nx)
    moved = moved + 5.0 * (x[None, :] > 40 + 0.4 * depth)
    moved = moved - 4.0 * (x[None, :] > 88 - 0.3 * depth)
    bed = depth - moved
    v = torch.full((ny, nx), 1700.0)
    for top, velocity in (
        (12.5, 2000.0),
        (18.5, 2300.0),
        (24.5, 2100.0),
        (31.5, 2600.0),
        (38.5, 2900.0),
    ):
        v[bed > top] = velocity
    v[:5] = 1500.0
    return v


def read_model(path: Path, reshape: list[int] | None) -> Tensor:
    """Return the model of a file ``[depth, distance]``, m/s."""
    v = hvpopt.fwi.read_model(path)
    if reshape is not None:
        v = v.reshape(reshape).T.contiguous()
    return v


def water_rows(v: Tensor) -> int:
    """Return how many rows from the top are water, but those of the sources at least."""
    water = (v < 1550.0).all(1).int()
    return max(int(water.cumprod(0).sum()), DEPTH + 1)


def smooth(v: Tensor, rows: int, cells: float) -> Tensor:
    """Blur the slowness under the water, which keeps its travel times."""
    slowness = gaussian_filter(1 / v.double().numpy(), cells, mode="nearest")
    start = (1 / torch.from_numpy(slowness)).to(v)
    start[:rows] = v[:rows]
    return start


def make_survey(
    v: Tensor, spacing: float, seconds: float, n_shots: int = N_SHOTS
) -> hvpopt.fwi.Survey:
    """Return surface shots, with a receiver in every other cell of the surface."""
    nx = v.shape[1]
    nt = round(seconds / DT)
    wavelet = deepwave.wavelets.ricker(FREQUENCY, nt, DT, 1.3 / FREQUENCY)
    at = torch.linspace(0.05, 0.95, n_shots).mul(nx - 1).round().long()
    sources = torch.stack([torch.full_like(at, DEPTH), at], -1)[:, None]
    across = torch.arange(0, nx, 2)
    receivers = torch.stack([torch.full_like(across, DEPTH), across], -1)
    return hvpopt.fwi.Survey(
        "scalar",
        grid_spacing=spacing,
        dt=DT,
        sources={"u": (wavelet.repeat(n_shots, 1, 1), sources)},
        receivers={"u": receivers.repeat(n_shots, 1, 1)},
        max_vel=1.1 * float(v.max()),
        pml_freq=FREQUENCY,
        pml_width=10,
    )


def print_table(result: hvpopt.MinimizeResult, errors: list[float]) -> None:
    """Print misfit, model error and cost after each step."""
    print(
        f"\n{'step':>4}{'misfit':>12}{'of start':>10}{'model error':>13}{'λ_min':>12}"
        f"{'τ':>11}{'products':>10}{'propagations':>14}{'seconds':>9}"
    )
    first = result.history[0].value
    for record, error in zip(result.history, errors, strict=True):
        line = f"{record.iteration:4d}{record.value:12.4e}{record.value / first:10.1%}"
        line += f"{error:13.2%}"
        if record.iteration:
            line += f"{record.smallest_eigenvalue:12.2e}{record.shift:11.2e}"
        else:
            line += f"{'':23}"
        line += f"{record.counts.products:10d}{record.counts.propagations:14d}"
        print(f"{line}{record.seconds:9.1f}")
    print(result.message)


def summary(
    models: dict[str, Tensor], result: hvpopt.MinimizeResult, spacing: float
) -> Figure:
    """Return models, the change and the convergence in one picture."""
    figure = Figure(figsize=(13.0, 6.4), layout="constrained")
    axes = figure.subplots(2, 3)
    true = models["true"]
    limits = (float(true.min()), float(true.max()))
    for ax, (title, model) in zip(axes.flat[:3], models.items(), strict=True):
        draw_image(ax, model, title, spacing=spacing, unit="m/s", limits=limits)
    changes = {
        "what was to be found (true − start)": true - models["start"],
        "what was found (inverted − start)": models["inverted"] - models["start"],
    }
    reach = float((true - models["start"]).abs().flatten().quantile(0.98))
    for ax, (title, change) in zip(axes.flat[3:5], changes.items(), strict=True):
        draw_image(
            ax,
            change,
            title,
            spacing=spacing,
            unit="m/s",
            limits=(-reach, reach),
            signed=True,
        )
    draw_convergence(axes[1, 2], {"shifted Newton": result.history})
    return figure


def illumination(
    misfit: hvpopt.fwi.WaveformMisfit, v: Tensor, free: Tensor, spacing: float
) -> Figure:
    """Return the two diagonals that serve as preconditioners, on a logarithmic scale."""
    figure = Figure(figsize=(10.0, 3.4), layout="constrained")
    space = hvpopt.ModelSpace(v, mask=free)
    diagonals = {
        "source illumination": source_illumination(misfit, v, space=space),
        "Gauss-Newton diagonal, 3 probes": gauss_newton_diagonal(misfit, v, space=space),
    }
    for ax, (title, found) in zip(figure.subplots(1, 2), diagonals.items(), strict=True):
        picture = found.picture().log10().masked_fill(~free, torch.nan)
        draw_image(
            ax, picture, title, spacing=spacing, unit="log10, relative", limits=(-4, 0)
        )
    return figure


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("model", nargs="?", type=Path, help="a model file, m/s")
    parser.add_argument("--spacing", type=float, default=25.0, help="cell size, metres")
    parser.add_argument(
        "--reshape",
        type=int,
        nargs=2,
        metavar=("DISTANCE", "DEPTH"),
        help="the true order of a file that holds the transpose of what it says",
    )
    parser.add_argument("--seconds", type=float, default=1.5, help="to record")
    parser.add_argument("--smooth", type=float, default=3.0, help="of the start, cells")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--products", type=int, default=8, help="in each step")
    # on a grid as small as this script's own a second thread mostly waits
    parser.add_argument("--threads", type=int, default=1, help="more for large models")
    return parser.parse_args()


def main() -> None:
    """Simulate, invert, print the table, save the pictures."""
    began = time.perf_counter()
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    v_true = (
        faulted_model()
        if options.model is None
        else read_model(options.model, options.reshape)
    )
    rows = water_rows(v_true)
    v_start = smooth(v_true, rows, options.smooth)
    survey = make_survey(v_true, options.spacing, options.seconds)
    ny, nx = v_true.shape
    print(
        f"{ny} × {nx} cells of {options.spacing:g} m, {rows} rows of water. {survey.info}"
    )

    observed = survey.simulate(v_true)
    misfit = hvpopt.fwi.WaveformMisfit(survey, observed, shots_per_group=2)
    free = torch.ones_like(v_true, dtype=torch.bool)
    free[:rows] = False
    errors: list[float] = []

    def note_error(model: Tensor, _: hvpopt.IterationRecord) -> None:
        errors.append(float((model - v_true)[free].norm() / v_true[free].norm()))

    result = hvpopt.minimize(
        misfit,
        v_start,
        method=hvpopt.ShiftedNewton(max_products=options.products),
        mask=free,
        lower=min(1400.0, float(v_true.min())),
        upper=1.05 * float(v_true.max()),
        max_iter=options.steps,
        callback=note_error,
        progress=True,
    )
    print_table(result, errors)

    OUTPUT.mkdir(parents=True, exist_ok=True)
    models = {"true": v_true, "start": v_start, "inverted": result.x}
    figures = {
        "summary": summary(models, result, options.spacing),
        "illumination": illumination(misfit, v_start, free, options.spacing),
    }
    for name, figure in figures.items():
        path = OUTPUT / f"{name}.png"
        figure.savefig(path, dpi=110)
        print(f"saved {path}")
    print(f"done in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
