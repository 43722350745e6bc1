"""GroupRunner: sums over groups of shots, where numbers may be bad and memory short.

What is finite and fits is summed group by group, and the total alone is checked. Only if
it is not finite are the groups run again, each checked, and the shots of a failing group
one by one, which finds those that are bad. A group that does not fit in memory is halved,
and the smaller size stays.
"""

from __future__ import annotations

import gc
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import deepwave
import torch
from torch import Tensor

from hvpopt.fwi.hessian.bad_shots import ShotNames
from hvpopt.fwi.hessian.memory import MemoryPlan, plan_memory
from hvpopt.model.counts import Counts

logger = logging.getLogger(__name__)

#: What a group contributes: numbers, and a tensor for each parameter or None.
Terms: TypeAlias = "list[float | Tensor | None]"

#: How torch, deepwave and the allocators say that memory ran out.
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "DefaultCPUAllocator",
    "not enough memory",
    "bad_alloc",
)
#: Bytes of histories that small shots on a CPU may take together.
SMALL_GROUP = 32 * 2**20
#: Shots that fill a GPU: of 16 products of one shot together each was 3.2 times as fast
#: as alone, of 4 it was 2.7 times (benchmarks/GPU.md).
FILLS_GPU = 16
#: Told by the memory plan once a group has run out of memory.
_SMALLER = "; made smaller when memory ran out"


def groups_of(shots: Sequence[int], size: int) -> list[list[int]]:
    """Return shots in consecutive groups, the last perhaps smaller."""
    return [list(shots[i : i + size]) for i in range(0, len(shots), size)]


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error says that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        phrase in str(error) for phrase in _OUT_OF_MEMORY
    )


@contextmanager
def counted(counts: Counts, propagations: int) -> Iterator[None]:
    """Count the propagations of a block, also where it fails."""
    # what deepwave refuses before it begins has run nothing, and what does not fit in
    # memory is taken to have run nothing
    try:
        yield
    except BaseException as error:
        refused = isinstance(error, deepwave.DeepwaveError) and not isinstance(
            error, (ArithmeticError, RuntimeError)
        )
        if not (refused or is_out_of_memory(error)):
            counts.tally(propagations=propagations)
        raise
    counts.tally(propagations=propagations)


@dataclass(frozen=True)
class Task:
    """A sum over shots."""

    quantity: str  # "value", "gradient" or "product"
    # returns what a group contributes, and adds to nothing itself
    part: Callable[[list[int]], Terms]
    names: Sequence[str]  # of the terms: the parameter of each, empty for a value
    cost: int  # wave propagations of one shot
    counts: Counts  # advanced by what is run, repetitions included
    shots: ShotNames
    # releases what part kept, before a failed group is run again
    forget: Callable[[], None] = lambda: None
    columns: int = 1  # of a block, which propagate together


@dataclass(frozen=True)
class _Failure:
    """Why a group has no terms."""

    told: str
    parameter: str | None = None
    fits: bool = True


class GroupRunner:
    """Sums what groups of shots contribute, and plans how large groups may be."""

    # A misfit, its operators and the misfits made of it share one, so that what is learnt
    # about memory, in bytes, holds for all of them. ``one_graph``: products by double
    # backprop run all shots together. ``joins_small``: more than ``size`` may run
    # together where they are small. ``largest``: shots that run together at most; None
    # until memory ran out.

    def __init__(
        self,
        n_shots: int,
        size: int,
        limit: float | None,
        *,
        one_graph: bool,
        joins_small: bool = False,
    ) -> None:
        self._n_shots, self.one_graph = n_shots, one_graph
        self.joins_small = joins_small and size < n_shots
        self.plan = MemoryPlan(limit, min(size, n_shots))
        self.largest: int | None = None
        #: Shots of all columns of a block together, at most.
        self._fits = FILLS_GPU

    @property
    def unmeasured(self) -> bool:
        """True if groups must follow from a measurement that was not made yet."""
        return self.plan.limit is not None and self.plan.measured is None

    def measure(
        self, n_shots: int, estimated: int, peak: Callable[[int], tuple[int, str]]
    ) -> None:
        """Plan how many shots run together under the limit, or raise MemoryError."""
        # ``peak`` returns the bytes that a product of so many shots uses, and what
        # measured it; ``estimated`` is deepwave's of one shot, ``n_shots`` those that
        # there are to measure with
        limit = self.plan.limit
        assert limit is not None
        peak(1)  # the first product also loads libraries and starts threads
        measured, how = peak(1)
        plan = plan_memory(limit, self._n_shots, estimated, measured, how)
        while plan.shots_per_group > 1:
            used, _ = peak(min(plan.shots_per_group, n_shots))
            plan = replace(plan, group=used)
            if used <= limit:
                break
            smaller = max(1, int(plan.shots_per_group * limit / used))
            plan = replace(plan, shots_per_group=smaller, group=None)
        # memory may have run out on the way
        largest = min(plan.shots_per_group, self.largest or self._n_shots)
        self.plan = replace(plan, measured=measured, shots_per_group=largest)

    def join_small(self, n_bytes: int) -> None:
        """Let as many shots run together as have ``SMALL_GROUP`` bytes of histories."""
        # A multiple of the present size, which is the number of threads, so that no
        # thread waits for the last shots of a group. ``n_bytes`` are of one shot's
        # histories.
        self.joins_small = False
        size = self.plan.shots_per_group
        size *= max(1, SMALL_GROUP // (n_bytes * size))
        largest = min(size, self.largest or self._n_shots)
        self.plan = replace(self.plan, shots_per_group=largest)

    def split(self, groups: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return groups, those that are known not to fit split into smaller ones."""
        if self.largest is None:
            return [list(group) for group in groups]
        return [part for group in groups for part in groups_of(group, self.largest)]

    def copies(self, groups: Sequence[Sequence[int]]) -> int:
        """Return how many columns of a block may propagate together on a GPU."""
        # as many as bring a group to the shots that fill one, within what the memory
        # limit and earlier failures allow
        most = FILLS_GPU if self.plan.limit is None else self.plan.shots_per_group
        most = min(self._fits, most, self.largest or most)
        return max(1, most // max(len(group) for group in self.split(groups)))

    def try_total(self, task: Task, groups: Sequence[Sequence[int]]) -> list[Any] | None:
        """Return the sum over groups; None where it is not finite or does not fit."""
        # after it did not fit, ``copies`` is half as many
        total: Terms | None = None
        groups, failure = self.split(groups), ""
        try:
            for group in groups:
                with counted(task.counts, task.cost * len(group)):
                    total = _added(total, task.part(group))
        except FloatingPointError:  # deepwave looks at its wavefields
            return None
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = _first_line(error)
        if failure:
            task.forget()
            _free_memory()
            self._fits = max(1, task.columns // 2) * max(map(len, groups))
            logger.warning(
                "%d products at once ran out of memory; from now on at most %d run "
                "together (%s)",
                task.columns,
                self.copies(groups),
                failure,
            )
            return None
        return total if total is not None and _first_bad(total) is None else None

    def total(self, task: Task, groups: Sequence[Sequence[int]]) -> list[Any]:
        """Return the sum over groups, term by term; None for one that no group has."""
        # BadShotError names shots that keep contributing what is not finite, MemoryError
        # says that one shot does not fit; other errors of a group are raised as they are.

        # a sum does not tell which group is not finite: the second time, look at each
        for every in (False, True):
            total: Terms | None = None
            failed: list[tuple[list[int], _Failure]] = []
            bad: dict[int, _Failure] = {}
            waiting = [(group, False) for group in self.split(groups)]
            while waiting:
                group, second = waiting.pop(0)
                if second:
                    task.forget()
                terms = None
                try:
                    with counted(task.counts, task.cost * len(group)):
                        terms = task.part(group)
                    failure = _look_at(task, terms, tensors=every or second)
                except FloatingPointError as error:  # deepwave looks at its wavefields
                    failure = _Failure(_first_line(error))
                except (MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    failure = _Failure(_first_line(error), fits=False)
                if failure is None:
                    total = _added(total, terms)
                elif not failure.fits:
                    task.forget()
                    self._halve(task, group, failure.told)
                    left = [(group, second), *waiting]
                    waiting = [(part, s) for g, s in left for part in self.split([g])]
                elif second:
                    bad[group[0]] = failure
                else:
                    failed.append((group, failure))
                    waiting[:0] = [([shot], True) for shot in group]
            _tell_repeated(task, failed, bad)
            if total is not None and not bad and _first_bad(total) is None:
                return total
            if bad:
                raise task.shots.error(
                    task.quantity,
                    {shot: failure.told for shot, failure in bad.items()},
                    next(group for group, _ in failed if bad.keys() & set(group)),
                    next(iter(bad.values())).parameter,
                )
            task.forget()
        raise FloatingPointError(
            f"every {task.shots.unit}'s {task.quantity} is finite, but their sum "
            "overflows"
        )

    def _halve(self, task: Task, group: list[int], failure: str) -> None:
        unit, numbers = task.shots.unit, task.shots.of(group)
        if len(group) == 1:
            raise MemoryError(
                f"{unit} {numbers[0]} alone does not fit in memory for a "
                f"{task.quantity} ({failure}); split time with checkpoint_segments=, or "
                "put histories on disk with storage_mode='disk'"
            )
        _free_memory()
        self.largest = -(-len(group) // 2)
        self.plan = replace(
            self.plan,
            shots_per_group=min(self.largest, self.plan.shots_per_group),
            group=None,
            how=self.plan.how.removesuffix(_SMALLER) + _SMALLER,
        )
        message = (
            f"{len(group)} {unit}s together ran out of memory in a {task.quantity}; "
            f"from now on at most {self.largest} run together ({failure})"
        )
        logger.warning(message)
        warnings.warn(message, RuntimeWarning, stacklevel=2)


def _free_memory() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()  # an autograd graph may hang in cycles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _look_at(task: Task, terms: Terms, *, tensors: bool) -> _Failure | None:
    """Return what is not finite, or None. Numbers are looked at always."""
    place = _first_bad(terms, tensors=tensors)
    if place is None:
        return None
    term = terms[place]
    if not isinstance(term, Tensor):
        return _Failure(f"the misfit is {term}")
    name, n_bad = task.names[place], int((~torch.isfinite(term)).sum())
    return _Failure(
        f"{n_bad} of {term.numel()} entries with respect to {name!r} are NaN or infinite",
        parameter=name,
    )


def _first_bad(terms: Terms, *, tensors: bool = True) -> int | None:
    """Return the place of the first term that is not finite, or None."""
    for place, term in enumerate(terms):
        if isinstance(term, Tensor):
            if tensors and not bool(torch.isfinite(term).all()):
                return place
        elif term is not None and not math.isfinite(term):
            return place
    return None


def _added(total: Terms | None, terms: Terms | None) -> Terms | None:
    if total is None or terms is None:
        return terms if total is None else total
    # not in place: two terms may be one tensor
    return [
        b if a is None else a if b is None else a + b
        for a, b in zip(total, terms, strict=True)
    ]


def _tell_repeated(
    task: Task, failed: list[tuple[list[int], _Failure]], bad: dict[int, _Failure]
) -> None:
    """Log the groups that were not finite, and whose shots all are."""
    for group, failure in failed:
        if not bad.keys() & set(group):
            logger.warning(
                "the %s of %ss %s was not finite (%s), and is when repeated",
                task.quantity,
                task.shots.unit,
                task.shots.of(group),
                failure.told,
            )


def _first_line(error: BaseException) -> str:
    return str(error).split("\n")[0] or type(error).__name__
