"""Illumination: estimates of a waveform Hessian's diagonal, as preconditioners.

Waves are stronger near sources and receivers than at depth, and the Hessian's diagonal
falls by orders of magnitude with depth. Both estimates of it are never negative.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.fwi.misfit.shot_misfit import ShotMisfit
from hvpopt.fwi.misfit.waveform_misfit import WaveformMisfit
from hvpopt.krylov.diagonal import WIDEST, estimate_diagonal, smooth_diagonal
from hvpopt.krylov.preconditioner import DiagonalPreconditioner
from hvpopt.model._copies import copied_leaves
from hvpopt.model.space import ModelSpace
from hvpopt.model.tensors import Model, rebuild
from hvpopt.operators._autodiff import vjp

#: Of the parameterisation alone, for ``source_illumination``: no waves run, and one is
#: enough where each unknown changes one cell.
MAP_PROBES = 32
#: What to do instead of passing another object.
USE = "pass a hvpopt.fwi.WaveformMisfit"


class Illumination(DiagonalPreconditioner):
    """A damped diagonal with the coordinates that it belongs to.

    Args:
        diagonal: In flat coordinates ``[n]``, none negative.
        space: Those coordinates.
        damping: Floor relative to the largest entry.

    Attributes:
        space: As given.
    """

    def __init__(self, diagonal: Tensor, space: ModelSpace, *, damping: float) -> None:
        super().__init__(diagonal, damping=damping)
        self.space = space

    def picture(self) -> Model:
        """Return the diagonal in the model's units, shaped like it; frozen cells 0.

        Relative to its largest entry, since it may underflow a model's float32.
        """
        scale = self.space.scale
        unscaled = self.diagonal if scale is None else self.diagonal / scale.square()
        relative = unscaled / unscaled.max()
        return self.space.gradient_to_model(
            relative if scale is None else relative * scale
        )


def gauss_newton_diagonal(
    misfit: WaveformMisfit,
    model: Model,
    *,
    n_probes: int = 3,
    smooth: float = 3.0,
    damping: float = 1e-2,
    seed: int = 0,
    space: ModelSpace | None = None,
) -> Illumination:
    """Return the Gauss-Newton Hessian's diagonal, by probing, as a preconditioner.

    It includes receivers, weights and any parameterisation. The estimate is Bekas,
    Kokiopoulou and Saad's, smoothed over cells; see ``hvpopt.krylov.diagonal``. Entries
    that the probes leave negative count as zero: of several parameters that may be all of
    the weaker one, whose own curvature is small beside its coupling to the stronger.
    Scale them to be about equal, or spend more probes. It counts ``n_probes`` products,
    of four propagations a shot, in the misfit.

    Args:
        misfit: Any waveform misfit; of some of its shots by ``misfit.select(shots)``.
        model: Where to linearise.
        n_probes: Products to spend. Default 3.
        smooth: Standard deviation of the smoothing, cells; 0 for none, which
            needs many more probes. Default 3.
        damping: Floor relative to the largest entry. Default 1e-2.
        seed: Of the probes.
        space: Flat coordinates: those that the preconditioner is to be used in.
            Default ``ModelSpace(model)``.

    Returns:
        The preconditioner, with its ``diagonal``.

    Raises:
        ValueError: For no probe, a negative width, a damping that is not positive, or a
            diagonal with no positive entry.
    """
    checks.instance("misfit", misfit, ShotMisfit, USE)
    damping = checks.number("damping", damping, above=0.0, below=math.inf)
    space = ModelSpace(model) if space is None else space
    with misfit.hessian(model, "gauss-newton", space=space) as operator:
        found = estimate_diagonal(operator, n_probes=n_probes, seed=seed, smooth=smooth)
    return Illumination(found.clamp(min=0), space, damping=damping)


def source_illumination(
    misfit: WaveformMisfit,
    model: Model,
    *,
    smooth: float = 0.0,
    damping: float = 1e-2,
    space: ModelSpace | None = None,
) -> Illumination:
    """Return the diagonal pseudo-Hessian of a scalar survey as a preconditioner.

    A change of velocity at cell x scatters the virtual source ``2 v⁻³ ∂²u/∂t²`` there,
    with u the wavefield of a shot. The pseudo-Hessian keeps its energy (Shin, Jang and
    Min, Geophysical Prospecting 49, 2001),

        P(x) = Σ over shots  ∫ (2 v⁻³ ∂²u/∂t²)² dt,

    and takes all cells for equally far from the receivers. ∂²u/∂t² is the second
    difference that deepwave's own update makes, source included. P is not normalised as
    the misfit is: a factor for all cells drops out of preconditioned conjugate gradients
    and of the relative damping.

    Unknowns other than velocity have the diagonal of ``V'ᵀ P V'``: exact where each
    changes one cell (slowness, logarithm, a sub-region), else from random signs.

    Args:
        misfit: Of a scalar survey; of some of its shots by ``misfit.select(shots)``.
        model: Where to linearise.
        smooth: Standard deviation of a smoothing, cells, which spreads the peak
            at each source. Default none.
        damping: Floor relative to the largest entry. Default 1e-2.
        space: Flat coordinates: those that the preconditioner is to be used in.
            Default ``ModelSpace(model)``.

    Returns:
        The preconditioner, with its ``diagonal``. It counts one propagation a shot.

    Raises:
        ValueError: For another propagator, a survey with ``survey_pad``, a model that
            does not fit, or a wavefield that is zero.
    """
    checks.instance("misfit", misfit, ShotMisfit, USE)
    smooth = checks.number("smooth", smooth, least=0.0, most=WIDEST)
    damping = checks.number("damping", damping, above=0.0, below=math.inf)
    survey = misfit.survey
    if survey.propagator != "scalar":
        raise ValueError(
            f"source illumination is defined for scalar surveys, this one is "
            f"{survey.propagator}; use gauss_newton_diagonal"
        )
    if survey.options.get("survey_pad") is not None:
        raise ValueError(
            "source illumination needs wavefields of the whole model, and survey_pad "
            "cuts them; use gauss_newton_diagonal"
        )
    space = ModelSpace(model) if space is None else space
    space.match(model, "model")
    leaves = copied_leaves(model)
    with torch.enable_grad():
        (velocity,) = misfit.waveforms.models(rebuild(model, leaves))
    energy = torch.zeros(velocity.shape, dtype=torch.float64, device=velocity.device)
    for group in misfit.groups(model):
        misfit.counts.tally(propagations=len(group))
        energy += _acceleration_energy(misfit, velocity.detach(), group)
    density = energy * (2 * velocity.detach().double() ** -3).square()
    diagonal = _through_map(density, velocity, leaves, model, space)
    if smooth > 0:
        diagonal = smooth_diagonal(diagonal, space, smooth)
    return Illumination(diagonal, space, damping=damping)


def _acceleration_energy(
    misfit: WaveformMisfit, velocity: Tensor, group: list[int]
) -> Tensor:
    """Return ``Σ ∫ (∂²u/∂t²)² dt`` over the shots of a group, shaped like the model."""
    dt = misfit.survey.resolved.inner_dt
    energy = torch.zeros(velocity.shape, dtype=torch.float64, device=velocity.device)
    oldest: Tensor | None = None

    # step k holds u_k and u_{k−1}; the last update that is recorded ends at nt − 1
    def add(state: Any) -> None:
        nonlocal oldest
        newest = state.get_wavefield("wavefield_0", mode="read").double()
        middle = state.get_wavefield("wavefield_m1", mode="read").double()
        if oldest is not None:
            energy.add_((newest - 2 * middle + oldest).square().sum(0))
        # the next step's second difference begins here; deepwave reuses the buffer
        oldest = middle.clone()

    with torch.no_grad():
        misfit.survey.propagate(
            [velocity],
            group,
            forward_callback=add,
            callback_frequency=1,
            checkpoint_segments=None,
        )
    return energy / dt**3


def _through_map(
    density: Tensor,
    velocity: Tensor,
    leaves: list[Tensor],
    model: Model,
    space: ModelSpace,
) -> Tensor:
    """Return the diagonal of ``V'ᵀ diag(density) V'`` in flat coordinates."""
    largest = float(density.max())
    if not 0 < largest < float("inf"):
        raise ValueError(
            f"the wavefield's energy is {largest:g}; check the wavelets of the survey"
        )
    # relative to the largest, or a float32 model would let small wavefields underflow
    root = (density / largest).sqrt().to(velocity.dtype)
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(space.size, dtype=space.dtype, device=space.device)
    for _ in range(MAP_PROBES):
        signs = 2.0 * torch.randint(0, 2, root.shape, generator=generator) - 1.0
        pulled = vjp([velocity], leaves, [root * signs.to(root)], retain_graph=True)
        total += space.gradient_to_vector(rebuild(model, pulled)).square()
    return total * (largest / MAP_PROBES)
