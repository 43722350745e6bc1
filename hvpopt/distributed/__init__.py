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
input among the ranks, and raises where they differ. Clocks differ: instead of
``max_seconds``, which would end the ranks at different products, stop by
``callback=lambda model, record: distributed.any_rank(time.monotonic() > deadline)``.
"""

from hvpopt.distributed.exchange import RankError
from hvpopt.distributed.products import ShardedHessian
from hvpopt.distributed.ranks import any_rank, device, is_main, rank, session, size
from hvpopt.distributed.sharded import ShardedMisfit, shard

__all__ = [
    "RankError",
    "ShardedHessian",
    "ShardedMisfit",
    "any_rank",
    "device",
    "is_main",
    "rank",
    "session",
    "shard",
    "size",
]
