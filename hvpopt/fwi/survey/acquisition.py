"""Sources and receivers: checked once, then taken shot by shot, or mixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import deepwave
import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.fwi.survey.interpolation import Interpolation

#: Indices of the shots that take part, or None for all of them.
Shots: TypeAlias = "Sequence[int] | None"


def take(tensor: Tensor, shots: Shots) -> Tensor:
    """Return the rows of some shots; a view where they are consecutive."""
    if shots is None:
        return tensor
    first, last = shots[0], shots[-1] + 1
    if list(shots) == list(range(first, last)):
        return tensor[first:last]
    return tensor[torch.as_tensor(list(shots), device=tensor.device)]


@dataclass(frozen=True)
class Points:
    """Where one channel's sources or receivers are."""

    locations: Tensor  # cells [shot, point, dimension], or floats; the support of hicks
    mask: Tensor | None = None  # True where a point is active [shot, point]; None for all
    hicks: Interpolation | None = None  # the interpolator that spreads or gathers
    # which of the interpolator's shots these are; None for all
    rows: tuple[int, ...] | None = None

    @property
    def n_shots(self) -> int:
        """Number of shots."""
        return int(self.locations.shape[0])

    @property
    def n_dimensions(self) -> int:
        """Coordinates of a point."""
        return int(self.locations.shape[-1])

    @property
    def n_points(self) -> int:
        """Points per shot that the caller sees."""
        asked = self.locations if self.hicks is None else self.hicks.locations
        return int(asked.shape[1])

    @property
    def places(self) -> Tensor:
        """Cells ``[shot, point, dimension]`` that the caller asked for, in float64."""
        if self.hicks is None:
            return self.locations.double()
        return take(self.hicks.locations, self.rows).double()

    def centres(self) -> Tensor:
        """Return the mean place of each shot's active points, ``[shot, dimension]``."""
        where, active = self.locations.double(), self.mask
        if self.hicks is not None:
            where = take(self.hicks.locations, self.rows).double()
            active = (where != deepwave.IGNORE_LOCATION).all(-1)
        if active is None:
            return where.mean(1)
        factor = active.double()[..., None]
        return (where * factor).sum(1) / factor.sum(1).clamp(min=1.0)

    @property
    def alike(self) -> bool:
        """True if every shot has the same points."""
        rows = [self.locations]
        if self.hicks is not None:
            # one support may serve several places
            rows.append(take(self.hicks.locations, self.rows))
        if self.mask is not None:
            rows.append(self.mask)
        return all(bool((row == row[:1]).all()) for row in rows)

    def select(self, shots: Sequence[int]) -> Points:
        """Return the points of some shots, in that order."""
        rows = None
        if self.hicks is not None:
            rows = tuple(shots if self.rows is None else (self.rows[i] for i in shots))
        return Points(
            take(self.locations, shots),
            None if self.mask is None else take(self.mask, shots),
            self.hicks,
            rows,
        )

    def gather(self, data: Tensor) -> Tensor:
        """Return recordings ``[shot, point, time]`` at the points asked for."""
        if self.hicks is None:
            return data
        rows = range(self.n_shots) if self.rows is None else self.rows
        return self.hicks.gather(data, rows)

    def to(self, device: torch.device) -> Points:
        """Return the same points on another device."""
        mask = None if self.mask is None else self.mask.to(device)
        hicks = None if self.hicks is None else self.hicks.to(device)
        return Points(self.locations.to(device), mask, hicks, self.rows)

    def check_inside(self, shape: Sequence[int], what: str) -> None:
        """Raise ValueError unless every active point is inside a model of a shape."""
        if self.hicks is not None:
            return  # deepwave checks the support
        active = (self.locations != deepwave.IGNORE_LOCATION).any(-1)
        if self.mask is not None:
            active &= self.mask
        size = torch.as_tensor(list(shape), device=self.locations.device)
        outside = ((self.locations < 0) | (self.locations > size - 1)).any(-1) & active
        if bool(outside.any()):
            shot, point = (int(i) for i in outside.nonzero()[0])
            where = tuple(self.locations[shot, point].tolist())
            raise ValueError(
                f"{what} {point} of shot {shot} is at cell {where}, outside the model of "
                f"{' × '.join(map(str, shape))} cells; locations are cell indices, not "
                "metres, and start at 0"
            )


@dataclass(frozen=True)
class Acquisition:
    """All of a survey that has a row for each shot, by channel."""

    # amplitudes [shot, source, time] at the propagation's time step
    sources: dict[str, tuple[Tensor, Points]]
    receivers: dict[str, Points]
    wavefields: dict[str, Tensor]  # that shots begin with, by deepwave's option

    @property
    def amplitudes(self) -> Tensor:
        """Amplitudes of the first channel, ``[shot, source, time]``."""
        return next(iter(self.sources.values()))[0]

    @property
    def n_shots(self) -> int:
        """Number of shots."""
        return int(self.amplitudes.shape[0])

    def line(self) -> list[int]:
        """Return the shots in order along the axis on which their sources lie widest."""
        places = next(iter(self.sources.values()))[1].centres()
        axis = int((places.amax(0) - places.amin(0)).argmax())
        order: list[int] = torch.argsort(places[:, axis], stable=True).tolist()
        return order

    def offsets(self, spacing: Sequence[float]) -> dict[str, Tensor]:
        """Return distances from each shot's sources, ``[shot, receiver]`` by channel."""
        points = next(iter(self.sources.values()))[1]
        # a Hicks mask is of its support, which lies about the places
        sources = points.centres() if points.hicks is None else points.places.mean(1)
        found = {}
        for channel, receivers in self.receivers.items():
            apart = receivers.places - sources[:, None].to(receivers.places.device)
            found[channel] = (apart * apart.new_tensor(list(spacing))).norm(dim=-1)
        return found

    def select(self, shots: Shots) -> Acquisition:
        """Return the acquisition of some shots, in that order."""
        if shots is None:
            return self
        return Acquisition(
            {c: (take(a, shots), p.select(shots)) for c, (a, p) in self.sources.items()},
            {c: points.select(shots) for c, points in self.receivers.items()},
            {name: take(field, shots) for name, field in self.wavefields.items()},
        )

    def encode(self, codes: Tensor) -> Acquisition:
        """Return shots of codes ``[encoded shot, shot]``; receivers are the first's."""
        rows = range(len(codes))
        return Acquisition(
            {c: _fire(a, points, codes) for c, (a, points) in self.sources.items()},
            {c: points.select(rows) for c, points in self.receivers.items()},
            {},
        )

    def to(self, dtype: torch.dtype, device: torch.device) -> Acquisition:
        """Return the same with another dtype of the wavelets, or on another device."""
        moved = device != self.amplitudes.device
        return Acquisition(
            {
                c: (a.to(device, dtype), p.to(device) if moved else p)
                for c, (a, p) in self.sources.items()
            },
            {c: p.to(device) if moved else p for c, p in self.receivers.items()},
            {name: f.to(device, dtype) for name, f in self.wavefields.items()},
        )


def _fire(amplitudes: Tensor, points: Points, codes: Tensor) -> tuple[Tensor, Points]:
    """Return the amplitudes and places of all shots' sources at once."""
    # sources that share a cell add up there, since a shot may fire a cell only once
    fired = (codes.to(amplitudes)[:, :, None, None] * amplitudes).flatten(1, 2)
    # amplitudes of a Hicks source are on its support already
    locations = points.locations.flatten(0, 1)
    if points.mask is not None:
        active = points.mask.flatten()[:, None]
        fired = fired * active
        ignored = torch.full_like(locations, deepwave.IGNORE_LOCATION)
        locations = torch.where(active, locations, ignored)
    cells, place = torch.unique(locations, dim=0, return_inverse=True)
    total = fired.new_zeros(len(codes), len(cells), fired.shape[2])
    total.index_add_(1, place, fired)
    return total, Points(cells.expand(len(codes), -1, -1).contiguous())


def parse_sources(sources: Mapping[str, Any]) -> dict[str, tuple[Tensor, Points]]:
    """Return amplitudes ``[shot, source, time]`` and points by channel."""
    # a channel has (amplitudes, locations) or (amplitudes, locations, mask), and
    # locations a tensor or a deepwave.Hicks, onto whose support amplitudes are spread
    use = "pass a dict {channel: (amplitudes, locations)}"
    checks.instance("sources", sources, Mapping, use)
    if not sources:
        raise ValueError("the survey has no sources; pass sources={channel: ...}")
    parsed = {}
    for channel, value in sources.items():
        if not isinstance(value, tuple) or len(value) not in (2, 3):
            raise TypeError(
                f"sources[{channel!r}] must be (amplitudes, locations) or (amplitudes, "
                f"locations, mask), got {type(value).__name__}"
            )
        amplitudes, (locations, *mask) = value[0], value[1:]
        points = _points(locations, mask[0] if mask else None, f"sources[{channel!r}]")
        expected = (points.n_shots, points.n_points)
        if not isinstance(amplitudes, Tensor) or not amplitudes.is_floating_point():
            raise TypeError(
                f"the amplitudes of sources[{channel!r}] must be a floating-point "
                f"torch.Tensor, got {getattr(amplitudes, 'dtype', type(amplitudes))}"
            )
        if amplitudes.ndim != 3 or amplitudes.shape[:2] != expected:
            raise ValueError(
                f"the amplitudes of sources[{channel!r}] have shape "
                f"{tuple(amplitudes.shape)}, expected [{expected[0]}, "
                f"{expected[1]}, time] as their locations have"
            )
        if amplitudes.shape[2] == 0 or not bool(torch.isfinite(amplitudes).all()):
            raise ValueError(
                f"the amplitudes of sources[{channel!r}] are empty in time, or have NaN "
                "or infinite samples"
            )
        amplitudes = amplitudes.detach()
        if points.hicks is not None:
            amplitudes = points.hicks.spread(amplitudes)
        parsed[channel] = (amplitudes, points)
    return parsed


def parse_receivers(receivers: Mapping[str, Any]) -> dict[str, Points]:
    """Return receiver points by channel, from locations or ``(locations, mask)``."""
    use = "pass a dict {channel: locations}"
    checks.instance("receivers", receivers, Mapping, use)
    if not receivers:
        raise ValueError("the survey has no receivers; pass receivers={channel: ...}")
    parsed = {}
    for channel, value in receivers.items():
        if isinstance(value, tuple) and len(value) != 2:
            raise TypeError(
                f"receivers[{channel!r}] must be locations or (locations, mask), got a "
                f"tuple of {len(value)}"
            )
        locations, mask = value if isinstance(value, tuple) else (value, None)
        parsed[channel] = _points(locations, mask, f"receivers[{channel!r}]")
    return parsed


def _points(locations: Any, mask: Any, what: str) -> Points:
    hicks = locations if isinstance(locations, Interpolation) else None
    if isinstance(locations, deepwave.Hicks):
        hicks = Interpolation.of(locations)
    if hicks is not None:
        locations = hicks.cells
    if isinstance(locations, Tensor) and (
        locations.dtype == torch.bool or locations.is_complex()
    ):
        raise TypeError(
            f"the locations of {what} are {locations.dtype}; they must be cell indices, "
            "integers or floats"
        )
    if isinstance(locations, Tensor) and not bool(torch.isfinite(locations).all()):
        raise ValueError(f"the locations of {what} have NaN or infinite coordinates")
    if not isinstance(locations, Tensor) or locations.ndim != 3:
        raise ValueError(
            f"the locations of {what} must be a tensor [shot, point, dimension] or a "
            f"deepwave.Hicks, got {getattr(locations, 'shape', type(locations).__name__)}"
        )
    if 0 in locations.shape:
        raise ValueError(
            f"the locations of {what} have shape {tuple(locations.shape)}: no shot or no "
            "point; leave the channel out if it is not used"
        )
    if mask is not None and (
        not isinstance(mask, Tensor)
        or mask.dtype != torch.bool
        or mask.shape != locations.shape[:2]
    ):
        raise ValueError(
            f"the mask of {what} must be a Boolean tensor of shape "
            f"{tuple(locations.shape[:2])}, as its locations have"
        )
    return Points(locations, mask, hicks)
