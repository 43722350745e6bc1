"""Simultaneous sources: all shots fired at once with random signs, for cheap products.

With codes ``c`` of ±1, one encoded shot records ``Σ_s c_s F_s(V)``. For a misfit that is
quadratic in the data, with the same weights for every shot, the encoded misfit has the
expectation of the whole one, and so have its Hessian and Gauss-Newton matrix: the
cross-talk of two shots averages out (Krebs et al., Geophysics 74, 2009; as a stochastic
estimate of the trace: Haber, Chung and Herrmann, SIAM J. Optim. 22, 2012). A product
costs one shot instead of all.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import deepwave
import torch
from torch import Tensor

from hvpopt.fwi.hessian.waveforms import Waveforms
from hvpopt.fwi.survey.acquisition import Points, take
from hvpopt.fwi.survey.arguments import whole
from hvpopt.fwi.survey.survey import Survey


def why_not_encoded(waveforms: Waveforms) -> str:
    """Return why the shots cannot be encoded, a sentence; empty where they can."""
    survey, misfit = waveforms.survey, waveforms.data_misfit
    if survey.n_shots == 1:
        return "there is one shot alone"
    if not misfit.same_square_for_every_shot:
        return f"the misfit {misfit.name!r} is not one quadratic for every shot"
    if not survey.fixed_spread:
        return "the receivers differ from shot to shot"
    if survey.has_initial_wavefields:
        return "shots begin with wavefields of their own"
    return ""


def random_codes(n_encoded: int, n_shots: int, seed: int) -> Tensor:
    """Return random signs ``[encoded shot, shot]``, float64 on the CPU."""
    generator = torch.Generator().manual_seed(whole("seed", seed, 0))
    signs = torch.randint(0, 2, (n_encoded, n_shots), generator=generator)
    return 2.0 * signs.double() - 1.0


def encode(waveforms: Waveforms, codes: Tensor) -> Waveforms:
    """Return a waveform misfit of encoded shots.

    Args:
        waveforms: Of the shots themselves.
        codes: Factor of each shot in each encoded one, ``[encoded shot, shot]``.

    Returns:
        Over as many shots as there are rows of codes, normalised like the given one; its
        mean over random signs, times ``1 / len(codes)``, has the given one's Hessian.

    Raises:
        ValueError: If the shots cannot be encoded.
    """
    reason = why_not_encoded(waveforms)
    if reason:
        raise ValueError(f"sources cannot be encoded: {reason}")
    observed = {
        channel: torch.einsum("ks,srt->krt", codes.to(d), d)
        for channel, d in waveforms.observed.items()
    }
    survey = encoded_survey(waveforms.survey, codes)
    return replace(waveforms, survey=survey, observed=observed)


def encoded_survey(survey: Survey, codes: Tensor) -> Survey:
    """Return a survey whose shots fire all of a survey's sources, with factors.

    Args:
        survey: With the same receivers for every shot.
        codes: Factor of each shot in each encoded one, ``[encoded shot, shot]``, at most
            as many rows as there are shots.

    Raises:
        ValueError: For codes of another shape.
    """
    n_encoded, n_shots = codes.shape
    if n_shots != survey.n_shots or not 1 <= n_encoded <= n_shots:
        raise ValueError(
            f"codes have shape {tuple(codes.shape)}; expected [1 to {survey.n_shots}, "
            f"{survey.n_shots}]"
        )
    other = copy.copy(survey)
    other.n_shots = n_encoded
    rows = list(range(n_encoded))
    other._receivers = {
        channel: replace(
            points,
            locations=take(points.locations, rows),
            mask=None if points.mask is None else take(points.mask, rows),
        )
        for channel, points in survey._receivers.items()
    }
    other._sources = {
        channel: _fire(amplitudes, points, codes)
        for channel, (amplitudes, points) in survey._sources.items()
    }
    return other


def _fire(amplitudes: Tensor, points: Points, codes: Tensor) -> tuple[Tensor, Points]:
    """Return the amplitudes and places of all shots' sources at once.

    Sources that share a cell add up there, since a shot may fire a cell only once.
    """
    fired = (codes.to(amplitudes)[:, :, None, None] * amplitudes).flatten(1, 2)
    # amplitudes of a Hicks source are on its support already
    locations = points.locations.flatten(0, 1)
    if points.mask is not None:
        active = points.mask.flatten()[:, None]
        fired = fired * active
        ignored = torch.full_like(locations, deepwave.IGNORE_LOCATION)
        locations = torch.where(active, locations, ignored)
    cells, place = torch.unique(locations, dim=0, return_inverse=True)
    total = fired.new_zeros(len(codes), len(cells), fired.shape[2])
    total.index_add_(1, place, fired)
    return total, Points(cells.expand(len(codes), -1, -1).contiguous())
