"""One inversion on one process or on many: the same script, the same model.

    python examples/distributed.py
    torchrun --nproc-per-node 2 --max-restarts 3 examples/distributed.py

Each rank runs its share of seven shots and has the data of those alone; values, gradients
and products are summed over ranks in a fixed order, so that the loop takes the same
decisions everywhere. With GPUs each rank takes the one of its number, and messages go by
NCCL. There must not be more ranks than shots.

If a rank fails, all end, and torchrun starts the script again: it goes on from the state
that rank 0 has saved after the last step, or within it. So does the script itself when it
is run again; remove the folder to begin anew.
"""

from __future__ import annotations

import sys
from pathlib import Path

import deepwave
import torch

import hvpopt
from hvpopt import distributed

CELLS = (30, 60)
SPACING = 10.0  # metres
DT, STEPS = 0.001, 300  # seconds
FREQUENCY = 12.0  # hertz
N_SHOTS = 7


def problem(
    device: torch.device,
) -> tuple[distributed.ShardedMisfit, torch.Tensor]:
    """Return the misfit, with the data of this rank's shots alone, and a start."""
    depth = torch.linspace(1500.0, 2100.0, CELLS[0], dtype=torch.float64)
    start = depth[:, None].expand(CELLS).contiguous().to(device)
    v_true = start.clone()
    v_true[12:20, 20:40] += 120.0
    wavelet = deepwave.wavelets.ricker(
        FREQUENCY, STEPS, DT, 1.2 / FREQUENCY, dtype=torch.float64
    )
    sources = torch.full((N_SHOTS, 1, 2), 1)
    sources[:, 0, 1] = torch.linspace(3, CELLS[1] - 4, N_SHOTS).long()
    receivers = torch.full((N_SHOTS, CELLS[1] - 4, 2), 1)
    receivers[:, :, 1] = torch.arange(2, CELLS[1] - 2)
    survey = hvpopt.fwi.Survey(
        "scalar",
        grid_spacing=SPACING,
        dt=DT,
        sources={"u": (wavelet.repeat(N_SHOTS, 1, 1).to(device), sources.to(device))},
        receivers={"u": receivers.to(device)},
        max_vel=2500.0,
        pml_freq=FREQUENCY,
        pml_width=10,
    )
    shots = distributed.own_shots(N_SHOTS)
    # in a survey that was measured, where the rank reads these shots' files
    observed = survey.simulate(v_true, shots)
    own = hvpopt.fwi.WaveformMisfit(survey.select(shots), observed)
    return distributed.shard(own, survey=survey, shots=shots), start


def main() -> None:
    """Invert on all ranks; rank 0 prints and writes."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "output/distributed")
    # one thread for each rank; a GPU does not care
    torch.set_num_threads(1)
    with distributed.session(timeout=60.0):
        misfit, start = problem(distributed.device())
        folder.mkdir(parents=True, exist_ok=True)
        # begins, or goes on where the file is
        result = hvpopt.minimize(
            misfit,
            start,
            lower=1400.0,
            upper=2400.0,
            max_iter=5,
            checkpoint=folder / "run.safetensors",
            history_file=folder / "history.jsonl",
            progress=True,
        )
        if distributed.is_main():
            n_ranks = distributed.size()
            print(f"{n_ranks} rank{'s' if n_ranks > 1 else ''}, {N_SHOTS} shots")
            for record in result.history:
                print(
                    f"{record.iteration:4d} {record.value:.6e}", record.counts.as_dict()
                )
            print(result.message)
            print(f"final misfit {result.fun:.15e}")
            print(f"{misfit.bytes_reduced / 1e3:.1f} kB of vectors summed over ranks")
            torch.save(result.x.cpu(), folder / "model.pt")


if __name__ == "__main__":
    main()
