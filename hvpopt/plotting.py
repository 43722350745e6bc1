"""Pictures: Hessians, models and convergence. Needs the extra ``hvpopt[plot]``.

Every function returns a Figure of its own; nothing touches pyplot's state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hvpopt.result import IterationRecord

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
        title: Above the picture.
        spacing: Cell size, metres.
        unit: Of the values, on the colour bar.
        limits: Of the colours. Default the image's own; for signed images the 99th
            percentile of its size, on both sides of zero.
        signed: Use diverging colours, white at zero.

    Returns:
        The matplotlib image.
    """
    data = image.detach().double().cpu()
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
    """Return a row of images, one a title; options as for ``draw_image``."""
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
    """Return a Hessian matrix beside one of its rows as an image.

    Args:
        matrix: ``[n, n]``.
        shape: Of the model, ``(depth, distance)`` with product n.
        cell: Which cell's row to show, ``(depth index, distance index)``.
        spacing: Cell size, metres.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    left = figure.add_subplot(1, 2, 1)
    reach = float(matrix.detach().abs().flatten().quantile(0.95)) or 1.0
    drawn = left.imshow(
        matrix.detach().cpu().numpy(), cmap=SIGNED, vmin=-reach, vmax=reach
    )
    left.set_title("Hessian")
    left.set_xlabel("cell")
    left.set_ylabel("cell")
    figure.colorbar(drawn, ax=left, shrink=0.85)
    index = cell[0] * shape[1] + cell[1]
    row = matrix[index].reshape(tuple(shape))
    right = figure.add_subplot(1, 2, 2)
    draw_image(
        right,
        row,
        f"its row of cell ({cell[0]}, {cell[1]})",
        spacing=spacing,
        limits=(-reach, reach),
        signed=True,
    )
    right.plot((cell[1] + 0.5) * spacing, (cell[0] + 0.5) * spacing, "k+")
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
        against: ``"seconds"``, ``"iteration"`` or ``"products"``.

    Raises:
        ValueError: For another ``against``.
    """
    if against not in ("seconds", "iteration", "products"):
        raise ValueError(
            f"against is {against!r}; it must be 'seconds', 'iteration' or 'products'"
        )
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
    """Return the loss of each run; options as for ``draw_convergence``."""
    figure = Figure(figsize=(5.0, 3.6), layout="constrained")
    draw_convergence(figure.add_subplot(), histories, against=against)
    return figure
