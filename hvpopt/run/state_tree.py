"""Conversion of states to JSON and named tensors, and back without executing code.

A tree of None, bools, ints, floats, strings, enums, tensors, lists, tuples, dicts and
dataclasses becomes a JSON skeleton, in which each tensor is a name. Dataclasses and enums
are looked up by name among those of this package and those passed to ``register``: a file
can name no other type, and no module is imported for it.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar

import torch
from torch import Tensor

from hvpopt.errors import StateError

#: Packages and modules whose dataclasses and enums a state may contain.
PACKAGES = ("hvpopt.methods", "hvpopt.krylov", "hvpopt.run")
MODULES = ("hvpopt.run.result", "hvpopt.model.counts")

_registered: dict[str, type[Any]] = {}
C = TypeVar("C", bound="type[Any]")


def register(cls: C) -> C:
    """Allow a dataclass or enum in the saved state of a user-defined method.

    Args:
        cls: The class. The function can be used as a decorator.

    Returns:
        The same class.

    Raises:
        TypeError: If the class is neither a dataclass nor an enum.
    """
    if not (isinstance(cls, type) and _storable(cls)):
        raise TypeError(f"{cls!r} is no dataclass and no enum")
    _registered[_name(cls)] = cls
    return cls


class Encoded:
    """A part of a tree that is encoded already; it holds no tensors."""

    def __init__(self, tree: Any) -> None:
        self.skeleton = _encode(tree, "state", None)


def encode(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return a tree as a JSON skeleton and its tensors by name, copied to the host."""
    # The TypeError for any other type says where in the tree it is.
    tensors: dict[str, Tensor] = {}
    return _encode(tree, "state", tensors), tensors


def check_storable(tree: Any, where: str = "state") -> None:
    """Raise TypeError where ``encode`` would, without copying tensors."""
    _encode(tree, where, None)


def decode(
    skeleton: Any, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu"
) -> Any:
    """Return the tree of a skeleton; StateError for a type that is not allowed."""
    try:
        return _decode(skeleton, tensors, torch.device(device))
    except StateError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise StateError(
            f"the state does not fit this version: {type(error).__name__}: {error}"
        ) from error


def non_finite(tree: Any, where: str = "state") -> str:
    """Return a description of the first NaN or infinity in a tree; empty for none."""
    if isinstance(tree, float) and not math.isfinite(tree):
        return f"{where} is {tree}"
    if isinstance(tree, Tensor):
        # a finite sum implies finite entries, and is several times cheaper to compute
        if not tree.is_floating_point() or bool(torch.isfinite(tree.sum())):
            return ""
        bad = int((~torch.isfinite(tree)).sum())
        return f"{where} has {bad} NaN or infinite entries of {tree.numel()}" * bool(bad)
    found = (non_finite(child, f"{where}{key}") for key, child in _children(tree))
    return next((sentence for sentence in found if sentence), "")


def _children(tree: Any) -> list[tuple[str, Any]]:
    if isinstance(tree, (list, tuple)):
        return [(f"[{i}]", child) for i, child in enumerate(tree)]
    if isinstance(tree, Mapping):
        return [(f"[{key!r}]", child) for key, child in tree.items()]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        names = [field.name for field in dataclasses.fields(tree)]
        return [(f".{name}", getattr(tree, name)) for name in names]
    return []


def _encode(tree: Any, where: str, tensors: dict[str, Tensor] | None) -> Any:
    if isinstance(tree, Encoded):
        return tree.skeleton
    if isinstance(tree, Enum):
        return {"enum": _allowed_name(type(tree), where), "name": tree.name}
    if tree is None or isinstance(tree, (bool, int, str)):
        return tree
    if isinstance(tree, float):
        return float(tree) if math.isfinite(tree) else {"float": str(float(tree))}
    if isinstance(tree, Tensor):
        if tensors is not None:
            # a copy, which shares no memory with another tensor or with the run
            copied = tree.detach().cpu()
            tensors[where] = copied.clone(memory_format=torch.contiguous_format)
        if tree.is_contiguous() or 0 in tree.stride():
            return {"tensor": where}
        return {"tensor": where, "stride": list(tree.stride())}
    children = {
        key: _encode(child, where + key, tensors) for key, child in _children(tree)
    }
    if isinstance(tree, list):
        return list(children.values())
    if type(tree) is tuple:
        return {"tuple": list(children.values())}
    if isinstance(tree, Mapping) and all(isinstance(key, str) for key in tree):
        return {"dict": dict(zip(tree, children.values(), strict=True))}
    if dataclasses.is_dataclass(tree):
        name = _allowed_name(type(tree), where)
        return {"type": name, "fields": {k[1:]: v for k, v in children.items()}}
    raise TypeError(
        f"{where} is a {type(tree).__name__}, which a saved state cannot hold; use plain "
        "numbers, tensors, tuples and dataclasses"
    )


def _decode(skeleton: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    if isinstance(skeleton, list):
        return [_decode(child, tensors, device) for child in skeleton]
    if not isinstance(skeleton, dict):
        return skeleton
    if "float" in skeleton:
        return float(skeleton["float"])
    if "tensor" in skeleton:
        return _laid_out(tensors[skeleton["tensor"]], skeleton.get("stride"), device)
    if "tuple" in skeleton:
        return tuple(_decode(child, tensors, device) for child in skeleton["tuple"])
    if "dict" in skeleton:
        return {k: _decode(v, tensors, device) for k, v in skeleton["dict"].items()}
    if "enum" in skeleton:
        return _allowed(skeleton["enum"])[skeleton["name"]]
    cls = _allowed(skeleton["type"])
    fields = {k: _decode(v, tensors, device) for k, v in skeleton["fields"].items()}
    return cls(**fields)


def _laid_out(tensor: Tensor, stride: list[int] | None, device: torch.device) -> Tensor:
    # the order of sums depends on layout and alignment of memory: with the original
    # strides, in memory that torch has aligned, they round as before
    shape = tuple(tensor.shape)
    if stride is None:
        return torch.empty(shape, dtype=tensor.dtype, device=device).copy_(tensor)
    if len(stride) != len(shape) or any(step < 0 for step in stride):
        raise StateError(f"a tensor of shape {shape} cannot have the strides {stride}")
    empty = torch.empty_strided(shape, stride, dtype=tensor.dtype, device=device)
    return empty.copy_(tensor)


# -- which types are allowed ----------------------------------------------------


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _storable(cls: type) -> bool:
    return dataclasses.is_dataclass(cls) or issubclass(cls, Enum)


def _allowed(name: str) -> Any:
    if name in _registered:
        return _registered[name]
    module_name, _, own = str(name).rpartition(".")
    module = sys.modules.get(module_name)  # never an import
    cls = getattr(module, own, None) if _is_ours(module_name) else None
    if isinstance(cls, type) and _storable(cls) and _name(cls) == name:
        return cls
    raise StateError(
        f"the state names the type {name!r}, which is not one that a state may hold; for "
        "one of your own, hvpopt.run.state_tree.register it first"
    )


def _allowed_name(cls: type, where: str) -> str:
    try:
        _allowed(_name(cls))
    except StateError:
        raise TypeError(
            f"{where} is a {_name(cls)}, which a saved state may not hold; decorate it "
            "with hvpopt.run.state_tree.register"
        ) from None
    return _name(cls)


def _is_ours(module: str) -> bool:
    return module in MODULES or any(
        module == package or module.startswith(package + ".") for package in PACKAGES
    )
