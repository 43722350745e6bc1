"""Misfits of whole traces, functions of the caller's, and the misfit of a name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.fwi.data.data_misfits import L2, Constants, DataMisfit, Huber
from hvpopt.fwi.survey.acquisition import Shots
from hvpopt.fwi.survey.survey import Data


class NormalisedCorrelation(DataMisfit):
    """One minus the cosine between simulated and observed trace, mean over traces.

    Independent of each trace's amplitude (Choi and Alkhalifah, Geophysical Prospecting
    60, 2012). Equal to ``deepwave.misfits.normalised_cross_correlation``; not convex in
    the data. Since it is ``½ ‖d/‖d‖ − o/‖o‖‖²``, Gauss-Newton takes the curvature of that
    square. A trace that is exactly zero counts 1 and has no derivative.
    """

    name = "normalised correlation"
    adds = True
    reads_only = True

    def of_shots(
        self, simulated: Data, observed: Data, shots: Shots, constants: Constants
    ) -> Tensor:
        """Return the shots' part of the mean."""
        del shots
        parts = [
            (1 - (_unit(d) * _unit(observed[c])).sum(-1)).sum()
            for c, d in simulated.items()
        ]
        return torch.stack(parts).sum() / constants["traces"]

    def residual(
        self, simulated: Data, observed: Data, shots: Shots, constants: Constants
    ) -> list[Tensor]:
        """Return the differences of unit traces."""
        del shots
        scale = (2 * constants["traces"]) ** -0.5
        return [(_unit(d) - _unit(observed[c])) * scale for c, d in simulated.items()]


class Envelope(DataMisfit):
    """The mean squared difference of Hilbert envelopes, less prone to cycle skipping.

    ``e = √(d² + H(d)² + ε²)`` (Bozdağ, Trampert and Tromp, Geophysical Journal
    International 185, 2011). For ε → 0 that is ``deepwave.misfits.envelope``, whose
    second derivative grows like 1/e where a trace is silent; ε bounds it. Not convex in
    the data; Gauss-Newton takes the curvature of the squared difference.

    Args:
        damping: ε over the largest amplitude of the observed channel. Default 1e-3.

    Raises:
        ValueError: If ``damping`` is not positive, or a channel that it needs is zero.
    """

    name = "envelope"
    adds = True
    reads_only = True

    def __init__(self, damping: float = 1e-3) -> None:
        self._damping = checks.number("damping", damping, above=0.0, below=math.inf)

    def constants(self, observed: Data) -> Constants:
        """Return the number of samples, and ε of each channel."""
        found = dict(super().constants(observed))
        for channel, data in observed.items():
            largest = float(data.abs().max())
            if largest == 0:
                raise ValueError(f"the observed data of channel {channel!r} are zero")
            found[f"damping {channel}"] = self._damping * largest
        return found

    def merged(self, constants: Sequence[Constants]) -> Constants:
        """Return the number of all samples, and the largest ε of each channel."""
        counts = super().merged(constants)
        largest = {n: max(some[n] for some in constants) for n in counts}
        return {n: largest[n] if n.startswith("damping") else counts[n] for n in counts}

    def of_shots(
        self, simulated: Data, observed: Data, shots: Shots, constants: Constants
    ) -> Tensor:
        """Return the shots' part of the mean."""
        differences = self.residual(simulated, observed, shots, constants)
        return torch.stack([p.square().sum() for p in differences]).sum()

    def residual(
        self, simulated: Data, observed: Data, shots: Shots, constants: Constants
    ) -> list[Tensor]:
        """Return the differences of envelopes."""
        del shots
        differences = []
        for c, d in simulated.items():
            damping = constants[f"damping {c}"]
            difference = _envelope(d, damping) - _envelope(observed[c], damping)
            differences.append(difference * constants["samples"] ** -0.5)
        return differences


class FunctionMisfit(DataMisfit):
    """A function of the caller's as a misfit.

    Args:
        function: ``function(simulated, observed)`` returns a torch scalar that adds over
            shots. It is given tensors ``[shot, receiver, time]`` where the survey has one
            receiver channel, dicts of them by channel otherwise. If it takes a third
            argument, one named ``shots`` or one without a default, that is a list of the
            shots that the rows are: their numbers in the survey of the first misfit.
        name: For reports. Default the function's own name.

    Raises:
        TypeError: If it cannot be called.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        *,
        name: str | None = None,
    ) -> None:
        if not callable(function):
            raise TypeError(f"the misfit is {checks.shown(function)}, not a function")
        self._function = function
        self._takes_shots = _takes_shots(function)
        self.name = name or str(getattr(function, "__name__", type(function).__name__))

    def of_shots(
        self, simulated: Data, observed: Data, shots: Shots, constants: Constants
    ) -> Tensor:
        """Return the function's value, or raise ValueError if it is no torch scalar."""
        del constants
        given: list[Any] = [simulated, observed]
        if len(simulated) == 1:
            given = [data[channel] for data in given for channel in data]
        if self._takes_shots:
            rows = len(next(iter(simulated.values())))
            told = list(range(rows)) if shots is None else list(shots)
            if self._takes_shots == "named":
                value = self._function(*given, shots=told)
            else:
                value = self._function(*given, told)
        else:
            value = self._function(*given)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError(
                f"the misfit {self.name!r} returned "
                f"{getattr(value, 'shape', type(value).__name__)}; it must return a "
                "torch scalar, summed over shots"
            )
        return value.reshape(())


class DeepwaveMisfit(DataMisfit):
    """One of ``deepwave.misfits``, as a mean over all traces of all shots and channels.

    Args:
        function: ``deepwave.misfits.l2``, ``envelope`` or
            ``normalised_cross_correlation``. Second derivatives of ``envelope`` are not
            finite where a trace is silent; prefer ``Envelope``.

    Raises:
        TypeError: If it cannot be called.
    """

    adds = True
    reads_only = True

    def __init__(self, function: Callable[..., Tensor]) -> None:
        if not callable(function):
            raise TypeError(f"the misfit is {checks.shown(function)}, not a function")
        self._function = function
        self.name = f"deepwave {function.__name__}"

    def of_shots(
        self, simulated: Data, observed: Data, shots: Shots, constants: Constants
    ) -> Tensor:
        """Return the shots' part of the mean."""
        del shots
        parts = [
            self._function(d, observed[c], reduction="sum") for c, d in simulated.items()
        ]
        return torch.stack(parts).sum() / constants["traces"]


#: What ``WaveformMisfit(misfit=...)`` takes by name.
NAMED: dict[str, Callable[[], DataMisfit]] = {
    "l2": L2,
    "huber": Huber,
    "envelope": Envelope,
    "normalised-correlation": NormalisedCorrelation,
}


def as_data_misfit(misfit: Any) -> DataMisfit:
    """Return the data misfit that a caller means, by name, function or itself."""
    if isinstance(misfit, DataMisfit):
        return misfit
    if isinstance(misfit, str):
        if misfit not in NAMED:
            raise ValueError(
                f"misfit is {misfit!r}; there is {', '.join(map(repr, NAMED))}, or pass "
                "a function of (simulated, observed) that sums over shots"
            )
        return NAMED[misfit]()
    if isinstance(misfit, type) and issubclass(misfit, (DataMisfit, torch.nn.Module)):
        raise TypeError(
            f"misfit is {checks.kind(misfit)}; pass an instance, {misfit.__name__}()"
        )
    if getattr(misfit, "__module__", None) == "deepwave.misfits":
        return DeepwaveMisfit(misfit)
    return FunctionMisfit(misfit)


def _takes_shots(function: Callable[..., Any]) -> str:
    """Return how a misfit function is told shots: "named", "third", or "" for not."""
    # a module's own signature is that of any module
    called = function.forward if isinstance(function, torch.nn.Module) else function
    try:
        parameters = inspect.signature(called).parameters
    except (TypeError, ValueError):  # of a builtin
        return ""
    named = parameters.get("shots")
    by_place = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    if named is not None and named.kind in by_name:
        return "named"
    third = list(parameters.values())[2:3]
    needed = any(p.kind in by_place and p.default is p.empty for p in third)
    return "third" if needed else ""


def _unit(traces: Tensor) -> Tensor:
    """Return traces of length 1; those that are exactly zero stay zero."""
    # a constant factor drops out of d/‖d‖, and keeps small amplitudes from underflow
    largest = traces.detach().abs().amax(-1, keepdim=True)
    scaled = traces / torch.where(largest > 0, largest, torch.ones_like(largest))
    square = scaled.square().sum(-1, keepdim=True)
    return scaled / torch.where(largest > 0, square, torch.ones_like(square)).sqrt()


def _envelope(traces: Tensor, damping: float) -> Tensor:
    nt = traces.shape[-1]
    # analytic signal: positive frequencies doubled, negative ones dropped (Marple 1999)
    weight = torch.zeros(nt, dtype=traces.dtype, device=traces.device)
    weight[0] = 1
    weight[1 : (nt + 1) // 2] = 2
    if nt % 2 == 0:
        weight[nt // 2] = 1
    analytic = torch.fft.ifft(torch.fft.fft(traces) * weight)
    square = analytic.real.square() + analytic.imag.square()
    return torch.sqrt(square + damping**2)
