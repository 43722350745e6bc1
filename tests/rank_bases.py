"""What the ranks of test_sharded_basis.py run: inversions and bases, shared out."""

from unittest import mock

import distributed_worker as worker
import torch

import hvpopt
from hvpopt import distributed
from hvpopt.distributed.ranks import current_exchange
from hvpopt.distributed.slices import Slices
from hvpopt.krylov.rows import Rows


def smooth(v):
    return 1e-9 * (v.diff(dim=0).square().sum() + v.diff(dim=1).square().sum())


def watched(name, of=hvpopt.LanczosBasis):
    """Let a method of a class leave its objects in a list, one for each call."""
    original = getattr(of, name)
    calls = []

    def method(self, *args, **kwargs):
        calls.append(self)
        return original(self, *args, **kwargs)

    return calls, mock.patch.object(of, name, method)


def invert(seed, case, shard=True, share_basis=True, max_iter=2):
    """Invert; the model, the costs, and of each basis what this rank has held of it."""
    misfit, start = worker.problem(seed)
    objective = misfit
    if shard:
        objective = distributed.shard(misfit, share_basis=share_basis)
    mask = torch.ones_like(start, dtype=torch.bool)
    mask[0, :1] = False
    if case == "sum":
        loss = objective + hvpopt.TorchObjective(smooth, convex=True)
        method, lower = hvpopt.ShiftedNewton("lanczos", max_products=4), None
    else:
        # about a sixth of the cells begin at a bound that descent pushes against
        touched = torch.arange(start.numel()).reshape(start.shape) % 3 == 0
        loss, lower = objective, torch.where(touched, start, 1400.0)
        method = hvpopt.TrustRegionNewton(tol=0.1, max_products=4)
    made, watch_made = watched("__init__")
    combined, watch_combined = watched("_combine")
    with watch_made, watch_combined:
        found = hvpopt.minimize(
            loss, start, method=method, mask=mask, lower=lower, max_iter=max_iter
        )
    bases = [
        (basis.operator.size, basis.size, tuple(basis.vectors.shape)) for basis in made
    ]
    combinations = [sum(basis is other for other in combined) for basis in made]
    gathered = getattr(objective, "bytes_gathered", 0)
    same = (found.x, found.fun, found.status.name, *worker.costs_of(objective), gathered)
    return same, bases, combinations


def dense(seed, sizes):
    """Share bases of dense matrices out; all that is read off them, and its cost."""
    found = []
    for size in sizes:
        matrix, gradient = problem_of_size(seed, size)
        gathered = []
        operator = hvpopt.MatrixOperator(matrix)
        exchange = current_exchange()
        operator.holding = Slices(exchange, 0, gathered.append)
        shifted = operator + 0.5 * operator
        messages = []
        with mock.patch.object(exchange, "_call", wraps=exchange._call) as call:
            basis = hvpopt.LanczosBasis(shifted, gradient, probe=1e-3)
            messages.append(call.call_count)
            while basis.extend():
                messages.append(call.call_count - sum(messages))
        n_gathered = len(gathered)
        steps = [
            basis.solve(shift=1.0 - float(basis.ritz_values[0])),
            basis.solve(radius=0.1),
        ]
        lowest = basis.ritz_vector()
        n_returned = len(gathered) - n_gathered
        estimate = hvpopt.smallest_eigenvalue(operator, tol=1e-6)
        alone = hvpopt.smallest_eigenvalue(hvpopt.MatrixOperator(matrix), tol=1e-6)
        found.append(
            {
                "same": (
                    basis.diagonal,
                    basis.ritz_values.tolist(),
                    *((step.vector, step.multiplier) for step in steps),
                    lowest,
                    (estimate.value, estimate.n_products),
                ),
                "rows": basis.vectors.clone(),
                "storage": basis.vectors.untyped_storage().nbytes(),
                "gathered": (n_gathered, n_returned, {v.dtype for v in gathered}),
                "messages": messages,
                "alone": alone.n_products,
            }
        )
    return found


def problem_of_size(seed, size):
    generator = torch.Generator().manual_seed(seed + size)
    matrix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    gradient = torch.randn(size, generator=generator, dtype=torch.float64)
    return matrix + matrix.mT, gradient


def fail(seed, how):
    """Let rank 1 fail, or hold something else, while a basis is shared; the error."""
    misfit, start = worker.problem(seed, n_shots=2)
    sharded = distributed.shard(misfit, share_basis=True)
    gradient = torch.ones(start.numel(), dtype=torch.float64)
    failing = mock.patch.object(Rows, "append", side_effect=MemoryError("no room"))
    other = distributed.rank() == 1
    if other and how == "product":
        worker._break(sharded, "raise", "product")
    if other and how == "start":
        gradient[-1] += 1e-15
    if other and how == "basis":
        failing.start()
    basis = hvpopt.LanczosBasis(sharded.hessian(start), gradient)
    if how == "numbers":
        basis.operator.holding.total(torch.ones(2 + other))
    basis.extend(8 - (other and how == "less"))
    sharded.value(start)
