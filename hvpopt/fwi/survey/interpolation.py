"""Off-grid points: Hicks's weights, made once and applied as sparse matrices.

The weights are deepwave's (``deepwave.Hicks``: Hicks, Geophysics 67, 2002). Deepwave
applies them point by point, and its backward pass then copies all recordings once for
each point; one sparse matrix for each shot does the same sums in one product.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

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
    """Points off the grid, and the cells about them that stand for each.

    Attributes:
        locations: Cells ``[shot, point, dimension]`` as asked for, floats;
            ``deepwave.IGNORE_LOCATION`` for a point that does not exist.
        cells: The support ``[shot, cell, dimension]``, integers, each once in a shot;
            ``deepwave.IGNORE_LOCATION`` fills up shots of fewer.
        weights: Of each shot, a sparse matrix ``[point, cell]`` and its transpose.
    """

    locations: Tensor
    cells: Tensor
    weights: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, hicks: deepwave.Hicks) -> Interpolation:
        """Return a deepwave interpolator's weights as matrices.

        Args:
            hicks: As the caller made it.
        """
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
    ) -> Interpolation:
        """Return the interpolation of points, of which many may share a place.

        Deepwave takes milliseconds a place; they are made once for each.

        Args:
            locations: Cells ``[shot, point, dimension]``, float64.
            active: True where a point exists ``[shot, point]``. Default all.
            halfwidth: Of the window, cells.
            offset: Of the field component's node from the cell, in cells. Default 0.
            free_surfaces: Faces with a free surface, as ``deepwave.Hicks`` has them.
            rigid_surfaces: Faces with a rigid surface.
            shape: Of the model; needed with such faces.
        """
        shots, points, dimensions = locations.shape
        exists = torch.ones(shots, points, dtype=torch.bool) if active is None else active
        exists = exists.to(locations.device)
        places, found = torch.unique(locations[exists], dim=0, return_inverse=True)
        place = torch.zeros_like(exists, dtype=torch.long).masked_scatter(exists, found)
        with warnings.catch_warnings():
            # what changed since deepwave 0.0.27, which nobody here relied on
            warnings.simplefilter("ignore", deepwave.MigrationWarning)
            hicks = deepwave.Hicks(
                places[None],
                halfwidth,
                free_surfaces=free_surfaces,
                rigid_surfaces=rigid_surfaces,
                model_shape=None if shape is None else list(shape),
                dtype=torch.float64,
                offset=offset,
            )
        support = hicks.get_locations()[0]
        window = [support[columns] for columns in hicks.idxs[0]]
        values = [_products(factors) for factors in hicks.weights[0]]
        cells, weights = [], []
        for shot in range(shots):
            mine = exists[shot].nonzero()[:, 0].tolist()
            taken = [int(place[shot, point]) for point in mine]
            sizes = torch.tensor([len(window[p]) for p in taken], dtype=torch.long)
            row = torch.tensor(mine, dtype=torch.long).repeat_interleave(sizes)
            corners = torch.cat([window[p] for p in taken] or [support[:0]])
            own, column = torch.unique(corners, dim=0, return_inverse=True)
            data = torch.cat([values[p] for p in taken] or [values[0][:0]])
            cells.append(own)
            weights.append((torch.stack([row.to(column.device), column]), data))
        most = max(len(own) for own in cells)
        filled = support.new_full((shots, most, dimensions), deepwave.IGNORE_LOCATION)
        for shot, own in enumerate(cells):
            filled[shot, : len(own)] = own
        return cls(
            torch.where(exists[..., None], locations, float(deepwave.IGNORE_LOCATION)),
            filled,
            tuple(_pair(index, data, points, most) for index, data in weights),
        )

    def spread(self, amplitudes: Tensor) -> Tensor:
        """Return the amplitudes of the support, ``[shot, cell, time]``.

        Args:
            amplitudes: Of the points ``[shot, point, time]``.
        """
        return torch.stack(
            [
                _apply(back, matrix, own)
                for (matrix, back), own in zip(self.weights, amplitudes, strict=True)
            ]
        )

    def gather(self, data: Tensor, rows: Sequence[int]) -> Tensor:
        """Return recordings at the points, ``[shot, point, time]``; differentiable.

        Args:
            data: Recordings of the support ``[shot, cell, time]``.
            rows: Which of the shots here they are.
        """
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
