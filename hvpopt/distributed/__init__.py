"""One inversion on many processes: each rank runs its shots, and sums are reduced.

    with distributed.session():                      # does nothing without torchrun
        misfit = distributed.shard(fwi.WaveformMisfit(survey, observed))
        result = hvpopt.minimize(misfit, start, progress=distributed.is_main())

Every rank runs the same loop on the same bits, because parts are added in the order of
ranks and every sum is sent to all. Values, gradients and products are reduced explicitly.
``torch.nn.parallel.DistributedDataParallel`` must not be used: it averages first
gradients in hooks that do not apply to second derivatives, so that a product silently
contains the shots of one rank only.

Everything except the misfit (a regulariser, preconditioners, the linear algebra) runs on
every rank, and must be deterministic. Every evaluation compares a checksum of its input
among the ranks, and raises if they differ. Decisions that depend on a rank are shared:
after each evaluation the ranks exchange whether ``max_seconds`` have passed or a signal
was received, and if one finds bad shots, all raise the same ``BadShotError``. A callback
runs on every rank and must return the same on each; use ``any_rank`` for that.

Every rank holds the full model and full vectors, but observed data of its own shots only;
``shard`` describes how to load only those.

Only rank 0 writes checkpoint and history, shows progress and logs. All ranks read an
existing checkpoint, so its path must be on a file system that they share.
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
