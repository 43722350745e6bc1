"""Survey: one acquisition over any deepwave propagator, with its time step resolved."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import deepwave
import numpy as np
import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.fwi.survey._options import (
    bare_faces,
    check_channels,
    check_options,
    check_shots_and_dimensions,
    check_units,
    describe,
    fit_samples,
    pml_widths,
    samples_of,
    silence,
    spacing_of,
)
from hvpopt.fwi.survey.acquisition import (
    Acquisition,
    Shots,
    parse_receivers,
    parse_sources,
)
from hvpopt.fwi.survey.physics import (
    arrange_models,
    born_twin,
    check_models,
    find_propagator,
)
from hvpopt.fwi.survey.timestep import TimeStep, resolve_time_step
from hvpopt.model.tensors import Model

#: Recordings by receiver channel, each ``[shot, receiver, time]``.
Data: TypeAlias = "dict[str, Tensor]"

_RESAMPLING = ("courant_number", "freq_taper_frac", "time_pad_frac", "time_taper")


@dataclass(frozen=True)
class _Setting:
    """What all shots of a survey share."""

    propagator: str
    n_dimensions: int
    spacing: list[float]  # cell size in each dimension, metres
    resolved: TimeStep  # the time step
    max_vel: float
    pml_freq: float
    options: dict[str, Any]  # of deepwave, without those that have a row for each shot


#: The golden ratio's fraction, in units of 2⁻⁶⁴.
GOLDEN = 11400714819323198485


class Survey:
    """Sources, receivers, grid and time of one acquisition.

    It holds no model and keeps no state between calls. ``max_vel`` and ``pml_freq`` are
    pinned, so that neither the time step nor the absorbing boundary follows the model.
    The time step is resolved here: where ``dt`` is above the CFL limit, wavelets are
    resampled once, waves run at the inner step, and recordings come back at ``dt``.

    Args:
        propagator: ``"scalar"``, ``"acoustic"``, ``"elastic"``, or another of deepwave's
            (which have second order on its eager backend only).
        grid_spacing: Cell size, metres; one number or one per dimension.
        dt: Sampling interval of wavelets and data, seconds.
        sources: Channel to ``(amplitudes [shot, source, time], locations [shot, source,
            dimension])``, with a Boolean mask ``[shot, source]`` as an optional third.
            Locations are cell indices: integers, off-grid floats (interpolated anew in
            each call, slowly), or a ``deepwave.Hicks`` (whose weights are taken once).
        receivers: Channel to locations, or to ``(locations, mask)``.
        max_vel: The fastest wave speed that a model may have, metres per second.
        pml_freq: The absorbing boundary's dominant frequency, hertz.
        nt: Samples to record. Default the wavelets' length; shorter wavelets are padded
            with zeros, longer ones cut.
        **options: Any other option of the deepwave propagator (``pml_width``,
            ``boundary``, ``accuracy``, ``checkpoint_segments``, ``storage_mode``, …).
            With ``survey_pad`` deepwave cuts the region of the shots that run together,
            so results then depend on the groups.

    Attributes:
        propagator: Its name.
        model_names: The models that it takes, in order.
        n_dimensions: Of the model.
        n_shots: Number of shots.
        resolved: The time step (``inner_dt``, ``step_ratio``, ``nt``, …).
        info: What was resolved, as sentences.

    Raises:
        TypeError: For sources of the wrong type, or an option that deepwave lacks.
        ValueError: For an unknown propagator or channel, no source, receiver or shot,
            shapes that do not fit, or a ``dt`` or ``max_vel`` that is not positive.

    Example:
        >>> import torch
        >>> from hvpopt import fwi
        >>> survey = fwi.Survey(
        ...     "scalar", grid_spacing=10.0, dt=0.001, max_vel=2000.0, pml_freq=20.0,
        ...     sources={"u": (torch.ones(1, 1, 40), torch.tensor([[[2, 2]]]))},
        ...     receivers={"u": torch.tensor([[[2, 7], [2, 8]]])}, pml_width=4)
        >>> survey.simulate(torch.full((6, 10), 1600.0)).shape  # shot, receiver, time
        torch.Size([1, 2, 40])
    """

    def __init__(
        self,
        propagator: str,
        *,
        grid_spacing: float | Sequence[float],
        dt: float,
        sources: Mapping[str, Any],
        receivers: Mapping[str, Any],
        max_vel: float,
        pml_freq: float,
        nt: int | None = None,
        **options: Any,
    ) -> None:
        forward = find_propagator(checks.text("propagator", propagator))
        options = check_options(forward, options)
        parsed = parse_sources(sources)
        points = parse_receivers(receivers)
        n_dimensions = check_shots_and_dimensions(parsed, points)
        spec = deepwave.spec(propagator)
        if n_dimensions not in spec.ndims:
            raise ValueError(
                f"locations have {n_dimensions} coordinates; {propagator} runs in "
                f"{', '.join(map(str, spec.ndims))} dimensions"
            )
        check_channels("source", parsed, spec.source_channels(n_dimensions))
        check_channels("receiver", points, spec.receiver_channels(n_dimensions))
        amplitudes = next(iter(parsed.values()))[0]
        # as models of this dtype hold it: one at its stated bound is not above it
        fastest = float(checks.number("max_vel", max_vel, above=0.0, below=math.inf))
        fastest = max(fastest, float(torch.tensor(fastest, dtype=amplitudes.dtype)))
        pml_freq = float(checks.number("pml_freq", pml_freq, above=0.0, below=math.inf))
        spacing = spacing_of(grid_spacing, n_dimensions)
        dt = float(checks.number("dt", dt, above=0.0, below=math.inf))
        check_units(spacing, dt, fastest)
        resolved = resolve_time_step(
            spacing,
            dt,
            samples_of((a for a, _ in parsed.values()), nt),
            fastest,
            **{name: options[name] for name in _RESAMPLING if name in options},
        )
        wavefields = {n: value for n, value in options.items() if _per_shot(n, value)}
        shared = {n: value for n, value in options.items() if n not in wavefields}
        self._set_up(
            _Setting(
                propagator, n_dimensions, spacing, resolved, fastest, pml_freq, shared
            ),
            Acquisition(
                {
                    channel: (resolved.refine(fit_samples(a, resolved.nt)), where)
                    for channel, (a, where) in parsed.items()
                },
                points,
                wavefields,
            ),
        )

    def _set_up(self, setting: _Setting, acquisition: Acquisition) -> None:
        self._setting, self._acquisition = setting, acquisition
        self.propagator = setting.propagator
        self.n_dimensions, self.n_shots = setting.n_dimensions, acquisition.n_shots
        self.resolved = setting.resolved
        self.max_vel, self.pml_freq = setting.max_vel, setting.pml_freq
        self.model_names = tuple(
            deepwave.spec(self.propagator).model_names(self.n_dimensions)
        )
        self.info = describe(
            f"{self.propagator}, {self.n_dimensions}-D, {self.n_shots} "
            f"shot{'s' if self.n_shots > 1 else ''}",
            self.resolved,
            self.max_vel,
            self.pml_freq,
            self.n_dimensions,
            setting.options,
        )

    @classmethod
    def _of(cls, setting: _Setting, acquisition: Acquisition) -> Survey:
        survey = cls.__new__(cls)
        survey._set_up(setting, acquisition)
        return survey

    # -- surveys made of it -----------------------------------------------------

    def select(self, shots: Sequence[int]) -> Survey:
        """Return the survey of some shots.

        Args:
            shots: Indices, each once; the new survey's shots in that order.

        Returns:
            A survey with everything else as here; consecutive shots share its memory.

        Raises:
            TypeError: If they are no integers in a sequence.
            ValueError: If there is none, one repeats, or one is not in the survey.
        """
        indices = _indices(shots, self.n_shots)
        return self._of(self._setting, self._acquisition.select(indices))

    def encode(self, codes: Tensor) -> Survey:
        """Return a survey whose shots fire all of this one's sources, with factors.

        Args:
            codes: Factor of each shot in each encoded one, ``[encoded shot, shot]``, at
                most as many rows as there are shots.

        Returns:
            A survey of as many shots as codes have rows; recordings are linear in the
            sources, so each is the coded sum of this survey's.

        Raises:
            TypeError: For codes that are no tensor.
            ValueError: For codes of another shape or that are not finite, receivers that
                differ from shot to shot, or initial wavefields.
        """
        checks.instance("codes", codes, Tensor, "pass a tensor [encoded shot, shot]")
        fits = codes.ndim == 2 and codes.shape[1] == self.n_shots
        if not fits or not 1 <= len(codes) <= self.n_shots:
            raise ValueError(
                f"codes have shape {tuple(codes.shape)}; expected [1 to {self.n_shots}, "
                f"{self.n_shots}]"
            )
        if not bool(torch.isfinite(codes).all()):
            raise ValueError("codes have NaN or infinite entries")
        if obstacle := self.why_not_encoded():
            raise ValueError(f"sources cannot be encoded: {obstacle}")
        return self._of(self._setting, self._acquisition.encode(codes))

    def draw(self, n_shots: int, *, seed: int = 0) -> list[int]:
        """Return indices of some shots, spread evenly along the line.

        Systematic sampling (Cochran, Sampling Techniques, 1977, ch. 8): shots at equal
        steps along the axis on which the sources lie widest. The first one follows from
        the seed by multiples of the golden ratio, so that over any run of seeds every
        shot is drawn about equally often, ``n_shots`` of all times (Weyl's sequence).

        Args:
            n_shots: How many, none twice.
            seed: Of the first one. Consecutive seeds draw shots far from each other.

        Raises:
            ValueError: If there are not so many.
        """
        n_shots = checks.integer("n_shots", n_shots, least=1, most=self.n_shots)
        # in integers, since the product with a large seed would round its fraction away
        first = checks.integer("seed", seed, least=0) * GOLDEN % 2**64 / 2**64
        step, line = self.n_shots / n_shots, self._acquisition.line()
        # rounding may reach the end of the last step
        places = (int((first + k) * step) for k in range(n_shots))
        return sorted(line[min(place, self.n_shots - 1)] for place in places)

    def why_not_encoded(self) -> str:
        """Return why shots cannot be encoded, a clause; empty where they can."""
        if not self.fixed_spread:
            return "the receivers differ from shot to shot"
        if self._acquisition.wavefields:
            return "shots begin with wavefields of their own"
        return ""

    def to(
        self, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Survey:
        """Return the same survey with wavelets of another dtype or on another device."""
        if dtype is not None:
            checks.floating("dtype", dtype)
        # "cuda" as tensors call it, "cuda:0"
        to = self.device if device is None else torch.empty(0, device=device).device
        moved = self._acquisition.to(dtype or self.dtype, to)
        return self._of(self._setting, moved)

    # -- what it records --------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the wavelets; models and data must have the same."""
        return self._acquisition.amplitudes.dtype

    @property
    def device(self) -> torch.device:
        """Device of the wavelets; models and data must be there."""
        return self._acquisition.amplitudes.device

    @property
    def data_shapes(self) -> dict[str, tuple[int, int, int]]:
        """``(shots, receivers, samples)`` of each receiver channel."""
        return {
            channel: (self.n_shots, points.n_points, self.resolved.nt)
            for channel, points in self._acquisition.receivers.items()
        }

    def offsets(self) -> dict[str, Tensor]:
        """Return offsets by receiver channel, ``[shot, receiver]``, metres, float64.

        Distances in all dimensions from the mean place of a shot's active sources (of
        its first source channel) to each receiver. Those of receivers without a place
        are meaningless.
        """
        return self._acquisition.offsets(self._setting.spacing)

    @property
    def fixed_spread(self) -> bool:
        """True if every shot has the same receivers."""
        return all(points.alike for points in self._acquisition.receivers.values())

    def history_bytes(self, models: Sequence[Tensor]) -> int:
        """Return about what the wavefield histories of one shot's product take, bytes.

        Two numbers of each model's size, boundary included, at every inner step. Deepwave
        allocates somewhat more, and less with ``checkpoint_segments``.

        Args:
            models: The propagator's.
        """
        widths = pml_widths(self._setting.options, self.n_dimensions)
        cells = math.prod(
            n + before + after
            for n, before, after in zip(
                models[0].shape[-self.n_dimensions :],
                widths[::2],
                widths[1::2],
                strict=True,
            )
        )
        numbers = 2 * len(models) * cells * self.resolved.inner_nt
        return numbers * models[0].element_size()

    @property
    def options(self) -> dict[str, Any]:
        """The deepwave options that every call is given; a copy."""
        return {**self._setting.options, **self._acquisition.wavefields}

    # -- waves ------------------------------------------------------------------

    def simulate(self, model: Model, shots: Shots = None) -> Tensor | Data:
        """Return the recordings of a model; differentiable where it requires gradients.

        Args:
            model: The propagator's models: one tensor, a tuple in the propagator's
                order, or a dict by its names.
            shots: Indices of the shots to run, in order. Default all.

        Returns:
            ``[shot, receiver, time]`` at ``dt`` for one receiver channel, else a dict
            of them by channel.

        Raises:
            ValueError: For a model that does not fit or is not physical, or sources or
                receivers outside it.
        """
        models = self.arrange(model)
        self.check(models)
        if shots is not None:
            shots = _indices(shots, self.n_shots)
        data = self.propagate(models, shots)
        return next(iter(data.values())) if len(data) == 1 else data

    def propagate(
        self, models: Sequence[Tensor], shots: Shots = None, **overrides: Any
    ) -> Data:
        """Return recordings by channel; the models are taken as checked.

        Args:
            models: In the propagator's order.
            shots: Indices of the shots to run. Default all.
            **overrides: Deepwave options for this call.

        Returns:
            ``[shot, receiver, time]`` at ``dt``, by channel.
        """
        forward = getattr(deepwave, self.propagator)
        out = forward(*models, **self.arguments(shots, **overrides))
        return self._recordings(out.receivers, shots)

    def propagate_born(
        self,
        models: Sequence[Tensor],
        perturbations: Sequence[Tensor],
        shots: Shots = None,
    ) -> tuple[Data, Data, list[Tensor]]:
        """Return recordings and their derivative along a perturbation, from one pass.

        Args:
            models: In the propagator's order.
            perturbations: One of each model, in the same order.
            shots: Indices of the shots to run. Default all.

        Returns:
            ``F(V)`` and ``F'(V) δV``, each by channel and at ``dt``, and the last
            wavefields, which belong to the same autograd node.
        """
        born = born_twin(self.propagator)
        assert born is not None
        out = born(*models, **self.born_arguments(perturbations, shots))
        recorded = [*out.bg_receivers.values(), *out.receivers.values()]
        fields = [
            field
            for part in out
            for field in ([part] if isinstance(part, Tensor) else part.values())
            if not any(field is traces for traces in recorded)
        ]
        return (
            self._recordings(out.bg_receivers, shots),
            self._recordings(out.receivers, shots),
            fields,
        )

    def born_arguments(
        self, perturbations: Sequence[Tensor], shots: Shots = None
    ) -> dict[str, Any]:
        """Return the keyword arguments of the Born propagator's call."""
        deltas = {
            f"d{n}": d for n, d in zip(self.model_names, perturbations, strict=True)
        }
        call = self.arguments(shots)
        # the Born twins lack it, and linearise deepwave's default
        if call.get("surface_method") == "ivm":
            del call["surface_method"]
        return {**call, "bg_receivers": call["receivers"], **deltas}

    # -- models -----------------------------------------------------------------

    def arrange(self, model: Model) -> tuple[Tensor, ...]:
        """Return a model's tensors in the propagator's order.

        Args:
            model: One tensor, a tuple in order, or a dict by the propagator's names.

        Returns:
            One tensor per model.

        Raises:
            TypeError: If it holds something that is no tensor.
            ValueError: If models are missing or unknown, or dimension, dtype or device
                do not fit the survey.
        """
        models = arrange_models(self.propagator, self.model_names, model)
        for name, tensor in zip(self.model_names, models, strict=True):
            if tensor.ndim != self.n_dimensions or tensor.shape != models[0].shape:
                raise ValueError(
                    f"model {name!r} has shape {tuple(tensor.shape)}; the survey is "
                    f"{self.n_dimensions}-D, and all models have one shape"
                )
            if tensor.dtype != self.dtype or tensor.device != self.device:
                raise ValueError(
                    f"model {name!r} is {tensor.dtype} on {tensor.device}, the survey's "
                    f"wavelets are {self.dtype} on {self.device}; convert the model, or "
                    "use survey.to(dtype=, device=)"
                )
        return models

    def check(self, models: Sequence[Tensor]) -> None:
        """Raise ValueError unless models are physical and hold all the points."""
        shape = models[0].shape
        for channel, (_, points) in self._acquisition.sources.items():
            points.check_inside(shape, f"source ({channel})")
        for channel, points in self._acquisition.receivers.items():
            points.check_inside(shape, f"receiver ({channel})")
        by_name = dict(zip(self.model_names, models, strict=True))
        check_models(self.propagator, by_name, self.max_vel)

    # -- inside -----------------------------------------------------------------

    def arguments(self, shots: Shots = None, **overrides: Any) -> dict[str, Any]:
        """Return the keyword arguments of the propagator's call.

        Args:
            shots: Indices of the shots to run. Default all.
            **overrides: Deepwave options that replace the survey's.
        """
        setting, acquisition = self._setting, self._acquisition.select(shots)
        if bare_faces(setting.options, self.n_dimensions):
            # The caller asked for a zero width by name. The filter matches warnings
            # attributed to this package alone, so the caller's own calls still warn.
            silence(deepwave.ZeroWidthFaceWarning)
        # Edge cells of a perturbation: what changed since deepwave 0.0.27.
        silence(deepwave.MigrationWarning)
        return {
            "grid_spacing": setting.spacing,
            "dt": self.resolved.inner_dt,
            "sources": {
                channel: (amplitudes, points.locations, points.mask)
                for channel, (amplitudes, points) in acquisition.sources.items()
            },
            "receivers": {
                channel: (points.locations, points.mask)
                for channel, points in acquisition.receivers.items()
            },
            "max_vel": self.max_vel,
            "pml_freq": self.pml_freq,
            **setting.options,
            **acquisition.wavefields,
            **overrides,
        }

    def _recordings(self, recorded: Mapping[str, Tensor], shots: Shots) -> Data:
        return {
            channel: self.resolved.coarsen(
                (points if shots is None else points.select(shots)).gather(
                    recorded[channel]
                )
            )
            for channel, points in self._acquisition.receivers.items()
        }

    def __repr__(self) -> str:
        return f"<Survey: {self.info}>"


def _per_shot(name: str, value: object) -> bool:
    """True for initial wavefields, which have a row for each shot."""
    return isinstance(value, Tensor) and name.endswith(("_0", "_m1"))


def _index(entry: Any) -> int | None:
    """Return an entry as a Python int, or None if it is no integer."""
    try:
        return None if isinstance(entry, (bool, np.bool_)) else operator.index(entry)
    except TypeError:
        return None


def _indices(shots: Any, n_shots: int) -> list[int]:
    """Return distinct indices of shots in the order given, as Python ints."""
    given = shots.tolist() if isinstance(shots, (Tensor, np.ndarray)) else shots
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise TypeError(
            f"shots are {checks.shown(shots)}; pass a sequence of indices, such as [0, 2]"
        )
    given, indices = list(given), []
    for entry in given:
        index = _index(entry)
        if index is None:
            raise TypeError(
                f"shots are {given}; {entry!r} is no index: pass integers from 0 to "
                f"{n_shots - 1}"
            )
        indices.append(index)
    if not indices or len(set(indices)) < len(indices):
        raise ValueError(f"shots are {given}; pass each index once, at least one")
    if min(indices) < 0 or max(indices) >= n_shots:
        raise ValueError(f"shots are {given}; the survey has shots 0 to {n_shots - 1}")
    return indices
