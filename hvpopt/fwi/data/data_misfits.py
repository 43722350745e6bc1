"""Misfits between simulated and observed data, and their derivatives in the data.

A data misfit is ``ℓ(d) = Σ over shots``. Whatever normalises it (a number of samples,
a largest amplitude) is taken once from all the observed data, so that a sum over groups
of shots does not depend on the groups.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.fwi.survey.acquisition import Shots, take
from hvpopt.fwi.survey.survey import Data
from hvpopt.model._copies import GraphCopies
from hvpopt.operators._autodiff import jvp, vjp
from hvpopt.problem.objective import Kind

#: What a misfit took from all the observed data, by name.
Constants: TypeAlias = Mapping[str, float]
#: Weights of the data: one tensor for every channel, or one for each.
Weights: TypeAlias = "Tensor | Mapping[str, Tensor] | None"


class DataMisfit(ABC):
    """A misfit in the data, twice differentiable, that adds over shots.

    A subclass supplies ``of_shots``; with ``residual`` it also has a Gauss-Newton
    curvature that is never negative, whether or not the misfit is convex. Its methods
    take simulated and observed data of the same shots, each a dict by receiver channel of
    tensors ``[shot, receiver, time]``.

    Attributes:
        name: For reports.
        adds: True if it is known to add over shots; otherwise that is tested.
        reads_only: True if it is known not to write to the data that it is given;
            otherwise it is given copies.
    """

    name: str = "misfit"
    adds: bool = False
    reads_only: bool = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: the misfit {self.name!r}>"

    @property
    def same_square_for_every_shot(self) -> bool:
        """True if ``ℓ`` is one quadratic of each shot's data; shots may then be mixed."""
        return False

    def constants(self, observed: Data) -> Constants:
        """Return what normalises the misfit.

        Args:
            observed: ``[shot, receiver, time]`` by channel, every shot.
        """
        return {
            "samples": float(sum(d.numel() for d in observed.values())),
            "traces": float(sum(d[..., 0].numel() for d in observed.values())),
        }

    def merged(self, constants: Sequence[Constants]) -> Constants:
        """Return the constants of all shots, of which several have some each.

        Default the sums. A subclass whose ``constants`` do not add up over shots
        overrides it, or ranks cannot share a survey out without loading all of its data.

        Args:
            constants: What ``constants`` returned for the shots of each.
        """
        return {name: sum(some[name] for some in constants) for name in constants[0]}

    @abstractmethod
    def of_shots(
        self, simulated: Data, observed: Data, shots: Shots, constants: Constants
    ) -> Tensor:
        """Return the part of ``ℓ`` that some shots contribute, a scalar.

        Args:
            simulated: The rows of ``shots``.
            observed: The rows of ``shots``.
            shots: Which shots of the whole survey the rows are; None for all.
            constants: What ``constants`` returned for all of them.
        """

    def evaluate(
        self, simulated: Data, observed: Data, shots: Shots, constants: Constants
    ) -> Tensor:
        """Return ``of_shots`` of data that stay as they are, whatever it does to them.

        The arguments are those of ``of_shots``.

        Raises:
            WrittenError: If it writes to simulated data where autograd cannot see it.
        """
        if self.reads_only:
            return self.of_shots(simulated, observed, shots, constants)
        given = GraphCopies(list(simulated.values()))
        value = self.of_shots(
            dict(zip(simulated, given.tensors, strict=True)),
            copied(observed),
            shots,
            constants,
        )
        given.check(
            (f"simulated {channel}" for channel in simulated),
            f"the misfit {self.name!r}",
            "change a copy (simulated = simulated.clone()) with gradients enabled",
        )
        return value

    def residual(
        self, simulated: Data, observed: Data, shots: Shots, constants: Constants
    ) -> list[Tensor] | None:
        """Return ρ with ``ℓ = Σ ρ²`` up to a constant, or None where there is none.

        The arguments are those of ``of_shots``.
        """
        del simulated, observed, shots, constants
        return None

    def take_residual(
        self, simulated: Data, observed: Data, shots: Shots, constants: Constants
    ) -> list[Tensor] | None:
        """Return ``residual`` of data that stay as they are.

        The arguments are those of ``of_shots``.
        """
        if not self.reads_only:
            simulated, observed = copied(simulated), copied(observed)
        return self.residual(simulated, observed, shots, constants)

    def derivatives(
        self,
        simulated: Data,
        perturbation: Data,
        observed: Data,
        shots: Shots,
        constants: Constants,
        kind: Kind,
    ) -> tuple[Data, Data]:
        """Return ``∇ℓ`` and its derivative along a perturbation of the data.

        Args:
            simulated: Where; the rows of ``shots``.
            perturbation: δd, shaped like ``simulated``.
            observed: The rows of ``shots``.
            shots: Which shots of the whole survey the rows are; None for all.
            constants: Of all the observed data.
            kind: ``"exact"`` for ``∇²ℓ δd``; ``"gauss-newton"`` for ``2 JᵀJ`` of
                the residual that is squared, where there is one.

        Returns:
            Two dicts by channel, without graph.
        """
        data = {c: d.detach().requires_grad_() for c, d in simulated.items()}
        leaves, steps = list(data.values()), [perturbation[c] for c in data]
        with torch.enable_grad():
            value = self.evaluate(data, observed, shots, constants)
            slopes = vjp([value], leaves, [torch.ones_like(value)], create_graph=True)
            residual = None
            if kind == "gauss-newton":
                residual = self.take_residual(data, observed, shots, constants)
            if residual is None:
                bends = vjp(slopes, leaves, steps)
            else:
                pushed = jvp(residual, leaves, steps)
                bends = vjp(residual, leaves, [2 * p for p in pushed])
        return (
            {c: s.detach() for c, s in zip(data, slopes, strict=True)},
            dict(zip(data, bends, strict=True)),
        )

    def take_constants(self, observed: Data) -> Constants:
        """Return ``constants`` of data that stay as they are.

        Args:
            observed: By channel, every shot.
        """
        return self.constants(observed if self.reads_only else copied(observed))

    def check(self, observed: Data) -> None:
        """Raise unless the misfit fits the data and adds over their shots.

        Args:
            observed: By channel, every shot.

        Raises:
            WrittenError: If it changes simulated data where autograd cannot see it.
            ValueError: If the misfit of all shots is not the sum of each one's.
        """
        self.check_writes(observed)
        self.check_adds(observed)

    def check_writes(self, observed: Data) -> None:
        """Raise WrittenError if it changes simulated data unseen by autograd."""
        if not self.reads_only:
            constants = self.take_constants(observed)
            first = _rows(observed, 0)
            simulated = {c: (2 * d).requires_grad_() for c, d in first.items()}
            with torch.enable_grad():
                self.evaluate(simulated, first, [0], constants)

    def check_adds(self, observed: Data) -> None:
        """Raise ValueError unless the misfit of all shots is the sum of each one's."""
        n_shots = len(next(iter(observed.values())))
        if self.adds or n_shots == 1:
            return
        constants = self.take_constants(observed)
        generator = torch.Generator().manual_seed(0)
        simulated = {}
        for channel, data in observed.items():
            size = float(data.abs().max()) or 1.0
            noise = torch.randn(data.shape, generator=generator, dtype=data.dtype)
            simulated[channel] = data + 0.1 * size * noise.to(data.device)
        with torch.no_grad():
            whole = float(self.evaluate(simulated, observed, None, constants))
            parts = [
                float(
                    self.evaluate(_rows(simulated, i), _rows(observed, i), [i], constants)
                )
                for i in range(n_shots)
            ]
        eps = max(torch.finfo(d.dtype).eps for d in observed.values())
        scale = max(abs(whole), sum(map(abs, parts)))
        if not abs(whole - sum(parts)) <= eps**0.5 * scale:
            raise ValueError(
                f"the misfit {self.name!r} does not add over shots: all {n_shots} at "
                f"once give {whole:g}, one by one they add up to {sum(parts):g}, so that "
                "results would depend on the groups; return a sum over shots "
                "(reduction='sum'), divided by a constant if it is to be a mean"
            )

    def check_merges(self, observed: Data) -> None:
        """Raise ValueError unless ``merged`` gives the constants of all these shots.

        Args:
            observed: By channel, some shots.

        Raises:
            ValueError: If it does not, with the names of those that differ.
        """
        n_shots = len(next(iter(observed.values())))
        own = type(self)
        if n_shots == 1 or own.constants is DataMisfit.constants:
            return
        first, rest = (
            self.take_constants({c: d[rows] for c, d in observed.items()})
            for rows in (slice(1), slice(1, None))
        )
        whole, merged = self.take_constants(observed), self.merged([first, rest])
        if differ := [n for n in whole if not math.isclose(whole[n], merged[n])]:
            raise ValueError(
                f"the misfit {self.name!r} has constants {differ} that do not add up "
                "over shots; give it a method merged(constants) that returns those of all"
            )

    def recorded(self, observed: Data, shots: Shots) -> Data:
        """Return 0 where a sample was not recorded, else 1.

        Args:
            observed: The rows of ``shots``.
            shots: Which they are. Default all.

        Returns:
            By channel, ``[shot or 1, receiver or 1, time]``.
        """
        return {c: torch.ones_like(d[:1, :1]) for c, d in observed.items()}


class _Weighted(DataMisfit):
    """A sum over samples, each with its weight, divided by their number."""

    adds = True
    reads_only = True

    def __init__(self, trace_weights: Weights, sample_weights: Weights) -> None:
        self._traces, self._samples = trace_weights, sample_weights

    def check(self, observed: Data) -> None:
        """Raise ValueError or TypeError unless the weights fit the data."""
        for weights in (self._traces, self._samples):
            if isinstance(weights, Mapping) and (unknown := set(weights) - set(observed)):
                raise ValueError(
                    f"weights are given for channels {sorted(map(str, unknown))}; the "
                    f"data have {list(observed)}"
                )
        for channel, data in observed.items():
            shots, receivers, samples = data.shape
            _check_weights("trace", self._traces, channel, [(shots, receivers)])
            _check_weights(
                "sample", self._samples, channel, [(samples,), tuple(data.shape)]
            )

    def recorded(self, observed: Data, shots: Shots) -> Data:
        """Return 0 where a sample has neither weight nor value, else 1."""
        found = {}
        for channel, data in observed.items():
            samples = _of_channel(self._samples, channel)
            if samples is None:
                found[channel] = torch.ones_like(data[:1, :1])
                continue
            weights = samples if samples.ndim == 1 else take(samples, shots)
            there = (weights != 0.0) | (data != 0.0)
            if samples.ndim == 1:  # of every shot alike
                there = there.any(0, keepdim=True).any(1, keepdim=True)
            found[channel] = there.to(data)
        return found

    def _factor(self, channel: str, shots: Shots) -> Tensor | float:
        """Return what multiplies each term, shaped to broadcast to the rows."""
        factor: Tensor | float = 1.0
        if (traces := _of_channel(self._traces, channel)) is not None:
            factor = take(traces, shots).unsqueeze(-1)
        if (samples := _of_channel(self._samples, channel)) is not None:
            factor = factor * (samples if samples.ndim == 1 else take(samples, shots))
        return factor


class L2(_Weighted):
    """The mean of weighted squares over all samples of all shots and channels.

    Without weights and with one channel, ``torch.nn.MSELoss()`` of the whole data.

    Args:
        trace_weights: Factors of the squares ``[shot, receiver]``, one tensor or one by
            channel; of the data's dtype and device. Default 1.
        sample_weights: Factors of the squares, ``[time]`` or ``[shot, receiver, time]``,
            one tensor or one by channel; of the data's dtype and device. Default 1.

    Raises:
        ValueError: When it meets the data, for weights that are negative or not finite,
            or do not fit them.
    """

    name = "l2"

    def __init__(
        self, *, trace_weights: Weights = None, sample_weights: Weights = None
    ) -> None:
        super().__init__(trace_weights, sample_weights)

    @property
    def same_square_for_every_shot(self) -> bool:
        """True unless weights differ from shot to shot."""
        return self._traces is None and self._samples is None

    def of_shots(
        self, simulated: Data, observed: Data, shots: Shots, constants: Constants
    ) -> Tensor:
        """Return the shots' part of the mean."""
        parts = [
            ((d - observed[c]).square() * self._factor(c, shots)).sum()
            for c, d in simulated.items()
        ]
        return torch.stack(parts).sum() / constants["samples"]

    def residual(
        self, simulated: Data, observed: Data, shots: Shots, constants: Constants
    ) -> list[Tensor]:
        """Return the weighted differences."""
        return [
            (d - observed[c]) * (self._factor(c, shots) / constants["samples"]) ** 0.5
            for c, d in simulated.items()
        ]


class Differences(DataMisfit):
    """The sum of squared differences: its residual's derivative is the data's own."""

    name = "differences"
    adds = True
    reads_only = True

    def of_shots(
        self, simulated: Data, observed: Data, shots: Shots, constants: Constants
    ) -> Tensor:
        """Return the shots' sum of squares."""
        differences = self.residual(simulated, observed, shots, constants)
        return torch.stack([d.square().sum() for d in differences]).sum()

    def residual(
        self, simulated: Data, observed: Data, shots: Shots, constants: Constants
    ) -> list[Tensor]:
        """Return the differences."""
        return [d - observed[c] for c, d in simulated.items()]


class Huber(_Weighted):
    """Squares near zero, absolute values far from it: robust to outliers.

    The smooth form ``2 δ² (√(1 + (r/δ)²) − 1)``, a mean like L2's and equal to it for
    ``|r| ≪ δ``; twice differentiable everywhere, which Huber's own is not (Hartley and
    Zisserman, Multiple View Geometry, 2nd ed., A6.8).

    Args:
        delta: Where squares turn into absolute values, in units of the data. Default the
            root mean square of all the observed data.
        trace_weights: Factors of the terms ``[shot, receiver]``, as of L2. Default 1.
        sample_weights: Factors of the terms, ``[time]`` or ``[shot, receiver, time]``, as
            of L2. Default 1.

    Raises:
        ValueError: If ``delta`` is not positive, or data that should give it are zero.
    """

    name = "huber"

    def __init__(
        self,
        delta: float | None = None,
        *,
        trace_weights: Weights = None,
        sample_weights: Weights = None,
    ) -> None:
        super().__init__(trace_weights, sample_weights)
        if delta is not None:
            delta = float(checks.number("delta", delta, above=0.0, below=math.inf))
        self._delta = delta

    def constants(self, observed: Data) -> Constants:
        """Return the number of samples and δ."""
        counts = super().constants(observed)
        if self._delta is not None:
            return {**counts, "delta": self._delta}
        energy = sum(float(d.double().square().sum()) for d in observed.values())
        if energy == 0:
            raise ValueError("the observed data are zero; give Huber its delta=")
        return {**counts, "delta": (energy / counts["samples"]) ** 0.5}

    def merged(self, constants: Sequence[Constants]) -> Constants:
        """Return the number of all samples, and their root mean square for δ."""
        counts = super().merged(constants)
        if self._delta is not None:
            return {**counts, "delta": self._delta}
        energy = sum(some["delta"] ** 2 * some["samples"] for some in constants)
        return {**counts, "delta": (energy / counts["samples"]) ** 0.5}

    def of_shots(
        self, simulated: Data, observed: Data, shots: Shots, constants: Constants
    ) -> Tensor:
        """Return the shots' part of the mean."""
        parts = []
        for c, d in simulated.items():
            square = ((d - observed[c]) / constants["delta"]).square()
            # √(1 + x²) − 1 without its cancellation for small x
            smooth = square / (1 + (1 + square).sqrt())
            parts.append((smooth * self._factor(c, shots)).sum())
        return torch.stack(parts).sum() * (
            2 * constants["delta"] ** 2 / constants["samples"]
        )


def copied(data: Data) -> Data:
    """Return copies, in the graph of the data."""
    return {channel: d.clone() for channel, d in data.items()}


def _rows(data: Data, shot: int) -> Data:
    return {channel: d[shot : shot + 1] for channel, d in data.items()}


def _of_channel(weights: Weights, channel: str) -> Tensor | None:
    return weights.get(channel) if isinstance(weights, Mapping) else weights


def _check_weights(
    kind: str, weights: Weights, channel: str, allowed: list[tuple[int, ...]]
) -> None:
    tensor = _of_channel(weights, channel)
    if tensor is None:
        return
    if not isinstance(tensor, Tensor) or tensor.is_complex():
        raise TypeError(
            f"{kind} weights of channel {channel!r} are {checks.shown(tensor)}; give a "
            "real torch.Tensor"
        )
    if tuple(tensor.shape) not in allowed:
        raise ValueError(
            f"{kind} weights of channel {channel!r} have shape {tuple(tensor.shape)}, "
            f"expected {' or '.join(map(str, allowed))}"
        )
    if not bool((torch.isfinite(tensor) & (tensor >= 0)).all()):
        raise ValueError(
            f"{kind} weights of channel {channel!r} must be finite and not negative"
        )
