"""Small acquisitions and deepwave called plainly: what the fwi tests measure against."""

import os
import warnings

import deepwave
import pytest
import torch

from hvpopt.fwi import Survey

D = torch.float64
SHAPE = (12, 17)
SPACING, DT, NT, FREQ = 5.0, 0.0005, 72, 40.0
MAX_VEL = 2500.0
CHANNELS = {"scalar": ("u", "u"), "acoustic": ("volume_rate", "p"), "elastic": ("y", "y")}


@pytest.fixture(autouse=True)
def one_thread():
    """Propagations this small spend their time waiting for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("HVPOPT_THREADS", "1")))
    yield
    torch.set_num_threads(before)


def rand(shape, g, low=0.0, high=1.0, dtype=D):
    return low + (high - low) * torch.rand(shape, generator=g, dtype=dtype)


def models_of(propagator, g, dtype=D, shape=SHAPE):
    """Random models of a propagator, in its order."""
    v = rand(shape, g, 1600, 2200, dtype)
    if propagator == "scalar":
        return (v,)
    rho = rand(shape, g, 1800, 2300, dtype)
    if propagator == "acoustic":
        return v, rho
    v = v + 900
    return deepwave.vpvsrho_to_lambmubuoyancy(v, rand(shape, g, 1500, 1600, dtype), rho)


def wavelets(n_shots, n_sources=1, nt=NT, dt=DT, dtype=D):
    one = deepwave.wavelets.ricker(FREQ, nt, dt, 0.8 / FREQ, dtype=dtype)
    return (
        one.expand(n_shots, n_sources, nt) * torch.arange(1, n_shots + 1)[:, None, None]
    )


def arguments(propagator="scalar", n_shots=2, dtype=D, **options):
    """Keyword arguments of a Survey, and (with max_vel) of a plain deepwave call."""
    source, receiver = CHANNELS[propagator]
    sources = torch.tensor([[[2, 3 + 2 * i]] for i in range(n_shots)])
    receivers = torch.tensor([[[4, x] for x in (2, 6, 9, 13)]]).repeat(n_shots, 1, 1)
    amplitudes = wavelets(n_shots, dtype=dtype).to(dtype)
    return {
        "grid_spacing": [SPACING, SPACING + 1],
        "dt": DT,
        "sources": {source: (amplitudes, sources)},
        "receivers": {receiver: receivers},
        "max_vel": 4000.0 if propagator == "elastic" else MAX_VEL,
        "pml_freq": FREQ,
        "pml_width": 4,
        **options,
    }


def survey(propagator="scalar", n_shots=2, **options):
    return Survey(propagator, **arguments(propagator, n_shots, **options))


def plain(propagator, models, given):
    """Call deepwave with a survey's arguments; recordings by channel."""
    given = dict(given)
    spacing, dt = given.pop("grid_spacing"), given.pop("dt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(deepwave, propagator)(*models, spacing, dt, **given).receivers


def relative(a, b):
    return float((a - b).norm() / b.norm())


def single(models):
    """A model as a person writes it: one tensor, or a tuple."""
    return models[0] if len(models) == 1 else tuple(models)


def perturbed(models, g, by=0.02):
    return tuple(m * (1 + by * rand(m.shape, g, -1, 1, m.dtype)) for m in models)


def random_step(models, g):
    """A direction in which every model changes by some percent of itself."""
    return single([m * rand(m.shape, g, -0.05, 0.05, m.dtype) for m in models])
