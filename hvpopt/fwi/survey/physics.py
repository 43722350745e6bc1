"""Which propagators there are, what models they take, and which models are physical."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import deepwave
import torch
from torch import Tensor

#: Propagators whose compiled double backward is implemented (deepwave 0.1.0,
#: ``_engine.no_second_order``); every other one needs ``backend="eager"`` for it.
SECOND_ORDER = ("scalar", "acoustic", "elastic")

#: Models that may be zero: a vacuum above an elastic free surface, a fluid's shear.
_MAY_BE_ZERO = frozenset({"lamb", "mu", "buoyancy", "c11", "c13", "c33", "c55", "c66"})
#: Models that may be negative while the medium is stable.
_MAY_BE_NEGATIVE = frozenset({"lamb", "c13"})


def find_propagator(name: str) -> Callable[..., Any]:
    """Return deepwave's propagator of that name; refuse others and Born propagators."""
    names = [
        n
        for n, f in vars(deepwave).items()
        if inspect.isfunction(f) and {"sources", "dt"} <= _parameters(f)
    ]
    plain = [n for n in names if not n.endswith("_born")]
    if name.endswith("_born") and name in names:
        raise ValueError(
            f"{name!r} is a Born propagator, linear in its perturbation; name the "
            f"full one, {name.removesuffix('_born')!r}: products find its Born twin"
        )
    if name not in plain:
        raise ValueError(
            f"propagator is {name!r}; deepwave has {', '.join(map(repr, plain))}"
        )
    function: Callable[..., Any] = getattr(deepwave, name)
    return function


def _parameters(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters)


def born_twin(name: str) -> Callable[..., Any] | None:
    """Return the Born propagator that linearises one, or None where there is none."""
    twin: Callable[..., Any] | None = getattr(deepwave, f"{name}_born", None)
    return twin


def arrange_models(
    propagator: str, names: Sequence[str], model: object
) -> tuple[Tensor, ...]:
    """Return a model's tensors in a propagator's order."""
    if isinstance(model, Mapping):
        if set(model) != set(names):
            raise ValueError(
                f"the model has {list(model)}, {propagator} takes {list(names)}; map "
                "other unknowns to those with parameterisation="
            )
        models = tuple(model[name] for name in names)
    else:
        models = tuple(model) if isinstance(model, (tuple, list)) else (model,)
        if len(models) != len(names):
            raise ValueError(
                f"{propagator} takes {len(names)} models ({', '.join(names)}), got "
                f"{len(models)}"
            )
    for name, tensor in zip(names, models, strict=True):
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"model {name!r} is a {type(tensor).__name__}, not a torch.Tensor"
            )
    return models


def check_models(name: str, models: Mapping[str, Tensor], max_vel: float) -> None:
    """Raise unless a propagator's models are physical and slower than ``max_vel``."""
    for model, tensor in models.items():
        values = tensor.detach()
        low, high = (float(t) for t in torch.aminmax(values))
        if not (low > -torch.inf and high < torch.inf):
            bad = ~torch.isfinite(values)
            raise ValueError(
                f"model {model!r} has {int(bad.sum())} NaN or infinite cells of "
                f"{values.numel()}, the first at {_first(bad)}"
            )
        if model in _MAY_BE_NEGATIVE:
            continue
        if low < 0 or (low == 0 and model not in _MAY_BE_ZERO):
            bad = values < 0 if model in _MAY_BE_ZERO else values <= 0
            raise ValueError(
                f"model {model!r} is {low:g} at its lowest, {int(bad.sum())} cells are "
                f"not positive, the first at {_first(bad)}; bound the inversion from "
                "below (lower=) or parameterise by a logarithm"
            )
    speed = _fastest(name, models)
    if speed is None:
        return
    if float(speed.max()) < max_vel / 100:
        raise ValueError(
            f"the model's wave speed is {float(speed.max()):g} at its highest, the "
            f"survey's max_vel {max_vel:g}; both are in m/s (2.5 km/s is 2500.0)"
        )
    bad = speed.double() > max_vel * (1 + 1e-12)
    if bool(bad.any()):
        raise ValueError(
            f"the model's wave speed reaches {float(speed.max()):g}, above the survey's "
            f"max_vel={max_vel:g}, in {int(bad.sum())} cells, the first at {_first(bad)};"
            " make the survey with a larger max_vel, or bound the inversion (upper=)"
        )


def _fastest(name: str, models: Mapping[str, Tensor]) -> Tensor | None:
    if name in ("scalar", "acoustic", "viscoacoustic"):
        return models["v"].detach()
    if name == "elastic":
        lamb, mu, buoyancy = (models[n].detach() for n in ("lamb", "mu", "buoyancy"))
        stiffness = (lamb + 2 * mu) * buoyancy
        if bool((stiffness < 0).any()):
            raise ValueError(
                "the model's P-wave modulus lamb + 2 mu is negative in "
                f"{int((stiffness < 0).sum())} cells, the first at "
                f"{_first(stiffness < 0)}; no elastic medium has that"
            )
        return stiffness.sqrt()
    return None  # deepwave checks its own bound


def _first(bad: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in bad.nonzero()[0])
