"""shard: the shots of a waveform misfit shared out over ranks."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from hvpopt import checks
from hvpopt.distributed.ranks import current_exchange
from hvpopt.distributed.sharded import ShardedMisfit
from hvpopt.fwi.misfit.waveform_misfit import WaveformMisfit
from hvpopt.model.tensors import Model

logger = logging.getLogger(__name__)


def shard(
    misfit: WaveformMisfit,
    model: Model | None = None,
    *,
    costs: Sequence[float] | None = None,
) -> ShardedMisfit:
    """Return a waveform misfit whose shots are shared out over the ranks.

    Call it on every rank, with the same misfit of the whole survey. Shots need not divide
    by ranks; where there are more ranks than shots, the last ranks stay idle and a
    warning says so. Without a process group it behaves like the misfit itself.

    Args:
        misfit: Of the whole survey, whose constants and weights stay those of all shots.
        model: Where to measure the seconds of each shot, by one value on the rank that
            would run it, so that ranks take equally long. Default: all cost the same,
            and ranks get equal numbers.
        costs: Of each shot, relative; instead of a measurement.

    Returns:
        An objective; its parts are summed over ranks.

    Raises:
        TypeError: For anything but a WaveformMisfit, or costs that are no numbers.
        ValueError: For costs that do not fit; a survey with ``survey_pad`` on several
            ranks, whose waves depend on which shots run together.
    """
    if not isinstance(misfit, WaveformMisfit):
        raise TypeError(
            f"shard() takes a WaveformMisfit, got {type(misfit).__name__}; of a sum "
            "shard the waveform terms and add the others, which run on every rank"
        )
    exchange = current_exchange()
    n_shots, n_live = misfit.survey.n_shots, len(misfit.live_shots)
    if exchange.size > 1 and misfit.survey.options.get("survey_pad") is not None:
        raise ValueError(
            "a survey with survey_pad cannot be shared out: its waves depend on which "
            "shots run together; cut the models instead"
        )
    if costs is not None and model is not None:
        raise ValueError("give costs, or a model to measure them at, not both")
    given = [1.0] * n_shots
    if costs is not None:
        given = [float(c) for c in checks.numbers_of("costs", costs).reshape(-1)]
    if len(given) != n_shots or not all(0 < c < math.inf for c in given):
        raise ValueError(f"costs must be {n_shots} positive numbers, one for each shot")
    if exchange.size > n_live and exchange.rank == 0:
        logger.warning(
            "%d of %d ranks have no shot and stay idle",
            exchange.size - n_live,
            exchange.size,
        )
    sharded = ShardedMisfit(misfit, given, exchange)
    if model is None or exchange.size == 1:
        return sharded
    seconds = sharded.measure(model)
    measured = ShardedMisfit(misfit, seconds, exchange)
    measured.counts.tally(**sharded.counts.as_dict())
    return measured
