"""One inversion on many processes: each rank runs its shots, and sums are reduced.

    with distributed.session():                      # of torchrun, or nothing at all
        misfit = distributed.shard(fwi.WaveformMisfit(survey, observed))
        result = hvpopt.minimize(misfit, start, progress=distributed.is_main())

The loop runs alike on every rank: it sees the same bits everywhere, because parts are
added in the order of ranks and every sum is sent to all. Values, gradients and products
are reduced explicitly. ``torch.nn.parallel.DistributedDataParallel`` must not be used:
it averages first gradients in hooks that second derivatives do not pass, so a product
holds one rank's shots alone, without a word.

What runs beside the misfit (a regulariser, preconditioners, the linear algebra) runs on
every rank, and must be deterministic there. Every evaluation compares a checksum of its
input among the ranks, and raises where they differ. What differs by nature is decided
together: after each evaluation ranks tell each other whether ``max_seconds`` have passed
or a signal has come, and all raise the same ``BadShotError``, whichever rank has met bad
shots. A callback runs on every rank and must answer alike; ``any_rank`` makes it so.

Every rank holds whole models and vectors, and the observed data of its own shots alone;
see ``shard`` for how it need not load those of the others either.

Rank 0 alone writes checkpoint and history, shows progress and logs. All ranks read the
checkpoint that is there, so it must lie where all can see it.
"""

from hvpopt.distributed.products import ShardedHessian
from hvpopt.distributed.ranks import any_rank, device, is_main, rank, session, size
from hvpopt.distributed.sharded import ShardedMisfit
from hvpopt.distributed.sharding import own_shots, shard
from hvpopt.errors import RankError

__all__ = [
    "RankError",
    "ShardedHessian",
    "ShardedMisfit",
    "any_rank",
    "device",
    "is_main",
    "own_shots",
    "rank",
    "session",
    "shard",
    "size",
]
