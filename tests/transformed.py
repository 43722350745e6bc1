"""Transforms of every kind, and acquisitions whose receivers move, for their tests."""

import torch
from waves import DT, NT, D, arguments, rand, survey

from hvpopt.fwi import (
    BandFilter,
    CosineTaper,
    LinearMoveout,
    Mute,
    OffsetLimits,
    WaveformMisfit,
)

T_END = (NT - 1) * DT


def streamer(n_shots=3, propagator="scalar", channels=None):
    """Receivers that move with the source: no fixed spread."""
    given = arguments(propagator, n_shots)
    ((channel, cells),) = given["receivers"].items()
    cells = cells.clone()
    cells[..., 1] += torch.arange(n_shots)[:, None]
    given["receivers"] = dict.fromkeys(channels or [channel], cells)
    return given


def times(g, n_shots, n_receivers=4):
    return rand((n_shots, n_receivers), g, 0.2, 0.6) * T_END


def transforms_of(g, n_shots):
    """One of each kind, of random sizes."""
    return {
        "top line": Mute(LinearMoveout(2000.0, 0.002), taper=0.004),
        "picks": Mute(top=times(g, n_shots), taper=0.003),
        "window": Mute(0.25 * T_END, 0.9 * T_END, taper=0.002),
        "window of traces": Mute(bottom=0.01 + times(g, n_shots)[0]),
        "offsets": OffsetLimits(8.0, 55.0, taper=9.0),
        "taper": CosineTaper(start=0.004, end=0.007, first=1, last=2),
        "low-pass": BandFilter(high=float(rand((), g, 30, 200)), order=3),
        "band": BandFilter(
            low=float(rand((), g, 10, 30)), high=float(rand((), g, 60, 200))
        ),
    }


KINDS = list(transforms_of(torch.Generator(), 1))


def chain(g, n_shots):
    kinds = transforms_of(g, n_shots)
    return [kinds["picks"], kinds["band"], kinds["offsets"], kinds["taper"]]


def made_with(*transforms, observed=None):
    there = survey()
    data = torch.ones(2, 4, NT, dtype=D) if observed is None else observed
    return WaveformMisfit(there, data, transforms=list(transforms))
