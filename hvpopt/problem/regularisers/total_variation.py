"""TotalVariation: the smoothed length of a model's gradient, which keeps edges.

With the gradient's square q and ``s = √(q + ε²)``, the density is ``s − ε``, the second
derivative of which in the gradient g is

    exact:               (I − g gᵀ / s²) / s
    lagged diffusivity:   I / s

(Vogel and Oman, SIAM J. Sci. Comput. 17, 1996). The second bounds the first from above
and serves as the Gauss-Newton matrix: its steps never pass the minimum along a gradient.

q is taken in the middle of the 2^d cells that meet in a corner. Its part along an axis is
the mean of the squares of the parallel differences there, since the square of their mean
would be zero for an oscillation from cell to cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hvpopt.model.space import PerParameter, per_parameter
from hvpopt.model.tensors import Model
from hvpopt.problem.objective import Kind
from hvpopt.problem.regularisers.cells import (
    Cells,
    geometric_mean,
    mean,
    mean_transposed,
)
from hvpopt.problem.regularisers.regulariser import (
    Grid,
    Regulariser,
    Units,
    checked_positive,
    fitted,
)


class TotalVariation(Regulariser):
    """The smoothed total variation of a model, integrated over the grid.

    ``Σ ∫ w (√(|∇u|² + (ε/scale)²) − ε/scale) dx`` over parameters, with
    ``u = (m − reference) / scale`` (Rudin, Osher and Fatemi, Physica D 60, 1992; smoothed
    as by Acar and Vogel, Inverse Problems 10, 1994). Slopes well above ε cost their
    height alone, be they steep or gentle, and slopes below it their square over 2 ε. It
    is convex. The Gauss-Newton products are those of lagged diffusivity.

    Args:
        spacing: Size of a cell, metres: a number, or one per axis as a tuple; by
            parameter as a mapping.
        epsilon: ε, the slope below which variation is smoothed, in the parameter's units
            per metre: positive; per parameter as a sequence or mapping. A jump of J over
            a cell of h metres is an edge if ``J / h`` is well above it.
        scale: Size of one unit of each parameter; see ``Tikhonov``. Default 1.
        weight: w of each cell, or a Boolean mask; see ``Tikhonov``. Default 1.
        reference: The model that deviations are measured from; copied. Default none.
        name: Name of its part in a sum. Default ``"total variation"``.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: For a number out of range, or a parameter without ε. When it meets a
            model, for parameters or shapes that do not fit.

    Example:
        >>> import torch, hvpopt
        >>> edge = torch.tensor([1500.0, 1500.0, 2500.0, 2500.0], dtype=torch.float64)
        >>> tv = hvpopt.TotalVariation(spacing=10.0, epsilon=0.01)
        >>> round(tv.value(edge), 1)  # the jump of 1000 m/s, less ε over 10 m
        999.9
    """

    def __init__(
        self,
        *,
        spacing: Any,
        epsilon: PerParameter,
        scale: PerParameter = None,
        weight: PerParameter = None,
        reference: Model | None = None,
        name: str = "total variation",
    ) -> None:
        super().__init__(
            spacing=spacing, scale=scale, weight=weight, reference=reference, name=name
        )
        if epsilon is None:
            raise TypeError(
                "epsilon is None; pass the slope below which variation is smoothed, in "
                "units of the parameter per metre"
            )
        self._epsilon = checked_positive("epsilon", epsilon)

    def penalty(self, grid: Grid, units: Units) -> Tensor:
        """Return the integral."""
        total = sum(u.sum() * 0.0 for u in units.values())
        for name, corners in self._corners(grid, units).items():
            # s − ε without the cancellation of small slopes
            excess = corners.square / (corners.length + corners.epsilon)
            total = total + grid[name].volume * (corners.weight * excess).sum()
        return torch.as_tensor(total)

    def slopes(self, grid: Grid, units: Units) -> Units:
        """Return the derivatives in ``units``."""
        # the lagged operator at a model, times that model
        return self.bend(grid, self.curvature(grid, units, "gauss-newton"), units)

    def curvature(self, grid: Grid, units: Units, kind: Kind) -> Any:
        """Return the diffusivity of each difference; for exact products, more."""
        kept = {}
        for name, corners in self._corners(grid, units).items():
            cells, volume = grid[name], grid[name].volume
            lagged = volume * corners.weight / corners.length
            diffusivity = {
                axis: mean_transposed(lagged, cells.others(axis)) for axis in cells.axes
            }
            exact = kind == "exact"
            kept[name] = (
                diffusivity,
                corners.slopes if exact else {},
                lagged / corners.length.square() if exact else None,
            )
        return kept

    def bend(self, grid: Grid, kept: Any, steps: Units) -> Units:
        """Return the second derivatives times ``steps``."""
        found = {name: torch.zeros_like(step) for name, step in steps.items()}
        for name, (diffusivity, slopes, third) in kept.items():
            cells = grid[name]
            pushed = {a: cells.difference(steps[name], (a,)) for a in cells.axes}
            flux = {a: diffusivity[a] * pushed[a] for a in cells.axes}
            if slopes:
                along = sum(
                    mean(slopes[a] * pushed[a], cells.others(a)) for a in cells.axes
                )
                for a in cells.axes:
                    back = mean_transposed(third * along, cells.others(a))
                    flux[a] = flux[a] - slopes[a] * back
            for a in cells.axes:
                found[name] += cells.difference_transposed(flux[a], (a,))
        return found

    def _corners(self, grid: Grid, units: Units) -> dict[str, _Corners]:
        """Return the gradient of each parameter that has neighbours, at its corners."""
        epsilons = per_parameter("epsilon", self._epsilon, tuple(grid))
        found = {}
        for epsilon, (name, cells) in zip(epsilons, grid.items(), strict=True):
            if epsilon is None:
                raise ValueError(
                    f"epsilon gives none of parameter {name!r}; name every parameter"
                )
            if cells.axes:
                found[name] = _at_corners(cells, units[name], epsilon)
        return found


@dataclass(frozen=True)
class _Corners:
    """The gradient of one parameter where 2^d cells meet."""

    slopes: dict[int, Tensor]  # along each axis, between two cells
    square: Tensor  # q
    epsilon: float | Tensor  # ε in units of the scale
    length: Tensor  # s
    weight: float | Tensor  # w


def _at_corners(cells: Cells, units: Tensor, epsilon: float | Tensor) -> _Corners:
    slopes = {axis: cells.difference(units, (axis,)) for axis in cells.axes}
    squares = [mean(s.square(), cells.others(axis)) for axis, s in slopes.items()]
    square = torch.stack(squares).sum(0)
    epsilon = geometric_mean(fitted("epsilon", epsilon, units) / cells.scale, cells.axes)
    return _Corners(
        slopes,
        square,
        epsilon,
        (square + epsilon**2).sqrt(),
        cells.weight_between(cells.axes),
    )
