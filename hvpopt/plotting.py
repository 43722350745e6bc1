"""Figures of Hessians, models and convergence. Needs the extra ``hvpopt[plot]``.

Functions ``plot_*`` return a new Figure, and ``draw_*`` draw in given axes; none of them
uses pyplot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.run.result import IterationRecord

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:  # pragma: no cover - the test environment has it
    raise ImportError('pictures need matplotlib: pip install "hvpopt[plot]"') from error

SIGNED = "RdBu_r"
MODEL = "viridis"


def draw_image(
    axes: Axes,
    image: Tensor,
    title: str,
    *,
    spacing: float = 1.0,
    unit: str = "",
    limits: tuple[float, float] | None = None,
    signed: bool = False,
) -> Any:
    """Draw a 2-D model, gradient or step, depth downward.

    Args:
        axes: Where to draw.
        image: ``[depth, distance]``.
        title: Title of the image.
        spacing: Cell size, metres. Default 1.
        unit: Unit of the values, on the colour bar. Default none.
        limits: Lowest and highest value of the colour scale. Default the extremes of the
            image; for signed images ± the 99th percentile of the absolute values.
        signed: Use diverging colours, white at zero. Default False.

    Returns:
        The matplotlib image.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: For an image that is not 2-D, or a number out of range.
    """
    data = _picture("the image", image)
    spacing = checks.number("spacing", spacing, above=0.0, below=math.inf)
    limits = checks.optional(
        checks.pair, "limits", limits, above=-math.inf, below=math.inf
    )
    signed = checks.flag("signed", signed)
    for name, words in (("title", title), ("unit", unit)):
        checks.instance(name, words, str, "pass a text")
    checks.instance("axes", axes, Axes, "pass the axes of a figure to draw in")
    if limits is None and signed:
        reach = float(data.abs().flatten().quantile(0.99)) or 1.0
        limits = (-reach, reach)
    low, high = (None, None) if limits is None else limits
    depth, width = data.shape
    drawn = axes.imshow(
        data.numpy(),
        cmap=SIGNED if signed else MODEL,
        vmin=low,
        vmax=high,
        extent=(0, width * spacing, depth * spacing, 0),
        aspect="auto",
    )
    axes.set_title(title)
    axes.set_xlabel("distance (m)")
    axes.set_ylabel("depth (m)")
    figure = axes.get_figure()
    assert figure is not None
    figure.colorbar(drawn, ax=axes, label=unit, shrink=0.85)
    return drawn


def plot_images(
    images: Mapping[str, Tensor],
    *,
    spacing: float = 1.0,
    unit: str = "",
    limits: tuple[float, float] | None = None,
    signed: bool = False,
) -> Figure:
    """Return a row of images, by their titles; options as for ``draw_image``."""
    if not isinstance(images, Mapping) or not images:
        raise TypeError(f"images is {checks.kind(images)}; pass images by their title")
    figure = Figure(figsize=(4.2 * len(images), 3.0), layout="constrained")
    for i, (title, image) in enumerate(images.items()):
        axes = figure.add_subplot(1, len(images), i + 1)
        draw_image(
            axes, image, title, spacing=spacing, unit=unit, limits=limits, signed=signed
        )
    return figure


def plot_hessian(
    matrix: Tensor, shape: Sequence[int], cell: Sequence[int], *, spacing: float = 1.0
) -> Figure:
    """Return a figure of a Hessian matrix and of one of its rows as an image.

    Args:
        matrix: The matrix ``[n, n]``.
        shape: Shape of the model, ``(depth, distance)`` with product n.
        cell: The cell whose row to show, ``(depth index, distance index)``.
        spacing: Cell size, metres. Default 1.

    Returns:
        The figure.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: For a matrix, shape or cell that do not fit each other.
    """
    matrix = _picture("the matrix", matrix)
    depth, width = _indices("shape", shape)
    row_index, column = _indices("cell", cell)
    n = depth * width
    if matrix.shape != (n, n):
        raise ValueError(
            f"the matrix has shape {tuple(matrix.shape)}, expected {(n, n)} for a model "
            f"of shape {(depth, width)}"
        )
    if row_index >= depth or column >= width:
        raise ValueError(f"cell is {(row_index, column)}; the model has {(depth, width)}")
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    left = figure.add_subplot(1, 2, 1)
    reach = float(np.quantile(matrix.abs().numpy(), 0.95)) or 1.0
    drawn = left.imshow(matrix.numpy(), cmap=SIGNED, vmin=-reach, vmax=reach)
    left.set_title("Hessian")
    left.set_xlabel("cell")
    left.set_ylabel("cell")
    figure.colorbar(drawn, ax=left, shrink=0.85)
    row = matrix[row_index * width + column].reshape(depth, width)
    right = figure.add_subplot(1, 2, 2)
    draw_image(
        right,
        row,
        f"its row of cell ({row_index}, {column})",
        spacing=spacing,
        limits=(-reach, reach),
        signed=True,
    )
    right.plot((column + 0.5) * spacing, (row_index + 0.5) * spacing, "k+")
    return figure


def draw_convergence(
    axes: Axes,
    histories: Mapping[str, Sequence[IterationRecord]],
    *,
    against: str = "seconds",
) -> None:
    """Draw the loss of each run on a logarithmic axis.

    Args:
        axes: Where to draw.
        histories: ``MinimizeResult.history`` by label.
        against: Horizontal axis: ``"seconds"`` (the default), ``"iteration"`` or
            ``"products"``.

    Raises:
        TypeError: For histories of the wrong type.
        ValueError: For another ``against``.
    """
    checks.choice("against", against, ("seconds", "iteration", "products"))
    checks.instance("axes", axes, Axes, "pass the axes of a figure to draw in")
    use = "pass MinimizeResult.history by its label"
    checks.having("histories", histories, "items", use)
    for history in histories.values():
        if not isinstance(history, (list, tuple)) or not all(
            isinstance(record, IterationRecord) for record in history
        ):
            raise TypeError(f"a history is {checks.kind(history)}; {use}")
    for label, history in histories.items():
        x = [
            record.counts.products
            if against == "products"
            else float(getattr(record, against))
            for record in history
        ]
        axes.semilogy(x, [record.value for record in history], "o-", label=label)
    axes.set_xlabel(against)
    axes.set_ylabel("loss")
    axes.set_title("convergence")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")


def plot_convergence(
    histories: Mapping[str, Sequence[IterationRecord]], *, against: str = "seconds"
) -> Figure:
    """Return a figure of the loss of each run; options as for ``draw_convergence``."""
    figure = Figure(figsize=(5.0, 3.6), layout="constrained")
    draw_convergence(figure.add_subplot(), histories, against=against)
    return figure


def _picture(name: str, image: object) -> Tensor:
    """Return a 2-D array of numbers as a float64 tensor on the host."""
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(checks.numbers_of(name, image))
    use = "pass a 2-D tensor"
    data = checks.instance(name, image, Tensor, use).detach()
    if data.is_complex() or data.ndim != 2 or not data.numel():
        raise ValueError(f"{name} is {checks.shown(data)}; {use} of real numbers")
    return data.double().cpu()


def _indices(name: str, pair: object) -> tuple[int, int]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"{name} is {checks.shown(pair)}; pass (depth, distance)")
    depth, distance = (checks.integer(f"an entry of {name}", i, least=0) for i in pair)
    return depth, distance
