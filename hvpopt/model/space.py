"""ModelSpace: model tensors to and from one flat vector; scaling, mask, bounds.

Optimisers and Krylov methods work on a flat vector ``z`` of the free cells only. A model
is one tensor, a tuple of tensors, or a dict of tensors, and

    model cell = scale · z        for a free cell,
    model cell = its first value  for a frozen one (mask False).

Steps scale like models, gradients scale inversely, and the Hessian that acts on flat
vectors is ``S H S``. Model-shaped values, gradients and products are the same under
any scale; so is an exact Newton step. A scale changes lengths: the shift τ, eigenvalues
and trust radii are measured in the scaled coordinates, so that they are meaningful
for parameters of different units.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.model._scale import euclidean_norm, power_of_two
from hvpopt.model.tensors import (
    Model,
    all_finite,
    check_tensors,
    copy_model,
    named_tensors,
    rebuild,
)

logger = logging.getLogger(__name__)

#: Parameters whose sizes differ by more than this are not measured in one unit.
FAR_APART = 1000.0

PerParameter: TypeAlias = "float | Tensor | Sequence[Any] | Mapping[str, Any] | None"


class ModelSpace:
    """The map between a model and the flat vector of its free, scaled cells.

    Args:
        model: The reference model; its shapes, dtypes, device and frozen values.
            It is copied.
        scale: Positive size of one unit of each parameter (a scalar or a tensor that
            broadcasts to it); one for all, or one per parameter as a sequence or
            mapping arranged like the model. ``"auto"`` for 1, unless the root mean
            squares of the parameters' free cells differ by more than a factor of 1000:
            then for each its own, rounded down to a power of two. It takes the model's
            values for typical ones; those of a start near zero are not. Default 1.
        mask: Boolean, True where a cell may change; per parameter like ``scale``.
            Default all free.
        lower: Lower bounds in the model's units, scalars or tensors, per parameter
            like ``scale``. Default unbounded.
        upper: Upper bounds in the model's units, per parameter like ``scale``. Default
            unbounded.
        dtype: Dtype of the flat vector. Default float64, so that Krylov vectors stay
            orthogonal for models of any dtype.

    Attributes:
        names: Parameter names.
        size: Number of free cells, the length ``n`` of a flat vector.
        device: Device of the model and of every flat vector.
        lower, upper: Bounds on the flat vector ``[n]``, or None where there are none.
        scale: Scale of each free cell ``[n]``, or None where all are 1.

    Raises:
        TypeError: For parameters that are not real floating-point tensors, a mask that
            is not boolean, or scales and bounds that are not real numbers.
        ValueError: For non-finite models, parameters on several devices, shapes that
            do not fit, scales that are not positive, crossed bounds, a model outside
            its bounds, or no free cell.

    Example:
        >>> import torch, hvpopt
        >>> model = {"vp": torch.tensor([1500.0, 2000.0]), "rho": torch.tensor([1000.0])}
        >>> free = {"vp": torch.tensor([False, True]), "rho": torch.tensor([True])}
        >>> space = hvpopt.ModelSpace(model, scale={"vp": 100.0, "rho": 10.0}, mask=free)
        >>> space.to_vector(model)
        tensor([ 20., 100.], dtype=torch.float64)
    """

    def __init__(
        self,
        model: Model,
        *,
        scale: PerParameter = None,
        mask: PerParameter = None,
        lower: PerParameter = None,
        upper: PerParameter = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        tensors = named_tensors(model)
        check_tensors(tensors)
        self._reference = copy_model(model)
        self._shapes = [t.shape for t in tensors.values()]
        self._numels = [t.numel() for t in tensors.values()]
        self._dtypes = [t.dtype for t in tensors.values()]
        self.names = tuple(tensors)
        self.device = next(iter(tensors.values())).device
        self.dtype = checks.floating("dtype", dtype)

        self._free = self._free_indices(mask)
        self.size = sum(self._numels) if self._free is None else self._free.numel()
        if self.size == 0:
            raise ValueError("the mask freezes every cell; leave at least one True")
        self._free_counts = self._count_free()
        if isinstance(scale, str):
            scale = self._typical_sizes(scale)
        self.scale = self._flat_option("scale", scale, 1.0)
        if self.scale is not None and not bool((self.scale > 0).all()):
            raise ValueError(
                f"scale must be positive and finite, its smallest value is "
                f"{float(self.scale.min()):g}"
            )
        self._lowest = self._flat_bound("lower", lower, -torch.inf)
        self._highest = self._flat_bound("upper", upper, torch.inf)
        self.lower = self._unscaled(self._lowest)
        self.upper = self._unscaled(self._highest)
        self._check_bounds()

    def __repr__(self) -> str:
        if "upper" not in vars(self):  # half made
            return object.__repr__(self)
        shapes = ", ".join(
            f"{name} {list(shape)}"
            for name, shape in zip(self.names[:4], self._shapes, strict=False)
        )
        shapes += ", …" if len(self.names) > 4 else ""
        told = {"scaled": self.scale is not None, "bounded": self.bounded}
        more = "".join(f", {word}" for word, holds in told.items() if holds)
        free = f"{self.size} free cells of {sum(self._numels)}"
        return f"<ModelSpace: {free}, {shapes}; {self.dtype} on {self.device}{more}>"

    # -- points -----------------------------------------------------------------

    def to_vector(self, model: Model) -> Tensor:
        """Return the flat vector ``[n]`` of a model's free cells."""
        flat = self._gather(self.match(model, "model"))
        return flat if self.scale is None else flat / self.scale

    def to_model(self, vector: Tensor) -> Model:
        """Return the model of a flat vector ``[n]``, frozen cells at first values."""
        cells = self._times_scale(vector)
        if self.scale is not None:
            # z · scale may round past a bound that z itself keeps
            cells = _clamp(cells, self._lowest, self._highest)
        return self._scatter(cells, fill_reference=True)

    def project(self, vector: Tensor) -> Tensor:
        """Return the nearest flat vector inside the bounds."""
        self._check_length(vector)
        return _clamp(vector, self.lower, self.upper) if self.bounded else vector.clone()

    @property
    def eps(self) -> float:
        """The machine epsilon of the parameter with the least precision."""
        return max(float(torch.finfo(dtype).eps) for dtype in self._dtypes)

    @property
    def bounded(self) -> bool:
        """True if any cell has a bound."""
        return self.lower is not None or self.upper is not None

    def inside(self, vector: Tensor) -> bool:
        """True if a flat vector ``[n]`` is within the bounds."""
        self._check_length(vector)
        return not self.bounded or bool((self.project(vector) == vector).all())

    def active_mask(self, vector: Tensor, gradient: Tensor) -> Tensor:
        """Return True ``[n]`` for cells at a bound that steepest descent would cross.

        Args:
            vector: A flat point ``[n]`` inside the bounds.
            gradient: The flat gradient there ``[n]``.
        """
        self._check_length(vector)
        self._check_length(gradient)
        out = torch.zeros_like(vector, dtype=torch.bool)
        if self.lower is not None:
            out |= (vector <= self.lower) & (gradient > 0)
        if self.upper is not None:
            out |= (vector >= self.upper) & (gradient < 0)
        return out

    @property
    def free(self) -> dict[str, Tensor]:
        """True for each cell that may change, by parameter."""
        flat = torch.ones(sum(self._numels), dtype=torch.bool, device=self.device)
        if self._free is not None:
            flat = torch.zeros_like(flat).index_fill_(0, self._free, True)
        parts = zip(torch.split(flat, self._numels), self._shapes, strict=True)
        masks = [part.reshape(shape).clone() for part, shape in parts]
        return dict(zip(self.names, masks, strict=True))

    def norms(self, vector: Tensor) -> Tensor:
        """Return the norm of each parameter's part of a flat vector, ``[p]``.

        Args:
            vector: ``[n]``. Squares of its entries may be out of range.
        """
        self._check_length(vector)
        parts = torch.split(vector, self._free_counts)
        return vector.new_tensor([euclidean_norm(part) for part in parts])

    def nearby(self, model: Model) -> Model:
        """Return a model at a random distance of about ``eps ** (1 / 3)``, within bounds.

        Each free cell moves by at most the root mean square of its parameter times
        ``eps ** (1 / 3)``, away from a bound that it would cross. Frozen cells do not
        change.

        Args:
            model: A model inside its bounds.
        """
        vector = self.to_vector(model)
        counts = torch.tensor(self._free_counts).to(vector.device)
        sizes = self.norms(vector) / counts.clamp(min=1).sqrt()
        sizes = torch.where(sizes > 0.0, sizes, 1.0).repeat_interleave(counts)
        generator = torch.Generator().manual_seed(0)
        draws = torch.rand(self.size, generator=generator, dtype=torch.float64)
        step = self.eps ** (1 / 3) * sizes * (2.0 * draws - 1.0).to(vector)
        ahead = vector + step
        there = self.project(ahead)
        there = torch.where(there == ahead, ahead, self.project(vector - step))
        moved = self.to_model(there)
        free = self.free
        frozen_stay = [
            torch.where(free[name], own, self._pick(model, name))
            for name, own in named_tensors(moved).items()
        ]
        return rebuild(moved, frozen_stay)

    # -- steps and gradients ----------------------------------------------------

    def step_to_model(self, vector: Tensor) -> Model:
        """Return a model-shaped step; frozen cells are zero."""
        return self._scatter(self._times_scale(vector), fill_reference=False)

    def step_to_vector(self, step: Model) -> Tensor:
        """Return the flat vector ``[n]`` of a model-shaped step."""
        return self.to_vector(step)

    def gradient_to_vector(self, gradient: Model) -> Tensor:
        """Return the flat gradient ``[n]`` with respect to the flat vector."""
        return self._times_scale(self._gather(self.match(gradient, "gradient")))

    def gradient_to_model(self, vector: Tensor) -> Model:
        """Return the model-shaped gradient of a flat one; frozen cells are zero."""
        self._check_length(vector)
        flat = vector if self.scale is None else vector / self.scale
        return self._scatter(flat, fill_reference=False)

    # -- checks -----------------------------------------------------------------

    def match(self, model: Model, what: str) -> Model:
        """Return ``model`` if it is arranged and shaped like this space's models.

        Args:
            model: The model, gradient or step to check.
            what: Its name in an error message.

        Returns:
            The same object.

        Raises:
            TypeError: If a tensor holds no real floating-point numbers.
            ValueError: If names, shapes or device differ.
        """
        tensors = named_tensors(model)
        if set(tensors) != set(self.names):
            raise ValueError(
                f"the {what} has parameters {list(tensors)}, expected {list(self.names)}"
            )
        for name, shape in zip(self.names, self._shapes, strict=True):
            tensor = self._pick(model, name)
            if tensor.shape != shape:
                raise ValueError(
                    f"the {what} has shape {tuple(tensor.shape)} for parameter {name!r}, "
                    f"expected {tuple(shape)}"
                )
            if not tensor.is_floating_point():
                raise TypeError(
                    f"the {what} has dtype {tensor.dtype} for parameter {name!r}; it "
                    "must be real and floating"
                )
            if tensor.device != self.device:
                raise ValueError(
                    f"the {what} is on {tensor.device} for parameter {name!r}, "
                    f"the model is on {self.device}; move it with .to()"
                )
        return model

    def arrange(self, model: Model) -> Model:
        """Return a model with its parameters in this space's order.

        Args:
            model: Arranged and shaped like this space's models; a dict in any order.

        Returns:
            The same tensors, none copied.
        """
        self.match(model, "model")
        return rebuild(self._reference, [self._pick(model, n) for n in self.names])

    def accepts(self, candidate: object) -> bool:
        """True if an object is shaped like a model rather than a flat vector."""
        if isinstance(candidate, Tensor):
            return (
                isinstance(self._reference, Tensor)
                and candidate.shape == self._shapes[0]
                # a 1-D model without mask or scale equals its flat vector
                and (
                    candidate.ndim != 1
                    or self._free is not None
                    or self.scale is not None
                )
            )
        return isinstance(candidate, (tuple, list, Mapping))

    # -- helpers ----------------------------------------------------------------

    def _pick(self, model: Model, name: str) -> Tensor:
        if isinstance(model, Tensor):
            return model
        return model[name] if isinstance(model, Mapping) else model[int(name)]

    def _gather(self, model: Model) -> Tensor:
        parts = [
            self._pick(model, name).detach().reshape(-1).to(self.dtype)
            for name in self.names
        ]
        flat = parts[0] if len(parts) == 1 else torch.cat(parts)
        return flat.clone() if self._free is None else flat[self._free]

    def _scatter(self, flat: Tensor, *, fill_reference: bool) -> Model:
        if self._free is not None:
            full = (
                torch.cat([t.reshape(-1).to(flat.dtype) for t in self._tensors()])
                if fill_reference
                else flat.new_zeros(sum(self._numels))
            )
            full[self._free] = flat
            flat = full
        parts = [
            part.reshape(shape).to(dtype)
            for part, shape, dtype in zip(
                torch.split(flat, self._numels), self._shapes, self._dtypes, strict=True
            )
        ]
        return rebuild(self._reference, [_own(p, flat) for p in parts])

    def _tensors(self) -> list[Tensor]:
        return list(named_tensors(self._reference).values())

    def _check_length(self, vector: Tensor) -> None:
        checks.tensor("the flat vector", vector)
        if vector.shape != (self.size,):
            raise ValueError(
                f"a flat vector of this model has shape ({self.size},), "
                f"got {tuple(vector.shape)}"
            )

    def _times_scale(self, vector: Tensor) -> Tensor:
        self._check_length(vector)
        return vector if self.scale is None else vector * self.scale

    def sizes(self) -> dict[str, float]:
        """Return the root mean square of each parameter's free cells in the reference.

        Rounded down to powers of two, by name, in the model's units; those of which all
        free cells are zero have none.
        """
        cells = torch.cat([t.reshape(-1).double() for t in self._tensors()])
        free = cells if self._free is None else cells[self._free]
        parts = torch.split(free, self._free_counts)
        return {
            name: power_of_two(euclidean_norm(part) / math.sqrt(part.numel()))
            for name, part in zip(self.names, parts, strict=True)
            if bool(part.any())
        }

    def _typical_sizes(self, asked: str) -> PerParameter:
        """Return the size of each parameter where they differ much, else None."""
        if asked != "auto":
            raise ValueError(
                f"scale is {asked!r}; pass 'auto', a number, or sizes by parameter"
            )
        known = self.sizes()
        if not known or max(known.values()) <= FAR_APART * min(known.values()):
            return None
        logger.info("each parameter is measured in units of its own size: %s", known)
        by_place = [known.get(name, 1.0) for name in self.names]
        if isinstance(self._reference, Mapping):
            return dict(zip(self.names, by_place, strict=True))
        return by_place

    def _expand(
        self, what: str, option: PerParameter, default: object, dtype: torch.dtype
    ) -> Tensor:
        """Return a per-parameter option as one flat tensor over all cells."""
        parts = []
        values = per_parameter(what, option, self.names)
        for name, shape, own, value in zip(
            self.names, self._shapes, self._dtypes, values, strict=True
        ):
            value = default if value is None else value
            # torch would round a Python number to float32
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            try:
                tensor = torch.as_tensor(
                    value, dtype=torch.float64 if number else None, device=self.device
                ).detach()
            except (TypeError, ValueError, RuntimeError, OverflowError):
                raise TypeError(
                    f"{what} of parameter {name!r} is {checks.shown(value)}; pass "
                    f"{'True, False or a mask' if what == 'mask' else 'a number'} or a "
                    "tensor"
                ) from None
            if tensor.is_complex():
                raise TypeError(
                    f"{what} of parameter {name!r} has dtype {tensor.dtype}; it must be "
                    "real"
                )
            if (dtype is torch.bool) != (tensor.dtype is torch.bool):
                raise TypeError(
                    f"{what} of parameter {name!r} has dtype {tensor.dtype}, "
                    f"expected {'torch.bool' if dtype is torch.bool else 'numbers'}"
                )
            try:
                if dtype is not torch.bool:
                    tensor = tensor.to(own).to(dtype)
                parts.append(tensor.broadcast_to(shape).reshape(-1))
            except RuntimeError:
                raise ValueError(
                    f"{what} of parameter {name!r} has shape {tuple(tensor.shape)}, "
                    f"which does not fit the model's {tuple(shape)}"
                ) from None
        return torch.cat(parts)

    def _free_indices(self, mask: PerParameter) -> Tensor | None:
        if mask is None:
            return None
        free = self._expand("mask", mask, True, torch.bool)
        return None if bool(free.all()) else free.nonzero().reshape(-1)

    def _count_free(self) -> list[int]:
        """Return the number of free cells of each parameter."""
        if self._free is None:
            return self._numels
        ends = torch.tensor(self._numels).cumsum(0).to(self._free)
        # the free cells are in ascending order
        before = torch.searchsorted(self._free, ends).tolist()
        return [b - a for a, b in zip([0, *before[:-1]], before, strict=True)]

    def _flat_option(
        self, what: str, option: PerParameter, default: float
    ) -> Tensor | None:
        if option is None:
            return None
        full = self._expand(what, option, default, self.dtype)
        flat = full if self._free is None else full[self._free]
        if bool(torch.isnan(flat).any()) or (what == "scale" and not all_finite(flat)):
            raise ValueError(f"{what} holds NaN or infinite values; give finite numbers")
        return flat

    def _flat_bound(
        self, what: str, option: PerParameter, default: float
    ) -> Tensor | None:
        # rounded to the model's dtype first, so that no cell can round past the bound
        flat = self._flat_option(what, option, default)
        return None if flat is None or bool((flat == default).all()) else flat

    def _unscaled(self, flat: Tensor | None) -> Tensor | None:
        return flat if flat is None or self.scale is None else flat / self.scale

    def _check_bounds(self) -> None:
        if self.lower is not None and self.upper is not None:
            crossed = int((self.lower > self.upper).sum())
            if crossed:
                raise ValueError(f"lower bound is above upper bound in {crossed} cells")
        start = self.to_vector(self._reference)
        outside = int((self.project(start) != start).sum())
        if outside:
            low, high = float(start.min()), float(start.max())
            raise ValueError(
                f"the model is outside its bounds in {outside} of {self.size} cells "
                f"(its values, in units of the scale, run from {low:g} to {high:g}); "
                "clamp it, or widen the bounds"
            )


def per_parameter(what: str, option: PerParameter, names: Sequence[str]) -> list[Any]:
    """Return an option's entry for each parameter; None where the option has none."""
    if isinstance(option, Mapping):
        unknown = set(option) - set(names)
        if unknown:
            raise ValueError(
                f"{what} names parameters {sorted(unknown, key=str)} that the model "
                f"does not have; it has {list(names)}"
            )
        return [option.get(name) for name in names]
    if isinstance(option, (tuple, list)):
        if len(option) != len(names):
            raise ValueError(
                f"{what} has {len(option)} entries for {len(names)} parameters; "
                "a list has one for each parameter, a tensor one for each cell"
            )
        return list(option)
    return [option] * len(names)


def checked_space(space: object, model: Model) -> ModelSpace:
    """Return a space if it is a ModelSpace, or the default space of a model for None."""
    if space is None:
        return ModelSpace(model)
    return checks.instance("space", space, ModelSpace, "pass hvpopt.ModelSpace(model)")


def _clamp(vector: Tensor, lower: Tensor | None, upper: Tensor | None) -> Tensor:
    if lower is not None:
        vector = torch.maximum(vector, lower)
    if upper is not None:
        vector = torch.minimum(vector, upper)
    return vector


def _own(part: Tensor, flat: Tensor) -> Tensor:
    """Return a part that shares no memory with the flat vector."""
    shared = part.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
    return part.clone() if shared else part
