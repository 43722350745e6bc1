"""Text of results that fits a screen: tensors as dtype, shape and range."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from hvpopt.model.tensors import Model

#: Columns of a screen, and most lines of one entry.
WIDTH, LINES = 88, 4
#: Most parameters of a model to list.
PARAMETERS = 4
#: Most numbers of an entry to list.
FEW = 6


def screen(title: str, rows: Mapping[str, str]) -> str:
    """Return a title and a line for each entry with text, or a few for a long one."""
    margin = max(len(name) for name in rows) + 4
    lines = textwrap.wrap(title, WIDTH, max_lines=LINES, placeholder=" …")
    for name, text in rows.items():
        for k, part in enumerate(text.splitlines()):
            lines += textwrap.wrap(
                part,
                WIDTH,
                initial_indent=f"{'' if k else name + ':':>{margin - 1}} ",
                subsequent_indent=" " * margin,
                max_lines=LINES,
                placeholder=" …",
            )
    return "\n".join(lines)


def entry(value: object) -> str:
    """Return the text of one entry of a result: tensors, a number, or anything else."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Tensor):
        few = value.ndim < 2 and 0 < value.numel() <= FEW
        return ", ".join(f"{v:.6g}" for v in value.reshape(-1)) if few else _tensor(value)
    parts = list(value.values() if isinstance(value, Mapping) else [])
    if isinstance(value, (tuple, list)):
        parts = list(value)
    if parts and all(isinstance(part, Tensor) for part in parts):
        return summarised(cast("Model", value))
    if len(parts) > FEW or (parts and not isinstance(parts[0], (int, float, str))):
        return f"{len(parts)} of {type(parts[0]).__name__}"
    return str(value)


def summarised(model: Model | None) -> str:
    """Return dtype, shape and range of a model's tensors, a line for each."""
    if model is None:
        return ""
    if isinstance(model, Tensor):
        return _tensor(model)
    named = model.items() if isinstance(model, Mapping) else enumerate(model)
    lines = [f"{name}: {_tensor(tensor)}" for name, tensor in named]
    more = len(lines) - PARAMETERS
    if more > 1:
        lines[PARAMETERS:] = [f"… and {more} parameters more"]
    return "\n".join(lines)


def _tensor(tensor: Tensor) -> str:
    text = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
    if tensor.device.type != "cpu":
        text += f" on {tensor.device}"
    values = tensor.detach().reshape(-1)
    finite = values[torch.isfinite(values)]
    if finite.numel():
        low, high = finite.aminmax()
        span = f", {float(low):.4g}"
        text += span if low == high else f"{span} to {float(high):.4g}"
    bad = values.numel() - finite.numel()
    return text + (f", {bad} NaN or infinite" if bad else "")
