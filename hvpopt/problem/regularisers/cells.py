"""Cells: one parameter on its grid, with the differences and means that penalties take.

A difference along an axis lies between two cells, a difference along two axes between
four. Weights and scales are needed there too, as the geometric mean of the cells around:
for values that vary smoothly it is the mean, and a weight of zero in one cell excludes
every difference that the cell takes part in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cells:
    """One parameter on its grid."""

    shape: tuple[int, ...]
    spacing: tuple[float, ...]  # size of a cell along each axis, metres
    scale: float | Tensor  # size of one unit, a number or [*shape]
    weight: float | Tensor  # a number or [*shape]
    reference: Tensor | None  # [*shape], subtracted from the parameter
    _weights: dict[tuple[int, ...], float | Tensor] = field(
        default_factory=dict, repr=False
    )

    @property
    def volume(self) -> float:
        """Volume, area or length of one cell."""
        return math.prod(self.spacing)

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes along which there are neighbours."""
        return tuple(axis for axis, n in enumerate(self.shape) if n > 1)

    def units(self, parameter: Tensor) -> Tensor:
        """Return the deviation from the reference in units of the scale."""
        if self.reference is not None:
            parameter = parameter - self.reference
        return parameter / self.scale

    def difference(self, values: Tensor, axes: Sequence[int]) -> Tensor:
        """Return the derivative along each of ``axes``, of values ``[*shape]``."""
        # Each occurrence of an axis takes a derivative, and one entry off that axis.
        for axis in axes:
            values = values.diff(dim=axis) / self.spacing[axis]
        return values

    def difference_transposed(self, values: Tensor, axes: Sequence[int]) -> Tensor:
        """Return the transpose of ``difference`` times differences."""
        for axis in reversed(axes):
            values = -_padded(values, axis).diff(dim=axis) / self.spacing[axis]
        return values

    def others(self, axis: int) -> tuple[int, ...]:
        """Return the axes with neighbours other than one."""
        return tuple(other for other in self.axes if other != axis)

    def weight_between(self, axes: tuple[int, ...]) -> float | Tensor:
        """Return the weight of each difference along ``axes``; computed once."""
        if axes not in self._weights:
            self._weights[axes] = geometric_mean(self.weight, axes)
        return self._weights[axes]


def geometric_mean(values: float | Tensor, axes: Sequence[int]) -> float | Tensor:
    """Return the geometric mean of nonnegative values of the cells in a difference."""
    if not isinstance(values, Tensor) or not axes:
        return values
    return mean(values.double().log(), axes).exp().to(values.dtype)


def mean(values: Tensor, axes: Sequence[int]) -> Tensor:
    """Return means of two neighbours along each of several axes."""
    for axis in axes:
        n = values.shape[axis] - 1
        values = 0.5 * (values.narrow(axis, 0, n) + values.narrow(axis, 1, n))
    return values


def mean_transposed(values: Tensor, axes: Sequence[int]) -> Tensor:
    """Return the transpose of ``mean`` times means."""
    for axis in axes:
        values = mean(_padded(values, axis), (axis,))
    return values


def _padded(values: Tensor, axis: int) -> Tensor:
    """Return values with a zero before and after it along an axis."""
    shape = list(values.shape)
    shape[axis] = 1
    zero = values.new_zeros(shape)
    return torch.cat([zero, values, zero], axis)
