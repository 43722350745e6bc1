"""Models: a tensor, a tuple of tensors or a dict of tensors, and losses of them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

Model: TypeAlias = "Tensor | tuple[Tensor, ...] | dict[str, Tensor]"

#: All parameters of a module, and those that it has not frozen.
PARAMETERS = "dict(module.named_parameters())"
TRAINED = "{n: p for n, p in module.named_parameters() if p.requires_grad}"


def named_tensors(model: Model) -> dict[str, Tensor]:
    """Return the tensors of a model by name, in the model's own order."""
    # A single tensor is called "model"; the members of a tuple "0", "1", ….
    if isinstance(model, Tensor):
        return {"model": model}
    if isinstance(model, Mapping):
        items: Iterable[tuple[str, Any]] = model.items()
    elif isinstance(model, (tuple, list)):
        items = ((str(i), t) for i, t in enumerate(model))
    else:
        raise TypeError(
            "a model is a tensor, a tuple of tensors or a dict of tensors, "
            f"got {type(model).__name__}; {_how_to_pass(model)}"
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


def _how_to_pass(what: object) -> str:
    """Return the part of a message that says how to make a model of an object."""
    if isinstance(what, torch.nn.ParameterDict):
        return "pass dict(parameters.items())"
    if isinstance(what, torch.nn.ParameterList):
        return "pass tuple(parameters)"
    if isinstance(what, torch.nn.Module):
        frozen = not all(p.requires_grad for p in what.parameters())
        return line_for_module(TRAINED if frozen else PARAMETERS)
    if isinstance(what, Iterator):
        return "pass a tuple of its tensors. For parameters of a module: " + (
            line_for_module()
        )
    return "wrap it with torch.as_tensor"


def line_for_module(parameters: str = PARAMETERS) -> str:
    """Return the part of a message with the line that minimises over a module."""
    return (
        "with loss a function of what module(inputs) returns, write\n"
        "    result = hvpopt.minimize(lambda **p: loss(torch.func.functional_call("
        f"module, p, (inputs,))), {parameters})\n"
        "    module.load_state_dict(result.x, strict=False)"
    )


def rebuild(like: Model, tensors: Sequence[Tensor]) -> Model:
    """Arrange ``tensors`` as ``like`` is arranged (tensor, tuple or dict)."""
    if isinstance(like, Tensor):
        return tensors[0]
    if isinstance(like, Mapping):
        return dict(zip(like, tensors, strict=True))
    return tuple(tensors)


#: Effect of a hook if derivatives are taken at a copy of the model, for the warning.
IGNORED = "is ignored: derivatives are taken at a copy of the model"


def warn_of_hooks(
    model: Model, mask: str = "mask=", *, fate: str = IGNORED, stacklevel: int = 3
) -> None:
    """Warn of hooks on a model's tensors, which do not affect a minimisation."""
    hooked = [
        name
        for name, tensor in named_tensors(model).items()
        if getattr(tensor, "_backward_hooks", None)
        or getattr(tensor, "_post_accumulate_grad_hooks", None)
    ]
    if hooked:
        warnings.warn(
            f"the hook on parameter {', '.join(map(repr, hooked))} (register_hook, "
            f"register_post_accumulate_grad_hook) {fate}. To hold cells pass {mask}, "
            "True where a cell may change; do in the loss whatever else the hook does",
            stacklevel=stacklevel,
        )


def copy_model(model: Model) -> Model:
    """Return a detached copy of a model, which shares no memory with it."""
    return rebuild(model, [t.detach().clone() for t in named_tensors(model).values()])


def call_loss(
    loss: Callable[..., Tensor], model: Model, what: str = "the loss"
) -> Tensor:
    """Call a loss as its model is arranged: ``f(t)``, ``f(a, b)`` or ``f(name=a)``."""
    args: Sequence[Tensor] = ()
    named: Mapping[str, Tensor] = {}
    if isinstance(model, Tensor):
        args = (model,)
    elif isinstance(model, Mapping):
        named = model
    else:
        args = model
    try:
        return loss(*args, **named)
    except TypeError as error:
        reason = _wrong_arguments(loss, args, named, what)
        if not reason:
            raise
        raise TypeError(f"{reason} ({error})") from error


def _wrong_arguments(
    loss: Callable[..., Tensor],
    args: Sequence[Tensor],
    named: Mapping[str, Tensor],
    what: str,
) -> str:
    """Return why a loss cannot be called with its model; empty if it can."""
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError):  # some built-in functions have none
        return ""
    try:
        signature.bind(*args, **named)
    except TypeError:
        pass
    else:
        return ""  # the arguments fit: the loss itself raised the error
    if named:
        called = ", ".join(f"{name}=..." for name in named)
        remedy = "the dict whole, pass lambda **model: loss(model)"
    else:
        called = ", ".join("..." for _ in args)
        remedy = "the list or tuple whole, pass lambda *model: loss(model)"
    return (
        f"{what} cannot be called as its model is arranged, with ({called}), since it "
        f"takes {signature}; if it takes {remedy}"
    )


def all_finite(tensor: Tensor) -> bool:
    """Return True if a tensor has no NaN and no infinity."""
    return bool(torch.isfinite(tensor).all())


def check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Raise if tensors cannot be parameters: dtype, size, finiteness, one device."""
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
