"""Other quantities as unknowns: squared slowness, logarithms, vp, vs and density."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.fwi.maps.parameterisation import (
    Parameterisation,
    arranged,
    check_cells,
    each,
    each_bound,
    in_float64,
)
from hvpopt.model.space import PerParameter
from hvpopt.model.tensors import Model, named_tensors


class _Cellwise(Parameterisation):
    """A monotone function of each cell, the same for every parameter."""

    increasing: ClassVar[bool]

    @abstractmethod
    def _forward(self, tensor: Tensor, name: str) -> Tensor: ...

    @abstractmethod
    def _inverse(self, tensor: Tensor) -> Tensor: ...

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Any:
        """Return the models, arranged and shaped like the unknowns."""
        return each(arranged(args, kwargs), self._forward)

    def unknowns(self, model: Model) -> Model:
        """Return the unknowns of models that are positive and finite, to rounding."""

        def inverse(tensor: Tensor, name: str) -> Tensor:
            check_cells(tensor, tensor > 0, name, "positive", "correct the model")
            return self._inverse(tensor)

        return in_float64(model, inverse)

    def bounds(
        self, lower: PerParameter = None, upper: PerParameter = None
    ) -> tuple[PerParameter, PerParameter]:
        """Return float64 bounds on the unknowns; a decreasing map exchanges them."""
        # a model at a bound that its dtype holds exactly has unknowns inside theirs

        def convert(bound: Any) -> Tensor:
            if isinstance(bound, (complex, bool)):
                raise TypeError(f"a bound is {bound!r}; it must be a number or a tensor")
            values = torch.as_tensor(bound, dtype=torch.float64)
            if not bool((values >= 0).all()):
                raise ValueError(
                    f"a bound of {float(values.min()):g} on a positive model means "
                    "nothing to its unknowns; use 0 or more, or None"
                )
            return self._inverse(values)

        low, high = each_bound(lower, convert), each_bound(upper, convert)
        return (low, high) if self.increasing else (high, low)


@dataclass(frozen=True)
class SlownessSquared(_Cellwise):
    """Squared slowness to velocity: ``v = reference / √u``.

    Waves are nearly linear in squared slowness, which is a coefficient of the wave
    equation. Monotone, decreasing.

    Args:
        reference: Velocity, m/s, that has the unknown 1. Default 1, for unknowns in
            s²/m². Near the model's own velocities it makes them about 1, which suits
            float32 and trust radii.

    Raises:
        ValueError: If the reference is not positive and finite. Calls raise it for
            unknowns that are not positive.

    Example:
        >>> import torch
        >>> from hvpopt.fwi import SlownessSquared
        >>> SlownessSquared()(torch.tensor([2.5e-7], dtype=torch.float64))
        tensor([2000.], dtype=torch.float64)
    """

    reference: float = 1.0
    increasing: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checks.put(self, reference=_checked_reference(self.reference))

    def _forward(self, tensor: Tensor, name: str) -> Tensor:
        check_cells(tensor, tensor > 0, name, "positive", "bound the unknowns above zero")
        return self.reference * tensor.rsqrt()

    def _inverse(self, tensor: Tensor) -> Tensor:
        return (self.reference / tensor) ** 2


@dataclass(frozen=True)
class Log(_Cellwise):
    """Logarithm to model: ``m = reference · exp(u)``; the model stays positive.

    A unit of the unknown is a relative change, the same for parameters of any unit.
    Monotone, increasing.

    Args:
        reference: Model value, in the model's units, that has the unknown 0. Default 1.

    Raises:
        ValueError: If the reference is not positive and finite.
    """

    reference: float = 1.0
    increasing: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.put(self, reference=_checked_reference(self.reference))

    def _forward(self, tensor: Tensor, name: str) -> Tensor:
        return self.reference * tensor.exp()

    def _inverse(self, tensor: Tensor) -> Tensor:
        return (tensor / self.reference).log()


@dataclass(frozen=True)
class VpVsRho(Parameterisation):
    """P velocity, S velocity and density to the models of ``deepwave.elastic``.

    ``λ = ρ(vp² − 2vs²)``, ``μ = ρ vs²``, ``b = 1/ρ`` (Aki and Richards, Quantitative
    Seismology, 2nd ed., §4.1); the same as ``deepwave.vpvsrho_to_lambmubuoyancy`` for
    positive density. Takes ``vp`` and ``vs`` in m/s and ``rho`` in kg/m³, by name or in
    this order, of one shape; returns a dict of ``lamb`` and ``mu`` in Pa and ``buoyancy``
    in m³/kg. ``vp`` must be above ``vs √(4/3)``: the bulk modulus ``ρ(vp² − 4/3 vs²)`` of
    a stable solid is positive.

    A fluid has ``vs = 0`` (there the first derivative in ``vs`` is zero). A vacuum has
    no density: put it in after this map, with a SubRegion of the three models.

    Bounds do not carry over, since λ mixes all three: bound ``vp``, ``vs`` and ``rho``.
    """

    def __call__(self, vp: Tensor, vs: Tensor, rho: Tensor) -> dict[str, Tensor]:
        """Return ``lamb``, ``mu`` and ``buoyancy``, shaped like the unknowns."""
        if not vp.shape == vs.shape == rho.shape:
            raise ValueError(
                f"vp has shape {tuple(vp.shape)}, vs {tuple(vs.shape)} and rho "
                f"{tuple(rho.shape)}; give all three the shape of the grid"
            )
        hint = "bound the unknowns, or correct the model"
        check_cells(rho, rho > 0, "rho", "positive", hint)
        check_cells(vs, vs >= 0, "vs", "0 or more", hint)
        solid = vp > math.sqrt(4 / 3) * vs
        check_cells(vp, solid, "vp", "above vs·√(4/3) (positive bulk modulus)", hint)
        return {
            "lamb": rho * (vp**2 - 2 * vs**2),
            "mu": rho * vs**2,
            "buoyancy": 1 / rho,
        }

    def unknowns(self, model: Model) -> dict[str, Tensor]:
        """Return ``vp``, ``vs`` and ``rho`` of elastic models.

        Args:
            model: A dict with ``lamb``, ``mu`` and ``buoyancy``.

        Returns:
            The exact inverse, to rounding.

        Raises:
            ValueError: If names differ, or a cell is not physical.
        """
        names = ("lamb", "mu", "buoyancy")
        tensors = named_tensors(model)
        if set(tensors) != set(names):
            raise ValueError(
                f"the model has parameters {list(tensors)}, expected a dict of {names}"
            )
        lamb, mu, buoyancy = (tensors[name].detach().double() for name in names)
        hint = "correct the model"
        check_cells(buoyancy, buoyancy > 0, "buoyancy", "positive", hint)
        check_cells(mu, mu >= 0, "mu", "0 or more", hint)
        check_cells(lamb, lamb + 2 / 3 * mu > 0, "lamb", "above −2/3 mu", hint)
        vp, vs = ((lamb + 2 * mu) * buoyancy).sqrt(), (mu * buoyancy).sqrt()
        own = tensors["lamb"].dtype
        return {"vp": vp.to(own), "vs": vs.to(own), "rho": (1 / buoyancy).to(own)}


def _checked_reference(reference: float) -> float:
    return checks.number("reference", reference, above=0.0, below=math.inf)
