"""Interoperation of methods, objectives and operators with SciPy and PyLops."""

from __future__ import annotations

import importlib
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    if name == "pylops":  # an optional dependency
        return importlib.import_module("hvpopt.interop.pylops")
    raise AttributeError(f"module 'hvpopt.interop' has no attribute {name!r}")
