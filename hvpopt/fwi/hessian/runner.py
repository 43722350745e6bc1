"""GroupRunner: sums over groups of shots that survive bad numbers and little memory.

What is finite and fits is summed group by group, with one look at the total. Only if that
is not finite are the groups run again, each checked, and the shots of a failing group one
by one: that is each shot's second chance, and finds those that are bad. A group that does
not fit in memory is halved, and the smaller size stays. Every attempt is summed whole or
not at all.
"""

from __future__ import annotations

import gc
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import deepwave
import torch
from torch import Tensor

from hvpopt.fwi.hessian.bad_shots import BadShotError
from hvpopt.fwi.hessian.groups import groups_of
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


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error says that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        phrase in str(error) for phrase in _OUT_OF_MEMORY
    )


def _nothing() -> None:
    """Do nothing."""


@contextmanager
def counted(counts: Counts, propagations: int) -> Iterator[None]:
    """A block that propagates waves, counted also where it fails.

    What deepwave refuses before it begins has run nothing, and what does not fit in
    memory is taken to have run nothing.

    Args:
        counts: The tally.
        propagations: Of the block.

    Yields:
        Nothing.
    """
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
    """A sum over shots.

    Attributes:
        quantity: ``"value"``, ``"gradient"`` or ``"product"``.
        part: Returns what a group contributes, and adds to nothing itself.
        names: Of the terms: the parameter that each belongs to, empty for a value.
        cost: Wave propagations of one shot.
        counts: The tally to advance by what is run, repetitions included.
        unit: What shots are called in errors. Default ``"shot"``.
        forget: Releases what ``part`` kept, before a failed group is run again.
    """

    quantity: str
    part: Callable[[list[int]], Terms]
    names: Sequence[str]
    cost: int
    counts: Counts
    unit: str = "shot"
    forget: Callable[[], None] = _nothing


@dataclass(frozen=True)
class _Outcome:
    """What came of running a group: terms, or why there are none."""

    terms: Terms | None = None
    failure: str = ""
    parameter: str | None = None
    fits: bool = True


class GroupRunner:
    """Sums what groups of shots contribute.

    Args:
        on_smaller: Called with the new group size when memory ran out. Default nothing.
        alone: False if other shots run elsewhere, so that all of these may be bad while
            the model is good. Default True.

    Attributes:
        largest: Shots that run together at most; None until memory ran out.
    """

    def __init__(
        self, on_smaller: Callable[[int], None] | None = None, *, alone: bool = True
    ) -> None:
        self._on_smaller, self._alone = on_smaller, alone
        self.largest: int | None = None

    def split(self, groups: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return groups, those cut that are known not to fit."""
        if self.largest is None:
            return [list(group) for group in groups]
        return [part for group in groups for part in groups_of(group, self.largest)]

    def total(
        self, task: Task, groups: Sequence[Sequence[int]], *, thorough: bool = True
    ) -> Terms:
        """Return the sum over groups, term by term.

        Args:
            task: What to sum.
            groups: Shots that run together, group by group.
            thorough: Look for every bad shot before raising, rather than stop at the
                first: in a trial one is enough to refuse the model.

        Returns:
            The terms; None for one that no group has.

        Raises:
            BadShotError: If shots keep contributing what is not finite.
            FloatingPointError: If finite contributions add up to what is not.
            MemoryError: If one shot does not fit.
        """
        total = self._sum(task, groups, checked=False, thorough=thorough)
        if _not_finite(total) is None:
            return total
        # of a sum nobody knows which group spoilt it: run them again and look at each
        del total
        task.forget()
        total = self._sum(task, groups, checked=True, thorough=thorough)
        if _not_finite(total) is not None:
            raise FloatingPointError(
                f"every {task.unit}'s {task.quantity} is finite, but their sum overflows"
            )
        return total

    def _sum(
        self,
        task: Task,
        groups: Sequence[Sequence[int]],
        *,
        checked: bool,
        thorough: bool,
    ) -> Terms:
        total: Terms | None = None
        bad: dict[int, _Outcome] = {}
        met: list[int] = []
        waiting = self.split(groups)
        n_shots = sum(map(len, waiting))
        while waiting:
            group = waiting.pop(0)
            outcome = _attempt(task, group, checked)
            if not outcome.fits:
                task.forget()
                self._halve(task, group, outcome.failure)
                waiting = self.split([group, *waiting])
                continue
            terms = outcome.terms
            if terms is None:
                terms, failed = self._one_by_one(task, group, outcome, thorough)
                met = met or (group if failed else [])
                bad.update(failed)
                if failed and not thorough:
                    break
            total = _added(total, terms)
        if bad:
            raise BadShotError(
                task.quantity,
                {shot: outcome.failure for shot, outcome in bad.items()},
                group=met,
                parameter=next(iter(bad.values())).parameter,
                unit=task.unit,
                to_blame=len(bad) < n_shots or not self._alone,
            )
        assert total is not None
        return total

    def _one_by_one(
        self, task: Task, group: list[int], first: _Outcome, thorough: bool
    ) -> tuple[Terms | None, dict[int, _Outcome]]:
        """Give each shot of a failed group its second chance."""
        total: Terms | None = None
        failed: dict[int, _Outcome] = {}
        for shot in group:
            task.forget()
            outcome = _attempt(task, [shot], checked=True)
            if not outcome.fits:
                self._halve(task, [shot], outcome.failure)
            elif outcome.terms is None:
                failed[shot] = outcome
                if not thorough:
                    break
            else:
                total = _added(total, outcome.terms)
        if not failed:
            logger.warning(
                "the %s of %ss %s was not finite (%s), and is when repeated",
                task.quantity,
                task.unit,
                group,
                first.failure,
            )
        return total, failed

    def _halve(self, task: Task, group: list[int], failure: str) -> None:
        if len(group) == 1:
            raise MemoryError(
                f"{task.unit} {group[0]} alone does not fit in memory for a "
                f"{task.quantity} ({failure}); split time with checkpoint_segments=, or "
                "put histories on disk with storage_mode='disk'"
            )
        gc.collect()  # an autograd graph may hang in cycles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.largest = -(-len(group) // 2)
        message = (
            f"{len(group)} {task.unit}s together ran out of memory in a {task.quantity}; "
            f"from now on at most {self.largest} run together ({failure})"
        )
        logger.warning(message)
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        if self._on_smaller is not None:
            self._on_smaller(self.largest)


def _attempt(task: Task, group: list[int], checked: bool) -> _Outcome:
    """Run one group. Numbers are looked at always, tensors where ``checked``."""
    try:
        with counted(task.counts, task.cost * len(group)):
            terms = task.part(group)
    except FloatingPointError as error:  # deepwave looks at its wavefields
        return _Outcome(failure=_first_line(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _Outcome(failure=_first_line(error), fits=False)
    return _judge(task, terms, checked)


def _judge(task: Task, terms: Terms, checked: bool) -> _Outcome:
    place = _not_finite(terms, tensors=checked)
    if place is None:
        return _Outcome(terms)
    term = terms[place]
    if not isinstance(term, Tensor):
        return _Outcome(failure=f"the misfit is {term}")
    name, n_bad = task.names[place], int((~torch.isfinite(term)).sum())
    failure = (
        f"{n_bad} of {term.numel()} entries with respect to {name!r} are NaN or infinite"
    )
    return _Outcome(failure=failure, parameter=name)


def _not_finite(terms: Terms, *, tensors: bool = True) -> int | None:
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


def _first_line(error: BaseException) -> str:
    return str(error).split("\n")[0] or type(error).__name__
