"""Off-grid points: Hicks's weights, made once and applied as sparse matrices.

The weights are those of ``deepwave.Hicks`` (Hicks, Geophysics 67, 2002). Deepwave applies
them point by point, and its backward pass then copies all recordings once for each point;
one sparse matrix for each shot does the same sums in one product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeAlias

import deepwave
import torch
from torch import Tensor


class _Product(torch.autograd.Function):
    """``W x`` of a constant sparse matrix; its derivatives are ``Wᵀ g`` and ``W t``."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transposed: Tensor, x: Tensor) -> Tensor:
        ctx.pair = matrix, transposed
        product: Tensor = torch.sparse.mm(matrix, x)
        return product

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> tuple[None, None, Tensor]:
        matrix, transposed = ctx.pair
        product: Tensor = _Product.apply(transposed, matrix, slopes[0])  # type: ignore[no-untyped-call]
        return None, None, product


@dataclass(frozen=True, eq=False)
class Interpolation:
    """Points off the grid, and the cells about them that stand for each."""

    # as asked for: floats [shot, point, dimension], IGNORE_LOCATION for none
    locations: Tensor
    cells: Tensor  # [shot, cell, dimension], each once; IGNORE_LOCATION fills up
    # of each shot, a sparse matrix [point, cell] and its transpose
    weights: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, hicks: deepwave.Hicks) -> Interpolation:
        """Return a deepwave interpolator's weights as matrices."""
        cells, weights = hicks.get_locations(), []
        for shot, places in enumerate(hicks.idxs):
            points, columns, values = [], [], []
            for point, place in enumerate(places):
                if not bool(hicks.ignore_mask[shot, point]):
                    points += [point] * len(place)
                    columns += place
                    values.append(_products(hicks.weights[shot][point]))
            row = torch.tensor([points, columns], device=cells.device).view(2, -1)
            data = torch.cat(values) if values else row.new_zeros(0, dtype=torch.float64)
            weights.append(_pair(row, data, len(places), cells.shape[1]))
        return cls(hicks.locations, cells, tuple(weights))

    @classmethod
    def at(
        cls,
        locations: Tensor,
        active: Tensor | None = None,
        *,
        halfwidth: int = 4,
        offset: Sequence[float] | None = None,
        free_surfaces: Sequence[bool] | None = None,
        rigid_surfaces: Sequence[bool] | None = None,
        shape: Sequence[int] | None = None,
        mirrors: Sequence[tuple[float, float] | None] | None = None,
    ) -> Interpolation:
        """Return the interpolation of points ``[shot, point, dimension]``, in cells."""
        # The weights are those of ``deepwave.Hicks``, which takes milliseconds a point;
        # here there is no loop over them. ``halfwidth`` is of the window, from 1 to 10;
        # ``offset`` is of the field component's node from the cell. Surfaces are as
        # ``deepwave.Hicks`` has them, rigid ones without offset, and need ``shape``.
        # ``mirrors`` takes their place: of each face the plane, in cells from the
        # component's first node, and the sign of the field's image.
        shots, points, dimensions = locations.shape
        exists = torch.ones(shots, points, dtype=torch.bool) if active is None else active
        exists = exists.to(locations.device)
        shift = locations.new_tensor(offset or [0.0] * dimensions)
        if mirrors is None:
            mirrors = _mirrors(free_surfaces, rigid_surfaces, shape, dimensions)
        cells, weights = [], []
        for shot in range(shots):
            mine = exists[shot].nonzero()[:, 0]
            corners, values = _windows(locations[shot, mine] - shift, halfwidth, mirrors)
            point = mine[:, None].expand_as(values)
            taken = values != 0
            own, column = _distinct(corners[taken])
            cells.append(own)
            weights.append((torch.stack([point[taken], column]), values[taken]))
        most = max(len(own) for own in cells)
        filled = cells[0].new_full((shots, most, dimensions), deepwave.IGNORE_LOCATION)
        for shot, own in enumerate(cells):
            filled[shot, : len(own)] = own
        return cls(
            torch.where(exists[..., None], locations, float(deepwave.IGNORE_LOCATION)),
            filled,
            tuple(_pair(index, data, points, most) for index, data in weights),
        )

    def spread(self, amplitudes: Tensor) -> Tensor:
        """Return amplitudes of the support ``[shot, cell, time]``, from the points'."""
        return torch.stack(
            [
                _apply(back, matrix, own)
                for (matrix, back), own in zip(self.weights, amplitudes, strict=True)
            ]
        )

    def gather(self, data: Tensor, rows: Sequence[int]) -> Tensor:
        """Return recordings at the points ``[shot, point, time]``; differentiable."""
        return torch.stack(
            [_apply(*self.weights[row], own) for row, own in zip(rows, data, strict=True)]
        )

    def to(self, device: torch.device) -> Interpolation:
        """Return the same on another device."""
        return Interpolation(
            self.locations.to(device),
            self.cells.to(device),
            tuple((w.to(device), t.to(device)) for w, t in self.weights),
        )


#: Of the Kaiser window, by its halfwidth: Hicks's table for waves of three cells and
#: longer, as deepwave has it.
_BETA = (0.0, 1.84, 3.04, 4.14, 5.26, 6.40, 7.51, 8.56, 9.56, 10.64)
#: A plane, in cells, and the sign of the field's image beyond it.
_Mirror: TypeAlias = "tuple[float, float]"


def _mirrors(
    free: Sequence[bool] | None,
    rigid: Sequence[bool] | None,
    shape: Sequence[int] | None,
    dimensions: int,
) -> list[_Mirror | None]:
    """Return the mirror of each face: one cell outside (free), or half a cell (rigid)."""
    mirrors: list[_Mirror | None] = [None] * (2 * dimensions)
    for face in range(2 * dimensions):
        for faces, outside, sign in ((free, 1.0, -1.0), (rigid, 0.5, 1.0)):
            if faces is not None and faces[face]:
                last = -1 if shape is None else shape[face // 2] - 1
                plane = last + outside if face % 2 else -outside
                mirrors[face] = (plane, sign)
    return mirrors


def _windows(
    places: Tensor, halfwidth: int, mirrors: Sequence[_Mirror | None]
) -> tuple[Tensor, Tensor]:
    """Return the cells ``[point, window, dimension]`` about places, and their weights."""
    # A Kaiser-windowed sinc along each axis (Hicks, Geophysics 67, 2002); one cell of
    # weight one where a place is on its node. What lies beyond a mirror is its image.
    points = len(places)
    steps = torch.arange(1 - halfwidth, halfwidth + 1, device=places.device)
    # in single precision as deepwave has it
    beta = torch.tensor(_BETA[halfwidth - 1], dtype=torch.float32).to(places)
    weights = places.new_ones(points, 1)
    cells = steps.new_zeros(points, 1, 0)
    for d, place in enumerate(places.T[..., None]):
        near = (place.floor() + steps).long()
        apart = near - place
        inside = (1 - (apart / halfwidth).square()).clamp(min=0.0)
        own = torch.sinc(apart) * torch.i0(beta * inside.sqrt()) / torch.i0(beta)
        on_node = (place - place.round()).abs() < deepwave.ON_NODE_TOLERANCE
        own = torch.where(on_node, (near == place.round()).to(own), own)
        for mirror, beyond in (
            (mirrors[2 * d], torch.lt),
            (mirrors[2 * d + 1], torch.gt),
        ):
            if mirror is not None:
                plane, sign = mirror
                imaged = beyond(near, plane)
                own = torch.where(imaged, sign * own, own)
                own = torch.where(near == plane, 0.0, own)
                near = torch.where(imaged, round(2 * plane) - near, near)
        weights = (weights[..., None] * own[:, None]).flatten(1)
        cells = torch.cat(
            [
                cells.repeat_interleave(2 * halfwidth, 1),
                near.repeat(1, cells.shape[1])[..., None],
            ],
            -1,
        )
    return cells, weights


def _distinct(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Return distinct cells ``[n, dimension]``, and which of them each one is."""
    if not len(cells):
        return cells, cells.new_zeros(0)
    first = cells.amin(0)
    extent = (cells.amax(0) - first + 1).tolist()
    flat = torch.zeros_like(cells[:, 0])
    for d, length in enumerate(extent):
        flat = flat * length + cells[:, d] - first[d]
    own, which = torch.unique(flat, return_inverse=True)
    axes = []
    for length in reversed(extent):
        axes.append(own % length)
        own = own // length
    return torch.stack(axes[::-1], -1) + first, which


def _products(factors: Sequence[Tensor]) -> Tensor:
    """Return the weights of a window's cells, of those in each dimension."""
    return reduce(lambda a, b: (a[:, None] * b).flatten(), factors)


def _pair(index: Tensor, data: Tensor, points: int, cells: int) -> tuple[Tensor, Tensor]:
    """Return a sparse matrix ``[point, cell]`` and its transpose."""

    def made(index: Tensor, *size: int) -> Tensor:
        # torch warns where it is not said whether to check
        return torch.sparse_coo_tensor(
            index, data, size, check_invariants=True
        ).coalesce()

    return made(index, points, cells), made(index.flip(0), cells, points)


def _apply(matrix: Tensor, transposed: Tensor, x: Tensor) -> Tensor:
    pair = matrix.to(x.dtype), transposed.to(x.dtype)
    product: Tensor = _Product.apply(*pair, x)  # type: ignore[no-untyped-call]
    return product
