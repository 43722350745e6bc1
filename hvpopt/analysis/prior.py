"""MaternPrior: a Gaussian prior over a grid, whose square roots are exact.

The covariance of a parameter is that of a field with ``(1 − Σ_a b_a² ∂_a²) m = S w``, w
white and no flux through the edges of the grid: the bi-Laplacian prior of Bui-Thanh,
Ghattas, Martin and Stadler (SIAM J. Sci. Comput. 35, 2013), a Matérn field of smoothness
ν = 2 − d/2 in d dimensions (Lindgren, Rue and Lindström, J. R. Stat. Soc. B 73, 2011).
Central differences on the grid are diagonal in the cosine transform, so

    C = L Lᵀ,    L = S Φ Λ⁻¹,    Φ the orthonormal cosine transform, Λ its symbol

is applied to rounding by one transform. S is chosen cell by cell so that every cell has
the standard deviation asked for, also at an edge. The covariance of free cells is their
block of C; its inverse, the Schur complement of the frozen cells in C⁻¹, is sparse, so
that it too is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import scipy.fft
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.model.space import ModelSpace
from hvpopt.model.tensors import Model
from hvpopt.problem.torch_objective import TorchObjective

Array: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"

#: Dimensions of a grid in which the prior's variance is that of a function.
MOST_DIMENSIONS = 3


class MaternPrior:
    """A Gaussian prior with independent Matérn fields as parameters.

    It acts on the flat vectors of a space, in float64 on the host: a transform costs less
    than moving what a propagation leaves on a GPU.

    Args:
        space: The model space, of which mask and scale count; or a model, for its default
            space; or the shape of a grid, for a model of one tensor.
        length: Distance at which the correlation has fallen to about 0.14, in the units
            of ``spacing``: ``ρ = √(8ν) / κ``. A number, or one per axis as a tuple; by
            parameter as a mapping.
        std: Standard deviation of every cell before any data, in the parameter's units: a
            number, or a tensor that broadcasts to it; by parameter as a mapping.
        spacing: Size of a cell: a number, or one per axis as a tuple; by parameter as a
            mapping. Default 1, so that lengths are in cells.

    Attributes:
        space: The model space.
        size: Number of free cells, n.
        latent_size: Number of all cells, m: the length of the white vectors of
            ``factor``.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: For a number out of range, a parameter that is not named, or a grid of
            more than three dimensions.

    Example:
        >>> from hvpopt import analysis
        >>> prior = analysis.MaternPrior((20, 30), length=200.0, std=100.0, spacing=25.0)
        >>> prior.size, round(float(prior.standard_deviation[0]), 6)
        (600, 100.0)
    """

    def __init__(
        self,
        space: ModelSpace | Model | tuple[int, ...],
        *,
        length: Any,
        std: Any,
        spacing: Any = 1.0,
    ) -> None:
        self.space = _space_of(space)
        options = {
            what: _by_parameter(what, given, self.space.names)
            for what, given in (("length", length), ("std", std), ("spacing", spacing))
        }
        fields, at = [], 0
        for name, mask in self.space.free.items():
            free = mask.reshape(-1).cpu().numpy()
            end = at + int(free.sum())
            scale = np.ones(end - at)
            if self.space.scale is not None:
                scale = self.space.scale[at:end].cpu().numpy().astype(np.float64)
            shape = tuple(mask.shape) or (1,)
            own = {what: values[name] for what, values in options.items()}
            fields.append(_field(name, shape, free, scale, **own))
            at = end
        self._fields = fields
        self.size = self.space.size
        self.latent_size = sum(field.free.size for field in fields)

    # -- square roots -----------------------------------------------------------

    def factor(self, white: Tensor) -> Tensor:
        """Return L w: a vector of covariance C for a white one of covariance I.

        Args:
            white: ``[m]``, or a block ``[m, k]``.

        Returns:
            ``[n]`` or ``[n, k]``.
        """
        return self._each(_Field.factor, white, latent=True)

    def factor_transposed(self, vector: Tensor) -> Tensor:
        """Return Lᵀ z ``[m]`` or ``[m, k]`` of flat vectors ``[n]`` or ``[n, k]``."""
        return self._each(_Field.factor_transposed, vector)

    # -- matrices ---------------------------------------------------------------

    def covariance(self, vector: Tensor) -> Tensor:
        """Return C z ``[n]`` or ``[n, k]`` of flat vectors of that shape."""
        return self.factor(self.factor_transposed(vector))

    def precision(self, vector: Tensor) -> Tensor:
        """Return R z ``[n]`` or ``[n, k]`` of flat vectors of that shape, R = C⁻¹."""
        return self._each(_Field.precision, vector)

    @property
    def standard_deviation(self) -> Tensor:
        """Standard deviation of each entry of a flat vector ``[n]``."""
        return self._tensor(np.concatenate([field.std for field in self._fields]))

    # -- uses -------------------------------------------------------------------

    def sample(self, n_samples: int, *, seed: int = 0) -> Tensor:
        """Return deviations from the mean drawn from the prior, ``[n, n_samples]``.

        Args:
            n_samples: How many.
            seed: Of the white numbers, which are drawn on the host.
        """
        white = white_block(self.latent_size, n_samples, seed)
        return self.factor(white).to(self.space.device)

    def objective(self, mean: Model) -> TorchObjective:
        """Return ``½ (m − mean)·R (m − mean)``, a convex objective for use in a sum.

        ``misfit + (1 / noise.weight) * prior.objective(mean)`` has the most probable
        model as its minimum, if ``noise.weight`` times the misfit is minus the logarithm
        of the likelihood.

        Args:
            mean: The most probable model before any data. Copied.

        Raises:
            ValueError: If ``mean`` is not shaped like the space's models.
        """
        space = self.space
        # coordinates of the cells that count, without the space's detached copies
        centre = space.to_vector(space.arrange(mean))
        indices = torch.cat(
            [torch.from_numpy(field.free.copy()) for field in self._fields]
        ).nonzero()
        indices = indices.reshape(-1).to(space.device)
        scale = 1.0 if space.scale is None else space.scale

        def half_square(*args: Tensor, **kwargs: Tensor) -> Tensor:
            cells = [kwargs[n] for n in space.names] if kwargs else list(args)
            flat = torch.cat([cell.reshape(-1).to(space.dtype) for cell in cells])
            step = flat[indices] / scale - centre
            square: Tensor = step @ _product(step, self.precision)
            return 0.5 * square

        return TorchObjective(half_square, name="prior", convex=True)

    # -- helpers ----------------------------------------------------------------

    def _each(
        self,
        apply: Callable[[_Field, Array], Array],
        given: Tensor,
        *,
        latent: bool = False,
    ) -> Tensor:
        checks.tensor("the vector", given)
        size = self.latent_size if latent else self.size
        if given.ndim not in (1, 2) or given.shape[0] != size:
            raise ValueError(
                f"the vector has shape {tuple(given.shape)}, expected ({size},) or "
                f"({size}, k)"
            )
        # transforms run along contiguous rows
        rows = given.detach().to("cpu", torch.float64).numpy().reshape(size, -1).T
        inputs = [field.free.size if latent else field.n_free for field in self._fields]
        ends = np.cumsum([0, *inputs])
        parts = [
            apply(field, np.ascontiguousarray(rows[:, a:b]))
            for field, a, b in zip(self._fields, ends, ends[1:], strict=False)
        ]
        found = self._tensor(np.concatenate(parts, axis=1).T)
        return (found[:, 0] if given.ndim == 1 else found).to(given)

    def _tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.space.device)


def white_block(size: int, n_columns: int, seed: int) -> Tensor:
    """Return independent standard normal numbers ``[size, n_columns]`` in float64."""
    # a seed draws the same first columns whatever their number
    checks.integer("the number of samples", n_columns, least=1)
    generator = torch.Generator().manual_seed(checks.seed("seed", seed))
    rows = [
        torch.randn(size, generator=generator, dtype=torch.float64)
        for _ in range(n_columns)
    ]
    return torch.stack(rows, 1)


class _Symmetric(torch.autograd.Function):
    """A symmetric matrix times a vector; its derivative is the same product."""

    @staticmethod
    def forward(ctx: Any, vector: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.product = product
        return product(vector)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _product(gradients[0], ctx.product), None


def _product(vector: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
    """Return a symmetric product that autograd can differentiate."""
    found: Tensor = _Symmetric.apply(vector, product)  # type: ignore[no-untyped-call]
    return found


@dataclass(frozen=True)
class _Field:
    """The prior of one parameter, on rows ``[k, cells]``."""

    shape: tuple[int, ...]
    free: np.ndarray[Any, np.dtype[np.bool_]]  # True for a free cell, [cells]
    symbol: Array  # Λ, [*shape]
    weight: Array  # S over the space's scale, of free cells [n]
    std: Array  # standard deviation of free cells over the space's scale [n]
    reach: tuple[float, ...]  # (b_a / h_a)² of each axis

    @property
    def n_free(self) -> int:
        return int(self.weight.size)

    def factor(self, rows: Array) -> Array:
        grid = rows.reshape(-1, *self.shape) / self.symbol
        return self._cells(_inverse(grid))[:, self.free] * self.weight

    def factor_transposed(self, rows: Array) -> Array:
        grid = self._grid(rows * self.weight, self.free)
        return self._cells(_forward(grid) / self.symbol)

    def precision(self, rows: Array) -> Array:
        found = self._stiffness(self._grid(rows / self.weight, self.free))
        kept = found[:, self.free]
        if not self.free.all():
            inner = self._frozen_block.solve(np.ascontiguousarray(found[:, ~self.free].T))
            spread = self._stiffness(self._grid(inner.T, ~self.free))
            kept = kept - spread[:, self.free]
        return kept / self.weight

    def _stiffness(self, grid: Array) -> Array:
        """Return Φ Λ² Φᵀ times grids, as rows of cells."""
        return self._cells(_inverse(_forward(grid) * self.symbol**2))

    def _grid(self, rows: Array, where: np.ndarray[Any, np.dtype[np.bool_]]) -> Array:
        full = np.zeros((len(rows), where.size))
        full[:, where] = rows
        return full.reshape(-1, *self.shape)

    def _cells(self, grid: Array) -> Array:
        return grid.reshape(len(grid), -1)

    @cached_property
    def _frozen_block(self) -> Any:
        """The factorised block of frozen cells in Φ Λ² Φᵀ, which is sparse."""
        root = scipy.sparse.identity(self.free.size, format="csr")
        for axis, (n, reach) in enumerate(zip(self.shape, self.reach, strict=True)):
            if n == 1:
                continue
            diagonal = np.full(n, 2.0)
            diagonal[[0, -1]] = 1.0
            ones = np.full(n - 1, -1.0)
            bands: Any = [ones, diagonal, ones]
            second = scipy.sparse.diags(bands, [-1, 0, 1])
            before = scipy.sparse.identity(math.prod(self.shape[:axis]))
            after = scipy.sparse.identity(math.prod(self.shape[axis + 1 :]))
            along = scipy.sparse.kron(scipy.sparse.kron(before, second), after)
            root = root + reach * along
        square = (root @ root).tocsc()
        frozen = np.flatnonzero(~self.free)
        return scipy.sparse.linalg.splu(square[frozen][:, frozen].tocsc())


def _forward(grid: Array) -> Array:
    axes = range(1, grid.ndim)
    return np.asarray(scipy.fft.dctn(grid, type=2, axes=axes, norm="ortho"))


def _inverse(grid: Array) -> Array:
    axes = range(1, grid.ndim)
    return np.asarray(scipy.fft.idctn(grid, type=2, axes=axes, norm="ortho"))


def _field(
    name: str,
    shape: tuple[int, ...],
    free: np.ndarray[Any, np.dtype[np.bool_]],
    scale: Array,
    *,
    length: Any,
    std: Any,
    spacing: Any,
) -> _Field:
    of = f"of parameter {name!r}"
    lengths = checks.per_axis(f"length {of}", length, len(shape))
    spacings = checks.per_axis(f"spacing {of}", spacing, len(shape))
    dimensions = sum(n > 1 for n in shape)
    if dimensions > MOST_DIMENSIONS:
        raise ValueError(
            f"the grid {of} has {dimensions} dimensions; the prior is for at most "
            f"{MOST_DIMENSIONS}"
        )
    smoothness = 2.0 - dimensions / 2.0
    reach = tuple(
        (b / h) ** 2 / (8.0 * smoothness) for b, h in zip(lengths, spacings, strict=True)
    )
    symbol, variance = np.ones(shape), None
    for axis, n in enumerate(shape):
        waves = 2.0 - 2.0 * np.cos(np.pi * np.arange(n) / n)
        along = [n if a == axis else 1 for a in range(len(shape))]
        symbol = symbol + reach[axis] * waves.reshape(along)
    variance = symbol**-2.0
    for axis, n in enumerate(shape):
        # squares of the cosines that the transform is made of
        angles = np.pi * np.outer(np.arange(n) + 0.5, np.arange(n)) / n
        squares = np.cos(angles) ** 2 * np.where(np.arange(n) == 0, 1.0, 2.0) / n
        variance = np.moveaxis(np.tensordot(squares, variance, (1, axis)), 0, axis)
    deviation = _standard_deviation(f"std {of}", std, shape).reshape(-1)[free] / scale
    weight = deviation / np.sqrt(variance.reshape(-1)[free])
    return _Field(shape, free, symbol, weight, deviation, reach)


def _space_of(given: Any) -> ModelSpace:
    if isinstance(given, ModelSpace):
        return given
    if isinstance(given, (tuple, torch.Size)) and all(
        isinstance(n, int) and not isinstance(n, bool) for n in given
    ):
        shape = [checks.integer("an entry of the shape", n, least=1) for n in given]
        return ModelSpace(torch.zeros(shape, dtype=torch.float64))
    return ModelSpace(given)


def _by_parameter(what: str, given: Any, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        return dict.fromkeys(names, given)
    if set(given) != set(names):
        raise ValueError(
            f"{what} is given for parameters {sorted(map(str, given))}; the model has "
            f"{list(names)}"
        )
    return dict(given)


def _standard_deviation(what: str, given: Any, shape: tuple[int, ...]) -> Array:
    if not isinstance(given, Tensor) or not given.ndim:
        return np.full(shape, checks.number(what, given, above=0.0, below=math.inf))
    checks.tensor(what, given)
    host = given.detach().to("cpu", torch.float64).numpy()
    try:
        full = np.broadcast_to(host, shape)
    except ValueError:
        raise ValueError(
            f"{what} has shape {host.shape}, which does not fit the grid {shape}"
        ) from None
    if not (np.isfinite(full).all() and (full > 0.0).all()):
        raise ValueError(f"{what} must be positive and finite in every cell")
    return full
