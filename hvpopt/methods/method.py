"""What a method is: from a linearised point to the next point.

The outer loop holds the iterates and budgets; a method takes one step. A direction and
its globalisation are separate objects that a method joins.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor

from hvpopt import checks
from hvpopt.methods.points import Budget, Point, Problem
from hvpopt.problem.objective import Kind, Objective

if TYPE_CHECKING:
    from typing_extensions import Self


class InnerStatus(Enum):
    """How the linear algebra of one step ended."""

    CONVERGED = "eigenvalue and linear solve met their tolerances"
    EIGENVALUE = "λ_min did not reach its tolerance, or H + τI is not certified definite"
    RESIDUAL = "the linear solve did not reach its tolerance"
    FLOOR = (
        "the tolerance lies under the rounding of the products; the solve went as far "
        "as they allow"
    )
    ASYMMETRIC = (
        "the products are not those of a symmetric matrix, so that λ_min is not known; "
        "check the loss's second derivatives"
    )
    INDEFINITE = "H + τI turned out indefinite; the step is the iterate that came before"

    @property
    def message(self) -> str:
        """The sentence for a person."""
        return self.value


@dataclass(frozen=True)
class Direction:
    """A direction to search along, and what it cost to find.

    Attributes:
        vector: ``[n]``, zero on active cells.
        status: How the linear algebra ended.
        shift: τ, added to the Hessian's diagonal.
        smallest_eigenvalue: λ_min of the Hessian on the cells that are not active; an
            upper bound always, and within the method's tolerance where negative.
        lower_bound: Below λ_min with the method's confidence; −inf where unknown.
        residual: ``‖(H + τI) h + g‖ / ‖g‖``.
        inner_iterations: Iterations of the linear solver.
        curvature_step: True if the direction was chosen for negative curvature alone,
            where the gradient is as good as zero.
        predicted: Decrease that the quadratic model predicts for the whole direction.
        radius: Of the trust region that bounds the direction.
        negative_curvature: A unit vector ``[n]`` along which the Hessian is negative, if
            one was met.
        unbounded: How many times longer the step may be without the trust region or the
            shift; infinite where the model has no minimum, or a flat one.
    """

    vector: Tensor
    status: InnerStatus = InnerStatus.CONVERGED
    shift: float = 0.0
    smallest_eigenvalue: float = math.nan
    lower_bound: float = -math.inf
    residual: float = math.nan
    inner_iterations: int = 0
    curvature_step: bool = False
    predicted: float = math.nan
    radius: float = math.inf
    negative_curvature: Tensor | None = None
    unbounded: float = 1.0


@dataclass(frozen=True)
class Stationary:
    """What a method knows of a point where the projected gradient vanishes.

    Attributes:
        minimum: True if it found no negative curvature, and looked well enough.
        reason: A sentence.
        unfinished: True if it found no negative curvature as far as it looked, and more
            products would tell.
    """

    minimum: bool
    reason: str
    unfinished: bool = False


class OutOfBudget(Exception):  # noqa: N818 - a way out, not an error
    """Raised by a method whose next step costs more products than are left."""


@dataclass(frozen=True)
class Step:
    """A step that was tried.

    Attributes:
        vector: The point it ends at ``[n]``; None if no trial was acceptable.
        value: The objective there.
        length: Fraction of the direction that was taken.
        trials: Values spent.
        direction: What was searched.
        reason: Why no trial was acceptable, a sentence; empty otherwise.
        point: The end with its gradient, where the search has evaluated that already.
        memo: What the method's ``update`` is to know of this step.
    """

    vector: Tensor | None
    value: float
    length: float
    trials: int
    direction: Direction
    reason: str = ""
    point: Point | None = None
    memo: Any = None


class Method(ABC):
    """A method of minimisation, one step at a time."""

    #: Which Hessian a point has; None if steps make one when they need it.
    kind: Kind | None = "exact"
    #: Whether a run estimates λ_min, within limits, before it calls a point a minimum.
    examines_curvature = True
    #: Whether each step is on a sample of the objective: a ``SampledMethod``.
    samples = False

    def __repr__(self) -> str:
        """Return the class and the options that are not the defaults."""
        # a class of one's own may do anything when it is made: all its options are shown
        ours = type(self).__module__.startswith("hvpopt.")
        defaults = _options(type(self)()) if ours else {}
        told = [
            f"{name}={value!r}"
            for name, value in _options(self).items()
            if name not in defaults or not _same(value, defaults[name])
        ]
        return f"{type(self).__name__}({', '.join(told)})"

    def __new__(cls, *args: object, **options: object) -> Self:
        """Refuse arguments that do not fit, such as those that SciPy gives a method."""
        try:
            # a copy is made without arguments
            if args or options:
                inspect.signature(cls.__init__).bind(None, *args, **options)
        except TypeError as error:
            raise TypeError(f"{cls.__name__}: {error}; {_use(cls, args)}") from None
        return super().__new__(cls)

    @property
    def needs_products(self) -> bool:
        """True if steps take Hessian-vector products. Default True."""
        return True

    def __call__(self, *_: object, **__: object) -> NoReturn:
        """Refuse to be called, as SciPy calls a ``method`` of its own."""
        name = type(self).__name__
        raise TypeError(
            f"{name} is a method of hvpopt.minimize and cannot be called; for "
            f"scipy.optimize.minimize pass method=hvpopt.scipy_method(hvpopt.{name}(...))"
        )

    def stages(self, objective: Objective) -> Sequence[Method]:
        """Return the methods that minimise an objective, one after the other.

        Args:
            objective: To be minimised. Default not read: this method alone.
        """
        return [self]

    @abstractmethod
    def step(self, problem: Problem, point: Point, state: Any, budget: Budget) -> Step:
        """Return a step from a linearised point.

        Args:
            problem: For trial values.
            point: Where to step from, with its Hessian.
            state: What ``start`` returned, or the last ``update``.
            budget: What may still be spent.
        """

    def predicted_step(self, problem: Problem, point: Point, state: Any) -> Tensor | None:
        """Return the whole step that comes next, where nothing need be evaluated for it.

        Args:
            problem: For the space.
            point: Where the step begins.
            state: What ``start`` returned, or the last ``update``.

        Returns:
            The step ``[n]``, or None where only ``step`` can tell. Default None.
        """
        return None

    def escape(
        self, problem: Problem, point: Point, state: Any, budget: Budget
    ) -> Step | Stationary:
        """Leave a stationary point that is no minimum.

        Args:
            problem: For trial values.
            point: Where the gradient is as good as zero.
            state: What ``start`` returned, or the last ``update``.
            budget: What may still be spent.

        Returns:
            A step along negative curvature if there is any, else what is known of the
            curvature here.
        """
        return Stationary(False, "its curvature was not examined")

    def start(self, problem: Problem) -> Any:
        """Return the state that a run begins with. Default none."""
        return None

    def next_stage(self, problem: Problem, state: Any) -> Any:
        """Return the state that a new stage begins with, at another objective.

        Args:
            problem: With the new objective.
            state: Of the last stage. Default not read: ``start`` returns a new one.
        """
        return self.start(problem)

    def update(self, state: Any, before: Point, after: Point, step: Step) -> Any:
        """Return the state after an accepted step. Default unchanged."""
        return state


class SampledMethod(Method):
    """A method that takes each step on a sample of the objective.

    ``step`` returns the end evaluated on the next sample. When it returns no end, the
    method that follows in ``stages`` goes on.
    """

    kind = None
    examines_curvature = False
    samples = True

    @abstractmethod
    def sample(self, problem: Problem, state: Any) -> Problem:
        """Return the problem of the sample at which the state's point was evaluated.

        Args:
            problem: The whole problem.
            state: What ``start`` returned, or the last ``update``.
        """

    @abstractmethod
    def sample_size(self, state: Any) -> int:
        """Return the number of parts of that sample."""

    @abstractmethod
    def handed_on(self, state: Any) -> Any:
        """Return the state with which the method that follows begins."""


def options_of(cls: type[Method]) -> list[str]:
    """Return the names of the options of a method, those of its bases included."""
    found: dict[str, None] = {}
    for base in cls.__mro__:
        if "__init__" in vars(base) and issubclass(base, Method):
            for name, parameter in inspect.signature(base.__init__).parameters.items():
                if parameter.kind is not parameter.VAR_KEYWORD and name != "self":
                    found[name] = None
    return list(found)


def _use(cls: type[Method], args: tuple[object, ...]) -> str:
    """Return what to write instead of a method's constructor with these arguments."""
    name = f"hvpopt.{cls.__name__}"
    if len(args) == 2 and callable(args[0]):
        return f"for scipy.optimize.minimize pass method=hvpopt.scipy_method({name}())"
    if args and isinstance(args[0], Iterable) and not isinstance(args[0], (str, Tensor)):
        return f"for torch parameters: hvpopt.optim.Newton(params, {name}())"
    first, *rest = options_of(cls)
    options = ", ".join([f"{first}=...", *rest])
    return f"options are given by name: {name}({options})"


def _options(method: object) -> dict[str, object]:
    """Return the public attributes of a method, also of its groups of options."""
    found: dict[str, object] = {}
    for name, value in vars(method).items():
        if type(value).__name__.startswith("_") and is_dataclass(value):
            found |= _options(value)
        elif not name.startswith("_"):
            found[name] = value
    return found


def _same(a: object, b: object) -> bool:
    """True for equal options, also of the package's classes that compare by identity."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, (int, float, str)):
        return a == b
    if not type(a).__module__.startswith("hvpopt."):
        return False
    return all(_same(value, vars(b).get(name)) for name, value in vars(a).items())


def checked_method(method: object) -> Method:
    """Return a method, or raise TypeError that tells how to make one."""
    use = "pass an instance of a method, such as hvpopt.QuasiNewton()"
    return checks.instance("method", method, Method, use)
