"""Other grids as unknowns: a region of a larger model, a coarser grid."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.fwi.maps.parameterisation import (
    Parameterisation,
    arranged,
    check_cells,
    check_shape,
    each,
    each_bound,
    in_float64,
)
from hvpopt.model.space import PerParameter
from hvpopt.model.tensors import Model, named_tensors, rebuild


@dataclass(frozen=True, eq=False)
class SubRegion(Parameterisation):
    """Some cells of a larger background model; the other cells stay as they are.

    Args:
        background: The whole model, a tensor or a tuple or dict of tensors of one
            shape; copied. Finite.
        region: The cells that are unknown: a boolean mask of the background's shape,
            True where unknown, or a slice, integer, ellipsis or tuple of these as in
            ``background[region]``.

    Attributes:
        shape: Of the unknowns: ``background[region].shape``, ``[k]`` for a mask.

    Raises:
        TypeError: If the region indexes otherwise.
        ValueError: If shapes differ, the background is not finite, or the region is
            empty or outside the background.
    """

    background: Model = field(repr=False)
    region: Any
    shape: tuple[int, ...] = field(init=False)
    _cells: Tensor = field(init=False, repr=False)
    _whole: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        tensors = named_tensors(self.background)
        shapes = {tuple(t.shape) for t in tensors.values()}
        if len(shapes) > 1:
            raise ValueError(
                f"the background's parameters have shapes {sorted(shapes)}; a region "
                "needs one shape"
            )
        for name, tensor in tensors.items():
            check_cells(tensor, torch.isfinite(tensor), name, "finite", "fill it in")
        whole = shapes.pop()
        cells = _region_cells(whole, self.region)
        copies = [t.detach().clone() for t in tensors.values()]
        object.__setattr__(self, "background", rebuild(self.background, copies))
        object.__setattr__(self, "shape", cells.shape)
        object.__setattr__(self, "_whole", whole)
        object.__setattr__(self, "_cells", torch.from_numpy(cells.reshape(-1)))

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Any:
        """Return the background with the unknowns in the region."""
        unknowns = arranged(args, kwargs)
        backgrounds = named_tensors(self.background)
        if set(named_tensors(unknowns)) != set(backgrounds):
            raise ValueError(
                f"the unknowns are {list(named_tensors(unknowns))}, the background has "
                f"{list(backgrounds)}"
            )

        def insert(tensor: Tensor, name: str) -> Tensor:
            check_shape(tensor, self.shape, name, "unknowns of this region")
            background = backgrounds[name].to(tensor)
            cells = self._cells.to(tensor.device)
            # out of place, so that forward-mode transforms work too
            flat = background.reshape(-1).scatter(0, cells, tensor.reshape(-1))
            return flat.reshape(background.shape)

        return each(unknowns, insert)

    def unknowns(self, model: Model) -> Model:
        """Return the region's cells of whole models; the other cells are not read."""

        def extract(tensor: Tensor, name: str) -> Tensor:
            check_shape(tensor, self._whole, name, "this background")
            cells = self._cells.to(tensor.device)
            return tensor.detach().reshape(-1)[cells].reshape(self.shape)

        return each(model, extract)

    def bounds(
        self, lower: PerParameter = None, upper: PerParameter = None
    ) -> tuple[PerParameter, PerParameter]:
        """Return the bounds inside the region; numbers stay, of tensors its cells."""

        def extract(bound: Any) -> Any:
            tensor = torch.as_tensor(bound)
            if tensor.numel() == 1:
                return bound
            flat = tensor.broadcast_to(self._whole).reshape(-1)
            return flat[self._cells.to(tensor.device)].reshape(self.shape)

        return each_bound(lower, extract), each_bound(upper, extract)


@dataclass(frozen=True, eq=False)
class CoarseGrid(Parameterisation):
    """A coarse grid to a fine one, by interpolation along each axis in turn.

    The first and last nodes of both grids coincide. Linear interpolation is the
    (bi-, tri-)linear one of ``torch.nn.functional.interpolate`` with
    ``align_corners=True``. Cubic is SciPy's not-a-knot spline: it has continuous second
    derivatives, reproduces cubics, and may overshoot. Both are deterministic on a GPU.

    Args:
        coarse: Shape of the unknowns.
        fine: Shape of the models; as many axes, each at least as long. An axis of equal
            length is left alone (of batched models, for example).
        kind: ``"linear"`` (default) or ``"cubic"``.

    Raises:
        ValueError: If the shapes do not fit, or the kind is unknown.
    """

    coarse: tuple[int, ...]
    fine: tuple[int, ...]
    kind: Literal["linear", "cubic"] = "linear"
    _matrices: tuple[Tensor | None, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # a torch.Size too
        for name in ("coarse", "fine"):
            given = getattr(self, name)
            lengths = checks.lengths(f"the {name} shape", given, least=0)
            checks.put(self, **{name: lengths})
        checks.choice("kind", self.kind, ("linear", "cubic"))
        if len(self.coarse) != len(self.fine) or not all(
            1 <= c <= f for c, f in zip(self.coarse, self.fine, strict=True)
        ):
            raise ValueError(
                f"the coarse shape {self.coarse} does not fit the fine {self.fine}: it "
                "needs as many axes, each from 1 to the fine length"
            )
        pairs = zip(self.coarse, self.fine, strict=True)
        matrices = tuple(_interpolation_matrix(c, f, self.kind) for c, f in pairs)
        object.__setattr__(self, "_matrices", matrices)

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Any:
        """Return the models on the fine grid, arranged like the unknowns."""

        def interpolate(tensor: Tensor, name: str) -> Tensor:
            check_shape(tensor, self.coarse, name, "the coarse grid")
            return _along_axes(self._matrices, tensor)

        return each(arranged(args, kwargs), interpolate)

    def unknowns(self, model: Model) -> Model:
        """Return the coarse unknowns whose interpolation is nearest, in least squares.

        Exact where the model is such an interpolation. At a sharp contrast they
        overshoot: clamp them where bounds must hold.
        """
        inverses = tuple(
            None if matrix is None else torch.linalg.pinv(matrix)
            for matrix in self._matrices
        )

        def fit(tensor: Tensor, name: str) -> Tensor:
            check_shape(tensor, self.fine, name, "the fine grid")
            return _along_axes(inverses, tensor)

        return in_float64(model, fit)

    def bounds(
        self, lower: PerParameter = None, upper: PerParameter = None
    ) -> tuple[PerParameter, PerParameter]:
        """Return the same numbers: linear interpolation stays between its nodes.

        Args:
            lower: Numbers, one for all or one per parameter.
            upper: Numbers, one for all or one per parameter.

        Returns:
            ``lower`` and ``upper``.

        Raises:
            ValueError: For cubic interpolation, which may overshoot its nodes, and for
                bounds that differ from cell to cell.
        """
        if self.kind != "linear":
            return super().bounds(lower, upper)

        def constant(bound: Any) -> Any:
            shape = tuple(torch.as_tensor(bound).shape)
            if math.prod(shape) > 1:
                raise ValueError(
                    f"a bound of shape {shape} on the fine grid does not carry over to "
                    "the coarse one; give one number per parameter"
                )
            return bound

        return each_bound(lower, constant), each_bound(upper, constant)


def _region_cells(shape: tuple[int, ...], region: Any) -> np.ndarray[Any, Any]:
    """Return the flat index of each cell of a region, shaped like the region."""
    if isinstance(region, (Tensor, np.ndarray)):
        mask = np.asarray(region.cpu() if isinstance(region, Tensor) else region)
        if mask.dtype != np.bool_:
            raise TypeError(
                f"the region has dtype {mask.dtype}; a mask is boolean, True where the "
                "model is unknown"
            )
        if mask.shape != shape:
            raise ValueError(
                f"the mask has shape {mask.shape}, the background {shape}; give one "
                "value per cell"
            )
    else:
        parts = region if isinstance(region, tuple) else (region,)
        if any(
            isinstance(p, bool) or not (isinstance(p, (slice, int)) or p is Ellipsis)
            for p in parts
        ):
            raise TypeError(
                f"the region is {region!r}; use a boolean mask, or slices such as "
                "np.s_[10:50, :]"
            )
        mask = region
    cells = np.arange(math.prod(shape)).reshape(shape)
    try:
        found = np.asarray(cells[mask])
    except IndexError as error:
        raise ValueError(
            f"the region {region!r} does not fit a background of shape {shape}: {error}"
        ) from error
    if found.size == 0:
        raise ValueError(
            f"the region holds no cell of the background of shape {shape}; check its "
            "limits"
        )
    return np.ascontiguousarray(found)


def _interpolation_matrix(coarse: int, fine: int, kind: str) -> Tensor | None:
    """Return the matrix ``[fine, coarse]`` of one axis, None for the identity."""
    if coarse == fine:
        return None
    if coarse == 1:
        return torch.ones(fine, 1, dtype=torch.float64)
    from scipy.interpolate import CubicSpline, make_interp_spline

    nodes, units = np.arange(coarse, dtype=np.float64), np.eye(coarse)
    points = np.linspace(0.0, coarse - 1, fine)
    spline = CubicSpline(nodes, units) if kind == "cubic" else None
    values = (spline or make_interp_spline(nodes, units, k=1))(points)
    return torch.from_numpy(np.ascontiguousarray(values))


def _along_axes(matrices: tuple[Tensor | None, ...], tensor: Tensor) -> Tensor:
    """Multiply each axis of a tensor by its matrix, None standing for the identity."""
    for axis, matrix in enumerate(matrices):
        if matrix is not None:
            moved = torch.tensordot(matrix.to(tensor), tensor, dims=([1], [axis]))
            tensor = moved.movedim(0, axis)
    return tensor.contiguous()
