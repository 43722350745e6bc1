"""Preconditioners that persist: a base, and pairs learnt from steps and solves.

The base is given, or built by a function when a run begins and perhaps again later. On it
stand the pairs of the last steps, and on these those of the last linear solves, the
newest of which know the newest Hessian (Morales and Nocedal, SIAM J. Optim. 10, 2000).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from hvpopt import checks
from hvpopt.krylov.pairs import Pair, PairsPreconditioner, safely_positive
from hvpopt.krylov.preconditioner import (
    DiagonalPreconditioner,
    Preconditioner,
    RestrictedPreconditioner,
)
from hvpopt.methods.method import OutOfBudget
from hvpopt.methods.points import Budget, FreeCells, Point, Problem

#: Builds a preconditioner for all cells at a point; may use the point's Hessian.
PreconditionerBuilder = Callable[[Problem, Point], Preconditioner]


@dataclass(frozen=True, eq=False)
class PreconditionerState:
    """What persists of a preconditioner from step to step.

    Attributes:
        base: What a function built; None where none did.
        age: Steps taken since.
        step_pairs: ``(s, y)`` of steps taken, oldest first.
        solve_pairs: ``(d, H d)`` of the last linear solves, oldest first.
    """

    base: Preconditioner | None = None
    age: int = 0
    step_pairs: tuple[Pair, ...] = ()
    solve_pairs: tuple[Pair, ...] = ()


@dataclass(frozen=True)
class Preconditioning:
    """How a method preconditions its linear solves.

    Args:
        given: A preconditioner, a function ``(problem, point)`` that builds one, or
            None.
        refresh: Build again after this many steps. Default never.
        pairs: Steps to keep pairs of. Default 0.
        cg_pairs: Pairs to keep of a linear solve. Default 0.

    Raises:
        ValueError: For a number out of range.
        TypeError: If ``given`` is none of these.
    """

    given: Preconditioner | PreconditionerBuilder | None = None
    refresh: int | None = None
    pairs: int = 0
    cg_pairs: int = 0

    def __post_init__(self) -> None:
        checks.put(
            self,
            refresh=checks.optional(checks.integer, "refresh", self.refresh, least=1),
            pairs=checks.integer("pairs", self.pairs, least=0),
            cg_pairs=checks.integer("cg_pairs", self.cg_pairs, least=0),
        )
        what: object = self.given
        wrong = isinstance(what, (type, torch.Tensor))
        if wrong or not (what is None or _applies(what) or callable(what)):
            raise TypeError(
                f"preconditioner is {getattr(what, '__name__', type(what).__name__)}; "
                "pass an object with apply(), such as a DiagonalPreconditioner, or a "
                "function of (problem, point) that returns one"
            )

    def prepare(
        self,
        problem: Problem,
        point: Point,
        state: PreconditionerState,
        budget: Budget,
    ) -> tuple[PreconditionerState, Budget]:
        """Build the base where that is due.

        Args:
            problem: Passed to the builder.
            point: Passed to the builder.
            state: Before.
            budget: Before.

        Returns:
            State and budget once the base is there.

        Raises:
            TypeError: If the function built no preconditioner.
            OutOfBudget: If building it left no product.
        """
        given = self.given
        if given is None or isinstance(given, type) or _applies(given):
            return state, budget
        due = self.refresh is not None and state.age >= self.refresh
        if state.base is not None and not due:
            return state, budget
        before = problem.counts.products
        built = given(problem, point)  # type: ignore[operator]
        if not _applies(built):
            raise TypeError(
                f"the function given as preconditioner returned a "
                f"{type(built).__name__}, which has no apply()"
            )
        left = budget.products - (problem.counts.products - before)
        if left <= 0:
            raise OutOfBudget("building the preconditioner took the products left")
        if isinstance(built, DiagonalPreconditioner):
            # a diagonal and a number, whatever else a subclass carries
            built = DiagonalPreconditioner(built.diagonal, damping=built.damping)
        problem.check_kept(built)
        return replace(state, base=built, age=0), replace(budget, products=left)

    def on_free_cells(
        self, state: PreconditionerState, point: Point, free: FreeCells
    ) -> Preconditioner | None:
        """Return the preconditioner of the cells that no bound holds.

        Args:
            state: From ``prepare``.
            point: Where.
            free: The point's.
        """
        whole = state.base
        if whole is None and _applies(self.given):
            whole = self.given  # type: ignore[assignment]
        pairs = (*state.step_pairs, *state.solve_pairs)
        if pairs:
            whole = PairsPreconditioner(pairs, memory=len(pairs), base=whole)
        if whole is None or not bool(point.active.any()):
            return whole
        return RestrictedPreconditioner(whole, free.restrict, free.extend)

    def remember(
        self,
        state: PreconditionerState,
        before: Point,
        after: Point,
        solve_pairs: tuple[Pair, ...] = (),
    ) -> PreconditionerState:
        """Return the state after an accepted step.

        Args:
            state: From ``prepare``.
            before: Where the step began.
            after: Where it ended.
            solve_pairs: ``(d, H d)`` ``[n]`` of its linear solve.
        """
        step_pairs = state.step_pairs
        s, y = after.vector - before.vector, after.gradient - before.gradient
        if self.pairs and safely_positive(s, y):
            step_pairs = (*step_pairs, (s, y))[-self.pairs :]
        good = tuple(pair for pair in solve_pairs if safely_positive(*pair))
        # A solve that was preconditioned well is short, and sees little of what the
        # pairs before it knew: they stay as long as there is room.
        known = (*state.solve_pairs, *good)
        return PreconditionerState(
            base=state.base,
            age=state.age + 1,
            step_pairs=step_pairs,
            solve_pairs=known[-self.cg_pairs :] if self.cg_pairs else (),
        )


def _applies(candidate: object) -> bool:
    return callable(getattr(candidate, "apply", None))
