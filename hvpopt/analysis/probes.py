"""Random probes, and what each of them finds that the others do not know of.

With Ω the probes ``[n, m]`` and Q an orthonormal basis of HΩ, ``Q_i`` is the basis of all
images but that of probe i. Probe i is independent of it, so what it finds of
``(I − Q_i Q_iᵀ) H (I − Q_i Q_iᵀ)`` makes an unbiased estimate, and the mean over i uses
every product twice (Epperly, Tropp and Webber, SIAM J. Matrix Anal. Appl. 45, 2024).
``Q_i`` is Q without one direction: ``Q_i Q_iᵀ = Q (I − s_i s_iᵀ) Qᵀ``, s_i the unit
vector along column i of R⁻ᵀ, where HΩ = QR.

The m estimates share most of their space, and their scatter makes the error look too
small. So the error is that of the jackknife: with T_j the estimate without probe j,
``Σ_j (T_j − T̄)²`` is on average no smaller than the variance of T_j (Efron and Stein,
Annals of Statistics 9, 1981), and the estimate from all probes is better still.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.model._scale import unit_of
from hvpopt.model.space import ModelSpace
from hvpopt.model.tensors import Model
from hvpopt.operators.symmetric import SymmetricOperator
from hvpopt.problem.objective import Kind, Objective, check_kind

#: Seeds of single probes and samples are below this.
SEEDS = 2**31 - 1
#: Fewest probes: the jackknife needs two that are left when one is taken away.
FEWEST = 3


def independent_seeds(seed: int, n: int) -> list[int]:
    """Return n seeds drawn with a seed: those of seeds 1 and 2 have nothing in common."""
    generator = torch.Generator().manual_seed(checks.seed("seed", seed))
    return [int(s) for s in torch.randint(0, SEEDS, (n,), generator=generator)]


def random_signs(
    shape: tuple[int, ...],
    generator: torch.Generator,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return independent random signs on a device, drawn on the host."""
    signs = torch.randint(0, 2, shape, generator=generator, dtype=torch.int8)
    return 2.0 * signs.to(device, dtype) - 1.0


def sign_probes(operator: SymmetricOperator, n_probes: int, seed: int) -> Tensor:
    """Return probes ``[n, m]`` of independent entries ±1, float64, drawn on the host."""
    generator = torch.Generator().manual_seed(checks.seed("seed", seed))
    shape = (n_probes, operator.size)
    return random_signs(shape, generator, device=operator.device).mT.contiguous()


def random_normals(operator: SymmetricOperator, n_probes: int, seed: int) -> Tensor:
    """Return probes ``[n, m]``, standard normal and float64, drawn on the host."""
    generator = torch.Generator().manual_seed(checks.seed("seed", seed))
    shape = (n_probes, operator.size)
    normals = torch.randn(shape, generator=generator, dtype=torch.float64)
    return normals.to(operator.device).mT.contiguous()


@dataclass(frozen=True, eq=False)
class LeaveOneOut:
    """The space of all images, and what is left of each probe without its own."""

    basis: Tensor  # Q, [n, m]
    products: Tensor  # HQ, [n, m]
    projection: Tensor  # QᵀHQ, [m, m], its symmetric part
    coordinates: Tensor  # QᵀΩ, [m, m]
    left_out: Tensor  # s_i as columns, [m, m]
    rests: Tensor  # (I − Q_i Q_iᵀ) ω_i as columns, [n, m]
    rest_products: Tensor  # H times those, [n, m]

    @property
    def norm(self) -> float:
        """An estimate of ‖H‖ from below, the largest eigenvalue of the projection."""
        return float(torch.linalg.eigvalsh(self.projection).abs().max())

    def also_left_out(self, j: int) -> Tensor:
        """Return what leaving out probe j as well takes from each ``Q_i``, ``[m, m]``."""
        # column i, in the coordinates of Q: a unit vector orthogonal to s_i that spans
        # with s_i what s_i and s_j do; zero for i = j
        s, other = self.left_out, self.left_out[:, [j]]
        rest = other - s * (s.mT @ other).mT
        rest = rest - s * (s * rest).sum(0)  # twice: s_i and s_j may be close
        rest[:, j] = 0.0
        lengths = torch.linalg.vector_norm(rest, dim=0)
        return rest / torch.where(lengths > 0.0, lengths, 1.0)


def leave_one_out(operator: SymmetricOperator, probes: Tensor) -> LeaveOneOut:
    """Multiply probes and a basis of their images: two products a probe; ``m < n``."""
    images = operator.matmat(probes)
    # images in units of their size: squares stay within range
    basis, upper = torch.linalg.qr(images / unit_of(images))
    # An operator of rank below m has images that depend on others. Leaving one of those
    # out takes nothing away, and any direction outside the images may be s_i.
    floor = float(upper.abs().max()) * len(upper) * torch.finfo(upper.dtype).eps
    small = upper.diagonal().abs() <= floor
    upper.diagonal()[small] = floor or 1.0
    identity = torch.eye(len(upper), dtype=upper.dtype, device=upper.device)
    inverse = torch.linalg.solve_triangular(upper, identity, upper=True)
    left_out = (inverse / torch.linalg.vector_norm(inverse, dim=1, keepdim=True)).mT
    products = operator.matmat(basis)
    projection = basis.mT @ products
    coordinates = basis.mT @ probes
    kept = coordinates - left_out * (left_out * coordinates).sum(0)
    return LeaveOneOut(
        basis=basis,
        products=products,
        projection=0.5 * (projection + projection.mT),
        coordinates=coordinates,
        left_out=left_out,
        rests=probes - basis @ kept,
        rest_products=images - products @ kept,
    )


def jackknife(without: Tensor) -> Tensor:
    """Return a standard error from T_j on the last axis ``[…, m]``; NaN for one."""
    if without.shape[-1] < 2:
        return torch.full_like(without[..., 0], torch.nan)
    unit = unit_of(without)  # squares of small numbers underflow
    scaled = without / unit
    return unit * (scaled - scaled.mean(-1, keepdim=True)).square().sum(-1).sqrt()


def rounding_of(operator: SymmetricOperator, norm: float) -> float:
    """Return what rounding of products adds to a trace's error, for an H of norm ‖H‖."""
    # errors are taken to point in all n directions alike
    return math.sqrt(operator.size) * operator.noise * norm


def sampled_operators(
    objective: Objective,
    model: Model,
    kind: Kind | None,
    space: ModelSpace | None,
    seeds: Sequence[int],
) -> Iterator[SymmetricOperator]:
    """Yield a sketch for each seed, closed after use; their mean is the Hessian."""
    # of kind None: Gauss-Newton where the objective has it, else exact
    kind = objective.preferred_kind if kind is None else kind
    check_kind(kind, "hessian")
    space = ModelSpace(model) if space is None else space
    for seed in seeds:
        with objective.sketch(model, kind, space=space, seed=seed) as operator:
            yield operator
