"""How finely a Hessian resolves a model, and how its parameters trade off.

Let ``y = H z`` for a vector z of independent random signs. Then ``E[y(u) y(u + δ)]`` is
``Σ_c H(u, c) H(u + δ, c)``: the autocorrelation of the point-spread function around u
(Fichtner and van Leeuwen, J. Geophys. Res. 120, 2015), estimated by sums over a window
and a few probes. For a Gaussian spread

    H(u, c) ∝ exp(−½ (u − c)ᵀ M (u − c))

the normalised autocorrelation is ``ρ(δ) = exp(−¼ δᵀ M δ)``. With ``L(δ) = −4 ln ρ(δ)``
at lags of one cell along the axes and diagonals,

    M_ii = L(e_i),    M_ij = (L(e_i + e_j) − L(e_i − e_j)) / 4.

The resolution length along an axis is ``1/√M_ii``, the standard deviation of the spread's
profile along it; of another spread, of the Gaussian of like autocorrelation at one cell.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from hvpopt import checks
from hvpopt.analysis.estimate import CONFIDENCE, Estimate, student_factor
from hvpopt.analysis.probes import jackknife
from hvpopt.analysis.responses import ParameterGrid, Probes, mean_of_products

#: Least autocorrelation at one cell that is told from none: a length of 0.29 cells.
LEAST_CORRELATION = 0.05
#: Standard deviation of the averaging window, cells.
WINDOW = 4.0
#: Relative standard error of a sampled square above which nothing is made of it.
UNCERTAIN = 0.35
#: Local answers are read where they exceed their rounding by this factor.
ABOVE_ROUNDING = 10.0


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ResolutionLengths(Estimate[Tensor]):
    """Resolution lengths of one parameter around each of its cells.

    Attributes:
        value: Lengths along each axis of the grid, ``[d, *shape]``, in units of
            ``spacing``: the standard deviation of the point spread's profile. NaN in
            frozen cells, and where samples left no positive square; infinite where
            neighbours answer alike; never under 0.29 cells, which means no correlation.
        standard_error: ``[d, *shape]``, by the jackknife over probes.
        principal: Lengths along the principal axes, ``[d, *shape]``, shortest first;
            NaN where the spread is no Gaussian, not even nearly: M is then indefinite.
        direction: Unit vector along the longest principal axis, ``[d, *shape]``.
        parameter: Its name.
        spacing: Cell size along each axis.
    """

    principal: Tensor
    direction: Tensor
    parameter: str
    spacing: tuple[float, ...]

    @property
    def anisotropy(self) -> Tensor:
        """Longest over shortest principal length, ``[*shape]``."""
        return self.principal[-1] / self.principal[0]


def resolution_lengths(
    probes: Probes,
    parameter: str | None = None,
    *,
    spacing: float | Sequence[float] = 1.0,
    window: float = WINDOW,
    confidence: float = CONFIDENCE,
) -> ResolutionLengths:
    """Return resolution lengths and anisotropy around each cell, at no further product.

    Args:
        probes: From ``random_probes``; about five suffice.
        parameter: Its name. Default the only one.
        spacing: Cell size, one number or one for each axis. Default 1: cells.
        window: Standard deviation of the Gaussian window that is averaged over, cells. A
            wider one has less error and sees less detail. Default 4.
        confidence: Of the margins. Default 0.95.

    Returns:
        The lengths, with standard errors from the scatter of the probes.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: For an unknown parameter, or numbers out of range.
    """
    checks.instance("probes", probes, Probes, "pass what random_probes returned")
    grid = probes.grid(parameter)
    window = checks.number("window", window, above=0.0, most=1e6)
    steps = checks.per_axis("spacing", spacing, grid.free.ndim)
    place = probes.names.index(grid.name)
    answers = grid.scatter(probes.responses[place].double())
    lags = list(_lags(grid.free.ndim))
    curvatures = [_curvature_sums(answers, grid, lag, window) for lag in lags]

    def lengths_of(sums: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        logs = torch.stack([_minus_four_log(*part) for part in sums])
        metric = _metric(lags, logs, steps)
        along = metric.diagonal(dim1=-2, dim2=-1).movedim(-1, 0).rsqrt()
        return along, metric

    total = [part.sum(1) for part in curvatures]
    value, metric = lengths_of(total)
    without = [
        lengths_of([part.sum(1) - part[:, k] for part in curvatures])[0]
        for k in range(probes.n_probes)
    ]
    error = jackknife(torch.stack(without, -1))
    if not probes.whole:
        # the sums of squares along the first axis stand for those along all
        lost = _relative_error(curvatures[0][1]) > UNCERTAIN
        value = value.masked_fill(lost, torch.nan)
        metric = torch.where(lost[..., None, None], torch.nan, metric)
    eigenvalues, axes = torch.linalg.eigh(metric.nan_to_num(posinf=0.0, neginf=0.0))
    principal = eigenvalues.flip(-1).movedim(-1, 0)
    principal = torch.where((principal > 0).all(0), principal, torch.nan).rsqrt()
    direction = axes[..., 0].movedim(-1, 0)
    notes = _notes(value, _below_rounding(answers, grid, window, probes.noise), grid)
    frozen = ~grid.free
    for field in (value, error, principal, direction):
        field[:, frozen] = torch.nan
    middle = value.flatten(1).nanmedian(1).values.tolist()
    message = (
        f"median resolution lengths of {grid.name!r} along each axis: "
        + ", ".join(f"{length:.3g}" for length in middle)
        + notes
    )
    return ResolutionLengths(
        value=value,
        standard_error=error,
        # Lengths scatter more upwards than downwards, and where they come out too short
        # so does their error: the interval is that of the logarithm, its upper side.
        margin=value * torch.expm1(error * _factor(confidence, probes) / value),
        confidence=confidence,
        n_products=probes.n_products,
        n_propagations=probes.n_propagations,
        message=message,
        principal=principal,
        direction=direction,
        parameter=grid.name,
        spacing=steps,
    )


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class CrossTalk(Estimate[Tensor]):
    """How parameters of one model trade off.

    Attributes:
        value: ``[p, p]``, symmetric: ``‖H_ij‖ / √(‖H_ii‖ ‖H_jj‖)`` in Frobenius norms, 1
            on the diagonal; NaN where the samples do not suffice. For a Gauss-Newton
            matrix it lies in [0, 1]: 0 where two parameters do not trade off, 1 where the
            data cannot tell them apart.
        standard_error: ``[p, p]``, by the jackknife over probes; 0 on the diagonal.
        names: Of the parameters.
        answers: By (answering parameter, changed parameter): the root mean square of the
            answer around each cell to random changes of one unit of the scale, relative
            to what the answering parameter's own changes cause there. NaN in frozen
            cells.
    """

    names: tuple[str, ...]
    answers: dict[tuple[str, str], Tensor]


def cross_talk(
    probes: Probes, *, window: float = WINDOW, confidence: float = CONFIDENCE
) -> CrossTalk:
    """Return how strongly parameters are coupled, at no further product.

    Args:
        probes: From ``random_probes``, in coordinates whose scale makes parameters
            comparable.
        window: Standard deviation of the window of the pictures, cells. Default 4.
        confidence: Of the margins. Default 0.95.

    Returns:
        The matrix and a picture for each pair.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: For numbers out of range.
    """
    checks.instance("probes", probes, Probes, "pass what random_probes returned")
    window = checks.number("window", window, above=0.0, most=1e6)
    names, p = probes.names, len(probes.grids)
    energy = torch.empty(p, p, probes.n_probes, dtype=torch.float64)
    local: dict[tuple[str, str], Tensor] = {}
    for i, (name, grid) in enumerate(probes.grids.items()):
        for j, changed in enumerate(names):
            own = probes.responses[j].double()
            flat = mean_of_products(own[..., grid.cells], own[..., grid.cells])
            energy[i, j] = flat.sum(-1)
            picture = mean_of_products(grid.scatter(own), grid.scatter(own)).sum(0)
            local[name, changed] = _smooth(picture, window, grid.free.ndim)

    def squared_coupling(sums: Tensor) -> Tensor:
        own = sums.diagonal()
        # H is symmetric: both orders estimate one norm
        return 0.5 * (sums + sums.mT) / (own[:, None] * own[None, :]).sqrt()

    squared = squared_coupling(energy.sum(-1))
    without = [
        squared_coupling(energy.sum(-1) - energy[..., k]) for k in range(probes.n_probes)
    ]
    variance = jackknife(torch.stack(without, -1))
    value = squared.clamp(min=0.0).sqrt()
    # of a root: half the relative error of the square, or its root where that is zero
    error = (squared.clamp(min=0.0) + variance).sqrt() - value
    if not probes.whole:
        lost = _relative_error(energy.diagonal()) > UNCERTAIN  # of [k, p]
        unknown = (lost[:, None] | lost[None, :]) & ~torch.eye(p, dtype=torch.bool)
        value, error = (t.masked_fill(unknown, torch.nan) for t in (value, error))
    answers = {}
    for name, changed in local:
        ratio = local[name, changed] / local[name, name]
        answers[name, changed] = (
            ratio.clamp(min=0.0).sqrt().masked_fill(~probes.grids[name].free, torch.nan)
        )
    pairs = [
        (float(value[i, j]), i, j)
        for i, j in combinations(range(p), 2)
        if not bool(value[i, j].isnan())
    ]
    message = "there is only one parameter, which trades off with nothing"
    if p > 1:
        message = "the samples do not suffice for any coupling: draw more for each"
    if pairs:
        most, i, j = max(pairs)
        message = (
            f"{names[i]} and {names[j]} are coupled most, at {most:.2f} ± "
            f"{float(error[i, j]):.2f} of 1"
        )
    return CrossTalk(
        value=value,
        standard_error=error,
        margin=error * _factor(confidence, probes),
        confidence=confidence,
        n_products=probes.n_products,
        n_propagations=probes.n_propagations,
        message=message,
        names=names,
        answers=answers,
    )


# -- helpers --------------------------------------------------------------------


def _lags(d: int) -> Iterator[tuple[int, ...]]:
    """Yield the lags of one cell along every axis, and along both diagonals of two."""
    for i in range(d):
        yield tuple(int(axis == i) for axis in range(d))
    for i, j in combinations(range(d), 2):
        for sign in (1, -1):
            yield tuple(int(a == i) + sign * int(a == j) for a in range(d))


def _curvature_sums(
    answers: Tensor, grid: ParameterGrid, lag: tuple[int, ...], window: float
) -> Tensor:
    """Return windowed sums of y(u) y(u + δ), y(u)² and y(u + δ)², ``[3, k, *shape]``."""
    # Answers are [k, r, *shape], lag δ and window in cells. All three sums run over the
    # same pairs of free cells: a correlation of whole products is at most 1 (Cauchy,
    # Schwarz).
    here = tuple(slice(max(0, -s), n - max(0, s)) for s, n in _axes(lag, grid))
    there = tuple(slice(max(0, s), n - max(0, -s)) for s, n in _axes(lag, grid))
    both = grid.free[here] & grid.free[there]
    # the same places on the grid, whatever axes stand before it
    at_here: Any = (..., *here)
    at_there: Any = (..., *there)
    a, b = answers[at_here] * both, answers[at_there] * both
    sums = []
    for left, right in ((a, b), (a, a), (b, b)):
        product = mean_of_products(left, right)
        full = product.new_zeros(product.shape[0], *grid.free.shape)
        # a pair counts half at either of its cells
        full[at_here] += 0.5 * product
        full[at_there] += 0.5 * product
        sums.append(_smooth(full, window, grid.free.ndim))
    return torch.stack(sums)


def _axes(lag: tuple[int, ...], grid: ParameterGrid) -> list[tuple[int, int]]:
    return list(zip(lag, grid.free.shape, strict=True))


def _minus_four_log(between: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """Return ``L = −4 ln ρ``, from 0 up; NaN where samples left negative squares."""
    correlation = between / (here * there).sqrt()
    correlation = torch.where((here > 0) & (there > 0), correlation, torch.nan)
    return -4.0 * correlation.clamp(LEAST_CORRELATION, 1.0).log()


def _metric(
    lags: Sequence[tuple[int, ...]], logs: Tensor, spacing: tuple[float, ...]
) -> Tensor:
    """Return M ``[*shape, d, d]`` from L at the lags, in units of the spacing."""
    d, found = len(spacing), dict(zip(lags, logs, strict=True))
    metric = logs.new_zeros(*logs.shape[1:], d, d)
    for lag, log in found.items():
        axes = [axis for axis, step in enumerate(lag) if step]
        i, j = axes[0], axes[-1]
        part = log if i == j else 0.25 * lag[j] * log
        metric[..., i, j] += part / (spacing[i] * spacing[j])
        if i != j:
            metric[..., j, i] = metric[..., i, j]
    return metric


def _smooth(fields: Tensor, window: float, d: int) -> Tensor:
    """Return fields ``[..., *shape]`` times a Gaussian window along the last d axes."""
    widths = [0.0] * (fields.ndim - d) + [window] * d
    smoothed = gaussian_filter(fields.numpy(), widths, mode="constant", truncate=3.0)
    return torch.from_numpy(np.ascontiguousarray(smoothed))


def _factor(confidence: float, probes: Probes) -> float:
    """Return how many standard errors wide a margin is."""
    # squares of sampled products scatter more than a normal variable does, for which one
    # degree of freedom is given up
    n = probes.n_probes if probes.whole else max(probes.n_probes - 1, 0)
    return student_factor(confidence, n)


def _relative_error(sums: Tensor) -> Tensor:
    """Return the relative standard error of a sum over ``[k, ...]``; inf if negative."""
    mean, n = sums.mean(0), sums.shape[0]
    if n < 2:
        return torch.full_like(mean, torch.nan)
    relative = sums.std(0) / math.sqrt(n) / mean
    return torch.where(mean > 0, relative, torch.inf)


def _below_rounding(
    answers: Tensor, grid: ParameterGrid, window: float, noise: float
) -> Tensor:
    """Return True ``[*shape]`` where answers are not well above their rounding."""
    # a product's rounding spreads over all cells, as ``noise`` times its norm
    d = grid.free.ndim
    energy = _smooth(mean_of_products(answers, answers).mean(0) * grid.free, window, d)
    share = _smooth(grid.free.double(), window, d)
    mean = answers.square().mean((0, 1))[grid.free].mean()
    floor = (ABOVE_ROUNDING * noise) ** 2 * mean
    return grid.free & (energy < floor * share)


def _notes(value: Tensor, low: Tensor, grid: ParameterGrid) -> str:
    """Return what the message says of cells without a length, or with a rough one."""
    text = ""
    single = [axis for axis, size in enumerate(grid.free.shape) if size == 1]
    for axis in single:
        text += f"; no length along axis {axis}, which has one cell alone"
    told = [axis for axis in range(grid.free.ndim) if axis not in single]
    lost = int(value[told].isnan().any(0)[grid.free].sum())
    if lost:
        text += (
            f"; none in {lost} cells, where the samples do not suffice: draw more, or "
            "widen the window"
        )
    if bool(low.any()):
        text += (
            f"; in {int(low.sum())} cells the answers are hardly above the rounding of "
            "the products"
        )
    return text
