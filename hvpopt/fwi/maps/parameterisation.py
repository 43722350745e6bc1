"""Parameterisations: differentiable maps from unknowns to propagator models.

WaveformMisfit takes any differentiable torch function for that; the ready-made ones here
know their inverse too, and what bounds on the models mean for the unknowns. A map is
called as its unknowns are arranged, like a loss: ``f(t)``, ``f(a, b)`` or
``f(vp=a, vs=b, rho=c)``. It is twice differentiable, holds no state that a call changes,
and follows the dtype and device of the unknowns.

Maps are differentiated twice by autograd, in reverse mode alone. A backward pass written
by hand (``torch.autograd.Function``) may be wrong in that, and no error says so: run
``hvpopt.analysis.check_hessian(misfit, unknowns)`` once, in float64. Products do not
check it: differences of derivatives also find fault with right maps that have kinks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hvpopt.model.space import PerParameter
from hvpopt.model.tensors import Model, call_loss, named_tensors, rebuild


class Parameterisation(ABC):
    """A differentiable map from unknowns to propagator models, with its inverse."""

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the propagator models of unknowns: a tensor, a tuple or a dict."""

    @abstractmethod
    def unknowns(self, model: Model) -> Model:
        """Return unknowns whose propagator models are (or come nearest to) ``model``.

        They are computed in float64, returned in the model's dtype, and carry no graph.
        """

    def bounds(
        self, lower: PerParameter = None, upper: PerParameter = None
    ) -> tuple[PerParameter, PerParameter]:
        """Return bounds on the unknowns from bounds on the propagator models.

        Args:
            lower: Lower bounds in the models' units, as for ModelSpace: a number or
                tensor for all, or one per parameter as a sequence or mapping.
            upper: Upper bounds, in the same form.

        Returns:
            Lower and upper bounds on the unknowns, to be passed on to ModelSpace. A
            model computed from unknowns at a bound may pass the model's bound by
            rounding: leave slack between it and a survey's ``max_vel``.

        Raises:
            ValueError: If the map is not monotone, so that no bounds on the unknowns
                mean the same.
        """
        raise ValueError(
            f"{type(self).__name__} is not monotone cell by cell, so bounds on its "
            f"models {lower!r} to {upper!r} are no bounds on its unknowns; bound the "
            "unknowns themselves"
        )

    def __rshift__(self, then: Callable[..., Any]) -> Chain:
        return Chain(self, then)

    def __rrshift__(self, first: Callable[..., Any]) -> Chain:
        return Chain(first, self)


@dataclass(frozen=True, init=False)
class Chain(Parameterisation):
    """Maps applied one after the other, the first first; ``a >> b`` makes one.

    Args:
        *links: Parameterisations or plain functions, each called as what the one
            before returns is arranged.

    Raises:
        TypeError: If a link cannot be called.
        ValueError: If there is no link.
    """

    links: tuple[Callable[..., Any], ...]

    def __init__(self, *links: Callable[..., Any]) -> None:
        flat: list[Callable[..., Any]] = []
        for link in links:
            if not callable(link):
                raise TypeError(f"a link is a {type(link).__name__}; it cannot be called")
            flat.extend(link.links if isinstance(link, Chain) else [link])
        if not flat:
            raise ValueError("a chain needs at least one link")
        object.__setattr__(self, "links", tuple(flat))

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Any:
        """Return what the last link returns."""
        model: Any = arranged(args, kwargs)
        for link in self.links:
            model = call_loss(link, model)
        return model

    def unknowns(self, model: Model) -> Model:
        """Return the first link's unknowns; every link must have an inverse."""
        for link in self._reversed("inverse `unknowns`"):
            model = link.unknowns(model)
        return model

    def bounds(
        self, lower: PerParameter = None, upper: PerParameter = None
    ) -> tuple[PerParameter, PerParameter]:
        """Return bounds on the first link's unknowns, converted link by link."""
        for link in self._reversed("bounds"):
            lower, upper = link.bounds(lower, upper)
        return lower, upper

    def _reversed(self, what: str) -> list[Parameterisation]:
        links = []
        for link in reversed(self.links):
            if not isinstance(link, Parameterisation):
                name = getattr(link, "__name__", type(link).__name__)
                raise TypeError(
                    f"{name!r} is a plain function without {what}; give starting "
                    "unknowns and bounds yourself, or subclass Parameterisation"
                )
            links.append(link)
        return links


def arranged(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Model:
    """Return the model that a call's arguments make up."""
    if args and kwargs:
        raise TypeError(
            "call a map with positional tensors or with named ones, not both: "
            f"{len(args)} are positional, {list(kwargs)} are named"
        )
    if any(not isinstance(t, Tensor) for t in (*args, *kwargs.values())):
        kinds = [type(t).__name__ for t in (*args, *kwargs.values())]
        raise TypeError(
            f"a map is called with tensors, got {kinds}; spread a tuple or dict of "
            "unknowns: f(*unknowns) or f(**unknowns)"
        )
    if kwargs:
        return kwargs
    if not args:
        raise TypeError("a map needs at least one tensor of unknowns")
    return args[0] if len(args) == 1 else args


def each(model: Model, function: Callable[[Tensor, str], Tensor]) -> Model:
    """Return a model with a function applied to each tensor and its name."""
    return rebuild(model, [function(t, n) for n, t in named_tensors(model).items()])


def in_float64(model: Model, function: Callable[[Tensor, str], Tensor]) -> Model:
    """Return ``each`` computed in float64, in the model's own dtypes."""
    # bounds are converted in float64 too: a model at its bound has unknowns at theirs
    return each(model, lambda t, n: function(t.detach().double(), n).to(t.dtype))


def each_bound(bound: PerParameter, convert: Callable[[Any], Any]) -> PerParameter:
    """Return bounds with a function applied to each, None left as it is."""
    if bound is None:
        return None
    if isinstance(bound, (str, bytes)):
        raise TypeError(f"a bound is {bound!r}; it must be a number or a tensor")
    if isinstance(bound, Mapping):
        return {name: each_bound(b, convert) for name, b in bound.items()}
    if isinstance(bound, Sequence):
        return [each_bound(b, convert) for b in bound]
    return convert(bound)  # type: ignore[no-any-return]


def check_cells(tensor: Tensor, good: Tensor, name: str, what: str, hint: str) -> None:
    """Raise ValueError unless every cell is good and finite; show the first bad one."""
    good = good & torch.isfinite(tensor)
    if not bool(good.all()):
        bad = (~good).nonzero()
        cell = tuple(bad[0].tolist())
        raise ValueError(
            f"parameter {name!r} must be {what} and finite; {len(bad)} of "
            f"{good.numel()} cells are not, the first at {cell} with "
            f"{float(tensor.detach()[cell]):g}; {hint}"
        )


def check_shape(tensor: Tensor, shape: tuple[int, ...], name: str, what: str) -> None:
    """Raise ValueError unless a tensor has the shape that something needs."""
    if tuple(tensor.shape) != shape:
        raise ValueError(
            f"parameter {name!r} has shape {tuple(tensor.shape)}, {what} needs {shape}"
        )
