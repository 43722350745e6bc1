"""Mutes, offset limits and tapers: transforms that multiply every sample.

A mute by factors m gives an L2 misfit the values that ``L2(sample_weights=m²)`` has.
Weights belong to L2 and Huber; mutes work with every misfit, can follow offsets, and take
their place in an order with filters.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.fwi.data.transforms import Apply, DataTransform
from hvpopt.fwi.survey.acquisition import Shots, take
from hvpopt.fwi.survey.survey import Data, Survey


@dataclass(frozen=True)
class LinearMoveout:
    """A line in time over offset, ``time + offset / velocity``.

    Offsets are those of ``Survey.offsets``: distances in all dimensions.

    Args:
        velocity: Metres per second.
        time: At offset zero, seconds. Default 0.

    Raises:
        TypeError: If they are no numbers.
        ValueError: If the velocity is not positive, or the time not finite.
    """

    velocity: float
    time: float = 0.0

    def __post_init__(self) -> None:
        checks.put(
            self,
            velocity=checks.number("velocity", self.velocity, above=0.0, below=math.inf),
            time=checks.number("time", self.time, below=math.inf),
        )


#: Seconds: for every trace, ``[receiver]``, ``[shot, receiver]``, or a line over offset.
Times: TypeAlias = "float | Tensor | LinearMoveout"


class _Factors(DataTransform):
    """A transform that multiplies every sample by a number."""

    multiplies = True

    @abstractmethod
    def factors(self, survey: Survey, channel: str) -> Callable[[Shots], Tensor]:
        """Return what multiplies the rows of some shots of a channel, or raise."""

    def fit(self, survey: Survey) -> Apply:
        """Return how it acts on a survey's data; see ``DataTransform``."""
        return _Multiply({c: self.factors(survey, c) for c in survey.data_shapes})


@dataclass(frozen=True)
class _Multiply:
    """Multiplies by factors; what they need is small, so they are made in each call."""

    factors: Mapping[str, Callable[[Shots], Tensor]]

    def __call__(self, data: Data, shots: Shots) -> Data:
        return {c: d * self.factors[c](shots) for c, d in data.items()}


@dataclass(frozen=True, eq=False)
class Mute(_Factors):
    """Keeps what lies between two times of each trace: a top or bottom mute, a window.

    Samples before ``top`` and after ``bottom`` are zeroed. With ``taper`` the factor
    rises from 0 at ``top`` to 1 at ``top + taper``, and falls from 1 at
    ``bottom − taper`` to 0 at ``bottom``, as half a period of a cosine. The first sample
    is at time 0, as are the wavelets'.

    Args:
        top: Seconds: one number, ``[receiver]``, ``[shot, receiver]`` (such as picked
            first arrivals; ``inf`` mutes a trace), or a ``LinearMoveout``; or a mapping
            of these by channel, whose other channels are left as they are. Default none.
        bottom: As ``top``. Default none.
        taper: Length of the ramps, seconds. Default 0, samples are kept or zeroed.

    Raises:
        TypeError: For times or a taper of the wrong type.
        ValueError: For neither time, NaN, a taper that is negative, or two ramps that do
            not fit in the window; when it meets the survey, for shapes or channels that
            do not fit.
    """

    top: Times | Mapping[str, Times] | None = None
    bottom: Times | Mapping[str, Times] | None = None
    taper: float = 0.0

    name = "mute"

    def __post_init__(self) -> None:
        if self.top is None and self.bottom is None:
            raise ValueError("a mute needs a time; give top=, bottom= or both")
        for name, times in (("top", self.top), ("bottom", self.bottom)):
            for value in times.values() if isinstance(times, Mapping) else [times]:
                _check_times(name, value)
        taper = checks.number("taper", self.taper, least=0.0, below=math.inf)
        checks.put(self, taper=taper)
        if checks.is_number(self.top) and checks.is_number(self.bottom):
            window = checks.number("bottom", self.bottom) - checks.number("top", self.top)
            _check_ramps("window", window, taper, "s")

    @property
    def same_for_every_shot(self) -> bool:
        """True unless times follow offsets, or are given shot by shot."""
        return not any(
            isinstance(value, LinearMoveout)
            or (isinstance(value, Tensor) and value.ndim == 2)
            for times in (self.top, self.bottom)
            for value in (times.values() if isinstance(times, Mapping) else [times])
        )

    def fit(self, survey: Survey) -> Apply:
        """Return how it acts on a survey's data; see ``DataTransform``."""
        for name, times in (("top", self.top), ("bottom", self.bottom)):
            if isinstance(times, Mapping):
                unknown = set(times) - set(survey.data_shapes)
                if unknown:
                    raise ValueError(
                        f"{name} of the mute has channels {sorted(map(str, unknown))}; "
                        f"the survey records {list(survey.data_shapes)}"
                    )
        return super().fit(survey)

    def factors(self, survey: Survey, channel: str) -> Callable[[Shots], Tensor]:
        """Return the factors ``[shot, receiver, time]``."""
        nt = survey.data_shapes[channel][2]
        return _Window(
            _times_of("top", self.top, survey, channel),
            _times_of("bottom", self.bottom, survey, channel),
            self.taper,
            torch.arange(nt, device=survey.device).double() * survey.resolved.dt,
            survey.dtype,
        )


@dataclass(frozen=True)
class _Window:
    """Factors of a window in time, in seconds."""

    top: Tensor | None  # [shot or 1, receiver or 1, 1]
    bottom: Tensor | None  # as top
    taper: float
    time: Tensor  # of each sample
    dtype: torch.dtype

    def __call__(self, shots: Shots) -> Tensor:
        factor = torch.ones_like(self.time, dtype=self.dtype)
        if self.top is not None:
            top = _rows(self.top, shots)
            factor = factor * ramp(self.time, top, self.taper, self.dtype)
        if self.bottom is not None:
            bottom = _rows(self.bottom, shots)
            factor = factor * ramp(-self.time, -bottom, self.taper, self.dtype)
        return factor


@dataclass(frozen=True)
class OffsetLimits(_Factors):
    """Keeps traces whose offset lies between two limits.

    Offsets are those of ``Survey.offsets``. With ``taper`` the factor rises from 0 at
    ``nearest`` to 1 at ``nearest + taper``, and falls from 1 at ``farthest − taper`` to 0
    at ``farthest``, as half a period of a cosine.

    Args:
        nearest: Metres. Default no limit.
        farthest: Metres. Default no limit.
        taper: Length of the ramps, metres. Default 0, traces are kept or zeroed.

    Raises:
        TypeError: If they are no numbers.
        ValueError: If there is no limit, they are negative or in another order, or two
            ramps do not fit between them.
    """

    nearest: float | None = None
    farthest: float | None = None
    taper: float = 0.0

    name = "offset limits"

    def __post_init__(self) -> None:
        if self.nearest is None and self.farthest is None:
            raise ValueError("offset limits need one; give nearest=, farthest= or both")
        near, far = self.nearest, self.farthest
        if near is not None:
            near = checks.number("nearest", near, least=0.0, below=math.inf)
        if far is not None:
            far = checks.number("farthest", far, above=0.0, below=math.inf)
        if near is not None and far is not None and not near < far:
            raise ValueError(
                f"nearest is {near:g} m and farthest {far:g} m; it must be farther"
            )
        taper = checks.number("taper", self.taper, least=0.0, below=math.inf)
        checks.put(self, nearest=near, farthest=far, taper=taper)
        if near is not None and far is not None:
            _check_ramps("range of offsets", far - near, taper, "m")

    def factors(self, survey: Survey, channel: str) -> Callable[[Shots], Tensor]:
        """Return the factors ``[shot, receiver, 1]``."""
        offsets = survey.offsets()[channel]
        factor = torch.ones_like(offsets)
        if self.nearest is not None:
            factor = factor * ramp(offsets, self.nearest, self.taper)
        if self.farthest is not None:
            factor = factor * ramp(-offsets, -self.farthest, self.taper)
        return _Rows(factor.unsqueeze(-1).to(survey.device, survey.dtype))


@dataclass(frozen=True, eq=False)
class RecordedSamples(_Factors):
    """Zeroes what was not recorded, in simulated data as they are zero in observed.

    A filter that follows then has the same ends of records on both sides. A misfit with
    zero ``sample_weights`` puts this before its first filter by itself.

    Args:
        recorded: Zero for samples that were not recorded, ``[time]`` or ``[shot,
            receiver, time]``, such as ``SurveyData.sample_weights``; one tensor or one by
            channel, whose other channels are left as they are.

    Raises:
        TypeError: If it is no tensor, or no mapping of tensors.
        ValueError: When it meets the survey, for shapes or channels that do not fit.
    """

    recorded: Tensor | Mapping[str, Tensor]

    name = "mask of recorded samples"

    def __post_init__(self) -> None:
        for part in self._parts():
            checks.instance("recorded", part, Tensor, "pass a tensor, or one by channel")

    def _parts(self) -> list[Tensor]:
        given = self.recorded
        return [*given.values()] if isinstance(given, Mapping) else [given]

    @property
    def same_for_every_shot(self) -> bool:
        """True for masks ``[time]``."""
        return all(part.ndim == 1 or len(part) == 1 for part in self._parts())

    def factors(self, survey: Survey, channel: str) -> Callable[[Shots], Tensor]:
        """Return the factors ``[shot or 1, receiver or 1, time]``."""
        mask, (shots, receivers, nt) = self.recorded, survey.data_shapes[channel]
        if isinstance(mask, Mapping):
            if unknown := set(mask) - set(survey.data_shapes):
                raise ValueError(
                    f"recorded has channels {sorted(map(str, unknown))}; the survey "
                    f"records {list(survey.data_shapes)}"
                )
            mask = mask.get(channel, torch.ones(nt))
        part = mask[None, None] if mask.ndim == 1 else mask
        fits = part.ndim == 3 and all(
            n in (1, of) for n, of in zip(part.shape[:2], (shots, receivers), strict=True)
        )
        if not fits or part.shape[2] != nt:
            raise ValueError(
                f"recorded has shape {tuple(mask.shape)} for channel {channel!r}; "
                f"expected ({nt},) or ({shots}, {receivers}, {nt})"
            )
        return _Rows((part != 0).to(survey.device, survey.dtype))

    def of_rows(self, rows: Sequence[int]) -> Apply:
        """Return how masks ``[shot or 1, receiver or 1, time]`` act on numbered rows."""
        factors: dict[str, Callable[[Shots], Tensor]] = {}
        assert isinstance(self.recorded, Mapping)
        for channel, mask in self.recorded.items():
            if len(mask) > 1:
                whole = torch.ones_like(mask[:1]).repeat(max(rows) + 1, 1, 1)
                whole[list(rows)] = mask
                mask = whole
            factors[channel] = _Rows(mask)
        return _Multiply(factors)


@dataclass(frozen=True)
class CosineTaper(_Factors):
    """Tapers the ends of records in time, and the ends of the spread over traces.

    Factors rise as half a period of a cosine: in time from 0 at the first sample (and to
    0 at the last), over traces so that none is zero.

    Args:
        start: Length at the start of the record, seconds. Default 0.
        end: Length at its end, seconds. Default 0.
        first: Traces at the start of the spread, in the receivers' order. Default 0.
        last: Traces at its end. Default 0.

    Raises:
        TypeError: If they are no numbers.
        ValueError: If one is negative, all are zero, or a number of traces has a
            fraction; when it meets the survey, if the two ramps do not fit beside each
            other.
    """

    start: float = 0.0
    end: float = 0.0
    first: int = 0
    last: int = 0

    name = "cosine taper"

    def __post_init__(self) -> None:
        checks.put(
            self,
            start=checks.number("start", self.start, least=0.0, below=math.inf),
            end=checks.number("end", self.end, least=0.0, below=math.inf),
            first=checks.integer("first", self.first, least=0),
            last=checks.integer("last", self.last, least=0),
        )
        if not any((self.start, self.end, self.first, self.last)):
            raise ValueError(
                "a cosine taper needs a length; give start= or end= in seconds, first= "
                "or last= in traces"
            )

    @property
    def same_for_every_shot(self) -> bool:
        """True, since one taper serves every shot."""
        return True

    def factors(self, survey: Survey, channel: str) -> Callable[[Shots], Tensor]:
        """Return the factors ``[1, receiver, time]``."""
        _, receivers, nt = survey.data_shapes[channel]
        duration = (nt - 1) * survey.resolved.dt
        if self.start + self.end > duration:
            raise ValueError(
                f"tapers of {self.start:g} s and {self.end:g} s do not fit in a record "
                f"of {duration:g} s; lengths are in seconds"
            )
        if self.first + self.last > receivers:
            raise ValueError(
                f"tapers of {self.first} and {self.last} traces do not fit in "
                f"{receivers} receivers of channel {channel!r}"
            )
        time = torch.arange(nt).double() * survey.resolved.dt
        place = torch.arange(1, receivers + 1).double()
        in_time = torch.ones_like(time)
        if self.start:
            in_time = in_time * ramp(time, 0.0, self.start)
        if self.end:
            in_time = in_time * ramp(-time, -duration, self.end)
        over_traces = ramp(place, 0.0, self.first + 1) * ramp(
            -place, -(receivers + 1.0), self.last + 1
        )
        factor = over_traces[:, None] * in_time
        return _Rows(factor[None].to(survey.device, survey.dtype))


@dataclass(frozen=True)
class _Rows:
    """Factors that are kept, ``[shot or 1, receiver, time or 1]``."""

    factor: Tensor

    def __call__(self, shots: Shots) -> Tensor:
        return _rows(self.factor, shots)


def ramp(
    place: Tensor,
    start: Tensor | float,
    length: float,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return factors from 0 at a start to 1 at start + length: half a cosine's period."""
    # Places and start are float64, which decides on which side a place is; the start may
    # be infinite. Of length 0 the factor is 1 from the start on.
    if length == 0:
        return (place >= start).to(dtype)
    begin = torch.as_tensor(start, dtype=place.dtype, device=place.device) / length
    # in place: this may be as large as the data
    part = ((place / length).to(dtype) - begin.to(dtype)).clamp_(0, 1)
    return part.mul_(math.pi).cos_().sub_(1).mul_(-0.5)


def _rows(tensor: Tensor, shots: Shots) -> Tensor:
    """Return the rows of some shots; the only one where there is one for all."""
    return tensor if len(tensor) == 1 else take(tensor, shots)


def _check_ramps(what: str, length: float, taper: float, unit: str) -> None:
    if length < 2.0 * taper:
        raise ValueError(
            f"two tapers of {taper:g} {unit} do not fit in a {what} of {length:g} "
            f"{unit}: shorten taper="
        )


def _check_times(name: str, times: Any) -> None:
    if times is None or isinstance(times, LinearMoveout):
        return
    if not isinstance(times, Tensor):
        if not checks.is_number(times):
            raise TypeError(
                f"{name} of the mute is {checks.kind(times)}; give seconds as a number, "
                "a tensor [receiver] or [shot, receiver], or a LinearMoveout"
            )
        checks.number(name, times, below=math.inf)
        return
    if not times.is_floating_point():
        raise TypeError(
            f"{name} of the mute is a tensor of {times.dtype}; give seconds, in floating "
            "point"
        )
    if bool(torch.isnan(times).any()):
        raise ValueError(
            f"{name} of the mute has {int(torch.isnan(times).sum())} NaN; give inf or "
            "-inf where a trace is to be muted or left whole"
        )


def _times_of(name: str, times: Any, survey: Survey, channel: str) -> Tensor | None:
    """Return times ``[shot or 1, receiver or 1, 1]`` in float64, or None for no mute."""
    if isinstance(times, Mapping):
        times = times.get(channel)
    if times is None:
        return None
    if isinstance(times, LinearMoveout):
        offsets = survey.offsets()[channel]
        return (times.time + offsets / times.velocity).unsqueeze(-1)
    if not isinstance(times, Tensor):
        return torch.tensor([[[float(times)]]], dtype=torch.float64, device=survey.device)
    shots, receivers, _ = survey.data_shapes[channel]
    if times.shape not in ((), (receivers,), (shots, receivers)):
        raise ValueError(
            f"{name} of the mute has shape {tuple(times.shape)} for channel {channel!r}; "
            f"expected ({receivers},) or ({shots}, {receivers}): [receiver] or [shot, "
            "receiver]"
        )
    rows = times.detach().to(survey.device, torch.float64).unsqueeze(-1)
    return rows.reshape(1, -1, 1) if times.ndim < 2 else rows
