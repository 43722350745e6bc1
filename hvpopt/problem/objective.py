"""Objective: what is minimised, its gradient and its Hessian; sums of objectives."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.errors import BadPartError
from hvpopt.model.counts import Counts, metered
from hvpopt.model.space import ModelSpace
from hvpopt.model.tensors import Model, named_tensors, rebuild
from hvpopt.operators.symmetric import SumOperator, SymmetricOperator
from hvpopt.problem.processes import ALONE, Processes

Kind = Literal["exact", "gauss-newton"]


@dataclass(frozen=True)
class Linearisation:
    """An objective's value, gradient and Hessian at one model.

    Attributes:
        value: The objective.
        gradient: Its gradient, shaped like the model.
        hessian: Its Hessian, by products; call ``close()`` to release its graph. None if
            only value and gradient were requested.
        parts: Value of each named part of a sum. Default empty, for a single objective.
    """

    value: float
    gradient: Model
    hessian: SymmetricOperator | None
    parts: dict[str, float] = field(default_factory=dict)


class Objective(ABC):
    """A scalar function of a model, with counted evaluations.

    Attributes:
        name: Its name as a part of a sum.
        counts: The tally of everything evaluated through this objective, including the
            products of its Hessians.
    """

    #: Makes ``numpy_scalar * objective`` call ``__rmul__``.
    __array_ufunc__ = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.counts = Counts()

    def __repr__(self) -> str:
        if "counts" not in vars(self):  # half made
            return object.__repr__(self)
        spent = ", ".join(f"{n} {k}" for k, n in self.counts.as_dict().items() if n)
        return f"<{type(self).__name__} {self.name!r}: {spent or 'not evaluated yet'}>"

    @property
    def sizes_are_units(self) -> bool:
        """True if each parameter is a physical quantity, with a size of its own.

        ``minimize`` then measures parameters of very different sizes in units of their
        own. Default False: a start near zero says nothing of a parameter's size.
        """
        return False

    @property
    def has_gauss_newton(self) -> bool:
        """True if ``hessian`` accepts ``kind="gauss-newton"``. Default False."""
        return False

    @property
    def preferred_kind(self) -> Kind:
        """``"gauss-newton"`` where the objective has that matrix, else ``"exact"``."""
        return "gauss-newton" if self.has_gauss_newton else "exact"

    @abstractmethod
    def value(self, model: Model) -> float:
        """Return the objective, building no graph. NaN and infinity are returned."""

    @abstractmethod
    def value_and_gradient(self, model: Model) -> tuple[float, Model]:
        """Return the objective and its gradient, shaped like the model."""

    @abstractmethod
    def hessian(
        self, model: Model, kind: Kind = "exact", *, space: ModelSpace | None = None
    ) -> SymmetricOperator:
        """Return the Hessian at a model, by products.

        Args:
            model: Where to linearise.
            kind: ``"exact"``, or ``"gauss-newton"`` where the objective defines one.
            space: Flat coordinates. Default ``ModelSpace(model)``.
        """

    def sketch(
        self,
        model: Model,
        kind: Kind = "gauss-newton",
        *,
        space: ModelSpace | None = None,
        seed: int = 0,
    ) -> SymmetricOperator:
        """Return an operator whose mean over seeds is the Hessian, with cheap products.

        It is the Hessian of a small sample, for statistics that do not need exact
        products, such as a diagonal. Its ``cost`` is that of a product relative to one
        of the Hessian.

        Args:
            model: Where to linearise.
            kind: ``"exact"``, or ``"gauss-newton"`` where the objective defines one.
            space: Flat coordinates. Default ``ModelSpace(model)``.
            seed: Seed of the random numbers. Default 0.
        """
        checks.seed("seed", seed)
        sample = self.sample(self.sketch_size, seed=seed)
        return sample.hessian(model, kind, space=space)

    @property
    def sketch_size(self) -> int:
        """Size of the sample whose Hessian ``sketch`` returns. Default 1."""
        return 1

    @abstractmethod
    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Return the objective as a differentiable torch scalar, like a plain loss."""

    def linearise(
        self,
        model: Model,
        kind: Kind | None = "exact",
        *,
        space: ModelSpace | None = None,
    ) -> Linearisation:
        """Return value, gradient and Hessian at a model, from one graph if possible.

        Args:
            model: Where to linearise.
            kind: ``"exact"`` or ``"gauss-newton"``; None for value and gradient alone.
            space: Flat coordinates. Default ``ModelSpace(model)``.
        """
        value, gradient = self.value_and_gradient(model)
        hessian = None if kind is None else self.hessian(model, kind, space=space)
        return Linearisation(value, gradient, hessian)

    @property
    def n_parts(self) -> int:
        """Number of parts that ``sample`` takes some of. Default 1, the whole."""
        return 1

    @property
    def encodes(self) -> bool:
        """True if a part of a sample is a random sum of all parts. Default False."""
        return False

    @property
    def gradient_propagations(self) -> int:
        """Wave propagations of one gradient. Default 0, for a loss without waves."""
        return 0

    def cost(self, counts: Counts) -> float:
        """Return the cost of evaluations of this objective, in gradients.

        It is that of the wave propagations, of which a value takes half as many as a
        gradient, and a product up to twice as many. A value of a loss without waves
        counts a half, and a product two.

        Args:
            counts: The evaluations.
        """
        if self.gradient_propagations:
            return counts.propagations / self.gradient_propagations
        return 0.5 * counts.values + counts.gradients + 2.0 * counts.products

    def parts(self, model: Model) -> dict[str, float]:
        """Return the value of each named part; one part unless this is a sum."""
        return {self.name: self.value(model)}

    @property
    def processes(self) -> Processes:
        """The processes that evaluate this objective together. Default this one alone."""
        return ALONE

    def without(self, parts: Mapping[str, str]) -> Objective:
        """Return a new objective, the sum of the other parts; this one is unchanged.

        Evaluations of the new objective count in ``counts`` of this one too.

        Args:
            parts: Why each part is dropped, by its name; as ``BadPartError.parts``.

        Raises:
            ValueError: If there is no such part, or no other.
        """
        raise ValueError(
            f"{self.name!r} has no part that could be dropped: {sorted(parts)}"
        )

    def sample(self, size: int, *, seed: int = 0) -> Objective:
        """Return an objective of some parts of a sum, whose mean over seeds is this one.

        Args:
            size: How many parts. Default not read: what is no sum of many parts is
                returned as it is.
            seed: Seed of the choice.
        """
        return self

    def __add__(self, other: object) -> SumObjective:
        if isinstance(other, Objective):
            return SumObjective([*_weighted_terms(self), *_weighted_terms(other)])
        return NotImplemented

    def __radd__(self, other: object) -> Objective:
        """Return itself for ``0 + objective``, with which ``sum`` begins."""
        return self if checks.is_number(other) and other == 0 else NotImplemented

    def __rmul__(self, weight: float) -> SumObjective:
        weight = checks.number(f"the weight of {self.name!r}", weight)
        return SumObjective([(weight * w, o) for w, o in _weighted_terms(self)])

    __mul__ = __rmul__


class SumObjective(Objective):
    """A weighted sum of objectives of one model, which reports each part's value.

    ``misfit + 0.1 * roughness`` makes one. A part's reported value includes its weight.

    Args:
        terms: Pairs of weight and objective. Names that repeat are numbered.

    Raises:
        TypeError: If a term is not a pair of a number and an Objective.
        ValueError: If there is no term, or a weight is not finite.
    """

    def __init__(self, terms: Iterable[tuple[float, Objective]]) -> None:
        checks.having("terms", terms, "__iter__", "pass pairs (weight, objective)")
        self.terms = [_checked_term(term) for term in terms]
        if not self.terms:
            raise ValueError("a sum of objectives needs at least one term")
        super().__init__(" + ".join(term.name for _, term in self.terms))
        names = [term.name for _, term in self.terms]
        self._names = _distinct(names)

    @property
    def sizes_are_units(self) -> bool:
        """True if they are for any term."""
        return any(term.sizes_are_units for _, term in self.terms)

    @property
    def has_gauss_newton(self) -> bool:
        """True if every term has a Gauss-Newton matrix."""
        return all(term.has_gauss_newton for _, term in self.terms)

    @property
    def processes(self) -> Processes:
        """The processes of the first term that several processes evaluate."""
        found = (term.processes for _, term in self.terms)
        return next((processes for processes in found if processes.count > 1), ALONE)

    def without(self, parts: Mapping[str, str]) -> SumObjective:
        """Return the sum without parts of its terms, named ``"term: part"``."""
        checks.having("parts", parts, "items", "pass a dict {'term: part': why}")
        by_term: dict[str, dict[str, str]] = {name: {} for name in self._names}
        longest_first = sorted(self._names, key=len, reverse=True)
        for part, why in parts.items():
            # the rest may name a term in its turn, where a term is a sum itself
            text = str(part)
            name = next((n for n in longest_first if text.startswith(f"{n}: ")), None)
            if name is None:
                raise ValueError(f"no term of {self.name!r} has a part {part!r}")
            by_term[name][text.removeprefix(f"{name}: ")] = why
        other = SumObjective(
            (weight, term.without(by_term[name]) if by_term[name] else term)
            for name, (weight, term) in zip(self._names, self.terms, strict=True)
        )
        other.counts = self.counts.child()
        return other

    @property
    def n_parts(self) -> int:
        """The largest number of parts of a term."""
        return max(term.n_parts for _, term in self.terms)

    @property
    def encodes(self) -> bool:
        """True if the samples of every term of several parts are encoded."""
        several = [term for _, term in self.terms if term.n_parts > 1]
        return bool(several) and all(term.encodes for term in several)

    @property
    def gradient_propagations(self) -> int:
        """The sum of the terms'."""
        return sum(term.gradient_propagations for _, term in self.terms)

    def sample(self, size: int, *, seed: int = 0) -> SumObjective:
        """Return the sum of the terms' samples; terms of one part stay whole.

        Args:
            size: Parts of the term that has most of them, at most as many as it has. A
                term of fewer parts gives the same share of its own, at least one.
            seed: Seed of the choice.

        Raises:
            TypeError: If the size is no integer.
            ValueError: If it is out of range.
        """
        largest = self.n_parts
        if largest > 1:
            checks.integer("size", size, least=1, most=largest)
        other = SumObjective(
            (w, term.sample(-(-size * term.n_parts // largest), seed=seed))
            for w, term in self.terms
        )
        other.counts = self.counts.child()
        return other

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Return the weighted sum as a differentiable torch scalar."""
        first, *rest = [w * term(*args, **kwargs) for w, term in self.terms]
        return sum(rest, first)

    def parts(self, model: Model) -> dict[str, float]:
        """Return the weighted value of each part at a model."""
        self.counts.tally(values=1)
        values = self._each(lambda term: term.value(model))
        return self._weighted(values)

    def value(self, model: Model) -> float:
        """Return the objective, building no graph. NaN and infinity are returned."""
        return sum(self.parts(model).values())

    def value_and_gradient(self, model: Model) -> tuple[float, Model]:
        """Return the objective and its gradient, shaped like the model."""
        self.counts.tally(gradients=1)
        results = self._each(lambda term: term.value_and_gradient(model))
        value = sum(self._weighted([value for value, _ in results]).values())
        return value, self._weighted_gradient([gradient for _, gradient in results])

    def hessian(
        self, model: Model, kind: Kind = "exact", *, space: ModelSpace | None = None
    ) -> SumOperator:
        """Return the weighted sum of the terms' Hessians, by products."""
        space = ModelSpace(model) if space is None else space
        return self._operator(lambda term: term.hessian(model, kind, space=space))

    def sketch(
        self,
        model: Model,
        kind: Kind = "gauss-newton",
        *,
        space: ModelSpace | None = None,
        seed: int = 0,
    ) -> SumOperator:
        """Return the weighted sum of the terms' sketches."""
        space = ModelSpace(model) if space is None else space
        return self._operator(
            lambda term: term.sketch(model, kind, space=space, seed=seed)
        )

    def _operator(self, make: Callable[[Objective], SymmetricOperator]) -> SumOperator:
        spent: list[Counts] = []
        total = self._sum(self._each(make, spent))
        # a graph counts as a gradient, except that of a regulariser beside a sketch of
        # a waveform misfit; a Born pass needs no graph
        if total.cost >= 1.0:
            self.counts.tally(gradients=max(own.gradients for own in spent))
        return total

    def linearise(
        self,
        model: Model,
        kind: Kind | None = "exact",
        *,
        space: ModelSpace | None = None,
    ) -> Linearisation:
        """Return value, gradient, Hessian and the parts' values at a model."""
        space = ModelSpace(model) if space is None else space
        self.counts.tally(gradients=1)
        spent: list[Counts] = []
        lins = self._each(lambda term: term.linearise(model, kind, space=space), spent)
        # one term may need more than its own: of a linear loss the gradient nearby too
        more = max(own.gradients for own in spent) - 1
        if more > 0:
            self.counts.tally(gradients=more)
        parts = self._weighted([lin.value for lin in lins])
        return Linearisation(
            sum(parts.values()),
            self._weighted_gradient([lin.gradient for lin in lins]),
            None if kind is None else self._sum([lin.hessian for lin in lins]),
            parts,
        )

    def _sum(self, operators: list[Any]) -> SumOperator:
        weights = [w for w, _ in self.terms]
        return SumOperator(
            list(zip(weights, operators, strict=True)),
            names=self._names,
            counts=self.counts.child(),
        )

    def _each(
        self, evaluate: Callable[[Objective], Any], spent: list[Counts] | None = None
    ) -> list[Any]:
        """Evaluate every term, and count its propagations in the sum's tally too."""
        # Each term's counts are appended to ``spent``. Parts of a BadPartError are
        # named as the sum's.
        results = []
        for name, (_, term) in zip(self._names, self.terms, strict=True):
            with metered(term.counts, pass_on=True) as own:
                try:
                    results.append(evaluate(term))
                except BadPartError as error:
                    error.within(name)
                    raise
                finally:  # a failed evaluation counts too
                    self.counts.tally(propagations=own.propagations)
            if spent is not None:
                spent.append(own)
        return results

    def _weighted(self, values: list[float]) -> dict[str, float]:
        weights = [w for w, _ in self.terms]
        return {
            name: w * v for name, w, v in zip(self._names, weights, values, strict=True)
        }

    def _weighted_gradient(self, gradients: list[Model]) -> Model:
        columns = zip(*(named_tensors(g).values() for g in gradients), strict=True)
        weights = [w for w, _ in self.terms]
        totals = []
        for column in columns:
            total = torch.zeros_like(column[0])
            for w, g in zip(weights, column, strict=True):
                total.add_(g, alpha=w)
            totals.append(total)
        return rebuild(gradients[0], totals)


def check_kind(kind: object, name: str = "kind") -> None:
    """Raise TypeError or ValueError unless ``kind`` names a kind of Hessian."""
    checks.choice(name, kind, ("exact", "gauss-newton"))


def _checked_term(term: Any) -> tuple[float, Objective]:
    """Return a term's finite weight and its objective."""
    if not isinstance(term, (tuple, list)) or len(term) != 2:
        raise TypeError(
            f"a term of the sum is {checks.kind(term)}; pass a pair (weight, objective)"
        )
    weight, objective = term
    use = "pass an Objective, such as hvpopt.TorchObjective(loss)"
    checks.instance("an objective of the sum", objective, Objective, use)
    name = f"the weight of {objective.name!r}"
    return checks.number(name, weight, above=-math.inf, below=math.inf), objective


def _distinct(names: list[str]) -> list[str]:
    """Append its position to each name that repeats, and primes until it is unique."""
    taken = {name for name in names if names.count(name) == 1}
    distinct = []
    for i, name in enumerate(names):
        if names.count(name) > 1:
            name = f"{name} {i + 1}"
            while name in taken:
                name += "'"
            taken.add(name)
        distinct.append(name)
    return distinct


def _weighted_terms(objective: Objective) -> list[tuple[float, Objective]]:
    if isinstance(objective, SumObjective):
        return list(objective.terms)
    return [(1.0, objective)]
