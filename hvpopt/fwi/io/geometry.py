"""Positions in metres to cells of a grid: the line, the grid, and what lies on it.

Positions are ``(z, y, x)``, z downwards, float64. A grid's axes are ``(depth, along)`` in
two dimensions, ``(depth, y, x)`` in three.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.fwi.survey._options import bare_faces, pml_widths
from hvpopt.fwi.survey.interpolation import Interpolation

#: How far outside the outermost cell a face reflects, in cells, by propagator and
#: condition (deepwave 0.1.0, ``_boundaries.py``). The scalar field is held to zero one
#: cell outside, an acoustic pressure on the outermost node itself; every rigid wall is
#: half a cell outside (an elastic one also holds the velocity along it, on the outermost
#: node).
OUTSIDE = {"scalar": {"free": 1.0, "rigid": 0.5}}
STAGGERED = {"free": 0.0, "rigid": 0.5}
#: What a face without width and without a name is (deepwave 0.1.0, ``_common.py``,
#: ``_BARE_ZERO_WIDTH_CONDITION``).
UNNAMED = {"scalar": "free"}
#: Propagators that refuse a free face (deepwave 0.1.0).
WITHOUT_FREE = ("acoustic_vti", "elastic", "elastic_vti")
#: Propagators of which every component's image at a face is known: odd or even.
FOLDING = ("scalar", "acoustic", "viscoacoustic")


@dataclass(frozen=True)
class Face:
    """What bounds a grid on one side."""

    condition: str = "pml"  # "pml", "free", "rigid" or "periodic"
    # cells outside the outermost one at which it reflects; None: does not
    outside: float | None = None
    # True where an interpolation's window is folded back as its image
    folds: bool = False

    @property
    def plane(self) -> float:
        """How far outside the outermost cell it lies, cells; zero if it absorbs."""
        return 0.0 if self.outside is None else self.outside


@dataclass(frozen=True)
class Line:
    """A straight line on the map."""

    start: tuple[float, float]  # (x, y) of its zero, metres
    direction: tuple[float, float]  # (x, y), of length one
    name: str  # what the distance along it is called

    def along(self, positions: Tensor) -> Tensor:
        """Return the distance along the line of positions ``[..., 3]``, metres."""
        x, y = positions[..., 2] - self.start[0], positions[..., 1] - self.start[1]
        return x * self.direction[0] + y * self.direction[1]

    def off(self, positions: Tensor) -> Tensor:
        """Return the distance of positions ``[..., 3]`` from the line, metres."""
        x, y = positions[..., 2] - self.start[0], positions[..., 1] - self.start[1]
        return (y * self.direction[0] - x * self.direction[1]).abs()


def line_through(ends: Sequence[Sequence[float]]) -> Line:
    """Return the line from one point ``(x, y)`` to another, metres."""
    try:
        (x0, y0), (x1, y1) = ((float(x), float(y)) for x, y in ends)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"line is {ends!r}; give the two ends ((x, y), (x, y)), in metres"
        ) from error
    length = math.hypot(x1 - x0, y1 - y0)
    if not 0 < length < math.inf:
        raise ValueError(f"line is {ends!r}; its ends must be finite and differ")
    direction = ((x1 - x0) / length, (y1 - y0) / length)
    return Line((x0, y0), direction, f"distance from ({x0:g}, {y0:g})")


def best_line(positions: Tensor) -> Line:
    """Return the line of least squares through positions ``[n, 3]``, each place once."""
    # The x axis (or y axis) itself where all lie along it, so that distances are
    # coordinates; else the line through their mean, from its end of least x (of least y,
    # where it runs more along y).
    where = torch.unique(positions[:, [2, 1]], dim=0)
    low, high = where.amin(0), where.amax(0)
    if low[1] == high[1]:
        return Line((0.0, float(low[1])), (1.0, 0.0), "x")
    if low[0] == high[0]:
        return Line((float(low[0]), 0.0), (0.0, 1.0), "y")
    centre = where.mean(0)
    direction = torch.linalg.svd(where - centre, full_matrices=False)[2][0]
    direction = direction * direction[direction.abs().argmax()].sign()
    start = centre + ((where - centre) @ direction).min() * direction
    x, y = (float(c) for c in start)
    dx, dy = (float(c) for c in direction)
    return Line((x, y), (dx, dy), f"distance from ({x:.1f}, {y:.1f})")


@dataclass(frozen=True)
class Spots:
    """Sources or receivers, each where one field component is taken."""

    name: str
    positions: Tensor  # [shot, point, dimension], metres, along the grid's axes
    exists: Tensor  # True for points that take part [shot, point]
    # of the component's node from the cell in each dimension, cells
    offset: tuple[float, ...]
    shots: Sequence[int]  # what the shots are called in errors


@dataclass(frozen=True)
class Grid:
    """Where a model's cells are."""

    # of the first cell, metres: (depth, along) or (depth, y, x)
    origin: tuple[float, ...]
    spacing: tuple[float, ...]  # cell size in each dimension, metres
    shape: tuple[int, ...]
    faces: tuple[Face, ...]  # first and last of each dimension
    halfwidth: int  # cells on each side that interpolation takes off the nodes
    snap: float  # distance in cells within which a position is taken to be on its node

    def nodes(self, spots: Spots) -> Tensor:
        """Return places in cells, counted from the component's first node."""
        origin, spacing, offset = (
            torch.tensor(v, dtype=torch.float64)
            for v in (self.origin, self.spacing, spots.offset)
        )
        places = (spots.positions - origin) / spacing - offset
        nearest = places.round()
        return torch.where((places - nearest).abs() <= self.snap, nearest, places)

    def reach(self, spots: Spots) -> tuple[Tensor, Tensor]:
        """Return the first and the last cell that points take ``[n, dimension]``."""
        places = self.nodes(spots)[spots.exists]
        between = (places != places.round()) * self.halfwidth
        first = places.floor() - (between - 1).clamp(min=0)
        return first, places.floor() + between

    def mirrors(self, spots: Spots) -> list[tuple[float, float] | None]:
        """Return each face's mirror: its plane, from the first node, and image's sign."""
        # At a free face pressure is odd and the velocity normal to it even; at a rigid
        # one it is the other way round (Robertsson, Geophysics 61, 1996).
        found: list[tuple[float, float] | None] = []
        for number, face in enumerate(self.faces):
            d, offset = number // 2, spots.offset[number // 2]
            if not face.folds:
                found.append(None)
                continue
            plane = self.shape[d] - 1 + face.plane if number % 2 else -face.plane
            odd = (face.condition == "free") != (offset != 0)
            found.append((plane - offset, -1.0 if odd else 1.0))
        return found

    @property
    def top(self) -> float:
        """Depth where the face above reflects, or of the first cell, metres."""
        return self.origin[0] - self.faces[0].plane * self.spacing[0]

    def around(self, groups: Sequence[Spots], margin: int) -> Grid:
        """Return the grid, placed to hold points."""
        # A face above that reflects lies at depth zero. Where it absorbs, the first cell
        # does, or above it by whole cells where that is needed. Along the other axes the
        # outermost position is on a node, ``margin`` cells from the edge.
        least = [torch.cat([s.positions[s.exists] for s in groups]).amin(0)]
        origin = [float(x) for x in least[0]]
        for d in range(1, len(origin)):
            origin[d] -= max(margin, self.halfwidth) * self.spacing[d]
        origin[0] = self.faces[0].plane * self.spacing[0]
        placed = replace(self, origin=tuple(origin))
        if self.faces[0].outside is None:
            first = min(float(placed.reach(s)[0][:, 0].min()) for s in groups)
            origin[0] += min(first, 0.0) * self.spacing[0]
        return replace(placed, origin=tuple(origin))

    def large_enough(self, groups: Sequence[Spots], margin: int, depth: float) -> Grid:
        """Return the grid with a shape that holds points, and reaches a depth."""
        last = torch.stack([self.reach(s)[1].amax(0) for s in groups]).amax(0)
        nodes = torch.stack([self.nodes(s)[s.exists].amax(0) for s in groups]).amax(0)
        shape = [int(n) + 1 for n in torch.maximum(last, nodes.ceil() + margin)]
        below = (depth - self.origin[0]) / self.spacing[0]
        shape[0] = max(int(last[0]), math.ceil(below - 1e-6)) + 1
        return replace(self, shape=tuple(max(n, 1) for n in shape))

    def outside(self, spots: Spots) -> Tensor:
        """Return which of the points that take part do not lie in the grid ``[n]``."""
        places = self.nodes(spots)[spots.exists]
        first, last = self.reach(spots)
        outside = torch.zeros(len(places), dtype=torch.bool)
        mirrors = self.mirrors(spots)
        for d, cells in enumerate(self.shape):
            low, high = mirrors[2 * d : 2 * d + 2]
            # on the plane itself an odd field is zero
            if low is None:
                outside |= first[:, d] < 0
            else:
                beyond = torch.le if low[1] < 0 else torch.lt
                outside |= beyond(places[:, d], low[0])
            if high is None:
                outside |= last[:, d] > cells - 1
            else:
                beyond = torch.ge if high[1] < 0 else torch.gt
                outside |= beyond(places[:, d], high[0])
        return outside

    def check_inside(self, spots: Spots, holds: Grid | None) -> None:
        """Raise ValueError, with their shots, unless all points lie in the grid."""
        # ``holds`` is a grid that does hold them, for the error; None if none does
        outside = self.outside(spots)
        if not bool(outside.any()):
            return
        where = spots.exists.nonzero()[outside]
        shots = [spots.shots[shot] for shot in sorted(set(where[:, 0].tolist()))]
        shot, point = where[0].tolist()
        spot = spots.positions[shot, point].tolist()
        named = ", ".join(map(str, shots[:5])) + (", …" if len(shots) > 5 else "")
        remedy = self._remedy(spots)
        if holds is not None:
            remedy = (
                f"A grid that holds all: origin={_point(holds.origin)}, "
                f"shape={holds.shape}; origin=None and shape=None choose one"
            )
        raise ValueError(
            f"{len(where)} {spots.name}{'s' if len(where) > 1 else ''} of "
            f"shot{'s' if len(shots) > 1 else ''} {named} lie outside the grid of "
            f"{self}, or nearer to its "
            f"edge than interpolation reaches; the first is {spots.name} {point} of shot "
            f"{shots[0]}, at {_point(spot)} m. {self.face_above()}{remedy}"
        )

    def _remedy(self, spots: Spots) -> str:
        """Return what helps where no grid with this face above holds the points."""
        face, name = self.faces[0], spots.name
        absorbing = "let the face absorb: boundary='pml' and its pml_width above zero"
        if not face.folds:
            nodes = [
                self.origin[0] + (i + spots.offset[0]) * self.spacing[0] for i in (0, 1)
            ]
            return (
                "Next to it this propagator's fields cannot be interpolated, only taken "
                f"on nodes, which lie at depths of {nodes[0]:g}, {nodes[1]:g}, … m: pass "
                f"{name}_depth= or a grid_spacing= that puts them there, snap=0.5 to "
                f"move every position to its node, origin= above a layer of vacuum whose "
                f"underside is the surface, or {absorbing}"
            )
        below = face.plane * self.spacing[0]
        why = "There is no field above it"
        if face.condition == "free" and spots.offset[0] == 0:
            why = "A free surface holds the field at zero there, and at what is above it"
        return (
            f"{why}: pass {name}_depth=, in metres below the surface, where headers have "
            "no depths; where they are elevations above another datum, subtract the "
            "surface's and give Gathers, or put the face where the surface is with "
            f"origin=, whose depth is the face's plus {below:g} m; "
            f"or {absorbing}"
        )

    def face_above(self) -> str:
        """Return a sentence of where the face above reflects, or nothing."""
        if self.faces[0].outside is None:
            return ""
        return f"The {self.faces[0].condition} face above lies at depth {self.top:g} m. "

    def __str__(self) -> str:
        return (
            f"{_times(self.shape)} cells of {_times(self.spacing)} m from "
            f"{_point(self.origin)} m"
        )


def _times(values: Sequence[float]) -> str:
    return " × ".join(f"{v:g}" for v in values)


def _point(values: Sequence[float]) -> str:
    return f"({', '.join(repr(round(float(v), 6)) for v in values)})"


# -- what a survey takes of them ----------------------------------------------------


def largest_offset(sources: Tensor, receivers: Tensor, exists: Tensor) -> float:
    """Return the largest horizontal distance from a source to its receivers, metres."""
    apart = (receivers - sources)[..., 1:].norm(dim=-1)
    return float(apart[exists].max())


def projected(
    sources: Tensor,
    receivers: Tensor,
    exists: Tensor,
    ends: Sequence[Sequence[float]] | None,
    limit: float,
    shots: Sequence[int],
) -> tuple[Tensor, Tensor, str]:
    """Return positions ``(depth, along)`` on a line, and a sentence of what changed."""
    # Positions are [shot, point, 3]; they lie at most ``limit`` metres off the line,
    # which is the best one where ``ends`` is None.
    positions = torch.cat([sources[:, 0], receivers[exists]])
    line = best_line(positions) if ends is None else line_through(ends)
    flat = [
        torch.stack([where[..., 0], line.along(where)], -1)
        for where in (sources, receivers)
    ]
    distances = line.off(positions)
    off, farthest = float(distances.max()), int(distances.argmax())
    before = (receivers - sources)[..., 1:].norm(dim=-1)
    after = (flat[1] - flat[0])[..., 1].abs()
    change = float((before - after)[exists].abs().max())
    if off > limit:
        if farthest < len(sources):
            spot = f"the source of shot {shots[farthest]}"
        else:
            shot, receiver = exists.nonzero()[farthest - len(sources)].tolist()
            spot = f"receiver {receiver} of shot {shots[shot]}"
        raise ValueError(
            f"positions lie up to {off:.4g} m off their line ({spot} farthest), more "
            f"than max_off_line={limit:g} m; projecting them would change offsets by up "
            f"to {change:.3g} m. Pass max_off_line={math.ceil(off)} to do so, line= for "
            "another line, or n_dimensions=3"
        )
    told = f"Line: {line.name}"
    if off > 0:
        told += (
            f"; positions lie up to {off:.3g} m off it, and projecting them changed "
            f"offsets by up to {change:.3g} m"
        )
    return flat[0], flat[1], told + "."


def faces_of(
    propagator: str, options: Mapping[str, Any], n_dimensions: int
) -> tuple[Face, ...]:
    """Return each face: whether it reflects, and where."""
    # a face of no width that ``boundary`` does not name reflects too
    number = 2 * n_dimensions
    boundary, widths = options.get("boundary"), pml_widths(options, n_dimensions)
    if boundary is None:
        boundary = "pml"
    names = [boundary] * number if isinstance(boundary, str) else list(boundary)
    for option, values in (("boundary", names), ("pml_width", widths)):
        if len(values) != number:
            raise ValueError(f"{option}={options[option]!r} must name {number} faces")
    if "free" in names and propagator in WITHOUT_FREE:
        raise ValueError(
            f"deepwave's {propagator} has no free face (boundary={boundary!r}); leave it "
            "out, give the face above a pml_width of zero and origin= above the surface, "
            "and make the cells of the model above the surface a vacuum: no buoyancy, no "
            "stiffness"
        )
    for face in bare_faces(options, n_dimensions):
        names[face] = UNNAMED.get(propagator, "rigid")
    outside = OUTSIDE.get(propagator, STAGGERED)
    return tuple(
        Face(name, outside.get(name), name in outside and propagator in FOLDING)
        for name in names
    )


def choose_grid(
    spots: Sequence[Spots],
    blank: Grid,
    origin: Sequence[float] | None,
    shape: Sequence[int] | None,
    depth: float,
    margin: int,
) -> Grid:
    """Return the grid as asked for, the rest of it chosen, which holds all points."""
    # ``blank`` is of any origin and shape. A chosen shape reaches ``depth``, metres, and
    # ``margin`` cells beyond the points.
    axes = len(blank.origin)
    chosen = blank.around(spots, margin)
    holds = chosen.large_enough(spots, margin, depth)
    grid = chosen
    if origin is not None:
        given = tuple(
            float(checks.number("a coordinate of origin", x, below=math.inf))
            for x in origin
        )
        _check_axes("origin", given, axes)
        grid = replace(blank, origin=given)
    if shape is None:
        grid = grid.large_enough(spots, margin, depth)
    else:
        cells = checks.lengths("shape", shape)
        _check_axes("shape", cells, axes)
        grid = replace(grid, shape=cells)
    possible = not any(bool(holds.outside(group).any()) for group in spots)
    for group in spots:
        grid.check_inside(group, holds if possible else None)
    return grid


def _check_axes(name: str, values: Sequence[float], axes: int) -> None:
    if len(values) != axes:
        raise ValueError(
            f"{name} is {tuple(values)}; it must have {axes} numbers, for "
            f"{'(depth, along the line)' if axes == 2 else '(depth, y, x)'}"
        )


def located(
    spots: Spots, grid: Grid, device: torch.device | str
) -> tuple[Tensor | Interpolation, Tensor | None]:
    """Return where points are, as a survey takes them, and the mask of those on nodes."""
    # Cells [shot, point, dimension] where all points are on nodes of their own, with a
    # mask where some take no part; else their interpolation, without one.
    nodes, exists = grid.nodes(spots), spots.exists
    whole_numbers = bool((nodes == nodes.round())[exists].all())
    if whole_numbers and not _shared(nodes, exists, grid.shape):
        # a trace that takes no part still needs a place
        first = nodes[torch.arange(len(nodes)), exists.int().argmax(1)][:, None]
        cells = torch.where(exists[..., None], nodes, first).long().to(device)
        return cells, None if bool(exists.all()) else exists.to(device)
    interpolation = Interpolation.at(
        nodes + torch.tensor(spots.offset, dtype=torch.float64),
        exists,
        halfwidth=grid.halfwidth,
        offset=spots.offset,
        mirrors=grid.mirrors(spots),
    )
    return interpolation.to(torch.empty(0, device=device).device), None


def _shared(nodes: Tensor, exists: Tensor, shape: Sequence[int]) -> bool:
    """True if two points of a shot are on one node, which a propagator refuses."""
    flat = torch.zeros(exists.shape, dtype=torch.long)
    for d, cells in enumerate(shape):
        flat = flat * cells + nodes[..., d].nan_to_num().long()
    own = -1 - torch.arange(exists.shape[1]).expand_as(flat)
    ordered = torch.where(exists, flat, own).sort(1).values
    return bool((ordered[:, 1:] == ordered[:, :-1]).any())
