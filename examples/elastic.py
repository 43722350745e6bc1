"""P velocity, S velocity and density together, and the Hessian that couples them.

The elastic propagator takes Lamé parameters and buoyancy; people think in vp, vs and
density. ``VpVsRho`` stands between, and products are exact through it, its own second
derivative included. The script

1. inverts for all three from vertical and horizontal recordings of surface shots;
2. assembles the whole Hessian of a 10 × 12 model, 3 × 120 unknowns in scaled coordinates,
   and draws its nine blocks. The blocks off the diagonal are the cross-talk between
   parameters: how a change of one is answered by the gradient of another. None is zero.

It prints misfit and model errors after each step, and the norm of each block; pictures
go to ``output/elastic``.

    python examples/elastic.py
"""

from __future__ import annotations

import time
from pathlib import Path

import deepwave
import torch
from matplotlib.figure import Figure
from torch import Tensor

import hvpopt
from hvpopt.plotting import SIGNED, draw_convergence, draw_image

DX = 10.0  # metres
FREQUENCY = 15.0  # hertz
NAMES = ("vp", "vs", "rho")
UNITS = {"vp": "m/s", "vs": "m/s", "rho": "kg/m³"}
SCALE = {"vp": 200.0, "vs": 120.0, "rho": 200.0}  # one unit of each unknown
BACKGROUND = {"vp": 2000.0, "vs": 1150.0, "rho": 2000.0}
OUTPUT = Path("output/elastic")

Model = dict[str, Tensor]


def layered(ny: int, nx: int) -> Model:
    """Return values that grow with depth, ``[depth, distance]``."""
    growth = 1 + 0.2 * torch.arange(ny, dtype=torch.float64)[:, None] / ny
    return {name: (v * growth).repeat(1, nx) for name, v in BACKGROUND.items()}


def with_lenses(start: Model) -> Model:
    """Return the same with a lens of each parameter, beside one another."""
    ny, nx = start["vp"].shape
    y = (torch.arange(ny)[:, None] - 0.45 * ny) / (0.07 * ny)
    model = {}
    for i, name in enumerate(NAMES):
        x = (torch.arange(nx)[None, :] - (i + 1) * nx / 4) / (0.07 * nx)
        model[name] = start[name] + SCALE[name] * torch.exp(-0.5 * (x**2 + y**2))
    return model


def make_survey(nx: int, n_shots: int, samples: int) -> hvpopt.fwi.Survey:
    """Return vertical forces near the surface, recorded in both components."""
    dt = 0.003  # seconds
    wavelet = deepwave.wavelets.ricker(
        FREQUENCY, samples, dt, 1.3 / FREQUENCY, dtype=torch.float64
    )
    at = torch.linspace(2, nx - 3, n_shots).round().long()
    sources = torch.stack([torch.ones_like(at), at], -1)[:, None]
    across = torch.arange(1, nx - 1)
    receivers = torch.stack([torch.ones_like(across), across], -1)
    everywhere = receivers.repeat(n_shots, 1, 1)
    return hvpopt.fwi.Survey(
        "elastic",
        grid_spacing=DX,
        dt=dt,
        sources={"y": (wavelet.repeat(n_shots, 1, 1), sources)},
        receivers={"y": everywhere, "x": everywhere},
        max_vel=2800.0,
        pml_freq=FREQUENCY,
        pml_width=8,
    )


def make_misfit(true: Model, n_shots: int, samples: int) -> hvpopt.fwi.WaveformMisfit:
    """Return the misfit to data of a true model, as a function of vp, vs and rho."""
    survey = make_survey(true["vp"].shape[1], n_shots, samples)
    change = hvpopt.fwi.VpVsRho()
    return hvpopt.fwi.WaveformMisfit(
        survey, survey.simulate(change(**true)), parameterisation=change
    )


# -- 1. inversion -----------------------------------------------------------------------


def invert(ny: int = 24, nx: int = 44) -> None:
    """Invert for the three lenses; print the table and save the picture."""
    start = layered(ny, nx)
    true = with_lenses(start)
    misfit = make_misfit(true, n_shots=4, samples=130)
    print(misfit.survey.info)
    free = torch.ones(ny, nx, dtype=torch.bool)
    free[:3] = False  # around sources and receivers
    errors: dict[str, list[float]] = {name: [] for name in NAMES}

    def note_errors(model: Model, _: hvpopt.IterationRecord) -> None:
        for name, column in errors.items():
            wanted = (true[name] - start[name]).norm()
            column.append(float((true[name] - model[name]).norm() / wanted))

    roughness = hvpopt.Tikhonov(
        spacing=DX, scale=SCALE, reference=start, name="roughness"
    )
    result = hvpopt.minimize(
        misfit + 3e-4 * misfit.value(start) * roughness,
        start,
        method=hvpopt.ShiftedNewton(max_products=12),
        scale=SCALE,
        lower={name: 0.8 * v for name, v in BACKGROUND.items()},
        upper={name: 1.35 * v for name, v in BACKGROUND.items()},
        mask=free,
        max_iter=3,
        callback=note_errors,
        progress=True,
    )
    print_table(result, errors)
    save(picture_of_models(start, true, result, errors), "inversion")


def print_table(result: hvpopt.MinimizeResult, errors: dict[str, list[float]]) -> None:
    """Print misfit, the error of each parameter and the cost after each step."""
    names = "".join(f"{f'error of {name}':>14}" for name in errors)
    print(f"\n{'step':>4}{'misfit':>12}{'of start':>10}{names}{'products':>10}")
    first = result.history[0].parts["waveforms"]
    for i, record in enumerate(result.history):
        value = record.parts["waveforms"]
        line = f"{i:4d}{value:12.4e}{value / first:10.2%}"
        line += "".join(f"{column[i]:14.2%}" for column in errors.values())
        print(f"{line}{record.counts.products:10d}")
    print("errors are relative to the lens that is looked for: 100% is the start")
    print(result.message)


def picture_of_models(
    start: Model,
    true: Model,
    result: hvpopt.MinimizeResult,
    errors: dict[str, list[float]],
) -> Figure:
    """Return what was to be found and what was, a column for each parameter."""
    figure = Figure(figsize=(15.0, 5.6), layout="constrained")
    axes = figure.subplots(2, 4)
    for column, name in zip(axes.T, NAMES, strict=False):
        wanted, found = true[name] - start[name], result.x[name] - start[name]
        for ax, title, change in (
            (column[0], f"{name}: true − start", wanted),
            (column[1], f"{name}: inverted − start", found),
        ):
            draw_image(
                ax,
                change,
                title,
                spacing=DX,
                unit=UNITS[name],
                limits=(-SCALE[name], SCALE[name]),
                signed=True,
            )
    draw_convergence(axes[0, 3], {"shifted Newton": result.history})
    for name, column in errors.items():
        axes[1, 3].plot(column, "o-", label=name)
    axes[1, 3].set_title("error of each lens")
    axes[1, 3].set_xlabel("step")
    axes[1, 3].set_ylabel("relative to the start")
    axes[1, 3].set_ylim(0, 1.05)
    axes[1, 3].grid(alpha=0.3)
    axes[1, 3].legend()
    return figure


# -- 2. the Hessian's blocks ------------------------------------------------------------


def hessian_blocks(ny: int = 10, nx: int = 12) -> None:
    """Assemble both Hessians; print the norm of each block and save the pictures."""
    start = layered(ny, nx)
    misfit = make_misfit(with_lenses(start), n_shots=2, samples=70)
    space = hvpopt.ModelSpace(start, scale=SCALE)
    n = ny * nx
    print(f"\n{ny} × {nx} cells: {space.size} columns of the Hessian, a product each")
    matrix = misfit.hessian(start, space=space).to_dense()
    # [parameter, cell, parameter, cell] to [parameter, parameter, cell, cell]
    blocks = matrix.reshape(3, n, 3, n).permute(0, 2, 1, 3)
    norms = torch.linalg.matrix_norm(blocks)
    assert bool((norms > 1e-3 * norms.max()).all()), "a block is as good as zero"
    print_norms(norms)
    save(picture_of_blocks(blocks, norms), "hessian_blocks")
    cell = (ny // 2, nx // 2)
    rows = blocks[:, :, cell[0] * nx + cell[1]].reshape(3, 3, ny, nx)
    save(picture_of_rows(rows, cell), "hessian_rows")


def print_norms(norms: Tensor) -> None:
    """Print the Frobenius norm of each block, relative to the largest."""
    print(f"norm of each block (largest {float(norms.max()):.3e} = 1)")
    print("        " + "".join(f"{name:>8}" for name in NAMES))
    for name, row in zip(NAMES, norms / norms.max(), strict=True):
        print(f"{name:>8}" + "".join(f"{float(norm):8.3f}" for norm in row))


def picture_of_blocks(blocks: Tensor, norms: Tensor) -> Figure:
    """Return the nine blocks, colours of each to its own limits."""
    figure = Figure(figsize=(9.6, 8.6), layout="constrained")
    axes = figure.subplots(3, 3, sharex=True, sharey=True)
    relative = norms / norms.max()
    for i, row in enumerate(NAMES):
        for j, column in enumerate(NAMES):
            reach = float(blocks[i, j].abs().flatten().quantile(0.98))
            drawn = axes[i, j].imshow(
                (blocks[i, j] / reach).numpy(), cmap=SIGNED, vmin=-1, vmax=1
            )
            axes[i, j].set_title(f"{row}–{column}, norm {float(relative[i, j]):.2f}")
        axes[i, 0].set_ylabel(f"cell of {row}")
        axes[2, i].set_xlabel(f"cell of {row}")
    figure.colorbar(drawn, ax=axes, shrink=0.6, label="of the block's 98th percentile")
    figure.suptitle(
        "Hessian of vp, vs and density, scaled; norms relative to the largest"
    )
    return figure


def picture_of_rows(rows: Tensor, cell: tuple[int, int]) -> Figure:
    """Return the answer of each parameter to a change of each in one cell, as images."""
    figure = Figure(figsize=(11.0, 8.0), layout="constrained")
    axes = figure.subplots(3, 3)
    largest = float(rows.abs().max())
    for i, changed in enumerate(NAMES):
        for j, answering in enumerate(NAMES):
            ax, reach = axes[i, j], float(rows[i, j].abs().max())
            title = f"{changed} changed, {answering} answers: {reach / largest:.3f}"
            draw_image(
                ax, rows[i, j] / reach, title, spacing=DX, limits=(-1, 1), signed=True
            )
            ax.plot((cell[1] + 0.5) * DX, (cell[0] + 0.5) * DX, "k+")
            ax.label_outer()
    figure.suptitle("one cell (+) changed; number: largest answer, relative to all")
    return figure


def save(figure: Figure, name: str) -> None:
    """Save a picture and say where."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    path = OUTPUT / f"{name}.png"
    figure.savefig(path, dpi=110)
    print(f"saved {path}")


def main() -> None:
    """Run both parts."""
    began = time.perf_counter()
    torch.set_num_threads(1)  # on grids this small a second thread mostly waits
    invert()
    hessian_blocks()
    print(f"done in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
