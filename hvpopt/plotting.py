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
from hvpopt.analysis.point_spread import PointSpread
from hvpopt.analysis.resolution import CrossTalk, ResolutionLengths
from hvpopt.run.result import IterationRecord

try:
    from matplotlib.axes import Axes
    from matplotlib.collections import EllipseCollection
    from matplotlib.figure import Figure
    from matplotlib.transforms import ScaledTranslation
except ImportError as error:  # pragma: no cover - the test environment has it
    raise ImportError('pictures need matplotlib: pip install "hvpopt[plot]"') from error

SIGNED = "RdBu_r"
MODEL = "viridis"
#: Room under axes for their numbers and label, points.
BELOW = 34.0


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
        checks.text(name, words)
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
    # below the axes and their label, where no curve is
    below = ScaledTranslation(0.0, -BELOW / 72, axes.figure.dpi_scale_trans)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        bbox_transform=axes.transAxes + below,
        ncols=1 if len(histories) < 5 else 2,
    )


def plot_convergence(
    histories: Mapping[str, Sequence[IterationRecord]], *, against: str = "seconds"
) -> Figure:
    """Return a figure of the loss of each run; options as for ``draw_convergence``."""
    figure = Figure(figsize=(5.0, 3.6), layout="constrained")
    draw_convergence(figure.add_subplot(), histories, against=against)
    return figure


# -- what the data say ----------------------------------------------------------


def draw_eigenvalues(
    axes: Axes,
    values: Sequence[float] | Tensor,
    *,
    residuals: Sequence[float] | Tensor | None = None,
    prior: float | None = 1.0,
) -> None:
    """Draw eigenvalues from the largest down, and the line of the prior.

    Args:
        axes: Where to draw.
        values: Eigenvalues, in any order. Those that are not positive are left out, since
            the axis is logarithmic, and the title says how many.
        residuals: Bound on the error of each, drawn as a bar. Default none.
        prior: Where data and prior weigh the same: 1 for a Hessian that is
            preconditioned by the prior. None for no line. Default 1.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: For no positive eigenvalue.
    """
    checks.instance("axes", axes, Axes, "pass the axes of a figure to draw in")
    found = _row("values", values)
    prior = checks.optional(checks.number, "prior", prior, above=0.0, below=math.inf)
    order = np.argsort(-found)
    kept = order[found[order] > 0.0]
    if not kept.size:
        raise ValueError("values has no positive entry; there is nothing to draw")
    rank = np.arange(1, kept.size + 1)
    axes.semilogy(rank, found[kept], "o-", markersize=3, label="Hessian")
    if residuals is not None:
        error = _row("residuals", residuals, found.size)[kept]
        below = np.minimum(error, 0.999 * found[kept])
        axes.errorbar(rank, found[kept], [below, error], fmt="none", capsize=2)
    title = "eigenvalues"
    if prior is not None:
        axes.axhline(prior, color="k", linestyle="--", label="prior")
        title += f": {int((found > prior).sum())} above the prior's line"
    if kept.size < found.size:
        title += f" ({found.size - kept.size} not positive)"
    axes.set_title(title)
    axes.set_xlabel("number")
    axes.set_ylabel("eigenvalue")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")


def plot_eigenvalues(
    values: Sequence[float] | Tensor,
    *,
    residuals: Sequence[float] | Tensor | None = None,
    prior: float | None = 1.0,
) -> Figure:
    """Return a figure of eigenvalues; options as for ``draw_eigenvalues``."""
    figure = Figure(figsize=(5.0, 3.6), layout="constrained")
    draw_eigenvalues(figure.add_subplot(), values, residuals=residuals, prior=prior)
    return figure


def plot_density(
    points: Sequence[float] | Tensor,
    cumulative: Sequence[float] | Tensor,
    standard_error: Sequence[float] | Tensor | None = None,
    *,
    logarithmic: bool = False,
) -> Figure:
    """Return a figure of the share of eigenvalues up to each point.

    Args:
        points: Where the cumulative density is known, ascending.
        cumulative: Share of eigenvalues up to each point, from 0 to 1.
        standard_error: Of each share, drawn as a band of two. Default none.
        logarithmic: Draw a logarithmic axis of eigenvalues. Default False.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: For rows of different length.
    """
    x = _row("points", points)
    share = _row("cumulative", cumulative, x.size)
    logarithmic = checks.flag("logarithmic", logarithmic)
    figure = Figure(figsize=(5.0, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.step(x, share, where="post")
    if standard_error is not None:
        error = 2.0 * _row("standard_error", standard_error, x.size)
        axes.fill_between(x, share - error, share + error, step="post", alpha=0.3)
    if logarithmic:
        axes.set_xscale("log")
    axes.set_ylim(-0.02, 1.02)
    axes.set_title("share of eigenvalues up to each value")
    axes.set_xlabel("eigenvalue")
    axes.set_ylabel("share")
    axes.grid(alpha=0.3)
    return figure


def plot_deviations(
    prior: Tensor, posterior: Tensor, *, spacing: float = 1.0, unit: str = ""
) -> Figure:
    """Return prior and posterior standard deviation, and their ratio.

    Args:
        prior: Standard deviation before the data, ``[depth, distance]``.
        posterior: After them, of the same shape.
        spacing: Cell size, metres. Default 1.
        unit: Of the model. Default none.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: For images that are not 2-D or differ in shape.
    """
    before = _picture("the prior's standard deviation", prior)
    after = _picture("the posterior's standard deviation", posterior)
    if before.shape != after.shape:
        raise ValueError(
            f"prior has shape {tuple(before.shape)}, posterior {tuple(after.shape)}"
        )
    figure = Figure(figsize=(13.0, 3.2), layout="constrained")
    axes = figure.subplots(1, 3)
    top = float(before.nan_to_num().max()) or 1.0
    for ax, title, image in zip(
        axes, ("prior", "posterior"), (before, after), strict=False
    ):
        draw_image(
            ax,
            image,
            f"{title} standard deviation",
            spacing=spacing,
            unit=unit,
            limits=(0.0, top),
        )
    draw_image(
        axes[2],
        after / before,
        "posterior / prior: 1 where data say nothing",
        spacing=spacing,
        limits=(0.0, 1.0),
    )
    return figure


def plot_samples(
    mean: Tensor,
    samples: Sequence[Tensor] | Tensor,
    *,
    spacing: float = 1.0,
    unit: str = "",
) -> Figure:
    """Return the mean and models drawn from the posterior, all with the same colours.

    Args:
        mean: ``[depth, distance]``.
        samples: Each of that shape.
        spacing: Cell size, metres. Default 1.
        unit: Of the model. Default none.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: For images that are not 2-D, or no sample.
    """
    images = {"mean": _picture("the mean", mean)}
    for i, sample in enumerate(samples):
        images[f"sample {i + 1}"] = _picture("a sample", sample)
    if len(images) < 2:
        raise ValueError("there is no sample to draw; pass at least one")
    known = torch.stack(list(images.values()))
    known = known[~known.isnan()]
    limits = (float(known.min()), float(known.max()))
    return plot_images(images, spacing=spacing, unit=unit, limits=limits)


def plot_point_spreads(spread: PointSpread, *, spacing: float = 1.0) -> Figure:
    """Return the answer of each parameter to a change in each cell.

    A row for each cell and a column for each parameter; of one parameter three cells in a
    row. Colours of a row are relative to its largest answer. What leaks in from other
    cells of the comb is cut off; of one parameter the title says how much is left near
    the cell.

    Args:
        spread: From ``point_spread`` or ``regularised_spread``, on 2-D grids.
        spacing: Cell size, metres. Default 1.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: For grids that are not 2-D.
    """
    use = "pass what hvpopt.analysis.point_spread returned"
    checks.instance("spread", spread, PointSpread, use)
    n, p = len(spread.cells), len(spread.grids)
    columns = min(n, 3) if p == 1 else p
    rows = -(-n * p // columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout="constrained")
    free = iter(figure.subplots(rows, columns, squeeze=False).flat)
    for i, (changed, cell) in enumerate(spread.cells):
        pictures = {name: spread.picture(i, name) for name in spread.grids}
        largest = [float(image.nan_to_num().abs().max()) for image in pictures.values()]
        reach = max(largest) or 1.0
        for name, picture in pictures.items():
            ax, title = next(free), f"{cell}"
            if p > 1:
                title = f"{changed} changed at {cell}, {name} answers"
            elif float(spread.leakage[i]) > 0.0:
                title += f", leakage {float(spread.leakage[i]):.1%}"
            draw_image(
                ax, picture / reach, title, spacing=spacing, limits=(-1, 1), signed=True
            )
            ax.plot((cell[1] + 0.5) * spacing, (cell[0] + 0.5) * spacing, "k+")
    for ax in free:
        ax.set_axis_off()
    return figure


def plot_lengths(lengths: ResolutionLengths) -> Figure:
    """Return maps of resolution lengths along depth and distance, and the ellipses.

    An ellipse has the principal lengths as half axes, in true proportion to the picture;
    none is drawn where the spread is no Gaussian. They are an eighth of the shorter side
    apart. The third map is the relative standard error.

    Args:
        lengths: From ``resolution_lengths``, of a 2-D grid with its spacing in metres.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: For a grid that is not 2-D.
    """
    use = "pass what hvpopt.analysis.resolution_lengths returned"
    checks.instance("lengths", lengths, ResolutionLengths, use)
    along = lengths.value
    if along.ndim != 3:
        raise ValueError(f"lengths are of a {along.ndim - 1}-D grid; pictures are 2-D")
    dy, dx = lengths.spacing
    finite = along[along.isfinite()]
    top = float(finite.quantile(0.98)) if finite.numel() else 1.0
    figure = Figure(figsize=(13.5, 3.2), layout="constrained")
    axes = figure.subplots(1, 3)
    error = torch.as_tensor(lengths.standard_error) / along
    panels = (
        (along[0], "resolution length along depth", "m", top),
        (along[1], "along distance", "m", top),
        (error.amax(0), "relative standard error", "", 0.5),
    )
    for ax, (image, title, label, most) in zip(axes, panels, strict=True):
        draw_image(ax, image, title, spacing=dx, unit=label, limits=(0.0, most))
        height, width = image.shape
        # cells need not be square
        ax.images[0].set_extent((0, width * dx, height * dy, 0))
    height, width = along.shape[1:]
    step = max(1, min(height, width) // 8)
    at = torch.cartesian_prod(
        torch.arange(step // 2, height, step), torch.arange(step // 2, width, step)
    )
    principal = lengths.principal[:, at[:, 0], at[:, 1]]
    down, across = lengths.direction[:, at[:, 0], at[:, 1]]
    good = principal.isfinite().all(0) & (principal[-1] < 2 * top)
    axes[2].set_aspect("equal")
    for ax in axes[:2]:
        ax.add_collection(
            EllipseCollection(
                2 * principal[-1][good].numpy(),
                2 * principal[0][good].numpy(),
                torch.atan2(down, across)[good].rad2deg().numpy(),
                units="xy",
                offsets=((at[good].flip(1) + 0.5) * torch.tensor([dx, dy])).numpy(),
                offset_transform=ax.transData,
                facecolors="none",
                edgecolors="w",
            )
        )
        ax.set_aspect("equal")
    return figure


def plot_cross_talk(talk: CrossTalk, *, spacing: float = 1.0) -> Figure:
    """Return the matrix of couplings, and a picture of each pair on a logarithmic scale.

    Args:
        talk: From ``cross_talk``, of parameters on 2-D grids.
        spacing: Cell size, metres. Default 1.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: For grids that are not 2-D.
    """
    use = "pass what hvpopt.analysis.cross_talk returned"
    checks.instance("talk", talk, CrossTalk, use)
    p = len(talk.names)
    figure = Figure(figsize=(4.0 + 3.8 * p, 1.0 + 2.6 * p), layout="constrained")
    sides: Any = figure.subfigures(1, 2, width_ratios=(4.0, 3.8 * p))
    left, right = sides
    ax = left.add_subplot()
    drawn = ax.imshow(talk.value.numpy(), cmap=MODEL, vmin=0.0, vmax=1.0)
    error = torch.as_tensor(talk.standard_error).expand(p, p)
    for i in range(p):
        for j in range(p):
            text = f"{float(talk.value[i, j]):.2f}"
            if i != j:
                text += f"\n± {float(error[i, j]):.2f}"
            colour = "k" if float(talk.value[i, j]) > 0.6 else "w"
            ax.text(j, i, text, ha="center", va="center", color=colour)
    ax.set_xticks(range(p), talk.names)
    ax.set_yticks(range(p), talk.names)
    ax.set_title("coupling: 0 none, 1 not told apart")
    left.colorbar(drawn, ax=ax, shrink=0.5)
    panels = right.subplots(p, p, squeeze=False)
    for row, name in zip(panels, talk.names, strict=True):
        for panel, changed in zip(row, talk.names, strict=True):
            if name == changed:
                panel.set_axis_off()
                continue
            draw_image(
                panel,
                talk.answers[name, changed].clamp(min=1e-2).log10(),
                f"{changed} changed, {name} answers",
                spacing=spacing,
                unit="log10 of its own",
                limits=(-2.0, 1.0),
            )
    return figure


def plot_information(
    information: Sequence[float] | Tensor,
    *,
    lower: Sequence[float] | Tensor | None = None,
    upper: Sequence[float] | Tensor | None = None,
    whole: float | None = None,
) -> Figure:
    """Return the information that the first shots of an order give, against their number.

    Args:
        information: Of 1, 2, … shots, nats.
        lower: Lower bound of each. Default none.
        upper: Upper bound of each. Default none.
        whole: Information of all shots, drawn as a line. Default none.

    Raises:
        TypeError: For an argument of the wrong type.
        ValueError: For rows of different length.
    """
    gained = _row("information", information)
    number = np.arange(1, gained.size + 1)
    figure = Figure(figsize=(5.0, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(number, gained, "o-", markersize=3, label="gained")
    if lower is not None or upper is not None:
        low = gained if lower is None else _row("lower", lower, gained.size)
        high = gained if upper is None else _row("upper", upper, gained.size)
        axes.fill_between(number, low, high, alpha=0.3, label="bounds")
    if whole is not None:
        whole = checks.number("whole", whole, below=math.inf)
        axes.axhline(whole, color="k", linestyle="--", label="all shots")
    axes.set_title("information against number of shots")
    axes.set_xlabel("shots")
    axes.set_ylabel("information (nats)")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def _row(name: str, values: object, size: int | None = None) -> Any:
    """Return a row of numbers as float64 on the host, of a given size if any."""
    if isinstance(values, Tensor):
        values = values.detach().double().cpu().numpy()
    use = "pass a row of numbers"
    try:
        row = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {checks.shown(values)}; {use}") from None
    if row.ndim != 1 or not row.size:
        raise ValueError(f"{name} has shape {row.shape}; {use}")
    if size is not None and row.size != size:
        raise ValueError(f"{name} has {row.size} entries, expected {size}")
    return row


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
