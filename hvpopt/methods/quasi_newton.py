"""QuasiNewton: L-BFGS that starts from measured curvature, with bounds by projection.

Nocedal's two-loop recursion (Math. Comp. 35, 1980) over pairs of step and gradient
change, on an initial inverse Hessian from Hessian-vector products (``initial.py``). Cells
that a bound holds are excluded from the direction, and trials run along the projected
path. The line search is Armijo's by values, from the unit step; a pair without safely
positive curvature is dropped, so that no curvature condition costs gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hvpopt import checks
from hvpopt.krylov.pairs import Pair, PairsPreconditioner, safely_positive
from hvpopt.krylov.preconditioner import Preconditioner
from hvpopt.methods.backtracking import Backtracking
from hvpopt.methods.initial import HessianDiagonal, InitialCurvature
from hvpopt.methods.method import Direction, Step
from hvpopt.methods.points import Budget, Point, Problem
from hvpopt.methods.saddle import SecondOrderMethod, SecondOrderOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class QuasiNewtonState:
    """What one step leaves to the next."""

    pairs: tuple[Pair, ...] = ()  # steps and changes of the gradient, oldest first
    initial: Any = None  # what the initial curvature measured
    age: int = 0  # steps since it was measured
    builds: int = 0  # how often it was measured
    gradient_first: bool = False  # the last step was the whole direction
    #: pairs are kept in float32, since the model and its gradients are float32
    single: bool = False
    #: a stage begins, with pairs of another objective: one product shall scale them
    rescale: bool = False


class QuasiNewton(SecondOrderMethod):
    """L-BFGS on an initial inverse Hessian that products have measured.

    Args:
        memory: Pairs to keep, each two vectors of the model's size, in float32 for
            float32 models. Default 50.
        initial: Measures the initial curvature. Default ``HessianDiagonal()``.
        refresh: Steps after which it is measured anew. Default never; a search that
            fails also has it measured anew, once.
        globalisation: Shortens steps. Default ``Backtracking()``.
        **options: ``seed`` of a ``SecondOrderMethod``, which is that of the probes; and
            its ``max_products``, ``eigenvalue_floor`` and ``confidence``, which are read
            only with ``certify=True`` or at a start without gradient.

    Raises:
        ValueError: For a number out of range.
        TypeError: If ``initial`` measures no curvature, or for another globalisation.

    Example:
        >>> import torch, hvpopt
        >>> f = lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
        >>> method = hvpopt.QuasiNewton(initial=hvpopt.GradientScale())  # no products
        >>> start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
        >>> hvpopt.minimize(f, start, method=method).x
        tensor([1.0000, 1.0000], dtype=torch.float64)
    """

    kind = None
    # that of its pairs is positive by construction
    examines_curvature = False

    def __init__(
        self,
        *,
        memory: int = 50,
        initial: InitialCurvature | None = None,
        refresh: int | None = None,
        globalisation: Backtracking | None = None,
        **options: Unpack[SecondOrderOptions],
    ) -> None:
        super().__init__(**options)
        # each measurement of the curvature takes the next seed
        self.seed = checks.seed("seed", self.seed, spare=2**32)
        self.memory = checks.integer("memory", memory, least=1)
        self.initial = HessianDiagonal() if initial is None else initial
        use = "pass an InitialCurvature, such as hvpopt.HessianDiagonal()"
        checks.instance("initial", self.initial, InitialCurvature, use)
        self.refresh = checks.optional(checks.integer, "refresh", refresh, least=1)
        self.globalisation = Backtracking() if globalisation is None else globalisation
        use = "pass a Backtracking(...)"
        checks.instance("globalisation", self.globalisation, Backtracking, use)

    @property
    def needs_products(self) -> bool:
        """True unless the initial curvature comes from gradients alone."""
        return self.initial.needs_products

    def start(self, problem: Problem) -> QuasiNewtonState:
        """Return the state of a run that has measured nothing yet."""
        # the unit step is the best one along the first direction, if the curvature is
        # what was measured
        single = problem.space.eps >= torch.finfo(torch.float32).eps
        return QuasiNewtonState(gradient_first=True, single=single)

    def next_stage(self, problem: Problem, state: QuasiNewtonState) -> QuasiNewtonState:
        """Return the state with the pairs and initial curvature of the last stage."""
        # A nearly equal objective has the same curvature, and another frequency band has
        # it up to a factor, which the next step takes from one product. It was measured
        # elsewhere: a search that fails has it measured anew.
        return replace(state, age=max(state.age, 1), rescale=True)

    def step(
        self, problem: Problem, point: Point, state: QuasiNewtonState, budget: Budget
    ) -> Step:
        """Return a step along the quasi-Newton direction."""
        if state.rescale:
            state = self._rescaled(problem, point, state, budget)
        if state.initial is None or (self.refresh and state.age >= self.refresh):
            state = self._measure(problem, point, state, budget)
        step = self._search(problem, point, state)
        if step.vector is None and state.pairs:
            # the pairs may be of curvature far from here
            state = replace(state, pairs=(), gradient_first=False)
            step = self._search(problem, point, state)
        if step.vector is None and state.age:
            state = self._measure(problem, point, state, budget)
            step = self._search(problem, point, state)
        return replace(step, memo=state)

    def _rescaled(
        self, problem: Problem, point: Point, state: QuasiNewtonState, budget: Budget
    ) -> QuasiNewtonState:
        """Return the state with pairs whose unit step is the best one along its line."""
        anew = replace(state, pairs=(), initial=None, gradient_first=True, rescale=False)
        if not state.pairs or not self.needs_products or budget.products < 1:
            return anew
        vector = self._vector(point, state)
        slope = -float(vector @ point.gradient)
        with problem.hessian(point, problem.objective.preferred_kind) as hessian:
            curvature = float(vector @ hessian.matvec(vector))
        factor = curvature / slope if slope > 0.0 else 0.0
        if not 0.0 < factor < math.inf:
            return anew
        # the newest pair scales the initial curvature too
        pairs = tuple((s, factor * y) for s, y in state.pairs)
        if not all(safely_positive(s, y) for s, y in pairs):
            return anew
        return replace(state, pairs=pairs, rescale=False)

    def _measure(
        self, problem: Problem, point: Point, state: QuasiNewtonState, budget: Budget
    ) -> QuasiNewtonState:
        initial = self.initial.build(problem, point, self.seed + state.builds, budget)
        return replace(state, initial=initial, age=0, builds=state.builds + 1)

    def predicted_step(
        self, problem: Problem, point: Point, state: QuasiNewtonState
    ) -> Tensor | None:
        """Return the quasi-Newton step; None where no curvature is known yet."""
        unknown = state.initial is None or state.rescale
        return None if unknown else self._vector(point, state)

    def _vector(self, point: Point, state: QuasiNewtonState) -> Tensor:
        vector = -self.preconditioner(state).apply(point.projected_gradient)
        return vector.masked_fill(point.active, 0.0)

    def _search(self, problem: Problem, point: Point, state: QuasiNewtonState) -> Step:
        direction = Direction(self._vector(point, state))
        return self.globalisation.search(
            problem, point, direction, gradient_first=state.gradient_first
        )

    def preconditioner(self, state: QuasiNewtonState) -> Preconditioner:
        """Return the inverse Hessian of a state."""
        return PairsPreconditioner(
            state.pairs,
            memory=self.memory,
            base=self.initial.preconditioner(state.initial),
        )

    def update(
        self, state: QuasiNewtonState, before: Point, after: Point, step: Step
    ) -> QuasiNewtonState:
        """Return the state with the step's pair."""
        if step.memo is None:  # a step off a saddle: into another basin
            return QuasiNewtonState(builds=state.builds, single=state.single)
        state = step.memo
        pair = after.vector - before.vector, after.gradient - before.gradient
        pairs, initial = state.pairs, state.initial
        if safely_positive(*pair):
            pairs = (*pairs, kept_pair(*pair, single=state.single))[-self.memory :]
        elif not pairs and step.length == 1.0:
            initial = self.initial.lengthened(initial)
        return replace(
            state,
            pairs=pairs,
            initial=initial,
            age=state.age + 1,
            gradient_first=step.length == 1.0,
        )


def kept_pair(s: Tensor, y: Tensor, *, single: bool) -> Pair:
    """Return a pair of ``[n]`` with s·y > 0, in float32 if ``single`` and in range."""
    pair = s.float(), y.float()
    return pair if single and safely_positive(*pair) else (s, y)
