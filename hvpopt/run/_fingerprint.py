"""Fingerprints of problems, so that a saved state is not used for another problem."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from hvpopt.errors import StateError
from hvpopt.methods.method import Method
from hvpopt.model.space import ModelSpace
from hvpopt.model.tensors import Model, named_tensors
from hvpopt.run._files import tensor_bytes

logger = logging.getLogger(__name__)

#: Relative difference of the loss at the start above which it is another loss. The order
#: of sums and the rounding of another machine change it by less, other data by more.
VALUE_TOLERANCE = 1e-4
#: Key of the loss at the start in a fingerprint.
VALUE = "value at the start"
#: Key of the parts that were dropped before that value was computed.
DROPPED = "dropped at the start"


def hash_tensor(tensor: Tensor | None) -> str | None:
    """Return the first 32 hexadecimal digits of a tensor's SHA-256; None for none."""
    if tensor is None:
        return None
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor_bytes(tensor))
    return digest.hexdigest()[:32]


def hash_model(model: Model) -> str:
    """Return a hash of all tensors of a model."""
    hashes = [f"{k} {hash_tensor(t)}" for k, t in named_tensors(model).items()]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:32]


def fingerprint(
    names: Sequence[str], space: ModelSpace, start: Model, method: Method
) -> dict[str, Any]:
    """Return the fingerprint of a problem and its method, for JSON."""
    tensors = named_tensors(start)
    return {
        "parameters": ", ".join(
            f"{name}: {tuple(t.shape)} {t.dtype}" for name, t in tensors.items()
        ),
        "start": hash_model(start),
        "mask": hash_tensor(torch.cat([m.reshape(-1) for m in space.free.values()])),
        "scale": hash_tensor(space.scale),
        "lower": hash_tensor(space.lower),
        "upper": hash_tensor(space.upper),
        "method": type(method).__qualname__,
        "method's options": describe(vars(method)),
        "objective": ", then ".join(names),
    }


def check_same(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise StateError, naming each difference, unless two fingerprints agree."""
    differences: list[str] = []
    for key in sorted({*saved, *own} - {VALUE, DROPPED}):
        there: Any = saved.get(key)
        here: Any = own.get(key)
        if isinstance(there, dict) and isinstance(here, dict):
            differences += [
                f"{key}, {name}: {there.get(name)!r} there, {here.get(name)!r} here"
                for name in sorted({*there, *here})
                if there.get(name) != here.get(name)
            ]
        elif there != here:
            differences.append(f"{key}: {there!r} there, {here!r} here")
    if differences:
        raise StateError("the state is of another problem. " + "; ".join(differences))


def check_same_value(there: float, here: float, where: str = "at the start") -> None:
    """Raise StateError if two values of a loss differ by more than VALUE_TOLERANCE."""
    if not abs(there - here) <= VALUE_TOLERANCE * max(abs(there), abs(here)):
        raise StateError(
            f"the state is of another problem. the loss {where}: "
            f"{there!r} there, {here!r} here"
        )


def describe(tree: Any) -> Any:
    """Return options as JSON that is equal for equal options.

    Tensors are represented by their hash, functions by their name, and other objects by
    the name of their class and their attributes.
    """
    if isinstance(tree, Enum):
        return f"{type(tree).__qualname__}.{tree.name}"
    if tree is None or isinstance(tree, (bool, int, str)):
        return tree
    if isinstance(tree, float):
        return repr(float(tree))  # exact, and readable in a message
    if isinstance(tree, Tensor):
        return f"tensor {hash_tensor(tree)}"
    if isinstance(tree, Mapping):
        return {str(key): describe(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [describe(child) for child in tree]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        names = [field.name for field in dataclasses.fields(tree)]
        return [type(tree).__qualname__, {n: describe(getattr(tree, n)) for n in names}]
    # a method of a method can be called, to refuse that in words
    if callable(tree) and not isinstance(tree, Method):
        return getattr(tree, "__qualname__", type(tree).__qualname__)
    return [type(tree).__qualname__, describe(getattr(tree, "__dict__", {}))]
