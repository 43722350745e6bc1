"""Jacobian: a linear map from a model's steps to data, known by products both ways.

A subclass supplies the products with one model-shaped step and with one set of data. The
base class gives the map and its transpose ``@`` for model- and data-shaped, flat and
block right-hand sides, and converts to a SciPy ``LinearOperator`` for its least-squares
solvers. Flat vectors of steps are those of a ModelSpace; those of data hold the channels
one after the other, each in the order of its entries.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.model.counts import Counts
from hvpopt.model.space import ModelSpace
from hvpopt.model.tensors import Model
from hvpopt.operators.symmetric import (
    SymmetricOperator,
    check_right_hand_side,
    numpy_dtype,
    on_host,
)

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


class Jacobian(ABC):
    """A real linear operator from flat vectors ``[n]`` of steps to ``[m]`` of data.

    ``J @ w`` and ``J.T @ d`` return the form of their argument: data, one tensor or a
    dict by channel, for a model-shaped step, and a model-shaped gradient for data; a flat
    vector for a flat vector, a block ``[m, k]`` for ``[n, k]``.

    Args:
        space: Flat coordinates of steps.
        data_shapes: Shape of the data of each channel, by name.
        data_dtype: Dtype of the data.
        counts: The tally that products advance, those with the transpose too.

    Attributes:
        space, data_shapes, data_dtype, counts: As given.
        dtype: Natural dtype of flat vectors.
        device: Where steps and data live.
        shape: ``(m, n)``.
    """

    #: NumPy's numbers and arrays leave ``@`` to this class.
    __array_ufunc__ = None

    def __init__(
        self,
        space: ModelSpace,
        data_shapes: Mapping[str, tuple[int, ...]],
        data_dtype: torch.dtype,
        counts: Counts,
    ) -> None:
        self.space = space
        self.data_shapes = {c: tuple(shape) for c, shape in data_shapes.items()}
        self.data_dtype = data_dtype
        self.counts = counts
        self.dtype, self.device = space.dtype, space.device
        self._sizes = [math.prod(shape) for shape in self.data_shapes.values()]
        self.shape = (sum(self._sizes), space.size)

    # -- what a subclass supplies -------------------------------------------------

    def __repr__(self) -> str:
        m, n = self.shape
        products = self.counts.products
        return f"<{type(self).__name__}: {m} × {n}, {products} products>"

    @abstractmethod
    def _push(self, step: Model) -> dict[str, Tensor]:
        """Return J times a model-shaped step, by channel, and count it."""

    @abstractmethod
    def _pull(self, data: dict[str, Tensor]) -> Model:
        """Return Jᵀ times data by channel, shaped like a gradient, and count it."""

    @abstractmethod
    def _normal(self) -> SymmetricOperator:
        """Return JᵀJ."""

    # -- products -----------------------------------------------------------------

    def __matmul__(self, rhs: Any) -> Any:
        """Return J times a model-shaped step, a flat vector or a block."""
        if self.space.accepts(rhs):
            # by way of the flat vector, which has no frozen cells
            vector = self.space.step_to_vector(rhs)
            if not bool(torch.isfinite(vector).all()):
                raise ValueError("the step has NaN or infinite entries")
            return self._answer(self._push(self.space.step_to_model(vector)))
        return _flat_product(self.matvec, rhs, self.shape, "model")

    @property
    def T(self) -> TransposedJacobian:  # noqa: N802 - as NumPy, SciPy and torch call it
        """Jᵀ, as in ``J.T @ d``."""
        return TransposedJacobian(self)

    def normal(self, damping: float = 0.0) -> SymmetricOperator:
        """Return ``JᵀJ + damping · I``, the matrix of the normal equations.

        ``hvpopt.cg(J.normal(damping), J.T @ d)`` minimises
        ``‖J w − d‖² + damping ‖w‖²``, the last norm in flat coordinates.

        Args:
            damping: Zero or positive. Default 0. (SciPy's ``lsqr`` takes its root.)

        Raises:
            TypeError: If the damping is no number.
            ValueError: If it is negative or not finite.
        """
        damping = checks.number("damping", damping, least=0.0, below=math.inf)
        normal = self._normal()
        return normal + damping if damping else normal

    def matvec(self, vector: Tensor) -> Tensor:
        """Return J times a flat vector ``[n]``: ``[m]``, in its dtype."""
        check_right_hand_side(vector, 1, self.shape[1], self.device, "model")
        step = self.space.step_to_model(vector.to(self.dtype))
        return self._flat(self._push(step)).to(vector.dtype)

    def rmatvec(self, vector: Tensor) -> Tensor:
        """Return Jᵀ times a flat vector ``[m]``: ``[n]``, in its dtype."""
        check_right_hand_side(vector, 1, self.shape[0], self.device, "data")
        gradient = self._pull(self._split(vector))
        return self.space.gradient_to_vector(gradient).to(vector.dtype)

    # -- data and flat vectors ----------------------------------------------------

    def to_vector(self, data: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Return the flat vector ``[m]`` of data."""
        return self._flat(self._by_channel(data))

    def to_data(self, vector: Tensor) -> Tensor | dict[str, Tensor]:
        """Return the data of a flat vector ``[m]``, of the data's dtype."""
        check_right_hand_side(vector, 1, self.shape[0], self.device, "data")
        return self._answer(self._split(vector))

    def to_scipy(self) -> LinearOperator:
        """Return a ``scipy.sparse.linalg.LinearOperator`` ``(m, n)`` on host vectors."""
        from scipy.sparse.linalg import LinearOperator

        return LinearOperator(
            self.shape,
            matvec=on_host(self.matvec, self.dtype, self.device),
            rmatvec=on_host(self.rmatvec, self.dtype, self.device),
            dtype=numpy_dtype(self.dtype),
        )

    def _flat(self, data: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([data[c].reshape(-1).to(self.dtype) for c in self.data_shapes])

    def _split(self, vector: Tensor) -> dict[str, Tensor]:
        parts = torch.split(vector, self._sizes)
        return {
            channel: part.reshape(shape).to(self.data_dtype)
            for part, (channel, shape) in zip(
                parts, self.data_shapes.items(), strict=True
            )
        }

    def _answer(self, data: dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
        return data if len(data) > 1 else next(iter(data.values()))

    def _by_channel(self, data: Any) -> dict[str, Tensor]:
        """Return data by channel, checked."""
        channels = list(self.data_shapes)
        if isinstance(data, Tensor) and len(channels) == 1:
            data = {channels[0]: data}
        if not isinstance(data, Mapping):
            raise TypeError(
                f"the data are {checks.kind(data)}; pass "
                + ("a tensor" if len(channels) == 1 else f"a dict by channel {channels}")
            )
        if set(data) != set(channels):
            raise ValueError(
                f"the data have channels {sorted(map(str, data))}, expected {channels}"
            )
        found = {}
        for channel, shape in self.data_shapes.items():
            what = f"the data of channel {channel!r}"
            tensor = checks.tensor(what, data[channel], shape)
            if tensor.device != self.device:
                raise ValueError(
                    f"{what} are on {tensor.device}, the model is on {self.device}; move "
                    "them with .to()"
                )
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{what} have NaN or infinite samples")
            found[channel] = tensor.detach().to(self.data_dtype)
        return found


class TransposedJacobian:
    """Jᵀ, from data to steps, of shape ``(n, m)``; ``J.T`` makes one."""

    __array_ufunc__ = None

    def __init__(self, jacobian: Jacobian) -> None:
        self.jacobian = jacobian
        self.shape = jacobian.shape[::-1]

    @property
    def T(self) -> Jacobian:  # noqa: N802
        """J."""
        return self.jacobian

    def __matmul__(self, rhs: Any) -> Any:
        """Return Jᵀ times data, a flat vector or a block."""
        own = self.jacobian
        if isinstance(rhs, Mapping) or (
            isinstance(rhs, Tensor)
            and len(own.data_shapes) == 1
            and tuple(rhs.shape) in own.data_shapes.values()
        ):
            gradient = own._pull(own._by_channel(rhs))
            # frozen cells have no part in it
            return own.space.gradient_to_model(own.space.gradient_to_vector(gradient))
        return _flat_product(own.rmatvec, rhs, self.shape, "data")


def _flat_product(
    product: Callable[[Tensor], Tensor], rhs: Any, shape: tuple[int, int], shaped: str
) -> Tensor:
    """Return the product with a flat vector, or with the columns of a block."""
    n_rows, n_columns = shape
    if not isinstance(rhs, Tensor):
        raise TypeError(
            f"the right-hand side is {checks.kind(rhs)}; pass a tensor shaped "
            f"[{n_columns}], [{n_columns}, k] or like the {shaped}"
        )
    if rhs.ndim != 2:
        return product(rhs)
    check_right_hand_side(rhs, 2, n_columns, rhs.device, shaped)
    columns = [product(column.contiguous()) for column in rhs.unbind(1)]
    return torch.stack(columns, 1) if columns else rhs.new_empty(n_rows, 0)
