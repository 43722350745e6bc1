"""Models: a tensor, a tuple of tensors or a dict of tensors, and losses of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

Model: TypeAlias = "Tensor | tuple[Tensor, ...] | dict[str, Tensor]"


def named_tensors(model: Model) -> dict[str, Tensor]:
    """Return the tensors of a model by name, in order.

    A single tensor is called ``"model"``; the members of a tuple ``"0"``, ``"1"``, ….

    Args:
        model: A tensor, a tuple (or list) of tensors, or a dict of tensors.

    Returns:
        Name to tensor, in the model's own order.

    Raises:
        TypeError: If the model is none of these, or holds something that is no tensor.
        ValueError: If it holds no tensor.
    """
    if isinstance(model, Tensor):
        return {"model": model}
    if isinstance(model, Mapping):
        items: Iterable[tuple[str, Any]] = model.items()
    elif isinstance(model, (tuple, list)):
        items = ((str(i), t) for i, t in enumerate(model))
    else:
        raise TypeError(
            "a model is a tensor, a tuple of tensors or a dict of tensors, "
            f"got {type(model).__name__}; wrap it with torch.as_tensor"
        )
    tensors = dict(items)
    if not tensors:
        raise ValueError("the model holds no tensor; pass at least one parameter")
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise TypeError(f"the parameter name {name!r} is no text; losses take names")
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"parameter {name!r} is a {type(tensor).__name__}, not a torch.Tensor"
            )
    return tensors


def rebuild(like: Model, tensors: Sequence[Tensor]) -> Model:
    """Arrange ``tensors`` as ``like`` is arranged (tensor, tuple or dict)."""
    if isinstance(like, Tensor):
        return tensors[0]
    if isinstance(like, Mapping):
        return dict(zip(like, tensors, strict=True))
    return tuple(tensors)


def copy_model(model: Model) -> Model:
    """Return a detached copy of a model; nothing of the caller's is shared."""
    return rebuild(model, [t.detach().clone() for t in named_tensors(model).values()])


def call_loss(loss: Callable[..., Tensor], model: Model) -> Tensor:
    """Call a loss as its model is arranged: ``f(t)``, ``f(a, b)`` or ``f(name=a)``."""
    if isinstance(model, Tensor):
        return loss(model)
    if isinstance(model, Mapping):
        return loss(**model)
    return loss(*model)


def all_finite(tensor: Tensor) -> bool:
    """True if a tensor has no NaN and no infinity."""
    return bool(torch.isfinite(tensor).all())


def check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that cannot be a model.

    Args:
        tensors: By parameter name.

    Raises:
        TypeError: For a dtype that is not real floating point.
        ValueError: For empty or non-finite tensors, or several devices.
    """
    device = next(iter(tensors.values())).device
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided:
            raise TypeError(f"parameter {name!r} is sparse; pass tensor.to_dense()")
        if not tensor.is_floating_point():
            raise TypeError(
                f"parameter {name!r} has dtype {tensor.dtype}; second derivatives need "
                "a real floating-point dtype (float32 or float64)"
            )
        if tensor.numel() == 0:
            raise ValueError(f"parameter {name!r} is empty, shape {tuple(tensor.shape)}")
    for name, tensor in tensors.items():
        if tensor.device != device:
            raise ValueError(
                f"parameter {name!r} is on {tensor.device}, the first parameter on "
                f"{device}; put the whole model on one device"
            )
    if device.type == "meta":
        raise ValueError("the model is on the meta device and holds no numbers")
    for name, tensor in tensors.items():
        if not all_finite(tensor.detach()):
            bad = int((~torch.isfinite(tensor.detach())).sum())
            raise ValueError(
                f"parameter {name!r} has {bad} NaN or infinite cells of {tensor.numel()}"
            )
