"""SymmetricOperator: a symmetric matrix known by its products alone.

A subclass supplies ``_product`` for one flat vector; the base class gives it ``@`` for
vectors, blocks and model-shaped right-hand sides, counts products, and converts. What is
made of other operators is a ``DerivedOperator``, which takes from them what it does not
change.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.errors import BadPartError
from hvpopt.model.counts import Counts, metered
from hvpopt.operators._second_order import second_derivatives

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

    from hvpopt.model.space import ModelSpace
    from hvpopt.model.tensors import Model

Operator = TypeVar("Operator", bound="SymmetricOperator")

#: Largest dense matrix assembled unless a caller raises it, bytes.
DENSE_MEMORY_LIMIT = 2 * 1024**3
#: Columns of a dense matrix that are computed at once.
DENSE_COLUMNS = 32


class SymmetricOperator(ABC):
    """A real symmetric linear operator on flat vectors ``[n]``.

    Args:
        size: Number of rows and columns, ``n``. Default the space's, and so for dtype
            then.
        dtype: Natural dtype of flat vectors. A product keeps the dtype it was given.
        device: Where flat vectors live. Default the space's, else the CPU.
        space: Lets ``@`` take model-shaped right-hand sides, if given.
        counts: The tally that products advance. Default a new one.
        noise: Relative size of the rounding error in one product, ``‖δ(Hw)‖/‖H‖‖w‖``.
            Default the machine epsilon of ``dtype``.
        cost: Of a product, relative to one with the whole matrix that this one stands
            for: under 1 for an estimate from some of its parts. Default 1.

    Attributes:
        after: Called after each product, or the block of those made at once, which is
            lost if it raises. Default nothing.
    """

    after: Callable[[], None] | None = None
    #: NumPy's numbers leave ``factor * operator`` to ``__rmul__``.
    __array_ufunc__ = None

    def __init__(
        self,
        size: int | None = None,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
        space: ModelSpace | None = None,
        counts: Counts | None = None,
        noise: float | None = None,
        cost: float = 1.0,
    ) -> None:
        if size is None and space is not None:
            size, dtype = space.size, space.dtype
        if device is None:
            device = "cpu" if space is None else space.device
        self.size = checks.integer("size", size, least=0)
        self.dtype = checks.floating("dtype", dtype)
        self.device = checks.device(device)
        self.space = space
        self.counts = Counts() if counts is None else counts
        checks.instance("counts", self.counts, Counts, "pass a hvpopt.Counts()")
        noise = float(torch.finfo(dtype).eps) if noise is None else noise
        self.noise = checks.number("noise", noise, least=0.0, below=math.inf)
        self.cost = checks.number("cost", cost, above=0.0, below=math.inf)

    @property
    def shape(self) -> tuple[int, int]:
        """``(n, n)``."""
        return self.size, self.size

    def __repr__(self) -> str:
        if "cost" not in vars(self):  # half made
            return object.__repr__(self)
        return (
            f"<{type(self).__name__}: {self.size} × {self.size}, {self.dtype} on "
            f"{self.device}, {self.counts.products} products>"
        )

    @property
    def columns_at_once(self) -> int:
        """How many columns of a block are multiplied together; 1 for one by one."""
        return 1

    @abstractmethod
    def _product(self, vector: Tensor) -> Tensor:
        """Return the product with one flat vector ``[n]``, and count it."""

    def _block_product(self, block: Tensor) -> Tensor:
        """Return products with up to ``columns_at_once`` columns; default one by one."""
        return torch.stack([self._product(c.contiguous()) for c in block.unbind(1)], 1)

    def matvec(self, vector: Tensor) -> Tensor:
        """Return the product with a flat vector.

        Args:
            vector: ``[n]``, on this operator's device.

        Returns:
            ``[n]``, in the dtype of ``vector``.

        Raises:
            TypeError: If ``vector``, or what a function returned for it, is no real
                floating-point tensor.
            ValueError: If shape or device of either do not fit, or ``vector`` is not
                finite.
            FloatingPointError: If the product is not finite.
            SecondOrderError: If the loss has no second derivative.
        """
        self._check(vector, ndim=1)
        with second_derivatives():
            result = self._product(vector)
        return self._checked(result, vector)

    def _checked(self, result: Tensor, rhs: Tensor) -> Tensor:
        """Return a product in the dtype of its right-hand side, or raise."""
        what = f"the product of {type(self).__name__}"
        result = checks.tensor(what, result, tuple(rhs.shape)).to(rhs.dtype)
        if result.device != self.device:
            raise ValueError(f"{what} is on {result.device}, expected {self.device}")
        if not bool(torch.isfinite(result).all()):
            raise FloatingPointError(
                f"product {self.counts.products} of {type(self).__name__} is not finite "
                "although its right-hand side is; the loss overflows or is not twice "
                "differentiable at this model"
            )
        if self.after is not None:
            self.after()
        return result

    def matmat(self, block: Tensor) -> Tensor:
        """Return the products with the columns of a block ``[n, k]``.

        Each counts as a product, also where several are made at once.

        Args:
            block: ``[n, k]``, on this operator's device.

        Returns:
            ``[n, k]``, in the dtype of ``block``.

        Raises:
            Exception: As for ``matvec``.
        """
        self._check(block, ndim=2)
        at_once, n_columns = self.columns_at_once, block.shape[1]
        if at_once > 1 and n_columns > 1:
            results = []
            for part in torch.split(block, at_once, 1):
                with second_derivatives():
                    result = self._block_product(part)
                results.append(self._checked(result, part))
            return torch.cat(results, 1)
        columns = [self.matvec(column.contiguous()) for column in block.unbind(1)]
        return torch.stack(columns, 1) if columns else torch.empty_like(block)

    def __matmul__(self, rhs: Any) -> Any:
        """Return the product with a flat vector, a block, or a model-shaped step."""
        if self.space is not None and self.space.accepts(rhs):
            return self._model_product(rhs)
        if not isinstance(rhs, Tensor):
            raise TypeError(
                f"the right-hand side is a {type(rhs).__name__}; pass a tensor shaped "
                f"[{self.size}], [{self.size}, k]"
                + (" or like the model" if self.space else "")
            )
        return self.matmat(rhs) if rhs.ndim == 2 else self.matvec(rhs)

    def _model_product(self, step: Model) -> Model:
        assert self.space is not None
        product = self.matvec(self.space.step_to_vector(step))
        return self.space.gradient_to_model(product)

    def __add__(self, other: object) -> SymmetricOperator:
        """Return a sum of operators, or ``H + τI`` for a number τ."""
        if isinstance(other, SymmetricOperator):
            return SumOperator([(1.0, self), (1.0, other)])
        return ShiftedOperator(self, other) if checks.is_number(other) else NotImplemented

    def __radd__(self, other: object) -> SymmetricOperator:
        return ShiftedOperator(self, other) if checks.is_number(other) else NotImplemented

    def __sub__(self, other: object) -> SymmetricOperator:
        if isinstance(other, SymmetricOperator):
            return SumOperator([(1.0, self), (-1.0, other)])
        if checks.is_number(other):
            return ShiftedOperator(self, -checks.number("the shift", other))
        return NotImplemented

    def __rmul__(self, factor: float) -> SymmetricOperator:
        return SumOperator([(factor, self)])

    __mul__ = __rmul__

    def to_dense(
        self,
        *,
        memory_limit: str | float = DENSE_MEMORY_LIMIT,
        deadline: float = math.inf,
    ) -> Tensor:
        """Return the matrix ``[n, n]``, by one product for each column.

        Args:
            memory_limit: Refuse a matrix of more bytes than this, or a string such as
                ``"2GB"``.
            deadline: Raise when ``time.monotonic()`` passes this, seconds; checked
                between blocks.

        Returns:
            The symmetric part of the assembled matrix, in ``self.dtype``.

        Raises:
            MemoryError: If the matrix needs more than ``memory_limit`` bytes.
            TimeoutError: If the deadline passes.
        """
        memory_limit = checks.memory("memory_limit", memory_limit)
        deadline = checks.number("deadline", deadline)
        needed = self.size**2 * torch.finfo(self.dtype).bits // 8
        if needed > memory_limit:
            raise MemoryError(
                f"a dense {self.size} × {self.size} matrix needs {needed:,} bytes, above "
                f"memory_limit={int(memory_limit):,}; use products (`H @ w`), or raise "
                "the limit"
            )
        matrix = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        for first in range(0, self.size, DENSE_COLUMNS):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the deadline passed after {first} products")
            columns = torch.arange(
                first, min(first + DENSE_COLUMNS, self.size), device=self.device
            )
            units = matrix.new_zeros(self.size, columns.numel())
            units[columns, torch.arange(columns.numel(), device=self.device)] = 1.0
            matrix[:, columns] = self.matmat(units)
        # in place and by rows, so that the peak stays near one matrix
        for i in range(self.size - 1):
            mean = 0.5 * (matrix[i, i + 1 :] + matrix[i + 1 :, i])
            matrix[i, i + 1 :] = mean
            matrix[i + 1 :, i] = mean
        return matrix

    def close(self) -> None:  # noqa: B027 - most operators hold nothing to release
        """Release what the operator holds to make products, such as a graph.

        Default nothing.
        """

    def __copy__(self: Operator) -> Operator:
        # shares a graph that pickles and deep copies leave out, or refuse
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __enter__(self: Operator) -> Operator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def to_scipy(self) -> LinearOperator:
        """Return a ``scipy.sparse.linalg.LinearOperator`` on host vectors."""
        from scipy.sparse.linalg import LinearOperator

        apply = on_host(self.matvec, self.dtype, self.device)
        return LinearOperator(
            self.shape, matvec=apply, rmatvec=apply, dtype=numpy_dtype(self.dtype)
        )

    def _check(self, rhs: Tensor, ndim: int) -> None:
        shaped = "model" if self.space is not None else ""
        check_right_hand_side(rhs, ndim, self.size, self.device, shaped)


def check_right_hand_side(
    rhs: object, ndim: int, size: int, device: torch.device, shaped: str = ""
) -> None:
    """Raise unless a right-hand side is real, finite and flat (or a block, ndim 2)."""
    rhs = checks.instance("the right-hand side", rhs, Tensor, "pass a tensor")
    if rhs.ndim != ndim or rhs.shape[0] != size:
        raise ValueError(
            f"the right-hand side has shape {tuple(rhs.shape)}, expected "
            f"({size},) or ({size}, k)" + (f" or the {shaped}'s shape" if shaped else "")
        )
    if rhs.device != device:
        raise ValueError(
            f"the right-hand side is on {rhs.device}, the operator on {device}; "
            "move it with .to()"
        )
    if not rhs.is_floating_point():
        raise TypeError(
            f"the right-hand side has dtype {rhs.dtype}; it must be real and floating"
        )
    if not bool(torch.isfinite(rhs).all()):
        raise ValueError("the right-hand side has NaN or infinite entries")


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """Return NumPy's name of a torch dtype."""
    return np.dtype(str(dtype).removeprefix("torch."))


def on_host(
    product: Callable[[Tensor], Tensor], dtype: torch.dtype, device: torch.device
) -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """Return a real linear function of flat tensors as one of real or complex arrays."""

    def apply(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if np.iscomplexobj(vector):
            return cast(
                "np.ndarray[Any, Any]",
                apply(np.real(vector)) + 1j * apply(np.imag(vector)),
            )
        host = torch.from_numpy(np.array(vector).reshape(-1))
        result = product(host.to(device, dtype)).cpu().numpy()
        return cast("np.ndarray[Any, Any]", result)

    return apply


def checked_operator(operator: object) -> SymmetricOperator:
    """Return an operator, or raise TypeError that tells how to make one."""
    if isinstance(operator, SymmetricOperator):
        return operator
    use = "pass a SymmetricOperator, such as hvpopt.HessianOperator(loss, model)"
    if isinstance(operator, Tensor):
        use = "pass hvpopt.MatrixOperator(t) of a symmetric tensor t"
    elif isinstance(operator, np.ndarray):
        use = "pass hvpopt.MatrixOperator(torch.from_numpy(a)) of a symmetric array a"
    elif callable(getattr(operator, "normal", None)):
        use = "pass J.normal(damping), the matrix of its normal equations"
    elif callable(operator) and not isinstance(operator, type):
        use = "pass hvpopt.FunctionOperator(f, n) of a function f of vectors [n]"
    raise TypeError(f"the operator is {checks.kind(operator)}; {use}")


class MatrixOperator(SymmetricOperator):
    """A symmetric operator that holds its matrix; for tests and small models.

    Args:
        matrix: ``[n, n]``, real and symmetric to rounding.

    Raises:
        TypeError: If the matrix is no real floating-point tensor.
        ValueError: If it is not square, finite and symmetric, or is empty.
    """

    def __init__(self, matrix: Tensor) -> None:
        checks.tensor("the matrix", matrix)
        if not matrix.numel() or matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(
                f"the matrix has shape {tuple(matrix.shape)}, expected [n, n]"
            )
        if not bool(torch.isfinite(matrix).all()):
            raise ValueError("the matrix has NaN or infinite entries")
        gap = float((matrix - matrix.mT).abs().max())
        if gap > math.sqrt(torch.finfo(matrix.dtype).eps) * float(matrix.abs().max()):
            raise ValueError(
                f"the matrix is not symmetric: entries differ by up to {gap:g}"
            )
        super().__init__(matrix.shape[0], dtype=matrix.dtype, device=matrix.device)
        self.matrix = matrix

    def _product(self, vector: Tensor) -> Tensor:
        self.counts.tally(products=1)
        return self.matrix @ vector.to(self.dtype)


class FunctionOperator(SymmetricOperator):
    """A symmetric operator given by a function of flat vectors.

    Args:
        product: Maps ``[n]`` to ``[n]``; must be linear and symmetric.
        size: ``n``.
        dtype: Natural dtype of flat vectors.
        device: Where flat vectors live.

    Raises:
        TypeError: If the product cannot be called, or for a size or dtype of another
            type.
        ValueError: If the size is not positive, or there is no such device.
    """

    def __init__(
        self,
        product: Callable[[Tensor], Tensor],
        size: int,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        size = checks.integer("size", size, least=1)
        super().__init__(size, dtype=dtype, device=device)
        self._function: Callable[[Tensor], Tensor] = checks.function(
            "the product", product
        )

    def _product(self, vector: Tensor) -> Tensor:
        self.counts.tally(products=1)
        return self._function(vector.to(self.dtype))


def _apply(operator: SymmetricOperator, rhs: Tensor) -> Tensor:
    """Return the product with a flat vector or a block."""
    return operator.matvec(rhs) if rhs.ndim == 1 else operator.matmat(rhs)


class DerivedOperator(SymmetricOperator):
    """An operator made of others, on the same device; closing it closes them.

    It takes dtype and device of the first of them, its space unless ``size`` is given,
    its counts unless others are given, the largest noise and the least cost: beside a
    sketch of waves a regulariser, which is whole, costs nothing.
    """

    def __init__(
        self,
        operators: Sequence[SymmetricOperator],
        *,
        size: int | None = None,
        counts: Counts | None = None,
    ) -> None:
        first = operators[0]
        super().__init__(
            first.size if size is None else size,
            dtype=first.dtype,
            device=first.device,
            space=first.space if size is None else None,
            counts=first.counts if counts is None else counts,
            noise=max(operator.noise for operator in operators),
            cost=min(operator.cost for operator in operators),
        )
        self.operators = tuple(operators)

    def close(self) -> None:
        """Close every operator that this one is made of."""
        for operator in self.operators:
            operator.close()


class SumOperator(DerivedOperator):
    """A weighted sum of operators on the same vectors.

    Its products count once here and once in every term, where they happen. ``names`` are
    what the terms are called in a ``BadPartError``.
    """

    def __init__(
        self,
        terms: list[tuple[float, SymmetricOperator]],
        *,
        names: Sequence[str] = (),
        counts: Counts | None = None,
    ) -> None:
        if not terms:
            raise ValueError("a sum of operators needs at least one term")
        self.weights = [
            checks.number("the weight", w, above=-math.inf, below=math.inf)
            for w, _ in terms
        ]
        operators = [checked_operator(term) for _, term in terms]
        first = operators[0]
        for term in operators:
            if term.size != first.size or term.device != first.device:
                raise ValueError(
                    f"cannot add an operator of size {term.size} on {term.device} to one "
                    f"of size {first.size} on {first.device}"
                )
        super().__init__(operators, counts=Counts() if counts is None else counts)
        self.names = tuple(names)

    @property
    def columns_at_once(self) -> int:
        """As many as the term that takes most."""
        return max(operator.columns_at_once for operator in self.operators)

    def _product(self, vector: Tensor) -> Tensor:
        self.counts.tally(products=1)
        return self._sum(vector)

    def _block_product(self, block: Tensor) -> Tensor:
        self.counts.tally(products=block.shape[1])
        return self._sum(block)

    def _sum(self, rhs: Tensor) -> Tensor:
        total = torch.zeros_like(rhs)
        pairs = zip(self.weights, self.operators, strict=True)
        for place, (weight, term) in enumerate(pairs):
            # sums in other threads may share a term
            with metered(term.counts, pass_on=True) as own:
                try:
                    total.add_(_apply(term, rhs), alpha=weight)
                except BadPartError as error:
                    for name in self.names[place : place + 1]:
                        error.within(name)
                    raise
                finally:  # also what has failed was run
                    self.counts.tally(propagations=own.propagations)
        return total


class ShiftedOperator(DerivedOperator):
    """``H + τI``, with τ in the coordinates of flat vectors; ``H + τ`` makes one."""

    def __init__(self, operator: SymmetricOperator, shift: Any) -> None:
        super().__init__([operator])
        says = "it must be finite"
        self.shift = checks.number(
            "the shift", shift, above=-math.inf, below=math.inf, says=says
        )

    @property
    def columns_at_once(self) -> int:
        """As many as H takes."""
        return self.operators[0].columns_at_once

    def _product(self, vector: Tensor) -> Tensor:
        (operator,) = self.operators
        return _apply(operator, vector) + self.shift * vector

    def _block_product(self, block: Tensor) -> Tensor:
        return self._product(block)


class RestrictedOperator(DerivedOperator):
    """The rows and columns of an operator that a Boolean vector ``[n]`` keeps."""

    def __init__(self, operator: SymmetricOperator, keep: Tensor) -> None:
        self._indices = keep.nonzero().reshape(-1)
        super().__init__([operator], size=self._indices.numel())

    def restrict(self, vector: Tensor) -> Tensor:
        """Return the kept entries of a full vector ``[n]``, or block ``[n, k]``."""
        return vector[self._indices]

    def extend(self, vector: Tensor) -> Tensor:
        """Return the full vector or block of kept entries, zero elsewhere."""
        full = vector.new_zeros(self.operators[0].size, *vector.shape[1:])
        full[self._indices] = vector
        return full

    @property
    def columns_at_once(self) -> int:
        """As many as the whole operator takes."""
        return self.operators[0].columns_at_once

    def _product(self, vector: Tensor) -> Tensor:
        return self.restrict(_apply(self.operators[0], self.extend(vector)))

    def _block_product(self, block: Tensor) -> Tensor:
        return self._product(block)
