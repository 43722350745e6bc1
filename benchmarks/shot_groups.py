"""What a CPU saves by running small shots together: ``python benchmarks/shot_groups.py``.

Time of the process for one gradient and one exact product of a scalar survey, by shots a
group, relative to shots run one by one in the same round; the least of some rounds. It is
why small shots run together by default (``SMALL_GROUP``, hvpopt/fwi/hessian/_groups.py).

On 2 cores (AMD EPYC) under other load, one thread, 2026-11-27; 8 shots, of 1.01 MiB 32:

| cells | steps | dtype | histories of a shot | | 2 | 4 | 8 | 16 | 32 |
|---|--:|---|--:|---|--:|--:|--:|--:|--:|
| 20 × 30 | 80 | float32 | 1.01 MiB | gradient | 0.67 | 0.47 | 0.37 | 0.32 | 0.30 |
| | | | | product | 0.65 | 0.49 | 0.40 | 0.34 | 0.34 |
| 30 × 45 | 100 | float64 | 4.28 MiB | gradient | 0.72 | 0.58 | 0.53 | | |
| | | | | product | 0.76 | 0.68 | 0.63 | | |
| 40 × 60 | 150 | float32 | 4.87 MiB | gradient | 0.80 | 0.70 | 0.62 | | |
| | | | | product | 0.79 | 0.67 | 0.66 | | |
"""

import time

import torch

from hvpopt.fwi import Survey, WaveformMisfit

#: Cells, steps, dtype and shots.
CASES = (
    ((20, 30), 80, torch.float32, 32),
    ((30, 45), 100, torch.float64, 8),
    ((40, 60), 150, torch.float32, 8),
)
ROUNDS = 5


def problem(cells, steps, dtype, n_shots):
    """Return a survey of a line of shots, and a model."""
    along = torch.linspace(2, cells[1] - 3, n_shots).long()
    sources = torch.stack([torch.full((n_shots,), 2), along], -1)[:, None]
    line = torch.linspace(2, cells[1] - 3, 8).long()
    receivers = torch.stack([torch.full((8,), 3), line], -1).repeat(n_shots, 1, 1)
    wavelets = torch.sin(0.1 * torch.arange(steps, dtype=dtype)).repeat(n_shots, 1, 1)
    survey = Survey(
        "scalar",
        grid_spacing=5.0,
        dt=4e-4,
        sources={"u": (wavelets, sources)},
        receivers={"u": receivers},
        max_vel=2500.0,
        pml_freq=25.0,
        pml_width=8,
    )
    return survey, 2000.0 + 20.0 * torch.rand(cells, dtype=dtype)


def ratios(survey, v, sizes):
    """Return the times of a gradient and a product by size of groups, over size 1."""
    observed, w = survey.simulate(1.02 * v), torch.randn_like(v)
    least = {}
    for _ in range(ROUNDS):
        for size in sizes:
            misfit = WaveformMisfit(survey, observed, shots_per_group=size)
            hessian = misfit.hessian(v)
            for name, run in (
                ("gradient", lambda misfit=misfit: misfit.value_and_gradient(v)),
                ("product", lambda hessian=hessian: hessian @ w),
            ):
                began = time.process_time()
                run()
                spent = time.process_time() - began
                least[name, size] = min(spent, least.get((name, size), spent))
    return {key: spent / least[key[0], 1] for key, spent in least.items()}


def main():
    """Print the ratios."""
    torch.set_num_threads(1)
    for cells, steps, dtype, n_shots in CASES:
        survey, v = problem(cells, steps, dtype, n_shots)
        sizes = [size for size in (1, 2, 4, 8, 16, 32) if size <= n_shots]
        found = ratios(survey, v, sizes)
        held = survey.history_bytes([v]) / 2**20
        print(f"{cells}, {steps} steps, {dtype}: {held:.2f} MiB of histories a shot")
        for name in ("gradient", "product"):
            told = (f"{size}: {found[name, size]:.2f}" for size in sizes)
            print(f"  {name:8s}  {'  '.join(told)}")


if __name__ == "__main__":
    main()
