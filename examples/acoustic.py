"""Velocity and density together: a model of two parameters with units of their own.

The acoustic wave equation has two unknowns, given as a dict. A fast lens and a dense lens
lie side by side; surface shots invert for both from a layered start. ``scale`` says how
large a change of each parameter is one unit, which is what makes one shift and one Krylov
space fit both; ``lower`` and ``upper`` bound each, and ``mask`` freezes the water. A weak
penalty on rough changes, ``Tikhonov`` added to the misfit, fills in what the waves do not
see. The script prints misfit and both model errors after each step, and saves a
picture in ``output/acoustic``.

    python examples/acoustic.py
"""

from __future__ import annotations

import time
from pathlib import Path

import deepwave
import torch
from matplotlib.figure import Figure
from torch import Tensor

import hvpopt
from hvpopt.plotting import draw_convergence, draw_image

NY, NX = 32, 60
DX = 10.0  # metres
DT = 0.003  # seconds
SAMPLES = 220
FREQUENCY = 15.0  # hertz
N_SHOTS = 5
WATER = 4  # cells
V_LENS, RHO_LENS = 18, 42  # columns
LARGEST = {"v": 150.0, "rho": 300.0}  # change, and the scale of the unknowns
UNITS = {"v": "m/s", "rho": "kg/m³"}
OUTPUT = Path("output/acoustic")


def layered() -> dict[str, Tensor]:
    """Return water over two layers: velocity and density ``[depth, distance]``."""
    v = torch.full((NY, NX), 1500.0)
    rho = torch.full((NY, NX), 1000.0)
    v[WATER:], rho[WATER:] = 1800.0, 1900.0
    v[24:], rho[24:] = 2200.0, 2200.0
    return {"v": v, "rho": rho}


def lens(column: int) -> Tensor:
    """Return a smooth lens of height 1 about a cell 15 deep."""
    y = (torch.arange(NY) - 15.0)[:, None] / 1.6
    x = (torch.arange(NX) - float(column))[None, :] / 5.0
    return torch.exp(-0.5 * (x**2 + y**2))


def with_lenses() -> dict[str, Tensor]:
    """Return the same with a fast lens on the left and a dense one on the right."""
    model = layered()
    model["v"] += LARGEST["v"] * lens(V_LENS)
    model["rho"] += LARGEST["rho"] * lens(RHO_LENS)
    return model


def make_survey() -> hvpopt.fwi.Survey:
    """Return pressure shots and hydrophones near the surface."""
    wavelet = deepwave.wavelets.ricker(FREQUENCY, SAMPLES, DT, 1.3 / FREQUENCY)
    at = torch.linspace(3, NX - 4, N_SHOTS).round().long()
    sources = torch.stack([torch.ones_like(at), at], -1)[:, None]
    across = torch.arange(0, NX)
    receivers = torch.stack([torch.ones_like(across), across], -1)
    return hvpopt.fwi.Survey(
        "acoustic",
        grid_spacing=DX,
        dt=DT,
        sources={"volume_rate": (wavelet.repeat(N_SHOTS, 1, 1), sources)},
        receivers={"p": receivers.repeat(N_SHOTS, 1, 1)},
        max_vel=2500.0,
        pml_freq=FREQUENCY,
        pml_width=10,
    )


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


def summary(
    start: dict[str, Tensor], true: dict[str, Tensor], result: hvpopt.MinimizeResult
) -> Figure:
    """Return what was to be found and what was, for each parameter; and convergence."""
    figure = Figure(figsize=(13.0, 6.0), layout="constrained")
    axes = figure.subplots(2, 3)
    for row, name in zip(axes, true, strict=True):
        wanted, found = true[name] - start[name], result.x[name] - start[name]
        reach = float(wanted.abs().max())
        for ax, title, change in (
            (row[0], f"{name}: true − start", wanted),
            (row[1], f"{name}: inverted − start", found),
        ):
            draw_image(
                ax,
                change,
                title,
                spacing=DX,
                unit=UNITS[name],
                limits=(-reach, reach),
                signed=True,
            )
    draw_convergence(axes[0, 2], {"shifted Newton": result.history})
    depths = (torch.arange(NY) + 0.5) * DX
    for name, column, colour in (("v", V_LENS, "C0"), ("rho", RHO_LENS, "C1")):
        ax = axes[1, 2] if name == "v" else axes[1, 2].twiny()
        ax.plot(true[name][:, column], depths, colour, label=f"{name}, true")
        ax.plot(result.x[name][:, column], depths, f"{colour}--", label="inverted")
        ax.set_xlabel(f"{name} ({UNITS[name]}), through its lens", color=colour)
    axes[1, 2].set_ylabel("depth (m)")
    axes[1, 2].invert_yaxis()
    axes[1, 2].text(
        0.05, 0.05, "full: true\ndashed: inverted", transform=axes[1, 2].transAxes
    )
    return figure


def main() -> None:
    """Simulate, invert, print the table, save the picture."""
    began = time.perf_counter()
    torch.set_num_threads(1)  # on grids this small a second thread mostly waits
    true, start = with_lenses(), layered()
    survey = make_survey()
    print(survey.info)
    misfit = hvpopt.fwi.WaveformMisfit(survey, survey.simulate(true))
    free = torch.ones(NY, NX, dtype=torch.bool)
    free[:WATER] = False
    errors: dict[str, list[float]] = {name: [] for name in true}

    def note_errors(model: dict[str, Tensor], _: hvpopt.IterationRecord) -> None:
        for name, column in errors.items():
            wanted = (true[name] - start[name]).norm()
            column.append(float((true[name] - model[name]).norm() / wanted))

    roughness = hvpopt.Tikhonov(
        spacing=DX, scale=LARGEST, reference=start, name="roughness"
    )
    result = hvpopt.minimize(
        misfit + 3e-4 * misfit.value(start) * roughness,
        start,
        method=hvpopt.ShiftedNewton(max_products=14),
        scale=LARGEST,
        lower={"v": 1450.0, "rho": 950.0},
        upper={"v": 2450.0, "rho": 2600.0},
        mask=free,
        max_iter=4,
        callback=note_errors,
        progress=True,
    )
    print_table(result, errors)

    OUTPUT.mkdir(parents=True, exist_ok=True)
    path = OUTPUT / "summary.png"
    summary(start, true, result).savefig(path, dpi=110)
    print(f"saved {path}")
    print(f"done in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
